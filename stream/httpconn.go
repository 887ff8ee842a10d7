package stream

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"example.com/broker/codec"
)

// The notifications with which an agent that speaks HTTP to its server says how
// a frame came, so that an HTTP client gets it in the same way. They are between
// the agent and the HTTP edge: no client sees them, and they are not recorded.
//
//	upstream/stream  {id, primed}  the answer to this request is a stream; primed: the server began it with an id to come back with
//	upstream/related {id}          the next frame came in the stream of this request; without an id, in the one of no request
//	upstream/answer  {id}          the next frame is the answer to this request, as it arrives; if it is cut, the session goes on
//	upstream/paused  {id, retry}   the server has closed the stream before its answer; retry: when to come back, in ms
const (
	UpstreamPrefix  = "upstream/"
	UpstreamStream  = "upstream/stream"
	UpstreamRelated = "upstream/related"
	UpstreamAnswer  = "upstream/answer"
	UpstreamPaused  = "upstream/paused"
)

// Upstream is the params of such a notification.
type Upstream struct {
	ID     json.RawMessage `json:"id,omitempty"`
	Primed bool            `json:"primed,omitempty"`
	Retry  int             `json:"retry,omitempty"` // ms
}

// A Record is what an HTTPConn uses of its session's recording.
type Record struct {
	// Alias puts on record that a request goes to the server by another id.
	Alias func(a codec.Alias) error
	// Delivered yields the lines that were written to the conn, the from-th and all
	// after it, counted from 0.
	Delivered func(ctx context.Context, from int64) iter.Seq2[Piece, error]
}

// A Piece is a line without its newline, or a part of one: then there is More of it.
type Piece struct {
	Bytes []byte
	More  bool
}

// An HTTPConn is a session over HTTP: what the bodies of its requests hold comes
// out as lines, and a line that is written goes to the response that it belongs
// to. A line of the server's that belongs to a request of a client that is gone
// waits on record for the client to come back (Last-Event-ID), in the older era;
// in the newer one the request is cancelled.
type HTTPConn struct {
	http *HTTP
	id   string // Mcp-Session-Id; empty in the newer era
	key  string
	peer Peer
	name string // of the server

	out     net.Conn   // what the session reads from
	in      net.Conn   // its other end
	feeding sync.Mutex // held while a line goes in

	mu        sync.Mutex
	replies   map[string]*reply // to requests in flight, by key of the id that the session knows
	malformed []*reply          // to frames without an id, in the order in which they went in
	cancelled []string          // keys of requests that nobody waits for; they may be answered all the same
	streams   map[int]*reply    // of the older era, to go on with; 0 is the one of no request
	kept      []int             // of streams: those that are over, oldest first
	n         int               // replies so far
	sent      int64             // lines so far
	hint      *Upstream         // of the next line
	answer    *answer           // that is being written in parts; of the caller of Write, Flow and Cut
	status    int               // of the next response; 0: what is usual
	until     time.Time
	users     int // HTTP requests now
	rest      *time.Timer
	once      bool // for one request
	useful    bool // some request had a result
	ended     bool // takes no more input
	closed    bool

	record   Record
	recorded chan struct{} // closed when record is set
	done     chan struct{} // closed by Close
	hurry    *time.Timer   // of the write deadline
	late     chan struct{} // closed by it
	lateOnce sync.Once
}

func newHTTPConn(h *HTTP, v Visitor) *HTTPConn {
	c := &HTTPConn{
		http: h, key: v.Key, peer: v.Peer, name: v.Server,
		replies: map[string]*reply{}, streams: map[int]*reply{},
		recorded: make(chan struct{}), done: make(chan struct{}), late: make(chan struct{}),
	}
	c.in, c.out = net.Pipe()
	c.streams[0] = &reply{conn: c}
	return c
}

// SetRecord says where the session is on record.
func (c *HTTPConn) SetRecord(r Record) {
	c.mu.Lock()
	c.record = r
	c.mu.Unlock()
	close(c.recorded)
}

// Proven is until when the identity behind the session is proven: each request
// proves it again.
func (c *HTTPConn) Proven() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.until
}

// SetStatus makes status that of the responses from here on: the client may not
// be here at all.
func (c *HTTPConn) SetStatus(status int) {
	c.mu.Lock()
	c.status = status
	c.mu.Unlock()
}

// enter counts an HTTP request in. It is false if the session has ended.
func (c *HTTPConn) enter(until time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended || c.closed {
		return false
	}
	if until.After(c.until) {
		c.until = until
	}
	c.users++
	if c.rest != nil {
		c.rest.Stop()
	}
	return true
}

// probeTime is how long a session rests that has had no result yet: a client may
// only have tried whether the server is of the newer era.
const probeTime = 5 * time.Second

// leave counts an HTTP request out. A session that nobody uses ends after a while.
func (c *HTTPConn) leave() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.users--; c.users > 0 || c.ended {
		return
	}
	wait := c.http.o.Away
	if c.id == "" {
		wait = c.http.o.Rest
	}
	switch {
	case c.once:
		wait = 0
	case !c.useful:
		wait = min(wait, probeTime)
	}
	if c.rest != nil {
		c.rest.Stop()
	}
	c.rest = time.AfterFunc(wait, func() {
		c.mu.Lock()
		idle := c.users == 0
		if idle {
			c.ended = true // nobody comes in between
		}
		c.mu.Unlock()
		if idle {
			c.CloseInput()
		}
	})
}

// CloseInput ends the session's input, in order. No request finds it any more.
func (c *HTTPConn) CloseInput() {
	c.http.forget(c)
	c.mu.Lock()
	c.ended = true
	c.mu.Unlock()
	c.in.Close()
}

// feed gives the session a line of the client's, and returns when it has it.
func (c *HTTPConn) feed(line []byte) error {
	c.feeding.Lock()
	defer c.feeding.Unlock()
	_, err := c.in.Write(append(line, '\n'))
	return err
}

// rawKey is an id or a token as both sides understand it: "a" and "\u0061" are one.
func rawKey(raw []byte) string {
	if len(raw) > 0 && raw[0] == '"' {
		return string(codec.Unquote([]byte{'"'}, raw))
	}
	return string(raw)
}

// begin makes place for the reply to p. In a session that clients share, a
// request whose id or token is taken goes by another.
func (c *HTTPConn) begin(p *posted, by *carrier) (*reply, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, errNoSession
	}
	c.n++
	r := &reply{conn: c, n: c.n, id: p.id, token: p.token, method: p.method, version: p.version, modern: p.modern, by: by}
	if p.malformed && (p.id == nil || string(p.id) == "null") {
		c.malformed = append(c.malformed, r)
		return r, nil
	}
	_, taken := c.replies[rawKey(r.id)]
	taken = taken || r.modern && slices.Contains(c.cancelled, rawKey(r.id))
	if taken && !r.modern {
		return nil, errTaken
	}
	if !taken && r.modern && r.token != nil {
		for _, other := range c.replies {
			taken = taken || other.token != nil && rawKey(other.token) == rawKey(r.token)
		}
	}
	if taken {
		a := &codec.Alias{ID: r.id, Token: r.token}
		for n := c.n; taken; n++ {
			a.As = fmt.Appendf(nil, `"broker-%d"`, n)
			_, taken = c.replies[rawKey(a.As)]
		}
		r.alias, r.id = a, a.As
		if r.token != nil {
			r.token = a.As
		}
	}
	c.replies[rawKey(r.id)] = r
	if !r.modern {
		c.streams[r.n] = r
	}
	return r, nil
}

// end is called when the response that carried a reply has ended.
func (c *HTTPConn) end(r *reply, by *carrier) {
	c.mu.Lock()
	if r.by == by {
		r.by = nil
	}
	cancel := r.modern && !r.over && !c.ended && !c.closed && r.id != nil
	if r.modern {
		r.over = true // nobody comes back for it
	}
	c.mu.Unlock()
	if cancel {
		// To close a response is to cancel the request, in the newer era.
		c.feed(codec.AppendRequest(nil, nil, "notifications/cancelled", map[string]any{
			"requestId": json.RawMessage(r.id), "reason": "the client has closed the response",
		}))
		c.mu.Lock()
		if c.replies[rawKey(r.id)] == r {
			delete(c.replies, rawKey(r.id))
			if c.cancelled = append(c.cancelled, rawKey(r.id)); len(c.cancelled) > maxCancelled {
				c.cancelled = c.cancelled[1:]
			}
		}
		c.mu.Unlock()
	}
}

// maxCancelled is how many ids of cancelled requests are given to nobody else.
const maxCancelled = 256

// carry gives the session the frame of a POST and answers with the reply. It
// returns errNoSession, and has answered nothing, if the session has ended before.
func (c *HTTPConn) carry(w http.ResponseWriter, req *http.Request, p *posted) error {
	defer c.leave()
	if !p.request && !p.malformed {
		if c.feed(p.line) != nil {
			return errNoSession
		}
		if p.cancels != nil {
			c.giveUp(p.cancels)
		}
		w.WriteHeader(http.StatusAccepted)
		return nil
	}
	by := newCarrier(w, c.http.o)
	if p.method == "initialize" {
		by.session = c.id
	}
	r, err := c.begin(p, by)
	if err != nil {
		return err
	}
	line := p.line
	if r.alias != nil {
		if err := c.note(*r.alias); err != nil {
			c.drop(r)
			return err
		}
		line = r.alias.Conceal(nil, line)
	}
	if c.feed(line) != nil {
		c.drop(r)
		return errNoSession
	}
	defer c.end(r, by)
	by.run(req.Context(), r)
	return nil
}

// note puts an alias on record.
func (c *HTTPConn) note(a codec.Alias) error {
	select {
	case <-c.recorded:
	case <-c.done:
		return errNoSession
	}
	if err := c.record.Alias(a); err != nil {
		c.http.o.Log.Error("request refused: the recorder is not available", "error", err)
		return errNoRecord
	}
	return nil
}

// drop takes out the reply to a frame that has not reached the session.
func (c *HTTPConn) drop(r *reply) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r.over = true
	delete(c.streams, r.n)
	c.malformed = slices.DeleteFunc(c.malformed, func(other *reply) bool { return other == r })
	if c.replies[rawKey(r.id)] == r {
		delete(c.replies, rawKey(r.id))
	}
}

// giveUp ends the reply to a request that the client has cancelled: the server
// will not.
func (c *HTTPConn) giveUp(id []byte) {
	c.mu.Lock()
	r := c.replies[rawKey(id)]
	if r == nil || r.modern { // in the newer era an id alone does not say whose it is
		c.mu.Unlock()
		return
	}
	delete(c.replies, rawKey(id))
	r.over = true
	c.keep(r)
	by := r.by
	c.mu.Unlock()
	if by != nil {
		by.begin()
		by.pause(0)
	}
}

// Read gives the session what clients send.
func (c *HTTPConn) Read(p []byte) (int, error) { return c.out.Read(p) }

// Write takes lines of the session's, whole but for an answer that [HTTPConn.Flow] has
// named, and sends them on. It waits for a client that is slow, for a while; that a
// client is gone is no error.
func (c *HTTPConn) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0; {
		line, more, ended := bytes.Cut(rest, []byte("\n"))
		rest = more
		ok := false
		if c.answer != nil {
			ok = c.part(line, ended)
		} else {
			ok = c.deliver(line)
		}
		if !ok {
			return 0, net.ErrClosed
		}
	}
	return len(p), nil
}

// Relay takes a notification of the agent's about the frames that follow.
func (c *HTTPConn) Relay(line []byte) {
	var up Upstream
	if json.Unmarshal(codec.Member(line, "params"), &up) != nil {
		return
	}
	method := string(codec.Unquote(nil, codec.Member(line, "method")))
	c.mu.Lock()
	if method == UpstreamRelated {
		c.hint = &up
		c.mu.Unlock()
		return
	}
	r := c.replies[rawKey(up.ID)]
	if r == nil {
		c.mu.Unlock()
		return
	}
	r.wide = true
	by := r.by
	c.mu.Unlock()
	if by == nil {
		return
	}
	switch method {
	case UpstreamStream:
		by.begin()
		if up.Primed {
			by.prime(r)
		}
	case UpstreamPaused:
		by.pause(up.Retry)
	}
}

// deliver sends one line on. It is false if the conn is closed.
func (c *HTTPConn) deliver(line []byte) bool {
	var id, method, params, result []byte
	for name, value := range codec.Members(line) {
		switch string(name) {
		case "id":
			id = value
		case "method":
			method = value
		case "params":
			params = value
		case "result":
			result = value
		}
	}
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return false
	}
	pos := c.sent
	c.sent++
	c.useful = c.useful || result != nil
	hint := c.hint
	c.hint = nil
	var r *reply
	if method == nil {
		r = c.answered(id)
	} else {
		r = c.related(string(codec.Unquote(nil, method)), params, hint)
	}
	if r == nil { // nobody waits for it
		c.mu.Unlock()
		return true
	}
	last := method == nil
	r.came(pos, last)
	by := r.by
	if by != nil && !by.live { // it is being caught up, and reads this from the record
		by = nil
	}
	if by != nil {
		r.handed = len(r.events)
	}
	status := c.status
	c.mu.Unlock()
	if result != nil && r.method == "tools/list" {
		c.http.learn(c.name, result)
	}
	if r.alias != nil {
		line = r.alias.Reveal(nil, line)
	}
	if by != nil {
		by.send(r, line, pos, last, status)
	}
	return true
}

// answered returns the reply that a response ends, and takes it out.
func (c *HTTPConn) answered(id []byte) *reply {
	if string(id) == "null" {
		if len(c.malformed) == 0 {
			return nil
		}
		r := c.malformed[0]
		c.malformed = c.malformed[1:]
		return r
	}
	key := rawKey(id)
	r := c.replies[key]
	delete(c.replies, key)
	return r
}

// related returns the reply that a request or a notification of the server's
// belongs to. Where nobody says, it is the newest request: over a byte stream,
// servers do not tell.
func (c *HTTPConn) related(method string, params []byte, hint *Upstream) *reply {
	if method == "notifications/progress" {
		token := rawKey(codec.Member(params, "progressToken"))
		for _, r := range c.replies {
			if r.token != nil && rawKey(r.token) == token {
				return r
			}
		}
	}
	if id := codec.Member(codec.Member(params, "_meta"), "io.modelcontextprotocol/subscriptionId"); id != nil {
		return c.replies[rawKey(id)]
	}
	if hint != nil {
		if hint.ID == nil {
			return c.streams[0]
		}
		return c.replies[rawKey(hint.ID)]
	}
	general := strings.HasSuffix(method, "/list_changed") || method == "notifications/resources/updated"
	none := c.streams[0]
	if general && none.by != nil {
		return none
	}
	var newest *reply // first of those that a client listens to
	for _, r := range c.replies {
		if r.method != "subscriptions/listen" && (newest == nil || r.by != nil && newest.by == nil || r.n > newest.n && (r.by == nil) == (newest.by == nil)) {
			newest = r
		}
	}
	switch {
	case newest != nil && (newest.by != nil || none.by == nil && !general):
		return newest
	case c.id == "":
		return nil // the newer era has no stream of no request
	}
	return none
}

// Close ends the session. What has been written is still sent.
func (c *HTTPConn) Close() error {
	c.http.forget(c)
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil
	}
	c.closed, c.ended = true, true
	if c.rest != nil {
		c.rest.Stop()
	}
	if c.hurry != nil {
		c.hurry.Stop()
	}
	close(c.done)
	c.mu.Unlock()
	c.in.Close()
	return c.out.Close()
}

// CloseWrite does nothing: what ends is each response.
func (c *HTTPConn) CloseWrite() error { return nil }

func (c *HTTPConn) LocalAddr() net.Addr  { return c.out.LocalAddr() }
func (c *HTTPConn) RemoteAddr() net.Addr { return c.peer.Addr }

func (c *HTTPConn) SetDeadline(t time.Time) error {
	c.SetWriteDeadline(t)
	return c.SetReadDeadline(t)
}

func (c *HTTPConn) SetReadDeadline(t time.Time) error { return c.out.SetReadDeadline(t) }

// SetWriteDeadline says until when Write waits for slow clients; what comes later
// is not sent. It can only be brought nearer.
func (c *HTTPConn) SetWriteDeadline(t time.Time) error {
	if t.IsZero() {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.hurry != nil {
		c.hurry.Stop()
	}
	c.hurry = time.AfterFunc(time.Until(t), func() { c.lateOnce.Do(func() { close(c.late) }) })
	return nil
}
