package gatewaytest

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/google/uuid"
)

// Provider is an identity provider: discovery, keys, and tokens for the asking.
type Provider struct {
	URL, Audience string

	name   string
	server *httptest.Server
	key    ed25519.PrivateKey
	now    func() time.Time
}

func newProvider(t testing.TB, name string, now func() time.Time) *Provider {
	t.Helper()
	p := &Provider{Audience: "whence", name: name, key: newKey(t), now: now}
	mux := http.NewServeMux()
	p.server = httptest.NewServer(mux)
	p.URL = p.server.URL
	keys := keySet(t, p.key)
	mux.HandleFunc("GET /.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = fmt.Fprintf(w, `{"issuer":%q,"jwks_uri":%q}`, p.URL, p.URL+"/keys")
	})
	mux.HandleFunc("GET /keys", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(keys) })
	t.Cleanup(func() {
		p.server.Client().CloseIdleConnections()
		p.server.Close()
	})
	return p
}

// Token signs what an ID token says, with claims changed; nil takes one away.
func (p *Provider) Token(t testing.TB, change map[string]any) string {
	t.Helper()
	now := p.now()
	return sign(t, p.key, "JWT", merge(map[string]any{"iss": p.URL, "aud": p.Audience, "jti": uuid.NewString(),
		"iat": now.Unix(), "exp": now.Add(5 * time.Minute).Unix()}, change))
}

// Proof is a DPoP proof (RFC 9449) of a key, for one request. The access token is the
// one that comes with the request; empty at the token endpoint.
func (w *World) Proof(key ed25519.PrivateKey, method, url, accessToken string) string {
	w.t.Helper()
	claims := map[string]any{"jti": uuid.NewString(), "htm": method, "htu": url, "iat": w.Now().Unix()}
	if accessToken != "" {
		sum := sha256.Sum256([]byte(accessToken))
		claims["ath"] = base64.RawURLEncoding.EncodeToString(sum[:])
	}
	options := (&jose.SignerOptions{EmbedJWK: true}).WithType("dpop+jwt")
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.EdDSA, Key: key}, options)
	w.check(err)
	proof, err := jwt.Signed(signer).Claims(claims).Serialize()
	w.check(err)
	return proof
}

// NewKey makes a key for proofs.
func (w *World) NewKey() ed25519.PrivateKey {
	w.t.Helper()
	return newKey(w.t)
}

func newKey(t testing.TB) ed25519.PrivateKey {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// keySet is the JSON Web Key Set of one key.
func keySet(t testing.TB, key ed25519.PrivateKey) json.RawMessage {
	t.Helper()
	b, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: "1", Algorithm: string(jose.EdDSA), Use: "sig"}}})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func sign(t testing.TB, key ed25519.PrivateKey, typ string, claims map[string]any) string {
	t.Helper()
	options := (&jose.SignerOptions{}).WithType(jose.ContentType(typ)).WithHeader("kid", "1")
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.EdDSA, Key: key}, options)
	if err != nil {
		t.Fatal(err)
	}
	token, err := jwt.Signed(signer).Claims(claims).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func merge(claims, change map[string]any) map[string]any {
	for name, v := range change {
		claims[name] = v
		if v == nil {
			delete(claims, name)
		}
	}
	return claims
}
