package agent

import (
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

const (
	longCall = `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"x"}}`
	isAnswer = `{"jsonrpc":"2.0","method":"upstream/answer","params":{"id":1}}`
)

// longText is what a long answer has in it, over what is held and then some.
var longText = strings.Repeat("lorem ipsum ", longAnswer/12+100_000)

// TestHTTPLong checks that a long answer passes before its end is there, whatever the server
// sends it in, and what becomes of it if that does not come as it should.
func TestHTTPLong(t *testing.T) {
	const jsonType, sse = "application/json", "text/event-stream"
	head, tail := `{"jsonrpc":"2.0","id":1,"result":{"text":"`+longText, `"}}`
	whole := head + tail
	for _, c := range []struct {
		name, kind, begin, end string
		broken                 bool // the server ends it so
		want                   []string
		part                   bool // of want[1], some comes
		over                   bool // the session is, then
	}{
		{name: "json", kind: jsonType, begin: head, end: tail + "\n", want: []string{isAnswer, whole}},
		{name: "its id behind", kind: jsonType, begin: `{"result":{"text":"` + longText, end: `"},` + "\n" + `"jsonrpc":"2.0","id":1}`,
			want: []string{isAnswer, `{"result":{"text":"` + longText + `"},` + "\t" + `"jsonrpc":"2.0","id":1}`}},
		{name: "pretty-printed", kind: jsonType, begin: "{\n" + head[1:], end: "\"\r\n}\n}\n\n", want: []string{isAnswer, "{\t" + head[1:] + "\"\t\t}\t}"}},
		{name: "a newline in a string", kind: jsonType, begin: head, end: "\n" + tail,
			want: []string{isAnswer, head, failed("the server sent what is not a valid frame")}, part: true, over: true},
		{name: "no frame", kind: jsonType, begin: head, end: `"}]`, want: []string{isAnswer, head + `"}`, failed("the server sent what is not a valid frame")}, part: true, over: true},
		{name: "cut", kind: jsonType, begin: head, broken: true, want: []string{isAnswer, head, failed(errLost)}, part: true},
		{name: "an event", kind: sse, begin: "event: message\ndata: " + head, end: tail + "\n\n", want: []string{isStream, isAnswer, whole}},
		{name: "an event of several lines", kind: sse, begin: "data: {\r\ndata: " + head[1:], end: "\"}\r\ndata: }\r\nretry: 5\r\n\r\n",
			want: []string{isStream, isAnswer, "{\t" + head[1:] + "\"}\t}"}},
		{name: "an event, cut", kind: sse, begin: "data: " + head, broken: true, want: []string{isStream, isAnswer, head, failed(errLost)}, part: true},
		{name: "an event whose end is missing", kind: sse, begin: "data: " + head, end: tail + "\n", want: []string{isStream, isAnswer, whole, failed(errLost)}, part: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			first := make(chan struct{})
			u := openHTTP(t, func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Type", c.kind)
				io.WriteString(w, c.begin)
				http.NewResponseController(w).Flush()
				<-first
				io.WriteString(w, c.end)
				if c.broken {
					panic(http.ErrAbortHandler)
				}
			})
			u.say(longCall)
			want := c.want
			for want[0] != isAnswer {
				u.expect(want[0])
				want = want[1:]
			}
			u.expect(isAnswer) // with the first part of it
			close(first)
			got := u.next()
			if got != want[1] && !(c.part && strings.HasPrefix(want[1], got) && len(got) > longAnswer) {
				t.Errorf("%d bytes came, of %d; the last ones %q", len(got), len(want[1]), got[max(0, len(got)-50):])
			}
			u.expect(want[2:]...)
			if !c.over {
				u.CloseWrite()
			}
			u.expect("the end")
		})
	}
}

// TestHTTPLongHeld checks which long answers come only when they are whole.
func TestHTTPLongHeld(t *testing.T) {
	const jsonType, sse = "application/json", "text/event-stream"
	list := `{"jsonrpc":"2.0","id":1,"result":{"tools":[],"text":"` + longText + `"}}`
	other := `{"jsonrpc":"2.0","id":7,"result":{"text":"` + longText + `"}}`
	paused := `{"jsonrpc":"2.0","method":"upstream/paused","params":{"id":1}}`
	for _, c := range []struct {
		name, request, kind, body string
		limit                     int
		want                      []string
	}{
		{"a list", oldList, jsonType, list, 0, []string{list}},
		{"a list in an event", oldList, sse, "data: " + list + "\n\n", 0, []string{isStream, list}},
		{"for which one can come back", longCall, sse, "id: 1\ndata: " + list + "\n\n", 0, []string{isStream, list}},
		{"an event of another kind", longCall, sse, "event: ping\ndata: " + list + "\n\ndata: " + listResult + "\n\n", 0, []string{isStream, listResult}},
		{"another's", longCall, jsonType, " " + other + " ", 0, []string{other, failed("the server refused the request (HTTP 200)")}},
		{"a list over the limit", oldList, jsonType, list, longAnswer + 1, []string{failed("the server's answer is over the agent's limit for a frame")}},
		{"another's over the limit", longCall, jsonType, other, longAnswer + 1, []string{failed("the server's answer is over the agent's limit for a frame")}},
		{"a list over the limit in an event", oldList, sse, "data: " + list + "\n\n", longAnswer + 1, []string{isStream, paused, failed("the server has closed the stream before its answer")}},
		{"a call's over the limit", longCall, sse, "data: " + list + "\n\n", longAnswer + 1, []string{isStream, isAnswer, list}},
	} {
		t.Run(c.name, func(t *testing.T) {
			u := openHTTP(t, func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Type", c.kind)
				io.WriteString(w, c.body)
			}, func(up *HTTP) { up.Frame = c.limit })
			u.say(c.request)
			for _, w := range c.want {
				if got := u.next(); got != w {
					t.Errorf("got %d bytes, %.200q\nwant %.200q", len(got), got, w)
				}
			}
		})
	}
}

// TestHTTPLongStalls checks that a server which stops in the middle of a long answer does not
// hold up the session's others for ever.
func TestHTTPLongStalls(t *testing.T) {
	u := openHTTP(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if body, _ := io.ReadAll(r.Body); strings.Contains(string(body), `"id":2`) {
			io.WriteString(w, `{"jsonrpc":"2.0","id":2,"result":{}}`)
			return
		}
		io.WriteString(w, `{"jsonrpc":"2.0","id":1,"result":{"text":"`+longText)
		http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}, func(up *HTTP) { up.Stall = 500 * time.Millisecond })
	u.say(longCall)
	u.expect(isAnswer)
	u.say(strings.Replace(longCall, `"id":1`, `"id":2`, 1))
	if got := u.next(); !strings.HasPrefix(got, `{"jsonrpc":"2.0","id":1,"result":{"text":"lorem`) {
		t.Errorf("got %.100q", got)
	}
	got := []string{u.next(), u.next()}
	slices.Sort(got)
	if got[0] != failed(errLost) || got[1] != `{"jsonrpc":"2.0","id":2,"result":{}}` {
		t.Errorf("then %q", got)
	}
}
