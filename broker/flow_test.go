package broker

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.com/broker/broker/agent"
	"example.com/broker/broker/identity"
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

// TestFlowTooLarge checks that an answer which would cost too much is refused
// alone: the session goes on behind it.
func TestFlowTooLarge(t *testing.T) {
	blob := `"result":{"contents":[{"uri":"x","mimeType":"application/pdf","blob":"` + strings.Repeat("QUFB", 9<<20) + `"}]}`
	for name, answer := range map[string]string{
		"id in front": `{"jsonrpc":"2.0","id":1,` + blob + "}\n",
		"id behind":   `{` + blob + `,"jsonrpc":"2.0","id":1}` + "\n",
	} {
		t.Run(name, func(t *testing.T) {
			f := startFlow(t, Limits{}, masksMail(), tool("a", 1))
			f.answer(answer)
			if line, _ := f.in.ReadString('\n'); !strings.HasPrefix(answer, strings.TrimSpace(line)) {
				t.Errorf("the answer that is cut is %.100q", line)
			}
			if line, _ := f.in.ReadString('\n'); !strings.HasPrefix(line, `{"jsonrpc":"2.0","id":1,"error":{"code":413,`) {
				t.Errorf("behind it comes %.200q", line)
			}
			io.WriteString(f.client, tool("b", 2))
			waitUntil(t, "the call arrives", func() bool {
				for s := range f.log.Sessions(t.Context()) {
					return s.C2S.Frames == 2
				}
				return false
			})
			f.answer(`{"jsonrpc":"2.0","id":2,"result":{}}` + "\n")
			if line, _ := f.in.ReadString('\n'); line != `{"jsonrpc":"2.0","id":2,"result":{}}`+"\n" {
				t.Errorf("then comes %.200q", line)
			}
		})
	}
}

// TestFlowUnrecorded checks that the client can read why its session ends when the
// log fails in the middle of a long answer, and that nothing waits for more of it.
func TestFlowUnrecorded(t *testing.T) {
	rec := &testRecording{out: &bytes.Buffer{}}
	l := lane{direction: codec.S2C, rec: rec, w: rec, gone: errClientGone}
	if err := l.part(nil, recorder.Frame{}, recorder.Delivered, []byte(`{"jsonrpc":"2.0","id":1,"result":["a`), nil); err != nil {
		t.Fatal(err)
	}
	rec.err = recorder.ErrUnavailable
	if err := l.part(nil, recorder.Frame{Verdict: recorder.Found, Bytes: []byte(`[]`)}, recorder.Masked, []byte(`b`), nil); !errors.Is(err, recorder.ErrUnavailable) {
		t.Fatal(err)
	}
	if err := l.end(recorder.Cut); !errors.Is(err, recorder.ErrUnavailable) {
		t.Fatal(err)
	}
	l.say([]byte(`{"jsonrpc":"2.0","id":1,"error":{"code":503,"message":"why"}}`))
	if want := `{"jsonrpc":"2.0","id":1,"result":["a` + "\n" + `{"jsonrpc":"2.0","id":1,"error":{"code":503,"message":"why"}}` + "\n"; rec.out.String() != want {
		t.Errorf("the client reads %q, want %q", rec.out, want)
	}
}

// TestFlowHoldsUp checks that who waits behind a long answer is let go at its end,
// however much it is.
func TestFlowHoldsUp(t *testing.T) {
	rec := &testRecording{out: &bytes.Buffer{}}
	l := lane{direction: codec.S2C, rec: rec, w: rec, gone: errClientGone}
	if err := l.part(nil, recorder.Frame{}, recorder.Delivered, []byte(`{`), nil); err != nil {
		t.Fatal(err)
	}
	queued := make(chan error)
	go func() {
		for range 100 {
			if err := l.queue(recorder.Answered, append(make([]byte, 0, 10001), bytes.Repeat([]byte("x"), 10000)...)); err != nil {
				queued <- err
				return
			}
		}
		queued <- l.flush()
	}()
	waitUntil(t, "the queue is full", func() bool { l.mu.Lock(); defer l.mu.Unlock(); return l.queued.size()+10000 > batchSize })
	if rec.out.String() != "{" {
		t.Errorf("written is %.100q", rec.out)
	}
	if err := l.part(nil, recorder.Frame{}, recorder.Delivered, []byte(`}`), nil); err != nil {
		t.Fatal(err)
	}
	if err := l.end(recorder.Delivered); err != nil {
		t.Fatal(err)
	}
	if err := <-queued; err != nil || rec.out.Len() != 3+100*10001 || !strings.HasPrefix(rec.out.String(), "{}\nxxx") {
		t.Errorf("%v; written are %d bytes, %.20q", err, rec.out.Len(), rec.out)
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

// TestFlowCancelledBefore checks that a long answer to what had been cancelled is
// kept back as a short one is.
func TestFlowCancelledBefore(t *testing.T) {
	f := startFlow(t, Limits{}, masksMail(), tool("a", 1))
	io.WriteString(f.client, `{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}`+"\n"+tool("b", 2))
	waitUntil(t, "the call arrives", func() bool {
		for s := range f.log.Sessions(t.Context()) {
			return s.C2S.Frames == 3
		}
		return false
	})
	f.answer(beginning+`"}]}}`+"\n", `{"jsonrpc":"2.0","id":2,"result":{}}`+"\n")
	if line, _ := f.in.ReadString('\n'); line != `{"jsonrpc":"2.0","id":2,"result":{}}`+"\n" {
		t.Errorf("first comes %.100q", line)
	}
}

// An end is one side of a connection in memory that can be half-closed.
type end struct {
	net.Conn // has the rest
	*io.PipeReader
	*io.PipeWriter
	closed chan struct{} // when our direction has been
}

func (e end) Read(p []byte) (int, error)       { return e.PipeReader.Read(p) }
func (e end) Write(p []byte) (int, error)      { return e.PipeWriter.Write(p) }
func (e end) CloseWrite() error                { close(e.closed); return e.PipeWriter.Close() }
func (e end) Close() error                     { return errors.Join(e.PipeReader.Close(), e.PipeWriter.Close()) }
func (e end) SetReadDeadline(time.Time) error  { return nil }
func (e end) SetWriteDeadline(time.Time) error { return nil }

// TestAnswerAfterInput checks that a server whose client has ended its input is told so
// when the last answer has come, and not later.
func TestAnswerAfterInput(t *testing.T) {
	log, err := recorder.Open(recorder.Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	p, err := policy.Compile([]policy.Rule{allowAll})
	if err != nil {
		t.Fatal(err)
	}
	b := New(Options{Policy: p, Log: log})
	synctest.Test(t, func(t *testing.T) {
		fromClient, asked := io.Pipe()
		answers, toClient := io.Pipe()
		fromServer, server := io.Pipe()
		calls, toServer := io.Pipe()
		a := &admission{identity: identity.Identity{Subject: "ada"}, server: "cat"}
		a.terms = p.Decide(a.identity, a.server)
		c := end{PipeReader: fromClient, PipeWriter: toClient, closed: make(chan struct{})}
		up := end{PipeReader: fromServer, PipeWriter: toServer, closed: make(chan struct{})}
		in := &lineReader{Reader: codec.NewReader(c, codec.Limits{})}
		s := b.newSession("s", a, &client{Conn: c, peer: stream.Peer{Addr: &net.TCPAddr{}}}, in, unrecorded{}, slog.New(slog.DiscardHandler))
		s.open = func(context.Context) (agent.Conn, error) { return up, nil }
		if err := s.reach(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		done := make(chan error)
		go func() { done <- s.run(context.WithCancelCause(t.Context())) }()
		go io.Copy(io.Discard, answers)
		go io.Copy(io.Discard, calls)
		io.WriteString(asked, call(1))
		asked.Close()
		synctest.Wait()
		start := time.Now()
		io.WriteString(server, `{"jsonrpc":"2.0","id":1,"result":{}}`+"\n")
		<-up.closed
		if late := time.Since(start); late > 0 {
			t.Errorf("the server is told %v after its answer", late)
		}
		server.Close()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
