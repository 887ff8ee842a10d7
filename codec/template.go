package codec

import "encoding/binary"

// A template is the names of the object that was last read at a depth, each as
// it stands, from its opening quote to the value. Rows of a table have the same
// names in the same order, and so have frames of a kind: to compare a name with
// the template's costs less than to read it, and as long as all are the same none
// is there twice.
type template struct {
	n     int
	names [maxTemplate]templateName
}

type templateName struct {
	n, name int       // the length of text, and of the name in it
	head    [2]uint64 // which bits of the first 16 bytes of text count
	rest    uint32    // which bytes of text do not count, by bits
	text    [32]byte
}

// set makes text the template's.
func (t *templateName) set(text []byte, name int) {
	t.text = [32]byte{}
	t.n, t.name = copy(t.text[:], text), name
	t.rest = ^uint32(1<<t.n - 1)
	var mask [16]byte
	for i := range min(t.n, len(mask)) {
		mask[i] = 0xff
	}
	t.head = [2]uint64{binary.LittleEndian.Uint64(mask[:]), binary.LittleEndian.Uint64(mask[8:])}
}

// starts reports whether b starts with the name, and goes on.
func (t *templateName) starts(b []byte) bool {
	if len(b) <= len(t.text) {
		return len(b) > t.n && string(b[:t.n]) == string(t.text[:t.n])
	}
	x, y := binary.LittleEndian.Uint64(b)^binary.LittleEndian.Uint64(t.text[:]), binary.LittleEndian.Uint64(b[8:])^binary.LittleEndian.Uint64(t.text[8:])
	return x&t.head[0]|y&t.head[1] == 0 && (t.n <= 16 || string(b[16:t.n]) == string(t.text[16:t.n]))
}

// own returns the name itself.
func (t *templateName) own() []byte { return t.text[1 : 1+t.name] }

// give adds the first k names, which an object has had, to those of the object that
// start at base, and leaves the others.
func (t *template) give(names *nameSet, base, k int) {
	for j := range k {
		names.add(base, t.names[j].own())
	}
	t.n = k
}

// take makes text, from a name to its value, the kth of the template if all before
// are there.
func (t *template) take(k int, text []byte, name int) {
	if t.n == k && k < maxTemplate && len(text) <= len(t.names[k].text) {
		t.names[k].set(text, name)
		t.n++
	}
}

// A stop is where the reading of members has come to a stop.
type stop uint8

const (
	atName stop = iota
	atValue
	behindValue
	behindObject
)

// members reads members of an object from the name at i on, as long as the names
// are those of t from the kth on and the values take no care. It returns where it
// stopped, and the number of names of the object that it is behind then. With
// rows, the object is an element of an array, and objects that follow are read like
// it. It may stop anywhere before it has to.
func (t *template) members(b []byte, i, k int, rows bool) (at, n int, s stop) {
	if inBlocks && len(b)-i >= aMember {
		if i, k, s = membersBlocks(b, i, t, k, len(b), rows); s != atName || len(b)-i >= aMember {
			return i, k, s
		}
	}
	for i < len(b) && k < t.n && t.names[k].starts(b[i:]) {
		i, k = i+t.names[k].n, k+1
		end := -1
		switch c := b[i]; {
		case c == '"':
			if text := plainName(b, i); text != nil {
				end = i + len(text) + 2
			}
		case c-'0' <= 9 || c == '-':
			end = fastNumber(b, i)
		}
		switch {
		case end < 0 || end >= len(b):
			return i, k, atValue
		case b[end] == '}':
			return end + 1, k, behindObject
		case b[end] != ',':
			return end, k, behindValue
		}
		i = end + 1
	}
	return i, k, atName
}

// aMember is at least how many bytes membersBlocks needs for a member.
const aMember = 80

const (
	maxTemplate  = 24 // names
	maxTemplates = 10 // depths
)
