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
	"github.com/whence-db/whence/audit"
	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/gateway/action"
	"github.com/whence-db/whence/internal/pg"
)

// part is an action that another execution runs: a step of a saga, or what makes up
// for one. Its key is of the execution that it is part of, so it has one effect
// however often that is taken up again.
type part struct {
	of   uuid.UUID
	key  string
	step action.Step
	// result is the reply that is made up for; nil for a step.
	result json.RawMessage
}

// undoneError is why a saga did not come to its end, and that nothing of it is left.
type undoneError struct{ why error }

func (e *undoneError) Error() string { return "the saga was taken back: " + e.why.Error() }
func (e *undoneError) Unwrap() error { return e.why }

// dispatchSaga runs the steps in order. When one fails, those before it are taken
// back, the last first; what a crash interrupts goes on the next time.
func (g *Gateway) dispatchSaga(ctx context.Context, s *Session, r run, x *Execution) error {
	if err := g.approveSaga(ctx, s, r, x); err != nil {
		return err
	}
	for i, step := range r.def.Saga.Steps {
		err := g.runPart(ctx, s, r, *x, part{of: x.ID, key: stepKey(i), step: step.Step})
		if err == nil {
			g.step("step done")
			continue
		}
		var e *whence.Error
		if errors.As(err, &e) && (e.RetryAfter > 0 || e.Reason == "OUTCOME_UNKNOWN") {
			return &stuckError{err} // neither on nor back by itself
		}
		return g.takeBackSaga(ctx, s, r, x, failure(err), err)
	}
	x.Result = json.RawMessage(fmt.Sprintf(`{"steps":%d}`, len(r.def.Saga.Steps)))
	return nil
}

// stuckError is why a saga stands where it does until it is called again.
type stuckError struct{ why error }

func (e *stuckError) Error() string { return "the saga waits: " + e.why.Error() }
func (e *stuckError) Unwrap() error { return e.why }

func stepKey(i int) string { return fmt.Sprintf("step-%d", i) }

// approveSaga uses the approval of a saga, before its first step.
func (g *Gateway) approveSaga(ctx context.Context, s *Session, r run, x *Execution) error {
	if r.needs == 0 {
		return nil
	}
	var begun bool
	if err := g.pool.QueryRow(ctx, begunSQL, pgx.NamedArgs{"call": partCall(x.ID)}).Scan(&begun); err != nil {
		return fmt.Errorf("look for a saga's steps: %w", pg.Translate(err))
	}
	if begun { // it was used then
		return nil
	}
	f, err := g.dry(ctx, s.Principal, r, *x)
	if err != nil {
		return err
	}
	return pg.InTx(ctx, g.pool, func(tx pgx.Tx) error {
		if err := g.still(ctx, tx, s.Principal); err != nil {
			return err
		}
		return g.useApproval(ctx, tx, s.Principal, r, *x, f.effects, f.requests)
	})
}

const begunSQL = `select exists (select from whence.executions where call = @call)`

// partCall is the call that an execution's parts are claimed under.
func partCall(of uuid.UUID) string { return partPrefix + of.String() }

const partPrefix = "part-of/"

// takeBackSaga takes back the steps of a saga that were done, the last first.
func (g *Gateway) takeBackSaga(ctx context.Context, s *Session, r run, x *Execution, why *Failure, err error) error {
	was := x.State
	x.State, x.Failure = Undoing, why
	if stored := pg.InTx(ctx, g.pool, func(tx pgx.Tx) error { return g.store(ctx, tx, *x, was) }); stored != nil {
		return &stuckError{stored}
	}
	for i := len(r.def.Saga.Steps) - 1; i >= 0; i-- {
		if back := g.takeBackStep(ctx, s, r, *x, i); back != nil {
			return &stuckError{back}
		}
		g.step("step taken back")
	}
	if err == nil {
		return nil
	}
	x.State, x.Ended = Undone, g.now().UTC()
	if stored := pg.InTx(ctx, g.pool, func(tx pgx.Tx) error { return g.store(ctx, tx, *x, Undoing) }); stored != nil {
		return &stuckError{stored}
	}
	return &undoneError{err}
}

// takeBackStep takes one step back, if it was done: by its compensation or else by
// its own inverse.
func (g *Gateway) takeBackStep(ctx context.Context, s *Session, r run, x Execution, i int) error {
	done, found, err := g.findPart(ctx, s.Principal, x.ID, stepKey(i))
	if err != nil || !found || done.State == Failed || done.State == Undone {
		return err
	}
	if done.State == Running { // its process died
		step, err := g.partRun(ctx, s.Principal, r, x, part{of: x.ID, key: stepKey(i), step: r.def.Saga.Steps[i].Step})
		if err != nil {
			return err
		}
		switch fate, err := g.fate(ctx, step, done); {
		case err != nil:
			return err
		case fate == action.Aborted:
			return g.recovered(ctx, step, &done, Running, Failed)
		case fate != action.Committed:
			return uncertain(done)
		}
	}
	if c := r.def.Saga.Steps[i].Compensation; c != nil {
		return g.runPart(ctx, s, r, x, part{of: x.ID, key: "back-" + stepKey(i), step: *c, result: done.Result})
	}
	of, err := g.actions.Version(ctx, g.pool, done.Tenant, done.Action, done.Version)
	if err != nil || of.Tier == authz.TierRead {
		return err
	}
	undone, gone, err := g.takeBack(ctx, s, run{Registered: of, def: of.Definition}, done)
	if err != nil {
		return err
	}
	return pg.InTx(ctx, g.pool, func(tx pgx.Tx) error {
		if !gone && of.Memory != nil {
			if err := g.forgetAgain(ctx, tx, s.Principal, undone); err != nil {
				return err
			}
		}
		undone.State, undone.Ended = Undone, g.now().UTC()
		if err := g.store(ctx, tx, undone, Undoing); err != nil {
			return err
		}
		return g.audit.Append(ctx, tx, []audit.Entry{partEntry(s, undone, "whence.v1.ActionService/Undo", g.now())})
	})
}

func (g *Gateway) findPart(ctx context.Context, p *authz.Principal, of uuid.UUID, key string) (Execution, bool, error) {
	return findExecution(ctx, g.pool, executionByKeySQL,
		pgx.NamedArgs{"tenant": p.Tenant, "user": p.User, "root": p.Root, "call": partCall(of), "key": key})
}

// partRun resolves the action of a part with its arguments.
func (g *Gateway) partRun(ctx context.Context, p *authz.Principal, r run, x Execution, part part) (out run, err error) {
	raw := map[string]any{}
	q := r.request(p, x)
	var reply any
	if part.result != nil {
		if reply, err = exact(part.result); err != nil {
			return out, err
		}
	}
	for name, o := range part.step.Arguments {
		var v json.RawMessage
		var given bool
		if o.Result != nil {
			v, given, err = pointer(replied(reply), *o.Result)
		} else {
			v, given, err = o.JSON(q.Args, q.Credential)
		}
		if err != nil {
			return out, err
		}
		if !given {
			continue
		}
		if raw[name], err = exact(v); err != nil {
			return out, err
		}
	}
	return g.resolve(ctx, p, Asked{Action: part.step.Action, Arguments: raw})
}

// replied is what pointers into a reply are of: the upstream's own, where there is one.
func replied(result any) any {
	if m, ok := result.(map[string]any); ok && m["json"] != nil {
		return m["json"]
	}
	return result
}

// runPart runs a part, once, with an entry of its own.
func (g *Gateway) runPart(ctx context.Context, s *Session, r run, x Execution, p part) error {
	own, err := g.partRun(ctx, s.Principal, r, x, p)
	if err != nil {
		return err
	}
	child, found, err := g.findPart(ctx, s.Principal, p.of, p.key)
	switch {
	case err != nil:
		return err
	case found && child.State == Succeeded:
		return nil
	case found && child.State == Uncertain:
		return uncertain(child)
	case found:
		was := child
		if _, err := g.pool.Exec(ctx, takeUpSQL, pgx.NamedArgs{"id": child.ID, "attempt": child.attempt, "was": child.State, "state": Running, "holder": g.holder}); err != nil {
			return fmt.Errorf("take a step up: %w", pg.Translate(err))
		}
		child.State, child.attempt, child.holder = Running, child.attempt+1, g.holder
		if was.State == Running {
			switch fate, err := g.fate(ctx, own, was); {
			case err != nil:
				return err
			case fate == action.Committed:
				s.did(own.paid(int64(len(child.effects))))
				return g.partDone(ctx, s, own, &child)
			case fate == action.InProgress:
				return inFlight("a step of this")
			case fate == action.Unknown:
				return g.lose(ctx, child)
			}
		}
	default:
		child = own.execution(g, s)
		child.Call, child.Key = partCall(p.of), p.key
		child.fingerprint = own.digest
		if mine, err := g.claim(ctx, child); err != nil || !mine {
			return errors.Join(err, inFlight("a step of this"))
		}
	}
	if own.def.Tier == authz.TierRead {
		return g.readPart(ctx, s, own, &child)
	}
	own.needs = 0 // what it is part of was approved
	err = g.dispatchKind(ctx, s, own, &child)
	switch {
	case err == nil:
		return g.partDone(ctx, s, own, &child)
	case own.unsure(err):
		return g.lose(ctx, child)
	case errors.Is(err, action.ErrUncertain):
		return &whence.Error{Kind: whence.ErrUnavailable, Reason: "OUTCOME_PENDING", RetryAfter: time.Second, Err: err,
			Message:  "the source was lost while it committed a step, and whether it did is not known yet; try again with the same key to find out",
			Metadata: map[string]string{"execution": child.ID.String()}}
	}
	return g.fail(ctx, child, err)
}

func (g *Gateway) readPart(ctx context.Context, s *Session, own run, child *Execution) error {
	if own.def.Row == nil {
		if err := g.dispatchHTTP(ctx, s, own, child); err != nil {
			return g.fail(ctx, *child, err)
		}
		return g.partDone(ctx, s, own, child)
	}
	res, err := g.rows.Run(ctx, own.request(s.Principal, *child), nil)
	if err != nil {
		return g.fail(ctx, *child, err)
	}
	if child.Result, err = json.Marshal(map[string]any{"rows": res.Rows, "shown": res.Shown}); err != nil {
		return err
	}
	s.did(own.paid(int64(res.Rows)))
	return g.partDone(ctx, s, own, child)
}

// partDone records a part that took effect.
func (g *Gateway) partDone(ctx context.Context, s *Session, own run, child *Execution) error {
	err := pg.InTx(ctx, g.pool, func(tx pgx.Tx) error {
		x := *child
		if own.def.Memory != nil {
			if err := g.dispatchMemory(ctx, tx, s, own, &x); err != nil {
				return err
			}
		}
		x.State, x.Ended = Succeeded, g.now().UTC()
		if d := own.def.UndoTime(); d > 0 {
			x.UndoUntil = x.Ended.Add(d)
		}
		if err := g.store(ctx, tx, x, Running); err != nil {
			return err
		}
		if err := g.audit.Append(ctx, tx, []audit.Entry{partEntry(s, x, "whence.v1.ActionService/Execute", g.now())}); err != nil {
			return err
		}
		*child = x
		return nil
	})
	if err != nil && own.def.Memory != nil {
		return g.fail(ctx, *child, err)
	}
	return err
}

func partEntry(s *Session, x Execution, call string, now time.Time) audit.Entry {
	part := &Session{Principal: s.Principal, Started: s.Started, digest: x.fingerprint,
		detail: map[string]any{"action": x.Action, "actionVersion": x.Version, "tier": string(x.Tier), "execution": x.ID, "partOf": x.Call, "step": x.Key}}
	e := entry(Call{Name: call}, part, nil)
	e.Latency = max(0, now.Sub(s.Started))
	return e
}

// compensate makes up for an execution that has no inverse.
func (g *Gateway) compensate(ctx context.Context, s *Session, r run, x Execution) error {
	raw := map[string]any{}
	if err := json.Unmarshal(x.Arguments, &raw); err != nil {
		return fmt.Errorf("undo: %w", err)
	}
	var err error
	if r.args, err = action.Arguments(r.def, raw); err != nil {
		return err
	}
	return g.runPart(ctx, s, r, x, part{of: x.ID, key: "compensation", step: *r.def.Compensation, result: x.Result})
}
