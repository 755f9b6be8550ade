package remote

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

func testLane(most int) *lane {
	return newLane(Config{Concurrency: most, Now: time.Now, Jitter: func() float64 { return 0 }})
}

func TestLaneHalvesOnceForAFlight(t *testing.T) {
	t.Parallel()
	l, now := testLane(8), time.Now()
	for range 4 { // in flight together
		l.narrow(now, now.Add(time.Second))
	}
	if l.limit != 4 {
		t.Errorf("limit %v, want 4", l.limit)
	}
	for i := range 5 { // one after the other
		l.narrow(now.Add(time.Duration(2+i)*time.Second), now.Add(time.Duration(2+i)*time.Second))
	}
	if l.limit != 1 {
		t.Errorf("limit %v, want 1", l.limit)
	}
	grown := 0
	for l.limit < 2 {
		l.widen()
		grown++
	}
	for l.limit < 8 {
		l.widen()
		grown++
	}
	if grown < 28 || grown > 36 { // about 1 + 2 + … + 7
		t.Errorf("grown back after %d good requests", grown)
	}
	l.widen()
	if l.limit != 8 {
		t.Errorf("limit %v, want 8", l.limit)
	}
}

// Places are given in order, and one that is given up goes to the next.
func TestLaneOrder(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := testLane(1)
		if err := l.enter(t.Context()); err != nil {
			t.Fatal(err)
		}
		var order []int
		wait := func(ctx context.Context, i int) {
			go func() {
				if l.enter(ctx) == nil {
					order = append(order, i) // one at a time: the lane has one place
					l.leave()
				}
			}()
			synctest.Wait()
		}
		given, giveUp := context.WithCancel(t.Context())
		wait(t.Context(), 1)
		wait(given, 2)
		wait(t.Context(), 3)
		giveUp()
		synctest.Wait()
		l.leave()
		synctest.Wait()
		if len(order) != 2 || order[0] != 1 || order[1] != 3 {
			t.Errorf("let in %v, want 1 and 3", order)
		}
		if l.busy != 0 || len(l.waiting) != 0 {
			t.Errorf("%d in flight and %d waiting at the end", l.busy, len(l.waiting))
		}
	})
}

// Whoever is let in at the moment it gives up passes its place on.
func TestLaneLosesNoPlace(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := testLane(1)
		for range 100 { // both are ready, and either may be taken
			if err := l.enter(t.Context()); err != nil {
				t.Fatal(err)
			}
			ctx, giveUp := context.WithCancel(t.Context())
			go func() {
				if l.enter(ctx) == nil {
					l.leave()
				}
			}()
			synctest.Wait()
			giveUp()
			l.leave()
			synctest.Wait()
			if l.busy != 0 || len(l.waiting) != 0 {
				t.Fatalf("%d in flight and %d waiting at the end", l.busy, len(l.waiting))
			}
		}
	})
}
