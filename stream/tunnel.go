package stream

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/yamux"
)

// TunnelOptions is how a tunnel behaves. Zero fields mean the defaults. Both
// ends should have the same.
type TunnelOptions struct {
	// Window is what a stream may carry before its reader has read, in bytes: the
	// most that a slow reader keeps in memory, and the most that is under way in
	// one round trip. 1 MiB: a stream fills 100 Mbit/s over 80 ms.
	Window uint32
	// WriteTimeout is how long a write waits for the connection to take it before
	// the tunnel is given up. 30 s: yamux's 10 s end a tunnel on a slow link.
	WriteTimeout time.Duration
	// KeepAlive is how often the peer is asked whether it is there. 15 s.
	KeepAlive time.Duration
	Log       *slog.Logger // if nil, nothing is logged
}

// halfClosed is how long a stream lives on when one side has ended its
// direction: a server may answer long after the end of its input. yamux's own
// five minutes would cut it.
const halfClosed = 24 * time.Hour

func (o TunnelOptions) yamux() *yamux.Config {
	c := yamux.DefaultConfig()
	c.AcceptBacklog = 1024
	c.MaxStreamWindowSize = cmp.Or(o.Window, 1<<20)
	c.ConnectionWriteTimeout = cmp.Or(o.WriteTimeout, 30*time.Second)
	c.KeepAliveInterval = cmp.Or(o.KeepAlive, 15*time.Second)
	c.StreamCloseTimeout = halfClosed
	c.LogOutput = nil
	log := o.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	c.Logger = slog.NewLogLogger(log.Handler(), slog.LevelDebug)
	return c
}

// A Tunnel carries many streams over one connection, which it owns.
type Tunnel struct {
	y *yamux.Session

	mu    sync.Mutex
	conns map[*tunnelConn]struct{} // those that are not closed
}

// ClientTunnel starts a tunnel on the side that dialled.
func ClientTunnel(c net.Conn, o TunnelOptions) (*Tunnel, error) {
	y, err := yamux.Client(newCoalescer(c), o.yamux())
	if err != nil {
		return nil, err
	}
	return newTunnel(y), nil
}

// ServerTunnel starts a tunnel on the side that accepted.
func ServerTunnel(c net.Conn, o TunnelOptions) (*Tunnel, error) {
	y, err := yamux.Server(newCoalescer(c), o.yamux())
	if err != nil {
		return nil, err
	}
	return newTunnel(y), nil
}

func newTunnel(y *yamux.Session) *Tunnel {
	t := &Tunnel{y: y, conns: map[*tunnelConn]struct{}{}}
	go t.shrink()
	return t
}

// shrinkTime is how long a stream waits before it gives back what it receives into.
const shrinkTime = time.Second

// shrink has streams that wait give back their buffers, until the tunnel has ended. Of
// itself a yamux stream keeps what the largest burst took that it has had.
func (t *Tunnel) shrink() {
	tick := time.NewTicker(shrinkTime)
	defer tick.Stop()
	var waiting []*yamux.Stream
	for {
		select {
		case <-t.y.CloseChan():
			return
		case <-tick.C:
		}
		t.mu.Lock()
		for c := range t.conns {
			if !c.read.Swap(false) {
				waiting = append(waiting, c.Stream)
			}
		}
		t.mu.Unlock()
		for _, s := range waiting {
			s.Shrink() // waits if a frame is arriving
		}
		clear(waiting)
		waiting = waiting[:0]
	}
}

// Open opens a stream.
func (t *Tunnel) Open(ctx context.Context) (Conn, error) {
	type opened struct {
		s   *yamux.Stream
		err error
	}
	result := make(chan opened, 1)
	go func() { // yamux waits for the connection, and knows no ctx
		s, err := t.y.OpenStream()
		result <- opened{s, err}
	}()
	select {
	case o := <-result:
		if o.err != nil {
			return nil, o.err
		}
		return newTunnelConn(o.s, t), nil
	case <-ctx.Done():
		go func() {
			if o := <-result; o.err == nil {
				o.s.Close()
			}
		}()
		return nil, context.Cause(ctx)
	}
}

// Accept returns the next stream that the peer has opened.
func (t *Tunnel) Accept() (Conn, error) {
	s, err := t.y.AcceptStream()
	if err != nil {
		return nil, err
	}
	return newTunnelConn(s, t), nil
}

// Streams counts the streams that are open.
func (t *Tunnel) Streams() int { return t.y.NumStreams() }

// Done is closed when the tunnel has ended.
func (t *Tunnel) Done() <-chan struct{} { return t.y.CloseChan() }

// Close ends the tunnel and all its streams.
func (t *Tunnel) Close() error { return t.y.Close() }

// A tunnelConn is one stream of a tunnel with the manners of a net.Conn. Of
// itself a yamux stream is half-closed by Close, which leaves a blocked Read
// asleep, and heeds a write deadline only while its window is full.
type tunnelConn struct {
	*yamux.Stream
	tunnel *Tunnel
	read   atomic.Bool // something, since shrink has looked

	mu      sync.Mutex // guards writeBy
	writeBy time.Time  // zero: no deadline
	once    sync.Once
	closed  chan struct{}
}

func newTunnelConn(s *yamux.Stream, t *Tunnel) *tunnelConn {
	c := &tunnelConn{Stream: s, tunnel: t, closed: make(chan struct{})}
	t.mu.Lock()
	t.conns[c] = struct{}{}
	t.mu.Unlock()
	return c
}

func (c *tunnelConn) Close() (err error) {
	c.once.Do(func() {
		close(c.closed)
		c.tunnel.mu.Lock()
		delete(c.tunnel.conns, c)
		c.tunnel.mu.Unlock()
		c.Stream.SetDeadline(aLongTimeAgo)
		err = c.Stream.Close()
	})
	return err
}

func (c *tunnelConn) CloseWrite() error { return c.Stream.Close() }

func (c *tunnelConn) Read(p []byte) (int, error) {
	n, err := c.Stream.Read(p)
	c.read.Store(true)
	return n, c.translate(err)
}

func (c *tunnelConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	late := !c.writeBy.IsZero() && !time.Now().Before(c.writeBy)
	c.mu.Unlock()
	if late {
		return 0, c.translate(os.ErrDeadlineExceeded)
	}
	n, err := c.Stream.Write(p)
	if errors.Is(err, yamux.ErrConnectionWriteTimeout) {
		// The peer's Read would wait for ever for what was not sent
		// (GHSA-29qp-crvh-w22m).
		c.tunnel.Close()
	}
	return n, c.translate(err)
}

// translate replaces the error of a deadline that is ours by that of a closed conn.
func (c *tunnelConn) translate(err error) error {
	if err == nil {
		return nil
	}
	select {
	case <-c.closed:
		return net.ErrClosed
	default:
		return err
	}
}

func (c *tunnelConn) SetDeadline(t time.Time) error {
	return errors.Join(c.Stream.SetReadDeadline(t), c.SetWriteDeadline(t))
}

func (c *tunnelConn) SetWriteDeadline(t time.Time) error {
	c.mu.Lock()
	c.writeBy = t
	c.mu.Unlock()
	return c.Stream.SetWriteDeadline(t)
}
