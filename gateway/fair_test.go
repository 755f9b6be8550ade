package gateway

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/whence-db/whence"
)

// An agent whose calls never end does not keep others out, and is told to come again.
func TestASlowAgentStarvesNobody(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		turns := newTurns(8)
		var slow []func()
		for range 6 {
			leave, err := turns.enter(t.Context(), "slow")
			if err != nil {
				t.Fatal(err)
			}
			slow = append(slow, leave)
		}
		var refused atomic.Int64
		var group errgroup.Group
		for range 20 {
			group.Go(func() error {
				_, err := turns.enter(t.Context(), "slow")
				var e *whence.Error
				if !errors.As(err, &e) || e.Reason != "OVERLOADED" || e.RetryAfter == 0 {
					t.Errorf("one more of the slow one's: %v", err)
				}
				refused.Add(1)
				return nil
			})
		}
		for range 100 { // in turn, while the others wait
			leave, err := turns.enter(t.Context(), "quick")
			if err != nil {
				t.Fatalf("another agent: %v", err)
			}
			time.Sleep(10 * time.Millisecond)
			leave()
		}
		_ = group.Wait()
		for _, leave := range slow {
			leave()
		}
		if refused.Load() != 20 || turns.free != 8 || len(turns.holds) != 0 || len(turns.waiting) != 0 || len(turns.next) != 0 {
			t.Errorf("%d refused, left over: %+v", refused.Load(), turns)
		}
	})
}

// Whatever comes and gives up: never more inside than there is room for, and at the
// end all of it is free.
func TestTurnsAreKept(t *testing.T) {
	t.Parallel()
	turns := newTurns(5)
	var inside, most atomic.Int64
	var group errgroup.Group
	for i := range 40 {
		group.Go(func() error {
			for range 50 {
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(rand.IntN(2000))*time.Microsecond)
				leave, err := turns.enter(ctx, string(rune('a'+i%4)))
				if err == nil {
					if n := inside.Add(1); n > most.Load() {
						most.Store(n)
					}
					time.Sleep(50 * time.Microsecond)
					inside.Add(-1)
					leave()
				}
				cancel()
			}
			return nil
		})
	}
	_ = group.Wait()
	if most.Load() > 5 || turns.free != 5 || len(turns.holds) != 0 || len(turns.waiting) != 0 || len(turns.next) != 0 {
		t.Errorf("%d at once, left over: %+v", most.Load(), turns)
	}
}
