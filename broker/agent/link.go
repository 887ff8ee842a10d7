package agent

import (
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	mathrand "math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"example.com/broker/stream"
)

// A Link keeps an agent connected to a broker: it joins with a one-time token,
// keeps the certificate that it gets for it, renews that, and holds several
// tunnels, each of which comes back by itself when it breaks.
type Link struct {
	Agent  *Agent
	Broker string // host:port
	Name   string // the agent's
	Pin    string // "sha256:…", of the broker's CA certificate
	Token  string // for the first start; not looked at once there is a certificate
	// Attest, if not nil, is what the agent joins with instead of a token: it
	// returns a statement for an audience that says where the agent runs.
	Attest  func(ctx context.Context, audience string) (string, error)
	Dir     string // keeps identity.pem; made with mode 0700 where missing
	Tunnels int    // if zero, 4
	Tunnel  stream.TunnelOptions
	Log     *slog.Logger // if nil, nothing is logged

	// OpenTime bounds a dial and the start of a server; if zero, 10 s.
	OpenTime time.Duration

	pinned []byte // the certificate of Pin, in DER, once it has been seen

	uses    chan Used // to be told to the broker
	usesOne sync.Once
	mu      sync.Mutex
	current *tls.Certificate // with Leaf; then the certificates of the broker's CA, old and new
	live    []*stream.Tunnel
}

// How long an agent waits before it dials again: doubled from the first to the
// last, each time a random part of it, so that a broker that comes back is not
// met by all its agents at once.
const (
	firstWait = 250 * time.Millisecond
	lastWait  = 30 * time.Second
)

// ErrNotJoined is returned by [Link.Run] when there is neither a valid
// certificate nor a token.
var ErrNotJoined = errors.New("the agent has no valid certificate and no token to join with")

// Run joins where need be and keeps the tunnels until ctx is done. It returns an
// error for what waiting does not mend: a wrong pin, a refused token.
func (l *Link) Run(ctx context.Context) error {
	if l.Log == nil {
		l.Log = slog.New(slog.DiscardHandler)
	}
	l.OpenTime = cmp.Or(l.OpenTime, 10*time.Second)
	if err := l.identify(ctx); err != nil {
		return fmt.Errorf("agent %s: join %s: %w", l.Name, l.Broker, err)
	}

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var running sync.WaitGroup
	for range cmp.Or(l.Tunnels, 4) {
		running.Go(func() {
			if err := l.keepTunnel(ctx); err != nil {
				cancel(err)
			}
		})
	}
	running.Go(func() { l.keepCertificate(ctx) })
	running.Go(func() { l.tellUses(ctx) })
	running.Wait()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return fmt.Errorf("agent %s: %w", l.Name, err)
	}
	return nil
}

// backoff is the wait before the next of several attempts.
type backoff struct{ next time.Duration }

// wait sleeps, unless ctx is done first.
func (b *backoff) wait(ctx context.Context) {
	b.next = min(max(2*b.next, firstWait), lastWait)
	t := time.NewTimer(time.Duration(mathrand.Int64N(int64(b.next))))
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// identify loads the agent's certificate, or joins to get one.
func (l *Link) identify(ctx context.Context) error {
	err := l.load()
	if err == nil {
		return nil
	}
	if l.Token == "" && l.Attest == nil {
		if errors.Is(err, fs.ErrNotExist) {
			return ErrNotJoined
		}
		return fmt.Errorf("%w: %w", ErrNotJoined, err)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		l.Log.Warn("certificate cannot be used; joining anew", "error", err)
	}
	var wait backoff
	for {
		err := l.join(ctx)
		if err == nil || permanent(err) {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		l.Log.Warn("broker cannot be reached; trying again", "broker", l.Broker, "error", err)
		wait.wait(ctx)
	}
}

// permanent says that trying again will not help.
func permanent(err error) bool {
	var refusal *Error
	return errors.As(err, &refusal) && refusal.Code < 500 || errors.Is(err, errPin)
}

func (l *Link) file() string { return filepath.Join(l.Dir, "identity.pem") }

// load reads the certificate of an earlier join.
func (l *Link) load() error {
	b, err := os.ReadFile(l.file())
	if err != nil {
		return err
	}
	cert, err := tls.X509KeyPair(b, b)
	if err != nil {
		return fmt.Errorf("%s: %w", l.file(), err)
	}
	roots, err := rootsOf(&cert)
	if err != nil {
		return fmt.Errorf("%s: %w", l.file(), err)
	}
	switch {
	case !slices.ContainsFunc(append(roots, pinnedIn(b)...), func(c *x509.Certificate) bool { return pin(c) == l.Pin }):
		return fmt.Errorf("%s: was issued by another CA than %s", l.file(), l.Pin)
	case cert.Leaf.Subject.CommonName != l.Name:
		return fmt.Errorf("%s: belongs to agent %q", l.file(), cert.Leaf.Subject.CommonName)
	case time.Now().After(cert.Leaf.NotAfter):
		return fmt.Errorf("%s: expired at %s", l.file(), cert.Leaf.NotAfter.Format(time.RFC3339))
	}
	l.current = &cert
	for _, c := range append(roots, pinnedIn(b)...) {
		if pin(c) == l.Pin {
			l.pinned = c.Raw
		}
	}
	return nil
}

// request makes a key and asks for a certificate of it.
func (l *Link) request() (key *ecdsa.PrivateKey, csr string, err error) {
	key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, "", err
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, "", err
	}
	return key, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})), nil
}

// install puts a new certificate to use and keeps it in a file.
func (l *Link) install(key *ecdsa.PrivateKey, issued Issued) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	b := append([]byte(issued.Certificate), issued.CA...)
	if l.pinned != nil {
		b = append(b, pem.EncodeToMemory(&pem.Block{Type: pinnedBlock, Bytes: l.pinned})...)
	}
	b = append(b, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})...)
	cert, err := tls.X509KeyPair(b, b)
	if err != nil || len(cert.Certificate) < 2 {
		return errors.New("the broker's certificate cannot be used")
	}
	if _, err := rootsOf(&cert); err != nil {
		return errPin
	}
	if err := os.MkdirAll(l.Dir, 0o700); err != nil {
		return err
	}
	if err := replaceFile(l.file(), b); err != nil { // the token that it cost is spent
		return err
	}
	l.mu.Lock()
	l.current = &cert
	l.mu.Unlock()
	return nil
}

// replaceFile puts text in the place of a file, so that a loss of power leaves
// either.
func replaceFile(path string, text []byte) error {
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

func (l *Link) join(ctx context.Context) error {
	c, err := l.dial(ctx, nil)
	if err != nil {
		return err
	}
	defer c.Close()
	key, csr, err := l.request()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, l.OpenTime)
	defer cancel()
	join := Join{Name: l.Name, Token: l.Token, CSR: csr}
	if l.Attest != nil {
		audience, err := Audience(l.Pin, l.Name, key.Public())
		if err != nil {
			return err
		}
		join.Token = ""
		if join.GCP, err = l.Attest(ctx, audience); err != nil {
			return err
		}
	}
	var issued Issued
	if _, err := Call(ctx, c, MethodJoin, join, &issued); err != nil {
		return err
	}
	if err := l.install(key, issued); err != nil {
		return err
	}
	l.Log.Info("joined", "broker", l.Broker, "certificate_until", l.current.Leaf.NotAfter)
	return nil
}

// keepCertificate renews the certificate when two thirds of its life are over.
func (l *Link) keepCertificate(ctx context.Context) {
	var wait backoff
	for ctx.Err() == nil {
		l.mu.Lock()
		leaf := l.current.Leaf
		l.mu.Unlock()
		due := leaf.NotBefore.Add(leaf.NotAfter.Sub(leaf.NotBefore) * 2 / 3)
		t := time.NewTimer(time.Until(due))
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
		if err := l.Renew(ctx); err != nil {
			l.Log.Warn("certificate cannot be renewed yet", "until", leaf.NotAfter, "error", err)
			wait.wait(ctx)
			continue
		}
		wait = backoff{}
		l.Log.Info("certificate renewed", "until", l.current.Leaf.NotAfter)
	}
}

// Renew asks for a new certificate over any tunnel that is up. Run does so by
// itself when two thirds of the old one's life are over.
func (l *Link) Renew(ctx context.Context) error {
	return l.overAny(func(t *stream.Tunnel) error { return l.renewOver(ctx, t) })
}

// overAny does something over the first tunnel over which it can be done.
func (l *Link) overAny(do func(t *stream.Tunnel) error) error {
	l.mu.Lock()
	live := slices.Clone(l.live)
	l.mu.Unlock()
	err := errors.New("no tunnel is up")
	for _, t := range live {
		if err = do(t); err == nil {
			return nil
		}
	}
	return err
}

func (l *Link) renewOver(ctx context.Context, t *stream.Tunnel) error {
	ctx, cancel := context.WithTimeout(ctx, l.OpenTime)
	defer cancel()
	c, err := t.Open(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	key, csr, err := l.request()
	if err != nil {
		return err
	}
	var issued Issued
	if _, err := Call(ctx, c, MethodRenew, Renew{csr}, &issued); err != nil {
		return err
	}
	return l.install(key, issued)
}

// maxUses is how many uses of credentials wait for the broker to be there.
const maxUses = 4096

func (l *Link) waitingUses() chan Used {
	l.usesOne.Do(func() { l.uses = make(chan Used, maxUses) })
	return l.uses
}

// Used tells the broker that a session has used a credential, as soon as it is
// there. It does not wait.
func (l *Link) Used(u Used) {
	select {
	case l.waitingUses() <- u:
	default:
		l.Log.Error("the use of a credential is not told to the broker: too many wait", "session", u.Session, "server", u.Server, "principal", u.Principal)
	}
}

// tellUses tells the broker of uses until ctx is done.
func (l *Link) tellUses(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case u := <-l.waitingUses():
			var wait backoff
			for l.overAny(func(t *stream.Tunnel) error { return l.tell(ctx, t, u) }) != nil && ctx.Err() == nil {
				wait.wait(ctx)
			}
		}
	}
}

func (l *Link) tell(ctx context.Context, t *stream.Tunnel, u Used) error {
	ctx, cancel := context.WithTimeout(ctx, l.OpenTime)
	defer cancel()
	c, err := t.Open(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = Call(ctx, c, MethodUsed, u, nil)
	var refusal *Error
	if errors.As(err, &refusal) && refusal.Code < 500 { // an older broker
		l.Log.Warn("the broker does not put the use of a credential on record", "error", err)
		return nil
	}
	return err
}

// keepTunnel holds one tunnel until ctx is done. It returns an error only for
// what waiting does not mend.
func (l *Link) keepTunnel(ctx context.Context) error {
	var wait backoff
	for ctx.Err() == nil {
		up := time.Now()
		err := l.tunnel(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case permanent(err):
			return fmt.Errorf("connect to %s: %w", l.Broker, err)
		}
		if time.Since(up) > time.Minute {
			wait = backoff{}
		}
		l.Log.Warn("tunnel is down; dialing again", "broker", l.Broker, "error", err)
		wait.wait(ctx)
	}
	return nil
}

var errTunnelEnded = errors.New("the tunnel has ended")

// tunnel dials and serves one tunnel until it ends.
func (l *Link) tunnel(ctx context.Context) error {
	l.mu.Lock()
	cert := l.current
	l.mu.Unlock()
	c, err := l.dial(ctx, cert)
	if err != nil {
		return err
	}
	defer c.Close()
	hctx, cancel := context.WithTimeout(ctx, l.OpenTime)
	conn, err := Call(hctx, c, MethodHello, Hello{l.Agent.Names()}, nil)
	cancel()
	if err != nil {
		return err
	}
	t, err := stream.ClientTunnel(conn, l.Tunnel)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { t.Close() })
	defer stop()
	defer t.Close()

	l.Log.Info("tunnel is up", "broker", l.Broker)
	l.mu.Lock()
	l.live = append(l.live, t)
	l.mu.Unlock()
	// Sessions end after their tunnel: ended before, each would look as if its
	// server had ended it.
	l.Agent.serve(context.WithoutCancel(ctx), t, l.OpenTime)
	l.mu.Lock()
	for i, other := range l.live {
		if other == t {
			l.live = append(l.live[:i], l.live[i+1:]...)
			break
		}
	}
	l.mu.Unlock()
	return errTunnelEnded
}

var errPin = errors.New("the broker's certificate does not come from the CA that is pinned")

// pinnedBlock is the type of the PEM block that keeps the certificate of the
// pin that the agent joined by. The CA may have been rotated since: the block is
// no authority any more, and shows only that the rest follows from the pin.
const pinnedBlock = "PINNED CERTIFICATE"

func pinnedIn(text []byte) (certs []*x509.Certificate) {
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if c, err := x509.ParseCertificate(block.Bytes); err == nil && block.Type == pinnedBlock {
			certs = append(certs, c)
		}
	}
	return certs
}

// rootsOf returns the broker's authorities that came with a certificate.
func rootsOf(cert *tls.Certificate) (roots []*x509.Certificate, err error) {
	for _, der := range cert.Certificate[1:] {
		c, err := x509.ParseCertificate(der)
		if err != nil || !c.IsCA {
			return nil, errors.New("holds what is no certificate of a CA")
		}
		roots = append(roots, c)
	}
	return roots, nil
}

// dial connects with ALPN mcp-agent/1. The broker proves itself by a chain to
// its CA: the pinned one when the agent joins, afterwards those that came with
// the agent's certificate. Its host name does not matter, so that an agent may
// reach it through any address.
func (l *Link) dial(ctx context.Context, cert *tls.Certificate) (stream.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, l.OpenTime)
	defer cancel()
	host, _, err := net.SplitHostPort(l.Broker)
	if err != nil {
		return nil, err
	}
	c := &tls.Config{
		MinVersion:         tls.VersionTLS13,
		NextProtos:         []string{stream.ALPNAgent},
		ServerName:         host,
		InsecureSkipVerify: true, // VerifyConnection does it
		VerifyConnection:   l.verifyBroker,
	}
	if cert != nil {
		c.Certificates = []tls.Certificate{*cert}
	}
	return stream.Dial(ctx, l.Broker, c)
}

func (l *Link) verifyBroker(cs tls.ConnectionState) error {
	pool := x509.NewCertPool()
	l.mu.Lock()
	current := l.current
	l.mu.Unlock()
	if current != nil {
		roots, err := rootsOf(current)
		if err != nil {
			return err
		}
		for _, c := range roots {
			pool.AddCert(c)
		}
	} else {
		i := slices.IndexFunc(cs.PeerCertificates, func(c *x509.Certificate) bool { return pin(c) == l.Pin })
		if i < 0 {
			return errPin
		}
		pool.AddCert(cs.PeerCertificates[i])
		l.pinned = cs.PeerCertificates[i].Raw
	}
	// The usage keeps apart what the one CA issues: a client certificate does not make a broker.
	_, err := cs.PeerCertificates[0].Verify(x509.VerifyOptions{
		Roots:     pool,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
	var invalid x509.CertificateInvalidError
	switch {
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired: // a clock can be set right
		return fmt.Errorf("the broker's certificate does not hold at this machine's time: %w", err)
	case err != nil:
		return fmt.Errorf("%w: %w", errPin, err)
	}
	return nil
}

func pin(c *x509.Certificate) string {
	sum := sha256.Sum256(c.Raw)
	return "sha256:" + hex.EncodeToString(sum[:])
}
