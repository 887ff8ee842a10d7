package oauth

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/zitadel/oidc/v3/pkg/oidc"
	"github.com/zitadel/oidc/v3/pkg/op"

	"example.com/broker/broker/grant"
	"example.com/broker/broker/identity"
)

// A request is an authorization request: asked, decided on by a person, then
// good for one code. It implements op.AuthRequest.
type request struct {
	id        string
	clientID  string
	redirect  string
	state     string
	challenge string
	server    string
	resource  string
	browser   string

	decided atomic.Bool
	mu      sync.Mutex
	holder  *holder // set when allowed
}

// allow is the person's yes; it is false for the second.
func (r *request) allow(id identity.Identity, until time.Time) bool {
	if !r.decided.CompareAndSwap(false, true) {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.holder = &holder{
		Subject: id.Subject, Groups: id.Groups, Client: r.clientID, Resource: r.resource,
		Family: rand.Text(), Since: time.Now().Unix(), Until: until.Unix(),
	}
	return true
}

func (r *request) held() *holder {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.holder
}

func (r *request) GetID() string         { return r.id }
func (r *request) GetACR() string        { return "" }
func (r *request) GetAMR() []string      { return nil }
func (r *request) GetAudience() []string { return []string{r.resource} }
func (r *request) GetClientID() string   { return r.clientID }
func (r *request) GetNonce() string      { return "" }
func (r *request) GetRedirectURI() string {
	return r.redirect
}
func (r *request) GetResponseType() oidc.ResponseType { return oidc.ResponseTypeCode }
func (r *request) GetResponseMode() oidc.ResponseMode { return oidc.ResponseModeQuery }
func (r *request) GetScopes() []string                { return []string{Scope, oidc.ScopeOfflineAccess} }
func (r *request) GetState() string                   { return r.state }
func (r *request) Done() bool                         { return r.held() != nil }
func (r *request) GetCodeChallenge() *oidc.CodeChallenge {
	return &oidc.CodeChallenge{Challenge: r.challenge, Method: oidc.CodeChallengeMethodS256}
}

func (r *request) GetSubject() string {
	if h := r.held(); h != nil {
		return h.Subject
	}
	return ""
}

func (r *request) GetAuthTime() time.Time {
	if h := r.held(); h != nil {
		return time.Unix(h.Since, 0)
	}
	return time.Time{}
}

// A holder is whom tokens are of: what a refresh token seals. It implements
// op.RefreshTokenRequest.
type holder struct {
	Subject  string   `json:"sub"`
	Groups   []string `json:"grp,omitempty"`
	Client   string   `json:"cli"`
	Resource string   `json:"res"`
	Family   string   `json:"fam"`
	Since    int64    `json:"since"` // of the sign-in, s since 1970
	Until    int64    `json:"until"` // and its end
	Version  uint64   `json:"ver"`   // of the family's record, while this token is good
}

func (h *holder) GetAMR() []string          { return nil }
func (h *holder) GetAudience() []string     { return []string{h.Resource} }
func (h *holder) GetAuthTime() time.Time    { return time.Unix(h.Since, 0) }
func (h *holder) GetClientID() string       { return h.Client }
func (h *holder) GetScopes() []string       { return []string{Scope, oidc.ScopeOfflineAccess} }
func (h *holder) GetSubject() string        { return h.Subject }
func (h *holder) SetCurrentScopes([]string) {}

// holderOf returns whom a token request of op's is of.
func holderOf(r op.TokenRequest) (*holder, error) {
	switch r := r.(type) {
	case *request:
		if h := r.held(); h != nil {
			return h, nil
		}
	case *holder:
		return r, nil
	}
	return nil, oidc.ErrInvalidGrant()
}

// A storage is what package op asks of us.
type storage struct{ *Server }

func targetError(text string) error {
	return &oidc.Error{ErrorType: "invalid_target", Description: text}
}

// CreateAuthRequest takes a request whose client and redirect op has checked.
func (s *storage) CreateAuthRequest(ctx context.Context, r *oidc.AuthRequest, _ string) (op.AuthRequest, error) {
	asked, _ := ctx.Value(askedKey{}).(*asked)
	if asked == nil {
		return nil, oidc.ErrInvalidRequest()
	}
	if r.CodeChallenge == "" || r.CodeChallengeMethod != oidc.CodeChallengeMethodS256 || len(r.CodeChallenge) != 43 {
		return nil, oidc.ErrInvalidRequest().WithDescription("PKCE is required: code_challenge, with code_challenge_method S256")
	}
	if asked.mode != "" && asked.mode != string(oidc.ResponseModeQuery) {
		return nil, oidc.ErrInvalidRequest().WithDescription("response_mode must be query")
	}
	if len(r.State) > 4096 {
		return nil, oidc.ErrInvalidRequest().WithDescription("state is too long")
	}
	if len(asked.resources) != 1 {
		return nil, targetError("resource must be there once: the URL of the MCP server that the token is for")
	}
	server, ok := s.serverOf(asked.resources[0])
	if !ok {
		return nil, targetError("resource is no MCP server of this broker's: " + s.Resource("SERVER"))
	}
	req := &request{
		id: rand.Text(), clientID: r.ClientID, redirect: r.RedirectURI, state: r.State, challenge: r.CodeChallenge,
		server: server, resource: asked.resources[0], browser: asked.browser,
	}
	s.requests.Put(req.id, req, time.Now().Add(requestLife))
	return req, nil
}

var errGone = errors.New("the request is over; begin again")

func (s *storage) AuthRequestByID(_ context.Context, id string) (op.AuthRequest, error) {
	r, ok := s.requests.Get(id)
	if !ok {
		return nil, errGone
	}
	return r, nil
}

func (s *storage) SaveAuthCode(_ context.Context, id, code string) error {
	r, ok := s.requests.Take(id) // one code a request
	if !ok || r.held() == nil {
		return errGone
	}
	s.requests.Put(code, r, time.Now().Add(codeLife))
	s.spent.Put(code, r.held().Family, time.Now().Add(requestLife))
	return nil
}

// AuthRequestByCode uses a code up, whatever comes of it. One that is brought
// twice has been seen by two: what was given for it ends.
func (s *storage) AuthRequestByCode(ctx context.Context, code string) (op.AuthRequest, error) {
	if r, ok := s.requests.Take(code); ok {
		return r, nil
	}
	if family, ok := s.spent.Take(code); ok {
		s.end(ctx, family, "", "its code was used twice")
	}
	return nil, oidc.ErrInvalidGrant()
}

func (s *storage) DeleteAuthRequest(context.Context, string) error { return nil } // it was used up

// CreateAccessToken is not called: there is a refresh token with each.
func (s *storage) CreateAccessToken(context.Context, op.TokenRequest) (string, time.Time, error) {
	return "", time.Time{}, oidc.ErrServerError()
}

// sealRefresh is the purpose of a refresh token.
const sealRefresh = "oauth refresh"

// CreateAccessAndRefreshTokens gives out tokens, and makes the refresh token
// before worthless.
func (s *storage) CreateAccessAndRefreshTokens(ctx context.Context, r op.TokenRequest, _ string) (id, refresh string, until time.Time, err error) {
	h, err := holderOf(r)
	if err != nil {
		return "", "", time.Time{}, err
	}
	if asked, _ := ctx.Value(askedKey{}).(*asked); asked != nil && len(asked.resources) > 0 && !slices.Equal(asked.resources, []string{h.Resource}) {
		return "", "", time.Time{}, targetError("resource is not the one that was allowed")
	}
	end := time.Unix(h.Until, 0)
	if !time.Now().Before(end) {
		return "", "", time.Time{}, oidc.ErrInvalidGrant().WithDescription("the sign-in is over")
	}
	if s.o.Desk.IsDisabled(h.Subject, "") {
		return "", "", time.Time{}, oidc.ErrInvalidGrant().WithDescription("this identity has been disabled")
	}
	next := *h
	next.Version++
	data, err := json.Marshal(family{Subject: h.Subject, Client: h.Client, Resource: h.Resource, Until: end})
	if err != nil {
		return "", "", time.Time{}, err
	}
	err = s.o.Store.Commit(ctx, grant.Change{Records: []grant.Record{{Kind: grant.Clients, ID: h.Family, Version: next.Version, Data: data}}})
	switch {
	case errors.Is(err, grant.ErrConflict): // somebody has used it before
		s.end(ctx, h.Family, h.Subject, "its refresh token was used twice")
		return "", "", time.Time{}, oidc.ErrInvalidGrant()
	case err != nil:
		s.o.Log.Error("tokens cannot be given out", "error", err)
		return "", "", time.Time{}, oidc.ErrServerError()
	}
	if refresh, err = s.o.Sealer.Seal(sealRefresh, next, end); err != nil {
		return "", "", time.Time{}, err
	}
	until = time.Now().Add(accessLife)
	if end.Before(until) {
		until = end
	}
	return rand.Text(), refresh, until, nil
}

// A family is what the store has of a client's sign-in: all tokens that came of
// it. While the record is there they are good.
type family struct {
	Subject  string    `json:"subject"`
	Client   string    `json:"client"`
	Resource string    `json:"resource"`
	Until    time.Time `json:"until"`
}

// end makes all tokens of a family worthless.
func (s *Server) end(ctx context.Context, id, subject, reason string) {
	ctx = context.WithoutCancel(ctx)
	for range 10 { // it may be renewed meanwhile
		record, err := s.o.Store.Record(ctx, grant.Clients, id)
		if err != nil {
			break
		}
		var f family
		if json.Unmarshal(record.Data, &f) == nil && subject == "" {
			subject = f.Subject
		}
		server, _ := s.serverOf(f.Resource)
		s.o.Log.Warn("a client's tokens end", "subject", subject, "client", short(f.Client), "server", server, "reason", reason)
		err = s.o.Store.Commit(ctx, grant.Change{Records: []grant.Record{{Kind: grant.Clients, ID: id, Version: record.Version + 1, Delete: true}}})
		if errors.Is(err, grant.ErrConflict) {
			continue
		}
		event := grant.Event{Type: grant.ClientEnded, Subject: subject, Server: server, Reason: reason, Detail: map[string]string{"client": short(f.Client)}}
		if err = errors.Join(err, s.o.Desk.Record(ctx, event)); err != nil {
			s.o.Log.Error("the end of a client's tokens is not on record", "error", err)
		}
		return
	}
}

// Sweep removes what the store has of sign-ins that are over.
func (s *Server) Sweep(ctx context.Context) error {
	var over []grant.Record
	for record, err := range s.o.Store.Records(ctx, grant.Clients) {
		if err != nil {
			return err
		}
		var f family
		if json.Unmarshal(record.Data, &f) != nil || time.Now().After(f.Until) {
			over = append(over, grant.Record{Kind: grant.Clients, ID: record.ID, Version: record.Version + 1, Delete: true})
		}
	}
	for _, record := range over {
		if err := s.o.Store.Commit(ctx, grant.Change{Records: []grant.Record{record}}); err != nil && !errors.Is(err, grant.ErrConflict) {
			return err
		}
	}
	return nil
}

// TokenRequestByRefreshToken reads a refresh token. That it is good once is seen
// to when it is traded.
func (s *storage) TokenRequestByRefreshToken(_ context.Context, token string) (op.RefreshTokenRequest, error) {
	var h holder
	if err := s.o.Sealer.Open(sealRefresh, token, &h); err != nil {
		return nil, op.ErrInvalidRefreshToken
	}
	return &h, nil
}

func (s *storage) TerminateSession(context.Context, string, string) error { return nil }

// GetRefreshTokenInfo is asked of a token that is to be revoked.
func (s *storage) GetRefreshTokenInfo(_ context.Context, clientID, token string) (subject, id string, err error) {
	var h holder
	if s.o.Sealer.Open(sealRefresh, token, &h) != nil || h.Client != clientID {
		return "", "", op.ErrInvalidRefreshToken
	}
	return h.Subject, token, nil
}

// RevokeToken ends a family, by its refresh token (RFC 7009).
func (s *storage) RevokeToken(ctx context.Context, token, _, clientID string) *oidc.Error {
	var h holder
	if s.o.Sealer.Open(sealRefresh, token, &h) == nil && h.Client == clientID {
		s.end(ctx, h.Family, h.Subject, "revoked by the client")
	}
	return nil
}

func (s *storage) SigningKey(context.Context) (op.SigningKey, error) { return s.key, nil }

func (s *storage) SignatureAlgorithms(context.Context) ([]jose.SignatureAlgorithm, error) {
	return []jose.SignatureAlgorithm{algorithm}, nil
}

func (s *storage) KeySet(context.Context) ([]op.Key, error) { return []op.Key{publicKey{s.key}}, nil }

func (s *storage) GetClientByClientID(ctx context.Context, id string) (op.Client, error) {
	c, err := s.client(ctx, id)
	if err != nil {
		return nil, err
	}
	return c, nil
}

func (s *storage) AuthorizeClientIDSecret(context.Context, string, string) error {
	return errors.New("clients have no secrets here")
}

// GetPrivateClaimsFromRequest adds to an access token what a server's check needs.
func (s *storage) GetPrivateClaimsFromRequest(_ context.Context, r op.TokenRequest, _ []string) (map[string]any, error) {
	h, err := holderOf(r)
	if err != nil {
		return nil, err
	}
	return map[string]any{"use": useAccess, "groups": h.Groups, "client_id": h.Client, "fam": h.Family}, nil
}

// What there is none of.

func (s *storage) GetPrivateClaimsFromScopes(context.Context, string, string, []string) (map[string]any, error) {
	return nil, nil
}
func (s *storage) SetUserinfoFromScopes(context.Context, *oidc.UserInfo, string, string, []string) error {
	return nil
}
func (s *storage) SetUserinfoFromToken(context.Context, *oidc.UserInfo, string, string, string) error {
	return oidc.ErrAccessDenied()
}
func (s *storage) SetIntrospectionFromToken(context.Context, *oidc.IntrospectionResponse, string, string, string) error {
	return oidc.ErrAccessDenied()
}
func (s *storage) GetKeyByIDAndClientID(context.Context, string, string) (*jose.JSONWebKey, error) {
	return nil, errClient
}
func (s *storage) ValidateJWTProfileScopes(context.Context, string, []string) ([]string, error) {
	return nil, oidc.ErrInvalidScope()
}
func (s *storage) Health(context.Context) error { return nil }
