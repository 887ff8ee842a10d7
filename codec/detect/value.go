package detect

import "regexp/syntax"

// A value is what an expression asks for at least once in every match: n bytes of
// set in a row, which begin that far from where the match does. Most places that
// look like the name of a secret have none behind them, and to see that costs
// less than to try.
type value struct {
	set  *byteSet
	n    int // 0: nothing is known
	from span
}

const (
	shortValue = 8  // shorter ones are everywhere
	farValue   = 64 // and so are those that may be anywhere
)

// valueOf returns the value of re.
func valueOf(re *syntax.Regexp) (v value) {
	switch re.Op {
	case syntax.OpCapture:
		return valueOf(re.Sub[0])
	case syntax.OpConcat:
		var before span
		for _, sub := range re.Sub {
			if v = valueOf(sub); v.n > 0 {
				v.from = span{v.from.min + before.min, v.from.max + before.max}
				break
			}
			w := width(sub)
			before = span{before.min + w.min, before.max + w.max}
		}
	case syntax.OpAlternate:
		v = valueOf(re.Sub[0])
		for _, sub := range re.Sub[1:] {
			w := valueOf(sub)
			if v.n == 0 || w.n == 0 {
				return value{}
			}
			var both byteSet
			both.add(v.set)
			both.add(w.set)
			v = value{&both, min(v.n, w.n), span{min(v.from.min, w.from.min), max(v.from.max, w.from.max)}}
		}
	case syntax.OpPlus, syntax.OpRepeat:
		if set, low := repeats(re); set != nil && low >= shortValue {
			v = value{set: set, n: low}
		}
	}
	if v.from.max > farValue {
		return value{}
	}
	return v
}

// in reports whether v is in text where a match begins at start.
func (v *value) in(text []byte, start int) bool {
	first, end := start+v.from.min, min(len(text), start+v.from.max+v.n)
	// Every n bytes in a row have one of those that are n apart.
	for i := first + v.n - 1; i < end; {
		if !v.set[text[i]] {
			i += v.n
			continue
		}
		from, to := i, i+1
		for from > i-v.n+1 && from > first && v.set[text[from-1]] {
			from--
		}
		for to < from+v.n && to < end && v.set[text[to]] {
			to++
		}
		if to == from+v.n {
			return true
		}
		i = to + v.n
	}
	return v.n == 0
}
