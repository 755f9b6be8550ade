package main

import (
	"context"
	"fmt"
	"runtime"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/bench/internal/scope"
	"github.com/whence-db/whence/embedder"
	"github.com/whence-db/whence/query"
)

// measured is how well one ranking answered the questions.
type measured struct {
	Name      string      `json:"name"`
	NDCG10    float64     `json:"ndcg_at_10"`
	Recall10  float64     `json:"recall_at_10"`
	Recall100 float64     `json:"recall_at_100"`
	Against   *comparison `json:"against_bm25,omitempty"` // nDCG@10, question by question

	ndcg   []float64 // of each question
	ranked [][]string
}

func measure(name string, questions []question, ranked [][]string) measured {
	m := measured{Name: name, ranked: ranked}
	var near, far []float64
	for i, q := range questions {
		m.ndcg = append(m.ndcg, q.grades.ndcg(ranked[i], 10))
		near = append(near, q.grades.recall(ranked[i], 10))
		far = append(far, q.grades.recall(ranked[i], 100))
	}
	m.NDCG10, m.Recall10, m.Recall100 = mean(m.ndcg), mean(near), mean(far)
	return m
}

// asker asks the questions of the memory through the query engine.
type asker struct {
	world     *world
	questions []question
	scope     authz.Scope
	limit     int           // of hits
	patience  time.Duration // with the model
}

func newAsker(ctx context.Context, w *world, questions []question, c config) (*asker, error) {
	everything, err := scope.Everything(ctx)
	return &asker{w, questions, everything, c.limit, c.model.server.QueryTimeout}, err
}

// rank answers every question by a ranking. A document is where its best chunk is.
func (a *asker) rank(ctx context.Context, r query.Ranking) ([][]string, error) {
	engine, err := query.New(query.Config{Index: a.world.index, Registry: a.world.registry, Pool: a.world.memory,
		Models: []embedder.Model{a.world.model}, Ranking: r, EmbedTimeout: a.patience, Clock: a.world.now})
	if err != nil {
		return nil, err
	}
	out := make([][]string, len(a.questions))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(min(runtime.GOMAXPROCS(0), connections))
	for i, q := range a.questions {
		g.Go(func() error {
			answer, err := engine.Query(ctx, a.scope, query.Request{Text: q.text, Limit: a.limit})
			if err == nil && answer.Degraded != "" {
				err = fmt.Errorf("a degraded answer: %s", answer.Degraded)
			}
			if err != nil {
				return fmt.Errorf("question %s: %w", q.id, err)
			}
			out[i] = documents(answer.Hits)
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return without(out, a.questions), nil
}

// now is when the questions are asked: as the newest document appears, so that the
// figures are the same next year.
func (w *world) now() time.Time {
	if w.newest.IsZero() {
		return time.Now()
	}
	return w.newest
}

// documents are the hits' rows, each once.
func documents(hits []query.Hit) (ids []string) {
	seen := map[string]bool{}
	for _, h := range hits {
		if id := h.Origin.Key.Values()["id"]; id != nil && !seen[*id] {
			seen[*id] = true
			ids = append(ids, *id)
		}
	}
	return ids
}

// without leaves out of each answer the document that is the question itself: in
// some data sets the questions are documents, and are not judged as answers.
func without(ranked [][]string, questions []question) [][]string {
	for i, q := range questions {
		kept := make([]string, 0, len(ranked[i]))
		for _, id := range ranked[i] {
			if _, judged := q.grades[id]; judged || id != q.id {
				kept = append(kept, id)
			}
		}
		ranked[i] = kept
	}
	return ranked
}

// comparisons measures plain BM25, each leg alone, and both together, without
// recency and with it.
func comparisons(ctx context.Context, a *asker, chosen query.Ranking) ([]measured, error) {
	x, err := newBM25(ctx, a.world.app, a.questions)
	if err != nil {
		return nil, fmt.Errorf("plain BM25: %w", err)
	}
	plain := make([][]string, len(a.questions))
	for i := range a.questions {
		plain[i] = x.rank(i, query.MaxLimit)
	}
	out := []measured{measure("plain BM25", a.questions, without(plain, a.questions))}
	lexical, dense, timeless := chosen, chosen, chosen
	lexical.Dense, lexical.Lexical, lexical.Recency = 0, 1, 0
	dense.Dense, dense.Lexical, dense.Recency = 1, 0, 0
	timeless.Recency = 0
	for _, r := range []struct {
		name    string
		ranking query.Ranking
	}{{"lexical only", lexical}, {"dense only", dense}, {"fused, no recency", timeless}, {"fused", chosen}} {
		ranked, err := a.rank(ctx, r.ranking)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", r.name, err)
		}
		m := measure(r.name, a.questions, ranked)
		c := compare(m.ndcg, out[0].ndcg)
		m.Against = &c
		out = append(out, m)
	}
	return out, nil
}

// swept is nDCG@10 by the weights of the legs and of recency.
type swept struct {
	Dense   float64   `json:"dense"`
	Lexical float64   `json:"lexical"`
	NDCG10  []float64 `json:"ndcg_at_10"` // by the weights of recency
}

var (
	denseSteps   = []float64{1, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0}
	recencySteps = []float64{0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5}
)

// sweep tries every pair of weights; without times in the corpus only the legs.
func sweep(ctx context.Context, a *asker, chosen query.Ranking, say func(string, ...any)) (out []swept, recency []float64, err error) {
	recency = recencySteps
	if a.world.newest.IsZero() {
		recency = recency[:1]
	}
	for _, dense := range denseSteps {
		s := swept{Dense: dense, Lexical: 1 - dense}
		for _, w := range recency {
			r := chosen
			r.Dense, r.Lexical, r.Recency = s.Dense, s.Lexical, w
			ranked, err := a.rank(ctx, r)
			if err != nil {
				return nil, nil, err
			}
			s.NDCG10 = append(s.NDCG10, measure("", a.questions, ranked).NDCG10)
		}
		say("tried dense %.1f, lexical %.1f", s.Dense, s.Lexical)
		out = append(out, s)
	}
	return out, recency, nil
}
