package devissuer

import (
	"encoding/json"
	"net/http"
	"net/url"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"golang.org/x/sync/errgroup"
)

// verified reads a token with the published keys.
func (p *place) verified(raw string) (c claims) {
	p.t.Helper()
	res, body := p.get("/jwks", nil)
	var keys jose.JSONWebKeySet
	if err := json.Unmarshal([]byte(body), &keys); err != nil {
		p.t.Fatalf("keys %s: %v: %s", res.Status, err, body)
	}
	if len(keys.Keys) != 1 || !keys.Keys[0].IsPublic() {
		p.t.Fatalf("published: %s", body)
	}
	token, err := jwt.ParseSigned(raw, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		p.t.Fatalf("%v: %q", err, raw)
	}
	if err := token.Claims(keys, &c); err != nil {
		p.t.Fatal(err)
	}
	return c
}

func TestTokens(t *testing.T) {
	t.Parallel()
	now := time.Unix(1_800_000_000, 0)
	p := start(t, func(c *Config) { c.Clock = func() time.Time { return now } })
	q, verifier := ask()
	status, got := p.redeem(redemption(q, p.code(q), verifier))
	if status != http.StatusOK || got.Type != "Bearer" || got.ExpiresIn != 300 {
		t.Fatalf("%d %+v", status, got)
	}
	for raw, want := range map[string]struct{ typ, nonce, client string }{
		got.ID:     {"JWT", q.Get("nonce"), ""},
		got.Access: {"at+jwt", "", testClient},
	} {
		c := p.verified(raw)
		if c.Issuer != p.url || c.Subject != "ada" || c.Name != "ada" || c.Audience != testClient || c.Party != testClient ||
			c.IssuedAt != now.Unix() || c.Expires != now.Unix()+300 || len(c.Groups) != 2 || c.ID == "" {
			t.Errorf("%s says %+v", want.typ, c)
		}
		if c.Nonce != want.nonce || c.Client != want.client {
			t.Errorf("%s says %+v", want.typ, c)
		}
		token, err := jwt.ParseSigned(raw, []jose.SignatureAlgorithm{jose.ES256})
		if err != nil {
			t.Fatal(err)
		}
		if h := token.Headers[0]; h.ExtraHeaders["typ"] != want.typ || h.KeyID != p.issuer.keys.Keys[0].KeyID {
			t.Errorf("%s has the header %+v", want.typ, h)
		}
	}
	if other := start(t, nil); other.issuer.keys.Keys[0].KeyID == p.issuer.keys.Keys[0].KeyID {
		t.Error("two issuers share a key")
	}
}

func TestRedemptionsRefused(t *testing.T) {
	t.Parallel()
	p := start(t, nil)
	for name, test := range map[string]struct {
		change  func(url.Values)
		headers []string
		status  int
		want    string
		kept    bool // the code may still be redeemed
	}{
		"wrong verifier":    {func(f url.Values) { f.Set("code_verifier", "another-verifier-another-verifier-another-v") }, nil, 400, "invalid_grant", false},
		"challenge as such": {func(f url.Values) { f.Set("code_verifier", f.Get("challenge")) }, nil, 400, "invalid_grant", false},
		"no verifier":       {func(f url.Values) { f.Del("code_verifier") }, nil, 400, "invalid_grant", false},
		"another redirect":  {func(f url.Values) { f.Set("redirect_uri", "http://127.0.0.1:10/back?keep=1") }, nil, 400, "invalid_grant", false},
		"no redirect":       {func(f url.Values) { f.Del("redirect_uri") }, nil, 400, "invalid_grant", false},
		"another client":    {func(f url.Values) { f.Set("client_id", "other") }, nil, 400, "invalid_grant", false},
		"unknown client":    {func(f url.Values) { f.Set("client_id", "stranger") }, nil, 401, "invalid_client", true},
		"a secret":          {func(url.Values) {}, []string{"Authorization", "Basic Y2xpOg=="}, 401, "invalid_client", true},
		"another grant":     {func(f url.Values) { f.Set("grant_type", "refresh_token") }, nil, 400, "unsupported_grant_type", true},
		"unknown code":      {func(f url.Values) { f.Set("code", "x") }, nil, 400, "invalid_grant", true},
		"no code":           {func(f url.Values) { f.Del("code") }, nil, 400, "invalid_grant", true},
		"twice":             {func(f url.Values) { f.Add("code", "x") }, nil, 400, "invalid_request", true},
	} {
		q, verifier := ask()
		form := redemption(q, p.code(q), verifier)
		form.Set("challenge", q.Get("code_challenge"))
		sound := redemption(q, form.Get("code"), verifier)
		test.change(form)
		status, got := p.redeem(form, test.headers...)
		if status != test.status || got.Error != test.want || got.Description == "" || got.ID != "" {
			t.Errorf("%s: %d %+v, want %d %s", name, status, got, test.status, test.want)
		}
		if status, _ := p.redeem(sound); (status == http.StatusOK) != test.kept {
			t.Errorf("%s: then rightly %d", name, status)
		}
	}
}

// However many redeem a code at once, one gets the tokens.
func TestCodesAreForOnce(t *testing.T) {
	t.Parallel()
	p := start(t, nil)
	q, verifier := ask()
	form := redemption(q, p.code(q), verifier)
	var group errgroup.Group
	var served atomic.Int32
	for range 16 {
		group.Go(func() error {
			res, err := p.client.PostForm(p.url+"/token", form)
			if err != nil {
				return err
			}
			if res.StatusCode == http.StatusOK {
				served.Add(1)
			}
			return res.Body.Close()
		})
	}
	if err := group.Wait(); err != nil || served.Load() != 1 {
		t.Errorf("served %d times, %v", served.Load(), err)
	}
	p.client.CloseIdleConnections()
}

func TestCodesExpire(t *testing.T) {
	t.Parallel()
	now := time.Unix(1_800_000_000, 0)
	p := start(t, func(c *Config) { c.Clock = func() time.Time { return now } })
	for _, test := range []struct {
		after time.Duration
		want  int
	}{{codeLifetime - 1, http.StatusOK}, {codeLifetime, http.StatusBadRequest}} {
		q, verifier := ask()
		form := redemption(q, p.code(q), verifier)
		now = now.Add(test.after)
		if status, got := p.redeem(form); status != test.want {
			t.Errorf("after %s: %d %+v", test.after, status, got)
		}
	}
}

func TestDiscovery(t *testing.T) {
	t.Parallel()
	p := start(t, nil)
	_, body := p.get("/.well-known/openid-configuration", nil)
	var doc map[string]any
	if err := json.Unmarshal([]byte(body), &doc); err != nil {
		t.Fatal(err)
	}
	if doc["issuer"] != p.url || doc["request_uri_parameter_supported"] != false {
		t.Errorf("%v", doc)
	}
	for _, endpoint := range []string{"authorization_endpoint", "token_endpoint", "jwks_uri"} {
		at, _ := doc[endpoint].(string)
		req, err := http.NewRequest(http.MethodOptions, at, nil)
		if err != nil {
			t.Fatal(err)
		}
		if res, _ := p.do(req); res.StatusCode != http.StatusMethodNotAllowed { // something is there
			t.Errorf("%s %q: %s", endpoint, at, res.Status)
		}
	}
}
