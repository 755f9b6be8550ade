package api

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	"github.com/whence-db/whence/authz"
	v1 "github.com/whence-db/whence/proto/gen/whence/v1"
)

const (
	oneKey = `{"keys": [{"kty":"OKP", "crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo","alg":"EdDSA","use":"sig"}]}`
	secret = `{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo","d":"nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A"}]}`
)

// Agents of any tenant are made known, found, changed in what the request has, and
// forgotten.
func TestAgents(t *testing.T) {
	t.Parallel()
	w := open(t)
	admin := w.operator(t, authz.RoleAdmin)
	admin.refused(t, "CreateAgent", &v1.CreateAgentRequest{Name: "clerk", Jwks: secret}, "JWKS_INVALID")
	admin.refused(t, "CreateAgent", &v1.CreateAgentRequest{Name: "clerk", Issuer: "idp"}, "AGENT_INVALID")
	admin.refused(t, "CreateAgent", &v1.CreateAgentRequest{Name: "clerk", Issuer: "idp", Subject: "s"}, "ISSUER_NOT_FOUND")
	if f := admin.refused(t, "CreateAgent", &v1.CreateAgentRequest{Name: "clerk", Ceiling: &v1.Scope{Actions: []string{"memory:burn"}}}, "SCOPE_INVALID"); f.field != "ceiling.actions" {
		t.Errorf("the field is %q", f.field)
	}

	var here, there v1.CreateAgentResponse
	admin.must(t, "CreateAgent", &v1.CreateAgentRequest{Name: "clerk", Description: "keeps books", Jwks: oneKey, Ceiling: readingMessage()}, &here)
	admin.must(t, "CreateAgent", &v1.CreateAgentRequest{Name: "clerk", Tenant: "acme"}, &there)
	admin.refused(t, "CreateAgent", &v1.CreateAgentRequest{Name: "clerk"}, "AGENT_EXISTS")
	if detail := w.noted(t, "CreateAgent"); !cmp.Equal(detail, map[string]any{"agent": "clerk", "tenant": "acme"}) {
		t.Errorf("the log says %v", detail)
	}
	if here.GetAgent().GetTenant() != "default" || here.GetAgent().GetCreateTime() == nil {
		t.Errorf("%v", &here)
	}
	var got v1.GetAgentResponse
	for _, want := range []*v1.Agent{here.GetAgent(), there.GetAgent()} {
		admin.must(t, "GetAgent", &v1.GetAgentRequest{Name: "clerk", Tenant: want.GetTenant()}, &got)
		same(t, "an agent as it was made and as it is read", want, got.GetAgent())
	}
	admin.must(t, "GetAgent", &v1.GetAgentRequest{Name: "clerk"}, &got)
	same(t, "without a tenant", here.GetAgent(), got.GetAgent())
	admin.refused(t, "GetAgent", &v1.GetAgentRequest{Name: "clerk", Tenant: "other"}, "AGENT_NOT_FOUND")

	var first, second v1.ListAgentsResponse
	admin.must(t, "ListAgents", &v1.ListAgentsRequest{PageSize: 1}, &first)
	admin.must(t, "ListAgents", &v1.ListAgentsRequest{PageSize: 1, PageToken: first.GetNextPageToken()}, &second)
	same(t, "the first page", there.GetAgent(), first.GetAgents()[0])
	same(t, "the second page", here.GetAgent(), second.GetAgents()[0])
	admin.must(t, "ListAgents", &v1.ListAgentsRequest{Tenant: "default"}, &first)
	if len(first.GetAgents()) != 1 {
		t.Errorf("of one tenant: %v", &first)
	}

	var changed v1.UpdateAgentResponse
	admin.must(t, "UpdateAgent", &v1.UpdateAgentRequest{Name: "clerk", Description: proto.String("counts beans")}, &changed)
	want := proto.CloneOf(here.GetAgent())
	want.Description = "counts beans"
	same(t, "only the description changed", want, changed.GetAgent())
	admin.must(t, "UpdateAgent", &v1.UpdateAgentRequest{Name: "clerk", Jwks: proto.String(""), Ceiling: &v1.Scope{}}, &changed)
	want.Jwks, want.Ceiling = "", &v1.Scope{}
	same(t, "the keys are taken", want, changed.GetAgent())
	admin.must(t, "GetAgent", &v1.GetAgentRequest{Name: "clerk"}, &got)
	same(t, "the change is kept", want, got.GetAgent())
	admin.must(t, "UpdateAgent", &v1.UpdateAgentRequest{Name: "clerk", Tenant: "acme", Jwks: proto.String(oneKey)}, &changed)
	if changed.GetAgent().GetJwks() != here.GetAgent().GetJwks() {
		t.Errorf("one key set is spelt in two ways: %s", changed.GetAgent().GetJwks())
	}

	admin.must(t, "DeleteAgent", &v1.DeleteAgentRequest{Name: "clerk", Tenant: "acme"}, nil)
	admin.refused(t, "DeleteAgent", &v1.DeleteAgentRequest{Name: "clerk", Tenant: "acme"}, "AGENT_NOT_FOUND")
	admin.refused(t, "UpdateAgent", &v1.UpdateAgentRequest{Name: "clerk", Tenant: "acme"}, "AGENT_NOT_FOUND")
	admin.must(t, "GetAgent", &v1.GetAgentRequest{Name: "clerk"}, nil)
}

// Issuers are trusted, found and trusted no longer, unless agents are known by them.
func TestIssuers(t *testing.T) {
	t.Parallel()
	w := open(t)
	admin := w.operator(t, authz.RoleAdmin)
	idp := &v1.CreateIssuerRequest{Name: "idp", Url: "https://id.example.org", Audience: "whence", Algorithms: []string{"ES256", "EdDSA"},
		JwksUrl: "https://id.example.org/keys", Tenant: "acme", SubjectClaim: "email", GroupsClaim: "roles",
		Operators: map[string]string{"ops": "admin", "eyes": "viewer"}, UserScope: readingMessage()}
	var made v1.CreateIssuerResponse
	admin.must(t, "CreateIssuer", idp, &made)
	want := &v1.Issuer{Name: idp.Name, Url: idp.Url, Audience: idp.Audience, Algorithms: idp.Algorithms, JwksUrl: idp.JwksUrl, Tenant: idp.Tenant,
		SubjectClaim: idp.SubjectClaim, GroupsClaim: idp.GroupsClaim, Operators: idp.Operators, UserScope: idp.UserScope, CreateTime: made.GetIssuer().GetCreateTime()}
	same(t, "an issuer as it was asked for and as it was made", want, made.GetIssuer())
	if want.CreateTime == nil {
		t.Error("no time")
	}
	var got v1.GetIssuerResponse
	admin.must(t, "GetIssuer", &v1.GetIssuerRequest{Name: "idp"}, &got)
	same(t, "an issuer as it was made and as it is read", want, got.GetIssuer())
	if detail := w.noted(t, "CreateIssuer"); detail["issuer"] != "idp" || detail["url"] != idp.Url {
		t.Errorf("the log says %v", detail)
	}
	admin.refused(t, "CreateIssuer", idp, "ISSUER_EXISTS")
	plain := proto.CloneOf(idp)
	plain.Name, plain.Url = "plain", "http://id.example.net"
	admin.refused(t, "CreateIssuer", plain, "ISSUER_INVALID")

	admin.must(t, "CreateAgent", &v1.CreateAgentRequest{Name: "clerk", Issuer: "idp", Subject: "c-1"}, nil)
	admin.refused(t, "CreateAgent", &v1.CreateAgentRequest{Name: "twin", Issuer: "idp", Subject: "c-1"}, "AGENT_EXISTS")
	admin.refused(t, "DeleteIssuer", &v1.DeleteIssuerRequest{Name: "idp"}, "ISSUER_IN_USE")
	admin.must(t, "UpdateAgent", &v1.UpdateAgentRequest{Name: "clerk", Issuer: proto.String(""), Subject: proto.String("")}, nil)
	admin.must(t, "DeleteIssuer", &v1.DeleteIssuerRequest{Name: "idp"}, nil)
	admin.refused(t, "DeleteIssuer", &v1.DeleteIssuerRequest{Name: "idp"}, "ISSUER_NOT_FOUND")
	var all v1.ListIssuersResponse
	admin.must(t, "ListIssuers", &v1.ListIssuersRequest{}, &all)
	if len(all.GetIssuers()) != 0 {
		t.Errorf("%v", &all)
	}
}
