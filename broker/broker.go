package broker

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"example.com/broker/broker/agent"
	"example.com/broker/broker/grant"
	"example.com/broker/broker/identity"
	"example.com/broker/broker/oauth"
	"example.com/broker/broker/policy"
	"example.com/broker/broker/signin"
	"example.com/broker/codec"
	"example.com/broker/recorder"
	"example.com/broker/stream"
)

// A Server is where an MCP server is reached: through the agent of that name,
// or, if Agent is empty, through the agent in this process.
type Server struct {
	Agent string
}

// Limits bounds what clients may use. A zero field means its default.
type Limits struct {
	Frame       int           // largest frame, in bytes; 32 MiB
	Requests    int           // requests in flight, a session and direction; 1024
	Sessions    int           // sessions at once; 10,000
	PerIdentity int           // sessions of one subject at once; 64
	Handshake   time.Duration // for a TLS handshake, and for a server to be reached; 10 s
	Idle        time.Duration // without a frame; 8 h
}

// WithDefaults returns l with its zero fields filled in.
func (l Limits) WithDefaults() Limits {
	l.Frame = cmp.Or(l.Frame, 32<<20)
	l.Requests = cmp.Or(l.Requests, 1024)
	l.Sessions = cmp.Or(l.Sessions, 10_000)
	l.PerIdentity = cmp.Or(l.PerIdentity, 64)
	l.Handshake = cmp.Or(l.Handshake, 10*time.Second)
	l.Idle = cmp.Or(l.Idle, 8*time.Hour)
	return l
}

// Options is what a Broker is made of.
type Options struct {
	CA        *identity.CA     // issues certificates to agents, and knows them again
	Tokens    *identity.Tokens // agents join with
	Users     *identity.Verifier
	Policy    *policy.Policy
	Servers   map[string]Server
	Local     *agent.Agent // reaches the servers that have no agent of their own; may be nil
	Log       *recorder.Log
	Desk      *grant.Desk             // where one asks for access; if nil, what needs an approval is refused
	Sealer    *identity.Sealer        // of what clients carry for the broker
	URL       string                  // of the broker's pages, without a slash at the end
	SignIn    *signin.Service         // may be nil: then certificates alone prove who somebody is
	Slack     http.Handler            // takes presses of buttons; may be nil
	OAuth     *oauth.Server           // gives clients by URL their tokens, and knows them; may be nil
	HTTP      stream.HTTPOptions      // of clients by URL
	Google    *identity.Attestor      // of agents on GCP; may be nil
	Instances []identity.GoogleAgents // which may join
	Limits    Limits
	Tunnel    stream.TunnelOptions
	Logger    *slog.Logger // if nil, nothing is logged
}

// A Broker runs sessions. Its methods may be called by several goroutines.
type Broker struct {
	o        Options
	log      *slog.Logger
	policy   atomic.Pointer[policy.Policy]
	users    atomic.Pointer[identity.Verifier]
	auditors atomic.Pointer[policy.Approvers] // who reads recordings; nil: nobody
	agents   *agents
	faces    faces
	edge     *stream.HTTP

	mu       sync.Mutex
	draining bool
	sessions map[*admission]context.CancelCauseFunc
	subjects map[string]int // sessions by subject
	empty    chan struct{}  // closed when draining and no session is left
}

// New returns a Broker.
func New(o Options) *Broker {
	o.Limits = o.Limits.WithDefaults()
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	b := &Broker{
		o: o, log: o.Logger,
		agents:   newAgents(o),
		sessions: map[*admission]context.CancelCauseFunc{},
		subjects: map[string]int{},
		empty:    make(chan struct{}),
	}
	o.HTTP.Body = cmp.Or(o.HTTP.Body, o.Limits.Frame)
	o.HTTP.Log = o.Logger
	b.edge = stream.NewHTTP(o.HTTP)
	b.policy.Store(o.Policy)
	b.users.Store(o.Users)
	return b
}

// SetPolicy puts p in force, for the next frame of running sessions too.
func (b *Broker) SetPolicy(p *policy.Policy) { b.policy.Store(p) }

// Lifetime returns how long a certificate lasts that id gets by signing in.
func (b *Broker) Lifetime(id identity.Identity) time.Duration { return b.policy.Load().Lifetime(id) }

// SetUsers makes v decide on the certificates of clients. Sessions and tunnels
// whose certificate no longer counts end.
func (b *Broker) SetUsers(v *identity.Verifier) {
	b.users.Store(v)
	b.mu.Lock()
	for a, cancel := range b.sessions {
		if a.chain == nil { // proven by a token
			continue
		}
		if _, err := v.Verify(a.chain, time.Now()); err != nil {
			cancel(errUntrusted)
		}
	}
	b.mu.Unlock()
	b.agents.endUntrusted()
}

// Handlers returns what serves the connections of a stream.Listener.
func (b *Broker) Handlers() stream.Handlers {
	return stream.Handlers{Session: b.serveStream, Agent: b.agents.serve, HTTP: b.http()}
}

// Health returns nil if the broker can take sessions, or why not.
func (b *Broker) Health() error {
	b.mu.Lock()
	draining := b.draining
	b.mu.Unlock()
	if draining {
		return ErrDraining
	}
	return b.o.Log.Ready()
}

// Sessions counts the sessions that run.
func (b *Broker) Sessions() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.sessions)
}

// Drain refuses new sessions, waits until the running ones have ended or ctx
// is done, and ends those that are left.
func (b *Broker) Drain(ctx context.Context) {
	b.mu.Lock()
	if !b.draining {
		b.draining = true
		if len(b.sessions) == 0 {
			close(b.empty)
		}
	}
	b.mu.Unlock()
	select {
	case <-b.empty:
		return
	case <-ctx.Done():
	}
	b.mu.Lock()
	for _, cancel := range b.sessions {
		cancel(ErrDraining)
	}
	b.mu.Unlock()
	<-b.empty
}

// EndDisabled ends the sessions and tunnels of those who are disabled.
func (b *Broker) EndDisabled() {
	b.mu.Lock()
	for a, cancel := range b.sessions {
		if b.o.Desk.IsDisabled(a.identity.Subject, a.serial) {
			cancel(errDisabled)
		}
	}
	b.mu.Unlock()
	b.agents.endDisabled()
}

// An admission is a client whose identity is proven.
type admission struct {
	identity identity.Identity
	chain    []*x509.Certificate // that proved it; nil: a token did
	serial   string              // of its certificate, in hex
	until    time.Time           // the identity is proven
	server   string
	policy   *policy.Policy // that says the terms
	terms    *policy.Terms
	use      *grant.Use // of the grant, where the terms need one; nil: it waits for one
}

// admit decides on a client that has connected, and counts it in. What it
// returns beside a refusal is what is known of the client, if anything.
func (b *Broker) admit(c *client, cancel context.CancelCauseFunc) (*admission, error) {
	a := &admission{}
	if err := c.prove(a); err != nil {
		return nil, err
	}
	if err := b.enter(a, cancel); err != nil { // who is refused takes room, too
		return a, err
	}
	return a, b.judge(a)
}

// A client is a connection and how it is proven whose it is, which may change
// while it lasts.
type client struct {
	stream.Conn
	peer  stream.Peer
	prove func(a *admission) error
	web   *stream.HTTPConn // the Conn, if clients come by HTTP
}

// identify finds out by its certificates whose connection it is.
func (b *Broker) identify(a *admission, p stream.Peer) (err error) {
	a.identity, err = b.users.Load().Verify(p.Certificates, time.Now())
	if err != nil {
		return &Refusal{Code: CodeNotSignedIn, Reason: "not signed in: " + err.Error()}
	}
	a.chain = p.Certificates
	a.serial, a.until = p.Certificates[0].SerialNumber.Text(16), p.Certificates[0].NotAfter
	if b.o.Desk != nil && b.o.Desk.IsDisabled(a.identity.Subject, a.serial) {
		return errDisabled
	}
	a.server, _, _ = strings.Cut(p.ServerName, ".")
	return nil
}

// judge decides on what a may use.
func (b *Broker) judge(a *admission) error {
	if a.server == "" {
		return &Refusal{Code: CodeDenied, Reason: "no server is named; the first label of the SNI name is the server"}
	}
	a.policy = b.policy.Load()
	a.terms = a.policy.Decide(a.identity, a.server)
	if r := ofTerms(a.terms, a.identity.Subject, a.server); r != nil && r.Code != CodeApproval {
		return r
	}
	if _, ok := b.o.Servers[a.server]; !ok { // only who may use it learns that it is not there
		return &Refusal{Code: CodeServer, Rule: a.terms.Rule, Reason: fmt.Sprintf("the broker has no server %q", a.server)}
	}
	if a.terms.Access != policy.Approval {
		return nil
	}
	if b.o.Desk != nil {
		if a.use = b.o.Desk.Find(a.identity.Subject, a.server, a.terms.Rule, ""); a.use != nil || !a.terms.Asking().NoRoom {
			return nil
		}
	}
	return b.needsApproval(a)
}

// needsApproval is the refusal of who has no grant.
func (b *Broker) needsApproval(a *admission) *Refusal {
	r := ofTerms(a.terms, a.identity.Subject, a.server)
	if b.o.Desk != nil {
		r.URL = b.o.URL + "/access/" + a.server
		r.Reason += "; ask for one at " + r.URL
	}
	return r
}

// enter counts a session in.
func (b *Broker) enter(a *admission, cancel context.CancelCauseFunc) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.draining:
		return ErrDraining
	case len(b.sessions) >= b.o.Limits.Sessions:
		return &Refusal{Code: CodeLimit, Reason: "the broker has as many sessions as it may; try again later"}
	case b.subjects[a.identity.Subject] >= b.o.Limits.PerIdentity:
		return &Refusal{Code: CodeLimit, Reason: fmt.Sprintf("%s has %d sessions, as many as one may; close some", a.identity.Subject, b.o.Limits.PerIdentity)}
	}
	b.sessions[a] = cancel
	b.subjects[a.identity.Subject]++
	return nil
}

// leave counts a session out, if it was in.
func (b *Broker) leave(a *admission) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, ok := b.sessions[a]; !ok {
		return
	}
	delete(b.sessions, a)
	if b.subjects[a.identity.Subject]--; b.subjects[a.identity.Subject] == 0 {
		delete(b.subjects, a.identity.Subject)
	}
	if b.draining && len(b.sessions) == 0 {
		close(b.empty)
	}
}

// A lineReader is a reader of which the first line has been read ahead.
type lineReader struct {
	*codec.Reader
	line   []byte
	err    error
	peeked bool
}

// peek waits for the first line.
func (r *lineReader) peek() {
	r.line, r.err = r.Reader.Next()
	r.peeked = true
}

func (r *lineReader) Next() ([]byte, error) {
	if r.peeked {
		r.peeked = false
		return r.line, r.err
	}
	return r.Reader.Next()
}

// serveStream serves a raw stream.
func (b *Broker) serveStream(ctx context.Context, c stream.Conn, p stream.Peer) {
	b.serve(ctx, &client{Conn: c, peer: p, prove: func(a *admission) error { return b.identify(a, p) }})
}

// serve serves a client.
//
// Sessions wait in run, thousands of them at once. What is needed only before and
// after that is in functions of its own, so that it takes no room on their stacks
// meanwhile.
func (b *Broker) serve(ctx context.Context, c *client) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if s := b.begin(ctx, cancel, c); s != nil {
		b.finish(ctx, s, s.run(ctx, cancel))
	}
}

// begin admits a client and opens its session, or turns it away and returns nil.
func (b *Broker) begin(ctx context.Context, cancel context.CancelCauseFunc, c *client) (s *session) {
	log := b.log.With("client", c.peer.Addr.String())
	a, err := b.admit(c, cancel)
	if a != nil {
		log = log.With("subject", a.identity.Subject, "server", a.server)
	}
	if err != nil {
		r := &lineReader{Reader: codec.NewReader(c.Conn, codec.Limits{Frame: min(turnedAwayFrame, b.o.Limits.Frame)})}
		b.turnAway(ctx, a, c, r, err, log)
	} else {
		s = b.receive(ctx, cancel, c, a, log)
	}
	if s == nil && a != nil {
		b.leave(a)
	}
	return s
}

// receive opens the session of a client that has been admitted, or turns it away
// and returns nil. Nothing is started or recorded before its first line has come:
// some clients connect only to look.
func (b *Broker) receive(ctx context.Context, cancel context.CancelCauseFunc, c *client, a *admission, log *slog.Logger) *session {
	r := &lineReader{Reader: codec.NewReader(c.Conn, codec.Limits{Frame: b.o.Limits.Frame})}
	stop := context.AfterFunc(ctx, func() { c.SetReadDeadline(time.Unix(1, 0)) })
	c.SetReadDeadline(time.Now().Add(b.o.Limits.Idle))
	r.peek()
	c.SetReadDeadline(time.Time{})
	if !stop() { // the broker shuts down
		return nil
	}
	if r.err != nil && tooLargeIn(r.err) == nil { // not one whole line
		return nil
	}
	// The client may have taken its time. What is known of it stays: others read it.
	err := c.prove(&admission{})
	if err == nil {
		err = b.judge(a)
	}
	if err != nil {
		b.turnAway(ctx, a, c, r, err, log)
		return nil
	}

	p := c.peer
	record := recorder.Session{
		ID: recorder.NewID(), Start: time.Now(),
		Subject: a.identity.Subject, Groups: a.identity.Groups,
		Server: a.server, Rule: a.terms.Rule, Access: a.terms.Access.String(), Keep: int64(a.terms.Keep / time.Second), Agent: b.o.Servers[a.server].Agent,
		Transport: p.Transport, Client: p.Addr.String(),
	}
	log = log.With("session", record.ID)
	rec, err := b.o.Log.Start(record)
	if err != nil {
		log.Error("session refused: the recorder is not available", "error", err)
		b.turnAway(ctx, nil, c, r, err, log)
		return nil
	}
	if c.web != nil {
		c.web.SetRecord(b.record(record.ID, rec))
	}
	inTime := endInTime(c, a, cancel)
	s := b.newSession(record.ID, a, c, r, recorded(rec), log)
	s.left = func() { inTime(); b.leave(a) }
	if a.terms.Access == policy.Approval && a.use == nil {
		log.Info("session waits for an approval", "rule", a.terms.Rule, "transport", p.Transport)
		s.room = newRoom(s, a.terms)
		return s
	}
	if err := s.reach(ctx, a.use); err != nil {
		log.Warn("session refused: server not reached", "error", err)
		refusal := refusalOf(err)
		b.answerAll(ctx, c, r, rec, record.ID, refusal)
		rec.End("refused", refusal.Reason)
		inTime()
		return nil
	}
	log.Info("session opened", "rule", a.terms.Rule, "transport", p.Transport)
	return s
}

// endInTime ends a session when its identity is no longer proven, or when the time is
// over that its rule gives it.
func endInTime(c *client, a *admission, cancel context.CancelCauseFunc) (stop func()) {
	unwatch := endWithIdentity(c, a, cancel)
	if a.terms.Access != policy.Allow || a.terms.Duration <= 0 {
		return unwatch
	}
	timer := time.AfterFunc(a.terms.Duration, func() { cancel(ErrGrantEnded) })
	return func() { timer.Stop(); unwatch() }
}

// finish puts on record how a session has ended.
func (b *Broker) finish(ctx context.Context, s *session, err error) {
	defer s.left()
	b.recordObserved(ctx, s)
	reason := "closed"
	if err != nil {
		reason = err.Error()
		var refusal *Refusal
		if errors.As(err, &refusal) {
			reason = refusal.Reason
		}
	}
	if err := s.toClient.rec.End("ended", reason); err != nil {
		s.log.Error("the end of the session is not on record", "error", err)
	}
	s.log.Info("session ended", "reason", reason)
}

func (b *Broker) newSession(id string, a *admission, c *client, in *lineReader, rec Recording, log *slog.Logger) *session {
	s := &session{
		id: id, identity: a.identity, server: a.server, rule: a.terms.Rule,
		policy: &b.policy, desk: b.o.Desk, sealer: b.o.Sealer, url: b.o.URL, faces: &b.faces,
		idle: b.o.Limits.Idle, limits: codec.Limits{Frame: b.o.Limits.Frame, Held: min(b.o.Limits.Frame, heldFrame)}, handshake: b.o.Limits.Handshake, log: log,
		began:      time.Now(),
		client:     c.Conn,
		in:         in,
		decided:    a.policy,
		terms:      a.terms,
		toClient:   lane{direction: codec.S2C, rec: rec, originals: b.o.Log.KeepsOriginals(), w: c.Conn, gone: errClientGone},
		toServer:   lane{direction: codec.C2S, rec: rec, originals: b.o.Log.KeepsOriginals(), gone: errServerInput},
		fromClient: ledger{limit: b.o.Limits.Requests},
		fromServer: ledger{limit: b.o.Limits.Requests},
		answered:   make(chan struct{}, 1),
	}
	if addr, err := netip.ParseAddrPort(c.peer.Addr.String()); err == nil {
		s.source = addr.Addr()
	}
	s.open = func(ctx context.Context) (agent.Conn, error) {
		return b.open(ctx, agent.Session{ID: id, Server: a.server, Subject: a.identity.Subject, Groups: a.identity.Groups, Rule: a.terms.Rule})
	}
	return s
}

// open reaches the server, through whichever agent has it.
func (b *Broker) open(ctx context.Context, s agent.Session) (agent.Conn, error) {
	if name := b.o.Servers[s.Server].Agent; name != "" {
		return b.agents.open(ctx, name, s)
	}
	if b.o.Local == nil {
		return nil, &Refusal{Code: CodeServer, Reason: fmt.Sprintf("the broker has no agent for server %q", s.Server)}
	}
	ctx, cancel := context.WithTimeout(ctx, b.o.Limits.Handshake)
	defer cancel()
	return b.o.Local.Open(ctx, s)
}

// turnAway answers a client that is not let in. A client whose identity is
// proven leaves a record.
func (b *Broker) turnAway(ctx context.Context, a *admission, c *client, r *lineReader, err error, log *slog.Logger) {
	refusal, p := refusalOf(err), c.peer
	if c.web != nil && (refusal.Code == CodeNotSignedIn || refusal.Code == CodeDenied) {
		c.web.SetStatus(refusal.Code)
	}
	log.Info("session refused", "code", refusal.Code, "reason", refusal.Reason, "rule", refusal.Rule)
	if a == nil || refusal.Code == CodeUnavailable || refusal.Code == CodeLimit {
		b.answerAll(ctx, c, r, unrecorded{}, "", refusal)
		return
	}
	if !r.peeked {
		c.SetReadDeadline(time.Now().Add(b.o.Limits.Handshake))
		stop := context.AfterFunc(ctx, func() { c.SetReadDeadline(time.Unix(1, 0)) })
		r.peek()
		if stop(); r.err != nil && tooLargeIn(r.err) == nil {
			return
		}
	}
	s := recorder.Session{
		ID: recorder.NewID(), Start: time.Now(),
		Subject: a.identity.Subject, Groups: a.identity.Groups,
		Server: a.server, Rule: refusal.Rule, Transport: p.Transport, Client: p.Addr.String(),
	}
	rec, err := b.o.Log.Start(s)
	if err != nil {
		log.Error("a refused session is not on record", "error", err)
		b.answerAll(ctx, c, r, unrecorded{}, "", refusal)
		return
	}
	b.answerAll(ctx, c, r, rec, s.ID, refusal)
	rec.End("refused", refusal.Reason)
}

// turnedAwayFrames is how many frames a refused client may send. Clients try
// server/discover and then initialize on one connection, and show the answer
// to the second; more they need not.
const turnedAwayFrames = 16

// turnedAwayFrame bounds their frames, in bytes: who is not let in shall not
// fill the memory.
const turnedAwayFrame = 64 << 10

// heldFrame is how long a server's frame may be before a session asks whether it
// may pass while it arrives, in bytes.
const heldFrame = 128 << 10

// answerAll answers every request with refusal, for a moment and a few frames.
func (b *Broker) answerAll(ctx context.Context, c *client, r *lineReader, rec Recording, session string, refusal *Refusal) {
	c.SetDeadline(time.Now().Add(b.o.Limits.Handshake))
	stop := context.AfterFunc(ctx, func() { c.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	toServer := lane{direction: codec.C2S, rec: rec, w: io.Discard}
	toClient := lane{direction: codec.S2C, rec: rec, w: c.Conn, gone: errClientGone}
	var p codec.Parser
	for range turnedAwayFrames {
		line, err := r.Next()
		if c.web != nil && err == nil { // the next request is judged anew
			c.web.CloseInput()
		}
		var bad *codec.Error
		var id []byte
		switch {
		case errors.As(err, &bad):
			id = bad.ID
		case err != nil:
			return
		case blank(line):
			continue
		default:
			if toServer.queue(recorder.Blocked, line) != nil || toServer.flush() != nil {
				return
			}
			f, err := p.Parse(line, codec.C2S)
			switch {
			case errors.As(err, &bad):
				id = bad.ID
			case f.Kind != codec.Request:
				continue
			default:
				id = f.ID
			}
		}
		if toClient.queue(recorder.Answered, refusal.appendTo(nil, id, session)) != nil || toClient.flush() != nil {
			return
		}
	}
}

// unrecorded is the recording of whoever must not leave one: the log is for
// those whose identity is proven.
type unrecorded struct{}

func (unrecorded) Append(...recorder.Frame) error { return nil }
func (unrecorded) End(string, string) error       { return nil }
