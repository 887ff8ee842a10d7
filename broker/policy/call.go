package policy

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/interpreter"

	"example.com/broker/codec"
)

// housekeeping are the requests that are no calls: they reach no data but the
// lists of what there is, and what calls have led to.
var housekeeping = []string{
	"initialize", "ping", "server/discover", "logging/setLevel", "completion/complete",
	"tools/list", "prompts/list", "resources/list", "resources/templates/list", "resources/unsubscribe",
	"subscriptions/listen", "tasks/get", "tasks/result", "tasks/list", "tasks/cancel",
}

// costLimit bounds what one condition may cost, in CEL's units; a condition
// over it fails to evaluate. Matching a pattern in 1 MB of SQL stays below.
const costLimit = 2_000_000

// The variables of conditions.
var variables = []string{"tool", "args", "method", "uri", "prompt", "server", "subject", "groups", "now"}

// static are the variables that say nothing of a call but the tool's name.
var static = []string{"tool", "method", "server", "subject", "groups"}

// A condition is a compiled call rule.
type condition struct {
	access  Access
	reason  string
	guard   guard
	program cel.Program
	method  bool // it names method, so it judges housekeeping, too
	static  bool // it depends on static variables only
}

type env struct{ *cel.Env }

func newEnv() (env, error) {
	e, err := cel.NewEnv(
		cel.Variable("tool", cel.StringType), cel.Variable("args", cel.MapType(cel.StringType, cel.DynType)),
		cel.Variable("method", cel.StringType), cel.Variable("uri", cel.StringType), cel.Variable("prompt", cel.StringType),
		cel.Variable("server", cel.StringType), cel.Variable("subject", cel.StringType),
		cel.Variable("groups", cel.ListType(cel.StringType)), cel.Variable("now", cel.TimestampType),
	)
	return env{e}, err
}

// compile returns the condition of c. field names what an error is about.
func (e env) compile(c CallRule) (cond condition, field string, err error) {
	var text string
	set := 0
	for _, kind := range []struct {
		access Access
		text   string
	}{{Deny, c.Deny}, {Approval, c.Approval}, {Allow, c.Allow}} {
		if kind.text != "" {
			cond.access, text, field = kind.access, kind.text, kind.access.String()
			set++
		}
	}
	if set != 1 {
		return cond, "", errors.New("needs one of deny, approval and allow")
	}
	if err := checkText(c.Reason); err != nil {
		return cond, "reason", err
	}
	cond.reason = c.Reason
	tree, issues := e.Compile(text)
	if err := issues.Err(); err != nil {
		return cond, field, oneLine(issues)
	}
	if !tree.OutputType().IsExactType(cel.BoolType) {
		return cond, field, fmt.Errorf("is of type %s, not bool", tree.OutputType())
	}
	names := namesIn(tree)
	cond.method = slices.Contains(names, "method")
	cond.static = !slices.ContainsFunc(names, func(n string) bool { return !slices.Contains(static, n) })
	cond.guard = guardOf(tree.NativeRep().Expr())
	cond.program, err = e.Program(tree, cel.EvalOptions(cel.OptOptimize), cel.CostLimit(costLimit))
	if err != nil {
		return cond, field, err
	}
	return cond, field, nil
}

// namesIn lists the variables in an expression.
func namesIn(tree *cel.Ast) (names []string) {
	root := ast.NavigateAST(tree.NativeRep())
	for _, n := range ast.MatchDescendants(root, ast.KindMatcher(ast.IdentKind)) {
		names = append(names, n.AsIdent())
	}
	if root.Kind() == ast.IdentKind {
		names = append(names, root.AsIdent())
	}
	return names
}

// oneLine reduces what CEL says over several lines to its first fault.
func oneLine(issues *cel.Issues) error {
	first := issues.Errors()[0]
	message := first.Message
	if name, ok := strings.CutPrefix(message, "undeclared reference to '"); ok {
		name, _, _ = strings.Cut(name, "'")
		message = fmt.Sprintf("undeclared reference to '%s'", name)
		if near := nearest(name); near != "" {
			message += fmt.Sprintf(" (did you mean '%s'?)", near)
		}
	}
	return fmt.Errorf("%s, at column %d", message, first.Location.Column()+1)
}

// nearest is the variable that name may have been meant to be: a letter more,
// less or other.
func nearest(name string) string {
	for _, v := range variables {
		short, long := v, name
		if len(short) > len(long) {
			short, long = long, short
		}
		if len(long)-len(short) > 1 || len(short) < 2 {
			continue
		}
		i := 0
		for i < len(short) && short[i] == long[i] {
			i++
		}
		if short[i:] == long[min(i+1, len(long)):] || len(short) == len(long) && i < len(short) && short[i+1:] == long[i+1:] {
			return v
		}
	}
	return ""
}

// A Verdict is the decision on one call.
type Verdict struct {
	Access Access
	Reason string // for the person; empty if allowed
	Rule   string
}

// Call judges a frame of the client: a request or a notification.
func (t *Terms) Call(f *codec.Frame, now time.Time) Verdict {
	if len(t.calls) == 0 {
		return Verdict{Access: Allow}
	}
	call := IsCall(f)
	v := varsPool.Get().(*vars)
	*v = vars{session: &t.session, now: now, frame: f}
	defer func() { *v = vars{}; varsPool.Put(v) }()
	for i := range t.calls {
		c := &t.calls[i]
		if !call && !c.method {
			continue
		}
		if c.holds(v) {
			return t.verdict(c)
		}
	}
	return Verdict{Access: Allow}
}

// IsCall reports whether f does more than keep the house. A server may carry
// out what came without an id, too, and only not answer it.
func IsCall(f *codec.Frame) bool {
	if f.Kind == codec.Notification && bytes.HasPrefix(f.Method, []byte("notifications/")) {
		return false
	}
	return !slices.Contains(housekeeping, string(f.Method))
}

func (t *Terms) verdict(c *condition) Verdict {
	if c.access == Allow {
		return Verdict{Access: Allow}
	}
	reason := c.reason
	if reason == "" {
		reason = "denied by policy"
		if c.access == Approval {
			reason = "required by policy"
		}
	}
	return Verdict{c.access, reason, t.Rule}
}

// holds evaluates the condition. What fails to evaluate never opens a door.
func (c *condition) holds(v *vars) bool {
	if c.guard.holds != nil {
		if holds := c.guard.holds(v); !holds || c.guard.whole {
			return holds
		}
	}
	out, _, err := c.program.Eval(v)
	if err != nil || out == nil {
		return c.access != Allow
	}
	return out == types.True || out != types.False && c.access != Allow
}

// HidesTools reports whether Hides may be true for any tool.
func (t *Terms) HidesTools() bool {
	return slices.ContainsFunc(t.calls, func(c condition) bool { return c.access == Deny && c.static })
}

// Hides reports whether a tool of that name is denied whatever its arguments.
func (t *Terms) Hides(tool string) bool {
	f := codec.Frame{Kind: codec.Request, Method: []byte("tools/call"), Name: []byte(tool)}
	v := vars{session: &t.session, frame: &f}
	for i := range t.calls {
		c := &t.calls[i]
		switch {
		case !c.static && c.access == Allow: // may be true: may be used
			return false
		case c.static && c.holds(&v):
			return c.access == Deny
		}
	}
	return false
}

// vars are the variables of one call. The arguments are decoded only when a
// condition looks at them, and once.
type vars struct {
	session *session
	now     time.Time
	frame   *codec.Frame
	args    map[string]any
}

var varsPool = sync.Pool{New: func() any { return new(vars) }}

// ResolveName implements interpreter.Activation.
func (v *vars) ResolveName(name string) (any, bool) {
	switch name {
	case "tool":
		return string(v.nameOf("tools/call")), true
	case "prompt":
		return string(v.nameOf("prompts/get")), true
	case "method":
		return string(v.frame.Method), true
	case "uri":
		return string(v.frame.URI), true
	case "server":
		return v.session.server, true
	case "subject":
		return v.session.subject, true
	case "groups":
		return v.session.groups, true
	case "now":
		return v.now, true
	case "args":
		if v.args == nil {
			args, err := decode(v.frame.Arguments)
			if err != nil {
				return types.WrapErr(err), true
			}
			v.args = args
		}
		return v.args, true
	}
	return nil, false
}

// Parent implements interpreter.Activation.
func (v *vars) Parent() interpreter.Activation { return nil }

func (v *vars) nameOf(method string) []byte {
	if string(v.frame.Method) != method {
		return nil
	}
	return v.frame.Name
}

var errArguments = errors.New("arguments are no object")

// decode reads arguments that the codec has accepted, so that there is only one
// way to read them. Integers that fit become CEL's int, other numbers double.
func decode(raw []byte) (map[string]any, error) {
	if raw == nil {
		return map[string]any{}, nil
	}
	if raw[0] != '{' {
		return nil, errArguments
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	var args map[string]any
	if err := d.Decode(&args); err != nil {
		return nil, errArguments
	}
	for k, v := range args {
		args[k] = numbers(v)
	}
	return args, nil
}

// numbers turns the numbers in v into CEL's.
func numbers(v any) any {
	switch v := v.(type) {
	case json.Number:
		if n, err := v.Int64(); err == nil {
			return n
		}
		if x, err := v.Float64(); err == nil {
			return x
		}
		return types.NewErr("number out of range") // a condition on it fails to evaluate
	case map[string]any:
		for k, e := range v {
			v[k] = numbers(e)
		}
	case []any:
		for i, e := range v {
			v[i] = numbers(e)
		}
	}
	return v
}
