package main

import (
	"context"
	"slices"
	"sync"

	"github.com/modelcontextprotocol/go-sdk/mcp"
	"github.com/spf13/cobra"
)

// demoServer is the MCP server that broker demo puts behind the broker: a child
// process on stdin and stdout, as most servers are. Every person, card and key
// in it is made up.
func demoServer() *cobra.Command {
	return &cobra.Command{
		Use:    "demo-server",
		Short:  "the MCP server of broker demo",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return newDemoServer().Run(cmd.Context(), &mcp.StdioTransport{})
		},
	}
}

type customer struct {
	Name  string `json:"name"`
	Email string `json:"email"`
	Card  string `json:"card"`
	Plan  string `json:"plan"`
}

var customers = []customer{
	{"Ada Byron", "ada.byron@customers.example", "4111 1111 1111 1111", "enterprise"},
	{"Grace Murray", "grace@customers.example", "5500-0055-5555-5559", "team"},
	{"Edsger Wybe", "edsger@customers.example", "378282246310005", "free"},
}

// demoKey has the form of a key and opens nothing. It is put together here so
// that no scanner of this source takes it for a real one.
var demoKey = "AKIA" + "Q3EGRIOL7PZ5TXWM"

type (
	nothing struct{}
	query   struct {
		SQL string `json:"sql" jsonschema:"the statement to run"`
	}
	rows struct {
		Rows []customer `json:"rows"`
	}
	settings struct {
		Region    string `json:"region"`
		AccessKey string `json:"access_key"`
	}
	received struct {
		Calls []string `json:"calls"`
	}
)

func newDemoServer() *mcp.Server {
	var (
		mu    sync.Mutex
		calls []string
	)
	note := func(tool string) {
		mu.Lock()
		defer mu.Unlock()
		calls = append(calls, tool)
	}
	s := mcp.NewServer(&mcp.Implementation{Name: "demo", Version: "1"}, nil)
	mcp.AddTool(s, &mcp.Tool{Name: "query", Description: "Run a SQL statement on the customers' database."},
		func(_ context.Context, _ *mcp.CallToolRequest, q query) (*mcp.CallToolResult, rows, error) {
			note("query: " + q.SQL)
			return nil, rows{customers}, nil
		})
	mcp.AddTool(s, &mcp.Tool{Name: "settings", Description: "Show the service's settings."},
		func(context.Context, *mcp.CallToolRequest, nothing) (*mcp.CallToolResult, settings, error) {
			note("settings")
			return nil, settings{"europe-west1", demoKey}, nil
		})
	mcp.AddTool(s, &mcp.Tool{Name: "delete_database", Description: "Delete the customers' database."},
		func(context.Context, *mcp.CallToolRequest, nothing) (*mcp.CallToolResult, nothing, error) {
			note("delete_database")
			return nil, nothing{}, nil
		})
	mcp.AddTool(s, &mcp.Tool{Name: "received", Description: "List the calls that have reached this server."},
		func(context.Context, *mcp.CallToolRequest, nothing) (*mcp.CallToolResult, received, error) {
			mu.Lock()
			defer mu.Unlock()
			return nil, received{slices.Clone(calls)}, nil
		})
	return s
}
