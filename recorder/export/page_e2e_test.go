//go:build e2e

package export

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"example.com/broker/recorder"
)

// TestPageBrowser opens a page with Chromium, with frames in it that would run a
// script. It runs in make e2e, which has installed what it needs. With
// SCREENSHOTS it leaves a picture in that folder.
func TestPageBrowser(t *testing.T) {
	frames := append(talk(),
		s2c(recorder.Delivered, `{"jsonrpc":"2.0","method":"m","params":{"a":"</pre></script><img src=x onerror=alert(1)><script>alert(2)</script>"}}`),
		c2s(recorder.Blocked, `"><svg/onload=alert(3)>`))
	src, session := record(t, recorder.Session{Subject: "ada<script>alert(4)</script>", Server: "bigquery", Rule: "analysts", Transport: "tls", Client: "192.0.2.9:5"}, frames...)
	file := filepath.Join(t.TempDir(), "session.html")
	if err := os.WriteFile(file, []byte(write(t, src, session, "html")), 0o600); err != nil {
		t.Fatal(err)
	}
	args := []string{"../../e2e/page.mjs", file}
	if shots := os.Getenv("SCREENSHOTS"); shots != "" {
		args = append(args, filepath.Join(shots, "session.png"))
	}
	out, err := exec.Command("node", args...).CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Fatal(err)
	}
}
