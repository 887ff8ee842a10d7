package detect

import (
	"math"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

// finder returns a Finder.
func finder(t testing.TB, names ...string) *Finder {
	var all []Detector
	for _, name := range names {
		d, ok := ByName(name)
		if !ok {
			t.Fatalf("no detector %s", name)
		}
		all = append(all, d)
	}
	return New(all...)
}

// find returns what the detector finds in text, in order and what overlaps as one.
func find(t testing.TB, detector, text string) (values []string) {
	var places [][2]int
	finder(t, detector).Find([]byte(text), func(_, start, end int) {
		if start < 0 || end <= start || end > len(text) {
			t.Fatalf("found %d to %d in %d bytes", start, end, len(text))
		}
		places = append(places, [2]int{start, end})
	})
	slices.SortFunc(places, func(a, b [2]int) int { return a[0] - b[0] })
	last := 0
	for i := 0; i < len(places); {
		p := places[i]
		for i++; i < len(places) && places[i][0] < p[1]; i++ {
			p[1] = max(p[1], places[i][1])
		}
		if p[0] < last {
			t.Fatalf("found %v behind %d", p, last)
		}
		last = p[1]
		values = append(values, text[p[0]:p[1]])
	}
	return values
}

// The keys below are put together at run time, so that no scanner of this
// source takes them for real ones. None opens anything.
var (
	r16 = "Q3EGRIOL7PZ5TXWM"
	r36 = "a8Xk2Pq9Lm4Zs7Vt1Wy6Bn3Cd5Ef0Gh8Jk2L"
	hex = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
)

func TestFind(t *testing.T) {
	pem := "-----BEGIN RSA PRIVATE KEY-----\nMIIE\nabc=\n-----END RSA PRIVATE KEY-----"
	jwt := "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U"
	tests := []struct {
		detector, in string
		want         []string
	}{
		{"email", "write to ada@example.com, or grace.h+x@mail.example.co.uk.", []string{"ada@example.com", "grace.h+x@mail.example.co.uk"}},
		{"email", "<jürgen@müller.example>", []string{"jürgen@müller.example"}},
		{"email", `"a@b.de"`, []string{"a@b.de"}},
		{"email", "a@b.example,c@d.example", []string{"a@b.example", "c@d.example"}},
		{"email", "react@18.2.0 @scope/pkg@1.0.0 user@host git@github.com:org/repo.git @ a@ @b.com a.@b.com x@-b.com x@b..com", nil},
		{"email", strings.Repeat("@", 1000), nil},

		{"email", strings.Repeat("語", 30) + "@example.com", []string{strings.Repeat("語", 21) + "@example.com"}},

		{"credit_card", "4111111111111111", []string{"4111111111111111"}},
		{"credit_card", "card 4111 1111 1111 1111, 5500-0055-5555-5559 and 378282246310005.", []string{"4111 1111 1111 1111", "5500-0055-5555-5559", "378282246310005"}},
		{"credit_card", "3782 822463 10005", []string{"3782 822463 10005"}},
		{"credit_card", "2223003122003222 6011111111111117 30569309025904 3530111333300000", []string{"2223003122003222", "6011111111111117", "30569309025904", "3530111333300000"}},
		{"credit_card", "4111111111111112 order 1234567890123456", nil},
		{"credit_card", "id4111111111111111 4111111111111111x 14111111111111111 0.4111111111111111 4111111111111111.5 41111111111111114111111111111111", nil},
		{"credit_card", "4111-1111-1111-1111-1111 550e8400-e29b-4111-1111-111111111111", nil},
		{"credit_card", "1764000000000000 1764000000000000000", nil},

		{"secrets", "id AKIA" + r16 + ".", []string{"AKIA" + r16}},
		{"secrets", "ghp_" + r36 + " x", []string{"ghp_" + r36}},
		{"secrets", "sk_live_" + r36[:24], []string{"sk_live_" + r36[:24]}},
		{"secrets", "key=AIza" + r36[:35], []string{"AIza" + r36[:35]}},
		{"secrets", "xoxb-123456789012-" + r36[:24], []string{"xoxb-123456789012-" + r36[:24]}},
		{"secrets", "sk-ant-api03-" + r36, []string{"sk-ant-api03-" + r36}},
		{"secrets", "a " + pem + " b", []string{pem}},
		{"secrets", pem[:45], []string{pem[:45]}},
		{"secrets", "t=" + jwt + ";", []string{jwt}},
		{"secrets", "Authorization: Bearer " + r36, []string{r36}},
		{"secrets", "postgres://app:s3cr3tPw@db.internal:5432/x", []string{"s3cr3tPw"}},
		{"secrets", "http://a:1 http://" + strings.Repeat("u", 128) + ":" + strings.Repeat("s3cr3tPw", 32) + "@db http://a:2", []string{strings.Repeat("s3cr3tPw", 32)}},
		{"secrets", "DB_PASSWORD=hunter2-Xyz9 next", []string{"hunter2-Xyz9"}},
		{"secrets", `"client_secret": "a1B2c3D4e5F6"`, []string{"a1B2c3D4e5F6"}},
		{"secrets", "aws_secret_access_key = wJalrXUtnFEMIK7MDENGbPxRfiCYzzzzQQ19", []string{"wJalrXUtnFEMIK7MDENGbPxRfiCYzzzzQQ19"}},
		{"secrets", "commit " + hex[:40] + " sha256:" + hex + " 550e8400-e29b-41d4-a716-446655440000", nil},
		{"secrets", "AKIAIOSFODNN7EXAMPLE password=changeme1 api_key: ${API_KEY_1} secret=xxxxxxxx1 token: string password: required", nil},
		{"secrets", "https://example.com:8443/a@b ftp://user@host a://b:c", nil},
		{"secrets", "-----BEGIN PUBLIC KEY-----\nMIIE\n-----END PUBLIC KEY-----", nil},
		{"secrets", "[masked:secrets] password=[masked:secrets]", nil},
		{"secrets", "task-sk-something-that-is-a-slug risk-based SKILLS sk-learn", nil},
	}
	for _, tt := range tests {
		if got := find(t, tt.detector, tt.in); !slices.Equal(got, tt.want) {
			t.Errorf("%s in %q:\n got %q\nwant %q", tt.detector, tt.in, got, tt.want)
		}
	}
}

func TestUnder(t *testing.T) {
	tests := []struct {
		name, value string
		want        bool
	}{
		{"password", "hunter2-Xyz9", true},
		{"DB_PASSWORD", "hunter2-Xyz9", true},
		{"clientSecret", "a1B2c3D4e5F6", true},
		{"passwordHint", "ask your mother", false},
		{"password", "at least 8 characters", false},
		{"password", "string", false},
		{"password", "${DB_PASSWORD_1}", false},
		{"password", "[masked:secrets]", false},
		{"commit", "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b", false},
	}
	for _, tt := range tests {
		got := false
		finder(t, "secrets").Under([]byte(tt.name), []byte(tt.value), func(_, start, end int) { got = start == 0 && end == len(tt.value) })
		if got != tt.want {
			t.Errorf("%q under %q: %v, want %v", tt.value, tt.name, got, tt.want)
		}
	}
	finder(t, "email").Under([]byte("password"), []byte("hunter2-Xyz9"), func(int, int, int) { t.Error("email knows passwords") })
}

func TestDefine(t *testing.T) {
	tests := []struct {
		name string
		c    Custom
		in   string
		want []string
	}{
		{"literal", Custom{Regex: `EMP-\d{6}`}, "EMP-123456 emp-123456 EMP-12345", []string{"EMP-123456"}},
		{"group", Custom{Regex: `(?i)employee[ :=]+(\w{4})`}, "Employee: ab12", []string{"ab12"}},
		{"nothing rare", Custom{Regex: `\b\d{4}\b`}, "12345 1234", []string{"1234"}},
		{"keyword", Custom{Regex: `\b\d{4}\b`, Keywords: []string{"PIN"}}, "the pin is 1234", []string{"1234"}},
		{"no keyword", Custom{Regex: `\b\d{4}\b`, Keywords: []string{"PIN"}}, "the year is 1234", nil},
		{"keyword too far", Custom{Regex: `\b\d{4}\b`, Keywords: []string{"PIN"}}, "pin" + strings.Repeat(" ", 300) + "1234", nil},
		{"luhn holds", Custom{Regex: `N(\d{11})`, Validate: "luhn"}, "N79927398713 N79927398714", []string{"79927398713"}},
		{"mod97", Custom{Regex: `GB\d\d[A-Z]{4}\d{14}`, Validate: "mod97"}, "GB82WEST12345698765432 GB83WEST12345698765432", []string{"GB82WEST12345698765432"}},
		{"entropy", Custom{Regex: `key_\w{12}`, Validate: "entropy"}, "key_aaaaaaaaaaaa key_a8Xk2Pq9Lm4Z", []string{"key_a8Xk2Pq9Lm4Z"}},
		{"alternatives", Custom{Regex: `foo-\d+|bar-\d+`}, "foo-1 bar-22 baz-3", []string{"foo-1", "bar-22"}},
	}
	for _, tt := range tests {
		tt.c.Name = "own"
		d, err := Define(tt.c)
		if err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		var got []string
		New(d).Find([]byte(tt.in), func(_, start, end int) { got = append(got, tt.in[start:end]) })
		if !slices.Equal(got, tt.want) {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
	for name, bad := range map[string]Custom{
		"no name": {Regex: "x"}, "name": {Name: "a]", Regex: "x"}, "taken": {Name: "email", Regex: "x"}, "regex": {Name: "a", Regex: "("},
		"empty": {Name: "a", Regex: "x*"}, "validator": {Name: "a", Regex: "x", Validate: "md5"},
	} {
		if _, err := Define(bad); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// FuzzFind checks that offsets lie in order in the text (find does), and that
// no detector finds the mask of another.
func FuzzFind(f *testing.F) {
	f.Add("ada@example.com 4111 1111 1111 1111 AKIA" + r16 + " password: hunter2-Xyz9")
	f.Add("postgres://a:b@c -----BEGIN PRIVATE KEY----- Bearer eyJ")
	f.Fuzz(func(t *testing.T, text string) {
		for _, name := range Names() {
			finder(t, name).Find([]byte(text), func(_, start, end int) {
				if utf8.ValidString(text) && !utf8.ValidString(text[start:end]) {
					t.Fatalf("%s cuts a character apart in %q", name, text[start:end])
				}
			})
			find(t, name, text)
			if got := find(t, name, "[masked:"+name+"]"); got != nil {
				t.Fatalf("%s finds its own mask", name)
			}
		}
	})
}

func BenchmarkFind(b *testing.B) {
	prose := strings.Repeat("The quick brown fox jumps over the lazy dog; order 20261123, commit "+hex[:40]+".\n", 2500)
	near := map[string]string{
		"email": strings.Repeat("a@b.", 50_000), "credit_card": strings.Repeat("4111 1111 1111 1112 ", 10_000),
		"secrets": strings.Repeat("password: eyJhb://u:AKIA-----BEGIN ", 6000),
	}
	for _, name := range Names() {
		for kind, text := range map[string]string{"clean": prose, "near-hits": near[name]} {
			b.Run(name+"/"+kind, func(b *testing.B) {
				d, raw := finder(b, name), []byte(text)
				b.SetBytes(int64(len(text)))
				for b.Loop() {
					d.Find(raw, func(int, int, int) {})
				}
			})
		}
	}
}

// TestLeast checks that the shortest values are found, and that a Finder says how
// short they are.
func TestLeast(t *testing.T) {
	six, err := Define(Custom{Name: "six", Regex: `\b\d{6}\b`})
	if err != nil {
		t.Fatal(err)
	}
	const none = math.MaxInt
	for _, tt := range []struct {
		name, value  string
		text, number int
	}{
		{"credit_card", "4000000000006", 13, 13}, {"email", "a@b.cd", 6, none}, {"iban", "NO9386011117947", 15, none}, {"ip_address", "::2", 3, none},
		{"phone", "+36 123456", 10, 10}, {"secrets", "x://:b1@", 7, 7}, {"us_ssn", "123-45-6789", 9, 9}, {"six", "123456", 6, 6},
	} {
		d, ok := ByName(tt.name)
		if !ok {
			d = six
		}
		f := New(d)
		if text, number := f.Least(); text != tt.text || number != tt.number || len(tt.value) < text {
			t.Errorf("%s: at least %d bytes of text, %d of a number", tt.name, text, number)
		}
		found := false
		f.Find([]byte(tt.value), func(int, int, int) { found = true })
		if !found {
			t.Errorf("%s: %s is not found", tt.name, tt.value)
		}
	}
	if text, number := New().Least(); text != none || number != none {
		t.Errorf("no detectors: at least %d bytes of text, %d of a number", text, number)
	}
}
