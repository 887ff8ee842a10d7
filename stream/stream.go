// Package stream makes connections: one port that speaks TLS 1.3 and QUIC and
// tells its visitors apart by ALPN, and tunnels that carry many streams over
// one connection.
//
//	l, err := stream.Listen("127.0.0.1:8443", stream.Options{TLS: config})
//	err = l.Serve(ctx, stream.Handlers{Session: …, Agent: …, HTTP: …})
//
// What comes out is a [Conn], whatever it came in by. It has the manners of a
// net.Conn (Close wakes a blocked Read) and can be half-closed. What is behind
// it is for others to know: this package verifies no client and reads no frame.
package stream

import (
	"crypto/x509"
	"net"
	"time"
)

// The protocols of ALPN, beside http/1.1.
const (
	ALPNSession = "mcp-stream/1" // frames, newline-delimited, both ways
	ALPNAgent   = "mcp-agent/1"  // an agent and its tunnel
)

// A Conn is a reliable stream of bytes both ways. Close ends both directions
// and wakes blocked calls; what was written before is delivered. CloseWrite
// ends ours: the peer reads io.EOF, and its own direction goes on.
type Conn interface {
	net.Conn
	CloseWrite() error
}

// Peer is what a handshake tells of the other side. The peer holds the key of
// its first certificate; who issued it has not been looked at.
type Peer struct {
	ServerName   string // of SNI, lower case; empty if none was sent
	Certificates []*x509.Certificate
	Addr         net.Addr
	Transport    string // "tls" or "quic"
}

// lingerTime is how long a connection that is closed waits for the peer to take
// what was written. A TCP connection that is closed with input unread is reset,
// and a reset destroys what the peer has not read yet.
const lingerTime = time.Second

// aLongTimeAgo wakes whoever waits for a deadline.
var aLongTimeAgo = time.Unix(1, 0)
