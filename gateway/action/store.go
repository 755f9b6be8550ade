package action

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/internal/pg"
)

// Registered is one version of an action.
type Registered struct {
	Definition
	Tenant    string
	Version   int32 // counts the definitions under a name from 1
	Digest    whence.Digest
	CreatedBy string
	Created   time.Time
	Current   bool
}

// Store keeps definitions in the memory database. It holds no state.
type Store struct{}

// Querier is a pool, a connection or a transaction.
type Querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

const (
	actionFields = `select tenant, name, version, definition, digest, created_by, created_at, current from whence.actions`

	currentSQL = actionFields + ` where tenant = @tenant and name = @name and current`
	versionSQL = actionFields + ` where tenant = @tenant and name = @name and version = @version`
	listSQL    = actionFields + ` where tenant = @tenant and current and name > @after order by name limit @limit`

	// Registering is rare, and one at a time what actions say of each other stays true.
	lockSQL = `select pg_advisory_xact_lock(hashtextextended(@tenant, 7310402418))`

	retireSQL = `update whence.actions set current = false where tenant = @tenant and name = @name and current`

	insertSQL = `
insert into whence.actions (tenant, name, version, definition, digest, created_by)
select @tenant, @name, coalesce(max(version), 0) + 1, @definition, @digest, @by
from whence.actions where tenant = @tenant and name = @name
returning version, created_at`

	// Current actions that run this one.
	usersSQL = `
select name from whence.actions
where tenant = @tenant and current and name <> @name and (
    jsonb_path_exists(definition, '$.saga.steps[*].*.action ? (@ == $name)', jsonb_build_object('name', @name::text))
    or definition #>> '{compensation,action}' = @name)
order by name`
)

func scan(row pgx.CollectableRow) (r Registered, err error) {
	var definition, digest []byte
	var name string
	if err := row.Scan(&r.Tenant, &name, &r.Version, &definition, &digest, &r.CreatedBy, &r.Created, &r.Current); err != nil {
		return r, err
	}
	r.Created = r.Created.UTC()
	copy(r.Digest[:], digest)
	return r, json.Unmarshal(definition, &r.Definition)
}

// Register makes a definition the current one of its name. The same definition as
// the current one changes nothing and returns that; fresh tells whether it is new. The
// definition must be valid; what it needs of a live table, [Runner.Check] has asked.
func (s Store) Register(ctx context.Context, tx pgx.Tx, tenant, by string, d Definition) (r Registered, fresh bool, err error) {
	if err := d.Validate(); err != nil {
		return r, false, err
	}
	definition, err := d.Canonical()
	if err != nil {
		return r, false, err
	}
	digest, err := d.Digest()
	if err != nil {
		return r, false, err
	}
	args := pgx.NamedArgs{"tenant": tenant, "name": d.Name, "definition": string(definition), "digest": digest[:], "by": by}
	if _, err := tx.Exec(ctx, lockSQL, args); err != nil {
		return r, false, fmt.Errorf("register an action: %w", pg.Translate(err))
	}
	switch r, err = s.Get(ctx, tx, tenant, d.Name); {
	case err == nil && r.Digest == digest:
		return r, false, nil
	case err != nil && !errors.Is(err, whence.ErrNotFound):
		return r, false, err
	}
	if err := s.checkSteps(ctx, tx, tenant, d); err != nil {
		return r, false, err
	}
	users, err := s.users(ctx, tx, tenant, d.Name)
	if err != nil {
		return r, false, err
	}
	if err := s.stillFits(ctx, tx, tenant, d, users); err != nil {
		return r, false, err
	}
	if _, err := tx.Exec(ctx, retireSQL, args); err != nil {
		return r, false, fmt.Errorf("register an action: %w", pg.Translate(err))
	}
	r = Registered{Definition: d, Tenant: tenant, Digest: digest, CreatedBy: by, Current: true}
	if err := tx.QueryRow(ctx, insertSQL, args).Scan(&r.Version, &r.Created); err != nil {
		return r, false, fmt.Errorf("register an action: %w", pg.Translate(err))
	}
	r.Created = r.Created.UTC()
	return r, true, nil
}

// Get returns the current version of an action; ACTION_NOT_FOUND.
func (Store) Get(ctx context.Context, q Querier, tenant, name string) (Registered, error) {
	return one(ctx, q, currentSQL, pgx.NamedArgs{"tenant": tenant, "name": name})
}

// Version returns one version of an action, current or not; ACTION_NOT_FOUND.
func (Store) Version(ctx context.Context, q Querier, tenant, name string, version int32) (Registered, error) {
	return one(ctx, q, versionSQL, pgx.NamedArgs{"tenant": tenant, "name": name, "version": version})
}

func one(ctx context.Context, q Querier, sql string, args pgx.NamedArgs) (r Registered, err error) {
	rows, err := q.Query(ctx, sql, args)
	if err == nil {
		r, err = pgx.CollectExactlyOneRow(rows, scan)
	}
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return r, notFound(fmt.Sprint(args["name"]))
	case err != nil:
		return r, fmt.Errorf("read an action: %w", pg.Translate(err))
	}
	return r, nil
}

func notFound(name string) error {
	return &whence.Error{Kind: whence.ErrNotFound, Reason: "ACTION_NOT_FOUND", Metadata: map[string]string{"action": name},
		Message: fmt.Sprintf("there is no action %q; ListActions shows an agent, and ListRegisteredActions an operator, those there are", name)}
}

// List returns a page of a tenant's current actions, by name, and the token of the
// next page.
func (Store) List(ctx context.Context, q Querier, tenant string, size int, token string) (_ []Registered, next string, err error) {
	after, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil || !plain(string(after)) {
		return nil, "", whence.Invalid("pageToken", "PAGE_TOKEN_INVALID", "the page token is not one that this call gave; start again without one")
	}
	rows, err := q.Query(ctx, listSQL, pgx.NamedArgs{"tenant": tenant, "after": string(after), "limit": size + 1})
	if err != nil {
		return nil, "", fmt.Errorf("list actions: %w", pg.Translate(err))
	}
	all, err := pgx.CollectRows(rows, scan)
	if err != nil {
		return nil, "", fmt.Errorf("list actions: %w", pg.Translate(err))
	}
	if len(all) > size {
		all = all[:size]
		next = base64.RawURLEncoding.EncodeToString([]byte(all[size-1].Name))
	}
	return all, next, nil
}

// Unregister takes an action out of use; its versions stay. One that other actions
// run stays as well: ACTION_CONFLICT.
func (s Store) Unregister(ctx context.Context, tx pgx.Tx, tenant, name string) error {
	args := pgx.NamedArgs{"tenant": tenant, "name": name}
	if _, err := tx.Exec(ctx, lockSQL, args); err != nil {
		return fmt.Errorf("unregister an action: %w", pg.Translate(err))
	}
	users, err := s.users(ctx, tx, tenant, name)
	if err != nil {
		return err
	}
	if len(users) > 0 {
		return conflict(users[0], fmt.Sprintf("the action %q runs %q: unregister it first, or have it run another", users[0], name))
	}
	tag, err := tx.Exec(ctx, retireSQL, args)
	switch {
	case err != nil:
		return fmt.Errorf("unregister an action: %w", pg.Translate(err))
	case tag.RowsAffected() == 0:
		return notFound(name)
	}
	return nil
}

func (Store) users(ctx context.Context, q Querier, tenant, name string) ([]string, error) {
	rows, err := q.Query(ctx, usersSQL, pgx.NamedArgs{"tenant": tenant, "name": name})
	if err != nil {
		return nil, fmt.Errorf("look for actions that run another: %w", pg.Translate(err))
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("look for actions that run another: %w", pg.Translate(err))
	}
	return names, nil
}

func conflict(user, message string) error {
	return &whence.Error{Kind: whence.ErrPrecondition, Reason: "ACTION_CONFLICT", Message: message, Metadata: map[string]string{"action": user}}
}
