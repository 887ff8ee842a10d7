package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"
	"github.com/quic-go/quic-go/http3"

	"example.com/broker/broker/identity"
	"example.com/broker/recorder"
)

// A tap is an HTTP client that remembers the frames that it carried: bodies of
// requests, and of answers either the body or the data of each event.
type tap struct {
	http.RoundTripper
	mu       sync.Mutex
	in, out  []string
	versions []int  // of HTTP
	shown    string // the last Authorization
}

func (t *tap) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Body != nil && r.Method == http.MethodPost {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return nil, err
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		t.mu.Lock()
		t.out = append(t.out, strings.TrimSpace(string(body)))
		t.mu.Unlock()
	}
	resp, err := t.RoundTripper.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	t.mu.Lock()
	t.shown = r.Header.Get("Authorization")
	t.versions = append(t.versions, resp.ProtoMajor)
	t.mu.Unlock()
	resp.Body = &tappedBody{ReadCloser: resp.Body, tap: t, events: strings.HasPrefix(resp.Header.Get("Content-Type"), "text/event-stream")}
	return resp, nil
}

type tappedBody struct {
	io.ReadCloser
	tap    *tap
	events bool
	text   []byte
	once   sync.Once
}

func (b *tappedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.text = append(b.text, p[:n]...)
	if err != nil {
		b.once.Do(b.keep)
	}
	return n, err
}

func (b *tappedBody) Close() error {
	b.once.Do(b.keep)
	return b.ReadCloser.Close()
}

func (b *tappedBody) keep() {
	b.tap.mu.Lock()
	defer b.tap.mu.Unlock()
	if !b.events {
		if len(b.text) > 0 {
			b.tap.in = append(b.tap.in, string(b.text))
		}
		return
	}
	for line := range strings.SplitSeq(string(b.text), "\n") {
		if data, ok := strings.CutPrefix(line, "data: "); ok && data != "" {
			b.tap.in = append(b.tap.in, data)
		}
	}
}

// client returns an HTTP client of the broker's, as ada.
func (b *testBroker) client(t *testing.T, protocol string) *tap {
	t.Helper()
	cert, roots, err := identity.ReadBundle(b.issue(t, "ada", "analysts"))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	for _, root := range roots {
		pool.AddCert(root)
	}
	config := &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: pool}
	switch protocol {
	case "h3":
		transport := &http3.Transport{TLSClientConfig: config}
		t.Cleanup(func() { transport.Close() })
		return &tap{RoundTripper: transport}
	case "h2":
		transport := &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: true}
		t.Cleanup(transport.CloseIdleConnections)
		return &tap{RoundTripper: transport}
	}
	transport := &http.Transport{TLSClientConfig: config, TLSNextProto: map[string]func(string, *tls.Conn) http.RoundTripper{}}
	t.Cleanup(transport.CloseIdleConnections)
	return &tap{RoundTripper: transport}
}

// startHTTP runs the official server behind HTTP and returns its URL.
func startHTTP(t *testing.T, args ...string) string {
	t.Helper()
	addr := fmt.Sprintf("127.0.0.1:%d", freePort(t))
	cmd := exec.Command("sdk-server", args...)
	cmd.Env = append(os.Environ(), "SDK_LISTEN="+addr)
	log := &logBuffer{}
	cmd.Stderr = log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			c.Close()
			return "http://" + addr
		}
		if time.Now().After(deadline) {
			t.Fatalf("the server does not listen: %s", log)
		}
	}
}

// TestURL compares what the official client sees of the official server by URL
// with what it sees by the server's own: both eras, over every version of HTTP,
// with servers of every kind behind the agent. What is on record is what the
// requests and answers carried.
func TestURL(t *testing.T) {
	sessions, stateless := startHTTP(t, "2025-11-25"), startHTTP(t)
	b := startBroker(t, t.TempDir(), `servers:
  modern: {agent: far}
  legacy: {agent: far}
  modern-http: {agent: far}
  legacy-http: {agent: far}
`+everything)
	b.startAgent(t, fmt.Sprintf(`  modern: {stdio: [sdk-server]}
  legacy: {stdio: [sdk-server, "2025-11-25"]}
  modern-http: {http: %q}
  legacy-http: {http: %q}
`, stateless, sessions))

	for _, c := range []struct {
		server, era string
		direct      mcp.Transport
		protocols   []string
	}{
		{"modern", "modern", &mcp.StreamableClientTransport{Endpoint: stateless}, []string{"http/1.1", "h2", "h3"}},
		{"legacy", "legacy", &mcp.StreamableClientTransport{Endpoint: sessions}, []string{"http/1.1", "h2", "h3"}},
		{"modern-http", "modern", &mcp.StreamableClientTransport{Endpoint: stateless}, []string{"h2", "h3"}},
		{"legacy-http", "legacy", &mcp.StreamableClientTransport{Endpoint: sessions}, []string{"http/1.1", "h2"}},
	} {
		direct := useEverything(t, c.era, c.direct)
		if len(direct) < 20 {
			t.Fatalf("%s: a short session: %q", c.server, direct)
		}
		for _, protocol := range c.protocols {
			t.Run(c.server+" over "+protocol, func(t *testing.T) {
				client := b.client(t, protocol)
				before := len(b.replays(t, "c2s", true))
				url := fmt.Sprintf("https://%s/%s/mcp", b.addr, c.server)
				brokered := useEverything(t, c.era, &mcp.StreamableClientTransport{Endpoint: url, HTTPClient: &http.Client{Transport: client}})
				same(t, direct, brokered)
				want := map[string]int{"http/1.1": 1, "h2": 2, "h3": 3}[protocol]
				if v := slices.Compact(client.versions); len(v) != 1 || v[0] != want {
					t.Errorf("it went over HTTP %v", v)
				}
				client.mu.Lock()
				defer client.mu.Unlock()
				lines := func(direction string) []string {
					all := b.replays(t, direction, true) // a client that probes has two sessions
					text := bytes.Join(all[:len(all)-before], nil)
					got := strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
					slices.Sort(got)
					return got
				}
				slices.Sort(client.out)
				slices.Sort(client.in)
				if got := lines("c2s"); !slices.Equal(withoutCancel(got), withoutCancel(client.out)) {
					t.Errorf("%d frames of the client are on record, its requests had %d: %s", len(got), len(client.out), firstDifference(got, client.out))
				}
				if got := slices.DeleteFunc(lines("s2c"), func(l string) bool { return !slices.Contains(client.in, l) }); !slices.Equal(got, client.in) {
					t.Errorf("%d frames on record were received, the answers had %d: %s", len(got), len(client.in), firstDifference(got, client.in))
				}
			})
		}
	}
}

// TestURLBackends checks that a server on a socket serves clients by URL, and one
// by URL those on a byte stream.
func TestURLBackends(t *testing.T) {
	sessions := startHTTP(t, "2025-11-25")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() { // the server on a socket: one child a connection
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			cmd := exec.Command("sdk-server", "2025-11-25")
			cmd.Stdin, cmd.Stdout = c, c
			go func() {
				defer c.Close()
				cmd.Run()
			}()
		}
	}()
	b := startBroker(t, t.TempDir(), fmt.Sprintf("servers: {socket: {tcp: %q}, legacy-http: {http: %q}}\n", l.Addr(), sessions)+everything)
	direct := useEverything(t, "legacy", &mcp.StreamableClientTransport{Endpoint: sessions})
	conn := b.dial(t, "legacy-http", dials["tls"])
	for name, transport := range map[string]mcp.Transport{
		"a socket by URL":        &mcp.StreamableClientTransport{Endpoint: "https://" + b.addr + "/socket/mcp", HTTPClient: &http.Client{Transport: b.client(t, "h2")}},
		"a URL by a byte stream": &mcp.IOTransport{Reader: conn, Writer: conn},
	} {
		brokered := useEverything(t, "legacy", transport)
		t.Run(name, func(t *testing.T) { same(t, direct, brokered) })
	}
}

// TestURLResume checks that a client that comes back gets what it has missed
// from the recording.
func TestURLResume(t *testing.T) {
	b := startBroker(t, t.TempDir(), "servers: {legacy: {stdio: [sdk-server, \"2025-11-25\"]}}\n"+everything)
	client := b.client(t, "h2")
	say := func(method, body string, header ...string) (http.Header, string) {
		r, err := http.NewRequest(method, "https://"+b.addr+"/legacy/mcp", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Accept", "application/json, text/event-stream")
		r.Header.Set("Content-Type", "application/json")
		for i := 0; i < len(header); i += 2 {
			r.Header.Set(header[i], header[i+1])
		}
		resp, err := client.RoundTripper.RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		text, _ := io.ReadAll(resp.Body)
		return resp.Header, string(text)
	}
	h, _ := say("POST", strings.Replace(asInitialize, "2025-06-18", "2025-11-25", 1))
	session := []string{"Mcp-Session-Id", h.Get("Mcp-Session-Id"), "Mcp-Protocol-Version", "2025-11-25"}
	say("POST", `{"jsonrpc":"2.0","method":"notifications/initialized"}`, session...)
	_, all := say("POST", `{"jsonrpc":"2.0","id":5,"method":"tools/call","params":{"name":"progress","arguments":{"text":"4111 1111 1111 1111"},"_meta":{"progressToken":"t"}}}`, session...)
	events := strings.SplitAfter(all, "\n\n")
	if len(events) != 6 || !strings.Contains(events[0], "data: \n") || !strings.Contains(events[4], `"id":5`) { // to come back with, three steps, the result
		t.Fatalf("the stream: %q", events)
	}
	id := func(event string) string {
		_, id, _ := strings.Cut(event, "id: ")
		id, _, _ = strings.Cut(id, "\n")
		return id
	}
	for n := range 5 {
		if _, rest := say("GET", "", append(session, "Last-Event-ID", id(events[n]))...); rest != strings.Join(events[n+1:], "") {
			t.Errorf("from event %d on: %q, want %q", n, rest, events[n+1:])
		}
	}
}

// withoutCancel leaves out what the broker says in the client's place when it
// closes a response.
func withoutCancel(lines []string) []string {
	return slices.DeleteFunc(slices.Clone(lines), func(l string) bool { return strings.Contains(l, "notifications/cancelled") })
}

func firstDifference(a, b []string) string {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return fmt.Sprintf("\n%.300s\n%.300s", a[i], b[i])
		}
	}
	return ""
}

// post says one frame of the newer era to a server and returns the answer.
func (b *testBroker) post(t *testing.T, client http.RoundTripper, url, method, params string) (int, string) {
	t.Helper()
	body := fmt.Sprintf(`{"jsonrpc":"2.0","id":1,"method":%q,"params":{%s"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{}}}}`, method, params)
	r, err := http.NewRequest("POST", url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]string{"Accept": "application/json, text/event-stream", "Content-Type": "application/json", "Mcp-Protocol-Version": "2026-07-28", "Mcp-Method": method} {
		r.Header.Set(name, value)
	}
	if method == "tools/call" {
		_, name, _ := strings.Cut(params, `"name":"`)
		name, _, _ = strings.Cut(name, `"`)
		r.Header.Set("Mcp-Name", name)
	}
	resp, err := client.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(text)
}

// TestURLRefused checks what who may not, or not any more, is told by URL.
func TestURLRefused(t *testing.T) {
	b := startBroker(t, t.TempDir(), `servers: {sdk: {stdio: [sdk-server]}, short: {stdio: [sdk-server]}, sized: {stdio: [sdk-server]}}
policy:
  - {name: short, groups: [analysts], servers: [short], access: allow, duration: 1s}
  - name: all
    groups: [analysts]
    servers: [sdk, gone]
    access: allow
    calls: [{deny: 'tool == "forbidden"', reason: never that}]
limits: {frame: 100KiB}
`)
	ada := b.client(t, "h2")
	at := func(server string) string { return "https://" + b.addr + "/" + server + "/mcp" }
	nobody := ada.RoundTripper.(*http.Transport).Clone()
	nobody.TLSClientConfig.Certificates = nil
	for _, c := range []struct {
		name           string
		client         http.RoundTripper
		server, method string
		params         string
		status         int
		want           string
	}{
		{"nobody", nobody, "sdk", "tools/list", "", 401, `{"jsonrpc":"2.0","id":null,"error":{"code":401,"message":"not signed in: no client certificate"`},
		{"nobody, of a server that is not there", nobody, "nothing", "tools/list", "", 401, `"code":401`},
		{"of no rule", ada, "sized", "tools/list", "", 403, `"id":1,"error":{"code":403,"message":"no rule gives ada access to server \"sized\""`},
		{"of a server that is not there", ada, "nothing", "tools/list", "", 403, `"id":1,"error":{"code":403`},
		{"a server that the policy knows and nobody else", ada, "gone", "tools/list", "", 200, `"id":1,"error":{"code":502`},
		{"a call", ada, "sdk", "tools/call", `"name":"forbidden","arguments":{"text":""},`, 200, `"id":1,"error":{"code":403,"message":"never that"`},
		{"a method of the server's own", ada, "sdk", "no/such", "", 404, `"code":-32601`},
		{"an answer over the largest frame that is held, which is not", ada, "sdk", "tools/call", `"name":"big","arguments":{"bytes":200000},`, 200, strings.Repeat("abcdefghijklmnopqrstuvwxyz", 200000/26)},
		{"the end of its time, in a call", ada, "short", "tools/call", `"name":"wait","arguments":{"text":""},`, 200, `"id":1,"error":{"code":410`},
	} {
		status, text := b.post(t, c.client, at(c.server), c.method, c.params)
		if status != c.status || !strings.Contains(text, c.want) {
			t.Errorf("%s: %d %s", c.name, status, text)
		}
	}
	// Who is known and refused is on record.
	src, err := recorder.OpenSource(filepath.Join(b.dir, "data"))
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	refused := 0
	for s, err := range src.Sessions(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		if s.State == recorder.Refused && s.Subject == "ada" && s.Transport == "h2" {
			refused++
		}
	}
	if refused != 3 {
		t.Errorf("%d refused sessions are on record", refused)
	}
	// By host name, and by one that is not the broker's.
	named := ada.RoundTripper.(*http.Transport).Clone()
	named.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, b.addr)
	}
	if status, text := b.post(t, named, "https://sdk.localhost/mcp", "tools/list", ""); status != 200 || !strings.Contains(text, `"echo"`) {
		t.Errorf("by host name: %d %s", status, text)
	}
	named.TLSClientConfig.ServerName = "localhost"
	if status, text := b.post(t, named, "https://evil.example.com/sdk/mcp", "tools/list", ""); status != 421 {
		t.Errorf("by another's name: %d %s", status, text)
	}
}
