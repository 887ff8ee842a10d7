package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"time"

	"example.com/broker/broker"
	"example.com/broker/broker/identity"
	"example.com/broker/codec"
	"example.com/broker/stream"
	"github.com/spf13/cobra"
)

func connect() *cobra.Command {
	var (
		client clientFlags
		quic   bool
	)
	cmd := &cobra.Command{
		Use:   "connect SERVER",
		Short: "stdin and stdout to a session; what an MCP client runs",
		Long: `Connect stdin and stdout to a session with SERVER. This is the command of an MCP
client's configuration (see broker config). The end of stdin ends the client's
side only: what the server still answers arrives.`,
		Example: "  broker connect bigquery --broker mcp.example.com:8443 --identity ada.pem",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			dial := stream.Dial
			if quic {
				dial = stream.DialQUIC
			}
			in, out := cmd.InOrStdin(), cmd.OutOrStdout()
			c, err := client.dial(cmd.Context(), args[0], dial)
			if err != nil {
				answerFirst(in, out, err)
				return err
			}
			return bridge(cmd.Context(), c, in, out)
		},
	}
	client.add(cmd)
	cmd.Flags().BoolVar(&quic, "quic", false, "connect over QUIC (UDP) instead of TLS (TCP)")
	return cmd
}

// clientFlags say which broker, who connects, and what proves the broker.
type clientFlags struct {
	broker   string
	identity string
	ca       string
}

func (f *clientFlags) add(cmd *cobra.Command) {
	f.addBroker(cmd)
	cmd.Flags().StringVar(&f.identity, "identity", "", "certificate and key in one PEM `FILE` (default: what broker login stored)")
	cmd.MarkFlagFilename("identity", "pem")
}

// addBroker adds the flags that say which broker.
func (f *clientFlags) addBroker(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.broker, "broker", "", "the broker's `ADDR`, host:port (default: where you signed in last)")
	cmd.Flags().StringVar(&f.ca, "ca", "", "PEM `FILE` of the CA that proves the broker (default: a CA in the identity file, else the system's)")
	cmd.MarkFlagFilename("ca", "pem", "crt")
}

// resolve fills in what broker login stored.
func (f *clientFlags) resolve() error {
	l, err := openLogins()
	if err != nil {
		return err
	}
	if f.broker == "" {
		if f.broker = l.last(); f.broker == "" {
			return usagef("--broker is missing; say host:port, or sign in with broker login")
		}
	}
	if _, _, err := net.SplitHostPort(f.broker); err != nil {
		return usagef("--broker %q: must be host:port", f.broker)
	}
	if f.identity == "" {
		f.identity = l.file(f.broker)
	}
	return nil
}

// dialTime bounds a connection's start.
const dialTime = 15 * time.Second

type dialFunc func(ctx context.Context, addr string, c *tls.Config) (stream.Conn, error)

func (f *clientFlags) dial(ctx context.Context, server string, dial dialFunc) (stream.Conn, error) {
	if !label.MatchString(server) {
		return nil, usagef("server %q: %w", server, errServerName)
	}
	config, err := f.tls(server)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	c, err := dial(ctx, f.broker, config)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", f.broker, err)
	}
	return c, nil
}

// tls is how the broker is connected to as the user: for a session with server,
// or, if that is empty, for its API.
func (f *clientFlags) tls(server string) (*tls.Config, error) {
	if err := f.resolve(); err != nil {
		return nil, err
	}
	host, _, err := net.SplitHostPort(f.broker)
	if err != nil {
		return nil, err
	}
	file := f.identity
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, hinted{fmt.Errorf("identity %s: no such file", file), "sign in with broker login " + f.broker + ", or name a certificate with --identity FILE"}
	}
	if err != nil {
		return nil, fmt.Errorf("identity: %w", err)
	}
	cert, roots, err := identity.ReadBundle(text)
	if err != nil {
		return nil, fmt.Errorf("identity %s: %w", file, err)
	}
	if until := cert.Leaf.NotAfter; time.Now().After(until) {
		return nil, hinted{fmt.Errorf("identity %s: expired at %s", file, until.Format(time.RFC3339)), "sign in again with broker login " + f.broker + ", or name another with --identity FILE"}
	}
	if f.ca != "" {
		if roots, err = readCertificates(f.ca); err != nil {
			return nil, err
		}
	}
	return clientTLS(server, host, cert, roots), nil
}

// clientTLS names the server by SNI. The broker proves itself under the name
// that was dialled, or under the SNI name.
func clientTLS(server, host string, cert tls.Certificate, roots []*x509.Certificate) *tls.Config {
	sni := server + "." + host
	switch {
	case server == "":
		sni = host
	case net.ParseIP(host) != nil: // an address cannot stand in SNI
		sni = server + ".broker.internal"
	}
	var pool *x509.CertPool // nil: the system's
	if len(roots) > 0 {
		pool = x509.NewCertPool()
		for _, c := range roots {
			pool.AddCert(c)
		}
	}
	return &tls.Config{
		MinVersion:         tls.VersionTLS13,
		NextProtos:         []string{stream.ALPNSession},
		ServerName:         sni,
		Certificates:       []tls.Certificate{cert},
		InsecureSkipVerify: true, // VerifyConnection does it, for either name
		VerifyConnection: func(cs tls.ConnectionState) error {
			o := x509.VerifyOptions{Roots: pool, Intermediates: x509.NewCertPool()}
			for _, c := range cs.PeerCertificates[1:] {
				o.Intermediates.AddCert(c)
			}
			leaf := cs.PeerCertificates[0]
			if _, err := leaf.Verify(o); err != nil {
				return &tls.CertificateVerificationError{UnverifiedCertificates: cs.PeerCertificates, Err: err}
			}
			if err := leaf.VerifyHostname(host); err != nil && leaf.VerifyHostname(sni) != nil {
				return &tls.CertificateVerificationError{UnverifiedCertificates: cs.PeerCertificates, Err: err}
			}
			return nil
		},
	}
}

// bridge carries bytes until the broker ends the session.
func bridge(ctx context.Context, c stream.Conn, in io.Reader, out io.Writer) error {
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	sent := make(chan error, 1)
	go func() { // ends with the process: nothing wakes a read of stdin
		_, err := io.Copy(c, in)
		if err == nil {
			err = c.CloseWrite()
		}
		sent <- err
	}()
	_, err := io.Copy(out, c)
	if ctx.Err() != nil { // a client that is done sends SIGTERM
		return nil
	}
	if err != nil {
		return fmt.Errorf("session: %w", err)
	}
	return nil
}

// answerFirst answers the first request on in, so that the person reads in the
// MCP client why there is no session.
func answerFirst(in io.Reader, out io.Writer, failure error) {
	done := make(chan struct{})
	go func() { // ends with the process
		defer close(done)
		r := codec.NewReader(in, codec.Limits{})
		var p codec.Parser
		for {
			line, err := r.Next()
			if err != nil {
				return
			}
			if f, err := p.Parse(line, codec.C2S); err == nil && f.Kind == codec.Request {
				out.Write(append(codec.AppendError(nil, f.ID, broker.CodeUnavailable, "broker: "+failure.Error(), nil), '\n'))
				return
			}
		}
	}()
	select {
	case <-done:
	case <-time.After(2 * time.Second): // nobody asks
	}
}
