package recorder

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"filippo.io/age"

	"example.com/broker/codec"
)

// A folder is an Archive whose uses fail on command.
type folder struct {
	dir     string
	fail    func(use string) error // of create, write, close, open, read, delete; may be nil
	created context.Context        // with which the last object was
}

func (f *folder) use(what string) error {
	if f.fail == nil {
		return nil
	}
	return f.fail(what)
}

func (f *folder) Create(ctx context.Context, name string) (io.WriteCloser, error) {
	f.created = ctx
	if err := f.use("create"); err != nil {
		return nil, err
	}
	return &folderWriter{f: f, ctx: ctx, name: name}, nil
}

type folderWriter struct {
	f    *folder
	ctx  context.Context
	name string
	bytes.Buffer
}

func (w *folderWriter) Write(b []byte) (int, error) {
	if err := errors.Join(w.f.use("write"), w.ctx.Err()); err != nil {
		return 0, err
	}
	return w.Buffer.Write(b)
}

func (w *folderWriter) Close() error {
	if err := errors.Join(w.f.use("close"), w.ctx.Err()); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(w.f.dir, w.name), w.Bytes(), 0o600)
}

func (f *folder) Open(_ context.Context, name string) (io.ReadCloser, error) {
	if err := f.use("open"); err != nil {
		return nil, err
	}
	in, err := os.Open(filepath.Join(f.dir, name))
	if err != nil {
		return nil, err
	}
	return &folderReader{in, f}, nil
}

type folderReader struct {
	*os.File
	f *folder
}

func (r *folderReader) Read(b []byte) (int, error) {
	if err := r.f.use("read"); err != nil {
		return 0, err
	}
	return r.File.Read(b)
}

func (f *folder) Delete(_ context.Context, name string) error {
	if err := f.use("delete"); err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(f.dir, name)); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

func (f *folder) Close() error { return nil }

// objects returns the sessions of all objects.
func (f *folder) objects() (sessions []string) {
	entries, _ := os.ReadDir(f.dir)
	for _, e := range entries {
		id, _, _ := strings.Cut(e.Name(), "-")
		sessions = append(sessions, id)
	}
	return sessions
}

// path returns the path of a session's object.
func (f *folder) path(session string) string {
	paths, _ := filepath.Glob(filepath.Join(f.dir, session+"-????????.age"))
	if len(paths) != 1 {
		return filepath.Join(f.dir, "none")
	}
	return paths[0]
}

// opener opens folders at test://DIR.
func (f *folder) opener(_ context.Context, url string) (Archive, error) {
	if place := placeOf(url); place != "test://"+f.dir {
		return &folder{dir: strings.TrimPrefix(place, "test://")}, nil
	}
	return f, nil
}

// openArchiving opens a log that archives when it is told to.
func openArchiving(t *testing.T, o Options) (*Log, *folder, string) {
	t.Helper()
	f := &folder{dir: t.TempDir()}
	o.Archive, o.ArchiveAfter, o.OpenArchive, o.still = "test://"+f.dir, time.Hour, f.opener, true
	l, verifier := openSigned(t, o)
	return l, f, verifier
}

// archiveAt archives what is due so long from now on.
func archiveAt(t *testing.T, l *Log, after time.Duration) error {
	t.Helper()
	ids, err := l.someIDs(rewriteKey(""))
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range ids {
		if err := l.rewrite(id); err != nil {
			t.Fatal(err)
		}
	}
	_, err = l.archiveDue(t.Context(), time.Now().Add(after))
	return err
}

func localBlocks(t *testing.T, l *Log, session string) int {
	t.Helper()
	keys, err := l.someIDs(blockPrefix(session))
	if err != nil {
		t.Fatal(err)
	}
	return len(keys)
}

// ended puts a session with a few frames on record that has ended.
func ended(t *testing.T, l *Log) string {
	t.Helper()
	r := start(t, l)
	if err := r.Append(Frame{Bytes: []byte("look-for-me")}, Frame{Direction: codec.S2C, Bytes: bytes.Repeat([]byte("b"), 100)}); err != nil {
		t.Fatal(err)
	}
	if err := r.End(Ended, "closed"); err != nil {
		t.Fatal(err)
	}
	return r.ID()
}

// quiet waits until a session that has ended is indexed: that commits, too.
func quiet(l *Log, session string) {
	for mark := empty; mark != nil; mark, _ = l.value(unindexedKey(session)) {
		time.Sleep(time.Millisecond)
	}
}

// TestArchive checks that sessions move when their time has come, and are then read,
// found and proven as before, on either way to the log.
func TestArchive(t *testing.T) {
	l, f, verifier := openArchiving(t, Options{})
	much, empty, small, running := recordMuch(t, l), start(t, l), ended(t, l), start(t, l)
	for _, r := range []*Recording{much, empty} {
		if err := r.End(Ended, "closed"); err != nil {
			t.Fatal(err)
		}
	}
	if err := running.Append(Frame{Bytes: []byte("runs")}); err != nil {
		t.Fatal(err)
	}
	want := map[string][]string{}
	for _, id := range []string{much.ID(), empty.ID(), small, running.ID()} {
		want[id] = allOf(t, l, id)
	}
	proof, err := l.Proof(t.Context(), small)
	if err != nil {
		t.Fatal(err)
	}
	before := verified(t, l, verifier, nil)

	if err := archiveAt(t, l, 59*time.Minute); err != nil || len(f.objects()) > 0 {
		t.Fatalf("before their time: %v, %v", f.objects(), err)
	}
	if err := archiveAt(t, l, 61*time.Minute); err != nil {
		t.Fatal(err)
	}
	names := []string{much.ID(), small}
	slices.Sort(names)
	if got := f.objects(); !slices.Equal(got, names) {
		t.Fatalf("objects are %v, want %v", got, names)
	}
	for name, src := range map[string]Source{"log": l, "socket": served(t, l)} {
		for id, want := range want {
			if got := allOf(t, src, id); !slices.Equal(got, want) {
				t.Errorf("%s: %d frames are others than the %d before", name, len(got), len(want))
			}
		}
		for id, at := range map[string]string{much.ID(): l.o.Archive, small: l.o.Archive, empty.ID(): "", running.ID(): ""} {
			if s, err := src.Session(t.Context(), id); s.Archived != at || err != nil {
				t.Errorf("%s: a session is at %q, want %q, %v", name, s.Archived, at, err)
			}
		}
		if r := verified(t, src, verifier, before.Seen); len(r.Faults) > 0 || r.Frames != before.Frames || r.Sessions != 4 {
			t.Errorf("%s: %+v", name, r)
		}
		if r, err := VerifySession(t.Context(), src, small, verifier); err != nil || len(r.Faults) > 0 {
			t.Errorf("%s: %+v, %v", name, r, err)
		}
		found := 0
		for range src.Find(t.Context(), Query{Text: []string{"look-for-me"}}) {
			found++
		}
		if found != 1 {
			t.Errorf("%s: %d sessions are found", name, found)
		}
		follows := 0
		for _, err := range src.Follow(t.Context(), small) {
			if follows++; err != nil {
				t.Error(err)
			}
		}
		if follows != 2 {
			t.Errorf("%s: %d frames are followed", name, follows)
		}
	}
	if _, _, err := proof.Check(verifier); err != nil {
		t.Errorf("a proof from before: %v", err)
	}
	for _, id := range []string{much.ID(), small} {
		if n := localBlocks(t, l, id); n > 0 {
			t.Errorf("%d blocks are in the log", n)
		}
		for from := uint32(0); from < 3000; from += 97 { // who comes back for more
			l.blocks(t.Context(), id, from, func(n uint32, b []byte) (bool, error) {
				if h, err := readHeader(b); err != nil || from < n || from >= n+h.count {
					t.Errorf("record %d is not in block %d, of %d records, %v", from, n, h.count, err)
				}
				return false, nil
			})
		}
	}

	// The object is an age file, and nothing of the session is in the clear.
	object, err := os.ReadFile(f.path(small))
	if err != nil || bytes.Contains(object, []byte("look-for-me")) || bytes.Contains(object, []byte("ada")) {
		t.Fatalf("the object is in the clear, %v", err)
	}
	mark, _ := l.markOf(small)
	key, err := age.ParseX25519Identity(mark.Key)
	if err != nil {
		t.Fatal(err)
	}
	plain, err := age.Decrypt(bytes.NewReader(object), key)
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(plain)
	if record, _ := l.value(sessionKey(small)); err != nil || !bytes.HasPrefix(text, append(record, '\n')) || !bytes.Contains(text, []byte("look-for-me")) {
		t.Errorf("the object does not hold the session, %v", err)
	}

	// What comes later goes on from there, and so does a log that is opened again.
	running.End(Ended, "closed")
	l.Close()
	l = open(t, l.o)
	if err := archiveAt(t, l, 61*time.Minute); err != nil || len(f.objects()) != 3 || l.archiving.moved.Sessions != 3 || l.archiving.moved.Next != 4 {
		t.Errorf("%v, %+v, %v", f.objects(), l.archiving.moved, err)
	}
	for id, want := range want {
		if got := allOf(t, l, id); !slices.Equal(got, want) {
			t.Errorf("%d frames are others than the %d before", len(got), len(want))
		}
	}
}

// TestArchiveByItself checks that a log archives without being told to.
func TestArchiveByItself(t *testing.T) {
	f := &folder{dir: t.TempDir()}
	l, _ := openSigned(t, Options{Archive: "test://" + f.dir, OpenArchive: f.opener})
	id := ended(t, l)
	for deadline := time.Now().Add(20 * time.Second); localBlocks(t, l, id) > 0; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it does not")
		}
	}
	if got := frames(t, l, id); len(got) != 2 {
		t.Errorf("frames are %q", got)
	}
}

// TestArchiveClock checks that a session whose end is far ahead, by a clock that was wrong,
// keeps no other from the archive.
func TestArchiveClock(t *testing.T) {
	l, f, _ := openArchiving(t, Options{})
	ahead := kept(t, l, time.Now().Add(1000*time.Hour), 0)[0]
	id := ended(t, l)
	if err := archiveAt(t, l, time.Hour+time.Minute); err != nil {
		t.Fatal(err)
	}
	want := []string{ahead, id}
	if slices.Sort(want); !slices.Equal(f.objects(), want) {
		t.Errorf("objects are %v, want %v", f.objects(), want)
	}
}

const archiveVictim = "RECORDER_ARCHIVE_VICTIM"

// beArchiveVictim archives until it has come to a step, and dies there.
func beArchiveVictim(arg string) {
	dir, rest, _ := strings.Cut(arg, ",")
	to, step, _ := strings.Cut(rest, ",")
	die := func(here bool) {
		if here {
			syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
	}
	writes := 0
	f := &folder{dir: to, fail: func(use string) error {
		if use == "write" {
			writes++
		}
		die(step == use && (use != "write" || writes == 3))
		return nil
	}}
	l, err := Open(Options{Dir: dir, Archive: "test://" + to, OpenArchive: f.opener, still: true, stepped: func(n int) { die(step == fmt.Sprint(n)) }})
	if err == nil {
		_, err = l.archiveDue(context.Background(), time.Now().Add(time.Hour))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	l.Close()
}

// TestArchiveKilled kills a process between any two steps.
func TestArchiveKilled(t *testing.T) {
	for _, step := range []string{"1", "create", "write", "close", "2", "open", "read", "3", "4", "5"} {
		t.Run(step, func(t *testing.T) {
			dir, f := t.TempDir(), &folder{dir: t.TempDir()}
			o := Options{Dir: dir, Archive: "test://" + f.dir, OpenArchive: f.opener, still: true}
			l := open(t, o)
			r := recordMuch(t, l)
			if err := r.End(Ended, "closed"); err != nil {
				t.Fatal(err)
			}
			if err := l.rewrite(r.ID()); err != nil {
				t.Fatal(err)
			}
			want := allOf(t, l, r.ID())
			l.Close()
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), archiveVictim+"="+dir+","+f.dir+","+step)
			cmd.Stderr = os.Stderr
			if err, e := cmd.Run(), (*exec.ExitError)(nil); !errors.As(err, &e) || e.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
				t.Fatalf("it is not killed: %v", err)
			}
			l = open(t, o)
			if got := allOf(t, l, r.ID()); !slices.Equal(got, want) {
				t.Errorf("killed: %d frames are others than the %d before", len(got), len(want))
			}
			if gone := localBlocks(t, l, r.ID()) == 0; gone != (step == "5") {
				t.Errorf("killed: the blocks are gone: %v", gone)
			}
			if err := archiveAt(t, l, time.Hour); err != nil {
				t.Fatal(err)
			}
			if got := allOf(t, l, r.ID()); !slices.Equal(got, want) {
				t.Errorf("%d frames are others than the %d before", len(got), len(want))
			}
			if n, objects := localBlocks(t, l, r.ID()), f.objects(); n > 0 || len(objects) != 1 || l.archiving.moved.Sessions != 1 {
				t.Errorf("%d blocks are left, objects %v, %+v", n, objects, l.archiving.moved)
			}
		})
	}
}

// TestArchiveFails checks that whatever of the archive or of the log fails, at whatever
// time, keeps the session as it is, and that it moves when nothing does.
func TestArchiveFails(t *testing.T) {
	l, f, verifier := openArchiving(t, Options{})
	broken := errors.New("it is broken")
	var uses []string
	f.fail = func(use string) error { uses = append(uses, use); return nil }
	quiet(l, ended(t, l))
	commits := 0
	l.failBy(func() error { commits++; return nil })
	if err := archiveAt(t, l, time.Hour); err != nil {
		t.Fatal(err)
	}
	l.fault.Store(nil)
	if len(uses) < 6 || commits < 3 {
		t.Fatalf("it took %v and %d commits", uses, commits)
	}
	for i := range len(uses) + commits {
		id := ended(t, l)
		want := allOf(t, l, id)
		quiet(l, id)
		n := 0
		count := func() error {
			if n++; n-1 == i || n-1 == i-len(uses) {
				return broken
			}
			return nil
		}
		if i < len(uses) {
			f.fail = func(string) error { return count() }
		} else {
			l.failBy(count)
		}
		err := archiveAt(t, l, time.Hour)
		f.fail = nil
		l.fault.Store(nil)
		if !errors.Is(err, broken) || i < len(uses) && !errors.Is(err, ErrArchive) {
			t.Errorf("failure %d: error %v", i, err)
		}
		if got := allOf(t, l, id); !slices.Equal(got, want) {
			t.Errorf("failure %d: %d frames are others than the %d before", i, len(got), len(want))
		}
		if err := errors.Join(l.Ready(), archiveAt(t, l, time.Hour)); err != nil {
			t.Fatalf("failure %d: %v", i, err)
		}
		if got := allOf(t, l, id); !slices.Equal(got, want) || localBlocks(t, l, id) > 0 {
			t.Errorf("failure %d: %d frames are others than the %d before, %d blocks are in the log", i, len(got), len(want), localBlocks(t, l, id))
		}
	}
	if r := verified(t, l, verifier, nil); len(r.Faults) > 0 {
		t.Error(r.Faults)
	}
	if got := len(f.objects()); got != len(uses)+commits+1 {
		t.Errorf("%d objects", got)
	}
}

// A storage that keeps something else than what it was given keeps no session.
func TestArchiveLies(t *testing.T) {
	l, f, _ := openArchiving(t, Options{})
	id := ended(t, l)
	for _, lie := range []struct {
		what string
		of   func(b []byte) []byte
	}{
		{"a byte", func(b []byte) []byte { b[len(b)-30] ^= 1; return b }},
		{"cut", func(b []byte) []byte { return b[:len(b)-1] }},
		{"longer", func(b []byte) []byte { return append(b, 'x') }},
		{"nothing", func([]byte) []byte { return nil }}, // at last: it leaves nothing to change
	} {
		f.fail = func(use string) error {
			if use == "open" {
				b, err := os.ReadFile(f.path(id))
				if err != nil {
					return nil
				}
				return os.WriteFile(f.path(id), lie.of(b), 0o600)
			}
			return nil
		}
		err := archiveAt(t, l, time.Hour)
		if !errors.Is(err, ErrArchive) || !strings.Contains(fmt.Sprint(err), "comes back as something else") || localBlocks(t, l, id) == 0 {
			t.Errorf("%s: %v", lie.what, err)
		}
	}
	f.fail = nil
	if err := archiveAt(t, l, time.Hour); err != nil || localBlocks(t, l, id) > 0 {
		t.Error(err)
	}
}

// TestArchiveDamaged checks that a session that is damaged in the log stays there, and
// keeps no other.
func TestArchiveDamaged(t *testing.T) {
	l, f, _ := openArchiving(t, Options{})
	block, record, whole := ended(t, l), ended(t, l), ended(t, l)
	var key, value []byte
	l.blockKeys(t.Context(), block, 0, func(k []byte, _ uint32, b []byte) (bool, error) {
		key, value = bytes.Clone(k), bytes.Clone(b)
		return true, nil
	})
	value[len(value)-1] ^= 1
	text, _ := l.value(sessionKey(record))
	if err := l.commit(write{key, value}, write{sessionKey(record), bytes.Replace(text, []byte("ada"), []byte("eve"), 1)}); err != nil {
		t.Fatal(err)
	}
	if err := archiveAt(t, l, time.Hour); err != nil {
		t.Fatal(err)
	}
	if got := f.objects(); !slices.Equal(got, []string{whole}) || localBlocks(t, l, block) == 0 || localBlocks(t, l, record) == 0 {
		t.Errorf("objects are %v", got)
	}
}

// TestArchivedDamaged checks that an object that was changed, cut off, exchanged or taken
// away is found, and named, on either way to the log, and that one that cannot be reached
// is no damage.
func TestArchivedDamaged(t *testing.T) {
	l, f, verifier := openArchiving(t, Options{})
	r, other := start(t, l), ended(t, l)
	big := make([]byte, 300<<10)
	for i := range 12 {
		makeNoise(big, byte(i)) // three blocks, many chunks of age's
		if err := r.Append(Frame{Bytes: []byte(base64.StdEncoding.EncodeToString(big))}); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.End(Ended, "closed"); err != nil {
		t.Fatal(err)
	}
	if err := archiveAt(t, l, time.Hour); err != nil {
		t.Fatal(err)
	}
	path := f.path(r.ID())
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	exchanged, _ := os.ReadFile(f.path(other))
	changed := func(at int) []byte {
		b := bytes.Clone(good)
		b[at] ^= 1
		return b
	}
	sources := map[string]Source{"log": l, "socket": served(t, l)}
	for what, b := range map[string][]byte{
		"changed at the beginning": changed(3), "changed in the header": changed(150), "changed": changed(400), "changed in the middle": changed(len(good) / 2),
		"changed at the end": changed(len(good) - 1), "cut to nothing": {}, "cut by a byte": good[:len(good)-1], "cut at a chunk": good[:len(good)/(64<<10)*(64<<10)],
		"longer": append(bytes.Clone(good), 'x'), "another session's": exchanged, "missing": nil,
	} {
		if b == nil {
			err = os.Remove(path)
		} else {
			err = os.WriteFile(path, b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		for name, src := range sources {
			report := verified(t, src, verifier, nil)
			if len(report.Faults) != 1 || report.Faults[0].Session != r.ID() || report.Faults[0].Block < 0 || !strings.Contains(report.Faults[0].What, "test://"+path) {
				t.Errorf("%s, %s: faults are %v", name, what, report.Faults)
			}
			var damaged error
			n := 0
			for f, err := range src.Frames(t.Context(), r.ID()) {
				if err != nil {
					damaged = errors.Join(damaged, err)
				} else if n++; len(f.Bytes) != 400<<10 {
					t.Errorf("%s, %s: a frame of %d bytes", name, what, len(f.Bytes))
				}
			}
			if !errors.Is(damaged, ErrDamaged) || !strings.Contains(damaged.Error(), "test://"+path) || strings.Contains(damaged.Error(), "\n") {
				t.Errorf("%s, %s: %d frames, %v", name, what, n, damaged)
			}
			if what == "changed in the middle" && n == 0 {
				t.Errorf("%s, %s: no frame in front of it", name, what)
			}
		}
	}
	if err := os.WriteFile(path, good, 0o600); err != nil {
		t.Fatal(err)
	}
	reads := 0
	for _, use := range []string{"open", "read"} {
		for name, src := range sources {
			reads = 0
			f.fail = func(u string) error {
				if u == "read" {
					reads++
				}
				if u == use && (u != "read" || reads > 2) {
					return errors.New("no route to host")
				}
				return nil
			}
			why := fmt.Sprintf("%v: read test://%s: no route to host", ErrArchive, path)
			one, err := VerifySession(t.Context(), src, r.ID(), verifier)
			if err != nil || len(one.Faults) > 0 || !slices.Equal(one.Unverified, []Unverified{{r.ID(), why}}) {
				t.Errorf("%s, %s: %+v, %v", name, use, one, err)
			}
			reads = 0
			all, err := VerifyLog(t.Context(), src, verifier, nil, nil)
			if err != nil || len(all.Faults) > 0 || all.Sessions != 2 || !slices.Contains(all.Unverified, Unverified{r.ID(), why}) {
				t.Errorf("%s, %s: %+v, %v", name, use, all, err)
			}
			reads = 0
			want := fmt.Sprintf("session %s: %s", r.ID(), why)
			err = Replay(t.Context(), io.Discard, src, r.ID(), View{})
			if !errors.Is(err, ErrArchive) || errors.Is(err, ErrDamaged) || err.Error() != want {
				t.Errorf("%s, %s: %v, want %s", name, use, err, want)
			}
		}
	}
	f.fail = nil
	if r := verified(t, l, verifier, nil); len(r.Faults) > 0 {
		t.Error(r.Faults)
	}
}

// TestArchivedDelete checks that what is deleted is deleted in the archive too, sooner or
// later, and what is held is not.
func TestArchivedDelete(t *testing.T) {
	l, f, verifier := openArchiving(t, Options{})
	ids := kept(t, l, time.Now(), 0, 0, 1)
	if err := archiveAt(t, l, time.Hour); err != nil || len(f.objects()) != 3 {
		t.Fatalf("%v, %v", f.objects(), err)
	}
	if err := l.Hold(t.Context(), Hold{Session: ids[0]}); err != nil {
		t.Fatal(err)
	}
	custodian := served(t, l).(Custodian)
	if err := custodian.Delete(t.Context(), ids[0], "ada", "why"); !errors.Is(err, ErrHeld) || len(f.objects()) != 3 {
		t.Errorf("held: %v, objects %v", err, f.objects())
	}
	mark, err := l.markOf(ids[1])
	if err != nil {
		t.Fatal(err)
	}
	key, path := mark.Key, f.path(ids[1])

	f.fail = func(use string) error { return errors.New("no route to host") }
	err = custodian.Delete(t.Context(), ids[1], "ada", "why")
	if err == nil || !strings.Contains(err.Error(), "it is deleted, but its object is not, which is tried again") || !strings.Contains(err.Error(), "test://"+path+": no route to host") {
		t.Errorf("the archive cannot be reached: %v", err)
	}
	if _, err := l.Session(t.Context(), ids[1]); !errors.Is(err, ErrNoSession) {
		t.Errorf("it is on record: %v", err)
	}
	l.scan(nil, false, func(k, value []byte) (bool, error) {
		if bytes.Contains(value, []byte(key)) {
			t.Errorf("the key of a session that was deleted is in %q", k)
		}
		return true, nil
	})
	if err := archiveAt(t, l, time.Hour); !errors.Is(err, ErrArchive) {
		t.Errorf("tried again: %v", err)
	}
	f.fail = nil
	if err := archiveAt(t, l, time.Hour); err != nil || slices.Contains(f.objects(), ids[1]) {
		t.Errorf("tried again: %v, objects %v", err, f.objects())
	}

	for at := time.Duration(0); at < 72*time.Hour; at += 20 * time.Hour { // by retention
		if _, err := l.retain(t.Context(), time.Now().Add(at)); err != nil {
			t.Fatal(err)
		}
	}
	if err := archiveAt(t, l, time.Hour); err != nil || !slices.Equal(f.objects(), []string{ids[0]}) || l.archiving.moved.Sessions != 1 {
		t.Errorf("%v, objects %v, %+v", err, f.objects(), l.archiving.moved)
	}
	if r := verified(t, l, verifier, nil); len(r.Faults) > 0 || r.Deleted != 2 {
		t.Errorf("%+v", r)
	}
	if err := l.Release(t.Context(), ids[0], "ada"); err != nil {
		t.Fatal(err)
	}
	if err := custodian.Delete(t.Context(), ids[0], "ada", "why"); err != nil || len(f.objects()) > 0 {
		t.Errorf("released: %v, objects %v", err, f.objects())
	}
}

// TestArchiveWhileDeleted deletes a session while it moves.
func TestArchiveWhileDeleted(t *testing.T) {
	for _, use := range []string{"create", "write", "close", "open", "read"} {
		l, f, verifier := openArchiving(t, Options{})
		id, next := ended(t, l), ended(t, l)
		var once atomic.Bool
		deleted := make(chan error, 1)
		f.fail = func(u string) error {
			if u == use && once.CompareAndSwap(false, true) {
				go func() { deleted <- l.Delete(t.Context(), id, "ada", "why") }()
				for s, err := l.Session(t.Context(), id); err == nil; s, err = l.Session(t.Context(), s.ID) {
					time.Sleep(time.Millisecond)
				}
				if u == "write" {
					select {
					case <-f.created.Done():
					case <-time.After(10 * time.Second):
						t.Error("it goes on being written")
					}
				}
			}
			return nil
		}
		err := archiveAt(t, l, time.Hour)
		if !once.Load() {
			t.Fatalf("%s: it is not done", use)
		}
		if err := errors.Join(err, <-deleted); err != nil {
			t.Errorf("%s: %v", use, err)
		}
		if got := f.objects(); !slices.Equal(got, []string{next}) {
			t.Errorf("%s: objects are %v", use, got)
		}
		if r := verified(t, l, verifier, nil); len(r.Faults) > 0 || l.archiving.moved.Sessions != 1 {
			t.Errorf("%s: %v", use, r.Faults)
		}
		if keys, _ := l.someIDs([]byte("e/")); len(keys) > 0 {
			t.Errorf("%s: %v are still to be deleted", use, keys)
		}
	}
}

// TestArchiveReencrypt checks that the keys of objects go with a log that is written anew.
func TestArchiveReencrypt(t *testing.T) {
	l, f, verifier := openArchiving(t, Options{})
	id := ended(t, l)
	if err := archiveAt(t, l, time.Hour); err != nil {
		t.Fatal(err)
	}
	mark, _ := l.markOf(id)
	l.Close()
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte(base64.StdEncoding.EncodeToString(make([]byte, keySize))), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Reencrypt(filepath.Dir(l.o.Dir), "file:"+secret, nil); err != nil {
		t.Fatal(err)
	}
	l = open(t, Options{Dir: l.o.Dir, Key: l.o.Key, OpenArchive: f.opener})
	if r := verified(t, l, verifier, nil); len(r.Faults) > 0 || r.Frames != 2 {
		t.Errorf("%+v", r)
	}
	l.Close()
	grepFolder(t, l.o.Dir, mark.Key)
}

// TestArchiveElsewhere changes where sessions move to.
func TestArchiveElsewhere(t *testing.T) {
	l, f, verifier := openArchiving(t, Options{})
	first := ended(t, l)
	if err := archiveAt(t, l, time.Hour); err != nil {
		t.Fatal(err)
	}
	second := ended(t, l)
	f.fail = func(use string) error { // written, but not verified
		if use == "read" {
			return errors.New("no route to host")
		}
		return nil
	}
	if err := archiveAt(t, l, time.Hour); !errors.Is(err, ErrArchive) || len(f.objects()) != 2 {
		t.Fatalf("%v, objects %v", err, f.objects())
	}
	f.fail = nil
	l.Close()
	other := t.TempDir()
	o := l.o
	o.Archive = "test://" + other + "/?region=x"
	l = open(t, o)
	if err := errors.Join(archiveAt(t, l, time.Hour), archiveAt(t, l, time.Hour)); err != nil {
		t.Fatal(err)
	}
	if got := f.objects(); !slices.Equal(got, []string{first}) {
		t.Errorf("objects are %v", got)
	}
	if got := (&folder{dir: other}).objects(); !slices.Equal(got, []string{second}) {
		t.Errorf("objects elsewhere are %v", got)
	}
	if r := verified(t, l, verifier, nil); len(r.Faults) > 0 {
		t.Error(r.Faults)
	}

	// Without an archive in the configuration, what is archived is read, by what the log knows.
	l.Close()
	var urls []string
	o.Archive, o.OpenArchive = "", func(ctx context.Context, url string) (Archive, error) {
		urls = append(urls, url)
		return f.opener(ctx, url)
	}
	l = open(t, o)
	if r := verified(t, l, verifier, nil); len(r.Faults) > 0 {
		t.Error(r.Faults)
	}
	if want := []string{"test://" + f.dir, "test://" + other + "/?region=x"}; !slices.Equal(urls, want) {
		t.Errorf("opened are %v, want %v", urls, want)
	}
}
