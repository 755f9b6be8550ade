package authz

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// Algorithm is how a key signs. Each key has exactly one, and a token's own claim
// about it is only ever compared with the key's.
type Algorithm string

const (
	// EdDSA is Ed25519 (RFC 8037).
	EdDSA Algorithm = "EdDSA"
	// ES256 is ECDSA on P-256 with SHA-256 (RFC 7518).
	ES256 Algorithm = "ES256"
)

func (a Algorithm) method() jwt.SigningMethod {
	if a == ES256 {
		return jwt.SigningMethodES256
	}
	return jwt.SigningMethodEdDSA
}

// key is one signing key. Its id is the RFC 7638 thumbprint of its public part.
type key struct {
	kid       string
	algorithm Algorithm
	private   crypto.Signer
	jwk       jwk
	created   time.Time
}

// jwk is the public part as RFC 7517 and RFC 8037 write it.
type jwk struct {
	KeyType   string `json:"kty"`
	Curve     string `json:"crv"`
	X         string `json:"x"`
	Y         string `json:"y,omitempty"`
	KeyID     string `json:"kid"`
	Algorithm string `json:"alg"`
	Use       string `json:"use"`
}

func generateKey(a Algorithm) (*key, error) {
	var private crypto.Signer
	var err error
	switch a {
	case EdDSA:
		_, private, err = ed25519.GenerateKey(rand.Reader)
	case ES256:
		private, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	default:
		return nil, fmt.Errorf("signing algorithm %q: want %s or %s", a, EdDSA, ES256)
	}
	if err != nil {
		return nil, err
	}
	return newKey(private)
}

// newKey derives the public part, the algorithm and the id from the private part
// alone, so that nothing stored beside it needs to be believed.
func newKey(private crypto.Signer) (*key, error) {
	k := &key{private: private}
	b64 := base64.RawURLEncoding.EncodeToString
	var canonical string // RFC 7638: required members, sorted, no spaces
	switch public := private.Public().(type) {
	case ed25519.PublicKey:
		k.algorithm = EdDSA
		k.jwk = jwk{KeyType: "OKP", Curve: "Ed25519", X: b64(public)}
		canonical = fmt.Sprintf(`{"crv":"Ed25519","kty":"OKP","x":"%s"}`, k.jwk.X)
	case *ecdsa.PublicKey:
		point, err := public.Bytes() // 4, X, Y
		if err != nil || public.Curve != elliptic.P256() {
			return nil, errors.New("signing key: an ECDSA key must be on P-256")
		}
		k.algorithm = ES256
		k.jwk = jwk{KeyType: "EC", Curve: "P-256", X: b64(point[1:33]), Y: b64(point[33:])}
		canonical = fmt.Sprintf(`{"crv":"P-256","kty":"EC","x":"%s","y":"%s"}`, k.jwk.X, k.jwk.Y)
	default:
		return nil, fmt.Errorf("signing key: %T is not supported", public)
	}
	sum := sha256.Sum256([]byte(canonical))
	k.kid = b64(sum[:])
	k.jwk.KeyID, k.jwk.Algorithm, k.jwk.Use = k.kid, string(k.algorithm), "sig"
	return k, nil
}

func (k *key) marshal() ([]byte, error) { return x509.MarshalPKCS8PrivateKey(k.private) }

func parseKey(der []byte) (*key, error) {
	private, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, fmt.Errorf("signing key: %w", err)
	}
	signer, ok := private.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("signing key: %T cannot sign", private)
	}
	return newKey(signer)
}

const (
	// refreshPause is the least time between two looks at the stored keys,
	// however many unknown key ids arrive.
	refreshPause = time.Second
	// refreshAge is how long a key that another process retired may still be used here.
	refreshAge = time.Minute
	// refreshTimeout bounds one look.
	refreshTimeout = 5 * time.Second
)

// Keys are the keys that sign tokens: the newest signs, all verify until they are
// retired. Processes share them through the memory database; each looks again when
// it meets a key id that it does not know, and once a minute under load.
type Keys struct {
	store *keyStore // nil: in memory only
	clock func() time.Time

	mu      sync.RWMutex
	byID    map[string]*key // guarded by mu; replaced whole
	current *key            // guarded by mu
	looked  time.Time       // guarded by mu; when byID was last brought up to date
	tried   time.Time       // guarded by mu; when that was last tried
	failure error           // guarded by mu; how the last try failed

	refreshing sync.Mutex // held by the one caller that reads the store
}

// NewEphemeralKeys returns keys that live in this process only.
func NewEphemeralKeys() *Keys {
	k, err := generateKey(EdDSA)
	if err != nil {
		panic(err) // an Ed25519 key is 32 random bytes: it cannot fail
	}
	ks := &Keys{clock: time.Now}
	ks.set([]*key{k})
	return ks
}

// JWKS returns the public keys as a JSON Web Key Set.
func (ks *Keys) JWKS(ctx context.Context) (json.RawMessage, error) {
	// Another process may just have made a key that this one has not met yet.
	if err := ks.refresh(ctx, refreshPause); err != nil {
		return nil, err
	}
	ks.mu.RLock()
	defer ks.mu.RUnlock()
	doc := struct {
		Keys []jwk `json:"keys"`
	}{Keys: []jwk{}}
	for _, kid := range slices.Sorted(maps.Keys(ks.byID)) {
		doc.Keys = append(doc.Keys, ks.byID[kid].jwk)
	}
	return json.Marshal(doc)
}

// signer returns the key that signs now.
func (ks *Keys) signer() (*key, error) {
	ks.mu.RLock()
	defer ks.mu.RUnlock()
	if ks.current == nil {
		return nil, errors.New("no signing key is left: every one is retired")
	}
	return ks.current, nil
}

// find returns the key of exactly this id, or nil. An unknown one is looked for
// in the store; an error means that the store did not answer.
func (ks *Keys) find(ctx context.Context, kid string) (*key, error) {
	k := ks.known(kid)
	age := refreshAge
	if k == nil {
		age = refreshPause
	}
	if err := ks.refresh(ctx, age); err != nil {
		return nil, err
	}
	return ks.known(kid), nil
}

func (ks *Keys) known(kid string) *key {
	ks.mu.RLock()
	defer ks.mu.RUnlock()
	return ks.byID[kid]
}

// refresh makes sure that the store was read less than age ago. It reads at most
// once per refreshPause; in between, a failure is what everyone gets who needs
// newer keys, so that an outage is not taken for a forged token.
func (ks *Keys) refresh(ctx context.Context, age time.Duration) error {
	if ks.store == nil {
		return nil
	}
	if done, err := ks.recent(age); done {
		return err
	}
	ks.refreshing.Lock()
	defer ks.refreshing.Unlock()
	if done, err := ks.recent(age); done {
		return err
	}
	// What is learned is for all callers, so one caller's end must not end it.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), refreshTimeout)
	defer cancel()
	keys, err := ks.store.list(ctx)
	if err != nil {
		ks.mu.Lock()
		defer ks.mu.Unlock()
		ks.tried, ks.failure = ks.clock(), err
		return err
	}
	ks.set(keys)
	return nil
}

// recent tells whether no reading is due, and what the callers are to make of it.
func (ks *Keys) recent(age time.Duration) (done bool, err error) {
	ks.mu.RLock()
	defer ks.mu.RUnlock()
	now := ks.clock()
	if now.Sub(ks.looked) < age {
		return true, nil
	}
	return now.Sub(ks.tried) < refreshPause, ks.failure
}

func (ks *Keys) set(keys []*key) {
	byID := make(map[string]*key, len(keys))
	var current *key
	for _, k := range keys {
		byID[k.kid] = k
		if current == nil || k.created.After(current.created) ||
			(k.created.Equal(current.created) && k.kid > current.kid) {
			current = k
		}
	}
	ks.mu.Lock()
	defer ks.mu.Unlock()
	now := ks.clock()
	ks.byID, ks.current, ks.looked, ks.tried, ks.failure = byID, current, now, now, nil
}
