package oauth_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/api/oauth"
	"github.com/whence-db/whence/authz"
)

const (
	issuerURL = "https://whence.test"
	grant     = "urn:ietf:params:oauth:grant-type:token-exchange"
	access    = "urn:ietf:params:oauth:token-type:access_token"
)

// door starts tasks with real tokens and keeps nothing but the refusals.
type door struct {
	issuer   *authz.Issuer
	verifier *authz.Verifier
	failure  error // what StartTask meets when it is not the caller's fault

	mu      sync.Mutex
	refused []string // guarded by mu; reasons
}

func (d *door) admit(ctx context.Context, bearer string) (*authz.Principal, error) {
	p, err := d.verifier.Verify(ctx, bearer)
	if err != nil {
		return nil, err
	}
	if !p.Role.AtLeast(authz.RoleAdmin) {
		return nil, &whence.Error{Kind: whence.ErrDenied, Reason: "ROLE_TOO_LOW", Message: "this takes the role admin"}
	}
	return p, d.failure
}

func (d *door) StartTask(ctx context.Context, bearer string, r authz.TaskRequest) (string, time.Time, uuid.UUID, error) {
	p, err := d.admit(ctx, bearer)
	if err != nil {
		return "", time.Time{}, uuid.Nil, err
	}
	task := uuid.New()
	token, expires, err := d.issuer.IssueTask(authz.TaskClaims{User: p.User, Agent: r.Agent, Task: task, Root: task,
		Scope: r.Scope, Lifetime: r.Lifetime})
	return token, expires, task, err
}

func (d *door) RefuseTask(ctx context.Context, bearer string, reason error) error {
	if _, err := d.admit(ctx, bearer); err != nil {
		reason = err
	}
	var e *whence.Error
	if errors.As(reason, &e) {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.refused = append(d.refused, e.Reason)
	}
	return reason
}

type fixture struct {
	*door
	server *httptest.Server
	admin  string
	viewer string
}

func start(t *testing.T) *fixture {
	t.Helper()
	keys := authz.NewEphemeralKeys()
	issuer, err := authz.NewIssuer(authz.IssuerConfig{Name: issuerURL, Keys: keys})
	if err != nil {
		t.Fatal(err)
	}
	verifier, err := authz.NewVerifier(authz.VerifierConfig{Issuer: issuerURL, Keys: keys})
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{door: &door{issuer: issuer, verifier: verifier}}
	h, err := oauth.New(oauth.Config{Issuer: issuerURL, Tasks: f.door, Keys: keys, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	f.server = httptest.NewServer(h)
	t.Cleanup(f.server.Close)
	for role, token := range map[authz.Role]*string{authz.RoleAdmin: &f.admin, authz.RoleViewer: &f.viewer} {
		if *token, _, err = issuer.IssueOperator("ada", role, time.Hour); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

// reply is a response whose body has been read.
type reply struct {
	StatusCode int
	Status     string
	Header     http.Header
}

func (f *fixture) do(t *testing.T, method, path, contentType, body string, header http.Header) (reply, map[string]any) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, f.server.URL+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range header {
		req.Header[k] = v
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	resp, err := f.server.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	var doc map[string]any
	if err := json.Unmarshal(b, &doc); err != nil {
		t.Fatalf("%s %s: %s is not JSON: %q", method, path, resp.Status, b)
	}
	if got := resp.Header.Get("Cache-Control"); got != "no-store" {
		t.Errorf("Cache-Control %q", got)
	}
	return reply{resp.StatusCode, resp.Status, resp.Header}, doc
}

func (f *fixture) form() url.Values {
	return url.Values{"grant_type": {grant}, "subject_token": {f.admin}, "subject_token_type": {access}, "client_id": {"writer"},
		"authorization_details": {`[{"type":"whence","tables":["app.public.articles"],"subjects":["s1"],"filter":{"lang":"en"},
			"actions":["memory:read"],"budget":{"calls":7},"purpose":"find \"it\"","lifetime":"90s"}]`}}
}

const formType = "application/x-www-form-urlencoded"

func TestExchange(t *testing.T) {
	t.Parallel()
	f := start(t)
	resp, got := f.do(t, http.MethodPost, "/oauth/token", formType+"; charset=UTF-8", f.form().Encode(), nil)
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %v", resp.Status, got)
	}
	token, _ := got["access_token"].(string)
	p, err := f.verifier.Verify(t.Context(), token)
	if err != nil {
		t.Fatal(err)
	}
	if p.User != "ada" || p.Agent != "writer" || p.Task.String() != got["task_id"] {
		t.Errorf("token is for %+v, answer says task %v", p, got["task_id"])
	}
	want := authz.ScopeSpec{Type: "whence", Tables: []whence.TableName{"app.public.articles"}, Subjects: []string{"s1"},
		Filter: map[string]string{"lang": "en"}, Actions: []authz.Action{authz.MemoryRead}}
	if diff := cmp.Diff(want, p.Scope.Spec()); diff != "" {
		t.Errorf("scope (-want +got):\n%s", diff)
	}
	if in, _ := got["expires_in"].(float64); in < 80 || in > 90 {
		t.Errorf("expires_in %v", got["expires_in"])
	}
	delete(got, "access_token")
	delete(got, "task_id")
	delete(got, "expires_in")
	wantRest := map[string]any{"issued_token_type": access, "token_type": "Bearer", "authorization_details": []any{map[string]any{
		"type": "whence", "tables": []any{"app.public.articles"}, "subjects": []any{"s1"}, "filter": map[string]any{"lang": "en"},
		"actions": []any{"memory:read"}, "budget": map[string]any{"calls": 7.0}, "purpose": `find "it"`, "lifetime": "1m30s"}}}
	if diff := cmp.Diff(wantRest, got); diff != "" {
		t.Errorf("answer (-want +got):\n%s", diff)
	}
}

func TestExchangeRefusals(t *testing.T) {
	t.Parallel()
	f := start(t)
	set := func(name, value string) func(url.Values) { return func(v url.Values) { v.Set(name, value) } }
	details := func(inner string) func(url.Values) {
		return set("authorization_details", `[{"type":"whence","purpose":"p",`+inner+`}]`)
	}
	cases := 0
	for _, c := range []struct {
		name   string
		change func(url.Values)
		code   string
		reason string
	}{
		{"another grant", set("grant_type", "password"), "unsupported_grant_type", "GRANT_TYPE_UNSUPPORTED"},
		{"no grant", func(v url.Values) { v.Del("grant_type") }, "unsupported_grant_type", "GRANT_TYPE_UNSUPPORTED"},
		{"no subject token", set("subject_token", ""), "invalid_request", "TOKEN_MISSING"},
		{"garbage subject token", set("subject_token", "a.b.c"), "invalid_request", "TOKEN_MALFORMED"},
		{"not an admin", set("subject_token", f.viewer), "invalid_request", "ROLE_TOO_LOW"},
		{"not an admin, and no details", func(v url.Values) { v.Set("subject_token", f.viewer); v.Del("authorization_details") }, "invalid_authorization_details", "DETAILS_MISSING"},
		{"another token type", set("subject_token_type", "urn:ietf:params:oauth:token-type:id_token"), "invalid_request", "TOKEN_TYPE_UNSUPPORTED"},
		{"wants another type", set("requested_token_type", "urn:ietf:params:oauth:token-type:refresh_token"), "invalid_request", "TOKEN_TYPE_UNSUPPORTED"},
		{"an actor token", set("actor_token", "x"), "invalid_request", "ACTOR_TOKEN_UNSUPPORTED"},
		{"a scope", set("scope", "all"), "invalid_scope", "SCOPE_UNSUPPORTED"},
		{"for someone else", set("audience", "https://other.test"), "invalid_target", "AUDIENCE_WRONG"},
		{"for a longer name", set("resource", issuerURL+".evil.test"), "invalid_target", "AUDIENCE_WRONG"},
		{"no agent", set("client_id", ""), "invalid_request", "AGENT_MISSING"},
		{"an unprintable agent", set("client_id", "a\nb"), "invalid_request", "AGENT_INVALID"},
		{"a parameter twice", func(v url.Values) { v.Add("client_id", "other") }, "invalid_request", "PARAMETER_REPEATED"},
		{"no details", func(v url.Values) { v.Del("authorization_details") }, "invalid_authorization_details", "DETAILS_MISSING"},
		{"details not a list", set("authorization_details", `{"type":"whence"}`), "invalid_authorization_details", "DETAILS_MALFORMED"},
		{"no element", set("authorization_details", `[]`), "invalid_authorization_details", "DETAILS_MALFORMED"},
		{"two elements", set("authorization_details", `[{"type":"whence"},{"type":"whence"}]`), "invalid_authorization_details", "DETAILS_MALFORMED"},
		{"another type", set("authorization_details", `[{"type":"bank"}]`), "invalid_authorization_details", "DETAILS_MALFORMED"},
		{"a member twice", details(`"allTables":false,"alltables":true`), "invalid_authorization_details", "DETAILS_MALFORMED"},
		{"an unknown member", details(`"tabels":[]`), "invalid_authorization_details", "DETAILS_MALFORMED"},
		{"a wrong type", details(`"tables":"all"`), "invalid_authorization_details", "DETAILS_MALFORMED"},
		{"text after it", set("authorization_details", `[{"type":"whence","purpose":"p"}] x`), "invalid_authorization_details", "DETAILS_MALFORMED"},
		{"an unknown action", details(`"actions":["root"]`), "invalid_authorization_details", "SCOPE_INVALID"},
		{"a short table name", details(`"tables":["articles"]`), "invalid_authorization_details", "SCOPE_INVALID"},
		{"no purpose", set("authorization_details", `[{"type":"whence"}]`), "invalid_authorization_details", "PURPOSE_INVALID"},
		{"no budget", details(`"budget":{"calls":0}`), "invalid_authorization_details", "BUDGET_INVALID"},
		{"a long life", details(`"lifetime":"25h"`), "invalid_authorization_details", "LIFETIME_INVALID"},
		{"a life in words", details(`"lifetime":"a day"`), "invalid_authorization_details", "LIFETIME_INVALID"},
	} {
		cases++
		form := f.form()
		c.change(form)
		resp, got := f.do(t, http.MethodPost, "/oauth/token", formType, form.Encode(), nil)
		if resp.StatusCode != http.StatusBadRequest || got["error"] != c.code || got["reason"] != c.reason {
			t.Errorf("%s: %s %v, want 400 %s %s", c.name, resp.Status, got, c.code, c.reason)
		}
		said, _ := got["error_description"].(string)
		if said == "" || strings.ContainsFunc(said, func(r rune) bool { return r < 0x20 || r > 0x7e || r == '"' || r == '\\' }) {
			t.Errorf("%s: error_description %q", c.name, said)
		}
		if token := form.Get("subject_token"); token != "" && strings.Contains(said, token) {
			t.Errorf("%s: the description repeats the token", c.name)
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	// Each is on record, but for the two that StartTask records itself.
	if len(f.refused) != cases-2 {
		t.Errorf("%d refusals recorded of %d cases: %v", len(f.refused), cases, f.refused)
	}
}

func TestTransportRefusals(t *testing.T) {
	t.Parallel()
	f := start(t)
	good := f.form().Encode()
	huge := good + "&x=" + strings.Repeat("x", 64<<10)
	for _, c := range []struct {
		name, method, path, contentType, body string
		header                                http.Header
		status                                int
		reason                                any
	}{
		{"get a token", http.MethodGet, "/oauth/token", "", "", nil, 405, nil},
		{"put a token", http.MethodPut, "/oauth/token", formType, good, nil, 405, nil},
		{"post the keys", http.MethodPost, "/oauth/jwks", formType, good, nil, 405, nil},
		{"post metadata", http.MethodPost, "/.well-known/oauth-authorization-server", "", "", nil, 405, nil},
		{"delete metadata", http.MethodDelete, "/.well-known/oauth-protected-resource", "", "", nil, 405, nil},
		{"json", http.MethodPost, "/oauth/token", "application/json", `{}`, nil, 400, "CONTENT_TYPE_WRONG"},
		{"no type", http.MethodPost, "/oauth/token", "", good, nil, 400, "CONTENT_TYPE_WRONG"},
		{"in the url", http.MethodPost, "/oauth/token?client_id=a", formType, good, nil, 400, "QUERY_NOT_ALLOWED"},
		{"bad escape", http.MethodPost, "/oauth/token", formType, "a=%zz", nil, 400, "BODY_MALFORMED"},
		{"too large", http.MethodPost, "/oauth/token", formType, huge, nil, 413, "BODY_TOO_LARGE"},
		{"basic", http.MethodPost, "/oauth/token", formType, good, http.Header{"Authorization": {"Basic YTpi"}}, 401, "CLIENT_AUTHENTICATION_UNSUPPORTED"},
	} {
		resp, got := f.do(t, c.method, c.path, c.contentType, c.body, c.header)
		if resp.StatusCode != c.status || got["reason"] != c.reason {
			t.Errorf("%s: %s %v, want %d %v", c.name, resp.Status, got, c.status, c.reason)
		}
		if c.status == 405 && resp.Header.Get("Allow") == "" {
			t.Errorf("%s: no Allow header", c.name)
		}
	}
}

func TestServerFailures(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name       string
		failure    error
		damage     func(url.Values)
		status     int
		code       string
		retryAfter string
	}{
		{"database away", &whence.Error{Kind: whence.ErrUnavailable, Reason: "R", Message: "try again", RetryAfter: 1500 * time.Millisecond},
			nil, 503, "temporarily_unavailable", "2"},
		{"refusal cannot be recorded", &whence.Error{Kind: whence.ErrUnavailable, Reason: "R", Message: "try again", RetryAfter: time.Second},
			func(v url.Values) { v.Del("client_id") }, 503, "temporarily_unavailable", "1"},
		{"bug", errors.New("secret detail"), nil, 500, "server_error", ""},
	} {
		f := start(t)
		f.failure = c.failure
		form := f.form()
		if c.damage != nil {
			c.damage(form)
		}
		resp, got := f.do(t, http.MethodPost, "/oauth/token", formType, form.Encode(), nil)
		if resp.StatusCode != c.status || got["error"] != c.code || resp.Header.Get("Retry-After") != c.retryAfter {
			t.Errorf("%s: %s %v Retry-After %q", c.name, resp.Status, got, resp.Header.Get("Retry-After"))
		}
		if said, _ := got["error_description"].(string); strings.Contains(said, "secret") {
			t.Errorf("%s: told %q", c.name, said)
		}
	}
}

func TestDiscovery(t *testing.T) {
	t.Parallel()
	f := start(t)
	get := func(path string) map[string]any {
		resp, doc := f.do(t, http.MethodGet, path, "", "", nil)
		if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != "application/json" {
			t.Errorf("%s: %s %s", path, resp.Status, resp.Header.Get("Content-Type"))
		}
		return doc
	}
	wantServer := map[string]any{"issuer": issuerURL, "token_endpoint": issuerURL + "/oauth/token", "jwks_uri": issuerURL + "/oauth/jwks",
		"grant_types_supported": []any{grant}, "token_endpoint_auth_methods_supported": []any{"none"},
		"response_types_supported": []any{}, "authorization_details_types_supported": []any{"whence"}}
	if diff := cmp.Diff(wantServer, get("/.well-known/oauth-authorization-server")); diff != "" {
		t.Errorf("server metadata (-want +got):\n%s", diff)
	}
	wantResource := map[string]any{"resource": issuerURL, "authorization_servers": []any{issuerURL},
		"bearer_methods_supported": []any{"header"}, "authorization_details_types_supported": []any{"whence"}, "resource_name": "Whence"}
	if diff := cmp.Diff(wantResource, get("/.well-known/oauth-protected-resource")); diff != "" {
		t.Errorf("resource metadata (-want +got):\n%s", diff)
	}
	keys, _ := get("/oauth/jwks")["keys"].([]any)
	if len(keys) != 1 {
		t.Fatalf("%d keys", len(keys))
	}
	key, _ := keys[0].(map[string]any)
	if _, private := key["d"]; private || key["kty"] != "OKP" || key["crv"] != "Ed25519" || key["alg"] != "EdDSA" || key["use"] != "sig" || key["kid"] == "" {
		t.Errorf("key %v", key)
	}
}

func TestIssuerMustBeAnOrigin(t *testing.T) {
	t.Parallel()
	d := &door{}
	for issuer, good := range map[string]bool{
		"https://whence.test": true, "http://127.0.0.1:7171": true, "https://whence.test/": false, "https://whence.test/a": false,
		"whence.test": false, "": false, "ftp://whence.test": false, "https://a:b@whence.test": false, "https://whence.test?x": false,
	} {
		_, err := oauth.New(oauth.Config{Issuer: issuer, Tasks: d, Keys: authz.NewEphemeralKeys(), Log: slog.New(slog.DiscardHandler)})
		if (err == nil) != good {
			t.Errorf("%q: %v", issuer, err)
		}
	}
}
