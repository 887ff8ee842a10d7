package agent

import (
	"bytes"
	"encoding/json"
	"net/http"
	"slices"

	"example.com/broker/codec"
	"example.com/broker/stream"
)

// body brings an answer in JSON.
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
