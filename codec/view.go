package codec

import (
	"bytes"
	"encoding/binary"
	"iter"
	"math/bits"
	"slices"
	"unicode/utf8"
)

// Member returns the raw value of the member of that name in a valid JSON
// object, or nil.
func Member(object []byte, name string) []byte {
	for n, v := range Members(object) {
		if string(n) == name {
			return v
		}
	}
	return nil
}

// Members iterates over the members of a valid JSON object: decoded name and
// raw value. What is no object has none.
func Members(object []byte) iter.Seq2[[]byte, []byte] {
	return func(yield func([]byte, []byte) bool) {
		i := skipSpace(object, 0)
		if i == len(object) || object[i] != '{' {
			return
		}
		for i = skipSpace(object, i+1); i < len(object) && object[i] == '"'; i = skipSpace(object, i) {
			start := i
			i = skipString(object, i)
			name := object[start+1 : i-1]
			if bytes.IndexByte(name, '\\') >= 0 {
				name = Unquote(nil, object[start:i])
			}
			i = skipSpace(object, skipSpace(object, i)+1) // the colon
			start = i
			i = skipValue(object, i)
			if !yield(name, object[start:i]) {
				return
			}
			if i = skipSpace(object, i); i < len(object) && object[i] == ',' {
				i++
			}
		}
	}
}

// Elements iterates over the raw elements of a valid JSON array. What is no
// array has none.
func Elements(array []byte) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		i := skipSpace(array, 0)
		if i == len(array) || array[i] != '[' {
			return
		}
		for i = skipSpace(array, i+1); i < len(array) && array[i] != ']'; i = skipSpace(array, i) {
			start := i
			i = skipValue(array, i)
			if !yield(array[start:i]) {
				return
			}
			if i = skipSpace(array, i); i < len(array) && array[i] == ',' {
				i++
			}
		}
	}
}

// The skip functions go over valid JSON; they return the offset behind.

func skipSpace(b []byte, i int) int {
	for i < len(b) && (b[i] == ' ' || b[i] == '\t' || b[i] == '\r' || b[i] == '\n') {
		i++
	}
	return i
}

func skipString(b []byte, i int) int {
	end, _ := stringEnd(b, i)
	return end
}

// shortString is how many bytes of a string are looked at before a search for
// its end is worth its start.
const shortString = 48

// leastBlob is less than a string has, in bytes, that is JSON with the base64 of a text
// in it. That hides what it stands for.
const leastBlob = 40

// An escapes says what escapes a string may have.
type escapes uint8

const (
	unescaped escapes = iota
	quotes            // of quotes and white space: they part text, and hide nothing in it
	others
)

// stringEnd returns the offset behind the string at i.
func stringEnd(b []byte, i int) (end int, escaped escapes) {
	start := i
	for i++; i+8 <= len(b) && i-start < shortString; {
		x := binary.LittleEndian.Uint64(b[i:])
		quote, slash := x^ones*'"', x^ones*'\\'
		stop := ((quote-ones)&^quote | (slash-ones)&^slash) & highs
		if stop == 0 {
			i += 8
			continue
		}
		if i += bits.TrailingZeros64(stop) / 8; b[i] == '"' {
			if escaped == quotes && i-start >= leastBlob {
				escaped = others
			}
			return i + 1, escaped
		}
		if i+1 < len(b) && (b[i+1] == '"' || b[i+1] == 'n' || b[i+1] == 't' || b[i+1] == 'r') {
			escaped = max(escaped, quotes)
		} else {
			escaped = others
		}
		i += 2
	}
	return longEnd(b, i), others
}

// longEnd returns the offset behind the string that goes on at i, which is not
// within an escape.
func longEnd(b []byte, i int) int {
	if inBlocks {
		var done bool
		if i, done = endBlocks(b, i); done {
			return i
		}
	}
	for i < len(b) {
		switch b[i] {
		case '"':
			return i + 1
		case '\\':
			i++
		}
		i++
	}
	return len(b)
}

func skipValue(b []byte, i int) int {
	depth := 0
	for i < len(b) {
		switch b[i] {
		case '"':
			i = skipString(b, i)
		case '{', '[':
			depth++
			i++
			continue
		case '}', ']':
			depth--
			i++
		case ',', ':', ' ', '\t', '\r', '\n':
			i++
			continue
		default:
			for i < len(b) && !isDelimiter(b[i]) {
				i++
			}
		}
		if depth == 0 {
			return i
		}
	}
	return i
}

func isDelimiter(c byte) bool {
	switch c {
	case ',', ':', ']', '}', ' ', '\t', '\r', '\n':
		return true
	}
	return false
}

// Unquote appends the text of raw, a valid JSON string with its quotes, to dst.
// Half a surrogate pair becomes U+FFFD, as every parser that has no place for
// it makes it.
func Unquote(dst, raw []byte) []byte {
	b := raw[1 : len(raw)-1]
	dst = slices.Grow(dst, len(b)) // no escape is shorter than what it stands for
	out := dst[len(dst):cap(dst)]
	i, n := 0, 0 // what of b is done, and of out
	blocks := 0  // from here on
	for i+8 <= len(b) {
		if inBlocks && i >= blocks {
			done, put := unquoteBlocks(out[n:], b[i:])
			i += done
			n += put
			blocks = i + aBlock // here is what it leaves to us
			continue
		}
		x := binary.LittleEndian.Uint64(b[i:])
		binary.LittleEndian.PutUint64(out[n:], x)
		slash := x ^ ones*'\\'
		stop := (slash - ones) &^ slash & highs
		if stop == 0 {
			i += 8
			n += 8
			continue
		}
		to := bits.TrailingZeros64(stop) / 8
		i += to
		n += to
		if i+1 < len(b) && letters[b[i+1]] != 0 {
			out[n] = letters[b[i+1]]
			i += 2
			n++
			continue
		}
		r, size := unescape(b[i:])
		i += size
		n += utf8.EncodeRune(out[n:], r)
	}
	for i < len(b) {
		if b[i] != '\\' {
			out[n] = b[i]
			i++
			n++
			continue
		}
		r, size := unescape(b[i:])
		i += size
		n += utf8.EncodeRune(out[n:], r)
	}
	return dst[:len(dst)+n]
}

// letters are what escapes of two bytes stand for.
var letters = [256]byte{'"': '"', '\\': '\\', '/': '/', 'b': '\b', 'f': '\f', 'n': '\n', 'r': '\r', 't': '\t'}

// unescape returns what the escape at the start of b stands for, and its
// length. A surrogate pair is one escape of 12 bytes.
func unescape(b []byte) (r rune, size int) {
	switch c := b[1]; c {
	case 'b':
		return '\b', 2
	case 'f':
		return '\f', 2
	case 'n':
		return '\n', 2
	case 'r':
		return '\r', 2
	case 't':
		return '\t', 2
	case 'u':
		r, _ = hex4(b[2:])
		if isHigh(r) {
			if low, ok := escapedUnit(b[6:]); ok && isLow(low) {
				return (r-0xd800)<<10 + (low - 0xdc00) + 0x10000, 12
			}
		}
		if isHigh(r) || isLow(r) {
			return utf8.RuneError, 6
		}
		return r, 6
	default:
		return rune(c), 2
	}
}

// Filter appends f.Line to dst without the elements of array that keep refuses,
// and returns it with their number. array is a view within f.Line. What stays
// keeps its bytes.
func Filter(dst []byte, f *Frame, array []byte, keep func(element []byte) bool) (out []byte, dropped int) {
	start := cap(f.Line) - cap(array) // both end where their array ends
	dst = append(dst, f.Line[:start]...)
	end := skipSpace(array, 0) + 1 // behind the bracket
	dst = append(dst, array[:end]...)
	kept := 0
	for e := range Elements(array) {
		at := cap(array) - cap(e)
		between := array[end:at] // holds the comma, but in front of the first
		end = at + len(e)
		if !keep(e) {
			dropped++
			continue
		}
		if kept == 0 && dropped > 0 {
			_, between, _ = bytes.Cut(between, []byte(","))
		}
		kept++
		dst = append(append(dst, between...), e...)
	}
	dst = append(dst, array[end:]...)
	return append(dst, f.Line[start+len(array):]...), dropped
}

// Without appends f.Line to dst without the members of object that have one of
// these names. object is a view within f.Line. What stays keeps its bytes.
func Without(dst []byte, f *Frame, object []byte, names ...string) []byte {
	start := cap(f.Line) - cap(object) // both end where their array ends
	dst = append(dst, f.Line[:start]...)
	i := skipSpace(object, 0) + 1 // behind the bracket
	dst = append(dst, object[:i]...)
	kept, dropped := 0, 0
	end := i // of the member before
	for i = skipSpace(object, i); i < len(object) && object[i] == '"'; i = skipSpace(object, i) {
		at := i
		i = skipString(object, i)
		name := Unquote(nil, object[at:i])
		i = skipValue(object, skipSpace(object, skipSpace(object, i)+1))
		between, member := object[end:at], object[at:i]
		end = i
		if i = skipSpace(object, i); i < len(object) && object[i] == ',' {
			i++
		}
		if slices.Contains(names, string(name)) {
			dropped++
			continue
		}
		if kept == 0 && dropped > 0 {
			_, between, _ = bytes.Cut(between, []byte(","))
		}
		kept++
		dst = append(append(dst, between...), member...)
	}
	dst = append(dst, object[end:]...)
	return append(dst, f.Line[start+len(object):]...)
}
