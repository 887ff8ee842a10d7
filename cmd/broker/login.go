package main

import (
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/cli/browser"
	"github.com/spf13/cobra"
	"golang.org/x/oauth2"

	"example.com/broker/broker/identity"
	"example.com/broker/broker/signin"
)

// defaultPort is that of a broker whose address names none.
const defaultPort = "8443"

// logins are the certificates that the user has got by signing in, one a broker,
// in a folder of the user's configuration.
type logins struct{ dir string }

func openLogins() (logins, error) {
	dir, err := os.UserConfigDir()
	if err != nil {
		return logins{}, fmt.Errorf("your configuration folder: %w", err)
	}
	return logins{filepath.Join(dir, "broker")}, nil
}

// file is where the certificate for a broker is.
func (l logins) file(broker string) string {
	return filepath.Join(l.dir, strings.NewReplacer(":", "_", "/", "_", "[", "", "]", "").Replace(broker)+".pem")
}

func (l logins) lastFile() string { return filepath.Join(l.dir, "broker") }

// last is the broker of the last sign-in, or "".
func (l logins) last() string {
	b, err := os.ReadFile(l.lastFile())
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

func (l logins) store(broker string, bundle []byte) error {
	if err := os.MkdirAll(l.dir, 0o700); err != nil {
		return err
	}
	return errors.Join(identity.WritePrivate(l.file(broker), bundle), identity.WritePrivate(l.lastFile(), []byte(broker+"\n")))
}

// remove forgets the certificate for a broker.
func (l logins) remove(broker string) error {
	err := os.Remove(l.file(broker))
	if l.last() == broker {
		err = cmp.Or(err, os.Remove(l.lastFile()))
	}
	return err
}

// brokerAddress reads the argument BROKER: host or host:port.
func brokerAddress(arg string) (string, error) {
	if _, _, err := net.SplitHostPort(arg); err == nil {
		return arg, nil
	}
	if arg == "" || strings.ContainsAny(arg, "/ ") {
		return "", usagef("broker %q: must be host or host:port", arg)
	}
	return net.JoinHostPort(strings.Trim(arg, "[]"), defaultPort), nil
}

func login() *cobra.Command {
	var (
		device, noBrowser, asJSON bool
		tokenFile, ca, pin, via   string
	)
	cmd := &cobra.Command{
		Use:   "login [BROKER]",
		Short: "sign in; get a short-lived client certificate",
		Long: `Sign in at BROKER (host or host:port; default: where you signed in last) and get a
client certificate for some hours. Its key is made here and never sent; both are
stored in your configuration folder, readable by you only, and the other commands
find them there.

A browser opens at the broker, which sends it on to your identity provider. With
--device the browser may be on another machine: open the page that is printed
there and compare the code. With --token-file a program signs in with the token
that its platform gave it (GitHub Actions, Kubernetes, Google).`,
		Example: "  broker login mcp.example.com\n  broker login mcp.example.com --device\n  broker login mcp.example.com --token-file /var/run/secrets/tokens/broker",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := openLogins()
			if err != nil {
				return err
			}
			addr := l.last()
			if len(args) > 0 {
				if addr, err = brokerAddress(args[0]); err != nil {
					return err
				}
			}
			if addr == "" {
				return usagef("BROKER is missing: say where to sign in, like mcp.example.com")
			}
			if device && tokenFile != "" {
				return usagef("--device and --token-file exclude each other")
			}
			config, err := loginTLS(addr, ca, pin, l)
			if err != nil {
				return err
			}
			s := &signer{broker: addr, api: newAPI(addr, config), out: cmd.ErrOrStderr(), provider: via, open: !noBrowser}
			if s.key, s.csr, err = newCSR(); err != nil {
				return err
			}
			var t signin.Traded
			switch {
			case tokenFile != "":
				t, err = s.byToken(cmd.Context(), tokenFile)
			case device:
				t, err = s.byDevice(cmd.Context())
			default:
				t, err = s.byBrowser(cmd.Context())
			}
			if err != nil {
				return loginHint(addr, err)
			}
			bundle, err := s.bundle(t)
			if err != nil {
				return err
			}
			if err := l.store(addr, bundle); err != nil {
				return err
			}
			if asJSON {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(struct {
					Broker   string    `json:"broker"`
					Subject  string    `json:"subject"`
					Groups   []string  `json:"groups"`
					Until    time.Time `json:"until"`
					Identity string    `json:"identity"`
				}{addr, t.Subject, t.Groups, t.Until, l.file(addr)})
			}
			fmt.Fprintf(cmd.OutOrStdout(), "signed in to %s as %s (groups: %s) until %s\n", addr, t.Subject, cmp.Or(strings.Join(t.Groups, ", "), "none"), t.Until.Local().Format(time.DateTime))
			return nil
		},
	}
	cmd.Flags().BoolVar(&device, "device", false, "sign in with a browser on another machine")
	cmd.Flags().BoolVar(&noBrowser, "no-browser", false, "print the address only, and open no browser")
	cmd.Flags().StringVar(&tokenFile, "token-file", "", "sign in with the workload's token in `FILE`")
	cmd.Flags().StringVar(&via, "provider", "", "sign in with the identity provider of that `NAME`, where the broker has several")
	cmd.Flags().StringVar(&ca, "ca", "", "PEM `FILE` of the CA that proves the broker (default: what the last sign-in stored, else the system's)")
	cmd.Flags().StringVar(&pin, "pin", "", "the broker's CA by its `PIN`, sha256:…, as broker ca show prints it")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.MarkFlagFilename("token-file")
	cmd.MarkFlagFilename("ca", "pem", "crt")
	return cmd
}

func logout() *cobra.Command {
	var broker string
	cmd := &cobra.Command{
		Use:   "logout",
		Short: "forget the certificate that login got",
		Long: `Remove the certificate and key that login stored. Sessions that run with them go
on until they end; an admin ends them with broker disable.`,
		Example: "  broker logout",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := openLogins()
			if err != nil {
				return err
			}
			if broker == "" {
				if broker = l.last(); broker == "" {
					return errors.New("you are not signed in anywhere")
				}
			}
			if broker, err = brokerAddress(broker); err != nil {
				return err
			}
			if err := l.remove(broker); errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("you are not signed in to %s", broker)
			} else if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "signed out of %s\n", broker)
			return nil
		},
	}
	cmd.Flags().StringVar(&broker, "broker", "", "the broker's `ADDR` (default: where you signed in last)")
	return cmd
}

// loginTLS is how the broker proves itself to who has no certificate yet.
func loginTLS(addr, ca, pin string, l logins) (*tls.Config, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	if pin != "" && !pinText.MatchString(pin) {
		return nil, usagef("--pin %q: must be sha256: and 64 hex digits", pin)
	}
	var roots []*x509.Certificate
	switch {
	case ca != "":
		if roots, err = readCertificates(ca); err != nil {
			return nil, err
		}
	case pin == "":
		if text, err := os.ReadFile(l.file(addr)); err == nil {
			_, roots, _ = identity.ReadBundle(text)
		}
	}
	config := clientTLS("", host, tls.Certificate{}, roots)
	config.Certificates = nil
	if pin == "" {
		return config, nil
	}
	config.VerifyConnection = func(cs tls.ConnectionState) error {
		for _, c := range cs.PeerCertificates {
			sum := sha256.Sum256(c.Raw)
			if "sha256:"+hex.EncodeToString(sum[:]) == pin {
				return clientTLS("", host, tls.Certificate{}, []*x509.Certificate{c}).VerifyConnection(cs)
			}
		}
		return errors.New("the broker's certificate does not come from the CA that is pinned")
	}
	return config, nil
}

// loginHint says what to do about a broker that cannot be trusted.
func loginHint(addr string, err error) error {
	var unknown x509.UnknownAuthorityError
	if errors.As(err, &unknown) {
		return hinted{err, "if the broker has a CA of its own, broker ca show on its machine prints it: pass that with --ca FILE, or its pin with --pin"}
	}
	return err
}

// A signer signs in and gets a certificate.
type signer struct {
	broker   string
	api      *apiClient
	key      *ecdsa.PrivateKey
	csr      string
	provider string
	open     bool // a browser
	out      io.Writer
}

// newCSR makes a key, and a CSR which says nothing but that key.
func newCSR() (*ecdsa.PrivateKey, string, error) {
	key, err := identity.NewKey()
	if err != nil {
		return nil, "", err
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, "", err
	}
	return key, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})), nil
}

// bundle checks the certificate and makes an identity file of it.
func (s *signer) bundle(t signin.Traded) ([]byte, error) {
	block, _ := pem.Decode([]byte(t.Certificate))
	if block == nil {
		return nil, fmt.Errorf("broker %s answers what is not expected", s.broker)
	}
	bundle, err := identity.Bundle(s.key, block.Bytes, []byte(t.CA))
	if err == nil {
		_, _, err = identity.ReadBundle(bundle) // the key must be ours
	}
	return bundle, err
}

func (s *signer) byToken(ctx context.Context, file string) (t signin.Traded, err error) {
	token, err := os.ReadFile(file)
	if err != nil {
		return t, err
	}
	return t, s.api.call(ctx, "POST", "/api/v1/login", signin.Trade{Token: strings.TrimSpace(string(token)), CSR: s.csr}, &t)
}

// signInTime is how long people have for a sign-in.
const signInTime = 10 * time.Minute

// byBrowser sends a browser to the broker, and waits for it to come back to a
// port on the loopback interface (RFC 8252).
func (s *signer) byBrowser(ctx context.Context) (t signin.Traded, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, signInTime, errors.New("nobody has signed in within "+signInTime.String()))
	defer cancel()
	if err := s.reachable(ctx); err != nil { // before a browser shows that in worse words
		return t, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return t, err
	}
	verifier, state := oauth2.GenerateVerifier(), rand.Text()
	codes := make(chan string, 1)
	server := &http.Server{Handler: loopback(state, codes), ReadHeaderTimeout: 10 * time.Second}
	go server.Serve(l)
	defer server.Shutdown(context.WithoutCancel(ctx))

	q := url.Values{
		"redirect_uri": {"http://" + l.Addr().String() + "/callback"}, "state": {state},
		"code_challenge": {oauth2.S256ChallengeFromVerifier(verifier)},
	}
	if s.provider != "" {
		q.Set("provider", s.provider)
	}
	page := "https://" + s.broker + "/login?" + q.Encode()
	fmt.Fprintf(s.out, "broker: sign in with your browser at\n  %s\n", page)
	if s.open {
		browser.Stdout, browser.Stderr = io.Discard, io.Discard
		if err := browser.OpenURL(page); err != nil {
			fmt.Fprintf(s.out, "broker: no browser could be opened here; open the page yourself, or use --device\n")
		}
	}
	select {
	case code := <-codes:
		return t, s.api.call(ctx, "POST", "/api/v1/login", signin.Trade{Code: code, Verifier: verifier, CSR: s.csr}, &t)
	case <-ctx.Done():
		return t, context.Cause(ctx)
	}
}

func (s *signer) reachable(ctx context.Context) error {
	r, err := http.NewRequestWithContext(ctx, "GET", s.api.base+"/", nil)
	if err != nil {
		return err
	}
	resp, err := s.api.http.Do(r)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// loopback takes the code that the browser brings.
func loopback(state string, codes chan<- string) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /callback", func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Type", "text/html; charset=utf-8")
		h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
		h.Set("Referrer-Policy", "no-referrer")
		if subtle.ConstantTimeCompare([]byte(r.FormValue("state")), []byte(state)) != 1 || r.FormValue("code") == "" {
			w.WriteHeader(http.StatusBadRequest)
			fmt.Fprint(w, "<!doctype html><title>MCP broker</title><p>This sign-in was not begun here.")
			return
		}
		select {
		case codes <- r.FormValue("code"):
		default: // it has come already
		}
		fmt.Fprint(w, "<!doctype html><title>MCP broker</title><p>You are signed in. You can close this page and go on in the terminal.")
	})
	return mux
}

// byDevice shows a code that somebody confirms in any browser.
func (s *signer) byDevice(ctx context.Context) (t signin.Traded, err error) {
	var d signin.Device
	if err := s.api.call(ctx, "POST", "/api/v1/device", struct{}{}, &d); err != nil {
		return t, err
	}
	fmt.Fprintf(s.out, "broker: open this page in a browser on any machine, and see that it shows the code %s\n  %s\n", d.UserCode, d.Complete)
	wait := max(time.Duration(d.Interval)*time.Second, time.Second)
	deadline := time.Now().Add(time.Duration(d.ExpiresIn) * time.Second)
	for {
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return t, context.Cause(ctx)
		}
		err := s.api.call(ctx, "POST", "/api/v1/device/token", signin.DeviceTrade{DeviceCode: d.DeviceCode, CSR: s.csr}, &t)
		var failure *apiError
		switch {
		case err == nil:
			return t, nil
		case !errors.As(err, &failure) || !slices.Contains([]string{signin.Waiting, signin.SlowDown}, failure.Code):
			return t, err
		case failure.Code == signin.SlowDown:
			wait += 5 * time.Second // RFC 8628, section 3.5
		case time.Now().After(deadline):
			return t, errors.New("nobody has confirmed the code in time")
		}
	}
}
