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

// A template is the names of the object that was last read at a depth, each as
// it stands, from its opening quote to the value. Rows of a table have the same
// names in the same order, and so have frames of a kind: to compare a name with
// the template's costs less than to read it, and as long as all are the same none
// is there twice.
type template struct {
	n     int
	names [maxTemplate]templateName
}

type templateName struct {
	n, name    int       // the length of text, and of the name in it
	head, tail [2]uint64 // the first 16 bytes of text, and which bits of them count
	text       [32]byte
}

// set makes text the template's.
func (t *templateName) set(text []byte, name int) {
	t.text = [32]byte{}
	t.n, t.name = copy(t.text[:], text), name
	var mask [16]byte
	for i := range min(t.n, len(mask)) {
		mask[i] = 0xff
	}
	t.head = [2]uint64{binary.LittleEndian.Uint64(t.text[:]), binary.LittleEndian.Uint64(mask[:])}
	t.tail = [2]uint64{binary.LittleEndian.Uint64(t.text[8:]), binary.LittleEndian.Uint64(mask[8:])}
}

const (
	maxTemplate  = 24 // names
	maxTemplates = 10 // depths
)

// frame reads a whole frame. It reports whether it has.
func (p *Parser) frame(line []byte) bool {
	f := &p.f
	if len(line) < 2 || line[0] != '{' || len(line) > 1<<30 {
		return false
	}
	const (
		version = 1 << iota
		id
		method
		params
		result
		failure
	)
	seen := 0
	for i := 1; ; i++ {
		i = blanks(line, i)
		name, n := envelopeName(line[i:])
		if n == 0 {
			text := plainName(line, i)
			if text == nil {
				return false
			}
			if n = blanks(line, i+len(text)+2) - i; i+n >= len(line) || line[i+n] != ':' {
				return false
			}
			name, n = string(text), n+1
		}
		if i = blanks(line, i+n); i >= len(line) {
			return false
		}
		start, kind, bit := i, line[i], 0
		switch name {
		case "jsonrpc":
			bit = version
			if i+5 > len(line) || string(line[i:i+5]) != `"2.0"` {
				return false
			}
			p.version = true
			i += 5
		case "id":
			bit, p.s.half = id, false
			if i = p.s.fast(i, 1); i < 0 || p.s.half {
				return false
			}
			f.ID = line[start:i]
		case "method":
			bit = method
			if f.Method = plainName(line, i); f.Method == nil {
				return false
			}
			i += len(f.Method) + 2
		case "params":
			bit = params
			if kind != '{' {
				return false
			}
			if i = p.fastParams(line, i+1); i < 0 {
				return false
			}
			f.Params = line[start:i]
		case "result":
			bit = result
			if i = p.s.fast(i, 1); i < 0 {
				return false
			}
			f.Result = line[start:i]
		case "error":
			bit = failure
			if i = p.s.fast(i, 1); i < 0 {
				return false
			}
			f.Error = line[start:i]
		}
		if bit == 0 || seen&bit != 0 {
			return false
		}
		seen |= bit
		if i < len(line) && line[i] != ',' {
			i = blanks(line, i)
		}
		switch {
		case i >= len(line):
			return false
		case line[i] == ',':
		default:
			return line[i] == '}' && i+1 == len(line)
		}
	}
}

// envelopeName returns the name at the start of b as nearly everybody writes it,
// and its length with quotes and colon, or 0.
func envelopeName(b []byte) (name string, n int) {
	if len(b) < 10 {
		return "", 0
	}
	switch b[1] {
	case 'j':
		if string(b[:10]) == `"jsonrpc":` {
			return "jsonrpc", 10
		}
	case 'i':
		if string(b[:5]) == `"id":` {
			return "id", 5
		}
	case 'm':
		if string(b[:9]) == `"method":` {
			return "method", 9
		}
	case 'p':
		if string(b[:9]) == `"params":` {
			return "params", 9
		}
	case 'r':
		if string(b[:9]) == `"result":` {
			return "result", 9
		}
	}
	return "", 0
}

// fastParams reads params behind its brace.
func (p *Parser) fastParams(line []byte, i int) int {
	f, s := &p.f, &p.s
	if i = blanks(line, i); i < len(line) && line[i] == '}' {
		return i + 1
	}
	base := len(s.names.names)
	for ; ; i++ {
		i = blanks(line, i)
		name := plainName(line, i)
		if name == nil || !s.names.add(base, name) {
			return -1
		}
		i += len(name) + 2
		if i = blanks(line, i); i >= len(line) || line[i] != ':' {
			return -1
		}
		if i = blanks(line, i+1); i >= len(line) {
			return -1
		}
		start, kind := i, line[i]
		var to *[]byte
		switch string(name) {
		case "name":
			p.nameKind, to = kind, &f.Name
		case "uri":
			p.uriKind, to = kind, &f.URI
		default:
			if likeParam(name) {
				return -1
			}
			if i = s.fast(i, 2); i < 0 {
				return -1
			}
			switch string(name) {
			case "arguments":
				f.Arguments = line[start:i]
			case "_meta":
				f.Meta = line[start:i]
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
		return s.fastObject(i, depth+1)
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

// Strings are read by stringBlocks behind their first manyBytes, if more than
// aBlock follows: shorter ones would not pay for the call.
const (
	manyBytes = 32
	aBlock    = 64
)

// fastString reads the string at i.
func (s *scanner) fastString(i int) int {
	b := s.b
	s.half = false
	i++
	blocks := len(b) // from here on
	if inBlocks {
		blocks = i + manyBytes
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
		if i >= blocks && i+aBlock <= len(b) {
			if i = stringBlocks(b, i); i < 0 {
				return -1
			}
		}
		if i >= len(b) {
			return -1
		}
		switch c := b[i]; {
		case c == '"':
			return i + 1
		case c == '\\':
			if i++; i < len(b) && simpleEscape[b[i]] {
				i++
				continue
			}
			if i = s.fastEscape(i); i < 0 {
				return -1
			}
		case c < 0x20:
			return -1
		case c < 0x80:
			i++ // the stop was a borrow, or b is at its end
		default:
			n := runeLen(b[i:])
			if n == 0 {
				return -1
			}
			i += n
		}
	}
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
	for ; ; i++ {
		if i = blanks(b, i); i >= len(b) {
			return -1
		}
		if i = s.fast(i, depth); i < 0 {
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

func (s *scanner) fastObject(i, depth int) int {
	b := s.b
	if depth > maxDepth {
		return -1
	}
	if i = blanks(b, i+1); i < len(b) && b[i] == '}' {
		return i + 1
	}
	var t *template
	if depth < maxTemplates {
		t = &s.templates[depth]
	}
	k, same := 0, t != nil && t.n > 0 // so far, the names are the template's first k
	base := len(s.names.names)
	for ; ; i++ {
		if same && k < t.n {
			// It is there that most of the time goes: no call, and one branch.
			name := &t.names[k]
			if at := b[i:]; len(at) > len(name.text) &&
				(binary.LittleEndian.Uint64(at)^name.head[0])&name.head[1]|(binary.LittleEndian.Uint64(at[8:])^name.tail[0])&name.tail[1] == 0 &&
				(name.n <= 16 || string(at[16:name.n]) == string(name.text[16:name.n])) {
				i += name.n
				k++
				goto value
			}
		}
		if i = blanks(b, i); i >= len(b) {
			return -1
		}
		if same { // no longer
			same = false
			for j := range k {
				s.names.add(base, t.names[j].text[1:1+t.names[j].name])
			}
			t.n = k
		}
		{
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
			if t != nil && t.n == k && k < maxTemplate && i-start <= len(t.names[k].text) {
				t.names[k].set(b[start:i], len(name))
				t.n++
			}
			k++
		}
	value:
		switch c := b[i]; {
		case c == '"':
			i = s.fastString(i)
		case c-'0' <= 9 || c == '-':
			i = fastNumber(b, i)
		default:
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
