package stream

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// A tlsConn is a TLS connection whose Close lingers.
type tlsConn struct {
	*tls.Conn
	ended   atomic.Bool // the peer has ended its direction: nothing is unread
	writing sync.Mutex  // held in Write
	closing sync.Once
}

func (c *tlsConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if err == io.EOF {
		c.ended.Store(true)
	}
	return n, err
}

func (c *tlsConn) Write(p []byte) (int, error) {
	c.writing.Lock()
	defer c.writing.Unlock()
	return c.Conn.Write(p)
}

func (c *tlsConn) Close() (err error) {
	c.closing.Do(func() {
		raw := c.NetConn()
		raw.SetReadDeadline(aLongTimeAgo) // wakes a Read
		if !c.writing.TryLock() {
			// The peer does not take what is being written, or not yet. Cut in the
			// middle of a record, the connection is of no more use.
			raw.SetDeadline(aLongTimeAgo)
			c.writing.Lock()
			defer c.writing.Unlock()
			err = raw.Close()
			return
		}
		defer c.writing.Unlock()
		if !c.ended.Load() && c.CloseWrite() == nil {
			// crypto/tls says goodbye in its own protocol only; the peer may wait, as
			// we do, for the end of the TCP connection.
			if half, ok := raw.(interface{ CloseWrite() error }); ok {
				half.CloseWrite()
			}
			raw.SetReadDeadline(time.Now().Add(lingerTime))
			io.CopyN(io.Discard, raw, 1<<20)
		}
		err = c.Conn.Close()
	})
	return err
}

// Dial connects over TLS. If c names no protocol, it is mcp-stream/1.
func Dial(ctx context.Context, addr string, c *tls.Config) (Conn, error) {
	d := tls.Dialer{NetDialer: &net.Dialer{}, Config: withALPN(c)}
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	return &tlsConn{Conn: conn.(*tls.Conn)}, nil
}

func withALPN(c *tls.Config) *tls.Config {
	c = c.Clone()
	if len(c.NextProtos) == 0 {
		c.NextProtos = []string{ALPNSession}
	}
	return c
}
