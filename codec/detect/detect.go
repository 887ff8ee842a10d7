// Package detect finds sensitive values in text: bytes in, offsets out. It
// knows nothing of JSON and does no I/O.
//
//	d, ok := detect.ByName("email")
//	d.Find(text, func(start, end int) { … })
//
// A detector looks for what begins a value and verifies around it; where a kind
// of value has a checksum or a fixed form, it decides. How far a detector looks
// back or ahead is bounded, so that no text makes it slow.
package detect

import "slices"

// A Detector finds one kind of value.
type Detector struct {
	name  string
	find  func(text []byte, found func(start, end int))
	under func(name, text []byte) bool // may be nil
}

// Name returns the name that configurations use.
func (d Detector) Name() string { return d.name }

// Find calls found with the offsets of each value in text, in order and
// without overlaps.
func (d Detector) Find(text []byte, found func(start, end int)) { d.find(text, found) }

// Under reports whether text, the whole value of the member of that name in an
// object, is one for its name's sake.
func (d Detector) Under(name, text []byte) bool { return d.under != nil && d.under(name, text) }

var detectors = []Detector{
	{"credit_card", findCards, nil},
	{"email", findEmails, nil},
	{"secrets", findSecrets, isSecretUnder},
}

// Names returns the names of all detectors, sorted.
func Names() []string {
	names := make([]string, len(detectors))
	for i, d := range detectors {
		names[i] = d.name
	}
	return names
}

// ByName returns the detector of that name.
func ByName(name string) (Detector, bool) {
	i := slices.IndexFunc(detectors, func(d Detector) bool { return d.name == name })
	if i < 0 {
		return Detector{}, false
	}
	return detectors[i], true
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
