package trial

import (
	"errors"
	"io"
	"slices"
	"strings"
	"time"

	"example.com/broker/broker/identity"
	"example.com/broker/broker/policy"
	"example.com/broker/codec"
)

// A side is one policy, and what it says of the session that is looked at.
type side struct {
	policy  *policy.Policy // nil: there is none
	terms   *policy.Terms
	maskers map[use]*codec.Masker
	parser  codec.Parser // of what has been masked
	buf     []byte
}

// A use is what a Masker is for. One that is in the middle of a long frame has no
// time for others.
type use struct {
	rule string
	long bool
}

func (s *side) enter(id identity.Identity, server string) {
	if s.policy != nil {
		s.terms = s.policy.Decide(id, server)
	}
}

// masker returns that of the terms, or nil if they mask nothing.
func (s *side) masker(t *policy.Terms, long bool) *codec.Masker {
	if t.Masking.New == nil {
		return nil
	}
	key := use{t.Rule, long}
	m := s.maskers[key]
	if m == nil {
		if s.maskers == nil {
			s.maskers = map[use]*codec.Masker{}
		}
		m = t.Masking.New()
		s.maskers[key] = m
	}
	return m
}

// counts are of what was found, by detector.
type counts map[string]int

func (c *counts) add(found []codec.Finding) {
	if *c == nil && len(found) > 0 {
		*c = counts{}
	}
	for _, f := range found {
		(*c)[f.Detector]++
	}
}

// with returns what a Masker finds in a frame: found in what is on record, and,
// of what was masked there, what it would have found.
func (c counts) with(masked counts, m *codec.Masker) counts {
	for d, n := range masked {
		if !m.Has(d) {
			continue
		}
		if c == nil {
			c = counts{}
		}
		if d == codec.FieldDetector { // its marks are masked again
			c[d] = max(c[d], n)
		} else {
			c[d] += n
		}
	}
	return c
}

// A verdict is what a policy decides on one call.
type verdict struct {
	access policy.Access
	reason string
	found  counts // in the arguments, and masked
}

// call judges f, of whose arguments masked is what is not on record.
func (s *side) call(t *policy.Terms, f *codec.Frame, masked counts, now time.Time) (v verdict) {
	if m := s.masker(t, false); m != nil && f.Arguments != nil && t.Masking.Requests != policy.RequestsPass {
		line, found := m.MaskArguments(s.buf[:0], f)
		s.buf = line
		v.found.add(found)
		v.found = v.found.with(masked, m)
		if len(v.found) > 0 && t.Masking.Requests == policy.RequestsDeny {
			return verdict{policy.Deny, "the arguments hold " + v.found.names(), nil}
		}
		if len(found) > 0 {
			g, err := s.parser.Parse(line, codec.C2S)
			if err != nil {
				return verdict{policy.Deny, "the arguments cannot be masked", nil}
			}
			f = g
		}
	}
	d := t.Call(f, now)
	v.access, v.reason = d.Access, d.Reason
	return v
}

func (c counts) names() string {
	var names []string
	for d := range c {
		names = append(names, d)
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

// hides reports whether the terms leave a tool out of the answer f.
func hides(t *policy.Terms, f *codec.Frame) bool {
	if f.Result == nil || !t.HidesTools() {
		return false
	}
	var name []byte
	for tool := range codec.Elements(codec.Member(f.Result, "tools")) {
		if raw := codec.Member(tool, "name"); len(raw) > 0 && raw[0] == '"' {
			name = codec.Unquote(name[:0], raw)
			if t.Hides(string(name)) {
				return true
			}
		}
	}
	return false
}

// A long is a frame that is looked at while its parts are read.
type long struct {
	in   *io.PipeWriter
	done chan looked
}

// looked is what was found in a long frame.
type looked struct {
	found counts
	id    string // that it answers, if it could be read
	ok    bool   // all of it was looked at
}

func startLong(m *codec.Masker) *long {
	r, w := io.Pipe()
	l := &long{in: w, done: make(chan looked, 1)}
	go l.look(r, m)
	return l
}

// part gives it the next part.
func (l *long) part(b []byte) { l.in.Write(b) } // fails when the rest does not matter any more

// end says that there is no more, and returns what was found.
func (l *long) end(whole bool) looked {
	if whole {
		l.in.Write([]byte("\n"))
	}
	l.in.Close()
	return <-l.done
}

// look looks at what comes, as a session does with what its server sends.
func (l *long) look(in *io.PipeReader, m *codec.Masker) {
	var (
		p   codec.Parser
		out looked
	)
	defer func() {
		in.Close()
		l.done <- out
	}()
	r := codec.NewReader(in, codec.Limits{Held: heldFrame})
	line, err := r.Next()
	if err == codec.ErrLong {
		id, ok := r.Long()
		out.id = string(id)
		if ok {
			var f *codec.Frame
			f, _, err = p.Flow(r, m, "", func(part codec.Part) error {
				out.found.add(part.Findings)
				return nil
			})
			if err == nil {
				out.id, out.ok = string(f.ID), true
			}
			return
		}
		r.Whole()
		line, err = r.Next()
	}
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return
	}
	f, err := p.Parse(line, codec.S2C)
	if err != nil {
		return
	}
	_, found := m.Mask(nil, f)
	out.found.add(found)
	out.id, out.ok = string(f.ID), true
}

// heldFrame is how long a frame may be before it is looked at while it is read,
// in bytes.
const heldFrame = 128 << 10
