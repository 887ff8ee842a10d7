package recorder

import (
	"bytes"
	"fmt"
	"sync"
	"testing"
)

// TestSlabs checks that memory of blocks is used again when all of them have been
// released, and never if somebody was shown one.
func TestSlabs(t *testing.T) {
	for _, shown := range []bool{false, true} {
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
		if shown {
			m.show(blocks[1:2])
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
		if again := first.used == 0; again == shown || first.blocks != 0 {
			t.Errorf("shown %v: %d bytes are used, %d blocks", shown, first.used, first.blocks)
		}
	}
}

// TestSlabsRead has sessions read while they are recorded and come to the database, so that
// memory is used again.
func TestSlabsRead(t *testing.T) {
	l := open(t, Options{Dir: t.TempDir()})
	var all sync.WaitGroup
	for n := range 4 {
		all.Go(func() {
			r := start(t, l)
			var want int
			for i := range 400 {
				text := bytes.Repeat([]byte(fmt.Sprintf("%d %d ", n, i)), 500)
				if err := r.Append(Frame{Bytes: text}); err != nil {
					t.Error(err)
					return
				}
				want++
				if i%20 == n {
					if err := l.drain(r.tail, 0, encoder()); err != nil {
						t.Error(err)
						return
					}
				}
				if i%7 > 0 {
					continue
				}
				got := 0
				for f, err := range l.Frames(t.Context(), r.ID()) {
					if want := bytes.Repeat([]byte(fmt.Sprintf("%d %d ", n, got)), 500); err != nil || !bytes.Equal(f.Bytes, want) {
						t.Errorf("frame %d of %d is %.20q, %v", got, n, f.Bytes, err)
						return
					}
					got++
				}
				if got != want {
					t.Errorf("%d frames, want %d", got, want)
				}
			}
		})
	}
	all.Wait()
}
