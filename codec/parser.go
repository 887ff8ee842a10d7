package codec

import (
	"bytes"
	"sync"
)

// A Kind is what a frame is in JSON-RPC's terms.
type Kind uint8

const (
	Request Kind = iota
	Notification
	Response
)

// A Frame is a view of one checked frame. Its slices point into Line, or, where
// a decoded string had escapes, into the Parser; they are valid until the
// Parser's next Parse.
type Frame struct {
	Line      []byte // the whole frame
	Kind      Kind
	ID        []byte // raw; nil in a notification; null only in an error from the server, also where it was left out
	Method    []byte // decoded; nil in a response
	Params    []byte // raw; nil if absent, as all of the following
	Name      []byte // decoded params.name, if it is a string
	URI       []byte // decoded params.uri, if it is a string
	Arguments []byte // raw params.arguments
	Meta      []byte // raw params._meta
	Result    []byte // raw
	Error     []byte // raw
}

// A Parser checks frames. Its zero value is ready for use; it must not be
// copied, nor used by two goroutines at a time.
type Parser struct {
	s scanner
	f Frame

	version            bool // jsonrpc is "2.0"
	nameKind, uriKind  byte // first byte of params.name and params.uri; 0 if absent
	loneName, loneURI  bool
	loneMethod, loneID bool
}

// parsers are those that nobody needs.
var parsers = sync.Pool{New: func() any { return new(Parser) }}

// AcquireParser returns a Parser. They are large, and most connections are idle most of
// the time: whoever waits gives his back with Release.
func AcquireParser() *Parser { return parsers.Get().(*Parser) }

// Release gives the Parser back. Neither it nor a Frame of its may be used any more.
func (p *Parser) Release() { parsers.Put(p) }

// Parse checks line and returns a view of it, or an [*Error].
func (p *Parser) Parse(line []byte, d Direction) (*Frame, error) {
	s := &p.s
	p.reset(line)
	if !p.frame(line) {
		p.reset(line)
		p.envelope()
	}
	if s.fault.code == 0 {
		p.check(d)
	}
	if s.fault.code != 0 {
		var id idScanner
		id.scan(line)
		return nil, &Error{Code: s.fault.code, ID: id.id(), Offset: int64(s.fault.offset), Reason: s.fault.String()}
	}
	return &p.f, nil
}

// reset forgets the frame before line.
func (p *Parser) reset(line []byte) {
	p.s.reset(line)
	p.f = Frame{}
	p.f.Line = line
	p.version, p.nameKind, p.uriKind = false, 0, 0
	p.loneName, p.loneURI, p.loneMethod, p.loneID = false, false, false, false
}

// String returns the reason and the place, but nothing that a peer has chosen.
func (f fault) String() string {
	if f.place == "" {
		return f.reason
	}
	return f.reason + ` within "` + f.place + `"`
}

// envelope reads the outermost object and notes where its parts lie.
func (p *Parser) envelope() bool {
	s := &p.s
	s.space()
	switch start := s.i; s.peek() {
	case '{':
		if !s.object((*envelopeReader)(p)) {
			return false
		}
	case 0xef:
		return s.fail(CodeParse, "byte order mark, or no JSON")
	default:
		if s.peek() == '[' {
			s.note(start, "batches are not accepted")
		}
		if !s.value() {
			return false
		}
		s.note(start, "a frame is an object")
	}
	rest := s.b[s.i:]
	if len(rest) > 0 && rest[len(rest)-1] == '\r' { // the line ends in CRLF
		rest = rest[:len(rest)-1]
	}
	if len(rest) > 0 {
		return s.fail(CodeParse, "bytes behind the frame")
	}
	return true
}

// The readers of the two objects that a Parser looks into.
type (
	envelopeReader Parser
	paramsReader   Parser
)

func (p *envelopeReader) member(name []byte) bool {
	s, f := &p.s, &p.f
	start := s.i
	kind := s.peek()
	switch string(name) {
	case "params":
		if kind != '{' {
			s.note(start, "params is no object")
			return s.value()
		}
		s.place = "/params"
		if !s.object((*paramsReader)(p)) {
			return false
		}
		s.place = ""
		f.Params = s.b[start:s.i]
		return true
	case "result":
		s.place = "/result"
	case "error":
		s.place = "/error"
	case "jsonrpc", "id", "method":
	default:
		if foldedName(name, envelopeNames) {
			s.note(start, "a name of the envelope in another case")
		}
	}
	if !s.value() {
		return false
	}
	s.place = ""
	raw := s.b[start:s.i]
	switch string(name) {
	case "jsonrpc":
		p.version = kind == '"' && string(s.decoded(start, s.i)) == "2.0"
	case "id":
		f.ID = raw
		p.loneID = kind == '"' && s.lone
	case "method":
		if kind != '"' {
			s.note(start, "method is no string")
			return true
		}
		f.Method = s.decoded(start, s.i)
		p.loneMethod = s.lone
	case "result":
		f.Result = raw
	case "error":
		f.Error = raw
	}
	return true
}

func (p *paramsReader) member(name []byte) bool {
	s, f := &p.s, &p.f
	start := s.i
	kind := s.peek()
	if !paramNames[string(name)] && foldedParam(name) {
		s.note(start, "a name of params in another case")
	}
	switch string(name) {
	case "arguments":
		s.place = "/params/arguments"
	case "_meta":
		s.place = "/params/_meta"
	}
	if !s.value() {
		return false
	}
	s.place = "/params"
	switch string(name) {
	case "name":
		if p.nameKind = kind; kind == '"' {
			f.Name, p.loneName = s.decoded(start, s.i), s.lone
		}
	case "uri":
		if p.uriKind = kind; kind == '"' {
			f.URI, p.loneURI = s.decoded(start, s.i), s.lone
		}
	case "arguments":
		f.Arguments = s.b[start:s.i]
	case "_meta":
		f.Meta = s.b[start:s.i]
	}
	return true
}

// check judges what envelope has read.
func (p *Parser) check(d Direction) {
	s, f := &p.s, &p.f
	invalid := func(reason string) { s.note(-1, reason) }
	switch {
	case !p.version:
		invalid(`jsonrpc is not "2.0"`)
		return
	case p.loneMethod || p.loneName || p.loneURI || p.loneID:
		invalid("half a surrogate pair in id, method, name or uri")
		return
	case f.Method != nil && (f.Result != nil || f.Error != nil):
		invalid("method beside result or error")
		return
	case f.Result != nil && f.Error != nil:
		invalid("both result and error")
		return
	case f.Method == nil && f.Result == nil && f.Error == nil:
		invalid("neither method nor result nor error")
		return
	}
	switch {
	case f.Method == nil:
		f.Kind = Response
	case f.ID == nil:
		f.Kind = Notification
	default:
		f.Kind = Request
	}
	switch {
	case f.Kind == Notification:
	case f.Kind == Response && d == S2C && f.Error != nil && (f.ID == nil || string(f.ID) == "null"):
		// Who could not read a request cannot name it. JSON-RPC writes null then,
		// MCP since 2025-11-25 nothing.
		f.ID = null
	case f.ID == nil:
		invalid("response without an id")
		return
	case f.ID[0] != '"' && !plainInteger(f.ID):
		invalid("id is neither a string nor an integer within ±2^53")
		return
	case len(f.ID) > maxID:
		invalid("id is too long")
		return
	}
	if f.Error != nil && !validError(f.Error) {
		invalid("error is no object with an integer code and a string message")
		return
	}
	if f.Kind == Response {
		if f.Params != nil {
			invalid("params in a response")
		}
		return
	}
	switch string(f.Method) {
	case "tools/call", "prompts/get":
		if p.nameKind != '"' {
			invalid("params.name is missing or no string")
			return
		}
	case "resources/subscribe", "resources/unsubscribe":
		if p.uriKind != '"' && p.uriKind != 0 { // without one they are for the server to refuse
			invalid("params.uri is no string")
			return
		}
	case "resources/read":
		if p.uriKind != '"' {
			invalid("params.uri is missing or no string")
			return
		}
	}
}

var null = []byte("null")

func validError(raw []byte) bool {
	if raw[0] != '{' {
		return false
	}
	code, message := Member(raw, "code"), Member(raw, "message")
	return plainInteger(code) && len(message) > 0 && message[0] == '"'
}

var envelopeNames = [][]byte{[]byte("jsonrpc"), []byte("id"), []byte("method"), []byte("params"), []byte("result"), []byte("error")}

// paramNames are the names that a decision, here or in a server, hangs on: the
// members of params in the revisions of MCP up to 2026-07-28. Go's
// encoding/json takes "Name" for "name".
var paramNames = map[string]bool{
	"_meta": true, "arguments": true, "argument": true, "capabilities": true, "clientInfo": true,
	"content": true, "context": true, "cursor": true, "data": true, "elicitationId": true, "inputResponses": true,
	"level": true, "logger": true, "maxTokens": true, "message": true, "messages": true, "metadata": true, "mode": true,
	"model": true, "modelPreferences": true, "name": true, "notifications": true, "progress": true, "progressToken": true,
	"protocolVersion": true, "reason": true, "ref": true, "requestId": true, "requestState": true,
	"requestedSchema": true, "role": true, "serverInfo": true, "stopSequences": true, "systemPrompt": true,
	"task": true, "taskId": true, "temperature": true, "toolChoice": true, "tools": true, "total": true,
	"uri": true, "uris": true, "url": true,
}

var foldedParams = func() (names [][]byte) {
	for n := range paramNames {
		names = append(names, []byte(n))
	}
	return names
}()

func foldedParam(name []byte) bool { return foldedName(name, foldedParams) }

// foldedName reports whether name is one of names but for case, as
// encoding/json folds it (ſ is s, and the Kelvin sign is k).
func foldedName(name []byte, names [][]byte) bool {
	for _, n := range names {
		if len(name) >= len(n) && len(name) <= 3*len(n) && bytes.EqualFold(name, n) {
			return true
		}
	}
	return false
}
