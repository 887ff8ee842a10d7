package trial

import (
	"encoding/json"
	"strconv"
	"strings"
	"time"

	"example.com/broker/broker/policy"
	"example.com/broker/codec"
	"example.com/broker/recorder"
)

// A visit is the way through one session.
type visit struct {
	*trial
	s       *recorder.Session
	access  policy.Access      // that was decided when it was opened
	answers bool               // an answer of a session that was refused has said so
	unused  bool               // it was refused, and not by the policy
	labels  map[string]label   // of requests in flight, by raw id
	blocked map[string]*judged // requests whose refusal comes, by raw id
	noted   [2]bool            // by direction: somebody has approved the call that comes
	masked  [2]counts          // by direction: what was masked in the frame that comes
	calls   int64              // that passed, in a session that is not judged any further
	long    struct {           // the frame of the server that comes in parts
		now, was, observed *long
		masked             counts
		time               time.Time
		under              bool
	}
}

// A label says what a request was.
type label struct{ method, name string }

// A judged call waits for its answer, which says what became of it.
type judged struct {
	label
	call      bool // not the protocol's housekeeping
	now, was  verdict
	observed  *verdict // of an observing rule
	masked    counts
	time      time.Time
	arguments string
}

// refused reports whether the session was not let in.
func (v *visit) refused() bool { return v.s.State == recorder.Refused }

// judges reports whether both sides let the session in, so that what is in it
// can be compared.
func (v *visit) judges() bool {
	return !v.refused() && v.now.terms.Access != policy.Deny && (v.o.Old == nil || v.was.terms.Access != policy.Deny)
}

// looks reports whether anybody looks at what the server sends.
func (v *visit) looks() bool {
	t := v.now.terms
	o := t.Observed
	return v.judges() && (o != nil && o.Masking.New != nil || t.Masking.New != nil || t.HidesTools() || v.s.Masked > 0 || len(v.s.Findings) > 0 ||
		v.o.Old != nil && v.was.terms.Masking.New != nil)
}

// frame looks at the next record.
func (v *visit) frame(f *recorder.Frame) {
	d := f.Direction
	switch f.Verdict {
	case recorder.Found:
		var found []codec.Finding
		if json.Unmarshal(f.Bytes, &found) == nil {
			v.masked[d].add(found)
		}
		return
	case recorder.Noted:
		var n recorder.Note
		if json.Unmarshal(f.Bytes, &n) == nil {
			v.noted[d] = n.Mode == recorder.Enforce && n.Says == policy.Approval.String()
		}
		return
	case recorder.Aliased, recorder.Sealed:
		return
	}
	masked, approved := v.masked[d], v.noted[d]
	v.masked[d], v.noted[d] = nil, false
	inTime := !f.Time.Before(v.o.Since)
	switch {
	case d == codec.C2S && f.Verdict != recorder.Answered:
		v.c2s(f, masked, approved, inTime)
	case d == codec.S2C && f.Verdict == recorder.Answered:
		v.answered(f, inTime)
	case d == codec.S2C && f.Verdict != recorder.Blocked:
		v.s2c(f, masked, inTime)
	}
}

// c2s judges what the client sent.
func (v *visit) c2s(r *recorder.Frame, masked counts, approved, inTime bool) {
	if v.refused() || !v.judges() && r.Verdict == recorder.Blocked {
		return
	}
	f, err := v.parser.Parse(r.Bytes, codec.C2S)
	if err == nil && !v.judges() {
		if inTime && policy.IsCall(f) {
			v.calls++
		}
		return
	}
	if err != nil {
		if r.Verdict != recorder.Blocked && inTime {
			v.report.Unread++
		}
		return
	}
	if f.Kind == codec.Response || f.Kind == codec.Notification && r.Verdict == recorder.Blocked {
		return
	}
	l := label{method: string(f.Method)}
	if l.method == "tools/call" || l.method == "prompts/get" {
		l.name = string(f.Name)
	}
	l.method, l.name = clip(l.method), clip(l.name)
	if f.Kind == codec.Request && r.Verdict != recorder.Blocked && len(v.labels) < maxPending && v.looks() {
		v.labels[string(f.ID)] = l
	}
	if !inTime {
		return
	}
	c := &judged{label: l, call: policy.IsCall(f), masked: masked, time: r.Time}
	c.now = v.now.call(v.now.terms, f, masked, r.Time)
	if o := v.now.terms.Observed; o != nil {
		would := v.now.call(o, f, masked, r.Time)
		c.observed = &would
	}
	if v.o.Old != nil {
		c.was = v.was.call(v.was.terms, f, masked, r.Time)
	} else {
		c.was = verdict{access: policy.Allow, found: masked}
		if approved {
			c.was.access = policy.Approval
		}
	}
	if r.Verdict == recorder.Blocked {
		if len(v.blocked) < maxPending {
			c.arguments = v.arguments(f)
			v.blocked[string(f.ID)] = c
		}
		return
	}
	v.compare(c, f)
}

// clip keeps of what a peer has chosen as much as tells it apart.
func clip(s string) string {
	if len(s) > 2*maxName {
		return strings.Clone(s[:2*maxName])
	}
	return s
}

// answered takes an answer of the broker's own, which says why it refused.
func (v *visit) answered(r *recorder.Frame, inTime bool) {
	if v.refused() && v.answers || !v.refused() && len(v.blocked) == 0 {
		return
	}
	f, err := v.parser.Parse(r.Bytes, codec.S2C)
	if err != nil || f.Kind != codec.Response {
		return
	}
	code, _ := strconv.Atoi(string(codec.Member(f.Error, "code")))
	if v.refused() {
		v.answers = true
		switch code {
		case codeDenied:
			v.access = policy.Deny
		case codeApproval:
			v.access = policy.Approval
		default:
			v.unused = true
		}
		return
	}
	c := v.blocked[string(f.ID)]
	if c == nil {
		return
	}
	delete(v.blocked, string(f.ID))
	was := policy.Deny
	switch {
	case code == codeDenied:
	case code == codeApproval && !inRoom(f), f.Result != nil && isInputRequired(f):
		was = policy.Approval
	default: // the waiting room's, or no decision of the policy's
		return
	}
	if v.o.Old == nil {
		c.was.access, c.was.found = was, nil
	}
	v.compare(c, nil)
}

// The codes of refusals that a policy decides.
const (
	codeDenied   = 403
	codeApproval = 428
)

// inRoom reports whether a refusal is that of a session that has no grant.
func inRoom(f *codec.Frame) bool {
	url := codec.Member(codec.Member(f.Error, "data"), "url")
	return strings.Contains(string(url), "/access/")
}

func isInputRequired(f *codec.Frame) bool {
	return string(codec.Member(f.Result, "resultType")) == `"input_required"`
}

// compare counts a call, and what would be otherwise. f is it, if c has no
// arguments of it.
func (v *visit) compare(c *judged, f *codec.Frame) {
	if c.call {
		v.report.Calls++
	}
	arguments := func() string {
		if f != nil {
			return v.arguments(f)
		}
		return c.arguments
	}
	ch := change{of: "call", was: c.was.access.String(), now: c.now.access.String(), rule: v.now.terms.Rule, reason: c.now.reason, method: c.method, name: c.name}
	if c.now.access != c.was.access {
		v.differs(c.now.access, c.was.access)
		if _, e := v.note(v.s, c.time, ch, 0); e != nil {
			e.Arguments = arguments()
		}
	}
	if c.now.access != policy.Deny && c.was.access != policy.Deny {
		ch.reason = ""
		v.masks(ch, c.time, c.now.found, c.was.found, arguments)
	}
	if o := c.observed; o != nil {
		v.observes(ch, c, o, arguments)
	}
}

// observes counts what an observing rule would say of a call.
func (v *visit) observes(ch change, c *judged, o *verdict, arguments func() string) {
	ch.mode = policy.Observe.String()
	if o.access < c.was.access {
		v.report.Newly.Observed++
		ch.now, ch.reason = o.access.String(), o.reason
		if _, e := v.note(v.s, c.time, ch, 0); e != nil {
			e.Arguments = arguments()
		}
	}
	if o.access != policy.Deny && c.was.access != policy.Deny && v.masksMore(ch, c.time, o.found, c.was.found, arguments) && o.access >= c.was.access {
		v.report.Newly.Observed++
	}
}

// differs counts what is decided otherwise.
func (t *trial) differs(now, was policy.Access) {
	switch n := &t.report.Newly; {
	case now > was && now == policy.Allow:
		n.Passed++
	case now >= was:
	case now == policy.Approval:
		n.Held++
	default:
		n.Refused++
	}
}

// masks counts what would be masked otherwise in a frame.
func (v *visit) masks(c change, at time.Time, now, was counts, arguments func() string) {
	more, less := v.masksMore(c, at, now, was, arguments), false
	for d, n := range was {
		if n > now[d] {
			less = true
			v.maskedOtherwise(c, at, d, "masked", "clear", n-now[d], arguments)
		}
	}
	if more {
		v.report.Newly.Masked++
	}
	if less {
		v.report.Newly.Unmasked++
	}
}

// masksMore counts what would be masked that was not, and reports whether there is
// any.
func (v *visit) masksMore(c change, at time.Time, now, was counts, arguments func() string) (more bool) {
	c.reason = ""
	for d, n := range now {
		if n > was[d] {
			more = true
			v.maskedOtherwise(c, at, d, "clear", "masked", n-was[d], arguments)
		}
	}
	return more
}

func (v *visit) maskedOtherwise(c change, at time.Time, detector, was, now string, n int, arguments func() string) {
	c.was, c.now, c.detector = was, now, detector
	if _, e := v.note(v.s, at, c, n); e != nil && arguments != nil {
		e.Arguments = arguments()
	}
}

// s2c looks at what the server sent.
func (v *visit) s2c(r *recorder.Frame, masked counts, inTime bool) {
	if !v.looks() {
		return
	}
	if r.More || v.long.under {
		v.part(r, masked, inTime)
		return
	}
	if r.Verdict == recorder.Cut {
		return
	}
	f, err := v.parser.Parse(r.Bytes, codec.S2C)
	if err != nil {
		if inTime {
			v.report.Unread++
		}
		return
	}
	l := label{method: clip(string(f.Method))}
	if f.Kind == codec.Response {
		l = v.take(string(f.ID))
	}
	if !inTime {
		return
	}
	find := func(s *side, t *policy.Terms) (found counts) {
		if t == nil || t.Masking.New == nil {
			return nil
		}
		m := s.masker(t, false)
		out, all := m.Mask(s.buf[:0], f)
		s.buf = out
		found.add(all)
		return found.with(masked, m)
	}
	was := masked
	if v.o.Old != nil {
		was = find(&v.was, v.was.terms)
	}
	v.answer(r.Time, l, find(&v.now, v.now.terms), was, find(&v.now, v.now.terms.Observed))
	if hides(v.now.terms, f) && !(v.o.Old != nil && hides(v.was.terms, f)) {
		v.report.Newly.Hidden++
		v.note(v.s, r.Time, change{of: "answer", was: "listed", now: "hidden", rule: v.now.terms.Rule, method: l.method}, 0)
	}
}

// take returns the label of the request with that raw id, which is answered.
func (v *visit) take(id string) label {
	l := v.labels[id]
	delete(v.labels, id)
	return l
}

// answer compares what was found in a frame of the server's. observed is what an
// observing rule finds.
func (v *visit) answer(at time.Time, l label, now, was, observed counts) {
	c := change{of: "answer", rule: v.now.terms.Rule, method: l.method, name: l.name}
	v.masks(c, at, now, was, nil)
	c.mode = policy.Observe.String()
	if v.masksMore(c, at, observed, was, nil) {
		v.report.Newly.Observed++
	}
}

// part takes a part of a frame that comes in parts.
func (v *visit) part(r *recorder.Frame, masked counts, inTime bool) {
	l := &v.long
	if !l.under {
		l.under, l.masked, l.time = true, nil, r.Time
		start := func(s *side, t *policy.Terms) *long {
			if t == nil || t.Masking.New == nil || !inTime {
				return nil
			}
			return startLong(s.masker(t, true))
		}
		l.now, l.was, l.observed = start(&v.now, v.now.terms), start(&v.was, v.was.terms), start(&v.now, v.now.terms.Observed)
	}
	for d, n := range masked {
		if l.masked == nil {
			l.masked = counts{}
		}
		l.masked[d] += n
	}
	for _, look := range []*long{l.now, l.was, l.observed} {
		if look != nil {
			look.part(r.Bytes)
		}
	}
	if !r.More {
		v.endLong(r.Verdict != recorder.Cut, inTime)
	}
}

// endLong compares what was found in a long frame.
func (v *visit) endLong(whole, inTime bool) {
	l := &v.long
	if !l.under {
		return
	}
	l.under = false
	var id string
	end := func(look *long, s *side, t *policy.Terms) counts {
		if look == nil {
			return nil
		}
		got := look.end(whole)
		if !got.ok && whole {
			v.report.Unread++
		}
		if got.id != "" {
			id = got.id
		}
		return got.found.with(l.masked, s.masker(t, true))
	}
	now, was, observed := end(l.now, &v.now, v.now.terms), end(l.was, &v.was, v.was.terms), end(l.observed, &v.now, v.now.terms.Observed)
	l.now, l.was, l.observed = nil, nil, nil
	if v.o.Old == nil {
		was = l.masked
	}
	if label := v.take(id); inTime {
		v.answer(l.time, label, now, was, observed)
	}
}

// lost forgets what a damaged block has torn apart.
func (v *visit) lost() {
	v.masked, v.noted = [2]counts{}, [2]bool{}
	v.endLong(false, false)
}

// end judges the session itself, of which all is known now.
func (v *visit) end() {
	v.endLong(false, true)
	now, was := v.now.terms.Access, v.access
	if v.o.Old != nil {
		was = v.was.terms.Access
	}
	if now == was || v.unused && v.o.Old == nil {
		return
	}
	v.differs(now, was)
	c := change{of: "session", was: was.String(), now: now.String(), rule: v.now.terms.Rule}
	if now == policy.Deny && c.rule == "" {
		c.reason = "no rule gives access"
	}
	if changed, _ := v.note(v.s, v.s.Start, c, 0); changed != nil {
		changed.Calls += v.calls
	}
}

// leave ends what looks at a long frame, whatever has ended the visit.
func (v *visit) leave() {
	for _, look := range []*long{v.long.now, v.long.was, v.long.observed} {
		if look != nil {
			look.end(false)
		}
	}
}
