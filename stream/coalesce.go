package stream

import (
	"net"
	"sync"
	"time"
)

// gatherSize is how much a coalescer holds at most, in bytes, before writers wait.
const gatherSize = 256 << 10

// A coalescer gathers what is written and writes it from one goroutine: what
// comes while a write is under way goes out together with the next, and nothing
// waits on a timer. yamux writes a frame's header and body one after the other,
// and the frames of many streams one after the other; beneath it, each would be
// a TLS record and a system call.
type coalescer struct {
	net.Conn

	mu      sync.Mutex
	changed sync.Cond
	buf     []byte
	err     error // of a write; sticky
	closed  bool
	done    chan struct{} // closed when flush has returned
}

func newCoalescer(c net.Conn) *coalescer {
	w := &coalescer{Conn: c, done: make(chan struct{})}
	w.changed.L = &w.mu
	go w.flush()
	return w
}

// Write takes p; an error of writing it out is that of a later call.
func (w *coalescer) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(w.buf) > gatherSize && w.err == nil && !w.closed {
		w.changed.Wait()
	}
	switch {
	case w.err != nil:
		return 0, w.err
	case w.closed:
		return 0, net.ErrClosed
	}
	w.buf = append(w.buf, p...)
	w.changed.Broadcast()
	return len(p), nil
}

// flush writes out what is gathered until the connection is closed.
func (w *coalescer) flush() {
	defer close(w.done)
	var out []byte
	w.mu.Lock()
	defer w.mu.Unlock()
	for {
		for len(w.buf) == 0 && !w.closed {
			w.changed.Wait()
		}
		if len(w.buf) == 0 || w.err != nil {
			return
		}
		out, w.buf = w.buf, out[:0]
		w.changed.Broadcast()
		w.mu.Unlock()
		_, err := w.Conn.Write(out)
		if cap(out) > 2*gatherSize {
			out = nil
		}
		w.mu.Lock()
		if err != nil {
			w.err = err
			w.changed.Broadcast()
			return
		}
	}
}

// Close writes out what is gathered, if the peer takes it in time.
func (w *coalescer) Close() error {
	w.mu.Lock()
	w.closed = true
	w.changed.Broadcast()
	w.mu.Unlock()
	w.Conn.SetWriteDeadline(time.Now().Add(lingerTime))
	<-w.done
	return w.Conn.Close()
}
