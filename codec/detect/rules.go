package detect

import (
	"bytes"
	_ "embed"
	"fmt"
	"math"
	"math/bits"
	"regexp"
	"regexp/syntax"
	"slices"
	"strings"
	"sync"

	"github.com/pelletier/go-toml/v2"
	gitleaks "github.com/zricethezav/gitleaks/v8/config"
)

// The rules are data: gitleaks' from its module, ours from rules.toml.

//go:embed rules.toml
var ownRules string

// A rule is one kind of secret.
type rule struct {
	id      string
	number  int
	group   int // of the expression that is the secret; 0: the first that is not empty
	entropy float64
	allow   []allowance
	own     bool
	varied  bool
	generic bool // what follows any word such as key or token
	custom  *custom
}

// few returns how many different bytes a value may have and is none for certain.
func (r *rule) few() int {
	limit := r.entropy
	if r.varied {
		limit = max(limit, leastVaried)
	}
	return max(0, int(math.Ceil(math.Exp2(limit)))-1)
}

// An allowance says what is no secret all the same.
type allowance struct {
	target    string // "" for the secret, "match" or "line"
	number    int
	programs  patterns
	stopwords *words
}

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

// An expression is one way in which a rule's values are found.
type expression struct {
	rule   *rule
	naming *naming // nil: it is tried as a whole
	few    int     // so many different bytes are no secret, as far as naming tells where it is; 0: nothing is known
	first  *byteSet
	atWord bool // it begins with \b
	*program
	lead  span // of a run of leadSet in front of the match, which belongs to it
	set   *byteSet
	value value
	last  last
}

// A last is how every match of an expression ends: with a byte that is not of others,
// within so many bytes.
type last struct {
	others *byteSet // nil: nothing is known
	within int
	ahead  int // the number of others
}

// lastOf returns how what re matches ends, if that is with a byte that is seldom.
func lastOf(re *syntax.Regexp) last {
	elems := flatten(nil, re)
	most := width(re).max
	set := classOf(elems[len(elems)-1])
	if set == nil || most > maxLast {
		return last{}
	}
	others := anyByte
	for c := range set {
		if set[c] && (is(byte(c), alnum) || common(byte(c)) > common('@')) {
			return last{}
		}
		others[c] = !set[c]
	}
	return last{others: &others, within: most}
}

// maxLast is how long a match is at most, in bytes, for which its last one is asked.
const maxLast = 512

// A ruleSet is what a search looks for. It is not changed once it is made.
type ruleSet struct {
	expressions []expression
	index       *index
	slow        *regexp.Regexp // where there is no index
	least       int            // bytes of what any expression matches
	allow       []allowance    // for all rules
	alike       bool           // allow looks at nothing but the value
	signs       signs
	count       int        // of rules
	sets        []*byteSet // of values and namings, each once
	allowances  int        // of all rules
	unanchored  []string   // rules, or parts of them, that are not looked for, and why
}

// ruleFile is gitleaks' configuration, as far as it is about text.
type ruleFile struct {
	Skip      map[string]string
	Allowlist allowFile // for all rules
	Rules     []struct {
		ID          string
		Regex       string
		SecretGroup int
		Entropy     float64
		Varied      bool
		Allowlists  []allowFile
	}
}

type allowFile struct {
	Condition   string
	RegexTarget string
	Paths       []string
	Regexes     []string
	StopWords   []string
}

var secretRules = sync.OnceValue(func() *ruleSet {
	s, err := newRuleSet(gitleaks.DefaultConfig, ownRules)
	if err != nil {
		panic(err) // both are part of the program, and a test loads them
	}
	return s
})

func newRuleSet(gitleaks, own string) (*ruleSet, error) {
	var theirs, ours ruleFile
	if err := toml.Unmarshal([]byte(gitleaks), &theirs); err != nil {
		return nil, fmt.Errorf("gitleaks' rules: %w", err)
	}
	if err := toml.Unmarshal([]byte(own), &ours); err != nil {
		return nil, fmt.Errorf("rules.toml: %w", err)
	}
	s := &ruleSet{}
	global, err := theirs.Allowlist.compile()
	if err != nil {
		return nil, err
	}
	s.number(global)
	s.allow = global
	s.alike = !slices.ContainsFunc(global, func(a allowance) bool { return a.target != "" })
	s.signs.ofValues(global)
	var all [][]anchor
	for i, file := range []ruleFile{theirs, ours} {
		for _, r := range file.Rules {
			if ours.Skip[r.ID] != "" || r.Regex == "" {
				continue
			}
			made := &rule{id: r.ID, number: s.count, group: r.SecretGroup, entropy: r.Entropy, own: i == 1, varied: r.Varied, generic: r.ID == "generic-api-key"}
			s.count++
			for _, a := range r.Allowlists {
				allow, err := a.compile()
				if err != nil {
					return nil, fmt.Errorf("rule %s: %w", r.ID, err)
				}
				made.allow = append(made.allow, allow...)
			}
			s.number(made.allow)
			re, err := syntax.Parse(r.Regex, syntax.Perl)
			if err != nil {
				return nil, fmt.Errorf("rule %s: %w", r.ID, err)
			}
			for _, v := range variants(re) {
				e := expression{rule: made}
				v, e.set, e.lead = withoutLead(v)
				found := anchors(v)
				if found == nil {
					s.unanchored = append(s.unanchored, r.ID+" "+v.String())
					continue
				}
				if e.program, err = compile(v); err != nil {
					return nil, fmt.Errorf("rule %s: %w", r.ID, err)
				}
				e.value = valueOf(v)
				s.share(&e.value)
				e.value.long = e.value.words == nil && e.value.n >= longValue && e.value.from.min == e.value.from.max
				if e.last = lastOf(v); e.last.others != nil {
					e.last.ahead = s.numbered(e.last.others)
				}
				e.first, e.atWord = &e.start.first, e.start.op == opWord
				e.naming = s.naming(v)
				if e.naming != nil && e.naming.secret.set != nil && !slices.ContainsFunc(found, func(a anchor) bool { return a.back.min != a.back.max }) {
					e.few = made.few()
				}
				s.expressions = append(s.expressions, e)
				all = append(all, found)
			}
		}
	}
	s.index = newIndex(all)
	s.least = slices.MinFunc(s.expressions, func(a, b expression) int { return a.width.min - b.width.min }).width.min
	return s, nil
}

// naming returns the naming of re, or nil. What a search knows of a set's bytes by
// one, it knows by all.
func (s *ruleSet) naming(re *syntax.Regexp) *naming {
	n := namingOf(re)
	if n == nil {
		return nil
	}
	n.ahead = s.numbered(n.gaps[0].set)
	for i := range n.gaps {
		n.gaps[i].set = s.sets[s.numbered(n.gaps[i].set)]
	}
	n.mark = s.sets[s.numbered(n.mark)]
	s.share(&n.value)
	if n.secret.set != nil {
		n.secret.ahead = s.numbered(n.secret.set)
	}
	if n.within.set != nil {
		n.within.ahead = s.numbered(n.within.set)
	}
	return n
}

// numbered returns the number of a set.
func (s *ruleSet) numbered(set *byteSet) int {
	n := slices.IndexFunc(s.sets, func(t *byteSet) bool { return *t == *set })
	if n < 0 {
		n = len(s.sets)
		s.sets = append(s.sets, set)
	}
	return n
}

// share makes the sets of v those of others that are the same: most are, and as one
// they are in the first cache.
func (s *ruleSet) share(v *value) {
	for _, set := range []**byteSet{&v.set, &v.words, &v.gap} {
		if *set != nil {
			*set = s.sets[s.numbered(*set)]
		}
	}
}

func (s *ruleSet) number(list []allowance) {
	for i := range list {
		list[i].number = s.allowances
		s.allowances++
	}
}

// compile returns nothing for an allowance that asks for the name of a file.
func (f allowFile) compile() ([]allowance, error) {
	if strings.EqualFold(f.Condition, "AND") && len(f.Paths) > 0 || len(f.Regexes)+len(f.StopWords) == 0 {
		return nil, nil
	}
	a := allowance{target: f.RegexTarget, stopwords: newWords(f.StopWords)}
	for _, r := range f.Regexes {
		re, err := syntax.Parse(r, syntax.Perl)
		if err != nil {
			return nil, err
		}
		p, err := compile(re)
		if err != nil {
			return nil, err
		}
		a.programs.add(p)
	}
	return []allowance{a}, nil
}

// variants returns the ways in which re can match, each as an expression of its
// own where the parts of an alternation have no anchor in common.
func variants(re *syntax.Regexp) []*syntax.Regexp {
	if _, _, lead := withoutLead(re); lead.max == 0 && anchors(re) != nil {
		return []*syntax.Regexp{re}
	} else if v, _, _ := withoutLead(re); re.Op != syntax.OpAlternate && anchors(v) != nil {
		return []*syntax.Regexp{re}
	}
	parts := split(re)
	if len(parts) < 2 {
		return []*syntax.Regexp{re}
	}
	var all []*syntax.Regexp
	for _, p := range parts {
		all = append(all, variants(p)...)
	}
	return all
}

// split returns re once for each part of the first alternation in it.
func split(re *syntax.Regexp) []*syntax.Regexp {
	switch re.Op {
	case syntax.OpAlternate:
		return re.Sub
	case syntax.OpCapture, syntax.OpConcat:
		for i, sub := range re.Sub {
			parts := split(sub)
			if len(parts) < 2 {
				continue
			}
			all := make([]*syntax.Regexp, len(parts))
			for j, p := range parts {
				one := *re
				one.Sub = slices.Clone(re.Sub)
				one.Sub[i] = p
				all[j] = &one
			}
			return all
		}
	}
	return nil
}

// withoutLead returns re without the runs of a class that it may begin with, as
// (?:[\w.-]{0,50}?key), and what they are: a match is found without them.
func withoutLead(re *syntax.Regexp) (*syntax.Regexp, *byteSet, span) {
	var set *byteSet
	var lead span
	for re.Op == syntax.OpConcat && len(re.Sub) > 1 {
		class, low := repeats(re.Sub[0])
		if re.Sub[0].Op == syntax.OpCapture || class == nil || low > 0 {
			break
		}
		_, high := bounds(re.Sub[0])
		set, lead.max = class, lead.max+high
		rest := *re
		rest.Sub = re.Sub[1:]
		re = &rest
	}
	return re, set, lead
}

// signs tell by the hash of three bytes of a value, and by each byte, what it is
// worth to look for in it. So a value is gone over once, and not for each list.
type signs struct {
	threes [1 << headBits]sign
	ones   [256]sign
}

type sign uint8

const (
	holderSign  sign = 1 << iota // of placeholders
	openSign                     // of what begins one
	allowedSign                  // of what is allowed for all rules
)

// ofValues makes s what tells of placeholders and of what in list is no matter of
// the start of a value.
func (s *signs) ofValues(list []allowance) {
	s.words(placeholders, holderSign)
	for c := range opens {
		if opens[c] {
			s.ones[c] = openSign
		}
	}
	for i := range list {
		if list[i].stopwords != nil {
			s.words(list[i].stopwords, allowedSign)
		}
		for _, q := range list[i].programs.others {
			for h := range s.threes {
				if q.bits == nil || q.bits.has(uint32(h)) {
					s.threes[h] |= allowedSign
				}
			}
		}
	}
}

func (s *signs) words(w *words, is sign) {
	for _, some := range w.by {
		for _, word := range some {
			s.threes[headHash(three(word[0], word[1], word[2]))] |= is
		}
	}
}

// in returns which signs value has.
func (s *signs) in(value []byte) (found sign) {
	if len(value) < 3 {
		return holderSign | openSign | allowedSign
	}
	k := three(0, value[0], value[1])
	found = s.ones[value[0]] | s.ones[value[1]]
	for _, c := range value[2:] {
		k = k>>8 | uint32(c)<<16
		found |= s.threes[headHash(k)] | s.ones[c]
	}
	return found
}

// words are looked for anywhere in a text, letters' case apart.
type words struct {
	prefixes [1 << 16 / 64]uint64    // by hash of their first three bytes: 1 if a word has it
	by       [1 << wordBits][]string // by the upper bits of that hash
}

const wordBits = 10

func prefixHash(k uint32) uint32 { return k * hashMul >> 16 }

func newWords(list []string) *words {
	if len(list) == 0 {
		return nil
	}
	w := &words{}
	for _, s := range list {
		s = strings.ToLower(s)
		if len(s) < 3 {
			continue
		}
		h := prefixHash(three(s[0], s[1], s[2]))
		w.by[h>>(16-wordBits)] = append(w.by[h>>(16-wordBits)], s)
		w.prefixes[h>>6] |= 1 << (h & 63)
	}
	return w
}

func three(a, b, c byte) uint32 { return uint32(a) | uint32(b)<<8 | uint32(c)<<16 }

// in reports whether one of w stands in text.
func (w *words) in(text []byte) bool {
	_, end := w.find(text)
	return end > 0
}

// find returns where in text one of w stands, or 0, 0.
func (w *words) find(text []byte) (from, to int) {
	if len(text) < 3 {
		return 0, 0
	}
	k := three(0, small[text[0]], small[text[1]])
	for i, c := range text[2:] {
		k = k>>8 | uint32(small[c])<<16
		h := prefixHash(k)
		if w.prefixes[h>>6]>>(h&63)&1 == 0 {
			continue
		}
		for _, s := range w.by[h>>(16-wordBits)] {
			if isSmall(text[i:], s) {
				return i, i + len(s)
			}
		}
	}
	return 0, 0
}

// isSmall reports that text begins with s, which is in lower case.
func isSmall(text []byte, s string) bool {
	if len(text) < len(s) {
		return false
	}
	for i := range len(s) {
		if small[text[i]] != s[i] {
			return false
		}
	}
	return true
}

// small is bytes with letters in lower case.
var small = func() (t [256]byte) {
	for c := range t {
		t[c] = byte(c)
		if 'A' <= c && c <= 'Z' {
			t[c] += 'a' - 'A'
		}
	}
	return t
}()
