package broker

import (
	"fmt"
	"testing"

	"example.com/broker/codec"
)

// TestRequestIDs checks by which ids a request in flight is known, and that what is
// answered in its name has its id as it came.
func TestRequestIDs(t *testing.T) {
	for _, test := range []struct {
		id            string
		known, others []string
	}{
		{"0", []string{"0"}, []string{"", "null", `"0"`, "0.0", "-0", "00", "[0]"}},
		{"7", []string{"7"}, []string{"7.0", "07", "+7", "70", "7e0", `"7"`, " 7", "9223372036854775815"}},
		{"-7", []string{"-7"}, []string{"7", `"-7"`, "-07"}},
		{"9007199254740992", []string{"9007199254740992"}, []string{"9007199254740993", "9007199254740992.0"}},
		{`""`, []string{`""`}, []string{"", "0", "null"}},
		{`"nobody"`, []string{`"nobody"`}, []string{"nobody", ""}},
		{`"\u0061"`, []string{`"a"`, `"\u0061"`}, []string{"a", `"A"`, `"\\u0061"`}},
	} {
		l := ledger{limit: 2}
		var p codec.Parser
		f, err := p.Parse(fmt.Appendf(nil, `{"jsonrpc":"2.0","id":%s,"method":"ping"}`, test.id), codec.C2S)
		if err != nil {
			t.Fatal(err)
		}
		add := func() {
			if got := l.add(f, ""); got != added {
				t.Errorf("%s cannot be added: %v", test.id, got)
			}
		}
		for _, raw := range test.known {
			add()
			if got := l.add(f, ""); got != duplicate {
				t.Errorf("%s can be added twice: %v", test.id, got)
			}
			if string(l.only()) != test.id {
				t.Errorf("the only one is %s, want %s", l.only(), test.id)
			}
			if _, ok := l.done([]byte(raw)); !ok {
				t.Errorf("%s is not known by %s", test.id, raw)
			}
		}
		add()
		for _, raw := range test.others {
			if _, ok := l.done([]byte(raw)); ok || l.has([]byte(raw)) {
				t.Errorf("%s is known by %q", test.id, raw)
			}
			l.cancel([]byte(raw))
		}
		if open := l.drain(); len(open) != 1 || string(open[0]) != test.id {
			t.Errorf("what was open is %q, want %s", open, test.id)
		}
	}
}

// TestLedgerSole checks that nobody is taken for the one whose answer comes while there are
// others that may be answered.
func TestLedgerSole(t *testing.T) {
	l := ledger{limit: 3}
	var p codec.Parser
	add := func(id int, method string) {
		t.Helper()
		f, err := p.Parse(fmt.Appendf(nil, `{"jsonrpc":"2.0","id":%d,"method":%q,"params":{"name":"x"}}`, id, method), codec.C2S)
		if err != nil {
			t.Fatal(err)
		}
		if got := l.add(f, ""); got != added {
			t.Fatalf("%d: %v", id, got)
		}
	}
	check := func(sole, only string) {
		t.Helper()
		if string(l.sole()) != sole || string(l.only()) != only {
			t.Errorf("sole is %s, want %s; only %s, want %s", l.sole(), sole, l.only(), only)
		}
	}
	check("", "")
	add(1, "subscriptions/listen")
	check("", "")
	add(2, "tools/call")
	check("2", "2")
	l.cancel([]byte("2"))
	check("2", "")
	add(3, "tools/call")
	check("", "3")
	l.done([]byte("2"))
	check("3", "3")
	for id := 4; id < 8; id++ { // more than are kept
		add(id, "tools/call")
		l.cancel(fmt.Append(nil, id))
	}
	for id := 5; id < 8; id++ {
		l.done(fmt.Append(nil, id))
	}
	check("", "3")
}
