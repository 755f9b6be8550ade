package main

import (
	"math"
	"slices"
	"time"
)

// percentile returns the smallest value that at least the share q of the values,
// which must be sorted, do not exceed (the nearest rank). No values: zero.
func percentile(sorted []time.Duration, q float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	rank := int(math.Ceil(q * float64(len(sorted))))
	return sorted[min(max(rank, 1), len(sorted))-1]
}

// figure is one measurement made several times: the median and the extremes.
type figure struct {
	Median float64 `json:"median"`
	Low    float64 `json:"low"`
	High   float64 `json:"high"`
}

// figureOf sums up values in any order; there must be at least one. The median of
// an even number is the mean of the middle two.
func figureOf(values []float64) figure {
	s := slices.Sorted(slices.Values(values))
	n := len(s)
	return figure{Median: (s[(n-1)/2] + s[n/2]) / 2, Low: s[0], High: s[n-1]}
}

// pairwise divides each value by the one that was measured beside it, so that a
// machine that slows down half-way slows both.
func pairwise(ours, rivals []float64) figure {
	ratios := make([]float64, len(ours))
	for i := range ours {
		ratios[i] = ours[i] / rivals[i]
	}
	return figureOf(ratios)
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
