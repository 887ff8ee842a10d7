package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"sync"

	"cloud.google.com/go/auth"
	"cloud.google.com/go/auth/credentials"

	"example.com/broker/broker/identity"
	"example.com/broker/broker/signin"
)

// identityFile is the section identity of broker.yaml: who signs people and
// programs in.
type identityFile struct {
	OIDC      []oidcFile     `yaml:"oidc"`
	SAML      []samlFile     `yaml:"saml"`
	Workloads []workloadFile `yaml:"workloads"`
	Tokens    []tokenFile    `yaml:"tokens"`
}

// tokenFile is an authorization server of the company's own, whose access tokens
// are for the broker's servers.
type tokenFile struct {
	Issuer   string      `yaml:"issuer"`
	Audience string      `yaml:"audience"`
	Mapping  mappingFile `yaml:",inline"`
}

// mappingFile is how an identity is read from claims or attributes.
type mappingFile struct {
	SubjectClaim string `yaml:"subject_claim"`
	GroupsClaim  string `yaml:"groups_claim"`
	NoGroups     bool   `yaml:"groups_optional"`
	Subject      string `yaml:"subject"` // CEL
	Groups       string `yaml:"groups"`  // CEL
	Condition    string `yaml:"condition"`
}

type oidcFile struct {
	Name         string        `yaml:"name"`
	Title        string        `yaml:"title"`
	Issuer       string        `yaml:"issuer"`
	ClientID     string        `yaml:"client_id"`
	ClientSecret string        `yaml:"client_secret"`
	Scopes       []string      `yaml:"scopes"`
	Mapping      mappingFile   `yaml:",inline"`
	Directory    directoryFile `yaml:"directory"`
}

// directoryFile is where groups are looked up that tokens do not state.
type directoryFile struct {
	Entra  *entraFile  `yaml:"entra"`
	Okta   *oktaFile   `yaml:"okta"`
	Google *googleFile `yaml:"google"`
}

type entraFile struct {
	Tenant string `yaml:"tenant"`
}

type oktaFile struct {
	Token string `yaml:"token"`
}

type googleFile struct {
	AdminSDK bool   `yaml:"admin_sdk"`
	Delegate string `yaml:"delegate"` // the administrator whom the service account acts for
}

type samlFile struct {
	Name     string      `yaml:"name"`
	Title    string      `yaml:"title"`
	Metadata string      `yaml:"metadata"`
	EntityID string      `yaml:"entity_id"`
	Mapping  mappingFile `yaml:",inline"`
}

type workloadFile struct {
	Issuer    string   `yaml:"issuer"`
	Audience  string   `yaml:"audience"`
	Subject   string   `yaml:"subject"`
	Groups    []string `yaml:"groups"`
	Condition string   `yaml:"condition"`
}

// agentsFile is the section agents of broker.yaml: who joins without a token.
type agentsFile struct {
	GCP []gcpFile `yaml:"gcp"`
}

type gcpFile struct {
	Agents          []string `yaml:"agents"`
	Projects        []string `yaml:"projects"`
	ServiceAccounts []string `yaml:"service_accounts"`
	Zones           []string `yaml:"zones"`
	Condition       string   `yaml:"condition"`
}

// identities is what the section says, in the terms of package identity.
type identities struct {
	providers []signin.Provider
	workloads *identity.Workloads
	foreign   *identity.Workloads // authorization servers of the company's own
	issuers   []string            // those
	instances []identity.GoogleAgents
}

// checkIssuer refuses an issuer that anybody on the way could play.
func checkIssuer(issuer string) error {
	u, err := url.Parse(issuer)
	if err != nil || u.Host == "" || u.RawQuery != "" || u.Fragment != "" {
		return errors.New("must be like https://idp.example.com")
	}
	if ip := net.ParseIP(u.Hostname()); u.Scheme != "https" && !(u.Scheme == "http" && ip != nil && ip.IsLoopback()) {
		return errors.New("must begin with https://")
	}
	return nil
}

func (m mappingFile) mapping(subject, groups string) (*identity.Mapping, error) {
	if m.SubjectClaim != "" && m.Subject != "" || m.GroupsClaim != "" && m.Groups != "" {
		return nil, errors.New("has both a claim and an expression for the same; say one of subject_claim and subject, of groups_claim and groups")
	}
	o := identity.MappingOptions{
		Subject: m.SubjectClaim, Groups: m.GroupsClaim, NoGroups: m.NoGroups,
		SubjectExpr: m.Subject, GroupsExpr: m.Groups, Condition: m.Condition,
	}
	if o.Subject == "" {
		o.Subject = subject
	}
	if o.Groups == "" && o.GroupsExpr == "" {
		o.Groups = groups
	}
	return identity.NewMapping(o)
}

// names keeps the names of providers apart; they are part of a URL.
func (c *brokerConfig) nameProvider(at, name string, taken map[string]bool) error {
	switch {
	case !label.MatchString(name):
		return c.errorAt(at, fmt.Errorf("name %q: must be lower-case letters, digits and dashes: it is part of the callback's address", name))
	case taken[name]:
		return c.errorAt(at, fmt.Errorf("two providers are named %q", name))
	}
	taken[name] = true
	return nil
}

func (c *brokerConfig) readIdentity() error {
	taken := map[string]bool{}
	for i, f := range c.Identity.OIDC {
		at := fmt.Sprintf("identity.oidc[%d]", i)
		if f.Name == "" {
			f.Name = "oidc"
		}
		if err := c.nameProvider(at, f.Name, taken); err != nil {
			return err
		}
		if err := checkIssuer(f.Issuer); err != nil {
			return c.errorAt(at+".issuer", err)
		}
		if f.ClientID == "" {
			return c.errorAt(at+".client_id", errors.New("is missing; it is what the provider knows the broker by"))
		}
		p, err := c.oidc(f)
		if err != nil {
			return c.errorAt(at, err)
		}
		c.providers = append(c.providers, signin.Provider{Name: f.Name, Title: titleOf(f.Title, f.Issuer), Provider: p})
	}
	for i, f := range c.Identity.SAML {
		at := fmt.Sprintf("identity.saml[%d]", i)
		if f.Name == "" {
			f.Name = "saml"
		}
		if err := c.nameProvider(at, f.Name, taken); err != nil {
			return err
		}
		if f.Metadata == "" || strings.HasPrefix(f.Metadata, "http://") {
			return c.errorAt(at+".metadata", errors.New("must be the provider's metadata: an https URL, or a file"))
		}
		if !strings.HasPrefix(f.Metadata, "https://") {
			f.Metadata = c.resolve(f.Metadata)
		}
		m, err := f.Mapping.mapping(identity.NameID, "groups")
		if err != nil {
			return c.errorAt(at, err)
		}
		c.providers = append(c.providers, signin.Provider{Name: f.Name, Title: titleOf(f.Title, "SAML"), Provider: identity.NewSAML(identity.SAMLOptions{
			Metadata: f.Metadata, EntityID: f.EntityID, Mapping: m,
		})})
	}
	var workloads []identity.WorkloadOptions
	for i, f := range c.Identity.Workloads {
		at := fmt.Sprintf("identity.workloads[%d]", i)
		if err := checkIssuer(f.Issuer); err != nil {
			return c.errorAt(at+".issuer", err)
		}
		switch {
		case f.Audience == "":
			return c.errorAt(at+".audience", errors.New("is missing; tokens must be made for the broker, such as for its address"))
		case f.Condition == "":
			return c.errorAt(at+".condition", errors.New(`is missing; everybody can get tokens of a public issuer. Say whose count, like claims.repository == "acme/deploy"`))
		}
		m, err := mappingFile{SubjectClaim: "", Subject: f.Subject, Condition: f.Condition}.mapping("sub", "")
		if err != nil {
			return c.errorAt(at, err)
		}
		workloads = append(workloads, identity.WorkloadOptions{Issuer: f.Issuer, Audience: f.Audience, Mapping: m, Groups: f.Groups})
	}
	if len(workloads) > 0 {
		c.workloads = identity.NewWorkloads(workloads...)
	}
	var foreign []identity.WorkloadOptions
	for i, f := range c.Identity.Tokens {
		at := fmt.Sprintf("identity.tokens[%d]", i)
		if err := checkIssuer(f.Issuer); err != nil {
			return c.errorAt(at+".issuer", err)
		}
		m, err := f.Mapping.mapping("sub", "groups")
		if err != nil {
			return c.errorAt(at, err)
		}
		foreign = append(foreign, identity.WorkloadOptions{Issuer: f.Issuer, Audience: f.Audience, Mapping: m})
		c.issuers = append(c.issuers, f.Issuer)
	}
	if len(foreign) > 0 {
		c.foreign = identity.NewWorkloads(foreign...)
	}
	for i, f := range c.Agents.GCP {
		at := fmt.Sprintf("agents.gcp[%d]", i)
		if len(f.Agents) == 0 || len(f.Projects) == 0 || len(f.ServiceAccounts) == 0 {
			return c.errorAt(at, errors.New("must say agents, projects and service_accounts: any instance of Google's could join otherwise"))
		}
		g := identity.GoogleAgents{Agents: f.Agents, Projects: f.Projects, ServiceAccounts: f.ServiceAccounts, Zones: f.Zones}
		if f.Condition != "" {
			var err error
			if g.Condition, err = identity.NewMapping(identity.MappingOptions{Subject: "sub", Condition: f.Condition}); err != nil {
				return c.errorAt(at, err)
			}
		}
		c.instances = append(c.instances, g)
	}
	return nil
}

func titleOf(title, otherwise string) string {
	if title != "" {
		return title
	}
	return strings.TrimPrefix(otherwise, "https://")
}

// A googleCredential is the broker's own, found as Google's libraries do.
type googleCredential struct {
	options credentials.DetectOptions

	mu    sync.Mutex
	found *auth.Credentials
}

// Token implements auth.TokenProvider.
func (g *googleCredential) Token(ctx context.Context) (*auth.Token, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.found == nil {
		found, err := credentials.DetectDefault(&g.options)
		if err != nil {
			return nil, fmt.Errorf("the broker has no Google credential: %w", err)
		}
		g.found = found
	}
	return g.found.Token(ctx)
}

func (c *brokerConfig) oidc(f oidcFile) (*identity.OIDC, error) {
	secret, err := c.secret(f.ClientSecret)
	if err != nil {
		return nil, fmt.Errorf("client_secret: %w", err)
	}
	groups := "groups"
	d := f.Directory
	o := identity.OIDCOptions{Issuer: f.Issuer, ClientID: f.ClientID, ClientSecret: secret, Scopes: f.Scopes}
	kinds := 0
	if d.Entra != nil {
		kinds++
		if d.Entra.Tenant == "" || secret == "" {
			return nil, errors.New("directory.entra: needs tenant, and the provider's client_secret, with which the broker asks Microsoft Graph")
		}
		o.Directory = &identity.Entra{Tenant: d.Entra.Tenant, ClientID: f.ClientID, ClientSecret: secret}
	}
	if d.Okta != nil {
		kinds++
		token, err := c.secret(d.Okta.Token)
		if err != nil {
			return nil, fmt.Errorf("directory.okta.token: %w", err)
		}
		u, _ := url.Parse(f.Issuer)
		o.Directory = &identity.Okta{Org: u.Scheme + "://" + u.Host, Token: token}
	}
	if d.Google != nil {
		kinds++
		groups = ""
		scope := "https://www.googleapis.com/auth/cloud-identity.groups.readonly"
		if d.Google.AdminSDK {
			scope = "https://www.googleapis.com/auth/admin.directory.group.readonly"
		}
		// Looked for when it is needed: a configuration is checked on other machines, too.
		own := &googleCredential{options: credentials.DetectOptions{Scopes: []string{scope}, Subject: d.Google.Delegate}}
		o.Directory = &identity.Google{
			Credentials: auth.NewCredentials(&auth.CredentialsOptions{TokenProvider: own}), AdminSDK: d.Google.AdminSDK,
		}
	}
	if u, _ := url.Parse(f.Issuer); d.Okta == nil && (strings.HasSuffix(u.Hostname(), ".okta.com") || strings.HasSuffix(u.Hostname(), ".oktapreview.com")) {
		o.Directory = &identity.Okta{Org: u.Scheme + "://" + u.Host} // refuses where the claim may be cut
	}
	if kinds > 1 {
		return nil, errors.New("directory: has more than one")
	}
	if len(o.Scopes) == 0 {
		o.Scopes = []string{"email", "profile"}
	}
	if o.Mapping, err = f.Mapping.mapping("email", groups); err != nil {
		return nil, err
	}
	return identity.NewOIDC(o), nil
}
