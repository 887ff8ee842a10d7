package policy

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/ext"

	"example.com/broker/broker/identity"
)

// Asking is how one asks for what a rule gives after an approval: access to a
// server, or a single call. A zero field means its default.
type Asking struct {
	Approvers   Approvers
	MaxDuration time.Duration // that may be asked for; the rule's Duration
	Reason      string        // "required", or a pattern that the whole reason matches; if empty, none is needed
	Auto        string        // CEL; where true, nobody has to approve
	BreakGlass  []string      // groups whose members may take access at once
	TTL         time.Duration // of a request that nobody decides; 24 h
	Hold        time.Duration // how long a call waits for its approval before it is refused; 45 s
	NoRoom      bool          // refuse at once, instead of a session that waits for its approval
	Native      bool          // a channel's own buttons count as a decision
}

// Approvers say who may decide on a request, and how many of them must say yes.
type Approvers struct {
	Users  []string `json:"users,omitempty"`
	Groups []string `json:"groups,omitempty"`
	Count  int      `json:"count"` // if zero, 1
}

// Include reports whether id is one of a.
func (a Approvers) Include(id identity.Identity) bool {
	return matches(a.Users, id.Subject) || slices.Contains(a.Groups, "*") ||
		slices.ContainsFunc(id.Groups, func(g string) bool { return slices.Contains(a.Groups, g) })
}

// String lists users and groups, for people.
func (a Approvers) String() string {
	names := slices.Clone(a.Users)
	for _, g := range a.Groups {
		names = append(names, "group "+g)
	}
	return strings.Join(names, ", ")
}

// Defaults of Asking and of a grant.
const (
	defaultGrant = time.Hour
	defaultTTL   = 24 * time.Hour
	// Clients give a call that shows no progress 60 s.
	defaultHold = 45 * time.Second
)

// asking is a compiled Asking.
type asking struct {
	Asking
	reason *regexp.Regexp // nil: any
	auto   cel.Program    // nil: never
}

// newAutoEnv has the variables of auto. source is the address of the asker,
// without a port.
func newAutoEnv() (*cel.Env, error) {
	return cel.NewEnv(
		cel.Variable("subject", cel.StringType), cel.Variable("groups", cel.ListType(cel.StringType)),
		cel.Variable("server", cel.StringType), cel.Variable("reason", cel.StringType),
		cel.Variable("duration", cel.DurationType), cel.Variable("source", cel.StringType),
		cel.Variable("tool", cel.StringType), cel.Variable("now", cel.TimestampType),
		ext.Network(),
	)
}

// compileAsking checks and compiles how one asks for what r gives. fault gets
// what is wrong, and with what.
func compileAsking(auto *cel.Env, r Rule, fault func(field string, err error)) asking {
	a := asking{Asking: r.Asking}
	a.Approvers.Count = cmp.Or(a.Approvers.Count, 1)
	a.MaxDuration = cmp.Or(a.MaxDuration, r.Duration, defaultGrant)
	a.TTL = cmp.Or(a.TTL, defaultTTL)
	a.Hold = cmp.Or(a.Hold, defaultHold)
	if a.MaxDuration < r.Duration {
		fault("max_duration", errors.New("is less than duration"))
	}
	if a.Approvers.Count < 0 {
		fault("approvers.count", errors.New("must be at least 1"))
	}
	needs := r.Access == Approval || slices.ContainsFunc(r.Calls, func(c CallRule) bool { return c.Approval != "" })
	if needs && len(a.Approvers.Users) == 0 && len(a.Approvers.Groups) == 0 && a.Auto == "" {
		fault("", errors.New("asks for approval and names nobody who could give it: say approvers (users or groups), or auto"))
	}
	if !needs && (len(a.Approvers.Users) > 0 || len(a.Approvers.Groups) > 0 || a.Auto != "" || len(a.BreakGlass) > 0) {
		fault("", errors.New("names approvers, auto or break_glass, and nothing in it needs an approval"))
	}
	if a.Reason != "" && a.Reason != "required" {
		re, err := regexp.Compile(`^(?:` + a.Reason + `)$`)
		if err != nil {
			fault("reason", fmt.Errorf("is neither %q nor a pattern: %w", "required", err))
		}
		a.reason = re
	}
	if a.Auto == "" {
		return a
	}
	tree, issues := auto.Compile(a.Auto)
	if issues.Err() != nil {
		fault("auto", oneLine(issues))
		return a
	}
	if !tree.OutputType().IsExactType(cel.BoolType) {
		fault("auto", fmt.Errorf("is of type %s, not bool", tree.OutputType()))
		return a
	}
	program, err := auto.Program(tree, cel.EvalOptions(cel.OptOptimize), cel.CostLimit(costLimit))
	fault("auto", err)
	a.auto = program
	return a
}

// CheckReason returns what is wrong with a reason that somebody gave, for that person.
func (t *Terms) CheckReason(reason string) error {
	reason = strings.TrimSpace(reason)
	switch {
	case len(reason) > maxReason:
		return fmt.Errorf("the reason is over %d bytes long", maxReason)
	case checkText(reason) != nil:
		return errors.New("the reason has control characters")
	case t.asking.Asking.Reason == "required" && reason == "":
		return errors.New("a reason is required")
	case t.asking.reason != nil && !t.asking.reason.MatchString(reason):
		return fmt.Errorf("the reason must match %s", t.asking.Asking.Reason)
	}
	return nil
}

// maxReason bounds a reason, in bytes.
const maxReason = 1000

// Lasts returns how long a grant lasts for which somebody asked for so long;
// zero is the rule's own.
func (t *Terms) Lasts(asked time.Duration) (time.Duration, error) {
	switch limit := t.asking.MaxDuration; {
	case asked < 0:
		return 0, errors.New("a duration is above 0")
	case asked > limit:
		return 0, fmt.Errorf("%s is longer than the rule allows, which is %s", asked, limit)
	case asked == 0:
		return cmp.Or(t.Duration, min(defaultGrant, limit)), nil
	}
	return asked, nil
}

// Asked is a request as auto sees it.
type Asked struct {
	Reason   string
	Duration time.Duration
	Source   netip.Addr // of the asker
	Tool     string     // of the call, if it is for a single one
	Now      time.Time
}

// Auto reports whether a request needs nobody's yes. A condition that fails to
// evaluate is not true.
func (t *Terms) Auto(a Asked) bool {
	if t.asking.auto == nil {
		return false
	}
	out, _, err := t.asking.auto.Eval(map[string]any{
		"subject": t.session.subject, "groups": t.session.groups, "server": t.session.server,
		"reason": a.Reason, "duration": a.Duration, "source": a.Source.Unmap().String(),
		"tool": a.Tool, "now": a.Now,
	})
	return err == nil && out == types.True
}

// MayBreakGlass reports whether the terms' subject may take access at once.
func (t *Terms) MayBreakGlass() bool {
	return slices.ContainsFunc(t.session.groups, func(g string) bool { return slices.Contains(t.asking.BreakGlass, g) })
}

// Asking returns how one asks, with the defaults filled in.
func (t *Terms) Asking() Asking { return t.asking.Asking }
