package credential

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"cloud.google.com/go/auth"
	"cloud.google.com/go/compute/metadata"
)

// An instance asks the metadata server for access tokens with scopes, or for ID
// tokens for an audience. Google's library does, too, but only after it has
// looked whether there is a metadata server, and remembers a no for good: on
// GKE it may come up after the agent.
type instance struct {
	scopes   []string
	audience string
}

// The metadata server is a link away; a proxy is not on it.
var metadataServer = metadata.NewClient(&http.Client{
	Transport: issuerTransport{&http.Transport{
		DialContext:     (&net.Dialer{Timeout: 2 * time.Second}).DialContext,
		IdleConnTimeout: time.Minute,
	}},
	Timeout: 5 * time.Second,
})

// Token implements auth.TokenProvider.
func (i instance) Token(ctx context.Context) (*auth.Token, error) {
	const account = "instance/service-accounts/default/"
	if i.audience != "" {
		value, err := metadataServer.GetWithContext(ctx, account+"identity?"+url.Values{"audience": {i.audience}, "format": {"full"}}.Encode())
		if err != nil {
			return nil, err
		}
		return &auth.Token{Value: value, Expiry: time.Now().Add(time.Hour)}, nil // all of them are
	}
	text, err := metadataServer.GetWithContext(ctx, account+"token?"+url.Values{"scopes": {strings.Join(i.scopes, ",")}}.Encode())
	if err != nil {
		return nil, err
	}
	var answer struct {
		Token   string `json:"access_token"`
		Type    string `json:"token_type"`
		Seconds int    `json:"expires_in"`
	}
	if json.Unmarshal([]byte(text), &answer) != nil || answer.Token == "" || answer.Seconds <= 0 {
		return nil, errors.New("metadata server: the answer is no token")
	}
	return &auth.Token{Value: answer.Token, Type: answer.Type, Expiry: time.Now().Add(time.Duration(answer.Seconds) * time.Second)}, nil
}
