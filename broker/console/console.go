// Package console is what people and commands reach over HTTPS: the API of
// requests, grants and disabled identities, and pages for the same.
//
//	h := console.New(console.Options{Desk: desk, Who: who, Terms: terms, …})
//
// Everything needs an identity, which Who proves; what it may see and do is for
// package grant to say. The pages are HTML forms and work without JavaScript.
// A request that changes something and comes from another site is refused.
package console

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/netip"
	"time"

	"example.com/broker/broker/grant"
	"example.com/broker/broker/identity"
	"example.com/broker/broker/policy"
)

// Options is what a console is made of.
type Options struct {
	Desk    *grant.Desk
	Who     func(r *http.Request) (identity.Identity, error) // its error is for the peer
	Terms   func(id identity.Identity, server string) *policy.Terms
	Servers []string // sorted
	Login   string   // where browsers sign in; empty: nowhere, certificates alone count
	Log     *slog.Logger

	// Recorded says how the log of recordings stands; may be nil.
	Recorded func(ctx context.Context) (Recorded, error)
}

// Recorded is how the log of recordings stands, for who runs the broker. Sizes are in
// bytes.
type Recorded struct {
	Unavailable string     `json:"unavailable,omitempty"` // why no session is taken; empty: they are
	Sessions    int64      `json:"sessions"`              // on record
	Pending     int64      `json:"pending"`               // of them: have ended, and are not compressed yet
	Bytes       LogBytes   `json:"bytes"`
	Free        int64      `json:"free"`                // on the log's disk
	Kept        int64      `json:"kept"`                // what must stay free there
	Collected   *Collected `json:"collected,omitempty"` // nil: not since the broker has started
	Archive     Archive    `json:"archive"`
}

// LogBytes is what the log takes of its disk.
type LogBytes struct {
	Values int64 `json:"values"` // large blocks
	Tables int64 `json:"tables"` // all else that is kept
	Recent int64 `json:"recent"` // what is not in tables yet
	Other  int64 `json:"other"`
}

// All is their sum.
func (b LogBytes) All() int64 { return b.Values + b.Tables + b.Recent + b.Other }

// Collected is the last time that space of deleted blocks was freed.
type Collected struct {
	Time  time.Time `json:"time"`
	Files int       `json:"files"` // that were freed
	Error string    `json:"error,omitempty"`
}

// Archive is how moving sessions to an archive stands.
type Archive struct {
	To        string    `json:"to,omitempty"`     // empty: none move
	Sessions  int64     `json:"sessions"`         // in an archive, there or elsewhere
	Undeleted int64     `json:"undeleted"`        // objects of deleted sessions that are there still
	Failing   time.Time `json:"failing,omitzero"` // since when it fails; zero: it does not
	Error     string    `json:"error,omitempty"`
}

type console struct {
	Options
}

// New returns the handler of /api/v1/, /requests, /grants, /access/ and /log.
func New(o Options) http.Handler {
	c := &console{o}
	mux := http.NewServeMux()
	api := func(pattern string, do func(r *http.Request, by identity.Identity) (any, error)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) { c.answer(w, r, do) })
	}
	api("GET /api/v1/me", c.me)
	api("GET /api/v1/servers", c.servers)
	api("GET /api/v1/requests", c.requests)
	api("POST /api/v1/requests", c.ask)
	api("GET /api/v1/requests/{id}", c.request)
	api("POST /api/v1/requests/{id}/decision", c.decide)
	api("GET /api/v1/grants", c.grants)
	api("POST /api/v1/grants/{id}/revoke", c.revoke)
	api("POST /api/v1/grants/{id}/review", c.review)
	api("GET /api/v1/disabled", c.disabled)
	api("POST /api/v1/disabled", c.disable)
	api("DELETE /api/v1/disabled/{kind}/{name...}", c.enable)
	api("GET /api/v1/log", func(r *http.Request, by identity.Identity) (any, error) { return c.recorded(r, by) })
	c.pages(mux)
	return http.NewCrossOriginProtection().Handler(mux)
}

// maxBody bounds the body of a request, in bytes.
const maxBody = 64 << 10

// maxList bounds a list.
const maxList = 1000

// A badRequest is the peer's own fault, in words for it.
type badRequest struct{ error }

// answer does what an API request asks, and answers in JSON.
func (c *console) answer(w http.ResponseWriter, r *http.Request, do func(*http.Request, identity.Identity) (any, error)) {
	r.Body = http.MaxBytesReader(w, r.Body, maxBody)
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	by, err := c.Who(r)
	if err != nil {
		writeJSON(w, http.StatusUnauthorized, Failure{err.Error()})
		return
	}
	result, err := do(r, by)
	if err != nil {
		status, text := c.failure(err)
		writeJSON(w, status, Failure{text})
		return
	}
	writeJSON(w, http.StatusOK, result)
}

// Failure is the body of an answer that is an error.
type Failure struct {
	Error string `json:"error"`
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(v)
}

// failure is the status and the text of an error.
func (c *console) failure(err error) (status int, text string) {
	var (
		mine  *grant.AskError
		state *grant.StateError
		bad   badRequest
	)
	switch {
	case errors.As(err, &mine), errors.As(err, &bad), errors.Is(err, grant.ErrTooMany):
		return http.StatusBadRequest, err.Error()
	case errors.As(err, &state), errors.Is(err, grant.ErrVoted):
		return http.StatusConflict, err.Error()
	case errors.Is(err, grant.ErrNotFound):
		return http.StatusNotFound, err.Error()
	case errors.Is(err, grant.ErrOneself), errors.Is(err, grant.ErrNotApprover), errors.Is(err, grant.ErrRight), errors.Is(err, grant.ErrDisabled):
		return http.StatusForbidden, err.Error()
	}
	c.Log.Error("a request of the console fails", "error", err)
	return http.StatusServiceUnavailable, "this cannot be kept now; try again later"
}

// decode reads a JSON body strictly.
func decode(r *http.Request, v any) error {
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return badRequest{errors.New("the body is not the JSON that is expected")}
	}
	return nil
}

// Me is who the caller is.
type Me struct {
	Subject string   `json:"subject"`
	Groups  []string `json:"groups"`
	Admin   bool     `json:"admin"`
}

func (c *console) me(_ *http.Request, by identity.Identity) (any, error) {
	return Me{by.Subject, by.Groups, c.Desk.Admin(by)}, nil
}

// Server is one that the caller may reach, and on what terms.
type Server struct {
	Name   string         `json:"name"`
	Access string         `json:"access"` // allow or approval
	Rule   string         `json:"rule"`
	Until  time.Time      `json:"until,omitzero"` // of the grant that there is
	Most   grant.Duration `json:"most,omitempty"` // that may be asked for
}

func (c *console) servers(_ *http.Request, by identity.Identity) (any, error) {
	list := []Server{}
	for _, name := range c.Servers {
		t := c.Terms(by, name)
		if t.Access == policy.Deny {
			continue
		}
		s := Server{Name: name, Access: t.Access.String(), Rule: t.Rule}
		if t.Access == policy.Approval {
			s.Most = grant.Duration(t.Asking().MaxDuration)
			if u := c.Desk.Find(by.Subject, name, t.Rule, ""); u != nil {
				s.Until = u.Until
			}
		}
		list = append(list, s)
	}
	return list, nil
}

func (c *console) requests(r *http.Request, by identity.Identity) (any, error) {
	list := c.Desk.Pending(by)
	if r.FormValue("all") != "" {
		var err error
		if list, err = c.Desk.Requests(r.Context(), by, maxList); err != nil {
			return nil, err
		}
	}
	if list == nil {
		list = []grant.Request{}
	}
	return list, nil
}

// waitTime bounds how long a request for a request waits for its decision.
const waitTime = 20 * time.Second

func (c *console) request(r *http.Request, by identity.Identity) (any, error) {
	req, err := c.Desk.Request(r.Context(), r.PathValue("id"), by)
	if err != nil || req.State != grant.Pending || r.FormValue("wait") == "" {
		return req, err
	}
	ctx, cancel := context.WithTimeout(r.Context(), waitTime)
	defer cancel()
	if decided, err := c.Desk.Decided(ctx, req.ID); err == nil {
		return decided, nil
	}
	return req, nil
}

// Ask is the body of a request for access.
type Ask struct {
	Server     string         `json:"server"`
	Reason     string         `json:"reason,omitempty"`
	Duration   grant.Duration `json:"duration,omitempty"` // zero: the rule's
	BreakGlass bool           `json:"break_glass,omitempty"`
}

func (c *console) ask(r *http.Request, by identity.Identity) (any, error) {
	var a Ask
	if err := decode(r, &a); err != nil {
		return nil, err
	}
	return c.askFor(r, by, a)
}

func (c *console) askFor(r *http.Request, by identity.Identity, a Ask) (grant.Request, error) {
	t := c.Terms(by, a.Server)
	switch t.Access {
	case policy.Allow:
		return grant.Request{}, badRequest{errors.New("you may use this server without asking")}
	case policy.Deny:
		return grant.Request{}, badRequest{errors.New("no rule lets you ask for this server")}
	}
	source, _ := netip.ParseAddrPort(r.RemoteAddr)
	return c.Desk.Ask(r.Context(), grant.Ask{
		By: by, Server: a.Server, Terms: t, Reason: a.Reason, Duration: time.Duration(a.Duration),
		Source: source.Addr(), BreakGlass: a.BreakGlass,
	})
}

// recorded says how the log stands, to admins alone.
func (c *console) recorded(r *http.Request, by identity.Identity) (Recorded, error) {
	switch {
	case c.Recorded == nil:
		return Recorded{}, grant.ErrNotFound
	case !c.Desk.Admin(by):
		return Recorded{}, grant.ErrRight
	}
	return c.Recorded(r.Context())
}

// Decision is the body of an approver's decision.
type Decision struct {
	Approve bool   `json:"approve"`
	Comment string `json:"comment,omitempty"`
}

func (c *console) decide(r *http.Request, by identity.Identity) (any, error) {
	var d Decision
	if err := decode(r, &d); err != nil {
		return nil, err
	}
	return c.Desk.Decide(r.Context(), r.PathValue("id"), by, grant.Vote{Yes: d.Approve, Comment: d.Comment, Via: "cli"})
}

func (c *console) grants(r *http.Request, by identity.Identity) (any, error) {
	list, err := c.Desk.Grants(r.Context(), by, r.FormValue("all") != "", maxList)
	if list == nil {
		list = []grant.Grant{}
	}
	return list, err
}

// Why is the body of what needs a reason at the most.
type Why struct {
	Reason string `json:"reason,omitempty"`
}

func (c *console) revoke(r *http.Request, by identity.Identity) (any, error) {
	var w Why
	if err := decode(r, &w); err != nil {
		return nil, err
	}
	return c.Desk.Revoke(r.Context(), r.PathValue("id"), by, w.Reason, "cli")
}

func (c *console) review(r *http.Request, by identity.Identity) (any, error) {
	var w Why
	if err := decode(r, &w); err != nil {
		return nil, err
	}
	return c.Desk.Review(r.Context(), r.PathValue("id"), by, w.Reason)
}

func (c *console) disabled(_ *http.Request, by identity.Identity) (any, error) {
	return c.Desk.DisabledList(by)
}

// Disable is the body of disabling an identity.
type Disable struct {
	Kind   string `json:"kind"` // user, agent or serial
	Name   string `json:"name"`
	Reason string `json:"reason,omitempty"`
}

func (c *console) disable(r *http.Request, by identity.Identity) (any, error) {
	var d Disable
	if err := decode(r, &d); err != nil {
		return nil, err
	}
	return struct{}{}, c.Desk.Disable(r.Context(), d.Kind, d.Name, by, d.Reason)
}

func (c *console) enable(r *http.Request, by identity.Identity) (any, error) {
	return struct{}{}, c.Desk.Enable(r.Context(), r.PathValue("kind"), r.PathValue("name"), by)
}
