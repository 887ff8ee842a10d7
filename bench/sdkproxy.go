package main

import (
	"context"
	"encoding/json"
	"net/http"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"
)

// serveSDKProxy is a gateway as one writes it with the official Go SDK: a server for each
// client's session, whose tools call those of a client session with the server behind it.
func serveSDKProxy(ctx context.Context, addr, to string) error {
	handler := mcp.NewStreamableHTTPHandler(func(r *http.Request) *mcp.Server {
		client := mcp.NewClient(&mcp.Implementation{Name: "proxy", Version: "1"}, nil)
		behind, err := client.Connect(ctx, &mcp.StreamableClientTransport{Endpoint: to, DisableStandaloneSSE: true,
			HTTPClient: &http.Client{Transport: proxyTransport}}, nil)
		if err != nil {
			return nil
		}
		server := mcp.NewServer(&mcp.Implementation{Name: "proxy", Version: "1"}, nil)
		for tool, err := range behind.Tools(r.Context(), nil) {
			if err != nil {
				return nil
			}
			server.AddTool(tool, func(ctx context.Context, req *mcp.CallToolRequest) (*mcp.CallToolResult, error) {
				arguments := req.Params.Arguments
				if len(arguments) == 0 {
					arguments = json.RawMessage("{}")
				}
				return behind.CallTool(ctx, &mcp.CallToolParams{Name: req.Params.Name, Arguments: arguments})
			})
		}
		return server
	}, &mcp.StreamableHTTPOptions{JSONResponse: true})
	mux := http.NewServeMux()
	mux.Handle("/mcp", handler)
	server := &http.Server{Addr: addr, Handler: mux, ReadHeaderTimeout: time.Minute}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	return server.ListenAndServe()
}

// proxyTransport keeps as many connections as there are callers.
var proxyTransport = func() *http.Transport {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.MaxIdleConnsPerHost = 1024
	return t
}()
