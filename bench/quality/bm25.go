package main

import (
	"cmp"
	"context"
	"maps"
	"math"
	"slices"

	"github.com/jackc/pgx/v5"
)

// Plain BM25 over whole documents, as a yardstick:
//
//	Σ qf(t) · ln(1 + (N−df+½)/(df+½)) · f·(k1+1) / (f + k1·(1−b + b·length/mean))
//
// Terms, their frequencies f and the lengths (in terms, without stop words) are
// what Postgres's 'english' makes of title and text, so that stemming gives neither
// side an advantage.
const (
	k1 = 1.2
	b  = 0.75
)

const (
	lexemesSQL  = `select lexeme, cardinality(positions) from unnest(to_tsvector('english', @text))`
	postingsSQL = `
select d.id, (select coalesce(sum(cardinality(u.positions)), 0) from unnest(d.v) u)::int,
    array(select u.lexeme from unnest(d.v) u where u.lexeme = any(@terms) order by u.lexeme),
    array(select cardinality(u.positions) from unnest(d.v) u where u.lexeme = any(@terms) order by u.lexeme)
from (select id, to_tsvector('english', title || E'\n\n' || body) as v from documents offset 0) d
order by d.id`
)

// bm25 is an index of the questions' terms over the whole corpus.
type bm25 struct {
	documents []string
	length    []int32
	mean      float64
	postings  map[string][]posting
	terms     []map[string]int // of each question, with how often it has them
}

type posting struct{ document, frequency int32 }

func newBM25(ctx context.Context, conn *pgx.Conn, questions []question) (*bm25, error) {
	x := &bm25{postings: map[string][]posting{}}
	asked := map[string]bool{}
	for _, q := range questions {
		terms := map[string]int{}
		rows, err := conn.Query(ctx, lexemesSQL, pgx.NamedArgs{"text": q.text})
		if err != nil {
			return nil, err
		}
		var term string
		var n int
		if _, err := pgx.ForEachRow(rows, []any{&term, &n}, func() error {
			terms[term], asked[term] = n, true
			return nil
		}); err != nil {
			return nil, err
		}
		x.terms = append(x.terms, terms)
	}
	return x, x.read(ctx, conn, asked)
}

func (x *bm25) read(ctx context.Context, conn *pgx.Conn, asked map[string]bool) error {
	rows, err := conn.Query(ctx, postingsSQL, pgx.NamedArgs{"terms": slices.Sorted(maps.Keys(asked))})
	if err != nil {
		return err
	}
	var id string
	var length int32
	var terms []string
	var frequencies []int32
	var total float64
	_, err = pgx.ForEachRow(rows, []any{&id, &length, &terms, &frequencies}, func() error {
		at := int32(len(x.documents))
		x.documents, x.length = append(x.documents, id), append(x.length, length)
		total += float64(length)
		for i, term := range terms {
			x.postings[term] = append(x.postings[term], posting{at, frequencies[i]})
		}
		return nil
	})
	x.mean = max(1, total/float64(max(1, len(x.documents))))
	return err
}

// rank returns the best documents for a question, at most limit; equal ones by id.
func (x *bm25) rank(question, limit int) []string {
	scores := x.scores(question)
	order := slices.SortedFunc(maps.Keys(scores), func(a, b int32) int {
		return cmp.Or(cmp.Compare(scores[b], scores[a]), cmp.Compare(a, b))
	})
	out := make([]string, min(limit, len(order)))
	for i := range out {
		out[i] = x.documents[order[i]]
	}
	return out
}

// scores are of the documents that hold a term of the question.
func (x *bm25) scores(question int) map[int32]float64 {
	scores := map[int32]float64{}
	asked, n := x.terms[question], float64(len(x.documents))
	// In a fixed order, for a sum of floating-point numbers depends on it.
	for _, term := range slices.Sorted(maps.Keys(asked)) {
		df := float64(len(x.postings[term]))
		idf := math.Log(1 + (n-df+0.5)/(df+0.5))
		for _, p := range x.postings[term] {
			f, length := float64(p.frequency), float64(x.length[p.document])
			scores[p.document] += float64(asked[term]) * idf * f * (k1 + 1) / (f + k1*(1-b+b*length/x.mean))
		}
	}
	return scores
}
