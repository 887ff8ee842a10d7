package codec

import "testing"

func TestAppendPrintable(t *testing.T) {
	in := "é \x1b[31m\u009b\x00\n\t\u202e\U000e0001\xff\ufffd\\"
	want := `é \u001b[31m\u009b\u0000\n\t\u202e\U000e0001\xff` + "\ufffd\\"
	if got := string(AppendPrintable(nil, []byte(in))); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
