package detect

import (
	"bytes"
	"unicode/utf8"
)

const (
	maxLocal  = 64  // RFC 5321
	maxDomain = 253 // RFC 1035
)

// email finds addresses: letters, digits and . _ - + % ' before the @, which is
// what mailboxes have in practice, international letters too. The other marks
// that RFC 5321 allows stand around addresses more often than in them. The domain
// has a dot and ends in a name, so that pkg@1.2.3 and user@host are none;
// git@host, the account of ssh remotes, is nobody's either.
func email(text []byte, i, done int) (from, to int) {
	start := i
	for start > done && i-start < maxLocal && isLocal(text[start-1]) {
		start--
	}
	for start < i && (text[start] != '_' && !is(text[start], alnum|beyond) || !utf8.RuneStart(text[start])) {
		start++
	}
	if start == i || text[i-1] == '.' || string(text[start:i]) == "git" {
		return 0, 0
	}
	end := i + 1
	for end < len(text) && end-i <= maxDomain && is(text[end], alnum|dash|dot|beyond) {
		end++
	}
	for end > i+1 && (is(text[end-1], dash|dot) || end < len(text) && !utf8.RuneStart(text[end])) {
		end--
	}
	if !isDomain(text[i+1:end]) || isUserInfo(text, start) {
		return 0, 0
	}
	return start, end
}

func isLocal(c byte) bool {
	return is(c, word|dash|dot) || c == '+' || c == '%' || c == '\''
}

// isUserInfo reports that what begins at i is the user, or the password, in a URL.
func isUserInfo(text []byte, i int) bool {
	if i == 0 || text[i-1] != '/' && text[i-1] != ':' {
		return false
	}
	first := max(0, i-128)
	for i--; i >= first+2; i-- {
		switch text[i] {
		case ' ', '\t', '\n', '"', '\'', '<', '>':
			return false
		case '/':
			return text[i-1] == '/' && text[i-2] == ':'
		}
	}
	return false
}

// endsFileName reports what ends the names of files, and no domain.
func endsFileName(tld []byte) bool {
	switch string(tld) {
	case "css", "dll", "exe", "gif", "html", "ini", "jpeg", "jpg", "js", "json", "jsx", "lock", "log", "pdf", "png", "svg", "toml", "ts", "tsx", "txt", "webp", "xml", "yaml", "yml":
		return true
	}
	return false
}

// twoDotsIn reports two dots in a row.
func twoDotsIn(d []byte) bool {
	for i := 1; i < len(d); i++ {
		if d[i] == '.' && d[i-1] == '.' {
			return true
		}
	}
	return false
}

func isDomain(d []byte) bool {
	last := bytes.LastIndexByte(d, '.')
	if last < 1 || twoDotsIn(d) || d[0] == '-' || d[0] == '.' {
		return false
	}
	tld := d[last+1:]
	if len(tld) < 2 || endsFileName(tld) || len(d) > 2 && is(d[0], digit) && d[1] == 'x' && d[2] == '.' { // name@2x.png
		return false
	}
	if bytes.HasPrefix(tld, []byte("xn--")) {
		return true
	}
	for _, c := range tld {
		if !is(c, upper|lower|beyond) {
			return false
		}
	}
	return true
}
