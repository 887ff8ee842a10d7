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

	// All of a match is of words, and then, from a byte that is not, of gap, up to
	// where the value begins or, at most, inner bytes in front of it.
	words  *byteSet // nil: nothing is known of it
	gap    *byteSet
	mark   int // how far from where the match begins words end, at most
	behind int // how far behind them the value begins, at most
	inner  int

	long bool // the value begins at one place, and is long enough for its runs to be known
}

const (
	longValue  = 64
	shortValue = 8  // shorter ones are everywhere
	farValue   = 64 // and so are those that may be anywhere
)

// valueOf returns the value of re.
func valueOf(re *syntax.Regexp) (v value) {
	switch re.Op {
	case syntax.OpCapture:
		return valueOf(re.Sub[0])
	case syntax.OpConcat:
		return valueIn(flatten(nil, re))
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
			v = value{set: &both, n: min(v.n, w.n), from: span{min(v.from.min, w.from.min), max(v.from.max, w.from.max)}}
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

// valueIn returns the value of elems, which follow each other.
func valueIn(elems []*syntax.Regexp) value {
	var before span
	var seen, gap byteSet
	var words *byteSet
	mark, end := 0, 0 // of words, at most
	for _, e := range elems {
		w, own := width(e), bytesOf(e)
		if v := valueOf(e); v.n > 0 {
			inner := v.from.max
			v = value{set: v.set, n: v.n, from: span{v.from.min + before.min, v.from.max + before.max}}
			if v.from.max > farValue {
				return value{}
			}
			if mark > 0 {
				v.words, v.gap, v.mark, v.behind, v.inner = words, &gap, mark, v.from.max-end, inner
			}
			return v
		}
		class, low := repeats(e)
		switch {
		case words != nil || w.max == 0 || before.max == 0:
		case class != nil && low == 0 && class.has(&seen): // key[\w.-]{0,20}
			words, end = class, before.max+w.max
		case !own.meets(&seen): // key[ ]{0,4}[:=]
			words, end = &byteSet{}, before.max
			words.add(&seen)
		}
		if words != nil && before.max >= end {
			gap.add(own)
			if mark == 0 && w.min > 0 && !own.meets(words) {
				mark = before.max
			}
		}
		seen.add(own)
		before = span{before.min + w.min, before.max + w.max}
	}
	return value{}
}

// bytesOf returns the bytes that what re matches may have.
func bytesOf(re *syntax.Regexp) *byteSet {
	if class := classOf(re); class != nil {
		return class
	}
	var s byteSet
	if re.Op == syntax.OpLiteral {
		for _, set := range finite(re)[0] {
			s.add(set)
		}
		if re.Flags&syntax.FoldCase != 0 {
			for c := 'a'; c <= 'z'; c++ {
				s[c] = s[c] || s[c-'a'+'A']
				s[c-'a'+'A'] = s[c]
			}
		}
	}
	for _, sub := range re.Sub {
		s.add(bytesOf(sub))
	}
	return &s
}

// has reports whether all of t is in s.
func (s *byteSet) has(t *byteSet) bool {
	for c := range t {
		if t[c] && !s[c] {
			return false
		}
	}
	return true
}

// in reports whether v is in text where a match begins at start.
func (v *value) in(text []byte, start int) bool {
	if v.n == 0 {
		return true
	}
	first, last := start+v.from.min, start+v.from.max
	if v.words != nil {
		far := min(len(text), start+v.mark+1)
		i := start
		for i < far && v.words[text[i]] {
			i++
		}
		if i == far {
			return false
		}
		first, last = max(first, i+1), min(last, i+v.behind)
		for i < last && i < len(text) && v.gap[text[i]] {
			i++
		}
		last = min(last, i+v.inner)
	}
	end := min(len(text), last+v.n)
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
	return false
}
