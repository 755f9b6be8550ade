package authz

import (
	"context"
	"encoding/base64"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/internal/pg"
)

// revocationsLock is held by whoever revokes, alone, and by whoever starts a task,
// together: so either the task is there to be stopped, or its start sees that it may
// not be.
const revocationsLock int64 = 0x77686e7265766f // "whnrevo"

const (
	lockRevocationsSQL = `select pg_advisory_xact_lock(@lock)`
	holdRevocationsSQL = `select pg_advisory_xact_lock_shared(@lock)`

	// A second use of the button gives the reason anew and changes nothing else.
	insertRevocationSQL = `
insert into whence.revocations (kind, tenant, target, reason, revoked_by, expires_at, change)
values (@kind, @tenant, @target, @reason, @by, @expires, nextval('whence.revocation_changes'))
on conflict (kind, tenant, target) where reinstated_at is null
do update set reason = excluded.reason, revoked_by = excluded.revoked_by, change = nextval('whence.revocation_changes')
returning id, at`

	reinstateSQL = `
update whence.revocations set reinstated_at = clock_timestamp(), change = nextval('whence.revocation_changes')
where kind = @kind and tenant = @tenant and target = @target and reinstated_at is null
returning reinstated_at`

	stoppedSQL = `
select kind, tenant, target, reason from whence.revocations
where reinstated_at is null
  and (kind = 'TENANT' and target = @tenant or kind = 'USER' and tenant = @tenant and target = @user
       or kind = 'AGENT' and tenant = @tenant and target = any(@agents))
order by id limit 1`

	listRevocationsSQL = `
select id, kind, tenant, target, reason, revoked_by, at, reinstated_at from whence.revocations
where id < @before order by id desc limit @limit`
)

// Lock keeps tasks from starting until tx ends: whoever revokes calls it first.
func (r *Revocations) Lock(ctx context.Context, tx pgx.Tx) error {
	_, err := tx.Exec(ctx, lockRevocationsSQL, pgx.NamedArgs{"lock": revocationsLock})
	return pg.Translate(err)
}

// Hold keeps revocations away until tx ends, and refuses when one stands against
// the tenant, the user or an agent of the chain: whoever starts a task calls it
// first.
func (r *Revocations) Hold(ctx context.Context, tx pgx.Tx, tenant, user string, agents []string) error {
	if _, err := tx.Exec(ctx, holdRevocationsSQL, pgx.NamedArgs{"lock": revocationsLock}); err != nil {
		return pg.Translate(err)
	}
	rows, err := tx.Query(ctx, stoppedSQL, pgx.NamedArgs{"tenant": tenant, "user": user, "agents": agents})
	if err != nil {
		return pg.Translate(err)
	}
	var s stop
	var reason string
	found := false
	if _, err := pgx.ForEachRow(rows, []any{&s.kind, &s.tenant, &s.target, &reason}, func() error { found = true; return nil }); err != nil {
		return pg.Translate(err)
	}
	if found {
		return s.refusal(reason)
	}
	return nil
}

// Add records a revocation in the transaction that has called Lock. It is in effect
// in this process after Refresh, in others within a second.
func (r *Revocations) Add(ctx context.Context, tx pgx.Tx, v Revocation) (Revocation, error) {
	if !plain(v.Target) || v.Tenant != "" && !plain(v.Tenant) {
		return v, whence.Invalid("target", "REVOCATION_INVALID",
			"no token carries such a name: write it as the audit log has it, in Unicode's form NFC, without white space at its ends or characters that show nothing")
	}
	args := pgx.NamedArgs{"kind": string(v.Kind), "tenant": pg.Text(v.Tenant), "target": pg.Text(v.Target), "reason": pg.Text(v.Reason), "by": pg.Text(v.By), "expires": nil}
	if v.Kind == RevokedToken || v.Kind == RevokedTask {
		args["expires"] = r.clock().Add(keepRevoked)
	}
	if err := tx.QueryRow(ctx, insertRevocationSQL, args).Scan(&v.ID, &v.At); err != nil {
		return v, fmt.Errorf("revoke: %w", pg.Translate(err))
	}
	return v, nil
}

// Reinstate lets an agent, a user or a tenant in again. What was given before stays
// revoked.
func (r *Revocations) Reinstate(ctx context.Context, tx pgx.Tx, kind RevocationKind, tenant, target string) (at time.Time, err error) {
	if err := r.Lock(ctx, tx); err != nil {
		return at, err
	}
	rows, err := tx.Query(ctx, reinstateSQL, pgx.NamedArgs{"kind": string(kind), "tenant": tenant, "target": target})
	if err != nil {
		return at, fmt.Errorf("reinstate: %w", pg.Translate(err))
	}
	found, err := pgx.CollectRows(rows, pgx.RowTo[time.Time])
	switch {
	case err != nil:
		return at, fmt.Errorf("reinstate: %w", pg.Translate(err))
	case len(found) == 0:
		return at, &whence.Error{Kind: whence.ErrPrecondition, Reason: "NOT_REVOKED",
			Message: fmt.Sprintf("no revocation stands against %q; ListRevocations has those that do", target)}
	}
	return found[0], nil
}

// List returns a page of revocations, newest first, and the token of the next one.
func (r *Revocations) List(ctx context.Context, size int, token string) ([]Revocation, string, error) {
	before := int64(1<<63 - 1)
	if token != "" {
		b, err := base64.RawURLEncoding.DecodeString(token)
		if err == nil {
			before, err = strconv.ParseInt(string(b), 10, 64)
		}
		if err != nil {
			return nil, "", whence.Invalid("pageToken", "PAGE_TOKEN_INVALID", "the page token is not one that this call gave; start again without one")
		}
	}
	rows, err := r.pool.Query(ctx, listRevocationsSQL, pgx.NamedArgs{"before": before, "limit": size + 1})
	if err != nil {
		return nil, "", pg.Translate(err)
	}
	all, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (v Revocation, err error) {
		var reinstated *time.Time
		err = row.Scan(&v.ID, &v.Kind, &v.Tenant, &v.Target, &v.Reason, &v.By, &v.At, &reinstated)
		v.At = v.At.UTC()
		if reinstated != nil {
			v.Reinstated = reinstated.UTC()
		}
		return v, err
	})
	if err != nil || len(all) <= size {
		return all, "", pg.Translate(err)
	}
	all = all[:size]
	return all, base64.RawURLEncoding.EncodeToString([]byte(strconv.FormatInt(all[size-1].ID, 10))), nil
}

const dropRevocationsSQL = `delete from whence.revocations where expires_at < @now`

// Drop forgets revocations of tokens and tasks that have expired anyway; the audit
// log has them.
func (r *Revocations) Drop(ctx context.Context) error {
	_, err := r.pool.Exec(ctx, dropRevocationsSQL, pgx.NamedArgs{"now": r.clock().Add(-keepRevoked)})
	return pg.Translate(err)
}
