package codec

import "bytes"

// num looks at the number m.b[start:end].
func (m *Masker) num(start, end int, p *place) {
	raw := m.b[start:end]
	if p.field {
		if string(raw) != "0" {
			m.field(start, end, number)
		}
		return
	}
	if !p.hidden && m.hints.none(p.begin(start), end) {
		return
	}
	base := len(m.spans)
	if len(raw) >= m.least.number {
		m.find(raw, p.name)
	}
	if len(m.spans) == base {
		kept := len(m.scratch)
		if m.scratch = appendInteger(m.scratch, raw); len(m.scratch)-kept >= m.least.number {
			m.find(m.scratch[kept:], p.name)
		}
		m.scratch = m.scratch[:kept]
	}
	if len(m.spans) > base && string(raw) != "0" {
		m.spans[base] = span{start: start, end: end, detector: m.spans[base].detector, kind: number}
		base++
	}
	m.spans = m.spans[:base]
}

// maxDigits is more than anything that is looked for as a number has.
const maxDigits = 40

// appendInteger appends an integer that is written with a fraction or an exponent
// as its digits: the client reads 4.111e3 as 4111.
func appendInteger(dst, raw []byte) []byte {
	if len(raw) > maxDigits || raw[0] == '-' {
		return dst
	}
	n := 0
	for n < len(raw) && raw[n] <= '9' && raw[n] >= '0' {
		n++
	}
	if n == len(raw) {
		return dst
	}
	for n < len(raw) && raw[n]|0x20 != 'e' {
		n++
	}
	mantissa, exp := raw[:n], 0
	if n < len(raw) {
		for _, c := range raw[n+1:] {
			if c == '+' || c == '-' {
				continue
			}
			if exp = 10*exp + int(c-'0'); exp > maxDigits {
				return dst
			}
		}
		if raw[n+1] == '-' {
			exp = -exp
		}
	}
	whole, fraction, _ := bytes.Cut(mantissa, []byte("."))
	fraction = bytes.TrimRight(fraction, "0")
	at := len(dst)
	dst = append(append(dst, whole...), fraction...)
	for exp -= len(fraction); exp > 0; exp-- {
		dst = append(dst, '0')
	}
	for ; exp < 0; exp++ {
		if len(dst) == at || dst[len(dst)-1] != '0' { // no integer
			return dst[:at]
		}
		dst = dst[:len(dst)-1]
	}
	return dst
}
