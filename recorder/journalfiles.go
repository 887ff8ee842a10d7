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

// begin begins the next file: the one that is prepared, or else one that is made now. mu is
// held.
func (j *journal) begin() error {
	if j.closed {
		return fmt.Errorf("%w: %w", errBegin, os.ErrClosed)
	}
	f := j.next
	if f == nil {
		var spare *journalFile
		f, spare = j.number()
		file, err := j.create(f, spare)
		if j.created(f, spare, file); err != nil {
			return fmt.Errorf("%w: %w", errBegin, err)
		}
	}
	if err := j.pending.create(j.dir, f.number); err != nil {
		j.next = f
		return fmt.Errorf("%w: %w", errBegin, err)
	}
	f.of = map[string]bool{}
	j.next, j.preparing = nil, nil // a file that is being prepared comes too late
	j.file, j.files, j.last = f, append(j.files, f), f.number
	j.bell.ring()
	return nil
}

// prepare makes the file that begins next, so that nobody who records waits for what that
// takes of the file system while others write. If it fails, begin tries again, and tells why.
func (j *journal) prepare() {
	j.mu.Lock()
	if j.closed || j.next != nil {
		j.mu.Unlock()
		return
	}
	f, spare := j.number()
	j.preparing = f
	j.mu.Unlock()
	file, err := j.create(f, spare)
	j.mu.Lock()
	defer j.mu.Unlock()
	j.created(f, spare, file)
	switch {
	case err != nil:
	case j.preparing == f && !j.closed:
		j.next = f
	default:
		j.discard(f)
	}
	j.preparing = nil
}

// discard has a file removed that has not begun. mu is held.
func (j *journal) discard(f *journalFile) {
	j.files = slices.Insert(j.files, 0, f)
	j.bell.ring()
}

// number returns a file that is to be made, with a number and a name, and the spare one that
// shall become it, if there is one. mu is held.
func (j *journal) number() (f, spare *journalFile) {
	var salt [saltSize]byte
	rand.Read(salt[:])
	j.given++
	f = j.named(fmt.Sprintf("%08d-%x", j.given, salt))
	if n := len(j.spares) - 1; n >= 0 {
		spare, j.spares = j.spares[n], j.spares[:n]
		f.beneath = spare.of
	}
	return f, spare
}

// create makes a file, of a spare one if there is one that is good for it.
func (j *journal) create(f, spare *journalFile) (*os.File, error) {
	if spare != nil && f.reuse(spare) {
		return spare.file, nil
	}
	file, err := os.OpenFile(f.path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	if err := reserve(file, fileRoom); err != nil {
		return nil, errors.Join(err, file.Close(), os.Remove(f.path))
	}
	return file, nil
}

// created says what create has made of f; nil: nothing. mu is held.
func (j *journal) created(f, spare *journalFile, file *os.File) {
	f.file = file
	if spare != nil && spare.file != file { // it is removed with those that must go
		j.away = max(j.away, spare.number)
		j.files = slices.Insert(j.files, 0, spare)
	}
}

// reuse makes a spare file f, and reports whether it could.
func (f *journalFile) reuse(spare *journalFile) bool {
	// Its end comes first: under the new name, what is in it is damage.
	_, err := spare.file.WriteAt(padded(f.sealEnd(nil, 0), 0), 0)
	if err == nil {
		err = reserve(spare.file, fileRoom) // keep has cut it
	}
	if err == nil {
		err = os.Rename(spare.path, f.path)
	}
	return err == nil
}

// keep makes a file of which the database has all a spare one, and reports whether it is
// one now. One that was not written to its full length would keep what is behind its end,
// which is of a time that nobody remembers. Only one goroutine keeps and removes files: it
// does not have others wait for the file system.
func (j *journal) keep(f *journalFile) bool {
	full := journalSize <= f.size && f.size <= journalSize+maxEntry
	_, name, numbered := strings.Cut(filepath.Base(f.path), "-") // else it has been a spare one
	j.mu.Lock()
	wanted := f.file != nil && full && numbered && !j.pending.has(f) && j.wants(f)
	j.mu.Unlock()
	if !wanted {
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
	j.mu.Lock()
	defer j.mu.Unlock()
	if !j.wants(f) { // any more
		return false
	}
	j.drop(f)
	j.spares = append(j.spares, f)
	return true
}

// wants reports whether a file may become a spare one. mu is held.
func (j *journal) wants(f *journalFile) bool {
	return f.number > j.away && !j.closed && len(j.spares) < spareFiles
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
