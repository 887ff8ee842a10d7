package codec

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"github.com/bytedance/sonic"
	jsonv2 "github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/tidwall/gjson"
)

// FuzzFast checks that what is read in one pass is what the careful scanner
// accepts, and that both see the same in it, whatever frame came before.
func FuzzFast(f *testing.F) {
	for _, tt := range parseTests {
		f.Add([]byte(tt.in), []byte(tt.in), tt.d == S2C)
	}
	row := `{"jsonrpc":"2.0","id":1,"result":{"rows":[{"a":1,"b":[2]},{"a":1,"b":{}},{"a":1,"a":2},{"b":1}]}}`
	f.Add([]byte(row), []byte(strings.Replace(row, `"a":2`, `"c":2`, 1)), true)
	call := `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"x","arguments":{"a":1},"_meta":{"b":1}}}`
	f.Add([]byte(call), []byte(strings.Replace(call, `"_meta"`, `"name":"y","_meta"`, 1)), false)
	f.Add([]byte(call), []byte(strings.Replace(call, `}}}`, `},"name":"y"}}`, 1)), false)
	f.Fuzz(func(t *testing.T, before, in []byte, s2c bool) {
		d := C2S
		if s2c {
			d = S2C
		}
		alike(t, before, in, d)
	})
}

// FuzzRows is FuzzFast for what stands among rows of a table.
func FuzzRows(f *testing.F) {
	for _, v := range []string{
		`{"a":1,"b":"x"}`, `{"a":1,"b":"x"},{"a":-0.5,"b":"y"}, {"a":10,"b":null}`, `{"a":01,"b":1}`, `{"a":-,"b":1.}`, `{"a":1,"a":2}`, `{"a":1},{}`, `{"a":1,}`,
		`{"a":1e5,"b":"\u00e4ü\\"}`, `{"a":true,"b":false}`, `{"a": 1, "b": 2}, {"b": 1}`, `{"a":{"a":1},{"a":2}}`, `{"a":12345678901234567890,"b":1}`, `{"a":"` + strings.Repeat("z", 40) + `","b":1}`,
	} {
		f.Add(`{"a":1,"b":2,"c":3}`, v)
	}
	f.Fuzz(func(t *testing.T, before, in string) {
		rows := func(s string) []byte {
			return []byte(`{"jsonrpc":"2.0","id":1,"result":{"rows":[` + s + `,"` + strings.Repeat("y", 2*aMember) + `"]}}`)
		}
		alike(t, rows(before), rows(in), S2C)
	})
}

// alike checks in, which comes after another frame.
func alike(t *testing.T, before, in []byte, d Direction) {
	var quick, careful Parser
	quick.Parse(before, d)
	quick.reset(in)
	if !quick.frame(in) {
		return
	}
	quick.check(d)
	careful.reset(in)
	careful.envelope()
	if careful.s.fault.code == 0 {
		careful.check(d)
	}
	if a, b := quick.s.fault, careful.s.fault; a.code != b.code || a.reason != b.reason {
		t.Fatalf("%q: %v in one pass, %v with care", in, a, b)
	}
	if quick.s.fault.code == 0 && !reflect.DeepEqual(quick.f, careful.f) {
		t.Fatalf("%q:\n%+v in one pass,\n%+v with care", in, quick.f, careful.f)
	}
}

// TestFast checks that frames as they are in practice need no second pass.
func TestFast(t *testing.T) {
	for _, in := range []string{
		`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"x","arguments":{"a":[1,-2.5e3,true,null,"\n\u00e9ü東😀"]},"_meta":{"progressToken":1}}}`,
		`{ "result" : {"a": [ ] , "b": { } } , "id" : "x" , "jsonrpc" : "2.0" }`,
		`{"jsonrpc":"2.0","method":"notifications/initialized"}`,
		`{"jsonrpc":"2.0","id":1,"result":{"rows":[{"a":1,"b":"x"},{"a":-2.5,"b":"y"},{}, {"a": null,"c":[{}]}, {"a":1,"b":2,"c":{"a":0}}],"pad":"` + strings.Repeat("y", 2*aMember) + `"}}`,
		`{"jsonrpc":"2.0","id":1,"result":{"content":[{"type":"text","text":"x"},{"type":"text","text":"y"}],"isError":false}}`,
		`{"jsonrpc":"2.0","id":1,"error":{"code":-32000,"message":"x","data":{"deep":[[[[[{}]]]]]}}}`,
	} {
		var p Parser
		if p.reset([]byte(in)); !p.frame([]byte(in)) {
			t.Errorf("%s is read twice", in)
		}
	}
}

// FuzzAlike checks that other parsers read what is accepted as it is viewed.
func FuzzAlike(f *testing.F) {
	for _, tt := range parseTests {
		f.Add([]byte(tt.in))
	}
	f.Add([]byte(`{"jsonrpc":"2.0","id":"\u00e9","method":"tools\/call","params":{"arguments":{"a":1e400,"\ud83d\ude00":"\ud800"},"name":"\u006eame"}}`))
	f.Fuzz(func(t *testing.T, in []byte) {
		var p Parser
		view, err := p.Parse(in, C2S)
		if err != nil {
			return
		}
		id, method, name := text(view.ID), string(view.Method), string(view.Name)
		if view.Name == nil {
			name = "absent"
		}
		check := func(who, gotID, gotMethod, gotName string) {
			if gotID != id || gotMethod != method || gotName != name {
				t.Fatalf("%q:\n%s reads id %q, method %q, name %q\nthe codec %q, %q, %q", in, who, gotID, gotMethod, gotName, id, method, name)
			}
		}

		g := gjson.ParseBytes(in)
		gname := "absent"
		if n := g.Get("params.name"); n.Type == gjson.String {
			gname = n.String()
		}
		if valid := gjson.ValidBytes(in); !valid {
			t.Fatalf("gjson refuses %q", in)
		}
		if !strings.Contains(string(in), `\ud`) && !strings.Contains(string(in), `\uD`) { // it decodes halves of pairs in its own way
			check("gjson", text([]byte(g.Get("id").Raw)), g.Get("method").String(), gname)
		}

		// jsontext refuses half a surrogate pair, which the codec lets through in values.
		var value struct {
			ID     jsontext.Value `json:"id"`
			Method string         `json:"method"`
			Params struct {
				Name      jsontext.Value `json:"name"`
				Arguments jsontext.Value `json:"arguments"`
			} `json:"params"`
		}
		if err := jsonv2.Unmarshal(in, &value, jsontext.AllowInvalidUTF8(true)); err != nil {
			t.Fatalf("jsontext refuses %q: %v", in, err)
		}
		vname := "absent"
		if value.Params.Name.Kind() == '"' {
			vname = text(value.Params.Name)[1:]
		}
		check("jsontext", text(value.ID), value.Method, vname)
		if !bytes.Equal(value.Params.Arguments, view.Arguments) {
			t.Fatalf("%q: jsontext reads arguments %q, the codec %q", in, value.Params.Arguments, view.Arguments)
		}

		var s struct {
			ID     json.RawMessage `json:"id"`
			Method string          `json:"method"`
			Params struct {
				Name any `json:"name"`
			} `json:"params"`
		}
		api := sonic.Config{UseNumber: true}.Froze()
		if err := api.Unmarshal(in, &s); err != nil {
			t.Fatalf("sonic refuses %q: %v", in, err)
		}
		sname, ok := s.Params.Name.(string)
		if !ok {
			sname = "absent"
		}
		check("sonic", text(s.ID), s.Method, sname)
	})
}

// text is an id as everybody would understand it.
func text(raw []byte) string {
	if len(raw) > 0 && raw[0] == '"' {
		return string(Unquote([]byte(`"`), raw))
	}
	return string(raw)
}
