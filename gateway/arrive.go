package gateway

import (
	"context"
	"maps"

	"github.com/whence-db/whence/authz"
)

// Arrive lets in a request that calls come in, each of which then goes through Do with
// what Arrive returns as its credential: the request's own, with its proof taken. Only
// refusals are recorded here, for every call in it is recorded by itself.
func (g *Gateway) Arrive(ctx context.Context, c Call) (authz.Presented, error) {
	leave, err := g.enter()
	if err != nil {
		return authz.Presented{}, err
	}
	defer leave()
	s := &Session{Started: g.now(), detail: maps.Clone(c.Detail)}
	var taken authz.Presented
	if taken, s.Principal, err = g.verifier.Take(ctx, c.Presented); err != nil {
		return authz.Presented{}, g.record(ctx, c, s, false, err)
	}
	return taken, nil
}
