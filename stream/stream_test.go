package stream

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"golang.org/x/net/nettest"
)

// selfSigned returns a certificate for localhost and its pool.
var selfSigned = sync.OnceValues(func() (tls.Certificate, *x509.CertPool) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	t := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, DNSNames: []string{"localhost", "*.localhost"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		panic(err)
	}
	leaf, _ := x509.ParseCertificate(der)
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, pool
})

func clientConfig(server string, protocols ...string) *tls.Config {
	cert, pool := selfSigned()
	return &tls.Config{RootCAs: pool, ServerName: server, NextProtos: protocols, Certificates: []tls.Certificate{cert}}
}

// serve runs a Listener with h until the test ends.
func serve(t testing.TB, o Options, h Handlers) *Listener {
	t.Helper()
	cert, _ := selfSigned()
	o.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
	l, err := Listen("127.0.0.1:0", o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.Serve(ctx, h) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return l
}

func echo(_ context.Context, c Conn, _ Peer) {
	io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c})
	c.CloseWrite()
}

var dialers = map[string]func(context.Context, string, *tls.Config) (Conn, error){"tls": Dial, "quic": DialQUIC}

func TestDispatch(t *testing.T) {
	say := func(what string) func(context.Context, Conn, Peer) {
		return func(_ context.Context, c Conn, p Peer) {
			bufio.NewReader(c).ReadString('\n')
			fmt.Fprintf(c, "%s %s %s %d", what, p.Transport, p.ServerName, len(p.Certificates))
		}
	}
	l := serve(t, Options{}, Handlers{
		Session: say("session"), Agent: say("agent"),
		HTTP: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "page") }),
	})
	for _, tt := range []struct {
		name   string
		config *tls.Config
		want   map[string]string // by transport
	}{
		{"session", clientConfig("BigQuery.localhost"), map[string]string{"tls": "session tls bigquery.localhost 1", "quic": "session quic bigquery.localhost 1"}},
		{"agent", clientConfig("localhost", ALPNAgent), map[string]string{"tls": "agent tls localhost 1"}},
		{"no certificate", func() *tls.Config { c := clientConfig("x.localhost"); c.Certificates = nil; return c }(), map[string]string{"tls": "session tls x.localhost 0", "quic": "session quic x.localhost 0"}},
	} {
		for transport, dial := range dialers {
			c, err := dial(t.Context(), l.Addr().String(), tt.config)
			if want, ok := tt.want[transport]; !ok {
				if err == nil {
					t.Errorf("%s over %s is accepted", tt.name, transport)
				}
			} else if err != nil {
				t.Errorf("%s over %s: %v", tt.name, transport, err)
			} else {
				io.WriteString(c, "x\n")
				if got, err := io.ReadAll(c); string(got) != want || err != nil {
					t.Errorf("%s over %s: %q, %v; want %q", tt.name, transport, got, err, want)
				}
			}
			if c != nil {
				c.Close()
			}
		}
	}
	client := http.Client{Transport: &http.Transport{TLSClientConfig: clientConfig("localhost")}}
	defer client.CloseIdleConnections()
	r, err := client.Get("https://" + l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	if b, _ := io.ReadAll(r.Body); string(b) != "page" {
		t.Errorf("http: %q", b)
	}
	if _, err := tls.Dial("tcp", l.Addr().String(), func() *tls.Config { c := clientConfig("localhost"); c.MaxVersion = tls.VersionTLS12; return c }()); err == nil {
		t.Error("TLS 1.2 is accepted")
	}
}

func TestHalfClose(t *testing.T) {
	l := serve(t, Options{}, Handlers{Session: func(_ context.Context, c Conn, _ Peer) {
		b, err := io.ReadAll(c)
		fmt.Fprintf(c, "%d %v", len(b), err)
	}})
	for transport, dial := range dialers {
		c, err := dial(t.Context(), l.Addr().String(), clientConfig("localhost"))
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(c, "12345")
		c.CloseWrite()
		if got, err := io.ReadAll(c); string(got) != "5 <nil>" || err != nil {
			t.Errorf("%s: %q, %v", transport, got, err)
		}
		c.Close()
	}
}

// What a handler has written arrives, though it never read what the client sent.
func TestLastWordsArrive(t *testing.T) {
	l := serve(t, Options{}, Handlers{Session: func(_ context.Context, c Conn, _ Peer) { io.WriteString(c, "no") }})
	for transport, dial := range dialers {
		for range 10 {
			c, err := dial(t.Context(), l.Addr().String(), clientConfig("localhost"))
			if err != nil {
				t.Fatal(err)
			}
			c.Write(make([]byte, 200_000))
			if got, err := io.ReadAll(c); string(got) != "no" {
				t.Fatalf("%s: %q, %v", transport, got, err)
			}
			c.Close()
		}
	}
}

func TestCloseWakesReadAndWrite(t *testing.T) {
	l := serve(t, Options{}, Handlers{Session: func(ctx context.Context, c Conn, _ Peer) { <-ctx.Done() }})
	for transport, dial := range dialers {
		c, err := dial(t.Context(), l.Addr().String(), clientConfig("localhost"))
		if err != nil {
			t.Fatal(err)
		}
		woken := make(chan error, 2)
		go func() { _, err := c.Read(make([]byte, 1)); woken <- err }()
		go func() {
			for {
				if _, err := c.Write(make([]byte, 1<<20)); err != nil { // nobody reads
					woken <- err
					return
				}
			}
		}()
		time.AfterFunc(50*time.Millisecond, func() { c.Close() })
		for range 2 {
			if err := <-woken; err == nil {
				t.Errorf("%s: a closed connection reads", transport)
			}
		}
	}
}

func TestSilentClientIsDropped(t *testing.T) {
	l := serve(t, Options{Handshake: 50 * time.Millisecond}, Handlers{Session: echo})
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.ReadAll(c); err != nil && errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("a client that says nothing is kept")
	}
}

// TestIdleQUIC checks that a QUIC connection without a stream keeps no place,
// and that one with a stream is let be.
func TestIdleQUIC(t *testing.T) {
	l := serve(t, Options{Handshake: 200 * time.Millisecond}, Handlers{Session: echo})
	c, err := quic.DialAddr(t.Context(), l.Addr().String(), clientConfig("localhost", ALPNSession), quicConfig(0, -1))
	if err != nil {
		t.Fatal(err)
	}
	defer c.CloseWithError(0, "")
	s, err := c.OpenStreamSync(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for range 4 {
		time.Sleep(100 * time.Millisecond)
		io.WriteString(s, "x")
		if _, err := s.Read(make([]byte, 1)); err != nil {
			t.Fatalf("while there is a stream: %v", err)
		}
	}
	s.Close()
	io.ReadAll(s)
	select {
	case <-c.Context().Done():
	case <-time.After(10 * time.Second):
		t.Error("without a stream it is kept")
	}
}

func TestMaxConns(t *testing.T) {
	l := serve(t, Options{MaxConns: 2}, Handlers{Session: echo})
	var open []Conn
	for range 2 {
		c, err := Dial(t.Context(), l.Addr().String(), clientConfig("localhost"))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		open = append(open, c)
	}
	if c, err := Dial(t.Context(), l.Addr().String(), clientConfig("localhost")); err == nil {
		c.Close()
		t.Error("a third connection is accepted")
	}
	if c, err := DialQUIC(t.Context(), l.Addr().String(), clientConfig("localhost")); err == nil {
		io.WriteString(c, "x")
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Error("a third connection over QUIC is served")
		}
		c.Close()
	}
	open[0].Close()
	deadline := time.Now().Add(10 * time.Second)
	for {
		c, err := Dial(t.Context(), l.Addr().String(), clientConfig("localhost"))
		if err == nil {
			c.Close()
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("no connection after one has ended: %v", err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func TestPortInUse(t *testing.T) {
	l := serve(t, Options{}, Handlers{Session: echo})
	cert, _ := selfSigned()
	_, err := Listen(l.Addr().String(), Options{TLS: &tls.Config{Certificates: []tls.Certificate{cert}}})
	want := fmt.Sprintf("listen %s: address already in use", l.Addr())
	if !errors.Is(err, syscall.EADDRINUSE) || err.Error() != want {
		t.Errorf("error %q, want %q", err, want)
	}
}

// Nothing is left when Serve has returned.
func TestNothingIsLeft(t *testing.T) {
	goroutines, files := runtime.NumGoroutine(), openFiles(t)
	t.Run("serve", func(t *testing.T) {
		l := serve(t, Options{}, Handlers{Session: echo, Agent: echo})
		var wg sync.WaitGroup
		for i := range 200 {
			wg.Go(func() {
				dial := dialers[[]string{"tls", "quic"}[i%2]]
				c, err := dial(t.Context(), l.Addr().String(), clientConfig("localhost"))
				if err != nil {
					t.Error(err)
					return
				}
				defer c.Close()
				if i%10 == 9 {
					return // without a word
				}
				io.WriteString(c, "hello")
				if i%10 == 8 {
					return // in mid-session
				}
				c.CloseWrite()
				if b, err := io.ReadAll(c); string(b) != "hello" {
					t.Errorf("%d: %q, %v", i, b, err)
				}
			})
			if i%20 == 19 {
				wg.Wait()
			}
		}
		wg.Wait()
	})
	deadline := time.Now().Add(10 * time.Second)
	for runtime.NumGoroutine() > goroutines || openFiles(t) > files {
		if time.Now().After(deadline) {
			buf := make([]byte, 1<<20)
			t.Fatalf("%d goroutines and %d files are left, had %d and %d\n%s", runtime.NumGoroutine(), openFiles(t), goroutines, files, buf[:runtime.Stack(buf, true)])
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func openFiles(t testing.TB) int {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skip("no /proc/self/fd to count open files in")
	}
	return len(entries)
}

// tunnels returns both ends of a tunnel over TCP.
func tunnels(t testing.TB, o TunnelOptions) (client, server *Tunnel) {
	t.Helper()
	a, b := tcpPair(t)
	client, err := ClientTunnel(a, o)
	if err != nil {
		t.Fatal(err)
	}
	server, err = ServerTunnel(b, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close(); server.Close() })
	return client, server
}

func tcpPair(t testing.TB) (a, b net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if a, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if b, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	return a, b
}

// TestTunnelConn runs the conformance test of package nettest on a stream of a tunnel.
func TestTunnelConn(t *testing.T) {
	nettest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
		client, server := tunnels(t, TunnelOptions{})
		s1, err := client.Open(t.Context())
		if err != nil {
			return nil, nil, nil, err
		}
		s2, err := server.Accept()
		if err != nil {
			return nil, nil, nil, err
		}
		return s1, s2, func() { client.Close(); server.Close() }, nil
	})
}

// A reader that does not read holds up nobody else in its tunnel.
func TestSlowStreamHoldsUpOnlyItself(t *testing.T) {
	client, server := tunnels(t, TunnelOptions{Window: 256 << 10})
	slow, err := client.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var written atomic.Int64
	go func() {
		for {
			n, err := slow.Write(make([]byte, 64<<10))
			written.Add(int64(n))
			if err != nil {
				return
			}
		}
	}()
	if _, err := server.Accept(); err != nil { // and never read
		t.Fatal(err)
	}
	fast, err := client.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	peer, err := server.Accept()
	if err != nil {
		t.Fatal(err)
	}
	go io.Copy(struct{ io.Writer }{peer}, struct{ io.Reader }{peer})
	want := bytes.Repeat([]byte("x"), 4<<20)
	go fast.Write(want)
	got := make([]byte, len(want))
	if _, err := io.ReadFull(fast, got); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the other stream: %v", err)
	}
	if n := written.Load(); n > 1<<20 {
		t.Errorf("the slow reader let %d bytes into memory", n)
	}
}

// TestTunnelShrinks checks that streams that wait do not keep what a burst took.
func TestTunnelShrinks(t *testing.T) {
	inUse := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	const streams, burst = 16, 512 << 10
	client, server := tunnels(t, TunnelOptions{})
	before := inUse()
	var conns []Conn
	for range streams {
		c, err := client.Open(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		s, err := server.Accept()
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c, s)
		if _, err := c.Write(make([]byte, burst)); err != nil { // within the window: nobody reads yet
			t.Fatal(err)
		}
		if _, err := io.ReadFull(s, make([]byte, burst)); err != nil {
			t.Fatal(err)
		}
	}
	for deadline := time.Now().Add(30 * time.Second); inUse() > before+streams*burst/4; time.Sleep(shrinkTime / 10) {
		if time.Now().After(deadline) {
			t.Fatalf("%d bytes in use, had %d", inUse(), before)
		}
	}
	for i := 0; i < len(conns); i += 2 { // and they work as before
		io.WriteString(conns[i], "x")
		if _, err := io.ReadFull(conns[i+1], make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
}

// TestTunnelEnds checks that a tunnel whose connection breaks wakes its streams.
func TestTunnelEnds(t *testing.T) {
	a, b := tcpPair(t)
	client, _ := ClientTunnel(a, TunnelOptions{})
	server, _ := ServerTunnel(b, TunnelOptions{})
	s, err := client.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := server.Accept(); err != nil {
		t.Fatal(err)
	}
	b.Close()
	if _, err := s.Read(make([]byte, 1)); err == nil {
		t.Error("a stream of a broken tunnel reads")
	}
	<-client.Done()
	if _, err := client.Open(t.Context()); err == nil {
		t.Error("a broken tunnel opens a stream")
	}
	client.Close()
	server.Close()
}

// BenchmarkCoalescing is why a coalescer lies beneath yamux: 64 streams in one
// tunnel over TLS, each asking and answering 200 bytes.
func BenchmarkCoalescing(b *testing.B) {
	for _, with := range []bool{false, true} {
		b.Run(fmt.Sprintf("coalescer=%v", with), func(b *testing.B) {
			x, y := tcpPair(b)
			cert, _ := selfSigned()
			var cc net.Conn = tls.Client(x, clientConfig("localhost"))
			var sc net.Conn = tls.Server(y, &tls.Config{Certificates: []tls.Certificate{cert}})
			if with {
				cc, sc = newCoalescer(cc), newCoalescer(sc)
			}
			client, server := bareTunnel(b, cc, sc)
			go func() {
				for {
					s, err := server.Accept()
					if err != nil {
						return
					}
					go io.Copy(struct{ io.Writer }{s}, struct{ io.Reader }{s})
				}
			}()
			conns := make(chan Conn, 64)
			for range cap(conns) {
				s, err := client.Open(b.Context())
				if err != nil {
					b.Fatal(err)
				}
				conns <- s
			}
			b.SetParallelism(cap(conns) / runtime.GOMAXPROCS(0))
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				s := <-conns
				buf := make([]byte, 200)
				for pb.Next() {
					s.Write(buf)
					io.ReadFull(s, buf)
				}
			})
		})
	}
}

// BenchmarkWindow is why the window is 1 MiB: 8 MB over a link of 5 ms each way.
func BenchmarkWindow(b *testing.B) {
	for _, window := range []uint32{256 << 10, 1 << 20, 4 << 20} {
		b.Run(fmt.Sprintf("%dKiB", window>>10), func(b *testing.B) {
			x, y := tcpPair(b)
			client, server := tunnelPair(b, newSlowLink(x, 5*time.Millisecond), newSlowLink(y, 5*time.Millisecond), TunnelOptions{Window: window})
			const size = 8 << 20
			b.SetBytes(size)
			for b.Loop() {
				s, err := client.Open(b.Context())
				if err != nil {
					b.Fatal(err)
				}
				go func() {
					s.Write(make([]byte, size))
					s.CloseWrite()
				}()
				peer, err := server.Accept()
				if err != nil {
					b.Fatal(err)
				}
				io.Copy(io.Discard, peer)
				peer.Close()
				s.Close()
			}
		})
	}
}

// bareTunnel is a tunnel over connections as they are.
func bareTunnel(b *testing.B, x, y net.Conn) (client, server *Tunnel) {
	client, server, err := rawTunnels(x, y)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { client.Close(); server.Close() })
	return client, server
}

func tunnelPair(b *testing.B, x, y net.Conn, o TunnelOptions) (client, server *Tunnel) {
	client, err := ClientTunnel(x, o)
	if err != nil {
		b.Fatal(err)
	}
	server, err = ServerTunnel(y, o)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { client.Close(); server.Close() })
	return client, server
}

// A slowLink delays what is written, without limiting how much is under way.
type slowLink struct {
	net.Conn
	queue chan delayed
}

type delayed struct {
	at time.Time
	p  []byte
}

func newSlowLink(c net.Conn, delay time.Duration) net.Conn {
	l := &slowLink{c, make(chan delayed, 1<<16)}
	go func() {
		for d := range l.queue {
			time.Sleep(time.Until(d.at.Add(delay)))
			if _, err := c.Write(d.p); err != nil {
				return
			}
		}
	}()
	return l
}

func (l *slowLink) Write(p []byte) (int, error) {
	l.queue <- delayed{time.Now(), bytes.Clone(p)}
	return len(p), nil
}

// BenchmarkTunnels is why an agent keeps several tunnels: 200 bytes there and
// back while another session carries a big answer, through the same tunnel or
// another, each over a connection of 50 MB/s.
func BenchmarkTunnels(b *testing.B) {
	for _, tunnels := range []int{1, 2} {
		b.Run(fmt.Sprintf("%d", tunnels), func(b *testing.B) {
			var bulk, small [2]Conn
			for i := range tunnels {
				x, y := tcpPair(b)
				client, server := tunnelPair(b, x, &rateLink{y, 50 << 20}, TunnelOptions{})
				open := func() (pair [2]Conn) {
					c, err := client.Open(b.Context())
					if err != nil {
						b.Fatal(err)
					}
					s, err := server.Accept()
					if err != nil {
						b.Fatal(err)
					}
					return [2]Conn{c, s}
				}
				if i == 0 {
					bulk = open()
				}
				small = open() // in the last tunnel
			}
			go func() {
				big := make([]byte, 1<<20)
				for {
					if _, err := bulk[1].Write(big); err != nil {
						return
					}
				}
			}()
			go io.Copy(io.Discard, bulk[0])
			go io.Copy(struct{ io.Writer }{small[1]}, struct{ io.Reader }{small[1]})
			buf := make([]byte, 200)
			for b.Loop() {
				small[0].Write(buf)
				if _, err := io.ReadFull(small[0], buf); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// A rateLink writes so many bytes a second.
type rateLink struct {
	net.Conn
	rate int
}

func (l *rateLink) Write(p []byte) (int, error) {
	time.Sleep(time.Duration(len(p)) * time.Second / time.Duration(l.rate))
	return l.Conn.Write(p)
}
