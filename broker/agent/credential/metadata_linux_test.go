package credential

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"cloud.google.com/go/auth/credentials"
	"cloud.google.com/go/auth/credentials/idtoken"
	"cloud.google.com/go/compute/metadata"
)

// TestMain makes a child of the test's own binary: what a server in Go finds.
func TestMain(m *testing.M) {
	switch os.Getenv("TEST_CHILD") {
	case "":
		os.Exit(m.Run())
	case "go":
		if err := goChild(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	case "left the group": // and is still the child's
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "TEST_CHILD=go")
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		if cmd.Run() != nil {
			os.Exit(1)
		}
	}
}

// What a child has found.
type found struct{ Project, Email, Token, Identity, Refused string }

func goChild() error {
	ctx := context.Background()
	creds, err := credentials.DetectDefault(&credentials.DetectOptions{Scopes: strings.Split(os.Getenv("TEST_SCOPES"), ",")})
	if err != nil {
		return err
	}
	var f found
	if f.Project, err = creds.ProjectID(ctx); err != nil {
		return err
	}
	if f.Email, err = metadata.EmailWithContext(ctx, ""); err != nil {
		return err
	}
	t, err := creds.Token(ctx)
	if err != nil {
		return err
	}
	f.Token = t.Value
	identity := func(audience string) (string, error) {
		creds, err := idtoken.NewCredentials(&idtoken.Options{Audience: audience})
		if err != nil {
			return "", err
		}
		t, err := creds.Token(ctx)
		if err != nil {
			return "", err
		}
		return t.Value, nil
	}
	if f.Identity, err = identity(os.Getenv("TEST_AUDIENCE")); err != nil {
		return err
	}
	if _, err := identity("https://other.example"); err != nil {
		f.Refused = err.Error()
	}
	return json.NewEncoder(os.Stdout).Encode(f)
}

const otherScope = "https://www.googleapis.com/auth/pubsub"

// startChildMetadata is one for sessions of rule "child".
func startChildMetadata(t *testing.T, g *fakeGoogle, secret string, used func(Use)) (*Metadata, *bytes.Buffer) {
	t.Helper()
	src, err := NewGoogle(GoogleOptions{
		File: "metadata", Transport: g.transport, Used: used,
		Rules: map[string]Account{"child": {Impersonate: readEmail, Scopes: []string{bigquery, otherScope}, Lifetime: 15 * time.Minute, Audience: runURL}},
	})
	if err != nil {
		t.Fatal(err)
	}
	log := &bytes.Buffer{} // read when the server is closed
	m, err := startMetadata(src, Session{ID: "s1", Server: "bq", Rule: "child"}, slog.New(slog.NewTextHandler(log, nil)), secret)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m, log
}

// run runs a child to its end.
func run(t *testing.T, m *Metadata, group int, env []string, command ...string) (string, string, error) {
	t.Helper()
	env, err := m.Environ(append(append(os.Environ(), "GOOGLE_APPLICATION_CREDENTIALS=/nonexistent/key.json", "HTTP_PROXY=http://127.0.0.1:1"), env...))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Env = append(env, "TEST_SCOPES="+bigquery, "TEST_AUDIENCE="+runURL)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if group == 0 {
		group = cmd.Process.Pid
	}
	m.Admit(group)
	err = cmd.Wait()
	return stdout.String(), stderr.String(), err
}

// TestMetadataChildren checks that Google's libraries find the session's
// credential in a child, and nothing else.
func TestMetadataChildren(t *testing.T) {
	node := []string{"node", "testdata/child.cjs"}
	python := []string{"python3", "testdata/child.py"}
	for _, tt := range []struct {
		name    string
		command []string
		env     string
		secret  string
		has     []string // a command that succeeds where the child can run
		hint    string
	}{
		{name: "go", command: []string{os.Args[0]}, env: "TEST_CHILD=go"},
		{name: "go, out of the group", command: []string{os.Args[0]}, env: "TEST_CHILD=left the group"},
		{name: "go, by a secret", command: []string{os.Args[0]}, env: "TEST_CHILD=go", secret: "s3cret"},
		{name: "node", command: node, has: []string{"node", "-e", "require('google-auth-library')"},
			hint: "npm install google-auth-library somewhere, and set NODE_PATH to its node_modules"},
		{name: "python", command: python, has: []string{"python3", "-c", "import google.auth, requests"},
			hint: "pip install google-auth requests into a venv, and put its bin first in PATH"},
		{name: "python, by a secret", command: python, secret: "s3cret", has: []string{"python3", "-c", "import google.auth, requests"},
			hint: "pip install google-auth requests into a venv, and put its bin first in PATH"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.has != nil && exec.Command(tt.has[0], tt.has[1:]...).Run() != nil {
				t.Skipf("Google's library for %s is not here: %s", tt.command[0], tt.hint)
			}
			g := newGoogle(t)
			var uses []Use
			m, log := startChildMetadata(t, g, tt.secret, func(u Use) { uses = append(uses, u) })
			stdout, stderr, err := run(t, m, 0, []string{tt.env}, tt.command...)
			if err != nil {
				t.Fatalf("%v: %s\n%s", err, stderr, log)
			}
			var f found
			if err := json.Unmarshal([]byte(stdout), &f); err != nil {
				t.Fatalf("%v: %s", err, stdout)
			}
			if f.Project != "prod" || f.Email != readEmail || f.Refused == "" {
				t.Errorf("found %+v", f)
			}
			if i := g.issued[f.Token]; i.principal != readEmail || i.scopes != bigquery || time.Until(i.until) > 15*time.Minute {
				t.Errorf("the token is %+v", i)
			}
			r, _ := http.NewRequest(http.MethodPost, g.cloudRun(runURL, "Authorization").URL, nil)
			r.Header.Set("Authorization", "Bearer "+f.Identity)
			if res, err := http.DefaultClient.Do(r); err != nil || res.StatusCode != http.StatusOK {
				t.Errorf("the ID token: %v, %v", res.Status, err)
			}
			m.Close()
			if len(uses) != 2 || uses[0].Session != "s1" || uses[0].Principal != readEmail || !slices.Equal(uses[0].Scopes, []string{bigquery}) || uses[1].Audience != runURL || uses[1].Scopes != nil {
				t.Errorf("uses %+v", uses)
			}
			for _, value := range g.values {
				if strings.Contains(log.String(), value) {
					t.Errorf("a token is in the log: %s", log)
				}
			}
		})
	}
}

// TestMetadataStranger checks that a process with the child's environment gets
// nothing when it is not the child.
func TestMetadataStranger(t *testing.T) {
	g := newGoogle(t)
	m, log := startChildMetadata(t, g, "", nil)
	child := exec.Command("sleep", "60")
	child.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { child.Process.Kill(); child.Wait() }()
	stdout, _, err := run(t, m, child.Process.Pid, []string{"TEST_CHILD=go"}, os.Args[0])
	if err == nil {
		t.Errorf("a stranger found %s", stdout)
	}
	m.Close()
	if !strings.Contains(log.String(), "is not the child's") || len(g.values) != 0 {
		t.Errorf("the log does not say so, or there are tokens: %s", log)
	}
}

// ask makes a request as this process.
func ask(t *testing.T, m *Metadata, method, path string, headers ...string) (int, string) {
	t.Helper()
	r, err := http.NewRequest(method, "http://"+m.address+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Metadata-Flavor", "Google")
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	res, err := c.Do(r)
	if err != nil {
		return 0, ""
	}
	defer res.Body.Close()
	b, _ := io.ReadAll(res.Body)
	if res.Header.Get("Metadata-Flavor") != "Google" {
		t.Errorf("%s: no Metadata-Flavor", path)
	}
	return res.StatusCode, string(b)
}

// Java reaches IPv4 by an IPv6 socket, which stands in another table.
func TestMetadataByIPv6Socket(t *testing.T) {
	g := newGoogle(t)
	m, _ := startChildMetadata(t, g, "", nil)
	m.Admit(syscall.Getpgrp())
	fd, err := syscall.Socket(syscall.AF_INET6, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Skipf("there is no IPv6: %v", err)
	}
	f := os.NewFile(uintptr(fd), "socket")
	defer f.Close()
	to := netip.MustParseAddrPort(m.address)
	if err := syscall.Connect(fd, &syscall.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()}); err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(f, "GET / HTTP/1.1\r\nHost: x\r\nMetadata-Flavor: Google\r\nConnection: close\r\n\r\n")
	if got, err := io.ReadAll(f); !strings.HasPrefix(string(got), "HTTP/1.1 200") {
		t.Errorf("got %s, %v", got, err)
	}
}

func TestMetadataAnswers(t *testing.T) {
	g := newGoogle(t)
	m, _ := startChildMetadata(t, g, "", nil)
	early := make(chan int)
	go func() {
		code, _ := ask(t, m, "GET", "/")
		early <- code
	}()
	m.Admit(syscall.Getpgrp())
	m.Admit(1) // the first counts
	if code := <-early; code != 200 {
		t.Errorf("who asks early gets %d", code)
	}
	const v1 = "/computeMetadata/v1/"
	const account = v1 + "instance/service-accounts/"
	for _, tt := range []struct {
		name, path string
		headers    []string
		method     string
		code       int
		want       string
	}{
		{name: "ping", path: "/", code: 200, want: "computeMetadata/\n"},
		{name: "ping without flavor", path: "/", headers: []string{"Metadata-Flavor", ""}, code: 200, want: "computeMetadata/\n"},
		{name: "accounts", path: account, code: 200, want: "default/\n" + readEmail + "/\n"},
		{name: "e-mail", path: account + "default/email", code: 200, want: readEmail},
		{name: "by e-mail", path: account + readEmail + "/email", code: 200, want: readEmail},
		{name: "another account", path: account + mcpEmail + "/token", code: 404},
		{name: "scopes", path: account + "default/scopes", code: 200, want: bigquery + "\n" + otherScope + "\n"},
		{name: "recursive", path: account + "default/?recursive=true", code: 200, want: `{"aliases":["default"],"email":"` + readEmail + `","scopes":["` + bigquery + `","` + otherScope + `"]}` + "\n"},
		{name: "project", path: v1 + "project/project-id", code: 200, want: "prod"},
		{name: "universe", path: v1 + "universe/universe-domain", code: 200, want: "googleapis.com"},
		{name: "without flavor", path: account + "default/token", headers: []string{"Metadata-Flavor", ""}, code: 403},
		{name: "passed on", path: account + "default/token", headers: []string{"X-Forwarded-For", "1.2.3.4"}, code: 403},
		{name: "post", path: account + "default/token", method: "POST", code: 405},
		{name: "no audience", path: account + "default/identity", code: 403},
		{name: "another audience", path: account + "default/identity?audience=x", code: 403},
		{name: "the rest", path: v1 + "instance/attributes/", code: 404},
		{name: "all", path: v1 + "?recursive=true", code: 404},
	} {
		method := tt.method
		if method == "" {
			method = "GET"
		}
		code, got := ask(t, m, method, tt.path, tt.headers...)
		if code != tt.code || tt.want != "" && got != tt.want {
			t.Errorf("%s: %d %q, want %d %q", tt.name, code, got, tt.code, tt.want)
		}
	}
	for asked, want := range map[string]string{
		"":                             bigquery + "," + otherScope,
		"?scopes=" + otherScope:        otherScope,
		"?scopes=" + cloudPlatform:     bigquery + "," + otherScope,
		"?scopes=a," + bigquery + ",b": bigquery,
	} {
		code, text := ask(t, m, "GET", account+"default/token"+asked)
		var got struct {
			Token   string `json:"access_token"`
			Seconds int    `json:"expires_in"`
		}
		json.Unmarshal([]byte(text), &got)
		if i := g.issued[got.Token]; code != 200 || i.scopes != want || got.Seconds < 800 || got.Seconds > 900 {
			t.Errorf("%s: %d %s: scopes %s, want %s", asked, code, text, i.scopes, want)
		}
	}
	m.Close()
	if code, _ := ask(t, m, "GET", "/"); code != 0 {
		t.Errorf("after Close it answers %d", code)
	}
}

func TestMetadataRefusals(t *testing.T) {
	g := newGoogle(t)
	src, err := NewGoogle(GoogleOptions{
		File: "metadata", Transport: g.transport,
		Rules: map[string]Account{"own": {Scopes: []string{bigquery}}, "none": {Impersonate: "stranger@prod.iam.gserviceaccount.com", Scopes: []string{bigquery}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	for rule, want := range map[string]string{"own": "never the agent's own", "other": `none for rule "other"`} {
		if _, err := StartMetadata(src, Session{Rule: rule}, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("rule %s: error %v, want %q", rule, err, want)
		}
	}
	log := &bytes.Buffer{}
	m, err := StartMetadata(src, Session{ID: "s1", Rule: "none"}, slog.New(slog.NewTextHandler(log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	m.Admit(syscall.Getpgrp())
	code, text := ask(t, m, "GET", "/computeMetadata/v1/instance/service-accounts/default/token")
	m.Close()
	if code != 403 || strings.Contains(text, "PERMISSION") {
		t.Errorf("got %d %s", code, text)
	}
	if !strings.Contains(log.String(), "PERMISSION_DENIED") || !strings.Contains(log.String(), "session=s1") {
		t.Errorf("the reason is not in the log: %s", log)
	}
	code, _ = ask(t, m, "GET", "/")
	if code != 0 {
		t.Errorf("after Close it answers %d", code)
	}
}

// Who asks while the child is not known waits, and is refused in the end.
func TestMetadataBeforeTheChild(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &Metadata{admitted: make(chan struct{}), log: slog.New(slog.DiscardHandler)}
		w := httptest.NewRecorder()
		start := time.Now()
		m.handle(w, httptest.NewRequest(http.MethodGet, "/", nil))
		if w.Code != http.StatusForbidden || time.Since(start) != admitTime {
			t.Errorf("got %d after %s", w.Code, time.Since(start))
		}
	})
}

func TestEnviron(t *testing.T) {
	g := newGoogle(t)
	home := t.TempDir()
	for _, secret := range []string{"", "s3cret"} {
		m, _ := startChildMetadata(t, g, secret, nil)
		got, err := m.Environ([]string{"PATH=/bin", "HOME=" + home, "GOOGLE_APPLICATION_CREDENTIALS=/key", "CLOUDSDK_CONFIG=/x", "GCE_METADATA_HOST=169.254.169.254", "NO_GCE_CHECK=true", "no_proxy=corp"})
		if err != nil {
			t.Fatal(err)
		}
		host := m.address
		if secret != "" {
			host += "/" + secret
		}
		want := []string{
			"PATH=/bin", "HOME=" + home, "GCE_METADATA_HOST=" + host, "GCE_METADATA_IP=" + host, "GCE_METADATA_ROOT=" + host,
			"METADATA_SERVER_DETECTION=assume-present", "NO_GCE_CHECK=false", "GOOGLE_CLOUD_PROJECT=prod", "NO_PROXY=corp,127.0.0.1", "no_proxy=corp,127.0.0.1",
		}
		if !slices.Equal(got, want) {
			t.Errorf("got %q\nwant %q", got, want)
		}
	}
	m, _ := startChildMetadata(t, g, "", nil)
	if got, err := m.Environ([]string{"HOME=" + home, "GOOGLE_CLOUD_PROJECT=mine"}); err != nil || !slices.Contains(got, "GOOGLE_CLOUD_PROJECT=mine") || slices.Contains(got, "GOOGLE_CLOUD_PROJECT=prod") {
		t.Errorf("a project that the server's env names: %q, %v", got, err)
	}
	file := filepath.Join(home, ".config", "gcloud", "application_default_credentials.json")
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Environ([]string{"HOME=" + home}); err == nil || !strings.Contains(err.Error(), "set HOME") {
		t.Errorf("a key in the child's home: %v", err)
	}
}
