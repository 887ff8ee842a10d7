package codec

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
)

// Fields are values that are masked whatever they are: by the name of their
// member, anywhere, and by their path under result.
type Fields struct {
	names map[string]bool // folded
	paths []path
}

// A path is the steps from result to a value.
type path []step

// A step is to a member or an element.
type step struct {
	name  string // of a member, if not empty
	index int    // of an element; -1: any
	any   bool   // any member or element
	deep  bool   // at any depth below
}

// A state is how far a path has been gone: its first steps.
type state struct{ path, steps int }

// NewFields returns the Fields of a list of names, such as api_key, which also
// stands for apiKey and API-Key, and of paths, such as
// $.structuredContent.rows[*].ssn. A path has .name, ['name'], [n], [*], .* and
// ..name. With an empty list, it is nil.
func NewFields(list []string) (*Fields, error) {
	if len(list) == 0 {
		return nil, nil
	}
	f := &Fields{names: map[string]bool{}}
	for _, s := range list {
		if !strings.HasPrefix(s, "$") {
			folded := string(foldName(nil, []byte(s)))
			if folded == "" {
				return nil, fmt.Errorf("%q is neither a name nor a path", s)
			}
			f.names[folded] = true
			continue
		}
		p, err := parsePath(s)
		if err != nil {
			return nil, err
		}
		f.paths = append(f.paths, p)
	}
	return f, nil
}

func parsePath(s string) (path, error) {
	var p path
	for rest := s[1:]; rest != ""; {
		bad := fmt.Errorf("path %q: expected .name, ['name'], [n], [*], .* or ..name at byte %d", s, len(s)-len(rest))
		st := step{index: -1}
		switch {
		case rest[0] == '.':
			rest = rest[1:]
			if strings.HasPrefix(rest, ".") {
				st.deep = true
				rest = rest[1:]
			}
			n := strings.IndexAny(rest, ".[")
			if n < 0 {
				n = len(rest)
			}
			st.name, rest = rest[:n], rest[n:]
			if st.name == "*" {
				st.name, st.any = "", true
			} else if st.name == "" {
				return nil, bad
			}
		case rest[0] == '[':
			inner, behind, ok := strings.Cut(rest[1:], "]")
			if !ok {
				return nil, bad
			}
			rest = behind
			switch q := len(inner) - 1; {
			case inner == "*":
				st.any = true
			case q >= 2 && (inner[0] == '\'' || inner[0] == '"') && inner[q] == inner[0]:
				st.name = inner[1:q]
			default:
				n, err := strconv.Atoi(inner)
				if err != nil || n < 0 {
					return nil, bad
				}
				st.index = n
			}
		default:
			return nil, bad
		}
		p = append(p, st)
	}
	if len(p) == 0 {
		return nil, fmt.Errorf("path %q names all of result", s)
	}
	return p, nil
}

// foldName appends name without case, and without _ and -.
func foldName(dst, name []byte) []byte {
	for _, c := range name {
		switch {
		case c == '_' || c == '-':
		case 'A' <= c && c <= 'Z':
			dst = append(dst, c+'a'-'A')
		default:
			dst = append(dst, c)
		}
	}
	return dst
}

// named reports whether members of that name are masked.
func (f *Fields) named(name []byte) bool {
	if f == nil || len(f.names) == 0 || len(name) > 128 {
		return false
	}
	var buf [128]byte
	return f.names[string(foldName(buf[:0], name))]
}

// begin appends the states at result.
func (f *Fields) begin(states []state) []state {
	for i := range f.paths {
		states = append(states, state{i, 0})
	}
	return states
}

// ends reports whether a path ends here.
func (f *Fields) ends(here []state) bool {
	for _, s := range here {
		if s.steps == len(f.paths[s.path]) {
			return true
		}
	}
	return false
}

// member appends the states of a member of the object whose states are
// states[here:].
func (f *Fields) member(states []state, here int, name []byte) []state {
	return f.step(states, here, func(st *step) bool { return st.any || st.name != "" && bytes.Equal([]byte(st.name), name) })
}

// element is member for an array's elements.
func (f *Fields) element(states []state, here, n int) []state {
	return f.step(states, here, func(st *step) bool { return st.any || st.name == "" && st.index == n })
}

func (f *Fields) step(states []state, here int, goes func(*step) bool) []state {
	for _, s := range states[here:] {
		if s.steps == len(f.paths[s.path]) {
			continue
		}
		st := &f.paths[s.path][s.steps]
		if goes(st) {
			states = append(states, state{s.path, s.steps + 1})
		}
		if st.deep {
			states = append(states, s)
		}
	}
	return states
}

// Has reports whether the value at a place is one of f: by its name, or by its path
// from the outermost value. The steps of a place are names of members (string) and
// numbers of elements (int). f may be nil.
func (f *Fields) Has(place []any) bool {
	if f == nil || len(place) == 0 {
		return false
	}
	if name, ok := place[len(place)-1].(string); ok && f.named([]byte(name)) {
		return true
	}
	states := f.begin(nil)
	for _, st := range place {
		here := len(states)
		switch st := st.(type) {
		case string:
			states = f.member(states, 0, []byte(st))
		case int:
			states = f.element(states, 0, st)
		}
		states = states[here:]
	}
	return f.ends(states)
}
