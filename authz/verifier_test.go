package authz

import (
	"encoding/base64"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/authz/authztest/forge"
	"github.com/whence-db/whence/authz/internal/strict"
)

const testIssuer = "https://whence.test"

// testNow is the time that testdata/attacks.json is written for.
var testNow = time.Unix(2_000_000_000, 0)

// testForge makes wrong tokens for a verifier that knows two of its keys.
type testForge struct {
	*forge.Forge
	keys     []*key
	verifier *Verifier
}

func newForge(t testing.TB) *testForge {
	t.Helper()
	f := &testForge{Forge: &forge.Forge{}}
	for signer, a := range map[*forge.Signer]Algorithm{&f.EdDSA: EdDSA, &f.ES256: ES256, &f.Stranger: EdDSA} {
		k, err := generateKey(a)
		if err != nil {
			t.Fatal(err)
		}
		k.signsFrom = time.Now() // or the later one would have followed the other long ago
		*signer = forge.Signer{ID: k.kid, Algorithm: string(k.algorithm), Key: k.private}
		if signer != &f.Stranger {
			f.keys = append(f.keys, k)
		}
	}
	keys := &Keys{clock: time.Now}
	keys.set(f.keys)
	var err error
	f.verifier, err = NewVerifier(VerifierConfig{Issuer: testIssuer, Keys: keys, Clock: func() time.Time { return testNow }})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func attacks(t testing.TB) []forge.Attack {
	t.Helper()
	return forge.Load(t, "testdata/attacks.json")
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
		token := f.Make(t, a)
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
	p, err := f.verifier.Verify(t.Context(), f.Make(t, forge.Attack{}))
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
	token := f.Make(t, forge.Attack{})
	if _, err := f.verifier.Verify(t.Context(), token); err != nil {
		t.Fatal(err)
	}
	f.verifier.c.Keys.set(slices.DeleteFunc(f.keys, func(k *key) bool { return k.algorithm == EdDSA }))
	if _, err := f.verifier.Verify(t.Context(), token); !errors.Is(err, whence.ErrUnauthenticated) {
		t.Errorf("a cached token outlived its key: %v", err)
	}
}

// FuzzVerify holds that nothing is accepted but the very tokens that were issued.
func FuzzVerify(f *testing.F) {
	made := newForge(f)
	issued := map[string]bool{}
	for _, a := range attacks(f) {
		token := made.Make(f, a)
		if a.Want == "" {
			issued[token] = true
		}
		f.Add(token)
	}
	f.Fuzz(func(t *testing.T, token string) {
		p, err := made.verifier.Verify(t.Context(), token)
		if (err == nil) != issued[token] || (err == nil) == (p == nil) {
			t.Fatalf("issued %t, error %v", issued[token], err)
		}
	})
}

// FuzzClaims reads claims as if their signature were good: whatever comes out must
// be a caller that holds together.
func FuzzClaims(f *testing.F) {
	made := newForge(f)
	for _, a := range attacks(f) {
		if parts := strings.Split(made.Make(f, a), "."); len(parts) == 3 {
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
			(p.Role.Operates() && p.Scope.Allows(MemoryWrite)) || p.Expires.Sub(p.IssuedAt) > MaxLifetime || p.Scope.Spec().Validate() != nil {
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
