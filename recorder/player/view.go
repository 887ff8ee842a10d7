package player

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/charmbracelet/x/ansi"

	"example.com/broker/codec"
	"example.com/broker/recorder"
)

// headSize is how much of a frame is shown, in bytes; labelSize, how much its label is
// made of.
const (
	headSize  = 64 << 10
	labelSize = 4 << 10
)

// Styles, as SGR parameters. What they say is in words as well.
const (
	bold    = "1"
	faint   = "2"
	reverse = "7"
	red     = "31"
	green   = "32"
	yellow  = "33"
	magenta = "35"
	cyan    = "36"
)

func style(sgr, s string) string { return "\x1b[" + sgr + "m" + s + "\x1b[0m" }

func printable(s string) string { return string(codec.AppendPrintable(nil, []byte(s))) }

// size returns the screen's, which is not known at first, nor to some terminals.
func (m *model) size() (width, height int) {
	width, height = m.width, m.height
	if width < 20 {
		width = 80
	}
	if height < 8 {
		height = 24
	}
	return width, height
}

// rows returns how many lines the frame has; the list has the rest.
func (m *model) rows() int {
	_, height := m.size()
	return height - 4 - m.listRows()
}

func (m *model) listRows() int {
	_, height := m.size()
	return max(3, (height-4)*2/5)
}

// View implements [tea.Model].
func (m *model) View() tea.View {
	width, height := m.size()
	lines := []string{m.header(), m.timeLine(width)}
	if m.help {
		lines = append(lines, strings.Split(helpText, "\n")...)
	} else {
		lines = append(lines, m.list(m.listRows())...)
		lines = append(lines, m.title())
		lines = append(lines, m.frame(width, m.rows())...)
	}
	lines = lines[:min(len(lines), height-1)]
	for len(lines) < height-1 {
		lines = append(lines, "")
	}
	lines = append(lines, m.footer())
	for i := range lines {
		lines[i] = ansi.Truncate(lines[i], width, "…")
	}
	v := tea.NewView(strings.Join(lines, "\n"))
	v.AltScreen = true
	return v
}

const helpText = `
  space       play, pause; at the end, play again
  + -         twice as fast, half as fast
  n → ↓       next frame            p ← ↑   frame before
  g G         first frame, last frame; of a session that runs, follow it
  PgDn PgUp   scroll in the frame
  /           search in all frames; N goes on
  d           both directions, c2s, s2c
  r           as it is, indented
  ? q         this help, quit

  masked      values were masked          blocked    it reached nobody
  edited      something was left out      answered   the broker made it
  cut         its rest did not pass       found      what detectors found in it`

func (m *model) header() string {
	s := m.session
	state := "paused"
	switch {
	case m.live && m.loading:
		state = "live"
	case m.playing:
		state = fmt.Sprintf("playing ×%g", m.speed)
	case m.speed != 1:
		state = fmt.Sprintf("paused ×%g", m.speed)
	}
	side := "both directions"
	if m.only != nil {
		side = m.only.String() + " only"
	}
	return style(bold, printable(s.ID)) + fmt.Sprintf("  %s → %s  %s  %s  ", printable(s.Subject), printable(s.Server), s.Start.Local().Format(time.DateTime), side) + style(reverse, " "+state+" ")
}

// timeLine is the session from left to right: what has passed, and where something
// was done to a frame.
func (m *model) timeLine(width int) string {
	length := m.length()
	from, to := clock(m.clock), clock(length)
	cells := width - len(from) - len(to) - 2
	if cells < 5 {
		return from + " " + to
	}
	cell := func(d time.Duration) int {
		if length <= 0 {
			return 0
		}
		return int(min(float64(cells-1), float64(d)/float64(length)*float64(cells-1)))
	}
	line := []string{}
	here := cell(m.clock)
	for i := range cells {
		if i <= here {
			line = append(line, "━")
		} else {
			line = append(line, style(faint, "─"))
		}
	}
	marked := map[int]string{}
	for _, i := range m.visible[max(0, len(m.visible)-maxMarks):] {
		at := cell(m.time(i))
		switch f := m.tape.Frame(i); {
		case f.Verdict == recorder.Blocked:
			marked[at] = style(red, "×")
		case (f.Verdict != recorder.Delivered || len(f.Findings)+len(f.Notes) > 0) && marked[at] == "":
			marked[at] = style(yellow, "•")
		}
	}
	for at, mark := range marked {
		line[at] = mark
	}
	line[here] = style(bold, "●")
	return from + " " + strings.Join(line, "") + " " + to
}

// maxMarks bounds how many frames the time line is made of.
const maxMarks = 10000

func clock(d time.Duration) string {
	d = d.Round(time.Millisecond)
	return fmt.Sprintf("%d:%02d.%03d", int(d.Minutes()), int(d.Seconds())%60, d.Milliseconds()%1000)
}

func (m *model) list(rows int) (lines []string) {
	first := max(0, min(m.at-rows/2, len(m.visible)-rows))
	for at := first; at < min(len(m.visible), first+rows); at++ {
		line := m.row(m.visible[at])
		switch {
		case at == m.at:
			line = style(reverse, ansi.Strip(line))
		case at > m.at:
			line = style(faint, ansi.Strip(line))
		}
		lines = append(lines, line)
	}
	for len(lines) < rows {
		lines = append(lines, "")
	}
	return lines
}

// row is a frame in the list.
func (m *model) row(i int) string {
	f := m.tape.Frame(i)
	way := "→ c2s"
	if f.Direction == codec.S2C {
		way = "← s2c"
	}
	return fmt.Sprintf("%5d %11s %s %9s  ", i+1, clock(m.time(i)), way, bytesOf(f.Length)) + m.label(i) + marks(f)
}

// marks are the words for what was done to a frame.
func marks(f *recorder.Taped) string {
	s := ""
	add := func(sgr, word string) { s += "  " + style(sgr, word) }
	switch f.Verdict {
	case recorder.Delivered, recorder.Cut:
	case recorder.Blocked:
		add(red, "blocked")
	case recorder.Masked:
		add(yellow, "masked")
	case recorder.Edited:
		add(cyan, "edited")
	default:
		add(magenta, printable(f.Verdict.String()))
	}
	if f.Part && f.Verdict == recorder.Cut {
		add(red, "cut")
	} else if f.Part {
		add(red, "in part")
	}
	if len(f.Findings) > 0 {
		add(yellow, "found "+findings(f.Findings))
	}
	for _, n := range f.Notes {
		text := printable(n.String())
		if len(n.Found) > 0 {
			text += " (" + findings(n.Found) + ")"
		}
		add(cyan, text)
	}
	return s
}

// findings are the detectors that found something, with how often.
func findings(all []codec.Finding) string {
	count := map[string]int{}
	for _, f := range all {
		count[f.Detector]++
	}
	var words []string
	for name, n := range count {
		word := printable(name)
		if n > 1 {
			word = fmt.Sprintf("%s (%d)", word, n)
		}
		words = append(words, word)
	}
	slices.Sort(words)
	return strings.Join(words, ", ")
}

func bytesOf(n int64) string {
	switch {
	case n < 10_000:
		return fmt.Sprintf("%d B", n)
	case n < 10<<20:
		return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
	case n < 10<<30:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	}
	return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
}

// label says what a frame is: its method, or what it answers.
func (m *model) label(i int) string {
	l, f := &m.labels[i], m.tape.Frame(i)
	if l.text != "" && l.parts == min(f.Length, labelSize) {
		return l.text
	}
	head, err := m.tape.Head(i, labelSize)
	if err != nil {
		return "cannot be read"
	}
	l.parts = int64(len(head))
	method, name, id, failed := envelope(head)
	switch {
	case method == "" && id == "":
		l.text = "no frame"
	case method != "":
		l.text = short(method)
		if name != "" {
			l.text += " " + short(name)
		}
		if id != "" {
			l.text += " #" + short(id)
		}
	default:
		l.text = "answer"
		if of := m.request(i, id); of != "" {
			l.text = "answer to " + of
		}
		if failed {
			l.text += " (error)"
		}
		l.text += " #" + short(id)
	}
	return l.text
}

// maxBack is how many frames an answer's request is looked for in.
const maxBack = 200

// request returns the method and the name of the request that a frame answers.
func (m *model) request(i int, id string) string {
	way := m.tape.Frame(i).Direction
	for n := i - 1; n >= max(0, i-maxBack); n-- {
		if m.tape.Frame(n).Direction == way {
			continue
		}
		head, err := m.tape.Head(n, labelSize)
		if err != nil {
			return ""
		}
		if method, name, of, _ := envelope(head); of == id && method != "" {
			if name != "" {
				return short(method) + " " + short(name)
			}
			return short(method)
		}
	}
	return ""
}

// short is a text of a peer's on a line of the list.
func short(s string) string {
	if r := []rune(s); len(r) > 60 {
		s = string(r[:60]) + "…"
	}
	return printable(s)
}

// envelope returns what the beginning of a frame says of it. failed: it is an error.
func envelope(head []byte) (method, name, id string, failed bool) {
	d := json.NewDecoder(bytes.NewReader(head))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return "", "", "", false
	}
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return
		}
		member, _ := t.(string)
		var raw json.RawMessage
		whole := d.Decode(&raw) == nil
		switch member {
		case "method":
			json.Unmarshal(raw, &method)
		case "id":
			id = string(raw)
		case "error":
			failed = true
		case "params":
			if whole {
				var p struct{ Name, URI string }
				json.Unmarshal(raw, &p)
				name = p.Name + p.URI
			}
		}
		if !whole {
			return
		}
	}
	return
}

// A shown is the frame on the screen, as lines.
type shown struct {
	frame, width int
	length       int64
	raw          bool
	lines        []string
}

// title stands between the list and the frame.
func (m *model) title() string {
	if m.at < 0 {
		return style(faint, strings.Repeat("─", 20))
	}
	i := m.visible[m.at]
	f := m.tape.Frame(i)
	s := style(bold, fmt.Sprintf("── %d/%d  %s, %s", i+1, m.tape.Len(), f.Direction, m.label(i))) + marks(f)
	if f.Length > headSize {
		s += style(yellow, fmt.Sprintf("  the first %s of %s", bytesOf(headSize), bytesOf(f.Length)))
	}
	return s
}

// frame returns the lines of the frame at the position that are on the screen.
func (m *model) frame(width, rows int) []string {
	if m.at < 0 {
		return nil
	}
	i := m.visible[m.at]
	want := shown{frame: i, width: width, length: min(m.tape.Frame(i).Length, headSize), raw: m.raw}
	if s := m.shown; s.lines == nil || s.frame != want.frame || s.width != want.width || s.length != want.length || s.raw != want.raw {
		head, err := m.tape.Head(i, headSize)
		if err != nil {
			head = []byte(err.Error())
		}
		want.lines = lines(head, m.raw, width)
		m.shown = want
	}
	m.scroll = max(0, min(m.scroll, len(m.shown.lines)-rows))
	return m.shown.lines[m.scroll:min(len(m.shown.lines), m.scroll+rows)]
}

// lines returns the beginning of a frame as lines that a terminal can show.
func lines(head []byte, raw bool, width int) (shown []string) {
	logical := [][]byte{head}
	if !raw {
		logical = indent(head)
	}
	for _, l := range logical {
		wrapped := ansi.Hardwrap(string(codec.AppendPrintable(nil, l)), width, true)
		shown = append(shown, strings.Split(wrapped, "\n")...)
	}
	return shown
}

// maxIndent is how deep is indented: what is deeper stays at it.
const maxIndent = 20

// indent returns JSON as indented lines. The text may be cut, or no JSON.
func indent(b []byte) (lines [][]byte) {
	if i := blanks(b, 0); i == len(b) || b[i] != '{' && b[i] != '[' {
		return [][]byte{b}
	}
	var line []byte
	depth := 0
	flush := func() {
		lines = append(lines, line)
		line = bytes.Repeat([]byte("  "), max(0, min(depth, maxIndent)))
	}
	for i := 0; i < len(b); i++ {
		switch c := b[i]; c {
		case '"':
			end := i + 1
			for end < len(b) && b[end] != '"' {
				if b[end] == '\\' {
					end++
				}
				end++
			}
			end = min(end+1, len(b))
			line = append(line, b[i:end]...)
			i = end - 1
		case '{', '[':
			line = append(line, c)
			if next := blanks(b, i+1); next < len(b) && b[next] == c+2 { // empty
				line = append(line, c+2)
				i = next
				continue
			}
			depth++
			flush()
		case '}', ']':
			depth--
			flush()
			line = append(line, c)
		case ',':
			line = append(line, c)
			flush()
		case ':':
			line = append(line, ':', ' ')
		case ' ', '\t', '\r', '\n':
		default:
			line = append(line, c)
		}
	}
	return append(lines, line)
}

func blanks(b []byte, i int) int {
	for i < len(b) && (b[i] == ' ' || b[i] == '\t' || b[i] == '\r' || b[i] == '\n') {
		i++
	}
	return i
}

func (m *model) footer() string {
	switch {
	case m.typing:
		return "/" + printable(m.pattern) + style(reverse, " ")
	case m.search != nil:
		return fmt.Sprintf("searching, %d of %d frames; esc gives up", m.search.gone, len(m.visible))
	case m.said != "":
		return m.said
	}
	s := style(faint, "space play  +/- speed  n/p step  / search  d direction  r raw  ? help  q quit")
	if m.damaged > 0 {
		s = style(red, fmt.Sprintf("%d damaged blocks are left out  ", m.damaged)) + s
	}
	if m.loading && !m.live {
		s = "reading…  " + s
	}
	return s
}
