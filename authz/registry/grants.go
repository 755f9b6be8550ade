package registry

import (
	"context"
	"encoding/json"
	"fmt"
	"reflect"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/authz/federation"
	"github.com/whence-db/whence/internal/pg"
)

// Grant is a standing permission: the agent may act for the user, or for each user
// of the group, within this scope and budget.
type Grant struct {
	ID            uuid.UUID
	Tenant, Agent string
	User, Group   string // one of the two
	Scope         authz.ScopeSpec
	Calls         int64         // that each task under it may make
	Limits        authz.Limits  // of the other meters, of each task under it
	Lifetime      time.Duration // that each task under it may have
	MaxDepth      int           // of tasks delegated under it
	Proof         bool          // its tokens are bound to a key of the agent's
	CreatedBy     string
	Created       time.Time
	Expires       time.Time // zero: never
}

// The bounds of a grant that sets none.
const (
	DefaultCalls    = 1000
	DefaultLifetime = time.Hour
	DefaultDepth    = 3
	// MaxDepth is the deepest that tasks may be delegated under any grant: a chain
	// of actors has to fit into a token.
	MaxDepth = authz.MaxActors - 1
)

// Validate tells what is wrong with a grant, as an ErrInvalid about one field.
func (g Grant) Validate(now time.Time) error {
	switch {
	case (g.User == "") == (g.Group == ""):
		return whence.Invalid("user", "GRANT_INVALID", "say for whom the agent may act: a user or a group")
	case g.Calls < 1 || g.Calls > authz.MaxCalls:
		return whence.Invalid("budget.calls", "BUDGET_INVALID", fmt.Sprintf("each task under a grant needs a budget of 1 to %d calls", authz.MaxCalls))
	case g.Limits.Validate() != nil:
		return g.Limits.Validate()
	case g.Lifetime < time.Second || g.Lifetime > authz.MaxLifetime:
		return whence.Invalid("taskLifetime", "LIFETIME_INVALID", "tasks live from 1s to 24h")
	case g.MaxDepth < 0 || g.MaxDepth > MaxDepth:
		return whence.Invalid("maxDepth", "DEPTH_INVALID", fmt.Sprintf("tasks are delegated 0 to %d deep", MaxDepth))
	case !g.Expires.IsZero() && !g.Expires.After(now):
		return whence.Invalid("expireTime", "EXPIRE_TIME_INVALID", "this time has passed; give a later one, or none")
	}
	if n := len(toJSON(g.Scope)); n > maxScope {
		return whence.Invalid("scope", "SCOPE_TOO_LARGE", fmt.Sprintf("this scope takes %d bytes of at most %d, and a token for it would be too large; name fewer tables and subjects", n, maxScope))
	}
	return g.Scope.Validate()
}

const (
	grantsSQL = `
select id, tenant, agent, coalesce(user_id, ''), coalesce(group_name, ''), scope, calls, limits, task_lifetime, max_depth, proof, created_by, created_at, expires_at
from whence.grants`

	grantSQL     = grantsSQL + ` where id = @id`
	lockGrantSQL = grantSQL + ` for no key update`

	// Those for the user alone come before those for a group, newer before older.
	grantsForSQL = grantsSQL + `
where tenant = @tenant and agent = @agent and (user_id = @user or group_name = any(@groups)) and (expires_at is null or expires_at > @now)
order by group_name is not null, id desc`

	// Ids are in the order of time.
	listGrantsSQL = grantsSQL + `
where (@tenant = '' or tenant = @tenant) and (@agent = '' or agent = @agent) and (@user = '' or user_id = @user)
  and (@after = '' or id::text < @after)
order by id::text desc limit @limit`

	insertGrantSQL = `
insert into whence.grants (id, tenant, agent, user_id, group_name, scope, calls, limits, task_lifetime, max_depth, proof, created_by, created_at, expires_at)
values (@id, @tenant, @agent, @user, @group, @scope, @calls, @limits, @lifetime, @depth, @proof, @by, @created, @expires)`

	updateGrantSQL = `
update whence.grants set scope = @scope, calls = @calls, limits = @limits, task_lifetime = @lifetime, max_depth = @depth, proof = @proof, expires_at = @expires
where id = @id`

	deleteGrantSQL = `delete from whence.grants where id = @id`
)

func scanGrant(row pgx.CollectableRow) (g Grant, err error) {
	var scope, limits []byte
	var expires *time.Time
	if err := row.Scan(&g.ID, &g.Tenant, &g.Agent, &g.User, &g.Group, &scope, &g.Calls, &limits, &g.Lifetime, &g.MaxDepth, &g.Proof,
		&g.CreatedBy, &g.Created, &expires); err != nil {
		return g, err
	}
	g.Created = g.Created.UTC()
	if expires != nil {
		g.Expires = expires.UTC()
	}
	if g.Limits, err = authz.ReadLimits(limits); err != nil {
		return g, err
	}
	return g, json.Unmarshal(scope, &g.Scope)
}

func (g Grant) limits() authz.Limits {
	if g.Limits == nil {
		return authz.Limits{}
	}
	return g.Limits
}

func (g Grant) args() pgx.NamedArgs {
	args := pgx.NamedArgs{"id": g.ID, "tenant": g.Tenant, "agent": g.Agent, "user": optional(g.User), "group": optional(g.Group),
		"scope": toJSON(g.Scope), "calls": g.Calls, "limits": toJSON(g.limits()), "lifetime": g.Lifetime, "depth": g.MaxDepth, "proof": g.Proof,
		"by": g.CreatedBy, "created": g.Created, "expires": nil}
	if !g.Expires.IsZero() {
		args["expires"] = g.Expires
	}
	return args
}

const (
	maxGrants = 100      // of an agent for one user or group
	maxScope  = 10 << 10 // bytes of a grant's scope: what it gives has to fit into a token

	countGrantsSQL = `
select count(*) from whence.grants
where tenant = @tenant and agent = @agent and user_id is not distinct from @user and group_name is not distinct from @group`
)

// roomFor refuses more grants than anybody has a use for: an exchange reads them all.
func (r *Registry) roomFor(ctx context.Context, tx pgx.Tx, g Grant) error {
	var n int
	if err := tx.QueryRow(ctx, countGrantsSQL, g.args()).Scan(&n); err != nil {
		return fmt.Errorf("create a grant: %w", pg.Translate(err))
	}
	if n >= maxGrants {
		return &whence.Error{Kind: whence.ErrPrecondition, Reason: "GRANTS_TOO_MANY",
			Message: fmt.Sprintf("the agent has %d grants for this user or group, as many as it may have; change one of them, or delete some", n)}
	}
	return nil
}

// CreateGrant gives a permission.
func (r *Registry) CreateGrant(ctx context.Context, tx pgx.Tx, g Grant) error {
	if err := g.Validate(g.Created); err != nil {
		return err
	}
	if err := r.roomFor(ctx, tx, g); err != nil {
		return err
	}
	_, err := tx.Exec(ctx, insertGrantSQL, g.args())
	switch {
	case violates(err, "grants_tenant_agent_fkey"):
		return missing("agent", g.Agent)
	case err != nil:
		return fmt.Errorf("create a grant: %w", pg.Translate(err))
	}
	return nil
}

// ChangeGrant lets change have its way with a grant and stores it. Tasks that were
// started under it keep what they were given.
func (r *Registry) ChangeGrant(ctx context.Context, tx pgx.Tx, id uuid.UUID, now time.Time, change func(*Grant) error) (Grant, error) {
	g, found, err := one(ctx, tx, scanGrant, lockGrantSQL, pgx.NamedArgs{"id": id})
	switch {
	case err != nil:
		return g, fmt.Errorf("change a grant: %w", pg.Translate(err))
	case !found:
		return g, missing("grant", id.String())
	}
	if err := change(&g); err != nil {
		return g, err
	}
	if err := g.Validate(now); err != nil {
		return g, err
	}
	if _, err = tx.Exec(ctx, updateGrantSQL, g.args()); err != nil {
		return g, fmt.Errorf("change a grant: %w", pg.Translate(err))
	}
	return g, nil
}

// DeleteGrant takes a permission back; tasks under it are for the caller to revoke.
func (r *Registry) DeleteGrant(ctx context.Context, tx pgx.Tx, id uuid.UUID) error {
	tag, err := tx.Exec(ctx, deleteGrantSQL, pgx.NamedArgs{"id": id})
	switch {
	case err != nil:
		return fmt.Errorf("delete a grant: %w", pg.Translate(err))
	case tag.RowsAffected() == 0:
		return missing("grant", id.String())
	}
	return nil
}

// Grant returns one grant.
func (r *Registry) Grant(ctx context.Context, id uuid.UUID) (Grant, error) {
	g, found, err := one(ctx, r.pool, scanGrant, grantSQL, pgx.NamedArgs{"id": id})
	switch {
	case err != nil:
		return g, fmt.Errorf("read a grant: %w", pg.Translate(err))
	case !found:
		return g, missing("grant", id.String())
	}
	return g, nil
}

const (
	holdGrantSQL  = grantSQL + ` for share`
	holdIssuerSQL = issuerByNameSQL + ` for share`
)

// Hold tells whether a grant, an agent and an issuer are still as they were read, and
// keeps them so until tx ends.
func (r *Registry) Hold(ctx context.Context, tx pgx.Tx, g Grant, a Agent, i federation.Issuer) (same bool, err error) {
	held, found, err := one(ctx, tx, scanGrant, holdGrantSQL, pgx.NamedArgs{"id": g.ID})
	if err != nil || !found || !reflect.DeepEqual(held, g) {
		return false, pg.Translate(err)
	}
	agent, found, err := r.HoldAgent(ctx, tx, a.Tenant, a.Name)
	if err != nil || !found || !reflect.DeepEqual(agent, a) {
		return false, err
	}
	issuer, found, err := one(ctx, tx, scanIssuer, holdIssuerSQL, pgx.NamedArgs{"name": i.Name})
	return err == nil && found && reflect.DeepEqual(issuer.Issuer, i), pg.Translate(err)
}

// GrantsFor returns the grants under which an agent may act for a user of groups,
// in the order in which they are to be tried.
func (r *Registry) GrantsFor(ctx context.Context, tenant, agent, user string, groups []string, now time.Time) ([]Grant, error) {
	rows, err := r.pool.Query(ctx, grantsForSQL, pgx.NamedArgs{"tenant": tenant, "agent": agent, "user": user, "groups": groups, "now": now})
	if err != nil {
		return nil, pg.Translate(err)
	}
	all, err := pgx.CollectRows(rows, scanGrant)
	return all, pg.Translate(err)
}

// GrantFilter chooses grants; what is empty does not choose.
type GrantFilter struct{ Tenant, Agent, User string }

// Grants returns a page of grants, newest first, and the token of the next one.
func (r *Registry) Grants(ctx context.Context, f GrantFilter, p Page) ([]Grant, string, error) {
	all, next, err := page(ctx, r.pool, scanGrant, func(g Grant) string { return g.ID.String() }, p,
		listGrantsSQL, pgx.NamedArgs{"tenant": f.Tenant, "agent": f.Agent, "user": f.User})
	return all, next, pg.Translate(err)
}
