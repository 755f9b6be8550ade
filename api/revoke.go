package api

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/gateway"
	v1 "github.com/whence-db/whence/proto/gen/whence/v1"
)

// Revoke is the stop button.
func (a *admin) Revoke(ctx context.Context, req *v1.RevokeRequest) (*v1.RevokeResponse, error) {
	s := session(ctx)
	if _, err := standing(s.Principal, authz.RoleAdmin); err != nil {
		return nil, err
	}
	v := revocation(req)
	if v.Kind == authz.RevokedUser && s.Principal.Role.Operates() && v.Target == s.Principal.User && cmp.Or(req.GetOfTenant(), s.Principal.Tenant) == s.Principal.Tenant {
		return nil, whence.Invalid("user", "REVOKES_YOURSELF",
			"you would lock yourself out; revoke your token to end it, or have another operator do this")
	}
	switch v.Kind {
	case authz.RevokedAgent, authz.RevokedUser:
		v.Tenant = cmp.Or(req.GetOfTenant(), s.Principal.Tenant)
		s.Note("tenant", v.Tenant)
	case authz.RevokedTenant:
		if v.Target == authz.DefaultTenant {
			return nil, whence.Invalid("tenant", "TENANT_OPERATES",
				"the operators are of this tenant, and without it nobody could let it in again; revoke its agents and users, or the key that signs, instead")
		}
	default: // of no tenant
	}
	out := &v1.RevokeResponse{}
	err := a.gateway.Revoke(ctx, s, v, func(r gateway.Revoked) {
		out.RevokeTime, out.Tasks = timestamp(r.At), count(r.Tasks)
	})
	return out, err
}

// revocation is what a request is to stop.
func revocation(req *v1.RevokeRequest) authz.Revocation {
	v := authz.Revocation{Reason: req.GetReason()}
	switch t := req.GetTarget().(type) {
	case *v1.RevokeRequest_Task:
		v.Kind, v.Target = authz.RevokedTask, t.Task
		if id, err := uuid.Parse(t.Task); err == nil {
			v.Target = id.String() // in one spelling
		}
	case *v1.RevokeRequest_Agent:
		v.Kind, v.Target = authz.RevokedAgent, t.Agent
	case *v1.RevokeRequest_User:
		v.Kind, v.Target = authz.RevokedUser, t.User
	case *v1.RevokeRequest_Tenant:
		v.Kind, v.Target = authz.RevokedTenant, t.Tenant
	case *v1.RevokeRequest_Token:
		v.Kind, v.Target = authz.RevokedToken, t.Token
	case *v1.RevokeRequest_Key:
		v.Kind, v.Target = authz.RevokedKey, t.Key
	}
	return v
}

// ListRevocations lists revocations, newest first.
func (a *admin) ListRevocations(ctx context.Context, req *v1.ListRevocationsRequest) (*v1.ListRevocationsResponse, error) {
	found, next, err := a.revocations.List(ctx, pageSize(req.GetPageSize()), req.GetPageToken())
	if err != nil {
		return nil, err
	}
	out := &v1.ListRevocationsResponse{NextPageToken: next}
	for _, v := range found {
		out.Revocations = append(out.Revocations, &v1.Revocation{Id: v.ID,
			Kind:   v1.RevocationKind(v1.RevocationKind_value["REVOCATION_KIND_"+string(v.Kind)]),
			Tenant: v.Tenant, Target: v.Target, Reason: v.Reason, RevokedBy: v.By,
			RevokeTime: timestamp(v.At), ReinstateTime: timestamp(v.Reinstated)})
	}
	return out, nil
}

// Reinstate lets an agent, a user or a tenant in again.
func (a *admin) Reinstate(ctx context.Context, req *v1.ReinstateRequest) (*v1.ReinstateResponse, error) {
	s := session(ctx)
	var kind authz.RevocationKind
	var target string
	tenant := cmp.Or(req.GetOfTenant(), s.Principal.Tenant)
	switch t := req.GetTarget().(type) {
	case *v1.ReinstateRequest_Agent:
		kind, target = authz.RevokedAgent, t.Agent
	case *v1.ReinstateRequest_User:
		kind, target = authz.RevokedUser, t.User
	case *v1.ReinstateRequest_Tenant:
		kind, target, tenant = authz.RevokedTenant, t.Tenant, ""
	}
	if tenant != "" {
		s.Note("tenant", tenant)
	}
	out := &v1.ReinstateResponse{}
	a.gateway.Reinstate(s, kind, tenant, target, func(at time.Time) { out.ReinstateTime = timestamp(at) })
	return out, nil
}

// ListKeys lists the keys that sign tokens, newest first.
func (a *admin) ListKeys(ctx context.Context, _ *v1.ListKeysRequest) (*v1.ListKeysResponse, error) {
	all, err := a.keys.List(ctx)
	if err != nil {
		return nil, err
	}
	out := &v1.ListKeysResponse{}
	for _, k := range slices.Backward(all) {
		out.Keys = append(out.Keys, keyMessage(k))
	}
	return out, nil
}

// RotateKey makes a new signing key.
func (a *admin) RotateKey(ctx context.Context, _ *v1.RotateKeyRequest) (*v1.RotateKeyResponse, error) {
	s := session(ctx)
	out := &v1.RotateKeyResponse{}
	var known func()
	s.Write(gateway.Write{
		Effect: func(ctx context.Context, tx pgx.Tx) ([]byte, error) {
			made, done, err := a.keys.RotateIn(ctx, tx)
			if err != nil {
				return nil, err
			}
			s.Note("key", made.ID)
			out.Key, known = keyMessage(made), done
			return nil, nil
		},
		After: func(context.Context) { known() },
	})
	return out, nil
}

func keyMessage(k authz.KeyInfo) *v1.SigningKey {
	return &v1.SigningKey{Id: k.ID, Algorithm: string(k.Algorithm),
		State:      v1.SigningKeyState(v1.SigningKeyState_value["SIGNING_KEY_STATE_"+string(k.State)]),
		CreateTime: timestamp(k.Created), SignsFrom: timestamp(k.SignsFrom), RetireTime: timestamp(k.RetiresAt)}
}
