package codec_test

import (
	"encoding/json"
	"strings"
)

// A maker makes JSON of what a fuzzer gives it: bytes that are changed at random
// are seldom JSON, and hardly ever have something in them that can be found.
type maker struct {
	in   []byte
	left int // values that may still be made
}

func made(in []byte) string {
	g := &maker{in, 60}
	return g.value(0)
}

func (g *maker) pick(n int) int {
	if len(g.in) == 0 {
		return 0
	}
	c := g.in[0]
	g.in = g.in[1:]
	return int(c) % n
}

var (
	scalars  = []string{"0", "4111111111111111", "-1.5e3", "true", "null", "false", "4.111111111111111e15", "123456789", "12"}
	snippets = []string{
		"", "ada@example.com", "lorem ipsum ", "4111 1111 1111 1111", "password=hunter2-Xyz9 ", "é東", "\U0001f600", "\x00\x1f", `"`, `\`, "\n",
		"[masked:email]", "AKIAQ3EGRIOL7PZ5TXWM", "{", "[1,", `{"a":1}`, " ", "+44 20 7946 0958", "postgres://a:s3cr3tPw@db ", strings.Repeat("abc def ", 20),
		"DE89370400440532013000", "123-45-6789", "-----BEGIN PRIVATE KEY-----", strings.Repeat("9", 40), "a8Xk2Pq9Lm4Zs7Vt1Wy6", "key: ", "\u2028<>&", ",", "}]",
	}
	names = []string{"a", "data", "blob", "type", "mimeType", "text", "password", "api_key", "rows", "n", "c", "nextCursor", "_meta", "ada@example.com", "x@y.zz", "[masked:email]", "[masked:email 2]", "ssn", "twitter_key", "progressToken"}
	kinds = []string{"image", "image/png", "text/plain", "application/json", "resource"}
)

func (g *maker) value(depth int) string {
	if g.left--; g.left < 0 || depth > 12 {
		return "1"
	}
	switch g.pick(9) {
	case 0:
		return scalars[g.pick(len(scalars))]
	case 1, 2:
		return g.quote(g.text())
	case 3:
		var all []string
		for range g.pick(7) {
			all = append(all, g.value(depth+1))
		}
		return "[" + strings.Join(all, g.comma()) + "]"
	case 4, 5:
		var all []string
		for range g.pick(6) {
			name := names[g.pick(len(names))]
			v := g.value(depth + 1)
			switch {
			case name == "type" || name == "mimeType":
				v = g.quote(kinds[g.pick(len(kinds))])
			case name == "blob" && g.pick(3) > 0:
				v = g.quote(base64Of(g.text()))
			}
			all = append(all, g.quote(name)+":"+v)
		}
		return "{" + strings.Join(all, g.comma()) + "}"
	case 6:
		return g.quote(g.value(depth + 1))
	case 7:
		return g.quote(g.value(depth+1) + g.text())
	default: // as the fuzzer wants it
		n := min(g.pick(40), len(g.in))
		s := string(g.in[:n])
		g.in = g.in[n:]
		return `"` + s + `"`
	}
}

func (g *maker) comma() string { return []string{",", ", ", " ,\t", ","}[g.pick(4)] }

func (g *maker) text() string {
	var b strings.Builder
	for range g.pick(9) {
		b.WriteString(snippets[g.pick(len(snippets))])
	}
	return b.String()
}

// quote writes a string with more escapes or fewer.
func (g *maker) quote(s string) string {
	q, err := json.Marshal(s)
	if err != nil {
		panic(err)
	}
	switch g.pick(5) {
	case 1:
		return strings.NewReplacer("@", `\u0040`, "/", `\/`).Replace(string(q))
	case 2:
		return strings.NewReplacer("4", `\u0034`, "é", `\u00e9`, "\U0001f600", `\ud83d\ude00`, " ", `\u0020`).Replace(string(q))
	case 3:
		return strings.ReplaceAll(string(q), "lorem", `l\ud800rem`)
	case 4: // and the names of what is secret are hidden
		return strings.NewReplacer("key", `k\u0065y`, "ssw", `s\u0073w`, "ssn", `\u0073sn`).Replace(string(q))
	}
	return string(q)
}
