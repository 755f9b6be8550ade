package api

import (
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/whence-db/whence/authz"
	v1 "github.com/whence-db/whence/proto/gen/whence/v1"
)

// Upstreams are defined, found, replaced as a whole and deleted by admins, and what
// is written is on record.
func TestUpstreams(t *testing.T) {
	t.Parallel()
	w := open(t)
	admin, viewer := w.operator(t, authz.RoleAdmin), w.operator(t, authz.RoleViewer)
	shop := &v1.Upstream{Name: "shop", Url: "https://shop.example.com/v1", AuthorizationEnv: "SHOP_KEY",
		Rules: []*v1.UpstreamRule{
			{Method: "POST", Path: "/carts/{id}/items", Tier: v1.Tier_TIER_REVERSIBLE, CostMicros: 20, SpendHeader: "X-Cost", SpendUnitMicros: 1000},
			{Path: "/admin/**", Tier: v1.Tier_TIER_IRREVERSIBLE}},
		Timeout: durationpb.New(5 * time.Second), PrivateRanges: []string{"10.1.0.0/16"}, MaxRequestBytes: 100, MaxResponseBytes: 200}
	viewer.refused(t, "CreateUpstream", &v1.CreateUpstreamRequest{Upstream: shop}, "ROLE_INSUFFICIENT")
	var made v1.CreateUpstreamResponse
	admin.must(t, "CreateUpstream", &v1.CreateUpstreamRequest{Upstream: shop}, &made)
	if made.GetUpstream().GetCreateTime() == nil {
		t.Error("it has no time")
	}
	want := proto.CloneOf(shop)
	want.CreateTime = made.GetUpstream().GetCreateTime()
	same(t, "as it was made", want, made.GetUpstream())
	var got v1.GetUpstreamResponse
	viewer.must(t, "GetUpstream", &v1.GetUpstreamRequest{Name: "shop"}, &got)
	same(t, "as it is read", want, got.GetUpstream())
	first := w.noted(t, "CreateUpstream")
	if first["upstream"] != "shop" || first["url"] != shop.GetUrl() || first["authorizationEnv"] != "SHOP_KEY" || len(first["digest"].(string)) != 64 {
		t.Errorf("the log says %v", first)
	}
	admin.refused(t, "CreateUpstream", &v1.CreateUpstreamRequest{Upstream: shop}, "UPSTREAM_EXISTS")

	admin.must(t, "CreateUpstream", &v1.CreateUpstreamRequest{Upstream: &v1.Upstream{Name: "bare", Url: "http://bare.example.com"}}, &made)
	if u := made.GetUpstream(); u.GetTimeout().AsDuration() != 30*time.Second || u.GetMaxRequestBytes() != 1<<20 || u.GetMaxResponseBytes() != 16<<20 {
		t.Errorf("the defaults are %v", u)
	}
	var one, two v1.ListUpstreamsResponse
	viewer.must(t, "ListUpstreams", &v1.ListUpstreamsRequest{PageSize: 1}, &one)
	viewer.must(t, "ListUpstreams", &v1.ListUpstreamsRequest{PageSize: 1, PageToken: one.GetNextPageToken()}, &two)
	same(t, "the first page", made.GetUpstream(), one.GetUpstreams()[0])
	same(t, "the second page", want, two.GetUpstreams()[0])
	if two.GetNextPageToken() != "" {
		t.Error("there is a third page")
	}
	viewer.refused(t, "ListUpstreams", &v1.ListUpstreamsRequest{PageToken: "?"}, "PAGE_TOKEN_INVALID")

	var changed v1.UpdateUpstreamResponse
	next := &v1.Upstream{Name: "shop", Url: "https://shop.example.com/v2", Timeout: durationpb.New(time.Second), MaxRequestBytes: 1, MaxResponseBytes: 2}
	admin.must(t, "UpdateUpstream", &v1.UpdateUpstreamRequest{Upstream: next}, &changed)
	next.CreateTime = want.GetCreateTime()
	same(t, "replaced", next, changed.GetUpstream())
	viewer.must(t, "GetUpstream", &v1.GetUpstreamRequest{Name: "shop"}, &got)
	same(t, "kept", next, got.GetUpstream())
	if second := w.noted(t, "UpdateUpstream"); second["digest"] == first["digest"] || second["url"] != next.GetUrl() {
		t.Errorf("the log says %v", second)
	}
	admin.refused(t, "UpdateUpstream", &v1.UpdateUpstreamRequest{Upstream: &v1.Upstream{Name: "none", Url: "https://a.example.com"}}, "UPSTREAM_NOT_FOUND")
	if f := admin.refused(t, "UpdateUpstream", &v1.UpdateUpstreamRequest{Upstream: &v1.Upstream{Name: "shop", Url: "https://u:p@a.example.com"}}, "UPSTREAM_INVALID"); f.field != "upstream.url" {
		t.Errorf("the field is %q", f.field)
	}

	admin.must(t, "DeleteUpstream", &v1.DeleteUpstreamRequest{Name: "shop"}, nil)
	if detail := w.noted(t, "DeleteUpstream"); detail["upstream"] != "shop" {
		t.Errorf("the log says %v", detail)
	}
	admin.refused(t, "DeleteUpstream", &v1.DeleteUpstreamRequest{Name: "shop"}, "UPSTREAM_NOT_FOUND")
	viewer.refused(t, "GetUpstream", &v1.GetUpstreamRequest{Name: "shop"}, "UPSTREAM_NOT_FOUND")
}
