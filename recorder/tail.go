package recorder

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dgraph-io/badger/v4"
	"golang.org/x/sync/errgroup"
)

// A tail is what the journal has of a session and the database does not. It is in memory,
// too, from where it is read. Its records are hung on the chain when they come to the
// database, are read, or the session ends: who records does not wait for that. They come to
// the database, as large blocks,
//
//   - when there is enough for one,
//   - when the session has ended,
//   - when it is in one of the oldest files of the journal, so that those can go,
//   - when the log is opened or closed.
//
// That is done in the background, at half the speed of a processor; where it falls behind,
// it does not pause, compresses less, and in the end whoever records does it himself. A
// block is in the database before it leaves the tail, and readers look at
// the tail first: so they see each once, in one of the two.
type tail struct {
	session string

	draining sync.Mutex // held while blocks of it go to the database; in front of the others

	hanging sync.Mutex // in front of mu
	chain   chain      // to the last record that hangs on it
	before  []hash     // the heads that it had in front of blocks of the tail, from the first on

	mu     sync.Mutex
	blocks []tailBlock
	size   int          // of them, in bytes
	file   *journalFile // that the session has recorded to last
	upTo   int64        // what must be flushed of the journal for all that the session has recorded
	small  int          // blocks in the database that shall be brought together
	loose  bool         // some others are larger than they shall be, for they were made quickly
	parts  bool         // a frame is under way that is recorded in parts
}

type tailBlock struct {
	openedBlock
	file *journalFile
}

func newTail(session string) *tail {
	return &tail{session: session, chain: chain{head: firstHash(session)}}
}

const (
	// journalAge is how many files of the journal what does not come together to a
	// large block may stay in.
	journalAge = 4
	// heldLimit is how many bytes all tails may have before whoever records waits.
	heldLimit = (journalAge + 2) * journalSize
	// drainStep is after how many bytes more, of what is enough for a block, the background
	// is told again: it looks at all tails then.
	drainStep = rewriteSize / 8
	// smallSize is how long the records of a block must be for it to stay as it is.
	smallSize = rewriteSize / 4
)

// tails are those that are not empty, by session.
type tails struct {
	sync.Mutex
	of map[string]*tail

	held      atomic.Int64 // bytes
	relieving sync.Mutex   // held by one of those who wait because that is too much
	bell      bell         // some can be drained
}

// all returns all tails.
func (t *tails) all() []*tail {
	t.Lock()
	defer t.Unlock()
	return slices.Collect(maps.Values(t.of))
}

// largest returns the largest tail that is not being drained, or nil.
func (t *tails) largest() (largest *tail) {
	most := 0
	for _, t := range t.all() {
		if !t.draining.TryLock() {
			continue
		}
		t.mu.Lock()
		if t.size > most {
			largest, most = t, t.size
		}
		t.mu.Unlock()
		t.draining.Unlock()
	}
	return largest
}

// get returns the tail of a session, or nil.
func (t *tails) get(session string) *tail {
	t.Lock()
	defer t.Unlock()
	return t.of[session]
}

// add puts a block at the end of a tail. It returns how much there is of that now.
func (t *tails) add(to *tail, b tailBlock) (size int) {
	to.mu.Lock()
	defer to.mu.Unlock()
	if len(to.blocks) == 0 {
		t.Lock()
		t.of[to.session] = to
		t.Unlock()
	}
	to.blocks, to.size = append(to.blocks, b), to.size+len(b.Bytes)
	t.held.Add(int64(len(b.Bytes)))
	return to.size
}

// take takes the first n blocks off a tail.
func (t *tails) take(from *tail, n int) []tailBlock {
	from.hanging.Lock()
	defer from.hanging.Unlock()
	from.before = from.before[min(n, len(from.before)):]
	from.mu.Lock()
	defer from.mu.Unlock()
	gone := from.blocks[:n]
	from.blocks = append([]tailBlock(nil), from.blocks[n:]...) // readers may have the others
	for _, b := range gone {
		from.size -= len(b.Bytes)
		t.held.Add(-int64(len(b.Bytes)))
	}
	if len(from.blocks) == 0 {
		t.Lock()
		delete(t.of, from.session)
		t.Unlock()
	}
	return gone
}

// read returns the blocks that are in a tail now.
func (t *tail) read() []tailBlock {
	if t == nil {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.blocks
}

// sealed returns the blocks that are in a tail now and have a record or what is behind it,
// as they would be in the database, and the number of the tail's first record. They are
// copies: who reads may keep them.
func (t *tail) sealed(from uint32) (blocks []Block, first uint32) {
	if t == nil {
		return nil, math.MaxUint32
	}
	t.hanging.Lock() // so that none is taken off meanwhile
	defer t.hanging.Unlock()
	t.hangAll()
	all := t.read()
	if len(all) == 0 {
		return nil, math.MaxUint32
	}
	for i, b := range all[:len(t.before)] {
		if h, err := readHeader(b.Bytes); err == nil && b.Number+h.count > from {
			blocks = append(blocks, Block{b.Number, sealRaw(nil, t.before[i], h.count, h.payload(b.Bytes))})
		}
	}
	return blocks, all[0].Number
}

// hang hangs the records of all blocks that are in the tail now on the chain; behind a gap,
// it goes on with what is there.
func (t *tail) hang() chain {
	t.hanging.Lock()
	defer t.hanging.Unlock()
	t.hangAll()
	return t.chain
}

// hangAll is hang. hanging is held.
func (t *tail) hangAll() {
	for _, b := range t.read()[len(t.before):] {
		t.hangNext(b)
	}
}

// hangNext hangs the records of the first block that does not hang on the chain. hanging is
// held.
func (t *tail) hangNext(b tailBlock) {
	t.before = append(t.before, t.chain.head)
	if h, err := readHeader(b.Bytes); err == nil {
		t.chain.addAll(h.payload(b.Bytes)) // what are no records, verify names
		t.chain.next = b.Number + h.count
	}
}

// isIn reports whether the tail has anything in files of the journal up to a number.
func (t *tail) isIn(number int) bool {
	b := t.read()
	return len(b) > 0 && b[0].file.number <= number
}

// isSmall reports whether there are blocks of the session that shall be brought together.
func (t *tail) isSmall() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	small := t.small
	if t.size > 0 && t.size < smallSize { // and that will be one more
		small++
	}
	return small > 1 || t.loose
}

// isLong reports whether a long frame is under way: then who records brings it to the
// database himself, so that there is never much of it in memory.
func (t *tail) isLong() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.parts
}

// enter puts blocks of a session on record, in the journal: all of them, or none. more says
// that more parts of a frame are to come.
func (l *Log) enter(t *tail, blocks []openedBlock, more bool) error {
	t.mu.Lock()
	t.parts = more
	t.mu.Unlock()
	if err := l.relieve(t); err != nil {
		return err
	}
	err := l.writable(entriesSize(blocks))
	var f *journalFile
	if err == nil {
		f, err = l.journalize(t, blocks)
	}
	if err := l.written(err); err != nil {
		return err
	}
	size, added := 0, 0
	for _, b := range blocks {
		size, added = l.tails.add(t, tailBlock{b, f}), added+len(b.Bytes)
	}
	if size >= rewriteSize && size/drainStep > (size-added)/drainStep {
		l.tails.bell.ring()
	}
	if l.o.still {
		return l.drain(t, 0, thorough)
	}
	return nil
}

// relieve drains the largest tail, or one that is about to become longer, where the
// background has fallen behind.
func (l *Log) relieve(t *tail) error {
	if l.tails.held.Load() > heldLimit {
		l.tails.relieving.Lock()
		defer l.tails.relieving.Unlock()
		if largest := l.tails.largest(); l.tails.held.Load() > heldLimit && largest != nil {
			return l.drain(largest, 0, quick)
		}
		return nil
	}
	t.mu.Lock()
	size, long := t.size, t.parts
	t.mu.Unlock()
	switch {
	case long && size >= blockSize/2:
		return l.drain(t, 0, quick)
	case size > 2*rewriteSize:
		return l.drain(t, rewriteSize, quick)
	}
	return nil
}

// journalize writes blocks, and flushes them if that is done always.
func (l *Log) journalize(t *tail, blocks []openedBlock) (*journalFile, error) {
	f, upTo, err := l.journal.add(t.session, t.file, blocks)
	if err != nil {
		err = fmt.Errorf("journal: %w", err)
		if !errors.Is(err, errBegin) && !isFull(err) {
			err = l.cannotWrite(err)
		}
		return nil, err
	}
	t.mu.Lock()
	t.file, t.upTo = f, upTo
	t.mu.Unlock()
	if l.o.Sync == SyncAlways {
		if err := l.journal.sync(upTo); err != nil {
			l.journal.release(slices.Repeat([]tailBlock{{file: f}}, len(blocks))) // no tail has them
			return nil, l.cannotFlush(err)
		}
	}
	return f, nil
}

// complete flushes what a session has recorded, before its end is in the database: after a
// loss of power it would have ended with more than there is.
func (l *Log) complete(t *tail) error {
	if l.o.Sync == SyncNone {
		return nil
	}
	t.mu.Lock()
	upTo := t.upTo
	t.mu.Unlock()
	if err := l.journal.sync(upTo); err != nil {
		return l.written(l.cannotFlush(err))
	}
	return nil
}

// drain brings what is in a tail to the database, until it has no more bytes than that.
func (l *Log) drain(t *tail, left int, e effort) error {
	t.draining.Lock()
	defer t.draining.Unlock()
	j := joins.Get().(*join)
	defer joins.Put(j)
	for {
		t.mu.Lock()
		blocks, size := t.blocks, t.size
		t.mu.Unlock()
		if len(blocks) == 0 || size <= left {
			return nil
		}
		if l.o.still {
			blocks = blocks[:1]
		}
		limit := rewriteSize
		if e == quick {
			limit = blockSize
		}
		block, n, err := j.first(t, blocks, e, limit)
		if err != nil {
			return err
		}
		if err := l.commit(write{blockKey(t.session, block.Number, 0), block.Bytes}); err != nil {
			return err
		}
		t.mu.Lock()
		switch {
		case len(j.records) < smallSize:
			t.small++
		case e == quick && !isAlike(len(j.records), len(block.Bytes)): // else it is small enough
			t.loose = true
		}
		t.mu.Unlock()
		l.release(l.tails.take(t, n))
	}
}

// release says that blocks are in no tail any more.
func (l *Log) release(blocks []tailBlock) {
	l.journal.release(blocks)
	l.memory.release(blocks)
}

// A join is the memory in which blocks of a tail become one.
type join struct{ records, block []byte }

var joins = sync.Pool{New: func() any { return new(join) }}

// first makes one block of the first of a tail, as many as there is room for up to a limit,
// and returns how many those are. It is valid until the next.
func (j *join) first(t *tail, blocks []tailBlock, e effort, limit int) (b Block, n int, err error) {
	before, count, n, err := j.gather(t, blocks, limit)
	if err != nil {
		return b, 0, err
	}
	j.block = sealBlock(j.block[:0], e, before, count, j.records)
	return Block{blocks[0].Number, j.block}, n, nil
}

// gather brings the records of first together, and hangs them on the chain where they do not
// yet: what has not been looked at for long is brought into the processor's caches once.
func (j *join) gather(t *tail, blocks []tailBlock, limit int) (before hash, count uint32, n int, err error) {
	t.hanging.Lock()
	defer t.hanging.Unlock()
	j.records = j.records[:0]
	for ; n < len(blocks) && blocks[n].Number == blocks[0].Number+count; n++ { // behind a gap, another begins
		h, err := readHeader(blocks[n].Bytes)
		if err != nil {
			return before, 0, 0, err
		}
		if n > 0 && len(j.records)+h.size > limit {
			break
		}
		if n == len(t.before) {
			t.hangNext(blocks[n])
		}
		j.records = append(j.records, h.payload(blocks[n].Bytes)...)
		count += h.count
	}
	return t.before[0], count, n, nil
}

// discard drops what is in the tail of a session that is deleted.
func (l *Log) discard(session string) {
	t := l.tails.get(session)
	if t == nil {
		return
	}
	t.draining.Lock()
	defer t.draining.Unlock()
	l.release(l.tails.take(t, len(t.read())))
}

// drainAll drains all tails, and removes the journal. Several go to the database together:
// with [SyncAlways], each transaction waits for the disk.
func (l *Log) drainAll() error {
	drains, ctx := errgroup.WithContext(context.Background())
	drains.SetLimit(16)
	for _, t := range l.tails.all() {
		drains.Go(func() error {
			if ctx.Err() != nil { // another could not
				return nil
			}
			return l.drain(t, 0, thorough)
		})
	}
	if err := drains.Wait(); err != nil {
		return err
	}
	return l.tidyJournal(true)
}

// drainReady drains the tails that are ready for it, and removes files of the journal that
// are not needed any more.
func (l *Log) drainReady() error {
	old := l.journal.older(journalAge)
	for _, t := range l.tails.all() {
		began, e := time.Now(), thorough
		if l.tails.held.Load() > heldLimit/2 {
			e = quick
		}
		left := rewriteSize
		ended := !l.isLive(t.session)
		if ended || t.isIn(old) {
			left = 0
		} else if t.isLong() {
			continue
		}
		if err := l.drain(t, left, e); err != nil {
			return err
		}
		if ended && e == thorough && !l.rest(began) {
			return nil
		}
	}
	return l.tidyJournal(false)
}

// tidyJournal removes files of the journal of which the database has all.
func (l *Log) tidyJournal(end bool) error {
	done := l.journal.done(end)
	if len(done) == 0 {
		return nil
	}
	if err := l.flushTables(); err != nil { // or a loss of power might take what neither has
		return l.written(l.cannotFlush(err))
	}
	return l.journal.remove(done)
}

// keepJournal drains what can be, until the log is closed.
func (l *Log) keepJournal() {
	for {
		err := l.drainReady()
		if err != nil {
			l.o.Log.Warn("the journal cannot be brought to the database now", "error", err)
		}
		if !l.await(l.tails.bell, err, retryTime) {
			return
		}
	}
}

// prepareJournal prepares files of the journal, until the log is closed.
func (l *Log) prepareJournal() {
	for l.await(l.journal.ahead, nil, 0) {
		l.journal.prepare()
	}
}

// loadJournal takes what a dead process has left in the journal for the tails.
func (l *Log) loadJournal() error {
	type place struct {
		tail *tail
		next uint32 // record that the database or the tail does not have
		end  int64  // of the session
	}
	places := map[string]place{}
	for _, f := range l.journal.files {
		f.of = map[string]bool{}
		var failed error
		err := f.read(func(session string, b Block) {
			h, err := readHeader(b.Bytes)
			if err != nil || failed != nil {
				return
			}
			p, known := places[session]
			if !known {
				p.tail = newTail(session)
				if p.tail.chain, p.next, p.end, failed = l.stored(session); failed != nil {
					return
				}
			}
			if b.Number >= p.next && int64(b.Number) < p.end {
				f.entries++
				f.of[session] = true
				l.tails.add(p.tail, tailBlock{openedBlock{Block: b}, f})
				p.next = b.Number + h.count
			}
			places[session] = p
		}, func(from, to int) {
			l.o.Log.Error("the journal is damaged, or its end was not written", "file", f.path, "from", from, "to", to)
		})
		if err := errors.Join(err, failed); err != nil {
			return err
		}
		f.loaded = true
	}
	return nil
}

// stored returns the chain to the last record of a session that the database has and that
// can be read, the number behind the last that it has, and how many records the session has,
// as far as that is known. Of one that is not on record, or is archived, it has all.
func (l *Log) stored(session string) (c chain, next uint32, end int64, err error) {
	c.head = firstHash(session)
	s, err := l.session(session)
	switch {
	case errors.Is(err, ErrNoSession):
		return c, math.MaxUint32, 0, nil
	case err != nil && !errors.Is(err, ErrDamaged):
		return c, 0, 0, err
	}
	end = math.MaxInt64
	if s.State != Running && err == nil {
		end = s.Records
	}
	err = l.view(func(txn *badger.Txn) error {
		if away, err := archivedIn(txn, session); away != nil || err != nil {
			next = math.MaxUint32
			return err
		}
		b, err := openBlocks(txn, session)
		if err != nil {
			return err
		}
		return b.each(context.Background(), math.MaxUint32, true, func(_ []byte, n uint32, b []byte) (bool, error) {
			h, records, err := openBlock(nil, b)
			if err != nil { // it was not written to its end: the journal has the records
				if next == 0 {
					next = n
				}
				return true, nil
			}
			c.head = h.before
			c.addAll(records)
			c.next = n + h.count
			next = max(next, c.next)
			return false, nil
		})
	})
	return c, next, end, err
}
