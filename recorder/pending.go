package recorder

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"runtime/debug"

	"golang.org/x/sys/unix"
)

// What has been added to the journal and is not in its file yet is in journal/pending, a file
// that is mapped: to put an entry there is no system call, and kill -9 leaves it there. It
// is brought to its file when there is no room for the next, and before that is flushed; so
// nothing of it is flushed itself. The file is
//
//	8 bytes  number of the file that the entries belong to, little-endian
//	8 bytes  offset there of the first
//	…        the entries, as in that file, the empty one behind the last
//
// Nothing says how many there are: an entry's checksum is good for one name and offset.

const (
	pendingName = "pending"
	pendingHead = 16
	// pendingSize is how many bytes of entries are pending at most: they fit into the
	// caches of a processor. What is half as long is written to the file at once.
	pendingSize = 128 << 10
)

// pending is the mapped file, which is there from when the first file of the journal begins.
// The journal's mu guards it.
type pending struct {
	path string
	mem  []byte // nil: it is not mapped
	file *journalFile
	from int64 // offset in file of what is pending
	size int   // of it, without the empty entry behind it
}

// create makes the file and maps it.
func (p *pending) create() error {
	if p.mem != nil {
		return nil
	}
	f, err := os.OpenFile(p.path, os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	const size = pendingHead + pendingSize + entryHead
	if _, err := f.Write(make([]byte, size)); err != nil { // so that no page lacks its place on the disk
		return err
	}
	mem, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("map %s: %w", p.path, err)
	}
	p.mem = mem
	return nil
}

// fits reports whether n bytes may be put behind what is pending.
func (p *pending) fits(f *journalFile, n int) bool {
	return p.size == 0 || p.file == f && p.size+n <= pendingSize
}

// put puts entries for that offset of f, and the empty one behind them, where they fit.
func (p *pending) put(f *journalFile, at int64, entries []byte) error {
	err := mapped(func() {
		if p.size == 0 { // in this order: what is there is good for neither another file nor offset
			binary.LittleEndian.PutUint64(p.mem, uint64(f.number))
			binary.LittleEndian.PutUint64(p.mem[8:], uint64(at))
		}
		copy(p.mem[pendingHead+p.size:], entries)
	})
	if err != nil {
		return err
	}
	if p.size == 0 {
		p.file, p.from = f, at
	}
	p.size += len(entries) - entryHead
	return nil
}

// spill brings what is pending to its file. If it fails, all of that is still pending.
func (p *pending) spill() error {
	if p.size == 0 {
		return nil
	}
	if _, err := p.file.file.WriteAt(p.mem[pendingHead:][:p.size+entryHead], p.from); err != nil {
		return err
	}
	p.size = 0
	return nil
}

// has reports whether anything of a file is pending.
func (p *pending) has(f *journalFile) bool { return p.file == f && p.size > 0 }

// wipe drops what is pending, and what is left of what has been.
func (p *pending) wipe() {
	p.file, p.size = nil, 0
	mapped(func() { clear(p.mem) }) // what cannot be reached fails the next put
}

// close removes the file, unless something is pending.
func (p *pending) close() error {
	if p.mem == nil {
		return nil
	}
	err := unix.Munmap(p.mem)
	p.mem = nil
	if p.size > 0 {
		return err
	}
	return errors.Join(err, os.Remove(p.path))
}

// mapped runs f, which uses mapped memory: of a page that the disk does not give, or has no
// place for, that is an error, and not the end of the process.
func mapped(f func()) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		switch r := recover().(type) {
		case nil:
		case interface{ Addr() uintptr }:
			err = fmt.Errorf("a mapped file: %v", r)
		default:
			panic(r)
		}
	}()
	f()
	return nil
}

// restore brings what a dead process has left pending to its file, which may have been
// killed in the middle of that.
func (j *journal) restore(log *slog.Logger) error {
	left, err := os.ReadFile(j.pending.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if len(left) > pendingHead && *(*[pendingHead]byte)(left) != [pendingHead]byte{} {
		number, from := binary.LittleEndian.Uint64(left), binary.LittleEndian.Uint64(left[8:])
		found := false
		for _, f := range j.files {
			if uint64(f.number) != number || from > math.MaxInt64/2 {
				continue
			}
			if found, err = f.restore(int64(from), left[pendingHead:]); err != nil {
				return err
			}
		}
		if !found {
			log.Error("the journal is damaged, or its end was not written", "file", j.pending.path)
		}
	}
	return os.Remove(j.pending.path)
}

// restore writes the entries that left begins with, if they are for that offset, and reports
// whether there are any. After a loss of power they may be of a time before: where the file
// goes on behind them, it keeps that.
func (f *journalFile) restore(from int64, left []byte) (found bool, err error) {
	size, _ := f.walk(from, left, func(string, Block) { found = true }, func(int, int) {})
	if !found {
		return false, nil
	}
	all, err := os.ReadFile(f.path)
	if err != nil {
		return false, err
	}
	whole := true
	has, ended := f.walk(from, all[min(from, int64(len(all))):], func(string, Block) {}, func(int, int) { whole = false })
	switch {
	case has > size || has == size && ended:
		if whole {
			return true, nil
		}
	default:
		size = min(size+entryHead, len(left)) // with the empty one
	}
	file, err := os.OpenFile(f.path, os.O_WRONLY, 0)
	if err != nil {
		return false, err
	}
	_, err = file.WriteAt(left[:size], from)
	return true, errors.Join(err, datasync(file), file.Close())
}
