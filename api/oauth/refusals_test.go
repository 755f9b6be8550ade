package oauth_test

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/api/oauth"
	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/authz/registry"
	"github.com/whence-db/whence/gateway/gatewaytest"
)

// What is wrong with a request, in OAuth's words and in ours.
func TestExchangeRefusals(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.AddAgent("writer")
	s.AddAgent("idle")
	s.AddAgent("holder")
	s.AddGrant("writer", "ada", func(g *registry.Grant) {
		g.Scope = authz.ScopeSpec{Tables: []whence.TableName{"app.public.articles"}, Subjects: []string{"s1"}, Actions: []authz.Action{authz.MemoryRead, authz.TaskDelegate}}
	})
	s.AddGrant("holder", "ada", func(g *registry.Grant) { g.Proof = true })
	set := func(pairs ...string) func(url.Values) {
		return func(v url.Values) {
			for i := 0; i < len(pairs); i += 2 {
				v.Set(pairs[i], pairs[i+1])
			}
		}
	}
	inner := func(members string) func(url.Values) {
		return set("authorization_details", `[{"type":"whence","purpose":"p",`+members+`}]`)
	}
	scope := func(pairs ...string) func(url.Values) {
		return set(append([]string{"authorization_details", ""}, pairs...)...)
	}
	alone := func(scope string) func(url.Values) {
		return set("authorization_details", "", "client_assertion", "", "client_assertion_type", "", "scope", scope)
	}
	used := s.Assertion("writer")
	first := s.form()
	first.Set("client_assertion", used)
	s.principal(t, s.post(t, oauth.TokenPath, first))
	operator := s.Operator("olga", authz.RoleAdmin)
	elements := strings.Repeat("{},", 9999) + "{}"
	tables := `"app.public.t1"` + strings.Repeat(`,"app.public.t"`, 2000)
	cases := 0
	for _, c := range []struct {
		name   string
		change func(url.Values)
		status int
		code   string
		reason string
	}{
		{"another grant", set("grant_type", "password"), 400, "unsupported_grant_type", "GRANT_TYPE_UNSUPPORTED"},
		{"no grant", set("grant_type", ""), 400, "unsupported_grant_type", "GRANT_TYPE_UNSUPPORTED"},
		{"a parameter twice", func(v url.Values) { v.Add("client_id", "a"); v.Add("client_id", "b") }, 400, "invalid_request", "PARAMETER_REPEATED"},
		{"the same twice", func(v url.Values) { v.Add("subject_token", v.Get("subject_token")) }, 400, "invalid_request", "PARAMETER_REPEATED"},
		{"two resources", func(v url.Values) { v["resource"] = []string{gatewaytest.Name, gatewaytest.Name} }, 400, "invalid_request", "PARAMETER_REPEATED"},
		{"NUL", set("client_id", "a\x00b"), 400, "invalid_request", "PARAMETER_MALFORMED"},
		{"NUL in a name", set("a\x00b", "1"), 400, "invalid_request", "PARAMETER_MALFORMED"},
		{"broken UTF-8", set("purpose", "a\xff"), 400, "invalid_request", "PARAMETER_MALFORMED"},
		{"wants another type", set("requested_token_type", tokenType+"refresh_token"), 400, "invalid_request", "TOKEN_TYPE_UNSUPPORTED"},
		{"for someone else", set("audience", "https://other.test"), 400, "invalid_target", "AUDIENCE_WRONG"},
		{"for a longer name", set("resource", gatewaytest.Name+".evil.test"), 400, "invalid_target", "AUDIENCE_WRONG"},
		{"a fragment", set("resource", gatewaytest.Name+"/#x"), 400, "invalid_target", "AUDIENCE_WRONG"},

		{"no subject token", set("subject_token", ""), 400, "invalid_request", "TOKEN_MISSING"},
		{"no type", set("subject_token_type", ""), 400, "invalid_request", "TOKEN_TYPE_UNSUPPORTED"},
		{"another type", set("subject_token_type", tokenType+"saml2"), 400, "invalid_request", "TOKEN_TYPE_UNSUPPORTED"},
		{"garbage", set("subject_token", "a.b.c"), 400, "invalid_request", "TOKEN_MALFORMED"},
		{"an expired user", set("subject_token", s.Provider.Token(t, map[string]any{"sub": "ada", "iat": s.Now().Add(-time.Hour).Unix(), "exp": s.Now().Add(-time.Minute).Unix()})),
			400, "invalid_request", "TOKEN_EXPIRED"},
		{"an operator's token", set("subject_token", operator), 400, "invalid_request", "WRONG_CREDENTIAL_KIND"},

		{"a secret", set("client_secret", "x"), 401, "invalid_client", "CLIENT_AUTHENTICATION_UNSUPPORTED"},
		{"no agent", set("client_assertion", "", "client_assertion_type", ""), 401, "invalid_client", "AGENT_UNAUTHENTICATED"},
		{"half an assertion", set("client_assertion_type", ""), 400, "invalid_request", "ASSERTION_INCOMPLETE"},
		{"the other half", set("client_assertion", ""), 400, "invalid_request", "ASSERTION_INCOMPLETE"},
		{"another assertion", set("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:saml2-bearer"), 401, "invalid_client", "ASSERTION_TYPE_UNSUPPORTED"},
		{"an assertion twice", set("client_assertion", used), 401, "invalid_client", "ASSERTION_REPLAYED"},
		{"an assertion for another", set("client_assertion", s.AssertionWith("writer", map[string]any{"aud": "https://other.test"})), 401, "invalid_client", "TOKEN_AUDIENCE_WRONG"},
		{"another agent's key", set("client_assertion", s.AssertionWith("writer", map[string]any{"iss": "idle", "sub": "idle"})), 401, "invalid_client", "TOKEN_SIGNATURE_INVALID"},
		{"another agent's name", set("client_id", "idle"), 401, "invalid_client", "AGENT_WRONG"},
		{"both", set("actor_token", s.UserToken("x"), "actor_token_type", tokenType+"jwt"), 400, "invalid_request", "AGENT_AMBIGUOUS"},
		{"an unknown actor", set("client_assertion", "", "client_assertion_type", "", "actor_token", s.UserToken("x"), "actor_token_type", tokenType+"jwt"),
			401, "invalid_client", "AGENT_NOT_FOUND"},
		{"a bad actor", set("client_assertion", "", "client_assertion_type", "", "actor_token", "a.b.c", "actor_token_type", tokenType+"jwt"),
			401, "invalid_client", "TOKEN_MALFORMED"},
		{"an actor without a type", set("actor_token", "x"), 400, "invalid_request", "TOKEN_TYPE_UNSUPPORTED"},
		{"a type without an actor", set("actor_token_type", tokenType+"jwt"), 400, "invalid_request", "TOKEN_MISSING"},

		{"no details", set("authorization_details", ""), 400, "invalid_authorization_details", "DETAILS_MISSING"},
		{"details and scope", set("scope", "memory:read"), 400, "invalid_scope", "SCOPE_AMBIGUOUS"},
		{"not a list", set("authorization_details", `{"type":"whence"}`), 400, "invalid_authorization_details", "DETAILS_MALFORMED"},
		{"not JSON", set("authorization_details", `[`), 400, "invalid_authorization_details", "DETAILS_MALFORMED"},
		{"null", set("authorization_details", `null`), 400, "invalid_authorization_details", "DETAILS_MALFORMED"},
		{"a null element", set("authorization_details", `[null]`), 400, "invalid_authorization_details", "DETAILS_MALFORMED"},
		{"no element", set("authorization_details", `[]`), 400, "invalid_authorization_details", "DETAILS_MALFORMED"},
		{"two elements", set("authorization_details", `[{"type":"whence"},{"type":"whence"}]`), 400, "invalid_authorization_details", "DETAILS_MALFORMED"},
		{"10,000 elements", set("authorization_details", "["+elements+"]"), 400, "invalid_authorization_details", "DETAILS_MALFORMED"},
		{"another type of details", set("authorization_details", `[{"type":"bank"}]`), 400, "invalid_authorization_details", "DETAILS_MALFORMED"},
		{"no type of details", set("authorization_details", `[{"purpose":"p"}]`), 400, "invalid_authorization_details", "DETAILS_MALFORMED"},
		{"a member twice", inner(`"allTables":false,"alltables":true`), 400, "invalid_authorization_details", "DETAILS_MALFORMED"},
		{"an unknown member", inner(`"tabels":[]`), 400, "invalid_authorization_details", "DETAILS_MALFORMED"},
		{"an unknown budget", inner(`"budget":{"tokens":1}`), 400, "invalid_authorization_details", "DETAILS_MALFORMED"},
		{"a wrong type", inner(`"tables":"all"`), 400, "invalid_authorization_details", "DETAILS_MALFORMED"},
		{"text after it", set("authorization_details", `[{"type":"whence","purpose":"p"}] x`), 400, "invalid_authorization_details", "DETAILS_MALFORMED"},
		{"deep", inner(`"filter":` + strings.Repeat(`{"a":`, 5000) + "1" + strings.Repeat("}", 5000)), 400, "invalid_authorization_details", "DETAILS_MALFORMED"},
		{"more than 64 KiB", inner(`"subjects":["` + strings.Repeat("x", 64<<10) + `"]`), 400, "invalid_authorization_details", "DETAILS_TOO_LARGE"},
		{"1 MB", inner(`"subjects":["` + strings.Repeat("x", 1_000_000) + `"]`), 400, "invalid_authorization_details", "DETAILS_TOO_LARGE"},
		{"2,000 tables", inner(`"tables":[` + tables + `]`), 400, "invalid_authorization_details", "SCOPE_INVALID"},
		{"an unknown action", inner(`"actions":["root"]`), 400, "invalid_authorization_details", "SCOPE_INVALID"},
		{"a short table name", inner(`"tables":["articles"]`), 400, "invalid_authorization_details", "SCOPE_INVALID"},
		{"NUL in JSON", inner(`"subjects":["a\u0000b"]`), 400, "invalid_authorization_details", "SCOPE_INVALID"},
		{"no purpose", set("authorization_details", `[{"type":"whence"}]`), 400, "invalid_authorization_details", "PURPOSE_INVALID"},
		{"no budget", inner(`"budget":{"calls":0}`), 400, "invalid_authorization_details", "BUDGET_INVALID"},
		{"less than no budget", inner(`"budget":{"calls":-1}`), 400, "invalid_authorization_details", "BUDGET_INVALID"},
		{"a long life", inner(`"lifetime":"25h"`), 400, "invalid_authorization_details", "LIFETIME_INVALID"},
		{"no life", inner(`"lifetime":"0s"`), 400, "invalid_authorization_details", "LIFETIME_INVALID"},
		{"a life in words", inner(`"lifetime":"a day"`), 400, "invalid_authorization_details", "LIFETIME_INVALID"},

		{"an unknown scope", scope("scope", "all", "purpose", "p"), 400, "invalid_scope", "SCOPE_INVALID"},
		{"two spaces", scope("scope", "memory:read  memory:write", "purpose", "p"), 400, "invalid_scope", "SCOPE_INVALID"},
		{"an operator's, and more", scope("scope", "operator memory:read", "purpose", "p"), 400, "invalid_scope", "SCOPE_INVALID"},
		{"a long scope", scope("scope", strings.Repeat("memory:read ", 1000)+"memory:read", "purpose", "p"), 400, "invalid_scope", "SCOPE_INVALID"},
		{"a scope for nothing", scope("scope", "memory:read"), 400, "invalid_request", "PURPOSE_INVALID"},
		{"a scope that is not granted", scope("scope", "memory:write", "purpose", "p"), 400, "invalid_scope", "SCOPE_NOT_GRANTED"},
		{"an agent who operates", scope("scope", "operator"), 400, "invalid_request", "AGENT_UNEXPECTED"},
		{"who is no operator", alone("operator"), 400, "access_denied", "ROLE_MISSING"},

		{"no grant for it", set("client_assertion", s.Assertion("idle")), 400, "unauthorized_client", "GRANT_MISSING"},
		{"no grant for them", set("subject_token", s.UserToken("bob")), 400, "unauthorized_client", "GRANT_MISSING"},
		{"not granted", inner(`"tables":["app.public.other"],"subjects":["s1"],"actions":["memory:read"]`), 400, "invalid_authorization_details", "SCOPE_NOT_GRANTED"},
		{"no proof", set("client_assertion", s.Assertion("holder")), 400, "invalid_dpop_proof", "PROOF_REQUIRED"},
	} {
		cases++
		form := s.form()
		c.change(form)
		began := time.Now()
		got := s.post(t, oauth.TokenPath, form)
		if got.status != c.status || got.doc["error"] != c.code || got.doc["reason"] != c.reason {
			t.Errorf("%s: %d %v, want %d %s %s", c.name, got.status, got.doc, c.status, c.code, c.reason)
		}
		checkDescription(t, c.name, got, form)
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("%s: took %s", c.name, took)
		}
		if challenged := got.header.Get("WWW-Authenticate") != ""; challenged != (c.status == 401) {
			t.Errorf("%s: challenged: %v", c.name, challenged)
		}
	}
	if n := s.recorded(t, "oauth/token", "REFUSED", ""); n != cases {
		t.Errorf("%d refusals recorded of %d", n, cases)
	}
	if n := s.recorded(t, "oauth/token", "FAILED", ""); n != 0 {
		t.Errorf("%d failures", n)
	}
}

// checkDescription tells whether a description is one, and keeps secrets.
func checkDescription(t *testing.T, name string, got reply, form url.Values) {
	t.Helper()
	said := got.text("error_description")
	if said == "" || len(said) > 2100 || strings.ContainsFunc(said, func(r rune) bool { return r < 0x20 || r > 0x7e || r == '"' || r == '\\' }) {
		t.Errorf("%s: error_description %q", name, said)
	}
	for _, secret := range []string{"subject_token", "client_assertion", "actor_token", "token"} {
		if token := form.Get(secret); len(token) > 1 && strings.Contains(said, token) {
			t.Errorf("%s: the description repeats the %s", name, secret)
		}
	}
}

// An agent can ask for all that is missing at once.
func TestAllThatIsMissing(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.AddAgent("writer")
	s.AddGrant("writer", "ada", func(g *registry.Grant) {
		g.Scope = authz.ScopeSpec{Tables: []whence.TableName{"app.public.a"}, Subjects: []string{"s1"}, Actions: []authz.Action{authz.MemoryRead}}
	})
	form := s.form()
	form.Set("authorization_details", `[{"type":"whence","tables":["app.public.b"],"subjects":["s2"],"actions":["memory:write"],"purpose":"p"}]`)
	got := s.post(t, oauth.TokenPath, form)
	missing, _ := got.doc["metadata"].(map[string]any)
	for part, what := range map[string]string{"tables": "app.public.b", "subjects": "s2", "actions": "memory:write"} {
		if said, _ := missing[part].(string); !strings.Contains(said, what) || !strings.Contains(said, "the grant") {
			t.Errorf("%s: %q in %v", part, said, got.doc)
		}
	}
}

// What is refused for its form comes with an example that works when it is copied.
func TestExampleWorks(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.AddAgent("writer")
	s.AddGrant("writer", "ada")
	form := s.form()
	form.Set("authorization_details", "{")
	got := s.post(t, oauth.TokenPath, form)
	metadata, _ := got.doc["metadata"].(map[string]any)
	example, _ := metadata["example"].(string)
	if got.text("reason") != "DETAILS_MALFORMED" || example == "" || !strings.Contains(got.text("error_description"), "metadata.example") {
		t.Fatalf("%v", got.doc)
	}
	form = s.form()
	form.Set("authorization_details", example)
	if got := s.post(t, oauth.TokenPath, form); got.status != 200 {
		t.Errorf("the example is refused: %v", got.doc)
	}
}

// A scope without what it is for is told the parameter that says so.
func TestPurposeIsAParameter(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.AddAgent("writer")
	form := s.form()
	form.Del("authorization_details")
	form.Set("scope", "memory:read")
	got := s.post(t, oauth.TokenPath, form)
	if got.text("reason") != "PURPOSE_INVALID" || !strings.Contains(got.text("error_description"), "parameter purpose") {
		t.Errorf("%v", got.doc)
	}
}

// Proofs of possession, where the token that is exchanged is bound to a key.
func TestProofRefusals(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.AddAgent("writer")
	s.AddGrant("writer", "ada")
	key, url := s.NewKey(), gatewaytest.Name+oauth.TokenPath
	first := s.Proof(key, http.MethodPost, url, "")
	bound := s.post(t, oauth.TokenPath, s.form(), "DPoP", first)
	s.principal(t, bound)
	for _, c := range []struct {
		name, proof string
		renew       bool
		reason      string
	}{
		{"used before", first, false, "PROOF_REPLAYED"},
		{"garbage", "x", false, "PROOF_INVALID"},
		{"another method", s.Proof(key, http.MethodGet, url, ""), false, "PROOF_INVALID"},
		{"another path", s.Proof(key, http.MethodPost, gatewaytest.Name+oauth.RevocationPath, ""), false, "PROOF_INVALID"},
		{"a bound task without", "", true, "PROOF_KEY_WRONG"},
		{"a bound task with another key", s.Proof(s.NewKey(), http.MethodPost, url, ""), true, "PROOF_KEY_WRONG"},
		{"a bound task with its key", s.Proof(key, http.MethodPost, url, ""), true, ""},
	} {
		form := s.form()
		if c.renew {
			form.Del("authorization_details")
			form.Set("subject_token", bound.text("access_token"))
		}
		header := []string{"DPoP", c.proof}
		if c.proof == "" {
			header = nil
		}
		got := s.post(t, oauth.TokenPath, form, header...)
		if got.text("reason") != c.reason || (c.reason == "") != (got.status == 200) || c.reason != "" && (got.status != 400 || got.text("error") != "invalid_dpop_proof") {
			t.Errorf("%s: %d %v", c.name, got.status, got.doc)
		}
	}
	twice := http.Header{"Content-Type": {formType}, "Dpop": {s.Proof(key, http.MethodPost, url, ""), s.Proof(key, http.MethodPost, url, "")}}
	if got := s.do(t, http.MethodPost, oauth.TokenPath, s.form().Encode(), twice); got.status != 400 || got.text("error") != "invalid_dpop_proof" {
		t.Errorf("two proofs: %d %v", got.status, got.doc)
	}
}
