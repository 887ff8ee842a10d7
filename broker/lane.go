package broker

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"sync"

	"example.com/broker/codec"
	"example.com/broker/recorder"
)

// A Recording keeps the frames of one session. Once Append has returned nil,
// kill -9 cannot take the frames away. Append does not keep their bytes.
type Recording interface {
	Append(frames ...recorder.Frame) error
	End(state, reason string) error
}

const (
	// batchSize is how many bytes are gathered at most before they are written.
	batchSize = 256 << 10
	// copySize is the largest frame that is gathered; a larger one is written from where it lies.
	copySize = 32 << 10
)

// A lane brings the frames of one direction to their receiver: on record
// first, then out. What is queued together goes on record in one append and
// out in one write.
//
// The session's two goroutines share the client's lane, because refusals go to
// the client, too. mu is held while frames go on record and out, so that the
// two orders are the same.
type lane struct {
	direction codec.Direction
	rec       Recording
	originals bool // rec keeps what has come where something else is on record
	w         io.Writer
	gone      error // what a failed write means

	mu     sync.Mutex
	closed sync.Cond // of mu: under has become false
	under  bool      // a frame is being delivered in parts: others are queued until its end
	broken bool      // its end could not be put on record: there is no newline behind it
	queued *batch    // nil: nothing is
	err    error     // of a write: what the receiver has is uncertain
}

// A batch is frames that go on record and out together.
type batch struct {
	buf    []byte // the frames, a newline behind each
	frames []recorder.Frame
	ends   []int // of each frame in buf, behind its newline
	came   int   // bytes of the frames' originals
}

// batches are those that no lane needs. Sessions wait most of their time.
var batches = sync.Pool{New: func() any { return new(batch) }}

// size is what is gathered, in bytes.
func (b *batch) size() int {
	if b == nil {
		return 0
	}
	return len(b.buf) + b.came
}

// release gives b back. Nobody may look into it any more.
func (b *batch) release() {
	clear(b.frames) // of originals
	b.buf, b.frames, b.ends, b.came = b.buf[:0], b.frames[:0], b.ends[:0], 0
	batches.Put(b)
}

// queue gathers one frame. line has room for a newline behind it, in the same
// array, and is not kept.
func (l *lane) queue(v recorder.Verdict, line []byte) error {
	return l.queueChanged(nil, nil, v, line)
}

// queueChanged is queue of a frame that may be another one than what came, which is
// nil if it is not, and of which something may be noted.
func (l *lane) queueChanged(came []byte, n *recorder.Note, v recorder.Verdict, line []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.originals {
		came = nil
	}
	for l.under && l.queued.size()+len(line)+len(came) > batchSize && l.err == nil {
		l.closed.L = &l.mu
		l.closed.Wait()
	}
	if n != nil {
		text, err := json.Marshal(n)
		if err != nil {
			return err
		}
		if err := l.queueLocked(nil, recorder.Noted, append(text, '\n')[:len(text)]); err != nil {
			return err
		}
	}
	return l.queueLocked(came, v, line)
}

func (l *lane) queueLocked(came []byte, v recorder.Verdict, line []byte) error {
	if max(len(line), len(came)) > copySize && !l.under {
		if err := l.flushLocked(); err != nil {
			return err
		}
		return l.deliver(append(line, '\n'), recorder.Frame{Direction: l.direction, Verdict: v, Bytes: line, Original: came})
	}
	if l.queued == nil {
		l.queued = batches.Get().(*batch)
	}
	b := l.queued
	b.buf = append(append(b.buf, line...), '\n')
	b.frames = append(b.frames, recorder.Frame{Direction: l.direction, Verdict: v, Original: bytes.Clone(came)})
	b.ends = append(b.ends, len(b.buf))
	b.came += len(came)
	if b.size() > batchSize {
		return l.flushLocked()
	}
	return nil
}

// findings puts on record what was found in the frame that is queued next: by
// which detector, and where.
func (l *lane) findings(found []codec.Finding) error {
	text, err := json.Marshal(found)
	if err != nil {
		return err
	}
	return l.queue(recorder.Found, append(text, '\n')[:len(text)])
}

// to names the receiver, where it was not known from the start.
func (l *lane) to(w io.Writer) {
	l.mu.Lock()
	l.w = w
	l.mu.Unlock()
}

// flush brings out what is queued.
func (l *lane) flush() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.flushLocked()
}

func (l *lane) flushLocked() error {
	b := l.queued
	if b == nil || l.under {
		return l.err
	}
	l.queued = nil
	defer b.release()
	start := 0
	for i, end := range b.ends {
		b.frames[i].Bytes = b.buf[start : end-1]
		start = end
	}
	return l.deliver(b.buf, b.frames...)
}

// part delivers a part of a frame that is not held until its end: of the answer to the
// request with that raw id, as far as it is known. about is what is put on record in front
// of it, if it has bytes; came, what the part was, unless it is nil.
func (l *lane) part(id []byte, about recorder.Frame, v recorder.Verdict, p, came []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.under {
		if err := l.flushLocked(); err != nil {
			return err
		}
		l.under = true
		if r, ok := l.w.(relayed); ok {
			r.Flow(id)
		}
	}
	if l.err != nil {
		return l.err
	}
	about.Direction = l.direction
	frames := []recorder.Frame{about, {Direction: l.direction, Verdict: v, Bytes: p, Original: came, More: true}}
	if len(about.Bytes) == 0 {
		frames = frames[1:]
	}
	if err := l.rec.Append(frames...); err != nil {
		return err
	}
	l.write(p)
	return l.err
}

// end ends a frame that was delivered in parts: in order, or cut.
func (l *lane) end(v recorder.Verdict) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.endLocked(v)
}

func (l *lane) endLocked(v recorder.Verdict) error {
	if r, ok := l.w.(relayed); ok && v == recorder.Cut {
		r.Cut()
	}
	if !l.under {
		return l.err
	}
	l.under = false
	l.closed.Broadcast()
	err := l.rec.Append(recorder.Frame{Direction: l.direction, Verdict: v})
	if l.broken = err != nil; !l.broken {
		l.write([]byte("\n"))
	}
	return cmp.Or(err, l.err)
}

// relay tells a receiver that cares how the frames that follow came.
func (l *lane) relay(line []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.flushLocked(); err != nil {
		return err
	}
	if r, ok := l.w.(relayed); ok {
		r.Relay(line)
	}
	return nil
}

// relayed is a client that gets its frames by other means than a stream, as
// [stream.HTTPConn] brings them.
type relayed interface {
	Relay(line []byte)
	TakesParts(id []byte) bool
	Flow(id []byte)
	Cut()
}

// deliver records frames and writes those that are not blocked. out is all of
// them, a newline behind each.
func (l *lane) deliver(out []byte, frames ...recorder.Frame) error {
	if l.err != nil {
		return l.err
	}
	if err := l.rec.Append(frames...); err != nil {
		return err
	}
	start, end := 0, 0
	for _, f := range frames {
		next := end + len(f.Bytes) + 1
		if f.Verdict == recorder.Blocked || !f.Verdict.IsFrame() {
			l.write(out[start:end])
			start = next
		}
		end = next
	}
	l.write(out[start:end])
	return l.err
}

func (l *lane) write(p []byte) {
	if len(p) > 0 && l.err == nil {
		if _, err := l.w.Write(p); err != nil {
			l.err = fmt.Errorf("%w: %w", l.gone, err)
		}
	}
}

// say delivers a frame of the broker's own, though the log may not take it: the
// client must learn why its session ends.
func (l *lane) say(line []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.endLocked(recorder.Cut)
	l.flushLocked()
	l.rec.Append(recorder.Frame{Direction: l.direction, Verdict: recorder.Answered, Bytes: line})
	if l.broken {
		l.broken = false
		l.write([]byte("\n"))
	}
	l.write(append(line, '\n'))
}
