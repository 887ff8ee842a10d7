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
	err := c.events(resp.Body, &at, func(e event) error {
		primes := first && e.id != "" && len(e.data) == 0
		first = false
		if primes {
			return c.emit(note(stream.UpstreamStream, stream.Upstream{ID: r.id, Primed: true}))
		}
		if len(e.data) == 0 {
			return nil
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
	c.events(resp.Body, at, func(e event) error {
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
			err = c.events(resp.Body, &at, func(e event) error {
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
}

// A position is where a stream is, and when to come back to it.
type position struct {
	id       string
	retry    time.Duration
	failures int
}

var errEvent = errors.New("an event over the agent's limit for a frame")

// events reads events until the stream ends or each returns an error.
func (c *httpConn) events(body io.Reader, at *position, each func(event) error) error {
	r := bufio.NewReaderSize(body, 32<<10)
	var data []byte
	seen := false // a field of the event under way
	kind := ""
	for {
		line, err := readLine(r, c.limit()+1024)
		if err != nil {
			return err
		}
		if len(line) == 0 {
			if seen {
				if kind == "" || kind == "message" || len(data) == 0 {
					text, err := codec.OneLine(bytes.TrimSuffix(data, []byte("\n")))
					if err != nil {
						c.log.Warn("server sent an event that is no frame", "error", err)
						text = []byte("?") // for the broker to end the session with
					}
					if err := each(event{at.id, text}); err != nil {
						return err
					}
				}
				data, seen, kind = nil, false, ""
			}
			continue
		}
		name, value, _ := bytes.Cut(line, []byte(":"))
		value = bytes.TrimPrefix(value, []byte(" "))
		switch string(name) {
		case "data":
			seen = true
			if len(data)+len(value) > c.limit() {
				return errEvent
			}
			data = append(append(data, value...), '\n')
		case "id":
			if !bytes.Contains(value, []byte{0}) {
				seen = true
				at.id = string(value)
			}
		case "event":
			seen, kind = true, string(value)
		case "retry":
			if ms, err := strconv.Atoi(string(value)); err == nil && ms >= 0 {
				at.retry = min(time.Duration(ms)*time.Millisecond, time.Minute)
			}
		}
	}
}

// readLine reads a line that ends in \n, \r\n or \r. It is valid until the next read.
func readLine(r *bufio.Reader, limit int) ([]byte, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		line = append(line, part...)
		if len(line) > limit {
			return nil, errEvent
		}
		switch {
		case err == nil:
			return bytes.TrimRight(line, "\r\n"), nil
		case errors.Is(err, bufio.ErrBufferFull):
		default:
			return nil, err
		}
	}
}
