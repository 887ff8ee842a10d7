package identity

import (
	"cmp"
	"errors"
	"fmt"
	"reflect"
	"strings"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types"
)

// MappingOptions says how an identity is read from the claims of a token, or the
// attributes of a SAML assertion. Expressions are CEL and see claims, a map.
type MappingOptions struct {
	Subject     string // the claim with the subject
	Groups      string // the claim with the groups; if empty, none are read
	SubjectExpr string // instead of Subject: a string
	GroupsExpr  string // instead of Groups: a list of strings
	Condition   string // who may sign in at all; if empty, everybody
	// NoGroups allows the claim Groups to be absent. Otherwise that refuses: a
	// rule may deny a group, and who shows none must not slip past it.
	NoGroups bool
}

// A Mapping reads identities from claims.
type Mapping struct {
	o                          MappingOptions
	subject, groups, condition cel.Program
}

var stringsType = reflect.TypeFor[[]string]()

// mappingCost bounds an expression; a token has some kilobytes.
const mappingCost = 1_000_000

// NewMapping compiles the expressions of o. Its errors name the field.
func NewMapping(o MappingOptions) (*Mapping, error) {
	env, err := cel.NewEnv(cel.Variable("claims", cel.MapType(cel.StringType, cel.DynType)))
	if err != nil {
		return nil, err
	}
	m := &Mapping{o: o}
	for _, e := range []struct {
		field, text string
		kind        *cel.Type
		to          *cel.Program
	}{
		{"subject", o.SubjectExpr, cel.StringType, &m.subject},
		{"groups", o.GroupsExpr, cel.ListType(cel.StringType), &m.groups},
		{"condition", o.Condition, cel.BoolType, &m.condition},
	} {
		if e.text == "" {
			continue
		}
		tree, issues := env.Compile(e.text)
		if issues.Err() != nil {
			return nil, fmt.Errorf("%s: %s", e.field, strings.Join(strings.Fields(issues.Err().Error()), " "))
		}
		if out := tree.OutputType(); !out.IsAssignableType(e.kind) && !e.kind.IsAssignableType(out) {
			return nil, fmt.Errorf("%s: is of type %s, not %s", e.field, out, e.kind)
		}
		program, err := env.Program(tree, cel.EvalOptions(cel.OptOptimize), cel.CostLimit(mappingCost))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", e.field, err)
		}
		*e.to = program
	}
	return m, nil
}

var errCondition = errors.New("you are known, but may not sign in here: the broker's condition for this provider does not hold")

// admits evaluates the condition; one that fails to evaluate does not hold.
func (m *Mapping) admits(claims map[string]any) error {
	if m.condition == nil {
		return nil
	}
	if out, _, err := m.condition.Eval(map[string]any{"claims": claims}); err != nil || out != types.True {
		return errCondition
	}
	return nil
}

// readSubject reads the subject. An e-mail address that its provider has not
// verified proves nothing.
func (m *Mapping) readSubject(claims map[string]any) (string, error) {
	var subject string
	if m.subject != nil {
		out, _, err := m.subject.Eval(map[string]any{"claims": claims})
		if err != nil {
			return "", errors.New("the expression for the subject fails on this identity's claims")
		}
		subject, _ = out.Value().(string)
	} else {
		subject, _ = claims[m.o.Subject].(string)
		if verified, stated := claims["email_verified"]; m.o.Subject == "email" && stated && verified != true && verified != "true" {
			return "", errors.New("the identity provider has not verified this e-mail address")
		}
	}
	if subject == "" {
		return "", fmt.Errorf("the identity provider states no %s", cmp.Or(m.o.Subject, "subject"))
	}
	return subject, checkName(subject)
}

// readGroups reads the groups that the claims state.
func (m *Mapping) readGroups(claims map[string]any) ([]string, error) {
	var stated any
	switch {
	case m.groups != nil:
		out, _, err := m.groups.Eval(map[string]any{"claims": claims})
		if err != nil {
			return nil, errors.New("the expression for the groups fails on this identity's claims")
		}
		list, err := out.ConvertToNative(stringsType)
		if err != nil {
			return nil, errors.New("the expression for the groups yields no list of strings")
		}
		stated = list
	case m.o.Groups == "":
		return nil, nil
	default:
		var ok bool
		if stated, ok = claims[m.o.Groups]; !ok {
			if m.o.NoGroups {
				return nil, nil
			}
			return nil, fmt.Errorf("the identity provider states no %s", m.o.Groups)
		}
	}
	var groups []string
	switch v := stated.(type) {
	case string:
		groups = []string{v}
	case []string:
		groups = v
	case []any:
		for _, g := range v {
			name, ok := g.(string)
			if !ok {
				return nil, fmt.Errorf("the identity provider's %s are not all strings", cmp.Or(m.o.Groups, "groups"))
			}
			groups = append(groups, name)
		}
	default:
		return nil, fmt.Errorf("the identity provider's %s are no list", cmp.Or(m.o.Groups, "groups"))
	}
	return groups, checkGroups(groups)
}

func checkGroups(groups []string) error {
	if len(groups) > maxGroups {
		return fmt.Errorf("over %d groups", maxGroups)
	}
	for _, g := range groups {
		if err := checkName(g); err != nil {
			return fmt.Errorf("a group: %w", err)
		}
	}
	return nil
}
