package recorder

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// begin begins the next file. mu is held.
func (j *journal) begin() error {
	if j.closed {
		return fmt.Errorf("%w: %w", errBegin, os.ErrClosed)
	}
	if err := j.pending.create(j.dir, j.last+1); err != nil {
		return fmt.Errorf("%w: %w", errBegin, err)
	}
	var salt [saltSize]byte
	rand.Read(salt[:])
	f := j.named(fmt.Sprintf("%08d-%x", j.last+1, salt))
	if !j.reuse(f) { // which has room
		var err error
		if f.file, err = os.OpenFile(f.path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600); err != nil {
			return fmt.Errorf("%w: %w", errBegin, err)
		}
		if err := reserve(f.file, journalSize+maxEntry); err != nil {
			return fmt.Errorf("%w: %w", errBegin, errors.Join(err, f.file.Close(), os.Remove(f.path)))
		}
	}
	f.of = map[string]bool{}
	j.file, j.files, j.last = f, append(j.files, f), f.number
	j.bell.ring()
	return nil
}

// reuse makes a spare file f, and reports whether there was one. mu is held.
func (j *journal) reuse(f *journalFile) bool {
	n := len(j.spares) - 1
	if n < 0 {
		return false
	}
	spare := j.spares[n]
	j.spares = j.spares[:n]
	// Its end comes first: under the new name, what is in it is damage.
	_, err := spare.file.WriteAt(f.sealEnd(nil, 0), 0)
	if err == nil {
		err = reserve(spare.file, journalSize+maxEntry) // keep has cut it
	}
	if err == nil {
		err = os.Rename(spare.path, f.path)
	}
	if err != nil {
		j.away = max(j.away, spare.number) // it is removed with those that must go
		j.files = slices.Insert(j.files, 0, spare)
		return false
	}
	f.file, f.beneath = spare.file, spare.of
	return true
}

// keep makes a file of which the database has all a spare one, and reports whether it is
// one now. One that was not written to its full length would keep what is behind its end,
// which is of a time that nobody remembers.
func (j *journal) keep(f *journalFile) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	full := journalSize <= f.size && f.size <= journalSize+maxEntry
	_, name, numbered := strings.Cut(filepath.Base(f.path), "-") // else it has been a spare one
	if f.file == nil || !full || !numbered || j.pending.has(f) || f.number <= j.away || j.closed || len(j.spares) == spareFiles {
		return false
	}
	path := filepath.Join(j.dir, name+spareName)
	if os.Rename(f.path, path) != nil {
		return false
	}
	f.path = path
	if f.file.Truncate(journalSize) != nil {
		return false
	}
	j.drop(f)
	j.spares = append(j.spares, f)
	return true
}

// done returns the files of which the database has all that is written; with end, the
// one that is written to may be among them, and the next entry begins another.
func (j *journal) done(end bool) (files []*journalFile) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, f := range j.files {
		if f.entries == 0 && (f != j.file || end) && (f.file != nil || f.loaded) {
			files = append(files, f)
		}
	}
	if slices.Contains(files, j.file) {
		j.file = nil
	}
	return files
}

// remove removes files that are done, but for those that become spare ones.
func (j *journal) remove(files []*journalFile) error {
	for _, f := range files {
		if j.keep(f) {
			continue
		}
		paths := []string{f.path}
		if f.left != nil {
			paths = []string{f.left.path, f.path}
		}
		for _, path := range paths {
			if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		j.mu.Lock()
		f.removed = true
		j.drop(f)
		j.mu.Unlock()
		if f.file != nil {
			f.file.Close()
		}
	}
	return nil
}

// drop takes a file out of those that are there. mu is held.
func (j *journal) drop(f *journalFile) {
	is := func(other *journalFile) bool { return other == f }
	j.files, j.dirty = slices.DeleteFunc(j.files, is), slices.DeleteFunc(j.dirty, is)
	if j.pending.file == f {
		j.pending.wipe()
	}
}
