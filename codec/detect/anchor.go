package detect

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"maps"
	"math/bits"
	"regexp/syntax"
	"slices"
)

// An anchor is by what a place is known where an expression may match: four
// bytes, letters' case apart, or two where that would be too many fours.
type anchor struct {
	gram uint32
	pair string // if it is not empty, there is no gram
	back span   // from the anchor to where the match starts
	near around8
}

// An around8 is what is known of the eight bytes at an offset from an anchor:
// of each its bits that are the same in every match, letters' case apart.
type around8 struct {
	mask, bits uint64
	offset     int32
}

// surely returns what is known of the bytes of s around its place at, where the anchor is.
func (s sequence) surely(at int) (a around8) {
	first := max(0, min(at, len(s)-8))
	a.offset = int32(first - at)
	for i, set := range s[first:min(len(s), first+8)] {
		same, one := byte(0xff), byte(0)
		for c := range set {
			if set[c] {
				one = byte(c) | 0x20
			}
		}
		for c := range set {
			if set[c] {
				same &^= one ^ (byte(c) | 0x20)
			}
		}
		a.mask |= uint64(same) << (8 * i)
		a.bits |= uint64(one&same) << (8 * i)
	}
	return a
}

// anchors returns grams of which every match of re has one; nil if there are
// none that are worth looking for.
func anchors(re *syntax.Regexp) []anchor {
	elems := flatten(nil, re)
	var best []sequence
	var back span
	bestCost := maxCost
	var before span
	for k := range elems {
		if before.max-before.min > maxSlack {
			break
		}
		seqs := from(elems, k)
		if cost, ok := costOf(seqs); ok && cost < bestCost {
			best, bestCost, back = seqs, cost, before
		}
		w := width(elems[k])
		before = span{before.min + w.min, before.max + w.max}
	}
	var all []anchor
	for _, s := range best {
		// Only every other place in a text is looked at: one gram begins at an even
		// place if the match does, and one if it does not.
		for parity := range 2 {
			at, _ := s.rarest(parity)
			window := s[max(at, 0) : at+4]
			if at < 0 {
				window = append(sequence{&anyByte}, window...)
			}
			all = appendGrams(all, window, anchor{back: span{back.min + at, back.max + at}, near: s.surely(at)})
		}
	}
	if len(all) > manyGrams && len(best) == 1 {
		if at, pair := best[0].pair(); pair != "" {
			return []anchor{{pair: pair, back: span{back.min + at, back.max + at}}}
		}
	}
	slices.SortFunc(all, func(a, b anchor) int { return cmp.Compare(a.gram, b.gram) })
	return slices.Compact(all) // (?-i:[Aa]pi|API) has one gram twice
}

// pair returns two bytes that s has at that place and that are always the same.
func (s sequence) pair() (at int, pair string) {
	for i := 1; i < len(s); i++ {
		if a, b := s[i-1].only(), s[i].only(); a != 0 && b != 0 {
			return i - 1, string([]byte{a, b})
		}
	}
	return 0, ""
}

// only returns the byte that s has, or 0 if it has others.
func (s *byteSet) only() (b byte) {
	for c := range s {
		if s[c] && b != 0 {
			return 0
		}
		if s[c] {
			b = byte(c)
		}
	}
	return b
}

var anyByte = func() (s byteSet) {
	for c := range s {
		s[c] = true
	}
	return s
}()

const (
	// maxSlack bounds at how many places an expression is tried for one gram.
	maxSlack = 64
	// maxGrams bounds the grams of one sequence.
	maxGrams = 6000
	// manyGrams is how many grams an expression may have before two bytes are
	// looked for in their place: that takes a pass of its own.
	manyGrams = 1000
	// maxCost is how common an anchor may be, as a share of places in text.
	maxCost = 2e-3
)

// A sequence is the bytes that some matches have one behind the other.
type sequence []*byteSet

// flatten appends the parts of re that follow each other, groups opened.
func flatten(dst []*syntax.Regexp, re *syntax.Regexp) []*syntax.Regexp {
	switch re.Op {
	case syntax.OpCapture:
		return flatten(dst, re.Sub[0])
	case syntax.OpConcat:
		for _, sub := range re.Sub {
			dst = flatten(dst, sub)
		}
		return dst
	}
	return append(dst, re)
}

// from returns how elems[k:] can begin, in sequences of five bytes if they can be
// had, or four.
func from(elems []*syntax.Regexp, k int) []sequence {
	seqs := finite(elems[k])
	for k++; k < len(elems) && shortest(seqs) < 5; k++ {
		if more := finite(elems[k]); more != nil {
			seqs = product(seqs, more)
			continue
		}
		if set, low := repeats(elems[k]); set != nil && low > 0 {
			for range min(low, 5-shortest(seqs)) {
				seqs = product(seqs, []sequence{{set}})
			}
			return seqs
		}
		if first := firstOf(elems[k:]); first != nil {
			return product(seqs, []sequence{{first}})
		}
		return seqs
	}
	return seqs
}

func shortest(seqs []sequence) int {
	n := 5
	for _, s := range seqs {
		n = min(n, len(s))
	}
	return n
}

// finite returns what re matches, if that is few and no longer than a word.
func finite(re *syntax.Regexp) []sequence {
	if set := classOf(re); set != nil {
		return []sequence{{set}}
	}
	switch re.Op {
	case syntax.OpEmptyMatch, syntax.OpBeginText, syntax.OpEndText, syntax.OpBeginLine, syntax.OpEndLine, syntax.OpWordBoundary, syntax.OpNoWordBoundary:
		return []sequence{{}}
	case syntax.OpLiteral:
		var s sequence
		n := literal(re, &inst{op: opMatch})
		for i := range len(n.text) {
			var set byteSet
			c := n.text[i]
			set[c] = true
			if n.fold && 'a' <= c && c <= 'z' {
				set[c-'a'+'A'] = true
			}
			s = append(s, &set)
		}
		return []sequence{s}
	case syntax.OpCapture:
		return finite(re.Sub[0])
	case syntax.OpConcat:
		seqs := []sequence{{}}
		for _, sub := range re.Sub {
			if seqs = product(seqs, finite(sub)); seqs == nil {
				return nil
			}
		}
		return seqs
	case syntax.OpAlternate:
		var seqs []sequence
		for _, sub := range re.Sub {
			more := finite(sub)
			if more == nil {
				return nil
			}
			seqs = append(seqs, more...)
		}
		return seqs
	case syntax.OpQuest:
		if sub := finite(re.Sub[0]); sub != nil {
			return append([]sequence{{}}, sub...)
		}
	case syntax.OpRepeat:
		if low, high := bounds(re); low == high && low <= 4 {
			seqs := []sequence{{}}
			for range low {
				if seqs = product(seqs, finite(re.Sub[0])); seqs == nil {
					return nil
				}
			}
			return seqs
		}
	}
	return nil
}

const maxSequences = 200

func product(a, b []sequence) []sequence {
	if len(a)*len(b) > maxSequences {
		return nil
	}
	var seqs []sequence
	for _, s := range a {
		for _, t := range b {
			seqs = append(seqs, append(append(sequence{}, s...), t...))
		}
	}
	return seqs
}

// repeats returns the class that re, a repetition, is of, and how often it is there at least.
func repeats(re *syntax.Regexp) (set *byteSet, low int) {
	switch re.Op {
	case syntax.OpCapture:
		return repeats(re.Sub[0])
	case syntax.OpPlus, syntax.OpRepeat, syntax.OpStar, syntax.OpQuest:
		low, _ = bounds(re)
		return classOf(re.Sub[0]), low
	}
	return nil, 0
}

// firstOf returns the bytes with which elems can begin, or nil if they can be empty.
func firstOf(elems []*syntax.Regexp) *byteSet {
	c := &compiler{}
	n, err := c.inst(&syntax.Regexp{Op: syntax.OpConcat, Sub: elems}, &inst{op: opMatch, empty: true})
	if err != nil || n.empty {
		return nil
	}
	return &n.first
}

// rarest returns the place of the four bytes of s, at an even or an odd place in
// it, that are rarest in text. At -1, the first is any byte.
func (s sequence) rarest(parity int) (at int, cost float64) {
	cost = 1
	for i := -parity; i+4 <= len(s); i += 2 {
		if slices.ContainsFunc(s[max(i, 0):i+3], (*byteSet).escapes) {
			continue
		}
		c, grams := 1.0, 1
		if i < 0 {
			grams = 128
		}
		for _, set := range s[max(i, 0) : i+4] {
			var seen byteSet
			share, n := 0.0, 0
			for b := range set {
				if f := byte(b) | 0x20; set[b] && !seen[f] {
					seen[f] = true
					share += common(f)
					n++
				}
			}
			c *= min(share, 1)
			grams *= n
		}
		if grams <= maxGrams && c < cost {
			at, cost = i, c
		}
	}
	return at, cost
}

// costOf returns how often one of seqs is met in text.
func costOf(seqs []sequence) (cost float64, ok bool) {
	for _, s := range seqs {
		_, even := s.rarest(0)
		_, odd := s.rarest(1)
		if even == 1 || odd == 1 {
			return 0, false
		}
		cost += even + odd
	}
	return cost, len(seqs) > 0
}

// common returns about how often a byte is met in text, letters' case apart.
func common(c byte) float64 {
	switch c {
	case 'e', ' ':
		return 0.1
	case 't', 'a', 'o', 'i', 'n', 's', 'r':
		return 0.06
	case 'h', 'l', 'd', 'c', 'u', 'm', 'p':
		return 0.03
	case 'f', 'g', 'w', 'y', 'b', 'v':
		return 0.015
	case '0', '1', '2', '.', ',', '"', '/', '-', ':', '=', '_':
		return 0.01
	}
	return 0.004
}

// escapes reports a set with a byte that has an escape of one letter in JSON.
func (s *byteSet) escapes() bool {
	return s['"'] || s['\\'] || s['\n'] || s['\r'] || s['\t'] || s['\b'] || s['\f']
}

// appendGrams appends like once for each gram that s may be.
func appendGrams(all []anchor, s sequence, like anchor) []anchor {
	grams := []uint32{0}
	for i, set := range s {
		if i == 3 && set.escapes() { // so that the gram is found in JSON, too
			with := *set
			with['\\'] = true
			set = &with
		}
		var seen byteSet
		var longer []uint32
		for c := range set {
			f := byte(c) | 0x20
			if !set[c] || seen[f] {
				continue
			}
			seen[f] = true
			for _, g := range grams {
				longer = append(longer, g|uint32(f)<<(8*i))
			}
		}
		grams = longer
	}
	for _, g := range grams {
		like.gram = g
		all = append(all, like)
	}
	return all
}

// An index finds the grams of many expressions in one pass. The hash of four
// bytes tells nearly every place that has none; a table knows the others.
type index struct {
	bits    [1 << (hashBits - 6)]uint64 // by hash: 1 if a gram has it
	slots   []slot                      // open addressing
	shift   int                         // of the product, for a slot
	entries []entry
	pairs   []pair
	likes   likes // the same
}

// A slot is a gram, and which of the entries are its own; 0 of them: there is no gram.
type slot struct {
	gram     uint32
	first, n int32
}

// A pair is two bytes that are looked for, by the rarer one.
type pair struct {
	text [2]byte
	rare int // which of them that is
	of   [1]entry
}

// An entry is one expression that a gram is an anchor of. Where many keywords
// stand, most of the time is spent on entries: one is half a line of the cache.
type entry struct {
	mask, bits uint64 // an around8
	offset     int32
	id         int32 // the caller's
	min, max   int32 // how far in front of the anchor the match starts
}

// fits reports that the bytes around at in text may be those of a match.
func (e *entry) fits(text []byte, at int) bool {
	at += int(e.offset)
	if at < 0 || at > len(text)-8 {
		return true
	}
	return (binary.LittleEndian.Uint64(text[at:])|folding)&e.mask == e.bits
}

func (a anchor) entry(id int) entry {
	return entry{a.near.mask, a.near.bits, a.near.offset, int32(id), int32(a.back.min), int32(a.back.max)}
}

const (
	hashBits  = 18 // of 32 KiB, which the first cache holds
	wordShift = 32 - hashBits
	hashMul   = 0x9e3779b1
	slotMul   = 0x27d4eb2f
)

func newIndex(of [][]anchor) *index {
	grams := map[uint32][]entry{}
	x := &index{}
	for id, as := range of {
		for _, a := range as {
			if a.pair == "" {
				grams[a.gram] = append(grams[a.gram], a.entry(id))
				continue
			}
			p := pair{text: [2]byte{a.pair[0], a.pair[1]}, of: [1]entry{a.entry(id)}}
			if common(p.text[1]|0x20) < common(p.text[0]|0x20) {
				p.rare = 1
			}
			if n := len(x.pairs); n < maxPairs {
				for i := range x.likes[n][0] {
					x.likes[n][0][i], x.likes[n][1][i] = p.text[0], p.text[1]
				}
			}
			x.pairs = append(x.pairs, p)
		}
	}
	size := bits.Len(uint(2*len(grams) | 63))
	x.slots, x.shift = make([]slot, 1<<size), 32-size
	for _, gram := range slices.Sorted(maps.Keys(grams)) {
		entries := grams[gram]
		p := gram * hashMul
		x.bits[p>>(wordShift+6)] |= 1 << (p >> wordShift & 63)
		*x.slot(gram) = slot{gram, int32(len(x.entries)), int32(len(entries))}
		slices.Reverse(entries) // what comes last is more often found
		x.entries = append(x.entries, entries...)
	}
	return x
}

// slot returns the slot of a gram, or the free one where it would be.
func (x *index) slot(gram uint32) *slot {
	// Another hash than that of bits: what passed there for another gram meets it not here.
	for at := gram * slotMul >> (x.shift & 31); ; at++ {
		s := &x.slots[int(at)&(len(x.slots)-1)]
		if s.gram == gram || s.n == 0 {
			return s
		}
	}
}

const folding = 0x2020202020202020

// A hitter takes each place where a gram stands, and its entries.
type hitter interface{ hit(at int, of []entry) }

// find tells h the places in text where a gram stands, but for odd ones.
func (x *index) find(text []byte, h hitter) {
	if vector && len(text) >= longText && len(x.pairs) <= maxPairs {
		x.scan(text, h)
		return
	}
	i := 0
	for rest := text; len(rest) >= 10; rest = rest[8:] {
		w := binary.LittleEndian.Uint64(rest) | folding
		v := binary.LittleEndian.Uint32(rest[6:]) | folding&0xffffffff
		if (x.bit(uint32(w))|x.bit(uint32(w>>16))|x.bit(uint32(w>>32))|x.bit(v))&1 != 0 {
			x.four(text, i, h)
		}
		i += 8
	}
	for ; i+4 <= len(text); i += 2 {
		if gram := binary.LittleEndian.Uint32(text[i:]) | folding&0xffffffff; x.bit(gram)&1 != 0 {
			x.at(gram, i, h)
		}
	}
	for i := range x.pairs {
		p := &x.pairs[i]
		for at := 0; ; at++ {
			n := bytes.IndexByte(text[at:], p.text[p.rare])
			if n < 0 {
				break
			}
			at += n
			if start := at - p.rare; start >= 0 && start+1 < len(text) && text[start] == p.text[0] && text[start+1] == p.text[1] {
				h.hit(start, p.of[:])
			}
		}
	}
}

// bit returns the bit of a gram's hash, lowest, with others above.
func (x *index) bit(gram uint32) uint64 {
	p := gram * hashMul
	return x.bits[p>>(wordShift+6)] >> (p >> wordShift & 63)
}

// four looks at the four places from i on.
func (x *index) four(text []byte, i int, h hitter) {
	for end := i + 8; i < end; i += 2 {
		if gram := binary.LittleEndian.Uint32(text[i:]) | folding&0xffffffff; x.bit(gram)&1 != 0 {
			x.at(gram, i, h)
		}
	}
}

func (x *index) at(gram uint32, i int, h hitter) {
	if s := x.slot(gram); s.n > 0 {
		h.hit(i, x.entries[s.first:s.first+s.n])
	}
}

// any reports whether a gram stands in text.
func (x *index) any(text []byte) bool {
	for i := 0; i+4 <= len(text); i++ {
		gram := binary.LittleEndian.Uint32(text[i:]) | folding&0xffffffff
		if x.bit(gram)&1 != 0 && x.slot(gram).n > 0 {
			return true
		}
	}
	return false
}
