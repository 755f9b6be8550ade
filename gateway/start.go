package gateway

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/audit"
	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/authz/registry"
	"github.com/whence-db/whence/internal/pg"
)

// MaxTokenLifetime is the longest that a task's token is good for, however long the
// task is: its agent comes for another one. Only the development task's is good for
// all of it.
const MaxTokenLifetime = 5 * time.Minute

// Started is a new task with the credential that works in it.
type Started struct {
	Task    Task
	Token   string
	Expires time.Time // of the token
}

// StartOwn starts a root task on the word of whoever runs the server, whom no
// grant binds: the task of a development server. Its token is good as long as the
// task, which lasts at most a day. It does not need Run.
func (g *Gateway) StartOwn(ctx context.Context, user string, r authz.TaskRequest) (out Started, err error) {
	if err := r.Validate(); err != nil {
		return out, err
	}
	t := newTask(g.now(), authz.DefaultTenant, user, r)
	t.Root, t.MaxDepth = t.ID, registry.DefaultDepth
	if out, err = g.issue(t, authz.MaxLifetime); err != nil {
		return out, err
	}
	entry := audit.Entry{At: t.Created, Tenant: t.Tenant, User: t.User, Call: "server/StartTask", Decision: audit.Allowed,
		Detail: map[string]any{"startedTask": t.ID, "agent": t.Agent}}
	err = pg.InTx(ctx, g.pool, func(tx pgx.Tx) error {
		if err := insertTask(ctx, tx, t, []uuid.UUID{t.ID}); err != nil {
			return err
		}
		return g.audit.Append(ctx, tx, []audit.Entry{entry})
	})
	if err != nil {
		return out, fmt.Errorf("start a task: %w", err)
	}
	return out, nil
}

// Delegate starts a task below the caller's own, for another agent and the same
// user: its scope lies within the caller's, its deadline and its budget within
// what the tasks above it have left. Calls it makes are charged to those too.
// Calls 0 asks for all that is left, Lifetime 0 for as long as the caller's task.
// Asking for more is refused, not cut down: SCOPE_WIDENED, BUDGET_EXHAUSTED,
// LIFETIME_INVALID, DEPTH_EXCEEDED.
//
// The task starts in the transaction that records the call, and done is told of it
// then. The same idempotency key starts one task, and gives another token of it.
func (g *Gateway) Delegate(s *Session, r authz.TaskRequest, done func(Started)) {
	p := s.Principal
	s.Write(Write{
		Effect: func(ctx context.Context, tx pgx.Tx) ([]byte, error) {
			out, err := g.startBelow(ctx, tx, p, r)
			if err != nil {
				return nil, err
			}
			s.noteTask(out.Task)
			done(out)
			return out.Task.ID[:], nil
		},
		Replay: func(ctx context.Context, tx pgx.Tx, reply []byte) error {
			id, err := uuid.FromBytes(reply)
			if err != nil {
				return err
			}
			out, err := g.again(ctx, tx, id)
			if err != nil {
				return err
			}
			s.noteTask(out.Task)
			done(out)
			return nil
		},
	})
}

// again gives another token of a task, as the task is.
func (g *Gateway) again(ctx context.Context, db querier, id uuid.UUID) (Started, error) {
	t, err := g.getTask(ctx, db, id)
	if err != nil {
		return Started{}, err
	}
	n := node{id: t.ID, state: t.State, deadline: t.Budget.Deadline.Add(-time.Second)} // a token lives for a second at least
	if err := n.alive(g.now()); err != nil {
		return Started{}, err
	}
	return g.issue(t, MaxTokenLifetime)
}

// narrow is the scope of a task to be delegated, which lies within the caller's own
// and within the agent's ceiling, if it is one that is known here; that stays as it is
// until tx ends.
func (g *Gateway) narrow(ctx context.Context, tx pgx.Tx, p *authz.Principal, r authz.TaskRequest) (none authz.ScopeSpec, err error) {
	scope, err := p.Scope.Narrow(r.Scope)
	if err != nil {
		return none, err
	}
	agent, found, err := g.known.HoldAgent(ctx, tx, p.Tenant, r.Agent)
	if err != nil || !found || agent.Ceiling == nil {
		return scope.Spec(), err
	}
	return scope.Spec(), authz.Within(*agent.Ceiling, scope.Spec(), r.Agent)
}

// startBelow starts a task below the caller's in a transaction.
func (g *Gateway) startBelow(ctx context.Context, tx pgx.Tx, p *authz.Principal, r authz.TaskRequest) (out Started, err error) {
	actors := append([]string{r.Agent}, p.Actors...)
	if err := g.stops.Hold(ctx, tx, p.Tenant, p.User, actors); err != nil {
		return out, err
	}
	all, err := lockPaths(ctx, tx, []uuid.UUID{p.Task})
	if err != nil {
		return out, err
	}
	up, err := all.path(p.Task, g.now())
	if err != nil {
		return out, err
	}
	if r.Scope, err = g.narrow(ctx, tx, p, r); err != nil {
		return out, err
	}
	if p.Depth >= up[0].maxDepth {
		return out, &whence.Error{Kind: whence.ErrPrecondition, Reason: "DEPTH_EXCEEDED",
			Message:  fmt.Sprintf("this task is at depth %d and the grant that it runs under lets tasks go no deeper than %d; do the work in this task", p.Depth, up[0].maxDepth),
			Metadata: map[string]string{"depth": fmt.Sprint(p.Depth), "maxDepth": fmt.Sprint(up[0].maxDepth)}}
	}
	t, err := g.child(p, up, r)
	if err != nil {
		return out, err
	}
	t.Actors, t.Grant, t.MaxDepth = actors, up[0].grant, up[0].maxDepth
	t.Thumbprint = p.Thumbprint
	if out, err = g.issue(t, MaxTokenLifetime); err != nil {
		return out, err
	}
	return out, insertTask(ctx, tx, t, append(append([]uuid.UUID{}, up[0].path...), t.ID))
}

func (s *Session) noteTask(t Task) {
	s.Note("startedTask", t.ID)
	s.Note("agent", t.Agent)
	s.Note("purpose", t.Purpose)
	s.Note("scope", t.Scope)
	s.Note("budget", authz.LimitsOf(t.Budget.Limit))
	s.Note("deadline", t.Budget.Deadline)
}

// child makes the task below up[0], within what up has left.
func (g *Gateway) child(p *authz.Principal, up []*node, r authz.TaskRequest) (Task, error) {
	now, end := g.now(), up[0].deadline
	if r.Calls == 0 { // if none is left, one is too many
		r.Calls = up[0].unspent()[authz.Calls]
		for _, n := range up {
			r.Calls = min(r.Calls, n.unspent()[authz.Calls])
		}
		r.Calls = max(1, r.Calls)
	}
	if r.Lifetime == 0 {
		r.Lifetime = end.Sub(now)
	}
	if err := r.Validate(); err != nil {
		return Task{}, err
	}
	t := newTask(now, p.Tenant, p.User, r)
	t.Root, t.Parent, t.Depth = p.Root, p.Task, p.Depth+1
	for _, n := range up {
		for m, wanted := range t.Budget.Limit {
			if wanted != authz.Unlimited && wanted > n.unspent()[m] && authz.Meter(m) != authz.Concurrency {
				return Task{}, n.exhausted(authz.Meter(m), wanted)
			}
		}
	}
	if t.Budget.Deadline.After(end) {
		return Task{}, whence.Invalid("lifetime", "LIFETIME_INVALID",
			fmt.Sprintf("this task ends in %s, and so must what it delegates", end.Sub(t.Created).Truncate(time.Second)))
	}
	return t, nil
}

func newTask(now time.Time, tenant, user string, r authz.TaskRequest) Task {
	now = now.UTC()
	return Task{ID: uuid.Must(uuid.NewV7()), Tenant: tenant, User: user, Agent: r.Agent, Purpose: r.Purpose, Scope: r.Scope,
		Actors: []string{r.Agent}, State: TaskActive, Created: now,
		Budget: Budget{Limit: r.Amounts(), Remaining: r.Amounts(), Deadline: now.Add(r.Lifetime)}}
}

// issue signs the credential of a task.
func (g *Gateway) issue(t Task, longest time.Duration) (Started, error) {
	token, expires, err := g.issuer.IssueTask(authz.TaskClaims{
		User: t.User, Agent: t.Agent, Actors: t.Actors, Tenant: t.Tenant,
		Task: t.ID, Root: t.Root, Parent: t.Parent, Depth: t.Depth, Scope: t.Scope, Thumbprint: t.Thumbprint,
		// The task's deadline holds, whatever its token says.
		Lifetime: min(longest, max(t.Budget.Deadline.Sub(g.now()), time.Second)),
	})
	return Started{Task: t, Token: token, Expires: expires}, err
}

const insertTaskSQL = `
insert into whence.tasks (id, root_id, parent_id, path, depth, tenant, user_id, agent, purpose, scope,
       limits, deadline, created_at, grant_id, actors, max_depth, thumbprint)
values (@id, @root, nullif(@parent::uuid, @none), @path, @depth, @tenant, @user, @agent, @purpose, @scope,
       @limit, @deadline, @created, nullif(@grant::uuid, @none), @actors, @maxDepth, @thumbprint)`

func insertTask(ctx context.Context, tx pgx.Tx, t Task, path []uuid.UUID) error {
	scope, err := json.Marshal(t.Scope)
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, insertTaskSQL, pgx.NamedArgs{"none": uuid.Nil,
		"id": t.ID, "root": t.Root, "parent": t.Parent, "path": path, "depth": t.Depth,
		"tenant": pg.Text(t.Tenant), "user": pg.Text(t.User), "agent": pg.Text(t.Agent), "purpose": pg.Text(t.Purpose),
		"scope": string(pg.JSON(scope)), "limit": t.Budget.Limit[:], "deadline": t.Budget.Deadline, "created": t.Created,
		"grant": t.Grant, "actors": t.Actors, "maxDepth": t.MaxDepth, "thumbprint": t.Thumbprint})
	return err
}
