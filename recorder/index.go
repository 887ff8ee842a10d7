package recorder

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/dgraph-io/badger/v4"

	"example.com/broker/codec"
)

// The index finds sessions without reading all of them. It is beside the record: it can
// be made again from it, and what it finds is looked at before it is believed. In the
// database:
//
//	x/v                    its version
//	x/u/<session>          what is in the session is not indexed: it runs, or its turn has
//	                       not come
//	x/m/<session>          there is too much in it to be indexed
//	x/f/<field><value>\0<session>  the session has that value; empty
//	x/t/<session>          the tools that it called, in JSON
//	x/w/<session>          its words: hashes, 4 bytes little-endian each
//
// Fields: s subject, g group, v server, t tool, d verdict, e state, l length. Subject,
// groups and server are written with the session's start, where x/u is; the rest in the
// background when it has ended, in the commit that takes x/u away. So kill -9 loses
// nothing: what has x/u or x/m is read. What is in x/u and x/w is in memory, too: keys
// that come and go leave marks in Badger, which a walk over them has to pass.
//
// The words of many sessions become a segment, and are in x/w no longer: see segment.go.

const (
	indexVersion = "1"

	maxTools = 1024 // of a session
	maxValue = 128  // bytes of a value in a key; what is longer is cut
	maxCall  = 32 << 20

	idSize = 16 // of a session's id

	indexPause = 10 * time.Second // after a failure
)

// The fields of x/f.
const (
	fieldSubject = 's'
	fieldGroup   = 'g'
	fieldServer  = 'v'
	fieldTool    = 't'
	fieldVerdict = 'd'
	fieldState   = 'e'
	fieldLength  = 'l'
)

var (
	versionKey = []byte("x/v")
	empty      = []byte{}
	waits      = []byte("-")
)

func unindexedKey(id string) []byte { return []byte("x/u/" + id) }
func muchKey(id string) []byte      { return []byte("x/m/" + id) }
func toolsKey(id string) []byte     { return []byte("x/t/" + id) }
func wordsKey(id string) []byte     { return []byte("x/w/" + id) }

// fieldPrefix is in front of the sessions with that value.
func fieldPrefix(field byte, value string) []byte {
	b := append([]byte("x/f/"), field)
	for _, c := range []byte(value[:min(len(value), maxValue)]) {
		if c == 0 { // ends a value; what is found by mistake is looked at
			c = ' '
		}
		b = append(b, c)
	}
	return append(b, 0)
}

func posting(field byte, value, id string) write {
	return write{append(fieldPrefix(field, value), id...), empty}
}

// startPostings are what is known of a session at its start.
func startPostings(s *Session) []write {
	w := []write{posting(fieldSubject, s.Subject, s.ID), posting(fieldServer, s.Server, s.ID)}
	for _, g := range s.Groups {
		w = append(w, posting(fieldGroup, g, s.ID))
	}
	return w
}

// endPostings are what is known of it at its end, but for what is in its frames.
func endPostings(s *Session) []write {
	w := []write{posting(fieldState, s.State, s.ID), posting(fieldLength, lengthClass(s), s.ID)}
	for _, v := range s.verdicts() {
		w = append(w, posting(fieldVerdict, v, s.ID))
	}
	return w
}

// The classes of length: class k is less than lengthClasses[k] long. So whoever looks
// for sessions that were there after a moment knows, of each class, when the first that
// may have been has begun.
var lengthClasses = func() (c []time.Duration) {
	for d := time.Second; d < 3*365*24*time.Hour; d *= 4 {
		c = append(c, d)
	}
	return c
}()

// lengthClass returns the class of a session that has ended, counted from what its id
// says of its start.
func lengthClass(s *Session) string {
	length := s.End.Sub(timeOf(s.ID))
	k, _ := slices.BinarySearch(lengthClasses, max(0, length)+1)
	return string(rune('a' + k))
}

// An indexer takes the frames of one session after another.
type indexer struct {
	words   wordSet
	tools   map[string]bool
	reading reading
	parser  codec.Parser
	call    []byte // of the client, in parts
	much    bool   // there is more than the index takes
}

func (x *indexer) reset() {
	x.words.reset()
	x.tools, x.call, x.much = map[string]bool{}, nil, false
	x.reading = reading{a: x.reading.a, b: x.reading.b, line: x.words.addLine}
}

// add takes the next frame of the session.
func (x *indexer) add(f *Frame) {
	if x.words.full {
		x.much = true
	} else {
		x.reading.frame(f, x.words.addText)
	}
	line, whole := x.callOf(f)
	if !whole {
		return
	}
	if tool := toolOf(&x.parser, line); tool != "" && !x.tools[tool] {
		if len(x.tools) == maxTools || len(tool) > maxValue {
			x.much = true
			return
		}
		x.tools[tool] = true
	}
}

// callOf returns a frame of the client, when it is whole. What is longer than maxCall
// is no call: the broker lets none through.
func (x *indexer) callOf(f *Frame) (line []byte, whole bool) {
	if f.Direction != codec.C2S || !f.Verdict.IsFrame() || f.Verdict == Answered {
		return nil, false
	}
	if f.Verdict == Blocked || !f.More && x.call == nil {
		return f.Bytes, true
	}
	if len(x.call)+len(f.Bytes) <= maxCall {
		x.call = append(x.call, f.Bytes...)
	}
	if f.More {
		return nil, false
	}
	line, x.call = x.call, nil
	return line, true
}

// toolOf returns the tool that a frame calls, or "".
func toolOf(p *codec.Parser, line []byte) string {
	f, err := p.Parse(line, codec.C2S)
	if err != nil || string(f.Method) != "tools/call" {
		return ""
	}
	return string(f.Name)
}

// writes are what the index has of a session that has ended, whose frames have all been
// added.
func (x *indexer) writes(s *Session) ([]write, error) {
	w := append(endPostings(s), write{unindexedKey(s.ID), nil})
	if x.isMuch() {
		return append(w, write{muchKey(s.ID), empty}), nil
	}
	tools := slices.Sorted(maps.Keys(x.tools))
	for _, t := range tools {
		w = append(w, posting(fieldTool, t, s.ID))
	}
	list, err := json.Marshal(tools)
	if err != nil {
		return nil, err
	}
	hashes := x.words.all()
	words := make([]byte, 0, 4*len(hashes))
	for _, h := range hashes {
		words = binary.LittleEndian.AppendUint32(words, h)
	}
	return append(w, write{toolsKey(s.ID), list}, write{wordsKey(s.ID), words}), nil
}

// isMuch reports whether there is more in the session than the index takes.
func (x *indexer) isMuch() bool { return x.much || x.words.full }

// index is the state of the index of a Log.
type index struct {
	// mu is held while the index of what has ended is written or taken away.
	mu      sync.Mutex
	indexer indexer
	deleted bool // sessions have been deleted since segments were looked at

	missing bool // it could not be begun; everything is read

	bell bell // something has ended

	sets struct {
		sync.Mutex
		ended     []string // sessions whose turn comes, in its order
		unindexed []string // sessions with x/u, sorted
		loose     []string // those with x/w
	}
}

// insert puts an id into a sorted list. Most are the newest.
func insert(list []string, id string) []string {
	i, ok := slices.BinarySearch(list, id)
	if ok {
		return list
	}
	return slices.Insert(list, i, id)
}

// without takes an id out of a sorted list.
func without(list []string, id string) []string {
	if i, ok := slices.BinarySearch(list, id); ok {
		return slices.Delete(list, i, i+1)
	}
	return list
}

// starts and ends are told of sessions: the first before it is on record, the second
// when its end is.
func (x *index) starts(id string) {
	x.sets.Lock()
	defer x.sets.Unlock()
	x.sets.unindexed = insert(x.sets.unindexed, id)
}

func (x *index) ends(id string) {
	x.sets.Lock()
	x.sets.ended = append(x.sets.ended, id)
	x.sets.Unlock()
	x.bell.ring()
}

// gone is told of a session that is not on record any more.
func (x *index) gone(id string) {
	x.sets.Lock()
	defer x.sets.Unlock()
	x.sets.unindexed, x.sets.loose = without(x.sets.unindexed, id), without(x.sets.loose, id)
}

// openIndex makes sure that each session is in the index, if only as one to be read.
func (l *Log) openIndex() error {
	l.index.bell = newBell()
	version, err := l.value(versionKey)
	if err != nil {
		return err
	}
	if string(version) == indexVersion {
		return l.loadIndex()
	}
	l.index.missing = true
	if version != nil {
		if err := l.db.DropPrefix([]byte("x/")); err != nil {
			return err
		}
	}
	var batch []write
	n := 0
	err = l.scan([]byte("s/"), false, func(key, value []byte) (bool, error) {
		var s Session
		if unmarshalSession(string(key[len("s/"):]), value, &s) != nil {
			return true, nil // whoever lists all is told
		}
		batch = append(append(batch, startPostings(&s)...), write{unindexedKey(s.ID), waits})
		if n++; n%1024 == 0 {
			if err := l.commit(batch...); err != nil {
				return false, err
			}
			batch = nil
		}
		return true, nil
	})
	if err != nil {
		return err
	}
	if err := l.commit(append(batch, write{versionKey, []byte(indexVersion)})...); err != nil {
		return err
	}
	l.index.missing = false
	return l.loadIndex()
}

// loadIndex takes what is in memory from the disk.
func (l *Log) loadIndex() error {
	x := &l.index.sets
	err := l.keys(unindexedKey(""), func(id string) bool { x.unindexed = append(x.unindexed, id); return true })
	if err != nil {
		return err
	}
	x.ended = slices.Clone(x.unindexed)
	slices.Reverse(x.ended) // the newest are looked for first
	l.index.deleted = true
	return l.keys(wordsKey(""), func(id string) bool { x.loose = append(x.loose, id); return true })
}

// keepIndex indexes what has ended, until the log is closed.
func (l *Log) keepIndex() {
	ctx, cancel := l.untilClosed()
	defer cancel()
	for {
		err := l.indexEnded(ctx)
		if err == nil {
			err = l.tidyIndex(ctx)
		}
		if !l.await(l.index.bell, err, indexPause) {
			return
		}
	}
}

// indexEnded indexes what has ended.
func (l *Log) indexEnded(ctx context.Context) error {
	x := &l.index.sets
	last := time.Now()
	for done := 0; ; done++ {
		x.Lock()
		left := len(x.ended)
		if left == 0 {
			x.ended = nil
			x.Unlock()
			return nil
		}
		id := x.ended[0]
		x.Unlock()
		if time.Since(last) > time.Minute {
			last = time.Now()
			l.o.Log.Info("sessions are being indexed", "done", done, "left", left)
		}
		if err := l.indexSession(ctx, id); err != nil {
			return err
		}
		x.Lock()
		x.ended = x.ended[1:]
		full := len(x.loose) >= l.o.segment
		x.Unlock()
		if full {
			if err := l.tidyIndex(ctx); err != nil {
				return err
			}
		}
	}
}

// indexSession indexes a session that has ended. Where that cannot be, it is read
// whenever sessions are looked for.
func (l *Log) indexSession(ctx context.Context, id string) error {
	err := l.readForIndex(ctx, id)
	if err != nil && ctx.Err() == nil && !errors.Is(err, ErrUnavailable) {
		l.o.Log.Warn("a session cannot be indexed", "session", id, "error", err)
		return nil
	}
	return err
}

func (l *Log) readForIndex(ctx context.Context, id string) error {
	s, err := l.session(id)
	if errors.Is(err, ErrNoSession) || err == nil && s.State == Running {
		return nil
	}
	if err != nil {
		return err
	}
	x := &l.index.indexer
	x.reset()
	for f, err := range l.frames(ctx, s) {
		if err == nil {
			x.add(&f)
		} else if !errors.Is(err, ErrDamaged) {
			return err
		}
	}
	writes, err := x.writes(&s)
	if err != nil {
		return err
	}
	l.index.mu.Lock()
	defer l.index.mu.Unlock()
	if mark, err := l.value(unindexedKey(id)); err != nil || mark == nil { // meanwhile it may have been deleted
		return err
	}
	if err := l.commit(writes...); err != nil {
		return err
	}
	sets := &l.index.sets
	sets.Lock()
	defer sets.Unlock()
	if sets.unindexed = without(sets.unindexed, id); !x.isMuch() {
		sets.loose = insert(sets.loose, id)
	}
	return nil
}

// forget returns what takes a session that has ended out of the index, for the commit
// that deletes it. Whoever calls it holds l.index.mu until that is made, and then calls
// forgotten. No frame has to be read for it. What segments have of a session goes with
// the last of their sessions.
func (l *Log) forget(s *Session) ([]write, error) {
	gone := append(startPostings(s), endPostings(s)...)
	list, err := l.value(toolsKey(s.ID))
	if err != nil {
		return nil, err
	}
	var tools []string
	if list != nil {
		if err := json.Unmarshal(list, &tools); err != nil {
			return nil, fmt.Errorf("index: %w", err)
		}
	}
	for _, t := range tools {
		gone = append(gone, posting(fieldTool, t, s.ID))
	}
	for _, key := range [][]byte{unindexedKey(s.ID), muchKey(s.ID), toolsKey(s.ID), wordsKey(s.ID)} {
		gone = append(gone, write{key: key})
	}
	for i := range gone {
		gone[i].value = nil
	}
	return gone, nil
}

// forgotten is told that what forget has said is committed. l.index.mu is held.
func (l *Log) forgotten(sessions ...string) {
	for _, id := range sessions {
		l.index.gone(id)
	}
	l.index.deleted = true
	l.index.bell.ring()
}

// tidyIndex makes segments where there are words for one, and deletes those whose
// sessions are gone.
func (l *Log) tidyIndex(ctx context.Context) error {
	l.index.mu.Lock()
	defer l.index.mu.Unlock()
	if l.index.deleted {
		if err := l.finishSegment(); err != nil {
			return err
		}
		if err := l.dropSegments(); err != nil {
			return err
		}
		l.index.deleted = false
	}
	for l.index.isFull(l.o.segment) {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := l.makeSegment(); err != nil {
			return err
		}
	}
	return nil
}

// isFull reports whether there are n sessions for a segment.
func (x *index) isFull(n int) bool {
	x.sets.Lock()
	defer x.sets.Unlock()
	return len(x.sets.loose) >= n
}

// keys calls f with what is behind a prefix in its keys, until f returns false.
func (l *Log) keys(prefix []byte, f func(rest string) bool) error {
	return l.view(func(txn *badger.Txn) error {
		it := txn.NewIterator(badger.IteratorOptions{Prefix: prefix})
		defer it.Close()
		for it.Seek(prefix); it.Valid(); it.Next() {
			if !f(strings.TrimPrefix(string(it.Item().Key()), string(prefix))) {
				return nil
			}
		}
		return nil
	})
}

// someIDs returns some of the sessions that have a key of that prefix; none if none has.
func (l *Log) someIDs(prefix []byte) (ids []string, err error) {
	err = l.keys(prefix, func(id string) bool { ids = append(ids, id); return len(ids) < 1000 })
	return ids, err
}
