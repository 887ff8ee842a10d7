package main

import (
	"context"
	"encoding/json"
	"net/http"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"
)

// serveSDKProxy is a gateway as one writes it with the official Go SDK: a server whose tools
// call those of the server behind it. All clients share one session with that, to the
// gateway's advantage.
func serveSDKProxy(ctx context.Context, addr, to string) error {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxIdleConnsPerHost = 1024 // as many as there are callers
	us := &mcp.Implementation{Name: "proxy", Version: "1"}
	behind, err := mcp.NewClient(us, nil).Connect(ctx, &mcp.StreamableClientTransport{
		Endpoint: to, DisableStandaloneSSE: true, HTTPClient: &http.Client{Transport: transport},
	}, nil)
	if err != nil {
		return err
	}
	defer behind.Close()
	server := mcp.NewServer(us, nil)
	for tool, err := range behind.Tools(ctx, nil) {
		if err != nil {
			return err
		}
		server.AddTool(tool, func(ctx context.Context, req *mcp.CallToolRequest) (*mcp.CallToolResult, error) {
			arguments := req.Params.Arguments
			if len(arguments) == 0 {
				arguments = json.RawMessage("{}")
			}
			return behind.CallTool(ctx, &mcp.CallToolParams{Name: req.Params.Name, Arguments: arguments})
		})
	}
	handler := mcp.NewStreamableHTTPHandler(func(*http.Request) *mcp.Server { return server }, &mcp.StreamableHTTPOptions{JSONResponse: true})
	mux := http.NewServeMux()
	mux.Handle("/mcp", handler)
	web := &http.Server{Addr: addr, Handler: mux, ReadHeaderTimeout: time.Minute}
	stop := context.AfterFunc(ctx, func() { web.Close() })
	defer stop()
	return web.ListenAndServe()
}
