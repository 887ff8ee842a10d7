package recorder

import "sync"

// slabSize is how many bytes of blocks are allocated at a time: each by itself would cost
// more than it takes to fill it.
const slabSize = 512 << 10

// slabs is memory for blocks of many sessions.
type slabs struct {
	sync.Mutex
	current *slab
	spare   sync.Pool // of those whose blocks have all been released
}

// A slab is a part of that, guarded by the mutex of slabs.
type slab struct {
	bytes  []byte
	used   int
	blocks int // that are not released
}

// take returns a slice without elements and with room for n bytes, and the slab that it is
// of: nil if it has memory of its own.
func (m *slabs) take(n int) ([]byte, *slab) {
	if n > slabSize/2 {
		return make([]byte, 0, n), nil
	}
	m.Lock()
	defer m.Unlock()
	s := m.current
	if s == nil || slabSize-s.used < n {
		if s, _ = m.spare.Get().(*slab); s == nil {
			s = &slab{bytes: make([]byte, slabSize)}
		}
		m.current = s
	}
	from := s.used
	s.used += n
	s.blocks++
	return s.bytes[from:from:s.used], s
}

// release says that nobody has blocks any more. What is never released is the collector's.
func (m *slabs) release(blocks []tailBlock) {
	m.Lock()
	defer m.Unlock()
	for _, b := range blocks {
		s := b.slab
		if s == nil {
			continue
		}
		if s.blocks--; s.blocks > 0 || s == m.current {
			continue
		}
		s.used = 0
		m.spare.Put(s)
	}
}
