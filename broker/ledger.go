package broker

import (
	"bytes"
	"slices"
	"strconv"
	"sync"

	"example.com/broker/codec"
)

// A ledger keeps the requests in flight of one direction, so that a response
// is known by what it answers, an id is not used twice at a time, and nobody
// waits for ever for an answer that will not come.
//
// Client and server count their ids each for themselves: a session has two.
type ledger struct {
	limit int // requests in flight

	mu        sync.Mutex
	flying    map[requestID]request // nil while there are none
	listening int                   // of flying: those that nobody waits for
	cancelled []requestID           // of flying: those that nobody waits for any more, oldest first
	forgotten bool                  // some of those are not in flying any more, and may be answered all the same
	scratch   []byte
}

// A requestID is a request's id as both sides understand it: "a" and "\u0061" are
// one. Most are numbers, which need no memory of their own.
type requestID struct {
	number int64
	text   string // decoded, behind a quotation mark; empty: it is the number
}

// flights are maps of requests in flight that no ledger needs: a map for one has room
// for eight, and sessions wait most of their time.
var flights = sync.Pool{New: func() any { return map[requestID]request{} }}

type request struct {
	text   string // its id as it came, if that is no number
	method string
	token  []byte // raw progressToken, if there is one and the server has shown no progress
	call   string // digest of a call that was approved

	cancelled bool
}

// listens reports a request whose answer comes at the end of the session, if at all.
func (r request) listens() bool { return r.method == "subscriptions/listen" }

// flows reports a request whose answer neither the broker reads nor a rule leaves
// anything out of: it may pass before it is whole.
func (r request) flows() bool {
	switch r.method {
	case "tools/call", "resources/read", "prompts/get", "tasks/result":
		return r.call == ""
	}
	return false
}

// What add says.
type addResult uint8

const (
	added     addResult = iota
	duplicate           // the id is in flight already
	full
)

// nobody is the id of no request: those with any other than a string or a plain integer
// are refused.
var nobody = requestID{text: "nobody"}

// key returns what a raw id is known by.
func (l *ledger) key(raw []byte) requestID {
	if len(raw) > 0 && raw[0] == '"' {
		l.scratch = codec.Unquote(append(l.scratch[:0], '"'), raw)
		return requestID{text: string(l.scratch)}
	}
	n, err := strconv.ParseInt(string(raw), 10, 64)
	if l.scratch = strconv.AppendInt(l.scratch[:0], n, 10); err != nil || !bytes.Equal(l.scratch, raw) {
		return nobody
	}
	return requestID{number: n}
}

// raw returns the id, which is id, as it came.
func (r request) raw(id requestID) []byte {
	if id.text != "" {
		return []byte(r.text)
	}
	return strconv.AppendInt(nil, id.number, 10)
}

// add puts the request f in flight. call is the digest of an approved one.
func (l *ledger) add(f *codec.Frame, call string) addResult {
	l.mu.Lock()
	defer l.mu.Unlock()
	id := l.key(f.ID)
	if _, ok := l.flying[id]; ok {
		return duplicate
	}
	if len(l.flying)-len(l.cancelled) >= l.limit {
		return full
	}
	r := request{method: methodOf(f.Method), call: call}
	if id.text != "" {
		r.text = string(f.ID)
	}
	if f.Meta != nil {
		r.token = bytes.Clone(codec.Member(f.Meta, "progressToken"))
	}
	if r.listens() {
		l.listening++
	}
	if l.flying == nil {
		l.flying = flights.Get().(map[requestID]request)
	}
	l.flying[id] = r
	return added
}

// methodOf is string(method), without a new one for what comes with almost every frame.
func methodOf(method []byte) string {
	switch string(method) {
	case "tools/call":
		return "tools/call"
	case "resources/read":
		return "resources/read"
	case "prompts/get":
		return "prompts/get"
	}
	return string(method)
}

// done takes the request with that raw id out, answered; ok is false if there
// is none that somebody waits for.
func (l *ledger) done(raw []byte) (r request, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	id := l.key(raw)
	r, ok = l.flying[id]
	if !ok {
		return r, false
	}
	switch {
	case r.cancelled:
		l.cancelled = slices.DeleteFunc(l.cancelled, func(c requestID) bool { return c == id })
	case r.listens():
		l.listening--
	}
	if delete(l.flying, id); len(l.flying) == 0 {
		flights.Put(l.flying)
		l.flying = nil
	}
	return r, !r.cancelled
}

// cancel notes that nobody waits for the answer to a request any more. It may
// come all the same, so that its id stays taken, or never, so that only so many
// are kept.
func (l *ledger) cancel(raw []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	id := l.key(raw)
	r, ok := l.flying[id]
	if !ok || r.cancelled {
		return
	}
	if r.listens() {
		l.listening--
	}
	r.cancelled = true
	l.flying[id] = r
	if l.cancelled = append(l.cancelled, id); len(l.cancelled) > l.limit {
		delete(l.flying, l.cancelled[0])
		l.cancelled, l.forgotten = l.cancelled[1:], true
	}
}

// flows reports whether the answer to the request with that raw id, or to any if
// it is not known yet, may pass before it is whole.
func (l *ledger) flows(raw []byte) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if raw != nil {
		r, ok := l.flying[l.key(raw)]
		return ok && r.flows() && !r.cancelled
	}
	for _, r := range l.flying {
		if !r.flows() {
			return false
		}
	}
	return len(l.flying) > 0
}

// only returns the raw id of the one request that somebody waits for, or nil if
// there are none or several.
func (l *ledger) only() []byte { return l.onlyOf(true) }

// sole returns the raw id of the one request that may be answered before the session ends,
// whether anybody waits for it or not, or nil if there are none or several.
func (l *ledger) sole() []byte { return l.onlyOf(false) }

func (l *ledger) onlyOf(waiting bool) (raw []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !waiting && l.forgotten {
		return nil
	}
	for id, r := range l.flying {
		switch {
		case r.cancelled && waiting, !r.cancelled && r.listens():
		case raw != nil:
			return nil
		default:
			raw = r.raw(id)
		}
	}
	return raw
}

// same reports whether two raw ids are one.
func (l *ledger) same(a, b []byte) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.key(a) == l.key(b)
}

// has reports whether somebody waits for the request with that raw id.
func (l *ledger) has(raw []byte) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	r, ok := l.flying[l.key(raw)]
	return ok && !r.cancelled
}

// progressed notes that the server shows progress for that raw token.
func (l *ledger) progressed(token []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for id, r := range l.flying {
		if r.token != nil && bytes.Equal(r.token, token) {
			r.token = nil
			l.flying[id] = r
		}
	}
}

// tokens lists the progress tokens of requests that somebody waits for and that
// show no progress.
func (l *ledger) tokens() (tokens [][]byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range l.flying {
		if r.token != nil && !r.cancelled {
			tokens = append(tokens, r.token)
		}
	}
	return tokens
}

// waiting counts the requests that somebody waits for.
func (l *ledger) waiting() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.flying) - l.listening - len(l.cancelled)
}

// drain takes all requests out and returns the raw ids of those that somebody waits for.
func (l *ledger) drain() (open [][]byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for id, r := range l.flying {
		if !r.cancelled {
			open = append(open, r.raw(id))
		}
	}
	l.flying, l.listening, l.cancelled = nil, 0, nil
	return open
}
