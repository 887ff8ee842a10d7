package codec

import (
	"bytes"
	"cmp"
	"slices"
	"unicode/utf8"
)

// What follows looks at one text: a decoded string. Its spans are on top of
// m.spans, in offsets of the text, until place makes them offsets of the JSON
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
	for round := 0; len(m.spans) > base; round++ {
		m.merge(base)
		if round == maxRounds {
			m.spans[base].start, m.spans[base].end, m.spans[base].number = 0, len(text), false
			m.spans = m.spans[:base+1]
			return
		}
		kept, first := len(m.scratch), len(m.spans)
		m.scratch = m.replace(m.scratch, text, m.spans[base:])
		m.scan(m.scratch[kept:len(m.scratch):len(m.scratch)], name)
		m.scratch = m.scratch[:kept]
		if len(m.spans) == first {
			return
		}
		m.merge(first)
		m.back(base, first)
	}
}

// scan looks at text once, and reports whether it is JSON.
func (m *Masker) scan(text, name []byte) bool {
	if m.isJSON(text) {
		outer := m.b
		m.b, m.layer = text, m.layer+1
		for i := skipSpace(text, 0); i < len(text); {
			i = skipSpace(text, m.walk(i, nil, areaNone))
		}
		m.b, m.layer = outer, m.layer-1
		return true
	}
	if name != nil {
		m.text = text
		for i, d := range m.members {
			if d != nil && d.Under(name, text) {
				m.detector = i
				m.note(0, len(text))
			}
		}
	}
	m.find(text)
	return false
}

// find runs the detectors on text.
func (m *Masker) find(text []byte) {
	m.text = text
	for i, d := range m.detectors {
		m.detector = i
		d.Find(text, m.found)
	}
}

// note adds what the detector at work has found. What is cut off a character
// would not be text any more; and a mark is no finding.
func (m *Masker) note(start, end int) {
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
		m.spans = append(m.spans, span{start: start, end: end, detector: m.detector, length: end - start})
	}
}

// inMark reports whether m.text[start:end] is part of a mark.
func (m *Masker) inMark(start, end int) bool {
	from := max(0, start-m.longest)
	n := bytes.LastIndexByte(m.text[from:start+1], '[')
	if n < 0 {
		return false
	}
	n += from
	for _, mark := range m.marks {
		if n+len(mark) >= end && hasPrefix(m.text[n:], mark) {
			return true
		}
	}
	return false
}

// merge sorts m.spans[base:] and makes one of those that overlap.
func (m *Masker) merge(base int) {
	spans := m.spans[base:]
	if len(spans) < 2 {
		return
	}
	slices.SortStableFunc(spans, func(a, b span) int { return cmp.Or(a.start-b.start, b.end-a.end) })
	n := 1
	for _, s := range spans[1:] {
		last := &spans[n-1]
		if s.start >= last.end {
			spans[n] = s
			n++
			continue
		}
		last.end = max(last.end, s.end)
		last.number = last.number && s.number
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
			end := mark + len(m.mark(s))
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

// place turns offsets in the text of a string into offsets in the JSON where the
// string stands as raw from start on. A part of an escape counts as all of it.
func place(spans []span, raw []byte, start int, escaped bool) {
	if !escaped {
		for i := range spans {
			spans[i].start += start + 1
			spans[i].end += start + 1
		}
		return
	}
	at, decoded := 1, 0 // the same place in raw and in the text
	// advance goes to the escape or byte that the offset to lies in, or starts with.
	advance := func(to int, behind bool) int {
		for decoded < to {
			size, n := 1, 1
			if raw[at] == '\\' {
				var r rune
				r, size = unescape(raw[at:])
				n = utf8.RuneLen(r)
			}
			if !behind && decoded+n > to {
				break
			}
			at += size
			decoded += n
		}
		return start + at
	}
	for i := range spans {
		spans[i].start = advance(spans[i].start, false)
		spans[i].end = advance(spans[i].end, true)
	}
}
