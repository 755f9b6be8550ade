package index

import (
	"context"
	"math"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
)

// Text search scores a chunk by the question's terms it holds:
//
//	lexical = Σ idf(t) · w(t) / Σ idf(t),   w(t) = s / (s + (1−s) · norm)
//
// which lies in [0,1): 1 would be every term, often, in a short text. idf is
// BM25's, ln(1 + (N−df+½)/(df+½)), with N and df counted within the bounds.
// s is the saturation of the term's frequency, and norm = 0.4 + 0.6·length/mean
// makes long texts need more of it; with s = f/(f+k) this is BM25's own quotient
// f/(f + k·norm). Postgres's ts_rank of a single term is 0.1·6/π²·Σ 1/j² over its
// f occurrences, so ten times that serves as s: 0.61, 0.76, 0.83, ... for
// f = 1, 2, 3, close to f/(f+½).
type terms struct {
	lexemes  []string // quoted as tsquery literals, rarest first
	df       []int64
	idf      []float64
	together int64   // chunks that hold all of the question's terms
	mean     float64 // length of the candidates, in distinct lexemes
}

const (
	maxTerms = 48      // of a question; the first ones
	countMax = 100_000 // postings counted for one question
	choose   = 10_000  // candidates scored, unless one term alone has more
	enough   = 200     // candidates wanted before a common term may be left out
)

const termsSQL = `
with q as (
    select '''' || replace(replace(lexeme, '\', '\\'), '''', '''''') || '''' as term
    from unnest(to_tsvector('english', @text)) where lexeme <> ''
    order by positions[1], lexeme limit @maxTerms
), asked as (
    select term, false as together from q
    union all
    select string_agg(term, ' & '), true from q having count(*) > 1
), bounded as (
    select *, least(10000, greatest(1000, @countMax / count(*) over ())) as most from asked
)
select term, together, n.df, (
    select count(*) from (select from whence.chunks c where ` + chunkInBounds + ` limit 50000) s) as total
from bounded, lateral (
    select count(*) as df from (
        select from whence.chunks c where c.tsv @@ term::tsquery and ` + chunkInBounds + ` limit most) s
) n
where n.df > 0
order by n.df, term`

// terms takes the question apart and weighs each term by its rarity within the
// bounds. Counting stops at a bound that tells common from rare well enough.
func (x *Index) terms(ctx context.Context, tx pgx.Tx, b bounds, text string) (terms, error) {
	var t terms
	rows, err := tx.Query(ctx, termsSQL, planned,
		b.args(pgx.NamedArgs{"text": text, "maxTerms": maxTerms, "countMax": countMax}))
	if err != nil {
		return t, err
	}
	var term string
	var together bool
	var df, total int64
	_, err = pgx.ForEachRow(rows, []any{&term, &together, &df, &total}, func() error {
		if together {
			t.together = df
			return nil
		}
		n := float64(max(df, total))
		t.lexemes, t.df = append(t.lexemes, term), append(t.df, df)
		t.idf = append(t.idf, math.Log(1+(n-float64(df)+0.5)/(float64(df)+0.5)))
		return nil
	})
	return t, err
}

// choosers is the tsquery that picks candidates: the rare terms each by itself,
// and those too common for that only together. When even the rarest is common,
// chunks with all of them will do, if there are enough.
func (t terms) choosers() string {
	if t.df[0] > choose && t.together >= enough {
		return strings.Join(t.lexemes, " & ")
	}
	var sum int64
	n := 0
	for n < len(t.df) && (n == 0 || sum < enough || sum+t.df[n] <= choose) {
		sum += t.df[n]
		n++
	}
	parts := slices.Clone(t.lexemes[:n])
	if n < len(t.lexemes) {
		parts = append(parts, "("+strings.Join(t.lexemes[n:], " & ")+")")
	}
	return strings.Join(parts, " | ")
}

const lexicalLegSQL = `
with candidates as materialized (
    select c.id, c.tsv, length(c.tsv)::float8 as length
    from whence.chunks c join whence.records r on r.id = c.record_id and (r.version = c.version or r.missing is not null)
    where c.tsv @@ @choosers::tsquery and not r.deleted and ` + chunkInBounds + `
    and ` + freshOnly + `
), mean as (
    select greatest(avg(length), 1) as length from candidates
)
select c.id, m.length
from candidates c, mean m, lateral (
    select sum(t.idf * s.s / (s.s + (1 - s.s) * (0.4 + 0.6 * c.length / m.length))) as score
    from unnest(@terms::text[]::tsquery[], @idf::float8[]) t(term, idf), lateral (select least(10 * ts_rank(c.tsv, t.term), 1) as s) s
    where s.s > 0
) w
order by w.score desc, c.id
limit @limit`

// lexicalLeg returns the best head chunks by text, and sets the mean length.
func (x *Index) lexicalLeg(ctx context.Context, tx pgx.Tx, b bounds, f freshness, t *terms, limit int) ([]int64, error) {
	t.mean = 1
	if len(t.lexemes) == 0 {
		return nil, nil
	}
	rows, err := tx.Query(ctx, lexicalLegSQL, planned, f.args(b.args(pgx.NamedArgs{
		"choosers": t.choosers(), "terms": t.lexemes, "idf": t.idf, "limit": limit})))
	if err != nil {
		return nil, err
	}
	var ids []int64
	var id int64
	_, err = pgx.ForEachRow(rows, []any{&id, &t.mean}, func() error {
		ids = append(ids, id)
		return nil
	})
	return ids, err
}
