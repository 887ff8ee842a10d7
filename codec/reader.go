package codec

import (
	"bytes"
	"errors"
	"io"
	"math/bits"
	"sync"
)

// Limits bounds what a Reader accepts. The zero value is ready for use.
type Limits struct {
	Frame int // largest frame, in bytes; if zero, 32 MiB
	// Held is the largest frame that Next waits for without asking: of a longer one
	// it returns ErrLong. If zero, it does not ask.
	Held int
}

const defaultFrame = 32 << 20

const (
	firstBuffer = 4 << 10  // what lines are read into at first,
	bigBuffer   = 64 << 10 // and where they come faster
)

// ErrLong is returned for a line that is longer than Limits.Held: it can be taken
// as it arrives, by a [Parser.Flow], or waited for.
var ErrLong = errors.New("codec: a long line is under way")

// A Reader splits a stream into lines. It does not judge them.
type Reader struct {
	rd    io.Reader
	limit int
	held  int
	whole bool // the line under way is waited for though it is longer
	left  bool // the line under way was read in parts, and not to its end

	// buf[:start] is read, buf[start:] is not yet; no newline in buf[start:scanned].
	buf            []byte
	start, scanned int

	long  longLine // what Long has said of the line under way
	first [1]byte  // of a line: a Reader that waits for one holds no buffer

	skip *idScanner // of the line that is too large and being discarded; nil if none is
	err  error      // sticky
}

// NewReader returns a Reader of the lines in r.
func NewReader(r io.Reader, l Limits) *Reader {
	if l.Frame <= 0 {
		l.Frame = defaultFrame
	}
	return &Reader{rd: r, limit: l.Frame, held: l.Held}
}

// Next returns the next line without its newline, or io.EOF after the last. The
// line is valid until the next call. There is room for its newline behind it,
// in the same array.
//
// A stream that ends inside a line yields that part and io.ErrUnexpectedEOF. A
// line over the limit is discarded and yields an [*Error] with code 413, and
// with the request's id where it could be read; the next call goes on behind it.
func (r *Reader) Next() ([]byte, error) {
	r.long = longLine{}
	if r.left {
		if err := r.skipLine(); err != nil {
			return nil, err
		}
	}
	if poison {
		for i := range r.buf[:r.start] {
			r.buf[i] = '#'
		}
	}
	for {
		if i := bytes.IndexByte(r.buf[r.scanned:], '\n'); i >= 0 {
			line := r.buf[r.start : r.scanned+i]
			r.start = r.scanned + i + 1
			r.scanned, r.whole = r.start, false
			if r.skip != nil || len(line) > r.limit {
				return nil, r.tooLarge(line)
			}
			return line, nil
		}
		r.scanned = len(r.buf)
		if r.held > 0 && len(r.buf)-r.start > r.held && !r.whole {
			return nil, ErrLong
		}
		if len(r.buf)-r.start > r.limit || r.skip != nil {
			r.discard()
		}
		switch {
		case r.err != nil:
			return r.rest()
		case r.start == len(r.buf) && r.skip == nil:
			size := r.release()
			if r.read(r.first[:]) > 0 { // it waits here, most of the time
				r.begin(size)
			}
		default:
			r.fill()
		}
	}
}

// Whole has Next wait for the end of the line of which it has returned ErrLong.
func (r *Reader) Whole() { r.whole = true }

// readLine reads on in the line under way; the end of it is io.EOF. wait is
// called before the peer is waited for.
func (r *Reader) readLine(p []byte, wait func() error) (n int, err error) {
	for r.start == len(r.buf) {
		if r.err == io.EOF {
			return 0, io.ErrUnexpectedEOF
		}
		if r.err != nil {
			return 0, r.err
		}
		if r.buf = r.buf[:0]; cap(r.buf) > bigBuffer {
			releaseBuffer(r.buf)
			r.buf = nil
		}
		r.start, r.scanned = 0, 0
		if err := wait(); err != nil {
			return 0, err
		}
		r.fill()
	}
	b := r.buf[r.start:]
	i := bytes.IndexByte(b, '\n')
	if i >= 0 {
		b = b[:i]
	}
	n = copy(p, b)
	r.start += n
	if r.left = n < len(b) || i < 0; !r.left {
		r.start, err = r.start+1, io.EOF
	}
	r.scanned = r.start
	return n, err
}

// skipLine goes behind the line under way.
func (r *Reader) skipLine() error {
	p := make([]byte, bigBuffer)
	for r.left {
		if _, err := r.readLine(p, func() error { return nil }); err != nil && err != io.EOF {
			return err
		}
	}
	return nil
}

// rest returns what is left when the stream has ended.
func (r *Reader) rest() ([]byte, error) {
	line := r.buf[r.start:]
	r.start = len(r.buf)
	r.scanned = r.start
	switch {
	case r.skip != nil:
		return nil, r.tooLarge(nil)
	case len(line) > 0 && r.err == io.EOF:
		return line, io.ErrUnexpectedEOF
	}
	return nil, r.err
}

// discard drops what is buffered of a line that is too large, but looks for its id.
func (r *Reader) discard() {
	if r.skip == nil {
		r.skip = &idScanner{}
	}
	r.skip.scan(r.buf[r.start:])
	r.buf = r.buf[:r.start]
	r.scanned = r.start
}

// tooLarge ends the line that is being discarded, of which tail is the last part.
func (r *Reader) tooLarge(tail []byte) error {
	if r.skip == nil {
		r.skip = &idScanner{}
	}
	r.skip.scan(tail)
	id := r.skip.id()
	r.skip = nil
	return &Error{Code: CodeTooLarge, ID: id, Offset: -1, Reason: "the frame is too large"}
}

// Buffered reports whether Next would return at once.
func (r *Reader) Buffered() bool {
	if r.err != nil {
		return true
	}
	if r.left {
		return false
	}
	i := bytes.IndexByte(r.buf[r.scanned:], '\n')
	if i < 0 {
		r.scanned = len(r.buf)
		return false
	}
	r.scanned += i // Next finds it there again
	return true
}

// grow moves what is buffered into a larger buffer.
func (r *Reader) grow(size int) {
	old := r.buf
	r.buf = append(acquireBuffer(size), old...)
	releaseBuffer(old)
}

// buffers are those that nobody needs, by the power of two that they hold, in bytes:
// firstBuffer to maxBuffer. Most sessions wait most of their time; and large frames come now
// and then. Each would need new ones.
var buffers [22]sync.Pool

// boxes hold no buffer: a pool takes pointers, and each buffer would need a new one.
var boxes = sync.Pool{New: func() any { return new([]byte) }}

const maxBuffer = 1 << (len(buffers) - 1)

// class returns where in buffers those of a size are, if they are kept.
func class(size int) (i int, ok bool) {
	i = bits.TrailingZeros(uint(size))
	return i, size >= firstBuffer && size == 1<<i && size <= maxBuffer
}

func acquireBuffer(size int) []byte {
	if i, ok := class(size); ok {
		if box, ok := buffers[i].Get().(*[]byte); ok {
			b := *box
			*box = nil
			boxes.Put(box)
			return b[:0]
		}
	}
	return make([]byte, 0, size)
}

// releaseBuffer takes a buffer that nobody looks into any more.
func releaseBuffer(b []byte) {
	if i, ok := class(cap(b)); ok {
		box := boxes.Get().(*[]byte)
		*box = b
		buffers[i].Put(box)
	}
}

// release gives the buffer back, which is read, and says which size is next.
func (r *Reader) release() (size int) {
	size = firstBuffer
	if len(r.buf) > firstBuffer/2 {
		size = bigBuffer
	}
	releaseBuffer(r.buf)
	r.buf, r.start, r.scanned = nil, 0, 0
	return size
}

// begin takes a buffer for a line of which the first byte has come.
func (r *Reader) begin(size int) {
	r.buf = append(acquireBuffer(size), r.first[0])
}

// fill reads more of the stream into buf.
func (r *Reader) fill() {
	if r.start > 0 {
		n := copy(r.buf, r.buf[r.start:])
		r.buf = r.buf[:n]
		r.scanned -= r.start
		r.start = 0
	}
	if cap(r.buf)-len(r.buf) < firstBuffer/2 {
		// A line at the limit, its newline and a full read always fit.
		size := min(2*cap(r.buf), max(r.limit, cap(r.buf))+firstBuffer)
		r.grow(max(size, firstBuffer))
	}
	// One byte stays free: the newline of a line that ends with the stream.
	n := r.read(r.buf[len(r.buf) : cap(r.buf)-1])
	r.buf = r.buf[:len(r.buf)+n]
	// A buffer that one read fills is too small for the peer's pace.
	if n > 0 && len(r.buf) == cap(r.buf)-1 && cap(r.buf) < bigBuffer {
		r.grow(bigBuffer)
	}
}

// read reads at least a byte, unless there are no more.
func (r *Reader) read(p []byte) (n int) {
	for range 100 {
		if n, r.err = r.rd.Read(p); n > 0 || r.err != nil {
			return n
		}
	}
	r.err = io.ErrNoProgress
	return 0
}
