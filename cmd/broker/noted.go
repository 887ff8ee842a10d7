package main

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"time"

	"example.com/broker/broker"
	"example.com/broker/broker/grant"
	"example.com/broker/broker/identity"
	"example.com/broker/recorder"
)

// What commands do in a data folder without asking the broker goes on record by way
// of another folder: the broker, which has the store open, takes it from there, now
// or when it next runs.

func notedDir(data string) string { return filepath.Join(data, "noted") }

// noteEvent leaves word of an event under a name, before what it says takes effect.
func noteEvent(data, name string, e grant.Event) error {
	dir := notedDir(data)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	e.Time = time.Now()
	if e.Actor == "" {
		e.Actor = recorder.LocalUser(os.Getuid())
	}
	b, err := json.Marshal(e)
	if err != nil {
		return err
	}
	return identity.WritePrivate(filepath.Join(dir, name), b)
}

// issuedEvent is that broker ca issue has issued a certificate.
func issuedEvent(id identity.Identity, leaf *x509.Certificate) grant.Event {
	e := grant.IssuedEvent(id, leaf, "")
	e.Via = "ca issue"
	return e
}

// recordNoted puts on record what noteEvent has left.
func (in *installation) recordNoted(ctx context.Context) error {
	dir := notedDir(in.config.Data)
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	wrong := err
	for _, entry := range entries {
		if entry.Name()[0] == '.' { // being written
			continue
		}
		if err := in.recordOne(ctx, filepath.Join(dir, entry.Name())); err != nil {
			wrong = errors.Join(wrong, fmt.Errorf("%s: %w", entry.Name(), err)) // it keeps no other
		}
	}
	return wrong
}

func (in *installation) recordOne(ctx context.Context, path string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var e grant.Event
	if err := json.Unmarshal(b, &e); err != nil {
		return err
	}
	if e.Detail == nil {
		e.Detail = map[string]string{}
	}
	e.Detail["noted"] = e.Time.UTC().Format(time.RFC3339)
	if err := in.desk.Record(ctx, e); err != nil {
		return err
	}
	return os.Remove(path) // killed before this, it is on record twice, with one time
}

// A notedSource is the log of a broker that does not run: what is read of it is noted
// first.
type notedSource struct {
	recorder.Source
	data string
	done map[string]bool // sessions whose reading is noted; "" is all
}

// note notes that frames of a session are read.
func (n *notedSource) note(ctx context.Context, session string) error {
	command, all := recorder.PurposeIn(ctx)
	r := recorder.Reading{By: recorder.LocalUser(os.Getuid()), Command: command}
	if !all {
		s, err := n.Source.Session(ctx, session)
		if err != nil {
			return err
		}
		r.Session = &s
	} else {
		session = ""
	}
	if n.done[session] {
		return nil
	}
	if err := noteEvent(n.data, "read-"+recorder.NewID(), broker.ReadEvent(r, "log")); err != nil {
		return fmt.Errorf("note for the audit that it is read: %w", err)
	}
	n.done[session] = true
	return nil
}

// Find implements [recorder.Source]. Who looks for a text reads frames.
func (n *notedSource) Find(ctx context.Context, q recorder.Query) iter.Seq2[recorder.Session, error] {
	if len(q.Text) == 0 {
		return n.Source.Find(ctx, q)
	}
	return afterNote(n, recorder.ReadsAll(ctx), "", func(ctx context.Context, _ string) iter.Seq2[recorder.Session, error] {
		return n.Source.Find(ctx, q)
	})
}

// Frames implements [recorder.Source].
func (n *notedSource) Frames(ctx context.Context, session string) iter.Seq2[recorder.Frame, error] {
	return afterNote(n, ctx, session, n.Source.Frames)
}

// Follow implements [recorder.Source].
func (n *notedSource) Follow(ctx context.Context, session string) iter.Seq2[recorder.Frame, error] {
	return afterNote(n, ctx, session, n.Source.Follow)
}

// Blocks implements [recorder.Source].
func (n *notedSource) Blocks(ctx context.Context, session string) iter.Seq2[recorder.Block, error] {
	return afterNote(n, ctx, session, n.Source.Blocks)
}

func afterNote[T any](n *notedSource, ctx context.Context, session string, read func(context.Context, string) iter.Seq2[T, error]) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		if err := n.note(ctx, session); err != nil {
			var none T
			yield(none, err)
			return
		}
		read(ctx, session)(yield)
	}
}
