package rerun

import (
	"bufio"
	"bytes"
	"encoding/xml"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"example.com/broker/codec"
)

// against runs a tape against a server that says, for each line that it gets, what
// it answers, and returns the report as text, and the lines.
func against(t *testing.T, lines string, o Options, server func(line string) string) (r *Report, text string, got []string) {
	t.Helper()
	near, far := tcp(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer far.Close()
		for in := bufio.NewReader(far); ; {
			line, err := in.ReadString('\n')
			if err != nil {
				return
			}
			got = append(got, strings.TrimSuffix(line, "\n"))
			if answer := server(got[len(got)-1]); answer != "" {
				io.WriteString(far, answer+"\n")
			}
		}
	}()
	r, err := Against(t.Context(), near, "s", "live", tape(t, lines), o)
	if err != nil {
		t.Fatal(err)
	}
	<-done
	var b bytes.Buffer
	if err := r.WriteText(&b); err != nil {
		t.Fatal(err)
	}
	return r, b.String(), got
}

// tcp returns both ends of a connection.
func tcp(t *testing.T) (near, far *net.TCPConn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	f, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return c.(*net.TCPConn), f.(*net.TCPConn)
}

// echo answers each request with result.
func echo(result string) func(string) string {
	return func(line string) string {
		id := codec.Member([]byte(line), "id")
		if id == nil || codec.Member([]byte(line), "method") == nil {
			return ""
		}
		return fmt.Sprintf(`{"jsonrpc":"2.0","id":%s,"result":%s}`, id, result)
	}
}

func TestAgainstValues(t *testing.T) {
	now := time.Now()
	for _, test := range []struct {
		name, verdict, recorded, live string
		ignore                        []string
		want                          string // the lines below the first
	}{
		{name: "the same in another order", recorded: `{"a":1,"b":[1.0]}`, live: `{"b":[1],"a":1}`},
		{name: "a value", recorded: `{"a":1}`, live: `{"a":2}`, want: "  $.result.a\n    recorded 1\n    live     2\n"},
		{name: "a type", recorded: `{"a":"1"}`, live: `{"a":1}`, want: "  $.result.a\n    recorded \"1\"\n    live     1\n"},
		{name: "null is a value", recorded: `{"a":null}`, live: `{}`, want: "  $.result.a\n    recorded null\n    live     nothing\n"},
		{name: "an element more", recorded: `{"a":[1]}`, live: `{"a":[1,{"x":2}]}`, want: "  $.result.a[1]\n    recorded nothing\n    live     {\"x\":2}\n"},
		{name: "named elements have no order", recorded: `{"tools":[{"name":"a"},{"name":"b","d":1}]}`, live: `{"tools":[{"name":"b","d":2},{"name":"a"}]}`, want: "  $.result.tools[name=\"b\"].d\n    recorded 1\n    live     2\n"},
		{name: "times in text", recorded: `{"a":"at 2024-01-02T03:04:05Z, done"}`, live: `{"a":"at 2026-11-25 21:00:00.123+01:00, done"}`},
		{name: "numbers that are times", recorded: fmt.Sprintf(`{"a":0,"b":%d}`, now.UnixMilli()), live: fmt.Sprintf(`{"a":0,"b":%d}`, now.UnixMilli()+5000)},
		{name: "numbers that are none", recorded: `{"a":100000000}`, live: `{"a":100000001}`, want: "  $.result.a\n    recorded 100000000\n    live     100000001\n"},
		{name: "cursors and tokens", recorded: `{"nextCursor":"a","_meta":{"progressToken":1}}`, live: `{"nextCursor":"b","_meta":{"progressToken":2}}`},
		{name: "JSON in a string", recorded: `{"text":"{\"a\":1,\"b\":2}"}`, live: `{"text":"{ \"b\": 3, \"a\": 1 }"}`, want: "  $.result.text<json>.b\n    recorded 2\n    live     3\n"},
		{name: "what is ignored", recorded: `{"content":[{"text":"a"},{"text":"b"}],"etag":"x"}`, live: `{"content":[{"text":"c"},{"text":"d"}],"etag":"y"}`, ignore: []string{"$.result.content[*].text", "etag"}},
		{name: "masked", verdict: "masked ", recorded: `{"a":"mail [masked:email] now","b":0,"c":"[masked:field]","d":false}`, live: `{"a":"mail ada@example.com now","b":7,"c":{"x":1},"d":true}`,
			want: "  $.result.a is masked: not compared\n  $.result.b is masked: not compared\n  $.result.c is masked: not compared\n  $.result.d is masked: not compared\n"},
		{name: "masked, and different around it", verdict: "masked ", recorded: `{"a":"mail [masked:email] now"}`, live: `{"a":"call ada@example.com now"}`, want: "  $.result.a\n    recorded \"mail [masked:email] now\"\n    live     \"call ada@example.com now\"\n"},
		{name: "masked on both sides", verdict: "masked ", recorded: `{"a":"mail [masked:email] now"}`, live: `{"a":"mail [masked:email] now"}`},
		{name: "names that are masked", verdict: "masked ", recorded: `{"[masked:email 1]":1}`, live: `{"ada@example.com":1}`, want: "  $.result[\"[masked:email 1]\"] is masked: not compared\n  $.result[\"ada@example.com\"] is masked: not compared\n"},
		{name: "0 in a frame that is not masked", recorded: `{"b":0}`, live: `{"b":7}`, want: "  $.result.b\n    recorded 0\n    live     7\n"},
		{name: "control sequences", recorded: `{"a":""}`, live: `{"a":"\u001b[2J\u009b2J\u202e"}`, want: "  $.result.a\n    recorded \"\"\n    live     \"\\u001b[2J\\u009b2J\\u202e\"\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			ignore, err := codec.NewFields(test.ignore)
			if err != nil {
				t.Fatal(err)
			}
			lines := "c2s " + call(`"x"`, "a", "y") + "\ns2c " + test.verdict + `{"jsonrpc":"2.0","id":"x","result":` + test.recorded + "}"
			tp := tape(t, lines)
			for i := range tp.Len() {
				tp.Frame(i).Time = now
			}
			near, far := tcp(t)
			go func() {
				defer far.Close()
				line, _ := bufio.NewReader(far).ReadString('\n')
				io.WriteString(far, echo(test.live)(line)+"\n")
			}()
			r, err := Against(t.Context(), near, "s", "live", tp, Options{Ignore: ignore})
			if err != nil {
				t.Fatal(err)
			}
			var b bytes.Buffer
			r.WriteText(&b)
			_, rest, _ := strings.Cut(b.String(), "\n")
			rest = rest[:strings.LastIndexByte(strings.TrimSuffix(rest, "\n"), '\n')+1]
			if rest != test.want || r.Same() == strings.Contains(test.want, "live") {
				t.Errorf("the same: %v, got\n%swant\n%s", r.Same(), rest, test.want)
			}
		})
	}
}

// What was refused, or answered by the broker, is sent only on demand.
func TestAgainstBlocked(t *testing.T) {
	lines := "c2s blocked " + call("1", "a", "x") + "\ns2c answered " + result("1", "no") + "\nc2s " + call("2", "b", "x") + "\ns2c answered " + result("2", "late") + "\nc2s answered " + result("7", "broker") + "\nc2s blocked " + `{"jsonrpc":"2.0","method":"notifications/x"}` + "\nc2s " + call("3", "c", "x") + "\ns2c " + result("3", "ok")
	_, text, got := against(t, lines, Options{}, echo(`{"t":"ok"}`))
	want := []string{call("3", "c", "x")}
	if !slices.Equal(got, want) {
		t.Errorf("sent %q, want %q", got, want)
	}
	if want := "skipped    tools/call a (frame 1): refused when it was recorded\nskipped    tools/call b (frame 3): answered by the broker when it was recorded\nsame       tools/call c (frame 7)\n1 the same, 0 different, 2 skipped; 0 messages missing, 0 additional\n"; text != want {
		t.Errorf("got\n%swant\n%s", text, want)
	}
	if _, _, got := against(t, lines, Options{Blocked: true}, echo(`{"t":"ok"}`)); len(got) != 3 {
		t.Errorf("with Blocked, sent %q", got)
	}
}

// The order of the recording is kept: what follows an answer follows it now; names
// that the server gives are those of now; its questions are answered as they were.
func TestAgainstOrder(t *testing.T) {
	lines := `c2s {"jsonrpc":"2.0","id":"i","method":"tools/list"}
		s2c {"jsonrpc":"2.0","id":"i","result":{"nextCursor":"then"}}
		c2s {"jsonrpc":"2.0","id":"j","method":"tools/list","params":{"cursor":"then"}}
		s2c {"jsonrpc":"2.0","id":5,"method":"roots/list"}
		c2s {"jsonrpc":"2.0","id":5,"result":{"roots":[1]}}
		s2c {"jsonrpc":"2.0","method":"notifications/message","params":{"data":"only then"}}
		s2c {"jsonrpc":"2.0","id":"j","result":{}}
		c2s {"jsonrpc":"2.0","id":"k","method":"slow"}
		c2s {"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":"k"}}`
	_, text, got := against(t, lines, Options{}, func(line string) string {
		switch id := string(codec.Member([]byte(line), "id")); id {
		case "1":
			return `{"jsonrpc":"2.0","id":1,"result":{"nextCursor":"now"}}`
		case "2":
			return `{"jsonrpc":"2.0","id":"q","method":"roots/list"}`
		case `"q"`:
			return `{"jsonrpc":"2.0","method":"notifications/message","params":{"data":"only now"}}` + "\n" + `{"jsonrpc":"2.0","id":"r","method":"other/ask"}`
		case `"r"`:
			return `{"jsonrpc":"2.0","id":2,"result":{}}`
		}
		return ""
	})
	want := []string{
		`{"jsonrpc":"2.0","id":1,"method":"tools/list"}`,
		`{"jsonrpc":"2.0","id":2,"method":"tools/list","params":{"cursor":"now"}}`,
		`{"jsonrpc":"2.0","id":"q","result":{"roots":[1]}}`,
		`{"jsonrpc":"2.0","id":3,"method":"slow"}`,
		`{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":3}}`,
		`{"jsonrpc":"2.0","id":"r","error":{"code":404,"message":"\"other/ask\" is not on record"}}`,
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("sent\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if want := `same       tools/list (frame 1)
same       tools/list (frame 3)
skipped    slow (frame 8): cancelled by the client
missing    notifications/message {"data":"only then"} (frame 6)
additional other/ask nothing
additional notifications/message {"data":"only now"}
2 the same, 0 different, 1 skipped; 1 messages missing, 2 additional
`; text != want {
		t.Errorf("got\n%swant\n%s", text, want)
	}
}

// A server that ends, or does not answer, is a difference; nothing hangs.
func TestAgainstSilence(t *testing.T) {
	lines := "c2s " + call("1", "a", "x") + "\ns2c " + result("1", "one") + "\nc2s " + call("2", "b", "x") + "\ns2c " + result("2", "two")
	r, text, _ := against(t, lines, Options{Wait: 50 * time.Millisecond}, func(string) string { return "" })
	if r.Same() || strings.Count(text, ": not answered within 50ms\n") != 2 {
		t.Errorf("silence: %s", text)
	}
	near, far := tcp(t)
	far.Close()
	r, err := Against(t.Context(), near, "s", "live", tape(t, lines), Options{})
	if err != nil || r.Same() || r.Count(Different) != 2 {
		t.Errorf("the end: %+v, %v", r, err)
	}
}

// The report as JUnit's XML can be read, whatever a server says.
func TestJUnit(t *testing.T) {
	r, _, _ := against(t, "c2s "+call("1", "a]]>\u200b", "x")+"\ns2c "+result("1", "one")+"\nc2s blocked "+call("2", "b", "x")+"\ns2c answered "+result("2", "no"), Options{}, echo(`{"t":"<\u001b>"}`))
	var b bytes.Buffer
	if err := r.WriteJUnit(&b); err != nil {
		t.Fatal(err)
	}
	var suite struct {
		Tests    int `xml:"tests,attr"`
		Failures int `xml:"failures,attr"`
		Skipped  int `xml:"skipped,attr"`
		Cases    []struct {
			Failure *struct {
				Text string `xml:",chardata"`
			} `xml:"failure"`
		} `xml:"testcase"`
	}
	if err := xml.Unmarshal(b.Bytes(), &suite); err != nil {
		t.Fatal(err)
	}
	if suite.Tests != 2 || suite.Failures != 1 || suite.Skipped != 1 || suite.Cases[0].Failure == nil || !strings.Contains(suite.Cases[0].Failure.Text, `live     "<\u001b>"`) {
		t.Errorf("%+v in\n%s", suite, &b)
	}
}

// FuzzCompare: a value is the same as itself, and nothing makes it panic.
func FuzzCompare(f *testing.F) {
	f.Add([]byte(`{"a":[{"name":"x"},"[masked:email] y",1e400,null]}`), []byte(`{"a":[{"name":"x"},"z y",{"":"{\"a\":1}"}]}`))
	f.Fuzz(func(t *testing.T, a, b []byte) {
		var c comparison
		c.compare(decode(a), decode(b))
		c = comparison{}
		if c.compare(decode(a), decode(a)); len(c.differences) > 0 || len(c.masked) > 0 {
			t.Errorf("%s is different from itself: %+v", a, c)
		}
	})
}
