//lint:file-ignore SA1019 what is deprecated is in use, and must pass

package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"
)

// The policy of these tests lets everything pass.
const everything = `policy:
  - {name: all, groups: [analysts], servers: ["*"], access: allow, mask: [secrets, credit_card]}
`

// TestSDK compares what the official client sees of the official server through
// the broker, over TLS and over QUIC, with an agent in a process of its own,
// with what it sees without the broker, in both eras of MCP.
func TestSDK(t *testing.T) {
	b := startBroker(t, t.TempDir(), `servers:
  modern: {agent: far}
  legacy: {agent: far}
`+everything)
	agent := b.startAgent(t, "  modern: {stdio: [sdk-server]}\n  legacy: {stdio: [sdk-server, \"2025-11-25\"]}\n")

	for era, args := range map[string][]string{"modern": nil, "legacy": {"2025-11-25"}} {
		direct := useEverything(t, era, &mcp.CommandTransport{Command: exec.Command("sdk-server", args...)})
		t.Logf("%s: %d observations", era, len(direct))
		if len(direct) < 20 {
			t.Fatalf("%s: a short session: %q", era, direct)
		}
		for transport, dial := range dials {
			t.Run(era+" over "+transport, func(t *testing.T) {
				conn := b.dial(t, era, dial)
				brokered := useEverything(t, era, &mcp.IOTransport{Reader: conn, Writer: conn})
				same(t, direct, brokered)
				if err := conn.ended(t.Context()); err != nil {
					t.Error(err)
				}
				in, out := conn.carried()
				if got := b.replayed(t, "s2c", false); !bytes.Equal(got, in) {
					t.Errorf("replay of s2c has %d bytes, the connection carried %d", len(got), len(in))
				}
				if got := b.replayed(t, "c2s", false); !bytes.Equal(got, out) {
					t.Errorf("replay of c2s has %d bytes, the connection carried %d", len(got), len(out))
				}
			})
		}
	}
	// Stderr goes to the agent's log, with the session.
	agent.waitFor(t, `msg="server stderr" session=\w{16} server=(modern|legacy) pid=\d+ line="WAIT WAS CANCELLED"`, 4)
}

// same compares what was seen without the broker and with it.
func same(t *testing.T, direct, brokered []string) {
	t.Helper()
	for i := range max(len(direct), len(brokered)) {
		var d, b string
		if i < len(direct) {
			d = direct[i]
		}
		if i < len(brokered) {
			b = brokered[i]
		}
		if d != b {
			t.Errorf("without the broker: %s\n   with the broker: %s", d, b)
		}
	}
}

// useEverything is a session that uses every feature, written down.
func useEverything(t *testing.T, era string, transport mcp.Transport) (transcript []string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var mu sync.Mutex
	var notes []string // notifications and requests of the server, which come in any order
	note := func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		notes = append(notes, fmt.Sprintf(format, args...))
	}
	client := mcp.NewClient(&mcp.Implementation{Name: "test", Version: "1"}, &mcp.ClientOptions{
		CreateMessageHandler: func(_ context.Context, r *mcp.CreateMessageRequest) (*mcp.CreateMessageResult, error) {
			text := r.Params.Messages[0].Content.(*mcp.TextContent).Text
			note("sampling %s", text)
			return &mcp.CreateMessageResult{Model: "m", Role: "assistant", Content: &mcp.TextContent{Text: "model says " + text}}, nil
		},
		ElicitationHandler: func(_ context.Context, r *mcp.ElicitRequest) (*mcp.ElicitResult, error) {
			note("elicitation %s", r.Params.Message)
			return &mcp.ElicitResult{Action: "accept", Content: map[string]any{"name": "Ada"}}, nil
		},
		LoggingMessageHandler: func(_ context.Context, r *mcp.LoggingMessageRequest) {
			note("log %s %s %v", r.Params.Level, r.Params.Logger, r.Params.Data)
		},
		ProgressNotificationHandler: func(_ context.Context, r *mcp.ProgressNotificationClientRequest) {
			note("progress %v %v %s", r.Params.Progress, r.Params.Total, r.Params.Message)
		},
	})
	client.AddRoots(&mcp.Root{Name: "home", URI: "file:///home/ada"})
	session, err := client.Connect(ctx, transport, nil)
	if err != nil {
		t.Fatalf("%s: connect: %v", era, err)
	}
	defer session.Close()
	say := func(what string, result any, err error) {
		b, _ := json.Marshal(result)
		if len(b) > 300 {
			b = fmt.Appendf(nil, "%.300s… %d bytes, %x", b, len(b), sha256.Sum256(b))
		}
		transcript = append(transcript, fmt.Sprintf("%s: %s %v", what, b, err))
	}
	call := func(tool string, args any) {
		r, err := session.CallTool(ctx, &mcp.CallToolParams{Name: tool, Arguments: args})
		say(tool, r, err)
	}
	text := func(s string) map[string]any { return map[string]any{"text": s} }

	init := session.InitializeResult()
	say("server", []any{init.ProtocolVersion, init.ServerInfo, init.Instructions}, nil)
	tools, err := session.ListTools(ctx, nil)
	say("tools", tools, err)
	call("echo", text("plain"))
	call("echo", text("odd \u2028 \x00 \U0001f600 <&> \" \\ é"))
	call("fail", text(""))
	call("no-such-tool", text(""))
	call("big", map[string]any{"bytes": 3 << 20})
	resources, err := session.ListResources(ctx, nil)
	say("resources", resources, err)
	templates, err := session.ListResourceTemplates(ctx, nil)
	say("templates", templates, err)
	for _, uri := range []string{"test://motd", "test://files/x", "test://nothing"} {
		r, err := session.ReadResource(ctx, &mcp.ReadResourceParams{URI: uri})
		say(uri, r, err)
	}
	prompts, err := session.ListPrompts(ctx, nil)
	say("prompts", prompts, err)
	prompt, err := session.GetPrompt(ctx, &mcp.GetPromptParams{Name: "greet", Arguments: map[string]string{"who": "Ada"}})
	say("greet", prompt, err)
	completion, err := session.Complete(ctx, &mcp.CompleteParams{
		Ref: &mcp.CompleteReference{Type: "ref/prompt", Name: "greet"}, Argument: mcp.CompleteParamsArgument{Name: "who", Value: "a"},
	})
	say("completion", completion, err)
	if era == "legacy" {
		say("ping", nil, session.Ping(ctx, nil))
		say("level", nil, session.SetLoggingLevel(ctx, &mcp.SetLoggingLevelParams{Level: "debug"}))
		call("log", text("a line"))
		call("sample", text("what is up"))
		call("elicit", text("your name?"))
		call("roots", text(""))
		say("subscribe", nil, session.Subscribe(ctx, &mcp.SubscribeParams{URI: "test://motd"}))
	}
	progress := &mcp.CallToolParams{Name: "progress", Arguments: text("")}
	progress.SetProgressToken("tok")
	r, err := session.CallTool(ctx, progress)
	say("progress", r, err)

	// Many at a time.
	var wg sync.WaitGroup
	var wrong []string
	for i := range 50 {
		wg.Go(func() {
			r, err := session.CallTool(ctx, &mcp.CallToolParams{Name: "echo", Arguments: text(fmt.Sprint(i))})
			if err != nil || !strings.Contains(fmt.Sprint(r.StructuredContent), fmt.Sprint(i)) {
				mu.Lock()
				wrong = append(wrong, fmt.Sprint(i, err))
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	say("many", wrong, nil)

	// A call that the client gives up.
	waiting, giveUp := context.WithCancel(ctx)
	time.AfterFunc(100*time.Millisecond, giveUp)
	_, err = session.CallTool(waiting, &mcp.CallToolParams{Name: "wait", Arguments: text("")})
	say("cancelled", errors.Is(err, context.Canceled), nil)
	call("echo", text("still there"))

	mu.Lock()
	defer mu.Unlock()
	slices.Sort(notes)
	return append(transcript, notes...)
}
