package broker

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"example.com/broker/broker/grant"
	"example.com/broker/broker/policy"
	"example.com/broker/codec"
	"example.com/broker/recorder"
)

// calls are the requests of a session that wait for an approval, and what the
// broker knows of them. Each waits on a goroutine of its own.
type calls struct {
	elicits atomic.Bool // the client, of the older era, can ask its person to open a URL

	ctx     context.Context // the session's
	running sync.WaitGroup

	mu      sync.Mutex
	n       int                           // requests that the broker has made
	waiting map[string]context.CancelFunc // by raw id
	asked   map[string]chan string        // requests to the client, by raw id; gets the action
	rounds  map[string]string             // requestState of an approved call that goes on, by digest
}

// maxWaiting bounds the calls that wait at a time.
const maxWaiting = 64

// stop ends what waits, and returns when it has.
func (c *calls) stop() {
	c.mu.Lock()
	for _, cancel := range c.waiting {
		cancel()
	}
	c.mu.Unlock()
	c.running.Wait()
}

// run runs wait for the request with that raw id until it is cancelled.
func (c *calls) run(id []byte, wait func(ctx context.Context)) {
	ctx, cancel := context.WithCancel(c.ctx)
	c.mu.Lock()
	if c.waiting == nil {
		c.waiting = map[string]context.CancelFunc{}
	}
	c.waiting[string(id)] = cancel
	c.mu.Unlock()
	c.running.Go(func() {
		defer cancel()
		wait(ctx)
		c.mu.Lock()
		delete(c.waiting, string(id))
		c.mu.Unlock()
	})
}

// cancel ends the wait for a request.
func (c *calls) cancel(id []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if cancel := c.waiting[string(id)]; cancel != nil {
		cancel()
	}
}

func (c *calls) full() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.waiting) >= maxWaiting
}

// answer takes the client's response to a request of the broker's; it is false
// if f is another's.
func (c *calls) answer(f *codec.Frame) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	ch := c.asked[string(f.ID)]
	if ch == nil {
		return false
	}
	delete(c.asked, string(f.ID))
	ch <- text(codec.Member(f.Result, "action")) // it has room for one
	return true
}

// ask makes an id for a request to the client, and says where its answer comes.
func (c *calls) ask(session string) (id []byte, action chan string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n++
	id = fmt.Appendf(nil, `"broker-%s-%d"`, session, c.n)
	action = make(chan string, 1)
	if c.asked == nil {
		c.asked = map[string]chan string{}
	}
	c.asked[string(id)] = action
	return id, action
}

func (c *calls) forget(id []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.asked, string(id))
}

// round notes that an approved call needs more input, so that the client's next
// round of it is not a call of its own.
func (c *calls) round(digest string, result []byte) {
	if digest == "" || text(codec.Member(result, "resultType")) != "input_required" {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.rounds == nil {
		c.rounds = map[string]string{}
	}
	c.rounds[digest] = string(codec.Member(result, "requestState"))
}

// goesOn reports whether f is the next round of an approved call, once.
func (c *calls) goesOn(digest string, f *codec.Frame) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	state, ok := c.rounds[digest]
	if !ok || state != string(codec.Member(f.Params, "requestState")) || codec.Member(f.Params, "inputResponses") == nil {
		return false
	}
	delete(c.rounds, digest)
	return true
}

// statePrefix starts the broker's own requestState.
const statePrefix = "brk1."

// ours returns the broker's own requestState that f brings back, or nil.
func ours(f *codec.Frame) []byte {
	if f.Kind != codec.Request || !bytes.Contains(f.Params, []byte(statePrefix)) {
		return nil
	}
	state := text(codec.Member(f.Params, "requestState"))
	if sealed, ok := strings.CutPrefix(state, statePrefix); ok {
		return []byte(sealed)
	}
	return nil
}

// A callState is what requestState seals: whose call waits for which request.
type callState struct {
	Subject string `json:"sub"`
	Server  string `json:"srv"`
	Digest  string `json:"dig"`
	Request string `json:"req"`
}

// digestOf names exactly one call: its method and all of its params but _meta,
// and but what answers a question of the broker's or of the server's.
func digestOf(f *codec.Frame, answers bool) string {
	type member struct{ name, value string }
	var members []member
	for name, value := range codec.Members(f.Params) {
		switch n := string(name); {
		case n == "_meta", answers && (n == "requestState" || n == "inputResponses"):
		default:
			var compact bytes.Buffer
			json.Compact(&compact, value) // valid: it has been parsed
			members = append(members, member{n, compact.String()})
		}
	}
	slices.SortFunc(members, func(a, b member) int { return cmp.Compare(a.name, b.name) })
	h := sha256.New()
	fmt.Fprintf(h, "%q\n", f.Method)
	for _, m := range members {
		fmt.Fprintf(h, "%q %d\n%s\n", m.name, len(m.value), m.value)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// maxShown is how much of a call's arguments an approver is shown, in bytes.
const maxShown = 16 << 10

// show returns the arguments of f as an approver may see them.
func (s *session) show(f *codec.Frame, t *policy.Terms) string {
	shown := f.Arguments
	if m := t.AcquireMasker(); m != nil {
		shown = m.MaskText(nil, shown)
		t.ReleaseMasker(m)
	}
	if len(shown) <= maxShown {
		return string(shown)
	}
	cut := shown[:maxShown]
	for !utf8.Valid(cut) {
		cut = cut[:len(cut)-1]
	}
	return fmt.Sprintf("%s… (%d bytes more)", cut, len(shown)-len(cut))
}

// A heldCall is a call that waits for an approval.
type heldCall struct {
	line   []byte // the client's
	id     []byte
	token  []byte // raw progressToken, or nil
	digest string
	modern bool // the client is of the newer era, and can ask its person to open a URL
	retry  bool // it has asked its person
	passed passage
	grant.Request
	terms *policy.Terms
}

// approval passes a call that has been approved, and makes any other wait, in
// the best way that the client knows.
func (s *session) approval(f *codec.Frame, line []byte, passed passage, t *policy.Terms, verdict policy.Verdict) error {
	h := &heldCall{terms: t, passed: passed, modern: elicitsURL(codec.Member(f.Meta, metaCapabilities)), digest: digestOf(f, true)}
	if s.calls.goesOn(h.digest, f) {
		return s.pass(f, line, passed, h.digest, approvedBy(t))
	}
	if sealed := ours(f); sealed != nil {
		var state callState
		if err := s.sealer.Open("requestState", string(sealed), &state); err != nil ||
			state != (callState{s.identity.Subject, s.server, h.digest, state.Request}) {
			s.log.Warn("call refused: its requestState is not the one that was given for it")
			return s.refuseChanged(passed.came, line, f.ID, &Refusal{Code: CodeDenied, Rule: t.Rule, Reason: "requestState was not given for this call, or has expired; make the call again without it"})
		}
		h.retry = true
	} else {
		h.digest = digestOf(f, false) // what it answers nobody has asked
	}
	ok, err := s.desk.Spend(s.calls.ctx, s.identity.Subject, s.server, t.Rule, h.digest, s.id)
	switch {
	case err != nil:
		return fmt.Errorf("%w: %w", recorder.ErrUnavailable, err)
	case ok && h.retry:
		return s.passEdited(f, passed.came, h.digest, approvedBy(t))
	case ok:
		return s.pass(f, line, passed, h.digest, approvedBy(t))
	case s.calls.full():
		return s.refuseChanged(passed.came, line, f.ID, &Refusal{Code: CodeLimit, Reason: fmt.Sprintf("refused: over %d calls wait for an approval", maxWaiting)})
	}
	name := string(f.Name)
	if name == "" {
		name = string(f.URI)
	}
	h.Request, err = s.desk.Ask(s.calls.ctx, grant.Ask{
		By: s.identity, Server: s.server, Terms: t, Source: s.source, Session: s.id,
		Call: &grant.Call{Method: string(f.Method), Name: name, Arguments: s.show(f, t), Why: verdict.Reason, Digest: h.digest},
	})
	if err != nil {
		return s.refuseChanged(passed.came, line, f.ID, &Refusal{Code: CodeApproval, Rule: t.Rule, Reason: "this call needs an approval: " + s.askError(err)})
	}
	if r := s.register(f, h.digest); r != nil {
		return s.refuseChanged(passed.came, line, f.ID, r)
	}
	if h.passed.came != nil && s.toServer.originals {
		h.passed.came = bytes.Clone(passed.came)
	} else {
		h.passed.came = nil
	}
	h.line, h.id, h.token = append(bytes.Clone(line), '\n')[:len(line)], bytes.Clone(f.ID), bytes.Clone(codec.Member(f.Meta, "progressToken"))
	s.log.Info("call waits for an approval", "method", short(string(f.Method)), "rule", t.Rule, "request", h.Request.ID)
	s.calls.run(h.id, func(ctx context.Context) { s.await(ctx, h) })
	return nil
}

// passEdited delivers a call without what answers the broker's question. came is what
// the client sent, if f is not.
func (s *session) passEdited(f *codec.Frame, came []byte, digest string, note *recorder.Note) error {
	if f.Kind == codec.Request {
		if r := s.register(f, digest); r != nil {
			return s.refuseChanged(came, f.Line, f.ID, r)
		}
	}
	if came == nil {
		came = f.Line
	}
	line := codec.Without(make([]byte, 0, len(f.Line)+1), f, f.Params, "requestState", "inputResponses")
	return s.toServer.queueChanged(came, note, recorder.Edited, line)
}

// approvedBy is what is noted of a call that passes because somebody has approved it.
func approvedBy(t *policy.Terms) *recorder.Note {
	return &recorder.Note{Mode: recorder.Enforce, Says: policy.Approval.String(), Rule: t.Rule}
}

// errHeld is returned when a call has waited for as long as its client would.
var errHeld = errors.New("held for long enough")

// progressTime is how often a client is shown that it waits.
const progressTime = 10 * time.Second

// waitDecided waits for a decision: for as long as the request stands if the
// client is shown progress, else for hold.
func (s *session) waitDecided(ctx context.Context, req grant.Request, token []byte, hold time.Duration) (grant.Request, error) {
	if token == nil {
		held, cancel := context.WithTimeoutCause(ctx, hold, errHeld)
		defer cancel()
		decided, err := s.desk.Decided(held, req.ID)
		if err != nil {
			return req, err
		}
		return decided, nil
	}
	ticks, cancel := context.WithCancel(ctx)
	defer cancel()
	shown := make(chan struct{})
	go func() {
		defer close(shown)
		tick := time.NewTicker(progressTime)
		defer tick.Stop()
		for n := 1; ; n++ {
			s.notify("notifications/progress", map[string]any{
				"progressToken": json.RawMessage(token), "progress": n,
				"message": fmt.Sprintf("waiting for an approval by %s: %s/requests/%s", req.Approvers, s.url, req.ID),
			})
			select {
			case <-tick.C:
			case <-ticks.Done():
				return
			}
		}
	}()
	decided, err := s.desk.Decided(ctx, req.ID)
	cancel()
	<-shown // nothing comes after the answer
	if err != nil {
		return req, err
	}
	return decided, nil
}

// await waits for the decision on a call and passes or refuses it.
func (s *session) await(ctx context.Context, h *heldCall) {
	if h.State == grant.Pending && h.modern && !h.retry {
		s.askPerson(h)
		return
	}
	err := error(nil)
	if h.State == grant.Pending {
		wait := s.waitDecided
		if !h.modern && s.calls.elicits.Load() {
			wait = s.elicit
		}
		h.Request, err = wait(ctx, h.Request, h.token, h.terms.Asking().Hold)
	}
	switch {
	case errors.Is(err, errHeld) && h.modern:
		s.askPerson(h)
	case errors.Is(err, errHeld):
		s.refuseHeld(h, CodeApproval, "this call waits for an approval; call again after it")
	case errors.Is(err, errDeclined):
		s.refuseHeld(h, CodeApproval, "this call needs an approval")
	case err != nil: // cancelled, or the session ends
	case h.State != grant.Granted:
		reason := "the approval of this call was not given in time"
		if h.State == grant.Denied {
			reason = "the approval of this call was denied"
			if n := len(h.Decisions); n > 0 && h.Decisions[n-1].Comment != "" {
				reason += ": " + h.Decisions[n-1].Comment
			}
		}
		s.refuseHeld(h, CodeDenied, reason)
	default:
		if err := s.passHeld(ctx, h); err != nil {
			s.end(err)
		}
	}
}

// refuseHeld answers a call that has waited.
func (s *session) refuseHeld(h *heldCall, code int, reason string) {
	r := &Refusal{Code: code, Rule: h.Rule, Request: h.ID, URL: s.url + "/requests/" + h.ID}
	r.Reason = fmt.Sprintf("%s: %s", reason, r.URL)
	s.answerHeld(h, r.appendTo(nil, h.id, s.id))
}

func (s *session) answerHeld(h *heldCall, line []byte) {
	if _, ok := s.fromClient.done(h.id); !ok { // cancelled
		return
	}
	s.note()
	// It never reached the server.
	err := errors.Join(s.toServer.queueChanged(h.passed.came, nil, recorder.Blocked, h.line), s.toServer.flush())
	if err == nil {
		err = s.reply(line)
	}
	if err != nil {
		s.end(err)
	}
}

// askPerson answers a call of the newer era: the client asks its person to open
// the page, and makes the call again.
func (s *session) askPerson(h *heldCall) {
	state, err := s.sealer.Seal("requestState", callState{s.identity.Subject, s.server, h.digest, h.ID}, h.Lapses)
	if err != nil {
		s.refuseHeld(h, CodeApproval, "this call needs an approval")
		return
	}
	s.answerHeld(h, codec.AppendResult(nil, h.id, map[string]any{
		"resultType":   "input_required",
		"requestState": statePrefix + state,
		"inputRequests": map[string]any{"approval": map[string]any{
			"method": "elicitation/create",
			"params": map[string]any{"mode": "url", "message": s.elicitation(h.Request), "url": s.url + "/requests/" + h.ID, "elicitationId": h.ID},
		}},
	}))
}

func (s *session) elicitation(req grant.Request) string {
	return fmt.Sprintf("The call %s at %s needs an approval by %s. Open the page of the request, and go on when it is approved.", req.Call.Name, s.server, req.Approvers)
}

var errDeclined = errors.New("the person declined")

// elicit has a client of the older era ask its person to open the page, and
// waits for the decision meanwhile.
func (s *session) elicit(ctx context.Context, req grant.Request, token []byte, hold time.Duration) (grant.Request, error) {
	id, action := s.calls.ask(s.id)
	defer s.calls.forget(id)
	err := s.reply(codec.AppendRequest(nil, id, "elicitation/create", map[string]any{
		"mode": "url", "message": s.elicitation(req), "url": s.url + "/requests/" + req.ID, "elicitationId": req.ID,
	}))
	if err != nil {
		return req, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		select {
		case a := <-action:
			if a != "accept" {
				cancel(errDeclined)
			}
		case <-ctx.Done():
		}
	}()
	req, err = s.waitDecided(ctx, req, token, hold)
	cancel(nil)
	<-answered
	if err == nil {
		err = s.notify("notifications/elicitation/complete", map[string]any{"elicitationId": req.ID})
	}
	return req, err
}

// passHeld delivers a call that has been approved while it waited, if the
// policy has not changed its mind.
func (s *session) passHeld(ctx context.Context, h *heldCall) error {
	if !s.fromClient.has(h.id) { // cancelled
		return nil
	}
	var p codec.Parser
	f, err := p.Parse(h.line, codec.C2S)
	if err != nil {
		return err
	}
	t := s.decide(s.policy.Load())
	if r := ofTerms(t, s.identity.Subject, s.server); r != nil && (r.Code != CodeApproval || !s.granted(t.Rule)) {
		return r
	}
	var note *recorder.Note
	switch verdict := t.Call(f, time.Now()); verdict.Access {
	case policy.Deny:
		s.refuseHeld(h, CodeDenied, verdict.Reason)
		return nil
	case policy.Approval:
		ok, err := s.desk.Spend(ctx, s.identity.Subject, s.server, t.Rule, h.digest, s.id)
		if err != nil {
			return fmt.Errorf("%w: %w", recorder.ErrUnavailable, err)
		}
		if !ok {
			s.refuseHeld(h, CodeApproval, "the approval of this call was used, or is over; call again")
			return nil
		}
		note = approvedBy(t)
	}
	if s.over.Load() {
		return nil
	}
	passed, line := h.passed, h.line
	if h.retry {
		if passed.verdict = recorder.Edited; passed.came == nil {
			passed.came = h.line
		}
		line = codec.Without(make([]byte, 0, len(f.Line)+1), f, f.Params, "requestState", "inputResponses")
	}
	if err := s.toServer.queueChanged(passed.came, note, passed.verdict, line); err != nil {
		return err
	}
	return s.toServer.flush()
}
