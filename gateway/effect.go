package gateway

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/index"
	"github.com/whence-db/whence/internal/pg"
)

// effect runs what a call writes and records the call, in one transaction that no
// other call shares: one that fails takes nobody with it. What the effect refuses
// is recorded as any refusal is.
func (g *Gateway) effect(ctx context.Context, c Call, s *Session) error {
	var refused error
	var void *whence.Error
	var settled func()
	used := s.used
	// The caller may go, the transaction goes on: only its end says what happened.
	bound, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushTimeout)
	defer cancel()
	err := pg.InTxWith(bound, g.pool, index.Writing, func(tx pgx.Tx) error {
		void, s.used = nil, used
		if s.replayed, refused = g.once(bound, tx, c, s); refused != nil {
			return refused
		}
		r, refusal := g.outcome(c, s, true, nil)
		if refused = refusal; refused != nil {
			return refused
		}
		var err error
		if settled, err = g.put(bound, tx, []*record{r}); err == nil && r.void != nil {
			void = r.void
			return void
		}
		return err
	})
	switch {
	case err == nil:
		settled()
		if s.charged != nil {
			g.blocks.returned(s.Principal.Task, s.charged.held, true)
		}
		if s.write.After != nil {
			s.write.After(context.WithoutCancel(ctx))
		}
		return nil
	case refused == nil && void == nil:
		// Whether the commit came about may not be known, so no second entry says
		// otherwise.
		if s.charged != nil {
			g.blocks.returned(s.Principal.Task, s.charged.held, false)
		}
		return withheld(err)
	}
	if s.write.Refused != nil {
		s.write.Refused(context.WithoutCancel(ctx), err)
	}
	s.write = nil
	return g.record(ctx, c, s, true, err)
}

const (
	tryKey = `select pg_try_advisory_xact_lock(hashtextextended(@key, 1))`

	selectKey = `
select fingerprint, reply, task from whence.idempotency
where tenant = @tenant and user_id = @user and root_id = @root and call = @call and key = @key`

	insertKey = `
insert into whence.idempotency (tenant, user_id, root_id, task, call, key, fingerprint, reply, expires_at)
values (@tenant, @user, @root, @task, @call, @key, @fingerprint, @reply,
    greatest(now() + interval '24 hours', (select deadline from whence.tasks where id = @root)))`

	keyKnownSQL = `
select exists (select from whence.idempotency where tenant = @tenant and user_id = @user and root_id = @root and call = @call and key = @key)
    or exists (select from whence.executions where tenant = @tenant and user_id = @user and root_id = @root and call = @call and key = @key)`

	// Whole rows are kept for as long as undoing may need them, and a day.
	dropImages = `
update whence.executions set effects = null
where effects is not null and state in ('SUCCEEDED', 'FAILED', 'UNCERTAIN', 'DENIED', 'UNDONE')
    and coalesce(undo_until, ended_at) < now() - interval '1 day'`

	dropKeys = `delete from whence.idempotency where expires_at < now()`
)

// keyKnown tells whether a call with the key has done something before.
func (g *Gateway) keyKnown(ctx context.Context, s *Session) (known bool, err error) {
	err = g.pool.QueryRow(ctx, keyKnownSQL, keyArgs(s)).Scan(&known)
	return known, err
}

// once runs the effect, or replays it when a call with its key has written before.
// A key is of the whole task tree; another task of it, whose scope may be narrower,
// learns nothing by it.
func (g *Gateway) once(ctx context.Context, tx pgx.Tx, c Call, s *Session) (replayed bool, err error) {
	p := s.Principal
	if c.IdempotencyKey == "" || p.IsOperator() || s.write.Keyed {
		_, err := s.write.Effect(ctx, tx)
		return false, err
	}
	args := pgx.NamedArgs{"tenant": p.Tenant, "user": p.User, "root": p.Root, "task": p.Task, "call": c.Name, "key": c.IdempotencyKey}
	var mine bool
	lock := strings.Join([]string{p.Tenant, p.User, p.Root.String(), c.Name, c.IdempotencyKey}, "\x1f")
	if err := tx.QueryRow(ctx, tryKey, pgx.NamedArgs{"key": lock}).Scan(&mine); err != nil {
		return false, err
	}
	if !mine {
		return false, &whence.Error{Kind: whence.ErrAborted, Reason: "IN_FLIGHT", RetryAfter: 100 * time.Millisecond,
			Message: "a call with this idempotency key is under way; try again with the same key"}
	}
	rows, err := tx.Query(ctx, selectKey, args)
	if err != nil {
		return false, err
	}
	var fingerprint, reply []byte
	var by uuid.UUID
	if _, err := pgx.ForEachRow(rows, []any{&fingerprint, &reply, &by}, func() error { replayed = true; return nil }); err != nil {
		return false, err
	}
	if replayed {
		if !bytes.Equal(fingerprint, s.digest[:]) {
			return false, whence.Invalid("", "IDEMPOTENCY_KEY_REUSED",
				"this idempotency key was used for another request; use a new key for a new request")
		}
		if err := g.mayLearn(ctx, tx, p, by); err != nil {
			return false, err
		}
		return true, s.write.Replay(ctx, tx, reply)
	}
	if s.unpaid != nil {
		return false, s.unpaid
	}
	if reply, err = s.write.Effect(ctx, tx); err != nil {
		return false, err
	}
	args["fingerprint"], args["reply"] = s.digest[:], append([]byte{}, reply...)
	_, err = tx.Exec(ctx, insertKey, args)
	return false, err
}

const maxIdempotencyKey = 255

func (c Call) checkKey() error {
	if len(c.IdempotencyKey) > maxIdempotencyKey || strings.ContainsFunc(c.IdempotencyKey, func(r rune) bool { return r < ' ' || r > '~' }) {
		return whence.Invalid("", "IDEMPOTENCY_KEY_INVALID", fmt.Sprintf(
			"Idempotency-Key: 1 to %d printable ASCII characters", maxIdempotencyKey))
	}
	return nil
}

// dropping removes idempotency keys, assertions and revocations whose time is over, until ctx ends.
func (g *Gateway) dropping(ctx context.Context) {
	t := time.NewTicker(10 * time.Minute)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			if _, err := g.pool.Exec(ctx, dropKeys); err != nil && ctx.Err() == nil {
				g.log.WarnContext(ctx, "cannot remove old idempotency keys; trying again", "error", err)
			}
			if _, err := g.pool.Exec(ctx, dropImages); err != nil && ctx.Err() == nil {
				g.log.WarnContext(ctx, "cannot remove what old executions changed; trying again", "error", err)
			}
			if err := g.stops.Drop(ctx); err != nil && ctx.Err() == nil {
				g.log.WarnContext(ctx, "cannot remove old revocations; trying again", "error", err)
			}
			if err := g.known.DropAssertions(ctx); err != nil && ctx.Err() == nil {
				g.log.WarnContext(ctx, "cannot remove old assertions; trying again", "error", err)
			}
		}
	}
}
