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
		f = j.newFile()
		file, err := f.create(false)
		if j.created(f, file); err != nil {
			return fmt.Errorf("%w: %w", errBegin, err)
		}
		j.preparing = nil // that comes too late
	}
	j.next = f
	if err := j.pending.create(j.dir, f.number); err != nil {
		return fmt.Errorf("%w: %w", errBegin, err)
	}
	f.of = map[string]bool{}
	j.file, j.files, j.last, j.next = f, append(j.files, f), f.number, nil
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
	f := j.newFile()
	j.preparing = f
	j.mu.Unlock()
	file, err := f.create(true)
	stays := err == nil && syncFolder(j.dir) == nil
	j.mu.Lock()
	defer j.mu.Unlock()
	j.created(f, file)
	f.stays = stays
	switch {
	case err != nil:
	case j.preparing == f && !j.closed:
		j.next = f
	default:
		j.abandon(f)
	}
	j.preparing = nil
}

// abandon has a file removed to which nothing is written any more. mu is held.
func (j *journal) abandon(f *journalFile) {
	f.beneath = nil // it goes soon
	j.files = slices.Insert(j.files, 0, f)
	j.bell.ring()
}

// newFile returns a file that is to be made, of a spare one if there is one. mu is held.
func (j *journal) newFile() *journalFile {
	var salt [saltSize]byte
	rand.Read(salt[:])
	j.given++
	f := j.named(fmt.Sprintf("%08d-%x", j.given, salt))
	if n := len(j.spares) - 1; n >= 0 {
		f.spare, j.spares = j.spares[n], j.spares[:n]
		f.beneath = f.spare.of
	}
	return f
}

// create makes a file. With flush, no loss of power takes its end, which is its beginning.
func (f *journalFile) create(flush bool) (*os.File, error) {
	if f.spare != nil && f.reuse(flush) == nil {
		return f.spare.file, nil
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

// created says what has come of create: nil is nothing. mu is held.
func (j *journal) created(f *journalFile, file *os.File) {
	f.file = file
	if file == nil && f.number == j.given {
		j.given--
	}
	if f.spare != nil && f.spare.file != file {
		j.away = max(j.away, f.spare.number)
		j.abandon(f.spare)
		f.beneath = nil
	}
	f.spare = nil
}

// reuse makes a file of a spare one.
func (f *journalFile) reuse(flush bool) error {
	// Its end comes first: under the new name, what is in it is damage.
	_, err := f.spare.file.WriteAt(filled(f.sealEnd(nil, 0), 0), 0)
	if err == nil {
		err = reserve(f.spare.file, fileRoom) // keep has cut it
	}
	if err == nil && flush {
		err = datasync(f.spare.file)
	}
	if err == nil {
		err = os.Rename(f.spare.path, f.path)
	}
	return err
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
