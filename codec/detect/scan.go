package detect

import (
	"encoding/binary"
	"math/bits"
)

// Where the processor has vectors, a long text is scanned many bytes at a time: a
// row has a bit for every byte that is a digit, a letter and so on, and where a
// value may begin is found by comparing rows, 48 places at a time. It is looked
// at there as elsewhere; what is found is the same.

const (
	// longText is from which length on a text is worth it, in bytes.
	longText = 192
	// chunk is how much text the rows are of, in bytes.
	chunk       = blockSize * chunkBlocks
	chunkBlocks = 64
	blockSize   = 64
	rowSize     = (1 + chunkBlocks + 1) * blockSize / 8
)

// A row has a bit for each byte of a chunk, and of one block in front of it and
// one behind it.
type row [rowSize]byte

// The rows of classes. classify has them in this order.
const (
	rowDigit = iota
	rowLetter
	rowAt
	rowPlus
	rowColon
	rowDot
	rowGap // a blank or a dash
	rows
)

// A tail is the end of a text that is no whole block, with zeros behind it.
type tail [3 * blockSize]byte

// fill returns how many whole blocks text has with extra bytes behind each, and
// how many with those that it makes of the rest; most bounds both.
func (t *tail) fill(text []byte, most, extra int) (whole, all int) {
	if len(text) >= extra {
		whole = min(most, (len(text)-extra)/blockSize)
	}
	all = min(most, (len(text)+blockSize-1)/blockSize)
	if all > whole {
		clear(t[copy(t[:], text[whole*blockSize:]):])
	}
	return whole, all
}

// A classified is the rows of one chunk of a text.
type classified [rows]row

// scan makes c the rows of text from offset at on. What was scanned before is the
// chunk in front of it, if there is one.
func (c *classified) scan(text []byte, at int) {
	for r := range c {
		last := c[r][rowSize-2*blockSize/8 : rowSize-blockSize/8]
		if at == 0 {
			clear(last)
		}
		copy(c[r][:], last)
	}
	var t tail
	whole, all := t.fill(text[at:], chunkBlocks+1, 0)
	if whole > 0 {
		classify(&c[0][blockSize/8], &text[at], whole)
	}
	if all > whole {
		classify(&c[0][blockSize/8*(1+whole)], &t[0], all-whole)
	}
	for r := range c {
		clear(c[r][blockSize/8*(1+all):])
	}
}

// The places where values by digits may be are looked for in windows of 64 bits
// of each row. Of a window, windowStep places are decided, from windowFirst on:
// what that takes in front of them and behind them is in it.
const (
	windowFirst = 3
	windowStep  = 48
	windowMask  = (1<<windowStep - 1) << windowFirst
)

// scan is bySigns and byDigits, for a long text. Where f.near is set, places are only
// told of.
func (f *Finder) scan(text []byte) {
	for i := range f.digits {
		f.digits[i].done = 0
	}
	for i := range f.signed {
		f.signed[i].done = 0
	}
	f.looks, f.colonDone, f.colonTo = f.at, 0, 0
	c := &f.rows
	place := -8 + windowFirst // of the first bit that is decided: what is in front of a text is in no row
	for at := 0; at < len(text); at += chunk {
		c.scan(text, at)
		if len(f.signed) > 0 {
			f.signsIn(text, at)
		}
		if f.at == 0 {
			continue
		}
		for place < len(text) {
			offset := (place-windowFirst-at)/8 + blockSize/8
			if offset > rowSize-8 {
				break
			}
			places := f.places(c, offset)
			if f.near != nil {
				places |= exponents(c, offset, text, place-windowFirst)
			}
			for ; places != 0; places &= places - 1 {
				if i := place - windowFirst + bits.TrailingZeros64(places); f.near != nil {
					f.near(i)
				} else {
					f.digitsAt(text, i)
				}
			}
			place += windowStep
		}
	}
}

// signsIn looks at the signs in the chunk at that offset.
func (f *Finder) signsIn(text []byte, at int) {
	r := &f.rows[rowAt]
	for i := blockSize / 8; i < rowSize-blockSize/8; i += 8 {
		for word := binary.LittleEndian.Uint64(r[i:]); word != 0; word &= word - 1 {
			f.signAt(text, at+(i-blockSize/8)*8+bits.TrailingZeros64(word))
		}
	}
}

// places returns where in the window a value by digits may begin; of addresses of
// IPv6, where there is a colon in it.
func (f *Finder) places(c *classified, offset int) (p uint64) {
	var colons uint64
	if f.at&besideMark != 0 {
		if colon := binary.LittleEndian.Uint64(c[rowColon][offset:]); colon != 0 {
			// Two of them, or three of at least seven with one to four digits between.
			colons = colon & (colon>>1 | soon(soon(colon)&colon)) & windowMask
		}
	}
	d := binary.LittleEndian.Uint64(c[rowDigit][offset:])
	if d == 0 {
		return colons
	}
	start := d &^ (d << 1)
	d2 := d & (d >> 1)
	d4 := d2 & (d2 >> 2)
	if f.at&(threeDigits|fourDigits|nineDigits|manyDigits) != 0 {
		gap := binary.LittleEndian.Uint64(c[rowGap][offset:])
		d8 := d4 & (d4 >> 4)
		p |= d8 & (d4 >> 8) & (d >> 12)                                      // 13 digits
		p |= d8 & (d >> 8) &^ (d >> 9)                                       // nine
		p |= d4 & (gap >> 4) & (d4 >> 5)                                     // 1111 1111
		p |= d2 & (d >> 2) & (gap >> 3) & (d2 >> 4) & (gap >> 6) & (d4 >> 7) // 123-45-6789
	}
	if f.at&behindLetters != 0 {
		letter := binary.LittleEndian.Uint64(c[rowLetter][offset:])
		code := d2 & (letter << 1) & (letter << 2) // DE89
		if f.near == nil {                         // else \nDE89 is one, too
			code &^= (letter | d) << 3
		}
		p |= code
	}
	if f.at&behindPlus != 0 {
		p |= binary.LittleEndian.Uint64(c[rowPlus][offset:]) << 1
	}
	if f.at&besideMark != 0 {
		if dots := binary.LittleEndian.Uint64(c[rowDot][offset:]); dots&(d>>1) != 0 {
			dot := dots & (d >> 1)
			first := ^(dots << 1 & (d << 2)) // behind 1. ip has looked from the 1
			p |= numbers(numbers(numbers(dot, d, d2)>>1&dot, d, d2)>>1&dot, d, d2) & first
		}
	}
	return p&start&windowMask | colons
}

// exponents returns where in the window a number ends and has an exponent behind it;
// the window begins at that offset of text. The number may be one by digits that is
// written otherwise.
func exponents(c *classified, offset int, text []byte, start int) (p uint64) {
	d, letter := binary.LittleEndian.Uint64(c[rowDigit][offset:]), binary.LittleEndian.Uint64(c[rowLetter][offset:])
	for ends := d & (letter >> 1) & windowMask; ends != 0; ends &= ends - 1 {
		if n := bits.TrailingZeros64(ends); text[start+n+1]|0x20 == 'e' {
			p |= 1 << n
		}
	}
	return p
}

// numbers returns where there are one to three digits and then something of mark.
func numbers(mark, d, d2 uint64) uint64 {
	return d&(mark>>1) | d2&(mark>>2) | d2&(d>>2)&(mark>>3)
}

// soon returns what is two to five places in front of something of mark.
func soon(mark uint64) uint64 { return mark>>2 | mark>>3 | mark>>4 | mark>>5 }

// digitsAt looks at the run of digits that begins at i, or at those around the
// colon there.
func (f *Finder) digitsAt(text []byte, i int) {
	if text[i] != ':' {
		f.digitsIn(text, i, run(text, i, len(text), digit))
		return
	}
	from, to := i, max(i, f.colonTo)
	for from > f.colonDone && i-from < maxIP && isIP(text[from-1]) {
		from--
	}
	for to < len(text) && to-i < maxIP && isIP(text[to]) {
		to++
	}
	start := max(from, f.colonDone)
	if start == from {
		f.colonDigit = from - maxIP
	}
	f.colonTo, f.colonDone = to, to
	for start < to {
		end := run(text, start, to-start, digit)
		switch {
		case end == start:
			start++
			continue
		case start-f.colonDigit < maxIP: // ip has looked from the digit before
		case start == from && start > 0 && is(text[start-1], digit): // longer than an address
		case end == to && to < len(text) && is(text[to], digit): // may be of the next
			f.colonDone = start
			return
		default:
			f.digitsIn(text, start, end)
		}
		f.colonDigit = end - 1
		start = end
	}
}

// maxPairs is how many pairs mark looks for.
const maxPairs = 4

// likes are pairs as mark takes them, each byte as often as a vector is long. All
// zeros is no pair.
type likes [maxPairs][2][32]byte

// A marked is what mark writes of one chunk of a text.
type marked struct {
	grams [chunkBlocks * blockSize / 16]byte
	pairs [chunkBlocks * blockSize / 8]byte
}

// scan is find, for a long text.
func (x *index) scan(text []byte, h hitter) {
	var m marked
	var t tail
	for at := 0; at < len(text); at += chunk {
		whole, all := t.fill(text[at:], chunkBlocks, 2)
		if whole > 0 {
			mark(&m.grams[0], &m.pairs[0], &text[at], whole, &x.bits[0], &x.likes)
		}
		if all > whole {
			mark(&m.grams[blockSize/16*whole], &m.pairs[blockSize/8*whole], &t[0], all-whole, &x.bits[0], &x.likes)
		}
		clear(m.grams[blockSize/16*all:])
		for i := 0; i < blockSize/16*all; i += 8 {
			for word := binary.LittleEndian.Uint64(m.grams[i:]); word != 0; word &= word - 1 {
				if place := at + 2*(8*i+bits.TrailingZeros64(word)); place+4 <= len(text) {
					x.at(binary.LittleEndian.Uint32(text[place:])|folding&0xffffffff, place, h)
				}
			}
		}
		for i := 0; i < blockSize/8*all; i += 8 {
			for word := binary.LittleEndian.Uint64(m.pairs[i:]); word != 0; word &= word - 1 {
				x.pairAt(text, at+8*i+bits.TrailingZeros64(word), h)
			}
		}
	}
}

// pairAt tells h of the pair at i.
func (x *index) pairAt(text []byte, i int, h hitter) {
	if i+1 >= len(text) {
		return
	}
	for j := range x.pairs {
		if p := &x.pairs[j]; p.text == [2]byte{text[i], text[i+1]} {
			h.hit(i, p.of[:])
		}
	}
}
