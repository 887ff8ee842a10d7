package main

import (
	"bufio"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"example.com/broker/broker/identity"
)

// TestRotate rotates the CA under a running broker: who was there before goes on
// through the overlap, who comes during it goes on after it, and what the old CA
// issued ends with it.
func TestRotate(t *testing.T) {
	dir := t.TempDir()
	b := startBroker(t, dir, "servers: {far: {agent: far}, near: {stdio: [cat]}}\n"+everything)
	agent := b.startAgent(t, "  far: {stdio: [cat]}\n")
	p := b.person(t, "ada")
	file := func(name string) string {
		path := filepath.Join(dir, name)
		writeFile(t, path, string(b.issue(t, "ada", "analysts")))
		return path
	}
	works := func(file string) bool {
		t.Helper()
		_, _, err := p.run(t, "whoami", "--broker", b.addr, "--identity", file)
		return err == nil
	}
	loaded := func(n int) { t.Helper(); b.waitFor(t, `msg="policy and certificates loaded"`, n) }
	running := b.dial(t, "near", dials["tls"])
	in := bufio.NewReader(running)
	io.WriteString(running, request(1))
	if got := nextLine(t, in); got != request(1) { // of cat
		t.Fatalf("got %q", got)
	}
	before := file("before.pem")
	if !works(before) {
		t.Fatal("the certificate does not work")
	}
	if _, failed, err := p.run(t, "ca", "rotate", "--finish"); err == nil || !strings.Contains(failed, "none is under way") {
		t.Errorf("finish before it began: %s", failed)
	}
	p.must(t, "ca", "rotate")
	loaded(1)
	if _, failed, err := p.run(t, "ca", "rotate"); err == nil || !strings.Contains(failed, "has not been finished") {
		t.Errorf("again: %s", failed)
	}
	during := file("during.pem")
	if !works(before) || !works(during) {
		t.Errorf("in the overlap: before %v, during %v", works(before), works(during))
	}
	if text, _ := os.ReadFile(during); strings.Count(string(text), "BEGIN CERTIFICATE") != 3 {
		t.Error("an identity of the overlap does not know both CAs")
	}
	// The agent starts again with the certificate and the pin that it has, and one
	// that is new joins by the pin that is shown.
	agent.cmd.Process.Kill()
	agent.cmd.Wait()
	again := startProcess(t, dir, "agent", "--config", filepath.Join(dir, "agent.yaml"))
	again.waitFor(t, `msg="tunnel is up"`, 4)
	again.cmd.Process.Kill()
	again.cmd.Wait()
	if err := os.RemoveAll(filepath.Join(dir, "agent-data")); err != nil {
		t.Fatal(err)
	}
	b.startAgent(t, "  far: {stdio: [cat]}\n")

	if _, failed, err := p.run(t, "ca", "rotate", "--finish"); err == nil || !strings.Contains(failed, "it began at") {
		t.Errorf("finish at once: %s", failed)
	}
	p.must(t, "ca", "rotate", "--finish", "--force")
	loaded(2)
	running.Conn.SetReadDeadline(time.Now().Add(20 * time.Second))
	if rest, err := io.ReadAll(in); err != nil || !strings.Contains(string(rest), `"id":1,"error":{"code":401`) {
		t.Errorf("a session of the old CA's certificate reads %q, %v", rest, err)
	}
	if works(before) {
		t.Error("after the overlap the old CA's certificate still works")
	}
	if !works(during) {
		t.Error("after the overlap a certificate of the new CA does not work")
	}
	// The agent that joined in the overlap knows the new CA, whatever its pin.
	if n := strings.Count(b.log.String(), `msg="tunnel is up"`); n < 8 {
		t.Errorf("%d tunnels have been up", n)
	}
	c := b.dial(t, "far", dials["tls"])
	defer c.Conn.Close()
	if _, err := c.Write([]byte(request(1))); err != nil {
		t.Fatal(err)
	}
	c.Conn.SetReadDeadline(time.Now().Add(20 * time.Second))
	buf := make([]byte, 1000)
	if n, err := c.Read(buf); err != nil || !strings.Contains(string(buf[:n]), "echo") {
		t.Errorf("through the agent: %q, %v", buf[:n], err)
	}
	last := startProcess(t, dir, "agent", "--config", filepath.Join(dir, "agent.yaml"))
	last.waitFor(t, `msg="tunnel is up"`, 4)
	ca, err := identity.LoadCA(filepath.Join(dir, "data"))
	if err != nil || ca.Rotating() {
		t.Errorf("%v, rotating %v", err, ca.Rotating())
	}
}
