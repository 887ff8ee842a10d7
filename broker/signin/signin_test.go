package signin_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/oauth2"

	"example.com/broker/broker/grant"
	"example.com/broker/broker/identity"
	"example.com/broker/broker/identity/identitytest"
	"example.com/broker/broker/policy"
	"example.com/broker/broker/signin"
)

// A house is a sign-in behind TLS, with an issuer beside it.
type house struct {
	t      *testing.T
	issuer *identitytest.Issuer
	store  grant.Store
	desk   *grant.Desk
	ca     *identity.CA
	server *httptest.Server
	log    *bytes.Buffer
}

func newHouse(t *testing.T) *house {
	h := &house{t: t, issuer: identitytest.NewIssuer(t), log: &bytes.Buffer{}}
	var err error
	if h.store, err = grant.OpenBadger(t.TempDir(), 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.store.Close() })
	if h.desk, err = grant.Open(t.Context(), grant.Options{Store: h.store, Admins: policy.Approvers{Users: []string{"root"}}}); err != nil {
		t.Fatal(err)
	}
	if h.ca, err = identity.OpenCA(t.TempDir()); err != nil {
		t.Fatal(err)
	}
	m, err := identity.NewMapping(identity.MappingOptions{Subject: "email", Groups: "groups"})
	if err != nil {
		t.Fatal(err)
	}
	var service http.Handler
	h.server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { service.ServeHTTP(w, r) }))
	t.Cleanup(h.server.Close)
	s := signin.New(signin.Options{
		Providers: []signin.Provider{{Name: "oidc", Title: "Company", Provider: identity.NewOIDC(identity.OIDCOptions{
			Issuer: h.issuer.URL, ClientID: identitytest.Client, ClientSecret: identitytest.Secret, Mapping: m,
		})}},
		CA: h.ca, Desk: h.desk, URL: h.server.URL,
		Lifetime: func(identity.Identity) time.Duration { return 8 * time.Hour },
		Log:      slog.New(slog.NewTextHandler(h.log, nil)),
	})
	mux := http.NewServeMux()
	for _, path := range signin.Paths {
		mux.Handle(path, s)
	}
	mux.HandleFunc("GET /requests", func(w http.ResponseWriter, r *http.Request) {
		id, err := s.Who(r)
		fmt.Fprintf(w, "page of %s %v", id.Subject, err)
	})
	service = mux
	return h
}

// browser returns one with cookies of its own. It stops before a loopback port.
func (h *house) browser() *http.Client {
	jar, _ := cookiejar.New(nil)
	return &http.Client{Jar: jar, Transport: h.server.Client().Transport, CheckRedirect: func(r *http.Request, _ []*http.Request) error {
		if r.URL.Path == "/callback" {
			return http.ErrUseLastResponse
		}
		return nil
	}}
}

func (h *house) get(c *http.Client, address string) (*http.Response, string) {
	h.t.Helper()
	if strings.HasPrefix(address, "/") {
		address = h.server.URL + address
	}
	resp, err := c.Get(address)
	if err != nil {
		h.t.Fatal(err)
	}
	return resp, body(resp)
}

func body(resp *http.Response) string {
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	return string(b)
}

func (h *house) post(c *http.Client, path string, v, into any) (status int, text string) {
	h.t.Helper()
	b, _ := json.Marshal(v)
	resp, err := c.Post(h.server.URL+path, "application/json", bytes.NewReader(b))
	if err != nil {
		h.t.Fatal(err)
	}
	text = body(resp)
	if into != nil && resp.StatusCode == http.StatusOK {
		if err := json.Unmarshal([]byte(text), into); err != nil {
			h.t.Fatal(err)
		}
	}
	return resp.StatusCode, text
}

const redirect = "http://127.0.0.1:40000/callback"

// begin is the address that broker login opens.
func begin(verifier string) string {
	return "/login?" + url.Values{"redirect_uri": {redirect}, "state": {"st"}, "code_challenge": {oauth2.S256ChallengeFromVerifier(verifier)}}.Encode()
}

// code signs in and returns the code that goes to the loopback port.
func (h *house) code(verifier string) string {
	h.t.Helper()
	resp, text := h.get(h.browser(), begin(verifier))
	to, err := resp.Location()
	if err != nil || !strings.HasPrefix(to.String(), redirect+"?") || to.Query().Get("state") != "st" {
		h.t.Fatalf("%s to %v: %s", resp.Status, to, text)
	}
	return to.Query().Get("code")
}

func csr(t testing.TB, template x509.CertificateRequest, key any) string {
	t.Helper()
	if key == nil {
		k, err := identity.NewKey()
		if err != nil {
			t.Fatal(err)
		}
		key = k
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &template, key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
}

// events lists the types on record.
func (h *house) events() (types []string) {
	for e, err := range h.store.Events(h.t.Context(), 0) {
		if err != nil {
			h.t.Fatal(err)
		}
		types = append(types, e.Type)
	}
	return types
}

func TestCertificate(t *testing.T) {
	h := newHouse(t)
	verifier := oauth2.GenerateVerifier()
	key, _ := identity.NewKey()
	var got signin.Traded
	if status, text := h.post(h.browser(), "/api/v1/login", signin.Trade{Code: h.code(verifier), Verifier: verifier, CSR: csr(t, x509.CertificateRequest{}, key)}, &got); status != http.StatusOK {
		t.Fatalf("%d %s", status, text)
	}
	block, _ := pem.Decode([]byte(got.Certificate))
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	id, err := identity.NewVerifier(h.ca.Certificates()...).Verify([]*x509.Certificate{cert}, time.Now())
	if err != nil || id.Subject != "ada@example.com" || !slices.Equal(id.Groups, []string{"analysts"}) {
		t.Errorf("%+v, %v", id, err)
	}
	if pub, ok := cert.PublicKey.(*ecdsa.PublicKey); !ok || !pub.Equal(key.Public()) {
		t.Error("the certificate is for another key")
	}
	if life := time.Until(cert.NotAfter).Round(time.Minute); life != 8*time.Hour {
		t.Errorf("it lasts %s", life)
	}
	if got := h.events(); !slices.Equal(got, []string{grant.SignedIn, grant.Issued}) {
		t.Errorf("on record is %v", got)
	}
	for e := range h.store.Events(t.Context(), 1) {
		if e.Detail["serial"] != cert.SerialNumber.Text(16) || e.Subject != "ada@example.com" {
			t.Errorf("on record is %+v", e)
		}
	}
}

// TestCodes checks that a code is good once, for who has its verifier.
func TestCodes(t *testing.T) {
	h := newHouse(t)
	c := h.browser()
	verifier := oauth2.GenerateVerifier()
	trade := func(code, verifier string) int {
		status, _ := h.post(c, "/api/v1/login", signin.Trade{Code: code, Verifier: verifier, CSR: csr(t, x509.CertificateRequest{}, nil)}, nil)
		return status
	}
	code := h.code(verifier)
	if got := trade(code, verifier); got != http.StatusOK {
		t.Errorf("the first time: %d", got)
	}
	if got := trade(code, verifier); got != http.StatusForbidden {
		t.Errorf("again: %d", got)
	}
	stolen := h.code(verifier)
	if got := trade(stolen, oauth2.GenerateVerifier()); got != http.StatusForbidden {
		t.Errorf("with another verifier: %d", got)
	}
	if got := trade(stolen, verifier); got != http.StatusForbidden {
		t.Errorf("after a thief has tried it: %d", got)
	}
	for _, code := range []string{"", "x"} {
		if got := trade(code, verifier); got != http.StatusForbidden {
			t.Errorf("%q: %d", code, got)
		}
	}
	// Two at a time: one gets it.
	code = h.code(verifier)
	results := make(chan int, 8)
	for range cap(results) {
		go func() { results <- trade(code, verifier) }()
	}
	won := 0
	for range cap(results) {
		if <-results == http.StatusOK {
			won++
		}
	}
	if won != 1 {
		t.Errorf("%d of 8 got a certificate", won)
	}
}

// TestCSR checks that nobody gets more by asking for it.
func TestCSR(t *testing.T) {
	h := newHouse(t)
	c := h.browser()
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	broken := []byte(csr(t, x509.CertificateRequest{}, nil))
	broken[100] ^= 1
	u, _ := url.Parse("spiffe://broker/agent/gke-prod")
	for name, tt := range map[string]struct {
		csr string
		ok  bool
	}{
		"a key only":      {csr(t, x509.CertificateRequest{}, nil), true},
		"oneself":         {csr(t, x509.CertificateRequest{Subject: pkix.Name{CommonName: "ada@example.com", Organization: []string{"analysts"}}}, nil), true},
		"another group":   {csr(t, x509.CertificateRequest{Subject: pkix.Name{CommonName: "ada@example.com", Organization: []string{"analysts", "admins"}}}, nil), false},
		"another subject": {csr(t, x509.CertificateRequest{Subject: pkix.Name{CommonName: "root"}}, nil), false},
		"an agent":        {csr(t, x509.CertificateRequest{URIs: []*url.URL{u}}, nil), false},
		"a host name":     {csr(t, x509.CertificateRequest{DNSNames: []string{"broker.example.com"}}, nil), false},
		"a weak key":      {csr(t, x509.CertificateRequest{}, weak), false},
		"a bad signature": {string(broken), false},
		"nothing":         {"", false},
		"a certificate":   {string(h.ca.Roots()), false},
	} {
		verifier := oauth2.GenerateVerifier()
		var got signin.Traded
		status, text := h.post(c, "/api/v1/login", signin.Trade{Code: h.code(verifier), Verifier: verifier, CSR: tt.csr}, &got)
		if (status == http.StatusOK) != tt.ok {
			t.Errorf("%s: %d %s", name, status, text)
		}
		if tt.ok {
			block, _ := pem.Decode([]byte(got.Certificate))
			cert, _ := x509.ParseCertificate(block.Bytes)
			if cert.Subject.CommonName != "ada@example.com" || !slices.Equal(cert.Subject.Organization, []string{"analysts"}) || cert.IsCA || len(cert.URIs)+len(cert.DNSNames) > 0 {
				t.Errorf("%s: the certificate is %v", name, cert.Subject)
			}
		}
	}
}

// TestRedirects checks that a sign-in ends at the broker or at a loopback port,
// nowhere else.
func TestRedirects(t *testing.T) {
	h := newHouse(t)
	challenge := oauth2.S256ChallengeFromVerifier(oauth2.GenerateVerifier())
	for _, bad := range []string{
		"https://evil.example.com/callback", "http://evil.example.com:80/callback", "http://127.0.0.1.evil.com:80/callback",
		"http://localhost:40000/callback", "http://127.0.0.1:40000@evil.com/callback", "http://user@127.0.0.1:40000/callback",
		"http://127.0.0.1:40000/other", "http://127.0.0.1:40000/callback?x=1", "http://127.0.0.1:40000/callback#x", "http://127.0.0.1/callback",
		"http://10.0.0.1:40000/callback", "javascript:alert(1)", "//127.0.0.1:40000/callback", "http://127.0.0.1:0/callback",
	} {
		resp, text := h.get(h.browser(), "/login?"+url.Values{"redirect_uri": {bad}, "state": {"s"}, "code_challenge": {challenge}}.Encode())
		if resp.StatusCode != http.StatusBadRequest || !strings.Contains(text, "127.0.0.1") {
			t.Errorf("redirect_uri %s: %s", bad, resp.Status)
		}
	}
	for _, bad := range []string{"https://evil.example.com", "//evil.example.com", "/\\evil.example.com", "\\/evil", "/\t/evil.com", "javascript:alert(1)", "evil", "/" + strings.Repeat("x", 3000)} {
		resp, _ := h.get(h.browser(), "/login?"+url.Values{"next": {bad}}.Encode())
		if resp.StatusCode != http.StatusBadRequest {
			t.Errorf("next %.40q: %s at %s", bad, resp.Status, resp.Request.URL)
		}
	}
	for name, q := range map[string]url.Values{
		"no challenge": {"redirect_uri": {redirect}, "state": {"s"}},
		"short":        {"redirect_uri": {redirect}, "state": {"s"}, "code_challenge": {"x"}},
		"no state":     {"redirect_uri": {redirect}, "code_challenge": {challenge}},
	} {
		if resp, _ := h.get(h.browser(), "/login?"+q.Encode()); resp.StatusCode != http.StatusBadRequest {
			t.Errorf("%s: %s", name, resp.Status)
		}
	}
	resp, text := h.get(h.browser(), "/login?next="+url.QueryEscape("/requests?x=1"))
	if resp.Request.URL.RequestURI() != "/requests?x=1" || text != "page of ada@example.com <nil>" {
		t.Errorf("ends at %s: %s", resp.Request.URL, text)
	}
}

// TestForeignAnswer checks that an answer counts once, in the browser that asked.
func TestForeignAnswer(t *testing.T) {
	h := newHouse(t)
	// to goes on until the callback, and returns its address without going there.
	to := func(c *http.Client) string {
		stop := *c
		stop.CheckRedirect = func(r *http.Request, _ []*http.Request) error {
			if strings.HasSuffix(r.URL.Path, "/callback") {
				return http.ErrUseLastResponse
			}
			return nil
		}
		resp, _ := h.get(&stop, "/login")
		l, err := resp.Location()
		if err != nil {
			t.Fatal(err)
		}
		return l.String()
	}
	mallory, ada := h.browser(), h.browser()
	answer := to(mallory)
	if resp, text := h.get(ada, answer); resp.StatusCode != http.StatusBadRequest || !strings.Contains(text, "another browser") {
		t.Errorf("in another browser: %s", resp.Status)
	}
	if resp, _ := h.get(mallory, answer); resp.StatusCode != http.StatusBadRequest {
		t.Errorf("after that in its own: %s", resp.Status)
	}
	answer = to(mallory)
	if resp, _ := h.get(mallory, answer); resp.StatusCode != http.StatusOK {
		t.Errorf("in its own: %s", resp.Status)
	}
	if resp, _ := h.get(mallory, answer); resp.StatusCode != http.StatusBadRequest {
		t.Errorf("again: %s", resp.Status)
	}
	other := strings.Replace(to(ada), "state=", "state=x", 1)
	if resp, _ := h.get(ada, other); resp.StatusCode != http.StatusBadRequest {
		t.Errorf("with another state: %s", resp.Status)
	}
	// A visit is whoever's cookie it is, and nobody's without.
	if _, text := h.get(ada, "/requests"); !strings.Contains(text, "not signed in") {
		t.Errorf("without a visit: %s", text)
	}
	r, _ := http.NewRequest("GET", h.server.URL+"/requests", nil)
	r.AddCookie(&http.Cookie{Name: "__Host-broker", Value: "AAAAAAAAAAAAAAAAAAAAAAAAAA"})
	resp, err := ada.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	if text := body(resp); !strings.Contains(text, "not signed in") {
		t.Errorf("with a cookie made up: %s", text)
	}
}

// TestRefused checks what a person reads, what is on record, and that neither
// shows a token.
func TestRefused(t *testing.T) {
	h := newHouse(t)
	h.issuer.Forge(func(c map[string]any) string { c["nonce"] = "x"; return h.issuer.Sign(c) })
	resp, text := h.get(h.browser(), "/login")
	if resp.StatusCode != http.StatusForbidden || !strings.Contains(text, "answer is not valid") {
		t.Errorf("%s: %s", resp.Status, text)
	}
	h.issuer.Forge(nil)
	if err := h.desk.Disable(t.Context(), grant.User, "ada@example.com", identity.Identity{Subject: "root"}, "left"); err != nil {
		t.Fatal(err)
	}
	if resp, text := h.get(h.browser(), "/login"); resp.StatusCode != http.StatusForbidden || !strings.Contains(text, "has been disabled") {
		t.Errorf("disabled: %s: %s", resp.Status, text)
	}
	if got := h.events(); !slices.Equal(got, []string{grant.SignInRefused, grant.IdentityDisabled, grant.SignInRefused}) {
		t.Errorf("on record is %v", got)
	}
	if strings.Contains(h.log.String(), "eyJ") {
		t.Errorf("the log shows a token: %s", h.log)
	}
}

// TestDevice checks the flow for machines without a browser.
func TestDevice(t *testing.T) {
	h := newHouse(t)
	machine, ada := h.browser(), h.browser()
	start := func() (d signin.Device) {
		if status, text := h.post(machine, "/api/v1/device", struct{}{}, &d); status != http.StatusOK {
			t.Fatalf("%d %s", status, text)
		}
		return d
	}
	poll := func(d signin.Device, into *signin.Traded) (code string) {
		status, text := h.post(machine, "/api/v1/device/token", signin.DeviceTrade{DeviceCode: d.DeviceCode, CSR: csr(t, x509.CertificateRequest{}, nil)}, into)
		var f signin.Failure
		json.Unmarshal([]byte(text), &f)
		if status == http.StatusOK {
			return "ok"
		}
		return f.Code
	}
	press := func(c *http.Client, origin string, form url.Values) (int, string) {
		r, _ := http.NewRequest("POST", h.server.URL+"/device", strings.NewReader(form.Encode()))
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		if origin != "" {
			r.Header.Set("Origin", origin)
			r.Header.Set("Sec-Fetch-Site", "cross-site")
		}
		resp, err := c.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, body(resp)
	}
	d := start()
	if got := poll(d, nil); got != signin.Waiting {
		t.Errorf("at once: %s", got)
	}
	if got := poll(d, nil); got != signin.SlowDown {
		t.Errorf("too soon: %s", got)
	}
	confirm := url.Values{"user_code": {d.UserCode}, "decision": {"confirm"}}
	if status, _ := press(ada, "", confirm); status != http.StatusUnauthorized {
		t.Errorf("without a visit: %d", status)
	}
	// The page asks to sign in, and comes back.
	resp, text := h.get(ada, d.Complete)
	if resp.Request.URL.Path != "/device" || !strings.Contains(text, d.UserCode) || !strings.Contains(text, "ada@example.com") {
		t.Fatalf("%s: %s", resp.Request.URL, text)
	}
	if got := poll(d, nil); got == "ok" {
		t.Error("looking at the page signs in")
	}
	if status, _ := press(ada, "https://evil.example.com", confirm); status != http.StatusForbidden {
		t.Errorf("from another site: %d", status)
	}
	if status, text := press(ada, "", confirm); status != http.StatusOK || !strings.Contains(text, "Done") {
		t.Errorf("%d %s", status, text)
	}
	var got signin.Traded
	if code := poll(d, &got); code != "ok" || got.Subject != "ada@example.com" {
		t.Errorf("%s %+v", code, got)
	}
	if code := poll(d, nil); code != signin.Expired {
		t.Errorf("again: %s", code)
	}
	if status, _ := press(ada, "", confirm); status != http.StatusBadRequest {
		t.Errorf("confirmed again: %d", status)
	}
	// As people type it.
	d = start()
	if status, text := press(ada, "", url.Values{"user_code": {" " + strings.ToLower(strings.ReplaceAll(d.UserCode, "-", " "))}, "decision": {"deny"}}); status != http.StatusOK {
		t.Errorf("%d %s", status, text)
	}
	if code := poll(d, nil); code != signin.Denied {
		t.Errorf("denied: %s", code)
	}
	// Guessing ends.
	d = start()
	for range 12 {
		press(ada, "", url.Values{"user_code": {"BBBB-BBBB"}, "decision": {"confirm"}})
	}
	if status, text := press(ada, "", url.Values{"user_code": {d.UserCode}, "decision": {"confirm"}}); status == http.StatusOK || !strings.Contains(text, "too many wrong codes") {
		t.Errorf("after 12 guesses: %d %s", status, text)
	}
	if got := poll(signin.Device{DeviceCode: "x"}, nil); got != signin.Expired {
		t.Errorf("an unknown device: %s", got)
	}
}

func TestLogout(t *testing.T) {
	h := newHouse(t)
	ada := h.browser()
	h.get(ada, "/login")
	u, _ := url.Parse(h.server.URL)
	old := ada.Jar.Cookies(u)
	resp, err := ada.PostForm(h.server.URL+"/logout", nil)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%v, %v", resp, err)
	}
	resp.Body.Close()
	ada.Jar.SetCookies(u, old) // somebody has kept them
	if _, text := h.get(ada, "/requests"); !strings.Contains(text, "not signed in") {
		t.Errorf("after logout: %s", text)
	}
}

// TestNoScript checks the headers of a page that could be made to show anything.
func TestNoScript(t *testing.T) {
	h := newHouse(t)
	h.issuer.SignInAs(map[string]any{"sub": "1", "email": "<script>@example.com", "groups": []string{}})
	resp, _ := h.get(h.browser(), "/login?next=/device")
	for name, want := range map[string]string{"Content-Security-Policy": "default-src 'none'", "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"} {
		if got := resp.Header.Get(name); !strings.Contains(got, want) {
			t.Errorf("%s: %q", name, got)
		}
	}
}
