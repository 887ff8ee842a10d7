package detect

import (
	_ "embed"
	"fmt"
	"math"
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
