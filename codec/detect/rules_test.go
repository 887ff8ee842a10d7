package detect

import (
	"math/bits"
	"strings"

	gitleaks "github.com/zricethezav/gitleaks/v8/config"
	"testing"
)

func TestRules(t *testing.T) {
	s, err := newRuleSet(gitleaks.DefaultConfig, ownRules)
	if err != nil {
		t.Fatal(err)
	}
	ids := map[string]bool{}
	for _, e := range s.expressions {
		ids[e.rule.id] = true
	}
	n := 0
	for _, b := range s.index.bits {
		n += bits.OnesCount64(b)
	}
	t.Log(len(s.expressions), len(ids), len(s.index.entries), "bits", n)
	for _, u := range s.unanchored {
		t.Log(u)
	}
	per := map[string]int{}
	for _, e := range s.index.entries {
		per[s.expressions[e.id].rule.id]++
	}
	for id, n := range per {
		if n > 400 {
			t.Log(id, n)
		}
	}
}

type counter struct {
	n    int
	m    map[string]int
	text string
	fp   int
}

func (c *counter) hit(at int, first int32) { c.n++; c.m[c.text[at:at+4]]++ }
func TestHits(t *testing.T) {

	prose := strings.Repeat("The quick brown fox jumps over the lazy dog; order 20261123, commit "+hex[:40]+".\n", 2500)
	c := &counter{m: map[string]int{}, text: prose}
	secretRules().index.find([]byte(prose), c)
	t.Log(len(prose), c.n, c.m)
}
