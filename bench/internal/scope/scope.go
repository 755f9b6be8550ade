// Package scope gives measurements the credentials they need, the honest way.
package scope

import (
	"context"
	"time"

	"github.com/google/uuid"

	"github.com/whence-db/whence/authz"
)

// Everything is the scope that the development task has, from a token of an
// issuer that exists only here.
func Everything(ctx context.Context) (authz.Scope, error) {
	const name = "http://bench.invalid"
	keys := authz.NewEphemeralKeys()
	issuer, err := authz.NewIssuer(authz.IssuerConfig{Name: name, Keys: keys})
	if err != nil {
		return authz.Scope{}, err
	}
	verifier, err := authz.NewVerifier(authz.VerifierConfig{Issuer: name, Keys: keys})
	if err != nil {
		return authz.Scope{}, err
	}
	task := uuid.New()
	token, _, err := issuer.IssueTask(authz.TaskClaims{User: "bench", Agent: "bench", Task: task, Root: task, Lifetime: time.Minute,
		Scope: authz.ScopeSpec{AllTables: true, AllSubjects: true, Actions: []authz.Action{authz.MemoryRead}}})
	if err != nil {
		return authz.Scope{}, err
	}
	p, err := verifier.Verify(ctx, token)
	if err != nil {
		return authz.Scope{}, err
	}
	return p.Scope, nil
}
