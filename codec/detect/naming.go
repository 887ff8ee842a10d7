package detect

import (
	"encoding/binary"
	"regexp/syntax"
	"slices"
)

// Most expressions ask for the name of a secret, a mark such as = or : not far
// behind it, and a value. Text may have such a name every few bytes, and so they
// are tried in two parts: which mark is next is the same for many names, and so is
// what stands behind it.

// A naming is how an expression begins: one of words, then of each gap some bytes,
// and then a byte of mark, which neither words nor gaps have. So there is one place
// where the rest can begin: wherever a match begins, the mark is the next one.
type naming struct {
	words   [][]nameWord // by firsts
	firsts  [256]uint8   // which words begin with a byte
	gaps    [2]gap
	longest int // how far from where a match begins the mark is, at most
	ahead   int // the number of the first gap's set
	mark    *byteSet
	rest    *program // from the mark on
	value   value    // of rest
	secret  secret
	within  within
}

// A secret is where the groups of an expression are: each has bytes of set only and
// begins that far behind the mark, at most.
type secret struct {
	set   *byteSet // nil: nothing is known
	far   int
	ahead int // the number of set
}

// A nameWord is n bytes, eight in each of eights. Of letters in either case the bit
// that differs is not in the mask.
type nameWord struct {
	eights []eight
	n      int
}

type eight struct{ mask, bits uint64 }

// A gap is at most so many bytes of set.
type gap struct {
	set *byteSet
	max int
}

// gapOf returns what re, a class that is repeated, may have between; ok is false if it is
// something else, or not empty.
// gapOf returns the gap that re is; ok is false if it is none: so many bytes of a class, or
// nothing.
func gapOf(re *syntax.Regexp) (g gap, ok bool) {
	class, low := repeats(re)
	if class == nil || low > 0 || re.Op == syntax.OpCapture {
		return gap{}, false
	}
	_, high := bounds(re)
	return gap{class, high}, true
}

// pass returns the offset behind as much of g as there is in text from i on.
func (g *gap) pass(text []byte, i int) int {
	return i + g.set.run(text[i:min(len(text), i+g.max)])
}

// maxGap bounds how far a mark is from the name.
const maxGap = 64

// namingOf returns the naming of re, or nil if it begins otherwise.
func namingOf(re *syntax.Regexp) *naming {
	elems := concatenated(nil, re)
	n := &naming{}
	k := 0
	words := []sequence{{}}
	for ; k < len(elems) && isWords(elems[k]); k++ {
		if words = product(words, finite(elems[k])); words == nil {
			return nil
		}
	}
	if k == 0 {
		return nil
	}
	gaps := 0
	for ; k < len(elems) && gaps < len(n.gaps); k++ {
		g, ok := gapOf(elems[k])
		if !ok {
			break
		}
		if g.max > maxGap {
			return nil
		}
		n.gaps[gaps] = g
		gaps++
	}
	if gaps == 0 || k == len(elems) {
		return nil
	}
	if gaps == 1 {
		n.gaps[1] = gap{set: &byteSet{}}
	}
	rest := &syntax.Regexp{Op: syntax.OpConcat, Sub: elems[k:]}
	var err error
	if n.rest, err = compile(rest); err != nil || n.rest.start.empty {
		return nil
	}
	n.value = valueOf(rest)
	n.secret = secretOf(elems[k:])
	n.within = withinOf(elems[k:])
	n.mark = &n.rest.start.first
	if n.gaps[0].set.meets(n.mark) || n.gaps[1].set.meets(n.mark) {
		return nil
	}
	var all []nameWord
	for _, w := range words {
		for _, set := range w {
			if set.meets(n.mark) {
				return nil
			}
		}
		some := nameWords(w)
		if len(w) == 0 || some == nil || len(all)+len(some) > maxSequences {
			return nil
		}
		all = append(all, some...)
	}
	for _, w := range all {
		n.longest = max(n.longest, w.n+n.gaps[0].max+n.gaps[1].max)
	}
	n.words = [][]nameWord{nil}
	for c := range n.firsts {
		var own []nameWord
		for _, w := range all {
			if e := w.eights[0]; uint64(c)&e.mask == e.bits&0xff {
				own = append(own, w)
			}
		}
		if own != nil {
			n.firsts[c] = uint8(len(n.words))
			n.words = append(n.words, own)
		}
	}
	return n
}

// secretOf returns where in elems, of which the first begins with the mark, groups are.
func secretOf(elems []*syntax.Regexp) (s secret) {
	before := 0
	sure := false
	for _, e := range elems {
		if e.MaxCap() > 0 {
			if s.set == nil {
				s.set = &byteSet{}
			}
			s.set.add(bytesOf(e))
			sure = sure || hasGroup(e)
			s.far = before
			if e.Op != syntax.OpCapture {
				s.far += width(e).max
			}
		}
		before += width(e).max
	}
	if !sure {
		return secret{}
	}
	return s
}

// A within is what a value is that ends where its bytes do: one that is not of set,
// or the end of the text, is no more than most bytes behind where the value begins,
// which is that far behind the mark, at most. Or it begins with one of others.
type within struct {
	set    *byteSet // nil: nothing is known
	most   int
	far    int
	others []value
	ahead  int // the number of set

	// Most matches are the plain one: a mark that is one byte and has none of longer
	// behind it, all of gap that is there, then the value, of at least so many bytes,
	// which is that group, and one of ends.
	ends   *byteSet // nil: there is no plain one
	alone  byteSet  // the marks of one byte
	longer *byteSet // what marks are made of
	gap    gap
	least  int
	group  int
}

// plain returns where the value is of the plain match of w behind that mark, or 0, 0 if
// there is none; there may be others.
func (s *search) plain(w *within, mark int) (from, to int) {
	text := s.text
	from = mark + 1
	if w.ends == nil || from >= len(text) || !w.alone[text[mark]] || w.longer[text[from]] {
		return 0, 0
	}
	from = w.gap.pass(text, from)
	to = s.aheads[w.ahead].pass(s, w.set, from, min(len(text), from+w.most+1))
	if to-from < w.least || to-from > w.most || to == len(text) || !w.ends[text[to]] {
		return 0, 0
	}
	return from, to
}

// withinOf returns what is known of the value in elems, of which the first begins with
// the mark: it is one group, perhaps of several ways.
func withinOf(elems []*syntax.Regexp) (w within) {
	k := slices.IndexFunc(elems, func(e *syntax.Regexp) bool { return e.Op == syntax.OpCapture })
	if k < 1 || k+1 == len(elems) || width(elems[0]).min == 0 || slices.ContainsFunc(elems[:k], func(e *syntax.Regexp) bool { return e.MaxCap() > 0 }) {
		return within{}
	}
	for _, e := range elems[:k] {
		w.far += width(e).max
	}
	ways := []*syntax.Regexp{elems[k].Sub[0]}
	if ways[0].Op == syntax.OpAlternate {
		ways = ways[0].Sub
	}
	first := false // it is the first of ways
	for i, way := range ways {
		if set, _ := repeats(way); set != nil && w.set == nil && way.Op != syntax.OpCapture {
			w.set, first = set, i == 0
			w.least, w.most = bounds(way)
			continue
		}
		p, err := compile(way)
		if err != nil {
			return within{}
		}
		p.start.findPrefix()
		if p.start.prefix.n == 0 {
			return within{}
		}
		w.others = append(w.others, value{set: p.start.prefix.set, n: p.start.prefix.n})
	}
	if w.set == nil || w.most > maxWithin || !endsAt(elems[k+1], w.set) {
		return within{}
	}
	if first && k+2 == len(elems) {
		w.plainOf(elems[:k], elems[k], elems[k+1])
	}
	return w
}

// plainOf notes what the plain match is, if there is one.
func (w *within) plainOf(before []*syntax.Regexp, value, behind *syntax.Regexp) {
	switch {
	case behind.Op == syntax.OpAlternate:
		behind = behind.Sub[0]
	case behind.Op != syntax.OpCharClass:
		return
	}
	ends := classOf(behind)
	p, err := compile(before[0])
	if ends == nil || err != nil || len(before) > 2 || asserts(before[0]) {
		return
	}
	w.gap = gap{set: &byteSet{}}
	if len(before) == 2 {
		g, ok := gapOf(before[1])
		if !ok || before[1].Flags&syntax.NonGreedy != 0 {
			return
		}
		w.gap = g
	}
	var m machine
	for c := range w.alone {
		m.fresh()
		w.alone[c] = m.match(p, []byte{byte(c)}, 0)
	}
	w.ends, w.longer, w.group = ends, bytesOf(before[0]), value.Cap
}

// asserts reports that what re matches depends on what is around it.
func asserts(re *syntax.Regexp) bool {
	switch re.Op {
	case syntax.OpBeginText, syntax.OpEndText, syntax.OpBeginLine, syntax.OpEndLine, syntax.OpWordBoundary, syntax.OpNoWordBoundary:
		return true
	}
	return slices.ContainsFunc(re.Sub, asserts)
}

// maxWithin bounds how long a value is that is known to end.
const maxWithin = 512

// endsAt reports that re matches nothing but the end of a text, or what begins with a
// byte that is not of set.
func endsAt(re *syntax.Regexp, set *byteSet) bool {
	switch re.Op {
	case syntax.OpEndText:
		return true
	case syntax.OpAlternate:
		return !slices.ContainsFunc(re.Sub, func(sub *syntax.Regexp) bool { return !endsAt(sub, set) })
	}
	first := firstOf([]*syntax.Regexp{re})
	return first != nil && !first.meets(set)
}

// hasGroup reports that each match of re has a group that is not empty.
func hasGroup(re *syntax.Regexp) bool {
	switch re.Op {
	case syntax.OpCapture:
		return width(re).min > 0
	case syntax.OpConcat:
		return slices.ContainsFunc(re.Sub, hasGroup)
	case syntax.OpAlternate:
		return !slices.ContainsFunc(re.Sub, func(sub *syntax.Regexp) bool { return !hasGroup(sub) })
	}
	return false
}

// concatenated appends the parts of re that follow each other.
func concatenated(dst []*syntax.Regexp, re *syntax.Regexp) []*syntax.Regexp {
	if re.Op != syntax.OpConcat {
		return append(dst, re)
	}
	for _, sub := range re.Sub {
		dst = concatenated(dst, sub)
	}
	return dst
}

// isWords reports that re matches few words, and has no groups and no assertions.
func isWords(re *syntax.Regexp) bool {
	switch re.Op {
	case syntax.OpLiteral, syntax.OpCharClass, syntax.OpConcat, syntax.OpAlternate, syntax.OpQuest, syntax.OpEmptyMatch:
	default:
		return false
	}
	for _, sub := range re.Sub {
		if !isWords(sub) {
			return false
		}
	}
	return finite(re) != nil
}

// nameWords returns what s is, or nil if that is too much.
func nameWords(s sequence) []nameWord {
	words := []nameWord{{}}
	for i, set := range s {
		var ways []eight // for this byte
		for c := range set {
			switch upper := byte(c) &^ 0x20; {
			case !set[c]:
			case 'A' <= upper && upper <= 'Z' && set[upper] && set[upper|0x20]:
				if byte(c) == upper {
					ways = append(ways, eight{0xdf, uint64(upper)})
				}
			default:
				ways = append(ways, eight{0xff, uint64(c)})
			}
		}
		if len(words)*len(ways) > maxSequences {
			return nil
		}
		var longer []nameWord
		for _, w := range words {
			for _, way := range ways {
				eights := slices.Clone(w.eights)
				if i%8 == 0 {
					eights = append(eights, eight{})
				}
				last := &eights[len(eights)-1]
				last.mask |= way.mask << (8 * (i % 8))
				last.bits |= way.bits << (8 * (i % 8))
				longer = append(longer, nameWord{eights, i + 1})
			}
		}
		words = longer
	}
	return words
}

// eightAt returns the eight bytes at i, zeros where the text has ended.
func eightAt(text []byte, i int) (v uint64) {
	if len(text)-i >= 8 {
		return binary.LittleEndian.Uint64(text[i:])
	}
	for j := len(text) - 1; j >= i; j-- {
		v = v<<8 | uint64(text[j])
	}
	return v
}

// at reports that w, whose first eight bytes may be head, is at i.
func (w *nameWord) at(text []byte, i int, head uint64) bool {
	if e := &w.eights[0]; head&e.mask != e.bits || len(text)-i < w.n {
		return false
	}
	for k := 1; k < len(w.eights); k++ {
		if e := &w.eights[k]; eightAt(text, i+8*k)&e.mask != e.bits {
			return false
		}
	}
	return true
}
