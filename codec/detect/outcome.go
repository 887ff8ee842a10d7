package detect

// An ahead is what is known of a set's bytes in a text: there are no others between
// from and to, and to is none if it is sure.
type ahead struct {
	text, from, to int
	sure           bool
}

// pass returns the offset behind the bytes of set from i on, or one behind end.
func (a *ahead) pass(s *search, set *byteSet, i, end int) int {
	if a.text != s.texts || i < a.from || i > a.to {
		*a = ahead{text: s.texts, from: i, to: i}
	} else if a.to < end {
		end = min(len(s.text), end+stretchAhead)
	}
	if !a.sure && a.to < end {
		a.to += set.run(s.text[a.to:end])
		a.sure = a.to < end
	}
	return a.to
}

// stretchAhead is how much further than asked for is looked where it was before: it
// will be asked for next.
const stretchAhead = 128

// mayEnd reports that a match that begins at start may end so.
func (s *search) mayEnd(l *ending, start int) bool {
	if l.others == nil {
		return true
	}
	end := min(len(s.text), start+l.within)
	return s.aheads[l.ahead].pass(s, l.others, start, end) < end
}

// mark returns where the mark is of a match of n that begins at start, or -1.
func (s *search) mark(n *naming, start int) int {
	head := eightAt(s.text, start)
	words := n.words[n.firsts[s.text[start]]]
	for i := range words {
		if w := &words[i]; w.at(s.text, start, head) {
			if mark := s.next(n, start+w.n); mark >= 0 {
				return mark
			}
		}
	}
	return -1
}

// next returns where the mark behind a word that ends at i is, or -1. Of the first
// gap as many bytes as there are belong to it: no mark is among them.
func (s *search) next(n *naming, i int) int {
	if g := &n.gaps[0]; g.max > shortRun/2 {
		end := min(len(s.text), i+g.max)
		i = min(end, s.aheads[n.ahead].pass(s, g.set, i, end))
	} else {
		i = g.pass(s.text, i)
	}
	if i = n.gaps[1].pass(s.text, i); i < len(s.text) && n.mark[s.text[i]] {
		return i
	}
	return -1
}

// A dull is a part of a text that has few different bytes.
type dull struct {
	text, from, to int
	seen           [4]uint64
	n              int

	left, wait int // so many marks are not looked behind: where text is as it mostly is, it is in vain
}

func (d *dull) misses() {
	d.wait = min(2*d.wait+1, 15)
	d.left = d.wait
}

// dull reports that no value of x behind that mark has more than few different
// bytes, and notes in b where no match begins for that.
func (s *search) dull(x *expression, b *outcome, mark int) bool {
	n, few := x.naming, x.few
	if few == 0 || few >= len(s.dulls) {
		return false
	}
	d := &s.dulls[few]
	if d.left > 0 {
		d.left--
		return false
	}
	if d.text != s.texts || mark < d.from || mark > d.to {
		d.text, d.from, d.to, d.seen, d.n = s.texts, mark, mark, [4]uint64{}, 0
	}
	first := min(len(s.text), mark+n.secret.far)
	if !d.pass(s.text, first, few) {
		d.misses()
		return false
	}
	end := min(len(s.text), mark+n.rest.width.max)
	d.pass(s.text, min(len(s.text), end+stretchAhead), few)
	a := &s.aheads[n.secret.ahead]
	var marks int // so far they are all alike
	switch {
	case d.to == len(s.text):
		marks = d.to
	case d.to >= end:
		marks = d.to - n.rest.width.max
	case a.pass(s, n.secret.set, first, end) > d.to:
		d.misses()
		return false
	case a.sure:
		marks = a.to - n.secret.far
	}
	b.barrenFrom, b.barrenTo = mark, marks-n.longest
	d.wait = 0
	return true
}

// pass reports that there are no more than so many different bytes up to end.
func (d *dull) pass(text []byte, end, few int) bool {
	for ; d.to < end; d.to++ {
		c := text[d.to]
		if d.seen[c>>6]>>(c&63)&1 != 0 {
			continue
		}
		if d.n == few {
			return false
		}
		d.n++
		d.seen[c>>6] |= 1 << (c & 63)
	}
	return true
}

// endless reports that no value of x behind that mark ends in time, and notes in b
// where no match begins for that.
func (s *search) endless(x *expression, b *outcome, mark int) bool {
	w := &x.naming.within
	first, end := mark+1, mark+w.far+w.most+1
	if x.few == 0 || w.set == nil || end > len(s.text) || !w.set[s.text[first]] {
		return false
	}
	to := s.aheads[w.ahead].pass(s, w.set, first, min(len(s.text), end+stretchAhead))
	if to < end {
		return false
	}
	marks := to - w.most - w.far
	for _, v := range w.others {
		v.from = span{1, marks - 1 - mark + w.far}
		if v.in(s.text, mark) {
			return false
		}
	}
	b.barrenFrom, b.barrenTo = mark, marks-x.naming.longest
	return true
}

// An outcome is what an expression with a naming matches from a mark on.
type outcome struct {
	text, mark int
	matches    bool
	worthless  bool // the value, whatever is in front of the mark
	slots      []int

	// What begins from one to in front of the other does not match, or has a value that
	// is dull.
	barrenFrom, barrenTo int
}

// behind returns the outcome of x, the expression of that number, where it matches at
// start and has that mark, and has the machine's slots so; nil if it does not match.
// Many names may have the same outcome.
func (s *search) behind(x *expression, number int32, start, mark int) *outcome {
	b := &s.outcomes[number]
	if b.text != s.texts || b.mark != mark {
		if b.text != s.texts {
			b.barrenTo = 0
		}
		b.text, b.mark, b.worthless = s.texts, mark, false
		b.matches = !s.dull(x, b, mark) && !s.endless(x, b, mark) && s.rest(x.naming, mark)
		if b.matches {
			b.slots = append(b.slots[:0], s.m.slots...)
		}
	} else if b.matches {
		s.m.slots = append(s.m.slots[:0], b.slots...)
	}
	if !b.matches {
		return nil
	}
	s.m.slots[0] = start
	return b
}

// rest reports whether the rest of n matches at that mark, and has the machine's slots so.
func (s *search) rest(n *naming, mark int) bool {
	from, to := s.plain(&n.within, mark)
	if to == 0 {
		return s.m.match(n.rest, s.text, mark)
	}
	s.m.clear(n.rest)
	s.m.slots[0], s.m.slots[1] = mark, to+1
	s.m.slots[2*n.within.group], s.m.slots[2*n.within.group+1] = from, to
	return true
}

// barren reports that no match of the expression of that number that begins at start has
// a value that is not dull.
func (s *search) barren(number int32, start int) bool {
	b := &s.outcomes[number]
	return start < b.barrenTo && b.barrenFrom <= start && b.text == s.texts
}

// inRun is v.in, for the long value of the expression of that number. Many may
// begin in one run of its bytes, which is gone over once.
func (s *search) inRun(v *value, number int32, start int) bool {
	if s.runs == nil {
		s.runs = make([]place, len(s.expressions))
	}
	from := start + v.from.min
	r := &s.runs[number]
	if r.text == s.texts && r.from <= from && from+v.n <= r.to {
		return true
	}
	if !v.in(s.text, start) {
		return false
	}
	*r = place{s.texts, from, from + v.n}
	for end := min(len(s.text), from+5*v.n); r.to < end && v.set[s.text[r.to]]; {
		r.to++
	}
	return true
}
