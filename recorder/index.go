package recorder

import (
	"bytes"
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
//	x/u/<session>          what is in the session is not indexed: it runs or its turn has
//	                       not come ("-"), or there is too much in it ("+")
//	x/f/<field><value>\0<session>  the session has that value; empty
//	x/t/<session>          the tools that it called, in JSON
//	x/w/<session>          its words: hashes, sorted, 4 bytes little-endian each
//
// Fields: s subject, g group, v server, t tool, d verdict, e state, l length. Subject,
// groups and server are written with the session's start, where x/u is; the rest in the
// background when it has ended, in the commit that takes x/u away. So kill -9 loses
// nothing: what has x/u is read.
//
// The words of many sessions become a segment, and are in x/w no longer:
//
//	x/g/<last><first>      the segment: its sessions, 16 bytes each, sorted
//	x/c/<bucket><last><first>  of words whose hash begins with bucket (12 bits in 2 bytes),
//	                       the rest of the hash (20 bits) and the place of the session
//	                       in the segment (12 bits): 4 bytes little-endian each, sorted
//	x/b                    the segment that is being made; what it has is void
//
// A word that few sessions have costs one look a segment and one a session that is in
// none yet; one that many have costs what is found. Of a session that is deleted, what a
// segment has of it stays until all of its sessions are deleted: 20 bits of a hash a word.

const (
	indexVersion = "1"

	segmentSessions = 1 << 12
	segmentWords    = 4 << 20 // a segment with as many is full, however few its sessions are
	bucketBits      = 12
	restBits        = 32 - bucketBits // of a hash

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
	versionKey  = []byte("x/v")
	buildingKey = []byte("x/b")
	empty       = []byte{}
	waits       = []byte("-")
	tooMuch     = []byte("+")
)

func unindexedKey(id string) []byte { return []byte("x/u/" + id) }
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
	x.tools, x.reading, x.call, x.much = map[string]bool{}, reading{a: x.reading.a, b: x.reading.b}, nil, false
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

// writes are what the index has of a session that has ended, whose frames have all been
// added.
func (x *indexer) writes(s *Session) ([]write, error) {
	w := endPostings(s)
	if x.much || x.words.full {
		return append(w, write{unindexedKey(s.ID), tooMuch}), nil
	}
	tools := slices.Sorted(maps.Keys(x.tools))
	for _, t := range tools {
		w = append(w, posting(fieldTool, t, s.ID))
	}
	list, err := json.Marshal(tools)
	if err != nil {
		return nil, err
	}
	hashes := x.words.sorted()
	words := make([]byte, 0, 4*len(hashes))
	for _, h := range hashes {
		words = binary.LittleEndian.AppendUint32(words, h)
	}
	return append(w, write{toolsKey(s.ID), list}, write{wordsKey(s.ID), words}, write{unindexedKey(s.ID), nil}), nil
}

// index is the state of the index of a Log.
type index struct {
	// mu is held while the index of what has ended is written or taken away.
	mu      sync.Mutex
	indexer indexer
	loose   int  // sessions whose words are in no segment
	deleted bool // sessions have been deleted since segments were looked at

	missing bool // it could not be begun; everything is read

	queue struct {
		sync.Mutex
		ended []string // sessions whose turn comes
	}
	wake chan struct{} // has one where something is queued
}

// openIndex makes sure that each session is in the index, if only as one to be read.
func (l *Log) openIndex() error {
	l.index.wake = make(chan struct{}, 1)
	version, err := l.value(versionKey)
	if err != nil || string(version) == indexVersion {
		return err
	}
	l.index.missing = true
	if err := l.db.DropPrefix([]byte("x/")); err != nil {
		return err
	}
	var batch []write
	n := 0
	err = l.scan([]byte("s/"), false, func(_, value []byte) (bool, error) {
		var s Session
		if err := json.Unmarshal(value, &s); err != nil {
			return false, fmt.Errorf("read log: %w", err)
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
	if n > 0 {
		l.o.Log.Info("sessions are being indexed", "sessions", n)
	}
	if err := l.commit(append(batch, write{versionKey, []byte(indexVersion)})...); err != nil {
		return err
	}
	l.index.missing = false
	return nil
}

// indexLater has a session indexed that has ended.
func (l *Log) indexLater(id string) {
	q := &l.index.queue
	q.Lock()
	q.ended = append(q.ended, id)
	q.Unlock()
	select {
	case l.index.wake <- struct{}{}:
	default:
	}
}

// keepIndex indexes what has ended, until the log is closed.
func (l *Log) keepIndex() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() { <-l.closing; cancel() }()
	for l.indexOld(ctx) != nil {
		if !l.pause() {
			return
		}
	}
	q := &l.index.queue
	for {
		q.Lock()
		ended := q.ended
		q.ended = nil
		q.Unlock()
		for len(ended) > 0 {
			if l.indexSession(ctx, ended[0]) == nil {
				ended = ended[1:]
			} else if !l.pause() {
				return
			}
		}
		if l.tidyIndex(ctx) != nil && !l.pause() {
			return
		}
		select {
		case <-l.index.wake:
		case <-l.closing:
			return
		}
	}
}

// pause waits after a failure. It returns false when the log is closed.
func (l *Log) pause() bool {
	select {
	case <-time.After(indexPause):
		return true
	case <-l.closing:
		return false
	}
}

// indexOld indexes what an earlier process has left.
func (l *Log) indexOld(ctx context.Context) error {
	l.index.mu.Lock()
	l.index.loose, l.index.deleted = 0, true
	err := l.keys(wordsKey(""), func(string) bool { l.index.loose++; return true })
	l.index.mu.Unlock()
	if err != nil {
		return err
	}
	prefix := unindexedKey("")
	last, n := time.Now(), 0
	for from := prefix; ; {
		var page []string
		err := l.scanFrom(prefix, from, false, func(key, value []byte) (bool, error) {
			from = append(bytes.Clone(key), 0)
			if bytes.Equal(value, waits) {
				page = append(page, string(key[len(prefix):]))
			}
			return len(page) < 256, nil
		})
		if err != nil || len(page) == 0 {
			return err
		}
		for _, id := range page {
			if err := l.indexSession(ctx, id); err != nil {
				return err
			}
		}
		if err := l.tidyIndex(ctx); err != nil {
			return err
		}
		if n += len(page); time.Since(last) > time.Minute {
			last = time.Now()
			l.o.Log.Info("sessions are being indexed", "done", n)
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
	mark, err := l.value(unindexedKey(id)) // meanwhile it may have been deleted
	if err != nil || !bytes.Equal(mark, waits) {
		return err
	}
	if err := l.commit(writes...); err != nil {
		return err
	}
	l.index.loose++
	return nil
}

// forget returns what takes a session out of the index, for the commit that deletes the
// session. Whoever calls it holds l.index.mu until that is made. Nothing has to be read
// but what stands in the index; what segments have goes with the last of their sessions.
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
	gone = append(gone, write{key: unindexedKey(s.ID)}, write{key: toolsKey(s.ID)}, write{key: wordsKey(s.ID)})
	for i := range gone {
		gone[i].value = nil
	}
	l.index.deleted = true
	return gone, nil
}

// tidyIndex makes a segment where there are words for one, and deletes those whose
// sessions are gone.
func (l *Log) tidyIndex(ctx context.Context) error {
	l.index.mu.Lock()
	defer l.index.mu.Unlock()
	if l.index.deleted {
		if err := l.dropSegments(); err != nil {
			return err
		}
		l.index.deleted = false
	}
	for l.index.loose >= l.o.segment {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := l.makeSegment()
		if err != nil {
			return err
		}
		if l.index.loose -= n; n == 0 { // some have been deleted
			l.index.loose = 0
		}
	}
	return nil
}

// A segment is named by the ids of its first and its last session.
type segment struct{ first, last string }

func (s segment) name() string { return s.last + s.first }

func segmentOf(name string) segment { return segment{first: name[idSize:], last: name[:idSize]} }

func segmentKey(s segment) []byte { return []byte("x/g/" + s.name()) }

func chunkKey(bucket wordHash, s segment) []byte {
	return append(binary.BigEndian.AppendUint16([]byte("x/c/"), uint16(bucket)), s.name()...)
}

// An entry of a chunk is the rest of a word's hash and the place of a session in the
// segment.
func entry(h wordHash, place int) uint32 { return h<<bucketBits | uint32(place) }

// makeSegment makes a segment of the oldest sessions that are in none, and returns how
// many there were.
func (l *Log) makeSegment() (int, error) {
	if err := l.finishSegment(); err != nil {
		return 0, err
	}
	var (
		ids     []byte
		n       int
		words   int
		buckets [1 << bucketBits][]uint32
		prefix  = wordsKey("")
	)
	err := l.scan(prefix, false, func(key, value []byte) (bool, error) {
		ids = append(ids, key[len(prefix):]...)
		for ; len(value) >= 4; value = value[4:] {
			h := binary.LittleEndian.Uint32(value)
			buckets[h>>restBits] = append(buckets[h>>restBits], entry(h, n))
			words++
		}
		n++
		return n < l.o.segment && words < segmentWords, nil
	})
	if err != nil || n == 0 {
		return 0, err
	}
	s := segment{first: string(ids[:idSize]), last: string(ids[len(ids)-idSize:])}
	if err := l.commit(write{buildingKey, []byte(s.name())}); err != nil {
		return 0, err
	}
	var batch []write
	size := 0
	for bucket, entries := range buckets {
		if len(entries) == 0 {
			continue
		}
		slices.Sort(entries)
		chunk := make([]byte, 0, 4*len(entries))
		for _, e := range entries {
			chunk = binary.LittleEndian.AppendUint32(chunk, e)
		}
		batch = append(batch, write{chunkKey(wordHash(bucket), s), chunk})
		if size += len(chunk); size > 64<<10 { // sessions that record wait for it
			if err := l.commit(batch...); err != nil {
				return 0, err
			}
			batch, size = nil, 0
		}
	}
	if err := l.commit(append(batch, write{segmentKey(s), ids})...); err != nil {
		return 0, err
	}
	return n, l.finishSegment()
}

// finishSegment ends the making of a segment: if it is there, what it was made of is
// not needed; if it is not, for the process died, what there is of it is void.
func (l *Log) finishSegment() error {
	name, err := l.value(buildingKey)
	if err != nil || name == nil {
		return err
	}
	s := segmentOf(string(name))
	ids, err := l.value(segmentKey(s))
	if err != nil {
		return err
	}
	if ids == nil {
		return l.dropSegment(s)
	}
	var gone []write
	for ; len(ids) >= idSize; ids = ids[idSize:] {
		gone = append(gone, write{key: wordsKey(string(ids[:idSize]))})
	}
	return l.commit(append(gone, write{key: buildingKey})...)
}

// dropSegments deletes the segments of which no session is left.
func (l *Log) dropSegments() error {
	segments, err := l.segments()
	if err != nil {
		return err
	}
	for _, s := range segments {
		left, err := l.isUsed(s)
		if err != nil {
			return err
		}
		if !left {
			if err := l.dropSegment(s); err != nil {
				return err
			}
		}
	}
	return nil
}

func (l *Log) isUsed(s segment) (bool, error) {
	ids, err := l.value(segmentKey(s))
	for ; len(ids) >= idSize && err == nil; ids = ids[:len(ids)-idSize] {
		var session []byte
		if session, err = l.value(sessionKey(string(ids[len(ids)-idSize:]))); session != nil {
			return true, nil
		}
	}
	return false, err
}

// dropSegment deletes a segment: first what makes it one.
func (l *Log) dropSegment(s segment) error {
	if err := l.commit(write{key: segmentKey(s)}, write{buildingKey, []byte(s.name())}); err != nil {
		return err
	}
	var gone []write
	for bucket := range wordHash(1 << bucketBits) {
		gone = append(gone, write{key: chunkKey(bucket, s)})
	}
	return l.commit(append(gone, write{key: buildingKey})...)
}

// segments returns the segments, the one with the newest session first.
func (l *Log) segments() (all []segment, err error) {
	err = l.keys([]byte("x/g/"), func(name string) bool {
		all = append(all, segmentOf(name))
		return true
	})
	slices.Reverse(all)
	return all, err
}

// keys calls f with what is behind a prefix in its keys, until f returns false.
func (l *Log) keys(prefix []byte, f func(rest string) bool) error {
	return l.db.View(func(txn *badger.Txn) error {
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
