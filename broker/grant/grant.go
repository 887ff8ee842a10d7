// Package grant keeps who asked for access, who said yes, and what follows.
//
// Somebody asks ([Desk.Ask]), for a server or for a single call; approvers
// decide ([Desk.Decide]); with enough of them a [Grant] begins, which ends on
// time, is used up, or is taken away ([Desk.Revoke], [Desk.Disable]):
//
//	desk, err := grant.Open(ctx, grant.Options{Store: store})
//	req, err := desk.Ask(ctx, grant.Ask{By: ada, Terms: terms, Reason: "OPS-12"})
//	req, err = desk.Decide(ctx, req.ID, grace, grant.Vote{Yes: true})
//	use, err := desk.Await(ctx, "ada", "bigquery", terms.Rule)
//	<-use.Done() // the grant has ended
//
// Every step is an [Event], in the [Store] together with what it changed before
// anybody is told. What is in the store survives the process.
package grant

import (
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"time"

	"example.com/broker/broker/policy"
)

// A Duration is a time.Duration that is 1h0m0s in JSON.
type Duration time.Duration

// MarshalText implements encoding.TextMarshaler.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	*d = Duration(v)
	return err
}

// The states of a request, and of the grant that may follow.
type State string

const (
	Pending State = "pending"
	Granted State = "granted"
	Denied  State = "denied"
	Lapsed  State = "lapsed" // nobody decided in time

	Active  State = "active"
	Used    State = "used" // a single call has been made
	Expired State = "expired"
	Revoked State = "revoked"
)

// A Request is asking for access to a server, or for a single call.
type Request struct {
	ID        string           `json:"id"`
	State     State            `json:"state"`
	Subject   string           `json:"subject"`
	Groups    []string         `json:"groups,omitempty"`
	Source    string           `json:"source,omitempty"` // the address that it came from
	Server    string           `json:"server"`
	Rule      string           `json:"rule"`
	Reason    string           `json:"reason,omitempty"`
	Duration  Duration         `json:"duration"` // of the grant
	Call      *Call            `json:"call,omitempty"`
	Approvers policy.Approvers `json:"approvers"`
	Native    bool             `json:"native,omitempty"` // a channel's own buttons count
	Created   time.Time        `json:"created"`
	Lapses    time.Time        `json:"lapses"`
	Decided   time.Time        `json:"decided,omitzero"`
	Decisions []Decision       `json:"decisions,omitempty"`
	Grant     string           `json:"grant,omitempty"`
	How       string           `json:"how,omitempty"` // it was granted: ByApproval, …
}

// A Call is the one call that a request is for.
type Call struct {
	Method    string `json:"method"`
	Name      string `json:"name,omitempty"`      // of the tool or the prompt, or the uri
	Arguments string `json:"arguments,omitempty"` // JSON, masked as the rule says, perhaps cut
	Why       string `json:"why,omitempty"`       // of the call rule
	Digest    string `json:"digest"`              // of method, name and the arguments as they came
}

// A Decision is one approver's vote.
type Decision struct {
	By      string    `json:"by"`
	Yes     bool      `json:"yes"`
	Comment string    `json:"comment,omitempty"`
	Via     string    `json:"via,omitempty"` // "web", "cli", "slack"
	Time    time.Time `json:"time"`
}

// How a grant came about.
const (
	ByApproval   = "approval"
	ByAuto       = "auto"        // the rule's condition held
	ByBreakGlass = "break_glass" // taken at once, to be reviewed after
)

// A Grant is the right that follows, for a limited time.
type Grant struct {
	ID       string    `json:"id"`
	State    State     `json:"state"`
	Request  string    `json:"request"`
	Subject  string    `json:"subject"`
	Server   string    `json:"server"`
	Rule     string    `json:"rule"`
	How      string    `json:"how"`
	Call     *Call     `json:"call,omitempty"` // if it is good for this call only, once
	Start    time.Time `json:"start"`
	Until    time.Time `json:"until"`
	Ended    time.Time `json:"ended,omitzero"`
	EndedBy  string    `json:"ended_by,omitempty"`
	Reason   string    `json:"reason,omitempty"` // of its end
	Reviewed string    `json:"reviewed,omitempty"`

	Approvers policy.Approvers `json:"approvers"` // who may revoke it
}

// digest is what the grant is good for: a call, or everything.
func (g Grant) digest() string {
	if g.Call == nil {
		return ""
	}
	return g.Call.Digest
}

// A Disabled is an identity that is refused whatever it proves.
type Disabled struct {
	Kind   string    `json:"kind"` // User, Agent or Serial
	Name   string    `json:"name"`
	By     string    `json:"by"`
	Reason string    `json:"reason,omitempty"`
	Time   time.Time `json:"time"`
}

// The kinds of what can be disabled.
const (
	User   = "user"   // a subject
	Agent  = "agent"  // an agent's name
	Serial = "serial" // a certificate's serial number, in hex
)

var (
	ErrNotFound    = errors.New("no such request or grant")
	ErrOneself     = errors.New("nobody approves a request of their own")
	ErrNotApprover = errors.New("you are not an approver of this request")
	ErrVoted       = errors.New("you have decided on this request already")
	ErrRight       = errors.New("you have no right to do this")
	ErrTooMany     = fmt.Errorf("you have %d pending requests, as many as one may", maxPending)
	ErrDisabled    = errors.New("this identity is disabled")

	// Causes of the end of a grant.
	ErrExpired = errors.New("the grant has expired")
	ErrRevoked = errors.New("the grant was revoked")
	errUsed    = errors.New("the grant was used")
)

// A StateError is returned for a request or grant in a state in which nothing
// can be done with it.
type StateError struct {
	What  string // "request" or "grant"
	ID    string
	State State
}

func (e *StateError) Error() string { return fmt.Sprintf("%s %s is %s", e.What, e.ID, e.State) }

// An AskError is why a request cannot be made as it was asked for, for the person.
type AskError struct{ Err error }

func (e *AskError) Error() string { return e.Err.Error() }

func (e *AskError) Unwrap() error { return e.Err }

// newID returns a random id that a person can read out: 50 bits.
func newID(prefix string) string { return prefix + strings.ToLower(rand.Text()[:10]) }

// same reports whether two subjects are one person's: nobody shall get by with
// a change of case.
func same(a, b string) bool { return strings.EqualFold(a, b) }
