// Package identitytest plays an OpenID provider, an obedient or a hostile one,
// for tests.
package identitytest

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	jose "github.com/go-jose/go-jose/v4"
)

// Client is what the issuer knows the broker by.
const (
	Client = "broker"
	Secret = "broker-secret"
)

// An Issuer signs everybody in who comes, as whom Claims says.
type Issuer struct {
	URL  string
	Keys atomic.Int64 // how often its keys were fetched

	t   testing.TB
	key *rsa.PrivateKey

	mu       sync.Mutex
	claims   map[string]any
	userinfo map[string]any
	token    func(claims map[string]any) string
	codes    map[string]url.Values
	down     bool
}

// NewIssuer starts an Issuer, which ends with the test.
func NewIssuer(t testing.TB) *Issuer {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	i := &Issuer{t: t, key: key, codes: map[string]url.Values{}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /.well-known/openid-configuration", i.discovery)
	mux.HandleFunc("GET /keys", i.keys)
	mux.HandleFunc("GET /authorize", i.authorize)
	mux.HandleFunc("POST /token", i.exchange)
	mux.HandleFunc("GET /userinfo", i.info)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		i.mu.Lock()
		down := i.down
		i.mu.Unlock()
		if down {
			http.Error(w, "down", http.StatusBadGateway)
			return
		}
		mux.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	i.URL = server.URL
	i.SignInAs(map[string]any{"sub": "1", "email": "ada@example.com", "email_verified": true, "groups": []string{"analysts"}})
	return i
}

// SignInAs makes claims those of the next tokens, beside the issuer's own.
func (i *Issuer) SignInAs(claims map[string]any) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.claims, i.userinfo, i.token = claims, nil, nil
}

// UserInfo makes claims those of the userinfo endpoint.
func (i *Issuer) UserInfo(claims map[string]any) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.userinfo = claims
}

// Forge makes the next ID tokens those that f makes of their claims.
func (i *Issuer) Forge(f func(claims map[string]any) string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.token = f
}

// Down makes the issuer answer nothing but errors.
func (i *Issuer) Down(down bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.down = down
}

// Claims returns those of a token for audience, with what is given in addition
// or instead; nil takes one out.
func (i *Issuer) Claims(audience string, more map[string]any) map[string]any {
	claims := map[string]any{
		"iss": i.URL, "aud": audience, "iat": time.Now().Unix(), "exp": time.Now().Add(time.Hour).Unix(),
	}
	maps.Copy(claims, more)
	maps.DeleteFunc(claims, func(_ string, v any) bool { return v == nil })
	return claims
}

// Sign makes a token.
func (i *Issuer) Sign(claims map[string]any) string {
	return Sign(i.t, jose.SigningKey{Algorithm: jose.RS256, Key: jose.JSONWebKey{Key: i.key, KeyID: "1"}}, claims)
}

// Key is the issuer's public key.
func (i *Issuer) Key() *rsa.PublicKey { return &i.key.PublicKey }

// Sign makes a token with any key.
func Sign(t testing.TB, key jose.SigningKey, claims map[string]any) string {
	t.Helper()
	signer, err := jose.NewSigner(key, (&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		t.Fatal(err)
	}
	payload, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := signer.Sign(payload)
	if err != nil {
		t.Fatal(err)
	}
	text, err := signed.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(v)
}

func (i *Issuer) discovery(w http.ResponseWriter, _ *http.Request) {
	answer(w, map[string]any{
		"issuer": i.URL, "authorization_endpoint": i.URL + "/authorize", "token_endpoint": i.URL + "/token",
		"jwks_uri": i.URL + "/keys", "userinfo_endpoint": i.URL + "/userinfo",
		"id_token_signing_alg_values_supported": []string{"RS256", "HS256", "none"},
	})
}

func (i *Issuer) keys(w http.ResponseWriter, _ *http.Request) {
	i.Keys.Add(1)
	answer(w, jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: i.Key(), KeyID: "1", Algorithm: "RS256", Use: "sig"}}})
}

func (i *Issuer) authorize(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	if q.Get("response_type") != "code" || q.Get("client_id") != Client || q.Get("code_challenge_method") != "S256" || q.Get("nonce") == "" {
		http.Error(w, "this is no authorization request with PKCE and a nonce: "+r.URL.RawQuery, http.StatusBadRequest)
		return
	}
	code := rand.Text()
	i.mu.Lock()
	i.codes[code] = q
	i.mu.Unlock()
	http.Redirect(w, r, q.Get("redirect_uri")+"?"+url.Values{"code": {code}, "state": {q.Get("state")}}.Encode(), http.StatusFound)
}

func (i *Issuer) exchange(w http.ResponseWriter, r *http.Request) {
	i.mu.Lock()
	q, ok := i.codes[r.FormValue("code")]
	delete(i.codes, r.FormValue("code"))
	claims, token := i.claims, i.token
	i.mu.Unlock()
	sum := sha256.Sum256([]byte(r.FormValue("code_verifier")))
	id, secret, _ := r.BasicAuth()
	if !ok || base64.RawURLEncoding.EncodeToString(sum[:]) != q.Get("code_challenge") || q.Get("redirect_uri") != r.FormValue("redirect_uri") || id != Client || secret != Secret {
		w.WriteHeader(http.StatusBadRequest)
		answer(w, map[string]string{"error": "invalid_grant"})
		return
	}
	all := i.Claims(Client, map[string]any{"nonce": q.Get("nonce")})
	maps.Copy(all, claims)
	if token == nil {
		token = i.Sign
	}
	answer(w, map[string]any{"access_token": "at", "token_type": "Bearer", "expires_in": 60, "id_token": token(all)})
}

func (i *Issuer) info(w http.ResponseWriter, r *http.Request) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if r.Header.Get("Authorization") != "Bearer at" || i.userinfo == nil {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	answer(w, i.userinfo)
}
