package recorder

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"example.com/broker/codec"
)

// found reports whether a phrase is in frames, by reading them, and whether the index
// would have them read.
func found(text string, frames ...Frame) (read, index bool) {
	var (
		r reading
		x indexer
		p = newPhrase(text)
	)
	x.reset()
	for i := range frames {
		r.frame(&frames[i], func(text []byte) { read = read || p.in(plain(nil, text)) })
		x.add(&frames[i])
	}
	index = true
	for _, h := range wordsOf(p) {
		index = index && slices.Contains(x.words.all(), h)
	}
	return read, index
}

func TestPhrase(t *testing.T) {
	blob := strings.Repeat("iVBORw0KGgo/AAA+", 40)
	for _, tt := range []struct {
		name, frame, phrase string
		want                bool
	}{
		{"whatever the case", `{"sql":"DROP Table users"}`, "drop TABLE", true},
		{"white space of any length", `{"sql":"drop\n\t table users"}`, "drop  table", true},
		{"with what stands between", `{"to":"Ada@example.com"}`, "ada@example.com", true},
		{"other things between", `{"to":"ada at example.com"}`, "ada@example.com", false},
		{"other order", `{"sql":"table drop"}`, "drop table", false},
		{"part of a word at the end", `{"sql":"drop tables"}`, "drop table", false},
		{"part of a word at the beginning", `{"sql":"airdrop table"}`, "drop table", false},
		{"an underscore ends a word", `{"sql":"drop table_a"}`, "drop table", true},
		{"the second is whole", `{"sql":"tablets, table"}`, "table", true},
		{"a number", `{"n":12345}`, "12345", true},
		{"a name and its value", `{"n":12345}`, `"n":12345`, true},
		{"part of a number", `{"n":12345}`, "1234", false},
		{"an escape is no letter", `{"a":"one\nline"}`, "nline", false},
		{"behind an escape", `{"a":"one\nline"}`, "line", true},
		{"letters as escapes", `{"a":"caf\u00C9 \ud83d\ude00 \u0041da"}`, "CAFÉ 😀 ada", true},
		{"JSON in a string", `{"text":"{\"sql\":\"drop\\ntable\"}"}`, "drop table", true},
		{"JSON in a string in a string", `{"t":"{\"t\":\"{\\\"t\\\":\\\"one\\\\ndrop table\\\"}\"}"}`, "drop table", true},
		{"as it is one level down, too", `{"path":"C:\\new\\table"}`, `c:\new\table`, true},
		{"Kelvin's K", `{"a":"5 ` + "\u212a" + `g"}`, "kg", true},
		{"sharp s by itself", `{"a":"STRASSE"}`, "straße", false},
		{"Greek", `{"a":"ΟΔΟΣ"}`, "οδος", true},
		{"final sigma", `{"a":"ΟΔΟΣ"}`, "οδος", true},
		{"Japanese, a part", `{"a":"東京都に行く"}`, "京都", true},
		{"Japanese in Latin", `{"a":"abc東京def"}`, "abc", true},
		{"Thai with marks", `{"a":"ที่นี่"}`, "นี่", true},
		{"combining marks", `{"a":"cafe` + "\u0301" + `s"}`, "cafe", false},
		{"no JSON", "\xff drop table", "drop table", true},
		{"base64 is no text", `{"data":"` + blob + `"}`, "AAA", false},
		{"beside base64", `{"data":"` + blob + `","a":"drop table"}`, "drop table", true},
		{"behind base64 and a wide letter", `{"data":"` + blob + `é drop"}`, "drop", true},
		{"a wide letter before base64", `{"data":"é` + blob + `"}`, "é", true},
		{"letters before a wide one behind base64", `{"data":"` + blob + `/caf\u00e9 x"}`, "café", false},
		{"a short run", `{"path":"src/main/table.go"}`, "main/table", true},
		{"an end of frame", `drop table`, "drop table", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			read, index := found(tt.phrase, Frame{Bytes: []byte(tt.frame)})
			if read != tt.want {
				t.Errorf("%q in %.200s: got %v, want %v", tt.phrase, tt.frame, read, tt.want)
			}
			if read && !index {
				t.Errorf("%q in %.200s is not in the index", tt.phrase, tt.frame)
			}
		})
	}
}

// TestPhraseInParts checks that it does not matter where a long frame was cut, while
// frames of the other direction and refused ones come between.
func TestPhraseInParts(t *testing.T) {
	text := `{"t":"` + strings.Repeat("some words, 17; ", 3000) + `drop\u0020t\u0061ble é東 ` + strings.Repeat("more words, 17; ", 3000) + `"}`
	at := strings.Index(text, "drop")
	for i := at - 2; i < at+30; i++ {
		other := Frame{Direction: codec.C2S, Bytes: []byte("a table")}
		blocked := Frame{Direction: codec.S2C, Verdict: Blocked, Bytes: []byte("refused")}
		read, index := found("drop table é東", Frame{Direction: codec.S2C, Bytes: []byte(text[:i]), More: true}, other, blocked,
			Frame{Direction: codec.S2C, Bytes: []byte(text[i:])})
		if !read || !index {
			t.Errorf("cut at %d: read %v, index %v", i-at, read, index)
		}
	}
	// Long base64 in parts costs no memory, and what is behind it is found.
	var r reading
	seen := false
	for i := range 100 {
		f := Frame{Bytes: bytes.Repeat([]byte("iVBORw0K"), 8<<10), More: true}
		if i == 99 {
			f = Frame{Bytes: []byte(`","a":"drop table"}`)}
		}
		r.frame(&f, func(text []byte) { seen = seen || newPhrase("drop table").in(plain(nil, text)) })
		if len(r.kept[0]) > 128<<10 {
			t.Fatalf("%d bytes are kept", len(r.kept[0]))
		}
	}
	if !seen {
		t.Error("what is behind base64 is not found")
	}
}

func TestWordSet(t *testing.T) {
	var s wordSet
	for i := range maxWords + 10 {
		s.addText(fmt.Appendf(nil, "w%d", i))
	}
	if !s.full || s.n != maxWords {
		t.Errorf("full %v with %d words", s.full, s.n)
	}
	s.reset()
	s.addText([]byte("one two ONE"))
	if got := s.all(); len(got) != 2 || s.full {
		t.Errorf("after reset: %d words, full %v", len(got), s.full)
	}
}

// FuzzPhrase checks the law that the index stands on: what is found by reading has all
// its words in the index.
func FuzzPhrase(f *testing.F) {
	f.Add("drop table", `{"sql":"DROP\ntable x"}`)
	f.Add("é", `caf\u00e9 é`+strings.Repeat("A", 600))
	f.Add("京", "東京abc")
	f.Fuzz(func(t *testing.T, phrase, frame string) {
		if len(phrase) > maxPhrase || !utf8.ValidString(phrase) {
			t.Skip()
		}
		if p := newPhrase(phrase); len(p) == 0 || len(wordsOf(p)) == 0 {
			t.Skip()
		}
		if read, index := found(phrase, Frame{Bytes: []byte(frame)}); read && !index {
			t.Errorf("%q is found in %q, and not by the index", phrase, frame)
		}
		if read, index := found(phrase, Frame{Bytes: []byte("x " + phrase + " x")}); read && !index {
			t.Errorf("%q is found, and not by the index", phrase)
		}
	})
}
