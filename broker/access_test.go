package broker

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/modelcontextprotocol/go-sdk/jsonrpc"
	"github.com/modelcontextprotocol/go-sdk/mcp"

	"example.com/broker/broker/agent"
	"example.com/broker/broker/grant"
	"example.com/broker/broker/identity"
	"example.com/broker/broker/policy"
	"example.com/broker/codec"
	"example.com/broker/recorder"
	"example.com/broker/stream"
)

// An sdkUpstream is a server on the official SDK, in this process.
type sdkUpstream struct {
	versions []string     // that it supports; none: all
	opened   atomic.Int32 // sessions
	drops    atomic.Int32 // calls of drop that arrived
}

type pipeConn struct{ net.Conn }

// CloseWrite ends both ways: such a server has nothing more to say.
func (c pipeConn) CloseWrite() error { return c.Close() }

func (u *sdkUpstream) Open(context.Context, agent.Session, *slog.Logger) (agent.Conn, error) {
	u.opened.Add(1)
	s := mcp.NewServer(&mcp.Implementation{Name: "shop", Version: "7"}, &mcp.ServerOptions{SupportedProtocolVersions: u.versions})
	type table struct {
		Table string `json:"table"`
	}
	mcp.AddTool(s, &mcp.Tool{Name: "drop"}, func(_ context.Context, r *mcp.CallToolRequest, in table) (*mcp.CallToolResult, any, error) {
		u.drops.Add(1)
		if r.Params.RequestState != "" || r.Params.InputResponses != nil {
			return nil, nil, errors.New("what answers the broker has reached the server")
		}
		return &mcp.CallToolResult{Content: []mcp.Content{&mcp.TextContent{Text: "dropped " + in.Table}}}, nil, nil
	})
	mcp.AddTool(s, &mcp.Tool{Name: "slow"}, func(ctx context.Context, _ *mcp.CallToolRequest, _ any) (*mcp.CallToolResult, any, error) {
		<-ctx.Done()
		return nil, nil, ctx.Err()
	})
	ours, theirs := net.Pipe()
	go s.Run(context.Background(), &mcp.IOTransport{Reader: theirs, Writer: theirs})
	return pipeConn{ours}, nil
}

const (
	older = "2025-11-25"
	newer = "2026-07-28"
)

// A tap keeps what a client has read.
type tap struct {
	stream.Conn
	mu   sync.Mutex
	read bytes.Buffer
}

func (t *tap) Read(p []byte) (int, error) {
	n, err := t.Conn.Read(p)
	t.mu.Lock()
	t.read.Write(p[:n])
	t.mu.Unlock()
	return n, err
}

// A person is an MCP client on the official SDK, in a session with the server shop.
type person struct {
	*mcp.ClientSession
	t       *testing.T
	tap     *tap
	changed chan struct{} // its list of tools
	urls    chan string   // that it was asked to open
}

// connect is subject's session in an era. opens says that the client can open
// URLs, and what its person does then.
func (h *harness) connect(t *testing.T, subject, version string, opens func(url string) (action string)) *person {
	t.Helper()
	p := &person{t: t, tap: &tap{Conn: h.dial(t, subject, "shop", stream.Dial)}, changed: make(chan struct{}, 8), urls: make(chan string, 8)}
	o := &mcp.ClientOptions{
		ToolListChangedHandler: func(context.Context, *mcp.ToolListChangedRequest) { p.changed <- struct{}{} },
		Capabilities:           &mcp.ClientCapabilities{},
	}
	if opens != nil {
		o.Capabilities.Elicitation = &mcp.ElicitationCapabilities{URL: &mcp.URLElicitationCapabilities{}}
		o.ElicitationHandler = func(_ context.Context, r *mcp.ElicitRequest) (*mcp.ElicitResult, error) {
			p.urls <- r.Params.URL
			return &mcp.ElicitResult{Action: opens(r.Params.URL)}, nil
		}
	}
	s, err := mcp.NewClient(&mcp.Implementation{Name: "test", Version: "1"}, o).
		Connect(t.Context(), &mcp.IOTransport{Reader: p.tap, Writer: p.tap}, &mcp.ClientSessionOptions{ProtocolVersion: version})
	if err != nil {
		t.Fatal(err)
	}
	p.ClientSession = s
	t.Cleanup(func() { s.Close() })
	return p
}

func (p *person) tools() (names []string) {
	p.t.Helper()
	r, err := p.ListTools(p.t.Context(), nil)
	if err != nil {
		p.t.Fatal(err)
	}
	for _, tool := range r.Tools {
		names = append(names, tool.Name)
	}
	slices.Sort(names)
	return names
}

// call calls a tool and returns the text of its answer, or the JSON-RPC error.
func (p *person) call(tool string, args map[string]any, token any) (string, *jsonrpc.Error) {
	params := &mcp.CallToolParams{Name: tool, Arguments: args}
	if token != nil {
		params.SetProgressToken(token)
	}
	r, err := p.CallTool(p.t.Context(), params)
	var rpc *jsonrpc.Error
	if errors.As(err, &rpc) {
		return "", rpc
	}
	if err != nil {
		return "", &jsonrpc.Error{Message: err.Error()}
	}
	return r.Content[0].(*mcp.TextContent).Text, nil
}

// refused checks for a refusal with that code.
func (p *person) refused(err *jsonrpc.Error, code int64, part string) {
	p.t.Helper()
	if err == nil || err.Code != code || !strings.Contains(err.Message, part) {
		p.t.Errorf("refused with %v, want %d and %q", err, code, part)
	}
}

// newShop is a harness with the server shop, where this is the rule for all but
// kim, who may use it.
func newShop(t *testing.T, rule policy.Rule, versions ...string) (*harness, *sdkUpstream) {
	t.Helper()
	rule.Name, rule.Users, rule.Servers = "shop", []string{"*"}, []string{"shop"}
	rule.Asking.Approvers = policy.Approvers{Users: []string{"grace", "ada"}}
	h, stop := newHarness(t, Limits{}, policy.Rule{Name: "kim", Users: []string{"kim"}, Servers: []string{"*"}, Access: policy.Allow}, rule)
	t.Cleanup(stop)
	u := &sdkUpstream{versions: versions}
	h.o.Servers["shop"] = Server{}
	h.o.Local = &agent.Agent{Servers: map[string]agent.Upstream{"shop": u}}
	return h, u
}

// pending waits for the one request that grace may decide on.
func (h *harness) pending(t *testing.T) (r grant.Request) {
	t.Helper()
	waitUntil(t, "there is a request", func() bool {
		all := h.desk.Pending(grace)
		if len(all) == 1 {
			r = all[0]
		}
		return len(all) == 1
	})
	return r
}

var grace = identity.Identity{Subject: "grace"}

func (h *harness) decide(t *testing.T, yes bool) grant.Request {
	t.Helper()
	r, err := h.desk.Decide(t.Context(), h.pending(t).ID, grace, grant.Vote{Yes: yes, Comment: "as you like"})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// decideSoon decides on the next request, while the test waits for what follows.
func (h *harness) decideSoon(t *testing.T, yes bool) {
	ctx := t.Context()
	go func() {
		for ctx.Err() == nil {
			for _, r := range h.desk.Pending(grace) {
				if _, err := h.desk.Decide(t.Context(), r.ID, grace, grant.Vote{Yes: yes, Comment: "as you like"}); err != nil {
					t.Error(err)
				}
				return
			}
			time.Sleep(time.Millisecond)
		}
	}()
}

// TestWaitingRoom goes through the life of a session that waits for its grant,
// in both eras.
func TestWaitingRoom(t *testing.T) {
	for _, version := range []string{older, newer} {
		t.Run(version, func(t *testing.T) {
			h, u := newShop(t, policy.Rule{Access: policy.Approval, Asking: policy.Asking{Reason: "required"}}, version)
			h.connect(t, "kim", version, nil).Close() // the server's face has been seen
			seen := u.opened.Load()

			p := h.connect(t, "ada", version, nil)
			if got := p.InitializeResult().ServerInfo.Name; got != "shop" {
				t.Errorf("the room shows %q as the server", got)
			}
			if got := p.tools(); !slices.Equal(got, []string{"request_access"}) {
				t.Errorf("tools in the waiting room: %q", got)
			}
			_, err := p.call("drop", map[string]any{"table": "t"}, nil)
			p.refused(err, 428, "https://broker.example.com/access/shop")
			if text, err := p.call("request_access", map[string]any{}, nil); err != nil || !strings.Contains(text, "a reason is required") {
				t.Errorf("request without a reason: %q, %v", text, err)
			}
			if n := len(h.desk.Pending(grace)); n != 0 || u.opened.Load() != seen {
				t.Fatalf("looking around has made %d requests and %d sessions with the server", n, u.opened.Load()-seen)
			}

			answer := make(chan string)
			go func() {
				text, err := p.call("request_access", map[string]any{"reason": "OPS-1", "duration": "30m"}, "tok")
				if err != nil {
					text = err.Error()
				}
				answer <- text
			}()
			r := h.pending(t)
			if r.Reason != "OPS-1" || time.Duration(r.Duration) != 30*time.Minute || r.Subject != "ada" {
				t.Errorf("request is %+v", r)
			}
			// Those who decide may see the request before the room knows of it.
			waitUntil(t, "a refusal names the request", func() bool {
				_, err = p.call("drop", map[string]any{"table": "t"}, nil)
				return !strings.Contains(fmt.Sprint(err), "/access/shop")
			})
			p.refused(err, 428, "https://broker.example.com/requests/"+r.ID)
			r = h.decide(t, true)
			if text := <-answer; !strings.Contains(text, "is granted for 30m") {
				t.Errorf("request_access answers %q", text)
			}
			<-p.changed
			if got := p.tools(); !slices.Equal(got, []string{"drop", "slow"}) {
				t.Errorf("tools with the grant: %q", got)
			}
			if text, err := p.call("drop", map[string]any{"table": "t"}, nil); err != nil || text != "dropped t" {
				t.Errorf("call with the grant: %q, %v", text, err)
			}

			// Revoked in the middle of a call.
			ended := make(chan *jsonrpc.Error)
			go func() {
				_, err := p.call("slow", map[string]any{}, nil)
				ended <- err
			}()
			time.Sleep(50 * time.Millisecond) // the call is on its way, or not: both end alike
			start := time.Now()
			if _, err := h.desk.Revoke(t.Context(), r.Grant, grace, "enough", "cli"); err != nil {
				t.Fatal(err)
			}
			p.refused(<-ended, 410, "was revoked")
			t.Logf("ended %v after it was revoked", time.Since(start).Round(time.Millisecond))
			waitUntil(t, "the session is gone", func() bool { return h.Sessions() == 0 })
			p.tap.mu.Lock()
			read := p.tap.read.String()
			p.tap.mu.Unlock()
			if got := h.replay(t, codec.S2C); got != read {
				t.Errorf("replayed is\n%s\nthe client has read\n%s", got, read)
			}
			if got := h.replay(t, codec.C2S); strings.Contains(got, "request_access") || strings.Count(got, `"method":"tools/call"`) != 2 {
				t.Errorf("the server has received\n%s", got)
			}
		})
	}
}

// replay returns what one side of the newest session has received.
func (h *harness) replay(t *testing.T, d codec.Direction) string {
	t.Helper()
	for s, err := range h.log.Sessions(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		err := recorder.Replay(t.Context(), &out, h.log, s.ID, recorder.View{Want: func(f recorder.Frame) bool {
			return f.Direction == d && f.Verdict != recorder.Blocked
		}})
		if err != nil {
			t.Fatal(err)
		}
		return out.String()
	}
	t.Fatal("nothing is on record")
	return ""
}

// TestRoomRefused checks the ways out of the waiting room but the grant.
func TestRoomRefused(t *testing.T) {
	h, u := newShop(t, policy.Rule{Access: policy.Approval, Asking: policy.Asking{Hold: 50 * time.Millisecond}}, older)
	p := h.connect(t, "ada", older, nil)
	if text, err := p.call("request_access", nil, nil); err != nil || !strings.Contains(text, "waits for a decision by grace, ada") || !strings.Contains(text, "https://broker.example.com/requests/req-") {
		t.Errorf("after the hold: %q, %v", text, err)
	}
	h.decide(t, false)
	h.decideSoon(t, false)
	text, err := p.call("request_access", map[string]any{"reason": "again"}, 1)
	if err != nil || !strings.Contains(text, "denied: as you like") {
		t.Errorf("denied: %q, %v", text, err)
	}
	if got := p.tools(); !slices.Equal(got, []string{"request_access"}) || u.opened.Load() != 0 {
		t.Errorf("after the no: tools %q, %d sessions with the server", got, u.opened.Load())
	}
	// Somebody else's grant is not mine.
	if _, err := h.desk.Ask(t.Context(), grant.Ask{By: identity.Identity{Subject: "eve"}, Server: "shop", Terms: h.policy.Load().Decide(identity.Identity{Subject: "eve"}, "shop")}); err != nil {
		t.Fatal(err)
	}
	h.decide(t, true)
	if got := p.tools(); !slices.Equal(got, []string{"request_access"}) {
		t.Errorf("with another's grant: tools %q", got)
	}
	// A policy that gives nothing any more ends the session.
	none, _ := policy.Compile(nil)
	h.SetPolicy(none)
	_, rpc := p.call("request_access", nil, nil)
	p.refused(rpc, 403, "no rule")
}

// TestNoRoom checks a rule that refuses at once.
func TestNoRoom(t *testing.T) {
	h, u := newShop(t, policy.Rule{Access: policy.Approval, Asking: policy.Asking{NoRoom: true}})
	c := h.dial(t, "ada", "shop", stream.Dial)
	defer c.Close()
	io.WriteString(c, call(1))
	line, err := bufio.NewReader(c).ReadString('\n')
	if !strings.Contains(line, `"code":428`) || !strings.Contains(line, `"url":"https://broker.example.com/access/shop"`) || u.opened.Load() != 0 {
		t.Errorf("the client reads %q, %v", line, err)
	}
}

// TestOtherFace checks that a server that turns out to speak another revision
// than the client was told ends the session, and that the next one works.
func TestOtherFace(t *testing.T) {
	h, _ := newShop(t, policy.Rule{Access: policy.Approval}, "2025-06-18")
	p := h.connect(t, "ada", older, nil)
	h.decideSoon(t, true)
	if _, err := p.call("request_access", nil, 1); err == nil || !strings.Contains(err.Message, "connect again") {
		t.Errorf("request_access: %v", err)
	}
	if got := h.connect(t, "ada", older, nil).tools(); !slices.Contains(got, "drop") {
		t.Errorf("the next session has tools %q", got)
	}
}

// callRule needs an approval for the tool drop.
func callRule(hold time.Duration) policy.Rule {
	return policy.Rule{
		Access: policy.Allow, Calls: []policy.CallRule{{Approval: `tool == "drop"`, Reason: "drops tables"}},
		Asking: policy.Asking{Hold: hold},
	}
}

// TestCallApproved checks the ways in which clients wait for the approval of a call.
func TestCallApproved(t *testing.T) {
	accept := func(string) string { return "accept" }
	tests := []struct {
		name, version string
		opens         func(string) string
		token         any
		hold          time.Duration
	}{
		{"newer, opens URLs", newer, accept, nil, time.Minute},
		{"older, opens URLs", older, accept, nil, time.Minute},
		{"newer, shows progress", newer, nil, "t", time.Millisecond},
		{"older, shows progress", older, nil, 7, time.Millisecond},
		{"newer, waits", newer, nil, nil, time.Minute},
		{"older, waits", older, nil, nil, time.Minute},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h, u := newShop(t, callRule(tt.hold), tt.version)
			p := h.connect(t, "ada", tt.version, tt.opens)
			done := make(chan string, 1)
			go func() {
				text, err := p.call("drop", map[string]any{"table": "orders"}, tt.token)
				if err != nil {
					text = err.Error()
				}
				done <- text
			}()
			r := h.pending(t)
			if r.Call == nil || r.Call.Name != "drop" || r.Call.Arguments != `{"table":"orders"}` || r.Call.Why != "drops tables" {
				t.Errorf("the approver sees %+v", r.Call)
			}
			if tt.opens != nil {
				if got, want := <-p.urls, "https://broker.example.com/requests/"+r.ID; got != want {
					t.Errorf("the person is sent to %s, want %s", got, want)
				}
			}
			if u.drops.Load() != 0 {
				t.Fatal("the call has arrived before the yes")
			}
			h.decide(t, true)
			if got := <-done; got != "dropped orders" {
				t.Errorf("the call is answered by %q", got)
			}
			// Once: the same call again needs another yes.
			go p.call("drop", map[string]any{"table": "orders"}, tt.token)
			if again := h.pending(t); again.ID == r.ID || u.drops.Load() != 1 {
				t.Errorf("the yes was good for %d calls", u.drops.Load())
			}
		})
	}
}

// TestCallRefused checks the ways in which a call is not approved.
func TestCallRefused(t *testing.T) {
	h, u := newShop(t, callRule(100*time.Millisecond), older)
	p := h.connect(t, "ada", older, func(string) string { return "decline" })
	_, err := p.call("drop", map[string]any{"table": "a"}, nil)
	p.refused(err, 428, "needs an approval")

	p = h.connect(t, "ada", older, nil)
	_, err = p.call("drop", map[string]any{"table": "a"}, nil)
	p.refused(err, 428, "call again after it: https://broker.example.com/requests/req-")
	// The yes after that is good for the call when it is made again, but for no other.
	h.decide(t, true)
	_, err = p.call("drop", map[string]any{"table": "b"}, nil)
	p.refused(err, 428, "")
	if text, err := p.call("drop", map[string]any{"table": "a"}, nil); err != nil || text != "dropped a" {
		t.Errorf("after the yes: %q, %v", text, err)
	}
	h.decide(t, false) // on the call before
	h.decideSoon(t, false)
	_, err = p.call("drop", map[string]any{"table": "b"}, "t")
	p.refused(err, 403, "denied: as you like")
	if got := u.drops.Load(); got != 1 {
		t.Errorf("%d calls have arrived", got)
	}
	// What was cancelled is not made, whatever is decided.
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		for len(h.desk.Pending(grace)) == 0 {
			time.Sleep(time.Millisecond)
		}
		cancel()
	}()
	params := &mcp.CallToolParams{Name: "drop", Arguments: map[string]any{"table": "c"}}
	params.SetProgressToken("x")
	p.CallTool(ctx, params)
	h.pending(t)
	if err := p.Ping(t.Context(), nil); err != nil { // behind the cancellation
		t.Fatal(err)
	}
	h.decide(t, true)
	if err := p.Ping(t.Context(), nil); err != nil || u.drops.Load() != 1 {
		t.Errorf("a cancelled call has arrived (%v)", err)
	}
}

// TestRequestState checks that what the broker gives a client to carry is good
// for one call of one subject.
func TestRequestState(t *testing.T) {
	h, u := newShop(t, callRule(50*time.Millisecond), newer)
	meta := `"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientInfo":{"name":"t","version":"1"},"io.modelcontextprotocol/clientCapabilities":{"elicitation":{"url":{}}}}`
	// made returns the answer to drop(table), made again with state.
	made := func(subject, table, state string) string {
		c := h.dial(t, subject, "shop", stream.Dial)
		defer c.Close()
		if state != "" {
			state = `"requestState":"` + state + `","inputResponses":{"approval":{"action":"accept"}},`
		}
		io.WriteString(c, `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{`+state+`"name":"drop","arguments":{"table":"`+table+`"},`+meta+"}}\n")
		line, err := bufio.NewReader(c).ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		return line
	}
	first := made("ada", "t", "")
	_, rest, _ := strings.Cut(first, `"requestState":"`)
	state, _, _ := strings.Cut(rest, `"`)
	if !strings.Contains(first, `"resultType":"input_required"`) || !strings.HasPrefix(state, "brk1.") {
		t.Fatalf("the first call is answered by %s", first)
	}
	h.decide(t, true)
	altered := []byte(state)
	altered[20] ^= 1 // still of the alphabet, or not: refused in both cases
	for name, got := range map[string]string{
		"other arguments":   made("ada", "u", state),
		"another principal": made("eve", "t", state),
		"altered":           made("ada", "t", string(altered)),
		"cut":               made("ada", "t", "brk1."),
	} {
		if !strings.Contains(got, `"code":403`) {
			t.Errorf("%s: %s", name, got)
		}
	}
	if u.drops.Load() != 0 {
		t.Fatal("a call has arrived")
	}
	if got := made("ada", "t", state); !strings.Contains(got, "dropped t") {
		t.Errorf("the call as it was given: %s", got)
	}
	if got := made("ada", "t", state); u.drops.Load() != 1 {
		t.Errorf("made again: %s", got)
	}
}
