package oauth

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"golang.org/x/oauth2"

	"example.com/broker/broker/grant"
	"example.com/broker/broker/identity"
	"example.com/broker/broker/identity/identitytest"
	"example.com/broker/broker/policy"
)

func TestMain(m *testing.M) {
	slog.SetDefault(slog.New(slog.DiscardHandler)) // where package op logs
	m.Run()
}

// A house is a Server behind TLS, with its desk and store.
type house struct {
	*Server
	dir   string
	web   *httptest.Server
	desk  *grant.Desk
	store grant.Store
	log   *strings.Builder

	mu    sync.Mutex
	who   identity.Identity // whose browser it is; nobody's if empty
	until time.Time
}

func (h *house) Visit(*http.Request) (identity.Identity, time.Time, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.who.Subject == "" {
		return identity.Identity{}, time.Time{}, errors.New("not signed in")
	}
	return h.who, h.until, nil
}

func newHouse(t *testing.T, change ...func(*Options)) *house {
	t.Helper()
	h := &house{dir: t.TempDir(), log: &strings.Builder{}, who: identity.Identity{Subject: "ada", Groups: []string{"analysts"}}, until: time.Now().Add(time.Hour)}
	var handler http.Handler
	h.web = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { handler.ServeHTTP(w, r) }))
	t.Cleanup(h.web.Close)
	store, err := grant.OpenBadger(filepath.Join(h.dir, "access"), 0)
	if err != nil {
		t.Fatal(err)
	}
	h.store = store
	ctx, cancel := context.WithCancel(context.Background())
	h.desk, err = grant.Open(ctx, grant.Options{Store: store, Admins: policy.Approvers{Users: []string{"root"}}, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		h.desk.Close()
		store.Close()
	})
	sealer, err := identity.OpenSealer(h.dir)
	if err != nil {
		t.Fatal(err)
	}
	o := Options{URL: h.web.URL, Dir: h.dir, Visits: h, Desk: h.desk, Store: store, Sealer: sealer, Log: slog.New(slog.NewTextHandler(h.log, nil))}
	for _, c := range change {
		c(&o)
	}
	if h.Server, err = New(o); err != nil {
		t.Fatal(err)
	}
	handler = h.Server
	return h
}

const callback = "http://127.0.0.1:7777/callback"

// browser returns a browser that stops where the broker sends it away.
func (h *house) browser() *http.Client {
	jar, _ := cookiejar.New(nil)
	c := *h.web.Client()
	c.Jar = jar
	c.CheckRedirect = func(r *http.Request, _ []*http.Request) error {
		if !strings.HasPrefix(r.URL.String(), h.web.URL) {
			return http.ErrUseLastResponse
		}
		return nil
	}
	return &c
}

func (h *house) register(t *testing.T, redirects ...string) string {
	t.Helper()
	body, _ := json.Marshal(map[string]any{"client_name": "Test client", "redirect_uris": redirects})
	resp, err := h.web.Client().Post(h.web.URL+"/oauth/register", "application/json", strings.NewReader(string(body)))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var got registration
	if err := json.NewDecoder(resp.Body).Decode(&got); err != nil || resp.StatusCode != 201 || got.ID == "" || got.AuthMethod != "none" {
		t.Fatalf("register: %d %+v %v", resp.StatusCode, got, err)
	}
	return got.ID
}

// query is that of a good authorization request, with changes; an empty value
// takes a parameter away.
func (h *house) query(client, verifier string, change ...string) url.Values {
	q := url.Values{
		"response_type": {"code"}, "client_id": {client}, "redirect_uri": {callback}, "state": {"s1"}, "resource": {h.Resource("prod")},
		"code_challenge": {oauth2.S256ChallengeFromVerifier(verifier)}, "code_challenge_method": {"S256"},
	}
	for i := 0; i < len(change); i += 2 {
		q.Del(change[i])
		if change[i+1] != "" {
			q.Set(change[i], change[i+1])
		}
	}
	return q
}

// allow goes the person's way: asked, shown, decided. It returns where the
// browser is sent, or the page that it is shown.
func (h *house) allow(t *testing.T, browser *http.Client, q url.Values, decision string) (to url.Values, page string) {
	t.Helper()
	resp, err := browser.Get(h.web.URL + "/oauth/authorize?" + q.Encode())
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	if resp.StatusCode/100 == 3 {
		return queryOf(t, resp), ""
	}
	_, id, found := strings.Cut(string(b), `name="id" value="`)
	if !found {
		return nil, string(b)
	}
	id, _, _ = strings.Cut(id, `"`)
	resp, err = browser.PostForm(h.web.URL+"/oauth/consent", url.Values{"id": {id}, "decision": {decision}})
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 3 {
		b, _ := io.ReadAll(resp.Body)
		return nil, string(b)
	}
	return queryOf(t, resp), string(b)
}

func queryOf(t *testing.T, resp *http.Response) url.Values {
	t.Helper()
	u, err := url.Parse(resp.Header.Get("Location"))
	if err != nil {
		t.Fatal(err)
	}
	return u.Query()
}

type tokens struct {
	Access  string `json:"access_token"`
	Refresh string `json:"refresh_token"`
	ID      string `json:"id_token"`
	Type    string `json:"token_type"`
	Expires int    `json:"expires_in"`
	Error   string `json:"error"`
}

func (h *house) trade(t *testing.T, form url.Values) (tokens, int) {
	t.Helper()
	resp, err := h.web.Client().PostForm(h.web.URL+"/oauth/token", form)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var got tokens
	if err := json.NewDecoder(resp.Body).Decode(&got); err != nil {
		t.Fatal(err)
	}
	if resp.Header.Get("Cache-Control") != "no-store" {
		t.Error("the answer may be kept")
	}
	return got, resp.StatusCode
}

func codeForm(client, code, verifier string) url.Values {
	return url.Values{"grant_type": {"authorization_code"}, "client_id": {client}, "code": {code}, "code_verifier": {verifier}, "redirect_uri": {callback}}
}

func refreshForm(client, token string) url.Values {
	return url.Values{"grant_type": {"refresh_token"}, "client_id": {client}, "refresh_token": {token}}
}

// connect goes the whole way.
func (h *house) connect(t *testing.T, client string) tokens {
	t.Helper()
	verifier := oauth2.GenerateVerifier()
	to, page := h.allow(t, h.browser(), h.query(client, verifier), "allow")
	if to.Get("code") == "" {
		t.Fatalf("no code: %v %s", to, page)
	}
	got, status := h.trade(t, codeForm(client, to.Get("code"), verifier))
	if status != 200 {
		t.Fatalf("no token: %d %+v", status, got)
	}
	return got
}

func (h *house) good(t *testing.T, token, server string) error {
	t.Helper()
	_, _, err := h.Verify(t.Context(), token, server)
	return err
}

func TestConnect(t *testing.T) {
	h := newHouse(t)
	client := h.register(t, "http://127.0.0.1:1/callback") // the port is the program's to choose
	verifier := oauth2.GenerateVerifier()
	to, page := h.allow(t, h.browser(), h.query(client, verifier), "allow")
	for _, want := range []string{"Test client", "prod", "ada", "127.0.0.1:7777", "The name is what the program says of itself"} {
		if !strings.Contains(page, want) {
			t.Errorf("the page does not say %q: %s", want, page)
		}
	}
	if to.Get("state") != "s1" || to.Get("iss") != h.web.URL || to.Get("code") == "" {
		t.Fatalf("the client gets %v", to)
	}
	got, status := h.trade(t, codeForm(client, to.Get("code"), verifier))
	if status != 200 || got.Type != "Bearer" || got.ID != "" || got.Expires < 500 || got.Expires > 600 || got.Refresh == "" {
		t.Fatalf("%d %+v", status, got)
	}
	id, until, err := h.Verify(t.Context(), got.Access, "prod")
	if err != nil || id.Subject != "ada" || fmt.Sprint(id.Groups) != "[analysts]" || id.Method != "oauth" || time.Until(until) > 11*time.Minute {
		t.Errorf("%+v until %s, %v", id, until, err)
	}
	if h.good(t, got.Access, "staging") == nil {
		t.Error("a token is good for another server")
	}
	next, status := h.trade(t, refreshForm(client, got.Refresh))
	if status != 200 || next.Refresh == got.Refresh || next.ID != "" || h.good(t, next.Access, "prod") != nil {
		t.Fatalf("refresh: %d %+v", status, next)
	}
	// What is known of it survives the broker.
	again, err := New(h.o)
	if err != nil {
		t.Fatal(err)
	}
	h.Server.mux = again.mux
	if _, _, err := again.Verify(t.Context(), next.Access, "prod"); err != nil {
		t.Errorf("after a restart: %v", err)
	}
	if last, status := h.trade(t, refreshForm(client, next.Refresh)); status != 200 {
		t.Errorf("refresh after a restart: %d %+v", status, last)
	}
	for _, secret := range []string{got.Access, got.Refresh, to.Get("code"), verifier} {
		if strings.Contains(h.log.String(), secret) {
			t.Errorf("the log has a secret: %s", h.log)
		}
	}
}

// TestReuse checks that what two have seen is good for neither.
func TestReuse(t *testing.T) {
	h := newHouse(t)
	client := h.register(t, callback)
	first := h.connect(t, client)
	second, _ := h.trade(t, refreshForm(client, first.Refresh))
	if _, status := h.trade(t, refreshForm(client, first.Refresh)); status != 400 {
		t.Errorf("a refresh token is good twice: %d", status)
	}
	if _, status := h.trade(t, refreshForm(client, second.Refresh)); status != 400 {
		t.Errorf("its successor is still good: %d", status)
	}
	if h.good(t, second.Access, "prod") == nil || h.good(t, first.Access, "prod") == nil {
		t.Error("the access tokens are still good")
	}

	// Of many at a time one succeeds at most, and nothing stays good.
	other := h.connect(t, client)
	var wg sync.WaitGroup
	var mu sync.Mutex
	var good []tokens
	for range 8 {
		wg.Go(func() {
			if got, status := h.trade(t, refreshForm(client, other.Refresh)); status == 200 {
				mu.Lock()
				good = append(good, got)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if len(good) > 1 {
		t.Errorf("%d refreshed", len(good))
	}
	for _, g := range good {
		if h.good(t, g.Access, "prod") == nil {
			t.Error("a token of a family that was used twice is good")
		}
	}

	// A code.
	verifier := oauth2.GenerateVerifier()
	to, _ := h.allow(t, h.browser(), h.query(client, verifier), "allow")
	form := codeForm(client, to.Get("code"), verifier)
	got, _ := h.trade(t, form)
	if _, status := h.trade(t, form); status != 400 {
		t.Errorf("a code is good twice: %d", status)
	}
	if h.good(t, got.Access, "prod") == nil {
		t.Error("what the first got is still good")
	}
	ended := 0
	for e, err := range h.store.Events(t.Context(), 0) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Type == grant.ClientEnded && e.Subject == "ada" && e.Server == "prod" {
			ended++
		}
	}
	if ended != 3 {
		t.Errorf("%d ends are on record", ended)
	}
}

// TestAuthorizeRefused checks requests that get no code, and where the answer goes.
func TestAuthorizeRefused(t *testing.T) {
	h := newHouse(t)
	client := h.register(t, callback, "https://app.example.com/cb")
	verifier := oauth2.GenerateVerifier()
	for _, c := range []struct {
		name   string
		change []string
		want   string // the error that the client gets; empty: the person does
	}{
		{"no challenge", []string{"code_challenge", ""}, "invalid_request"},
		{"plain", []string{"code_challenge_method", "plain"}, "invalid_request"},
		{"plain by default", []string{"code_challenge_method", ""}, "invalid_request"},
		{"a short challenge", []string{"code_challenge", "x"}, "invalid_request"},
		{"no resource", []string{"resource", ""}, "invalid_target"},
		{"another's resource", []string{"resource", "https://evil.example.com/prod/mcp"}, "invalid_target"},
		{"no server", []string{"resource", "URL"}, "invalid_target"},
		{"implicit", []string{"response_type", "token"}, "unauthorized_client"},
		{"answer in the fragment", []string{"response_mode", "fragment"}, "invalid_request"},
		{"a request object", []string{"request", "eyJhbGciOiJub25lIn0.e30."}, "request_not_supported"},
		{"no client", []string{"client_id", ""}, ""},
		{"a client nobody knows", []string{"client_id", "mcp-x"}, ""},
		{"no redirect", []string{"redirect_uri", ""}, ""},
		{"another redirect", []string{"redirect_uri", "https://evil.example.com/cb"}, ""},
		{"another path", []string{"redirect_uri", "http://127.0.0.1:7777/other"}, ""},
		{"a longer path", []string{"redirect_uri", "https://app.example.com/cb/../evil"}, ""},
		{"a host that begins so", []string{"redirect_uri", "https://app.example.com.evil.example.com/cb"}, ""},
	} {
		for i, v := range c.change {
			if v == "URL" {
				c.change[i] = h.web.URL
			}
		}
		to, page := h.allow(t, h.browser(), h.query(client, verifier, c.change...), "allow")
		switch {
		case c.want == "" && (to != nil || strings.Contains(page, "<form")):
			t.Errorf("%s: the browser is sent to %v, shown %s", c.name, to, page)
		case c.want != "" && (to.Get("error") != c.want || to.Get("iss") != h.web.URL || to.Get("state") != "s1" || to.Get("code") != ""):
			t.Errorf("%s: the client gets %v, %s", c.name, to, page)
		}
	}
	if to, _ := h.allow(t, h.browser(), h.query(client, verifier), "deny"); to.Get("error") != "access_denied" || to.Get("iss") != h.web.URL || to.Get("state") != "s1" {
		t.Errorf("denied: %v", to)
	}
}

// TestTokenRefused checks trades that give nothing.
func TestTokenRefused(t *testing.T) {
	h := newHouse(t)
	client, other := h.register(t, callback), h.register(t, callback, "http://127.0.0.1/x")
	for _, c := range []struct {
		name   string
		change func(url.Values)
	}{
		{"another verifier", func(f url.Values) { f.Set("code_verifier", oauth2.GenerateVerifier()) }},
		{"no verifier", func(f url.Values) { f.Del("code_verifier") }},
		{"another client", func(f url.Values) { f.Set("client_id", other) }},
		{"no client", func(f url.Values) { f.Del("client_id") }},
		{"another redirect", func(f url.Values) { f.Set("redirect_uri", "http://127.0.0.1:1/callback") }},
		{"another resource", func(f url.Values) { f.Set("resource", h.Resource("staging")) }},
		{"two resources", func(f url.Values) { f["resource"] = []string{h.Resource("prod"), h.Resource("staging")} }},
		{"another code", func(f url.Values) { f.Set("code", "x") }},
		{"another grant", func(f url.Values) { f.Set("grant_type", "client_credentials") }},
		{"password", func(f url.Values) { f.Set("grant_type", "password") }},
	} {
		verifier := oauth2.GenerateVerifier()
		to, _ := h.allow(t, h.browser(), h.query(client, verifier), "allow")
		form := codeForm(client, to.Get("code"), verifier)
		c.change(form)
		if got, status := h.trade(t, form); status == 200 || got.Access != "" || got.Error == "" {
			t.Errorf("%s: %d %+v", c.name, status, got)
		}
	}
	mine := h.connect(t, client)
	if _, status := h.trade(t, refreshForm(other, mine.Refresh)); status == 200 {
		t.Error("another client refreshes")
	}
	if _, status := h.trade(t, refreshForm(client, mine.Access)); status == 200 {
		t.Error("an access token refreshes")
	}
	form := refreshForm(client, mine.Refresh)
	form.Set("resource", h.Resource("staging"))
	if _, status := h.trade(t, form); status == 200 {
		t.Error("a refresh for another server")
	}
}

// TestForged checks access tokens that nobody has given out.
func TestForged(t *testing.T) {
	h := newHouse(t)
	mine := h.connect(t, h.register(t, callback))
	real, err := h.key.verify(mine.Access)
	if err != nil {
		t.Fatal(err)
	}
	sign := func(alg jose.SignatureAlgorithm, key any, change func(*accessClaims)) string {
		signer, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: key}, nil)
		if err != nil {
			t.Fatal(err)
		}
		claims := *real
		change(&claims)
		token, err := jwt.Signed(signer).Claims(claims).Serialize()
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	same := func(*accessClaims) {}
	if err := h.good(t, sign(algorithm, h.key.key, same), "prod"); err != nil {
		t.Fatalf("the test's own way to sign: %v", err)
	}
	foreign, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	head, rest, _ := strings.Cut(mine.Access, ".")
	_ = head
	for name, token := range map[string]string{
		"another key":      sign(algorithm, foreign, same),
		"HMAC of a public": sign(jose.HS256, []byte(strings.Repeat("k", 32)), same),
		"alg none":         "eyJhbGciOiJub25lIn0." + rest[:strings.LastIndex(rest, ".")+1],
		"altered":          mine.Access[:len(mine.Access)-6] + "AAAAAA",
		"expired":          sign(algorithm, h.key.key, func(c *accessClaims) { c.Expiry = jwt.NewNumericDate(time.Now().Add(-time.Minute)) }),
		"without an end":   sign(algorithm, h.key.key, func(c *accessClaims) { c.Expiry = nil }),
		"another issuer":   sign(algorithm, h.key.key, func(c *accessClaims) { c.Issuer = "https://evil.example.com" }),
		"another audience": sign(algorithm, h.key.key, func(c *accessClaims) { c.Audience = jwt.Audience{h.Resource("staging")} }),
		"several":          sign(algorithm, h.key.key, func(c *accessClaims) { c.Audience = append(c.Audience, h.Resource("staging")) }),
		"no access token":  sign(algorithm, h.key.key, func(c *accessClaims) { c.Use = "" }),
		"another family":   sign(algorithm, h.key.key, func(c *accessClaims) { c.Family = "x" }),
		"nothing":          "",
		"noise":            "a.b.c",
		"too long":         strings.Repeat("x", 1<<20),
	} {
		if h.good(t, token, "prod") == nil {
			t.Errorf("%s: it is good", name)
		}
	}
	if h.good(t, mine.Access, "prod") != nil {
		t.Error("the real one is not good")
	}
}

// TestConsent checks that nobody decides in another's place.
func TestConsent(t *testing.T) {
	h := newHouse(t)
	client := h.register(t, callback)
	begin := func(browser *http.Client) string {
		resp, err := browser.Get(h.web.URL + "/oauth/authorize?" + h.query(client, oauth2.GenerateVerifier()).Encode())
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		csp := resp.Header.Get("Content-Security-Policy")
		if !strings.Contains(csp, "form-action 'self' http://127.0.0.1:7777;") || !strings.Contains(csp, "frame-ancestors 'none'") {
			t.Errorf("the page's policy: %s", csp)
		}
		return resp.Request.URL.Query().Get("id")
	}
	mallory, victim := h.browser(), h.browser()
	id := begin(mallory)
	// Mallory's request, shown to the victim.
	resp, _ := victim.Get(h.web.URL + "/oauth/consent?id=" + id)
	resp.Body.Close()
	if resp.StatusCode != 400 {
		t.Errorf("another's request is shown: %d", resp.StatusCode)
	}
	begin(victim) // has a cookie of its own now
	for name, do := range map[string]func() (*http.Response, error){
		"another browser": func() (*http.Response, error) {
			return victim.PostForm(h.web.URL+"/oauth/consent", url.Values{"id": {id}, "decision": {"allow"}})
		},
		"another site": func() (*http.Response, error) {
			r, _ := http.NewRequest("POST", h.web.URL+"/oauth/consent", strings.NewReader(url.Values{"id": {id}, "decision": {"allow"}}.Encode()))
			r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
			r.Header.Set("Origin", "https://evil.example.com")
			r.Header.Set("Sec-Fetch-Site", "cross-site")
			return mallory.Do(r)
		},
		"not decided": func() (*http.Response, error) { return mallory.Get(h.web.URL + "/oauth/authorize/callback?id=" + id) },
	} {
		resp, err := do()
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if to := queryOf(t, resp); to.Get("code") != "" || resp.StatusCode/100 == 2 {
			t.Errorf("%s: %d %v", name, resp.StatusCode, to)
		}
	}
	// Signed out meanwhile: asked to sign in, and then again.
	h.mu.Lock()
	h.who = identity.Identity{}
	h.mu.Unlock()
	stay := h.browser()
	stay.CheckRedirect = func(r *http.Request, via []*http.Request) error {
		if strings.HasPrefix(r.URL.Path, "/login") {
			return http.ErrUseLastResponse
		}
		return nil
	}
	resp, err := stay.Get(h.web.URL + "/oauth/authorize?" + h.query(client, oauth2.GenerateVerifier()).Encode())
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if to := resp.Header.Get("Location"); !strings.HasPrefix(to, "/login?next=%2Foauth%2Fconsent%3Fid%3D") {
		t.Errorf("not signed in: sent to %s", to)
	}
}

// TestDisabled checks that who is disabled gets nothing, and that what they have is worth nothing.
func TestDisabled(t *testing.T) {
	h := newHouse(t)
	client := h.register(t, callback)
	mine := h.connect(t, client)
	if err := h.desk.Disable(t.Context(), grant.User, "ada", identity.Identity{Subject: "root"}, "left"); err != nil {
		t.Fatal(err)
	}
	if h.good(t, mine.Access, "prod") == nil {
		t.Error("the token is good")
	}
	if _, status := h.trade(t, refreshForm(client, mine.Refresh)); status == 200 {
		t.Error("a refresh")
	}
	if to, _ := h.allow(t, h.browser(), h.query(client, oauth2.GenerateVerifier()), "allow"); to.Get("error") != "access_denied" {
		t.Errorf("a new client: %v", to)
	}
}

func TestRevoke(t *testing.T) {
	h := newHouse(t)
	client := h.register(t, callback)
	mine := h.connect(t, client)
	revoke := func(client string) {
		resp, err := h.web.Client().PostForm(h.web.URL+"/oauth/revoke", url.Values{"token": {mine.Refresh}, "client_id": {client}})
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
	}
	revoke(h.register(t, callback, "http://127.0.0.1/x"))
	if err := h.good(t, mine.Access, "prod"); err != nil {
		t.Errorf("another client revokes: %v", err)
	}
	revoke(client)
	if h.good(t, mine.Access, "prod") == nil {
		t.Error("the token is good")
	}
	if _, status := h.trade(t, refreshForm(client, mine.Refresh)); status == 200 {
		t.Error("a refresh")
	}
}

// TestSweep checks that the store keeps no sign-ins that are over.
func TestSweep(t *testing.T) {
	h := newHouse(t)
	client := h.register(t, callback)
	kept := h.connect(t, client)
	h.until = time.Now().Add(2 * time.Second)
	h.connect(t, client)
	count := func() (n int) {
		for _, err := range h.store.Records(t.Context(), grant.Clients) {
			if err != nil {
				t.Fatal(err)
			}
			n++
		}
		return n
	}
	for deadline := time.Now().Add(20 * time.Second); count() == 2 && time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if err := h.Sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if n := count(); n != 1 || h.good(t, kept.Access, "prod") != nil {
		t.Errorf("%d are kept", n)
	}
}

func TestRegister(t *testing.T) {
	h := newHouse(t)
	for _, c := range []struct{ name, body, want string }{
		{"garbage", `{`, "invalid_client_metadata"},
		{"no redirect", `{}`, "invalid_redirect_uri"},
		{"http elsewhere", `{"redirect_uris":["http://example.com/cb"]}`, "invalid_redirect_uri"},
		{"javascript", `{"redirect_uris":["javascript:alert(1)"]}`, "invalid_redirect_uri"},
		{"data", `{"redirect_uris":["data:text/html,x"]}`, "invalid_redirect_uri"},
		{"relative", `{"redirect_uris":["/cb"]}`, "invalid_redirect_uri"},
		{"a fragment", `{"redirect_uris":["https://a.example.com/#x"]}`, "invalid_redirect_uri"},
		{"a user", `{"redirect_uris":["https://good.example.com@evil.example.com/"]}`, "invalid_redirect_uri"},
		{"a newline", `{"redirect_uris":["https://a.example.com/\n"]}`, "invalid_redirect_uri"},
		{"a backslash", `{"redirect_uris":["https://a.example.com\\@evil.example.com/"]}`, "invalid_redirect_uri"},
		{"a name that turns round", `{"redirect_uris":["https://a.example.com/"],"client_name":"a\u202eb"}`, "invalid_client_metadata"},
		{"another grant", `{"redirect_uris":["https://a.example.com/"],"grant_types":["client_credentials"]}`, "invalid_client_metadata"},
		{"too much", `{"redirect_uris":["https://a.example.com/` + strings.Repeat("x", 2000) + `"]}`, "invalid_redirect_uri"},
	} {
		resp, err := h.web.Client().Post(h.web.URL+"/oauth/register", "application/json", strings.NewReader(c.body))
		if err != nil {
			t.Fatal(err)
		}
		var got map[string]string
		err = json.NewDecoder(resp.Body).Decode(&got)
		resp.Body.Close()
		if resp.StatusCode != 400 || got["error"] != c.want || got["error_description"] == "" {
			t.Errorf("%s: %d %v %v", c.name, resp.StatusCode, got, err)
		}
	}
	h.register(t, "cursor://anysphere.cursor-retrieval/oauth/x", "https://claude.ai/api/mcp/auth_callback", "http://localhost:3000/cb", "http://[::1]:1/cb")
	// A registration of another broker's.
	other := newHouse(t)
	if _, err := h.client(t.Context(), other.register(t, callback)); err == nil {
		t.Error("another's registration is good")
	}
}

// TestDocument checks clients that are described at the URL that is their id.
func TestDocument(t *testing.T) {
	var site *httptest.Server
	site = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		doc := registration{ID: site.URL + r.URL.Path, Name: "Editor", Redirects: []string{callback}}
		w.Header().Set("Content-Type", "application/json")
		switch r.URL.Path {
		case "/mismatch":
			doc.ID = site.URL + "/good"
		case "/html":
			w.Header().Set("Content-Type", "text/html")
		case "/moved":
			http.Redirect(w, r, "/good", http.StatusFound)
			return
		case "/huge":
			doc.Name = strings.Repeat("x", 100<<10)
		case "/evil":
			doc.Redirects = []string{"javascript:alert(1)"}
		case "/gone":
			http.NotFound(w, r)
			return
		case "/slow":
			<-r.Context().Done()
			return
		}
		json.NewEncoder(w).Encode(doc)
	}))
	defer site.Close()
	client := *site.Client()
	client.CheckRedirect = publicClient().CheckRedirect
	client.Timeout = 300 * time.Millisecond
	h := newHouse(t, func(o *Options) { o.Client = &client })
	to, page := h.allow(t, h.browser(), h.query(site.URL+"/good", oauth2.GenerateVerifier()), "allow")
	if to.Get("code") == "" || !strings.Contains(page, "Editor (127.0.0.1:") || strings.Contains(page, "says of itself") {
		t.Errorf("%v %s", to, page)
	}
	for _, path := range []string{"/mismatch", "/html", "/moved", "/huge", "/evil", "/gone", "/slow", "/a/../good", "/", "", "/good#x"} {
		if _, err := h.client(t.Context(), site.URL+path); err == nil {
			t.Errorf("%s is a client", path)
		}
	}
	// Without the test's client nobody on this machine is reached.
	plain := newHouse(t)
	if _, err := plain.client(t.Context(), site.URL+"/good"); err == nil || !strings.Contains(plain.log.String(), "not a public address") {
		t.Errorf("%v: %s", err, plain.log)
	}
	for address, public := range map[string]bool{
		"127.0.0.1": false, "10.1.2.3": false, "192.168.1.1": false, "169.254.169.254": false, "100.64.0.1": false, "0.0.0.0": false, "::1": false, "fe80::1": false,
		"fd00::1": false, "64:ff9b::7f00:1": false, "224.0.0.1": false, "255.255.255.255": false, "8.8.8.8": true, "2606:4700::1111": true,
	} {
		if isPublic(netip.MustParseAddr(address).Unmap()) != public {
			t.Errorf("%s is public: %v", address, !public)
		}
	}
}

// TestMetadata checks what clients find out before they are anybody.
func TestMetadata(t *testing.T) {
	h := newHouse(t)
	get := func(path string) (m map[string]any) {
		resp, err := h.web.Client().Get(h.web.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if resp.Header.Get("Access-Control-Allow-Origin") != "*" {
			t.Errorf("%s: not for browsers", path)
		}
		json.NewDecoder(resp.Body).Decode(&m)
		return m
	}
	if m := get("/.well-known/oauth-protected-resource/prod/mcp"); m["resource"] != h.web.URL+"/prod/mcp" || fmt.Sprint(m["authorization_servers"]) != "["+h.web.URL+"]" {
		t.Errorf("%v", m)
	}
	if m := get("/.well-known/oauth-protected-resource/nothing/mcp"); m["resource"] != h.web.URL+"/nothing/mcp" {
		t.Errorf("a server that is not there: %v", m)
	}
	m := get("/.well-known/oauth-authorization-server")
	if m["issuer"] != h.web.URL || m["client_id_metadata_document_supported"] != true || m["authorization_response_iss_parameter_supported"] != true || fmt.Sprint(m["code_challenge_methods_supported"]) != "[S256]" {
		t.Errorf("%v", m)
	}
	for _, name := range []string{"authorization_endpoint", "token_endpoint", "registration_endpoint", "revocation_endpoint", "jwks_uri"} {
		if u, _ := m[name].(string); !strings.HasPrefix(u, h.web.URL+"/oauth/") {
			t.Errorf("%s is %v", name, m[name])
		}
	}
	if keys := get("/oauth/keys"); !strings.Contains(fmt.Sprint(keys), "P-256") || strings.Contains(fmt.Sprint(keys), " d:") {
		t.Errorf("%v", keys)
	}
	for _, path := range []string{"/oauth/introspect", "/oauth/userinfo", "/oauth/end", "/oauth/device"} {
		if m := get(path); len(m) > 0 {
			t.Errorf("%s answers %v", path, m)
		}
	}
	if c := h.Challenge("prod", true); c != `Bearer error="invalid_token", error_description="the token is not valid for this server", resource_metadata="`+h.web.URL+`/.well-known/oauth-protected-resource/prod/mcp", scope="mcp"` {
		t.Error(c)
	}
	if c := h.Challenge(`x", y="z`, false); strings.Contains(c, "y=") {
		t.Error(c)
	}
}

// TestForeign checks tokens of an authorization server of the company's own.
func TestForeign(t *testing.T) {
	issuer := identitytest.NewIssuer(t)
	m, err := identity.NewMapping(identity.MappingOptions{Subject: "sub", Groups: "groups"})
	if err != nil {
		t.Fatal(err)
	}
	h := newHouse(t, func(o *Options) {
		o.Visits, o.Issuers = nil, []string{issuer.URL}
		o.Foreign = identity.NewWorkloads(identity.WorkloadOptions{Issuer: issuer.URL, Mapping: m})
	})
	for audience, good := range map[any]bool{
		h.Resource("prod"): true, h.Resource("staging"): false, "broker": false, h.web.URL: false,
	} {
		token := issuer.Sign(issuer.Claims("", map[string]any{"sub": "ada", "groups": []string{"analysts"}, "aud": audience}))
		id, _, err := h.Verify(t.Context(), token, "prod")
		if (err == nil) != good || good && (id.Subject != "ada" || id.Method != "oauth") {
			t.Errorf("%v: %+v, %v", audience, id, err)
		}
	}
	resp, err := h.web.Client().Get(h.web.URL + "/.well-known/oauth-protected-resource/prod/mcp")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, _ := io.ReadAll(resp.Body); !strings.Contains(string(b), `"authorization_servers":["`+issuer.URL+`"]`) {
		t.Errorf("%s", b)
	}
}

// TestWorkload checks a program that shows the token that its platform gave it.
func TestWorkload(t *testing.T) {
	issuer := identitytest.NewIssuer(t)
	m, err := identity.NewMapping(identity.MappingOptions{Subject: "sub", Condition: `claims.sub == "repo:acme/deploy"`})
	if err != nil {
		t.Fatal(err)
	}
	h := newHouse(t, func(o *Options) {
		o.Visits = nil
		o.Workloads = identity.NewWorkloads(identity.WorkloadOptions{Issuer: issuer.URL, Audience: "broker", Mapping: m, Groups: []string{"ci"}})
	})
	for _, c := range []struct {
		subject, audience string
		good              bool
	}{{"repo:acme/deploy", "broker", true}, {"repo:acme/deploy", "another", false}, {"repo:eve/x", "broker", false}} {
		id, _, err := h.Verify(t.Context(), issuer.Sign(issuer.Claims(c.audience, map[string]any{"sub": c.subject})), "prod")
		if (err == nil) != c.good || c.good && (id.Subject != c.subject || fmt.Sprint(id.Groups) != "[ci]") {
			t.Errorf("%s for %s: %+v, %v", c.subject, c.audience, id, err)
		}
	}
	resp, err := h.web.Client().Get(h.web.URL + "/.well-known/oauth-protected-resource/prod/mcp")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, _ := io.ReadAll(resp.Body); strings.Contains(string(b), "authorization_servers") {
		t.Errorf("%s", b)
	}
}
