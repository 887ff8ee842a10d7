package grant

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"strings"
	"sync"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"
	"github.com/dgraph-io/ristretto/v2/z"
	"golang.org/x/sys/unix"
)

// A BadgerStore is a Store in a folder of its own, for one broker.
//
//	r/KIND/ID   version (8 bytes, big-endian), JSON
//	e/SEQ       (8 bytes, big-endian) JSON of an event
type BadgerStore struct {
	db   *badger.DB
	dir  string
	free int64

	mu  sync.Mutex // held in Commit
	seq uint64     // of the last event
}

// OpenBadger opens the store in dir, and makes one where there is none. free is
// how many bytes must stay free on its disk: Badger writes through mapped files,
// where a full disk is no error but the death of the process.
func OpenBadger(dir string, free int64) (*BadgerStore, error) {
	o := badger.DefaultOptions(dir).
		WithLogger(nil).
		WithSyncWrites(true).
		WithMetricsEnabled(false).
		WithCompression(options.None).
		WithValueLogFileSize(64 << 20).
		WithMemTableSize(8 << 20).
		WithNumMemtables(2).
		WithBlockCacheSize(0).
		WithIndexCacheSize(8 << 20).
		WithNumCompactors(2)
	db, err := badger.Open(o)
	// A process that died between making a file and filling it leaves an empty one, at which
	// Badger fails; but then it is filled.
	for tries := 0; err != nil && strings.Contains(err.Error(), z.NewFile.Error()) && tries < 3; tries++ {
		db, err = badger.Open(o)
	}
	if err != nil {
		return nil, fmt.Errorf("open access store %s: %w", dir, err)
	}
	s := &BadgerStore{db: db, dir: dir, free: free}
	if s.seq, err = s.last(); err != nil {
		db.Close()
		return nil, fmt.Errorf("open access store %s: %w", dir, err)
	}
	return s, nil
}

// Close implements Store.
func (s *BadgerStore) Close() error { return s.db.Close() }

var eventPrefix = []byte("e/")

func eventKey(seq uint64) []byte { return binary.BigEndian.AppendUint64([]byte("e/"), seq) }

func recordKey(k Kind, id string) []byte { return []byte("r/" + string(k) + "/" + id) }

func (s *BadgerStore) last() (seq uint64, err error) {
	err = s.db.View(func(txn *badger.Txn) error {
		it := txn.NewIterator(badger.IteratorOptions{Reverse: true, Prefix: eventPrefix})
		defer it.Close()
		if it.Seek(eventKey(1<<64 - 1)); it.Valid() {
			seq = binary.BigEndian.Uint64(it.Item().Key()[len(eventPrefix):])
		}
		return nil
	})
	return seq, err
}

var errFull = errors.New("the disk is full")

// Commit implements Store.
func (s *BadgerStore) Commit(_ context.Context, c Change) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var fs unix.Statfs_t
	if err := unix.Statfs(s.dir, &fs); err != nil {
		return fmt.Errorf("access store: %w", err)
	}
	if int64(fs.Bavail)*fs.Bsize < s.free {
		return fmt.Errorf("access store: %w", errFull)
	}
	err := s.db.Update(func(txn *badger.Txn) error {
		for _, r := range c.Records {
			if err := put(txn, r); err != nil {
				return err
			}
		}
		for i := range c.Events {
			e := &c.Events[i]
			e.Schema, e.Seq = Schema, s.seq+1+uint64(i)
			b, err := json.Marshal(e)
			if err != nil {
				return err
			}
			if err := txn.Set(eventKey(e.Seq), b); err != nil {
				return err
			}
		}
		return nil
	})
	if errors.Is(err, ErrConflict) {
		return err
	}
	if err != nil {
		return fmt.Errorf("access store: %w", err)
	}
	s.seq += uint64(len(c.Events))
	return nil
}

func put(txn *badger.Txn, r Record) error {
	key := recordKey(r.Kind, r.ID)
	var have uint64
	item, err := txn.Get(key)
	switch {
	case errors.Is(err, badger.ErrKeyNotFound):
	case err != nil:
		return err
	default:
		old, err := read(item)
		if err != nil {
			return err
		}
		have = old.Version
	}
	if r.Version != have+1 {
		return ErrConflict
	}
	if r.Delete {
		return txn.Delete(key)
	}
	return txn.Set(key, append(binary.BigEndian.AppendUint64(nil, r.Version), r.Data...))
}

func read(item *badger.Item) (r Record, err error) {
	b, err := item.ValueCopy(nil)
	if err != nil {
		return r, err
	}
	if len(b) < 8 {
		return r, errors.New("a record is damaged")
	}
	return Record{Version: binary.BigEndian.Uint64(b), Data: b[8:]}, nil
}

// Records implements Store.
func (s *BadgerStore) Records(ctx context.Context, k Kind) iter.Seq2[Record, error] {
	prefix := recordKey(k, "")
	return seek(ctx, s.db, prefix, prefix, func(item *badger.Item) (Record, error) {
		r, err := read(item)
		r.Kind, r.ID = k, string(item.Key()[len(prefix):])
		return r, err
	})
}

// Record implements Store.
func (s *BadgerStore) Record(_ context.Context, k Kind, id string) (r Record, err error) {
	err = s.db.View(func(txn *badger.Txn) error {
		item, err := txn.Get(recordKey(k, id))
		if errors.Is(err, badger.ErrKeyNotFound) {
			return ErrNotFound
		}
		if err != nil {
			return err
		}
		r, err = read(item)
		return err
	})
	r.Kind, r.ID = k, id
	return r, err
}

// Events implements Store.
func (s *BadgerStore) Events(ctx context.Context, after uint64) iter.Seq2[Event, error] {
	return seek(ctx, s.db, eventPrefix, eventKey(after+1), func(item *badger.Item) (e Event, err error) {
		b, err := item.ValueCopy(nil)
		if err == nil {
			err = json.Unmarshal(b, &e)
		}
		return e, err
	})
}

// seek yields what decode makes of the items with prefix, from a key on.
func seek[T any](ctx context.Context, db *badger.DB, prefix, from []byte, decode func(*badger.Item) (T, error)) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		err := db.View(func(txn *badger.Txn) error {
			it := txn.NewIterator(badger.IteratorOptions{PrefetchValues: true, PrefetchSize: 64, Prefix: prefix})
			defer it.Close()
			for it.Seek(from); it.Valid(); it.Next() {
				if ctx.Err() != nil {
					return ctx.Err()
				}
				v, err := decode(it.Item())
				if !yield(v, err) {
					return nil
				}
			}
			return nil
		})
		if err != nil {
			var zero T
			yield(zero, fmt.Errorf("access store: %w", err))
		}
	}
}

var _ Store = (*BadgerStore)(nil)
