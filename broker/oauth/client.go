package oauth

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/zitadel/oidc/v3/pkg/oidc"
	"github.com/zitadel/oidc/v3/pkg/op"
)

// A client is a program that asks for tokens. All are public: they prove
// themselves by PKCE, and by where the answer goes.
type client struct {
	ID        string   `json:"-"`
	Name      string   `json:"name"`
	Redirects []string `json:"redirects"`
	document  bool     // it is described by a document at its id, which only its maker can write
}

// shown is what a person is shown of a client.
func (c *client) shown() string {
	if c.document {
		u, _ := url.Parse(c.ID)
		if c.Name != "" {
			return fmt.Sprintf("%s (%s)", c.Name, u.Host)
		}
		return u.Host
	}
	if c.Name == "" {
		return "A program without a name"
	}
	return "“" + c.Name + "”"
}

// What package op asks of a client.

func (c *client) GetID() string                       { return c.ID }
func (c *client) RedirectURIs() []string              { return c.Redirects }
func (c *client) PostLogoutRedirectURIs() []string    { return nil }
func (c *client) ApplicationType() op.ApplicationType { return op.ApplicationTypeNative }
func (c *client) AuthMethod() oidc.AuthMethod         { return oidc.AuthMethodNone }
func (c *client) ResponseTypes() []oidc.ResponseType {
	return []oidc.ResponseType{oidc.ResponseTypeCode}
}
func (c *client) GrantTypes() []oidc.GrantType {
	return []oidc.GrantType{oidc.GrantTypeCode, oidc.GrantTypeRefreshToken}
}
func (c *client) LoginURL(id string) string {
	return "/oauth/consent?" + url.Values{"id": {id}}.Encode()
}
func (c *client) AccessTokenType() op.AccessTokenType  { return op.AccessTokenTypeJWT }
func (c *client) IDTokenLifetime() time.Duration       { return time.Second }
func (c *client) DevMode() bool                        { return false }
func (c *client) IsScopeAllowed(scope string) bool     { return scope == Scope }
func (c *client) IDTokenUserinfoClaimsAssertion() bool { return false }
func (c *client) ClockSkew() time.Duration             { return 0 }
func (c *client) RestrictAdditionalIdTokenScopes() func([]string) []string {
	return func([]string) []string { return nil }
}
func (c *client) RestrictAdditionalAccessTokenScopes() func([]string) []string {
	return func(scopes []string) []string { return scopes }
}

var errClient = errors.New("unknown client: it may register at the registration endpoint, or have the https URL of a document for its id")

// sealClient is the purpose of a client_id that is a sealed registration.
const (
	sealClient   = "oauth client"
	clientPrefix = "mcp-"
	clientLife   = 2 * 365 * 24 * time.Hour
)

// client finds a client by its id.
func (s *Server) client(ctx context.Context, id string) (*client, error) {
	if sealed, ok := strings.CutPrefix(id, clientPrefix); ok {
		c := &client{ID: id}
		if err := s.o.Sealer.Open(sealClient, sealed, c); err != nil {
			return nil, errClient
		}
		return c, nil
	}
	if !strings.HasPrefix(id, "https://") {
		return nil, errClient
	}
	if c, ok := s.clients.Get(id); ok {
		if c == nil {
			return nil, errClient
		}
		return c, nil
	}
	c, life, err := s.fetch(ctx, id)
	if err != nil {
		s.o.Log.Warn("a client's document cannot be used", "client", short(id), "error", err)
		s.clients.Put(id, nil, time.Now().Add(30*time.Second))
		return nil, errClient
	}
	s.clients.Put(id, c, time.Now().Add(life))
	return c, nil
}

// publicClient reaches public addresses only: anybody may say which.
func publicClient() *http.Client {
	d := &net.Dialer{Timeout: 5 * time.Second, Control: func(_, address string, _ syscall.RawConn) error {
		addr, err := netip.ParseAddrPort(address)
		if err != nil || !isPublic(addr.Addr().Unmap()) || addr.Port() != 443 {
			return errors.New("not a public address")
		}
		return nil
	}}
	return &http.Client{
		Timeout: fetchTime, Transport: &http.Transport{DialContext: d.DialContext, ForceAttemptHTTP2: true, DisableKeepAlives: true, TLSHandshakeTimeout: 5 * time.Second, MaxResponseHeaderBytes: 16 << 10},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// isPublic reports whether an address is none of a network of one's own.
func isPublic(a netip.Addr) bool {
	return a.IsGlobalUnicast() && !a.IsPrivate() && !slices.ContainsFunc(special, func(p netip.Prefix) bool { return p.Contains(a) })
}

// special are blocks that are no private ones and not public either (RFC 6890).
var special = []netip.Prefix{
	netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("192.0.0.0/24"), netip.MustParsePrefix("198.18.0.0/15"),
	netip.MustParsePrefix("240.0.0.0/4"), netip.MustParsePrefix("64:ff9b::/96"), netip.MustParsePrefix("64:ff9b:1::/48"),
	netip.MustParsePrefix("2002::/16"), netip.MustParsePrefix("2001::/32"), netip.MustParsePrefix("100::/64"), netip.MustParsePrefix("fec0::/10"),
}

const (
	fetchTime   = 5 * time.Second
	maxDocument = 64 << 10 // bytes
)

// A registration is the metadata of a client, in a document or to register with.
type registration struct {
	ID            string   `json:"client_id,omitempty"`
	Name          string   `json:"client_name,omitempty"`
	Redirects     []string `json:"redirect_uris"`
	AuthMethod    string   `json:"token_endpoint_auth_method,omitempty"`
	GrantTypes    []string `json:"grant_types,omitempty"`
	ResponseTypes []string `json:"response_types,omitempty"`
	Scope         string   `json:"scope,omitempty"`
	IssuedAt      int64    `json:"client_id_issued_at,omitempty"`
}

// fetch reads the document that a client's id is the URL of.
func (s *Server) fetch(ctx context.Context, id string) (*client, time.Duration, error) {
	u, err := url.Parse(id)
	switch {
	case err != nil || u.Host == "" || u.User != nil || u.Fragment != "" || u.Path == "" || u.Path == "/" || len(id) > 1024:
		return nil, 0, errors.New("the id is no URL of a document")
	case slices.Contains(strings.Split(u.Path, "/"), "..") || slices.Contains(strings.Split(u.Path, "/"), "."):
		return nil, 0, errors.New("the id's path has dots")
	case !s.fetches.Allow():
		return nil, 0, errors.New("too many documents at a time")
	}
	ctx, cancel := context.WithTimeout(ctx, fetchTime)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, id, nil)
	if err != nil {
		return nil, 0, err
	}
	r.Header.Set("Accept", "application/json")
	resp, err := s.o.Client.Do(r)
	if err != nil {
		return nil, 0, err
	}
	defer resp.Body.Close()
	kind, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if resp.StatusCode != http.StatusOK || kind != "application/json" && !strings.HasSuffix(kind, "+json") {
		return nil, 0, fmt.Errorf("HTTP %d, %q", resp.StatusCode, kind)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxDocument+1))
	if err != nil {
		return nil, 0, err
	}
	var doc registration
	switch {
	case len(body) > maxDocument:
		return nil, 0, errors.New("the document is too large")
	case json.Unmarshal(body, &doc) != nil:
		return nil, 0, errors.New("the document is not as expected")
	case doc.ID != id:
		return nil, 0, errors.New("the document is of another client")
	}
	if err := doc.check(); err != nil {
		return nil, 0, err
	}
	return &client{ID: id, Name: doc.Name, Redirects: doc.Redirects, document: true}, lifeOf(resp.Header), nil
}

// lifeOf is how long a document may be kept.
func lifeOf(h http.Header) time.Duration {
	for directive := range strings.SplitSeq(h.Get("Cache-Control"), ",") {
		if seconds, ok := strings.CutPrefix(strings.TrimSpace(directive), "max-age="); ok {
			n, _ := strconv.Atoi(seconds)
			return min(max(time.Duration(n)*time.Second, time.Minute), 24*time.Hour)
		}
	}
	return 5 * time.Minute
}

// check says what is wrong with a registration.
func (d *registration) check() error {
	switch {
	case len(d.Redirects) == 0 || len(d.Redirects) > 20:
		return errors.New("redirect_uris must have 1 to 20 entries")
	case len(d.Name) > 200 || strings.ContainsFunc(d.Name, func(r rune) bool {
		return r < ' ' || r == 0x7f || r >= 0x200b && r <= 0x202e || r >= 0x2066 && r <= 0x2069
	}):
		return errors.New("client_name is too long, or has control characters")
	case len(d.GrantTypes) > 0 && !slices.Contains(d.GrantTypes, "authorization_code"):
		return errors.New("grant_types must have authorization_code")
	case len(d.ResponseTypes) > 0 && !slices.Contains(d.ResponseTypes, "code"):
		return errors.New("response_types must have code")
	}
	for _, redirect := range d.Redirects {
		if err := checkRedirect(redirect); err != nil {
			return err
		}
	}
	return nil
}

var errRedirect = errors.New("a redirect_uri must be an https URL, an http URL of this machine's loopback, or have a scheme of the program's own; without a fragment")

// checkRedirect refuses addresses that a code must not go to.
func checkRedirect(redirect string) error {
	u, err := url.Parse(redirect)
	if err != nil || !u.IsAbs() || u.Fragment != "" || strings.HasSuffix(redirect, "#") || u.User != nil || len(redirect) > 1024 ||
		strings.ContainsFunc(redirect, func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune(`"<>\^{|}`+"`", r) }) {
		return errRedirect
	}
	switch u.Scheme {
	case "https":
		if u.Hostname() != "" {
			return nil
		}
	case "http":
		if isLoopback(u.Hostname()) {
			return nil
		}
	case "javascript", "data", "file", "blob", "vbscript", "about", "view-source", "ws", "wss", "ftp", "filesystem", "intent":
	default:
		return nil
	}
	return errRedirect
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// register is RFC 7591's. What it gives out is a sealed statement: nothing is
// kept here, and nothing is lost when the broker starts again.
func (s *Server) register(w http.ResponseWriter, r *http.Request) {
	fail := func(status int, code, text string) {
		answer(w, status, map[string]string{"error": code, "error_description": text})
	}
	if !s.news.Allow() {
		w.Header().Set("Retry-After", "5")
		fail(http.StatusTooManyRequests, "temporarily_unavailable", "too many clients register at a time; try again in a moment")
		return
	}
	var asked registration
	if err := json.NewDecoder(r.Body).Decode(&asked); err != nil {
		fail(http.StatusBadRequest, "invalid_client_metadata", "the body is not the JSON that is expected")
		return
	}
	if err := asked.check(); err != nil {
		code := "invalid_client_metadata"
		if errors.Is(err, errRedirect) || len(asked.Redirects) == 0 {
			code = "invalid_redirect_uri"
		}
		fail(http.StatusBadRequest, code, err.Error())
		return
	}
	sealed, err := s.o.Sealer.Seal(sealClient, client{Name: asked.Name, Redirects: asked.Redirects}, time.Now().Add(clientLife))
	if err != nil || len(sealed) > 8<<10 {
		fail(http.StatusBadRequest, "invalid_client_metadata", "there is too much of it")
		return
	}
	answer(w, http.StatusCreated, registration{
		ID: clientPrefix + sealed, Name: asked.Name, Redirects: asked.Redirects, AuthMethod: "none",
		GrantTypes: []string{"authorization_code", "refresh_token"}, ResponseTypes: []string{"code"}, Scope: Scope, IssuedAt: time.Now().Unix(),
	})
}
