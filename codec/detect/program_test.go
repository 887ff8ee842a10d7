package detect

import (
	"errors"
	"math/rand/v2"
	"regexp"
	"regexp/syntax"
	"slices"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"
	gitleaks "github.com/zricethezav/gitleaks/v8/config"
)

func mustProgram(t testing.TB, source string) (*program, *regexp.Regexp) {
	re, err := syntax.Parse(source, syntax.Perl)
	if err != nil {
		t.Fatal(err)
	}
	p, err := compile(re)
	if err != nil {
		t.Fatal(err)
	}
	return p, regexp.MustCompile(source)
}

// TestProgramGroups checks that groups are where Go's regexp has them: none is left of a
// way that was tried in vain, and none is lost.
func TestProgramGroups(t *testing.T) {
	for _, tt := range []struct{ source, in string }{
		{`x[abc]{0,9}(?:(b)y|cab)`, "xcabz"},
		{`x[abc]{0,40}(?:(b)y|cab)`, "xcabz"},
		{`x[abc]{0,40}?(?:(c)y|cab)`, "xcabz"},
		{`(?:((?:(;|abcabcabcabc)| )|[A-Za-z]{10,40}?)){2,5}`, "kcbzAxAkaaa "},
		{`api_key=[a-z0-9]{1,9}(?:(ab=)x|[a-c][b-d][0-9])`, "api_key=zbb1ab;"},
		{`key(?:(?s:.){0,9}){0,30}[a-c]{20,60}[A-Za-z]`, "keyaababbbbbbaaabbabbabc"},
		{`(?:(?:(ab)c|(abd))|(\w)be)x?`, "abe"},
	} {
		p, re := mustProgram(t, tt.source)
		var m machine
		want := re.FindStringSubmatchIndex(tt.in)
		if want == nil || !m.match(p, []byte(tt.in), 0) || !slices.Equal(m.slots, want) {
			t.Errorf("%s in %q: %v, want %v", tt.source, tt.in, m.slots, want)
		}
	}
}

// sample writes a text that re matches, but perhaps for what it asserts about
// its surroundings.
func sample(b *strings.Builder, re *syntax.Regexp, r *rand.Rand) {
	switch re.Op {
	case syntax.OpLiteral:
		b.WriteString(string(re.Rune))
	case syntax.OpAnyChar, syntax.OpAnyCharNotNL:
		b.WriteByte("ab 1"[r.IntN(4)])
	case syntax.OpCharClass:
		for {
			n := 2 * r.IntN(len(re.Rune)/2)
			if c := re.Rune[n] + r.Int32N(min(re.Rune[n+1], 126)-min(re.Rune[n], 126)+1); c < 127 {
				b.WriteRune(c)
				return
			}
		}
	case syntax.OpCapture:
		sample(b, re.Sub[0], r)
	case syntax.OpConcat:
		for _, sub := range re.Sub {
			sample(b, sub, r)
		}
	case syntax.OpAlternate:
		sample(b, re.Sub[r.IntN(len(re.Sub))], r)
	case syntax.OpStar, syntax.OpPlus, syntax.OpQuest, syntax.OpRepeat:
		low, high := bounds(re)
		for range low + r.IntN(min(high-low, 4)+1) {
			sample(b, re.Sub[0], r)
		}
	}
}

// A tried records which rules match at a place that the index names.
type tried struct {
	*search
	text  []byte
	rules map[string]bool
}

func (s *tried) hit(at int, of []entry) {
	for _, e := range of {
		x := &s.expressions[e.id]
		for start := max(0, at-int(e.max)); start <= at-int(e.min); start++ {
			if s.m.match(x.program, s.text, start) {
				s.rules[x.rule.id] = true
			}
		}
	}
}

// TestAnchors checks with texts made from the expressions of all rules that the
// index names a place where the expression matches, wherever the text lies.
func TestAnchors(t *testing.T) {
	var theirs, ours ruleFile
	if err := errors.Join(toml.Unmarshal([]byte(gitleaks.DefaultConfig), &theirs), toml.Unmarshal([]byte(ownRules), &ours)); err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(3, 4))
	for _, rule := range append(theirs.Rules, ours.Rules...) {
		if rule.Regex == "" || ours.Skip[rule.ID] != "" {
			continue
		}
		re, err := syntax.Parse(rule.Regex, syntax.Perl)
		if err != nil {
			t.Fatal(err)
		}
		whole := regexp.MustCompile(rule.Regex)
		good := 0
		for n := range 60 {
			var b strings.Builder
			sample(&b, re, r)
			text := strings.Repeat(" ", n%3) + b.String()
			if n%2 == 0 {
				text += "\n"
			}
			if !whole.MatchString(text) || rule.ID == "sourcegraph-access-token" && !strings.Contains(strings.ToLower(text), "sgp_") {
				continue
			}
			good++
			s := &tried{search: newSearch(secretRules()), text: []byte(text), rules: map[string]bool{}}
			s.m.fresh()
			if s.index.find(s.text, s); !s.rules[rule.ID] {
				t.Errorf("%s: no place in %q", rule.ID, text)
				break
			}
		}
		if good == 0 {
			t.Errorf("%s: no text could be made that it matches", rule.ID)
		}
	}
}
