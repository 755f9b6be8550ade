package authz

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/authz/internal/strict"
)

const (
	// MaxProofSize is the longest proof that is read, in bytes.
	MaxProofSize = 8 << 10

	proofType = "dpop+jwt"
	// proofAge is how long after its iat a proof is taken, and so how long it is
	// remembered.
	proofAge        = time.Minute
	maxProofID      = 128 // bytes
	defaultCapacity = 100_000
)

// ProofConfig configures a [ProofVerifier].
type ProofConfig struct {
	Clock func() time.Time // nil is time.Now
	// Capacity bounds the proofs that are remembered, so that none is taken twice; 0
	// is 100,000, which take about 15 MB. It is also how many proofs can be taken a
	// minute.
	Capacity int
}

// ProofVerifier checks the proofs of possession (DPoP, RFC 9449) that come with
// calls. It may be used by many goroutines at once.
//
// What it remembers is of one process. Beside others behind a load balancer, or
// after a restart, a proof that someone overheard can be used again, within a minute
// of its iat, once for each other process, for the same method and URL and with the
// same access token; an Idempotency-Key keeps that from doing anything twice.
type ProofVerifier struct {
	clock  func() time.Time
	memory *replayMemory
}

// NewProofVerifier checks the configuration.
func NewProofVerifier(c ProofConfig) (*ProofVerifier, error) {
	if c.Clock == nil {
		c.Clock = time.Now
	}
	if c.Capacity == 0 {
		c.Capacity = defaultCapacity
	}
	if c.Capacity < 0 {
		return nil, errors.New("proof verifier: the capacity is negative")
	}
	return &ProofVerifier{clock: c.Clock, memory: newReplayMemory(c.Capacity)}, nil
}

// proofHeader is a proof's JOSE header: these members and no others.
type proofHeader struct {
	Type      string `json:"typ"`
	Algorithm string `json:"alg"`
	Key       *jwk   `json:"jwk"`
}

// Verify checks the DPoP proof that came with one request and returns the RFC 7638
// thumbprint of its key. The URL is the request's as the client knows it; query and
// fragment do not matter. The access token is the one that the request presents, or
// "" at the token endpoint, where there is none yet.
//
// A refusal is an ErrUnauthenticated with the reason PROOF_MISSING, PROOF_INVALID or
// PROOF_REPLAYED; it never repeats the proof. ErrUnavailable means that no more
// proofs can be remembered for now. A proof that was taken is used up: judge
// everything else about a request first, the access token included, so that nobody
// without one can fill the memory.
func (v *ProofVerifier) Verify(proof, method, url, accessToken string) (thumbprint string, err error) {
	return v.verify(proof, method, url, accessToken, "")
}

// VerifyBound is Verify for a request whose access token is bound to the key with
// this thumbprint: a proof of another key is refused as PROOF_KEY_WRONG, and not
// remembered.
func (v *ProofVerifier) VerifyBound(proof, method, url, accessToken, thumbprint string) error {
	if thumbprint == "" {
		return errors.New("verify proof: the token is bound to no key")
	}
	_, err := v.verify(proof, method, url, accessToken, thumbprint)
	return err
}

func (v *ProofVerifier) verify(proof, method, url, accessToken, bound string) (string, error) {
	switch {
	case proof == "":
		return "", refuse("PROOF_MISSING", "the token is bound to a key and no proof of it was sent; send one in the header DPoP (RFC 9449)", nil)
	case len(proof) > MaxProofSize:
		return "", badProof(fmt.Errorf("longer than %d bytes", MaxProofSize))
	}
	parts, err := strict.Split(proof)
	if err != nil {
		return "", badProof(err)
	}
	thumbprint, err := checkProofSignature(parts.Header, parts.Signed, parts.Signature)
	if err != nil {
		return "", badProof(err)
	}
	c, err := decodeProof(parts.Claims)
	if err != nil {
		return "", badProof(err)
	}
	now := v.clock()
	if err := c.check(now, method, url, accessToken); err != nil {
		return "", badProof(err)
	}
	if bound != "" && thumbprint != bound {
		return "", refuse("PROOF_KEY_WRONG", "the proof is by another key than the one that the token is bound to; sign it with that one", nil)
	}
	if err := v.memory.take(thumbprint, c.ID, c.IssuedAt.Time().Add(proofAge), now); err != nil {
		return "", err
	}
	return thumbprint, nil
}

// checkProofSignature returns the thumbprint of the key in the header that signed.
func checkProofSignature(raw []byte, signed string, signature []byte) (string, error) {
	var h proofHeader
	if err := DecodeStrict(raw, &h); err != nil || h.Key == nil {
		return "", errors.New("header: want typ, alg and jwk with a public key, each once, and nothing else")
	}
	if h.Type != proofType {
		return "", errors.New("header: typ is not " + proofType)
	}
	if (h.Key.Algorithm != "" && h.Key.Algorithm != h.Algorithm) || (h.Key.Use != "" && h.Key.Use != "sig") ||
		(h.Key.Operations != nil && !slices.Contains(h.Key.Operations, "verify")) {
		return "", errors.New("header: the key is for something else")
	}
	public, err := h.Key.public()
	if err != nil {
		return "", errors.New("header: jwk is not a public key of a kind that is taken: Ed25519, P-256, P-384, or RSA of 2048 to 4096 bits")
	}
	name, method := proofMethod(public)
	if h.Algorithm != name {
		return "", errors.New("header: alg is not the key's; want EdDSA, ES256, ES384 or PS256")
	}
	if err := method.Verify(signed, signature, public); err != nil {
		return "", err
	}
	return h.Key.thumbprint(), nil
}

// ProofAlgorithms are those that proofs may be signed with.
func ProofAlgorithms() []string { return []string{"EdDSA", "ES256", "ES384", "PS256"} }

// proofMethod tells the one algorithm that a key may sign with.
func proofMethod(public crypto.PublicKey) (string, jwt.SigningMethod) {
	switch k := public.(type) {
	case ed25519.PublicKey:
		return "EdDSA", jwt.SigningMethodEdDSA
	case *ecdsa.PublicKey:
		if k.Curve == elliptic.P256() {
			return "ES256", jwt.SigningMethodES256
		}
		return "ES384", jwt.SigningMethodES384
	case *rsa.PublicKey:
		return "PS256", jwt.SigningMethodPS256
	}
	return "", nil // jwk.public returns no others
}

// proofClaims are a proof's claims; others, such as nonce, are ignored.
type proofClaims struct {
	ID       string
	Method   string
	URL      string
	IssuedAt *strict.Seconds
	Token    string // base64url of the access token's SHA-256
}

func decodeProof(b []byte) (c proofClaims, err error) {
	if err := strict.Unambiguous(b); err != nil {
		return proofClaims{}, err
	}
	var members map[string]json.RawMessage
	if err := json.Unmarshal(b, &members); err != nil {
		return proofClaims{}, err
	}
	for name, target := range map[string]any{"jti": &c.ID, "htm": &c.Method, "htu": &c.URL, "iat": &c.IssuedAt, "ath": &c.Token} {
		raw, ok := members[name]
		if !ok {
			continue
		}
		if err := json.Unmarshal(raw, target); err != nil {
			return proofClaims{}, fmt.Errorf("claim %s is not what it should be", name) // without what it is
		}
	}
	return c, nil
}

func (c proofClaims) check(now time.Time, method, url, accessToken string) error {
	switch {
	case c.ID == "" || len(c.ID) > maxProofID:
		return fmt.Errorf("claim jti must have 1 to %d bytes", maxProofID)
	case c.Method != method:
		return errors.New("claim htm is not the method of this request")
	case c.IssuedAt == nil:
		return errors.New("claim iat is missing")
	case now.Sub(c.IssuedAt.Time()) > proofAge:
		return errTooOld
	case c.IssuedAt.Time().Sub(now) > clockSkew:
		return errors.New("claim iat is in the future; compare this machine's clock with the server's")
	}
	got, err := comparableURL(c.URL)
	if err != nil {
		return errors.New("claim htu is not an http or https URL")
	}
	want, err := comparableURL(url)
	if err != nil || got != want {
		return errors.New("claim htu is not the URL of this request")
	}
	if accessToken == "" {
		return nil
	}
	sum := sha256.Sum256([]byte(accessToken))
	if c.Token != base64.RawURLEncoding.EncodeToString(sum[:]) {
		return errors.New("claim ath is not the digest of the access token that came with it")
	}
	return nil
}

var errTooOld = errors.New("claim iat is more than a minute ago")

func badProof(cause error) error {
	return &whence.Error{Kind: whence.ErrUnauthenticated, Reason: "PROOF_INVALID",
		Message: "the DPoP proof does not prove possession for this request: " + cause.Error() + "; make a new one for each request (RFC 9449)"}
}
