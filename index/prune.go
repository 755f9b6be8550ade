package index

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// piecesOfW are the chunks of a version w, its text as bytes: as spans says, or one.
const piecesOfW = `(
    select 0 as ordinal, 0 as low, length(w.text) as high where w.spans is null
    union all
    select ((s.n - 1) / 2)::int, min(s.at), max(s.at) from unnest(w.spans) with ordinality s(at, n) group by 1
)`

const (
	// A version may go once a newer one of the record is as old as before, for then
	// no moment from there on asks for it. The last that is so old stays.
	pruneVersions = `
with looked as materialized (
    select r.id, r.since from whence.records r
    where r.table_id = @table and r.version > 1 and (r.since, r.id) > (@since::timestamptz, @id::bigint)
    order by r.since, r.id limit @limit
), kept as materialized (
    select l.id, k.version from looked l cross join lateral (
        select w.version from whence.versions w
        where w.record_id = l.id and coalesce(w.commit_time, w.captured_at) <= @before::timestamptz
        order by w.version desc limit 1
    ) k
), chosen as materialized (
    select w.record_id, w.version from kept k cross join lateral (
        select w.record_id, w.version from whence.versions w
        where w.record_id = k.id and w.version < k.version order by w.version limit @limit
    ) w limit @limit
), gone as (
    delete from whence.versions w using chosen c where w.record_id = c.record_id and w.version = c.version
    returning w.record_id, convert_to(w.text, 'UTF8') as text, w.spans
), texts as (
    select sha256(substring(w.text from p.low + 1 for p.high - p.low)) as digest
    from gone w cross join lateral ` + piecesOfW + ` p
    except
    select sha256(substring(w.text from p.low + 1 for p.high - p.low))
    from kept k
    cross join lateral (
        select convert_to(w.text, 'UTF8') as text, w.spans from whence.versions w
        where w.record_id = k.id and w.version >= k.version and exists (select from gone g where g.record_id = k.id) offset 0
    ) w
    cross join lateral ` + piecesOfW + ` p
)
select (select count(*) from chosen), (select count(*) from looked),
    coalesce((select max(since) from looked), @since::timestamptz),
    coalesce((select id from looked order by since desc, id desc limit 1), @id::bigint),
    coalesce((select array_agg(v.digest) from texts x join whence.vectors v on v.digest = x.digest and v.table_id = @table
              where v.space_id in (select id from whence.spaces)), '{}')`
)

// PrunedTo is how far a walk through a table's changed records has come.
type PrunedTo struct {
	Since time.Time
	ID    int64
}

// Prune removes versions of a table that had been followed by a newer one before a
// moment, a few at a time: it looks at the next records that changed at least once,
// by when they changed last, and removes at most limit versions, with the vectors
// of texts that neither a chunk nor a version that the record keeps holds and that
// this table was the first to ask for. A head is never removed. It returns where to
// go on; done, when there is nothing beyond.
func (x *Index) Prune(ctx context.Context, tx pgx.Tx, table int32, before time.Time, from PrunedTo, limit int) (to PrunedTo, removed int, done bool, err error) {
	if _, err := tx.Exec(ctx, planAnew); err != nil {
		return from, 0, false, fmt.Errorf("prepare: %w", err)
	}
	var looked int
	var digests [][]byte
	args := pgx.NamedArgs{"table": table, "before": before, "since": from.Since, "id": from.ID, "limit": limit}
	if err := tx.QueryRow(ctx, pruneVersions, args).Scan(&removed, &looked, &to.Since, &to.ID, &digests); err != nil {
		return from, 0, false, fmt.Errorf("prune versions: %w", err)
	}
	if removed >= limit { // of these records some may be left
		to = from
	}
	return to, removed, looked < limit && removed < limit, forget(ctx, tx, digests)
}
