package recorder

import (
	"bytes"
	"encoding/binary"
	"math/bits"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// The text of a frame is what is searched: the frame as it is on record, with the
// escapes in it resolved, so that it reads as its receiver reads it. Where that still has
// escapes, for JSON stands in a string of it, it is text again once these are resolved.
//
// A word is a run of letters, digits and the marks on them, whatever their case.
// Of scripts that put no spaces between words, each letter is one. A long run of
// what base64 is made of is no text: it has no words, and nothing is found in it.

const (
	blobSize  = 512 // bytes; a longer run of what base64 is made of is no text
	textDepth = 4   // how often escapes are resolved

	// Of a frame that comes in parts, windowKeep is what is looked at again with
	// the next part, in bytes: words and phrases may stand on both sides.
	windowKeep = 16 << 10
	maxPhrase  = 1 << 10
)

// The classes of bytes.
const (
	classOther  = iota
	classJoint  // in base64 and file names beside letters
	classLetter // of ASCII, or a digit
	classWide   // of a rune beyond ASCII
)

var classes = func() (c [256]byte) {
	for b := range c {
		switch {
		case b >= utf8.RuneSelf:
			c[b] = classWide
		case '0' <= b && b <= '9' || 'a' <= b|0x20 && b|0x20 <= 'z':
			c[b] = classLetter
		case bytes.IndexByte([]byte("+/-_="), byte(b)) >= 0:
			c[b] = classJoint
		}
	}
	return c
}()

// isWord reports whether r is of a word, and alone whether it is a word of its own.
func isWord(r rune) (word, alone bool) {
	if r < utf8.RuneSelf {
		return classes[r] == classLetter, false
	}
	if !unicode.In(r, unicode.L, unicode.M, unicode.N) {
		return false, false
	}
	return true, r >= 0x0e00 && unicode.In(r, unspaced...)
}

// unspaced are the scripts that put no spaces between words.
var unspaced = []*unicode.RangeTable{
	unicode.Han, unicode.Hiragana, unicode.Katakana, unicode.Thai, unicode.Lao, unicode.Khmer, unicode.Myanmar,
}

// joined reports whether no word ends between a and b, which stand side by side.
func joined(a, b rune) bool {
	wordA, aloneA := isWord(a)
	wordB, aloneB := isWord(b)
	return wordA && wordB && !aloneA && !aloneB
}

// fold returns the one of the runes that differ from r by case only that stands for
// all of them: of ASCII the small letter.
func fold(r rune) rune {
	if r >= utf8.RuneSelf {
		least := r
		for other := unicode.SimpleFold(r); other != r; other = unicode.SimpleFold(other) {
			least = min(least, other)
		}
		r = least
	}
	if 'A' <= r && r <= 'Z' {
		r |= 0x20
	}
	return r
}

// A wordHash stands for a word in the index. Two words may have the same: what the
// index finds is read before it is believed.
type wordHash = uint32

// hashing is a hash of a word under way, 8 bytes at a time.
type hashing uint64

func (h hashing) add(x uint64) hashing {
	const k = 0x9e3779b97f4a7c15 // 2^64 by the golden ratio
	x = (uint64(h) ^ x) * k
	return hashing(x ^ x>>29)
}

func (h hashing) sum(length int) wordHash {
	return wordHash(h.add(uint64(length)) >> 32)
}

// foldASCII makes letters small, and leaves digits.
const foldASCII = 0x2020202020202020

// hashASCII hashes a word of ASCII letters and digits at the beginning of b.
func hashASCII(b []byte, length int) wordHash {
	var h hashing
	for left := length; left > 0; left, b = left-8, b[min(8, len(b)):] {
		var x uint64
		if len(b) >= 8 {
			x = binary.LittleEndian.Uint64(b)
		} else {
			var last [8]byte
			copy(last[:], b)
			x = binary.LittleEndian.Uint64(last[:])
		}
		x |= foldASCII
		if left < 8 {
			x &= 1<<(8*left) - 1
		}
		h = h.add(x)
	}
	return h.sum(length)
}

// hashFolded hashes a word that is folded.
func hashFolded(word []byte) wordHash {
	var h hashing
	for rest := word; len(rest) > 0; rest = rest[min(8, len(rest)):] {
		var x [8]byte
		copy(x[:], rest)
		h = h.add(binary.LittleEndian.Uint64(x[:]))
	}
	return h.sum(len(word))
}

// A wordSet is a set of words, of at most maxWords.
type wordSet struct {
	table []wordHash // a power of two; 0: free
	n     int
	full  bool // there were more

	run    []wordHash // of the run under way
	folded []byte
}

// maxWords bounds what a session has in the index: 64 Ki words are some 500 KB of
// text in which none comes twice.
const maxWords = 64 << 10

func (s *wordSet) reset() {
	if len(s.table) > maxWords/2 { // of a rare one
		s.table = nil
	}
	clear(s.table)
	s.n, s.full = 0, false
}

func (s *wordSet) add(h wordHash) {
	if h == 0 {
		h = 1
	}
	if s.n >= len(s.table)/2 {
		s.grow()
	}
	mask := uint32(len(s.table) - 1)
	i := h & mask
	for s.table[i] != 0 {
		if s.table[i] == h {
			return
		}
		i = (i + 1) & mask
	}
	if s.n == maxWords {
		s.full = true
		return
	}
	s.table[i] = h
	s.n++
}

func (s *wordSet) grow() {
	old := s.table
	s.table, s.n = make([]wordHash, max(4096, 2*len(old))), 0
	for _, h := range old {
		if h != 0 {
			s.add(h)
		}
	}
}

// all returns the words, in no order.
func (s *wordSet) all() []wordHash {
	all := make([]wordHash, 0, s.n)
	for _, h := range s.table {
		if h != 0 {
			all = append(all, h)
		}
	}
	return all
}

// addText adds the words of a text.
func (s *wordSet) addText(b []byte) { s.scan(b, false) }

// addLine adds those of a line whose escapes have not been resolved, without that work.
// It returns false where it cannot: there are others than of what ends words.
func (s *wordSet) addLine(b []byte) bool { return s.scan(b, true) }

func (s *wordSet) scan(b []byte, escaped bool) bool {
	run := 0 // where the run began
	s.run = s.run[:0]
	for i := 0; i < len(b); {
		switch c := b[i]; classes[c] {
		case classLetter:
			start := i
			var h wordHash
			if h, i = wordAt(b, i); i < len(b) && b[i] >= utf8.RuneSelf && i-run <= blobSize {
				s.endRun(start - run)
				i = s.addWide(b, start)
				run = i
				continue
			}
			if len(s.run) < blobSize {
				s.run = append(s.run, h)
			}
		case classJoint:
			i++
		case classWide:
			s.endRun(i - run)
			i = s.addWide(b, i)
			run = i
		default:
			if c == '\\' && escaped && i+1 < len(b) {
				switch b[i+1] {
				case '"', 'b', 'f', 'n', 'r', 't':
					i++
				default:
					return false
				}
			}
			s.endRun(i - run)
			i++
			run = i
		}
	}
	s.endRun(len(b) - run)
	return true
}

// wordAt returns the hash of the word of ASCII that begins at b[i], and the offset behind
// it. Most are shorter than 8 bytes, and are looked at at once.
func wordAt(b []byte, i int) (wordHash, int) {
	if len(b)-i >= 8 {
		x := binary.LittleEndian.Uint64(b[i:])
		if ends := notInWord(x); ends != 0 {
			n := bits.TrailingZeros64(ends) / 8
			return hashing(0).add((x | foldASCII) & (1<<(8*n) - 1)).sum(n), i + n
		}
	}
	start := i
	for i < len(b) && classes[b[i]] == classLetter {
		i++
	}
	return hashASCII(b[start:], i-start), i
}

// notInWord returns the highest bit of each byte of x that is no letter or digit of ASCII.
func notInWord(x uint64) uint64 {
	const ones, high = 0x0101010101010101, 0x8080808080808080
	c := x &^ high
	small := c | foldASCII
	letter := (small + (0x80-'a')*ones) &^ (small + (0x7f-'z')*ones)
	digit := (c + (0x80-'0')*ones) &^ (c + (0x7f-'9')*ones)
	return ^(letter|digit)&high | x&high
}

// endRun adds the words of a run of that many bytes of base64, if it is text.
func (s *wordSet) endRun(length int) {
	if length <= blobSize {
		for _, h := range s.run {
			s.add(h)
		}
	}
	s.run = s.run[:0]
}

// addWide adds the word at b[i:], of more than ASCII, and returns the offset behind
// it; where there is none, behind what stands there.
func (s *wordSet) addWide(b []byte, i int) int {
	s.folded = s.folded[:0]
	wide := false // the rune before is
	for i < len(b) {
		r, n := utf8.DecodeRune(b[i:])
		word, alone := isWord(r)
		if !word && len(s.folded) == 0 {
			return i + n
		}
		if !word || alone && len(s.folded) > 0 || wide && r < utf8.RuneSelf && isBlob(b[i:]) {
			break
		}
		i += n
		wide = r >= utf8.RuneSelf
		s.folded = utf8.AppendRune(s.folded, fold(r))
		if alone {
			break
		}
	}
	if len(s.folded) > 0 {
		s.add(hashFolded(s.folded))
	}
	return i
}

// isBlob reports whether b begins with a run of base64 that is no text.
func isBlob(b []byte) bool {
	n := 0
	for n < len(b) && n <= blobSize && (classes[b[n]] == classLetter || classes[b[n]] == classJoint) {
		n++
	}
	return n > blobSize
}

// wordsOf returns the words of a text, each once.
func wordsOf(text []byte) []wordHash {
	var s wordSet
	s.addText(text)
	return s.all()
}

// resolve appends b to dst with its escapes resolved, those of JSON strings. What is
// none stays as it is.
func resolve(dst, b []byte) []byte {
	for {
		i := bytes.IndexByte(b, '\\')
		if i < 0 || i+1 == len(b) {
			return append(dst, b...)
		}
		dst = append(dst, b[:i]...)
		c := b[i+1]
		n := 2
		switch c {
		case '"', '\\', '/':
			dst = append(dst, c)
		case 'b', 'f', 'n', 'r', 't':
			dst = append(dst, "\b\f\n\r\t"[bytes.IndexByte([]byte("bfnrt"), c)])
		case 'u':
			r, ok := hex4(b[i:])
			if !ok {
				dst = append(dst, '\\', c)
				break
			}
			n = 6
			if utf16.IsSurrogate(r) {
				low, _ := hex4(b[i+n:])
				if r = utf16.DecodeRune(r, low); r != utf8.RuneError {
					n = 12
				}
			}
			dst = utf8.AppendRune(dst, r)
		default:
			dst, n = append(dst, '\\'), 1
		}
		b = b[i+n:]
	}
}

// hex4 reads \uXXXX at the beginning of b.
func hex4(b []byte) (r rune, ok bool) {
	if len(b) < 6 || b[0] != '\\' || b[1] != 'u' {
		return 0, false
	}
	for _, c := range b[2:6] {
		switch {
		case '0' <= c && c <= '9':
			r = r<<4 | rune(c-'0')
		case 'a' <= c|0x20 && c|0x20 <= 'f':
			r = r<<4 | rune(c|0x20-'a'+10)
		default:
			return 0, false
		}
	}
	return r, true
}

// A reading gives the text of a session's frames, as they are read in order.
type reading struct {
	kept [2][]byte // by direction: the end of the window before, of a frame that comes in parts
	open [2]bool
	a, b []byte // what texts are resolved into

	// line, if it is not nil, is asked to take what is not resolved, first.
	line func(b []byte) bool
}

// frame calls f with the texts of a frame, or of what of it can be looked at with this
// part. They are valid until f returns.
func (r *reading) frame(fr *Frame, f func(text []byte)) {
	if !fr.Verdict.IsFrame() {
		return
	}
	d := fr.Direction & 1
	if fr.Verdict == Blocked || !fr.More && !r.open[d] {
		r.texts(fr.Bytes, f)
		return
	}
	window := append(r.kept[d], fr.Bytes...)
	if r.open[d] = fr.More; !fr.More {
		r.texts(window, f)
		r.kept[d] = window[:0]
		return
	}
	end := cut(window, len(window))
	from := cut(window, max(0, end-windowKeep))
	if len(window)-from > 4*windowKeep { // nothing ends in it: base64, of which the end is as good as all
		end, from = len(window), len(window)-windowKeep
	}
	r.texts(window[:end], f)
	r.kept[d] = append(r.kept[d][:0], window[from:]...)
}

// cut returns the last offset up to end at which neither a word, an escape nor a run
// of base64 is under way.
func cut(b []byte, end int) int {
	for i := end; i > 0; i-- {
		if c := b[i-1]; classes[c] == classOther && c != '\\' && (i < 2 || b[i-2] != '\\') {
			return i
		}
	}
	return 0
}

func (r *reading) texts(b []byte, f func(text []byte)) {
	if r.line != nil && r.line(b) {
		return
	}
	if bytes.IndexByte(b, '\\') < 0 {
		f(b)
		return
	}
	for depth := 0; depth < textDepth; depth++ {
		r.a = resolve(r.a[:0], b)
		if depth > 0 && bytes.Equal(r.a, b) {
			break
		}
		f(r.a)
		if bytes.IndexByte(r.a, '\\') < 0 {
			break
		}
		r.a, r.b = r.b, r.a
		b = r.b
	}
	if cap(r.a)+cap(r.b) > 8*blockSize { // of a rare big frame
		r.a, r.b = nil, nil
	}
}

// A phrase is what a text is searched for: words and what stands between them, which
// begin and end where words do.
type phrase []byte

// newPhrase returns the phrase of that text.
func newPhrase(text string) phrase { return phrase(plain(nil, bytes.TrimSpace([]byte(text)))) }

// plain appends a text to dst as it is compared: folded, white space of any length as
// one space, base64 as one NUL.
func plain(dst, text []byte) []byte {
	run, out := 0, len(dst) // where the run began, in text and in dst
	endRun := func(i int) {
		if i-run > blobSize {
			dst = append(dst[:out], 0)
		}
	}
	for i := 0; i < len(text); {
		c := text[i]
		switch classes[c] {
		case classLetter:
			if c >= 'A' {
				c |= 0x20
			}
			dst = append(dst, c)
			i++
			continue
		case classJoint:
			dst = append(dst, c)
			i++
			continue
		}
		endRun(i)
		r, n := utf8.DecodeRune(text[i:])
		if i += n; unicode.IsSpace(r) {
			if len(dst) == 0 || dst[len(dst)-1] != ' ' {
				dst = append(dst, ' ')
			}
		} else {
			dst = utf8.AppendRune(dst, fold(r))
		}
		run, out = i, len(dst)
	}
	endRun(len(text))
	return dst
}

// in reports whether the phrase is in a text that is plain.
func (p phrase) in(plain []byte) bool {
	first, _ := utf8.DecodeRune(p)
	last, _ := utf8.DecodeLastRune(p)
	for from := 0; ; {
		i := bytes.Index(plain[from:], p)
		if i < 0 {
			return false
		}
		i += from
		before, n := utf8.DecodeLastRune(plain[:i])
		after, m := utf8.DecodeRune(plain[i+len(p):])
		if (n == 0 || !joined(before, first)) && (m == 0 || !joined(last, after)) {
			return true
		}
		_, n = utf8.DecodeRune(plain[i:])
		from = i + n
	}
}
