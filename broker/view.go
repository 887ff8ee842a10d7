package broker

import (
	"sync"

	"example.com/broker/broker/policy"
	"example.com/broker/codec"
)

// A view is one pump's knowledge of the policy.
type view struct {
	policy *policy.Policy
	terms  *policy.Terms
	parser *codec.Parser // nil while there is nothing to judge
	masker *codec.Masker // the same; or nothing is masked
	looks  *codec.Masker // of what an observing rule would mask, in the same way
	out    *[]byte       // for what takes a line's place; nil like parser
}

var outs = sync.Pool{New: func() any { return new([]byte) }}

// place returns a buffer for what takes a line's place. It is valid until rest.
func (v *view) place() *[]byte {
	if v.out == nil {
		v.out = outs.Get().(*[]byte)
	}
	*v.out = (*v.out)[:0]
	return v.out
}

// parse parses a line. The frame is valid until the next call, and until rest.
func (v *view) parse(line []byte, d codec.Direction) (*codec.Frame, error) {
	return v.acquire().Parse(line, d)
}

func (v *view) acquire() *codec.Parser {
	if v.parser == nil {
		v.parser = codec.AcquireParser()
	}
	return v.parser
}

// rest gives back what is needed while frames are judged only. Sessions wait most of
// their time.
func (v *view) rest() {
	if v.parser != nil {
		v.parser.Release()
	}
	if v.masker != nil {
		v.terms.ReleaseMasker(v.masker)
	}
	if v.looks != nil {
		v.terms.Observed.ReleaseMasker(v.looks)
	}
	if v.out != nil && cap(*v.out) <= batchSize { // else it was a rare big frame
		outs.Put(v.out)
	}
	v.parser, v.masker, v.looks, v.out = nil, nil, nil, nil
}

// refresh follows a policy that has been reloaded.
func (s *session) refresh(v *view) error {
	p := s.policy.Load()
	if p == v.policy {
		return nil
	}
	t := s.decide(p)
	switch r := ofTerms(t, s.identity.Subject, s.server); {
	case r == nil:
	case r.Code != CodeApproval:
		return r
	case s.room.waits(): // for that
		if t.Rule != s.rule {
			return errPolicyChanged
		}
	case !s.granted(t.Rule):
		return r
	}
	v.masker, v.looks = nil, nil // they are of other terms
	v.policy, v.terms = p, t
	return nil
}

// decide returns what p says of the session. Both pumps ask, and have the same then.
func (s *session) decide(p *policy.Policy) *policy.Terms {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p != s.decided {
		s.decided, s.terms = p, p.Decide(s.identity, s.server)
	}
	return s.terms
}

// masks returns the masker of the terms, or nil if they mask nothing.
func (s *session) masks(v *view) *codec.Masker {
	if v.masker == nil {
		if v.masker = v.terms.AcquireMasker(); v.masker != nil {
			v.masker.Came, v.masker.Leave = s.toClient.originals, false
		}
	}
	return v.masker
}

// observes returns the masker of what an observing rule would mask, or nil.
func (v *view) observes() *codec.Masker {
	if o := v.terms.Observed; v.looks == nil && o != nil {
		if v.looks = o.AcquireMasker(); v.looks != nil {
			v.looks.Came, v.looks.Leave = false, true
		}
	}
	return v.looks
}
