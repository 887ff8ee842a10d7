package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"example.com/broker/broker/identity"
	"example.com/broker/recorder"
	"example.com/broker/stream"
)

// A process is a broker or an agent that runs beside the test.
type process struct {
	cmd *exec.Cmd
	log *logBuffer
}

// A logBuffer keeps what a process logs, and can be waited on.
type logBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// startProcess runs broker with these arguments in dir until the test ends.
func startProcess(t testing.TB, dir string, args ...string) *process {
	t.Helper()
	p := &process{exec.Command("broker", args...), &logBuffer{}}
	p.cmd.Dir = dir
	p.cmd.Stderr = p.log
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if p.cmd.ProcessState == nil {
			p.cmd.Process.Signal(syscall.SIGTERM)
			p.cmd.Wait()
		}
		if strings.Contains(p.log.String(), "DATA RACE") {
			t.Error("there is a data race")
		}
		if t.Failed() {
			t.Logf("broker %s:\n%s", strings.Join(args, " "), p.log)
		}
	})
	return p
}

// waitFor waits until the process has logged what matches, n times, and returns
// the submatches of the last.
func (p *process) waitFor(t testing.TB, pattern string, n int) []string {
	t.Helper()
	want := regexp.MustCompile(pattern)
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if all := want.FindAllStringSubmatch(p.log.String(), -1); len(all) >= n {
			return all[n-1]
		}
		if time.Now().After(deadline) {
			t.Fatalf("%q is not logged %d times in\n%s", pattern, n, p.log)
		}
	}
}

// A testBroker is broker serve in a process of its own, in a folder of its own.
type testBroker struct {
	*process
	dir  string
	addr string
}

// startBroker runs broker serve with this configuration, whose listen and data
// are added.
func startBroker(t testing.TB, dir, config string, flags ...string) *testBroker {
	t.Helper()
	writeFile(t, filepath.Join(dir, "broker.yaml"), "listen: 127.0.0.1:0\ndata: data\n"+config)
	b := &testBroker{process: startProcess(t, dir, append([]string{"serve", "--drain", "1s"}, flags...)...), dir: dir}
	b.addr = b.waitFor(t, `msg="broker is up" listen=(\S+)`, 1)[1]
	return b
}

func writeFile(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// startAgent joins an agent named far to the broker.
func (b *testBroker) startAgent(t testing.TB, servers string) *process {
	t.Helper()
	tokens := openTokens(filepath.Join(b.dir, "data"))
	token, err := tokens.Create("far", time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	ca, err := identity.LoadCA(filepath.Join(b.dir, "data"))
	if err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(b.dir, "agent.yaml")
	writeFile(t, config, fmt.Sprintf("broker: %s\nname: far\ntoken: %s\nca: %s\nservers:\n%s", b.addr, token, ca.Pin(), servers))
	p := startProcess(t, b.dir, "agent", "--config", config)
	b.waitFor(t, `msg="tunnel is up"`, 4)
	return p
}

// issue returns an identity file of a subject in groups.
func (b *testBroker) issue(t testing.TB, subject string, groups ...string) []byte {
	t.Helper()
	ca, err := identity.LoadCA(filepath.Join(b.dir, "data"))
	if err != nil {
		t.Fatal(err)
	}
	key, err := identity.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	der, err := ca.IssueUser(identity.Identity{Subject: subject, Groups: groups}, key.Public(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	bundle, err := identity.Bundle(key, der, ca.Roots())
	if err != nil {
		t.Fatal(err)
	}
	return bundle
}

// dial opens a session with server as ada, of the group analysts.
func (b *testBroker) dial(t testing.TB, server string, dial dialFunc) *tapped {
	t.Helper()
	cert, roots, err := identity.ReadBundle(b.issue(t, "ada", "analysts"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	c, err := dial(ctx, b.addr, clientTLS(server, "127.0.0.1", cert, roots))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return &tapped{Conn: c, over: make(chan struct{})}
}

var dials = map[string]dialFunc{"tls": stream.Dial, "quic": stream.DialQUIC}

// replayed returns the bytes of the newest session.
func (b *testBroker) replayed(t testing.TB, direction string, blocked bool) []byte {
	t.Helper()
	all := b.replays(t, direction, blocked)
	if len(all) == 0 {
		t.Fatal("nothing is on record")
	}
	return all[0]
}

// replays returns the bytes of all sessions, newest first.
func (b *testBroker) replays(t testing.TB, direction string, blocked bool) (all [][]byte) {
	t.Helper()
	src, err := recorder.OpenSource(filepath.Join(b.dir, "data"))
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	view, err := viewOf(direction, blocked)
	if err != nil {
		t.Fatal(err)
	}
	for s, err := range src.Sessions(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		if err := recorder.Replay(t.Context(), &out, src, s.ID, view); err != nil {
			t.Fatal(err)
		}
		all = append(all, out.Bytes())
	}
	return all
}

// verify proves the log of a broker that does not run.
func (b *testBroker) verify(t testing.TB) {
	t.Helper()
	data := filepath.Join(b.dir, "data")
	key, err := recorder.ReadVerifier(data)
	if err != nil {
		t.Fatal(err)
	}
	src, err := recorder.OpenSource(data)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	r, err := recorder.VerifyLog(t.Context(), src, key, nil, nil)
	if err != nil || len(r.Faults) > 0 || r.Seen == nil || r.Sessions == 0 || r.Running > 0 {
		t.Errorf("verified is %+v, %v", r, err)
	}
}
