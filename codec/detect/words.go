package detect

import "strings"

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
