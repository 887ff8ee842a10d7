package detect

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func TestPersonal(t *testing.T) {
	tests := []struct {
		detector, in string
		want         []string
	}{
		{"email", "icon@2x.png logo@large.svg a@b.de", []string{"a@b.de"}},
		{"email", "mailto:user+tag@sub.example.co.uk, δοκιμή@παράδειγμα.δοκιμή x@xn--bcher-kva.example", []string{"user+tag@sub.example.co.uk", "δοκιμή@παράδειγμα.δοκιμή", "x@xn--bcher-kva.example"}},

		{"us_ssn", "123-45-6789", []string{"123-45-6789"}},
		{"us_ssn", "SSN: 123 45 6789 and ssn=123456789", []string{"123 45 6789", "123456789"}},
		{"us_ssn", "social security number 123456789.", []string{"123456789"}},
		{"us_ssn", "123 45 6789 123456789 000-12-3456 666-12-3456 900-12-3456 123-00-4567 123-45-0000", nil},
		{"us_ssn", "1123-45-6789 123-45-67890 2026-123-45-6789 123-45-6789-1 a123-45-6789 123-45/6789 555-1234-567 123-45-6789.5", nil},

		{"iban", "DE89370400440532013000", []string{"DE89370400440532013000"}},
		{"iban", "GB82 WEST 1234 5698 7654 32, FR1420041010050500013M02606", []string{"GB82 WEST 1234 5698 7654 32", "FR1420041010050500013M02606"}},
		{"iban", "NO9386011117947 de89370400440532013000 MT84MALT011000012345MTLCAST001S", []string{"NO9386011117947", "de89370400440532013000", "MT84MALT011000012345MTLCAST001S"}},
		{"iban", "DE88370400440532013000 XX89370400440532013000 DE8937040044053201300 DE893704004405320130000 xDE89370400440532013000", nil},
		{"iban", "DE44 DE44 IT12 ES2026 a1b2c3d4e5f60718293a", nil},

		{"phone", "+1 (212) 555-0123", []string{"+1 (212) 555-0123"}},
		{"phone", "tel:+442079460958, +44 20 7946 0958; +49 30 901820 or +33.1.23.45.67.89", []string{"+442079460958", "+44 20 7946 0958", "+49 30 901820", "+33.1.23.45.67.89"}},
		{"phone", "+12125550123 +7 495 123-45-67 +353 1 234 5678", []string{"+12125550123", "+7 495 123-45-67", "+353 1 234 5678"}},
		{"phone", "a+1234567890 1+12125550123 2026-01-01T00:00:00+02:00 +0200 +123 C++11 1.2.3+20240101 +999 1234 5678 +1 012 555 0123 ++442079460958", nil},
		{"phone", "@@ -1,5 +1,7 @@ +1000000 +20240101 x=(a)+441234567890", nil},

		{"ip_address", "from 192.168.10.20 to 203.0.113.7:8443, [2001:db8::1]:443 and fe80::1%eth0", []string{"192.168.10.20", "203.0.113.7", "2001:db8::1", "fe80::1"}},
		{"ip_address", "::ffff:203.0.113.7 10.0.0.0/8", []string{"::ffff:203.0.113.7", "10.0.0.0"}},
		{"ip_address", "1.2.3 1.2.3.4.5 v1.2.3.4 version 1.2.3.4 256.1.1.1 01.2.3.4 127.0.0.1 0.0.0.0 255.255.255.0 ::1 :: 12:34:56 std::abs a::b 00:1a:2b:3c:4d:5e 1.2.3.4-beta", nil},
	}
	for _, tt := range tests {
		if got := find(t, tt.detector, tt.in); !slices.Equal(got, tt.want) {
			t.Errorf("%s in %q:\n got %q\nwant %q", tt.detector, tt.in, got, tt.want)
		}
	}
}

// TestAddresses checks that addresses of hosts are read as net/netip reads them.
func TestAddresses(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	pieces := []string{"0", "1", "10", "255", "256", "01", "fe80", "ffff", "a", "B", "12345", ":", ":", ":", "::", ".", ".", "1.2.3.4", "::ffff:", "0:0:0:", "1:2:3:4:", "127."}
	good := 0
	for range 400_000 {
		word := ""
		for range 1 + r.IntN(9) {
			word += pieces[r.IntN(len(pieces))]
		}
		want, err := netip.ParseAddr(word)
		last := 0
		if colon := strings.LastIndexByte(word, ':'); colon >= 0 {
			last = len(word)
			if strings.Contains(word[colon:], ".") {
				last = colon + 1
			}
		}
		v4, ok := fourNumbers([]byte(word[last:]))
		got := netip.AddrFrom4(v4)
		if last > 0 {
			var v6 [16]byte
			tail := v4[:]
			if last == len(word) {
				tail, ok = nil, word[last-1] != ':' || strings.HasSuffix(word, "::") // ip cuts off the last one
			}
			if ok {
				v6, ok = sixteens([]byte(word[:last]), tail)
			}
			got = netip.AddrFrom16(v6)
			if ok && isOwn(&v6) != (want.IsUnspecified() || want.IsLoopback()) {
				t.Fatalf("%s: the host's own: %t", word, isOwn(&v6))
			}
		}
		if ok != (err == nil) || ok && got != want {
			t.Fatalf("%s: got %v, %t, want %v, %v", word, got, ok, want, err)
		}
		if ok {
			good++
		}
	}
	if good < 1000 {
		t.Errorf("only %d are addresses", good)
	}
}

// FuzzAlone checks that what stands around a text with blanks between does not
// matter, and that what is found satisfies the checksum of its kind.
func FuzzAlone(f *testing.F) {
	f.Add("DE89370400440532013000 4111 1111 1111 1111 +44 20 7946 0958")
	f.Add("ada@example.com 123-45-6789 203.0.113.7 fe80::1")
	around := strings.Repeat("The quick brown fox. ", 40)
	f.Fuzz(func(t *testing.T, text string) {
		for _, d := range []string{"credit_card", "email", "iban", "phone", "us_ssn"} {
			got := find(t, d, text)
			if d == "us_ssn" && strings.Contains(strings.ToLower(text), "s") { // its context
				continue
			}
			if framed := find(t, d, around+" "+text+" . "+around); !slices.Equal(got, framed) && !continues(text) {
				t.Fatalf("%s: %q alone, %q in other text", d, got, framed)
			}
			for _, v := range got {
				switch d {
				case "credit_card":
					if !luhn(digitsOf([]byte(v))) {
						t.Fatalf("%s does not check", v)
					}
				case "iban":
					if !mod97([]byte(v)) {
						t.Fatalf("%s does not check", v)
					}
				}
			}
		}
	})
}

// TestLuhn checks that the check digit of groups of four is that of their digits.
func TestLuhn(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	good := 0
	for range 10_000 {
		var digits, groups []byte
		for i := range 16 {
			if i > 0 && i%4 == 0 {
				groups = append(groups, '-')
			}
			digits = append(digits, '0'+byte(r.IntN(10)))
			groups = append(groups, digits[i])
		}
		want := luhn(digits)
		if luhnOf(eightOf(groups)) != want {
			t.Fatalf("%s: want %v", groups, want)
		}
		if want {
			good++
		}
	}
	if good < 500 || good > 2000 {
		t.Errorf("of 10,000 numbers %d have a good check digit", good)
	}
}

// continues reports a text that ends or begins in what may go on.
func continues(text string) bool {
	return strings.Trim(text, " ()-./'") != text || strings.ToValidUTF8(text, "") != text
}
