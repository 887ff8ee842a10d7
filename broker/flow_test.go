package broker

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"example.com/broker/broker/agent"
	"example.com/broker/broker/policy"
	"example.com/broker/codec"
	"example.com/broker/codec/detect"
	"example.com/broker/recorder"
	"example.com/broker/stream"
)

// A scripted server is played by the test: it gets the server's end of each session.
type scripted chan net.Conn

func (s scripted) Open(context.Context, agent.Session, *slog.Logger) (agent.Conn, error) {
	ours, theirs := net.Pipe()
	s <- theirs
	return halfPipe{ours}, nil
}

type halfPipe struct{ net.Conn }

func (halfPipe) CloseWrite() error { return nil }

// flowing is a session with a server that is played, in which a call is in flight.
type flowing struct {
	*harness
	client stream.Conn
	in     *bufio.Reader
	server net.Conn
}

// masksMail is allowAll with a detector on.
func masksMail() policy.Rule {
	email, _ := detect.ByName("email")
	r := allowAll
	r.Masking.New = func() *codec.Masker { return codec.NewMasker(detect.New(email), nil) }
	return r
}

func startFlow(t *testing.T, limits Limits, rule policy.Rule, calls ...string) (f *flowing) {
	h, stop := newHarness(t, limits, rule)
	servers := make(scripted, 1)
	h.o.Local.Servers = map[string]agent.Upstream{"cat": servers}
	f = &flowing{harness: h, client: h.dial(t, "ada", "cat", stream.Dial)}
	f.in = bufio.NewReader(f.client)
	t.Cleanup(func() { f.client.Close(); stop() })
	io.WriteString(f.client, strings.Join(calls, ""))
	f.server = <-servers
	t.Cleanup(func() { f.server.Close() })
	requests := bufio.NewReader(f.server)
	for _, want := range calls {
		if line, err := requests.ReadString('\n'); line != want || err != nil {
			t.Fatalf("the server got %q, %v", line, err)
		}
	}
	go io.Copy(io.Discard, requests)
	return f
}

// answer has the server send in the background.
func (f *flowing) answer(parts ...string) {
	go func() {
		for _, p := range parts {
			if _, err := io.WriteString(f.server, p); err != nil {
				return
			}
		}
	}()
}

// first reads n bytes of what arrives.
func (f *flowing) first(t *testing.T, n int) string {
	t.Helper()
	b := make([]byte, n)
	f.client.SetReadDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.ReadFull(f.in, b); err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// rest reads what else arrives until the end of the session, and checks that all
// is on record.
func (f *flowing) rest(t *testing.T, before string) string {
	t.Helper()
	b, err := io.ReadAll(f.in)
	if err != nil {
		t.Fatal(err)
	}
	got := before + string(b)
	waitUntil(t, "the session is gone", func() bool { return f.Sessions() == 0 })
	if replay := f.replay(t, codec.S2C); replay != got {
		at := 0
		for at < min(len(got), len(replay)) && got[at] == replay[at] {
			at++
		}
		t.Errorf("on record are %d bytes, received were %d; from byte %d on: %.60q and %.60q", len(replay), len(got), at, replay[at:], got[at:])
	}
	return got
}

const half = 2 << 20

// beginning is of an answer to request 1, long enough for some of it to pass.
var beginning = `{"jsonrpc":"2.0","id":1,"result":{"content":[{"type":"text","text":"` + strings.Repeat("lorem ipsum ", half/12)

func tool(name string, id int) string {
	return strings.Replace(call(id), `"name":"x"`, `"name":"`+name+`"`, 1)
}

// TestFlowPasses checks that a long answer passes while it arrives, and that what
// else is said meanwhile comes behind it, in the record as on the wire.
func TestFlowPasses(t *testing.T) {
	rule := allowAll
	rule.Calls = []policy.CallRule{{Deny: `tool == "drop"`, Reason: "no"}}
	f := startFlow(t, Limits{}, rule, tool("a", 1), tool("b", 2))
	end := `"}]}}` + "\n"
	f.answer(beginning)
	got := f.first(t, half/2) // though its end has not been sent
	io.WriteString(f.client, tool("drop", 3)+tool("c", 4))
	waitUntil(t, "the call is blocked", func() bool {
		for s := range f.log.Sessions(t.Context()) {
			return s.Blocked > 0
		}
		return false
	})
	f.answer(end, `{"jsonrpc":"2.0","id":2,"result":{}}`+"\n"+`{"jsonrpc":"2.0","id":4,"result":{}}`+"\n")
	all := f.first(t, len(beginning)+len(end)-half/2)
	if got += all; got != beginning+end {
		t.Error("the answer is another one")
	}
	var ids []string
	for range 3 {
		line, _ := f.in.ReadString('\n')
		got += line
		ids = append(ids, string(codec.Member([]byte(strings.TrimSpace(line)), "id")))
	}
	if strings.Join(ids, "") != "324" {
		t.Errorf("behind it come the answers to %v", ids)
	}
	f.client.CloseWrite()
	f.rest(t, got)
	var out bytes.Buffer
	for s := range f.log.Sessions(t.Context()) {
		if s.S2C.Frames != 4 || s.C2S.Frames != 3 || s.S2C.Bytes != int64(len(got)) {
			t.Errorf("counted are %+v and %+v", s.S2C, s.C2S)
		}
		if err := recorder.Replay(t.Context(), &out, f.log, s.ID, recorder.View{}); err != nil {
			t.Fatal(err)
		}
	}
	if !strings.Contains(out.String(), beginning+end) || !strings.Contains(out.String(), "\n"+tool("c", 4)) {
		t.Error("in a replay of both directions, frames are torn")
	}
}

// TestFlowCut checks what becomes of a long answer that does not reach its end as
// it should: the client is told so, what it has is no frame, and all of it is on
// record.
func TestFlowCut(t *testing.T) {
	hides := allowAll
	hides.Calls = []policy.CallRule{{Deny: `tool == "drop"`, Reason: "no"}}
	for _, tt := range []struct {
		name string
		rule policy.Rule
		do   func(f *flowing)
		want string
	}{
		{"control character", masksMail(), func(f *flowing) { f.answer("\x01\"}]}}\n") }, "502"},
		{"server ends", masksMail(), func(f *flowing) { f.server.Close() }, "502"},
		{"duplicate", masksMail(), func(f *flowing) { f.answer(`"}],"content":1}}` + "\n") }, "502"},
		{"method", masksMail(), func(f *flowing) { f.answer(`"}]},"method":"x"}` + "\n") }, "502"},
		{"a list that would have to be filtered", hides, func(f *flowing) { f.answer(`"}],"tools":[{"name":"drop"}]}}` + "\n") }, "502"},
		{"revoked", allowAll, func(f *flowing) { f.sessionsEnd(errGrantRevoked) }, "410"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := startFlow(t, Limits{}, tt.rule, tool("a", 1))
			f.answer(beginning)
			got := f.first(t, half/2)
			tt.do(f)
			got = f.rest(t, got)
			lines := strings.SplitAfter(got, "\n")
			if len(lines) != 3 || !strings.HasPrefix(lines[0], beginning[:half/2]) || !strings.Contains(lines[1], `"id":1,"error":{"code":`+tt.want) {
				t.Fatalf("%d lines, the last ones %.300q", len(lines), lines[1:])
			}
			for s := range f.log.Sessions(t.Context()) {
				cut := 0
				for frame, err := range f.log.Frames(t.Context(), s.ID) {
					if err != nil {
						t.Fatal(err)
					}
					if frame.Verdict == recorder.Cut {
						cut++
					}
				}
				if cut != 1 {
					t.Errorf("%d frames are cut on record", cut)
				}
			}
		})
	}
}

// sessionsEnd ends all sessions.
func (h *harness) sessionsEnd(cause error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, end := range h.sessions {
		end(cause)
	}
}

// TestFlowNot checks which long answers are held until they are whole: those that
// rules leave things out of, those to nobody, and what is no response.
func TestFlowNot(t *testing.T) {
	list := `{"jsonrpc":"2.0","id":1,"method":"tools/list"}` + "\n"
	hides := allowAll
	hides.Calls = []policy.CallRule{{Deny: `tool == "drop"`, Reason: "no"}}
	pad := strings.Repeat("lorem ipsum ", 1<<20/12)
	for _, tt := range []struct{ name, request, answer, want string }{
		{"a list", list, `{"jsonrpc":"2.0","id":1,"result":{"tools":[{"name":"drop"},{"name":"x","description":"` + pad + `"}]}}`,
			`{"jsonrpc":"2.0","id":1,"result":{"tools":[{"name":"x","description":"` + pad + `"}]}}`},
		{"its id behind it", list, `{"result":{"tools":[{"name":"drop"},{"name":"x","description":"` + pad + `"}]},"jsonrpc":"2.0","id":1}`,
			`{"result":{"tools":[{"name":"x","description":"` + pad + `"}]},"jsonrpc":"2.0","id":1}`},
		{"to nobody", call(1), `{"jsonrpc":"2.0","id":7,"result":{"x":"` + pad + `"}}` + "\n" + `{"jsonrpc":"2.0","id":1,"result":{}}`, `{"jsonrpc":"2.0","id":1,"result":{}}`},
		{"a notification", call(1), `{"jsonrpc":"2.0","method":"notifications/message","params":{"x":"` + pad + `"}}`, `{"jsonrpc":"2.0","method":"notifications/message","params":{"x":"` + pad + `"}}`},
		{"an error", call(1), `{"jsonrpc":"2.0","id":1,"error":{"code":1,"message":"` + pad + `"}}`, `{"jsonrpc":"2.0","id":1,"error":{"code":1,"message":"` + pad + `"}}`},
		{"over the limit", list, `{"jsonrpc":"2.0","id":1,"result":{"tools":["` + pad + pad + pad + `"]}}`, `{"jsonrpc":"2.0","id":1,"error":{"code":413,`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := startFlow(t, Limits{Frame: 2 << 20}, hides, tt.request)
			f.answer(tt.answer + "\n")
			got := f.first(t, len(tt.want))
			if got != tt.want {
				t.Errorf("got %.200q… of %d bytes, want %.200q…", got, len(got), tt.want)
			}
		})
	}
}

// TestFlowCancelled checks that the rest of an answer to a request that was
// cancelled in its middle is no fault.
func TestFlowCancelled(t *testing.T) {
	f := startFlow(t, Limits{}, masksMail(), tool("a", 1))
	f.answer(beginning)
	f.first(t, half/2)
	io.WriteString(f.client, `{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}`+"\n"+tool("b", 2))
	waitUntil(t, "the call arrives", func() bool {
		for s := range f.log.Sessions(t.Context()) {
			return s.C2S.Frames == 3
		}
		return false
	})
	f.answer(`"}]}}`+"\n", `{"jsonrpc":"2.0","id":2,"result":{"mail":"a@b.de"}}`+"\n")
	f.in.ReadString('\n')
	if line, _ := f.in.ReadString('\n'); line != `{"jsonrpc":"2.0","id":2,"result":{"mail":"[masked:email]"}}`+"\n" {
		t.Errorf("behind it comes %q", line)
	}
}
