package grant

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// A memoryStore is a Store for tests in which time is not real.
type memoryStore struct {
	mu      sync.Mutex
	records map[string]Record
	events  []Event
	fail    error // of commits
}

func newMemoryStore() *memoryStore { return &memoryStore{records: map[string]Record{}} }

func (s *memoryStore) Commit(_ context.Context, c Change) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail != nil {
		return s.fail
	}
	for _, r := range c.Records {
		if s.records[string(r.Kind)+"/"+r.ID].Version+1 != r.Version {
			return ErrConflict
		}
	}
	for _, r := range c.Records {
		key := string(r.Kind) + "/" + r.ID
		if r.Delete {
			delete(s.records, key)
			continue
		}
		s.records[key] = r
	}
	for i := range c.Events {
		c.Events[i].Schema, c.Events[i].Seq = Schema, uint64(len(s.events)+1)
		s.events = append(s.events, c.Events[i])
	}
	return nil
}

func (s *memoryStore) Records(_ context.Context, k Kind) iter.Seq2[Record, error] {
	s.mu.Lock()
	defer s.mu.Unlock()
	var keys []string
	for key, r := range s.records {
		if r.Kind == k {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	records := make([]Record, len(keys))
	for i, key := range keys {
		records[i] = s.records[key]
	}
	return func(yield func(Record, error) bool) {
		for _, r := range records {
			if !yield(r, nil) {
				return
			}
		}
	}
}

func (s *memoryStore) Record(_ context.Context, k Kind, id string) (Record, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, ok := s.records[string(k)+"/"+id]
	if !ok {
		return Record{}, ErrNotFound
	}
	return r, nil
}

func (s *memoryStore) Events(_ context.Context, after uint64) iter.Seq2[Event, error] {
	s.mu.Lock()
	events := slices.Clone(s.events[min(after, uint64(len(s.events))):])
	s.mu.Unlock()
	return func(yield func(Event, error) bool) {
		for _, e := range events {
			if !yield(e, nil) {
				return
			}
		}
	}
}

func (s *memoryStore) Close() error { return nil }

// types lists the types of the events.
func (s *memoryStore) types() (types []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.events {
		types = append(types, e.Type)
	}
	return types
}

// TestStore is what every Store must do.
func TestStore(t *testing.T) {
	stores := map[string]func(*testing.T) (store Store, reopen func() Store){
		"memory": func(*testing.T) (Store, func() Store) { s := newMemoryStore(); return s, func() Store { return s } },
		"badger": func(t *testing.T) (Store, func() Store) {
			dir := t.TempDir()
			open := func() Store {
				s, err := OpenBadger(dir, 0)
				if err != nil {
					t.Fatal(err)
				}
				return s
			}
			return open(), open
		},
	}
	for name, open := range stores {
		t.Run(name, func(t *testing.T) {
			s, reopen := open(t)
			testStore(t, s, reopen)
		})
	}
}

func testStore(t *testing.T, s Store, reopen func() Store) {
	ctx := t.Context()
	doc := func(k Kind, id string, version uint64, text string) Record {
		return Record{Kind: k, ID: id, Version: version, Data: json.RawMessage(text)}
	}
	commit := func(want error, events int, records ...Record) {
		t.Helper()
		c := Change{Records: records}
		for range events {
			c.Events = append(c.Events, Event{Type: "x"})
		}
		if err := s.Commit(ctx, c); !errors.Is(err, want) {
			t.Fatalf("Commit: %v, want %v", err, want)
		}
	}
	content := func() string {
		var out []string
		for _, k := range []Kind{Requests, Grants} {
			for r, err := range s.Records(ctx, k) {
				if err != nil {
					t.Fatal(err)
				}
				out = append(out, fmt.Sprintf("%s/%s=%s@%d", r.Kind, r.ID, r.Data, r.Version))
			}
		}
		n := uint64(0)
		for e, err := range s.Events(ctx, 0) {
			if n++; err != nil || e.Seq != n || e.Schema != Schema {
				t.Fatalf("event %d is %+v (%v)", n, e, err)
			}
		}
		return fmt.Sprintf("%s, %d events", strings.Join(out, " "), n)
	}
	check := func(want string) {
		t.Helper()
		if got := content(); got != want {
			t.Fatalf("store holds %q, want %q", got, want)
		}
	}
	commit(nil, 1, doc(Requests, "a", 1, "1"), doc(Grants, "a", 1, "2"))
	commit(nil, 2, doc(Requests, "a", 2, "3"), doc(Requests, "b", 1, "4"))
	check("request/a=3@2 request/b=4@1 grant/a=2@1, 3 events")
	commit(ErrConflict, 1, doc(Grants, "c", 1, "5"), doc(Requests, "a", 2, "6")) // all or nothing
	commit(ErrConflict, 1, doc(Requests, "a", 1, "6"))
	commit(ErrConflict, 1, doc(Requests, "c", 2, "6"))
	check("request/a=3@2 request/b=4@1 grant/a=2@1, 3 events")
	commit(nil, 0, Record{Kind: Requests, ID: "b", Version: 2, Delete: true})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = reopen()
	defer s.Close()
	commit(nil, 1, doc(Requests, "b", 1, "7")) // deleted: a new one
	check("request/a=3@2 request/b=7@1 grant/a=2@1, 4 events")
	if _, err := s.Record(ctx, Grants, "b"); !errors.Is(err, ErrNotFound) {
		t.Errorf("Record of none: %v", err)
	}
	if r, err := s.Record(ctx, Requests, "a"); err != nil || string(r.Data) != "3" || r.Version != 2 || r.ID != "a" || r.Kind != Requests {
		t.Errorf("Record: %+v, %v", r, err)
	}
	after := 0
	for e, err := range s.Events(ctx, 3) {
		if after++; err != nil || e.Seq != 4 {
			t.Errorf("event after 3: %+v, %v", e, err)
		}
	}
	if after != 1 {
		t.Errorf("%d events after the third, want 1", after)
	}
}

func TestBadgerFullDisk(t *testing.T) {
	s, err := OpenBadger(t.TempDir(), 1<<60)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Commit(t.Context(), Change{Events: []Event{{}}}); !errors.Is(err, errFull) {
		t.Errorf("Commit on a full disk: %v", err)
	}
}

// TestEmptyFile opens a store in which a process died between making a file and
// filling it.
func TestEmptyFile(t *testing.T) {
	dir := t.TempDir()
	for range 2 {
		s, err := OpenBadger(dir, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "00077.mem"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
