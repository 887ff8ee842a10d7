package codec

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var parseTests = []struct {
	name string
	in   string
	d    Direction
	code int    // 0: accepted
	id   string // of the error
}{
	{name: "request", in: `{"jsonrpc":"2.0","id":1,"method":"ping"}`},
	{name: "odd spacing and order", in: " \t{ \"method\" :\"ping\",\"id\" :\"a\" , \"jsonrpc\":\"2.0\"}"},
	{name: "CRLF", in: "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\"}\r"},
	{name: "notification", in: `{"jsonrpc":"2.0","method":"notifications/initialized"}`},
	{name: "response", in: `{"jsonrpc":"2.0","id":1,"result":{}}`},
	{name: "result is null", in: `{"jsonrpc":"2.0","id":1,"result":null}`},
	{name: "error without a request", in: `{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"x"}}`, d: S2C},
	{name: "error without a request from the client", in: `{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"x"}}`, code: CodeInvalid},
	{name: "escaped method", in: `{"jsonrpc":"2.0","id":1,"method":"tools\/call","params":{"name":"x"}}`},
	{name: "unknown member", in: `{"jsonrpc":"2.0","id":1,"method":"ping","extra":[1,2]}`},
	{name: "lone surrogate in a value", in: `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"x","arguments":{"a":"\ud800"}}}`},
	{name: "surrogate pair in a name", in: `{"jsonrpc":"2.0","id":1,"method":"ping","params":{"\ud83d\ude00":1}}`},
	{name: "same name in two objects", in: `{"jsonrpc":"2.0","id":1,"method":"ping","params":{"a":{"x":1},"b":{"x":1}}}`},
	{name: "smallest id", in: `{"jsonrpc":"2.0","id":-9007199254740992,"method":"ping"}`},

	{name: "empty", in: ``, code: CodeParse},
	{name: "not JSON", in: `hello`, code: CodeParse},
	{name: "cut", in: `{"jsonrpc":"2.0","id":7,"method":"ping"`, code: CodeParse, id: "7"},
	{name: "array", in: `[{"jsonrpc":"2.0","id":1,"method":"ping"}]`, code: CodeInvalid},
	{name: "string", in: `"x"`, code: CodeInvalid},
	{name: "trailing value", in: `{"jsonrpc":"2.0","id":7,"method":"ping"}{}`, code: CodeParse, id: "7"},
	{name: "trailing space", in: `{"jsonrpc":"2.0","id":7,"method":"ping"} `, code: CodeParse, id: "7"},
	{name: "two carriage returns", in: "{\"jsonrpc\":\"2.0\",\"id\":7,\"method\":\"ping\"}\r\r", code: CodeParse, id: "7"},
	{name: "byte order mark", in: "\ufeff" + `{"jsonrpc":"2.0","id":7,"method":"ping"}`, code: CodeParse, id: "7"},
	{name: "invalid UTF-8", in: "{\"jsonrpc\":\"2.0\",\"id\":7,\"method\":\"p\xff\"}", code: CodeParse, id: "7"},
	{name: "overlong UTF-8", in: "{\"jsonrpc\":\"2.0\",\"id\":7,\"method\":\"\xc0\xae\"}", code: CodeParse, id: "7"},
	{name: "encoded surrogate", in: "{\"jsonrpc\":\"2.0\",\"id\":7,\"method\":\"\xed\xa0\x80\"}", code: CodeParse, id: "7"},
	{name: "control character", in: "{\"jsonrpc\":\"2.0\",\"id\":7,\"method\":\"a\tb\"}", code: CodeParse, id: "7"},
	{name: "duplicate name", in: `{"jsonrpc":"2.0","id":7,"method":"ping","method":"tools/call"}`, code: CodeInvalid, id: "7"},
	{name: "duplicate id", in: `{"jsonrpc":"2.0","id":7,"id":8,"method":"ping"}`, code: CodeInvalid},
	{name: "duplicate name by escape", in: `{"jsonrpc":"2.0","id":7,"method":"ping","params":{"a":1,"\u0061":2}}`, code: CodeInvalid, id: "7"},
	{name: "duplicate name deep", in: `{"jsonrpc":"2.0","id":7,"method":"ping","params":{"a":[[{"b":1,"b":2}]]}}`, code: CodeInvalid, id: "7"},
	{name: "another case", in: `{"jsonrpc":"2.0","id":7,"Method":"tools/call","method":"ping"}`, code: CodeInvalid, id: "7"},
	{name: "another case in params", in: `{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"a","Name":"b"}}`, code: CodeInvalid, id: "7"},
	{name: "long s", in: `{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"a","argument` + "\u017f" + `":{}}}`, code: CodeInvalid, id: "7"},
	{name: "Kelvin sign", in: `{"jsonrpc":"2.0","id":7,"method":"ping","params":{"progressTo` + "\u212a" + `en":1}}`, code: CodeInvalid, id: "7"},
	{name: "no version", in: `{"id":7,"method":"ping"}`, code: CodeInvalid, id: "7"},
	{name: "other version", in: `{"jsonrpc":"1.0","id":7,"method":"ping"}`, code: CodeInvalid, id: "7"},
	{name: "fraction id", in: `{"jsonrpc":"2.0","id":1.5,"method":"ping"}`, code: CodeInvalid},
	{name: "exponent id", in: `{"jsonrpc":"2.0","id":5e1,"method":"ping"}`, code: CodeInvalid},
	{name: "minus zero id", in: `{"jsonrpc":"2.0","id":-0,"method":"ping"}`, code: CodeInvalid},
	{name: "big id", in: `{"jsonrpc":"2.0","id":9007199254740993,"method":"ping"}`, code: CodeInvalid},
	{name: "null id", in: `{"jsonrpc":"2.0","id":null,"method":"ping"}`, code: CodeInvalid},
	{name: "object id", in: `{"jsonrpc":"2.0","id":{"id":1},"method":"ping"}`, code: CodeInvalid},
	{name: "lone surrogate id", in: `{"jsonrpc":"2.0","id":"\ud800","method":"ping"}`, code: CodeInvalid},
	{name: "method beside result", in: `{"jsonrpc":"2.0","id":7,"method":"ping","result":{}}`, code: CodeInvalid, id: "7"},
	{name: "result beside error", in: `{"jsonrpc":"2.0","id":7,"result":{},"error":{"code":1,"message":""}}`, code: CodeInvalid, id: "7"},
	{name: "nothing", in: `{"jsonrpc":"2.0","id":7}`, code: CodeInvalid, id: "7"},
	{name: "params array", in: `{"jsonrpc":"2.0","id":7,"method":"ping","params":[]}`, code: CodeInvalid, id: "7"},
	{name: "params null", in: `{"jsonrpc":"2.0","id":7,"method":"ping","params":null}`, code: CodeInvalid, id: "7"},
	{name: "method number", in: `{"jsonrpc":"2.0","id":7,"method":1}`, code: CodeInvalid, id: "7"},
	{name: "call without a name", in: `{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{}}`, code: CodeInvalid, id: "7"},
	{name: "call with a number for a name", in: `{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":1}}`, code: CodeInvalid, id: "7"},
	{name: "lone surrogate in the name", in: `{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"a\ud800"}}`, code: CodeInvalid, id: "7"},
	{name: "lone surrogate in a member's name", in: `{"jsonrpc":"2.0","id":7,"method":"ping","params":{"\udc00":1}}`, code: CodeInvalid, id: "7"},
	{name: "read without a uri", in: `{"jsonrpc":"2.0","id":7,"method":"resources/read","params":{}}`, code: CodeInvalid, id: "7"},
	{name: "error without a code", in: `{"jsonrpc":"2.0","id":7,"error":{"message":""}}`, code: CodeInvalid, id: "7", d: S2C},
	{name: "error without an id from the server", in: `{"jsonrpc":"2.0","error":{"code":-32700,"message":"x"}}`, d: S2C},
	{name: "error without an id from the client", in: `{"jsonrpc":"2.0","error":{"code":-32700,"message":"x"}}`, code: CodeInvalid},
	{name: "result without an id", in: `{"jsonrpc":"2.0","result":{}}`, code: CodeInvalid, d: S2C},
	{name: "lines as in a pretty-printed body", in: "{\"jsonrpc\":\"2.0\",\n\"id\":1,\r\n\"method\":\"ping\"}"},
	{name: "a frame between bare carriage returns", in: "{\"jsonrpc\":\"2.0\",\"id\":7,\"method\":\"ping\",\"params\":{\"a\":\r{\"jsonrpc\":\"2.0\",\"id\":8,\"method\":\"tools/call\",\"params\":{\"name\":\"x\"}}\r}}", code: CodeInvalid, id: "7"},
	{name: "carriage return in front", in: "\r{\"jsonrpc\":\"2.0\",\"id\":7,\"method\":\"ping\"}", code: CodeInvalid, id: "7"},
	{name: "no JSON behind a duplicate name", in: `{"jsonrpc":"2.0","id":7,"method":"ping","params":{"a":1,"a":2},}`, code: CodeParse, id: "7"},
	{name: "cut array", in: `[{"jsonrpc":`, code: CodeParse},
	{name: "two numbers for an id", in: `{"id":1 2,"method":"ping"}`, code: CodeParse},
	{name: "escaped name of the id", in: `{"\u0069d":7,"method":}`, code: CodeParse, id: "7"},
	{name: "broken escape in a name", in: `{"\u0":7,"id":7}`, code: CodeParse, id: "7"},
	{name: "depth 128", in: nested(128)},
	{name: "depth 129", in: nested(129), code: CodeInvalid},
}

// nested is a frame whose innermost array is at that depth.
func nested(depth int) string {
	n := depth - 2 // envelope and params
	return `{"jsonrpc":"2.0","method":"x","params":{"a":` + strings.Repeat("[", n) + strings.Repeat("]", n) + `}}`
}

func TestParse(t *testing.T) {
	for _, tt := range parseTests {
		t.Run(tt.name, func(t *testing.T) {
			var p Parser
			_, err := p.Parse([]byte(tt.in), tt.d)
			var e *Error
			if errors.As(err, &e) != (tt.code != 0) {
				t.Fatalf("error %v, want code %d", err, tt.code)
			}
			if e != nil && (e.Code != tt.code || string(e.ID) != tt.id) {
				t.Errorf("code %d, id %q (%v); want %d, %q", e.Code, e.ID, e, tt.code, tt.id)
			}
		})
	}
}

// A reason says where, in words that the peer has not chosen.
func TestReason(t *testing.T) {
	for in, want := range map[string]string{
		`{"jsonrpc":"2.0","id":1,"id":2,"method":"x"}`:                                                                  `codec: duplicate name at offset 24`,
		`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"x","arguments":{"secret":{"pin":1,"pin":2}}}}`: `codec: duplicate name within "/params/arguments" at offset 98`,
		`{"jsonrpc":"2.0","id":1,"result":{"a":tru}}`:                                                                   `codec: expected a value within "/result" at offset 38`,
		`{"id":1,"method":"x"}`: `codec: jsonrpc is not "2.0"`,
	} {
		var p Parser
		if _, err := p.Parse([]byte(in), S2C); err == nil || err.Error() != want {
			t.Errorf("%s:\n got %v\nwant %s", in, err, want)
		}
	}
}

func TestAppendError(t *testing.T) {
	tests := []struct {
		id   string
		data any
		want string
	}{
		{`"a"`, nil, `{"jsonrpc":"2.0","id":"a","error":{"code":403,"message":"a \"<b>\" & c"}}`},
		{"", map[string]string{"url": "https://x/?a&b"}, `{"jsonrpc":"2.0","id":null,"error":{"code":403,"message":"a \"<b>\" & c","data":{"url":"https://x/?a&b"}}}`},
		{"1", func() {}, `{"jsonrpc":"2.0","id":1,"error":{"code":403,"message":"a \"<b>\" & c"}}`},
	}
	for _, tt := range tests {
		var id []byte
		if tt.id != "" {
			id = []byte(tt.id)
		}
		got := AppendError([]byte("x"), id, 403, `a "<b>" & c`, tt.data)
		if string(got) != "x"+tt.want {
			t.Errorf("got  %s\nwant x%s", got, tt.want)
		}
		var p Parser
		if _, err := p.Parse(got[1:], S2C); err != nil {
			t.Errorf("%s: %v", got, err)
		}
	}
}

func TestParseView(t *testing.T) {
	line := []byte(`{"params":{"_meta":{"x":1},"arguments":{"a":[1, 2]},"uri":"f\u00fc","name":"q\u0075ery"},"id":"\u0061b","method":"tools/call","jsonrpc":"2.0"}`)
	var p Parser
	f, err := p.Parse(line, C2S)
	if err != nil {
		t.Fatal(err)
	}
	got := fmt.Sprintf("%d %s %s %s %s %s %s", f.Kind, f.ID, f.Method, f.Name, f.URI, f.Arguments, f.Meta)
	if want := `0 "\u0061b" tools/call query fü {"a":[1, 2]} {"x":1}`; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// An object of many names must not cost their square, whoever chooses them.
func TestManyNames(t *testing.T) {
	var b strings.Builder
	b.WriteString(`{"jsonrpc":"2.0","method":"x","params":{"n":{`)
	for i := range 200_000 {
		fmt.Fprintf(&b, `"k%d":0,`, i)
	}
	var p Parser
	if _, err := p.Parse([]byte(b.String()+`"last":1}}}`), C2S); err != nil {
		t.Error(err)
	}
	if _, err := p.Parse([]byte(b.String()+`"k77777":1}}}`), C2S); err == nil {
		t.Error("a duplicate among many names passes")
	}
}

func TestParseAllocates(t *testing.T) {
	if poison {
		t.Skip("the race detector allocates")
	}
	lines := [][]byte{
		[]byte(`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"qu\u0065ry","arguments":{"sql":"SELECT \"a\" FROM b","n":[1,2.5e3,{"x":null}]}}}`),
		[]byte(`{"result":{"a":1,"b":2,"c":3,"d":4,"e":5,"f":6,"g":7,"h":8,"i":9,"j":10,"k":11},"jsonrpc":"2.0","id":1}`),
	}
	wide := strings.Repeat(`{"a":1,"b":2,"c":3,"d":4,"e":5,"f":6,"g":7,"h":8,"i":9,"j":10,"k":11},`, 1000)
	lines = append(lines, []byte(`{"result":{"rows":[`+wide+`0]},"jsonrpc":"2.0","id":1}`))
	var p Parser
	n := testing.AllocsPerRun(100, func() {
		for _, line := range lines {
			if _, err := p.Parse(line, S2C); err != nil {
				t.Fatal(err)
			}
		}
	})
	if n != 0 {
		t.Errorf("%v allocations for %d frames, want 0", n, len(lines))
	}
}

// A Parser does not keep the memory of an unusual frame.
func TestParserGivesMemoryBack(t *testing.T) {
	var b strings.Builder
	b.WriteString(`{"jsonrpc":"2.0","method":"x","params":{"n":{`)
	for i := range 50_000 {
		fmt.Fprintf(&b, `"\u006b%d":0,`, i)
	}
	var p Parser
	for _, in := range []string{b.String() + `"last":1}}}`, `{"jsonrpc":"2.0","id":1,"method":"ping"}`} {
		if _, err := p.Parse([]byte(in), C2S); err != nil {
			t.Fatal(err)
		}
	}
	if n := cap(p.s.names.names); n > keptNames {
		t.Errorf("room for %d names is kept", n)
	}
	if n := len(p.s.names.table); n > 4*keptNames {
		t.Errorf("a table of %d slots is kept", n)
	}
	if n := cap(p.s.scratch); n > bigBuffer {
		t.Errorf("%d bytes of decoded strings are kept", n)
	}
}

// FuzzNames checks that an object is refused for its names exactly if it has one
// of them twice, however many there are and whatever is under way around it.
func FuzzNames(f *testing.F) {
	f.Add([]byte("abcdefghijkla"), uint8(3))
	f.Add([]byte("abcdefghijklmnopqrstuvwxyz"), uint8(20))
	f.Fuzz(func(t *testing.T, letters []byte, inner uint8) {
		var b strings.Builder
		seen, want := map[byte]bool{}, false
		b.WriteString(`{"jsonrpc":"2.0","method":"x","params":{"n":{`)
		for i, c := range letters {
			if i > 0 {
				b.WriteByte(',')
			}
			fmt.Fprintf(&b, `"%d":{`, c)
			for j := range inner {
				if j > 0 {
					b.WriteByte(',')
				}
				fmt.Fprintf(&b, `"%d":0`, j)
			}
			b.WriteByte('}')
			want = want || seen[c]
			seen[c] = true
		}
		b.WriteString("}}}")
		var p Parser
		if _, err := p.Parse([]byte(b.String()), C2S); (err != nil) != want {
			t.Errorf("a name twice: %v, but %v for %s", want, err, b.String())
		}
		if p.s.names.used != 0 && !want {
			t.Errorf("%d names are left in the table", p.s.names.used)
		}
	})
}

// shared returns a folder of test data that is not part of the project.
func shared(t testing.TB, name string) string {
	dir, err := os.Getwd()
	for err == nil {
		at := filepath.Join(dir, "shared", "testdata", name)
		if _, serr := os.Stat(at); serr == nil {
			return at
		}
		up := filepath.Dir(dir)
		if up == dir {
			break
		}
		dir = up
	}
	t.Skipf("shared/testdata/%s is not beside the project", name)
	return ""
}

// acceptedByChoice are the i_ files, which RFC 8259 leaves to the parser, that
// pass: numbers beyond a double, which a server may keep as they are written, and
// lone surrogates in values, which occur in real traffic. Refused are names with
// a lone surrogate, what is not UTF-8 or begins with a byte order mark, and what
// is nested deeper than 128.
var acceptedByChoice = map[string]bool{
	"i_number_double_huge_neg_exp.json":                   true,
	"i_number_huge_exp.json":                              true,
	"i_number_neg_int_huge_exp.json":                      true,
	"i_number_pos_double_huge_exp.json":                   true,
	"i_number_real_neg_overflow.json":                     true,
	"i_number_real_pos_overflow.json":                     true,
	"i_number_real_underflow.json":                        true,
	"i_number_too_big_neg_int.json":                       true,
	"i_number_too_big_pos_int.json":                       true,
	"i_number_very_big_negative_int.json":                 true,
	"i_string_1st_surrogate_but_2nd_missing.json":         true,
	"i_string_1st_valid_surrogate_2nd_invalid.json":       true,
	"i_string_incomplete_surrogate_and_escape_valid.json": true,
	"i_string_incomplete_surrogate_pair.json":             true,
	"i_string_incomplete_surrogates_escape_valid.json":    true,
	"i_string_invalid_lonely_surrogate.json":              true,
	"i_string_invalid_surrogate.json":                     true,
	"i_string_inverted_surrogates_U+1D11E.json":           true,
	"i_string_lone_second_surrogate.json":                 true,
}

// TestJSONTestSuite checks every file of the suite as an argument of a call.
func TestJSONTestSuite(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(shared(t, "JSONTestSuite"), "*.json"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no files: %v", err)
	}
	// y_ files that are valid JSON and still read in two ways.
	ambiguous := map[string]bool{
		"y_object_duplicated_key.json": true, "y_object_duplicated_key_and_value.json": true,
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		line := fmt.Appendf(nil, `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"x","arguments":%s}}`, text)
		var p Parser
		f, err := p.Parse(line, C2S)
		base := filepath.Base(file)
		switch {
		case base[0] == 'i':
			if refused := !acceptedByChoice[base]; refused != (err != nil) {
				t.Errorf("%s: refused %v, want %v", base, err, refused)
			}
		case ambiguous[base] || base[0] == 'n':
			if err == nil {
				t.Errorf("%s is accepted", base)
			}
		case err != nil:
			t.Errorf("%s is refused: %v", base, err)
		case !bytes.Equal(f.Arguments, bytes.TrimSpace(text)):
			t.Errorf("%s: arguments are %q", base, f.Arguments)
		}
	}
}

// FuzzParse checks that what Parse accepts, encoding/json reads alike.
func FuzzParse(f *testing.F) {
	for _, tt := range parseTests {
		f.Add([]byte(tt.in), tt.d == S2C)
	}
	f.Fuzz(func(t *testing.T, in []byte, s2c bool) {
		d := C2S
		if s2c {
			d = S2C
		}
		var p Parser
		view, err := p.Parse(in, d)
		if err != nil {
			var e *Error
			if !errors.As(err, &e) || e.ID != nil && !json.Valid(e.ID) {
				t.Fatalf("error %#v", err)
			}
			return
		}
		var want struct {
			ID     json.RawMessage
			Method *string
			Params *struct {
				Name      any
				URI       any
				Arguments json.RawMessage
			}
			Result json.RawMessage
		}
		if err := json.Unmarshal(in, &want); err != nil {
			t.Fatalf("encoding/json refuses what was accepted: %v", err)
		}
		if want.Method != nil && *want.Method != string(view.Method) {
			t.Errorf("method %q, encoding/json reads %q", view.Method, *want.Method)
		}
		if (want.Method == nil) != (view.Method == nil) {
			t.Errorf("method %q, encoding/json reads %v", view.Method, want.Method)
		}
		if !bytes.Equal(want.ID, view.ID) && !(view.ID != nil && string(view.ID) == "null") {
			t.Errorf("id %q, encoding/json reads %q", view.ID, want.ID)
		}
		if want.Params != nil {
			if name, ok := want.Params.Name.(string); ok != (view.Name != nil) || name != string(view.Name) {
				t.Errorf("name %q, encoding/json reads %q", view.Name, want.Params.Name)
			}
			if !bytes.Equal(want.Params.Arguments, view.Arguments) {
				t.Errorf("arguments %q, encoding/json reads %q", view.Arguments, want.Params.Arguments)
			}
		}
	})
}

func TestFilter(t *testing.T) {
	tests := []struct{ in, drop, want string }{
		{`[ 1 , 2 ,3 ]`, "", `[ 1 , 2 ,3 ]`},
		{`[ 1 , 2 ,3 ]`, "1", `[ 2 ,3 ]`},
		{`[ 1 , 2 ,3 ]`, "2", `[ 1 ,3 ]`},
		{`[ 1 , 2 ,3 ]`, "3", `[ 1 , 2 ]`},
		{`[ 1 , 2 ,3 ]`, "123", `[ ]`},
		{`[1,2,3]`, "12", `[3]`},
		{`[]`, "1", `[]`},
	}
	for _, tt := range tests {
		frame := func(array string) string {
			return `{"jsonrpc":"2.0","id":1,"result":{"tools":` + array + `,"z": 1}}`
		}
		line := append(make([]byte, 0, 200), frame(tt.in)...)
		var p Parser
		f, err := p.Parse(line, S2C)
		if err != nil {
			t.Fatal(err)
		}
		got, dropped := Filter(nil, f, Member(f.Result, "tools"), func(e []byte) bool { return !strings.Contains(tt.drop, string(e)) })
		if string(got) != frame(tt.want) {
			t.Errorf("%s without %q: got %s, want %s (%d dropped)", tt.in, tt.drop, got, frame(tt.want), dropped)
		}
	}
}

func TestUnquote(t *testing.T) {
	in := `"a\"\\\/\b\f\n\r\té\ud83d\ude00\ud800x"`
	want := "a\"\\/\b\f\n\r\té😀\ufffdx"
	if got := Unquote(nil, []byte(in)); string(got) != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
