package authz

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/internal/pg"
)

// RevocationKind is what a revocation stops.
type RevocationKind string

const (
	// RevokedTask is one task with those below it; its row says so too.
	RevokedTask RevocationKind = "TASK"
	// RevokedAgent is an agent, wherever it stands in a chain of actors.
	RevokedAgent RevocationKind = "AGENT"
	// RevokedUser is whoever delegates, or operates.
	RevokedUser RevocationKind = "USER"
	// RevokedTenant is everyone of a tenant.
	RevokedTenant RevocationKind = "TENANT"
	// RevokedToken is one token, by its jti.
	RevokedToken RevocationKind = "TOKEN"
	// RevokedKey is a signing key with every token that it signed.
	RevokedKey RevocationKind = "KEY"
)

// stands tells whether such a revocation lasts until it is taken back.
func (k RevocationKind) stands() bool {
	return k == RevokedAgent || k == RevokedUser || k == RevokedTenant
}

// Revocation is one use of the stop button.
type Revocation struct {
	ID         int64
	Kind       RevocationKind
	Tenant     string // of an agent or a user
	Target     string
	Reason, By string
	At         time.Time
	Reinstated time.Time // zero while it stands
}

const (
	// revocationAge is the oldest that what is known of revocations may be when a call
	// is let in. With the time that reading takes, it is within a second.
	revocationAge = 500 * time.Millisecond
	// revocationPause is the least time between two tries while they fail.
	revocationPause   = 100 * time.Millisecond
	revocationTimeout = 5 * time.Second
	// keepRevoked is how long the tokens of before can live on.
	keepRevoked = MaxLifetime + time.Minute
)

// Revocations are what this process knows of who is stopped. Each call is judged by
// what was read less than revocationAge ago; when that cannot be had, it is refused.
// Nothing runs in the background: the call that finds the knowledge old renews it.
type Revocations struct {
	pool  *pgxpool.Pool
	clock func() time.Time

	mu      sync.RWMutex
	stopped map[stop]stopped // guarded by mu
	change  int64            // guarded by mu; the newest change that was read
	looked  time.Time        // guarded by mu; when the last reading that succeeded began
	tried   time.Time        // guarded by mu; when one was last tried
	failure error            // guarded by mu; how that failed

	reading chan struct{} // full while a caller reads
}

type stop struct {
	kind           RevocationKind
	tenant, target string
}

type stopped struct {
	reason     string
	reinstated time.Time // zero: not
	forget     time.Time // zero: never
}

// NewRevocations checks the configuration; a nil clock is time.Now.
func NewRevocations(pool *pgxpool.Pool, clock func() time.Time) (*Revocations, error) {
	if pool == nil {
		return nil, errors.New("revocations: a pool is needed")
	}
	if clock == nil {
		clock = time.Now
	}
	return &Revocations{pool: pool, clock: clock, stopped: map[stop]stopped{}, reading: make(chan struct{}, 1)}, nil
}

// Check refuses a caller who is stopped, or whose token or its key is. An
// ErrUnavailable means that it cannot be known.
func (r *Revocations) Check(ctx context.Context, p *Principal, kid string) error {
	err := r.refresh(ctx)
	switch {
	case err == nil:
	case ctx.Err() != nil: // the caller has gone, or gave it no longer
		return ctx.Err()
	default:
		return &whence.Error{Kind: whence.ErrUnavailable, Reason: "REVOCATIONS_UNKNOWN", RetryAfter: time.Second,
			Message: "it cannot be told whether the credential was revoked, so it is not let in; try again", Err: err}
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	if len(r.stopped) == 0 {
		return nil
	}
	for _, s := range [...]stop{{RevokedToken, "", p.TokenID}, {RevokedKey, "", kid},
		{RevokedTenant, "", p.Tenant}, {RevokedUser, p.Tenant, p.User}, {RevokedAgent, p.Tenant, p.Agent}} {
		if err := r.check(s, p.IssuedAt); err != nil {
			return err
		}
	}
	for _, a := range p.Actors {
		if err := r.check(stop{RevokedAgent, p.Tenant, a}, p.IssuedAt); err != nil {
			return err
		}
	}
	return nil
}

// check looks one thing up; r.mu is held.
func (r *Revocations) check(s stop, issued time.Time) error {
	found, ok := r.stopped[s]
	// Tokens carry whole seconds.
	if !ok || s.target == "" || !found.reinstated.IsZero() && !issued.Before(found.reinstated.Truncate(time.Second)) {
		return nil
	}
	return s.refusal(found.reason)
}

func (s stop) refusal(why string) error {
	if why != "" {
		why = " (" + why + ")"
	}
	what := map[RevocationKind]string{RevokedToken: "this token", RevokedKey: "the key that signed this token", RevokedTenant: "the tenant",
		RevokedUser: "the user", RevokedAgent: "the agent"}[s.kind]
	if s.kind.stands() {
		what += fmt.Sprintf(" %q", s.target)
	}
	return refuse(string(s.kind)+"_REVOKED", what+" was revoked"+why+"; ask an operator before going on", nil)
}

const readRevocationsSQL = `
select kind, tenant, target, reason, reinstated_at, expires_at, change from whence.revocations
where change > @change and kind <> 'TASK' and (expires_at is null or expires_at > @now)
  and (reinstated_at is null or reinstated_at > @now::timestamptz - @keep::interval)
order by change`

// refresh makes sure that what is known is no older than revocationAge.
func (r *Revocations) refresh(ctx context.Context) error {
	if done, err := r.recent(); done {
		return err
	}
	select {
	case r.reading <- struct{}{}:
		defer func() { <-r.reading }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if done, err := r.recent(); done {
		return err
	}
	return r.read(ctx)
}

// Refresh reads what has changed, however new what is known is: after a change by
// this process.
func (r *Revocations) Refresh(ctx context.Context) error {
	select {
	case r.reading <- struct{}{}:
		defer func() { <-r.reading }()
		return r.read(ctx)
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (r *Revocations) recent() (done bool, err error) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	now := r.clock()
	if now.Sub(r.looked) < revocationAge {
		return true, nil
	}
	return r.failure != nil && now.Sub(r.tried) < revocationPause, r.failure
}

// read brings what is known up to date; r.reading is held.
func (r *Revocations) read(ctx context.Context) error {
	caller := ctx
	ctx, cancel := context.WithTimeout(ctx, revocationTimeout)
	defer cancel()
	r.mu.RLock()
	change := r.change
	r.mu.RUnlock()
	began := r.clock()
	rows, err := r.pool.Query(ctx, readRevocationsSQL, pgx.NamedArgs{"change": change, "now": began, "keep": keepRevoked})
	found := map[stop]stopped{}
	if err == nil {
		var s stop
		var f stopped
		var reinstated, expires *time.Time
		_, err = pgx.ForEachRow(rows, []any{&s.kind, &s.tenant, &s.target, &f.reason, &reinstated, &expires, &change}, func() error {
			f.reinstated, f.forget = time.Time{}, time.Time{}
			if expires != nil {
				f.forget = *expires
			}
			if reinstated != nil {
				f.reinstated, f.forget = *reinstated, reinstated.Add(keepRevoked)
			}
			found[s] = f
			return nil
		})
	}
	if err != nil && caller.Err() != nil {
		return caller.Err() // says nothing of the database; whoever waits tries
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	// Those who waited get this failure too, and do not try in turn.
	r.tried, r.failure = r.clock(), pg.Translate(err)
	if err != nil {
		return r.failure
	}
	for s, f := range r.stopped {
		if !f.forget.IsZero() && began.After(f.forget) {
			delete(r.stopped, s)
		}
	}
	for s, f := range found {
		r.stopped[s] = f
	}
	r.change, r.looked = change, began
	return nil
}
