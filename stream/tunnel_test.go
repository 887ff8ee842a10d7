package stream

import (
	"net"

	"github.com/hashicorp/yamux"
)

// rawTunnels are tunnels without a coalescer, to compare with.
func rawTunnels(x, y net.Conn) (client, server *Tunnel, err error) {
	c, err := yamux.Client(x, TunnelOptions{}.yamux())
	if err != nil {
		return nil, nil, err
	}
	s, err := yamux.Server(y, TunnelOptions{}.yamux())
	if err != nil {
		return nil, nil, err
	}
	return newTunnel(c), newTunnel(s), nil
}
