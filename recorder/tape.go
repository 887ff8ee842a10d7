package recorder

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"example.com/broker/codec"
)

// A Tape has the frames of a session in any order, as clients' connections carried
// them. A frame that went on record in parts is one on the tape.
//
// Their bytes are in a file without a name, so that what a Tape takes of memory
// is about 200 bytes a frame, however long it is. Its methods must not be called
// by several goroutines at a time.
type Tape struct {
	// Damaged says what could not be read, and is not on the tape.
	Damaged error

	file    *os.File
	size    int64
	frames  []*Taped
	under   [2]*Taped // by direction: the frame whose parts go on
	found   [2][]codec.Finding
	noted   [2][]Note
	aliases []codec.Alias
}

// A Taped is a frame on a Tape.
type Taped struct {
	Direction codec.Direction
	Verdict   Verdict
	Time      time.Time
	Length    int64           // in bytes
	Findings  []codec.Finding // what detectors found in it
	Notes     []Note          // what rules say of it, though it passed
	// Part: it has a beginning only, because the rest did not pass, or did not yet.
	Part bool

	parts []extent
}

// note adds what is noted of a part of the frame.
func (t *Taped) note(notes []Note) {
	for _, n := range notes {
		t.Notes = appendNote(t.Notes, n)
	}
}

// An extent is where a part of a frame is in the file.
type extent struct{ at, size int64 }

// NewTape returns an empty Tape.
func NewTape() (*Tape, error) {
	f, err := os.CreateTemp("", "broker-replay-")
	if err != nil {
		return nil, fmt.Errorf("make a tape: %w", err)
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return nil, fmt.Errorf("make a tape: %w", err)
	}
	return &Tape{file: f}, nil
}

// ReadTape returns a Tape of all that is on record of a session.
func ReadTape(ctx context.Context, src Source, session string) (*Tape, error) {
	t, err := NewTape()
	if err != nil {
		return nil, err
	}
	for f, err := range src.Frames(ctx, session) {
		if errors.Is(err, ErrDamaged) {
			t.Damaged = errors.Join(t.Damaged, err)
			continue
		}
		if err == nil {
			err = t.Add(f)
		}
		if err != nil {
			t.Close()
			return nil, fmt.Errorf("session %s: %w", session, err)
		}
	}
	return t, nil
}

// Close takes the tape away.
func (t *Tape) Close() error { return t.file.Close() }

// Add puts what a [Source] has yielded behind the rest.
func (t *Tape) Add(f Frame) error {
	d := f.Direction & 1
	switch f.Verdict {
	case Found:
		var found []codec.Finding
		if json.Unmarshal(f.Bytes, &found) == nil {
			t.found[d] = append(t.found[d], found...)
		}
		return nil
	case Noted:
		t.noted[d] = AppendNote(t.noted[d], f.Bytes)
		return nil
	case Sealed:
		return nil
	case Aliased:
		var a codec.Alias
		if json.Unmarshal(f.Bytes, &a) == nil {
			t.aliases = append(t.aliases, a)
		}
		return nil
	}
	to := t.under[d]
	if to == nil || f.Verdict == Blocked {
		to = &Taped{Direction: f.Direction, Verdict: f.Verdict, Time: f.Time}
		t.frames = append(t.frames, to)
	}
	if f.Verdict != Blocked {
		if to.Verdict == Delivered {
			to.Verdict = f.Verdict
		}
		to.Part = f.More || f.Verdict == Cut
		if t.under[d] = nil; f.More {
			t.under[d] = to
		}
	}
	to.Findings, t.found[d] = append(to.Findings, t.found[d]...), nil
	to.note(t.noted[d])
	t.noted[d] = nil
	b := f.Bytes
	for i := range t.aliases {
		if bytes.Contains(b, t.aliases[i].As) && json.Valid(b) {
			b = t.aliases[i].Reveal(nil, b)
		}
	}
	n, err := t.file.WriteAt(b, t.size)
	if err != nil {
		return fmt.Errorf("write to the tape: %w", err)
	}
	if last := len(to.parts) - 1; last >= 0 && to.parts[last].at+to.parts[last].size == t.size {
		to.parts[last].size += int64(n)
	} else {
		to.parts = append(to.parts, extent{t.size, int64(n)})
	}
	t.size += int64(n)
	to.Length += int64(n)
	return nil
}

// Len returns how many frames there are.
func (t *Tape) Len() int { return len(t.frames) }

// Frame returns frame i, from 0 on.
func (t *Tape) Frame(i int) *Taped { return t.frames[i] }

// Reader returns the bytes of frame i, without a newline.
func (t *Tape) Reader(i int) io.Reader {
	readers := make([]io.Reader, len(t.frames[i].parts))
	for n, p := range t.frames[i].parts {
		readers[n] = io.NewSectionReader(t.file, p.at, p.size)
	}
	return io.MultiReader(readers...)
}

// Head returns at most the first n bytes of frame i.
func (t *Tape) Head(i int, n int64) ([]byte, error) {
	b := make([]byte, min(n, t.frames[i].Length))
	if _, err := io.ReadFull(t.Reader(i), b); err != nil {
		return nil, fmt.Errorf("read the tape: %w", err)
	}
	return b, nil
}
