package codec

import "testing"

func TestFieldsHas(t *testing.T) {
	f, err := NewFields([]string{"api_key", "$.result.content[*].text", "$..id", "$.rows[1]"})
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		place []any
		want  bool
	}{
		{[]any{"result", "content", 3, "text"}, true},
		{[]any{"result", "content", 3}, false},
		{[]any{"content", 3, "text"}, false},
		{[]any{"a", "apiKey"}, true},
		{[]any{"apiKey", "a"}, false},
		{[]any{"id"}, true},
		{[]any{"a", 1, "b", "id"}, true},
		{[]any{"rows", 1}, true},
		{[]any{"rows", 2}, false},
		{nil, false},
	} {
		if got := f.Has(test.place); got != test.want {
			t.Errorf("%v: %v, want %v", test.place, got, test.want)
		}
	}
	if (*Fields)(nil).Has([]any{"a"}) {
		t.Error("nil has a value")
	}
}
