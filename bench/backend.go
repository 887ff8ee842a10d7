package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"

	"example.com/broker/stream"
	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
)

// addresses are where the MCP server of all measurements listens, by what is spoken.
type addresses struct {
	TCP   string // frames
	TLS   string // frames, with client certificates
	QUIC  string // frames, one stream a connection
	HTTP  string // Streamable HTTP
	HTTPS string // HTTP/1.1 and HTTP/2 over TLS, with client certificates
	HTTP3 string
}

// serveBackend is the MCP server, which does as little as one can: it runs in a process of
// its own until its input ends, and says on its output where it listens.
func serveBackend(ctx context.Context, x *exchanges, c *tls.Config) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	go func() { io.Copy(io.Discard, os.Stdin); stop() }()

	var at addresses
	failed := make(chan error, 8)
	listen := func(addr *string, serve func(net.Listener) error) error {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		*addr = ln.Addr().String()
		context.AfterFunc(ctx, func() { ln.Close() })
		go func() { failed <- serve(ln) }()
		return nil
	}
	lines := func(ln net.Listener) error {
		for {
			c, err := ln.Accept()
			if err != nil {
				return err
			}
			go x.serveLines(c)
		}
	}
	withProtocols := func(names ...string) *tls.Config {
		c := c.Clone()
		c.NextProtos = names
		return c
	}
	web := &http.Server{Handler: http.HandlerFunc(x.serveHTTP), ReadHeaderTimeout: time.Minute}
	webTLS := &http.Server{Handler: web.Handler, ReadHeaderTimeout: time.Minute, TLSConfig: withProtocols("h2", "http/1.1")}
	err := errors.Join(
		listen(&at.TCP, lines),
		listen(&at.TLS, func(ln net.Listener) error { return lines(tls.NewListener(ln, withProtocols(stream.ALPNSession))) }),
		listen(&at.HTTP, web.Serve),
		listen(&at.HTTPS, func(ln net.Listener) error { return webTLS.ServeTLS(ln, "", "") }),
	)
	if err != nil {
		return err
	}
	ql, err := quic.ListenAddr("127.0.0.1:0", withProtocols(stream.ALPNSession), quicConfig)
	if err != nil {
		return err
	}
	at.QUIC = ql.Addr().String()
	go func() { failed <- x.serveQUIC(ctx, ql) }()
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	at.HTTP3 = udp.LocalAddr().String()
	h3 := &http3.Server{Handler: web.Handler, TLSConfig: http3.ConfigureTLSConfig(c.Clone()), QUICConfig: quicConfig}
	go func() { failed <- h3.Serve(udp) }()

	if err := json.NewEncoder(os.Stdout).Encode(at); err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return nil
	case err := <-failed:
		return fmt.Errorf("backend: %w", err)
	}
}

var quicConfig = &quic.Config{MaxIdleTimeout: 10 * time.Minute, KeepAlivePeriod: 15 * time.Second}

// serveLines answers frames, and writes the answers to what came together together.
func (x *exchanges) serveLines(c io.ReadWriteCloser) {
	defer c.Close()
	r := bufio.NewReaderSize(c, 8<<10) // small: there may be 10,000
	var long, out []byte
	for {
		part, err := r.ReadSlice('\n')
		if err != nil {
			if !errors.Is(err, bufio.ErrBufferFull) {
				return
			}
			long = append(long, part...)
			continue
		}
		frame := part
		if len(long) > 0 {
			long = append(long, part...)
			frame = long
		}
		n := len(out)
		if out = x.answer(out, frame); len(out) > n {
			out = append(out, '\n')
		}
		long = long[:0]
		if r.Buffered() == 0 && len(out) > 0 {
			if _, err := c.Write(out); err != nil {
				return
			}
			if out = out[:0]; cap(out) > 1<<20 {
				out = nil
			}
		}
	}
}

func (x *exchanges) serveQUIC(ctx context.Context, ql *quic.Listener) error {
	for {
		c, err := ql.Accept(ctx)
		if err != nil {
			return err
		}
		go func() {
			s, err := c.AcceptStream(ctx)
			if err != nil {
				return
			}
			x.serveLines(s)
			c.CloseWithError(0, "")
		}()
	}
}

// serveHTTP is Streamable HTTP, as of 2025-11-25, that answers with JSON.
func (x *exchanges) serveHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.Method {
	case http.MethodPost:
	case http.MethodDelete:
		return
	default:
		w.WriteHeader(http.StatusMethodNotAllowed)
		return
	}
	frame, err := io.ReadAll(r.Body)
	if err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	answer := x.answer(nil, frame)
	if len(answer) == 0 {
		w.WriteHeader(http.StatusAccepted)
		return
	}
	if r.Header.Get(stream.HeaderSession) == "" { // only initialize has none
		w.Header().Set(stream.HeaderSession, rand.Text())
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", fmt.Sprint(len(answer)))
	w.Write(answer)
}
