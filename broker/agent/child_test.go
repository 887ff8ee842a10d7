package agent

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"cloud.google.com/go/auth/credentials"

	"example.com/broker/broker/agent/credential"
)

// google plays Google's token and impersonation services.
type google func(r *http.Request) any

func (g google) RoundTrip(r *http.Request) (*http.Response, error) {
	text, err := json.Marshal(g(r))
	if err != nil {
		return nil, err
	}
	return &http.Response{
		StatusCode: 200, Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(strings.NewReader(string(text))), Request: r,
	}, nil
}

// TestChildWithoutKeys checks that Google's library in a server on stdio finds
// the token of the account that its session impersonates, for as long as the
// session lasts, and that nobody else does.
func TestChildWithoutKeys(t *testing.T) {
	if os.Getenv("AGENT_TEST_CHILD") != "" {
		playChild()
		return
	}
	if runtime.GOOS != "linux" {
		t.Skip("whose a connection is, only Linux says")
	}
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "agent.json")
	text, _ := json.Marshal(map[string]string{
		"type": "service_account", "client_email": "agent@p.iam.gserviceaccount.com", "private_key_id": "1", "project_id": "p",
		"private_key": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})), "token_uri": "https://oauth2.googleapis.com/token",
	})
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	g, err := credential.NewGoogle(credential.GoogleOptions{
		File: file, Account: credential.Account{Impersonate: "mcp@p.iam.gserviceaccount.com", Scopes: []string{"https://www.googleapis.com/auth/bigquery"}},
		Transport: google(func(r *http.Request) any {
			if strings.HasSuffix(r.URL.Path, "/mcp@p.iam.gserviceaccount.com:generateAccessToken") {
				return map[string]any{"accessToken": "of-mcp", "expireTime": time.Now().Add(time.Hour).UTC().Format(time.RFC3339)}
			}
			return map[string]any{"access_token": "of-the-agent", "expires_in": 3600, "token_type": "Bearer"}
		}),
	})
	if err != nil {
		t.Fatal(err)
	}
	u := &Stdio{Command: []string{os.Args[0], "-test.run=^TestChildWithoutKeys$"}, Google: g, Env: append(os.Environ(), "AGENT_TEST_CHILD=1", "HOME="+t.TempDir())}
	c, log := openUpstream(t, u)
	buf := make([]byte, 4096)
	n, err := c.Read(buf)
	if err != nil {
		t.Fatalf("%v\n%s", err, log)
	}
	var said struct{ Token, Host, Error string }
	if err := json.Unmarshal(buf[:n], &said); err != nil || said.Token != "of-mcp" {
		t.Fatalf("the child says %s: %v\n%s", buf[:n], err, log)
	}
	ask := func() error {
		r, _ := http.NewRequest("GET", "http://"+said.Host+"/computeMetadata/v1/instance/service-accounts/default/token", nil)
		r.Header.Set("Metadata-Flavor", "Google")
		resp, err := http.DefaultTransport.RoundTrip(r)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if b, _ := io.ReadAll(resp.Body); strings.Contains(string(b), "of-mcp") {
			return nil
		}
		return fmt.Errorf("HTTP %d", resp.StatusCode)
	}
	if ask() == nil {
		t.Error("another process has got the token")
	}
	c.Close()
	if conn, err := net.Dial("tcp", strings.SplitN(said.Host, "/", 2)[0]); err == nil {
		conn.Close()
		t.Error("it is there after the session")
	}
	if strings.Contains(log.String(), "of-mcp") || strings.Contains(log.String(), "of-the-agent") {
		t.Errorf("a token is in the log: %s", log)
	}
}

// playChild is the server: it says what Google's library finds.
func playChild() {
	said := map[string]string{"host": os.Getenv("GCE_METADATA_HOST")}
	found, err := credentials.DetectDefault(&credentials.DetectOptions{Scopes: []string{"https://www.googleapis.com/auth/cloud-platform"}})
	if err == nil {
		token, terr := found.Token(context.Background())
		if err = terr; err == nil {
			said["token"] = token.Value
		}
	}
	if err != nil {
		said["error"] = err.Error()
	}
	json.NewEncoder(os.Stdout).Encode(said)
	io.Copy(io.Discard, os.Stdin)
}
