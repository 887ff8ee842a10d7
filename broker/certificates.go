package broker

import (
	"crypto/tls"
	"slices"
	"strings"
	"sync"
	"time"

	"example.com/broker/broker/identity"
	"example.com/broker/stream"
)

// serverCertificate is the life of a certificate that the broker issues to
// itself. It lives in memory and is renewed when a third is over.
const serverCertificate = 30 * 24 * time.Hour

// A Keyring holds the certificates that the broker shows: to agents, which pin
// its CA, one of its own; to everybody else the one that was set, if one was.
//
// Its own also names what the client asked for, if that is one label below one
// of the Names: a server's. Not every client takes the wildcard for it, and a
// list of the servers is nobody's business.
type Keyring struct {
	CA    *identity.CA
	Names []string // DNS names and addresses in the broker's own certificate

	mu  sync.Mutex
	own map[string]*tls.Certificate // by the name that was asked for beside Names, or ""
	set *tls.Certificate
}

// maxOwn bounds the certificates in memory: anybody may ask for any name.
const maxOwn = 1000

// Set makes c the certificate for clients; nil means the broker's own.
func (k *Keyring) Set(c *tls.Certificate) {
	k.mu.Lock()
	k.set = c
	k.mu.Unlock()
}

// Shows reports whether the certificate that was set is for this host.
func (k *Keyring) Shows(host string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.set != nil && k.set.Leaf != nil && k.set.Leaf.VerifyHostname(host) == nil
}

// Renew makes the keyring issue its own certificates anew: the CA has changed.
func (k *Keyring) Renew() {
	k.mu.Lock()
	k.own = nil
	k.mu.Unlock()
}

// Config returns the TLS configuration of a listener.
func (k *Keyring) Config() *tls.Config {
	return &tls.Config{GetCertificate: k.certificate}
}

func (k *Keyring) certificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.set != nil && !slices.Contains(hello.SupportedProtos, stream.ALPNAgent) {
		return k.set, nil
	}
	name := ""
	if label, host, ok := strings.Cut(hello.ServerName, "."); ok && label != "" && label != "*" && slices.Contains(k.Names, host) {
		name = hello.ServerName
	}
	if c := k.own[name]; c != nil && time.Until(c.Leaf.NotAfter) > serverCertificate*2/3 && !time.Now().Before(c.Leaf.NotBefore) { // the clock may be set back
		return c, nil
	}
	names := k.Names
	if name != "" {
		names = append(slices.Clone(names), name)
	}
	c, err := k.CA.IssueServer(names, serverCertificate)
	if err != nil {
		return nil, err
	}
	if k.own == nil || len(k.own) >= maxOwn {
		k.own = map[string]*tls.Certificate{}
	}
	k.own[name] = c
	return c, nil
}
