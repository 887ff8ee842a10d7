package recorder

import (
	"bytes"
	"strings"
	"testing"
)

// TestSlabs checks that memory of blocks is used again when all of them have been
// released, and not before.
func TestSlabs(t *testing.T) {
	m := new(slabs)
	var blocks []tailBlock
	for range 3 {
		b, s := m.take(slabSize / 4)
		blocks = append(blocks, tailBlock{openedBlock: openedBlock{Block{Bytes: b}, s}})
	}
	own, none := m.take(slabSize/2 + 1)
	if none != nil || cap(own) != slabSize/2+1 {
		t.Errorf("a large block: %d bytes of a slab, %v", cap(own), none)
	}
	m.take(slabSize / 4)
	_, next := m.take(1) // the first is full
	first := blocks[0].slab
	if next == first || len(first.bytes) != slabSize {
		t.Fatal("more was taken than there is")
	}
	m.release(blocks[2:])
	if first.used < slabSize {
		t.Error("it is used again while there are blocks of it")
	}
	m.release(append(blocks[:2], tailBlock{openedBlock: openedBlock{slab: first}}, tailBlock{}))
	if first.used != 0 || first.blocks != 0 {
		t.Errorf("%d bytes are used, %d blocks", first.used, first.blocks)
	}
}

// TestSlabsRead keeps a block that was read while the memory in which it had been is used
// again.
func TestSlabsRead(t *testing.T) {
	l := open(t, Options{Dir: t.TempDir()})
	r, other := start(t, l), start(t, l)
	r.add(t, "first")
	for b, err := range l.Blocks(t.Context(), r.ID()) {
		if err != nil {
			t.Fatal(err)
		}
		before := bytes.Clone(b.Bytes)
		for range 20 {
			for range 256 {
				other.add(t, strings.Repeat("x", 1000))
			}
			for _, drained := range []*Recording{r, other} {
				if err := l.drain(drained.tail, 0, quick); err != nil {
					t.Fatal(err)
				}
			}
		}
		if !bytes.Equal(b.Bytes, before) {
			t.Errorf("%q became %q", before, b.Bytes)
		}
	}
}
