package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"html"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/zitadel/oidc/v3/example/server/exampleop"
	"github.com/zitadel/oidc/v3/example/server/storage"
	"github.com/zitadel/oidc/v3/pkg/oidc"
	"github.com/zitadel/oidc/v3/pkg/op"

	"example.com/broker/broker/identity"
	"example.com/broker/broker/identity/identitytest"
)

// people are the users of the test's provider.
type people map[string][]string // groups by name

func (p people) GetUserByID(id string) *storage.User {
	if _, ok := p[id]; !ok {
		return nil
	}
	return &storage.User{ID: id, Username: id, Password: identitytest.Password, Email: id + "@example.com", EmailVerified: true}
}
func (p people) GetUserByUsername(name string) *storage.User { return p.GetUserByID(name) }
func (p people) ExampleClientID() string                     { return storage.ServiceUserID }

// A provider is zitadel/oidc's OpenID provider, with groups.
type provider struct {
	*storage.Storage
	URL    string
	people people

	mu       sync.Mutex
	callback string // of the broker
}

func newProvider(t *testing.T, p people) *provider {
	o := &provider{Storage: storage.NewStorage(p), people: p}
	var handler http.Handler
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { handler.ServeHTTP(w, r) }))
	t.Cleanup(server.Close)
	o.URL = server.URL
	handler = exampleop.SetupServer(server.URL, o, nil, false)
	return o
}

func (o *provider) serves(addr string) {
	o.mu.Lock()
	o.callback = "https://" + addr + "/login/oidc/callback"
	o.mu.Unlock()
}

func (o *provider) GetClientByClientID(context.Context, string) (op.Client, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return storage.RedirectGlobsClient(storage.WebClient(identitytest.Client, identitytest.Secret, o.callback)), nil
}

func (o *provider) AuthorizeClientIDSecret(_ context.Context, id, secret string) error {
	if id != identitytest.Client || secret != identitytest.Secret {
		return fmt.Errorf("not the client's secret")
	}
	return nil
}

func (o *provider) SetUserinfoFromToken(ctx context.Context, info *oidc.UserInfo, token, subject, origin string) error {
	err := o.Storage.SetUserinfoFromToken(ctx, info, token, subject, origin)
	info.AppendClaims("groups", o.people[info.Subject])
	return err
}

// A person has a configuration folder and a browser.
type person struct {
	b       *testBroker
	name    string
	home    string
	browser *http.Client
}

func (b *testBroker) person(t *testing.T, name string) *person {
	t.Helper()
	ca, err := identity.LoadCA(filepath.Join(b.dir, "data"))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca.Roots())
	writeFile(t, filepath.Join(b.dir, "ca.pem"), string(ca.Roots()))
	jar, _ := cookiejar.New(nil)
	return &person{b, name, t.TempDir(), &http.Client{Jar: jar, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}}}
}

func (p *person) command(args ...string) *exec.Cmd {
	cmd := exec.Command("broker", args...)
	cmd.Dir = p.b.dir
	cmd.Env = append(os.Environ(), "XDG_CONFIG_HOME="+p.home, "PATH="+os.Getenv("PATH"))
	return cmd
}

// run runs a command and returns what it prints.
func (p *person) run(t *testing.T, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	cmd := p.command(args...)
	var out, failed bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &failed
	err = cmd.Run()
	return out.String(), failed.String(), err
}

// must is run for what has to work.
func (p *person) must(t *testing.T, args ...string) string {
	t.Helper()
	out, failed, err := p.run(t, args...)
	if err != nil {
		t.Fatalf("%s: broker %s: %v\n%s%s", p.name, strings.Join(args, " "), err, out, failed)
	}
	return out
}

var formField = regexp.MustCompile(`name="(\w+)" value="([^"]*)"`)

// open opens a page, signs in at the provider if that asks, and returns the page
// where this ends.
func (p *person) open(t *testing.T, address string) (page string, at *url.URL) {
	t.Helper()
	read := func(resp *http.Response, err error) (string, *url.URL) {
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		return string(b), resp.Request.URL
	}
	page, at = read(p.browser.Get(address))
	if strings.Contains(page, `action="/login/username"`) {
		m := formField.FindStringSubmatch(page)
		page, at = read(p.browser.PostForm(at.Scheme+"://"+at.Host+"/login/username", url.Values{
			"id": {html.UnescapeString(m[2])}, "username": {p.name}, "password": {identitytest.Password},
		}))
	}
	return page, at
}

// press submits the form of a page of the broker.
func (p *person) press(t *testing.T, address string, form url.Values) string {
	t.Helper()
	resp, err := p.browser.PostForm(address, form)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	return string(b)
}

var address = regexp.MustCompile(`https://\S+`)

// login signs in: the browser does what broker login asks for.
func (p *person) login(t *testing.T, flags ...string) string {
	t.Helper()
	return p.loginWith(t, nil, flags...)
}

// loginWith is login with another browser, which is given the address that broker
// login prints.
func (p *person) loginWith(t *testing.T, browse func(address string), flags ...string) string {
	t.Helper()
	cmd := p.command(append([]string{"login", p.b.addr, "--ca", "ca.pem", "--no-browser"}, flags...)...)
	var out bytes.Buffer
	asked := &logBuffer{}
	cmd.Stdout, cmd.Stderr = &out, asked
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(20 * time.Second); !address.MatchString(asked.String()) || !strings.HasSuffix(asked.String(), "\n"); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			cmd.Process.Kill()
			cmd.Wait()
			t.Fatalf("broker login says %q", asked)
		}
	}
	if browse != nil {
		browse(address.FindString(asked.String()))
		if err := cmd.Wait(); err != nil {
			t.Fatalf("%s: broker login: %v\n%s", p.name, err, asked)
		}
		return out.String()
	}
	page, at := p.open(t, address.FindString(asked.String()))
	if at.Path == "/device" {
		code := regexp.MustCompile(`the code (\S+)`).FindStringSubmatch(asked.String())[1]
		if !strings.Contains(page, code) {
			t.Fatalf("the page does not show %s: %s", code, page)
		}
		page = p.press(t, "https://"+p.b.addr+"/device", url.Values{"user_code": {code}, "decision": {"confirm"}})
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%s: broker login: %v\n%s\nthe browser shows %s", p.name, err, asked, page)
	}
	return out.String()
}

// say opens a session, says lines, and returns what comes back until stdin ends.
func (p *person) say(t *testing.T, lines ...string) string {
	t.Helper()
	cmd := p.command("connect", "prod")
	cmd.Stdin = strings.NewReader(strings.Join(lines, "\n") + "\n")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("broker connect: %v", err)
	}
	return string(out)
}

const (
	asInitialize = `{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-06-18","capabilities":{},"clientInfo":{"name":"t","version":"1"}}}`
	asCall       = `{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"echo","arguments":{"text":"hello"}}}`
)

const signInConfig = `servers: {prod: {stdio: [cat]}}
admins: {users: ["root@example.com"]}
identity:
  oidc:
    - issuer: %s
      client_id: broker
      client_secret: broker-secret
policy:
  - {name: prod on request, groups: [analysts], servers: [prod], access: approval, approvers: {groups: [leads]}, max_duration: 1h, certificate: 4h}
`

// TestLogin is the way of a new user: sign in, be refused, ask, be approved by
// somebody who signs in by the device flow, connect, and lose it again.
func TestLogin(t *testing.T) {
	o := newProvider(t, people{"ada": {"analysts"}, "grace": {"leads"}, "root": {}})
	b := startBroker(t, t.TempDir(), fmt.Sprintf(signInConfig, o.URL))
	o.serves(b.addr)
	ada, grace := b.person(t, "ada"), b.person(t, "grace")

	if _, failed, err := ada.run(t, "whoami"); err == nil || !strings.Contains(failed, "sign in with broker login") {
		t.Errorf("before the sign-in: %s", failed)
	}
	if got := ada.login(t); !strings.Contains(got, "signed in to "+b.addr+" as ada@example.com (groups: analysts) until ") {
		t.Errorf("login says %q", got)
	}
	identityFile := logins{filepath.Join(ada.home, "broker")}.file(b.addr)
	info, err := os.Stat(identityFile)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the identity file: %v, %v", info, err)
	}
	text, _ := os.ReadFile(identityFile)
	cert, _, err := identity.ReadBundle(text)
	if err != nil {
		t.Fatal(err)
	}
	if life := time.Until(cert.Leaf.NotAfter).Round(time.Minute); life != 4*time.Hour {
		t.Errorf("the certificate lasts %s", life)
	}
	if got := ada.must(t, "whoami"); !strings.Contains(got, `ada@example.com  ["analysts"]  false`) {
		t.Errorf("whoami says %q", got)
	}
	if got := ada.say(t, asInitialize, asCall); !strings.Contains(got, `"id":2,"error":{"code":428`) {
		t.Errorf("before the request: %s", got)
	}
	ask := func(duration string) (id string) {
		var r struct{ ID string }
		if err := json.Unmarshal([]byte(ada.must(t, "request", "prod", "--reason", "OPS-1", "--for", duration, "--json")), &r); err != nil {
			t.Fatal(err)
		}
		return r.ID
	}
	request := ask("1h")
	grace.login(t, "--device")
	if got := grace.must(t, "requests"); !strings.Contains(got, request) {
		t.Errorf("requests says %q", got)
	}
	// The page at the request's address, in the browser that has signed in.
	page, _ := grace.open(t, "https://"+b.addr+"/requests/"+request)
	if !strings.Contains(page, "ada@example.com") || !strings.Contains(page, "Approve") {
		t.Errorf("the request's page: %s", page)
	}
	if page := grace.press(t, "https://"+b.addr+"/requests/"+request, url.Values{"decision": {"approve"}}); !strings.Contains(page, "approved at") {
		t.Errorf("after the decision: %s", page)
	}

	// A running session ends when the grant is revoked, and when it expires.
	connect := func() (*exec.Cmd, io.WriteCloser, *logBuffer) {
		cmd := ada.command("connect", "prod")
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out := &logBuffer{}
		cmd.Stdout = out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		io.WriteString(in, asCall+"\n")
		return cmd, in, out
	}
	until := func(out *logBuffer, what string) {
		t.Helper()
		for deadline := time.Now().Add(20 * time.Second); !strings.Contains(out.String(), what); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%q does not come: %s", what, out)
			}
		}
	}
	cmd, in, out := connect()
	until(out, asCall) // of cat
	var grants []struct{ ID string }
	if err := json.Unmarshal([]byte(ada.must(t, "grants", "--json")), &grants); err != nil || len(grants) != 1 {
		t.Fatalf("%v, %v", grants, err)
	}
	grace.must(t, "revoke", grants[0].ID)
	until(out, `"id":2,"error":{"code":410`)
	in.Close()
	cmd.Wait()

	request = ask("2s")
	grace.must(t, "approve", request)
	cmd, in, out = connect()
	until(out, asCall)
	until(out, `"id":2,"error":{"code":410`)
	in.Close()
	cmd.Wait()

	ada.must(t, "logout")
	if _, err := os.Stat(identityFile); !os.IsNotExist(err) {
		t.Errorf("after logout: %v", err)
	}
}

// TestOutageAtServe checks that a broker starts and serves certificates while its
// identity provider is away, and says so to who signs in.
func TestOutageAtServe(t *testing.T) {
	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close()
	b := startBroker(t, t.TempDir(), fmt.Sprintf(signInConfig, gone.URL))
	p := b.person(t, "ada")
	page, _ := p.open(t, "https://"+b.addr+"/login")
	if !strings.Contains(page, "the identity provider cannot be reached; try again later") {
		t.Errorf("the page says %s", page)
	}
	writeFile(t, filepath.Join(b.dir, "ada.pem"), string(b.issue(t, "ada@example.com", "analysts")))
	if got := p.must(t, "whoami", "--broker", b.addr, "--identity", filepath.Join(b.dir, "ada.pem")); !strings.Contains(got, "ada@example.com") {
		t.Errorf("whoami says %q", got)
	}
}

// TestTokenLogin checks that a program signs in with the token that its platform
// gave it.
func TestTokenLogin(t *testing.T) {
	i := identitytest.NewIssuer(t)
	b := startBroker(t, t.TempDir(), fmt.Sprintf(`servers: {prod: {stdio: [cat]}}
identity:
  workloads:
    - issuer: %s
      audience: https://broker.example.com
      condition: claims.repository == "acme/deploy"
      groups: [deployers]
policy:
  - {name: deploys, groups: [deployers], servers: [prod], access: allow}
`, i.URL))
	p := b.person(t, "ci")
	token := filepath.Join(b.dir, "token")
	for repository, ok := range map[string]bool{"acme/deploy": true, "evil/deploy": false} {
		writeFile(t, token, i.Sign(i.Claims("https://broker.example.com", map[string]any{"sub": "repo:" + repository, "repository": repository}))+"\n")
		got, failed, err := p.run(t, "login", b.addr, "--ca", "ca.pem", "--token-file", token)
		if (err == nil) != ok || ok && !strings.Contains(got, "as repo:acme/deploy (groups: deployers)") || !ok && !strings.Contains(failed, "condition") {
			t.Errorf("%s: %v %s%s", repository, err, got, failed)
		}
		if strings.Contains(b.log.String()+failed, "eyJ") {
			t.Error("a token is in a log or an error")
		}
	}
	if got := p.must(t, "servers"); !strings.Contains(got, "prod") {
		t.Errorf("servers says %q", got)
	}
}
