package agent

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"example.com/broker/codec"
	"example.com/broker/stream"
)

// follow brings the events of a stream until r is answered. Where the server
// closes the stream before, and has said how to come back, it does.
func (c *httpConn) follow(ctx context.Context, r *httpRequest, resp *http.Response) {
	var at position
	c.emit(note(stream.UpstreamStream, stream.Upstream{ID: r.id}))
	first := true
	held := longAnswer
	if r.isRead() {
		held = c.limit()
	}
	err := c.events(resp.Body, &at, held, func(e event) error {
		primes := first && e.id != "" && len(e.data) == 0
		first = false
		if primes {
			return c.emit(note(stream.UpstreamStream, stream.Upstream{ID: r.id, Primed: true}))
		}
		if len(e.data) == 0 && e.more == nil {
			return nil
		}
		if e.more != nil {
			whole, err := c.flow(r, io.MultiReader(bytes.NewReader(e.data), e.more))
			if err != nil {
				c.broken(ctx, r, err)
			}
			if err != nil || whole == nil {
				return err
			}
			e.data = whole
		}
		return c.line(r, e.data)
	})
	if !c.has(r) || ctx.Err() != nil {
		return
	}
	c.log.Debug("server has closed a stream before its answer", "method", r.method, "error", err)
	c.emit(note(stream.UpstreamPaused, stream.Upstream{ID: r.id, Retry: int(at.retry.Milliseconds())}))
	for at.id != "" && r.version == "" && ctx.Err() == nil {
		if !c.resume(ctx, r, &at) {
			break
		}
		if !c.has(r) {
			return
		}
	}
	if ctx.Err() == nil {
		c.fail(r, "the server has closed the stream before its answer")
	}
}

// resume goes on with a stream that was cut. It is false if that cannot be.
func (c *httpConn) resume(ctx context.Context, r *httpRequest, at *position) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(cmp.Or(at.retry, time.Second)):
	}
	resp, err := c.open(ctx, at.id)
	if err != nil {
		c.log.Warn("server cannot be reached; trying again", "error", err)
		at.failures++
		return at.failures < 10
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		c.log.Warn("server does not go on with a stream", "status", resp.StatusCode)
		return false
	}
	before := at.id
	c.events(resp.Body, at, c.limit(), func(e event) error {
		if len(e.data) == 0 {
			return nil
		}
		return c.line(r, e.data)
	})
	if at.id == before {
		at.failures++
	} else {
		at.failures = 0
	}
	return at.failures < 10
}

// open asks for a stream of events.
func (c *httpConn) open(ctx context.Context, last string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.up.URL, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "text/event-stream")
	if last != "" {
		req.Header.Set(stream.HeaderEvent, last)
	}
	return c.send(req)
}

// listen keeps the stream of what belongs to no request, if the server has one.
func (c *httpConn) listen() {
	var at position
	ctx := c.hearing
	for wait := time.Second; ctx.Err() == nil; {
		resp, err := c.open(ctx, at.id)
		if err == nil && resp.StatusCode != http.StatusOK {
			discard(resp)
			if resp.StatusCode/100 == 4 { // it has none
				return
			}
			err = fmt.Errorf("HTTP %d", resp.StatusCode)
		}
		if err == nil {
			err = c.events(resp.Body, &at, c.limit(), func(e event) error {
				wait = time.Second
				if len(e.data) == 0 {
					return nil
				}
				return c.line(nil, e.data)
			})
			resp.Body.Close()
		}
		if ctx.Err() != nil {
			return
		}
		c.log.Debug("server's stream has ended; it is opened again", "error", err)
		select {
		case <-ctx.Done():
		case <-time.After(cmp.Or(at.retry, wait)):
			wait = min(2*wait, 30*time.Second)
		}
	}
}

// An event of a stream (the HTML standard, section 9.2).
type event struct {
	id   string
	data []byte
	more io.Reader // of the data; nil: that is all
}

// A position is where a stream is, and when to come back to it.
type position struct {
	id       string
	retry    time.Duration
	failures int
}

// field takes a field of the stream. It is true if an event has begun with it.
func (at *position) field(name, value []byte) bool {
	switch string(name) {
	case "id":
		if !bytes.Contains(value, []byte{0}) {
			at.id = string(value)
			return true
		}
	case "retry":
		if ms, err := strconv.Atoi(string(value)); err == nil && ms >= 0 {
			at.retry = min(time.Duration(ms)*time.Millisecond, time.Minute)
		}
	}
	return false
}

var errEvent = errors.New("an event over the agent's limit for a frame")

// events reads events until the stream ends or each returns an error. Of one that is longer
// than held, and that nobody can come back for, it gives what has arrived, and more.
func (c *httpConn) events(body io.Reader, at *position, held int, each func(event) error) error {
	r := bufio.NewReaderSize(body, 32<<10)
	var data []byte
	seen := false // a field of the event under way
	kind := ""
	for {
		line, whole, err := readLine(r, nil, held)
		if err == nil && !whole {
			name, value := fieldOf(line)
			if string(name) == "data" && at.id == "" && isMessage(kind) && held < c.limit() {
				text := &eventText{r: r, at: at, rest: value}
				if err := each(event{data: data, more: text}); err != nil {
					return err
				}
				if !text.ended {
					return errEvent
				}
				data, seen, kind = nil, false, ""
				continue
			}
			line, whole, err = readLine(r, line, c.limit()+1024)
		}
		if err == nil && (!whole || len(line) > c.limit()+1024) {
			err = errEvent
		}
		if err != nil {
			return err
		}
		if len(line) == 0 {
			if seen {
				if isMessage(kind) || len(data) == 0 {
					text, err := codec.OneLine(bytes.TrimSuffix(data, []byte("\n")))
					if err != nil {
						c.log.Warn("server sent an event that is no frame", "error", err)
						text = []byte("?") // for the broker to end the session with
					}
					if err := each(event{id: at.id, data: text}); err != nil {
						return err
					}
				}
				data, seen, kind = nil, false, ""
			}
			continue
		}
		name, value := fieldOf(line)
		switch string(name) {
		case "data":
			seen = true
			if len(data)+len(value) > c.limit() {
				return errEvent
			}
			data = append(append(data, value...), '\n')
		case "id", "retry":
			seen = at.field(name, value) || seen
		case "event":
			seen, kind = true, string(value)
		}
	}
}

// fieldOf splits a line of a stream.
func fieldOf(line []byte) (name, value []byte) {
	name, value, _ = bytes.Cut(line, []byte(":"))
	return name, bytes.TrimPrefix(value, []byte(" "))
}

func isMessage(kind string) bool { return kind == "" || kind == "message" }

// readLine appends a line that ends in \n or \r\n. If that has more bytes than limit, it
// may return some of it: then it is not whole.
func readLine(r *bufio.Reader, line []byte, limit int) (_ []byte, whole bool, err error) {
	for {
		part, err := r.ReadSlice('\n')
		line = append(line, part...)
		switch {
		case err == nil:
			return bytes.TrimRight(line, "\r\n"), true, nil
		case !errors.Is(err, bufio.ErrBufferFull):
			return nil, false, err
		case len(line) > limit:
			return line, false, nil
		}
	}
}

// An eventText is the data of an event from the middle of a line on.
type eventText struct {
	r      *bufio.Reader
	at     *position
	rest   []byte // of the line under way, as far as it is there; valid until r is read
	begins bool   // what comes next from r begins a line
	other  bool   // the line under way is none of the data
	joins  bool   // a newline stands in front of rest
	ended  bool
}

// Read ends with io.EOF where the event does.
func (t *eventText) Read(p []byte) (int, error) {
	for len(t.rest) == 0 && !t.joins {
		if t.ended {
			return 0, io.EOF
		}
		part, err := t.r.ReadSlice('\n')
		switch {
		case err == nil:
			part = bytes.TrimRight(part, "\r\n")
		case err == io.EOF:
			return 0, io.ErrUnexpectedEOF
		case !errors.Is(err, bufio.ErrBufferFull):
			return 0, err
		}
		if t.begins {
			name, value := fieldOf(part)
			t.joins = string(name) == "data"
			t.other = !t.joins
			switch {
			case len(part) == 0:
				t.ended = true
			case string(name) == "event" && !isMessage(string(value)):
				return 0, errEvent
			default:
				t.at.field(name, value)
			}
			part = value
		}
		if !t.other {
			t.rest = part
		}
		t.begins = err == nil
	}
	if t.joins {
		t.joins, p[0] = false, '\n'
		return 1, nil
	}
	n := copy(p, t.rest)
	t.rest = t.rest[n:]
	return n, nil
}
