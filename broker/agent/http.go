package agent

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"mime"
	"net"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"example.com/broker/broker/agent/credential"
	"example.com/broker/codec"
	"example.com/broker/stream"
)

// HTTP is an upstream that speaks MCP's Streamable HTTP, in both eras. Sessions
// share its connections, and nothing else.
type HTTP struct {
	URL        string
	Header     func() (http.Header, error) // of every request; may be nil
	Credential credential.Source           // may be nil
	Transport  *http.Transport             // if nil, NewTransport's
	Frame      int                         // largest frame of the server's, in bytes; if zero, 64 MiB

	once   sync.Once
	client *http.Client
	tools  stream.ToolHeaders
}

// NewTransport returns a transport with the timeouts of HTTP upstreams. answer
// is how long a server may take until its answer begins; if zero, 10 min.
func NewTransport(config *tls.Config, answer time.Duration) *http.Transport {
	d := &net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}
	t := &http.Transport{
		Proxy: http.ProxyFromEnvironment, DialContext: d.DialContext, TLSClientConfig: config, TLSHandshakeTimeout: 10 * time.Second,
		ForceAttemptHTTP2: true, MaxIdleConnsPerHost: 64, IdleConnTimeout: 90 * time.Second, ResponseHeaderTimeout: cmp.Or(answer, 10*time.Minute),
		MaxResponseHeaderBytes: 64 << 10,
		DisableCompression:     true, // of secrets together with what others choose
	}
	return t
}

// Open starts a session. Nothing is sent before its first frame.
func (u *HTTP) Open(_ context.Context, s Session, log *slog.Logger) (Conn, error) {
	u.once.Do(func() {
		transport := u.Transport
		if transport == nil {
			transport = NewTransport(nil, 0)
		}
		u.client = &http.Client{
			Transport: transport,
			// It would take the credential elsewhere.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		}
	})
	c := &httpConn{up: u, session: s, log: log, flying: map[string]*httpRequest{}, done: make(chan struct{})}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.hearing, c.deaf = context.WithCancel(c.ctx)
	c.input, c.in = io.Pipe()
	c.out, c.output = io.Pipe()
	go c.run()
	return c, nil
}

// An httpConn is one session with an HTTP server. Its goroutine run takes the
// client's frames in order; each request has one of its own until it is answered,
// and there is one for the stream of what belongs to no request.
type httpConn struct {
	up      *HTTP
	session Session
	log     *slog.Logger
	ctx     context.Context
	cancel  context.CancelFunc
	hearing context.Context // of the stream of no request; done when the client's input has ended
	deaf    context.CancelFunc
	done    chan struct{} // closed when run has returned

	input  *io.PipeReader // the client's frames
	in     *io.PipeWriter
	out    *io.PipeReader // the server's
	output *io.PipeWriter
	saying sync.Mutex // held while frames that belong together go out

	requests sync.WaitGroup
	mu       sync.Mutex
	id       string // Mcp-Session-Id, of the older era
	version  string // that was agreed on, in the older era
	flying   map[string]*httpRequest
	silent   bool // the session is being closed: nothing more goes out
}

// An httpRequest is a request of the client's in flight.
type httpRequest struct {
	line    []byte
	id      []byte // raw
	method  string
	version string // of the newer era, or ""
	header  http.Header
	tool    string // of a tools/call
	cancel  context.CancelFunc
}

func (c *httpConn) Read(p []byte) (int, error)  { return c.out.Read(p) }
func (c *httpConn) Write(p []byte) (int, error) { return c.in.Write(p) }

// CloseWrite ends the client's input: what is in flight is still answered.
func (c *httpConn) CloseWrite() error { return c.in.Close() }

// Close ends the session, at the server too.
func (c *httpConn) Close() error {
	c.mu.Lock()
	c.silent = true
	c.mu.Unlock()
	c.cancel()
	c.in.Close()
	c.input.CloseWithError(net.ErrClosed)
	c.out.Close()
	<-c.done
	return nil
}

// endTime bounds the server's part in the end of a session.
const endTime = 5 * time.Second

func (c *httpConn) run() {
	defer close(c.done)
	frames := codec.NewReader(c.input, codec.Limits{Frame: c.limit()})
	for {
		line, err := frames.Next()
		if err != nil {
			break
		}
		if len(bytes.TrimSpace(line)) > 0 {
			c.frame(line)
		}
	}
	c.deaf()
	c.requests.Wait()
	c.end()
	c.cancel()
	c.output.Close()
}

func (c *httpConn) limit() int { return cmp.Or(c.up.Frame, 64<<20) }

// frame takes one frame of the client, which the broker has judged.
func (c *httpConn) frame(line []byte) {
	var p codec.Parser
	f, err := p.Parse(line, codec.C2S)
	if err != nil {
		c.log.Error("the broker sent what is no frame", "error", err)
		return
	}
	r := &httpRequest{
		line: bytes.Clone(line), id: bytes.Clone(f.ID), method: string(f.Method), version: stream.VersionOf(f), header: http.Header{},
	}
	if r.version >= stream.StatelessVersion {
		stream.SetHeaders(r.header, f, &c.up.tools)
		if r.method == "tools/call" {
			r.tool = string(f.Name)
		}
	}
	if f.Kind != codec.Request {
		if r.method == "notifications/cancelled" && c.cancelRequest(codec.Member(f.Params, "requestId")) {
			return
		}
		c.tell(r)
		return
	}
	ctx, cancel := context.WithCancel(c.ctx)
	r.cancel = cancel
	c.mu.Lock()
	c.flying[keyOf(r.id)] = r
	c.mu.Unlock()
	ask := func() {
		defer cancel()
		c.ask(ctx, r)
		c.mu.Lock()
		if c.flying[keyOf(r.id)] == r {
			delete(c.flying, keyOf(r.id))
		}
		c.mu.Unlock()
	}
	if r.method == "initialize" { // what follows needs what it brings
		ask()
		return
	}
	c.requests.Go(ask)
}

// keyOf is an id as both sides understand it: "a" and "\u0061" are one.
func keyOf(id []byte) string {
	if len(id) > 1 && id[0] == '"' {
		return string(codec.Unquote([]byte{'"'}, id))
	}
	return string(id)
}

// cancelRequest ends a request of the newer era, in which to close the response
// is to cancel. It is false for any other.
func (c *httpConn) cancelRequest(id []byte) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.flying[keyOf(id)]
	if r == nil || r.version < stream.StatelessVersion {
		return false
	}
	delete(c.flying, keyOf(id))
	r.cancel()
	return true
}

// post sends a frame.
func (c *httpConn) post(ctx context.Context, r *httpRequest) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.up.URL, bytes.NewReader(r.line))
	if err != nil {
		return nil, err
	}
	maps.Copy(req.Header, r.header)
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json, text/event-stream")
	if r.version != "" {
		req.Header.Set(stream.HeaderVersion, r.version)
	}
	return c.send(req)
}

// send adds what every request has. net/http tries again by itself where nothing
// was sent, and there only.
func (c *httpConn) send(req *http.Request) (*http.Response, error) {
	c.mu.Lock()
	id, version := c.id, c.version
	c.mu.Unlock()
	if req.Header.Get(stream.HeaderVersion) == "" {
		if version != "" {
			req.Header.Set(stream.HeaderVersion, version)
		}
		if id != "" {
			req.Header.Set(stream.HeaderSession, id)
		}
	}
	req.Header.Set("User-Agent", "mcp-broker-agent")
	if c.up.Header != nil {
		h, err := c.up.Header()
		if err != nil {
			return nil, err
		}
		maps.Copy(req.Header, h)
	}
	if c.up.Credential != nil {
		if err := c.up.Credential.Authorize(req, credential.Session(c.session)); err != nil {
			return nil, err
		}
	}
	return c.up.client.Do(req)
}

// tell sends what has no answer: a notification, or a response of the client's.
func (c *httpConn) tell(r *httpRequest) {
	ctx, cancel := context.WithTimeout(c.ctx, 30*time.Second)
	defer cancel()
	resp, err := c.post(ctx, r)
	if err != nil {
		if c.ctx.Err() == nil {
			c.log.Warn("server does not take a frame", "method", r.method, "error", err)
		}
		return
	}
	defer discard(resp)
	if resp.StatusCode/100 != 2 {
		c.log.Warn("server refuses a frame", "method", r.method, "status", resp.StatusCode)
		return
	}
	if r.method == "notifications/initialized" {
		c.requests.Go(c.listen)
	}
}

// discard reads the rest of a body, so that its connection can be used again.
func discard(resp *http.Response) {
	io.CopyN(io.Discard, resp.Body, 64<<10)
	resp.Body.Close()
}

// errLost is what a client is told of a request that the server has not
// answered; the reason is in the agent's log.
const errLost = "the server has not answered"

// ask sends a request and brings its answer, whatever becomes of it.
func (c *httpConn) ask(ctx context.Context, r *httpRequest) {
	resp, err := c.post(ctx, r)
	if err == nil && resp.StatusCode == http.StatusBadRequest && r.tool != "" && !c.up.tools.Knows(r.tool) {
		// The server may want arguments in headers; nothing has been done yet.
		discard(resp)
		c.learn(ctx, r)
		resp, err = c.post(ctx, r)
	}
	if err != nil {
		if ctx.Err() == nil {
			c.log.Error("server cannot be reached", "method", r.method, "error", err)
			c.fail(r, errLost)
		}
		return
	}
	defer resp.Body.Close()
	if r.method == "initialize" && resp.StatusCode == http.StatusOK {
		c.mu.Lock()
		c.id = resp.Header.Get(stream.HeaderSession)
		c.mu.Unlock()
	}
	kind, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	switch {
	case resp.StatusCode == http.StatusOK && kind == "text/event-stream":
		c.follow(ctx, r, resp)
	case kind == "application/json" && (resp.StatusCode == http.StatusOK || resp.StatusCode/100 == 4 || resp.StatusCode/100 == 5):
		body, err := io.ReadAll(io.LimitReader(resp.Body, int64(c.limit())+1))
		switch {
		case ctx.Err() != nil:
		case err != nil:
			c.log.Error("server's answer is cut", "method", r.method, "error", err)
			c.fail(r, errLost)
		case len(body) > c.limit():
			c.log.Error("server's answer is over the limit", "method", r.method, "limit", c.limit())
			c.fail(r, "the server's answer is over the agent's limit for a frame")
		default:
			c.body(r, resp, body)
		}
	default:
		c.refused(r, resp)
	}
}

// maxPages bounds how long a list of tools the agent reads for itself.
const maxPages = 100

// learn asks the server for its tools, on the agent's own account: the client of
// r knows them from another session. Then r's headers say what the tool wants.
func (c *httpConn) learn(ctx context.Context, r *httpRequest) {
	meta := codec.Member(codec.Member(r.line, "params"), "_meta")
	var cursor json.RawMessage
	for page := range maxPages {
		params := map[string]any{"_meta": json.RawMessage(meta)}
		if cursor != nil {
			params["cursor"] = cursor
		}
		list := &httpRequest{
			line:    codec.AppendRequest(nil, fmt.Appendf(nil, `"agent-%d"`, page), "tools/list", params),
			version: r.version, header: http.Header{stream.HeaderMethod: {"tools/list"}},
		}
		resp, err := c.post(ctx, list)
		if err != nil {
			return
		}
		var result []byte
		if kind, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type")); kind == "text/event-stream" {
			c.events(resp.Body, &position{}, func(e event) error {
				if result = bytes.Clone(codec.Member(e.data, "result")); result != nil {
					return io.EOF
				}
				return nil
			})
		} else if body, err := io.ReadAll(io.LimitReader(resp.Body, int64(c.limit()))); err == nil && json.Valid(body) {
			result = codec.Member(body, "result")
		}
		resp.Body.Close()
		c.up.tools.Learn(result)
		if cursor = codec.Member(result, "nextCursor"); cursor == nil {
			break
		}
	}
	var p codec.Parser
	if f, err := p.Parse(r.line, codec.C2S); err == nil {
		stream.SetHeaders(r.header, f, &c.up.tools)
	}
}

// refused is an answer that is none of MCP's.
func (c *httpConn) refused(r *httpRequest, resp *http.Response) {
	log := c.log.With("method", r.method, "status", resp.StatusCode)
	if where := resp.Header.Get("Location"); where != "" {
		log.Error("server wants to be asked elsewhere; set its URL to that", "location", where)
	} else {
		log.Error("server refuses a request")
	}
	switch {
	case resp.StatusCode == http.StatusNotFound && c.sessionID() != "" && r.version == "":
		c.fail(r, "the server has ended the session; connect again")
		c.in.Close() // the broker's side learns that it is over
	case resp.StatusCode == http.StatusUnauthorized || resp.StatusCode == http.StatusForbidden:
		c.fail(r, "the server does not accept the agent's credential")
	default:
		c.fail(r, fmt.Sprintf("the server refused the request (HTTP %d)", resp.StatusCode))
	}
}

func (c *httpConn) sessionID() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.id
}

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

// end tells the server that the session of the older era is over.
func (c *httpConn) end() {
	if c.sessionID() == "" {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.ctx), endTime)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodDelete, c.up.URL, nil)
	if err != nil {
		return
	}
	resp, err := c.send(req)
	if err != nil {
		c.log.Debug("server is not told of the end of the session", "error", err)
		return
	}
	discard(resp)
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
