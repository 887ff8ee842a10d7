package recorder

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestPendingKilled kills a broker of whose sessions nothing but long frames is in a file of
// the journal: all comes back, in its order.
func TestPendingKilled(t *testing.T) {
	for name, key := range journalKeys {
		t.Run(name, func(t *testing.T) {
			o := Options{Dir: filepath.Join(t.TempDir(), "log"), Sync: SyncNone}
			if key != nil {
				o.Encryption = secretFile(t)
			}
			l := open(t, o)
			r, short := start(t, l), start(t, l)
			undrained(t, r)
			undrained(t, short)
			short.add(t, "a")
			if all := readJournal(t, l.journal.file); len(all) > 0 {
				t.Fatalf("%q is in the file", all)
			}
			long := make([]byte, pendingSize*3/4)
			want := []string{}
			for i := range 40 {
				frame := fmt.Appendf(nil, "frame %d", i)
				if i%8 == 7 {
					makeNoise(long, byte(i))
					frame = long
				}
				want = append(want, "c2s delivered "+string(frame))
				if err := r.Append(Frame{Bytes: frame}); err != nil {
					t.Fatal(err)
				}
			}
			short.add(t, "b")
			var said bytes.Buffer
			o = l.o
			o.Dir, o.Log = killed(t, l), slog.New(slog.NewTextHandler(&said, nil))
			again := open(t, o)
			if got := frames(t, again, r.ID()); !slices.Equal(got, want) {
				t.Errorf("%d frames came back, or others: %.300q", len(got), got)
			}
			if got := fmt.Sprint(frames(t, again, short.ID())); got != "[s2c delivered a s2c delivered b]" {
				t.Errorf("got %s", got)
			}
			if strings.Contains(said.String(), "damaged") {
				t.Errorf("it is said that %s", &said)
			}
		})
	}
}

// TestPendingRestored brings what a dead process has left pending to its file, from each
// state that a kill or a loss of power may leave, and with damage anywhere.
func TestPendingRestored(t *testing.T) {
	const session = "0123456789abcdef"
	for name, key := range journalKeys {
		t.Run(name, func(t *testing.T) {
			j := openedJournal(t, t.TempDir(), key)
			all := []string{}
			add := func(numbers ...uint32) {
				for _, n := range numbers {
					text := strings.Repeat(fmt.Sprint("text ", n), 3)
					if _, _, err := j.add(session, nil, opened(Block{n, []byte(text)})); err != nil {
						t.Fatal(err)
					}
					all = append(all, fmt.Sprintf("%s %d %q", session, n, text))
				}
			}
			spill := func() {
				if err := j.syncAll(); err != nil {
					t.Fatal(err)
				}
			}
			now := func() (file, pending []byte) {
				file, err := os.ReadFile(j.file.path)
				pending, wrong := os.ReadFile(j.pending.path)
				if err := errors.Join(err, wrong); err != nil {
					t.Fatal(err)
				}
				end := j.file.size
				if j.pending.size > 0 {
					end = j.pending.from
				}
				return file[:end+entryHead], pending // and not the rest of its block
			}
			add(0, 1)
			spill()
			add(2, 3, 4)
			before, pending := now()
			spill()
			after, _ := now()
			add(5)
			_, next := now()
			spill()
			later, _ := now()

			// restored is what is read when a file and what is pending are so.
			restored := func(file, pending []byte) (got []string, said string) {
				t.Helper()
				dir := t.TempDir()
				folder := filepath.Join(dir, "journal")
				if err := errors.Join(os.Mkdir(folder, 0o700), os.WriteFile(filepath.Join(folder, filepath.Base(j.file.path)), file, 0o600),
					os.WriteFile(filepath.Join(folder, filepath.Base(j.pending.path)), pending, 0o600)); err != nil {
					t.Fatal(err)
				}
				var log bytes.Buffer
				j, err := openJournal(dir, key, newBell(), slog.New(slog.NewTextHandler(&log, nil)))
				if err != nil {
					t.Fatal(err)
				}
				got = readJournal(t, j.files[0])
				j.files[0].loaded = true
				if err := j.remove(j.done(true)); err != nil {
					t.Fatal(err)
				}
				if left, err := os.ReadDir(folder); len(left) > 0 || err != nil {
					t.Fatalf("%v are left, %v", left, err)
				}
				return got, log.String()
			}
			for name, c := range map[string]struct {
				file, pending []byte
				want          []string
			}{
				"not spilled":               {before, pending, all[:5]},
				"spilled":                   {after, pending, all[:5]},
				"spilled, and more":         {after, next, all},
				"all spilled":               {later, next, all},
				"of before a loss of power": {later, pending, all},
				"of a file that is shorter": {nil, pending, append([]string{"!"}, all[2:5]...)},
				"as it is made":             {before, make([]byte, len(pending)), all[:2]},
				"empty":                     {before, nil, all[:2]},
			} {
				if got, said := restored(c.file, c.pending); !slices.Equal(got, c.want) || said != "" {
					t.Errorf("%s: got %q, want %q; %s", name, got, c.want, said)
				}
			}
			end := len(after) - entryHead
			for n := len(before) - entryHead; n <= len(after); n++ { // killed while it is spilled
				torn := append(bytes.Clone(after[:n]), before[min(n, len(before)):]...)
				want := all[:5]
				if n > end && n < len(after) { // nobody knows whether more was there
					want = append(slices.Clone(want), "!")
				}
				if got, said := restored(torn, pending); !slices.Equal(got, want) || said != "" {
					t.Fatalf("%d bytes are spilled: got %q; %s", n, got, said)
				}
			}
			entries := len(after) - len(before) // of it, in bytes
			torn := bytes.Clone(later)
			torn[len(torn)-entryHead-1] ^= 0x41
			for n := range pendingHead + entries + entryHead {
				bad := bytes.Clone(pending)
				bad[n] ^= 0x41
				if got, _ := restored(after, bad); n >= pendingHead && !slices.Equal(got, all[:5]) {
					t.Fatalf("damaged at %d, and spilled: got %q", n, got)
				}
				if got, _ := restored(torn, bad); n >= pendingHead && !slices.Equal(got, append(slices.Clone(all[:5]), "!")) {
					t.Fatalf("damaged at %d, and its file behind that: got %q", n, got)
				}
				got, said := restored(before, bad)
				if n < pendingHead {
					if named := slices.Index(got, "!"); !slices.Equal(got[named+1:], all[:2]) || named < 0 && !strings.Contains(said, pendingName) {
						t.Fatalf("damaged at %d: got %q; %q", n, got, said)
					}
					continue
				}
				want := slices.Clone(all[:5])
				if i := 2 + 3*(n-pendingHead)/entries; i < 5 {
					want[i] = "!"
				} else {
					want = append(want, "!")
				}
				if !slices.Equal(got, want) {
					t.Fatalf("damaged at %d: got %q, want %q", n, got, want)
				}
				want = all[:2+3*(n-pendingHead)/entries]
				got, _ = restored(before, pending[:n])
				if got = slices.DeleteFunc(got, func(s string) bool { return s == "!" }); !slices.Equal(got, want) {
					t.Fatalf("cut at %d: got %q, want %q", n, got, want)
				}
			}
			far := binary.LittleEndian.AppendUint64(bytes.Clone(pending[:8]), 1<<34)
			if got, said := restored(before, append(far, pending[pendingHead:]...)); !slices.Equal(got, all[:2]) || !strings.Contains(said, pendingName) {
				t.Errorf("far behind its file: got %q; %q", got, said)
			}
			if err := j.close(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// TestPendingForgets checks that what is deleted is not in the mapped file, whether it has
// been spilled or not, nor what a file had of which the database has all.
func TestPendingForgets(t *testing.T) {
	const deleted = "aaaaaaaaaaaaaaaa"
	for name, end := range map[string]func(*journal){
		"pending":       func(j *journal) { j.forget(deleted) },
		"spilled":       func(j *journal) { j.syncAll(); j.forget(deleted) },
		"another's end": func(j *journal) { j.syncAll(); j.forget("bbbbbbbbbbbbbbbb") },
		"not spilled at once": func(j *journal) {
			file := j.file.file
			j.file.file, _ = os.Open(j.file.path)
			j.forget(deleted)
			j.pending.file.file.Close()
			j.pending.file.file = file
			j.ready()
			j.syncAll()
		},
		"drained": func(j *journal) { j.release([]tailBlock{{file: j.file}}); j.remove(j.done(true)) },
	} {
		j := openedJournal(t, t.TempDir(), nil)
		if _, _, err := j.add(deleted, nil, opened(Block{0, []byte(marker)})); err != nil {
			t.Fatal(err)
		}
		file := j.file
		end(j)
		if b, err := os.ReadFile(j.pending.path); err != nil || bytes.Contains(b, []byte(marker)) {
			t.Errorf("%s: it is there, %v", name, err)
		}
		if b, err := os.ReadFile(file.path); err == nil && !bytes.Contains(b, []byte(marker)) {
			t.Errorf("%s: it was dropped, and is not in its file", name)
		}
		if err := j.close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestPendingNext begins a file while something of the one before is pending.
func TestPendingNext(t *testing.T) {
	dir := t.TempDir()
	j := openedJournal(t, dir, nil)
	for n := range uint32(3) {
		if _, _, err := j.add("aaaaaaaaaaaaaaaa", nil, opened(Block{n, []byte("text")})); err != nil {
			t.Fatal(err)
		}
		next(j)
	}
	again := openedJournal(t, dir, nil) // as if the first were dead
	for n, f := range again.files {
		if got := fmt.Sprint(readJournal(t, f)); got != fmt.Sprintf(`[aaaaaaaaaaaaaaaa %d "text"]`, n) {
			t.Errorf("file %d has %s", n, got)
		}
	}
}

// TestPendingSpare checks that a file whose end could not be spilled does not become another:
// what is behind that is of nobody knows what time.
func TestPendingSpare(t *testing.T) {
	j := openedJournal(t, t.TempDir(), nil)
	f, _, err := j.add("aaaaaaaaaaaaaaaa", nil, opened(Block{0, []byte("pending")}))
	if err != nil {
		t.Fatal(err)
	}
	f.size = journalSize
	next(j)
	j.release([]tailBlock{{file: f}})
	if names := tidy(t, j); len(names) > 0 {
		t.Errorf("left are %q", names)
	}
	if err := j.close(); err != nil {
		t.Fatal(err)
	}
}

// TestPendingFault takes the disk's pages away from under the mapping: what is recorded then
// is refused, and the process goes on.
func TestPendingFault(t *testing.T) {
	for _, spilled := range []bool{true, false} {
		dir := t.TempDir()
		l := open(t, Options{Dir: dir, Sync: SyncNone})
		r := start(t, l)
		r.add(t, "a")
		if spilled {
			if err := l.journal.syncAll(); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Truncate(l.journal.pending.path, 0); err != nil {
			t.Fatal(err)
		}
		if !spilled {
			if l.syncNow() {
				t.Error("what is gone was flushed")
			}
		}
		if err := r.Append(Frame{Bytes: []byte("b")}); !errors.Is(err, ErrUnavailable) {
			t.Errorf("append: %v", err)
		}
		if err := l.Ready(); !errors.Is(err, ErrUnavailable) {
			t.Errorf("ready: %v", err)
		}
		l.Close()
		l = open(t, Options{Dir: dir})
		if got := fmt.Sprint(frames(t, l, r.ID())); spilled && got != "[s2c delivered a]" {
			t.Errorf("opened again: got %s", got)
		}
		start(t, l).add(t, "c")
	}
}

// TestPendingFull has no room for what is pending: until there is some, sessions are refused,
// and nothing is lost.
func TestPendingFull(t *testing.T) {
	for _, sync := range []Sync{SyncNone, SyncAlways} {
		l := open(t, Options{Dir: t.TempDir(), Sync: sync})
		r, other := start(t, l), start(t, l)
		r.add(t, "a")
		f := l.journal.file
		file := f.file
		swap := func(to *os.File) {
			l.journal.mu.Lock()
			defer l.journal.mu.Unlock()
			f.file = to
		}
		full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
		if err != nil {
			t.Skip(err)
		}
		defer full.Close()
		swap(full)
		if err := other.Append(Frame{Bytes: []byte("b")}); sync == SyncAlways && !errors.Is(err, ErrUnavailable) {
			t.Errorf("append: %v", err)
		}
		if l.syncNow() {
			t.Error("there was room")
		}
		if err := l.Ready(); !errors.Is(err, ErrUnavailable) || !errors.Is(err, errFull) {
			t.Errorf("ready: %v", err)
		}
		swap(file)
		if err := l.Ready(); err != nil {
			t.Errorf("with room again: %v", err)
		}
		if !l.syncNow() {
			t.Error("it is not flushed")
		}
		r.add(t, "c")
		if got := fmt.Sprint(frames(t, l, r.ID())); got != "[s2c delivered a s2c delivered c]" {
			t.Errorf("got %s", got)
		}
		if sync == SyncNone {
			if got := fmt.Sprint(frames(t, l, other.ID())); got != "[c2s delivered b]" {
				t.Errorf("got %s", got)
			}
		}
		if err := errors.Join(r.End(Ended, "closed"), other.End(Ended, "closed"), l.drainAll()); err != nil {
			t.Error(err)
		}
		if left := journalFiles(t, l.o.Dir); len(left) > 0 {
			t.Errorf("left are %q", left)
		}
	}
}

// TestPendingClosed closes a journal that could not be spilled: what is deleted then is no
// failure, and all of it is there when it is opened again.
func TestPendingClosed(t *testing.T) {
	dir := t.TempDir()
	j := openedJournal(t, dir, nil)
	f, _, err := j.add("aaaaaaaaaaaaaaaa", nil, opened(Block{0, []byte("text")}))
	if err != nil {
		t.Fatal(err)
	}
	f.file.Close()
	if err := j.close(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("close: %v", err)
	}
	j.forget("aaaaaaaaaaaaaaaa")
	j = openedJournal(t, dir, nil)
	if got := fmt.Sprint(readJournal(t, j.files[0])); got != `[aaaaaaaaaaaaaaaa 0 "text"]` {
		t.Errorf("got %s", got)
	}
}
