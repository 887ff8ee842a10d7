//go:build e2e

package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/oauth2"

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

		// An MCP client by URL: the browser comes back to it with a code.
		codes := make(chan url.Values, 1)
		program := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintln(w, "the program is connected")
			select {
			case codes <- r.URL.Query():
			default: // the browser's picture of the page
			}
		}))
		defer program.Close()
		body := fmt.Sprintf(`{"client_name":"Editor","redirect_uris":[%q]}`, program.URL+"/callback")
		resp, err := ada.browser.Post("https://"+b.addr+"/oauth/register", "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		var client struct {
			ID string `json:"client_id"`
		}
		json.NewDecoder(resp.Body).Decode(&client)
		resp.Body.Close()
		verifier := oauth2.GenerateVerifier()
		q := url.Values{
			"response_type": {"code"}, "client_id": {client.ID}, "redirect_uri": {program.URL + "/callback"}, "state": {"s"},
			"resource": {"https://" + b.addr + "/prod/mcp"}, "code_challenge": {oauth2.S256ChallengeFromVerifier(verifier)}, "code_challenge_method": {"S256"},
		}
		args = []string{"allow", "https://" + b.addr + "/oauth/authorize?" + q.Encode(), "ada", identitytest.Password, tt.title}
		if shots := os.Getenv("SCREENSHOTS"); shots != "" && !tt.noScript {
			args = append(args, filepath.Join(shots, "consent.png"))
		}
		chromium(tt.noScript, args...)
		came := <-codes
		resp, err = ada.browser.PostForm("https://"+b.addr+"/oauth/token", url.Values{
			"grant_type": {"authorization_code"}, "client_id": {client.ID}, "code": {came.Get("code")}, "code_verifier": {verifier}, "redirect_uri": {program.URL + "/callback"},
		})
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != 200 || came.Get("state") != "s" || came.Get("iss") != "https://"+b.addr {
			t.Errorf("the program got %v, and for it %s", came, resp.Status)
		}
	}
}
