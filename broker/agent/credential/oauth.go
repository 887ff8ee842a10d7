package credential

import (
	"cmp"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"
)

// OAuthOptions say how tokens of an authorization server are asked for: with
// the client credentials grant, or by [Exchange].
type OAuthOptions struct {
	TokenURL     string
	ClientID     string
	ClientSecret string
	Post         bool // the secret is sent in the form, not as HTTP basic authentication
	Scopes       []string
	Audience     string    // who the token is for, by name,
	Resource     string    // or by address (RFC 8707)
	Exchange     *Exchange // if nil, the token is the client's own, for all callers

	Transport http.RoundTripper // if nil, Go's default
	Used      func(Use)         // may be nil
	Log       *slog.Logger      // if nil, nothing is logged
}

// An Exchange is token exchange (RFC 8693): each caller has tokens of their own.
//
// What is exchanged is a JWT that the agent signs and that states the session's
// subject and groups: the agent has no token of the caller's, and any other
// that it could be given would say the same of everybody. Whoever holds the key
// can be anybody to the authorization server, so it should take such JWTs from
// this client only, and for these users and scopes only.
type Exchange struct {
	Key      crypto.Signer // RSA, P-256 or Ed25519
	Issuer   string        // iss
	Audience string        // aud; if empty, the token URL
}

// maxCallers bounds the callers whose tokens are kept.
const maxCallers = 1000

// How long a token of which the server does not say so is used, and how long
// the agent's statement about a caller is good.
const (
	unknownLife   = 5 * time.Minute
	statementLife = time.Minute
)

// OAuth presents access tokens of an OAuth authorization server.
type OAuth struct {
	o      OAuthOptions
	client *http.Client
	signer jose.Signer // for exchange
	ledger ledger

	mu     sync.Mutex
	tokens map[string]*cache // by caller; "" where all have the same
}

// NewOAuth checks o.
func NewOAuth(o OAuthOptions) (*OAuth, error) {
	a := &OAuth{o: o, client: issuerClient(o.Transport), tokens: map[string]*cache{}}
	a.ledger.used = o.Used
	switch {
	case o.TokenURL == "":
		return nil, errors.New("token_url is missing")
	case o.Exchange == nil && (o.ClientID == "" || o.ClientSecret == ""):
		return nil, errors.New("client_id and client_secret are missing; the client credentials grant has nothing else to show")
	case o.ClientID == "" && o.ClientSecret != "":
		return nil, errors.New("client_id is missing")
	}
	if x := o.Exchange; x != nil {
		if x.Issuer == "" {
			return nil, errors.New("exchange: issuer is missing; it is what the authorization server knows the key by")
		}
		var alg jose.SignatureAlgorithm
		switch key := x.Key.(type) {
		case *rsa.PrivateKey:
			alg = jose.RS256
		case ed25519.PrivateKey:
			alg = jose.EdDSA
		case *ecdsa.PrivateKey:
			if key.Curve.Params().BitSize != 256 {
				return nil, errors.New("exchange: the signing key must be RSA, P-256 or Ed25519")
			}
			alg = jose.ES256
		default:
			return nil, errors.New("exchange: the signing key must be RSA, P-256 or Ed25519")
		}
		public := jose.JSONWebKey{Key: x.Key.Public()}
		sum, err := public.Thumbprint(crypto.SHA256)
		if err != nil {
			return nil, fmt.Errorf("exchange: %w", err)
		}
		key := jose.JSONWebKey{Key: x.Key, KeyID: base64.RawURLEncoding.EncodeToString(sum)}
		a.signer, err = jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: key}, (&jose.SignerOptions{}).WithType("JWT"))
		if err != nil {
			return nil, fmt.Errorf("exchange: %w", err)
		}
	}
	return a, nil
}

// Authorize implements [Source].
func (a *OAuth) Authorize(r *http.Request, s Session) error {
	t, err := a.token(r.Context(), s)
	if err != nil {
		return fmt.Errorf("oauth credential: %w", err)
	}
	a.ledger.tell(s, t)
	r.Header.Set("Authorization", "Bearer "+t.value)
	return nil
}

func (a *OAuth) token(ctx context.Context, s Session) (token, error) {
	caller, groups := "", []string(nil)
	if a.o.Exchange != nil {
		if s.Subject == "" {
			return token{}, errors.New("the session has no subject to state")
		}
		groups = slices.Sorted(slices.Values(s.Groups))
		caller = fmt.Sprintf("%q %q", s.Subject, groups)
	}
	a.mu.Lock()
	c := a.tokens[caller]
	if c == nil {
		if len(a.tokens) >= maxCallers {
			a.forget()
		}
		c = &cache{log: logOr(a.o.Log), fetch: func(ctx context.Context) (token, error) { return a.fetch(ctx, s.Subject, groups) }}
		a.tokens[caller] = c
	}
	a.mu.Unlock()
	return c.get(ctx)
}

// forget drops the caller who has been away for longest.
func (a *OAuth) forget() {
	var oldest string
	var since time.Time
	for caller, c := range a.tokens {
		c.mu.Lock()
		if since.IsZero() || c.used.Before(since) {
			oldest, since = caller, c.used
		}
		c.mu.Unlock()
	}
	delete(a.tokens, oldest)
}

func (a *OAuth) fetch(ctx context.Context, subject string, groups []string) (token, error) {
	c := clientcredentials.Config{
		ClientID: a.o.ClientID, ClientSecret: a.o.ClientSecret, TokenURL: a.o.TokenURL,
		Scopes: a.o.Scopes, AuthStyle: oauth2.AuthStyleInHeader, EndpointParams: url.Values{},
	}
	if a.o.Post || a.o.ClientSecret == "" {
		c.AuthStyle = oauth2.AuthStyleInParams
	}
	for key, value := range map[string]string{"audience": a.o.Audience, "resource": a.o.Resource} {
		if value != "" {
			c.EndpointParams.Set(key, value)
		}
	}
	use := Use{Kind: "oauth", Principal: a.o.ClientID, Scopes: a.o.Scopes, Audience: cmp.Or(a.o.Audience, a.o.Resource)}
	if a.o.Exchange != nil {
		statement, err := a.state(subject, groups)
		if err != nil {
			return token{}, err
		}
		use.Principal = subject
		c.EndpointParams.Set("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange")
		c.EndpointParams.Set("requested_token_type", "urn:ietf:params:oauth:token-type:access_token")
		c.EndpointParams.Set("subject_token_type", "urn:ietf:params:oauth:token-type:jwt")
		c.EndpointParams.Set("subject_token", statement)
	}
	t, err := c.Token(context.WithValue(ctx, oauth2.HTTPClient, a.client))
	var refused *oauth2.RetrieveError
	if errors.As(err, &refused) {
		if refused.Response.StatusCode < 300 {
			return token{}, fmt.Errorf("%s answers %s with an error", a.o.TokenURL, refused.Response.Status) // nobody has redacted it
		}
		return token{}, fmt.Errorf("%s answers %s %s", a.o.TokenURL, refused.Response.Status,
			strings.TrimRight(refused.ErrorCode+": "+refused.ErrorDescription, ": "))
	}
	if err != nil {
		return token{}, err
	}
	if !strings.EqualFold(t.Type(), "Bearer") {
		return token{}, fmt.Errorf("%s: the token is of type %q, not Bearer", a.o.TokenURL, t.Type())
	}
	until := t.Expiry
	if until.IsZero() {
		until = time.Now().Add(unknownLife)
	}
	return token{t.AccessToken, until, use}, nil
}

// state is the agent's signed word on who the caller is.
func (a *OAuth) state(subject string, groups []string) (string, error) {
	now := time.Now()
	return jwt.Signed(a.signer).Claims(jwt.Claims{
		Issuer: a.o.Exchange.Issuer, Subject: subject, ID: rand.Text(),
		Audience: jwt.Audience{cmp.Or(a.o.Exchange.Audience, a.o.TokenURL)},
		IssuedAt: jwt.NewNumericDate(now), Expiry: jwt.NewNumericDate(now.Add(statementLife)),
	}).Claims(map[string]any{"groups": append([]string{}, groups...)}).Serialize()
}
