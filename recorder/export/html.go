package export

import (
	"bufio"
	"bytes"
	"cmp"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"html/template"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"example.com/broker/codec"
	"example.com/broker/recorder"
)

// What a page shows of one frame, in bytes, and how many refusals it lists.
const (
	shownFrame    = 64 << 10
	shownRefusals = 1000
)

//go:embed page.css
var pageStyle string

//go:embed page.tmpl
var pageText string

// pageTemplate escapes whatever it is given: frames are written by strangers.
var pageTemplate = template.Must(template.New("page").Parse(pageText))

// pagePolicy lets a browser take nothing but the style in the page, should a
// frame ever get out of its place.
var pagePolicy = func() string {
	sum := sha256.Sum256([]byte(pageStyle))
	return "default-src 'none'; style-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'; base-uri 'none'; form-action 'none'"
}()

type page struct {
	joiner
	w        *bufio.Writer
	start    time.Time
	parser   codec.Parser
	refusals []pageRefusal
	more     int // refusals that are not listed
}

type pageRefusal struct {
	N    int64
	Text string
}

type pageFact struct{ Name, Value string }

type pageFrame struct {
	N                                       int64
	Number, Direction, Way, Class, Verdict  string
	Time, Since, Findings, Refusal, Summary string
	Size                                    int64
	Text                                    string
	Notes                                   []string
}

func newPage(w *bufio.Writer) writer {
	x := &page{w: w}
	x.joiner = joiner{limit: shownFrame, next: x.frame}
	return x
}

func (x *page) begin(s recorder.Session) error {
	x.start = s.Start
	end := "still running"
	if !s.End.IsZero() {
		end = s.End.UTC().Format(isoTime)
	}
	facts := []pageFact{
		{"Subject", cmp.Or(s.Subject, "unknown")},
		{"Groups", strings.Join(s.Groups, ", ")},
		{"Server", s.Server},
		{"Rule", s.Rule},
		{"Agent", s.Agent},
		{"Client", s.Client + ", " + s.Transport},
		{"Start", s.Start.UTC().Format(isoTime)},
		{"End", end},
		{"State", s.State + reasonOf(s)},
		{"To the server", fmt.Sprintf("%d frames, %d bytes", s.C2S.Frames, s.C2S.Bytes)},
		{"To the client", fmt.Sprintf("%d frames, %d bytes", s.S2C.Frames, s.S2C.Bytes)},
		{"Blocked", strconv.FormatInt(s.Blocked, 10)},
		{"Masked", strconv.FormatInt(s.Masked, 10)},
	}
	var found []string
	for _, name := range slices.Sorted(maps.Keys(s.Findings)) {
		found = append(found, fmt.Sprintf("%s %d", name, s.Findings[name]))
	}
	facts = append(facts, pageFact{"Findings", strings.Join(found, ", ")})
	if s.Imported != nil {
		facts = append(facts, pageFact{"Imported from", s.Imported.File + ", SHA-256 " + s.Imported.SHA256})
	}
	if s.Head != "" {
		facts = append(facts, pageFact{"Hash of the last record", s.Head})
	}
	for i := range facts {
		facts[i].Value = visible(cmp.Or(facts[i].Value, "none"))
	}
	return pageTemplate.ExecuteTemplate(x.w, "begin", map[string]any{
		"ID": s.ID, "Policy": pagePolicy, "Style": template.CSS(pageStyle), "Facts": facts,
	})
}

func reasonOf(s recorder.Session) string {
	if s.Reason == "" {
		return ""
	}
	return ": " + s.Reason
}

func (x *page) frame(f *frame) error {
	view := pageFrame{
		N: f.n, Number: fmt.Sprintf("#%d", f.n), Direction: f.direction.String(), Verdict: f.verdict.String(),
		Way:  map[codec.Direction]string{codec.C2S: "client → server", codec.S2C: "server → client"}[f.direction],
		Time: f.time.UTC().Format(isoTime), Since: "+" + f.time.Sub(x.start).String(),
		Size: f.size, Findings: visible(detectors(f.findings)), Summary: "no frame",
	}
	switch f.verdict {
	case recorder.Blocked, recorder.Cut:
		view.Class = "refused"
	case recorder.Masked:
		view.Class = "masked"
	}
	shown := f.bytes[:min(len(f.bytes), shownFrame)]
	whole := int64(len(f.bytes)) == f.size && !f.more
	switch {
	case !whole:
		view.Summary = "a long frame"
	default:
		if frame, err := x.parser.Parse(f.bytes, f.direction); err == nil {
			view.Summary = visible(summary(frame))
			if f.verdict == recorder.Answered && frame.Error != nil {
				view.Class, view.Refusal = "refused", visible(errorText(frame.Error))
			}
		} else if e, ok := err.(*codec.Error); ok && f.verdict == recorder.Blocked {
			view.Refusal = e.Reason
		}
	}
	if text, ok := indented(shown); ok && len(shown) == len(f.bytes) && whole {
		view.Text = text
	} else {
		view.Text = visible(string(shown))
	}
	for _, n := range f.notes {
		text := visible(noteText(n))
		view.Notes = append(view.Notes, strings.ToUpper(text[:1])+text[1:]+".")
	}
	if int64(len(shown)) < f.size {
		view.Notes = append(view.Notes, fmt.Sprintf("Only the first %d of %d bytes are shown; broker replay writes all.", len(shown), f.size))
	}
	if f.more {
		view.Notes = append(view.Notes, "The end of this frame is not on record.")
	}
	if f.verdict == recorder.Cut {
		view.Notes = append(view.Notes, "The rest of this frame did not pass.")
	}
	if f.verdict == recorder.Blocked {
		view.Notes = append(view.Notes, "This frame reached nobody.")
	}
	if !utf8.Valid(shown) && len(shown) == len(f.bytes) {
		view.Notes = append(view.Notes, "Bytes that are not UTF-8 are shown as \\x and their value.")
	}
	if f.found > len(f.findings) {
		view.Notes = append(view.Notes, fmt.Sprintf("%d findings; the first %d are counted by detector.", f.found, len(f.findings)))
	}
	if view.Class == "refused" {
		if len(x.refusals) < shownRefusals {
			x.refusals = append(x.refusals, pageRefusal{f.n, strings.TrimSpace(view.Verdict + " " + cmp.Or(view.Refusal, view.Summary))})
		} else {
			x.more++
		}
	}
	return pageTemplate.ExecuteTemplate(x.w, "frame", view)
}

func (x *page) end(s recorder.Session) error {
	if err := x.joiner.end(); err != nil {
		return err
	}
	return pageTemplate.ExecuteTemplate(x.w, "end", map[string]any{"ID": s.ID, "Frames": x.frames, "Refusals": x.refusals, "More": x.more})
}

// summary says what a frame is: "request 3 tools/call echo".
func summary(f *codec.Frame) string {
	short := func(b []byte) string {
		if len(b) > 200 {
			return strings.ToValidUTF8(string(b[:200]), "") + "…"
		}
		return string(b)
	}
	switch f.Kind {
	case codec.Response:
		if f.Error != nil {
			return "error to " + short(f.ID) + ": " + short([]byte(errorText(f.Error)))
		}
		return "response to " + short(f.ID)
	case codec.Notification:
		return "notification " + short(f.Method)
	}
	text := "request " + short(f.ID) + " " + short(f.Method)
	for _, of := range [][]byte{f.Name, f.URI} {
		if of != nil {
			text += " " + short(of)
		}
	}
	return text
}

// errorText returns the code and the message of an error that a Parser has accepted.
func errorText(raw []byte) string {
	var e struct {
		Code    json.Number
		Message string
	}
	if json.Unmarshal(raw, &e) != nil {
		return "error"
	}
	return e.Code.String() + " " + e.Message
}

// indented returns JSON for people. It refuses what is none, and what would grow
// to many times its size: every line of a deep value begins with its depth.
func indented(b []byte) (string, bool) {
	if !json.Valid(b) || !utf8.Valid(b) {
		return "", false
	}
	size, depth, text := 0, 0, false
	for i := 0; i < len(b); i++ {
		switch c := b[i]; {
		case text && c == '\\':
			i++
		case c == '"':
			text = !text
		case text:
		case c == '{', c == '[':
			depth++
			size += 2 * depth
		case c == '}', c == ']':
			depth--
			size += 2 * depth
		case c == ',':
			size += 2 * depth
		}
	}
	if size > 8*shownFrame {
		return "", false
	}
	var out bytes.Buffer
	if json.Indent(&out, b, "", "  ") != nil {
		return "", false
	}
	return visible(out.String()), true
}

// visible writes what cannot be seen, or turns the order of what can (U+202E), as
// escapes. In a string of JSON they stand for the same.
func visible(text string) string {
	hidden := func(r rune) bool {
		return r != '\n' && r != '\t' && (unicode.Is(unicode.C, r) || unicode.Is(unicode.Zl, r) || unicode.Is(unicode.Zp, r)) || r == utf8.RuneError
	}
	if strings.IndexFunc(text, hidden) < 0 {
		return text
	}
	var out strings.Builder
	for i := 0; i < len(text); {
		r, n := utf8.DecodeRuneInString(text[i:])
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&out, `\x%02x`, text[i])
		case r == utf8.RuneError || !hidden(r):
			out.WriteString(text[i : i+n])
		case r > 0xffff:
			high, low := (r-0x10000)>>10+0xd800, (r-0x10000)&0x3ff+0xdc00
			fmt.Fprintf(&out, `\u%04x\u%04x`, high, low)
		default:
			fmt.Fprintf(&out, `\u%04x`, r)
		}
		i += n
	}
	return out.String()
}
