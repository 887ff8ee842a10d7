package credential

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"cloud.google.com/go/auth"
	"cloud.google.com/go/auth/credentials"
	"cloud.google.com/go/auth/credentials/impersonate"
	"cloud.google.com/go/auth/httptransport"
)

// GoogleOptions say which tokens of Google's a server gets.
type GoogleOptions struct {
	// File is the agent's own credential: a key of a service account, a
	// configuration of workload identity federation, or what gcloud makes. If
	// empty, application default credentials; "metadata" is the metadata server
	// and nothing else.
	File string

	// Account is who the server sees. If it has neither Scopes nor Audience,
	// only the sessions of Rules get tokens.
	Account

	// Rules are for the sessions that a rule of the policy of that name let in.
	// What an entry leaves out is as in Account; the way to another account is
	// not, and Scopes and Audience count as one.
	Rules map[string]Account

	Header       string // X-Serverless-Authorization leaves Authorization to the server itself; if empty, Authorization
	QuotaProject string // sent as X-Goog-User-Project

	Transport http.RoundTripper // to Google; if nil, Go's default
	Used      func(Use)         // may be nil
	Log       *slog.Logger      // if nil, nothing is logged
}

// An Account is a service account, and what its tokens are good for.
type Account struct {
	Impersonate string        // its e-mail; if empty, the agent's own credential is presented
	Delegates   []string      // who is impersonated on the way there
	Lifetime    time.Duration // of access tokens of an impersonated account; if zero, 1 h
	Scopes      []string      // of access tokens
	Audience    string        // of ID tokens: Cloud Run, IAP. With an Audience, HTTP requests carry ID tokens
}

// or fills in what a leaves out.
func (a Account) or(b Account) Account {
	if a.Impersonate == "" || a.Impersonate == b.Impersonate {
		a.Impersonate = b.Impersonate
		if a.Delegates == nil {
			a.Delegates = b.Delegates
		}
	}
	a.Lifetime = cmp.Or(a.Lifetime, b.Lifetime)
	if a.Scopes == nil && a.Audience == "" {
		a.Scopes, a.Audience = b.Scopes, b.Audience
	}
	return a
}

// Google presents access tokens or ID tokens of Google's.
type Google struct {
	o      GoogleOptions
	client *http.Client
	own    own // zero: looked for at the first use
	ledger ledger

	mu     sync.Mutex
	tokens map[string]*cache // by account, scopes and audience
}

var email = regexp.MustCompile(`^[^@\s/]+@[^@\s/]+$`)

const (
	cloudPlatform = "https://www.googleapis.com/auth/cloud-platform"
	maxLifetime   = 12 * time.Hour // of Google's, where the organisation allows more than one
)

// NewGoogle checks o and reads its file.
func NewGoogle(o GoogleOptions) (*Google, error) {
	g := &Google{o: o, client: issuerClient(o.Transport), tokens: map[string]*cache{}}
	g.ledger.used = o.Used
	switch o.Header {
	case "":
		g.o.Header = "Authorization"
	case "Authorization", "X-Serverless-Authorization":
	default:
		return nil, fmt.Errorf("header %q: Google reads Authorization and X-Serverless-Authorization", o.Header)
	}
	if o.File != "" && o.File != "metadata" {
		b, err := os.ReadFile(o.File)
		if err != nil {
			return nil, err
		}
		if g.own, err = ownFrom(b); err != nil {
			return nil, fmt.Errorf("%s: %w", o.File, err)
		}
	} else if o.File == "metadata" {
		g.own.metadata = true
	}
	if o.Account.Scopes == nil && o.Audience == "" {
		if len(o.Rules) == 0 {
			return nil, errors.New("says neither scopes (of an access token) nor audience (of an ID token)")
		}
	} else if err := o.Account.check(); err != nil {
		return nil, err
	}
	g.o.Rules = map[string]Account{}
	for rule, a := range o.Rules {
		a = a.or(o.Account)
		if err := a.check(); err != nil {
			return nil, fmt.Errorf("rule %q: %w", rule, err)
		}
		g.o.Rules[rule] = a
	}
	return g, nil
}

func (a Account) check() error {
	for _, e := range append([]string{a.Impersonate}, a.Delegates...) {
		if e != "" && !email.MatchString(e) {
			return fmt.Errorf("%q is not the e-mail of a service account", e)
		}
	}
	for _, s := range a.Scopes {
		if s == "" || strings.ContainsAny(s, " ,\t\n") {
			return fmt.Errorf("scope %q is none: one an entry", s)
		}
	}
	switch {
	case len(a.Scopes) == 0 && a.Audience == "":
		return errors.New("says neither scopes (of an access token) nor audience (of an ID token)")
	case a.Impersonate == "" && len(a.Delegates) > 0:
		return errors.New("delegates lead to an account, and impersonate does not say which")
	case a.Impersonate == "" && a.Lifetime != 0:
		return errors.New("lifetime is for impersonated accounts; that of the agent's own tokens is Google's")
	case a.Lifetime != 0 && len(a.Scopes) == 0:
		return errors.New("lifetime is for access tokens; ID tokens are good for an hour")
	case a.Lifetime < 0 || a.Lifetime > maxLifetime || a.Lifetime > 0 && a.Lifetime < time.Minute:
		return errors.New("lifetime must be 1m to 12h")
	}
	return nil
}

// account returns what a session may have.
func (g *Google) account(s Session) (Account, error) {
	if a, ok := g.o.Rules[s.Rule]; ok {
		return a, nil
	}
	if g.o.Account.Scopes == nil && g.o.Audience == "" {
		return Account{}, fmt.Errorf("gcp credential: there is none for rule %q", s.Rule)
	}
	return g.o.Account, nil
}

// Authorize implements [Source].
func (g *Google) Authorize(r *http.Request, s Session) error {
	a, err := g.account(s)
	if err != nil {
		return err
	}
	t, err := g.token(r.Context(), a)
	if err != nil {
		return err
	}
	g.ledger.tell(s, t)
	r.Header.Set(g.o.Header, "Bearer "+t.value)
	if a.Audience != "" {
		return nil
	}
	// What follows is for Google's APIs; Cloud Audit Logs keep the reason.
	r.Header.Set("X-Goog-Request-Reason", requestReason(s))
	if g.o.QuotaProject != "" {
		r.Header.Set("X-Goog-User-Project", g.o.QuotaProject)
	}
	return nil
}

func requestReason(s Session) string { return "mcp-session/" + s.ID }

// token returns an ID token if a has an audience, otherwise an access token.
func (g *Google) token(ctx context.Context, a Account) (token, error) {
	if a.Audience != "" {
		a.Scopes, a.Lifetime = nil, 0
	}
	key := fmt.Sprintf("%q %q %d %q %q", a.Impersonate, a.Delegates, a.Lifetime, a.Scopes, a.Audience)
	g.mu.Lock()
	c := g.tokens[key]
	if c == nil {
		c = &cache{log: logOr(g.o.Log), fetch: func(ctx context.Context) (token, error) { return g.fetch(ctx, a) }}
		g.tokens[key] = c
	}
	g.mu.Unlock()
	t, err := c.get(ctx)
	if err != nil {
		return token{}, fmt.Errorf("gcp credential of %s: %w", cmp.Or(a.Impersonate, "the agent"), err)
	}
	return t, nil
}

// fetch asks Google. A credential with a lifetime is good for one token in
// Google's library, so there is a new one each time.
func (g *Google) fetch(ctx context.Context, a Account) (token, error) {
	o, err := g.find()
	if err != nil {
		return token{}, err
	}
	var (
		principal = a.Impersonate
		from      auth.TokenProvider
	)
	switch {
	case a.Impersonate == "" && a.Audience != "":
		principal = o.principal(ctx)
		from, err = o.idTokens(g.client, a.Audience)
	case a.Impersonate == "":
		principal = o.principal(ctx)
		from, err = o.accessTokens(g.client, a.Scopes)
	default:
		var client *http.Client
		var base *auth.Credentials
		if client, base, err = g.impersonator(o); err != nil {
			break
		}
		if a.Audience != "" {
			from, err = impersonate.NewIDTokenCredentials(&impersonate.IDTokenOptions{
				Audience: a.Audience, TargetPrincipal: a.Impersonate, Delegates: a.Delegates, IncludeEmail: true,
				Client: client, Credentials: base, Logger: silent,
			})
		} else {
			from, err = impersonate.NewCredentials(&impersonate.CredentialsOptions{
				TargetPrincipal: a.Impersonate, Delegates: a.Delegates, Scopes: a.Scopes, Lifetime: cmp.Or(a.Lifetime, time.Hour),
				Client: client, Credentials: base, Logger: silent,
			})
		}
	}
	if err != nil {
		return token{}, err
	}
	t, err := from.Token(ctx)
	if err != nil {
		return token{}, err
	}
	if t.Type != "" && !strings.EqualFold(t.Type, "Bearer") {
		return token{}, fmt.Errorf("the token is of type %q, not Bearer", t.Type)
	}
	until := t.Expiry
	if a.Audience != "" {
		if until, err = expiry(t.Value); err != nil {
			return token{}, err
		}
	}
	return token{t.Value, until, Use{Kind: "gcp", Principal: principal, Scopes: a.Scopes, Audience: a.Audience}}, nil
}

// expiry reads the end of an ID token: it may have been made a while ago.
func expiry(jwt string) (time.Time, error) {
	var claims struct {
		Expiry int64 `json:"exp"`
	}
	parts := strings.Split(jwt, ".")
	if len(parts) == 3 {
		if b, err := base64.RawURLEncoding.DecodeString(parts[1]); err == nil {
			json.Unmarshal(b, &claims)
		}
	}
	if claims.Expiry == 0 {
		return time.Time{}, errors.New("the answer is no ID token")
	}
	return time.Unix(claims.Expiry, 0), nil
}

// impersonator is a client that carries the agent's own credential.
func (g *Google) impersonator(o own) (*http.Client, *auth.Credentials, error) {
	from, err := o.accessTokens(g.client, []string{cloudPlatform})
	if err != nil {
		return nil, nil, err
	}
	// The text, for the quota project without which a person's credential is refused.
	base := auth.NewCredentials(&auth.CredentialsOptions{TokenProvider: from, JSON: o.text})
	client, err := httptransport.NewClient(&httptransport.Options{
		Credentials: base, BaseRoundTripper: g.client.Transport, DisableTelemetry: true, Logger: silent,
		InternalOptions: &httptransport.InternalOptions{SkipUniverseDomainValidation: true},
	})
	return client, base, err
}

// find looks for the agent's own credential as Google's libraries do.
func (g *Google) find() (own, error) {
	g.mu.Lock()
	o := g.own
	g.mu.Unlock()
	if o.metadata || o.text != nil {
		return o, nil
	}
	found, err := credentials.DetectDefault(&credentials.DetectOptions{Scopes: []string{cloudPlatform}, Client: g.client, Logger: silent})
	if err != nil {
		return own{}, fmt.Errorf("the agent has no Google credential: %w", err)
	}
	if o.metadata = found.JSON() == nil; !o.metadata {
		if o, err = ownFrom(found.JSON()); err != nil {
			return own{}, fmt.Errorf("application default credentials: %w", err)
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.own = o
	return o, nil
}

// silent stands where Google's library would log by its environment variable,
// tokens and all.
var silent = slog.New(slog.DiscardHandler)

// own is the agent's own credential.
type own struct {
	metadata bool   // the metadata server's; otherwise
	text     []byte // of a credential file

	Type            string `json:"type"`
	Email           string `json:"client_email"` // service_account
	Key             string `json:"private_key"`
	KeyID           string `json:"private_key_id"`
	TokenURI        string `json:"token_uri"`
	User            string `json:"account"`                           // authorized_user
	TokenURL        string `json:"token_url"`                         // external_account
	Impersonate     string `json:"service_account_impersonation_url"` // external_account, impersonated_service_account
	CredentialsFrom struct {
		Executable json.RawMessage `json:"executable"`
	} `json:"credential_source"`
	Source json.RawMessage `json:"source_credentials"` // impersonated_service_account
}

// ownFrom reads a credential file, and refuses one that would have the agent
// run a program or send what it has to somebody else than Google.
func ownFrom(text []byte) (own, error) {
	o := own{text: text}
	if json.Unmarshal(text, &o) != nil {
		return own{}, errors.New("is no credential file: not JSON as expected") // the text may be a key
	}
	switch credentials.CredType(o.Type) {
	case credentials.ServiceAccount, credentials.AuthorizedUser, credentials.ExternalAccountAuthorizedUser:
	case credentials.ExternalAccount:
		if o.CredentialsFrom.Executable != nil {
			return own{}, errors.New("credential_source.executable: the agent runs no programs for credentials; use file or url")
		}
	case credentials.ImpersonatedServiceAccount:
		if _, err := ownFrom(o.Source); err != nil {
			return own{}, fmt.Errorf("source_credentials: %w", err)
		}
	default:
		return own{}, fmt.Errorf("type %q: must be service_account, external_account, authorized_user or impersonated_service_account", o.Type)
	}
	for key, value := range map[string]string{"token_uri": o.TokenURI, "token_url": o.TokenURL, "service_account_impersonation_url": o.Impersonate} {
		if u, err := url.Parse(value); value != "" && (err != nil || u.Scheme != "https" || !strings.HasSuffix(u.Host, ".googleapis.com")) {
			return own{}, fmt.Errorf("%s: %q is not an address of Google's", key, value)
		}
	}
	return o, nil
}

// accessTokens returns where the credential's access tokens come from.
func (o own) accessTokens(client *http.Client, scopes []string) (auth.TokenProvider, error) {
	if o.metadata {
		return instance{scopes: scopes}, nil
	}
	return credentials.NewCredentialsFromJSON(credentials.CredType(o.Type), o.text, &credentials.DetectOptions{
		Scopes: scopes, Client: client, Logger: silent,
	})
}

// idTokens returns where the credential's ID tokens come from.
func (o own) idTokens(client *http.Client, audience string) (auth.TokenProvider, error) {
	if o.metadata {
		return instance{audience: audience}, nil
	}
	if credentials.CredType(o.Type) != credentials.ServiceAccount {
		return nil, fmt.Errorf("a credential of type %s makes no ID tokens of its own; say which account to impersonate", o.Type)
	}
	return auth.New2LOTokenProvider(&auth.Options2LO{
		Email: o.Email, PrivateKey: []byte(o.Key), PrivateKeyID: o.KeyID,
		TokenURL:   cmp.Or(o.TokenURI, "https://oauth2.googleapis.com/token"),
		UseIDToken: true, PrivateClaims: map[string]any{"target_audience": audience},
		Client: client, Logger: silent,
	})
}

var impersonated = regexp.MustCompile(`/serviceAccounts/([^/:]+):`)

// principal is the e-mail of the credential's account, or "": it is for the
// audit alone, so that not to know it is no failure.
func (o own) principal(ctx context.Context) string {
	if o.metadata {
		address, err := metadataServer.EmailWithContext(ctx, "")
		if err != nil {
			return ""
		}
		return address
	}
	if m := impersonated.FindStringSubmatch(o.Impersonate); m != nil {
		return m[1]
	}
	return cmp.Or(o.Email, o.User)
}

// project is that of the account's e-mail, or "".
func (a Account) project() string {
	_, domain, _ := strings.Cut(a.Impersonate, "@")
	project, ok := strings.CutSuffix(domain, ".iam.gserviceaccount.com")
	if !ok {
		return ""
	}
	return project
}

// narrow returns a with those of its scopes that are asked for. Google's
// libraries ask for broad ones by default; so if there are none of them in a,
// it is what it was.
func (a Account) narrow(asked []string) Account {
	scopes := slices.DeleteFunc(slices.Clone(a.Scopes), func(s string) bool { return !slices.Contains(asked, s) })
	if len(scopes) > 0 {
		a.Scopes = scopes
	}
	a.Audience = ""
	return a
}
