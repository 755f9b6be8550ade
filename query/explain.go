package query

import "github.com/whence-db/whence/index"

// Explanation says how an answer came about: by which parameters, from how many
// candidates, and what came close.
type Explanation struct {
	Ranking
	// RecencyWeight is the most that age could cost, as asked or by default.
	RecencyWeight                float64
	ByVector, ByTerms, ByRecency int // candidates that each leg found
	LeftOut                      []LeftOut
}

// LeftOut is a chunk that was scored and is not in the answer.
type LeftOut struct {
	Hit
	Repeats bool // it says what a better hit of its record says; else it is below the limit
}

const maximumLeftOut = 20

func (e *Engine) explain(r Request, found []index.Candidate, below, repeats []Hit) *Explanation {
	x := &Explanation{Ranking: e.Ranking, RecencyWeight: e.Ranking.Recency}
	if r.Recency.Weight != nil {
		x.RecencyWeight = *r.Recency.Weight
	}
	for _, c := range found {
		x.ByVector += int(c.Legs & index.ByVector / index.ByVector)
		x.ByTerms += int(c.Legs & index.ByTerms / index.ByTerms)
		x.ByRecency += int(c.Legs & index.ByTime / index.ByTime)
	}
	all := make([]Hit, 0, len(below)+len(repeats))
	again := map[int64]bool{}
	for _, h := range repeats {
		again[h.ChunkID] = true
	}
	all = append(append(all, below...), repeats...)
	rank(all)
	for _, h := range all[:min(len(all), maximumLeftOut)] {
		x.LeftOut = append(x.LeftOut, LeftOut{Hit: h, Repeats: again[h.ChunkID]})
	}
	return x
}
