package index

import (
	"cmp"
	"context"
	"math/bits"
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
//
// Within narrow bounds everything is counted. Within wide ones a sample tells how
// large they are, how long their texts, and which terms are common; rare terms are
// counted. What is drawn into the sample lies within the bounds, like all else.
//
// Each language is a search of its own: a chunk is scored by the terms of the
// wording in its language, and N, df and mean are of the chunks in that language. So
// among themselves these are ranked as if no other language were there.

const (
	maxTerms    = 48 // of a question; the first ones
	sampleEvery = 64 // chunks, by chance, as sampled says
	narrowMost  = 8_000
	sampleRows  = 1_000
	commonFrom  = 10    // of a sample's rows: the term is common
	choose      = 3_000 // candidates scored of wide bounds
	enough      = 200   // candidates wanted before a common term may be left out
)

// sampled draws by a hash of the number: one number in so many would draw from rows
// that take turns only those of one kind.
const sampled = `hashint8(c.id) & 63 = 0`

const (
	sampleSize = `select count(*) from (select from whence.chunks c where ` + sampled + ` and ` + textInBounds + ` limit 100000) n`

	// The whole of narrow bounds, or a sample of wide ones. The offset keeps a term
	// from being parsed for each row anew.
	countEach = `
select t.term, count(*) filter (where s.tsv @@ t.query), count(*), avg(length(s.tsv))::float8
from (select term, term::tsquery as query from unnest(@terms::text[]) term offset 0) t cross join s
group by t.term`
	countNarrow = `
with s as materialized (select c.tsv from whence.chunks c where ` + textInBounds + ` limit 2 * @narrowMost::int)` + countEach
	// Which rows are drawn the index alone tells, and few of them are: so their texts
	// are fetched by themselves.
	countSample = `
with drawn as materialized (
    select c.id from whence.chunks c where ` + sampled + ` and (hashint8(c.id) >> 6) & @mask::int = 0 and ` + textInBounds + `
), s as materialized (
    select c.tsv from drawn d join whence.chunks c on c.id = d.id
)` + countEach
	countRare = `
select t.term, n.df from unnest(@terms::text[]) t(term), lateral (
    select count(*) as df from (
        select from whence.chunks c where c.tsv @@ t.term::tsquery and ` + textInBounds + ` limit @choose) s
) n`
)

// draw tells how many of the chunks within the bounds are in the sample.
func (b bounds) draw(ctx context.Context, tx pgx.Tx) (drawn int64, err error) {
	err = tx.QueryRow(ctx, sampleSize, planned, b.args(pgx.NamedArgs{})).Scan(&drawn)
	return drawn, err
}

// count reads how many chunks of the language there are within the bounds, and how
// many of these hold each term, past versions included; drawn is of all within the
// bounds.
func (w *wording) count(ctx context.Context, tx pgx.Tx, b bounds, drawn int64, were past) (err error) {
	if len(w.asked) == 0 {
		return nil
	}
	if w.mixed || len(w.tables) < len(b.tables) {
		if drawn, err = w.in(b).draw(ctx, tx); err != nil {
			return err
		}
	}
	args := w.in(b).args(pgx.NamedArgs{"terms": quoted(w.asked), "narrowMost": narrowMost, "choose": choose})
	w.narrow = drawn*sampleEvery < narrowMost
	args["mask"] = 1<<bits.Len64(uint64(drawn)/(2*sampleRows)) - 1 // leaves sampleRows to twice as many
	statement := countSample
	if w.narrow {
		statement = countNarrow
	}
	df, size, err := w.countEach(ctx, tx, statement, args)
	if err != nil {
		return err
	}
	w.total = size
	if !w.narrow {
		w.total = float64(drawn * sampleEvery)
		if err := countExactly(ctx, tx, df, size, w.total, args); err != nil {
			return err
		}
	}
	for i := range w.asked {
		w.asked[i].df = df[w.asked[i].quoted]
	}
	were.addTo(w)
	return nil
}

// countEach reads how many rows hold each term, how many there are, and their mean length.
func (w *wording) countEach(ctx context.Context, tx pgx.Tx, statement string, args pgx.NamedArgs) (df map[string]float64, size float64, err error) {
	rows, err := tx.Query(ctx, statement, planned, args)
	if err != nil {
		return nil, 0, err
	}
	df = map[string]float64{}
	var term string
	var n float64
	var mean *float64
	_, err = pgx.ForEachRow(rows, []any{&term, &n, &size, &mean}, func() error {
		df[term] = n
		w.mean = max(1, *mean)
		return nil
	})
	return df, size, err
}

// countExactly replaces what a sample of size tells of rare terms by counts, and
// takes the other figures up to the total.
func countExactly(ctx context.Context, tx pgx.Tx, df map[string]float64, size, total float64, args pgx.NamedArgs) error {
	var rare []string
	for _, term := range args["terms"].([]string) {
		if n := df[term]; n >= commonFrom {
			df[term] = n * total / size
		} else {
			rare = append(rare, term)
		}
	}
	if len(rare) == 0 {
		return nil
	}
	args["terms"] = rare
	rows, err := tx.Query(ctx, countRare, planned, args)
	if err != nil {
		return err
	}
	var term string
	var n float64
	_, err = pgx.ForEachRow(rows, []any{&term, &n}, func() error {
		if n == choose { // counting stopped there
			n = max(n, df[term]*total/max(size, 1))
		}
		df[term] = n
		return nil
	})
	return err
}

// choosers says which chunks are scored, as queries to be asked in turn until
// there are enough candidates. In narrow bounds that is every chunk with a term. In
// wide ones the rare terms choose; what holds none of them could hardly win. Where
// they bring too few, chunks with many of the common terms come next, and then
// those with the rarest of these.
func (w *wording) choosers() (queries []string) {
	lexemes := quoted(w.terms)
	n, sum := 0, 0.0
	for n < len(w.terms) && (w.narrow || sum+w.terms[n].df <= choose) {
		sum += w.terms[n].df
		n++
	}
	if n > 0 {
		queries = append(queries, strings.Join(lexemes[:n], " | "))
	}
	if n == len(lexemes) || sum >= enough {
		return queries
	}
	rest := lexemes[n:]
	if len(rest) > 2 {
		queries = append(queries, strings.Join(rest, " & "))
	}
	if len(rest) > 1 {
		queries = append(queries, rest[0]+" & ("+strings.Join(rest[1:], " | ")+")")
	}
	return append(queries, rest[0])
}

// Heads are looked up for the best candidates only; few chunks are of none.
const (
	chosenSQL = `
    (select c.id, c.record_id, c.version, c.tsv from whence.chunks c
     where c.tsv @@ %s::tsquery and ` + textInBounds + ` and ` + freshOnly + `)`

	lexicalLegSQL = `
with chosen as materialized (%s
    limit @most::bigint
), best as materialized (
    select c.id, min(c.record_id) as record_id, min(c.version) as version, min(w.score) as score
    from chosen c, lateral (
        select sum(t.weight * s.s / (s.s + (1 - s.s) * (0.4 + 0.6 * length(c.tsv) / @mean::float8))) as score
        from unnest(@terms::text[]::tsquery[], @weights::float8[]) t(term, weight), lateral (select least(10 * ts_rank(c.tsv, t.term), 1) as s) s
        where s.s > 0
    ) w
    group by c.id
    order by score desc, c.id
    limit 4 * @limit::bigint
)
select b.id, b.score from best b join whence.records r on r.id = b.record_id and (r.version = b.version or r.missing is not null) and not r.deleted
order by b.score desc, b.id
limit @limit`
)

// lexicalLeg returns the best head chunks by text.
func lexicalLeg(ctx context.Context, tx pgx.Tx, b bounds, f freshness, ws []*wording, limit int) ([]int64, error) {
	var found []scored
	for _, w := range ws {
		if len(w.terms) == 0 {
			continue
		}
		best, err := w.best(ctx, tx, b, f, limit)
		if err != nil {
			return nil, err
		}
		found = append(found, best...)
	}
	slices.SortFunc(found, func(a, b scored) int { return cmp.Or(cmp.Compare(b.score, a.score), cmp.Compare(a.id, b.id)) })
	var ids []int64
	for _, s := range found[:min(len(found), limit)] {
		ids = append(ids, s.id)
	}
	return ids, nil
}

type scored struct {
	id    int64
	score float64
}

// best returns the best head chunks in the language.
func (w *wording) best(ctx context.Context, tx pgx.Tx, b bounds, f freshness, limit int) ([]scored, error) {
	args := f.args(w.in(b).args(pgx.NamedArgs{"terms": quoted(w.terms), "weights": weights(w.terms), "mean": w.mean, "limit": limit, "most": nil}))
	if !w.narrow {
		args["most"] = choose
	}
	var chosen []string
	for i, query := range w.choosers() {
		name := "chooser" + string(rune('0'+i))
		args[name] = query
		chosen = append(chosen, strings.Replace(chosenSQL, "%s", "@"+name, 1))
	}
	rows, err := tx.Query(ctx, strings.Replace(lexicalLegSQL, "%s", strings.Join(chosen, " union all "), 1), planned, args)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (s scored, err error) {
		err = row.Scan(&s.id, &s.score)
		return s, err
	})
}
