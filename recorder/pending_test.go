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
			j, err := openJournal(t.TempDir(), key, newBell(), slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
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
				return file, pending
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
				path := filepath.Join(dir, "journal", filepath.Base(j.file.path))
				if err := errors.Join(os.Mkdir(filepath.Join(dir, "journal"), 0o700), os.WriteFile(path, file, 0o600),
					os.WriteFile(filepath.Join(dir, "journal", pendingName), pending, 0o600)); err != nil {
					t.Fatal(err)
				}
				var log bytes.Buffer
				j, err := openJournal(dir, key, newBell(), slog.New(slog.NewTextHandler(&log, nil)))
				if err != nil {
					t.Fatal(err)
				}
				if _, err := os.Stat(j.pending.path); err == nil {
					t.Error("it is left")
				}
				return readJournal(t, j.files[0]), log.String()
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
				"as it is made":             {before, make([]byte, len(pending)), all[:2]},
				"empty":                     {before, nil, all[:2]},
			} {
				if got, said := restored(c.file, c.pending); !slices.Equal(got, c.want) || said != "" {
					t.Errorf("%s: got %q, want %q; %s", name, got, c.want, said)
				}
			}
			for n := len(before) - entryHead; n <= len(after); n++ { // killed while it is spilled
				torn := append(bytes.Clone(after[:n]), before[min(n, len(before)):]...)
				if got, said := restored(torn, pending); !slices.Equal(got, all[:5]) || said != "" {
					t.Fatalf("%d bytes are spilled: got %q; %s", n, got, said)
				}
			}
			entries := len(after) - len(before) // of it, in bytes
			for n := range pendingHead + entries + entryHead {
				bad := bytes.Clone(pending)
				bad[n] ^= 0x41
				if got, _ := restored(after, bad); !slices.Equal(got, all[:5]) {
					t.Fatalf("damaged at %d, and spilled: got %q", n, got)
				}
				got, said := restored(before, bad)
				if n < pendingHead {
					if !slices.Equal(got, all[:2]) || !strings.Contains(said, pendingName) {
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
				if got, _ := restored(before, pending[:n]); len(got) < 2 || !slices.Equal(got[:2], all[:2]) {
					t.Fatalf("cut at %d: got %q", n, got)
				}
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
		"drained":       func(j *journal) { j.release([]tailBlock{{file: j.file}}); j.remove(j.done(true)) },
	} {
		j, err := openJournal(t.TempDir(), nil, newBell(), slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
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
	j, err := openJournal(dir, nil, newBell(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	for n := range uint32(3) {
		if _, _, err := j.add("aaaaaaaaaaaaaaaa", nil, opened(Block{n, []byte("text")})); err != nil {
			t.Fatal(err)
		}
		next(j)
	}
	again, err := openJournal(dir, nil, newBell(), slog.New(slog.DiscardHandler)) // as if the first were dead
	if err != nil {
		t.Fatal(err)
	}
	for n, f := range again.files {
		if got := fmt.Sprint(readJournal(t, f)); got != fmt.Sprintf(`[aaaaaaaaaaaaaaaa %d "text"]`, n) {
			t.Errorf("file %d has %s", n, got)
		}
	}
}

// TestPendingSpare checks that a file whose end could not be spilled does not become another:
// what is behind that is of nobody knows what time.
func TestPendingSpare(t *testing.T) {
	j, err := openJournal(t.TempDir(), nil, newBell(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
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
	for name, sync := range map[string]Sync{"to put": SyncNone, "to spill": SyncAlways} {
		dir := t.TempDir()
		l := open(t, Options{Dir: dir, Sync: sync})
		r := start(t, l)
		r.add(t, "a")
		if err := l.journal.syncAll(); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(l.journal.pending.path, 0); err != nil {
			t.Fatal(err)
		}
		if err := r.Append(Frame{Bytes: []byte("b")}); !errors.Is(err, ErrUnavailable) {
			t.Errorf("%s: append: %v", name, err)
		}
		if err := l.Ready(); !errors.Is(err, ErrUnavailable) {
			t.Errorf("%s: ready: %v", name, err)
		}
		l.Close()
		l = open(t, Options{Dir: dir})
		if got := fmt.Sprint(frames(t, l, r.ID())); got != "[s2c delivered a]" {
			t.Errorf("%s: opened again: got %s", name, got)
		}
		start(t, l).add(t, "c")
	}
}
