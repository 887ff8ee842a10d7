package recorder

import (
	"math/rand/v2"
	"testing"
	"time"

	"example.com/broker/codec"
)

// TestCollect checks that what is deleted is freed on the disk, and nothing else.
func TestCollect(t *testing.T) {
	dir := t.TempDir()
	l := open(t, Options{Dir: dir})
	noise := make([]byte, 1<<20)
	chacha := rand.NewChaCha8([32]byte{})
	var ids []string
	for range 2 {
		r := start(t, l)
		for range 2 * valueFileSize / len(noise) {
			chacha.Read(noise)
			if err := r.Append(Frame{Direction: codec.S2C, Bytes: noise}); err != nil {
				t.Fatal(err)
			}
		}
		if err := r.End(Ended, ""); err != nil {
			t.Fatal(err)
		}
		ids = append(ids, r.ID())
		settle(t, l) // so that no file has values of both
	}
	before, err := l.Disk()
	if err != nil {
		t.Fatal(err)
	}
	if before.Values < 4*valueFileSize || before.Values > 5*valueFileSize || before.Sessions != 2 || before.Pending != 0 || before.Free == 0 {
		t.Errorf("%+v", before)
	}
	want := allOf(t, l, ids[1])
	if err := l.erase(ids[0]); err != nil {
		t.Fatal(err)
	}
	// Which tables Badger merges, and so what it learns of dead values, depends on what its
	// own goroutines have merged before: it may take another look.
	freed, files := int64(0), 0
	for look := 0; look < 10 && freed < valueFileSize; look++ {
		for range 8 { // so that there are tables to merge
			r := start(t, l)
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			l = open(t, Options{Dir: dir})
			quiet(l, r.ID()) // Badger's collection reads what a commit writes
		}
		l.dead.Store(valueFileSize + 1)
		if d, err := l.Disk(); err != nil || !d.Collected.Time.IsZero() {
			t.Errorf("collected before it was: %+v, %v", d, err)
		}
		l.collectNow()
		after, err := l.Disk()
		if err != nil {
			t.Fatal(err)
		}
		if c := after.Collected; c.Err != nil || time.Since(c.Time) > time.Hour {
			t.Errorf("collected: %+v", c)
		}
		files += after.Collected.Files
		freed = before.Values - after.Values
	}
	if freed < valueFileSize {
		t.Errorf("%d of %d bytes were freed", freed, before.Values)
	}
	if files == 0 {
		t.Error("no file was counted")
	}
	if got := allOf(t, l, ids[1]); len(got) != len(want) {
		t.Errorf("another session has %d frames, had %d", len(got), len(want))
	}
}
