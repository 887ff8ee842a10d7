package stream

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"example.com/broker/codec"
)

// A reply is what the server sends for one request; or, as number 0, what it
// sends for none. conn.mu guards its fields.
type reply struct {
	conn    *HTTPConn
	n       int
	alias   *codec.Alias
	id      []byte // raw, as the session knows it
	token   []byte // raw progressToken, as the session knows it
	method  string
	version string
	modern  bool
	wide    bool    // it has had a word of its upstream: that is HTTP
	events  []int64 // the lines that it consists of, by number; of the older era
	handed  int     // of events: how many a carrier has had
	by      *carrier
	over    bool // the response has been sent
}

// maxEvents and maxKept bound what one can come back to.
const (
	maxEvents = 4096 // of a reply
	maxKept   = 64   // replies that are over
)

// listen answers a GET.
func (c *HTTPConn) listen(w http.ResponseWriter, req *http.Request) {
	defer c.leave()
	rc := http.NewResponseController(w)
	rc.SetReadDeadline(time.Time{}) // or net/http would cut the stream
	rc.SetWriteDeadline(time.Time{})
	stream, after := 0, int64(-1)
	last := req.Header.Get(HeaderEvent)
	if last != "" {
		var ok bool
		if stream, after, ok = parseEventID(last); !ok {
			fail(w, http.StatusBadRequest, codeSession, nil, HeaderEvent+" is no id of this session's")
			return
		}
	}
	by := newCarrier(w, c.http.o)
	by.live = false
	c.mu.Lock()
	r := c.streams[stream]
	taken := r != nil && r.by != nil
	if r != nil && !taken {
		r.by = by
		if last == "" && r.handed > 0 {
			after = r.events[r.handed-1]
		}
	}
	c.mu.Unlock()
	switch {
	case r == nil:
		fail(w, http.StatusBadRequest, codeSession, nil, "the stream is not kept any more")
		return
	case taken:
		fail(w, http.StatusConflict, codeSession, nil, "the stream is open already")
		return
	}
	defer c.end(r, by)
	by.begin()
	if c.catchUp(req.Context(), r, by, after) && by.run(req.Context(), r) {
		c.catchUp(req.Context(), r, by, by.after)
		by.hurry()
	}
}

// catchUp sends what of a reply was sent after a line, and makes the carrier
// live. It is false if nothing more will come.
func (c *HTTPConn) catchUp(ctx context.Context, r *reply, by *carrier, after int64) bool {
	select {
	case <-c.recorded: // also of a session that has ended
	default:
		select {
		case <-c.recorded:
		case <-c.done:
			return false
		case <-ctx.Done():
			return false
		}
	}
	for {
		missed := map[int64]bool{}
		first := int64(-1)
		c.mu.Lock()
		for _, e := range r.events {
			if e > after {
				missed[e] = true
				if first < 0 {
					first = e
				}
			}
		}
		if len(missed) == 0 {
			by.live = true
			r.handed = len(r.events)
			over := r.over
			c.mu.Unlock()
			return !over
		}
		c.mu.Unlock()
		n, begins := first, true
		var b []byte
		for piece, err := range c.record.Delivered(ctx, first) {
			if err != nil {
				c.http.o.Log.Error("a stream cannot go on: the recording cannot be read", "error", err)
				return false
			}
			if missed[n] {
				if b = b[:0]; begins {
					b = r.appendEvent(b, n)
				}
				if b = append(b, piece.Bytes...); !piece.More {
					b = append(b, endOfEvent...)
				}
				if !by.write(b, false) {
					return false
				}
			}
			if begins = !piece.More; piece.More {
				continue
			}
			if missed[n] {
				delete(missed, n)
				if after = n; len(missed) == 0 {
					break
				}
			}
			n++
		}
		if len(missed) > 0 { // they will not come
			return false
		}
	}
}

// appendEvent appends what stands in front of a line in an event of a stream. Behind
// it stands endOfEvent.
func (r *reply) appendEvent(dst []byte, pos int64) []byte {
	if !r.modern {
		dst = fmt.Appendf(dst, "id: %d.%d\n", r.n, pos)
	}
	return append(dst, "event: message\ndata: "...)
}

const endOfEvent = "\n\n"

// appendPrime appends an event without data, for its id: that of a stream of
// which nothing has been sent. Revisions before 2025-11-25 know none.
func (r *reply) appendPrime(dst []byte) []byte {
	if r.modern || r.version < "2025-11-25" {
		return dst
	}
	return fmt.Appendf(dst, "id: %d.-1\ndata: \n\n", r.n)
}

// parseEventID reads the id of an event: its stream and its line.
func parseEventID(id string) (stream int, line int64, ok bool) {
	s, l, ok := strings.Cut(id, ".")
	if !ok {
		return 0, 0, false
	}
	stream, err := strconv.Atoi(s)
	line, lerr := strconv.ParseInt(l, 10, 64)
	return stream, line, err == nil && lerr == nil && stream >= 0 && line >= -1
}

// came notes that a line belongs to the reply: the last one ends it.
func (r *reply) came(pos int64, last bool) {
	if !r.modern {
		if r.events = append(r.events, pos); len(r.events) > maxEvents {
			r.events = r.events[1:]
			r.handed = max(r.handed-1, 0)
		}
		if last && r.n != 0 {
			r.conn.keep(r)
		}
	}
	r.over = r.over || last
}

// keep keeps a reply that is over for who comes back, and lets go of an older one.
func (c *HTTPConn) keep(r *reply) {
	if c.kept = append(c.kept, r.n); len(c.kept) > maxKept {
		delete(c.streams, c.kept[0])
		c.kept = c.kept[1:]
	}
}
