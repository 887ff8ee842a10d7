package codec

import "slices"

// An outline knows where containers end, by their brackets alone. Each byte is
// looked at once for it, however deep it lies.
type outline struct {
	at       int64           // what is in front has been looked at
	long     int64           // where the last one begins that was too long, if one was
	open     []int64         // where the containers under way begin
	ended    map[int64]int64 // the end of others by their beginning, but for short ones
	inString bool
	escaped  bool // the next byte is behind a backslash
}

// shortContainer is how long a container is at most that is scanned without being
// asked for, in bytes.
const shortContainer = 4 << 10

// isLong reports whether the container that begins here is too long to be looked
// at as a whole. If it is not, all of it is in the window, or the text ends in it.
func (f *flow) isLong() bool {
	o, start := &f.outline, f.w.passed
	if o.at <= start {
		*o = outline{at: start, long: -1, open: o.open[:0], ended: o.ended}
		clear(o.ended)
	} else if start == o.long {
		return true // and may have ended meanwhile
	} else if end, ok := o.ended[start]; ok {
		return end-start > int64(f.sizes.value)
	} else if _, ok := slices.BinarySearch(o.open, start); !ok {
		return false // it has ended, and is short
	}
	for o.at-start <= int64(f.sizes.value) {
		b := f.w.buf[f.w.at+int(o.at-start):]
		if len(b) == 0 {
			if !f.w.more() {
				return false
			}
			continue
		}
		if o.look(b[:min(len(b), readSize)], start, int64(min(f.sizes.value, shortContainer))) {
			if o.at-start <= int64(f.sizes.value) {
				return false
			}
			break
		}
	}
	o.long = start
	return true
}

// look goes over b, and stops behind the container that begins at start: then it
// reports true. It does not remember where those end that are not over short bytes.
func (o *outline) look(b []byte, start, short int64) bool {
	for i := 0; i < len(b); i++ {
		if o.escaped {
			o.escaped = false
			continue
		}
		if o.inString {
			if i += plain(b[i:]); i < len(b) && b[i] == '\\' && inBlocks { // which is seldom alone
				end, done := endBlocks(b, i)
				if done {
					end--
				}
				i = end
			}
			if i == len(b) {
				break
			}
			o.inString, o.escaped = b[i] != '"', b[i] == '\\'
			continue
		}
		switch b[i] {
		case '"':
			o.inString = true
		case '{', '[':
			o.open = append(o.open, o.at+int64(i))
		case '}', ']':
			n := len(o.open) - 1
			if n < 0 {
				continue
			}
			begin, end := o.open[n], o.at+int64(i)+1
			o.open = o.open[:n]
			if begin == start {
				o.at = end
				return true
			}
			if end-begin > short {
				if o.ended == nil {
					o.ended = map[int64]int64{}
				}
				o.ended[begin] = end
			}
		}
	}
	o.at += int64(len(b))
	return false
}
