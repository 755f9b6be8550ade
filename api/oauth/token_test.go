package oauth_test

import (
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/api/oauth"
	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/authz/registry"
	"github.com/whence-db/whence/gateway/gatewaytest"
)

// principal is whom the token of an answer speaks for.
func (s *site) principal(t *testing.T, got reply) *authz.Principal {
	t.Helper()
	if got.status != http.StatusOK {
		t.Fatalf("%d %v", got.status, got.doc)
	}
	p, err := s.Verifier.Verify(t.Context(), got.text("access_token"))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestExchange(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.AddAgent("writer")
	s.AddGrant("writer", "ada")
	got := s.post(t, oauth.TokenPath, s.form())
	p := s.principal(t, got)
	if p.User != "ada" || p.Agent != "writer" || p.Task.String() != got.doc["task_id"] {
		t.Errorf("token is for %+v, answer says task %v", p, got.doc["task_id"])
	}
	want := authz.ScopeSpec{Type: "whence", Tables: []whence.TableName{"app.public.articles"}, Subjects: []string{"s1"},
		Filter: map[string]string{"lang": "en"}, Actions: []authz.Action{authz.MemoryRead}, Tier: authz.TierRead}
	if diff := cmp.Diff(want, p.Scope.Spec()); diff != "" {
		t.Errorf("scope (-want +got):\n%s", diff)
	}
	if in, _ := got.doc["expires_in"].(float64); in < 80 || in > 90 {
		t.Errorf("expires_in %v", got.doc["expires_in"])
	}
	for _, name := range []string{"access_token", "task_id", "expires_in"} {
		delete(got.doc, name)
	}
	wantRest := map[string]any{"issued_token_type": tokenType + "access_token", "token_type": "Bearer", "scope": "memory:read",
		"authorization_details": []any{map[string]any{"type": "whence", "tables": []any{"app.public.articles"}, "subjects": []any{"s1"},
			"filter": map[string]any{"lang": "en"}, "actions": []any{"memory:read"}, "tier": "READ",
			"budget": map[string]any{"calls": 7.0}, "purpose": `find "it"`, "lifetime": "1m30s"}}}
	if diff := cmp.Diff(wantRest, got.doc); diff != "" {
		t.Errorf("answer (-want +got):\n%s", diff)
	}
}

// Every way of asking that there is.
func TestWaysToAsk(t *testing.T) {
	t.Parallel()
	s := start(t)
	platform := s.AddProvider("platform")
	s.AddAgent("writer")
	s.AddAgent("reader")
	s.AddAgent("vouched", func(a *registry.Agent) { a.JWKS, a.Issuer, a.Subject = nil, "platform", "workload-7" })
	s.AddGrant("writer", "ada")
	s.AddGrant("vouched", "ada")
	task := s.Task("writer", "ada")
	key := s.NewKey()
	set := func(pairs ...string) func(url.Values) {
		return func(v url.Values) {
			for i := 0; i < len(pairs); i += 2 {
				v.Set(pairs[i], pairs[i+1])
			}
		}
	}
	mine := set("subject_token", task.Token, "subject_token_type", tokenType+"access_token")
	alone := func(scope string) func(url.Values) {
		return func(v url.Values) {
			for _, name := range []string{"client_assertion", "client_assertion_type", "authorization_details"} {
				v.Del(name)
			}
			v.Set("scope", scope)
			v.Set("subject_token", s.UserToken("olga", "viewers", "admins"))
		}
	}
	for _, c := range []struct {
		name   string
		change []func(url.Values)
		proof  bool
		typ    string
		scope  string
		role   authz.Role
		actors []string
		more   func(*authz.Principal) bool
	}{
		{name: "a JWT, everything said", change: []func(url.Values){set("subject_token_type", tokenType+"jwt", "client_id", "writer",
			"resource", gatewaytest.Name+"/mcp", "audience", gatewaytest.Name, "requested_token_type", tokenType+"access_token", "unknown", "x")},
			scope: "memory:read", actors: []string{"writer"}},
		{name: "an assertion for the endpoint", change: []func(url.Values){set("client_assertion", s.AssertionWith("writer",
			map[string]any{"aud": gatewaytest.Name + "/oauth/token"}))}, scope: "memory:read", actors: []string{"writer"}},
		{name: "actions", change: []func(url.Values){set("authorization_details", "", "scope", "memory:read memory:write", "purpose", "a test")},
			scope: "memory:read memory:write", actors: []string{"writer"},
			more: func(p *authz.Principal) bool { all, _, _ := p.Scope.Tables(); return all }},
		{name: "with a proof", proof: true, typ: "DPoP", scope: "memory:read", actors: []string{"writer"},
			more: func(p *authz.Principal) bool { return p.Thumbprint != "" }},
		{name: "an agent that is vouched for", change: []func(url.Values){set("client_assertion", "", "client_assertion_type", "",
			"actor_token", platform.Token(t, map[string]any{"sub": "workload-7"}), "actor_token_type", tokenType+"jwt")},
			scope: "memory:read", actors: []string{"vouched"}},
		{name: "the same task", change: []func(url.Values){mine, set("authorization_details", "")},
			scope: "action:execute memory:read memory:write task:delegate", actors: []string{"writer"},
			more: func(p *authz.Principal) bool { return p.Task == task.Task }},
		{name: "a task below", change: []func(url.Values){mine, set("client_assertion", s.Assertion("reader"))},
			scope: "memory:read", actors: []string{"reader", "writer"},
			more: func(p *authz.Principal) bool { return p.Parent == task.Task }},
		{name: "an operator", change: []func(url.Values){alone("operator")}, scope: "operator", role: authz.RoleAdmin},
		{name: "a user", change: []func(url.Values){alone("user")}, scope: "user", role: authz.RoleUser},
	} {
		form := s.form()
		for _, f := range c.change {
			f(form)
		}
		var header []string
		if c.proof {
			header = []string{"DPoP", s.Proof(key, http.MethodPost, gatewaytest.Name+"/oauth/token", "")}
		}
		if c.typ == "" {
			c.typ = "Bearer"
		}
		got := s.post(t, oauth.TokenPath, form, header...)
		if got.status != http.StatusOK {
			t.Errorf("%s: %d %v", c.name, got.status, got.doc)
			continue
		}
		p := s.principal(t, got)
		words := strings.Fields(got.text("scope"))
		slices.Sort(words)
		if got.text("token_type") != c.typ || strings.Join(words, " ") != c.scope || p.Role != c.role || !slices.Equal(p.Actors, c.actors) {
			t.Errorf("%s: %v is for %+v", c.name, got.doc, p)
		}
		if c.more != nil && !c.more(p) {
			t.Errorf("%s: %+v", c.name, p)
		}
		_, tasks := got.doc["task_id"]
		_, details := got.doc["authorization_details"]
		if isAgent := c.role == ""; tasks != isAgent || details != isAgent || (got.text("role") != "") != c.role.Operates() {
			t.Errorf("%s: %v", c.name, got.doc)
		}
	}
}
