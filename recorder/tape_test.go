package recorder

import (
	"bytes"
	"io"
	"slices"
	"strings"
	"testing"

	"example.com/broker/codec"
)

// A tape has what was found, what was cut and what clients called their requests
// with the frames that it is about.
func TestTape(t *testing.T) {
	l := open(t, Options{Dir: t.TempDir()})
	r := start(t, l)
	long := strings.Repeat("x", 3<<20)
	err := r.Append(
		Frame{Verdict: Aliased, Bytes: []byte(`{"id":"mine","as":"b-1"}`)},
		Frame{Bytes: []byte(`{"id":"b-1","method":"m"}`)},
		Frame{Direction: codec.S2C, Verdict: Found, Bytes: []byte(`[{"detector":"email","offset":3}]`)},
		Frame{Direction: codec.S2C, Verdict: Masked, Bytes: []byte(`{"a":"`), More: true},
		Frame{Bytes: []byte("between")},
		Frame{Direction: codec.S2C, Verdict: Blocked, Bytes: []byte("blocked")},
		Frame{Direction: codec.S2C, Bytes: []byte(long), More: true},
		Frame{Direction: codec.S2C, Bytes: []byte(`"}`)},
		Frame{Direction: codec.S2C, Bytes: []byte(`{"b":`), More: true},
		Frame{Direction: codec.S2C, Verdict: Cut},
		Frame{Direction: codec.S2C, Verdict: Answered, Bytes: []byte(`last`)},
	)
	if err != nil {
		t.Fatal(err)
	}
	tape, err := ReadTape(t.Context(), l, r.ID())
	if err != nil {
		t.Fatal(err)
	}
	defer tape.Close()
	var got []string
	for i := range tape.Len() {
		b, err := io.ReadAll(tape.Reader(i))
		f := tape.Frame(i)
		if err != nil || int64(len(b)) != f.Length {
			t.Fatalf("%d of %d bytes, %v", len(b), f.Length, err)
		}
		s := f.Direction.String() + " " + f.Verdict.String() + " " + string(bytes.ReplaceAll(b, []byte(long), []byte("long")))
		for _, found := range f.Findings {
			s += " " + found.Detector
		}
		if f.Part {
			s += " …"
		}
		got = append(got, s)
	}
	want := []string{`c2s delivered {"id":"mine","method":"m"}`, `s2c masked {"a":"long"} email`, "c2s delivered between", "s2c blocked blocked", `s2c cut {"b": …`, "s2c answered last"}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	if head, err := tape.Head(1, 8); err != nil || string(head) != `{"a":"xx` {
		t.Errorf("the head is %q, %v", head, err)
	}
	if _, err := ReadTape(t.Context(), l, "none"); err == nil || err.Error() != "session none: no such session" {
		t.Errorf("no session: %v", err)
	}
}

// TestTapeNotes checks that the notes of a frame's parts are the frame's, and together.
func TestTapeNotes(t *testing.T) {
	tape, err := NewTape()
	if err != nil {
		t.Fatal(err)
	}
	defer tape.Close()
	note := []byte(`{"mode":"observe","says":"mask","rule":"r","found":[{"detector":"email","offset":3}]}`)
	for _, f := range []Frame{
		{Verdict: Noted, Bytes: note}, {Bytes: []byte(`{"a":`), More: true}, {Verdict: Noted, Bytes: note}, {Bytes: []byte(`1}`)}, {Bytes: []byte(`{}`)},
	} {
		if err := tape.Add(f); err != nil {
			t.Fatal(err)
		}
	}
	if n := tape.Frame(0).Notes; len(n) != 1 || len(n[0].Found) != 2 {
		t.Errorf("the frame has %+v", n)
	}
	if n := tape.Frame(1).Notes; len(n) != 0 {
		t.Errorf("the next one has %+v", n)
	}
}
