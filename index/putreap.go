package index

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/internal/pg"
)

const (
	// What serves nobody: every chunk of a deleted record, superseded chunks
	// without a vector, and all superseded ones once each chunk of the head has
	// its vector. A head that still owes columns replaces nothing yet.
	deleteSuperseded = `
delete from whence.chunks c using whence.records r
where r.id = any(@ids) and c.record_id = r.id
  and (r.deleted or c.version < r.version and (
        not exists (
            select from whence.vectors v join whence.spaces s on s.id = v.space_id
            where s.current and v.digest = c.digest and v.embedding is not null)
        or r.missing is null and not exists (
            select from whence.chunks h where h.record_id = r.id and h.version = r.version and not exists (
                select from whence.vectors v join whence.spaces s on s.id = v.space_id
                where s.current and v.digest = h.digest and v.embedding is not null))))
returning c.table_id, c.digest`

	reapSuperseded = `
with spent as (
    select c.id from whence.chunks c join whence.records r on r.id = c.record_id
    where r.id = any(@ids) and c.version < r.version and r.missing is null and not exists (
        select from whence.chunks h where h.record_id = r.id and h.version = r.version and not exists (
            select from whence.vectors v join whence.spaces s on s.id = v.space_id
            where s.current and v.digest = h.digest and v.embedding is not null))
    for update of c skip locked
)
delete from whence.chunks c using spent where c.id = spent.id
returning c.table_id, c.digest`

	selectLeft = `
select distinct r.id from whence.records r join whence.chunks c on c.record_id = r.id and c.version < r.version
where r.id = any(@ids)`

	// A table that purges what is deleted keeps no vector of a text that it no
	// longer holds, unless another chunk has the same text.
	forgetVectors = `
delete from whence.vectors v using whence.spaces s
where v.space_id = s.id and v.digest = any(@digests)
  and not exists (select from whence.chunks c where c.digest = v.digest)`

	selectPurging = `select id from whence.tables where id = any(@tables) and on_delete = 'PURGE'`
)

// supersede removes the superseded chunks that Put itself can tell to be spent.
func supersede(ctx context.Context, tx pgx.Tx, records []int64) error {
	return deleteChunks(ctx, tx, deleteSuperseded, records)
}

// reap removes the superseded chunks of those records whose heads are fully
// embedded. It must begin after the embeddings have committed: so either it
// sees a head that was put meanwhile, or that head's Settle sees the
// embeddings. It never waits for a lock; what it skips, the holder settles.
func (x *Index) reap(ctx context.Context, tx pgx.Tx, records []int64) error {
	return deleteChunks(ctx, tx, reapSuperseded, records)
}

// Settle removes what an embedding that was committed during the transaction of
// a Put made superfluous, and nobody else saw. Call it after that transaction.
func (x *Index) Settle(ctx context.Context, records []int64) error {
	if len(records) == 0 {
		return nil
	}
	err := pg.InTx(ctx, x.pool, func(tx pgx.Tx) error {
		return deleteChunks(ctx, tx, deleteSuperseded, records)
	})
	if err != nil {
		return fmt.Errorf("settle: %w", err)
	}
	return nil
}

// left returns which of the records still hold superseded chunks.
func left(ctx context.Context, tx pgx.Tx, records []int64) ([]int64, error) {
	rows, err := tx.Query(ctx, selectLeft, pgx.NamedArgs{"ids": records})
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[int64])
}

func deleteChunks(ctx context.Context, tx pgx.Tx, sql string, records []int64) error {
	rows, err := tx.Query(ctx, sql, pgx.NamedArgs{"ids": records})
	if err != nil {
		return fmt.Errorf("delete superseded chunks: %w", err)
	}
	gone := make(map[int32][][]byte)
	var table int32
	var digest []byte
	_, err = pgx.ForEachRow(rows, []any{&table, &digest}, func() error {
		gone[table] = append(gone[table], append([]byte(nil), digest...))
		return nil
	})
	if err != nil {
		return fmt.Errorf("delete superseded chunks: %w", err)
	}
	return forget(ctx, tx, gone)
}

// forget removes the vectors of texts that tables which purge have let go of.
func forget(ctx context.Context, tx pgx.Tx, gone map[int32][][]byte) error {
	if len(gone) == 0 {
		return nil
	}
	tables := make([]int32, 0, len(gone))
	for t := range gone {
		tables = append(tables, t)
	}
	rows, err := tx.Query(ctx, selectPurging, pgx.NamedArgs{"tables": tables})
	if err != nil {
		return fmt.Errorf("forget vectors: %w", err)
	}
	purging, err := pgx.CollectRows(rows, pgx.RowTo[int32])
	if err != nil {
		return fmt.Errorf("forget vectors: %w", err)
	}
	for _, t := range purging {
		if _, err := tx.Exec(ctx, forgetVectors, pgx.NamedArgs{"digests": gone[t]}); err != nil {
			return fmt.Errorf("forget vectors: %w", err)
		}
	}
	return nil
}

const (
	deleteOlder = `
with gone as (
    update whence.records
    set version = version + 1, lsn = @lsn::pg_lsn, commit_time = @commit::timestamptz, deleted = true, missing = null,
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
	return supersede(ctx, tx, ids)
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
	if len(digests) > 0 {
		if _, err := tx.Exec(ctx, forgetVectors, pgx.NamedArgs{"digests": digests}); err != nil {
			return 0, fmt.Errorf("drop vectors: %w", err)
		}
	}
	return n, nil
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
