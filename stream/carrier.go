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
	spare   []byte // has been written, and is the next out
	writing int    // bytes of what is being written
	status  int
	events  bool          // a stream has begun
	single  bool          // it is one response in JSON
	partial bool          // of an answer that comes in parts, the end is missing
	waited  time.Duration // for the client
	behind  bool          // see leave
	after   int64
	started bool // the header is written; of run's goroutine
	ended   bool // nothing more comes
	gone    bool // the client is
	more    chan struct{}
	room    chan struct{}
}

const (
	// maxPending is how much waits for a slow client before the session does, in bytes.
	maxPending = 64 << 10
	// patience is how long a session waits for the client that gets an answer in parts. From
	// then on, as much waits for that client as if it got the answer whole,
	patience = 100 * time.Millisecond
	// and more only if it takes something every now and then, where others may share its
	// session. What a kernel takes at a time may be a second's worth and more.
	crawl = 5 * time.Second
	// writeSize is how many bytes a client must take in the time of a stall.
	writeSize = 64 << 10
)

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
	if !by.events && !by.partial {
		return
	}
	if retry > 0 && by.events {
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

// enter locks by as soon as it takes more of r: of an answer in parts, or of lines. It waits
// while too much waits for the client, but not for ever: then the client is cut off. It is
// false, and by is not locked, if nobody takes anything any more.
func (by *carrier) enter(r *reply, parts bool) bool {
	by.mu.Lock()
	left := by.o.Stall
	for !by.gone && !by.ended {
		pending := len(by.out) + by.writing
		if pending <= maxPending {
			if !r.modern { // where others may share its session, all waits together count
				by.waited = 0
			}
			return true
		}
		slow := by.waited >= patience
		if parts && slow && pending <= by.o.Body {
			return true
		}
		wait := left
		switch {
		case parts && !slow:
			wait = min(left, patience-by.waited)
		case parts && r.modern:
			wait = min(left, crawl)
		}
		by.mu.Unlock()
		began, timer, late, moved := time.Now(), time.NewTimer(wait), false, false
		select {
		case <-by.room:
			moved = !parts || !r.modern
		case <-timer.C:
			late = wait == left || slow
		case <-r.conn.late:
			late = true
		}
		timer.Stop()
		took := time.Since(began)
		by.mu.Lock()
		by.waited += took
		if left -= took; moved {
			left = by.o.Stall
		}
		if late || left <= 0 {
			by.gone = true
			signal(by.more)
		}
	}
	by.mu.Unlock()
	return false
}

// send takes a line of the reply r.
func (by *carrier) send(r *reply, line []byte, pos int64, last bool, status int) {
	if !by.enter(r, false) {
		return
	}
	defer by.mu.Unlock()
	switch {
	case by.single && last: // the answer was cut, and this says why
		by.out = append(append(by.out, '\n'), line...)
	case by.single:
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
		by.out = append(append(r.appendEvent(by.out, pos), line...), endOfEvent...)
	}
	by.ended = by.ended || last
	signal(by.more)
}

// part takes a part of the answer that is the reply r.
func (by *carrier) part(r *reply, b []byte, pos int64) {
	if !by.enter(r, true) {
		return
	}
	defer by.mu.Unlock()
	if !by.partial {
		by.partial, by.single = true, !by.events
		if by.events {
			by.out = r.appendEvent(by.out, pos)
		}
	}
	by.out = append(by.out, b...)
	signal(by.more)
}

// finish ends an answer that came in parts. If it is not whole, another line says why.
func (by *carrier) finish(whole bool) {
	by.mu.Lock()
	defer by.mu.Unlock()
	if by.ended { // before: its client has cancelled it
		return
	}
	if by.events {
		if !whole { // a client that takes it for a message could not go on; the last kind counts
			by.out = append(by.out, "\nevent: cut"...)
		}
		by.out = append(by.out, endOfEvent...)
	}
	// What a client has of one in JSON is no answer, and never will be: its response
	// does not end in order.
	by.partial = by.single && !whole
	by.ended = by.ended || whole
	signal(by.more)
}

// hurry bounds the time for what is written next, by net/http at the end of a response too.
func (by *carrier) hurry() { by.rc.SetWriteDeadline(time.Now().Add(by.o.Stall)) }

// leave has run return: what comes next of the reply is on record, behind position after.
func (by *carrier) leave(after int64) {
	by.mu.Lock()
	defer by.mu.Unlock()
	by.behind, by.after = true, after
	signal(by.more)
}

// write writes to the client at once. ended tells that nothing comes behind it.
func (by *carrier) write(b []byte, ended bool) bool {
	if !by.started {
		by.started = true
		h := by.w.Header()
		h.Set("Cache-Control", "no-cache, no-transform")
		h.Set("X-Content-Type-Options", "nosniff")
		if by.session != "" {
			h.Set(HeaderSession, by.session)
		}
		by.mu.Lock()
		single, status, whole := by.single, by.status, ended && !by.partial
		by.mu.Unlock()
		if single {
			h.Set("Content-Type", "application/json")
			if whole {
				h.Set("Content-Length", fmt.Sprint(len(b)))
			}
		} else {
			h.Set("Content-Type", "text/event-stream")
			h.Set("X-Accel-Buffering", "no")
		}
		by.w.WriteHeader(status)
	}
	for first := true; first || len(b) > 0; first = false {
		by.hurry()
		n := min(len(b), writeSize)
		if _, err := by.w.Write(b[:n]); err != nil {
			return false
		}
		b = b[n:]
		by.mu.Lock()
		by.writing -= min(n, by.writing)
		by.mu.Unlock()
		signal(by.room)
	}
	err := by.rc.Flush()
	if !ended { // HTTP/2 would end the response, though nothing is written
		by.rc.SetWriteDeadline(time.Time{})
	}
	return err == nil
}

// run writes what the reply brings until it is over, the client is gone or the
// session has ended. It is true if there is more of it, on record.
func (by *carrier) run(ctx context.Context, r *reply) (behind bool) {
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
			return false
		case <-done: // what has been written before is in out
			by.mu.Lock()
			by.ended = true
			by.mu.Unlock()
			done = nil
		}
		by.mu.Lock()
		b, ended, gone, partial := by.out, by.ended, by.gone, by.partial
		behind, by.behind = by.behind, false
		by.out, by.spare, by.writing = by.spare, nil, len(b)
		if beat && !by.single && !partial && len(b) == 0 {
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
			return false
		case begun && (len(b) > 0 || !by.started):
			if !by.write(b, ended) {
				return false
			}
		}
		if behind {
			return true
		}
		if ended && partial {
			panic(http.ErrAbortHandler)
		}
		if partial && cap(b) <= 4*maxPending {
			by.mu.Lock()
			by.spare = b[:0]
			by.mu.Unlock()
		}
		if ended {
			if len(b) == 0 {
				by.hurry()
			}
			return false
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
