package recorder

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/dgraph-io/badger/v4"

	"example.com/broker/codec"
)

// With this variable set, the test binary is a broker to be killed.
const victim = "RECORDER_TEST_VICTIM"

// It seals originals to who is in this one.
const victimRecipient = "RECORDER_TEST_RECIPIENT"

func TestMain(m *testing.M) {
	if data := os.Getenv(victim); data != "" {
		beVictim(data)
		return
	}
	if data := os.Getenv(rewriteVictim); data != "" {
		beRewriteVictim(data)
		return
	}
	if arg := os.Getenv(reencryptVictim); arg != "" {
		beReencryptVictim(arg)
		return
	}
	if data := os.Getenv(archiveVictim); data != "" {
		beArchiveVictim(data)
		return
	}
	os.Exit(m.Run())
}

func open(t testing.TB, o Options) *Log {
	t.Helper()
	l, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func start(t testing.TB, l *Log) *Recording {
	t.Helper()
	r, err := l.Start(Session{Subject: "ada", Groups: []string{"g"}, Server: "s", Transport: "tls"})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// frames reads a session as strings: direction, verdict, bytes.
func frames(t testing.TB, src Source, session string) (all []string) {
	t.Helper()
	for f, err := range src.Frames(t.Context(), session) {
		if err != nil {
			all = append(all, "error "+err.Error())
			continue
		}
		all = append(all, fmt.Sprintf("%v %v %s", f.Direction, f.Verdict, f.Bytes))
	}
	return all
}

func TestRoundTrip(t *testing.T) {
	dir := t.TempDir()
	l := open(t, Options{Dir: filepath.Join(dir, "log")})
	r := start(t, l)
	in := []Frame{
		{Direction: codec.C2S, Bytes: []byte("{ \"a\" :\t1.0e1 }\r")},
		{Direction: codec.C2S, Verdict: Blocked, Bytes: []byte("\x00\xff not JSON")},
		{Direction: codec.S2C, Verdict: Answered, Bytes: []byte("{}")},
		{Direction: codec.S2C, Verdict: Masked, Bytes: []byte(`{"\u0061":"[masked:email]"}`)},
		{Direction: codec.S2C, Verdict: Edited, Bytes: nil},
		{Direction: codec.C2S, Verdict: Noted, Bytes: []byte(`{"mode":"enforce","says":"approval","rule":"r"}`)},
		{Direction: codec.S2C, Verdict: Noted, Bytes: []byte(`{"mode":"observe","says":"mask","rule":"r"}`)},
		{Direction: codec.S2C, Bytes: bytes.Repeat([]byte("0123456789"), 500_000)},
	}
	var want []string
	for _, f := range in {
		want = append(want, fmt.Sprintf("%v %v %s", f.Direction, f.Verdict, f.Bytes))
	}
	if err := r.Append(in[0]); err != nil {
		t.Fatal(err)
	}
	if err := r.Append(in[1:]...); err != nil {
		t.Fatal(err)
	}
	if got := frames(t, l, r.ID()); !slices.Equal(got, want) {
		t.Errorf("while it runs: got %.200q, want %.200q", got, want)
	}
	if err := r.End(Ended, "closed"); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}

	src, err := OpenSource(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	if got := frames(t, src, r.ID()); !slices.Equal(got, want) {
		t.Errorf("afterwards: got %.200q, want %.200q", got, want)
	}
	for s, err := range src.Sessions(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		got := fmt.Sprint(s.ID, s.Subject, s.Groups, s.State, s.Reason, s.C2S, s.S2C, s.Blocked, s.Masked, s.Observed)
		want := fmt.Sprint(r.ID(), "ada", []string{"g"}, Ended, "closed", Count{1, 17}, Count{4, 3 + 28 + 1 + 5_000_001}, 1, 1, map[string]int64{"mask": 1})
		if got != want || s.End.Before(s.Start) {
			t.Errorf("session %s, want %s", got, want)
		}
	}
	var replayed bytes.Buffer
	if err := Replay(t.Context(), &replayed, src, r.ID(), View{Want: func(f Frame) bool { return f.Direction == codec.C2S && f.Verdict != Blocked }}); err != nil {
		t.Fatal(err)
	}
	if got := replayed.String(); got != string(in[0].Bytes)+"\n" {
		t.Errorf("replay of c2s: %q", got)
	}
	if err := Replay(t.Context(), &replayed, src, "none", View{Want: func(Frame) bool { return true }}); !errors.Is(err, ErrNoSession) {
		t.Errorf("replay of no session: %v", err)
	}
}

func TestSessionsNewestFirst(t *testing.T) {
	l := open(t, Options{Dir: t.TempDir()})
	var want []string
	for range 20 {
		r := start(t, l)
		want = append(want, r.ID())
		time.Sleep(2 * time.Millisecond) // ids sort by the millisecond
	}
	slices.Reverse(want)
	var got []string
	for s, err := range l.Sessions(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, s.ID)
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if id := want[0]; len(id) != 16 || strings.Trim(id, "0123456789abcdefghjkmnpqrstvwxyz") != "" {
		t.Errorf("id %q", id)
	}
}

// Many sessions append at a time, two goroutines each.
func TestConcurrentAppends(t *testing.T) {
	l := open(t, Options{Dir: t.TempDir()})
	var wg sync.WaitGroup
	var recordings []*Recording
	for range 16 {
		r := start(t, l)
		recordings = append(recordings, r)
		for _, d := range []codec.Direction{codec.C2S, codec.S2C} {
			wg.Go(func() {
				for i := range 100 {
					if err := r.Append(Frame{Direction: d, Bytes: fmt.Appendf(nil, "%s %d", r.ID(), i)}); err != nil {
						t.Error(err)
					}
				}
			})
		}
	}
	wg.Wait()
	for _, r := range recordings {
		next := map[string]int{}
		for _, f := range frames(t, l, r.ID()) {
			d, rest, _ := strings.Cut(f, " ")
			if want := fmt.Sprintf("delivered %s %d", r.ID(), next[d]); rest != want {
				t.Fatalf("%s: got %q, want %q", d, rest, want)
			}
			next[d]++
		}
		if next["c2s"] != 100 || next["s2c"] != 100 {
			t.Errorf("frames %v, want 100 each way", next)
		}
	}
}

// beVictim appends to a few sessions, says on stdout what is on record, and
// waits to be killed.
func beVictim(data string) {
	to, err := ParseRecipients(os.Getenv(victimRecipient))
	if err != nil {
		os.Exit(1)
	}
	l, err := Open(Options{Dir: filepath.Join(data, "log"), Originals: to})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	var mu sync.Mutex
	for range 4 {
		r, err := l.Start(Session{Subject: "victim"})
		if err != nil {
			os.Exit(1)
		}
		go func() {
			for i := 0; ; i++ {
				frame := fmt.Appendf(nil, "%d %s", i, strings.Repeat("x", rand.IntN(1<<uint(rand.IntN(18)))))
				f := Frame{Bytes: frame}
				if i%3 == 0 {
					f.Verdict, f.Original = Masked, fmt.Appendf(nil, "original %s", frame)
				}
				if r.Append(f) != nil {
					os.Exit(1)
				}
				mu.Lock()
				fmt.Println(r.ID(), i)
				mu.Unlock()
			}
		}()
	}
	select {}
}

func TestKill(t *testing.T) {
	data := t.TempDir()
	auditor, _ := auditor(t)
	for round := range 5 {
		acknowledged := map[string]int{}
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), victim+"="+data, victimRecipient+"="+auditor.Recipient().String())
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		killAt := 20 + rand.IntN(400)
		for n := 0; lines.Scan(); n++ {
			var id string
			var i int
			if c, _ := fmt.Sscan(lines.Text(), &id, &i); c == 2 {
				acknowledged[id] = i
			}
			if n == killAt {
				cmd.Process.Kill()
			}
		}
		cmd.Wait()
		if len(acknowledged) == 0 {
			t.Fatal("the victim recorded nothing")
		}
		l, err := Open(Options{Dir: filepath.Join(data, "log")})
		if err != nil {
			t.Fatalf("round %d: the log does not open: %v", round, err)
		}
		for id, last := range acknowledged {
			all := frames(t, OpenOriginals(l, auditor), id)
			if len(all) <= last {
				t.Errorf("round %d: %d frames of %s are on record, %d were acknowledged", round, len(all), id, last+1)
			}
			for i, f := range all {
				want := "c2s delivered %d "
				if i%3 == 0 {
					want = "c2s masked original %d "
				}
				if !strings.HasPrefix(f, fmt.Sprintf(want, i)) {
					t.Fatalf("round %d: frame %d is %.40q", round, i, f)
				}
			}
			if s, err := l.session(id); err != nil || s.State != Interrupted || int(s.C2S.Frames) != len(all) {
				t.Errorf("round %d: session %+v, %v", round, s, err)
			}
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestDiskFull(t *testing.T) {
	l := open(t, Options{Dir: t.TempDir(), Free: 1 << 20})
	var free atomic.Int64
	free.Store(1 << 30)
	l.space = func() (int64, error) { return free.Load(), nil }
	l.room.checked = time.Time{}
	r := start(t, l)
	if err := r.Append(Frame{Bytes: []byte("a")}); err != nil {
		t.Fatal(err)
	}
	free.Store(1 << 20)
	l.room.checked = time.Time{} // as a second later
	if err := r.Append(Frame{Bytes: []byte("b")}); !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "disk full") {
		t.Errorf("append to a full disk: %v", err)
	}
	if err := l.Ready(); !errors.Is(err, ErrUnavailable) {
		t.Errorf("Ready on a full disk: %v", err)
	}
	if _, err := l.Start(Session{}); !errors.Is(err, ErrUnavailable) {
		t.Errorf("Start on a full disk: %v", err)
	}
	free.Store(1 << 30)
	if err := l.Ready(); err != nil {
		t.Errorf("Ready when there is room again: %v", err)
	}
	if err := r.Append(Frame{Bytes: []byte("c")}); !errors.Is(err, ErrUnavailable) {
		t.Errorf("a recording with a gap goes on: %v", err)
	}
	if got := frames(t, l, r.ID()); !slices.Equal(got, []string{"c2s delivered a"}) {
		t.Errorf("on record %q", got)
	}
	start(t, l)
}

// TestSmallDisk fills a real file system.
func TestSmallDisk(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=220m"); err != nil {
		t.Skipf("a small disk cannot be mounted: %v", err)
	}
	defer syscall.Unmount(dir, syscall.MNT_DETACH)
	l := open(t, Options{Dir: filepath.Join(dir, "log"), Free: 100 << 20})
	r := start(t, l)
	noise := make([]byte, 1<<20)
	chacha := rand.NewChaCha8([32]byte{})
	written := 0
	for {
		chacha.Read(noise)
		if err := r.Append(Frame{Bytes: noise}); err != nil {
			if !errors.Is(err, ErrUnavailable) {
				t.Fatal(err)
			}
			break
		}
		if written++; written > 300 {
			t.Fatal("the disk never fills")
		}
	}
	if got := len(frames(t, l, r.ID())); got != written {
		t.Errorf("%d frames are on record, want %d", got, written)
	}
	if err := l.Close(); err != nil {
		t.Errorf("close on a full disk: %v", err)
	}
	l = open(t, Options{Dir: filepath.Join(dir, "log"), Free: 10 << 20})
	defer l.Close()
	if err := l.Ready(); err != nil {
		t.Errorf("with room again: %v", err)
	}
	if got := len(frames(t, l, r.ID())); got != written {
		t.Errorf("%d frames are on record after a restart, want %d", got, written)
	}
}

func TestFault(t *testing.T) {
	l := open(t, Options{Dir: t.TempDir()})
	var fails atomic.Bool
	l.failBy(func() error {
		if fails.Load() {
			return syscall.EIO
		}
		return nil
	})
	r := start(t, l)
	fails.Store(true)
	if err := r.Append(Frame{Bytes: []byte("a")}); !errors.Is(err, ErrUnavailable) || !errors.Is(err, syscall.EIO) {
		t.Errorf("append: %v", err)
	}
	if err := l.Ready(); !errors.Is(err, ErrUnavailable) {
		t.Errorf("Ready: %v", err)
	}
	if err := r.End(Ended, "disk"); !errors.Is(err, ErrUnavailable) {
		t.Errorf("End: %v", err)
	}
	fails.Store(false)
	if err := l.Ready(); err != nil {
		t.Errorf("Ready when the disk is good again: %v", err)
	}
	if s, err := l.session(r.ID()); err != nil || s.State != Ended || s.Reason != "disk" {
		t.Errorf("the end that could not be written: %+v, %v", s, err)
	}
}

// A frame of which a part is damaged is no shorter frame.
func TestDamagedPart(t *testing.T) {
	start := time.Now()
	blocks := encode(start, []Frame{{Bytes: []byte("a")}, {Bytes: make([]byte, 3<<20)}, {Bytes: []byte("z")}})
	for i := range blocks {
		blocks[i].Bytes = sealedLike(hash{}, blocks[i].Bytes)
	}
	if len(blocks) < 4 {
		t.Fatalf("%d blocks", len(blocks))
	}
	for damaged := range blocks {
		r := blockReader{start: start}
		var got []string
		for n, b := range blocks {
			if n == damaged {
				b.Bytes = append([]byte(nil), b.Bytes...)
				b.Bytes[len(b.Bytes)-1] ^= 1
			}
			r.read(b.Number, b.Bytes, func(f Frame, err error) bool {
				if err != nil {
					got = append(got, "error")
				} else {
					got = append(got, fmt.Sprint(len(f.Bytes)))
				}
				return true
			})
		}
		for _, n := range got {
			if n != "error" && n != "1" && n != fmt.Sprint(3<<20) {
				t.Errorf("block %d damaged: %q", damaged, got)
			}
		}
		if !slices.Contains(got, "error") {
			t.Errorf("block %d damaged: not said", damaged)
		}
	}
}

func TestDamagedBlock(t *testing.T) {
	l := open(t, Options{Dir: t.TempDir(), still: true})
	r := start(t, l)
	for i := range 5 {
		if err := r.Append(Frame{Bytes: fmt.Appendf(nil, "frame %d", i)}); err != nil {
			t.Fatal(err)
		}
	}
	err := l.db.Update(func(txn *badger.Txn) error {
		item, err := txn.Get(blockKey(r.ID(), 1, 0))
		if err != nil {
			return err
		}
		b, err := item.ValueCopy(nil)
		if err != nil {
			return err
		}
		b[len(b)-1] ^= 1
		return errors.Join(txn.Set(blockKey(r.ID(), 1, 0), b), txn.Delete(blockKey(r.ID(), 3, 0)))
	})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"c2s delivered frame 0",
		"error recording is damaged: block 1, behind frame 1: checksum mismatch",
		"c2s delivered frame 2",
		"error recording is damaged: block 3, behind frame 2: is missing, and so is every one before block 4",
		"c2s delivered frame 4",
	}
	if got := frames(t, l, r.ID()); !slices.Equal(got, want) {
		t.Errorf("got %q\nwant %q", got, want)
	}
	var out bytes.Buffer
	if err := Replay(t.Context(), &out, l, r.ID(), View{Want: func(Frame) bool { return true }}); !errors.Is(err, ErrDamaged) {
		t.Errorf("Replay: %v", err)
	}
	if got := out.String(); got != "frame 0\nframe 2\nframe 4\n" {
		t.Errorf("Replay wrote %q", got)
	}
}

func TestSocket(t *testing.T) {
	for _, data := range []string{t.TempDir(), filepath.Join(t.TempDir(), strings.Repeat("long", 40))} {
		before := runtime.NumGoroutine()
		if err := os.MkdirAll(data, 0o700); err != nil {
			t.Fatal(err)
		}
		os.WriteFile(filepath.Join(data, socketFile), nil, 0o600) // of a dead process
		l, err := Open(Options{Dir: filepath.Join(data, "log")})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- ServeSocket(ctx, data, l) }()
		r := start(t, l)
		if err := r.Append(Frame{Bytes: []byte("a")}, Frame{Direction: codec.S2C, Bytes: bytes.Repeat([]byte("b"), 3<<20)}); err != nil {
			t.Fatal(err)
		}
		src, err := OpenSource(data)
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := src.(*remote); !ok {
			t.Fatalf("the source is a %T beside a running broker", src)
		}
		if got, want := frames(t, src, r.ID()), frames(t, l, r.ID()); !slices.Equal(got, want) || len(got) != 2 {
			t.Errorf("through the socket %.100q, from the log %.100q", got, want)
		}
		if got := frames(t, src, "none"); !slices.Equal(got, []string{"error no such session"}) {
			t.Errorf("no session: %q", got)
		}
		for s, err := range src.Sessions(t.Context()) {
			if err != nil || s.ID != r.ID() || s.State != Running || s.C2S.Frames != 1 {
				t.Errorf("session %+v, %v", s, err)
			}
		}
		if info, err := os.Stat(filepath.Join(data, socketFile)); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("socket: %v, %v", info, err)
		}
		if info, err := os.Stat(filepath.Join(data, "log")); err != nil || info.Mode().Perm() != 0o700 {
			t.Errorf("log: %v, %v", info, err)
		}
		if _, err := Open(Options{Dir: filepath.Join(data, "log")}); !errors.Is(err, ErrInUse) {
			t.Errorf("a second Open: %v", err)
		}
		src.Close()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		l.Close()
		deadline := time.Now().Add(10 * time.Second)
		for runtime.NumGoroutine() > before && time.Now().Before(deadline) {
			time.Sleep(10 * time.Millisecond)
		}
		if n := runtime.NumGoroutine(); n > before {
			t.Errorf("%d goroutines are left, had %d", n, before)
		}
	}
}

// A cut answer of the broker is noticed.
func TestCutAnswer(t *testing.T) {
	var all bytes.Buffer
	all.WriteString(`{"id":"x"}` + "\n")
	for _, b := range encode(time.Time{}, []Frame{{Bytes: []byte("a")}}) {
		all.WriteByte(byte(len(b.Bytes)))
		all.Write([]byte{0, 0, 0, byte(b.Number)})
		all.Write(b.Bytes)
	}
	all.WriteByte(0)
	for cut := range all.Len() {
		err := readBlocks(bufio.NewReader(bytes.NewReader(all.Bytes()[:cut])), func(Session) {}, func(Block) bool { return true }, nil)
		if err == nil {
			t.Errorf("%d of %d bytes are taken for all", cut, all.Len())
		}
	}
	if err := readBlocks(bufio.NewReader(&all), func(Session) {}, func(Block) bool { return true }, nil); err != nil {
		t.Error(err)
	}
}

func TestNoLog(t *testing.T) {
	if _, err := OpenSource(t.TempDir()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("error %v", err)
	}
}

// FuzzBlock checks that whatever is in a block, reading it ends in order, and
// that what is encoded comes back.
func FuzzBlock(f *testing.F) {
	for _, b := range encode(time.Time{}, []Frame{{Bytes: []byte("a")}, {Direction: codec.S2C, Verdict: Masked, Bytes: bytes.Repeat([]byte("b"), 300)}}) {
		f.Add(b.Bytes)
	}
	f.Add(sealed([]byte{0, recordContinues, 0, 1, 'x', 0, 0, 0, 255}))
	f.Fuzz(func(t *testing.T, in []byte) {
		var r blockReader
		r.read(0, in, func(Frame, error) bool { return true })
		r = blockReader{}
		r.read(0, sealed(in), func(Frame, error) bool { return true })

		var got []byte
		r = blockReader{}
		of := Frame{Verdict: Verdict(len(in) % len(verdicts)), More: len(in)%2 == 1}
		for _, b := range encode(time.Time{}, []Frame{{Verdict: of.Verdict, More: of.More, Bytes: in}}) {
			r.read(b.Number, b.Bytes, func(f Frame, err error) bool {
				if err != nil {
					t.Fatal(err)
				}
				if f.Verdict != of.Verdict || f.More != of.More {
					t.Errorf("%v, more %v, came back as %v, more %v", of.Verdict, of.More, f.Verdict, f.More)
				}
				got = append(got, f.Bytes...)
				return true
			})
		}
		if !bytes.Equal(got, in) {
			t.Errorf("%q came back as %q", in, got)
		}
	})
}

// parted is a long frame in parts, behind each the block that it makes, between
// others of both directions.
var parted = []Frame{
	{Direction: codec.S2C, More: true, Bytes: []byte(`{"id":1,"result":["a",`)},
	{Direction: codec.C2S, Bytes: []byte(`{"id":9}`)},
	{Direction: codec.S2C, More: true, Verdict: Masked, Bytes: []byte(`"[masked:x]",`)},
	{Direction: codec.S2C, More: true, Bytes: []byte(`"b"]}`)},
	{Direction: codec.S2C},
	{Direction: codec.S2C, More: true, Bytes: []byte(`{"id":2,"result":["c"]`)},
	{Direction: codec.S2C, Verdict: Cut},
	{Direction: codec.S2C, Bytes: []byte(`{"id":3}`)},
}

func writeParted(t *testing.T) (*Log, *Recording) {
	l := open(t, Options{Dir: t.TempDir(), still: true})
	r := start(t, l)
	for _, f := range parted {
		if err := r.Append(f); err != nil {
			t.Fatal(err)
		}
	}
	return l, r
}

// encode makes the blocks of frames.
func encode(start time.Time, frames []Frame) []openedBlock {
	e := &encoding{memory: new(slabs)}
	e.encode(start, 0, frames)
	return e.blocks
}

// blockOf makes one block of frames, behind the record of a hash.
func blockOf(start time.Time, before hash, frames []Frame) []byte {
	return sealedLike(before, encode(start, frames)[0].Bytes)
}

// sealedLike makes an open block one as it is in the database.
func sealedLike(before hash, b []byte) []byte {
	h, err := readHeader(b)
	if err != nil {
		panic(err)
	}
	return sealBlock(nil, quick, before, h.count, h.payload(b))
}

// TestParts replays frames that were recorded in parts, and counts them.
func TestParts(t *testing.T) {
	l, r := writeParted(t)
	for want, w := range map[string]func(Frame) bool{
		`{"id":1,"result":["a","[masked:x]","b"]}` + "\n" + `{"id":9}` + "\n" + `{"id":2,"result":["c"]` + "\n" + `{"id":3}` + "\n": nil,
		`{"id":9}` + "\n": func(f Frame) bool { return f.Direction == codec.C2S },
	} {
		var out bytes.Buffer
		if err := Replay(t.Context(), &out, l, r.ID(), View{Want: w}); err != nil || out.String() != want {
			t.Errorf("got %q, %v, want %q", out.String(), err, want)
		}
	}
	if s, err := l.session(r.ID()); err != nil || s.S2C != (Count{2, 41 + 23 + 9}) || s.C2S != (Count{1, 9}) || s.Masked != 1 {
		t.Errorf("%+v, %v", s, err)
	}
}

// TestLongFrames records frames that take up blocks to about the last byte, alone and
// behind others.
func TestLongFrames(t *testing.T) {
	l := open(t, Options{Dir: t.TempDir()})
	for n := range 4 {
		for _, more := range []int{-1, 0, 1, recordHead} {
			long := bytes.Repeat([]byte("x"), max(n*(blockSize-recordHead)+more, 0))
			r := start(t, l)
			if err := r.Append(Frame{Bytes: long}, Frame{Bytes: []byte("a")}, Frame{Bytes: long}); err != nil {
				t.Fatal(err)
			}
			var out bytes.Buffer
			if err := Replay(t.Context(), &out, l, r.ID(), View{}); err != nil || out.String() != string(long)+"\na\n"+string(long)+"\n" {
				t.Errorf("%d bytes: got %d, %v", len(long), out.Len(), err)
			}
		}
	}
}

// TestDamagedParts checks that a frame of which a part is damaged is no shorter
// frame, and that the frame behind it is not a part of it.
func TestDamagedParts(t *testing.T) {
	for n, want := range map[uint32]string{
		0: `{"id":9}` + "\n" + `{"id":2,"result":["c"]` + "\n" + `{"id":3}` + "\n",
		2: `{"id":1,"result":["a",` + "\n" + `{"id":9}` + "\n" + `{"id":2,"result":["c"]` + "\n" + `{"id":3}` + "\n",
		4: `{"id":1,"result":["a","[masked:x]","b"]}` + "\n" + `{"id":9}` + "\n" + `{"id":2,"result":["c"]` + "\n" + `{"id":3}` + "\n",
		6: `{"id":1,"result":["a","[masked:x]","b"]}` + "\n" + `{"id":9}` + "\n" + `{"id":2,"result":["c"]` + "\n" + `{"id":3}` + "\n",
	} {
		l, r := writeParted(t)
		if err := l.db.Update(func(txn *badger.Txn) error { return txn.Set(blockKey(r.ID(), n, 0), []byte("x")) }); err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		if err := Replay(t.Context(), &out, l, r.ID(), View{}); !errors.Is(err, ErrDamaged) || out.String() != want {
			t.Errorf("block %d: got %q, %v, want %q", n, out.String(), err, want)
		}
	}
}

// TestUnflushed checks that a log whose disk does not take what is flushed takes
// no more frames.
func TestUnflushed(t *testing.T) {
	l := open(t, Options{Dir: t.TempDir(), Sync: SyncNone})
	fail := errors.New("input/output error")
	l.flush = func() error { return fail }
	r := start(t, l)
	l.every(syncInterval, l.syncNow) // returns when it has failed
	if err := r.Append(Frame{Bytes: []byte("x")}); !errors.Is(err, ErrUnavailable) || !errors.Is(err, fail) {
		t.Errorf("append: %v", err)
	}
	if err := l.Ready(); !errors.Is(err, fail) {
		t.Errorf("ready: %v", err)
	}
}

// BenchmarkAppend compares a frame's way into the log with a bare Badger
// transaction of the same bytes.
func BenchmarkAppend(b *testing.B) {
	frame := []byte(`{"jsonrpc":"2.0","id":17,"method":"tools/call","params":{"name":"query","arguments":{"sql":"SELECT id, name FROM customers WHERE id = 17 ORDER BY name LIMIT 10 OFFSET 20"}}}`)
	b.Run("badger transaction", func(b *testing.B) {
		l := open(b, Options{Dir: b.TempDir()})
		n := uint32(0)
		for b.Loop() {
			n++
			l.db.Update(func(txn *badger.Txn) error { return txn.Set(blockKey("x", n, 0), frame) })
		}
	})
	b.Run("one session", func(b *testing.B) {
		r := start(b, open(b, Options{Dir: b.TempDir()}))
		for b.Loop() {
			r.Append(Frame{Bytes: frame})
		}
	})
	for name, sync := range map[string]Sync{"64 sessions": SyncInterval, "64 sessions, sync always": SyncAlways, "64 sessions, sync none": SyncNone} {
		b.Run(name, func(b *testing.B) {
			l := open(b, Options{Dir: b.TempDir(), Sync: sync})
			b.SetParallelism(64 / runtime.GOMAXPROCS(0))
			b.RunParallel(func(pb *testing.PB) {
				r := start(b, l)
				for pb.Next() {
					r.Append(Frame{Bytes: frame})
				}
			})
		})
	}
	b.Run("an answer of 4 KB", func(b *testing.B) {
		r := start(b, open(b, Options{Dir: b.TempDir()}))
		answer := bytes.Repeat(frame, 4096/len(frame))
		for b.Loop() {
			r.Append(Frame{Direction: codec.S2C, Bytes: answer})
		}
	})
	b.Run("16 frames an append", func(b *testing.B) {
		r := start(b, open(b, Options{Dir: b.TempDir()}))
		var sixteen []Frame
		for range 16 {
			sixteen = append(sixteen, Frame{Bytes: frame})
		}
		for b.Loop() {
			r.Append(sixteen...)
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*16), "ns/frame")
	})
}

// sealed returns a block of records.
func sealed(records []byte) []byte {
	count := uint32(0)
	for rest := records; len(rest) > 0; count++ {
		var err error
		if _, rest, err = cutRecord(rest); err != nil {
			break
		}
	}
	return sealBlock(nil, quick, hash{}, max(count, 1), records)
}

// TestEffort checks that records that are much alike are compressed as quickly as can be,
// and all others so that they become small.
func TestEffort(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	record := func(i int, text string) []byte {
		return fmt.Appendf(nil, `{"jsonrpc":"2.0","id":%d,"result":{"content":[{"type":"text","text":"%s"}]}}`, i, text)
	}
	various := func(i int) []byte { return record(i, fmt.Sprintf("%x of %d", random.Uint32(), random.IntN(1000))) }
	same := func(i int) []byte { return record(i, strings.Repeat("the same text as ever ", 4)) }
	for _, tt := range []struct {
		name  string
		size  int
		make  func(i int) []byte
		quick bool
	}{
		{"alike", rewriteSize, same, true},
		{"alike, but few", 4 * sampleSize, same, false},
		{"alike, and then various", rewriteSize, func(i int) []byte {
			if i < 4*sampleSize/len(same(0)) {
				return same(i)
			}
			return various(i)
		}, false},
		{"various", rewriteSize, various, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var records []byte
			for i := 0; len(records) < tt.size; i++ {
				records = append(records, tt.make(i)...)
			}
			room := append(make([]byte, 0, rewriteSize), strings.Repeat("room", 1<<10)...)
			got, small, quickly := thorough.compress(room, records), thoroughEncoder().EncodeAll(records, nil), quick.compress(nil, records)
			want := small
			if tt.quick {
				want = quickly
			}
			if bytes.Equal(small, quickly) {
				t.Fatal("both efforts make the same of them")
			}
			if !bytes.Equal(got[:len(room)], room) || !bytes.Equal(got[len(room):], want) {
				t.Errorf("%d bytes became %d, quickly %d, thoroughly %d", len(records), len(got)-len(room), len(quickly), len(small))
			}
			if back, err := decoder().DecodeAll(got[len(room):], nil); err != nil || !bytes.Equal(back, records) {
				t.Errorf("they became others: %v", err)
			}
		})
	}
}

// TestEffortLoose checks that what was compressed quickly is compressed anew when the session
// has ended, unless it has become small by that.
func TestEffortLoose(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for name, text := range map[string]func() string{
		"alike":   func() string { return strings.Repeat("the same text as ever ", 4) },
		"various": func() string { return fmt.Sprintf("%x of %d", random.Uint64(), random.IntN(1000)) },
	} {
		l := open(t, Options{Dir: t.TempDir(), still: true})
		l.o.still = false // what is recorded stays in the tail
		r := start(t, l)
		for r.tail.size < smallSize {
			var all strings.Builder
			for range 1000 {
				all.WriteString(text())
			}
			r.add(t, all.String())
		}
		for _, last := range []string{"", "{}"} { // as a block of its own, which is short
			r.add(t, last)
			if err := l.drain(r.tail, 0, quick); err != nil {
				t.Fatal(err)
			}
		}
		if got, want := r.tail.isSmall(), name == "various"; got != want {
			t.Errorf("%s: it shall be rewritten: %t, want %t", name, got, want)
		}
	}
}

// TestEndSeen checks that who looks at a session while its end goes on record sees that it
// has ended: the index would leave it out for running.
func TestEndSeen(t *testing.T) {
	l := open(t, Options{Dir: t.TempDir()})
	for range 5 {
		r := start(t, l)
		r.mu.Lock()
		seen := make(chan Session)
		go func() {
			s, err := l.session(r.ID())
			if err != nil {
				t.Error(err)
			}
			seen <- s
		}()
		time.Sleep(10 * time.Millisecond) // so that it has found the session running, mostly
		r.session.State, r.session.Reason = Ended, "closed"
		err := r.finish()
		r.mu.Unlock()
		if s := <-seen; err != nil || s.State != Ended || s.Reason != "closed" {
			t.Errorf("a session that has ended is seen as %q, %q; %v", s.State, s.Reason, err)
		}
	}
}

// TestAppendEnded checks that nothing comes on record behind the end.
func TestAppendEnded(t *testing.T) {
	l := open(t, Options{Dir: t.TempDir()})
	r := start(t, l)
	r.add(t, "a")
	if err := r.End(Ended, "closed"); err != nil {
		t.Fatal(err)
	}
	if err := r.Append(Frame{Bytes: []byte("b")}); !errors.Is(err, ErrUnavailable) {
		t.Errorf("behind the end: %v", err)
	}
	if got := fmt.Sprint(frames(t, l, r.ID())); got != "[s2c delivered a]" {
		t.Errorf("got %s", got)
	}
}
