package federation

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/authz"
)

// testNow is the time that testdata/attacks.json is written for.
var testNow = time.Unix(2_000_000_000, 0)

// pairs are made once: RSA keys take their time.
var pairs = sync.OnceValue(func() map[string]crypto.Signer {
	_, ed, err1 := ed25519.GenerateKey(rand.Reader)
	_, stranger, err2 := ed25519.GenerateKey(rand.Reader)
	_, agent, err3 := ed25519.GenerateKey(rand.Reader)
	ec, err4 := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	ec384, err5 := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	ec521, err6 := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	rsa2048, err7 := rsa.GenerateKey(rand.Reader, 2048)
	for _, err := range []error{err1, err2, err3, err4, err5, err6, err7} {
		if err != nil {
			panic(err)
		}
	}
	return map[string]crypto.Signer{"ed": ed, "stranger": stranger, "agent": agent,
		"ec": ec, "ec384": ec384, "ec521": ec521, "rsa": rsa2048}
})

// aliases are key ids under which a pair is published once more, with other members.
var aliases = map[string]string{"rs256": "rsa", "enc": "ec", "ops": "ec", "private": "ed", "svid": "ec", "x509": "ec", "useless": "ec"}

func pair(name string) crypto.Signer {
	if a := aliases[name]; a != "" {
		name = a
	}
	return pairs()[name]
}

// members are those of a public JWK, changed; null takes away.
func publish(t testing.TB, kid string, changes map[string]any) map[string]any {
	t.Helper()
	b, err := jose.JSONWebKey{Key: pair(kid).Public(), KeyID: kid}.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	members := map[string]any{}
	if err := json.Unmarshal(b, &members); err != nil {
		t.Fatal(err)
	}
	for name, v := range changes {
		members[name] = v
		if v == nil {
			delete(members, name)
		}
	}
	return members
}

func set(t testing.TB, keys ...map[string]any) json.RawMessage {
	t.Helper()
	b, err := json.Marshal(map[string]any{"keys": keys})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// provider is a real HTTP server that is several issuers.
type provider struct {
	*httptest.Server
	mu        sync.Mutex
	now       time.Time
	documents map[string]func(w http.ResponseWriter, r *http.Request) // by path
	asked     map[string]int                                          // by path
	issuers   map[string]Issuer                                       // by URL
}

func newProvider(t testing.TB) *provider {
	t.Helper()
	p := &provider{now: testNow, documents: map[string]func(http.ResponseWriter, *http.Request){}, asked: map[string]int{}, issuers: map[string]Issuer{}}
	p.Server = httptest.NewServer(http.HandlerFunc(p.serve))
	t.Cleanup(func() {
		p.Client().CloseIdleConnections()
		p.Close()
	})
	return p
}

func (p *provider) serve(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	p.asked[r.URL.Path]++
	answer := p.documents[r.URL.Path]
	p.mu.Unlock()
	if answer == nil {
		http.NotFound(w, r)
		return
	}
	answer(w, r)
}

func (p *provider) answer(path string, f func(w http.ResponseWriter, r *http.Request)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.documents[path] = f
}

func (p *provider) document(path string, body []byte) {
	p.answer(path, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(body) })
}

// fetches counts the requests for a path.
func (p *provider) fetches(path string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.asked[path]
}

func (p *provider) clock() time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.now
}

func (p *provider) advance(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.now = p.now.Add(d)
}

// register registers an issuer at a path of the server, with discovery.
func (p *provider) register(name string, change func(*Issuer)) Issuer {
	i := Issuer{Name: name, URL: p.URL + "/" + name, Audience: "whence", Algorithms: []string{"EdDSA", "ES256", "ES384", "ES512", "RS256", "PS256"},
		Operators: map[string]authz.Role{"admins": authz.RoleAdmin, "readers": authz.RoleViewer, "deciders": authz.RoleApprover}}
	p.document("/"+name+discoveryPath, fmt.Appendf(nil, `{"issuer":%q,"jwks_uri":%q,"scopes_supported":["openid"]}`, i.URL, p.URL+"/keys"))
	if change != nil {
		change(&i)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.issuers[i.URL] = i
	return i
}

func (p *provider) find(_ context.Context, url string) (Issuer, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	// As a careless table would: without minding case.
	i, ok := p.issuers[strings.ToLower(url)]
	if !ok {
		return Issuer{}, &whence.Error{Kind: whence.ErrNotFound, Reason: "ISSUER_UNKNOWN", Message: "there is no such issuer"}
	}
	return i, nil
}

func (p *provider) verifier(t testing.TB) *Verifier {
	t.Helper()
	v, err := New(Config{Issuers: p.find, Client: p.Client(), Clock: p.clock})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// standard registers what testdata/attacks.json speaks of.
func standard(t testing.TB) *provider {
	t.Helper()
	p := newProvider(t)
	p.register("main", nil)
	p.register("es", func(i *Issuer) { i.Algorithms = []string{"ES256"} })
	p.register("acme", func(i *Issuer) { i.Tenant = "acme" })
	p.register("multi", func(i *Issuer) {
		i.TenantClaim, i.SubjectClaim, i.GroupsClaim, i.Operators = "https://id.test/org", "uid", "roles", nil
	})
	p.register("mail", func(i *Issuer) { i.SubjectClaim = "email" })
	p.register("direct", func(i *Issuer) { i.JWKSURL = p.URL + "/keys?for=direct" })
	p.register("unnamed", func(i *Issuer) { i.JWKSURL = p.URL + "/unnamed" })
	p.register("bad", func(i *Issuer) { i.Algorithms = []string{"EdDSA", "none"} })
	p.register("workloads", func(i *Issuer) {
		i.URL, i.JWKSURL, i.Algorithms, i.Operators = "spiffe://example.org", p.URL+"/bundle", []string{"ES256", "EdDSA"}, nil
	})
	p.document("/keys", set(t,
		publish(t, "ed", map[string]any{"alg": "EdDSA", "use": "sig"}), publish(t, "ec", map[string]any{"use": "sig", "key_ops": []string{"verify"}}),
		publish(t, "ec384", nil), publish(t, "ec521", nil), publish(t, "rsa", nil), publish(t, "rs256", map[string]any{"alg": "RS256"}),
		publish(t, "enc", map[string]any{"use": "enc"}), publish(t, "ops", map[string]any{"key_ops": []string{"encrypt"}}),
		publish(t, "private", map[string]any{"d": "AA"}), map[string]any{"kty": "oct", "kid": "oct", "k": "c2VjcmV0", "alg": "HS256"},
		map[string]any{"kty": "new", "kid": "new"}))
	p.document("/unnamed", set(t, publish(t, "ec", map[string]any{"kid": nil}), publish(t, "ed", map[string]any{"kid": nil})))
	p.document("/bundle", set(t, publish(t, "svid", map[string]any{"use": "jwt-svid"}), publish(t, "x509", map[string]any{"use": "x509-svid"}),
		publish(t, "useless", nil)))
	return p
}

// agentKeys are the key sets of agents.
func agentKeys(t testing.TB) AgentKeys {
	t.Helper()
	sets := map[string]json.RawMessage{
		"writer":   set(t, publish(t, "agent", nil)),
		"rotating": set(t, publish(t, "ec", nil), publish(t, "agent", nil)),
		"rsa":      set(t, publish(t, "rsa", map[string]any{"alg": "PS256"})),
	}
	return func(_ context.Context, agent string) (json.RawMessage, error) {
		if s, ok := sets[agent]; ok {
			return s, nil
		}
		return nil, &whence.Error{Kind: whence.ErrNotFound, Reason: "AGENT_UNKNOWN", Message: "there is no such agent"}
	}
}
