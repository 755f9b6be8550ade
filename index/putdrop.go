package index

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
)

const (
	deleteOlder = `
with gone as (
    update whence.records
    set version = version + 1, lsn = @lsn::pg_lsn, xid = @xid::bigint, commit_time = @commit::timestamptz, deleted = true, missing = null, state = null,
        subject = case when @purge::bool then null else subject end,
        event_time = case when @purge::bool then null else event_time end,
        attributes = case when @purge::bool then '{}'::jsonb else attributes end
    where table_id = @table and not deleted and lsn < @before::pg_lsn
    returning id, version
)
insert into whence.versions (record_id, version, lsn, xid, commit_time, deleted, definition, columns, text, digest)
select id, version, @lsn::pg_lsn, @xid::bigint, @commit::timestamptz, true, @definition::int, '{}'::jsonb, '', @digest::bytea from gone
returning record_id`
	purgeOlder = `
delete from whence.versions v using whence.records r
where r.id = any(@ids) and v.record_id = r.id and v.version < r.version`
)

// Commit is the position of a change that concerns a whole table.
type Commit struct {
	LSN  whence.LSN
	XID  *uint32   // nil when it was a backfill that noticed
	Time time.Time // zero then
}

// DeleteOlder marks every record of a table deleted that is older than before,
// in one version of its own at position at: what a truncation does, and what the
// end of a backfill does to rows that its snapshot no longer held.
func (x *Index) DeleteOlder(ctx context.Context, tx pgx.Tx, t whence.Table, before whence.LSN, at Commit) error {
	none := whence.DigestOf("")
	var xid *int64
	if at.XID != nil {
		n := int64(*at.XID)
		xid = &n
	}
	rows, err := tx.Query(ctx, deleteOlder, pgx.NamedArgs{
		"table": t.ID, "before": before, "lsn": at.LSN, "xid": xid, "commit": timeOrNull(at.Time),
		"definition": t.Definition, "digest": none[:], "purge": t.OnDelete == whence.OnDeletePurge,
	})
	if err != nil {
		return fmt.Errorf("delete older records: %w", err)
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		return fmt.Errorf("delete older records: %w", err)
	}
	if len(ids) == 0 {
		return nil
	}
	if t.OnDelete == whence.OnDeletePurge {
		if _, err := tx.Exec(ctx, purgeOlder, pgx.NamedArgs{"ids": ids}); err != nil {
			return fmt.Errorf("purge older records: %w", err)
		}
	}
	holdings, err := readHoldings(ctx, tx, ids)
	if err != nil {
		return err
	}
	gone, _ := spent(holdings, nil)
	return drop(ctx, tx, gone)
}

const (
	dropRecords = `
with few as (select id from whence.records where table_id = @table limit @limit),
texts as (select array_agg(c.digest) as digests from whence.chunks c join few on few.id = c.record_id),
gone as (delete from whence.records r using few where r.id = few.id returning 1)
select (select count(*) from gone), (select coalesce(digests, '{}') from texts)`
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
