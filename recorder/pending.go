package recorder

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"

	"golang.org/x/sys/unix"
)

// What has been added to the journal and is not in its file yet is in journal/<number>.pending,
// a file that is mapped: to put an entry there is no system call, and kill -9 leaves it
// there. It is spilled to its file when there is no room for the next, and before that is
// flushed. A process has one, by the number of its first file. It is
//
//	8 bytes  number of the file that the entries belong to, little-endian
//	8 bytes  offset there of the first
//	…        the entries, as in that file, the empty one behind the last
//
// Nothing says how many there are: an entry's checksum is good for one name and offset. What
// a dead process has left is read with its file, and removed with it. The kernel brings
// pages of it to the disk when it likes: after a loss of power each is of a time of its own,
// and what is flushed is in the journal's file.

const (
	pendingName = ".pending" // behind the number
	pendingHead = 16
	// pendingSize is how many bytes of entries are pending at most: they fit into the
	// caches of a processor. What is half as long is written to the file at once.
	pendingSize = 128 << 10
)

// errFull says that what is pending could not be spilled for want of room. All of it still is
// pending.
var errFull = errors.New("no room for what is pending")

// pending is the mapped file, which is there from when the first file of the journal begins.
// The journal's mu guards it.
type pending struct {
	path    string
	mem     []byte // nil: it is not mapped
	file    *journalFile
	from    int64 // offset in file of what is pending
	size    int   // of it, without the empty entry behind it
	full    bool  // it could not be spilled for want of room
	forgets bool  // what is spilled is overwritten, and what has been before
}

// create makes the file and maps it, if that is not done.
func (p *pending) create(dir string, number int) error {
	if p.mem != nil {
		return nil
	}
	p.path = filepath.Join(dir, fmt.Sprintf("%08d%s", number, pendingName))
	f, err := os.OpenFile(p.path, os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	const size = pendingHead + pendingSize + entryHead + diskBlock
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

// spill brings what is pending to its file. If it fails, all of that still is pending.
func (p *pending) spill() error {
	if p.size > 0 {
		if p.mem == nil {
			return os.ErrClosed
		}
		end := pendingHead + p.size + entryHead
		rest := p.mem[end:][:restOfBlock(p.from+int64(p.size)+entryHead)]
		err := mapped(func() { clear(rest) })
		if err == nil {
			_, err = p.file.file.WriteAt(p.mem[pendingHead:end+len(rest)], p.from)
		}
		if p.full = isFull(err); p.full {
			return fmt.Errorf("%w: %w", errFull, err)
		}
		if err != nil {
			return err
		}
		p.size = 0
	}
	if p.forgets {
		p.wipe()
	}
	return nil
}

// isFull reports whether an error is that of a disk without room.
func isFull(err error) bool { return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) }

// has reports whether anything of a file is pending.
func (p *pending) has(f *journalFile) bool { return p.file == f && p.size > 0 }

// wipe drops what is pending, and what is left of what has been.
func (p *pending) wipe() {
	p.file, p.size, p.full, p.forgets = nil, 0, false, false
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

// A leftover is what a dead process has left pending.
type leftover struct {
	path  string
	from  int // in its file
	bytes []byte
}

// leave gives what a dead process has left pending to its file.
func (j *journal) leave(path string, log *slog.Logger) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if len(b) > pendingHead && *(*[pendingHead]byte)(b) != [pendingHead]byte{} {
		number, from := binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:])
		i := slices.IndexFunc(j.files, func(f *journalFile) bool { return uint64(f.number) == number && f.left == nil })
		if i >= 0 && from < journalSize { // where no append begins
			j.files[i].left = &leftover{path, int(from), b[pendingHead:]}
			return nil
		}
		log.Warn("what was pending is of no file of the journal: the database has it, or it is damaged", "file", path)
	}
	return os.Remove(path)
}

// over returns the bytes of a file, with what is left in the places where the file has no
// entry of its own. It calls wrong if there is none in what is left.
func (l *leftover) over(f *journalFile, all []byte, wrong func(from, to int)) []byte {
	found, none := false, func(int, int) {}
	size := f.walk(int64(l.from), l.bytes, func(string, Block) { found = true }, none)
	if !found {
		wrong(l.from, l.from)
		return all
	}
	if len(all) < l.from {
		all = append(all, make([]byte, l.from-len(all))...)
	}
	own := all[l.from:]
	has := f.walk(int64(l.from), own, func(string, Block) {}, none)
	both := append(all[:l.from:l.from], l.bytes[:size]...)
	for at := 0; at < min(size, len(own)); {
		_, _, n := f.open(int64(l.from+at), own[at:])
		if n == entryHead { // it was not spilled
			break
		}
		copy(both[l.from+at:], own[at:at+n])
		at += max(n, 1)
	}
	if has >= size {
		return append(both, own[size:]...)
	}
	return append(both, l.bytes[size:min(size+entryHead, len(l.bytes))]...) // the empty one
}
