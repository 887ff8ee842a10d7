package detect

import (
	"regexp/syntax"
	"slices"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"
	gitleaks "github.com/zricethezav/gitleaks/v8/config"
)

// TestRules checks that every rule of gitleaks is looked for, or that rules.toml
// says why not; so that an update of gitleaks cannot lose one.
func TestRules(t *testing.T) {
	s, err := newRuleSet(gitleaks.DefaultConfig, ownRules)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]bool{}
	for _, x := range s.expressions {
		found[x.rule.id] = true
	}
	var theirs, ours ruleFile
	if err := toml.Unmarshal([]byte(gitleaks.DefaultConfig), &theirs); err != nil {
		t.Fatal(err)
	}
	if err := toml.Unmarshal([]byte(ownRules), &ours); err != nil {
		t.Fatal(err)
	}
	skipped := 0
	for _, r := range theirs.Rules {
		if ours.Skip[r.ID] != "" {
			skipped++
		} else if !found[r.ID] {
			t.Errorf("rule %s is not looked for", r.ID)
		}
	}
	if skipped != len(ours.Skip) {
		t.Errorf("rules.toml leaves out %d rules, of which gitleaks has %d", len(ours.Skip), skipped)
	}
	// What a digest is by itself, only the word beside it could tell.
	for _, u := range s.unanchored {
		if !strings.HasPrefix(u, "sourcegraph-access-token") || !strings.Contains(u, "{40}") {
			t.Errorf("a part of a rule is not looked for: %s", u)
		}
	}
	n := 0
	for _, word := range s.index.bits {
		for ; word != 0; word &= word - 1 {
			n++
		}
	}
	if share := float64(n) / (1 << hashBits); share > 0.03 {
		t.Errorf("%.1f %% of the hashes are marked: too many places are looked at twice", 100*share)
	}
	t.Logf("%d rules of gitleaks, %d of them left out, and %d of ours; %d expressions, %d grams", len(theirs.Rules), skipped, len(ours.Rules), len(s.expressions), len(s.index.entries))
}

// TestWords checks the stop words of an allowance.
func TestWords(t *testing.T) {
	w := newWords([]string{"Example", "test_", "ab"})
	for in, want := range map[string]bool{"an example": true, "my test_ x": true, "tes": false, "ab": false, "": false} {
		if got := w.in([]byte(in)); got != want {
			t.Errorf("in %q: %v", in, got)
		}
	}
}

// FuzzProgram checks that a program matches where Go's regexp does, and the same.
func FuzzProgram(f *testing.F) {
	expressions := []string{
		`a(b+?)(c|cd)(d*)`, `(?i)\bkey[ \t]{0,5}[:=]\s*("?)([a-z0-9]{4,8})`, `^(?:ab|a)(?:c|bcd)$`, `[^x]{2,3}?y`, `(?:(a)|b){1,3}c`, `\Bfoo\b|bar`, `(a|ab)(c|bcd)(d*)e?`, `(?s:.){0,3}?z`,
		`(?i)(?:key|token|pass(?:word)?)[ \t\w.-]{0,20}[\s'"]{0,3}(?:=|:{1,3}=|=>|,)["'\s=]{0,5}([\w.=-]{10,150}|[a-z0-9][a-z0-9+/]{11,}={0,3})(?:[;\s"]|\\[nr]|$)`,
		`"([^"\s]{8,})"|'(.{8,9})'`, `[a-z0-9-]*?api[a-z0-9-]*?:jar:`, `a.{2,}"\s*/>`, `(?:(ab?)c|(a)(b?)d|a{1,9}b(e))f?`, `(?:"(a*)"|"(a*)b|"a(b*)c)+d?`, `(?m:^)a[\s\S]{0,9}b+?c(?m:$)`,
	}
	f.Add("xabbcdd key: abcd1234 foo", 0)
	f.Add("KEY=\"ABCDEFGHI\" abcd", 1)
	f.Add("key token api = key:= abcdef1234567; pass word, \"0123456789ab+/==\"", 8)
	f.Add("'12345678' \"12345678\" \"1234567\"", 9)
	f.Add("a-api-api-b:jar:", 10)
	f.Add("a\"\"\"/ \" /> a\"/>", 11)
	for _, text := range []string{"abe", "abdf", "aabef", "\"aa\"\"ab\"abbcd", "\"abc", "\"a\"\"abbc\"ab"} {
		f.Add(text, 12)
		f.Add(text, 13)
	}
	f.Fuzz(func(t *testing.T, text string, n int) {
		for i := range len(text) {
			if text[i] >= 0x80 { // classes are of bytes
				return
			}
		}
		source := expressions[uint(n)%uint(len(expressions))]
		p, re := mustProgram(t, source)
		tree, err := syntax.Parse(source, syntax.Perl)
		if err != nil {
			t.Fatal(err)
		}
		v := valueOf(tree)
		var m machine
		m.fresh()
		for i := 0; i <= len(text); i++ {
			if !m.match(p, []byte(text), i) {
				continue
			}
			if !v.in([]byte(text), i) {
				t.Fatalf("%s matches %q at %d without its value", source, text, i)
			}
			want := re.FindStringSubmatchIndex(text)
			if want == nil || want[0] > i {
				t.Fatalf("%s matches %q at %d, regexp %v", source, text, i, want)
			}
			if want[0] < i {
				t.Fatalf("%s matches %q at %d, regexp before: %v", source, text, i, want)
			}
			if !slices.Equal(m.slots, want) {
				t.Fatalf("%s in %q: %v, regexp %v", source, text, m.slots, want)
			}
			return
		}
		if want := re.FindStringSubmatchIndex(text); want != nil {
			t.Fatalf("%s does not match %q, regexp %v", source, text, want)
		}
	})
}
