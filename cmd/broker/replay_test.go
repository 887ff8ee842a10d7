package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"example.com/broker/recorder"
	"example.com/broker/stream"
	"github.com/modelcontextprotocol/go-sdk/mcp"
	"golang.org/x/sys/unix"
)

// newest returns the id of the newest session.
func (b *testBroker) newest(t *testing.T) string {
	t.Helper()
	src, err := recorder.OpenSource(filepath.Join(b.dir, "data"))
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	for s, err := range src.Sessions(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		return s.ID
	}
	t.Fatal("nothing is on record")
	return ""
}

// TestReplayServe compares what the official client sees of a server with what it
// sees of the recording that stands in for it, in both eras of MCP, beside the
// running broker, behind it, and without it.
func TestReplayServe(t *testing.T) {
	b := startBroker(t, t.TempDir(), `servers:
  modern: {stdio: [sdk-server]}
  legacy: {stdio: [sdk-server, "2025-11-25"]}
`+everything)
	sessions, seen := map[string]string{}, map[string][]string{}
	for _, era := range []string{"modern", "legacy"} {
		conn := b.dial(t, era, stream.Dial)
		seen[era] = useEverything(t, era, &mcp.IOTransport{Reader: conn, Writer: conn})
		if err := conn.ended(t.Context()); err != nil {
			t.Error(err)
		}
		sessions[era] = b.newest(t)
	}
	serve := func(era string) []string {
		cmd := exec.Command("broker", "replay", "--serve", sessions[era])
		cmd.Dir = b.dir
		var log logBuffer
		cmd.Stderr = &log
		defer func() {
			if text := log.String(); text != "" {
				t.Errorf("stderr: %s", text)
			}
		}()
		return useEverything(t, era, &mcp.CommandTransport{Command: cmd})
	}
	for era := range sessions {
		t.Run(era+" beside the broker", func(t *testing.T) { same(t, seen[era], serve(era)) })
	}
	data := filepath.Join(b.dir, "data")
	behind := startBroker(t, t.TempDir(), `servers:
  modern: {stdio: [broker, replay, --serve, --data, "`+data+`", "`+sessions["modern"]+`"]}
  legacy: {stdio: [broker, replay, --serve, --data, "`+data+`", "`+sessions["legacy"]+`"]}
`+everything)
	for era := range sessions {
		t.Run(era+" behind a broker", func(t *testing.T) {
			conn := behind.dial(t, era, stream.Dial)
			same(t, seen[era], useEverything(t, era, &mcp.IOTransport{Reader: conn, Writer: conn}))
		})
	}
	b.cmd.Process.Signal(os.Interrupt)
	b.cmd.Wait()
	for era := range sessions {
		t.Run(era+" without the broker", func(t *testing.T) { same(t, seen[era], serve(era)) })
	}
	if strings.Contains(b.log.String(), "level=ERROR") {
		t.Error("the broker logs an error")
	}
}

// TestReplayAgainst runs a session of the official client again, against the server
// that answered it and against one that the other era of MCP is spoken to.
func TestReplayAgainst(t *testing.T) {
	b := startBroker(t, t.TempDir(), `servers:
  modern: {stdio: [sdk-server]}
  legacy: {stdio: [sdk-server, "2025-11-25"]}
`+everything)
	writeFile(t, filepath.Join(b.dir, "ada.pem"), string(b.issue(t, "ada", "analysts")))
	for _, era := range []string{"modern", "legacy"} {
		conn := b.dial(t, era, stream.Dial)
		useEverything(t, era, &mcp.IOTransport{Reader: conn, Writer: conn})
		if err := conn.ended(t.Context()); err != nil {
			t.Error(err)
		}
		session := b.newest(t)
		against := func(server string) (string, int) {
			cmd := exec.Command("broker", "replay", "--against", server, "--broker", b.addr, "--identity", "ada.pem", session)
			cmd.Dir = b.dir
			out, err := cmd.Output()
			if cmd.ProcessState == nil {
				t.Fatal(err)
			}
			return string(out), cmd.ProcessState.ExitCode()
		}
		if out, status := against(era); status != 0 || strings.Count(out, "same ") < 60 {
			t.Errorf("%s: exit status %d\n%s", era, status, out)
		}
		if era == "legacy" {
			continue
		}
		if out, status := against("legacy"); status != 1 || !strings.Contains(out, "different  server/discover (frame 1)\n") {
			t.Errorf("%s against legacy: exit status %d\n%s", era, status, out)
		}
	}
}

// A terminal is one that a command runs on.
type terminal struct {
	*os.File
	t      *testing.T
	screen logBuffer
	over   chan struct{} // closed when all that was written is on the screen
}

// onTerminal runs broker with these arguments on a terminal.
func onTerminal(t *testing.T, dir string, args ...string) (*terminal, *exec.Cmd) {
	t.Helper()
	far, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { far.Close() })
	control, err := far.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var number int
	control.Control(func(fd uintptr) {
		if err = unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0); err == nil {
			number, err = unix.IoctlGetInt(int(fd), unix.TIOCGPTN)
		}
		unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: 30, Col: 100})
	})
	if err != nil {
		t.Skip(err)
	}
	near, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skip(err)
	}
	defer near.Close()
	cmd := exec.Command("broker", args...)
	cmd.Dir, cmd.Stdin, cmd.Stdout, cmd.Stderr = dir, near, near, near
	cmd.Env = append(os.Environ(), "TERM=xterm-256color")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	term := &terminal{File: far, t: t, over: make(chan struct{})}
	go func() { // ends with the command
		io.Copy(&term.screen, far)
		close(term.over)
	}()
	return term, cmd
}

// shows waits until text has been on the screen.
func (term *terminal) shows(text string) {
	term.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !strings.Contains(term.screen.String(), text); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			term.t.Fatalf("%q is never on the screen:\n%q", text, term.screen.String())
		}
	}
}

// TestReplayTerminal plays a session on a terminal.
func TestReplayTerminal(t *testing.T) {
	b := startBroker(t, t.TempDir(), "servers:\n  sdk: {stdio: [sdk-server, \"2025-11-25\"]}\n"+everything)
	conn := b.dial(t, "sdk", stream.Dial)
	const hostile = "no frame \x1b]0;owned\x07\x1b[2J"
	fmt.Fprintf(conn, "%s\n%s\n%s\n", hostile, request(1), `{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"echo","arguments":{"text":"needle"}}}`)
	in := bufio.NewReader(conn)
	for range 3 {
		nextLine(t, in)
	}
	conn.Close()
	session := b.newest(t)

	term, cmd := onTerminal(t, b.dir, "replay", "--speed", "1000", session)
	term.shows("blocked")
	io.WriteString(term, "/needle\r")
	term.shows("found in frame")
	io.WriteString(term, "?")
	term.shows("it reached nobody")
	io.WriteString(term, "xq")
	if err := cmd.Wait(); err != nil {
		t.Errorf("q: %v", err)
	}
	<-term.over
	if text := term.screen.String(); strings.Contains(text, "owned\x07") || strings.Contains(text, "\x1b]0;") {
		t.Errorf("a control sequence on record reaches the terminal: %q", text)
	} else if !strings.Contains(text, "\x1b[?1049l") || !strings.Contains(text, "\x1b[?25h") {
		t.Errorf("the terminal is not left as it was: %q", text[max(0, len(text)-200):])
	}

	// SIGTERM is a way to quit; --raw writes bytes, whatever they are.
	term, cmd = onTerminal(t, b.dir, "replay", session)
	term.shows("playing")
	cmd.Process.Signal(syscall.SIGTERM)
	if err := cmd.Wait(); err != nil {
		t.Errorf("SIGTERM: %v", err)
	}
	term, cmd = onTerminal(t, b.dir, "replay", "--raw", "--blocked", session)
	if err := cmd.Wait(); err != nil {
		t.Errorf("raw: %v", err)
	}
	term.shows(hostile)
}

// TestReplayFollow follows a session that runs, on a pipe and on a terminal.
func TestReplayFollow(t *testing.T) {
	b := startBroker(t, t.TempDir(), "servers:\n  sdk: {stdio: [sdk-server, \"2025-11-25\"]}\n"+everything)
	conn := b.dial(t, "sdk", stream.Dial)
	answers := bufio.NewReader(conn)
	io.WriteString(conn, request(1))
	first := nextLine(t, answers)
	session := b.newest(t)

	follow := exec.Command("broker", "replay", "--follow", "--direction", "s2c", session)
	interrupted := exec.Command("broker", "replay", "-f", session)
	var pipes []*bufio.Reader
	for _, cmd := range []*exec.Cmd{follow, interrupted} {
		cmd.Dir, cmd.Stderr = b.dir, b.log
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		pipes = append(pipes, bufio.NewReader(out))
	}
	term, player := onTerminal(t, b.dir, "replay", "--follow", session)
	term.shows(" live ")
	if got := nextLine(t, pipes[0]); got != first {
		t.Errorf("the first is %q, want %q", got, first)
	}
	nextLine(t, pipes[1])
	for i := range 5 {
		io.WriteString(conn, request(i+2))
		if got, want := nextLine(t, pipes[0]), nextLine(t, answers); got != want {
			t.Errorf("followed %q, want %q", got, want)
		}
	}
	interrupted.Process.Signal(os.Interrupt)
	if err := interrupted.Wait(); err != nil {
		t.Errorf("interrupted: %v", err)
	}
	conn.CloseWrite()
	rest, _ := io.ReadAll(answers)
	if got, err := io.ReadAll(pipes[0]); err != nil || string(got) != string(rest) {
		t.Errorf("the rest is %q, %v, want %q", got, err, rest)
	}
	if err := follow.Wait(); err != nil {
		t.Errorf("the end: %v", err)
	}
	term.shows("the session has ended")
	io.WriteString(term, "q")
	if err := player.Wait(); err != nil {
		t.Errorf("q: %v", err)
	}
}
