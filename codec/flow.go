package codec

import (
	"bytes"
	"cmp"
	"errors"
	"hash/maphash"
	"io"
	"slices"
	"unicode/utf8"
)

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

// A window is the part of a text that is in memory.
type window struct {
	read   func(p []byte) (int, error) // at least a byte, or an error; io.EOF at the end
	buf    []byte                      // behind at, what is not decided
	at     int
	kept   int   // so much in front of at stays
	size   int   // of buf, when more than a little is read
	passed int64 // bytes in front of at, from the beginning of the text
	err    error // of read; sticky
}

const readSize = 64 << 10

func (w *window) rest() []byte { return w.buf[w.at:] }

// pass goes on by n bytes.
func (w *window) pass(n int) {
	w.at += n
	w.passed += int64(n)
}

// more reads on, and reports whether there is more.
func (w *window) more() bool {
	if w.err != nil {
		return false
	}
	if cap(w.buf)-len(w.buf) < readSize {
		if from := max(0, w.at-w.kept); from >= readSize {
			w.buf = w.buf[:copy(w.buf, w.buf[from:])]
			w.at -= from
		} else {
			// What is longer than this at first is mostly as long as it may be.
			w.buf = append(make([]byte, 0, max(cap(w.buf)*5/4, w.size, 2*readSize)), w.buf...)
		}
	}
	n, err := w.read(w.buf[len(w.buf) : len(w.buf)+readSize])
	w.buf = w.buf[:len(w.buf)+n]
	w.err = err
	return n > 0
}

// need reads on until n bytes are there, and reports whether they are.
func (w *window) need(n int) bool {
	for len(w.rest()) < n {
		if !w.more() {
			return false
		}
	}
	return true
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
		m.blobs = m.blobs[:0]
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
// behind b, and -1 if there is a fault in it.
func (f *flow) scan(b []byte, depth int) int {
	s := f.s
	s.reset(b)
	if n := s.fast(0, depth); n > 0 {
		return n
	}
	s.reset(b)
	s.lax, s.depth = !f.strict, depth
	ok := s.value()
	switch {
	case ok && s.fault.code == 0:
		return s.i
	case !ok && s.fault.code == CodeParse && s.fault.offset+longestEscape >= len(b):
		return 0
	}
	return -1
}

// complete returns the length of the value that begins here, or 0 if it is too
// long to be looked at as a whole.
func (f *flow) complete(depth int) (n int, ok bool) {
	for {
		b := f.w.rest()
		b = b[:min(len(b), f.sizes.value)]
		ended := f.w.err != nil
		if len(b) > 0 {
			n = f.scan(b, depth)
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
		f.look(n, func(m *Masker) {
			outer := m.hint(m.b, 0)
			if !m.hints.quiet(m) {
				m.walk(0, p)
			}
			m.unhint(outer)
		})
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

// An outline knows where containers end, by their brackets alone. Each byte is
// looked at once for it, however deep it lies.
type outline struct {
	at       int64           // what is in front has been looked at
	open     []int64         // where the containers under way begin
	ended    map[int64]int64 // the end of others by their beginning, but for short ones
	inString bool
	escaped  bool // the next byte is behind a backslash
}

// shortContainer is how long a container is at most that is scanned without being
// asked for, in bytes.
const shortContainer = 4 << 10

// isLong reports whether the container that begins here is too long to be looked
// at as a whole. If it is not, all of it is in the window, or the text ends in it.
func (f *flow) isLong() bool {
	o, start := &f.outline, f.w.passed
	if o.at <= start {
		*o = outline{at: start, open: o.open[:0], ended: o.ended}
		clear(o.ended)
	} else if end, ok := o.ended[start]; ok {
		return end-start > int64(f.sizes.value)
	} else if _, ok := slices.BinarySearch(o.open, start); !ok {
		return false // it has ended, and is short
	}
	for o.at-start <= int64(f.sizes.value) {
		b := f.w.buf[f.w.at+int(o.at-start):]
		if len(b) == 0 {
			if !f.w.more() {
				return false
			}
			continue
		}
		if o.look(b[:min(len(b), readSize)], start, int64(min(f.sizes.value, shortContainer))) {
			return o.at-start > int64(f.sizes.value)
		}
	}
	return true
}

// look goes over b, and stops behind the container that begins at start: then it
// reports true. It does not remember where those end that are not over short bytes.
func (o *outline) look(b []byte, start, short int64) bool {
	for i := 0; i < len(b); i++ {
		if o.escaped {
			o.escaped = false
			continue
		}
		if o.inString {
			if i += plain(b[i:]); i == len(b) {
				break
			}
			o.inString, o.escaped = b[i] != '"', b[i] == '\\'
			continue
		}
		switch b[i] {
		case '"':
			o.inString = true
		case '{', '[':
			o.open = append(o.open, o.at+int64(i))
		case '}', ']':
			n := len(o.open) - 1
			if n < 0 {
				continue
			}
			begin, end := o.open[n], o.at+int64(i)+1
			o.open = o.open[:n]
			if begin == start {
				o.at = end
				return true
			}
			if end-begin > short {
				if o.ended == nil {
					o.ended = map[int64]int64{}
				}
				o.ended[begin] = end
			}
		}
	}
	o.at += int64(len(b))
	return false
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
			inner := place{states: len(m.states), field: p.field}
			m.states = m.fields.element(m.states, p.states, n)
			i = skipSpace(m.b, m.walk(i, inner))
			m.states = m.states[:inner.states]
			if i < end && m.b[i] == ',' {
				i = skipSpace(m.b, i+1)
			}
		}
		m.unhint(outer)
	})
	return many
}

// An object under way that is too long to be held.
type longObject struct {
	place
	names       hashes // strict only
	taken       hashes // of names with marks in them
	numbered    int    // the last number of a mark in a name
	media, text bool   // what has been said of data and blob so far
}

// hashes are a set, by open addressing.
type hashes struct {
	slots []uint64
	n     int
}

// add reports whether h is new.
func (s *hashes) add(h uint64) bool {
	h |= 1 // 0 is a free slot
	if 2*(s.n+1) > len(s.slots) {
		old := s.slots
		*s = hashes{slots: make([]uint64, max(2*len(old), 64))}
		for _, h := range old {
			if h != 0 {
				s.add(h)
			}
		}
	}
	mask := uint64(len(s.slots) - 1)
	for at := h >> 1 & mask; ; at = (at + 1) & mask {
		switch s.slots[at] {
		case 0:
			s.slots[at] = h
			s.n++
			return true
		case h:
			return false
		}
	}
}

func (f *flow) object(p place, depth int) bool {
	if depth > maxDepth {
		return f.fail(CodeInvalid, "nested too deep")
	}
	f.keep(1)
	o := longObject{place: p, numbered: 1}
	defer func() { f.cost.names -= o.names.n + o.taken.n }()
	if !f.space() {
		return false
	}
	for f.next() != '}' {
		if f.next() != '"' {
			return f.fail(CodeParse, "expected a name in an object")
		}
		name, ok := f.name(&o)
		if !ok || !f.space() {
			return false
		}
		if f.refused != "" && depth == 2 && string(name) == f.refused {
			return f.fail(CodeInvalid, mustBeHeld)
		}
		if f.next() != ':' {
			return f.fail(CodeParse, "expected : behind a name")
		}
		f.keep(1)
		if !f.space() || !f.member(&o, name, depth) || !f.behind('}', "expected a name in an object", "expected , or } in an object") {
			return false
		}
	}
	f.keep(1)
	return true
}

// name takes the name of a member, and returns it.
func (f *flow) name(o *longObject) (name []byte, ok bool) {
	n, ok := f.complete(0)
	if !ok {
		return nil, false
	}
	if n == 0 {
		return nil, f.tooLong("a name is too long")
	}
	raw := f.w.rest()[:n]
	name = Unquote(nil, raw)
	if f.strict {
		f.s.reset(raw)
		if f.s.str(); f.s.lone {
			return nil, f.fail(CodeInvalid, "half a surrogate pair in a name")
		}
		if !o.names.add(maphash.Bytes(seed, name)) {
			return nil, f.fail(CodeInvalid, "duplicate name")
		}
		if !f.oneMore() {
			return nil, false
		}
	}
	f.look(n, func(m *Masker) { ok = f.mark(m, o, name) })
	return name, ok
}

// oneMore counts a name.
func (f *flow) oneMore() bool {
	if f.cost.names++; f.cost.names > maxNames {
		return f.fail(CodeTooLarge, "too many names in a frame that is too long to be held")
	}
	return true
}

// mark masks a name. No two names of an object may become the same, and what has
// gone cannot be numbered any more.
func (f *flow) mark(m *Masker, o *longObject, name []byte) bool {
	base := len(m.spans)
	masked := m.memberName(0, len(m.b), name, others) > 0
	if m.Leave || !masked && !bytes.Contains(name, []byte("[masked:")) {
		return true
	}
	m.merge(base)
	for {
		now := Unquote(nil, m.replaceAt(m.b, 0, m.spans[base:]))
		switch {
		case o.taken.add(maphash.Bytes(seed, now)):
			return f.oneMore()
		case !masked && f.strict:
			return f.fail(CodeTooLarge, "a name is what another became when it was masked")
		case !masked:
			return true // in a string, names may be there twice
		}
		o.numbered++
		m.spans[len(m.spans)-1].n = o.numbered
	}
}

// member takes the value of a member.
func (f *flow) member(o *longObject, name []byte, depth int) bool {
	m, c := f.m, f.next()
	if m == nil {
		return f.value(place{}, depth, true)
	}
	inner := place{name: name, area: o.area.inner(name), states: len(m.states), field: o.field || m.fields.named(name)}
	m.states = m.fields.member(m.states, o.states, name)
	defer func() { m.states = m.states[:inner.states] }()
	switch {
	case c != '{' && c != '[' && o.area.opaque(name):
		return f.untouched(depth)
	case c != '"':
	case string(name) == "data":
		if o.media && !(inner.field || m.fields.ends(m.states[inner.states:])) {
			return f.untouched(depth)
		}
		inner.name = nil // as a value that was held has none
	case string(name) == "blob":
		return f.blob(o, inner)
	case string(name) == "type", string(name) == "mimeType":
		n, ok := f.complete(depth)
		if !ok {
			return false
		}
		if n > 0 {
			raw := f.w.rest()[:n]
			if string(name) == "type" {
				o.media = o.media || isMediaType(raw)
			} else {
				o.media = o.media || isMediaMIME(raw)
				o.text = o.text || isTextMIME(raw)
			}
		}
	}
	return f.value(inner, depth, true)
}

// untouched takes a value that is only checked.
func (f *flow) untouched(depth int) bool {
	n, ok := f.complete(depth)
	if n > 0 || !ok {
		f.keep(n)
		return ok
	}
	if f.next() != '"' {
		return f.tooLong("a number is too long")
	}
	return f.skipString()
}

// blob takes the string of a blob. Its base64 is looked at as a whole.
func (f *flow) blob(o *longObject, p place) bool {
	m := f.m
	field := p.field || m.fields.ends(m.states[p.states:])
	if o.media && !field {
		return f.untouched(0)
	}
	n := 0
	for n == 0 {
		b := f.w.rest()
		b = b[:min(len(b), defaultFrame)]
		ended := f.w.err != nil
		switch n = f.scan(b, 0); {
		case n == 0 && len(b) == defaultFrame && m.Leave:
			return f.untouched(0)
		case n == 0 && len(b) == defaultFrame:
			return f.fail(CodeTooLarge, "a blob is too large to be looked at")
		case n < 0 || n == 0 && ended:
			return f.fail(CodeParse, cmp.Or(f.s.fault.reason, "string without an end"))
		case n == 0:
			f.w.need(min(2*len(b), defaultFrame))
		}
	}
	if !f.delimited(n) {
		return false
	}
	f.look(n, func(m *Masker) { m.judge(held{end: n, field: field, media: o.media, text: o.text, unsure: true}, true) })
	return true
}

// str takes a long string.
func (f *flow) str(p place) bool {
	if f.m == nil {
		return f.skipString()
	}
	f.keep(1)
	t := newContent(f)
	if p.field {
		t.field()
	} else {
		t.look()
	}
	return f.endString(t)
}

// skipString takes a long string that is only checked.
func (f *flow) skipString() bool {
	f.keep(1)
	t := newContent(f)
	for t.in.w.more() {
		t.in.keep(len(t.in.w.rest()))
	}
	return f.endString(t)
}

func (f *flow) endString(t *content) bool {
	if t.broken {
		f.cut = t.raw[t.rawAt:]
		return false
	}
	f.keep(1)
	return true
}

// A content is what a long string of a flow stands for, in pieces.
type content struct {
	f      *flow // of the string; its window is behind the opening quote
	in     flow  // of the text
	ended  bool  // the closing quote is next
	broken bool  // f has a fault in the string

	raw      []byte   // of the string: what is not decided
	rawAt    int      // where in raw that begins
	escapes  []escape // in it
	escapeAt int      // the first of them
	decoded  int64    // bytes of text that have been read,
	done     int64    // and those that are decided
}

// An escape is one in the string.
type escape struct {
	at       uint32 // in the text, its lowest bits
	raw, own uint8  // bytes in the string and in the text
}

// errCut is the end of a text whose string has a fault.
var errCut = errors.New("the string has a fault")

func newContent(f *flow) *content {
	t := &content{f: f}
	t.in = flow{m: f.m, s: f.s, sizes: f.sizes, to: t, layer: f.layer + 1, gone: f.gone, cost: f.cost}
	t.in.w = window{read: t.read, size: f.sizes.value + 2*readSize, kept: f.sizes.margin + utf8.UTFMax}
	return t
}

// read is the source of in's window.
func (t *content) read(dst []byte) (n int, err error) {
	w := &t.f.w
	for {
		switch {
		case t.broken && t.cut():
			return 0, errCut
		case t.broken: // what was taken for JSON in a text is none: it is text
			return 0, io.EOF
		case t.ended:
			return 0, io.EOF
		}
		i, n, fault := t.unquote(dst, w.rest(), w.err == nil)
		t.take(i, n)
		if fault != "" {
			t.broken = true
			t.f.fail(CodeParse, fault)
		}
		if t.f.cost.raw > maxRaw {
			t.broken = true
			t.f.fail(CodeTooLarge, "too many escapes within escapes")
		}
		if n > 0 {
			return n, nil
		}
		last := w.err != nil
		if !t.ended && !t.broken && !w.more() && (last || len(w.rest()) == 0) {
			t.broken = true
			t.f.fail(CodeParse, "string without an end")
		}
	}
}

// cut reports whether the fault is the frame's, so that nothing more of it passes.
func (t *content) cut() bool {
	return t.f.strict || t.f.fault.code == CodeTooLarge || t.f.w.err != nil && t.f.w.err != io.EOF
}

// unquote reads i bytes of b, which goes on if more is true, as n of what they
// stand for. It ends in front of the closing quote, which it notes, and in front
// of a fault.
func (t *content) unquote(dst, b []byte, more bool) (i, n int, fault string) {
	for i < len(b) && n+utf8.UTFMax <= len(dst) {
		k := plain(b[i:min(len(b), i+len(dst)-n)])
		n += copy(dst[n:], b[i:i+k])
		if i += k; i == len(b) || n+utf8.UTFMax > len(dst) {
			break
		}
		c := b[i]
		if c == '"' {
			t.ended = true
			break
		}
		if c < 0x20 {
			return i, n, "control character in a string"
		}
		if c != '\\' && c < utf8.RuneSelf { // plain stopped early
			dst[n] = c
			i, n = i+1, n+1
			continue
		}
		if more && len(b)-i < longestEscape { // what comes next decides
			break
		}
		size, r := oneRune(b[i:])
		if size == 0 {
			return i, n, "invalid escape or UTF-8 in a string"
		}
		own := utf8.EncodeRune(dst[n:n+utf8.UTFMax], r)
		if c == '\\' {
			t.escapes = append(t.escapes, escape{uint32(t.decoded) + uint32(n), uint8(size), uint8(own)})
		}
		i, n = i+size, n+own
	}
	return i, n, ""
}

// take goes on by i bytes of the string, which are n of the text.
func (t *content) take(i, n int) {
	if t.rawAt > len(t.raw)/2 {
		t.raw = t.raw[:copy(t.raw, t.raw[t.rawAt:])]
		t.rawAt = 0
	}
	if t.escapeAt > len(t.escapes)/2 {
		t.escapes = t.escapes[:copy(t.escapes, t.escapes[t.escapeAt:])]
		t.escapeAt = 0
	}
	t.raw = append(t.raw, t.f.w.rest()[:i]...)
	t.f.cost.raw += i
	t.f.w.pass(i)
	t.decoded += int64(n)
}

// oneRune reads the escape or the character beyond ASCII at the start of b, and
// returns its length, or 0 if it is none.
func oneRune(b []byte) (size int, r rune) {
	if b[0] != '\\' {
		r, size = utf8.DecodeRune(b)
		if r == utf8.RuneError && size <= 1 {
			return 0, r
		}
		return size, r
	}
	if len(b) < 2 {
		return 0, r
	}
	if !simpleEscape[b[1]] {
		if _, ok := hex4(b[2:]); !ok || b[1] != 'u' {
			return 0, r
		}
	}
	r, size = unescape(b)
	return size, r
}

// own returns the bytes of the string that the next n of the text are.
func (t *content) own(n int) []byte {
	size := n
	t.done += int64(n)
	for t.escapeAt < len(t.escapes) && int32(t.escapes[t.escapeAt].at-uint32(t.done)) < 0 {
		e := t.escapes[t.escapeAt]
		size += int(e.raw) - int(e.own)
		t.escapeAt++
	}
	raw := t.raw[t.rawAt : t.rawAt+size]
	t.rawAt += size
	t.f.cost.raw -= size
	return raw
}

func (t *content) keep(b []byte)            { t.f.to.keep(t.own(len(b))) }
func (t *content) replace(b []byte, s span) { t.f.to.replace(t.own(len(b)), s) }
func (t *content) drop(b []byte)            { t.f.to.drop(t.own(len(b))) }

// field masks all of the text.
func (t *content) field() {
	w := &t.in.w
	for first := true; w.more(); first = false {
		b := w.rest()
		if first {
			t.replace(b, span{detector: len(t.f.m.marks) - 1, kind: inText})
		} else {
			t.drop(b)
		}
		w.pass(len(b))
	}
}

// look looks at the text: as JSON, as far as it is, and at the rest for what it is.
func (t *content) look() {
	f := &t.in
	if f.layer <= maxLayers && f.space() {
		switch f.next() {
		case '"':
			f.alone()
		case '{', '[':
			for f.space() && (f.next() == '{' || f.next() == '[') && f.value(place{states: len(f.m.states)}, 1, false) {
			}
		default:
			f.plain()
			return
		}
		if f.w.err != nil && f.w.err != io.EOF {
			return // it is cut, and whether it is JSON nobody knows
		}
	}
	if f.fault.code == CodeTooLarge && f.m.Leave { // the rest is not looked at
		f.keep(len(f.w.rest()))
		for f.w.more() {
			f.keep(len(f.w.rest()))
		}
		return
	}
	if f.fault.code == CodeTooLarge {
		t.broken = true
		t.f.fail(CodeTooLarge, f.fault.reason)
		return
	}
	f.plain()
}

// alone takes a string that is all of a text, and leaves any other.
func (f *flow) alone() {
	n, ok := f.complete(1)
	if !ok {
		return
	}
	for i := n; n > 0 && f.w.need(i+1); i++ {
		if c := f.w.rest()[i]; i == n+readSize || c != ' ' && c != '\t' && c != '\n' && c != '\r' {
			return
		}
	}
	if n > 0 && f.w.err != io.EOF {
		return
	}
	if f.value(place{states: len(f.m.states)}, 1, false) {
		f.space()
	}
}

// plain looks at all that is left, a window at a time. What it has passed before
// still stands in front of it.
func (f *flow) plain() {
	w, m := &f.w, f.m
	running := false // a finding reached the end of what was looked at: it goes on
	for context := inFront(w.buf[:w.at], f.sizes.margin); ; {
		all := w.need(f.sizes.window + f.sizes.margin)
		if !all && w.err != io.EOF {
			return // what is left is cut: nobody knows what it would have been
		}
		rest := w.rest()
		if len(rest) == 0 {
			return
		}
		if running {
			n := bytes.IndexAny(rest, separators)
			if running = n < 0; running {
				n = len(rest)
			}
			f.to.drop(rest[:n])
			w.pass(n)
			context = 0
			continue
		}
		core, ahead := len(rest), len(rest)
		if all {
			core, ahead = runeStart(rest, f.sizes.window), runeStart(rest, f.sizes.window+f.sizes.margin)
		}
		base, from := len(m.spans), w.at-context
		looked := w.buf[from : w.at+ahead : w.at+ahead]
		m.find(looked, nil)
		m.settle(base, looked, nil)
		at := context
		for _, s := range m.spans[base:] {
			s.start = max(s.start, at)
			if s.end <= s.start || s.start >= context+core {
				continue
			}
			f.to.keep(looked[at:s.start])
			f.to.replace(looked[s.start:s.end], s)
			at = s.end
			running = all && at == len(looked)
		}
		if at < context+core {
			f.to.keep(looked[at : context+core])
			at = context + core
		}
		m.spans = m.spans[:base]
		w.pass(at - context)
		context = inFront(looked[:at], f.sizes.margin)
	}
}

// inFront returns how much at the end of b is at most n bytes and no cut character.
func inFront(b []byte, n int) int {
	n = min(n, len(b))
	for n > 0 && !utf8.RuneStart(b[len(b)-n]) {
		n--
	}
	return n
}

// separators end what is masked of a finding that is too long to be looked at.
const separators = " \t\r\n\"'`,;<>{}()[]"

// runeStart returns the beginning of the character that b[n] is of.
func runeStart(b []byte, n int) int {
	if n >= len(b) {
		return len(b)
	}
	for n > 0 && !utf8.RuneStart(b[n]) {
		n--
	}
	return n
}

// A collector makes spans of edits.
type collector struct {
	at    int
	spans []span
}

func (c *collector) keep(b []byte) { c.at += len(b) }

func (c *collector) replace(b []byte, s span) {
	s.start, s.end = c.at, c.at+len(b)
	s.length = len(b)
	c.spans = append(c.spans, s)
	c.at = s.end
}

func (c *collector) drop(b []byte) {
	c.at += len(b)
	c.spans[len(c.spans)-1].end = c.at
}

// longString looks at the string m.b[start:end] as it would if it arrived in pieces.
func (m *Masker) longString(start, end int) {
	c := collector{at: start}
	f := flow{m: m, s: &m.check, sizes: m.sizes, to: &c, layer: m.layer, cost: &cost{}, w: window{buf: m.b[start:end:end], err: io.EOF}}
	if !f.str(place{states: len(m.states)}) { // it is JSON, so that it costs too much
		c.replace(m.b[c.at:end-1], span{detector: len(m.marks) - 1, kind: inText})
	}
	m.spans = append(m.spans, c.spans...)
}
