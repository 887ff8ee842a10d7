package broker

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"strings"
	"testing"
	"time"

	"example.com/broker/broker/policy"
	"example.com/broker/codec"
	"example.com/broker/recorder"
	"example.com/broker/stream"
)

// strict refuses, holds and masks; the server cat sends back what it gets, which
// is a request of its own then.
func strict(mode policy.Mode) policy.Rule {
	r := masksMail()
	r.Mode = mode
	r.Masking.Requests = policy.RequestsDeny
	r.Calls = []policy.CallRule{{Deny: `tool == "drop"`, Reason: "no drops"}, {Approval: `tool == "ask"`}}
	r.Asking = policy.Asking{Approvers: policy.Approvers{Users: []string{"grace"}}, Hold: 50 * time.Millisecond}
	return r
}

// notes are those on record of the newest session, each in front of the frame
// that it is of, and what the session counts.
func (h *harness) notes(t *testing.T) (notes []string, counts map[string]int64) {
	t.Helper()
	for s, err := range h.log.Sessions(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		last := [2]string{}
		for f, err := range h.log.Frames(t.Context(), s.ID) {
			if err != nil {
				t.Fatal(err)
			}
			if last[f.Direction] != "" {
				notes = append(notes, fmt.Sprintf("%v %v %s", f.Direction, f.Verdict, last[f.Direction]))
			}
			if last[f.Direction] = ""; f.Verdict == recorder.Noted {
				var n recorder.Note
				if err := json.Unmarshal(f.Bytes, &n); err != nil {
					t.Fatal(err)
				}
				last[f.Direction] = fmt.Sprintf("%s %s %s %s %s", n.Mode, n.Says, n.Rule, n.Reason, kinds(n.Found))
			}
		}
		return notes, s.Observed
	}
	return nil, nil
}

// TestObserve checks that what an enforcing rule blocks passes byte for byte under
// one that observes, that the record says so, and that a reload takes effect on
// the next frame.
func TestObserve(t *testing.T) {
	h, stop := newHarness(t, Limits{}, strict(policy.Observe))
	defer stop()
	c := h.dial(t, "ada", "cat", stream.Dial)
	defer c.Close()
	in := bufio.NewReader(c)
	exchange := func(out, want string) {
		t.Helper()
		io.WriteString(c, out)
		line, err := in.ReadString('\n')
		if err != nil || want == "" && line != out || !strings.Contains(line, want) {
			t.Fatalf("%.90q is answered by %q, %v; want %q", out, line, err, want)
		}
	}
	mail := func(tool string, id int) string {
		return fmt.Sprintf(`{"jsonrpc" : "2.0","id":%d,"method":"tools\/call","params":{"name":%q,"arguments":{"to":"\u0061da@example.com"}}}`+"\n", id, tool)
	}
	exchange(tool("list", 1), "")
	exchange(tool("drop", 2), "")
	exchange(tool("ask", 3), "")
	exchange(mail("list", 4), "")
	exchange(`{"jsonrpc":"2.0","method":"notifications/x","params":{"text":"bob@example.com"}}`+"\n", "")

	p, err := policy.Compile([]policy.Rule{strict(policy.Enforce)})
	if err != nil {
		t.Fatal(err)
	}
	h.SetPolicy(p)
	exchange(tool("drop", 5), `"id":5,"error":{"code":403,"message":"no drops"`)
	exchange(mail("list", 6), `"id":6,"error":{"code":403,"message":"refused: the arguments hold`)
	exchange(tool("ask", 7), `"id":7,"error":{"code":428`)
	exchange(`{"jsonrpc":"2.0","method":"notifications/x","params":{"text":"bob@example.com"}}`+"\n", "[masked:email]")

	notes, counts := h.notes(t)
	want := []string{
		"c2s delivered observe deny all no drops ",
		"c2s delivered observe approval all required by policy ",
		"c2s delivered observe deny all the arguments hold what must not reach the server: email email",
		"s2c delivered observe mask all  email",
		"s2c delivered observe mask all  email",
	}
	if got := strings.Join(notes, "\n"); got != strings.Join(want, "\n") {
		t.Errorf("noted is\n%s\nwant\n%s", got, strings.Join(want, "\n"))
	}
	if want := map[string]int64{"deny": 2, "approval": 1, "mask": 2}; !maps.Equal(counts, want) {
		t.Errorf("observed %v, want %v", counts, want)
	}
	// Both sides of the record are what was carried.
	for _, d := range []codec.Direction{codec.C2S, codec.S2C} {
		if got := h.replay(t, d); strings.Contains(got, `"says"`) || !strings.Contains(got, mail("list", 4)) {
			t.Errorf("%v is replayed as %q", d, got)
		}
	}
}

// TestObserveLong checks that a long answer passes as it came, and counts once.
func TestObserveLong(t *testing.T) {
	rule := masksMail()
	rule.Mode = policy.Observe
	f := startFlow(t, Limits{}, rule, tool("a", 1))
	middle, end := ` ada@example.com `+strings.Repeat("lorem ipsum ", half/12)+` bob@example.com`, `"}]}}`+"\n"
	f.answer(beginning, middle, end)
	got := f.first(t, len(beginning)+len(middle)+len(end))
	if got != beginning+middle+end {
		t.Error("a long answer does not pass as it came")
	}
	f.client.Close()
	f.server.Close()
	waitUntil(t, "the session is gone", func() bool { return f.Sessions() == 0 })
	notes, counts := f.notes(t)
	if len(notes) != 2 || notes[0] != "s2c delivered observe mask all  email" {
		t.Errorf("noted is %q", notes)
	}
	if counts["mask"] != 1 || len(counts) != 1 {
		t.Errorf("observed %v", counts)
	}
	if f.replay(t, codec.S2C) != got {
		t.Error("it is not on record as it came")
	}
}

// TestApprovedNoted checks that a call that passes because somebody has approved it
// says so on record, and counts as nothing that is observed.
func TestApprovedNoted(t *testing.T) {
	h, _ := newShop(t, callRule(time.Minute), older)
	p := h.connect(t, "ada", older, nil)
	h.decideSoon(t, true)
	if got, err := p.call("drop", map[string]any{"table": "orders"}, nil); got != "dropped orders" {
		t.Fatalf("the call is answered by %q, %v", got, err)
	}
	notes, counts := h.notes(t)
	if len(notes) != 1 || notes[0] != "c2s delivered enforce approval shop  " || len(counts) > 0 {
		t.Errorf("noted is %q, observed %v", notes, counts)
	}
}
