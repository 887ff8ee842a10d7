package grant

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"example.com/broker/broker/identity"
)

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
