package action

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/authz"
)

// checkSteps holds a definition against the actions that it runs.
func (s Store) checkSteps(ctx context.Context, q Querier, tenant string, d Definition) error {
	get := func(name string) (Definition, error) {
		r, err := s.Get(ctx, q, tenant, name)
		return r.Definition, err
	}
	return d.fitSteps(get)
}

// stillFits refuses a definition that the actions which run it could not run any more.
func (s Store) stillFits(ctx context.Context, q Querier, tenant string, d Definition, users []string) error {
	get := func(name string) (Definition, error) {
		if name == d.Name {
			return d, nil
		}
		r, err := s.Get(ctx, q, tenant, name)
		return r.Definition, err
	}
	for _, name := range users {
		user, err := get(name)
		if err != nil {
			return err
		}
		var misfit *whence.Error
		switch err := user.fitSteps(get); {
		case errors.As(err, &misfit) && misfit.Reason == "ACTION_INVALID":
			return conflict(name, fmt.Sprintf("the action %q runs %q, and could not run it like this (%s): change that one first", name, d.Name, misfit.Message))
		case err != nil:
			return err
		}
	}
	return nil
}

func (d Definition) fitSteps(get func(string) (Definition, error)) error {
	if d.Compensation != nil {
		if _, err := fitStep("compensation", *d.Compensation, get); err != nil {
			return err
		}
	}
	if d.Saga == nil {
		return nil
	}
	tier := authz.TierRead
	for i, step := range d.Saga.Steps {
		field := fmt.Sprintf("saga.steps[%d]", i)
		of, err := fitStep(field+".step", step.Step, get)
		if err != nil {
			return err
		}
		if step.Compensation != nil {
			if _, err := fitStep(field+".compensation", *step.Compensation, get); err != nil {
				return err
			}
		}
		back := of.Tier != authz.TierIrreversible || of.Compensation != nil || step.Compensation != nil
		switch {
		case !back && i < len(d.Saga.Steps)-1:
			return invalid(field, "%q cannot be taken back, so it must be the last step or have a compensation", of.Name)
		case !back:
			tier = authz.TierIrreversible
		case of.Tier != authz.TierRead && tier == authz.TierRead:
			tier = authz.TierReversible
		}
	}
	if tier == authz.TierRead {
		return invalid("saga.steps", "a saga of steps that only read does nothing that could be taken back: run them one by one")
	}
	if d.Tier != tier && d.Tier != authz.TierIrreversible {
		return invalid("tier", "by its steps the saga is %s", tier)
	}
	return nil
}

func fitStep(field string, s Step, get func(string) (Definition, error)) (Definition, error) {
	of, err := get(s.Action)
	switch {
	case errors.Is(err, whence.ErrNotFound):
		return of, invalid(field+".action", "there is no action %q: register it first", s.Action)
	case err != nil:
		return of, err
	case of.Saga != nil:
		return of, invalid(field+".action", "%q is a saga, and sagas do not nest", s.Action)
	}
	for _, p := range of.Parameters {
		if _, given := s.Arguments[p.Name]; p.Required && !given {
			return of, invalid(field+".arguments", "%q needs the argument %q", s.Action, p.Name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(s.Arguments)) {
		if !slices.ContainsFunc(of.Parameters, func(p Parameter) bool { return p.Name == name }) {
			return of, invalid(field+".arguments", "%q has no parameter %q; it takes: %s", s.Action, name, of.takes())
		}
	}
	return of, nil
}
