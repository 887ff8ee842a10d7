package recorder

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"filippo.io/age"
	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"
	"github.com/dgraph-io/ristretto/v2/z"
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

	// Custody is told of each Custody before it is done. An error refuses it; if nil,
	// nobody is told.
	Custody func(context.Context, Custody) error
	Retain  bool          // sessions that have been kept for their time are deleted
	Keep    time.Duration // how long those are kept whose Session does not say; zero: for good

	// Archive is the URL of the archive to which the blocks of sessions move, at least
	// ArchiveAfter after their end; if empty, none do.
	Archive      string
	ArchiveAfter time.Duration
	// OpenArchive opens an archive by its URL, not only that one. If nil, what is in one
	// is neither read nor deleted.
	OpenArchive func(ctx context.Context, url string) (Archive, error)

	segment int            // sessions of a segment of the index; if zero, segmentSessions, else at most as many
	still   bool           // in tests: each append is a block in the database, and stays one
	stepped func(step int) // in tests: is called behind each step of rewriting and archiving, if not nil
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
	journal *journal
	tails   tails
	memory  slabs       // of what sessions record
	failed  atomic.Bool // the last commit has failed
	space   func() (free int64, err error)
	fault   atomic.Pointer[func() error] // makes commits fail, in tests

	flush      func() error
	unwritable atomic.Pointer[error] // why nothing can be written until the log is opened again

	unreadable  atomic.Bool // Badger has failed
	late        atomic.Bool // ends of sessions are not on record yet
	unrecovered atomic.Bool // sessions that the last process left running are not marked yet

	unsynced atomic.Bool // something has been committed since the last flush
	rewrites rewrites
	dead     atomic.Int64 // bytes of blocks that were deleted since tables were merged for that

	collected atomic.Pointer[Collection] // nil: none yet

	holds     holdSet
	archives  archives
	archiving archiving

	closing chan struct{} // closed by Close
	once    sync.Once
	working sync.WaitGroup // what Open has started

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
	l.tails.of, l.tails.bell = map[string]*tail{}, newBell()
	l.space, l.flush = l.freeSpace, func() error { return guarded(db.Sync) }
	l.rewrites.bell, l.archiving.bell = newBell(), newBell()
	l.archives.opener = o.OpenArchive
	if l.tree, err = openTree(l.view, o.Key); err != nil {
		db.Close()
		return nil, fmt.Errorf("open log %s: %w", o.Dir, err)
	}
	if err := l.tree.whole(); err != nil {
		err = fmt.Errorf("%w: %w", ErrBroken, err)
		l.unwritable.Store(&err)
		l.fail(err)
	}
	if err := errors.Join(l.openArchiving(), l.openHolds()); err != nil {
		db.Close()
		return nil, fmt.Errorf("open log %s: %w", o.Dir, err)
	}
	if err := l.openIndex(); err != nil && !errors.Is(err, ErrUnavailable) {
		db.Close()
		return nil, fmt.Errorf("open log %s: %w", o.Dir, err)
	}
	if l.journal, err = openJournal(o.Dir, key, l.tails.bell, o.Log); err != nil {
		db.Close()
		return nil, fmt.Errorf("open log %s: journal: %w", o.Dir, err)
	}
	if err := l.restore(); err != nil {
		if !errors.Is(err, ErrUnavailable) {
			db.Close()
			return nil, fmt.Errorf("open log %s: %w", o.Dir, err)
		}
		l.unrecovered.Store(true)
	}
	if o.Sync == SyncInterval {
		l.working.Go(func() { l.every(syncInterval, l.syncNow) })
	}
	if !o.still {
		l.working.Go(l.keepJournal)
		l.working.Go(l.prepareJournal)
		l.working.Go(l.rewriteAll)
		l.working.Go(func() { l.every(collectInterval, l.collectNow) })
	}
	l.working.Go(l.keepIndex)
	if o.Retain {
		l.working.Go(func() { l.every(retainInterval, l.retainNow) })
	}
	if o.OpenArchive != nil && !o.still {
		l.working.Go(l.archiveAll)
	}
	return l, nil
}

const (
	// valueThreshold is the size of values that go to the value log, in bytes.
	valueThreshold = 1 << 10
	// valueFileSize is how long a file of the value log becomes.
	valueFileSize = 64 << 20
)

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
		WithValueThreshold(valueThreshold).
		WithValueLogFileSize(valueFileSize).
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
	l.working.Wait()
	archives := l.archives.close()
	if l.unreadable.Load() { // it would try for ever; what it has not merged is in its files, as after a kill
		return l.journal.close()
	}
	if err := l.drainAll(); err != nil {
		l.o.Log.Warn("a part of what was recorded stays in the journal", "error", err)
	}
	if err := errors.Join(l.journal.close(), l.db.Close()); err != nil {
		return fmt.Errorf("close log: %w", err)
	}
	return archives
}

func (l *Log) closed() bool {
	select {
	case <-l.closing:
		return true
	default:
		return false
	}
}

// untilClosed returns a ctx that ends when the log is closed, and what ends it before.
func (l *Log) untilClosed() (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		select {
		case <-l.closing:
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}

// A bell wakes who waits for something to do. Rung several times before that, it wakes
// once.
type bell chan struct{}

func newBell() bell { return make(bell, 1) }

func (b bell) ring() {
	select {
	case b <- struct{}{}:
	default:
	}
}

// await waits for the bell, after an error for a pause at most. It returns false if the log
// is closed.
func (l *Log) await(b bell, err error, pause time.Duration) bool {
	var retry <-chan time.Time
	if err != nil {
		retry = time.After(pause)
	}
	select {
	case <-b:
	case <-retry:
	case <-l.closing:
		return false
	}
	return true
}

// every calls f at that interval, until it returns false or the log is closed.
func (l *Log) every(interval time.Duration, f func() bool) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-l.closing:
			return
		case <-tick.C:
		}
		if !f() {
			return
		}
	}
}

func sessionKey(id string) []byte { return []byte("s/" + id) }
func openKey(id string) []byte    { return []byte("o/" + id) }
func blockPrefix(id string) []byte {
	return []byte("b/" + id + "/")
}
func blockKey(id string, n uint32, again byte) []byte {
	return append(binary.BigEndian.AppendUint32(blockPrefix(id), n), again)
}

// Ready returns nil if the log can be written now, or why not. After a failure
// it tries with a small write.
func (l *Log) Ready() error {
	if l.failed.Load() {
		if err := l.journal.ready(); err != nil {
			return fmt.Errorf("%w: journal: %w", ErrUnavailable, err)
		}
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
		l.tails.bell.ring()
	}
	if err := l.need(0); err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return nil
}

// restore brings what the last process has left to its end.
func (l *Log) restore() error {
	if err := l.loadJournal(); err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	if err := l.undoRewrites(); err != nil {
		return err
	}
	if err := l.drainAll(); err != nil {
		return err
	}
	return l.recover()
}

// recover marks the sessions that the last process left running.
func (l *Log) recover() error {
	var ids []string
	err := l.keys(openKey(""), func(id string) bool { ids = append(ids, id); return true })
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
		chain, small := chain{head: firstHash(id)}, 0
		r := blockReader{start: s.Start, chain: &chain}
		err = l.blocks(context.Background(), id, 0, func(n uint32, b []byte) (bool, error) {
			h, err := readHeader(b)
			if h.size < smallSize {
				small++
			}
			if chain.next = n; err == nil {
				chain.head = h.before // also if what is in front of it is damaged: that is for verify to name
			}
			r.read(n, b, func(f Frame, err error) bool {
				if err == nil {
					s.count(&f)
					s.End = f.Time
				}
				return true
			})
			chain.next = n + max(h.count, 1)
			return true, nil
		})
		if err != nil {
			return err
		}
		s.Records, s.Head = chain.names()
		if err := l.finish(s, small > 1); err != nil {
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
	return l.view(func(txn *badger.Txn) error {
		it := txn.NewIterator(badger.IteratorOptions{Prefix: prefix, Reverse: backwards, PrefetchValues: true, PrefetchSize: 4})
		defer it.Close()
		for it.Seek(from); it.ValidForPrefix(prefix); it.Next() {
			item, more := it.Item(), false
			err := item.Value(func(value []byte) (err error) {
				more, err = f(item.Key(), value)
				return err
			})
			if err != nil || !more {
				return err
			}
		}
		return nil
	})
}
