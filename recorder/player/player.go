// Package player plays a recording on a terminal: its frames with the time between
// them, forwards and backwards.
//
// What a peer has sent reaches the terminal as printable characters only, with
// everything else as escapes. Of a long frame the beginning is shown; memory is that
// of a [recorder.Tape].
package player

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"

	tea "charm.land/bubbletea/v2"

	"example.com/broker/codec"
	"example.com/broker/recorder"
)

// Options say how a recording is played. The zero value is ready for use.
type Options struct {
	Speed float64          // times the session's own; if zero, 1
	Only  *codec.Direction // nil: both
	// Live: what is recorded from now on is shown at once, until the session ends.
	Live bool
}

// Play plays a session of a source until the person quits or ctx is done.
func Play(ctx context.Context, in io.Reader, out io.Writer, src recorder.Source, session string, o Options) error {
	s, err := src.Session(ctx, session)
	if err != nil {
		return fmt.Errorf("session %s: %w", session, err)
	}
	tape, err := recorder.NewTape()
	if err != nil {
		return err
	}
	defer tape.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	p := tea.NewProgram(newModel(s, tape, o), tea.WithInput(in), tea.WithOutput(out), tea.WithoutSignalHandler())
	// In order, as a person quits: killed, the program may still be writing.
	defer context.AfterFunc(ctx, p.Quit)()
	done := make(chan struct{})
	frames := src.Frames
	if o.Live {
		frames = src.Follow
	}
	go load(ctx, p.Send, frames(ctx, session), done)
	last, err := p.Run()
	cancel()
	<-done
	if m, ok := last.(*model); ok && m.failed != nil {
		return m.failed
	}
	if errors.Is(err, tea.ErrProgramKilled) || errors.Is(err, context.Canceled) {
		return nil // interrupted, which is a way to quit
	}
	return err
}

// batch bounds how much is handed over at a time, in bytes.
const batch = 1 << 20

// load hands the frames of a recording to the player.
func load(ctx context.Context, send func(tea.Msg), frames iter.Seq2[recorder.Frame, error], done chan<- struct{}) {
	defer close(done)
	var some []recorder.Frame
	size := 0
	flush := func() {
		if len(some) > 0 {
			send(arrived(some))
		}
		some, size = nil, 0
	}
	for f, err := range frames {
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, recorder.ErrMore): // nothing for now
			flush()
		case errors.Is(err, recorder.ErrDamaged):
			flush()
			send(damaged{err})
		case errors.Is(err, recorder.ErrNoOriginal):
			flush()
			send(lacking{err})
		case err != nil:
			flush()
			send(ended{err})
			return
		default:
			f.Bytes = bytes.Clone(f.Bytes)
			some = append(some, f)
			if size += len(f.Bytes) + 256; size >= batch {
				flush()
			}
		}
	}
	flush()
	send(ended{})
}

// What the model is told.
type (
	arrived []recorder.Frame    // they are on record
	damaged struct{ err error } // something cannot be read
	lacking struct{ err error } // something is not what was asked for
	ended   struct{ err error } // nothing more comes
)
