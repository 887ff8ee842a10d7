package stream

import (
	"encoding/base64"
	"errors"
	"fmt"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"

	"example.com/broker/codec"
)

// The headers of MCP over HTTP. From revision 2026-07-28 on they repeat what the
// body says, so that whoever is on the way can know without reading it; a server
// has to refuse a request in which the two differ.
const (
	HeaderSession = "Mcp-Session-Id"       // of the older era
	HeaderVersion = "Mcp-Protocol-Version" // from 2025-06-18 on
	HeaderMethod  = "Mcp-Method"           // method
	HeaderName    = "Mcp-Name"             // params.name or params.uri
	HeaderParam   = "Mcp-Param-"           // and a name: an argument that the tool's schema marks with x-mcp-header
	HeaderEvent   = "Last-Event-Id"
)

// StatelessVersion is the first revision of MCP without a handshake and without
// sessions. Revisions are dates; what is later is of the newer era, too.
const StatelessVersion = "2026-07-28"

// MetaVersion is the member of params._meta that says a request's revision.
const MetaVersion = "io.modelcontextprotocol/protocolVersion"

// VersionOf returns the revision that a request of the newer era says it is of,
// or "".
func VersionOf(f *codec.Frame) string {
	if raw := codec.Member(f.Meta, MetaVersion); len(raw) > 1 && raw[0] == '"' {
		return string(codec.Unquote(nil, raw))
	}
	return ""
}

// named are the methods that Mcp-Name is for.
var named = []string{"tools/call", "prompts/get", "resources/read"}

// nameOf returns what Mcp-Name says of f.
func nameOf(f *codec.Frame) (string, bool) {
	if !slices.Contains(named, string(f.Method)) {
		return "", false
	}
	if string(f.Method) == "resources/read" {
		return string(f.URI), true
	}
	return string(f.Name), true
}

// SetHeaders sets the headers that repeat what f says.
func SetHeaders(h http.Header, f *codec.Frame, tools *ToolHeaders) {
	if f.Kind == codec.Response {
		return
	}
	h.Set(HeaderMethod, string(f.Method))
	if name, ok := nameOf(f); ok {
		h.Set(HeaderName, encodeHeader(name))
	}
	if string(f.Method) == "tools/call" {
		for _, p := range tools.of(string(f.Name)) {
			if value, ok := primitive(argument(f.Arguments, p.path)); ok {
				h.Set(HeaderParam+p.header, encodeHeader(value))
			}
		}
	}
}

// checkHeaders returns what headers of a request of the newer era say otherwise
// than its body.
func checkHeaders(h http.Header, f *codec.Frame, tools *ToolHeaders) error {
	one := func(name string) (string, error) {
		values := h.Values(name)
		if len(values) > 1 {
			return "", fmt.Errorf("the %s header is there more than once", name)
		}
		if len(values) == 0 || values[0] == "" {
			return "", fmt.Errorf("the %s header is missing", name)
		}
		return values[0], nil
	}
	if _, err := one(HeaderVersion); err != nil {
		return err
	}
	if version := VersionOf(f); version != "" && h.Get(HeaderVersion) != version {
		return fmt.Errorf("the %s header does not match the body", HeaderVersion)
	}
	method, err := one(HeaderMethod)
	if err != nil {
		return err
	}
	if method != string(f.Method) {
		return fmt.Errorf("the %s header does not match the body", HeaderMethod)
	}
	if want, ok := nameOf(f); ok {
		name, err := one(HeaderName)
		if err != nil {
			return err
		}
		if decoded, ok := decodeHeader(name); name != want && (!ok || decoded != want) {
			return fmt.Errorf("the %s header does not match the body", HeaderName)
		}
	}
	if string(f.Method) == "tools/call" {
		return tools.check(h, f)
	}
	return nil
}

// ToolHeaders are the arguments that servers want to see in headers, by tool, as
// far as answers to tools/list have shown them. Several goroutines may use it.
type ToolHeaders struct {
	mu    sync.Mutex
	tools map[string][]toolHeader // also of tools that want none
}

type toolHeader struct {
	path   []string // within arguments
	header string   // behind Mcp-Param-
}

// maxTools bounds the tools of a server that are remembered.
const maxTools = 10_000

// Learn reads the result of a tools/list.
func (t *ToolHeaders) Learn(result []byte) {
	for tool := range codec.Elements(codec.Member(result, "tools")) {
		name := codec.Member(tool, "name")
		if len(name) < 2 || name[0] != '"' {
			continue
		}
		headers := marked(nil, codec.Member(tool, "inputSchema"), nil, 0)
		t.mu.Lock()
		if t.tools == nil || len(t.tools) >= maxTools {
			t.tools = map[string][]toolHeader{}
		}
		t.tools[string(codec.Unquote(nil, name))] = headers
		t.mu.Unlock()
	}
}

// Knows reports whether the tool has been listed.
func (t *ToolHeaders) Knows(tool string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	_, ok := t.tools[tool]
	return ok
}

func (t *ToolHeaders) of(tool string) []toolHeader {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.tools[tool]
}

// marked appends the properties of a schema that have an x-mcp-header.
func marked(dst []toolHeader, schema []byte, path []string, depth int) []toolHeader {
	if depth > 16 {
		return dst
	}
	for name, property := range codec.Members(codec.Member(schema, "properties")) {
		at := append(slices.Clone(path), string(name))
		if raw := codec.Member(property, "x-mcp-header"); len(raw) > 2 && raw[0] == '"' {
			if header := string(codec.Unquote(nil, raw)); isToken(header) {
				dst = append(dst, toolHeader{at, header})
			}
		}
		dst = marked(dst, property, at, depth+1)
	}
	return dst
}

// isToken reports whether a header's name may be that (RFC 9110, section 5.6.2).
func isToken(name string) bool {
	return name != "" && len(name) <= 128 && !strings.ContainsFunc(name, func(r rune) bool {
		return r <= ' ' || r > '~' || strings.ContainsRune(`"(),/:;<=>?@[\]{}`, r)
	})
}

var errParams = errors.New("an Mcp-Param header does not match the body")

// check compares the Mcp-Param headers of a call with its arguments. Of a tool
// whose schema is not known, each header has to be the value of some argument.
func (t *ToolHeaders) check(h http.Header, f *codec.Frame) error {
	if !t.Knows(string(f.Name)) {
		for name, values := range h {
			if !strings.HasPrefix(name, HeaderParam) {
				continue
			}
			for _, v := range values {
				if decoded, ok := decodeHeader(v); !ok || !occurs(f.Arguments, decoded, 0) {
					return errParams
				}
			}
		}
		return nil
	}
	for _, p := range t.of(string(f.Name)) {
		name := HeaderParam + p.header
		raw := argument(f.Arguments, p.path)
		values := h.Values(name)
		if len(values) > 1 {
			return fmt.Errorf("the %s header is there more than once", name)
		}
		absent := raw == nil || string(raw) == "null"
		switch {
		case absent && len(values) == 0:
			continue
		case absent:
			return fmt.Errorf("the %s header is there, and the argument is not", name)
		case len(values) == 0:
			return fmt.Errorf("the %s header is missing", name)
		}
		if decoded, ok := decodeHeader(values[0]); !ok || !equals(raw, decoded) {
			return fmt.Errorf("the %s header does not match the body", name)
		}
	}
	return nil
}

func argument(arguments []byte, path []string) []byte {
	for _, name := range path {
		if arguments = codec.Member(arguments, name); arguments == nil {
			return nil
		}
	}
	return arguments
}

// occurs reports whether a value stands anywhere in arguments.
func occurs(arguments []byte, value string, depth int) bool {
	if depth > 16 {
		return false
	}
	for _, v := range codec.Members(arguments) {
		if equals(v, value) || occurs(v, value, depth+1) {
			return true
		}
	}
	return false
}

// primitive is a raw string, boolean or integer as a header says it.
func primitive(raw []byte) (string, bool) {
	switch {
	case len(raw) == 0:
		return "", false
	case raw[0] == '"':
		return string(codec.Unquote(nil, raw)), true
	case string(raw) == "true", string(raw) == "false":
		return string(raw), true
	}
	n, ok := integer(string(raw))
	return strconv.FormatInt(n, 10), ok
}

// equals reports whether a header says the raw value.
func equals(raw []byte, header string) bool {
	value, ok := primitive(raw)
	if !ok {
		return false
	}
	if value == header {
		return true
	}
	if raw[0] == '"' || raw[0] == 't' || raw[0] == 'f' {
		return false
	}
	n, _ := integer(value)
	m, ok := integer(header) // 42 and 42.0 are one
	return ok && n == m
}

// integer reads a number that is whole and exact in every parser.
func integer(text string) (int64, bool) {
	f, err := strconv.ParseFloat(text, 64)
	if err != nil || f != math.Trunc(f) || math.Abs(f) > 1<<53-1 {
		return 0, false
	}
	return int64(f), true
}

// What a header cannot carry as it is stands between these, in base64.
const (
	encodedPrefix = "=?base64?"
	encodedSuffix = "?="
)

func encodeHeader(value string) string {
	plain := strings.TrimSpace(value) == value && !strings.ContainsFunc(value, func(r rune) bool { return r < ' ' || r > '~' })
	if plain && !(strings.HasPrefix(value, encodedPrefix) && strings.HasSuffix(value, encodedSuffix)) {
		return value
	}
	return encodedPrefix + base64.StdEncoding.EncodeToString([]byte(value)) + encodedSuffix
}

func decodeHeader(value string) (string, bool) {
	encoded, ok := strings.CutPrefix(value, encodedPrefix)
	if ok {
		encoded, ok = strings.CutSuffix(encoded, encodedSuffix)
	}
	if !ok {
		return value, true
	}
	decoded, err := base64.StdEncoding.Strict().DecodeString(encoded)
	return string(decoded), err == nil
}
