package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"example.com/broker/broker/identity"
	"example.com/broker/codec"
	"example.com/broker/recorder"
	"example.com/broker/stream"
	"github.com/goccy/go-yaml"
	"github.com/modelcontextprotocol/go-sdk/jsonrpc"
	"github.com/modelcontextprotocol/go-sdk/mcp"
	"github.com/spf13/cobra"
)

func demo() *cobra.Command {
	var (
		keep bool
		log  logFlags
	)
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "a whole installation in one process on loopback, and a session through it",
		Long: `Run a broker with an agent, a CA, a log in a temporary folder and a small MCP
server, all on loopback; be a client of it; replay the session and compare. The
exit status is 0 only if every step went as it says.`,
		Example: "  broker demo --keep",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			logger, err := log.logger()
			if err != nil {
				return err
			}
			dir, err := os.MkdirTemp("", "broker-demo-")
			if err != nil {
				return err
			}
			defer os.RemoveAll(dir)
			d := &demonstration{dir: dir, out: cmd.OutOrStdout()}
			if err := d.configure(); err != nil {
				return err
			}
			in, err := openInstallation(d.file("broker.yaml"), logger)
			if err != nil {
				return err
			}
			return d.around(cmd.Context(), in, keep)
		},
	}
	log.add(cmd)
	cmd.Flags().Lookup("log-level").DefValue = "warn"
	log.level = "warn"
	cmd.Flags().BoolVar(&keep, "keep", false, "leave it running and say how to connect MCP clients to it")
	return cmd
}

// A demonstration is a broker's whole life in a temporary folder.
type demonstration struct {
	dir  string
	out  io.Writer
	addr string
}

func (d *demonstration) file(name string) string { return filepath.Join(d.dir, name) }

func (d *demonstration) say(mark, format string, args ...any) {
	fmt.Fprintf(d.out, "%-9s %s\n", mark, fmt.Sprintf(format, args...))
}

// The policy of the demo, which the README shows.
const demoPolicy = `policy:
  - name: analysts query customers
    groups: [data-analysts]
    servers: [demo]
    access: allow
    calls:
      - deny: tool == "delete_database"
        reason: destructive tool
      - deny: tool == "query" && args.sql.matches("(?i)\\b(drop|truncate|delete)\\b")
        reason: destructive SQL
    mask: [secrets, email, credit_card]
`

// configure writes broker.yaml.
func (d *demonstration) configure() error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	head, err := yaml.Marshal(map[string]any{
		"listen":  "127.0.0.1:0",
		"data":    d.file("data"),
		"servers": map[string]any{"demo": map[string]any{"stdio": []string{self, "demo-server"}}},
	})
	if err != nil {
		return err
	}
	return os.WriteFile(d.file("broker.yaml"), append(head, demoPolicy...), 0o600)
}

// around runs the installation while the client plays its part.
func (d *demonstration) around(ctx context.Context, in *installation, keep bool) error {
	d.addr = in.listener.Addr().String()
	serving, stop := context.WithCancel(ctx)
	defer stop()
	served := make(chan error, 1)
	go func() { served <- in.run(serving, 5*time.Second) }()

	err := d.play(ctx, in)
	if err == nil && keep {
		d.invite()
		<-ctx.Done()
	}
	stop()
	return errors.Join(err, <-served)
}

// play is the client's part. Each step is checked.
func (d *demonstration) play(ctx context.Context, in *installation) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	d.say("broker", "listens on %s (TLS and QUIC), by %s; its MCP server is a child process", d.addr, d.file("broker.yaml"))
	bundle, err := d.issue(in)
	if err != nil {
		return err
	}
	d.say("identity", "ada, in group data-analysts, by a client certificate that ends in 8 h")

	conn, err := d.dial(ctx, in, bundle)
	if err != nil {
		return err
	}
	session, err := mcp.NewClient(&mcp.Implementation{Name: "broker-demo", Version: "1"}, nil).Connect(ctx, &mcp.IOTransport{Reader: conn, Writer: conn}, nil)
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	defer session.Close()
	if err := d.calls(ctx, session); err != nil {
		return err
	}
	session.Close()
	if err := conn.ended(ctx); err != nil {
		return err
	}
	return d.compare(ctx, conn)
}

// calls makes one call of each kind.
func (d *demonstration) calls(ctx context.Context, session *mcp.ClientSession) error {
	tools, err := session.ListTools(ctx, nil)
	if err != nil {
		return fmt.Errorf("list tools: %w", err)
	}
	var names []string
	for _, t := range tools.Tools {
		names = append(names, t.Name)
	}
	slices.Sort(names)
	if !slices.Equal(names, []string{"query", "received", "settings"}) {
		return fmt.Errorf("the client sees the tools %v", names)
	}
	d.say("filtered", "tools/list shows %s; delete_database, which the policy denies, is not in it", strings.Join(names, ", "))

	answer, err := d.call(ctx, session, "query", map[string]any{"sql": "SELECT * FROM customers"})
	if err != nil {
		return err
	}
	if !strings.Contains(answer, "Ada Byron") {
		return errors.New("the allowed call has no answer")
	}
	d.say("allowed", `query {"sql": "SELECT * FROM customers"}: 3 rows`)
	for _, c := range customers {
		if strings.Contains(answer, c.Email) || strings.Contains(answer, c.Card) {
			return errors.New("an e-mail address or a card number was not masked")
		}
	}
	d.say("masked", "%s", firstRow(answer))

	if answer, err = d.call(ctx, session, "settings", map[string]any{}); err != nil {
		return err
	}
	if strings.Contains(answer, demoKey) || !strings.Contains(answer, "[masked:secrets]") {
		return errors.New("an access key was not masked")
	}
	d.say("masked", "%s", answer)

	for _, c := range []struct {
		tool string
		args map[string]any
	}{
		{"query", map[string]any{"sql": "DROP TABLE customers"}},
		{"delete_database", map[string]any{}},
	} {
		_, err := d.call(ctx, session, c.tool, c.args)
		var refusal *jsonrpc.Error
		if !errors.As(err, &refusal) || refusal.Code != 403 {
			return fmt.Errorf("the forbidden call of %s was not refused: %v", c.tool, err)
		}
		args, _ := json.Marshal(c.args)
		d.say("blocked", "%s %s: %d %s", c.tool, args, refusal.Code, refusal.Message)
	}

	if answer, err = d.call(ctx, session, "received", map[string]any{}); err != nil {
		return err
	}
	if strings.Contains(answer, "DROP") || strings.Contains(answer, "delete_database") || !strings.Contains(answer, "SELECT") {
		return fmt.Errorf("the server received %s", answer)
	}
	d.say("server", "received %s: the forbidden calls never arrived", answer)
	return nil
}

func (d *demonstration) call(ctx context.Context, session *mcp.ClientSession, tool string, args any) (string, error) {
	r, err := session.CallTool(ctx, &mcp.CallToolParams{Name: tool, Arguments: args})
	if err != nil {
		return "", fmt.Errorf("call %s: %w", tool, err)
	}
	b, err := json.Marshal(r.StructuredContent)
	if err != nil {
		return "", err
	}
	for _, c := range r.Content { // the same again, as JSON inside a JSON string
		if text, ok := c.(*mcp.TextContent); ok && !bytes.Equal(b, []byte(text.Text)) {
			var x, y any
			if json.Unmarshal(b, &x) != nil || json.Unmarshal([]byte(text.Text), &y) != nil || fmt.Sprint(x) != fmt.Sprint(y) {
				return "", fmt.Errorf("call %s: content and structuredContent differ", tool)
			}
		}
	}
	return string(b), nil
}

func firstRow(answer string) string {
	var r struct{ Rows []json.RawMessage }
	if json.Unmarshal([]byte(answer), &r) != nil || len(r.Rows) == 0 {
		return answer
	}
	return string(r.Rows[0])
}

// issue makes a client certificate, as broker ca issue does.
func (d *demonstration) issue(in *installation) ([]byte, error) {
	key, err := identity.NewKey()
	if err != nil {
		return nil, err
	}
	der, err := in.ca.IssueUser(identity.Identity{Subject: "ada", Groups: []string{"data-analysts"}}, key.Public(), 8*time.Hour)
	if err != nil {
		return nil, err
	}
	bundle, err := identity.Bundle(key, der, in.ca.Roots())
	if err != nil {
		return nil, err
	}
	return bundle, identity.WritePrivate(d.file("ada.pem"), bundle)
}

func (d *demonstration) dial(ctx context.Context, in *installation, bundle []byte) (*tapped, error) {
	cert, roots, err := identity.ReadBundle(bundle)
	if err != nil {
		return nil, err
	}
	host, _, err := net.SplitHostPort(d.addr)
	if err != nil {
		return nil, err
	}
	var config *tls.Config = clientTLS("demo", host, cert, roots)
	c, err := stream.Dial(ctx, d.addr, config)
	if err != nil {
		return nil, err
	}
	return &tapped{Conn: c, over: make(chan struct{})}, nil
}

// A tapped connection remembers what it carried.
type tapped struct {
	stream.Conn
	reading  sync.Mutex // what one goroutine has read is in before another reads
	mu       sync.Mutex
	in, out  bytes.Buffer
	over     chan struct{} // closed at the end of the input
	overOnce sync.Once
}

func (t *tapped) Read(p []byte) (int, error) {
	t.reading.Lock()
	defer t.reading.Unlock()
	n, err := t.Conn.Read(p)
	t.mu.Lock()
	t.in.Write(p[:n])
	t.mu.Unlock()
	if err != nil {
		t.overOnce.Do(func() { close(t.over) })
	}
	return n, err
}

func (t *tapped) Write(p []byte) (int, error) {
	n, err := t.Conn.Write(p)
	t.mu.Lock()
	t.out.Write(p[:n])
	t.mu.Unlock()
	return n, err
}

// carried returns what the connection has carried.
func (t *tapped) carried() (in, out []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return bytes.Clone(t.in.Bytes()), bytes.Clone(t.out.Bytes())
}

// Close is the client's goodbye: what the server still answers arrives.
func (t *tapped) Close() error { return t.Conn.CloseWrite() }

// ended reads what is left and closes.
func (t *tapped) ended(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { t.Conn.Close() })
	defer stop()
	io.Copy(io.Discard, t)
	return t.Conn.Close()
}

// compare replays the session and compares it with what the connection carried.
func (d *demonstration) compare(ctx context.Context, conn *tapped) error {
	src, err := recorder.OpenSource(d.file("data")) // through the socket, as any other process would
	if err != nil {
		return err
	}
	defer src.Close()
	var s recorder.Session
	for s, err = range src.Sessions(ctx) {
		break
	}
	if err != nil {
		return err
	}
	d.say("recorded", "session %s: %d frames to the server, %d to the client, %d blocked, %d masked", s.ID, s.C2S.Frames, s.S2C.Frames, s.Blocked, s.Masked)
	in, out := conn.carried()
	for _, side := range []struct {
		name string
		got  []byte
		want func(recorder.Frame) bool
	}{
		{"s2c", in, func(f recorder.Frame) bool { return f.Direction == codec.S2C && f.Verdict != recorder.Blocked }},
		{"c2s", out, func(f recorder.Frame) bool { return f.Direction == codec.C2S }}, // the client's end carried the blocked calls, too
	} {
		var replayed bytes.Buffer
		if err := recorder.Replay(ctx, &replayed, src, s.ID, recorder.View{Want: side.want}); err != nil {
			return err
		}
		if !bytes.Equal(replayed.Bytes(), side.got) || len(side.got) == 0 {
			return fmt.Errorf("replay %s: %d bytes differ from the %d that the connection carried", side.name, replayed.Len(), len(side.got))
		}
		d.say("replayed", "%s: %d bytes, the same as the client's connection carried", side.name, replayed.Len())
	}
	return nil
}

// invite says how to connect MCP clients.
func (d *demonstration) invite() {
	flags := clientFlags{broker: d.addr, identity: d.file("ada.pem")}
	command, err := flags.command("demo", false)
	if err != nil {
		return
	}
	fmt.Fprintf(d.out, "\nThe broker goes on until you interrupt it. To reach its server from an MCP client:\n")
	fmt.Fprintf(d.out, "\nClaude Code:\n  claude mcp add demo -- %s\n", strings.Join(command, " "))
	for _, c := range []struct{ title, name string }{{"Cursor", "cursor"}, {"VS Code", "vscode"}} {
		fmt.Fprintf(d.out, "\n%s, in %s:\n", c.title, clients[c.name].where)
		clients[c.name].print(d.out, "demo", command)
	}
	fmt.Fprintf(d.out, "\nWhat they do is on record: %s sessions --data %s\n", command[0], d.file("data"))
}
