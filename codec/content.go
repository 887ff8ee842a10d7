package codec

import (
	"bytes"
	"errors"
	"io"
	"unicode/utf8"
)

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
	t.in.w.release()
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

	raw     []byte // of the string: what is not decided
	rawAt   int    // where in raw that begins
	decoded int64  // bytes of text that have been read,
	done    int64  // and those that are decided
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
	blocks := 3 // from here on, it is read in blocks
	if !inBlocks {
		blocks = len(b)
	}
	for i < len(b) && n+utf8.UTFMax <= len(dst) {
		if i >= blocks {
			blocks = i + aBlock
			if part := b[:min(len(b), i+len(dst)-n)]; len(part) >= blocks {
				end := stringBlocks(part, i)
				if end < 0 { // where it is no UTF-8 is to be found
					blocks = len(b)
				} else if end >= blocks {
					read, wrote := unquoteBlocks(dst[n:], b[i:end])
					i, n = i+read, n+wrote
					// A character is not cut. What goes on behind anything else, such as an escape, is a fault.
					if start := runeStart(b, i); start < i && b[start] >= utf8.RuneSelf {
						i, n = start, n-(i-start)
					}
					blocks = i + aBlock
				}
			}
			continue
		}
		k := plain(b[i:min(len(b), i+len(dst)-n, blocks)])
		n += copy(dst[n:], b[i:i+k])
		if i += k; i == len(b) || i >= blocks || n+utf8.UTFMax > len(dst) {
			continue
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
		i, n = i+size, n+utf8.EncodeRune(dst[n:n+utf8.UTFMax], r)
	}
	return i, n, ""
}

// take goes on by i bytes of the string, which are n of the text.
func (t *content) take(i, n int) {
	if t.rawAt > len(t.raw)/2 {
		t.raw = t.raw[:copy(t.raw, t.raw[t.rawAt:])]
		t.rawAt = 0
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
	raw := t.raw[t.rawAt:]
	if t.done += int64(n); t.done < t.decoded {
		beside := beside{raw: raw}
		raw = raw[:beside.to(n, true)]
	}
	t.rawAt += len(raw)
	t.f.cost.raw -= len(raw)
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
			t.replace(b, span{detector: t.f.m.fieldMark(), kind: inText})
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
			for f.space() && (f.next() == '{' || f.next() == '[') && (f.lines() || f.value(place{states: len(f.m.states)}, 1, false)) {
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

// lines takes all objects and arrays that are in the window, one behind the other, and
// reports whether it has: of JSON lines, many are there at a time.
func (f *flow) lines() bool {
	b := f.w.rest()
	b = b[:min(len(b), readSize, f.sizes.value)]
	s := f.s
	s.reset(b)
	many, end := 0, 0
	for i := 0; i < len(b) && (b[i] == '{' || b[i] == '['); i = blanks(b, i) {
		if i = s.fast(i, 1); i < 0 {
			break
		}
		many++
		end = i
	}
	if many < 2 {
		return false
	}
	f.look(end, func(m *Masker) {
		outer := m.hint(m.b, 0)
		for i := 0; i < end && !m.hints.quiet(m); {
			i = skipSpace(m.b, m.walk(i, &place{states: len(m.states)}))
		}
		m.unhint(outer)
	})
	return true
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
		c.replace(m.b[c.at:end-1], span{detector: m.fieldMark(), kind: inText})
	}
	m.spans = append(m.spans, c.spans...)
}
