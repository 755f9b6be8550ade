package federation

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/whence-db/whence"
)

// fresh makes a user's token that is good at the provider's time.
func (p *provider) fresh(t testing.TB, kid, sign string) string {
	t.Helper()
	now := p.clock().Unix()
	return p.make(t, attack{Header: map[string]any{"kid": kid}, Claims: map[string]any{"iat": now, "exp": now + 60}, Sign: sign})
}

// reason returns the stable reason of an error, "" for none.
func reason(err error) string {
	var e *whence.Error
	switch {
	case err == nil:
		return ""
	case errors.As(err, &e):
		return e.Reason
	}
	return err.Error()
}

func (p *provider) want(t testing.TB, v *Verifier, what, token, want string) {
	t.Helper()
	_, err := v.User(t.Context(), token)
	if got := reason(err); got != want {
		t.Errorf("%s: %q, want %q (%v)", what, got, want, err)
	}
}

func (p *provider) wantFetches(t testing.TB, what string, want int) {
	t.Helper()
	if got := p.fetches("/keys"); got != want {
		t.Errorf("%s: the keys were fetched %d times, want %d", what, got, want)
	}
}

func (p *provider) rotate(t testing.TB, kids ...string) {
	t.Helper()
	var keys []map[string]any
	for _, kid := range kids {
		keys = append(keys, publish(t, kid, nil))
	}
	p.document("/keys", set(t, keys...))
}

func (p *provider) fail() {
	p.answer("/keys", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) })
}

func TestKeysAreCached(t *testing.T) {
	t.Parallel()
	p := standard(t)
	v := p.verifier(t)
	for range 10 {
		p.want(t, v, "a known key", p.fresh(t, "ed", "ed"), "")
	}
	p.advance(keysAge - time.Second)
	p.want(t, v, "a known key", p.fresh(t, "ed", "ed"), "")
	p.wantFetches(t, "within five minutes", 1)
	p.advance(time.Second)
	p.want(t, v, "a known key", p.fresh(t, "ed", "ed"), "")
	p.wantFetches(t, "after five minutes", 2)
	if got := p.fetches("/main" + discoveryPath); got != 2 {
		t.Errorf("discovered %d times, want 2: the issuer may have moved its keys", got)
	}
}

func TestRotation(t *testing.T) {
	t.Parallel()
	p := standard(t)
	p.rotate(t, "ed")
	v := p.verifier(t)
	p.want(t, v, "the old key", p.fresh(t, "ed", "ed"), "")
	p.rotate(t, "stranger") // which is now the new key
	p.advance(fetchPause - time.Second)
	p.want(t, v, "the new key, too soon", p.fresh(t, "stranger", "stranger"), "TOKEN_SIGNATURE_INVALID")
	p.wantFetches(t, "too soon", 1)
	p.want(t, v, "the old key, cached", p.fresh(t, "ed", "ed"), "")
	p.advance(time.Second)
	p.want(t, v, "the new key", p.fresh(t, "stranger", "stranger"), "")
	p.wantFetches(t, "the new key", 2)
	p.want(t, v, "the old key, withdrawn", p.fresh(t, "ed", "ed"), "TOKEN_SIGNATURE_INVALID")
	p.wantFetches(t, "the old key, withdrawn", 2)
}

// A withdrawn key ends within five minutes though no new one is met.
func TestWithdrawnKeyEnds(t *testing.T) {
	t.Parallel()
	p := standard(t)
	v := p.verifier(t)
	p.want(t, v, "before", p.fresh(t, "ed", "ed"), "")
	p.document("/keys", []byte(`{"keys":[]}`))
	p.advance(keysAge)
	p.want(t, v, "after", p.fresh(t, "ed", "ed"), "TOKEN_SIGNATURE_INVALID")
}

func TestRotationWithoutKeyIDs(t *testing.T) {
	t.Parallel()
	p := standard(t)
	v := p.verifier(t)
	token := func(sign string) string {
		now := p.clock().Unix()
		return p.make(t, attack{Issuer: "unnamed", Header: map[string]any{"kid": nil}, Claims: map[string]any{"iat": now, "exp": now + 60}, Sign: sign})
	}
	p.want(t, v, "the old key", token("ed"), "")
	p.document("/unnamed", set(t, publish(t, "stranger", map[string]any{"kid": nil})))
	p.advance(fetchPause)
	p.want(t, v, "the new key", token("stranger"), "")
	p.want(t, v, "the old key", token("ed"), "TOKEN_SIGNATURE_INVALID")
}

func TestUnknownKeysAreThrottled(t *testing.T) {
	t.Parallel()
	p := standard(t)
	v := p.verifier(t)
	// All tokens at once: first when nothing is known, then when something is.
	for round := 1; round <= 3; round++ {
		var g errgroup.Group
		for n := range 50 {
			kid := fmt.Sprintf("unknown-%d", n)
			if n%2 == 0 {
				kid = "ed"
			}
			token := p.fresh(t, kid, "ed")
			g.Go(func() error {
				_, err := v.User(t.Context(), token)
				if got := reason(err); (got == "") != (kid == "ed") || got != "" && got != "TOKEN_SIGNATURE_INVALID" {
					return fmt.Errorf("kid %s: %w", kid, err)
				}
				return nil
			})
		}
		if err := g.Wait(); err != nil {
			t.Error(err)
		}
		p.wantFetches(t, "50 callers", round)
		p.advance(fetchPause)
	}
}

func TestOutage(t *testing.T) {
	t.Parallel()
	p := standard(t)
	var log bytes.Buffer
	v, err := New(Config{Issuers: p.find, Client: p.Client(), Clock: p.clock, Log: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	p.want(t, v, "before", p.fresh(t, "ed", "ed"), "")
	p.fail()
	p.advance(keysAge)
	for range 5 {
		p.want(t, v, "a known key", p.fresh(t, "ed", "ed"), "")
	}
	p.wantFetches(t, "in the outage", 2)
	p.want(t, v, "an unknown key", p.fresh(t, "new", "ed"), "ISSUER_UNREACHABLE")
	p.wantFetches(t, "an unknown key", 2)
	p.advance(fetchPause)
	p.want(t, v, "a known key", p.fresh(t, "ed", "ed"), "")
	p.wantFetches(t, "ten seconds later", 3)
	p.advance(keysLast - keysAge - fetchPause - time.Second)
	p.want(t, v, "just within an hour", p.fresh(t, "ed", "ed"), "")
	p.advance(time.Second)
	_, err = v.User(t.Context(), p.fresh(t, "ed", "ed"))
	var e *whence.Error
	if !errors.As(err, &e) || !errors.Is(err, whence.ErrUnavailable) || e.Reason != "ISSUER_UNREACHABLE" ||
		e.RetryAfter <= 0 || e.RetryAfter > fetchPause || strings.Contains(e.Message, "main") {
		t.Errorf("after an hour: %+v", err)
	}
	if n := strings.Count(log.String(), "level=WARN"); n != 1 {
		t.Errorf("the outage was logged %d times:\n%s", n, log.String())
	}
	p.rotate(t, "ed")
	p.advance(fetchPause)
	p.want(t, v, "after the outage", p.fresh(t, "ed", "ed"), "")
	if n := strings.Count(log.String(), "can be fetched again"); n != 1 {
		t.Errorf("the end of the outage was logged %d times:\n%s", n, log.String())
	}
}

func TestOutageFromTheStart(t *testing.T) {
	t.Parallel()
	p := standard(t)
	p.fail()
	v := p.verifier(t)
	for range 5 {
		p.want(t, v, "nothing known", p.fresh(t, "ed", "ed"), "ISSUER_UNREACHABLE")
	}
	p.wantFetches(t, "nothing known", 1)
	p.rotate(t, "ed")
	p.advance(fetchPause)
	p.want(t, v, "reachable", p.fresh(t, "ed", "ed"), "")
}

// A clock that is set back must not let old keys live, nor stop fetching.
func TestClockSetBack(t *testing.T) {
	t.Parallel()
	p := standard(t)
	v := p.verifier(t)
	p.want(t, v, "before", p.fresh(t, "ed", "ed"), "")
	p.document("/keys", []byte(`{"keys":[]}`))
	p.advance(-time.Hour)
	p.want(t, v, "after", p.fresh(t, "ed", "ed"), "TOKEN_SIGNATURE_INVALID")
	p.wantFetches(t, "after", 2)
}

// While one caller waits for newer keys, others go on with those at hand; one
// that needs them can give up; the one that fetches does it for all.
func TestSlowIssuer(t *testing.T) {
	t.Parallel()
	p := standard(t)
	v := p.verifier(t)
	p.want(t, v, "before", p.fresh(t, "ed", "ed"), "")
	entered, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	answer := set(t, publish(t, "ed", nil), publish(t, "stranger", nil))
	p.answer("/keys", func(w http.ResponseWriter, _ *http.Request) {
		once.Do(func() { close(entered) })
		<-release
		_, _ = w.Write(answer)
	})
	p.advance(keysAge)
	token, other := p.fresh(t, "ed", "ed"), p.fresh(t, "stranger", "stranger")
	var g errgroup.Group
	leaving, leave := context.WithCancel(t.Context())
	g.Go(func() error { _, err := v.User(leaving, token); return err })
	<-entered
	p.want(t, v, "a known key meanwhile", token, "")
	impatient, stop := context.WithCancel(t.Context())
	stop()
	if _, err := v.User(impatient, other); !errors.Is(err, context.Canceled) {
		t.Errorf("a caller that gave up: %v", err)
	}
	leave() // the one that fetches does not stop for it
	g.Go(func() error { _, err := v.User(t.Context(), other); return err })
	close(release)
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
	p.wantFetches(t, "all callers", 2)
}

func TestBadDocuments(t *testing.T) {
	t.Parallel()
	body := func(s string) func(http.ResponseWriter, *http.Request) {
		return func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(s)) }
	}
	key := strings.Trim(string(set(t, publish(t, "ed", nil)))[len(`{"keys":[`):], "]}") + "}"
	many := func(n int) string { return `{"keys":[` + strings.Repeat(key+",", n-1) + key + `]}` }
	discovery, keys := "/main"+discoveryPath, "/keys"
	for _, c := range []struct {
		name, path string
		answer     func(*provider) func(http.ResponseWriter, *http.Request)
		good       bool
	}{
		{"64 keys", keys, func(*provider) func(http.ResponseWriter, *http.Request) { return body(many(64)) }, true},
		{"65 keys", keys, func(*provider) func(http.ResponseWriter, *http.Request) { return body(many(65)) }, false},
		{"256 KiB", keys, func(*provider) func(http.ResponseWriter, *http.Request) {
			return body(many(1) + strings.Repeat(" ", maxDocument-len(many(1))))
		}, true},
		{"more than 256 KiB", keys, func(*provider) func(http.ResponseWriter, *http.Request) {
			return body(many(1) + strings.Repeat(" ", maxDocument-len(many(1))+1))
		}, false},
		{"keys twice", keys, func(*provider) func(http.ResponseWriter, *http.Request) {
			return body(`{"keys":[],` + many(1)[1:])
		}, false},
		{"no keys", keys, func(*provider) func(http.ResponseWriter, *http.Request) { return body(`{}`) }, false},
		{"KEYS", keys, func(*provider) func(http.ResponseWriter, *http.Request) {
			return body(strings.Replace(many(1), "keys", "KEYS", 1))
		}, false},
		{"a page", keys, func(*provider) func(http.ResponseWriter, *http.Request) { return body(`<html>`) }, false},
		{"an error with keys", keys, func(*provider) func(http.ResponseWriter, *http.Request) {
			return func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusNotFound); body(many(1))(w, r) }
		}, false},
		{"keys elsewhere", keys, func(p *provider) func(http.ResponseWriter, *http.Request) {
			p.answer("/elsewhere", body(many(1)))
			return func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/elsewhere", http.StatusFound) }
		}, false},
		{"discovery elsewhere", discovery, func(p *provider) func(http.ResponseWriter, *http.Request) {
			p.answer("/elsewhere", p.documents[discovery])
			return func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/elsewhere", http.StatusFound) }
		}, false},
		{"another issuer's discovery", discovery, func(p *provider) func(http.ResponseWriter, *http.Request) {
			return body(fmt.Sprintf(`{"issuer":%q,"jwks_uri":%q}`, p.URL+"/other", p.URL+"/keys"))
		}, false},
		{"nobody's discovery", discovery, func(p *provider) func(http.ResponseWriter, *http.Request) {
			return body(fmt.Sprintf(`{"jwks_uri":%q}`, p.URL+"/keys"))
		}, false},
		{"two issuers' discovery", discovery, func(p *provider) func(http.ResponseWriter, *http.Request) {
			return body(fmt.Sprintf(`{"issuer":%q,"Issuer":%[1]q,"jwks_uri":%q}`, p.URL+"/main", p.URL+"/keys"))
		}, false},
		{"discovery without keys", discovery, func(p *provider) func(http.ResponseWriter, *http.Request) {
			return body(fmt.Sprintf(`{"issuer":%q}`, p.URL+"/main"))
		}, false},
		{"keys in a file", discovery, func(p *provider) func(http.ResponseWriter, *http.Request) {
			return body(fmt.Sprintf(`{"issuer":%q,"jwks_uri":"file:///etc/keys"}`, p.URL+"/main"))
		}, false},
		{"keys over an open line", discovery, func(p *provider) func(http.ResponseWriter, *http.Request) {
			return body(fmt.Sprintf(`{"issuer":%q,"jwks_uri":"http://id.test/keys"}`, p.URL+"/main"))
		}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			p := standard(t)
			p.answer(keys, body(many(1)))
			p.answer(c.path, c.answer(p))
			want := "ISSUER_UNREACHABLE"
			if c.good {
				want = ""
			}
			p.want(t, p.verifier(t), c.name, p.fresh(t, "ed", "ed"), want)
			if c.path == discovery { // that nothing can be fetched from there is not enough
				if at, err := discover(t.Context(), p.verifier(t).c.Client, p.URL+"/main"); err == nil {
					t.Errorf("discovery leads to %s", at)
				}
			}
			if n := p.fetches("/elsewhere"); n != 0 {
				t.Errorf("a redirect was followed %d times", n)
			}
		})
	}
}

// An issuer that speaks TLS must not send us to this machine's plain services.
func TestDiscoveryStaysWithTLS(t *testing.T) {
	t.Parallel()
	inner := standard(t)
	var outer *httptest.Server
	at := inner.URL + "/keys"
	outer = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/keys" {
			http.Redirect(w, r, inner.URL, http.StatusFound)
			return
		}
		_, _ = fmt.Fprintf(w, `{"issuer":%q,"jwks_uri":%q}`, outer.URL, at)
	}))
	defer outer.Close()
	defer outer.Client().CloseIdleConnections()
	if got, err := discover(t.Context(), outer.Client(), outer.URL); err == nil {
		t.Errorf("sent to %s", got)
	}
	at = outer.URL + "/keys"
	if got, err := discover(t.Context(), outer.Client(), outer.URL); err != nil || got != at {
		t.Errorf("%q, %v", got, err)
	}
}

type transport func(*http.Request) (*http.Response, error)

func (f transport) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestFetchesEnd(t *testing.T) {
	t.Parallel()
	p := standard(t)
	var rest time.Duration
	client := &http.Client{Transport: transport(func(r *http.Request) (*http.Response, error) {
		end, ok := r.Context().Deadline()
		if ok {
			rest = time.Until(end)
		}
		return nil, errors.New("no answer")
	})}
	v, err := New(Config{Issuers: p.find, Client: client, Clock: p.clock})
	if err != nil {
		t.Fatal(err)
	}
	p.want(t, v, "no answer", p.fresh(t, "ed", "ed"), "ISSUER_UNREACHABLE")
	if rest <= 0 || rest > fetchTimeout {
		t.Errorf("a fetch may take %s", rest)
	}
}
