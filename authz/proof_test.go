package authz

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/authz/authztest/forge"
)

const (
	proofURL   = "https://whence.test/whence.v1.MemoryService/Query"
	proofToken = "the access token"
)

// proofAttack is one line of testdata/proofs.json: what is changed in a good proof.
type proofAttack struct {
	Name          string
	Key           string         // eddsa (when empty), es256, es384, ps256, rsa1024
	JWK           map[string]any // merged into the header's key; null takes away
	Header        map[string]any // merged into the header; null takes away
	Claims        map[string]any // merged into the claims; null takes away
	InsertHeader  string         // put behind the header's opening brace
	InsertClaims  string         // put behind the claims' opening brace
	ReplaceClaims string
	Sign          string  // stranger, hmac-public, none; when empty, the key
	Then          string  // what happens to the finished proof
	URL           *string // of the request
	AccessToken   string  // that the request presents; "-": none
	Proof         *string // instead of all that
	Want          string  // the reason it is refused for; empty: taken
}

// proofKey signs proofs.
type proofKey struct {
	method  jwt.SigningMethod
	private crypto.Signer
	public  map[string]any // its JWK
}

// proofForge holds the keys that proofs are made with.
type proofForge struct {
	keys map[string]proofKey
	now  time.Time
}

func newProofForge(t testing.TB) *proofForge {
	t.Helper()
	f := &proofForge{keys: map[string]proofKey{}, now: testNow}
	for name, a := range map[string]Algorithm{"": EdDSA, "es256": ES256, "stranger": EdDSA} {
		k, err := generateKey(a)
		if err != nil {
			t.Fatal(err)
		}
		f.keys[name] = proofKey{a.method(), k.private, publicMembers(t, k.public)}
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	f.keys["es384"] = proofKey{jwt.SigningMethodES384, p384, publicMembers(t, &p384.PublicKey)}
	t.Setenv("GODEBUG", "rsa1024min=0") // to make a key that must be refused
	for name, bits := range map[string]int{"ps256": 2048, "rsa1024": 1024} {
		k, err := rsa.GenerateKey(rand.Reader, bits)
		if err != nil {
			t.Fatal(err)
		}
		b64 := base64.RawURLEncoding.EncodeToString
		f.keys[name] = proofKey{jwt.SigningMethodPS256, k, map[string]any{"kty": "RSA", "n": b64(k.N.Bytes()), "e": b64(big.NewInt(int64(k.E)).Bytes())}}
	}
	return f
}

func publicMembers(t testing.TB, public crypto.PublicKey) map[string]any {
	t.Helper()
	j, err := newJWK(public)
	if err != nil {
		t.Fatal(err)
	}
	m := map[string]any{"kty": j.KeyType, "crv": j.Curve, "x": j.X}
	if j.Y != "" {
		m["y"] = j.Y
	}
	return m
}

// thumbprint is RFC 7638 by another way than the code under test: encoding/json sorts
// the members of a map.
func (f *proofForge) thumbprint(t testing.TB, key string) string {
	t.Helper()
	b, err := json.Marshal(f.keys[key].public)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(b)
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

func (f *proofForge) make(t testing.TB, a proofAttack) string {
	t.Helper()
	if a.Proof != nil {
		return *a.Proof
	}
	k := f.keys[a.Key]
	sum := sha256.Sum256([]byte(proofToken))
	public := maps.Clone(k.public)
	merge(public, a.JWK, k)
	header := map[string]any{"typ": "dpop+jwt", "alg": k.method.Alg(), "jwk": public}
	claims := map[string]any{"jti": "p1", "htm": "POST", "htu": proofURL, "iat": f.now.Unix(), "ath": base64.RawURLEncoding.EncodeToString(sum[:])}
	merge(header, a.Header, k)
	merge(claims, a.Claims, k)
	b64 := base64.RawURLEncoding.EncodeToString
	signed := b64([]byte(forge.Spell(t, header, a.InsertHeader, ""))) + "." + b64([]byte(forge.Spell(t, claims, a.InsertClaims, a.ReplaceClaims)))
	return forge.Damage(t, signed+"."+b64(f.sign(t, k, a.Sign, signed)), a.Then)
}

func merge(into, changes map[string]any, k proofKey) {
	sum := sha256.Sum256([]byte(proofToken))
	for name, v := range changes {
		switch v {
		case nil:
			delete(into, name)
			continue
		case "$128", "$129":
			var n int
			_, _ = fmt.Sscanf(v.(string), "$%d", &n)
			v = strings.Repeat("x", n)
		case "$big":
			v = strings.Repeat("x", MaxProofSize)
		case "$padded":
			v = into[name].(string) + "="
		case "$hex":
			v = hex.EncodeToString(sum[:])
		case "$zero":
			v = base64.RawURLEncoding.EncodeToString(append([]byte{0}, k.private.Public().(*rsa.PublicKey).N.Bytes()...))
		}
		into[name] = v
	}
}

func (f *proofForge) sign(t testing.TB, k proofKey, how, signed string) []byte {
	t.Helper()
	switch how {
	case "none":
		return nil
	case "hmac-public":
		public, err := json.Marshal(k.public)
		if err != nil {
			t.Fatal(err)
		}
		m := hmac.New(sha256.New, public)
		m.Write([]byte(signed))
		return m.Sum(nil)
	case "stranger":
		k = f.keys["stranger"]
	case "":
	default:
		t.Fatalf("no way to sign is called %q", how)
	}
	signature, err := k.method.Sign(signed, k.private)
	if err != nil {
		t.Fatal(err)
	}
	return signature
}

func (f *proofForge) verifier(t testing.TB, capacity int) *ProofVerifier {
	t.Helper()
	v, err := NewProofVerifier(ProofConfig{Clock: func() time.Time { return f.now }, Capacity: capacity})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func (a proofAttack) verify(v *ProofVerifier, proof string) (string, error) {
	url, token := proofURL, proofToken
	if a.URL != nil {
		url = *a.URL
	}
	switch a.AccessToken {
	case "":
	case "-":
		token = ""
	default:
		token = a.AccessToken
	}
	return v.Verify(proof, "POST", url, token)
}

func proofAttacks(t testing.TB) (out []proofAttack) {
	t.Helper()
	b, err := os.ReadFile("testdata/proofs.json")
	if err != nil {
		t.Fatal(err)
	}
	d := json.NewDecoder(bytes.NewReader(b)) // not strictly: an attack may hold a name in two cases
	d.DisallowUnknownFields()
	if err := d.Decode(&out); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestProofs(t *testing.T) {
	f := newProofForge(t)
	seen := map[string]bool{}
	for _, a := range proofAttacks(t) {
		if seen[a.Name] {
			t.Errorf("two proofs are called %q", a.Name)
		}
		seen[a.Name] = true
		proof := f.make(t, a)
		v := f.verifier(t, 1)
		got, err := a.verify(v, proof)
		wantReason(t, a.Name, err, a.Want)
		var e *whence.Error
		switch {
		case a.Want == "" && got != f.thumbprint(t, a.Key):
			t.Errorf("%s: thumbprint %q, want %q", a.Name, got, f.thumbprint(t, a.Key))
		case a.Want != "" && (got != "" || !errors.Is(err, whence.ErrUnauthenticated)):
			t.Errorf("%s: %q, %v", a.Name, got, err)
		case errors.As(err, &e) && (e.Message == "" || len(proof) > 3 && strings.Contains(e.Error(), proof)):
			t.Errorf("%s: message %q", a.Name, e.Error())
		}
		_, err = a.verify(v, proof)
		if a.Want == "" {
			wantReason(t, a.Name+", a second time", err, "PROOF_REPLAYED")
		} else {
			wantReason(t, a.Name+", a second time", err, a.Want)
			_, err = proofAttack{}.verify(v, f.make(t, proofAttack{}))
			wantReason(t, a.Name+" took room", err, "")
		}
	}
}

func TestProofBound(t *testing.T) {
	f := newProofForge(t)
	v := f.verifier(t, 1)
	wantReason(t, "another key", v.VerifyBound(f.make(t, proofAttack{}), "POST", proofURL, proofToken, f.thumbprint(t, "es256")), "PROOF_KEY_WRONG")
	wantReason(t, "none", v.VerifyBound("", "POST", proofURL, proofToken, f.thumbprint(t, "")), "PROOF_MISSING")
	if err := v.VerifyBound(f.make(t, proofAttack{}), "POST", proofURL, proofToken, ""); err == nil {
		t.Error("a proof for a token that is bound to none")
	}
	// None of these took the only room there is.
	wantReason(t, "its key", v.VerifyBound(f.make(t, proofAttack{}), "POST", proofURL, proofToken, f.thumbprint(t, "")), "")
	wantReason(t, "again", v.VerifyBound(f.make(t, proofAttack{}), "POST", proofURL, proofToken, f.thumbprint(t, "")), "PROOF_REPLAYED")
}

func (f *proofForge) numbered(t testing.TB, key string, id int, iat time.Time) string {
	t.Helper()
	return f.make(t, proofAttack{Key: key, Claims: map[string]any{"jti": fmt.Sprint(id), "iat": float64(iat.UnixMilli()) / 1000}})
}

func TestProofReplay(t *testing.T) {
	f := newProofForge(t)
	v := f.verifier(t, 3)
	start := f.now
	take := func(what, proof, want string) {
		t.Helper()
		_, err := v.Verify(proof, "POST", proofURL, proofToken)
		wantReason(t, what, err, want)
	}
	ahead := f.numbered(t, "", 1, start.Add(5*time.Second))
	late := f.numbered(t, "", 2, start.Add(500*time.Millisecond))
	take("first", ahead, "")
	take("second", late, "")
	take("the jti of another key", f.numbered(t, "es256", 1, start), "")
	take("the same jti, made anew", f.numbered(t, "", 1, start), "PROOF_REPLAYED")
	take("full", f.numbered(t, "", 3, start), "PROOF_REPLAY_MEMORY_FULL")
	if _, err := v.Verify(f.numbered(t, "", 3, start), "POST", proofURL, proofToken); !errors.Is(err, whence.ErrUnavailable) {
		t.Errorf("full: %v", err)
	}
	take("full, and still known", ahead, "PROOF_REPLAYED")

	f.now = start.Add(proofAge)
	take("full to the end", f.numbered(t, "", 3, f.now), "PROOF_REPLAY_MEMORY_FULL")
	f.now = start.Add(proofAge + 500*time.Millisecond)
	take("known to the end", late, "PROOF_REPLAYED")
	f.now = start.Add(proofAge + 900*time.Millisecond)
	take("too old within that second", f.numbered(t, "", 9, start.Add(500*time.Millisecond)), "PROOF_INVALID")
	f.now = start.Add(proofAge + time.Second)
	take("too old then", late, "PROOF_INVALID")
	take("room again", f.numbered(t, "", 3, f.now), "")
	f.now = start.Add(proofAge + 5*time.Second)
	take("from the future, known to the end", ahead, "PROOF_REPLAYED")

	// A clock that is set back brings no proof back to life.
	f.now = start.Add(10 * time.Second)
	take("after the clock was set back", late, "PROOF_INVALID")
	if len(v.memory.seen) > 3 {
		t.Errorf("%d proofs are remembered", len(v.memory.seen))
	}

	f.now = start.Add(time.Hour)
	take("much later", f.numbered(t, "", 4, f.now), "")
	if len(v.memory.seen) != 1 || len(v.memory.bySecond) != 1 {
		t.Errorf("%d proofs in %d seconds are remembered", len(v.memory.seen), len(v.memory.bySecond))
	}
}

// Of many who bring one proof at once, one is let in.
func TestProofReplayAtOnce(t *testing.T) {
	f := newProofForge(t)
	v := f.verifier(t, 0)
	proof := f.make(t, proofAttack{})
	var mu sync.Mutex
	var taken int
	var g sync.WaitGroup
	for range 16 {
		g.Go(func() {
			if _, err := v.Verify(proof, "POST", proofURL, proofToken); err == nil {
				mu.Lock()
				defer mu.Unlock()
				taken++
			}
		})
	}
	g.Wait()
	if taken != 1 {
		t.Errorf("taken %d times", taken)
	}
	if _, err := NewProofVerifier(ProofConfig{Capacity: -1}); err == nil {
		t.Error("a negative capacity")
	}
}

// FuzzProof holds that what is taken has a key, and that the proofs that were made are
// taken. Any key may make one, so others may be good too.
func FuzzProof(f *testing.F) {
	forged := newProofForge(f)
	made := map[string]bool{}
	for _, a := range proofAttacks(f) {
		proof := forged.make(f, a)
		made[proof] = made[proof] || a.Want == "" && a.URL == nil && a.AccessToken == ""
		f.Add(proof)
	}
	f.Fuzz(func(t *testing.T, proof string) {
		thumbprint, err := forged.verifier(t, 1).Verify(proof, "POST", proofURL, proofToken)
		if err != nil && made[proof] || (err == nil) != isThumbprint(thumbprint) {
			t.Fatalf("made %t, thumbprint %q, error %v", made[proof], thumbprint, err)
		}
	})
}

// FuzzComparableURL holds that what comes out is a URL that stays as it is.
func FuzzComparableURL(f *testing.F) {
	for _, s := range []string{proofURL, "HTTP://H:80/%7e/../%2F/./a//b/..", "https://[::1]:443", "http://h/%", "http://h/ü|%00%zz", "https://h:/?x#y"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		once, err := comparableURL(s)
		if err != nil {
			return
		}
		twice, err := comparableURL(once)
		if err != nil || twice != once {
			t.Fatalf("%q gives %q, and that %q, %v", s, once, twice, err)
		}
	})
}

// TestOneKeysShare holds that one key cannot fill the memory of proofs for all others,
// and that its share is free again when its proofs have expired.
func TestOneKeysShare(t *testing.T) {
	t.Parallel()
	m := newReplayMemory(40 * leastShare)
	now := testNow
	share := max(m.capacity/shareOfMemory, leastShare)
	for i := range share {
		if err := m.take("greedy", fmt.Sprint(i), now.Add(proofAge), now); err != nil {
			t.Fatal(i, err)
		}
	}
	var e *whence.Error
	if err := m.take("greedy", "more", now.Add(proofAge), now); !errors.As(err, &e) || e.Reason != "PROOF_RATE_EXCEEDED" || e.RetryAfter <= 0 {
		t.Errorf("beyond its share: %v", err)
	}
	if err := m.take("other", "0", now.Add(proofAge), now); err != nil {
		t.Errorf("another key: %v", err)
	}
	now = now.Add(proofAge + 2*time.Second)
	if err := m.take("greedy", "more", now.Add(proofAge), now); err != nil {
		t.Errorf("later: %v", err)
	}
	if len(m.of) != 1 || m.of["greedy"] != 1 {
		t.Errorf("counted %v", m.of)
	}
}
