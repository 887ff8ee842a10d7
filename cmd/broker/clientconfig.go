package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

// A clientEntry is how one MCP client is told of a server.
type clientEntry struct {
	where string // the file that it belongs into
	print func(w io.Writer, server string, command []string) error
	url   func(w io.Writer, server, address string) error // nil: it takes none in its file
}

// clients are the MCP clients that broker config knows. Each runs a command and
// speaks with it over stdin and stdout: the one shape that all of them accept.
// Most take a URL, too.
var clients = map[string]clientEntry{
	"claude-code":    {".mcp.json in the project, or: claude mcp add-json", jsonEntry("mcpServers", "stdio"), jsonURL("mcpServers", "http", "url")},
	"claude-desktop": {"claude_desktop_config.json (Settings, Developer, Edit Config)", jsonEntry("mcpServers", ""), nil},
	"cursor":         {"~/.cursor/mcp.json, or .cursor/mcp.json in the project", jsonEntry("mcpServers", ""), jsonURL("mcpServers", "", "url")},
	"vscode":         {".vscode/mcp.json in the workspace", jsonEntry("servers", "stdio"), jsonURL("servers", "http", "url")},
	"codex":          {"~/.codex/config.toml", tomlEntry, tomlURL},
	"gemini":         {"~/.gemini/settings.json", jsonEntry("mcpServers", ""), jsonURL("mcpServers", "", "httpUrl")},
}

func clientNames() []string { return slices.Sorted(maps.Keys(clients)) }

func configCommand() *cobra.Command {
	var (
		client clientFlags
		quic   bool
		byURL  bool
	)
	cmd := &cobra.Command{
		Use:   "config CLIENT SERVER",
		Short: "print the entry for an MCP client's configuration",
		Long: `Print the entry that makes an MCP client reach SERVER through the broker. CLIENT
is one of ` + strings.Join(clientNames(), ", ") + `.

With --url the entry is the server's URL: the client signs in by itself, in the
browser, and has to trust the broker's certificate.`,
		Example: "  broker config cursor bigquery --broker mcp.example.com:8443 --identity ada.pem",
		Args:    cobra.ExactArgs(2),
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) == 0 {
				return clientNames(), cobra.ShellCompDirectiveNoFileComp
			}
			return nil, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			entry, ok := clients[args[0]]
			if !ok {
				return usagef("client %q is not known; there are %s", args[0], strings.Join(clientNames(), ", "))
			}
			if !label.MatchString(args[1]) {
				return usagef("server %q: %w", args[1], errServerName)
			}
			given := client.identity
			if err := client.resolve(); err != nil {
				return err
			}
			client.identity = given // connect itself finds what login stored
			if byURL {
				if entry.url == nil {
					return usagef("%s takes no URL in its file; add https://%s/%s/mcp as a connector in its settings", args[0], client.broker, args[1])
				}
				fmt.Fprintln(cmd.ErrOrStderr(), "broker: this belongs into", entry.where)
				return entry.url(cmd.OutOrStdout(), args[1], "https://"+client.broker+"/"+args[1]+"/mcp")
			}
			command, err := client.command(args[1], quic)
			if err != nil {
				return err
			}
			fmt.Fprintln(cmd.ErrOrStderr(), "broker: this belongs into", entry.where)
			return entry.print(cmd.OutOrStdout(), args[1], command)
		},
	}
	client.add(cmd)
	cmd.Flags().BoolVar(&quic, "quic", false, "connect over QUIC (UDP) instead of TLS (TCP)")
	cmd.Flags().BoolVar(&byURL, "url", false, "print the server's URL instead of a command")
	cmd.MarkFlagsMutuallyExclusive("quic", "url")
	return cmd
}

func jsonURL(section, kind, key string) func(io.Writer, string, string) error {
	return func(w io.Writer, server, address string) error {
		entry := map[string]string{key: address}
		if kind != "" {
			entry["type"] = kind
		}
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		e.SetEscapeHTML(false)
		return e.Encode(map[string]map[string]map[string]string{section: {server: entry}})
	}
}

func tomlURL(w io.Writer, server, address string) error {
	_, err := fmt.Fprintf(w, "[mcp_servers.%s]\nurl = %q\n", server, address)
	return err
}

// command is the command line that a client runs. Clients start it in folders
// of their own and with few variables, so every path in it is absolute.
func (f *clientFlags) command(server string, quic bool) ([]string, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	command := []string{self, "connect", server, "--broker", f.broker}
	for _, file := range []struct{ flag, path string }{{"--identity", f.identity}, {"--ca", f.ca}} {
		if file.path == "" {
			continue
		}
		abs, err := filepath.Abs(file.path)
		if err != nil {
			return nil, err
		}
		command = append(command, file.flag, abs)
	}
	if quic {
		command = append(command, "--quic")
	}
	return command, nil
}

func jsonEntry(section, kind string) func(io.Writer, string, []string) error {
	type entry struct {
		Type    string   `json:"type,omitempty"`
		Command string   `json:"command"`
		Args    []string `json:"args"`
	}
	return func(w io.Writer, server string, command []string) error {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		e.SetEscapeHTML(false)
		return e.Encode(map[string]map[string]entry{section: {server: {kind, command[0], command[1:]}}})
	}
}

func tomlEntry(w io.Writer, server string, command []string) error {
	args, err := json.Marshal(command[1:]) // JSON's strings are TOML's basic strings
	if err != nil {
		return err
	}
	program, err := json.Marshal(command[0])
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "[mcp_servers.%s]\ncommand = %s\nargs = %s\n", server, program, args)
	return err
}
