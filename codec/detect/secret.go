package detect

import (
	"bytes"
	"math"
)

// A token is a credential that its issuer gave a prefix to be known by. The
// forms are those that the issuers document.
type token struct {
	prefix   string
	classes  uint16 // of what follows the prefix
	min, max int    // length of what follows
}

const open = 1 << 12 // no issuer sets a length; bounds the look-ahead, in bytes

var tokens = []token{
	{"AKIA", digit | upper, 16, 16}, {"ASIA", digit | upper, 16, 16}, // AWS access key ids
	{"ABIA", digit | upper, 16, 16}, {"ACCA", digit | upper, 16, 16},
	{"ghp_", alnum, 36, 255}, {"gho_", alnum, 36, 255}, {"ghu_", alnum, 36, 255}, // GitHub
	{"ghs_", alnum, 36, 255}, {"ghr_", alnum, 36, 255}, {"github_pat_", alnum | under, 60, 255},
	{"glpat-", alnum | under | dash | dot, 20, 300}, {"gldt-", alnum | under | dash, 20, 64}, // GitLab
	{"glrt-", alnum | under | dash, 20, 64}, {"glptt-", alnum, 40, 64},
	{"xoxb-", alnum | dash, 20, 255}, {"xoxp-", alnum | dash, 20, 255}, {"xoxa-", alnum | dash, 20, 255}, // Slack
	{"xoxr-", alnum | dash, 20, 255}, {"xoxs-", alnum | dash, 20, 255}, {"xoxe-", alnum | dash, 20, 255},
	{"xoxe.xoxp-", alnum | dash, 20, 255}, {"xapp-", alnum | dash, 20, 255},
	{"sk_live_", alnum, 16, 255}, {"rk_live_", alnum, 16, 255}, {"sk_test_", alnum, 16, 255}, // Stripe
	{"rk_test_", alnum, 16, 255}, {"whsec_", alnum | b64, 24, 128},
	{"AIza", alnum | under | dash, 35, 35}, {"ya29.", alnum | under | dash | dot, 20, 2048}, // Google
	{"GOCSPX-", alnum | under | dash, 28, 28}, {"1//0", alnum | under | dash, 40, 255},
	{"sk-ant-", alnum | under | dash, 24, 255}, {"sk-proj-", alnum | under | dash, 24, 300}, // Anthropic, OpenAI
	{"sk-svcacct-", alnum | under | dash, 24, 300}, {"sk-", alnum, 32, 64},
	{"npm_", alnum, 36, 36}, {"pypi-AgE", alnum | under | dash, 50, 1024}, {"rubygems_", hexLower, 48, 48},
	{"SG.", alnum | under | dash | dot, 66, 66},                                                 // SendGrid
	{"dop_v1_", hexLower, 64, 64}, {"doo_v1_", hexLower, 64, 64}, {"dor_v1_", hexLower, 64, 64}, // DigitalOcean
	{"hvs.", alnum | under | dash, 24, 300}, {"hvb.", alnum | under | dash, 24, 300}, // HashiCorp Vault
	{"hf_", alnum, 34, 64}, {"shpat_", hexLower, 32, 32}, {"dckr_pat_", alnum | under | dash, 27, 27}, // Hugging Face, Shopify, Docker
	{"lin_api_", alnum, 40, 40}, {"PMAK-", hexLower | dash, 59, 59}, {"NRAK-", digit | upper, 27, 27}, // Linear, Postman, New Relic
	{"AccountKey=", alnum | b64, 86, 90}, // Azure storage
	{"hooks.slack.com/services/", alnum | b64, 40, 80},
	{"AGE-SECRET-KEY-1", digit | upper, 58, 58},
}

// first lists, by its first byte, what can begin a secret at the start of a word.
var first = func() (t [256][]token) {
	for _, k := range tokens {
		c := k.prefix[0]
		t[c] = append(t[c], k)
	}
	return t
}()

// What may begin a secret: the first byte of a token at the start of a word, or
// a byte around which other rules look.
const (
	startsToken = 1 << iota
	startsRule
)

var starts = func() (t [256]uint8) {
	for c := range t {
		if len(first[c]) > 0 {
			t[c] |= startsToken
		}
	}
	for _, c := range []byte("-e:=Bb") { // PEM, JWT, a URL or a key's value, authorization
		t[c] |= startsRule
	}
	return t
}()

// findSecrets finds credentials: tokens with a known prefix, private keys in
// PEM, JSON Web Tokens, passwords in URLs, Authorization headers, and values
// that are named password, api_key and the like. Digests, UUIDs and
// placeholders are none.
func findSecrets(text []byte, found func(start, end int)) {
	for i := 0; i < len(text); {
		c := text[i]
		kind := starts[c]
		if kind == 0 {
			i++
			continue
		}
		start, end := 0, 0
		if atWord := i == 0 || !is(text[i-1], word); atWord && kind&startsToken != 0 {
			start, end = findToken(text, i)
		}
		if end == 0 && kind&startsRule != 0 {
			start, end = findByRule(text, i)
		}
		if end == 0 {
			i++
			continue
		}
		found(start, end)
		i = end
	}
}

func findToken(text []byte, i int) (start, end int) {
	for _, k := range first[text[i]] {
		if len(text)-i < len(k.prefix)+k.min || string(text[i:i+len(k.prefix)]) != k.prefix {
			continue
		}
		body := i + len(k.prefix)
		end := run(text, body, k.max+1, k.classes)
		if end-body < k.min || end-body > k.max || end < len(text) && is(text[end], word) {
			continue
		}
		if !placeholder(text[body:end]) {
			return i, end
		}
	}
	return 0, 0
}

func findByRule(text []byte, i int) (start, end int) {
	switch text[i] {
	case '-':
		return findPEM(text, i)
	case 'e':
		return findJWT(text, i)
	case 'B', 'b':
		return findAuthorization(text, i)
	case ':':
		if start, end = findURLPassword(text, i); end > 0 {
			return start, end
		}
	}
	if text[i] == ':' || text[i] == '=' {
		return findNamed(text, i)
	}
	return 0, 0
}

var (
	pemBegin = []byte("-----BEGIN ")
	pemKey   = []byte("PRIVATE KEY")
	pemEnd   = []byte("-----END ")
)

// findPEM finds a private key at i, also one that is cut off.
func findPEM(text []byte, i int) (start, end int) {
	if !bytes.HasPrefix(text[i:], pemBegin) {
		return 0, 0
	}
	label := text[i+len(pemBegin) : min(len(text), i+len(pemBegin)+40)]
	if n := bytes.Index(label, []byte("-----")); n >= 0 {
		label = label[:n]
	}
	if !bytes.Contains(label, pemKey) {
		return 0, 0
	}
	body := i + len(pemBegin)
	n := bytes.Index(text[body:], pemEnd)
	if n < 0 {
		return i, len(text)
	}
	end = body + n + len(pemEnd)
	if n := bytes.Index(text[end:min(len(text), end+64)], []byte("-----")); n >= 0 {
		end += n + 5
	}
	return i, end
}

// findJWT finds three parts of base64url, of which the first two are JSON
// objects, at i.
func findJWT(text []byte, i int) (start, end int) {
	if i > 0 && is(text[i-1], word|dash|dot) || !bytes.HasPrefix(text[i:], []byte("eyJ")) {
		return 0, 0
	}
	const part = alnum | under | dash
	header := run(text, i, open, part)
	if header-i < 15 || !bytes.HasPrefix(text[header:], []byte(".eyJ")) {
		return 0, 0
	}
	payload := run(text, header+1, 16*open, part)
	if payload-header < 10 || payload == len(text) || text[payload] != '.' {
		return 0, 0
	}
	return i, run(text, payload+1, open, part)
}

// findAuthorization finds what follows Bearer or Basic at i.
func findAuthorization(text []byte, i int) (start, end int) {
	if i > 0 && is(text[i-1], word) {
		return 0, 0
	}
	for _, scheme := range []string{"bearer ", "basic "} {
		at := i + len(scheme)
		if at > len(text) || !bytes.EqualFold(text[i:at], []byte(scheme)) {
			continue
		}
		end := run(text, at, open, alnum|under|dash|dot|b64)
		if end-at >= 16 && !placeholder(text[at:end]) && varied(text[at:end]) {
			return at, end
		}
	}
	return 0, 0
}

// findURLPassword finds the password of scheme://user:password@host, with the
// colon of :// at i.
func findURLPassword(text []byte, i int) (start, end int) {
	if !bytes.HasPrefix(text[i:], []byte("://")) || i == 0 || !is(text[i-1], alnum) {
		return 0, 0
	}
	authority := text[i+3 : min(len(text), i+3+512)]
	if n := bytes.IndexAny(authority, "/?# \t\r\n\"'<>`"); n >= 0 {
		authority = authority[:n]
	}
	at := bytes.LastIndexByte(authority, '@')
	colon := bytes.IndexByte(authority, ':')
	if colon < 0 || at <= colon+1 {
		return 0, 0
	}
	password := authority[colon+1 : at]
	if placeholder(password) {
		return 0, 0
	}
	return i + 3 + colon + 1, i + 3 + at
}

// secretNames are what a value that follows is secret by; a longer name that
// ends in one (db_password) counts.
var secretNames = []string{
	"password", "passwd", "pwd", "passphrase", "secret", "api_key", "apikey", "api-key", "access_key", "accesskey",
	"secret_key", "secretkey", "auth_token", "authtoken", "access_token", "accesstoken", "refresh_token", "client_secret",
	"clientsecret", "secret_access_key", "private_token", "encryption_key",
}

const maxName = 24 // of secretNames, in bytes

// findNamed finds the value of name=value or name: "value", with the = or : at i.
func findNamed(text []byte, i int) (start, end int) {
	nameEnd := i
	for range 4 { // quotes and spaces between
		if nameEnd > 0 && (text[nameEnd-1] == ' ' || text[nameEnd-1] == '"' || text[nameEnd-1] == '\'') {
			nameEnd--
		}
	}
	name := text[max(0, nameEnd-maxName):nameEnd]
	if !namesSecret(name) {
		return 0, 0
	}
	at := i + 1
	for at < len(text) && at-i <= 3 && (text[at] == ' ' || text[at] == '=' || text[at] == '>') {
		at++
	}
	closing := byte(0)
	if at < len(text) && (text[at] == '"' || text[at] == '\'' || text[at] == '`') {
		closing = text[at]
		at++
	}
	end = at
	for end < len(text) && end-at < 256 && !endsValue(text[end], closing) {
		end++
	}
	value := text[at:end]
	if len(value) < 8 || placeholder(value) || !varied(value) {
		return 0, 0
	}
	return at, end
}

// isSecretUnder is findNamed for JSON, where name and value are known for sure. A
// value with a blank in it describes: "at least 8 characters" is no password.
func isSecretUnder(name, value []byte) bool {
	return namesSecret(name) && len(value) >= 8 && len(value) <= 256 && !bytes.ContainsAny(value, " \t\r\n") &&
		!placeholder(value) && varied(value)
}

func endsValue(c, closing byte) bool {
	if closing != 0 {
		return c == closing || c == '\n'
	}
	switch c {
	case ' ', '\t', '\r', '\n', ',', ';', '"', '\'', '`', '&', '}', ')', ']', '<', '>':
		return true
	}
	return false
}

func namesSecret(name []byte) bool {
	for _, n := range secretNames {
		if len(name) >= len(n) && bytes.EqualFold(name[len(name)-len(n):], []byte(n)) {
			return true
		}
	}
	return false
}

// varied reports a value that looks made at random, or at least chosen by the
// rules for passwords: letters, and digits or marks, and not few of them.
func varied(value []byte) bool {
	var counts [256]int
	letters, others := 0, 0
	for _, c := range value {
		counts[c]++
		if is(c, upper|lower|beyond) {
			letters++
		} else if !is(c, under|dash|dot) {
			others++
		}
	}
	entropy := 0.0
	for _, n := range counts {
		if n > 0 {
			p := float64(n) / float64(len(value))
			entropy -= p * math.Log2(p)
		}
	}
	return letters > 0 && others > 0 && entropy >= 2.3
}

// placeholders stand where documentation, templates and maskers leave a secret out.
var placeholders = [][]byte{
	[]byte("example"), []byte("changeme"), []byte("change_me"), []byte("placeholder"), []byte("redacted"), []byte("xxxx"),
	[]byte("your-"), []byte("your_"), []byte("insert"), []byte("${"), []byte("{{"), []byte("$("), []byte("<"), []byte("****"),
	[]byte("...."), []byte("[masked:"), []byte("process.env"), []byte("os.environ"), []byte("getenv"),
}

func placeholder(value []byte) bool {
	if len(value) > 128 { // nobody writes one so long
		return false
	}
	var buf [128]byte
	folded := buf[:0]
	same := true
	for _, c := range value {
		same = same && c == value[0]
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		folded = append(folded, c)
	}
	if same {
		return true
	}
	for _, p := range placeholders {
		if bytes.Contains(folded, p) {
			return true
		}
	}
	return len(value) > 0 && (value[0] == '$' || value[0] == '%' && value[len(value)-1] == '%')
}
