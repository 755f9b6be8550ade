package api

import (
	"context"
	"encoding/hex"
	"strings"

	"github.com/jackc/pgx/v5"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/gateway"
	"github.com/whence-db/whence/gateway/upstream"
	v1 "github.com/whence-db/whence/proto/gen/whence/v1"
)

// CreateUpstream lets agents reach a service.
func (a *admin) CreateUpstream(ctx context.Context, req *v1.CreateUpstreamRequest) (*v1.CreateUpstreamResponse, error) {
	u, err := definedUpstream(ctx, req.GetUpstream())
	if err != nil {
		return nil, err
	}
	out := &v1.CreateUpstreamResponse{}
	session(ctx).Write(gateway.Write{Effect: func(ctx context.Context, tx pgx.Tx) ([]byte, error) {
		kept, err := a.upstreams.Create(ctx, tx, u)
		out.Upstream = upstreamMessage(kept)
		return nil, err
	}})
	return out, nil
}

// UpdateUpstream replaces an upstream's definition.
func (a *admin) UpdateUpstream(ctx context.Context, req *v1.UpdateUpstreamRequest) (*v1.UpdateUpstreamResponse, error) {
	u, err := definedUpstream(ctx, req.GetUpstream())
	if err != nil {
		return nil, err
	}
	out := &v1.UpdateUpstreamResponse{}
	session(ctx).Write(gateway.Write{Effect: func(ctx context.Context, tx pgx.Tx) ([]byte, error) {
		kept, err := a.upstreams.Update(ctx, tx, u)
		out.Upstream = upstreamMessage(kept)
		return nil, err
	}})
	return out, nil
}

// ListUpstreams lists upstreams, by name.
func (a *admin) ListUpstreams(ctx context.Context, req *v1.ListUpstreamsRequest) (*v1.ListUpstreamsResponse, error) {
	found, next, err := a.upstreams.List(ctx, session(ctx).Principal.Tenant, pageSize(req.GetPageSize()), req.GetPageToken())
	if err != nil {
		return nil, err
	}
	out := &v1.ListUpstreamsResponse{NextPageToken: next}
	for _, u := range found {
		out.Upstreams = append(out.Upstreams, upstreamMessage(u))
	}
	return out, nil
}

// GetUpstream returns one upstream.
func (a *admin) GetUpstream(ctx context.Context, req *v1.GetUpstreamRequest) (*v1.GetUpstreamResponse, error) {
	u, err := a.upstreams.Get(ctx, session(ctx).Principal.Tenant, req.GetName())
	if err != nil {
		return nil, err
	}
	return &v1.GetUpstreamResponse{Upstream: upstreamMessage(u)}, nil
}

// DeleteUpstream closes the way to an upstream.
func (a *admin) DeleteUpstream(ctx context.Context, req *v1.DeleteUpstreamRequest) (*v1.DeleteUpstreamResponse, error) {
	s := session(ctx)
	s.Note("upstream", req.GetName())
	s.Write(gateway.Write{Effect: func(ctx context.Context, tx pgx.Tx) ([]byte, error) {
		return nil, a.upstreams.Delete(ctx, tx, s.Principal.Tenant, req.GetName())
	}})
	return &v1.DeleteUpstreamResponse{}, nil
}

// definedUpstream reads a definition of the caller's tenant and puts on record what
// of it says where requests go and with whose authority; the digest stands for all.
func definedUpstream(ctx context.Context, m *v1.Upstream) (*upstream.Upstream, error) {
	s := session(ctx)
	d := upstream.Definition{Tenant: s.Principal.Tenant, Name: m.GetName(), URL: m.GetUrl(), AuthorizationEnv: m.GetAuthorizationEnv(),
		Timeout: m.GetTimeout().AsDuration(), PrivateRanges: m.GetPrivateRanges(),
		MaxRequestBytes: int64(m.GetMaxRequestBytes()), MaxResponseBytes: int64(m.GetMaxResponseBytes())}
	for _, r := range m.GetRules() {
		d.Rules = append(d.Rules, upstream.Rule{Method: r.GetMethod(), Path: r.GetPath(), Tier: authz.Tier(strings.TrimPrefix(r.GetTier().String(), "TIER_")),
			CostMicros: r.GetCostMicros(), SpendHeader: r.GetSpendHeader(), SpendUnitMicros: r.GetSpendUnitMicros()})
	}
	u, err := upstream.New(d)
	if err != nil {
		return nil, fieldOf("upstream", err)
	}
	s.Note("upstream", u.Name)
	s.Note("url", u.URL)
	s.Note("authorizationEnv", u.AuthorizationEnv)
	s.Note("privateRanges", u.PrivateRanges)
	s.Note("rules", len(u.Rules))
	s.Note("digest", hex.EncodeToString(u.Digest[:]))
	return u, nil
}

func upstreamMessage(u *upstream.Upstream) *v1.Upstream {
	if u == nil {
		return nil
	}
	out := &v1.Upstream{Name: u.Name, Url: u.URL, AuthorizationEnv: u.AuthorizationEnv, Timeout: durationpb.New(u.Timeout),
		CreateTime: timestamp(u.Created), PrivateRanges: u.PrivateRanges,
		MaxRequestBytes: uint32(u.MaxRequestBytes), MaxResponseBytes: uint32(u.MaxResponseBytes)}
	for _, r := range u.Rules {
		out.Rules = append(out.Rules, &v1.UpstreamRule{Method: r.Method, Path: r.Path, Tier: v1.Tier(v1.Tier_value["TIER_"+string(r.Tier)]),
			CostMicros: r.CostMicros, SpendHeader: r.SpendHeader, SpendUnitMicros: r.SpendUnitMicros})
	}
	return out
}
