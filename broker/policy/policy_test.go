package policy

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"example.com/broker/broker/identity"
	"example.com/broker/codec"
)

func compile(t testing.TB, rules ...Rule) *Policy {
	t.Helper()
	p, err := Compile(rules)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// frame parses a frame of the client.
func frame(t testing.TB, method, params string) *codec.Frame {
	t.Helper()
	if params != "" {
		params = `,"params":` + params
	}
	id := `"id":1,`
	if strings.HasPrefix(method, "notifications/") {
		id = ""
	}
	var p codec.Parser
	f, err := p.Parse(fmt.Appendf(nil, `{"jsonrpc":"2.0",%s"method":%q%s}`, id, method, params), codec.C2S)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestDecide(t *testing.T) {
	p := compile(t,
		Rule{Name: "not mallory", Users: []string{"mallory"}, Servers: []string{"*"}, Access: Deny},
		Rule{Name: "analysts", Groups: []string{"analysts"}, Servers: []string{"bigquery", "sheets"}, Access: Allow, Duration: time.Hour},
		Rule{Name: "ask", Users: []string{"*"}, Servers: []string{"prod"}, Access: Approval, Asking: Asking{Approvers: Approvers{Users: []string{"grace"}}}},
		Rule{Name: "any group", Groups: []string{"*"}, Servers: []string{"wiki"}, Access: Allow},
	)
	tests := []struct {
		subject, groups, server, want string
	}{
		{"ada", "analysts", "bigquery", "allow analysts"},
		{"ada", "analysts", "BigQuery", "deny "},
		{"ada", "analyst", "bigquery", "deny "},
		{"ada", "", "bigquery", "deny "},
		{"mallory", "analysts", "bigquery", "deny not mallory"},
		{"ada", "", "prod", "approval ask"},
		{"ada", "", "wiki", "allow any group"},
		{"ada", "analysts", "", "deny "},
	}
	for _, tt := range tests {
		terms := p.Decide(identity.Identity{Subject: tt.subject, Groups: strings.Fields(tt.groups)}, tt.server)
		if got := terms.Access.String() + " " + terms.Rule; got != tt.want {
			t.Errorf("%s (%s) at %s: %q, want %q", tt.subject, tt.groups, tt.server, got, tt.want)
		}
	}
	if got := compile(t).Decide(identity.Identity{Subject: "ada"}, "x").Access; got != Deny {
		t.Errorf("an empty policy gives %v", got)
	}
}

// TestObserve checks that what a rule only observes is not in its terms.
func TestObserve(t *testing.T) {
	rule := Rule{
		Name: "r", Users: []string{"*"}, Servers: []string{"*"}, Access: Approval, Mode: Observe,
		Calls: []CallRule{{Deny: `tool == "drop"`, Reason: "no"}}, Masking: Masking{New: func() *codec.Masker { return nil }, Requests: RequestsDeny},
		Asking: Asking{Approvers: Approvers{Users: []string{"grace"}}},
	}
	drop := frame(t, "tools/call", `{"name":"drop"}`)
	got := compile(t, rule).Decide(identity.Identity{Subject: "ada"}, "x")
	if got.Access != Approval || got.Rule != "r" || got.Asking().Approvers.Users == nil {
		t.Errorf("access is not as the rule says: %+v", got)
	}
	if v := got.Call(drop, time.Now()); v.Access != Allow || got.HidesTools() || got.Hides("drop") || got.Masking.New != nil || got.Masking.Requests != RequestsPass {
		t.Errorf("an observing rule decides: %+v", v)
	}
	o := got.Observed
	if v := o.Call(drop, time.Now()); v != (Verdict{Deny, "no", "r"}) || o.Masking.Requests != RequestsDeny || o.Masking.New == nil {
		t.Errorf("observed is %+v", v)
	}
	rule.Mode = Enforce
	if got := compile(t, rule).Decide(identity.Identity{Subject: "ada"}, "x"); got.Observed != nil || got.Call(drop, time.Now()).Access != Deny {
		t.Error("an enforcing rule only observes")
	}
}

// terms are ada's at bigquery with these call rules.
func terms(t testing.TB, calls ...CallRule) *Terms {
	r := Rule{Name: "r", Users: []string{"ada"}, Servers: []string{"bigquery"}, Access: Allow, Calls: calls}
	for _, c := range calls {
		if c.Approval != "" {
			r.Asking.Approvers.Users = []string{"grace"}
		}
	}
	return compile(t, r).
		Decide(identity.Identity{Subject: "ada", Groups: []string{"analysts"}}, "bigquery")
}

func TestCall(t *testing.T) {
	drop := CallRule{Deny: `tool == "sql" && args.q.matches("(?i)\\bdrop\\b")`, Reason: "destructive"}
	tests := []struct {
		name   string
		calls  []CallRule
		method string
		params string
		want   Access
	}{
		{"no rules", nil, "tools/call", `{"name":"sql"}`, Allow},
		{"matches", []CallRule{drop}, "tools/call", `{"name":"sql","arguments":{"q":"DROP TABLE x"}}`, Deny},
		{"through an escape", []CallRule{drop}, "tools/call", `{"name":"sql","arguments":{"q":"\u0044ROP TABLE x"}}`, Deny},
		{"does not match", []CallRule{drop}, "tools/call", `{"name":"sql","arguments":{"q":"SELECT 1"}}`, Allow},
		{"another tool", []CallRule{drop}, "tools/call", `{"name":"list"}`, Allow},
		{"missing field denies", []CallRule{drop}, "tools/call", `{"name":"sql","arguments":{}}`, Deny},
		{"wrong type denies", []CallRule{drop}, "tools/call", `{"name":"sql","arguments":{"q":1}}`, Deny},
		{"arguments are an array", []CallRule{drop}, "tools/call", `{"name":"sql","arguments":[]}`, Deny},
		{"missing field asks", []CallRule{{Approval: "args.force == true"}}, "tools/call", `{"name":"sql"}`, Approval},
		{"missing field does not allow", []CallRule{{Allow: "args.safe == true"}, {Deny: "true"}}, "tools/call", `{"name":"sql"}`, Deny},
		{"has", []CallRule{{Deny: "has(args.force) && args.force"}}, "tools/call", `{"name":"sql"}`, Allow},
		{"first true decides", []CallRule{{Allow: `tool == "list"`}, {Deny: "true"}}, "tools/call", `{"name":"list"}`, Allow},
		{"integer", []CallRule{{Deny: "args.n > 100"}}, "tools/call", `{"name":"x","arguments":{"n":101}}`, Deny},
		{"integer as a double", []CallRule{{Deny: "args.n > 100"}}, "tools/call", `{"name":"x","arguments":{"n":1.005e2}}`, Deny},
		{"big integer is exact", []CallRule{{Deny: "args.n == 9007199254740993"}}, "tools/call", `{"name":"x","arguments":{"n":9007199254740993}}`, Deny},
		{"number out of range denies", []CallRule{{Deny: "args.n > 100"}}, "tools/call", `{"name":"x","arguments":{"n":1e999}}`, Deny},
		{"nested", []CallRule{{Deny: "args.a.b[1].c == 'x'"}}, "tools/call", `{"name":"x","arguments":{"a":{"b":[0,{"c":"x"}]}}}`, Deny},
		{"session", []CallRule{{Deny: `subject == "ada" && server == "bigquery" && "analysts" in groups`}}, "tools/call", `{"name":"x"}`, Deny},
		{"prompt", []CallRule{{Deny: `prompt == "p"`}}, "prompts/get", `{"name":"p"}`, Deny},
		{"a prompt is no tool", []CallRule{{Deny: `tool == "p"`}}, "prompts/get", `{"name":"p"}`, Allow},
		{"uri", []CallRule{{Deny: `uri.startsWith("file:")`}}, "resources/read", `{"uri":"file:///etc/passwd"}`, Deny},
		{"unknown method is a call", []CallRule{{Deny: "true"}}, "x/y", "", Deny},
		{"housekeeping is none", []CallRule{{Deny: "true"}}, "initialize", "", Allow},
		{"notification is none", []CallRule{{Deny: "true"}}, "notifications/x", "", Allow},
		{"method judges housekeeping", []CallRule{{Deny: `method == "tools/list"`}}, "tools/list", "", Deny},
		{"method judges notifications", []CallRule{{Deny: `method == "notifications/x"`}}, "notifications/x", "", Deny},
		{"now", []CallRule{{Deny: `now > timestamp("2020-01-01T00:00:00Z")`}}, "tools/call", `{"name":"x"}`, Deny},
		{"too costly denies", []CallRule{{Deny: `args.l.all(x, args.l.all(y, args.l.all(z, x + y + z != 7000)))`}}, "tools/call", `{"name":"x","arguments":{"l":[` + strings.Repeat("1,", 999) + `1]}}`, Deny},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			v := terms(t, tt.calls...).Call(frame(t, tt.method, tt.params), time.Now())
			if v.Access != tt.want {
				t.Errorf("%v, want %v", v, tt.want)
			}
			if (v.Access == Allow) != (v.Reason == "" && v.Rule == "") {
				t.Errorf("a verdict without its reason: %+v", v)
			}
		})
	}
	v := terms(t, drop).Call(frame(t, "tools/call", `{"name":"sql","arguments":{"q":"drop"}}`), time.Now())
	if want := (Verdict{Deny, "destructive", "r"}); v != want {
		t.Errorf("got %+v, want %+v", v, want)
	}
}

func TestHides(t *testing.T) {
	tests := []struct {
		calls []CallRule
		tool  string
		want  bool
	}{
		{nil, "a", false},
		{[]CallRule{{Deny: `tool == "a"`}}, "a", true},
		{[]CallRule{{Deny: `tool == "a"`}}, "b", false},
		{[]CallRule{{Deny: `tool == "a" && args.x == 1`}}, "a", false},
		{[]CallRule{{Deny: `args.x == 1`}, {Deny: `tool == "a"`}}, "a", true},
		{[]CallRule{{Allow: `tool == "a"`}, {Deny: "true"}}, "a", false},
		{[]CallRule{{Allow: `tool == "a"`}, {Deny: "true"}}, "b", true},
		{[]CallRule{{Allow: `args.x == 1`}, {Deny: "true"}}, "b", false},
		{[]CallRule{{Approval: `tool == "a"`}, {Deny: "true"}}, "a", false},
		{[]CallRule{{Deny: `tool.startsWith("delete_") && "analysts" in groups`}}, "delete_all", true},
		{[]CallRule{{Deny: `method == "tools/call" && tool == "a"`}}, "a", true},
	}
	for _, tt := range tests {
		terms := terms(t, tt.calls...)
		if got := terms.Hides(tt.tool); got != tt.want {
			t.Errorf("%v hides %s: %v, want %v", tt.calls, tt.tool, got, tt.want)
		}
		if tt.want && !terms.HidesTools() {
			t.Errorf("%v: HidesTools is false", tt.calls)
		}
	}
}

func TestCompileErrors(t *testing.T) {
	good := Rule{Name: "good", Users: []string{"*"}, Servers: []string{"*"}, Access: Allow}
	with := func(change func(*Rule)) Rule { r := good; r.Name = "bad"; change(&r); return r }
	call := func(c CallRule) Rule { return with(func(r *Rule) { r.Calls = []CallRule{{Deny: "true"}, c} }) }
	asks := func(a Asking) Rule { return with(func(r *Rule) { r.Access = Approval; r.Asking = a }) }
	grace := Approvers{Users: []string{"grace"}}
	tests := []struct {
		rule Rule
		want string
	}{
		{with(func(r *Rule) { r.Users = nil }), "policy[1]: has neither users nor groups"},
		{with(func(r *Rule) { r.Servers = nil }), "policy[1]: has no servers"},
		{with(func(r *Rule) { r.Name = "good" }), `policy[1].name: two rules are named "good"`},
		{with(func(r *Rule) { r.Name = "a\nb" }), "policy[1].name: has control characters"},
		{call(CallRule{}), "policy[1].calls[1]: needs one of"},
		{call(CallRule{Deny: "true", Allow: "true"}), "policy[1].calls[1]: needs one of"},
		{call(CallRule{Deny: "arg.sql == ''"}), "policy[1].calls[1].deny: undeclared reference to 'arg' (did you mean 'args'?)"},
		{call(CallRule{Allow: "tol == ''"}), "policy[1].calls[1].allow: undeclared reference to 'tol' (did you mean 'tool'?)"},
		{call(CallRule{Allow: "tool"}), "policy[1].calls[1].allow: is of type string, not bool"},
		{call(CallRule{Approval: "true"}), "policy[1]: asks for approval and names nobody"},
		{asks(Asking{}), "policy[1]: asks for approval and names nobody"},
		{asks(Asking{Approvers: Approvers{Users: grace.Users, Count: -1}}), "policy[1].approvers.count: must be"},
		{asks(Asking{Approvers: grace, Reason: "("}), `policy[1].reason: is neither "required" nor a pattern`},
		{asks(Asking{Auto: "subjct == ''"}), "policy[1].auto: undeclared reference to 'subjct'"},
		{asks(Asking{Auto: "subject"}), "policy[1].auto: is of type string, not bool"},
		{with(func(r *Rule) { r.Asking.Approvers = grace }), "policy[1]: names approvers, auto or break_glass"},
		{with(func(r *Rule) { r.Duration = time.Hour; r.Asking.MaxDuration = time.Minute }), "policy[1].max_duration: is less"},
		{with(func(r *Rule) { r.Mode = Observe }), "policy[1].mode: there is nothing to observe"},
		{with(func(r *Rule) { r.Mode = Observe; r.Access = Deny; r.Calls = []CallRule{{Deny: "true"}} }), "policy[1].mode: a rule that denies access cannot be observed"},
		{with(func(r *Rule) { r.Mode = 2 }), "policy[1].mode: is neither enforce nor observe"},
		{call(CallRule{Deny: "tool =="}), "policy[1].calls[1].deny: Syntax error"},
		{call(CallRule{Deny: "tool == 1"}), "policy[1].calls[1].deny: found no matching overload"},
	}
	for _, tt := range tests {
		_, err := Compile([]Rule{good, tt.rule})
		var e *Error
		if !errors.As(err, &e) || !strings.HasPrefix(err.Error(), tt.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("error %q, want %q…", err, tt.want)
		}
	}
	_, err := Compile([]Rule{call(CallRule{}), {Name: "x"}})
	if n := len(strings.Split(err.Error(), "\n")); n != 3 {
		t.Errorf("%d faults, want all 3: %v", n, err)
	}
}

// A request whose id is left out is a call all the same: some servers carry it out.
func TestCallWithoutID(t *testing.T) {
	terms := terms(t, CallRule{Deny: "true"})
	tests := []struct {
		line string
		want Access
	}{
		{`{"jsonrpc":"2.0","method":"tools/call","params":{"name":"x"}}`, Deny},
		{`{"jsonrpc":"2.0","method":"resources/read","params":{"uri":"x"}}`, Deny},
		{`{"jsonrpc":"2.0","method":"notifications/initialized"}`, Allow},
		{`{"jsonrpc":"2.0","method":"ping"}`, Allow},
	}
	for _, tt := range tests {
		var p codec.Parser
		f, err := p.Parse([]byte(tt.line), codec.C2S)
		if err != nil {
			t.Fatal(err)
		}
		if got := terms.Call(f, time.Time{}).Access; got != tt.want {
			t.Errorf("%s: %v, want %v", tt.line, got, tt.want)
		}
	}
}

func TestCallConcurrently(t *testing.T) {
	terms := terms(t, CallRule{Deny: `args.n == 7`})
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			f := frame(t, "tools/call", fmt.Sprintf(`{"name":"x","arguments":{"n":%d}}`, i))
			for range 100 {
				if got := terms.Call(f, time.Time{}).Access == Deny; got != (i == 7) {
					t.Errorf("n = %d: denied %v", i, got)
				}
			}
		})
	}
	wg.Wait()
}

// FuzzCall checks that no arguments make a condition panic or open a door: what
// a denying condition does not read as false is denied.
func FuzzCall(f *testing.F) {
	f.Add(`{"n":1}`)
	f.Add(`{"n":{"a":[1e999,null,"x"]},"m":-0.0}`)
	f.Add(`[]`)
	terms := terms(f, CallRule{Deny: "!(args.n == 1)"})
	f.Fuzz(func(t *testing.T, args string) {
		var p codec.Parser
		frame, err := p.Parse([]byte(`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"x","arguments":`+args+`}}`), codec.C2S)
		if err != nil || frame.Arguments == nil {
			return
		}
		n := string(codec.Member(frame.Arguments, "n"))
		if terms.Call(frame, time.Time{}).Access == Allow && decodeNumber(n) != 1 {
			t.Errorf("%s is allowed", args)
		}
	})
}

func decodeNumber(s string) (x float64) {
	fmt.Sscan(s, &x)
	return x
}

func BenchmarkCall(b *testing.B) {
	f := frame(b, "tools/call", `{"name":"sql","arguments":{"q":"SELECT a, b, c FROM customers WHERE id = 17 ORDER BY a"}}`)
	for _, bench := range []struct{ name, condition string }{
		{"name only", `tool == "delete_dataset"`},
		{"arguments", `tool == "sql" && args.q.matches("(?i)\\b(drop|truncate)\\b")`},
	} {
		b.Run(bench.name, func(b *testing.B) {
			terms := terms(b, CallRule{Deny: bench.condition})
			b.ReportAllocs()
			for b.Loop() {
				terms.Call(f, time.Time{})
			}
		})
	}
}
