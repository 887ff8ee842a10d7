package grant

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"example.com/broker/broker/identity"
	"example.com/broker/broker/policy"
)

// maxPending is how many requests one subject may have undecided.
const maxPending = 20

// callLife is how long a call may be made once it has been approved.
const callLife = 10 * time.Minute

// Options is what a Desk is made of.
type Options struct {
	Store Store
	// Admins may see, revoke, review and disable everything.
	Admins policy.Approvers
	// Told gets every event after it is durable, in order, with the request that
	// it is about, if any. It must not block.
	Told func(Event, *Request)
	Log  *slog.Logger // if nil, nothing is logged
}

// A Desk takes requests and decisions, and knows the grants. Several goroutines
// may use it.
//
// What is pending or active is in memory, so that looking up a grant costs a
// map access; everything is in the store.
type Desk struct {
	ctx   context.Context
	store Store
	told  func(Event, *Request)
	log   *slog.Logger

	writing sync.Mutex // held while something changes: one change at a time

	mu       sync.Mutex
	admins   policy.Approvers
	pending  map[string]*pending
	uses     map[string]*Use // by grant
	disabled map[[2]string]Disabled
	changed  chan struct{} // closed at the next change
}

type pending struct {
	Request
	version uint64
	lapse   *time.Timer
	viewed  map[string]bool // by whom; each is put on record once
}

// A Use is a grant that is in force. Done is closed when it ends.
type Use struct {
	Grant
	version uint64
	ctx     context.Context
	end     context.CancelCauseFunc
}

// Done is closed at the end of the grant.
func (u *Use) Done() <-chan struct{} { return u.ctx.Done() }

// AfterEnd calls f on a goroutine of its own when the grant ends, unless stop is
// called before.
func (u *Use) AfterEnd(f func()) (stop func() bool) { return context.AfterFunc(u.ctx, f) }

// Cause returns why the grant ended: ErrExpired or ErrRevoked; nil while it lasts.
func (u *Use) Cause() error { return context.Cause(u.ctx) }

// Open returns a Desk with what the store holds. What has lapsed or expired
// since the last process is so now. ctx is the life of the Desk.
func Open(ctx context.Context, o Options) (*Desk, error) {
	d := &Desk{
		ctx: ctx, store: o.Store, told: o.Told, log: o.Log, admins: o.Admins,
		pending: map[string]*pending{}, uses: map[string]*Use{},
		disabled: map[[2]string]Disabled{}, changed: make(chan struct{}),
	}
	if d.told == nil {
		d.told = func(Event, *Request) {}
	}
	if d.log == nil {
		d.log = slog.New(slog.DiscardHandler)
	}
	var requests []pending
	var grants []Use
	err := errors.Join(
		load(ctx, o.Store, Requests, func(r Request, version uint64) {
			if r.State == Pending {
				requests = append(requests, pending{Request: r, version: version})
			}
		}),
		load(ctx, o.Store, Grants, func(g Grant, version uint64) {
			if g.State == Active {
				grants = append(grants, Use{Grant: g, version: version})
			}
		}),
		load(ctx, o.Store, Blocks, func(b Disabled, _ uint64) { d.disabled[[2]string{b.Kind, b.Name}] = b }),
	)
	if err != nil {
		return nil, err
	}
	for i := range grants {
		d.start(&grants[i])
	}
	for i := range requests {
		d.await(&requests[i])
	}
	return d, nil
}

// load reads the documents of a kind.
func load[T any](ctx context.Context, s Store, k Kind, each func(v T, version uint64)) error {
	for r, err := range s.Records(ctx, k) {
		if err != nil {
			return err
		}
		var v T
		if err := json.Unmarshal(r.Data, &v); err != nil {
			return fmt.Errorf("access store: %s %s: %w", k, r.ID, err)
		}
		each(v, r.Version)
	}
	return nil
}

func record(k Kind, id string, version uint64, v any) Record {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // these are our own structs
	}
	return Record{Kind: k, ID: id, Version: version, Data: b}
}

// SetAdmins changes who may do everything.
func (d *Desk) SetAdmins(a policy.Approvers) {
	d.mu.Lock()
	d.admins = a
	d.mu.Unlock()
}

// Admin reports whether id may do everything.
func (d *Desk) Admin(id identity.Identity) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.admins.Include(id)
}

// commit writes a change and, once it is durable, applies it and tells. It is
// called with writing held.
func (d *Desk) commit(ctx context.Context, records []Record, apply func(), about *Request, events ...Event) error {
	now := time.Now().UTC()
	for i := range events {
		events[i].Time = now
	}
	// Whoever asked may go away; a decision that was made is made.
	if err := d.store.Commit(context.WithoutCancel(ctx), Change{records, events}); err != nil {
		return err
	}
	d.mu.Lock()
	if apply != nil {
		apply()
	}
	close(d.changed)
	d.changed = make(chan struct{})
	d.mu.Unlock()
	for _, e := range events {
		d.told(e, about)
	}
	return nil
}

// Record puts events on record that change nothing here.
func (d *Desk) Record(ctx context.Context, events ...Event) error {
	d.writing.Lock()
	defer d.writing.Unlock()
	return d.commit(ctx, nil, nil, nil, events...)
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

func (g *Grant) event(kind string) Event {
	e := Event{Type: kind, Subject: g.Subject, Server: g.Server, Rule: g.Rule, Request: g.Request, Grant: g.ID}
	if g.How != ByApproval {
		e.Detail = map[string]string{"how": g.How}
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

// grant settles a request with a grant, which begins now.
func (d *Desk) grant(ctx context.Context, p *pending, how string, events ...Event) (Request, error) {
	r := p.Request
	now := time.Now().UTC()
	g := Grant{
		ID: newID("gr-"), State: Active, Request: r.ID, Subject: r.Subject, Server: r.Server, Rule: r.Rule,
		How: how, Call: r.Call, Start: now, Until: now.Add(time.Duration(r.Duration)), Approvers: r.Approvers,
	}
	r.State, r.Decided, r.Grant, r.How = Granted, now, g.ID, how
	started := g.event(GrantStarted)
	started.Reason = r.Reason
	u := &Use{Grant: g, version: 1}
	err := d.commit(ctx, []Record{record(Requests, r.ID, p.version+1, r), record(Grants, g.ID, 1, g)}, func() {
		if p.lapse != nil {
			p.lapse.Stop()
		}
		delete(d.pending, r.ID)
		d.startLocked(u)
	}, &r, append(events, started)...)
	return r, err
}

// start puts a grant in force until it expires.
func (d *Desk) start(u *Use) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.startLocked(u)
}

func (d *Desk) startLocked(u *Use) {
	ctx, end := context.WithCancelCause(d.ctx)
	ctx, stop := context.WithDeadlineCause(ctx, u.Until, ErrExpired)
	u.ctx, u.end = ctx, func(cause error) { end(cause); stop() }
	d.uses[u.ID] = u
	context.AfterFunc(u.ctx, func() { d.expire(u) })
}

// expire puts the end of a grant in the store. It is over already: nothing has
// to be written for that.
func (d *Desk) expire(u *Use) {
	if !errors.Is(u.Cause(), ErrExpired) {
		return // revoked, or the broker ends
	}
	d.writing.Lock()
	defer d.writing.Unlock()
	if d.use(u.ID) == nil {
		return // used up meanwhile
	}
	g := u.Grant
	g.State, g.Ended = Expired, time.Now().UTC()
	if err := d.finish(d.ctx, u, g, ErrExpired, g.event(GrantExpired)); err != nil {
		d.log.Error("a grant's end is not on record", "grant", g.ID, "error", err)
		d.mu.Lock()
		delete(d.uses, g.ID) // found again at the next start
		d.mu.Unlock()
	}
}

// finish writes a grant that is over.
func (d *Desk) finish(ctx context.Context, u *Use, g Grant, cause error, events ...Event) error {
	return d.commit(ctx, []Record{record(Grants, g.ID, u.version+1, g)}, func() {
		u.version++
		delete(d.uses, g.ID)
		u.end(cause)
	}, nil, events...)
}

func (d *Desk) use(id string) *Use {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.uses[id]
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

// Grants lists the grants that by may see, newest first: its own, those that it
// may approve, or all. Ended ones only if ended is set.
func (d *Desk) Grants(ctx context.Context, by identity.Identity, ended bool, n int) (all []Grant, err error) {
	err = load(ctx, d.store, Grants, func(g Grant, _ uint64) {
		if (ended || g.State == Active && time.Now().Before(g.Until)) && d.mayEnd(g, by) {
			all = append(all, g)
		}
	})
	slices.SortFunc(all, func(a, b Grant) int { return b.Start.Compare(a.Start) })
	return all[:min(n, len(all))], err
}

// mayEnd reports whether by may see and revoke a grant.
func (d *Desk) mayEnd(g Grant, by identity.Identity) bool {
	return same(g.Subject, by.Subject) || g.Approvers.Include(by) || d.Admin(by)
}

// Find returns the grant in force for that use, or nil. digest is that of a
// call, or empty for access to the server.
func (d *Desk) Find(subject, server, rule, digest string) *Use {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.findLocked(subject, server, rule, digest)
}

func (d *Desk) findLocked(subject, server, rule, digest string) *Use {
	var best *Use
	for _, u := range d.uses {
		if u.Subject == subject && u.Server == server && u.Rule == rule && u.digest() == digest && u.ctx.Err() == nil && (best == nil || u.Until.After(best.Until)) {
			best = u
		}
	}
	return best
}

// Await waits for a grant of access to a server, or until ctx is done.
func (d *Desk) Await(ctx context.Context, subject, server, rule string) (*Use, error) {
	for {
		d.mu.Lock()
		u, changed := d.findLocked(subject, server, rule, ""), d.changed
		d.mu.Unlock()
		if u != nil {
			return u, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
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

// Changed is closed at the next change.
func (d *Desk) Changed() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.changed
}

// Spend uses up the grant of a single call; ok is false if there is none. Of
// several callers at a time one succeeds.
func (d *Desk) Spend(ctx context.Context, subject, server, rule, digest, session string) (ok bool, err error) {
	if d.Find(subject, server, rule, digest) == nil {
		return false, nil
	}
	d.writing.Lock()
	defer d.writing.Unlock()
	u := d.Find(subject, server, rule, digest)
	if u == nil || digest == "" {
		return false, nil
	}
	g := u.Grant
	g.State, g.Ended = Used, time.Now().UTC()
	e := g.event(GrantUsed)
	e.Actor, e.Session = subject, session
	if err := d.finish(ctx, u, g, errUsed, e); err != nil {
		return false, err
	}
	return true, nil
}

// Opened puts on record that a session uses a grant.
func (d *Desk) Opened(ctx context.Context, u *Use, session string) error {
	e := u.Grant.event(GrantUsed)
	e.Actor, e.Session = u.Subject, session
	return d.Record(ctx, e)
}

// Revoke ends a grant at once. The one who has it, an approver or an admin may.
func (d *Desk) Revoke(ctx context.Context, id string, by identity.Identity, reason, via string) (Grant, error) {
	d.writing.Lock()
	defer d.writing.Unlock()
	u := d.use(id)
	if u == nil {
		g, err := d.storedGrant(ctx, id)
		if err != nil {
			return Grant{}, err
		}
		if !d.mayEnd(g, by) {
			return Grant{}, ErrNotFound
		}
		return g, &StateError{"grant", id, g.State}
	}
	if !d.mayEnd(u.Grant, by) {
		return Grant{}, ErrNotFound
	}
	return d.revoke(ctx, u, by.Subject, reason, via)
}

func (d *Desk) revoke(ctx context.Context, u *Use, by, reason, via string) (Grant, error) {
	g := u.Grant
	g.State, g.Ended, g.EndedBy, g.Reason = Revoked, time.Now().UTC(), by, reason
	e := g.event(GrantRevoked)
	e.Actor, e.Reason, e.Via = by, reason, via
	return g, d.finish(ctx, u, g, ErrRevoked, e)
}

func (d *Desk) storedGrant(ctx context.Context, id string) (g Grant, err error) {
	rec, err := d.store.Record(ctx, Grants, id)
	if err == nil {
		err = json.Unmarshal(rec.Data, &g)
	}
	return g, err
}

// Review puts on record that an approver or admin has looked at what was done
// with a grant that was taken by breaking the glass.
func (d *Desk) Review(ctx context.Context, id string, by identity.Identity, comment string) (Grant, error) {
	d.writing.Lock()
	defer d.writing.Unlock()
	rec, err := d.store.Record(ctx, Grants, id)
	if err != nil {
		return Grant{}, err
	}
	var g Grant
	if err := json.Unmarshal(rec.Data, &g); err != nil {
		return Grant{}, err
	}
	switch {
	case !d.mayEnd(g, by):
		return Grant{}, ErrNotFound
	case same(g.Subject, by.Subject):
		return g, ErrOneself
	case g.How != ByBreakGlass:
		return g, &AskError{errors.New("only what was taken by breaking the glass is reviewed")}
	}
	g.Reviewed = by.Subject
	e := g.event(GrantReviewed)
	e.Actor, e.Reason = by.Subject, comment
	return g, d.commit(ctx, []Record{record(Grants, id, rec.Version+1, g)}, func() {
		if u := d.uses[id]; u != nil {
			u.Grant.Reviewed = by.Subject
			u.version++
		}
	}, nil, e)
}

// Disable refuses an identity from now on, and ends its grants and requests. Of
// its sessions, Changed tells.
func (d *Desk) Disable(ctx context.Context, kind, name string, by identity.Identity, reason string) error {
	switch {
	case !d.Admin(by):
		return ErrRight
	case kind != User && kind != Agent && kind != Serial:
		return &AskError{fmt.Errorf("%q is none of %s, %s, %s", kind, User, Agent, Serial)}
	case name == "":
		return &AskError{errors.New("no name is given")}
	case kind == User && same(name, by.Subject):
		return &AskError{errors.New("you cannot disable yourself")}
	case kind == User, kind == Serial:
		name = strings.ToLower(name)
	}
	d.writing.Lock()
	defer d.writing.Unlock()
	b := Disabled{kind, name, by.Subject, reason, time.Now().UTC()}
	version, err := d.version(ctx, Blocks, kind+"/"+name)
	if err != nil {
		return err
	}
	e := Event{Type: IdentityDisabled, Actor: by.Subject, Subject: name, Reason: reason, Detail: map[string]string{"kind": kind}}
	if err := d.commit(ctx, []Record{record(Blocks, kind+"/"+name, version+1, b)}, func() { d.disabled[[2]string{kind, name}] = b }, nil, e); err != nil {
		return err
	}
	if kind != User {
		return nil
	}
	d.mu.Lock()
	uses, requests := slices.Collect(maps.Values(d.uses)), slices.Collect(maps.Values(d.pending))
	d.mu.Unlock()
	for _, u := range uses {
		if same(u.Subject, name) {
			_, rerr := d.revoke(ctx, u, by.Subject, "the identity was disabled", "")
			err = errors.Join(err, rerr)
		}
	}
	for _, p := range requests {
		if r := p.Request; same(r.Subject, name) {
			r.State, r.Decided = Denied, time.Now().UTC()
			e := r.event(RequestDenied)
			e.Actor, e.Reason = by.Subject, "the identity was disabled"
			err = errors.Join(err, d.settle(ctx, p, r, e))
		}
	}
	return err
}

// version is that of a record in the store; zero if there is none.
func (d *Desk) version(ctx context.Context, k Kind, id string) (uint64, error) {
	rec, err := d.store.Record(ctx, k, id)
	if errors.Is(err, ErrNotFound) {
		return 0, nil
	}
	return rec.Version, err
}

// Enable takes back what Disable did; grants stay ended.
func (d *Desk) Enable(ctx context.Context, kind, name string, by identity.Identity) error {
	if !d.Admin(by) {
		return ErrRight
	}
	if kind != Agent {
		name = strings.ToLower(name)
	}
	d.writing.Lock()
	defer d.writing.Unlock()
	version, err := d.version(ctx, Blocks, kind+"/"+name)
	if err != nil {
		return err
	}
	if version == 0 {
		return ErrNotFound
	}
	e := Event{Type: IdentityEnabled, Actor: by.Subject, Subject: name, Detail: map[string]string{"kind": kind}}
	return d.commit(ctx, []Record{{Kind: Blocks, ID: kind + "/" + name, Version: version + 1, Delete: true}},
		func() { delete(d.disabled, [2]string{kind, name}) }, nil, e)
}

// IsDisabled reports whether one of the identity's names is refused: its
// subject, or the serial of its certificate, in hex.
func (d *Desk) IsDisabled(subject, serial string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	_, user := d.disabled[[2]string{User, strings.ToLower(subject)}]
	_, cert := d.disabled[[2]string{Serial, strings.ToLower(serial)}]
	return user || cert
}

// IsAgentDisabled is IsDisabled for an agent.
func (d *Desk) IsAgentDisabled(name, serial string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	_, agent := d.disabled[[2]string{Agent, name}]
	_, cert := d.disabled[[2]string{Serial, strings.ToLower(serial)}]
	return agent || cert
}

func (d *Desk) isDisabled(subject string) bool { return d.IsDisabled(subject, "") }

// DisabledList lists who is disabled.
func (d *Desk) DisabledList(by identity.Identity) ([]Disabled, error) {
	if !d.Admin(by) {
		return nil, ErrRight
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	list := slices.Collect(maps.Values(d.disabled))
	slices.SortFunc(list, func(a, b Disabled) int { return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Name, b.Name)) })
	return list, nil
}

// Close stops the timers; the grants stay in force in the store.
func (d *Desk) Close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, p := range d.pending {
		p.lapse.Stop()
	}
}
