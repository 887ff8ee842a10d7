package broker

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"example.com/broker/broker/grant"
	"example.com/broker/broker/policy"
	"example.com/broker/codec"
	"example.com/broker/recorder"
)

// A room is the waiting room: a small MCP server that a client is with until it
// has a grant. Clients treat a failed handshake as a broken server, so the
// broker answers it itself, and offers one tool, request_access. The server and
// its credential are not touched before there is a grant; then the room gives
// the client's own handshake to the server, and the same session goes on there.
//
// Frames of the client come on one goroutine (c2s); another leaves the room.
// mu is held by both, so that no frame is in between.
type room struct {
	s     *session
	terms *policy.Terms

	mu         sync.Mutex
	left       atomic.Bool   // written with mu held
	out        chan struct{} // closed when left
	modern     atomic.Bool   // the client is of the newer era
	version    string        // that the client was told
	initialize []byte        // the client's own
	ready      []byte        // its notifications/initialized
	level      []byte        // params of its logging/setLevel
	listens    []listen      // its subscriptions
	request    string        // the id of what it asked for
	page       string        // and its page
	acked      map[string]bool
}

// listen is a subscriptions/listen that waits for the server.
type listen struct {
	line, id []byte
	tools    bool // it wants to know of changed tools
}

func newRoom(s *session, t *policy.Terms) *room {
	return &room{s: s, terms: t, out: make(chan struct{}), page: s.url + "/access/" + s.server, acked: map[string]bool{}}
}

// waits reports whether the session is still in the room; r may be nil.
func (r *room) waits() bool { return r != nil && !r.left.Load() }

// acknowledged reports whether f is the server's word for a subscription that
// the room has acknowledged before; r may be nil.
func (r *room) acknowledged(f *codec.Frame) bool {
	if r == nil || string(f.Method) != "notifications/subscriptions/acknowledged" {
		return false
	}
	id := string(codec.Member(codec.Member(f.Params, "_meta"), metaSubscription))
	known := r.acked[id]
	delete(r.acked, id)
	return known
}

// c2s handles a frame of the client. here is false if the session has left the
// room meanwhile.
func (r *room) c2s(f *codec.Frame, line []byte, v *view) (here bool, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.left.Load() {
		return false, nil
	}
	if v.terms.Access != policy.Approval {
		return true, errPolicyChanged
	}
	s := r.s
	// Nothing of this reaches the server as it is.
	if err := s.toServer.queue(recorder.Blocked, line); err != nil {
		return true, err
	}
	if err := s.toServer.flush(); err != nil {
		return true, err
	}
	if f.Kind == codec.Response {
		return true, nil
	}
	s.learn(f)
	if f.Kind == codec.Notification {
		switch string(f.Method) {
		case "notifications/initialized":
			r.ready = bytes.Clone(line)
		case "notifications/cancelled":
			s.forget(&s.fromClient, f)
		}
		return true, nil
	}
	if verdict := ofVerdict(r.terms.Call(f, time.Now())); verdict != nil && verdict.Code == CodeDenied && string(f.Name) != requestAccess {
		return true, s.reply(verdict.appendTo(nil, f.ID, s.id))
	}
	return true, r.answer(f, line)
}

// answer answers a request.
func (r *room) answer(f *codec.Frame, line []byte) error {
	s := r.s
	if isModern(f) {
		r.modern.Store(true)
	}
	switch string(f.Method) {
	case "initialize":
		r.initialize = bytes.Clone(line)
		r.modern.Store(false) // it may have tried the newer one before
		seen, _ := s.faces.of(s.server, "initialize")
		r.version = seen.agree(text(codec.Member(f.Params, "protocolVersion")))
		if !isObject(seen.Info) {
			seen.Info, _ = json.Marshal(map[string]string{"name": s.server, "version": "waiting"})
		}
		return r.result(f, map[string]any{
			"protocolVersion": r.version, "capabilities": seen.capabilities(), "serverInfo": seen.Info, "instructions": r.instructions(),
		})
	case "server/discover":
		seen, ok := s.faces.of(s.server, "server/discover")
		if !ok {
			// Which era the server is of is not known yet; the older one most servers have.
			return s.reply(codec.AppendError(nil, f.ID, -32601, "method not found: server/discover", nil))
		}
		result := map[string]any{"supportedVersions": seen.Versions, "capabilities": seen.capabilities(), "instructions": r.instructions()}
		if isObject(seen.Meta) {
			result["_meta"] = seen.Meta
		}
		return r.result(f, result)
	case "ping":
		return r.result(f, map[string]any{})
	case "logging/setLevel":
		r.level = bytes.Clone(f.Params)
		return r.result(f, map[string]any{})
	case "tools/list":
		return r.result(f, map[string]any{"tools": []any{r.tool()}})
	case "prompts/list":
		return r.result(f, map[string]any{"prompts": []any{}})
	case "resources/list":
		return r.result(f, map[string]any{"resources": []any{}})
	case "resources/templates/list":
		return r.result(f, map[string]any{"resourceTemplates": []any{}})
	case "completion/complete":
		return r.result(f, map[string]any{"completion": map[string]any{"values": []any{}}})
	case "subscriptions/listen":
		return r.listen(f, line)
	case "tools/call":
		if string(f.Name) == requestAccess {
			return r.ask(f)
		}
	}
	no := &Refusal{
		Code: CodeApproval, Rule: r.terms.Rule, Request: r.request, URL: r.page,
		Reason: fmt.Sprintf("server %q needs an approval, and there is none yet; call the tool %s, or see %s", s.server, requestAccess, r.page),
	}
	return s.reply(no.appendTo(nil, f.ID, s.id))
}

// result answers f. In the newer era a result says that it is one, and how long
// it may be kept.
func (r *room) result(f *codec.Frame, result map[string]any) error {
	if r.modern.Load() {
		result["resultType"] = "complete"
		if strings.HasSuffix(string(f.Method), "/list") || string(f.Method) == "server/discover" {
			result["ttlMs"], result["cacheScope"] = 0, "private"
		}
	}
	return r.s.reply(codec.AppendResult(nil, f.ID, result))
}

func (r *room) instructions() string {
	return fmt.Sprintf("Access to %s needs an approval. Call the tool %s with a reason; when it is granted, the tools of %s appear in this session.", r.s.server, requestAccess, r.s.server)
}

// requestAccess is the room's one tool.
const requestAccess = "request_access"

func (r *room) tool() map[string]any {
	asking := r.terms.Asking()
	reason := map[string]any{"type": "string", "description": "why access is needed, for the people who decide"}
	switch {
	case asking.Reason == "required":
		reason["minLength"] = 1
	case asking.Reason != "":
		reason["pattern"] = "^(?:" + asking.Reason + ")$"
	}
	properties := map[string]any{
		"reason":   reason,
		"duration": map[string]any{"type": "string", "description": fmt.Sprintf("how long, like 30m or 1h; at most %s", asking.MaxDuration)},
	}
	if r.terms.MayBreakGlass() {
		properties["break_glass"] = map[string]any{"type": "boolean", "description": "take access at once, in an emergency; everybody is told, and it is reviewed after"}
	}
	return map[string]any{
		"name": requestAccess, "title": "Request access",
		"description": fmt.Sprintf("Ask for access to %s. Waits for the decision; when it is granted, the tools of %s appear. Deciding: %s.", r.s.server, r.s.server, asking.Approvers),
		"inputSchema": map[string]any{"type": "object", "properties": properties, "required": []string{"reason"}},
		"annotations": map[string]any{"readOnlyHint": false, "destructiveHint": false, "idempotentHint": true, "openWorldHint": true},
	}
}

// listen acknowledges a subscription and keeps it for the server.
func (r *room) listen(f *codec.Frame, line []byte) error {
	if no := r.s.register(f, ""); no != nil {
		return r.s.reply(no.appendTo(nil, f.ID, r.s.id))
	}
	wants := codec.Member(f.Params, "notifications")
	r.listens = append(r.listens, listen{bytes.Clone(line), bytes.Clone(f.ID), string(codec.Member(wants, "toolsListChanged")) == "true"})
	params := map[string]any{"_meta": map[string]any{metaSubscription: json.RawMessage(f.ID)}}
	if isObject(wants) {
		params["notifications"] = json.RawMessage(wants)
	}
	return r.s.notify("notifications/subscriptions/acknowledged", params)
}

// ask makes a request of the client's, on a call of request_access.
func (r *room) ask(f *codec.Frame) error {
	s := r.s
	var args struct {
		Reason     string `json:"reason"`
		Duration   string `json:"duration"`
		BreakGlass bool   `json:"break_glass"`
	}
	if f.Arguments != nil && json.Unmarshal(f.Arguments, &args) != nil {
		return r.toolAnswer(f.ID, true, "reason and duration are strings, break_glass is a boolean", nil)
	}
	duration, err := parseDuration(args.Duration)
	if err != nil {
		return r.toolAnswer(f.ID, true, err.Error(), nil)
	}
	if no := s.register(f, ""); no != nil {
		return s.reply(no.appendTo(nil, f.ID, s.id))
	}
	ask := grant.Ask{
		By: s.identity, Server: s.server, Terms: r.terms, Reason: args.Reason, Duration: duration,
		Source: s.source, Session: s.id, BreakGlass: args.BreakGlass,
	}
	id, token := bytes.Clone(f.ID), bytes.Clone(codec.Member(f.Meta, "progressToken"))
	s.calls.run(id, func(ctx context.Context) { r.waitFor(ctx, ask, id, token) })
	return nil
}

// parseDuration reads a duration that a person or a model has written.
func parseDuration(text string) (time.Duration, error) {
	if text == "" {
		return 0, nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d <= 0 {
		return 0, errors.New("a duration is written like 30m or 1h")
	}
	return d, nil
}

// waitFor makes the request and answers the call when it is decided, or, if the
// client shows no progress, before it loses patience.
func (r *room) waitFor(ctx context.Context, ask grant.Ask, id, token []byte) {
	s := r.s
	answer := func(isError bool, text string, req *grant.Request) {
		if _, ok := s.fromClient.done(id); ok {
			r.toolAnswer(id, isError, text, req)
			s.note()
		}
	}
	req, err := s.desk.Ask(ctx, ask)
	if err != nil {
		answer(true, s.askError(err), nil)
		return
	}
	page := s.url + "/requests/" + req.ID
	r.mu.Lock()
	r.request, r.page = req.ID, page
	r.mu.Unlock()
	if req.State == grant.Pending {
		req, err = s.waitDecided(ctx, req, token, r.terms.Asking().Hold)
		if errors.Is(err, errHeld) {
			answer(false, fmt.Sprintf("The request waits for a decision by %s. Its page: %s\nCall %s again to go on waiting.", req.Approvers, page, requestAccess), &req)
			return
		}
		if err != nil { // cancelled, or the session ends
			return
		}
	}
	switch req.State {
	case grant.Granted:
		select {
		case <-r.out:
			answer(false, fmt.Sprintf("Access to %s is granted for %s. Its tools are available now.", s.server, time.Duration(req.Duration)), &req)
		case <-ctx.Done():
		}
	case grant.Denied:
		text := "The request was denied."
		if n := len(req.Decisions); n > 0 && req.Decisions[n-1].Comment != "" {
			text = "The request was denied: " + req.Decisions[n-1].Comment
		}
		answer(true, text, &req)
	default:
		answer(true, fmt.Sprintf("The request is %s.", req.State), &req)
	}
}

// askError is what the client is told of a request that was not made.
func (s *session) askError(err error) string {
	var mine *grant.AskError
	if errors.As(err, &mine) || errors.Is(err, grant.ErrTooMany) || errors.Is(err, grant.ErrDisabled) {
		return err.Error()
	}
	s.log.Error("request cannot be made", "error", err)
	return "the request cannot be kept now; try again later"
}

// toolAnswer answers a call of request_access.
func (r *room) toolAnswer(id []byte, isError bool, text string, req *grant.Request) error {
	result := map[string]any{"content": []any{map[string]any{"type": "text", "text": text}}, "isError": isError}
	if req != nil {
		result["structuredContent"] = map[string]any{"request": req.ID, "state": req.State, "url": r.s.url + "/requests/" + req.ID}
	}
	if r.modern.Load() {
		result["resultType"] = "complete"
	}
	return r.s.reply(codec.AppendResult(nil, id, result))
}

// leave waits for a grant and brings the session to its server. It returns the
// server's frames from here on, and the policy's view of them.
func (r *room) leave(ctx context.Context) (*codec.Reader, *view, error) {
	s := r.s
	use, err := s.desk.Await(ctx, s.identity.Subject, s.server, s.rule)
	if err != nil {
		return nil, nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := s.reach(ctx, use); err != nil {
		s.log.Warn("server not reached", "error", err)
		return nil, nil, refusalOf(err)
	}
	frames, v := codec.NewReader(s.upstream(), s.limits), &view{}
	late := time.AfterFunc(s.handshake, func() { s.upstream().Close() })
	err = r.introduce(frames, v)
	if !late.Stop() && err == nil {
		err = errServerClosed
	}
	if err != nil {
		return nil, nil, err
	}
	s.log.Info("session opened", "rule", s.rule, "grant", use.ID)
	r.left.Store(true)
	close(r.out)
	return frames, v, r.announce()
}

// introduce gives the server the client's handshake.
func (r *room) introduce(frames *codec.Reader, v *view) error {
	s := r.s
	if r.initialize != nil {
		if err := r.deliver(r.initialize); err != nil {
			return err
		}
		if err := r.readWelcome(frames, v); err != nil {
			return err
		}
		if r.ready != nil {
			if err := r.deliver(r.ready); err != nil {
				return err
			}
		}
	}
	if r.level != nil { // its answer the client has had
		if err := r.deliver(codec.AppendRequest(nil, fmt.Appendf(nil, `"broker-%s-level"`, s.id), "logging/setLevel", json.RawMessage(r.level))); err != nil {
			return err
		}
	}
	for _, l := range r.listens {
		if !s.fromClient.has(l.id) {
			continue // cancelled
		}
		r.acked[string(l.id)] = true
		if err := r.deliver(l.line); err != nil {
			return err
		}
	}
	return nil
}

func (r *room) deliver(line []byte) error {
	if err := r.s.toServer.queue(recorder.Delivered, append(line, '\n')[:len(line)]); err != nil {
		return err
	}
	return r.s.toServer.flush()
}

var errOtherFace = &Refusal{Code: CodeServer, Reason: "access is granted, but the server speaks another revision of MCP than it did; connect again"}

// readWelcome reads the server's answer to initialize, which the client has had
// from the room. What the server sends before it is passed on.
func (r *room) readWelcome(frames *codec.Reader, v *view) error {
	s := r.s
	f, err := v.parse(r.initialize, codec.C2S)
	if err != nil {
		return err
	}
	id := bytes.Clone(f.ID)
	for {
		line, err := frames.Next()
		if err == codec.ErrLong {
			frames.Whole()
			continue
		}
		if err != nil {
			return errServerClosed
		}
		if blank(line) {
			continue
		}
		f, err := v.parse(line, codec.S2C)
		if err == nil && f.Kind == codec.Response && bytes.Equal(f.ID, id) {
			version := text(codec.Member(f.Result, "protocolVersion"))
			if f.Result != nil {
				s.faces.see(s.server, "initialize", f.Result)
			}
			if err := s.keepBack(v, line); err != nil {
				return err
			}
			if version != r.version {
				return errOtherFace
			}
			return nil
		}
		if err := s.s2c(v, line); err != nil {
			return err
		}
	}
}

// announce tells the client that there is something new.
func (r *room) announce() error {
	s := r.s
	for _, l := range r.listens {
		if l.tools {
			if err := s.notify("notifications/tools/list_changed", map[string]any{"_meta": map[string]any{metaSubscription: json.RawMessage(l.id)}}); err != nil {
				return err
			}
		}
	}
	if r.initialize == nil {
		return nil
	}
	seen, _ := s.faces.of(s.server, "initialize")
	for _, list := range []string{"tools", "prompts", "resources"} {
		if _, ok := seen.capabilities()[list]; ok {
			if err := s.notify("notifications/"+list+"/list_changed", nil); err != nil {
				return err
			}
		}
	}
	return nil
}
