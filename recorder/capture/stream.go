package capture

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/reassembly"

	"example.com/broker/codec"
	"example.com/broker/recorder"
)

// Bounds, in bytes but for undecidedLines.
const (
	heldLine   = 4 << 20  // a longer line goes on record in parts, as it comes, unchecked
	heldPart   = 1 << 20  // one of those parts
	heldAll    = 64 << 20 // of all streams: over it, every line goes in parts
	keptBuffer = 4 << 10  // what a side keeps when it has no line under way

	// What is read of a stream, until a frame shows that it is MCP.
	undecidedBytes = 1 << 20
	undecidedLines = 8 // of a side
)

const unknown = -1

// A stream is one TCP stream. Side 0 has sent the first packet.
type stream struct {
	x           *importer
	number      uint64
	ends        [2]netip.AddrPort // by side
	started     bool              // by a SYN, with isn
	isn         uint32
	first, last time.Time
	finished    bool

	sides  [2]side
	client int       // the side that is the client, or unknown
	lines  []pending // until it is known what this is
	other  bool      // it is no MCP, and is not looked at any more
	parser codec.Parser
	rec    Recording // nil until it is known that it is MCP
	batch  []recorder.Frame
	sum    Session
}

type pending struct {
	side int
	time time.Time
	line []byte
}

// A side is what one end sends.
type side struct {
	based bool   // base is known
	base  uint32 // the sequence number that the assembler has as 0
	seen  bool   // something came
	buf   []byte // of the line under way
	torn  bool   // segments in front of the line under way are missing
	skip  bool   // the line under way is not taken, up to its end
	long  bool   // the beginning of the line under way is on record
	lines int
}

// flow is how the assembler knows the stream.
func (s *stream) flow(forward bool) gopacket.Flow {
	var a, b [9]byte
	binary.BigEndian.PutUint64(a[:], s.number)
	binary.BigEndian.PutUint64(b[:], s.number)
	b[8] = 1
	if !forward {
		a, b = b, a
	}
	return gopacket.NewFlow(layers.EndpointIPv4, a[:], b[:])
}

// rebase returns a sequence number counted from near 0. The assembler is off by one
// in comparing two of which one is before 2^32 and the other behind it, and would
// mix up the bytes of segments that come twice there. So it can only where a side
// has sent 4 GiB.
func (s *stream) rebase(from netip.AddrPort, seq uint32) uint32 {
	side := &s.sides[0]
	if from != s.ends[0] {
		side = &s.sides[1]
	}
	if !side.based {
		side.based, side.base = true, seq-1<<20 // some earlier ones may come later
	}
	return seq - side.base
}

// Accept implements [reassembly.Stream]. A side whose SYN is not in the capture
// begins with what there is.
func (s *stream) Accept(tcp *layers.TCP, _ gopacket.CaptureInfo, d reassembly.TCPFlowDirection, next reassembly.Sequence, start *bool, _ reassembly.AssemblerContext) bool {
	if next == -1 && !tcp.SYN {
		*start = true
		s.sides[sideOf(d)].torn = true
	}
	return true
}

func sideOf(d reassembly.TCPFlowDirection) int {
	if d == reassembly.TCPDirServerToClient {
		return 1
	}
	return 0
}

// ReassembledSG implements [reassembly.Stream].
func (s *stream) ReassembledSG(sg reassembly.ScatterGather, ac reassembly.AssemblerContext) {
	if s.finished || s.other || s.x.err != nil {
		return
	}
	d, _, _, missing := sg.Info()
	n, _ := sg.Lengths()
	i := sideOf(d)
	if missing > 0 {
		s.gap(i)
	}
	s.take(i, sg.Fetch(n), ac.GetCaptureInfo().Timestamp)
	s.append()
}

// ReassemblyComplete implements [reassembly.Stream].
func (s *stream) ReassemblyComplete(reassembly.AssemblerContext) bool {
	s.x.followed--
	s.finish()
	return true
}

// gap is called where segments are missing.
func (s *stream) gap(i int) {
	side := &s.sides[i]
	switch {
	case side.long:
		s.batch = append(s.batch, recorder.Frame{Direction: s.direction(i), Verdict: recorder.Cut, Time: s.last})
		s.append()
		s.sum.Incomplete++
	case len(side.buf) > 0 && !side.skip:
		s.sum.Incomplete++
	}
	s.drop(side)
	side.torn, side.long, side.skip = true, false, false
}

// take takes what a side sends next.
func (s *stream) take(i int, data []byte, t time.Time) {
	side := &s.sides[i]
	if !side.seen && len(data) > 0 {
		side.seen = true
		if why := foreign(data); why != "" && s.rec == nil {
			s.leave(why)
		}
	}
	for len(data) > 0 && !s.other && s.x.err == nil {
		end := bytes.IndexByte(data, '\n')
		if end < 0 {
			s.keep(i, data, t)
			return
		}
		piece := data[:end]
		data = data[end+1:]
		if side.skip {
			side.skip, side.torn = false, false
			continue
		}
		if len(side.buf) == 0 {
			s.line(i, piece, t)
			continue
		}
		s.hold(side, piece)
		s.line(i, side.buf, t)
		s.append()
		s.drop(side)
	}
}

// keep keeps the beginning of a line, whose end comes later.
func (s *stream) keep(i int, data []byte, t time.Time) {
	side := &s.sides[i]
	if side.skip {
		return
	}
	s.hold(side, data)
	full := s.x.held > heldAll
	switch {
	case s.rec == nil && (full || len(side.buf) > undecidedBytes):
		s.leave("no JSON-RPC")
	case s.rec == nil:
	case side.long && (full || len(side.buf) >= heldPart), !side.long && !side.torn && (full || len(side.buf) > heldLine):
		side.long = true
		s.batch = append(s.batch, recorder.Frame{Direction: s.direction(i), Time: t, Bytes: side.buf, More: true})
		s.append()
		s.drop(side)
	case side.torn && (full || len(side.buf) > heldLine):
		side.skip = true
		s.sum.Incomplete++
		s.drop(side)
	}
}

// line takes a line, which is valid until the batch is appended.
func (s *stream) line(i int, line []byte, t time.Time) {
	side := &s.sides[i]
	if side.long {
		side.long = false
		s.batch = append(s.batch, recorder.Frame{Direction: s.direction(i), Time: t, Bytes: line})
		s.sum.Unchecked++
		s.count(i)
		return
	}
	if len(bytes.TrimSpace(line)) == 0 {
		side.torn = false
		return
	}
	if s.rec != nil {
		s.frame(i, line, t)
		return
	}
	s.lines = append(s.lines, pending{i, t, bytes.Clone(line)})
	s.x.held += len(line)
	f, err := s.parser.Parse(line, codec.C2S)
	if err != nil {
		f, err = s.parser.Parse(line, codec.S2C)
	}
	if err == nil {
		s.begin(i, f)
		return
	}
	if side.lines++; side.lines >= undecidedLines {
		s.leave("no JSON-RPC")
	}
}

// frame puts a line on record.
func (s *stream) frame(i int, line []byte, t time.Time) {
	side, d := &s.sides[i], s.direction(i)
	torn := side.torn
	side.torn = false
	f := recorder.Frame{Direction: d, Time: t, Bytes: line}
	if _, err := s.parser.Parse(line, d); err != nil {
		if torn { // the end of a line
			s.sum.Incomplete++
			return
		}
		f.Verdict = recorder.Blocked
		s.sum.Blocked++
	} else {
		s.count(i)
	}
	s.batch = append(s.batch, f)
}

func (s *stream) count(i int) {
	if s.direction(i) == codec.C2S {
		s.sum.C2S++
	} else {
		s.sum.S2C++
	}
}

func (s *stream) direction(i int) codec.Direction {
	if i == s.client {
		return codec.C2S
	}
	return codec.S2C
}

// begin starts the recording, of a stream in which side i has sent f.
func (s *stream) begin(i int, f *codec.Frame) {
	if s.client == unknown {
		s.client = s.guess(i, f)
	}
	client, server := s.ends[s.client], s.ends[1-s.client]
	imported := s.x.as
	rec, err := s.x.log.Start(recorder.Session{
		Groups: []string{}, Server: server.String(), Transport: "tcp", Client: client.String(), Start: s.first, Imported: &imported,
	})
	if err != nil {
		s.x.err = err
		return
	}
	s.rec = rec
	s.sum.ID, s.sum.Client, s.sum.Server, s.sum.Start = rec.ID(), client.String(), server.String(), s.first
	for _, l := range s.lines {
		s.frame(l.side, l.line, l.time)
	}
	s.append()
	s.forget()
}

// guess returns the side that is the client, where the capture does not show who
// has called: by a frame that only one of them sends, or else by the ports.
func (s *stream) guess(i int, f *codec.Frame) int {
	if f.Kind == codec.Response {
		return 1 - i
	}
	begins := func(names ...string) bool {
		for _, name := range names {
			if bytes.HasPrefix(f.Method, []byte(name)) {
				return true
			}
		}
		return false
	}
	switch {
	case begins("initialize", "server/", "tools/", "resources/", "prompts/", "completion/", "logging/", "subscriptions/", "notifications/initialized", "notifications/roots/"):
		return i
	case begins("sampling/", "roots/", "elicitation/", "notifications/message", "notifications/tools/", "notifications/resources/", "notifications/prompts/"):
		return 1 - i
	}
	if s.ends[0].Port() < s.ends[1].Port() {
		return 1
	}
	return 0
}

// append puts on record what the batch holds.
func (s *stream) append() {
	if len(s.batch) > 0 && s.x.err == nil {
		if err := s.rec.Append(s.batch...); err != nil {
			s.x.err = fmt.Errorf("session %s: %w", s.rec.ID(), err)
		}
	}
	clear(s.batch)
	s.batch = s.batch[:0]
}

// finish ends the stream.
func (s *stream) finish() {
	if s.finished {
		return
	}
	for i := range s.sides {
		side := &s.sides[i]
		switch {
		case side.long: // what there is of it is on record
			s.batch = append(s.batch, recorder.Frame{Direction: s.direction(i), Time: s.last, Bytes: side.buf, More: true})
			s.append()
			s.sum.Incomplete++
		case len(side.buf) == 0 || side.skip || s.other:
		case s.rec != nil:
			if _, err := s.parser.Parse(side.buf, s.direction(i)); err == nil { // whole, but for its newline
				s.frame(i, side.buf, s.last)
				s.append()
			} else {
				s.sum.Incomplete++
			}
		}
		s.drop(side)
	}
	s.finished = true
	switch {
	case s.rec != nil:
		reason := "imported"
		if s.sum.Incomplete > 0 {
			reason = fmt.Sprintf("imported; of %d frames, segments are missing", s.sum.Incomplete)
		}
		s.sum.End = s.last
		if s.x.err == nil {
			s.x.err = s.rec.EndAt(s.last, recorder.Ended, reason)
		}
		s.x.report.Sessions = append(s.x.report.Sessions, s.sum)
	case s.other:
	case s.sides[0].seen || s.sides[1].seen:
		s.leave("no JSON-RPC")
	default:
		s.leave("no data")
	}
	s.forget()
	s.batch = nil
}

// leave counts a stream that is no recording.
func (s *stream) leave(why string) {
	s.other = true
	s.x.report.Streams[why]++
	for i := range s.sides {
		s.drop(&s.sides[i])
	}
	s.forget()
}

// hold, drop and forget count what is held.
func (s *stream) hold(side *side, b []byte) {
	side.buf = append(side.buf, b...)
	s.x.held += len(b)
}

func (s *stream) drop(side *side) {
	s.x.held -= len(side.buf)
	if side.buf = side.buf[:0]; cap(side.buf) > keptBuffer {
		side.buf = nil
	}
}

func (s *stream) forget() {
	for _, l := range s.lines {
		s.x.held -= len(l.line)
	}
	s.lines = nil
}

// foreign says what a stream is that begins with b and is no MCP.
func foreign(b []byte) string {
	if len(b) > 2 && b[0] == 0x16 && b[1] == 3 {
		return "TLS"
	}
	for _, begin := range []string{"GET ", "POST ", "PUT ", "HEAD ", "DELETE ", "OPTIONS ", "PATCH ", "CONNECT ", "HTTP/", "PRI * HTTP/2"} {
		if bytes.HasPrefix(b, []byte(begin)) {
			return "HTTP"
		}
	}
	if bytes.HasPrefix(b, []byte("SSH-")) {
		return "SSH"
	}
	return ""
}
