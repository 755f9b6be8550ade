package gateway

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/internal/pg"
)

// TaskState is where a task stands.
type TaskState string

const (
	// TaskActive tasks may call.
	TaskActive TaskState = "ACTIVE"
	// TaskEnded tasks were ended, or one above them was.
	TaskEnded TaskState = "ENDED"
	// TaskRevoked tasks were stopped by an operator.
	TaskRevoked TaskState = "REVOKED"
	// TaskExpired tasks are past their deadline. It is derived, never stored.
	TaskExpired TaskState = "EXPIRED"
)

// Task is a bounded piece of agent work.
type Task struct {
	ID     uuid.UUID
	Root   uuid.UUID // itself when it has no parent
	Parent uuid.UUID // zero when it has none
	Depth  int       // 0 at the root
	Tenant string
	User   string    // who delegated the work
	Agent  string    // who does it
	Actors []string  // the chain that acts, Agent first
	Grant  uuid.UUID // that its tree runs under; zero when there is none
	// MaxDepth is how deep its tree may grow, and Thumbprint the key that its tokens
	// are bound to, if any.
	MaxDepth   int
	Thumbprint string
	Purpose    string
	Scope      authz.ScopeSpec
	State      TaskState
	Budget     Budget
	Usage      Usage // of its calls and those of the tasks below it
	Created    time.Time
	Ended      time.Time // zero while it has not
}

// Usage is what calls have used beside their budget, as embedder.Usage counts it.
type Usage struct {
	EmbeddingCalls, EmbeddingTokens int64
}

const taskSQL = `
select t.id, t.root_id, coalesce(t.parent_id, @none), t.depth, t.tenant, t.user_id, t.agent, t.purpose, t.scope,
       t.state, t.deadline, t.limits, t.settled, t.reserved, t.created_at, t.ended_at,
       (select array_agg(m.left order by m.meter) from (
            select meter, min(case when l = @unlimited then l else l - s - r end) as left
            from whence.tasks a, unnest(a.limits, a.settled, a.reserved) with ordinality as u(l, s, r, meter)
            where a.id = any(t.path) group by meter) m),
       t.embedding_calls,
       t.actors, coalesce(t.grant_id, @none), t.max_depth, t.thumbprint
from whence.tasks t
where true`

const (
	byIDSQL       = ` and t.id = @id`
	byTenantSQL   = ` and t.tenant = @tenant`
	byRootSQL     = ` and t.root_id = @root`
	byAgentSQL    = ` and t.agent = @agent`
	byUserSQL     = ` and t.user_id = @user`
	activeSQL     = ` and t.state = 'ACTIVE' and t.deadline > @now`
	expiredSQL    = ` and t.state = 'ACTIVE' and t.deadline <= @now`
	byStateSQL    = ` and t.state = @state`
	beforeSQL     = ` and t.id < @before`
	newestTaskSQL = ` order by t.id desc limit @limit`
)

// GetTask returns a task as it stands. Whoever calls it has made sure that the
// caller may see it. An unknown id is ErrNotFound TASK_NOT_FOUND.
func (g *Gateway) GetTask(ctx context.Context, id uuid.UUID) (Task, error) {
	t, err := g.getTask(ctx, g.pool, id)
	if err != nil {
		return t, err
	}
	if _, held := g.blocks.holds(t.Root); held {
		t.Budget, err = g.withoutSpare(ctx, t)
	}
	return t, err
}

// withoutSpare is a task's budget with what this process has leased and no call uses
// counted as left.
func (g *Gateway) withoutSpare(ctx context.Context, t Task) (Budget, error) {
	rows, err := g.pool.Query(ctx, pathsSQL, pgx.NamedArgs{"tasks": []uuid.UUID{t.ID}, "none": uuid.Nil})
	if err != nil {
		return t.Budget, fmt.Errorf("get a task: %w", pg.Translate(err))
	}
	all, err := collectNodes(rows)
	if err != nil {
		return t.Budget, fmt.Errorf("get a task: %w", pg.Translate(err))
	}
	up, err := all.above(t.ID)
	if err != nil {
		return t.Budget, err
	}
	spare := g.blocks.spareBelow(t.Root)
	for _, n := range up {
		for m := range n.reserved {
			n.reserved[m] = max(0, n.reserved[m]-spare[n.id][m])
		}
	}
	b := t.Budget
	b.Used, b.Remaining = up[0].settled.Plus(up[0].reserved), left(up)
	return b, nil
}

// querier is a pool or a transaction.
type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

func (g *Gateway) getTask(ctx context.Context, db querier, id uuid.UUID) (Task, error) {
	rows, err := db.Query(ctx, taskSQL+byIDSQL, pgx.NamedArgs{"none": uuid.Nil, "id": id, "unlimited": int64(authz.Unlimited)})
	var t Task
	if err == nil {
		t, err = pgx.CollectExactlyOneRow(rows, g.scanTask)
	}
	if errors.Is(err, pgx.ErrNoRows) {
		return Task{}, &whence.Error{Kind: whence.ErrNotFound, Reason: "TASK_NOT_FOUND", Message: "there is no task with this id",
			Metadata: map[string]string{"task": id.String()}}
	}
	if err != nil {
		return Task{}, fmt.Errorf("get a task: %w", pg.Translate(err))
	}
	return t, nil
}

// TaskFilter chooses tasks; what is zero does not choose.
type TaskFilter struct {
	Tenant string
	Root   uuid.UUID // of this tree
	Agent  string
	User   string
	State  TaskState
}

// The limits of a page.
const (
	DefaultPage = 100
	MaxPage     = 1000
)

// ListTasks returns tasks, newest first, and the token of the next page, which is
// empty after the last one. Tasks started meanwhile do not shift the pages.
// pageSize 0 means DefaultPage; more than MaxPage is cut to it. A token that
// ListTasks did not make is an ErrInvalid.
func (g *Gateway) ListTasks(ctx context.Context, f TaskFilter, pageSize int, pageToken string) (tasks []Task, next string, err error) {
	if pageSize <= 0 {
		pageSize = DefaultPage
	}
	pageSize = min(pageSize, MaxPage)
	var before uuid.UUID
	if pageToken != "" {
		if before, err = parseToken(pageToken); err != nil {
			return nil, "", err
		}
	}
	var q strings.Builder
	q.WriteString(taskSQL)
	args := pgx.NamedArgs{"none": uuid.Nil, "limit": pageSize + 1} // one more tells whether there is a next page
	and := func(use bool, condition, name string, value any) {
		if use {
			q.WriteString(condition)
			args[name] = value
		}
	}
	and(before != uuid.Nil, beforeSQL, "before", before)
	and(f.Tenant != "", byTenantSQL, "tenant", pg.Text(f.Tenant))
	and(f.Root != uuid.Nil, byRootSQL, "root", f.Root)
	and(f.Agent != "", byAgentSQL, "agent", pg.Text(f.Agent))
	and(f.User != "", byUserSQL, "user", pg.Text(f.User))
	switch f.State {
	case "":
	case TaskActive:
		and(true, activeSQL, "now", g.now())
	case TaskExpired:
		and(true, expiredSQL, "now", g.now())
	default:
		and(true, byStateSQL, "state", string(f.State))
	}
	q.WriteString(newestTaskSQL)
	rows, err := g.pool.Query(ctx, q.String(), args)
	if err == nil {
		tasks, err = pgx.CollectRows(rows, g.scanTask)
	}
	if err != nil {
		return nil, "", fmt.Errorf("list tasks: %w", pg.Translate(err))
	}
	if len(tasks) > pageSize {
		tasks = tasks[:pageSize]
		id := tasks[pageSize-1].ID
		next = base64.RawURLEncoding.EncodeToString(id[:])
	}
	return tasks, next, nil
}

func parseToken(s string) (id uuid.UUID, err error) {
	b, err := base64.RawURLEncoding.DecodeString(s)
	if err == nil {
		id, err = uuid.FromBytes(b)
	}
	if err != nil || id == uuid.Nil {
		return id, whence.Invalid("pageToken", "PAGE_TOKEN_INVALID", "the page token is not one that this call gave; start again without one")
	}
	return id, nil
}

func (g *Gateway) scanTask(row pgx.CollectableRow) (t Task, err error) {
	var scope []byte
	var ended *time.Time
	b := &t.Budget
	var limit, settled, reserved, remaining []int64
	err = row.Scan(&t.ID, &t.Root, &t.Parent, &t.Depth, &t.Tenant, &t.User, &t.Agent, &t.Purpose, &scope,
		&t.State, &b.Deadline, &limit, &settled, &reserved, &t.Created, &ended, &remaining, &t.Usage.EmbeddingCalls,
		&t.Actors, &t.Grant, &t.MaxDepth, &t.Thumbprint)
	if err != nil {
		return t, err
	}
	for i := range b.Limit {
		b.Limit[i], b.Used[i], b.Remaining[i] = limit[i], settled[i]+reserved[i], remaining[i]
	}
	t.Usage.EmbeddingTokens = settled[authz.EmbeddingTokens]
	t.Created, b.Deadline = t.Created.UTC(), b.Deadline.UTC()
	if ended != nil {
		t.Ended = ended.UTC()
	}
	if t.State == TaskActive && !g.now().Before(b.Deadline) {
		t.State = TaskExpired
	}
	return t, json.Unmarshal(scope, &t.Scope)
}

const (
	// A task that has ended or was revoked before keeps its state.
	endTreeSQL = `
update whence.tasks set state = 'ENDED', ended_at = @now
where id in (select id from whence.tasks
             where root_id = @root and @id = any(path) and state = 'ACTIVE'
             order by id for no key update)
returning id`
)

// EndTask ends the caller's own task and every task below it: their further calls
// are refused. It returns the task as it now stands and how many below it ended
// with it. It does not matter if some had ended already.
//
// With undo, what the task and those below it have executed is undone first, the last
// first; what cannot be undone stops that, and the task goes on.
//
// It ends them in the transaction that records the call, and done is told then.
func (g *Gateway) EndTask(ctx context.Context, s *Session, undo bool, done func(task Task, below int64, undone []uuid.UUID)) error {
	p := s.Principal
	var undone []uuid.UUID
	if undo {
		var err error
		if undone, err = g.undoAll(ctx, s); err != nil {
			return err
		}
	}
	end := func(ctx context.Context, tx pgx.Tx) error {
		args := pgx.NamedArgs{"id": p.Task, "root": p.Root, "now": g.now()}
		// Delegation locks the path above the new task, so from here on nothing
		// more comes to hang below this one.
		if _, err := lockPaths(ctx, tx, []uuid.UUID{p.Task}); err != nil {
			return fmt.Errorf("end a task: %w", err)
		}
		if undo {
			if left, err := g.standing(ctx, tx, p); err != nil || len(left) > 0 {
				return errors.Join(err, moreStands(left))
			}
		}
		rows, err := tx.Query(ctx, endTreeSQL, args)
		if err != nil {
			return fmt.Errorf("end a task: %w", err)
		}
		ended, err := pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
		if err != nil {
			return fmt.Errorf("end a task: %w", err)
		}
		task, err := g.getTask(ctx, tx, p.Task)
		if err == nil {
			done(task, int64(len(slices.DeleteFunc(ended, func(id uuid.UUID) bool { return id == p.Task }))), undone)
		}
		return err
	}
	// Ending what has ended changes nothing, so a replay is the same again.
	s.Write(Write{
		Effect: func(ctx context.Context, tx pgx.Tx) ([]byte, error) { return nil, end(ctx, tx) },
		Replay: func(ctx context.Context, tx pgx.Tx, _ []byte) error { return end(ctx, tx) },
	})
	return nil
}
