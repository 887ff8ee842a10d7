// Package recorder keeps sessions in a log, so that their bytes can be given
// back as they passed.
//
//	log, err := recorder.Open(recorder.Options{Dir: "data/log"})
//	rec, err := log.Start(recorder.Session{Subject: "ada", Server: "bigquery"})
//	err = rec.Append(recorder.Frame{Direction: codec.C2S, Bytes: line})
//	err = rec.End("ended", "closed")
//
// Once Append has returned nil, kill -9 cannot take the frames away: they are
// written to the journal (journal.go). What a loss of power may take, [Sync] says.
//
// The log is a Badger database, which one process holds at a time. That process
// answers others through a socket ([ServeSocket]); [OpenSource] takes whichever
// way there is.
//
// A session is a run of frames, a block a compressed run of frames, the unit of
// writing. See format.go for what is on the disk.
package recorder

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"strings"
	"time"

	"example.com/broker/codec"
)

var (
	// ErrUnavailable is wrapped by errors of a log that cannot be written now.
	ErrUnavailable = errors.New("recorder not available")
	// ErrNoSession is returned for a session that is not on record.
	ErrNoSession = errors.New("no such session")
	// ErrInUse is returned by Open for a log that another process holds.
	ErrInUse = errors.New("in use by another process")
	// ErrNotEnded is returned for the proof of a session that runs.
	ErrNotEnded = errors.New("the session has not ended")
	// ErrUnsigned is returned for a checkpoint of a log that has no key.
	ErrUnsigned = errors.New("the log has no signed checkpoint")
	// ErrMore is no failure: [Source.Follow] has yielded all that there is so far.
	ErrMore = errors.New("there may be more to come")
	// ErrDamaged is wrapped by errors of blocks that cannot be read.
	ErrDamaged = errors.New("recording is damaged")
	// ErrBroken is wrapped by errors of a log whose own files are damaged.
	ErrBroken = errors.New("the log is damaged")
)

// The states of a session.
const (
	Running     = "open"
	Ended       = "ended"
	Refused     = "refused"     // it was not let in
	Interrupted = "interrupted" // the broker died in it
)

// A Session is what the log knows of a session, beside its frames.
type Session struct {
	ID        string    `json:"id"`
	Subject   string    `json:"subject"`
	Groups    []string  `json:"groups"`
	Server    string    `json:"server"`
	Rule      string    `json:"rule,omitempty"`   // that gave or denied access
	Access    string    `json:"access,omitempty"` // what it gave: "allow" or "approval"
	Agent     string    `json:"agent,omitempty"`  // empty: the one in the broker's process
	Transport string    `json:"transport"`        // "tls", "quic", "http/1.1", "h2", "h3" or, imported, "tcp"
	Client    string    `json:"client"`           // its address
	Start     time.Time `json:"start"`
	End       time.Time `json:"end,omitzero"`
	State     string    `json:"state"`
	Reason    string    `json:"reason,omitempty"` // why it ended or was refused
	C2S       Count     `json:"c2s"`
	S2C       Count     `json:"s2c"`
	Blocked   int64     `json:"blocked"` // frames
	Masked    int64     `json:"masked"`
	Approved  int64     `json:"approved,omitempty"` // calls that somebody approved, each by itself

	Keep int64 `json:"keep,omitempty"` // how long it is kept after its end, in s; 0: for good. In Start, below 0 is for good, too

	Findings map[string]int64 `json:"findings,omitempty"` // by detector
	// Originals counts what is sealed for whom the unmasked frames are kept.
	Originals int64 `json:"originals,omitempty"`
	// Observed counts frames by what an observing rule says of them: deny, approval
	// or mask.
	Observed map[string]int64 `json:"observed,omitempty"`

	Imported *Imported `json:"imported,omitempty"` // nil: the broker carried the session itself

	// Of a session that has ended: how many records it has, and the hash of the last,
	// in hexadecimal, which all of them hang on.
	Records int64  `json:"records,omitempty"`
	Head    string `json:"head,omitempty"`

	// Archived is the place of the archive where the session's blocks are; empty: they
	// are in the log. It is not in the session's record.
	Archived string `json:"archived,omitempty"`

	masked [2]bool // by direction: a part of the frame under way was masked,
	noted  [2]bool // and one has been noted
}

// Imported says which capture of a network a session was taken from. Nobody has
// proven an identity for it, and no rule was asked.
type Imported struct {
	File   string `json:"file"`   // its name, without the folder
	SHA256 string `json:"sha256"` // of its bytes, in hexadecimal
}

// A Count is of what was delivered in one direction, newlines included.
type Count struct {
	Frames int64 `json:"frames"`
	Bytes  int64 `json:"bytes"`
}

// count adds a frame to the session's counts.
func (s *Session) count(f *Frame) {
	switch f.Verdict {
	case Blocked:
		s.Blocked++
		s.noted[f.Direction] = false
		return
	case Aliased:
		return
	case Sealed:
		if len(f.Bytes) > 0 && f.Bytes[0] == sealedOriginal {
			s.Originals++
		}
		return
	case Found:
		var found []codec.Finding
		if json.Unmarshal(f.Bytes, &found) == nil {
			s.Findings = maps.Clone(s.Findings) // others may hold a copy of s
			if s.Findings == nil {
				s.Findings = map[string]int64{}
			}
			for _, f := range found {
				s.Findings[f.Detector]++
			}
		}
		return
	case Noted:
		var n Note
		if json.Unmarshal(f.Bytes, &n) != nil {
			return
		}
		if n.Mode == Enforce && n.Says == Approval {
			s.Approved++
		}
		if n.Mode == Observe && !s.noted[f.Direction] {
			s.Observed = maps.Clone(s.Observed)
			if s.Observed == nil {
				s.Observed = map[string]int64{}
			}
			s.Observed[n.Says]++
			s.noted[f.Direction] = true
		}
		return
	}
	c, masked := &s.C2S, &s.masked[f.Direction]
	if f.Direction == codec.S2C {
		c = &s.S2C
	}
	*masked = *masked || f.Verdict == Masked
	c.Bytes += int64(len(f.Bytes))
	if f.More {
		return
	}
	c.Bytes++
	if f.Verdict != Cut {
		c.Frames++
		if *masked {
			s.Masked++
		}
	}
	*masked, s.noted[f.Direction] = false, false
}

// A Verdict is what became of a frame.
type Verdict uint8

const (
	Delivered Verdict = iota // as it came
	Masked                   // delivered with values masked
	Edited                   // delivered with something left out, such as a tool of a list
	Blocked                  // not delivered
	Answered                 // made by the broker itself, and delivered
	// Aliased is no frame: it is a codec.Alias in JSON, of a request that follows.
	// Where clients share a session, what is on record of the request has the id
	// that the server saw; with the alias, it is what the client sent.
	Aliased
	// Found is no frame: it is a list of codec.Finding in JSON, of what was found in
	// the frame that follows.
	Found
	// Cut ends a frame that was being delivered in parts: the rest did not pass. What
	// the receiver has of it is no frame.
	Cut
	// Noted is no frame: it is a Note in JSON, of the frame that follows, or of the
	// next part of it.
	Noted
	// Sealed is no frame: it is the original of the frame that follows, or a key of
	// originals, sealed; see originals.go.
	Sealed
)

var verdicts = [...]string{"delivered", "masked", "edited", "blocked", "answered", "aliased", "found", "cut", "noted", "sealed"}

// IsFrame reports whether a record with this verdict is a frame, or a part of one.
func (v Verdict) IsFrame() bool { return v != Aliased && v != Found && v != Noted && v != Sealed }

// passes reports whether what has this verdict reached somebody.
func (v Verdict) passes() bool { return v.IsFrame() && v != Blocked }

// A Note is what a rule says of a frame that was delivered all the same.
type Note struct {
	Mode   string          `json:"mode"` // Observe, or Enforce: the frame was delivered because somebody had approved it
	Says   string          `json:"says"` // deny, approval or mask
	Rule   string          `json:"rule"`
	Reason string          `json:"reason,omitempty"`
	Found  []codec.Finding `json:"found,omitempty"` // what would have been masked
}

// The modes of Notes, and one of the things that they say.
const (
	Observe  = "observe"
	Enforce  = "enforce"
	Approval = "approval"
)

// String says what the rule says; what was found, it leaves out.
func (n Note) String() string {
	text := fmt.Sprintf("rule %s says %s", n.Rule, n.Says)
	if n.Mode == Observe {
		text += ", and is only observed"
	} else if n.Says == Approval {
		text += ", and there was one"
	}
	if n.Reason != "" {
		text += ": " + n.Reason
	}
	return text
}

// maxNoted bounds what AppendNote puts together of one frame, in findings.
const maxNoted = 10_000

// AppendNote appends the Note that a record holds to those of the same frame. One that
// says the same as another becomes one with it: a long frame has a Note for each part.
func AppendNote(notes []Note, record []byte) []Note {
	var n Note
	if json.Unmarshal(record, &n) != nil {
		return notes
	}
	return appendNote(notes, n)
}

func appendNote(notes []Note, n Note) []Note {
	for i := range notes {
		same := &notes[i]
		if same.Mode == n.Mode && same.Says == n.Says && same.Rule == n.Rule && same.Reason == n.Reason {
			same.Found = append(same.Found, n.Found[:min(len(n.Found), maxNoted-len(same.Found))]...)
			return notes
		}
	}
	n.Found = n.Found[:min(len(n.Found), maxNoted)]
	return append(notes, n)
}

// String returns the verdict as a word.
func (v Verdict) String() string {
	if int(v) < len(verdicts) {
		return verdicts[v]
	}
	return fmt.Sprintf("verdict %d", uint8(v))
}

// A Frame is one frame on record.
type Frame struct {
	Direction codec.Direction
	Verdict   Verdict
	Time      time.Time // when it was recorded; Append fills it in
	Bytes     []byte    // as delivered, or, if blocked, as received; without its newline
	// Original is what has come where Bytes are something else, if that is kept: Append
	// seals it (Options.Originals). On record it is in front of the frame, Sealed.
	Original []byte
	// More: these are not all the bytes of a frame that went on record as it arrived;
	// they go on in the next Frame of the direction that is neither Found, Noted nor Blocked.
	// If there is none, that is what was delivered of it when the broker died.
	More bool

	rest bool // it is not the frame's first
}

// NewID returns the id of a new session: 16 characters, which sort by time.
func NewID() string { return newID(time.Now()) }

// newID returns an id for a session that began at that time.
func newID(start time.Time) string {
	var b [10]byte // 48 bits of ms since 1970, 32 random bits
	binary.BigEndian.PutUint64(b[:8], uint64(max(0, start.UnixMilli()))<<16)
	rand.Read(b[6:])
	return encodeID(b)
}

// timeOf returns the time that is in a session's id.
func timeOf(id string) time.Time {
	ms := int64(0)
	for _, c := range []byte(id[:min(10, len(id))]) { // 50 bits, of which 48 are the time
		ms = ms<<5 | int64(max(0, strings.IndexByte(idAlphabet, c)))
	}
	return time.UnixMilli(ms >> 2)
}

// idAt is not behind any id of a session that began at that time or later, and behind
// all others.
func idAt(start time.Time) string {
	var b [10]byte
	binary.BigEndian.PutUint64(b[:8], uint64(max(0, start.UnixMilli()))<<16)
	return encodeID(b)
}

const idAlphabet = "0123456789abcdefghjkmnpqrstvwxyz" // Crockford's base 32

func encodeID(b [10]byte) string {
	id := make([]byte, 0, idSize)
	bits, have := uint64(0), 0
	for _, c := range b {
		bits, have = bits<<8|uint64(c), have+8
		for have >= 5 {
			have -= 5
			id = append(id, idAlphabet[bits>>have&31])
		}
	}
	return string(id)
}

// A Source reads recordings. The order of sessions is newest first, that of
// frames the one in which they were recorded. Bytes of a frame are valid until
// the next.
type Source interface {
	//
	// Sessions yields a session whose record cannot be read with nothing but its id and
	// an error that wraps [ErrDamaged], and whoever goes on gets the rest.
	Sessions(ctx context.Context) iter.Seq2[Session, error]
	// Find yields the sessions that a query finds.
	Find(ctx context.Context, q Query) iter.Seq2[Session, error]
	// Session returns [ErrNoSession] for one that is not on record.
	Session(ctx context.Context, session string) (Session, error)
	// Frames yields [ErrNoSession] for a session that is not on record. A block
	// that cannot be read yields an error in its place, and whoever goes on gets
	// the rest.
	Frames(ctx context.Context, session string) iter.Seq2[Frame, error]
	// Follow is Frames until the session has ended: frames are yielded as they are
	// recorded, and [ErrMore] before each wait.
	Follow(ctx context.Context, session string) iter.Seq2[Frame, error]
	// Blocks yields what is in the log of a session, and Leaves its sessions that have
	// ended, in the order of their ends.
	Blocks(ctx context.Context, session string) iter.Seq2[Block, error]
	Leaves(ctx context.Context) iter.Seq2[Leaf, error]
	// Proof and Checkpoint are as of now.
	Proof(ctx context.Context, session string) (*Proof, error)
	Checkpoint(ctx context.Context) ([]byte, error)
	Close() error
}

// A Block is a run of frames. Its bytes are valid until the next.
type Block struct {
	Number uint32 // of its first record
	Bytes  []byte
}

// A Leaf is a session that has ended, as the tree has it.
type Leaf struct {
	Index   int64  `json:"index"`
	Session string `json:"session"`
	Record  []byte `json:"record"` // the Session in JSON, as it is in the log; nil if it is not there any more
	// Deletion is the Deletion in JSON, if the session was deleted: then it is a leaf
	// twice, and the second is this.
	Deletion []byte `json:"deletion,omitempty"`
}

// A View says which bytes of a session a replay writes.
type View struct {
	Want func(Frame) bool // which frames; nil: those that were delivered
	// Server: as the server has seen them. Else a request that went to it by another
	// id (Aliased) has the one that its client gave it.
	Server bool
	// Follow: what is recorded from now on is written, too, until the session ends.
	Follow bool
}

// Replay writes the frames of a session, a newline behind each, as the
// connections carried them. What is damaged is left out, and named by the error
// at the end.
func Replay(ctx context.Context, w io.Writer, src Source, session string, v View) error {
	if v.Want == nil {
		v.Want = func(f Frame) bool { return f.Verdict != Blocked }
	}
	out := lines{Writer: bufio.NewWriterSize(w, 64<<10)}
	var damaged error
	read := src.Frames
	if v.Follow {
		read = src.Follow
	}
	frames := read(ctx, session)
	if !v.Server {
		frames = Reveal(frames)
	}
	for f, err := range frames {
		switch {
		case errors.Is(err, ErrMore):
			if err := out.Flush(); err != nil {
				return fmt.Errorf("write replay: %w", err)
			}
		case errors.Is(err, ErrDamaged), errors.Is(err, ErrNoOriginal):
			damaged = errors.Join(damaged, err)
		case err != nil:
			return errors.Join(out.Flush(), fmt.Errorf("session %s: %w", session, err))
		case !f.Verdict.IsFrame():
		case v.Want(f):
			if err := out.add(f); err != nil {
				return fmt.Errorf("write replay: %w", err)
			}
		}
	}
	out.end()
	if err := out.Flush(); err != nil {
		return fmt.Errorf("write replay: %w", err)
	}
	if damaged != nil {
		return fmt.Errorf("session %s: %w", session, damaged)
	}
	return nil
}

// Reveal yields frames as the clients have sent and received them: a request that
// went to the server by another id, and what speaks of it, has the one that its
// client gave it. What is Aliased is left out.
func Reveal(frames iter.Seq2[Frame, error]) iter.Seq2[Frame, error] {
	return func(yield func(Frame, error) bool) {
		var aliases []codec.Alias
		for f, err := range frames {
			if err == nil && f.Verdict == Aliased {
				var a codec.Alias
				if json.Unmarshal(f.Bytes, &a) == nil {
					aliases = append(aliases, a)
				}
				continue
			}
			for i := range aliases {
				if f.Verdict.IsFrame() && bytes.Contains(f.Bytes, aliases[i].As) && json.Valid(f.Bytes) {
					f.Bytes = aliases[i].Reveal(nil, f.Bytes)
				}
			}
			if !yield(f, err) {
				return
			}
		}
	}
}

// lines write frames. While one that comes in parts is under way, those of the
// other direction wait.
type lines struct {
	*bufio.Writer
	under   bool
	of      codec.Direction
	waiting []byte
}

func (l *lines) add(f Frame) error {
	if l.under && f.Direction != l.of {
		l.waiting = append(append(l.waiting, f.Bytes...), '\n')
		return nil
	}
	l.of, l.under = f.Direction, f.More
	_, err := l.Write(f.Bytes)
	if !f.More {
		err = errors.Join(err, l.WriteByte('\n'))
		l.end()
	}
	return err
}

// end writes what has waited.
func (l *lines) end() {
	if l.under && len(l.waiting) > 0 { // nothing more comes of the frame under way
		l.WriteByte('\n')
	}
	l.Write(l.waiting)
	l.under, l.waiting = false, nil
}
