package codec

import (
	"bytes"
	"encoding/binary"
	"math/bits"
	"unicode/utf8"
)

// Nearly every frame is good, and is read here, in one pass and without asking
// where a fault would lie. Whatever is unusual, good or bad, makes these
// functions return -1; then the scanner reads the frame again from its start and
// decides. So they may refuse what it accepts, and must not accept what it
// refuses: FuzzFast holds them to it.
//
// They take the offset of what they read and return the one behind it. All
// state that is not in a register is in the scanner: the names of objects under
// way, and templates.

// The members of a frame, by bits.
const (
	hasVersion = 1 << iota
	hasID
	hasMethod
	hasParams
	hasResult
	hasError
)

// frame reads a whole frame. It reports whether it has.
func (p *Parser) frame(line []byte) bool {
	f := &p.f
	if len(line) < 18 || line[0] != '{' || len(line) > 1<<30 {
		return false
	}
	seen, i := 0, 1
	if string(line[:16]) == `{"jsonrpc":"2.0"` && line[16] == ',' {
		p.version = true
		seen, i = hasVersion, 17
	}
	for ; ; i++ {
		member, n := envelopeName(line[i:])
		if n == 0 {
			if member, n = unusualName(line, i); n == 0 {
				return false
			}
		}
		if seen&member != 0 {
			return false
		}
		seen |= member
		if i = blanks(line, i+n); i >= len(line) {
			return false
		}
		start, kind := i, line[i]
		switch member {
		case hasVersion:
			if i+5 > len(line) || string(line[i:i+5]) != `"2.0"` {
				return false
			}
			p.version = true
			i += 5
		case hasID:
			if kind-'0' <= 9 {
				i = fastNumber(line, i)
			} else {
				p.s.half = false
				i = p.s.fast(i, 1)
				if p.s.half {
					return false
				}
			}
			if i < 0 {
				return false
			}
			f.ID = line[start:i]
		case hasMethod:
			if f.Method = plainName(line, i); f.Method == nil {
				return false
			}
			i += len(f.Method) + 2
		case hasParams:
			if kind != '{' {
				return false
			}
			if i = p.fastParams(line, i+1); i < 0 {
				return false
			}
			f.Params = line[start:i]
		case hasResult:
			if i = p.s.fastResult(i); i < 0 {
				return false
			}
			f.Result = line[start:i]
		case hasError:
			if i = p.s.fast(i, 1); i < 0 {
				return false
			}
			f.Error = line[start:i]
		}
		if i >= len(line) {
			return false
		}
		if line[i] != ',' {
			if i = blanks(line, i); i >= len(line) || line[i] != ',' {
				return i+1 == len(line) && line[i] == '}'
			}
		}
	}
}

// fastResult reads the result at i. Most are one text.
func (s *scanner) fastResult(i int) int {
	const (
		start, middle, end = `{"content":[{"ty`, `pe":"text","text`, `":"`
		content            = `"content":`
	)
	t, text := &s.templates[2], i+len(start)+len(middle)+len(end)-1
	if b := s.b; text < len(b) && string(b[i:i+16]) == start && string(b[i+16:i+32]) == middle && string(b[i+32:i+35]) == end &&
		t.n > 0 && string(t.names[0].text[:len(content)]) == content {
		if behind := s.stringOf(text, 0); behind < 0 {
			return -1
		} else if hasPrefix(b[behind:], "}]") {
			return s.fastMembers(behind+2, 2, t, 1, behindValue, false)
		}
	}
	return s.fast(i, 1)
}

// envelopeName returns which member's name stands at the start of b as nearly
// everybody writes it, and its length with quotes and colon, or 0.
func envelopeName(b []byte) (member, n int) {
	if len(b) < 10 {
		return 0, 0
	}
	switch b[1] {
	case 'j':
		if string(b[:10]) == `"jsonrpc":` {
			return hasVersion, 10
		}
	case 'i':
		if string(b[:5]) == `"id":` {
			return hasID, 5
		}
	case 'm':
		if string(b[:9]) == `"method":` {
			return hasMethod, 9
		}
	case 'p':
		if string(b[:9]) == `"params":` {
			return hasParams, 9
		}
	case 'r':
		if string(b[:9]) == `"result":` {
			return hasResult, 9
		}
	}
	return 0, 0
}

// unusualName is envelopeName for the name behind blanks at i.
func unusualName(b []byte, i int) (member, n int) {
	from := i
	i = blanks(b, i)
	name := plainName(b, i)
	switch string(name) {
	case "jsonrpc":
		member = hasVersion
	case "id":
		member = hasID
	case "method":
		member = hasMethod
	case "params":
		member = hasParams
	case "result":
		member = hasResult
	case "error":
		member = hasError
	default:
		return 0, 0
	}
	if i = blanks(b, i+len(name)+2); i >= len(b) || b[i] != ':' {
		return 0, 0
	}
	return member, i + 1 - from
}

// fastParams reads params behind its brace.
func (p *Parser) fastParams(line []byte, i int) int {
	f, s := &p.f, &p.s
	if i = blanks(line, i); i < len(line) && line[i] == '}' {
		return i + 1
	}
	t := &s.params
	k, same := 0, t.n > 0
	base := len(s.names.names)
	for ; ; i++ {
		i = blanks(line, i)
		var name []byte
		if same && k < t.n && t.names[k].starts(line[i:]) {
			name = t.names[k].own()
			i += t.names[k].n
		} else {
			if same { // no longer
				same = false
				t.give(&s.names, base, k)
			}
			start := i
			if name = plainName(line, i); name == nil || !s.names.add(base, name) || likeParam(name) {
				return -1
			}
			if i = blanks(line, i+len(name)+2); i >= len(line) || line[i] != ':' {
				return -1
			}
			i = blanks(line, i+1)
			t.take(k, line[start:i], len(name))
		}
		k++
		if i = blanks(line, i); i >= len(line) {
			return -1
		}
		start, kind := i, line[i]
		var to *[]byte
		switch string(name) {
		case "name":
			p.nameKind, to = kind, &f.Name
		case "uri":
			p.uriKind, to = kind, &f.URI
		case "_meta":
			if kind == '{' {
				i = s.fastObject(i, 3, &s.meta, false)
			} else {
				i = s.fast(i, 2)
			}
			if i < 0 {
				return -1
			}
			f.Meta = line[start:i]
		default:
			if i = s.fast(i, 2); i < 0 {
				return -1
			}
			if string(name) == "arguments" {
				f.Arguments = line[start:i]
			}
		}
		if to != nil {
			if kind != '"' {
				return -1
			}
			if *to = plainName(line, i); *to == nil {
				return -1
			}
			i += len(*to) + 2
		}
		switch i = blanks(line, i); {
		case i >= len(line):
			return -1
		case line[i] == ',':
		case line[i] == '}':
			s.names.end(base)
			return i + 1
		default:
			return -1
		}
	}
}

// likeParam reports a name that is a standard one of params but for case, or
// that may be one.
func likeParam(name []byte) bool {
	var buf [longestParam]byte
	if len(name) > len(buf) {
		return false
	}
	for i, c := range name {
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		buf[i] = c
	}
	exact, ok := lowerParams[string(buf[:len(name)])]
	return ok && exact != string(name)
}

const longestParam = 24

// lowerParams are paramNames by their lower case.
var lowerParams = func() map[string]string {
	m := map[string]string{}
	for n := range paramNames {
		if len(n) > longestParam {
			panic("a name of params is too long")
		}
		m[string(bytes.ToLower([]byte(n)))] = n
	}
	return m
}()

// blanks returns the offset behind blanks; a carriage return is none.
func blanks(b []byte, i int) int {
	for i < len(b) && (b[i] == ' ' || b[i] == '\n' || b[i] == '\t') {
		i++
	}
	return i
}

// plainName returns the text of the string at i if it is one of ASCII without
// escapes, and nil if not. It is not nil for an empty one.
func plainName(b []byte, i int) []byte {
	if i >= len(b) || b[i] != '"' {
		return nil
	}
	i++
	end := i
	for end+8 <= len(b) {
		x := binary.LittleEndian.Uint64(b[end:])
		if stop := (x | (x - ones*0x20) | (x ^ ones*'"' - ones) | (x ^ ones*'\\' - ones)) & highs; stop != 0 {
			end += bits.TrailingZeros64(stop) / 8
			break
		}
		end += 8
	}
	for end < len(b) && b[end] != '"' {
		if c := b[end]; c < 0x20 || c >= 0x80 || c == '\\' {
			return nil
		}
		end++
	}
	if end == len(b) {
		return nil
	}
	return b[i:end:end]
}

// fast reads the value at i, which is at that depth. s.half tells whether its
// last string has half a surrogate pair.
func (s *scanner) fast(i, depth int) int {
	b := s.b
	if i >= len(b) {
		return -1
	}
	switch c := b[i]; c {
	case '"':
		return s.fastString(i)
	case '{':
		return s.fastObject(i, depth+1, s.template(depth+1), false)
	case '[':
		return s.fastArray(i, depth+1)
	case 't':
		if i+4 <= len(b) && string(b[i:i+4]) == "true" {
			return i + 4
		}
	case 'f':
		if i+5 <= len(b) && string(b[i:i+5]) == "false" {
			return i + 5
		}
	case 'n':
		if i+4 <= len(b) && string(b[i:i+4]) == "null" {
			return i + 4
		}
	default:
		return fastNumber(b, i)
	}
	return -1
}

func fastNumber(b []byte, i int) int {
	if b[i] == '-' {
		i++
	}
	start := i
	for i < len(b) && b[i]-'0' <= 9 {
		i++
	}
	if i == start || b[start] == '0' && i > start+1 {
		return -1
	}
	if i < len(b) && b[i] == '.' {
		i++
		start = i
		for i < len(b) && b[i]-'0' <= 9 {
			i++
		}
		if i == start {
			return -1
		}
	}
	if i < len(b) && b[i]|0x20 == 'e' {
		if i++; i < len(b) && (b[i] == '+' || b[i] == '-') {
			i++
		}
		start = i
		for i < len(b) && b[i]-'0' <= 9 {
			i++
		}
		if i == start {
			return -1
		}
	}
	return i
}

// simpleEscape are the letters of escapes that are two bytes long.
var simpleEscape = [256]bool{'"': true, '\\': true, '/': true, 'b': true, 'f': true, 'n': true, 'r': true, 't': true}

// Strings are read by stringBlocks behind their first fewChars: shorter ones would
// not pay for the call. It takes aBlock bytes at a time.
const (
	fewChars = 24
	aBlock   = 64
)

// fastString reads the string at i.
func (s *scanner) fastString(i int) int { return s.stringOf(i, fewChars) }

// stringOf reads the string at i, which is probably of more than n bytes, or else
// has escapes or what is beyond ASCII.
func (s *scanner) stringOf(i, n int) int {
	end, _ := s.stringFrom(i+1, n)
	return end
}

// stringFrom is stringOf for what a string is from i on. Of one that goes on behind the
// end of what there is, and has no fault so far, it returns how far it has been read:
// another call can go on there.
func (s *scanner) stringFrom(i, n int) (end, read int) {
	b := s.b
	s.half = false
	blocks := max(i+n, 3) // from here on
	if !inBlocks || len(b) < aBlock {
		blocks = len(b)
	}
	for {
		for i+8 <= len(b) && i < blocks {
			x := binary.LittleEndian.Uint64(b[i:])
			quote, slash := x^ones*'"', x^ones*'\\'
			stop := (x | (x - ones*0x20) | (quote - ones) | (slash - ones)) & highs
			if stop != 0 {
				i += bits.TrailingZeros64(stop) / 8
				break
			}
			i += 8
		}
		if i >= blocks {
			if i = stringBlocks(b, i); i < 0 {
				return -1, 0
			}
			if len(b)-i < aBlock {
				blocks = len(b)
			}
		}
		if i >= len(b) {
			return -1, i
		}
		switch c := b[i]; {
		case c == '"':
			return i + 1, 0
		case c == '\\':
			start := i
			if i++; i < len(b) && simpleEscape[b[i]] {
				i++
				continue
			}
			if i = s.fastEscape(i); i < 0 {
				return -1, cutAt(b, start)
			}
			blocks = max(blocks, min(i+fewChars, len(b))) // it is seldom alone
		case c < 0x20:
			return -1, 0
		case c < 0x80:
			i++ // the stop was a borrow, or b is at its end
		default:
			n := runeLen(b[i:])
			if n == 0 {
				return -1, cutAt(b, i)
			}
			i += n
		}
	}
}

// cutAt returns i, where an escape or a character cannot be read, if b may have been cut
// in it, and 0 if there is a fault.
func cutAt(b []byte, i int) int {
	if len(b)-i < longestEscape {
		return i
	}
	return 0
}

// fastEscape reads \uXXXX from the u on.
func (s *scanner) fastEscape(i int) int {
	b := s.b
	if i+5 > len(b) || b[i] != 'u' {
		return -1
	}
	r, ok := hex4(b[i+1:])
	if !ok {
		return -1
	}
	i += 5
	switch {
	case isLow(r):
		s.half = true
	case isHigh(r):
		if low, ok := escapedUnit(b[i:]); ok && isLow(low) {
			return i + 6
		}
		s.half = true
	}
	return i
}

// runeLen returns the length of the character beyond ASCII at the start of b, or
// 0 if it is none.
func runeLen(b []byte) int {
	if len(b) >= 3 {
		switch c, d := b[0], b[1]; {
		case c >= 0xc2 && c <= 0xdf && d&0xc0 == 0x80:
			return 2
		case c > 0xe0 && c <= 0xef && c != 0xed && d&0xc0 == 0x80 && b[2]&0xc0 == 0x80:
			return 3
		}
	}
	r, n := utf8.DecodeRune(b)
	if r == utf8.RuneError && n <= 1 {
		return 0
	}
	return n
}

func (s *scanner) fastArray(i, depth int) int {
	b := s.b
	if depth > maxDepth {
		return -1
	}
	if i = blanks(b, i+1); i < len(b) && b[i] == ']' {
		return i + 1
	}
	t := s.template(depth + 1)
	for ; ; i++ {
		if i = blanks(b, i); i >= len(b) {
			return -1
		}
		if b[i] == '{' {
			i = s.fastObject(i, depth+1, t, true)
		} else {
			i = s.fast(i, depth)
		}
		if i < 0 {
			return -1
		}
		if i < len(b) && b[i] == ',' {
			continue
		}
		if i = blanks(b, i); i >= len(b) {
			return -1
		}
		if b[i] == ']' {
			return i + 1
		}
		if b[i] != ',' {
			return -1
		}
	}
}

// template returns that of the objects at a depth; deeper ones have none.
func (s *scanner) template(depth int) *template {
	if depth >= maxTemplates {
		return nil
	}
	return &s.templates[depth]
}

// fastObject reads the object at i; with rows, which is for an element of an
// array, it may read objects that follow, too.
func (s *scanner) fastObject(i, depth int, t *template, rows bool) int {
	if depth > maxDepth {
		return -1
	}
	if i = blanks(s.b, i+1); i < len(s.b) && s.b[i] == '}' {
		return i + 1
	}
	return s.fastMembers(i, depth, t, 0, atName, rows)
}

// fastMembers reads what is left of an object of which the first k names of the
// template have been read.
func (s *scanner) fastMembers(i, depth int, t *template, k int, at stop, rows bool) int {
	b := s.b
	same := t != nil && t.n > 0 // so far, the names are the template's first k
	base := len(s.names.names)
	for ; ; i++ {
		if same && at == atName {
			if i, k, at = t.members(b, i, k, rows); at == atName && i < len(b) && b[i] <= ' ' {
				i, k, at = t.members(b, blanks(b, i), k, rows)
			}
		}
		switch at {
		case behindObject:
			return i
		case atName:
			if i = blanks(b, i); i >= len(b) {
				return -1
			}
			if k == 0 && b[i] == '}' {
				return i + 1 // a row without members
			}
			if same { // no longer
				same = false
				t.give(&s.names, base, k)
			}
			start := i
			name := plainName(b, i)
			if name == nil || !s.names.add(base, name) {
				return -1
			}
			if i = blanks(b, i+len(name)+2); i >= len(b) || b[i] != ':' {
				return -1
			}
			if i = blanks(b, i+1); i >= len(b) {
				return -1
			}
			if t != nil {
				t.take(k, b[start:i], len(name))
			}
			k++
			fallthrough
		case atValue:
			switch c := b[i]; {
			case c == '"' && at == atValue && inBlocks:
				i = s.stringOf(i, 0)
			case c == '"':
				i = s.stringOf(i, fewChars)
			case c-'0' <= 9 || c == '-':
				i = fastNumber(b, i)
			default:
				i = s.fast(blanks(b, i), depth)
			}
			if i < 0 {
				return -1
			}
		}
		at = atName
		if i < len(b) && b[i] == ',' {
			continue
		}
		if i = blanks(b, i); i >= len(b) {
			return -1
		}
		if b[i] == '}' {
			if !same {
				s.names.end(base)
			}
			return i + 1
		}
		if b[i] != ',' {
			return -1
		}
	}
}
