package recorder

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"example.com/broker/codec"
)

// kept puts sessions on record that are kept for so many days after their end.
func kept(t *testing.T, l *Log, end time.Time, days ...int) (ids []string) {
	t.Helper()
	for i, n := range days {
		r, err := l.Start(Session{Subject: "ada", Groups: []string{"g"}, Server: "s", Start: end.Add(-time.Minute), Keep: int64(n) * 24 * 3600})
		if err != nil {
			t.Fatal(err)
		}
		for j := range 3 {
			if err := r.Append(Frame{Direction: codec.S2C, Bytes: fmt.Appendf(nil, `{"needle%d":%d}`, i, j)}); err != nil {
				t.Fatal(err)
			}
		}
		if err := r.EndAt(end, Ended, "closed"); err != nil {
			t.Fatal(err)
		}
		ids = append(ids, r.ID())
	}
	return ids
}

func listed(t *testing.T, src Source) (ids []string) {
	t.Helper()
	for s, err := range src.Sessions(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, s.ID)
	}
	slices.Sort(ids)
	return ids
}

// TestRetain checks what is deleted when, that holds and a clock that jumps keep it, and
// that what is left proves the rest.
func TestRetain(t *testing.T) {
	var told []string
	l, verifier := openSigned(t, Options{Keep: 30 * 24 * time.Hour, Custody: func(_ context.Context, c Custody) error {
		told = append(told, c.What+" "+c.Session.ID+" by "+c.By)
		return nil
	}})
	end := time.Now()
	ids := kept(t, l, end, 10, 0, -1, 10, 20)
	day := 24 * time.Hour
	proof, err := l.Proof(t.Context(), ids[0])
	if err != nil {
		t.Fatal(err)
	}
	before := verified(t, l, verifier, nil)
	if err := l.Hold(t.Context(), Hold{Session: ids[3], By: "grace", Reason: "incident"}); err != nil {
		t.Fatal(err)
	}
	look := func(at time.Duration) {
		t.Helper()
		if _, err := l.retain(t.Context(), end.Add(at)); err != nil {
			t.Fatal(err)
		}
	}
	left := func(want ...string) {
		want = slices.Clone(want)
		t.Helper()
		slices.Sort(want)
		if got := listed(t, l); !slices.Equal(got, want) {
			t.Fatalf("on record are %v, want %v", got, want)
		}
	}
	for at := time.Duration(0); at < 10*day; at += 20 * time.Hour {
		look(at)
	}
	left(ids...)
	look(10*day + time.Hour)
	left(ids[1], ids[2], ids[3], ids[4]) // the fourth is held
	look(90 * day)                       // the clock jumps
	left(ids[1], ids[2], ids[3], ids[4])
	look(90*day + 12*time.Hour)
	left(ids[1], ids[2], ids[3], ids[4])
	look(91*day + time.Hour)
	left(ids[2], ids[3])
	if err := l.Release(t.Context(), ids[3], "grace"); err != nil {
		t.Fatal(err)
	}
	look(91*day + 2*time.Hour)
	left(ids[2])
	if want := fmt.Sprintf("[held %s by grace deleted %s by retention deleted %s by retention deleted %s by retention released %s by grace deleted %s by retention]",
		ids[3], ids[0], ids[4], ids[1], ids[3], ids[3]); fmt.Sprint(told) != want {
		t.Errorf("told is %v, want %s", told, want)
	}

	for name, src := range map[string]Source{"log": l, "socket": served(t, l)} {
		r := verified(t, src, verifier, before.Seen)
		if len(r.Faults) > 0 || r.Deleted != 4 || r.Sessions != 1 {
			t.Errorf("%s: %+v", name, r)
		}
		for b, err := range src.Blocks(t.Context(), ids[0]) {
			if errors.Is(err, ErrNoSession) {
				continue
			}
			t.Errorf("%s: block %d of a deleted session, %v", name, b.Number, err)
			break
		}
	}
	if _, _, err := proof.Check(verifier); err != nil {
		t.Errorf("a proof from before: %v", err)
	}
	found := 0
	for range l.Find(t.Context(), Query{Text: []string{"needle0"}}) {
		found++
	}
	if found != 0 {
		t.Error("a deleted session is found")
	}
}

// TestHoldEnding holds sessions while they end.
func TestHoldEnding(t *testing.T) {
	l := open(t, Options{Dir: t.TempDir()})
	var all sync.WaitGroup
	for range 200 {
		r := start(t, l)
		all.Go(func() {
			if err := r.End(Ended, ""); err != nil {
				t.Error(err)
			}
		})
		all.Go(func() {
			if err := l.Hold(t.Context(), Hold{Session: r.ID()}); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
}

// TestEndsOnce checks that a session that ends while late ends are written becomes one
// leaf.
func TestEndsOnce(t *testing.T) {
	l, verifier := openSigned(t, Options{})
	late, r := start(t, l), start(t, l)
	l.failBy(func() error { return syscall.EIO })
	late.End(Ended, "")
	l.fault.Store(nil)
	r.mu.Lock() // as End does
	ready := make(chan error)
	go func() { ready <- l.Ready() }()
	time.Sleep(100 * time.Millisecond) // it waits for one of them
	r.session.State, r.session.End = Ended, time.Now().Round(0)
	chain := r.tail.hang()
	r.session.Records, r.session.Head = chain.names()
	err := r.finish()
	r.mu.Unlock()
	if err := errors.Join(err, <-ready); err != nil {
		t.Fatal(err)
	}
	if got := verified(t, l, verifier, nil); len(got.Faults) > 0 || got.Sessions != 2 {
		t.Errorf("%+v", got)
	}
}

// A deleting source has a session deleted just before its blocks are read.
type deleting struct {
	*Log
	victims []string
}

func (d *deleting) Blocks(ctx context.Context, session string) iter.Seq2[Block, error] {
	if i := slices.Index(d.victims, session); i >= 0 {
		d.victims = slices.Delete(d.victims, i, i+1)
		if err := d.Delete(ctx, session, Retention, ""); err != nil {
			panic(err)
		}
	}
	return d.Log.Blocks(ctx, session)
}

// TestVerifyWhileDeleting checks that what retention deletes meanwhile is no fault.
func TestVerifyWhileDeleting(t *testing.T) {
	l, verifier := openSigned(t, Options{})
	ids := kept(t, l, time.Now(), 1, 1, 1)
	if r := verified(t, &deleting{l, []string{ids[1]}}, verifier, nil); len(r.Faults) > 0 || r.Deleted != 1 || r.Sessions != 2 {
		t.Errorf("%+v", r)
	}
}

// TestRetainGoesOn checks that a session that cannot be deleted keeps no other.
func TestRetainGoesOn(t *testing.T) {
	l := open(t, Options{Dir: t.TempDir(), still: true})
	now := time.Now()
	ids := kept(t, l, now.Add(-time.Hour), 1, 1, 1)
	bad := slices.Min(ids)
	if err := l.commit(write{indexKey(bad), nil}); err != nil {
		t.Fatal(err)
	}
	for at := time.Duration(0); at <= 48*time.Hour; at += 23 * time.Hour {
		l.retain(t.Context(), now.Add(at))
	}
	if n, err := l.retain(t.Context(), now.Add(49*time.Hour)); n != 0 || err == nil || !strings.Contains(err.Error(), bad) {
		t.Errorf("%d deleted, %v", n, err)
	}
	if got := listed(t, l); !slices.Equal(got, []string{bad}) {
		t.Errorf("left are %v of %v", got, ids)
	}
}

// TestDelete checks who may not be deleted, and what the deletion's kill leaves.
func TestDelete(t *testing.T) {
	l, verifier := openSigned(t, Options{})
	ids := kept(t, l, time.Now(), 0, 0)
	running := start(t, l)
	if err := l.Hold(t.Context(), Hold{Session: ids[0]}); err != nil {
		t.Fatal(err)
	}
	both := map[string]Custodian{"log": l, "socket": served(t, l).(Custodian)}
	for session, want := range map[string]error{ids[0]: ErrHeld, running.ID(): ErrNotEnded, "0000000000000000": ErrNoSession} {
		for name, c := range both {
			if err := c.Delete(t.Context(), session, "ada", "why"); !errors.Is(err, want) {
				t.Errorf("%s, %s: %v, want %v", name, session, err, want)
			}
		}
	}
	// Killed between the two: the record is gone, the blocks are not.
	if err := l.deleteRecord(t.Context(), ids[1], "ada", "why"); err != nil {
		t.Fatal(err)
	}
	if err := running.End(Ended, ""); err != nil {
		t.Fatal(err)
	}
	l.Close()
	l = open(t, l.o)
	if _, err := l.retain(t.Context(), time.Now()); err != nil {
		t.Fatal(err)
	}
	keys, err := l.someIDs(blockPrefix(ids[1]))
	if err != nil || len(keys) > 0 {
		t.Errorf("%d blocks are left, %v", len(keys), err)
	}
	if r := verified(t, l, verifier, nil); len(r.Faults) > 0 || r.Deleted != 1 {
		t.Errorf("%+v", r)
	}

	// Whoever takes a session away by hand, and writes that it was deleted, is found.
	if err := l.commit(write{sessionKey(ids[0]), nil}, write{deletionKey(ids[0]), []byte(`{"deleted":"` + ids[0] + `","leaf":0,"hash":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=","at":3,"by":"retention"}`)}); err != nil {
		t.Fatal(err)
	}
	for _, at := range []int{3, 99} { // also with a place that is under no head
		if err := l.commit(write{deletionKey(ids[0]), fmt.Appendf(nil, `{"deleted":%q,"leaf":0,"hash":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=","at":%d,"by":"retention"}`, ids[0], at)}); err != nil {
			t.Fatal(err)
		}
		if r := verified(t, l, verifier, nil); !strings.Contains(fmt.Sprint(r.Faults), ids[0]+": it is deleted, and its deletion is not in the tree") {
			t.Errorf("at %d: %+v", at, r)
		}
	}
	if r := verified(t, l, verifier, nil); len(r.Faults) < 2 || !strings.Contains(fmt.Sprint(r.Faults), ids[0]+": it is deleted, and its deletion is not in the tree") {
		t.Errorf("%+v", r)
	}
}

// TestHoldLost checks that a session whose hold cannot be read is not deleted: of a hold in
// a block that is damaged, Badger says that there is none.
func TestHoldLost(t *testing.T) {
	data := t.TempDir()
	dir := filepath.Join(data, "log")
	key, err := OpenKey(data)
	if err != nil {
		t.Fatal(err)
	}
	o := Options{Dir: dir, Key: key, still: true}
	l := open(t, o)
	ids := kept(t, l, time.Now().Add(-20*24*time.Hour), 10, 10)
	if err := l.Hold(t.Context(), Hold{Session: ids[0], By: "grace", Reason: "incident"}); err != nil {
		t.Fatal(err)
	}
	held := func(want string) {
		t.Helper()
		var got []string
		for h, err := range l.Holds(t.Context()) {
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, h.Session+" "+h.Reason)
		}
		if fmt.Sprint(got) != want {
			t.Errorf("held are %q, want %s", got, want)
		}
	}
	retain := func() error { // when the clock is sure
		now := time.Now()
		l.retain(t.Context(), now.Add(-25*time.Hour))
		l.retain(t.Context(), now.Add(-12*time.Hour))
		_, err := l.retain(t.Context(), now)
		return err
	}
	if err := l.commit(write{holdKey(ids[0]), nil}); err != nil { // so reads what is in a damaged block
		t.Fatal(err)
	}
	again := func() {
		t.Helper()
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		l = open(t, o)
	}
	again()
	held("[" + ids[0] + " who holds it, and why, cannot be read]")
	if err := l.Delete(t.Context(), ids[0], "root", "x"); !errors.Is(err, ErrHeld) {
		t.Errorf("deletion: %v", err)
	}
	if err := retain(); err != nil {
		t.Fatal(err)
	}
	if got := listed(t, l); !slices.Equal(got, ids[:1]) {
		t.Errorf("on record are %v, want %v", got, ids[:1])
	}

	// It goes where the log goes.
	l.Close()
	if err := Reencrypt(data, "", nil); err != nil {
		t.Fatal(err)
	}
	again()
	held("[" + ids[0] + " who holds it, and why, cannot be read]")

	// If the file itself is damaged, nothing is deleted at all.
	good, err := os.ReadFile(filepath.Join(dir, holdsFile))
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"", string(good[:len(good)-1]), strings.Replace(string(good), ids[0], ids[1], 1)} {
		if err := os.WriteFile(filepath.Join(dir, holdsFile), []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		again()
		if err := l.Delete(t.Context(), ids[0], "root", "x"); !errors.Is(err, errHolds) {
			t.Errorf("deletion with %q: %v", bad, err)
		}
		if err := retain(); !errors.Is(err, errHolds) {
			t.Errorf("retention with %q: %v", bad, err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, holdsFile), good, 0o600); err != nil {
		t.Fatal(err)
	}
	again()
	if err := l.Release(t.Context(), ids[0], "grace"); err != nil {
		t.Fatal(err)
	}
	again()
	held("[]")

	// A log of before there was the file gets one.
	if err := l.Hold(t.Context(), Hold{Session: ids[0], By: "grace", Reason: "incident"}); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, holdsFile)); err != nil {
		t.Fatal(err)
	}
	again()
	if text, err := os.ReadFile(filepath.Join(dir, holdsFile)); err != nil || !strings.Contains(string(text), ids[0]) {
		t.Errorf("the file is %q, %v", text, err)
	}
	held("[" + ids[0] + " incident]")
}
