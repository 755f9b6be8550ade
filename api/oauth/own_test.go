package oauth_test

import (
	"context"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/whence-db/whence/api/oauth"
	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/gateway"
	"github.com/whence-db/whence/gateway/gatewaytest"
)

// holder is a task whose token is bound to a key.
func (s *site) holder(t *testing.T) (token string, proof func(path string) string) {
	t.Helper()
	key := s.NewKey()
	form := s.form()
	form.Set("authorization_details", `[{"type":"whence","allTables":true,"allSubjects":true,"actions":["memory:read","task:delegate"],"purpose":"p"}]`)
	got := s.post(t, oauth.TokenPath, form, "DPoP", s.Proof(key, http.MethodPost, gatewaytest.Name+oauth.TokenPath, ""))
	s.principal(t, got)
	token = got.text("access_token")
	return token, func(path string) string { return s.Proof(key, http.MethodPost, gatewaytest.Name+path, token) }
}

func TestRevoke(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.AddAgent("writer")
	s.AddGrant("writer", "ada")
	old := s.Task("writer", "ada")
	s.Advance(10 * time.Minute)
	task := s.Task("writer", "ada")
	bound, _ := s.holder(t)
	for _, c := range []struct {
		name, token string
		reason      string // on record
	}{
		{"a task's", task.Token, ""},
		{"the same again", task.Token, "TOKEN_REVOKED"},
		{"an operator's", s.Operator("olga", authz.RoleAdmin), ""},
		{"a user's", s.User("ada"), ""},
		{"a bound one, without a proof", bound, ""},
		{"an expired one", old.Token, "TOKEN_EXPIRED"},
		{"somebody else's", s.UserToken("ada"), "TOKEN_TYPE_WRONG"},
		{"garbage", "x", "TOKEN_MALFORMED"},
		{"1 MB", strings.Repeat("x", 1_000_000), "TOKEN_MALFORMED"},
	} {
		decision := "REFUSED"
		if c.reason == "" {
			decision = "ALLOWED"
			if _, err := s.Verifier.Verify(t.Context(), c.token); err != nil {
				t.Fatalf("%s, before: %v", c.name, err)
			}
		}
		before := s.recorded(t, "oauth/revoke", decision, c.reason)
		got := s.post(t, oauth.RevocationPath, url.Values{"token": {c.token}, "token_type_hint": {"refresh_token"}, "client_id": {"x"}}, "Authorization", "Basic YTpi")
		if got.status != http.StatusOK || got.doc != nil {
			t.Errorf("%s: %d %v", c.name, got.status, got.doc)
		}
		if n := s.recorded(t, "oauth/revoke", decision, c.reason); n != before+1 {
			t.Errorf("%s: not on record as %s %s", c.name, decision, c.reason)
		}
		if _, err := s.Verifier.Verify(t.Context(), c.token); err == nil {
			t.Errorf("%s is still good", c.name)
		}
	}
	// The task goes on; its agent comes for another token.
	var state, user string
	err := s.Pool.QueryRow(t.Context(), `select t.state, e.user_id from whence.tasks t join whence.entries e on e.task_id = t.id
		where t.id = $1 and e.call = 'oauth/revoke'`, task.Task).Scan(&state, &user)
	if err != nil || state != string(gateway.TaskActive) || user != "ada" {
		t.Errorf("state %q, user %q, %v", state, user, err)
	}
	form := url.Values{"token": {""}}
	if got := s.post(t, oauth.RevocationPath, form); got.status != 400 || got.text("error") != "invalid_request" || got.text("reason") != "TOKEN_MISSING" {
		t.Errorf("nothing: %d %v", got.status, got.doc)
	}
}

func TestWhoMayIntrospect(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.AddAgent("writer")
	s.AddGrant("writer", "ada")
	task, other := s.Task("writer", "ada"), s.Task("writer", "ada")
	bound, proof := s.holder(t)
	viewer, user := s.Operator("vera", authz.RoleViewer), s.User("ada")
	for _, c := range []struct {
		name, authorization, proof, token string
		status                            int
		reason, challenge                 string
	}{
		{"a viewer", "Bearer " + viewer, "", task.Token, 200, "", ""},
		{"a viewer, of nothing", "bearer  " + viewer, "", "x", 200, "", ""},
		{"the task itself", "Bearer " + task.Token, "", task.Token, 200, "", ""},
		{"a user themselves", "Bearer " + user, "", user, 200, "", ""},
		{"a bound one itself", "DPoP " + bound, proof(oauth.IntrospectionPath), bound, 200, "", ""},
		{"a bound one without a proof", "DPoP " + bound, "", bound, 401, "PROOF_MISSING", `DPoP error="invalid_dpop_proof"`},
		{"a bound one as a bearer", "Bearer " + bound, "", bound, 401, "PROOF_MISSING", `DPoP error="invalid_dpop_proof"`},
		{"a proof for elsewhere", "DPoP " + bound, proof(oauth.RevocationPath), bound, 401, "PROOF_INVALID", `DPoP error="invalid_dpop_proof"`},
		{"another task", "Bearer " + other.Token, "", task.Token, 403, "WRONG_CREDENTIAL_KIND", ""},
		{"a user, of their task", "Bearer " + user, "", task.Token, 403, "WRONG_CREDENTIAL_KIND", ""},
		{"nobody", "", "", task.Token, 401, "TOKEN_MISSING", `Bearer resource_metadata="https://whence.test/.well-known/oauth-protected-resource"`},
		{"a password", "Basic YTpi", "", task.Token, 401, "TOKEN_MISSING", "Bearer resource_metadata="},
		{"garbage", "Bearer x", "", "x", 401, "TOKEN_MALFORMED", `Bearer error="invalid_token"`},
		{"a foreign token", "Bearer " + s.UserToken("olga", "admins"), "", task.Token, 401, "TOKEN_TYPE_WRONG", `Bearer error="invalid_token"`},
		{"no token", "Bearer " + viewer, "", "", 400, "TOKEN_MISSING", ""},
	} {
		form, header := url.Values{"token": {c.token}}, []string{}
		if c.authorization != "" {
			header = append(header, "Authorization", c.authorization)
		}
		if c.proof != "" {
			header = append(header, "DPoP", c.proof)
		}
		got := s.post(t, oauth.IntrospectionPath, form, header...)
		challenge := got.header.Get("WWW-Authenticate")
		if got.status != c.status || got.text("reason") != c.reason || !strings.HasPrefix(challenge, c.challenge) || (c.challenge == "") != (challenge == "") {
			t.Errorf("%s: %d %v, challenge %q", c.name, got.status, got.doc, challenge)
		}
		if _, told := got.doc["active"]; told != (c.status == 200) {
			t.Errorf("%s: told %v", c.name, got.doc)
		}
		if c.status != 200 {
			checkDescription(t, c.name, got, form)
		}
	}
	if allowed, refused := s.recorded(t, "oauth/introspect", "ALLOWED", ""), s.recorded(t, "oauth/introspect", "REFUSED", ""); allowed != 5 || refused != 10 {
		t.Errorf("%d allowed and %d refused on record", allowed, refused)
	}
}

func TestIntrospection(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.AddAgent("writer")
	s.AddAgent("reader")
	s.AddGrant("writer", "ada")
	viewer := s.Operator("vera", authz.RoleViewer)
	ask := func(token string) map[string]any {
		t.Helper()
		got := s.post(t, oauth.IntrospectionPath, url.Values{"token": {token}, "token_type_hint": {"x"}}, "Authorization", "Bearer "+viewer)
		if got.status != http.StatusOK {
			t.Fatalf("%d %v", got.status, got.doc)
		}
		return got.doc
	}
	root := s.Task("writer", "ada")
	form := s.form()
	form.Set("subject_token", root.Token)
	form.Set("client_assertion", s.Assertion("reader"))
	form.Set("authorization_details", `[{"type":"whence","allTables":true,"subjects":["s1"],"actions":["memory:read"],"purpose":"p"}]`)
	below := s.post(t, oauth.TokenPath, form)
	child := s.principal(t, below)
	want := map[string]any{"active": true, "iss": gatewaytest.Name, "aud": gatewaytest.Name, "sub": "ada", "client_id": "reader", "tenant": "default",
		"act": map[string]any{"sub": "reader", "act": map[string]any{"sub": "writer"}}, "token_type": "Bearer", "scope": "memory:read",
		"exp": float64(child.Expires.Unix()), "iat": float64(child.IssuedAt.Unix()), "jti": child.TokenID,
		"authorization_details": []any{map[string]any{"type": "whence", "allTables": true, "subjects": []any{"s1"}, "actions": []any{"memory:read"}, "tier": "READ"}},
		"task":                  map[string]any{"id": child.Task.String(), "root": root.Task.String(), "parent": root.Task.String(), "depth": 1.0}}
	if diff := cmp.Diff(want, ask(below.text("access_token"))); diff != "" {
		t.Errorf("a task's (-want +got):\n%s", diff)
	}
	bound, _ := s.holder(t)
	got := ask(bound)
	if cnf, _ := got["cnf"].(map[string]any); got["token_type"] != "DPoP" || cnf["jkt"] == "" || got["active"] != true {
		t.Errorf("a bound one: %v", got)
	}
	for token, role := range map[string]string{s.Operator("olga", authz.RoleAdmin): "admin", s.User("ada"): "user"} {
		got := ask(token)
		_, details := got["authorization_details"]
		if got["role"] != role || got["client_id"] != got["sub"] || got["task"] != nil || got["act"] != nil || details != (role == "user") {
			t.Errorf("of role %s: %v", role, got)
		}
	}
	s.checkInactive(t, ask, root.Token, below.text("access_token"), bound)
}

// checkInactive ends tokens, one way after the other; each is then told nothing of.
func (s *site) checkInactive(t *testing.T, ask func(string) map[string]any, root, below, other string) {
	t.Helper()
	self := func(token string) reply {
		return s.post(t, oauth.IntrospectionPath, url.Values{"token": {token}}, "Authorization", "Bearer "+token)
	}
	inactive := func(name, token string) {
		t.Helper()
		if diff := cmp.Diff(map[string]any{"active": false}, ask(token)); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	end := gateway.Call{Name: "end", Presented: authz.Presented{Token: root}}
	if err := s.Gateway.Do(t.Context(), end, func(ctx context.Context, g *gateway.Session) error {
		return s.Gateway.EndTask(ctx, g, false, func(gateway.Task, int64, []uuid.UUID) {})
	}); err != nil {
		t.Fatal(err)
	}
	inactive("an ended task", root)
	inactive("a task below an ended one", below)
	if got := self(root); got.status != 200 || got.doc["active"] != false {
		t.Errorf("the ended task itself: %d %v", got.status, got.doc)
	}
	s.post(t, oauth.RevocationPath, url.Values{"token": {other}})
	inactive("a revoked token", other)
	inactive("a foreign token", s.UserToken("ada"))
	inactive("garbage", "a.b.c")
	short := s.form()
	short.Set("client_assertion", s.Assertion("writer"))
	short.Set("authorization_details", `[{"type":"whence","allTables":true,"allSubjects":true,"actions":["memory:read"],"purpose":"p","lifetime":"2s"}]`)
	brief := s.post(t, oauth.TokenPath, short)
	p := s.principal(t, brief)
	// The token itself is taken for a few seconds more: clocks differ. The task is not.
	s.Advance(p.Expires.Sub(s.Now()) + 2*time.Second)
	if _, err := s.Verifier.Verify(t.Context(), brief.text("access_token")); err != nil {
		t.Errorf("within the clocks' difference: %v", err)
	}
	inactive("a task past its deadline", brief.text("access_token"))
	s.Advance(time.Minute)
	inactive("an expired token", brief.text("access_token"))
}
