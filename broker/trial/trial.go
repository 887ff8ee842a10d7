// Package trial runs a policy over recordings: what it would have decided on
// what was used.
//
//	report, err := trial.Run(ctx, log, trial.Options{New: policy, Since: lastMonth})
//	for _, c := range report.Changes { // what would not be as it was
//
// Each session is judged by its recorded subject, groups and server, each
// request of its client at the time at which it was recorded, and each frame of
// the server is looked at for what would be masked. What comes out is compared
// with what became of the frame, or with what another policy decides.
//
// A recording holds what was delivered. What was masked cannot be looked at
// again: it counts as found where the policy still has its detector.
//
// Memory is bounded, whatever is on record. Nothing in a [Report] is a value
// that [Options].Show finds.
package trial

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"example.com/broker/broker/identity"
	"example.com/broker/broker/policy"
	"example.com/broker/codec"
	"example.com/broker/recorder"
)

// Options says what is run over what.
type Options struct {
	New      *policy.Policy
	Old      *policy.Policy       // that New is compared with; nil: with what happened
	Show     func() *codec.Masker // of what a Report shows of calls; nil: it shows no arguments
	Since    time.Time
	Until    time.Time // zero: no end
	Subject  string    // of the sessions; empty: any
	Server   string
	Progress func(sessions, frames int64) // is told now and then; may be nil
}

// A Report says what would change. Its JSON is what broker policy test --json
// prints.
type Report struct {
	Schema   int       `json:"schema"` // 1
	Since    time.Time `json:"since"`
	Until    time.Time `json:"until"`
	Sessions int64     `json:"sessions"` // that were judged
	Calls    int64     `json:"calls"`    // that were judged, without the protocol's housekeeping
	Frames   int64     `json:"frames"`   // that were read
	Newly    Newly     `json:"newly"`
	Changes  []*Change `json:"changes"`  // the gravest first
	LeftOut  int64     `json:"left_out"` // changes that are in Newly only, because there are too many kinds of them
	Unread   int64     `json:"unread"`   // delivered frames that could not be judged
	Damaged  []string  `json:"damaged"`  // sessions whose record, or blocks of which, cannot be read; at most 100 are named

	// Unreached are sessions that were not read to their end, because their archive cannot
	// be reached; at most 100 are named.
	Unreached []string `json:"unreached"`
}

// Newly counts what would be otherwise: sessions, calls, and frames.
type Newly struct {
	Refused  int64 `json:"refused"`  // sessions and calls
	Held     int64 `json:"held"`     // sessions and calls, for an approval
	Passed   int64 `json:"passed"`   // sessions and calls
	Masked   int64 `json:"masked"`   // frames with something that was not masked
	Unmasked int64 `json:"unmasked"` // frames without a mask that they had
	Hidden   int64 `json:"hidden"`   // answers with a tool that would be left out
	Observed int64 `json:"observed"` // calls and frames that pass, and of which an observing rule would say otherwise
}

// A Change is what would be otherwise in the same way for one person.
type Change struct {
	Of       string    `json:"of"`  // session, call or answer
	Was      string    `json:"was"` // allow, approval or deny; clear or masked; listed
	Now      string    `json:"now"` // allow, approval or deny; masked or clear; hidden
	Rule     string    `json:"rule"`
	Mode     string    `json:"mode,omitempty"` // observe: it is only noted
	Reason   string    `json:"reason,omitempty"`
	Server   string    `json:"server"`
	Method   string    `json:"method,omitempty"`
	Name     string    `json:"name,omitempty"` // of the tool or prompt
	Subject  string    `json:"subject"`
	Detector string    `json:"detector,omitempty"`
	Count    int64     `json:"count"`            // of sessions, calls or frames
	Values   int64     `json:"values,omitempty"` // found by the detector
	Sessions int64     `json:"sessions"`
	Calls    int64     `json:"calls,omitempty"` // that were made in sessions that would be refused
	Examples []Example `json:"examples"`

	last string // session
}

// An Example is one of what a Change counts.
type Example struct {
	Session   string    `json:"session"`
	Time      time.Time `json:"time"`
	Arguments string    `json:"arguments,omitempty"` // masked, and cut
}

const (
	maxChanges  = 10_000
	maxExamples = 3    // of a change, each of another session where there are
	maxDamaged  = 100  // sessions that are named
	maxPending  = 4096 // requests of a session that are remembered
	maxShown    = 160  // of arguments, in bytes
	maxName     = 128  // of what a client has chosen, in bytes

	progressEvery = 2048 // frames
)

// A trial is a run under way.
type trial struct {
	o       Options
	report  Report
	changes map[change]*Change
	show    *codec.Masker
	now     side // of Options.New
	was     side // of Options.Old
	parser  codec.Parser
}

// A change is what makes two changes one.
type change struct{ of, was, now, rule, mode, reason, server, method, name, subject, detector string }

// Run runs a policy over what is in src.
func Run(ctx context.Context, src recorder.Source, o Options) (*Report, error) {
	t := &trial{o: o, changes: map[change]*Change{}}
	t.report = Report{Schema: 1, Since: o.Since, Until: o.Until, Damaged: []string{}, Unreached: []string{}}
	t.now.policy, t.was.policy = o.New, o.Old
	if o.Show != nil {
		t.show = o.Show()
	}
	if t.report.Until.IsZero() {
		t.report.Until = time.Now()
	}
	q := recorder.Query{Since: o.Since, Until: t.report.Until}
	if o.Subject != "" {
		q.Subjects = []string{o.Subject}
	}
	if o.Server != "" {
		q.Servers = []string{o.Server}
	}
	for s, err := range src.Find(ctx, q) {
		if errors.Is(err, recorder.ErrDamaged) { // nobody knows whose it was
			name(&t.report.Damaged, s.ID)
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list recordings: %w", err)
		}
		if s.Imported != nil { // nobody knows who it was
			continue
		}
		if err := t.session(ctx, src, &s); err != nil {
			return nil, fmt.Errorf("session %s: %w", s.ID, err)
		}
	}
	t.progress()
	t.report.Changes = slices.AppendSeq([]*Change{}, maps.Values(t.changes))
	slices.SortFunc(t.report.Changes, inOrder)
	return &t.report, nil
}

func (t *trial) progress() {
	if t.o.Progress != nil {
		t.o.Progress(t.report.Sessions, t.report.Frames)
	}
}

// session judges one session and all that is in it.
func (t *trial) session(ctx context.Context, src recorder.Source, s *recorder.Session) error {
	id := identity.Identity{Subject: s.Subject, Groups: s.Groups}
	t.now.enter(id, s.Server)
	t.was.enter(id, s.Server)
	v := &visit{trial: t, s: s, labels: map[string]label{}, blocked: map[string]*judged{}}
	defer v.leave()

	v.access = policy.Allow
	if s.Access != "" {
		v.access, _ = policy.ParseAccess(s.Access)
	}
	t.report.Sessions++
	damaged := false
	for f, err := range src.Frames(ctx, s.ID) {
		switch {
		case errors.Is(err, recorder.ErrNoSession): // it has gone meanwhile
			return nil
		case errors.Is(err, recorder.ErrDamaged):
			damaged = true
			v.lost()
			continue
		case errors.Is(err, recorder.ErrArchive):
			name(&t.report.Unreached, s.ID)
			v.lost()
			continue
		case err != nil:
			return err
		}
		if !f.Time.Before(t.report.Until) {
			break
		}
		if t.report.Frames++; t.report.Frames%progressEvery == 0 {
			t.progress()
		}
		v.frame(&f)
	}
	if damaged {
		name(&t.report.Damaged, s.ID)
	}
	v.end()
	return nil
}

// name names a session in a list that is bounded.
func name(list *[]string, session string) {
	if len(*list) < maxDamaged {
		*list = append(*list, session)
	}
}

// note counts a change in s. It returns nil where there are too many; example
// is one that has been begun, or nil.
func (t *trial) note(s *recorder.Session, at time.Time, c change, values int) (known *Change, example *Example) {
	c.server, c.subject = s.Server, s.Subject
	known = t.changes[c]
	if known == nil {
		if len(t.changes) >= maxChanges {
			t.report.LeftOut++
			return nil, nil
		}
		known = &Change{
			Of: c.of, Was: c.was, Now: c.now, Rule: c.rule, Mode: c.mode, Reason: c.reason, Server: t.clean(c.server), Method: t.clean(c.method),
			Name: t.clean(c.name), Subject: t.clean(c.subject), Detector: c.detector, Examples: []Example{},
		}
		t.changes[c] = known
	}
	known.Count++
	known.Values += int64(values)
	again := known.last == s.ID
	if !again {
		known.last = s.ID
		known.Sessions++
	}
	if again || len(known.Examples) == maxExamples {
		return known, nil
	}
	known.Examples = append(known.Examples, Example{Session: s.ID, Time: at})
	return known, &known.Examples[len(known.Examples)-1]
}

// clean returns what a peer has chosen as it may be shown.
func (t *trial) clean(s string) string {
	if t.show != nil && s != "" {
		s = string(t.show.MaskText(nil, []byte(s)))
	}
	return printable(s, maxName)
}

// arguments returns those of f as they may be shown.
func (t *trial) arguments(f *codec.Frame) string {
	if t.show == nil || f.Arguments == nil {
		return ""
	}
	line, _ := t.show.MaskArguments(nil, f)
	masked, err := t.now.parser.Parse(line, codec.C2S)
	if err != nil || masked.Arguments == nil {
		return ""
	}
	return printable(string(masked.Arguments), maxShown)
}

// printable makes s harmless on a terminal, and not much longer than n bytes.
func printable(s string, n int) string {
	cut := len(s) > n
	if cut {
		for s = s[:n]; len(s) > 0 && !utf8.ValidString(s); {
			s = s[:len(s)-1]
		}
	}
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '�'
		}
		return r
	}, s)
	if cut {
		s += "…"
	}
	return s
}

// gravity orders what may become of something.
var gravity = []string{"deny", "approval", "masked", "hidden", "clear", "allow"}

func inOrder(a, b *Change) int {
	return cmp.Or(
		cmp.Compare(a.Mode, b.Mode),
		cmp.Compare(slices.Index(gravity, a.Now), slices.Index(gravity, b.Now)),
		-cmp.Compare(a.Of, b.Of), -cmp.Compare(a.Count, b.Count),
		cmp.Compare(a.Rule, b.Rule), cmp.Compare(a.Server, b.Server), cmp.Compare(a.Method, b.Method), cmp.Compare(a.Name, b.Name),
		cmp.Compare(a.Subject, b.Subject), cmp.Compare(a.Detector, b.Detector), cmp.Compare(a.Reason, b.Reason), cmp.Compare(a.Was, b.Was),
	)
}
