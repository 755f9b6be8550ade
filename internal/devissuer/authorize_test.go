package devissuer

import (
	"html"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"
)

// What may come from anybody is answered here and sends nobody anywhere.
func TestNobodyIsSentAway(t *testing.T) {
	t.Parallel()
	p := start(t, nil)
	for name, change := range map[string]func(url.Values){
		"unknown client":  func(q url.Values) { q.Set("client_id", "stranger") },
		"no client":       func(q url.Values) { q.Del("client_id") },
		"no redirect":     func(q url.Values) { q.Del("redirect_uri") },
		"another machine": func(q url.Values) { q.Set("redirect_uri", "http://192.0.2.1/back") },
		"a name":          func(q url.Values) { q.Set("redirect_uri", "http://127.0.0.1.example.com/back") },
		"user part":       func(q url.Values) { q.Set("redirect_uri", "http://127.0.0.1@example.com/back") },
		"a user here":     func(q url.Values) { q.Set("redirect_uri", "http://a@127.0.0.1/back") },
		"backslash":       func(q url.Values) { q.Set("redirect_uri", `http://127.0.0.1\@example.com/`) },
		"https":           func(q url.Values) { q.Set("redirect_uri", "https://127.0.0.1/back") },
		"own scheme":      func(q url.Values) { q.Set("redirect_uri", "app://127.0.0.1/back") },
		"script":          func(q url.Values) { q.Set("redirect_uri", "javascript:alert(1)") },
		"no scheme":       func(q url.Values) { q.Set("redirect_uri", "//127.0.0.1/back") },
		"fragment":        func(q url.Values) { q.Set("redirect_uri", "http://127.0.0.1/back#a") },
		"empty fragment":  func(q url.Values) { q.Set("redirect_uri", "http://127.0.0.1/back#") },
		"zone":            func(q url.Values) { q.Set("redirect_uri", "http://[::1%25lo]/back") },
		"twice":           func(q url.Values) { q.Add("redirect_uri", "http://127.0.0.1/other") },
		"state twice":     func(q url.Values) { q.Add("state", "2") },
		"too long":        func(q url.Values) { q.Set("nonce", strings.Repeat("n", maxParameter+1)) },
	} {
		q, _ := ask()
		change(q)
		res, body := p.get("/authorize", q)
		if res.StatusCode != http.StatusBadRequest || res.Header.Get("Location") != "" {
			t.Errorf("%s: %s to %q: %s", name, res.Status, res.Header.Get("Location"), body)
		}
		// Who does not know a client is told of none, such as start's second.
		if strings.Contains(body, "other") {
			t.Errorf("%s: told %q", name, body)
		}
		res, body = p.post("/signin?"+q.Encode(), url.Values{"user": {"ada"}})
		if res.StatusCode != http.StatusBadRequest || res.Header.Get("Location") != "" {
			t.Errorf("%s, from the page: %s to %q: %s", name, res.Status, res.Header.Get("Location"), body)
		}
	}
	for _, redirect := range []string{"http://127.0.0.1", "http://127.9.9.9:1/", "http://[::1]:65535/a?b=c", "http://localhost:80/x"} {
		q, _ := ask()
		q.Set("redirect_uri", redirect)
		p.code(q)
	}
}

// Every other error goes back to the client.
func TestTheClientIsTold(t *testing.T) {
	t.Parallel()
	p := start(t, nil)
	for _, test := range []struct{ name, value, want string }{
		{"response_type", "token", "unsupported_response_type"},
		{"response_type", "", "unsupported_response_type"},
		{"response_mode", "fragment", "invalid_request"},
		{"code_challenge", "", "invalid_request"},
		{"code_challenge", "short", "invalid_request"},
		{"code_challenge", strings.Repeat("=", 43), "invalid_request"},
		{"code_challenge_method", "", "invalid_request"},
		{"code_challenge_method", "plain", "invalid_request"},
		{"scope", "profile openidx", "invalid_scope"},
		{"prompt", "none login", "invalid_request"},
		{"request", "x", "request_not_supported"},
		{"request_uri", "http://127.0.0.1/", "request_uri_not_supported"},
		{"login_hint", "nobody", "login_required"},
		{"login_hint", "Ada", "login_required"},
		{"login_hint", "", "login_required"},
	} {
		q, _ := ask()
		q.Set(test.name, test.value)
		res, _ := p.get("/authorize", q)
		back := p.answer(res, q)
		if back.Get("error") != test.want || back.Has("code") || back.Get("error_description") == "" {
			t.Errorf("%s=%q: %v, want %s", test.name, test.value, back, test.want)
		}
		if test.name == "login_hint" || test.name == "prompt" {
			continue
		}
		res, _ = p.post("/signin?"+q.Encode(), url.Values{"user": {"ada"}})
		if back := p.answer(res, q); back.Get("error") != test.want || back.Has("code") {
			t.Errorf("%s=%q, from the page: %v, want %s", test.name, test.value, back, test.want)
		}
	}
	q, _ := ask()
	q.Del("state")
	res, _ := p.get("/authorize", q)
	if to, err := url.Parse(res.Header.Get("Location")); err != nil || to.Path != "/back" || to.Query().Has("state") {
		t.Errorf("a state that nobody sent comes back: %v, %v", to, err)
	}
}

func TestPage(t *testing.T) {
	t.Parallel()
	p := start(t, nil)
	q, verifier := ask()
	q.Del("prompt")
	q.Set("scope", "openid profile")
	res, body := p.get("/authorize", q)
	if res.StatusCode != http.StatusOK || !strings.HasPrefix(res.Header.Get("Content-Type"), "text/html") {
		t.Fatalf("answered %s", res.Status)
	}
	for _, want := range []string{
		`<html lang="en">`, "For development only", "anyone who reaches this page can be anyone",
		`value="ada" autofocus`, "Groups: admins, data", `value="Bob &lt;b&gt;">`, "Bob &lt;b&gt;</span>", "No groups",
		`name="cancel"`, `href="/dev/issuer/style.css"`,
	} {
		if !strings.Contains(body, want) {
			t.Errorf("the page lacks %s", want)
		}
	}
	if strings.Contains(body, "<b>") || strings.Contains(body, "style=") || strings.Contains(body, "<script") {
		t.Errorf("markup of others, or inline: %s", body)
	}
	policy := res.Header.Get("Content-Security-Policy")
	if policy != "default-src 'none'; style-src 'self'; base-uri 'none'; frame-ancestors 'none'; form-action 'self' http://127.0.0.1:9" {
		t.Errorf("policy %s", policy)
	}
	if res, css := p.get("/style.css", nil); res.Header.Get("Content-Type") != "text/css; charset=utf-8" || !strings.Contains(css, "focus-visible") {
		t.Errorf("style %s: %s", res.Status, css)
	}

	// The form's own address and fields sign the other user in.
	_, rest, _ := strings.Cut(body, `action="`)
	action, _, _ := strings.Cut(rest, `"`)
	action = html.UnescapeString(strings.TrimPrefix(action, p.issuer.prefix))
	res, _ = p.post(action, url.Values{"user": {"Bob <b>"}}, "Sec-Fetch-Site", "same-origin")
	_, got := p.redeem(redemption(q, p.answer(res, q).Get("code"), verifier))
	if c := p.verified(got.ID); c.Subject != "Bob <b>" || c.Groups == nil || len(c.Groups) != 0 {
		t.Errorf("signed in %+v", c)
	}
	res, _ = p.post(action, url.Values{"cancel": {"yes"}})
	if back := p.answer(res, q); back.Get("error") != "access_denied" || back.Has("code") {
		t.Errorf("cancelled: %v", back)
	}
	res, body = p.post(action, url.Values{"user": {"nobody"}})
	if res.StatusCode != http.StatusBadRequest || res.Header.Get("Location") != "" {
		t.Errorf("a user who is not there: %s %s", res.Status, body)
	}

	q.Set("redirect_uri", "http://[::1]:9/back")
	res, _ = p.get("/authorize", q)
	if policy := res.Header.Get("Content-Security-Policy"); !strings.HasSuffix(policy, "form-action 'self' http:") {
		t.Errorf("for IPv6: policy %s", policy)
	}
}

// Another site cannot make the browser sign somebody in.
func TestFormsOfOtherOrigins(t *testing.T) {
	t.Parallel()
	p := start(t, nil)
	q, _ := ask()
	for _, test := range []struct {
		headers []string
		want    int
	}{
		{[]string{"Sec-Fetch-Site", "same-origin"}, http.StatusSeeOther},
		{[]string{"Origin", "http://" + p.issuer.host}, http.StatusSeeOther},
		{[]string{"Sec-Fetch-Site", "cross-site"}, http.StatusForbidden},
		{[]string{"Sec-Fetch-Site", "same-site"}, http.StatusForbidden},
		{[]string{"Origin", "https://evil.example.com"}, http.StatusForbidden},
		{[]string{"Origin", "http://127.0.0.1:1"}, http.StatusForbidden},
		{[]string{"Origin", "null"}, http.StatusForbidden},
	} {
		res, _ := p.post("/signin?"+q.Encode(), url.Values{"user": {"ada"}}, test.headers...)
		if res.StatusCode != test.want {
			t.Errorf("%v: %s, want %d", test.headers, res.Status, test.want)
		}
	}
	if res, _ := p.get("/signin", q); res.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("by GET: %s", res.Status)
	}
}

// Codes that nobody redeems take bounded memory, and no longer than they live.
func TestCodesAreBounded(t *testing.T) {
	t.Parallel()
	now := time.Unix(1_800_000_000, 0)
	p := start(t, func(c *Config) { c.Clock = func() time.Time { return now } })
	q, verifier := ask()
	first := p.code(q)
	for range maxCodes - 1 {
		if _, ok := p.issuer.codes.put(grant{}); !ok {
			t.Fatal("no room too early")
		}
	}
	res, _ := p.get("/authorize", q)
	if back := p.answer(res, q); back.Get("error") != "temporarily_unavailable" {
		t.Errorf("one too many: %v", back)
	}
	if status, got := p.redeem(redemption(q, first, verifier)); status != http.StatusOK {
		t.Errorf("the first code is lost: %+v", got)
	}
	p.code(q)
	now = now.Add(codeLifetime)
	p.code(q)
	if n := len(p.issuer.codes.open); n != 1 {
		t.Errorf("%d codes are kept", n)
	}
}
