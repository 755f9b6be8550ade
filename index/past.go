package index

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/pgvector/pgvector-go"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/internal/pg"
)

// A search as of a moment finds the records that have not changed since through
// their chunks, as ever, and those that have through the version that was current
// then. All of these within the bounds are cut, as they were cut then, and compared
// with the question one by one, so none can be missed; pastMost bounds how many.

// pastMost is the most records changed since, and the most chunks of what they
// were, that one search compares.
const pastMost = 20_000

const (
	// The record is judged by its head's subject and attributes and the version by
	// its own, as in versionsSQL; what the request wishes for is of the version.
	// The table's name for its subject is today's.
	changedSQL = `
with changed as materialized (
    select r.id, r.table_id, r.key, r.deleted, r.version from whence.records r
    where r.table_id = any(@tables::int[]) and r.version > 1 and r.since > @asOf::timestamptz
      and (@scopeSubjects::text[] is null or r.subject = any(@scopeSubjects::text[]))
      and (@deniedSubjects::text[] is null or r.subject is null or r.subject <> all(@deniedSubjects::text[]))
      and (@scopeFilter::jsonb is null or r.attributes @> @scopeFilter::jsonb)
    limit @most
)
select r.id, r.table_id, r.key, r.deleted, w.version, w.lsn, w.commit_time, coalesce(w.event_time, w.commit_time), w.captured_at, w.definition,
       coalesce(cardinality(w.spans) / 2, 1)
from changed r
left join lateral (
    select w.version, w.lsn, w.commit_time, w.event_time, w.captured_at, w.definition, w.spans, w.deleted, w.text, w.columns from whence.versions w
    where w.record_id = r.id and w.version < r.version and coalesce(w.commit_time, w.captured_at) <= @asOf::timestamptz
    order by w.version desc limit 1
) w on not w.deleted and w.text <> ''
    and (@subjects::text[] is null
         or w.columns ->> (@subjectColumns::jsonb ->> r.table_id::text) = any(@subjects::text[]))
    and coalesce(w.columns ->> (@subjectColumns::jsonb ->> r.table_id::text) <> all(@deniedSubjects::text[]), true)
    and (@scopeFilter::jsonb is null or w.columns @> @scopeFilter::jsonb)
    and (@filter::jsonb is null or w.columns @> @filter::jsonb)`

	pastChunksSQL = `
select i.n - 1, p.ordinal, p.low, p.high, t.digest, length(t.tsv)::float8,
       array(select least(10 * ts_rank(t.tsv, q.term), 1)::float8 from unnest(@terms::text[]::tsquery[]) with ordinality q(term, n) order by q.n),
       1 - (v.embedding <=> @vector::halfvec), v.embedded_at
from unnest(@records::bigint[], @versions::int[]) with ordinality i(record_id, version, n)
cross join lateral (
    select convert_to(w.text, 'UTF8') as text, w.spans from whence.versions w
    where w.record_id = i.record_id and w.version = i.version offset 0
) w
cross join lateral ` + piecesOfW + ` p
cross join lateral (select substring(w.text from p.low + 1 for p.high - p.low) as text offset 0) c
cross join lateral (select sha256(c.text) as digest, whence.lexemes(@language, convert_from(c.text, 'UTF8')) as tsv offset 0) t
left join lateral (
    select v.embedding, v.embedded_at from whence.vectors v
    where v.space_id = @space and v.digest = t.digest and v.embedding is not null offset 0
) v on true`

	pastTextsSQL = `
select i.n - 1, convert_from(substring(w.text from i.low + 1 for i.high - i.low), 'UTF8'), w.subject, w.attributes
from (select distinct record_id, version from unnest(@records::bigint[], @versions::int[]) d(record_id, version)) d
join whence.records r on r.id = d.record_id
cross join lateral (
    select convert_to(w.text, 'UTF8') as text, w.columns ->> (@subjectColumns::jsonb ->> r.table_id::text) as subject,
           (select coalesce(jsonb_object_agg(a.name, w.columns -> a.name), '{}')
            from jsonb_array_elements_text(@attributeColumns::jsonb -> r.table_id::text) a(name)
            where jsonb_exists(w.columns, a.name)) as attributes
    from whence.versions w where w.record_id = d.record_id and w.version = d.version offset 0
) w
join unnest(@records::bigint[], @versions::int[], @lows::int[], @highs::int[]) with ordinality i(record_id, version, low, high, n)
    on i.record_id = d.record_id and i.version = d.version`
)

// past is what was current at a moment and is not any more.
type past struct {
	versions []Candidate // without a text yet
	chunks   []pastChunk
}

type pastChunk struct {
	of         int      // of versions
	asked      *wording // in the language of its table
	ordinal    int32
	start, end int
	digest     whence.Digest
	length     float64   // in distinct lexemes
	saturation []float64 // of each term of that; 0: the chunk lacks it
	dense      *float64
	embeddedAt *time.Time
	lexical    float64
	legs       Legs
}

// readPast finds what was current and compares it with the question.
func readPast(ctx context.Context, tx pgx.Tx, scope authz.Scope, b bounds, r SearchRequest, ws []*wording) (past, error) {
	p := past{}
	args, ok := pastArgs(scope, b, r)
	if !ok {
		return p, nil
	}
	if err := p.readVersions(ctx, tx, args); err != nil {
		return p, fmt.Errorf("find past versions: %w", pg.Translate(err))
	}
	for _, w := range ws {
		if err := p.readChunks(ctx, tx, r, w); err != nil {
			return p, fmt.Errorf("compare past versions: %w", pg.Translate(err))
		}
	}
	slices.SortFunc(p.chunks, func(a, b pastChunk) int { return cmp.Or(a.of-b.of, cmp.Compare(a.ordinal, b.ordinal)) })
	return p, nil
}

// pastArgs bounds the versions. A table without an attribute that is filtered by
// holds nothing for the filter, whatever its columns are.
func pastArgs(scope authz.Scope, b bounds, r SearchRequest) (pgx.NamedArgs, bool) {
	head, ok := within(scope, r.Tables, nil, nil)
	if !ok {
		return nil, false
	}
	for _, t := range r.Tables {
		for _, f := range []map[string]string{scope.Filter(), r.Filter} {
			for name := range f {
				if !hasAttribute(t, name) {
					b.tables = slices.DeleteFunc(slices.Clone(b.tables), func(id int32) bool { return id == t.ID })
				}
			}
		}
	}
	return b.args(pgx.NamedArgs{"scopeSubjects": head.subjects, "most": pastMost + 1, "subjectColumns": subjectColumns(r.Tables)}), len(b.tables) > 0
}

// hasAttribute tells whether rows of a table may have an attribute; notes may have
// any but their own columns' names.
func hasAttribute(t whence.Table, name string) bool {
	if t.ID == whence.NotesID && !slices.Contains(whence.NoteColumns(), name) {
		return true
	}
	return slices.Contains(t.AttributeColumns, name)
}

func (p *past) readVersions(ctx context.Context, tx pgx.Tx, args pgx.NamedArgs) error {
	rows, err := tx.Query(ctx, changedSQL, planned, args)
	if err != nil {
		return err
	}
	records, chunks := 0, 0
	var c Candidate
	var version, definition, cut *int32
	var lsn *whence.LSN
	var commit, event, captured *time.Time
	_, err = pgx.ForEachRow(rows, []any{&c.RecordID, &c.TableID, &c.Key, &c.Deleted, &version, &lsn, &commit, &event, &captured, &definition, &cut}, func() error {
		if records++; version == nil {
			return nil
		}
		v := c
		v.Past, v.Version, v.LSN, v.Definition = true, *version, *lsn, *definition
		v.CommitTime, v.EventTime, v.CapturedAt = timeOf(commit), timeOf(event), timeOf(captured)
		p.versions = append(p.versions, v)
		chunks += int(*cut)
		return nil
	})
	slices.SortFunc(p.versions, func(a, b Candidate) int { return cmp.Compare(a.RecordID, b.RecordID) })
	if err == nil && max(records, chunks) > pastMost {
		return &whence.Error{Kind: whence.ErrPrecondition, Reason: "AS_OF_TOO_MUCH_CHANGED", Field: "asOf",
			Message: fmt.Sprintf("more than %d rows within your scope, or pieces of their texts, have changed since; "+
				"ask for fewer tables or subjects, or for a later moment", pastMost),
			Metadata: map[string]string{"most": strconv.Itoa(pastMost)}}
	}
	return err
}

// readChunks compares the versions of those tables with the question whose language
// the wording is in.
func (p *past) readChunks(ctx context.Context, tx pgx.Tx, r SearchRequest, w *wording) error {
	mine := map[int32]bool{}
	for _, t := range r.Tables {
		mine[t.ID] = t.Language == w.language
	}
	var at []int // of versions
	var records []int64
	var versions []int32
	for i, v := range p.versions {
		if mine[v.TableID] {
			at, records, versions = append(at, i), append(records, v.RecordID), append(versions, v.Version)
		}
	}
	if len(at) == 0 {
		return nil
	}
	var vector *string
	if r.Vector != nil {
		s := pgvector.NewHalfVector(r.Vector).String()
		vector = &s
	}
	rows, err := tx.Query(ctx, pastChunksSQL, planned, pgx.NamedArgs{"records": records, "versions": versions,
		"language": w.language, "terms": quoted(w.asked), "space": r.Space.ID, "vector": vector})
	if err != nil {
		return err
	}
	p.chunks, err = pgx.AppendRows(p.chunks, rows, func(row pgx.CollectableRow) (c pastChunk, err error) {
		var digest []byte
		err = row.Scan(&c.of, &c.ordinal, &c.start, &c.end, &digest, &c.length, &c.saturation, &c.dense, &c.embeddedAt)
		if err != nil {
			return c, err
		}
		copy(c.digest[:], digest)
		c.of, c.asked = at[c.of], w
		return c, nil
	})
	return err
}

// subjectColumns and attributeColumns are JSON objects by the table's id.
func subjectColumns(tables []whence.Table) string {
	return byTable(tables, func(t whence.Table) any { return t.SubjectColumn })
}

func attributeColumns(tables []whence.Table) string {
	return byTable(tables, func(t whence.Table) any { return append([]string{}, t.AttributeColumns...) })
}

func byTable(tables []whence.Table, of func(whence.Table) any) string {
	m := map[string]any{}
	for _, t := range tables {
		m[strconv.Itoa(int(t.ID))] = of(t)
	}
	b, err := json.Marshal(m)
	if err != nil {
		return "" // no JSON, so that the statement fails rather than finds more
	}
	return string(b)
}
