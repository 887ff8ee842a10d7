package grant

import (
	"context"
	"encoding/json"
	"errors"
	"time"
)

// maxFollow is how many events a follower gets at a time.
const maxFollow = 100

// How long a follower that fails waits before it is called again.
const (
	followFirst = 500 * time.Millisecond
	followLast  = time.Minute
)

// Follow calls each with the events, in order, until ctx is done. How far it has
// got is kept under name: each is called again with what it has not returned
// nil for, after a while, and after a restart. So each sees every event once, or
// more often when something fails. With all, a follower that is new starts at
// the first event; otherwise at the next.
//
// Followers do not wait for each other, and nobody waits for them.
func (d *Desk) Follow(ctx context.Context, name string, all bool, each func(context.Context, []Event) error) error {
	at, version, err := d.cursor(ctx, name)
	if err != nil {
		return err
	}
	if version == 0 && !all {
		if at, err = d.lastEvent(ctx); err != nil {
			return err
		}
		version = 1 // what comes from here on is not missed, whatever happens next
		if err := d.store.Commit(ctx, Change{Records: []Record{record(Cursors, name, version, at)}}); err != nil {
			return err
		}
	}
	wait := followFirst
	for {
		changed := d.Changed() // before we look
		events, err := d.eventsAfter(ctx, at)
		if err == nil && len(events) > 0 {
			if err = each(ctx, events); err == nil {
				last := events[len(events)-1].Seq
				err = d.store.Commit(ctx, Change{Records: []Record{record(Cursors, name, version+1, last)}})
				if err == nil {
					at, version = last, version+1
					wait = followFirst
					continue
				}
			}
		}
		if ctx.Err() != nil {
			return nil
		}
		if err == nil {
			select {
			case <-changed:
			case <-ctx.Done():
				return nil
			}
			continue
		}
		d.log.Warn("events are not taken; trying again", "follower", name, "after", at, "error", err)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil
		}
		wait = min(2*wait, followLast)
	}
}

func (d *Desk) cursor(ctx context.Context, name string) (at, version uint64, err error) {
	rec, err := d.store.Record(ctx, Cursors, name)
	if errors.Is(err, ErrNotFound) {
		return 0, 0, nil
	}
	if err == nil {
		err = json.Unmarshal(rec.Data, &at)
	}
	return at, rec.Version, err
}

func (d *Desk) eventsAfter(ctx context.Context, at uint64) (events []Event, err error) {
	for e, err := range d.store.Events(ctx, at) {
		if err != nil {
			return nil, err
		}
		if events = append(events, e); len(events) == maxFollow {
			break
		}
	}
	return events, nil
}

func (d *Desk) lastEvent(ctx context.Context) (last uint64, err error) {
	for e, err := range d.store.Events(ctx, 0) {
		if err != nil {
			return 0, err
		}
		last = e.Seq
	}
	return last, nil
}

// Lookup returns a request, whoever may see it.
func (d *Desk) Lookup(ctx context.Context, id string) (Request, error) { return d.stored(ctx, id) }

// Note returns what SetNote has kept under key, or "".
func (d *Desk) Note(ctx context.Context, key string) (text string, err error) {
	rec, err := d.store.Record(ctx, Notes, key)
	if errors.Is(err, ErrNotFound) {
		return "", nil
	}
	if err == nil {
		err = json.Unmarshal(rec.Data, &text)
	}
	return text, err
}

// SetNote keeps a text.
func (d *Desk) SetNote(ctx context.Context, key, text string) error {
	version, err := d.version(ctx, Notes, key)
	if err != nil {
		return err
	}
	return d.store.Commit(ctx, Change{Records: []Record{record(Notes, key, version+1, text)}})
}
