package policy

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"example.com/broker/codec"
)

// TestGuard checks that guards decide as CEL does: made-up conditions, with parts that
// fail, on all kinds of calls.
func TestGuard(t *testing.T) {
	frames := []*codec.Frame{
		frame(t, "tools/call", `{"name":"query","arguments":{"n":1}}`),
		frame(t, "tools/call", `{"name":"delete_table","arguments":{}}`),
		frame(t, "tools/call", `{"name":"","arguments":{"n":"x"}}`),
		frame(t, "tools/call", `{"name":"größe\u0000","arguments":{"n":2}}`),
		frame(t, "prompts/get", `{"name":"query"}`),
		frame(t, "resources/read", `{"uri":"file:///query"}`),
		frame(t, "ping", ""),
	}
	random := rand.New(rand.NewPCG(3, 4))
	guarded, whole := 0, 0
	for range 3000 {
		text := madeCondition(random, 3)
		for _, c := range []CallRule{{Deny: text}, {Allow: text}} {
			terms := terms(t, c)
			cond := &terms.calls[0]
			bare := *cond
			bare.guard = guard{}
			if cond.guard.holds != nil {
				guarded++
			}
			if cond.guard.whole {
				whole++
			}
			for _, f := range frames {
				v, w := vars{session: &terms.session, frame: f}, vars{session: &terms.session, frame: f}
				if got, want := cond.holds(&v), bare.holds(&w); got != want {
					t.Fatalf("%v of %s %s: %v with a guard, %v without", c, f.Method, f.Name, got, want)
				}
			}
		}
	}
	if guarded < 1000 || whole < 100 {
		t.Errorf("only %d conditions have a guard, %d are one", guarded, whole)
	}
}

// madeCondition makes up a condition.
func madeCondition(random *rand.Rand, depth int) string {
	names := []string{"tool", "prompt", "method", "uri", "subject"}
	texts := []string{`"query"`, `"delete_"`, `""`, `"größe\u0000"`, `"tools/call"`, `"file:///query"`, `"y"`, `'ada'`}
	name, text := names[random.IntN(len(names))], texts[random.IntN(len(texts))]
	if depth > 0 {
		switch random.IntN(4) {
		case 0:
			return "(" + madeCondition(random, depth-1) + " && " + madeCondition(random, depth-1) + ")"
		case 1:
			return "(" + madeCondition(random, depth-1) + " || " + madeCondition(random, depth-1) + ")"
		case 2:
			return "!" + madeCondition(random, depth-1)
		}
	}
	switch random.IntN(9) {
	case 0:
		return fmt.Sprintf("(%s == %s)", name, text)
	case 1:
		return fmt.Sprintf("(%s != %s)", text, name)
	case 2:
		return fmt.Sprintf("%s.startsWith(%s)", name, text)
	case 3:
		return fmt.Sprintf("%s.endsWith(%s)", name, text)
	case 4:
		return fmt.Sprintf("%s.contains(%s)", name, text)
	case 5:
		return fmt.Sprintf("(%s in [%s, %s])", name, text, texts[random.IntN(len(texts))])
	case 6:
		return "(args.n == 1)" // fails where there is no n
	case 7:
		return fmt.Sprintf("[%s].exists(tool, tool == %s)", text, text) // another tool
	default:
		return "true"
	}
}

// TestGuardSpares checks that a call that no condition speaks of costs nothing.
func TestGuardSpares(t *testing.T) {
	terms := terms(t, CallRule{Deny: `tool == "sql" && args.q.matches("drop")`}, CallRule{Deny: `tool.startsWith("delete_") || tool in ["a", "b"]`})
	f := frame(t, "tools/call", `{"name":"query","arguments":{"q":"drop"}}`)
	if n := testing.AllocsPerRun(100, func() {
		if terms.Call(f, time.Time{}).Access != Allow {
			t.Fatal("it is denied")
		}
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
}
