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

// A named is an expression with a naming, as its rule has it.
type named struct {
	id   int
	tree *syntax.Regexp
	re   *regexp.Regexp // at the start of a text
	x    *expression
	mark *byteSet
}

// word returns one of its names.
func (n named) word(r *rand.Rand) string {
	words := n.x.naming.words[1+r.IntN(len(n.x.naming.words)-1)]
	w := words[r.IntN(len(words))]
	var b []byte
	for i := range w.n {
		c := byte(w.eights[i/8].bits >> (8 * (i % 8)))
		if byte(w.eights[i/8].mask>>(8*(i%8))) == 0xdf && r.IntN(4) > 0 {
			c |= 0x20
		}
		b = append(b, c)
	}
	return string(b)
}

// allNamed returns the expressions with namings, of all rules and of some more.
func allNamed(t testing.TB) (*ruleSet, []named) {
	var theirs, ours ruleFile
	if err := errors.Join(toml.Unmarshal([]byte(gitleaks.DefaultConfig), &theirs), toml.Unmarshal([]byte(ownRules), &ours)); err != nil {
		t.Fatal(err)
	}
	rules := &ruleSet{count: 1}
	var all []named
	add := func(r *rule, source string) {
		re, err := syntax.Parse(source, syntax.Perl)
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range variants(re) {
			v, _, _ = withoutLead(v)
			p, err := compile(v)
			if err != nil {
				t.Fatal(err)
			}
			x := expression{rule: r, naming: rules.naming(v), program: p}
			if x.naming == nil {
				continue
			}
			if x.naming.secret.set != nil {
				x.few = r.few()
			}
			all = append(all, named{len(rules.expressions), v, regexp.MustCompile(`\A(?:` + v.String() + `)`), &x, x.naming.mark})
			rules.expressions = append(rules.expressions, x)
		}
	}
	for _, r := range append(theirs.Rules, ours.Rules...) {
		if r.Regex != "" && ours.Skip[r.ID] == "" {
			entropy := r.Entropy
			if entropy == 0 && !r.Varied {
				entropy = 2.9 // so that there are dull values
			}
			add(&rule{group: r.SecretGroup, entropy: entropy, varied: r.Varied}, r.Regex)
		}
	}
	for _, source := range []string{
		`key[ ]{0,9}=(a{1,3}|[a-c]{2,5})(?:;|$)`, `(?i)(?:key|keys|monkeys)[ s]{0,20}?[ _]?[:=]+ ?"?(\w{3,}?)\b`, `ab?[a-c]{0,30}[cd]{0,3}(?:=>?|=x)(=*\w+)`,
		`(?:key|auth)[ ]{0,9}(?:=|=>)[ =]{0,2}([\w=-]{3,9}|[a-k]{4,}x?)(?:;| x|$)`, `pin[ ]?=(\d{2,4})?x?`, `a_name_of_many_bytes[-_]{0,12}=(\d|(z)){1,4}`,
	} {
		add(&rule{entropy: 2.1}, source)
	}
	return rules, all
}

// names checks that an expression with a naming matches text where the machine
// and Go's regexp say so, and the same; or that what it takes for dull is.
func names(t *testing.T, rules *ruleSet, n named, text string) (matches int) {
	s := newSearch(rules)
	s.outcomes, s.aheads = make([]outcome, len(rules.expressions)), make([]ahead, len(rules.sets))
	s.text, s.texts = []byte(text), 1
	x := &rules.expressions[n.id]
	var m machine
	for start := range s.text {
		got := []int(nil)
		dull := x.few > 0 && s.allDull(int32(n.id), start)
		if mark := s.mark(x.naming, start); !dull && mark >= 0 && x.naming.value.in(s.text, mark) && s.behind(x, int32(n.id), start, mark) != nil {
			got = s.m.slots
		}
		want := []int(nil)
		if m.fresh(); m.match(x.program, s.text, start) {
			want = m.slots
			matches++
		}
		theirs := n.re.FindStringSubmatchIndex(text[start:])
		for i := range theirs {
			if theirs[i] >= 0 {
				theirs[i] += start
			}
		}
		if !slices.Equal(want, theirs) {
			t.Fatalf("%s in %q at %d: %v, regexp %v", n.tree, text, start, want, theirs)
		}
		if got != nil || want == nil || x.few == 0 {
			if !slices.Equal(got, want) {
				t.Fatalf("%s in %q at %d: %v, want %v", n.tree, text, start, got, want)
			}
			continue
		}
		s.m.slots = want
		s.found = func(from, to int) { t.Fatalf("%s in %q at %d: %q is not dull", n.tree, text, start, text[from:to]) }
		s.value = [2]int{0, len(text)}
		if !s.check(x) {
			t.Fatalf("%s in %q at %d is not worthless", n.tree, text, start)
		}
	}
	return matches
}

// namedText is a text with names, marks and values of an expression, some of them
// over and over, and some of few different bytes.
func namedText(n named, r *rand.Rand) string {
	var b strings.Builder
	for b.Len() < 40+r.IntN(600) {
		var one strings.Builder
		sample(&one, n.tree, r)
		part := one.String()
		switch r.IntN(6) {
		case 4, 5: // a name and a mark many times, and a value, perhaps of few bytes
			mark := slices.IndexFunc([]byte(part), func(c byte) bool { return n.mark[c] })
			name, value := n.word(r)+part[mark:mark+1], part[mark+1:]
			b.WriteString(strings.Repeat(name, r.IntN(60)))
			if r.IntN(2) == 0 {
				part = name + value
				break
			}
			bytes := []byte(value + name)
			slices.Sort(bytes)
			bytes = slices.Compact(bytes)
			r.Shuffle(len(bytes), func(i, j int) { bytes[i], bytes[j] = bytes[j], bytes[i] })
			bytes = bytes[:min(len(bytes), max(1, n.x.few+r.IntN(4)-2))]
			part = name
			for i := range r.IntN(2 * len(value)) {
				part += string(bytes[i%len(bytes)])
			}
		case 0: // its name only, or nearly
			part = part[:r.IntN(len(part)+1)]
		case 1:
			part = part[r.IntN(len(part)+1):]
		case 2: // of few bytes
			c := part[r.IntN(len(part))]
			part += strings.Repeat(string(c), r.IntN(30))
		}
		if r.IntN(3) == 0 {
			part = strings.Repeat(part, r.IntN(8))
		}
		b.WriteString(part)
		b.WriteString([]string{"", "", " ", "=", ": ", ";", "\n", ` := "`, "  .  "}[r.IntN(9)])
	}
	return strings.Map(func(c rune) rune { return c & 0x7f }, b.String()) // classes are of bytes
}

func TestNamings(t *testing.T) {
	rules, all := allNamed(t)
	r := rand.New(rand.NewPCG(1, 2))
	never := 0
	for _, n := range all {
		matches := 0
		for range 25 {
			matches += names(t, rules, n, namedText(n, r))
		}
		if matches == 0 {
			never++
			t.Logf("%s does not match", n.tree)
		}
	}
	if len(all) < 90 || never > 0 {
		t.Errorf("%d expressions have a name, %d of them in no text", len(all), never)
	}
}

// TestWithin checks the same of names and marks that stand where a value may, which
// ends in time or not.
func TestWithin(t *testing.T) {
	rules, all := allNamed(t)
	r := rand.New(rand.NewPCG(5, 6))
	tried := 0
	for _, n := range all {
		w := n.x.naming.within
		if w.set == nil {
			continue
		}
		tried++
		for range 40 {
			var b strings.Builder
			for b.Len() < 6*w.most+r.IntN(600) {
				switch r.IntN(20) {
				default:
					b.WriteString(n.word(r) + string(sampleOf(n.mark, r)))
				case 0, 1:
					sample(&b, n.tree, r)
				case 2:
					b.WriteString([]string{";", " ", "\"", "=", " x"}[r.IntN(5)])
				case 3, 4:
					set := w.set
					if n := len(w.others); n > 0 && r.IntN(2) == 0 {
						set = w.others[r.IntN(n)].set
					}
					for range 1 + r.IntN(2*w.most) {
						b.WriteByte(sampleOf(set, r))
					}
				}
			}
			names(t, rules, n, strings.Map(func(c rune) rune { return c & 0x7f }, b.String()))
		}
	}
	if tried < 60 {
		t.Errorf("of %d expressions it is known how long a value is", tried)
	}
}

// sampleOf returns a byte of set.
func sampleOf(set *byteSet, r *rand.Rand) byte {
	for {
		if c := byte(r.IntN(128)); set[c] {
			return c
		}
	}
}

// FuzzNamings is TestNamings of any text.
func FuzzNamings(f *testing.F) {
	rules, all := allNamed(f)
	f.Add(strings.Repeat("key=", 40)+" auth=creds=key: abcdefghijkl; api_token = 'aff5Ef0e-AF7b-0DA5-E8a3'", uint(0))
	r := rand.New(rand.NewPCG(3, 4))
	for i, n := range all {
		f.Add(namedText(n, r), uint(i))
	}
	f.Fuzz(func(t *testing.T, text string, n uint) {
		text = strings.Map(func(c rune) rune { return c & 0x7f }, text)
		if len(text) > 2000 {
			return
		}
		names(t, rules, all[n%uint(len(all))], text)
	})
}
