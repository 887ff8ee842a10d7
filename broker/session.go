package broker

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"example.com/broker/broker/agent"
	"example.com/broker/broker/grant"
	"example.com/broker/broker/identity"
	"example.com/broker/broker/policy"
	"example.com/broker/codec"
	"example.com/broker/recorder"
	"example.com/broker/stream"
)

// Causes of the end of a session.
var (
	ErrGrantEnded = &Refusal{Code: CodeGrantEnded, Reason: "the time that the rule gives a session is over; connect again to go on"}

	errGrantExpired  = &Refusal{Code: CodeGrantEnded, Reason: "your access has ended: its time is over; ask for it again to go on"}
	errGrantRevoked  = &Refusal{Code: CodeGrantEnded, Reason: "your access has ended: it was revoked"}
	errUntrusted     = &Refusal{Code: CodeNotSignedIn, Reason: "your certificate is no longer accepted; sign in again"}
	errDisabled      = &Refusal{Code: CodeNotSignedIn, Reason: "this identity has been disabled"}
	errIdentityEnded = &Refusal{Code: CodeNotSignedIn, Reason: "your certificate or token has expired; sign in again"}
	errPolicyChanged = &Refusal{Code: CodeUnavailable, Reason: "the policy has changed; connect again"}
	ErrIdle          = &Refusal{Code: CodeTimeout, Reason: "the session was idle for too long"}
	ErrDraining      = &Refusal{Code: CodeUnavailable, Reason: "the broker is shutting down; try again"}

	errServerClosed = &Refusal{Code: CodeServer, Reason: "the server has closed the session"}
	errServerFrame  = &Refusal{Code: CodeServer, Reason: "the server sent what is not a valid frame"}
	errSessionOver  = errors.New("the session is over")
	errServerInput  = errors.New("the server takes no more input")
	errServerLate   = errors.New("the server did not end after its input had")
	errClientGone   = errors.New("the client is gone")
)

// When the client has ended its input, its last answers shall arrive. Many
// servers drop what they are at when their input ends, so that they are told
// only when nothing is in flight, or after holdTime. Whether the client is gone
// or listens, nobody can tell: lastTime is the end in any case.
const (
	holdTime = 30 * time.Second
	lastTime = 10 * time.Minute
	// drainTime is what a server has to finish in once its input has ended and
	// every request is answered. Some servers ignore the end of their input.
	drainTime = 5 * time.Second
	// farewellTime is what the client has to take the last answers in.
	farewellTime = 2 * time.Second
)

// A session is one identity's use of one server, from the first frame to the close.
type session struct {
	id        string
	identity  identity.Identity
	server    string
	rule      string     // that let it in
	source    netip.Addr // of the client
	policy    *atomic.Pointer[policy.Policy]
	desk      *grant.Desk // may be nil
	sealer    *identity.Sealer
	url       string // of the broker's pages
	faces     *faces
	idle      time.Duration
	handshake time.Duration
	limits    codec.Limits
	log       *slog.Logger

	client   stream.Conn
	in       *lineReader // of the client's frames
	left     func()      // says that the session is over
	open     func(ctx context.Context) (agent.Conn, error)
	room     *room // where it waits for a grant; nil: it has what it needs
	toClient lane
	toServer lane

	fromClient ledger // requests of the client
	fromServer ledger // requests of the server
	calls      calls  // those that wait for an approval
	observed   observed
	ending     atomic.Bool   // the client has ended its input: run waits for the answers
	answered   chan struct{} // a request is, while run waits for that
	began      time.Time     // by the monotonic clock
	active     atomic.Int64  // when the last frame passed, in ns since began: the wall clock may be set
	wantsLog   atomic.Bool   // the client has asked for log messages

	end  context.CancelCauseFunc
	over atomic.Bool // no frame passes any more

	mu       sync.Mutex
	up       agent.Conn     // nil: not reached yet
	use      *grant.Use     // of the grant that the session has, if it needs one
	unfollow func()         // use; nil: nobody follows it
	decided  *policy.Policy // that says the terms
	terms    *policy.Terms
}

// reach connects the session to its server. use is the grant that it has, or nil.
func (s *session) reach(ctx context.Context, use *grant.Use) error {
	up, err := s.open(ctx)
	if err != nil {
		return err
	}
	if use != nil {
		if err := s.desk.Opened(ctx, use, s.id); err != nil {
			up.Close()
			return fmt.Errorf("%w: %w", recorder.ErrUnavailable, err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over.Load() {
		up.Close()
		return context.Cause(ctx)
	}
	s.up, s.use = up, use
	s.toServer.to(up)
	return nil
}

func (s *session) upstream() agent.Conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.up
}

// granted reports whether the session has a grant of that rule.
func (s *session) granted(rule string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.use != nil && s.use.Rule == rule && s.use.Cause() == nil
}

// followGrant ends the session with its grant, if it has one, and tells the client
// before, until unfollow.
func (s *session) followGrant() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.use == nil {
		return
	}
	use := s.use
	unfollow := use.AfterEnd(func() {
		if errors.Is(use.Cause(), grant.ErrExpired) {
			s.end(errGrantExpired)
			return
		}
		s.end(errGrantRevoked)
	})
	left := time.Until(use.Until)
	warning := time.AfterFunc(left-min(warnTime, left/2), func() { s.tell(use.Until) })
	s.unfollow = func() { unfollow(); warning.Stop() }
}

// warnTime is how long before its end a session is told of it.
const warnTime = 5 * time.Minute

// tell tells a client that has asked for log messages or progress that its
// access ends soon.
func (s *session) tell(until time.Time) {
	text := fmt.Sprintf("access to %s ends at %s", s.server, until.Local().Format("15:04:05 MST"))
	if s.wantsLog.Load() {
		s.notify("notifications/message", map[string]any{"level": "warning", "logger": "broker", "data": text})
	}
	for _, token := range s.fromClient.tokens() {
		s.notify("notifications/progress", map[string]any{"progressToken": json.RawMessage(token), "progress": 0, "message": text})
	}
}

// notify sends the client a notification of the broker's own.
func (s *session) notify(method string, params any) error {
	return s.reply(codec.AppendRequest(nil, nil, method, params))
}

// reply sends the client a frame of the broker's own.
func (s *session) reply(line []byte) error {
	if err := s.toClient.queue(recorder.Answered, line); err != nil {
		return err
	}
	return s.toClient.flush()
}

// run carries frames both ways until both sides are done, one of them fails or
// ctx is done, and returns the cause; nil means that the session ended in
// order. Requests that nobody answered are then answered by the broker, both
// connections are closed, and no goroutine of s is left. end ends ctx.
func (s *session) run(ctx context.Context, end context.CancelCauseFunc) error {
	unwatch := s.watch(ctx, end)
	served := make(chan struct{})
	go s.serve(ctx, served)
	err := s.pumpC2S(s.in, &view{})
	s.inputEnded(err, served)
	return s.close(ctx, unwatch)
}

// watch sees to it that ctx ends the session, and the end of its grant or of all
// frames ends ctx.
func (s *session) watch(ctx context.Context, end context.CancelCauseFunc) (unwatch func()) {
	s.end, s.calls.ctx = end, ctx
	s.followGrant()
	interrupted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(interrupted)
		s.interrupt()
	})
	s.active.Store(int64(time.Since(s.began)))
	idle := s.watchIdle()
	return func() {
		if !stop() {
			<-interrupted
		}
		idle.Stop()
		if s.unfollow != nil {
			s.unfollow()
		}
	}
}

// inputEnded waits for what the server still has to say once nothing comes from the
// client any more; err is why, unless that was in order.
func (s *session) inputEnded(err error, served <-chan struct{}) {
	var (
		inputClosed       bool // towards the server
		hold, last, drain <-chan time.Time
	)
	closeInput := func() {
		if !inputClosed {
			inputClosed = true
			if up := s.upstream(); up != nil {
				up.CloseWrite()
			}
		}
	}
	switch {
	case errors.Is(err, errServerInput): // its last answers may be on their way
		s.ending.Store(true)
		closeInput()
		drain = time.After(drainTime)
	case err != nil:
		s.end(err)
	default:
		s.ending.Store(true)
		hold, last = time.After(holdTime), time.After(lastTime)
	}
	for {
		if s.ending.Load() && drain == nil && s.fromClient.waiting() == 0 {
			closeInput()
			drain = time.After(drainTime)
			if s.upstream() == nil { // it waits for nothing any more
				s.end(errServerLate)
			}
		}
		select {
		case <-served:
			return
		case <-s.answered:
		case <-hold:
			closeInput()
		case <-drain:
			s.end(errServerLate)
		case <-last:
			s.end(errServerLate)
		}
	}
}

// close ends what is left of the session, and returns why it has ended.
func (s *session) close(ctx context.Context, unwatch func()) error {
	s.calls.stop()
	err := context.Cause(ctx)
	s.farewell(err)
	unwatch()
	s.client.Close()
	if up := s.upstream(); up != nil {
		up.Close()
	}
	if errors.Is(err, errServerLate) {
		return nil
	}
	return err
}

// interrupt stops both pumps: no frame passes any more, though closing the
// server takes its time.
func (s *session) interrupt() {
	s.over.Store(true)
	s.client.SetReadDeadline(time.Unix(1, 0))
	s.client.SetWriteDeadline(time.Now().Add(farewellTime))
	if up := s.upstream(); up != nil {
		up.Close()
	}
}

// serve brings what the server sends, as soon as the session may use it. It closes
// served in the end.
func (s *session) serve(ctx context.Context, served chan<- struct{}) {
	defer close(served)
	r, v, err := s.reached(ctx)
	if err == nil {
		err = s.pumpS2C(r, v)
	}
	switch {
	case errors.Is(err, errServerInput): // nor does anybody read what it still says
		s.end(errServerLate)
	case err != nil:
		s.end(err)
	case !s.ending.Load(): // nobody is left to talk to
		s.end(errServerClosed)
	}
}

// reached waits until the session may use its server. It returns the server's frames
// from there on, and the policy's view of them.
func (s *session) reached(ctx context.Context) (*codec.Reader, *view, error) {
	if s.room == nil {
		return codec.NewReader(s.upstream(), s.limits), &view{}, nil
	}
	r, v, err := s.room.leave(ctx)
	if err == nil {
		s.followGrant()
	}
	return r, v, err
}

// farewell answers what the server never will.
func (s *session) farewell(cause error) {
	open := s.fromClient.drain()
	if len(open) == 0 {
		return
	}
	refusal := errServerClosed
	if cause != nil {
		refusal = refusalOf(cause)
	}
	s.client.SetWriteDeadline(time.Now().Add(farewellTime))
	for _, id := range open {
		s.toClient.say(refusal.appendTo(nil, id, s.id))
	}
}

// watchIdle ends the session when no frame has passed for s.idle.
func (s *session) watchIdle() *time.Timer {
	var t *time.Timer
	var mu sync.Mutex // t is set before the function can read it
	mu.Lock()
	defer mu.Unlock()
	t = time.AfterFunc(s.idle, func() {
		mu.Lock()
		defer mu.Unlock()
		left := s.idle - (time.Since(s.began) - time.Duration(s.active.Load()))
		if left <= 0 {
			s.end(ErrIdle)
			return
		}
		t.Reset(left)
	})
	return t
}

// A view is one pump's knowledge of the policy.
type view struct {
	policy *policy.Policy
	terms  *policy.Terms
	parser *codec.Parser // nil while there is nothing to judge
	masker *codec.Masker // the same; or nothing is masked
	looks  *codec.Masker // of what an observing rule would mask, in the same way
	out    *[]byte       // for what takes a line's place; nil like parser
}

var outs = sync.Pool{New: func() any { return new([]byte) }}

// place returns a buffer for what takes a line's place. It is valid until rest.
func (v *view) place() *[]byte {
	if v.out == nil {
		v.out = outs.Get().(*[]byte)
	}
	*v.out = (*v.out)[:0]
	return v.out
}

// parse parses a line. The frame is valid until the next call, and until rest.
func (v *view) parse(line []byte, d codec.Direction) (*codec.Frame, error) {
	return v.acquire().Parse(line, d)
}

func (v *view) acquire() *codec.Parser {
	if v.parser == nil {
		v.parser = codec.AcquireParser()
	}
	return v.parser
}

// rest gives back what is needed while frames are judged only. Sessions wait most of
// their time.
func (v *view) rest() {
	if v.parser != nil {
		v.parser.Release()
	}
	if v.masker != nil {
		v.terms.ReleaseMasker(v.masker)
	}
	if v.looks != nil {
		v.terms.Observed.ReleaseMasker(v.looks)
	}
	if v.out != nil && cap(*v.out) <= batchSize { // else it was a rare big frame
		outs.Put(v.out)
	}
	v.parser, v.masker, v.looks, v.out = nil, nil, nil, nil
}

// refresh follows a policy that has been reloaded.
func (s *session) refresh(v *view) error {
	p := s.policy.Load()
	if p == v.policy {
		return nil
	}
	t := s.decide(p)
	switch r := ofTerms(t, s.identity.Subject, s.server); {
	case r == nil:
	case r.Code != CodeApproval:
		return r
	case s.room.waits(): // for that
		if t.Rule != s.rule {
			return errPolicyChanged
		}
	case !s.granted(t.Rule):
		return r
	}
	v.masker, v.looks = nil, nil // they are of other terms
	v.policy, v.terms = p, t
	return nil
}

// decide returns what p says of the session. Both pumps ask, and have the same then.
func (s *session) decide(p *policy.Policy) *policy.Terms {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p != s.decided {
		s.decided, s.terms = p, p.Decide(s.identity, s.server)
	}
	return s.terms
}

// masks returns the masker of the terms, or nil if they mask nothing.
func (s *session) masks(v *view) *codec.Masker {
	if v.masker == nil {
		if v.masker = v.terms.AcquireMasker(); v.masker != nil {
			v.masker.Came, v.masker.Leave = s.toClient.originals, false
		}
	}
	return v.masker
}

// observes returns the masker of what an observing rule would mask, or nil.
func (v *view) observes() *codec.Masker {
	if o := v.terms.Observed; v.looks == nil && o != nil {
		if v.looks = o.AcquireMasker(); v.looks != nil {
			v.looks.Came, v.looks.Leave = false, true
		}
	}
	return v.looks
}

// pumpC2S judges what the client sends, until its end. It waits in Next, as pumpS2C
// does: what is done with a line is in functions of its own, see [Broker.serve].
func (s *session) pumpC2S(r *lineReader, v *view) error {
	defer v.rest()
	for {
		line, err := r.Next()
		if over, err := s.handleC2S(r, v, line, err); over || err != nil {
			return err
		}
	}
}

// handleC2S handles what a Reader of the client's lines has returned. over says that
// nothing comes behind it.
func (s *session) handleC2S(r *lineReader, v *view, line []byte, err error) (over bool, _ error) {
	if s.over.Load() {
		return true, nil
	}
	s.active.Store(int64(time.Since(s.began)))
	switch tooLarge := tooLargeIn(err); {
	case err == nil:
		err = s.c2s(v, line)
	case tooLarge != nil:
		err = s.answer(tooLarge.ID, &Refusal{Code: tooLarge.Code, Reason: "refused: " + tooLarge.Reason})
	case errors.Is(err, io.ErrUnexpectedEOF): // half a frame reaches nobody
		s.toServer.queue(recorder.Blocked, line)
		return true, s.toServer.flush()
	case err == io.EOF:
		return true, s.toServer.flush()
	default:
		return true, fmt.Errorf("%w: %w", errClientGone, err)
	}
	if err == nil && !r.Buffered() {
		v.rest()
		err = s.toServer.flush()
	}
	return false, err
}

// tooLargeIn returns what is known of a frame that a Reader has discarded, or nil.
func tooLargeIn(err error) *codec.Error {
	if err == nil {
		return nil
	}
	var e *codec.Error
	errors.As(err, &e)
	return e
}

// c2s handles one line of the client. Errors end the session.
func (s *session) c2s(v *view, line []byte) error {
	if blank(line) {
		return nil
	}
	f, err := v.parse(line, codec.C2S)
	if err != nil {
		var bad *codec.Error
		if !errors.As(err, &bad) {
			return err
		}
		return s.refuse(line, bad.ID, &Refusal{Code: bad.Code, Reason: "refused: " + bad.Reason})
	}
	if err := s.refresh(v); err != nil {
		if r := refusalOf(err); f.Kind == codec.Request {
			s.refuse(line, f.ID, r)
		}
		return err
	}
	if s.room.waits() {
		if here, err := s.room.c2s(f, line, v); here {
			return err
		}
		// The session has reached its server meanwhile.
	}
	if f.Kind == codec.Response {
		if s.calls.answer(f) { // to what the broker asked
			return s.toServer.queue(recorder.Blocked, line)
		}
		if _, ok := s.fromServer.done(f.ID); !ok {
			s.log.Debug("client answered what was not asked")
			return s.toServer.queue(recorder.Blocked, line)
		}
		return s.toServer.queue(recorder.Delivered, line)
	}
	if f.Kind == codec.Notification && !bytes.HasPrefix(f.Method, []byte("notifications/")) {
		s.log.Info("request without an id is kept back", "method", short(string(f.Method)))
		return s.toServer.queue(recorder.Blocked, line)
	}
	passed := passage{verdict: recorder.Delivered}
	if f.Arguments != nil && v.terms.Masking.Requests != policy.RequestsPass {
		masked, findings := s.masks(v).MaskArguments(make([]byte, 0, len(line)+1), f)
		if len(findings) > 0 {
			// The record, too, has what the server gets, or would have got.
			line, passed = masked, passage{recorder.Masked, line}
			if err := s.toServer.findings(findings); err != nil {
				return err
			}
			if v.terms.Masking.Requests == policy.RequestsDeny {
				s.log.Info("call refused: something was found in its arguments", "method", short(string(f.Method)), "rule", v.terms.Rule)
				if f.Kind == codec.Notification { // has no answer
					return s.toServer.queueChanged(passed.came, nil, recorder.Blocked, line)
				}
				return s.refuseChanged(passed.came, line, bytes.Clone(f.ID), &Refusal{Code: CodeDenied, Rule: v.terms.Rule, Reason: "refused: the arguments hold what must not reach the server: " + kinds(findings)})
			}
			if f, err = v.parse(line, codec.C2S); err != nil {
				return fmt.Errorf("mask arguments: %w", err)
			}
		}
	}
	s.learn(f)
	verdict := v.terms.Call(f, time.Now())
	if verdict.Access == policy.Approval && f.Kind == codec.Request && s.desk != nil {
		return s.approval(f, line, passed, v.terms, verdict)
	}
	if r := ofVerdict(verdict); r != nil {
		s.log.Info("call refused", "method", short(string(f.Method)), "code", r.Code, "rule", r.Rule)
		if f.Kind == codec.Notification { // has no answer
			return s.toServer.queueChanged(passed.came, nil, recorder.Blocked, line)
		}
		return s.refuseChanged(passed.came, line, f.ID, r)
	}
	if string(f.Method) == "notifications/cancelled" {
		s.forget(&s.fromClient, f)
	}
	note := s.observe(v, f)
	if ours(f) != nil { // of an approval that is not needed any more
		return s.passEdited(f, passed.came, "", note)
	}
	return s.pass(f, line, passed, "", note)
}

// kinds lists the detectors of findings, each once.
func kinds(findings []codec.Finding) string {
	var names []string
	for _, f := range findings {
		if !slices.Contains(names, f.Detector) {
			names = append(names, f.Detector)
		}
	}
	return strings.Join(names, ", ")
}

// A passage is how what the client sent passes, if it does.
type passage struct {
	verdict recorder.Verdict
	came    []byte // what the client sent, if that is something else than what passes; or nil
}

// pass delivers what the client sent. call is the digest of an approved call; note
// may be nil.
func (s *session) pass(f *codec.Frame, line []byte, p passage, call string, note *recorder.Note) error {
	if f.Kind == codec.Request {
		if r := s.register(f, call); r != nil {
			return s.refuseChanged(p.came, line, f.ID, r)
		}
	}
	return s.toServer.queueChanged(p.came, note, p.verdict, line)
}

// register puts a request in flight, or returns why it cannot be.
func (s *session) register(f *codec.Frame, call string) *Refusal {
	switch s.fromClient.add(f, call) {
	case duplicate:
		return &Refusal{Code: -32600, Reason: "refused: a request with this id is in flight"}
	case full:
		return &Refusal{Code: CodeLimit, Reason: fmt.Sprintf("refused: over %d requests in flight", s.fromClient.limit)}
	}
	return nil
}

// learn notes what the client says of itself.
func (s *session) learn(f *codec.Frame) {
	switch string(f.Method) {
	case "initialize":
		s.calls.elicits.Store(elicitsURL(codec.Member(f.Params, "capabilities")))
	case "logging/setLevel":
		s.wantsLog.Store(true)
	}
	if f.Meta != nil && !s.wantsLog.Load() && codec.Member(f.Meta, metaLogLevel) != nil {
		s.wantsLog.Store(true)
	}
}

// refuse keeps line from the server and answers it.
func (s *session) refuse(line, id []byte, r *Refusal) error { return s.refuseChanged(nil, line, id, r) }

// refuseChanged is refuse of a line that may be another one than what came, which is
// nil if it is not.
func (s *session) refuseChanged(came, line, id []byte, r *Refusal) error {
	if err := s.toServer.queueChanged(came, nil, recorder.Blocked, line); err != nil {
		return err
	}
	return s.answer(id, r)
}

// answer tells the client of a refusal. What came before it is delivered first.
func (s *session) answer(id []byte, r *Refusal) error {
	if err := s.toServer.flush(); err != nil {
		return err
	}
	if err := s.toClient.queue(recorder.Answered, r.appendTo(nil, id, s.id)); err != nil {
		return err
	}
	return s.toClient.flush()
}

// forget takes the request that the notification f cancels out of l: it may be
// answered all the same, or never.
func (s *session) forget(l *ledger, f *codec.Frame) {
	if id := codec.Member(f.Params, "requestId"); id != nil {
		l.cancel(id)
		if l == &s.fromClient {
			s.calls.cancel(id)
		}
		s.note()
	}
}

// note tells run that a request is gone, if it waits for that.
func (s *session) note() {
	if !s.ending.Load() {
		return
	}
	select {
	case s.answered <- struct{}{}:
	default:
	}
}

// pumpS2C masks what the server sends, until its end.
func (s *session) pumpS2C(r *codec.Reader, v *view) error {
	defer v.rest()
	for {
		line, err := r.Next()
		if over, err := s.handleS2C(r, v, line, err); over || err != nil {
			return err
		}
	}
}

// handleS2C handles what a Reader of the server's lines has returned. over says that
// nothing comes behind it.
func (s *session) handleS2C(r *codec.Reader, v *view, line []byte, err error) (over bool, _ error) {
	if s.over.Load() {
		return true, nil
	}
	s.active.Store(int64(time.Since(s.began)))
	switch tooLarge := tooLargeIn(err); {
	case err == nil:
		err = s.s2c(v, line)
	case err == codec.ErrLong:
		err = s.flow(r, v)
	case tooLarge != nil:
		s.log.Warn("server sent a frame over the limit", "limit", s.limits.Frame)
		err = nil
		if _, ok := s.fromClient.done(tooLarge.ID); ok {
			err = s.answer(tooLarge.ID, &Refusal{Code: CodeTooLarge, Reason: "refused: the server's answer is over the broker's limit for a frame"})
		}
		s.note()
	case errors.Is(err, io.ErrUnexpectedEOF):
		s.keepBack(v, line)
		s.toClient.flush()
		return true, errServerClosed
	case err == io.EOF:
		return true, s.toClient.flush()
	default:
		return true, fmt.Errorf("read from server: %w", err)
	}
	if err == nil && !r.Buffered() {
		v.rest()
		err = s.toClient.flush()
		s.note()
	}
	if err != nil {
		s.toClient.flush() // what came before is good
	}
	return false, err
}

// flow passes a long response while it arrives. Where it must be held, because it
// is judged as a whole or its client needs it whole, the Reader waits for it.
func (s *session) flow(r *codec.Reader, v *view) error {
	_, whole := s.client.(relayed)
	if id, ok := r.Long(); !ok || whole || !s.fromClient.flows(id) {
		r.Whole()
		return nil
	}
	if err := s.refresh(v); err != nil {
		return err
	}
	refused := ""
	if v.terms.HidesTools() { // whatever was asked, as in s2c
		refused = "tools"
	}
	m := s.masks(v)
	if m == nil {
		m = v.observes()
	}
	f, rest, err := v.acquire().Flow(r, m, refused, func(part codec.Part) error {
		if s.over.Load() {
			return errSessionOver
		}
		s.active.Store(int64(time.Since(s.began)))
		about, verdict, err := s.aboutPart(v, part)
		if err != nil {
			return err
		}
		return s.toClient.part(about, verdict, part.Bytes, part.Came)
	})
	s.observed.frame()
	if err == nil {
		req, ok := s.fromClient.done(f.ID)
		s.note()
		if ok && req.flows() || req.cancelled { // the rest of it is the client's to ignore
			return s.toClient.end(recorder.Delivered)
		}
		s.log.Warn("server answered what it was not asked, at length")
		err = errServerFrame
	}
	if cut := s.toClient.end(recorder.Cut); cut != nil {
		return cmp.Or(err, cut)
	}
	if len(rest) > 0 {
		s.keepBack(v, rest)
	}
	var bad *codec.Error
	switch {
	case err == errSessionOver:
		return nil
	case errors.As(err, &bad) && bad.Code == codec.CodeTooLarge:
		s.log.Warn("server sent a frame that would cost too much", "error", err)
		id := bad.ID
		if id == nil {
			id = s.fromClient.only()
		}
		if _, ok := s.fromClient.done(id); id != nil && ok {
			s.note()
			return s.answer(id, &Refusal{Code: CodeTooLarge, Reason: "refused: " + bad.Reason})
		}
		return errServerFrame
	case errors.As(err, &bad):
		s.log.Warn("server sent what is not a valid frame", "error", err)
		return errServerFrame
	case errors.Is(err, io.ErrUnexpectedEOF):
		return errServerClosed
	}
	return err
}

// s2c handles one line of the server.
func (s *session) s2c(v *view, line []byte) error {
	if blank(line) {
		return nil
	}
	f, err := v.parse(line, codec.S2C)
	if err != nil {
		s.log.Warn("server sent what is not a valid frame", "error", err)
		s.keepBack(v, line)
		s.toClient.flush()
		return errServerFrame
	}
	if err := s.refresh(v); err != nil {
		return err
	}
	verdict, came, sent := recorder.Delivered, line, []byte(nil) // sent, if something else is on record
	switch {
	case f.Kind == codec.Response && !bytes.Equal(f.ID, []byte("null")):
		req, ok := s.fromClient.done(f.ID)
		if !ok { // cancelled, answered before, or asked by the broker
			verdict = recorder.Blocked
			break
		}
		s.note()
		if f.Result != nil {
			s.faces.see(s.server, req.method, f.Result)
			s.calls.round(req.call, f.Result)
		}
		// Whatever was asked: a client may have used its id twice.
		if f.Result != nil && v.terms.HidesTools() {
			out := v.place()
			var dropped int
			if *out, dropped = s.filterTools(*out, f, v.terms); dropped > 0 {
				verdict, sent = recorder.Edited, came
				line = bytes.Clone(*out)
				if f, err = v.parse(line, codec.S2C); err != nil {
					return fmt.Errorf("filter tools/list: %w", err)
				}
			}
		}
	case f.Kind == codec.Request:
		switch s.fromServer.add(f, "") {
		case full:
			s.log.Warn("server asks too much at once", "limit", s.fromServer.limit)
			no := &Refusal{Code: CodeLimit, Reason: fmt.Sprintf("refused: over %d requests in flight", s.fromServer.limit)}
			if err := s.toServer.queue(recorder.Answered, no.appendTo(nil, f.ID, s.id)); err != nil {
				return err
			}
			if err := s.toServer.flush(); err != nil {
				return err
			}
			verdict = recorder.Blocked
		case duplicate:
			s.log.Warn("server repeats the id of a request in flight")
			verdict = recorder.Blocked
		}
	case f.Kind != codec.Notification:
	case bytes.HasPrefix(f.Method, []byte(stream.UpstreamPrefix)): // the agent's
		return s.toClient.relay(line)
	case string(f.Method) == "notifications/cancelled":
		s.forget(&s.fromServer, f)
	case string(f.Method) == "notifications/progress":
		s.fromClient.progressed(codec.Member(f.Params, "progressToken"))
	case s.room.acknowledged(f): // by the room, before
		verdict = recorder.Blocked
	}
	var note *recorder.Note
	if m := v.observes(); m != nil && verdict != recorder.Blocked {
		out := v.place()
		var findings []codec.Finding
		*out, findings = m.Mask(*out, f)
		note = s.observeFound(v, findings)
		s.observed.frame()
	}
	if m := s.masks(v); m != nil {
		out := v.place()
		var findings []codec.Finding
		if *out, findings = m.Mask(*out, f); len(findings) > 0 {
			if sent = came; verdict != recorder.Blocked {
				verdict = recorder.Masked
			}
			if err := s.toClient.findings(findings); err != nil {
				return err
			}
		}
		*out = append(*out, '\n')
		line = (*out)[:len(*out)-1]
	}
	return s.toClient.queueChanged(sent, note, verdict, line)
}

// keepBack puts what is no frame on record, as far as the policy lets it be seen.
func (s *session) keepBack(v *view, line []byte) error {
	if err := s.refresh(v); err != nil {
		return err
	}
	m := s.masks(v)
	if m == nil { // nobody gets it: what is only observed needs not be there
		m = v.observes()
	}
	if m == nil {
		return s.toClient.queue(recorder.Blocked, line)
	}
	masked := m.MaskText(make([]byte, 0, len(line)+1), line)
	came := line
	if bytes.Equal(masked, line) {
		came = nil
	}
	return s.toClient.queueChanged(came, nil, recorder.Blocked, append(masked, '\n')[:len(masked)])
}

// filterTools appends an answer to tools/list to dst without what the policy refuses
// whatever the arguments, and says how many that are. With none, dst is of no use.
func (s *session) filterTools(dst []byte, f *codec.Frame, t *policy.Terms) ([]byte, int) {
	tools := codec.Member(f.Result, "tools")
	if len(tools) == 0 || tools[0] != '[' {
		return dst, 0
	}
	var name []byte
	out, dropped := codec.Filter(dst, f, tools, func(tool []byte) bool {
		if len(tool) == 0 || tool[0] != '{' {
			return true
		}
		raw := codec.Member(tool, "name")
		if len(raw) == 0 || raw[0] != '"' {
			return true
		}
		name = codec.Unquote(name[:0], raw)
		return !t.Hides(string(name))
	})
	if dropped > 0 {
		out = s.privately(out)
	}
	return out, dropped
}

// privately says of a list that is not everybody's that it must not be kept for
// others, nor for longer than the grant.
func (s *session) privately(line []byte) []byte {
	if scope := codec.Member(codec.Member(line, "result"), "cacheScope"); scope != nil {
		line = codec.Splice(nil, line, scope, []byte(`"private"`))
	}
	s.mu.Lock()
	use := s.use
	s.mu.Unlock()
	ttl := codec.Member(codec.Member(line, "result"), "ttlMs")
	if use == nil || ttl == nil {
		return line
	}
	left := max(time.Until(use.Until).Milliseconds(), 0)
	if n, err := strconv.ParseFloat(string(ttl), 64); err != nil || n > float64(left) {
		line = codec.Splice(nil, line, ttl, strconv.AppendInt(nil, left, 10))
	}
	return line
}

// blank reports a line that is no frame and harms nobody; it is left out.
func blank(line []byte) bool { return len(bytes.TrimSpace(line)) == 0 }
