package codec

import (
	"bytes"
	"hash/maphash"
)

const (
	// fewNames is how many names of an object are compared one by one. More go
	// into a table: otherwise an object of n names would cost n² steps.
	fewNames = 8
	// keptNames is for how many names a nameSet keeps its memory.
	keptNames = 1 << 10
)

// A nameSet knows the names of the objects under way, the innermost last.
//
// All objects of more than a few names share one hash table: open addressing,
// linear probing, and a seed that differs from process to process, so that
// nobody can choose names that collide. Names leave it in the reverse order of
// their coming, when their object ends: a slot can be freed without a mark, and
// the table never holds more than what is under way.
type nameSet struct {
	names []name
	table []int32 // index in names + 1; 0 is free. The length is a power of two
	used  int     // slots
	added bool    // since the last reset
}

type name struct {
	text []byte
	hash uint64
	slot int32 // in table; -1 if it is not there
}

var seed = maphash.MakeSeed()

// add adds a name to the object whose names start at base, and reports whether
// it is new there.
func (s *nameSet) add(base int, text []byte) bool {
	s.added = true
	own := s.names[base:]
	if len(own) < fewNames {
		for i := range own {
			if bytes.Equal(own[i].text, text) {
				return false
			}
		}
		s.names = append(s.names, name{text: text, slot: -1})
		return true
	}
	if len(own) == fewNames {
		for i := base; i < len(s.names); i++ {
			s.insert(base, i)
		}
	}
	s.names = append(s.names, name{text: text, slot: -1})
	if !s.insert(base, len(s.names)-1) {
		s.names = s.names[:len(s.names)-1]
		return false
	}
	return true
}

// insert puts names[i] into the table, unless the object has it already.
func (s *nameSet) insert(base, i int) bool {
	if 2*(s.used+1) > len(s.table) {
		s.grow()
	}
	n := &s.names[i]
	// Objects under way may have the same names; base keeps them apart.
	n.hash = maphash.Bytes(seed, n.text) + uint64(base)*0x9e3779b97f4a7c15
	mask := uint64(len(s.table) - 1)
	at := n.hash & mask
	for s.table[at] != 0 {
		j := int(s.table[at]) - 1
		if j >= base && s.names[j].hash == n.hash && bytes.Equal(s.names[j].text, n.text) {
			return false
		}
		at = (at + 1) & mask
	}
	s.table[at], n.slot = int32(i+1), int32(at)
	s.used++
	return true
}

// grow doubles the table. The names come in their old order.
func (s *nameSet) grow() {
	s.table = make([]int32, max(2*len(s.table), 64))
	mask := uint64(len(s.table) - 1)
	for i := range s.names {
		n := &s.names[i]
		if n.slot < 0 {
			continue
		}
		at := n.hash & mask
		for s.table[at] != 0 {
			at = (at + 1) & mask
		}
		s.table[at], n.slot = int32(i+1), int32(at)
	}
}

// end ends the object whose names start at base.
func (s *nameSet) end(base int) {
	if s.used > 0 {
		for i := len(s.names) - 1; i >= base; i-- {
			if at := s.names[i].slot; at >= 0 {
				s.table[at] = 0
				s.used--
			}
		}
	}
	s.names = s.names[:base]
}

// reset forgets all names, and the memory of an unusual frame.
func (s *nameSet) reset() {
	s.added = false
	s.end(0)
	if cap(s.names) > keptNames {
		*s = nameSet{}
		return
	}
	clear(s.names[:cap(s.names)]) // they would keep the memory of an older frame
}
