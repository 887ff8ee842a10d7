package detect

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// TestPatterns checks that what is looked for by its first bytes is found where a
// search at every place finds it.
func TestPatterns(t *testing.T) {
	rules := secretRules()
	lists := [][]allowance{rules.allow}
	for _, x := range rules.expressions {
		lists = append(lists, x.rule.allow)
	}
	texts := []string{"", "a", "ap", "true", "nullable", "$1", "${HOME}", "%d", "A_B=\nC_D=\n", "x-api-y-api:jar:", "MONKEY_TOKEN", "monkey", "keying", "public-key", "import { a } from 'b'", "AKIAEXAMPLE", "/Users/ada/x", "--mount=type=secret,id=x", "io.jsonwebtoken : x", "rapid", "key-up", "x_TOKEN_URL", "csrf_token", "apiid", "pub.key", "A=\nB=\n", "api:jar:"}
	for _, l := range readCorpus() {
		texts = append(texts, l.text, l.text[:len(l.text)/2], l.text[len(l.text)/3:])
	}
	var m, every machine
	hits := 0
	for _, list := range lists {
		for i := range list {
			p := &list[i].programs
			for _, text := range texts {
				want := false
				for _, q := range p.pinned {
					want = want || every.search(q, []byte(text))
				}
				for _, q := range p.others {
					want = want || every.search(q.program, []byte(text))
				}
				if got := p.in(&m, []byte(text)); got != want {
					t.Fatalf("in %q: %v, want %v", text, got, want)
				}
				if want {
					hits++
				}
			}
		}
	}
	if hits == 0 {
		t.Error("no pattern is in any text")
	}
}

// TestEntropy checks that values which overlap are judged as each by itself.
func TestEntropy(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	s := newSearch(secretRules())
	for range 200 {
		s.texts++
		s.text = make([]byte, 400)
		kinds := 2 + r.IntN(60)
		for i := range s.text {
			s.text[i] = 'A' + byte(r.IntN(kinds))
		}
		from, to := 0, 100
		for range 100 {
			if r.IntN(3) > 0 {
				from = min(from+r.IntN(20), 350)
			} else {
				from = r.IntN(350)
			}
			to = min(max(to+r.IntN(30)-10, from+1), 400)
			for _, limit := range []float64{2.3, 3, 3.5, 4, entropy(s.text[from:to])} {
				if got, want := s.entropyAtMost(limit, from, to), entropy(s.text[from:to]) <= limit; got != want {
					t.Fatalf("entropy of %q is at most %v: %v, want %v", s.text[from:to], limit, got, want)
				}
			}
		}
	}
}

// TestInDoubt has a value that one rule reports and another matches, too, which takes
// what is behind it only if it finds it a secret itself.
func TestInDoubt(t *testing.T) {
	first := "[[rules]]\nid = 'first'\nregex = 'xouter=(\\w{4})'\n"
	second := "[[rules]]\nid = 'second'\nregex = '(?:outer|inner)=(\\w{4})[^\\n]{0,40}'\n"
	allow := "[[rules.allowlists]]\nregexes = ['abcd']\n"
	for _, tt := range []struct{ name, rules, want string }{
		{"it does", first + second, "abcd"},
		{"it does, the other order", second + first, "abcd"},
		{"it does not", first + second + allow, "abcd efgh"},
		{"it does not, the other order", second + allow + first, "abcd efgh"},
	} {
		rules, err := newRuleSet(tt.rules, "")
		if err != nil {
			t.Fatal(err)
		}
		text := []byte("xouter=abcd inner=efgh\n")
		var found []string
		newSearch(rules).find(text, func(start, end int) { found = append(found, string(text[start:end])) })
		slices.Sort(found)
		if got := strings.Join(slices.Compact(found), " "); got != tt.want {
			t.Errorf("%s: got %s, want %s", tt.name, got, tt.want)
		}
	}
}
