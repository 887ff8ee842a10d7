package detect

import (
	"bytes"
	"math/bits"
)

// patterns are programs that are looked for anywhere in a text.
type patterns struct {
	pinned  []*program  // match at the start only
	byFirst [256]uint32 // which of the first 32 of them can begin with a byte, by bits
	byHead  *longHeads  // with which three bytes they can begin; nil: with fewer
	others  []sought
	heads   int // how long the longest of their heads is, if each of them begins with one and none is pinned
}

// A sought is a program, and what tells that it is not at a place.
type sought struct {
	*program
	bits *heads     // with which three bytes it may begin; nil: with fewer
	five *longHeads // with which five; nil: with fewer, or too many
}

// A heads has a bit for the hash of each three bytes, letters' case apart.
type heads [1 << headBits / 64]uint64

const headBits = 12

// A longHeads is a larger heads, of up to five bytes: those that are not there are zeros.
type longHeads [1 << longHeadBits / 64]uint64

const longHeadBits = 17

func (h *longHeads) has(hash uint64) bool { return h[hash>>6]>>(hash&63)&1 != 0 }

// longHeadHash returns the hash of the five lowest bytes of k, letters' case apart.
func longHeadHash(k uint64) uint64 {
	return (k | folding) & 0xffffffffff * longHashMul >> (64 - longHeadBits)
}

const longHashMul = 0x9e3779b97f4a7c15

func (h *heads) has(hash uint32) bool { return h[hash>>6]>>(hash&63)&1 != 0 }

// headHash returns the hash of three bytes, which are the lowest of k.
func headHash(k uint32) uint32 { return (k | 0x202020) & 0xffffff * hashMul >> (32 - headBits) }

func (p *patterns) add(q *program) {
	if q.begin {
		if n := len(p.pinned); n < 32 {
			for c := range p.byFirst {
				if q.start.empty || q.start.first[c] {
					p.byFirst[c] |= 1 << n
				}
			}
		}
		if len(p.pinned) == 0 {
			p.byHead = new(longHeads)
		}
		p.pinned = append(p.pinned, q)
		if p.byHead != nil && !(&headsOf{long: p.byHead, left: 1 << 16, size: 3, longer: true}).from(q.start, 0, 0, true) {
			p.byHead = nil
		}
	} else {
		s := sought{program: q, bits: new(heads)}
		if h := (&headsOf{bits: s.bits, left: 1 << 16, size: 3}); !h.from(q.start, 0, 0, false) {
			s.bits = nil
		}
		s.five = new(longHeads)
		if h := (&headsOf{long: s.five, left: 1 << 17, size: 5}); !h.from(q.start, 0, 0, false) {
			s.five = nil
		}
		p.others = append(p.others, s)
	}
	p.heads = 0
	if len(p.pinned) > 0 {
		return
	}
	for _, s := range p.others {
		if s.head == nil {
			p.heads = 0
			return
		}
		p.heads = max(p.heads, len(s.head))
	}
}

// headAt returns where in text the first of the heads is, or -1.
func (p *patterns) headAt(text []byte) int {
	first := -1
	for _, s := range p.others {
		if n := bytes.Index(text, s.head); n >= 0 && (first < 0 || n < first) {
			first, text = n, text[:min(len(text), n+p.heads)]
		}
	}
	return first
}

// in reports whether one of p matches in text.
func (p *patterns) in(m *machine, text []byte) bool {
	if p.starts(m, text) {
		return true
	}
	m.fresh()
	for i := range p.others {
		if p.others[i].in(m, text) {
			return true
		}
	}
	return false
}

// starts reports whether one of p that is pinned matches text.
func (p *patterns) starts(m *machine, text []byte) bool {
	if len(text) >= 3 && p.byHead != nil && !p.byHead.has(longHeadHash(uint64(three(text[0], text[1], text[2])))) {
		return false
	}
	if len(text) > 0 {
		for mask := p.byFirst[text[0]]; mask != 0; mask &= mask - 1 {
			if p.pinned[bits.TrailingZeros32(mask)].is(m, text) {
				return true
			}
		}
	}
	for i, q := range p.pinned {
		if (i >= 32 || len(text) == 0) && q.is(m, text) {
			return true
		}
	}
	return false
}

// is reports whether p, which is pinned, matches text.
func (p *program) is(m *machine, text []byte) bool {
	if n := p.all; n != nil {
		return len(text) >= n.min && len(text) <= n.max && n.set.run(text) == len(text)
	}
	m.fresh()
	return m.match(p, text, 0)
}

func (s *sought) in(m *machine, text []byte) bool {
	if s.bits == nil {
		return m.search(s.program, text)
	}
	if len(text) < 3 || s.head != nil && !bytes.Contains(text, s.head) {
		return false
	}
	k := three(0, text[0], text[1])
	for i, c := range text[2:] {
		k = k>>8 | uint32(c)<<16
		if !s.bits.has(headHash(k)) || !s.start.first[text[i]] {
			continue
		}
		if s.five != nil && (len(text)-i < 5 || !s.five.has(longHeadHash(eightAt(text, i)))) {
			continue
		}
		if m.match(s.program, text, i) {
			return true
		}
	}
	return false
}

// headsOf collects the size bytes, three or five, with which a program can begin. Whether it
// matches anywhere is asked, not where: of a run in front, it is enough to see its
// last byte.
type headsOf struct {
	bits   *heads
	long   *longHeads // these, or else bits
	size   int
	left   int  // so many steps
	longer bool // the text does not end within three bytes
}

// from reports false if there are too many, or fewer bytes will do. The
// n bytes in front of the instruction are those of k; pinned tells that a run may
// not begin later.
func (h *headsOf) from(in *inst, k uint64, n int, pinned bool) bool {
	if h.left--; h.left < 0 {
		return false
	}
	if n == h.size {
		if h.long != nil {
			hash := longHeadHash(k)
			h.long[hash>>6] |= 1 << (hash & 63)
		} else {
			hash := headHash(uint32(k))
			h.bits[hash>>6] |= 1 << (hash & 63)
		}
		return true
	}
	switch in.op {
	case opMatch:
		return false
	case opEnd:
		if h.longer && pinned {
			return true
		}
	case opOpen:
		return h.from(in.next, k, n, pinned)
	case opAlt:
		for _, alt := range in.alts {
			if !h.from(alt, k, n, pinned) {
				return false
			}
		}
		return true
	case opText:
		for i := 0; i < len(in.text) && n < h.size; i++ {
			k |= uint64(in.text[i]) << (8 * n)
			n++
		}
		return h.from(in.next, k, n, true)
	case opSet:
		return h.each(in.set, k, n, in.next)
	case opRun:
		if n == 0 && !pinned && in.min <= 1 {
			if in.min == 0 {
				return h.from(in.next, k, n, false)
			}
			return h.each(in.set, k, n, in.next)
		}
		if in.min == 0 && !h.from(in.next, k, n, true) {
			return false
		}
		rest := *in
		rest.min, rest.max = max(0, in.min-1), in.max-1
		if in.max == 1 {
			return h.each(in.set, k, n, in.next)
		}
		return h.each(in.set, k, n, &rest)
	}
	return h.from(in.next, k, n, true)
}

func (h *headsOf) each(set *byteSet, k uint64, n int, next *inst) bool {
	var seen byteSet
	for c := range set {
		if f := byte(c) | 0x20; set[c] && !seen[f] {
			seen[f] = true
			if !h.from(next, k|uint64(f)<<(8*n), n+1, true) {
				return false
			}
		}
	}
	return true
}
