package codec_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/bytedance/sonic"
	"github.com/pelletier/go-toml/v2"
	"github.com/wasilibs/go-re2"
	gitleaks "github.com/zricethezav/gitleaks/v8/config"

	"example.com/broker/codec"
	"example.com/broker/codec/detect"
)

// What the benchmarks run on is made here: text as servers answer with it, in
// which nothing is to be found.
const clean = `The quick brown fox jumps over the lazy dog, and the release of 2026-11-23 went out at 14:05 without trouble.
func (s *Server) Handle(ctx context.Context, r *Request) error { return s.next.Handle(ctx, r) }
2026-11-23T14:05:09.123Z INFO request done method=GET path=/v1/items/4711 status=200 took=12ms bytes=2048
commit 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b merges 17 files, 240 lines; see pkg/stream/carrier.go:118
| id | name | quantity | price | shipped | Widgets of the second kind are kept on the upper floor.
"version": "1.42.0", "resolved": "left-pad", "integrity": "sha512-ab", "dependencies": {"once": "^1.4.0"}
Access to the archive is by the west door; a token of thanks, and the key to it all, is patience.
`

// textFrame is a frame of about that size whose result is one text, escaped.
func textFrame(size int, text string) []byte {
	for len(text) < size {
		text += text
	}
	quoted, err := json.Marshal(text[:max(size-100, 20)])
	if err != nil {
		panic(err)
	}
	return answer(`{"content":[{"type":"text","text":` + string(quoted) + `}]}`)
}

// answer is a frame with that result. The line has room behind it, as a Reader's has.
func answer(result string) []byte {
	return append(make([]byte, 0, len(result)+100), `{"jsonrpc":"2.0","id":17,"result":`+result+`}`...)
}

// rowFrame is a frame of about that size whose result is rows of a table.
func rowFrame(size int) []byte {
	var b bytes.Buffer
	for i := 0; b.Len() < size-100; i++ {
		fmt.Fprintf(&b, `{"id":%d,"name":"Widget %d","kind":"spare part","active":%t,"price":%d.%02d,"parent":null,"note":"upper floor, shelf %d"},`, i, i*7, i%3 == 0, i%90, i%100, i%12)
	}
	return answer(`{"structuredContent":{"rows":[` + strings.TrimSuffix(b.String(), ",") + `]}}`)
}

func parsed(b *testing.B, line []byte) *codec.Frame {
	var p codec.Parser
	f, err := p.Parse(line, codec.S2C)
	if err != nil {
		b.Fatal(err)
	}
	return f
}

// ratio reports how many times faster work is than base, which does the same
// work on size bytes where work does it on n; both were measured just now.
func ratio(b *testing.B, name string, work func(), n int, base func(), size int) {
	// Other work on the machine comes and goes: the two take turns, and of each the
	// best counts.
	best := [2]time.Duration{1 << 62, 1 << 62}
	for range 20 {
		for i, f := range []func(){work, base} {
			start, runs := time.Now(), 0
			for ; runs == 0 || time.Since(start) < 4*time.Millisecond; runs++ {
				f()
			}
			best[i] = min(best[i], time.Since(start)/time.Duration(runs))
		}
	}
	b.ReportMetric(float64(n)/best[0].Seconds()/(float64(size)/best[1].Seconds()), name)
}

func BenchmarkParse(b *testing.B) {
	for _, tt := range []struct {
		name string
		line []byte
	}{
		{"text-200B", textFrame(200, clean)}, {"text-4KB", textFrame(4<<10, clean)}, {"text-256KB", textFrame(256<<10, clean)},
		{"rows-4KB", rowFrame(4 << 10)}, {"rows-256KB", rowFrame(256 << 10)},
		{"umlauts-256KB", textFrame(256<<10, "Äpfel und Öl über Gießen, 東京の夜。 ")},
	} {
		b.Run(tt.name, func(b *testing.B) {
			var p codec.Parser
			work := func() { p.Parse(tt.line, codec.S2C) }
			b.ReportAllocs()
			b.SetBytes(int64(len(tt.line)))
			for b.Loop() {
				work()
			}
			b.StopTimer()
			n := len(tt.line)
			ratio(b, "×json.Valid", work, n, func() { json.Valid(tt.line) }, n)
			ratio(b, "×sonic.Valid", work, n, func() { sonic.Valid(tt.line) }, n)
		})
	}
}

// BenchmarkTraffic is of the captured traffic, frame by frame.
func BenchmarkTraffic(b *testing.B) {
	type one struct {
		d    codec.Direction
		line []byte
	}
	var all []one
	size := 0
	traffic(b, func(_ string, d codec.Direction, line []byte) {
		all = append(all, one{d, bytes.Clone(line)})
		size += len(line)
	})
	var p codec.Parser
	m := newMasker(detect.Names()...)
	var out []byte
	valid := func() {
		for _, f := range all {
			json.Valid(f.line)
		}
	}
	for name, work := range map[string]func(){
		"parse": func() {
			for _, f := range all {
				p.Parse(f.line, f.d)
			}
		},
		"mask": func() {
			for _, f := range all {
				if frame, err := p.Parse(f.line, f.d); err == nil && f.d == codec.S2C {
					out, _ = m.Mask(out[:0], frame)
				}
			}
		},
	} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(size))
			for b.Loop() {
				work()
			}
			b.StopTimer()
			ratio(b, "×json.Valid", work, size, valid, size)
		})
	}
}

// patterns are the expressions of gitleaks, which a text is searched for by one
// alternation of all.
func patterns() string {
	var file struct{ Rules []struct{ Regex string } }
	if err := toml.Unmarshal([]byte(gitleaks.DefaultConfig), &file); err != nil {
		panic(err)
	}
	var all []string
	for _, r := range file.Rules {
		if r.Regex != "" {
			all = append(all, "(?:"+regexp.MustCompile(`\(\?P<\w+>`).ReplaceAllString(r.Regex, "(")+")")
		}
	}
	return strings.Join(all, "|")
}

// BenchmarkMask has all detectors on.
func BenchmarkMask(b *testing.B) {
	key := "AKIA" + "Q3EGRIOL7PZ5TXWM"
	found := strings.Repeat(clean, 100<<10/len(clean)) + key + " ada@example.com\n"
	var rows []string
	for i := range 1500 {
		rows = append(rows, fmt.Sprintf(`{"id":%d,"name":"Widget %d","kind":"spare \"part\"","price":%d.5,"note":"upper floor,\nshelf %d","at":"2026-11-23T14:05:09Z"}`, i, i*7, i%90, i%12))
	}
	nested := "[" + strings.Join(rows, ",\n ") + "]"
	near := func(s string) []byte { return textFrame(256<<10, strings.Repeat(s, 1+4096/len(s))) }
	all := regexp.MustCompile(patterns())
	set := re2.MustCompile(patterns())
	for _, tt := range []struct {
		name  string
		line  []byte
		finds bool
	}{
		{"clean", textFrame(256<<10, strings.Repeat(clean, 400)), false},
		{"a-finding-every-100KB", textFrame(256<<10, found+found+found), true},
		{"nested", answer(`{"content":[{"type":"text","text":` + string(must(json.Marshal(nested))) + `}]}`), false},
		{"rows", rowFrame(256 << 10), false},
		{"near-keys", near("key token api secret = "), false},
		{"near-values", near("password: hunter api_key=12345 "), false},
		{"near-cards", near("4111 1111 1111 1112 "), false},
		{"near-emails", near("a@b.c@d."), false},
		{"near-addresses", near("1.2.3.::DE44 +1 "), false},
		{"near-tokens", near("ghp_AKIAxoxb-eyJ-----BEGIN sk-ant-s.SK"), false},
		{"all-found", near("ada@example.com 4111111111111111 "), true},
	} {
		b.Run(tt.name, func(b *testing.B) {
			f := parsed(b, tt.line)
			m := newMasker(detect.Names()...)
			var out []byte
			var findings []codec.Finding
			work := func() { out, findings = m.Mask(out[:0], f) }
			b.ReportAllocs()
			b.SetBytes(int64(len(tt.line)))
			for b.Loop() {
				work()
			}
			b.StopTimer()
			if (len(findings) > 0) != tt.finds {
				b.Fatalf("%d findings: %v", len(findings), findings[:min(len(findings), 3)])
			}
			ratio(b, "×json.Valid", work, len(tt.line), func() { json.Valid(tt.line) }, len(tt.line))
			if tt.name == "clean" {
				some := tt.line[:16<<10]
				ratio(b, "×re2", work, len(tt.line), func() { set.FindAllIndex(tt.line, -1) }, len(tt.line))
				ratio(b, "×regexp", work, len(tt.line), func() { all.FindAllIndex(some, -1) }, len(some))
			}
		})
	}
}

// worstSize is how long what is made to be slow is, in bytes, about.
const worstSize = 256 << 10

// BenchmarkMaskWorst is of texts that are made to be slow: of what begins a value,
// over and over, and of values that are none in the end; and of JSON with much in it
// to decide and little to read.
func BenchmarkMaskWorst(b *testing.B) {
	for _, tt := range []struct{ name, text string }{
		{"digits", "1234567890"}, {"digits-apart", "1 22 333 4444 "}, {"signs", "@"}, {"colons", "::"}, {"base-16", "1:a:"},
		{"versions", "1.2.3."}, {"base64", "kD3/x+Zq8SKAb0eyJT7"}, {"eyJ", "eyJ"},
		{"two-thirds-of-a-token", "eyJhbGciOiJIUzI1NiJ9.eyJhbGciOiJIUzI1NiJ9 "}, {"dashes", "-"},
		{"name-and-blanks", "password" + strings.Repeat(" ", 24)}, {"name-and-mark", "key="},
		{"names-in-a-value", strings.Repeat("key=", 40) + " "}, {"names-in-quotes", `"secret": "`},
		{"same-values", "token=aaaaaaaaaaaaaaaaaaaaaaaa "}, {"words-as-values", "access_key = correct.horse.battery "},
		{"prefixes", "sk-ant-ghp_hf_xoxb-AKIA"}, {"unended", "ABSKm+h+"}, {"users-in-urls", "http://a:"},
		{"options", "--user=1:"}, {"elements", `<add key="password"value="1bb 1abbbbaa"/`},
		{"keywords", "adafruit asana bitbucket discord "}, {"names-as-values", "key=auth=creds="},
		{"short-keys-allowed", "key=q7Zx9Lm2Padd- "}, {"digests", "key=d41d8cd98f00b204e9800998ecf8427e "}, {"groups", "4111 "},
		{"numbers-of-accounts", "DE89370400440532013001 "}, {"codes-of-countries", "DE89 "}, {"pluses", "+44 20 7"},
		{"nine-digits", "ssn123456789 "}, {"domains", "a@" + strings.Repeat("b.", 120) + " "},
		{"marks", "[masked:secrets]key="}, {"control", "\x01"}, {"quotes", `"`},
	} {
		worst(b, tt.name, worstText(tt.text), false)
	}
	nested := `["a"]`
	for range 16 {
		nested = "[" + string(must(json.Marshal(nested))) + "]"
	}
	for _, tt := range []struct{ name, member string }{
		{"empty-strings", `""`}, {"short-strings", `"ab"`}, {"short-numbers", `1`}, {"empty-objects", `{}`},
		{"short-members", `{"a":1}`}, {"escapes", `"\u0041\u0062\u0031"`}, {"escaped-names", `{"\u0061b":"c"}`},
		{"exponents", `1e5`}, {"json-in-strings", `"[1]"`}, {"nearly-json-in-strings", `"[1"`},
		{"strings-in-strings", `"\"a\""`}, {"layers", nested}, {"images", `{"type":"image","data":"YUBiLmNk"}`},
	} {
		worst(b, tt.name, worstMembers(tt.member), false)
		if tt.member[0] == '"' && !strings.Contains(tt.member, `\`) {
			worst(b, tt.name+"-that-differ", worstDiffering(tt.member), false)
		}
	}
	worst(b, "near-addresses-that-differ", worstDiffering(`"a@b.cd"`), false)
	deep := strings.Repeat("[", 100) + strings.Repeat("]", 100)
	worst(b, "deep", answer(`{"structuredContent":[`+strings.TrimSuffix(strings.Repeat(deep+",", worstSize/len(deep)), ",")+`]}`), false)
	long := "[" + strings.Repeat(`"key=",`, worstSize/10)
	worst(b, "json-that-breaks-off", answer(`{"content":[{"type":"text","text":`+string(must(json.Marshal(long)))+`}]}`), false)
}

// BenchmarkMaskFound is of nothing but values that are found, one behind the other: each
// is judged, replaced and noted, and what is masked is looked at again.
func BenchmarkMaskFound(b *testing.B) {
	for _, tt := range []struct{ name, text string }{
		{"addresses-in-urls", "/a@b.cd"}, {"open-keys", "-----BEGIN PRIVATE KEY-----a-b-c-"},
		{"tokens", "glft-7J93w--__50_5__B_L_a "}, {"keys-found", "SNYK_TOKEN = aff5Ef0e-AF7b-0DA5-E8a3-D0ECfEdf7A8f "},
		{"short-keys-found", "key=q7Zx9Lm2Pw4a "}, {"passwords-found", "pwd=a1b2c3d4 "}, {"passwords-in-urls", "x://a:b1@"},
		{"bearers", "basic kD3x+Zq8SKAb0eyJT "}, {"cards", "4111111111111111 "}, {"cards-in-groups", "4111 1111 1111 1111 "},
		{"telephones", "+442079460958 "}, {"security-numbers", "123-45-6789 "}, {"addresses", "a@b.cd "},
		{"addresses-of-ipv4", "1.2.3.4 "}, {"addresses-of-ipv6", "a::1 "}, {"umlauts", "ä@ö.de "},
	} {
		worst(b, tt.name, worstText(tt.text), true)
	}
	for _, tt := range []struct{ name, member string }{
		{"addresses-in-strings", `"a@b.cd"`}, {"addresses-as-names", `{"a@b.cd":1}`}, {"cards-as-numbers", `4111111111111111`},
		{"names-of-secrets", `{"key":"q7Zx9Lm2Pw4a"}`}, {"blobs", `{"mimeType":"text/plain","blob":"YUBiLmNk"}`},
	} {
		worst(b, tt.name, worstMembers(tt.member), true)
	}
	var names strings.Builder
	for i := range 14_000 {
		fmt.Fprintf(&names, `"a%d@b.cd":1,`, i)
	}
	worst(b, "names", answer(`{"structuredContent":{`+strings.TrimSuffix(names.String(), ",")+`}}`), true)
}

// worst masks line, in which every detector together finds something, or nothing to
// speak of.
func worst(b *testing.B, name string, line []byte, finds bool) {
	b.Run(name, func(b *testing.B) {
		f := parsed(b, line)
		m := newMasker(detect.Names()...)
		var out []byte
		found := 0
		work := func() {
			var findings []codec.Finding
			out, findings = m.Mask(out[:0], f)
			found = len(findings)
		}
		b.SetBytes(int64(len(line)))
		for b.Loop() {
			work()
		}
		b.StopTimer()
		if finds != (found > len(line)/100) {
			b.Fatalf("%d findings", found)
		}
		if finds {
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(found), "ns/finding")
		}
		ratio(b, "×json.Valid", work, len(line), func() { json.Valid(line) }, len(line))
	})
}

func worstText(text string) []byte {
	return textFrame(worstSize, strings.Repeat(text, 1+4096/len(text)))
}

func worstMembers(member string) []byte {
	n := worstSize / (len(member) + 1)
	return answer(`{"structuredContent":{"all":[` + strings.Repeat(member+",", n) + member + `]}}`)
}

func worstDiffering(member string) []byte {
	return answer(`{"structuredContent":{"all":[` + differing(member, worstSize/(len(member)+1)) + `]}}`)
}

// differing returns n strings like member, each with another number in it.
func differing(member string, n int) string {
	var all []byte
	for i := range n {
		all = fmt.Appendf(all, "%s%d\",", member[:len(member)-1], i)
	}
	return string(all[:len(all)-1])
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
