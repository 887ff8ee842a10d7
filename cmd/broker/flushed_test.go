package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestKeysFlushed checks, by the calls that it makes, that a broker which starts for the
// first time uses no key that a loss of power may take away again: each is flushed before
// it gets its name, and its folder behind that.
func TestKeysFlushed(t *testing.T) {
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Skip("needs strace")
	}
	if out, err := exec.Command(strace, "-f", "true").CombinedOutput(); err != nil {
		t.Skipf("processes cannot be traced here: %v: %s", err, out)
	}
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "secret"), "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=\n")
	writeFile(t, filepath.Join(dir, "broker.yaml"), "listen: 127.0.0.1:0\ndata: data\nrecording: {encryption: {key: \"file:"+filepath.Join(dir, "secret")+"\"}}\nservers: {near: {stdio: [cat]}}\n"+everything)
	trace := filepath.Join(dir, "trace")
	cmd := exec.Command(strace, "-f", "-y", "-s", "256", "-o", trace, "-e", "trace=fsync,fdatasync,rename,renameat,renameat2,link,linkat", "broker", "serve")
	p := &process{cmd, &logBuffer{}}
	cmd.Dir, cmd.Stderr = dir, p.log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		cmd.Wait()
	})
	p.waitFor(t, `msg="broker is up"`, 1)
	var calls []string
	for deadline := time.Now().Add(10 * time.Second); len(calls) == 0 && time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		text, _ := os.ReadFile(trace)
		calls = strings.Split(string(text), "\n")
	}
	named := regexp.MustCompile(`(?:rename|link)\w*\(.*"([^"]*)",.*"([^"]*)"`)
	found := map[string]bool{}
	for i, call := range calls {
		m := named.FindStringSubmatch(call)
		if m == nil {
			continue
		}
		from, to := filepath.Base(m[1]), filepath.Base(m[2])
		if to == "KEYREGISTRY" || to == "MANIFEST" { // Badger's, which it opens so that each write is flushed
			continue
		}
		synced := func(calls []string, file string) bool {
			for _, c := range calls {
				if strings.Contains(c, "sync(") && strings.Contains(c, "/"+file+">") {
					return true
				}
			}
			return false
		}
		if !synced(calls[:i], from) {
			t.Errorf("%s gets its name, and was not flushed", to)
		}
		if !synced(calls[i:], filepath.Base(filepath.Join(dir, filepath.Dir(m[2])))) {
			t.Errorf("the folder of %s is not flushed", to)
		}
		found[to] = true
	}
	for _, name := range []string{"ca-key.pem", "seal-key", "log.key", "log.pub", "ENCRYPTION"} {
		if !found[name] {
			t.Errorf("%s is not made in one step; made are %v", name, found)
		}
	}
}
