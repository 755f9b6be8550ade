package gateway

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/internal/pg"
)

// Revoked says what a revocation stopped.
type Revoked struct {
	At    time.Time
	Tasks int64 // that were active, those below included
}

const (
	// The tasks that are meant, and those below them. They are locked in the order
	// of ids, as all who lock several do.
	revokeTasksSQL = `
with meant as materialized (
    select id, root_id from whence.tasks where state = 'ACTIVE' and %s
), stopped as materialized (
    select t.id from whence.tasks t
    where t.state = 'ACTIVE' and t.root_id in (select root_id from meant) and t.path && array(select id from meant)
    order by t.id for no key update
)
update whence.tasks t set state = 'REVOKED', ended_at = @now from stopped s where t.id = s.id`

	ofTask   = `id = @task`
	ofAgent  = `tenant = @tenant and agent = @target`
	ofUser   = `tenant = @tenant and user_id = @target`
	ofTenant = `tenant = @target`
	ofGrant  = `grant_id = @task`
)

// meant says which tasks a revocation ends; those of a token or a key live on, with
// whatever other tokens they have.
var meant = map[authz.RevocationKind]string{authz.RevokedTask: ofTask, authz.RevokedAgent: ofAgent, authz.RevokedUser: ofUser, authz.RevokedTenant: ofTenant}

// Revoke is the stop button. The call's entry, the revocation and the end of the
// tasks are one transaction; it is in effect in this process before the call
// returns, and in every other within a second. Users stop only what acts for them.
func (g *Gateway) Revoke(ctx context.Context, s *Session, v authz.Revocation, done func(Revoked)) error {
	v.By = s.Principal.User
	var task uuid.UUID
	var err error
	if v.Kind == authz.RevokedTask {
		if task, err = g.revocable(ctx, s.Principal, v.Target); err != nil {
			return err
		}
	} else if s.Principal.Role == authz.RoleUser {
		return &whence.Error{Kind: whence.ErrDenied, Reason: "ROLE_INSUFFICIENT",
			Message: "users stop tasks that act for them, one by one, and delete their own grants; ask an operator for more"}
	}
	s.Note("revoked", string(v.Kind))
	s.Note("target", v.Target)
	s.Note("why", v.Reason)
	known := func() {}
	s.Write(Write{
		Effect: func(ctx context.Context, tx pgx.Tx) (_ []byte, err error) {
			if err := g.stops.Lock(ctx, tx); err != nil {
				return nil, err
			}
			if v, err = g.stops.Add(ctx, tx, v); err != nil {
				return nil, err
			}
			if v.Kind == authz.RevokedKey {
				if known, err = g.keys.RetireIn(ctx, tx, v.Target); err != nil {
					return nil, err
				}
			}
			n, err := g.revokeTasks(ctx, tx, meant[v.Kind], pgx.NamedArgs{"task": task, "tenant": v.Tenant, "target": v.Target})
			done(Revoked{At: v.At, Tasks: n})
			return nil, err
		},
		After: func(ctx context.Context) {
			known()
			if err := g.stops.Refresh(ctx); err != nil {
				g.log.ErrorContext(ctx, "a revocation is recorded, and calls are refused until it can be read back", "error", err)
			}
		},
	})
	return nil
}

// revocable tells whether there is such a task, and the caller may stop it.
func (g *Gateway) revocable(ctx context.Context, p *authz.Principal, id string) (uuid.UUID, error) {
	task, err := uuid.Parse(id)
	if err != nil {
		return task, whence.Invalid("task", "TASK_INVALID", "a task's ID is a UUID; ListTasks has those that there are")
	}
	t, err := g.GetTask(ctx, task)
	// What is another's looks like what is not there.
	if errors.Is(err, whence.ErrNotFound) || err == nil && p.Role == authz.RoleUser && (t.User != p.User || t.Tenant != p.Tenant) {
		err = &whence.Error{Kind: whence.ErrNotFound, Reason: "TASK_NOT_FOUND", Message: "there is no such task; ListTasks has those that there are",
			Metadata: map[string]string{"task": id}}
	}
	return task, err
}

func (g *Gateway) revokeTasks(ctx context.Context, tx pgx.Tx, which string, args pgx.NamedArgs) (int64, error) {
	if which == "" {
		return 0, nil
	}
	args["now"] = g.now()
	tag, err := tx.Exec(ctx, fmt.Sprintf(revokeTasksSQL, which), args)
	if err != nil {
		return 0, fmt.Errorf("revoke tasks: %w", pg.Translate(err))
	}
	return tag.RowsAffected(), nil
}

// DeleteGrant takes a grant back with the tasks that run under it, in the
// transaction that records the call.
func (g *Gateway) DeleteGrant(s *Session, id uuid.UUID) {
	s.Note("grant", id)
	s.Write(Write{Effect: func(ctx context.Context, tx pgx.Tx) ([]byte, error) {
		if err := g.stops.Lock(ctx, tx); err != nil {
			return nil, err
		}
		if err := g.known.DeleteGrant(ctx, tx, id); err != nil {
			return nil, err
		}
		_, err := g.revokeTasks(ctx, tx, ofGrant, pgx.NamedArgs{"task": id})
		return nil, err
	}})
}

// DeleteAgent removes an agent with its grants and the tasks of both.
func (g *Gateway) DeleteAgent(s *Session, tenant, name string) {
	s.Note("agent", name)
	s.Write(Write{Effect: func(ctx context.Context, tx pgx.Tx) ([]byte, error) {
		if err := g.stops.Lock(ctx, tx); err != nil {
			return nil, err
		}
		if err := g.known.DeleteAgent(ctx, tx, tenant, name); err != nil {
			return nil, err
		}
		_, err := g.revokeTasks(ctx, tx, ofAgent, pgx.NamedArgs{"tenant": tenant, "target": name})
		return nil, err
	}})
}

// Reinstate lets an agent, a user or a tenant in again.
func (g *Gateway) Reinstate(s *Session, kind authz.RevocationKind, tenant, target string, done func(time.Time)) {
	s.Note("reinstated", string(kind))
	s.Note("target", target)
	s.Write(Write{
		Effect: func(ctx context.Context, tx pgx.Tx) ([]byte, error) {
			at, err := g.stops.Reinstate(ctx, tx, kind, tenant, target)
			done(at)
			return nil, err
		},
		After: func(ctx context.Context) { _ = g.stops.Refresh(ctx) }, // what is not read stays refused
	})
}
