package oauth_test

import (
	"bytes"
	"encoding/json"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"testing"

	"github.com/whence-db/whence/api/oauth"
	"github.com/whence-db/whence/gateway/gatewaytest"
	"github.com/whence-db/whence/internal/pgtest"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

const (
	exchange  = "urn:ietf:params:oauth:grant-type:token-exchange"
	assertion = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
	tokenType = "urn:ietf:params:oauth:token-type:"
	formType  = "application/x-www-form-urlencoded"
)

// site is a world with its endpoints on the network.
type site struct {
	*gatewaytest.World
	server *httptest.Server
	log    bytes.Buffer
}

func start(t *testing.T) *site {
	t.Helper()
	s := &site{World: gatewaytest.NewWorld(t)}
	h, err := oauth.New(oauth.Config{Issuer: gatewaytest.Name, Door: s.Gateway, Keys: s.Keys, Clock: s.Now,
		Log: slog.New(slog.NewTextHandler(&s.log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	s.server = httptest.NewServer(h)
	t.Cleanup(s.server.Close)
	return s
}

// reply is a response that has been read; doc is nil when it had no body.
type reply struct {
	status int
	header http.Header
	doc    map[string]any
}

func (r reply) text(member string) string {
	s, _ := r.doc[member].(string)
	return s
}

func (s *site) do(t *testing.T, method, path, body string, header http.Header) reply {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, s.server.URL+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	maps.Copy(req.Header, header)
	resp, err := s.server.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	got := reply{status: resp.StatusCode, header: resp.Header}
	if len(b) > 0 {
		if err := json.Unmarshal(b, &got.doc); err != nil {
			t.Fatalf("%s %s: %s is not JSON: %.200q", method, path, resp.Status, b)
		}
	}
	if kept := resp.Header.Get("Cache-Control"); kept != "no-store" {
		t.Errorf("%s %s: Cache-Control %q", method, path, kept)
	}
	return got
}

// post sends a form; header holds pairs of names and values.
func (s *site) post(t *testing.T, path string, form url.Values, header ...string) reply {
	t.Helper()
	h := http.Header{"Content-Type": {formType}}
	for i := 0; i < len(header); i += 2 {
		h.Set(header[i], header[i+1])
	}
	return s.do(t, http.MethodPost, path, form.Encode(), h)
}

const details = `[{"type":"whence","tables":["app.public.articles"],"subjects":["s1"],"filter":{"lang":"en"},
	"actions":["memory:read"],"budget":{"calls":7},"purpose":"find \"it\"","lifetime":"90s"}]`

// form is a request of agent writer for a task for ada.
func (s *site) form() url.Values {
	return url.Values{"grant_type": {exchange}, "subject_token": {s.UserToken("ada")}, "subject_token_type": {tokenType + "id_token"},
		"client_assertion": {s.Assertion("writer")}, "client_assertion_type": {assertion}, "authorization_details": {details}}
}

// recorded counts the entries of a call.
func (s *site) recorded(t *testing.T, call, decision, reason string) (n int) {
	t.Helper()
	err := s.Pool.QueryRow(t.Context(), "select count(*) from whence.entries where call = $1 and decision = $2 and ($3 = '' or reason = $3)",
		call, decision, reason).Scan(&n)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// withoutLog runs f while nothing can be recorded.
func (s *site) withoutLog(t *testing.T, f func()) {
	t.Helper()
	for _, sql := range []string{"alter table whence.entries rename to gone", "alter table whence.gone rename to entries"} {
		if _, err := s.Pool.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
		if f != nil {
			f()
		}
		f = nil
	}
}
