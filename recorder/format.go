package recorder

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
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
//	b/<session>/<n>      a block; the number of its first record in 4 bytes, big-endian, from
//	                     0 on, and 1 byte that differs from that of the block whose place it
//	                     has taken
//	w/<session>          is there while blocks shall be rewritten, see rewrite.go
//	h                    what Ready has written last
//
// and what tree.go, keep.go, index.go and archive.go say. A block:
//
//	1 byte   version, 3
//	1 byte   0: the payload is the records; 1: it is them in zstd
//	uvarint  length of the records in bytes
//	uvarint  how many they are
//	32 bytes hash of the record before its first
//	4 bytes  CRC-32C of all that is before and behind it, little-endian
//	…        payload
//
// In the journal, and in memory, the second byte is 2, the payload is the records, and
// hash and checksum are not there: it hangs on nothing yet, see tail.go. Files of the journal
// of earlier versions have blocks with 0.
//
// The hash of a record is SHA-256 of the hash of the one before and of its bytes; in
// the place of the one before a session's first is SHA-256 of the session's id. So
// records hang together however they are brought into blocks. A record, the next
// behind it:
//
//	1 byte   bit 0: direction (0 c2s, 1 s2c); the others: verdict
//	1 byte   bits 0 and 1 are of a frame that has several records, each but the
//	         first with bit 0, each but the last with bit 1: it goes on in the
//	         direction's next record that is neither found, noted, sealed nor blocked;
//	         bit 2: it goes on from the record before; bit 3: it goes on in the next
//	varint   time in ns since the session's start
//	uvarint  length
//	…        bytes of the frame, or of a part of it
//
// Each block can be read without the others. Where the last of records that go on
// from each other is missing, none of them was delivered. Bits 0 and 1 are for frames
// that go on record as they arrive: each of their records was delivered, also where
// the one behind it is missing.

const (
	blockVersion = 3
	blockRaw     = 0
	blockZstd    = 1
	blockOpen    = 2

	recordS2C       = 1 << 0
	recordVerdict   = 1 // shift
	recordRest      = 1 << 0
	recordMore      = 1 << 1
	recordBegan     = 1 << 2
	recordContinues = 1 << 3

	// blockSize is how long the records of a block may be in the journal, and
	// rewriteSize in the database, in bytes. Badger writes a value as a whole, and zstd
	// gains little above.
	blockSize   = 1 << 20
	rewriteSize = 2 << 20
	// recordHead is more than a record's own bytes.
	recordHead = 32
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// An effort is what is done for a block to be small.
type effort int

const (
	// thorough is for blocks that stay: of what is much alike, it is no more than quick.
	thorough effort = iota
	// quick takes half the time or less, and less memory: it is for what must be out of memory.
	quick
)

// The encoders are for EncodeAll.
var (
	quickEncoder    = newEncoder(zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderCRC(false), zstd.WithWindowSize(blockSize), zstd.WithLowerEncoderMem(true))
	thoroughEncoder = newEncoder(zstd.WithEncoderLevel(zstd.SpeedBetterCompression), zstd.WithEncoderCRC(false), zstd.WithWindowSize(rewriteSize), zstd.WithEncoderConcurrency(1))
)

// Records that are much alike, as those of the same small call over and over, the quick
// encoder makes as small in a third of the time; those that repeat what was long before, less
// so, but as much smaller as is said here. A sample tells where to try is worth it, of what is
// so much longer that the sample costs little.
const (
	alike      = 12 // how many times smaller
	sampleSize = 32 << 10
	sampled    = 8 * sampleSize // and more
)

// isAlike reports whether records of that size are much alike, by what they have become.
func isAlike(size, compressed int) bool { return compressed*alike <= size }

// compress appends the compressed records to dst.
func (e effort) compress(dst, records []byte) []byte {
	quickly := func(n int) []byte { return quickEncoder().EncodeAll(records[:n], dst) }
	if e == quick {
		return quickly(len(records))
	}
	if len(records) >= sampled && isAlike(sampleSize, len(quickly(sampleSize))-len(dst)) {
		if all := quickly(len(records)); isAlike(len(records), len(all)-len(dst)) {
			return all
		}
	}
	return thoroughEncoder().EncodeAll(records, dst)
}

func newEncoder(o ...zstd.EOption) func() *zstd.Encoder {
	return sync.OnceValue(func() *zstd.Encoder {
		e, err := zstd.NewWriter(nil, o...)
		if err != nil {
			panic(err) // only options that cannot be
		}
		return e
	})
}

var decoder = sync.OnceValue(func() *zstd.Decoder {
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecoderMaxMemory(2*rewriteSize))
	if err != nil {
		panic(err) // only options that cannot be
	}
	return d
})

// An encoding is what becomes of frames: open blocks, behind each other.
type encoding struct {
	memory  *slabs
	slab    *slab  // in which the block under way is
	records []byte // of it, behind headRoom,
	count   uint32 // so many
	next    uint32 // the number of the record behind them
	blocks  []openedBlock
}

// An openedBlock is one that hangs on nothing yet.
type openedBlock struct {
	Block
	slab *slab
}

// A hash is what a record is known by.
type hash = [sha256.Size]byte

// firstHash stands in the place of the hash of the record before a session's first.
func firstHash(session string) hash { return sha256.Sum256([]byte(session)) }

// A chain is what the records of a session hang on.
type chain struct {
	head hash // of the last record
	next uint32
}

var digests = sync.Pool{New: func() any { return sha256.New() }}

// add hangs the next record on the chain.
func (c *chain) add(record []byte) {
	d := digests.Get().(interface {
		io.Writer
		Sum([]byte) []byte
		Reset()
	})
	d.Reset()
	d.Write(c.head[:])
	d.Write(record)
	d.Sum(c.head[:0])
	digests.Put(d)
	c.next++
}

// names returns what the record of a session says of its chain.
func (c chain) names() (records int64, head string) {
	return int64(c.next), hex.EncodeToString(c.head[:])
}

// ends reports whether the chain is all that the record of a session says.
func (c chain) ends(s Session) bool {
	records, head := c.names()
	return records == s.Records && head == s.Head
}

// addAll hangs records on the chain, and returns an error if they cannot be told apart.
func (c *chain) addAll(records []byte) error {
	for len(records) > 0 {
		r, rest, err := cutRecord(records)
		if err != nil {
			return err
		}
		c.add(r.all)
		records = rest
	}
	return nil
}

// headRoom is in front of the records of a block while they are written: its header is not
// longer.
const headRoom = 2 + 2*binary.MaxVarintLen32

// encode makes the blocks of frames, the first of whose records has that number.
func (e *encoding) encode(start time.Time, next uint32, frames []Frame) {
	e.blocks, e.next = e.blocks[:0], next
	left := 0 // of the records, at most, in bytes
	for _, f := range frames {
		left += len(f.Bytes) + recordHead*(1+len(f.Bytes)/(blockSize-recordHead))
	}
	for _, f := range frames {
		if len(e.records)+recordHead+len(f.Bytes) > headRoom+blockSize {
			e.seal()
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
			if e.count == 0 {
				e.records, e.slab = e.memory.take(headRoom + min(left, blockSize))
				e.records = e.records[:headRoom]
			}
			e.records = append(e.records, kind, flags)
			e.records = binary.AppendVarint(e.records, int64(f.Time.Sub(start)))
			e.records = binary.AppendUvarint(e.records, uint64(len(part)))
			e.records = append(e.records, part...)
			e.count++
			e.next++
			left -= recordHead + len(part)
			if !last {
				e.seal()
			}
		}
	}
	e.seal()
}

// seal makes a block of the records under way.
func (e *encoding) seal() {
	if e.count == 0 {
		return
	}
	var room [headRoom]byte
	head := appendHeader(room[:0], blockOpen, e.count, len(e.records)-headRoom)
	b := e.records[headRoom-len(head):]
	copy(b, head)
	e.blocks = append(e.blocks, openedBlock{Block{e.next - e.count, b}, e.slab})
	e.records, e.slab, e.count = nil, nil, 0
}

// appendHeader appends what is in front of the hash of a block to dst.
func appendHeader(dst []byte, method byte, count uint32, size int) []byte {
	dst = append(dst, blockVersion, method)
	dst = binary.AppendUvarint(dst, uint64(size))
	return binary.AppendUvarint(dst, uint64(count))
}

// sealBlock appends a block of records, so many, behind the one of that hash, to dst. What
// zstd does not shorten stays as it is.
func sealBlock(dst []byte, e effort, before hash, count uint32, records []byte) []byte {
	start := len(dst)
	dst = append(appendHeader(dst, blockZstd, count, len(records)), before[:]...)
	at := len(dst)
	dst = e.compress(append(dst, 0, 0, 0, 0), records)
	if len(dst)-at-4 >= len(records) {
		return sealRaw(dst[:start], before, count, records)
	}
	binary.LittleEndian.PutUint32(dst[at:], checksum(dst[start:at], dst[at+4:]))
	return dst
}

// sealRaw is sealBlock without compression.
func sealRaw(dst []byte, before hash, count uint32, records []byte) []byte {
	start := len(dst)
	dst = slices.Grow(dst, headRoom+sha256.Size+4+len(records))
	dst = append(appendHeader(dst, blockRaw, count, len(records)), before[:]...)
	sum := checksum(dst[start:], records)
	return append(binary.LittleEndian.AppendUint32(dst, sum), records...)
}

func checksum(head, payload []byte) uint32 {
	return crc32.Update(crc32.Checksum(head, castagnoli), castagnoli, payload)
}

// A header is what stands in front of the records of a block.
type header struct {
	method byte
	size   int    // of the records, in bytes
	count  uint32 // of them
	before hash   // unless it is open
	sum    uint32
	length int // of the header without the checksum
}

// open reports whether the block hangs on nothing yet.
func (h *header) open() bool { return h.method == blockOpen }

// payload returns what is behind the header of the block.
func (h *header) payload(b []byte) []byte {
	if h.open() {
		return b[h.length:]
	}
	return b[h.length+4:]
}

// readHeader reads the header of a block. It may be forged, and size is at most
// rewriteSize.
func readHeader(b []byte) (h header, err error) {
	if isLost(b) {
		return h, errors.New(string(b[len(lostMark):min(len(b), 1<<10)]))
	}
	if len(b) < 2 || b[0] != blockVersion {
		return h, errors.New("unknown version")
	}
	size, n := binary.Uvarint(b[2:])
	if n <= 0 || size > rewriteSize {
		return h, errors.New("header cannot be read")
	}
	count, m := binary.Uvarint(b[2+n:])
	if m <= 0 || count == 0 || count > size {
		return h, errors.New("header cannot be read")
	}
	h.method, h.size, h.count, h.length = b[1], int(size), uint32(count), 2+n+m
	if h.open() {
		return h, nil
	}
	if len(b) < h.length+sha256.Size+4 {
		return h, errors.New("header cannot be read")
	}
	h.before = hash(b[h.length:])
	h.length += sha256.Size
	h.sum = binary.LittleEndian.Uint32(b[h.length:])
	return h, nil
}

// openBlock returns the records of a block. dst is a buffer for them.
func openBlock(dst, b []byte) (header, []byte, error) {
	h, err := readHeader(b)
	if err != nil {
		return h, nil, err
	}
	payload := h.payload(b)
	if !h.open() && checksum(b[:h.length], payload) != h.sum {
		return h, nil, errors.New("checksum mismatch")
	}
	switch h.method {
	case blockRaw, blockOpen:
		dst = append(dst[:0], payload...)
	case blockZstd:
		if dst, err = decoder().DecodeAll(payload, dst[:0]); err != nil {
			return h, nil, errors.New("cannot be decompressed")
		}
	default:
		return h, nil, errors.New("unknown compression")
	}
	if len(dst) != h.size {
		return h, nil, errors.New("length mismatch")
	}
	return h, dst, nil
}

// A record is one as it is in a block.
type record struct {
	kind, flags byte
	since       time.Duration // the session's start
	bytes       []byte        // of the frame
	all         []byte        // of the record
}

var errRecord = errors.New("record cannot be read")

// cutRecord takes the first of records off.
func cutRecord(records []byte) (r record, rest []byte, err error) {
	if len(records) < 2 {
		return r, nil, errRecord
	}
	since, i := binary.Varint(records[2:])
	if i <= 0 {
		return r, nil, errRecord
	}
	size, j := binary.Uvarint(records[2+i:])
	head := 2 + i + j
	if j <= 0 || size > uint64(len(records)-head) {
		return r, nil, errRecord
	}
	end := head + int(size)
	return record{records[0], records[1], time.Duration(since), records[head:end:end], records[:end:end]}, records[end:], nil
}

// A blockReader puts frames together from the blocks of a session in order.
type blockReader struct {
	start   time.Time
	next    uint32  // the record expected
	lost    bool    // or any behind it: a block in front of it is damaged
	frames  int     // read so far
	partial []byte  // of what goes on in the next record
	started bool    // partial is the beginning of it
	open    [2]bool // by direction: more of a frame is to come
	records []byte
	chain   *chain // if not nil, what is read is hung on it
}

// end yields what is wrong if not all blocks of a session were there.
func (r *blockReader) end(s Session, yield func(Frame, error) bool) {
	if int64(r.next) < s.Records && !r.lost {
		r.damage(yield, r.next, errors.New("is missing, and so is every one behind it"))
	}
}

// read yields the frames that end in block number n. What has been read before is not
// yielded again. It returns false when yield wants no more.
func (r *blockReader) read(n uint32, b []byte, yield func(Frame, error) bool) bool {
	if n > r.next && !r.lost && !r.damage(yield, r.next, fmt.Errorf("is missing, and so is every one before block %d", n)) {
		return false
	}
	r.next, r.lost = max(n, r.next), false
	h, records, err := openBlock(r.records, b)
	if err != nil {
		r.lost = true
		return r.damage(yield, n, err)
	}
	r.records = records
	for at := n; ; at++ {
		if at-n == h.count && len(records) == 0 {
			return true
		}
		var rec record
		if rec, records, err = cutRecord(records); err != nil || at-n == h.count {
			r.lost = true
			return r.damage(yield, n, errRecord)
		}
		if at < r.next {
			continue
		}
		r.next = at + 1
		if r.chain != nil {
			r.chain.add(rec.all)
		}
		if !r.take(rec, yield) {
			return false
		}
	}
}

// take yields the frame that ends in a record, if one does.
func (r *blockReader) take(rec record, yield func(Frame, error) bool) bool {
	began := rec.flags&recordBegan != 0
	if began != r.started { // the block with the other part is damaged
		r.partial, r.started = r.partial[:0], false
	}
	if began && !r.started {
		return true
	}
	if rec.flags&recordContinues != 0 {
		r.partial, r.started = append(r.partial, rec.bytes...), true
		return true
	}
	f := Frame{Verdict: Verdict(rec.kind >> recordVerdict), Time: r.start.Add(rec.since), Bytes: rec.bytes, More: rec.flags&recordMore != 0}
	if rec.kind&recordS2C != 0 {
		f.Direction = codec.S2C
	}
	if r.started {
		f.Bytes = append(r.partial, rec.bytes...)
		r.partial, r.started = r.partial[:0], false
	}
	if f.Verdict.passes() {
		if rec.flags&recordRest != 0 && !r.open[f.Direction] {
			return true // what is in front of it is damaged
		}
		r.open[f.Direction] = f.More
	}
	if !f.More {
		r.frames++
	}
	return yield(f, nil)
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
