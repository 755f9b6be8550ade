package oauth_test

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/whence-db/whence/api/oauth"
	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/gateway/gatewaytest"
)

func TestTransportRefusals(t *testing.T) {
	t.Parallel()
	s := start(t)
	const good = "token=a.b.c"
	plain := http.Header{"Content-Type": {formType}}
	typed := func(types ...string) http.Header { return http.Header{"Content-Type": types} }
	for _, path := range []string{oauth.TokenPath, oauth.RevocationPath, oauth.IntrospectionPath} {
		for _, c := range []struct {
			name, method, query, body string
			header                    http.Header
			status                    int
			reason                    string
		}{
			{"get", http.MethodGet, "", "", nil, 405, "METHOD_NOT_ALLOWED"},
			{"put", http.MethodPut, "", good, plain, 405, "METHOD_NOT_ALLOWED"},
			{"json", http.MethodPost, "", `{}`, typed("application/json"), 400, "CONTENT_TYPE_WRONG"},
			{"multipart", http.MethodPost, "", `--x--`, typed("multipart/form-data; boundary=x"), 400, "CONTENT_TYPE_WRONG"},
			{"no type", http.MethodPost, "", good, nil, 400, "CONTENT_TYPE_WRONG"},
			{"two types", http.MethodPost, "", good, typed(formType, "text/plain"), 400, "CONTENT_TYPE_WRONG"},
			{"in the url", http.MethodPost, "?token=a", good, plain, 400, "QUERY_NOT_ALLOWED"},
			{"bad escape", http.MethodPost, "", "a=%zz", plain, 400, "BODY_MALFORMED"},
			{"semicolons", http.MethodPost, "", "a=1;b=2", plain, 400, "BODY_MALFORMED"},
			{"NUL", http.MethodPost, "", "token=a%00", plain, 400, "PARAMETER_MALFORMED"},
			{"broken UTF-8", http.MethodPost, "", "token=a%ff", plain, 400, "PARAMETER_MALFORMED"},
			{"twice", http.MethodPost, "", good + "&" + good, plain, 400, "PARAMETER_REPEATED"},
			{"10,000 parameters", http.MethodPost, "", "a=1" + strings.Repeat("&a=1", 9999), plain, 400, "PARAMETER_REPEATED"},
			{"more than 1 MiB", http.MethodPost, "", good + "&x=" + strings.Repeat("x", 1<<20), plain, 413, "BODY_TOO_LARGE"},
		} {
			got := s.do(t, c.method, path+c.query, c.body, c.header)
			if got.status != c.status || got.text("reason") != c.reason || got.text("error") != "invalid_request" {
				t.Errorf("%s %s: %d %v, want %d %v", path, c.name, got.status, got.doc, c.status, c.reason)
			}
			if c.status == 405 && got.header.Get("Allow") != http.MethodPost {
				t.Errorf("%s %s: Allow %q", path, c.name, got.header.Get("Allow"))
			}
		}
		if n := s.recorded(t, strings.TrimPrefix(path, "/"), "REFUSED", ""); n != 12 {
			t.Errorf("%s: %d refusals on record", path, n)
		}
	}
	for _, path := range []string{oauth.JWKSPath, oauth.ServerMetadataPath, oauth.ResourceMetadataPath} {
		if got := s.do(t, http.MethodPost, path, good, plain); got.status != 405 || got.header.Get("Allow") != "GET, HEAD" {
			t.Errorf("post to %s: %d %v", path, got.status, got.header)
		}
	}
	form := url.Values{"subject_token": {"a.b.c"}}
	if got := s.post(t, oauth.TokenPath, form, "Authorization", "Basic YTpi"); got.status != 401 || got.text("error") != "invalid_client" ||
		got.text("reason") != "CLIENT_AUTHENTICATION_UNSUPPORTED" || got.header.Get("WWW-Authenticate") == "" {
		t.Errorf("basic: %d %v", got.status, got.doc)
	}
}

// What cannot be recorded does not happen, and the client is told when to come again.
func TestNothingWithoutRecord(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.AddAgent("writer")
	s.AddGrant("writer", "ada")
	task := s.Task("writer", "ada")
	viewer := s.Operator("vera", authz.RoleViewer)
	broken := s.form()
	broken.Set("scope", "memory:read")
	token := url.Values{"token": {task.Token}}
	s.withoutLog(t, func() {
		for name, got := range map[string]reply{
			"exchange":                s.post(t, oauth.TokenPath, s.form()),
			"refusal":                 s.post(t, oauth.TokenPath, broken),
			"revocation":              s.post(t, oauth.RevocationPath, token),
			"revocation of nothing":   s.post(t, oauth.RevocationPath, url.Values{"token": {"a.b.c"}}),
			"unread revocation":       s.post(t, oauth.RevocationPath, nil),
			"introspection":           s.post(t, oauth.IntrospectionPath, token, "Authorization", "Bearer "+viewer),
			"refused introspection":   s.post(t, oauth.IntrospectionPath, token),
			"unread introspection":    s.post(t, oauth.IntrospectionPath, nil),
			"introspection by itself": s.post(t, oauth.IntrospectionPath, token, "Authorization", "Bearer "+task.Token),
		} {
			if got.status != 503 || got.text("error") != "temporarily_unavailable" || got.header.Get("Retry-After") == "" || got.doc["active"] != nil {
				t.Errorf("%s: %d %v", name, got.status, got.doc)
			}
		}
	})
	if _, err := s.Verifier.Verify(t.Context(), task.Token); err != nil {
		t.Errorf("the token, after a revocation that was not recorded: %v", err)
	}
	var tasks int
	if err := s.Pool.QueryRow(t.Context(), "select count(*) from whence.tasks").Scan(&tasks); err != nil || tasks != 1 {
		t.Errorf("%d tasks, %v", tasks, err)
	}
}

// badKeys fails in a way that is nobody's business.
type badKeys struct{}

func (badKeys) JWKS(context.Context) (json.RawMessage, error) {
	return nil, errors.New("secret detail")
}

func TestInternalFailure(t *testing.T) {
	t.Parallel()
	s := start(t)
	h, err := oauth.New(oauth.Config{Issuer: gatewaytest.Name, Door: s.Gateway, Keys: badKeys{}, Log: slog.New(slog.NewTextHandler(&s.log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	s.server.Config.Handler = h
	got := s.do(t, http.MethodGet, oauth.JWKSPath, "", nil)
	if got.status != 500 || got.text("error") != "server_error" || strings.Contains(got.text("error_description"), "secret") || !strings.Contains(s.log.String(), "secret detail") {
		t.Errorf("%d %v, log %q", got.status, got.doc, s.log.String())
	}
}

func TestDiscovery(t *testing.T) {
	t.Parallel()
	s := start(t)
	get := func(path string) map[string]any {
		got := s.do(t, http.MethodGet, path, "", nil)
		if got.status != http.StatusOK || got.header.Get("Content-Type") != "application/json" || got.header.Get("Access-Control-Allow-Origin") != "*" {
			t.Errorf("%s: %d %v", path, got.status, got.header)
		}
		return got.doc
	}
	const name = gatewaytest.Name
	proofs := []any{"EdDSA", "ES256", "ES384", "PS256"}
	actions := []any{"memory:read", "memory:write", "task:delegate", "action:execute"}
	wantServer := map[string]any{"issuer": name, "token_endpoint": name + "/oauth/token", "jwks_uri": name + "/oauth/jwks",
		"revocation_endpoint": name + "/oauth/revoke", "introspection_endpoint": name + "/oauth/introspect",
		"grant_types_supported": []any{exchange}, "response_types_supported": []any{}, "authorization_details_types_supported": []any{"whence"},
		"token_endpoint_auth_methods_supported":            []any{"private_key_jwt"},
		"token_endpoint_auth_signing_alg_values_supported": []any{"EdDSA", "ES256", "ES384", "ES512", "PS256", "PS384", "PS512", "RS256", "RS384", "RS512"},
		"revocation_endpoint_auth_methods_supported":       []any{"none"}, "introspection_endpoint_auth_methods_supported": []any{"Bearer", "DPoP"},
		"scopes_supported": append(append([]any{}, actions...), "operator", "user"), "dpop_signing_alg_values_supported": proofs}
	if diff := cmp.Diff(wantServer, get(oauth.ServerMetadataPath)); diff != "" {
		t.Errorf("server metadata (-want +got):\n%s", diff)
	}
	wantResource := map[string]any{"resource": name, "authorization_servers": []any{name}, "bearer_methods_supported": []any{"header"},
		"authorization_details_types_supported": []any{"whence"}, "resource_name": "Whence", "scopes_supported": actions,
		"dpop_bound_access_tokens_required": false, "dpop_signing_alg_values_supported": proofs}
	if diff := cmp.Diff(wantResource, get(oauth.ResourceMetadataPath)); diff != "" {
		t.Errorf("resource metadata (-want +got):\n%s", diff)
	}
	keys, _ := get(oauth.JWKSPath)["keys"].([]any)
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
	s := start(t)
	for issuer, good := range map[string]bool{
		"https://whence.test": true, "http://127.0.0.1:7171": true, "https://whence.test/": false, "https://whence.test/a": false,
		"whence.test": false, "": false, "ftp://whence.test": false, "https://a:b@whence.test": false, "https://whence.test?x": false,
	} {
		_, err := oauth.New(oauth.Config{Issuer: issuer, Door: s.Gateway, Keys: s.Keys, Log: slog.New(slog.DiscardHandler)})
		if (err == nil) != good {
			t.Errorf("%q: %v", issuer, err)
		}
	}
}
