package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"example.com/broker/recorder"
	"example.com/broker/stream"
	"github.com/modelcontextprotocol/go-sdk/mcp"
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
