package main

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/authz/authztest/forge"
	"github.com/whence-db/whence/internal/login"
	v1 "github.com/whence-db/whence/proto/gen/whence/v1"
)

// authorityCase is one case of testdata/authority.json: an exchange (form) or a call,
// and what is to come of it. Words that begin with "$" stand for credentials, as
// cast.say knows them.
type authorityCase struct {
	Name     string
	Form     map[string]any
	Call     string
	Token    string
	Scheme   string // empty: Bearer
	DPoP     string
	Body     map[string]any
	Status   int
	Error    string // of an exchange; empty: any
	Reason   string // empty: none is to be there, or any of an exchange that is refused before it is read
	Metadata map[string]string
}

// cast is who plays: agents with their keys, tokens by name.
type cast struct {
	w      *running
	keys   map[string]ed25519.PrivateKey
	tokens map[string]string
}

// wish is what most ask for: less than the grant of alpha.
const wish = `[{"type":"whence","tables":["app.public.shelf"],"subjects":["ann"],"actions":["memory:read"],"budget":{"calls":3},"purpose":"look for quinces","lifetime":"1m"}]`

// TestAuthorityAttacks tries each case on a server that listens, and holds that each
// leaves its entry.
func TestAuthorityAttacks(t *testing.T) {
	t.Parallel()
	w := startDev(t)
	w.exec(t, `create table public.shelf (id int primary key, owner text, lang text, what text)`)
	w.exec(t, `create table public.safe (id int primary key, what text)`)
	w.register(t, &v1.RegisterTableRequest{Table: "public.shelf", TextColumns: []string{"what"}, SubjectColumn: "owner", AttributeColumns: []string{"lang"}})
	w.register(t, &v1.RegisterTableRequest{Table: "public.safe", TextColumns: []string{"what"}})
	c := newCast(t, w)
	seen := map[string]bool{}
	for _, a := range readAuthority(t) {
		if seen[a.Name] {
			t.Errorf("two cases are called %q", a.Name)
		}
		seen[a.Name] = true
		proof := c.say(t, a.DPoP)
		before := w.lastEntry(t)
		var got answered
		call := "oauth/token"
		if a.Form != nil {
			got = w.form(t, "/oauth/token", proof, c.form(t, a.Form))
		} else {
			call = "whence.v1." + a.Call
			scheme := a.Scheme
			if scheme == "" {
				scheme = "Bearer"
			}
			got = w.call(t, a.Call, scheme+" "+c.say(t, a.Token), proof, a.Body)
		}
		if got.status != a.Status || a.Error != "" && got.errorCode != a.Error || a.Reason != "" && got.reason != a.Reason {
			t.Errorf("%s: got %d %s %s, want %d %s %s", a.Name, got.status, got.errorCode, got.reason, a.Status, a.Error, a.Reason)
		}
		delete(got.metadata, "next") // which every error has
		if a.Metadata != nil && !maps.Equal(got.metadata, a.Metadata) {
			t.Errorf("%s: metadata %v, want %v", a.Name, got.metadata, a.Metadata)
		}
		if a.Status != http.StatusOK && got.token != "" {
			t.Errorf("%s: a token all the same", a.Name)
		}
		w.hasEntry(t, a.Name, before, call, got.reason)
		if a.Name == "with one" {
			c.tokens["bound"] = got.token
			c.tokens["used-proof"] = c.say(t, "$proof:one POST TaskService/GetTask $bound")
			if got := w.call(t, "TaskService/GetTask", "DPoP "+got.token, c.tokens["used-proof"], nil); got.status != http.StatusOK {
				t.Errorf("a bound token with a proof: %+v", got)
			}
		}
	}
}

func newCast(t *testing.T, w *running) *cast {
	t.Helper()
	c := &cast{w: w, keys: map[string]ed25519.PrivateKey{}, tokens: map[string]string{
		"operator": w.env["WHENCE_OPERATOR_TOKEN"], "wish": wish, "viewer": signed(t, w, authz.RoleViewer, time.Now, w.env["WHENCE_ISSUER"])}}
	shelf := &v1.Scope{Tables: []string{"app.public.shelf"}, Subjects: []string{"ann"}, Actions: []string{"memory:read", "task:delegate"}}
	depth := uint32(1)
	for agent, grant := range map[string]*v1.CreateGrantRequest{
		"alpha": {Scope: shelf, MaxDepth: &depth}, "beta": {Scope: shelf}, "gamma": nil,
		"delta":   {Scope: &v1.Scope{AllTables: true, AllSubjects: true, Filter: map[string]string{"lang": "de"}, Actions: []string{"memory:read"}}},
		"epsilon": {Scope: shelf, ProofOfPossession: true}, "zeta": nil, "eta": {Scope: shelf},
	} {
		public, key, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		c.keys[agent] = key
		made := &v1.CreateAgentRequest{Name: agent, Jwks: fmt.Sprintf(`{"keys":[{"kty":"OKP","crv":"Ed25519","x":%q}]}`, base64.RawURLEncoding.EncodeToString(public))}
		if agent == "zeta" {
			made.Ceiling = &v1.Scope{Tables: []string{"app.public.safe"}, AllSubjects: true, Actions: []string{"memory:read"}}
		}
		w.operator().must(t, "AdminService/CreateAgent", made, &v1.CreateAgentResponse{})
		if grant != nil {
			grant.Agent, grant.User, grant.Budget = agent, "user", &v1.BudgetLimits{Calls: new(uint32(20))}
			w.operator().must(t, "AdminService/CreateGrant", grant, &v1.CreateGrantResponse{})
		}
	}
	for _, name := range []string{"one", "two"} {
		_, c.keys["proof "+name], _ = ed25519.GenerateKey(rand.Reader)
	}
	c.tokens["self"] = c.get(t, map[string]any{"subject_token": "$id:user", "scope": "user"})
	full := strings.Replace(wish, `["memory:read"]`, `["memory:read","task:delegate"]`, 1)
	full = strings.Replace(full, `"calls":3`, `"calls":20`, 1)
	full = strings.Replace(full, `"1m"`, `"10m"`, 1)
	start := func(agent, details string) string {
		return c.get(t, map[string]any{"subject_token": "$id:user", "client_assertion": "$assert:" + agent, "authorization_details": details})
	}
	below := func(parent, agent, details string) string {
		return c.get(t, map[string]any{"subject_token": parent, "client_assertion": "$assert:" + agent, "authorization_details": details})
	}
	c.tokens["task"], c.tokens["reader"] = start("alpha", full), start("alpha", wish)
	narrower := strings.Replace(strings.Replace(full, `"calls":20`, `"calls":2`, 1), `"10m"`, `"5m"`, 1)
	c.tokens["deepest"] = below("$task", "alpha", narrower)
	c.tokens["revoked-token"], c.tokens["revoked-task"], c.tokens["revoked-agent"] = start("alpha", full), start("alpha", full), start("eta", full)
	c.tokens["below-revoked-task"] = below("$revoked-task", "beta", narrower)
	stop := func(r *v1.RevokeRequest) {
		w.operator().must(t, "AdminService/Revoke", r, &v1.RevokeResponse{})
	}
	stop(&v1.RevokeRequest{Target: &v1.RevokeRequest_Token{Token: claim(t, c.tokens["revoked-token"], "jti").(string)}, Reason: "a test"})
	stop(&v1.RevokeRequest{Target: &v1.RevokeRequest_Task{Task: claim(t, c.tokens["revoked-task"], "task").(map[string]any)["id"].(string)}})
	stop(&v1.RevokeRequest{Target: &v1.RevokeRequest_Agent{Agent: "eta"}})
	c.tokens["used"] = c.say(t, "$assert:alpha")
	c.get(t, map[string]any{"subject_token": "$id:user", "client_assertion": "$used", "authorization_details": wish})
	var many []map[string]any
	for range 10_000 {
		many = append(many, map[string]any{"type": "whence", "purpose": "p"})
	}
	b, err := json.Marshal(many)
	if err != nil {
		t.Fatal(err)
	}
	c.tokens["ten-thousand"] = string(b)
	c.tokens["megabyte"] = strings.Replace(wish, "look for quinces", strings.Repeat("x", 1<<20), 1)
	return c
}

// get exchanges for a token, which must come.
func (c *cast) get(t *testing.T, form map[string]any) string {
	t.Helper()
	got := c.w.form(t, "/oauth/token", "", c.form(t, form))
	if got.token == "" {
		t.Fatalf("%v: %d %s %s %v", form, got.status, got.errorCode, got.reason, got.metadata)
	}
	return got.token
}

// form is the case's form with what goes without saying.
func (c *cast) form(t *testing.T, in map[string]any) url.Values {
	t.Helper()
	out := url.Values{"grant_type": {"urn:ietf:params:oauth:grant-type:token-exchange"}, "subject_token_type": {typeJWT}}
	for name, value := range in {
		s, ok := value.(string)
		if !ok {
			b, err := json.Marshal(value)
			if err != nil {
				t.Fatal(err)
			}
			s = string(b)
		}
		out.Set(name, c.say(t, s))
	}
	if out.Has("client_assertion") {
		out.Set("client_assertion_type", typeAssertion)
	}
	if out.Has("actor_token") {
		out.Set("actor_token_type", typeJWT)
	}
	return out
}

// say is what a word stands for: $id:USER an ID token, $assert:AGENT [by AGENT]
// [for AUDIENCE] a fresh assertion, $proof:KEY METHOD PATH [TOKEN] a fresh proof of
// possession, $NAME a token.
func (c *cast) say(t *testing.T, word string) string {
	t.Helper()
	if !strings.HasPrefix(word, "$") {
		return word
	}
	kind, rest, _ := strings.Cut(word[1:], ":")
	parts := strings.Fields(rest)
	switch kind {
	case "id":
		token, err := login.IDToken(t.Context(), login.Config{Issuer: c.w.env["WHENCE_LOGIN_ISSUER"], ClientID: c.w.env["WHENCE_LOGIN_CLIENT"], User: parts[0], Out: io.Discard,
			Open: func(string) error { return http.ErrNotSupported }, Wait: time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		return token
	case "assert":
		agent, by, audience := parts[0], parts[0], c.w.url
		for i := 1; i+1 < len(parts); i += 2 {
			switch parts[i] {
			case "by":
				by = parts[i+1]
			case "for":
				audience = parts[i+1]
			}
		}
		return sign(t, c.keys[by], nil, jwt.MapClaims{"iss": agent, "sub": agent, "aud": audience, "jti": rand.Text(),
			"iat": time.Now().Unix(), "exp": time.Now().Add(time.Minute).Unix()})
	case "proof":
		key := c.keys["proof "+parts[0]]
		path := parts[2]
		if !strings.HasPrefix(path, "/") {
			path = "/whence.v1." + path
		}
		claims := jwt.MapClaims{"jti": rand.Text(), "htm": parts[1], "htu": c.w.url + path, "iat": time.Now().Unix()}
		if len(parts) > 3 {
			sum := sha256.Sum256([]byte(c.say(t, parts[3])))
			claims["ath"] = base64.RawURLEncoding.EncodeToString(sum[:])
		}
		public := base64.RawURLEncoding.EncodeToString(key.Public().(ed25519.PublicKey))
		return sign(t, key, map[string]any{"typ": "dpop+jwt", "jwk": map[string]string{"kty": "OKP", "crv": "Ed25519", "x": public}}, claims)
	}
	token, ok := c.tokens[kind]
	if !ok {
		t.Fatalf("nobody knows %q", word)
	}
	return token
}

func sign(t *testing.T, key crypto.Signer, header map[string]any, claims jwt.MapClaims) string {
	t.Helper()
	token := jwt.NewWithClaims(jwt.SigningMethodEdDSA, claims)
	maps.Copy(token.Header, header)
	s, err := token.SignedString(key)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// claim reads a claim of a token without verifying it.
func claim(t *testing.T, token, name string) any {
	t.Helper()
	b, err := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[1])
	if err != nil {
		t.Fatal(err)
	}
	var claims map[string]any
	if err := json.Unmarshal(b, &claims); err != nil {
		t.Fatal(err)
	}
	return claims[name]
}

// newSigner is a key that nobody knows.
func newSigner(t *testing.T) forge.Signer {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return forge.Signer{ID: "stranger", Algorithm: "EdDSA", Key: key}
}
