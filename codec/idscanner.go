package codec

import "bytes"

// An idScanner finds the id of a frame that is not valid JSON, or too large to
// be kept: the value of the member "id" of the outermost object. It takes the
// frame in pieces of any size and keeps next to nothing of it.
type idScanner struct {
	depth    int
	inString bool
	escaped  bool
	isName   bool // the string under way is a name of the outermost object
	awaiting bool // a name of the outermost object may come
	token    []byte
	long     bool // token was longer than an id can be
	found    []byte
	count    int // of members "id"
	state    idState
}

type idState uint8

const (
	outside idState = iota
	colon           // behind the name "id"
	value           // in its value
)

// maxID bounds an id, in bytes: a client that loses one over this waits in vain.
const maxID = 1 << 10

func (s *idScanner) scan(p []byte) {
	for i := 0; i < len(p); i++ {
		c := p[i]
		if s.inString {
			// Inside strings that do not matter, hop from one quote or backslash to the next.
			if !s.escaped && !s.isName && s.state != value {
				n := bytes.IndexAny(p[i:], `"\`)
				if n < 0 {
					return
				}
				i += n
				c = p[i]
			}
			s.keep(c)
			switch {
			case s.escaped:
				s.escaped = false
			case c == '\\':
				s.escaped = true
			case c == '"':
				s.inString = false
				s.endString()
			}
			continue
		}
		switch c {
		case '"':
			s.inString = true
			s.isName = s.depth == 1 && s.awaiting
			if s.isName {
				s.token, s.long = s.token[:0], false
			}
			s.keep(c)
		case ':':
			if s.state == colon && s.depth == 1 {
				s.state = value
				s.token, s.long = s.token[:0], false
			}
		case '{', '[':
			s.depth++
			s.awaiting = s.depth == 1 && c == '{'
			s.keep(c)
		case '}', ']':
			if s.depth == 1 {
				s.endValue()
			}
			s.depth--
		case ',':
			if s.depth == 1 {
				s.endValue()
				s.awaiting = true
			}
			s.keep(c)
		case ' ', '\t', '\r', '\n':
			if s.state == value && len(s.token) > 0 { // 1 2 is not 12
				s.keep(c)
			}
		default:
			s.keep(c)
		}
	}
}

// keep gathers the token under way.
func (s *idScanner) keep(c byte) {
	if !s.isName && s.state != value {
		return
	}
	if len(s.token) < maxID {
		s.token = append(s.token, c)
	} else {
		s.long = true
	}
}

func (s *idScanner) endString() {
	if !s.isName {
		return
	}
	s.isName, s.awaiting = false, false
	if !s.long && isID(s.token) {
		s.count++
		s.state = colon
	}
}

// isID reports the name "id", with escapes or without. raw need not be valid.
func isID(raw []byte) bool {
	if bytes.IndexByte(raw, '\\') < 0 {
		return string(raw) == `"id"`
	}
	s := scanner{b: raw}
	return s.str() && s.i == len(raw) && string(Unquote(nil, raw)) == "id"
}

func (s *idScanner) endValue() {
	if s.state == value && !s.long {
		s.found = append(s.found[:0], bytes.TrimRight(s.token, " \t\r\n")...)
	}
	s.state = outside
}

// id returns a copy of the id, or nil if there is none, or more than one, or
// one that is not legal.
func (s *idScanner) id() []byte {
	if s.count != 1 || !legalID(s.found) {
		return nil
	}
	return bytes.Clone(s.found)
}

// legalID reports whether raw is a string or an integer within ±2^53, as one
// value. The string is checked as a Parser does.
func legalID(raw []byte) bool {
	if len(raw) == 0 {
		return false
	}
	if raw[0] != '"' {
		return plainInteger(raw)
	}
	s := scanner{b: raw}
	return s.str() && !s.lone && s.i == len(raw)
}

// maxInteger is 2^53: beyond it, JSON parsers that use doubles round.
const maxInteger = 1 << 53

// plainInteger reports an integer within ±2^53 without fraction, exponent or minus zero.
func plainInteger(raw []byte) bool {
	digits := raw
	if len(raw) > 0 && raw[0] == '-' {
		digits = raw[1:]
	}
	if len(digits) == 0 || len(digits) > 16 || digits[0] == '0' && len(raw) > 1 {
		return false
	}
	n := 0
	for _, c := range digits {
		if c < '0' || c > '9' {
			return false
		}
		n = n*10 + int(c-'0')
	}
	return n <= maxInteger
}
