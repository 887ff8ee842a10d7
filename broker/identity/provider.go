package identity

import (
	"context"
	"net/http"
)

// A Provider signs people in: it sends a browser to a company's identity
// provider and reads what the browser brings back. It may be used by several
// goroutines. The errors of both methods wrap a [*SignInError] where the person
// can do something about them.
type Provider interface {
	// Begin returns the address to send the browser to.
	Begin(ctx context.Context, f Flow) (string, error)
	// Complete reads the answer to f, which r brings to f.Callback.
	Complete(ctx context.Context, f Flow, r *http.Request) (Identity, error)
}

// A Flow is one sign-in under way. Its strings are random, but for Callback, and
// kept where only the browser that began it can bring them from.
type Flow struct {
	State    string // names the flow; comes back as state or RelayState
	Nonce    string // ties the answer to the flow: OIDC's nonce, the id of a SAML request
	Verifier string // of PKCE
	Callback string // the broker's URL that the provider sends the browser back to
}

// A SignInError is why somebody could not be signed in. Its text is for that
// person and holds nothing secret; the cause it wraps is for the operator's log.
type SignInError struct {
	Reason string
	Err    error
}

func (e *SignInError) Error() string { return e.Reason }

func (e *SignInError) Unwrap() error { return e.Err }
