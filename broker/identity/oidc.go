package identity

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"
	"golang.org/x/time/rate"
)

// OIDCOptions is an OpenID provider, and the broker as it knows it.
type OIDCOptions struct {
	Issuer       string
	ClientID     string
	ClientSecret string   // if empty, the broker is a public client
	Scopes       []string // beside openid
	Mapping      *Mapping
	Directory    Directory    // where groups are looked up that the token does not state; may be nil
	Client       *http.Client // if nil, one with a time limit
}

// An OIDC signs people in at an OpenID provider: authorization code with PKCE.
// The provider is asked for its metadata when somebody first signs in, so that
// a broker starts, and certificates go on, while the provider is away.
type OIDC struct {
	o      OIDCOptions
	issuer *issuer
}

// clockSkew is how far a provider's clock may be off.
const clockSkew = time.Minute

// NewOIDC returns the provider.
func NewOIDC(o OIDCOptions) *OIDC {
	return &OIDC{o, newIssuer(o.Issuer, o.ClientID, o.Client)}
}

// Begin implements [Provider].
func (p *OIDC) Begin(ctx context.Context, f Flow) (string, error) {
	found, err := p.issuer.discover(ctx)
	if err != nil {
		return "", err
	}
	return p.oauth(found, f).AuthCodeURL(f.State, oidc.Nonce(f.Nonce), oauth2.S256ChallengeOption(f.Verifier)), nil
}

func (p *OIDC) oauth(found *discovered, f Flow) *oauth2.Config {
	return &oauth2.Config{
		ClientID: p.o.ClientID, ClientSecret: p.o.ClientSecret, Endpoint: found.provider.Endpoint(),
		RedirectURL: f.Callback, Scopes: append([]string{oidc.ScopeOpenID}, p.o.Scopes...),
	}
}

// Complete implements [Provider].
func (p *OIDC) Complete(ctx context.Context, f Flow, r *http.Request) (Identity, error) {
	if code := r.FormValue("error"); code != "" {
		return Identity{}, &SignInError{"the identity provider refuses: " + word(code), nil}
	}
	if iss := r.FormValue("iss"); iss != "" && iss != p.o.Issuer { // RFC 9207: an answer of another provider
		return Identity{}, &SignInError{"the answer is not the identity provider's that was asked", nil}
	}
	found, err := p.issuer.discover(ctx)
	if err != nil {
		return Identity{}, err
	}
	ctx = oidc.ClientContext(ctx, p.issuer.client)
	token, err := p.oauth(found, f).Exchange(ctx, r.FormValue("code"), oauth2.VerifierOption(f.Verifier))
	if err != nil {
		return Identity{}, &SignInError{"the identity provider does not take the code back; sign in again", withoutBody(err)}
	}
	raw, _ := token.Extra("id_token").(string)
	claims, err := p.verify(ctx, found, raw, token.AccessToken, f.Nonce)
	if err != nil {
		return Identity{}, &SignInError{"the identity provider's answer is not valid; sign in again", err}
	}
	if err := p.userInfo(ctx, found, token, claims); err != nil {
		return Identity{}, &SignInError{"the identity provider does not say who you are; try again later", err}
	}
	return readIdentity(ctx, "oidc", claims, p.o.Mapping, p.o.Directory)
}

// verify checks an ID token: go-oidc its signature, issuer, audience and times,
// and this the rest of OpenID Connect Core 3.1.3.7.
func (p *OIDC) verify(ctx context.Context, found *discovered, raw, access, nonce string) (map[string]any, error) {
	token, err := found.verifier.Verify(ctx, raw)
	if err != nil {
		return nil, err
	}
	var claims map[string]any
	if err := token.Claims(&claims); err != nil {
		return nil, err
	}
	azp, stated := claims["azp"]
	switch {
	case subtle.ConstantTimeCompare([]byte(token.Nonce), []byte(nonce)) != 1:
		return nil, errors.New("the nonce is another")
	case token.IssuedAt.After(time.Now().Add(clockSkew)):
		return nil, errors.New("the token was issued in the future")
	case stated && azp != p.o.ClientID, !stated && len(token.Audience) > 1:
		return nil, errors.New("the token is for another party")
	}
	if token.AccessTokenHash != "" {
		if err := token.VerifyAccessToken(access); err != nil {
			return nil, err
		}
	}
	return claims, nil
}

// userInfo adds the claims that only the userinfo endpoint states, where one of
// those that are needed is missing. What the token states stands.
func (p *OIDC) userInfo(ctx context.Context, found *discovered, token *oauth2.Token, claims map[string]any) error {
	missing := func(name string) bool {
		_, ok := claims[name]
		return name != "" && !ok
	}
	o := p.o.Mapping.o
	if found.provider.UserInfoEndpoint() == "" || !missing(o.Subject) && !missing(o.Groups) || overage(claims) {
		return nil
	}
	info, err := found.provider.UserInfo(ctx, oauth2.StaticTokenSource(token))
	if err != nil {
		return err
	}
	if info.Subject != claims["sub"] { // OpenID Connect Core 5.3.2
		return errors.New("userinfo is of somebody else")
	}
	var more map[string]any
	if err := info.Claims(&more); err != nil {
		return err
	}
	for name, v := range more {
		if missing(name) {
			claims[name] = v
		}
	}
	return nil
}

// readIdentity makes an identity from claims that have been verified.
func readIdentity(ctx context.Context, method string, claims map[string]any, m *Mapping, d Directory) (Identity, error) {
	if err := m.admits(claims); err != nil {
		return Identity{}, &SignInError{err.Error(), nil}
	}
	subject, err := m.readSubject(claims)
	if err != nil {
		return Identity{}, &SignInError{err.Error(), nil}
	}
	var stated []string
	if d == nil || !d.Always() {
		if !overage(claims) { // then there is no claim
			if stated, err = m.readGroups(claims); err != nil {
				return Identity{}, &SignInError{err.Error(), nil}
			}
		}
	}
	switch {
	case d != nil && (d.Always() || overage(claims) || d.Cut(stated)):
		if stated, err = d.Groups(ctx, subject, claims); err == nil {
			err = checkGroups(stated)
		}
		if err != nil {
			return Identity{}, &SignInError{"your groups cannot be looked up now; try again later", err}
		}
	case overage(claims):
		return Identity{}, &SignInError{"you are in more groups than the identity provider states; the broker has to be configured to look them up", nil}
	}
	slices.Sort(stated)
	return Identity{Subject: subject, Groups: slices.Compact(stated), Method: method}, nil
}

// overage reports whether a token points elsewhere for the groups, as Entra ID's
// do above 200 (or 6, by the implicit flow).
func overage(claims map[string]any) bool {
	names, _ := claims["_claim_names"].(map[string]any)
	_, elsewhere := names["groups"]
	return elsewhere || claims["hasgroups"] == true || claims["hasgroups"] == "true"
}

// word is a code of a protocol as it may be shown: nothing else gets through.
func word(s string) string {
	s = strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r == '_' {
			return r
		}
		return -1
	}, s)
	return s[:min(len(s), 64)]
}

// withoutBody takes out of an error what a token endpoint has answered, which
// may repeat what it was sent.
func withoutBody(err error) error {
	var e *oauth2.RetrieveError
	if errors.As(err, &e) {
		return fmt.Errorf("token endpoint answers %d %s", e.Response.StatusCode, word(e.ErrorCode))
	}
	return err
}

// An issuer is who signs tokens: its metadata and keys, fetched when needed.
type issuer struct {
	url, audience string
	client        *http.Client

	mu      sync.Mutex
	found   *discovered
	err     error     // of the last attempt
	retry   time.Time // not before
	pending chan struct{}
}

type discovered struct {
	provider *oidc.Provider
	verifier *oidc.IDTokenVerifier
	until    time.Time
}

const (
	discoveryLife  = 24 * time.Hour
	discoveryRetry = 5 * time.Second
	discoveryTime  = 10 * time.Second
)

func newIssuer(url, audience string, client *http.Client) *issuer {
	if client == nil {
		client = &http.Client{}
	}
	c := *client
	if c.Timeout == 0 {
		c.Timeout = discoveryTime
	}
	base := c.Transport
	if base == nil {
		base = http.DefaultTransport
	}
	c.Transport = bounded{base}
	return &issuer{url: url, audience: audience, client: &c}
}

// discover returns the issuer's metadata. Of several callers one asks; what has
// failed is not asked again for a moment.
func (i *issuer) discover(ctx context.Context) (*discovered, error) {
	for {
		i.mu.Lock()
		switch {
		case i.found != nil && time.Now().Before(i.found.until):
			defer i.mu.Unlock()
			return i.found, nil
		case i.pending == nil && time.Now().Before(i.retry):
			defer i.mu.Unlock()
			return nil, i.err
		}
		if i.pending == nil {
			i.pending = make(chan struct{})
			go i.fetch(context.WithoutCancel(ctx), i.pending)
		}
		pending := i.pending
		i.mu.Unlock()
		select {
		case <-pending:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (i *issuer) fetch(ctx context.Context, done chan struct{}) {
	ctx = oidc.ClientContext(ctx, i.client)
	p, err := oidc.NewProvider(ctx, i.url)
	var found *discovered
	if err == nil {
		keys := *i.client // of the verifier, for as long as it lives
		keys.Transport = limited{i.client.Transport, rate.NewLimiter(rate.Every(keysEvery), 3)}
		found = &discovered{p, p.VerifierContext(oidc.ClientContext(ctx, &keys), &oidc.Config{
			ClientID: i.audience, SkipClientIDCheck: i.audience == "",
			Now: func() time.Time { return time.Now().Add(-clockSkew) },
		}), time.Now().Add(discoveryLife)}
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if err == nil {
		i.found, i.err = found, nil
	} else {
		i.err = &SignInError{"the identity provider cannot be reached; try again later", fmt.Errorf("issuer %s: %w", i.url, err)}
		i.retry = time.Now().Add(discoveryRetry)
		if i.found != nil { // better old than none
			i.found.until = i.retry
		}
	}
	i.pending = nil
	close(done)
}

// maxDocument bounds what is read of an answer, in bytes.
const maxDocument = 4 << 20

// bounded bounds the answers that it passes on.
type bounded struct{ http.RoundTripper }

func (b bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := b.RoundTripper.RoundTrip(r)
	if err == nil {
		resp.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(resp.Body, maxDocument), resp.Body}
	}
	return resp, err
}

// keysEvery is how often an issuer's keys are fetched at the most, in the long
// run: anybody can send a token with a signature that no key fits.
const keysEvery = 30 * time.Second

// limited refuses requests above a rate.
type limited struct {
	http.RoundTripper
	limit *rate.Limiter
}

func (l limited) RoundTrip(r *http.Request) (*http.Response, error) {
	if !l.limit.Allow() {
		return nil, errors.New("the issuer's keys were fetched a moment ago")
	}
	return l.RoundTripper.RoundTrip(r)
}

// withClient makes oauth2 use c, unless it is nil.
func withClient(ctx context.Context, c *http.Client) context.Context {
	if c == nil {
		return ctx
	}
	return oidc.ClientContext(ctx, c)
}
