package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// A logText is a log to read.
type logText struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logText) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logText) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// open starts a shell script as a server.
func open(t *testing.T, u Stdio, script string) (Conn, *logText) {
	t.Helper()
	u.Command = []string{"sh", "-c", script}
	return openUpstream(t, &u)
}

// openUpstream opens a session with an upstream.
func openUpstream(t *testing.T, u Upstream) (Conn, *logText) {
	t.Helper()
	log := &logText{}
	a := &Agent{Servers: map[string]Upstream{"s": u}, Log: slog.New(slog.NewTextHandler(log, nil))}
	c, err := a.Open(t.Context(), Session{ID: "id1", Server: "s"})
	if err != nil {
		t.Fatal(err)
	}
	return c, log
}

func TestStdio(t *testing.T) {
	c, log := open(t, Stdio{Env: []string{"GREETING=hello"}, Dir: "/"}, `echo "oops" >&2; read x; echo "{\"x\":\"$x $GREETING $PWD\"}"; printf 'no end' >&2`)
	io.WriteString(c, "frame\n")
	c.CloseWrite()
	got, err := io.ReadAll(c)
	if string(got) != "{\"x\":\"frame hello /\"}\n" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	c.Close()
	for _, want := range []string{`msg="server stderr" session=id1 server=s pid=`, "line=oops", `line="no end"`} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("%q is not in the log:\n%s", want, log)
		}
	}
}

// What is printed before the first frame is left out; what comes after it is
// for the broker to judge.
func TestBanner(t *testing.T) {
	c, log := open(t, Stdio{}, `echo 'Welcome!'; echo; printf '%05000d\n' 1; echo '{"a":1}'; echo 'not a frame'`)
	got, err := io.ReadAll(c)
	if string(got) != "{\"a\":1}\nnot a frame\n" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	c.Close()
	if n := strings.Count(log.String(), "level=WARN"); n != 2 {
		t.Errorf("%d warnings, want 2:\n%s", n, log)
	}
	if strings.Contains(log.String(), "Welcome") {
		t.Errorf("what the server printed is in the log:\n%s", log)
	}
}

// TestEnd checks that a server ends with its session, and all that it started.
func TestEnd(t *testing.T) {
	for name, script := range map[string]string{
		"obeys SIGTERM":       `sleep 600 & echo "{$$ $!}"; wait`,
		"ignores SIGTERM":     `trap '' TERM; sleep 600 & echo "{$$ $!}"; while :; do sleep 1; done`,
		"leaves a child":      `sleep 600 & echo "{$$ $!}"`,
		"its child holds out": `(trap '' TERM; exec sleep 600) & echo "{$$ $!}"; exit 3`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, _ := open(t, Stdio{Kill: 100 * time.Millisecond}, script)
			buf := make([]byte, 100)
			n, err := c.Read(buf)
			if err != nil {
				t.Fatal(err)
			}
			woken := make(chan error, 1)
			go func() { _, err := io.Copy(io.Discard, c); woken <- err }()
			c.Close()
			if err := <-woken; err != nil && !errors.Is(err, os.ErrClosed) {
				t.Errorf("the read that Close woke: %v", err)
			}
			for _, field := range strings.Fields(strings.Trim(string(buf[:n]), "{}\n")) {
				pid, err := strconv.Atoi(field)
				if err != nil {
					t.Fatal(err)
				}
				for deadline := time.Now().Add(10 * time.Second); alive(pid); time.Sleep(5 * time.Millisecond) {
					if time.Now().After(deadline) {
						t.Fatalf("process %d is left", pid)
					}
				}
			}
		})
	}
}

// alive reports a process that runs; who has ended and waits for init to notice does not.
func alive(pid int) bool {
	if syscall.Kill(pid, 0) != nil {
		return false
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !strings.Contains(string(b), ") Z ")
}

func TestSocket(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		address := "127.0.0.1:0"
		if network == "unix" {
			address = filepath.Join(t.TempDir(), "s")
		}
		l, err := net.Listen(network, address)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			c, err := l.Accept()
			if err != nil {
				return
			}
			defer c.Close()
			b, _ := io.ReadAll(c)
			fmt.Fprintf(c, "%d bytes", len(b))
		}()
		u := &Socket{Network: network, Address: l.Addr().String()}
		c, err := u.Open(context.Background(), Session{}, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(c, "12345")
		c.CloseWrite()
		if got, err := io.ReadAll(c); string(got) != "5 bytes" || err != nil {
			t.Errorf("%s: %q, %v", network, got, err)
		}
		c.Close()
		l.Close()
		if _, err := u.Open(context.Background(), Session{}, nil); err == nil {
			t.Errorf("%s: a server that is gone is reached", network)
		}
	}
}

// TestOpenErrors checks that the client learns no more than it needs.
func TestOpenErrors(t *testing.T) {
	log := &logText{}
	a := &Agent{Servers: map[string]Upstream{"s": &Stdio{Command: []string{"/secret/path/to/server"}}}, Log: slog.New(slog.NewTextHandler(log, nil))}
	var e *Error
	if _, err := a.Open(t.Context(), Session{Server: "s"}); !errors.As(err, &e) || e.Code != 502 || strings.Contains(err.Error(), "secret") {
		t.Errorf("error %v", err)
	}
	if !strings.Contains(log.String(), "/secret/path/to/server: no such file") {
		t.Errorf("the reason is not in the log: %s", log)
	}
	if _, err := a.Open(t.Context(), Session{Server: "t"}); !errors.As(err, &e) || e.Code != 502 {
		t.Errorf("error %v", err)
	}
}
