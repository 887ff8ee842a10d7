package codec

import (
	"bytes"
	"errors"
	"io"
)

// Long reports whether the line of which Next has returned ErrLong is a response
// that is long for its result, as far as can be told, and the id that it answers,
// if that is in front of the result. [Parser.Flow] can take it.
func (r *Reader) Long() (id []byte, ok bool) {
	p := AcquireParser()
	defer p.Release()
	if r.long.result, r.long.id, ok = longResult(&p.s, r.buf[r.start:]); !ok {
		r.long.result = 0
	}
	return r.long.id, ok
}

// A longLine is what is known of a response that is long for its result.
type longLine struct {
	result int    // where it begins; 0: it is none, or nobody has asked
	id     []byte // if it is in front of the result
}

// longResult returns the offset of the result that the beginning of a frame goes
// on in. A frame that is written in an unusual way has none.
func longResult(s *scanner, line []byte) (at int, id []byte, ok bool) {
	if line[0] != '{' {
		return 0, nil, false
	}
	s.reset(line)
	for i := 1; ; i++ {
		i = blanks(line, i)
		name := plainName(line, i)
		if name == nil {
			return 0, nil, false
		}
		if i = blanks(line, i+len(name)+2); i >= len(line) || line[i] != ':' {
			return 0, nil, false
		}
		if i = blanks(line, i+1); i >= len(line) {
			return 0, nil, false
		}
		start := i
		i = s.fast(i, 1)
		switch string(name) {
		case "result":
			c := line[start]
			return start, id, i < 0 && (c == '{' || c == '[' || c == '"')
		case "id":
			if i > 0 {
				id = line[start:i:i]
			}
		case "method", "params", "error":
			return 0, nil, false
		}
		if i < 0 {
			return 0, nil, false
		}
		if i = blanks(line, i); i >= len(line) || line[i] != ',' {
			return 0, nil, false
		}
	}
}

// emptied are values without what is in them, by their first byte.
var emptied = map[byte]string{'{': "{}", '[': "[]", '"': `""`}

// maxTail bounds what stands behind a long result, in bytes.
const maxTail = 64 << 10

// Flow takes the response of which r has said that it is [Reader.Long]: it is
// checked, masked by m, which may be nil or [Masker.Leave] everything, and given
// to deliver, a part at a time and without its newline. What Flow keeps of it is a
// few MiB, however long it is, and 8 to 16 bytes for each name of a long object.
// Parts are not kept.
//
// At the end it returns a view of the frame with an empty value in the place of
// its result. A frame whose result has a member of the name refused is not
// accepted, if that is not empty. An error of r or of deliver it returns as it
// is. What is no valid frame is an [*Error], and so, with code 413, is one that
// would cost too much. rest is what has arrived of either and was not delivered. Next
// goes on behind it.
func (p *Parser) Flow(r *Reader, m *Masker, refused string, deliver func(Part) error) (f *Frame, rest []byte, err error) {
	if r.long.result == 0 {
		r.Long()
	}
	at, id := r.long.result, bytes.Clone(r.long.id)
	if at == 0 {
		return nil, nil, errors.New("codec: not a long response")
	}
	out := &parts{m: m, deliver: deliver, size: firstPart}
	flow := flow{m: m, s: &p.s, sizes: defaultSizes, to: out, strict: true, gone: true, refused: refused, cost: &cost{}}
	flow.w.size = flow.sizes.value + 2*readSize
	flow.w.read = func(b []byte) (int, error) {
		if out.err != nil {
			return 0, out.err
		}
		return r.readLine(b, out.flush)
	}
	if m != nil {
		flow.sizes = m.sizes
		m.start(nil)
		if m.states = m.states[:0]; m.fields != nil {
			m.states = m.fields.begin(m.states)
		}
		defer m.forget()
	}
	defer flow.w.release()
	flow.w.need(at + 1)
	frame := append(bytes.Clone(flow.w.rest()[:at]), emptied[flow.w.rest()[at]]...)
	flow.keep(at)
	if flow.value(place{area: areaResult}, 1, false) {
		for flow.w.more() && len(flow.w.rest()) <= maxTail {
		}
		tail := flow.w.rest()
		if len(tail) > maxTail {
			flow.fail(CodeTooLarge, "too much behind the result")
		}
		frame = append(frame, tail...)
	}
	switch end := flow.w.err; {
	case out.err != nil:
		return nil, nil, out.err
	case flow.fault.code != 0 && (end == nil || end == io.EOF):
		out.flush()
		rest = append(flow.cut, flow.w.rest()...)
		return nil, rest, &Error{Code: flow.fault.code, ID: id, Offset: int64(flow.fault.offset), Reason: flow.fault.String()}
	case end != io.EOF:
		out.flush()
		return nil, append(flow.cut, flow.w.rest()...), end
	}
	f, err = p.Parse(frame, S2C)
	if err != nil {
		out.flush()
		return nil, bytes.Clone(flow.w.rest()), err
	}
	flow.keep(len(flow.w.rest()))
	if out.flush(); out.err != nil {
		return nil, nil, out.err
	}
	return f, nil, nil
}

// A Part is some bytes of a frame that passes while it arrives.
type Part struct {
	Bytes    []byte
	Findings []Finding // in it, or in what is left out in it
	// Came is what has arrived in the place of Bytes, where that is something else and
	// the Masker is asked for it ([Masker.Came]); then Bytes may be empty.
	Came []byte
}

// How many bytes are delivered at a time, about: a client shall see soon that its answer
// comes, so that the first part is small, and each twice as large as the one before.
const (
	firstPart = 8 << 10
	partSize  = 128 << 10
)

// parts take what becomes of a frame, and deliver it.
type parts struct {
	m        *Masker
	deliver  func(Part) error
	size     int // of a part
	out      []byte
	findings []Finding
	came     []byte // in the place of out, if the Masker is asked for it
	changed  bool   // and is something else
	passed   int    // bytes of the frame
	err      error  // of deliver; sticky
}

func (p *parts) keep(b []byte) {
	p.passed += len(b)
	for len(b) > 0 {
		n := min(len(b), max(p.size-len(p.out), 1))
		p.out = append(p.out, b[:n]...)
		p.arrived(b[:n])
		b = b[n:]
		p.full()
	}
}

func (p *parts) replace(b []byte, s span) {
	p.findings = p.m.appendFindings(p.findings, &s, p.passed)
	if p.m.Leave {
		p.keep(b)
		return
	}
	p.passed += len(b)
	p.out = p.m.appendMark(p.out, &s)
	p.changes(b)
}

func (p *parts) drop(b []byte) {
	if p.m.Leave {
		p.keep(b)
		return
	}
	p.passed += len(b)
	p.changes(b)
}

func (p *parts) arrived(b []byte) {
	if p.m != nil && p.m.Came {
		p.came = append(p.came, b...)
	}
}

// changes takes what does not pass as it came. It may be of any length.
func (p *parts) changes(b []byte) {
	p.changed = true
	if !p.m.Came {
		p.full()
		return
	}
	for len(b) > 0 {
		n := min(len(b), max(p.size-len(p.came), 1))
		p.changed = true
		p.arrived(b[:n])
		b = b[n:]
		p.full()
	}
}

func (p *parts) full() {
	if len(p.out) >= p.size || len(p.came) >= p.size {
		p.flush()
	}
}

// flush delivers what is decided.
func (p *parts) flush() error {
	if !p.changed {
		p.came = p.came[:0]
	}
	if p.err == nil && len(p.out)+len(p.came) > 0 {
		part := Part{Bytes: p.out, Findings: p.findings}
		if p.changed && len(p.came) > 0 {
			part.Came = p.came
		}
		p.err = p.deliver(part)
		p.size = min(2*p.size, partSize)
	}
	p.out, p.findings, p.came, p.changed = p.out[:0], p.findings[:0], p.came[:0], false
	return p.err
}
