package detect

import (
	"bytes"
	"encoding/binary"
	"math/bits"
	"strconv"
)

// Most personal data has digits in it. They are looked for once for all
// detectors, and each looks around a run of them.

// A byDigits looks around the run of digits text[start:end], and returns the
// offsets of the value that it is in, or 0, 0.
type byDigits func(text []byte, start, end int) (from, to int)

// An around is how a run of digits looks: its length, and what is beside it.
type around uint8

const (
	threeDigits around = 1 << iota // and a blank or a dash
	fourDigits                     // and a blank or a dash
	nineDigits
	manyDigits    // 13 to 19
	behindLetters // two
	behindPlus
	besideMark // what an address of a host has: up to three and a dot; or a colon or a digit of base 16 beside it
	looksLike  // how many there are of all together
)

// What stands beside a run of digits, as far as it matters.
const (
	besideOther = iota
	besideLetter
	besideHex // a letter that is a digit of base 16
	besidePlus
	besideColon
	besideDot
	besideGap // a blank or a dash
	besides
)

var beside = func() (t [256]uint8) {
	for c := range t {
		switch {
		case isBase16(byte(c)):
			t[c] = besideHex
		case is(byte(c), upper|lower):
			t[c] = besideLetter
		}
	}
	t['+'], t[':'], t['.'], t[' '], t['-'] = besidePlus, besideColon, besideDot, besideGap, besideGap
	return t
}()

// looks tells by what is before and behind it, and by its length, what a run of
// digits may look like.
var looks = func() (t [besides][besides][21]around) {
	for before := range t {
		for behind := range t[before] {
			for n := 1; n < len(t[before][behind]); n++ {
				a := &t[before][behind][n]
				switch {
				case n == 3 && behind == besideGap:
					*a = threeDigits
				case n == 4 && behind == besideGap:
					*a = fourDigits
				case n == 9:
					*a = nineDigits
				case n >= 13 && n <= 19:
					*a = manyDigits
				}
				switch before {
				case besidePlus:
					*a |= behindPlus
				case besideLetter, besideHex:
					*a |= behindLetters
				}
				if behind == besideDot && n <= 3 || behind == besideColon || behind == besideHex || before == besideColon || before == besideHex {
					*a |= besideMark
				}
			}
		}
	}
	return t
}()

// lookAround returns what text[start:end] looks like.
func lookAround(text []byte, start, end int) around {
	var before, behind uint8
	if start > 0 {
		before = beside[text[start-1]]
	}
	if end < len(text) {
		behind = beside[text[end]]
	}
	a := looks[before][behind][min(end-start, 20)]
	if a != 0 {
		a = lookCloser(a, text, start, end)
	}
	return a
}

// lookCloser returns what of a is so, as far as little more tells.
func lookCloser(a around, text []byte, start, end int) around {
	if a&threeDigits != 0 && !(end+4 < len(text) && text[end+3] == text[end]) {
		a &^= threeDigits
	}
	if a&fourDigits != 0 && !(end+4 < len(text) && is(text[end+1], digit) && is(text[end+3], digit) && is(text[end+4], digit)) {
		a &^= fourDigits
	}
	if a&behindLetters != 0 && !(start > 1 && is(text[start-2], upper|lower)) {
		a &^= behindLetters
	}
	if a&besideMark != 0 && !hasMark(text, start, end) {
		a &^= besideMark
	}
	return a
}

// hasMark reports a run of digits as in an address of a host.
func hasMark(text []byte, start, end int) bool {
	var before, behind byte
	if start > 0 {
		before = text[start-1]
	}
	if end < len(text) {
		behind = text[end]
	}
	if end-start == 2 && (behind == ':' && twoDigits(text, end+1) || before == ':' && twoDigits(text, start-3)) { // a time
		return false
	}
	return behind == '.' && end-start <= 3 && twoDots(text, end) || behind == ':' || before == ':' && start > 1 && isIP(text[start-2]) || isBase16(before) || isBase16(behind)
}

func isBase16(c byte) bool { return c|0x20 >= 'a' && c|0x20 <= 'f' }

// twoDots reports a second dot behind the one at i, and digits between.
func twoDots(text []byte, i int) bool {
	end := run(text, i+1, 4, digit)
	return end > i+1 && end < len(text) && text[end] == '.'
}

func twoDigits(text []byte, i int) bool {
	return i >= 0 && i+1 < len(text) && is(text[i], digit) && is(text[i+1], digit)
}

// nextDigit returns the offset of the first digit in text from i on, or -1.
func nextDigit(text []byte, i int) int {
	const low, high = 0x0101010101010101, 0x8080808080808080
	for ; i+8 <= len(text); i += 8 {
		x := binary.LittleEndian.Uint64(text[i:]) ^ low*'0'
		// The high bit of a byte is clear where x is 0 to 9.
		if d := ^(x&^high + low*(0x80-10) | x) & high; d != 0 {
			return i + bits.TrailingZeros64(d)/8
		}
	}
	for ; i < len(text); i++ {
		if is(text[i], digit) {
			return i
		}
	}
	return -1
}

// separated reports that nothing in front of i makes what begins there a part of
// something longer.
func separated(text []byte, i int) bool { return i == 0 || !is(text[i-1], word|dot|dash) }

// ssn finds social security numbers of the United States: in three groups with
// dashes, or, where the text says what they are, with blanks or none. No area is
// 000, 666 or from 900 on, no group 00, no serial 0000.
func ssn(text []byte, start, end int) (from, to int) {
	var digits []byte
	var buf [9]byte
	switch n := end - start; {
	case n == 3 && end+8 <= len(text) && (text[end] == '-' || text[end] == ' ') && text[end+3] == text[end] &&
		run(text, end+1, 3, digit) == end+3 && run(text, end+4, 5, digit) == end+8:
		to = end + 8
		digits = append(append(append(buf[:0], text[start:end]...), text[end+1:end+3]...), text[end+4:to]...)
		if text[end] == ' ' && !saysSSN(text, start) {
			return 0, 0
		}
	case n == 9 && saysSSN(text, start):
		to = end
		digits = text[start:end]
	default:
		return 0, 0
	}
	if !separated(text, start) || start > 0 && text[start-1] == '/' || !ends(text, to) {
		return 0, 0
	}
	area, group, serial := string(digits[:3]), string(digits[3:5]), string(digits[5:])
	if area == "000" || area == "666" || area >= "900" || group == "00" || serial == "0000" {
		return 0, 0
	}
	return start, to
}

// saysSSN reports that the text in front of i speaks of such numbers.
func saysSSN(text []byte, i int) bool {
	var buf [40]byte
	before := appendLower(buf[:0], text[max(0, i-40):i])
	return bytes.Contains(before, []byte("ssn")) || bytes.Contains(before, []byte("social sec"))
}

// ibanLengths are by country, from the registry of SWIFT.
var ibanLengths = map[string]int{
	"AD": 24, "AE": 23, "AL": 28, "AT": 20, "AZ": 28, "BA": 20, "BE": 16, "BG": 22, "BH": 22, "BI": 27, "BR": 29, "BY": 28, "CH": 21, "CR": 22,
	"CY": 28, "CZ": 24, "DE": 22, "DJ": 27, "DK": 18, "DO": 28, "EE": 20, "EG": 29, "ES": 24, "FI": 18, "FK": 18, "FO": 18, "FR": 27, "GB": 22,
	"GE": 22, "GI": 23, "GL": 18, "GR": 27, "GT": 28, "HN": 28, "HR": 21, "HU": 28, "IE": 22, "IL": 23, "IQ": 23, "IS": 26, "IT": 27, "JO": 30,
	"KW": 30, "KZ": 20, "LB": 28, "LC": 32, "LI": 21, "LT": 20, "LU": 20, "LV": 21, "LY": 25, "MC": 27, "MD": 24, "ME": 22, "MK": 19, "MN": 20,
	"MR": 27, "MT": 31, "MU": 30, "NI": 28, "NL": 18, "NO": 15, "OM": 23, "PK": 24, "PL": 28, "PS": 29, "PT": 25, "QA": 29, "RO": 24, "RS": 22,
	"RU": 33, "SA": 24, "SC": 31, "SD": 18, "SE": 24, "SI": 19, "SK": 24, "SM": 27, "SO": 23, "ST": 25, "SV": 28, "TL": 23, "TN": 24, "TR": 26,
	"UA": 29, "VA": 22, "VG": 24, "XK": 20, "YE": 30,
}

// ibanSizes is ibanLengths by letters.
var ibanSizes = func() (sizes [26][26]uint8) {
	for country, n := range ibanLengths {
		sizes[country[0]-'A'][country[1]-'A'] = uint8(n)
	}
	return sizes
}()

// iban finds international bank account numbers: a country, as long as that
// country's are, and a good remainder (ISO 7064, mod 97). They stand in one word,
// or in groups of four.
func iban(text []byte, start, end int) (from, to int) {
	from = start - 2
	if from < 0 || end-start < 2 || !is(text[from], upper|lower) || !is(text[from+1], upper|lower) || !separated(text, from) {
		return 0, 0
	}
	var v [40]byte
	size := int(ibanSizes[(text[from]|0x20)-'a'][(text[from+1]|0x20)-'a'])
	if size == 0 {
		return 0, 0
	}
	spaced := from+4 < len(text) && text[from+4] == ' '
	length := size
	if spaced {
		length += (size - 1) / 4
	}
	if from+length > len(text) || !ends(text, from+length) {
		return 0, 0
	}
	to = from
	for n := 0; n < size; n++ {
		if spaced && n > 0 && n%4 == 0 {
			if to == len(text) || text[to] != ' ' {
				return 0, 0
			}
			to++
		}
		if to == len(text) || !is(text[to], alnum) || spaced && is(text[to], lower) {
			return 0, 0
		}
		v[n] = text[to]
		to++
	}
	if !mod97(v[:size]) {
		return 0, 0
	}
	return from, to
}

// phone finds telephone numbers in the international form (E.164): a plus, a
// country's code, and up to 15 digits in groups.
func phone(text []byte, start, end int) (from, to int) {
	from = start - 1
	if from < 0 || text[from] != '+' || from > 0 && (is(text[from-1], word|dot) || text[from-1] == '+' || text[from-1] == ')') {
		return 0, 0
	}
	var digits [15]byte
	n, groups := 0, 0
	for at := start; ; {
		e := run(text, at, 16, digit)
		if e == at || groups > 1 && e-at < 2 || n+e-at > len(digits) {
			break
		}
		n += copy(digits[n:], text[at:e])
		groups++
		to, at = e, e
		// One mark, or a bracket with a blank beside it.
		for range 2 {
			if at < len(text) && (text[at] == ' ' || text[at] == '-' || text[at] == '.' || text[at] == '(' || text[at] == ')' || text[at] == '/') {
				at++
			}
		}
		if at == e {
			break
		}
	}
	if to == 0 || to < len(text) && is(text[to], word) || !ends(text, to) || !isPhone(digits[:n]) || groups == 1 && n < 9 {
		return 0, 0
	}
	return from, to
}

// isPhone checks the country's code, and in North America and Russia the length.
func isPhone(d []byte) bool {
	if len(d) < 8 {
		return false
	}
	switch {
	case d[0] == '1':
		return len(d) == 11 && d[1] >= '2' && d[4] >= '2'
	case d[0] == '7':
		return len(d) == 11
	}
	two := int(d[0]-'0')*10 + int(d[1]-'0')
	return callingCodes[two] || two >= 10 && callingCodes[two*10+int(d[2]-'0')]
}

// callingCodes are those that the ITU has assigned, but for +1 and +7.
var callingCodes = func() (codes [1000]bool) {
	for _, s := range bytes.Fields([]byte(`20 27 30 31 32 33 34 36 39 40 41 43 44 45 46 47 48 49 51 52 53 54 55 56 57 58 60 61 62 63 64 65 66
		81 82 84 86 90 91 92 93 94 95 98 211 212 213 216 218 220 221 222 223 224 225 226 227 228 229 230 231 232 233 234 235 236 237 238 239
		240 241 242 243 244 245 246 247 248 249 250 251 252 253 254 255 256 257 258 260 261 262 263 264 265 266 267 268 269 290 291 297 298 299
		350 351 352 353 354 355 356 357 358 359 370 371 372 373 374 375 376 377 378 380 381 382 383 385 386 387 389 420 421 423
		500 501 502 503 504 505 506 507 508 509 590 591 592 593 594 595 596 597 598 599 670 672 673 674 675 676 677 678 679 680 681 682 683 685
		686 687 688 689 690 691 692 800 808 850 852 853 855 856 870 878 880 881 882 883 886 888 960 961 962 963 964 965 966 967 968 970 971 972
		973 974 975 976 977 979 992 993 994 995 996 998`)) {
		n, err := strconv.Atoi(string(s))
		if err != nil {
			panic(err)
		}
		codes[n] = true
	}
	return codes
}()

const maxIP = 45 // an address at its longest, in bytes

// ip finds addresses of IPv4 and IPv6 that have a digit, but for those that are
// the same everywhere: unspecified, loopback, and masks of networks.
func ip(text []byte, start, end int) (from, to int) {
	from, to = start, end
	for from > 0 && start-from < maxIP && isIP(text[from-1]) {
		if from--; is(text[from], digit) { // the run before has looked
			return 0, 0
		}
	}
	colons, doubles, dots := 0, 0, 0
	for to = from; to < len(text) && (to < end || to-start < maxIP && isIP(text[to])); to++ {
		switch text[to] {
		case ':':
			colons++
			if to > from && text[to-1] == ':' {
				doubles++ // three in a row are two: no address has them
			}
		case '.':
			dots++
		}
	}
	for ; to > from; to-- {
		if c := text[to-1]; c == '.' {
			dots--
		} else if c == ':' && (to-2 < from || text[to-2] != ':') {
			colons--
		} else {
			break
		}
	}
	switch {
	case colons == 1 && dots == 3: // with a port
		to = from + bytes.IndexByte(text[from:to], ':')
	case colons < 2 && dots != 3, dots != 0 && dots != 3, colons > 7, colons > 1 && doubles != 1 && colons < 6:
		return 0, 0
	}
	if to <= from || !separated(text, from) || from > 0 && text[from-1] == '/' && dots == 3 && from > 1 && is(text[from-2], alnum) || !ends(text, to) {
		return 0, 0
	}
	last := to // of an IPv6 address, its IPv4 tail begins there
	for dots == 3 && last > from && text[last-1] != ':' {
		last--
	}
	v4, ok := fourNumbers(text[last:to])
	switch {
	case dots == 3 && !ok:
		return 0, 0
	case colons < 2:
		if v4[0] == 0 || v4[0] == 127 || v4[0] == 255 || saysVersion(text, from) {
			return 0, 0
		}
		return from, to
	}
	v6, ok := sixteens(text[from:last], v4[:4*dots/3])
	if !ok || isOwn(&v6) {
		return 0, 0
	}
	return from, to
}

// isOwn reports the address of IPv6 that is unspecified, or one of loopback, also as
// one of IPv4.
func isOwn(a *[16]byte) bool {
	high, low := binary.BigEndian.Uint64(a[:8]), binary.BigEndian.Uint64(a[8:])
	return high == 0 && (low <= 1 || low>>24 == 0xffff_7f)
}

// sixteens reads the groups of an address of IPv6, of up to four digits of base 16,
// in front of its IPv4 tail.
func sixteens(word, tail []byte) (a [16]byte, ok bool) {
	n, zeros := 0, -1 // bytes that are read; behind how many of them zeros are left out
	i := 0
	if len(word) > 0 && word[0] == ':' {
		if len(word) == 1 || word[1] != ':' {
			return a, false
		}
		i, zeros = 2, 0
	}
	for i < len(word) {
		group, first := 0, i
		for ; i < len(word) && word[i] != ':'; i++ {
			c := word[i]
			switch {
			case c == '.' || i-first == 4:
				return a, false
			case is(c, digit):
				group = group<<4 | int(c-'0')
			default:
				group = group<<4 | int(c|0x20-'a'+10)
			}
		}
		if i == first || n == len(a) {
			return a, false
		}
		a[n], a[n+1] = byte(group>>8), byte(group)
		n += 2
		i++ // behind the colon
		if i < len(word) && word[i] == ':' {
			if zeros >= 0 {
				return a, false
			}
			zeros = n
			i++
		}
	}
	if n+len(tail) > len(a) {
		return a, false
	}
	n += copy(a[n:], tail)
	if zeros < 0 {
		return a, n == len(a)
	}
	copy(a[len(a)-(n-zeros):], a[zeros:n])
	clear(a[zeros : len(a)-(n-zeros)])
	return a, n < len(a)
}

// fourNumbers reads an address of IPv4.
func fourNumbers(word []byte) (a [4]byte, ok bool) {
	n, number, digits := 0, 0, 0
	for _, c := range word {
		switch {
		case is(c, digit):
			if digits == 3 || digits > 0 && number == 0 {
				return a, false
			}
			number = 10*number + int(c-'0')
			digits++
			continue
		case c != '.' || digits == 0 || number > 255 || n == 3:
			return a, false
		}
		a[n] = byte(number)
		n, number, digits = n+1, 0, 0
	}
	a[3] = byte(number)
	return a, n == 3 && digits > 0 && number <= 255
}

func isIP(c byte) bool { return is(c, host) }

// saysVersion reports that what begins at i is the version of something.
func saysVersion(text []byte, i int) bool {
	before := text[max(0, i-12):i]
	for len(before) > 0 && aheadOfVersion[before[len(before)-1]] {
		before = before[:len(before)-1]
	}
	return endsSmall(before, "version") || endsSmall(before, "ver") || endsSmall(before, "release")
}

var aheadOfVersion = [256]bool{' ': true, '"': true, '\'': true, ':': true, '=': true, 'v': true, 'V': true}

// endsSmall reports that text ends in s, which is in lower case.
func endsSmall(text []byte, s string) bool {
	return len(text) >= len(s) && isSmall(text[len(text)-len(s):], s)
}
