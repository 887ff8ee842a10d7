package codec

import (
	"bytes"
	"encoding/base64"
	"unicode/utf8"
)

// A held string is looked at when its object is known. Of an object that is too
// long to be held, only what stands in front of the string counts.
type held struct {
	start, end  int
	field       bool
	media, text bool // what its object says of it
	unsure      bool // it may say more
}

// hold puts off the string at i, and looks at the one that was put off before:
// an object in a string may have a name twice.
func (m *Masker) hold(h *held, i int, p *place, media, text bool) int {
	m.release(*h)
	*h = held{i, skipString(m.b, i), p.field || m.fields.ends(m.states[p.states:]), media, text, false}
	return h.end
}

// judge looks at the value of data or blob, unless it is an image or a sound.
func (m *Masker) judge(h held, isBlob bool) {
	switch {
	case h.end == 0 || h.media && !h.field:
	case isBlob && !h.media && (h.text || h.unsure):
		m.blob(h)
	default:
		m.release(h)
	}
}

func (m *Masker) release(h held) {
	if h.end > 0 {
		m.str(h.start, h.end, others, &place{states: len(m.states), field: h.field, late: true})
	}
}

// blob looks at what the base64 of a string stands for.
func (m *Masker) blob(h held) {
	kept, base := len(m.scratch), len(m.spans)
	defer func() { m.scratch = m.scratch[:kept] }()
	raw := m.b[h.start:h.end]
	m.scratch = Unquote(m.scratch, raw)
	at := len(m.scratch)
	var err error
	m.scratch, err = base64.StdEncoding.AppendDecode(m.scratch, m.scratch[kept:])
	decoded := m.scratch[at:len(m.scratch):len(m.scratch)]
	if err != nil || h.field || !h.text && !utf8.Valid(decoded) { // or it only may be text
		m.release(h)
		return
	}
	m.look(decoded, nil)
	if len(m.spans) == base {
		return
	}
	at = len(m.scratch)
	m.scratch = m.replace(m.scratch, decoded, 0, m.spans[base:])
	text, detectors := len(m.encoded), len(m.within)
	m.encoded = base64.StdEncoding.AppendEncode(m.encoded, m.scratch[at:])
	for _, s := range m.spans[base:] {
		m.within = append(m.within, s.detector)
	}
	m.blobs = append(m.blobs, blob{m.encoded[text:], m.within[detectors:]})
	m.spans = append(m.spans[:base], span{start: h.start + 1, end: h.end - 1, detector: m.within[detectors], length: len(raw), kind: inBlob, n: int32(len(m.blobs) - 1)})
}

func isMediaType(raw []byte) bool { return hasPrefix(raw, `"image"`) || hasPrefix(raw, `"audio"`) }
func isMediaMIME(raw []byte) bool { return hasPrefix(raw, `"image/`) || hasPrefix(raw, `"audio/`) }

// maxMIME is more than a type has, in bytes.
const maxMIME = 128

// isTextMIME reports a type whose bytes are text.
func isTextMIME(raw []byte) bool {
	n := skipString(raw, 0)
	if n > maxMIME {
		return false
	}
	mime, _, _ := bytes.Cut(raw[1:n-1], []byte(";"))
	if bytes.ContainsFunc(mime, func(r rune) bool { return r == '\\' || r >= utf8.RuneSelf || 'A' <= r && r <= 'Z' }) {
		mime = bytes.ReplaceAll(bytes.ToLower(mime), []byte(`\/`), []byte("/"))
	}
	if hasPrefix(mime, "text/") || bytes.HasSuffix(mime, []byte("+json")) || bytes.HasSuffix(mime, []byte("+xml")) {
		return true
	}
	switch string(bytes.TrimSpace(mime)) {
	case "application/json", "application/x-ndjson", "application/jsonl", "application/xml", "application/yaml", "application/x-yaml", "application/toml",
		"application/sql", "application/javascript", "application/x-sh", "application/csv", "application/x-pem-file", "application/graphql":
		return true
	}
	return false
}
