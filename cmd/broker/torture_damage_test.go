//go:build torture

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// damage turns bits in a copy of the log, at a random place of a random file. What
// verify does not name is as it was, or the log says what is damaged and does not open.
func (w *torture) damage() string {
	ctx, cancel := context.WithCancel(w.Context())
	defer cancel()
	loads := w.loads(ctx, w.IntN(2) == 0)
	w.sleep(900 * time.Millisecond)
	if w.IntN(2) == 0 {
		w.killProcess(w.broker.process)
	} else {
		w.broker.cmd.Process.Signal(unix.SIGTERM)
		w.broker.cmd.Wait()
	}
	cancel()
	w.wait(loads)
	damaged := filepath.Join(w.dir, "damaged")
	w.must(os.RemoveAll(damaged))
	if out, err := exec.Command("cp", "-a", filepath.Join(w.dir, "data"), damaged).CombinedOutput(); err != nil { // sparse stays so
		w.Fatalf("%v: %s", err, out)
	}
	if _, err := w.output("verify", "--data", "data", "--save", filepath.Join(w.dir, "checkpoint")); err != nil {
		w.Fatal(err)
	}
	good := w.replays()
	file, at := w.turnBits(filepath.Join(damaged, "log"))
	where := fmt.Sprintf("%s at %d", file, at)

	opens, found, out := true, map[string]bool{}, []byte(nil)
	out, err := w.output("verify", "--json", "--data", "damaged", "--key", "data/log.pub", "--since", "checkpoint")
	var r struct{ Faults []struct{ Session string } }
	if len(out) == 0 {
		opens = false
		if text := err.Error(); !strings.Contains(text, "open log") || !strings.Contains(text, "hint: ") {
			w.Fatalf("%s is damaged, and verify says %s", where, text)
		}
	} else {
		w.must(json.Unmarshal(out, &r))
	}
	for _, f := range r.Faults {
		found[f.Session] = true
	}
	lost, parts := 0, 0
	if opens {
		for id, want := range good {
			got, err := w.output("replay", "--data", "damaged", "--raw", id)
			switch {
			case bytes.Equal(got, want):
			case err == nil && len(r.Faults) == 0:
				w.Fatalf("%s is damaged: verify finds nothing, and session %s has %d bytes instead of %d", where, id, len(got), len(want))
			case len(got) == 0:
				lost++
			default:
				parts++
			}
			if err == nil && !found[id] && !found[""] && !bytes.Equal(got, want) {
				w.Fatalf("%s is damaged: session %s is another one, and verify does not name it: %s", where, id, out)
			}
		}
	}
	// A broker either serves on what is left, or says why not.
	p := w.start("serve", "--config", w.damagedConfig())
	done := make(chan struct{})
	go func() { p.cmd.Wait(); close(done) }()
	serves := false
	for deadline := time.Now().Add(60 * time.Second); !serves; {
		select {
		case <-done:
			deadline = time.Time{}
		case <-time.After(10 * time.Millisecond):
		}
		serves = strings.Contains(p.log.String(), `msg="broker is up"`)
		if deadline.IsZero() {
			break
		}
		if time.Now().After(deadline) {
			w.Fatalf("%s is damaged: the broker neither comes up nor ends\n%s", where, p.log)
		}
	}
	if serves {
		p.cmd.Process.Kill()
		<-done
		w.kills++
	} else if text := p.log.String(); !strings.Contains(text, "broker: error: ") || !strings.Contains(text, "open log") {
		w.Fatalf("%s is damaged: the broker ends with %s", where, text)
	}
	if text := p.log.String(); strings.Contains(text, "panic:") || strings.Contains(text, "goroutine ") {
		w.Fatalf("%s is damaged: %s", where, text)
	}
	w.must(os.RemoveAll(damaged))
	w.serve()
	n := w.check(loads, true) // what is recorded when a broker is told to end need not arrive any more
	w.served()
	return fmt.Sprintf("%s; %s: opens %t, serves %t, %d faults named, of %d sessions %d are gone and %d in part", n, where, opens, serves, len(r.Faults), len(good), lost, parts)
}

// damagedConfig is that of a broker on the damaged copy.
func (w *torture) damagedConfig() string {
	text := fmt.Sprintf(tortureConfig, 0, w.dir)
	path := filepath.Join(w.dir, "damaged.yaml")
	w.must(os.WriteFile(path, []byte(strings.Replace(text, "data: data", "data: damaged", 1)), 0o600))
	return path
}

// replays returns what some of the sessions on record replay, by id.
func (w *torture) replays() map[string][]byte {
	all := map[string][]byte{}
	for _, s := range w.listed() {
		if len(all) < 4 {
			out, err := w.output("replay", "--data", "data", "--raw", s.ID)
			w.must(err)
			all[s.ID] = out
		}
	}
	return all
}

// turnBits changes up to 8 bytes in a row, where there are any but zeros: in the journal, or
// in Badger's files.
func (w *torture) turnBits(dir string) (name string, at int64) {
	journal, err := filepath.Glob(filepath.Join(dir, "journal", "*"))
	w.must(err)
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	w.must(err)
	files = slices.DeleteFunc(files, func(name string) bool { return filepath.Base(name) == "LOCK" || filepath.Base(name) == "journal" })
	if len(journal) > 0 && w.IntN(2) == 0 {
		files = journal
	}
	for range 1000 {
		name := files[w.IntN(len(files))]
		f, err := os.OpenFile(name, os.O_RDWR, 0)
		w.must(err)
		at, ok := w.place(f)
		if ok {
			b := make([]byte, 1+w.IntN(8))
			n, _ := f.ReadAt(b, at)
			for i := range b[:n] {
				b[i] ^= byte(1 + w.IntN(255))
			}
			_, err := f.WriteAt(b[:n], at)
			w.must(err)
		}
		w.must(f.Close())
		if ok {
			return filepath.Base(name), at
		}
	}
	w.Fatal("there is nothing to damage")
	return "", 0
}

// place is a random place in a file at which there is no zero.
func (w *torture) place(f *os.File) (int64, bool) {
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil || size == 0 {
		return 0, false
	}
	from, err := unix.Seek(int(f.Fd()), w.Int64N(size), unix.SEEK_DATA)
	if err != nil {
		from = 0
	}
	to, err := unix.Seek(int(f.Fd()), from, unix.SEEK_HOLE)
	if err != nil || to <= from {
		to = size
	}
	at := from + w.Int64N(max(to-from, 1))
	var b [1]byte
	n, _ := f.ReadAt(b[:], at)
	return at, n == 1 && b[0] != 0
}
