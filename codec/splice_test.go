package codec

import (
	"bytes"
	"encoding/json"
	"testing"
)

func TestOneLine(t *testing.T) {
	for _, c := range []struct{ name, in, want string }{
		{"already one", `{"a":1}`, `{"a":1}`},
		{"white space around", "\r\n {\"a\":1} \n", `{"a":1}`},
		{"pretty-printed", "{\n  \"a\": \"b\\\"\\\\\",\n  \"c\": [\n1]\n}", "{   \"a\": \"b\\\"\\\\\",   \"c\": [ 1] }"},
		{"newline in a string", "{\"a\":\"b\nc\"}", ""},
		{"newline before and in a string", "{\n\"a\":\"b\nc\"}", ""},
		{"a string that does not end", "{\n\"a", "{ \"a"},
		{"nothing", "\n", ""},
	} {
		got, err := OneLine([]byte(c.in))
		if string(got) != c.want || (err != nil) != (c.want == "" && c.name != "nothing") {
			t.Errorf("%s: got %q, %v, want %q", c.name, got, err, c.want)
		}
	}
}

// FuzzOneLine checks that one line is the same JSON, and that what is no JSON
// does not become some.
func FuzzOneLine(f *testing.F) {
	f.Add([]byte("{\n\"a\": \"b\\\\\"\n}"))
	f.Add([]byte("\"\n\""))
	f.Fuzz(func(t *testing.T, in []byte) {
		var want, got bytes.Buffer
		valid := json.Compact(&want, in) == nil
		line, err := OneLine(bytes.Clone(in))
		if err != nil {
			if valid {
				t.Fatalf("%q is refused", in)
			}
			return
		}
		if bytes.IndexByte(line, '\n') >= 0 && valid {
			t.Fatalf("%q is two lines", line)
		}
		if ok := json.Compact(&got, line) == nil; ok != valid || ok && !bytes.Equal(got.Bytes(), want.Bytes()) {
			t.Fatalf("%q became %q", in, line)
		}
	})
}

func TestAlias(t *testing.T) {
	a := &Alias{ID: []byte("1"), As: []byte(`"b7"`), Token: []byte(`"t"`)}
	for _, c := range []struct{ name, client, server string }{
		{"request", `{"jsonrpc":"2.0","id":1,"method":"m","params":{"_meta":{"progressToken":"t"},"x":1}}`, `{"jsonrpc":"2.0","id":"b7","method":"m","params":{"_meta":{"progressToken":"b7"},"x":1}}`},
		{"without a token", `{"method":"m", "id": 1 }`, `{"method":"m", "id": "b7" }`},
	} {
		got := a.Conceal(nil, []byte(c.client))
		if string(got) != c.server {
			t.Errorf("%s: the server sees %s, want %s", c.name, got, c.server)
		}
		if back := a.Reveal(nil, got); string(back) != c.client {
			t.Errorf("%s: revealed it is %s, want %s", c.name, back, c.client)
		}
	}
	for server, client := range map[string]string{
		`{"id":"b7","result":{"id":"b7"}}`:                                                               `{"id":1,"result":{"id":"b7"}}`,
		`{"method":"notifications/progress","params":{"progressToken":"b7"}}`:                            `{"method":"notifications/progress","params":{"progressToken":"t"}}`,
		`{"method":"n","params":{"_meta":{"io.modelcontextprotocol/subscriptionId":"b7"},"other":"b7"}}`: `{"method":"n","params":{"_meta":{"io.modelcontextprotocol/subscriptionId":1},"other":"b7"}}`,
		`{"id":2,"result":{}}`: `{"id":2,"result":{}}`,
	} {
		if got := a.Reveal(nil, []byte(server)); string(got) != client {
			t.Errorf("%s: the client sees %s, want %s", server, got, client)
		}
	}
}
