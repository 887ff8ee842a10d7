package recorder

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/dgraph-io/badger/v4"
	"golang.org/x/sys/unix"
)

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
	}
	return l.written(err)
}

// written makes the log available, or not, by how a write has ended.
func (l *Log) written(err error) error {
	if err == nil {
		if l.failed.Load() && l.failed.CompareAndSwap(true, false) {
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
	if err := l.writable(size); err != nil {
		return err
	}
	txn := l.db.NewTransaction(true)
	defer func() { txn.Discard() }()
	next := func() error {
		if err := l.end(txn); err != nil {
			return err
		}
		txn = l.db.NewTransaction(true)
		return nil
	}
	var sum, count int64 // of what is in the transaction
	for _, c := range batch {
		// One commit is in one transaction, unless it is too big for any.
		size, n := c.size(), int64(len(c.writes))
		if count > 0 && (sum+size >= l.db.MaxBatchSize() || count+n >= l.db.MaxBatchCount()) {
			if err := next(); err != nil {
				return err
			}
			sum, count = 0, 0
		}
		sum, count = sum+size, count+n
		for _, w := range c.writes {
			err := set(txn, w)
			if errors.Is(err, badger.ErrTxnTooBig) {
				if err := next(); err != nil {
					return err
				}
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
		err = l.cannotWrite(err)
		l.unreadable.Store(true)
	}
	return err
}

// writable returns nil if n bytes can be written, or why not.
func (l *Log) writable(n int) error {
	if err := l.need(n); err != nil {
		return err
	}
	if err := l.unwritable.Load(); err != nil {
		return *err
	}
	if fault := l.fault.Load(); fault != nil {
		return (*fault)()
	}
	return nil
}

// size is at least what the commit takes of a transaction, in bytes. Of a value in the
// value log, only the place counts.
func (c *commit) size() (n int64) {
	for _, w := range c.writes {
		n += int64(len(w.key)) + 32
		if len(w.value) < valueThreshold {
			n += int64(len(w.value))
		}
	}
	return n
}

func set(txn *badger.Txn, w write) error {
	if w.value == nil {
		return txn.Delete(w.key)
	}
	return txn.Set(w.key, w.value)
}

// spaceInterval is how long a look at the disk's free space holds.
const spaceInterval = time.Second

// need makes sure that n bytes can be written. It looks at the disk when a quarter of
// the room seen last, or of what must stay free, is used, and now and then: others
// write, too.
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
	// Others may fill the disk meanwhile: what must stay free is for what is written until
	// the next look, and for Badger's own files.
	r.budget, r.checked = min(left, l.o.Free)/4, time.Now()
	return nil
}

func (l *Log) freeSpace() (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(l.o.Dir, &st); err != nil {
		return 0, err
	}
	return int64(st.Bavail) * int64(st.Bsize), nil
}

// flushTables is flush, also of the tables that are full and that Badger has not written
// yet: Sync leaves those out.
func (l *Log) flushTables() error {
	err := l.flush()
	if err != nil {
		return err
	}
	paths, err := filepath.Glob(filepath.Join(l.o.Dir, "*.mem"))
	for _, path := range paths {
		f, e := os.Open(path)
		if errors.Is(e, fs.ErrNotExist) { // it has been written meanwhile
			continue
		}
		if e == nil {
			e = errors.Join(f.Sync(), f.Close())
		}
		err = errors.Join(err, e)
	}
	return err
}

// syncNow flushes what has been recorded, and reports whether that can be done again. The
// journal is first: the end of a session is in the database.
func (l *Log) syncNow() bool {
	err := l.journal.syncAll()
	if err == nil && !l.unreadable.Load() && l.unsynced.Swap(false) {
		err = l.flush()
	}
	if err != nil {
		l.fail(l.cannotFlush(err))
	}
	return err == nil
}

// cannotFlush is cannotWrite of an error of a flush: what the disk has is not known any
// more, and the kernel does not try again. What is pending for want of room is tried again.
func (l *Log) cannotFlush(err error) error {
	if errors.Is(err, errFull) {
		return err
	}
	return l.cannotWrite(fmt.Errorf("flush to the disk: %w", err))
}

// cannotWrite returns why nothing can be written until the log is opened again.
func (l *Log) cannotWrite(err error) error {
	err = fmt.Errorf("%w; start again when it is good", err)
	l.unwritable.Store(&err)
	return err
}
