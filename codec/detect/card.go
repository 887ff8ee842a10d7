package detect

// cardGroups are the ways in which card numbers are printed in groups.
var cardGroups = [][]int{{4, 4, 4, 4, 3}, {4, 4, 4, 4}, {4, 6, 5}, {4, 6, 4}}

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
	var digits [19]byte
	if n := end - start; n >= 13 && n <= 19 {
		copy(digits[:], text[start:end])
		if isCard(digits[:n]) && ends(text, end) {
			return end
		}
		return 0
	}
	if end-start != 4 || end == len(text) || text[end] != ' ' && text[end] != '-' {
		return 0
	}
	for _, groups := range cardGroups {
		at, n := start, 0
		for g, size := range groups {
			if g > 0 {
				if at == len(text) || text[at] != text[end] {
					n = 0
					break
				}
				at++
			}
			if run(text, at, size+1, digit) != at+size {
				n = 0
				break
			}
			n += copy(digits[n:], text[at:at+size])
			at += size
		}
		if n > 0 && isCard(digits[:n]) && ends(text, at) && !(at+1 < len(text) && text[at] == '-' && is(text[at+1], digit)) {
			return at
		}
	}
	return 0
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
	prefix := func(n int) (p int) {
		for _, c := range d[:n] {
			p = p*10 + int(c-'0')
		}
		return p
	}
	between := func(p, low, high int) bool { return p >= low && p <= high }
	n := len(d)
	two, three, four, six := prefix(2), prefix(3), prefix(4), prefix(6)
	var known bool
	switch {
	case d[0] == '4': // Visa
		known = n == 13 || n == 16 || n == 19
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
	for i := range d {
		v := int(d[len(d)-1-i] - '0')
		if i%2 == 1 {
			if v *= 2; v > 9 {
				v -= 9
			}
		}
		sum += v
	}
	return sum%10 == 0
}
