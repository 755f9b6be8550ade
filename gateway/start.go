package gateway

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/audit"
	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/internal/pg"
)

const (
	// MaxDepth is the depth of the deepest task; a root's is 0.
	MaxDepth = 3
	// MaxTokenLifetime is the longest that a task's token is good for, however long
	// the task is. Only the development task's is good for all of it.
	MaxTokenLifetime = 15 * time.Minute

	startCall = "oauth/token" // what the log calls the starting of a root task
)

// Started is a new task with the credential that works in it.
type Started struct {
	Task    Task
	Token   string
	Expires time.Time // of the token
}

// StartTask starts a root task for an agent, on the word of an operator who is an
// admin and for whom the agent then acts. It is a call of its own, with its own
// entry; what the request lacks is an ErrInvalid.
func (g *Gateway) StartTask(ctx context.Context, bearer string, r authz.TaskRequest) (token string, expires time.Time, task uuid.UUID, err error) {
	call := Call{Name: startCall, Bearer: bearer, Role: authz.RoleAdmin,
		Prepare: func() (digest [32]byte, err error) {
			b, err := json.Marshal(r)
			if err != nil {
				return digest, err
			}
			return sha256.Sum256(b), r.Validate()
		}}
	var out Started
	err = g.Do(ctx, call, func(ctx context.Context, s *Session) error {
		t := g.root(s.Principal.Tenant, s.Principal.User, r)
		var err error
		if out, err = g.issue(t, nil, MaxTokenLifetime); err != nil {
			return err
		}
		s.noteTask(t)
		return pg.InTx(ctx, g.pool, func(tx pgx.Tx) error { return insertTask(ctx, tx, t, []uuid.UUID{t.ID}) })
	})
	if err != nil {
		return "", time.Time{}, uuid.Nil, err
	}
	return out.Token, out.Expires, out.Task.ID, nil
}

// RefuseTask records a request for a root task that was not fit for StartTask. It
// returns the reason, or why the caller is not even known.
func (g *Gateway) RefuseTask(ctx context.Context, bearer string, reason error) error {
	return g.Refuse(ctx, Call{Name: startCall, Bearer: bearer, Role: authz.RoleAdmin}, reason)
}

// StartDevTask starts the task of a development server, which nobody delegates:
// it may read every table and subject, write notes and delegate. The token is
// good as long as the task, which lasts at most a day. It does not need Run.
func (g *Gateway) StartDevTask(ctx context.Context, lifetime time.Duration) (token string, err error) {
	t := g.root(authz.DefaultTenant, "dev", authz.TaskRequest{
		Agent: "dev-agent", Purpose: "development",
		Scope: authz.ScopeSpec{Type: authz.DetailType, AllTables: true, AllSubjects: true,
			Actions: []authz.Action{authz.MemoryRead, authz.MemoryWrite, authz.TaskDelegate}},
		Calls: 1_000_000, Lifetime: min(lifetime, authz.MaxLifetime),
	})
	out, err := g.issue(t, nil, authz.MaxLifetime)
	if err != nil {
		return "", err
	}
	entry := audit.Entry{At: t.Created, Tenant: t.Tenant, User: t.User, Call: "dev/StartTask", Decision: audit.Allowed,
		Detail: map[string]any{"startedTask": t.ID, "agent": t.Agent}}
	err = pg.InTx(ctx, g.pool, func(tx pgx.Tx) error {
		if err := insertTask(ctx, tx, t, []uuid.UUID{t.ID}); err != nil {
			return err
		}
		return g.audit.Append(ctx, tx, []audit.Entry{entry})
	})
	if err != nil {
		return "", fmt.Errorf("start the development task: %w", err)
	}
	return out.Token, nil
}

// Delegate starts a task below the caller's own, for another agent and the same
// user: its scope lies within the caller's, its deadline and its budget within
// what the tasks above it have left. Calls it makes are charged to those too.
// Calls 0 asks for all that is left, Lifetime 0 for as long as the caller's task.
// Asking for more is refused, not cut down: SCOPE_WIDENED, BUDGET_EXHAUSTED,
// LIFETIME_INVALID, DEPTH_EXCEEDED.
func (g *Gateway) Delegate(ctx context.Context, s *Session, r authz.TaskRequest) (out Started, err error) {
	p := s.Principal
	if p.Depth >= MaxDepth {
		return Started{}, &whence.Error{Kind: whence.ErrPrecondition, Reason: "DEPTH_EXCEEDED",
			Message:  fmt.Sprintf("this task is at depth %d and tasks go no deeper; do the work in this task", p.Depth),
			Metadata: map[string]string{"depth": fmt.Sprint(p.Depth), "maxDepth": fmt.Sprint(MaxDepth)}}
	}
	scope, err := p.Scope.Narrow(r.Scope)
	if err != nil {
		return Started{}, err
	}
	r.Scope = scope.Spec()
	err = pg.InTx(ctx, g.pool, func(tx pgx.Tx) error {
		all, err := lockPaths(ctx, tx, []uuid.UUID{p.Task})
		if err != nil {
			return err
		}
		up, err := all.path(p.Task, g.now())
		if err != nil {
			return err
		}
		t, err := g.child(p, up, r)
		if err != nil {
			return err
		}
		if out, err = g.issue(t, append([]string{t.Agent}, p.Actors...), MaxTokenLifetime); err != nil {
			return err
		}
		path := append(append([]uuid.UUID{}, up[0].path...), t.ID)
		return insertTask(ctx, tx, t, path)
	})
	if err != nil {
		return Started{}, fmt.Errorf("delegate: %w", err)
	}
	s.noteTask(out.Task)
	return out, nil
}

func (s *Session) noteTask(t Task) {
	s.Note("startedTask", t.ID)
	s.Note("agent", t.Agent)
	s.Note("purpose", t.Purpose)
	s.Note("scope", t.Scope)
	s.Note("calls", t.Budget.Limit)
	s.Note("deadline", t.Budget.Deadline)
}

func (g *Gateway) root(tenant, user string, r authz.TaskRequest) Task {
	t := newTask(g.now(), tenant, user, r)
	t.Root = t.ID
	return t
}

// child makes the task below up[0], within what up has left.
func (g *Gateway) child(p *authz.Principal, up []*node, r authz.TaskRequest) (Task, error) {
	now, end := g.now(), up[0].deadline
	if r.Calls == 0 {
		r.Calls = max(1, left(up)) // if none is left, one is too many
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
		if r.Calls > n.limit-n.used {
			return Task{}, n.exhausted(r.Calls)
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
		State: TaskActive, Created: now,
		Budget: Budget{Limit: r.Calls, Remaining: r.Calls, Deadline: now.Add(r.Lifetime)}}
}

// issue signs the credential of a task that is about to be inserted.
func (g *Gateway) issue(t Task, actors []string, longest time.Duration) (Started, error) {
	token, expires, err := g.issuer.IssueTask(authz.TaskClaims{
		User: t.User, Agent: t.Agent, Actors: actors, Tenant: t.Tenant,
		Task: t.ID, Root: t.Root, Parent: t.Parent, Depth: t.Depth, Scope: t.Scope,
		Lifetime: min(longest, t.Budget.Deadline.Sub(t.Created)),
	})
	return Started{Task: t, Token: token, Expires: expires}, err
}

const insertTaskSQL = `
insert into whence.tasks (id, root_id, parent_id, path, depth, tenant, user_id, agent, purpose, scope,
       calls_limit, deadline, created_at)
values (@id, @root, nullif(@parent::uuid, @none), @path, @depth, @tenant, @user, @agent, @purpose, @scope,
       @limit, @deadline, @created)`

func insertTask(ctx context.Context, tx pgx.Tx, t Task, path []uuid.UUID) error {
	scope, err := json.Marshal(t.Scope)
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, insertTaskSQL, pgx.NamedArgs{"none": uuid.Nil,
		"id": t.ID, "root": t.Root, "parent": t.Parent, "path": path, "depth": t.Depth,
		"tenant": pg.Text(t.Tenant), "user": pg.Text(t.User), "agent": pg.Text(t.Agent), "purpose": pg.Text(t.Purpose),
		"scope": string(pg.JSON(scope)), "limit": t.Budget.Limit, "deadline": t.Budget.Deadline, "created": t.Created})
	return err
}
