package codec

import "math/bits"

// A window is the part of a text that is in memory.
type window struct {
	read   func(p []byte) (int, error) // at least a byte, or an error; io.EOF at the end
	buf    []byte                      // behind at, what is not decided
	at     int
	kept   int   // so much in front of at stays
	size   int   // of buf, when more than a little is read
	passed int64 // bytes in front of at, from the beginning of the text
	err    error // of read; sticky
}

const readSize = 64 << 10

// release gives back the memory of a window that nobody looks into any more.
func (w *window) release() {
	releaseBuffer(w.buf)
	w.buf, w.at = nil, 0
}

func (w *window) rest() []byte { return w.buf[w.at:] }

// pass goes on by n bytes.
func (w *window) pass(n int) {
	w.at += n
	w.passed += int64(n)
}

// more reads on, and reports whether there is more.
func (w *window) more() bool {
	if w.err != nil {
		return false
	}
	if cap(w.buf)-len(w.buf) < readSize {
		if from := max(0, w.at-w.kept); from >= readSize {
			w.buf = w.buf[:copy(w.buf, w.buf[from:])]
			w.at -= from
		} else {
			// What is longer than this at first is mostly as long as it may be.
			size := max(cap(w.buf)*5/4, w.size, 2*readSize)
			if size < maxBuffer {
				size = 1 << bits.Len(uint(size-1))
			}
			old := w.buf
			w.buf = append(acquireBuffer(size), old...)
			releaseBuffer(old)
		}
	}
	n, err := w.read(w.buf[len(w.buf) : len(w.buf)+readSize])
	w.buf = w.buf[:len(w.buf)+n]
	w.err = err
	return n > 0
}

// need reads on until n bytes are there, and reports whether they are.
func (w *window) need(n int) bool {
	for len(w.rest()) < n {
		if !w.more() {
			return false
		}
	}
	return true
}
