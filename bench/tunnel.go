package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"

	"example.com/broker/stream"
)

// The broker's tunnel without the broker: TLS to clients, streams of one tunnel to another
// process, TCP to the server. Bytes are copied; nothing is judged, masked or put on record.
// It says how much of what the broker takes is the way, and how much is what it does there.

// serveTunnel is the end that clients connect to.
func serveTunnel(ctx context.Context, c *tls.Config, addr, tunnelAddr string) error {
	c = c.Clone()
	c.NextProtos = []string{stream.ALPNSession}
	far, err := tls.Listen("tcp", tunnelAddr, c)
	if err != nil {
		return err
	}
	defer far.Close()
	fmt.Println(listens)
	conn, err := far.Accept()
	if err != nil {
		return err
	}
	tunnel, err := stream.ServerTunnel(conn, stream.TunnelOptions{})
	if err != nil {
		return err
	}
	defer tunnel.Close()
	near, err := tls.Listen("tcp", addr, c)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { near.Close() })
	defer stop()
	for {
		client, err := near.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer client.Close()
			if up, err := tunnel.Open(ctx); err == nil {
				copyBoth(client, up)
			}
		}()
	}
}

// joinTunnel is the end beside the server.
func joinTunnel(ctx context.Context, c *tls.Config, tunnelAddr, to string) error {
	conn, err := (&tls.Dialer{Config: c}).DialContext(ctx, "tcp", tunnelAddr)
	if err != nil {
		return err
	}
	tunnel, err := stream.ClientTunnel(conn, stream.TunnelOptions{})
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { tunnel.Close() })
	defer stop()
	for {
		s, err := tunnel.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer s.Close()
			if up, err := net.Dial("tcp", to); err == nil {
				copyBoth(s, up)
			}
		}()
	}
}

// copyBoth copies both ways until one of them ends, and closes b.
func copyBoth(a, b net.Conn) {
	defer b.Close()
	done := make(chan struct{}, 2)
	one := func(to, from net.Conn) {
		// No ReaderFrom: splice would be another way than the broker's.
		io.CopyBuffer(struct{ io.Writer }{to}, struct{ io.Reader }{from}, make([]byte, 64<<10))
		done <- struct{}{}
	}
	go one(a, b)
	go one(b, a)
	<-done
}

// startTunnel starts both ends.
func startTunnel(ctx context.Context, b *bed, t *target) error {
	at, err := freeAddrs(2)
	if err != nil {
		return err
	}
	near, err := startProcess(b.dir, t.name+"-near", b.self, "tunnel", "--dir", b.dir, "--listen", at[0], "--tunnel", at[1])
	if err != nil {
		return err
	}
	t.processes = append(t.processes, near)
	if err := near.logs(ctx, listens, 1); err != nil {
		return err
	}
	if err := t.run(ctx, b, "far", at[0], b.self, "tunnel", "--dir", b.dir, "--tunnel", at[1], "--to", b.backend.TCP); err != nil {
		return err
	}
	if err := startDirect(ctx, b, t); err != nil {
		return err
	}
	e := t.endpoints[overTLS]
	e.addr = at[0]
	t.endpoints = map[string]endpoint{overTLS: e}
	return nil
}

// listens is what the near end says when the far one can come.
const listens = "waiting for the far end"
