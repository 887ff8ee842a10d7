package credential

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestHeader(t *testing.T) {
	g := newGoogle(t)
	google, err := NewGoogle(GoogleOptions{File: "metadata", Account: Account{Scopes: []string{cloudPlatform}}, Transport: g.transport})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(file, []byte("from file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		o    HeaderOptions
		want string
	}{
		{"value", HeaderOptions{Value: "plain"}, "plain"},
		{"prefix", HeaderOptions{Value: "plain", Prefix: "Bearer "}, "Bearer plain"},
		{"file", HeaderOptions{File: file}, "from file"},
		{"secret", HeaderOptions{Secret: "projects/p/secrets/s/versions/latest", Google: google}, "key-of-projects/p/secrets/s/versions/latest"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var uses []Use
			tt.o.Name, tt.o.Used = "X-Api-Key", func(u Use) { uses = append(uses, u) }
			src, err := NewHeader(tt.o)
			if err != nil {
				t.Fatal(err)
			}
			for range 3 {
				r := httptest.NewRequest(http.MethodPost, "https://mcp.example/mcp", nil)
				if err := src.Authorize(r, Session{ID: "s1"}); err != nil || r.Header.Get("X-Api-Key") != tt.want {
					t.Errorf("got %q, %v; want %q", r.Header.Get("X-Api-Key"), err, tt.want)
				}
			}
			if len(uses) != 1 || uses[0].Kind != "header" {
				t.Errorf("uses %+v", uses)
			}
		})
	}
	if n := g.count("secretmanager.googleapis.com access"); n != 1 {
		t.Errorf("the secret was read %d times", n)
	}
}

func TestHeaderFileIsReplaced(t *testing.T) {
	file := filepath.Join(t.TempDir(), "key")
	uses := 0
	src, err := NewHeader(HeaderOptions{Name: "X-Api-Key", File: file, Used: func(Use) { uses++ }})
	if err != nil {
		t.Fatal(err) // it may be mounted later
	}
	for _, tt := range []struct{ text, want string }{{"one", "one"}, {"two\r\n", "two"}, {"", ""}, {"a\nb", ""}} {
		if err := os.WriteFile(file, []byte(tt.text), 0o600); err != nil {
			t.Fatal(err)
		}
		r := httptest.NewRequest(http.MethodPost, "https://mcp.example/mcp", nil)
		err := src.Authorize(r, Session{ID: "s1"})
		if got := r.Header.Get("X-Api-Key"); got != tt.want || (err == nil) != (tt.want != "") {
			t.Errorf("%q: got %q, %v", tt.text, got, err)
		}
	}
	if uses != 2 {
		t.Errorf("told of %d uses, want 2", uses)
	}
}

func TestHeaderOptions(t *testing.T) {
	for _, tt := range []struct {
		name string
		o    HeaderOptions
		want string
	}{
		{"no name", HeaderOptions{Value: "v"}, "no name of a header"},
		{"not a name", HeaderOptions{Name: "X Y", Value: "v"}, "no name of a header"},
		{"no value", HeaderOptions{Name: "X"}, "missing or empty"},
		{"two values", HeaderOptions{Name: "X", Value: "v", File: "f"}, "more than one"},
		{"a newline", HeaderOptions{Name: "X", Value: "v\r\nHost: evil"}, "no header may have"},
		{"a newline before", HeaderOptions{Name: "X", Value: "v", Prefix: "\n"}, "prefix"},
		{"no secret", HeaderOptions{Name: "X", Secret: "s"}, "is no secret"},
		{"no Google", HeaderOptions{Name: "X", Secret: "projects/p/secrets/s/versions/1"}, "Google credential"},
	} {
		if _, err := NewHeader(tt.o); err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "evil") {
			t.Errorf("%s: error %v, want %q", tt.name, err, tt.want)
		}
	}
	for _, name := range []string{"Host", "connection", "Transfer-Encoding", "Content-Type", "content-length", "TE", "Upgrade", "Proxy-Authorization", "Mcp-Session-Id", "Accept"} {
		if _, err := NewHeader(HeaderOptions{Name: name, Value: "v"}); err == nil || !strings.Contains(err.Error(), "not for credentials") {
			t.Errorf("%s: error %v", name, err)
		}
	}
}
