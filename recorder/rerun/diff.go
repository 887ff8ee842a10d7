package rerun

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"example.com/broker/codec"
)

// A Difference is a value that is not the same on both sides.
type Difference struct {
	Path     string          `json:"path"`               // from the frame, such as $.result.isError
	Recorded json.RawMessage `json:"recorded,omitempty"` // nil: there is none
	Live     json.RawMessage `json:"live,omitempty"`
}

// maxDifferences bounds what is said of an exchange, maxValue a value, in bytes.
const (
	maxDifferences = 50
	maxValue       = 4 << 10
)

// A comparison finds what is different in two JSON values, one on record and one
// that came now.
type comparison struct {
	ignore         *codec.Fields
	then, now      time.Time // when they came
	differences    []Difference
	masked         []string // paths that cannot be compared
	more           int      // differences that are not in differences
	place          []any    // of the values under way, as Fields has it
	path           []string // the same, as a person reads it
	recordedMasked bool     // values of the recorded frame were masked
}

// opaque are members whose values are new each time: what one side gives the other
// to name something by.
var opaque = map[string]bool{
	"requestState": true, "nextCursor": true, "cursor": true, "taskId": true, "progressToken": true, "requestId": true,
	metaSubscription: true,
}

// brokers are members of the broker's own in error.data.
var brokers = []string{"session", "request", "url"}

var (
	mark      = regexp.MustCompile(`\[masked:[^\[\]]*\]`)
	timestamp = regexp.MustCompile(`\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(?:[.,]\d+)?(?: ?[Zz]| ?[+-]\d\d:?\d\d)?`)
)

func (c *comparison) at(step any, name string, f func()) {
	c.place, c.path = append(c.place, step), append(c.path, name)
	f()
	c.place, c.path = c.place[:len(c.place)-1], c.path[:len(c.path)-1]
}

func (c *comparison) where() string { return "$" + strings.Join(c.path, "") }

func (c *comparison) differ(recorded, live any) {
	if len(c.differences) == maxDifferences {
		c.more++
		return
	}
	c.differences = append(c.differences, Difference{c.where(), short(recorded), short(live)})
}

func (c *comparison) cannot() {
	if len(c.masked) < maxDifferences {
		c.masked = append(c.masked, c.where())
	}
}

// absent stands for a value that is not there.
type absent struct{}

// short is a value as JSON, or, of a long one, its beginning and its length.
func short(v any) json.RawMessage {
	if v == (any)(absent{}) {
		return nil
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if e.Encode(v) != nil {
		return nil
	}
	text := bytes.TrimSuffix(b.Bytes(), []byte("\n"))
	if len(text) > maxValue {
		text, _ = json.Marshal(fmt.Sprintf("%s… (%d bytes)", bytes.ToValidUTF8(text[:maxValue/4], nil), len(text)))
	}
	return text
}

// compare compares two values, of which either may be absent.
func (c *comparison) compare(recorded, live any) {
	if c.ignore.Has(c.place) {
		return
	}
	if n := len(c.place); n > 0 {
		if name, ok := c.place[n-1].(string); ok && opaque[name] {
			return
		}
	}
	if masked, text := whole(recorded), whole(live); masked || text {
		if s, ok := recorded.(string); !ok || s != live {
			c.cannot()
		}
		return
	}
	switch r := recorded.(type) {
	case map[string]any:
		if l, ok := live.(map[string]any); ok {
			c.objects(r, l)
			return
		}
	case []any:
		if l, ok := live.([]any); ok {
			c.arrays(r, l)
			return
		}
	case string:
		if l, ok := live.(string); ok {
			c.strings(r, l)
			return
		}
	case json.Number:
		if l, ok := live.(json.Number); ok {
			switch {
			case r == l || sameNumber(r, l) || near(r, c.then) && near(l, c.now):
			case c.recordedMasked && r == "0":
				c.cannot()
			default:
				c.differ(r, l)
			}
			return
		}
	case bool:
		if l, ok := live.(bool); ok {
			switch {
			case r == l:
			case c.recordedMasked && !r:
				c.cannot()
			default:
				c.differ(r, l)
			}
			return
		}
	}
	if recorded != nil || live != nil {
		c.differ(recorded, live)
	}
}

// whole reports a value that was masked as a whole.
func whole(v any) bool {
	s, ok := v.(string)
	return ok && strings.HasPrefix(s, "[masked:") && mark.FindString(s) == s
}

// member is a step to a member of that name.
func member(name string) string {
	if plain.MatchString(name) {
		return "." + name
	}
	return "[" + strconv.Quote(name) + "]"
}

var plain = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_-]*$`)

func (c *comparison) objects(r, l map[string]any) {
	hidden := false // a name on record is masked; which it is now is not known
	for name := range r {
		hidden = hidden || mark.MatchString(name)
	}
	names := slices.Sorted(maps.Keys(r))
	for name := range maps.Keys(l) {
		if _, ok := r[name]; !ok {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		rv, rok := r[name]
		lv, lok := l[name]
		c.at(name, member(name), func() {
			switch {
			case rok && lok:
				c.compare(rv, lv)
			case hidden && (!rok || mark.MatchString(name)):
				c.cannot()
			case rok:
				c.compare(rv, absent{})
			default:
				c.compare(absent{}, lv)
			}
		})
	}
}

// keys are members by which elements of an array are known: tools, prompts and
// resources come in any order.
var keys = []string{"name", "uri", "uriTemplate"}

func (c *comparison) arrays(r, l []any) {
	for _, key := range keys {
		rn, ok := byKey(r, key)
		if !ok {
			continue
		}
		ln, ok := byKey(l, key)
		if !ok {
			continue
		}
		for i, v := range r {
			name := v.(map[string]any)[key].(string)
			c.at(i, fmt.Sprintf("[%s=%q]", key, name), func() {
				if at, ok := ln[name]; ok {
					c.compare(v, l[at])
				} else {
					c.compare(v, absent{})
				}
			})
		}
		for i, v := range l {
			name := v.(map[string]any)[key].(string)
			if _, ok := rn[name]; !ok {
				c.at(i, fmt.Sprintf("[%s=%q]", key, name), func() { c.compare(absent{}, v) })
			}
		}
		return
	}
	for i := range max(len(r), len(l)) {
		c.at(i, "["+strconv.Itoa(i)+"]", func() {
			switch {
			case i >= len(l):
				c.compare(r[i], absent{})
			case i >= len(r):
				c.compare(absent{}, l[i])
			default:
				c.compare(r[i], l[i])
			}
		})
	}
}

// byKey returns the numbers of elements by their member of that name, if each has
// one of its own.
func byKey(array []any, key string) (map[string]int, bool) {
	names := map[string]int{}
	for i, v := range array {
		o, _ := v.(map[string]any)
		name, ok := o[key].(string)
		if _, twice := names[name]; !ok || twice {
			return nil, false
		}
		names[name] = i
	}
	return names, true
}

// inText is the step into the JSON in a string.
const inText = "<json>"

func (c *comparison) strings(r, l string) {
	if r == l {
		return
	}
	if rv, ok := nested(r); ok {
		if lv, ok := nested(l); ok {
			c.path = append(c.path, inText)
			c.compare(rv, lv)
			c.path = c.path[:len(c.path)-1]
			return
		}
	}
	if timeless(r) == timeless(l) {
		return
	}
	if mark.MatchString(r) || mark.MatchString(l) {
		if covers(timeless(r), timeless(l)) || covers(timeless(l), timeless(r)) {
			c.cannot()
			return
		}
	}
	c.differ(r, l)
}

// nested returns the object or array that a string holds in JSON.
func nested(s string) (any, bool) {
	s = strings.TrimSpace(s)
	if s == "" || s[0] != '{' && s[0] != '[' || !json.Valid([]byte(s)) {
		return nil, false
	}
	return decode([]byte(s)), true
}

func timeless(s string) string {
	return timestamp.ReplaceAllLiteralString(s, "2006-01-02T15:04:05Z")
}

// covers reports whether text is masked but for what its marks may stand for.
func covers(masked, text string) bool {
	parts := mark.Split(masked, -1)
	if len(parts) == 1 {
		return masked == text
	}
	last := len(parts) - 1
	text, ok := strings.CutPrefix(text, parts[0])
	if !ok {
		return false
	}
	if text, ok = strings.CutSuffix(text, parts[last]); !ok {
		return false
	}
	for _, p := range parts[1:last] {
		if _, text, ok = strings.Cut(text, p); !ok {
			return false
		}
	}
	return true
}

func sameNumber(a, b json.Number) bool {
	x, err := a.Float64()
	y, other := b.Float64()
	// Where a float64 rounds, the digits decide.
	return err == nil && other == nil && x == y && x > -1<<53 && x < 1<<53
}

// nearTime is how far from when it came a time may be.
const nearTime = 366 * 24 * time.Hour

// near reports a number that is a time in s, ms, µs or ns since 1970, within a year of t.
func near(n json.Number, t time.Time) bool {
	x, err := n.Float64()
	if err != nil {
		return false
	}
	for unit := time.Second; unit >= time.Nanosecond; unit /= 1000 {
		d := x*float64(unit) - float64(t.UnixNano())
		if d > -float64(nearTime) && d < float64(nearTime) {
			return true
		}
	}
	return false
}
