//lint:file-ignore SA1019 what is deprecated is in use, and must pass

package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"
)

// sdkServer is an MCP server on the official SDK with something of everything
// that MCP has. It is the command sdk-server of the tests. Its arguments name
// the protocol versions that it supports; none means all. With SDK_LISTEN it
// serves HTTP at that address, without sessions if it supports all versions.
func sdkServer() {
	s := mcp.NewServer(&mcp.Implementation{Name: "sdk-server", Version: "1"}, &mcp.ServerOptions{
		Instructions:              "Use the tools.",
		SupportedProtocolVersions: os.Args[1:],
		SubscribeHandler:          func(context.Context, *mcp.SubscribeRequest) error { return nil },
		UnsubscribeHandler:        func(context.Context, *mcp.UnsubscribeRequest) error { return nil },
		CompletionHandler: func(context.Context, *mcp.CompleteRequest) (*mcp.CompleteResult, error) {
			return &mcp.CompleteResult{Completion: mcp.CompletionResultDetails{Values: []string{"alpha", "beta"}, Total: 2}}, nil
		},
	})
	type text struct {
		Text string `json:"text"`
	}
	mcp.AddTool(s, &mcp.Tool{Name: "echo", Description: "say it back"},
		func(_ context.Context, _ *mcp.CallToolRequest, in text) (*mcp.CallToolResult, text, error) {
			return nil, in, nil
		})
	mcp.AddTool(s, &mcp.Tool{Name: "forbidden", Description: "what the policy denies"},
		func(_ context.Context, _ *mcp.CallToolRequest, in text) (*mcp.CallToolResult, text, error) {
			fmt.Fprintln(os.Stderr, "FORBIDDEN CALL ARRIVED")
			return nil, in, nil
		})
	mcp.AddTool(s, &mcp.Tool{Name: "fail", Description: "an error of the tool"},
		func(context.Context, *mcp.CallToolRequest, text) (*mcp.CallToolResult, text, error) {
			return nil, text{}, errors.New("out of order")
		})
	type size struct {
		Bytes int `json:"bytes"`
	}
	mcp.AddTool(s, &mcp.Tool{Name: "big", Description: "a big answer"},
		func(_ context.Context, _ *mcp.CallToolRequest, in size) (*mcp.CallToolResult, any, error) {
			b := make([]byte, in.Bytes)
			for i := range b {
				b[i] = 'a' + byte(i%26)
			}
			return &mcp.CallToolResult{Content: []mcp.Content{&mcp.TextContent{Text: string(b)}}}, nil, nil
		})
	mcp.AddTool(s, &mcp.Tool{Name: "progress", Description: "report progress"},
		func(ctx context.Context, r *mcp.CallToolRequest, _ text) (*mcp.CallToolResult, text, error) {
			for i := range 3 {
				err := r.Session.NotifyProgress(ctx, &mcp.ProgressNotificationParams{
					ProgressToken: r.Params.GetProgressToken(), Progress: float64(i + 1), Total: 3, Message: fmt.Sprint("step ", i+1),
				})
				if err != nil {
					return nil, text{}, err
				}
			}
			return nil, text{"done"}, nil
		})
	mcp.AddTool(s, &mcp.Tool{Name: "log", Description: "log a message"},
		func(ctx context.Context, r *mcp.CallToolRequest, in text) (*mcp.CallToolResult, text, error) {
			return nil, in, r.Session.Log(ctx, &mcp.LoggingMessageParams{Level: "info", Logger: "sdk", Data: in.Text})
		})
	mcp.AddTool(s, &mcp.Tool{Name: "wait", Description: "wait to be cancelled"},
		func(ctx context.Context, _ *mcp.CallToolRequest, _ text) (*mcp.CallToolResult, text, error) {
			select {
			case <-ctx.Done():
				fmt.Fprintln(os.Stderr, "WAIT WAS CANCELLED")
				return nil, text{}, ctx.Err()
			case <-time.After(time.Minute):
				return nil, text{"never cancelled"}, nil
			}
		})
	mcp.AddTool(s, &mcp.Tool{Name: "sample", Description: "ask the client's model"},
		func(ctx context.Context, r *mcp.CallToolRequest, in text) (*mcp.CallToolResult, text, error) {
			answer, err := r.Session.CreateMessage(ctx, &mcp.CreateMessageParams{
				MaxTokens: 10, Messages: []*mcp.SamplingMessage{{Role: "user", Content: &mcp.TextContent{Text: in.Text}}},
			})
			if err != nil {
				return nil, text{}, err
			}
			return nil, text{answer.Content.(*mcp.TextContent).Text}, nil
		})
	mcp.AddTool(s, &mcp.Tool{Name: "elicit", Description: "ask the person"},
		func(ctx context.Context, r *mcp.CallToolRequest, in text) (*mcp.CallToolResult, text, error) {
			answer, err := r.Session.Elicit(ctx, &mcp.ElicitParams{Message: in.Text, RequestedSchema: map[string]any{
				"type": "object", "properties": map[string]any{"name": map[string]any{"type": "string"}},
			}})
			if err != nil {
				return nil, text{}, err
			}
			return nil, text{fmt.Sprint(answer.Action, " ", answer.Content["name"])}, nil
		})
	mcp.AddTool(s, &mcp.Tool{Name: "roots", Description: "list the client's roots"},
		func(ctx context.Context, r *mcp.CallToolRequest, _ text) (*mcp.CallToolResult, text, error) {
			roots, err := r.Session.ListRoots(ctx, nil)
			if err != nil {
				return nil, text{}, err
			}
			return nil, text{roots.Roots[0].URI}, nil
		})
	s.AddResource(&mcp.Resource{Name: "motd", URI: "test://motd", MIMEType: "text/plain"},
		func(_ context.Context, r *mcp.ReadResourceRequest) (*mcp.ReadResourceResult, error) {
			return &mcp.ReadResourceResult{Contents: []*mcp.ResourceContents{{URI: r.Params.URI, MIMEType: "text/plain", Text: "good morning\n"}}}, nil
		})
	s.AddResourceTemplate(&mcp.ResourceTemplate{Name: "file", URITemplate: "test://files/{name}"},
		func(_ context.Context, r *mcp.ReadResourceRequest) (*mcp.ReadResourceResult, error) {
			return &mcp.ReadResourceResult{Contents: []*mcp.ResourceContents{{URI: r.Params.URI, Blob: []byte{0, 1, 2, 255}}}}, nil
		})
	s.AddPrompt(&mcp.Prompt{Name: "greet", Arguments: []*mcp.PromptArgument{{Name: "who", Required: true}}},
		func(_ context.Context, r *mcp.GetPromptRequest) (*mcp.GetPromptResult, error) {
			return &mcp.GetPromptResult{Messages: []*mcp.PromptMessage{{Role: "user", Content: &mcp.TextContent{Text: "Greet " + r.Params.Arguments["who"]}}}}, nil
		})
	if addr := os.Getenv("SDK_LISTEN"); addr != "" {
		h := mcp.NewStreamableHTTPHandler(func(*http.Request) *mcp.Server { return s }, &mcp.StreamableHTTPOptions{
			Stateless: len(os.Args) == 1, PropagateRequestCancellation: true, EventStore: mcp.NewMemoryEventStore(nil),
		})
		fmt.Fprintln(os.Stderr, http.ListenAndServe(addr, h))
		return
	}
	if err := s.Run(context.Background(), &mcp.StdioTransport{}); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
}
