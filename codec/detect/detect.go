// Package detect finds sensitive values in text: bytes in, offsets out. It
// knows nothing of JSON and does no I/O.
//
//	d, ok := detect.ByName("email")
//	f := detect.New(d)
//	f.Find(text, func(detector, start, end int) { … })
//
// A detector looks for what begins a value, or for four bytes that every value
// of its kind has, and verifies around it; where a kind of value has a checksum
// or a fixed form, it decides. How far a detector looks back or ahead is
// bounded, so that no text makes it slow. Where the processor has AVX2, places in
// a long text are looked for many at a time (scan.go).
package detect

import (
	"bytes"
	"maps"
	"math"
	"slices"
)

// A Detector finds one kind of value. It is not changed once it is made, and may
// be given to many Finders.
type Detector struct {
	name  string
	sign  bySign          // either this, at each @,
	by    byDigits        // or this,
	at    around          // at runs of digits that look so
	rules func() *ruleSet // or that
	needs counts          // what a value has at least; what those of rules have, they say
}

// A bySign looks around the @ at i, and returns the offsets of the value that it
// is in and that begins at done or later, or 0, 0.
type bySign func(text []byte, i, done int) (from, to int)

var builtin = map[string]Detector{
	"credit_card": {by: card, at: manyDigits | fourDigits, needs: 13 * oneDigit},
	"email":       {sign: email, needs: oneSign + oneDot + 4*oneByte},
	"iban":        {by: iban, at: behindLetters, needs: 2*oneLetter + 2*oneDigit + 11*oneByte},
	"ip_address":  {by: ip, at: besideMark, needs: 2*oneColon + oneDigit},
	"phone":       {by: phone, at: behindPlus, needs: onePlus + 8*oneDigit + oneByte},
	"secrets":     {rules: secretRules},
	"us_ssn":      {by: ssn, at: threeDigits | nineDigits, needs: 9 * oneDigit},
}

// Names returns the names of the detectors that there are, sorted.
func Names() []string { return slices.Sorted(maps.Keys(builtin)) }

// ByName returns the detector of that name.
func ByName(name string) (Detector, bool) {
	d, ok := builtin[name]
	d.name = name
	return d, ok
}

// Name returns the name that configurations use.
func (d Detector) Name() string { return d.name }

// A Finder looks for several kinds of value. It must not be used by two
// goroutines at a time.
type Finder struct {
	names    []string
	searches []active         // by rules
	digits   []active         // by digits
	at       around           // of any of digits
	who      [looksLike][]int // which of digits look at a run that looks so
	signed   []active         // by signs
	named    []byte
	report   func(detector, start, end int)
	near     func(at int)

	leastText, leastNumber int // as Least returns them

	// Of the text that is looked at.
	signs      bool   // signs matter in it
	looks      around // that do
	rows       classified
	colonDone  int // runs of digits beside colons before have been looked at
	colonDigit int // where the last of them ends
	colonTo    int // so far is what is of an address's bytes from there on
}

// An active is one detector at work.
type active struct {
	number int // of the detector
	by     byDigits
	at     around
	needs  counts
	bySign bySign
	search *search
	found  func(start, end int) // by search
	done   int                  // what is before has been reported
}

// New returns a Finder of what these detectors find.
func New(detectors ...Detector) *Finder {
	f := &Finder{leastText: math.MaxInt, leastNumber: math.MaxInt}
	for i, d := range detectors {
		w := active{number: i, by: d.by, at: d.at, needs: d.needs, bySign: d.sign}
		f.names = append(f.names, d.name)
		switch {
		case d.rules != nil:
			w.search = newSearch(d.rules())
			w.found = func(start, end int) { f.report(i, start, end) }
			f.searches = append(f.searches, w)
		case d.sign != nil:
			f.signed = append(f.signed, w)
		default:
			for at := range f.who {
				if d.at&around(at) != 0 {
					f.who[at] = append(f.who[at], len(f.digits))
				}
			}
			f.digits = append(f.digits, w)
			f.at |= d.at
		}
		least := int(d.needs / oneByte)
		if d.rules != nil {
			least = w.search.least
		}
		f.leastText = min(f.leastText, least)
		if inNumber.have(d.needs) {
			f.leastNumber = min(f.leastNumber, least)
		}
	}
	return f
}

// Names returns the names of the Finder's detectors.
func (f *Finder) Names() []string { return f.names }

// Least returns how many bytes a text has at least, and how many a number as JSON
// writes it, in which Find or Under find anything.
func (f *Finder) Least() (text, number int) { return f.leastText, f.leastNumber }

// Find calls found with the number of the detector, as New was given it, and the
// offsets of each value in text.
func (f *Finder) Find(text []byte, found func(detector, start, end int)) {
	f.report = found
	for i := range f.searches {
		f.searches[i].search.find(text, f.searches[i].found)
	}
	switch {
	case len(f.signed) == 0 && f.at == 0:
	case vector && len(text) >= longText:
		f.scan(text)
	default:
		if f.expect(text); f.signs {
			f.bySigns(text)
		}
		if f.looks != 0 {
			f.byDigits(text)
		}
	}
	f.report = nil
}

// expect notes what text has to be looked at for. Of a short one, what it is made of
// tells.
func (f *Finder) expect(text []byte) {
	f.signs, f.looks = true, f.at
	if len(text) > shortText {
		return
	}
	f.signs, f.looks = false, 0
	c := countsOf(text)
	for i := range f.signed {
		f.signs = f.signs || c.have(f.signed[i].needs)
	}
	for i := range f.digits {
		if w := &f.digits[i]; c.have(w.needs) {
			f.looks |= w.at
		}
	}
}

// counts are how many bytes a text has, and how many of some kinds: seven bits for
// each, and one above them.
type counts uint64

const (
	oneByte   counts = 1 << 56
	oneDigit  counts = oneByte + 1
	oneLetter counts = oneByte + 1<<8
	oneSign   counts = oneByte + 1<<16 // @
	onePlus   counts = oneByte + 1<<24
	oneDot    counts = oneByte + 1<<32 + 2<<40
	oneColon  counts = oneByte + 3<<40 // two are as good as three dots: an address has one or the other
	above     counts = 0x8080808080808080
)

// inNumber is what a number has at most, as JSON writes it.
var inNumber = countsOf([]byte(".e+")) | countsOf(bytes.Repeat([]byte("0"), 127))

// shortText is how long a text is at most that is counted, in bytes.
const shortText = 24

var countOf = func() (t [256]counts) {
	for c := range t {
		switch {
		case is(byte(c), digit):
			t[c] = oneDigit
		case is(byte(c), upper|lower):
			t[c] = oneLetter
		default:
			t[c] = oneByte
		}
	}
	t['@'], t['+'], t['.'], t[':'] = oneSign, onePlus, oneDot, oneColon
	return t
}()

func countsOf(text []byte) (c counts) {
	for _, b := range text {
		c += countOf[b]
	}
	return c
}

// have reports that there are no fewer of each kind in c than in needs.
func (c counts) have(needs counts) bool { return ((c|above)-needs)&above == above }

// Near calls near with the offsets in text, in no order, within four bytes of
// which every value lies, begins or has its name that Find or Under would find in
// any part of text, also one that stands between quotes there, and if such a part
// is JSON with escapes of quotes and white space. It reports false if it cannot
// tell.
func (f *Finder) Near(text []byte, near func(at int)) bool {
	f.near = near
	defer func() { f.near = nil }()
	for i := range f.searches {
		x := f.searches[i].search.index
		if x == nil {
			return false
		}
		x.find(text, f)
	}
	if vector && len(text) >= longText {
		if len(f.signed) > 0 || f.at != 0 {
			f.scan(text)
		}
		return true
	}
	f.bySigns(text)
	if f.at == 0 {
		return true
	}
	for start := nextDigit(text, 0); start >= 0; {
		end := run(text, start, len(text), digit)
		if lookAround(text, start, end)&f.at != 0 || end < len(text) && text[end]|0x20 == 'e' {
			near(start)
		}
		start = nextDigit(text, end)
	}
	return true
}

func (f *Finder) hit(at int, _ []entry) { f.near(at) }

func (f *Finder) byDigits(text []byte) {
	for i := range f.digits {
		f.digits[i].done = 0
	}
	for start := nextDigit(text, 0); start >= 0; {
		end := run(text, start, len(text), digit)
		f.digitsIn(text, start, end)
		start = nextDigit(text, end)
	}
}

// digitsIn looks around the run of digits text[start:end].
func (f *Finder) digitsIn(text []byte, start, end int) {
	at := lookAround(text, start, end) & f.looks
	if at == 0 {
		return
	}
	for _, i := range f.who[at] {
		w := &f.digits[i]
		if start < w.done {
			continue
		}
		if from, to := w.by(text, start, end); to > 0 && from >= w.done {
			w.done = to
			f.report(w.number, from, to)
		}
	}
}

func (f *Finder) bySigns(text []byte) {
	if len(f.signed) == 0 {
		return
	}
	for i := range f.signed {
		f.signed[i].done = 0
	}
	for i := nextSign(text, 0); i >= 0; i = nextSign(text, i+1) {
		f.signAt(text, i)
	}
}

// signAt looks around the @ at i.
func (f *Finder) signAt(text []byte, i int) {
	if f.near != nil {
		f.near(i)
		return
	}
	for j := range f.signed {
		w := &f.signed[j]
		if from, to := w.bySign(text, i, w.done); to > 0 {
			w.done = to
			f.report(w.number, from, to)
		}
	}
}

// nextSign returns the offset of the first @ in text from i on, or -1.
func nextSign(text []byte, i int) int {
	if n := bytes.IndexByte(text[i:], '@'); n >= 0 {
		return i + n
	}
	return -1
}

// Under calls found like Find, with what in text is sensitive for the name of
// the member of an object that it is the value of.
func (f *Finder) Under(name, text []byte, found func(detector, start, end int)) {
	f.report = found
	for i := range f.searches {
		f.searches[i].search.under(name, text, f.searches[i].found)
	}
	if len(f.digits) > 0 && len(text) == 9 && saysSSN(name, len(name)) {
		f.named = append(append(f.named[:0], "ssn "...), text...)
		for i := range f.digits {
			if _, to := f.digits[i].by(f.named, 4, run(f.named, 4, 9, digit)); to == len(f.named) {
				f.report(f.digits[i].number, 0, len(text))
			}
		}
	}
	f.report = nil
}

// Classes of bytes.
const (
	digit = 1 << iota
	upper
	lower
	hexLower // 0-9 a-f
	under    // _
	dash     // -
	dot      // .
	b64      // + / =
	beyond   // not ASCII
	host     // of addresses of hosts: base 16 . :
	alnum    = digit | upper | lower
	word     = alnum | under | beyond
)

var class = func() (t [256]uint16) {
	for c := range t {
		switch {
		case '0' <= c && c <= '9':
			t[c] = digit | hexLower
		case 'A' <= c && c <= 'Z':
			t[c] = upper
		case 'a' <= c && c <= 'f':
			t[c] = lower | hexLower
		case 'g' <= c && c <= 'z':
			t[c] = lower
		case c == '_':
			t[c] = under
		case c == '-':
			t[c] = dash
		case c == '.':
			t[c] = dot
		case c == '+' || c == '/' || c == '=':
			t[c] = b64
		case c >= 0x80:
			t[c] = beyond
		}
		if isBase16(byte(c)) || t[c]&(digit|dot) != 0 || c == ':' {
			t[c] |= host
		}
	}
	return t
}()

func is(c byte, classes uint16) bool { return class[c]&classes != 0 }

// run returns the offset behind the bytes of these classes from i on, at most max of them.
func run(text []byte, i, max int, classes uint16) int {
	end := min(len(text), i+max)
	for i < end && is(text[i], classes) {
		i++
	}
	return i
}
