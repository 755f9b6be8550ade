package main

import (
	"math"
	"testing"
)

func near(a, b float64) bool { return math.Abs(a-b) < 1e-6 }

func TestMetrics(t *testing.T) {
	t.Parallel()
	// The discounts of the ranks 1 to 4 are 1, 0.6309298, 0.5 and 0.4306766.
	two := grades{"a": 2, "b": 1, "x": 0, "y": -1}
	for _, test := range []struct {
		name   string
		grades grades
		ranked []string
		k      int
		ndcg   float64
		recall float64
	}{
		{"the best order", two, []string{"a", "b", "c"}, 10, 1, 1},
		{"the other way round", two, []string{"b", "a"}, 10, (1 + 2*0.6309298) / (2 + 0.6309298), 1},
		{"one of two, third", two, []string{"c", "x", "a"}, 10, 2 * 0.5 / (2 + 0.6309298), 0.5},
		{"beyond the cut", two, []string{"c", "a", "b"}, 1, 0, 0},
		{"the ideal is cut too", grades{"a": 1, "b": 1, "c": 1}, []string{"a", "z"}, 2, 1 / 1.6309298, 1.0 / 3},
		{"a bad grade is no loss", two, []string{"y", "a", "b"}, 10, (2*0.6309298 + 0.5) / (2 + 0.6309298), 1},
		{"fractions", grades{"a": 0.5, "b": 1.5}, []string{"a", "b"}, 10, (0.5 + 1.5*0.6309298) / (1.5 + 0.5*0.6309298), 1},
		{"nothing found", two, nil, 10, 0, 0},
		{"nothing to find", grades{"x": 0}, []string{"x"}, 10, 0, 0},
	} {
		if got := test.grades.ndcg(test.ranked, test.k); !near(got, test.ndcg) {
			t.Errorf("%s: nDCG@%d is %.6f, want %.6f", test.name, test.k, got, test.ndcg)
		}
		if got := test.grades.recall(test.ranked, test.k); !near(got, test.recall) {
			t.Errorf("%s: recall@%d is %.6f, want %.6f", test.name, test.k, got, test.recall)
		}
	}
}

func TestCompare(t *testing.T) {
	t.Parallel()
	got := compare([]float64{0.5, 0.7, 0.1, 0.3}, []float64{0.4, 0.6, 0.2, 0.3 + 1e-12})
	if got.Better != 2 || got.Worse != 1 || got.Equal != 1 || !near(got.P, 1) {
		t.Errorf("%+v", got)
	}
	for _, test := range []struct {
		better, worse int
		p             float64
	}{
		{0, 0, 1}, {5, 5, 1}, {1, 0, 1},
		{5, 0, 2.0 / 32},
		{1, 9, 2 * (1 + 10) / 1024.0},
		{8, 2, 2 * (1 + 10 + 45) / 1024.0},
	} {
		if p := signTest(test.better, test.worse); !near(p, test.p) {
			t.Errorf("%d better, %d worse: %.6f, want %.6f", test.better, test.worse, p, test.p)
		}
	}
	if p := signTest(6000, 4000); p > 1e-80 || p < 0 || math.IsNaN(p) {
		t.Errorf("6000 better, 4000 worse: %g", p)
	}
}

func TestWithout(t *testing.T) {
	t.Parallel()
	questions := []question{{id: "1", grades: grades{"2": 1}}, {id: "2", grades: grades{"2": 1}}}
	got := without([][]string{{"1", "2"}, {"1", "2"}}, questions)
	if len(got[0]) != 1 || got[0][0] != "2" || len(got[1]) != 2 {
		t.Errorf("%q", got)
	}
}

// plainIndex is of three documents of the terms a, b and c; the mean length is 4.
func plainIndex() *bm25 {
	return &bm25{documents: []string{"one", "two", "three"}, length: []int32{2, 4, 6}, mean: 4,
		postings: map[string][]posting{"a": {{0, 1}, {2, 3}}, "b": {{1, 1}}},
		terms:    []map[string]int{{"a": 1}, {"a": 1, "b": 1}, {"c": 1}, {"a": 2, "b": 1}}}
}

func TestPlainBM25(t *testing.T) {
	t.Parallel()
	x := plainIndex()
	// idf(a) = ln 1.6 = 0.4700036292, idf(b) = ln (1 + 2.5/1.5) = 0.9808292530. For a the
	// document one gets 2.2/(1 + 1.2·0.625) = 1.2571428571 times that, three 6.6/(3 +
	// 1.2·1.375) = 1.4193548387 times; for b the document two gets 2.2/2.2.
	for q, want := range []map[int32]float64{
		{0: 0.4700036292 * 1.2571428571, 2: 0.4700036292 * 1.4193548387},
		{0: 0.4700036292 * 1.2571428571, 1: 0.9808292530, 2: 0.4700036292 * 1.4193548387},
		{},
		{0: 2 * 0.4700036292 * 1.2571428571, 1: 0.9808292530, 2: 2 * 0.4700036292 * 1.4193548387},
	} {
		got := x.scores(q)
		if len(got) != len(want) {
			t.Errorf("question %d: %v, want %v", q, got, want)
		}
		for d, score := range want {
			if !near(got[d], score) {
				t.Errorf("question %d, document %d: %.6f, want %.6f", q, d, got[d], score)
			}
		}
	}
	for q, want := range [][]string{{"three", "one"}, {"two", "three"}, {}, {"three", "one"}} {
		got := x.rank(q, 2)
		if len(got) != len(want) {
			t.Fatalf("question %d: %q, want %q", q, got, want)
		}
		for i := range want {
			if got[i] != want[i] {
				t.Errorf("question %d: %q, want %q", q, got, want)
			}
		}
	}
}
