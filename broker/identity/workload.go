package identity

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"
)

// WorkloadOptions is an issuer of tokens to programs: GitHub Actions, a
// Kubernetes cluster, Google.
type WorkloadOptions struct {
	Issuer   string
	Audience string // that its tokens must have: the broker's
	Mapping  *Mapping
	Groups   []string // added to those of the mapping
	Client   *http.Client
}

// Workloads knows programs by the signed tokens that their platforms give them.
type Workloads struct {
	issuers map[string][]*workload // by issuer: several may differ in the condition
}

type workload struct {
	o      WorkloadOptions
	issuer *issuer
}

// NewWorkloads returns the Workloads of these issuers.
func NewWorkloads(all ...WorkloadOptions) *Workloads {
	w := &Workloads{map[string][]*workload{}}
	for _, o := range all {
		w.issuers[o.Issuer] = append(w.issuers[o.Issuer], &workload{o, newIssuer(o.Issuer, o.Audience, o.Client)})
	}
	return w
}

// maxToken bounds a token, in bytes.
const maxToken = 32 << 10

// Verify returns the identity of whom the token was given to, and until when it
// is proven. The first entry of the token's issuer whose condition holds counts.
// Errors are [*SignInError].
func (w *Workloads) Verify(ctx context.Context, token string) (Identity, time.Time, error) {
	return w.verify(ctx, token, "")
}

func (w *Workloads) verify(ctx context.Context, token, audience string) (Identity, time.Time, error) {
	if len(token) > maxToken {
		return Identity{}, time.Time{}, errToken(errors.New("too long"))
	}
	// What the token says of its issuer only picks the keys that it is checked with.
	entries := w.issuers[Issuer(token)]
	if len(entries) == 0 {
		return Identity{}, time.Time{}, &SignInError{"the broker does not know the issuer of this token", nil}
	}
	var err error
	for _, e := range entries {
		var id Identity
		var until time.Time
		if id, until, err = e.verify(ctx, token, audience); err == nil {
			return id, until, nil
		}
	}
	return Identity{}, time.Time{}, err
}

// VerifyFor is Verify for tokens of an authorization server, whose audience has
// to be this one unless the issuer's entry says another.
func (w *Workloads) VerifyFor(ctx context.Context, token, audience string) (Identity, time.Time, error) {
	id, until, err := w.verify(ctx, token, audience)
	id.Method = "oauth"
	return id, until, err
}

func errToken(err error) error { return &SignInError{"the token is not valid", err} }

// Issuer returns what a token says of its issuer. Nothing has been verified.
func Issuer(token string) string {
	_, rest, _ := strings.Cut(token, ".")
	payload, _, _ := strings.Cut(rest, ".")
	text, err := base64.RawURLEncoding.DecodeString(payload)
	if err != nil {
		return ""
	}
	var claims struct {
		Iss string `json:"iss"`
	}
	if json.Unmarshal(text, &claims) != nil {
		return ""
	}
	return claims.Iss
}

func (e *workload) verify(ctx context.Context, raw, audience string) (Identity, time.Time, error) {
	claims, until, err := e.issuer.verify(ctx, raw)
	if err != nil {
		return Identity{}, time.Time{}, err
	}
	if e.o.Audience == "" && (audience == "" || !hasAudience(claims["aud"], audience)) {
		return Identity{}, time.Time{}, errToken(errors.New("the token is for another audience"))
	}
	id, err := readIdentity(ctx, "workload", claims, e.o.Mapping, nil)
	if err != nil {
		return Identity{}, time.Time{}, err
	}
	id.Groups = append(id.Groups, e.o.Groups...)
	slices.Sort(id.Groups)
	id.Groups = slices.Compact(id.Groups)
	return id, until, nil
}

// verify checks a token that a program shows.
func (i *issuer) verify(ctx context.Context, raw string) (claims map[string]any, until time.Time, err error) {
	found, err := i.discover(ctx)
	if err != nil {
		return nil, time.Time{}, err
	}
	token, err := found.verifier.Verify(ctx, raw)
	if err == nil && token.IssuedAt.After(time.Now().Add(clockSkew)) {
		err = errors.New("the token was issued in the future")
	}
	if err == nil {
		err = token.Claims(&claims)
	}
	if err != nil {
		return nil, time.Time{}, errToken(err)
	}
	return claims, token.Expiry, nil
}

// hasAudience reports whether a claim aud, one or several, names an audience.
func hasAudience(claim any, audience string) bool {
	several, _ := claim.([]any)
	return claim == any(audience) || slices.ContainsFunc(several, func(a any) bool { return a == any(audience) })
}

// Attested is what a Google-signed identity token says of the instance that an
// agent runs on.
type Attested struct {
	Email    string // of the service account
	Project  string
	Zone     string
	Instance string
	Claims   map[string]any
}

// GoogleIssuer signs the identity tokens of instances.
const GoogleIssuer = "https://accounts.google.com"

// An Attestor verifies identity tokens of Google's instances.
type Attestor struct {
	issuer *issuer
}

// NewAttestor returns an Attestor that trusts an issuer: GoogleIssuer, but in tests.
func NewAttestor(issuer string, client *http.Client) *Attestor {
	return &Attestor{newIssuer(issuer, "", client)}
}

// Verify checks a token and that it is for audience and nothing else.
func (a *Attestor) Verify(ctx context.Context, token, audience string) (Attested, error) {
	claims, _, err := a.issuer.verify(ctx, token)
	if err != nil {
		return Attested{}, err
	}
	if claims["aud"] != audience {
		return Attested{}, errToken(errors.New("the token is for another audience"))
	}
	text := func(in map[string]any, name string) string { s, _ := in[name].(string); return s }
	outer, _ := claims["google"].(map[string]any)
	engine, _ := outer["compute_engine"].(map[string]any)
	at := Attested{
		Email: text(claims, "email"), Project: text(engine, "project_id"), Zone: text(engine, "zone"),
		Instance: text(engine, "instance_name"), Claims: claims,
	}
	switch {
	case at.Email == "" || claims["email_verified"] != true:
		return Attested{}, errToken(errors.New("the token names no service account"))
	case at.Project == "": // without format=full, or of something that is no instance
		return Attested{}, errToken(errors.New("the token says nothing of an instance"))
	}
	return at, nil
}

// GoogleAgents says which instances may join as which agents.
type GoogleAgents struct {
	Agents          []string // names
	Projects        []string
	ServiceAccounts []string
	Zones           []string // if empty, any
	Condition       *Mapping // of the claims; may be nil
}

// Admit reports whether an instance may join as the agent of that name.
func (g *GoogleAgents) Admit(agent string, at Attested) bool {
	return slices.Contains(g.Agents, agent) && slices.Contains(g.Projects, at.Project) &&
		slices.Contains(g.ServiceAccounts, at.Email) && (len(g.Zones) == 0 || slices.Contains(g.Zones, at.Zone)) &&
		(g.Condition == nil || g.Condition.admits(at.Claims) == nil)
}
