package identity

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"cloud.google.com/go/auth"
	"golang.org/x/oauth2/clientcredentials"
)

// A Directory is where groups are looked up that a token does not state, or
// not in full. An error refuses the sign-in: with fewer groups somebody might
// slip past a rule that denies.
type Directory interface {
	// Always reports whether tokens state no groups at all.
	Always() bool
	// Cut reports whether the groups that a token states may not be all.
	Cut(stated []string) bool
	// Groups returns all groups of whom the verified claims are about.
	Groups(ctx context.Context, subject string, claims map[string]any) ([]string, error)
}

// maxPages bounds a look-up.
const maxPages = 100

// get reads one JSON document.
func getJSON(client *http.Client, r *http.Request, into any) (http.Header, error) {
	r.Header.Set("Accept", "application/json")
	resp, err := client.Do(r)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s answers %s", r.URL.Host, resp.Status)
	}
	if err := json.NewDecoder(http.MaxBytesReader(nil, resp.Body, maxDocument)).Decode(into); err != nil {
		return nil, fmt.Errorf("%s: %w", r.URL.Host, err)
	}
	return resp.Header, nil
}

// Entra asks Microsoft Graph for the groups of who is in too many of them for a
// token (over 200). The address that the token itself names is not used. The
// broker's app needs the application permission GroupMember.Read.All or
// Directory.Read.All.
type Entra struct {
	Tenant, ClientID, ClientSecret string
	Client                         *http.Client // if nil, http.DefaultClient
	Login, Graph                   string       // if empty, Microsoft's: https://login.microsoftonline.com, https://graph.microsoft.com
}

func (e *Entra) Always() bool      { return false }
func (e *Entra) Cut([]string) bool { return false }

func (e *Entra) Groups(ctx context.Context, _ string, claims map[string]any) (groups []string, err error) {
	oid, _ := claims["oid"].(string)
	if oid == "" {
		return nil, errors.New("the token has no oid")
	}
	login, graph := "https://login.microsoftonline.com", "https://graph.microsoft.com"
	if e.Login != "" {
		login = e.Login
	}
	if e.Graph != "" {
		graph = e.Graph
	}
	app := clientcredentials.Config{
		ClientID: e.ClientID, ClientSecret: e.ClientSecret,
		TokenURL: login + "/" + url.PathEscape(e.Tenant) + "/oauth2/v2.0/token", Scopes: []string{"https://graph.microsoft.com/.default"},
	}
	ctx = withClient(ctx, e.Client)
	token, err := app.Token(ctx)
	if err != nil {
		return nil, withoutBody(err)
	}
	next := graph + "/v1.0/users/" + url.PathEscape(oid) + "/transitiveMemberOf/microsoft.graph.group?$select=id&$top=999"
	for range maxPages {
		r, err := http.NewRequestWithContext(ctx, "GET", next, nil)
		if err != nil {
			return nil, err
		}
		token.SetAuthHeader(r)
		var page struct {
			Value []struct{ ID string }
			Next  string `json:"@odata.nextLink"`
		}
		if _, err := getJSON(clientOf(e.Client), r, &page); err != nil {
			return nil, err
		}
		for _, g := range page.Value {
			groups = append(groups, g.ID)
		}
		if page.Next == "" {
			return groups, nil
		}
		if next, err = sameHost(graph, page.Next); err != nil {
			return nil, err
		}
	}
	return nil, errors.New("the list of groups does not end")
}

// Okta asks Okta's API where a token states 100 groups or more: it cuts the
// claim there and does not say so. Without a Token that refuses.
type Okta struct {
	Org    string // https://company.okta.com
	Token  string // of the API
	Client *http.Client
}

// oktaCut is how many groups Okta puts into a token.
const oktaCut = 100

func (o *Okta) Always() bool             { return false }
func (o *Okta) Cut(stated []string) bool { return len(stated) >= oktaCut }

func (o *Okta) Groups(ctx context.Context, _ string, claims map[string]any) (groups []string, err error) {
	if o.Token == "" {
		return nil, fmt.Errorf("the token states %d groups or more, of which Okta leaves out the rest; configure an API token, or a filter on the claim", oktaCut)
	}
	sub, _ := claims["sub"].(string)
	next := strings.TrimSuffix(o.Org, "/") + "/api/v1/users/" + url.PathEscape(sub) + "/groups?limit=200"
	for range maxPages {
		r, err := http.NewRequestWithContext(ctx, "GET", next, nil)
		if err != nil {
			return nil, err
		}
		r.Header.Set("Authorization", "SSWS "+o.Token)
		var page []struct{ Profile struct{ Name string } }
		header, err := getJSON(clientOf(o.Client), r, &page)
		if err != nil {
			return nil, err
		}
		for _, g := range page {
			groups = append(groups, g.Profile.Name)
		}
		link := ""
		for _, l := range header.Values("Link") {
			if target, rel, ok := strings.Cut(l, ">"); ok && strings.Contains(rel, `rel="next"`) {
				link = strings.TrimPrefix(strings.TrimSpace(target), "<")
			}
		}
		if link == "" {
			return groups, nil
		}
		if next, err = sameHost(o.Org, link); err != nil {
			return nil, err
		}
	}
	return nil, errors.New("the list of groups does not end")
}

// Google asks Google for the groups of a Workspace user, whose tokens never
// state any. The subject of the mapping must be the e-mail address.
type Google struct {
	// Credentials of the broker's own service account: for Cloud Identity one
	// with the scope cloud-identity.groups.readonly; for AdminSDK one with
	// domain-wide delegation and admin.directory.group.readonly.
	Credentials *auth.Credentials
	// AdminSDK asks the Admin SDK, which knows direct memberships only; otherwise
	// Cloud Identity, which knows nested ones and needs an edition that has it.
	AdminSDK bool
	Client   *http.Client
	Endpoint string // if empty, Google's
}

func (g *Google) Always() bool      { return true }
func (g *Google) Cut([]string) bool { return true }

func (g *Google) Groups(ctx context.Context, _ string, claims map[string]any) (groups []string, err error) {
	email, _ := claims["email"].(string)
	if email == "" || claims["email_verified"] != true || strings.ContainsAny(email, `'\`) {
		return nil, errors.New("the token has no verified e-mail address")
	}
	token, err := g.Credentials.Token(ctx)
	if err != nil {
		return nil, fmt.Errorf("the credential to look groups up: %w", err)
	}
	base, query := "https://cloudidentity.googleapis.com/v1/groups/-/memberships:searchTransitiveGroups", url.Values{
		"query":    {fmt.Sprintf("member_key_id == '%s' && 'cloudidentity.googleapis.com/groups.discussion_forum' in labels", email)},
		"pageSize": {"1000"},
	}
	if g.AdminSDK {
		base, query = "https://admin.googleapis.com/admin/directory/v1/groups", url.Values{"userKey": {email}, "maxResults": {"200"}}
	}
	if g.Endpoint != "" {
		u, err := url.Parse(base)
		if err != nil {
			return nil, err
		}
		base = g.Endpoint + u.Path
	}
	for range maxPages {
		r, err := http.NewRequestWithContext(ctx, "GET", base+"?"+query.Encode(), nil)
		if err != nil {
			return nil, err
		}
		r.Header.Set("Authorization", "Bearer "+token.Value)
		var page struct {
			Memberships []struct{ GroupKey struct{ ID string } }
			Groups      []struct{ Email string }
			Next        string `json:"nextPageToken"`
		}
		if _, err := getJSON(clientOf(g.Client), r, &page); err != nil {
			return nil, err
		}
		for _, m := range page.Memberships {
			groups = append(groups, m.GroupKey.ID)
		}
		for _, m := range page.Groups {
			groups = append(groups, m.Email)
		}
		if page.Next == "" {
			return slices.DeleteFunc(groups, func(s string) bool { return s == "" }), nil
		}
		query.Set("pageToken", page.Next)
	}
	return nil, errors.New("the list of groups does not end")
}

func clientOf(c *http.Client) *http.Client {
	if c == nil {
		return http.DefaultClient
	}
	return c
}

// sameHost refuses a next page elsewhere: the credential would go there.
func sameHost(base, next string) (string, error) {
	b, err := url.Parse(base)
	if err != nil {
		return "", err
	}
	n, err := url.Parse(next)
	if err != nil || n.Scheme != b.Scheme || n.Host != b.Host {
		return "", errors.New("the next page of groups is at another host")
	}
	return next, nil
}
