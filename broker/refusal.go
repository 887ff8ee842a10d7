package broker

import (
	"errors"
	"fmt"

	"example.com/broker/broker/agent"
	"example.com/broker/broker/policy"
	"example.com/broker/codec"
	"example.com/broker/recorder"
)

// The broker's codes in JSON-RPC errors. They lie outside JSON-RPC's reserved
// range and read like HTTP.
const (
	CodeNotSignedIn = 401
	CodeDenied      = 403
	CodeGrantEnded  = 410
	CodeTooLarge    = 413
	CodeApproval    = 428
	CodeLimit       = 429
	CodeServer      = 502
	CodeUnavailable = 503 // agent or recorder
	CodeTimeout     = 504
)

// A Refusal is the broker's no. Each edge writes it in its own protocol.
type Refusal struct {
	Code   int
	Reason string // for the person
	Rule   string // the name of the rule that decided, if one did

	Request string // for access, that waits for a decision
	URL     string // where to ask, or to see how the request stands
}

func (r *Refusal) Error() string { return fmt.Sprintf("%d %s", r.Code, r.Reason) }

// refusalData is error.data of a refusal.
type refusalData struct {
	Session string `json:"session,omitempty"`
	Rule    string `json:"rule,omitempty"`
	Reason  string `json:"reason,omitempty"`
	Request string `json:"request,omitempty"`
	URL     string `json:"url,omitempty"`
}

// appendTo appends r as the JSON-RPC answer to the request with that raw id.
func (r *Refusal) appendTo(dst, id []byte, session string) []byte {
	return codec.AppendError(dst, id, r.Code, r.Reason, refusalData{session, r.Rule, r.Reason, r.Request, r.URL})
}

// refusalOf is what the client is told of err; its details are for the operator's log.
func refusalOf(err error) *Refusal {
	var (
		refusal *Refusal
		frame   *codec.Error
		remote  *agent.Error
	)
	switch {
	case errors.As(err, &refusal):
		return refusal
	case errors.As(err, &frame):
		return &Refusal{Code: frame.Code, Reason: "refused: " + frame.Reason}
	case errors.As(err, &remote):
		return &Refusal{Code: remote.Code, Reason: remote.Message}
	case errors.Is(err, errServerLate):
		return errServerClosed
	case errors.Is(err, recorder.ErrUnavailable):
		return &Refusal{Code: CodeUnavailable, Reason: "the recorder is not available, so nothing may pass; try again later"}
	default:
		return &Refusal{Code: CodeServer, Reason: "the session has failed"}
	}
}

// short cuts what a peer has chosen for the log.
func short(s string) string { return s[:min(len(s), 128)] }

// ofTerms is the refusal that the policy's terms say, or nil.
func ofTerms(t *policy.Terms, subject, server string) *Refusal {
	switch t.Access {
	case policy.Allow:
		return nil
	case policy.Approval:
		return &Refusal{Code: CodeApproval, Rule: t.Rule, Reason: fmt.Sprintf("server %q needs an approval, and %s has none", server, subject)}
	}
	if t.Rule == "" {
		return &Refusal{Code: CodeDenied, Reason: fmt.Sprintf("no rule gives %s access to server %q", subject, server)}
	}
	return &Refusal{Code: CodeDenied, Rule: t.Rule, Reason: fmt.Sprintf("%s may not use server %q", subject, server)}
}

// ofVerdict is the refusal that the policy's verdict on one call says, or nil.
func ofVerdict(v policy.Verdict) *Refusal {
	switch v.Access {
	case policy.Allow:
		return nil
	case policy.Approval:
		return &Refusal{Code: CodeApproval, Rule: v.Rule, Reason: "this call needs an approval: " + v.Reason}
	}
	return &Refusal{Code: CodeDenied, Rule: v.Rule, Reason: v.Reason}
}
