package stream

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/quic-go/quic-go/http3"

	"example.com/broker/codec"
)

// A web is a Listener with an HTTP edge, and the sessions behind it.
type web struct {
	*HTTP
	l        *Listener
	client   *http.Client
	sessions chan *webSession
}

// A webSession is the session's side of an HTTPConn, played by a test.
type webSession struct {
	*HTTPConn
	lines chan string // of the client; closed at the end

	mu       sync.Mutex
	sent     []string
	aliases  []codec.Alias
	noRecord bool
}

func newWeb(t *testing.T, o HTTPOptions) *web {
	t.Helper()
	w := &web{HTTP: NewHTTP(o), sessions: make(chan *webSession, 16)}
	w.l = serve(t, Options{}, Handlers{HTTP: w.Guard(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w.Serve(rw, r, Visitor{
			Key: "key of " + r.Header.Get("X-Who"), Server: "s", Until: time.Now().Add(time.Hour), Peer: Peer{Addr: &net.TCPAddr{}},
			Open: func(ctx context.Context, c *HTTPConn) {
				s := &webSession{HTTPConn: c, lines: make(chan string, 64)}
				defer close(s.lines)
				c.SetRecord(Record{Alias: s.alias, Delivered: s.delivered})
				stop := context.AfterFunc(ctx, func() { c.Close() })
				defer stop()
				w.sessions <- s
				for in := bufio.NewReader(c); ; {
					line, err := in.ReadString('\n')
					if err != nil {
						return
					}
					s.lines <- strings.TrimSuffix(line, "\n")
				}
			},
		})
	}))})
	transport := &http.Transport{TLSClientConfig: clientConfig("localhost"), ForceAttemptHTTP2: true}
	t.Cleanup(transport.CloseIdleConnections)
	w.client = &http.Client{Transport: transport}
	return w
}

func (s *webSession) alias(a codec.Alias) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.noRecord {
		return io.ErrShortWrite
	}
	s.aliases = append(s.aliases, a)
	return nil
}

func (s *webSession) noted() []codec.Alias {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.aliases)
}

// delivered has each line in two pieces.
func (s *webSession) delivered(_ context.Context, from int64) iter.Seq2[Piece, error] {
	return func(yield func(Piece, error) bool) {
		s.mu.Lock()
		sent := s.sent[from:]
		s.mu.Unlock()
		for _, line := range sent {
			half := len(line) / 2
			if !yield(Piece{Bytes: []byte(line[:half]), More: true}, nil) || !yield(Piece{Bytes: []byte(line[half:])}, nil) {
				return
			}
		}
	}
}

// next returns the next line of the client.
func (s *webSession) next(t *testing.T) string {
	t.Helper()
	select {
	case line, ok := <-s.lines:
		if !ok {
			t.Fatal("the session is over")
		}
		return line
	case <-time.After(20 * time.Second):
		t.Fatal("nothing comes")
		return ""
	}
}

// say writes a line, which is on record before.
func (s *webSession) say(format string, args ...any) {
	line := fmt.Sprintf(format, args...)
	s.mu.Lock()
	s.sent = append(s.sent, line)
	s.mu.Unlock()
	s.Write([]byte(line + "\n"))
}

// sayPart writes a part of the answer to request id, which is on record before.
func (s *webSession) sayPart(id, part string) {
	s.mu.Lock()
	if s.answer == nil {
		s.sent = append(s.sent, "")
		s.Flow([]byte(id))
	}
	s.sent[len(s.sent)-1] += strings.TrimSuffix(part, "\n")
	s.mu.Unlock()
	s.Write([]byte(part))
}

func (w *web) session(t *testing.T) *webSession {
	t.Helper()
	select {
	case s := <-w.sessions:
		return s
	case <-time.After(20 * time.Second):
		t.Fatal("no session is opened")
		return nil
	}
}

// do makes a request. headers are name, value, …; an empty value takes one away.
func (w *web) do(t *testing.T, ctx context.Context, method, body string, headers ...string) (*http.Response, error) {
	t.Helper()
	r, err := http.NewRequestWithContext(ctx, method, "https://"+w.l.Addr().String()+"/s/mcp", strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	r.Header.Set("Accept", "application/json, text/event-stream")
	r.Header.Set("Content-Type", "application/json")
	for i := 0; i < len(headers); i += 2 {
		r.Header.Del(headers[i])
		if headers[i+1] != "" {
			r.Header.Set(headers[i], headers[i+1])
		}
		if headers[i] == "Host" {
			r.Host = headers[i+1]
		}
	}
	return w.client.Do(r)
}

// answer makes a request and returns its answer whole.
func (w *web) answer(t *testing.T, method, body string, headers ...string) (int, http.Header, string) {
	t.Helper()
	resp, err := w.do(t, t.Context(), method, body, headers...)
	if err != nil {
		t.Error(err)
		return 0, nil, ""
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Error(err)
	}
	return resp.StatusCode, resp.Header, string(b)
}

const helloFrame = `{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2025-11-25"}}`

// hello starts a session of the older era and returns its id.
func (w *web) hello(t *testing.T) (*webSession, string) {
	t.Helper()
	type hello struct {
		status int
		id     string
	}
	done := make(chan hello, 1)
	go func() {
		status, header, _ := w.answer(t, "POST", helloFrame)
		done <- hello{status, header.Get(HeaderSession)}
	}()
	s := w.session(t)
	s.next(t)
	s.say(`{"jsonrpc":"2.0","id":0,"result":{}}`)
	h := <-done
	if h.status != 200 || len(h.id) < 20 {
		t.Fatalf("status %d, session %q", h.status, h.id)
	}
	return s, h.id
}

// modern is a request of the newer era, with the headers that it needs.
func modern(id, method, rest string) (body string, headers []string) {
	return fmt.Sprintf(`{"jsonrpc":"2.0","id":%s,"method":%q,"params":{%s"_meta":{"progressToken":%s,"io.modelcontextprotocol/protocolVersion":"2026-07-28"}}}`, id, method, rest, id),
		[]string{HeaderVersion, "2026-07-28", HeaderMethod, method}
}

// TestHTTPRefused checks what does not get as far as a session.
func TestHTTPRefused(t *testing.T) {
	w := newWeb(t, HTTPOptions{Body: 1000, Request: 100 * time.Millisecond})
	s, id := w.hello(t)
	ping := `{"jsonrpc":"2.0","id":1,"method":"ping"}`
	for _, c := range []struct {
		name, method, body string
		headers            []string
		want               int
	}{
		{"another's session", "POST", ping, []string{HeaderSession, id, "X-Who", "eve"}, 404},
		{"another's stream", "GET", "", []string{HeaderSession, id, "X-Who", "eve"}, 404},
		{"another ends it", "DELETE", "", []string{HeaderSession, id, "X-Who", "eve"}, 404},
		{"a session that is none", "POST", ping, []string{HeaderSession, "x"}, 404},
		{"no session", "POST", ping, nil, 400},
		{"no session to end", "DELETE", "", nil, 400},
		{"a stream of none", "GET", "", nil, 405},
		{"a stream of the newer era", "GET", "", []string{HeaderSession, id, HeaderVersion, "2026-07-28"}, 405},
		{"a stream for who takes none", "GET", "", []string{HeaderSession, id, "Accept", "application/json"}, 406},
		{"an event of another's", "GET", "", []string{HeaderSession, id, HeaderEvent, "x"}, 400},
		{"an event of no stream", "GET", "", []string{HeaderSession, id, HeaderEvent, "9.1"}, 400},
		{"another method", "PUT", ping, []string{HeaderSession, id}, 405},
		{"another type", "POST", ping, []string{HeaderSession, id, "Content-Type", "text/plain"}, 415},
		{"who takes no stream", "POST", ping, []string{HeaderSession, id, "Accept", "application/json"}, 406},
		{"an old version", "POST", ping, []string{HeaderSession, id, HeaderVersion, "2020-01-01"}, 400},
		{"a body too large", "POST", `{"x":"` + strings.Repeat("x", 1000) + `"}`, []string{HeaderSession, id}, 413},
		{"no body", "POST", " \n", []string{HeaderSession, id}, 400},
		{"a newline in a string", "POST", "{\"a\":\"\n\"}", []string{HeaderSession, id}, 400},
	} {
		status, header, body := w.answer(t, c.method, c.body, c.headers...)
		if status != c.want {
			t.Errorf("%s: status %d, want %d: %s", c.name, status, c.want, body)
		}
		if !json.Valid([]byte(body)) || header.Get("Content-Type") != "application/json" {
			t.Errorf("%s: the answer is no JSON: %s", c.name, body)
		}
	}
	// The body that does not come.
	r, body := io.Pipe()
	defer body.Close()
	req, _ := http.NewRequest("POST", "https://"+w.l.Addr().String()+"/s/mcp", r)
	req.Header.Set("Accept", "*/*")
	req.Header.Set("Content-Type", "application/json")
	if resp, err := w.client.Do(req); err == nil {
		if resp.Body.Close(); resp.StatusCode != 408 {
			t.Errorf("a body that does not come: status %d", resp.StatusCode)
		}
	}
	select {
	case line := <-s.lines:
		t.Errorf("the session has got %s", line)
	case s := <-w.sessions:
		t.Errorf("a session was opened: %s", s.next(t))
	default:
	}
}

// TestHTTPSession is the life of a session of the older era.
func TestHTTPSession(t *testing.T) {
	w := newWeb(t, HTTPOptions{})
	s, id := w.hello(t)
	if status, _, body := w.answer(t, "POST", "{\n \"jsonrpc\":\"2.0\",\"method\":\"notifications/initialized\"\n}\n", HeaderSession, id); status != 202 || body != "" {
		t.Errorf("a notification: %d %s", status, body)
	}
	if line := s.next(t); line != `{  "jsonrpc":"2.0","method":"notifications/initialized" }` {
		t.Errorf("the session got %q", line)
	}
	// What no id can be read of is answered, too.
	for _, body := range []string{`[{"jsonrpc":"2.0","id":1,"method":"ping"}]`, `{"jsonrpc":"2.0","id":7,"id":7,"method":"ping"}`, `{"jsonrpc":"2.0","id":8,"method":"ping","params":3}`, `nonsense`} {
		want := make(chan string, 1)
		go func() {
			var p codec.Parser
			var bad *codec.Error
			if _, err := p.Parse([]byte(<-s.lines), codec.C2S); !errors.As(err, &bad) {
				t.Errorf("%s is taken: %v", body, err)
				bad = &codec.Error{}
			}
			answer := string(codec.AppendError(nil, bad.ID, bad.Code, "refused", nil))
			s.say("%s", answer)
			want <- answer
		}()
		if status, _, got := w.answer(t, "POST", body, HeaderSession, id); status != 400 || got != <-want {
			t.Errorf("%s: %d %s", body, status, got)
		}
	}
	// An id that is in flight.
	slow, err := http.NewRequest("POST", "https://"+w.l.Addr().String()+"/s/mcp", strings.NewReader(`{"jsonrpc":"2.0","id":5,"method":"a"}`))
	if err != nil {
		t.Fatal(err)
	}
	slow.Header.Set("Accept", "*/*")
	slow.Header.Set("Content-Type", "application/json")
	slow.Header.Set(HeaderSession, id)
	answered := make(chan string, 1)
	go func() {
		resp, err := w.client.Do(slow)
		if err != nil {
			answered <- err.Error()
			return
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		answered <- string(b)
	}()
	s.next(t)
	if status, _, _ := w.answer(t, "POST", `{"jsonrpc":"2.0","id":5,"method":"b"}`, HeaderSession, id); status != 400 {
		t.Errorf("an id in flight: status %d", status)
	}
	// The client cancels it.
	if status, _, _ := w.answer(t, "POST", `{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":5}}`, HeaderSession, id); status != 202 {
		t.Errorf("cancel: status %d", status)
	}
	s.next(t)
	if got := <-answered; got != "" {
		t.Errorf("a cancelled request is answered %q", got)
	}
	if status, _, _ := w.answer(t, "DELETE", "", HeaderSession, id); status != 204 {
		t.Errorf("DELETE: status %d", status)
	}
	if _, more := <-s.lines; more {
		t.Error("the session's input goes on")
	}
	if status, _, _ := w.answer(t, "POST", `{"jsonrpc":"2.0","id":1,"method":"ping"}`, HeaderSession, id); status != 404 {
		t.Errorf("after DELETE: status %d", status)
	}
}

// TestHTTPHeaders checks the headers of the newer era against bodies.
func TestHTTPHeaders(t *testing.T) {
	w := newWeb(t, HTTPOptions{})
	w.learn("s", []byte(`{"tools":[{"name":"find","inputSchema":{"properties":{"region":{"type":"string","x-mcp-header":"Region"},"n":{"type":"integer","x-mcp-header":"N"},"deep":{"properties":{"x":{"x-mcp-header":"X"}}}}}},{"name":"plain","inputSchema":{}}]}`))
	call := func(tool, args string) string {
		return fmt.Sprintf(`"name":%q,"arguments":%s,`, tool, args)
	}
	for _, c := range []struct {
		name, method, rest string
		headers            []string
		ok                 bool
	}{
		{"all well", "tools/list", "", nil, true},
		{"another version", "tools/list", "", []string{HeaderVersion, "2026-07-29"}, false},
		{"no version", "tools/list", "", []string{HeaderVersion, ""}, false},
		{"an older version", "tools/list", "", []string{HeaderVersion, "2025-11-25"}, false},
		{"no method", "tools/list", "", []string{HeaderMethod, ""}, false},
		{"another method", "tools/list", "", []string{HeaderMethod, "prompts/list"}, false},
		{"another case", "tools/list", "", []string{HeaderMethod, "Tools/List"}, false},
		{"no name", "tools/call", call("plain", "{}"), nil, false},
		{"name", "tools/call", call("plain", "{}"), []string{HeaderName, "plain"}, true},
		{"another name", "tools/call", call("plain", "{}"), []string{HeaderName, "other"}, false},
		{"name in base64", "prompts/get", `"name":"é",`, []string{HeaderName, "=?base64?w6k=?="}, true},
		{"bad base64", "prompts/get", `"name":"é",`, []string{HeaderName, "=?base64?w6k?="}, false},
		{"uri", "resources/read", `"uri":"a://b",`, []string{HeaderName, "a://b"}, true},
		{"arguments", "tools/call", call("find", `{"region":"eu","n":42,"deep":{"x":true}}`), []string{HeaderName, "find", HeaderParam + "Region", "eu", HeaderParam + "N", "42.0", HeaderParam + "X", "true"}, true},
		{"another argument", "tools/call", call("find", `{"region":"eu"}`), []string{HeaderName, "find", HeaderParam + "Region", "us"}, false},
		{"argument without header", "tools/call", call("find", `{"region":"eu"}`), []string{HeaderName, "find"}, false},
		{"header without argument", "tools/call", call("find", `{}`), []string{HeaderName, "find", HeaderParam + "Region", "eu"}, false},
		{"null", "tools/call", call("find", `{"region":null}`), []string{HeaderName, "find"}, true},
		{"a tool nobody has listed", "tools/call", call("new", `{"a":{"b":"eu"}}`), []string{HeaderName, "new", HeaderParam + "Region", "eu"}, true},
		{"and another value", "tools/call", call("new", `{"a":{"b":"eu"}}`), []string{HeaderName, "new", HeaderParam + "Region", "us"}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			body, headers := modern("1", c.method, c.rest)
			done := make(chan struct{})
			var status int
			var answer string
			go func() {
				defer close(done)
				status, _, answer = w.answer(t, "POST", body, append(append(headers, "X-Who", c.name), c.headers...)...)
			}()
			if c.ok {
				s := w.session(t)
				if got := s.next(t); got != body {
					t.Errorf("the session got %s", got)
				}
				s.say(`{"jsonrpc":"2.0","id":1,"result":{}}`)
			}
			<-done
			if c.ok != (status == 200) || !c.ok && (status != 400 || !strings.Contains(answer, "-32020") || !strings.Contains(answer, `"id":1`)) {
				t.Errorf("status %d: %s", status, answer)
			}
		})
	}
	if status, _, answer := w.answer(t, "POST", `{"jsonrpc":"2.0","id":1,"method":"tools/list"}`, HeaderVersion, "2026-07-28", HeaderMethod, "tools/list"); status != 400 || !strings.Contains(answer, "-32602") {
		t.Errorf("without _meta: %d %s", status, answer)
	}
}

// TestHTTPShared checks that requests of one identity share a session, and that
// those of several clients with the same id do not get into each other's way.
func TestHTTPShared(t *testing.T) {
	w := newWeb(t, HTTPOptions{})
	body, headers := modern("1", "tools/list", "")
	answers := make(chan string, 3)
	for range 3 {
		go func() {
			status, _, body := w.answer(t, "POST", body, headers...)
			answers <- fmt.Sprint(status, " ", body)
		}()
	}
	s := w.session(t)
	seen := map[string]bool{}
	for range 3 {
		line := s.next(t)
		id := string(codec.Member([]byte(line), "id"))
		if token := codec.Member(codec.Member(codec.Member([]byte(line), "params"), "_meta"), "progressToken"); seen[id] || string(token) != id {
			t.Errorf("id %s, token %s", id, token)
		}
		seen[id] = true
		back := line
		for _, a := range s.noted() {
			back = string(a.Reveal(nil, []byte(back)))
		}
		if back != body {
			t.Errorf("%s does not become %s", line, body)
		}
	}
	if !seen["1"] || len(seen) != 3 || len(s.noted()) != 2 {
		t.Errorf("ids %v, aliases %v", seen, s.noted())
	}
	for id := range seen {
		s.say(`{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":%s,"progress":1,"message":"of %s"}}`, id, strings.Trim(id, `"`))
		s.say(`{"jsonrpc":"2.0","id":%s,"result":{"of":%q}}`, id, strings.Trim(id, `"`))
	}
	for range 3 {
		a := <-answers
		if strings.Count(a, `"progressToken":1,`) != 1 || strings.Count(a, `"id":1,`) != 1 {
			t.Errorf("the client got %s", a)
		}
		var of string
		for id := range seen {
			if id := strings.Trim(id, `"`); strings.Contains(a, fmt.Sprintf("of %s", id)) && strings.Contains(a, fmt.Sprintf(`"of":%q`, id)) {
				of = id
			}
		}
		if of == "" {
			t.Errorf("the progress and the result are not of one request: %s", a)
		}
	}
	if len(w.sessions) != 0 {
		t.Error("another session was opened")
	}
	// Nobody else shares it.
	done := make(chan struct{})
	go func() {
		w.answer(t, "POST", body, append(headers, "X-Who", "eve")...)
		close(done)
	}()
	eve := w.session(t)
	eve.next(t)
	eve.say(`{"jsonrpc":"2.0","id":1,"result":{}}`)
	<-done

	// Where the alias cannot be put on record, nothing passes.
	s.mu.Lock()
	s.noRecord = true
	s.mu.Unlock()
	first := make(chan struct{})
	go func() { w.answer(t, "POST", body, headers...); close(first) }()
	s.next(t)
	if status, _, answer := w.answer(t, "POST", body, headers...); status != 503 {
		t.Errorf("without a record: %d %s", status, answer)
	}
	s.say(`{"jsonrpc":"2.0","id":1,"result":{}}`)
	<-first
}

// events reads events until n have come.
func events(t *testing.T, in *bufio.Reader, n int) (ids, data []string) {
	t.Helper()
	for id := ""; len(data) < n; {
		line, err := in.ReadString('\n')
		if err != nil {
			t.Fatalf("%d of %d events came: %q, %v", len(data), n, data, err)
		}
		line = strings.TrimSuffix(line, "\n")
		if v, ok := strings.CutPrefix(line, "id: "); ok {
			id = v
		}
		if v, ok := strings.CutPrefix(line, "data: "); ok {
			ids, data = append(ids, id), append(data, v)
		}
	}
	return ids, data
}

// TestHTTPResume checks that a client that was cut off gets what it has missed,
// from the recording, and nothing twice.
func TestHTTPResume(t *testing.T) {
	w := newWeb(t, HTTPOptions{})
	s, id := w.hello(t)
	version := []string{HeaderSession, id, HeaderVersion, "2025-11-25"}
	note := func(n int) { s.say(`{"jsonrpc":"2.0","method":"notifications/message","params":{"data":%d}}`, n) }

	ctx, cut := context.WithCancel(t.Context())
	opened := make(chan *http.Response, 1)
	go func() {
		resp, err := w.do(t, ctx, "POST", `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"x"}}`, version...)
		if err != nil {
			t.Error(err)
		}
		opened <- resp
	}()
	s.next(t)
	note(1)
	resp := <-opened
	in := bufio.NewReader(resp.Body)
	ids, data := events(t, in, 2)
	if data[0] != "" || !strings.Contains(data[1], `"data":1`) || ids[0] == ids[1] {
		t.Fatalf("events %q %q", ids, data)
	}
	if status, _, _ := w.answer(t, "GET", "", append(version, HeaderEvent, ids[1])...); status != 409 {
		t.Errorf("a stream that is open: status %d", status)
	}
	cut()
	resp.Body.Close()
	waitFor(t, func() bool {
		s.HTTPConn.mu.Lock()
		defer s.HTTPConn.mu.Unlock()
		return s.streams[2] != nil && s.streams[2].by == nil
	})
	note(2)
	note(3)
	resp, err := w.do(t, t.Context(), "GET", "", append(version, HeaderEvent, ids[0])...)
	if err != nil {
		t.Fatal(err)
	}
	in = bufio.NewReader(resp.Body)
	again, data := events(t, in, 3)
	if !strings.Contains(data[0], `"data":1`) || !strings.Contains(data[1], `"data":2`) || !strings.Contains(data[2], `"data":3`) || again[0] != ids[1] {
		t.Errorf("events %q %q", again, data)
	}
	note(4)
	if _, data := events(t, in, 1); !strings.Contains(data[0], `"data":4`) {
		t.Errorf("events %q", data)
	}
	s.say(`{"jsonrpc":"2.0","id":1,"result":{"content":[]}}`)
	if b, _ := io.ReadAll(in); !strings.Contains(string(b), `"id":1,"result"`) {
		t.Errorf("the stream ends with %q", b)
	}
	resp.Body.Close()
	// It is over, and can still be had.
	if status, _, body := w.answer(t, "GET", "", append(version, HeaderEvent, again[2])...); status != 200 || strings.Contains(body, `"data":3`) || !strings.Contains(body, `"data":4`) || !strings.Contains(body, `"result"`) {
		t.Errorf("afterwards: %d %s", status, body)
	}
}

func waitFor(t *testing.T, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it does not happen")
		}
	}
}

// TestHTTPGeneral checks the stream of what belongs to no request: what was sent
// before it is open comes, too.
func TestHTTPGeneral(t *testing.T) {
	w := newWeb(t, HTTPOptions{KeepAlive: 20 * time.Millisecond})
	s, id := w.hello(t)
	s.say(`{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}`)
	resp, err := w.do(t, t.Context(), "GET", "", HeaderSession, id)
	if err != nil {
		t.Fatal(err)
	}
	in := bufio.NewReader(resp.Body)
	ids, data := events(t, in, 1)
	if !strings.Contains(data[0], "list_changed") {
		t.Errorf("events %q", data)
	}
	s.say(`{"jsonrpc":"2.0","id":1,"method":"roots/list"}`)
	if _, data := events(t, in, 1); !strings.Contains(data[0], "roots/list") {
		t.Errorf("events %q", data)
	}
	// It shows that it is there.
	in.ReadString('\n') // the empty line behind the event
	if line, err := in.ReadString('\n'); err != nil || !strings.HasPrefix(line, ":") {
		t.Errorf("%q, %v", line, err)
	}
	resp.Body.Close()
	waitFor(t, func() bool {
		s.HTTPConn.mu.Lock()
		defer s.HTTPConn.mu.Unlock()
		return s.streams[0].by == nil
	})
	s.say(`{"jsonrpc":"2.0","method":"notifications/prompts/list_changed"}`)
	resp, err = w.do(t, t.Context(), "GET", "", HeaderSession, id, HeaderEvent, ids[0])
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, data := events(t, bufio.NewReader(resp.Body), 2); !strings.Contains(data[0], "roots/list") || !strings.Contains(data[1], "prompts") {
		t.Errorf("events %q", data)
	}
}

// TestHTTPUpstream checks that a frame comes to the client in the way in which it
// came to the agent.
func TestHTTPUpstream(t *testing.T) {
	w := newWeb(t, HTTPOptions{})
	s, id := w.hello(t)
	version := []string{HeaderSession, id, HeaderVersion, "2025-11-25"}
	general, err := w.do(t, t.Context(), "GET", "", version...)
	if err != nil {
		t.Fatal(err)
	}
	defer general.Body.Close()
	ask := func(n int) chan *http.Response {
		opened := make(chan *http.Response, 1)
		go func() {
			resp, err := w.do(t, t.Context(), "POST", fmt.Sprintf(`{"jsonrpc":"2.0","id":%d,"method":"tools/call","params":{"name":"x"}}`, n), version...)
			if err != nil {
				t.Error(err)
			}
			opened <- resp
		}()
		s.next(t)
		return opened
	}
	one, two := ask(1), ask(2)
	s.Relay([]byte(`{"jsonrpc":"2.0","method":"upstream/related","params":{"id":1}}`))
	s.say(`{"jsonrpc":"2.0","method":"notifications/message","params":{"data":"of one"}}`)
	s.Relay([]byte(`{"jsonrpc":"2.0","method":"upstream/related","params":{}}`))
	s.say(`{"jsonrpc":"2.0","method":"notifications/message","params":{"data":"of none"}}`)
	s.say(`{"jsonrpc":"2.0","method":"notifications/message","params":{"data":"of the newest"}}`)
	s.Relay([]byte(`{"jsonrpc":"2.0","method":"upstream/paused","params":{"id":2,"retry":25}}`))
	s.say(`{"jsonrpc":"2.0","id":1,"result":{}}`)
	read := func(c chan *http.Response) string {
		resp := <-c
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		return string(b)
	}
	if got := read(one); !strings.Contains(got, "of one") || !strings.Contains(got, "result") || strings.Contains(got, "of n") || strings.Contains(got, "of the") {
		t.Errorf("the first request's stream: %s", got)
	}
	if got := read(two); !strings.Contains(got, "of the newest") || !strings.Contains(got, "retry: 25") || strings.Contains(got, "of one") {
		t.Errorf("the second request's stream: %s", got)
	}
	if _, data := events(t, bufio.NewReader(general.Body), 1); !strings.Contains(data[0], "of none") {
		t.Errorf("the general stream: %s", data)
	}
}

// TestHTTPCancel checks that to close a response is to cancel, in the newer era,
// and only there.
func TestHTTPCancel(t *testing.T) {
	w := newWeb(t, HTTPOptions{})
	body, headers := modern("1", "tools/list", "")
	ctx, cancel := context.WithCancel(t.Context())
	go w.do(t, ctx, "POST", body, headers...)
	s := w.session(t)
	s.next(t)
	cancel()
	if line := s.next(t); !strings.Contains(line, "notifications/cancelled") || !strings.Contains(line, `"requestId":1`) {
		t.Errorf("the session got %s", line)
	}
	// Its id is not given to another: an answer may still come.
	go func() {
		<-s.lines
		s.say(`{"jsonrpc":"2.0","id":"broker-2","result":{}}`)
	}()
	if status, _, answer := w.answer(t, "POST", body, headers...); status != 200 || answer != `{"jsonrpc":"2.0","id":1,"result":{}}` {
		t.Errorf("the same id again: %d %s", status, answer)
	}
	old, id := w.hello(t)
	ctx, cancel = context.WithCancel(t.Context())
	gone := make(chan struct{})
	go func() {
		w.do(t, ctx, "POST", `{"jsonrpc":"2.0","id":1,"method":"tools/list"}`, HeaderSession, id)
		close(gone)
	}()
	old.next(t)
	cancel()
	<-gone
	w.answer(t, "POST", `{"jsonrpc":"2.0","method":"notifications/x"}`, HeaderSession, id)
	if line := old.next(t); !strings.Contains(line, "notifications/x") {
		t.Errorf("the session got %s", line)
	}
}

// TestHTTPSlow checks that a client that takes nothing holds up its session for a
// while only, and is cut off then.
func TestHTTPSlow(t *testing.T) {
	for _, protocol := range []string{"h2", "h3"} {
		t.Run(protocol, func(t *testing.T) {
			w := newWeb(t, HTTPOptions{Stall: 100 * time.Millisecond})
			if protocol == "h3" {
				transport := &http3.Transport{TLSClientConfig: clientConfig("localhost")}
				defer transport.Close()
				w.client = &http.Client{Transport: transport}
			}
			body, headers := modern("0", "tools/list", "")
			greeted := w.ask(t, body, headers...)
			s := w.session(t)
			s.next(t)
			s.say(`{"jsonrpc":"2.0","id":0,"result":{}}`) // or the session would end soon
			resp := <-greeted.resp
			resp.Body.Close()
			body, headers = modern("1", "tools/list", "")
			slow := w.ask(t, body, headers...)
			s.next(t)
			text := strings.Repeat("x", 64<<10)
			for range 1000 {
				s.say(`{"jsonrpc":"2.0","method":"notifications/message","params":{"data":%q}}`, text)
			}
			resp = <-slow.resp
			if n, err := io.Copy(io.Discard, resp.Body); err == nil || n >= 1000*64<<10 {
				t.Errorf("%d bytes came, and then %v", n, err)
			}
			resp.Body.Close()
			// Others go on.
			answered := make(chan int, 1)
			body, headers = modern("2", "tools/list", "")
			go func() {
				status, _, _ := w.answer(t, "POST", body, headers...)
				answered <- status
			}()
			for line := s.next(t); !strings.Contains(line, `"id":2`); line = s.next(t) {
			}
			s.say(`{"jsonrpc":"2.0","id":2,"result":{}}`)
			if status := <-answered; status != 200 {
				t.Errorf("status %d", status)
			}
		})
	}
}

// TestHTTPRest checks that a session that nobody uses ends, and another begins.
func TestHTTPRest(t *testing.T) {
	w := newWeb(t, HTTPOptions{Rest: 20 * time.Millisecond, Away: 20 * time.Millisecond})
	for range 3 {
		body, headers := modern("1", "tools/list", "")
		done := make(chan struct{})
		go func() {
			w.answer(t, "POST", body, headers...)
			close(done)
		}()
		s := w.session(t)
		s.next(t)
		s.say(`{"jsonrpc":"2.0","id":1,"result":{}}`)
		<-done
		for range s.lines { // until the end
		}
	}
	s, id := w.hello(t)
	for range s.lines {
	}
	if status, _, _ := w.answer(t, "POST", `{"jsonrpc":"2.0","id":1,"method":"ping"}`, HeaderSession, id); status != 404 {
		t.Errorf("a session that is over: status %d", status)
	}
}

// TestHTTPGuard checks who may ask at all.
func TestHTTPGuard(t *testing.T) {
	w := newWeb(t, HTTPOptions{Origins: []string{"https://app.example.com"}, Host: func(h string) bool { return h == "127.0.0.1" || h == "broker.example.com" }})
	for _, c := range []struct {
		name    string
		headers []string
		want    int
	}{
		{"no origin", nil, 400}, // no session, that is
		{"an origin that may", []string{"Origin", "https://app.example.com"}, 400},
		{"its own", []string{"Origin", "https://" + w.l.Addr().String()}, 400},
		{"another", []string{"Origin", "https://evil.example.com"}, 403},
		{"none to speak of", []string{"Origin", "null"}, 403},
		{"another's name", []string{"Host", "evil.example.com"}, 421},
		{"another's name and origin", []string{"Host", "evil.example.com", "Origin", "https://evil.example.com"}, 421},
		{"a name of its own", []string{"Host", "broker.example.com:8443"}, 400},
	} {
		status, header, _ := w.answer(t, "POST", `{"jsonrpc":"2.0","id":1,"method":"ping"}`, c.headers...)
		if status != c.want {
			t.Errorf("%s: status %d, want %d", c.name, status, c.want)
		}
		if allowed := header.Get("Access-Control-Allow-Origin"); allowed != "" && status != 400 {
			t.Errorf("%s: allowed to %s", c.name, allowed)
		}
	}
	status, header, _ := w.answer(t, "OPTIONS", "", "Origin", "https://app.example.com", "Access-Control-Request-Method", "POST", "Access-Control-Request-Headers", "mcp-method, mcp-param-x")
	if status != 204 || header.Get("Access-Control-Allow-Headers") != "mcp-method, mcp-param-x" || header.Get("Access-Control-Allow-Origin") != "https://app.example.com" || header.Get("Access-Control-Allow-Credentials") != "" {
		t.Errorf("preflight: %d %v", status, header)
	}
	if status, _, _ := w.answer(t, "OPTIONS", "", "Origin", "https://evil.example.com", "Access-Control-Request-Method", "POST"); status != 403 {
		t.Errorf("preflight of another: %d", status)
	}
}

// TestHTTPVersions checks that the same is to be had over each version of HTTP,
// and announced.
func TestHTTPVersions(t *testing.T) {
	w := newWeb(t, HTTPOptions{})
	h3 := &http3.Transport{TLSClientConfig: clientConfig("localhost")}
	defer h3.Close()
	for want, transport := range map[int]http.RoundTripper{
		1: &http.Transport{TLSClientConfig: clientConfig("localhost"), TLSNextProto: map[string]func(string, *tls.Conn) http.RoundTripper{}, DisableKeepAlives: true},
		2: &http.Transport{TLSClientConfig: clientConfig("localhost"), ForceAttemptHTTP2: true, IdleConnTimeout: time.Millisecond},
		3: h3,
	} {
		w.client = &http.Client{Transport: transport}
		resp, err := w.do(t, t.Context(), "POST", `{"jsonrpc":"2.0","id":1,"method":"ping"}`)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.ProtoMajor != want || resp.StatusCode != 400 {
			t.Errorf("%s: status %d", resp.Proto, resp.StatusCode)
		}
		_, port, _ := strings.Cut(w.l.Addr().String(), ":")
		if service := resp.Header.Get("Alt-Svc"); want < 3 && service != fmt.Sprintf(`h3=":%s"; ma=86400`, port) {
			t.Errorf("%s announces %q", resp.Proto, service)
		}
	}
}

// TestHTTPLong checks that what takes longer than a page may is not cut.
func TestHTTPLong(t *testing.T) {
	defer func(d time.Duration) { httpTime = d }(httpTime)
	httpTime = 500 * time.Millisecond
	h3 := &http3.Transport{TLSClientConfig: clientConfig("localhost")}
	defer h3.Close()
	for protocol, transport := range map[string]http.RoundTripper{
		"h1": &http.Transport{TLSClientConfig: clientConfig("localhost"), TLSNextProto: map[string]func(string, *tls.Conn) http.RoundTripper{}, DisableKeepAlives: true},
		"h2": &http.Transport{TLSClientConfig: clientConfig("localhost"), ForceAttemptHTTP2: true, IdleConnTimeout: time.Millisecond},
		"h3": h3,
	} {
		w := newWeb(t, HTTPOptions{Request: httpTime})
		w.client = &http.Client{Transport: transport}
		s, id := w.hello(t)
		general, err := w.do(t, t.Context(), "GET", "", HeaderSession, id)
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan string, 1)
		go func() {
			_, _, body := w.answer(t, "POST", `{"jsonrpc":"2.0","id":1,"method":"a"}`, HeaderSession, id)
			done <- body
		}()
		s.next(t)
		time.Sleep(2 * httpTime)
		s.say(`{"jsonrpc":"2.0","id":1,"result":{"n":1}}`)
		if body := <-done; body != `{"jsonrpc":"2.0","id":1,"result":{"n":1}}` {
			t.Errorf("%s: the answer is %q", protocol, body)
		}
		s.say(`{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}`)
		if _, data := events(t, bufio.NewReader(general.Body), 1); !strings.Contains(data[0], "list_changed") {
			t.Errorf("%s: %q", protocol, data)
		}
		general.Body.Close()
	}
}

// TestHTTPEnd checks that the end of a session ends its responses.
func TestHTTPEnd(t *testing.T) {
	w := newWeb(t, HTTPOptions{})
	s, id := w.hello(t)
	general, err := w.do(t, t.Context(), "GET", "", HeaderSession, id)
	if err != nil {
		t.Fatal(err)
	}
	defer general.Body.Close()
	body, headers := modern("1", "tools/list", "")
	status := make(chan int, 1)
	go func() {
		code, _, _ := w.answer(t, "POST", body, headers...)
		status <- code
	}()
	shared := w.session(t)
	shared.next(t)
	s.Close()
	shared.Close()
	if b, err := io.ReadAll(general.Body); err != nil || bytes.Contains(b, []byte("data")) {
		t.Errorf("the stream ends with %q, %v", b, err)
	}
	if code := <-status; code != 404 {
		t.Errorf("a request that nobody has answered: status %d", code)
	}
}
