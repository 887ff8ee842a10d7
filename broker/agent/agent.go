package agent

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"time"

	"example.com/broker/stream"
)

// A Conn is one session's connection to its server. CloseWrite tells the server
// that its input has ended; Close ends both directions, and whatever was
// started for the session, and wakes a blocked Read or Write.
type Conn interface {
	io.ReadWriteCloser
	CloseWrite() error
}

// An Upstream reaches one MCP server. Open is called once a session and may be
// called by several goroutines; ctx bounds the opening alone.
type Upstream interface {
	Open(ctx context.Context, s Session, log *slog.Logger) (Conn, error)
}

// An Agent opens sessions to the servers that it has.
type Agent struct {
	Servers map[string]Upstream
	Log     *slog.Logger // if nil, nothing is logged
}

// Names returns the names of the agent's servers, sorted.
func (a *Agent) Names() []string {
	names := make([]string, 0, len(a.Servers))
	for name := range a.Servers {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

func (a *Agent) log() *slog.Logger {
	if a.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return a.Log
}

// Open connects a session to its server. The reason of a failure stays in the
// agent's log; the error is for the client and names the server only.
func (a *Agent) Open(ctx context.Context, s Session) (Conn, error) {
	log := a.log().With("session", s.ID, "server", s.Server)
	up, ok := a.Servers[s.Server]
	if !ok {
		return nil, &Error{502, fmt.Sprintf("the agent has no server %q", s.Server)}
	}
	c, err := up.Open(ctx, s, log)
	if err != nil {
		log.Error("server cannot be reached", "error", err)
		return nil, &Error{502, fmt.Sprintf("server %q cannot be reached", s.Server)}
	}
	log.Debug("session opened", "subject", s.Subject)
	return c, nil
}

// serve answers the streams of a tunnel until the tunnel ends. Then every
// session that it carried has ended, too.
func (a *Agent) serve(ctx context.Context, t *stream.Tunnel, open time.Duration) {
	var (
		sessions sync.WaitGroup
		mu       sync.Mutex
		running  = map[string]*opening{}
	)
	ctx, cancel := context.WithCancel(ctx)
	defer sessions.Wait()
	defer cancel()
	for {
		c, err := t.Accept()
		if err != nil {
			return
		}
		sessions.Go(func() {
			defer c.Close()
			c.SetReadDeadline(time.Now().Add(open))
			req, err := ReadRequest(c)
			if err != nil {
				a.log().Warn("broker opened a stream and asked for nothing", "error", err)
				return
			}
			c.SetReadDeadline(time.Time{})
			switch req.Method {
			case MethodSessionOpen:
				var s Session
				if err := req.Decode(&s); err != nil {
					req.Refuse(err)
					return
				}
				sctx, end := context.WithCancel(ctx)
				defer end()
				over := &opening{end: end, done: make(chan struct{})}
				mu.Lock()
				running[s.ID] = over
				mu.Unlock()
				a.session(sctx, req, s, open)
				close(over.done)
				mu.Lock()
				delete(running, s.ID)
				mu.Unlock()
			case MethodSessionClose:
				var s sessionClose
				if err := req.Decode(&s); err != nil {
					req.Refuse(err)
					return
				}
				mu.Lock()
				over := running[s.ID]
				mu.Unlock()
				if over != nil {
					over.end()
					<-over.done
				}
				req.Answer(struct{}{})
			default:
				req.Refuse(&Error{-32601, "no method " + req.Method})
			}
		})
	}
}

// An opening is a session from session/open on: the broker may end it before
// its server is reached.
type opening struct {
	end  func()
	done chan struct{} // closed when nothing of it is left
}

// session reaches the server and carries the session until it ends or ctx is done.
func (a *Agent) session(ctx context.Context, req *Request, s Session, open time.Duration) {
	octx, done := context.WithTimeout(ctx, open)
	up, err := a.Open(octx, s)
	done()
	if err != nil {
		req.Refuse(err)
		return
	}
	defer up.Close()
	if ctx.Err() == nil && req.Answer(struct{}{}) == nil {
		carry(ctx, req.Conn, up)
	}
}

// carry copies bytes both ways until both directions have ended, one of them
// has failed, or ctx is done.
func carry(ctx context.Context, client stream.Conn, server Conn) {
	stop := context.AfterFunc(ctx, func() { client.Close(); server.Close() })
	defer stop()
	done := make(chan error, 2)
	go func() { done <- copyStream(server, client) }()
	go func() { done <- copyStream(client, server) }()
	if err := <-done; err != nil {
		client.Close()
		server.Close()
	}
	<-done
}

// copyBuffer is what one direction of a session reads at a time, in bytes.
const copyBuffer = 32 << 10

var copyBuffers = sync.Pool{New: func() any { b := make([]byte, copyBuffer); return &b }}

// A halfCloser can be told that no more will be written.
type halfCloser interface {
	io.Writer
	CloseWrite() error
}

func copyStream(dst halfCloser, src io.Reader) error {
	buf := copyBuffers.Get().(*[]byte)
	defer copyBuffers.Put(buf)
	// The struct hides WriterTo and ReaderFrom, which would bring buffers of their own.
	if _, err := io.CopyBuffer(struct{ io.Writer }{dst}, struct{ io.Reader }{src}, *buf); err != nil {
		return err
	}
	return dst.CloseWrite()
}

// CloseSession tells the agent at the other end of t that a session is over,
// though its server may not have ended its output.
func CloseSession(ctx context.Context, t *stream.Tunnel, id string) error {
	c, err := t.Open(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = Call(ctx, c, MethodSessionClose, sessionClose{id}, nil)
	return err
}
