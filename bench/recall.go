package main

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/pgvector/pgvector-go"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/bench/internal/scope"
	"github.com/whence-db/whence/embedder/lexical"
	"github.com/whence-db/whence/index"
	"github.com/whence-db/whence/internal/pg"
)

// recallFound compares the nearest ten there are with what is found of them: by the
// dense leg alone, and among the candidates of a whole search, which are ranked by
// their vectors whatever leg found them.
type recallFound struct {
	Within string  `json:"within"`
	Rows   int     `json:"rows"` // within, about
	Asked  int     `json:"asked"`
	Mean   float64 `json:"recall_mean"`
	Least  float64 `json:"recall_least"`
	Full   int     `json:"full"` // questions with ten found
	Ranked float64 `json:"recall_of_all_legs"`
}

const (
	nearest        = 10
	recallQuestion = 12 // each is compared with every vector
)

// The planner cannot use an approximate index here: none is over all vectors.
const exactSQL = `
select 1 - (v.embedding <=> @vector::halfvec)
from whence.chunks c join whence.vectors v on v.space_id = @space and v.digest = c.digest
where (@subjects::text[] is null or c.subject = any(@subjects::text[])) and (@section = '' or c.attributes ->> 'section' = @section)
order by v.embedding <=> @vector::halfvec
limit @nearest`

// measureRecall asks within everything and within ever less.
func measureRecall(ctx context.Context, s *server, asked []string, rows int) ([]recallFound, error) {
	pool, err := pg.NewPool(ctx, s.env["WHENCE_DATABASE_URL"], 2)
	if err != nil {
		return nil, err
	}
	defer pool.Close()
	x, registry, err := newIndex(pool, s.env["WHENCE_SECRET_KEY"])
	if err != nil {
		return nil, err
	}
	everything, err := scope.Everything(ctx)
	if err != nil {
		return nil, err
	}
	subjects := func(n int) (names []string) {
		for i := range n {
			names = append(names, subjectName(i*7))
		}
		return names
	}
	var out []recallFound
	for _, within := range []struct {
		name     string
		share    float64
		section  string
		subjects []string
	}{
		{name: "everything", share: 1},
		{name: "one section of eight", share: 0.125, section: "orchard"},
		{name: "100 subjects of 1000", share: 0.1, subjects: subjects(100)},
		{name: "10 subjects", share: 0.01, subjects: subjects(10)},
		{name: "one subject", share: 0.001, subjects: subjects(1)},
	} {
		f := recallFound{Within: within.name, Rows: int(within.share * float64(rows)), Least: 1}
		for _, text := range asked[:min(len(asked), recallQuestion)] {
			r := index.SearchRequest{Subjects: within.subjects, Limit: 60}
			if within.section != "" {
				r.Filter = map[string]string{"section": within.section}
			}
			if r.Vector, err = lexical.Default().EmbedQuery(ctx, text); err != nil {
				return nil, err
			}
			var found, ranked, best []float64
			err := pg.Snapshot(ctx, pool, func(tx pgx.Tx) (err error) {
				state, err := registry.State(ctx, tx)
				if err != nil {
					return err
				}
				for _, t := range state.Tables {
					if t.Name() == registeredName(0) {
						r.Tables = []whence.Table{t}
					}
				}
				if r.Space, err = x.CurrentSpace(ctx, tx); err != nil {
					return err
				}
				for _, r.Text = range []string{"", text} {
					candidates, err := x.Search(ctx, tx, everything, r)
					if err != nil {
						return err
					}
					for _, c := range candidates {
						switch {
						case c.Dense == nil:
						case r.Text != "":
							ranked = append(ranked, *c.Dense)
						case c.Legs&index.ByVector != 0:
							found = append(found, *c.Dense)
						}
					}
				}
				rows, err := tx.Query(ctx, exactSQL, pgx.NamedArgs{"vector": pgvector.NewHalfVector(r.Vector).String(), "space": r.Space.ID,
					"subjects": within.subjects, "section": within.section, "nearest": nearest})
				if err != nil {
					return err
				}
				best, err = pgx.CollectRows(rows, pgx.RowTo[float64])
				return err
			})
			if err != nil {
				return nil, fmt.Errorf("recall within %s: %w", within.name, err)
			}
			f.add(found, best)
			f.Ranked += shareOf(ranked, best)
		}
		f.Mean, f.Ranked = f.Mean/float64(f.Asked), f.Ranked/float64(f.Asked)
		out = append(out, f)
	}
	return out, nil
}

// add counts one question.
func (f *recallFound) add(found, best []float64) {
	f.Asked++
	if len(found) >= len(best) {
		f.Full++
	}
	of := shareOf(found, best)
	f.Mean += of
	f.Least = min(f.Least, of)
}

// shareOf tells how many of the best were found; equally near ones are as good as one
// another.
func shareOf(found, best []float64) float64 {
	if len(best) == 0 {
		return 1
	}
	hit := 0
	for _, d := range found {
		if d >= best[len(best)-1]-1e-6 {
			hit++
		}
	}
	return float64(min(hit, len(best))) / float64(len(best))
}
