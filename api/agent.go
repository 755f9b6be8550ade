package api

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/authz/registry"
	"github.com/whence-db/whence/gateway"
	v1 "github.com/whence-db/whence/proto/gen/whence/v1"
)

// CreateAgent makes an agent known.
func (a *admin) CreateAgent(ctx context.Context, req *v1.CreateAgentRequest) (*v1.CreateAgentResponse, error) {
	s := session(ctx)
	ceiling, err := ceilingSpec(req.GetCeiling())
	if err != nil {
		return nil, err
	}
	agent := registry.Agent{Tenant: cmp.Or(req.GetTenant(), s.Principal.Tenant), Name: req.GetName(), Description: req.GetDescription(),
		Issuer: req.GetIssuer(), Subject: req.GetSubject(), JWKS: keySet(req.GetJwks()), Ceiling: ceiling, Created: s.Started}
	noteAgent(s, agent.Tenant, agent.Name)
	out := &v1.CreateAgentResponse{Agent: agentMessage(agent)}
	s.Write(gateway.Write{
		Effect: func(ctx context.Context, tx pgx.Tx) ([]byte, error) {
			return nil, a.registry.CreateAgent(ctx, tx, agent)
		},
		After: func(ctx context.Context) { // what is in effect is not put in doubt by reading it again
			if kept, err := a.registry.Agent(ctx, agent.Tenant, agent.Name); err == nil {
				out.Agent = agentMessage(kept)
			}
		},
	})
	return out, nil
}

// ListAgents lists agents, by tenant and name.
func (a *admin) ListAgents(ctx context.Context, req *v1.ListAgentsRequest) (*v1.ListAgentsResponse, error) {
	found, next, err := a.registry.Agents(ctx, req.GetTenant(), page(req))
	if err != nil {
		return nil, err
	}
	out := &v1.ListAgentsResponse{NextPageToken: next}
	for _, agent := range found {
		out.Agents = append(out.Agents, agentMessage(agent))
	}
	return out, nil
}

// GetAgent returns one agent.
func (a *admin) GetAgent(ctx context.Context, req *v1.GetAgentRequest) (*v1.GetAgentResponse, error) {
	agent, err := a.registry.Agent(ctx, cmp.Or(req.GetTenant(), session(ctx).Principal.Tenant), req.GetName())
	if err != nil {
		return nil, err
	}
	return &v1.GetAgentResponse{Agent: agentMessage(agent)}, nil
}

// UpdateAgent changes the fields that the request has.
func (a *admin) UpdateAgent(ctx context.Context, req *v1.UpdateAgentRequest) (*v1.UpdateAgentResponse, error) {
	s := session(ctx)
	ceiling, err := ceilingSpec(req.GetCeiling())
	if err != nil {
		return nil, err
	}
	tenant := cmp.Or(req.GetTenant(), s.Principal.Tenant)
	noteAgent(s, tenant, req.GetName())
	out := &v1.UpdateAgentResponse{}
	s.Write(gateway.Write{Effect: func(ctx context.Context, tx pgx.Tx) ([]byte, error) {
		agent, err := a.registry.ChangeAgent(ctx, tx, tenant, req.GetName(), func(agent *registry.Agent) {
			set(&agent.Description, req.Description)
			set(&agent.Issuer, req.Issuer)
			set(&agent.Subject, req.Subject)
			if req.Jwks != nil {
				agent.JWKS = keySet(req.GetJwks())
			}
			if ceiling != nil {
				agent.Ceiling = ceiling
			}
		})
		out.Agent = agentMessage(agent)
		return nil, err
	}})
	return out, nil
}

// DeleteAgent removes an agent with its grants, and ends its tasks.
func (a *admin) DeleteAgent(ctx context.Context, req *v1.DeleteAgentRequest) (*v1.DeleteAgentResponse, error) {
	s := session(ctx)
	tenant := cmp.Or(req.GetTenant(), s.Principal.Tenant)
	s.Note("tenant", tenant)
	a.gateway.DeleteAgent(s, tenant, req.GetName())
	return &v1.DeleteAgentResponse{}, nil
}

func noteAgent(s *gateway.Session, tenant, name string) {
	s.Note("agent", name)
	s.Note("tenant", tenant)
}

func agentMessage(a registry.Agent) *v1.Agent {
	out := &v1.Agent{Name: a.Name, Tenant: a.Tenant, Description: a.Description, Issuer: a.Issuer, Subject: a.Subject,
		Revoked: a.Revoked, CreateTime: timestamp(a.Created), Jwks: oneSpelling(a.JWKS)}
	if a.Ceiling != nil {
		out.Ceiling = scopeMessage(*a.Ceiling)
	}
	return out
}

// keySet is nil for an empty text: no keys.
func keySet(jwks string) json.RawMessage {
	if jwks == "" {
		return nil
	}
	return json.RawMessage(jwks)
}

// oneSpelling is a JSON text without spaces and with its members in order, for
// Postgres spells it differently from whoever sent it.
func oneSpelling(raw json.RawMessage) string {
	var v any
	if raw == nil || json.Unmarshal(raw, &v) != nil {
		return string(raw)
	}
	b, err := json.Marshal(v)
	if err != nil {
		return string(raw)
	}
	return string(b)
}

// ceilingSpec is nil for an absent ceiling.
func ceilingSpec(s *v1.Scope) (*authz.ScopeSpec, error) {
	if s == nil {
		return nil, nil
	}
	spec := scopeSpec(s)
	return &spec, fieldOf("ceiling", spec.Validate())
}

// fieldOf says of an invalid field in which part of the request it stands.
func fieldOf(part string, err error) error {
	var e *whence.Error
	if !errors.As(err, &e) {
		return err
	}
	within := *e
	within.Field = strings.TrimSuffix(part+"."+e.Field, ".")
	return &within
}

// set has a field of the request take the place of what was; an absent one does not.
func set[T any](field, to *T) {
	if to != nil {
		*field = *to
	}
}

// page is the page that a request asks for.
func page(req interface {
	GetPageSize() uint32
	GetPageToken() string
}) registry.Page {
	return registry.Page{Size: pageSize(req.GetPageSize()), Token: req.GetPageToken()}
}
