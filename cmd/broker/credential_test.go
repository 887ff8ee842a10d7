package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/go-jose/go-jose/v4"

	"example.com/broker/broker/identity/identitytest"
)

// TestCredential has an agent present a Google ID token, which the instance's
// metadata server gives it, to a server that looks at it as Cloud Run does. The
// token is in no log, no recording, no event and no answer; that it was used is
// on record.
func TestCredential(t *testing.T) {
	key := []byte(strings.Repeat("k", 32))
	var mu sync.Mutex
	var given []string
	metadata := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Metadata-Flavor", "Google")
		switch path := strings.TrimPrefix(r.URL.Path, "/computeMetadata/v1/"); {
		case path == "instance/service-accounts/default/identity":
			token := identitytest.Sign(t, jose.SigningKey{Algorithm: jose.HS256, Key: key}, map[string]any{
				"aud": r.FormValue("audience"), "email": "agent@p.iam.gserviceaccount.com", "exp": 4e9, "iss": "https://accounts.google.com",
			})
			mu.Lock()
			given = append(given, token)
			mu.Unlock()
			io.WriteString(w, token)
		case path == "instance/service-accounts/default/email":
			io.WriteString(w, "agent@p.iam.gserviceaccount.com")
		case r.URL.Path == "/":
		default:
			http.NotFound(w, r)
		}
	}))
	defer metadata.Close()
	t.Setenv("GCE_METADATA_HOST", strings.TrimPrefix(metadata.URL, "http://"))

	cloudRun := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		token, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		parsed, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{jose.HS256})
		var claims struct{ Aud string }
		if err == nil {
			var text []byte
			if text, err = parsed.Verify(key); err == nil {
				json.Unmarshal(text, &claims)
			}
		}
		if err != nil || claims.Aud != "https://mcp-abc.run.app" {
			http.Error(w, "not allowed: "+token, http.StatusForbidden)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, `{"jsonrpc":"2.0","id":1,"result":{"tools":[]}}`)
	}))
	defer cloudRun.Close()

	b := startBroker(t, t.TempDir(), `servers: {run: {agent: far}, wrong: {agent: far}}
audit: {file: events}
`+everything)
	agent := b.startAgent(t, fmt.Sprintf(`  run: {http: %q, credential: {gcp: {credentials: metadata, audience: "https://mcp-abc.run.app"}}}
  wrong: {http: %q, credential: {gcp: {credentials: metadata, audience: "https://other.run.app"}}}
`, cloudRun.URL, cloudRun.URL))
	ask := func(server string) string {
		body := `{"jsonrpc":"2.0","id":1,"method":"tools/list","params":{"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}}}`
		r, _ := http.NewRequest("POST", "https://"+b.addr+"/"+server+"/mcp", strings.NewReader(body))
		for name, value := range map[string]string{"Accept": "*/*", "Content-Type": "application/json", "Mcp-Protocol-Version": "2026-07-28", "Mcp-Method": "tools/list"} {
			r.Header.Set(name, value)
		}
		resp, err := b.client(t, "h2").RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		text, _ := io.ReadAll(resp.Body)
		return string(text)
	}
	good, bad := ask("run"), ask("wrong")
	if good != `{"jsonrpc":"2.0","id":1,"result":{"tools":[]}}` {
		t.Errorf("the server answers %s", good)
	}
	if bad != `{"jsonrpc":"2.0","id":1,"error":{"code":502,"message":"the server does not accept the agent's credential"}}` {
		t.Errorf("with another audience: %s", bad)
	}
	b.waitFor(t, `event=credential.used actor=far`, 2)
	events, err := os.ReadFile(filepath.Join(b.dir, "events"))
	if err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(given) != 2 {
		t.Fatalf("%d tokens", len(given))
	}
	session := b.waitFor(t, `msg="session opened" .* server=run session=(\w+)`, 1)[1]
	used := false
	for line := range bytes.SplitSeq(events, []byte("\n")) {
		var e struct {
			Type, Actor, Session, Server string
			Detail                       map[string]string
		}
		json.Unmarshal(line, &e)
		used = used || e.Type == "credential.used" && e.Actor == "far" && e.Session == session && e.Server == "run" &&
			e.Detail["principal"] == "agent@p.iam.gserviceaccount.com" && e.Detail["audience"] == "https://mcp-abc.run.app" && e.Detail["kind"] == "gcp"
	}
	if !used {
		t.Errorf("the use is not on record: %s", events)
	}
	recordings := bytes.Join(b.replays(t, "both", true), nil)
	for _, token := range given {
		for where, text := range map[string]string{
			"the broker's log": b.log.String(), "the agent's log": agent.log.String(), "a recording": string(recordings), "an event": string(events), "an answer": good + bad,
		} {
			if strings.Contains(text, token) || strings.Contains(text, strings.Split(token, ".")[1]) {
				t.Errorf("the token is in %s", where)
			}
		}
	}
}

// TestUpstreamErrors checks what is wrong with a server that is reached by URL.
func TestUpstreamErrors(t *testing.T) {
	for _, c := range []struct{ name, server, want string }{
		{"no URL", `{http: mcp.example.com}`, "must be like https://mcp.example.com/mcp"},
		{"two upstreams", `{http: "https://a/mcp", tcp: "a:1"}`, "more than one upstream"},
		{"headers without http", `{tcp: "a:1", headers: {X: y}}`, "are for http"},
		{"a header of the agent's", `{http: "https://a/mcp", headers: {Mcp-Session-Id: x}}`, "is set by the agent itself"},
		{"a header that is none", `{http: "https://a/mcp", headers: {"a b": x}}`, "is no name of a header"},
		{"a file that is not there", `{http: "https://a/mcp", headers: {X: "file:nothing"}}`, "no such file"},
		{"in clear", `{http: "http://mcp.example.com/mcp", credential: {header: {name: X-Key, value: v}}}`, "in clear"},
		{"in clear without a credential", `{http: "http://mcp.example.com/mcp"}`, ""},
		{"a secret of Secret Manager in clear", `{http: "http://mcp.example.com/mcp", headers: {X-Key: "gcp-secret:projects/p/secrets/s/versions/latest"}}`, "in clear"},
		{"a secret of Secret Manager", `{http: "https://a/mcp", headers: {X-Key: "gcp-secret:projects/p/secrets/s/versions/latest"}}`, ""},
		{"no secret of Secret Manager", `{http: "https://a/mcp", headers: {X-Key: "gcp-secret:s"}}`, "is no secret"},
		{"two kinds", `{http: "https://a/mcp", credential: {header: {name: X-Key, value: v}, oauth: {token_url: "https://a", client_id: b}}}`, "more than one kind"},
		{"no kind", `{http: "https://a/mcp", credential: {}}`, "says no kind"},
		{"a kind that is none", `{http: "https://a/mcp", credential: {aws: {}}}`, "unknown key"},
		{"oauth for a child", `{stdio: [cat], credential: {oauth: {token_url: "https://a/t", client_id: b, client_secret: c}}}`, "tokens of Google's only"},
		{"a credential for a socket", `{tcp: "a:1", credential: {header: {name: X-Key, value: v}}}`, "is for http and stdio"},
		{"half a certificate", `{http: "https://a/mcp", tls: {cert: x}}`, "cert and key come together"},
		{"a time that is none", `{http: "https://a/mcp", timeout: soon}`, "no duration"},
		{"all of it", `{http: "https://a/mcp", headers: {X-Team: blue}, tls: {name: b}, timeout: 1m, credential: {gcp: {impersonate: "a@p.iam.gserviceaccount.com", scopes: ["https://www.googleapis.com/auth/bigquery"], rules: {r: {scopes: ["https://www.googleapis.com/auth/bigquery.readonly"]}}}}}`, ""},
	} {
		path := filepath.Join(t.TempDir(), "agent.yaml")
		writeFile(t, path, "broker: b:1\nname: far\ntoken: x\nca: sha256:"+strings.Repeat("0", 64)+"\nservers:\n  s: "+c.server+"\n")
		_, err := readAgentConfig(path)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}
