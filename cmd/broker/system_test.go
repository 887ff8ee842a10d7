package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"example.com/broker/broker/identity"
)

// oddFrames are valid frames that no encoder would write so.
var oddFrames = []string{
	"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"x/1\"}\r",
	" \t{ \"method\" : \"x\\/2\" ,\t\"params\":{\"n\":[1.0E+2,-0.0,1e-7,12345678901234567890],\"s\":\"\\u0041\\ud83d\\ude00\\ud800 \u2028 \\/\"} , \"id\":\"a\\u0062\", \"jsonrpc\":\"2.0\"}",
	"{\"id\":-7,\"jsonrpc\":\"\\u0032.0\",\"method\":\"x/3\",\"params\":{},\"extra\":{\"deep\":[[[[]]]]}}",
	"{\"jsonrpc\":\"2.0\",\"method\":\"notifications/x\",\"params\":{\"\":{\"\":\"\"}}}",
	"{\"jsonrpc\":\"2.0\",\"id\":2,\"method\":\"x/4\",\"params\":{\"big\":\"" + strings.Repeat("é\\n", 100_000) + "\"}}",
}

// answers are responses to the requests among oddFrames. A server that sends
// back what it gets asks what it is asked, and answers when it is answered.
const answers = `{"jsonrpc":"2.0","id":1,"result":{}}` + "\n" + `{"jsonrpc":"2.0", "id":"ab","result":null}` + "\n" +
	`{"jsonrpc":"2.0","id":-7,"error":{"code":1,"message":"\u0041"}}` + "\n" + `{"result":[],"jsonrpc":"2.0","id":2}` + "\n"

// TestBytes checks that odd frames arrive as they were sent, and are replayed
// so: c2s against a file that the server writes, s2c against what the client
// read. The server is tee: it sends every frame back.
func TestBytes(t *testing.T) {
	for transport, dial := range dials {
		t.Run(transport, func(t *testing.T) {
			dir := t.TempDir()
			b := startBroker(t, dir, "servers:\n  near: {stdio: [tee, "+dir+"/received]}\n  far: {agent: far}\n"+everything)
			b.startAgent(t, "  far: {stdio: [tee, "+dir+"/received]}\n")
			for _, server := range []string{"near", "far"} {
				c := b.dial(t, server, dial)
				refused := `{"jsonrpc":"2.0","id":9,"method":"x","method":"y"}` + "\n"
				sent := strings.Join(oddFrames, "\n") + "\n"
				io.WriteString(c, sent+refused)
				in := bufio.NewReader(c)
				for range len(oddFrames) + 1 {
					nextLine(t, in)
				}
				io.WriteString(c, answers)
				c.CloseWrite()
				if _, err := io.Copy(io.Discard, in); err != nil {
					t.Fatal(err)
				}
				got, _ := c.carried()
				c.Conn.Close()
				received, err := os.ReadFile(dir + "/received")
				if err != nil {
					t.Fatal(err)
				}
				if string(received) != sent+answers {
					t.Errorf("%s: the server received %d bytes, want %d", server, len(received), len(sent+answers))
				}
				answer := bytes.Index(got, []byte(`{"jsonrpc":"2.0","id":9,"error":{"code":-32600`))
				if answer < 0 {
					t.Fatalf("%s: the ambiguous frame has no answer in %.2000q", server, got)
				}
				b.waitFor(t, `msg="session ended"`, map[string]int{"near": 1, "far": 2}[server])
				for direction, want := range map[string][]byte{"s2c": got, "c2s": received} {
					if replay := b.replayed(t, direction, false); !bytes.Equal(replay, want) {
						t.Errorf("%s: replay of %s has %d bytes, want %d", server, direction, len(replay), len(want))
					}
				}
				if replay := b.replayed(t, "c2s", true); string(replay) != sent+refused+answers {
					t.Errorf("%s: replay of what was sent has %d bytes, want %d", server, len(replay), len(sent+refused+answers))
				}
			}
		})
	}
}

// TestKill kills the broker under load and checks that everything that either
// side received can be replayed.
func TestKill(t *testing.T) {
	dir := t.TempDir()
	config := "servers:\n  near: {stdio: [tee, -a, " + dir + "/received]}\n" + everything
	for round := range 3 {
		os.Remove(dir + "/received")
		b := startBroker(t, dir, config)
		c := b.dial(t, "near", dials["tls"])
		go func() {
			for i := range 100_000 {
				frame := fmt.Sprintf(`{"jsonrpc":"2.0","method":"notifications/x","params":{"n":%d,"pad":"%s"}}`+"\n", i, strings.Repeat("y", rand.IntN(3000)))
				if _, err := io.WriteString(c, frame); err != nil {
					return
				}
			}
		}()
		in := bufio.NewReader(c)
		for range 200 + rand.IntN(2000) {
			if _, err := in.ReadSlice('\n'); err != nil {
				t.Fatal(err)
			}
		}
		b.cmd.Process.Kill()
		b.cmd.Wait()
		io.Copy(io.Discard, in) // what was under way
		c.Conn.Close()
		received, err := os.ReadFile(dir + "/received")
		if err != nil {
			t.Fatal(err)
		}
		delivered, _ := c.carried()
		for direction, got := range map[string][]byte{"s2c": delivered, "c2s": received} {
			replay := b.replayed(t, direction, false)
			if len(got) == 0 || !bytes.HasPrefix(replay, got) {
				t.Errorf("round %d: %d bytes of %s were received, and they are no prefix of the %d on record", round, len(got), direction, len(replay))
			}
		}
		b.verify(t)
	}
}

// request is a tools/call of the tool echo.
func request(id int) string {
	return fmt.Sprintf(`{"jsonrpc":"2.0","id":%d,"method":"tools/call","params":{"name":"echo","arguments":{"text":"x"}}}`+"\n", id)
}

// nextLine reads a frame.
func nextLine(t testing.TB, in *bufio.Reader) string {
	t.Helper()
	line, err := in.ReadString('\n')
	if err != nil {
		t.Fatalf("%q, %v", line, err)
	}
	return line
}

const policyOf = `policy:
  - {name: all, groups: [analysts], servers: ["*"], access: %s}
`

// TestPolicyReload checks that a new policy holds for running sessions, and
// that one that does not load changes nothing.
func TestPolicyReload(t *testing.T) {
	dir := t.TempDir()
	servers := "servers: {near: {stdio: [cat]}}\n"
	b := startBroker(t, dir, servers+fmt.Sprintf(policyOf, "allow"))
	rewrite := func(policy string) {
		writeFile(t, filepath.Join(dir, "broker.yaml"), "listen: 127.0.0.1:0\ndata: data\n"+servers+policy)
		b.cmd.Process.Signal(syscall.SIGHUP)
	}
	c := b.dial(t, "near", dials["tls"])
	in := bufio.NewReader(c)
	io.WriteString(c, request(1))
	if got := nextLine(t, in); got != request(1) { // of cat
		t.Fatalf("got %q", got)
	}
	rewrite("policy: [{name: all}]\n")
	b.waitFor(t, `level=ERROR msg="configuration does not load; what was in force stays" error="broker.yaml:4: policy\[0\].access: is missing`, 1)
	io.WriteString(c, request(2))
	if got := nextLine(t, in); got != request(2) {
		t.Fatalf("got %q", got)
	}
	rewrite(fmt.Sprintf(policyOf, "deny"))
	b.waitFor(t, `msg="policy and certificates loaded"`, 1)
	io.WriteString(c, request(3))
	if got := nextLine(t, in); !strings.Contains(got, `"id":3,"error":{"code":403`) {
		t.Errorf("got %q", got)
	}
	for { // requests 1 and 2 were never answered
		line, err := in.ReadString('\n')
		if err == io.EOF {
			break
		}
		if err != nil || !strings.Contains(line, `"error":{"code":403`) {
			t.Errorf("got %q, %v", line, err)
			break
		}
	}
}

// TestDrain checks that SIGTERM refuses new sessions and leaves time to running ones.
func TestDrain(t *testing.T) {
	b := startBroker(t, t.TempDir(), "servers: {near: {stdio: [cat]}}\n"+everything, "--drain", "20s")
	c := b.dial(t, "near", dials["tls"])
	in := bufio.NewReader(c)
	io.WriteString(c, request(1))
	nextLine(t, in)
	b.cmd.Process.Signal(syscall.SIGTERM)
	b.waitFor(t, `msg="shutting down" sessions=1 drain=20s`, 1)

	late := b.dial(t, "near", dials["tls"])
	io.WriteString(late, request(5))
	if got := nextLine(t, bufio.NewReader(late)); !strings.Contains(got, `"id":5,"error":{"code":503,"message":"the broker is shutting down`) {
		t.Errorf("a new session: %q", got)
	}
	io.WriteString(c, request(2))
	if got := nextLine(t, in); got != request(2) {
		t.Errorf("a running session: %q", got)
	}
	for id := 1; id <= 2; id++ { // cat answers when it is answered
		fmt.Fprintf(c, `{"jsonrpc":"2.0","id":%d,"result":{}}`+"\n", id)
		nextLine(t, in)
	}
	c.Conn.Close()
	if err := b.cmd.Wait(); err != nil {
		t.Errorf("the broker ends with %v", err)
	}
}

// TestDrainEnds checks that what does not end in time is ended, with an answer.
func TestDrainEnds(t *testing.T) {
	b := startBroker(t, t.TempDir(), "servers: {near: {stdio: [sh, -c, 'cat >/dev/null']}}\n"+everything, "--drain", "100ms")
	c := b.dial(t, "near", dials["quic"])
	io.WriteString(c, request(1))
	b.waitFor(t, `msg="session opened"`, 1)
	b.cmd.Process.Signal(syscall.SIGTERM)
	got, err := io.ReadAll(c)
	if !strings.Contains(string(got), `"id":1,"error":{"code":503,"message":"the broker is shutting down`) {
		t.Errorf("got %q, %v", got, err)
	}
	if err := b.cmd.Wait(); err != nil {
		t.Errorf("the broker ends with %v", err)
	}
}

// TestDiskFull checks that nothing passes that cannot be recorded, and that the
// broker's health says so.
func TestDiskFull(t *testing.T) {
	b := startBroker(t, t.TempDir(), "limits: {disk_free: 900TiB}\nservers: {near: {stdio: [cat]}}\n"+everything)
	c := b.dial(t, "near", dials["tls"])
	io.WriteString(c, request(1))
	if got := nextLine(t, bufio.NewReader(c)); !strings.Contains(got, `"id":1,"error":{"code":503,"message":"the recorder is not available`) {
		t.Errorf("got %q", got)
	}
	b.waitFor(t, `level=ERROR msg="sessions cannot be recorded; they end, and new ones are refused" error="recorder not available: disk full`, 1)
	_, roots, err := identity.ReadBundle(b.issue(t, "x"))
	if err != nil {
		t.Fatal(err)
	}
	config := clientTLS("near", "127.0.0.1", tlsNone, roots)
	config.NextProtos = []string{"http/1.1"}
	client := http.Client{Transport: &http.Transport{TLSClientConfig: config}}
	defer client.CloseIdleConnections()
	for path, want := range map[string]string{"/healthz": "503 recorder not available\n", "/": "200 This is an access broker for MCP servers; connect with: broker connect SERVER\n"} {
		r, err := client.Get("https://" + b.addr + path)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(r.Body)
		r.Body.Close()
		if got := fmt.Sprint(r.StatusCode, " ", string(body)); got != want {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
	}
}

// TestOpenSSL holds a session with nothing of ours on the client's side, as
// docs/raw-streams.md shows it.
func TestOpenSSL(t *testing.T) {
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Skip("openssl is not installed")
	}
	b := startBroker(t, t.TempDir(), "servers: {sdk: {stdio: [sdk-server]}}\n"+everything)
	file := filepath.Join(b.dir, "ada.pem")
	writeFile(t, file, string(b.issue(t, "ada", "analysts")))
	ca, err := identity.LoadCA(filepath.Join(b.dir, "data"))
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(b.dir, "ca.pem"), string(ca.Roots()))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "openssl", "s_client", "-quiet", "-no_ign_eof", "-verify_return_error", "-alpn", "mcp-stream/1",
		"-connect", b.addr, "-servername", "sdk.localhost", "-cert", file, "-key", file, "-CAfile", filepath.Join(b.dir, "ca.pem"))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	in := bufio.NewReader(stdout)
	for i, method := range []string{"initialize", "tools/list"} {
		params := map[string]any{}
		if i == 0 {
			params = map[string]any{"protocolVersion": "2025-06-18", "capabilities": map[string]any{}, "clientInfo": map[string]any{"name": "t", "version": "1"}}
		}
		frame, _ := json.Marshal(map[string]any{"jsonrpc": "2.0", "id": i, "method": method, "params": params})
		fmt.Fprintf(stdin, "%s\n", frame)
		if i == 0 {
			fmt.Fprintln(stdin, `{"jsonrpc":"2.0","method":"notifications/initialized"}`)
		}
		line, err := in.ReadString('\n')
		if err != nil || !strings.Contains(line, fmt.Sprintf(`"id":%d,"result"`, i)) {
			t.Fatalf("%s: %q, %v\n%s", method, line, err, &stderr)
		}
	}
	stdin.Close()
	cmd.Wait()
	b.waitFor(t, `msg="session ended" .* reason=closed`, 1)
}

// TestCertificateReload checks that the broker shows a certificate that has changed.
func TestCertificateReload(t *testing.T) {
	dir := t.TempDir()
	ca, err := identity.OpenCA(filepath.Join(dir, "corporate"))
	if err != nil {
		t.Fatal(err)
	}
	write := func() {
		key, err := ca.IssueServer([]string{"localhost"}, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		cert, keyText := encodePair(t, key)
		writeFile(t, filepath.Join(dir, "server.pem"), cert)
		writeFile(t, filepath.Join(dir, "server-key.pem"), keyText)
	}
	write()
	b := startBroker(t, dir, "tls: {cert: server.pem, key: server-key.pem}\nservers: {near: {stdio: [cat]}}\n"+everything)
	before := serial(t, b.addr)
	write()
	b.waitFor(t, `msg="policy and certificates loaded"`, 1)
	for deadline := time.Now().Add(20 * time.Second); serial(t, b.addr) == before; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the broker still shows the old certificate")
		}
	}
}

// TestSlowReader checks that a client that does not read holds up nobody else.
func TestSlowReader(t *testing.T) {
	dir := t.TempDir()
	b := startBroker(t, dir, "servers: {far: {agent: far}}\n"+everything)
	b.startAgent(t, "  far: {stdio: [cat]}\n")
	big := `{"jsonrpc":"2.0","method":"notifications/x","params":{"pad":"` + strings.Repeat("y", 1<<20) + `"}}` + "\n"
	var slow []*tapped
	for range 8 { // over every tunnel
		c := b.dial(t, "far", dials["tls"])
		slow = append(slow, c)
		go func() {
			for {
				if _, err := io.WriteString(c, big); err != nil {
					return
				}
			}
		}()
	}
	b.waitFor(t, `msg="session opened"`, len(slow))
	fast := b.dial(t, "far", dials["tls"])
	in := bufio.NewReader(fast)
	for i := range 200 {
		frame := fmt.Sprintf(`{"jsonrpc":"2.0","method":"notifications/x","params":{"n":%d}}`+"\n", i)
		io.WriteString(fast, frame)
		if got := nextLine(t, in); got != frame {
			t.Fatalf("got %q", got)
		}
	}
	for _, c := range slow {
		c.Conn.Close()
	}
}

var tlsNone tls.Certificate

// encodePair returns certificate and key in PEM.
func encodePair(t *testing.T, c *tls.Certificate) (cert, key string) {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	return string(encodeCertificate(c.Leaf)), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

// serial is that of the certificate that the broker shows.
func serial(t *testing.T, addr string) string {
	t.Helper()
	c, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"mcp-stream/1"}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return c.ConnectionState().PeerCertificates[0].SerialNumber.String()
}

// TestClientCertificates checks whose certificates count: those of the broker's
// own CA and of tls.client_ca, while they are valid.
func TestClientCertificates(t *testing.T) {
	dir := t.TempDir()
	corporate, err := identity.OpenCA(filepath.Join(dir, "corporate"))
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := identity.OpenCA(filepath.Join(dir, "stranger"))
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(dir, "corporate.pem"), string(corporate.Roots()))
	b := startBroker(t, dir, `tls: {client_ca: [corporate.pem]}
servers: {near: {stdio: [cat]}}
policy:
  - {name: people, groups: [analysts], servers: [near], access: allow}
  - {name: ci, users: ["spiffe://corp.example/ci"], servers: [near], access: allow}
`)
	own, err := identity.LoadCA(filepath.Join(dir, "data"))
	if err != nil {
		t.Fatal(err)
	}
	ada := identity.Identity{Subject: "ada", Groups: []string{"analysts"}}
	for _, tt := range []struct {
		name string
		ca   *identity.CA // nil: no certificate
		id   identity.Identity
		life time.Duration
		want string
	}{
		{"own CA", own, ada, time.Hour, request(1)},
		{"tls.client_ca", corporate, ada, time.Hour, request(1)},
		{"SPIFFE ID", corporate, identity.Identity{Subject: "spiffe://corp.example/ci"}, time.Hour, request(1)},
		{"another SPIFFE ID", corporate, identity.Identity{Subject: "spiffe://corp.example/cd"}, time.Hour, `"code":403,"message":"no rule gives spiffe://corp.example/cd access`},
		{"expired", own, ada, -time.Minute, `"code":401,"message":"not signed in: client certificate expired at 20`},
		{"unknown authority", stranger, ada, time.Hour, `"code":401,"message":"not signed in: client certificate was issued by an unknown authority"`},
		{"none", nil, ada, time.Hour, `"code":401,"message":"not signed in: no client certificate"`},
	} {
		for transport, dial := range dials {
			var cert tls.Certificate
			if tt.ca != nil {
				key, err := identity.NewKey()
				if err != nil {
					t.Fatal(err)
				}
				der, err := tt.ca.IssueUser(tt.id, key.Public(), tt.life)
				if err != nil {
					t.Fatal(err)
				}
				cert = tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
			}
			c, err := dial(t.Context(), b.addr, clientTLS("near", "127.0.0.1", cert, own.Certificates()))
			if err != nil {
				t.Fatalf("%s over %s: %v", tt.name, transport, err)
			}
			io.WriteString(c, request(1))
			if got := nextLine(t, bufio.NewReader(c)); !strings.Contains(got, tt.want) {
				t.Errorf("%s over %s: %q, want %q", tt.name, transport, got, tt.want)
			}
			c.Close()
		}
	}
}
