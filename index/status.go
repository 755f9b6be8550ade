package index

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence/internal/pg"
)

// Status is what the index holds of one table.
type Status struct {
	Records     int64 // that are not deleted
	Chunks      int64 // of their heads
	Pending     int64 // of those, without a vector in the current space
	Reembedding int64 // of those, with a vector that is to be made anew and is not yet
	Made        int64 // texts sent to the model
	Tokens      int64 // that these took, as the model's server reported or as reckoned from the texts
	Saved       int64 // texts that needed no call: their vector was there or asked for
}

const selectStatus = `
select
    (select count(*) from whence.records where table_id = @table and not deleted),
    count(h.digest),
    count(h.digest) filter (where v.embedding is null),
    count(h.digest) filter (where v.embedding is not null and v.embedded_at < e.made_before),
    coalesce((select made from whence.embedding_calls where table_id = @table), 0),
    coalesce((select saved from whence.embedding_calls where table_id = @table), 0),
    coalesce((select tokens from whence.embedding_calls where table_id = @table), 0)
from (select c.digest from whence.chunks c join whence.records r on r.id = c.record_id
      where r.table_id = @table and c.version = r.version) h
left join whence.spaces s on s.current
left join whence.vectors v on v.space_id = s.id and v.digest = h.digest
left join whence.reembeds e on e.space_id = s.id and e.table_id = @table`

// Status counts what the index holds of a table.
func (x *Index) Status(ctx context.Context, table int32) (s Status, err error) {
	err = x.pool.QueryRow(ctx, selectStatus, pgx.NamedArgs{"table": table}).
		Scan(&s.Records, &s.Chunks, &s.Pending, &s.Reembedding, &s.Made, &s.Saved, &s.Tokens)
	if err != nil {
		return Status{}, fmt.Errorf("status of table %d: %w", table, pg.Translate(err))
	}
	return s, nil
}

// Analyze gives the planner the statistics of tables that have just been
// filled; autovacuum would take a minute to.
func (x *Index) Analyze(ctx context.Context) error {
	_, err := x.pool.Exec(ctx, `analyze (skip_locked) whence.records, whence.versions, whence.chunks, whence.vectors`)
	if err != nil {
		return fmt.Errorf("analyze: %w", pg.Translate(err))
	}
	return nil
}

const mergeTerms = `select gin_clean_pending_list('whence.chunks_tsv')`

// MergeTerms merges the terms of new chunks into the text index. Writers go on
// meanwhile; without it the one that fills the list of such terms does it.
func (x *Index) MergeTerms(ctx context.Context) error {
	if _, err := x.pool.Exec(ctx, mergeTerms); err != nil {
		return fmt.Errorf("merge terms: %w", pg.Translate(err))
	}
	return nil
}

const selectPending = `
select table_id, count(*) from (
    select v.table_id from whence.vectors v join whence.spaces s on s.current and s.id = v.space_id
    where v.embedding is null limit @limit
) p group by table_id`

// Pending counts the texts that wait for a vector by the table that asked for
// them first, up to limit over all.
func (x *Index) Pending(ctx context.Context, tx pgx.Tx, limit int) (map[int32]int64, error) {
	rows, err := tx.Query(ctx, selectPending, pgx.NamedArgs{"limit": limit})
	if err != nil {
		return nil, fmt.Errorf("count pending texts: %w", err)
	}
	out := map[int32]int64{}
	var table int32
	var n int64
	if _, err := pgx.ForEachRow(rows, []any{&table, &n}, func() error { out[table] = n; return nil }); err != nil {
		return nil, fmt.Errorf("count pending texts: %w", err)
	}
	return out, nil
}
