package agent

import (
	"context"
	"log/slog"
	"net"
	"time"
)

// Socket is an upstream that speaks raw frames on a TCP or Unix socket, one
// connection a session.
type Socket struct {
	Network string // "tcp" or "unix"
	Address string // host:port, or a path
}

// Open dials the server.
func (u *Socket) Open(ctx context.Context, _ Session, _ *slog.Logger) (Conn, error) {
	d := net.Dialer{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 30 * time.Second}}
	c, err := d.DialContext(ctx, u.Network, u.Address)
	if err != nil {
		return nil, err
	}
	return c.(Conn), nil // *net.TCPConn and *net.UnixConn can both be half-closed
}
