package codec

import (
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

// FuzzString checks that a string is read in blocks as it is byte by byte, where
// in a block whatever lies.
func FuzzString(f *testing.F) {
	for _, s := range []string{
		`plain`, `a "quote`, `\"\\\/\b\f\n\r\t`, `\\\\\\\\\`, `\a`, `\`, `\u00e4\ud83d\ude00\ud83d`, `\u00g0`, "\x1f", "\x7f", "\\\x01", "\\\xc3\xa4",
		"ä€😀", "\xc3", "\xe2\x82", "\xf0\x9f\x98", "\x80", "\xc0\x80", "\xc1\xbf", "\xe0\x9f\xbf", "\xed\xa0\x80", "\xf0\x8f\xbf\xbf", "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "ä\xa4", "€\xac",
		"\xff", "\xe2\x82\"", "\xf4\x8f\xbf\xbf",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		for at := range 2 * aBlock {
			b := []byte(`"` + strings.Repeat("x", fewChars+at))
			b = append(append(b, in...), strings.Repeat("y", 2*aBlock-at)+`"`...)
			var fast, careful scanner
			fast.reset(b)
			careful.reset(b)
			got, want := fast.fastString(0), -1
			if careful.str() {
				want = careful.i
			}
			if got != want || got > 0 && fast.half != careful.lone {
				t.Fatalf("%q: ends at %d, half a pair %t; by bytes %d, %t", b, got, fast.half, want, careful.lone)
			}
		}
	})
}

// FuzzUnquote checks that what goes over valid strings in blocks sees what is seen
// byte by byte.
func FuzzUnquote(f *testing.F) {
	for _, s := range []string{`plain`, `\"\\\/\b\f\n\r\t`, `\\\\\\\"`, `\u00e4\ud83d\ude00\ud83d`, "ä€😀", `a\u0041\n`, `bfnrtu/"`[:7]} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		for at := range 2 * aBlock {
			b := []byte(`"` + strings.Repeat("x", at))
			b = append(append(b, in...), strings.Repeat("y", 2*aBlock-at)+`"`...)
			end := slices.Clone(b)
			b = append(b, `,"z", "`+strings.Repeat("z", 2*aBlock)+`"`...)
			var s scanner
			if s.reset(end); !s.str() || s.i != len(end) {
				return
			}
			var want []byte
			for raw := end[1 : len(end)-1]; len(raw) > 0; {
				size := 1
				if raw[0] == '\\' {
					var r rune
					r, size = unescape(raw)
					want = utf8.AppendRune(want, r)
				} else {
					want = append(want, raw[0])
				}
				raw = raw[size:]
			}
			if got := Unquote([]byte("in front"), end); string(got) != "in front"+string(want) {
				t.Fatalf("%q stands for %q, want %q", end, got, want)
			}
			if got := longEnd(b, 1); got != len(end) {
				t.Fatalf("%q ends at %d", b, got)
			}
		}
	})
}

// FuzzContent checks that what a long string stands for is read in pieces of any size as it
// is at once, and with a fault where there is one; and that the string can be read on where
// it was cut.
func FuzzContent(f *testing.F) {
	for _, s := range []string{`plain`, `\"\\\/\b\f\n\r\t`, `\\\\\\\"`, `\u00e4\ud83d\ude00\ud83d`, "ä€😀", "€\xac", "\xed\xa0\x80", "\x1f", `\a`, `\u00g0`, `"`, strings.Repeat("aä€😀", 9) + `\u00e4`} {
		for at := range uint16(5) {
			f.Add([]byte(s), 60+at, uint8(250))
		}
	}
	f.Fuzz(func(t *testing.T, in []byte, at uint16, size uint8) {
		b := []byte(`"` + strings.Repeat("x", int(at)%(3*aBlock)))
		b = append(append(b, in...), strings.Repeat(`y\"é`, aBlock)+`"`...)
		var s scanner
		s.reset(b)
		ok := s.str()
		if ok {
			b = b[:s.i]
		}
		s.b = b[:min(int(size)*8, len(b)-1)]
		n, read := s.stringFrom(1, fewChars)
		if read > 0 {
			s.b = b
			n, _ = s.stringFrom(read, 0)
		}
		if ok && n != len(b) || !ok && n > 0 {
			t.Fatalf("%q, cut at %d and read on at %d, ends at %d", b, len(s.b), read, n)
		}
		var text, raw []byte
		c := content{f: &flow{w: window{buf: b, at: 1}, cost: &cost{}}}
		fault := ""
		for dst := make([]byte, utf8.UTFMax+int(size)); fault == "" && !c.ended; {
			var i, n int
			rest := c.f.w.rest()
			if i, n, fault = c.unquote(dst, rest, false); i == 0 && fault == "" && !c.ended {
				t.Fatalf("%q is not read on at %d", b, c.f.w.at)
			}
			text = append(text, dst[:n]...)
			raw = append(raw, rest[:i]...)
			c.take(i, n)
			if some := n / 2; some > 0 && utf8.RuneStart(dst[some]) { // first a part, and then the rest
				if own := c.own(some); len(Unquote(nil, slices.Concat([]byte{'"'}, own, []byte{'"'}))) != some {
					t.Fatalf("%q is said to be %d bytes of %q", own, some, text)
				}
				n -= some
			}
			c.own(n)
			if c.rawAt != len(c.raw) {
				t.Fatalf("%q: of %q, %d bytes are left", b, text, len(c.raw)-c.rawAt)
			}
		}
		switch {
		case ok != (fault == ""):
			t.Fatalf("%q: fault %q", b, fault)
		case ok && string(raw) != string(b[1:len(b)-1]):
			t.Fatalf("%q, in pieces, was %q", b, raw)
		case ok && string(text) != string(Unquote(nil, b)):
			t.Fatalf("%q stands for %q", b, text)
		}
	})
}
