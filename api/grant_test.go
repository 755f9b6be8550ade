package api

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/authz"
	v1 "github.com/whence-db/whence/proto/gen/whence/v1"
)

// An operator gives grants to anybody's agents, finds them newest first, and changes
// what the request has and nothing else.
func TestGrants(t *testing.T) {
	t.Parallel()
	w := open(t)
	admin := w.operator(t, authz.RoleAdmin)
	admin.must(t, "CreateAgent", &v1.CreateAgentRequest{Name: "clerk"}, nil)
	admin.must(t, "CreateAgent", &v1.CreateAgentRequest{Name: "clerk", Tenant: "acme"}, nil)
	admin.refused(t, "CreateGrant", &v1.CreateGrantRequest{Agent: "nobody", User: "ann"}, "AGENT_NOT_FOUND")
	admin.refused(t, "CreateGrant", &v1.CreateGrantRequest{Agent: "clerk"}, "GRANT_INVALID")
	if f := admin.refused(t, "CreateGrant", &v1.CreateGrantRequest{Agent: "clerk", User: "ann",
		Scope: &v1.Scope{AllTables: true, Tables: []string{"app.public.t"}}}, "SCOPE_INVALID"); f.field != "scope.tables" {
		t.Errorf("the field is %q", f.field)
	}
	admin.refused(t, "CreateGrant", &v1.CreateGrantRequest{Agent: "clerk", User: "ann", ExpireTime: timestamppb.New(time.Time{})}, "EXPIRE_TIME_INVALID")
	admin.refused(t, "CreateGrant", &v1.CreateGrantRequest{Agent: "clerk", User: "ann", Budget: &v1.BudgetLimits{Calls: new(uint32)}}, "BUDGET_INVALID")

	var plain, full v1.CreateGrantResponse
	admin.must(t, "CreateGrant", &v1.CreateGrantRequest{Agent: "clerk", User: "ann", Scope: readingMessage()}, &plain)
	g := plain.GetGrant()
	if g.GetBudget().GetCalls() != 1000 || g.GetTaskLifetime().AsDuration() != time.Hour || g.GetMaxDepth() != 3 ||
		g.GetTenant() != "default" || g.GetCreatedBy() != "olga" || g.ExpireTime != nil {
		t.Errorf("defaults: %v", g)
	}
	if detail := w.noted(t, "CreateGrant"); detail["grant"] != g.GetId() || detail["agent"] != "clerk" || detail["user"] != "ann" {
		t.Errorf("the log says %v", detail)
	}
	calls, depth := uint32(7), uint32(0)
	until := time.Now().Add(time.Hour)
	admin.must(t, "CreateGrant", &v1.CreateGrantRequest{Agent: "clerk", Group: "staff", Tenant: "acme", Scope: readingMessage(),
		Budget: &v1.BudgetLimits{Calls: &calls}, MaxDepth: &depth, TaskLifetime: durationpb.New(90 * time.Second),
		ProofOfPossession: true, ExpireTime: timestamppb.New(until)}, &full)
	var got v1.GetGrantResponse
	for _, want := range []*v1.Grant{plain.GetGrant(), full.GetGrant()} {
		admin.must(t, "GetGrant", &v1.GetGrantRequest{Id: want.GetId()}, &got)
		same(t, "a grant as it was made and as it is read", want, got.GetGrant())
	}

	var first, second v1.ListGrantsResponse
	admin.must(t, "ListGrants", &v1.ListGrantsRequest{PageSize: 1}, &first)
	admin.must(t, "ListGrants", &v1.ListGrantsRequest{PageSize: 1, PageToken: first.GetNextPageToken()}, &second)
	same(t, "the first page", full.GetGrant(), first.GetGrants()[0])
	same(t, "the second page", plain.GetGrant(), second.GetGrants()[0])
	if second.GetNextPageToken() != "" {
		t.Error("a third page is promised")
	}
	admin.must(t, "ListGrants", &v1.ListGrantsRequest{Tenant: "default", Agent: "clerk"}, &first)
	if len(first.GetGrants()) != 1 {
		t.Errorf("of one tenant: %v", &first)
	}

	more := uint32(9)
	var changed v1.UpdateGrantResponse
	admin.must(t, "UpdateGrant", &v1.UpdateGrantRequest{Id: full.GetGrant().GetId(), Budget: &v1.BudgetLimits{Calls: &more}}, &changed)
	want := proto.CloneOf(full.GetGrant())
	want.Budget.Calls = &more
	same(t, "only the calls changed", want, changed.GetGrant())
	admin.must(t, "GetGrant", &v1.GetGrantRequest{Id: want.GetId()}, &got)
	same(t, "the change is kept", want, got.GetGrant())
	admin.must(t, "UpdateGrant", &v1.UpdateGrantRequest{Id: want.GetId(), Budget: &v1.BudgetLimits{}, ProofOfPossession: new(bool),
		Scope: &v1.Scope{}, MaxDepth: &more}, &changed)
	want.ProofOfPossession, want.MaxDepth, want.Scope = false, more, &v1.Scope{}
	same(t, "the rest changed", want, changed.GetGrant())

	admin.must(t, "DeleteGrant", &v1.DeleteGrantRequest{Id: want.GetId()}, nil)
	admin.refused(t, "DeleteGrant", &v1.DeleteGrantRequest{Id: want.GetId()}, "GRANT_NOT_FOUND")
	admin.refused(t, "UpdateGrant", &v1.UpdateGrantRequest{Id: want.GetId()}, "GRANT_NOT_FOUND")
	admin.refused(t, "GetGrant", &v1.GetGrantRequest{Id: "seven"}, "INVALID_ID")
}

// A user gives grants for themselves within their own scope, and what is another's
// looks like what is not there.
func TestUsersGrants(t *testing.T) {
	t.Parallel()
	w := open(t)
	admin := w.operator(t, authz.RoleAdmin)
	for _, tenant := range []string{"default", "acme"} {
		admin.must(t, "CreateAgent", &v1.CreateAgentRequest{Name: "clerk", Tenant: tenant}, nil)
	}
	own := authz.ScopeSpec{Tables: []whence.TableName{"app.public.orders"}, Subjects: []string{"ann"}, Actions: []authz.Action{authz.MemoryRead}}
	ann := w.user(t, "acme", "ann", own)
	bob, namesake := w.user(t, "acme", "bob", own), w.user(t, "default", "ann", own)

	var made v1.CreateGrantResponse
	ann.must(t, "CreateGrant", &v1.CreateGrantRequest{Agent: "clerk", Scope: scopeMessage(own)}, &made)
	g := made.GetGrant()
	if g.GetUser() != "ann" || g.GetTenant() != "acme" || g.GetCreatedBy() != "ann" {
		t.Errorf("%v", g)
	}
	wider := scopeMessage(own)
	wider.Subjects = []string{"ann", "bob"}
	for _, c := range []struct {
		req    *v1.CreateGrantRequest
		reason string
	}{
		{&v1.CreateGrantRequest{Agent: "clerk", Scope: wider}, "SCOPE_WIDENED"},
		{&v1.CreateGrantRequest{Agent: "clerk", User: "bob", Scope: scopeMessage(own)}, "GRANT_NOT_YOURS"},
		{&v1.CreateGrantRequest{Agent: "clerk", Group: "staff", Scope: scopeMessage(own)}, "GRANT_NOT_YOURS"},
		{&v1.CreateGrantRequest{Agent: "clerk", User: "ann", Tenant: "default", Scope: scopeMessage(own)}, "GRANT_NOT_YOURS"},
		{&v1.CreateGrantRequest{Agent: "nobody", Scope: scopeMessage(own)}, "AGENT_NOT_FOUND"},
	} {
		ann.refused(t, "CreateGrant", c.req, c.reason)
	}
	ann.refused(t, "UpdateGrant", &v1.UpdateGrantRequest{Id: g.GetId(), Scope: wider}, "SCOPE_WIDENED")

	const none = "01980000-0000-7000-8000-000000000000"
	for _, other := range []caller{bob, namesake} {
		for _, c := range []struct {
			name string
			req  func(id string) proto.Message
		}{
			{"GetGrant", func(id string) proto.Message { return &v1.GetGrantRequest{Id: id} }},
			{"UpdateGrant", func(id string) proto.Message {
				return &v1.UpdateGrantRequest{Id: id, TaskLifetime: durationpb.New(time.Minute)}
			}},
			{"DeleteGrant", func(id string) proto.Message { return &v1.DeleteGrantRequest{Id: id} }},
		} {
			hidden := other.refused(t, c.name, c.req(g.GetId()), "GRANT_NOT_FOUND")
			absent := other.refused(t, c.name, c.req(none), "GRANT_NOT_FOUND")
			if hidden.message = strings.ReplaceAll(hidden.message, g.GetId(), none); hidden != absent {
				t.Errorf("%s tells them apart: %+v, %+v", c.name, hidden, absent)
			}
		}
		for _, req := range []*v1.ListGrantsRequest{{}, {User: "ann"}, {Tenant: "acme"}, {Agent: "clerk", User: "ann", Tenant: "acme"}} {
			var res v1.ListGrantsResponse
			other.must(t, "ListGrants", req, &res)
			if len(res.GetGrants()) != 0 {
				t.Errorf("%v shows %v", req, &res)
			}
		}
	}
	admin.must(t, "CreateGrant", &v1.CreateGrantRequest{Agent: "clerk", Tenant: "acme", Group: "staff", Scope: readingMessage()}, &made)
	ann.refused(t, "GetGrant", &v1.GetGrantRequest{Id: made.GetGrant().GetId()}, "GRANT_NOT_FOUND")
	ann.refused(t, "DeleteGrant", &v1.DeleteGrantRequest{Id: made.GetGrant().GetId()}, "GRANT_NOT_FOUND")

	for _, req := range []*v1.ListGrantsRequest{{}, {User: "ann"}, {Tenant: "acme", User: "ann", Agent: "clerk"}} {
		var res v1.ListGrantsResponse
		ann.must(t, "ListGrants", req, &res)
		if len(res.GetGrants()) != 1 {
			t.Fatalf("%v shows %v", req, &res)
		}
		same(t, "untouched by others", g, res.GetGrants()[0])
	}
	var changed v1.UpdateGrantResponse
	ann.must(t, "UpdateGrant", &v1.UpdateGrantRequest{Id: g.GetId(), TaskLifetime: durationpb.New(time.Minute)}, &changed)
	g.TaskLifetime = durationpb.New(time.Minute)
	same(t, "changed by the user", g, changed.GetGrant())
	ann.must(t, "DeleteGrant", &v1.DeleteGrantRequest{Id: g.GetId()}, nil)
	ann.refused(t, "GetGrant", &v1.GetGrantRequest{Id: g.GetId()}, "GRANT_NOT_FOUND")
}

func same(t *testing.T, what string, want, got proto.Message) {
	t.Helper()
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Errorf("%s: %s", what, diff)
	}
}

// There are bounds to what grants may take: an exchange reads all of them.
func TestGrantsAreFewAndSmall(t *testing.T) {
	t.Parallel()
	w := open(t)
	admin := w.operator(t, authz.RoleAdmin)
	admin.must(t, "CreateAgent", &v1.CreateAgentRequest{Name: "clerk"}, nil)
	var subjects []string
	for i := range 400 {
		subjects = append(subjects, strings.Repeat("x", 30)+strings.Repeat("y", i%7)+string(rune('a'+i%26))+strings.Repeat("z", i/26))
	}
	large := &v1.CreateGrantRequest{Agent: "clerk", User: "ann", Scope: &v1.Scope{AllTables: true, Subjects: subjects, Actions: []string{"memory:read"}}}
	admin.refused(t, "CreateGrant", large, "SCOPE_TOO_LARGE")
	for range 100 {
		admin.must(t, "CreateGrant", &v1.CreateGrantRequest{Agent: "clerk", User: "ann", Scope: readingMessage()}, nil)
	}
	admin.refused(t, "CreateGrant", &v1.CreateGrantRequest{Agent: "clerk", User: "ann", Scope: readingMessage()}, "GRANTS_TOO_MANY")
	admin.must(t, "CreateGrant", &v1.CreateGrantRequest{Agent: "clerk", User: "bob", Scope: readingMessage()}, nil)
	admin.must(t, "CreateGrant", &v1.CreateGrantRequest{Agent: "clerk", Group: "ann", Scope: readingMessage()}, nil)
}

// What an operator gave, with its bounds, a user deletes and does not change.
func TestUsersDoNotLiftBounds(t *testing.T) {
	t.Parallel()
	w := open(t)
	admin, user := w.operator(t, authz.RoleAdmin), w.user(t, authz.DefaultTenant, "ann", authz.ScopeSpec{AllTables: true, AllSubjects: true, Actions: authz.Actions()})
	admin.must(t, "CreateAgent", &v1.CreateAgentRequest{Name: "clerk"}, nil)
	var theirs, own v1.CreateGrantResponse
	admin.must(t, "CreateGrant", &v1.CreateGrantRequest{Agent: "clerk", User: "ann", Scope: readingMessage(), ProofOfPossession: true}, &theirs)
	user.must(t, "CreateGrant", &v1.CreateGrantRequest{Agent: "clerk", Scope: readingMessage(), ProofOfPossession: true}, &own)
	lift := func(id string) *v1.UpdateGrantRequest {
		return &v1.UpdateGrantRequest{Id: id, ProofOfPossession: proto.Bool(false)}
	}
	user.refused(t, "UpdateGrant", lift(theirs.GetGrant().GetId()), "GRANT_NOT_YOURS")
	user.must(t, "UpdateGrant", lift(own.GetGrant().GetId()), nil)
	user.must(t, "DeleteGrant", &v1.DeleteGrantRequest{Id: theirs.GetGrant().GetId()}, nil)
}

// Nobody stops the operator who they are by mistake.
func TestOperatorsDoNotRevokeThemselves(t *testing.T) {
	t.Parallel()
	w := open(t)
	admin := w.operator(t, authz.RoleAdmin)
	admin.refused(t, "Revoke", &v1.RevokeRequest{Target: &v1.RevokeRequest_User{User: "olga"}}, "REVOKES_YOURSELF")
	admin.must(t, "Revoke", &v1.RevokeRequest{Target: &v1.RevokeRequest_User{User: "olga"}, OfTenant: "acme"}, nil)
	admin.must(t, "Revoke", &v1.RevokeRequest{Target: &v1.RevokeRequest_User{User: "max"}}, nil)
}
