package recorder

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"

	"example.com/broker/codec"
)

// What is in the database:
//
//	s/<session>          the Session in JSON
//	o/<session>          empty; is there while the session runs
//	b/<session>/<block>  a block; its number in 4 bytes, big-endian, from 0 on
//	h                    what Ready has written last
//
// and what tree.go says. A block:
//
//	1 byte   version, 2
//	1 byte   0: the payload is the records; 1: it is them in zstd
//	uvarint  length of the records
//	32 bytes SHA-256 of the block before, or, of the first, of the session's id
//	4 bytes  CRC-32C of all that is before and behind it, little-endian
//	…        payload
//
// A record, the next behind it:
//
//	1 byte   bit 0: direction (0 c2s, 1 s2c); the others: verdict
//	1 byte   bits 0 and 1 are of a frame that has several records, each but the
//	         first with bit 0, each but the last with bit 1: it goes on in the
//	         direction's next record that is neither found, noted, sealed nor blocked;
//	         bit 2: the record began in the block before; bit 3: it goes on in the next
//	varint   time in ns since the session's start
//	uvarint  length
//	…        bytes of the frame, or of a part of it
//
// Each block can be read without the others. A record whose last part is missing
// was never delivered. Bits 0 and 1 are for frames that go on record as they arrive: each
// of their records was delivered, also where the one behind it is missing.

const (
	blockVersion = 2
	blockRaw     = 0
	blockZstd    = 1

	recordS2C       = 1 << 0
	recordVerdict   = 1 // shift
	recordRest      = 1 << 0
	recordMore      = 1 << 1
	recordBegan     = 1 << 2
	recordContinues = 1 << 3

	// blockSize is how long the records of a block may be, in bytes. Badger writes
	// a value as a whole, and zstd gains little above it.
	blockSize = 1 << 20
	// recordHead is more than a record's own bytes.
	recordHead = 32
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// The encoder is for EncodeAll, which many goroutines call at a time.
var encoder = sync.OnceValue(func() *zstd.Encoder {
	e, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithWindowSize(blockSize), zstd.WithLowerEncoderMem(true))
	if err != nil {
		panic(err) // only options that cannot be
	}
	return e
})

var decoder = sync.OnceValue(func() *zstd.Decoder {
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecoderMaxMemory(4*blockSize))
	if err != nil {
		panic(err) // only options that cannot be
	}
	return d
})

// An encoding is the memory in which frames become blocks.
type encoding struct {
	records []byte
	sealed  []byte // the blocks, one behind the other
	blocks  [][]byte
	head    hash // of the last
}

// A hash is what a block is known by.
type hash = [sha256.Size]byte

// firstHash stands in the place of the hash of the block before a session's first.
func firstHash(session string) hash { return sha256.Sum256([]byte(session)) }

// encodings are used again: what a session records at a time takes its size three
// times over.
var encodings = sync.Pool{New: func() any { return new(encoding) }}

// free gives back an encoding whose blocks are not needed any more.
func (e *encoding) free() {
	if clear(e.blocks); cap(e.sealed) > 2*blockSize { // of a rare big frame
		e.sealed = nil
	}
	e.records, e.sealed, e.blocks = e.records[:0], e.sealed[:0], e.blocks[:0]
	encodings.Put(e)
}

// encode makes the blocks of frames, behind the one of that hash. They are valid
// until they are freed.
func encode(start time.Time, before hash, frames []Frame) *encoding {
	e := encodings.Get().(*encoding)
	e.head = before
	size := 0
	for _, f := range frames {
		size += recordHead + len(f.Bytes)
	}
	records := slices.Grow(e.records, min(size, blockSize))
	seal := func() {
		if len(records) > 0 {
			e.seal(records)
			records = records[:0]
		}
	}
	for _, f := range frames {
		if len(records)+recordHead+len(f.Bytes) > blockSize {
			seal()
		}
		began := byte(0)
		for rest, last := f.Bytes, false; !last; {
			part := rest[:min(len(rest), blockSize-recordHead)]
			rest = rest[len(part):]
			last = len(rest) == 0
			kind, flags := byte(f.Verdict)<<recordVerdict, began
			began = recordBegan
			if f.Direction == codec.S2C {
				kind |= recordS2C
			}
			if f.More {
				flags |= recordMore
			}
			if f.rest {
				flags |= recordRest
			}
			if !last {
				flags |= recordContinues
			}
			records = append(records, kind, flags)
			records = binary.AppendVarint(records, int64(f.Time.Sub(start)))
			records = binary.AppendUvarint(records, uint64(len(part)))
			records = append(records, part...)
			if !last {
				seal()
			}
		}
	}
	seal()
	e.records = records
	return e
}

// seal makes a block of records. What zstd does not shorten stays as it is.
func (e *encoding) seal(records []byte) {
	start := len(e.sealed)
	out := append(e.sealed, blockVersion, blockZstd)
	out = binary.AppendUvarint(out, uint64(len(records)))
	out = append(out, e.head[:]...)
	at := len(out)
	out = append(out, 0, 0, 0, 0)
	out = encoder().EncodeAll(records, out)
	if len(out)-at-4 >= len(records) {
		out[start+1] = blockRaw
		out = append(out[:at+4], records...)
	}
	binary.LittleEndian.PutUint32(out[at:], checksum(out[start:at], out[at+4:]))
	e.head = sha256.Sum256(out[start:])
	e.sealed = out
	e.blocks = append(e.blocks, out[start:len(out):len(out)]) // stays where it is, also when sealed moves
}

func checksum(head, payload []byte) uint32 {
	return crc32.Update(crc32.Checksum(head, castagnoli), castagnoli, payload)
}

// before returns the hash of the block in front of b, as b says.
func before(b []byte) (h hash, ok bool) {
	if len(b) < 2 {
		return h, false
	}
	_, n := binary.Uvarint(b[2:])
	if n <= 0 || len(b) < 2+n+len(h) {
		return h, false
	}
	return hash(b[2+n:]), true
}

// openBlock returns the records of a block. dst is a buffer for them.
func openBlock(dst, b []byte) ([]byte, error) {
	if len(b) < 2 || b[0] != blockVersion {
		return nil, errors.New("unknown version")
	}
	method := b[1]
	size, n := binary.Uvarint(b[2:])
	head := 2 + n + sha256.Size
	if n <= 0 || size > 2*blockSize || len(b) < head+4 {
		return nil, errors.New("header cannot be read")
	}
	sum, payload := binary.LittleEndian.Uint32(b[head:]), b[head+4:]
	if checksum(b[:head], payload) != sum {
		return nil, errors.New("checksum mismatch")
	}
	switch method {
	case blockRaw:
		dst = append(dst[:0], payload...)
	case blockZstd:
		var err error
		if dst, err = decoder().DecodeAll(payload, dst[:0]); err != nil {
			return nil, errors.New("cannot be decompressed")
		}
	default:
		return nil, errors.New("unknown compression")
	}
	if uint64(len(dst)) != size {
		return nil, errors.New("length mismatch")
	}
	return dst, nil
}

// A blockReader puts frames together from the blocks of a session in order.
type blockReader struct {
	start   time.Time
	next    uint32  // the block expected
	frames  int     // read so far
	partial []byte  // of a record that goes on in the next block
	started bool    // partial is the beginning of a record
	open    [2]bool // by direction: more of a frame is to come
	records []byte
}

// end yields what is wrong if not all blocks of a session were there.
func (r *blockReader) end(s Session, yield func(Frame, error) bool) {
	if int64(r.next) < s.Blocks {
		r.damage(yield, r.next, fmt.Errorf("is missing, and so is every one up to the last, %d", s.Blocks-1))
	}
}

// read yields the frames that end in block number n. It returns false when
// yield wants no more.
func (r *blockReader) read(n uint32, b []byte, yield func(Frame, error) bool) bool {
	if n != r.next && !r.damage(yield, r.next, fmt.Errorf("is missing, and so is every one before block %d", n)) {
		return false
	}
	r.next = n + 1
	records, err := openBlock(r.records, b)
	if err != nil {
		return r.damage(yield, n, err)
	}
	r.records = records
	for len(records) > 0 {
		if len(records) < 2 {
			return r.damage(yield, n, errors.New("record cannot be read"))
		}
		kind, flags := records[0], records[1]
		since, i := binary.Varint(records[2:])
		if i <= 0 {
			return r.damage(yield, n, errors.New("record cannot be read"))
		}
		size, j := binary.Uvarint(records[2+i:])
		head := 2 + i + j
		if j <= 0 || size > uint64(len(records)-head) {
			return r.damage(yield, n, errors.New("record cannot be read"))
		}
		part := records[head : head+int(size) : head+int(size)]
		records = records[head+int(size):]
		began := flags&recordBegan != 0
		if began != r.started { // the block with the other part is damaged
			r.partial, r.started = r.partial[:0], false
		}
		if began && !r.started {
			continue
		}
		if flags&recordContinues != 0 {
			r.partial, r.started = append(r.partial, part...), true
			continue
		}
		f := Frame{Verdict: Verdict(kind >> recordVerdict), Time: r.start.Add(time.Duration(since)), Bytes: part, More: flags&recordMore != 0}
		if kind&recordS2C != 0 {
			f.Direction = codec.S2C
		}
		if r.started {
			f.Bytes = append(r.partial, part...)
			r.partial, r.started = r.partial[:0], false
		}
		if f.Verdict.passes() {
			if flags&recordRest != 0 && !r.open[f.Direction] {
				continue // what is in front of it is damaged
			}
			r.open[f.Direction] = f.More
		}
		if !f.More {
			r.frames++
		}
		if !yield(f, nil) {
			return false
		}
	}
	return true
}

// damage reports a block that cannot be read. Frames that are under way end there
// for who reads them, as if they had been cut.
func (r *blockReader) damage(yield func(Frame, error) bool, block uint32, err error) bool {
	open := r.open
	r.partial, r.started, r.open = r.partial[:0], false, [2]bool{}
	for _, d := range []codec.Direction{codec.C2S, codec.S2C} {
		if open[d] && !yield(Frame{Direction: d, Verdict: Cut}, nil) {
			return false
		}
	}
	return yield(Frame{}, fmt.Errorf("%w: block %d, behind frame %d: %w", ErrDamaged, block, r.frames, err))
}
