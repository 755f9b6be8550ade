package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/gateway/action"
	"github.com/whence-db/whence/internal/pg"
)

// Asked is an action with its arguments.
type Asked struct {
	Action    string
	Arguments map[string]any
	// Preview is the digest that a preview gave; anything but what was previewed is
	// then refused. Empty: whatever comes of it.
	Preview string
}

// running are the executions that goroutines of this process are at.
type running struct {
	mu sync.Mutex
	of map[uuid.UUID]bool
}

// start is false when one is at it already.
func (r *running) start(id uuid.UUID) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.of[id] {
		return false
	}
	r.of[id] = true
	return true
}

func (r *running) has(id uuid.UUID) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.of[id]
}

func (r *running) end(id uuid.UUID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.of, id)
}

func inFlight(what string) *whence.Error {
	return &whence.Error{Kind: whence.ErrAborted, Reason: "IN_FLIGHT", RetryAfter: 100 * time.Millisecond,
		Message: what + " is under way; try again with the same key"}
}

// Execute runs an action for the caller's task, once for each idempotency key, and
// tells done of the execution. What only reads runs as often as it is called.
//
// Its steps are durable one by one, and whoever comes with the same key after a crash
// goes on from the last: claimed; written down, with the transaction's id, before the
// source commits; committed there; recorded with its entry.
func (g *Gateway) Execute(ctx context.Context, s *Session, a Asked, done func(Execution) error) error {
	p := s.Principal
	known := keyArgs(s)
	if s.key != "" {
		x, found, err := findExecution(ctx, g.pool, executionByKeySQL, known)
		if err != nil {
			return err
		}
		if found {
			return g.resume(ctx, s, a, x, done)
		}
	}
	r, err := g.resolve(ctx, p, a)
	if err == nil {
		r, err = g.withParts(ctx, p, r)
	}
	if err != nil {
		return err
	}
	r.note(s)
	if r.def.Tier == authz.TierRead {
		return g.read(ctx, s, r, done)
	}
	if s.key == "" {
		return errKeyRequired()
	}
	x := r.execution(g, s)
	if err := g.afford(ctx, s, r); err != nil {
		return err
	}
	inserted, err := g.claim(ctx, x)
	if err != nil {
		return err
	}
	g.step("claimed")
	if !inserted { // somebody else was faster
		if x, found, err := findExecution(ctx, g.pool, executionByKeySQL, known); err != nil || found {
			return errors.Join(err, g.resume(ctx, s, a, x, done))
		}
		return inFlight("a call with this idempotency key")
	}
	return g.perform(ctx, s, r, x, done)
}

// claim makes a key this execution's; false: it is another one's.
func (g *Gateway) claim(ctx context.Context, x Execution) (mine bool, err error) {
	err = pg.InTx(ctx, g.pool, func(tx pgx.Tx) error {
		// Nothing has happened yet: a claim that is lost in a crash is made again.
		if _, err := tx.Exec(ctx, asyncSQL); err != nil {
			return err
		}
		tag, err := tx.Exec(ctx, insertExecutionSQL, pgx.NamedArgs{"id": x.ID, "tenant": x.Tenant, "user": pg.Text(x.User), "root": x.Root, "task": x.Task,
			"agent": pg.Text(x.Agent), "actors": x.Actors, "call": x.Call, "key": x.Key, "fingerprint": x.fingerprint[:], "action": x.Action,
			"version": x.Version, "tier": x.Tier, "arguments": string(x.Arguments), "digest": x.Digest[:], "holder": x.holder, "created": x.Created})
		mine = err == nil && tag.RowsAffected() == 1
		return err
	})
	if err != nil {
		return false, fmt.Errorf("claim an idempotency key: %w", err)
	}
	return mine, nil
}

// resume goes on with what a call with the same key has begun.
func (g *Gateway) resume(ctx context.Context, s *Session, a Asked, x Execution, done func(Execution) error) error {
	return g.goOn(ctx, s, x, done, func(x Execution) (run, error) {
		reg, err := g.actions.Version(ctx, g.pool, x.Tenant, x.Action, x.Version)
		if err != nil {
			return run{}, err
		}
		return g.resolved(s.Principal, a, reg)
	})
}

// goOn is resume of what again makes anew.
func (g *Gateway) goOn(ctx context.Context, s *Session, x Execution, done func(Execution) error, again func(Execution) (run, error)) error {
	if x.fingerprint != s.digest {
		return whence.Invalid("", "IDEMPOTENCY_KEY_REUSED",
			"this idempotency key was used for another request; use a new key for a new request")
	}
	if err := g.mayLearn(ctx, g.pool, s.Principal, x.Task); err != nil {
		return err
	}
	s.Note("action", x.Action)
	s.Note("execution", x.ID)
	switch x.State {
	case Undoing:
		if x.Failure != nil { // a saga that is being taken back, because a step failed
			return g.goBack(ctx, s, x, again)
		}
		s.replayed, x.Replayed = true, true
		return done(x)
	case Succeeded, Undone:
		s.replayed, x.Replayed = true, true
		return done(x)
	case Denied:
		s.replayed = true
		return denied(x)
	case Uncertain:
		s.replayed = true
		return uncertain(x)
	case Awaiting, Running, Failed: // goes on
	}
	r, err := again(x)
	if err == nil {
		r, err = g.withParts(ctx, s.Principal, r)
	}
	if err != nil {
		return err
	}
	if x.State == Awaiting {
		if s.Principal.Task != x.Task { // what was asked for by one is not run by another
			return whence.Invalid("", "IDEMPOTENCY_KEY_REUSED", "this idempotency key waits for an approval of another task's; use a new key")
		}
		return g.decided(ctx, s, r, x, done)
	}
	if x.State == Running {
		if err := g.orphaned(ctx, x); err != nil {
			return err
		}
	}
	if err := g.afford(ctx, s, r); err != nil {
		return err
	}
	return g.takeUp(ctx, s, r, x, done)
}

// goBack goes on taking a saga back that failed.
func (g *Gateway) goBack(ctx context.Context, s *Session, x Execution, again func(Execution) (run, error)) error {
	r, err := again(x)
	if err != nil {
		return err
	}
	if err := g.orphaned(ctx, x); err != nil {
		return err
	}
	if !g.running.start(x.ID) {
		return inFlight("a call with this idempotency key")
	}
	s.after = append(s.after, func() { g.running.end(x.ID) })
	tag, err := g.pool.Exec(ctx, takeUpSQL, pgx.NamedArgs{"id": x.ID, "attempt": x.attempt, "was": x.State, "state": Undoing, "holder": g.holder})
	if err != nil {
		return fmt.Errorf("take an execution up: %w", pg.Translate(err))
	}
	if tag.RowsAffected() == 0 {
		return inFlight("a call with this idempotency key")
	}
	x.attempt, x.holder = x.attempt+1, g.holder
	bound, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.def.RunTime())
	defer cancel()
	why := &whence.Error{Kind: whence.ErrPrecondition, Reason: x.Failure.Reason, Message: x.Failure.Message, Metadata: x.Failure.Metadata}
	err = g.takeBackSaga(bound, s, r, &x, x.Failure, why)
	var undone *undoneError
	var stuck *stuckError
	switch {
	case errors.As(err, &undone):
		return undone.why
	case errors.As(err, &stuck):
		return stuck.why
	}
	return err
}

// orphaned refuses while somebody is at an execution.
func (g *Gateway) orphaned(ctx context.Context, x Execution) error {
	if x.holder == g.holder {
		return nil // or this process is at it, which running knows
	}
	var lives bool
	if err := g.pool.QueryRow(ctx, holderLivesSQL, pgx.NamedArgs{"holder": x.holder}).Scan(&lives); err != nil {
		return fmt.Errorf("look for who runs an execution: %w", pg.Translate(err))
	}
	if lives {
		return inFlight("a call with this idempotency key")
	}
	return nil
}

// takeUp makes an execution this call's, and finds out what became of it before.
func (g *Gateway) takeUp(ctx context.Context, s *Session, r run, x Execution, done func(Execution) error) error {
	if !g.running.start(x.ID) {
		return inFlight("a call with this idempotency key")
	}
	s.after = append(s.after, func() { g.running.end(x.ID) })
	tag, err := g.pool.Exec(ctx, takeUpSQL, pgx.NamedArgs{"id": x.ID, "attempt": x.attempt, "was": x.State, "state": Running, "holder": g.holder})
	if err != nil {
		return fmt.Errorf("take an execution up: %w", pg.Translate(err))
	}
	if tag.RowsAffected() == 0 {
		return inFlight("a call with this idempotency key")
	}
	was := x.State
	x.State, x.attempt, x.holder = Running, x.attempt+1, g.holder
	if was != Failed {
		switch fate, err := g.fate(ctx, r, x); {
		case err != nil:
			return err
		case fate == action.Committed:
			s.did(r.paid(int64(len(x.effects))))
			return g.succeed(s, r, x, done)
		case fate == action.InProgress:
			return inFlight("a call with this idempotency key")
		case fate == action.Unknown:
			return g.lose(ctx, x)
		}
	}
	if r.needs > 0 && x.Approval == uuid.Nil { // it was not even asked for
		return g.ask(ctx, s, r, x)
	}
	return g.dispatch(ctx, s, r, x, done)
}

// fate tells what became of an execution whose process died.
func (g *Gateway) fate(ctx context.Context, r run, x Execution) (action.Fate, error) {
	switch {
	case r.def.Saga != nil:
		return action.Aborted, nil // its steps know
	case x.tx != nil:
		return g.rows.Fate(ctx, x.tx.source, x.tx.xid, x.tx.system, x.tx.timeline)
	case x.sent && (r.def.HTTP == nil || r.def.HTTP.IdempotencyHeader == ""):
		return action.Unknown, nil
	}
	return action.Aborted, nil
}

// perform runs a claimed execution, or asks for the approval that it needs.
func (g *Gateway) perform(ctx context.Context, s *Session, r run, x Execution, done func(Execution) error) error {
	if !g.running.start(x.ID) {
		return inFlight("a call with this idempotency key")
	}
	s.after = append(s.after, func() { g.running.end(x.ID) })
	s.Note("execution", x.ID)
	if r.needs > 0 {
		return g.ask(ctx, s, r, x)
	}
	return g.dispatch(ctx, s, r, x, done)
}

// dispatch runs an execution that is this call's and need not wait for anybody.
func (g *Gateway) dispatch(ctx context.Context, s *Session, r run, x Execution, done func(Execution) error) error {
	// The caller may go; what has begun is ended.
	bound, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.def.RunTime())
	defer cancel()
	err := g.dispatchKind(bound, s, r, &x)
	var undone *undoneError
	var stuck *stuckError
	switch {
	case err == nil:
		return g.succeed(s, r, x, done)
	case errors.As(err, &undone):
		return undone.why
	case errors.As(err, &stuck):
		return stuck.why
	case r.unsure(err):
		s.Note("outcome", failure(err).Reason)
		return g.lose(context.WithoutCancel(ctx), x)
	case errors.Is(err, action.ErrUncertain):
		return g.settleFate(context.WithoutCancel(ctx), s, r, x, done, err)
	}
	return g.fail(context.WithoutCancel(ctx), x, err)
}

func (g *Gateway) dispatchKind(ctx context.Context, s *Session, r run, x *Execution) error {
	switch {
	case r.def.Row != nil:
		return g.dispatchRows(ctx, s, r, x)
	case r.def.Memory != nil:
		return nil // it happens in the transaction that records it
	case r.def.HTTP != nil || r.raw != nil:
		return g.dispatchHTTP(ctx, s, r, x)
	case r.def.Saga != nil:
		return g.dispatchSaga(ctx, s, r, x)
	}
	return fmt.Errorf("the action %q is of no kind", r.Name)
}

// dispatchRows runs a row action. What it did is written down before the source commits.
func (g *Gateway) dispatchRows(ctx context.Context, s *Session, r run, x *Execution) error {
	res, err := g.rows.Run(ctx, r.request(s.Principal, *x), func(ctx context.Context, out action.Outcome) error {
		return g.prepare(ctx, s, r, x, out)
	})
	if err != nil {
		return err
	}
	if res.Rows == 0 && strings.HasPrefix(x.Call, partPrefix) {
		return &whence.Error{Kind: whence.ErrPrecondition, Reason: "STEP_TOUCHED_NOTHING", Metadata: map[string]string{"action": r.Name, "step": x.Key},
			Message: fmt.Sprintf("the step %q, by the action %q, found no row within the scope to act on; correct the arguments, or ask for a task whose scope holds it", x.Key, r.Name)}
	}
	x.Token = res.Token
	s.did(r.paid(int64(res.Rows)))
	g.step("committed")
	return nil
}

// read runs an action that only reads.
func (g *Gateway) read(ctx context.Context, s *Session, r run, done func(Execution) error) error {
	if err := g.afford(ctx, s, r); err != nil {
		return err
	}
	x := r.execution(g, s)
	x.ID = uuid.Nil // nothing is kept of it but its entry
	bound, cancel := context.WithTimeout(ctx, r.def.RunTime())
	defer cancel()
	if r.def.HTTP != nil {
		if err := g.dispatchHTTP(bound, s, r, &x); err != nil {
			return err
		}
		x.State, x.Ended = Succeeded, g.now().UTC()
		return done(x)
	}
	if r.def.Row == nil {
		return fmt.Errorf("the action %q reads nothing", r.Name)
	}
	res, err := g.rows.Run(bound, r.request(s.Principal, x), nil)
	if err != nil {
		return err
	}
	if x.Result, err = json.Marshal(map[string]any{"rows": res.Rows, "shown": res.Shown}); err != nil {
		return err
	}
	s.Use(authz.Rows, int64(res.Rows))
	s.Use(authz.Spend, r.def.CostMicros)
	x.State, x.Ended = Succeeded, g.now().UTC()
	return done(x)
}

// mayLearn refuses a task that may do less than the one whose reply it asks for.
func (g *Gateway) mayLearn(ctx context.Context, db querier, p *authz.Principal, task uuid.UUID) error {
	if p.Task == task {
		return nil
	}
	t, err := g.getTask(ctx, db, task)
	if err != nil {
		return err
	}
	if _, err := p.Scope.Narrow(t.Scope); err != nil {
		return whence.Invalid("", "IDEMPOTENCY_KEY_REUSED",
			"this idempotency key was used by another task of the tree, which may do what this one may not; use a new key")
	}
	return nil
}
