package authz

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/whence-db/whence"
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
	public    crypto.PublicKey
	private   crypto.Signer // nil: not at hand in this process
	jwk       jwk
	created   time.Time
	signsFrom time.Time
}

// generateKey makes a key whose id does not begin with "-", which command lines would
// take for a flag.
func generateKey(a Algorithm) (*key, error) {
	for {
		k, err := drawKey(a)
		if err != nil || !strings.HasPrefix(k.kid, "-") {
			return k, err
		}
	}
}

func drawKey(a Algorithm) (*key, error) {
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
	k, err := newPublicKey(private.Public())
	if err != nil {
		return nil, err
	}
	k.private = private
	return k, nil
}

func newPublicKey(public crypto.PublicKey) (*key, error) {
	k := &key{public: public}
	var err error
	if k.jwk, err = newJWK(public); err != nil {
		return nil, fmt.Errorf("signing key: %w", err)
	}
	switch k.jwk.Curve {
	case "Ed25519":
		k.algorithm = EdDSA
	case "P-256":
		k.algorithm = ES256
	default:
		return nil, errors.New("signing key: want an Ed25519 key, or an ECDSA key on P-256")
	}
	k.kid = k.jwk.thumbprint()
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
	// refreshAge is how old may be what a process knows of the keys when it signs:
	// that long it may go on using a key that another process retired.
	refreshAge = time.Minute
	// verifyAge is the same for verifying. It is less, so that a call which has shown
	// a token need not look again when it signs, while it holds a connection perhaps.
	verifyAge = refreshAge / 2
	// refreshTimeout bounds one look.
	refreshTimeout = 5 * time.Second
)

// Keys are the keys that sign tokens. A key is published before it signs; then it
// signs until its successor does, and verifies until the last token that it may
// have signed is over (see [keyring]). Processes share keys through the memory
// database; each looks again when it meets a key id that it does not know, and at
// least once a minute while it signs or verifies.
type Keys struct {
	store *keyStore // nil: in memory only
	clock func() time.Time

	mu      sync.RWMutex
	ring    keyring   // guarded by mu; replaced whole
	looked  time.Time // guarded by mu; when ring was last brought up to date
	tried   time.Time // guarded by mu; when that was last tried
	failure error     // guarded by mu; how the last try failed

	refreshing sync.Mutex // held by the one caller that reads the store
}

// NewEphemeralKeys returns keys that live in this process only.
func NewEphemeralKeys() *Keys {
	k, err := generateKey(EdDSA)
	if err != nil {
		panic(err) // an Ed25519 key is 32 random bytes: it cannot fail
	}
	ks := &Keys{clock: time.Now}
	ks.set(newKeyring([]*key{k}))
	return ks
}

// JWKS returns the public keys as a JSON Web Key Set, those that are yet to sign
// included.
func (ks *Keys) JWKS(ctx context.Context) (json.RawMessage, error) {
	// Another process may just have made a key that this one has not met yet.
	if err := ks.refresh(ctx, refreshPause); err != nil {
		return nil, err
	}
	doc := struct {
		Keys []jwk `json:"keys"`
	}{Keys: []jwk{}}
	for _, k := range ks.live() {
		doc.Keys = append(doc.Keys, k.jwk)
	}
	return json.Marshal(doc)
}

// live returns the keys that verify now.
func (ks *Keys) live() keyring {
	ks.mu.RLock()
	defer ks.mu.RUnlock()
	return ks.ring.live(ks.clock())
}

// signer returns the key that signs now, as it was known less than refreshAge ago.
func (ks *Keys) signer() (*key, error) {
	if err := ks.refresh(context.Background(), refreshAge); err != nil {
		return nil, err
	}
	live := ks.live()
	if len(live) == 0 {
		return nil, errors.New("there is no signing key")
	}
	k := live[live.signing(ks.clock())]
	if k.private == nil {
		return nil, &whence.Error{Kind: whence.ErrUnavailable, Reason: "SIGNING_KEY_UNAVAILABLE",
			Message:  fmt.Sprintf("tokens are signed with the key %s, which is in a file that this process lacks: start it with --signing-key-file (WHENCE_SIGNING_KEY_FILE) naming the file that holds it", k.kid),
			Metadata: map[string]string{"key": k.kid}}
	}
	return k, nil
}

// find returns the key of exactly this id, or nil. An unknown one is looked for
// in the store; an error means that the store did not answer.
func (ks *Keys) find(ctx context.Context, kid string) (*key, error) {
	age := verifyAge
	if ks.live().find(kid) == nil {
		age = refreshPause
	}
	if err := ks.refresh(ctx, age); err != nil {
		return nil, err
	}
	return ks.live().find(kid), nil
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
	ring, err := ks.store.look(ctx)
	if err != nil {
		ks.mu.Lock()
		defer ks.mu.Unlock()
		ks.tried, ks.failure = ks.clock(), err
		return err
	}
	ks.set(ring)
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

func (ks *Keys) set(ring keyring) {
	ks.mu.Lock()
	defer ks.mu.Unlock()
	now := ks.clock()
	ks.ring, ks.looked, ks.tried, ks.failure = ring, now, now, nil
}
