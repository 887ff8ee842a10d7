package identity_test

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"cloud.google.com/go/auth"
	jose "github.com/go-jose/go-jose/v4"
	"golang.org/x/oauth2"

	"example.com/broker/broker/identity"
	"example.com/broker/broker/identity/identitytest"
)

func mapping(t testing.TB, o identity.MappingOptions) *identity.Mapping {
	t.Helper()
	m, err := identity.NewMapping(o)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

var byEmail = identity.MappingOptions{Subject: "email", Groups: "groups"}

func newOIDC(t testing.TB, i *identitytest.Issuer, m *identity.Mapping, d identity.Directory) *identity.OIDC {
	return identity.NewOIDC(identity.OIDCOptions{
		Issuer: i.URL, ClientID: identitytest.Client, ClientSecret: identitytest.Secret,
		Scopes: []string{"email"}, Mapping: m, Directory: d,
	})
}

// signIn goes through the provider as a browser does; change may alter what the
// browser brings back.
func signIn(t testing.TB, p identity.Provider, change func(f *identity.Flow, answer url.Values)) (identity.Identity, error) {
	t.Helper()
	f := identity.Flow{State: rand.Text(), Nonce: rand.Text(), Verifier: oauth2.GenerateVerifier(), Callback: "https://broker.example.com/login/oidc/callback"}
	to, err := p.Begin(t.Context(), f)
	if err != nil {
		return identity.Identity{}, err
	}
	browser := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := browser.Get(to)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	back, err := resp.Location()
	if err != nil {
		t.Fatalf("the provider answers %s", resp.Status)
	}
	q := back.Query()
	if q.Get("state") != f.State || !strings.HasPrefix(back.String(), f.Callback) {
		t.Fatalf("the browser is sent to %s", back)
	}
	if change != nil {
		change(&f, q)
	}
	return p.Complete(t.Context(), f, httptest.NewRequest("GET", "/?"+q.Encode(), nil))
}

func TestOIDC(t *testing.T) {
	i := identitytest.NewIssuer(t)
	id, err := signIn(t, newOIDC(t, i, mapping(t, byEmail), nil), nil)
	if err != nil || id.Subject != "ada@example.com" || !slices.Equal(id.Groups, []string{"analysts"}) || id.Method != "oidc" {
		t.Errorf("%+v, %v", id, err)
	}
}

// TestOIDCForged checks that nothing but a token of this provider, for this
// broker and this sign-in, signs anybody in.
func TestOIDCForged(t *testing.T) {
	i := identitytest.NewIssuer(t)
	other, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(i.Key())
	if err != nil {
		t.Fatal(err)
	}
	public := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	with := func(name string, v any) func(map[string]any) string {
		return func(claims map[string]any) string {
			claims[name] = v
			return i.Sign(i.Claims("", claims))
		}
	}
	raw := func(header string, claims map[string]any) string {
		payload, _ := json.Marshal(claims)
		return base64.RawURLEncoding.EncodeToString([]byte(header)) + "." + base64.RawURLEncoding.EncodeToString(payload) + "."
	}
	now := time.Now()
	for name, forge := range map[string]func(map[string]any) string{
		"issuer":          with("iss", "https://evil.example.com"),
		"audience":        with("aud", "another"),
		"audiences":       with("aud", []string{"broker", "another"}), // and no azp
		"azp":             with("azp", "another"),
		"nonce":           with("nonce", "another"),
		"no nonce":        with("nonce", nil),
		"expired":         with("exp", now.Add(-2*time.Minute).Unix()),
		"not yet":         with("nbf", now.Add(10*time.Minute).Unix()),
		"from the future": with("iat", now.Add(10*time.Minute).Unix()),
		"no expiry":       with("exp", nil),
		"at_hash":         with("at_hash", "AAAAAAAAAAAAAAAAAAAAAA"),
		"no subject":      with("email", nil),
		"subject twice":   with("email", []string{"ada@example.com", "eve@example.com"}),
		"unverified":      with("email_verified", false),
		"controls":        with("email", "ada\u0000@example.com"),
		"no groups":       with("groups", nil),
		"groups":          with("groups", []any{"analysts", 7}),
		"alg none":        func(c map[string]any) string { return raw(`{"alg":"none"}`, c) },
		"alg None":        func(c map[string]any) string { return raw(`{"alg":"None","kid":"1"}`, c) },
		"key confusion": func(c map[string]any) string {
			return identitytest.Sign(t, jose.SigningKey{Algorithm: jose.HS256, Key: jose.JSONWebKey{Key: public, KeyID: "1"}}, c)
		},
		"key confusion, DER": func(c map[string]any) string {
			return identitytest.Sign(t, jose.SigningKey{Algorithm: jose.HS256, Key: jose.JSONWebKey{Key: der, KeyID: "1"}}, c)
		},
		"another key": func(c map[string]any) string {
			return identitytest.Sign(t, jose.SigningKey{Algorithm: jose.RS256, Key: jose.JSONWebKey{Key: other, KeyID: "1"}}, c)
		},
		"key of its own": func(c map[string]any) string {
			s, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.RS256, Key: other}, &jose.SignerOptions{EmbedJWK: true})
			if err != nil {
				t.Fatal(err)
			}
			payload, _ := json.Marshal(c)
			signed, err := s.Sign(payload)
			if err != nil {
				t.Fatal(err)
			}
			text, _ := signed.CompactSerialize()
			return text
		},
		"no token": func(map[string]any) string { return "" },
		"no JWT":   func(map[string]any) string { return "a.b.c" },
		"cut":      func(c map[string]any) string { return i.Sign(c)[:100] },
		"unsigned": func(c map[string]any) string { t := i.Sign(c); return t[:strings.LastIndex(t, ".")+1] },
		"signed by nobody": func(c map[string]any) string {
			t := i.Sign(c)
			return t[:strings.LastIndex(t, ".")+1] + strings.Repeat("A", 342)
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := newOIDC(t, i, mapping(t, byEmail), nil) // with its own limit of key fetches
			i.Forge(forge)
			id, err := signIn(t, p, nil)
			var refused *identity.SignInError
			if !errors.As(err, &refused) {
				t.Errorf("signed in as %+v, %v", id, err)
			}
			if strings.Contains(fmt.Sprint(err), "eyJ") {
				t.Errorf("the error shows the token: %v", err)
			}
			i.Forge(nil)
			if _, err := signIn(t, p, nil); err != nil {
				t.Errorf("an honest sign-in afterwards: %v", err)
			}
		})
	}
}

// TestOIDCSkew checks that clocks may differ, by a minute.
func TestOIDCSkew(t *testing.T) {
	i := identitytest.NewIssuer(t)
	p := newOIDC(t, i, mapping(t, byEmail), nil)
	i.Forge(func(c map[string]any) string {
		c["exp"], c["iat"] = time.Now().Add(-30*time.Second).Unix(), time.Now().Add(30*time.Second).Unix()
		return i.Sign(c)
	})
	if _, err := signIn(t, p, nil); err != nil {
		t.Error(err)
	}
}

// TestOIDCAnswers checks what a browser may bring back.
func TestOIDCAnswers(t *testing.T) {
	i := identitytest.NewIssuer(t)
	p := newOIDC(t, i, mapping(t, byEmail), nil)
	used := ""
	if _, err := signIn(t, p, func(_ *identity.Flow, q url.Values) { used = q.Get("code") }); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(f *identity.Flow, q url.Values){
		"a code again":     func(_ *identity.Flow, q url.Values) { q.Set("code", used) },
		"another verifier": func(f *identity.Flow, _ url.Values) { f.Verifier = oauth2.GenerateVerifier() },
		"another nonce":    func(f *identity.Flow, _ url.Values) { f.Nonce = "x" },
		"another issuer":   func(_ *identity.Flow, q url.Values) { q.Set("iss", "https://evil.example.com") },
		"an error":         func(_ *identity.Flow, q url.Values) { q.Set("error", "access_denied<script>") },
		"no code":          func(_ *identity.Flow, q url.Values) { q.Del("code") },
	} {
		if id, err := signIn(t, p, change); err == nil {
			t.Errorf("%s: signed in as %+v", name, id)
		} else if strings.Contains(err.Error(), "<") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestOIDCUserInfo checks that claims may stand there, and whose they must be.
func TestOIDCUserInfo(t *testing.T) {
	i := identitytest.NewIssuer(t)
	p := newOIDC(t, i, mapping(t, byEmail), nil)
	i.SignInAs(map[string]any{"sub": "1", "email": "ada@example.com"})
	i.UserInfo(map[string]any{"sub": "1", "email": "eve@example.com", "groups": []string{"x"}})
	if id, err := signIn(t, p, nil); err != nil || id.Subject != "ada@example.com" || !slices.Equal(id.Groups, []string{"x"}) {
		t.Errorf("%+v, %v", id, err)
	}
	i.UserInfo(map[string]any{"sub": "2", "groups": []string{"x"}})
	if id, err := signIn(t, p, nil); err == nil {
		t.Errorf("with userinfo of somebody else: %+v", id)
	}
}

// TestOutage checks that a provider that is away is said so, that it is not
// asked all the time, and that it counts again when it is back.
func TestOutage(t *testing.T) {
	i := identitytest.NewIssuer(t)
	i.Down(true)
	p := newOIDC(t, i, mapping(t, byEmail), nil)
	_, err := signIn(t, p, nil)
	if err == nil || !strings.Contains(err.Error(), "cannot be reached; try again later") {
		t.Fatalf("%v", err)
	}
	i.Down(false)
	if _, err := signIn(t, p, nil); err == nil {
		t.Error("the provider was asked again at once")
	}
	p = newOIDC(t, i, mapping(t, byEmail), nil)
	if _, err := signIn(t, p, nil); err != nil {
		t.Fatal(err)
	}
	i.Down(true) // its metadata and keys are known; the code cannot be traded
	f := identity.Flow{Callback: "https://broker.example.com/x"}
	if _, err := p.Begin(t.Context(), f); err != nil {
		t.Error(err)
	}
	if _, err := p.Complete(t.Context(), f, httptest.NewRequest("GET", "/?code=x", nil)); err == nil {
		t.Error("signed in without a provider")
	}
}

// TestKeyFetches checks that forged tokens do not make the broker ask for keys
// without end, and that no valid one makes it ask at all.
func TestKeyFetches(t *testing.T) {
	i := identitytest.NewIssuer(t)
	w := identity.NewWorkloads(identity.WorkloadOptions{
		Issuer: i.URL, Audience: "broker", Mapping: mapping(t, identity.MappingOptions{Subject: "sub"}),
	})
	token := i.Sign(i.Claims("broker", map[string]any{"sub": "repo:acme/x"}))
	for range 50 {
		if _, _, err := w.Verify(t.Context(), token); err != nil {
			t.Fatal(err)
		}
	}
	if n := i.Keys.Load(); n != 1 {
		t.Errorf("50 valid tokens fetched the keys %d times", n)
	}
	other, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	for n := range 200 {
		forged := identitytest.Sign(t, jose.SigningKey{Algorithm: jose.RS256, Key: jose.JSONWebKey{Key: other, KeyID: fmt.Sprint(n)}}, i.Claims("broker", map[string]any{"sub": "x"}))
		if _, _, err := w.Verify(t.Context(), forged); err == nil {
			t.Fatal("a forged token counts")
		}
	}
	if n := i.Keys.Load(); n > 4 {
		t.Errorf("200 forged tokens fetched the keys %d times", n)
	}
	if _, _, err := w.Verify(t.Context(), token); err != nil {
		t.Errorf("a valid token afterwards: %v", err)
	}
}

func TestMapping(t *testing.T) {
	claims := map[string]any{
		"sub": "1", "hd": "example.com", "email": "ada@example.com", "email_verified": true,
		"https://example.com/groups": []any{"a", "b"}, "roles": []any{"r1", "x"}, "one": "only", "tenant": map[string]any{"id": "7"},
	}
	for _, tt := range []struct {
		name    string
		o       identity.MappingOptions
		subject string
		groups  []string
		err     string
	}{
		{"claims", identity.MappingOptions{Subject: "sub", Groups: "https://example.com/groups"}, "1", []string{"a", "b"}, ""},
		{"one group", identity.MappingOptions{Subject: "sub", Groups: "one"}, "1", []string{"only"}, ""},
		{"no groups wanted", identity.MappingOptions{Subject: "sub"}, "1", nil, ""},
		{"groups absent", identity.MappingOptions{Subject: "sub", Groups: "groups"}, "", nil, "states no groups"},
		{"groups optional", identity.MappingOptions{Subject: "sub", Groups: "groups", NoGroups: true}, "1", nil, ""},
		{"expressions", identity.MappingOptions{SubjectExpr: `claims.tenant.id + "/" + claims.sub`, GroupsExpr: `claims.roles.filter(r, r.startsWith("r")).map(r, "role-" + r)`}, "7/1", []string{"role-r1"}, ""},
		{"expression fails", identity.MappingOptions{Subject: "sub", GroupsExpr: `claims.absent`}, "", nil, "expression for the groups fails"},
		{"subject fails", identity.MappingOptions{SubjectExpr: `claims.absent`}, "", nil, "expression for the subject fails"},
		{"subject is no string", identity.MappingOptions{SubjectExpr: `claims.roles`}, "", nil, "states no subject"},
		{"condition", identity.MappingOptions{Subject: "email", Condition: `claims.hd == "example.com"`}, "ada@example.com", nil, ""},
		{"condition does not hold", identity.MappingOptions{Subject: "email", Condition: `claims.hd == "evil.com"`}, "", nil, "condition"},
		{"condition fails", identity.MappingOptions{Subject: "email", Condition: `claims.absent == "x"`}, "", nil, "condition"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			id, err := identity.ReadIdentity(t.Context(), "oidc", maps.Clone(claims), mapping(t, tt.o), nil)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("%+v, %v; want an error with %q", id, err, tt.err)
				}
				return
			}
			if err != nil || id.Subject != tt.subject || !slices.Equal(id.Groups, tt.groups) {
				t.Errorf("%+v, %v", id, err)
			}
		})
	}
	for _, bad := range []identity.MappingOptions{{Condition: "claims."}, {SubjectExpr: "1"}, {GroupsExpr: `"x"`}, {Condition: "claims.sub + 'x'", Subject: "sub"}, {Condition: "claim.sub == '1'"}} {
		if _, err := identity.NewMapping(bad); err == nil {
			t.Errorf("%+v compiles", bad)
		}
	}
}

func TestWorkloads(t *testing.T) {
	i := identitytest.NewIssuer(t)
	w := identity.NewWorkloads(
		identity.WorkloadOptions{
			Issuer: i.URL, Audience: "https://broker.example.com", Groups: []string{"deployers"},
			Mapping: mapping(t, identity.MappingOptions{Subject: "sub", Condition: `claims.repository == "acme/deploy" && claims.ref == "refs/heads/main"`}),
		},
		identity.WorkloadOptions{
			Issuer: i.URL, Audience: "https://broker.example.com", Groups: []string{"testers"},
			Mapping: mapping(t, identity.MappingOptions{SubjectExpr: `"ci:" + claims.sub`, Condition: `claims.repository == "acme/test"`}),
		})
	claims := func(more map[string]any) map[string]any {
		all := i.Claims("https://broker.example.com", map[string]any{"sub": "repo:acme/deploy:ref:refs/heads/main", "repository": "acme/deploy", "ref": "refs/heads/main"})
		maps.Copy(all, more)
		maps.DeleteFunc(all, func(_ string, v any) bool { return v == nil })
		return all
	}
	id, until, err := w.Verify(t.Context(), i.Sign(claims(nil)))
	if err != nil || id.Subject != "repo:acme/deploy:ref:refs/heads/main" || !slices.Equal(id.Groups, []string{"deployers"}) || id.Method != "workload" || time.Until(until) <= 0 {
		t.Errorf("%+v, %v, %v", id, until, err)
	}
	id, _, err = w.Verify(t.Context(), i.Sign(claims(map[string]any{"repository": "acme/test", "sub": "t"})))
	if err != nil || id.Subject != "ci:t" || !slices.Equal(id.Groups, []string{"testers"}) {
		t.Errorf("by the second entry: %+v, %v", id, err)
	}
	for name, bad := range map[string]string{
		"another repository": i.Sign(claims(map[string]any{"repository": "evil/deploy"})),
		"another branch":     i.Sign(claims(map[string]any{"ref": "refs/heads/x"})),
		"no repository":      i.Sign(claims(map[string]any{"repository": nil})),
		"another audience":   i.Sign(claims(map[string]any{"aud": "https://else.example.com"})),
		"expired":            i.Sign(claims(map[string]any{"exp": time.Now().Add(-2 * time.Minute).Unix()})),
		"from the future":    i.Sign(claims(map[string]any{"iat": time.Now().Add(time.Hour).Unix()})),
		"another issuer":     i.Sign(claims(map[string]any{"iss": "https://evil.example.com"})),
		"nothing":            "",
		"no token":           "x.y.z",
		"large":              strings.Repeat("x", 1<<20),
	} {
		if id, _, err := w.Verify(t.Context(), bad); err == nil {
			t.Errorf("%s: %+v", name, id)
		}
	}
}

// lookUp signs in at an issuer whose groups come from a directory.
func lookUp(t *testing.T, claims map[string]any, d identity.Directory, o identity.MappingOptions) (identity.Identity, error) {
	t.Helper()
	i := identitytest.NewIssuer(t)
	i.SignInAs(claims)
	return signIn(t, newOIDC(t, i, mapping(t, o), d), nil)
}

// fakeDirectory plays Graph, Okta's API or Google's.
func fakeDirectory(t *testing.T, answer func(w http.ResponseWriter, r *http.Request, base string)) string {
	var server *httptest.Server
	server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		answer(w, r, server.URL)
	}))
	t.Cleanup(server.Close)
	return server.URL
}

func TestEntra(t *testing.T) {
	failing := false
	base := fakeDirectory(t, func(w http.ResponseWriter, r *http.Request, base string) {
		switch {
		case r.URL.Path == "/tenant/oauth2/v2.0/token":
			fmt.Fprint(w, `{"access_token":"graph","token_type":"Bearer","expires_in":60}`)
		case failing:
			w.WriteHeader(http.StatusForbidden)
		case r.Header.Get("Authorization") != "Bearer graph" || r.URL.Path != "/v1.0/users/oid-1/transitiveMemberOf/microsoft.graph.group":
			t.Errorf("asked for %s with %q", r.URL, r.Header.Get("Authorization"))
		case r.FormValue("page") == "":
			fmt.Fprintf(w, `{"value":[{"id":"g1"}],"@odata.nextLink":"%s%s?page=2"}`, base, r.URL.Path)
		default:
			fmt.Fprint(w, `{"value":[{"id":"g2"}]}`)
		}
	})
	d := &identity.Entra{Tenant: "tenant", ClientID: "broker", ClientSecret: "s", Login: base, Graph: base}
	over := map[string]any{
		"sub": "1", "oid": "oid-1", "email": "ada@example.com",
		"_claim_names":   map[string]any{"groups": "src1"},
		"_claim_sources": map[string]any{"src1": map[string]any{"endpoint": "https://evil.example.com/steal"}},
	}
	if id, err := lookUp(t, over, d, byEmail); err != nil || !slices.Equal(id.Groups, []string{"g1", "g2"}) {
		t.Errorf("%+v, %v", id, err)
	}
	if id, err := lookUp(t, map[string]any{"sub": "1", "oid": "oid-1", "email": "a@b", "groups": []string{"g9"}}, d, byEmail); err != nil || !slices.Equal(id.Groups, []string{"g9"}) {
		t.Errorf("without overage: %+v, %v", id, err)
	}
	if id, err := lookUp(t, over, nil, byEmail); err == nil {
		t.Errorf("without a directory: %+v", id)
	}
	if id, err := lookUp(t, over, nil, identity.MappingOptions{Subject: "email", Groups: "groups", NoGroups: true}); err == nil {
		t.Errorf("without a directory, groups being optional: %+v", id)
	}
	failing = true
	if id, err := lookUp(t, over, d, byEmail); err == nil {
		t.Errorf("while Graph fails: %+v", id)
	}
}

func TestOkta(t *testing.T) {
	var names []string
	for n := range 120 {
		names = append(names, fmt.Sprintf("g%03d", n))
	}
	base := fakeDirectory(t, func(w http.ResponseWriter, r *http.Request, base string) {
		if r.URL.Path != "/api/v1/users/1/groups" || r.Header.Get("Authorization") != "SSWS token" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		page := names[:100]
		if r.FormValue("after") == "" {
			w.Header().Add("Link", fmt.Sprintf(`<%s%s?limit=200>; rel="self"`, base, r.URL.Path))
			w.Header().Add("Link", fmt.Sprintf(`<%s%s?after=x>; rel="next"`, base, r.URL.Path))
		} else {
			page = names[100:]
		}
		type group struct {
			Profile map[string]string `json:"profile"`
		}
		var list []group
		for _, n := range page {
			list = append(list, group{map[string]string{"name": n}})
		}
		json.NewEncoder(w).Encode(list)
	})
	cut := map[string]any{"sub": "1", "email": "ada@example.com", "groups": names[:100]}
	if id, err := lookUp(t, cut, &identity.Okta{Org: base, Token: "token"}, byEmail); err != nil || !slices.Equal(id.Groups, names) {
		t.Errorf("%d groups, %v", len(id.Groups), err)
	}
	for name, d := range map[string]*identity.Okta{"no token": {Org: base}, "a wrong token": {Org: base, Token: "x"}} {
		if id, err := lookUp(t, cut, d, byEmail); err == nil {
			t.Errorf("%s: signed in with %d groups", name, len(id.Groups))
		}
	}
	if id, err := lookUp(t, map[string]any{"sub": "1", "email": "a@b", "groups": names[:99]}, &identity.Okta{Org: base}, byEmail); err != nil || len(id.Groups) != 99 {
		t.Errorf("with 99 groups: %d, %v", len(id.Groups), err)
	}
}

func TestGoogle(t *testing.T) {
	failing := false
	base := fakeDirectory(t, func(w http.ResponseWriter, r *http.Request, base string) {
		switch {
		case r.Header.Get("Authorization") != "Bearer own":
			t.Errorf("asked with %q", r.Header.Get("Authorization"))
		case failing:
			w.WriteHeader(http.StatusForbidden)
		case r.URL.Path == "/admin/directory/v1/groups" && r.FormValue("userKey") == "ada@example.com":
			fmt.Fprint(w, `{"groups":[{"email":"direct@example.com"}]}`)
		case r.URL.Path != "/v1/groups/-/memberships:searchTransitiveGroups" || !strings.Contains(r.FormValue("query"), "member_key_id == 'ada@example.com' &&"):
			t.Errorf("asked for %s", r.URL)
		case r.FormValue("pageToken") == "":
			fmt.Fprint(w, `{"memberships":[{"groupKey":{"id":"leads@example.com"}}],"nextPageToken":"2"}`)
		default:
			fmt.Fprint(w, `{"memberships":[{"groupKey":{"id":"all@example.com"}}]}`)
		}
	})
	d := &identity.Google{
		Endpoint:    base,
		Credentials: auth.NewCredentials(&auth.CredentialsOptions{TokenProvider: ownToken{}}),
	}
	o := identity.MappingOptions{Subject: "email", Condition: `claims.hd == "example.com"`}
	claims := map[string]any{"sub": "1", "email": "ada@example.com", "email_verified": true, "hd": "example.com"}
	if id, err := lookUp(t, claims, d, o); err != nil || !slices.Equal(id.Groups, []string{"all@example.com", "leads@example.com"}) {
		t.Errorf("%+v, %v", id, err)
	}
	admin := *d
	admin.AdminSDK = true
	if id, err := lookUp(t, claims, &admin, o); err != nil || !slices.Equal(id.Groups, []string{"direct@example.com"}) {
		t.Errorf("Admin SDK: %+v, %v", id, err)
	}
	for name, bad := range map[string]map[string]any{
		"unverified":  {"sub": "1", "email": "ada@example.com", "email_verified": false, "hd": "example.com"},
		"not stated":  {"sub": "1", "email": "ada@example.com", "hd": "example.com"},
		"a quote":     {"sub": "1", "email": "x' || '1'=='1", "email_verified": true, "hd": "example.com"},
		"a gmail one": {"sub": "1", "email": "ada@gmail.com", "email_verified": true},
	} {
		if id, err := lookUp(t, bad, d, o); err == nil {
			t.Errorf("%s: %+v", name, id)
		}
	}
	failing = true
	if id, err := lookUp(t, claims, d, o); err == nil {
		t.Errorf("while Google fails: %+v", id)
	}
}

type ownToken struct{}

func (ownToken) Token(context.Context) (*auth.Token, error) { return &auth.Token{Value: "own"}, nil }

// TestAttestor checks which instances of Google's may join as which agents.
func TestAttestor(t *testing.T) {
	i := identitytest.NewIssuer(t)
	a := identity.NewAttestor(i.URL, nil)
	instance := func(more map[string]any) map[string]any {
		engine := map[string]any{"project_id": "prod", "zone": "europe-west1-b", "instance_name": "mcp-1"}
		claims := i.Claims("aud", map[string]any{"sub": "1", "email": "agent@prod.iam.gserviceaccount.com", "email_verified": true, "google": map[string]any{"compute_engine": engine}})
		for k, v := range more {
			if v == nil {
				delete(claims, k)
			} else if k == "project_id" || k == "zone" {
				engine[k] = v
			} else {
				claims[k] = v
			}
		}
		return claims
	}
	allowed := &identity.GoogleAgents{
		Agents: []string{"gke-prod"}, Projects: []string{"prod"}, ServiceAccounts: []string{"agent@prod.iam.gserviceaccount.com"},
		Zones: []string{"europe-west1-b"}, Condition: mapping(t, identity.MappingOptions{Condition: `claims.google.compute_engine.instance_name.startsWith("mcp-")`}),
	}
	for name, tt := range map[string]struct {
		more      map[string]any
		agent     string
		valid, ok bool
	}{
		"right":              {nil, "gke-prod", true, true},
		"another agent":      {nil, "gke-test", true, false},
		"another project":    {map[string]any{"project_id": "test"}, "gke-prod", true, false},
		"another zone":       {map[string]any{"zone": "us-east1-b"}, "gke-prod", true, false},
		"another account":    {map[string]any{"email": "x@prod.iam.gserviceaccount.com"}, "gke-prod", true, false},
		"unverified account": {map[string]any{"email_verified": false}, "gke-prod", false, false},
		"another audience":   {map[string]any{"aud": "other"}, "gke-prod", false, false},
		"two audiences":      {map[string]any{"aud": []string{"aud", "other"}}, "gke-prod", false, false},
		"no instance":        {map[string]any{"google": nil}, "gke-prod", false, false},
		"expired":            {map[string]any{"exp": time.Now().Add(-time.Hour).Unix()}, "gke-prod", false, false},
		"another issuer":     {map[string]any{"iss": "https://evil.example.com"}, "gke-prod", false, false},
	} {
		at, err := a.Verify(t.Context(), i.Sign(instance(tt.more)), "aud")
		if (err == nil) != tt.valid {
			t.Errorf("%s: %+v, %v", name, at, err)
		} else if err == nil && allowed.Admit(tt.agent, at) != tt.ok {
			t.Errorf("%s: admitted is %v", name, !tt.ok)
		}
	}
}
