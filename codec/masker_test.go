package codec_test

import (
	"bufio"
	"bytes"
	"cmp"
	"compress/gzip"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"example.com/broker/codec"
	"example.com/broker/codec/detect"
)

func newMasker(names ...string) *codec.Masker { return newFieldMasker(nil, names...) }

// newFieldMasker returns a Masker that also masks these fields.
func newFieldMasker(list []string, names ...string) *codec.Masker {
	fields, err := codec.NewFields(list)
	if err != nil {
		panic(err)
	}
	return codec.NewMasker(newFinder(names...), fields)
}

func newFinder(names ...string) *detect.Finder {
	var ds []detect.Detector
	for _, n := range names {
		d, ok := detect.ByName(n)
		if !ok {
			panic(n)
		}
		ds = append(ds, d)
	}
	return detect.New(ds...)
}

// result is a frame with that result. The line has room behind it, as a Reader's has.
func result(raw string) []byte {
	return append(make([]byte, 0, len(raw)+100), `{"jsonrpc":"2.0","result":`+raw+`,"id":4111111111111111}`...)
}

func mask(t testing.TB, m *codec.Masker, line []byte) (string, []codec.Finding) {
	var p codec.Parser
	f, err := p.Parse(line, codec.S2C)
	if err != nil {
		t.Fatalf("%v in %q", err, line)
	}
	out, findings := m.Mask(nil, f)
	return string(out), findings
}

func TestMask(t *testing.T) {
	tests := []struct{ name, in, want string }{
		{"nothing", `{"a": [1, true,null ,"x\u0041"]}`, ""},
		{"string", `{"a":"to ada@example.com now"}`, `{"a":"to [masked:email] now"}`},
		{"the rest of the string is kept", `["\u0041\/ada@example.com \u00e9"]`, `["\u0041\/[masked:email] \u00e9"]`},
		{"escaped value", `["x \u0061da\u0040example.c\u006fm y"]`, `["x [masked:email] y"]`},
		{"behind an astral character", `["\ud83d\ude00 ada@example.com \ud800"]`, `["\ud83d\ude00 [masked:email] \ud800"]`},
		{"several", `["a@b.de 4111111111111111 c@d.de"]`, `["[masked:email] [masked:credit_card] [masked:email]"]`},
		{"number", `{"card":4111111111111111,"n":12}`, `{"card":0,"n":12}`},
		{"JSON in a string", `{"text":"{\"mail\": \"ada@example.com\", \"n\":1}"}`, `{"text":"{\"mail\": \"[masked:email]\", \"n\":1}"}`},
		{"escape in JSON in a string", `{"text":"{\"mail\":\"ada\\u0040example.com\"}"}`, `{"text":"{\"mail\":\"[masked:email]\"}"}`},
		{"number in JSON in a string", `{"text":"{\"card\":4111111111111111}"}`, `{"text":"{\"card\":0}"}`},
		{"two layers", `{"text":"[\"{\\\"m\\\":\\\"ada@example.com\\\"}\"]"}`, `{"text":"[\"{\\\"m\\\":\\\"[masked:email]\\\"}\"]"}`},
		{"almost JSON", `{"text":"{\"mail\": ada@example.com"}`, `{"text":"{\"mail\": [masked:email]"}`},
		{"JSON lines in a string", `{"text":"{\"a\":\"\\u0061da@example.com\"}\n{\"b\":4111111111111111}\n"}`, `{"text":"{\"a\":\"[masked:email]\"}\n{\"b\":0}\n"}`},
		{"a value under its name", `{"db_password":"hunter2-Xyz9","passwordHint":"your mother","x":"hunter2-Xyz9"}`, `{"db_password":"[masked:secrets]","passwordHint":"your mother","x":"hunter2-Xyz9"}`},
		{"a value under its name, in a string", `{"text":"{\"pass\\u0077ord\": \"hunter2-\\u0058yz9\"}"}`, `{"text":"{\"pass\\u0077ord\": \"[masked:secrets]\"}"}`},
		{"a description under such a name", `{"password":{"type":"string","description":"at least 8 characters"},"secret":"at least 8 characters"}`, ""},
		{"number with an exponent", `[4.111111111111111e15,4111111111111111.0,41111111111111110e-1,4.111111111111111e14,1e400,-4111111111111111,4111111111111111.5]`, `[0,0,0,4.111111111111111e14,1e400,-4111111111111111,4111111111111111.5]`},
		{"progress token in _meta", `{"_meta":{"progressToken":4111111111111111,"x":4111111111111111}}`, `{"_meta":{"progressToken":4111111111111111,"x":0}}`},
		{"id of a task", `{"task":{"taskId":"ada@example.com","x":{"taskId":"ada@example.com"}}}`, `{"task":{"taskId":"ada@example.com","x":{"taskId":"[masked:email]"}}}`},
		{"data in front of its type", `{"content":[{"data":"ada@example.com","mimeType":"image/png"},{"data":"a@b.de","x":"c@d.de"}]}`, `{"content":[{"data":"ada@example.com","mimeType":"image/png"},{"data":"[masked:email]","x":"[masked:email]"}]}`},
		{"data twice, in a string", `{"text":"{\"data\":\"a@b.de\",\"data\":\"c@d.de\"}"}`, `{"text":"{\"data\":\"[masked:email]\",\"data\":\"[masked:email]\"}"}`},
		{"what a mark sets free", `"password=` + strings.Repeat("a1B!c2D?e3F-g4H_", 16) + `4111111111111111 x"`, `"password=[masked:secrets][masked:credit_card] x"`},
		{"a local part of more bytes than are looked at", `"` + strings.Repeat("語", 30) + `@example.com"`, `"` + strings.Repeat("語", 9) + `[masked:email]"`},
		{"cursor", `{"nextCursor":"ada@example.com","a":{"nextCursor":"ada@example.com"}}`, `{"nextCursor":"ada@example.com","a":{"nextCursor":"[masked:email]"}}`},
		{"image", `{"content":[{"type":"image","data":"ada@example.com"},{"data":"ada@example.com"}]}`, `{"content":[{"type":"image","data":"ada@example.com"},{"data":"[masked:email]"}]}`},
		{"names", `{"ada@example.com":1,"a":{"b@c.de":2}}`, `{"[masked:email]":1,"a":{"[masked:email]":2}}`},
		{"names that would be the same", `{"a@b.de":1,"[masked:email 2]":{"x@y.de":0,"z@y.de":0},"c@d.de":"e@f.de","g\u0040h.de":4}`,
			`{"[masked:email]":1,"[masked:email 2]":{"[masked:email]":0,"[masked:email 2]":0},"[masked:email 3]":"[masked:email]","[masked:email 4]":4}`},
		{"names in a string", `{"t":"{\"a@b.de\":1,\"c@d.de\":2}"}`, `{"t":"{\"[masked:email]\":1,\"[masked:email 2]\":2}"}`},
		{"blob of text", `{"contents":[{"uri":"x","blob":"` + base64Of("to ada@example.com") + `","mimeType":"text/plain; charset=utf-8"}]}`,
			`{"contents":[{"uri":"x","blob":"` + base64Of("to [masked:email]") + `","mimeType":"text/plain; charset=utf-8"}]}`},
		{"blob of JSON, slashes escaped", `{"mimeType":"application\/json","blob":"` + strings.ReplaceAll(base64Of(`{"n":4111111111111111,"??":"??>"}`), "/", `\/`) + `"}`,
			`{"mimeType":"application\/json","blob":"` + base64Of(`{"n":0,"??":"??>"}`) + `"}`},
		{"blob of an image", `{"mimeType":"image/png","blob":"` + base64Of("to ada@example.com") + `"}`, ""},
		{"blob that is no base64", `{"mimeType":"text/plain","blob":"to ada@example.com"}`, `{"mimeType":"text/plain","blob":"to [masked:email]"}`},
		{"two findings far apart", `"` + strings.Repeat("x ", 9000) + `ada@example.com ` + strings.Repeat("y ", 9000) + "password=" + strings.Repeat("a1B!c2D?e3F-g4H_", 16) + `4111111111111111 "`,
			`"` + strings.Repeat("x ", 9000) + `[masked:email] ` + strings.Repeat("y ", 9000) + `password=[masked:secrets][masked:credit_card] "`},
		{"result is a string", `"ada@example.com"`, `"[masked:email]"`},
		{"result is empty", `{}`, ""},
	}
	m := newMasker("secrets", "email", "credit_card")
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			want := tt.want
			if want == "" {
				want = tt.in
			}
			got, findings := mask(t, m, result(tt.in))
			if got != string(result(want)) {
				t.Errorf("got  %s\nwant %s", got, result(want))
			}
			if (len(findings) > 0) != (tt.want != "") {
				t.Errorf("findings %v", findings)
			}
		})
	}
}

// TestMaskBlobAmongRows checks that what base64 stands for is looked at where
// members are short and nothing hints at anything.
func TestMaskBlobAmongRows(t *testing.T) {
	rows := strings.TrimSuffix(strings.Repeat(`{"p":"a","q":"b"},`, 60), ",")
	for _, other := range []string{"", `,"mail":"bob@example.com"`} { // and where something does
		in := func(blob string) string {
			return `{"rows":[` + rows + `],"contents":[{"uri":"x","mimeType":"text/plain","blob":"` + blob + `"}]` + other + `}`
		}
		want := strings.ReplaceAll(in(base64Of("to [masked:email] now")), "bob@example.com", "[masked:email]")
		for layer, wrap := range map[string]func(string) string{
			"frame": func(s string) string { return s }, "string": func(s string) string { return string(must(json.Marshal(s))) },
		} {
			if got, _ := mask(t, newMasker("email"), result(wrap(in(base64Of("to ada@example.com now"))))); got != string(result(wrap(want))) {
				t.Errorf("%s: got %s", layer, got)
			}
		}
	}
}

// TestMaskLeastBlob checks the same of JSON in a string that is no longer than it has to be.
func TestMaskLeastBlob(t *testing.T) {
	rows := strings.Repeat(`{"p":"a","q":"b"},`, 60)
	for _, mime := range []string{"+xml", "text/", "text/x", "text/csv"} {
		in := func(blob string) []byte {
			return result(`{"rows":[` + rows + `"{\"blob\":\"` + blob + `\",\"mimeType\":\"` + mime + `\"}"]}`)
		}
		if got, _ := mask(t, newMasker("email"), in(base64Of("a@b.de"))); got != string(in(base64Of("[masked:email]"))) {
			t.Errorf("%s: got %s", mime, got)
		}
	}
}

// TestMaskManyMembers checks that an object with more members than a template has
// names is read to its end, whatever the names at other depths are.
func TestMaskManyMembers(t *testing.T) {
	members := func(name string, n int) string {
		var all []string
		for i := range n {
			all = append(all, fmt.Sprintf(`"%s%d":"v","m%d":%d`, name, i, i, i))
		}
		return strings.Join(all, ",")
	}
	m := newMasker("email")
	for n := range 40 {
		long := members(strings.Repeat("n", n%20), 13)
		in := func(mail string) string {
			v := `{` + long + `,"a":{` + long + `,"b":{` + long + `,"c":{` + long + `}}}}`
			return `[[[` + v + `]],` + v + `,[{` + members("short", 12+n) + `,"mail":"` + mail + `"}]]`
		}
		if got, _ := mask(t, m, result(in("ada@example.com"))); got != string(result(in("[masked:email]"))) {
			t.Fatalf("%d: got %s", n, got)
		}
	}
}

func base64Of(text string) string { return base64.StdEncoding.EncodeToString([]byte(text)) }

func TestFields(t *testing.T) {
	m := newFieldMasker([]string{"api_key", "$.rows[*].ssn", "$.rows[1].name", "$['a.b']..x", "$.all.*.y"}, "email")
	tests := []struct{ name, in, want string }{
		{"name in any spelling", `{"apiKey":"x","API-KEY":{"a":["b",1,true,null,{"c":"d"}]},"api":"y"}`, `{"apiKey":"[masked:field]","API-KEY":{"a":["[masked:field]",0,false,null,{"c":"[masked:field]"}]},"api":"y"}`},
		{"name in a string", `{"t":"{\"api_key\":\"x\",\"n\":1}"}`, `{"t":"{\"api_key\":\"[masked:field]\",\"n\":1}"}`},
		{"path", `{"rows":[{"ssn":1,"name":"a"},{"ssn":"x","name":"b"}],"ssn":2}`, `{"rows":[{"ssn":0,"name":"a"},{"ssn":"[masked:field]","name":"[masked:field]"}],"ssn":2}`},
		{"at any depth", `{"a.b":{"x":1,"c":[{"x":2,"y":3}]},"x":4}`, `{"a.b":{"x":0,"c":[{"x":0,"y":3}]},"x":4}`},
		{"any member", `{"all":{"p":{"y":1},"q":{"y":[2],"z":3}}}`, `{"all":{"p":{"y":0},"q":{"y":[0],"z":3}}}`},
		{"what is masked already", `{"apiKey":["[masked:field]",0,false,""]}`, ""},
		{"an image too", `{"api_key":{"type":"image","data":"x"}}`, `{"api_key":{"type":"[masked:field]","data":"[masked:field]"}}`},
		{"no path in an error", `{}`, ""},
	}
	for _, tt := range tests {
		if tt.want == "" {
			tt.want = tt.in
		}
		if got, _ := mask(t, m, result(tt.in)); got != string(result(tt.want)) {
			t.Errorf("%s:\n got %s\nwant %s", tt.name, got, result(tt.want))
		}
	}
	for _, bad := range []string{"", "-", "$", "$x", "$.", "$.a[", "$.a[-1]", "$.a[b]", "$..", "$.a['b]"} {
		if _, err := codec.NewFields([]string{bad}); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}

func TestMaskErrorsAndNotifications(t *testing.T) {
	m := newMasker("email")
	for in, want := range map[string]string{
		`{"jsonrpc":"2.0","id":1,"error":{"code":-32000,"message":"no ada@example.com","data":{"x":["ada@example.com"]}}}`: `{"jsonrpc":"2.0","id":1,"error":{"code":-32000,"message":"no [masked:email]","data":{"x":["[masked:email]"]}}}`,
		`{"jsonrpc":"2.0","method":"notifications/message","params":{"data":"ada@example.com","progressToken":"a@b.de"}}`:  `{"jsonrpc":"2.0","method":"notifications/message","params":{"data":"[masked:email]","progressToken":"a@b.de"}}`,
		`{"jsonrpc":"2.0","id":"ada@example.com","method":"sampling/createMessage","params":{"m":"ada@example.com"}}`:      `{"jsonrpc":"2.0","id":"ada@example.com","method":"sampling/createMessage","params":{"m":"[masked:email]"}}`,
	} {
		if got, _ := mask(t, m, []byte(in)); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
}

func TestMaskText(t *testing.T) {
	m := newMasker("email")
	for in, want := range map[string]string{
		`{"a":"ada@example.com"`:          `{"a":"[masked:email]"`,
		`{"a":["ada@example.com"],"n":1}`: `{"a":["[masked:email]"],"n":1}`,
		"\xff ada@example.com":            "\xff [masked:email]",
		"nothing":                         "nothing",
		"":                                "",
	} {
		if got := string(m.MaskText(nil, []byte(in))); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// FuzzMask checks the laws of masking.
func FuzzMask(f *testing.F) {
	f.Add(`{"a":"x \u0061da@example.com","b":[4111111111111111,"{\"c\":\"d@e.fr\"}"]}`)
	f.Add(`"password=hunter2-Xyz9 \ud83d\ude00\\"`)
	f.Add(`["[\"[\\\"ada@example.com\\\"]\"]"]`)
	f.Add(`{"data":"a@b.de","type":"image","mimeType":"image/png","nextCursor":"a@b.de"}`)
	f.Add(`{"password":"hunter2-Xyz9","t":"{\"a\":\"a@b.de\"}\n[4.111111111111111e15]"}`)
	f.Add(`"a@b.de4111111111111111 postgres://a:s3cr3tPw@db -----BEGIN PRIVATE KEY-----"`)
	f.Fuzz(func(t *testing.T, raw string) { lawful(t, raw) })
}

// FuzzMaskMade checks them with JSON that has much to be found in it.
func FuzzMaskMade(f *testing.F) {
	for i := range 24 {
		var seed []byte
		for j := range 60 {
			seed = append(seed, byte((i+5)*(j+3)*(j+13)>>1))
		}
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, program []byte) { lawful(t, made(program)) })
}

// lawful masks a result and checks what must hold of it.
func lawful(t *testing.T, raw string) {
	var p codec.Parser
	line := result(raw)
	frame, err := p.Parse(line, codec.S2C)
	if err != nil || len(raw) > 0 && strings.Contains(raw, `,"id"`) {
		return
	}
	m := newMasker(detect.Names()...)
	out, findings := m.Mask(nil, frame)
	masked := bytes.Clone(out)
	n := len(findings)
	if n == 0 && !bytes.Equal(masked, line) {
		t.Fatalf("nothing found, but\n %s\nbecame\n %s", line, masked)
	}
	again, err := p.Parse(append(make([]byte, 0, len(masked)+1), masked...), codec.S2C)
	if err != nil {
		t.Fatalf("%s\nbecame\n%s\n%v", line, masked, err)
	}
	if second, _ := m.Mask(nil, again); !bytes.Equal(second, masked) {
		t.Fatalf("masking twice:\n%s\n%s\n%s", line, masked, second)
	}
	x, y := decode(t, line), decode(t, masked)
	if !sameShape(x, y) {
		t.Fatalf("another shape:\n%s\n%s", line, masked)
	}
	if left := leftIn(y["result"], 0); left != "" {
		t.Fatalf("%s\nbecame\n%s\nwith %s in it", line, masked, left)
	}
}

// blind is a Finder that gives no hints.
type blind struct{ *detect.Finder }

func (blind) Near([]byte, func(int)) bool { return false }

// FuzzHints checks that nothing is lost where strings are short and only those
// are looked at near which something may be. What is no JSON is a program that makes some.
func FuzzHints(f *testing.F) {
	f.Add(`{"a":"x \u0061da@example.com","b":[4111111111111111,"{\"c\":\"d@e.fr\"}"]}`)
	f.Add(`{"password":"hunter2-Xyz9","t":"\nAKIAQ3EGRIOL7PZ5TXWM\t","ssn":123456789,"n":4.111111111111111e15}`)
	f.Add(`{"api_key\n":"a8Xk2Pq9Lm4Zs7Vt1Wy6","key":"a8Xk2Pq9Lm4Zs7Vt1Wy6","x":"twitter_key = \"a8Xk2Pq9Lm4Zs7Vt1Wy6Bn3Cd\""}`)
	f.Add(`["+44 20 7946 0958","DE89 3704 0044 0532 0130 00","fe80::1","203.0.113.7",{"ada@example.com":1}]`)
	f.Add(`[{"id":1,"name":"x","at":null},{"id":2,"name":"ada@example.com","at":null}, {"id":4111111111111111,"name":"\"","ssn":"123-45-6789"}]`)
	f.Add(`[{"a":1,"type":"image","data":"YWRhQGV4YW1wbGUuY29t"},{"a":2,"type":"text","data":"a@b.de"},{"a":3,"mimeType":"text/plain","blob":"YWRhQGV4YW1wbGUuY29t"}]`)
	f.Add(`["a\nDE89370400440532013000","\t10.0.0.1","1.10.0.0.1","\"fe80::1:2","b\n+44 20 7946 0958",{"ssn":1.23456789e8,"n":41111111111111110e-1}]`)
	f.Add(`[{"ke\u0079":"a8Xk2Pq9Lm4Zs7Vt1Wy6","passwor\u0064":"image/png","\u0073sn":123456789},{"\u0070assword":12345678,"s\/n":"123456789"}]`)
	f.Add(`[{"note":"{\"blob\":\"YUBiLmRl\",\"mimeType\":\"+xml\"}"},{"note":"x\"y"}]`)
	padding := strings.TrimSuffix(strings.Repeat(`"pad",1,`, 60), ",")
	names := detect.Names()
	seeing, unseeing := newMasker(names...), codec.NewMasker(blind{newFinder(names...)}, nil)
	f.Fuzz(func(t *testing.T, raw string) {
		if !json.Valid([]byte(raw)) {
			raw = made([]byte(raw))
		}
		var p codec.Parser
		line := result(`{"rows":[` + padding + `],"v":` + raw + `,"t":` + string(must(json.Marshal(`[`+padding+`,`+raw+`]`))) + `}`)
		frame, err := p.Parse(line, codec.S2C)
		if err != nil {
			return
		}
		got, _ := seeing.Mask(nil, frame)
		want, _ := unseeing.Mask(nil, frame)
		if !bytes.Equal(got, want) {
			t.Fatalf("%s\nmasked with hints\n%s\nwithout\n%s", line, got, want)
		}
	})
}

// decode reads a frame. A number may be beyond a double.
func decode(t *testing.T, line []byte) (v map[string]any) {
	d := json.NewDecoder(bytes.NewReader(line))
	d.UseNumber()
	if err := d.Decode(&v); err != nil {
		t.Fatalf("encoding/json: %v in %s", err, line)
	}
	return v
}

// leftIn returns what a detector still finds in a string of v, read with
// encoding/json. Members that are never masked are not looked at.
func leftIn(v any, layer int) (left string) {
	switch v := v.(type) {
	case map[string]any:
		for name, w := range v {
			switch name {
			case "data", "blob", "cursor", "nextCursor", "requestState", "progressToken", "requestId", "taskId", "elicitationId":
			default:
				left = cmp.Or(left, leftIn(w, layer))
			}
		}
	case []any:
		for _, w := range v {
			left = cmp.Or(left, leftIn(w, layer))
		}
	case string:
		var inner []any
		d := json.NewDecoder(strings.NewReader(v))
		d.UseNumber()
		for layer < 16 {
			var w any
			err := d.Decode(&w)
			if err == io.EOF && len(inner) > 0 {
				return leftIn(inner, layer+1)
			}
			if err != nil || !nests(w) || len(inner) > 0 && (isString(w) || isString(inner[0])) {
				break
			}
			inner = append(inner, w)
		}
		finder := newFinder(detect.Names()...)
		finder.Find([]byte(v), func(d, start, end int) {
			inside := func(mark []int) bool { return mark[0] <= start && end <= mark[1] }
			if !slices.ContainsFunc(marks.FindAllStringIndex(v, -1), inside) {
				left = fmt.Sprintf("%s %q", finder.Names()[d], v[start:end])
			}
		})
	}
	return left
}

var marks = regexp.MustCompile(`\[masked:[a-z_.-]+( \d+)?\]`)

// nests reports what a string can hold to be looked through as JSON.
func nests(v any) bool {
	switch v.(type) {
	case map[string]any, []any, string:
		return true
	}
	return false
}

func isString(v any) bool { _, ok := v.(string); return ok }

// A greedy detector finds what no detector should, and cuts characters apart.
type greedy struct{}

func (greedy) Names() []string { return []string{"greedy"} }
func (greedy) Find(text []byte, found func(detector, start, end int)) {
	for i, c := range text {
		if c >= 'x' {
			found(0, i, i+1)
		}
	}
	found(0, len(text), len(text)+1)
}
func (greedy) Least() (text, number int)                                     { return 1, 1 }
func (greedy) Near([]byte, func(int)) bool                                   { return false }
func (greedy) Under(name, text []byte, found func(detector, start, end int)) {}

// Whatever a detector finds, a frame stays a frame, and comes to rest.
func TestMaskGreedy(t *testing.T) {
	m := codec.NewMasker(greedy{}, nil)
	for in, want := range map[string]string{
		`"axb"`:                    `"a[masked:greedy]b"`,
		`"aéb\u00e9b\ud83d\ude00"`: `"a[masked:greedy]b[masked:greedy]b[masked:greedy]"`,
		`"[masked:greedy]x"`:       `"[masked:greedy][masked:greedy]"`,
	} {
		got, _ := mask(t, m, result(in))
		if got != string(result(want)) {
			t.Errorf("got  %s\nwant %s", got, result(want))
		}
		if again, n := mask(t, m, []byte(got)); again != got || len(n) > 0 {
			t.Errorf("masking %s again: %s", got, again)
		}
	}
}

func sameShape(x, y any) bool {
	switch x := x.(type) {
	case map[string]any:
		y, ok := y.(map[string]any)
		if !ok || len(x) != len(y) {
			return false
		}
		for k, v := range x {
			w, ok := y[k]
			if !ok && !slices.ContainsFunc(slices.Collect(maps.Keys(y)), func(n string) bool { return strings.Contains(n, "[masked:") }) {
				return false
			}
			if ok && !sameShape(v, w) {
				return false
			}
		}
		return true
	case []any:
		y, ok := y.([]any)
		if !ok || len(x) != len(y) {
			return false
		}
		for i := range x {
			if !sameShape(x[i], y[i]) {
				return false
			}
		}
		return true
	}
	return reflect.TypeOf(x) == reflect.TypeOf(y)
}

func TestMaskAllocates(t *testing.T) {
	line := result(`{"content":[{"type":"text","text":"` + strings.Repeat(`a \"b\" c\n`, 100) + `"}],"n":[1,2]}`)
	var p codec.Parser
	f, err := p.Parse(line, codec.S2C)
	if err != nil {
		t.Fatal(err)
	}
	m := newMasker(detect.Names()...)
	out, _ := m.Mask(nil, f)
	if n := testing.AllocsPerRun(100, func() { out, _ = m.Mask(out[:0], f) }); n != 0 {
		t.Errorf("%v allocations for a clean frame, want 0", n)
	}
}

// TestCorpus sends real traffic through: every frame is accepted and, with no
// detector on, comes out as it went in.
func TestCorpus(t *testing.T) {
	frames := 0
	var p codec.Parser
	none, all := newMasker(), newMasker(detect.Names()...)
	found := map[string]int{}
	traffic(t, func(file string, d codec.Direction, line []byte) {
		frame, err := p.Parse(line, d)
		if err != nil {
			t.Errorf("%s: %v", file, err)
			return
		}
		frames++
		if out, _ := none.Mask(nil, frame); !bytes.Equal(out, line) {
			t.Errorf("%s: a frame of %d bytes is changed", file, len(line))
		}
		out, findings := all.Mask(nil, frame)
		if len(findings) > 0 && !json.Valid(out) {
			t.Errorf("%s: a masked frame is no JSON", file)
		}
		for _, f := range findings {
			found[f.Detector]++
		}
	})
	t.Log(frames, "frames; found", found)
}

// traffic calls frame with each frame of the captured traffic, which is valid as
// long as the call.
func traffic(t testing.TB, frame func(file string, d codec.Direction, line []byte)) {
	files, _ := filepath.Glob(filepath.Join(shared(t, "mcp-corpus"), "*", "*.ndjson*"))
	if len(files) == 0 {
		t.Fatal("the corpus is empty")
	}
	for _, file := range files {
		f, err := os.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		var in io.Reader = bufio.NewReader(f)
		if strings.HasSuffix(file, ".gz") {
			if in, err = gzip.NewReader(in); err != nil {
				t.Fatal(err)
			}
		}
		d := codec.C2S
		if strings.Contains(filepath.Base(file), "s2c") {
			d = codec.S2C
		}
		r := codec.NewReader(in, codec.Limits{})
		for {
			line, err := r.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			frame(file, d, line)
		}
		f.Close()
	}
}

func shared(t testing.TB, name string) string {
	dir, err := os.Getwd()
	for err == nil && dir != "/" {
		at := filepath.Join(dir, "shared", "testdata", name)
		if _, serr := os.Stat(at); serr == nil {
			return at
		}
		dir = filepath.Dir(dir)
	}
	t.Skipf("shared/testdata/%s is not beside the project", name)
	return ""
}
