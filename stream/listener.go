package stream

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
)

// Options is what a Listener is made of. Zero fields mean the defaults.
type Options struct {
	// TLS says which certificate is shown. The rest is this package's: TLS 1.3,
	// the protocols, and a client certificate that is asked for and not verified.
	TLS            *tls.Config
	Handshake      time.Duration // time for a TLS or QUIC handshake; 10 s
	MaxConns       int           // connections at once, TLS and QUIC together; 20,000
	StreamsPerConn int           // streams of a QUIC connection at once; 256
	Log            *slog.Logger  // if nil, nothing is logged
}

// Handlers get the connections, each call on a goroutine of its own. When a
// handler returns, its connection is closed. ctx is done when Serve is to end.
type Handlers struct {
	Session func(ctx context.Context, c Conn, p Peer) // mcp-stream/1: a TLS connection, or a stream of a QUIC one
	Agent   func(ctx context.Context, c Conn, p Peer) // mcp-agent/1, over TLS
	HTTP    http.Handler                              // h2, http/1.1, or no ALPN, over TLS; h3 over QUIC
}

// A Listener accepts TLS connections on TCP and QUIC connections on UDP, on
// the same port.
type Listener struct {
	o         Options
	tcp       net.Listener
	transport *quic.Transport
	quic      *quic.Listener
	tls       *tls.Config
	web       *handover
	h3        *http3.Server

	mu      sync.Mutex
	conns   map[closer]struct{}
	serving context.Context // Serve's; nil: it has not begun, or is to end
	wg      sync.WaitGroup  // accept loops and handlers
	once    sync.Once
}

type listenerKey struct{}

// listenerOf returns the Listener that an HTTP request came to.
func listenerOf(r *http.Request) *Listener { return r.Context().Value(listenerKey{}).(*Listener) }

// run runs f on a goroutine that Serve waits for; it is false if Serve is to end.
func (l *Listener) run(f func(ctx context.Context)) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	ctx := l.serving
	if ctx == nil {
		return false
	}
	l.wg.Go(func() { f(ctx) })
	return true
}

type closer interface{ Close() error }

// endTime is what handlers have to return in once Serve's ctx is done.
const endTime = 10 * time.Second

// Listen binds addr. A port of 0 is any that is free on both TCP and UDP.
func Listen(addr string, o Options) (*Listener, error) {
	o.Handshake = cmp.Or(o.Handshake, 10*time.Second)
	o.MaxConns = cmp.Or(o.MaxConns, 20_000)
	o.StreamsPerConn = cmp.Or(o.StreamsPerConn, 256)
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	tcp, udp, err := bind(addr)
	if err != nil {
		return nil, err
	}
	l := &Listener{o: o, tcp: tcp, conns: map[closer]struct{}{}, web: newHandover(tcp.Addr())}
	l.tls = l.config(ALPNSession, ALPNAgent, "h2", "http/1.1")
	l.transport = &quic.Transport{Conn: udp}
	l.quic, err = l.transport.Listen(l.config(ALPNSession, http3.NextProtoH3), quicConfig(o.Handshake, int64(o.StreamsPerConn)))
	if err != nil {
		tcp.Close()
		udp.Close()
		return nil, fmt.Errorf("listen %s: %w", addr, err)
	}
	return l, nil
}

// bind takes the same port of TCP and UDP.
func bind(addr string) (net.Listener, *net.UDPConn, error) {
	for attempt := 0; ; attempt++ {
		tcp, err := net.Listen("tcp", addr)
		if err != nil {
			return nil, nil, plainly(addr, err)
		}
		at := tcp.Addr().(*net.TCPAddr)
		udp, err := net.ListenUDP("udp", &net.UDPAddr{IP: at.IP, Port: at.Port, Zone: at.Zone})
		if err == nil {
			return tcp, udp, nil
		}
		tcp.Close()
		if _, port, _ := net.SplitHostPort(addr); port != "0" || attempt == 10 {
			return nil, nil, plainly(addr, err)
		}
	}
}

// plainly says once what the net package says twice.
func plainly(addr string, err error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		err = op.Err
		if sys := errors.Unwrap(err); sys != nil {
			err = sys
		}
		if op.Net == "udp" {
			addr += " (udp)"
		}
	}
	return fmt.Errorf("listen %s: %w", addr, err)
}

func (l *Listener) config(protocols ...string) *tls.Config {
	c := l.o.TLS.Clone()
	c.MinVersion = tls.VersionTLS13
	c.NextProtos = protocols
	c.ClientAuth = tls.RequestClientCert
	return c
}

// Addr returns the address that was bound.
func (l *Listener) Addr() net.Addr { return l.tcp.Addr() }

// Serve hands connections to h until ctx is done or the Listener is closed.
// Then it accepts no more, waits a while for the handlers to return, closes what
// is left, and returns with no goroutine left behind.
func (l *Listener) Serve(ctx context.Context, h Handlers) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	l.mu.Lock()
	l.serving = ctx
	l.mu.Unlock()
	// The deadlines are of requests that are over soon; the HTTP edge has its own.
	web := &http.Server{
		Handler: l.announce(h.HTTP), ReadHeaderTimeout: l.o.Handshake, ReadTimeout: httpTime,
		WriteTimeout: httpTime, IdleTimeout: time.Minute, MaxHeaderBytes: maxHeader,
		HTTP2:       &http.HTTP2Config{MaxConcurrentStreams: l.o.StreamsPerConn, SendPingTimeout: 30 * time.Second},
		BaseContext: func(net.Listener) context.Context { return context.WithValue(ctx, listenerKey{}, l) },
		ErrorLog:    slog.NewLogLogger(l.o.Log.Handler(), slog.LevelDebug),
		ConnState: func(c net.Conn, state http.ConnState) {
			if state == http.StateClosed {
				l.leave(c.(*tls.Conn).NetConn())
			}
		},
	}
	l.h3 = &http3.Server{
		Handler: h.HTTP, MaxHeaderBytes: maxHeader, IdleTimeout: time.Minute,
		ConnContext: func(ctx context.Context, _ *quic.Conn) context.Context {
			return context.WithValue(ctx, listenerKey{}, l)
		},
		Logger: slog.New(slog.DiscardHandler),
	}
	failed := make(chan error, 2)
	l.wg.Go(func() { failed <- l.acceptTLS(ctx, h) })
	l.wg.Go(func() { failed <- l.acceptQUIC(ctx, h) })
	l.wg.Go(func() { web.Serve(l.web) })

	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
		if errors.Is(err, net.ErrClosed) || errors.Is(err, quic.ErrServerClosed) {
			err = nil
		}
	}
	l.mu.Lock()
	l.serving = nil
	l.mu.Unlock()
	cancel()
	l.tcp.Close()
	l.web.Close()
	l.quic.Close()
	l.farewell(web)
	force := time.AfterFunc(endTime, func() { l.Close() })
	l.wg.Wait()
	force.Stop()
	l.Close()
	return err
}

// maxHeader bounds the headers of an HTTP request, in bytes: they repeat names
// and arguments.
const maxHeader = 64 << 10

// httpTime bounds an HTTP request and its answer, but for the HTTP edge's. Tests
// have less time.
var httpTime = 30 * time.Second

// announce tells clients that the same is to be had over HTTP/3.
func (l *Listener) announce(h http.Handler) http.Handler {
	_, port, _ := net.SplitHostPort(l.tcp.Addr().String())
	service := fmt.Sprintf(`h3=":%s"; ma=86400`, port)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Alt-Svc", service)
		h.ServeHTTP(w, r)
	})
}

// farewell ends the HTTP servers; the last answers have a moment.
func (l *Listener) farewell(web *http.Server) {
	ctx, cancel := context.WithTimeout(context.Background(), lingerTime)
	defer cancel()
	var ending sync.WaitGroup
	ending.Go(func() { l.h3.Shutdown(ctx); l.h3.Close() })
	ending.Go(func() { web.Shutdown(ctx); web.Close() })
	ending.Wait()
}

// Close ends the Listener and all its connections.
func (l *Listener) Close() error {
	l.once.Do(func() {
		l.tcp.Close()
		l.web.Close()
		l.quic.Close()
		l.mu.Lock()
		open := make([]closer, 0, len(l.conns))
		for c := range l.conns {
			open = append(open, c)
		}
		l.mu.Unlock()
		var closing sync.WaitGroup
		for _, c := range open {
			closing.Go(func() { c.Close() })
		}
		closing.Wait()
		l.transport.Close()
		l.transport.Conn.Close()
	})
	return nil
}

// enter counts a connection in, if there is room.
func (l *Listener) enter(c closer) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.conns) >= l.o.MaxConns {
		l.o.Log.Warn("connection refused: too many are open", "max", l.o.MaxConns)
		return false
	}
	l.conns[c] = struct{}{}
	return true
}

func (l *Listener) leave(c closer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.conns, c)
}

func (l *Listener) acceptTLS(ctx context.Context, h Handlers) error {
	for {
		c, err := l.tcp.Accept()
		if err != nil {
			var temporary interface{ Temporary() bool }
			if errors.As(err, &temporary) && temporary.Temporary() && ctx.Err() == nil { // out of file descriptors, say
				l.o.Log.Error("accept", "error", err)
				time.Sleep(50 * time.Millisecond)
				continue
			}
			return err
		}
		if !l.enter(c) {
			c.Close()
			continue
		}
		l.wg.Go(func() { l.serveTLS(ctx, c, h) })
	}
}

func (l *Listener) serveTLS(ctx context.Context, raw net.Conn, h Handlers) {
	c := &tlsConn{Conn: tls.Server(raw, l.tls)}
	p, protocol, err := l.shake(ctx, c)
	if err != nil {
		l.o.Log.Debug("handshake failed", "client", raw.RemoteAddr().String(), "error", err)
		raw.Close()
		l.leave(raw)
		return
	}
	handler := h.Session
	switch protocol {
	case ALPNSession:
	case ALPNAgent:
		handler = h.Agent
	default:
		l.web.give(c.Conn) // net/http closes it, and says so to ConnState
		return
	}
	handler(ctx, c, p)
	c.Close()
	l.leave(raw)
}

// shake makes the handshake. It says who has come, and which protocol follows.
func (l *Listener) shake(ctx context.Context, c *tlsConn) (p Peer, protocol string, err error) {
	ctx, cancel := context.WithTimeout(ctx, l.o.Handshake)
	defer cancel()
	shaken := make(chan error, 1)
	go func() { shaken <- c.HandshakeContext(ctx) }() // whose stack is large, and goes with it
	if err := <-shaken; err != nil {
		return p, "", err
	}
	state := c.ConnectionState()
	return Peer{strings.ToLower(state.ServerName), state.PeerCertificates, c.RemoteAddr(), "tls"}, state.NegotiatedProtocol, nil
}

func (l *Listener) acceptQUIC(ctx context.Context, h Handlers) error {
	for {
		c, err := l.quic.Accept(ctx)
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		conn := quicCloser{c}
		if !l.enter(conn) {
			c.CloseWithError(0, "too many connections")
			continue
		}
		l.wg.Go(func() {
			defer l.leave(conn)
			l.serveQUIC(ctx, c, h)
		})
	}
}

type quicCloser struct{ *quic.Conn }

func (c quicCloser) Close() error { return c.CloseWithError(0, "") }

// serveQUIC serves the streams of a connection until it ends.
func (l *Listener) serveQUIC(ctx context.Context, conn *quic.Conn, h Handlers) {
	state := conn.ConnectionState().TLS
	if state.NegotiatedProtocol == http3.NextProtoH3 {
		l.h3.ServeQUICConn(conn)
		return
	}
	p := Peer{strings.ToLower(state.ServerName), state.PeerCertificates, conn.RemoteAddr(), "quic"}
	var streams sync.WaitGroup
	// Keep-alives would hold a connection without a stream for ever, and its place.
	idle := startIdleTimer(l.o.Handshake, func() { conn.CloseWithError(0, "no stream") })
	defer idle.enter() // stops it
	for {
		s, err := conn.AcceptStream(ctx)
		if err != nil {
			break
		}
		idle.enter()
		streams.Go(func() {
			defer idle.leave()
			c := &quicConn{Stream: s, conn: conn}
			defer c.Close()
			h.Session(ctx, c, p)
		})
	}
	streams.Wait()
	if ctx.Err() != nil { // the last answers are on their way
		select {
		case <-conn.Context().Done():
		case <-time.After(lingerTime):
		}
	}
	conn.CloseWithError(0, "")
}

// An idleTimer calls a function when nobody has been in for a while.
type idleTimer struct {
	wait time.Duration

	mu    sync.Mutex
	in    int
	timer *time.Timer
}

func startIdleTimer(wait time.Duration, end func()) *idleTimer {
	return &idleTimer{wait: wait, timer: time.AfterFunc(wait, end)}
}

func (t *idleTimer) enter() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.in++
	t.timer.Stop()
}

func (t *idleTimer) leave() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.in--; t.in == 0 {
		t.timer.Reset(t.wait)
	}
}

// A handover is a net.Listener of connections that are given to it.
type handover struct {
	addr  net.Addr
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newHandover(addr net.Addr) *handover {
	return &handover{addr: addr, conns: make(chan net.Conn), done: make(chan struct{})}
}

func (h *handover) give(c net.Conn) {
	select {
	case h.conns <- c:
	case <-h.done:
		c.Close()
	}
}

func (h *handover) Accept() (net.Conn, error) {
	select {
	case c := <-h.conns:
		return c, nil
	case <-h.done:
		return nil, net.ErrClosed
	}
}

func (h *handover) Close() error {
	h.once.Do(func() { close(h.done) })
	return nil
}

func (h *handover) Addr() net.Addr { return h.addr }
