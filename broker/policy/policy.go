// Package policy decides: who may use which server, and which calls pass.
//
// A [Policy] is a list of rules. The first that matches identity and server
// decides on the session ([Policy.Decide]); its call rules, in CEL, decide on
// every call ([Terms.Call]):
//
//	p, err := policy.Compile(rules)
//	terms := p.Decide(id, "bigquery")
//	if terms.Access == policy.Allow {
//		verdict := terms.Call(frame, time.Now())
//	}
//
// In doubt the answer is no: without a rule, access is denied; a condition that
// fails to evaluate counts as true where it denies or asks for approval, and as
// false where it allows.
//
// # Calls
//
// A call is every request but the protocol's housekeeping (see housekeeping),
// also one that this package has never heard of. A condition that names the
// variable method judges every request and notification, housekeeping too.
package policy

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"

	"example.com/broker/broker/identity"
	"example.com/broker/codec"
)

// Access is what a rule gives.
type Access uint8

const (
	Deny Access = iota
	Approval
	Allow
)

var accesses = []string{Deny: "deny", Approval: "approval", Allow: "allow"}

// ParseAccess reads allow, approval or deny.
func ParseAccess(s string) (Access, error) {
	if i := slices.Index(accesses, s); i >= 0 {
		return Access(i), nil
	}
	if s == "" {
		return Deny, errors.New("is missing; say allow, approval or deny")
	}
	return Deny, fmt.Errorf("%q is none of allow, approval, deny", s)
}

// String returns allow, approval or deny.
func (a Access) String() string { return accesses[a] }

// A Mode says whether what a rule says of calls and values is done. Access always is.
type Mode uint8

const (
	Enforce Mode = iota
	Observe      // calls and values pass; what would become of them is in Terms.Observed
)

var modes = []string{Enforce: "enforce", Observe: "observe"}

// ParseMode reads enforce or observe; empty is enforce.
func ParseMode(s string) (Mode, error) {
	if s == "" {
		return Enforce, nil
	}
	if i := slices.Index(modes, s); i >= 0 {
		return Mode(i), nil
	}
	return Enforce, fmt.Errorf("%q is neither enforce nor observe", s)
}

// String returns enforce or observe.
func (m Mode) String() string { return modes[m] }

// A Rule gives those whom it matches access to servers, on terms. "*" in a list
// matches everybody, or every server.
type Rule struct {
	Name     string   // if empty, policy[i]
	Users    []string // subjects; a rule needs users or groups
	Groups   []string
	Servers  []string
	Access   Access
	Mode     Mode
	Duration time.Duration // of a session at the most, or of a grant that is asked for without one; zero: no limit, or 1 h
	Keep     time.Duration // how long its sessions are kept on record after their end; zero: as long as those that no rule speaks of, below: for good
	Calls    []CallRule    // top to bottom, the first that is true decides; none: allow
	Masking  Masking
	Asking   Asking // where access or a call needs an approval
	// Certificate bounds the life of the certificates of those whom the rule
	// matches, whatever the server; zero: as Lifetime says.
	Certificate time.Duration
}

// A CallRule is a condition in CEL and what it decides. One of Deny, Approval
// and Allow is set.
type CallRule struct {
	Deny     string
	Approval string
	Allow    string
	Reason   string // for the person
}

// Masking says what is masked in frames.
type Masking struct {
	New      func() *codec.Masker // nil: nothing
	Requests Requests
}

// Requests says what becomes of a call in whose arguments something is found.
type Requests uint8

const (
	RequestsPass Requests = iota // nobody looks
	RequestsMask
	RequestsDeny
)

// An Error says where in the rules a fault lies.
type Error struct {
	Rule  int
	Call  int    // -1: not in a call rule
	Field string // as in the configuration: deny, servers, …
	Err   error
}

func (e *Error) Error() string {
	at := fmt.Sprintf("policy[%d]", e.Rule)
	if e.Call >= 0 {
		at += fmt.Sprintf(".calls[%d]", e.Call)
	}
	if e.Field != "" {
		at += "." + e.Field
	}
	return at + ": " + e.Err.Error()
}

func (e *Error) Unwrap() error { return e.Err }

// A Policy is a list of compiled rules. It does not change.
type Policy struct {
	rules []rule
}

type rule struct {
	Rule
	calls  []condition
	asking asking

	maskers *sync.Pool // that nobody needs
}

// Compile checks and compiles rules. Its error joins an [*Error] for each fault.
func Compile(rules []Rule) (*Policy, error) {
	env, err := newEnv()
	if err != nil {
		return nil, err
	}
	auto, err := newAutoEnv()
	if err != nil {
		return nil, err
	}
	p := &Policy{}
	var faults []error
	names := map[string]bool{}
	for i, r := range rules {
		fault := func(field string, err error) {
			if err != nil {
				faults = append(faults, &Error{i, -1, field, err})
			}
		}
		if r.Name == "" {
			r.Name = fmt.Sprintf("policy[%d]", i)
		}
		if names[r.Name] {
			fault("name", fmt.Errorf("two rules are named %q", r.Name))
		}
		names[r.Name] = true
		fault("name", checkText(r.Name))
		if r.Certificate != 0 && r.Certificate < time.Minute {
			fault("certificate", errors.New("must be a minute or more"))
		}
		if len(r.Users) == 0 && len(r.Groups) == 0 {
			fault("", errors.New(`has neither users nor groups; users: ["*"] means everybody who is signed in`))
		}
		if len(r.Servers) == 0 {
			fault("", errors.New(`has no servers; ["*"] means all`))
		}
		if r.Access > Allow {
			fault("access", errors.New("is none of allow, approval, deny"))
		}
		fault("mode", checkMode(r))
		compiled := rule{Rule: r, asking: compileAsking(auto, r, fault), maskers: new(sync.Pool)}
		for j, c := range r.Calls {
			cond, field, err := env.compile(c)
			if err != nil {
				faults = append(faults, &Error{i, j, field, err})
				continue
			}
			compiled.calls = append(compiled.calls, cond)
		}
		p.rules = append(p.rules, compiled)
	}
	if len(faults) > 0 {
		return nil, errors.Join(faults...)
	}
	return p, nil
}

// checkMode refuses a rule that has nothing to observe. One that denies access
// would, if it did not, open what it closes, or leave it to whatever rule is next.
func checkMode(r Rule) error {
	switch {
	case r.Mode > Observe:
		return errors.New("is neither enforce nor observe")
	case r.Mode == Enforce:
		return nil
	case r.Access == Deny:
		return errors.New("a rule that denies access cannot be observed: access is always enforced; broker policy test says what it would refuse")
	case len(r.Calls) == 0 && r.Masking.New == nil:
		return errors.New("there is nothing to observe: the rule has no calls and masks nothing, and its access is always enforced")
	}
	return nil
}

// checkText refuses what could deceive in a log.
func checkText(s string) error {
	if strings.ContainsFunc(s, unicode.IsControl) {
		return errors.New("has control characters")
	}
	return nil
}

// Terms are what a policy says of one identity's use of one server, and what is
// enforced. They may be used by several goroutines.
type Terms struct {
	Access   Access
	Rule     string // the name of the rule; empty if none matched
	Duration time.Duration
	Keep     time.Duration
	Masking  Masking
	// Observed are the terms as they would be if the rule, whose mode is Observe, were
	// enforced; else nil. The Terms themselves then let every call pass, and mask
	// nothing.
	Observed *Terms

	calls   []condition
	asking  asking
	session session
	maskers *sync.Pool // of the rule
}

// AcquireMasker returns a Masker of Masking, or nil if it masks nothing. They are large,
// and most sessions are idle most of the time: whoever waits gives his back.
func (t *Terms) AcquireMasker() *codec.Masker {
	if t.Masking.New == nil {
		return nil
	}
	if m, ok := t.maskers.Get().(*codec.Masker); ok {
		return m
	}
	return t.Masking.New()
}

// ReleaseMasker takes a Masker back. What it has found must not be used any more.
func (t *Terms) ReleaseMasker(m *codec.Masker) { t.maskers.Put(m) }

// session are the variables that stay the same in a session.
type session struct {
	server  string
	subject string
	groups  []string
}

// Decide returns the terms of the first rule that matches; without one, Deny.
func (p *Policy) Decide(id identity.Identity, server string) *Terms {
	for _, r := range p.rules {
		if !matches(r.Servers, server) || !r.is(id) {
			continue
		}
		t := &Terms{
			Access: r.Access, Rule: r.Name, Duration: r.Duration, Keep: r.Keep, Masking: r.Masking,
			calls: r.calls, asking: r.asking, session: session{server, id.Subject, id.Groups}, maskers: r.maskers,
		}
		if r.Mode == Observe {
			passes := *t
			passes.Observed, passes.calls, passes.Masking = t, nil, Masking{}
			return &passes
		}
		return t
	}
	return &Terms{}
}

// is reports whether the rule is for id.
func (r *rule) is(id identity.Identity) bool {
	return matches(r.Users, id.Subject) || slices.ContainsFunc(id.Groups, func(g string) bool { return matches(r.Groups, g) }) || slices.Contains(r.Groups, "*")
}

// lifetime is that of a certificate for which no rule says less: a working day.
const lifetime = 8 * time.Hour

// Lifetime returns how long a certificate lasts that somebody gets at sign-in:
// the least that a rule for that identity says, and 8 h at the most.
func (p *Policy) Lifetime(id identity.Identity) time.Duration {
	least := lifetime
	for _, r := range p.rules {
		if r.Certificate > 0 && r.is(id) {
			least = min(least, r.Certificate)
		}
	}
	return least
}

func matches(list []string, name string) bool {
	return slices.Contains(list, name) || slices.Contains(list, "*")
}
