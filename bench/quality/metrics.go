package main

import (
	"math"
	"slices"
)

// grades are a question's judgments: how well each document answers it. What is
// not in it, or not above 0, does not.
type grades map[string]float64

// relevant counts the documents that answer.
func (g grades) relevant() (n int) {
	for _, grade := range g {
		if grade > 0 {
			n++
		}
	}
	return n
}

// ndcg is the discounted cumulative gain of the first k documents over that of the
// best possible order: Σ grade/log₂(1+rank), the gain being the grade itself, as
// trec_eval has it.
func (g grades) ndcg(ranked []string, k int) float64 {
	var gain float64
	for i, id := range ranked[:min(k, len(ranked))] {
		gain += max(g[id], 0) / math.Log2(float64(i+2))
	}
	var ideal []float64
	for _, grade := range g {
		if grade > 0 {
			ideal = append(ideal, grade)
		}
	}
	slices.SortFunc(ideal, func(a, b float64) int {
		if a > b {
			return -1
		}
		return 1
	})
	var best float64
	for i, grade := range ideal[:min(k, len(ideal))] {
		best += grade / math.Log2(float64(i+2))
	}
	if best == 0 {
		return 0
	}
	return gain / best
}

// recall is the share of the documents that answer which is among the first k.
func (g grades) recall(ranked []string, k int) float64 {
	all := g.relevant()
	if all == 0 {
		return 0
	}
	found := 0
	for _, id := range ranked[:min(k, len(ranked))] {
		if g[id] > 0 {
			found++
		}
	}
	return float64(found) / float64(all)
}

// comparison counts the questions that one ranking answers better than another,
// and how likely so uneven a count is when neither is better (sign test, two-sided).
type comparison struct {
	Better int     `json:"better"`
	Worse  int     `json:"worse"`
	Equal  int     `json:"equal"`
	P      float64 `json:"p"`
}

// same is a difference that is none.
const same = 1e-9

func compare(a, b []float64) (c comparison) {
	for i := range a {
		switch d := a[i] - b[i]; {
		case d > same:
			c.Better++
		case d < -same:
			c.Worse++
		default:
			c.Equal++
		}
	}
	c.P = signTest(c.Better, c.Worse)
	return c
}

func signTest(better, worse int) float64 {
	n := float64(better + worse)
	var p float64
	for k := range min(better, worse) + 1 {
		p += math.Exp(logFactorial(n) - logFactorial(float64(k)) - logFactorial(n-float64(k)) - n*math.Ln2)
	}
	return min(1, 2*p)
}

func logFactorial(n float64) float64 {
	v, _ := math.Lgamma(n + 1)
	return v
}

func mean(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	var sum float64
	for _, v := range values {
		sum += v
	}
	return sum / float64(len(values))
}
