package main

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/modelcontextprotocol/go-sdk/auth"
	"github.com/modelcontextprotocol/go-sdk/mcp"
	"github.com/modelcontextprotocol/go-sdk/oauthex"
)

// TestOAuth is what happens when somebody gives an MCP client a URL: the client
// finds the authorization server, registers, has the person sign in at the
// company's provider and allow it, and uses the server. The client is the
// official SDK's, the provider zitadel/oidc.
func TestOAuth(t *testing.T) {
	o := newProvider(t, people{"ada": {"analysts"}, "eve": {"interns"}})
	b := startBroker(t, t.TempDir(), fmt.Sprintf(`servers: {sdk: {stdio: [sdk-server]}, other: {stdio: [sdk-server]}}
identity:
  oidc: [{issuer: %q, client_id: broker, client_secret: broker-secret}]
policy:
  - name: analysts
    groups: [analysts]
    servers: [sdk]
    access: allow
    calls: [{deny: 'tool == "forbidden"', reason: "no"}]
    mask: [email]
`, o.URL))
	o.serves(b.addr)
	const callback = "http://127.0.0.1:9/callback"

	// connect is a client of a person's with the URL of a server.
	connect := func(name, server string) (*mcp.ClientSession, *tap, error) {
		p := b.person(t, name)
		p.browser.CheckRedirect = func(r *http.Request, _ []*http.Request) error {
			if strings.HasPrefix(r.URL.String(), callback) {
				return http.ErrUseLastResponse
			}
			return nil
		}
		client := &tap{RoundTripper: p.browser.Transport}
		handler, err := auth.NewAuthorizationCodeHandler(&auth.AuthorizationCodeHandlerConfig{
			DynamicClientRegistrationConfig: &auth.DynamicClientRegistrationConfig{Metadata: &oauthex.ClientRegistrationMetadata{
				ClientName: "SDK", RedirectURIs: []string{callback}, GrantTypes: []string{"authorization_code", "refresh_token"},
			}},
			RequestRefreshToken: true,
			Client:              &http.Client{Transport: p.browser.Transport},
			AuthorizationCodeFetcher: func(_ context.Context, args *auth.AuthorizationArgs) (*auth.AuthorizationResult, error) {
				page, at := p.open(t, args.URL)
				if at.Path != "/oauth/consent" || !strings.Contains(page, name+"@example.com") || !strings.Contains(page, "<strong>"+server+"</strong>") {
					return nil, fmt.Errorf("the browser is at %s: %s", at, page)
				}
				resp, err := p.browser.PostForm("https://"+b.addr+"/oauth/consent", url.Values{"id": {at.Query().Get("id")}, "decision": {"allow"}})
				if err != nil {
					return nil, err
				}
				resp.Body.Close()
				to, err := resp.Location()
				if err != nil {
					return nil, err
				}
				q := to.Query()
				return &auth.AuthorizationResult{Code: q.Get("code"), State: q.Get("state"), Iss: q.Get("iss")}, nil
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		session, err := mcp.NewClient(&mcp.Implementation{Name: "test", Version: "1"}, nil).Connect(t.Context(), &mcp.StreamableClientTransport{
			Endpoint: "https://" + b.addr + "/" + server + "/mcp", HTTPClient: &http.Client{Transport: client}, OAuthHandler: handler,
		}, nil)
		return session, client, err
	}

	session, client, err := connect("ada", "sdk")
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	tools, err := session.ListTools(t.Context(), nil)
	if err != nil || len(tools.Tools) < 5 {
		t.Fatalf("%v, %v", tools, err)
	}
	for _, tool := range tools.Tools {
		if tool.Name == "forbidden" {
			t.Error("what the policy denies is listed")
		}
	}
	r, err := session.CallTool(t.Context(), &mcp.CallToolParams{Name: "echo", Arguments: map[string]any{"text": "ada@example.com"}})
	if err != nil || !strings.Contains(fmt.Sprint(r.StructuredContent), "[masked:email]") {
		t.Errorf("%+v, %v", r, err)
	}
	if _, err := session.CallTool(t.Context(), &mcp.CallToolParams{Name: "forbidden", Arguments: map[string]any{"text": ""}}); err == nil || !strings.Contains(err.Error(), "no") {
		t.Errorf("a forbidden call: %v", err)
	}
	if b.waitFor(t, `msg="session opened" client=\S+ subject=ada@example.com server=sdk session=\w+ rule=analysts transport=h(ttp/1\.1|2)`, 1) == nil {
		t.Error("the session is not logged")
	}
	// Who has no right is told so, and what the client knows is a refusal.
	if _, _, err := connect("eve", "sdk"); err == nil || !strings.Contains(err.Error(), "no rule gives eve@example.com access") && !strings.Contains(err.Error(), "Forbidden") {
		t.Errorf("eve: %v", err)
	}

	// The token is for one server, and in no log and no recording.
	client.mu.Lock()
	shown := client.shown
	client.mu.Unlock()
	if len(shown) < 100 {
		t.Fatalf("the client shows %q", shown)
	}
	req, _ := http.NewRequest("POST", "https://"+b.addr+"/other/mcp", strings.NewReader(asInitialize))
	req.Header.Set("Authorization", shown)
	req.Header.Set("Accept", "*/*")
	req.Header.Set("Content-Type", "application/json")
	resp, err := client.RoundTripper.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if challenge := resp.Header.Get("WWW-Authenticate"); resp.StatusCode != 401 || !strings.Contains(challenge, `error="invalid_token"`) || !strings.Contains(challenge, "/.well-known/oauth-protected-resource/other/mcp") {
		t.Errorf("at another server: %d %s", resp.StatusCode, challenge)
	}
	token := strings.TrimPrefix(shown, "Bearer ")
	if strings.Contains(b.log.String(), token) {
		t.Error("the token is in the log")
	}
	for _, text := range b.replays(t, "both", true) {
		if strings.Contains(string(text), token) {
			t.Error("the token is on record")
		}
	}
}
