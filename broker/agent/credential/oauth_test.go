package credential

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// An authServer plays an authorization server. A token says what it was given
// for.
type authServer struct {
	*httptest.Server
	key any // public, of the agent's statements

	mu    sync.Mutex
	forms []url.Values
	basic []string
}

func newAuthServer(t *testing.T, key any) *authServer {
	a := &authServer{key: key}
	a.Server = httptest.NewServer(a)
	t.Cleanup(a.Close)
	return a
}

func (a *authServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	r.ParseForm()
	id, secret, _ := r.BasicAuth()
	a.mu.Lock()
	a.forms, a.basic = append(a.forms, r.PostForm), append(a.basic, id+":"+secret)
	n := len(a.forms)
	a.mu.Unlock()
	who := "client"
	if s := r.FormValue("subject_token"); s != "" {
		var claims struct {
			jwt.Claims
			Groups []string `json:"groups"`
		}
		token, err := jwt.ParseSigned(s, []jose.SignatureAlgorithm{jose.ES256, jose.EdDSA})
		if err == nil {
			err = token.Claims(a.key, &claims)
		}
		if err == nil {
			err = claims.Validate(jwt.Expected{Issuer: "agent", AnyAudience: jwt.Audience{a.URL + "/token"}})
		}
		if err != nil {
			w.WriteHeader(http.StatusBadRequest)
			json.NewEncoder(w).Encode(map[string]string{"error": "invalid_request", "error_description": err.Error()})
			return
		}
		who = fmt.Sprint(claims.Subject, claims.Groups)
	}
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(map[string]any{"access_token": fmt.Sprintf("%s #%d", who, n), "token_type": "bearer", "expires_in": 3600})
}

// sent returns what a source sets for a session.
func sent(t *testing.T, src Source, s Session) string {
	t.Helper()
	r := httptest.NewRequest(http.MethodPost, "https://mcp.example/mcp", nil)
	if err := src.Authorize(r, s); err != nil {
		t.Error(err)
	}
	return r.Header.Get("Authorization")
}

func TestClientCredentials(t *testing.T) {
	as := newAuthServer(t, nil)
	for _, post := range []bool{false, true} {
		var uses []Use
		src, err := NewOAuth(OAuthOptions{
			TokenURL: as.URL + "/token", ClientID: "agent", ClientSecret: "s3cret", Post: post,
			Scopes: []string{"read", "write"}, Audience: "mcp", Resource: "https://mcp.example/",
			Used: func(u Use) { uses = append(uses, u) },
		})
		if err != nil {
			t.Fatal(err)
		}
		first := sent(t, src, Session{ID: "s1", Subject: "alice"})
		if second := sent(t, src, Session{ID: "s2", Subject: "bob"}); first != second || !strings.HasPrefix(first, "Bearer client #") {
			t.Errorf("got %q and %q", first, second)
		}
		form := as.forms[len(as.forms)-1]
		got := fmt.Sprint(form.Get("grant_type"), " ", form.Get("scope"), " ", form.Get("audience"), " ", form.Get("resource"), " ", form.Get("client_secret"), " ", as.basic[len(as.basic)-1])
		want := "client_credentials read write mcp https://mcp.example/  agent:s3cret"
		if post {
			want = "client_credentials read write mcp https://mcp.example/ s3cret :"
		}
		if got != want {
			t.Errorf("post %v: got %q, want %q", post, got, want)
		}
		if len(uses) != 2 || uses[0].Principal != "agent" || uses[0].Kind != "oauth" || uses[0].Audience != "mcp" {
			t.Errorf("uses %+v", uses)
		}
	}
}

// TestExchange checks that each caller has tokens of their own.
func TestExchange(t *testing.T) {
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range []*Exchange{{Key: ec, Issuer: "agent"}, {Key: ed, Issuer: "agent"}} {
		as := newAuthServer(t, x.Key.Public())
		var uses []Use
		src, err := NewOAuth(OAuthOptions{TokenURL: as.URL + "/token", ClientID: "agent", ClientSecret: "s", Exchange: x, Used: func(u Use) { uses = append(uses, u) }})
		if err != nil {
			t.Fatal(err)
		}
		for _, tt := range []struct {
			s    Session
			want string
		}{
			{Session{ID: "s1", Subject: "alice", Groups: []string{"b", "a"}}, "Bearer alice[a b] #1"},
			{Session{ID: "s2", Subject: "bob", Groups: []string{"a", "b"}}, "Bearer bob[a b] #2"},
			{Session{ID: "s3", Subject: "alice", Groups: []string{"a", "b"}}, "Bearer alice[a b] #1"},
			{Session{ID: "s4", Subject: "alice", Groups: []string{"a"}}, "Bearer alice[a] #3"}, // she has left b
			{Session{ID: "s5", Subject: `alice" ["a`, Groups: []string{"b"}}, `Bearer alice" ["a[b] #4`},
		} {
			if got := sent(t, src, tt.s); got != tt.want {
				t.Errorf("%+v: got %q, want %q", tt.s, got, tt.want)
			}
		}
		if len(uses) != 5 || uses[0].Principal != "alice" {
			t.Errorf("uses %+v", uses)
		}
		r := httptest.NewRequest(http.MethodPost, "https://mcp.example/mcp", nil)
		if err := src.Authorize(r, Session{ID: "s6"}); err == nil {
			t.Error("nobody gets a token")
		}
	}
}

func TestCallersAreBounded(t *testing.T) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	as := newAuthServer(t, key.Public())
	src, err := NewOAuth(OAuthOptions{TokenURL: as.URL + "/token", Exchange: &Exchange{Key: key, Issuer: "agent"}})
	if err != nil {
		t.Fatal(err)
	}
	first := sent(t, src, Session{Subject: "first"})
	for i := range maxCallers + 10 {
		sent(t, src, Session{Subject: fmt.Sprint(i)})
		if i%500 == 0 {
			if got := sent(t, src, Session{Subject: "first"}); got != first {
				t.Errorf("who comes back is forgotten after %d others", i)
			}
		}
	}
	if n := len(src.tokens); n > maxCallers {
		t.Errorf("tokens of %d callers are kept", n)
	}
}

func TestOAuthOptions(t *testing.T) {
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		o    OAuthOptions
		want string
	}{
		{"no URL", OAuthOptions{ClientID: "c", ClientSecret: "s"}, "token_url"},
		{"no client", OAuthOptions{TokenURL: "https://as.example/"}, "client_id and client_secret"},
		{"no id", OAuthOptions{TokenURL: "https://as.example/", ClientSecret: "s", Exchange: &Exchange{}}, "client_id"},
		{"no issuer", OAuthOptions{TokenURL: "https://as.example/", Exchange: &Exchange{Key: p384}}, "issuer"},
		{"no key", OAuthOptions{TokenURL: "https://as.example/", Exchange: &Exchange{Issuer: "a"}}, "signing key"},
		{"P-384", OAuthOptions{TokenURL: "https://as.example/", Exchange: &Exchange{Issuer: "a", Key: p384}}, "signing key"},
	} {
		if _, err := NewOAuth(tt.o); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: error %v, want %q", tt.name, err, tt.want)
		}
	}
}
