package recorder

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// readFromDisk is how many bytes this process has had read from disks.
func readFromDisk(t testing.TB) (n int64) {
	t.Helper()
	b, err := os.ReadFile("/proc/self/io")
	if err == nil {
		_, err = fmt.Sscanf(string(b[bytes.Index(b, []byte("read_bytes:")):]), "read_bytes: %d", &n)
	}
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestJournalPages checks that the kernel need not read from the disk for what is written to
// a file of the journal that has been another one, and that nothing of that is behind it on
// its block.
func TestJournalPages(t *testing.T) {
	j := openedJournal(t, t.TempDir(), nil)
	defer j.close()
	fill(t, j, "aaaaaaaaaaaaaaaa")
	if names := tidy(t, j); len(names) != 1 {
		t.Fatalf("left are %q", names)
	}
	spare := j.spares[0].file
	if err := errors.Join(spare.Sync(), unix.Fadvise(int(spare.Fd()), 0, 0, unix.FADV_DONTNEED)); err != nil {
		t.Fatal(err)
	}
	for n, size := range []int{10, 5000, pendingSize, 20} { // some are pending, one is written at once
		before := readFromDisk(t)
		if _, _, err := j.add("bbbbbbbbbbbbbbbb", nil, opened(Block{uint32(n), bytes.Repeat([]byte("b"), size)})); err != nil {
			t.Fatal(err)
		}
		if err := j.syncAll(); err != nil {
			t.Fatal(err)
		}
		if n := readFromDisk(t) - before; n > 0 {
			t.Errorf("to write %d bytes, %d were read from the disk", size, n)
		}
		all, err := os.ReadFile(j.file.path)
		if err != nil {
			t.Fatal(err)
		}
		end := int(j.file.size) + entryHead
		if rest := all[end : end+int(restOfBlock(int64(end)))]; len(bytes.Trim(rest, "\x00")) > 0 {
			t.Errorf("after %d there is %.40q", n, rest)
		}
		if err := unix.Fadvise(int(spare.Fd()), int64(end), 0, unix.FADV_DONTNEED); err != nil {
			t.Fatal(err)
		}
	}
	if j.file.file != spare {
		t.Fatal("the spare file was not used")
	}
}
