package authz

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/whence-db/whence"
)

// Bound is one of the things that limit what a task may touch.
type Bound struct {
	Name string // as a refusal says it: "the grant"
	Spec ScopeSpec
}

// Effective is what is left of a wish within all bounds at once, written down: what a
// token may be issued for, and no authority by itself. When a part is
// left with nothing it is refused as SCOPE_NOT_GRANTED, and the message and the
// metadata name all that is missing, in every part, and which bound lacks it.
func Effective(want ScopeSpec, bounds []Bound) (ScopeSpec, error) {
	s, err := newScope(want)
	if err != nil {
		return ScopeSpec{}, err
	}
	asked, missing := s, map[string][]string{}
	for _, b := range bounds {
		o, err := newScope(b.Spec)
		if err != nil {
			return ScopeSpec{}, fmt.Errorf("%s: %w", b.Name, err)
		}
		for part, what := range asked.lacks(o) {
			missing[part] = append(missing[part], what+" ("+b.Name+")")
		}
		s = s.and(o)
	}
	// Nothing at all was asked for in a part: that is a wish too, and an idle one.
	for part, empty := range map[string]bool{"tables": asked.tables.empty(), "subjects": asked.subjects.empty(), "actions": len(asked.actions) == 0} {
		if empty {
			missing[part] = append(missing[part], nothingAsked[part])
		}
	}
	if !s.tables.empty() && !s.subjects.empty() && len(s.actions) > 0 {
		return s.Spec(), nil
	}
	over := map[string]string{}
	for part, what := range missing {
		over[part] = strings.Join(what, ", ")
	}
	return ScopeSpec{}, &whence.Error{Kind: whence.ErrDenied, Reason: "SCOPE_NOT_GRANTED", Metadata: over,
		Message: "nothing is left of what was asked for; missing are " + listParts(over) + "; ask for what is granted, or have an operator grant it"}
}

// nothingAsked says what to do about a part that a wish leaves empty.
var nothingAsked = map[string]string{
	"tables": "none asked for: name them, or set allTables", "subjects": "none asked for: name them, or set allSubjects",
	"actions": "none asked for: name them",
}

// Within refuses a scope that is not within a named agent's ceiling, as
// SCOPE_WIDENED; what exceeds it is named.
func Within(ceiling, spec ScopeSpec, agent string) error {
	s, err := newScope(ceiling)
	if err != nil {
		return fmt.Errorf("ceiling of agent %q: %w", agent, err)
	}
	_, err = s.Narrow(spec)
	var e *whence.Error
	if errors.As(err, &e) && errors.Is(e.Kind, whence.ErrDenied) {
		e.Message = fmt.Sprintf("the scope asked for is wider than agent %q may ever have (%s); ask for less", agent, listParts(e.Metadata))
	}
	return err
}

// lacks says, by part, what of s is beyond o.
func (s Scope) lacks(o Scope) map[string]string {
	out := map[string]string{}
	for part, what := range map[string]string{
		"tables": s.tables.beyond(o.tables), "subjects": s.subjects.beyond(o.subjects), "actions": list(s.actions.minus(o.actions)),
	} {
		if what != "" {
			out[part] = what
		}
	}
	var contradictions []string
	for k, v := range o.filter {
		if got, ok := s.filter[k]; ok && got != v {
			contradictions = append(contradictions, fmt.Sprintf("%s must be %q", k, v))
		}
	}
	if slices.Sort(contradictions); len(contradictions) > 0 {
		out["filter"] = list(contradictions)
	}
	return out
}

// and is what both allow. Filters that contradict each other leave no rows.
func (s Scope) and(o Scope) Scope {
	s.tables, s.subjects = s.tables.and(o.tables), s.subjects.and(o.subjects)
	s.actions = newSet(slices.DeleteFunc(s.actions.sorted(), func(a Action) bool { return !o.actions.has(a) }))
	if !s.tier.Within(o.tier) {
		s.tier = o.tier
	}
	if s.topK == 0 || o.topK > 0 && o.topK < s.topK {
		s.topK = o.topK
	}
	filter := maps.Clone(o.filter)
	for k, v := range s.filter {
		if got, ok := filter[k]; ok && got != v {
			s.tables = part[whence.TableName]{}
		}
		if filter == nil {
			filter = map[string]string{}
		}
		filter[k] = v
	}
	s.filter = filter
	return s
}
