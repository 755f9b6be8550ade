package gateway

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/gowebpki/jcs"
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

// run is an action that is about to be run.
type run struct {
	action.Registered
	def     action.Definition
	args    action.Args
	preview string
	digest  whence.Digest // of action, version and arguments
	raw     *outbound     // a request as an agent wrote it, and no registered action
	needs   int           // how many people must approve it
	worst   authz.Amounts // the most that it may cost
	parts   []string      // digests of the actions that it runs
}

// resolve finds the action and reads the arguments; what the scope does not hold is refused.
func (g *Gateway) resolve(ctx context.Context, p *authz.Principal, a Asked) (r run, err error) {
	reg, err := g.actions.Get(ctx, g.pool, p.Tenant, a.Action)
	if err != nil {
		return r, err
	}
	return g.resolved(p, a, reg)
}

func (g *Gateway) resolved(p *authz.Principal, a Asked, reg action.Registered) (r run, err error) {
	if !reg.Tier.Within(p.Scope.Tier()) {
		return r, tierOutOfScope(reg, p)
	}
	r = run{Registered: reg, def: reg.Definition, preview: a.Preview}
	if r.args, err = action.Arguments(r.def, a.Arguments); err != nil {
		return r, err
	}
	r.digest = digestOf("action", r.Name, r.Version, r.Registered.Digest, r.args.JSON())
	r.needs, r.worst = r.def.NeededApprovals(), worstOf(r.def)
	return r, nil
}

// worstOf is the most that one action may cost by itself.
func worstOf(d action.Definition) authz.Amounts {
	a := authz.Amounts{authz.Spend: d.CostMicros, authz.Rows: 1}
	if d.Row != nil {
		a[authz.Rows] = int64(d.Row.Limit())
	}
	if d.Tier != authz.TierRead {
		a[authz.Writes] = 1
	}
	return a
}

// withParts adds what a saga's steps, and taking them back, need and may cost.
func (g *Gateway) withParts(ctx context.Context, p *authz.Principal, r run) (run, error) {
	var steps []action.Step
	if r.def.Saga != nil {
		for _, step := range r.def.Saga.Steps {
			steps = append(steps, step.Step)
			if step.Compensation != nil {
				steps = append(steps, *step.Compensation)
			}
		}
	}
	if r.def.Compensation != nil {
		steps = append(steps, *r.def.Compensation)
	}
	for _, step := range steps {
		of, err := g.actions.Get(ctx, g.pool, p.Tenant, step.Action)
		if err != nil {
			return r, err
		}
		if !of.Tier.Within(p.Scope.Tier()) {
			return r, tierOutOfScope(of, p)
		}
		r.needs = max(r.needs, of.Approvals)
		if of.NeededApprovals() > 0 && of.Compensation == nil && r.def.Saga != nil {
			r.needs = max(r.needs, 1)
		}
		r.worst = r.worst.Plus(worstOf(of.Definition))
		r.parts = append(r.parts, of.Digest.String())
	}
	return r, nil
}

func tierOutOfScope(of action.Registered, p *authz.Principal) error {
	return &whence.Error{Kind: whence.ErrDenied, Reason: "TIER_OUT_OF_SCOPE",
		Message:  fmt.Sprintf("the action %q is %s and the task's scope goes up to %s; work without it, or ask for a task with a higher tier", of.Name, of.Tier, p.Scope.Tier()),
		Metadata: map[string]string{"action": of.Name, "tier": string(of.Tier), "allowed": string(p.Scope.Tier())}}
}

func (r run) note(s *Session) {
	s.Note("action", r.Name)
	s.Note("actionVersion", r.Version)
	s.Note("tier", string(r.def.Tier))
}

func (r run) execution(g *Gateway, s *Session) Execution {
	p := s.Principal
	return Execution{ID: uuid.Must(uuid.NewV7()), Tenant: p.Tenant, User: p.User, Root: p.Root, Task: p.Task, Agent: p.Agent, Actors: p.Actors,
		Call: s.call, Key: s.key, Action: r.Name, Version: r.Version, Tier: r.def.Tier, Arguments: r.args.JSON(), Digest: r.digest,
		State: Running, Created: s.Started.UTC(), fingerprint: s.digest, holder: g.holder, attempt: 1}
}

// afford holds what the action may cost at the most, beyond what any execution does.
func (g *Gateway) afford(ctx context.Context, s *Session, r run) error {
	if s.unpaid != nil {
		return s.unpaid
	}
	return g.holdMore(ctx, s, r.worst)
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

func (r run) request(p *authz.Principal, x Execution) action.Request {
	return action.Request{Action: r.def, Args: r.args, Scope: p.Scope,
		Credential: action.Credential{User: p.User, Agent: p.Agent, Task: p.Task.String(), Execution: x.ID.String()}}
}

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

// paid is what an execution has used once it is done.
func (r run) paid(rows int64) authz.Amounts {
	a := authz.Amounts{authz.Rows: rows, authz.Spend: r.def.CostMicros}
	if r.def.Tier != authz.TierRead {
		a[authz.Writes] = 1
	}
	return a
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

func (r run) source() string {
	source, _, _, _ := r.def.Row.Table.Parts()
	return source
}

func (r run) shown(effects []action.Effect) []action.Effect {
	out := make([]action.Effect, len(effects))
	for i, e := range effects {
		out[i] = e.Shown(r.def)
	}
	return out
}

// previewDigest is of all that a preview shows and that is to be as previewed.
func (r run) previewDigest(effects []action.Effect, requests []Rendered) whence.Digest {
	return digestOf("preview", r.digest, before(effects), requests)
}

// before is what rows are as an action finds them.
func before(effects []action.Effect) []any {
	out := make([]any, len(effects))
	for i, e := range effects {
		row := map[string]any{"kind": e.Kind, "source": e.Source, "table": e.Table, "before": e.Before}
		if e.Kind != action.Insert { // the source may make another key each time
			row["key"] = e.Key
		}
		out[i] = row
	}
	return out
}

// digestOf is the SHA-256 of the canonical JSON (RFC 8785) of a list.
func digestOf(parts ...any) whence.Digest {
	for i, p := range parts {
		switch p := p.(type) {
		case []byte:
			parts[i] = json.RawMessage(p)
		case whence.Digest:
			parts[i] = p.String()
		}
	}
	b, err := json.Marshal(parts)
	if err == nil {
		b, err = jcs.Transform(b)
	}
	if err != nil { // only values that were made from JSON, and texts, come here
		panic(fmt.Sprintf("digest: %v", err))
	}
	return sha256.Sum256(b)
}

func stalePreview() *whence.Error {
	return &whence.Error{Kind: whence.ErrPrecondition, Reason: "PREVIEW_STALE",
		Message: "this would not do what was previewed, so nothing was done: preview again, and decide by that"}
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

// ListActions lists the actions that the caller's scope has room for, by name.
func (g *Gateway) ListActions(ctx context.Context, p *authz.Principal) ([]action.Registered, error) {
	var out []action.Registered
	for token := ""; ; {
		page, next, err := g.actions.List(ctx, g.pool, p.Tenant, MaxPage, token)
		if err != nil {
			return nil, err
		}
		for _, r := range page {
			if r.Tier.Within(p.Scope.Tier()) && (r.Row == nil || p.Scope.AllowsTable(r.Row.Table)) {
				out = append(out, r)
			}
		}
		if token = next; token == "" {
			return out, nil
		}
	}
}
