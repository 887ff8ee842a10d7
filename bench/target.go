package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"example.com/broker/broker/identity"
)

// A target is a way from clients to the MCP server.
type target struct {
	name      string
	about     string
	endpoints map[string]endpoint // by protocol
	processes []*process          // what it is made of, between client and server
	metrics   string              // address, of a Go program that says what it allocates
}

// errAbsent is the error of what starts a target that this machine does not have.
var errAbsent = errors.New("is not installed")

// A bed is what targets stand in: a folder, certificates, the MCP server.
type bed struct {
	dir     string
	self    string // this program
	broker  string // the program that is measured
	bare    string // the same, that records nothing
	backend addresses
	ca      *identity.CA
	corpus  string
}

// serverName is the host name that all targets have; to a broker it says which server.
const (
	serverName = "bench.localhost"
	webName    = "web.localhost"
)

// newBed makes the certificates. All targets prove themselves alike and want clients
// to, with ECDSA keys.
func newBed(dir string) (*bed, error) {
	b := &bed{dir: dir}
	var err error
	if b.self, err = os.Executable(); err != nil {
		return nil, err
	}
	data := filepath.Join(dir, "ca")
	if err := os.Mkdir(data, 0o700); err != nil {
		return nil, err
	}
	if b.ca, err = identity.OpenCA(data); err != nil {
		return nil, err
	}
	if err := os.WriteFile(b.file("ca.pem"), b.ca.Roots(), 0o600); err != nil {
		return nil, err
	}
	server, err := b.ca.IssueServer([]string{serverName, webName, "localhost", "127.0.0.1"}, 24*time.Hour)
	if err != nil {
		return nil, err
	}
	if err := writeKeyPair(b.file("server.pem"), server); err != nil {
		return nil, err
	}
	key, err := identity.NewKey()
	if err != nil {
		return nil, err
	}
	der, err := b.ca.IssueUser(identity.Identity{Subject: "bench", Groups: []string{"bench"}}, key.Public(), 24*time.Hour)
	if err != nil {
		return nil, err
	}
	bundle, err := identity.Bundle(key, der, nil)
	if err != nil {
		return nil, err
	}
	return b, os.WriteFile(b.file("client.pem"), bundle, 0o600)
}

// caFor gives a broker's data folder the CA, so that it and all others take the same clients.
func (b *bed) caFor(data string) error {
	if err := os.Mkdir(data, 0o700); err != nil {
		return err
	}
	files, err := os.ReadDir(b.file("ca"))
	if err != nil {
		return err
	}
	for _, f := range files {
		text, err := os.ReadFile(filepath.Join(b.file("ca"), f.Name()))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(data, f.Name()), text, 0o600); err != nil {
			return err
		}
	}
	return nil
}

func (b *bed) file(name string) string { return filepath.Join(b.dir, name) }

// writeKeyPair writes certificates and their key into one file.
func writeKeyPair(path string, c *tls.Certificate) error {
	var text []byte
	for _, der := range c.Certificate {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	key, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		return err
	}
	text = append(text, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})...)
	return os.WriteFile(path, text, 0o600)
}

// serverTLS is the MCP server's own, from the files of a bed.
func serverTLS(dir string) (*tls.Config, error) {
	cert, err := tls.LoadX509KeyPair(filepath.Join(dir, "server.pem"), filepath.Join(dir, "server.pem"))
	if err != nil {
		return nil, err
	}
	roots, err := os.ReadFile(filepath.Join(dir, "ca.pem"))
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(roots)
	return &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool}, nil
}

// clientTLS is a client's. It has no cache of sessions: each handshake is whole.
func (b *bed) clientTLS(name string, protocols ...string) (*tls.Config, error) {
	return clientTLS(b.dir, name, protocols...)
}

func clientTLS(dir, name string, protocols ...string) (*tls.Config, error) {
	file := filepath.Join(dir, "client.pem")
	cert, err := tls.LoadX509KeyPair(file, file)
	if err != nil {
		return nil, err
	}
	roots, err := os.ReadFile(filepath.Join(dir, "ca.pem"))
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(roots)
	return &tls.Config{MinVersion: tls.VersionTLS13, ServerName: name, RootCAs: pool, Certificates: []tls.Certificate{cert}, NextProtos: protocols}, nil
}

// startBackend starts the MCP server.
func (b *bed) startBackend(ctx context.Context) (*process, error) {
	in, hold, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer in.Close()
	p, err := startProcessWith(b.dir, "backend", in, b.self, "backend", "--dir", b.dir, "--corpus", b.corpus)
	if err != nil {
		return nil, err
	}
	p.hold = hold
	if err := p.logs(ctx, "\n", 1); err != nil {
		return p, err
	}
	return p, p.readLog(&b.backend)
}

// A maker starts a target in a bed.
type maker struct {
	name  string
	about string
	start func(context.Context, *bed, *target) error
}

// startTime bounds the start of a target.
const startTime = 30 * time.Second

// startTarget starts one; what it has started when it fails is stopped.
func (b *bed) startTarget(ctx context.Context, m maker) (*target, error) {
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	t := &target{name: m.name, about: m.about, endpoints: map[string]endpoint{}}
	if err := m.start(ctx, b, t); err != nil {
		t.stop()
		return nil, fmt.Errorf("%s: %w", m.name, err)
	}
	return t, nil
}

func (t *target) stop() {
	for i := len(t.processes) - 1; i >= 0; i-- {
		t.processes[i].stop()
	}
}

// run adds a process to the target, and waits until it listens.
func (t *target) run(ctx context.Context, b *bed, name, addr, program string, args ...string) error {
	p, err := startProcess(b.dir, t.name+"-"+name, program, args...)
	if err != nil {
		return err
	}
	t.processes = append(t.processes, p)
	return p.answers(ctx, addr)
}
