// Package federation verifies tokens that others signed: users' tokens by the
// identity providers that an operator registered, agents' tokens by those or by
// a SPIFFE trust domain, and the assertions by which agents prove who they are.
// Whence has no passwords of its own, so this is where every identity begins.
//
// The governing idea: a token chooses nothing. Its issuer must be registered,
// its algorithm must be one that the registration pins and the key fits, its key
// comes from where the registration says; what the token itself says about keys
// is refused. What cannot be checked (the issuer is out of reach and its keys
// have grown old) is refused as an outage, never let through.
package federation

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/whence-db/whence/authz"
)

const (
	// clockSkew is how far the clocks of issuer and verifier may differ.
	clockSkew = 5 * time.Second
	// MaxAssertionAhead is how far ahead an agent's assertion may expire.
	MaxAssertionAhead = 5 * time.Minute
)

// Identity is whom a foreign token speaks of.
type Identity struct {
	Issuer  Issuer
	Subject string
	Tenant  string
	Groups  []string
	// Role is the highest that the groups of a user map to; none outside of
	// [authz.DefaultTenant], and none for an agent.
	Role    authz.Role
	TokenID string // the token's jti; empty when it has none
	// IssuedAt is the token's iat; zero for a JWT-SVID without one.
	IssuedAt time.Time
	Expires  time.Time
}

// Config configures a [Verifier].
type Config struct {
	// Issuers finds the registration of the issuer of exactly this URL; an
	// unknown one is a whence.ErrNotFound.
	Issuers func(ctx context.Context, url string) (Issuer, error)
	// Client fetches discovery documents and key sets. Its redirect policy and
	// timeout are not used: redirects are refused, five seconds is the longest.
	Client *http.Client
	Clock  func() time.Time // nil is time.Now
	Log    *slog.Logger     // nil logs nothing
}

// Verifier verifies foreign tokens. It may be used by many goroutines at once.
type Verifier struct {
	c Config

	mu      sync.Mutex
	keySets map[location]*keySet // guarded by mu; one for each registered issuer that was met
}

// location is where an issuer's keys are found. A registration that is changed
// begins anew.
type location struct{ issuer, jwks string }

// New checks the configuration.
func New(c Config) (*Verifier, error) {
	if c.Clock == nil {
		c.Clock = time.Now
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	switch {
	case c.Issuers == nil:
		return nil, errors.New("federation: a way to find issuers is required")
	case c.Client == nil:
		return nil, errors.New("federation: an HTTP client is required")
	}
	client := *c.Client
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	client.Timeout = 0 // each fetch has its own
	client.Jar = nil
	c.Client = &client
	return &Verifier{c: c, keySets: make(map[location]*keySet)}, nil
}

func (v *Verifier) keySet(i Issuer) *keySet {
	v.mu.Lock()
	defer v.mu.Unlock()
	at := location{i.URL, i.JWKSURL}
	s := v.keySets[at]
	if s == nil {
		s = &keySet{client: v.c.Client, clock: v.c.Clock, log: v.c.Log, issuer: i, turn: make(chan struct{}, 1)}
		v.keySets[at] = s
	}
	return s
}
