package authz

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/authz/internal/strict"
)

// DefaultTenant is the tenant where none is named.
const DefaultTenant = "default"

// IssuerConfig configures an [Issuer].
type IssuerConfig struct {
	Name     string // the issuer's URL, the token's iss
	Audience string // the resource that the tokens are for; empty is Name
	Tenant   string // of operators; empty is DefaultTenant
	Keys     *Keys
	Clock    func() time.Time // nil is time.Now
}

// Issuer signs tokens. It decides nothing: whoever calls it has settled that the
// task or the operator may have one.
type Issuer struct{ c IssuerConfig }

// NewIssuer checks the configuration.
func NewIssuer(c IssuerConfig) (*Issuer, error) {
	if c.Audience == "" {
		c.Audience = c.Name
	}
	if c.Tenant == "" {
		c.Tenant = DefaultTenant
	}
	if c.Clock == nil {
		c.Clock = time.Now
	}
	switch {
	case c.Name == "":
		return nil, errors.New("issuer: a name is required")
	case c.Keys == nil:
		return nil, errors.New("issuer: keys are required")
	case !plain(c.Name) || !plain(c.Audience) || !plain(c.Tenant):
		return nil, errors.New("issuer: name, audience and tenant must be plain text")
	}
	return &Issuer{c}, nil
}

// Name returns the issuer's URL.
func (i *Issuer) Name() string { return i.c.Name }

// TaskClaims are what a task's token says.
type TaskClaims struct {
	User   string   // who delegated the task
	Agent  string   // who acts
	Actors []string // the chain that acts, Agent first; empty is Agent alone
	Tenant string   // empty is the issuer's
	Task   uuid.UUID
	Root   uuid.UUID // Task itself when it has no parent
	Parent uuid.UUID // zero when there is none
	Depth  int       // 0 exactly when there is no parent
	// Scope is what the task may touch: what an operator granted for a root task,
	// the Spec of a narrowed scope for a child.
	Scope ScopeSpec
	// Lifetime is cut to whole seconds; at least one, at most MaxLifetime.
	Lifetime time.Duration
	// Thumbprint binds the token to the key that [ProofVerifier.Verify] returned it
	// for; empty makes a bearer token.
	Thumbprint string
}

// IssueTask signs the token of one task. A scope that is not valid, or too large
// for a token, is an ErrInvalid; other errors are the caller's mistakes.
func (i *Issuer) IssueTask(t TaskClaims) (token string, expires time.Time, err error) {
	if len(t.Actors) == 0 {
		t.Actors = []string{t.Agent}
	}
	if t.Tenant == "" {
		t.Tenant = i.c.Tenant
	}
	if err := checkChain(t.Agent, t.Actors); err != nil {
		return "", time.Time{}, fmt.Errorf("issue task token: %w", err)
	}
	if err := checkTask(t.Task, t.Root, t.Parent, t.Depth); err != nil {
		return "", time.Time{}, fmt.Errorf("issue task token: %w", err)
	}
	scope, err := newScope(t.Scope)
	if err != nil {
		return "", time.Time{}, err
	}
	var bound *confirm
	if t.Thumbprint != "" {
		if !isThumbprint(t.Thumbprint) {
			return "", time.Time{}, errors.New("issue task token: the thumbprint is not a SHA-256 in base64url")
		}
		bound = &confirm{t.Thumbprint}
	}
	place := &taskClaim{ID: t.Task, Root: t.Root, Depth: t.Depth}
	if t.Parent != uuid.Nil {
		place.Parent = &t.Parent
	}
	return i.issue(claims{Subject: t.User, Client: t.Agent, Actor: newActor(t.Actors), Tenant: t.Tenant,
		Task: place, Scope: actionsOf(scope), Details: details{scope.Spec()}, Confirm: bound}, t.Lifetime)
}

func actionsOf(s Scope) string {
	var names []string
	for _, a := range s.actions.sorted() {
		names = append(names, string(a))
	}
	return strings.Join(names, " ")
}

// IssueOperator signs an operator's token. The subject is also the client: an
// operator acts for themselves.
func (i *Issuer) IssueOperator(subject string, role Role, lifetime time.Duration) (token string, expires time.Time, err error) {
	if !role.Operates() {
		return "", time.Time{}, fmt.Errorf("issue operator token: %q is not an operator's role", role)
	}
	return i.issue(claims{Subject: subject, Client: subject, Tenant: i.c.Tenant, Role: role}, lifetime)
}

// IssueUser signs the token of a user who comes for themselves; scope is what agents
// may be granted for them at most.
func (i *Issuer) IssueUser(tenant, subject string, scope ScopeSpec, lifetime time.Duration) (token string, expires time.Time, err error) {
	s, err := newScope(scope)
	if err != nil {
		return "", time.Time{}, err
	}
	return i.issue(claims{Subject: subject, Client: subject, Tenant: tenant, Role: RoleUser, Details: details{s.Spec()}}, lifetime)
}

func (i *Issuer) issue(c claims, lifetime time.Duration) (string, time.Time, error) {
	lifetime = lifetime.Truncate(time.Second)
	if lifetime < time.Second || lifetime > MaxLifetime {
		return "", time.Time{}, fmt.Errorf("issue token: a lifetime of %s is not between 1s and %s", lifetime, MaxLifetime)
	}
	if !plain(c.Subject) || !plain(c.Client) || !plain(c.Tenant) {
		return "", time.Time{}, errors.New("issue token: subject, client and tenant must be plain text")
	}
	now := i.c.Clock().Truncate(time.Second)
	c.Issuer, c.Audience, c.ID = i.c.Name, strict.Audience{i.c.Audience}, rand.Text()
	c.IssuedAt, c.NotYet, c.Expires = strict.SecondsOf(now), strict.SecondsOf(now), strict.SecondsOf(now.Add(lifetime))
	token, err := i.sign(c)
	if err != nil {
		return "", time.Time{}, fmt.Errorf("issue token: %w", err)
	}
	return token, now.Add(lifetime).UTC(), nil
}

func (i *Issuer) sign(c claims) (string, error) {
	k, err := i.c.Keys.signer()
	if err != nil {
		return "", err
	}
	h, err := json.Marshal(header{Type: tokenType, Algorithm: string(k.algorithm), KeyID: k.kid})
	if err != nil {
		return "", err
	}
	body, err := json.Marshal(c)
	if err != nil {
		return "", err
	}
	b64 := base64.RawURLEncoding.EncodeToString
	signed := b64(h) + "." + b64(body)
	signature, err := k.algorithm.method().Sign(signed, k.private)
	if err != nil {
		return "", err
	}
	token := signed + "." + b64(signature)
	if len(token) > MaxTokenSize {
		return "", whence.Invalid("authorization_details", "SCOPE_TOO_LARGE",
			fmt.Sprintf("a token for this scope would take %d bytes of at most %d; name fewer tables and subjects", len(token), MaxTokenSize))
	}
	return token, nil
}
