package credential

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"cloud.google.com/go/auth/credentials/idtoken"
	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

const (
	agentEmail = "agent@prod.iam.gserviceaccount.com"
	mcpEmail   = "mcp@prod.iam.gserviceaccount.com"
	readEmail  = "mcp-read@prod.iam.gserviceaccount.com"
	midEmail   = "mid@prod.iam.gserviceaccount.com"
	bigquery   = "https://www.googleapis.com/auth/bigquery"
	readonly   = "https://www.googleapis.com/auth/bigquery.readonly"
	runURL     = "https://mcp-abc.a.run.app"
)

// A fakeGoogle plays all of Google that the package speaks with. It keeps
// books: a token is worth what it was issued for.
type fakeGoogle struct {
	*httptest.Server
	t         *testing.T
	key       *rsa.PrivateKey // of Google's, and of the agent's key file
	mayActAs  map[string]string
	transport http.RoundTripper

	mu     sync.Mutex
	calls  map[string]int // by what was asked for
	issued map[string]issue
	fail   map[string]http.HandlerFunc // answers instead
	values []string                    // of all that is secret
}

type issue struct {
	principal, scopes string
	until             time.Time
}

// One key for all: making it takes longer than most tests.
var rsaKey = sync.OnceValues(func() (*rsa.PrivateKey, error) { return rsa.GenerateKey(rand.Reader, 2048) })

func newGoogle(t *testing.T) *fakeGoogle {
	key, err := rsaKey()
	if err != nil {
		t.Fatal(err)
	}
	g := &fakeGoogle{
		t: t, key: key, calls: map[string]int{}, issued: map[string]issue{}, fail: map[string]http.HandlerFunc{},
		mayActAs: map[string]string{mcpEmail: agentEmail, readEmail: agentEmail, midEmail: agentEmail},
	}
	g.Server = httptest.NewServer(g)
	t.Cleanup(g.Close)
	g.transport = toFake(strings.TrimPrefix(g.URL, "http://"))
	t.Setenv("GCE_METADATA_HOST", strings.TrimPrefix(g.URL, "http://"))
	t.Setenv("GOOGLE_APPLICATION_CREDENTIALS", "")
	t.Setenv("HOME", t.TempDir())
	return g
}

// toFake is a way to the fake, whatever host is asked for.
type toFake string

func (f toFake) RoundTrip(r *http.Request) (*http.Response, error) {
	to := r.Clone(r.Context())
	to.Header.Set("X-Test-Host", r.URL.Host)
	to.URL.Scheme, to.URL.Host = "http", string(f)
	return http.DefaultTransport.RoundTrip(to)
}

func (g *fakeGoogle) issue(principal, scopes string, life time.Duration) string {
	value := "ya29." + rand.Text()
	g.mu.Lock()
	defer g.mu.Unlock()
	g.issued[value] = issue{principal, scopes, time.Now().Add(life)}
	g.values = append(g.values, value)
	return value
}

func (g *fakeGoogle) idToken(email, audience string) string {
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.RS256, Key: jose.JSONWebKey{Key: g.key, KeyID: "k1"}}, nil)
	if err != nil {
		g.t.Error(err)
	}
	value, err := jwt.Signed(signer).Claims(jwt.Claims{
		Issuer: "https://accounts.google.com", Subject: "1", Audience: jwt.Audience{audience},
		IssuedAt: jwt.NewNumericDate(time.Now()), Expiry: jwt.NewNumericDate(time.Now().Add(time.Hour)),
	}).Claims(map[string]any{"email": email, "email_verified": true}).Serialize()
	if err != nil {
		g.t.Error(err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.values = append(g.values, value)
	return value
}

// bearer says whose token a request carries.
func (g *fakeGoogle) bearer(r *http.Request) issue {
	g.mu.Lock()
	defer g.mu.Unlock()
	i := g.issued[strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")]
	if time.Now().After(i.until) {
		return issue{}
	}
	return i
}

func refuse(w http.ResponseWriter, code int, status, message string) {
	w.WriteHeader(code)
	json.NewEncoder(w).Encode(map[string]any{"error": map[string]any{"code": code, "status": status, "message": message}})
}

func (g *fakeGoogle) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	host, path := r.Header.Get("X-Test-Host"), r.URL.Path
	_, method, ok := strings.Cut(path, ":")
	if !ok {
		method = path[strings.LastIndexByte(path, '/')+1:]
	}
	call := host + " " + method
	g.mu.Lock()
	g.calls[call]++
	fail := g.fail[call]
	g.mu.Unlock()
	if fail != nil {
		fail(w, r)
		return
	}
	answer := func(v any) {
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(v)
	}
	const instance = "/computeMetadata/v1/instance/service-accounts/default/"
	switch {
	case host == "" && r.Header.Get("Metadata-Flavor") != "Google":
		http.Error(w, "no flavor", http.StatusForbidden)
	case path == instance+"token":
		answer(map[string]any{"access_token": g.issue(agentEmail, r.FormValue("scopes"), time.Hour), "expires_in": 3600, "token_type": "Bearer"})
	case path == instance+"identity":
		io.WriteString(w, g.idToken(agentEmail, r.FormValue("audience")))
	case path == instance+"email":
		io.WriteString(w, agentEmail)
	case call == "sts.googleapis.com token":
		if r.FormValue("subject_token") != "subject-from-elsewhere" || r.FormValue("grant_type") != "urn:ietf:params:oauth:grant-type:token-exchange" {
			answer(map[string]any{"error": "invalid_grant"})
			return
		}
		answer(map[string]any{"access_token": g.issue(agentEmail, r.FormValue("scope"), time.Hour), "expires_in": 3600, "token_type": "Bearer", "issued_token_type": "urn:ietf:params:oauth:token-type:access_token"})
	case call == "oauth2.googleapis.com token":
		g.keyGrant(w, r, answer)
	case call == "www.googleapis.com certs":
		answer(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: g.key.Public(), KeyID: "k1", Algorithm: "RS256", Use: "sig"}}})
	case strings.HasPrefix(call, "iamcredentials.googleapis.com generate"):
		g.impersonate(w, r, method, answer)
	case call == "secretmanager.googleapis.com access":
		if g.bearer(r).principal != agentEmail {
			refuse(w, 403, "PERMISSION_DENIED", "Permission 'secretmanager.versions.access' denied")
			return
		}
		data := []byte("key-of-" + path[len("/v1/"):strings.IndexByte(path, ':')] + "\n")
		sum := fmt.Sprint(crc32.Checksum(data, crc32.MakeTable(crc32.Castagnoli)))
		answer(map[string]any{"payload": map[string]any{"data": base64.StdEncoding.EncodeToString(data), "dataCrc32c": sum}})
	case host == "bigquery.googleapis.com":
		i := g.bearer(r)
		answer(map[string]string{"principal": i.principal, "scopes": i.scopes, "reason": r.Header.Get("X-Goog-Request-Reason"), "quota": r.Header.Get("X-Goog-User-Project")})
	default:
		http.NotFound(w, r)
	}
}

// keyGrant takes the assertion that a key file signs.
func (g *fakeGoogle) keyGrant(w http.ResponseWriter, r *http.Request, answer func(any)) {
	var claims struct {
		jwt.Claims
		Scope    string `json:"scope"`
		Audience string `json:"target_audience"`
	}
	token, err := jwt.ParseSigned(r.FormValue("assertion"), []jose.SignatureAlgorithm{jose.RS256})
	if err == nil {
		err = token.Claims(g.key.Public(), &claims)
	}
	if err != nil || claims.Issuer != agentEmail {
		w.WriteHeader(400)
		answer(map[string]any{"error": "invalid_grant", "error_description": "Invalid JWT Signature: " + r.FormValue("assertion")})
		return
	}
	if claims.Audience != "" {
		answer(map[string]any{"id_token": g.idToken(agentEmail, claims.Audience)})
		return
	}
	answer(map[string]any{"access_token": g.issue(agentEmail, claims.Scope, time.Hour), "expires_in": 3600, "token_type": "Bearer"})
}

func (g *fakeGoogle) impersonate(w http.ResponseWriter, r *http.Request, method string, answer func(any)) {
	var ask struct {
		Scope     []string `json:"scope"`
		Lifetime  string   `json:"lifetime"`
		Audience  string   `json:"audience"`
		Delegates []string `json:"delegates"`
		Email     bool     `json:"includeEmail"`
	}
	json.NewDecoder(r.Body).Decode(&ask)
	who := r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1 : strings.IndexByte(r.URL.Path, ':')]
	i := g.bearer(r)
	g.mu.Lock()
	by := g.mayActAs[who]
	g.mu.Unlock()
	if len(ask.Delegates) == 1 && ask.Delegates[0] == "projects/-/serviceAccounts/"+by {
		by = agentEmail
	}
	if i.principal == "" || i.principal != by || i.scopes != cloudPlatform {
		refuse(w, 403, "PERMISSION_DENIED", "Permission 'iam.serviceAccounts.getAccessToken' denied on resource (or it may not exist). "+r.Header.Get("Authorization"))
		return
	}
	if method == "generateIdToken" && !ask.Email {
		refuse(w, 400, "INVALID_ARGUMENT", "without an e-mail IAP lets nobody in")
		return
	}
	if method == "generateIdToken" {
		answer(map[string]any{"token": g.idToken(who, ask.Audience)})
		return
	}
	life, err := time.ParseDuration(ask.Lifetime)
	if err != nil {
		refuse(w, 400, "INVALID_ARGUMENT", "lifetime")
		return
	}
	answer(map[string]any{"accessToken": g.issue(who, strings.Join(ask.Scope, ","), life), "expireTime": time.Now().Add(life).UTC().Format(time.RFC3339)})
}

func (g *fakeGoogle) count(call string) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.calls[call]
}

// keyFile writes a credential file and returns its path.
func (g *fakeGoogle) file(content map[string]any) string {
	path := filepath.Join(g.t.TempDir(), "credential.json")
	b, err := json.Marshal(content)
	if err == nil {
		err = os.WriteFile(path, b, 0o600)
	}
	if err != nil {
		g.t.Fatal(err)
	}
	return path
}

func (g *fakeGoogle) serviceAccountKey() map[string]any {
	der, err := x509.MarshalPKCS8PrivateKey(g.key)
	if err != nil {
		g.t.Fatal(err)
	}
	return map[string]any{
		"type": "service_account", "client_email": agentEmail, "private_key_id": "k1", "token_uri": "https://oauth2.googleapis.com/token",
		"private_key": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})),
	}
}

func (g *fakeGoogle) federation() map[string]any {
	subject := filepath.Join(g.t.TempDir(), "token")
	if err := os.WriteFile(subject, []byte("subject-from-elsewhere"), 0o600); err != nil {
		g.t.Fatal(err)
	}
	return map[string]any{
		"type": "external_account", "audience": "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/q",
		"subject_token_type": "urn:ietf:params:oauth:token-type:jwt", "token_url": "https://sts.googleapis.com/v1/token",
		"credential_source": map[string]any{"file": subject},
	}
}

// cloudRun lets in who has an ID token for audience, as Google's library says.
func (g *fakeGoogle) cloudRun(audience, header string) *httptest.Server {
	v, err := idtoken.NewValidator(&idtoken.ValidatorOptions{Client: &http.Client{Transport: g.transport}})
	if err != nil {
		g.t.Fatal(err)
	}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p, err := v.Validate(r.Context(), strings.TrimPrefix(r.Header.Get(header), "Bearer "), audience)
		if err != nil {
			http.Error(w, err.Error(), http.StatusUnauthorized)
			return
		}
		fmt.Fprint(w, p.Claims["email"])
	}))
	g.t.Cleanup(s.Close)
	return s
}

// send authorizes a request and sends it.
func send(t *testing.T, src Source, s Session, client *http.Client, url string) (string, error) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := src.Authorize(r, s); err != nil {
		return "", err
	}
	res, err := client.Do(r)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		err = errors.New(res.Status)
	}
	return strings.TrimSpace(string(b)), err
}

func TestGoogleAccessTokens(t *testing.T) {
	g := newGoogle(t)
	key, federation := g.file(g.serviceAccountKey()), g.file(g.federation())
	direct := Account{Scopes: []string{bigquery}}
	as := Account{Impersonate: mcpEmail, Scopes: []string{bigquery}, Lifetime: 15 * time.Minute}
	for _, tt := range []struct {
		name    string
		file    string
		adc     string
		account Account
		want    string
	}{
		{name: "metadata server", file: "metadata", account: direct, want: agentEmail},
		{name: "application default is the metadata server", account: as, want: mcpEmail},
		{name: "application default is a file", adc: key, account: as, want: mcpEmail},
		{name: "key file", file: key, account: direct, want: agentEmail},
		{name: "key file, impersonated", file: key, account: as, want: mcpEmail},
		{name: "federation, impersonated", file: federation, account: as, want: mcpEmail},
		{name: "by a delegate", file: key, account: Account{Impersonate: "far@prod.iam.gserviceaccount.com", Delegates: []string{midEmail}, Scopes: []string{bigquery}}, want: "far@prod.iam.gserviceaccount.com"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv("GOOGLE_APPLICATION_CREDENTIALS", tt.adc)
			g.mayActAs["far@prod.iam.gserviceaccount.com"] = midEmail
			var uses []Use
			src, err := NewGoogle(GoogleOptions{
				File: tt.file, Account: tt.account, QuotaProject: "billed", Transport: g.transport,
				Used: func(u Use) { uses = append(uses, u) },
			})
			if err != nil {
				t.Fatal(err)
			}
			for range 3 {
				got, err := send(t, src, Session{ID: "s1", Server: "bq"}, &http.Client{Transport: g.transport}, "https://bigquery.googleapis.com/mcp")
				want := fmt.Sprintf(`{"principal":%q,"quota":"billed","reason":"mcp-session/s1","scopes":%q}`, tt.want, bigquery)
				if err != nil || got != want {
					t.Errorf("got %s, %v; want %s", got, err, want)
				}
			}
			if len(uses) != 1 {
				t.Fatalf("told of %d uses, want 1", len(uses))
			}
			life := time.Until(uses[0].Until)
			if most := min(tt.account.Lifetime+time.Hour*24*time.Duration(1-min(1, tt.account.Lifetime)), time.Hour); life > most || life < most-time.Minute {
				t.Errorf("the token lives %s, want %s", life, most)
			}
			uses[0].Until = time.Time{}
			want := Use{Session: "s1", Server: "bq", Kind: "gcp", Principal: tt.want, Scopes: []string{bigquery}}
			if !reflect.DeepEqual(uses[0], want) {
				t.Errorf("use %+v, want %+v", uses[0], want)
			}
		})
	}
}

func TestGoogleIDTokens(t *testing.T) {
	g := newGoogle(t)
	for _, tt := range []struct {
		name, file, impersonate, header string
		want, wantErr                   string
	}{
		{name: "metadata server", file: "metadata", want: agentEmail},
		{name: "key file", file: g.file(g.serviceAccountKey()), want: agentEmail},
		{name: "impersonated", file: "metadata", impersonate: mcpEmail, want: mcpEmail},
		{name: "in another header", file: "metadata", impersonate: mcpEmail, header: "X-Serverless-Authorization", want: mcpEmail},
		{name: "federation, impersonated", file: g.file(g.federation()), impersonate: mcpEmail, want: mcpEmail},
		{name: "federation alone", file: g.file(g.federation()), wantErr: "say which account to impersonate"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			src, err := NewGoogle(GoogleOptions{
				File: tt.file, Account: Account{Impersonate: tt.impersonate, Audience: runURL}, Header: tt.header, Transport: g.transport,
			})
			if err != nil {
				t.Fatal(err)
			}
			header := "Authorization"
			if tt.header != "" {
				header = tt.header
			}
			got, err := send(t, src, Session{ID: "s1"}, http.DefaultClient, g.cloudRun(runURL, header).URL)
			if tt.wantErr != "" {
				if err == nil || !strings.Contains(err.Error(), tt.wantErr) {
					t.Errorf("error %v, want %q", err, tt.wantErr)
				}
				return
			}
			if got != tt.want || err != nil {
				t.Errorf("got %q, %v; want %q", got, err, tt.want)
			}
			if got, err := send(t, src, Session{ID: "s1"}, http.DefaultClient, g.cloudRun("https://other.a.run.app", header).URL); err == nil {
				t.Errorf("another service takes the token: %q", got)
			}
		})
	}
}

// TestRules checks that a rule of the policy narrows what its sessions get.
func TestRules(t *testing.T) {
	g := newGoogle(t)
	rules := map[string]Account{"readers": {Impersonate: readEmail, Scopes: []string{readonly}}, "less": {Scopes: []string{readonly}}}
	def := Account{Impersonate: mcpEmail, Scopes: []string{bigquery}}
	for _, tt := range []struct {
		name, rule     string
		account        Account
		want, wantErr  string
		wantPrincipals string
	}{
		{name: "another rule", rule: "analysts", account: def, want: mcpEmail + " " + bigquery},
		{name: "account and scopes", rule: "readers", account: def, want: readEmail + " " + readonly},
		{name: "scopes", rule: "less", account: def, want: mcpEmail + " " + readonly},
		{name: "only listed rules", rule: "analysts", account: Account{Impersonate: mcpEmail}, wantErr: `none for rule "analysts"`},
		{name: "a listed rule", rule: "less", account: Account{Impersonate: mcpEmail}, want: mcpEmail + " " + readonly},
	} {
		t.Run(tt.name, func(t *testing.T) {
			src, err := NewGoogle(GoogleOptions{File: "metadata", Account: tt.account, Rules: rules, Transport: g.transport})
			if err != nil {
				t.Fatal(err)
			}
			text, err := send(t, src, Session{ID: "s1", Rule: tt.rule}, &http.Client{Transport: g.transport}, "https://bigquery.googleapis.com/mcp")
			if tt.wantErr != "" {
				if err == nil || !strings.Contains(err.Error(), tt.wantErr) {
					t.Errorf("got %s, %v; want %q", text, err, tt.wantErr)
				}
				return
			}
			var got struct{ Principal, Scopes string }
			json.Unmarshal([]byte(text), &got)
			if got.Principal+" "+got.Scopes != tt.want || err != nil {
				t.Errorf("got %s, %v; want %s", text, err, tt.want)
			}
		})
	}
}

func TestGoogleOptions(t *testing.T) {
	g := newGoogle(t)
	with := func(m map[string]any, key string, value any) string {
		m[key] = value
		return g.file(m)
	}
	ok := Account{Scopes: []string{bigquery}}
	for _, tt := range []struct {
		name string
		o    GoogleOptions
		want string // of the error
	}{
		{"nothing", GoogleOptions{}, "neither scopes"},
		{"header", GoogleOptions{Account: ok, Header: "Cookie"}, `header "Cookie"`},
		{"e-mail", GoogleOptions{Account: Account{Impersonate: "x", Scopes: ok.Scopes}}, `"x" is not the e-mail`},
		{"scopes in one", GoogleOptions{Account: Account{Scopes: []string{"a b"}}}, "one an entry"},
		{"lifetime of nobody", GoogleOptions{Account: Account{Scopes: ok.Scopes, Lifetime: time.Hour}}, "impersonated accounts"},
		{"lifetime of an ID token", GoogleOptions{Account: Account{Impersonate: mcpEmail, Audience: runURL, Lifetime: time.Hour}}, "good for an hour"},
		{"lifetime", GoogleOptions{Account: Account{Impersonate: mcpEmail, Scopes: ok.Scopes, Lifetime: 13 * time.Hour}}, "1m to 12h"},
		{"delegates", GoogleOptions{Account: Account{Delegates: []string{midEmail}, Scopes: ok.Scopes}}, "delegates"},
		{"rule", GoogleOptions{Account: ok, Rules: map[string]Account{"r": {Impersonate: "x"}}}, `rule "r"`},
		{"no file", GoogleOptions{Account: ok, File: "/nonexistent/key.json"}, "no such file"},
		{"not JSON", GoogleOptions{Account: ok, File: "google_test.go"}, "not JSON"},
		{"a program", GoogleOptions{Account: ok, File: with(g.federation(), "credential_source", map[string]any{"executable": map[string]any{"command": "/bin/x"}})}, "runs no programs"},
		{"a program within", GoogleOptions{Account: ok, File: g.file(map[string]any{"type": "impersonated_service_account",
			"source_credentials": map[string]any{"type": "external_account", "credential_source": map[string]any{"executable": map[string]any{}}}})}, "runs no programs"},
		{"another's STS", GoogleOptions{Account: ok, File: with(g.federation(), "token_url", "https://sts.googleapis.com.evil.example/v1/token")}, "not an address of Google's"},
		{"another's IAM", GoogleOptions{Account: ok, File: with(g.federation(), "service_account_impersonation_url", "http://iamcredentials.googleapis.com/x")}, "not an address of Google's"},
		{"type", GoogleOptions{Account: ok, File: with(g.federation(), "type", "gdch_service_account")}, `type "gdch_service_account"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := NewGoogle(tt.o); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
		})
	}
	if n := len(g.calls); n != 0 {
		t.Errorf("New made %d calls", n)
	}
}

// TestOneRefresh checks that many sessions that need a token make one request
// for it.
func TestOneRefresh(t *testing.T) {
	g := newGoogle(t)
	var uses sync.Map
	src, err := NewGoogle(GoogleOptions{
		File: "metadata", Account: Account{Impersonate: mcpEmail, Scopes: []string{bigquery}}, Transport: g.transport,
		Used: func(u Use) { uses.Store(u.Session, u) },
	})
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for i := range 64 {
		all.Go(func() {
			r := httptest.NewRequest(http.MethodPost, "https://bigquery.googleapis.com/mcp", nil)
			if err := src.Authorize(r, Session{ID: fmt.Sprint(i)}); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	for _, call := range []string{"iamcredentials.googleapis.com generateAccessToken", " token"} {
		if n := g.count(call); n != 1 {
			t.Errorf("%q: %d requests, want 1", call, n)
		}
	}
	n := 0
	uses.Range(func(any, any) bool { n++; return true })
	if n != 64 {
		t.Errorf("told of %d sessions, want 64", n)
	}
}

// TestSecretsStaySecret checks that whatever an issuer answers, no error and no
// log repeats what was sent or came.
func TestSecretsStaySecret(t *testing.T) {
	t.Setenv("GOOGLE_SDK_GO_LOGGING_LEVEL", "debug")
	const secret, leaked = "hunter2-in-short", "leaked"
	signer, err := rsaKey()
	if err != nil {
		t.Fatal(err)
	}
	echo := func(status int, shape string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			sent, _ := url.QueryUnescape(string(body))
			_, password, _ := r.BasicAuth()
			text := fmt.Sprintf("because %s %s %s access_token=ya29.%s", sent, password, r.Header.Get("Authorization"), leaked)
			w.Header().Set("Content-Type", "application/json")
			w.Header().Set("Location", "https://elsewhere.example/?"+url.QueryEscape(text))
			switch shape {
			case "oauth":
				w.WriteHeader(status)
				json.NewEncoder(w).Encode(map[string]any{"error": "invalid_client", "error_description": text, "access_token": leaked})
			case "google":
				refuse(w, status, "PERMISSION_DENIED", text)
			default:
				w.WriteHeader(status)
				io.WriteString(w, text)
			}
		}
	}
	for _, status := range []int{200, 302, 307, 400, 403} {
		for _, shape := range []string{"oauth", "google", "text"} {
			t.Run(fmt.Sprint(status, " ", shape), func(t *testing.T) {
				g := newGoogle(t)
				for _, call := range []string{"iamcredentials.googleapis.com generateAccessToken", "iamcredentials.googleapis.com generateIdToken", "oauth2.googleapis.com token", "secretmanager.googleapis.com access", "sts.googleapis.com token", "as.example token"} {
					g.fail[call] = echo(status, shape)
				}
				log := &bytes.Buffer{}
				logger := slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))
				google := func(file string, a Account) Source {
					src, err := NewGoogle(GoogleOptions{File: file, Account: a, Transport: g.transport, Log: logger})
					if err != nil {
						t.Fatal(err)
					}
					return src
				}
				key := g.file(g.serviceAccountKey())
				own := Account{Scopes: []string{bigquery}}
				sources := map[string]Source{
					"impersonated": google("metadata", Account{Impersonate: mcpEmail, Scopes: []string{bigquery}}),
					"ID token":     google("metadata", Account{Impersonate: mcpEmail, Audience: runURL}),
					"key":          google(key, own),
					"key, ID":      google(key, Account{Audience: runURL}),
					"federation":   google(g.file(g.federation()), own),
				}
				var err error
				if sources["secret"], err = NewHeader(HeaderOptions{Name: "X-Api-Key", Secret: "projects/p/secrets/s/versions/1", Google: google("metadata", own).(*Google), Log: logger}); err != nil {
					t.Fatal(err)
				}
				for _, post := range []bool{false, true} {
					for _, x := range []*Exchange{nil, {Key: signer, Issuer: "agent"}} {
						name := fmt.Sprint("oauth ", post, x != nil)
						if sources[name], err = NewOAuth(OAuthOptions{TokenURL: "https://as.example/token", ClientID: "c", ClientSecret: secret, Post: post, Exchange: x, Transport: g.transport, Log: logger}); err != nil {
							t.Fatal(err)
						}
					}
				}
				for name, src := range sources {
					r := httptest.NewRequest(http.MethodPost, "https://x.example/", nil)
					err := src.Authorize(r, Session{ID: "s1", Subject: "alice"})
					if status == 200 && name == "key" && shape == "oauth" {
						continue // it has an access token and is one to Google's library
					}
					if err == nil {
						t.Errorf("%s: no error", name)
						continue
					}
					for _, s := range append(g.values, secret, leaked, "subject-from-elsewhere", "eyJ", "c3ViamVjdC") {
						if strings.Contains(err.Error()+log.String(), s) {
							t.Errorf("%s: %q is in the error or the log: %v\n%s", name, s, err, log)
						}
					}
					if status == 403 && shape == "google" && !strings.HasPrefix(name, "oauth") && !strings.Contains(err.Error(), "PERMISSION_DENIED") {
						t.Errorf("%s: the reason is not in the error: %v", name, err)
					}
				}
				if n := g.count("elsewhere.example "); n != 0 {
					t.Error("a redirect was followed")
				}
			})
		}
	}
}

func TestRedact(t *testing.T) {
	for in, want := range map[string]string{
		"Permission 'iam.serviceAccounts.getAccessToken' denied on resource":                                            "",
		"constraints/iam.disableServiceAccountKeyCreation":                                                              "",
		"//iam.googleapis.com/projects/123456789012/locations/global/workloadIdentityPools/a-pool/providers/a-provider": "",
		mcpEmail: "",
		"got eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln now": "got [redacted] now",
		"ya29.c.b0Aaekm1_-x":                       "[redacted]",
		"key=AbCdEfGhIjKlMnOpQrStUvWxYz0123456789": "[redacted]",
		"d41d8cd98f00b204e9800998ecf8427e":         "[redacted]",
	} {
		if want == "" {
			want = in
		}
		if got := redact(in); got != want {
			t.Errorf("redact(%q) = %q, want %q", in, got, want)
		}
	}
	if got := redact(strings.Repeat("é ", 1000)); len(got) > 1010 {
		t.Errorf("a long text stays long: %d bytes", len(got))
	}
}
