package api

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/gateway"
	v1 "github.com/whence-db/whence/proto/gen/whence/v1"
)

// RegisterAction makes an operation callable by agents of the operator's tenant.
func (a *admin) RegisterAction(ctx context.Context, req *v1.RegisterActionRequest) (*v1.RegisterActionResponse, error) {
	s := session(ctx)
	def, err := actionDefinition(req.GetAction())
	if err != nil {
		return nil, err
	}
	s.Note("action", def.Name)
	s.Note("tier", string(def.Tier))
	if err := def.Validate(); err != nil {
		return nil, inAction(err)
	}
	digest, err := def.Digest()
	if err != nil {
		return nil, err
	}
	s.Note("digest", digest.String())
	if err := a.runner.Check(ctx, def); err != nil {
		return nil, inAction(err)
	}
	out := &v1.RegisterActionResponse{}
	s.Write(gateway.Write{Effect: func(ctx context.Context, tx pgx.Tx) ([]byte, error) {
		r, fresh, err := a.actions.Register(ctx, tx, s.Principal.Tenant, s.Principal.User, def)
		if err != nil {
			return nil, inAction(err)
		}
		s.Note("version", r.Version)
		s.Note("changed", fresh)
		out.Action, err = actionMessage(r)
		return nil, err
	}})
	return out, nil
}

// inAction says where in the request a definition's field is.
func inAction(err error) error {
	var e *whence.Error
	if errors.As(err, &e) && e.Reason == "ACTION_INVALID" && e.Field != "" {
		named := *e
		named.Field = "action." + e.Field
		return &named
	}
	return err
}

// ListRegisteredActions lists actions with their definitions, by name.
func (a *admin) ListRegisteredActions(ctx context.Context, req *v1.ListRegisteredActionsRequest) (*v1.ListRegisteredActionsResponse, error) {
	found, next, err := a.actions.List(ctx, a.pool, session(ctx).Principal.Tenant, pageSize(req.GetPageSize()), req.GetPageToken())
	if err != nil {
		return nil, err
	}
	out := &v1.ListRegisteredActionsResponse{NextPageToken: next}
	for _, r := range found {
		m, err := actionMessage(r)
		if err != nil {
			return nil, err
		}
		out.Actions = append(out.Actions, m)
	}
	return out, nil
}

// GetRegisteredAction returns one action with its definition.
func (a *admin) GetRegisteredAction(ctx context.Context, req *v1.GetRegisteredActionRequest) (*v1.GetRegisteredActionResponse, error) {
	r, err := a.actions.Get(ctx, a.pool, session(ctx).Principal.Tenant, req.GetName())
	if err != nil {
		return nil, err
	}
	m, err := actionMessage(r)
	return &v1.GetRegisteredActionResponse{Action: m}, err
}

// UnregisterAction takes an action out of use.
func (a *admin) UnregisterAction(ctx context.Context, req *v1.UnregisterActionRequest) (*v1.UnregisterActionResponse, error) {
	s := session(ctx)
	s.Note("action", req.GetName())
	s.Write(gateway.Write{Effect: func(ctx context.Context, tx pgx.Tx) ([]byte, error) {
		return nil, a.actions.Unregister(ctx, tx, s.Principal.Tenant, req.GetName())
	}})
	return &v1.UnregisterActionResponse{}, nil
}
