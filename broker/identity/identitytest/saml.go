package identitytest

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"html"
	"io"
	"log"
	"math/big"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/crewjam/saml/samlidp"
	dsig "github.com/russellhaering/goxmldsig"
)

// A SAMLProvider is crewjam/saml's samlidp, in process.
type SAMLProvider struct {
	URL  string
	Key  *rsa.PrivateKey
	Cert *x509.Certificate

	t    testing.TB
	jars map[string]http.CookieJar // by user
}

// Password is that of every user.
const Password = "verysecure"

// NewSAMLProvider starts a provider, which ends with the test.
func NewSAMLProvider(t testing.TB) *SAMLProvider {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "idp"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	p := &SAMLProvider{Key: key, t: t, jars: map[string]http.CookieJar{}}
	if p.Cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	var idp http.Handler
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { idp.ServeHTTP(w, r) }))
	t.Cleanup(server.Close)
	p.URL = server.URL
	u, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	s, err := samlidp.New(samlidp.Options{
		URL: *u, Key: key, Certificate: p.Cert, Store: &samlidp.MemoryStore{}, Logger: log.New(io.Discard, "", 0),
	})
	if err != nil {
		t.Fatal(err)
	}
	s.IDP.SignatureMethod = dsig.RSASHA256SignatureMethod // not SHA-1, its default
	s.IDP.LoginURL = s.IDP.SSOURL                         // which goes on after the form
	idp = s
	return p
}

func (p *SAMLProvider) put(path, body string) {
	p.t.Helper()
	r, err := http.NewRequest("PUT", p.URL+path, strings.NewReader(body))
	if err != nil {
		p.t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		p.t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode >= 300 {
		p.t.Fatalf("PUT %s: %s", path, resp.Status)
	}
}

// AddUser makes a user.
func (p *SAMLProvider) AddUser(name, email string, groups ...string) {
	b, _ := json.Marshal(map[string]any{"name": name, "password": Password, "email": email, "groups": groups})
	p.put("/users/"+name, string(b))
}

// AddService makes the provider know a service by its metadata.
func (p *SAMLProvider) AddService(metadata []byte) { p.put("/services/broker", string(metadata)) }

// Metadata returns the provider's own.
func (p *SAMLProvider) Metadata() []byte {
	resp, err := http.Get(p.URL + "/metadata")
	if err != nil {
		p.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		p.t.Fatal(err)
	}
	return b
}

var field = regexp.MustCompile(`name="([^"]+)" value="([^"]*)"`)

// SignIn goes to the provider as a browser does, signs in as name, and returns
// what the browser then posts to the service.
func (p *SAMLProvider) SignIn(to, name string) url.Values {
	p.t.Helper()
	if p.jars[name] == nil {
		p.jars[name], _ = cookiejar.New(nil)
	}
	browser := &http.Client{Jar: p.jars[name]}
	form := func(resp *http.Response, err error) url.Values {
		if err != nil {
			p.t.Fatal(err)
		}
		defer resp.Body.Close()
		page, _ := io.ReadAll(resp.Body)
		values := url.Values{}
		for _, m := range field.FindAllStringSubmatch(string(page), -1) {
			values.Set(m[1], html.UnescapeString(m[2]))
		}
		if len(values) == 0 {
			p.t.Fatalf("%s shows no form: %s", resp.Request.URL, page)
		}
		return values
	}
	answer := form(browser.Get(to))
	if answer.Get("SAMLResponse") == "" { // a form to sign in
		answer.Set("user", name)
		answer.Set("password", Password)
		answer = form(browser.PostForm(p.URL+"/sso", answer))
	}
	if answer.Get("SAMLResponse") == "" {
		p.t.Fatalf("%s is not signed in: %v", name, answer)
	}
	return answer
}
