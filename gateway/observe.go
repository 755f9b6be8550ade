package gateway

import (
	"context"
	"maps"
)

// Observe lets an operator look at the process itself, not at what is stored. It
// differs from Do in that only refusals are recorded: who watches asks every few
// seconds for ever, and above all while the memory database does not answer.
func (g *Gateway) Observe(ctx context.Context, c Call) error {
	leave, err := g.enter()
	if err != nil {
		return err
	}
	defer leave()
	s := &Session{Started: g.now(), detail: maps.Clone(c.Detail)}
	if s.Principal, err = g.verifier.Authenticate(ctx, c.Presented); err == nil {
		err = c.allow(s.Principal)
	}
	if err == nil {
		return nil
	}
	return g.record(ctx, c, s, false, err)
}
