package codec

import (
	"encoding/binary"
	"math/bits"
	"unicode/utf8"
)

// maxDepth is how deep arrays and objects may nest, the frame itself included.
const maxDepth = 128

// A scanner checks JSON by RFC 8259, and that no object has a name twice. Its
// methods leave i behind what they read, and return false where it is not JSON.
// The first fault stays in fault; but that a frame is not JSON outweighs what
// else is wrong with it.
type scanner struct {
	b     []byte
	i     int
	depth int
	fault fault
	place string // what is being read, as a path of standard names; may be empty

	// Of the last string that str has read.
	escaped bool // it holds a backslash
	lone    bool // it holds an escape of half a surrogate pair

	half      bool                   // what fast has read last is such a string
	templates [maxTemplates]template // by depth
	params    template               // of params,
	meta      template               // and of their _meta: it is as deep as arguments

	lax     bool // only the syntax counts
	names   nameSet
	scratch []byte // decoded names and values that had escapes
}

type fault struct {
	code   int
	offset int
	reason string
	place  string
}

func (s *scanner) reset(b []byte) {
	s.b, s.i, s.depth, s.lax = b, 0, 0, false
	if s.fault.code != 0 || s.place != "" {
		s.fault, s.place = fault{}, ""
	}
	if s.names.added {
		s.names.reset()
	}
	s.scratch = s.scratch[:0]
	if cap(s.scratch) > bigBuffer {
		s.scratch = nil
	}
}

// fail notes a fault behind which nothing can be read, and returns false.
func (s *scanner) fail(code int, reason string) bool {
	if s.fault.code == 0 || code == CodeParse && s.fault.code != CodeParse {
		s.fault = fault{code, s.i, reason, s.place}
	}
	return false
}

// note notes what is JSON, but not read alike by everybody. Reading goes on.
func (s *scanner) note(offset int, reason string) {
	if s.fault.code == 0 {
		s.fault = fault{CodeInvalid, offset, reason, s.place}
	}
}

func (s *scanner) space() {
	for s.i < len(s.b) {
		switch s.b[s.i] {
		case ' ', '\t', '\n':
			s.i++
		case '\r':
			// Who reads lines in text mode, as Python and Java do, ends one at a
			// bare carriage return: what is between two of them would be a frame
			// of its own, which nobody has judged. CRLF is no line's inside.
			if !s.lax && s.i+1 < len(s.b) && s.b[s.i+1] != '\n' {
				s.note(s.i, "carriage return between values")
			}
			s.i++
		default:
			return
		}
	}
}

// peek returns the next byte, or 0 at the end; 0 cannot start anything.
func (s *scanner) peek() byte {
	if s.i < len(s.b) {
		return s.b[s.i]
	}
	return 0
}

// valid reports whether b is JSON, in whatever way objects repeat their names:
// a string, or objects and arrays one behind the other, as in a log of JSON lines.
func (s *scanner) valid(b []byte) bool {
	s.reset(b)
	i := blanks(b, 0)
	if i < len(b) && b[i] == '"' {
		i = s.fastString(i)
		i = blanks(b, max(i, 0))
	} else {
		for i >= 0 && i < len(b) && (b[i] == '{' || b[i] == '[') {
			if i = s.fast(i, 1); i >= 0 {
				i = blanks(b, i)
			}
		}
	}
	if i == len(b) && i > 0 {
		return true
	}
	s.reset(b)
	s.lax = true
	s.space()
	if s.peek() == '"' {
		if !s.str() {
			return false
		}
		s.space()
		return s.i == len(b)
	}
	for s.i < len(b) {
		if c := b[s.i]; c != '{' && c != '[' || !s.value() {
			return false
		}
		s.space()
	}
	return true
}

// value reads one value.
func (s *scanner) value() bool {
	switch c := s.peek(); c {
	case '"':
		return s.str()
	case '{':
		return s.object(nil)
	case '[':
		return s.array()
	case 't':
		return s.literal("true")
	case 'f':
		return s.literal("false")
	case 'n':
		return s.literal("null")
	default:
		if c == '-' || '0' <= c && c <= '9' {
			return s.number()
		}
		return s.fail(CodeParse, "expected a value")
	}
}

func (s *scanner) literal(want string) bool {
	if len(s.b)-s.i < len(want) || string(s.b[s.i:s.i+len(want)]) != want {
		return s.fail(CodeParse, "expected a value")
	}
	s.i += len(want)
	return true
}

func (s *scanner) digits() bool {
	start := s.i
	for s.i < len(s.b) && '0' <= s.b[s.i] && s.b[s.i] <= '9' {
		s.i++
	}
	return s.i > start
}

func (s *scanner) number() bool {
	if s.peek() == '-' {
		s.i++
	}
	if s.peek() == '0' {
		s.i++
	} else if !s.digits() {
		return s.fail(CodeParse, "invalid number")
	}
	if s.peek() == '.' {
		s.i++
		if !s.digits() {
			return s.fail(CodeParse, "invalid number")
		}
	}
	if c := s.peek(); c == 'e' || c == 'E' {
		s.i++
		if c := s.peek(); c == '+' || c == '-' {
			s.i++
		}
		if !s.digits() {
			return s.fail(CodeParse, "invalid number")
		}
	}
	return true
}

const (
	ones  = 0x0101010101010101
	highs = 0x8080808080808080
)

// plain returns how many bytes from the start of b on are ASCII that stands for
// itself in a string.
func plain(b []byte) int {
	i := 0
	for ; i+8 <= len(b); i += 8 {
		x := binary.LittleEndian.Uint64(b[i:])
		quote := x ^ ones*'"'
		slash := x ^ ones*'\\'
		// The high bit of a byte is set where it is a quote, a backslash, below
		// 0x20 or above 0x7f. A borrow may set it behind the first such byte,
		// never before.
		if stop := (x | (x - ones*0x20) | (quote - ones) | (slash - ones)) & highs; stop != 0 {
			return i + bits.TrailingZeros64(stop)/8
		}
	}
	for ; i < len(b); i++ {
		if c := b[i]; c < 0x20 || c >= 0x80 || c == '"' || c == '\\' {
			break
		}
	}
	return i
}

// str reads a string, from its opening quote to behind its closing one.
func (s *scanner) str() bool {
	s.escaped, s.lone = false, false
	s.i++
	for {
		s.i += plain(s.b[s.i:])
		if s.i == len(s.b) {
			return s.fail(CodeParse, "string without an end")
		}
		switch c := s.b[s.i]; {
		case c == '"':
			s.i++
			return true
		case c == '\\':
			s.escaped = true
			if !s.escape() {
				return false
			}
		case c < 0x20:
			return s.fail(CodeParse, "control character in a string")
		case c < 0x80: // plain stopped early
			s.i++
		default:
			r, n := utf8.DecodeRune(s.b[s.i:])
			if r == utf8.RuneError && n <= 1 {
				return s.fail(CodeParse, "invalid UTF-8")
			}
			s.i += n
		}
	}
}

// escape reads one escape; a surrogate pair's two are one.
func (s *scanner) escape() bool {
	s.i++
	c := s.peek()
	s.i++
	switch c {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		return true
	case 'u':
	default:
		s.i--
		return s.fail(CodeParse, "invalid escape")
	}
	r, ok := hex4(s.b[s.i:])
	if !ok {
		return s.fail(CodeParse, "invalid escape")
	}
	s.i += 4
	switch {
	case isLow(r):
		s.lone = true
	case isHigh(r):
		if next, ok := escapedUnit(s.b[s.i:]); ok && isLow(next) {
			s.i += 6
		} else {
			s.lone = true
		}
	}
	return true
}

func isHigh(r rune) bool { return r >= 0xd800 && r < 0xdc00 }
func isLow(r rune) bool  { return r >= 0xdc00 && r < 0xe000 }

// escapedUnit reads \uXXXX at the start of b.
func escapedUnit(b []byte) (rune, bool) {
	if len(b) < 6 || b[0] != '\\' || b[1] != 'u' {
		return 0, false
	}
	return hex4(b[2:])
}

func hex4(b []byte) (r rune, ok bool) {
	if len(b) < 4 {
		return 0, false
	}
	for _, c := range b[:4] {
		switch {
		case '0' <= c && c <= '9':
			c -= '0'
		case 'a' <= c && c <= 'f':
			c -= 'a' - 10
		case 'A' <= c && c <= 'F':
			c -= 'A' - 10
		default:
			return 0, false
		}
		r = r<<4 | rune(c)
	}
	return r, true
}

func (s *scanner) enter() bool {
	s.depth++
	if s.depth > maxDepth {
		return s.fail(CodeInvalid, "nested too deep")
	}
	s.i++
	return true
}

func (s *scanner) array() bool {
	if !s.enter() {
		return false
	}
	s.space()
	if s.peek() == ']' {
		s.i++
		s.depth--
		return true
	}
	for {
		s.space()
		if !s.value() {
			return false
		}
		s.space()
		switch s.peek() {
		case ',':
			s.i++
		case ']':
			s.i++
			s.depth--
			return true
		default:
			return s.fail(CodeParse, "expected , or ] in an array")
		}
	}
}

// A memberReader reads the values of an object's members.
type memberReader interface {
	// member is called with the scanner at the value.
	member(name []byte) bool
}

// object reads an object, its values by r, or as any values if r is nil.
func (s *scanner) object(r memberReader) bool {
	if !s.enter() {
		return false
	}
	base := len(s.names.names)
	s.space()
	if s.peek() == '}' {
		s.i++
		s.depth--
		return true
	}
	for {
		s.space()
		start := s.i
		if s.peek() != '"' {
			return s.fail(CodeParse, "expected a name in an object")
		}
		if !s.str() {
			return false
		}
		var n []byte
		if !s.lax {
			if s.lone {
				s.note(start, "half a surrogate pair in a name")
			}
			n = s.decoded(start, s.i)
			if !s.names.add(base, n) {
				s.note(start, "duplicate name")
			}
		}
		s.space()
		if s.peek() != ':' {
			return s.fail(CodeParse, "expected : behind a name")
		}
		s.i++
		s.space()
		if r == nil {
			if !s.value() {
				return false
			}
		} else if !r.member(n) {
			return false
		}
		s.space()
		switch s.peek() {
		case ',':
			s.i++
		case '}':
			s.i++
			s.depth--
			s.names.end(base)
			return true
		default:
			return s.fail(CodeParse, "expected , or } in an object")
		}
	}
}

// decoded returns the text of the string b[start:end] that str has just read.
func (s *scanner) decoded(start, end int) []byte {
	if !s.escaped {
		return s.b[start+1 : end-1 : end-1]
	}
	at := len(s.scratch)
	s.scratch = Unquote(s.scratch, s.b[start:end])
	return s.scratch[at:len(s.scratch):len(s.scratch)]
}
