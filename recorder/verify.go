package recorder

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"golang.org/x/mod/sumdb/tlog"
)

// A Fault is a place where the log is not as it was written.
type Fault struct {
	Session string `json:"session,omitempty"` // empty: it is the tree's
	Block   int64  `json:"block"`             // -1: it is not one block's
	// Frame is the first that cannot be trusted, counted from 0, and After the time of
	// the one before it; both without meaning if Block is -1.
	Frame int       `json:"frame"`
	After time.Time `json:"after,omitzero"`
	What  string    `json:"what"`
}

func (f Fault) String() string {
	switch {
	case f.Session == "":
		return "the log: " + f.What
	case f.Block < 0:
		return fmt.Sprintf("session %s: %s", f.Session, f.What)
	}
	after := "the first"
	if !f.After.IsZero() {
		after = "behind " + f.After.Local().Format("2006-01-02 15:04:05.000")
	}
	return fmt.Sprintf("session %s: block %d: %s; frame %d, %s, is the first that cannot be trusted", f.Session, f.Block, f.What, f.Frame, after)
}

// A Report is what Verify has looked at, and what it has found.
type Report struct {
	Sessions int     `json:"sessions"`
	Deleted  int     `json:"deleted,omitempty"` // besides: of each, the deletion is in the tree
	Running  int     `json:"running"`           // of them: not in the tree yet
	Frames   int64   `json:"frames"`
	Faults   []Fault `json:"faults"`
	// Unverified are sessions of which it is not known, because their archive cannot be
	// reached, whether their frames are as they were.
	Unverified []Unverified `json:"unverified,omitempty"`
	Seen       *Checkpoint  `json:"-"` // nil: there is none, or it is not signed as it should be
}

// An Unverified is a session that could not be verified.
type Unverified struct {
	Session string `json:"session"`
	Why     string `json:"why"`
}

func (u Unverified) String() string {
	return fmt.Sprintf("session %s: not verified: %s", u.Session, u.Why)
}

func (r *Report) fault(session, what string, args ...any) {
	r.Faults = append(r.Faults, Fault{Session: session, Block: -1, What: fmt.Sprintf(what, args...)})
}

// VerifySession verifies one session: that its frames are those that were
// recorded, and, if it has ended, that it is in the tree. Where its archive cannot be
// reached, the Report says so.
func VerifySession(ctx context.Context, src Source, session, verifier string) (Report, error) {
	r := Report{Faults: []Fault{}}
	p, err := src.Proof(ctx, session)
	switch {
	case errors.Is(err, ErrNotEnded):
		s, err := src.Session(ctx, session)
		if err != nil {
			return r, err
		}
		if s.State != Running {
			r.fault(session, "it has ended, but is not in the tree")
		}
		return r, r.session(ctx, src, s)
	case errors.Is(err, ErrUnsigned):
		return r, err
	case err != nil:
		return r, fmt.Errorf("session %s: %w", session, err)
	}
	s, c, err := p.Check(verifier)
	if err != nil {
		r.fault(session, "%v", err)
		if json.Unmarshal(p.Record, &s) != nil {
			return r, nil
		}
	} else {
		r.Seen = &c
	}
	if s.ID != session {
		r.fault(session, "its record is another session's")
		return r, nil
	}
	return r, r.session(ctx, src, s)
}

// VerifyLog verifies all sessions, and that the tree is the one whose head is
// signed. With an older checkpoint, which may be nil, it verifies that the log
// goes on from there. done is called now and then with how many sessions are
// verified; it may be nil.
func VerifyLog(ctx context.Context, src Source, verifier string, older *Checkpoint, done func(sessions int)) (Report, error) {
	var before map[string]bool
	for range 5 {
		r, meanwhile, err := verifyLog(ctx, src, verifier, older, done)
		again := false // a session whose deletion is under no head, of two that were read one after the other
		for id := range meanwhile {
			again = again || before[id]
		}
		if again || len(meanwhile) == 0 && !errors.Is(err, ErrNoSession) {
			return r, err
		}
		before = meanwhile
	}
	return Report{}, errors.New("sessions are being deleted; verify again when they are")
}

// verifyLog also returns which sessions have, perhaps, been deleted meanwhile: their
// deletions are not under the head that was read first.
func verifyLog(ctx context.Context, src Source, verifier string, older *Checkpoint, done func(sessions int)) (r Report, meanwhile map[string]bool, err error) {
	meanwhile = map[string]bool{}
	r = Report{Faults: []Fault{}}
	// First the head: sessions may end meanwhile.
	note, err := src.Checkpoint(ctx)
	switch {
	case errors.Is(err, ErrUnsigned):
	case err != nil:
		return r, meanwhile, err
	default:
		if c, err := OpenCheckpoint(note, verifier); err != nil {
			r.fault("", "%v", err)
		} else {
			r.Seen = &c
		}
	}
	in := map[string]bool{}
	gone := map[string]*Deletion{} // whose deletion has not come yet
	var t roots
	next := int64(0)
	for leaf, err := range src.Leaves(ctx) {
		if err != nil {
			return r, meanwhile, err
		}
		if r.Seen != nil && leaf.Index >= r.Seen.Size {
			break // it has ended meanwhile
		}
		if leaf.Index != next {
			r.fault("", "sessions %d to %d are missing", next, leaf.Index-1)
		}
		next = leaf.Index + 1
		d := deletionOf(leaf)
		if d != nil && d.At == leaf.Index {
			if gone[d.Session] == nil {
				r.fault(d.Session, "it is deleted, and was not in the tree")
			}
			delete(gone, d.Session)
			t.add(tlog.RecordHash(leaf.Deletion))
			t.check(&r, older)
			r.Deleted++
			continue
		}
		if in[leaf.Session] {
			r.fault(leaf.Session, "it is in the tree twice")
		}
		in[leaf.Session] = true
		if d != nil && d.Leaf == leaf.Index {
			gone[d.Session] = d
			t.add(d.Hash)
			t.check(&r, older)
			continue
		}
		if leaf.Record == nil {
			r.fault(leaf.Session, "its record is missing")
			continue
		}
		t.add(tlog.RecordHash(leaf.Record))
		t.check(&r, older)
		var s Session
		if err := json.Unmarshal(leaf.Record, &s); err != nil || s.ID != leaf.Session {
			r.fault(leaf.Session, "its record cannot be read, or is another session's")
			continue
		}
		if err := r.session(ctx, src, s); err != nil {
			return r, meanwhile, err
		}
		if done != nil {
			done(r.Sessions)
		}
	}
	for id, d := range gone {
		if r.Seen != nil && d.At >= r.Seen.Size {
			meanwhile[id] = true
		}
		r.fault(id, "it is deleted, and its deletion is not in the tree")
	}
	switch {
	case r.Seen == nil && next > 0 && len(r.Faults) == 0:
		r.fault("", "there is no signed checkpoint")
	case r.Seen == nil:
	case t.size != r.Seen.Size:
		r.fault("", "the signed checkpoint is of %d sessions, and there are %d", r.Seen.Size, t.size)
	case t.head() != r.Seen.Head:
		r.fault("", "the sessions are not those of the signed checkpoint: a record is another one than it was, or their order is")
	}
	if older != nil && t.size < older.Size {
		r.fault("", "the older checkpoint is of %d sessions, and there are %d: the end of the log is missing", older.Size, t.size)
	}
	return r, meanwhile, r.others(ctx, src, in)
}

// others verifies the sessions that are not in the tree: they run, or have ended
// since, or somebody has put them there.
func (r *Report) others(ctx context.Context, src Source, in map[string]bool) error {
	for s, err := range src.Sessions(ctx) {
		if err != nil && !errors.Is(err, ErrDamaged) {
			return err
		}
		if in[s.ID] {
			continue
		}
		if err != nil {
			r.fault(s.ID, "its record cannot be read")
			continue
		}
		if s.State != Running {
			if _, err := src.Proof(ctx, s.ID); err != nil && !errors.Is(err, ErrUnsigned) {
				r.fault(s.ID, "it is not in the tree")
			}
		}
		if err := r.session(ctx, src, s); err != nil {
			return err
		}
	}
	return nil
}

// session verifies the blocks of a session.
func (r *Report) session(ctx context.Context, src Source, s Session) error {
	r.Sessions++
	running := s.State == Running
	if running {
		r.Running++
	}
	v := newCheck(s)
	for b, err := range src.Blocks(ctx, s.ID) {
		if errors.Is(err, ErrArchive) {
			r.Unverified = append(r.Unverified, Unverified{s.ID, err.Error()})
			return nil
		}
		if err != nil {
			return fmt.Errorf("session %s: %w", s.ID, err)
		}
		if !v.add(b) {
			break
		}
	}
	if v.fault == nil && !running {
		v.end()
	}
	r.Frames += int64(v.count)
	if v.fault != nil {
		r.Faults = append(r.Faults, *v.fault)
	}
	return nil
}

// A check verifies blocks, each by the one behind it: so it is the one that was
// changed that is named.
type check struct {
	session Session
	chain   chain  // of the records in blocks so far
	block   uint32 // the last one
	frames  blockReader
	fault   *Fault

	count int       // frames in good blocks
	last  time.Time // of the last of them

	held      bool // the last block is good if the next one says so
	heldCount int
	heldLast  time.Time
}

func newCheck(s Session) *check {
	v := &check{session: s, chain: chain{head: firstHash(s.ID)}}
	v.frames = blockReader{start: s.Start, chain: &v.chain}
	return v
}

func (v *check) bad(block uint32, what string) bool {
	v.fault = &Fault{Session: v.session.ID, Block: int64(block), Frame: v.count, After: v.last, What: what}
	return false
}

// trust counts the last block as good.
func (v *check) trust() {
	if v.held {
		v.count += v.heldCount
		if !v.heldLast.IsZero() {
			v.last = v.heldLast
		}
	}
	v.held, v.heldCount, v.heldLast = false, 0, time.Time{}
}

// add verifies a block, and returns false at a fault.
func (v *check) add(b Block) bool {
	next := v.chain.next
	if isLost(b.Bytes) {
		_, err := readHeader(b.Bytes)
		return v.bad(b.Number, err.Error())
	}
	if v.session.State != Running && int64(b.Number) >= v.session.Records {
		v.trust()
		return v.bad(b.Number, "it is not one of the session's")
	}
	if b.Number != next {
		if b.Number > next {
			v.trust()
			return v.bad(next, "it is missing")
		}
		return v.bad(b.Number, "it is there twice")
	}
	h, err := readHeader(b.Bytes)
	if err == nil && h.before != v.chain.head && v.held {
		return v.bad(v.block, "it is not the block that was recorded, or the one behind it is not")
	}
	if err != nil || h.before != v.chain.head {
		return v.bad(b.Number, "it is not the block that was recorded")
	}
	v.trust()
	damaged := error(nil)
	v.frames.read(b.Number, b.Bytes, func(f Frame, err error) bool {
		if err != nil {
			damaged = err
			return false
		}
		if f.Verdict.IsFrame() && !f.More {
			v.heldCount++
		}
		v.heldLast = f.Time
		return true
	})
	if damaged != nil {
		return v.bad(b.Number, damaged.Error())
	}
	v.held, v.block = true, b.Number
	if v.session.State == Running {
		v.trust()
	}
	return true
}

// end verifies that the last record is the session's last.
func (v *check) end() {
	switch {
	case int64(v.chain.next) < v.session.Records:
		v.trust()
		v.bad(v.chain.next, "it is missing")
	case v.chain.ends(v.session):
		v.trust()
	case v.held:
		v.bad(v.block, "it is not the block that was recorded")
	default:
		v.bad(0, "the session's record names another one")
	}
}

// roots are the heads of the complete trees that leaves make, the largest first.
type roots struct {
	size  int64
	trees []struct {
		head  tlog.Hash
		level int
	}
}

func (r *roots) add(h tlog.Hash) {
	level := 0
	for n := len(r.trees) - 1; n >= 0 && r.trees[n].level == level; n-- {
		h = tlog.NodeHash(r.trees[n].head, h)
		level++
		r.trees = r.trees[:n]
	}
	r.trees = append(r.trees, struct {
		head  tlog.Hash
		level int
	}{h, level})
	r.size++
}

// check compares the tree with an older one, which may be nil, when it is as large.
func (t *roots) check(r *Report, older *Checkpoint) {
	if older != nil && t.size == older.Size && t.head() != older.Head {
		r.fault("", "a session that was on record at the older checkpoint is another one now")
	}
}

// head returns the hash of the tree of all leaves.
func (r *roots) head() tlog.Hash {
	if len(r.trees) == 0 {
		return sha256.Sum256(nil)
	}
	h := r.trees[len(r.trees)-1].head
	for n := len(r.trees) - 2; n >= 0; n-- {
		h = tlog.NodeHash(r.trees[n].head, h)
	}
	return h
}
