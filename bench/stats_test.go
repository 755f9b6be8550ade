package main

import (
	"slices"
	"testing"
	"time"
)

func TestPercentileIsTheNearestRank(t *testing.T) {
	t.Parallel()
	hundred := make([]time.Duration, 100)
	for i := range hundred {
		hundred[i] = time.Duration(i + 1)
	}
	for _, c := range []struct {
		values []time.Duration
		q      float64
		want   time.Duration
	}{
		{nil, 0.5, 0},
		{[]time.Duration{7}, 0.01, 7},
		{[]time.Duration{7}, 0.99, 7},
		{[]time.Duration{1, 2}, 0.5, 1},
		{[]time.Duration{1, 2, 3}, 0.5, 2},
		{[]time.Duration{1, 2, 3, 4}, 0.99, 4},
		{hundred, 0, 1},
		{hundred, 0.5, 50},
		{hundred, 0.99, 99},
		{hundred, 1, 100},
	} {
		if got := percentile(c.values, c.q); got != c.want {
			t.Errorf("percentile of %d values at %v: %d, want %d", len(c.values), c.q, got, c.want)
		}
	}
}

func TestFigure(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		values []float64
		want   figure
	}{
		{[]float64{3}, figure{3, 3, 3}},
		{[]float64{9, 1, 5}, figure{5, 1, 9}},
		{[]float64{8, 1, 4, 2}, figure{3, 1, 8}},
	} {
		given := slices.Clone(c.values)
		if got := figureOf(c.values); got != c.want {
			t.Errorf("%v: %+v, want %+v", c.values, got, c.want)
		}
		if !slices.Equal(given, c.values) {
			t.Errorf("the values were reordered to %v", c.values)
		}
	}
}

// A machine that becomes ten times slower half-way must not show in a ratio.
func TestPairwiseComparesNeighbours(t *testing.T) {
	t.Parallel()
	if got, want := pairwise([]float64{2, 2, 20}, []float64{1, 1, 10}), (figure{2, 2, 2}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}

func TestArticlesAreTheSameEveryTime(t *testing.T) {
	t.Parallel()
	a, b, other := writeArticles(1, 200), writeArticles(1, 200), writeArticles(2, 200)
	if !slices.Equal(a, b) {
		t.Error("one seed gave two texts")
	}
	if a[0].body == other[0].body {
		t.Error("two seeds gave one text")
	}
	if q, again := questions(a, 50), questions(b, 50); !slices.Equal(q, again) || len(q) != 50 {
		t.Errorf("%d and %d questions", len(q), len(again))
	}
}
