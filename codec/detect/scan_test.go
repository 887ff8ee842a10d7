package detect

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// TestClassify checks the rows of a text against its bytes.
func TestClassify(t *testing.T) {
	if !vector {
		t.Skip("no vectors")
	}
	r := rand.New(rand.NewPCG(1, 2))
	is := [rows]func(c byte) bool{
		rowDigit: func(c byte) bool { return is(c, digit) }, rowLetter: func(c byte) bool { return is(c, upper|lower) },
		rowAt: func(c byte) bool { return c == '@' }, rowPlus: func(c byte) bool { return c == '+' }, rowColon: func(c byte) bool { return c == ':' },
		rowDot: func(c byte) bool { return c == '.' }, rowGap: func(c byte) bool { return c == ' ' || c == '-' },
	}
	for _, n := range []int{1, 63, 64, 65, chunk - 1, chunk, chunk + 1, chunk + 64, 3*chunk + 100} {
		text := make([]byte, n)
		for i := range text {
			text[i] = byte(r.IntN(256))
		}
		var c classified
		for at := 0; at < n; at += chunk {
			c.scan(text, at)
			for k := range c {
				for bit := range 8 * rowSize {
					i := at + bit - blockSize
					want := i >= 0 && i < n && is[k](text[i])
					if got := c[k][bit/8]>>(bit%8)&1 == 1; got != want {
						t.Fatalf("row %d of %d bytes: %v at %d", k, n, got, i)
					}
				}
			}
		}
	}
}

// FuzzScan checks that a long text is found the same things in with vectors as without.
func FuzzScan(f *testing.F) {
	if !vector {
		f.Skip("no vectors")
	}
	defer func() { vector = true }()
	f.Add("4111 1111 1111 1111 2001:db8::1 10.0.3.4", "123-45-6789 ada@example.com", uint16(5))
	f.Add("+44 20 7946 0958 DE89370400440532013000", "AKIA"+r16+" SK0123456789abcdef0123456789abcdef", uint16(4090))
	f.Add("ssn 123456789 ", "::ffff:203.0.113.7 a:b:c:d:e:f:1:2 d8FB:A::", uint16(62))
	custom, err := Define(Custom{Name: "own", Regex: `EMP-\d{6}|Q~\w|x[a-z]{2}\d`})
	if err != nil {
		f.Fatal(err)
	}
	all := []Detector{custom}
	for _, name := range Names() {
		d, _ := ByName(name)
		all = append(all, d)
	}
	finder := New(all...)
	f.Fuzz(func(t *testing.T, a, b string, gap uint16) {
		text := []byte(a + strings.Repeat("- word", int(gap)/6) + strings.Repeat(".", int(gap)%6) + b)
		for len(text) < longText {
			text = append(text, ". "+a+b...)
		}
		find := func(vectors bool) (all [][3]int) {
			vector = vectors
			finder.Find(text, func(detector, start, end int) { all = append(all, [3]int{detector, start, end}) })
			slices.SortFunc(all, func(a, b [3]int) int { return slices.Compare(a[:], b[:]) })
			return all
		}
		if with, without := find(true), find(false); !slices.Equal(with, without) {
			t.Fatalf("%v with vectors, %v without, in %q", with, without, text)
		}
	})
}
