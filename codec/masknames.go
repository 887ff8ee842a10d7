package codec

import (
	"hash/maphash"
	"slices"
)

// memberName looks at the name m.b[start:end] of a member, and reports 1 if
// something in it is masked.
func (m *Masker) memberName(start, end int, name []byte, escaped escapes) int {
	if escaped != others && m.hints.none(start, end) || m.cleared.has(name) {
		return 0
	}
	base := len(m.spans)
	m.str(start, end, escaped, &place{states: len(m.states), late: true})
	if len(m.spans) == base {
		m.name = append(m.name[:0], name...)
		m.cleared.add(name)
		return 0
	}
	for i := range m.spans[base:] {
		m.spans[base+i].kind = inName
	}
	return 1
}

// A masked name is m.b[start:end], quotes included; last is the last of its spans.
type masked struct{ start, end, last int }

// distinct numbers the marks in the names of the object at i, which has so many, so
// that no two of them are the same. m.spans[first:] are those in the object.
func (m *Masker) distinct(i, names, first int) {
	// What was held comes late, and may be JSON with names of its own.
	byStart := func(a, b span) int { return a.start - b.start }
	if spans := m.spans[first:]; !slices.IsSortedFunc(spans, byStart) {
		slices.SortStableFunc(spans, byStart)
	}
	m.taken.empty(names)
	m.masked = m.masked[:0]
	at := first
	for i = skipSpace(m.b, i+1); m.b[i] != '}'; {
		s := masked{i, skipString(m.b, i), -1}
		for at < len(m.spans) && (m.spans[at].kind != inName || m.spans[at].start < s.start) {
			at++
		}
		for k := at; k < len(m.spans) && m.spans[k].kind == inName && m.spans[k].end < s.end; k++ {
			s.last = k
		}
		if s.last < 0 {
			m.take(m.b[s.start:s.end])
		} else {
			m.masked = append(m.masked, s)
		}
		i = m.behind(skipValue(m.b, skipSpace(m.b, skipSpace(m.b, s.end)+1)))
	}
	n := 1
	for _, s := range m.masked {
		from := s.last
		for from > first && m.spans[from-1].kind == inName && m.spans[from-1].start > s.start {
			from--
		}
		kept := len(m.scratch)
		for {
			m.scratch = m.replace(m.scratch[:kept], m.b[s.start:s.end], s.start, m.spans[from:s.last+1])
			if m.take(m.scratch[kept:]) {
				break
			}
			n++
			m.spans[s.last].n = int32(n)
		}
		m.scratch = m.scratch[:kept]
	}
}

// take reports whether no name of the object was the same as raw until now.
func (m *Masker) take(raw []byte) bool { return m.taken.add(maphash.Bytes(seed, m.decoded(raw))) }
