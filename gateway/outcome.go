package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/gateway/action"
	"github.com/whence-db/whence/internal/pg"
)

// settleFate finds out what became of a commit that was not answered.
func (g *Gateway) settleFate(ctx context.Context, s *Session, r run, x Execution, done func(Execution) error, lost error) error {
	ctx, cancel := context.WithTimeout(ctx, flushTimeout)
	defer cancel()
	switch fate, err := g.fate(ctx, r, x); {
	case err == nil && fate == action.Committed:
		s.did(r.paid(int64(len(x.effects))))
		return g.succeed(s, r, x, done)
	case err == nil && fate == action.Aborted:
		return g.fail(ctx, x, &whence.Error{Kind: whence.ErrUnavailable, Reason: "SOURCE_UNREACHABLE", RetryAfter: time.Second,
			Message: "the source was lost before it had done anything; try again with the same key", Err: lost})
	}
	return &whence.Error{Kind: whence.ErrUnavailable, Reason: "OUTCOME_PENDING", RetryAfter: time.Second,
		Message:  "the source was lost while it committed, and whether it did is not known yet; try again with the same key to find out",
		Metadata: map[string]string{"execution": x.ID.String()}, Err: lost}
}

// succeed records an execution that took effect, with the call's entry.
func (g *Gateway) succeed(s *Session, r run, x Execution, done func(Execution) error) error {
	s.effect = s.effect || r.def.Memory == nil
	s.Write(Write{Keyed: true, Effect: func(ctx context.Context, tx pgx.Tx) ([]byte, error) {
		x := x
		if r.def.Memory != nil {
			if err := g.dispatchMemory(ctx, tx, s, r, &x); err != nil {
				return nil, err
			}
		}
		x.State, x.Ended = Succeeded, g.now().UTC()
		if d := r.def.UndoTime(); d > 0 {
			x.UndoUntil = x.Ended.Add(d)
		}
		if err := g.store(ctx, tx, x, Running); err != nil {
			return nil, err
		}
		g.step("being recorded")
		return nil, done(x)
	}})
	if r.def.Memory != nil {
		s.write.Refused = func(ctx context.Context, why error) { _ = g.fail(ctx, x, why) }
	}
	return nil
}

const storeExecutionSQL = `
update whence.executions set state = @state, source = @source, xid = @xid, system_id = @system, timeline = @timeline,
    sent_at = case when @sent then coalesce(sent_at, now()) end, token = @token,
    effects = case when erased then null else @effects::jsonb end, shown = case when erased then '[]' else @shown::jsonb end,
    result = case when erased then null else @result::json end,
    failure = @failure, approval_id = @approval, undo_until = @undoUntil, ended_at = @ended
where id = @id and attempt = @attempt and state = @was`

// store writes an execution down as its holder has it; one that somebody else has
// taken up is not.
func (g *Gateway) store(ctx context.Context, tx pgx.Tx, x Execution, was ExecutionState) error {
	args := pgx.NamedArgs{"id": x.ID, "attempt": x.attempt, "was": was, "state": x.State, "sent": x.sent, "token": x.Token,
		"source": nil, "xid": nil, "system": nil, "timeline": nil, "effects": nil, "shown": "[]", "result": nil, "failure": nil,
		"approval": nil, "undoUntil": nil, "ended": nil}
	if x.tx != nil {
		args["source"], args["xid"], args["system"], args["timeline"] = x.tx.source, x.tx.xid, x.tx.system, x.tx.timeline
	}
	for name, v := range map[string]any{"effects": x.effects, "shown": x.Shown, "failure": x.Failure} {
		b, err := json.Marshal(v)
		if err != nil {
			return err
		}
		if string(b) != "null" {
			args[name] = string(pg.JSON(b))
		}
	}
	if x.Result != nil {
		args["result"] = string(pg.JSON(x.Result))
	}
	if x.Approval != uuid.Nil {
		args["approval"] = x.Approval
	}
	if !x.UndoUntil.IsZero() {
		args["undoUntil"] = x.UndoUntil
	}
	if !x.Ended.IsZero() {
		args["ended"] = x.Ended
	}
	tag, err := tx.Exec(ctx, storeExecutionSQL, args)
	if err != nil {
		return fmt.Errorf("store an execution: %w", err)
	}
	if tag.RowsAffected() == 0 {
		return inFlight("this execution, taken up by somebody else,")
	}
	return nil
}

// prepare writes down what is about to be committed on the source, after a last look
// at all that it depends on: from here on a crash does not hide what happened.
func (g *Gateway) prepare(ctx context.Context, s *Session, r run, x *Execution, out action.Outcome) error {
	g.step("done on the source")
	if r.preview != "" && r.preview != r.previewDigest(out.Effects, nil).String() {
		return stalePreview()
	}
	if _, err := g.verifier.Verify(ctx, s.token); err != nil {
		return err
	}
	x.tx = &sourceTx{source: r.source(), xid: out.XID, system: out.SystemID, timeline: out.Timeline}
	x.effects, x.Shown = out.Effects, r.shown(out.Effects)
	result, err := json.Marshal(map[string]any{"rows": out.Rows, "shown": out.Shown})
	if err != nil {
		return err
	}
	x.Result = result
	err = pg.InTx(ctx, g.pool, func(tx pgx.Tx) error {
		if err := g.still(ctx, tx, s.Principal); err != nil {
			return err
		}
		if err := g.useApproval(ctx, tx, s.Principal, r, *x, out.Effects, nil); err != nil {
			return err
		}
		if err := holdsRows(ctx, tx, x.ID, out.Effects); err != nil {
			return err
		}
		return g.store(ctx, tx, *x, Running)
	})
	g.step("written down")
	return err
}

// still refuses where the task may not go on by now.
func (g *Gateway) still(ctx context.Context, tx pgx.Tx, p *authz.Principal) error {
	if err := g.stops.Hold(ctx, tx, p.Tenant, p.User, p.Actors); err != nil {
		return err
	}
	all, err := lockPaths(ctx, tx, []uuid.UUID{p.Task})
	if err != nil {
		return err
	}
	_, err = all.path(p.Task, g.now())
	return err
}

// fail writes down that an execution took no effect, so that the same key may try
// again, and returns why.
func (g *Gateway) fail(ctx context.Context, x Execution, why error) error {
	x.State, x.Failure, x.tx, x.effects, x.Shown, x.Result, x.sent = Failed, failure(why), nil, nil, nil, nil, false
	var e *whence.Error
	if errors.As(why, &e) && e.Reason == "APPROVAL_STALE" {
		x.State = Denied
	}
	x.Ended = g.now().UTC()
	ctx, cancel := context.WithTimeout(ctx, flushTimeout)
	defer cancel()
	err := pg.InTx(ctx, g.pool, func(tx pgx.Tx) error { return g.store(ctx, tx, x, Running) })
	if err != nil { // it stays as it is, and the next call with the key finds out
		g.log.WarnContext(ctx, "cannot write down that an execution failed", "execution", x.ID, "error", err)
	}
	return why
}

// lose writes down that nobody can tell whether an execution took effect.
func (g *Gateway) lose(ctx context.Context, x Execution) error {
	x.State, x.Ended = Uncertain, g.now().UTC()
	x.Failure = failure(uncertain(x))
	if err := pg.InTx(ctx, g.pool, func(tx pgx.Tx) error { return g.store(ctx, tx, x, Running) }); err != nil {
		return err
	}
	return uncertain(x)
}

func uncertain(x Execution) error {
	return &whence.Error{Kind: whence.ErrPrecondition, Reason: "OUTCOME_UNKNOWN",
		Message:  "contact was lost while this ran, and whether it took effect cannot be found out: look at what it acts on, and then decide with a new key; it is not repeated by itself",
		Metadata: map[string]string{"execution": x.ID.String(), "action": x.Action}}
}
