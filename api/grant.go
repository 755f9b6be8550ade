package api

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/authz/registry"
	"github.com/whence-db/whence/gateway"
	v1 "github.com/whence-db/whence/proto/gen/whence/v1"
)

// CreateGrant lets an agent act for a user, or for the users of a group.
func (a *admin) CreateGrant(ctx context.Context, req *v1.CreateGrantRequest) (*v1.CreateGrantResponse, error) {
	s := session(ctx)
	p := s.Principal
	asUser, err := standing(p, authz.RoleAdmin)
	if err != nil {
		return nil, err
	}
	g := registry.Grant{ID: uuid.Must(uuid.NewV7()), Tenant: cmp.Or(req.GetTenant(), p.Tenant), Agent: req.GetAgent(), User: req.GetUser(), Group: req.GetGroup(),
		Calls: registry.DefaultCalls, Lifetime: registry.DefaultLifetime, MaxDepth: registry.DefaultDepth, Proof: req.GetProofOfPossession(),
		CreatedBy: p.User, Created: stored(s.Started), Expires: stored(fromTimestamp(req.GetExpireTime()))}
	if asUser {
		g.User = cmp.Or(g.User, p.User)
		if g.Group != "" || !yours(p, g) {
			return nil, &whence.Error{Kind: whence.ErrDenied, Reason: "GRANT_NOT_YOURS",
				Message: "users give grants for themselves alone: leave user, group and tenant out, or ask an operator"}
		}
	}
	if g.Scope, err = grantedScope(p, asUser, req.GetScope()); err != nil {
		return nil, err
	}
	limits(&g, req.GetBudget(), req.GetTaskLifetime(), req.MaxDepth)
	noteGrant(s, g)
	s.Write(gateway.Write{Effect: func(ctx context.Context, tx pgx.Tx) ([]byte, error) { return nil, a.registry.CreateGrant(ctx, tx, g) }})
	return &v1.CreateGrantResponse{Grant: grantMessage(g)}, nil
}

// ListGrants lists grants, newest first.
func (a *admin) ListGrants(ctx context.Context, req *v1.ListGrantsRequest) (*v1.ListGrantsResponse, error) {
	p := session(ctx).Principal
	f := registry.GrantFilter{Tenant: req.GetTenant(), Agent: req.GetAgent(), User: req.GetUser()}
	asUser, err := standing(p, authz.RoleViewer)
	switch {
	case err != nil:
		return nil, err
	case asUser && !ownOnly(p, &f.Tenant, &f.User):
		return &v1.ListGrantsResponse{}, nil
	}
	found, next, err := a.registry.Grants(ctx, f, page(req))
	if err != nil {
		return nil, err
	}
	out := &v1.ListGrantsResponse{NextPageToken: next}
	for _, g := range found {
		out.Grants = append(out.Grants, grantMessage(g))
	}
	return out, nil
}

// GetGrant returns one grant.
func (a *admin) GetGrant(ctx context.Context, req *v1.GetGrantRequest) (*v1.GetGrantResponse, error) {
	g, err := a.grant(ctx, req.GetId(), authz.RoleViewer)
	if err != nil {
		return nil, err
	}
	return &v1.GetGrantResponse{Grant: grantMessage(g)}, nil
}

// UpdateGrant changes the fields that the request has.
func (a *admin) UpdateGrant(ctx context.Context, req *v1.UpdateGrantRequest) (*v1.UpdateGrantResponse, error) {
	s := session(ctx)
	p := s.Principal
	asUser, err := standing(p, authz.RoleAdmin)
	if err != nil {
		return nil, err
	}
	id, err := requiredID("id", req.GetId())
	if err != nil {
		return nil, err
	}
	s.Note("grant", id)
	change := func(g *registry.Grant) (err error) {
		switch {
		case asUser && !yours(p, *g):
			return grantNotFound(id)
		case asUser && g.CreatedBy != p.User:
			return &whence.Error{Kind: whence.ErrDenied, Reason: "GRANT_NOT_YOURS",
				Message: "this grant was given by an operator, whose bounds are not yours to change; delete it, or ask for another"}
		}
		if req.Scope != nil {
			if g.Scope, err = grantedScope(p, asUser, req.GetScope()); err != nil {
				return err
			}
		}
		limits(g, req.GetBudget(), req.GetTaskLifetime(), req.MaxDepth)
		set(&g.Proof, req.ProofOfPossession)
		if req.ExpireTime != nil {
			g.Expires = stored(fromTimestamp(req.GetExpireTime()))
		}
		return nil
	}
	out := &v1.UpdateGrantResponse{}
	s.Write(gateway.Write{Effect: func(ctx context.Context, tx pgx.Tx) ([]byte, error) {
		g, err := a.registry.ChangeGrant(ctx, tx, id, s.Started, change)
		if err != nil {
			return nil, err
		}
		noteGrant(s, g)
		out.Grant = grantMessage(g)
		return nil, nil
	}})
	return out, nil
}

// DeleteGrant takes a grant back with the tasks that run under it.
func (a *admin) DeleteGrant(ctx context.Context, req *v1.DeleteGrantRequest) (*v1.DeleteGrantResponse, error) {
	g, err := a.grant(ctx, req.GetId(), authz.RoleAdmin) // whose it is does not change
	if err != nil {
		return nil, err
	}
	s := session(ctx)
	noteGrant(s, g)
	a.gateway.DeleteGrant(s, g.ID)
	return &v1.DeleteGrantResponse{}, nil
}

// grant reads a grant that the caller may see.
func (a *admin) grant(ctx context.Context, asked string, operators authz.Role) (g registry.Grant, err error) {
	p := session(ctx).Principal
	asUser, err := standing(p, operators)
	if err != nil {
		return g, err
	}
	id, err := requiredID("id", asked)
	if err != nil {
		return g, err
	}
	g, err = a.registry.Grant(ctx, id)
	if err == nil && asUser && !yours(p, g) {
		return registry.Grant{}, grantNotFound(id)
	}
	return g, err
}

// yours tells whether a grant is for the user themselves. One for a group is not.
func yours(p *authz.Principal, g registry.Grant) bool {
	return g.User != "" && g.User == p.User && g.Tenant == p.Tenant
}

// grantNotFound is what the registry says of a grant that is not there.
func grantNotFound(id uuid.UUID) error {
	return &whence.Error{Kind: whence.ErrNotFound, Reason: "GRANT_NOT_FOUND",
		Message: fmt.Sprintf("there is no grant %q; whence grant list (ListGrants) shows those there are", id), Metadata: map[string]string{"grant": id.String()}}
}

// grantedScope is the scope of a grant; a user's lies within what is theirs.
func grantedScope(p *authz.Principal, asUser bool, s *v1.Scope) (authz.ScopeSpec, error) {
	spec := scopeSpec(s)
	if err := spec.Validate(); err != nil || !asUser {
		return spec, fieldOf("scope", err)
	}
	narrow, err := p.Scope.Narrow(spec)
	return narrow.Spec(), err
}

// limits has the limits of a request take the place of a grant's; what is absent
// does not.
func limits(g *registry.Grant, budget *v1.BudgetLimits, lifetime *durationpb.Duration, depth *uint32) {
	calls, more := bounds(budget)
	if budget != nil && budget.Calls != nil {
		g.Calls = calls
	}
	if g.Limits == nil {
		g.Limits = authz.Limits{}
	}
	maps.Copy(g.Limits, more)
	if lifetime != nil {
		g.Lifetime = lifetime.AsDuration().Truncate(time.Microsecond)
	}
	if depth != nil {
		g.MaxDepth = int(*depth)
	}
}

// stored is a time as Postgres keeps it. None of them becomes the zero one, which
// would be no time at all.
func stored(t time.Time) time.Time {
	if cut := t.UTC().Truncate(time.Microsecond); !cut.IsZero() {
		return cut
	}
	return t
}

func noteGrant(s *gateway.Session, g registry.Grant) {
	for key, value := range map[string]string{"agent": g.Agent, "tenant": g.Tenant, "user": g.User, "group": g.Group} {
		if value != "" {
			s.Note(key, value)
		}
	}
	s.Note("grant", g.ID)
	s.Note("scope", g.Scope)
}

func grantMessage(g registry.Grant) *v1.Grant {
	return &v1.Grant{Id: g.ID.String(), Tenant: g.Tenant, Agent: g.Agent, User: g.User, Group: g.Group, Scope: scopeMessage(g.Scope),
		Budget: boundsMessage(g.Calls, g.Limits), TaskLifetime: durationpb.New(g.Lifetime), MaxDepth: uint32(g.MaxDepth),
		ProofOfPossession: g.Proof, CreatedBy: g.CreatedBy, CreateTime: timestamp(g.Created), ExpireTime: timestamp(g.Expires)}
}
