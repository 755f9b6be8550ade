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

// ExecutionState is where a run of an action stands.
type ExecutionState string

const (
	// Awaiting waits for an operator's decision.
	Awaiting ExecutionState = "AWAITING_APPROVAL"
	// Running runs, or did when its process died.
	Running ExecutionState = "RUNNING"
	// Succeeded took effect.
	Succeeded ExecutionState = "SUCCEEDED"
	// Failed took no effect; the same key may try again.
	Failed ExecutionState = "FAILED"
	// Uncertain may have taken effect: nobody can tell any more.
	Uncertain ExecutionState = "UNCERTAIN"
	// Denied will never run.
	Denied ExecutionState = "DENIED"
	// Undoing is being taken back.
	Undoing ExecutionState = "UNDOING"
	// Undone took effect and was taken back.
	Undone ExecutionState = "UNDONE"
)

// Failure is why an execution took no effect.
type Failure struct {
	Kind     string            `json:"kind"`
	Reason   string            `json:"reason"`
	Message  string            `json:"message"`
	Metadata map[string]string `json:"metadata,omitempty"`
}

// Execution is one run of an action.
type Execution struct {
	ID           uuid.UUID
	Tenant, User string
	Root, Task   uuid.UUID
	Agent        string
	Actors       []string
	Call, Key    string
	Action       string
	Version      int32 // of the action
	Tier         authz.Tier
	Arguments    json.RawMessage // canonical
	Digest       whence.Digest   // of action, version and arguments
	State        ExecutionState
	Shown        []action.Effect // what it did to rows, as far as the action shows them
	Result       json.RawMessage // what it returned; nil while it has not
	Token        string          // for consistency.atLeast
	Failure      *Failure
	Approval     uuid.UUID // that it waits for or ran by; zero: none
	UndoUntil    time.Time // zero: it cannot be undone
	Created      time.Time
	Ended        time.Time // zero while it has not
	Replayed     bool      // it had been told before

	fingerprint [32]byte
	holder      uuid.UUID
	attempt     int32
	tx          *sourceTx
	sent        bool
	erased      bool // its words are gone
	effects     []action.Effect
}

// sourceTx is the transaction on a source that runs or undoes an execution.
type sourceTx struct {
	source, xid, system string
	timeline            int32
}

const (
	executionSQL = `
select id, tenant, user_id, root_id, task_id, agent, actors, call, key, fingerprint, action, action_version, tier, arguments, digest,
    state, holder_id, attempt, coalesce(source, ''), coalesce(xid, ''), coalesce(system_id, ''), coalesce(timeline, 0), sent_at is not null,
    effects, shown, result, token, failure, coalesce(approval_id, @none), undo_until, created_at, ended_at, erased
from whence.executions `

	executionByKeySQL = executionSQL + `
where tenant = @tenant and user_id = @user and root_id = @root and call = @call and key = @key`
	executionByIDSQL = executionSQL + `where id = @id`
	forUpdateSQL     = ` for no key update`

	insertExecutionSQL = `
insert into whence.executions (id, tenant, user_id, root_id, task_id, agent, actors, call, key, fingerprint, action, action_version,
    tier, arguments, digest, state, holder_id, created_at)
values (@id, @tenant, @user, @root, @task, @agent, @actors, @call, @key, @fingerprint, @action, @version,
    @tier, @arguments, @digest, 'RUNNING', @holder, @created)
on conflict (tenant, user_id, root_id, call, key) do nothing`

	// Whoever held it before finds its attempt gone, and does nothing.
	takeUpSQL = `
update whence.executions set state = @state, holder_id = @holder, attempt = attempt + 1, failure = null, ended_at = null
where id = @id and attempt = @attempt and state = @was`

	holderLivesSQL = `select exists (select from whence.holders where id = @holder and expires_at > now())`
)

func scanExecution(row pgx.CollectableRow) (x Execution, err error) {
	var fingerprint, digest, effects, shown, result, failure []byte
	var undoUntil, ended *time.Time
	t := sourceTx{}
	if err := row.Scan(&x.ID, &x.Tenant, &x.User, &x.Root, &x.Task, &x.Agent, &x.Actors, &x.Call, &x.Key, &fingerprint, &x.Action, &x.Version,
		&x.Tier, &x.Arguments, &digest, &x.State, &x.holder, &x.attempt, &t.source, &t.xid, &t.system, &t.timeline, &x.sent,
		&effects, &shown, &result, &x.Token, &failure, &x.Approval, &undoUntil, &x.Created, &ended, &x.erased); err != nil {
		return x, err
	}
	copy(x.fingerprint[:], fingerprint)
	copy(x.Digest[:], digest)
	x.Created, x.Result = x.Created.UTC(), result
	if t.xid != "" {
		x.tx = &t
	}
	if undoUntil != nil {
		x.UndoUntil = undoUntil.UTC()
	}
	if ended != nil {
		x.Ended = ended.UTC()
	}
	for _, part := range []struct {
		raw []byte
		to  any
	}{{effects, &x.effects}, {shown, &x.Shown}, {failure, &x.Failure}} {
		if part.raw != nil {
			if err := json.Unmarshal(part.raw, part.to); err != nil {
				return x, fmt.Errorf("read an execution: %w", err)
			}
		}
	}
	return x, nil
}

func findExecution(ctx context.Context, db querier, sql string, args pgx.NamedArgs) (x Execution, found bool, err error) {
	args["none"] = uuid.Nil
	rows, err := db.Query(ctx, sql, args)
	if err == nil {
		x, err = pgx.CollectExactlyOneRow(rows, scanExecution)
	}
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return x, false, nil
	case err != nil:
		return x, false, fmt.Errorf("find an execution: %w", pg.Translate(err))
	}
	return x, true, nil
}

// GetExecution returns an execution of the caller's task or of one below it.
func (g *Gateway) GetExecution(ctx context.Context, p *authz.Principal, id string) (Execution, error) {
	return g.getExecution(ctx, g.pool, p, id, "")
}

func (g *Gateway) getExecution(ctx context.Context, db querier, p *authz.Principal, id, lock string) (Execution, error) {
	unknown := &whence.Error{Kind: whence.ErrNotFound, Reason: "EXECUTION_NOT_FOUND", Field: "id",
		Message: "the task, and those below it, have no execution with this id", Metadata: map[string]string{"execution": id}}
	of, err := uuid.Parse(id)
	if err != nil {
		return Execution{}, unknown
	}
	x, found, err := findExecution(ctx, db, executionByIDSQL+lock, pgx.NamedArgs{"id": of})
	if err != nil {
		return x, err
	}
	if !found || x.Root != p.Root || x.Tenant != p.Tenant {
		return Execution{}, unknown
	}
	if x.Task != p.Task {
		t, err := g.getTask(ctx, db, x.Task)
		if err != nil {
			return x, err
		}
		if below, err := g.isBelow(ctx, db, t, p.Task); err != nil || !below {
			return Execution{}, errors.Join(err, unknown)
		}
	}
	return x, nil
}

const belowSQL = `select @above = any(path) from whence.tasks where id = @id`

func (g *Gateway) isBelow(ctx context.Context, db querier, t Task, above uuid.UUID) (bool, error) {
	rows, err := db.Query(ctx, belowSQL, pgx.NamedArgs{"id": t.ID, "above": above})
	if err != nil {
		return false, pg.Translate(err)
	}
	below, err := pgx.CollectExactlyOneRow(rows, pgx.RowTo[bool])
	return below, pg.Translate(err)
}

// failure writes an error down; what is not for the caller stays in the server's log.
func failure(err error) *Failure {
	var e *whence.Error
	if !errors.As(err, &e) {
		return &Failure{Kind: "internal", Reason: "INTERNAL", Message: "internal error; the server's log has the details"}
	}
	return &Failure{Kind: e.Kind.Error(), Reason: e.Reason, Message: e.Message, Metadata: e.Metadata}
}
