package codec

import (
	"fmt"
	"strconv"
	"unicode/utf8"
)

// AppendPrintable appends text to dst as a terminal can show it on one line: what
// is no printable character, such as a control sequence, a mark of direction or a
// byte that is no UTF-8, as an escape.
func AppendPrintable(dst, text []byte) []byte {
	for len(text) > 0 {
		r, size := utf8.DecodeRune(text)
		switch {
		case r == utf8.RuneError && size == 1:
			dst = fmt.Appendf(dst, `\x%02x`, text[0])
		case strconv.IsPrint(r):
			dst = append(dst, text[:size]...)
		case r == '\n':
			dst = append(dst, `\n`...)
		case r == '\t':
			dst = append(dst, `\t`...)
		case r < 1<<16:
			dst = fmt.Appendf(dst, `\u%04x`, r)
		default:
			dst = fmt.Appendf(dst, `\U%08x`, r)
		}
		text = text[size:]
	}
	return dst
}
