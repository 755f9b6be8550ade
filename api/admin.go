package api

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/authz/registry"
	"github.com/whence-db/whence/gateway"
	"github.com/whence-db/whence/gateway/action"
	"github.com/whence-db/whence/gateway/upstream"
	"github.com/whence-db/whence/index"
	v1 "github.com/whence-db/whence/proto/gen/whence/v1"
	"github.com/whence-db/whence/proto/gen/whence/v1/whencev1connect"
)

type admin struct {
	whencev1connect.UnimplementedAdminServiceHandler
	gateway     *gateway.Gateway
	index       *index.Index
	models      []index.Model
	registry    *registry.Registry
	revocations *authz.Revocations
	keys        *authz.Keys
	pool        *pgxpool.Pool
	actions     action.Store
	runner      *action.Runner
	upstreams   *upstream.Store
}

// standing tells whether the caller comes as a user, whose handlers then keep them
// to what is their own. An operator needs the role that the call takes of operators.
func standing(p *authz.Principal, operators authz.Role) (asUser bool, err error) {
	if p.Role == authz.RoleUser {
		return true, nil
	}
	if !p.Role.AtLeast(operators) {
		return false, &whence.Error{Kind: whence.ErrDenied, Reason: "ROLE_INSUFFICIENT",
			Message:  fmt.Sprintf("this call needs the role %s and the token has the role %s", operators, p.Role),
			Metadata: map[string]string{"needed": string(operators), "role": string(p.Role)}}
	}
	return false, nil
}

// ownOnly keeps what a user lists to what is theirs, and tells whether they asked
// for some of that at all.
func ownOnly(p *authz.Principal, tenant, user *string) (some bool) {
	some = (*tenant == "" || *tenant == p.Tenant) && (*user == "" || *user == p.User)
	*tenant, *user = p.Tenant, p.User
	return some
}

// ListTasks lists tasks, newest first.
func (a *admin) ListTasks(ctx context.Context, req *v1.ListTasksRequest) (*v1.ListTasksResponse, error) {
	root, err := optionalID("rootId", req.GetRootId())
	if err != nil {
		return nil, err
	}
	f := gateway.TaskFilter{Tenant: req.GetTenant(), Root: root, Agent: req.GetAgent(), User: req.GetUser()}
	if s := req.GetState(); s != v1.TaskState_TASK_STATE_UNSPECIFIED {
		f.State = gateway.TaskState(strings.TrimPrefix(s.String(), "TASK_STATE_"))
	}
	p := session(ctx).Principal
	asUser, err := standing(p, authz.RoleViewer)
	switch {
	case err != nil:
		return nil, err
	case asUser && !ownOnly(p, &f.Tenant, &f.User):
		return &v1.ListTasksResponse{}, nil
	}
	found, next, err := a.gateway.ListTasks(ctx, f, pageSize(req.GetPageSize()), req.GetPageToken())
	if err != nil {
		return nil, err
	}
	out := &v1.ListTasksResponse{NextPageToken: next}
	for _, t := range found {
		out.Tasks = append(out.Tasks, taskMessage(t))
	}
	return out, nil
}

// ListSpaces lists embedding spaces.
func (a *admin) ListSpaces(ctx context.Context, _ *v1.ListSpacesRequest) (*v1.ListSpacesResponse, error) {
	all, err := a.index.Spaces(ctx)
	if err != nil {
		return nil, err
	}
	out := &v1.ListSpacesResponse{}
	for _, s := range all {
		out.Spaces = append(out.Spaces, a.space(s))
	}
	return out, nil
}

// CreateSpace makes a space for a configured model, or says what it would cost.
func (a *admin) CreateSpace(ctx context.Context, req *v1.CreateSpaceRequest) (*v1.CreateSpaceResponse, error) {
	all, err := a.index.Spaces(ctx)
	if err != nil {
		return nil, err
	}
	m, err := a.model(req.GetModel(), all)
	if err != nil {
		return nil, err
	}
	e, err := a.index.EstimateSpace(ctx, m)
	if err != nil {
		return nil, err
	}
	out := &v1.CreateSpaceResponse{Estimate: &v1.SpaceEstimate{Texts: e.Texts, Tokens: e.Tokens, Bytes: e.Bytes}}
	s := index.SpaceStatus{Space: index.Space{Model: m.Name(), Dimensions: m.Dimensions()}, State: index.SpaceStandby, Texts: e.Texts}
	if !req.GetDryRun() {
		if s.Space, err = a.index.CreateSpace(ctx, m); err != nil {
			return nil, err
		}
		s.CreatedAt = time.Now() // what is in effect is not put in doubt by reading it again
	}
	out.Space = a.space(s)
	return out, nil
}

// SwitchSpace makes a space the one that questions are asked in.
func (a *admin) SwitchSpace(ctx context.Context, req *v1.SwitchSpaceRequest) (*v1.SwitchSpaceResponse, error) {
	s, err := a.one(ctx, int16(req.GetId()))
	if err != nil {
		return nil, err
	}
	if !s.GetConfigured() && !req.GetForce() {
		return nil, &whence.Error{Kind: whence.ErrPrecondition, Reason: "MODEL_NOT_CONFIGURED",
			Message: fmt.Sprintf("this server does not have the model %q and could not embed questions: configure every server with it first (--next-embedder), or force the switch", s.GetModel())}
	}
	if err := a.index.SwitchSpace(ctx, int16(req.GetId()), req.GetForce()); err != nil {
		return nil, err
	}
	s.State = v1.SpaceState_SPACE_STATE_CURRENT
	return &v1.SwitchSpaceResponse{Space: s}, nil
}

// DeleteSpace takes a space out of use.
func (a *admin) DeleteSpace(ctx context.Context, req *v1.DeleteSpaceRequest) (*v1.DeleteSpaceResponse, error) {
	s, err := a.one(ctx, int16(req.GetId()))
	if err != nil {
		return nil, err
	}
	if err := a.index.DeleteSpace(ctx, int16(req.GetId())); err != nil {
		return nil, err
	}
	s.State = v1.SpaceState_SPACE_STATE_DELETING
	return &v1.DeleteSpaceResponse{Space: s}, nil
}

// model finds the configured model that a request means.
func (a *admin) model(name string, spaces []index.SpaceStatus) (index.Model, error) {
	var have []string
	var found index.Model
	for _, m := range a.models {
		have = append(have, m.Name())
		there := slices.ContainsFunc(spaces, func(s index.SpaceStatus) bool { return s.Model == m.Name() && s.Dimensions == m.Dimensions() })
		switch {
		case name != "" && name != m.Name():
		case !there: // of two with the same name this one is meant
			return m, nil
		case name != "":
			found = m
		}
	}
	if found != nil {
		return found, nil
	}
	if name == "" {
		return nil, &whence.Error{Kind: whence.ErrPrecondition, Reason: "MODEL_NOT_CONFIGURED",
			Message: fmt.Sprintf("every model of this server (%s) has its space: start the server with another as --next-embedder", strings.Join(have, ", "))}
	}
	return nil, whence.Invalid("model", "MODEL_NOT_CONFIGURED",
		fmt.Sprintf("this server has no model %q, but %s: start it with the model as --next-embedder", name, strings.Join(have, ", ")))
}

func (a *admin) one(ctx context.Context, id int16) (*v1.Space, error) {
	all, err := a.index.Spaces(ctx)
	if err != nil {
		return nil, err
	}
	for _, s := range all {
		if s.ID == id {
			return a.space(s), nil
		}
	}
	return nil, index.NoSpace(id)
}

func (a *admin) space(s index.SpaceStatus) *v1.Space {
	return &v1.Space{Id: uint32(s.ID), Model: s.Model, Dimensions: uint32(s.Dimensions),
		State: v1.SpaceState(v1.SpaceState_value["SPACE_STATE_"+string(s.State)]),
		Texts: s.Texts, Embedded: s.Embedded, Failed: s.Failed, Error: s.Error, CreateTime: timestamp(s.CreatedAt),
		Configured: slices.ContainsFunc(a.models, func(m index.Model) bool { return m.Name() == s.Model && m.Dimensions() == s.Dimensions })}
}
