package broker

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
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
	errAnswerCut    = &Refusal{Code: CodeServer, Reason: "the server's answer was cut, or is not a valid frame"}
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
	coming     []byte        // raw id of the request that the server's next line answers, if the agent has said so; of pumpS2C

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

// blank reports a line that is no frame and harms nobody; it is left out.
func blank(line []byte) bool { return len(bytes.TrimSpace(line)) == 0 }
