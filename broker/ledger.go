package broker

import (
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
	scratch   []byte
}

type request struct {
	id     []byte // raw, as it came
	method string
}

// listens reports a request whose answer comes at the end of the session, if at all.
func (r request) listens() bool { return r.method == "subscriptions/listen" }

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

// add puts the request f in flight.
func (l *ledger) add(f *codec.Frame) addResult {
	l.mu.Lock()
	defer l.mu.Unlock()
	key := l.key(f.ID)
	if _, ok := l.flying[string(key)]; ok {
		return duplicate
	}
	if len(l.flying) >= l.limit {
		return full
	}
	if l.flying == nil {
		l.flying = map[string]request{}
	}
	r := request{append([]byte(nil), f.ID...), string(f.Method)}
	if r.listens() {
		l.listening++
	}
	l.flying[string(key)] = r
	return added
}

// done takes the request with that raw id out, answered or cancelled; ok is
// false if there is none.
func (l *ledger) done(id []byte) (r request, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	key := l.key(id)
	r, ok = l.flying[string(key)]
	if ok && r.listens() {
		l.listening--
	}
	delete(l.flying, string(key))
	return r, ok
}

// waiting counts the requests that somebody waits for.
func (l *ledger) waiting() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.flying) - l.listening
}

// drain takes all requests out and returns them.
func (l *ledger) drain() []request {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := make([]request, 0, len(l.flying))
	for _, r := range l.flying {
		all = append(all, r)
	}
	clear(l.flying)
	l.listening = 0
	return all
}
