package broker

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"filippo.io/age"

	"example.com/broker/broker/agent"
	"example.com/broker/broker/grant"
	"example.com/broker/broker/identity"
	"example.com/broker/broker/policy"
	"example.com/broker/codec"
	"example.com/broker/recorder"
	"example.com/broker/stream"
)

// A harness is a broker with a real listener, log and CA, and an agent on the
// other end of real tunnels, all in this process.
type harness struct {
	*Broker
	ca       *identity.CA
	log      *recorder.Log
	listener *stream.Listener
	link     *agent.Link
	stopLink func()
	linkEnd  chan error // what the link ended with, before it was stopped
	store    grant.Store
	desk     *grant.Desk
	auditor  *age.X25519Identity // opens the log's originals
}

var echoServers = map[string]agent.Upstream{"cat": &agent.Stdio{Command: []string{"cat"}}, "deaf": &agent.Stdio{Command: []string{"sh", "-c", "cat >/dev/null"}}}

func newHarness(t testing.TB, limits Limits, rules ...policy.Rule) (h *harness, stop func()) {
	t.Helper()
	dir, err := os.MkdirTemp("", "broker-test-")
	if err != nil {
		t.Fatal(err)
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	h = &harness{}
	h.ca, err = identity.OpenCA(dir)
	must(err)
	h.auditor, err = age.GenerateX25519Identity()
	must(err)
	h.log, err = recorder.Open(recorder.Options{Dir: filepath.Join(dir, "log"), Originals: []age.Recipient{h.auditor.Recipient()}})
	must(err)
	p, err := policy.Compile(rules)
	must(err)
	logger := slog.New(slog.NewTextHandler(&testWriter{t: t}, nil))
	tokens := identity.OpenTokens(filepath.Join(dir, "tokens"))
	h.store, err = grant.OpenBadger(filepath.Join(dir, "access"), 0)
	must(err)
	life, end := context.WithCancel(context.Background())
	h.desk, err = grant.Open(life, grant.Options{Store: h.store, Admins: policy.Approvers{Users: []string{"root"}}, Told: func(e grant.Event, _ *grant.Request) {
		if e.Type == grant.IdentityDisabled {
			h.EndDisabled()
		}
	}})
	must(err)
	sealer, err := identity.OpenSealer(dir)
	must(err)
	h.Broker = New(Options{
		Desk: h.desk, Sealer: sealer, URL: "https://broker.example.com",
		CA: h.ca, Tokens: tokens, Users: identity.NewVerifier(h.ca.Certificates()...), Policy: p,
		Servers: map[string]Server{"cat": {}, "deaf": {}, "far": {Agent: "a"}, "gone": {Agent: "nobody"}, "none": {Agent: "a"}},
		Local:   &agent.Agent{Servers: echoServers}, Log: h.log, Limits: limits, Logger: logger,
	})
	keyring := &Keyring{CA: h.ca, Names: []string{"localhost"}}
	h.listener, err = stream.Listen("127.0.0.1:0", stream.Options{TLS: keyring.Config()})
	must(err)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { h.listener.Serve(ctx, h.Handlers()) })

	token, err := tokens.Create("a", time.Minute)
	must(err)
	h.link = &agent.Link{
		Agent:  &agent.Agent{Servers: map[string]agent.Upstream{"far": &agent.Stdio{Command: []string{"cat"}}}},
		Broker: h.listener.Addr().String(), Name: "a", Pin: h.ca.Pin(), Token: token, Dir: filepath.Join(dir, "agent"), Tunnels: 2,
	}
	lctx, stopLink := context.WithCancel(ctx)
	h.linkEnd = make(chan error, 1)
	var link sync.WaitGroup
	link.Go(func() {
		if err := h.link.Run(lctx); err != nil {
			h.linkEnd <- err
		}
	})
	h.stopLink = func() {
		stopLink()
		link.Wait()
		select {
		case err := <-h.linkEnd:
			t.Error(err)
		default:
		}
	}
	waitUntil(t, "the agent's tunnels are up", func() bool {
		h.agents.mu.Lock()
		defer h.agents.mu.Unlock()
		l := h.agents.linked["a"]
		return l != nil && len(l.tunnels) == 2
	})
	return h, func() {
		h.stopLink()
		cancel()
		running.Wait()
		end()
		h.desk.Close()
		if err := errors.Join(h.log.Close(), h.store.Close()); err != nil {
			t.Error(err)
		}
		os.RemoveAll(dir)
	}
}

// testWriter shows the log of a test that fails.
type testWriter struct {
	t  testing.TB
	mu sync.Mutex
}

func (w *testWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.t.Context().Err() == nil {
		w.t.Log(strings.TrimSpace(string(p)))
	}
	return len(p), nil
}

func waitUntil(t testing.TB, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it never happens that %s", what)
		}
	}
}

// dial opens a session as a subject.
func (h *harness) dial(t testing.TB, subject, server string, over func(context.Context, string, *tls.Config) (stream.Conn, error)) stream.Conn {
	t.Helper()
	c, err := over(context.Background(), h.listener.Addr().String(), h.tls(t, subject, server))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// tls is with what subject connects to server.
func (h *harness) tls(t testing.TB, subject, server string) *tls.Config {
	t.Helper()
	key, err := identity.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	der, err := h.ca.IssueUser(identity.Identity{Subject: subject}, key.Public(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{
		ServerName: server + ".localhost", InsecureSkipVerify: true,
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
	}
}

var allowAll = policy.Rule{Name: "all", Users: []string{"*"}, Servers: []string{"*"}, Access: policy.Allow}

func call(id any) string {
	return fmt.Sprintf(`{"jsonrpc":"2.0","id":%v,"method":"tools/call","params":{"name":"x","arguments":{}}}`+"\n", id)
}

// TestSessionEnds checks what a client with a request in flight is told when
// its session ends before its time.
func TestSessionEnds(t *testing.T) {
	timed := allowAll
	timed.Duration = time.Second
	tests := []struct {
		name   string
		rule   policy.Rule
		limits Limits
		server string
		do     func(h *harness)
		want   string
	}{
		{"grant ends", timed, Limits{}, "cat", nil, `"code":410`},
		{"idle", allowAll, Limits{Idle: 200 * time.Millisecond}, "cat", nil, `"code":504`},
		{"agent is lost", allowAll, Limits{}, "far", func(h *harness) { h.stopLink() }, `"code":503,"message":"the connection to the agent is lost`},
		{"policy changes", allowAll, Limits{}, "cat", func(h *harness) {
			p, _ := policy.Compile(nil)
			h.SetPolicy(p)
		}, `"code":403`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h, stop := newHarness(t, tt.limits, tt.rule)
			defer stop()
			c := h.dial(t, "ada", tt.server, stream.Dial)
			defer c.Close()
			io.WriteString(c, call(1))
			in := bufio.NewReader(c)
			if line, err := in.ReadString('\n'); line != call(1) {
				t.Fatalf("%q, %v", line, err)
			}
			if tt.do != nil {
				tt.do(h)
				if tt.name == "policy changes" {
					io.WriteString(c, call(2))
				}
			}
			rest, err := io.ReadAll(in)
			if !strings.Contains(string(rest), `"id":1,"error":{`+tt.want) || err != nil {
				t.Errorf("the client reads %q, %v; want %s", rest, err, tt.want)
			}
			waitUntil(t, "the session is gone", func() bool { return h.Sessions() == 0 })
		})
	}
}

// TestServerEnds checks that a server that dies is no silence.
func TestServerEnds(t *testing.T) {
	h, stop := newHarness(t, Limits{}, allowAll)
	defer stop()
	h.o.Local.Servers = map[string]agent.Upstream{
		"cat":  &agent.Stdio{Command: []string{"head", "-n", "1"}},
		"deaf": &agent.Stdio{Command: []string{"sh", "-c", "echo not a frame; read x; echo '{\"jsonrpc\": bad}'; cat >/dev/null"}},
	}
	for server, want := range map[string]string{
		"cat":  `"id":2,"error":{"code":502,"message":"the server has closed the session"`,
		"deaf": `"id":2,"error":{"code":502,"message":"the server sent what is not a valid frame"`,
	} {
		c := h.dial(t, "ada", server, stream.Dial)
		io.WriteString(c, call(1)+call(2))
		got, err := io.ReadAll(c)
		if !strings.Contains(string(got), want) || err != nil {
			t.Errorf("%s: the client reads %q, %v", server, got, err)
		}
		c.Close()
	}
}

func TestLimits(t *testing.T) {
	h, stop := newHarness(t, Limits{PerIdentity: 2, Sessions: 3, Requests: 2, Frame: 1000}, allowAll)
	defer stop()
	first := func(c stream.Conn) string {
		io.WriteString(c, call(7))
		line, _ := bufio.NewReader(c).ReadString('\n')
		return line
	}
	var open []stream.Conn
	for _, tt := range []struct{ subject, want string }{
		{"ada", call(7)}, {"ada", call(7)}, {"ada", `"id":7,"error":{"code":429,"message":"ada has 2 sessions`},
		{"bob", call(7)}, {"eve", `"id":7,"error":{"code":429,"message":"the broker has as many sessions as it may`},
	} {
		c := h.dial(t, tt.subject, "cat", stream.Dial)
		defer c.Close()
		open = append(open, c)
		if got := first(c); !strings.Contains(got, tt.want) {
			t.Errorf("%s: %q, want %q", tt.subject, got, tt.want)
		}
	}
	c, in := open[0], bufio.NewReader(open[0]) // has request 7 in flight
	exchange := func(out, want string) {
		t.Helper()
		io.WriteString(c, out)
		if line, err := in.ReadString('\n'); !strings.Contains(line, want) {
			t.Errorf("%.60q is answered by %q, %v; want %q", out, line, err, want)
		}
	}
	exchange(call(7), `"id":7,"error":{"code":-32600,"message":"refused: a request with this id is in flight"`)
	exchange(call(8), call(8))
	exchange(call(9), `"id":9,"error":{"code":429`)
	exchange(`{"jsonrpc":"2.0","params":{"id":1,"x":"`+strings.Repeat("x", 5000)+`"},"method":"x","id":10}`+"\n", `"id":10,"error":{"code":413`)
	exchange(`{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":8}}`+"\n", "notifications/cancelled")
	exchange(call(`"\u0061"`), call(`"\u0061"`))
	exchange(call(`"a"`), `"id":"a","error":{"code":-32600`)
}

// TestCancelled checks that a request that was cancelled keeps its id: its late
// answer is nobody else's.
func TestCancelled(t *testing.T) {
	l := ledger{limit: 2}
	add := func(id, method string) addResult {
		var p codec.Parser
		f, err := p.Parse(fmt.Appendf(nil, `{"jsonrpc":"2.0","id":%s,"method":%q}`, id, method), codec.C2S)
		if err != nil {
			t.Fatal(err)
		}
		return l.add(f, "")
	}
	add("1", "tools/list")
	l.cancel([]byte("1"))
	if l.waiting() != 0 || l.has([]byte("1")) {
		t.Error("a cancelled request is waited for")
	}
	if got := add("1", "ping"); got != duplicate {
		t.Errorf("the id of a cancelled request can be used again: %v", got)
	}
	if _, ok := l.done([]byte("1")); ok {
		t.Error("the late answer is delivered")
	}
	if got := add("1", "ping"); got != added {
		t.Errorf("an id stays taken after its answer: %v", got)
	}
	for i := range 10 { // never answered
		id := fmt.Sprint(100 + i)
		if got := add(id, "x"); got != added {
			t.Fatalf("cancelled requests use up the limit: %v", got)
		}
		l.cancel([]byte(id))
	}
	if n := len(l.flying); n > 1+l.limit {
		t.Errorf("%d requests are kept", n)
	}
	if left := l.drain(); len(left) != 1 || string(left[0]) != "1" {
		t.Errorf("drain: %v", left)
	}
}

// TestEndsAtOnce checks that nothing passes once the grant has ended, though the
// server never rests, and that the client is told.
func TestEndsAtOnce(t *testing.T) {
	timed := allowAll
	timed.Duration = 300 * time.Millisecond
	h, stop := newHarness(t, Limits{}, timed)
	defer stop()
	chatty := `trap "" TERM; read x; while :; do echo '{"jsonrpc":"2.0","method":"notifications/message","params":{}}'; sleep 0.01; done`
	h.o.Local.Servers = map[string]agent.Upstream{"cat": &agent.Stdio{Command: []string{"sh", "-c", chatty}}}
	c := h.dial(t, "ada", "cat", stream.Dial)
	defer c.Close()
	io.WriteString(c, call(1))
	start := time.Now()
	in := bufio.NewReader(c)
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			t.Fatalf("the client is not told: %v", err)
		}
		if strings.Contains(line, `"id":1,"error":{"code":410`) {
			break
		}
		if time.Since(start) > time.Minute {
			t.Fatal("the session goes on")
		}
	}
	if rest, err := io.ReadAll(in); len(rest) > 0 || err != nil {
		t.Errorf("after the end the client reads %q, %v", rest, err)
	}
}

// TestLateFirstLine checks that rights are looked at when the session begins,
// not when the client connects.
func TestLateFirstLine(t *testing.T) {
	h, stop := newHarness(t, Limits{}, allowAll)
	defer stop()
	c := h.dial(t, "ada", "cat", stream.Dial)
	defer c.Close()
	waitUntil(t, "the client is in", func() bool { return h.Sessions() == 1 })
	p, err := policy.Compile(nil)
	if err != nil {
		t.Fatal(err)
	}
	h.SetPolicy(p)
	io.WriteString(c, call(1))
	c.CloseWrite()
	if got, _ := io.ReadAll(c); !strings.Contains(string(got), `"code":403`) {
		t.Errorf("the client reads %q", got)
	}
	for s, err := range h.log.Sessions(t.Context()) {
		if err != nil || s.State != recorder.Refused {
			t.Errorf("on record is %+v, %v", s, err)
		}
	}
}

// TestDisabled checks that a disabled identity, certificate or agent is refused
// at once, and that what runs ends.
func TestDisabled(t *testing.T) {
	h, stop := newHarness(t, Limits{}, allowAll)
	defer stop()
	c := h.dial(t, "ada", "far", stream.Dial)
	defer c.Close()
	io.WriteString(c, call(1))
	in := bufio.NewReader(c)
	in.ReadString('\n')
	root := identity.Identity{Subject: "root"}
	if err := h.desk.Disable(t.Context(), grant.User, "ada", root, "left"); err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(in); !strings.Contains(string(rest), `"id":1,"error":{"code":401,"message":"this identity has been disabled"`) || err != nil {
		t.Errorf("the client reads %q, %v", rest, err)
	}
	again := h.dial(t, "ada", "cat", stream.Dial)
	defer again.Close()
	io.WriteString(again, call(1))
	again.CloseWrite()
	if got, _ := io.ReadAll(again); !strings.Contains(string(got), `"code":401`) {
		t.Errorf("again the client reads %q", got)
	}
	if err := h.desk.Disable(t.Context(), grant.Agent, "a", root, ""); err != nil {
		t.Fatal(err)
	}
	waitUntil(t, "the agent's tunnels are down", func() bool {
		h.agents.mu.Lock()
		defer h.agents.mu.Unlock()
		return h.agents.linked["a"] == nil
	})
	// It has come back and learned why: it does not try again.
	if err := <-h.linkEnd; !strings.Contains(err.Error(), errAgentDisabled.Message) {
		t.Errorf("the agent ends with: %v", err)
	}
	if err := h.desk.Enable(t.Context(), grant.Agent, "a", root); err != nil {
		t.Fatal(err)
	}
}

// A pipe is one end of a connection in memory.
type pipe struct{ net.Conn }

func (p pipe) CloseWrite() error { return p.Close() }

// TestAgentOfLater checks that an agent whose certificate is of a later time, because the
// broker's clock is wrong, is told to come again, and another one is not.
func TestAgentOfLater(t *testing.T) {
	ca, err := identity.OpenCA(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	key, err := identity.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	der, err := ca.IssueAgent("far", key.Public(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	a := &agents{ca: ca, handshake: time.Minute, log: slog.New(slog.DiscardHandler)}
	synctest.Test(t, func(t *testing.T) { // where it is the year 2000
		for name, tt := range map[string]struct {
			certs []*x509.Certificate
			code  int
		}{"of later": {[]*x509.Certificate{cert}, CodeUnavailable}, "without": {nil, CodeNotSignedIn}} {
			here, there := net.Pipe()
			go func() {
				a.serve(t.Context(), pipe{there}, stream.Peer{Certificates: tt.certs, Addr: there.RemoteAddr()})
				there.Close()
			}()
			_, err := agent.Call(t.Context(), pipe{here}, agent.MethodHello, agent.Hello{}, nil)
			var refusal *agent.Error
			if !errors.As(err, &refusal) || refusal.Code != tt.code {
				t.Errorf("%s: %v, want %d", name, err, tt.code)
			}
			here.Close()
		}
	})
}

// TestAgentAsClient checks that an agent's certificate opens no session.
func TestAgentAsClient(t *testing.T) {
	h, stop := newHarness(t, Limits{}, allowAll)
	defer stop()
	key, err := identity.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	der, err := h.ca.IssueAgent("a", key.Public(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	c, err := stream.Dial(t.Context(), h.listener.Addr().String(), &tls.Config{
		ServerName: "cat.localhost", InsecureSkipVerify: true,
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, call(1))
	c.CloseWrite()
	if got, _ := io.ReadAll(c); !strings.Contains(string(got), `"code":401`) {
		t.Errorf("the agent reads %q", got)
	}
}

// TestNoID checks that a call without an id reaches no server.
func TestNoID(t *testing.T) {
	h, stop := newHarness(t, Limits{}, allowAll)
	defer stop()
	c := h.dial(t, "ada", "cat", stream.Dial)
	defer c.Close()
	io.WriteString(c, `{"jsonrpc":"2.0","method":"tools/call","params":{"name":"x"}}`+"\n"+`{"jsonrpc":"2.0","method":"notifications/x"}`+"\n")
	c.CloseWrite()
	if got, err := io.ReadAll(c); string(got) != `{"jsonrpc":"2.0","method":"notifications/x"}`+"\n" || err != nil {
		t.Errorf("the server has got %q, %v", got, err)
	}
}

// TestUnreachable checks what clients of servers that cannot be reached are told.
func TestUnreachable(t *testing.T) {
	h, stop := newHarness(t, Limits{}, allowAll)
	defer stop()
	for server, want := range map[string]string{
		"gone":    `"code":503,"message":"agent \"nobody\" is not connected`,
		"none":    `"code":502,"message":"agent \"a\" has no server \"none\"`,
		"unknown": `"code":502,"message":"the broker has no server \"unknown\"`,
	} {
		for name, over := range map[string]func(context.Context, string, *tls.Config) (stream.Conn, error){"tls": stream.Dial, "quic": stream.DialQUIC} {
			c := h.dial(t, "ada", server, over)
			io.WriteString(c, call(1))
			c.CloseWrite()
			if got, err := io.ReadAll(c); !strings.Contains(string(got), `"id":1,"error":{`+want) || err != nil {
				t.Errorf("%s over %s: %q, %v", server, name, got, err)
			}
			c.Close()
		}
	}
}

// TestRenew checks that an agent renews its certificate over a tunnel, and that
// its tunnels do not outlive one that it does not renew.
func TestRenew(t *testing.T) {
	h, stop := newHarness(t, Limits{}, allowAll)
	defer stop()
	h.agents.mu.Lock()
	l := h.agents.linked["a"]
	before := l.until
	h.agents.mu.Unlock()
	waitUntil(t, "a second has passed", func() bool { return time.Now().Add(agentCertificate).Truncate(time.Second).After(before) })
	if err := h.link.Renew(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.agents.mu.Lock()
	after := l.until
	h.agents.mu.Unlock()
	if !after.After(before) {
		t.Errorf("the certificate ends at %v, as before", after)
	}
	h.agents.mu.Lock()
	l.until = time.Now()
	h.agents.mu.Unlock()
	h.agents.expire("a", l)
	waitUntil(t, "new tunnels are up", func() bool {
		h.agents.mu.Lock()
		defer h.agents.mu.Unlock()
		again := h.agents.linked["a"]
		return again != nil && again != l && len(again.tunnels) == 2
	})
}

// TestThousandSessions checks that nothing is left behind by a thousand
// sessions near and far that end in every way: no goroutine, no child process,
// no file descriptor.
func TestThousandSessions(t *testing.T) {
	h, stop := newHarness(t, Limits{PerIdentity: 100}, allowAll)
	defer stop()
	one := func(i int) {
		over := stream.Dial
		if i%3 == 0 {
			over = stream.DialQUIC
		}
		c := h.dial(t, "ada", []string{"cat", "far", "gone"}[i%7%3], over)
		defer c.Close()
		switch rand.IntN(5) {
		case 0: // without a word
		case 1: // inside a frame
			io.WriteString(c, call(1)+`{"jsonrpc`)
		case 2: // with a request in flight
			io.WriteString(c, call(1))
			c.Read(make([]byte, 10))
		default: // in order
			io.WriteString(c, `{"jsonrpc":"2.0","method":"notifications/x"}`+"\n")
			c.CloseWrite()
			io.Copy(io.Discard, c)
		}
	}
	round := func(n int) {
		var wg sync.WaitGroup
		for w := range 8 {
			wg.Go(func() {
				for i := w; i < n; i += 8 {
					one(i)
				}
			})
		}
		wg.Wait()
		h.mu.Lock()
		for _, cancel := range h.sessions { // those that wait for an answer that cat never gives
			cancel(errors.New("end of the round"))
		}
		h.mu.Unlock()
		waitUntil(t, "no session is left", func() bool { return h.Sessions() == 0 })
	}
	round(40) // whatever is made once is made
	goroutines, files, children := runtime.NumGoroutine(), openFiles(t), childProcesses(t)
	round(1000)
	waitUntil(t, "nothing is left of a thousand sessions", func() bool {
		// Badger has a few goroutines that come and go.
		return runtime.NumGoroutine() <= goroutines+5 && openFiles(t) <= files+5 && childProcesses(t) <= children
	})
	t.Logf("goroutines %d → %d, files %d → %d, children %d → %d", goroutines, runtime.NumGoroutine(), files, openFiles(t), children, childProcesses(t))
}

func openFiles(t testing.TB) int {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skip("no /proc/self/fd to count open files in")
	}
	return len(entries)
}

func childProcesses(t testing.TB) (n int) {
	lists, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil || len(lists) == 0 {
		t.Skip("no /proc/self/task/*/children to count child processes in")
	}
	for _, list := range lists {
		if b, err := os.ReadFile(list); err == nil {
			n += len(strings.Fields(string(b)))
		}
	}
	return n
}
