package grant

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"time"

	"example.com/broker/broker/identity"
)

// callLife is how long a call may be made once it has been approved.
const callLife = 10 * time.Minute

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

func (g *Grant) event(kind string) Event {
	e := Event{Type: kind, Subject: g.Subject, Server: g.Server, Rule: g.Rule, Request: g.Request, Grant: g.ID}
	if g.How != ByApproval {
		e.Detail = map[string]string{"how": g.How}
	}
	return e
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
