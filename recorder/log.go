package recorder

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"filippo.io/age"
	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"
	"github.com/dgraph-io/ristretto/v2/z"
	"golang.org/x/sys/unix"
)

// Options is what a Log is made of.
type Options struct {
	Dir  string       // the database; made with mode 0700 where missing
	Free int64        // bytes that must stay free on its disk; if zero, 256 MiB
	Log  *slog.Logger // if nil, nothing is logged
	Key  string       // that signs checkpoints, as of OpenKey; if empty, nothing is signed
	Sync Sync         // when what is on record is flushed to the disk
	// Encryption is what the key is wrapped by that the log is encrypted with; if
	// empty, the log itself says it, and a new one is not encrypted.
	Encryption string
	// Originals are whom what came is sealed to where something else is on record; if
	// empty, it is not kept.
	Originals []age.Recipient
	// Read is told of each Reading through the socket, before it. An error refuses it;
	// if Read is nil, nobody is told.
	Read func(context.Context, Reading) error

	segment int // sessions of a segment of the index; if zero, segmentSessions, else at most as many
}

// Sync says when what is on record is flushed to the disk: that is what a loss of
// power may take. A process that is killed loses nothing in any case.
type Sync uint8

const (
	SyncInterval Sync = iota // every 50 ms
	SyncAlways               // before a frame is delivered; what many sessions record at a time is flushed once
	SyncNone                 // when the kernel likes
)

// syncInterval is how old what is not on the disk may be.
const syncInterval = 50 * time.Millisecond

// defaultFree is room for what Badger writes beside the frames: tables that it
// merges. It writes through mapped files, where a full disk is no error but the
// death of the process, so the log stops before.
const defaultFree = 256 << 20

// A Log is a database of sessions. Its methods may be called by several goroutines.
type Log struct {
	db      *badger.DB
	o       Options
	tree    *tree
	commits commits
	failed  atomic.Bool // the last commit has failed
	space   func() (free int64, err error)
	fault   func() error // makes commits fail, in tests

	flush      func() error
	unwritable atomic.Pointer[error] // why nothing can be written until the log is opened again

	unreadable  atomic.Bool // Badger has failed
	late        atomic.Bool // ends of sessions are not on record yet
	unrecovered atomic.Bool // sessions that the last process left running are not marked yet

	unsynced atomic.Bool   // something has been committed since the last flush
	closing  chan struct{} // closed by Close
	once     sync.Once
	syncing  sync.WaitGroup // what works in the background

	room struct {
		sync.Mutex
		budget  int64 // bytes that may be written before the next look at the disk
		checked time.Time
	}

	mu   sync.Mutex
	live map[string]*Recording

	index index
}

// Open opens the log, and makes one where there is none. Sessions that were
// running when the last process died are marked interrupted.
func Open(o Options) (*Log, error) {
	o.Free, o.segment = cmp.Or(o.Free, defaultFree), cmp.Or(o.segment, segmentSessions)
	if o.Log == nil {
		o.Log = silent
	}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	key, err := openEncryption(o.Dir, o.Encryption)
	if err != nil {
		return nil, fmt.Errorf("open log %s: %w", o.Dir, err)
	}
	db, err := openBadger(badgerOptions(o, key))
	if err != nil {
		return nil, notOpened(o.Dir, err)
	}
	if err := os.RemoveAll(rewriting(o.Dir)); err != nil { // of a Reencrypt that was killed
		db.Close()
		return nil, fmt.Errorf("open log %s: %w", o.Dir, err)
	}
	l := &Log{db: db, o: o, live: map[string]*Recording{}, closing: make(chan struct{})}
	l.space, l.flush = l.freeSpace, func() error { return guarded(db.Sync) }
	if l.tree, err = openTree(l.view, o.Key); err != nil {
		db.Close()
		return nil, fmt.Errorf("open log %s: %w", o.Dir, err)
	}
	if err := l.tree.whole(); err != nil {
		err = fmt.Errorf("%w: %w", ErrBroken, err)
		l.unwritable.Store(&err)
		l.fail(err)
	}
	if err := l.openIndex(); err != nil && !errors.Is(err, ErrUnavailable) {
		db.Close()
		return nil, fmt.Errorf("open log %s: %w", o.Dir, err)
	}
	if err := l.recover(); err != nil {
		if !errors.Is(err, ErrUnavailable) {
			db.Close()
			return nil, fmt.Errorf("open log %s: %w", o.Dir, err)
		}
		l.unrecovered.Store(true)
	}
	if o.Sync == SyncInterval {
		l.syncing.Go(l.syncNowAndThen)
	}
	l.syncing.Go(l.keepIndex)
	return l, nil
}

// openBadger opens the database. A process that died, or had no room, between making
// a file and filling it leaves an empty one, at which Badger fails; but then it is
// filled, and the next attempt finds it in order.
func openBadger(o badger.Options) (db *badger.DB, err error) {
	for range 4 {
		if db, err = badger.Open(o); err == nil || !strings.Contains(err.Error(), z.NewFile.Error()) {
			break
		}
	}
	return db, err
}

// syncNowAndThen flushes what has been committed, until the log is closed.
func (l *Log) syncNowAndThen() {
	tick := time.NewTicker(syncInterval)
	defer tick.Stop()
	for {
		select {
		case <-l.closing:
			return
		case <-tick.C:
		}
		if !l.unsynced.Swap(false) || l.unreadable.Load() {
			continue
		}
		if err := l.flush(); err != nil {
			// What the disk has is not known any more, and the kernel does not try again.
			err = fmt.Errorf("flush to the disk: %w; start again when it is good", err)
			l.unwritable.Store(&err)
			l.fail(err)
			return
		}
	}
}

// silent logs nothing.
var silent = slog.New(slog.DiscardHandler)

// notOpened is the error of a log that cannot be opened.
func notOpened(dir string, err error) error {
	switch {
	case strings.Contains(err.Error(), "Cannot acquire directory lock") && !errors.Is(err, fs.ErrPermission):
		err = ErrInUse
	case errors.Is(err, badger.ErrEncryptionKeyMismatch): // its file is another log's, or is missing
		err = fmt.Errorf("%w: %s is not this log's", ErrEncryption, encryptionFile)
	default:
		if errno := syscall.Errno(0); !errors.As(err, &errno) {
			err = fmt.Errorf("%w: %w", ErrBroken, err)
		}
	}
	return fmt.Errorf("open log %s: %w", dir, err)
}

// badgerOptions are those of a log with that key, or, if it is nil, without one.
func badgerOptions(o Options, key []byte) badger.Options {
	cache := int64(0)
	if key != nil { // Badger must have one, then
		cache = 8 << 20
	}
	return badger.DefaultOptions(o.Dir).
		WithEncryptionKey(key).
		WithLogger(badgerLog{o.Log}).
		WithSyncWrites(o.Sync == SyncAlways). // mapped: survives the process
		WithDetectConflicts(false).
		WithMetricsEnabled(false).
		WithCompression(options.None). // blocks are compressed
		// A block of a table that is damaged is left out, and not taken at its word. What is
		// in our own blocks, their own checksums tell.
		WithChecksumVerificationMode(options.OnBlockRead).
		// Blocks of small frames stay in the tables, where they lie side by side for
		// replay; big ones go to the value log, which no merge copies again.
		WithValueThreshold(32 << 10).
		WithValueLogFileSize(256 << 20).
		WithMemTableSize(16 << 20).
		WithNumMemtables(3).
		WithBlockCacheSize(cache).
		WithIndexCacheSize(16 << 20).
		WithNumCompactors(2)
}

// badgerLog brings Badger's log into ours. It talks much.
type badgerLog struct{ log *slog.Logger }

func (b badgerLog) Errorf(f string, a ...any)   { b.log.Error("badger: " + line(f, a)) }
func (b badgerLog) Warningf(f string, a ...any) { b.log.Debug("badger: " + line(f, a)) }
func (b badgerLog) Infof(f string, a ...any)    { b.log.Debug("badger: " + line(f, a)) }
func (b badgerLog) Debugf(string, ...any)       {}

func line(format string, args []any) string {
	return strings.TrimSpace(fmt.Sprintf(format, args...))
}

// Close closes the log. Recordings that have not ended stay open, and will be
// found interrupted.
func (l *Log) Close() error {
	l.once.Do(func() { close(l.closing) })
	l.syncing.Wait()
	if l.unreadable.Load() { // it would try for ever; what it has not merged is in its files, as after a kill
		return nil
	}
	if err := l.db.Close(); err != nil {
		return fmt.Errorf("close log: %w", err)
	}
	return nil
}

func sessionKey(id string) []byte { return []byte("s/" + id) }
func openKey(id string) []byte    { return []byte("o/" + id) }
func blockPrefix(id string) []byte {
	return []byte("b/" + id + "/")
}
func blockKey(id string, n uint32) []byte {
	return binary.BigEndian.AppendUint32(blockPrefix(id), n)
}

// A write is one key and its new value; nil deletes it.
type write struct{ key, value []byte }

// commits brings together what many sessions commit at a time: while one
// commits, the others queue, and then one of them commits for all.
type commits struct {
	sync.Mutex
	queue []*commit
	busy  bool
}

type commit struct {
	writes []write
	wake   chan wakeup
}

type wakeup struct {
	lead bool // the commit has not been made; make it, with all that is queued
	err  error
}

var wakeups = sync.Pool{New: func() any { return make(chan wakeup, 1) }}

// commit writes, all or nothing but for what Badger takes in one transaction,
// and returns when no kill can take it away.
func (l *Log) commit(writes ...write) error {
	c := &commit{writes: writes}
	q := &l.commits
	q.Lock()
	q.queue = append(q.queue, c)
	if q.busy {
		c.wake = wakeups.Get().(chan wakeup)
		q.Unlock()
		w := <-c.wake
		wakeups.Put(c.wake)
		if !w.lead {
			return w.err
		}
		q.Lock()
	}
	q.busy = true
	batch := q.queue
	q.queue = nil
	q.Unlock()

	err := l.write(batch)

	q.Lock()
	if len(q.queue) > 0 {
		q.queue[0].wake <- wakeup{lead: true}
	} else {
		q.busy = false
	}
	q.Unlock()
	for _, other := range batch {
		if other != c {
			other.wake <- wakeup{err: err}
		}
	}
	return err
}

// write writes a batch. Only one goroutine at a time is in it.
func (l *Log) write(batch []*commit) error {
	err := l.put(batch)
	if err == nil {
		l.unsynced.Store(true)
		if l.failed.CompareAndSwap(true, false) {
			l.o.Log.Info("recorder is available again")
		}
		return nil
	}
	err = fmt.Errorf("%w: %w", ErrUnavailable, err)
	l.fail(err)
	return err
}

// fail makes the log unavailable.
func (l *Log) fail(err error) {
	if !l.failed.Swap(true) {
		l.o.Log.Error("sessions cannot be recorded; they end, and new ones are refused", "error", err)
	}
}

func (l *Log) put(batch []*commit) error {
	size := 0
	for _, c := range batch {
		for _, w := range c.writes {
			size += len(w.key) + len(w.value) + 64
		}
	}
	if err := l.need(size); err != nil {
		return err
	}
	if err := l.unwritable.Load(); err != nil {
		return *err
	}
	if l.fault != nil {
		if err := l.fault(); err != nil {
			return err
		}
	}
	txn := l.db.NewTransaction(true)
	defer func() { txn.Discard() }()
	for _, c := range batch {
		for _, w := range c.writes {
			err := set(txn, w)
			if errors.Is(err, badger.ErrTxnTooBig) {
				if err := l.end(txn); err != nil {
					return err
				}
				txn = l.db.NewTransaction(true)
				err = set(txn, w)
			}
			if err != nil {
				return err
			}
		}
	}
	return l.end(txn)
}

// end commits. Badger that could not write is in no state to be used again, not even
// to be read from: what it was about to fill is missing.
func (l *Log) end(txn *badger.Txn) error {
	err := txn.Commit()
	if err != nil {
		err = fmt.Errorf("%w; start again when it is good", err)
		l.unwritable.Store(&err)
		l.unreadable.Store(true)
	}
	return err
}

func set(txn *badger.Txn, w write) error {
	if w.value == nil {
		return txn.Delete(w.key)
	}
	return txn.Set(w.key, w.value)
}

// spaceInterval is how long a look at the disk's free space holds.
const spaceInterval = time.Second

// need makes sure that n bytes can be written. It looks at the disk when a
// quarter of the room seen last is used, and now and then: others write, too.
func (l *Log) need(n int) error {
	r := &l.room
	r.Lock()
	defer r.Unlock()
	r.budget -= int64(n)
	if r.budget > 0 && time.Since(r.checked) < spaceInterval {
		return nil
	}
	free, err := l.space()
	if err != nil {
		return fmt.Errorf("free space: %w", err)
	}
	left := free - l.o.Free - int64(n)
	if left <= 0 {
		r.budget = 0
		return fmt.Errorf("disk full: %d MiB are free on the disk of %s, and %d MiB must stay so", free>>20, l.o.Dir, l.o.Free>>20)
	}
	r.budget, r.checked = left/4, time.Now()
	return nil
}

func (l *Log) freeSpace() (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(l.o.Dir, &st); err != nil {
		return 0, err
	}
	return int64(st.Bavail) * int64(st.Bsize), nil
}

// Ready returns nil if the log can be written now, or why not. After a failure
// it tries with a small write.
func (l *Log) Ready() error {
	if l.failed.Load() {
		if err := l.commit(write{[]byte("h"), []byte(time.Now().UTC().Format(time.RFC3339))}); err != nil {
			return err
		}
	}
	if l.late.CompareAndSwap(true, false) {
		if err := l.finishLate(); err != nil {
			return err
		}
	}
	if l.unrecovered.CompareAndSwap(true, false) {
		if err := l.recover(); err != nil {
			l.unrecovered.Store(true)
			return err
		}
	}
	if err := l.need(0); err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return nil
}

// Start puts a session on record. Without an id and a start, it gets them.
func (l *Log) Start(s Session) (*Recording, error) {
	if s.Start.IsZero() {
		s.Start = time.Now()
	}
	if s.ID == "" {
		s.ID = newID(s.Start)
	}
	if len(s.ID) != idSize {
		return nil, fmt.Errorf("start recording: %q is no session's id", s.ID)
	}
	s.State = Running
	r := &Recording{log: l, began: s.Start}
	s.Start = s.Start.Round(0) // the monotonic clock ends with the process
	r.session, r.head = s, firstHash(s.ID)
	if l.KeepsOriginals() {
		r.sealer = &sealer{session: s.ID, to: l.o.Originals}
	}
	b, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	l.live[s.ID] = r // before it can be found
	l.mu.Unlock()
	l.index.starts(s.ID)
	writes := append(startPostings(&s), write{sessionKey(s.ID), b}, write{openKey(s.ID), []byte{}}, write{unindexedKey(s.ID), waits})
	if err := l.commit(writes...); err != nil {
		l.mu.Lock()
		delete(l.live, s.ID)
		l.mu.Unlock()
		l.index.gone(s.ID)
		return nil, fmt.Errorf("start recording: %w", err)
	}
	return r, nil
}

// A Recording is one session's place in the log.
type Recording struct {
	log   *Log
	began time.Time // its start, with the monotonic clock

	mu      sync.Mutex
	session Session
	next    uint32  // number of the next block
	head    hash    // of the last
	open    [2]bool // by direction: more of a frame is to come
	err     error   // of an append; sticky, for what is on record behind it is uncertain
	sealer  *sealer // of originals; nil: none are kept

	changed chan struct{} // closed at the next append, or at the end; nil: nobody waits
}

// wake wakes those who wait for more. r.mu is held.
func (r *Recording) wake() {
	if r.changed != nil {
		close(r.changed)
		r.changed = nil
	}
}

// now is the session's start and what the monotonic clock has counted since. The wall
// clock may be set meanwhile, and no frame is of before the one that it follows.
func (r *Recording) now() time.Time { return r.began.Add(time.Since(r.began)) }

// ID returns the session's id.
func (r *Recording) ID() string { return r.session.ID }

// Append puts frames on record, in this order. It does not keep their bytes.
// Its errors wrap [ErrUnavailable].
func (r *Recording) Append(frames ...Frame) error {
	if len(frames) == 0 {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		return r.err
	}
	if r.sealer != nil {
		var err error
		if frames, err = r.sealer.add(frames); err != nil {
			r.err = err
			return err
		}
	}
	now := r.now()
	for i := range frames {
		f := &frames[i]
		if f.Time.IsZero() {
			f.Time = now
		}
		if f.Verdict.passes() {
			f.rest, r.open[f.Direction] = r.open[f.Direction], f.More
		}
	}
	e := encode(r.session.Start, r.head, frames)
	defer e.free() // Badger has copied them when the commit is made
	blocks := e.blocks
	writes := make([]write, len(blocks))
	for i, b := range blocks {
		writes[i] = write{blockKey(r.session.ID, r.next+uint32(i)), b}
	}
	if err := r.log.commit(writes...); err != nil {
		r.err = err
		return err
	}
	r.next += uint32(len(blocks))
	r.head = e.head
	for i := range frames {
		r.session.count(&frames[i])
	}
	r.wake()
	return nil
}

// End puts the end of the session on record: its state, Ended or Refused, and
// the reason.
func (r *Recording) End(state, reason string) error { return r.EndAt(r.now(), state, reason) }

// EndAt is End of what has ended at another time than now.
func (r *Recording) EndAt(end time.Time, state, reason string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.session.State, r.session.Reason, r.session.End = state, reason, end.Round(0)
	r.session.Blocks, r.session.Head = int64(r.next), hex.EncodeToString(r.head[:])
	r.sealer = nil // and its key with it
	defer r.wake()
	return r.finish()
}

// finish writes the end. If that fails the recording stays among the live ones,
// and Ready writes it when the log is available again. r.mu is held.
func (r *Recording) finish() error {
	if err := r.log.finish(r.session); err != nil {
		r.log.late.Store(true)
		return err
	}
	r.log.mu.Lock()
	delete(r.log.live, r.session.ID)
	r.log.mu.Unlock()
	return nil
}

// finishLate writes the ends that could not be written.
func (l *Log) finishLate() error {
	l.mu.Lock()
	live := slices.Collect(maps.Values(l.live))
	l.mu.Unlock()
	for _, r := range live {
		r.mu.Lock()
		var err error
		if r.session.State != Running {
			err = r.finish()
		}
		r.mu.Unlock()
		if err != nil {
			return err
		}
	}
	return nil
}

// finish writes a session that runs no longer, and makes it a leaf of the tree.
func (l *Log) finish(s Session) error {
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	t := l.tree
	t.mu.Lock()
	defer t.mu.Unlock()
	leaf, err := t.add(s.ID, b)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	if err := l.commit(append(leaf, write{sessionKey(s.ID), b}, write{openKey(s.ID), nil})...); err != nil {
		return err
	}
	t.size++
	l.index.ends(s.ID)
	return nil
}

// recover marks the sessions that the last process left running.
func (l *Log) recover() error {
	var ids []string
	err := l.scan([]byte("o/"), false, func(key, _ []byte) (bool, error) {
		ids = append(ids, string(key[2:]))
		return true, nil
	})
	if err != nil {
		return err
	}
	for _, id := range ids {
		if l.isLive(id) { // this process's: the last one's are marked late
			continue
		}
		s, err := l.session(id)
		if errors.Is(err, ErrDamaged) || errors.Is(err, ErrNoSession) {
			l.o.Log.Error("a session was interrupted, and its record cannot be read", "session", id)
			continue
		}
		if err != nil {
			return err
		}
		if s.State != Running {
			continue
		}
		s.State, s.Reason, s.End = Interrupted, "the broker died", s.Start
		s.C2S, s.S2C, s.Blocked, s.Masked, s.Approved, s.Originals, s.Findings, s.Observed = Count{}, Count{}, 0, 0, 0, 0, nil, nil
		for f, err := range l.frames(context.Background(), s) {
			if err == nil {
				s.count(&f)
				s.End = f.Time
			}
		}
		head := firstHash(id)
		for b, err := range l.Blocks(context.Background(), id) {
			if err != nil {
				return err
			}
			s.Blocks, head = s.Blocks+1, sha256.Sum256(b.Bytes)
		}
		s.Head = hex.EncodeToString(head[:])
		if err := l.finish(s); err != nil {
			return err
		}
		l.o.Log.Warn("a session was interrupted by the end of the broker", "session", id)
	}
	return nil
}

func (l *Log) isLive(id string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.live[id] != nil
}

// view reads from the database.
func (l *Log) view(f func(*badger.Txn) error) error {
	if l.unreadable.Load() {
		return *l.unwritable.Load()
	}
	return guarded(func() error { return l.db.View(f) })
}

// guarded makes an error of a panic. Badger that could not make its next table has none,
// and trips over that if something is read or flushed before the failure is known.
func guarded(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("badger: %v", p)
		}
	}()
	return f()
}

// scan calls f with the keys of a prefix and their values, until it returns false.
func (l *Log) scan(prefix []byte, backwards bool, f func(key, value []byte) (bool, error)) error {
	from := prefix
	if backwards {
		from = append(prefix[:len(prefix):len(prefix)], 0xff)
	}
	return l.scanFrom(prefix, from, backwards, f)
}

// scanFrom is scan from a key on.
func (l *Log) scanFrom(prefix, from []byte, backwards bool, f func(key, value []byte) (bool, error)) error {
	return l.scanItems(prefix, from, backwards, func(item *badger.Item) (more bool, err error) {
		err = item.Value(func(value []byte) (err error) {
			more, err = f(item.Key(), value)
			return err
		})
		return more, err
	})
}

func (l *Log) scanItems(prefix, from []byte, backwards bool, f func(*badger.Item) (bool, error)) error {
	return l.view(func(txn *badger.Txn) error {
		it := txn.NewIterator(badger.IteratorOptions{Prefix: prefix, Reverse: backwards, PrefetchValues: true, PrefetchSize: 4})
		defer it.Close()
		for it.Seek(from); it.ValidForPrefix(prefix); it.Next() {
			if more, err := f(it.Item()); err != nil || !more {
				return err
			}
		}
		return nil
	})
}

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

// now brings the counts of a session that runs up to date.
func (l *Log) now(s Session) Session {
	l.mu.Lock()
	r := l.live[s.ID]
	l.mu.Unlock()
	if r == nil {
		return s
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	s = r.session
	if s.State != Running { // its end cannot be put on record yet
		s.State, s.Reason, s.End, s.Blocks, s.Head = Running, "", time.Time{}, 0, ""
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
		item, err := txn.Get(key)
		if errors.Is(err, badger.ErrKeyNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		value, err = item.ValueCopy(nil)
		return err
	})
	return value, err
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

// blocks calls f with the blocks of a session, from a number on, until it returns
// false. One that cannot be read is f's as unreadable.
func (l *Log) blocks(ctx context.Context, session string, from uint32, f func(n uint32, b []byte) (bool, error)) error {
	s, err := l.session(session)
	if err != nil && !errors.Is(err, ErrDamaged) {
		return err
	}
	prefix := blockPrefix(session)
	for goOn := true; goOn; from++ {
		err := l.scanItems(prefix, blockKey(session, from), false, func(item *badger.Item) (bool, error) {
			if err := ctx.Err(); err != nil {
				return false, err
			}
			if len(item.Key()) != len(prefix)+4 {
				return true, nil
			}
			n := binary.BigEndian.Uint32(item.Key()[len(prefix):])
			from = max(from, n+1)
			var err error
			if item.Value(func(b []byte) error { goOn, err = f(n, b); return nil }) != nil {
				goOn, err = f(n, unreadable)
			}
			return goOn, err
		})
		// Badger ends a scan at a block of a table that it cannot read.
		if err != nil || int64(from) >= s.Blocks {
			return err
		}
	}
	return nil
}

// unreadable stands in the place of a block whose bytes cannot be had.
var unreadable = []byte{0}
