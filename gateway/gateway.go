// Package gateway is the single door. Every call of an agent or an operator
// passes [Gateway.Do], which settles who is calling, whether they may, whether
// their task is alive and can pay, runs the call, and lets nothing out before the
// call is on record.
//
// The governing idea: what a call may cost at the worst is held before it runs, on
// its task and on every task above, out of a block that this process has leased from
// the database; and one shared transaction makes the answer and the audit entry
// durable and settles what the call did cost, before it returns. So a call costs its
// share of one durable commit.
package gateway

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/audit"
	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/authz/federation"
	"github.com/whence-db/whence/authz/registry"
	"github.com/whence-db/whence/gateway/action"
	"github.com/whence-db/whence/gateway/upstream"
	"github.com/whence-db/whence/lineage"
	"github.com/whence-db/whence/notes"
)

// Config is what a Gateway works with; all but Clock and Log are required.
type Config struct {
	Pool     *pgxpool.Pool // of the memory database
	Audit    *audit.Log
	Lineage  *lineage.Store
	Verifier *authz.Verifier
	Issuer   *authz.Issuer
	// Identities, Registry and Revocations are for those who come for a credential,
	// and for those who stop them.
	Identities  *federation.Verifier
	Registry    *registry.Registry
	Revocations *authz.Revocations
	Keys        *authz.Keys
	// Rows runs actions on rows of sources, Notes those on notes; Wrote is told when a
	// note was written. Who executes nothing needs none of them, nor of those below.
	Rows  *action.Runner
	Notes *notes.Store
	Wrote func()
	// Upstreams are the services that agents reach through Forwarder.
	Upstreams *upstream.Store
	Forwarder *upstream.Forwarder
	Clock     func() time.Time // default: time.Now; deadlines of tasks are judged by it
	// Lease is how long this process's hold on budgets outlives it; default: 30 s.
	Lease time.Duration
	// Inside is how many agents' calls run at once; default: 256. More wait, in turn.
	Inside int
	Log    *slog.Logger // default: discards
}

// Gateway is the door. Its methods may be called concurrently. Do, Refuse and
// StartTask need Run: before it they wait, after it they are refused.
type Gateway struct {
	pool     *pgxpool.Pool
	audit    *audit.Log
	lineage  *lineage.Store
	verifier *authz.Verifier
	issuer   *authz.Issuer
	known    *registry.Registry
	foreign  *federation.Verifier
	stops    *authz.Revocations
	keys     *authz.Keys
	now      func() time.Time
	log      *slog.Logger

	actions action.Store
	rows    *action.Runner
	notes   *notes.Store
	wrote   func()

	upstreams *upstream.Store
	forwarder *upstream.Forwarder

	running running      // executions
	step    func(string) // told of each step of an execution, for tests

	holder uuid.UUID // whose leases this process's are
	lease  time.Duration
	blocks *blocks
	turns  *turns

	reservations *batcher[reservation]
	records      *batcher[record]

	mu      sync.RWMutex // guards closing, so that no call enters once Run waits for the last
	closing bool
	inside  sync.WaitGroup // the calls between entering and being recorded
}

// New checks the configuration.
func New(c Config) (*Gateway, error) {
	switch {
	case c.Pool == nil:
		return nil, errors.New("gateway: a pool is needed")
	case c.Audit == nil || c.Lineage == nil:
		return nil, errors.New("gateway: an audit log and a lineage store are needed")
	case c.Verifier == nil || c.Issuer == nil || c.Identities == nil:
		return nil, errors.New("gateway: verifiers and an issuer of tokens are needed")
	case c.Registry == nil || c.Revocations == nil || c.Keys == nil:
		return nil, errors.New("gateway: a registry, revocations and keys are needed")
	}
	if c.Clock == nil {
		c.Clock = time.Now
	}
	if c.Lease == 0 {
		c.Lease = 30 * time.Second
	}
	if c.Inside == 0 {
		c.Inside = 256
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	g := &Gateway{pool: c.Pool, audit: c.Audit, lineage: c.Lineage, verifier: c.Verifier, issuer: c.Issuer,
		known: c.Registry, foreign: c.Identities, stops: c.Revocations, keys: c.Keys, now: c.Clock, log: c.Log,
		holder: uuid.New(), lease: c.Lease, blocks: newBlocks(), turns: newTurns(c.Inside),
		rows: c.Rows, notes: c.Notes, wrote: c.Wrote, upstreams: c.Upstreams, forwarder: c.Forwarder, running: running{of: map[uuid.UUID]bool{}}, step: func(string) {}}
	g.reservations = newBatcher(g.reserve)
	g.records = newBatcher(g.write)
	return g, nil
}

// Run serves calls until ctx ends. Then it lets no more in, waits until those
// inside are recorded, and returns; whoever owns the calls' contexts ends them.
func (g *Gateway) Run(ctx context.Context) error {
	if err := g.breathe(ctx); err != nil {
		g.log.WarnContext(ctx, "cannot say that budgets are charged here; trying again", "error", err)
	}
	var group errgroup.Group
	detached := context.WithoutCancel(ctx)
	group.Go(func() error { g.reservations.run(detached); return nil })
	group.Go(func() error { g.records.run(detached); return nil })
	group.Go(func() error { g.dropping(ctx); return nil })
	held := make(chan struct{})
	group.Go(func() error { defer close(held); g.holding(ctx); return nil })
	<-ctx.Done()
	g.mu.Lock()
	g.closing = true
	g.mu.Unlock()
	g.inside.Wait()
	<-held
	g.retire(detached)
	g.reservations.close()
	g.records.close()
	return group.Wait()
}

// enter admits a call while the gateway is open; leave must follow.
func (g *Gateway) enter() (leave func(), err error) {
	g.mu.RLock()
	defer g.mu.RUnlock()
	if g.closing {
		return nil, &whence.Error{Kind: whence.ErrUnavailable, Reason: "SHUTTING_DOWN",
			Message: "this server is shutting down; try again", RetryAfter: time.Second}
	}
	g.inside.Add(1)
	return g.inside.Done, nil
}
