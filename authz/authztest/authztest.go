// Package authztest gives tests of other packages the credentials they need, the
// honest way: a throw-away issuer signs a real token and a verifier reads it. There
// is no other way to a scope in tests than there is in production.
package authztest

import (
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/whence-db/whence/authz"
)

// IssuerName is the issuer and the audience of every token made here.
const IssuerName = "https://whence.test"

// Pair returns an issuer and a verifier that share a fresh key. A nil clock is time.Now.
func Pair(t testing.TB, clock func() time.Time) (*authz.Issuer, *authz.Verifier) {
	t.Helper()
	keys := authz.NewEphemeralKeys()
	issuer, err := authz.NewIssuer(authz.IssuerConfig{Name: IssuerName, Keys: keys, Clock: clock})
	if err != nil {
		t.Fatal(err)
	}
	verifier, err := authz.NewVerifier(authz.VerifierConfig{Issuer: IssuerName, Keys: keys, Clock: clock})
	if err != nil {
		t.Fatal(err)
	}
	return issuer, verifier
}

// Principal verifies a real token of a root task with this scope: user "user-1",
// agent "agent-1".
func Principal(t testing.TB, spec authz.ScopeSpec) *authz.Principal {
	t.Helper()
	issuer, verifier := Pair(t, nil)
	task := uuid.New()
	token, _, err := issuer.IssueTask(authz.TaskClaims{User: "user-1", Agent: "agent-1",
		Task: task, Root: task, Scope: spec, Lifetime: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	p, err := verifier.Verify(t.Context(), token)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// Scope returns the scope that a token with this spec gives.
func Scope(t testing.TB, spec authz.ScopeSpec) authz.Scope {
	t.Helper()
	return Principal(t, spec).Scope
}

// Operator verifies a real token of an operator named "operator-1".
func Operator(t testing.TB, role authz.Role) *authz.Principal {
	t.Helper()
	issuer, verifier := Pair(t, nil)
	token, _, err := issuer.IssueOperator("operator-1", role, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	p, err := verifier.Verify(t.Context(), token)
	if err != nil {
		t.Fatal(err)
	}
	return p
}
