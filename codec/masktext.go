package codec

import (
	"bytes"
	"cmp"
	"slices"
	"unicode/utf8"
)

// What follows looks at one text: a decoded string. Its spans are on top of
// m.spans, in offsets of the text, until put makes them offsets of the JSON
// that the string stands in.

// look adds what is to be replaced in text, which is the value of the member of
// that name (nil if it is of none).
//
// What has been masked no longer hides its neighbours: a number behind it may
// now begin where a number may begin. So a text is looked at, as masked, until
// nothing more is found. In JSON each string comes to rest by itself.
func (m *Masker) look(text, name []byte) {
	base := len(m.spans)
	if m.scan(text, name) {
		m.merge(base)
		return
	}
	m.settle(base, text, name)
}

// settle looks again at text, in which m.spans[base:] were found.
func (m *Masker) settle(base int, text, name []byte) {
	for round := 0; len(m.spans) > base; round++ {
		m.merge(base)
		if s := m.spans[base]; s.start == 0 && s.end == len(text) { // nothing is left but a mark
			return
		}
		if round == maxRounds {
			m.spans[base].start, m.spans[base].end, m.spans[base].kind = 0, len(text), inText
			m.spans = m.spans[:base+1]
			return
		}
		kept, first := len(m.scratch), len(m.spans)
		size := len(text)
		for i := range m.spans[base:] {
			s := &m.spans[base+i]
			size += m.markLen(s) - (s.end - s.start)
		}
		if size > 4*aroundMark && !beginsJSON(text) { // which may be JSON as masked
			m.scratch = slices.Grow(m.scratch, min(size, (first-base)*3*aroundMark))
			m.scanMarks(text, base, first)
		} else {
			m.scratch = m.replace(m.scratch, text, 0, m.spans[base:])
			m.scan(m.scratch[kept:len(m.scratch):len(m.scratch)], name)
		}
		m.scratch = m.scratch[:kept]
		if len(m.spans) == first {
			return
		}
		m.merge(first)
		m.back(base, first)
	}
}

// beginsJSON reports text that begins as what isJSON is asked for.
func beginsJSON(text []byte) bool {
	i := skipSpace(text, 0)
	return i < len(text) && (text[i] == '{' || text[i] == '[' || text[i] == '"')
}

// aroundMark is how much of a long text is looked at again on either side of
// what was masked, in bytes.
const aroundMark = 2 << 10

// scanMarks looks at the surroundings of the marks of m.spans[base:first] in text
// with these spans replaced. Only they are written.
func (m *Masker) scanMarks(text []byte, base, first int) {
	kept := len(m.scratch)
	grown := 0           // how much longer the text is with marks, up to here
	from, behind := 0, 0 // where in it what is to be looked at begins, and in text how far it is written
	look := func(end int) {
		m.scratch = append(m.scratch, text[behind:end]...)
		at := len(m.spans)
		m.find(m.scratch[kept:len(m.scratch):len(m.scratch)], nil)
		for i := range m.spans[at:] {
			m.spans[at+i].start += from
			m.spans[at+i].end += from
		}
		m.scratch = m.scratch[:kept]
	}
	for i := base; i < first; i++ {
		s := m.spans[i] // look may move it
		start := s.start + grown
		if i == base || start-aroundMark > behind+grown+aroundMark {
			if i > base {
				look(behind + aroundMark)
			}
			from = max(0, start-aroundMark)
			behind = from - grown
		}
		m.scratch = m.appendMark(append(m.scratch, text[behind:s.start]...), &s)
		behind = s.end
		grown += m.markLen(&s) - (s.end - s.start)
	}
	look(min(len(text), behind+aroundMark))
}

// scan looks at text once, and reports whether it is JSON.
func (m *Masker) scan(text, name []byte) bool {
	if m.isJSON(text) {
		outer := m.b
		m.b, m.layer = text, m.layer+1
		hints := m.hint(text, 0)
		for i := skipSpace(text, 0); i < len(text) && !m.hints.quiet(m); {
			i = skipSpace(text, m.walk(i, &place{states: len(m.states)}))
		}
		m.unhint(hints)
		m.b, m.layer = outer, m.layer-1
		return true
	}
	m.find(text, name)
	return false
}

// find has the finder look at text, which is the value of the member of that
// name (nil if it is of none).
func (m *Masker) find(text, name []byte) {
	if len(text) < m.least.text {
		return
	}
	m.text, m.markless = text, [2]int{}
	m.finder.Find(text, m.found)
	if name != nil {
		m.finder.Under(name, text, m.found)
	}
}

// note adds what a detector has found. What is cut off a character would not be
// text any more; and a mark is no finding.
func (m *Masker) note(detector, start, end int) {
	text := m.text
	if start < 0 || end <= start || end > len(text) {
		return
	}
	for start > 0 && !utf8.RuneStart(text[start]) {
		start--
	}
	for end < len(text) && !utf8.RuneStart(text[end]) {
		end++
	}
	if !m.inMark(start, end) {
		m.spans = append(m.spans, span{start: start, end: end, detector: int16(detector), length: end - start})
	}
}

// inMark reports whether m.text[start:end] is part of a mark.
func (m *Masker) inMark(start, end int) bool {
	if start == 0 && m.text[0] != '[' {
		return false
	}
	from := max(0, start-m.longest)
	if m.noMark(from, start) {
		return false
	}
	n := bytes.LastIndexByte(m.text[from:start+1], '[')
	if n < 0 {
		return false
	}
	n += from
	for _, mark := range m.marks {
		body := mark[:len(mark)-1]
		if !hasPrefix(m.text[n:], body) {
			continue
		}
		i := n + len(body)
		if i < len(m.text) && m.text[i] == ' ' { // its number
			for i++; i < len(m.text) && '0' <= m.text[i] && m.text[i] <= '9'; i++ {
			}
		}
		if i < len(m.text) && m.text[i] == ']' && i+1 >= end {
			return true
		}
	}
	return false
}

// noMark reports that no mark begins in m.text[from:to+1]. It looks ahead, for the
// next finding is near.
func (m *Masker) noMark(from, to int) bool {
	known := &m.markless
	if from < known[0] || from > known[1] {
		*known = [2]int{from, from}
	}
	if to >= known[1] {
		ahead := m.text[known[1]:min(len(m.text), to+aroundMark)]
		n := bytes.IndexByte(ahead, '[')
		if n < 0 {
			n = len(ahead)
		}
		known[1] += n
	}
	return to < known[1]
}

// merge sorts m.spans[base:] and makes one of those that overlap.
func (m *Masker) merge(base int) {
	spans := m.spans[base:]
	apart := 1
	for apart < len(spans) && spans[apart-1].start <= spans[apart-1].end && spans[apart-1].end <= spans[apart].start {
		apart++
	}
	if apart >= len(spans) { // as they mostly are, and may be thousands
		return
	}
	if inOrder := func(a, b span) int { return cmp.Or(a.start-b.start, b.end-a.end) }; !slices.IsSortedFunc(spans, inOrder) {
		slices.SortStableFunc(spans, inOrder)
	}
	n := 1
	for _, s := range spans[1:] {
		last := &spans[n-1]
		if s.start >= last.end {
			spans[n] = s
			n++
			continue
		}
		last.end = max(last.end, s.end)
		if last.kind != s.kind {
			last.kind = inText
		}
		if s.length > last.length || s.length == last.length && s.detector < last.detector {
			last.detector, last.length = s.detector, s.length
		}
	}
	m.spans = m.spans[:base+n]
}

// back makes offsets in a text of m.spans[first:], which are offsets in that
// text as masked by m.spans[base:first]. What lies in a mark becomes all that
// the mark stands for.
func (m *Masker) back(base, first int) {
	marked := m.spans[base:first]
	at, src := 0, 0 // the same place as masked and in the text, behind a mark
	to := func(i int, behind bool) int {
		for len(marked) > 0 {
			s := marked[0]
			mark := at + s.start - src // where it begins
			if i < mark || behind && i == mark {
				break
			}
			end := mark + m.markLen(&s)
			if i < end {
				if behind {
					return s.end
				}
				return s.start
			}
			if behind && i == end {
				return s.end
			}
			at, src, marked = end, s.end, marked[1:]
		}
		return src + i - at
	}
	for i := first; i < len(m.spans); i++ {
		m.spans[i].start = to(m.spans[i].start, false)
		m.spans[i].end = to(m.spans[i].end, true)
	}
}

// put turns offsets in the text of a string into offsets in the JSON where the
// string stands as raw from start on. A part of an escape counts as all of it.
func put(spans []span, raw []byte, start int, escaped bool) {
	start++
	if !escaped {
		for i := range spans {
			spans[i].start += start
			spans[i].end += start
		}
		return
	}
	b := beside{raw: raw[1 : len(raw)-1]}
	for i := range spans {
		spans[i].start = start + b.to(spans[i].start, false)
		spans[i].end = start + b.to(spans[i].end, true)
	}
}

// A beside is a place in the inside of a string, and the same one in the text that it
// stands for.
type beside struct {
	raw     []byte
	at      int // in raw
	decoded int // in the text
	blocks  int // from here on, raw is gone over in blocks
}

// stride is how many bytes a beside goes over at a time.
const stride = 4 << 10

// to goes on to the escape or byte of raw that the byte decoded of the text lies in, or
// starts with; or behind it. It returns where in raw that is.
func (b *beside) to(decoded int, behind bool) int {
	for b.decoded < decoded {
		raw, left := b.raw[b.at:], decoded-b.decoded
		if inBlocks && left > stride && b.at >= b.blocks {
			var text [stride]byte
			i, n := unquoteBlocks(text[:], raw[:min(len(raw), stride)])
			b.at += i
			b.decoded += n
			b.blocks = b.at + aBlock // here is what it leaves to us
			continue
		}
		if raw[0] != '\\' {
			n := bytes.IndexByte(raw[:left], '\\')
			if n < 0 {
				n = left
			}
			b.at += n
			b.decoded += n
			continue
		}
		size, n := 2, 1
		if raw[1] == 'u' {
			var r rune
			r, size = unescape(raw)
			n = utf8.RuneLen(r)
		}
		if !behind && b.decoded+n > decoded {
			break
		}
		b.at += size
		b.decoded += n
	}
	return b.at
}
