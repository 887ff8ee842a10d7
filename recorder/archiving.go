package recorder

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"filippo.io/age"
	"golang.org/x/mod/sumdb/tlog"
)

// Sessions move to the archive one after the other, in the order of their ends, when they
// are rewritten. Neither a kill nor a loss of power, nor whatever the archive does, takes
// anything of one:
//
//	1  a/<session> has the object's key, and no time: nobody looks for it there
//	2  the object is written, if it is not there from an attempt that was killed, while
//	   the blocks are verified by the session's leaf: one that is damaged stays
//	3  the object is read back, and verified in the same way
//	4  a/<session> has a time: whoever begins to read now gets the object
//	   (all of that is flushed to the disk)
//	5  the blocks are erased; g/<session> goes on with it, see keep.go
//
// A deletion takes a/<session> and its key away with the record, and e/<session> says which
// object has to be deleted until it is.

const (
	// archiveInterval is how long nothing is looked for at most, and archiveLeast at least.
	archiveInterval = 10 * time.Minute
	archiveLeast    = time.Second
	// archivePause is how long the archive is left alone after a failure; twice as long
	// after the next, up to archiveInterval.
	archivePause = 10 * time.Second
	// archiveAhead is how far a session's end may be in the future, for a clock that was
	// set back, to be waited for: what ended later keeps no other from the archive.
	archiveAhead = time.Hour
)

// moved is how far archiving has come.
type moved struct {
	Next     int64 `json:"next"`     // leaf that is looked at next
	Sessions int64 `json:"sessions"` // whose blocks are archived
}

var movedKey = []byte("m")

// errArchived is returned for a session that moves no more.
var errArchived = errors.New("the session is archived")

// archiving is the work that Open starts.
type archiving struct {
	bell  bell        // there may be something to do
	moved moved       // with tree.mu
	some  atomic.Bool // sessions have been archived

	sync.Mutex // held while a session moves, and while objects are deleted

	state struct {
		sync.Mutex
		session string // that moves now
		cancel  context.CancelCauseFunc
		failing Failing
	}
}

// Archiving is how archiving stands.
type Archiving struct {
	To        string   `json:"to,omitempty"`      // the place where sessions move to; empty: none do
	Sessions  int64    `json:"sessions"`          // whose blocks are in an archive, there or elsewhere
	Undeleted int64    `json:"undeleted"`         // objects of deleted sessions that are there still
	Failing   *Failing `json:"failing,omitempty"` // nil: it did not fail when it was last used
}

// Failing says since when archiving fails, and how.
type Failing struct {
	Since time.Time `json:"since"`
	Error string    `json:"error"`
}

// An Archivist says how archiving stands.
type Archivist interface {
	Archiving(ctx context.Context) (Archiving, error)
}

// Archiving implements [Archivist].
func (l *Log) Archiving(context.Context) (Archiving, error) {
	a := Archiving{To: placeOf(l.o.Archive)}
	l.tree.mu.Lock()
	a.Sessions = l.archiving.moved.Sessions
	l.tree.mu.Unlock()
	l.archiving.state.Lock()
	if f := l.archiving.state.failing; f != (Failing{}) {
		a.Failing = &f
	}
	l.archiving.state.Unlock()
	err := l.keys([]byte("e/"), func(string) bool { a.Undeleted++; return true })
	return a, err
}

func (l *Log) openArchiving() error {
	b, err := l.value(movedKey)
	if err == nil && b != nil && json.Unmarshal(b, &l.archiving.moved) != nil {
		err = errors.New("how far archiving has come cannot be read")
	}
	l.archiving.some.Store(l.archiving.moved.Sessions > 0)
	return err
}

func (m moved) write() write {
	b, err := json.Marshal(m)
	if err != nil {
		panic(err) // numbers
	}
	return write{movedKey, b}
}

// archivedAt returns the place of a session's blocks, or nothing if they are in the log.
func (l *Log) archivedAt(session string) string {
	if !l.archiving.some.Load() {
		return ""
	}
	a, err := l.markOf(session)
	if err != nil || a == nil || a.Time.IsZero() {
		return ""
	}
	return a.At
}

// archiveAll moves sessions to the archive, and deletes objects, until the log is closed.
func (l *Log) archiveAll() {
	ctx, cancel := l.untilClosed()
	defer cancel()
	for pause := archivePause; ; {
		next, err := l.archiveDue(ctx, time.Now())
		if ctx.Err() != nil {
			return
		}
		l.archiving.failed(err)
		bell := l.archiving.bell
		if err != nil {
			l.o.Log.Error("archiving fails; sessions stay as they are until it does not", "error", err, "retry", pause)
			next, pause = pause, min(2*pause, archiveInterval)
			bell = nil
		} else {
			pause = archivePause
		}
		select {
		case <-time.After(next):
		case <-bell:
		case <-l.closing:
			return
		}
	}
}

func (a *archiving) failed(err error) {
	s := &a.state
	s.Lock()
	defer s.Unlock()
	if err == nil {
		s.failing = Failing{}
		return
	}
	if s.failing.Since.IsZero() {
		s.failing.Since = time.Now()
	}
	s.failing.Error = err.Error()
}

// archiveDue does what is to be done at a time, and returns how long there is nothing to do
// then.
func (l *Log) archiveDue(ctx context.Context, now time.Time) (next time.Duration, err error) {
	err = errors.Join(l.eraseAll(), l.deleteObjects(ctx, ""))
	if l.o.Archive == "" {
		return archiveInterval, err
	}
	n, next, wrong := l.archiveSessions(ctx, now)
	if n > 0 {
		l.o.Log.Info("sessions were archived", "archive", placeOf(l.o.Archive), "sessions", n)
	}
	return next, errors.Join(err, wrong)
}

// archiveSessions moves sessions until one has to wait, and returns how many it has moved
// and how long that one has to.
func (l *Log) archiveSessions(ctx context.Context, now time.Time) (n int, next time.Duration, err error) {
	l.tree.mu.Lock()
	at, size := l.archiving.moved.Next, l.tree.size
	l.tree.mu.Unlock()
	defer func() { err = errors.Join(err, l.passed(at)) }()
	for ; at < size; at++ {
		if err := ctx.Err(); err != nil {
			return n, 0, err
		}
		id, err := l.value(leafKey(at))
		if err != nil {
			return n, 0, err
		}
		s, err := l.session(string(id))
		switch {
		case errors.Is(err, ErrNoSession), err == nil && s.Records == 0:
			continue
		case errors.Is(err, ErrDamaged):
			l.o.Log.Error("a session is damaged, and is not archived", "session", string(id), "error", err)
			continue
		case err != nil:
			return n, 0, err
		}
		if wait := s.End.Add(l.o.ArchiveAfter).Sub(now); wait > 0 && s.End.Sub(now) < archiveAhead {
			return n, archiveWait(wait), nil
		}
		unsettled, err := l.value(rewriteKey(s.ID))
		if err != nil {
			return n, 0, err
		}
		if unsettled != nil || l.tails.get(s.ID) != nil {
			return n, archiveLeast, nil
		}
		switch err := l.archiveSession(ctx, s, at); {
		case err == nil:
			n++
		case errors.Is(err, ErrNoSession), errors.Is(err, errArchived): // it was deleted meanwhile
		case errors.Is(err, ErrDamaged):
			l.o.Log.Error("a session is damaged, and is not archived", "session", s.ID, "error", err)
		default:
			return n, 0, fmt.Errorf("session %s: %w", s.ID, err)
		}
	}
	return n, archiveWait(l.o.ArchiveAfter), nil
}

// archiveWait is how long to wait for something that is due after so long.
func archiveWait(due time.Duration) time.Duration {
	return max(min(due, archiveInterval), archiveLeast)
}

// passed puts on record that all leaves before one have been looked at.
func (l *Log) passed(leaf int64) error {
	l.tree.mu.Lock()
	defer l.tree.mu.Unlock()
	m := l.archiving.moved
	if m.Next >= leaf {
		return nil
	}
	m.Next = leaf
	if err := l.commit(m.write()); err != nil {
		return err
	}
	l.archiving.moved = m
	return nil
}

// archiveSession moves the blocks of a session, which is a leaf, to the archive.
func (l *Log) archiveSession(ctx context.Context, s Session, leaf int64) error {
	l.archiving.Lock()
	defer l.archiving.Unlock()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	l.archiving.moves(s.ID, cancel)
	defer l.archiving.moves("", nil)

	mark, killed, err := l.beginMove(s.ID)
	if err != nil {
		return err
	}
	l.step(1)
	if killed {
		killed = l.verifyObject(ctx, s, mark) == nil
	}
	if !killed {
		switch err := l.writeObject(ctx, s, leaf, mark); {
		case errors.Is(err, ErrDamaged):
			return errors.Join(err, l.stay(s.ID, mark))
		case err != nil:
			return err
		}
		l.step(2)
		if err := l.verifyObject(ctx, s, mark); err != nil {
			return err
		}
	}
	l.step(3)
	if err := l.endMove(s.ID, leaf, mark); err != nil {
		return err
	}
	l.step(4)
	err = l.erase(s.ID)
	l.step(5)
	return err
}

func (l *Log) step(n int) {
	if l.o.stepped != nil {
		l.o.stepped(n)
	}
}

func (a *archiving) moves(session string, cancel context.CancelCauseFunc) {
	a.state.Lock()
	defer a.state.Unlock()
	a.state.session, a.state.cancel = session, cancel
}

// stop ends the move of a session that was deleted, if it is under way.
func (a *archiving) stop(session string) {
	a.state.Lock()
	defer a.state.Unlock()
	if a.state.session == session && a.state.cancel != nil {
		a.state.cancel(ErrNoSession)
	}
}

// commitOf commits what concerns a session, if that is on record still.
func (l *Log) commitOf(session string, writes ...write) error {
	record, err := l.value(sessionKey(session))
	if err == nil && record == nil {
		err = ErrNoSession
	}
	if err != nil {
		return err
	}
	return l.commit(writes...)
}

// beginMove puts the key of a session's object on record, if it is not from an attempt
// before that was killed or has failed.
func (l *Log) beginMove(session string) (mark *archived, killed bool, err error) {
	l.tree.mu.Lock()
	defer l.tree.mu.Unlock()
	place := placeOf(l.o.Archive)
	mark, err = l.markOf(session)
	switch {
	case err == nil && mark != nil && !mark.Time.IsZero():
		return nil, false, errArchived
	case err != nil || mark != nil && mark.At == place:
		return mark, true, err
	}
	var writes []write
	if mark != nil { // it was to go to another archive
		writes = append(writes, write{undeletedKey(session, mark.url()), []byte{}})
	}
	if url, err := l.value(placeKey(place)); err != nil {
		return nil, false, err
	} else if string(url) != l.o.Archive {
		writes = append(writes, write{placeKey(place), []byte(l.o.Archive)})
	}
	if mark, err = newArchived(session, place); err != nil {
		return nil, false, err
	}
	w, err := mark.write(session)
	if err != nil {
		return nil, false, err
	}
	return mark, false, l.commitOf(session, append(writes, w)...)
}

func (a *archived) write(session string) (write, error) {
	b, err := json.Marshal(a)
	return write{archivedKey(session), b}, err
}

// endMove puts the object in the place of the blocks.
func (l *Log) endMove(session string, leaf int64, mark *archived) error {
	l.tree.mu.Lock()
	defer l.tree.mu.Unlock()
	mark.Time = time.Now().UTC().Round(0)
	w, err := mark.write(session)
	if err != nil {
		return err
	}
	m := l.archiving.moved
	m.Next, m.Sessions = max(m.Next, leaf+1), m.Sessions+1
	if err := l.commitOf(session, w, m.write(), write{erasureKey(session), []byte{}}); err != nil {
		return err
	}
	l.archiving.moved = m
	l.archiving.some.Store(true)
	return nil
}

// stay puts on record that a session does not move.
func (l *Log) stay(session string, mark *archived) error {
	l.tree.mu.Lock()
	defer l.tree.mu.Unlock()
	return l.commitOf(session, write{archivedKey(session), nil}, write{undeletedKey(session, mark.url()), []byte{}})
}

// unarchive returns what takes a session out of the archive, for the commit that deletes it,
// and how far archiving has come then. l.tree.mu is held.
func (l *Log) unarchive(session string) ([]write, moved, error) {
	m := l.archiving.moved
	mark, err := l.markOf(session)
	if mark == nil || err != nil {
		return nil, m, err
	}
	writes := []write{{archivedKey(session), nil}, {undeletedKey(session, mark.url()), []byte{}}}
	if !mark.Time.IsZero() {
		m.Sessions--
		writes = append(writes, m.write())
	}
	return writes, m, nil
}

// writeObject writes a session's object. An error wraps [ErrArchive] or, if the session's
// blocks are not those of its leaf, [ErrDamaged].
func (l *Log) writeObject(ctx context.Context, s Session, leaf int64, mark *archived) (err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	failed := func(err error) error {
		return cmp.Or(context.Cause(ctx), fmt.Errorf("%w: write %s: %w", ErrArchive, mark.url(), err))
	}
	record, err := l.value(sessionKey(s.ID))
	if err != nil {
		return err
	}
	want, err := l.tree.read([]int64{tlog.StoredHashIndex(0, leaf)})
	if err != nil {
		return err
	}
	if want[0] != tlog.RecordHash(record) {
		return fmt.Errorf("%w: its record is not the one in the tree", ErrDamaged)
	}
	to, err := l.archive(ctx, mark.At)
	if err != nil {
		return failed(err)
	}
	object, err := to.Create(ctx, mark.Object)
	if err != nil {
		return failed(err)
	}
	defer func() {
		if err != nil {
			cancel() // so that Close takes it away
			object.Close()
		}
	}()
	key, err := age.ParseX25519Identity(mark.Key)
	if err != nil {
		return err
	}
	sealed, err := age.Encrypt(object, key.Recipient())
	if err == nil {
		_, err = sealed.Write(append(record, '\n'))
	}
	if err != nil {
		return failed(err)
	}
	v, put, written := newCheck(s), blockWriter(sealed), error(nil)
	err = l.blocks(ctx, s.ID, 0, func(n uint32, b []byte) (bool, error) {
		if !v.add(Block{n, b}) {
			return false, nil
		}
		_, written = put(n, b)
		return true, written
	})
	if written != nil {
		return failed(written)
	}
	if err != nil {
		return err
	}
	if v.fault == nil {
		v.end()
	}
	if v.fault != nil {
		return fmt.Errorf("%w: block %d: %s", ErrDamaged, v.fault.Block, v.fault.What)
	}
	if _, err = sealed.Write([]byte{0}); err == nil {
		err = sealed.Close()
	}
	if err == nil {
		err = object.Close()
	}
	if err != nil {
		return failed(err)
	}
	return nil
}

// verifyObject reads a session's object back, and verifies that it has the session's
// records, to the last.
func (l *Log) verifyObject(ctx context.Context, s Session, mark *archived) error {
	v := newCheck(s)
	err := l.fetch(ctx, mark, 0, func(n uint32, b []byte) (bool, error) { return v.add(Block{n, b}), nil })
	if err != nil {
		return err
	}
	if v.fault == nil {
		v.end()
	}
	if v.fault != nil {
		return fmt.Errorf("%w: what was written comes back as something else: block %d: %s", ErrArchive, v.fault.Block, v.fault.What)
	}
	return nil
}

// deleteObjects deletes the objects of a session that is not on record any more, or, if it
// is empty, of all such. What cannot be deleted now is tried again.
func (l *Log) deleteObjects(ctx context.Context, session string) error {
	if session != "" {
		l.archiving.stop(session)
	}
	var keys [][]byte
	prefix := []byte("e/" + session)
	err := l.keys(prefix, func(rest string) bool {
		keys = append(keys, append(prefix[:len(prefix):len(prefix)], rest...))
		return true
	})
	if err != nil || len(keys) == 0 {
		return err
	}
	l.archiving.Lock()
	defer l.archiving.Unlock()
	failed := 0
	for _, key := range keys {
		_, object, _ := strings.Cut(strings.TrimPrefix(string(key), "e/"), "/")
		deleted := l.deleteObject(ctx, object)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if deleted == nil {
			if err := l.commit(write{key, nil}); err != nil {
				return err
			}
			continue
		}
		if failed++; failed == 1 { // others may be as many as there are sessions
			err = fmt.Errorf("it is deleted, but its object is not, which is tried again: %w: delete %s: %w", ErrArchive, object, deleted)
		}
	}
	if failed > 1 {
		err = fmt.Errorf("%w (and so it is with %d more)", err, failed-1)
	}
	return err
}

func (l *Log) deleteObject(ctx context.Context, url string) error {
	at := strings.LastIndexByte(url, '/')
	a, err := l.archive(ctx, url[:max(at, 0)])
	if err != nil {
		return err
	}
	return a.Delete(ctx, url[at+1:])
}
