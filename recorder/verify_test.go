package recorder

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/dgraph-io/badger/v4"
	"golang.org/x/mod/sumdb/tlog"

	"example.com/broker/codec"
)

// openSigned opens a new log that signs its checkpoints, and returns what they are
// verified by.
func openSigned(t *testing.T, o Options) (l *Log, verifier string) {
	t.Helper()
	dir := t.TempDir()
	key, err := OpenKey(dir)
	if err != nil {
		t.Fatal(err)
	}
	if verifier, err = ReadVerifier(dir); err != nil {
		t.Fatal(err)
	}
	o.Dir, o.Key = filepath.Join(dir, "log"), key
	return open(t, o), verifier
}

// written makes a log of a few sessions with a few blocks each, of which the last
// still runs, and returns it with its verifier and the sessions' ids.
func written(t *testing.T) (l *Log, verifier string, ids []string) {
	t.Helper()
	l, verifier = openSigned(t, Options{still: true})
	for i := range 6 {
		r := start(t, l)
		for j := range 5 {
			frames := []Frame{{Bytes: fmt.Appendf(nil, "c%d.%d", i, j)}, {Direction: codec.S2C, Bytes: fmt.Appendf(nil, "s%d.%d", i, j)}}
			if err := r.Append(frames...); err != nil {
				t.Fatal(err)
			}
		}
		if ids = append(ids, r.ID()); i == 5 {
			break
		}
		if err := r.End(Ended, "closed"); err != nil {
			t.Fatal(err)
		}
	}
	return l, verifier, ids
}

func verified(t *testing.T, src Source, verifier string, older *Checkpoint) Report {
	t.Helper()
	r, err := VerifyLog(t.Context(), src, verifier, older, nil)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestVerify(t *testing.T) {
	l, verifier, ids := written(t)
	r := verified(t, l, verifier, nil)
	if len(r.Faults) > 0 || r.Sessions != 6 || r.Running != 1 || r.Frames != 60 || r.Seen == nil || r.Seen.Size != 5 {
		t.Errorf("%+v", r)
	}
	for i, id := range ids {
		r, err := VerifySession(t.Context(), l, id, verifier)
		if err != nil || len(r.Faults) > 0 || r.Frames != 10 || (r.Seen == nil) != (i == 5) {
			t.Errorf("session %d: %+v, %v", i, r, err)
		}
	}
	// The root is the one that tlog computes.
	if want, err := tlog.TreeHash(5, tlog.HashReaderFunc(func(at []int64) ([]tlog.Hash, error) { return l.tree.read(at) })); err != nil || want != r.Seen.Head {
		t.Errorf("tlog's root is %v, %v", want, err)
	}
}

// TestProof checks a proof without the log, and that one that is changed anywhere
// is none.
func TestProof(t *testing.T) {
	l, verifier, ids := written(t)
	p, err := l.Proof(t.Context(), ids[2])
	if err != nil {
		t.Fatal(err)
	}
	text, _ := p.MarshalText()
	var read Proof
	if err := read.UnmarshalText(text); err != nil {
		t.Fatal(err)
	}
	s, c, err := read.Check(verifier)
	if err != nil || s.ID != ids[2] || s.Records != 10 || c.Size != 5 {
		t.Errorf("%+v, %+v, %v", s, c, err)
	}
	again, _ := read.MarshalText()
	if !bytes.Equal(text, again) {
		t.Errorf("%s\nbecame\n%s", text, again)
	}
	for i := range text {
		changed := bytes.Clone(text)
		changed[i] ^= 1
		var p Proof
		if p.UnmarshalText(changed) == nil {
			if s, _, err := p.Check(verifier); err == nil && (s.ID != ids[2] || !bytes.Equal(p.Record, read.Record)) {
				t.Errorf("a changed byte %d makes a proof of something else", i)
			}
		}
	}
	if _, err := l.Proof(t.Context(), ids[5]); err != ErrNotEnded {
		t.Errorf("a session that runs has a proof: %v", err)
	}
	if _, err := l.Proof(t.Context(), "none"); err != ErrNoSession {
		t.Errorf("no session has a proof: %v", err)
	}
}

// TestTampered does to the log what somebody might who can write to it, but has
// no key. Blocks are changed so that their own checksums are right.
func TestTampered(t *testing.T) {
	for _, tt := range []struct {
		name string
		do   func(tm *tampering)
		want string
	}{
		{"a frame is changed", func(tm *tampering) { tm.set(blockKey(tm.ids[1], 4, 0), tm.forged(1, 4, "c1.2!")) }, "session ID1: block 4: it is not the block that was recorded"},
		{"the first block is", func(tm *tampering) { tm.set(blockKey(tm.ids[1], 0, 0), tm.forged(1, 0, "x")) }, "session ID1: block 0: it is not the block that was recorded"},
		{"the last block is", func(tm *tampering) { tm.set(blockKey(tm.ids[1], 8, 0), tm.forged(1, 8, "x")) }, "session ID1: block 8: it is not the block that was recorded"},
		{"a byte is", func(tm *tampering) {
			b := tm.get(blockKey(tm.ids[0], 6, 0))
			b[len(b)-1] ^= 1
			tm.set(blockKey(tm.ids[0], 6, 0), b)
		}, "session ID0: block 6: recording is damaged: block 6, behind frame 6: checksum mismatch; frame 6, behind"},
		{"a block is dropped", func(tm *tampering) { tm.set(blockKey(tm.ids[2], 2, 0), nil) }, "session ID2: block 2: it is missing; frame 2,"},
		{"the end is cut off", func(tm *tampering) { tm.set(blockKey(tm.ids[2], 8, 0), nil) }, "session ID2: block 8: it is missing; frame 8,"},
		{"all of it is", func(tm *tampering) {
			for n := range uint32(5) {
				tm.set(blockKey(tm.ids[2], 2*n, 0), nil)
			}
		}, "session ID2: block 0: it is missing; frame 0, the first,"},
		{"blocks are put in another order", func(tm *tampering) {
			a, b := tm.get(blockKey(tm.ids[3], 2, 0)), tm.get(blockKey(tm.ids[3], 4, 0))
			tm.set(blockKey(tm.ids[3], 2, 0), b)
			tm.set(blockKey(tm.ids[3], 4, 0), a)
		}, "session ID3: block 0: it is not the block that was recorded, or the one behind it is not"},
		{"a block is added", func(tm *tampering) { tm.set(blockKey(tm.ids[3], 10, 0), tm.forged(3, 10, "x")) }, "session ID3: block 10: it is not one of the session's"},
		{"a block comes from another session", func(tm *tampering) { tm.set(blockKey(tm.ids[3], 0, 0), tm.get(blockKey(tm.ids[2], 0, 0))) }, "session ID3: block 0: it is not the block that was recorded"},
		{"a block of a running session is changed", func(tm *tampering) { tm.set(blockKey(tm.ids[5], 2, 0), tm.forged(5, 2, "x")) }, "session ID5: block 4: it is not the block that was recorded"},
		{"a record is changed", func(tm *tampering) {
			tm.set(sessionKey(tm.ids[4]), bytes.Replace(tm.get(sessionKey(tm.ids[4])), []byte("ada"), []byte("eve"), 1))
		}, "the log: the sessions are not those of the signed checkpoint"},
		{"a session is dropped", func(tm *tampering) { tm.set(sessionKey(tm.ids[4]), nil) }, "session ID4: its record is missing"},
		{"a session is dropped with its leaf", func(tm *tampering) { tm.set(sessionKey(tm.ids[4]), nil); tm.set(leafKey(4), nil) }, "the log: the signed checkpoint is of 5 sessions, and there are 4"},
		{"a leaf in the middle is dropped", func(tm *tampering) { tm.set(leafKey(2), nil) }, "the log: sessions 2 to 2 are missing"},
		{"sessions are put in another order", func(tm *tampering) {
			tm.set(leafKey(1), []byte(tm.ids[2]))
			tm.set(leafKey(2), []byte(tm.ids[1]))
		}, "the log: the sessions are not those of the signed checkpoint"},
		{"a session is there twice", func(tm *tampering) { tm.set(leafKey(2), []byte(tm.ids[1])) }, "session ID1: it is in the tree twice"},
		{"a session is put in", func(tm *tampering) {
			tm.set(sessionKey("zzz"), bytes.Replace(tm.get(sessionKey(tm.ids[4])), []byte(tm.ids[4]), []byte("zzz"), 1))
		}, "session zzz: it is not in the tree"},
		{"the checkpoint is changed", func(tm *tampering) {
			tm.set(checkpointKey, bytes.Replace(tm.get(checkpointKey), []byte("\n5\n"), []byte("\n4\n"), 1))
		}, "the log: checkpoint: "},
		{"the checkpoint is dropped", func(tm *tampering) { tm.set(checkpointKey, nil) }, "the log: there is no signed checkpoint"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l, verifier, ids := written(t)
			tt.do(&tampering{t, l, ids})
			r := verified(t, l, verifier, nil)
			var got []string
			for _, f := range r.Faults {
				got = append(got, f.String())
			}
			want := tt.want
			for i, id := range ids {
				want = strings.ReplaceAll(want, fmt.Sprintf("ID%d", i), id)
			}
			if !strings.Contains(strings.Join(got, "\n"), want) {
				t.Errorf("found is %q, want %q", got, want)
			}
		})
	}
}

// TestOlderCheckpoint checks that who has the key and makes the log anew, but
// not the checkpoint that somebody has kept, is found out.
func TestOlderCheckpoint(t *testing.T) {
	l, verifier, ids := written(t)
	kept := verified(t, l, verifier, nil).Seen
	r := start(t, l)
	if err := r.End(Ended, "closed"); err != nil {
		t.Fatal(err)
	}
	if r := verified(t, l, verifier, kept); len(r.Faults) > 0 || r.Seen.Size != 6 {
		t.Errorf("the log has only grown: %+v", r)
	}
	tm := &tampering{t, l, ids}
	tm.set(sessionKey(ids[1]), bytes.Replace(tm.get(sessionKey(ids[1])), []byte("ada"), []byte("eve"), 1))
	tm.resign()
	if r := verified(t, l, verifier, nil); len(r.Faults) > 0 {
		t.Errorf("this forgery is for the older checkpoint to find: %v", r.Faults)
	}
	if r := verified(t, l, verifier, kept); len(r.Faults) != 1 || !strings.Contains(r.Faults[0].String(), "is another one now") {
		t.Errorf("found is %v", r.Faults)
	}
	tm.set(leafKey(5), nil)
	tm.set(leafKey(4), nil)
	l.tree.size = 4
	tm.set(sessionKey(ids[4]), nil)
	tm.set(sessionKey(r.ID()), nil)
	tm.resign()
	if r := verified(t, l, verifier, kept); !strings.Contains(fmt.Sprint(r.Faults), "the end of the log is missing") {
		t.Errorf("found is %v", r.Faults)
	}
}

// A tampering changes the log behind its back.
type tampering struct {
	t   *testing.T
	l   *Log
	ids []string
}

func (tm *tampering) get(key []byte) []byte {
	b, err := tm.l.value(key)
	if err != nil || b == nil {
		tm.t.Fatalf("%q: %v", key, err)
	}
	return b
}

func (tm *tampering) set(key, value []byte) {
	if err := tm.l.db.Update(func(txn *badger.Txn) error { return set(txn, write{key, value}) }); err != nil {
		tm.t.Fatal(err)
	}
}

// forged is a block in the place of one of a session's, which says that it is
// behind the same record, and has as many.
func (tm *tampering) forged(session int, n uint32, text string) []byte {
	s, err := tm.l.session(tm.ids[session])
	if err != nil {
		tm.t.Fatal(err)
	}
	c := chain{head: firstHash(s.ID)}
	for r := (blockReader{chain: &c}); c.next < n; {
		r.read(c.next, tm.get(blockKey(s.ID, c.next, 0)), func(Frame, error) bool { return true })
	}
	return blockOf(s.Start, c.head, []Frame{{Time: s.Start, Bytes: []byte(text)}, {Time: s.Start, Bytes: []byte(text)}})
}

// resign makes the tree anew, with the key.
func (tm *tampering) resign() {
	size := tm.l.tree.size
	tm.l.tree.size, tm.l.tree.edge = 0, nil
	for n := range size {
		id := string(tm.get(leafKey(n)))
		writes, err := tm.l.tree.add(id, tm.get(sessionKey(id)))
		if err != nil {
			tm.t.Fatal(err)
		}
		for _, w := range writes {
			tm.set(w.key, w.value)
		}
		tm.l.tree.grown()
	}
}

// served returns a log through the socket of the process that has it.
func served(t *testing.T, l *Log) Source {
	t.Helper()
	data := filepath.Dir(l.o.Dir)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- ServeSocket(ctx, data, l) }()
	t.Cleanup(func() { cancel(); <-done })
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		src, err := DialSource(data)
		if err == nil {
			t.Cleanup(func() { src.Close() })
			return src
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

// TestVerifyRemote verifies through the socket of the broker that has the log.
func TestVerifyRemote(t *testing.T) {
	l, verifier, ids := written(t)
	src := served(t, l)
	if r := verified(t, src, verifier, nil); len(r.Faults) > 0 || r.Sessions != 6 || r.Frames != 60 {
		t.Errorf("%+v", r)
	}
	if r, err := VerifySession(t.Context(), src, ids[0], verifier); err != nil || len(r.Faults) > 0 || r.Seen == nil {
		t.Errorf("%+v, %v", r, err)
	}
	if _, err := src.Proof(t.Context(), ids[5]); err != ErrNotEnded {
		t.Errorf("a session that runs has a proof: %v", err)
	}
	if _, err := VerifySession(t.Context(), src, "none", verifier); err == nil {
		t.Error("no session is verified")
	}
	tm := &tampering{t, l, ids}
	tm.set(binary.BigEndian.AppendUint64([]byte("l/"), 4), nil)
	if r := verified(t, src, verifier, nil); len(r.Faults) == 0 {
		t.Error("nothing is found")
	}
}

// TestOpenBlock checks that a block in the database that has neither hash nor checksum is
// none: in the journal it has the checksum of its entry.
func TestOpenBlock(t *testing.T) {
	l, verifier := openSigned(t, Options{still: true})
	r := start(t, l)
	r.add(t, "a", "b")
	if err := l.commit(write{blockKey(r.ID(), 1, 0), encode(r.session.Start, []Frame{{Bytes: []byte("forged")}})[0].Bytes}); err != nil {
		t.Fatal(err)
	}
	check := func() {
		t.Helper()
		if got := verified(t, l, verifier, nil); len(got.Faults) != 1 || got.Faults[0].Block != 1 {
			t.Errorf("%+v", got)
		}
		var out bytes.Buffer
		if err := Replay(t.Context(), &out, l, r.ID(), View{}); !errors.Is(err, ErrDamaged) || out.String() != "a\n" {
			t.Errorf("replay: %q, %v", out.String(), err)
		}
	}
	check()
	if err := r.End(Ended, ""); err != nil {
		t.Fatal(err)
	}
	check()
}

// TestVerifyUndrained checks that a block which was changed is the one that is named while
// what is behind it is in the journal only.
func TestVerifyUndrained(t *testing.T) {
	l, verifier := openSigned(t, Options{})
	r := start(t, l)
	r.add(t, "a")
	if err := l.drain(r.tail, 0, thorough); err != nil {
		t.Fatal(err)
	}
	r.add(t, "b", "c", "d")
	undrained(t, r)
	forged := blockOf(r.session.Start, firstHash(r.ID()), []Frame{{Time: r.session.Start, Bytes: []byte("forged")}})
	if err := l.commit(write{blockKey(r.ID(), 0, 0), forged}); err != nil {
		t.Fatal(err)
	}
	if got := verified(t, l, verifier, nil); len(got.Faults) != 1 || got.Faults[0].Frame > 1 {
		t.Errorf("while it runs: %+v", got)
	}
	if err := r.End(Ended, ""); err != nil {
		t.Fatal(err)
	}
	if got := verified(t, l, verifier, nil); len(got.Faults) != 1 || got.Faults[0].Frame != 0 || got.Faults[0].Block != 0 {
		t.Errorf("when it has ended: %+v", got)
	}
}

// TestRecoverUndrained has sessions of a dead process come to their end late, when the disk
// has room again, while they are in the journal only: proofs hold.
func TestRecoverUndrained(t *testing.T) {
	for _, still := range []bool{true, false} {
		l, verifier := openSigned(t, Options{})
		for range 20 {
			start(t, l).add(t, "a", "b", "c")
		}
		o := l.o
		o.Dir, o.Free, o.still = killed(t, l), 1<<60, still
		again := open(t, o)
		makeRoom(again)
		if err := again.Ready(); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if got := verified(t, again, verifier, nil); len(got.Faults) > 0 || got.Sessions != 20 {
				t.Errorf("still %v: %+v", still, got)
			}
			if err := again.drainAll(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestOldJournal reads a journal of the version before, whose blocks have a hash and a
// checksum.
func TestOldJournal(t *testing.T) {
	l, verifier := openSigned(t, Options{})
	r := start(t, l)
	r.add(t, "a", "b")
	if err := l.drain(r.tail, 0, thorough); err != nil {
		t.Fatal(err)
	}
	c := r.tail.hang()
	b := sealedLike(c.head, encode(r.session.Start, []Frame{{Time: r.session.Start, Bytes: []byte("c")}})[0].Bytes)
	if err := l.enter(r.tail, opened(Block{c.next, b}), false); err != nil {
		t.Fatal(err)
	}
	o := l.o
	o.Dir = killed(t, l)
	l = open(t, o)
	if got := verified(t, l, verifier, nil); len(got.Faults) > 0 || got.Sessions != 1 || got.Frames != 3 {
		t.Errorf("%+v", got)
	}
}

// TestTreeEdge ends sessions while nothing can be read of the tree: the next leaf needs no
// more than what the last one was added with, and that is little.
func TestTreeEdge(t *testing.T) {
	l, verifier := openSigned(t, Options{})
	end := func() {
		t.Helper()
		if err := start(t, l).End(Ended, "closed"); err != nil {
			t.Fatal(err)
		}
	}
	end()
	view := l.tree.view
	l.tree.view = func(func(*badger.Txn) error) error { return errors.New("the database is asked") }
	for range 70 {
		end()
		if n := len(l.tree.edge); n > 16 {
			t.Errorf("with %d leaves, %d hashes are kept", l.tree.size, n)
		}
	}
	l.tree.view = view
	if r := verified(t, l, verifier, nil); len(r.Faults) > 0 || r.Sessions != 71 {
		t.Errorf("%+v", r)
	}
	l.tree.edge = nil // as after a start
	end()
	end()
	if r := verified(t, l, verifier, nil); len(r.Faults) > 0 || r.Sessions != 73 {
		t.Errorf("%+v", r)
	}
}
