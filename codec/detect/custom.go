package detect

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"regexp/syntax"
	"strings"
)

// A Custom is a detector of one's own.
type Custom struct {
	Name     string   // letters, digits, _ - and .
	Regex    string   // in RE2's syntax; the first group that is not empty is the value, or all of the match
	Keywords []string // of which one has to stand near the value, in any case; none: no matter
	Validate string   // "luhn", "mod97" or "entropy"; empty: no matter
}

// A custom is what of a Custom decides on a match.
type custom struct {
	keywords [][]byte // in lower case
	validate func(value []byte) bool
}

var validators = map[string]func([]byte) bool{
	"":        nil,
	"luhn":    func(v []byte) bool { d := digitsOf(v); return len(d) > 1 && luhn(d) },
	"mod97":   func(v []byte) bool { return mod97(v) },
	"entropy": func(v []byte) bool { return entropy(v) >= 3 },
}

// Define makes a Detector of c. An expression in which nothing is rare enough to
// be looked for, such as \w+, works and is slow.
func Define(c Custom) (Detector, error) {
	if c.Name == "" || strings.Trim(c.Name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-") != "" {
		return Detector{}, fmt.Errorf("name %q: expected letters, digits and the marks _ . -", c.Name)
	}
	if _, taken := builtin[c.Name]; taken {
		return Detector{}, fmt.Errorf("name %q is taken by a detector of the broker", c.Name)
	}
	validate, ok := validators[c.Validate]
	if !ok {
		return Detector{}, fmt.Errorf("validate %q: expected luhn, mod97 or entropy", c.Validate)
	}
	re, err := syntax.Parse(c.Regex, syntax.Perl)
	if err != nil {
		return Detector{}, err
	}
	least := width(re).min
	if least == 0 {
		return Detector{}, errors.New("regex matches nothing at all: it would match everywhere")
	}
	made := &rule{id: c.Name, custom: &custom{validate: validate}}
	for _, k := range c.Keywords {
		made.custom.keywords = append(made.custom.keywords, []byte(strings.ToLower(k)))
	}
	rules := &ruleSet{count: 1, least: least}
	var all [][]anchor
	for _, v := range variants(re) {
		found := anchors(v)
		p, err := compile(v)
		if found == nil || err != nil {
			all = nil
			break
		}
		rules.expressions = append(rules.expressions, expression{rule: made, naming: rules.naming(v), first: &p.start.first, atWord: p.start.op == opWord, program: p, value: valueOf(v)})
		all = append(all, found)
	}
	if all != nil {
		rules.index = newIndex(all)
	} else {
		if rules.slow, err = regexp.Compile(c.Regex); err != nil {
			return Detector{}, err
		}
		rules.expressions = []expression{{rule: made}}
	}
	return Detector{name: c.Name, rules: func() *ruleSet { return rules }}, nil
}

// nearKeyword is how far from a match a keyword may stand, in bytes.
const nearKeyword = 256

// accepts reports whether value, which was matched there, is one.
func (c *custom) accepts(s *search, value []byte, match [2]int) bool {
	if c.validate != nil && !c.validate(value) {
		return false
	}
	if len(c.keywords) == 0 {
		return true
	}
	s.lower = appendLower(s.lower[:0], s.text[max(0, match[0]-nearKeyword):min(len(s.text), match[1]+nearKeyword)])
	for _, k := range c.keywords {
		if bytes.Contains(s.lower, k) {
			return true
		}
	}
	return false
}

// digitsOf returns the digits of value.
func digitsOf(value []byte) (d []byte) {
	for _, c := range value {
		if is(c, digit) {
			d = append(d, c)
		}
	}
	return d
}

// mod97 checks as ISO 7064 does for IBANs: the first four characters behind the
// others, letters as 10 to 35, leave 1.
func mod97(value []byte) bool {
	var buf [64]byte
	v := buf[:0]
	for _, c := range value {
		if is(c, alnum) {
			v = append(v, c)
		}
	}
	if len(v) < 5 {
		return false
	}
	n := uint64(0)
	for _, part := range [2][]byte{v[4:], v[:4]} {
		for _, c := range part {
			if n >= 1<<56 {
				n %= 97
			}
			if is(c, digit) {
				n = n*10 + uint64(c-'0')
			} else {
				n = n*100 + uint64(c|0x20-'a') + 10
			}
		}
	}
	return n%97 == 1
}
