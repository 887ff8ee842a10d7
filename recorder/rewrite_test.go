package recorder

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"example.com/broker/codec"
)

// allOf reads all there is of a session's frames.
func allOf(t testing.TB, src Source, session string) (all []string) {
	t.Helper()
	for f, err := range src.Frames(t.Context(), session) {
		if err != nil {
			all = append(all, "error "+err.Error())
			continue
		}
		all = append(all, fmt.Sprintf("%v %v %v %d %v %x", f.Direction, f.Verdict, f.More, f.Time.UnixNano(), f.rest, sha256.Sum256(f.Bytes)))
	}
	return all
}

func blocksOf(t testing.TB, src Source, session string) (n, size int) {
	t.Helper()
	for b, err := range src.Blocks(t.Context(), session) {
		if err != nil {
			t.Fatal(err)
		}
		n, size = n+1, size+len(b.Bytes)
	}
	return n, size
}

// record puts a session with frames of all kinds on record, in many blocks.
func recordMuch(t testing.TB, l *Log) *Recording {
	t.Helper()
	r := start(t, l)
	add := func(frames ...Frame) {
		if err := r.Append(frames...); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 3000 {
		add(Frame{Direction: codec.Direction(i % 2), Verdict: Verdict(i % 6), Bytes: fmt.Appendf(nil, `{"jsonrpc":"2.0","id":%d,"result":{"rows":[%d,%d]}}`, i, i*i, i%7)})
		if i == 1000 {
			add(Frame{Direction: codec.S2C, Bytes: bytes.Repeat([]byte("0123456789abcdef"), 300<<10)})
		}
		if i%500 == 0 {
			add(parted[:4]...)
			add(parted[4:]...)
		}
	}
	return r
}

func settle(t testing.TB, l *Log) {
	t.Helper()
	if err := l.Settle(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// TestRewrite checks that the blocks of a session that has ended, or was interrupted,
// become few, and that everything else stays as it is.
func TestRewrite(t *testing.T) {
	dir := t.TempDir()
	key, err := OpenKey(dir)
	if err != nil {
		t.Fatal(err)
	}
	verifier, _ := ReadVerifier(dir)
	o := Options{Dir: filepath.Join(dir, "log"), Key: key, still: true}
	l := open(t, o)
	ended, interrupted := recordMuch(t, l), recordMuch(t, l)
	if err := ended.End(Ended, "closed"); err != nil {
		t.Fatal(err)
	}
	want := map[string][]string{ended.ID(): allOf(t, l, ended.ID()), interrupted.ID(): allOf(t, l, interrupted.ID())}
	proof, err := l.Proof(t.Context(), ended.ID())
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	o.still = false
	l = open(t, o)
	settle(t, l)
	for id, want := range want {
		if n, size := blocksOf(t, l, id); n > 5 || size > 200<<10 {
			t.Errorf("%d blocks of %d bytes", n, size)
		}
		if got := allOf(t, l, id); !slices.Equal(got, want) {
			t.Errorf("%d frames are others than the %d before", len(got), len(want))
		}
		// Who comes back for more finds its place.
		s, _ := l.session(id)
		for from := uint32(0); from <= uint32(s.Records); from += 97 {
			err := l.blocks(t.Context(), id, from, func(n uint32, b []byte) (bool, error) {
				if h, err := readHeader(b); err != nil || from < n || from >= n+h.count {
					t.Errorf("record %d is not in block %d, of %d records, %v", from, n, h.count, err)
				}
				return false, nil
			})
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	if r := verified(t, l, verifier, nil); len(r.Faults) > 0 || r.Sessions != 2 {
		t.Errorf("%+v", r)
	}
	if now, err := l.Proof(t.Context(), ended.ID()); err != nil || !bytes.Equal(now.Record, proof.Record) {
		t.Errorf("the record is another one, %v", err)
	}
	if left, err := l.value(rewriteKey(ended.ID())); err != nil || left != nil {
		t.Errorf("%q is left to do, %v", left, err)
	}
}

// TestRewriteReader checks that who has read half of a session when it ends, and comes
// back when it has been rewritten, gets the rest of it once.
func TestRewriteReader(t *testing.T) {
	l, sources := following(t)
	for name, src := range sources {
		t.Run(name, func(t *testing.T) {
			r := start(t, l)
			for i := range 10 {
				if err := r.Append(Frame{Bytes: fmt.Append(nil, i)}); err != nil {
					t.Fatal(err)
				}
			}
			var got []string
			for f, err := range src.Follow(t.Context(), r.ID()) {
				if err == nil {
					got = append(got, string(f.Bytes))
				}
				if len(got) != 5 || err != nil {
					continue
				}
				for i := 10; i < 20; i++ {
					if err := r.Append(Frame{Bytes: fmt.Append(nil, i)}); err != nil {
						t.Fatal(err)
					}
				}
				if err := r.End(Ended, ""); err != nil {
					t.Fatal(err)
				}
				settle(t, l)
			}
			if n, _ := blocksOf(t, l, r.ID()); n != 1 {
				t.Errorf("%d blocks", n)
			}
			if want := "0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19"; strings.Join(got, " ") != want {
				t.Errorf("got %q", got)
			}
		})
	}
}

// TestRewriteDamaged checks that what is changed before it is rewritten does not become
// good, and is named as if it had not been rewritten.
func TestRewriteDamaged(t *testing.T) {
	for _, tt := range []struct {
		name   string
		do     func(tm *tampering)
		blocks int // that are left
	}{
		{"a byte is changed", func(tm *tampering) {
			b := tm.get(blockKey(tm.ids[1], 4, 0))
			b[len(b)-1] ^= 1
			tm.set(blockKey(tm.ids[1], 4, 0), b)
		}, 4},
		{"a frame is", func(tm *tampering) { tm.set(blockKey(tm.ids[1], 4, 0), tm.forged(1, 4, "x")) }, 4},
		{"the first is", func(tm *tampering) { tm.set(blockKey(tm.ids[1], 0, 0), tm.forged(1, 0, "x")) }, 5},
		{"the last is", func(tm *tampering) { tm.set(blockKey(tm.ids[1], 8, 0), tm.forged(1, 8, "x")) }, 2},
		{"a block is dropped", func(tm *tampering) { tm.set(blockKey(tm.ids[1], 4, 0), nil) }, 3},
		{"the end is", func(tm *tampering) { tm.set(blockKey(tm.ids[1], 8, 0), nil) }, 2},
		{"one is added", func(tm *tampering) { tm.set(blockKey(tm.ids[1], 10, 0), tm.forged(1, 10, "x")) }, 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l, verifier, ids := written(t)
			tt.do(&tampering{t, l, ids})
			before := verified(t, l, verifier, nil)
			framesBefore := frames(t, l, ids[1])
			if len(before.Faults) != 1 {
				t.Fatalf("%v", before.Faults)
			}
			l.working.Go(l.rewriteAll)
			settle(t, l)
			after := verified(t, l, verifier, nil)
			if fmt.Sprint(before.Faults) != fmt.Sprint(after.Faults) {
				t.Errorf("%v was found before it was rewritten, and %v afterwards", before.Faults, after.Faults)
			}
			if got := frames(t, l, ids[1]); !slices.Equal(got, framesBefore) {
				t.Errorf("got %q, want %q", got, framesBefore)
			}
			if n, _ := blocksOf(t, l, ids[1]); n != tt.blocks {
				t.Errorf("%d blocks are left, want %d", n, tt.blocks)
			}
			if n, _ := blocksOf(t, l, ids[2]); n != 1 {
				t.Errorf("another session has %d blocks", n)
			}
		})
	}
}

// With this variable set, the test binary opens a log, and kills itself when it has
// made the steps of rewriting that are behind a comma.
const rewriteVictim = "RECORDER_TEST_REWRITE"

func beRewriteVictim(arg string) {
	dir, n, _ := strings.Cut(arg, ",")
	left, _ := strconv.Atoi(n)
	l, err := Open(Options{Dir: dir, stepped: func(int) {
		if left--; left == 0 {
			syscall.Kill(os.Getpid(), syscall.SIGKILL)
		}
	}})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if err := l.Settle(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// TestRewriteKilled kills the broker between the steps of rewriting.
func TestRewriteKilled(t *testing.T) {
	dir := t.TempDir()
	o := Options{Dir: dir, still: true}
	l := open(t, o)
	r := recordMuch(t, l)
	if err := r.End(Ended, "closed"); err != nil {
		t.Fatal(err)
	}
	want := allOf(t, l, r.ID())
	blocks, _ := blocksOf(t, l, r.ID())
	l.Close()
	killed := 0
	for ; ; killed++ {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), rewriteVictim+"="+dir+","+fmt.Sprint(killed%2+1))
		cmd.Stderr = os.Stderr
		if err := cmd.Run(); err == nil {
			break
		} else if e := (*exec.ExitError)(nil); !errors.As(err, &e) || e.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
			t.Fatal(err)
		}
		l := open(t, o)
		if got := allOf(t, l, r.ID()); !slices.Equal(got, want) {
			t.Errorf("killed %d times: %d frames are others than the %d before", killed, len(got), len(want))
		}
		if v, err := VerifySession(t.Context(), l, r.ID(), ""); !errors.Is(err, ErrUnsigned) {
			t.Errorf("%+v, %v", v, err)
		}
		var v Report
		s, _ := l.session(r.ID())
		if err := v.session(t.Context(), l, s); err != nil || len(v.Faults) > 0 {
			t.Errorf("killed %d times: %v, %v", killed, v.Faults, err)
		}
		if n, _ := blocksOf(t, l, r.ID()); killed%2 == 0 && n != blocks || n > blocks {
			t.Errorf("killed %d times: %d blocks, had %d", killed, n, blocks)
		} else {
			blocks = n
		}
		l.Close()
	}
	if killed < 5 {
		t.Errorf("it was killed %d times", killed)
	}
	if blocks > 5 {
		t.Errorf("%d blocks are left", blocks)
	}
}

// corpus returns the folder of captured MCP traffic, or skips the test.
func corpus(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	for ; err == nil && dir != "/"; dir = filepath.Dir(dir) {
		at := filepath.Join(dir, "shared", "testdata", "mcp-corpus")
		if _, err := os.Stat(at); err == nil {
			return at
		}
	}
	t.Skip("there is no shared/testdata/mcp-corpus above the project")
	return ""
}

// captured calls f with the lines of a captured session, in the order in which they
// were read.
func captured(t testing.TB, dir string, f func(at time.Duration, d codec.Direction, line []byte)) {
	t.Helper()
	var sides [2][]byte
	for d, name := range []string{"c2s.ndjson", "s2c.ndjson"} {
		path := filepath.Join(dir, name)
		b, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			if b, err = os.ReadFile(path + ".gz"); err == nil {
				var z *gzip.Reader
				if z, err = gzip.NewReader(bytes.NewReader(b)); err == nil {
					b, err = io.ReadAll(z)
				}
			}
		}
		if err != nil {
			t.Fatal(err)
		}
		sides[d] = b
	}
	chunks, err := os.Open(filepath.Join(dir, "chunks.tsv"))
	if err != nil {
		t.Fatal(err)
	}
	defer chunks.Close()
	var read, taken [2]int
	for lines := bufio.NewScanner(chunks); lines.Scan(); {
		var at, offset, n int
		var side string
		if c, _ := fmt.Sscan(lines.Text(), &at, &side, &offset, &n); c != 4 {
			continue
		}
		d := codec.C2S
		if side == "s2c" {
			d = codec.S2C
		}
		for read[d] += n; ; {
			i := bytes.IndexByte(sides[d][taken[d]:read[d]], '\n')
			if i < 0 {
				break
			}
			f(time.Duration(at), d, sides[d][taken[d]:taken[d]+i])
			taken[d] += i + 1
		}
	}
	if taken[0] != len(sides[0]) || taken[1] != len(sides[1]) {
		t.Fatalf("%s: %v bytes of frames, want %d and %d", dir, taken, len(sides[0]), len(sides[1]))
	}
}

// TestRewriteCorpus records what was captured of real servers, each line an append, and
// says what is left of it on the disk.
func TestRewriteCorpus(t *testing.T) {
	root := corpus(t)
	dirs, err := filepath.Glob(filepath.Join(root, "*", "chunks.tsv"))
	if err != nil {
		t.Fatal(err)
	}
	l := open(t, Options{Dir: t.TempDir()})
	type of struct {
		name, id  string
		raw, live int
	}
	var all []of
	for _, dir := range dirs {
		dir = filepath.Dir(dir)
		if _, err := os.Stat(filepath.Join(dir, "c2s.ndjson")); err != nil {
			continue // bodies of HTTP
		}
		r := start(t, l)
		o := of{name: filepath.Base(dir), id: r.ID()}
		captured(t, dir, func(at time.Duration, d codec.Direction, line []byte) {
			o.raw += len(line) + 1
			if err := r.Append(Frame{Direction: d, Time: r.session.Start.Add(at), Bytes: line}); err != nil {
				t.Fatal(err)
			}
			for l.tails.held.Load() > 2*rewriteSize { // they did not come faster than blocks are made
				time.Sleep(time.Millisecond)
			}
		})
		_, o.live = blocksOf(t, l, o.id)
		if err := r.End(Ended, "closed"); err != nil {
			t.Fatal(err)
		}
		all = append(all, o)
	}
	settle(t, l)
	raw, live, stored := 0, 0, 0
	for _, o := range all {
		n, size := blocksOf(t, l, o.id)
		t.Logf("%-29s %9d bytes, %5.1f:1 while it ran, %5.1f:1 in %d blocks", o.name, o.raw, float64(o.raw)/float64(o.live), float64(o.raw)/float64(size), n)
		raw, live, stored = raw+o.raw, live+o.live, stored+size
	}
	t.Logf("%-29s %9d bytes, %5.1f:1 while they ran, %5.1f:1", "all", raw, float64(raw)/float64(live), float64(raw)/float64(stored))
	if len(all) < 20 || raw < 8*stored {
		t.Errorf("%d bytes of %d sessions became %d", raw, len(all), stored)
	}
}
