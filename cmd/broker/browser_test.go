//go:build e2e

package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"example.com/broker/broker/identity/identitytest"
)

// TestBrowser signs in and approves with headless Chromium, at an OpenID provider
// without JavaScript and at a SAML provider (whose own page needs it). It runs in
// make e2e, which has installed what it needs. With SCREENSHOTS it leaves the
// pictures in that folder.
func TestBrowser(t *testing.T) {
	o := newProvider(t, people{"ada": {"analysts"}, "grace": {"leads"}})
	idp := identitytest.NewSAMLProvider(t)
	idp.AddUser("ada", "ada@example.com", "analysts")
	idp.AddUser("grace", "grace@example.com", "leads")
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "idp.xml"), string(idp.Metadata()))
	b := startBroker(t, dir, fmt.Sprintf(`servers: {prod: {stdio: [cat]}}
identity:
  oidc:
    - {title: OpenID, issuer: %q, client_id: broker, client_secret: broker-secret}
  saml:
    - {title: Single sign-on, metadata: idp.xml, subject_claim: mail, groups_claim: eduPersonAffiliation}
policy:
  - {name: prod on request, groups: [analysts], servers: [prod], access: approval, approvers: {groups: [leads]}, reason: required}
`, o.URL))
	o.serves(b.addr)
	chromium := func(noScript bool, args ...string) {
		t.Helper()
		cmd := exec.Command("node", append([]string{"../../e2e/browser.mjs"}, args...)...)
		if cmd.Env = os.Environ(); noScript {
			cmd.Env = append(cmd.Env, "NOSCRIPT=1")
		}
		out, err := cmd.CombinedOutput()
		t.Logf("%s", out)
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		provider, title string
		noScript        bool
	}{{"oidc", "OpenID", true}, {"saml", "Single sign-on", false}} {
		ada := b.person(t, "ada")
		if tt.provider == "saml" {
			metadata, _ := ada.open(t, "https://"+b.addr+"/login/saml/metadata")
			idp.AddService([]byte(metadata))
		}
		ada.loginWith(t, func(address string) {
			chromium(tt.noScript, "signin", address, "ada", identitytest.Password, tt.title)
		}, "--provider", tt.provider)
		var r struct{ ID string }
		if err := json.Unmarshal([]byte(ada.must(t, "request", "prod", "--reason", "OPS-12: the monthly bill", "--json")), &r); err != nil {
			t.Fatal(err)
		}
		args := []string{"approve", "https://" + b.addr + "/requests/" + r.ID, "grace", identitytest.Password, tt.title}
		if shots := os.Getenv("SCREENSHOTS"); shots != "" && !tt.noScript {
			args = append(args, filepath.Join(shots, "request.png"))
		}
		chromium(tt.noScript, args...)
		var grants []struct{ ID, State string }
		if err := json.Unmarshal([]byte(ada.must(t, "grants", "--json")), &grants); err != nil || len(grants) != 1 || grants[0].State != "active" {
			t.Fatalf("%v, %v", grants, err)
		}
		ada.must(t, "revoke", grants[0].ID)
	}
}
