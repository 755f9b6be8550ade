package api

import (
	"context"

	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/authz/federation"
	"github.com/whence-db/whence/authz/registry"
	"github.com/whence-db/whence/gateway"
	v1 "github.com/whence-db/whence/proto/gen/whence/v1"
)

// CreateIssuer trusts an issuer.
func (a *admin) CreateIssuer(ctx context.Context, req *v1.CreateIssuerRequest) (*v1.CreateIssuerResponse, error) {
	s := session(ctx)
	issuer := federation.Issuer{Name: req.GetName(), URL: req.GetUrl(), Audience: req.GetAudience(), JWKSURL: req.GetJwksUrl(),
		Algorithms: req.GetAlgorithms(), Tenant: req.GetTenant(), TenantClaim: req.GetTenantClaim(), SubjectClaim: req.GetSubjectClaim(),
		GroupsClaim: req.GetGroupsClaim(), Operators: map[string]authz.Role{}, UserScope: scopeSpec(req.GetUserScope())}
	for group, role := range req.GetOperators() {
		issuer.Operators[group] = authz.Role(role)
	}
	s.Note("issuer", issuer.Name)
	s.Note("url", issuer.URL)
	s.Note("operators", issuer.Operators)
	s.Note("scope", issuer.UserScope)
	out := &v1.CreateIssuerResponse{Issuer: issuerMessage(registry.Issuer{Issuer: issuer, Created: s.Started})}
	s.Write(gateway.Write{
		Effect: func(ctx context.Context, tx pgx.Tx) ([]byte, error) {
			return nil, a.registry.CreateIssuer(ctx, tx, issuer)
		},
		After: func(ctx context.Context) { // what is in effect is not put in doubt by reading it again
			if kept, err := a.registry.Issuer(ctx, issuer.Name); err == nil {
				out.Issuer = issuerMessage(kept)
			}
		},
	})
	return out, nil
}

// ListIssuers lists issuers, by name.
func (a *admin) ListIssuers(ctx context.Context, req *v1.ListIssuersRequest) (*v1.ListIssuersResponse, error) {
	found, next, err := a.registry.Issuers(ctx, page(req))
	if err != nil {
		return nil, err
	}
	out := &v1.ListIssuersResponse{NextPageToken: next}
	for _, i := range found {
		out.Issuers = append(out.Issuers, issuerMessage(i))
	}
	return out, nil
}

// GetIssuer returns one issuer.
func (a *admin) GetIssuer(ctx context.Context, req *v1.GetIssuerRequest) (*v1.GetIssuerResponse, error) {
	i, err := a.registry.Issuer(ctx, req.GetName())
	if err != nil {
		return nil, err
	}
	return &v1.GetIssuerResponse{Issuer: issuerMessage(i)}, nil
}

// DeleteIssuer ends the trust in an issuer.
func (a *admin) DeleteIssuer(ctx context.Context, req *v1.DeleteIssuerRequest) (*v1.DeleteIssuerResponse, error) {
	s := session(ctx)
	s.Note("issuer", req.GetName())
	s.Write(gateway.Write{Effect: func(ctx context.Context, tx pgx.Tx) ([]byte, error) {
		return nil, a.registry.DeleteIssuer(ctx, tx, req.GetName())
	}})
	return &v1.DeleteIssuerResponse{}, nil
}

func issuerMessage(i registry.Issuer) *v1.Issuer {
	out := &v1.Issuer{Name: i.Name, Url: i.URL, Audience: i.Audience, JwksUrl: i.JWKSURL, Algorithms: i.Algorithms,
		Tenant: i.Tenant, TenantClaim: i.TenantClaim, SubjectClaim: i.SubjectClaim, GroupsClaim: i.GroupsClaim,
		Operators: map[string]string{}, UserScope: scopeMessage(i.UserScope), CreateTime: timestamp(i.Created)}
	for group, role := range i.Operators {
		out.Operators[group] = string(role)
	}
	return out
}
