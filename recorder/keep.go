package recorder

import (
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"time"

	"github.com/dgraph-io/badger/v4"
	"golang.org/x/mod/sumdb/tlog"
)

// A session that has ended is kept for as long as its record says, and then deleted,
// unless somebody holds it. A deletion is a leaf of the tree itself, which names the
// session, its leaf and that leaf's hash: so the tree stays the one that was signed,
// and whoever takes a session away by other means has no leaf that says so.
//
//	… session ── session ── session ── deletion of the first ──► checkpoint
//
// In the database:
//
//	r/<time><session>  the session may be deleted from that time on, in s since 1970
//	                   (8 bytes big-endian); empty
//	n/<session>        its Hold in JSON; see holds.go, too
//	d/<session>        its Deletion in JSON, the leaf
//	g/<session>        its blocks are being deleted; empty
//	k                  the clock as it was when sessions were looked for last
//
// The record goes in the commit that makes the leaf, the blocks behind it, in small
// commits: a kill leaves the session whole, or its deletion, which is gone on with.

var (
	// ErrHeld is returned for the deletion of a session that is held.
	ErrHeld = errors.New("the session is held")
	// ErrNotHeld is returned for the release of one that is not.
	ErrNotHeld = errors.New("the session is not held")
)

// Retention is who deletes sessions that have been kept for their time.
const Retention = "retention"

// A Hold keeps a session from being deleted until it is released.
type Hold struct {
	Session string    `json:"session"`
	By      string    `json:"by"`
	Reason  string    `json:"reason,omitempty"`
	Time    time.Time `json:"time"`
}

// A Deletion is what is left of a session that was deleted: a leaf of the tree.
type Deletion struct {
	Session string    `json:"deleted"`
	Leaf    int64     `json:"leaf"` // the session's
	Hash    tlog.Hash `json:"hash"` // of that leaf
	At      int64     `json:"at"`   // the leaf that the Deletion is
	Time    time.Time `json:"time"`
	By      string    `json:"by"` // Retention, or who
	Reason  string    `json:"reason,omitempty"`
}

// A Custody is what somebody does with a session beside reading it. It is put on
// record before it is done.
type Custody struct {
	What    string // Held, Released or Deleted
	Session Session
	By      string
	Reason  string
}

// What a Custody is.
const (
	Held     = "held"
	Released = "released"
	Deleted  = "deleted"
)

// A Custodian holds sessions, and deletes them. By is who does it; a broker that runs
// knows better, and asks nobody.
type Custodian interface {
	Holds(ctx context.Context) iter.Seq2[Hold, error]
	// Hold returns [ErrNoSession] for a session that is not on record.
	Hold(ctx context.Context, h Hold) error
	// Release returns [ErrNotHeld] for a session that is not held.
	Release(ctx context.Context, session, by string) error
	// Delete returns [ErrHeld], and [ErrNotEnded] for a session that runs. With an error
	// that wraps [ErrArchive], the session is deleted, but its object in the archive is
	// not yet: that is tried again.
	Delete(ctx context.Context, session, by, reason string) error
}

const dueTime = 8 // bytes of a time in a key

func dueKey(s *Session) []byte {
	at := s.End.Add(time.Duration(s.Keep) * time.Second)
	return append(binary.BigEndian.AppendUint64([]byte("r/"), uint64(max(0, at.Unix()))), s.ID...)
}

func holdKey(id string) []byte     { return []byte("n/" + id) }
func deletionKey(id string) []byte { return []byte("d/" + id) }
func erasureKey(id string) []byte  { return []byte("g/" + id) }

var clockKey = []byte("k")

// Holds implements [Custodian].
func (l *Log) Holds(ctx context.Context) iter.Seq2[Hold, error] {
	return func(yield func(Hold, error) bool) {
		l.tree.mu.Lock()
		lost, err := maps.Clone(l.holds.ids), l.holds.err
		l.tree.mu.Unlock()
		done := false
		err = cmp.Or(err, l.scan(holdKey(""), false, func(key, value []byte) (bool, error) {
			var h Hold
			if err := cmp.Or(ctx.Err(), json.Unmarshal(value, &h)); err != nil {
				return false, fmt.Errorf("read holds: %w", err)
			}
			delete(lost, h.Session)
			done = !yield(h, nil)
			return !done, nil
		}))
		if err != nil {
			yield(Hold{}, err)
			return
		}
		for _, id := range slices.Sorted(maps.Keys(lost)) {
			if done = done || !yield(Hold{Session: id, Reason: "who holds it, and why, cannot be read"}, nil); done {
				return
			}
		}
	}
}

// Hold implements [Custodian].
func (l *Log) Hold(ctx context.Context, h Hold) error {
	s, err := l.session(h.Session) // not with the lock: the end of a session takes both in the other order
	if err != nil {
		return err
	}
	l.tree.mu.Lock() // so that no deletion that has not seen it is under way
	defer l.tree.mu.Unlock()
	if record, err := l.value(sessionKey(h.Session)); err != nil {
		return err
	} else if record == nil { // deleted meanwhile
		return ErrNoSession
	}
	h.Time = time.Now().Round(0)
	b, err := json.Marshal(h)
	if err != nil {
		return err
	}
	if err := l.tell(ctx, Custody{What: Held, Session: s, By: h.By, Reason: h.Reason}); err != nil {
		return err
	}
	if err := l.holds.set(h.Session, true); err != nil {
		return err
	}
	return l.commit(write{holdKey(h.Session), b})
}

// Release implements [Custodian].
func (l *Log) Release(ctx context.Context, session, by string) error {
	s, err := l.session(session)
	if err != nil {
		return err
	}
	l.tree.mu.Lock()
	defer l.tree.mu.Unlock()
	held, err := l.held(session)
	if err != nil {
		return err
	}
	if !held {
		return ErrNotHeld
	}
	if err := l.tell(ctx, Custody{What: Released, Session: s, By: by}); err != nil {
		return err
	}
	if err := l.commit(write{holdKey(session), nil}); err != nil {
		return err
	}
	return l.holds.set(session, false)
}

// TellCustody is Options.Custody of a log that is open, and not yet used.
func (l *Log) TellCustody(f func(context.Context, Custody) error) { l.o.Custody = f }

// tell puts on record what is about to be done.
func (l *Log) tell(ctx context.Context, c Custody) error {
	if l.o.Custody == nil {
		return nil
	}
	if err := l.o.Custody(ctx, c); err != nil {
		return fmt.Errorf("that it is %s cannot be put on record: %w", c.What, err)
	}
	return nil
}

// Delete implements [Custodian].
func (l *Log) Delete(ctx context.Context, session, by, reason string) error {
	if err := l.deleteRecord(ctx, session, by, reason); err != nil {
		return err
	}
	return errors.Join(l.erase(session), l.deleteObjects(ctx, session))
}

// deleteRecord puts a deletion in the place of a session's record.
func (l *Log) deleteRecord(ctx context.Context, session, by, reason string) error {
	l.index.mu.Lock()
	defer l.index.mu.Unlock()
	t := l.tree
	t.mu.Lock()
	defer t.mu.Unlock()
	record, err := l.value(sessionKey(session))
	if err != nil {
		return err
	}
	if record == nil {
		return ErrNoSession
	}
	held, err := l.held(session)
	if err != nil {
		return err
	}
	if held {
		return ErrHeld
	}
	var s Session
	if err := unmarshalSession(session, record, &s); err != nil {
		return err
	}
	index, err := l.value(indexKey(session))
	if err != nil {
		return err
	}
	if s.State == Running || len(index) != 8 {
		return ErrNotEnded
	}
	d := Deletion{
		Session: session, Leaf: int64(binary.BigEndian.Uint64(index)), Hash: tlog.RecordHash(record), At: t.size,
		Time: time.Now().UTC().Round(0), By: by, Reason: reason,
	}
	b, err := json.Marshal(d)
	if err != nil {
		return err
	}
	leaf, err := t.add(session, b)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	forgotten, err := l.forget(&s)
	if err != nil {
		return err
	}
	if err := l.tell(ctx, Custody{What: Deleted, Session: s, By: by, Reason: reason}); err != nil {
		return err
	}
	away, left, err := l.unarchive(session)
	if err != nil {
		return err
	}
	writes := append(append(leaf, forgotten...), write{deletionKey(session), b}, write{erasureKey(session), []byte{}}, write{sessionKey(session), nil}, write{dueKey(&s), nil})
	if err := l.commit(append(writes, away...)...); err != nil {
		return err
	}
	t.grown()
	if l.archiving.moved = left; len(away) > 0 {
		l.archiving.bell.ring()
	}
	l.forgotten(session)
	return nil
}

// eraseAtOnce is how many blocks are deleted at a time: sessions that run wait for it.
const eraseAtOnce = 500

// eraseAll deletes the blocks of all sessions whose records are deleted.
func (l *Log) eraseAll() error {
	for {
		ids, err := l.someIDs(erasureKey(""))
		if err != nil || len(ids) == 0 {
			return err
		}
		if err := l.erase(ids...); err != nil {
			return err
		}
	}
}

// erase deletes the blocks of sessions.
func (l *Log) erase(sessions ...string) error {
	if err := l.flushTables(); err != nil { // or a loss of power might take the deletions, and not their effect
		return fmt.Errorf("%w: flush to the disk: %w", ErrUnavailable, err)
	}
	for _, id := range sessions {
		l.discard(id)
		l.journal.forget(id)
		for n := eraseAtOnce; n == eraseAtOnce; {
			var err error
			if n, err = l.eraseSome(id); err != nil {
				return err
			}
		}
		if err := l.commit(write{rewriteKey(id), nil}, write{erasureKey(id), nil}); err != nil {
			return err
		}
	}
	return nil
}

func (l *Log) eraseSome(session string) (n int, err error) {
	l.rewrites.Lock()
	defer l.rewrites.Unlock()
	var gone []write
	size := int64(0)
	prefix := blockPrefix(session)
	err = l.view(func(txn *badger.Txn) error {
		it := txn.NewIterator(badger.IteratorOptions{Prefix: prefix})
		defer it.Close()
		for it.Seek(prefix); it.Valid() && len(gone) < eraseAtOnce; it.Next() {
			gone = append(gone, write{key: it.Item().KeyCopy(nil)})
			size += it.Item().EstimatedSize()
		}
		return nil
	})
	if err != nil || len(gone) == 0 {
		return 0, err
	}
	if err := l.commit(gone...); err != nil {
		return 0, err
	}
	l.dead.Add(size)
	return len(gone), nil
}

// retainInterval is how often sessions are looked for that have been kept for their time.
const retainInterval = 10 * time.Minute

// retainNow deletes them.
func (l *Log) retainNow() bool {
	ctx, cancel := l.untilClosed()
	defer cancel()
	n, err := l.retain(ctx, time.Now())
	if err != nil && ctx.Err() == nil {
		l.o.Log.Error("sessions that have been kept for their time cannot be deleted now", "error", err)
	}
	if n > 0 {
		l.o.Log.Info("sessions were deleted that have been kept for their time", "sessions", n)
	}
	return true
}

// retain goes on with deletions that were not finished, and deletes what has been kept
// for its time. It returns how many sessions that were.
func (l *Log) retain(ctx context.Context, now time.Time) (n int, err error) {
	if err := l.eraseAll(); err != nil {
		return 0, err
	}
	l.tree.mu.Lock()
	unknown := l.holds.err
	l.tree.mu.Unlock()
	if unknown != nil {
		return 0, unknown
	}
	if sure, err := l.clockIsSure(now); err != nil || !sure {
		return 0, err
	}
	var wrong error
	for from := uint64(0); ctx.Err() == nil; {
		var due [][]byte
		prefix := []byte("r/")
		err := l.scanFrom(prefix, binary.BigEndian.AppendUint64(prefix, from), false, func(key, _ []byte) (bool, error) {
			if len(key) != len(prefix)+dueTime+idSize || binary.BigEndian.Uint64(key[len(prefix):]) > uint64(now.Unix()) {
				return false, nil
			}
			due = append(due, append([]byte(nil), key...))
			return len(due) < 1000, nil
		})
		if err != nil {
			return n, err
		}
		for _, key := range due {
			from = binary.BigEndian.Uint64(key[len(prefix):])
			switch err := l.deleteRecord(ctx, string(key[len(prefix)+dueTime:]), Retention, ""); {
			case err == nil:
				n++
			case errors.Is(err, ErrHeld):
			case errors.Is(err, ErrUnavailable), ctx.Err() != nil:
				return n, errors.Join(wrong, err)
			default: // one that cannot be read, which verify names, keeps no other
				wrong = errors.Join(wrong, fmt.Errorf("session %s: %w", key[len(prefix)+dueTime:], err))
			}
		}
		if err := l.eraseAll(); err != nil {
			return n, errors.Join(wrong, err)
		}
		if len(due) < 1000 {
			break
		}
		from++ // held ones of that second stand in the way no longer than until the next look
	}
	return n, wrong
}

// A clock is what the clock said when it was looked at last, and since when it has
// not jumped.
type clock struct {
	Seen  time.Time `json:"seen"`
	Since time.Time `json:"since"`
}

// clockDoubt is how far the clock may go between two looks without being doubted, and
// how long it is then.
const clockDoubt = 24 * time.Hour

// clockIsSure reports that the clock has gone on as a clock does for a day. One that
// jumps ahead, or a machine that was off, must not delete what is kept: somebody has a
// day to see it.
func (l *Log) clockIsSure(now time.Time) (bool, error) {
	b, err := l.value(clockKey)
	if err != nil {
		return false, err
	}
	var c clock
	if b == nil || json.Unmarshal(b, &c) != nil || now.Sub(c.Seen) > clockDoubt || c.Seen.Sub(now) > time.Hour {
		if b != nil {
			l.o.Log.Warn("the clock has jumped, or the broker was off for long: for a day, nothing is deleted that has been kept for its time", "seen", c.Seen, "now", now)
		}
		c.Since = now
	}
	c.Seen = now
	if b, err = json.Marshal(c); err != nil {
		return false, err
	}
	if err := l.commit(write{clockKey, b}); err != nil {
		return false, err
	}
	return now.Sub(c.Since) >= clockDoubt, nil
}

// deletionOf returns what is left of the session of a leaf, if it was deleted.
func deletionOf(leaf Leaf) *Deletion {
	var d Deletion
	if leaf.Deletion == nil || json.Unmarshal(leaf.Deletion, &d) != nil || d.Session != leaf.Session || d.At <= d.Leaf {
		return nil
	}
	return &d
}
