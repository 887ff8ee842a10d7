package agent

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"mime"
	"net"
	"net/http"
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
	Stall      time.Duration               // how long a long answer, behind which others wait, may pause; if zero, 1 min

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
	passes  bool // its answer does, while it arrives; guarded by the conn's mu
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
	p := codec.AcquireParser()
	defer p.Release()
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
// is to cancel. It is false for any other, which the server must be told of; what has come
// of a long answer is cut all the same, since others wait behind it.
func (c *httpConn) cancelRequest(id []byte) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.flying[keyOf(id)]
	if r == nil {
		return false
	}
	modern := r.version >= stream.StatelessVersion
	if modern || r.passes {
		delete(c.flying, keyOf(id))
		r.cancel()
	}
	return modern
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
		c.inJSON(ctx, r, resp)
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
			c.events(resp.Body, &position{}, c.limit(), func(e event) error {
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
