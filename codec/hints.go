package codec

import (
	"bytes"
	"math"
	"math/bits"
)

// hints are the places in JSON near which something may be found. Most strings
// are short, and to look at all of them as one text costs a fraction of looking
// at each.
type hints struct {
	known   bool // else everything is looked at
	some    bool // there is one
	escapes bool // there is a backslash
	blobs   bool // there may be base64: no hint tells of what it stands for

	at    []uint64 // a bit for each byte
	start int      // of the JSON, where the first of them is
	next  int      // the first hint that is not behind, or noHint
}

const noHint = math.MaxInt

const (
	// nearBy is how far from a hint what it hints at may be.
	nearBy = 4
	// fewBytes is what is looked at without hints, and longStrings how many bytes
	// there are to a member where strings are so long that each is looked at.
	fewBytes    = 256
	longStrings = 96
)

// What stands between members; not in a string, where quotes are escaped.
var comma, commaBlank = []byte(`,"`), []byte(`, "`)

var blobName = []byte(`"blob"`)

// hint finds the hints in raw, which is m.b from offset on, and returns those of
// the JSON around it.
func (m *Masker) hint(raw []byte, offset int) (outer hints) {
	outer = m.hints
	m.hints = hints{}
	if len(raw) < fewBytes || !manyMembers(raw) {
		return outer
	}
	h := &m.hints
	base := len(m.hinted)
	m.hinted = append(m.hinted, make([]uint64, len(raw)/64+1)...)
	h.at, h.start = m.hinted[base:], offset
	h.known = m.finder.Near(raw, m.near)
	h.next = h.from(offset)
	h.some = h.next != noHint
	h.escapes = bytes.IndexByte(raw, '\\') >= 0
	h.blobs = !h.some && !h.escapes && bytes.Contains(raw, blobName) // else it is not asked for
	return outer
}

// manyMembers reports that raw has a member every longStrings bytes; of a long
// text, samples tell.
func manyMembers(raw []byte) bool {
	const samples, size = 8, 1 << 7
	seen, members := 0, 0
	for i := 0; i < len(raw); i += max(2*size, len(raw)/samples) {
		sample := raw[i:min(len(raw), i+size)]
		seen += len(sample)
		members += bytes.Count(sample, comma) + bytes.Count(sample, commaBlank)
	}
	return seen <= longStrings*members
}

func (m *Masker) unhint(outer hints) {
	m.hinted = m.hinted[:len(m.hinted)-len(m.hints.at)]
	m.hints = outer
}

// quiet reports that there is nothing to look at.
func (h *hints) quiet(m *Masker) bool {
	return h.known && !h.escapes && !h.blobs && !h.some && m.fields == nil
}

// from returns the first hint from an offset on, or noHint.
func (h *hints) from(offset int) int {
	i := max(0, offset-h.start)
	word := i >> 6
	if word >= len(h.at) {
		return noHint
	}
	for bit := h.at[word] >> (i & 63) << (i & 63); ; bit = h.at[word] {
		if bit != 0 {
			return h.start + word<<6 + bits.TrailingZeros64(bit)
		}
		if word++; word == len(h.at) {
			return noHint
		}
	}
}

// reach leaves the hints behind that are too far before from.
func (h *hints) reach(from int) {
	if h.next < from-nearBy {
		h.next = h.from(from - nearBy)
	}
}

// none reports that there is no hint in m.b[from:end]. It is asked in order.
func (h *hints) none(from, end int) bool {
	if !h.known {
		return false
	}
	h.reach(from)
	return h.next > end+nearBy
}
