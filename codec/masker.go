package codec

import (
	"bytes"
	"slices"
	"strconv"
)

// A Finder finds sensitive values in text by several detectors. Their names are
// letters, digits and the marks _ - . only, because they stand in what takes a
// value's place.
type Finder interface {
	// Names returns the names of the detectors. Find and Under call them by number.
	Names() []string
	// Find calls found with the offsets of each value in text, in any order.
	Find(text []byte, found func(detector, start, end int))
	// Under calls found with what in text, the whole value of the member of that
	// name in an object, is sensitive for the name's sake.
	Under(name, text []byte, found func(detector, start, end int))
	// Least returns how many bytes a text has at least, and how many a number as JSON
	// writes it, in which Find or Under find anything.
	Least() (text, number int)
	// Near calls near with the offsets in text, in any order, within nearBy bytes
	// of which every value lies, begins or has its name that Find or Under would
	// find in any part of text between quotes, where text is JSON whose escapes are
	// of quotes and white space. It reports false if it cannot tell.
	Near(text []byte, near func(at int)) bool
}

// A Finding is a place that was masked. It never holds the value.
type Finding struct {
	Detector string `json:"detector"`
	Offset   int    `json:"offset"` // in the frame as it came, in bytes
}

// A Masker replaces sensitive values in frames. It must not be used by two
// goroutines at a time.
//
// It looks at every string and number under result, error and params as its
// reader would: through escapes, through JSON in strings, layer by layer, and
// through the base64 of a blob that is text. A finding in a string becomes
// [masked:NAME] and the rest of the string keeps its bytes; a number with a
// finding becomes 0. So do names of members; where two of an object would be the
// same, they are numbered: [masked:NAME 2].
type Masker struct {
	// Leave: [Parser.Flow] says what is found and replaces nothing. What costs too much
	// it does not look at; only escapes within escapes, MiBs of them, it still refuses.
	Leave bool
	// Came: [Parser.Flow] says what has arrived, too, where it delivers something else.
	Came bool

	finder  Finder
	least   struct{ text, number int } // as finder has them
	names   []string                   // of the detectors; the last is that of fields
	marks   []string                   // [masked:NAME], by detector
	longest int                        // of marks
	fields  *Fields

	b        []byte // the JSON text that is walked: the frame, or what a string in it holds
	layer    int
	spans    []span   // a stack: the text that is looked at has its own on top
	hints    hints    // where in b something may be
	hinted   []uint64 // of hints, which are a stack
	text     []byte   // that is looked at
	markless [2]int   // from one offset in text to in front of the other no mark begins
	found    func(detector, start, end int)
	near     func(at int)
	name     []byte     // decoded
	cleared  cleanTexts // names of members
	strings  cleanTexts // with their members' names
	states   []state    // of paths under way: a stack
	masked   []masked   // names of an object
	taken    hashes     // of what the names of an object are by now
	scratch  []byte     // a stack of decoded strings
	blobs    []blob
	encoded  []byte  // their texts
	within   []int16 // their detectors
	check    scanner
	findings []Finding
	sizes    sizes

	depth     int         // of the object that is walked
	templates [4]template // by depth, for skim
}

// A span is what is replaced in a text.
type span struct { // of which there may be one every few bytes
	start, end int
	length     int   // of the finding that the detector's name is from
	n          int32 // of a name: its number, if it has one; of a blob: its place in blobs
	detector   int16
	kind       kind
}

// A kind says what takes a span's place.
type kind uint8

const (
	inText  kind = iota // a mark
	inName              // a mark, perhaps numbered
	number              // 0
	boolean             // false
	inBlob              // the blob, encoded again
)

// A blob is base64 in which something was masked.
type blob struct {
	text      []byte
	detectors []int16 // of its findings
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

// FieldDetector is the detector that Findings of Fields name.
const FieldDetector = "field"

// NewMasker returns a Masker of what finder finds, and of fields, which may be
// nil. Where findings overlap, the longest gives the name; of equally long ones,
// the detector that comes first.
func NewMasker(finder Finder, fields *Fields) *Masker {
	m := &Masker{finder: finder, fields: fields, sizes: defaultSizes}
	m.names = append(slices.Clone(finder.Names()), FieldDetector)
	for _, name := range m.names {
		mark := "[masked:" + name + "]"
		m.marks = append(m.marks, mark)
		m.longest = max(m.longest, len(mark)+len(" 99999"))
	}
	m.least.text, m.least.number = finder.Least()
	m.found = m.note
	m.near = func(at int) { m.hints.at[at>>6] |= 1 << (at & 63) }
	return m
}

// Has reports whether m looks for what the detector of that name finds.
func (m *Masker) Has(detector string) bool {
	if detector == FieldDetector {
		return m.fields != nil
	}
	return slices.Contains(m.finder.Names(), detector)
}

// Mask appends f.Line to dst with every finding masked. With none, it is the
// line unchanged. The findings are valid until the next call.
func (m *Masker) Mask(dst []byte, f *Frame) (out []byte, findings []Finding) {
	m.start(f.Line)
	m.part(f, f.Result, areaResult)
	m.part(f, f.Error, areaError)
	m.part(f, f.Params, areaTop)
	return m.finish(dst, f.Line)
}

// MaskArguments is Mask for the arguments of a call.
func (m *Masker) MaskArguments(dst []byte, f *Frame) (out []byte, findings []Finding) {
	m.start(f.Line)
	m.part(f, f.Arguments, areaNone)
	return m.finish(dst, f.Line)
}

func (m *Masker) start(line []byte) {
	m.hints, m.hinted = hints{}, m.hinted[:0]
	m.b, m.layer, m.depth, m.spans, m.scratch, m.findings = line, 0, 0, m.spans[:0], m.scratch[:0], m.findings[:0]
	m.forgetBlobs()
}

func (m *Masker) finish(dst, line []byte) ([]byte, []Finding) {
	m.merge(0)
	m.findings = slices.Grow(m.findings, len(m.spans))
	for i := range m.spans {
		m.findings = m.appendFindings(m.findings, &m.spans[i], m.spans[i].start)
	}
	dst = m.replace(dst, line, 0, m.spans)
	m.forget()
	return dst, m.findings
}

// forget gives back what a frame has taken in memory.
func (m *Masker) forget() {
	m.b, m.text = nil, nil
	m.check.b = nil
	if cap(m.scratch) > keptScratch {
		m.scratch = nil
	}
	if 8*cap(m.taken.slots) > keptScratch { // of an object with many names
		m.masked, m.taken = nil, hashes{}
	}
	if cap(m.encoded) > keptScratch {
		m.blobs, m.encoded = nil, nil
	}
}

func (m *Masker) forgetBlobs() {
	m.blobs, m.encoded, m.within = m.blobs[:0], m.encoded[:0], m.within[:0]
}

// appendFindings appends what a span at that offset is for.
func (m *Masker) appendFindings(found []Finding, s *span, offset int) []Finding {
	if s.kind != inBlob {
		return append(found, Finding{m.names[s.detector], offset})
	}
	for _, d := range m.blobs[s.n].detectors {
		found = append(found, Finding{m.names[d], offset})
	}
	return found
}

// fieldMark returns the detector that fields are found by.
func (m *Masker) fieldMark() int16 { return int16(len(m.marks) - 1) }

// MaskText appends text, which is no frame that a Parser accepts, to dst with
// every finding masked. It makes what is on record of such a frame harmless;
// what escapes hide in it, it does not find.
func (m *Masker) MaskText(dst, text []byte) []byte {
	m.start(nil)
	m.look(text, nil)
	m.b, m.text = nil, nil
	m.check.b = nil
	return m.replace(dst, text, 0, m.spans)
}

// replace appends text, which starts at that offset, to dst with these spans replaced.
func (m *Masker) replace(dst, text []byte, offset int, spans []span) []byte {
	dst = slices.Grow(dst, len(text))
	at := 0
	for i := range spans {
		s := &spans[i]
		dst = append(dst, text[at:s.start-offset]...)
		dst = m.appendMark(dst, s)
		at = s.end - offset
	}
	return append(dst, text[at:]...)
}

// appendMark appends what takes the place of s. No layer of JSON has to escape it.
func (m *Masker) appendMark(dst []byte, s *span) []byte {
	switch s.kind {
	case inText:
		return append(dst, m.marks[s.detector]...)
	case number:
		return append(dst, '0')
	case boolean:
		return append(dst, "false"...)
	case inBlob:
		return append(dst, m.blobs[s.n].text...)
	}
	mark := m.marks[s.detector]
	if s.kind == inName && s.n > 0 {
		dst = append(append(dst, mark[:len(mark)-1]...), ' ')
		return append(strconv.AppendInt(dst, int64(s.n), 10), ']')
	}
	return append(dst, mark...)
}

// markLen returns the length of what takes the place of s.
func (m *Masker) markLen(s *span) int {
	if s.kind == inText {
		return len(m.marks[s.detector])
	}
	kept := len(m.scratch)
	m.scratch = m.appendMark(m.scratch, s)
	n := len(m.scratch) - kept
	m.scratch = m.scratch[:kept]
	return n
}

// An area is an object whose members may be opaque: what one side gives the
// other to give back, or to act on. Masked, they would not be known again.
type area uint8

const (
	areaNone   area = iota
	areaResult      // result: areaTop, and paths begin here
	areaTop         // params
	areaMeta        // their _meta
	areaTask        // their task
	areaError       // error
)

func (a area) opaque(name []byte) bool {
	switch a {
	case areaTop, areaResult:
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
	if a == areaTop || a == areaResult {
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
	if raw == nil {
		return
	}
	m.states = m.states[:0]
	if a == areaResult && m.fields != nil {
		m.states = m.fields.begin(m.states)
	}
	m.whole(raw, cap(f.Line)-cap(raw), &place{area: a}) // both end where their array ends
}

// whole walks raw, the value in m.b at that offset, if anything in it may be found.
func (m *Masker) whole(raw []byte, offset int, p *place) {
	outer := m.hint(raw, offset)
	if !m.hints.quiet(m) {
		m.walk(offset, p)
	}
	m.unhint(outer)
}

// A place is what a value's surroundings say of it.
type place struct {
	name   []byte // of the member whose value it is; nil if it is none's
	area   area
	states int  // m.states from here on are its own
	from   int  // where its name begins, if it has one; where the value does, if that is all of m.b
	late   bool // it is not looked at in order
	hidden bool // its name has escapes that no hint sees through
	field  bool // it is masked whatever it is
}

// begin returns where a value that starts there begins with its name.
func (p *place) begin(start int) int {
	if p.name != nil {
		return p.from
	}
	return start
}

// walk looks at the value at i, and returns the offset behind it.
func (m *Masker) walk(i int, p *place) int {
	p.field = p.field || m.fields.ends(m.states[p.states:])
	switch m.b[i] {
	case '{':
		return m.object(i, p)
	case '[':
		n := 0
		for i = skipSpace(m.b, i+1); m.b[i] != ']'; n++ {
			i = m.behind(m.element(i, n, p))
		}
		return i + 1
	case '"':
		end, escaped := stringEnd(m.b, i)
		if escaped == others || p.field || p.late || p.hidden || !m.hints.none(p.begin(i), end) {
			m.again(i, end, escaped, p)
		}
		return end
	case 't', 'f', 'n':
		end := skipValue(m.b, i)
		if p.field && m.b[i] == 't' {
			m.field(i, end, boolean)
		}
		return end
	default:
		end := skipValue(m.b, i)
		m.num(i, end, p)
		return end
	}
}

// element walks the element at i, the nth of the array whose place is p, and returns
// the offset behind it.
func (m *Masker) element(i, n int, p *place) int {
	inner := place{states: len(m.states), field: p.field}
	if m.fields != nil {
		m.states = m.fields.element(m.states, p.states, n)
	}
	i = m.walk(i, &inner)
	m.states = m.states[:inner.states]
	return i
}

// field masks what a field rule names.
func (m *Masker) field(start, end int, k kind) {
	m.spans = append(m.spans, span{start: start, end: end, detector: m.fieldMark(), length: end - start, kind: k})
}

// object walks the members of the object at i, but for those that are opaque.
func (m *Masker) object(i int, p *place) int {
	// Whether data is an image, or a blob text, may be said behind it. Looking
	// ahead would cost the square of an object that has such a member many times.
	var media, text bool
	var data, blob held
	var inner place // one for all members, which the stack holds
	start, first := i, len(m.spans)
	names := 0
	m.depth++
	t, k := &m.templates[m.depth%len(m.templates)], 0
	for i = skipSpace(m.b, i+1); m.b[i] != '}'; k++ {
		if i, k = m.skim(i, t, k); m.b[i] == '}' {
			break
		}
		nameStart := i
		nameEnd, escaped := stringEnd(m.b, i)
		name := m.b[i+1 : nameEnd-1]
		if escaped != unescaped {
			name = m.decoded(m.b[i:nameEnd])
		}
		names += m.memberName(i, nameEnd, name, escaped)
		i = skipSpace(m.b, skipSpace(m.b, nameEnd)+1) // behind the colon
		if escaped == unescaped && m.hints.known {
			t.learn(m.b[nameStart:i], k, name)
		}
		inner = place{name: name, from: nameStart, hidden: escaped == others, area: p.area.inner(name), states: len(m.states), field: p.field || m.fields.named(name)}
		m.states = m.fields.member(m.states, p.states, name)
		end := 0
		switch c := m.b[i]; {
		case c != '{' && c != '[' && p.area.opaque(name):
			end = skipValue(m.b, i)
		case c != '"':
			end = m.walk(i, &inner)
		case string(name) == "data":
			end = m.hold(&data, i, &inner, media, text)
		case string(name) == "blob":
			end = m.hold(&blob, i, &inner, media, text)
		default:
			switch string(name) {
			case "type":
				media = media || isMediaType(m.b[i:])
			case "mimeType":
				media = media || isMediaMIME(m.b[i:])
				text = text || isTextMIME(m.b[i:])
			}
			end = m.walk(i, &inner)
		}
		m.states = m.states[:inner.states]
		i = m.behind(end)
	}
	m.depth--
	if i+1-start <= m.sizes.value {
		data.media, blob.media = media, media
		data.text, blob.text = text, text
	} else {
		blob.unsure = true
	}
	m.judge(data, false)
	m.judge(blob, true)
	if names > 0 && k > 1 {
		m.distinct(start, k, first)
	}
	return i + 1
}

// cleanTexts remembers short texts in which nothing was found: the rows of a table
// have the same names, and often the same values, over and over.
type cleanTexts [64]struct {
	n    int
	text [48]byte
}

func (c *cleanTexts) slot(text []byte) uint32 {
	n := len(text)
	some := uint32(text[0]) | uint32(text[n/2])<<8 | uint32(text[n-1-n/8])<<16 | uint32(text[n-1])<<24
	return (some*0x9e3779b1 + uint32(n)*0x85ebca6b) >> 26 // all of the 64 that they are
}

func (c *cleanTexts) has(text []byte) bool {
	if len(text) == 0 {
		return true
	}
	s := &c[c.slot(text)]
	return s.n == len(text) && string(s.text[:s.n]) == string(text)
}

func (c *cleanTexts) add(text []byte) {
	if s := &c[c.slot(text)]; len(text) <= len(s.text) {
		s.n = copy(s.text[:], text)
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

func hasPrefix(b []byte, prefix string) bool {
	return len(b) >= len(prefix) && string(b[:len(prefix)]) == prefix
}

// again looks at the string m.b[start:end], unless nothing was found in the same one
// under the same name before.
func (m *Masker) again(start, end int, escaped escapes, p *place) {
	raw, whole := m.b[start:end], m.b[p.begin(start):end]
	unnamed := p.name != nil && p.from == start // whole would be what it is without a name
	if unnamed || p.field || p.late || len(raw) > m.sizes.value || len(whole) > len(m.strings[0].text) {
		m.str(start, end, escaped, p)
		return
	}
	if m.strings.has(whole) {
		return
	}
	base := len(m.spans)
	m.str(start, end, escaped, p)
	// JSON in it, which white space or an escape may begin, is looked at otherwise in
	// other places.
	if c := raw[1]; len(m.spans) == base && c != '{' && c != '[' && c != '\\' && c > ' ' {
		m.strings.add(whole)
	}
}

// str looks at the string m.b[start:end].
func (m *Masker) str(start, end int, escaped escapes, p *place) {
	raw := m.b[start:end]
	if p.field {
		if m.text, m.markless = raw[1:len(raw)-1], [2]int{}; len(m.text) > 0 && !m.inMark(0, len(m.text)) {
			m.field(start+1, end-1, inText)
		}
		return
	}
	if len(raw) > m.sizes.value {
		m.longString(start, end)
		return
	}
	base := len(m.spans)
	text := raw[1 : len(raw)-1]
	kept := len(m.scratch)
	slash := escaped != unescaped && bytes.IndexByte(text, '\\') >= 0
	if slash {
		m.scratch = Unquote(m.scratch, raw)
		text = m.scratch[kept:len(m.scratch):len(m.scratch)]
	}
	m.look(text, p.name)
	m.scratch = m.scratch[:kept]
	if spans := m.spans[base:]; len(spans) > 0 {
		put(spans, raw, start, slash)
	}
}

// isJSON reports text that is JSON in objects and arrays, or a string with JSON in it.
func (m *Masker) isJSON(text []byte) bool {
	if m.layer == maxLayers {
		return false
	}
	return beginsJSON(text) && m.check.valid(text)
}
