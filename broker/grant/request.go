package grant

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"example.com/broker/broker/identity"
	"example.com/broker/broker/policy"
)

// maxPending is how many requests one subject may have undecided.
const maxPending = 20

type pending struct {
	Request
	version uint64
	lapse   *time.Timer
	viewed  map[string]bool // by whom; each is put on record once
}

// An Ask is what somebody asks for.
type Ask struct {
	By         identity.Identity
	Server     string
	Terms      *policy.Terms
	Reason     string
	Duration   time.Duration // zero: the rule's
	Source     netip.Addr
	Session    string
	Call       *Call // for this call only
	BreakGlass bool  // at once
}

// Ask makes a request, or returns the pending one for the same. It is granted
// at once where the rule's auto holds, or with BreakGlass. Errors that the
// person can mend are [*AskError].
func (d *Desk) Ask(ctx context.Context, a Ask) (Request, error) {
	reason := strings.TrimSpace(a.Reason)
	if a.Call == nil || reason != "" { // who makes a call cannot give a reason with it
		if err := a.Terms.CheckReason(reason); err != nil {
			return Request{}, &AskError{err}
		}
	}
	lasts, err := a.Terms.Lasts(a.Duration)
	if err != nil {
		return Request{}, &AskError{err}
	}
	if a.Call != nil {
		lasts = callLife
	}
	if a.BreakGlass {
		if !a.Terms.MayBreakGlass() {
			return Request{}, &AskError{fmt.Errorf("rule %q does not let you break the glass", a.Terms.Rule)}
		}
		if reason == "" {
			return Request{}, &AskError{errors.New("a reason is required to break the glass")}
		}
	}
	asking := a.Terms.Asking()
	now := time.Now()
	r := Request{
		ID: newID("req-"), State: Pending, Subject: a.By.Subject, Groups: a.By.Groups,
		Server: a.Server, Rule: a.Terms.Rule, Reason: reason, Duration: Duration(lasts), Call: a.Call,
		Approvers: asking.Approvers, Native: asking.Native,
		Created: now.UTC(), Lapses: now.Add(asking.TTL).UTC(),
	}
	if a.Source.IsValid() {
		r.Source = a.Source.Unmap().String()
	}
	tool := ""
	if a.Call != nil {
		tool = a.Call.Name
	}
	event := r.event(RequestCreated)
	event.Actor, event.Reason, event.Session = r.Subject, r.Reason, a.Session

	d.writing.Lock()
	defer d.writing.Unlock()
	if d.isDisabled(a.By.Subject) {
		return Request{}, ErrDisabled
	}
	how := ""
	switch {
	case a.BreakGlass:
		how = ByBreakGlass
	case a.Terms.Auto(policy.Asked{Reason: reason, Duration: lasts, Source: a.Source, Tool: tool, Now: now}):
		how = ByAuto
	default:
		if have, n := d.similar(r); have != nil {
			return *have, nil
		} else if n >= maxPending {
			return Request{}, ErrTooMany
		}
	}
	if how != "" {
		return d.grant(ctx, &pending{Request: r}, how, event)
	}
	if len(r.Approvers.Users) == 0 && len(r.Approvers.Groups) == 0 {
		return Request{}, &AskError{fmt.Errorf("rule %q gives access by itself only, and its condition does not hold", r.Rule)}
	}
	p := &pending{Request: r, version: 1}
	err = d.commit(ctx, []Record{record(Requests, r.ID, 1, r)}, func() { d.awaitLocked(p) }, &r, event)
	return r, err
}

// similar returns the pending request for the same as r, and how many r's
// subject has.
func (d *Desk) similar(r Request) (same *Request, n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, p := range d.pending {
		if p.Subject != r.Subject {
			continue
		}
		n++
		if p.Server == r.Server && p.Rule == r.Rule && (p.Call == nil) == (r.Call == nil) && (p.Call == nil || p.Call.Digest == r.Call.Digest) {
			have := p.Request
			return &have, n
		}
	}
	return nil, n
}

// event is one about the request.
func (r *Request) event(kind string) Event {
	e := Event{Type: kind, Subject: r.Subject, Server: r.Server, Rule: r.Rule, Request: r.ID, Grant: r.Grant}
	if r.Call != nil {
		e.Detail = map[string]string{"method": r.Call.Method, "name": r.Call.Name, "digest": r.Call.Digest}
	}
	return e
}

// await keeps a pending request until it lapses.
func (d *Desk) await(p *pending) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.awaitLocked(p)
}

func (d *Desk) awaitLocked(p *pending) {
	d.pending[p.ID] = p
	p.lapse = time.AfterFunc(time.Until(p.Lapses), func() { d.lapse(p.ID) })
}

func (d *Desk) lapse(id string) {
	d.writing.Lock()
	defer d.writing.Unlock()
	p := d.get(id)
	if p == nil || d.ctx.Err() != nil {
		return
	}
	r := p.Request
	r.State, r.Decided = Lapsed, time.Now().UTC()
	if err := d.settle(d.ctx, p, r, r.event(RequestLapsed)); err != nil {
		d.log.Error("a request cannot lapse", "request", id, "error", err)
		d.mu.Lock()
		p.lapse.Reset(time.Minute)
		d.mu.Unlock()
	}
}

// get returns a pending request.
func (d *Desk) get(id string) *pending {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.pending[id]
}

// settle writes a request that is decided, or has one vote more.
func (d *Desk) settle(ctx context.Context, p *pending, r Request, events ...Event) error {
	return d.commit(ctx, []Record{record(Requests, r.ID, p.version+1, r)}, func() {
		p.Request = r
		p.version++
		if r.State != Pending {
			p.lapse.Stop()
			delete(d.pending, r.ID)
		}
	}, &r, events...)
}

// A Vote is what an approver says.
type Vote struct {
	Yes     bool
	Comment string
	Via     string // "web", "cli", "slack"
}

// Decide counts an approver's vote. One no denies; as many yes as the rule
// wants, each of another person, grant.
func (d *Desk) Decide(ctx context.Context, id string, by identity.Identity, v Vote) (Request, error) {
	if len(v.Comment) > 1000 {
		return Request{}, &AskError{errors.New("the comment is over 1000 bytes long")}
	}
	d.writing.Lock()
	defer d.writing.Unlock()
	p := d.get(id)
	if p == nil {
		r, err := d.stored(ctx, id)
		if err != nil {
			return Request{}, err
		}
		if !d.sees(r, by) {
			return Request{}, ErrNotFound
		}
		return r, &StateError{"request", id, r.State}
	}
	r := p.Request
	switch {
	case d.isDisabled(by.Subject):
		return r, ErrDisabled
	case same(r.Subject, by.Subject):
		return r, ErrOneself
	case !r.Approvers.Include(by):
		if !d.sees(r, by) {
			return Request{}, ErrNotFound
		}
		return r, ErrNotApprover
	case slices.ContainsFunc(r.Decisions, func(d Decision) bool { return same(d.By, by.Subject) }):
		return r, ErrVoted
	case !time.Now().Before(r.Lapses):
		return r, &StateError{"request", id, Lapsed}
	}
	r.Decisions = append(slices.Clone(r.Decisions), Decision{by.Subject, v.Yes, v.Comment, v.Via, time.Now().UTC()})
	e := r.event(RequestApproved)
	e.Actor, e.Reason, e.Via = by.Subject, v.Comment, v.Via
	if !v.Yes {
		e.Type = RequestDenied
		r.State, r.Decided = Denied, time.Now().UTC()
		return r, d.settle(ctx, p, r, e)
	}
	if len(r.Decisions) < r.Approvers.Count {
		return r, d.settle(ctx, p, r, e)
	}
	return d.grant(ctx, &pending{Request: r, version: p.version, lapse: p.lapse}, ByApproval, e)
}

// sees reports whether id may see a request.
func (d *Desk) sees(r Request, id identity.Identity) bool {
	return same(r.Subject, id.Subject) || r.Approvers.Include(id) || d.Admin(id)
}

// stored reads a request from the store.
func (d *Desk) stored(ctx context.Context, id string) (r Request, err error) {
	rec, err := d.store.Record(ctx, Requests, id)
	if err == nil {
		err = json.Unmarshal(rec.Data, &r)
	}
	return r, err
}

// Request returns a request that by may see, pending or not.
func (d *Desk) Request(ctx context.Context, id string, by identity.Identity) (Request, error) {
	r, err := d.stored(ctx, id)
	if err == nil && !d.sees(r, by) {
		return Request{}, ErrNotFound
	}
	return r, err
}

// Viewed puts on record that an approver has looked at a pending request, once.
func (d *Desk) Viewed(ctx context.Context, r Request, by identity.Identity) error {
	d.writing.Lock()
	defer d.writing.Unlock()
	p := d.get(r.ID)
	if p == nil || p.viewed[by.Subject] {
		return nil
	}
	e := r.event(RequestViewed)
	e.Actor = by.Subject
	return d.commit(ctx, nil, func() {
		if p.viewed == nil {
			p.viewed = map[string]bool{}
		}
		p.viewed[by.Subject] = true
	}, nil, e)
}

// Pending lists the pending requests that by may see, oldest first.
func (d *Desk) Pending(by identity.Identity) (all []Request) {
	d.mu.Lock()
	list := slices.Collect(maps.Values(d.pending))
	d.mu.Unlock()
	for _, p := range list {
		if r := p.Request; d.sees(r, by) {
			all = append(all, r)
		}
	}
	slices.SortFunc(all, func(a, b Request) int { return a.Created.Compare(b.Created) })
	return all
}

// Requests lists all requests that by may see, newest first, n at the most.
func (d *Desk) Requests(ctx context.Context, by identity.Identity, n int) (all []Request, err error) {
	err = load(ctx, d.store, Requests, func(r Request, _ uint64) {
		if d.sees(r, by) {
			all = append(all, r)
		}
	})
	slices.SortFunc(all, func(a, b Request) int { return b.Created.Compare(a.Created) })
	return all[:min(n, len(all))], err
}

// Decided waits until a request is no longer pending, or ctx is done, and
// returns it as it is then.
func (d *Desk) Decided(ctx context.Context, id string) (Request, error) {
	for {
		d.mu.Lock()
		p, changed := d.pending[id], d.changed
		d.mu.Unlock()
		if p == nil {
			return d.stored(ctx, id)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return Request{}, context.Cause(ctx)
		}
	}
}
