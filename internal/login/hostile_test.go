package login

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// hostile is an issuer that is wrong in one way.
type hostile struct {
	doc       map[string]any            // laid over its description
	claims    map[string]any            // laid over what its token says
	token     func(right string) string // what it sends as the ID token
	authorize func(w http.ResponseWriter, r *http.Request) (done bool)
	discover  func(w http.ResponseWriter, r *http.Request) (done bool)
}

func (h hostile) start(t *testing.T) string {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key := jose.JSONWebKey{Key: private, KeyID: "one", Algorithm: "ES256", Use: "sig"}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: key}, nil)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	nonces := make(chan string, 8)
	mux.HandleFunc("/.well-known/openid-configuration", func(w http.ResponseWriter, r *http.Request) {
		if h.discover != nil && h.discover(w, r) {
			return
		}
		doc := map[string]any{"issuer": server.URL, "authorization_endpoint": server.URL + "/authorize",
			"token_endpoint": server.URL + "/token", "jwks_uri": server.URL + "/jwks",
			"id_token_signing_alg_values_supported": []string{"ES256"}}
		maps.Copy(doc, h.doc)
		writeJSON(w, doc)
	})
	mux.HandleFunc("/authorize", func(w http.ResponseWriter, r *http.Request) {
		if h.authorize != nil && h.authorize(w, r) {
			return
		}
		q := r.URL.Query()
		nonces <- q.Get("nonce")
		http.Redirect(w, r, q.Get("redirect_uri")+"?code=c&state="+url.QueryEscape(q.Get("state")), http.StatusFound)
	})
	mux.HandleFunc("/token", func(w http.ResponseWriter, _ *http.Request) {
		now := time.Now()
		claims := map[string]any{"iss": server.URL, "sub": "ada", "aud": "cli", "nonce": <-nonces,
			"iat": now.Unix(), "exp": now.Add(time.Minute).Unix()}
		maps.Copy(claims, h.claims)
		raw, err := jwt.Signed(signer).Claims(claims).Serialize()
		if err != nil {
			t.Error(err)
		}
		if h.token != nil {
			raw = h.token(raw)
		}
		writeJSON(w, map[string]any{"access_token": "a", "token_type": "Bearer", "id_token": raw})
	})
	mux.HandleFunc("/jwks", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, jose.JSONWebKeySet{Keys: []jose.JSONWebKey{key.Public()}})
	})
	return server.URL
}

func to(code int, location string) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		http.Redirect(w, r, location, code)
		return true
	}
}

func TestIssuersThatAreWrong(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		issuer hostile
		want   []string
	}{
		"none":                {hostile{}, nil},
		"azp is the client":   {hostile{claims: map[string]any{"aud": []string{"cli", "x"}, "azp": "cli"}}, nil},
		"another audience":    {hostile{claims: map[string]any{"aud": "x"}}, []string{"not to be trusted", "audience"}},
		"another party":       {hostile{claims: map[string]any{"azp": "x"}}, []string{"not to be trusted", `for the client "x"`}},
		"audiences, no party": {hostile{claims: map[string]any{"aud": []string{"cli", "x"}}}, []string{"not to be trusted"}},
		"another issuer":      {hostile{claims: map[string]any{"iss": "https://x.example.com"}}, []string{"not to be trusted", "different provider"}},
		"another nonce":       {hostile{claims: map[string]any{"nonce": "x"}}, []string{"nonce"}},
		"no nonce":            {hostile{claims: map[string]any{"nonce": ""}}, []string{"nonce"}},
		"expired":             {hostile{claims: map[string]any{"exp": time.Now().Add(-time.Minute).Unix()}}, []string{"expired"}},
		"no token":            {hostile{token: func(string) string { return "" }}, []string{"sent no ID token", "scope openid"}},
		"broken signature":    {hostile{token: func(s string) string { return s[:len(s)-8] + "AAAAAAAA" }}, []string{"not to be trusted"}},
		"no signature": {hostile{token: func(s string) string {
			return "eyJhbGciOiJub25lIn0." + strings.Split(s, ".")[1] + "."
		}}, []string{"not to be trusted"}},
		"iss is promised":    {hostile{doc: map[string]any{"authorization_response_iss_parameter_supported": true}}, []string{"nothing was sent"}},
		"calls itself other": {hostile{doc: map[string]any{"issuer": "https://x.example.com"}}, []string{"calls itself", "https://x.example.com"}},
		"plain token endpoint": {hostile{doc: map[string]any{"token_endpoint": "http://x.example.com/token"}},
			[]string{"without encryption", "x.example.com"}},
		"file for a page": {hostile{doc: map[string]any{"authorization_endpoint": "file:///etc/passwd"}}, []string{"without encryption"}},
		"no description": {hostile{discover: func(w http.ResponseWriter, r *http.Request) bool {
			http.Error(w, "\x1b[2Jnot here", http.StatusNotFound)
			return true
		}}, []string{"cannot be used: 404 Not Found: [2Jnot here; check the URL"}},
		"description elsewhere": {hostile{discover: to(http.StatusFound, "http://x.example.com/")}, []string{"without encryption"}},
		"without end": {hostile{authorize: func(w http.ResponseWriter, r *http.Request) bool {
			return to(http.StatusFound, r.URL.String())(w, r)
		}}, []string{"redirects without end"}},
		"away, unencrypted": {hostile{authorize: to(http.StatusFound, "http://x.example.com/login")}, []string{"http://x.example.com, without encryption"}},
		"another state": {hostile{authorize: func(w http.ResponseWriter, r *http.Request) bool {
			return to(http.StatusFound, r.URL.Query().Get("redirect_uri")+"?code=c&state=x")(w, r)
		}}, []string{"the state differs"}},
		"refuses": {hostile{authorize: func(w http.ResponseWriter, r *http.Request) bool {
			q := r.URL.Query()
			return to(http.StatusFound, q.Get("redirect_uri")+"?error=access_denied&state="+q.Get("state"))(w, r)
		}}, []string{"cancelled or refused"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := config(t, test.issuer.start(t))
			c.User = "ada"
			raw, err := IDToken(t.Context(), c)
			if test.want != nil {
				refused(t, raw, err, test.want...)
			} else if err != nil {
				t.Error(err)
			}
		})
	}
}

// An issuer that answers with a page wants its user, whatever the page says.
func TestPageInsteadOfAnAnswer(t *testing.T) {
	t.Parallel()
	pages := 0
	at := issuer(t, func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Query().Get("prompt") != "none" {
			return false
		}
		pages++
		// A page may name an address; only a redirect is one.
		w.Header().Set("Location", "http://x.example.com/?code=c&state="+r.URL.Query().Get("state"))
		w.WriteHeader(http.StatusBadRequest)
		return true
	})
	c := config(t, at)
	c.User = "ada"
	v := newVisitor(t)
	c.Open = func(page string) error { v.visit(v.press(page, "user", "bob")); return nil }
	if raw, err := IDToken(t.Context(), c); err != nil || subject(t, at, raw) != "bob" || pages != 1 {
		t.Errorf("%d pages, %v", pages, err)
	}
}

func TestIssuerThatIsNotThere(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := "http://" + l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	raw, err := IDToken(t.Context(), config(t, at))
	refused(t, raw, err, at, "refused", "check the URL, and that it is running")

	for _, path := range []string{"/authorize", "/token"} { // one that goes away meanwhile
		at = issuer(t, func(_ http.ResponseWriter, r *http.Request) bool {
			if strings.HasSuffix(r.URL.Path, path) {
				panic(http.ErrAbortHandler)
			}
			return false
		})
		c := config(t, at)
		c.User = "ada"
		raw, err = IDToken(t.Context(), c)
		refused(t, raw, err, at, "cannot be used", "EOF")
		if strings.Contains(err.Error(), "code_challenge") {
			t.Errorf("the address is told: %v", err)
		}
	}
}
