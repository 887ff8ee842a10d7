package detect

// placeholders stand where documentation, templates and maskers leave a secret out.
var placeholders = newWords([]string{
	"example", "changeme", "change_me", "placeholder", "redacted", "xxxx", "your-", "your_", "insert", "****", "....", "[masked:", "process.env", "os.environ", "getenv",
})

// longPlaceholder is how long one is at most: nobody writes a longer one.
const longPlaceholder = 128

// placeholder reports that s.text[from:to], which has such signs, is one, has one in
// it, or has what begins one.
func (s *search) placeholder(from, to int, signs sign) bool {
	if to-from > longPlaceholder {
		return false
	}
	value := s.text[from:to]
	if signs&holderSign != 0 {
		if s.knownHolder.in(s.texts, from, to) {
			return true
		}
		if first, end := placeholders.find(value); end > 0 {
			s.knownHolder = place{s.texts, from + first, from + end}
			return true
		}
	}
	return signs&openSign != 0 && begins(value) || standsFor(value)
}

// placeholder reports a value that is one, has one in it, or has what begins one.
func placeholder(value []byte) bool {
	return len(value) <= longPlaceholder && (placeholders.in(value) || begins(value) || standsFor(value))
}

// begins reports what begins a placeholder in value: < ${ {{ $(
func begins(value []byte) bool {
	for i, c := range value {
		if opens[c] && (c == '<' || i > 0 && (value[i-1] == '$' || c == '{' && value[i-1] == '{')) {
			return true
		}
	}
	return false
}

// standsFor reports a value that is one byte over and over, or between marks of its own.
func standsFor(value []byte) bool {
	same := 1
	for same < len(value) && value[same] == value[0] {
		same++
	}
	return same == len(value) || value[0] == '$' || value[0] == '%' && value[len(value)-1] == '%'
}

var opens = [256]bool{'<': true, '{': true, '(': true}
