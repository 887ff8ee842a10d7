package detect

import "math"

// varied reports a value that looks made at random, or at least chosen by the
// rules for passwords: letters, and digits or marks, and not few of them.
func (s *search) varied(from, to int) bool {
	letters, others := false, false
	for _, c := range s.text[from:to] {
		if is(c, upper|lower|beyond) {
			letters = true
		} else if !is(c, under|dash|dot) {
			others = true
		}
		if letters && others {
			return !s.entropyAtMost(leastVaried, from, to)
		}
	}
	return false
}

// leastVaried is the entropy that such a value has more than.
const leastVaried = 2.3

// entropyAtMost reports whether the entropy of s.text[from:to] is not above limit.
func (s *search) entropyAtMost(limit float64, from, to int) bool {
	n := to - from
	if n < len(timesLog) && timesLog[n]/float64(n) <= limit { // even if no two bytes are the same
		return true
	}
	if n >= longTally && n < len(timesLog) {
		s.tally.move(s.texts, s.text, from, to)
		const unsure = 1e-6 // what entropy adds up differs by less
		switch e := timesLog[n]/float64(n) - float64(s.tally.sum)/logOne/float64(n); {
		case e < limit-unsure:
			return true
		case e > limit+unsure:
			return false
		}
	}
	return entropyBy(&s.counts, s.text[from:to]) <= limit
}

// A tally counts the bytes of a part of a text. Values that overlap, as those of
// names in a value do, are counted once.
type tally struct {
	text     int
	from, to int
	counts   [256]uint16
	sum      int64 // of counts times their logarithm, in parts of logOne
}

const (
	logOne    = 1 << 32
	longTally = 48 // of shorter values it is no gain
)

// countLog is timesLog in parts of logOne.
var countLog = func() (t [len(timesLog)]int64) {
	for n := range t {
		t[n] = int64(math.Round(timesLog[n] * logOne))
	}
	return t
}()

func (t *tally) move(number int, text []byte, from, to int) {
	if t.text != number || from < t.from || from >= t.to || from-t.from+max(to-t.to, t.to-to) >= to-from {
		t.counts, t.sum = [256]uint16{}, 0
		t.text, t.from, t.to = number, from, from
	}
	for ; t.to < to; t.to++ {
		t.add(text[t.to])
	}
	for ; t.to > to; t.to-- {
		t.remove(text[t.to-1])
	}
	for ; t.from < from; t.from++ {
		t.remove(text[t.from])
	}
}

func (t *tally) add(c byte) {
	n := t.counts[c]
	t.counts[c] = n + 1
	t.sum += countLog[n+1] - countLog[n]
}

func (t *tally) remove(c byte) {
	n := t.counts[c]
	t.counts[c] = n - 1
	t.sum -= countLog[n] - countLog[n-1]
}

// entropy is Shannon's, of the bytes of value, in bits a byte.
func entropy(value []byte) float64 {
	var counts [256]uint16
	return entropyBy(&counts, value)
}

// entropyBy is entropy, by counts that are zeros before and behind.
func entropyBy(counts *[256]uint16, value []byte) float64 {
	value = value[:min(len(value), len(timesLog)-1)]
	for _, c := range value {
		counts[c]++
	}
	sum := 0.0
	for _, c := range value {
		sum += timesLog[counts[c]]
		counts[c] = 0
	}
	n := float64(len(value))
	return timesLog[len(value)]/n - sum/n
}

// timesLog is n times its logarithm to the base of 2.
var timesLog = func() (t [1 << 12]float64) {
	for n := 2; n < len(t); n++ {
		t[n] = float64(n) * math.Log2(float64(n))
	}
	return t
}()
