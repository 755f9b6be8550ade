package login

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"go.uber.org/goleak"
	"golang.org/x/sync/errgroup"

	"github.com/whence-db/whence/internal/devissuer"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// issuer runs the development issuer where a proxy may look at every request first.
func issuer(t *testing.T, look func(http.ResponseWriter, *http.Request) (done bool)) string {
	t.Helper()
	server := httptest.NewUnstartedServer(nil)
	at := "http://" + server.Listener.Addr().String() + "/dev/issuer"
	i, err := devissuer.New(devissuer.Config{URL: at, Clients: []string{"cli"},
		Users: []devissuer.User{{Name: "ada", Groups: []string{"admins"}}, {Name: "bob"}}})
	if err != nil {
		t.Fatal(err)
	}
	server.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if look == nil || !look(w, r) {
			i.ServeHTTP(w, r)
		}
	})
	server.Start()
	t.Cleanup(server.Close)
	return at
}

// client leaves no connection behind.
func client(t *testing.T) *http.Client {
	t.Helper()
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 10 * time.Second}
}

func config(t *testing.T, at string) Config {
	t.Helper()
	return Config{Issuer: at, ClientID: "cli", Client: client(t), Wait: 10 * time.Second, Out: t.Output(),
		Open: func(string) error { return errors.New("a browser was not expected") }}
}

// visitor is a browser with somebody in front of it.
type visitor struct {
	t      *testing.T
	client *http.Client
}

// newVisitor's browser stops before it follows a redirect.
func newVisitor(t *testing.T) visitor {
	t.Helper()
	c := client(t)
	c.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return visitor{t, c}
}

// visit returns the page, and where it redirects to.
func (v visitor) visit(at string) (status int, body, to string) {
	v.t.Helper()
	req, err := http.NewRequest(http.MethodGet, at, nil)
	if err != nil {
		v.t.Error(err)
		return 0, "", ""
	}
	return v.send(req)
}

func (v visitor) post(at string, form url.Values) (status int, body, to string) {
	v.t.Helper()
	req, err := http.NewRequest(http.MethodPost, at, strings.NewReader(form.Encode()))
	if err != nil {
		v.t.Error(err)
		return 0, "", ""
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	return v.send(req)
}

func (v visitor) send(req *http.Request) (status int, body, to string) {
	v.t.Helper()
	res, err := v.client.Do(req)
	if err != nil {
		v.t.Error(err)
		return 0, "", ""
	}
	defer func() { _ = res.Body.Close() }()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		v.t.Error(err)
	}
	return res.StatusCode, string(b), res.Header.Get("Location")
}

// press sends the development issuer's form, and returns where that leads.
func (v visitor) press(page, field, value string) (to string) {
	v.t.Helper()
	status, body, _ := v.visit(page)
	_, rest, _ := strings.Cut(body, `action="`)
	action, _, found := strings.Cut(rest, `"`)
	if status != http.StatusOK || !found {
		v.t.Errorf("no form on %s: %d %s", page, status, body)
		return ""
	}
	u, err := url.Parse(page)
	if err != nil {
		v.t.Error(err)
		return ""
	}
	_, _, to = v.post("http://"+u.Host+html.UnescapeString(action), url.Values{field: {value}})
	return to
}

func change(at string, set ...string) string {
	u, err := url.Parse(at)
	if err != nil {
		return err.Error()
	}
	q := u.Query()
	for n := 0; n < len(set); n += 2 {
		q.Set(set[n], set[n+1])
	}
	u.RawQuery = q.Encode()
	return u.String()
}

// subject verifies a token as another party would.
func subject(t *testing.T, at, raw string) string {
	t.Helper()
	ctx := oidc.ClientContext(t.Context(), client(t))
	p, err := oidc.NewProvider(ctx, at)
	if err != nil {
		t.Fatal(err)
	}
	token, err := p.VerifierContext(ctx, &oidc.Config{ClientID: "cli"}).Verify(ctx, raw)
	if err != nil {
		t.Fatalf("%v: %q", err, raw)
	}
	return token.Subject
}

func TestWithoutABrowser(t *testing.T) {
	t.Parallel()
	c := config(t, issuer(t, nil))
	for _, user := range []string{"ada", "bob"} {
		c.User = user
		raw, err := IDToken(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		if got := subject(t, c.Issuer, raw); got != user {
			t.Errorf("signed %s in as %s", user, got)
		}
	}
}

func TestWithABrowser(t *testing.T) {
	t.Parallel()
	c := config(t, issuer(t, nil))
	var out bytes.Buffer
	c.Out = &out
	for _, test := range []struct{ hint, press string }{{"", "bob"}, {"nobody", "ada"}} {
		v := newVisitor(t)
		out.Reset()
		c.User = test.hint
		c.Open = func(page string) error {
			if !strings.Contains(out.String(), page) {
				t.Errorf("the page is not written: %q", out.String())
			}
			if u, err := url.Parse(page); err != nil || u.Query().Get("login_hint") != test.hint || u.Query().Has("prompt") ||
				u.Query().Get("scope") != "openid profile groups" {
				t.Errorf("opened %s", page)
			}
			status, body, _ := v.visit(v.press(page, "user", test.press))
			if status != http.StatusOK || !strings.Contains(body, "close this page") {
				t.Errorf("at the end the browser shows %d %s", status, body)
			}
			return nil
		}
		raw, err := IDToken(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		if got := subject(t, c.Issuer, raw); got != test.press {
			t.Errorf("signed %s in as %s", test.press, got)
		}
		if said := strings.Contains(out.String(), "nobody is not signed in without a page"); said != (test.hint != "") {
			t.Errorf("wrote %q", out.String())
		}
	}
}

// A browser that does not open is no failure: the user may open the page.
func TestBrowserThatFails(t *testing.T) {
	t.Parallel()
	c := config(t, issuer(t, nil))
	var out bytes.Buffer
	c.Out = &out
	v := newVisitor(t)
	c.Open = func(page string) error {
		v.visit(v.press(page, "user", "bob"))
		return errors.New("no display")
	}
	if raw, err := IDToken(t.Context(), c); err != nil || subject(t, c.Issuer, raw) != "bob" {
		t.Error(err)
	}
	if !strings.Contains(out.String(), "no display") {
		t.Errorf("wrote %q", out.String())
	}
}

// Sign-ins at once, of both users, get each their own token.
func TestConcurrently(t *testing.T) {
	t.Parallel()
	c := config(t, issuer(t, nil))
	var group errgroup.Group
	tokens := make([]string, 16)
	who := func(n int) string { return []string{"ada", "bob"}[n%2] }
	v := newVisitor(t)
	for n := range tokens {
		c := c
		c.Out = nil
		if n%4 < 2 {
			c.User = who(n)
		} else {
			c.Open = func(page string) error { v.visit(v.press(page, "user", who(n))); return nil }
		}
		group.Go(func() (err error) { tokens[n], err = IDToken(t.Context(), c); return err })
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	for n, raw := range tokens {
		if got := subject(t, c.Issuer, raw); got != who(n) {
			t.Errorf("%d is %s, want %s", n, got, who(n))
		}
	}
}

// What anybody's page could send to the listener is refused and waited past.
func TestAnswersThatDoNotFit(t *testing.T) {
	t.Parallel()
	c := config(t, issuer(t, nil))
	v := newVisitor(t)
	c.Open = func(page string) error {
		to := v.press(page, "user", "ada")
		u, err := url.Parse(to)
		if err != nil {
			return err
		}
		for name, at := range map[string]string{
			"another state": change(to, "state", "x"),
			"no state":      u.Scheme + "://" + u.Host + u.Path + "?code=x",
			"an error":      change(to, "state", "", "error", "access_denied"),
			"another path":  strings.Replace(to, callbackPath, "/", 1),
		} {
			if status, body, _ := v.visit(at); status != http.StatusBadRequest && status != http.StatusNotFound {
				t.Errorf("%s: %d %s", name, status, body)
			}
		}
		req, err := http.NewRequest(http.MethodGet, to, nil)
		if err != nil {
			return err
		}
		req.Host = "rebound.example.com"
		if status, body, _ := v.send(req); status != http.StatusMisdirectedRequest {
			t.Errorf("a foreign host: %d %s", status, body)
		}
		if status, body, _ := v.post(to, nil); status != http.StatusMethodNotAllowed {
			t.Errorf("by POST: %d %s", status, body)
		}
		if status, _, _ := v.visit(to); status != http.StatusOK {
			t.Errorf("the answer itself: %d", status)
		}
		return nil
	}
	if raw, err := IDToken(t.Context(), c); err != nil || subject(t, c.Issuer, raw) != "ada" {
		t.Error(err)
	}
}

// What goes wrong between the page and the token is said, with what to do.
func TestSignInsThatFail(t *testing.T) {
	t.Parallel()
	at := issuer(t, nil)
	for name, test := range map[string]struct {
		open func(v visitor, page string)
		want []string
	}{
		"cancelled": {func(v visitor, page string) {
			if _, body, _ := v.visit(v.press(page, "cancel", "yes")); !strings.Contains(body, "You are not signed in") {
				t.Errorf("the browser shows %s", body)
			}
		}, []string{"was cancelled", "run the command again"}},
		"nobody": {func(visitor, string) {}, []string{"nobody signed in", "within 200ms", "open the page"}},
		"wrong state alone": {func(v visitor, page string) {
			v.visit(v.press(change(page, "state", "x"), "user", "ada"))
		}, []string{"nobody signed in"}},
		"wrong nonce": {func(v visitor, page string) {
			v.visit(v.press(change(page, "nonce", "x"), "user", "ada"))
		}, []string{"not to be trusted", "nonce"}},
		"wrong verifier": {func(v visitor, page string) {
			v.visit(v.press(change(page, "code_challenge", strings.Repeat("A", 43)), "user", "ada"))
		}, []string{"no token for its code", "400", "invalid_grant", "public client"}},
		"wrong redirect_uri": {func(v visitor, page string) { // the code was made for another listener
			u, err := url.Parse(page)
			if err != nil {
				t.Error(err)
			}
			home := u.Query().Get("redirect_uri")
			to := v.press(change(page, "redirect_uri", "http://127.0.0.1:9/callback"), "user", "ada")
			v.visit(strings.Replace(to, "http://127.0.0.1:9/callback", home, 1))
		}, []string{"no token for its code", "invalid_grant"}},
		"a code used before": {func(v visitor, page string) {
			to := v.press(page, "user", "ada")
			u, err := url.Parse(to)
			if err != nil {
				t.Error(err)
			}
			v.post(at+"/token", url.Values{"grant_type": {"authorization_code"}, "client_id": {"cli"}, "code": {u.Query().Get("code")}})
			v.visit(to)
		}, []string{"no token for its code", "invalid_grant", "run the command again"}},
		"another issuer's answer": {func(v visitor, page string) {
			v.visit(change(v.press(page, "user", "ada"), "iss", "https://evil.example.com"))
		}, []string{"evil.example.com", "nothing was sent"}},
		"nobody's answer": {func(v visitor, page string) {
			v.visit(change(v.press(page, "user", "ada"), "iss", ""))
		}, []string{"nothing was sent"}},
		"no page": {func(v visitor, page string) {
			_, _, to := v.visit(change(page, "prompt", "none"))
			v.visit(to)
		}, []string{"did not show its page", "login_required", "sign in there first"}},
		"neither": {func(v visitor, page string) {
			v.visit(change(v.press(page, "user", "ada"), "code", ""))
		}, []string{"neither a code nor an error"}},
		"trouble": {func(v visitor, page string) {
			v.visit(change(v.press(page, "user", "ada"), "error", "temporarily_unavailable"))
		}, []string{"try again in a while"}},
		"another error": {func(v visitor, page string) {
			v.visit(change(v.press(page, "user", "ada"), "error", "unauthorized_client", "error_description", "no\x1b[2J "+strings.Repeat("x", 500)))
		}, []string{"(unauthorized_client: no[2J xxx", "…)", "public client with loopback redirects"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := config(t, at)
			if strings.HasPrefix(test.want[0], "nobody") {
				c.Wait = 200 * time.Millisecond
			}
			v := newVisitor(t)
			c.Open = func(page string) error { test.open(v, page); return nil }
			raw, err := IDToken(t.Context(), c)
			refused(t, raw, err, test.want...)
		})
	}
}

func refused(t *testing.T, raw string, err error, want ...string) {
	t.Helper()
	if err == nil || raw != "" {
		t.Errorf("let in with %q, want %q", raw, want)
		return
	}
	for _, w := range want {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%v\nwant %q", err, w)
		}
	}
}

func TestInterrupted(t *testing.T) {
	t.Parallel()
	c := config(t, issuer(t, nil))
	ctx, cancel := context.WithCancelCause(t.Context())
	stop := errors.New("stop")
	c.Open = func(string) error { cancel(stop); return nil }
	raw, err := IDToken(ctx, c)
	refused(t, raw, err, "interrupted")
	if !errors.Is(err, stop) {
		t.Errorf("%v hides why", err)
	}
	raw, err = IDToken(ctx, c) // before anything was asked
	refused(t, raw, err, "interrupted")
}

// The listener's port is free again, whatever came of it.
func TestListenerEnds(t *testing.T) {
	t.Parallel()
	var at string
	c := config(t, issuer(t, func(_ http.ResponseWriter, r *http.Request) bool {
		if r.URL.Query().Has("redirect_uri") {
			at = r.URL.Query().Get("redirect_uri")
		}
		return false
	}))
	c.Wait = 50 * time.Millisecond
	c.Open = func(page string) error { newVisitor(t).visit(page); return nil }
	for _, test := range []struct {
		user string
		let  bool
	}{{"ada", true}, {"", false}} {
		c.User = test.user
		if _, err := IDToken(t.Context(), c); (err == nil) != test.let {
			t.Fatal(err)
		}
		if res, err := client(t).Get(at); err == nil || !strings.Contains(err.Error(), "refused") {
			if err == nil {
				_ = res.Body.Close()
			}
			t.Errorf("%q still answers: %v", at, err)
		}
	}
}

func TestConfigRefused(t *testing.T) {
	t.Parallel()
	for want, c := range map[string]Config{
		"client id is required": {Issuer: "https://issuer.example.com"},
		"must be an https URL":  {Issuer: "http://issuer.example.com", ClientID: "cli"},
		`"" must be`:            {ClientID: "cli"},
		"negative":              {Issuer: "https://issuer.example.com", ClientID: "cli", Wait: -1},
	} {
		raw, err := IDToken(t.Context(), c)
		refused(t, raw, err, want)
	}
	for at, want := range map[string]bool{"https://a.example.com": true, "http://127.0.0.1:1/x": true, "http://[::1]": true,
		"http://localhost": true, "http://localhost.example.com": false, "http://a.example.com": false, "https://": false,
		"file:///etc/passwd": false, "http://192.0.2.1": false, "": false} {
		if safe(at) != want {
			t.Errorf("%q: safe is %t", at, !want)
		}
	}
}

// Only a terminal gets a browser.
func TestBrowserNeedsATerminal(t *testing.T) {
	folder := t.TempDir()
	if err := os.WriteFile(filepath.Join(folder, "xdg-open"), []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", folder)
	t.Setenv("DISPLAY", ":0")
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = null.Close() })
	for _, out := range []io.Writer{io.Discard, null} {
		if program, ok := browser(out); ok {
			t.Errorf("%T opens %s", out, program)
		}
	}
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(v); err != nil {
		panic(fmt.Sprintf("write: %v", err))
	}
}
