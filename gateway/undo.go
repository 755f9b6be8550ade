package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/gateway/action"
	"github.com/whence-db/whence/internal/pg"
)

// Undo takes an execution of the caller's task, or of one below it, back: rows are
// then exactly what they were, or it is refused with what stands against that.
// Undoing what is undone changes nothing.
func (g *Gateway) Undo(ctx context.Context, s *Session, id string, done func(Execution) error) error {
	x, err := g.getExecution(ctx, g.pool, s.Principal, id, "")
	if err != nil {
		return err
	}
	s.Note("execution", x.ID)
	s.Note("action", x.Action)
	if x, err = g.recover(ctx, x); err != nil {
		return err
	}
	if x.State == Undone {
		s.replayed, x.Replayed = true, true
		return done(x)
	}
	if of, part := strings.CutPrefix(x.Call, partPrefix); part {
		return &whence.Error{Kind: whence.ErrPrecondition, Reason: "PART_OF_EXECUTION", Metadata: map[string]string{"execution": of, "part": x.ID.String()},
			Message: "this is a part of another execution; undo that one whole"}
	}
	r, err := g.undoable(ctx, s.Principal, x)
	if err != nil {
		return err
	}
	if err := g.holdMore(ctx, s, r.worst.Plus(authz.Amounts{authz.Writes: 1, authz.Rows: max(1, int64(len(x.effects)))})); err != nil {
		return err
	}
	if !g.running.start(x.ID) {
		return inFlight("this execution")
	}
	s.after = append(s.after, func() { g.running.end(x.ID) })
	x, gone, err := g.takeBack(ctx, s, r, x)
	if err != nil {
		return err
	}
	used := authz.Amounts{authz.Writes: 1, authz.Rows: int64(len(x.effects))}
	if r.def.Memory == nil { // which is undone as it is recorded
		s.did(used)
	} else {
		s.used = s.used.Plus(used)
	}
	s.Write(Write{Keyed: true, Effect: func(ctx context.Context, tx pgx.Tx) ([]byte, error) {
		x := x
		if !gone && r.def.Memory != nil {
			if err := g.forgetAgain(ctx, tx, s.Principal, x); err != nil {
				return nil, err
			}
		}
		x.State, x.Ended = Undone, g.now().UTC()
		if err := g.store(ctx, tx, x, Undoing); err != nil {
			return nil, err
		}
		g.step("being recorded")
		return nil, done(x)
	}})
	return nil
}

// undoAll undoes all that is in effect of the caller's task and of those below it, the
// last first, each recorded by itself. It stops at the first that cannot be undone.
func (g *Gateway) undoAll(ctx context.Context, s *Session) (undone []uuid.UUID, err error) {
	ids, err := g.standing(ctx, g.pool, s.Principal)
	if err != nil {
		return nil, err
	}
	for _, id := range ids {
		x, _, err := findExecution(ctx, g.pool, executionByIDSQL, pgx.NamedArgs{"id": id})
		if err == nil {
			x, err = g.recover(ctx, x)
		}
		if err != nil {
			return undone, err
		}
		if x.State == Failed || x.State == Undone {
			continue
		}
		// As a call of its own, so that each is recorded with its entry, and whatever
		// stops the rest does not hide what was done.
		part := Call{Name: "whence.v1.ActionService/Undo", Presented: authz.Presented{Token: s.token}, as: s.Principal, Action: authz.ActionExecute, Charge: 1,
			Detail: map[string]any{"by": s.call}}
		err = g.do(ctx, part, func(ctx context.Context, own *Session) error {
			return g.Undo(ctx, own, id.String(), func(Execution) error { return nil })
		})
		var e *whence.Error
		switch {
		case errors.As(err, &e) && len(undone) > 0:
			stopped := *e
			stopped.Metadata = maps.Clone(e.Metadata)
			if stopped.Metadata == nil {
				stopped.Metadata = map[string]string{}
			}
			stopped.Metadata["undone"] = fmt.Sprint(len(undone))
			return undone, &stopped
		case err != nil:
			return undone, err
		}
		undone = append(undone, id)
	}
	return undone, nil
}

func moreStands(left []uuid.UUID) error {
	if len(left) == 0 {
		return nil
	}
	return &whence.Error{Kind: whence.ErrAborted, Reason: "MORE_TO_UNDO", RetryAfter: 100 * time.Millisecond,
		Message: "something was executed while the rest was undone; end the task again", Metadata: map[string]string{"execution": left[0].String()}}
}

// undoable finds the version that ran, and refuses what cannot be undone by its kind,
// its state, its age or the caller's scope.
func (g *Gateway) undoable(ctx context.Context, p *authz.Principal, x Execution) (r run, err error) {
	refuse := func(reason, message string) error {
		return &whence.Error{Kind: whence.ErrPrecondition, Reason: reason, Message: message,
			Metadata: map[string]string{"execution": x.ID.String(), "state": string(x.State), "action": x.Action}}
	}
	switch {
	case x.State == Uncertain:
		return r, uncertain(x)
	case x.State == Running && x.Tier != authz.TierRead: // a saga that stopped on its way
	case x.State != Succeeded && x.State != Undoing:
		return r, refuse("NOTHING_TO_UNDO", "this execution has not taken effect, so there is nothing to undo: it is "+string(x.State))
	case x.erased:
		return r, refuse("UNDO_CONFLICT", "it cannot be undone, and nothing was: what it changed was erased")
	case x.UndoUntil.IsZero():
		return r, refuse("NOT_REVERSIBLE", "what this action does cannot be undone; preview says so of an action before it runs")
	case !g.now().Before(x.UndoUntil):
		return r, refuse("UNDO_WINDOW_OVER", "this could be undone until "+x.UndoUntil.Format(time.RFC3339)+"; do the opposite by an action of its own")
	}
	reg, err := g.actions.Version(ctx, g.pool, x.Tenant, x.Action, x.Version)
	if err != nil {
		return r, err
	}
	if x.State == Running && reg.Saga == nil {
		return r, refuse("NOTHING_TO_UNDO", "whether this has taken effect is not known yet, so there is nothing to undo: call it again with its key first")
	}
	if !reg.Tier.Within(p.Scope.Tier()) {
		return r, &whence.Error{Kind: whence.ErrDenied, Reason: "TIER_OUT_OF_SCOPE", Metadata: map[string]string{"action": reg.Name, "tier": string(reg.Tier)},
			Message: "the action is of a higher tier than the task's scope holds"}
	}
	r = run{Registered: reg, def: reg.Definition, worst: worstOf(reg.Definition)}
	return g.withParts(ctx, p, r)
}

// takeBack makes an execution this call's to undo, and undoes what it did to rows.
// gone tells that a call before had done it already.
func (g *Gateway) takeBack(ctx context.Context, s *Session, r run, x Execution) (_ Execution, gone bool, err error) {
	if x.State == Undoing {
		if err := g.orphaned(ctx, x); err != nil {
			return x, false, err
		}
	}
	// The transaction that ran it is not the one that undoes it.
	tag, err := g.pool.Exec(ctx, undoingSQL, pgx.NamedArgs{"id": x.ID, "attempt": x.attempt, "was": x.State, "holder": g.holder})
	if err != nil {
		return x, false, fmt.Errorf("take an execution back: %w", pg.Translate(err))
	}
	if tag.RowsAffected() == 0 {
		return x, false, inFlight("this execution")
	}
	was := x.State
	x.State, x.attempt, x.holder = Undoing, x.attempt+1, g.holder
	if was == Undoing && x.tx != nil {
		switch fate, err := g.rows.Fate(ctx, x.tx.source, x.tx.xid, x.tx.system, x.tx.timeline); {
		case err != nil:
			return x, false, err
		case fate == action.Committed:
			return x, true, nil
		case fate == action.InProgress:
			return x, false, inFlight("undoing this")
		case fate == action.Unknown:
			return x, false, g.lost(ctx, x)
		}
	}
	if was == Undoing && x.sent && r.def.HTTP != nil && r.def.HTTP.IdempotencyHeader == "" {
		return x, false, g.lost(ctx, x)
	}
	x.tx, x.sent = nil, false
	if r.def.Compensation != nil || r.def.Saga != nil {
		err := g.takeBackParts(ctx, s, r, &x)
		return x, false, g.stay(ctx, x, err)
	}
	bound, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.def.RunTime())
	defer cancel()
	if r.def.HTTP != nil {
		err := g.takeBackHTTP(bound, s, r, &x)
		return x, false, g.stay(ctx, x, err)
	}
	if r.def.Row == nil {
		return x, false, nil
	}
	res, err := g.rows.Undo(bound, r.def, x.effects, s.Principal.Scope, func(ctx context.Context, out action.Outcome) error {
		x.tx = &sourceTx{source: r.source(), xid: out.XID, system: out.SystemID, timeline: out.Timeline}
		g.step("done on the source")
		defer g.step("written down")
		return pg.InTx(ctx, g.pool, func(tx pgx.Tx) error {
			if err := g.still(ctx, tx, s.Principal); err != nil {
				return err
			}
			return g.store(ctx, tx, x, Undoing)
		})
	})
	if err == nil {
		x.Token = res.Token
		g.step("committed")
		return x, false, nil
	}
	if errors.Is(err, action.ErrUncertain) {
		return x, false, &whence.Error{Kind: whence.ErrUnavailable, Reason: "OUTCOME_PENDING", RetryAfter: time.Second,
			Message:  "the source was lost while it committed, and whether this is undone is not known yet; undo it again to find out",
			Metadata: map[string]string{"execution": x.ID.String()}, Err: err}
	}
	return x, false, g.stay(ctx, x, err)
}

// takeBackParts makes up for an execution by others.
func (g *Gateway) takeBackParts(ctx context.Context, s *Session, r run, x *Execution) error {
	bound, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.def.RunTime())
	defer cancel()
	if r.def.Compensation != nil {
		return g.compensate(bound, s, r, *x)
	}
	raw := map[string]any{}
	if err := json.Unmarshal(x.Arguments, &raw); err != nil {
		return fmt.Errorf("undo: %w", err)
	}
	var err error
	if r.args, err = action.Arguments(r.def, raw); err != nil {
		return err
	}
	err = g.takeBackSaga(bound, s, r, x, nil, nil)
	var stuck *stuckError
	if errors.As(err, &stuck) {
		return stuck.why
	}
	return err
}

// stay writes down that an execution was not undone, and returns why.
func (g *Gateway) stay(ctx context.Context, x Execution, why error) error {
	var e *whence.Error
	if why == nil || errors.As(why, &e) && e.Reason == "OUTCOME_UNKNOWN" { // which is written down already
		return why
	}
	x.State, x.tx, x.sent = Succeeded, nil, true
	after, cancelAfter := context.WithTimeout(context.WithoutCancel(ctx), flushTimeout)
	defer cancelAfter()
	if stored := pg.InTx(after, g.pool, func(tx pgx.Tx) error { return g.store(after, tx, x, Undoing) }); stored != nil {
		g.log.WarnContext(ctx, "cannot write down that an execution was not undone", "execution", x.ID, "error", stored)
	}
	return why
}

// lost writes down that nobody can tell whether an execution was undone.
func (g *Gateway) lost(ctx context.Context, x Execution) error {
	x.State = Uncertain
	x.Failure = failure(uncertain(x))
	if err := pg.InTx(ctx, g.pool, func(tx pgx.Tx) error { return g.store(ctx, tx, x, Undoing) }); err != nil {
		return err
	}
	return uncertain(x)
}

const (
	undoingSQL = `
update whence.executions set state = 'UNDOING', holder_id = @holder, attempt = attempt + 1,
    xid = case when state = 'UNDOING' then xid end, sent_at = case when state = 'UNDOING' then sent_at end
where id = @id and attempt = @attempt and state = @was`

	standingSQL = `
select x.id from whence.executions x join whence.tasks t on t.id = x.task_id
where t.root_id = @root and @task = any(t.path) and x.state in ('SUCCEEDED', 'UNDOING', 'RUNNING') and x.call not like 'part-of/%' and x.tier <> 'READ'
order by x.id desc`
)

// standing lists the executions of a task, and of those below it, that are in
// effect, newest first.
func (g *Gateway) standing(ctx context.Context, db querier, p *authz.Principal) ([]uuid.UUID, error) {
	rows, err := db.Query(ctx, standingSQL, pgx.NamedArgs{"root": p.Root, "task": p.Task})
	if err != nil {
		return nil, pg.Translate(err)
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
	return ids, pg.Translate(err)
}
