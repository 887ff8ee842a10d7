// Package oauth is the broker as an OAuth 2.1 authorization server, for MCP
// clients that are given a URL and nothing else.
//
// A client learns from the server's metadata (RFC 9728) who gives out tokens for
// it, registers itself (RFC 7591) or says by its id where it describes itself (a
// Client ID Metadata Document), and sends the person's browser here. The person
// signs in with the company's identity provider (package signin), is shown who
// asks for what, and allows it. The client trades the code, with the verifier
// that only it knows (PKCE), for a token that one MCP server takes, for ten
// minutes, and for a refresh token that is good once.
//
//	s, err := oauth.New(oauth.Options{URL: url, Visits: sign, Desk: desk, …})
//	mux.Handle("/oauth/", s) // and the other Paths
//	id, until, err := s.Verify(ctx, token, "bigquery")
//
// The protocol is package op's of zitadel/oidc. What is here is what it leaves
// open: clients, consent, resources, and that nothing which anybody may ask for
// fills memory or disk. Registrations and refresh tokens are sealed statements
// that clients carry. The store has one record for each sign-in of a client,
// whose version is that of the one refresh token which is good.
package oauth

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"log/slog"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/zitadel/oidc/v3/pkg/op"
	"golang.org/x/time/rate"

	"example.com/broker/broker/grant"
	"example.com/broker/broker/identity"
	"example.com/broker/broker/shortlived"
)

// Visits knows whose browser it is.
type Visits interface {
	Visit(r *http.Request) (id identity.Identity, until time.Time, err error)
}

// Options is what a Server is made of.
type Options struct {
	URL    string // of the broker, without a slash at the end: the issuer
	Dir    string // keeps the key that tokens are signed with
	Visits Visits // of who signs in here; nil: nobody does, and Foreign gives out the tokens
	Desk   *grant.Desk
	Store  grant.Store
	Sealer *identity.Sealer
	// Foreign verifies tokens of the company's own authorization servers, which are
	// Issuers; may be nil.
	Foreign   *identity.Workloads
	Issuers   []string
	Workloads *identity.Workloads // verifies programs' own tokens; may be nil
	Log       *slog.Logger
	// Client, if not nil, reaches the documents of clients in the place of one
	// that goes to public addresses only.
	Client *http.Client
}

// Server is the authorization server. It may be used by several goroutines.
type Server struct {
	o        Options
	provider *op.Provider
	mux      *http.ServeMux
	key      *signingKey
	requests shortlived.Table[*request] // authorization requests under way, by id, then by code
	spent    shortlived.Table[string]   // families, by code
	clients  shortlived.Table[*client]  // described by documents, by id
	fresh    shortlived.Table[verified] // tokens that were verified, by hash
	starts   *rate.Limiter              // of authorization requests
	news     *rate.Limiter              // of registrations
	fetches  *rate.Limiter              // of documents
}

// Paths are those that a Server answers.
var Paths = []string{
	"/oauth/", "/.well-known/oauth-authorization-server", "/.well-known/openid-configuration", "/.well-known/oauth-protected-resource/",
}

// Times of what is given out.
const (
	requestLife = 10 * time.Minute
	codeLife    = time.Minute
	accessLife  = 10 * time.Minute
)

// Scope is the one scope that there is: to use a server as the person may.
const Scope = "mcp"

// New returns a Server. Its key is made where missing.
func New(o Options) (*Server, error) {
	s := &Server{
		o: o, mux: http.NewServeMux(),
		requests: shortlived.New[*request](20_000), spent: shortlived.New[string](20_000),
		clients: shortlived.New[*client](2_000), fresh: shortlived.New[verified](20_000),
		starts: rate.NewLimiter(50, 200), news: rate.NewLimiter(5, 50), fetches: rate.NewLimiter(5, 50),
	}
	if s.o.Client == nil {
		s.o.Client = publicClient()
	}
	sameSite := http.NewCrossOriginProtection()
	s.mux.HandleFunc("GET /.well-known/oauth-protected-resource/{server}/mcp", s.resourceMetadata)
	if o.Visits == nil {
		return s, nil
	}
	var err error
	if s.key, err = openKey(o.Dir); err != nil {
		return nil, err
	}
	endpoint := func(path string) *op.Endpoint { return op.NewEndpoint("oauth/" + path) }
	s.provider, err = op.NewProvider(
		&op.Config{CryptoKey: randomKey(), CodeMethodS256: true, GrantTypeRefreshToken: true},
		&storage{s}, op.StaticIssuer(o.URL),
		op.WithCustomEndpoints(endpoint("authorize"), endpoint("token"), endpoint("userinfo"), endpoint("revoke"), endpoint("end"), endpoint("keys")),
		op.WithCustomIntrospectionEndpoint(endpoint("introspect")), op.WithCustomDeviceAuthorizationEndpoint(endpoint("device")),
		op.WithCORSOptions(nil),
	)
	if err != nil {
		return nil, fmt.Errorf("authorization server: %w", err)
	}
	s.mux.HandleFunc("GET /.well-known/oauth-authorization-server", s.metadata)
	s.mux.HandleFunc("GET /.well-known/openid-configuration", s.metadata)
	s.mux.HandleFunc("GET /oauth/authorize", s.authorize)
	s.mux.Handle("GET /oauth/authorize/callback", withIssuer(o.URL, s.provider))
	s.mux.HandleFunc("POST /oauth/token", s.token)
	s.mux.Handle("POST /oauth/revoke", s.provider)
	s.mux.Handle("GET /oauth/keys", s.provider)
	s.mux.HandleFunc("POST /oauth/register", s.register)
	s.mux.HandleFunc("GET /oauth/consent", s.consentPage)
	s.mux.Handle("POST /oauth/consent", sameSite.Handler(http.HandlerFunc(s.consent)))
	return s, nil
}

func randomKey() (key [32]byte) {
	rand.Read(key[:])
	return key
}

// maxBody bounds a request's body, in bytes.
const maxBody = 64 << 10

func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, maxBody)
	switch r.URL.Path {
	case "/oauth/authorize", "/oauth/authorize/callback", "/oauth/consent":
	default: // what programs ask, pages of others in browsers, too; no cookie counts here
		h := w.Header()
		h.Set("Access-Control-Allow-Origin", "*")
		if r.Method == http.MethodOptions {
			h.Set("Access-Control-Allow-Methods", "GET, POST")
			h.Set("Access-Control-Allow-Headers", "Content-Type, Authorization, Mcp-Protocol-Version")
			h.Set("Access-Control-Max-Age", "600")
			w.WriteHeader(http.StatusNoContent)
			return
		}
	}
	s.mux.ServeHTTP(w, r)
}

var label = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// Resource is the URL of a server: what its tokens are for (RFC 8707).
func (s *Server) Resource(server string) string { return s.o.URL + "/" + server + "/mcp" }

// serverOf returns the server that a resource is the URL of.
func (s *Server) serverOf(resource string) (string, bool) {
	server, ok := strings.CutSuffix(resource, "/mcp")
	if ok {
		server, ok = strings.CutPrefix(server, s.o.URL+"/")
	}
	return server, ok && label.MatchString(server)
}

func (s *Server) issuers() []string {
	if s.o.Visits == nil {
		return s.o.Issuers
	}
	return append([]string{s.o.URL}, s.o.Issuers...)
}

func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(v)
}

// resourceMetadata is RFC 9728's. It says the same of every name: which servers
// there are is not for everybody.
func (s *Server) resourceMetadata(w http.ResponseWriter, r *http.Request) {
	server := r.PathValue("server")
	if !label.MatchString(server) {
		http.NotFound(w, r)
		return
	}
	m := map[string]any{
		"resource": s.Resource(server), "bearer_methods_supported": []string{"header"}, "resource_name": server,
	}
	if issuers := s.issuers(); len(issuers) > 0 { // else programs' own tokens alone count
		m["authorization_servers"] = issuers
	}
	if s.o.Visits != nil {
		m["scopes_supported"] = []string{Scope}
	}
	answer(w, http.StatusOK, m)
}

// metadata is RFC 8414's.
func (s *Server) metadata(w http.ResponseWriter, _ *http.Request) {
	answer(w, http.StatusOK, map[string]any{
		"issuer": s.o.URL, "authorization_endpoint": s.o.URL + "/oauth/authorize", "token_endpoint": s.o.URL + "/oauth/token",
		"jwks_uri": s.o.URL + "/oauth/keys", "registration_endpoint": s.o.URL + "/oauth/register", "revocation_endpoint": s.o.URL + "/oauth/revoke",
		"scopes_supported": []string{Scope, "offline_access"}, "response_types_supported": []string{"code"}, "response_modes_supported": []string{"query"},
		"grant_types_supported": []string{"authorization_code", "refresh_token"}, "code_challenge_methods_supported": []string{"S256"},
		"token_endpoint_auth_methods_supported": []string{"none"}, "revocation_endpoint_auth_methods_supported": []string{"none"},
		"client_id_metadata_document_supported": true, "authorization_response_iss_parameter_supported": true,
		"subject_types_supported": []string{"public"}, "id_token_signing_alg_values_supported": []string{string(algorithm)},
	})
}

// Challenge is the WWW-Authenticate of an answer to who has shown no token for a
// server, or one that is not good.
func (s *Server) Challenge(server string, shown bool) string {
	c := "Bearer "
	if shown {
		c += `error="invalid_token", error_description="the token is not valid for this server", `
	}
	if label.MatchString(server) {
		c += fmt.Sprintf("resource_metadata=%q, ", s.o.URL+"/.well-known/oauth-protected-resource/"+server+"/mcp")
	}
	if s.o.Visits != nil {
		c += fmt.Sprintf("scope=%q", Scope)
	}
	return strings.TrimSuffix(c, ", ")
}

// browserCookie ties an authorization request to the browser that began it.
const browserCookie = "__Host-broker-oauth"

// authorize begins an authorization request. What op does not know of, it is
// told through the context.
func (s *Server) authorize(w http.ResponseWriter, r *http.Request) {
	if !s.starts.Allow() {
		s.say(w, http.StatusTooManyRequests, "Too many programs ask at a time. Try again in a moment.")
		return
	}
	q := r.URL.Query()
	asked := &asked{resources: q["resource"], mode: q.Get("response_mode")}
	if c, err := r.Cookie(browserCookie); err == nil && len(c.Value) == 26 {
		asked.browser = c.Value
	} else {
		asked.browser = rand.Text()
		http.SetCookie(w, &http.Cookie{Name: browserCookie, Value: asked.browser, Path: "/", Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode})
	}
	// One scope is what there is, whichever a client asks for.
	q.Set("scope", Scope+" offline_access")
	for _, name := range []string{"prompt", "max_age", "id_token_hint", "login_hint", "ui_locales", "acr_values", "display", "claims", "resource", "response_mode"} {
		q.Del(name)
	}
	r = r.Clone(context.WithValue(r.Context(), askedKey{}, asked))
	r.URL.RawQuery = q.Encode()
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Referrer-Policy", "no-referrer")
	withIssuer(s.o.URL, s.provider).ServeHTTP(w, r)
}

// asked is what of a request op does not read.
type asked struct {
	resources []string
	mode      string // response_mode
	browser   string
}

type askedKey struct{}

// token gives out tokens. The ID token that op makes with them is left out:
// nobody has asked for one, and it is signed with the same key.
func (s *Server) token(w http.ResponseWriter, r *http.Request) {
	if err := r.ParseForm(); err != nil {
		answer(w, http.StatusBadRequest, map[string]string{"error": "invalid_request", "error_description": "the body cannot be read"})
		return
	}
	resources := r.PostForm["resource"]
	r = r.Clone(context.WithValue(r.Context(), askedKey{}, &asked{resources: resources}))
	r.PostForm.Del("resource")
	r.Form.Del("resource")
	r.Form.Del("scope")
	r.PostForm.Del("scope")
	held := &heldAnswer{header: w.Header()}
	s.provider.ServeHTTP(held, r)
	body := held.body.Bytes()
	var tokens map[string]json.RawMessage
	if held.status == http.StatusOK && json.Unmarshal(body, &tokens) == nil && tokens["id_token"] != nil {
		delete(tokens, "id_token")
		body, _ = json.Marshal(tokens)
	}
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Content-Type", "application/json")
	w.Header().Del("Content-Length")
	w.WriteHeader(held.status)
	w.Write(body)
}

// A heldAnswer keeps an answer back.
type heldAnswer struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (h *heldAnswer) Header() http.Header { return h.header }

func (h *heldAnswer) WriteHeader(status int) { h.status = status }

func (h *heldAnswer) Write(p []byte) (int, error) {
	if h.status == 0 {
		h.status = http.StatusOK
	}
	return h.body.Write(p)
}

// withIssuer says the issuer in redirects to clients (RFC 9207), so that none
// takes our answer for another's.
func withIssuer(issuer string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		next.ServeHTTP(&issuerWriter{w, issuer}, r)
	})
}

type issuerWriter struct {
	http.ResponseWriter
	issuer string
}

func (w *issuerWriter) WriteHeader(status int) {
	where := w.Header().Get("Location")
	if u, err := url.Parse(where); err == nil && u.IsAbs() && !strings.HasPrefix(where, w.issuer+"/") {
		w.Header().Set("Location", addQuery(u, url.Values{"iss": {w.issuer}}))
	}
	w.ResponseWriter.WriteHeader(status)
}

func addQuery(u *url.URL, add url.Values) string {
	q := u.Query()
	for name, values := range add {
		q[name] = values
	}
	to := *u
	to.RawQuery = q.Encode()
	return to.String()
}

//go:embed pages
var files embed.FS

var page = template.Must(template.ParseFS(files, "pages/consent.html"))

// A consentView is what the page shows.
type consentView struct {
	Title, Said                                string
	ID, Client, Server, Subject, Until, Target string
	Verified                                   bool
}

func (s *Server) say(w http.ResponseWriter, status int, text string) {
	s.show(w, status, consentView{Title: "Connecting a program", Said: text}, "")
}

// show shows the page. form is where a form of it may lead to, beside the broker.
func (s *Server) show(w http.ResponseWriter, status int, v consentView, form string) {
	var out bytes.Buffer
	if err := page.Execute(&out, v); err != nil {
		s.o.Log.Error("a page cannot be made", "error", err)
		http.Error(w, "this page cannot be shown", http.StatusInternalServerError)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'self'; form-action 'self'"+form+"; frame-ancestors 'none'; base-uri 'none'")
	h.Set("X-Frame-Options", "DENY")
	h.Set("Cache-Control", "no-store")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	w.Write(out.Bytes())
}

// waiting returns the request that a browser has begun and not decided on.
func (s *Server) waiting(r *http.Request, id string) *request {
	req, ok := s.requests.Get(id)
	c, err := r.Cookie(browserCookie)
	if !ok || err != nil || c.Value != req.browser || req.decided.Load() {
		return nil
	}
	return req
}

const staleText = "This was begun in another browser, too long ago, or is decided already. Connect the program again."

// consentPage asks the person. It is asked each time: that somebody has signed
// in does not say that any program may use that.
func (s *Server) consentPage(w http.ResponseWriter, r *http.Request) {
	req := s.waiting(r, r.FormValue("id"))
	if req == nil {
		s.say(w, http.StatusBadRequest, staleText)
		return
	}
	id, until, err := s.o.Visits.Visit(r)
	if err != nil {
		http.Redirect(w, r, "/login?"+url.Values{"next": {r.URL.RequestURI()}}.Encode(), http.StatusSeeOther)
		return
	}
	c, err := s.client(r.Context(), req.clientID)
	if err != nil {
		s.say(w, http.StatusBadRequest, staleText)
		return
	}
	target, _ := url.Parse(req.redirect)
	where, form := target.Host, " "+target.Scheme+"://"+target.Host
	if target.Scheme != "http" && target.Scheme != "https" {
		where, form = "a program on this machine ("+target.Scheme+":)", " "+target.Scheme+":"
	} else if isLoopback(target.Hostname()) {
		where = "a program on this machine (" + target.Host + ")"
	}
	s.show(w, http.StatusOK, consentView{
		Title: "Connect a program", ID: req.id, Client: c.shown(), Server: req.server, Subject: id.Subject,
		Until: until.Local().Format("15:04 MST"), Target: where, Verified: c.document,
	}, form)
}

// consent is the person's decision.
func (s *Server) consent(w http.ResponseWriter, r *http.Request) {
	req := s.waiting(r, r.PostFormValue("id"))
	if req == nil {
		s.say(w, http.StatusBadRequest, staleText)
		return
	}
	id, until, err := s.o.Visits.Visit(r)
	if err != nil {
		s.say(w, http.StatusUnauthorized, "You are not signed in any more. Connect the program again.")
		return
	}
	target, _ := url.Parse(req.redirect)
	refuse := func(code string) {
		req.decided.Store(true)
		s.requests.Take(req.id)
		http.Redirect(w, r, addQuery(target, url.Values{"error": {code}, "state": {req.state}, "iss": {s.o.URL}}), http.StatusSeeOther)
	}
	event := grant.Event{
		Type: grant.ClientAllowed, Actor: id.Subject, Subject: id.Subject, Server: req.server,
		Detail: map[string]string{"client": short(req.clientID), "redirect": short(req.redirect)},
	}
	if r.PostFormValue("decision") != "allow" {
		event.Type = grant.ClientRefused
		if err := s.o.Desk.Record(r.Context(), event); err != nil {
			s.o.Log.Error("a refused client is not on record", "error", err)
		}
		refuse("access_denied")
		return
	}
	if s.o.Desk.IsDisabled(id.Subject, "") {
		refuse("access_denied")
		return
	}
	if err := s.o.Desk.Record(r.Context(), event); err != nil {
		s.o.Log.Error("client is not allowed: it cannot be put on record", "error", err)
		refuse("temporarily_unavailable")
		return
	}
	if !req.allow(id, until) { // pressed twice
		s.say(w, http.StatusBadRequest, staleText)
		return
	}
	http.Redirect(w, r, "/oauth/authorize/callback?"+url.Values{"id": {req.id}}.Encode(), http.StatusSeeOther)
}

// short cuts what others have chosen.
func short(s string) string { return s[:min(len(s), 300)] }

type verified struct {
	claims *accessClaims
}

// Verify returns whose access token it is, and until when, if it is one for that
// server. Its errors are [*identity.SignInError].
func (s *Server) Verify(ctx context.Context, token, server string) (identity.Identity, time.Time, error) {
	issuer := identity.Issuer(token)
	switch {
	case s.key != nil && issuer == s.o.URL:
		return s.verifyOwn(ctx, token, server)
	case slices.Contains(s.o.Issuers, issuer) && s.o.Foreign != nil:
		return s.o.Foreign.VerifyFor(ctx, token, s.Resource(server))
	case s.o.Workloads != nil:
		return s.o.Workloads.Verify(ctx, token)
	}
	return identity.Identity{}, time.Time{}, errToken(errors.New("unknown issuer"))
}

func errToken(err error) error {
	return &identity.SignInError{Reason: "the token is not valid for this server, or has expired", Err: err}
}

func (s *Server) verifyOwn(ctx context.Context, token, server string) (identity.Identity, time.Time, error) {
	sum := sha256.Sum256([]byte(token))
	key := string(sum[:])
	v, ok := s.fresh.Get(key)
	if !ok {
		claims, err := s.key.verify(token)
		if err != nil {
			return identity.Identity{}, time.Time{}, errToken(err)
		}
		v = verified{claims}
		s.fresh.Put(key, v, claims.expiry())
	}
	c := v.claims
	switch {
	case c.Issuer != s.o.URL || c.Use != useAccess || !slices.Equal(c.Audience, []string{s.Resource(server)}):
		return identity.Identity{}, time.Time{}, errToken(errors.New("for another server"))
	case !time.Now().Before(c.expiry()):
		return identity.Identity{}, time.Time{}, errToken(errors.New("expired"))
	case s.o.Desk.IsDisabled(c.Subject, ""):
		return identity.Identity{}, time.Time{}, &identity.SignInError{Reason: "this identity has been disabled", Err: grant.ErrDisabled}
	}
	if _, err := s.o.Store.Record(ctx, grant.Clients, c.Family); err != nil {
		if errors.Is(err, grant.ErrNotFound) {
			return identity.Identity{}, time.Time{}, errToken(errors.New("revoked"))
		}
		return identity.Identity{}, time.Time{}, &identity.SignInError{Reason: "tokens cannot be looked up now; try again later", Err: err}
	}
	return identity.Identity{Subject: c.Subject, Groups: c.Groups, Method: "oauth"}, c.expiry(), nil
}
