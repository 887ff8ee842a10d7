// Package credential is what an agent presents to MCP servers, and nobody else
// ever sees.
//
// A [Source] sets the headers of one credential on the HTTP requests of
// sessions. There are three: [Google], [OAuth] and [Header].
//
//	g, err := credential.NewGoogle(credential.GoogleOptions{
//		Account: credential.Account{
//			Impersonate: "mcp@prod.iam.gserviceaccount.com",
//			Scopes:      []string{"https://www.googleapis.com/auth/bigquery"},
//		},
//	})
//	err = g.Authorize(req, credential.Session{ID: id, Server: "bigquery", Rule: "analysts"})
//
// A server that is a child process gets no header and needs no key file:
// [StartMetadata] is a metadata server of Google Cloud for one child.
//
// New does no more than read the files that it is given; the network is first
// used when a credential is. Tokens are kept, renewed ahead of their end, by
// one request for however many sessions wait, and go on being used until their
// end while that fails. Errors say why, for the agent's log; they hold no
// token, no secret, and of an issuer's answer only the fields that OAuth and
// Google's APIs have for a reason.
package credential

import (
	"net/http"
	"time"
)

// A Session is whose request it is.
type Session struct {
	ID      string
	Server  string
	Subject string
	Groups  []string
	Rule    string // the name of the policy's rule that let it in
}

// A Source authorizes the HTTP requests of sessions. It may be used by several
// goroutines.
type Source interface {
	// Authorize sets the credential's headers on r, which is about to be sent
	// for s. It may ask for a token first, within r's context.
	Authorize(r *http.Request, s Session) error
}

// A Use is a session's first use of a credential, and its first after that has
// been renewed. Who is told of uses may be told by several goroutines.
type Use struct {
	Session   string
	Server    string
	Kind      string   // gcp, oauth or header
	Principal string   // the account's e-mail, the client's id, the caller; "" if it cannot be known
	Scopes    []string // of an access token
	Audience  string   // of an ID token, or what an OAuth token is for
	Until     time.Time
}
