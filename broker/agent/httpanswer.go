package agent

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"example.com/broker/codec"
	"example.com/broker/stream"
)

// longAnswer is how many bytes of an answer are held. A longer one passes while it
// arrives, and the session's others wait behind it.
const longAnswer = 512 << 10

// isRead reports whether the agent reads the answer to r: see answered.
func (r *httpRequest) isRead() bool { return r.method == "initialize" || r.method == "tools/list" }

// inJSON brings an answer that is a body in JSON.
func (c *httpConn) inJSON(ctx context.Context, r *httpRequest, resp *http.Response) {
	body, err := io.ReadAll(io.LimitReader(resp.Body, longAnswer+1))
	if text := io.MultiReader(bytes.NewReader(body), resp.Body); err == nil && len(body) > longAnswer {
		if resp.StatusCode == http.StatusOK && !r.isRead() {
			body, err = c.flow(r, text)
		} else {
			body, err = io.ReadAll(io.LimitReader(text, int64(c.limit())+1))
		}
	}
	if err == nil && len(body) > c.limit() {
		err = &codec.Error{Code: codec.CodeTooLarge, Reason: "the frame is too large"}
	}
	switch {
	case err != nil:
		c.broken(ctx, r, err)
	case body != nil && ctx.Err() == nil:
		c.body(r, resp, body)
	}
}

// flow brings the answer to r while it arrives. Where that cannot be it returns all of it,
// to be brought as others are.
func (c *httpConn) flow(r *httpRequest, text io.Reader) (whole []byte, err error) {
	w := &watched{Reader: text, stall: cmp.Or(c.up.Stall, time.Minute), cancel: r.cancel}
	lines := codec.NewReader(io.MultiReader(&oneLine{text: w}, strings.NewReader("\n")), codec.Limits{Frame: c.limit(), Held: longAnswer / 4})
	whole, err = lines.Next()
	if err == codec.ErrLong {
		if id, ok := lines.Long(); ok && (id == nil || keyOf(id) == keyOf(r.id)) {
			whole, err = nil, c.pass(r, lines)
		} else {
			lines.Whole()
			whole, err = lines.Next()
		}
	}
	if err != nil && w.stalled.Load() {
		err = errStalled
	}
	return bytes.Clone(bytes.TrimLeft(whole, " \t")), err
}

// A watched is what a server sends: to read on is given up when it sends nothing for too long.
type watched struct {
	io.Reader
	stall   time.Duration
	cancel  context.CancelFunc
	stalled atomic.Bool
}

func (w *watched) Read(p []byte) (int, error) {
	t := time.AfterFunc(w.stall, func() {
		w.stalled.Store(true)
		w.cancel()
	})
	defer t.Stop()
	return w.Reader.Read(p)
}

var errStalled = errors.New("nothing more came of it for too long")

// A oneLine is a JSON text without newlines, nor white space behind it. Newlines become
// tabs, which are white space where those are, and where those may not be, in strings, tabs
// may not be either.
type oneLine struct {
	text  io.Reader
	buf   [32 << 10]byte
	out   []byte // of buf, and behind it
	space []byte // which may be at the end of the text
	err   error
}

// Read implements [io.Reader].
func (l *oneLine) Read(p []byte) (int, error) {
	for len(l.out) == 0 {
		if l.err != nil {
			return 0, l.err
		}
		held := copy(l.buf[:], l.space)
		n := 0
		n, l.err = l.text.Read(l.buf[held:])
		b := l.buf[:held+n]
		for i, c := range b {
			if c == '\n' || c == '\r' {
				b[i] = '\t'
			}
		}
		end := len(bytes.TrimRight(b, " \t"))
		if end == 0 && len(b) == len(l.buf) { // whoever pads so much
			end = len(b)
		}
		l.out, l.space = b[:end], b[end:]
	}
	n := copy(p, l.out)
	l.out = l.out[n:]
	return n, nil
}

// pass brings the answer to r of which lines has said that it is long.
func (c *httpConn) pass(r *httpRequest, lines *codec.Reader) error {
	c.saying.Lock()
	defer c.saying.Unlock()
	c.mu.Lock()
	r.passes = true
	c.mu.Unlock()
	p := codec.AcquireParser()
	defer p.Release()
	begun := false
	f, _, err := p.Flow(lines, nil, "", func(part codec.Part) error {
		if !begun {
			begun = true
			if _, err := c.output.Write(append(note(stream.UpstreamAnswer, stream.Upstream{ID: r.id}), '\n')); err != nil {
				return err
			}
		}
		_, err := c.output.Write(part.Bytes)
		return err
	})
	if begun { // what was cut is no frame
		c.output.Write([]byte("\n"))
	}
	if err == nil && keyOf(f.ID) == keyOf(r.id) { // or the broker ends the session
		c.mu.Lock()
		delete(c.flying, keyOf(r.id))
		c.mu.Unlock()
	}
	return err
}

// errLost is what a client is told of a request that the server has not
// answered; the reason is in the agent's log.
const errLost = "the server has not answered"

// broken answers a request whose answer cannot be brought.
func (c *httpConn) broken(ctx context.Context, r *httpRequest, err error) {
	var bad *codec.Error
	switch {
	case ctx.Err() != nil && err != errStalled:
	case errors.As(err, &bad) && bad.Code == codec.CodeTooLarge:
		c.log.Error("server's answer is over the limit", "method", r.method, "limit", c.limit(), "error", err)
		c.fail(r, "the server's answer is over the agent's limit for a frame")
	case errors.As(err, &bad):
		c.log.Error("server sent what is not a valid frame", "method", r.method, "error", err)
		c.fail(r, "the server sent what is not a valid frame")
		c.in.Close() // the session ends
	default:
		c.log.Error("server's answer is cut", "method", r.method, "error", err)
		c.fail(r, errLost)
	}
}

// body brings all of an answer in JSON.
func (c *httpConn) body(r *httpRequest, resp *http.Response, body []byte) {
	line, err := codec.OneLine(body)
	if err != nil || len(line) == 0 {
		c.refused(r, resp)
		return
	}
	if !json.Valid(line) { // for the broker to judge
		c.emit(line)
		return
	}
	if line[0] == '[' { // a batch, in 2025-03-26
		for one := range codec.Elements(line) {
			c.line(r, bytes.Clone(one))
		}
	} else if resp.StatusCode == http.StatusOK || codec.Member(line, "error") != nil {
		if id := codec.Member(line, "id"); resp.StatusCode != http.StatusOK && (id == nil || string(id) == "null") {
			line = answering(r, line, id)
		}
		c.line(r, line)
	}
	if c.has(r) {
		c.refused(r, resp)
	}
}

// answering makes an error that names no request the answer to r.
func answering(r *httpRequest, line, id []byte) []byte {
	if id != nil {
		return codec.Splice(nil, line, id, r.id)
	}
	e := codec.Member(line, "error")
	return slices.Concat([]byte(`{"jsonrpc":"2.0","id":`), r.id, []byte(`,"error":`), e, []byte("}"))
}

// has reports whether r still waits for its answer.
func (c *httpConn) has(r *httpRequest) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.flying[keyOf(r.id)] == r
}

// line brings a frame of the server's that came in answer to r; nil: to nothing.
func (c *httpConn) line(r *httpRequest, line []byte) error {
	if len(line) == 0 || line[0] != '{' || !json.Valid(line) {
		c.log.Warn("server sent what is no frame", "bytes", len(line))
		return c.emit(line) // for the broker to judge
	}
	method := codec.Member(line, "method")
	if method != nil {
		if bytes.HasPrefix(codec.Unquote(nil, method), []byte(stream.UpstreamPrefix)) {
			c.log.Warn("server speaks as if it were the agent; that is left out")
			return nil
		}
		var about stream.Upstream
		if r != nil {
			about.ID = r.id
		}
		return c.emit(note(stream.UpstreamRelated, about), line)
	}
	id := codec.Member(line, "id")
	c.mu.Lock()
	asked := c.flying[keyOf(id)]
	delete(c.flying, keyOf(id))
	c.mu.Unlock()
	if asked != nil {
		if result := codec.Member(line, "result"); result != nil {
			c.answered(asked, result)
		}
	}
	return c.emit(line)
}

// answered notes what a result says of the session.
func (c *httpConn) answered(r *httpRequest, result []byte) {
	switch r.method {
	case "initialize":
		if v := codec.Member(result, "protocolVersion"); len(v) > 1 && v[0] == '"' {
			c.mu.Lock()
			c.version = string(codec.Unquote(nil, v))
			c.mu.Unlock()
		}
	case "tools/list":
		c.up.tools.Learn(result)
	}
}

// note is a notification to the broker's edge.
func note(method string, about stream.Upstream) []byte {
	return codec.AppendRequest(nil, nil, method, about)
}

// emit puts lines out, together.
func (c *httpConn) emit(lines ...[]byte) error {
	c.saying.Lock()
	defer c.saying.Unlock()
	for _, line := range lines {
		if _, err := c.output.Write(append(line[:len(line):len(line)], '\n')); err != nil {
			return err
		}
	}
	return nil
}

// fail answers a request that the server has not.
func (c *httpConn) fail(r *httpRequest, message string) {
	c.mu.Lock()
	waits := c.flying[keyOf(r.id)] == r
	delete(c.flying, keyOf(r.id))
	silent := c.silent
	c.mu.Unlock()
	if waits && !silent {
		c.emit(codec.AppendError(nil, r.id, 502, message, nil))
	}
}
