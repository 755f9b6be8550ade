package authz

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"maps"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/authz/internal/strict"
)

const testIssuer = "https://whence.test"

// testNow is the time that testdata/attacks.json is written for.
var testNow = time.Unix(2_000_000_000, 0)

// attack is one line of testdata/attacks.json: what is changed in a good token.
type attack struct {
	Name          string
	Header        map[string]any // merged into the header; null takes away
	Claims        map[string]any // merged into the claims; null takes away
	InsertHeader  string         // put behind the header's opening brace
	InsertClaims  string         // put behind the claims' opening brace
	ReplaceHeader string
	ReplaceClaims string
	Latin1        bool    // the claims are sent in Latin-1
	Sign          string  // eddsa (when empty), es256, stranger, hmac-public, none
	Then          string  // what happens to the finished token
	Token         *string // instead of all that
	Want          string  // the reason it is refused for; empty: accepted
}

// forge holds the keys that tokens are made with.
type forge struct {
	eddsa, es256, stranger *key
	verifier               *Verifier
}

func newForge(t testing.TB) *forge {
	t.Helper()
	f := &forge{}
	for k, a := range map[**key]Algorithm{&f.eddsa: EdDSA, &f.es256: ES256, &f.stranger: EdDSA} {
		var err error
		if *k, err = generateKey(a); err != nil {
			t.Fatal(err)
		}
		(*k).signsFrom = testNow
	}
	keys := &Keys{clock: time.Now}
	keys.set([]*key{f.eddsa, f.es256})
	var err error
	f.verifier, err = NewVerifier(VerifierConfig{Issuer: testIssuer, Keys: keys, Clock: func() time.Time { return testNow }})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func (f *forge) make(t testing.TB, a attack) string {
	t.Helper()
	if a.Token != nil {
		return *a.Token
	}
	signer := f.eddsa
	if a.Sign == "es256" {
		signer = f.es256
	}
	task := "00000000-0000-4000-8000-000000000001"
	header := map[string]any{"typ": "at+jwt", "alg": string(signer.algorithm), "kid": signer.kid}
	claims := map[string]any{
		"iss": testIssuer, "aud": testIssuer, "sub": "ada", "client_id": "writer", "act": map[string]any{"sub": "writer"},
		"iat": 2_000_000_000, "nbf": 2_000_000_000, "exp": 2_000_003_600, "jti": "t1", "tenant": "default",
		"task":                  map[string]any{"id": task, "root": task, "depth": 0},
		"authorization_details": []any{map[string]any{"type": "whence", "allTables": true, "allSubjects": true, "actions": []any{"memory:read"}}},
	}
	f.merge(header, a.Header)
	f.merge(claims, a.Claims)
	h := spell(t, header, a.InsertHeader, a.ReplaceHeader)
	c := spell(t, claims, strings.ReplaceAll(a.InsertClaims, "$deep", `"x":`+strings.Repeat("[", 60)+strings.Repeat("]", 60)+","), a.ReplaceClaims)
	if a.Latin1 {
		c = strings.ReplaceAll(c, "\u00ff", "\xff")
	}
	b64 := base64.RawURLEncoding.EncodeToString
	signed := b64([]byte(h)) + "." + b64([]byte(c))
	return damage(t, signed+"."+b64(f.sign(t, a.Sign, signed)), a.Then)
}

func (f *forge) merge(into, changes map[string]any) {
	for k, v := range changes {
		switch v {
		case nil:
			delete(into, k)
			continue
		case "$es256":
			v = f.es256.kid
		case "$prefix":
			v = f.eddsa.kid[:20]
		case "$upper":
			v = strings.ToUpper(f.eddsa.kid)
		case "$nul":
			v = f.eddsa.kid + "\x00"
		case "$big":
			v = strings.Repeat("x", MaxTokenSize)
		}
		into[k] = v
	}
}

func (f *forge) sign(t testing.TB, how, signed string) []byte {
	t.Helper()
	k := f.eddsa
	switch how {
	case "none":
		return nil
	case "hmac-public":
		public, err := json.Marshal(f.eddsa.jwk)
		if err != nil {
			t.Fatal(err)
		}
		m := hmac.New(sha256.New, public)
		m.Write([]byte(signed))
		return m.Sum(nil)
	case "es256":
		k = f.es256
	case "stranger":
		k = f.stranger
	case "", "eddsa":
	default:
		t.Fatalf("no way to sign is called %q", how)
	}
	signature, err := k.algorithm.method().Sign(signed, k.private)
	if err != nil {
		t.Fatal(err)
	}
	return signature
}

func spell(t testing.TB, members map[string]any, insert, replace string) string {
	t.Helper()
	if replace != "" {
		return replace
	}
	b, err := json.Marshal(members)
	if err != nil {
		t.Fatal(err)
	}
	return "{" + insert + string(b[1:])
}

func damage(t testing.TB, token, how string) string {
	t.Helper()
	last := strings.LastIndexByte(token, '.')
	flip := func(i int) string {
		c := byte('A')
		if token[i] == c {
			c = 'B'
		}
		return token[:i] + string(c) + token[i+1:]
	}
	switch how {
	case "":
		return token
	case "drop-last":
		return token[:len(token)-1]
	case "drop-signature":
		return token[:last]
	case "flip-claims":
		// An odd place inside the value of the last member, which stays valid JSON.
		h := strings.IndexByte(token, '.')
		claims, _ := base64.RawURLEncoding.DecodeString(token[h+1 : last])
		claims = []byte(strings.Replace(string(claims), `"jti":"t1"`, `"jti":"t0"`, 1))
		return token[:h+1] + base64.RawURLEncoding.EncodeToString(claims) + token[last:]
	case "flip-signature":
		return flip(last + 10)
	case "spare-bits":
		// 64 bytes take 85 characters and 2 bits more; the other 4 bits must be 0.
		alphabet := "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
		n := strings.IndexByte(alphabet, token[len(token)-1])
		return token[:len(token)-1] + string(alphabet[n|1])
	case "pad":
		return token + "=="
	case "line-break":
		return token[:last+5] + "\r\n" + token[last+5:]
	case "space":
		return " " + token
	case "bearer":
		return "Bearer " + token
	}
	t.Fatalf("no damage is called %q", how)
	return ""
}

func attacks(t testing.TB) []attack {
	t.Helper()
	b, err := os.ReadFile("testdata/attacks.json")
	if err != nil {
		t.Fatal(err)
	}
	var out []attack
	d := json.NewDecoder(bytes.NewReader(b)) // not strictly: an attack may hold a name in two cases
	d.DisallowUnknownFields()
	if err := d.Decode(&out); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestAttacks(t *testing.T) {
	t.Parallel()
	f := newForge(t)
	seen := map[string]bool{}
	for _, a := range attacks(t) {
		if seen[a.Name] {
			t.Errorf("two attacks are called %q", a.Name)
		}
		seen[a.Name] = true
		token := f.make(t, a)
		for _, again := range []string{"", " the second time"} { // a refusal or an acceptance must not wear off
			p, err := f.verifier.Verify(t.Context(), token)
			var e *whence.Error
			switch {
			case a.Want == "" && (err != nil || p == nil):
				t.Errorf("%s%s: refused: %v", a.Name, again, err)
			case a.Want != "" && err == nil:
				t.Errorf("%s%s: accepted as %+v", a.Name, again, p)
			case a.Want != "" && (!errors.As(err, &e) || e.Reason != a.Want || !errors.Is(e.Kind, whence.ErrUnauthenticated) || p != nil):
				t.Errorf("%s%s: %v (%+v), want %s", a.Name, again, err, e, a.Want)
			case e != nil && (e.Message == "" || len(token) > 3 && strings.Contains(e.Error(), token)):
				t.Errorf("%s%s: message %q", a.Name, again, e.Error())
			}
		}
	}
}

// A token that is one change away from a good one must fail for that change only:
// the attacks above prove nothing if the forge's own tokens were bad.
func TestForgeIsHonest(t *testing.T) {
	t.Parallel()
	f := newForge(t)
	p, err := f.verifier.Verify(t.Context(), f.make(t, attack{}))
	if err != nil {
		t.Fatal(err)
	}
	if all, _, _ := p.Scope.Tables(); !all || p.User != "ada" || p.Agent != "writer" || p.Task == uuid.Nil {
		t.Errorf("got %+v", p)
	}
}

func TestCacheIsBounded(t *testing.T) {
	t.Parallel()
	now := testNow
	keys := NewEphemeralKeys()
	clock := func() time.Time { return now }
	issuer, err := NewIssuer(IssuerConfig{Name: testIssuer, Keys: keys, Clock: clock})
	if err != nil {
		t.Fatal(err)
	}
	v, err := NewVerifier(VerifierConfig{Issuer: testIssuer, Keys: keys, Clock: clock, CacheSize: 3})
	if err != nil {
		t.Fatal(err)
	}
	verify := func(lifetime time.Duration) {
		t.Helper()
		token, _, err := issuer.IssueOperator("ada", RoleViewer, lifetime)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := v.Verify(t.Context(), token); err != nil {
			t.Fatal(err)
		}
	}
	for range 10 {
		verify(time.Minute)
		if len(v.cache) > 3 {
			t.Fatalf("%d tokens are cached", len(v.cache))
		}
	}
	now = now.Add(2 * time.Minute) // all three are over: they go first
	verify(time.Minute)
	if len(v.cache) != 1 {
		t.Errorf("%d tokens are cached after the old ones expired", len(v.cache))
	}
}

func TestRetiredKeyEndsCachedTokens(t *testing.T) {
	t.Parallel()
	f := newForge(t)
	token := f.make(t, attack{})
	if _, err := f.verifier.Verify(t.Context(), token); err != nil {
		t.Fatal(err)
	}
	f.verifier.c.Keys.set([]*key{f.es256})
	if _, err := f.verifier.Verify(t.Context(), token); !errors.Is(err, whence.ErrUnauthenticated) {
		t.Errorf("a cached token outlived its key: %v", err)
	}
}

// FuzzVerify holds that nothing is accepted but the very tokens that were issued.
func FuzzVerify(f *testing.F) {
	forge := newForge(f)
	issued := map[string]bool{}
	for _, a := range attacks(f) {
		token := forge.make(f, a)
		if a.Want == "" {
			issued[token] = true
		}
		f.Add(token)
	}
	f.Fuzz(func(t *testing.T, token string) {
		p, err := forge.verifier.Verify(t.Context(), token)
		if (err == nil) != issued[token] || (err == nil) == (p == nil) {
			t.Fatalf("issued %t, error %v", issued[token], err)
		}
	})
}

// FuzzClaims reads claims as if their signature were good: whatever comes out must
// be a caller that holds together.
func FuzzClaims(f *testing.F) {
	forge := newForge(f)
	for _, a := range attacks(f) {
		if parts := strings.Split(forge.make(f, a), "."); len(parts) == 3 {
			if b, err := base64.RawURLEncoding.DecodeString(parts[1]); err == nil {
				f.Add(b)
			}
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := decodeClaims(b)
		if err != nil || c.checkLifetime() != nil {
			return
		}
		p, err := c.principal()
		if err != nil {
			return
		}
		if p.User == "" || p.Tenant == "" || p.TokenID == "" || p.IsOperator() == (p.Task != uuid.Nil) ||
			(p.IsOperator() && p.Scope.Allows(MemoryWrite)) || p.Expires.Sub(p.IssuedAt) > MaxLifetime || p.Scope.Spec().Validate() != nil {
			t.Fatalf("accepted %+v from %q", p, b)
		}
	})
}

func TestDecodeStrict(t *testing.T) {
	t.Parallel()
	type inner struct {
		A int `json:"a"`
	}
	for text, good := range map[string]bool{
		`{"a":1}`: true, ` {"a":1} `: true, `{"a":1,"a":1}`: false, `{"a":1,"A":1}`: false, `{"b":1}`: false, `{"a":1}{}`: false,
		`{"a":1`: false, `{"a":1}}`: false, `{"a":}`: false, `{"a" 1}`: false, "": false, "{\"a\":1,\"\xff\":2}": false, `{"a":"1"}`: false,
	} {
		var v inner
		if err := DecodeStrict([]byte(text), &v); (err == nil) != good {
			t.Errorf("%q: %v", text, err)
		}
	}
	var m map[string]int
	if err := DecodeStrict([]byte(`{"K":1,"\u212a":2}`), &m); !errors.Is(err, strict.ErrAmbiguous) {
		t.Errorf("K and the Kelvin sign, which encoding/json takes for one name: %v", err)
	}
	if err := DecodeStrict([]byte(`{"x":1,"y":2}`), &m); err != nil || !maps.Equal(m, map[string]int{"x": 1, "y": 2}) {
		t.Errorf("%v, %v", m, err)
	}
}
