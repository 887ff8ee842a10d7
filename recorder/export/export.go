// Package export writes recordings in the formats of other tools.
//
//	err := export.Write(ctx, os.Stdout, src, "06a2n8mwvg5c3k0q", "ndjson")
//
// Each format is a [Formats] name:
//
//	pcapng  a TCP stream for Wireshark
//	ndjson  a JSON object a frame, for programs
//	html    a page that needs nothing else, for people
//	har     requests and responses of a session by HTTP, for browsers' tools
//
// All show frames as the client has sent and received them. Memory is bounded,
// however long a session or a frame is. What of a recording is damaged is left
// out, and named by the error at the end.
package export

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"example.com/broker/codec"
	"example.com/broker/recorder"
)

// ErrFormat is wrapped by errors of a session that a format cannot hold.
var ErrFormat = errors.New("not in this format")

// A writer writes the frames of one session.
type writer interface {
	begin(s recorder.Session) error
	record(f recorder.Frame) error
	end(s recorder.Session) error
}

var formats = map[string]func(w *bufio.Writer) writer{
	"pcapng": newPcapng,
	"ndjson": newNDJSON,
	"html":   newPage,
	"har":    newHAR,
}

// Formats returns the names of the formats, sorted.
func Formats() []string {
	names := make([]string, 0, len(formats))
	for name := range formats {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// Binary reports whether a format is not for a terminal.
func Binary(format string) bool { return format == "pcapng" }

// Write writes a session in one of the formats.
func Write(ctx context.Context, w io.Writer, src recorder.Source, session, format string) error {
	newWriter, ok := formats[format]
	if !ok {
		return fmt.Errorf("no format %q", format)
	}
	s, err := src.Session(ctx, session)
	if err != nil {
		return fmt.Errorf("session %s: %w", session, err)
	}
	buffer := bufio.NewWriterSize(w, 64<<10)
	out := newWriter(buffer)
	if err := out.begin(s); err != nil {
		return fmt.Errorf("export session %s: %w", session, err)
	}
	var damaged error
	for f, err := range recorder.Reveal(src.Frames(ctx, session)) {
		switch {
		case errors.Is(err, recorder.ErrDamaged):
			damaged = errors.Join(damaged, err)
			continue
		case err != nil:
			return errors.Join(buffer.Flush(), fmt.Errorf("session %s: %w", session, err))
		}
		if err := out.record(f); err != nil {
			return fmt.Errorf("export session %s: %w", session, err)
		}
	}
	if err := errors.Join(out.end(s), buffer.Flush()); err != nil {
		return fmt.Errorf("export session %s: %w", session, err)
	}
	if damaged != nil {
		return fmt.Errorf("session %s: %w", session, damaged)
	}
	return nil
}

// A frame is one frame, put together from the records that it came in.
type frame struct {
	n         int64 // from 1 on, in the order in which they began
	direction codec.Direction
	verdict   recorder.Verdict
	time      time.Time // of its first record
	last      time.Time // of its last
	findings  []codec.Finding
	found     int // how many; not all may be in findings
	notes     []recorder.Note

	bytes []byte // its first, or, where they are written part by part, the next
	size  int64  // of the whole frame, in bytes
	part  int    // how many parts were written before
	more  bool   // these are not all its bytes: others follow, or are not on record
}

// A joiner puts frames together. It holds at most limit bytes of each that came
// in several records, one in each direction; of findings, maxFindings.
type joiner struct {
	limit int
	parts bool // pass on what is longer part by part; else only its beginning is kept
	next  func(*frame) error

	frames int64
	under  [2]*frame // by direction; came in part so far
	found  [2]frame  // what the frame that follows holds
}

const maxFindings = 10_000

func (j *joiner) record(f recorder.Frame) error {
	pending := &j.found[f.Direction]
	if f.Verdict == recorder.Found {
		var n int
		pending.findings, n = appendFindings(pending.findings, f.Bytes)
		pending.found += n
		return nil
	}
	if f.Verdict == recorder.Noted {
		// What is noted while a frame is under way is of its next part: nothing that is
		// refused comes in between.
		if under := j.under[f.Direction]; under != nil {
			pending = under
		}
		pending.notes = recorder.AppendNote(pending.notes, f.Bytes)
		return nil
	}
	if !f.Verdict.IsFrame() {
		return nil
	}
	var made *frame
	under := &j.under[f.Direction]
	if f.Verdict == recorder.Blocked || *under == nil {
		j.frames++
		made = &frame{n: j.frames, direction: f.Direction, verdict: f.Verdict, time: f.Time}
	} else {
		made = *under
	}
	made.findings = append(made.findings, pending.findings[:min(len(pending.findings), maxFindings-len(made.findings))]...)
	made.found += pending.found
	made.notes = append(made.notes, pending.notes...)
	*pending = frame{}
	made.last = f.Time
	made.size += int64(len(f.Bytes))
	if f.Verdict == recorder.Cut || f.Verdict == recorder.Masked {
		made.verdict = f.Verdict
	}
	if f.Verdict == recorder.Blocked || *under == nil && !f.More {
		made.bytes = f.Bytes // as it came, in one piece
		return j.next(made)
	}
	*under = made
	for rest := f.Bytes; ; {
		n := min(len(rest), j.limit-len(made.bytes))
		made.bytes = append(made.bytes, rest[:n]...)
		if rest = rest[n:]; len(rest) == 0 || !j.parts {
			break
		}
		if err := j.pass(made); err != nil {
			return err
		}
	}
	if f.More {
		return nil
	}
	*under = nil
	return j.next(made)
}

// pass passes on what there is of a frame.
func (j *joiner) pass(f *frame) error {
	f.more = true
	err := j.next(f)
	f.part, f.bytes, f.findings, f.found, f.notes, f.more = f.part+1, f.bytes[:0], nil, 0, nil, false
	return err
}

// end passes on frames whose end is not on record, the one that began first first.
func (j *joiner) end() error {
	a, b := j.under[0], j.under[1]
	if a != nil && b != nil && a.n > b.n {
		a, b = b, a
	}
	for _, f := range []*frame{a, b} {
		if f == nil {
			continue
		}
		if err := j.pass(f); err != nil {
			return err
		}
	}
	return nil
}

// appendFindings appends what a record of findings holds to list, which does not
// get longer than maxFindings. n is how many there are.
func appendFindings(list []codec.Finding, record []byte) (all []codec.Finding, n int) {
	var found []codec.Finding
	if json.Unmarshal(record, &found) != nil {
		return list, 0
	}
	return append(list, found[:min(len(found), maxFindings-len(list))]...), len(found)
}

// detectors says what was found: "email 2, secrets".
func detectors(findings []codec.Finding) string {
	var names []string
	count := map[string]int{}
	for _, f := range findings {
		if count[f.Detector]++; count[f.Detector] == 1 {
			names = append(names, f.Detector)
		}
	}
	for i, name := range names {
		if n := count[name]; n > 1 {
			names[i] = fmt.Sprintf("%s %d", name, n)
		}
	}
	return strings.Join(names, ", ")
}

// noteText says what a rule says of a frame, and of what was found in it.
func noteText(n recorder.Note) string {
	if found := detectors(n.Found); found != "" {
		return n.String() + " (" + found + ")"
	}
	return n.String()
}

// isoTime is RFC 3339 with all nine digits, so that times sort as text.
const isoTime = "2006-01-02T15:04:05.000000000Z07:00"
