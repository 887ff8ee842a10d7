package stream

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"
)

// quicConfig is the same for both sides.
func quicConfig(handshake time.Duration, streams int64) *quic.Config {
	return &quic.Config{
		HandshakeIdleTimeout: handshake,
		MaxIdleTimeout:       time.Minute,
		KeepAlivePeriod:      20 * time.Second, // an idle session is a session
		MaxIncomingStreams:   streams,
		// HTTP/3's own. A 0-RTT packet can be replayed, so quic-go's default, off, stays.
		MaxIncomingUniStreams:          8,
		InitialStreamReceiveWindow:     512 << 10,
		MaxStreamReceiveWindow:         1 << 20, // what a slow reader may keep in memory
		InitialConnectionReceiveWindow: 1 << 20,
		MaxConnectionReceiveWindow:     8 << 20,
	}
}

// A quicConn is one bidirectional stream with the manners of a net.Conn.
type quicConn struct {
	*quic.Stream
	conn *quic.Conn
	only bool // the connection was made for this stream and ends with it

	ended    atomic.Bool // the peer has ended its direction
	closed   atomic.Bool
	writing  sync.Mutex // quic-go forbids Close beside Write
	broken   bool       // a write was cut: the peer must not take it for an end
	finished bool
	closing  sync.Once
}

func (c *quicConn) LocalAddr() net.Addr  { return c.conn.LocalAddr() }
func (c *quicConn) RemoteAddr() net.Addr { return c.conn.RemoteAddr() }

func (c *quicConn) Read(p []byte) (int, error) {
	n, err := c.Stream.Read(p)
	if err == io.EOF {
		c.ended.Store(true)
	} else if err != nil && c.closed.Load() {
		err = net.ErrClosed
	}
	return n, err
}

func (c *quicConn) Write(p []byte) (int, error) {
	c.writing.Lock()
	defer c.writing.Unlock()
	if c.finished || c.closed.Load() {
		return 0, net.ErrClosed
	}
	n, err := c.Stream.Write(p)
	if err != nil {
		c.broken = true
		if c.closed.Load() {
			err = net.ErrClosed
		}
	}
	return n, err
}

// CloseWrite sends the end of our direction.
func (c *quicConn) CloseWrite() error {
	c.writing.Lock()
	defer c.writing.Unlock()
	return c.finish()
}

// finish is called with c.writing held.
func (c *quicConn) finish() error {
	if c.finished {
		return nil
	}
	c.finished = true
	if c.broken {
		c.Stream.CancelWrite(0)
		return nil
	}
	return c.Stream.Close()
}

func (c *quicConn) Close() (err error) {
	c.closing.Do(func() {
		c.closed.Store(true)
		c.Stream.SetReadDeadline(aLongTimeAgo)
		if !c.writing.TryLock() {
			c.Stream.SetWriteDeadline(aLongTimeAgo)
			c.writing.Lock()
		}
		err = c.finish()
		c.writing.Unlock()
		if c.only {
			// The end of the connection would overtake what was written. The peer
			// has it when it ends its own direction.
			if !c.ended.Load() {
				c.Stream.SetReadDeadline(time.Now().Add(lingerTime))
				io.Copy(io.Discard, c.Stream)
			}
			c.Stream.CancelRead(0)
			c.conn.CloseWithError(0, "")
			return
		}
		c.Stream.CancelRead(0) // or quic-go keeps the stream
	})
	return err
}

// DialQUIC connects over QUIC and opens one stream. Closing it closes the
// connection. If c names no protocol, it is mcp-stream/1.
func DialQUIC(ctx context.Context, addr string, c *tls.Config) (Conn, error) {
	conn, err := quic.DialAddr(ctx, addr, withALPN(c), quicConfig(0, -1))
	if err != nil {
		return nil, err
	}
	s, err := conn.OpenStreamSync(ctx)
	if err != nil {
		conn.CloseWithError(0, "")
		return nil, err
	}
	return &quicConn{Stream: s, conn: conn, only: true}, nil
}
