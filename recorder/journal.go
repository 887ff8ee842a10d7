package recorder

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// What sessions record goes to the journal first: to memory that outlives the process
// (pending.go), and from there to a file, where a transaction takes hand-offs between
// goroutines. From the journal it comes to the database in large blocks, see tail.go.
//
// The journal is files journal/<number>-<name> in the log's folder: 8 digits, and 16
// random bytes in hexadecimal, by which a file is told from all others. A file is
// entries, one behind the other:
//
//	4 bytes  length of what is behind the checksum, little-endian
//	4 bytes  CRC-32C of the name (16 bytes), the entry's offset in the file (8 bytes,
//	         big-endian), the length as above, and what is behind the checksum
//	…        16 bytes the session's id, 4 bytes the number of the block's first record,
//	         big-endian, and the block, not compressed
//
// The last is empty: its length is 0, and the next append overwrites it. Behind it are zeros
// up to where its block ends, and then what is of another time, for a file of which the
// database has all becomes the next one, under another name. To write where a file has been
// written costs a third to a tenth of what it costs where it has not: there is no page to be
// found for it, and no block of the disk.
//
// In a log that is encrypted, what is behind the checksum is sealed by AES-256-GCM. The
// key is HKDF-SHA-256 of the log's, with the name as salt and journalLabel as info; the
// nonce is 4 bytes 0 and the offset.
//
// So nobody who sends frames can make an entry, for he does not know the name, and
// where one is damaged the next is found behind it, though what says how long it was is
// lost. An entry that was not written to its end is the last of its file, and was never
// acknowledged.

const (
	journalLabel = "mcp-broker journal 1"
	// journalSize is how long a file of the journal becomes, in bytes: no append begins
	// behind that.
	journalSize = 16 << 20
	// fileRoom is what is kept on the disk for a file.
	fileRoom = journalSize + maxEntry + diskBlock
	// diskBlock is how long a block of the file system is, in bytes: what is written ends with
	// one. Of a block of which a part is written, the kernel reads the rest from the disk if it
	// does not have it. While others write, that has been a fifth of a second for which all
	// sessions waited.
	diskBlock = 4 << 10

	saltSize   = 16         // the random bytes of a name
	entryHead  = 8          // length and checksum
	entryPlace = idSize + 4 // session and number
	// sealOverhead is how much longer AES-GCM makes what it seals.
	sealOverhead = 16
	// spareFiles is how many files are kept to become the next.
	spareFiles = 4
	spareName  = ".spare" // behind the name of such a file
	// maxEntry is longer than what any entry has behind its head.
	maxEntry = entryPlace + blockSize + 128
)

// A journal is written by many goroutines.
type journal struct {
	dir   string
	key   []byte // of the log; nil: it is not encrypted
	bell  bell   // is rung when a file begins, for what is in old ones, and when one must go
	ahead bell   // is rung when the next should be prepared

	mu     sync.Mutex
	file   *journalFile   // that is written to; nil: the next entry begins one
	files  []*journalFile // all that have begun, oldest first, and such as must go
	last   int            // the number of the last one that has begun
	given  int            // the last number that a file was given
	away   int            // up to that number, files must go soon
	spares []*journalFile // of which the database has all

	next      *journalFile // is prepared, and has not begun
	preparing *journalFile // will be next; nil again if it is not wanted any more

	buf    []byte
	closed bool

	pending pending

	written int64 // bytes, in all files,
	dirty   []*journalFile

	flush struct {
		sync.Mutex // in front of mu
		sync.Cond
		upTo    int64 // of them are on the disk
		running bool  // in a goroutine, and the others wait
		broken  error // what the disk has is not known any more
	}
}

// errBegin is returned where a file cannot be begun: what has been written is as it was.
var errBegin = errors.New("begin a file")

// openJournal finds what a dead process has left.
func openJournal(dir string, key []byte, bell bell, log *slog.Logger) (*journal, error) {
	j := &journal{dir: filepath.Join(dir, "journal"), key: key, bell: bell, ahead: newBell()}
	j.flush.L = &j.flush.Mutex
	if err := os.MkdirAll(j.dir, 0o700); err != nil {
		return nil, err
	}
	if err := syncFolder(dir); err != nil {
		return nil, err
	}
	names, err := os.ReadDir(j.dir) // sorted
	var left []string
	for _, e := range names {
		switch filepath.Ext(e.Name()) {
		case spareName:
			err = errors.Join(err, os.Remove(filepath.Join(j.dir, e.Name())))
		case pendingName:
			left = append(left, filepath.Join(j.dir, e.Name()))
		}
		if f := j.named(e.Name()); f != nil {
			j.files, j.last = append(j.files, f), max(j.last, f.number)
		}
	}
	j.given = j.last
	for _, path := range left {
		err = errors.Join(err, j.leave(path, log))
	}
	return j, err
}

// add writes blocks behind all others, or none of them. last is the file that has the
// session's last. It returns the file, and what must be flushed so that no loss of power
// takes them.
func (j *journal) add(session string, last *journalFile, blocks []openedBlock) (f *journalFile, upTo int64, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.file != nil && j.file.size >= journalSize {
		j.file = nil
	}
	if j.file == nil {
		if err := j.begin(); err != nil {
			return nil, 0, err
		}
	}
	f = j.file
	e := slices.Grow(j.buf[:0], entriesSize(blocks)+entryHead+diskBlock)
	for _, b := range blocks {
		e = f.seal(e, f.size+int64(len(e)), session, b.Block)
	}
	size := f.size + int64(len(e))
	e = f.sealEnd(e, size)
	if j.buf = e; cap(e) > blockSize/4 { // of a rare big one
		j.buf = nil
	}
	if !slices.Contains(j.dirty, f) {
		j.dirty = append(j.dirty, f)
	}
	if f != last {
		f.of[session] = true // also if only a part is written
	}
	if err := j.write(f, e); err != nil {
		return nil, 0, err
	}
	if f.size < journalSize/4 && size >= journalSize/4 {
		j.ahead.ring()
	}
	j.written += size - f.size
	f.size = size
	f.entries += len(blocks)
	return f, j.written, nil
}

// write puts entries behind all others of a file, and the empty one behind them. mu is held.
func (j *journal) write(f *journalFile, entries []byte) error {
	long := len(entries) > pendingSize/2
	if long || !j.pending.fits(f, len(entries)) {
		if err := j.pending.spill(); err != nil {
			return err
		}
	}
	if !long {
		err := j.pending.put(f, f.size, entries)
		if err != nil {
			j.file = nil // what came next would be sealed for the same offset
		}
		return err
	}
	if _, err := f.file.WriteAt(filled(entries, f.size), f.size); err != nil {
		j.file = nil // what came next might be behind half an entry
		return errors.Join(err, f.file.Truncate(f.size))
	}
	return nil
}

// entriesSize is how many bytes the entries of blocks take at most.
func entriesSize(blocks []openedBlock) (n int) {
	for _, b := range blocks {
		n += entryHead + entryPlace + len(b.Bytes) + sealOverhead
	}
	return n
}

// filled appends to what is written to that offset what is missing of its last block.
func filled(b []byte, at int64) []byte {
	return append(b, make([]byte, restOfBlock(at+int64(len(b))))...)
}

// restOfBlock is how many bytes of its block are behind an offset in a file.
func restOfBlock(at int64) int64 { return -at & (diskBlock - 1) }

// sync brings what has been written to the disk, up to there. One goroutine does that for
// all who wait for it.
func (j *journal) sync(upTo int64) error {
	f := &j.flush
	f.Lock()
	defer f.Unlock()
	for f.upTo < upTo && f.broken == nil {
		if f.running {
			f.Wait()
			continue
		}
		f.running = true
		f.Unlock()
		runtime.Gosched() // those who have waited together for the last time write again
		written, err := j.syncNow()
		f.Lock()
		f.running = false
		f.Broadcast()
		if errors.Is(err, errFull) {
			return err
		}
		f.upTo, f.broken = written, err
	}
	return f.broken
}

func (j *journal) syncNow() (written int64, err error) {
	j.mu.Lock()
	written, dirty := j.written, j.dirty
	if err := j.pending.spill(); err != nil {
		j.mu.Unlock()
		return 0, err
	}
	j.dirty = nil
	j.mu.Unlock()
	for _, f := range dirty {
		if e := datasync(f.file); e != nil && !j.isRemoved(f) { // else the database has all
			err = errors.Join(err, e)
		}
		if !f.stays {
			err = errors.Join(err, syncFolder(j.dir))
			f.stays = true
		}
	}
	return written, err
}

func (j *journal) isRemoved(f *journalFile) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return f.removed
}

// syncAll is sync of all that has been written.
func (j *journal) syncAll() error {
	j.mu.Lock()
	written := j.written
	j.mu.Unlock()
	return j.sync(written)
}

// ready returns nil if something can be written, or why not.
func (j *journal) ready() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.pending.full {
		if err := j.pending.spill(); err != nil {
			return err
		}
	}
	if j.file != nil {
		return nil
	}
	return j.begin()
}

// older returns the number up to which files are older than the last n, or must go.
func (j *journal) older(n int) int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return max(j.last-n, j.away)
}

// forget says that files with something of a session must go soon. What comes next is in
// another.
func (j *journal) forget(session string) {
	var mapped []byte
	defer func() {
		if mapped != nil {
			unix.Msync(mapped, unix.MS_SYNC) // of what is unmapped meanwhile it does nothing
		}
	}()
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.pending.file != nil { // else there is nothing since it was wiped
		mapped = j.pending.mem
		j.pending.forgets = true
		j.pending.spill() // if it fails, that is told where something is recorded
	}
	j.spares = slices.DeleteFunc(j.spares, func(f *journalFile) bool {
		if f.has(session) {
			j.files = slices.Insert(j.files, 0, f)
		}
		return f.has(session)
	})
	for _, f := range j.files {
		if !f.has(session) {
			continue
		}
		if j.away = max(j.away, f.number); f == j.file {
			j.file = nil
		}
		j.bell.ring()
	}
	if f := j.next; f != nil && f.beneath[session] {
		j.next = nil
		j.abandon(f)
		j.ahead.ring()
	}
	if f := j.preparing; f != nil && f.beneath[session] {
		j.preparing = nil
		j.ahead.ring()
	}
}

// release says that the database has blocks.
func (j *journal) release(blocks []tailBlock) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, b := range blocks {
		b.file.entries--
	}
}

// empty reports whether the database has all.
func (j *journal) empty() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return len(j.files) == 0
}

// close ends the writing.
func (j *journal) close() error {
	err := j.syncAll()
	j.mu.Lock()
	defer j.mu.Unlock()
	err = errors.Join(err, j.pending.close())
	all := slices.Concat(j.files, j.spares)
	if j.next != nil {
		all = append(all, j.next)
	}
	for _, f := range all {
		if f.file != nil {
			err = errors.Join(err, f.file.Close())
		}
		if f == j.next || strings.HasSuffix(f.path, spareName) {
			err = errors.Join(err, os.Remove(f.path))
		}
	}
	j.file, j.next, j.dirty, j.spares, j.closed = nil, nil, nil, nil, true
	return err
}
