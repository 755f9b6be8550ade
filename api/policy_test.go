package api

import (
	"strings"
	"testing"

	"github.com/whence-db/whence/authz"
	v1 "github.com/whence-db/whence/proto/gen/whence/v1"
)

// Of all calls, those that the contract lets users make are open to them, and no
// other; and each of those that writes is closed to operators below admin.
func TestWhoSettles(t *testing.T) {
	t.Parallel()
	w := open(t)
	ann := w.user(t, "acme", "ann", reading)
	const id = "01980000-0000-7000-8000-000000000000"
	users := map[string]bool{"ListTasks": false, "ListGrants": false, "GetGrant": false, // true: it writes
		"CreateGrant": true, "UpdateGrant": true, "DeleteGrant": true, "Revoke": true}
	found := 0
	for procedure, r := range policy {
		if r.role == "" {
			continue // agents'
		}
		_, name, _ := strings.Cut(strings.TrimPrefix(procedure, "/"), "/")
		if _, of := users[name]; of {
			found++
			continue
		}
		if strings.HasPrefix(name, "Watch") || name == "Export" {
			continue // streams are opened by other means, through the same door
		}
		if f := ann.call(t, procedure, nil, nil); f.reason != "ROLE_INSUFFICIENT" {
			t.Errorf("a user may call %s: %+v", procedure, f)
		}
	}
	methods := v1.File_whence_v1_admin_proto.Services().ByName("AdminService").Methods()
	for i := range methods.Len() {
		if _, ok := policy[adminService+string(methods.Get(i).Name())]; !ok {
			t.Errorf("%s is in no policy", methods.Get(i).Name())
		}
	}
	if found != len(users) {
		t.Errorf("%d of %d calls of users are in the policy", found, len(users))
	}

	w.operator(t, authz.RoleAdmin).must(t, "CreateAgent", &v1.CreateAgentRequest{Name: "clerk"}, nil)
	for _, role := range []authz.Role{authz.RoleViewer, authz.RoleApprover} {
		o := w.operator(t, role)
		o.refused(t, "CreateGrant", &v1.CreateGrantRequest{Agent: "clerk", User: "olga", Scope: readingMessage()}, "ROLE_INSUFFICIENT")
		o.refused(t, "UpdateGrant", &v1.UpdateGrantRequest{Id: id}, "ROLE_INSUFFICIENT")
		o.refused(t, "DeleteGrant", &v1.DeleteGrantRequest{Id: id}, "ROLE_INSUFFICIENT")
		o.refused(t, "Revoke", &v1.RevokeRequest{Target: &v1.RevokeRequest_Task{Task: id}}, "ROLE_INSUFFICIENT")
		o.refused(t, "Revoke", &v1.RevokeRequest{Target: &v1.RevokeRequest_Agent{Agent: "clerk"}}, "ROLE_INSUFFICIENT")
		o.refused(t, "Reinstate", &v1.ReinstateRequest{Target: &v1.ReinstateRequest_Agent{Agent: "clerk"}}, "ROLE_INSUFFICIENT")
		o.refused(t, "CreateAgent", &v1.CreateAgentRequest{Name: "other"}, "ROLE_INSUFFICIENT")
		o.refused(t, "RotateKey", &v1.RotateKeyRequest{}, "ROLE_INSUFFICIENT")
		o.must(t, "ListGrants", &v1.ListGrantsRequest{}, nil)
		o.must(t, "ListTasks", &v1.ListTasksRequest{}, nil)
		o.refused(t, "GetGrant", &v1.GetGrantRequest{Id: id}, "GRANT_NOT_FOUND")
	}
	var grants v1.ListGrantsResponse
	var stopped v1.ListRevocationsResponse
	viewer := w.operator(t, authz.RoleViewer)
	viewer.must(t, "ListGrants", &v1.ListGrantsRequest{}, &grants)
	viewer.must(t, "ListRevocations", &v1.ListRevocationsRequest{}, &stopped)
	if len(grants.GetGrants())+len(stopped.GetRevocations()) != 0 {
		t.Errorf("a refused call wrote: %v %v", &grants, &stopped)
	}
}
