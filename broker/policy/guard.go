package policy

import (
	"bytes"

	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/types"
)

// A guard is a part of a condition that is decided without CEL: tests of a name against a
// text, joined by and, or, not. Most conditions begin by asking for a tool, and most calls
// are of another.
type guard struct {
	holds func(*vars) bool
	whole bool // it is the whole condition; otherwise CEL decides where it holds
}

// guardOf returns the guard of a condition; without one, its holds is nil.
//
// Where it does not hold, the condition is false, whatever of the rest fails: in CEL,
// false && error is false, either way round.
func guardOf(e ast.Expr) guard {
	if holds := nativeOf(e); holds != nil {
		return guard{holds, true}
	}
	if e.Kind() != ast.CallKind || len(e.AsCall().Args()) != 2 {
		return guard{}
	}
	a, b := guardOf(e.AsCall().Args()[0]).holds, guardOf(e.AsCall().Args()[1]).holds
	switch e.AsCall().FunctionName() {
	case operators.LogicalAnd:
		if a == nil || b == nil {
			return guard{holds: firstOf(a, b)}
		}
		return guard{holds: and(a, b)}
	case operators.LogicalOr:
		if a != nil && b != nil {
			return guard{holds: or(a, b)}
		}
	}
	return guard{}
}

func firstOf(a, b func(*vars) bool) func(*vars) bool {
	if a != nil {
		return a
	}
	return b
}

func and(a, b func(*vars) bool) func(*vars) bool { return func(v *vars) bool { return a(v) && b(v) } }
func or(a, b func(*vars) bool) func(*vars) bool  { return func(v *vars) bool { return a(v) || b(v) } }

// nativeOf returns what decides an expression as CEL does, or nil: such an expression
// cannot fail.
func nativeOf(e ast.Expr) func(*vars) bool {
	if e.Kind() != ast.CallKind {
		return nil
	}
	call := e.AsCall()
	args := call.Args()
	if call.IsMemberFunction() {
		if len(args) != 1 {
			return nil
		}
		name, text := nameIn(call.Target()), textIn(args[0])
		if name == nil || text == nil {
			return nil
		}
		switch call.FunctionName() {
		case "startsWith":
			return func(v *vars) bool { return bytes.HasPrefix(name(v), text) }
		case "endsWith":
			return func(v *vars) bool { return bytes.HasSuffix(name(v), text) }
		case "contains":
			return func(v *vars) bool { return bytes.Contains(name(v), text) }
		}
		return nil
	}
	switch function := call.FunctionName(); function {
	case operators.LogicalNot:
		if a := nativeOf(args[0]); a != nil {
			return func(v *vars) bool { return !a(v) }
		}
	case operators.LogicalAnd, operators.LogicalOr:
		a, b := nativeOf(args[0]), nativeOf(args[1])
		switch {
		case a == nil || b == nil:
			return nil
		case function == operators.LogicalAnd:
			return and(a, b)
		default:
			return or(a, b)
		}
	case operators.Equals, operators.NotEquals:
		name, text := nameIn(args[0]), textIn(args[1])
		if name == nil {
			name, text = nameIn(args[1]), textIn(args[0])
		}
		if name == nil || text == nil {
			return nil
		}
		equal := function == operators.Equals
		return func(v *vars) bool { return bytes.Equal(name(v), text) == equal }
	case operators.In:
		name := nameIn(args[0])
		if name == nil || args[1].Kind() != ast.ListKind {
			return nil
		}
		list := args[1].AsList()
		texts := map[string]bool{}
		for _, e := range list.Elements() {
			text := textIn(e)
			if text == nil {
				return nil
			}
			texts[string(text)] = true
		}
		return func(v *vars) bool { return texts[string(name(v))] }
	}
	return nil
}

// nameIn returns what reads a variable that is a name in the frame, or nil.
func nameIn(e ast.Expr) func(*vars) []byte {
	if e.Kind() != ast.IdentKind {
		return nil
	}
	switch e.AsIdent() {
	case "tool":
		return func(v *vars) []byte { return v.nameOf("tools/call") }
	case "prompt":
		return func(v *vars) []byte { return v.nameOf("prompts/get") }
	case "method":
		return func(v *vars) []byte { return v.frame.Method }
	case "uri":
		return func(v *vars) []byte { return v.frame.URI }
	}
	return nil
}

// textIn returns a string that stands in an expression, or nil.
func textIn(e ast.Expr) []byte {
	if e.Kind() != ast.LiteralKind {
		return nil
	}
	text, ok := e.AsLiteral().(types.String)
	if !ok {
		return nil
	}
	return append([]byte{}, text...) // not nil if empty
}
