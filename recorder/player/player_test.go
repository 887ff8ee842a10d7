package player

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"

	tea "charm.land/bubbletea/v2"
	"github.com/charmbracelet/x/ansi"

	"example.com/broker/codec"
	"example.com/broker/recorder"
)

var start = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// A frame at a time in ms.
func at(ms int, d codec.Direction, v recorder.Verdict, text string) recorder.Frame {
	return recorder.Frame{Direction: d, Verdict: v, Time: start.Add(time.Duration(ms) * time.Millisecond), Bytes: []byte(text)}
}

var story = arrived{
	at(0, codec.C2S, recorder.Delivered, `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"query","arguments":{"a":[1,{}]}}}`),
	at(10, codec.S2C, recorder.Found, `[{"detector":"email","offset":3},{"detector":"email","offset":9}]`),
	at(10, codec.S2C, recorder.Masked, `{"jsonrpc":"2.0","id":1,"result":{"x":"[masked:email]"}}`),
	at(1000, codec.C2S, recorder.Blocked, `{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"drop"}}`),
	at(1001, codec.S2C, recorder.Answered, `{"jsonrpc":"2.0","id":2,"error":{"code":403,"message":"no"}}`),
	at(2000, codec.S2C, recorder.Edited, `{"jsonrpc":"2.0","method":"notifications/x"}`),
}

func testModel(t testing.TB, o Options, frames arrived) *model {
	t.Helper()
	tape, err := recorder.NewTape()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tape.Close() })
	m := newModel(recorder.Session{ID: "s", Subject: "ada", Server: "sdk", Start: start}, tape, o)
	m.Update(tea.WindowSizeMsg{Width: 100, Height: 30})
	m.Update(frames)
	m.Update(ended{})
	return m
}

// press presses keys, by their names.
func press(m *model, keys ...string) (cmd tea.Cmd) {
	for _, k := range keys {
		special := map[string]rune{"space": ' ', "enter": tea.KeyEnter, "esc": tea.KeyEscape, "right": tea.KeyRight, "left": tea.KeyLeft, "pgdown": tea.KeyPgDown}
		key := tea.KeyPressMsg{Code: special[k]}
		if key.Code == 0 {
			key = tea.KeyPressMsg{Code: []rune(k)[0], Text: k}
		}
		_, cmd = m.Update(key)
		for cmd != nil { // a search that goes on
			s, ok := cmd().(*search)
			if !ok {
				return cmd
			}
			_, cmd = m.Update(s)
		}
	}
	return cmd
}

func screen(m *model) string { return ansi.Strip(m.View().Content) }

func has(t *testing.T, m *model, want ...string) {
	t.Helper()
	for _, w := range want {
		if s := screen(m); !strings.Contains(s, w) {
			t.Errorf("%q is not on the screen\n%s", w, s)
		}
	}
}

func TestMarks(t *testing.T) {
	m := testModel(t, Options{}, story)
	press(m, "g")
	has(t, m, "s  ada → sdk", " paused ", "tools/call query #1", "answer to tools/call query #1  masked  found email (2)",
		"tools/call drop #2  blocked", "answer to tools/call drop (error) #2  answered", "notifications/x  edited",
		"── 1/5  c2s, tools/call query #1", "    \"arguments\": {\n      \"a\": [\n        1,\n        {}\n      ]\n", "×", "•", "0:02.000")
	press(m, "r")
	has(t, m, `"arguments":{"a":[1,{}]}}}`)
	press(m, "?")
	has(t, m, "play, pause", "it reached nobody")
	press(m, "x")
	has(t, m, "── 1/5")
	if cmd := press(m, "q"); cmd == nil {
		t.Error("q does nothing")
	} else if _, ok := cmd().(tea.QuitMsg); !ok {
		t.Error("q does not quit")
	}
}

func TestSteps(t *testing.T) {
	m := testModel(t, Options{}, story)
	for _, test := range []struct {
		keys string
		want string
	}{
		{"g", "── 1/5"}, {"n", "── 2/5"}, {"right", "── 3/5"}, {"left", "── 2/5"}, {"G", "── 5/5"}, {"n", "── 5/5"},
		{"d", "── 3/5"}, {"p", "── 1/5"}, {"d", "s2c only"}, {"n", "── 2/5"}, {"d", "both directions"},
		{"/ D R O P enter", "found in frame 3"}, {"N", "found in frame 4"}, {"N", "found in frame 3"},
		{"/ q enter", "not found: dropq"}, {"/ esc", "n/p step"},
	} {
		if press(m, strings.Fields(test.keys)...); !strings.Contains(screen(m), test.want) {
			t.Errorf("after %s, %q is not on the screen\n%s", test.keys, test.want, screen(m))
		}
	}
}

// The clock goes with the session's own time, and faster or slower by request.
func TestClock(t *testing.T) {
	m := testModel(t, Options{Speed: 2}, story)
	now := time.Now()
	pass := func(ms int) { now = now.Add(time.Duration(ms) * time.Millisecond); m.Update(tick(now)) }
	pass(0)
	has(t, m, "── 1/5", "playing ×2")
	pass(4)
	has(t, m, "── 1/5")
	pass(2)
	has(t, m, "── 2/5", "0:00.012")
	press(m, "space")
	pass(10_000)
	has(t, m, "── 2/5", "paused ×2")
	press(m, "-", "space")
	pass(988)
	has(t, m, "── 3/5", "playing ×1")
	press(m, "+", "+")
	pass(1000)
	has(t, m, "── 5/5", "paused ×4", "0:02.000")
	press(m, "space")
	pass(0)
	has(t, m, "── 1/5", "playing ×4")
}

// What a peer has sent never reaches the terminal but as printable characters.
func TestHostile(t *testing.T) {
	evil := "\x1b[2J\x1b]0;owned\x07\u009b31m\u202e\x00\r\x7f\xff" + strings.Repeat("}", 50) + strings.Repeat("[", 50)
	quoted := `\u001b[2J\u0007\u009b`
	frames := arrived{
		at(0, codec.C2S, recorder.Blocked, evil),
		at(1, codec.C2S, recorder.Delivered, `{"jsonrpc":"2.0","id":"`+quoted+evil+`","method":"`+quoted+`","params":{"name":"`+quoted+`"}}`),
		at(1, codec.C2S, recorder.Delivered, `{"jsonrpc":"2.0","id":"`+quoted+`","method":"`+quoted+`","params":{"name":"`+quoted+`"}}`),
		at(2, codec.S2C, recorder.Found, `[{"detector":"`+quoted+`","offset":1}]`),
		at(2, codec.S2C, recorder.Verdict(7), `{"id":"`+quoted+`"`),
		at(-5, codec.S2C, recorder.Delivered, ``),
		at(2, codec.S2C, recorder.Delivered, `"\`),
	}
	m := testModel(t, Options{}, frames)
	m.session.ID, m.session.Subject, m.session.Server = evil, evil, evil
	for _, key := range []string{"g", "n", "n", "n", "n", "n", "r", "p", "p", "p", "p", "p"} {
		press(m, key)
		for line := range strings.SplitSeq(m.View().Content, "\n") {
			for _, r := range ansi.Strip(line) {
				if !unicode.IsPrint(r) {
					t.Fatalf("%U is on the screen in %q", r, line)
				}
			}
			if w := ansi.StringWidth(line); w > 100 {
				t.Errorf("a line is %d wide", w)
			}
			// The only sequences are the player's own, which select a style.
			for i := strings.IndexByte(line, 0x1b); i >= 0; i = strings.IndexByte(line, 0x1b) {
				end := strings.IndexFunc(line[i+2:], func(r rune) bool { return r >= 0x40 })
				if line[i+1] != '[' || line[i+2+end] != 'm' {
					t.Fatalf("a control sequence is on the screen: %q", line[i:])
				}
				line = line[i+3+end:]
			}
		}
	}
	press(m, "/", "\x1b", "\u202e")
	if s := screen(m); strings.ContainsAny(s, "\x1b\u202e") {
		t.Errorf("what is searched for is on the screen as it is: %q", s)
	}
}

// Of a long frame the beginning is shown, and how long it is.
func TestLong(t *testing.T) {
	var frames arrived
	part := strings.Repeat("0123456789abcdef", 64<<10)
	frames = append(frames, recorder.Frame{Direction: codec.S2C, Time: start, Bytes: []byte(`{"jsonrpc":"2.0","id":1,"result":"`), More: true})
	for range 20 {
		frames = append(frames, recorder.Frame{Direction: codec.S2C, Time: start, Bytes: []byte(part), More: true})
	}
	m := testModel(t, Options{}, append(frames, recorder.Frame{Direction: codec.S2C, Time: start, Bytes: []byte(`needle"}`)}))
	press(m, "g")
	has(t, m, "the first 64.0 KiB of 20.0 MiB", `"result": "0123`)
	for range 100 {
		press(m, "pgdown")
	}
	has(t, m, "the first 64.0 KiB of 20.0 MiB")
	press(m, "/")
	press(m, strings.Split("fNEEDLE", "")...)
	press(m, "enter")
	has(t, m, "found in frame 1;")
}

func TestSizes(t *testing.T) {
	m := testModel(t, Options{}, story)
	press(m, "g")
	for _, size := range [][2]int{{0, 0}, {20, 8}, {21, 9}, {500, 200}} {
		m.Update(tea.WindowSizeMsg{Width: size[0], Height: size[1]})
		width, height := m.size()
		lines := strings.Split(m.View().Content, "\n")
		if len(lines) != height {
			t.Errorf("%v: %d lines", size, len(lines))
		}
		for _, l := range lines {
			if w := ansi.StringWidth(l); w > width {
				t.Errorf("%v: a line is %d wide", size, w)
			}
		}
	}
}

// A session that runs is shown as it is recorded, until the person looks back.
func TestLive(t *testing.T) {
	tape, err := recorder.NewTape()
	if err != nil {
		t.Fatal(err)
	}
	defer tape.Close()
	m := newModel(recorder.Session{ID: "s", Start: start}, tape, Options{Live: true})
	m.Update(story[:1])
	has(t, m, " live ", "── 1/1")
	m.Update(story[1:3])
	has(t, m, "── 2/2")
	press(m, "p")
	m.Update(story[3:4])
	has(t, m, "── 1/3", " paused ")
	press(m, "G")
	m.Update(story[4:])
	has(t, m, "── 5/5", " live ")
	m.Update(ended{})
	has(t, m, "── 5/5", " paused ", "the session has ended")
}

// What cannot be read is said, or ends the player.
func TestFailures(t *testing.T) {
	m := testModel(t, Options{}, story)
	m.Update(damaged{errors.New("x")})
	has(t, m, "1 damaged blocks are left out")
	want := errors.New("the broker has gone")
	if _, cmd := m.Update(ended{want}); cmd == nil || m.failed != want {
		t.Errorf("failed is %v", m.failed)
	}
}

// FuzzLines: no frame makes the player panic, or write a control character, and
// indented it has every byte that is no white space.
func FuzzLines(f *testing.F) {
	for _, frame := range story {
		f.Add(frame.Bytes)
	}
	f.Add([]byte("{\"\\"))
	f.Add([]byte("{\xc8\n\x8a"))
	f.Fuzz(func(t *testing.T, b []byte) {
		method, name, id, _ := envelope(b)
		for _, line := range append(lines(b, false, 20), short(method), short(name), short(id)) {
			if i := strings.IndexFunc(line, func(r rune) bool { return !unicode.IsPrint(r) }); i >= 0 {
				t.Fatalf("%q", line[i:])
			}
		}
		// By bytes: those on both sides of white space may make one rune without it.
		dense := func(b []byte) []byte {
			return slices.DeleteFunc(slices.Clone(b), func(c byte) bool { return strings.IndexByte(" \t\r\n", c) >= 0 })
		}
		if got := bytes.Join(indent(b), nil); !bytes.Equal(dense(got), dense(b)) {
			t.Errorf("%q becomes %q", b, got)
		}
	})
}

func TestIndent(t *testing.T) {
	for in, want := range map[string]string{
		`{"a":[1, {}],"b" : "x,\"{"}`: "{\n  \"a\": [\n    1,\n    {}\n  ],\n  \"b\": \"x,\\\"{\"\n}",
		`{"a":"cut`:                   "{\n  \"a\": \"cut",
		`no JSON`:                     "no JSON",
		`[]]]`:                        "[]\n]\n]",
	} {
		if got := string(bytes.Join(indent([]byte(in)), []byte("\n"))); got != want {
			t.Errorf("%s: got %q, want %q", in, got, want)
		}
	}
}

// TestNotes checks that a frame is marked with what rules say of it, and that what they
// say writes no control sequence.
func TestNotes(t *testing.T) {
	m := testModel(t, Options{}, arrived{
		at(0, codec.C2S, recorder.Noted, `{"mode":"observe","says":"deny","rule":"analysts","reason":"no\u001b[2J"}`),
		at(0, codec.C2S, recorder.Delivered, `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"drop"}}`),
		at(1, codec.C2S, recorder.Delivered, `{"jsonrpc":"2.0","id":2,"method":"ping"}`),
	})
	if got := m.row(0); !strings.Contains(got, `rule analysts says deny, and is only observed: no\u001b[2J`) {
		t.Errorf("the row is %q", got)
	}
	if got := m.row(1); strings.Contains(got, "rule") {
		t.Errorf("the row of the next frame is %q", got)
	}
}
