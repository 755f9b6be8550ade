package index

import (
	"slices"
	"testing"
)

// However vectors arrive, each is indexed few times and segments stay few.
func TestNextSegment(t *testing.T) {
	t.Parallel()
	for _, step := range []int64{1, 700, 10_000, 33_333, 250_000} {
		var have []segment
		var built, before int64
		for last := step; last <= 1_000_000; last += step {
			next, replaced, ok := nextSegment(have, last, before)
			before = last
			if !ok {
				next, replaced, ok = nextSegment(have, last, before) // nothing came meanwhile
			}
			rest := last
			if n := len(have); n > 0 {
				rest -= have[n-1].high
			}
			if ok != (rest >= segmentLeast) {
				t.Fatalf("%d vectors without an index, and building is %v", rest, ok)
			}
			if !ok {
				continue
			}
			built += next.size()
			have = have[:len(have)-len(replaced)]
			if len(have) > 0 && have[len(have)-1].high != next.low || next.high != last {
				t.Fatalf("%+v after %+v", next, have)
			}
			have = append(have, next)
		}
		if len(have) > 6 || built > 9_000_000 || !slices.IsSortedFunc(have, func(a, b segment) int { return int(b.size() - a.size()) }) {
			t.Errorf("by %d: %d segments %+v, %d vectors indexed", step, len(have), have, built)
		}
		t.Logf("by %d: %d segments, %d vectors indexed", step, len(have), built)
	}
}

func TestSegmentsWaitWhileVectorsCome(t *testing.T) {
	t.Parallel()
	if next, _, ok := nextSegment(nil, 30_000, 20_000); ok {
		t.Errorf("built %+v while more were coming", next)
	}
	if _, _, ok := nextSegment(nil, 60_000, 20_000); !ok {
		t.Error("60,000 vectors are compared one by one")
	}
	if _, _, ok := nextSegment([]segment{{0, 200_000}}, 260_000, 250_000); ok {
		t.Error("a quarter more is indexed although more are coming")
	}
}
