package detect

import (
	"bytes"
	"slices"
)

// A machine tries programs on one text. Its zero value is ready for use.
type machine struct {
	text  []byte
	slots []int // offsets of groups, as regexp's FindSubmatchIndex has them
	kept  []int // a stack of slots as they were where there are several ways on
	steps int

	// Where an alternation has failed, it fails again, wherever the match
	// began: what is behind it and the text are the same.
	failed []failure // nil until it is needed: most sessions never do
	gen    uint32    // of the text
	ran    [keptStretches]stretch
}

const (
	keptFailures  = 512
	keptStretches = 64
)

// A failure is an instruction that does not lead to a match from that place.
type failure struct {
	gen, id uint32
	at      int
}

// fresh forgets the text before.
func (m *machine) fresh() { m.gen++ }

func (m *machine) slot(n *inst, i int) *failure {
	if m.failed == nil {
		m.failed = make([]failure, keptFailures)
	}
	return &m.failed[(uint32(i)*31+n.id*977)%keptFailures]
}

func (f *failure) is(m *machine, n *inst, i int) bool {
	return f.at == i && f.id == n.id && f.gen == m.gen
}

// fails notes that n does not lead to a match from i, if that is sure.
func (m *machine) fails(f *failure, n *inst, i int) {
	if m.steps >= 0 {
		*f = failure{m.gen, n.id, i}
	}
}

// match tries p at i, and reports whether it matches there. Then m.slots holds
// where the groups are.
func (m *machine) match(p *program, text []byte, i int) bool {
	m.text, m.steps = text, maxSteps
	m.clear(p)
	m.slots[0] = i
	return m.run(p.start, i)
}

// clear makes the slots those of p, of which none is set.
func (m *machine) clear(p *program) {
	if len(m.slots) != 2*p.caps {
		m.slots = slices.Grow(m.slots[:0], 2*p.caps)[:2*p.caps]
	}
	for j := range m.slots {
		m.slots[j] = -1
	}
}

// run tries to match the program from n on at i.
func (m *machine) run(n *inst, i int) bool {
	text := m.text
	for {
		if m.steps--; m.steps < 0 {
			return false
		}
		switch n.op {
		case opMatch:
			m.slots[1] = i
			return true
		case opSet:
			if i >= len(text) || !n.set[text[i]] {
				return false
			}
			i++
		case opText:
			if !n.textAt(text, i) {
				return false
			}
			i += len(n.text)
		case opAlt:
			alts := n.picks.at(text, i)
			for len(alts) > 1 && !alts[len(alts)-1].mayBe(text, i) { // = or =>
				alts = alts[:len(alts)-1]
			}
			switch len(alts) {
			case 0:
				return false
			case 1:
				n = alts[0]
				continue
			}
			return m.either(n, alts, i)
		case opRun:
			var low, high int
			if n.max <= shortRun {
				low, high = n.ends(text, i)
			} else {
				low, high = m.ends(n, i)
			}
			if low > high {
				return false
			}
			if low < high && !n.sole {
				return m.most(n, low, high)
			}
			i = high
			if !n.next.begins(text, i) {
				return false
			}
		case opOpen:
			m.slots[n.slot] = i
		case opBegin:
			if i != 0 {
				return false
			}
		case opEnd:
			if i != len(text) {
				return false
			}
		case opLine:
			if i != 0 && text[i-1] != '\n' {
				return false
			}
		case opLineEnd:
			if i != len(text) && text[i] != '\n' {
				return false
			}
		case opWord, opNoWord:
			if wordBoundary(text, i) != (n.op == opWord) {
				return false
			}
		}
		n = n.next
	}
}

// wordBoundary reports that a word begins or ends at i.
func wordBoundary(text []byte, i int) bool {
	before := i > 0 && is(text[i-1], alnum|under)
	behind := i < len(text) && is(text[i], alnum|under)
	return before != behind
}

// shortRun is how long a run is at most that is gone over each time: to know
// what was gone over before costs more.
const shortRun = 24

// ends is machine.ends for a short run.
func (n *inst) ends(text []byte, i int) (low, high int) {
	low, high = i+n.min, min(len(text), i+n.max)
	for j := i; j < high; j++ {
		if !n.set[text[j]] {
			high = j
			break
		}
	}
	return low, high
}

// run returns how many bytes text begins with that are all of s.
func (s *byteSet) run(text []byte) int {
	for i, c := range text {
		if !s[c] {
			return i
		}
	}
	return len(text)
}

// begins reports whether the program can go on with n at i, as far as one byte tells.
func (n *inst) begins(text []byte, i int) bool {
	return n.empty || i < len(text) && n.first[text[i]]
}

// either tries alts, which are those of n that can begin at i.
func (m *machine) either(n *inst, alts []*inst, i int) bool {
	f := m.slot(n, i)
	if f.is(m, n, i) {
		return false
	}
	if !n.leaves() {
		for _, alt := range alts {
			if m.run(alt, i) {
				return true
			}
		}
	} else {
		kept := len(m.kept)
		m.kept = append(m.kept, m.slots...)
		for _, alt := range alts {
			if m.run(alt, i) {
				m.kept = m.kept[:kept]
				return true
			}
			copy(m.slots, m.kept[kept:])
		}
		m.kept = m.kept[:kept]
	}
	m.fails(f, n, i)
	return false
}

// A stretch is what is known of a run: all from one offset to the other is of its
// set, and what follows is not if it is closed. So no run is gone over twice,
// wherever a match begins in it.
type stretch struct {
	gen, id  uint32
	from, to int
	closed   bool

	failed, failedTo int // what is behind the run does not match at places from one to in front of the other
}

// ends returns the offsets between which the run n that begins at i can end; high
// is less than low if there are none.
func (m *machine) ends(n *inst, i int) (low, high int) {
	text := m.text
	low, high = i+n.min, min(len(text), i+n.max)
	far := high
	if n.reach != noReach {
		far = min(len(text), high+n.reach+1)
	}
	r := &m.ran[n.id%keptStretches]
	if r.id != n.id || r.gen != m.gen || i < r.from || i > r.to {
		*r = stretch{gen: m.gen, id: n.id, from: i, to: i}
	}
	if to := r.to; !r.closed && to < far {
		far := far
		if to > i {
			far = min(len(text), far+stretchAhead)
		}
		to += n.set.run(text[to:far])
		m.steps -= (to - r.to) / 8
		r.to, r.closed = to, to < far || to == len(text)
	}
	if n.reach != noReach {
		// Where the run is not long enough, what is behind it meets more of set than
		// it can take.
		low = max(low, min(r.to, far)-n.reach)
	}
	return low, min(high, r.to)
}

// most tries to go on behind the run n from high down to low, or up if it is lazy.
// Where that has failed it fails again, wherever the run began.
func (m *machine) most(n *inst, low, high int) bool {
	next := n.next
	if n.max <= shortRun {
		if n.lazy {
			for j := low; j <= high; j++ {
				if next.begins(m.text, j) && m.run(next, j) {
					return true
				}
			}
			return false
		}
		for j := high; j >= low; j-- {
			if next.begins(m.text, j) && m.run(next, j) {
				return true
			}
		}
		return false
	}
	r := &m.ran[n.id%keptStretches]
	failed, to := r.failed, r.failedTo
	for j := low; n.lazy && j <= high; j++ {
		if failed <= j && j < to {
			j = to - 1
		} else if next.begins(m.text, j) && m.run(next, j) {
			return true
		}
	}
	for j := high; !n.lazy && j >= low; j-- {
		if failed <= j && j < to {
			j = failed
		} else if next.begins(m.text, j) && m.run(next, j) {
			return true
		}
	}
	if r.id == n.id && r.gen == m.gen && m.steps >= 0 {
		if low <= to && failed <= high+1 && failed < to { // they meet
			low, high = min(low, failed), max(high, to-1)
		}
		r.failed, r.failedTo = low, high+1
	}
	return false
}

// textAt reports whether the literal n stands at i.
func (n *inst) textAt(text []byte, i int) bool {
	return len(text)-i >= len(n.text) && eightAt(text, i)&n.head.mask == n.head.bits && (len(n.text) <= 8 || n.tailAt(text[i:]))
}

// tailAt reports whether text goes on as the literal n, whose first eight bytes it has.
func (n *inst) tailAt(text []byte) bool {
	if !n.fold {
		return string(text[8:len(n.text)]) == n.text[8:]
	}
	for j := 8; j < len(n.text); j++ {
		if small[text[j]] != n.text[j] {
			return false
		}
	}
	return true
}

// search reports whether p matches anywhere in text.
func (m *machine) search(p *program, text []byte) bool {
	m.fresh()
	if p.head != nil && !bytes.Contains(text, p.head) {
		return false
	}
	last := len(text)
	if p.begin {
		last = 0
	}
	for i := 0; i <= last; i++ {
		if (p.start.empty || i < len(text) && p.start.first[text[i]]) && m.match(p, text, i) {
			return true
		}
	}
	return false
}
