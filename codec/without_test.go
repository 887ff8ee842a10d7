package codec

import (
	"encoding/json"
	"testing"
)

func TestWithout(t *testing.T) {
	tests := []struct{ name, params, want string }{
		{"first", `{"a":1, "b":2}`, `{ "b":2}`},
		{"last", `{"b":2 , "a":1}`, `{"b":2}`},
		{"middle", `{"b":2,"a":{"a":3},"c":[4]}`, `{"b":2,"c":[4]}`},
		{"two", `{"a":1,"z":"}","b":2}`, `{"b":2}`},
		{"all", `{ "a":1,"z":2 }`, `{ }`},
		{"none", `{ "b" : 1 , "c":"\"a\":1" }`, `{ "b" : 1 , "c":"\"a\":1" }`},
		{"escaped", `{"\u0061":1,"b":2}`, `{"b":2}`},
		{"empty", `{ }`, `{ }`},
	}
	for _, tt := range tests {
		line := func(params string) string {
			return `{"jsonrpc":"2.0", "id":1,"method":"x","params":` + params + `,"x":[1, 2]}`
		}
		var p Parser
		f, err := p.Parse([]byte(line(tt.params)), C2S)
		if err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		got := string(Without(nil, f, f.Params, "a", "z"))
		if got != line(tt.want) || !json.Valid([]byte(got)) {
			t.Errorf("%s: %s, want %s", tt.name, got, line(tt.want))
		}
	}
}

func TestAppend(t *testing.T) {
	tests := []struct{ name, got, want string }{
		{"result", string(AppendResult(nil, []byte(`"a"`), map[string]int{"x": 1})), `{"jsonrpc":"2.0","id":"a","result":{"x":1}}`},
		{"request", string(AppendRequest(nil, []byte("1"), "a/b", struct{}{})), `{"jsonrpc":"2.0","id":1,"method":"a/b","params":{}}`},
		{"notification", string(AppendRequest(nil, nil, "n", nil)), `{"jsonrpc":"2.0","method":"n"}`},
		{"what cannot be marshalled", string(AppendResult(nil, []byte("1"), func() {})), `{"jsonrpc":"2.0","id":1,"result":null}`},
	}
	for _, tt := range tests {
		if tt.got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, tt.got, tt.want)
		}
	}
}
