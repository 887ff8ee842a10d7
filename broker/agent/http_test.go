package agent

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"example.com/broker/broker/agent/credential"
)

// An upstreamTest is a session with an HTTP server that a test plays.
type upstreamTest struct {
	Conn
	t     *testing.T
	up    *HTTP
	log   *logText
	lines chan string // of the server; closed at the end
}

// source is a credential that a test makes.
type source func(r *http.Request, s credential.Session) error

func (f source) Authorize(r *http.Request, s credential.Session) error { return f(r, s) }

func openHTTP(t *testing.T, serve http.HandlerFunc, change ...func(*HTTP)) *upstreamTest {
	t.Helper()
	server := httptest.NewServer(serve)
	t.Cleanup(server.Close)
	u := &upstreamTest{t: t, up: &HTTP{URL: server.URL + "/mcp"}, log: &logText{}, lines: make(chan string, 100)}
	for _, c := range change {
		c(u.up)
	}
	a := &Agent{Servers: map[string]Upstream{"s": u.up}, Log: slog.New(slog.NewTextHandler(u.log, nil))}
	c, err := a.Open(t.Context(), Session{ID: "id1", Server: "s", Subject: "ada"})
	if err != nil {
		t.Fatal(err)
	}
	u.Conn = c
	go func() {
		defer close(u.lines)
		for in := bufio.NewReader(c); ; {
			line, err := in.ReadString('\n')
			if err != nil {
				return
			}
			u.lines <- strings.TrimSuffix(line, "\n")
		}
	}()
	t.Cleanup(func() { c.Close() })
	return u
}

func (u *upstreamTest) say(lines ...string) {
	for _, line := range lines {
		io.WriteString(u.Conn, line+"\n")
	}
}

func (u *upstreamTest) next() string {
	u.t.Helper()
	select {
	case line, ok := <-u.lines:
		if !ok {
			return "the end"
		}
		return line
	case <-time.After(20 * time.Second):
		u.t.Fatalf("nothing comes; the log:\n%s", u.log)
		return ""
	}
}

// expect reads these lines.
func (u *upstreamTest) expect(want ...string) {
	u.t.Helper()
	for _, w := range want {
		if got := u.next(); got != w {
			u.t.Errorf("got %s\nwant %s", got, w)
		}
	}
}

const (
	oldList    = `{"jsonrpc":"2.0","id":1,"method":"tools/list"}`
	newList    = `{"jsonrpc":"2.0","id":1,"method":"tools/list","params":{"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}}}`
	listResult = `{"jsonrpc":"2.0","id":1,"result":{"tools":[]}}`
	isStream   = `{"jsonrpc":"2.0","method":"upstream/stream","params":{"id":1}}`
	ofOne      = `{"jsonrpc":"2.0","method":"upstream/related","params":{"id":1}}`
	ofNone     = `{"jsonrpc":"2.0","method":"upstream/related","params":{}}`
)

func failed(message string) string {
	return fmt.Sprintf(`{"jsonrpc":"2.0","id":1,"error":{"code":502,"message":%q}}`, message)
}

// TestHTTPAnswers checks what becomes of a request, whatever the server answers.
func TestHTTPAnswers(t *testing.T) {
	const jsonType, sse = "application/json", "text/event-stream"
	for _, c := range []struct {
		name, kind, body string
		status           int
		want             []string
	}{
		{"json", jsonType, listResult, 200, []string{listResult}},
		{"json with a charset", "application/json; charset=utf-8", listResult, 200, []string{listResult}},
		{"pretty-printed", jsonType, "{\n \"jsonrpc\":\"2.0\",\r\n \"id\":1,\"result\":{}\n}\n", 200, []string{"{  \"jsonrpc\":\"2.0\",\r  \"id\":1,\"result\":{} }"}},
		{"an error", jsonType, `{"jsonrpc":"2.0","id":1,"error":{"code":-32601,"message":"no"}}`, 404, []string{`{"jsonrpc":"2.0","id":1,"error":{"code":-32601,"message":"no"}}`}},
		{"an error of nobody's", jsonType, `{"jsonrpc":"2.0","id":null,"error":{"code":-32000,"message":"no"}}`, 400, []string{`{"jsonrpc":"2.0","id":1,"error":{"code":-32000,"message":"no"}}`}},
		{"an error without an id", jsonType, `{"jsonrpc":"2.0","error":{"code":-32000,"message":"no"}}`, 400, []string{`{"jsonrpc":"2.0","id":1,"error":{"code":-32000,"message":"no"}}`}},
		{"a batch", jsonType, `[{"jsonrpc":"2.0","method":"notifications/message","params":{}},` + listResult + `]`, 200, []string{ofOne, `{"jsonrpc":"2.0","method":"notifications/message","params":{}}`, listResult}},
		{"another's answer", jsonType, `{"jsonrpc":"2.0","id":2,"result":{}}`, 200, []string{`{"jsonrpc":"2.0","id":2,"result":{}}`, failed("the server refused the request (HTTP 200)")}},
		{"an empty body", jsonType, ``, 200, []string{failed("the server refused the request (HTTP 200)")}},
		{"a page", "text/html", "<h1>internal secret</h1>", 500, []string{failed("the server refused the request (HTTP 500)")}},
		{"not allowed", "text/plain", "who are you", 401, []string{failed("the server does not accept the agent's credential")}},
		{"forbidden", "text/plain", "not you", 403, []string{failed("the server does not accept the agent's credential")}},
		{"nothing", "", "", 202, []string{failed("the server refused the request (HTTP 202)")}},
		{"events", sse, ": hello\r\n\r\nevent: message\r\ndata: {\"jsonrpc\":\"2.0\",\r\ndata: \"method\":\"notifications/x\"}\r\n\r\nid: 5\nretry: 10\ndata:" + listResult + "\n\n", 200,
			[]string{isStream, ofOne, `{"jsonrpc":"2.0", "method":"notifications/x"}`, listResult}},
		{"an event of another kind", sse, "event: ping\ndata: x\n\ndata: " + listResult + "\n\n", 200, []string{isStream, listResult}},
		{"a request of the server's", sse, `data: {"jsonrpc":"2.0","id":1,"method":"roots/list"}` + "\n\ndata: " + listResult + "\n\n", 200, []string{isStream, ofOne, `{"jsonrpc":"2.0","id":1,"method":"roots/list"}`, listResult}},
		{"who plays the agent", sse, `data: {"jsonrpc":"2.0","method":"upstream/paused","params":{"id":1}}` + "\n\ndata: " + listResult + "\n\n", 200, []string{isStream, listResult}},
		{"a stream without an answer", sse, "data: {\"jsonrpc\":\"2.0\",\"method\":\"notifications/x\"}\n\n", 200,
			[]string{isStream, ofOne, `{"jsonrpc":"2.0","method":"notifications/x"}`, `{"jsonrpc":"2.0","method":"upstream/paused","params":{"id":1}}`, failed("the server has closed the stream before its answer")}},
		{"an event that is cut", sse, "data: {\"jsonrpc\"", 200, []string{isStream, `{"jsonrpc":"2.0","method":"upstream/paused","params":{"id":1}}`, failed("the server has closed the stream before its answer")}},
	} {
		t.Run(c.name, func(t *testing.T) {
			u := openHTTP(t, func(w http.ResponseWriter, r *http.Request) {
				if c.kind != "" {
					w.Header().Set("Content-Type", c.kind)
				}
				w.WriteHeader(c.status)
				io.WriteString(w, c.body)
			})
			u.say(oldList)
			u.expect(c.want...)
			u.CloseWrite()
			u.expect("the end")
			if strings.Contains(u.log.String(), "secret") {
				t.Errorf("the log has what the server sent: %s", u.log)
			}
		})
	}
}

// TestHTTPSession is a session of the older era, from initialize to DELETE.
func TestHTTPSession(t *testing.T) {
	var mu sync.Mutex
	var seen []string
	listening := make(chan struct{})
	u := openHTTP(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		mu.Lock()
		seen = append(seen, fmt.Sprintf("%s %s %s %s %.60s", r.Method, r.Header.Get("Mcp-Session-Id"), r.Header.Get("Mcp-Protocol-Version"), r.Header.Get("Mcp-Method"), body))
		mu.Unlock()
		switch {
		case r.Method == "GET":
			w.Header().Set("Content-Type", "text/event-stream")
			io.WriteString(w, "data: {\"jsonrpc\":\"2.0\",\"method\":\"notifications/tools/list_changed\"}\n\n")
			w.(http.Flusher).Flush()
			close(listening)
			<-r.Context().Done()
		case strings.Contains(string(body), `"initialize"`):
			w.Header().Set("Mcp-Session-Id", "S1")
			w.Header().Set("Content-Type", "application/json")
			io.WriteString(w, `{"jsonrpc":"2.0","id":0,"result":{"protocolVersion":"2025-06-18"}}`)
		case strings.Contains(string(body), `"id"`):
			w.Header().Set("Content-Type", "application/json")
			io.WriteString(w, listResult)
		case r.Method == "POST":
			w.WriteHeader(202)
		}
	})
	u.say(`{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2025-11-25"}}`)
	u.expect(`{"jsonrpc":"2.0","id":0,"result":{"protocolVersion":"2025-06-18"}}`)
	u.say(`{"jsonrpc":"2.0","method":"notifications/initialized"}`)
	u.expect(ofNone, `{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}`)
	<-listening
	u.say(oldList)
	u.expect(listResult)
	u.CloseWrite()
	u.expect("the end")
	u.Close()
	mu.Lock()
	defer mu.Unlock()
	want := []string{
		`POST    {"jsonrpc":"2.0","id":0,"method":"initialize","params":{"pro`,
		`POST S1 2025-06-18  {"jsonrpc":"2.0","method":"notifications/initialized"}`,
		`GET S1 2025-06-18  `,
		`POST S1 2025-06-18  ` + oldList,
		`DELETE S1 2025-06-18  `,
	}
	if fmt.Sprint(seen) != fmt.Sprint(want) {
		t.Errorf("the server saw\n%s\nwant\n%s", strings.Join(seen, "\n"), strings.Join(want, "\n"))
	}
}

// TestHTTPResume checks that a stream that was cut goes on where it was.
func TestHTTPResume(t *testing.T) {
	u := openHTTP(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		switch {
		case r.Method == "POST":
			io.WriteString(w, "id: 1\nretry: 1\ndata:\n\nid: 2\ndata: {\"jsonrpc\":\"2.0\",\"method\":\"notifications/x\"}\n\n")
		case r.Header.Get("Last-Event-ID") == "2":
			io.WriteString(w, "id: 3\ndata: {\"jsonrpc\":\"2.0\",\"method\":\"notifications/y\"}\n\n")
		case r.Header.Get("Last-Event-ID") == "3":
			io.WriteString(w, "id: 4\ndata: "+listResult+"\n\n")
		default:
			http.Error(w, "what?", 400)
		}
	})
	u.say(oldList)
	u.expect(isStream, `{"jsonrpc":"2.0","method":"upstream/stream","params":{"id":1,"primed":true}}`, ofOne, `{"jsonrpc":"2.0","method":"notifications/x"}`,
		`{"jsonrpc":"2.0","method":"upstream/paused","params":{"id":1,"retry":1}}`, ofOne, `{"jsonrpc":"2.0","method":"notifications/y"}`, listResult)
}

// TestHTTPModern checks the headers of the newer era, and that to cancel is to close.
func TestHTTPModern(t *testing.T) {
	gone := make(chan struct{})
	asked := make(chan http.Header, 10)
	u := openHTTP(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		asked <- r.Header.Clone()
		w.Header().Set("Content-Type", "application/json")
		switch {
		case strings.Contains(string(body), `"notifications/cancelled"`):
			t.Error("the server is told in a frame")
		case strings.Contains(string(body), `"agent-0"`):
			io.WriteString(w, `{"jsonrpc":"2.0","id":"agent-0","result":{"tools":[{"name":"find","inputSchema":{"properties":{"region":{"x-mcp-header":"Region"}}}}]}}`)
		case r.Header.Get("Mcp-Name") == "find" && r.Header.Get("Mcp-Param-Region") == "":
			w.WriteHeader(400)
			io.WriteString(w, `{"jsonrpc":"2.0","id":1,"error":{"code":-32020,"message":"header mismatch"}}`)
		case r.Header.Get("Mcp-Name") == "find":
			io.WriteString(w, `{"jsonrpc":"2.0","id":1,"result":{}}`)
		default:
			<-r.Context().Done()
			close(gone)
		}
	})
	meta := `"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}`
	u.say(`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"find","arguments":{"region":"zürich"},` + meta + `}}`)
	u.expect(`{"jsonrpc":"2.0","id":1,"result":{}}`)
	<-asked
	if h := <-asked; h.Get("Mcp-Method") != "tools/list" || h.Get("Mcp-Protocol-Version") != "2026-07-28" {
		t.Errorf("the list is asked for with %v", h)
	}
	if h := <-asked; h.Get("Mcp-Method") != "tools/call" || h.Get("Mcp-Param-Region") != "=?base64?esO8cmljaA==?=" || h.Get("Mcp-Session-Id") != "" {
		t.Errorf("the call is made with %v", h)
	}
	u.say(`{"jsonrpc":"2.0","id":2,"method":"tools/list","params":{` + meta + `}}`)
	<-asked
	u.say(`{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":2}}`)
	<-gone
}

// TestHTTPCredential checks that it is on each request, goes nowhere else, and
// that why it cannot be had is for the log.
func TestHTTPCredential(t *testing.T) {
	elsewhere := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		t.Errorf("asked elsewhere with %q", r.Header.Get("Authorization"))
	}))
	defer elsewhere.Close()
	u := openHTTP(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer ada/id1" || r.Header.Get("X-Team") != "blue" {
			t.Errorf("headers %v", r.Header)
		}
		http.Redirect(w, r, elsewhere.URL, http.StatusTemporaryRedirect)
	}, func(h *HTTP) {
		h.Credential = source(func(r *http.Request, s credential.Session) error {
			r.Header.Set("Authorization", "Bearer "+s.Subject+"/"+s.ID)
			return nil
		})
		h.Header = func() (http.Header, error) { return http.Header{"X-Team": {"blue"}}, nil }
	})
	u.say(oldList)
	u.expect(failed("the server refused the request (HTTP 307)"))

	u = openHTTP(t, func(http.ResponseWriter, *http.Request) { t.Error("asked without a credential") }, func(h *HTTP) {
		h.Credential = source(func(*http.Request, credential.Session) error { return errors.New("permission denied on mcp@p") })
	})
	u.say(oldList)
	u.expect(failed("the server has not answered"))
	if !strings.Contains(u.log.String(), "permission denied on mcp@p") {
		t.Errorf("the log does not say why: %s", u.log)
	}
}

// TestHTTPGone checks a server that is not there, that dies, and that has
// forgotten the session.
func TestHTTPGone(t *testing.T) {
	u := openHTTP(t, func(w http.ResponseWriter, r *http.Request) {
		c, _, _ := w.(http.Hijacker).Hijack()
		io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{\"json")
		c.Close()
	})
	u.say(oldList)
	u.expect(failed("the server has not answered"))

	u = openHTTP(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Mcp-Session-Id") != "" {
			http.Error(w, "session not found", 404)
			return
		}
		w.Header().Set("Mcp-Session-Id", "S1")
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, `{"jsonrpc":"2.0","id":0,"result":{"protocolVersion":"2025-06-18"}}`)
	})
	u.say(`{"jsonrpc":"2.0","id":0,"method":"initialize","params":{}}`)
	u.next()
	u.say(oldList)
	u.expect(failed("the server has ended the session; connect again"), "the end")

	// What may have arrived is not sent again, though the connection was an old one.
	var mu sync.Mutex
	arrived := 0
	u = openHTTP(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		mu.Lock()
		arrived++
		mu.Unlock()
		if strings.Contains(string(body), "tools/call") {
			c, _, _ := w.(http.Hijacker).Hijack()
			c.Close()
			return
		}
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, listResult)
	})
	u.say(oldList)
	u.expect(listResult)
	u.say(`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"pay"}}`)
	u.expect(failed("the server has not answered"))
	mu.Lock()
	if arrived != 2 {
		t.Errorf("%d requests have arrived", arrived)
	}
	mu.Unlock()

	u = openHTTP(t, nil, func(h *HTTP) { h.URL = "http://127.0.0.1:1/mcp" })
	u.say(oldList)
	u.expect(failed("the server has not answered"))

	u = openHTTP(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, `{"jsonrpc":"2.0","id":1,"result":"`+strings.Repeat("x", 2000)+`"}`)
	}, func(h *HTTP) { h.Frame = 1000 })
	u.say(oldList)
	u.expect(failed("the server's answer is over the agent's limit for a frame"))
}

// TestHTTPClose checks that nothing is left of a session, whatever was under way.
func TestHTTPClose(t *testing.T) {
	block := make(chan struct{})
	before := runtime.NumGoroutine()
	for range 5 {
		u := openHTTP(t, func(w http.ResponseWriter, r *http.Request) {
			if r.Method == "GET" || strings.Contains(r.Header.Get("Accept"), "json") {
				w.Header().Set("Content-Type", "text/event-stream")
				io.WriteString(w, ": x\n\n")
				w.(http.Flusher).Flush()
				select {
				case <-r.Context().Done():
				case <-block:
				}
			}
		})
		u.say(oldList, `{"jsonrpc":"2.0","id":2,"method":"a"}`, newList, `{"jsonrpc":"2.0","method":"notifications/initialized"}`)
		u.next()
		u.Close()
		u.up.client.CloseIdleConnections()
	}
	close(block)
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if n := runtime.NumGoroutine(); n <= before+12 { // the servers themselves
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("%d goroutines, %d before", n, before)
		}
	}
}

// FuzzEvents checks that how the bytes of a stream arrive does not matter, that no event
// holds a newline, and that one which is read while it arrives has the same text.
func FuzzEvents(f *testing.F) {
	f.Add([]byte("id: 1\ndata: {}\n\n"))
	f.Add([]byte(": x\r\ndata: {\"a\":\r\ndata: 1}\r\n\r\nretry: 5\n\n"))
	f.Add([]byte("event: message\ndata:{\"~\":\nevent:message\ndata:1}\nid: 7\n: x\n\ndata: {\"second\":1}\n\n"))
	f.Add([]byte("data: {\"~\":1}\nevent: ping\n\n"))
	f.Add([]byte("data: " + strings.Repeat("~", 32) + "\n\n")) // more than is held
	long := strings.Repeat("x", 33<<10)                        // more than is read at a time
	c := &httpConn{up: &HTTP{Frame: 1 << 20}, log: slog.New(slog.DiscardHandler)}
	read := func(r io.Reader) (all []string, at position, err error) {
		err = c.events(r, &at, c.limit(), func(e event) error {
			if strings.Contains(string(e.data), "\n") || e.more != nil {
				f.Errorf("%q is two lines, or not all", e.data)
			}
			all = append(all, e.id+"\n"+string(e.data))
			return nil
		})
		return all, at, err
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		in = bytes.ReplaceAll(in, []byte("~"), []byte(long))
		want, wantAt, failed := read(strings.NewReader(string(in)))
		got, gotAt, _ := read(iotest.OneByteReader(strings.NewReader(string(in))))
		if fmt.Sprint(got) != fmt.Sprint(want) || gotAt != wantAt {
			t.Errorf("%q: %q at once, %q byte by byte", in, want, got)
		}
		var texts []string
		c.events(strings.NewReader(string(in)), &position{}, 100, func(e event) error {
			if e.more == nil {
				texts = append(texts, string(e.data))
				return nil
			}
			b, err := io.ReadAll(&oneLine{text: io.MultiReader(strings.NewReader(string(e.data)), e.more)})
			if err != nil {
				return err
			}
			if strings.Contains(string(b), "\n") {
				t.Errorf("%q is two lines", b)
			}
			texts = append(texts, string(b))
			return nil
		})
		alike := strings.NewReplacer("\t", " ", "\r", " ")
		for i, text := range texts { // but for one that turns out to be of another kind
			if i >= len(want) && errors.Is(failed, errEvent) {
				break // what is too long to be held has only the one way
			}
			_, whole, _ := strings.Cut(append(want, "")[min(i, len(want))], "\n")
			if whole != "?" && strings.Trim(alike.Replace(text), " ") != strings.Trim(alike.Replace(whole), " ") {
				t.Errorf("event %d of %d bytes is %.100q, and %.100q while it arrives", i, len(in), whole, text)
			}
		}
	})
}
