package codec

import (
	"bytes"
	"cmp"
	"slices"
	"strings"
)

// A Detector finds one kind of sensitive value in text.
type Detector interface {
	Name() string
	// Find calls found with the offsets of each value in text, in order.
	Find(text []byte, found func(start, end int))
}

// A Finding is a place that was masked. It never holds the value.
type Finding struct {
	Detector string
	Offset   int // in the frame as it came
}

// A Masker replaces sensitive values in frames of the server. It must not be
// used by two goroutines at a time.
//
// It looks at every string and number under result, error and params as the
// client would read it: through escapes, and through JSON in strings, layer by
// layer. A finding in a string becomes [masked:NAME] and the rest of the string
// keeps its bytes; a number with a finding becomes 0. Names of members stay.
type Masker struct {
	detectors []Detector
	names     []string // [masked:NAME], by detector

	b        []byte // the JSON text that is walked: the frame, or what a string in it holds
	layer    int
	spans    []span // in b
	detector int    // that looks
	found    func(start, end int)
	scratch  []byte // decoded strings, of all layers
	check    scanner
	findings []Finding
}

// A span is what is replaced in a JSON text.
type span struct {
	start, end int
	detector   int
	number     bool
}

// maxLayers is how deep JSON in strings in JSON is looked through. Each layer
// doubles the backslashes, so that a frame cannot hold many.
const maxLayers = 16

// NewMasker returns a Masker with these detectors.
func NewMasker(detectors ...Detector) *Masker {
	m := &Masker{detectors: detectors}
	for _, d := range detectors {
		m.names = append(m.names, "[masked:"+d.Name()+"]")
	}
	m.found = func(start, end int) { m.spans = append(m.spans, span{start, end, m.detector, false}) }
	return m
}

// Mask appends f.Line to dst with every finding masked. With none, it is the
// line unchanged. The findings are valid until the next call.
func (m *Masker) Mask(dst []byte, f *Frame) (out []byte, findings []Finding) {
	m.b, m.layer, m.spans, m.scratch, m.findings = f.Line, 0, m.spans[:0], m.scratch[:0], m.findings[:0]
	if len(m.detectors) > 0 {
		m.part(f, f.Result, opaqueResult)
		m.part(f, f.Error, opaqueError)
		m.part(f, f.Params, opaqueParam)
	}
	if cap(m.scratch) > bigBuffer {
		m.scratch = nil
	}
	at := 0
	for _, s := range m.spans {
		dst = append(dst, f.Line[at:s.start]...)
		if s.number {
			dst = append(dst, '0')
		} else {
			dst = append(dst, m.names[s.detector]...)
		}
		at = s.end
		m.findings = append(m.findings, Finding{m.detectors[s.detector].Name(), s.start})
	}
	return append(dst, f.Line[at:]...), m.findings
}

// Opaque members are what one side gives the other to give back, or to act on:
// masked, they would not be known again.

func opaqueResult(name []byte) bool {
	switch string(name) {
	case "nextCursor", "requestState", "taskId":
		return true
	}
	return false
}

func opaqueError(name []byte) bool { return string(name) == "code" }

func opaqueParam(name []byte) bool {
	switch string(name) {
	case "cursor", "progressToken", "requestId", "requestState", "taskId":
		return true
	}
	return false
}

// part walks result, error or params of f, if it is there.
func (m *Masker) part(f *Frame, raw []byte, opaque func(name []byte) bool) {
	if raw == nil {
		return
	}
	start := cap(f.Line) - cap(raw) // both end where their array ends
	if raw[0] == '{' {
		m.object(start, opaque)
	} else {
		m.walk(start)
	}
}

// walk looks at the value at i and returns the offset behind it.
func (m *Masker) walk(i int) int {
	switch m.b[i] {
	case '{':
		return m.object(i, nil)
	case '[':
		for i = skipSpace(m.b, i+1); m.b[i] != ']'; {
			i = skipSpace(m.b, m.walk(i))
			if m.b[i] == ',' {
				i = skipSpace(m.b, i+1)
			}
		}
		return i + 1
	case '"':
		end := skipString(m.b, i)
		m.str(i, end)
		return end
	case 't', 'f', 'n':
		return skipValue(m.b, i)
	default:
		end := skipValue(m.b, i)
		m.num(i, end)
		return end
	}
}

// object walks the members of the object at start, but for those that are opaque.
func (m *Masker) object(start int, opaque func(name []byte) bool) int {
	i := skipSpace(m.b, start+1)
	for m.b[i] != '}' {
		nameEnd := skipString(m.b, i)
		name := m.b[i+1 : nameEnd-1]
		i = skipSpace(m.b, skipSpace(m.b, nameEnd)+1) // behind the colon
		switch first := m.b[i]; {
		case opaque != nil && first != '{' && first != '[' && opaque(name),
			first == '"' && isBlob(name) && m.isMedia(start):
			i = skipValue(m.b, i)
		default:
			i = m.walk(i)
		}
		if i = skipSpace(m.b, i); m.b[i] == ',' {
			i = skipSpace(m.b, i+1)
		}
	}
	return i + 1
}

func isBlob(name []byte) bool { return string(name) == "data" || string(name) == "blob" }

// isMedia reports an object whose data is an image or a sound.
func (m *Masker) isMedia(start int) bool {
	for n, v := range Members(m.b[start:]) {
		switch string(n) {
		case "type":
			if string(v) == `"image"` || string(v) == `"audio"` {
				return true
			}
		case "mimeType":
			if s := string(v); strings.HasPrefix(s, `"image/`) || strings.HasPrefix(s, `"audio/`) {
				return true
			}
		}
	}
	return false
}

// num looks at the number m.b[start:end].
func (m *Masker) num(start, end int) {
	base := len(m.spans)
	m.find(m.b[start:end])
	if len(m.spans) > base {
		m.spans = append(m.spans[:base], span{start, end, m.spans[base].detector, true})
	}
}

// str looks at the string m.b[start:end].
func (m *Masker) str(start, end int) {
	base := len(m.spans)
	raw := m.b[start:end]
	text := raw[1 : len(raw)-1]
	kept := len(m.scratch)
	escaped := bytes.IndexByte(text, '\\') >= 0
	if escaped {
		m.scratch = Unquote(m.scratch, raw)
		text = m.scratch[kept:len(m.scratch):len(m.scratch)]
	}
	if m.isJSON(text) {
		outer := m.b
		m.b, m.layer = text, m.layer+1
		m.walk(skipSpace(text, 0))
		m.b, m.layer = outer, m.layer-1
	} else {
		m.find(text)
	}
	m.scratch = m.scratch[:kept]
	if spans := m.spans[base:]; len(spans) > 0 {
		m.place(spans, raw, start, escaped)
	}
}

// isJSON reports text that is an array or an object, or a string with JSON in it.
func (m *Masker) isJSON(text []byte) bool {
	if m.layer == maxLayers {
		return false
	}
	i := skipSpace(text, 0)
	return len(text)-i >= 2 && (text[i] == '{' || text[i] == '[' || text[i] == '"') && m.check.valid(text)
}

// find runs the detectors on text and appends what they find, in order and
// without overlaps.
func (m *Masker) find(text []byte) {
	base := len(m.spans)
	for i, d := range m.detectors {
		m.detector = i
		d.Find(text, m.found)
	}
	spans := m.spans[base:]
	if len(spans) < 2 {
		return
	}
	slices.SortStableFunc(spans, func(a, b span) int { return cmp.Or(a.start-b.start, b.end-a.end) })
	n := 1
	for _, s := range spans[1:] {
		if last := &spans[n-1]; s.start < last.end {
			last.end = max(last.end, s.end)
		} else {
			spans[n] = s
			n++
		}
	}
	m.spans = m.spans[:base+n]
}

// place turns offsets in the text of a string into offsets in m.b, where the
// string stands as raw from start on.
func (m *Masker) place(spans []span, raw []byte, start int, escaped bool) {
	if !escaped {
		for i := range spans {
			spans[i].start += start + 1
			spans[i].end += start + 1
		}
		return
	}
	at, decoded := 1, 0 // the same place in raw and in the text
	// advance goes to the escape or byte that the offset to lies in, or starts with.
	advance := func(to int, behind bool) int {
		for decoded < to {
			size, n := 1, 1
			if raw[at] == '\\' {
				var r rune
				r, size = unescape(raw[at:])
				n = runeLen(r)
			}
			if !behind && decoded+n > to {
				break
			}
			at += size
			decoded += n
		}
		return start + at
	}
	for i := range spans {
		spans[i].start = advance(spans[i].start, false)
		spans[i].end = advance(spans[i].end, true)
	}
}

func runeLen(r rune) int {
	switch {
	case r < 0x80:
		return 1
	case r < 0x800:
		return 2
	case r < 0x10000:
		return 3
	}
	return 4
}
