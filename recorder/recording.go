package recorder

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"
)

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
	if s.Keep == 0 {
		s.Keep = int64(l.o.Keep / time.Second)
	}
	s.Keep = max(s.Keep, 0)
	s.State = Running
	r := &Recording{log: l, began: s.Start, tail: newTail(s.ID), encoding: encoding{memory: &l.memory}}
	s.Start = s.Start.Round(0) // the monotonic clock ends with the process
	r.session = s
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
	tail  *tail

	mu      sync.Mutex
	session Session
	next    uint32  // the number of the next record
	open    [2]bool // by direction: more of a frame is to come
	err     error   // of an append; sticky, for what is on record behind it is uncertain
	sealer  *sealer // of originals; nil: none are kept

	encoding encoding // of what is being appended

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
	if r.session.State != Running {
		return fmt.Errorf("%w: the session has ended", ErrUnavailable)
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
	e := &r.encoding
	e.encode(r.session.Start, r.next, frames)
	defer clear(e.blocks) // what is drained shall be free
	if e.next < r.next {
		r.err = fmt.Errorf("%w: the recording has as many records as can be counted", ErrUnavailable)
		return r.err
	}
	if err := r.log.enter(r.tail, e.blocks, r.open[0] || r.open[1]); err != nil {
		r.err = err
		return err
	}
	r.next = e.next
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
	chain := r.tail.hang()
	r.session.Records, r.session.Head = chain.names()
	r.sealer = nil // and its key with it
	defer r.wake()
	return r.finish()
}

// finish writes the end. If that fails the recording stays among the live ones,
// and Ready writes it when the log is available again. r.mu is held.
func (r *Recording) finish() error {
	err := r.log.complete(r.tail)
	if err == nil {
		err = r.log.finish(r.session, r.tail.isSmall())
	}
	if err != nil {
		r.log.late.Store(true)
		return err
	}
	r.log.mu.Lock()
	delete(r.log.live, r.session.ID)
	r.log.mu.Unlock()
	r.log.tails.bell.ring()
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
		if r.session.State != Running && l.isLive(r.session.ID) { // else it has been finished meanwhile
			err = r.finish()
		}
		r.mu.Unlock()
		if err != nil {
			return err
		}
	}
	return nil
}

// finish writes a session that runs no longer, and makes it a leaf of the tree. Then
// its blocks are rewritten if several are small.
func (l *Log) finish(s Session, small bool) error {
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
	writes := append(leaf, write{sessionKey(s.ID), b}, write{openKey(s.ID), nil})
	if s.Keep > 0 {
		writes = append(writes, write{dueKey(&s), []byte{}})
	}
	if small {
		writes = append(writes, write{rewriteKey(s.ID), []byte{}})
		defer l.rewrites.bell.ring()
	}
	if err := l.commit(writes...); err != nil {
		return err
	}
	t.grown()
	l.index.ends(s.ID)
	return nil
}
