package detect

import (
	"fmt"
	"regexp/syntax"
	"slices"
	"sync/atomic"
	"unicode"
	"unicode/utf8"
)

// A program is a regular expression in RE2's syntax, compiled to be tried at a
// known place: by backtracking, with the same order of preference as RE2 and
// Perl, over bytes. It is fast where what Go's regexp is asked is slow: many
// expressions of classes repeated a bounded number of times, each tried at few
// places.
//
// It differs from RE2 in two ways: a class is of bytes (one that takes any
// character beyond ASCII takes each of its bytes; ſ and the Kelvin sign are no
// letters s and k), and a repetition without an upper bound has one (maxRepeat),
// so that no text makes it slow.
type program struct {
	start *inst
	width span   // of what it matches, in bytes
	caps  int    // groups, the whole match included
	begin bool   // it matches at the start of a text only
	head  []byte // it begins with that; nil if it may begin otherwise
	all   *inst  // it matches a text that is one run and nothing else; nil if it is not so
}

// A span is how many bytes something is long.
type span struct{ min, max int }

const (
	// maxRepeat bounds repetitions that have no bound.
	maxRepeat = 16 << 10
	// maxSteps bounds the steps of one attempt.
	maxSteps = 64 << 10
)

type op uint8

const (
	opMatch   op = iota
	opSet        // one byte of set
	opText       // text, perhaps in either case
	opRun        // from min to max bytes of set
	opAlt        // the first of alts that goes on to a match
	opOpen       // notes the place in slot
	opBegin      // ^
	opEnd        // $
	opWord       // \b
	opNoWord     // \B
	opLine       // (?m:^)
	opLineEnd    // (?m:$)
)

type inst struct {
	op       op
	id       uint32
	fold     bool // opText is in either case, and text in lower
	lazy     bool // opRun prefers fewer
	slot     int
	min, max int
	set      *byteSet
	text     string
	head     eight // the first eight bytes of text, and which of their bits count
	alts     []*inst
	next     *inst
	picks    *picks
	sole     bool // of opRun: what is behind it begins with a byte that is not of set, so that it ends where set does
	reach    int  // of opRun: how many bytes of set what is behind it takes at most before it needs another; noReach: no matter how many

	lead struct { // as an alternative, it begins with n bytes of set, if n is not 0
		set *byteSet
		n   int
	}

	first byteSet // with what the rest can begin
	empty bool    // the rest can match without a byte

	some, every slotSet // the slots that some ways to a match set from here on, and those that every way sets
}

// A slotSet has a bit for each slot, the last for all from there on.
type slotSet uint64

func slotBit(slot int) slotSet { return 1 << min(slot, 63) }

// leaves reports that an attempt which fails behind n may have set slots that
// another way to a match would leave as they are.
func (n *inst) leaves() bool { return n.some != n.every || n.some&slotBit(63) != 0 }

const (
	noReach  = -1
	maxReach = 64 // more is as good as no bound
)

// A byteSet has the bytes that are true.
type byteSet [256]bool

func (s *byteSet) add(t *byteSet) {
	for c := range t {
		s[c] = s[c] || t[c]
	}
}

// picks are the alternatives of an instruction by the byte that stands there.
type picks struct {
	of   [256]uint8
	sets [][]*inst
	end  []*inst // where the text ends
}

func newPicks(alts []*inst) *picks {
	p := &picks{}
	var keys []string
	for c := range p.of {
		key := make([]byte, len(alts))
		var set []*inst
		for i, alt := range alts {
			if alt.empty || alt.first[c] {
				key[i], set = 1, append(set, alt)
			}
		}
		at := slices.Index(keys, string(key))
		if at < 0 {
			at, keys, p.sets = len(keys), append(keys, string(key)), append(p.sets, set)
		}
		p.of[c] = uint8(at)
	}
	for _, alt := range alts {
		if alt.empty {
			p.end = append(p.end, alt)
		}
	}
	return p
}

func (p *picks) at(text []byte, i int) []*inst {
	if i < len(text) {
		return p.sets[p.of[text[i]]]
	}
	return p.end
}

// compile compiles re.
func compile(re *syntax.Regexp) (*program, error) {
	c := &compiler{}
	end := &inst{op: opMatch, empty: true}
	start, err := c.inst(re, end)
	if err != nil {
		return nil, err
	}
	number(start)
	p := &program{start: start, width: width(re), caps: re.MaxCap() + 1, begin: start.atBegin()}
	if start.op == opText && !start.fold {
		p.head = []byte(start.text)
	}
	if run := start.next; start.op == opBegin && run.op == opRun && run.next.op == opEnd && run.next.next == end {
		p.all = run
	}
	return p, nil
}

// atBegin reports that n matches at the start of a text only.
func (n *inst) atBegin() bool {
	switch n.op {
	case opBegin:
		return true
	case opOpen:
		return n.next.atBegin()
	case opAlt:
		return !slices.ContainsFunc(n.alts, func(alt *inst) bool { return !alt.atBegin() })
	}
	return false
}

// lastID is that of the instruction numbered last.
var lastID atomic.Uint32

// number gives the instructions from n on their ids.
func number(n *inst) {
	if n == nil || n.id != 0 {
		return
	}
	n.id = lastID.Add(1)
	number(n.next)
	if n.next != nil {
		n.some, n.every = n.next.some, n.next.every
	}
	for i, alt := range n.alts {
		number(alt)
		n.some |= alt.some
		if i == 0 {
			n.every = alt.every
		}
		n.every &= alt.every
	}
	switch n.op {
	case opAlt:
		n.picks = newPicks(n.alts)
		for _, alt := range n.alts {
			alt.leads()
		}
	case opOpen:
		n.some |= slotBit(n.slot)
		n.every |= slotBit(n.slot)
	case opRun:
		n.sole = !n.next.empty && !n.next.first.meets(n.set)
		n.reach = (&reacher{set: n.set, known: map[*inst]int{}}).of(n.next)
	}
}

// maxLead is how many bytes an alternative is asked for before it is tried, at most.
const maxLead = 16

// leads notes what n begins with. One byte is what picks know.
func (n *inst) leads() {
	set, least := &byteSet{}, 0
walk:
	for in := n; least < maxLead; in = in.next {
		switch in.op {
		case opOpen:
			continue
		case opSet:
			least++
		case opRun:
			least += in.min
		default:
			break walk
		}
		set.add(in.set)
		if in.op == opRun && in.min < in.max {
			break
		}
	}
	if least > 1 {
		n.lead.set, n.lead.n = set, min(least, maxLead)
	}
}

// mayBe reports that the alternative n may match at i, as far as it is easily told.
func (n *inst) mayBe(text []byte, i int) bool {
	if n.op == opText {
		return n.textAt(text, i)
	}
	if len(text)-i < n.lead.n {
		return false
	}
	for _, c := range text[i : i+n.lead.n] {
		if !n.lead.set[c] {
			return false
		}
	}
	return true
}

// A reacher finds how many bytes of set in a row a program takes from an
// instruction on.
type reacher struct {
	set   *byteSet
	known map[*inst]int
}

func (r *reacher) of(n *inst) int {
	reach, ok := r.known[n]
	if !ok {
		if reach = r.look(n); reach > maxReach {
			reach = noReach
		}
		r.known[n] = reach
	}
	return reach
}

func (r *reacher) look(n *inst) int {
	behind := func(own int) int {
		if own > maxReach {
			return noReach
		}
		if reach := r.of(n.next); reach != noReach {
			return own + reach
		}
		return noReach
	}
	switch n.op {
	case opMatch:
		return noReach
	case opEnd: // nothing of set is behind it, and neither there
		return 0
	case opSet:
		if !n.set.meets(r.set) {
			return 0
		}
		return behind(1)
	case opText:
		for i := range len(n.text) {
			c := n.text[i]
			if !r.set[c] && !(n.fold && 'a' <= c && c <= 'z' && r.set[c-'a'+'A']) {
				return i
			}
		}
		return behind(len(n.text))
	case opRun:
		switch {
		case n.set.meets(r.set):
			return behind(n.max)
		case n.min > 0:
			return 0
		}
		return behind(0)
	case opAlt:
		most := 0
		for _, alt := range n.alts {
			reach := r.of(alt)
			if reach == noReach {
				return noReach
			}
			most = max(most, reach)
		}
		return most
	}
	return behind(0)
}

// meets reports whether s and t have a byte in common.
func (s *byteSet) meets(t *byteSet) bool {
	for c := range s {
		if s[c] && t[c] {
			return true
		}
	}
	return false
}

type compiler struct{ size int }

// maxProgram bounds the instructions of one expression.
const maxProgram = 20_000

// inst compiles re, in front of next.
func (c *compiler) inst(re *syntax.Regexp, next *inst) (*inst, error) {
	if c.size++; c.size > maxProgram {
		return nil, fmt.Errorf("expression is too large")
	}
	switch re.Op {
	case syntax.OpEmptyMatch:
		return next, nil
	case syntax.OpLiteral:
		return literal(re, next), nil
	case syntax.OpCharClass, syntax.OpAnyChar, syntax.OpAnyCharNotNL:
		set := classOf(re)
		return &inst{op: opSet, set: set, next: next, first: *set}, nil
	case syntax.OpBeginText:
		return assertion(opBegin, next), nil
	case syntax.OpEndText:
		return assertion(opEnd, next), nil
	case syntax.OpBeginLine:
		return assertion(opLine, next), nil
	case syntax.OpEndLine:
		return assertion(opLineEnd, next), nil
	case syntax.OpWordBoundary:
		return assertion(opWord, next), nil
	case syntax.OpNoWordBoundary:
		return assertion(opNoWord, next), nil
	case syntax.OpCapture:
		end := &inst{op: opOpen, slot: 2*re.Cap + 1, next: next, first: next.first, empty: next.empty}
		body, err := c.inst(re.Sub[0], end)
		if err != nil {
			return nil, err
		}
		return &inst{op: opOpen, slot: 2 * re.Cap, next: body, first: body.first, empty: body.empty}, nil
	case syntax.OpConcat:
		var err error
		for i := len(re.Sub) - 1; i >= 0 && err == nil; i-- {
			next, err = c.inst(re.Sub[i], next)
		}
		return next, err
	case syntax.OpAlternate:
		return c.alternate(re.Sub, next)
	case syntax.OpStar, syntax.OpPlus, syntax.OpQuest, syntax.OpRepeat:
		return c.repeat(re, next)
	}
	return nil, fmt.Errorf("unsupported expression %s", re)
}

func (c *compiler) alternate(subs []*syntax.Regexp, next *inst) (*inst, error) {
	n := &inst{op: opAlt}
	for _, sub := range subs {
		alt, err := c.inst(sub, next)
		if err != nil {
			return nil, err
		}
		n.either(alt)
	}
	return n, nil
}

// either adds an alternative to n.
func (n *inst) either(alt *inst) {
	n.alts = append(n.alts, alt)
	n.first.add(&alt.first)
	n.empty = n.empty || alt.empty
}

func (c *compiler) repeat(re *syntax.Regexp, next *inst) (*inst, error) {
	low, high := bounds(re)
	lazy := re.Flags&syntax.NonGreedy != 0
	sub := re.Sub[0]
	if set := classOf(sub); set != nil {
		n := &inst{op: opRun, set: set, min: low, max: high, lazy: lazy, next: next, first: *set}
		if low == 0 {
			n.first.add(&next.first)
			n.empty = next.empty
		}
		return n, nil
	}
	// x{1,3} is x(x(x)?)?.
	tail := next
	for i := min(high, low+maxCopies); i > low; i-- {
		body, err := c.inst(sub, tail)
		if err != nil {
			return nil, err
		}
		n := &inst{op: opAlt}
		if lazy {
			n.either(next)
		}
		n.either(body)
		if !lazy {
			n.either(next)
		}
		tail = n
	}
	for range low {
		var err error
		if tail, err = c.inst(sub, tail); err != nil {
			return nil, err
		}
	}
	return tail, nil
}

// maxCopies bounds how often what is more than one byte is repeated beyond its minimum.
const maxCopies = 40

// bounds returns how often re, a repetition, repeats.
func bounds(re *syntax.Regexp) (low, high int) {
	switch re.Op {
	case syntax.OpStar:
		return 0, maxRepeat
	case syntax.OpPlus:
		return 1, maxRepeat
	case syntax.OpQuest:
		return 0, 1
	}
	if re.Max < 0 {
		return re.Min, re.Min + maxRepeat
	}
	return re.Min, re.Max
}

func assertion(o op, next *inst) *inst {
	return &inst{op: o, next: next, first: next.first, empty: next.empty}
}

func literal(re *syntax.Regexp, next *inst) *inst {
	n := &inst{op: opText, fold: re.Flags&syntax.FoldCase != 0, next: next}
	for _, r := range re.Rune {
		if n.fold && r < utf8.RuneSelf {
			r = unicode.ToLower(r)
		}
		n.text += string(r)
	}
	for i := range min(len(n.text), 8) {
		c, mask := n.text[i], byte(0xff)
		if n.fold && 'a' <= c && c <= 'z' {
			mask = 0xdf
		}
		n.head.mask |= uint64(mask) << (8 * i)
		n.head.bits |= uint64(c&mask) << (8 * i)
	}
	n.first[n.text[0]] = true
	if c := n.text[0]; n.fold && 'a' <= c && c <= 'z' {
		n.first[c-'a'+'A'] = true
	}
	return n
}

// classOf returns the bytes that re takes one of, or nil if it is no class.
func classOf(re *syntax.Regexp) *byteSet {
	var s byteSet
	switch re.Op {
	case syntax.OpAnyChar, syntax.OpAnyCharNotNL:
		for c := range s {
			s[c] = c != '\n' || re.Op == syntax.OpAnyChar
		}
	case syntax.OpCharClass:
		for i := 0; i < len(re.Rune); i += 2 {
			low, high := re.Rune[i], re.Rune[i+1]
			for c := low; c <= min(high, utf8.RuneSelf-1); c++ {
				s[c] = true
			}
			if high == utf8.MaxRune { // a class of what is not
				for c := utf8.RuneSelf; c < len(s); c++ {
					s[c] = true
				}
			}
		}
	case syntax.OpLiteral:
		if len(re.Rune) != 1 || re.Rune[0] >= utf8.RuneSelf {
			return nil
		}
		c := byte(re.Rune[0])
		s[c] = true
		if re.Flags&syntax.FoldCase != 0 {
			s[unicode.ToLower(rune(c))], s[unicode.ToUpper(rune(c))] = true, true
		}
	case syntax.OpAlternate: // (?:a|[bc])
		for _, sub := range re.Sub {
			t := classOf(sub)
			if t == nil {
				return nil
			}
			s.add(t)
		}
	default:
		return nil
	}
	return &s
}

// width returns how long what re matches is.
func width(re *syntax.Regexp) span {
	switch re.Op {
	case syntax.OpLiteral:
		n := len(string(re.Rune))
		return span{n, n}
	case syntax.OpCharClass, syntax.OpAnyChar, syntax.OpAnyCharNotNL:
		return span{1, 1}
	case syntax.OpCapture:
		return width(re.Sub[0])
	case syntax.OpConcat:
		var w span
		for _, sub := range re.Sub {
			s := width(sub)
			w = span{w.min + s.min, w.max + s.max}
		}
		return w
	case syntax.OpAlternate:
		w := width(re.Sub[0])
		for _, sub := range re.Sub[1:] {
			s := width(sub)
			w = span{min(w.min, s.min), max(w.max, s.max)}
		}
		return w
	case syntax.OpStar, syntax.OpPlus, syntax.OpQuest, syntax.OpRepeat:
		low, high := bounds(re)
		if classOf(re.Sub[0]) == nil {
			high = min(high, low+maxCopies)
		}
		w := width(re.Sub[0])
		return span{w.min * low, w.max * high}
	}
	return span{}
}
