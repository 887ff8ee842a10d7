package codec

// What follows checks and masks JSON that is too long to be held, while it
// arrives. Of it, only a value that ends within sizes.value bytes is looked at as
// a whole, with what is in masker.go; of a longer one, the parts are. So a text
// is masked in the same way however it comes, and a Masker that has all of it
// takes the same path for its long strings:
//
//	window ──► flow ──► edits                      the frame
//	             └─► content ──► flow ──► content  a long string in it
//
// A flow reads from its window and says, in order, of every byte what becomes of
// it. A content is the window's source of what a long string stands for, and turns
// what becomes of that back into what becomes of the string's own bytes.

// sizes are in bytes. They decide what is found where, never how the bytes arrive.
type sizes struct {
	value  int // the longest value that is looked at as a whole
	window int // how much of a longer text, which is no JSON, is looked at at a time,
	margin int // and how much on either side of it: a finding is no longer than that
}

var defaultSizes = sizes{value: 512 << 10, window: 256 << 10, margin: 16 << 10}

// edits take what becomes of each byte of a text, in order.
type edits interface {
	keep(b []byte)
	replace(b []byte, s span) // by what takes the place of s
	drop(b []byte)            // also replaced, by the same as what was before
}

// A flow is JSON that is checked and masked while it arrives. Its methods take
// what stands at the window's beginning, and report false at a fault.
type flow struct {
	m     *Masker // nil: it is only checked
	s     *scanner
	sizes sizes
	w     window
	to    edits
	layer int
	// The frame itself has no layer around it, and must be read alike by everybody.
	strict  bool
	gone    bool   // what was emitted is not needed any more
	refused string // a name that the result must not have
	outline outline
	cost    *cost
	cut     []byte // of a string with a fault in it: what was read and is not decided
	fault   fault
}

// cost is what a frame takes that the sizes do not bound.
type cost struct {
	names int // of long objects under way
	raw   int // bytes of long strings that are read and not decided
}

const (
	// maxNames is how many names long objects may have at a time. Of each, a hash is
	// kept.
	maxNames = 2 << 20
	// maxRaw bounds cost.raw: where each of several layers of JSON in strings writes
	// every character as an escape, little text is long.
	maxRaw = 16 << 20
)

func (f *flow) fail(code int, reason string) bool {
	if f.fault.code == 0 {
		f.fault = fault{code: code, offset: int(f.w.passed), reason: reason}
	}
	return false
}

// tooLong is fail at a number or a name that is too long to be looked at. A text
// with one that seemed to be JSON is taken for none.
func (f *flow) tooLong(reason string) bool {
	if f.strict {
		return f.fail(CodeTooLarge, reason)
	}
	return f.fail(CodeParse, reason)
}

func (f *flow) keep(n int) {
	f.to.keep(f.w.rest()[:n])
	f.w.pass(n)
}

// emit goes on by n bytes, of which the spans are replaced.
func (f *flow) emit(n int, spans []span) {
	b, at := f.w.rest(), 0
	for _, s := range spans {
		f.to.keep(b[at:s.start])
		f.to.replace(b[s.start:s.end], s)
		at = s.end
	}
	f.to.keep(b[at:n])
	f.w.pass(n)
}

// look has the Masker look at the next n bytes: walk adds spans in m.b, which
// they are.
func (f *flow) look(n int, walk func(m *Masker)) {
	m := f.m
	if m == nil {
		f.keep(n)
		return
	}
	base, b, layer, hinted := len(m.spans), m.b, m.layer, m.hints.known
	m.b, m.layer, m.hints.known = f.w.rest()[:n:n], f.layer, false
	walk(m)
	m.merge(base)
	m.b, m.layer, m.hints.known = b, layer, hinted
	f.emit(n, m.spans[base:])
	m.spans = m.spans[:base]
	if f.gone {
		m.forgetBlobs()
	}
}

// space goes over white space, and reports whether something is behind it.
func (f *flow) space() bool {
	for {
		b, i := f.w.rest(), 0
		for i < len(b) && (b[i] == ' ' || b[i] == '\t' || b[i] == '\n' || b[i] == '\r' && !f.strict) {
			i++
		}
		f.keep(i)
		if i < len(b) {
			return true
		}
		if !f.w.more() {
			return f.fail(CodeParse, "the frame ends in its middle")
		}
	}
}

// next is the byte that space has found.
func (f *flow) next() byte { return f.w.buf[f.w.at] }

// longestEscape is more than what can be cut off a value without a fault before it.
const longestEscape = 12

// scan returns the length of the value at the start of b, 0 if it goes on
// behind b, and -1 if there is a fault in it. Of a string that goes on, it says how
// much it has read, to be told when there is more of it; of any other value 0.
func (f *flow) scan(b []byte, depth, read int) (n, seen int) {
	s := f.s
	s.reset(b)
	if b[0] == '"' {
		if n, seen = s.stringFrom(max(read, 1), fewChars); n > 0 || seen > 0 {
			return max(n, 0), seen
		}
	} else if n := s.fast(0, depth); n > 0 {
		return n, 0
	}
	s.reset(b)
	s.lax, s.depth = !f.strict, depth
	ok := s.value()
	switch {
	case ok && s.fault.code == 0:
		return s.i, 0
	case !ok && s.fault.code == CodeParse && s.fault.offset+longestEscape >= len(b):
		return 0, 0
	}
	return -1, 0
}

// complete returns the length of the value that begins here, or 0 if it is too
// long to be looked at as a whole.
func (f *flow) complete(depth int) (n int, ok bool) {
	for read := 0; ; {
		b := f.w.rest()
		b = b[:min(len(b), f.sizes.value)]
		ended := f.w.err != nil
		if len(b) > 0 {
			n, read = f.scan(b, depth, read)
			closes := b[0] == '"' || b[0] == '{' || b[0] == '[' // it says where it ends
			switch {
			case n > 0 && (closes || n < len(b) || ended && len(b) < f.sizes.value):
				return n, true
			case n >= 0 && len(b) == f.sizes.value:
				return 0, true
			}
		}
		if n < 0 || ended {
			break
		}
		f.w.need(min(max(2*len(b), 64), f.sizes.value))
	}
	if fault := f.s.fault; fault.code != 0 && f.fault.code == 0 && len(f.w.rest()) > 0 {
		f.fault = fault
		f.fault.offset += int(f.w.passed)
	}
	return 0, f.fail(CodeParse, "the frame ends in its middle")
}

const mustBeHeld = "a member of the result that must be held"

// value takes a value. inside tells that it is an element or a member's: it is
// not decided before what stands behind it is there.
func (f *flow) value(p place, depth int, inside bool) bool {
	n := 0
	c := f.next()
	if c != '{' && c != '[' || !f.isLong() {
		var ok bool
		if n, ok = f.complete(depth); !ok || n > 0 && inside && !f.delimited(n) {
			return false
		}
	}
	if n > 0 {
		if f.refused != "" && depth == 1 && Member(f.w.rest()[:n], f.refused) != nil {
			return f.fail(CodeInvalid, mustBeHeld)
		}
		f.look(n, func(m *Masker) { m.whole(m.b, 0, &p) })
		return true
	}
	if f.m != nil {
		p.field = p.field || f.m.fields.ends(f.m.states[p.states:])
	}
	switch c {
	case '{':
		return f.object(p, depth+1)
	case '[':
		return f.array(p, depth+1)
	case '"':
		return f.str(p)
	}
	return f.tooLong("a number is too long")
}

// delimited reports whether behind the next n bytes is what may stand behind a
// value.
func (f *flow) delimited(n int) bool {
	for i := n; i < n+readSize; i++ {
		if !f.w.need(i + 1) {
			return f.fail(CodeParse, "the frame ends in its middle")
		}
		switch f.w.rest()[i] {
		case ' ', '\t', '\n', '\r':
		case ',', ']', '}':
			return true
		default:
			return f.fail(CodeParse, "expected , or the end of an array or object")
		}
	}
	return true // whoever pads so much hides nothing
}

func (f *flow) array(p place, depth int) bool {
	if depth > maxDepth {
		return f.fail(CodeInvalid, "nested too deep")
	}
	f.keep(1)
	if !f.space() {
		return false
	}
	for n := 0; f.next() != ']'; n++ {
		many := 0
		if c := f.next(); n > 0 || c != '[' && c != '{' || !f.isLong() { // or each level of a deep nest would try for itself
			many = f.elements(p, n, depth)
		}
		if many > 0 {
			n += many - 1
		} else {
			inner, behind := f.element(p, n)
			if !f.value(inner, depth, true) {
				return false
			}
			behind()
		}
		if !f.behind(']', "expected a value", "expected , or ] in an array") {
			return false
		}
	}
	f.keep(1)
	return true
}

// behind goes to what is behind an element or a member and its comma: another one,
// or the closing bracket.
func (f *flow) behind(closing byte, another, either string) bool {
	if !f.space() {
		return false
	}
	switch f.next() {
	case closing:
		return true
	case ',':
		f.keep(1)
		if !f.space() {
			return false
		}
		return f.next() != closing || f.fail(CodeParse, another)
	}
	return f.fail(CodeParse, either)
}

// element returns the place of an array's element, and what to call behind it.
func (f *flow) element(p place, n int) (inner place, behind func()) {
	if f.m == nil {
		return place{}, func() {}
	}
	m := f.m
	inner = place{states: len(m.states), field: p.field}
	m.states = m.fields.element(m.states, p.states, n)
	return inner, func() { m.states = m.states[:inner.states] }
}

// elements takes all elements that are in the window, up to the comma behind the
// last, and returns how many. It may take none.
func (f *flow) elements(p place, n, depth int) (many int) {
	b := f.w.rest()
	b = b[:min(len(b), readSize, f.sizes.value)]
	s := f.s
	s.reset(b)
	end := 0
	for i := 0; i < len(b); {
		if i = s.fast(i, depth); i < 0 {
			break
		}
		if i = blanks(b, i); i == len(b) || b[i] != ',' && b[i] != ']' {
			break
		}
		many++
		if end = i; b[i] == ']' {
			break
		}
		i = blanks(b, i+1)
	}
	if many < 2 {
		return 0
	}
	f.look(end, func(m *Masker) {
		outer := m.hint(m.b, 0)
		for i := 0; i < end && !m.hints.quiet(m); n++ {
			if i = skipSpace(m.b, m.element(i, n, &p)); i < end && m.b[i] == ',' {
				i = skipSpace(m.b, i+1)
			}
		}
		m.unhint(outer)
	})
	return many
}
