package rerun

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"testing"

	"example.com/broker/codec"
	"example.com/broker/recorder"
)

// tape makes a tape of lines such as "c2s {…}" or "s2c answered {…}". In a line, id N
// method M stands for a frame: see frameOf.
func tape(t testing.TB, lines string) *recorder.Tape {
	t.Helper()
	tp, err := recorder.NewTape()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tp.Close() })
	verdicts := map[string]recorder.Verdict{}
	for v := recorder.Delivered; v <= recorder.Cut; v++ {
		verdicts[v.String()] = v
	}
	for line := range strings.Lines(lines) {
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		side, rest, _ := strings.Cut(line, " ")
		f := recorder.Frame{}
		if side == "s2c" {
			f.Direction = codec.S2C
		}
		if word, behind, ok := strings.Cut(rest, " "); ok && verdicts[word] != 0 {
			f.Verdict, rest = verdicts[word], behind
		}
		if rest, f.More = strings.CutSuffix(rest, "…"); true {
			f.Bytes = []byte(rest)
		}
		if err := tp.Add(f); err != nil {
			t.Fatal(err)
		}
	}
	return tp
}

// call is a tools/call of a tool with an argument.
func call(id, tool, arg string) string {
	return fmt.Sprintf(`{"jsonrpc":"2.0","id":%s,"method":"tools/call","params":{"name":%q,"arguments":{"q":%q}}}`, id, tool, arg)
}

func result(id, text string) string {
	return fmt.Sprintf(`{"jsonrpc":"2.0","id":%s,"result":{"t":%q}}`, id, text)
}

func TestServe(t *testing.T) {
	for _, test := range []struct {
		name, tape, in, want string
	}{
		{
			name: "ids are the client's, and answers come in their order and then the last again",
			tape: "c2s " + call("1", "a", "x") + "\ns2c " + result("1", "one") + "\nc2s " + call("2", "a", "x") + "\ns2c " + result("2", "two"),
			in:   call(`"p"`, "a", "x") + "\n" + call("9", "a", "x") + "\n" + call("10", "a", "x"),
			want: result(`"p"`, "one") + "\n" + result("9", "two") + "\n" + result("10", "two") + "\n",
		},
		{
			name: "members in another order, and another _meta",
			tape: "c2s " + `{"jsonrpc":"2.0","id":1,"method":"m","params":{"a":1,"b":[2],"_meta":{"progressToken":1,"x":1}}}` + "\ns2c " + result("1", "one"),
			in:   `{"id":"z","method":"m","params":{"_meta":{"x":2},"b":[2],"a":1},"jsonrpc":"2.0"}`,
			want: result(`"z"`, "one") + "\n",
		},
		{
			name: "progress goes by the client's token, or not at all",
			tape: `c2s {"jsonrpc":"2.0","id":1,"method":"m","params":{"_meta":{"progressToken":"old"}}}
				s2c {"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":"old","progress":1}}
				s2c {"jsonrpc":"2.0","method":"notifications/message","params":{"data":"x"}}
				s2c ` + result("1", "one"),
			in: `{"jsonrpc":"2.0","id":5,"method":"m","params":{"_meta":{"progressToken":7}}}` + "\n" + `{"jsonrpc":"2.0","id":6,"method":"m","params":{}}`,
			want: `{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":7,"progress":1}}
{"jsonrpc":"2.0","method":"notifications/message","params":{"data":"x"}}
` + result("5", "one") + "\n" + `{"jsonrpc":"2.0","method":"notifications/message","params":{"data":"x"}}
` + result("6", "one") + "\n",
		},
		{
			name: "what the server asked is asked, and the answer waits",
			tape: "c2s " + call("1", "a", "x") + `
				s2c {"jsonrpc":"2.0","id":77,"method":"roots/list"}
				c2s {"jsonrpc":"2.0","id":77,"result":{"roots":[]}}
				s2c ` + result("1", "one") + `
				s2c {"jsonrpc":"2.0","method":"notifications/tools/list_changed"}
				c2s ` + call("2", "b", "x") + "\ns2c " + result("2", "two"),
			in: call("1", "a", "x") + "\n" + call("2", "b", "x") + "\n" + `{"jsonrpc":"2.0","id":1,"result":{"roots":[]}}`,
			want: `{"jsonrpc":"2.0","id":1,"method":"roots/list"}
` + result("2", "two") + "\n" + result("1", "one") + "\n" + `{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}` + "\n",
		},
		{
			name: "what was cancelled is answered when it is cancelled, or never",
			tape: "c2s " + call("1", "a", "x") + `
				c2s {"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}
				s2c ` + result("1", "late"),
			in:   call("4", "a", "x") + "\n" + `{"jsonrpc":"2.0","id":5,"method":"ping"}` + "\n" + `{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":4}}`,
			want: `{"jsonrpc":"2.0","id":5,"result":{}}` + "\n" + result("4", "late") + "\n",
		},
		{
			name: "what is not on record, and what is like it",
			tape: "c2s " + call("1", "a", "x") + "\ns2c " + result("1", "one"),
			in:   call("1", "a", "y") + "\n" + call("2", "c", "y") + "\n" + `{"jsonrpc":"2.0","id":3,"method":"server/discover"}`,
			want: `{"jsonrpc":"2.0","id":1,"error":{"code":404,"message":"\"tools/call a\" is not on record in session s; it is with other params, see near","data":{"session":"s","near":[{"frame":1,"params":{"name":"a","arguments":{"q":"x"}}}]}}}
{"jsonrpc":"2.0","id":2,"error":{"code":404,"message":"\"tools/call c\" is not on record in session s; there are others by this method, see names","data":{"session":"s","names":["a"]}}}
{"jsonrpc":"2.0","id":3,"error":{"code":-32601,"message":"\"server/discover\" is not on record in session s","data":{"session":"s"}}}
`,
		},
		{
			name: "a handshake of another client",
			tape: `c2s {"jsonrpc":"2.0","id":1,"method":"initialize","params":{"clientInfo":{"name":"x"}}}` + "\ns2c " + result("1", "hello"),
			in:   `{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"clientInfo":{"name":"y"}}}`,
			want: result("1", "hello") + "\n",
		},
		{
			name: "what the broker refused is refused; what it blocked of the server is not there",
			tape: "c2s blocked " + call("1", "a", "x") + "\ns2c answered " + result("1", "no") + "\ns2c blocked " + result("1", "never"),
			in:   call("1", "a", "x"),
			want: result("1", "no") + "\n",
		},
		{
			name: "an answer in parts, among others",
			tape: "c2s " + call("1", "a", "x") + "\nc2s " + call("2", "b", "x") + "\ns2c masked " + `{"jsonrpc":"2.0","id":1,"result":{"t":"o…` + "\nc2s " + call("3", "c", "x") + "\ns2c ne\"}}\ns2c " + result("2", "two"),
			in:   call("1", "a", "x") + "\n" + call("2", "b", "x"),
			want: result("1", "one") + "\n" + result("2", "two") + "\n",
		},
		{
			name: "an answer that was cut is none",
			tape: "c2s " + call("1", "a", "x") + "\ns2c " + `{"jsonrpc":"2.0","id":1,"result":{"t":"o…` + "\ns2c cut \n",
			in:   call("1", "a", "x"),
			want: "",
		},
		{
			name: "a recording of nothing that is a frame",
			tape: "c2s blocked nonsense\ns2c [1,2]\ns2c {}\nc2s \x1b[2J\ns2c " + result("1", "one"),
			in:   "\n" + call("1", "a", "x") + "\nnonsense\n",
			want: `{"jsonrpc":"2.0","id":1,"error":{"code":404,"message":"\"tools/call a\" is not on record in session s","data":{"session":"s"}}}
{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"refused: expected a value"}}
`,
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			var out bytes.Buffer
			if err := Serve(strings.NewReader(test.in), &out, "s", tape(t, test.tape)); err != nil {
				t.Fatal(err)
			}
			if got := out.String(); got != test.want {
				t.Errorf("got\n%swant\n%s", got, test.want)
			}
		})
	}
}

// TestServeLong: an answer that is longer than what is held goes by as it is.
func TestServeLong(t *testing.T) {
	tp := tape(t, "c2s "+call("1", "a", "x"))
	rest := bytes.Repeat([]byte("0123456789abcdef"), 64<<10)
	for i := range 66 {
		f := recorder.Frame{Direction: codec.S2C, Bytes: rest, More: true}
		if i == 0 {
			f.Bytes = []byte(`{"jsonrpc":"2.0", "id" : 1 ,"result":{"t":"`)
		}
		if err := tp.Add(f); err != nil {
			t.Fatal(err)
		}
	}
	if err := tp.Add(recorder.Frame{Direction: codec.S2C, Bytes: []byte(`"}}`)}); err != nil {
		t.Fatal(err)
	}
	var out counter
	if err := Serve(strings.NewReader(call(`"other"`, "a", "x")), &out, "s", tp); err != nil {
		t.Fatal(err)
	}
	if want := `{"jsonrpc":"2.0", "id" : "other" ,"result":{"t":"0123`; string(out.head) != want {
		t.Errorf("the answer begins with %s, want %s", out.head, want)
	}
	if want := tp.Frame(1).Length + int64(len(`"other"`)); out.n != want {
		t.Errorf("the answer has %d bytes, want %d", out.n, want)
	}
}

// A counter keeps the beginning of what is written.
type counter struct {
	head []byte
	n    int64
}

func (c *counter) Write(p []byte) (int, error) {
	c.head = append(c.head, p[:min(len(p), 53-len(c.head))]...)
	c.n += int64(len(p))
	return len(p), nil
}

// FuzzServe: no recording and no client makes it panic, and all that it writes is
// frames.
func FuzzServe(f *testing.F) {
	f.Add([]byte(call("1", "a", "x")), []byte(result("1", "one")), []byte(call("1", "a", "x")))
	f.Add([]byte(`{"jsonrpc":"2.0","id":1,"method":"m","params":{"_meta":{"progressToken":{}}}}`), []byte(`{"jsonrpc":"2.0","method":"n","params":{"progressToken":{}}}`), []byte(`{"jsonrpc":"2.0","id":1,"method":"m"}`))
	f.Fuzz(func(t *testing.T, c2s, s2c, in []byte) {
		tp, err := recorder.NewTape()
		if err != nil {
			t.Fatal(err)
		}
		defer tp.Close()
		for i := range 3 {
			tp.Add(recorder.Frame{Verdict: recorder.Verdict(i), Bytes: c2s})
			tp.Add(recorder.Frame{Direction: codec.S2C, Bytes: s2c})
		}
		var out bytes.Buffer
		if err := Serve(bytes.NewReader(in), &out, "s", tp); err != nil {
			t.Fatal(err)
		}
		r, p := codec.NewReader(&out, codec.Limits{}), codec.Parser{}
		for {
			line, err := r.Next()
			if err == io.EOF {
				return
			}
			if bytes.IndexByte(s2c, '\n') >= 0 {
				return // no frame has one, but for what a test makes
			}
			if _, err = p.Parse(line, codec.S2C); err != nil {
				t.Fatalf("%q: %v", line, err)
			}
		}
	})
}
