package codec

import (
	"strings"
	"testing"
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
