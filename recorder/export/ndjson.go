package export

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"unicode/utf8"

	"example.com/broker/codec"
	"example.com/broker/recorder"
)

// ndjsonVersion counts up when a program that reads version 1 would be misled.
const ndjsonVersion = 1

// joinedFrame is how much of a frame that was recorded part by part is joined
// into one line, in bytes.
const joinedFrame = 16 << 20

// An ndjsonFrame is a line but for its last member, "frame" or "bytes".
type ndjsonFrame struct {
	V         int             `json:"v"`
	Session   string          `json:"session"`
	N         int64           `json:"n"`
	Time      string          `json:"time"`
	Last      string          `json:"last,omitempty"`
	Direction string          `json:"direction"`
	Verdict   string          `json:"verdict"`
	Findings  []codec.Finding `json:"findings,omitempty"`
	Found     int             `json:"found,omitempty"`
	Notes     []recorder.Note `json:"notes,omitempty"`
	Part      *int            `json:"part,omitempty"`
	More      bool            `json:"more,omitempty"`
}

type ndjson struct {
	joiner
	w       *bufio.Writer
	session string
}

func newNDJSON(w *bufio.Writer) writer {
	x := &ndjson{w: w}
	x.joiner = joiner{limit: joinedFrame, parts: true, next: x.frame}
	return x
}

func (x *ndjson) begin(s recorder.Session) error {
	x.session = s.ID
	return nil
}

func (x *ndjson) end(recorder.Session) error { return x.joiner.end() }

func (x *ndjson) frame(f *frame) error {
	line := ndjsonFrame{
		V: ndjsonVersion, Session: x.session, N: f.n, Time: f.time.UTC().Format(isoTime),
		Direction: f.direction.String(), Verdict: f.verdict.String(), Findings: f.findings, Notes: f.notes, More: f.more,
	}
	if f.found > len(f.findings) {
		line.Found = f.found
	}
	if !f.last.Equal(f.time) {
		line.Last = f.last.UTC().Format(isoTime)
	}
	whole := f.part == 0 && !f.more
	if f.part > 0 || f.more {
		line.Part = &f.part
	}
	head, err := json.Marshal(line)
	if err != nil {
		return err
	}
	x.w.Write(head[:len(head)-1])
	if b := f.bytes; whole && json.Valid(b) && utf8.Valid(b) {
		x.w.WriteString(`,"frame":`)
		writeLine(x.w, b)
	} else {
		x.w.WriteString(`,"bytes":"`)
		e := base64.NewEncoder(base64.StdEncoding, x.w)
		e.Write(b)
		e.Close()
		x.w.WriteByte('"')
	}
	_, err = x.w.WriteString("}\n") // the first error of a bufio.Writer stays
	return err
}

// writeLine writes valid JSON without the line breaks that may stand between its
// tokens: some readers of lines take a carriage return for an end.
func writeLine(w *bufio.Writer, b []byte) {
	for len(b) > 0 {
		i := bytes.IndexAny(b, "\r\n")
		if i < 0 {
			i = len(b)
		}
		w.Write(b[:i])
		b = b[min(i+1, len(b)):]
	}
}
