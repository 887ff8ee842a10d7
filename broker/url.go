package broker

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"iter"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"example.com/broker/codec"
	"example.com/broker/recorder"
	"example.com/broker/stream"
)

// endpoint returns the server whose MCP endpoint a request is for: by path
// (/bigquery/mcp), or by host name (bigquery.mcp.example.com/mcp).
func endpoint(r *http.Request) string {
	server, rest, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	switch {
	case rest == "mcp":
	case server == "mcp" && rest == "":
		server, _, _ = strings.Cut(strings.ToLower(r.TLS.ServerName), ".")
	default:
		return ""
	}
	if len(server) > 63 || strings.Trim(server, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
		return "" // no server's name
	}
	return server
}

// serveMCP answers a request of a client by URL.
func (b *Broker) serveMCP(w http.ResponseWriter, r *http.Request) {
	server := endpoint(r)
	proven := &admission{server: server}
	if err := b.identifyHTTP(proven, r); err != nil {
		refusal := refusalOf(err)
		if b.o.OAuth != nil {
			w.Header().Set("WWW-Authenticate", b.o.OAuth.Challenge(server, token(r) != ""))
		}
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "no-store")
		w.WriteHeader(refusal.Code)
		w.Write(refusal.appendTo(nil, nil, ""))
		return
	}
	peer := stream.Peer{ServerName: r.TLS.ServerName, Certificates: r.TLS.PeerCertificates, Addr: clientAddr(r), Transport: transport(r)}
	b.edge.Serve(w, r, stream.Visitor{
		Key: keyOf(proven), Server: server, Until: proven.until, Peer: peer,
		Open: func(ctx context.Context, c *stream.HTTPConn) {
			b.serve(ctx, &client{Conn: c, peer: peer, web: c, prove: func(a *admission) error {
				a.identity, a.chain, a.serial, a.server = proven.identity, proven.chain, proven.serial, server
				a.until = c.Proven()
				if b.o.Desk != nil && b.o.Desk.IsDisabled(a.identity.Subject, a.serial) {
					return errDisabled
				}
				return nil
			}})
		},
	})
}

// identifyHTTP finds out whose request it is: by its token, or else by the
// client's certificate.
func (b *Broker) identifyHTTP(a *admission, r *http.Request) (err error) {
	shown := token(r)
	switch {
	case shown != "" && b.o.OAuth != nil:
		a.identity, a.until, err = b.o.OAuth.Verify(r.Context(), shown, a.server)
		if err != nil {
			b.log.Info("token refused", "client", r.RemoteAddr, "server", short(a.server), "reason", err.Error())
			return &Refusal{Code: CodeNotSignedIn, Reason: "not signed in: " + err.Error()}
		}
		if b.o.Desk != nil && b.o.Desk.IsDisabled(a.identity.Subject, "") {
			return errDisabled
		}
		return nil
	case shown != "":
		return &Refusal{Code: CodeNotSignedIn, Reason: "not signed in: the broker takes no tokens; configure an identity provider, or use a client certificate"}
	}
	server := a.server
	err = b.identify(a, stream.Peer{Certificates: r.TLS.PeerCertificates})
	a.server = server
	return err
}

// token returns the token that a request shows, or "".
func token(r *http.Request) string {
	scheme, value, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return ""
	}
	return strings.TrimSpace(value)
}

// keyOf names what has to be the same for two requests to share a session.
func keyOf(a *admission) string {
	b := make([]byte, 0, 256)
	for _, part := range []string{a.server, a.identity.Subject, a.identity.Method, a.serial} {
		b = append(strconv.AppendQuote(b, part), ' ')
	}
	for _, group := range a.identity.Groups {
		b = append(strconv.AppendQuote(b, group), ' ')
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

func transport(r *http.Request) string {
	switch r.ProtoMajor {
	case 2:
		return "h2"
	case 3:
		return "h3"
	}
	return "http/1.1"
}

func clientAddr(r *http.Request) net.Addr {
	addr, _ := netip.ParseAddrPort(r.RemoteAddr)
	return net.TCPAddrFromAddrPort(addr)
}

// record is what the HTTP edge uses of a session's recording.
func (b *Broker) record(session string, rec Recording) stream.Record {
	return stream.Record{
		Alias: func(a codec.Alias) error {
			text, err := json.Marshal(a)
			if err != nil {
				return err
			}
			return rec.Append(recorder.Frame{Direction: codec.C2S, Verdict: recorder.Aliased, Bytes: text})
		},
		Delivered: func(ctx context.Context, from int64) iter.Seq2[stream.Piece, error] {
			return func(yield func(stream.Piece, error) bool) {
				n := int64(0)
				for f, err := range b.o.Log.Frames(ctx, session) {
					if err != nil {
						yield(stream.Piece{}, err)
						return
					}
					if f.Direction != codec.S2C || f.Verdict == recorder.Blocked || !f.Verdict.IsFrame() {
						continue
					}
					if n >= from && !yield(stream.Piece{Bytes: f.Bytes, More: f.More}, nil) {
						return
					}
					if !f.More {
						n++
					}
				}
			}
		},
	}
}

// endWithIdentity ends a session when its identity is no longer proven. A client
// by URL proves it again with each request.
func endWithIdentity(c *client, a *admission, cancel context.CancelCauseFunc) (stop func()) {
	if c.web == nil {
		end := time.AfterFunc(time.Until(a.until), func() { cancel(errIdentityEnded) })
		return func() { end.Stop() }
	}
	done := make(chan struct{})
	go watchProof(c.web, done, cancel)
	return func() { close(done) }
}

// watchProof cancels a session when its identity has not been proven again in
// time, unless it is done before.
func watchProof(c *stream.HTTPConn, done <-chan struct{}, cancel context.CancelCauseFunc) {
	end := time.NewTimer(time.Until(c.Proven()))
	defer end.Stop()
	for {
		select {
		case <-done:
			return
		case <-end.C:
		}
		left := time.Until(c.Proven())
		if left <= 0 {
			cancel(errIdentityEnded)
			return
		}
		end.Reset(left)
	}
}
