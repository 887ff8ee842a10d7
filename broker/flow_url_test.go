package broker

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"example.com/broker/broker/agent"
	"example.com/broker/broker/policy"
	"example.com/broker/codec"
	"example.com/broker/stream"
)

// A flowingURL is a session by URL, of the older era, with a server that is played.
type flowingURL struct {
	*harness
	client *http.Client
	id     string
	server net.Conn
	asked  *bufio.Reader
}

func startFlowURL(t *testing.T, limits Limits, rule policy.Rule) *flowingURL {
	h, stop := newHarness(t, limits, rule)
	servers := make(scripted, 1)
	h.o.Local.Servers = map[string]agent.Upstream{"cat": servers}
	transport := &http.Transport{TLSClientConfig: h.tls(t, "ada", "cat")}
	f := &flowingURL{harness: h, client: &http.Client{Transport: transport}}
	t.Cleanup(func() { transport.CloseIdleConnections(); stop() })
	hello := f.post(t, `{"jsonrpc":"2.0","id":"hello","method":"initialize","params":{"protocolVersion":"2025-11-25"}}`)
	f.server = <-servers
	t.Cleanup(func() { f.server.Close() })
	f.asked = bufio.NewReader(f.server)
	f.asked.ReadString('\n')
	io.WriteString(f.server, `{"jsonrpc":"2.0","id":"hello","result":{}}`+"\n")
	resp := <-hello
	resp.Body.Close()
	f.id = resp.Header.Get(stream.HeaderSession)
	return f
}

// post makes a request in the background.
func (f *flowingURL) post(t *testing.T, body string) <-chan *http.Response {
	return f.do(t, "POST", body)
}

func (f *flowingURL) do(t *testing.T, method, body string, headers ...string) <-chan *http.Response {
	answered := make(chan *http.Response, 1)
	r, err := http.NewRequestWithContext(t.Context(), method, "https://"+f.listener.Addr().String()+"/cat/mcp", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	headers = append(headers, "Content-Type", "application/json", "Accept", "application/json, text/event-stream")
	if f.id != "" {
		headers = append(headers, stream.HeaderSession, f.id, stream.HeaderVersion, "2025-11-25")
	}
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	go func() {
		defer close(answered)
		resp, err := f.client.Do(r)
		if err != nil {
			t.Error(err)
			return
		}
		answered <- resp
	}()
	return answered
}

// call posts calls, one after the other, and has the server get them.
func (f *flowingURL) call(t *testing.T, calls ...string) (answers []<-chan *http.Response) {
	for _, c := range calls {
		answers = append(answers, f.post(t, c))
		if line, err := f.asked.ReadString('\n'); line != c || err != nil {
			t.Fatalf("the server got %q, %v", line, err)
		}
	}
	return answers
}

// idLast begins an answer of which nobody knows yet whose it is.
var idLast = `{"result":{"content":[{"type":"text","text":"` + strings.Repeat("lorem ipsum ", half/12)

// TestFlowURL checks that a long answer passes while it arrives into the HTTP response
// that it belongs to, as soon as that is known.
func TestFlowURL(t *testing.T) {
	f := startFlowURL(t, Limits{}, masksMail())
	first := func(resp *http.Response, beginning string) {
		t.Helper()
		b := make([]byte, half/2)
		if _, err := io.ReadFull(resp.Body, b); err != nil || string(b) != beginning[:half/2] {
			t.Fatalf("%.100q, %v", b, err)
		}
	}
	rest := func(resp *http.Response, want string) {
		t.Helper()
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || string(b) != want {
			t.Fatalf("%d bytes, want %d: %.100q, %v", len(b), len(want), b, err)
		}
	}
	t.Run("id in front", func(t *testing.T) {
		a := f.call(t, tool("a", 1), tool("b", 2))
		io.WriteString(f.server, beginning)
		resp := <-a[0]
		first(resp, beginning)
		io.WriteString(f.server, `ada@b.de"}]}}`+"\n"+`{"jsonrpc":"2.0","id":2,"result":{}}`+"\n")
		rest(resp, beginning[half/2:]+`[masked:email]"}]}}`)
		rest(<-a[1], `{"jsonrpc":"2.0","id":2,"result":{}}`)
	})
	t.Run("id behind, of the only request", func(t *testing.T) {
		a := f.call(t, tool("a", 3))
		io.WriteString(f.server, idLast)
		resp := <-a[0]
		first(resp, idLast)
		io.WriteString(f.server, `ada@b.de"}]},"jsonrpc":"2.0","id":3}`+"\n")
		rest(resp, idLast[half/2:]+`[masked:email]"}]},"jsonrpc":"2.0","id":3}`)
	})
	t.Run("id behind, of one of two", func(t *testing.T) {
		a := f.call(t, tool("a", 4), tool("b", 5))
		io.WriteString(f.server, idLast+`ada@b.de"}]},"jsonrpc":"2.0","id":5}`+"\n"+`{"jsonrpc":"2.0","id":4,"result":{}}`+"\n")
		rest(<-a[1], idLast+`[masked:email]"}]},"jsonrpc":"2.0","id":5}`)
		rest(<-a[0], `{"jsonrpc":"2.0","id":4,"result":{}}`)
	})
	t.Run("a client that comes back", func(t *testing.T) {
		a := f.call(t, tool("a", 6))
		io.WriteString(f.server, `{"jsonrpc":"2.0","method":"notifications/message","params":{"level":"info","data":1}}`+"\n"+strings.Replace(beginning, `"id":1`, `"id":6`, 1))
		resp := <-a[0]
		in, id := bufio.NewReader(resp.Body), ""
		for line := ""; line != "\n" || id == ""; { // the first event with an id of its own
			line, _ = in.ReadString('\n')
			if v, ok := strings.CutPrefix(line, "id: "); ok && !strings.Contains(v, "-1") {
				id = strings.TrimSpace(v)
			}
		}
		if b := make([]byte, half/2); true {
			if _, err := io.ReadFull(in, b); err != nil || !strings.Contains(string(b), "lorem ipsum") {
				t.Fatalf("%.100q, %v", b, err)
			}
		}
		resp.Body.Close()
		io.WriteString(f.server, `ada@b.de"}]}}`+"\n")
		waitUntil(t, "the answer is on record", func() bool { return strings.HasSuffix(f.replay(t, codec.S2C), `[masked:email]"}]}}`+"\n") })
		var body []byte
		waitUntil(t, "the stream is free", func() bool {
			back := <-f.do(t, "GET", "", stream.HeaderEvent, id)
			defer back.Body.Close()
			body, _ = io.ReadAll(back.Body)
			return back.StatusCode == http.StatusOK
		})
		want := "data: " + strings.Replace(beginning, `"id":1`, `"id":6`, 1) + `[masked:email]"}]}}` + "\n\n"
		if !strings.HasSuffix(string(body), want) || strings.Count(string(body), "data: ") != 1 {
			t.Errorf("of %d bytes it gets %d: %.200q", len(want), len(body), body)
		}
	})
}

// TestFlowURLCut checks what becomes of a long answer by URL that does not reach its end as it
// should: what the client has of it is no answer.
func TestFlowURLCut(t *testing.T) {
	for name, end := range map[string]string{
		"control character":            "\x01",
		"an answer to another request": `"}]},"jsonrpc":"2.0","id":"listen"}` + "\n",
	} {
		t.Run(name, func(t *testing.T) {
			f := startFlowURL(t, Limits{}, allowAll)
			listen := f.call(t, `{"jsonrpc":"2.0","id":"listen","method":"subscriptions/listen","params":{}}`+"\n")
			a := f.call(t, tool("a", 1))
			io.WriteString(f.server, idLast)
			resp := <-a[0]
			defer resp.Body.Close()
			b := make([]byte, half/2)
			if _, err := io.ReadFull(resp.Body, b); err != nil {
				t.Fatal(err)
			}
			io.WriteString(f.server, end)
			rest, err := io.ReadAll(resp.Body)
			if got := string(b) + string(rest); err == nil || !strings.Contains(got, "\n") || !strings.Contains(got, `"id":1,"error":{"code":502`) {
				t.Errorf("%d bytes come, the last ones %q, and then %v", len(got), got[max(0, len(got)-200):], err)
			}
			other := <-listen[0]
			if b, err := io.ReadAll(other.Body); err != nil || !strings.Contains(string(b), `"id":"listen","error":{"code":502`) {
				t.Errorf("who listens gets %.200q, %v", b, err)
			}
			other.Body.Close()
			waitUntil(t, "the session is gone", func() bool { return f.Sessions() == 0 })
		})
	}
}

// TestFlowAnnounced checks what an agent can say of the answer that it sends next: whose it
// is, so that it passes at once whatever is in flight, and that another follows if it is cut.
func TestFlowAnnounced(t *testing.T) {
	f := startFlowURL(t, Limits{}, masksMail())
	announce := func(id int) string {
		return fmt.Sprintf(`{"jsonrpc":"2.0","method":"upstream/answer","params":{"id":%d}}`+"\n", id)
	}
	end := func(id int) string { return fmt.Sprintf(`ada@b.de"}]},"jsonrpc":"2.0","id":%d}`+"\n", id) }
	failed := `{"jsonrpc":"2.0","id":%d,"error":{"code":502,"message":"the server has not answered"}}`
	cut := func(id int) string {
		return fmt.Sprintf(`{"jsonrpc":"2.0","id":%d,"error":{"code":502,"message":"the server's answer was cut, or is not a valid frame"`, id)
	}
	read := func(resp *http.Response) string {
		t.Helper()
		b, err := io.ReadAll(resp.Body)
		if resp.Body.Close(); err != nil {
			t.Fatal(err)
		}
		return string(b)
	}

	a := f.call(t, tool("a", 1), tool("b", 2))
	io.WriteString(f.server, announce(2)+idLast)
	resp := <-a[1] // before the end is there
	io.WriteString(f.server, end(2)+`{"jsonrpc":"2.0","id":1,"result":{}}`+"\n")
	if got := read(resp); got != idLast+`[masked:email]"}]},"jsonrpc":"2.0","id":2}` {
		t.Errorf("the answer is of %d bytes, the last ones %q", len(got), got[max(0, len(got)-100):])
	}
	if got := read(<-a[0]); got != `{"jsonrpc":"2.0","id":1,"result":{}}` {
		t.Errorf("the other is %.100q", got)
	}

	// It is cut: the session goes on.
	a = f.call(t, tool("a", 3), tool("b", 4))
	io.WriteString(f.server, announce(3)+idLast+"\n"+fmt.Sprintf(failed, 3)+"\n"+`{"jsonrpc":"2.0","id":4,"result":{}}`+"\n")
	resp = <-a[0]
	b, err := io.ReadAll(resp.Body)
	if resp.Body.Close(); err == nil || len(b) > len(idLast) && !strings.Contains(string(b), "\n"+cut(3)) {
		t.Errorf("of what was cut %d bytes come, the last ones %q, and then %v", len(b), b[max(0, len(b)-100):], err)
	}
	if got := read(<-a[1]); got != `{"jsonrpc":"2.0","id":4,"result":{}}` {
		t.Errorf("the other is %.100q", got)
	}

	// So it does where it had to be held.
	a = f.call(t, strings.Replace(tool("a", 5), "tools/call", "tools/list", 1))
	io.WriteString(f.server, announce(5)+idLast+"\n"+fmt.Sprintf(failed, 5)+"\n")
	if got := read(<-a[0]); !strings.HasPrefix(got, cut(5)) {
		t.Errorf("what was held and cut is %.100q", got)
	}
	// And where the broker refuses what the agent has not: the next answer is in order.
	hides := masksMail()
	hides.Calls = []policy.CallRule{{Deny: `tool == "drop"`, Reason: "no"}}
	p, err := policy.Compile([]policy.Rule{hides})
	if err != nil {
		t.Fatal(err)
	}
	f.SetPolicy(p)
	for i, answer := range []string{beginning + `"}],"tools":[]}}`, `{"jsonrpc":"2.0","id":1,"result":{"tools":[],` + beginning[len(`{"jsonrpc":"2.0","id":1,"result":{`):] + `"}]}}`} {
		id := 10 * (i + 1)
		a = f.call(t, tool("a", id), tool("b", id+1))
		io.WriteString(f.server, announce(id)+strings.Replace(answer, `"id":1`, fmt.Sprintf(`"id":%d`, id), 1)+"\n"+fmt.Sprintf(`{"jsonrpc":"2.0","id":%d,"result":{}}`, id+1)+"\n")
		resp = <-a[0]
		if b, _ := io.ReadAll(resp.Body); !strings.Contains(string(b), cut(id)) {
			t.Errorf("instead of what is refused come %d bytes, the last ones %q", len(b), b[max(0, len(b)-200):])
		}
		resp.Body.Close()
		if got := read(<-a[1]); got != fmt.Sprintf(`{"jsonrpc":"2.0","id":%d,"result":{}}`, id+1) {
			t.Errorf("the other is %.100q", got)
		}
	}
	for frame, err := range f.log.Frames(t.Context(), f.session(t)) {
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(frame.Bytes, []byte("upstream/")) {
			t.Errorf("on record is %.100q", frame.Bytes)
		}
	}

	// What was announced holds for one line.
	a = f.call(t, tool("a", 6), tool("b", 7))
	io.WriteString(f.server, announce(6)+`{"jsonrpc":"2.0","id":7,"result":{}}`+"\n"+`{"broken`+"\n")
	read(<-a[1])
	if got := read(<-a[0]); !strings.Contains(got, `"id":6,"error":{"code":502,"message":"the server sent what is not a valid frame"`) {
		t.Errorf("behind what was not announced comes %.200q", got)
	}

	// And it must be true.
	f = startFlowURL(t, Limits{}, masksMail())
	a = f.call(t, tool("a", 6), tool("b", 7))
	io.WriteString(f.server, announce(6)+idLast)
	resp = <-a[0]
	io.WriteString(f.server, end(7))
	if b, err = io.ReadAll(resp.Body); err == nil {
		t.Errorf("another's answer comes in order: %d bytes", len(b))
	}
	resp.Body.Close()
	if got := read(<-a[1]); !strings.Contains(got, `"id":7,"error":{"code":502`) {
		t.Errorf("the other is %.100q", got)
	}
}

// TestFlowURLCancelled checks that the session goes on where the answer to a request that was
// cancelled in its middle would cost too much.
func TestFlowURLCancelled(t *testing.T) {
	f := startFlowURL(t, Limits{}, allowAll)
	a := f.call(t, tool("a", 1), tool("b", 2))
	io.WriteString(f.server, beginning)
	resp := <-a[0]
	defer resp.Body.Close()
	cancelled := <-f.post(t, `{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}`)
	cancelled.Body.Close()
	f.asked.ReadString('\n')
	io.WriteString(f.server, `"}],"n":`+strings.Repeat("1", 700<<10)+"}}\n"+`{"jsonrpc":"2.0","id":2,"result":{}}`+"\n")
	other := <-a[1]
	defer other.Body.Close()
	if b, err := io.ReadAll(other.Body); string(b) != `{"jsonrpc":"2.0","id":2,"result":{}}` || err != nil {
		t.Errorf("the other gets %.200q, %v", b, err)
	}
}

// TestFlowURLTooLarge checks that what must be held is refused over the limit.
func TestFlowURLTooLarge(t *testing.T) {
	f := startFlowURL(t, Limits{Frame: 1 << 20}, allowAll)
	a := f.call(t, tool("a", 1), tool("b", 2))
	io.WriteString(f.server, idLast+`"}]},"jsonrpc":"2.0","id":2}`+"\n"+`{"jsonrpc":"2.0","id":1,"result":{}}`+"\n")
	for i, want := range []string{`{"jsonrpc":"2.0","id":1,"result":{}}`, `{"jsonrpc":"2.0","id":2,"error":{"code":413,`} {
		resp := <-a[i]
		if b, err := io.ReadAll(resp.Body); !strings.HasPrefix(string(b), want) || err != nil {
			t.Errorf("got %.100q, %v, want %s", b, err, want)
		}
		resp.Body.Close()
	}
}

// session returns the id of the newest one.
func (h *harness) session(t *testing.T) string {
	t.Helper()
	for s, err := range h.log.Sessions(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		return s.ID
	}
	t.Fatal("there is no session")
	return ""
}
