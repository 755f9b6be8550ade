package upstream

import (
	"math"
	"net/http"
	"strings"
	"testing"
)

func TestSpend(t *testing.T) {
	t.Parallel()
	const limit = 1_000_000
	for _, c := range []struct {
		header string
		unit   int64
		want   int64
	}{
		{"0", 1, 0}, {"7", 1, 7}, {"7", 0, 7}, {" 7\t", 1, 7}, {"0.25", 1_000_000, 250_000}, {"0.000001", 1_000_000, 1}, {"0.0000001", 1_000_000, 1}, {"1.5e-05", 1_000_000, 15},
		{"2E+2", 1, 200}, {"0.1", 1, 1}, {"0.30000000000000004", 10, 4}, {"1000001", 1, limit}, {"9223372036854775808", 1, limit}, {"1e30", math.MaxInt64, limit}, {"1e99", 1, limit},
		{"0.0", math.MaxInt64, 0}, {"-1", 1, limit}, {"+1", 1, limit}, {"1,5", 1, limit}, {"", 1, limit}, {"NaN", 1, limit}, {"Inf", 1, limit}, {"1/3", 1, limit}, {"0x10", 1, limit}, {"1_0", 1, limit},
		{"1e999999999", 1, limit}, {"1e-999999999", 1, limit}, {".5", 1, limit}, {"5.", 1, limit}, {"$5", 1, limit}, {"1 2", 1, limit}, {strings.Repeat("0", 31), 1, limit},
	} {
		got := Spend(Rule{CostMicros: limit, SpendHeader: "X-Cost", SpendUnitMicros: c.unit}, http.Header{"X-Cost": {c.header}})
		if got != c.want {
			t.Errorf("%q of %d is %d, want %d", c.header, c.unit, got, c.want)
		}
	}
	r := Rule{CostMicros: limit, SpendHeader: "x-cost", SpendUnitMicros: 1}
	if got := Spend(r, http.Header{}); got != limit {
		t.Errorf("without the header %d", got)
	}
	if got := Spend(r, http.Header{"X-Cost": {"1", "2"}}); got != limit {
		t.Errorf("with two headers %d", got)
	}
	if got := Spend(Rule{CostMicros: limit}, http.Header{"": {"1"}}); got != limit {
		t.Errorf("without a name %d", got)
	}
	if got := Spend(Rule{CostMicros: -5}, nil); got != 0 {
		t.Errorf("a negative cost is %d", got)
	}
}
