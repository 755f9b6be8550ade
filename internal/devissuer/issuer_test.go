package devissuer

import (
	"crypto/rand"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/oauth2"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const testClient = "cli"

// place is an issuer that really listens, and a client that follows no redirects.
type place struct {
	t      *testing.T
	issuer *Issuer
	url    string
	client *http.Client
}

func start(t *testing.T, change func(*Config)) *place {
	t.Helper()
	server := httptest.NewUnstartedServer(nil)
	c := Config{URL: "http://" + server.Listener.Addr().String() + "/dev/issuer", Clients: []string{testClient, "other"},
		Users: []User{{"ada", []string{"admins", "data"}}, {"Bob <b>", nil}}}
	if change != nil {
		change(&c)
	}
	issuer, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle(issuer.prefix+"/", issuer)
	server.Config.Handler = mux
	server.Start()
	t.Cleanup(server.Close)
	client := *server.Client()
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &place{t, issuer, c.URL, &client}
}

// reply is a response that was read.
type reply struct {
	StatusCode int
	Status     string
	Header     http.Header
}

func (p *place) do(req *http.Request) (reply, string) {
	p.t.Helper()
	res, err := p.client.Do(req)
	if err != nil {
		p.t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		p.t.Fatal(err)
	}
	return reply{res.StatusCode, res.Status, res.Header}, string(body)
}

func (p *place) get(path string, query url.Values) (reply, string) {
	p.t.Helper()
	req, err := http.NewRequest(http.MethodGet, p.url+path+"?"+query.Encode(), nil)
	if err != nil {
		p.t.Fatal(err)
	}
	return p.do(req)
}

func (p *place) post(path string, form url.Values, headers ...string) (reply, string) {
	p.t.Helper()
	req, err := http.NewRequest(http.MethodPost, p.url+path, strings.NewReader(form.Encode()))
	if err != nil {
		p.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	for n := 0; n < len(headers); n += 2 {
		req.Header.Set(headers[n], headers[n+1])
	}
	return p.do(req)
}

// ask is a sound request to sign ada in at once, and its verifier.
func ask() (query url.Values, verifier string) {
	verifier = oauth2.GenerateVerifier()
	return url.Values{"response_type": {"code"}, "client_id": {testClient}, "redirect_uri": {"http://127.0.0.1:9/back?keep=1"},
		"scope": {"openid"}, "state": {rand.Text()}, "nonce": {rand.Text()}, "prompt": {"none"}, "login_hint": {"ada"},
		"code_challenge": {oauth2.S256ChallengeFromVerifier(verifier)}, "code_challenge_method": {"S256"}}, verifier
}

// answer reads where a response sends the browser.
func (p *place) answer(res reply, q url.Values) url.Values {
	p.t.Helper()
	to, err := url.Parse(res.Header.Get("Location"))
	if err != nil || res.StatusCode != http.StatusSeeOther {
		p.t.Fatalf("answered %s, %v", res.Status, err)
	}
	back := to.Query()
	if !strings.HasPrefix(to.String(), q.Get("redirect_uri")) || back.Get("state") != q.Get("state") || back.Get("iss") != p.url {
		p.t.Fatalf("sent to %s", to)
	}
	return back
}

// code signs in without a page.
func (p *place) code(q url.Values) string {
	p.t.Helper()
	res, _ := p.get("/authorize", q)
	back := p.answer(res, q)
	if back.Get("code") == "" || back.Has("error") {
		p.t.Fatalf("answered %v", back)
	}
	return back.Get("code")
}

func redemption(q url.Values, code, verifier string) url.Values {
	return url.Values{"grant_type": {"authorization_code"}, "client_id": {q.Get("client_id")}, "code": {code},
		"redirect_uri": {q.Get("redirect_uri")}, "code_verifier": {verifier}}
}

// tokens is what the token endpoint says.
type tokens struct {
	ID          string `json:"id_token"`
	Access      string `json:"access_token"`
	Type        string `json:"token_type"`
	ExpiresIn   int    `json:"expires_in"`
	Error       string `json:"error"`
	Description string `json:"error_description"`
}

func (p *place) redeem(form url.Values, headers ...string) (int, tokens) {
	p.t.Helper()
	res, body := p.post("/token", form, headers...)
	var out tokens
	if err := json.Unmarshal([]byte(body), &out); err != nil {
		p.t.Fatalf("%s: %v: %s", res.Status, err, body)
	}
	if res.Header.Get("Cache-Control") != "no-store" {
		p.t.Error("tokens may be cached")
	}
	return res.StatusCode, out
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	users, clients := []User{{Name: "ada"}}, []string{testClient}
	for name, c := range map[string]Config{
		"no URL":           {Users: users, Clients: clients},
		"another machine":  {URL: "http://192.0.2.1/i", Users: users, Clients: clients},
		"a name":           {URL: "http://localhost.example.com/i", Users: users, Clients: clients},
		"another scheme":   {URL: "ftp://127.0.0.1/i", Users: users, Clients: clients},
		"slash at the end": {URL: "http://127.0.0.1/i/", Users: users, Clients: clients},
		"only a slash":     {URL: "http://127.0.0.1/", Users: users, Clients: clients},
		"a query":          {URL: "http://127.0.0.1/i?a", Users: users, Clients: clients},
		"a fragment":       {URL: "http://127.0.0.1/i#a", Users: users, Clients: clients},
		"a user":           {URL: "http://a@127.0.0.1/i", Users: users, Clients: clients},
		"a pattern":        {URL: "http://127.0.0.1/{i}", Users: users, Clients: clients},
		"dots":             {URL: "http://127.0.0.1/a/../b", Users: users, Clients: clients},
		"no clients":       {URL: "http://127.0.0.1/i", Users: users},
		"a client nobody":  {URL: "http://127.0.0.1/i", Users: users, Clients: []string{""}},
		"no users":         {URL: "http://127.0.0.1/i", Clients: clients},
		"a user nobody":    {URL: "http://127.0.0.1/i", Users: []User{{}}, Clients: clients},
		"a user twice":     {URL: "http://127.0.0.1/i", Users: []User{{Name: "a"}, {Name: "a"}}, Clients: clients},
		"not text":         {URL: "http://127.0.0.1/i", Users: []User{{Name: "\xff"}}, Clients: clients},
		"no life":          {URL: "http://127.0.0.1/i", Users: users, Clients: clients, Lifetime: time.Millisecond},
	} {
		if _, err := New(c); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	for _, u := range []string{"http://localhost:7171", "http://[::1]:7171/dev/issuer", "https://127.0.0.1/i"} {
		if _, err := New(Config{URL: u, Users: users, Clients: clients}); err != nil {
			t.Errorf("%s: %v", u, err)
		}
	}
}

// Only this machine is answered, by its own name, and not through a proxy on it.
func TestOnlyThisMachine(t *testing.T) {
	t.Parallel()
	p := start(t, nil)
	for _, test := range []struct {
		remote, host, header string
		want                 int
	}{
		{"127.0.0.1:5", p.issuer.host, "", http.StatusOK},
		{"[::1]:5", p.issuer.host, "", http.StatusOK},
		{"[::ffff:127.0.0.1]:5", p.issuer.host, "", http.StatusOK},
		{"192.0.2.1:5", p.issuer.host, "", http.StatusForbidden},
		{"[::ffff:192.0.2.1]:5", p.issuer.host, "", http.StatusForbidden},
		{"@", p.issuer.host, "", http.StatusForbidden},
		{"", p.issuer.host, "", http.StatusForbidden},
		{"127.0.0.1:5", p.issuer.host, "Forwarded", http.StatusForbidden},
		{"127.0.0.1:5", p.issuer.host, "X-Forwarded-For", http.StatusForbidden},
		{"127.0.0.1:5", p.issuer.host, "X-Forwarded-Host", http.StatusForbidden},
		{"127.0.0.1:5", p.issuer.host, "Via", http.StatusForbidden},
		{"127.0.0.1:5", "rebound.example.com", "", http.StatusMisdirectedRequest},
		{"127.0.0.1:5", "127.0.0.1:1", "", http.StatusMisdirectedRequest},
		{"127.0.0.1:5", "", "", http.StatusMisdirectedRequest},
	} {
		req := httptest.NewRequest(http.MethodGet, p.url+"/jwks", nil)
		req.RemoteAddr, req.Host = test.remote, test.host
		if test.header != "" {
			req.Header.Set(test.header, "192.0.2.1")
		}
		w := httptest.NewRecorder()
		p.issuer.ServeHTTP(w, req)
		if w.Code != test.want || strings.Contains(w.Body.String(), `"keys"`) != (test.want == http.StatusOK) {
			t.Errorf("%+v: %d %s", test, w.Code, w.Body)
		}
	}
	req, err := http.NewRequest(http.MethodGet, p.url+"/jwks", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = "rebound.example.com"
	if res, body := p.do(req); res.StatusCode != http.StatusMisdirectedRequest {
		t.Errorf("a foreign host is answered %s %s", res.Status, body)
	}
}
