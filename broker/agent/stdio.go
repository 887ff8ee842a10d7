package agent

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"example.com/broker/broker/agent/credential"
)

// Stdio is an upstream that is a child process a session, in a process group of
// its own. It reads frames on stdin and writes them on stdout; what it writes
// to stderr goes to the log, line by line.
//
// Some servers print a banner to stdout. A line before the first frame that
// cannot be a frame, because it does not start with '{', is left out with a
// warning; afterwards everything passes, for the broker to judge.
type Stdio struct {
	Command []string      // the program and its arguments
	Env     []string      // as in os/exec; if nil, the agent's own
	Dir     string        // if empty, the agent's own
	Kill    time.Duration // from SIGTERM to SIGKILL; if zero, 3 s
	// Google, if not nil, is the credential that the child's Google libraries find:
	// a metadata server of its own gives it tokens, for as long as the session lasts.
	Google *credential.Google
}

// Open starts the child.
func (u *Stdio) Open(_ context.Context, s Session, log *slog.Logger) (Conn, error) {
	if len(u.Command) == 0 {
		return nil, errors.New("stdio: no command")
	}
	if u.Google == nil {
		return u.start(u.Env, nil, log)
	}
	m, err := credential.StartMetadata(u.Google, credential.Session(s), log)
	if err != nil {
		return nil, err
	}
	env := u.Env
	if env == nil {
		env = os.Environ()
	}
	if env, err = m.Environ(env); err == nil {
		var c Conn
		if c, err = u.start(env, m, log); err == nil {
			return c, nil
		}
	}
	m.Close()
	return nil, err
}

// start starts the child. m is its metadata server, or nil.
func (u *Stdio) start(env []string, m *credential.Metadata, log *slog.Logger) (Conn, error) {
	cmd := exec.Command(u.Command[0], u.Command[1:]...)
	cmd.Env = env
	cmd.Dir = u.Dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}

	var ours, theirs [3]*os.File
	closeAll := func(files [3]*os.File) {
		for _, f := range files {
			if f != nil {
				f.Close()
			}
		}
	}
	for i := range ours {
		r, w, err := os.Pipe()
		if err != nil {
			closeAll(ours)
			closeAll(theirs)
			return nil, err
		}
		if i == 0 {
			theirs[i], ours[i] = r, w
		} else {
			ours[i], theirs[i] = r, w
		}
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = theirs[0], theirs[1], theirs[2]
	err := cmd.Start()
	closeAll(theirs)
	if err != nil {
		closeAll(ours)
		return nil, err
	}
	kill := u.Kill
	if kill == 0 {
		kill = 3 * time.Second
	}
	if m != nil {
		m.Admit(cmd.Process.Pid)
	}
	c := &child{
		metadata: m,
		stdin:    ours[0], stdout: ours[1], stderr: ours[2],
		pid: cmd.Process.Pid, kill: kill,
		log: log.With("pid", cmd.Process.Pid), exited: make(chan struct{}), logged: make(chan struct{}),
	}
	c.out = bannerReader{r: bufio.NewReaderSize(c.stdout, 4<<10), file: c.stdout, log: c.log}
	go c.logStderr()
	go c.wait(cmd)
	return c, nil
}

// A child is a running server. Three goroutines know it: the session's, which
// reads, writes and closes, logStderr and wait.
type child struct {
	stdin, stdout, stderr *os.File
	out                   bannerReader
	pid                   int // of the process, and of its group
	kill                  time.Duration
	metadata              *credential.Metadata // may be nil
	log                   *slog.Logger
	exited                chan struct{} // closed when the process is gone
	logged                chan struct{} // closed when stderr is read to its end
	closing               sync.Once
}

func (c *child) Read(p []byte) (int, error)  { return c.out.Read(p) }
func (c *child) Write(p []byte) (int, error) { return c.stdin.Write(p) }
func (c *child) CloseWrite() error           { return c.stdin.Close() }

// wait reaps the process, and ends what it left in its group: a shell's or
// npx's children would hold the session's pipes open.
func (c *child) wait(cmd *exec.Cmd) {
	err := cmd.Wait()
	syscall.Kill(-c.pid, syscall.SIGKILL)
	close(c.exited)
	if err != nil {
		c.log.Info("server ended", "error", err)
	} else {
		c.log.Debug("server ended")
	}
}

// Close ends the child's group: SIGTERM, and SIGKILL for who is left after
// c.kill. It returns when the process is gone.
func (c *child) Close() error {
	c.closing.Do(func() {
		if c.metadata != nil {
			defer c.metadata.Close()
		}
		c.stdin.Close()
		select {
		case <-c.exited:
		default:
			syscall.Kill(-c.pid, syscall.SIGTERM)
			select {
			case <-c.exited:
			case <-time.After(c.kill):
				c.log.Warn("server ignores SIGTERM and is killed")
				syscall.Kill(-c.pid, syscall.SIGKILL)
				<-c.exited
			}
		}
		// Whoever left the group may hold the other ends: do not wait for their EOF.
		c.stdout.Close()
		select {
		case <-c.logged:
		case <-time.After(time.Second):
		}
		c.stderr.Close()
		<-c.logged
	})
	return nil
}

// maxLogLine bounds a line of stderr in the log, in bytes; the rest of the line is left out.
const maxLogLine = 8 << 10

func (c *child) logStderr() {
	defer close(c.logged)
	r := bufio.NewReaderSize(c.stderr, maxLogLine)
	for {
		line, err := r.ReadSlice('\n')
		if text := bytes.TrimRight(line, "\r\n"); len(text) > 0 {
			c.log.Info("server stderr", "line", string(text))
		}
		for errors.Is(err, bufio.ErrBufferFull) {
			_, err = r.ReadSlice('\n')
		}
		if err != nil {
			return
		}
	}
}

// A bannerReader leaves out the lines before the first that starts with '{'.
type bannerReader struct {
	r       *bufio.Reader
	file    *os.File
	log     *slog.Logger
	started bool
}

func (b *bannerReader) Read(p []byte) (int, error) {
	for !b.started {
		first, err := b.r.Peek(1)
		if err != nil {
			return 0, readError(err)
		}
		switch first[0] {
		case '{':
			b.started = true
		case ' ', '\t', '\r', '\n':
			b.r.Discard(1)
		default:
			n, err := b.discardLine()
			b.log.Warn("server printed a line that is no frame to stdout", "bytes", n)
			if err != nil {
				return 0, readError(err)
			}
		}
	}
	if b.r.Buffered() > 0 {
		return b.r.Read(p)
	}
	n, err := b.file.Read(p)
	return n, readError(err)
}

func (b *bannerReader) discardLine() (n int, err error) {
	for {
		part, err := b.r.ReadSlice('\n')
		n += len(part)
		if !errors.Is(err, bufio.ErrBufferFull) {
			return n, err
		}
	}
}

// readError makes an end of what Close did to the pipe.
func readError(err error) error {
	if err == nil || errors.Is(err, io.EOF) || errors.Is(err, os.ErrClosed) {
		return err
	}
	return fmt.Errorf("read from server: %w", err)
}
