package recorder

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"example.com/broker/codec"
)

// killed returns a copy of a log's folder, as kill -9 would leave it now.
func killed(t testing.TB, l *Log) (dir string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "log")
	if err := os.CopyFS(dir, os.DirFS(l.o.Dir)); err != nil {
		t.Fatal(err)
	}
	return dir
}

// journalFiles returns the files of a log's journal.
func journalFiles(t testing.TB, dir string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "journal", "*-*"))
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// keys of journals.
var journalKeys = map[string][]byte{"plain": nil, "encrypted": bytes.Repeat([]byte{7}, keySize)}

// opened are blocks as they come to the journal.
func opened(blocks ...Block) (o []openedBlock) {
	for _, b := range blocks {
		o = append(o, openedBlock{Block: b})
	}
	return o
}

// openedJournal is that of a folder.
func openedJournal(t testing.TB, dir string, key []byte) *journal {
	t.Helper()
	j, err := openJournal(dir, key, newBell(), silent)
	if err != nil {
		t.Fatal(err)
	}
	return j
}

// writeJournal returns a file of a journal, and where its entries begin and end.
func writeJournal(t testing.TB, dir string, key []byte, blocks ...Block) (f *journalFile, ends []int) {
	t.Helper()
	j := openedJournal(t, dir, key)
	ends = []int{0}
	for _, b := range blocks {
		var err error
		if f, _, err = j.add("0123456789abcdef", nil, opened(b)); err != nil {
			t.Fatal(err)
		}
		ends = append(ends, int(f.size))
	}
	if err := j.close(); err != nil {
		t.Fatal(err)
	}
	return f, ends
}

// readJournal returns what is in a file, "!" for what is none.
func readJournal(t testing.TB, f *journalFile) (got []string) {
	t.Helper()
	err := f.read(func(session string, b Block) { got = append(got, fmt.Sprintf("%s %d %q", session, b.Number, b.Bytes)) },
		func(int, int) { got = append(got, "!") })
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// TestJournalDamaged cuts a file of the journal everywhere, and damages each of its bytes:
// all entries but those come back.
func TestJournalDamaged(t *testing.T) {
	for name, key := range journalKeys {
		t.Run(name, func(t *testing.T) {
			f, ends := writeJournal(t, t.TempDir(), key, Block{0, []byte("first")}, Block{3, bytes.Repeat([]byte("second "), 20)}, Block{4, nil}, Block{9, []byte("last")})
			good, err := os.ReadFile(f.path)
			if err != nil {
				t.Fatal(err)
			}
			good = good[:ends[len(ends)-1]+entryHead] // and not the rest of its block
			all := readJournal(t, f)
			if len(all) != 4 || !strings.HasSuffix(all[0], ` 0 "first"`) || !strings.HasSuffix(all[3], ` 9 "last"`) {
				t.Fatalf("got %q", all)
			}
			put := func(b []byte) {
				if err := os.WriteFile(f.path, b, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			for n := range good {
				put(good[:n])
				whole, _ := slices.BinarySearch(ends, n+1)
				want := slices.Clone(all[:whole-1])
				if !slices.Contains(ends, n) {
					want = append(want, "!")
				}
				if got := readJournal(t, f); !slices.Equal(got, want) {
					t.Fatalf("cut at %d: got %q, want %q", n, got, want)
				}
				bad := bytes.Clone(good)
				bad[n] ^= 0x41
				put(bad)
				want = append(slices.Clone(all), "!") // the end is what is damaged
				if whole <= len(all) {
					want = slices.Clone(all)
					want[whole-1] = "!"
				}
				if got := readJournal(t, f); !slices.Equal(got, want) {
					t.Fatalf("damaged at %d: got %q, want %q", n, got, want)
				}
			}
		})
	}
}

// TestJournalForged checks that an entry in a frame is none, though that of the frame is
// damaged.
func TestJournalForged(t *testing.T) {
	dir := t.TempDir()
	other := (&journal{}).named("00000001-000102030405060708090a0b0c0d0e0f")
	forged := other.seal(nil, entryHead+entryPlace, "0123456789abcdef", Block{0, []byte("forged")})
	f, _ := writeJournal(t, dir, nil, Block{0, forged}, Block{1, []byte("last")})
	b, err := os.ReadFile(f.path)
	if err != nil {
		t.Fatal(err)
	}
	b[2] ^= 1 // of the length
	if err := os.WriteFile(f.path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := readJournal(t, f); len(got) != 2 || got[0] != "!" || !strings.HasSuffix(got[1], `1 "last"`) {
		t.Errorf("got %q", got)
	}
}

// FuzzJournal checks that what is read of a file are the entries that were written to it,
// whatever else is in it.
func FuzzJournal(f *testing.F) {
	f.Add([]byte{}, []byte("a"), []byte{1, 2, 3})
	f.Add([]byte{40, 0, 0, 0, 0, 0, 0, 0}, []byte(nil), bytes.Repeat([]byte{0}, 100))
	f.Fuzz(func(t *testing.T, before, block, behind []byte) {
		if len(block) > blockSize {
			return
		}
		for name, key := range journalKeys {
			j := &journal{dir: t.TempDir(), key: key}
			file := j.named("00000001-000102030405060708090a0b0c0d0e0f")
			b := file.seal(bytes.Clone(before), int64(len(before)), "0123456789abcdef", Block{7, block})
			if err := os.WriteFile(file.path, append(b, behind...), 0o600); err != nil {
				t.Fatal(err)
			}
			want := fmt.Sprintf("0123456789abcdef 7 %q", block)
			if got := readJournal(t, file); !slices.Contains(got, want) || len(slices.DeleteFunc(got, func(s string) bool { return s == "!" })) != 1 {
				t.Errorf("%s: got %q, want %q", name, got, want)
			}
		}
	})
}

// add appends frames, each by itself.
func (r *Recording) add(t testing.TB, texts ...string) {
	t.Helper()
	for _, text := range texts {
		if err := r.Append(Frame{Direction: codec.S2C, Bytes: []byte(text)}); err != nil {
			t.Fatal(err)
		}
	}
}

// undrained keeps what a session records from coming to the database until the test ends.
func undrained(t testing.TB, r *Recording) {
	r.tail.draining.Lock()
	t.Cleanup(r.tail.draining.Unlock) // before the log is closed
}

// TestJournalKilled kills a broker when sessions run, have ended, were drained, rewritten
// and deleted, and their entries are in the journal: each record comes once, and proofs
// hold.
func TestJournalKilled(t *testing.T) {
	l, verifier := openSigned(t, Options{})
	running, ended, drained, deleted := start(t, l), start(t, l), start(t, l), start(t, l)
	for i := range 20 {
		for _, r := range []*Recording{running, ended, drained, deleted} {
			r.add(t, fmt.Sprintf("%s %d", r.ID(), i))
		}
		if i == 10 {
			if err := l.drain(running.tail, 0, thorough); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := l.journal.syncAll(); err != nil {
		t.Fatal(err)
	}
	before := killed(t, l) // its journal has all
	undrained(t, running)
	undrained(t, ended)
	for _, r := range []*Recording{ended, drained, deleted} {
		if err := r.End(Ended, "closed"); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.drain(drained.tail, 0, thorough); err != nil {
		t.Fatal(err)
	}
	if err := l.Delete(t.Context(), deleted.ID(), "ada", "why"); err != nil {
		t.Fatal(err)
	}
	want := map[string][]string{}
	for _, r := range []*Recording{running, ended, drained} {
		if want[r.ID()] = frames(t, l, r.ID()); len(want[r.ID()]) != 20 {
			t.Fatalf("%d frames", len(want[r.ID()]))
		}
	}
	proof, err := l.Proof(t.Context(), ended.ID())
	if err != nil {
		t.Fatal(err)
	}
	dir := killed(t, l)
	for _, path := range journalFiles(t, before) { // as if none had been removed
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "journal", filepath.Base(path)), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	o := l.o
	o.Dir = dir
	for range 2 { // the second has nothing to do
		l := open(t, o)
		for id, want := range want {
			if got := frames(t, l, id); !slices.Equal(got, want) {
				t.Errorf("%d frames came back, want %d: %q", len(got), len(want), got)
			}
		}
		if blocks, err := l.someIDs(blockPrefix(deleted.ID())); err != nil || len(blocks) > 0 {
			t.Errorf("what is deleted is there again: %q, %v", blocks, err)
		}
		if r := verified(t, l, verifier, nil); len(r.Faults) > 0 || r.Sessions != 3 {
			t.Errorf("%+v", r)
		}
		if now, err := l.Proof(t.Context(), ended.ID()); err != nil || !bytes.Equal(now.Record, proof.Record) {
			t.Errorf("the record is another one, %v", err)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		if files := journalFiles(t, dir); len(files) > 0 {
			t.Errorf("%q are left", files)
		}
	}
}

// TestJournalDamage damages an entry of the journal of a broker that was killed: it is
// named, and the rest can be read.
func TestJournalDamage(t *testing.T) {
	l, verifier := openSigned(t, Options{})
	r, other := start(t, l), start(t, l)
	r.add(t, "0", "1", "damaged", "3")
	other.add(t, "x")
	r.add(t, "4")
	if err := l.journal.syncAll(); err != nil {
		t.Fatal(err)
	}
	dir := killed(t, l)
	file := journalFiles(t, dir)[0]
	for _, path := range []string{file, filepath.Join(dir, "journal", filepath.Base(l.journal.pending.path))} { // either would mend the other
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		b[bytes.Index(b, []byte("damaged"))] ^= 1
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var told bytes.Buffer
	o := l.o
	o.Dir, o.Log = dir, slog.New(slog.NewTextHandler(&told, nil))
	l = open(t, o)
	if got, want := fmt.Sprint(frames(t, l, r.ID())), "[s2c delivered 0 s2c delivered 1 error recording is damaged: block 2, behind frame 2: is missing, and so is every one before block 3 s2c delivered 3 s2c delivered 4]"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got := fmt.Sprint(frames(t, l, other.ID())); got != "[s2c delivered x]" {
		t.Errorf("the other session: %s", got)
	}
	if got := verified(t, l, verifier, nil); len(got.Faults) != 1 || got.Faults[0].Session != r.ID() || got.Faults[0].Block != 2 {
		t.Errorf("%+v", got)
	}
	if !strings.Contains(told.String(), filepath.Base(file)) {
		t.Errorf("nobody is told of it: %s", &told)
	}
}

// TestJournalEncrypted checks that what is in the journal of a log that is encrypted
// cannot be read, and comes back.
func TestJournalEncrypted(t *testing.T) {
	for by, want := range map[string]bool{"": true, secretFile(t): false} {
		l := open(t, Options{Dir: filepath.Join(t.TempDir(), "log"), Encryption: by})
		r := start(t, l)
		undrained(t, r)
		r.add(t, marker, marker)
		dir := killed(t, l)
		if got := holds(t, filepath.Dir(dir), marker); got != want {
			t.Errorf("encrypted by %q: what is recorded can be read: %t", by, got)
		}
		o := l.o
		o.Dir = dir
		if got := frames(t, open(t, o), r.ID()); len(got) != 2 || got[1] != "s2c delivered "+marker {
			t.Errorf("got %q", got)
		}
	}
}

// TestJournalArchived archives a session whose entries are in the journal still: it moves
// when the database has all of it, and when the broker is killed then, comes once.
func TestJournalArchived(t *testing.T) {
	l, f, verifier := openArchiving(t, Options{})
	l.o.still = false
	r := start(t, l)
	r.add(t, "a", "b")
	if err := l.journal.syncAll(); err != nil {
		t.Fatal(err)
	}
	before := killed(t, l) // its journal has all
	r.tail.draining.Lock()
	if err := r.End(Ended, "closed"); err != nil {
		t.Fatal(err)
	}
	if err := archiveAt(t, l, time.Hour); err != nil || len(f.objects()) > 0 {
		t.Errorf("%q moved before the database had all, %v", f.objects(), err)
	}
	r.tail.draining.Unlock()
	if err := l.drain(r.tail, 0, thorough); err != nil {
		t.Fatal(err)
	}
	if err := archiveAt(t, l, time.Hour); err != nil || len(f.objects()) != 1 {
		t.Fatalf("%q moved, %v", f.objects(), err)
	}
	o := l.o
	o.Dir = killed(t, l)
	path := journalFiles(t, before)[0]
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(o.Dir, "journal", filepath.Base(path)), b, 0o600); err != nil {
		t.Fatal(err)
	}
	l = open(t, o)
	if n := localBlocks(t, l, r.ID()); n > 0 {
		t.Errorf("%d blocks are in the database again", n)
	}
	if got := fmt.Sprint(frames(t, l, r.ID())); got != "[s2c delivered a s2c delivered b]" {
		t.Errorf("got %s", got)
	}
	if r := verified(t, l, verifier, nil); len(r.Faults) > 0 || r.Sessions != 1 {
		t.Errorf("%+v", r)
	}
}

// TestTailRead reads a session of which a part is in the database and the rest is not,
// from each record on.
func TestTailRead(t *testing.T) {
	l := open(t, Options{Dir: t.TempDir()})
	r := start(t, l)
	var want []string
	for i := range 30 {
		r.add(t, fmt.Sprint(i))
		want = append(want, fmt.Sprintf("s2c delivered %d", i))
		if i == 10 || i == 20 {
			if err := l.drain(r.tail, 0, thorough); err != nil {
				t.Fatal(err)
			}
		}
	}
	for from := range uint32(30) {
		next := from
		err := l.blocks(t.Context(), r.ID(), from, func(n uint32, b []byte) (bool, error) {
			h, err := readHeader(b)
			if err != nil || next < n || next >= n+h.count {
				t.Errorf("from %d: record %d is not in block %d, of %d, %v", from, next, n, h.count, err)
			}
			next = n + h.count
			return true, nil
		})
		if err != nil || next != 30 {
			t.Errorf("from %d: read up to %d, %v", from, next, err)
		}
	}
	if got := frames(t, l, r.ID()); !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
	if n, _ := blocksOf(t, l, r.ID()); n != 2+9 {
		t.Errorf("%d blocks", n)
	}
}

// TestJournalBounded records much in one session, beside one with a single frame: that
// keeps no file of the journal from being removed.
func TestJournalBounded(t *testing.T) {
	l := open(t, Options{Dir: t.TempDir()})
	small, large := start(t, l), start(t, l)
	small.add(t, "small")
	noise := make([]byte, 256<<10)
	for i := range (journalAge + 4) * journalSize / len(noise) {
		makeNoise(noise, byte(i))
		if err := large.Append(Frame{Bytes: noise}); err != nil {
			t.Fatal(err)
		}
	}
	for l.tails.get(small.ID()) != nil || len(journalFiles(t, l.o.Dir)) > journalAge+2 { // the next may be there
		time.Sleep(time.Millisecond)
	}
	if held := l.tails.held.Load(); held > 3*rewriteSize {
		t.Errorf("%d bytes are in memory", held)
	}
	if got := fmt.Sprint(frames(t, l, small.ID())); got != "[s2c delivered small]" {
		t.Errorf("got %s", got)
	}
}

// TestJournalFails checks that a log whose journal cannot be written refuses all, until it
// is opened again, and loses nothing that it had.
func TestJournalFails(t *testing.T) {
	dir := t.TempDir()
	l := open(t, Options{Dir: dir})
	r := start(t, l)
	r.add(t, "a")
	l.journal.file.file.Close()
	if err := l.journal.syncAll(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("flush: %v", err)
	}
	l.syncNow()
	if err := r.Append(Frame{Bytes: []byte("b")}); !errors.Is(err, ErrUnavailable) || !errors.Is(err, os.ErrClosed) {
		t.Errorf("append: %v", err)
	}
	if err := l.Ready(); !errors.Is(err, ErrUnavailable) {
		t.Errorf("ready: %v", err)
	}
	if _, err := l.Start(Session{}); !errors.Is(err, ErrUnavailable) {
		t.Errorf("a new session: %v", err)
	}
	if got := fmt.Sprint(frames(t, l, r.ID())); got != "[s2c delivered a]" {
		t.Errorf("got %s", got)
	}
	l.Close()
	l = open(t, Options{Dir: dir})
	if got := fmt.Sprint(frames(t, l, r.ID())); got != "[s2c delivered a]" {
		t.Errorf("opened again: got %s", got)
	}
	start(t, l).add(t, "c")
}

// TestJournalMany records in many sessions, of which none ever has enough for a block: files
// of the journal are removed all the same.
func TestJournalMany(t *testing.T) {
	l := open(t, Options{Dir: t.TempDir()})
	var sessions []*Recording
	for range 300 {
		sessions = append(sessions, start(t, l))
	}
	noise := make([]byte, 64<<10)
	for i := range (journalAge + 6) * journalSize / len(noise) {
		makeNoise(noise, byte(i))
		if err := sessions[i%len(sessions)].Append(Frame{Bytes: noise}); err != nil {
			t.Fatal(err)
		}
	}
	for len(journalFiles(t, l.o.Dir)) > journalAge+2 { // the next may be there
		time.Sleep(time.Millisecond)
	}
}

// TestJournalUndo opens a log in which a rewrite was killed, on a disk that is full: what
// is in the journal stays there until it can be brought to the database.
func TestJournalUndo(t *testing.T) {
	l := open(t, Options{Dir: t.TempDir()})
	other, r := start(t, l), start(t, l)
	other.add(t, "x")
	r.add(t, "a", "b")
	if err := l.commit(write{rewriteKey(other.ID()), []byte{0, 0, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	o := l.o
	o.Dir = killed(t, l)
	o.Free = 1 << 60
	full, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	full.drainReady()
	full.Close()
	o.Free = 0
	if got := fmt.Sprint(frames(t, open(t, o), r.ID())); got != "[s2c delivered a s2c delivered b]" {
		t.Errorf("got %s", got)
	}
}

// TestJournalTorn reads a session whose last block a loss of power has left half written in
// the database, and whole in the journal: its records hang on those in front of it.
func TestJournalTorn(t *testing.T) {
	for name, torn := range map[string]func(block []byte) []byte{
		"header":  func([]byte) []byte { return []byte("garbage") },
		"records": func(b []byte) []byte { return append(b[:len(b)-1:len(b)-1], ^b[len(b)-1]) },
	} {
		l, verifier := openSigned(t, Options{})
		r := start(t, l)
		for _, text := range []string{"a", "b"} {
			r.add(t, text)
			if err := l.drain(r.tail, 0, thorough); err != nil {
				t.Fatal(err)
			}
		}
		r.add(t, "c", "d")
		c := r.tail.hang()
		if err := l.commit(write{blockKey(r.ID(), 2, 0), torn(sealedLike(c.head, r.tail.read()[0].Bytes))}); err != nil {
			t.Fatal(err)
		}
		o := l.o
		o.Dir = killed(t, l)
		l = open(t, o)
		if got := fmt.Sprint(frames(t, l, r.ID())); got != "[s2c delivered a s2c delivered b s2c delivered c s2c delivered d]" {
			t.Errorf("%s: got %s", name, got)
		}
		if got := verified(t, l, verifier, nil); len(got.Faults) > 0 || got.Sessions != 1 {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

// TestJournalClosed checks that nothing is taken for recorded once the log is closed.
func TestJournalClosed(t *testing.T) {
	l := open(t, Options{Dir: t.TempDir()})
	r := start(t, l)
	r.add(t, "a")
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := r.Append(Frame{Bytes: []byte("b")}); !errors.Is(err, ErrUnavailable) {
		t.Errorf("append: %v", err)
	}
	if files := journalFiles(t, l.o.Dir); len(files) > 0 {
		t.Errorf("%q were begun", files)
	}
}

// TestJournalForgets checks that what is deleted is soon in no file of the journal.
func TestJournalForgets(t *testing.T) {
	l := open(t, Options{Dir: t.TempDir()})
	r, other := start(t, l), start(t, l)
	r.add(t, marker)
	other.add(t, "stays")
	l.journal.mu.Lock()
	l.journal.file = nil // the next begins
	l.journal.mu.Unlock()
	r.add(t, marker)
	if err := r.End(Ended, "closed"); err != nil {
		t.Fatal(err)
	}
	if err := l.Delete(t.Context(), r.ID(), "ada", "why"); err != nil {
		t.Fatal(err)
	}
	for len(journalFiles(t, l.o.Dir)) > 0 {
		time.Sleep(time.Millisecond)
	}
	if got := fmt.Sprint(frames(t, l, other.ID())); got != "[s2c delivered stays]" {
		t.Errorf("got %s", got)
	}
}

// TestJournalPasses checks that a file which cannot be begun now is begun later.
func TestJournalPasses(t *testing.T) {
	l := open(t, Options{Dir: t.TempDir()})
	r := start(t, l)
	if err := os.Remove(l.journal.dir); err != nil {
		t.Fatal(err)
	}
	if err := r.Append(Frame{Bytes: []byte("a")}); !errors.Is(err, ErrUnavailable) {
		t.Errorf("append: %v", err)
	}
	if err := l.Ready(); !errors.Is(err, ErrUnavailable) {
		t.Errorf("ready: %v", err)
	}
	if err := os.Mkdir(l.journal.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := l.Ready(); err != nil {
		t.Errorf("ready: %v", err)
	}
	start(t, l).add(t, "b")
}

// TestJournalFlushes checks that a session ends on record when all that it has recorded is
// on the disk, and that a file which was removed meanwhile is no failure of a flush.
func TestJournalFlushes(t *testing.T) {
	l := open(t, Options{Dir: t.TempDir()})
	r := start(t, l)
	r.add(t, "a")
	if err := r.End(Ended, "closed"); err != nil {
		t.Fatal(err)
	}
	if l.journal.flush.upTo < r.tail.upTo {
		t.Errorf("of %d bytes, %d are on the disk", r.tail.upTo, l.journal.flush.upTo)
	}
	if err := l.drainAll(); err != nil {
		t.Fatal(err)
	}
	f := &journalFile{path: filepath.Join(l.journal.dir, "1")}
	f.file, _ = os.Create(f.path)
	if err := l.journal.remove([]*journalFile{f}); err != nil {
		t.Fatal(err)
	}
	l.journal.dirty = append(l.journal.dirty, f)
	if err := l.journal.syncAll(); err != nil {
		t.Error(err)
	}
	r = start(t, l)
	r.add(t, "b")
	l.journal.dirty = append(l.journal.dirty, f)
	if err := l.journal.syncAll(); err != nil {
		t.Error(err)
	}
}

// TestJournalReencrypt checks that a log of which a part is in the journal, and cannot be
// brought to the database, is not written anew without that.
func TestJournalReencrypt(t *testing.T) {
	data := t.TempDir()
	key, err := OpenKey(data)
	if err != nil {
		t.Fatal(err)
	}
	l := open(t, Options{Dir: filepath.Join(data, "log"), Key: key})
	ended := start(t, l)
	if err := ended.End(Ended, "closed"); err != nil {
		t.Fatal(err)
	}
	r := start(t, l)
	undrained(t, r)
	r.add(t, "a", "b")
	if err := l.commit(write{checkpointKey, nil}); err != nil { // so that nothing can be written
		t.Fatal(err)
	}
	other := t.TempDir()
	if err := os.CopyFS(other, os.DirFS(data)); err != nil {
		t.Fatal(err)
	}
	if err := Reencrypt(other, "", nil); err == nil {
		t.Error("it was written anew")
	}
	l = open(t, Options{Dir: filepath.Join(other, "log"), Key: key})
	if got := fmt.Sprint(frames(t, l, r.ID())); got != "[s2c delivered a s2c delivered b]" {
		t.Errorf("got %s", got)
	}
}

// next has the next entry begin a file.
func next(j *journal) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.file = nil
}

// fill fills a file of a journal with entries of a session, and has the database have them.
func fill(t testing.TB, j *journal, session string) *journalFile {
	t.Helper()
	next(j)
	var f *journalFile
	for n := uint32(0); f == nil || f.size < journalSize; n++ {
		var err error
		if f, _, err = j.add(session, nil, opened(Block{n, bytes.Repeat([]byte(session), 1<<14)})); err != nil {
			t.Fatal(err)
		}
		j.release([]tailBlock{{file: f}})
	}
	next(j)
	return f
}

// tidy removes what is done, and returns the names of the files that are left.
func tidy(t testing.TB, j *journal) (names []string) {
	t.Helper()
	if err := j.remove(j.done(false)); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(j.dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if filepath.Ext(e.Name()) != pendingName {
			names = append(names, e.Name())
		}
	}
	return names
}

// TestJournalReused checks that a file of which the database has all becomes the next one,
// that of what was in it nothing is read, whatever stands there now, and that kill -9 when
// nothing is in it yet leaves no damage.
func TestJournalReused(t *testing.T) {
	for name, key := range journalKeys {
		t.Run(name, func(t *testing.T) {
			j := openedJournal(t, t.TempDir(), key)
			old := fill(t, j, "aaaaaaaaaaaaaaaa")
			before, err := old.file.Stat()
			if err != nil {
				t.Fatal(err)
			}
			if names := tidy(t, j); len(names) != 1 || !strings.HasSuffix(names[0], spareName) {
				t.Fatalf("left are %q", names)
			}
			if err := j.ready(); err != nil {
				t.Fatal(err)
			}
			f := j.file
			if now, err := f.file.Stat(); err != nil || !os.SameFile(before, now) || now.Size() != journalSize {
				t.Fatalf("it is another file, or %d bytes long", now.Size())
			}
			if got := readJournal(t, f); len(got) > 0 {
				t.Errorf("of a file in which nothing is yet, %.80q was read", got)
			}
			for n := range uint32(3) {
				if _, _, err := j.add("bbbbbbbbbbbbbbbb", nil, opened(Block{n, []byte("new")})); err != nil {
					t.Fatal(err)
				}
				if err := j.syncAll(); err != nil {
					t.Fatal(err)
				}
				if got := readJournal(t, f); len(got) != int(n)+1 || got[n] != fmt.Sprintf(`bbbbbbbbbbbbbbbb %d "new"`, n) {
					t.Errorf("got %.80q", got)
				}
			}
			if err := j.close(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// TestJournalReusedKilled kills a broker whose journal is in files that have been others
// before: all is there, and nothing is said to be damaged.
func TestJournalReusedKilled(t *testing.T) {
	for name, key := range map[string]bool{"plain": false, "encrypted": true} {
		t.Run(name, func(t *testing.T) {
			data := t.TempDir()
			o := Options{Dir: filepath.Join(data, "log")}
			if key {
				var err error
				if o.Key, err = OpenKey(data); err != nil {
					t.Fatal(err)
				}
			}
			l := open(t, o)
			large, small := start(t, l), start(t, l)
			noise := make([]byte, 900<<10)
			want := 0
			for reused := false; !reused; want++ {
				if want > 500 {
					t.Fatal("no file is reused")
				}
				makeNoise(noise, byte(want))
				if err := large.Append(Frame{Bytes: noise}); err != nil {
					t.Fatal(err)
				}
				if want == 0 {
					small.add(t, "first")
				}
				l.journal.mu.Lock()
				reused = l.journal.file.beneath != nil
				l.journal.mu.Unlock()
			}
			undrained(t, small)
			undrained(t, large)
			small.add(t, "last")
			var said bytes.Buffer
			o.Dir, o.Log = killed(t, l), slog.New(slog.NewTextHandler(&said, nil))
			again := open(t, o)
			if got := fmt.Sprint(frames(t, again, small.ID())); got != "[s2c delivered first s2c delivered last]" {
				t.Errorf("got %s", got)
			}
			got := 0
			for f, err := range again.Frames(t.Context(), large.ID()) {
				if makeNoise(noise, byte(got)); err != nil || !bytes.Equal(f.Bytes, noise) {
					t.Fatalf("frame %d is another one, %v", got, err)
				}
				got++
			}
			if got != want {
				t.Errorf("%d frames came back, want %d", got, want)
			}
			if strings.Contains(said.String(), "damaged") {
				t.Errorf("it is said that %s", said.String())
			}
		})
	}
}

// TestJournalSpares checks that spare files are few, that they do not outlast what is
// deleted, also where it is from the time before, nor the journal, nor a kill.
func TestJournalSpares(t *testing.T) {
	dir := t.TempDir()
	j := openedJournal(t, dir, nil)
	const deleted, other = "aaaaaaaaaaaaaaaa", "bbbbbbbbbbbbbbbb"
	for range spareFiles + 2 {
		fill(t, j, deleted)
	}
	if names := tidy(t, j); len(names) != spareFiles {
		t.Errorf("left are %q", names)
	}
	t.Run("killed", func(t *testing.T) {
		copied := t.TempDir()
		if err := os.CopyFS(copied, os.DirFS(dir)); err != nil {
			t.Fatal(err)
		}
		again := openedJournal(t, copied, nil)
		if names := tidy(t, again); len(names) > 0 {
			t.Errorf("left are %q", names)
		}
	})
	if _, _, err := j.add(other, nil, opened(Block{0, []byte("over what was deleted")})); err != nil {
		t.Fatal(err)
	}
	f := j.file
	if j.forget(deleted); j.file == f {
		t.Error("what is behind its end has not ended a file")
	}
	j.release([]tailBlock{{file: f}})
	if names := tidy(t, j); len(names) > 0 {
		t.Errorf("left are %q", names)
	}
	fill(t, j, other)
	fill(t, j, other)
	tidy(t, j)
	if fill(t, j, other); len(j.spares) != 1 {
		t.Errorf("there are %d spare files", len(j.spares))
	}
	if err := j.close(); err != nil {
		t.Fatal(err)
	}
	if spares, err := filepath.Glob(filepath.Join(j.dir, "*"+spareName)); len(spares) > 0 || err != nil {
		t.Errorf("left are %q", spares)
	}
}

// TestJournalTogether has sessions recorded, flushed, drained and deleted at a time.
func TestJournalTogether(t *testing.T) {
	j := openedJournal(t, t.TempDir(), nil)
	block := opened(Block{0, bytes.Repeat([]byte("x"), 1<<20)})
	var all sync.WaitGroup
	for i := range 4 {
		session := fmt.Sprintf("session %08d", i)
		all.Go(func() {
			for range 40 {
				f, _, err := j.add(session, nil, block)
				if err != nil {
					t.Error(err)
					return
				}
				j.release([]tailBlock{{file: f}})
			}
		})
	}
	for _, f := range []func() error{
		j.syncAll,
		func() error { return j.remove(j.done(false)) },
		func() error { j.forget("session 00000002"); return nil },
		func() error { j.prepare(); return nil },
	} {
		all.Go(func() {
			for range 50 {
				if err := f(); err != nil {
					t.Error(err)
				}
				time.Sleep(time.Millisecond)
			}
		})
	}
	all.Wait()
	j.prepare()
	j.forget("session 00000001")
	if err := j.remove(j.done(true)); err != nil {
		t.Fatal(err)
	}
	for _, f := range j.spares {
		if f.has("session 00000001") {
			t.Errorf("%s has what was deleted", f.path)
		}
	}
	if j.next != nil && j.next.has("session 00000001") {
		t.Error("the next file has what was deleted")
	}
	if err := j.close(); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(j.dir); len(left) > 0 || err != nil {
		t.Errorf("left are %v", left)
	}
}

// TestJournalPrepared checks that a file that is prepared is the next one, that it does not
// outlast what is deleted, nor the journal, and that kill -9 leaves nothing of it.
func TestJournalPrepared(t *testing.T) {
	const deleted, other = "aaaaaaaaaaaaaaaa", "bbbbbbbbbbbbbbbb"
	dir := t.TempDir()
	j := openedJournal(t, dir, nil)
	add := func() {
		t.Helper()
		if _, _, err := j.add(other, nil, opened(Block{0, []byte("text")})); err != nil {
			t.Fatal(err)
		}
	}
	prepared := func() *journalFile {
		t.Helper()
		j.prepare()
		if j.prepare(); j.next == nil || j.preparing != nil {
			t.Fatal("no file is prepared, or another one still is")
		}
		return j.next
	}
	fill(t, j, deleted)
	select {
	case <-j.ahead:
	default:
		t.Error("nobody was told to prepare the next file")
	}
	tidy(t, j)
	add() // to the spare one
	first := j.file

	f := prepared()
	if next(j); f == first || j.files[len(j.files)-1] != first {
		t.Error("the file has begun before something came to it")
	}
	if add(); j.file != f || f.number != first.number+1 || j.next != nil || j.older(1) != first.number {
		t.Errorf("%s came after %s, want %s", j.file.path, first.path, f.path)
	}
	j.release([]tailBlock{{file: f}, {file: first}})

	prepared() // which is a new one, for there was no other
	fill(t, j, deleted)
	tidy(t, j)
	if f = prepared(); !f.beneath[deleted] {
		t.Fatal("the file has not been another one")
	}
	copied := t.TempDir()
	if err := os.CopyFS(copied, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	open(t, Options{Dir: copied, Log: slog.New(slog.NewTextHandler(&said, nil))})
	if left := journalFiles(t, copied); len(left) > 0 || said.Len() > 0 {
		t.Errorf("kill -9 leaves %q, and it is said that %s", left, said.String())
	}

	for range 2 { // the second must not take it for a file that has begun
		if j.forget(deleted); j.next != nil || j.away >= f.number {
			t.Errorf("what is deleted is in the next file, or all up to %d must go", j.away)
		}
	}
	if names := tidy(t, j); slices.Contains(names, filepath.Base(f.path)) {
		t.Errorf("left are %q", names)
	}
	fill(t, j, deleted)
	tidy(t, j)
	j.preparing = j.newFile() // is being made
	if j.forget(deleted); j.preparing != nil {
		t.Error("what is deleted will be in the next file")
	}
	f = prepared()
	if err := j.close(); err != nil {
		t.Fatal(err)
	}
	if names := tidy(t, j); slices.Contains(names, filepath.Base(f.path)) {
		t.Errorf("left are %q", names)
	}
}

// TestJournalLate checks that a file that is prepared when the next has begun already is
// none, and goes.
func TestJournalLate(t *testing.T) {
	j := openedJournal(t, t.TempDir(), nil)
	defer j.close()
	late := 0
	for range 50 {
		prepared := make(chan struct{})
		go func() { j.prepare(); close(prepared) }()
		for begun := false; !begun; {
			j.mu.Lock()
			begun = j.preparing != nil || j.next != nil
			j.mu.Unlock()
		}
		next(j)
		f, _, err := j.add("aaaaaaaaaaaaaaaa", nil, opened(Block{0, []byte("text")}))
		if err != nil {
			t.Fatal(err)
		}
		<-prepared
		if j.next != nil && j.next.number <= f.number {
			t.Fatalf("file %d comes after %d", j.next.number, f.number)
		}
		if len(j.files) > 1 {
			late++
		}
		j.release([]tailBlock{{file: f}})
		next(j)
		j.syncAll()
		if names := tidy(t, j); len(names) > 0 && j.next == nil {
			t.Fatalf("left are %q", names)
		}
	}
	if late == 0 {
		t.Error("no file was late")
	}
}
