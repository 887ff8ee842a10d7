package stream

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"time"

	"example.com/broker/codec"
)

// A carrier is one HTTP response on its way: JSON, if the reply is a response and
// nothing else, or else a stream of events. The session's goroutines put in what
// it carries (send); the one of the HTTP request writes it (run).
type carrier struct {
	w       http.ResponseWriter
	rc      *http.ResponseController
	o       HTTPOptions
	session string // Mcp-Session-Id, to be said in the header
	live    bool   // guarded by the conn's mu: takes what is sent now

	mu      sync.Mutex
	out     []byte // to be written
	status  int
	events  bool // a stream has begun
	single  bool // it is one response in JSON
	started bool // the header is written; of run's goroutine
	ended   bool // nothing more comes
	gone    bool // the client is
	more    chan struct{}
	room    chan struct{}
}

// maxPending is how much waits for a slow client before the session does, in bytes.
const maxPending = 256 << 10

func newCarrier(w http.ResponseWriter, o HTTPOptions) *carrier {
	return &carrier{
		w: w, rc: http.NewResponseController(w), o: o, live: true, status: http.StatusOK,
		more: make(chan struct{}, 1), room: make(chan struct{}, 1),
	}
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// begin makes the response a stream.
func (by *carrier) begin() {
	by.mu.Lock()
	defer by.mu.Unlock()
	if !by.single && !by.events {
		by.events = true
		signal(by.more)
	}
}

// prime sends an id to come back with, before anything else.
func (by *carrier) prime(r *reply) {
	by.mu.Lock()
	defer by.mu.Unlock()
	by.out = r.appendPrime(by.out)
	signal(by.more)
}

// pause ends a stream that the client shall come back to.
func (by *carrier) pause(retry int) {
	by.mu.Lock()
	defer by.mu.Unlock()
	if !by.events {
		return
	}
	if retry > 0 {
		by.out = fmt.Appendf(by.out, "retry: %d\n\n", retry)
	}
	by.ended = true
	signal(by.more)
}

// statusOf is the HTTP status of a response. The newer era says some of its
// errors in it; a refusal of the broker's reads like HTTP and is none: a client
// that knows both eras would take it for a sign that the server does not know
// the newer one.
func statusOf(r *reply, line []byte) int {
	e := codec.Member(line, "error")
	if e == nil {
		return http.StatusOK
	}
	switch string(codec.Member(e, "code")) {
	case "-32700", "-32600":
		return http.StatusBadRequest
	case "-32601":
		if r.modern {
			return http.StatusNotFound
		}
	case "-32602", "-32020", "-32021", "-32022":
		if r.modern {
			return http.StatusBadRequest
		}
	}
	return http.StatusOK
}

// send takes a line of the reply r. It waits while the client takes nothing, but
// not for ever: then the client is cut off.
func (by *carrier) send(r *reply, line []byte, pos int64, last bool, status int) {
	by.mu.Lock()
	if by.gone || by.ended {
		by.mu.Unlock()
		return
	}
	var timeout <-chan time.Time
	for len(by.out) > maxPending && !by.gone {
		by.mu.Unlock()
		if timeout == nil {
			timer := time.NewTimer(by.o.Stall)
			defer timer.Stop()
			timeout = timer.C
		}
		stalled := false
		select {
		case <-by.room:
		case <-timeout:
			stalled = true
		case <-r.conn.late:
			stalled = true
		}
		by.mu.Lock()
		if stalled {
			by.gone = true
			signal(by.more)
		}
	}
	defer by.mu.Unlock()
	switch {
	case by.gone:
		return
	case last && !by.events:
		by.single = true
		if by.status = status; status == 0 {
			by.status = statusOf(r, line)
		}
		if codec.Member(line, "error") != nil {
			by.session = ""
		}
		by.out = append(by.out, line...)
	default:
		if !by.events {
			by.events = true
			if !r.wide {
				by.out = r.appendPrime(by.out)
			}
		}
		by.out = append(by.out, r.event(line, pos)...)
	}
	by.ended = by.ended || last
	signal(by.more)
}

// write writes to the client at once.
func (by *carrier) write(b []byte) bool {
	by.rc.SetWriteDeadline(time.Now().Add(by.o.Stall))
	if !by.started {
		by.started = true
		h := by.w.Header()
		h.Set("Cache-Control", "no-cache, no-transform")
		h.Set("X-Content-Type-Options", "nosniff")
		if by.session != "" {
			h.Set(HeaderSession, by.session)
		}
		by.mu.Lock()
		single, status := by.single, by.status
		by.mu.Unlock()
		if single {
			h.Set("Content-Type", "application/json")
			h.Set("Content-Length", fmt.Sprint(len(b)))
		} else {
			h.Set("Content-Type", "text/event-stream")
			h.Set("X-Accel-Buffering", "no")
		}
		by.w.WriteHeader(status)
	}
	if len(b) > 0 {
		if _, err := by.w.Write(b); err != nil {
			return false
		}
	}
	return by.rc.Flush() == nil
}

// run writes what the reply brings until it is over, the client is gone or the
// session has ended.
func (by *carrier) run(ctx context.Context, r *reply) {
	defer func() {
		by.mu.Lock()
		by.gone = true
		by.mu.Unlock()
		signal(by.room)
	}()
	tick := time.NewTicker(by.o.KeepAlive)
	defer tick.Stop()
	done := r.conn.done
	for {
		var beat bool
		select {
		case <-by.more:
		case <-tick.C:
			beat = true
		case <-ctx.Done():
			return
		case <-done: // what has been written before is in out
			by.mu.Lock()
			by.ended = true
			by.mu.Unlock()
			done = nil
		}
		by.mu.Lock()
		b, ended, gone := by.out, by.ended, by.gone
		by.out = nil
		if beat && !by.single && len(b) == 0 {
			// A proxy on the way would take silence for death.
			by.events = true
			b = []byte(": still there\n\n")
		}
		begun := by.events || by.single
		by.mu.Unlock()
		signal(by.room)
		switch {
		case gone:
			panic(http.ErrAbortHandler) // net/http's way to cut a response short
		case !begun && ended: // the session has ended, and nobody has said why
			fail(by.w, http.StatusNotFound, codeSession, r.clientID(), errNoSession.Error())
			return
		case begun && (len(b) > 0 || !by.started):
			if !by.write(b) {
				return
			}
		}
		if ended {
			return
		}
	}
}

// clientID is the id of the request as the client knows it.
func (r *reply) clientID() []byte {
	if r.alias != nil {
		return r.alias.ID
	}
	return r.id
}
