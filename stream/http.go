package stream

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"example.com/broker/codec"
)

// HTTPOptions is how the HTTP edge behaves. Zero fields mean the defaults.
type HTTPOptions struct {
	Body      int           // largest body of a request, in bytes; 32 MiB
	Request   time.Duration // for a request's body to arrive; 30 s
	Rest      time.Duration // how long a stateless session outlives its last request; 5 min
	Away      time.Duration // how long a session with an id does; 30 min
	Stall     time.Duration // how long a client may take nothing of what it is sent; 30 s
	KeepAlive time.Duration // how often a silent stream shows that it is there; 15 s

	// Host reports whether a request for this host, without its port, is meant for
	// this listener; nil: every host.
	Host    func(host string) bool
	Origins []string     // of pages that browsers may use MCP from; * is any
	Log     *slog.Logger // if nil, nothing is logged
}

// HTTP is the HTTP edge: MCP's Streamable HTTP in, lines of a [HTTPConn] out.
//
// Requests of the older era that start with initialize get a session each, which
// Mcp-Session-Id names. Those of the newer era know no sessions; all that have
// the same [Visitor.Key] share one.
type HTTP struct {
	o HTTPOptions

	mu     sync.Mutex
	byID   map[string]*HTTPConn
	shared map[string]*HTTPConn    // by key
	tools  map[string]*ToolHeaders // by server
}

// NewHTTP returns an HTTP edge.
func NewHTTP(o HTTPOptions) *HTTP {
	o.Body = cmp.Or(o.Body, 32<<20)
	o.Request = cmp.Or(o.Request, 30*time.Second)
	o.Rest = cmp.Or(o.Rest, 5*time.Minute)
	o.Away = cmp.Or(o.Away, 30*time.Minute)
	o.Stall = cmp.Or(o.Stall, 30*time.Second)
	o.KeepAlive = cmp.Or(o.KeepAlive, 15*time.Second)
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &HTTP{o: o, byID: map[string]*HTTPConn{}, shared: map[string]*HTTPConn{}, tools: map[string]*ToolHeaders{}}
}

// A Visitor is whose HTTP request it is.
type Visitor struct {
	// Key is the same for requests that may share sessions, and for no others: it
	// stands for an identity and how it is proven.
	Key    string
	Server string
	Until  time.Time // the identity is proven
	Peer   Peer
	// Open serves a new session until it ends, on a goroutine of its own. ctx is
	// done when the listener is to end.
	Open func(ctx context.Context, c *HTTPConn)
}

// JSON-RPC's and MCP's codes for what the edge refuses.
const (
	codeParse          = -32700
	codeInvalid        = -32600
	codeParams         = -32602
	codeSession        = -32000
	codeHeaderMismatch = -32020
)

// fail answers a request that does not get as far as a session.
func fail(w http.ResponseWriter, status, code int, id []byte, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	w.Write(codec.AppendError(nil, id, code, message, nil))
}

// hostOf returns a host without its port.
func hostOf(hostport string) string {
	u := url.URL{Host: hostport}
	return strings.ToLower(u.Hostname())
}

// Guard lets next see only requests that are meant for this listener and that no
// page of somebody else's has made, and answers what browsers ask beforehand.
// A browser that has been led to an address of ours by another name (DNS
// rebinding) says so in Host and Origin.
func (h *HTTP) Guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if h.o.Host != nil && !h.o.Host(hostOf(r.Host)) {
			fail(w, http.StatusMisdirectedRequest, codeSession, nil, "the broker does not know itself by the name in the Host header; see name and url in its configuration")
			return
		}
		origin := r.Header.Get("Origin")
		if origin != "" {
			u, err := url.Parse(origin)
			own := err == nil && u.Host != "" && strings.EqualFold(u.Host, r.Host)
			if !own && !slices.Contains(h.o.Origins, origin) && !slices.Contains(h.o.Origins, "*") {
				fail(w, http.StatusForbidden, codeSession, nil, "pages of this origin may not use the broker; see http.origins in its configuration")
				return
			}
			header := w.Header()
			header.Set("Access-Control-Allow-Origin", origin)
			header.Add("Vary", "Origin")
			header.Set("Access-Control-Expose-Headers", HeaderSession+", "+HeaderVersion+", WWW-Authenticate")
		}
		if r.Method == http.MethodOptions && r.Header.Get("Access-Control-Request-Method") != "" {
			header := w.Header()
			header.Set("Access-Control-Allow-Methods", "GET, POST, DELETE")
			// Mcp-Param- headers have any name, so what is asked for is what is allowed.
			header.Set("Access-Control-Allow-Headers", r.Header.Get("Access-Control-Request-Headers"))
			header.Set("Access-Control-Max-Age", "600")
			w.WriteHeader(http.StatusNoContent)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// Serve answers one request of v.
func (h *HTTP) Serve(w http.ResponseWriter, r *http.Request, v Visitor) {
	if version := r.Header.Get(HeaderVersion); version != "" && version < StatelessVersion && !slices.Contains(sessionVersions, version) {
		fail(w, http.StatusBadRequest, codeSession, nil, "unsupported protocol version in the "+HeaderVersion+" header; there are "+strings.Join(sessionVersions, ", ")+" and "+StatelessVersion)
		return
	}
	switch r.Method {
	case http.MethodPost:
		h.post(w, r, v)
	case http.MethodGet:
		h.get(w, r, v)
	case http.MethodDelete:
		h.delete(w, r, v)
	default:
		w.Header().Set("Allow", "GET, POST, DELETE")
		fail(w, http.StatusMethodNotAllowed, codeSession, nil, "method not allowed")
	}
}

// sessionVersions are the revisions of the older era, newest first.
var sessionVersions = []string{"2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05"}

// accepts reports whether a client takes a media type.
func accepts(r *http.Request, kind, sub string) bool {
	for _, value := range r.Header.Values("Accept") {
		for one := range strings.SplitSeq(value, ",") {
			one, _, _ = strings.Cut(one, ";")
			switch strings.ToLower(strings.TrimSpace(one)) {
			case "*/*", kind + "/*", kind + "/" + sub:
				return true
			}
		}
	}
	return false
}

// post takes a frame of the client and answers with what comes of it.
func (h *HTTP) post(w http.ResponseWriter, r *http.Request, v Visitor) {
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != "application/json" {
		fail(w, http.StatusUnsupportedMediaType, codeSession, nil, "Content-Type must be application/json")
		return
	}
	if !accepts(r, "application", "json") || !accepts(r, "text", "event-stream") {
		fail(w, http.StatusNotAcceptable, codeSession, nil, "Accept must have both application/json and text/event-stream")
		return
	}
	line, ok := h.body(w, r)
	if !ok {
		return
	}
	p, ok := h.read(w, r, v, line)
	if !ok {
		return
	}
	for attempt := 0; ; attempt++ {
		c, err := h.session(r, v, p)
		if err == nil {
			err = c.carry(w, r, p)
		}
		switch {
		case err == nil:
		case errors.Is(err, errNoSession) && p.modern && attempt < 3: // the one that it shared has just ended
			continue
		case errors.Is(err, errNoSession):
			fail(w, http.StatusNotFound, codeSession, p.id, err.Error())
		case errors.Is(err, errEnding), errors.Is(err, errNoRecord):
			fail(w, http.StatusServiceUnavailable, http.StatusServiceUnavailable, p.id, err.Error())
		case errors.Is(err, errTaken):
			fail(w, http.StatusBadRequest, codeInvalid, p.id, err.Error())
		default:
			fail(w, http.StatusBadRequest, codeSession, p.id, err.Error())
		}
		return
	}
}

// read looks at a frame, and checks the headers that speak of it. What is wrong with
// those, it answers.
func (h *HTTP) read(w http.ResponseWriter, r *http.Request, v Visitor, line []byte) (*posted, bool) {
	p := &posted{line: line, version: r.Header.Get(HeaderVersion)}
	parser := codec.AcquireParser()
	defer parser.Release()
	f, err := parser.Parse(line, codec.C2S)
	var bad *codec.Error
	switch {
	case errors.As(err, &bad): // the session puts it on record and answers it
		p.malformed, p.id = true, slices.Clone(bad.ID)
		p.modern = p.version >= StatelessVersion
	case err != nil:
		fail(w, http.StatusBadRequest, codeParse, nil, "the body cannot be read")
		return nil, false
	default:
		p.request = f.Kind == codec.Request
		p.id, p.method = slices.Clone(f.ID), string(f.Method)
		p.token = slices.Clone(codec.Member(f.Meta, "progressToken"))
		if p.method == "notifications/cancelled" {
			p.cancels = slices.Clone(codec.Member(f.Params, "requestId"))
		}
		version := VersionOf(f)
		p.modern = p.version >= StatelessVersion || version != ""
		switch {
		case !p.modern:
			if p.method == "initialize" && p.request {
				if raw := codec.Member(f.Params, "protocolVersion"); len(raw) > 1 && raw[0] == '"' {
					p.version = string(codec.Unquote(nil, raw))
				}
			}
		case p.request && version == "" && p.version != "":
			fail(w, http.StatusBadRequest, codeParams, f.ID, "params._meta has no "+MetaVersion)
			return nil, false
		case f.Kind != codec.Response:
			if err := checkHeaders(r.Header, f, h.toolsOf(v.Server)); err != nil {
				fail(w, http.StatusBadRequest, codeHeaderMismatch, f.ID, err.Error())
				return nil, false
			}
		}
	}
	return p, true
}

// body reads the frame of a request.
func (h *HTTP) body(w http.ResponseWriter, r *http.Request) (line []byte, ok bool) {
	rc := http.NewResponseController(w)
	rc.SetReadDeadline(time.Now().Add(h.o.Request))
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, int64(h.o.Body)))
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		fail(w, http.StatusRequestEntityTooLarge, http.StatusRequestEntityTooLarge, nil, "refused: the body is over the broker's limit for a frame")
		return nil, false
	case err != nil:
		fail(w, http.StatusRequestTimeout, codeSession, nil, "the body did not arrive in time")
		return nil, false
	}
	// A deadline that stays would cut the answer: net/http reads on to see whether
	// the client is there.
	rc.SetReadDeadline(time.Time{})
	rc.SetWriteDeadline(time.Time{})
	if line, err = codec.OneLine(body); err != nil {
		fail(w, http.StatusBadRequest, codeParse, nil, "refused: "+err.Error())
		return nil, false
	}
	if len(line) == 0 {
		fail(w, http.StatusBadRequest, codeParse, nil, "the body is empty")
		return nil, false
	}
	return line, true
}

var (
	errNoSession = errors.New("there is no such session; start anew with initialize")
	errNeedID    = errors.New("the " + HeaderSession + " header is missing; a session starts with initialize")
	errEnding    = errors.New("the broker is shutting down; try again")
	errNoRecord  = errors.New("the recorder is not available, so nothing may pass; try again later")
	errTaken     = errors.New("refused: a request with this id is in flight")
)

// A posted is the frame of a POST.
type posted struct {
	line      []byte
	id        []byte // raw
	method    string
	token     []byte // raw progressToken
	version   string // of the protocol, as far as it is known
	cancels   []byte // raw id of the request that it cancels
	request   bool
	modern    bool // of the newer era
	malformed bool
}

// session finds the session that a frame belongs to, or starts it, and counts
// the request in.
func (h *HTTP) session(r *http.Request, v Visitor, p *posted) (*HTTPConn, error) {
	id := r.Header.Get(HeaderSession)
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case p.modern:
		if c := h.shared[v.Key]; c != nil && c.enter(v.Until) {
			return c, nil
		}
	case id != "":
		c := h.byID[id]
		if c == nil || c.key != v.Key || !c.enter(v.Until) {
			return nil, errNoSession
		}
		return c, nil
	case !p.malformed && !(p.request && p.method == "initialize"):
		return nil, errNeedID
	}
	c := newHTTPConn(h, v)
	switch {
	case p.modern:
		h.shared[v.Key] = c
	case p.malformed:
		c.once = true
	default:
		c.id = rand.Text()
		h.byID[c.id] = c
	}
	c.enter(v.Until)
	if !listenerOf(r).run(func(ctx context.Context) {
		v.Open(ctx, c)
		c.Close()
	}) {
		h.forgetLocked(c)
		return nil, errEnding
	}
	return c, nil
}

// existing finds the session that a GET or a DELETE names.
func (h *HTTP) existing(w http.ResponseWriter, r *http.Request, v Visitor) *HTTPConn {
	if r.Header.Get(HeaderVersion) >= StatelessVersion {
		w.Header().Set("Allow", "POST")
		fail(w, http.StatusMethodNotAllowed, codeSession, nil, "method not allowed in this revision of MCP")
		return nil
	}
	id := r.Header.Get(HeaderSession)
	if id == "" {
		if r.Method == http.MethodGet {
			w.Header().Set("Allow", "POST")
			fail(w, http.StatusMethodNotAllowed, codeSession, nil, errNeedID.Error())
			return nil
		}
		fail(w, http.StatusBadRequest, codeSession, nil, errNeedID.Error())
		return nil
	}
	h.mu.Lock()
	c := h.byID[id]
	h.mu.Unlock()
	if c == nil || c.key != v.Key || !c.enter(v.Until) {
		fail(w, http.StatusNotFound, codeSession, nil, errNoSession.Error())
		return nil
	}
	return c
}

// get opens the stream of what belongs to no request, or goes on with one that
// was cut.
func (h *HTTP) get(w http.ResponseWriter, r *http.Request, v Visitor) {
	if !accepts(r, "text", "event-stream") {
		fail(w, http.StatusNotAcceptable, codeSession, nil, "Accept must have text/event-stream")
		return
	}
	if c := h.existing(w, r, v); c != nil {
		c.listen(w, r)
	}
}

// delete ends a session in order.
func (h *HTTP) delete(w http.ResponseWriter, r *http.Request, v Visitor) {
	if c := h.existing(w, r, v); c != nil {
		c.CloseInput()
		c.leave()
		w.WriteHeader(http.StatusNoContent)
	}
}

// forget takes c out: no request finds it any more.
func (h *HTTP) forget(c *HTTPConn) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.forgetLocked(c)
}

func (h *HTTP) forgetLocked(c *HTTPConn) {
	if h.byID[c.id] == c {
		delete(h.byID, c.id)
	}
	if h.shared[c.key] == c {
		delete(h.shared, c.key)
	}
}

// toolsOf returns what is known of a server's tools.
func (h *HTTP) toolsOf(server string) *ToolHeaders {
	h.mu.Lock()
	defer h.mu.Unlock()
	if t := h.tools[server]; t != nil {
		return t
	}
	return &ToolHeaders{} // of a name that anybody may have made up, nothing is kept
}

// learn keeps what a server has said of its tools.
func (h *HTTP) learn(server string, result []byte) {
	h.mu.Lock()
	t := h.tools[server]
	if t == nil {
		t = &ToolHeaders{}
		h.tools[server] = t
	}
	h.mu.Unlock()
	t.Learn(result)
}
