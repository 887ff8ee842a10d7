package detect

import (
	"bytes"
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
