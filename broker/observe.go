package broker

import (
	"context"
	"encoding/json"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"

	"example.com/broker/broker/grant"
	"example.com/broker/broker/policy"
	"example.com/broker/codec"
	"example.com/broker/recorder"
)

// What a rule with the mode observe says is noted on record, in front of the frame
// that passes all the same; calls go to the log, too, and of a session that has
// ended there is an event for each rule.

// saysMask is what a rule says of a frame of which it would mask something.
const saysMask = "mask"

// observed counts what observing rules have said in a session.
type observed struct {
	mu    sync.Mutex
	rules map[string]map[string]int // by rule and by what it says: frames
	under bool                      // of the frame of the server that is under way, something is counted
}

// add counts a note, and reports whether it is the first of its kind.
func (o *observed) add(n *recorder.Note) (first bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.rules == nil {
		o.rules = map[string]map[string]int{}
	}
	if o.rules[n.Rule] == nil {
		o.rules[n.Rule] = map[string]int{}
	}
	o.rules[n.Rule][n.Says]++
	return o.rules[n.Rule][n.Says] == 1
}

// addPart counts a note of a part of a frame, once a frame.
func (o *observed) addPart(n *recorder.Note) (first bool) {
	o.mu.Lock()
	again := o.under
	o.under = true
	o.mu.Unlock()
	return !again && o.add(n)
}

// frame says that a frame of the server has ended.
func (o *observed) frame() {
	o.mu.Lock()
	o.under = false
	o.mu.Unlock()
}

// observe returns what an observing rule says of a frame of the client, or nil.
func (s *session) observe(v *view, f *codec.Frame) *recorder.Note {
	o := v.terms.Observed
	if o == nil {
		return nil
	}
	n := &recorder.Note{Mode: recorder.Observe, Rule: o.Rule}
	if f.Arguments != nil && o.Masking.Requests != policy.RequestsPass {
		masked, found := v.observes().MaskArguments(nil, f)
		if len(found) > 0 {
			n.Says, n.Found = saysMask, slices.Clone(found)
			var p codec.Parser
			g, err := p.Parse(masked, codec.C2S)
			if err != nil || o.Masking.Requests == policy.RequestsDeny {
				n.Says, n.Reason = policy.Deny.String(), "the arguments hold what must not reach the server: "+kinds(found)
			} else {
				f = g
			}
		}
	}
	if n.Says != policy.Deny.String() {
		if verdict := o.Call(f, time.Now()); verdict.Access != policy.Allow {
			n.Says, n.Reason = verdict.Access.String(), verdict.Reason
		}
	}
	switch first := n.Says != "" && s.observed.add(n); {
	case n.Says == "":
		return nil
	case n.Says != saysMask:
		s.log.Info("call passes under a rule that is observed", "method", short(string(f.Method)), "would", n.Says, "rule", n.Rule)
	case first:
		s.tellMasked(n)
	}
	return n
}

// observeFound returns what an observing rule says of a frame of the server in
// which something was found, or nil if nothing was.
func (s *session) observeFound(v *view, found []codec.Finding) *recorder.Note {
	if len(found) == 0 {
		return nil
	}
	n := &recorder.Note{Mode: recorder.Observe, Says: saysMask, Rule: v.terms.Rule, Found: found}
	if s.observed.addPart(n) {
		s.tellMasked(n)
	}
	return n
}

// tellMasked logs the first of a session's frames in which something would be masked.
func (s *session) tellMasked(n *recorder.Note) {
	s.log.Info("values pass under a rule that is observed", "would", n.Says, "rule", n.Rule, "detectors", kinds(n.Found))
}

// aboutPart returns what is put on record in front of a part of a long frame in
// which something was found, and its verdict.
func (s *session) aboutPart(v *view, part codec.Part) (about recorder.Frame, verdict recorder.Verdict, err error) {
	found := part.Findings
	switch {
	case len(found) == 0 && part.Came != nil: // the value was found in the part before
		return about, recorder.Masked, nil
	case len(found) == 0:
		return about, recorder.Delivered, nil
	}
	if s.masks(v) != nil {
		about.Verdict = recorder.Found
		about.Bytes, err = json.Marshal(found)
		return about, recorder.Masked, err
	}
	about.Verdict = recorder.Noted
	about.Bytes, err = json.Marshal(s.observeFound(v, found))
	return about, recorder.Delivered, err
}

// recordObserved makes an event of what each observing rule has said in s, which
// has ended.
func (b *Broker) recordObserved(ctx context.Context, s *session) {
	s.observed.mu.Lock()
	defer s.observed.mu.Unlock()
	for _, rule := range slices.Sorted(maps.Keys(s.observed.rules)) {
		detail := map[string]string{}
		for what, n := range s.observed.rules[rule] {
			detail[what] = strconv.Itoa(n)
		}
		s.log.Info("an observed rule would have acted", "rule", rule, "deny", s.observed.rules[rule]["deny"],
			"approval", s.observed.rules[rule]["approval"], "mask", s.observed.rules[rule]["mask"])
		if b.o.Desk == nil {
			continue
		}
		e := grant.Event{Type: grant.SessionObserved, Subject: s.identity.Subject, Server: s.server, Rule: rule, Session: s.id, Detail: detail}
		if err := b.o.Desk.Record(context.WithoutCancel(ctx), e); err != nil {
			s.log.Error("what a rule has observed is not among the events", "error", err)
		}
	}
}
