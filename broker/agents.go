package broker

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"example.com/broker/broker/agent"
	"example.com/broker/broker/grant"
	"example.com/broker/broker/identity"
	"example.com/broker/stream"
)

// agentCertificate is the life of an agent's certificate. The agent renews it
// when two thirds are over; a broker or an agent that was down over a long
// weekend shall not need a new token.
const agentCertificate = 7 * 24 * time.Hour

// agents is the registry of connected agents.
type agents struct {
	ca        *identity.CA
	desk      *grant.Desk
	tokens    *identity.Tokens
	google    *identity.Attestor
	instances []identity.GoogleAgents
	handshake time.Duration
	tunnel    stream.TunnelOptions
	log       *slog.Logger

	mu     sync.Mutex
	linked map[string]*linked // by name
}

// linked is an agent with at least one tunnel. Its tunnels end with its certificate.
type linked struct {
	tunnels []*tunnel
	until   time.Time
	expiry  *time.Timer
}

type tunnel struct {
	*stream.Tunnel
	servers []string
	cert    *x509.Certificate // the agent's
	serial  string            // its serial, in hex
}

func newAgents(o Options) *agents {
	a := &agents{
		ca: o.CA, desk: o.Desk, tokens: o.Tokens, google: o.Google, instances: o.Instances,
		handshake: o.Limits.Handshake, tunnel: o.Tunnel,
		log: o.Logger, linked: map[string]*linked{},
	}
	return a
}

// serve serves a connection with ALPN mcp-agent/1.
func (a *agents) serve(ctx context.Context, c stream.Conn, p stream.Peer) {
	log := a.log.With("client", p.Addr.String())
	c.SetDeadline(time.Now().Add(a.handshake))
	req, err := agent.ReadRequest(c)
	if err != nil {
		log.Info("agent refused", "error", err)
		return
	}
	switch req.Method {
	case agent.MethodJoin:
		a.join(ctx, req, log)
	case agent.MethodHello:
		name, err := identity.NewVerifier(a.ca.Certificates()...).VerifyAgent(p.Certificates, time.Now())
		if err != nil {
			log.Warn("agent refused", "error", err)
			code := CodeNotSignedIn
			if errors.Is(err, identity.ErrNotYetValid) { // it may try again: a clock can be set right
				code = CodeUnavailable
			}
			req.Refuse(&agent.Error{Code: code, Message: err.Error()})
			return
		}
		if serial := p.Certificates[0].SerialNumber.Text(16); a.disabled(name, serial) {
			log.Warn("agent refused", "agent", name, "error", errAgentDisabled)
			req.Refuse(errAgentDisabled)
			return
		}
		a.hello(ctx, req, name, p.Certificates[0], log.With("agent", name))
	default:
		req.Refuse(&agent.Error{Code: -32601, Message: "no method " + req.Method})
	}
}

var errAgentDisabled = &agent.Error{Code: CodeNotSignedIn, Message: "this agent has been disabled"}

func (a *agents) disabled(name, serial string) bool {
	return a.desk != nil && a.desk.IsAgentDisabled(name, serial)
}

// endDisabled ends the tunnels of agents that are disabled.
func (a *agents) endDisabled() {
	a.end(func(name string, t *tunnel) bool { return a.disabled(name, t.serial) })
}

// endUntrusted ends the tunnels whose certificate a CA issued that is no longer
// the broker's. An agent that has renewed comes back with its new one.
func (a *agents) endUntrusted() {
	if a.ca == nil {
		return
	}
	v := identity.NewVerifier(a.ca.Certificates()...)
	a.end(func(_ string, t *tunnel) bool {
		// Not whether it has expired: a tunnel outlives the certificate that it began with.
		_, err := v.VerifyAgent([]*x509.Certificate{t.cert}, t.cert.NotBefore)
		return err != nil
	})
}

// end ends the tunnels that over says.
func (a *agents) end(over func(name string, t *tunnel) bool) {
	var end []*tunnel
	a.mu.Lock()
	for name, l := range a.linked {
		for _, t := range l.tunnels {
			if over(name, t) {
				end = append(end, t)
			}
		}
	}
	a.mu.Unlock()
	for _, t := range end {
		t.Close()
	}
}

func (a *agents) join(ctx context.Context, req *agent.Request, log *slog.Logger) {
	var join agent.Join
	if err := req.Decode(&join); err != nil {
		req.Refuse(err)
		return
	}
	log = log.With("agent", short(join.Name))
	// The request is looked at before the token is spent.
	csr, err := parseCSR(join.CSR)
	if err != nil {
		req.Refuse(err)
		return
	}
	if a.disabled(join.Name, "") {
		log.Warn("agent refused", "error", errAgentDisabled)
		req.Refuse(errAgentDisabled)
		return
	}
	if join.GCP != "" {
		err = a.attest(ctx, join, csr, log)
	} else {
		err = a.tokens.Redeem(join.Token, join.Name)
	}
	if err != nil {
		log.Warn("agent refused", "error", err)
		req.Refuse(&agent.Error{Code: CodeNotSignedIn, Message: err.Error()})
		return
	}
	issued, until, err := a.issue(ctx, join.Name, csr)
	if err != nil {
		log.Error("certificate cannot be issued", "error", err)
		req.Refuse(&agent.Error{Code: 400, Message: "the certificate cannot be issued"})
		return
	}
	log.Info("agent joined", "certificate_until", until)
	req.Answer(issued)
}

var errInstance = errors.New("this instance may not join as this agent: see agents.gcp in the broker's configuration")

// attest checks the identity token of an instance on GCP. It has to be for this
// broker, this agent and this key.
func (a *agents) attest(ctx context.Context, join agent.Join, csr *x509.CertificateRequest, log *slog.Logger) error {
	if a.google == nil {
		return errInstance
	}
	var at identity.Attested
	var err error
	for _, pin := range a.ca.Pins() {
		var audience string
		if audience, err = agent.Audience(pin, join.Name, csr.PublicKey); err != nil {
			return errInstance
		}
		if at, err = a.google.Verify(ctx, join.GCP, audience); err == nil {
			break
		}
	}
	if err != nil {
		var e *identity.SignInError
		if errors.As(err, &e) && e.Err != nil {
			log.Warn("an instance's token is not valid", "error", e.Err)
		}
		return err
	}
	for _, allowed := range a.instances {
		if allowed.Admit(join.Name, at) {
			log.Info("instance attested", "project", at.Project, "zone", at.Zone, "instance", at.Instance, "account", at.Email)
			return nil
		}
	}
	log.Warn("instance may not join", "project", at.Project, "zone", at.Zone, "instance", at.Instance, "account", at.Email)
	return errInstance
}

func parseCSR(text string) (*x509.CertificateRequest, error) {
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		return nil, &agent.Error{Code: 400, Message: "csr is not PEM"}
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err == nil {
		err = csr.CheckSignature()
	}
	if err != nil {
		return nil, &agent.Error{Code: 400, Message: "csr is not valid"}
	}
	return csr, nil
}

func (a *agents) issue(ctx context.Context, name string, csr *x509.CertificateRequest) (agent.Issued, time.Time, error) {
	der, err := a.ca.IssueAgent(name, csr.PublicKey, agentCertificate)
	if err != nil {
		return agent.Issued{}, time.Time{}, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return agent.Issued{}, time.Time{}, err
	}
	if a.desk != nil {
		if err := a.desk.Record(ctx, grant.Event{
			Type: grant.Issued, Subject: name,
			Detail: map[string]string{"kind": grant.Agent, "serial": leaf.SerialNumber.Text(16), "until": leaf.NotAfter.UTC().Format(time.RFC3339)},
		}); err != nil {
			return agent.Issued{}, time.Time{}, err
		}
	}
	return agent.Issued{Certificate: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), CA: string(a.ca.Roots())}, leaf.NotAfter, nil
}

// hello keeps one tunnel of the agent until it ends.
func (a *agents) hello(ctx context.Context, req *agent.Request, name string, cert *x509.Certificate, log *slog.Logger) {
	var hello agent.Hello
	if err := req.Decode(&hello); err != nil {
		req.Refuse(err)
		return
	}
	if err := req.Answer(struct{}{}); err != nil {
		return
	}
	req.Conn.SetDeadline(time.Time{})
	yt, err := stream.ServerTunnel(req.Conn, a.tunnel)
	if err != nil {
		log.Warn("tunnel cannot be made", "error", err)
		return
	}
	stop := context.AfterFunc(ctx, func() { yt.Close() })
	defer stop()
	defer yt.Close()
	t := &tunnel{yt, hello.Servers, cert, cert.SerialNumber.Text(16)}
	a.add(name, t, cert.NotAfter)
	if a.disabled(name, t.serial) { // meanwhile
		t.Close()
	}
	log.Info("tunnel is up", "servers", hello.Servers)

	var requests sync.WaitGroup
	for {
		c, err := t.Accept()
		if err != nil {
			break
		}
		requests.Go(func() { a.request(ctx, c, name, log) })
	}
	a.remove(name, t)
	requests.Wait()
	log.Info("tunnel is down")
}

func (a *agents) add(name string, t *tunnel, until time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	l := a.linked[name]
	if l == nil {
		l = &linked{until: until}
		l.expiry = time.AfterFunc(time.Until(until), func() { a.expire(name, l) })
		a.linked[name] = l
	}
	l.tunnels = append(l.tunnels, t)
	l.extend(until)
}

// extend is called with the registry's lock held.
func (l *linked) extend(until time.Time) {
	if until.After(l.until) {
		l.until = until
		l.expiry.Reset(time.Until(until))
	}
}

// expire ends the tunnels of an agent that has not renewed its certificate.
func (a *agents) expire(name string, l *linked) {
	a.mu.Lock()
	tunnels := slices.Clone(l.tunnels)
	late := time.Now().Before(l.until)
	if late { // renewed while the timer fired, or the clock was put back
		l.expiry.Reset(time.Until(l.until))
	}
	a.mu.Unlock()
	if late {
		return
	}
	a.log.Warn("agent's certificate has expired", "agent", name)
	for _, t := range tunnels {
		t.Close()
	}
}

func (a *agents) remove(name string, t *tunnel) {
	a.mu.Lock()
	defer a.mu.Unlock()
	l := a.linked[name]
	l.tunnels = slices.DeleteFunc(l.tunnels, func(other *tunnel) bool { return other == t })
	if len(l.tunnels) == 0 {
		l.expiry.Stop()
		delete(a.linked, name)
	}
}

// request answers a stream that the agent has opened.
func (a *agents) request(ctx context.Context, c stream.Conn, name string, log *slog.Logger) {
	defer c.Close()
	c.SetDeadline(time.Now().Add(a.handshake))
	req, err := agent.ReadRequest(c)
	if err != nil {
		return
	}
	switch req.Method {
	case agent.MethodRenew:
		a.renew(ctx, req, name, log)
	case agent.MethodUsed:
		a.used(ctx, req, name, log)
	default:
		req.Refuse(&agent.Error{Code: -32601, Message: "no method " + req.Method})
	}
}

// used puts on record that a session has used a credential, as the agent says.
func (a *agents) used(ctx context.Context, req *agent.Request, name string, log *slog.Logger) {
	var u agent.Used
	if err := req.Decode(&u); err != nil {
		req.Refuse(err)
		return
	}
	if a.desk != nil {
		if err := a.desk.Record(ctx, UsedEvent(name, u)); err != nil {
			log.Error("the use of a credential is not on record", "session", short(u.Session), "error", err)
			req.Refuse(&agent.Error{Code: CodeUnavailable, Message: "it cannot be put on record now"})
			return
		}
	}
	req.Answer(struct{}{})
}

// UsedEvent says that an agent has used a credential for a session. The agent in
// the broker's own process has no name.
func UsedEvent(agent string, u agent.Used) grant.Event {
	e := grant.Event{Type: grant.CredentialUsed, Actor: agent, Server: short(u.Server), Session: short(u.Session), Detail: map[string]string{"kind": short(u.Kind)}}
	for key, value := range map[string]string{"principal": u.Principal, "scopes": strings.Join(u.Scopes, " "), "audience": u.Audience} {
		if value != "" {
			e.Detail[key] = value[:min(len(value), 2048)]
		}
	}
	if !u.Until.IsZero() {
		e.Detail["until"] = u.Until.UTC().Format(time.RFC3339)
	}
	return e
}

// renew gives an agent a new certificate.
func (a *agents) renew(ctx context.Context, req *agent.Request, name string, log *slog.Logger) {
	var renew agent.Renew
	if err := req.Decode(&renew); err != nil {
		req.Refuse(err)
		return
	}
	csr, err := parseCSR(renew.CSR)
	if err != nil {
		req.Refuse(err)
		return
	}
	issued, until, err := a.issue(ctx, name, csr)
	if err != nil {
		log.Error("certificate cannot be renewed", "error", err)
		req.Refuse(&agent.Error{Code: 400, Message: "the certificate cannot be issued"})
		return
	}
	a.mu.Lock()
	if l := a.linked[name]; l != nil {
		l.extend(until)
	}
	a.mu.Unlock()
	log.Info("agent's certificate renewed", "until", until)
	req.Answer(issued)
}

// pick returns the tunnel of the agent that carries the fewest streams.
func (a *agents) pick(name, server string) (*tunnel, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	l := a.linked[name]
	if l == nil {
		return nil, &Refusal{Code: CodeUnavailable, Reason: fmt.Sprintf("agent %q is not connected; try again later", name)}
	}
	var best *tunnel
	for _, t := range l.tunnels {
		if slices.Contains(t.servers, server) && (best == nil || t.Streams() < best.Streams()) {
			best = t
		}
	}
	if best == nil {
		return nil, &Refusal{Code: CodeServer, Reason: fmt.Sprintf("agent %q has no server %q", name, server)}
	}
	return best, nil
}

// open opens a session through the agent.
func (a *agents) open(ctx context.Context, name string, s agent.Session) (agent.Conn, error) {
	t, err := a.pick(name, s.Server)
	if err != nil {
		return nil, err
	}
	opening, cancel := context.WithTimeout(ctx, a.handshake)
	defer cancel()
	c, err := t.Open(opening)
	if err != nil {
		return nil, &Refusal{Code: CodeUnavailable, Reason: fmt.Sprintf("agent %q does not answer; try again", name)}
	}
	conn, err := agent.Call(opening, c, agent.MethodSessionOpen, s, nil)
	if err != nil {
		c.Close()
		var refusal *agent.Error
		if errors.As(err, &refusal) {
			return nil, refusal
		}
		// The agent may still reach the server, after we have gone.
		cctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), a.handshake)
		defer cancel()
		agent.CloseSession(cctx, t.Tunnel, s.ID)
		a.log.Warn("agent does not open a session", "agent", name, "session", s.ID, "error", err)
		return nil, &Refusal{Code: CodeUnavailable, Reason: fmt.Sprintf("agent %q does not answer; try again", name)}
	}
	return &remoteConn{Conn: conn, ctx: context.WithoutCancel(ctx), tunnel: t, id: s.ID, timeout: a.handshake}, nil
}

var errTunnelLost = &Refusal{Code: CodeUnavailable, Reason: "the connection to the agent is lost; connect again"}

// A remoteConn is a session's stream to its agent.
type remoteConn struct {
	stream.Conn
	ctx     context.Context // never done
	tunnel  *tunnel
	id      string
	timeout time.Duration
	ended   atomic.Bool // the server has ended its output
	closing sync.Once
}

func (c *remoteConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if err == nil {
		return n, nil
	}
	select {
	case <-c.tunnel.Done(): // a stream that its tunnel took along ends in io.EOF, too
		return n, errTunnelLost
	default:
	}
	if err == io.EOF {
		c.ended.Store(true)
	}
	return n, err
}

// Close ends the session at the agent, too: to the agent's end of the stream it
// would look like the end of the client's input only.
func (c *remoteConn) Close() (err error) {
	c.closing.Do(func() {
		if !c.ended.Load() {
			ctx, cancel := context.WithTimeout(c.ctx, c.timeout)
			defer cancel()
			agent.CloseSession(ctx, c.tunnel.Tunnel, c.id)
		}
		err = c.Conn.Close()
	})
	return err
}
