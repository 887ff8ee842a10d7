// Package signin is how people and programs prove who they are to the broker,
// over HTTPS, and what they get for it.
//
// A browser goes to /login, from there to the company's identity provider, and
// comes back with an answer that an [identity.Provider] reads. What follows is a
// visit (a cookie, for the broker's pages), or a one-time code that goes to a
// loopback port: broker login trades it, with the verifier that only it knows,
// for a client certificate. Who has no browser on that machine confirms a short
// code in another one (the shape of RFC 8628). Programs trade the token that
// their platform gives them (package identity's Workloads).
//
//	s := signin.New(signin.Options{Providers: providers, CA: ca, Desk: desk, …})
//	mux.Handle("/login", s) // and the other Paths
//	id, err := s.Who(r)
//
// Sign-ins under way, codes and visits are in memory: a broker that starts again
// asks people to sign in again. Certificates go on.
package signin

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"embed"
	"encoding/base64"
	"errors"
	"html/template"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"golang.org/x/oauth2"
	"golang.org/x/time/rate"

	"example.com/broker/broker/grant"
	"example.com/broker/broker/identity"
	"example.com/broker/broker/shortlived"
)

// A Provider is one that people may sign in with.
type Provider struct {
	Name  string // a label: part of the callback's path
	Title string // for people
	identity.Provider
}

// Options is what a Service is made of.
type Options struct {
	Providers []Provider
	Workloads *identity.Workloads // may be nil
	CA        Issuer
	Desk      *grant.Desk // keeps what happens on record, and knows who is disabled
	URL       string      // of the broker, without a slash at the end
	// Lifetime is that of an identity's certificate, and of a visit.
	Lifetime func(identity.Identity) time.Duration
	Log      *slog.Logger
}

// An Issuer issues client certificates.
type Issuer interface {
	IssueUser(id identity.Identity, pub crypto.PublicKey, life time.Duration) (der []byte, err error)
	Roots() []byte // the certificates that prove the broker, in PEM
}

// Service is the sign-in. It may be used by several goroutines.
type Service struct {
	o       Options
	mux     *http.ServeMux
	flows   shortlived.Table[flow]   // by state
	passes  shortlived.Table[pass]   // by code
	visits  shortlived.Table[visit]  // by cookie
	devices shortlived.Table[device] // by device code
	users   shortlived.Table[string] // device codes, by user code
	guesses shortlived.Table[int]    // wrong user codes, by visit
	refused *rate.Limiter            // of refused sign-ins that are put on record
	starts  *rate.Limiter            // of device codes
}

// Paths are those that a Service answers.
var Paths = []string{"/login", "/login/", "/logout", "/device", "/api/v1/login", "/api/v1/device", "/api/v1/device/token"}

// Times of a sign-in.
const (
	flowLife   = 10 * time.Minute
	passLife   = time.Minute
	deviceLife = 10 * time.Minute
	verifyTime = 20 * time.Second // for the identity provider; the page has 30 s in all
)

// Bounds of what is in memory. Anybody may begin a sign-in.
const (
	maxFlows   = 50_000
	maxPasses  = 10_000
	maxVisits  = 100_000
	maxDevices = 1_000
)

// New returns a Service.
func New(o Options) *Service {
	s := &Service{
		o: o, mux: http.NewServeMux(),
		flows: shortlived.New[flow](maxFlows), passes: shortlived.New[pass](maxPasses), visits: shortlived.New[visit](maxVisits),
		devices: shortlived.New[device](maxDevices), users: shortlived.New[string](maxDevices), guesses: shortlived.New[int](maxVisits),
		refused: rate.NewLimiter(1, 20), starts: rate.NewLimiter(5, 50),
	}
	sameSite := http.NewCrossOriginProtection() // but for a provider, which posts from its own site
	s.mux.HandleFunc("GET /login", s.begin)
	s.mux.HandleFunc("GET /login/{provider}/callback", s.complete)
	s.mux.HandleFunc("POST /login/{provider}/callback", s.complete)
	s.mux.HandleFunc("GET /login/{provider}/metadata", s.metadata)
	s.mux.Handle("POST /logout", sameSite.Handler(http.HandlerFunc(s.logout)))
	s.mux.HandleFunc("GET /device", s.devicePage)
	s.mux.Handle("POST /device", sameSite.Handler(http.HandlerFunc(s.deviceForm)))
	s.mux.HandleFunc("POST /api/v1/login", s.trade)
	s.mux.HandleFunc("POST /api/v1/device", s.startDevice)
	s.mux.HandleFunc("POST /api/v1/device/token", s.tradeDevice)
	return s
}

func (s *Service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, maxBody)
	s.mux.ServeHTTP(w, r)
}

// maxBody bounds a request's body, in bytes. SAML answers are large.
const maxBody = 1 << 20

// A flow is a sign-in under way.
type flow struct {
	identity.Flow
	provider string
	browser  string // that began it
	next     string // the page to go to, or
	loopback *loopback
}

// A loopback is where broker login listens.
type loopback struct {
	redirect  string
	state     string
	challenge string
}

// A visit is a browser that has signed in.
type visit struct {
	identity identity.Identity
	until    time.Time
}

// Cookies. The prefix keeps other hosts of the domain from setting them.
const (
	visitCookie   = "__Host-broker"
	browserCookie = "__Host-broker-browser"
)

// ErrSignIn is returned for a browser that has not signed in.
var ErrSignIn = errors.New("you are not signed in")

// Who returns whose visit r belongs to, or ErrSignIn.
func (s *Service) Who(r *http.Request) (identity.Identity, error) {
	v, err := s.visit(r)
	return v.identity, err
}

// Visit returns whose visit r belongs to, and until when, or ErrSignIn.
func (s *Service) Visit(r *http.Request) (identity.Identity, time.Time, error) {
	v, err := s.visit(r)
	return v.identity, v.until, err
}

func (s *Service) visit(r *http.Request) (visit, error) {
	c, err := r.Cookie(visitCookie)
	if err != nil {
		return visit{}, ErrSignIn
	}
	v, ok := s.visits.Get(c.Value)
	if !ok {
		return visit{}, ErrSignIn
	}
	return v, nil
}

// begin sends a browser to the identity provider.
func (s *Service) begin(w http.ResponseWriter, r *http.Request) {
	f := flow{next: "/requests"}
	if next := r.FormValue("next"); next != "" {
		if !local(next) {
			s.fail(w, http.StatusBadRequest, "The page to go to after the sign-in is not one of the broker's.")
			return
		}
		f.next = next
	}
	if r.FormValue("redirect_uri") != "" {
		l := loopback{r.FormValue("redirect_uri"), r.FormValue("state"), r.FormValue("code_challenge")}
		if !l.valid() {
			s.fail(w, http.StatusBadRequest, "This is not a sign-in that broker login has begun: it comes back to 127.0.0.1, with a challenge.")
			return
		}
		f.loopback = &l
	}
	p := s.provider(r.FormValue("provider"))
	if p == nil {
		if len(s.o.Providers) == 0 {
			s.fail(w, http.StatusNotFound, "No identity provider is configured. The operator can add one to broker.yaml, under identity.")
			return
		}
		type choice struct{ Title, URL string }
		var choices []choice
		for _, p := range s.o.Providers {
			q := r.URL.Query()
			q.Set("provider", p.Name)
			choices = append(choices, choice{p.Title, "/login?" + q.Encode()})
		}
		s.page(w, http.StatusOK, "choose.html", choices)
		return
	}
	f.provider = p.Name
	f.State, f.Nonce, f.Verifier = rand.Text(), rand.Text(), oauth2.GenerateVerifier()
	f.Callback = s.callback(p)
	if c, err := r.Cookie(browserCookie); err == nil && len(c.Value) == len(f.State) {
		f.browser = c.Value
	} else {
		f.browser = rand.Text()
	}
	ctx, cancel := context.WithTimeout(r.Context(), verifyTime)
	defer cancel()
	to, err := p.Begin(ctx, f.Flow)
	if err != nil {
		s.o.Log.Error("sign-in cannot begin", "provider", p.Name, "error", cause(err))
		s.fail(w, http.StatusServiceUnavailable, sentence(err))
		return
	}
	s.flows.Put(f.State, f, time.Now().Add(flowLife))
	// SAML answers come by a POST from another site, so SameSite is None; the
	// cookie proves nothing but that it is the same browser.
	http.SetCookie(w, &http.Cookie{
		Name: browserCookie, Value: f.browser, Path: "/", Secure: true, HttpOnly: true, SameSite: http.SameSiteNoneMode,
	})
	w.Header().Set("Cache-Control", "no-store")
	http.Redirect(w, r, to, http.StatusFound)
}

func (s *Service) callback(p *Provider) string { return s.o.URL + "/login/" + p.Name + "/callback" }

// provider is the one of that name, or the only one.
func (s *Service) provider(name string) *Provider {
	if name == "" && len(s.o.Providers) == 1 {
		return &s.o.Providers[0]
	}
	for i := range s.o.Providers {
		if s.o.Providers[i].Name == name {
			return &s.o.Providers[i]
		}
	}
	return nil
}

// local reports whether a browser stays at the broker when it goes to path.
func local(path string) bool {
	if !strings.HasPrefix(path, "/") || strings.HasPrefix(path, "//") || strings.ContainsAny(path, "\\\t\r\n") {
		return false
	}
	u, err := url.Parse(path)
	return err == nil && u.Scheme == "" && u.Host == "" && u.User == nil && len(path) < 2048
}

// valid reports whether l is a loopback address and a challenge (RFC 8252, RFC 7636).
func (l *loopback) valid() bool {
	u, err := url.Parse(l.redirect)
	if err != nil || u.Scheme != "http" || u.User != nil || u.Path != "/callback" || u.RawQuery != "" || u.Fragment != "" || u.Opaque != "" {
		return false
	}
	addr, err := netip.ParseAddrPort(u.Host) // a name could be made to mean anything
	sum, cerr := base64.RawURLEncoding.DecodeString(l.challenge)
	return err == nil && addr.Addr().IsLoopback() && addr.Port() != 0 && cerr == nil && len(sum) == sha256.Size && l.state != "" && len(l.state) <= 200
}

// complete reads the provider's answer.
func (s *Service) complete(w http.ResponseWriter, r *http.Request) {
	state := r.FormValue("state")
	if state == "" {
		state = r.PostFormValue("RelayState")
	}
	f, ok := s.flows.Take(state)
	c, err := r.Cookie(browserCookie)
	if !ok || err != nil || subtle.ConstantTimeCompare([]byte(c.Value), []byte(f.browser)) != 1 || f.provider != r.PathValue("provider") {
		s.fail(w, http.StatusBadRequest, "This sign-in was begun in another browser, or too long ago. Begin again.")
		return
	}
	p := s.provider(f.provider)
	ctx, cancel := context.WithTimeout(r.Context(), verifyTime)
	defer cancel()
	id, err := p.Complete(ctx, f.Flow, r)
	if err != nil {
		s.refuse(r, "", p.Name, err)
		s.fail(w, http.StatusForbidden, sentence(err))
		return
	}
	if err := s.signedIn(r, id, p.Name); err != nil {
		s.refuse(r, id.Subject, p.Name, err)
		s.fail(w, http.StatusForbidden, sentence(err))
		return
	}
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Referrer-Policy", "no-referrer")
	if f.loopback != nil {
		code := rand.Text()
		s.passes.Put(code, pass{id, f.loopback.challenge}, time.Now().Add(passLife))
		q := url.Values{"code": {code}, "state": {f.loopback.state}}
		http.Redirect(w, r, f.loopback.redirect+"?"+q.Encode(), http.StatusSeeOther)
		return
	}
	key, until := rand.Text(), time.Now().Add(s.o.Lifetime(id))
	s.visits.Put(key, visit{id, until}, until)
	http.SetCookie(w, &http.Cookie{Name: visitCookie, Value: key, Path: "/", Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode})
	http.Redirect(w, r, f.next, http.StatusSeeOther)
}

// signedIn puts a sign-in on record, unless the identity is disabled.
func (s *Service) signedIn(r *http.Request, id identity.Identity, via string) error {
	if s.o.Desk.IsDisabled(id.Subject, "") {
		return &identity.SignInError{Reason: "this identity has been disabled", Err: grant.ErrDisabled}
	}
	err := s.o.Desk.Record(r.Context(), grant.Event{
		Type: grant.SignedIn, Actor: id.Subject, Subject: id.Subject, Via: via,
		Detail: map[string]string{"method": id.Method, "groups": strings.Join(id.Groups, ","), "source": source(r)},
	})
	if err != nil {
		return &identity.SignInError{Reason: "the sign-in cannot be kept on record now; try again later", Err: err}
	}
	return nil
}

// refuse puts a refused sign-in on record, and says why in the log.
func (s *Service) refuse(r *http.Request, subject, via string, err error) {
	s.o.Log.Warn("sign-in refused", "provider", via, "subject", subject, "client", r.RemoteAddr, "reason", err.Error(), "error", cause(err))
	if !s.refused.Allow() { // the log has it
		return
	}
	e := grant.Event{Type: grant.SignInRefused, Subject: subject, Reason: sentence(err), Via: via, Detail: map[string]string{"source": source(r)}}
	if err := s.o.Desk.Record(r.Context(), e); err != nil {
		s.o.Log.Error("a refused sign-in is not on record", "error", err)
	}
}

// cause is what an operator reads of an error.
func cause(err error) error {
	var e *identity.SignInError
	if errors.As(err, &e) && e.Err != nil {
		return e.Err
	}
	return err
}

// sentence is what a person reads of an error.
func sentence(err error) string {
	var e *identity.SignInError
	if errors.As(err, &e) {
		return e.Reason
	}
	return "the sign-in failed; try again later"
}

func source(r *http.Request) string {
	addr, _ := netip.ParseAddrPort(r.RemoteAddr)
	return addr.Addr().Unmap().String()
}

func (s *Service) logout(w http.ResponseWriter, r *http.Request) {
	if c, err := r.Cookie(visitCookie); err == nil {
		s.visits.Take(c.Value)
	}
	http.SetCookie(w, &http.Cookie{Name: visitCookie, Path: "/", Secure: true, HttpOnly: true, MaxAge: -1})
	s.page(w, http.StatusOK, "said.html", "You have signed out of the broker. At your identity provider you may still be signed in.")
}

// metadata is what a SAML provider wants to know of the broker.
func (s *Service) metadata(w http.ResponseWriter, r *http.Request) {
	p := s.provider(r.PathValue("provider"))
	if p == nil {
		http.NotFound(w, r)
		return
	}
	described, ok := p.Provider.(interface {
		ServiceMetadata(callback string) ([]byte, error)
	})
	if !ok {
		http.NotFound(w, r)
		return
	}
	text, err := described.ServiceMetadata(s.callback(p))
	if err != nil {
		s.o.Log.Error("metadata cannot be made", "error", err)
		http.Error(w, "the metadata cannot be made", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/samlmetadata+xml")
	w.Write(text)
}

//go:embed pages
var files embed.FS

var templates = template.Must(template.ParseFS(files, "pages/*.html"))

func (s *Service) fail(w http.ResponseWriter, status int, text string) {
	s.page(w, status, "said.html", text)
}

// page shows a page. It may be framed by nobody and runs no script.
func (s *Service) page(w http.ResponseWriter, status int, name string, data any) {
	var out bytes.Buffer
	if err := templates.ExecuteTemplate(&out, name, data); err != nil {
		s.o.Log.Error("a page cannot be made", "page", name, "error", err)
		http.Error(w, "this page cannot be shown", http.StatusInternalServerError)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'")
	h.Set("Cache-Control", "no-store")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	w.Write(out.Bytes())
}
