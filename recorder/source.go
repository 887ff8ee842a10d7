package recorder

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/dgraph-io/badger/v4"
)

// session returns what is known of a session now.
func (l *Log) session(id string) (s Session, err error) {
	err = l.view(func(txn *badger.Txn) error {
		item, err := txn.Get(sessionKey(id))
		if err != nil {
			return err
		}
		return item.Value(func(b []byte) error { return unmarshalSession(id, b, &s) })
	})
	if errors.Is(err, badger.ErrKeyNotFound) {
		return s, ErrNoSession
	}
	return l.now(s), err
}

// unmarshalSession reads the record of a session.
func unmarshalSession(id string, b []byte, s *Session) error {
	if json.Unmarshal(b, s) != nil || s.ID != id {
		*s = Session{ID: id}
		return fmt.Errorf("record of session %s: %w", id, ErrDamaged)
	}
	return nil
}

// now brings the counts of a session that runs up to date, and says of others where they
// are.
func (l *Log) now(s Session) Session {
	l.mu.Lock()
	r := l.live[s.ID]
	l.mu.Unlock()
	if r == nil {
		s.Archived = l.archivedAt(s.ID)
		return s
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	s = r.session
	if s.State != Running && l.isLive(s.ID) { // its end cannot be put on record yet
		s.State, s.Reason, s.End, s.Records, s.Head = Running, "", time.Time{}, 0, ""
	}
	return s
}

// Sessions implements [Source].
func (l *Log) Sessions(ctx context.Context) iter.Seq2[Session, error] {
	return func(yield func(Session, error) bool) {
		err := l.scan([]byte("s/"), true, func(key, value []byte) (bool, error) {
			if err := ctx.Err(); err != nil {
				return false, err
			}
			var s Session
			err := unmarshalSession(string(key[len("s/"):]), value, &s)
			return yield(l.now(s), err), nil
		})
		if err != nil {
			yield(Session{}, err)
		}
	}
}

// Session implements [Source].
func (l *Log) Session(_ context.Context, session string) (Session, error) { return l.session(session) }

// Frames implements [Source].
func (l *Log) Frames(ctx context.Context, session string) iter.Seq2[Frame, error] {
	return func(yield func(Frame, error) bool) {
		s, err := l.session(session)
		if err != nil {
			yield(Frame{}, err)
			return
		}
		l.frames(ctx, s)(yield)
	}
}

// Follow implements [Source].
func (l *Log) Follow(ctx context.Context, session string) iter.Seq2[Frame, error] {
	return func(yield func(Frame, error) bool) {
		s, err := l.session(session)
		if err != nil {
			yield(Frame{}, err)
			return
		}
		r := blockReader{start: s.Start}
		err = l.follow(ctx, s.ID, func(n uint32, b []byte) (bool, error) { return r.read(n, b, yield), nil },
			func() (bool, error) { return yield(Frame{}, ErrMore), nil })
		if err != nil {
			yield(Frame{}, err)
		}
	}
}

// follow is blocks until the session ends. It calls more before it waits for the next
// block.
func (l *Log) follow(ctx context.Context, session string, f func(n uint32, b []byte) (bool, error), more func() (bool, error)) error {
	for from := uint32(0); ; {
		changed := l.watch(session) // before they are read: what comes then closes it
		goOn := true
		err := l.blocks(ctx, session, from, func(n uint32, b []byte) (bool, error) {
			from = n + 1
			if h, err := readHeader(b); err == nil {
				from = n + h.count
			}
			var err error
			goOn, err = f(n, b)
			return goOn, err
		})
		if err != nil || !goOn || changed == nil {
			return err
		}
		if goOn, err := more(); err != nil || !goOn {
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// watch returns what is closed when there is more of a session, or nil if it does not
// run.
func (l *Log) watch(session string) <-chan struct{} {
	l.mu.Lock()
	r := l.live[session]
	l.mu.Unlock()
	if r == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.session.State != Running {
		return nil
	}
	if r.changed == nil {
		r.changed = make(chan struct{})
	}
	return r.changed
}

func (l *Log) frames(ctx context.Context, s Session) iter.Seq2[Frame, error] {
	return func(yield func(Frame, error) bool) {
		r := blockReader{start: s.Start}
		goOn := true
		err := l.blocks(ctx, s.ID, 0, func(n uint32, b []byte) (bool, error) {
			goOn = r.read(n, b, yield)
			return goOn, nil
		})
		switch {
		case err != nil:
			yield(Frame{}, err)
		case goOn:
			r.end(s, yield)
		}
	}
}

// Blocks implements [Source].
func (l *Log) Blocks(ctx context.Context, session string) iter.Seq2[Block, error] {
	return func(yield func(Block, error) bool) {
		err := l.blocks(ctx, session, 0, func(n uint32, b []byte) (bool, error) { return yield(Block{n, b}, nil), nil })
		if err != nil {
			yield(Block{}, err)
		}
	}
}

// Leaves implements [Source].
func (l *Log) Leaves(ctx context.Context) iter.Seq2[Leaf, error] {
	return func(yield func(Leaf, error) bool) {
		err := l.scan([]byte("l/"), false, func(key, value []byte) (bool, error) {
			if err := ctx.Err(); err != nil || len(key) != len("l/")+8 {
				return true, err
			}
			leaf := Leaf{Index: int64(binary.BigEndian.Uint64(key[2:])), Session: string(value)}
			var err error
			if leaf.Record, err = l.value(sessionKey(leaf.Session)); err != nil {
				return false, err
			}
			if leaf.Record == nil {
				if leaf.Deletion, err = l.value(deletionKey(leaf.Session)); err != nil {
					return false, err
				}
			}
			return yield(leaf, nil), nil
		})
		if err != nil {
			yield(Leaf{}, err)
		}
	}
}

// value returns a copy of the value of a key, or nil if there is none.
func (l *Log) value(key []byte) (value []byte, err error) {
	err = l.view(func(txn *badger.Txn) error {
		value, err = valueOf(txn, key)
		return err
	})
	return value, err
}

func valueOf(txn *badger.Txn, key []byte) ([]byte, error) {
	item, err := txn.Get(key)
	if errors.Is(err, badger.ErrKeyNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return item.ValueCopy(nil)
}

// Proof implements [Source].
func (l *Log) Proof(_ context.Context, session string) (*Proof, error) { return l.prove(session) }

// Checkpoint implements [Source].
func (l *Log) Checkpoint(context.Context) ([]byte, error) {
	c, err := l.value(checkpointKey)
	if err == nil && c == nil {
		return nil, ErrUnsigned
	}
	return c, err
}
