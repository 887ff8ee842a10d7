package codec

import (
	"bytes"
	"cmp"
	"hash/maphash"
	"math/bits"
	"slices"
)

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

// empty makes s an empty set with room for so many hashes.
func (s *hashes) empty(n int) {
	size := 1 << bits.Len(uint(2*n))
	s.slots, s.n = slices.Grow(s.slots[:0], size)[:size], 0
	clear(s.slots)
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
		now := Unquote(nil, m.replace(nil, m.b, 0, m.spans[base:]))
		switch {
		case o.taken.add(maphash.Bytes(seed, now)):
			return f.oneMore()
		case !masked && f.strict:
			return f.fail(CodeTooLarge, "a name is what another became when it was masked")
		case !masked:
			return true // in a string, names may be there twice
		}
		o.numbered++
		m.spans[len(m.spans)-1].n = int32(o.numbered)
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
	n, read := 0, 0
	for n == 0 {
		b := f.w.rest()
		b = b[:min(len(b), defaultFrame)]
		ended := f.w.err != nil
		switch n, read = f.scan(b, 0, read); {
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
