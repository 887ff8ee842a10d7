package grant

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"example.com/broker/broker/identity"
	"example.com/broker/broker/policy"
)

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

// Changed is closed at the next change.
func (d *Desk) Changed() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.changed
}

// version is that of a record in the store; zero if there is none.
func (d *Desk) version(ctx context.Context, k Kind, id string) (uint64, error) {
	rec, err := d.store.Record(ctx, k, id)
	if errors.Is(err, ErrNotFound) {
		return 0, nil
	}
	return rec.Version, err
}

// Close stops the timers; the grants stay in force in the store.
func (d *Desk) Close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, p := range d.pending {
		p.lapse.Stop()
	}
}
