package broker

import (
	"bytes"
	"slices"
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
	flying    map[string]request // by canonical id
	listening int                // of flying: those that nobody waits for
	cancelled []string           // of flying: keys of those that nobody waits for any more, oldest first
	scratch   []byte
}

type request struct {
	id     string // raw, as it came
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

// key returns a raw id as both sides understand it: "a" and "\u0061" are one.
// It is valid until the next call.
func (l *ledger) key(raw []byte) []byte {
	if len(raw) > 0 && raw[0] == '"' {
		l.scratch = codec.Unquote(append(l.scratch[:0], '"'), raw)
		return l.scratch
	}
	return raw
}

// add puts the request f in flight. call is the digest of an approved one.
func (l *ledger) add(f *codec.Frame, call string) addResult {
	l.mu.Lock()
	defer l.mu.Unlock()
	key := l.key(f.ID)
	if _, ok := l.flying[string(key)]; ok {
		return duplicate
	}
	if len(l.flying)-len(l.cancelled) >= l.limit {
		return full
	}
	if l.flying == nil {
		l.flying = map[string]request{}
	}
	r := request{id: string(f.ID), method: methodOf(f.Method), call: call}
	if f.Meta != nil {
		r.token = bytes.Clone(codec.Member(f.Meta, "progressToken"))
	}
	if r.listens() {
		l.listening++
	}
	if r.id == string(key) { // mostly: then one string is both
		l.flying[r.id] = r
	} else {
		l.flying[string(key)] = r
	}
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
func (l *ledger) done(id []byte) (r request, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	key := string(l.key(id))
	r, ok = l.flying[key]
	if !ok {
		return r, false
	}
	l.remove(key, r)
	return r, !r.cancelled
}

func (l *ledger) remove(key string, r request) {
	switch {
	case r.cancelled:
		l.cancelled = slices.DeleteFunc(l.cancelled, func(k string) bool { return k == key })
	case r.listens():
		l.listening--
	}
	delete(l.flying, key)
}

// cancel notes that nobody waits for the answer to a request any more. It may
// come all the same, so that its id stays taken, or never, so that only so many
// are kept.
func (l *ledger) cancel(id []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	key := string(l.key(id))
	r, ok := l.flying[key]
	if !ok || r.cancelled {
		return
	}
	if r.listens() {
		l.listening--
	}
	r.cancelled = true
	l.flying[key] = r
	if l.cancelled = append(l.cancelled, key); len(l.cancelled) > l.limit {
		delete(l.flying, l.cancelled[0])
		l.cancelled = l.cancelled[1:]
	}
}

// flows reports whether the answer to the request with that raw id, or to any if
// it is not known yet, may pass before it is whole.
func (l *ledger) flows(id []byte) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if id != nil {
		r, ok := l.flying[string(l.key(id))]
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
func (l *ledger) only() (id []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range l.flying {
		switch {
		case r.cancelled || r.listens():
		case id != nil:
			return nil
		default:
			id = []byte(r.id)
		}
	}
	return id
}

// has reports whether somebody waits for the request with that raw id.
func (l *ledger) has(id []byte) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	r, ok := l.flying[string(l.key(id))]
	return ok && !r.cancelled
}

// progressed notes that the server shows progress for that raw token.
func (l *ledger) progressed(token []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for key, r := range l.flying {
		if r.token != nil && bytes.Equal(r.token, token) {
			r.token = nil
			l.flying[key] = r
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

// drain takes all requests out and returns them.
func (l *ledger) drain() []request {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := make([]request, 0, len(l.flying))
	for _, r := range l.flying {
		if !r.cancelled {
			all = append(all, r)
		}
	}
	clear(l.flying)
	l.listening, l.cancelled = 0, nil
	return all
}
