package recorder

import (
	"bytes"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"example.com/broker/codec"
)

// TestEmptyFile opens a log in which a process died between making a file and
// filling it.
func TestEmptyFile(t *testing.T) {
	dir := t.TempDir()
	l := open(t, Options{Dir: dir})
	r := start(t, l)
	if err := r.Append(Frame{Bytes: []byte("a")}); err != nil {
		t.Fatal(err)
	}
	l.Close()
	for _, name := range []string{"00077.mem", "00078.mem"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	l = open(t, Options{Dir: dir})
	if got, want := fmt.Sprint(frames(t, l, r.ID())), "[c2s delivered a]"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// TestBadgerFails checks that a log whose next file cannot be made refuses, does not
// end its process, closes, and is good when it is opened again.
func TestBadgerFails(t *testing.T) {
	dir, err := os.MkdirTemp("", "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) }) // Badger that has failed makes files for ever
	l := open(t, Options{Dir: dir, still: true})
	tables, _ := filepath.Glob(filepath.Join(dir, "*.mem"))
	for i := range 3 { // in the way of the next ones
		if err := os.Mkdir(filepath.Join(dir, fmt.Sprintf("%05d.mem", len(tables)+1+i)), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	r := start(t, l)
	for range 3 {
		start(t, l)
	}
	next, stop := iter.Pull2(l.Find(t.Context(), Query{Servers: []string{r.session.Server}})) // it is under way
	defer stop()
	if _, err, _ := next(); err != nil {
		t.Fatal(err)
	}
	noise := make([]byte, 900) // which lies in the tables
	written := 0
	for ; ; written++ {
		if written > 50_000 {
			t.Fatal("the file is never needed")
		}
		makeNoise(noise, byte(written))
		if err := r.Append(Frame{Bytes: noise}); errors.Is(err, ErrUnavailable) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if _, err := l.Start(Session{}); !errors.Is(err, ErrUnavailable) {
		t.Errorf("a new session: %v", err)
	}
	if err := l.Ready(); !errors.Is(err, ErrUnavailable) {
		t.Errorf("ready: %v", err)
	}
	if _, err := l.Session(t.Context(), r.ID()); err == nil || errors.Is(err, ErrNoSession) {
		t.Errorf("what cannot be read is said to be: %v", err)
	}
	for s, err := range l.Find(t.Context(), Query{Text: []string{"a"}, Servers: []string{"s"}}) {
		if err == nil {
			t.Errorf("session %s is found where nothing can be read", s.ID)
		}
	}
	for _, err, ok := next(); ok; _, err, ok = next() {
		t.Log(err) // or what it has is enough
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}

// makeNoise makes noise that does not compress.
func makeNoise(b []byte, seed byte) {
	x := uint32(seed)*2654435761 + 1
	for i := range b {
		x ^= x << 13
		x ^= x >> 17
		x ^= x << 5
		b[i] = byte(x)
	}
}

// TestRecordDamaged checks that a session whose record cannot be read hides no other,
// on either way to the log, and is named.
func TestRecordDamaged(t *testing.T) {
	l, verifier, ids := written(t)
	if err := l.commit(write{sessionKey(ids[2]), []byte(`{"id":"`)}); err != nil {
		t.Fatal(err)
	}
	for name, src := range map[string]Source{"log": l, "socket": served(t, l)} {
		listed, damaged := 0, ""
		for s, err := range src.Sessions(t.Context()) {
			switch {
			case errors.Is(err, ErrDamaged):
				damaged = s.ID
			case err != nil:
				t.Fatal(err)
			default:
				listed++
			}
		}
		if listed != len(ids)-1 || damaged != ids[2] {
			t.Errorf("%s: %d sessions, and %q is damaged", name, listed, damaged)
		}
		if r := verified(t, src, verifier, nil); !strings.Contains(fmt.Sprint(r.Faults), ids[2]+": its record cannot be read") {
			t.Errorf("%s: faults are %v", name, r.Faults)
		}
	}
}

// TestTableDamaged turns a bit in Badger's own table, everywhere in turn: frames that are
// not named are as they were. That our own blocks have checksums, and hang together, is
// enough for it; for the rest, see TestTableChecksum.
func TestTableDamaged(t *testing.T) {
	dir := t.TempDir()
	l := open(t, Options{Dir: dir, still: true})
	var id string
	for i := range 3 {
		r := start(t, l)
		for j := range 40 {
			noise := make([]byte, 900)
			makeNoise(noise, byte(40*i+j))
			if err := r.Append(Frame{Direction: codec.S2C, Bytes: noise}); err != nil {
				t.Fatal(err)
			}
		}
		if err := r.End(Ended, "closed"); err != nil {
			t.Fatal(err)
		}
		if i == 1 {
			id = r.ID()
		}
	}
	want := frames(t, l, id)
	l.Close()
	table, good := readTable(t, dir)
	readable, named := 0, 0
	for at := len(good) / 4; at < len(good)*3/4; at += len(good) / 40 {
		bad := bytes.Clone(good)
		bad[at] ^= 0x10
		if err := os.WriteFile(table, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		l, err := Open(Options{Dir: dir, still: true})
		if err != nil {
			t.Fatal(err)
		}
		got := frames(t, l, id)
		l.Close()
		for _, f := range got {
			if strings.HasPrefix(f, "error ") {
				named++
			} else {
				readable++
			}
		}
		if fmt.Sprint(got) != fmt.Sprint(want) && !strings.Contains(fmt.Sprint(got), "error ") {
			t.Errorf("a bit at %d: %d frames instead of %d, and no error", at, len(got), len(want))
		}
	}
	if named == 0 || readable < 10*len(want) {
		t.Errorf("%d frames could be read, and %d times damage was named", readable, named)
	}
}

// TestTableChecksum turns a bit in the record of a session, so that it is as good JSON as
// before: only Badger's checksum tells. It must not be taken at its word.
func TestTableChecksum(t *testing.T) {
	dir := t.TempDir()
	l := open(t, Options{Dir: dir, still: true})
	for range 3 {
		if err := start(t, l).End(Ended, "closed"); err != nil {
			t.Fatal(err)
		}
	}
	l.Close()
	table, good := readTable(t, dir)
	subject, lost, places := []byte(`"subject":"ada"`), 0, 0
	for at := 0; ; places++ {
		i := bytes.Index(good[at:], subject)
		if i < 0 {
			break
		}
		at += i + len(subject)
		bad := bytes.Clone(good)
		bad[at-2] ^= 2 // "adc"
		if err := os.WriteFile(table, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		l, err := Open(Options{Dir: dir, still: true})
		if errors.Is(err, ErrBroken) { // the table's last block
			lost++
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		listed := 0
		for s, err := range l.Sessions(t.Context()) {
			if err != nil {
				continue
			}
			if listed++; s.Subject != "ada" {
				t.Errorf("session %s is now of %q", s.ID, s.Subject)
			}
		}
		l.Close()
		if listed < 3 {
			lost++
		}
	}
	if places == 0 || lost == 0 {
		t.Errorf("damaged in %d places, sessions were lost in %d: nothing was tested", places, lost)
	}
}

// TestLeavesMissing checks that nothing is recorded over leaves that cannot be read.
func TestLeavesMissing(t *testing.T) {
	l, _, _ := written(t)
	o := l.o
	if err := l.commit(write{leafKey(4), nil}); err != nil {
		t.Fatal(err)
	}
	l.Close()
	l = open(t, o)
	if _, err := l.Start(Session{}); !errors.Is(err, ErrBroken) {
		t.Errorf("a new session: %v", err)
	}
}

// TestRecoverLate checks that sessions are marked interrupted though there was no room
// for that when the log was opened.
func TestRecoverLate(t *testing.T) {
	dir := t.TempDir()
	l := open(t, Options{Dir: dir})
	r := start(t, l)
	if err := r.Append(Frame{Bytes: []byte("a")}); err != nil {
		t.Fatal(err)
	}
	l.Close()
	l = open(t, Options{Dir: dir, Free: 1 << 60})
	state := func() string {
		s, err := l.Session(t.Context(), r.ID())
		if err != nil {
			t.Fatal(err)
		}
		return s.State
	}
	if got := state(); got != Running {
		t.Fatalf("without room: %s", got)
	}
	makeRoom(l)
	if err := l.Ready(); err != nil {
		t.Fatal(err)
	}
	if got := state(); got != Interrupted {
		t.Errorf("with room: %s", got)
	}
}

// makeRoom lets next to nothing have to stay free.
func makeRoom(l *Log) {
	l.room.Lock() // under which the background looks at it
	defer l.room.Unlock()
	l.o.Free = 1
}

// failBy has f decide whether commits fail.
func (l *Log) failBy(f func() error) { l.fault.Store(&f) }

// TestEndLate checks that a session whose end could not be recorded runs, for all that is
// on record, and that its end comes with room, also where others have recorded meanwhile.
func TestEndLate(t *testing.T) {
	l, verifier, ids := written(t)
	full := errors.New("full")
	l.failBy(func() error { return full })
	l.mu.Lock()
	r := l.live[ids[5]]
	l.mu.Unlock()
	if err := r.End(Ended, "closed"); !errors.Is(err, full) {
		t.Fatal(err)
	}
	if got := verified(t, l, verifier, nil); len(got.Faults) > 0 || got.Running != 1 {
		t.Errorf("without room: %+v", got)
	}
	l.fault.Store(nil)
	start(t, l) // the log is available again before somebody asks
	if err := l.Ready(); err != nil {
		t.Fatal(err)
	}
	s, err := l.Session(t.Context(), r.ID())
	if err != nil || s.State != Ended {
		t.Errorf("with room: %+v, %v", s, err)
	}
	if got := verified(t, l, verifier, nil); len(got.Faults) > 0 || got.Running != 1 || got.Seen.Size != 6 {
		t.Errorf("with room: %+v", got)
	}
}

// readTable reads the one table of a log.
func readTable(t *testing.T, dir string) (path string, b []byte) {
	t.Helper()
	tables, _ := filepath.Glob(filepath.Join(dir, "*.sst"))
	if len(tables) != 1 {
		t.Fatalf("tables are %q", tables)
	}
	b, err := os.ReadFile(tables[0])
	if err != nil {
		t.Fatal(err)
	}
	return tables[0], b
}
