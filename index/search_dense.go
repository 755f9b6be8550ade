package index

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/pgvector/pgvector-go"
)

const (
	// exactMost chunks within the bounds are compared one by one. That cannot miss
	// any, nor does it depend on what is outside.
	exactMost = 10_000
	// breadth is how many of a segment's vectors are kept in sight while it is
	// searched (ef_search), and depth how many are looked at when the bounds leave
	// many out, before all within the bounds are compared instead.
	breadth = 400
	depth   = 40_000
)

// chunkAllowed demands the bounds of the chunk and, where there are any, of its
// record's head: a row that moved to another subject is not found through its old
// text. The offset keeps the planner from reading all records to look up a few.
const chunkAllowed = chunkInBounds + `
and ((@subjects::text[] is null and @deniedSubjects::text[] is null and @scopeFilter::jsonb is null and @filter::jsonb is null)
    or exists (select from whence.records r where r.id = c.record_id and ` + recordInBounds + ` offset 0))
and ` + freshOnly

const (
	countWithin = `select count(*) from (select from whence.chunks c where ` + chunkInBounds + ` limit @most) n`

	exactDense = `
select c.id
from whence.chunks c
join whence.vectors v on v.space_id = @space and v.digest = c.digest and v.embedding is not null
where ` + chunkAllowed + `
order by v.embedding <=> @vector::halfvec, c.id
limit @limit`

	// One for each segment, nearest first for as long as the bounds leave any out,
	// and one for what has no segment yet.
	segmentDense = `(
select c.id, v.distance
from (select digest, %[1]s as distance from whence.vectors where %[2]s order by %[1]s) v
cross join lateral (select c.id from whence.chunks c where c.digest = v.digest and ` + chunkAllowed + ` offset 0) c
limit @limit)`
	restDense = `(
select c.id, v.embedding <=> @vector::halfvec as distance
from whence.vectors v
cross join lateral (select c.id from whence.chunks c where c.digest = v.digest and ` + chunkAllowed + ` offset 0) c
where v.space_id = @space and v.seq > @rest
order by distance
limit @limit)`

	approximately = `
select set_config('enable_seqscan', 'off', true), set_config('enable_sort', 'off', true), set_config('hnsw.iterative_scan', 'relaxed_order', true),
    set_config('hnsw.ef_search', @breadth::int::text, true), set_config('hnsw.max_scan_tuples', @depth::int::text, true)`
	exactlyAgain = `select set_config('enable_seqscan', 'on', true), set_config('enable_sort', 'on', true)`
)

// denseLeg finds the chunks whose vectors are nearest, at most limit; drawn of those
// within the bounds are in the sample.
func (x *Index) denseLeg(ctx context.Context, tx pgx.Tx, b bounds, drawn int64, f freshness, r SearchRequest) ([]int64, error) {
	args := f.args(b.args(pgx.NamedArgs{"vector": pgvector.NewHalfVector(r.Vector).String(), "limit": r.Limit, "most": exactMost + 1}))
	near, err := segments(ctx, tx, r.Space.ID)
	if err != nil {
		return nil, err
	}
	if len(near) > 0 {
		many, err := wide(ctx, tx, drawn, args)
		if err != nil {
			return nil, err
		}
		if many {
			ids, err := approximateDense(ctx, tx, near, r, args)
			if err != nil || len(ids) >= r.Limit {
				return ids, err
			}
		}
	}
	rows, err := tx.Query(ctx, exactDense, planned, args)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[int64])
}

// wide tells whether more than exactMost chunks lie within the bounds. They are
// counted only where the sample leaves a doubt.
func wide(ctx context.Context, tx pgx.Tx, drawn int64, args pgx.NamedArgs) (bool, error) {
	const most = exactMost / sampleEvery
	if drawn < most/2 || drawn > 2*most {
		return drawn > most, nil
	}
	var within int
	err := tx.QueryRow(ctx, countWithin, planned, args).Scan(&within)
	return within > exactMost, err
}

func approximateDense(ctx context.Context, tx pgx.Tx, near []segment, r SearchRequest, args pgx.NamedArgs) (ids []int64, err error) {
	args["rest"], args["breadth"], args["depth"] = near[len(near)-1].high, breadth, depth
	parts := []string{restDense}
	for _, s := range near {
		parts = append(parts, fmt.Sprintf(segmentDense, distance(r.Space, "vectors"), s.within(r.Space)))
	}
	if _, err := tx.Exec(ctx, approximately, args); err != nil {
		return nil, err
	}
	rows, err := tx.Query(ctx, strings.Join(parts, " union all ")+" order by distance, id limit @limit", planned, args)
	if err != nil {
		return nil, err
	}
	var id int64
	var distance float64
	if _, err = pgx.ForEachRow(rows, []any{&id, &distance}, func() error { ids = append(ids, id); return nil }); err != nil {
		return nil, err
	}
	_, err = tx.Exec(ctx, exactlyAgain)
	return ids, err
}

// recentLeg finds the newest, so that what has just happened is ranked even where
// much resembles the question more.
const recentSQL = `
select c.id
from unnest(@tables::int[]) t(id)
cross join lateral (
    select c.id, c.event_time from whence.chunks c
    where c.table_id = t.id and ` + chunkAllowed + `
    order by c.event_time desc nulls last, c.id desc
    limit @recent
) c
order by c.event_time desc nulls last, c.id desc
limit @recent`

const recentMost = 20

func (x *Index) recentLeg(ctx context.Context, tx pgx.Tx, b bounds, f freshness) ([]int64, error) {
	rows, err := tx.Query(ctx, recentSQL, planned, f.args(b.args(pgx.NamedArgs{"recent": recentMost})))
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[int64])
}
