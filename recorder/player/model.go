package player

import (
	"bytes"
	"fmt"
	"io"
	"sort"
	"strings"
	"time"

	tea "charm.land/bubbletea/v2"

	"example.com/broker/codec"
	"example.com/broker/recorder"
)

// A model is what is on the screen: the frames that pass the filter as a list, the
// one at the position below it, and a clock that goes on while it plays.
//
// Only Update changes it. Frames are added to the tape there, too, so that nothing
// is shared with the goroutine that reads them.
type model struct {
	session recorder.Session
	tape    *recorder.Tape
	labels  []label // of each frame of the tape

	only    *codec.Direction
	visible []int // frames of the tape that pass the filter
	at      int   // in visible; -1: before the first
	live    bool  // at is to stay at the last
	loading bool  // frames may still come
	damaged int
	failed  error

	playing bool
	speed   float64
	clock   time.Duration // since the session's start
	ticked  time.Time     // when the clock was put on

	width, height int
	raw           bool // frames are shown as they are, not indented
	scroll        int  // lines of the frame above the screen
	help          bool
	typing        bool   // a search is being typed
	pattern       string // of the search
	search        *search
	said          string // to the person, until the next key

	shown shown
}

// A label is a frame in the list.
type label struct {
	text  string
	parts int64 // how long the frame was when the label was made
}

// ticks is how often the clock is put on.
const ticks = 50 * time.Millisecond

type tick time.Time

func newModel(s recorder.Session, t *recorder.Tape, o Options) *model {
	m := &model{session: s, tape: t, only: o.Only, at: -1, loading: true, playing: true, speed: o.Speed, live: o.Live}
	if m.speed <= 0 {
		m.speed = 1
	}
	return m
}

// Init implements [tea.Model].
func (m *model) Init() tea.Cmd { return next() }

func next() tea.Cmd { return tea.Tick(ticks, func(t time.Time) tea.Msg { return tick(t) }) }

// Update implements [tea.Model].
func (m *model) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	switch msg := msg.(type) {
	case tea.WindowSizeMsg:
		m.width, m.height = msg.Width, msg.Height
	case arrived:
		for _, f := range msg {
			if err := m.add(f); err != nil {
				m.failed = err
				return m, tea.Quit
			}
		}
	case damaged:
		m.damaged++
	case lacking:
		m.said = msg.err.Error()
	case ended:
		m.loading = false
		if m.failed = msg.err; msg.err != nil {
			return m, tea.Quit
		}
		if m.live {
			m.live, m.playing, m.said = false, false, "the session has ended"
		}
	case tick:
		m.tick(time.Time(msg))
		return m, next()
	case *search:
		return m, m.goOn(msg)
	case tea.KeyPressMsg:
		return m, m.key(msg)
	}
	return m, nil
}

// add puts a frame on the tape, and into the list.
func (m *model) add(f recorder.Frame) error {
	if err := m.tape.Add(f); err != nil {
		return err
	}
	for i := len(m.labels); i < m.tape.Len(); i++ {
		m.labels = append(m.labels, label{})
		if m.passes(i) {
			m.visible = append(m.visible, i)
		}
	}
	if m.live && len(m.visible) > 0 {
		m.to(len(m.visible) - 1)
	}
	return nil
}

func (m *model) passes(i int) bool { return m.only == nil || m.tape.Frame(i).Direction == *m.only }

// time returns when frame i passed, since the session's start.
func (m *model) time(i int) time.Duration { return max(0, m.tape.Frame(i).Time.Sub(m.session.Start)) }

// length returns how long the session is, as far as it is known.
func (m *model) length() time.Duration {
	d := m.session.End.Sub(m.session.Start)
	if n := m.tape.Len(); n > 0 {
		d = max(d, m.time(n-1))
	}
	return max(d, m.clock)
}

func (m *model) tick(now time.Time) {
	since := now.Sub(m.ticked)
	if m.ticked.IsZero() || since < 0 {
		since = 0
	}
	m.ticked = now
	if !m.playing || m.live {
		return
	}
	m.clock += time.Duration(float64(since) * m.speed)
	for m.at+1 < len(m.visible) && m.time(m.visible[m.at+1]) <= m.clock {
		m.at++
		m.scroll = 0
	}
	if m.at == len(m.visible)-1 && !m.loading && m.clock >= m.length() {
		m.clock, m.playing = m.length(), false
	}
}

// to goes to a frame of the list, and stops there.
func (m *model) to(at int) {
	at = max(-1, min(at, len(m.visible)-1))
	if at != m.at {
		m.scroll = 0
	}
	if m.at = at; at >= 0 {
		m.clock = m.time(m.visible[at])
	}
}

// filter lets the frames of one direction through, or both, and stays where it is.
func (m *model) filter(only *codec.Direction) {
	frame := -1
	if m.at >= 0 {
		frame = m.visible[m.at]
	}
	m.only, m.visible = only, m.visible[:0]
	for i := range m.tape.Len() {
		if m.passes(i) {
			m.visible = append(m.visible, i)
		}
	}
	clock := m.clock
	m.to(sort.SearchInts(m.visible, frame+1) - 1)
	m.clock = clock
}

func (m *model) key(k tea.KeyPressMsg) tea.Cmd {
	name := k.String()
	m.said = ""
	if name == "ctrl+c" {
		return tea.Quit
	}
	if m.typing {
		return m.typed(k)
	}
	if m.search != nil {
		if name == "esc" {
			m.search = nil
		}
		return nil // until it is over
	}
	if m.help {
		m.help = false
		if name != "q" {
			return nil
		}
	}
	page := max(1, m.rows()-2)
	switch name {
	case "q":
		return tea.Quit
	case "?", "h":
		m.help = true
	case "space":
		if m.live {
			m.live, m.playing = false, false
		} else if m.playing = !m.playing; m.playing && m.at == len(m.visible)-1 && !m.loading {
			m.to(-1) // from the beginning
			m.clock = 0
		}
	case "+", "=":
		m.speed = min(m.speed*2, 1024)
	case "-", "_":
		m.speed = max(m.speed/2, 1.0/64)
	case "n", "right", "down", "j":
		m.step(m.at + 1)
	case "p", "left", "up", "k":
		m.step(max(0, m.at-1))
	case "home", "g":
		m.step(0)
	case "end", "G":
		m.step(len(m.visible) - 1)
		m.live = m.loading
	case "pgdown", "ctrl+d":
		m.scroll += page
	case "pgup", "ctrl+u":
		m.scroll = max(0, m.scroll-page)
	case "d":
		c2s, s2c := codec.C2S, codec.S2C
		switch {
		case m.only == nil:
			m.filter(&c2s)
		case *m.only == codec.C2S:
			m.filter(&s2c)
		default:
			m.filter(nil)
		}
	case "r":
		m.raw, m.scroll = !m.raw, 0
	case "/":
		m.typing = true
	case "N":
		return m.find(m.pattern)
	}
	return nil
}

// step goes to a frame by hand.
func (m *model) step(at int) {
	m.playing, m.live = false, false
	m.to(at)
}

func (m *model) typed(k tea.KeyPressMsg) tea.Cmd {
	switch name := k.String(); name {
	case "esc":
		m.typing = false
	case "enter":
		m.typing = false
		return m.find(m.pattern)
	case "backspace":
		if r := []rune(m.pattern); len(r) > 0 {
			m.pattern = string(r[:len(r)-1])
		}
	case "ctrl+u":
		m.pattern = ""
	default:
		if len(m.pattern) < 200 {
			m.pattern += k.Text
		}
	}
	return nil
}

// A search goes over the frames behind a position, and then over those in front.
type search struct {
	pattern []byte // in lower case
	from    int    // the position in visible
	gone    int    // frames that have been looked at
	rest    io.Reader
	tail    []byte // of what was read of the frame before
}

// searchStep is how much is looked at before keys are, in bytes.
const searchStep = 8 << 20

func (m *model) find(pattern string) tea.Cmd {
	if pattern == "" || len(m.visible) == 0 {
		return nil
	}
	m.playing, m.live = false, false
	m.search = &search{pattern: bytes.ToLower([]byte(pattern)), from: m.at + 1}
	return m.goOn(m.search)
}

func (m *model) goOn(s *search) tea.Cmd {
	if s != m.search {
		return nil // given up
	}
	buf := make([]byte, 64<<10)
	for looked := 0; looked < searchStep; {
		if s.gone == len(m.visible) {
			m.search = nil
			m.said = "not found: " + printable(string(s.pattern))
			return nil
		}
		at := (s.from + s.gone) % len(m.visible)
		if s.rest == nil {
			s.rest, s.tail = m.tape.Reader(m.visible[at]), nil
			if strings.Contains(strings.ToLower(m.label(m.visible[at])), string(s.pattern)) {
				return m.found(at)
			}
		}
		n, err := io.ReadFull(s.rest, buf)
		looked += n + 100
		text := append(s.tail, bytes.ToLower(buf[:n])...)
		if bytes.Contains(text, s.pattern) {
			return m.found(at)
		}
		s.tail = bytes.Clone(text[max(0, len(text)-len(s.pattern)):])
		if err != nil {
			s.rest = nil
			s.gone++
		}
	}
	return func() tea.Msg { return s }
}

func (m *model) found(at int) tea.Cmd {
	m.search = nil
	m.to(at)
	m.said = fmt.Sprintf("found in frame %d; N goes on", m.visible[at]+1)
	return nil
}
