package grant

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"iter"
	"strings"
	"time"

	"example.com/broker/broker/identity"
)

// A Store keeps records and events. Several goroutines may use it.
//
// A record is a JSON document of a kind, with a version: 1 when it is first
// written, and one more each time.
type Store interface {
	// Commit writes all of c, or nothing. It numbers the events, in order. Once it
	// has returned nil neither kill -9 nor a loss of power takes anything away. It
	// returns ErrConflict if a record does not follow the version in the store.
	Commit(ctx context.Context, c Change) error
	// Records yields the records of a kind, by id.
	Records(ctx context.Context, k Kind) iter.Seq2[Record, error]
	// Record returns one record, or ErrNotFound.
	Record(ctx context.Context, k Kind, id string) (Record, error)
	// Events yields the events with numbers above after.
	Events(ctx context.Context, after uint64) iter.Seq2[Event, error]
	Close() error
}

// ErrConflict is returned by Commit if somebody else has changed a record.
var ErrConflict = errors.New("changed by somebody else meanwhile")

// A Kind of records.
type Kind string

const (
	Requests Kind = "request"
	Grants   Kind = "grant"
	Blocks   Kind = "disabled"
	Cursors  Kind = "cursor" // up to where a follower has got
	Notes    Kind = "note"   // what a channel remembers of a request
	Clients  Kind = "client" // a program's sign-in; its version is that of its refresh token
)

// A Record is one document.
type Record struct {
	Kind    Kind
	ID      string
	Version uint64 // that it gets; the one in the store is one less
	Data    json.RawMessage
	Delete  bool
}

// A Change is what is written at once.
type Change struct {
	Records []Record
	Events  []Event
}

// Schema is the version of an Event's JSON. Fields may be added to it; one that
// changes its meaning or goes makes it another.
const Schema = 1

// An Event is one step, for auditors. docs/audit.md describes its JSON.
type Event struct {
	Schema  int               `json:"schema"`
	Seq     uint64            `json:"seq"` // 1, 2, 3, … without a gap
	Time    time.Time         `json:"time"`
	Type    string            `json:"type"`
	Actor   string            `json:"actor,omitempty"`   // who did it; empty: the broker
	Subject string            `json:"subject,omitempty"` // whom it is about
	Server  string            `json:"server,omitempty"`
	Rule    string            `json:"rule,omitempty"`
	Request string            `json:"request,omitempty"`
	Grant   string            `json:"grant,omitempty"`
	Session string            `json:"session,omitempty"`
	Reason  string            `json:"reason,omitempty"`
	Via     string            `json:"via,omitempty"`
	Detail  map[string]string `json:"detail,omitempty"`
}

// The types of events.
const (
	RequestCreated  = "request.created"
	RequestViewed   = "request.viewed"
	RequestApproved = "request.approved" // one vote
	RequestDenied   = "request.denied"
	RequestLapsed   = "request.lapsed"
	GrantStarted    = "grant.started"
	GrantUsed       = "grant.used"
	GrantExpired    = "grant.expired"
	GrantRevoked    = "grant.revoked"
	GrantReviewed   = "grant.reviewed" // after break-glass

	IdentityDisabled = "identity.disabled"
	IdentityEnabled  = "identity.enabled"
	SignedIn         = "identity.signed_in"
	SignInRefused    = "identity.sign_in_refused"
	Issued           = "certificate.issued"
	CARotated        = "ca.rotated"
	CredentialUsed   = "credential.used"
	SessionObserved  = "session.observed"  // an observing rule would have refused, held or masked something in it
	SessionReplayed  = "session.replayed"  // its frames are read
	SessionsReplayed = "sessions.replayed" // those of all sessions are read
	SessionsListed   = "sessions.listed"
	SessionHeld      = "session.held" // it is not deleted until it is released
	SessionReleased  = "session.released"
	SessionDeleted   = "session.deleted" // by retention, or by somebody
	ClientAllowed    = "client.allowed"  // a program, by its person
	ClientRefused    = "client.refused"
	ClientEnded      = "client.ended" // revoked, or a token of its was used twice
	NoticeDelivered  = "notice.delivered"
	NoticeFailed     = "notice.failed"
)

// IssuedEvent says that a client certificate was issued to id, asked for from
// source.
func IssuedEvent(id identity.Identity, leaf *x509.Certificate, source string) Event {
	detail := map[string]string{
		"kind": User, "serial": leaf.SerialNumber.Text(16), "until": leaf.NotAfter.UTC().Format(time.RFC3339),
		"groups": strings.Join(id.Groups, ","),
	}
	if id.Method != "" {
		detail["method"] = id.Method
	}
	if source != "" {
		detail["source"] = source
	}
	return Event{Type: Issued, Subject: id.Subject, Detail: detail}
}
