package detect

import "encoding/binary"

// card finds payment card numbers: 13 to 19 digits in one run, or in
// groups with one kind of separator, with a known issuer's prefix and length
// and a good check digit. Digits within a longer run, a word, a UUID or a
// decimal are none.
func card(text []byte, start, end int) (from, to int) {
	if end-start != 4 && end-start < 13 || text[start] < '2' || text[start] > '6' || !separated(text, start) {
		return 0, 0
	}
	if to = cardEnd(text, start, end); to == 0 {
		return 0, 0
	}
	return start, to
}

// cardEnd returns the offset behind the card number whose first run of digits is
// text[start:end], or 0.
func cardEnd(text []byte, start, end int) int {
	if n := end - start; n >= 13 && n <= 19 {
		if isCard(text[start:end]) && ends(text, end) {
			return end
		}
		return 0
	}
	if end-start != 4 || end == len(text) || text[end] != ' ' && text[end] != '-' {
		return 0
	}
	// They are printed as 4 4 4 4 3, 4 4 4 4, 4 6 5 and 4 6 4.
	if to := cardGroup(text, end, end, 4); to > 0 {
		if to = cardGroup(text, end, to, 4); to == 0 {
			return 0
		}
		if to = cardGroup(text, end, to, 4); to == 0 {
			return 0
		}
		if longer := cardGroup(text, end, to, 3); longer > 0 && isCardIn(text, start, longer) {
			return longer
		}
		if isCardIn(text, start, to) {
			return to
		}
	} else if six := cardGroup(text, end, end, 6); six > 0 {
		to := cardGroup(text, end, six, 5)
		if to == 0 {
			to = cardGroup(text, end, six, 4)
		}
		if to > 0 && isCardIn(text, start, to) {
			return to
		}
	}
	return 0
}

// cardGroup returns the offset behind the group of n digits that follows at i, behind
// the same separator as at mark, or 0.
func cardGroup(text []byte, mark, i, n int) int {
	to := i + 1 + n
	if to > len(text) || text[i] != text[mark] || to < len(text) && is(text[to], digit) {
		return 0
	}
	for _, c := range text[i+1 : to] {
		if !is(c, digit) {
			return 0
		}
	}
	return to
}

// isCardIn reports that the groups in text[start:end] are a card number, and that it
// goes no further.
func isCardIn(text []byte, start, end int) bool {
	if !ends(text, end) || end+1 < len(text) && text[end] == '-' && is(text[end+1], digit) {
		return false
	}
	if end-start == len("4111 1111 1111 1111") && !luhnOf(eightOf(text[start:])) {
		return false
	}
	var digits [20]byte // of them, and what takes the separator's place for a moment
	n := 0
	for _, c := range text[start:end] {
		digits[n] = c
		if c >= '0' {
			n++
		}
	}
	return isCard(digits[:n])
}

// ends reports that no word or decimal goes on at i.
func ends(text []byte, i int) bool {
	if i == len(text) {
		return true
	}
	if text[i] == '.' || text[i] == '-' {
		return i+1 == len(text) || !is(text[i+1], word)
	}
	return !is(text[i], word)
}

// isCard checks issuer, length and Luhn's check digit (ISO/IEC 7812-1, Annex
// B). One number in ten passes Luhn: the prefix decides, too.
func isCard(d []byte) bool {
	n := len(d)
	if d[0] == '4' { // Visa
		return (n == 13 || n == 16 || n == 19) && luhn(d)
	}
	six := 0
	for _, c := range d[:6] {
		six = six*10 + int(c-'0')
	}
	between := func(p, low, high int) bool { return p >= low && p <= high }
	two, three, four := six/10_000, six/1000, six/100
	var known bool
	switch {
	case between(two, 51, 55), between(four, 2221, 2720): // Mastercard
		known = n == 16
	case two == 34, two == 37: // American Express
		known = n == 15
	case four == 6011, two == 65, between(three, 644, 649), between(six, 622126, 622925): // Discover
		known = n == 16 || n == 19
	case two == 62: // UnionPay
		known = n >= 16
	case between(three, 300, 305), two == 36, two == 38, two == 39: // Diners Club
		known = n == 14 || n == 16
	case between(four, 3528, 3589): // JCB
		known = n >= 16
	case four == 5018, four == 5020, four == 5038, four == 5893, four == 6304, four == 6759, between(four, 6761, 6763): // Maestro
		known = n >= 16
	}
	return known && luhn(d)
}

func luhn(d []byte) bool {
	sum := 0
	i := len(d) - 1
	for ; i > 0; i -= 2 {
		sum += int(d[i]-'0') + int(doubled[d[i-1]-'0'])
	}
	if i == 0 {
		sum += int(d[0] - '0')
	}
	return sum%10 == 0
}

// eightOf returns the digits of the first two groups of four in text, and of the next two.
func eightOf(text []byte) (first, last uint64) {
	four := func(i int) uint64 { return uint64(binary.LittleEndian.Uint32(text[i:])) }
	return four(0) | four(5)<<32, four(10) | four(15)<<32
}

// luhnOf is luhn of sixteen digits, eight in each of both.
func luhnOf(first, last uint64) bool {
	sum := uint64(0) // four of them
	for _, eight := range [2]uint64{first, last} {
		const each = 0x000f000f000f000f
		twice := eight & each * 2
		above := (twice + 6*0x0001000100010001) >> 4 & 0x0001000100010001 // of what has two digits
		sum += twice - 9*above + eight>>8&each
	}
	return sum*0x0001000100010001>>48%10 == 0
}

// doubled is the sum of the digits of twice a digit.
var doubled = [10]byte{0, 2, 4, 6, 8, 1, 3, 5, 7, 9}
