package federation

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/authz"
)

func TestIssuerValidate(t *testing.T) {
	t.Parallel()
	good := Issuer{Name: "corp", URL: "https://id.example.org/realm", Audience: "whence", Algorithms: []string{"RS256"}}
	spiffe := good
	spiffe.URL, spiffe.JWKSURL = "spiffe://example.org", "https://example.org/bundle"
	for name, i := range map[string]Issuer{"an issuer": good, "a trust domain": spiffe} {
		if err := i.Validate(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, url := range []string{"http://127.0.0.1:8080/realm", "http://[::1]", "http://localhost:8080", "https://id.example.org/"} {
		i := good
		i.URL = url
		if err := i.Validate(); err != nil {
			t.Errorf("%s: %v", url, err)
		}
	}
	for _, url := range []string{"", "id.example.org", "http://id.example.org", "http://10.0.0.1", "http://localhost.example.org", "ftp://127.0.0.1",
		"https://", "https:///realm", "https:id.example.org", "https://a:b@id.example.org", "https://id.example.org?x=1", "https://id.example.org?",
		"https://id.example.org#x", "https://id.example.org#", "https://id.example.org/ x", "https://id.exämple.org", "file:///etc/keys",
		"spiffe://", "spiffe://example.org/path", "spiffe://" + strings.Repeat("x", 256), "spiffe://Example.org", "spiffe://a@b", "SPIFFE://example.org",
		"https://id.example.org/" + strings.Repeat("x", 512)} {
		i := good
		i.URL, i.JWKSURL = url, "https://example.org/bundle"
		wantField(t, url, i.Validate(), "url")
	}
	for name, c := range map[string]struct {
		change func(*Issuer)
		field  string
	}{
		"no name":             {func(i *Issuer) { i.Name = "" }, "name"},
		"unseen in the name":  {func(i *Issuer) { i.Name = "corp\u200b" }, "name"},
		"no audience":         {func(i *Issuer) { i.Audience = "" }, "audience"},
		"open key set":        {func(i *Issuer) { i.JWKSURL = "http://id.example.org/keys" }, "jwksUrl"},
		"no algorithms":       {func(i *Issuer) { i.Algorithms = nil }, "algorithms"},
		"none":                {func(i *Issuer) { i.Algorithms = []string{"RS256", "none"} }, "algorithms"},
		"symmetric":           {func(i *Issuer) { i.Algorithms = []string{"HS256"} }, "algorithms"},
		"tenant and claim":    {func(i *Issuer) { i.Tenant, i.TenantClaim = "a", "b" }, "tenantClaim"},
		"turned tenant":       {func(i *Issuer) { i.Tenant = "\u202ea" }, "tenant"},
		"claim of the tenant": {func(i *Issuer) { i.TenantClaim = "a\n" }, "tenantClaim"},
		"claim of subjects":   {func(i *Issuer) { i.SubjectClaim = "a\n" }, "subjectClaim"},
		"claim of groups":     {func(i *Issuer) { i.GroupsClaim = "a\n" }, "groupsClaim"},
		"no such role":        {func(i *Issuer) { i.Operators = map[string]authz.Role{"a": "root"} }, "operators"},
		"nameless group":      {func(i *Issuer) { i.Operators = map[string]authz.Role{"": authz.RoleViewer} }, "operators"},
		"scope":               {func(i *Issuer) { i.UserScope.Actions = []authz.Action{"all"} }, "userScope.actions"},
		"bundle of a domain":  {func(i *Issuer) { i.URL = "spiffe://example.org" }, "jwksUrl"},
		"subject of a domain": {func(i *Issuer) { *i = spiffe; i.SubjectClaim = "email" }, "subjectClaim"},
	} {
		i := good
		c.change(&i)
		wantField(t, name, i.Validate(), c.field)
	}
}

func wantField(t *testing.T, name string, err error, field string) {
	t.Helper()
	var e *whence.Error
	if !errors.As(err, &e) || !errors.Is(e.Kind, whence.ErrInvalid) || e.Field != field || e.Reason == "" || e.Message == "" {
		t.Errorf("%s: %+v, want an error about %s", name, err, field)
	}
}

func TestNew(t *testing.T) {
	t.Parallel()
	p := newProvider(t)
	for name, c := range map[string]Config{"no issuers": {Client: p.Client()}, "no client": {Issuers: p.find}} {
		if _, err := New(c); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	client := p.Client()
	if _, err := New(Config{Issuers: p.find, Client: client}); err != nil || client.CheckRedirect != nil {
		t.Errorf("%v; the caller's client was changed: %t", err, client.CheckRedirect != nil)
	}
}

// What a look-up cannot take is not looked up.
func TestOddIssuersAreNotLookedUp(t *testing.T) {
	t.Parallel()
	p := standard(t)
	asked := ""
	v, err := New(Config{Client: p.Client(), Clock: p.clock, Issuers: func(ctx context.Context, url string) (Issuer, error) {
		asked = url
		return p.find(ctx, url)
	}})
	if err != nil {
		t.Fatal(err)
	}
	for _, url := range []string{"https://id.test/\x00", "https://id.test/\u200b", "https://id.test/" + strings.Repeat("x", 512)} {
		if _, err := v.User(t.Context(), p.make(t, attack{Claims: map[string]any{"iss": url}})); reason(err) != "TOKEN_ISSUER_UNKNOWN" || asked != "" {
			t.Errorf("%q: %v, looked up %q", url, err, asked)
		}
	}
}

// What is wrong on this side is never told as the token's fault.
func TestOwnFaults(t *testing.T) {
	t.Parallel()
	p := standard(t)
	broken := errors.New("connection reset")
	v, err := New(Config{Client: p.Client(), Clock: p.clock,
		Issuers: func(context.Context, string) (Issuer, error) { return Issuer{}, broken }})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.User(t.Context(), p.make(t, attack{})); !errors.Is(err, broken) || errors.Is(err, whence.ErrUnauthenticated) {
		t.Errorf("look-up of issuers: %v", err)
	}
	v = p.verifier(t)
	var e *whence.Error
	if _, err := v.User(t.Context(), p.make(t, attack{Issuer: "bad"})); err == nil || errors.As(err, &e) {
		t.Errorf("a registration that allows none: %v", err)
	}
	token := p.make(t, attack{As: "assertion"})
	for name, keys := range map[string]AgentKeys{
		"look-up of keys": func(context.Context, string) (json.RawMessage, error) { return nil, broken },
		"stored keys":     func(context.Context, string) (json.RawMessage, error) { return []byte(`{}`), nil },
	} {
		if _, err := v.Assertion(t.Context(), token, keys, ownAudiences); err == nil || errors.As(err, &e) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Until an assertion's end its id must be remembered: the end that is told is the
// one that is acted on.
func TestAssertionEnds(t *testing.T) {
	t.Parallel()
	p := standard(t)
	v := p.verifier(t)
	token := p.make(t, attack{As: "assertion"})
	_, expires, err := p.judge(t, v, "assertion", token)
	if err != nil {
		t.Fatal(err)
	}
	p.advance(expires.Sub(testNow) - 1)
	if _, _, err := p.judge(t, v, "assertion", token); err != nil {
		t.Errorf("just before: %v", err)
	}
	p.advance(1)
	if _, _, err := p.judge(t, v, "assertion", token); reason(err) != "TOKEN_EXPIRED" {
		t.Errorf("at its end: %v", err)
	}
}
