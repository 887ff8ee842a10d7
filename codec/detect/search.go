package detect

import (
	"bytes"
	"math"
)

// A search looks for what the rules of a set find.
type search struct {
	*ruleSet
	m, allowing machine
	text        []byte // that is looked at
	value       [2]int // where in it the value is that is looked at; anything else is its name
	found       func(start, end int)
	texts       int     // that have been looked at
	taken       []taken // by rule
	named       []byte
	lower       []byte
	tally       tally
	known       []place     // by allowance: where its last word stands, or where none of its heads does
	runs        []place     // by expression: bytes of its value
	aheads      []ahead     // by kinds
	dulls       [16]dull    // by how many different bytes
	outcomes    []outcome   // by expression
	knownHolder place       // of placeholders, the same
	reported    place       // the last one
	judged      judged      // the last one
	counts      [256]uint16 // for entropy; zeros between
}

// A judged place is a value that is no placeholder.
type judged struct {
	place
	signs  sign
	passed bool // what is allowed for all rules, it is not
}

// A place is a part of a text. What a value is for what stands there, every
// value around it is.
type place struct{ text, from, to int }

func (p place) in(text, from, to int) bool { return p.text == text && from <= p.from && p.to <= to }

// A taken place is not looked at again by the same rule. Where another rule has
// reported the value already, it takes some time to judge it and matters only if the
// rule would look there again: until then it is in doubt.
type taken struct {
	text, end int

	doubt  *expression // that matched there; nil: it is taken
	slots  []int       // of the match
	before int         // what end is if it is not
}

func newSearch(rules *ruleSet) *search {
	return &search{ruleSet: rules}
}

func (s *search) find(text []byte, found func(start, end int)) {
	s.look(text, [2]int{0, len(text)}, found)
}

func (s *search) look(text []byte, value [2]int, found func(start, end int)) {
	if len(text) < s.least {
		return
	}
	s.text, s.value, s.found = text, value, found
	if s.texts++; s.outcomes == nil {
		s.outcomes, s.aheads = make([]outcome, len(s.expressions)), make([]ahead, len(s.sets))
	}
	s.m.fresh()
	switch {
	case s.index != nil:
		s.index.find(text, s)
	case s.slow != nil:
		s.crawl()
	}
	s.text, s.found = nil, nil
}

// crawl looks at every byte, for a rule in which nothing is rare.
func (s *search) crawl() {
	x := &s.expressions[0]
	for _, slots := range s.slow.FindAllSubmatchIndex(s.text, -1) {
		s.m.slots = slots
		s.check(x)
	}
}

// hit tries the expressions that have a gram at that place.
func (s *search) hit(at int, of []entry) {
	for i := range of {
		e := &of[i]
		if !e.fits(s.text, at) {
			continue
		}
		x := &s.expressions[e.id]
		last := at - int(e.min)
		if x.few > 0 && s.allDull(e.id, last) {
			continue
		}
		for start := max(0, at-int(e.max)); start <= last; start++ {
			if !x.first[s.text[start]] || x.atWord && !wordBoundary(s.text, start) {
				continue
			}
			mark := 0
			switch {
			case x.naming != nil:
				if mark = s.mark(x.naming, start); mark < 0 || !x.naming.value.in(s.text, mark) {
					continue
				}
			case x.value.long:
				if !s.inRun(&x.value, e.id, start) {
					continue
				}
			case !x.value.in(s.text, start) || !s.ends(&x.last, start):
				continue
			}
			t := s.takenBy(x.rule)
			if t.doubt != nil && t.text == s.texts && start < t.end {
				s.decide(t)
			}
			if t.text == s.texts && last < t.end {
				break
			}
			known := t.text == s.texts && start < t.end
			if x.naming == nil {
				if !s.m.match(x.program, s.text, start) {
					continue
				}
				if !known {
					s.judge(x)
				}
				break
			}
			behind := s.behind(x, e.id, start, mark)
			if behind == nil {
				continue
			}
			if !known && !behind.worthless {
				behind.worthless = s.judge(x)
			}
			break
		}
	}
}

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

// ends reports that l may be behind start.
func (s *search) ends(l *last, start int) bool {
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
	text, g := s.text, &n.gaps[0]
	end := min(len(text), i+g.max)
	if g.max > shortRun/2 {
		i = min(end, s.aheads[n.ahead].pass(s, g.set, i, end))
	} else {
		for i < end && g.set[text[i]] {
			i++
		}
	}
	g = &n.gaps[1]
	for end = min(len(text), i+g.max); i < end && g.set[text[i]]; {
		i++
	}
	if i < len(text) && n.mark[text[i]] {
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
	b.dullFrom, b.dullTo = mark, marks-n.longest
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
	a := &s.aheads[w.ahead]
	if a.pass(s, w.set, first, end) < end {
		return false
	}
	marks := a.pass(s, w.set, first, min(len(s.text), end+stretchAhead)) - w.most - w.far
	for _, v := range w.others {
		v.from = span{1, marks - 1 - mark + w.far}
		if v.in(s.text, mark) {
			return false
		}
	}
	b.dullFrom, b.dullTo = mark, marks-x.naming.longest
	return true
}

// An outcome is what an expression with a naming matches from a mark on.
type outcome struct {
	text, mark int
	matches    bool
	worthless  bool // the value, whatever is in front of the mark
	slots      []int

	// What begins from one to in front of the other matches not, or has a value that
	// is dull.
	dullFrom, dullTo int
}

// behind returns the outcome of x, the expression of that number, where it matches at
// start and has that mark, and has the machine's slots so; nil if it does not match.
// Many names may have the same outcome.
func (s *search) behind(x *expression, number int32, start, mark int) *outcome {
	b := &s.outcomes[number]
	if b.text != s.texts || b.mark != mark {
		if b.text != s.texts {
			b.dullTo = 0
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
	from, to := n.within.plain(s.text, mark)
	if to == 0 {
		return s.m.match(n.rest, s.text, mark)
	}
	s.m.clear(n.rest)
	s.m.slots[0], s.m.slots[1] = mark, to+1
	s.m.slots[2*n.within.group], s.m.slots[2*n.within.group+1] = from, to
	return true
}

// allDull reports that the expression of that number has only dull values in the
// matches that begin at start.
func (s *search) allDull(number int32, start int) bool {
	b := &s.outcomes[number]
	return start < b.dullTo && b.dullFrom <= start && b.text == s.texts
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

func (s *search) takenBy(r *rule) *taken {
	if s.taken == nil {
		s.taken = make([]taken, s.count)
	}
	return &s.taken[r.number]
}

// judge is check, put off where that can be.
func (s *search) judge(x *expression) (worthless bool) {
	start, end := s.secretBy(x.rule)
	p := s.reported
	if p.text != s.texts || start < p.from || end > p.to || start == end || x.rule.custom != nil {
		return s.check(x)
	}
	t := s.takenBy(x.rule)
	before := 0
	switch {
	case t.text != s.texts:
	case t.doubt != nil:
		before = t.before
	default:
		before = t.end
	}
	*t = taken{text: s.texts, end: s.m.slots[1], doubt: x, slots: append(t.slots[:0], s.m.slots...), before: before}
	return false
}

// decide judges what is in doubt.
func (s *search) decide(t *taken) {
	x := t.doubt
	t.end, t.doubt = t.before, nil
	s.m.slots = append(s.m.slots[:0], t.slots...)
	s.check(x)
}

// secretBy returns where in what the machine has matched the secret of r is.
func (s *search) secretBy(r *rule) (start, end int) {
	slots := s.m.slots
	if r.group > 0 {
		return slots[2*r.group], slots[2*r.group+1]
	}
	for g := 2; g+1 < len(slots); g += 2 {
		if slots[g+1] > slots[g] {
			return slots[g], slots[g+1]
		}
	}
	return slots[0], slots[1]
}

// check judges what the machine has matched, and reports it. It returns true if the
// value is worthless, whatever is in front of it.
func (s *search) check(x *expression) (worthless bool) {
	r, slots := x.rule, s.m.slots
	start, end := s.secretBy(r)
	match := [2]int{slots[0], slots[1]}
	if start < 0 || start == end {
		return true
	}
	secret := s.text[start:end]
	if r.custom != nil {
		if r.custom.accepts(s, secret, match) {
			s.report(r, start, end, match)
		}
		return false
	}
	if bytes.HasPrefix(secret, maskBegin) { // a placeholder, whatever it is made of
		return true
	}
	if r.entropy > 0 && s.entropyAtMost(r.entropy, start, end) || r.varied && !s.varied(start, end) {
		return true
	}
	if p := (place{s.texts, start, end}); s.judged.place != p { // else by another rule
		signs := s.signs.in(secret)
		if s.placeholder(start, end, signs) || len(secret) > longPlaceholder && bytes.Contains(secret, maskBegin) {
			return true
		}
		s.judged = judged{place: p, signs: signs}
	}
	if !r.own {
		for x.lead.max > 0 && match[0] > 0 && match[0] > slots[0]-x.lead.max && x.set[s.text[match[0]-1]] {
			match[0]--
		}
		place := [2]int{start, end}
		if !s.judged.passed && s.allowedToAll(place, match) {
			return s.alike
		}
		s.judged.passed = s.alike
		if s.allowed(r.allow, place, match) {
			return false
		}
		if r.generic && isIdentifier(secret) && !namesSecret(s.text[match[0]:start]) {
			return false
		}
	}
	s.report(r, start, end, match)
	return false
}

func (s *search) report(r *rule, start, end int, match [2]int) {
	t := s.takenBy(r)
	t.text, t.end, t.doubt = s.texts, match[1], nil
	if start >= s.value[0] && end <= s.value[1] {
		s.reported = place{s.texts, start, end}
		s.found(start-s.value[0], end-s.value[0])
	}
}

var maskBegin = []byte("[masked:")

// allowedToAll is allowed, of what is for all rules.
func (s *search) allowedToAll(secret, match [2]int) bool {
	if !s.alike || s.judged.signs&allowedSign != 0 {
		return s.allowed(s.allow, secret, match)
	}
	for i := range s.allow {
		if s.allow[i].programs.starts(&s.allowing, s.text[secret[0]:secret[1]]) {
			return true
		}
	}
	return false
}

// allowed reports whether one of list says that what was found is no secret.
func (s *search) allowed(list []allowance, secret, match [2]int) bool {
	for i := range list {
		a := &list[i]
		if a.stopwords != nil && s.stopped(a, secret) {
			return true
		}
		target := s.text[secret[0]:secret[1]]
		switch a.target {
		case "match":
			target = s.text[match[0]:match[1]]
		case "line":
			if a.programs.heads > 0 && a.stopwords == nil && s.headless(a, max(0, match[0]-maxLine), min(len(s.text), match[1]+maxLine)) {
				continue
			}
			target = line(s.text, match)
		}
		if a.programs.in(&s.allowing, target) {
			return true
		}
	}
	return false
}

// headless reports that none of a's programs begins in s.text[from:to]. It looks
// ahead, for the next match is near.
func (s *search) headless(a *allowance, from, to int) bool {
	if s.known == nil {
		s.known = make([]place, s.allowances)
	}
	p := &s.known[a.number] // in which no head is
	if p.text != s.texts || from < p.from || from > p.to {
		*p = place{s.texts, from, from}
	}
	if to > p.to {
		again := max(p.from, p.to-a.programs.heads+1)
		ahead := min(len(s.text), to+4*maxLine)
		n := a.programs.headAt(s.text[again:ahead])
		if n < 0 {
			p.to = ahead
		} else {
			p.to = again + n
		}
	}
	return to <= p.to
}

// stopped reports whether a stopword of a is in the secret.
func (s *search) stopped(a *allowance, secret [2]int) bool {
	if s.known == nil {
		s.known = make([]place, s.allowances)
	}
	p := &s.known[a.number]
	if p.in(s.texts, secret[0], secret[1]) {
		return true
	}
	from, to := a.stopwords.find(s.text[secret[0]:secret[1]])
	if to == 0 {
		return false
	}
	*p = place{s.texts, secret[0] + from, secret[0] + to}
	return true
}

// maxLine bounds how much of a line is looked at, on either side of a match.
const maxLine = 256

// line returns the line that text[match[0]:match[1]] stands in.
func line(text []byte, match [2]int) []byte {
	from, to := max(0, match[0]-maxLine), min(len(text), match[1]+maxLine)
	if n := bytes.LastIndexByte(text[from:match[0]], '\n'); n >= 0 {
		from += n + 1
	}
	if n := bytes.IndexByte(text[match[1]:to], '\n'); n >= 0 {
		to = match[1] + n
	}
	return text[from:to]
}

func appendLower(dst, text []byte) []byte {
	for _, c := range text {
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		dst = append(dst, c)
	}
	return dst
}

// isIdentifier reports a UUID, or a digest in hexadecimal as long as MD5, SHA-1,
// SHA-2 and SHA-3 make them: they name things.
func isIdentifier(value []byte) bool {
	dashes := 0
	for i, c := range value {
		switch {
		case is(c, digit), 'a' <= c && c <= 'f', 'A' <= c && c <= 'F':
		case c == '-' && len(value) == 36 && (i == 8 || i == 13 || i == 18 || i == 23):
			dashes++
		default:
			return false
		}
	}
	switch len(value) {
	case 36:
		return dashes == 4
	case 32, 40, 56, 64, 96, 128:
		return true
	}
	return false
}

// secretNames are what a value may be secret by, though it looks like the name of a thing.
var secretNames = newWords([]string{
	"passw", "secret", "apikey", "api_key", "api-key", "access_key", "accesskey", "token", "creds", "credential", "private_key", "auth_key",
})

func namesSecret(name []byte) bool { return secretNames.in(name[:min(len(name), 128)]) }

// under finds the secrets in text, the value of the member of that name in an
// object, that are secrets by the name: it is read as name: "text".
func (s *search) under(name, text []byte, found func(start, end int)) {
	if len(name) < 3 || len(name) > maxName || len(text) < 8 || len(text) > maxNamed || !s.names(name) {
		return
	}
	s.named = append(append(append(append(s.named[:0], name...), `: "`...), text...), '"')
	at := len(name) + len(`: "`)
	s.look(s.named, [2]int{at, at + len(text)}, found)
}

// names reports whether a rule is about a word in name.
func (s *search) names(name []byte) bool {
	s.named = append(append(s.named[:0], name...), `: "`...)
	return s.index == nil || s.index.any(s.named)
}

const (
	maxName  = 64  // of a member whose value is looked at under its name, in bytes
	maxNamed = 512 // of such a value
)

// varied reports a value that looks made at random, or at least chosen by the
// rules for passwords: letters, and digits or marks, and not few of them.
func (s *search) varied(from, to int) bool {
	letters, others := false, false
	for _, c := range s.text[from:to] {
		if is(c, upper|lower|beyond) {
			letters = true
		} else if !is(c, under|dash|dot) {
			others = true
		}
		if letters && others {
			return !s.entropyAtMost(leastVaried, from, to)
		}
	}
	return false
}

// leastVaried is the entropy that such a value has more than.
const leastVaried = 2.3

// entropyAtMost reports whether the entropy of s.text[from:to] is not above limit.
func (s *search) entropyAtMost(limit float64, from, to int) bool {
	n := to - from
	if n < len(timesLog) && timesLog[n]/float64(n) <= limit { // even if no two bytes are the same
		return true
	}
	if n >= longTally && n < len(timesLog) {
		s.tally.move(s.texts, s.text, from, to)
		const unsure = 1e-6 // what entropy adds up differs by less
		switch e := timesLog[n]/float64(n) - float64(s.tally.sum)/logOne/float64(n); {
		case e < limit-unsure:
			return true
		case e > limit+unsure:
			return false
		}
	}
	return entropyBy(&s.counts, s.text[from:to]) <= limit
}

// A tally counts the bytes of a part of a text. Values that overlap, as those of
// names in a value do, are counted once.
type tally struct {
	text     int
	from, to int
	counts   [256]uint16
	sum      int64 // of counts times their logarithm, in parts of logOne
}

const (
	logOne    = 1 << 32
	longTally = 48 // of shorter values it is no gain
)

// countLog is timesLog in parts of logOne.
var countLog = func() (t [len(timesLog)]int64) {
	for n := range t {
		t[n] = int64(math.Round(timesLog[n] * logOne))
	}
	return t
}()

func (t *tally) move(number int, text []byte, from, to int) {
	if t.text != number || from < t.from || from >= t.to || from-t.from+max(to-t.to, t.to-to) >= to-from {
		t.counts, t.sum = [256]uint16{}, 0
		t.text, t.from, t.to = number, from, from
	}
	for ; t.to < to; t.to++ {
		t.add(text[t.to])
	}
	for ; t.to > to; t.to-- {
		t.remove(text[t.to-1])
	}
	for ; t.from < from; t.from++ {
		t.remove(text[t.from])
	}
}

func (t *tally) add(c byte) {
	n := t.counts[c]
	t.counts[c] = n + 1
	t.sum += countLog[n+1] - countLog[n]
}

func (t *tally) remove(c byte) {
	n := t.counts[c]
	t.counts[c] = n - 1
	t.sum -= countLog[n] - countLog[n-1]
}

// entropy is Shannon's, of the bytes of value, in bits a byte.
func entropy(value []byte) float64 {
	var counts [256]uint16
	return entropyBy(&counts, value)
}

// entropyBy is entropy, by counts that are zeros before and behind.
func entropyBy(counts *[256]uint16, value []byte) float64 {
	value = value[:min(len(value), len(timesLog)-1)]
	for _, c := range value {
		counts[c]++
	}
	sum := 0.0
	for _, c := range value {
		sum += timesLog[counts[c]]
		counts[c] = 0
	}
	n := float64(len(value))
	return timesLog[len(value)]/n - sum/n
}

// timesLog is n times its logarithm to the base of 2.
var timesLog = func() (t [1 << 12]float64) {
	for n := 2; n < len(t); n++ {
		t[n] = float64(n) * math.Log2(float64(n))
	}
	return t
}()

// placeholders stand where documentation, templates and maskers leave a secret out.
var placeholders = newWords([]string{
	"example", "changeme", "change_me", "placeholder", "redacted", "xxxx", "your-", "your_", "insert", "****", "....", "[masked:", "process.env", "os.environ", "getenv",
})

// longPlaceholder is how long one is at most: nobody writes a longer one.
const longPlaceholder = 128

// placeholder reports that s.text[from:to], which has such signs, is one, has one in
// it, or has what begins one.
func (s *search) placeholder(from, to int, signs sign) bool {
	if to-from > longPlaceholder {
		return false
	}
	value := s.text[from:to]
	if signs&holderSign != 0 {
		if s.knownHolder.in(s.texts, from, to) {
			return true
		}
		if first, end := placeholders.find(value); end > 0 {
			s.knownHolder = place{s.texts, from + first, from + end}
			return true
		}
	}
	return signs&openSign != 0 && begins(value) || standsFor(value)
}

// placeholder reports a value that is one, has one in it, or has what begins one.
func placeholder(value []byte) bool {
	return len(value) <= longPlaceholder && (placeholders.in(value) || begins(value) || standsFor(value))
}

// begins reports what begins a placeholder in value: < ${ {{ $(
func begins(value []byte) bool {
	for i, c := range value {
		if opens[c] && (c == '<' || i > 0 && (value[i-1] == '$' || c == '{' && value[i-1] == '{')) {
			return true
		}
	}
	return false
}

// standsFor reports a value that is one byte over and over, or between marks of its own.
func standsFor(value []byte) bool {
	same := 1
	for same < len(value) && value[same] == value[0] {
		same++
	}
	return same == len(value) || value[0] == '$' || value[0] == '%' && value[len(value)-1] == '%'
}

var opens = [256]bool{'<': true, '{': true, '(': true}
