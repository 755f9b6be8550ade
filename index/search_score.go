package index

import (
	"context"
	"encoding/json"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/pgvector/pgvector-go"

	"github.com/whence-db/whence"
)

// The chunk h that stands in the head for the matched chunk c is c itself, else
// the one that covers most of the same span, else the nearest by order. A head
// that still owes columns has no text: then the newest text there is stays. The
// record's other chunks are looked through only for a superseded one: a record
// may have tens of thousands.
const scoreSQL = `
select h.id, r.id, c.table_id, r.key, h.text, h.span_start, h.span_end, h.digest,
       w.version, w.lsn, w.commit_time, coalesce(h.event_time, w.commit_time), w.captured_at, r.subject, r.attributes, w.definition, r.state,
       c.id, c.text, c.version < r.version,
       cv.embedded_at, hv.embedding is not null,
       hv.embedding is null and exists (
           select from whence.spaces s cross join lateral (
               select from whence.vectors o
               where o.space_id = s.id and o.digest = h.digest and o.embedding is not null offset 0
           ) o where s.id <> @space),
       1 - (cv.embedding <=> @vector::halfvec),
       (select sum(t.weight * s.s / (s.s + (1 - s.s) * (0.4 + 0.6 * length(h.tsv) / t.mean)))
        from unnest(@languages::text[], @terms::text[]::tsquery[], @weights::float8[], @means::float8[]) t(language, term, weight, mean),
            lateral (select least(10 * ts_rank(h.tsv, t.term), 1) as s) s
        where t.language = h.language and s.s > 0)
from unnest(@ids::bigint[]) i(id)
join whence.chunks c on c.id = i.id
join whence.records r on r.id = c.record_id
join lateral (
    select one.id, one.version, one.text, one.span_start, one.span_end, one.digest, one.event_time, one.tsv, one.language from (
        select c.id, c.version, c.text, c.span_start, c.span_end, c.digest, c.event_time, c.tsv, c.language
        where c.version = r.version or r.missing is not null
        union all
        (select n.id, n.version, n.text, n.span_start, n.span_end, n.digest, n.event_time, n.tsv, n.language
         from whence.chunks n
         where c.version < r.version and n.record_id = c.record_id and n.version = r.version
         order by greatest(least(n.span_end, c.span_end) - greatest(n.span_start, c.span_start), 0) desc,
                  abs(n.ordinal - c.ordinal), n.ordinal
         limit 1)
    ) one
    order by one.version desc
    limit 1
) h on true
join whence.versions w on w.record_id = r.id and w.version = h.version
left join whence.vectors cv on cv.space_id = @space and cv.digest = c.digest and cv.embedding is not null
left join whence.vectors hv on hv.space_id = @space and hv.digest = h.digest and hv.embedding is not null
where ` + recordInBounds + `
order by i.id`

// score reads what a candidate needs to be shown, and scores all alike.
func (x *Index) score(ctx context.Context, tx pgx.Tx, b bounds, legs map[int64]Legs, ws []*wording, r SearchRequest) ([]Candidate, error) {
	ids := slices.Sorted(maps.Keys(legs))
	if len(ids) == 0 {
		return nil, nil
	}
	languages, terms, shares, means := []string{}, []string{}, []float64{}, []float64{}
	for _, w := range ws {
		terms, shares = append(terms, quoted(w.terms)...), append(shares, weights(w.terms)...)
		for range w.terms {
			languages, means = append(languages, w.language), append(means, w.mean)
		}
	}
	var vector *string
	if r.Vector != nil {
		s := pgvector.NewHalfVector(r.Vector).String()
		vector = &s
	}
	rows, err := tx.Query(ctx, scoreSQL, planned, b.args(pgx.NamedArgs{
		"ids": ids, "space": r.Space.ID, "vector": vector,
		"languages": languages, "terms": terms, "weights": shares, "means": means}))
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (Candidate, error) { return scanCandidate(row, legs) })
}

func scanCandidate(row pgx.CollectableRow, legs map[int64]Legs) (Candidate, error) {
	var c Candidate
	var commit, event, embedded *time.Time
	var matched string
	var chunk int64
	var attributes, digest []byte
	err := row.Scan(&c.ChunkID, &c.RecordID, &c.TableID, &c.Key, &c.Text, &c.Start, &c.End, &digest,
		&c.Version, &c.LSN, &commit, &event, &c.CapturedAt, &c.Subject, &attributes, &c.Definition, &c.State,
		&chunk, &matched, &c.Superseded, &embedded, &c.Embedded, &c.OtherSpace, &c.Dense, &c.Lexical)
	if err != nil {
		return c, err
	}
	copy(c.Digest[:], digest)
	c.Legs = legs[chunk]
	c.CommitTime, c.EventTime, c.EmbeddedAt = timeOf(commit), timeOf(event), timeOf(embedded)
	if chunk != c.ChunkID {
		c.Matched = matched
	}
	return c, json.Unmarshal(attributes, &c.Attributes)
}

func timeOf(t *time.Time) time.Time {
	if t == nil {
		return time.Time{}
	}
	return *t
}

// attributes writes a filter as the JSON object that must be contained.
func attributes(filter map[string]string) *string {
	if len(filter) == 0 {
		return nil
	}
	v := make(whence.Values, len(filter))
	for k, s := range filter {
		v[k] = &s
	}
	b, err := json.Marshal(v)
	s := string(b)
	if err != nil {
		s = "" // no JSON, so that the statement fails rather than finds more
	}
	return &s
}
