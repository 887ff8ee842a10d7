package recorder

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dgraph-io/badger/v4"
)

// A session that was long beside others comes to the database in small blocks, which
// hardly compress. When it has ended, they are rewritten into large ones. The records stay
// as they are and hang on the same chain, whose head is in the session's record and
// that in the tree: so the end need not wait for it, and nothing that was changed in
// the log becomes good by being rewritten. What does not hang on the chain stays as it
// is, with all that is behind it.
//
// A run of blocks becomes one in two steps, so that neither a kill nor a loss of power
// takes any of it:
//
//	1  the new block is written, and w/<session> names it: nobody sees it yet
//	   (all of that is flushed to the disk)
//	2  the old ones are deleted, and w/<session> names none: it is in their place
//
// Open undoes what was between the two. Readers see what is there at one moment
// ([Log.blocks]); one that comes back for more finds its place by the number of a
// record, which stays the same.

// rewriteKey is of a session whose blocks shall be rewritten. Its value is what is
// behind the prefix in the key of the block that is being made, or empty.
func rewriteKey(id string) []byte { return []byte("w/" + id) }

// maxRun is how many blocks become one at most: a transaction takes only so many, and
// other sessions wait for it.
const maxRun = 4096

// retryTime is when what could not be rewritten is tried again.
const retryTime = 10 * time.Second

// rewrites is the work that Open starts.
type rewrites struct {
	bell  bell        // there is something to rewrite
	hurry atomic.Bool // somebody waits

	// Held from when blocks are read until another is in their place: who deletes a
	// session's blocks holds it, too.
	sync.Mutex
}

// Settle waits until the sessions that have ended are rewritten.
func (l *Log) Settle(ctx context.Context) error {
	l.rewrites.hurry.Store(true)
	defer l.rewrites.hurry.Store(false)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		left := slices.ContainsFunc(l.tails.all(), func(t *tail) bool { return !l.isLive(t.session) })
		err := l.keys(rewriteKey(""), func(string) bool { left = true; return false })
		if err != nil || !left {
			return err
		}
		if l.failed.Load() {
			return ErrUnavailable
		}
		l.rewrites.bell.ring()
		l.tails.bell.ring()
		select {
		case <-tick.C:
		case <-l.closing:
			return errors.New("the log is being closed")
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// undoRewrites takes away blocks that were made, but are not in their place yet.
func (l *Log) undoRewrites() error {
	var undo []write
	err := l.scan([]byte("w/"), false, func(key, made []byte) (bool, error) {
		if len(made) > 0 {
			id := string(key[len("w/"):])
			undo = append(undo, write{append(blockPrefix(id), made...), nil}, write{rewriteKey(id), []byte{}})
		}
		return true, nil
	})
	if err != nil || len(undo) == 0 {
		return err
	}
	return l.commit(undo...)
}

// rewriteAll rewrites the sessions that have ended, until the log is closed.
func (l *Log) rewriteAll() {
	for {
		ids, err := l.someIDs(rewriteKey(""))
		for _, id := range ids {
			err = errors.Join(err, l.rewrite(id))
			if l.closed() {
				return
			}
		}
		if err == nil && len(ids) > 0 {
			continue // there may be more
		}
		if err != nil {
			l.o.Log.Warn("recordings cannot be rewritten now", "error", err)
		}
		if !l.await(l.rewrites.bell, err, retryTime) {
			return
		}
	}
}

// rewrite brings the blocks of a session together.
func (l *Log) rewrite(id string) error {
	s, err := l.session(id)
	switch {
	case errors.Is(err, ErrNoSession): // it has been deleted
		return l.commit(write{rewriteKey(id), nil})
	case err != nil:
		return err
	}
	if t := l.tails.get(id); t != nil {
		if err := l.drain(t, 0, thorough); err != nil {
			return err
		}
	}
	at := chain{head: firstHash(id)}
	for done := false; !done; {
		began := time.Now()
		at, done, err = l.rewriteFrom(s, at)
		if errors.Is(err, ErrDamaged) {
			l.o.Log.Error("a recording is damaged, and stays as it is from there on", "session", id, "error", err)
			break
		}
		if err != nil {
			return err
		}
		if !l.rest(began) {
			return nil
		}
	}
	return l.commit(write{rewriteKey(id), nil})
}

// rest waits for as long as has been worked, for sessions that run need the processor. It
// returns false if the log is being closed.
func (l *Log) rest(began time.Time) bool {
	if l.rewrites.hurry.Load() {
		return !l.closed()
	}
	select {
	case <-time.After(time.Since(began)):
		return true
	case <-l.closing:
		return false
	}
}

// A run is blocks of a session that become one.
type run struct {
	keys    [][]byte // of the blocks
	size    int      // of all of them, in bytes
	records []byte
	from    chain // what it hangs on
	to      chain // its last record
}

// rewriteFrom makes one block of those behind the records of a chain, as many as there
// is room for. It returns the chain to the last of them, and whether that is the
// session's last. What is wrong is an error that wraps [ErrDamaged].
func (l *Log) rewriteFrom(s Session, at chain) (chain, bool, error) {
	l.rewrites.Lock()
	defer l.rewrites.Unlock()
	r, done, wrong := l.gather(s, at)
	if wrong != nil && !errors.Is(wrong, ErrDamaged) {
		return at, false, wrong
	}
	if len(r.keys) > 1 {
		if err := l.replace(s.ID, r); err != nil {
			return at, false, err
		}
	}
	return r.to, done, wrong
}

// gather reads the blocks that become one. Each is good only if the one behind it, or
// the session's record, hangs on it: so what is damaged keeps a block of its own.
func (l *Log) gather(s Session, at chain) (run, bool, error) {
	r, good := run{from: at, to: at}, run{} // good is r without its last block
	var (
		wrong  error
		full   bool
		buffer []byte
	)
	damaged := func(n uint32, what string) (bool, error) {
		wrong = fmt.Errorf("%w: block %d: %s", ErrDamaged, n, what)
		return false, nil
	}
	last := at.next // the number of the last block
	err := l.blockKeys(context.Background(), s.ID, at.next, func(key []byte, n uint32, b []byte) (bool, error) {
		if n != r.to.next {
			return damaged(r.to.next, "it is missing")
		}
		h, records, err := openBlock(buffer, b)
		if err != nil {
			return damaged(n, err.Error())
		}
		buffer = records
		if h.before != r.to.head {
			if len(r.keys) > 0 {
				r = good
			}
			return damaged(last, "it is not the block that was recorded, or the one behind it is not")
		}
		if len(r.keys) > 0 && (len(r.records)+len(records) > rewriteSize || len(r.keys) == maxRun) {
			full = true
			return false, nil
		}
		good, last = r, n
		r.keys, r.records = append(r.keys, append([]byte(nil), key...)), append(r.records, records...)
		r.size += len(key) + len(b)
		if err := r.to.addAll(records); err != nil {
			r = good
			return damaged(n, err.Error())
		}
		if r.to.next != n+h.count {
			r = good
			return damaged(n, "it does not have as many records as it says")
		}
		return true, nil
	})
	if err != nil {
		return r, false, err
	}
	if wrong == nil && !full && !r.to.ends(s) {
		if len(r.keys) > 0 {
			r = good
		}
		damaged(last, "the session's record names another end")
	}
	return r, !full, wrong
}

// replace puts one block in the place of a run.
func (l *Log) replace(id string, r run) error {
	first := r.keys[0]
	made := append([]byte(nil), first...)
	made[len(made)-1]++
	block := sealBlock(nil, thorough, r.from.head, r.to.next-r.from.next, r.records)
	if len(block) > r.size-r.size/10 { // it is not worth it: pictures, say
		return nil
	}
	if err := l.put([]*commit{{writes: []write{{made, block}, {rewriteKey(id), made[len(blockPrefix(id)):]}}}}); err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	if l.o.stepped != nil {
		l.o.stepped(1)
	}
	if err := l.flushTables(); err != nil {
		return fmt.Errorf("%w: flush to the disk: %w", ErrUnavailable, err)
	}
	writes := make([]write, 0, len(r.keys)+1)
	for _, key := range r.keys {
		writes = append(writes, write{key, nil})
	}
	if err := l.put([]*commit{{writes: append(writes, write{rewriteKey(id), []byte{}})}}); err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	l.unsynced.Store(true)
	l.dead.Add(int64(r.size))
	if l.o.stepped != nil {
		l.o.stepped(2)
	}
	return nil
}

// blocks calls f with the blocks of a session, from the one that has a record on,
// until it returns false. One that cannot be read is f's as one that is lost.
func (l *Log) blocks(ctx context.Context, session string, from uint32, f func(n uint32, b []byte) (bool, error)) error {
	return l.blockKeys(ctx, session, from, func(_ []byte, n uint32, b []byte) (bool, error) { return f(n, b) })
}

// blockKeys is blocks, with their keys; those that are in the journal only, or archived,
// have none.
func (l *Log) blockKeys(ctx context.Context, session string, from uint32, f func(key []byte, n uint32, b []byte) (bool, error)) error {
	s, err := l.session(session)
	if err != nil && !errors.Is(err, ErrDamaged) {
		return err
	}
	tail, end := l.tails.get(session).sealed(from) // before the database is looked at: that has what is in it no more
	next, goOn := from, true
	for from < end {
		if err := ctx.Err(); err != nil {
			return err
		}
		var away *archived
		err := l.view(func(txn *badger.Txn) (err error) {
			if away, err = archivedIn(txn, session); away == nil && err == nil {
				next, goOn, err = blocksIn(ctx, txn, session, from, end, f)
			}
			return err
		})
		if away != nil {
			return l.fetch(ctx, away, from, func(n uint32, b []byte) (bool, error) { return f(nil, n, b) })
		}
		if err != nil || !goOn {
			return err
		}
		// Badger ends a scan at a block of a table that it cannot read.
		if int64(next) >= s.Records {
			break
		}
		from = next + 1
	}
	for _, b := range tail {
		if h, err := readHeader(b.Bytes); err == nil && b.Number+h.count <= next {
			continue // another that has come to the database since has it, too
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if goOn, err := f(nil, b.Number, b.Bytes); err != nil || !goOn {
			return err
		}
	}
	return nil
}

// lostMark begins what is no block, by its version, and stands in the place of one.
const lostMark = "\x00lost: "

// lost stands in the place of a block whose bytes cannot be had, and says why.
func lost(why string) []byte { return []byte(lostMark + why) }

func isLost(b []byte) bool { return bytes.HasPrefix(b, []byte(lostMark)) }

var unreadable = lost("cannot be read")

// stillOpen stands in the place of a block that is in the database and hangs on nothing: there
// is nothing that says that it is whole.
var stillOpen = lost("has no hash")

// blocksIn is blockKeys at one moment, of what begins before a record, as far as tables
// can be read. It returns the record that would be next, and whether f has asked for
// more.
func blocksIn(ctx context.Context, txn *badger.Txn, session string, from, end uint32, f func(key []byte, n uint32, b []byte) (bool, error)) (next uint32, more bool, err error) {
	blocks, err := openBlocks(txn, session)
	if err != nil {
		return from, false, err
	}
	start := from
	if from > 0 { // it may be in the middle of a block
		err := blocks.each(ctx, from, true, func(_ []byte, n uint32, b []byte) (bool, error) {
			if h, err := readHeader(b); err == nil && n+h.count > from {
				start = n
			}
			return false, nil
		})
		if err != nil {
			return from, false, err
		}
	}
	next, more = from, true
	err = blocks.each(ctx, start, false, func(key []byte, n uint32, b []byte) (bool, error) {
		if n >= end {
			return false, nil
		}
		count := uint32(1)
		if h, err := readHeader(b); err == nil {
			count = h.count
		}
		next = max(next, n+count)
		var err error
		more, err = f(key, n, b)
		return more, err
	})
	return next, more, err
}

// A sessionBlocks is what the database has of a session's blocks at one moment.
type sessionBlocks struct {
	txn    *badger.Txn
	id     string
	unseen []byte // behind the prefix of the block that is not in its place
}

func openBlocks(txn *badger.Txn, session string) (sessionBlocks, error) {
	unseen, err := valueOf(txn, rewriteKey(session))
	return sessionBlocks{txn, session, unseen}, err
}

// each calls f with the blocks whose first record is that one or behind it, or, backwards,
// in front of it, until f returns false.
func (s sessionBlocks) each(ctx context.Context, from uint32, backwards bool, f func(key []byte, n uint32, b []byte) (bool, error)) error {
	o := badger.IteratorOptions{Prefix: blockPrefix(s.id), Reverse: backwards}
	start := blockKey(s.id, from, 0)
	if backwards {
		start[len(start)-1] = 0xff
	} else {
		o.PrefetchValues, o.PrefetchSize = true, 4
	}
	it := s.txn.NewIterator(o)
	defer it.Close()
	for it.Seek(start); it.Valid(); it.Next() {
		if err := ctx.Err(); err != nil {
			return err
		}
		key := it.Item().Key()
		at := key[len(o.Prefix):]
		if len(at) != 5 || string(at) == string(s.unseen) {
			continue
		}
		var (
			goOn bool
			err  error
		)
		n := binary.BigEndian.Uint32(at)
		wrong := it.Item().Value(func(b []byte) error {
			if h, bad := readHeader(b); bad == nil && h.open() {
				b = stillOpen
			}
			goOn, err = f(key, n, b)
			return nil
		})
		if wrong != nil {
			goOn, err = f(key, n, unreadable)
		}
		if err != nil || !goOn {
			return err
		}
	}
	return nil
}
