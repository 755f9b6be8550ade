// Package gatewaytest gives tests a whole installation's door: a gateway over a real
// database, stored signing keys, an identity provider that is a real HTTP server, and
// agents with keys of their own.
//
// The governing idea: credentials come about as they do in production. What a test
// holds was signed by somebody, registered by somebody and exchanged at the door; a
// test that wants a forged one forges it.
package gatewaytest

import (
	"context"
	"crypto/ed25519"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/whence-db/whence/audit"
	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/authz/federation"
	"github.com/whence-db/whence/authz/registry"
	"github.com/whence-db/whence/gateway"
	"github.com/whence-db/whence/internal/pg"
	"github.com/whence-db/whence/internal/pgtest"
	"github.com/whence-db/whence/internal/seal"
	"github.com/whence-db/whence/lineage"
)

// Name is the installation's URL: the issuer and the audience of its tokens.
const Name = "https://whence.test"

// World is an installation. Its fields may be read by many goroutines; agents are
// added by one, before others use them.
type World struct {
	Gateway     *gateway.Gateway
	Keys        *authz.Keys
	Verifier    *authz.Verifier
	Issuer      *authz.Issuer
	Registry    *registry.Registry
	Revocations *authz.Revocations
	Pool        *pgxpool.Pool
	Provider    *Provider // whose users everybody is

	t      testing.TB
	agents map[string]ed25519.PrivateKey
	ahead  atomic.Int64 // how far the clock is ahead, in nanoseconds
}

// Everything is the widest scope.
func Everything() authz.ScopeSpec {
	return authz.ScopeSpec{Type: authz.DetailType, AllTables: true, AllSubjects: true, Actions: authz.Actions(), Tier: authz.TierIrreversible}
}

// NewWorld starts an installation that stops with the test. It trusts Provider,
// whose groups admins, approvers and viewers operate it. The test binary's TestMain
// must be [pgtest.Main].
func NewWorld(t testing.TB) *World {
	t.Helper()
	w := &World{t: t, Pool: pgtest.New(t).Pool, agents: map[string]ed25519.PrivateKey{}}
	w.Provider = newProvider(t, "company", w.Now)
	secret, err := seal.ParseKey(seal.NewKey())
	w.check(err)
	w.Keys, err = authz.LoadKeys(t.Context(), authz.KeysConfig{Pool: w.Pool, Seal: secret, Clock: w.Now})
	w.check(err)
	w.Registry, err = registry.New(w.Pool)
	w.check(err)
	w.Revocations, err = authz.NewRevocations(w.Pool, w.Now)
	w.check(err)
	w.Issuer, err = authz.NewIssuer(authz.IssuerConfig{Name: Name, Keys: w.Keys, Clock: w.Now})
	w.check(err)
	w.Verifier, err = authz.NewVerifier(authz.VerifierConfig{Issuer: Name, Keys: w.Keys, Revocations: w.Revocations, Clock: w.Now})
	w.check(err)
	w.start()
	w.AddIssuer(w.Provider, func(i *federation.Issuer) {
		i.Operators = map[string]authz.Role{"admins": authz.RoleAdmin, "approvers": authz.RoleApprover, "viewers": authz.RoleViewer}
	})
	return w
}

func (w *World) start() {
	w.t.Helper()
	foreign, err := federation.New(federation.Config{Issuers: w.Registry.IssuerByURL, Client: &http.Client{Transport: w.Provider.server.Client().Transport}, Clock: w.Now})
	w.check(err)
	log, err := audit.New(audit.Config{Pool: w.Pool})
	w.check(err)
	answers, err := lineage.New(lineage.Config{Pool: w.Pool})
	w.check(err)
	w.Gateway, err = gateway.New(gateway.Config{Pool: w.Pool, Audit: log, Lineage: answers, Verifier: w.Verifier, Issuer: w.Issuer,
		Identities: foreign, Registry: w.Registry, Revocations: w.Revocations, Keys: w.Keys, Clock: w.Now})
	w.check(err)
	ctx, cancel := context.WithCancel(context.Background())
	var group errgroup.Group
	group.Go(func() error { return w.Gateway.Run(ctx) })
	w.t.Cleanup(func() {
		cancel()
		if err := group.Wait(); err != nil {
			w.t.Errorf("run: %v", err)
		}
	})
}

// Now is the world's time; everything in it goes by it.
func (w *World) Now() time.Time { return time.Now().Add(time.Duration(w.ahead.Load())) }

// Advance moves the time on.
func (w *World) Advance(d time.Duration) { w.ahead.Add(int64(d)) }

// AddIssuer registers the issuer that a provider is.
func (w *World) AddIssuer(p *Provider, change ...func(*federation.Issuer)) {
	w.t.Helper()
	i := federation.Issuer{Name: p.name, URL: p.URL, Audience: p.Audience, Algorithms: []string{"EdDSA"}, UserScope: Everything()}
	for _, f := range change {
		f(&i)
	}
	w.write(func(ctx context.Context, tx pgx.Tx) error { return w.Registry.CreateIssuer(ctx, tx, i) })
}

// AddProvider starts one more identity provider, and registers it.
func (w *World) AddProvider(name string, change ...func(*federation.Issuer)) *Provider {
	w.t.Helper()
	p := newProvider(w.t, name, w.Now)
	w.AddIssuer(p, change...)
	return p
}

// UserToken is an ID token of one of Provider's users.
func (w *World) UserToken(name string, groups ...string) string {
	w.t.Helper()
	return w.Provider.Token(w.t, map[string]any{"sub": name, "groups": append([]string{}, groups...)})
}

// AddAgent registers an agent of the default tenant with a key of its own.
func (w *World) AddAgent(name string, change ...func(*registry.Agent)) {
	w.t.Helper()
	key := newKey(w.t)
	w.agents[name] = key
	a := registry.Agent{Tenant: authz.DefaultTenant, Name: name, JWKS: keySet(w.t, key)}
	for _, f := range change {
		f(&a)
	}
	w.write(func(ctx context.Context, tx pgx.Tx) error { return w.Registry.CreateAgent(ctx, tx, a) })
}

// AddGrant lets an agent act for a user, within everything unless change says less.
func (w *World) AddGrant(agent, user string, change ...func(*registry.Grant)) uuid.UUID {
	w.t.Helper()
	g := registry.Grant{ID: uuid.Must(uuid.NewV7()), Tenant: authz.DefaultTenant, Agent: agent, User: user, Scope: Everything(),
		Calls: registry.DefaultCalls, Lifetime: registry.DefaultLifetime, MaxDepth: registry.DefaultDepth, CreatedBy: "a test", Created: w.Now()}
	for _, f := range change {
		f(&g)
	}
	w.write(func(ctx context.Context, tx pgx.Tx) error { return w.Registry.CreateGrant(ctx, tx, g) })
	return g.ID
}

// Assertion is a fresh proof by an agent of who it is, for one use.
func (w *World) Assertion(agent string) string {
	w.t.Helper()
	return w.AssertionWith(agent, nil)
}

// AssertionWith is Assertion with claims changed; nil takes one away.
func (w *World) AssertionWith(agent string, change map[string]any) string {
	w.t.Helper()
	now := w.Now()
	return sign(w.t, w.agents[agent], "JWT", merge(map[string]any{"iss": agent, "sub": agent, "aud": Name,
		"jti": uuid.NewString(), "iat": now.Unix(), "exp": now.Add(time.Minute).Unix()}, change))
}

// Exchange exchanges tokens at the door; what a request from the network brings along
// beside them is filled in.
func (w *World) Exchange(x gateway.Exchange) (gateway.Exchanged, error) {
	x.Audiences, x.Method, x.URL = []string{Name}, http.MethodPost, Name+"/oauth/token"
	return w.Gateway.Exchange(w.t.Context(), x)
}

// Task starts a task of an agent for a user, within the grant that there is.
func (w *World) Task(agent, user string) gateway.Exchanged {
	w.t.Helper()
	out, err := w.Exchange(gateway.Exchange{Subject: w.UserToken(user), Assertion: w.Assertion(agent),
		Want: &authz.TaskRequest{Purpose: "a test", Scope: Everything()}})
	w.check(err)
	return out
}

// Operator signs a user in who has this role.
func (w *World) Operator(user string, role authz.Role) string {
	w.t.Helper()
	out, err := w.Exchange(gateway.Exchange{Subject: w.UserToken(user, string(role)+"s"), Role: authz.RoleViewer})
	w.check(err)
	return out.Token
}

// User signs a user in for their own use.
func (w *World) User(user string) string {
	w.t.Helper()
	out, err := w.Exchange(gateway.Exchange{Subject: w.UserToken(user), Role: authz.RoleUser})
	w.check(err)
	return out.Token
}

// Revoke has an admin press the stop button.
func (w *World) Revoke(kind authz.RevocationKind, tenant, target string) {
	w.t.Helper()
	call := gateway.Call{Name: "whence.v1.AdminService/Revoke", Role: authz.RoleAdmin, Presented: authz.Presented{Token: w.Operator("stopper", authz.RoleAdmin)}}
	w.check(w.Gateway.Do(w.t.Context(), call, func(ctx context.Context, s *gateway.Session) error {
		v := authz.Revocation{Kind: kind, Tenant: tenant, Target: target, Reason: "a test"}
		return w.Gateway.Revoke(ctx, s, v, func(gateway.Revoked) {})
	}))
}

func (w *World) write(f func(context.Context, pgx.Tx) error) {
	w.t.Helper()
	w.check(pg.InTx(w.t.Context(), w.Pool, func(tx pgx.Tx) error { return f(w.t.Context(), tx) }))
}

func (w *World) check(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}
