package broker

import (
	"bytes"
	"encoding/json"
	"slices"
	"sync"

	"example.com/broker/codec"
)

// What the broker knows of MCP itself. The older era starts with initialize;
// in the newer one (2026-07-28) every request says in _meta what initialize
// said once.
const (
	metaVersion      = "io.modelcontextprotocol/protocolVersion"
	metaCapabilities = "io.modelcontextprotocol/clientCapabilities"
	metaLogLevel     = "io.modelcontextprotocol/logLevel"
	metaSubscription = "io.modelcontextprotocol/subscriptionId"
)

// versions are the revisions of the older era that the broker can answer, newest first.
var versions = []string{"2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05"}

// isModern reports whether a request is one of the newer era.
func isModern(f *codec.Frame) bool { return f.Meta != nil && codec.Member(f.Meta, metaVersion) != nil }

// elicitsURL reports whether a client's capabilities say that it can ask its
// person to open a URL.
func elicitsURL(capabilities []byte) bool {
	return codec.Member(codec.Member(capabilities, "elicitation"), "url") != nil
}

// text returns the decoded JSON string raw, or "" for anything else.
func text(raw []byte) string {
	if len(raw) == 0 || raw[0] != '"' {
		return ""
	}
	return string(codec.Unquote(nil, raw))
}

// faces are what servers last said of themselves, by their name and the method
// that asked: the waiting room shows a client the server's own face.
type faces struct {
	mu   sync.Mutex
	seen map[[2]string]face
}

// A face is the part of a result of initialize or server/discover that says
// what a server is.
type face struct {
	Version      string          `json:"protocolVersion,omitempty"`
	Versions     json.RawMessage `json:"supportedVersions,omitempty"`
	Capabilities json.RawMessage `json:"capabilities,omitempty"`
	Info         json.RawMessage `json:"serverInfo,omitempty"`
	Meta         json.RawMessage `json:"_meta,omitempty"`
}

// see notes the result of a request to a server.
func (f *faces) see(server, method string, result []byte) {
	if method != "initialize" && method != "server/discover" {
		return
	}
	var seen face
	if json.Unmarshal(result, &seen) != nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.seen == nil {
		f.seen = map[[2]string]face{}
	}
	f.seen[[2]string{server, method}] = seen
}

// of returns what the server last answered to method.
func (f *faces) of(server, method string) (face, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	seen, ok := f.seen[[2]string{server, method}]
	return seen, ok
}

// capabilities are those that a server showed last, or all that there are, and
// that its lists change: so that nothing is missing once the client is with it.
func (f face) capabilities() map[string]any {
	all := map[string]any{}
	if len(f.Capabilities) == 0 || json.Unmarshal(f.Capabilities, &all) != nil {
		all = map[string]any{
			"resources": map[string]any{"listChanged": true}, "prompts": map[string]any{"listChanged": true},
			"logging": map[string]any{}, "completions": map[string]any{},
		}
	}
	tools, _ := all["tools"].(map[string]any)
	if tools == nil {
		tools = map[string]any{}
	}
	tools["listChanged"] = true
	all["tools"] = tools
	return all
}

// agree is the revision that a server would answer to a client that asks for one.
func (f face) agree(asked string) string {
	if !slices.Contains(versions, asked) {
		asked = versions[0]
	}
	if f.Version != "" && f.Version < asked { // they are dates
		return f.Version
	}
	return asked
}

// isObject reports whether raw is a JSON object.
func isObject(raw []byte) bool {
	return len(bytes.TrimSpace(raw)) > 0 && bytes.TrimSpace(raw)[0] == '{'
}
