package index

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
)

const (
	// What the truncating transaction wrote before was never there for anybody.
	dropOwn = `
delete from whence.versions v using whence.records r
where r.table_id = @table and not r.deleted and r.lsn = @lsn::pg_lsn and r.xid = @xid::bigint
    and v.record_id = r.id and v.version = r.version`
	// No id leaves the database: there may be millions.
	deleteOlder = `
with moment as materialized (select clock_timestamp() as captured), gone as (
    update whence.records
    set since = coalesce(@commit::timestamptz, (select captured from moment)), version = version + case when lsn = @lsn::pg_lsn and xid = @xid::bigint then 0 else 1 end, lsn = @lsn::pg_lsn, xid = @xid::bigint, commit_time = @commit::timestamptz, deleted = true, missing = null, state = null,
        subject = case when @purge::bool then null else subject end,
        event_time = case when @purge::bool then null else event_time end,
        attributes = case when @purge::bool then '{}'::jsonb else attributes end
    where table_id = @table and not deleted and lsn < @before::pg_lsn
    returning id, version
)
insert into whence.versions (record_id, version, lsn, xid, commit_time, captured_at, deleted, definition, columns, text, digest)
select id, version, @lsn::pg_lsn, @xid::bigint, @commit::timestamptz, (select captured from moment), true, @definition::int, '{}'::jsonb, '', @digest::bytea
from gone`
	purgeOlder = `
delete from whence.versions v using whence.records r
where r.table_id = @table and r.deleted and v.record_id = r.id and v.version < r.version`
	deleteChunksOlder = `
with gone as (
    delete from whence.chunks c using whence.records r
    where c.table_id = @table and r.id = c.record_id and r.deleted
    returning c.digest
)
select distinct digest from gone where @purge::bool`
)

// Commit is the position of a change that concerns a whole table.
type Commit struct {
	LSN  whence.LSN
	XID  *uint32   // nil when it was a backfill that noticed
	Time time.Time // zero then
}

// DeleteOlder marks every record of a table deleted that is older than before,
// in one version of its own at position at: what a truncation does, and what the
// end of a backfill does to rows that its snapshots no longer held.
func (x *Index) DeleteOlder(ctx context.Context, tx pgx.Tx, t whence.Table, before whence.LSN, at Commit) error {
	purge := t.OnDelete == whence.OnDeletePurge
	args := pgx.NamedArgs{"table": t.ID, "before": before, "lsn": at.LSN, "xid": at.XID, "commit": timeOrNull(at.Time),
		"definition": t.Definition, "digest": emptyDigest[:], "purge": purge}
	if at.XID != nil {
		if _, err := tx.Exec(ctx, dropOwn, args); err != nil {
			return fmt.Errorf("replace what a truncation removed: %w", err)
		}
	}
	tag, err := tx.Exec(ctx, deleteOlder, args)
	if err != nil {
		return fmt.Errorf("delete older records: %w", err)
	}
	if tag.RowsAffected() == 0 {
		return nil
	}
	if purge {
		if _, err := tx.Exec(ctx, purgeOlder, args); err != nil {
			return fmt.Errorf("purge older records: %w", err)
		}
	}
	rows, err := tx.Query(ctx, deleteChunksOlder, args)
	if err != nil {
		return fmt.Errorf("delete older chunks: %w", err)
	}
	digests, err := pgx.CollectRows(rows, pgx.RowTo[[]byte])
	if err != nil {
		return fmt.Errorf("delete older chunks: %w", err)
	}
	return forget(ctx, tx, digests)
}

const (
	dropRecords = `
with few as (select id from whence.records where table_id = @table limit @limit for update),
texts as (delete from whence.chunks c using few where c.record_id = few.id returning c.digest),
states as (delete from whence.versions v using few where v.record_id = few.id),
gone as (delete from whence.records r using few where r.id = few.id returning 1)
select (select count(*) from gone), coalesce((select array_agg(distinct digest) from texts), '{}')`
	// Vectors of texts that the table held in the past.
	dropVectors = `
delete from whence.vectors v
where v.table_id = @table and not exists (select from whence.chunks c where c.digest = v.digest)`
	dropCounts = `delete from whence.embedding_calls where table_id = @table`
)

// DropSome removes at most limit records of a table with all that hangs on
// them, vectors that no other chunk needs included, and tells how many it removed.
func (x *Index) DropSome(ctx context.Context, tx pgx.Tx, table int32, limit int) (int, error) {
	var n int
	var digests [][]byte
	err := tx.QueryRow(ctx, dropRecords, pgx.NamedArgs{"table": table, "limit": limit}).Scan(&n, &digests)
	if err != nil {
		return 0, fmt.Errorf("drop records: %w", err)
	}
	return n, forget(ctx, tx, digests)
}

// DropTable removes everything that the index holds of a table.
func (x *Index) DropTable(ctx context.Context, tx pgx.Tx, table int32) error {
	const batch = 10_000
	for {
		n, err := x.DropSome(ctx, tx, table, batch)
		if err != nil {
			return err
		}
		if n < batch {
			break
		}
	}
	if _, err := tx.Exec(ctx, dropVectors, pgx.NamedArgs{"table": table}); err != nil {
		return fmt.Errorf("drop vectors: %w", err)
	}
	if _, err := tx.Exec(ctx, dropCounts, pgx.NamedArgs{"table": table}); err != nil {
		return fmt.Errorf("drop counts: %w", err)
	}
	return nil
}
