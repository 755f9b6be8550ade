package api

import (
	"strings"
	"testing"
	"time"

	"github.com/whence-db/whence/authz"
	v1 "github.com/whence-db/whence/proto/gen/whence/v1"
)

// A user sees and stops the tasks that act for them, and no others.
func TestUsersTasks(t *testing.T) {
	t.Parallel()
	w := open(t)
	tasks := map[string]string{}
	for _, name := range []string{"ann", "bob"} {
		started, err := w.gateway.StartOwn(t.Context(), name, authz.TaskRequest{Agent: "clerk", Purpose: "a test", Scope: reading, Calls: 5, Lifetime: time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		tasks[name] = started.Task.ID.String()
	}
	ann, namesake := w.user(t, "default", "ann", reading), w.user(t, "acme", "ann", reading)
	for _, c := range []struct {
		who  caller
		req  *v1.ListTasksRequest
		want string
	}{
		{ann, &v1.ListTasksRequest{}, tasks["ann"]}, {ann, &v1.ListTasksRequest{User: "ann", Tenant: "default"}, tasks["ann"]},
		{ann, &v1.ListTasksRequest{User: "bob"}, ""}, {ann, &v1.ListTasksRequest{RootId: tasks["bob"]}, ""},
		{namesake, &v1.ListTasksRequest{}, ""}, {namesake, &v1.ListTasksRequest{Tenant: "default", User: "ann"}, ""},
		{w.operator(t, authz.RoleViewer), &v1.ListTasksRequest{User: "bob"}, tasks["bob"]},
	} {
		var res v1.ListTasksResponse
		c.who.must(t, "ListTasks", c.req, &res)
		var ids []string
		for _, task := range res.GetTasks() {
			ids = append(ids, task.GetId())
		}
		if got := strings.Join(ids, " "); got != c.want {
			t.Errorf("%v: %q, want %q", c.req, got, c.want)
		}
	}

	stop := func(id string) *v1.RevokeRequest {
		return &v1.RevokeRequest{Target: &v1.RevokeRequest_Task{Task: id}, Reason: "enough"}
	}
	const none = "01980000-0000-7000-8000-000000000000"
	for _, who := range []caller{ann, namesake} {
		if hidden, absent := who.refused(t, "Revoke", stop(tasks["bob"]), "TASK_NOT_FOUND"), who.refused(t, "Revoke", stop(none), "TASK_NOT_FOUND"); hidden != absent {
			t.Errorf("another's task shows: %+v, %+v", hidden, absent)
		}
	}
	namesake.refused(t, "Revoke", stop(tasks["ann"]), "TASK_NOT_FOUND")
	for _, req := range []*v1.RevokeRequest{
		{Target: &v1.RevokeRequest_Agent{Agent: "clerk"}}, {Target: &v1.RevokeRequest_User{User: "ann"}},
		{Target: &v1.RevokeRequest_Tenant{Tenant: "acme"}}, {Target: &v1.RevokeRequest_Token{Token: "x"}}, {Target: &v1.RevokeRequest_Key{Key: "x"}},
	} {
		ann.refused(t, "Revoke", req, "ROLE_INSUFFICIENT")
	}
	var done v1.RevokeResponse
	ann.must(t, "Revoke", stop(strings.ToUpper(tasks["ann"])), &done)
	if done.GetTasks() != 1 || done.GetRevokeTime() == nil {
		t.Errorf("%v", &done)
	}
	for name, want := range map[string]v1.TaskState{"ann": v1.TaskState_TASK_STATE_REVOKED, "bob": v1.TaskState_TASK_STATE_ACTIVE} {
		var res v1.ListTasksResponse
		w.operator(t, authz.RoleViewer).must(t, "ListTasks", &v1.ListTasksRequest{User: name}, &res)
		if got := res.GetTasks()[0].GetState(); got != want {
			t.Errorf("%s's task is %v", name, got)
		}
	}
	var all v1.ListRevocationsResponse
	w.operator(t, authz.RoleViewer).must(t, "ListRevocations", &v1.ListRevocationsRequest{}, &all)
	if r := all.GetRevocations(); len(r) != 1 || r[0].GetTarget() != tasks["ann"] || r[0].GetRevokedBy() != "ann" || r[0].GetReason() != "enough" ||
		r[0].GetKind() != v1.RevocationKind_REVOCATION_KIND_TASK {
		t.Errorf("%v", &all)
	}
}

// Who is revoked is refused at once and let in again once reinstated; the tenant of
// those who could do that stays.
func TestRevokeAndReinstate(t *testing.T) {
	t.Parallel()
	w := open(t)
	admin := w.operator(t, authz.RoleAdmin)
	for _, c := range []struct {
		name   string
		stop   *v1.RevokeRequest
		resume *v1.ReinstateRequest
		reason string
	}{
		{"ann", &v1.RevokeRequest{Target: &v1.RevokeRequest_User{User: "ann"}, OfTenant: "acme"},
			&v1.ReinstateRequest{Target: &v1.ReinstateRequest_User{User: "ann"}, OfTenant: "acme"}, "USER_REVOKED"},
		{"bob", &v1.RevokeRequest{Target: &v1.RevokeRequest_Tenant{Tenant: "acme"}},
			&v1.ReinstateRequest{Target: &v1.ReinstateRequest_Tenant{Tenant: "acme"}}, "TENANT_REVOKED"},
	} {
		before := w.userBefore(t, "acme", c.name) // whole seconds older, as tokens tell it
		before.must(t, "ListGrants", &v1.ListGrantsRequest{}, nil)
		admin.refused(t, "Reinstate", c.resume, "NOT_REVOKED")
		admin.must(t, "Revoke", c.stop, nil)
		before.refused(t, "ListGrants", &v1.ListGrantsRequest{}, c.reason)
		w.user(t, "acme", c.name, reading).refused(t, "ListGrants", &v1.ListGrantsRequest{}, c.reason)
		var back v1.ReinstateResponse
		admin.must(t, "Reinstate", c.resume, &back)
		if back.ReinstateTime == nil {
			t.Error("no time")
		}
		before.refused(t, "ListGrants", &v1.ListGrantsRequest{}, c.reason)
		w.user(t, "acme", c.name, reading).must(t, "ListGrants", &v1.ListGrantsRequest{}, nil)
	}
	// A user of the same name in the operators' tenant is another one.
	admin.must(t, "Revoke", &v1.RevokeRequest{Target: &v1.RevokeRequest_User{User: "ann"}}, nil)
	w.user(t, "acme", "ann", reading).must(t, "ListGrants", &v1.ListGrantsRequest{}, nil)
	admin.refused(t, "Revoke", &v1.RevokeRequest{Target: &v1.RevokeRequest_Tenant{Tenant: "default"}}, "TENANT_OPERATES")

	// Agents are marked as long as they are stopped.
	var agent v1.GetAgentResponse
	admin.must(t, "CreateAgent", &v1.CreateAgentRequest{Name: "clerk", Tenant: "acme"}, nil)
	admin.must(t, "Revoke", &v1.RevokeRequest{Target: &v1.RevokeRequest_Agent{Agent: "clerk"}, OfTenant: "acme"}, nil)
	admin.must(t, "GetAgent", &v1.GetAgentRequest{Name: "clerk", Tenant: "acme"}, &agent)
	if !agent.GetAgent().GetRevoked() {
		t.Error("the agent is not marked as revoked")
	}
	var page v1.ListRevocationsResponse
	admin.must(t, "ListRevocations", &v1.ListRevocationsRequest{PageSize: 2}, &page)
	if r := page.GetRevocations(); len(r) != 2 || r[0].GetTarget() != "clerk" || r[0].GetTenant() != "acme" || page.GetNextPageToken() == "" {
		t.Errorf("%v", &page)
	}
}

// A rotation shows at once; one at a time; taken back by revoking the key.
func TestKeys(t *testing.T) {
	t.Parallel()
	w := open(t)
	admin := w.operator(t, authz.RoleAdmin)
	var keys v1.ListKeysResponse
	admin.must(t, "ListKeys", &v1.ListKeysRequest{}, &keys)
	if k := keys.GetKeys(); len(k) != 1 || k[0].GetState() != v1.SigningKeyState_SIGNING_KEY_STATE_SIGNING || k[0].RetireTime != nil {
		t.Fatalf("%v", &keys)
	}
	first := keys.GetKeys()[0].GetId()
	stop := func(id string) *v1.RevokeRequest { return &v1.RevokeRequest{Target: &v1.RevokeRequest_Key{Key: id}} }
	admin.refused(t, "Revoke", stop(first), "LAST_KEY")
	admin.refused(t, "Revoke", stop("no-such-key"), "KEY_NOT_FOUND")
	var made v1.RotateKeyResponse
	for range 2 { // again, once the first is taken back
		admin.must(t, "RotateKey", &v1.RotateKeyRequest{}, &made)
		k := made.GetKey()
		if k.GetState() != v1.SigningKeyState_SIGNING_KEY_STATE_PENDING || k.GetId() == first || k.GetAlgorithm() != "EdDSA" || k.GetSignsFrom() == nil {
			t.Errorf("%v", k)
		}
		if w.noted(t, "RotateKey")["key"] != k.GetId() {
			t.Error("the log does not name the key")
		}
		admin.refused(t, "RotateKey", &v1.RotateKeyRequest{}, "KEY_PENDING")
		admin.must(t, "ListKeys", &v1.ListKeysRequest{}, &keys)
		if keys.GetKeys()[0].GetId() != k.GetId() {
			t.Errorf("the newest is not first: %v", &keys)
		}
		admin.must(t, "Revoke", stop(k.GetId()), nil)
	}
}
