package oauth_test

import (
	"net/url"
	"testing"

	"github.com/whence-db/whence/api/oauth"
	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/authz/federation"
	"github.com/whence-db/whence/authz/registry"
)

// What stands in the way of a request that is as it should be.
func TestWhatStandsInTheWay(t *testing.T) {
	t.Parallel()
	s := start(t)
	for _, agent := range []string{"writer", "reader", "stopped"} {
		s.AddAgent(agent)
		s.AddGrant(agent, "ada", func(g *registry.Grant) { g.Calls, g.MaxDepth = 10, 1 })
	}
	s.AddGrant("writer", "eve")
	away := s.AddProvider("away", func(i *federation.Issuer) { i.JWKSURL = "http://127.0.0.1:1/keys" })
	task, revoked, theirs := s.Task("writer", "ada"), s.Task("writer", "ada"), s.Task("stopped", "ada")
	again := func(token, agent string) func(url.Values) {
		return func(v url.Values) {
			v.Set("subject_token", token)
			v.Set("client_assertion", s.Assertion(agent))
			v.Del("authorization_details")
		}
	}
	below := func(token, members string) func(url.Values) {
		return func(v url.Values) {
			again(token, "reader")(v)
			v.Set("authorization_details", `[{"type":"whence","allTables":true,"subjects":["s1"],"purpose":"p",`+members+`}]`)
		}
	}
	form := s.form()
	below(task.Token, `"actions":["memory:read","task:delegate"]`)(form)
	child := s.post(t, oauth.TokenPath, form)
	form = s.form()
	below(s.Task("writer", "ada").Token, `"actions":["memory:read"]`)(form)
	idle := s.post(t, oauth.TokenPath, form)
	s.principal(t, child)
	s.principal(t, idle)
	s.Revoke(authz.RevokedTask, "", revoked.Task.String())
	s.Revoke(authz.RevokedAgent, authz.DefaultTenant, "stopped")
	s.Revoke(authz.RevokedUser, authz.DefaultTenant, "eve")
	for _, c := range []struct {
		name   string
		change func(url.Values)
		status int
		code   string
		reason string
	}{
		{"another's task", again(task.Token, "reader"), 400, "unauthorized_client", "ACTOR_WRONG"},
		{"more calls than there are", below(task.Token, `"actions":["memory:read"],"budget":{"calls":11}`), 400, "invalid_authorization_details", "BUDGET_EXHAUSTED"},
		{"more time than there is", below(task.Token, `"actions":["memory:read"],"lifetime":"2h"`), 400, "invalid_authorization_details", "LIFETIME_INVALID"},
		{"more than the task may", below(child.text("access_token"), `"actions":["memory:write"]`), 400, "invalid_authorization_details", "SCOPE_WIDENED"},
		{"too deep", below(child.text("access_token"), `"actions":["memory:read"]`), 400, "access_denied", "DEPTH_EXCEEDED"},
		{"a task that may not delegate", below(idle.text("access_token"), `"actions":["memory:read"]`), 400, "access_denied", "ACTION_OUT_OF_SCOPE"},
		{"a revoked task", again(revoked.Token, "writer"), 400, "invalid_request", "TASK_REVOKED"},
		{"the task of a revoked agent", again(theirs.Token, "stopped"), 400, "unauthorized_client", "AGENT_REVOKED"},
		{"a revoked agent", func(v url.Values) { v.Set("client_assertion", s.Assertion("stopped")) }, 400, "unauthorized_client", "AGENT_REVOKED"},
		{"a revoked user", func(v url.Values) { v.Set("subject_token", s.UserToken("eve")) }, 400, "invalid_request", "USER_REVOKED"},
		{"an issuer that does not answer", func(v url.Values) { v.Set("subject_token", away.Token(t, map[string]any{"sub": "ada"})) },
			503, "temporarily_unavailable", "ISSUER_UNREACHABLE"},
	} {
		form := s.form()
		c.change(form)
		got := s.post(t, oauth.TokenPath, form)
		if got.status != c.status || got.doc["error"] != c.code || got.doc["reason"] != c.reason {
			t.Errorf("%s: %d %v, want %d %s %s", c.name, got.status, got.doc, c.status, c.code, c.reason)
		}
		if again := got.header.Get("Retry-After") != ""; again != (c.status == 503) {
			t.Errorf("%s: Retry-After %q", c.name, got.header.Get("Retry-After"))
		}
		checkDescription(t, c.name, got, form)
	}
}
