// Package detect finds sensitive values in text: bytes in, offsets out. It
// knows nothing of JSON and does no I/O.
//
//	f, err := detect.New("secrets", "email")
//	f.Find(text, func(detector, start, end int) { … })
//
// A detector looks for what begins a value, or for four bytes that every value
// of its kind has, and verifies around it; where a kind of value has a checksum
// or a fixed form, it decides. How far a detector looks back or ahead is
// bounded, so that no text makes it slow.
package detect

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// A Finder looks for several kinds of value. It must not be used by two
// goroutines at a time; what is costly to make, all Finders share.
type Finder struct {
	names   []string
	looks   []look
	secrets *secrets // nil if it is none of the detectors
	secret  int      // its number
	report  func(detector, start, end int)
	founds  []func(start, end int)
}

// A look is how one detector looks at a text.
type look func(text []byte, found func(start, end int))

var builtin = map[string]look{
	"credit_card": findCards,
	"email":       findEmails,
	"secrets":     nil, // has a state
}

// Names returns the names of the detectors that there are, sorted.
func Names() []string { return slices.Sorted(maps.Keys(builtin)) }

// New returns a Finder with the detectors of these names.
func New(names ...string) (*Finder, error) {
	f := &Finder{names: names}
	for i, name := range names {
		find, ok := builtin[name]
		if !ok {
			return nil, fmt.Errorf("no detector %q; there are %s", name, strings.Join(Names(), ", "))
		}
		if name == "secrets" {
			f.secrets, f.secret = newSecrets(), i
			find = f.secrets.find
		}
		f.looks = append(f.looks, find)
		f.founds = append(f.founds, func(start, end int) { f.report(i, start, end) })
	}
	return f, nil
}

// Names returns the names of the Finder's detectors.
func (f *Finder) Names() []string { return f.names }

// Find calls found with the number of the detector, as New was given it, and the
// offsets of each value in text.
func (f *Finder) Find(text []byte, found func(detector, start, end int)) {
	f.report = found
	for i, find := range f.looks {
		find(text, f.founds[i])
	}
	f.report = nil
}

// Under calls found like Find, with what in text is sensitive for the name of
// the member of an object that it is the value of.
func (f *Finder) Under(name, text []byte, found func(detector, start, end int)) {
	if f.secrets != nil {
		f.report = found
		f.secrets.under(name, text, f.founds[f.secret])
		f.report = nil
	}
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
