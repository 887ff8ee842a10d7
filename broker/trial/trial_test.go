package trial

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"example.com/broker/broker/policy"
	"example.com/broker/codec"
	"example.com/broker/codec/detect"
	"example.com/broker/recorder"
)

func openLog(t testing.TB) *recorder.Log {
	t.Helper()
	l, err := recorder.Open(recorder.Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// record puts a session of ada's at bigquery on record. Its frames are like
// "c2s delivered {…}".
func record(t testing.TB, l *recorder.Log, change func(*recorder.Session), state string, frames ...string) {
	t.Helper()
	s := recorder.Session{Subject: "ada", Groups: []string{"analysts"}, Server: "bigquery", Access: "allow"}
	if change != nil {
		change(&s)
	}
	r, err := l.Start(s)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range frames {
		direction, rest, _ := strings.Cut(line, " ")
		word, text, _ := strings.Cut(rest, " ")
		f := recorder.Frame{Bytes: []byte(text)}
		if direction == "s2c" {
			f.Direction = codec.S2C
		}
		if word, f.More = strings.CutSuffix(word, "+"); f.More && word == "" {
			word = "delivered"
		}
		for f.Verdict = 0; f.Verdict.String() != word; f.Verdict++ {
		}
		if err := r.Append(f); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.End(state, "closed"); err != nil {
		t.Fatal(err)
	}
}

func call(id int, tool, args string) string {
	return fmt.Sprintf(`{"jsonrpc":"2.0","id":%d,"method":"tools/call","params":{"name":%q,"arguments":%s}}`, id, tool, args)
}

func text(id int, s string) string {
	return fmt.Sprintf(`{"jsonrpc":"2.0","id":%d,"result":{"content":[{"type":"text","text":%q}]}}`, id, s)
}

func refusal(id, code int) string {
	return fmt.Sprintf(`{"jsonrpc":"2.0","id":%d,"error":{"code":%d,"message":"no","data":{"url":"https://b/requests/r"}}}`, id, code)
}

func masks(names ...string) func() *codec.Masker {
	var all []detect.Detector
	for _, n := range names {
		d, _ := detect.ByName(n)
		all = append(all, d)
	}
	return func() *codec.Masker { return codec.NewMasker(detect.New(all...), nil) }
}

// rule is ada's, with these call rules.
func rule(calls ...policy.CallRule) policy.Rule {
	r := policy.Rule{Name: "r", Groups: []string{"analysts"}, Servers: []string{"bigquery"}, Access: policy.Allow, Calls: calls}
	for _, c := range calls {
		if c.Approval != "" {
			r.Asking.Approvers.Users = []string{"grace"}
		}
	}
	return r
}

func compile(t testing.TB, rules ...policy.Rule) *policy.Policy {
	t.Helper()
	p, err := policy.Compile(rules)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// lines are the changes of a report, each in a line.
func lines(r *Report) string {
	var b strings.Builder
	for _, c := range r.Changes {
		now := c.Now
		if c.Mode != "" {
			now = "(" + now + ")"
		}
		fmt.Fprintf(&b, "%s %s>%s %s %s", c.Of, c.Was, now, c.Rule, strings.TrimSpace(c.Method+" "+c.Name))
		if c.Detector != "" {
			fmt.Fprintf(&b, " %s:%d", c.Detector, c.Values)
		}
		fmt.Fprintf(&b, " ×%d\n", c.Count)
	}
	return b.String()
}

func run(t testing.TB, l *recorder.Log, o Options) *Report {
	t.Helper()
	o.Show = masks(detect.Names()...)
	r, err := Run(t.Context(), l, o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestRun(t *testing.T) {
	allow := rule()
	denies := rule(policy.CallRule{Deny: `tool == "drop"`, Reason: "no drops"})
	asks := rule(policy.CallRule{Approval: `tool == "drop"`})
	masking := func(requests policy.Requests, names ...string) policy.Rule {
		r := rule()
		r.Masking = policy.Masking{New: masks(names...), Requests: requests}
		return r
	}
	observing := func(r policy.Rule) policy.Rule { r.Mode = policy.Observe; return r }
	access := func(a policy.Access) policy.Rule {
		r := rule()
		if r.Access = a; a == policy.Approval {
			r.Asking.Approvers.Users = []string{"grace"}
		}
		return r
	}
	drop := "c2s delivered " + call(1, "drop", `{}`)
	blocked := []string{"c2s blocked " + call(1, "drop", `{}`), "s2c answered " + refusal(1, 403)}
	held := []string{"c2s blocked " + call(1, "drop", `{}`), "s2c answered " + refusal(1, 428)}
	mail := []string{"c2s delivered " + call(1, "list", `{}`), "s2c delivered " + text(1, "ada@example.com")}
	found := `[{"detector":"email","offset":1}]`
	masked := []string{"c2s delivered " + call(1, "list", `{}`), "s2c found " + found, "s2c masked " + text(1, "[masked:email]")}
	tests := []struct {
		name     string
		change   func(*recorder.Session)
		state    string
		frames   []string
		old, new *policy.Rule
		want     string
		newly    Newly
	}{
		{name: "nothing", frames: []string{drop}, new: &allow},
		{name: "call denied", frames: []string{drop}, new: &denies, want: "call allow>deny r tools/call drop ×1", newly: Newly{Refused: 1}},
		{name: "call held", frames: []string{drop}, new: &asks, want: "call allow>approval r tools/call drop ×1", newly: Newly{Held: 1}},
		{name: "call was denied", frames: blocked, new: &denies},
		{name: "denied call passes", frames: blocked, new: &allow, want: "call deny>allow r tools/call drop ×1", newly: Newly{Passed: 1}},
		{name: "denied call is held", frames: blocked, new: &asks, want: "call deny>approval r tools/call drop ×1"},
		{name: "call was held", frames: held, new: &asks},
		{name: "held call is denied", frames: held, new: &denies, want: "call approval>deny r tools/call drop ×1", newly: Newly{Refused: 1}},
		{name: "call was approved", frames: []string{`c2s noted {"mode":"enforce","says":"approval","rule":"r"}`, drop}, new: &asks},
		{name: "observed", frames: []string{drop}, new: ref(observing(denies)), want: "call allow>(deny) r tools/call drop ×1", newly: Newly{Observed: 1}},
		{name: "was observed", frames: []string{`c2s noted {"mode":"observe","says":"deny","rule":"r"}`, drop}, new: &denies, want: "call allow>deny r tools/call drop ×1", newly: Newly{Refused: 1}},
		{name: "denied is observed", frames: blocked, new: ref(observing(denies)), want: "call deny>allow r tools/call drop ×1", newly: Newly{Passed: 1}},
		{name: "observed is enforced", frames: []string{drop}, old: ref(observing(denies)), new: &denies, want: "call allow>deny r tools/call drop ×1", newly: Newly{Refused: 1}},
		{name: "values are observed", frames: mail, new: ref(observing(masking(policy.RequestsPass, "email"))), want: "answer clear>(masked) r tools/call list email:1 ×1", newly: Newly{Observed: 1}},
		{name: "arguments are observed", frames: []string{"c2s delivered " + call(1, "list", `{"to":"ada@example.com"}`)}, new: ref(observing(masking(policy.RequestsMask, "email"))), want: "call clear>(masked) r tools/call list email:1 ×1", newly: Newly{Observed: 1}},
		{name: "against the same", frames: []string{drop}, old: &denies, new: &denies},
		{name: "against another", frames: blocked, old: &allow, new: &denies, want: "call allow>deny r tools/call drop ×1", newly: Newly{Refused: 1}},
		{name: "not the policy's", frames: []string{"c2s blocked " + call(1, "drop", `{}`), "s2c answered " + refusal(1, -32600)}, new: &denies},
		{name: "a refusal that never came", frames: blocked[:1], new: &allow},
		{
			name: "the waiting room", new: &denies, change: func(s *recorder.Session) { s.Access = "approval" },
			frames: []string{"c2s blocked " + call(1, "drop", `{}`), `s2c answered {"jsonrpc":"2.0","id":1,"error":{"code":428,"message":"no","data":{"url":"https://b/access/x"}}}`},
			want:   "session approval>allow r  ×1", newly: Newly{Passed: 1},
		},
		{name: "no rule", new: &allow, change: func(s *recorder.Session) { s.Groups = nil }, frames: []string{drop}, want: "session allow>deny   ×1", newly: Newly{Refused: 1}},
		{name: "session held", new: ref(access(policy.Approval)), frames: []string{drop}, want: "session allow>approval r  ×1", newly: Newly{Held: 1}},
		{name: "session had a grant", new: ref(access(policy.Approval)), change: func(s *recorder.Session) { s.Access = "approval" }},
		{name: "session was refused", state: recorder.Refused, new: ref(access(policy.Deny)), frames: blocked},
		{name: "session is let in", state: recorder.Refused, new: &allow, frames: blocked, want: "session deny>allow r  ×1", newly: Newly{Passed: 1}},
		{name: "server was not reached", state: recorder.Refused, new: ref(access(policy.Deny)), frames: []string{"c2s blocked " + call(1, "drop", `{}`), "s2c answered " + refusal(1, 502)}},
		{name: "answer masked", frames: mail, new: ref(masking(policy.RequestsPass, "email")), want: "answer clear>masked r tools/call list email:1 ×1", newly: Newly{Masked: 1}},
		{name: "answer was masked", frames: masked, new: ref(masking(policy.RequestsPass, "email"))},
		{name: "answer unmasked", frames: masked, new: &allow, want: "answer masked>clear r tools/call list email:1 ×1", newly: Newly{Unmasked: 1}},
		{name: "masked by both", frames: mail, old: ref(masking(policy.RequestsPass, "email")), new: ref(masking(policy.RequestsPass, "email", "secrets"))},
		{name: "masked by one", frames: masked, old: ref(masking(policy.RequestsPass, "secrets")), new: ref(masking(policy.RequestsPass, "email")), want: "answer clear>masked r tools/call list email:1 ×1", newly: Newly{Masked: 1}},
		{name: "arguments masked", frames: []string{"c2s delivered " + call(1, "list", `{"to":"ada@example.com"}`)}, new: ref(masking(policy.RequestsMask, "email")), want: "call clear>masked r tools/call list email:1 ×1", newly: Newly{Masked: 1}},
		{name: "arguments denied", frames: []string{"c2s found " + found, "c2s masked " + call(1, "list", `{"to":"[masked:email]"}`)}, new: ref(masking(policy.RequestsDeny, "email")), want: "call allow>deny r tools/call list ×1", newly: Newly{Refused: 1}},
		{name: "tools hidden", frames: []string{`c2s delivered {"jsonrpc":"2.0","id":1,"method":"tools/list"}`, `s2c delivered {"jsonrpc":"2.0","id":1,"result":{"tools":[{"name":"drop"}]}}`}, new: &denies, want: "answer listed>hidden r tools/list ×1", newly: Newly{Hidden: 1}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l := openLog(t)
			if tt.state == "" {
				tt.state = recorder.Ended
			}
			record(t, l, tt.change, tt.state, tt.frames...)
			o := Options{New: compile(t, *tt.new)}
			if tt.old != nil {
				o.Old = compile(t, *tt.old)
			}
			r := run(t, l, o)
			if got := strings.TrimSuffix(lines(r), "\n"); got != tt.want {
				t.Errorf("changes are\n%s\nwant\n%s", got, tt.want)
			}
			if r.Newly != tt.newly {
				t.Errorf("newly %+v, want %+v", r.Newly, tt.newly)
			}
		})
	}
}

func ref[T any](v T) *T { return &v }

// TestWindow checks what of the log is looked at.
func TestWindow(t *testing.T) {
	l := openLog(t)
	record(t, l, nil, recorder.Ended, "c2s delivered "+call(1, "drop", `{}`))
	record(t, l, func(s *recorder.Session) { s.Subject = "bob" }, recorder.Ended, "c2s delivered "+call(1, "drop", `{}`))
	p := compile(t, rule(policy.CallRule{Deny: "true"}))
	now := time.Now()
	for _, tt := range []struct {
		o    Options
		want int64
	}{
		{Options{}, 2},
		{Options{Subject: "bob"}, 1},
		{Options{Server: "other"}, 0},
		{Options{Since: now.Add(-time.Hour), Until: now.Add(time.Hour)}, 2},
		{Options{Since: now.Add(time.Hour)}, 0},
		{Options{Until: now.Add(-time.Hour)}, 0},
	} {
		tt.o.New = p
		if r := run(t, l, tt.o); r.Newly.Refused != tt.want || r.Calls != tt.want {
			t.Errorf("%+v: %d refused of %d, want %d", tt.o, r.Newly.Refused, r.Calls, tt.want)
		}
	}
	// now is the time of the recording
	p = compile(t, rule(policy.CallRule{Deny: fmt.Sprintf(`now > timestamp(%q)`, now.Add(time.Minute).UTC().Format(time.RFC3339))}))
	if r := run(t, l, Options{New: p}); r.Newly.Refused != 0 {
		t.Error("now is not the time at which the frame was recorded")
	}
}

// TestSecrets checks that a report shows no value that is found, in whatever
// a client has chosen.
func TestSecrets(t *testing.T) {
	l := openLog(t)
	const card = "4111 1111 1111 1111"
	record(t, l, func(s *recorder.Session) { s.Subject = "ada\x1b[31m" }, recorder.Ended,
		"c2s delivered "+call(1, "drop for ada@example.com", `{"card":"`+card+`","q":"`+strings.Repeat("ünd ", 200)+`"}`))
	r := run(t, l, Options{New: compile(t, rule(policy.CallRule{Deny: "true"}))})
	out, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{card, "ada@example.com", `\u001b`, "4111"} {
		if strings.Contains(string(out), bad) {
			t.Errorf("the report holds %q: %s", bad, out)
		}
	}
	if got := r.Changes[0].Examples[0].Arguments; !strings.HasPrefix(got, `{"card":"[masked:credit_card]","q":"ünd`) || !strings.HasSuffix(got, "…") {
		t.Errorf("arguments are shown as %q", got)
	}
}

// TestLong checks that frames that come in parts are looked at as a whole.
func TestLong(t *testing.T) {
	filler := strings.Repeat("lorem ipsum ", 100_000)
	head, tail := `{"jsonrpc":"2.0","id":1,"result":{"content":[{"type":"text","text":"`+filler, filler+`"}]}}`
	masking := rule()
	masking.Masking.New = masks("email")
	for _, tt := range []struct {
		name, want string
		frames     []string
		unread     int64
	}{
		{"a value in two parts", "answer clear>masked r tools/call list email:1 ×1\n", []string{"s2c + " + head + "ada@exa", "c2s delivered " + call(2, "x", "{}"), "s2c + mple.com ", "s2c delivered " + tail}, 0},
		{"masked before", "", []string{"s2c + " + head, `s2c found [{"detector":"email","offset":9}]`, "s2c masked+ [masked:email] ", "s2c delivered " + tail}, 0},
		{"cut", "answer clear>masked r tools/call list email:1 ×1\n", []string{"s2c + " + head + " ada@example.com " + filler, "s2c cut "}, 0},
		{"without an end", "answer clear>masked r tools/call list email:1 ×1\n", []string{"s2c + " + head + " ada@example.com " + filler}, 0},
		{"short after all", "answer clear>masked r tools/call list email:1 ×1\n", []string{`s2c + {"jsonrpc":"2.0","id":1,"result":`, `s2c delivered {"a":"ada@example.com"}}`}, 0},
		{"no frame", "", []string{"s2c + " + head + "\x01", "s2c delivered " + tail}, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := openLog(t)
			record(t, l, nil, recorder.Ended, append([]string{"c2s delivered " + call(1, "list", "{}")}, tt.frames...)...)
			before := runtime.NumGoroutine()
			r := run(t, l, Options{New: compile(t, masking)})
			if got := lines(r); got != tt.want || r.Unread != tt.unread {
				t.Errorf("changes are %q, %d unread; want %q, %d", got, r.Unread, tt.want, tt.unread)
			}
			for deadline := time.Now().Add(5 * time.Second); runtime.NumGoroutine() > before; time.Sleep(time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatal("goroutines are left")
				}
			}
		})
	}
}

// TestManyChanges checks that what is on record cannot fill the memory.
func TestManyChanges(t *testing.T) {
	l := openLog(t)
	r, err := l.Start(recorder.Session{Subject: "ada", Groups: []string{"analysts"}, Server: "bigquery"})
	if err != nil {
		t.Fatal(err)
	}
	frames := make([]recorder.Frame, maxChanges+50)
	for i := range frames {
		frames[i].Bytes = []byte(call(i, fmt.Sprintf("tool %d", i), "{}"))
	}
	if err := r.Append(frames...); err != nil {
		t.Fatal(err)
	}
	got := run(t, l, Options{New: compile(t, rule(policy.CallRule{Deny: "true"}))})
	if len(got.Changes) != maxChanges || got.LeftOut != 50 || got.Newly.Refused != maxChanges+50 {
		t.Errorf("%d changes, %d left out, %d refused", len(got.Changes), got.LeftOut, got.Newly.Refused)
	}
}

// FuzzRun checks that no recording makes a run fail.
func FuzzRun(f *testing.F) {
	f.Add(call(1, "x", "{}"), uint8(0), false, true)
	f.Add(text(1, "ada@example.com"), uint8(1), true, true)
	f.Add(`[{"detector":"email","offset":1}]`, uint8(6), true, false)
	f.Add(refusal(1, 403), uint8(4), true, false)
	r := rule(policy.CallRule{Deny: "args.x == 1"})
	r.Masking = policy.Masking{New: masks("email"), Requests: policy.RequestsMask}
	p := compile(f, r)
	f.Fuzz(func(t *testing.T, text string, verdict uint8, s2c, more bool) {
		frame := recorder.Frame{Verdict: recorder.Verdict(verdict), Bytes: []byte(text), More: more}
		if s2c {
			frame.Direction = codec.S2C
		}
		src := fake{s: recorder.Session{ID: "s", Groups: []string{"analysts"}, Server: "bigquery", State: recorder.Running}}
		src.frames = []recorder.Frame{frame, {Bytes: []byte(call(1, "x", "{}"))}, frame, frame}
		if _, err := Run(t.Context(), src, Options{New: p, Show: masks("email")}); err != nil {
			t.Fatal(err)
		}
	})
}

// A fake log has one session, and may be damaged.
type fake struct {
	recorder.Source
	s      recorder.Session
	frames []recorder.Frame
	lost   string // a session whose record is damaged
	away   error  // that the frames end with
}

func (f fake) Find(context.Context, recorder.Query) iter.Seq2[recorder.Session, error] {
	return func(yield func(recorder.Session, error) bool) {
		if f.lost == "" || yield(recorder.Session{ID: f.lost}, fmt.Errorf("record: %w", recorder.ErrDamaged)) {
			yield(f.s, nil)
		}
	}
}

func (f fake) Frames(context.Context, string) iter.Seq2[recorder.Frame, error] {
	return func(yield func(recorder.Frame, error) bool) {
		for _, frame := range f.frames {
			err := error(nil)
			if frame.Bytes == nil {
				frame, err = recorder.Frame{}, recorder.ErrDamaged
			}
			if !yield(frame, err) {
				return
			}
		}
		if f.away != nil {
			yield(recorder.Frame{}, f.away)
		}
	}
}

// TestLost checks that a session whose record cannot be read, and one whose archive
// cannot be reached, are named, and keep no other from being judged.
func TestLost(t *testing.T) {
	src := fake{
		s:      recorder.Session{ID: "s1", Groups: []string{"analysts"}, Server: "bigquery"},
		frames: []recorder.Frame{{Bytes: []byte(call(3, "drop", "{}"))}},
		lost:   "s0", away: fmt.Errorf("read: %w", recorder.ErrArchive),
	}
	r, err := Run(t.Context(), src, Options{New: compile(t, rule(policy.CallRule{Deny: `tool == "drop"`}))})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(r.Damaged, []string{"s0"}) || !slices.Equal(r.Unreached, []string{"s1"}) || r.Newly != (Newly{Refused: 1}) {
		t.Errorf("damaged %q, unreached %q, newly %+v", r.Damaged, r.Unreached, r.Newly)
	}
}

// TestDamaged checks that a block that cannot be read is named, and takes nothing
// else with it.
func TestDamaged(t *testing.T) {
	masking := rule(policy.CallRule{Deny: `tool == "drop"`})
	masking.Masking.New = masks("email")
	src := fake{s: recorder.Session{ID: "s1", Groups: []string{"analysts"}, Server: "bigquery"}, frames: []recorder.Frame{
		{Bytes: []byte(call(1, "list", "{}"))},
		{Direction: codec.S2C, Bytes: []byte(`{"jsonrpc":"2.0","id":1,"result":`), More: true},
		{}, // the damage
		{Direction: codec.S2C, Bytes: []byte(text(2, "ada@example.com"))},
		{Bytes: []byte(call(3, "drop", "{}"))},
	}}
	r, err := Run(t.Context(), src, Options{New: compile(t, masking)})
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"s1"}; !slices.Equal(r.Damaged, want) || r.Newly != (Newly{Refused: 1, Masked: 1}) {
		t.Errorf("damaged %q, newly %+v", r.Damaged, r.Newly)
	}
}

// BenchmarkRun is over calls and answers of 300 B, a frame each.
func BenchmarkRun(b *testing.B) {
	l := openLog(b)
	const n = 2000
	for range 20 {
		var frames []recorder.Frame
		rec, err := l.Start(recorder.Session{Subject: "ada", Groups: []string{"analysts"}, Server: "bigquery"})
		if err != nil {
			b.Fatal(err)
		}
		for i := range n / 2 {
			frames = append(frames, recorder.Frame{Bytes: []byte(call(i, "execute_sql", `{"q":"SELECT a, b, c FROM customers WHERE id = 17 ORDER BY a"}`))},
				recorder.Frame{Direction: codec.S2C, Bytes: []byte(text(i, strings.Repeat("a row of the table; ", 10)))})
		}
		for i := 0; i < n; i += 20 { // as they come
			if err := rec.Append(frames[i : i+20]...); err != nil {
				b.Fatal(err)
			}
		}
		rec.End(recorder.Ended, "")
	}
	r := rule(policy.CallRule{Deny: `tool == "execute_sql" && args.q.matches("(?i)\\b(drop|truncate)\\b")`})
	masking := r
	masking.Masking.New = masks(detect.Names()...)
	for _, bb := range []struct {
		name string
		p    *policy.Policy
	}{{"calls", compile(b, r)}, {"calls and masking", compile(b, masking)}} {
		b.Run(bb.name, func(b *testing.B) {
			for b.Loop() {
				if _, err := Run(b.Context(), l, Options{New: bb.p}); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(20*n*float64(b.N)/b.Elapsed().Seconds(), "frames/s")
		})
	}
}
