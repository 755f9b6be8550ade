package authz

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/authz/internal/strict"
)

// clockSkew is how far the clocks of issuer and verifier may differ.
const clockSkew = 5 * time.Second

const defaultCacheSize = 4096

// VerifierConfig configures a [Verifier].
type VerifierConfig struct {
	Issuer   string // the only issuer that is believed
	Audience string // what tokens must be for; empty is Issuer
	Keys     *Keys
	Clock    func() time.Time // nil is time.Now
	// Revocations are asked on every call; nil: nothing is revoked.
	Revocations *Revocations
	// Proofs checks the proofs of possession that bound tokens come with; nil: a
	// verifier with the defaults.
	Proofs *ProofVerifier
	// CacheSize bounds the verified tokens that are remembered; 0 is 4096.
	CacheSize int
}

// Verifier turns a bearer token into a [Principal]. It may be used by many
// goroutines at once.
type Verifier struct {
	c VerifierConfig

	mu    sync.Mutex
	cache map[[sha256.Size]byte]verified // guarded by mu; by the token's digest
}

func (p *Principal) clone() *Principal {
	c := *p
	c.Actors = slices.Clone(p.Actors)
	return &c
}

type verified struct {
	principal         *Principal
	kid               string
	notBefore, expiry time.Time // skew allowed for
}

// NewVerifier checks the configuration.
func NewVerifier(c VerifierConfig) (*Verifier, error) {
	if c.Audience == "" {
		c.Audience = c.Issuer
	}
	if c.Clock == nil {
		c.Clock = time.Now
	}
	if c.CacheSize == 0 {
		c.CacheSize = defaultCacheSize
	}
	if c.Proofs == nil {
		var err error
		if c.Proofs, err = NewProofVerifier(ProofConfig{Clock: c.Clock}); err != nil {
			return nil, err
		}
	}
	switch {
	case c.Issuer == "":
		return nil, errors.New("verifier: an issuer is required")
	case c.Keys == nil:
		return nil, errors.New("verifier: keys are required")
	case c.CacheSize < 0:
		return nil, errors.New("verifier: the cache size is negative")
	}
	return &Verifier{c: c, cache: make(map[[sha256.Size]byte]verified)}, nil
}

// Verify returns the caller that a token speaks for. The token comes without the
// "Bearer " in front; see [ReadAuthorization]. A refusal is a *whence.Error of kind
// ErrUnauthenticated whose message says what to do and never repeats the token;
// ErrUnavailable means that the keys could not be read. Who was revoked is told beside
// the refusal, for the record alone.
func (v *Verifier) Verify(ctx context.Context, token string) (*Principal, error) {
	switch {
	case token == "":
		return nil, refuse("TOKEN_MISSING", "no access token was sent; send one as Authorization: Bearer TOKEN", nil)
	case len(token) > MaxTokenSize:
		return nil, malformed(fmt.Errorf("longer than %d bytes", MaxTokenSize))
	}
	id := sha256.Sum256([]byte(token))
	entry, known := v.recall(id)
	if known {
		// A key may have been retired since.
		k, err := v.c.Keys.find(ctx, entry.kid)
		if err != nil {
			return nil, fmt.Errorf("verify token: %w", err)
		}
		known = k != nil
	}
	if !known {
		var err error
		if entry, err = v.verify(ctx, token); err != nil {
			return nil, err
		}
		v.remember(id, entry)
	}
	if err := entry.checkTime(v.c.Clock()); err != nil {
		return nil, err
	}
	p := entry.principal.clone()
	if v.c.Revocations != nil {
		if err := v.c.Revocations.Check(ctx, p, entry.kid); err != nil {
			return p, err
		}
	}
	return p, nil
}

// Presented is how a token came with a call.
type Presented struct {
	Token       string
	Bound       bool   // by the scheme DPoP instead of Bearer
	Proof       string // the header DPoP
	Method, URL string // of the call, as the client knows it; for the proof
	Taken       *Taken // in place of the proof, where one request holds several calls
}

// Authenticate verifies a token and that who presents it may: one that is bound to a
// key comes with a proof of that key. Beside a refusal it may tell whose token it was,
// for the record alone.
func (v *Verifier) Authenticate(ctx context.Context, c Presented) (*Principal, error) {
	p, err := v.Verify(ctx, c.Token)
	switch {
	case err != nil:
		return p, err
	case p.Thumbprint == "" && c.Bound:
		return p, refuse("TOKEN_NOT_BOUND", "this token is not bound to a key; send it as Authorization: Bearer TOKEN", nil)
	case p.Thumbprint == "":
		return p, nil
	case !c.Bound:
		return p, refuse("PROOF_MISSING", "this token is bound to a key; send it as Authorization: DPoP TOKEN, with a proof in the header DPoP (RFC 9449)", nil)
	case c.Taken.with(c.Token):
		return p, nil
	}
	if err := v.c.Proofs.VerifyBound(c.Proof, c.Method, c.URL, c.Token, p.Thumbprint); err != nil {
		return p, err
	}
	return p, nil
}

// Proof checks the proof of possession at the token endpoint, where there is no
// token yet, and returns the thumbprint of its key; "" when none came.
func (v *Verifier) Proof(proof, method, url string) (thumbprint string, err error) {
	if proof == "" {
		return "", nil
	}
	return v.c.Proofs.Verify(proof, method, url, "")
}

// Mine tells whether a token names this issuer as its own; it verifies nothing.
func (v *Verifier) Mine(token string) bool {
	if len(token) > MaxTokenSize {
		return false
	}
	_, parts, err := split(token)
	if err != nil {
		return false
	}
	c, err := decodeClaims(parts.Claims)
	return err == nil && c.Issuer == v.c.Issuer
}

// verify does everything that does not depend on the time of the call.
func (v *Verifier) verify(ctx context.Context, token string) (verified, error) {
	h, parts, err := split(token)
	if err != nil {
		return verified{}, malformed(err)
	}
	if t := strings.ToLower(h.Type); t != tokenType && t != "application/"+tokenType {
		return verified{}, refuse("TOKEN_TYPE_WRONG", "this is not an access token (its type is not at+jwt); get one at /oauth/token", nil)
	}
	c, err := decodeClaims(parts.Claims)
	if err != nil {
		return verified{}, malformed(err)
	}
	// The issuer says whose keys to try, so it comes first; nothing else of the
	// claims is used before the signature is good.
	if c.Issuer != v.c.Issuer {
		return verified{}, refuse("TOKEN_ISSUER_UNKNOWN", "the token was issued by a server that is not trusted here; get one from this server's /oauth/token", nil)
	}
	k, err := v.c.Keys.find(ctx, h.KeyID)
	if err != nil {
		return verified{}, fmt.Errorf("verify token: %w", err)
	}
	if k == nil {
		return verified{}, badSignature(errors.New("no key in use has this id"))
	}
	if h.Algorithm != string(k.algorithm) {
		return verified{}, badSignature(errors.New("the algorithm is not the key's"))
	}
	if err := k.algorithm.method().Verify(parts.Signed, parts.Signature, k.public); err != nil {
		return verified{}, badSignature(err)
	}
	if !slices.Contains(c.Audience, v.c.Audience) {
		return verified{}, refuse("TOKEN_AUDIENCE_WRONG", "the token is for another resource; ask its issuer for one for this server", nil)
	}
	if err := c.checkLifetime(); err != nil {
		return verified{}, malformed(err)
	}
	p, err := c.principal()
	if err != nil {
		return verified{}, malformed(err)
	}
	start := p.IssuedAt
	if c.NotYet != nil && c.NotYet.Time().After(start) {
		start = c.NotYet.Time()
	}
	return verified{principal: p, kid: k.kid, notBefore: start.Add(-clockSkew), expiry: p.Expires.Add(clockSkew)}, nil
}

func (c claims) checkLifetime() error {
	if c.Expires == nil || c.IssuedAt == nil {
		return errors.New("exp and iat are required")
	}
	if life := c.Expires.Time().Sub(c.IssuedAt.Time()); life <= 0 || life > MaxLifetime {
		return fmt.Errorf("it is valid for %s, which is not between 0 and %s", life, MaxLifetime)
	}
	return nil
}

func (e verified) checkTime(now time.Time) error {
	switch {
	case now.Before(e.notBefore):
		return refuse("TOKEN_NOT_YET_VALID", "the token is not valid yet; compare this machine's clock with the issuer's", nil)
	case !now.Before(e.expiry):
		return refuse("TOKEN_EXPIRED", "the token has expired; get a new one at /oauth/token", nil)
	}
	return nil
}

// split takes a token apart, which has no header member but three.
func split(token string) (h header, t strict.Token, err error) {
	if t, err = strict.Split(token); err != nil {
		return h, t, err
	}
	if err := DecodeStrict(t.Header, &h); err != nil {
		return h, t, errors.New("header: want typ, alg and kid, each once, and nothing else")
	}
	if !keyID(h.KeyID) {
		return h, t, errors.New("header: kid is not a key id")
	}
	return h, t, nil
}

// keyID tells whether s has the form of a thumbprint's base64url.
func keyID(s string) bool {
	return s != "" && len(s) <= 128 && !strings.ContainsFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '_'
	})
}

func (v *Verifier) recall(id [sha256.Size]byte) (verified, bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	e, ok := v.cache[id]
	return e, ok
}

// remember keeps a verified token until it expires. When the cache is full the
// expired ones make room, or else some other does.
func (v *Verifier) remember(id [sha256.Size]byte, e verified) {
	now := v.c.Clock()
	if !now.Before(e.expiry) {
		return
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.cache) >= v.c.CacheSize {
		for other, o := range v.cache {
			if !now.Before(o.expiry) {
				delete(v.cache, other)
			}
		}
		for other := range v.cache {
			if len(v.cache) < v.c.CacheSize {
				break
			}
			delete(v.cache, other)
		}
	}
	v.cache[id] = e
}

// ReadAuthorization takes the token out of an Authorization header's value. There
// is none when the scheme is neither Bearer nor DPoP.
func ReadAuthorization(authorization string) (token string, bound bool) {
	scheme, token, ok := strings.Cut(authorization, " ")
	bound = strings.EqualFold(scheme, "DPoP")
	if !ok || !bound && !strings.EqualFold(scheme, "Bearer") {
		return "", false
	}
	return strings.TrimLeft(token, " "), bound
}

func refuse(reason, message string, cause error) error {
	return &whence.Error{Kind: whence.ErrUnauthenticated, Reason: reason, Message: message, Err: cause}
}

func malformed(cause error) error {
	return refuse("TOKEN_MALFORMED", "the access token is not one that this server issues; get one at /oauth/token", cause)
}

func badSignature(cause error) error {
	return refuse("TOKEN_SIGNATURE_INVALID", "the access token is not signed by a key of this server; get a new one at /oauth/token", cause)
}
