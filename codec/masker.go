package codec

import "bytes"

// A Detector finds one kind of sensitive value in text. Its name is letters,
// digits and the marks _ - . only, because it stands in what takes a value's place.
type Detector interface {
	Name() string
	// Find calls found with the offsets of each value in text, in order.
	Find(text []byte, found func(start, end int))
}

// A MemberDetector is a Detector that also knows a value by the name that it
// stands under in an object.
type MemberDetector interface {
	Detector
	// Under reports whether text, the whole value of the member of that name, is sensitive.
	Under(name, text []byte) bool
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
	members   []MemberDetector // by detector; nil where it is none
	marks     []string         // [masked:NAME], by detector
	longest   int              // of marks

	b        []byte // the JSON text that is walked: the frame, or what a string in it holds
	layer    int
	spans    []span // a stack: the text that is looked at has its own on top
	text     []byte // that a detector looks at
	detector int    // that looks
	found    func(start, end int)
	name     []byte // decoded
	scratch  []byte // a stack of decoded strings
	check    scanner
	findings []Finding
}

// A span is what is replaced in a text.
type span struct {
	start, end int
	detector   int
	length     int // of the finding that the detector's name is from
	number     bool
}

const (
	// maxLayers is how deep JSON in strings in JSON is looked through. What is
	// deeper is looked at as plain text.
	maxLayers = 16
	// maxRounds is how often a text is looked at once more after something in it
	// was masked. What does not come to rest by then is masked as a whole.
	maxRounds = 8
	// keptScratch is how much memory for decoded strings is kept, in bytes.
	keptScratch = 512 << 10
)

// NewMasker returns a Masker with these detectors. Where findings overlap, the
// longest gives the name; of equally long ones, the detector that comes first.
func NewMasker(detectors ...Detector) *Masker {
	m := &Masker{detectors: detectors}
	for _, d := range detectors {
		members, _ := d.(MemberDetector)
		m.members = append(m.members, members)
		mark := "[masked:" + d.Name() + "]"
		m.marks = append(m.marks, mark)
		m.longest = max(m.longest, len(mark))
	}
	m.found = m.note
	return m
}

// Mask appends f.Line to dst with every finding masked. With none, it is the
// line unchanged. The findings are valid until the next call.
func (m *Masker) Mask(dst []byte, f *Frame) (out []byte, findings []Finding) {
	m.b, m.layer, m.spans, m.scratch, m.findings = f.Line, 0, m.spans[:0], m.scratch[:0], m.findings[:0]
	if len(m.detectors) > 0 {
		m.part(f, f.Result, areaTop)
		m.part(f, f.Error, areaError)
		m.part(f, f.Params, areaTop)
		m.merge(0)
	}
	m.b, m.text = nil, nil
	m.check.b = nil
	if cap(m.scratch) > keptScratch {
		m.scratch = nil
	}
	for _, s := range m.spans {
		m.findings = append(m.findings, Finding{m.detectors[s.detector].Name(), s.start})
	}
	return m.replace(dst, f.Line, m.spans), m.findings
}

// MaskText appends text, which is no frame that a Parser accepts, to dst with
// every finding masked. It makes what is on record of such a frame harmless;
// what escapes hide in it, it does not find.
func (m *Masker) MaskText(dst, text []byte) []byte {
	m.layer, m.spans, m.scratch = 0, m.spans[:0], m.scratch[:0]
	if len(m.detectors) > 0 {
		m.look(text, nil)
	}
	m.b, m.text = nil, nil
	m.check.b = nil
	return m.replace(dst, text, m.spans)
}

// replace appends text to dst with these spans replaced.
func (m *Masker) replace(dst, text []byte, spans []span) []byte {
	at := 0
	for _, s := range spans {
		dst = append(dst, text[at:s.start]...)
		dst = append(dst, m.mark(s)...)
		at = s.end
	}
	return append(dst, text[at:]...)
}

// mark returns what takes the place of s. No layer of JSON has to escape it.
func (m *Masker) mark(s span) string {
	if s.number {
		return "0"
	}
	return m.marks[s.detector]
}

// An area is an object whose members may be opaque: what one side gives the
// other to give back, or to act on. Masked, they would not be known again.
type area uint8

const (
	areaNone  area = iota
	areaTop        // result or params
	areaMeta       // their _meta
	areaTask       // their task
	areaError      // error
)

func (a area) opaque(name []byte) bool {
	switch a {
	case areaTop:
		switch string(name) {
		case "cursor", "nextCursor", "requestState", "progressToken", "requestId", "taskId", "elicitationId":
			return true
		}
	case areaMeta:
		return string(name) == "progressToken"
	case areaTask:
		return string(name) == "taskId"
	case areaError:
		return string(name) == "code"
	}
	return false
}

// inner returns the area that the member of that name is.
func (a area) inner(name []byte) area {
	if a == areaTop {
		switch string(name) {
		case "_meta":
			return areaMeta
		case "task":
			return areaTask
		}
	}
	return areaNone
}

// part walks result, error or params of f, if it is there.
func (m *Masker) part(f *Frame, raw []byte, a area) {
	if raw != nil {
		m.walk(cap(f.Line)-cap(raw), nil, a) // both end where their array ends
	}
}

// walk looks at the value at i, which is the member of that name if it is one of
// an object, and returns the offset behind it.
func (m *Masker) walk(i int, name []byte, a area) int {
	switch m.b[i] {
	case '{':
		return m.object(i, a)
	case '[':
		for i = skipSpace(m.b, i+1); m.b[i] != ']'; {
			i = skipSpace(m.b, m.walk(i, nil, areaNone))
			if m.b[i] == ',' {
				i = skipSpace(m.b, i+1)
			}
		}
		return i + 1
	case '"':
		end := skipString(m.b, i)
		m.str(i, end, name)
		return end
	case 't', 'f', 'n':
		return skipValue(m.b, i)
	default:
		end := skipValue(m.b, i)
		m.num(i, end)
		return end
	}
}

// object walks the members of the object at i, but for those that are opaque.
func (m *Masker) object(i int, a area) int {
	// Whether data is an image may be said behind it. Looking ahead would cost
	// the square of an object that has such a member many times.
	var media bool
	var data, blob [2]int
	i = skipSpace(m.b, i+1)
	for m.b[i] != '}' {
		nameEnd := skipString(m.b, i)
		name := m.decoded(m.b[i:nameEnd])
		i = skipSpace(m.b, skipSpace(m.b, nameEnd)+1) // behind the colon
		first := m.b[i]
		end := 0
		switch {
		case first != '{' && first != '[' && a.opaque(name):
			end = skipValue(m.b, i)
		case first != '"':
			end = m.walk(i, name, a.inner(name))
		case string(name) == "data":
			end = m.hold(&data, i)
		case string(name) == "blob":
			end = m.hold(&blob, i)
		default:
			switch string(name) {
			case "type":
				media = media || isMediaType(m.b[i:])
			case "mimeType":
				media = media || isMediaMIME(m.b[i:])
			}
			end = m.walk(i, name, areaNone)
		}
		if i = skipSpace(m.b, end); m.b[i] == ',' {
			i = skipSpace(m.b, i+1)
		}
	}
	if !media {
		m.release(data)
		m.release(blob)
	}
	return i + 1
}

// hold puts off the string at i, and looks at the one that was put off before:
// an object in a string may have a name twice.
func (m *Masker) hold(held *[2]int, i int) int {
	m.release(*held)
	*held = [2]int{i, skipString(m.b, i)}
	return held[1]
}

func (m *Masker) release(held [2]int) {
	if held[1] > 0 {
		m.str(held[0], held[1], nil)
	}
}

// decoded returns the text of raw, valid until the next call.
func (m *Masker) decoded(raw []byte) []byte {
	if bytes.IndexByte(raw, '\\') < 0 {
		return raw[1 : len(raw)-1]
	}
	m.name = Unquote(m.name[:0], raw)
	return m.name
}

func isMediaType(raw []byte) bool { return hasPrefix(raw, `"image"`) || hasPrefix(raw, `"audio"`) }
func isMediaMIME(raw []byte) bool { return hasPrefix(raw, `"image/`) || hasPrefix(raw, `"audio/`) }

func hasPrefix(b []byte, prefix string) bool {
	return len(b) >= len(prefix) && string(b[:len(prefix)]) == prefix
}

// num looks at the number m.b[start:end].
func (m *Masker) num(start, end int) {
	base := len(m.spans)
	m.find(m.b[start:end])
	if len(m.spans) == base {
		kept := len(m.scratch)
		if m.scratch = appendInteger(m.scratch, m.b[start:end]); len(m.scratch) > kept {
			m.find(m.scratch[kept:])
		}
		m.scratch = m.scratch[:kept]
	}
	if len(m.spans) > base {
		m.spans = append(m.spans[:base], span{start: start, end: end, detector: m.spans[base].detector, number: true})
	}
}

// maxDigits is more than anything that is looked for as a number has.
const maxDigits = 40

// appendInteger appends an integer that is written with a fraction or an exponent
// as its digits: the client reads 4.111e3 as 4111.
func appendInteger(dst, raw []byte) []byte {
	if len(raw) > maxDigits || raw[0] == '-' || !bytes.ContainsAny(raw, ".eE") {
		return dst
	}
	mantissa, exp := raw, 0
	if n := bytes.IndexAny(raw, "eE"); n >= 0 {
		mantissa = raw[:n]
		digits := bytes.TrimLeft(raw[n+1:], "+-")
		for _, c := range digits {
			if exp = 10*exp + int(c-'0'); exp > maxDigits {
				return dst
			}
		}
		if raw[n+1] == '-' {
			exp = -exp
		}
	}
	whole, fraction, _ := bytes.Cut(mantissa, []byte("."))
	fraction = bytes.TrimRight(fraction, "0")
	at := len(dst)
	dst = append(append(dst, whole...), fraction...)
	for exp -= len(fraction); exp > 0; exp-- {
		dst = append(dst, '0')
	}
	for ; exp < 0; exp++ {
		if len(dst) == at || dst[len(dst)-1] != '0' { // no integer
			return dst[:at]
		}
		dst = dst[:len(dst)-1]
	}
	return dst
}

// str looks at the string m.b[start:end].
func (m *Masker) str(start, end int, name []byte) {
	base := len(m.spans)
	raw := m.b[start:end]
	text := raw[1 : len(raw)-1]
	kept := len(m.scratch)
	escaped := bytes.IndexByte(text, '\\') >= 0
	if escaped {
		m.scratch = Unquote(m.scratch, raw)
		text = m.scratch[kept:len(m.scratch):len(m.scratch)]
	}
	m.look(text, name)
	m.scratch = m.scratch[:kept]
	if spans := m.spans[base:]; len(spans) > 0 {
		place(spans, raw, start, escaped)
	}
}

// isJSON reports text that is JSON in objects and arrays, or a string with JSON in it.
func (m *Masker) isJSON(text []byte) bool {
	if m.layer == maxLayers {
		return false
	}
	i := skipSpace(text, 0)
	return len(text)-i >= 2 && (text[i] == '{' || text[i] == '[' || text[i] == '"') && m.check.valid(text)
}
