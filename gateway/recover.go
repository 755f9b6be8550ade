package gateway

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/gateway/action"
	"github.com/whence-db/whence/internal/pg"
)

const (
	// Those that a process died at, or could not record. A saga goes on only with its
	// caller's scope, by its key or by undo, and takes its parts along.
	orphansSQL = `
select id from whence.executions
where state in ('RUNNING', 'UNDOING') and call not like 'part-of/%' and created_at < @before
    and (holder_id = @holder or not exists (select from whence.holders h where h.id = holder_id and h.expires_at > now()))
order by id limit 100`
)

// recoverAll brings executions to their end that nobody is at any more.
func (g *Gateway) recoverAll(ctx context.Context) error {
	rows, err := g.pool.Query(ctx, orphansSQL, pgx.NamedArgs{"holder": g.holder, "before": g.now().Add(-g.lease / 6)})
	if err != nil {
		return fmt.Errorf("look for executions that nobody is at: %w", pg.Translate(err))
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
	if err != nil {
		return fmt.Errorf("look for executions that nobody is at: %w", pg.Translate(err))
	}
	for _, id := range ids {
		if g.running.has(id) {
			continue
		}
		x, found, err := findExecution(ctx, g.pool, executionByIDSQL, pgx.NamedArgs{"id": id})
		if err != nil {
			return err
		}
		if !found {
			continue
		}
		if _, err := g.recover(ctx, x); err != nil && ctx.Err() == nil {
			g.log.WarnContext(ctx, "cannot tell yet what became of an execution; trying again", "execution", id, "error", err)
		}
	}
	return nil
}

// recover finds out what became of an execution whose process died, and records it
// with an entry of its own: it is paid by its task as far as that can pay. One that
// somebody is at is IN_FLIGHT; one that only its caller can go on with stays.
func (g *Gateway) recover(ctx context.Context, x Execution) (Execution, error) {
	if x.State != Running && x.State != Undoing {
		return x, nil
	}
	if err := g.orphaned(ctx, x); err != nil {
		return x, err
	}
	r, mine, err := g.recoverable(ctx, x)
	if err != nil || !mine {
		return x, err
	}
	if !g.running.start(x.ID) {
		return x, inFlight("this execution")
	}
	defer g.running.end(x.ID)
	was := x.State
	tag, err := g.pool.Exec(ctx, takeUpSQL, pgx.NamedArgs{"id": x.ID, "attempt": x.attempt, "was": was, "state": was, "holder": g.holder})
	if err != nil {
		return x, fmt.Errorf("take an execution up: %w", pg.Translate(err))
	}
	if tag.RowsAffected() == 0 {
		return x, inFlight("this execution")
	}
	x.attempt, x.holder = x.attempt+1, g.holder
	fate, err := g.fate(ctx, r, x)
	if err != nil {
		return x, err
	}
	ends := map[ExecutionState]map[action.Fate]ExecutionState{
		Running: {action.Committed: Succeeded, action.Aborted: Failed, action.Unknown: Uncertain},
		Undoing: {action.Committed: Undone, action.Aborted: Succeeded, action.Unknown: Uncertain},
	}
	end, ended := ends[was][fate]
	if !ended {
		return x, inFlight("this execution")
	}
	return x, g.recovered(ctx, r, &x, was, end)
}

// recoverable finds what ran; mine is false where only its caller can go on with it.
func (g *Gateway) recoverable(ctx context.Context, x Execution) (r run, mine bool, err error) {
	if strings.HasPrefix(x.Action, rawPrefix) {
		return run{raw: &outbound{}, def: action.Definition{Tier: x.Tier}}, true, nil
	}
	reg, err := g.actions.Version(ctx, g.pool, x.Tenant, x.Action, x.Version)
	if err != nil {
		return r, false, err
	}
	r = run{Registered: reg, def: reg.Definition}
	again := r.def.HTTP != nil && r.def.HTTP.IdempotencyHeader != "" && x.sent // it is sent again, by its key
	return r, r.def.Saga == nil && (x.State == Running || r.def.Compensation == nil) && !again, nil
}

// recovered records how an execution has ended.
func (g *Gateway) recovered(ctx context.Context, r run, x *Execution, was, end ExecutionState) error {
	x.State = end
	if x.Ended.IsZero() || end == Undone {
		x.Ended = g.now().UTC()
	}
	call, used := x.Call, authz.Amounts{}
	switch end {
	case Succeeded:
		if was == Undoing { // and is not undone
			break
		}
		used = r.paid(int64(len(x.effects)))
		if d := r.def.UndoTime(); d > 0 {
			x.UndoUntil = x.Ended.Add(d)
		}
	case Undone:
		call, used = "whence.v1.ActionService/Undo", authz.Amounts{authz.Writes: 1, authz.Rows: int64(len(x.effects))}
	case Failed:
		x.Failure = failure(&whence.Error{Kind: whence.ErrAborted, Reason: "INTERRUPTED", RetryAfter: time.Second,
			Message: "the server stopped before this had done anything; try again with the same key"})
		x.tx, x.effects, x.Shown, x.Result = nil, nil, nil, nil
	case Uncertain:
		x.Failure = failure(uncertain(*x))
		used = r.paid(0)
	case Awaiting, Running, Denied, Undoing: // no ends
	}
	s := &Session{Principal: &authz.Principal{Tenant: x.Tenant, User: x.User, Agent: x.Agent, Actors: x.Actors, Task: x.Task, Root: x.Root},
		Started: g.now(), digest: x.fingerprint,
		detail: map[string]any{"execution": x.ID, "action": x.Action, "actionVersion": x.Version, "tier": string(x.Tier), "recovered": true, "state": string(end)}}
	var why error
	if end == Uncertain {
		why = uncertain(*x)
	}
	rec := &record{entry: entry(Call{Name: call}, s, why), task: x.Task, used: used, charge: &charge{}, started: s.Started, effect: true}
	var settled func()
	err := pg.InTx(ctx, g.pool, func(tx pgx.Tx) (err error) {
		if err := g.store(ctx, tx, *x, was); err != nil {
			return err
		}
		if end == Failed || end == Succeeded && was == Undoing { // nothing has happened
			settled = func() {}
			return nil
		}
		settled, err = g.put(ctx, tx, []*record{rec})
		return err
	})
	if err == nil {
		settled()
	}
	return err
}
