package gateway_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/whence-db/whence/gateway"
)

// number of a variable, for runs that are longer than the usual one.
func often(t *testing.T, variable string, usual int) int {
	t.Helper()
	n, err := strconv.Atoi(os.Getenv(variable))
	if err != nil || n < 1 {
		return usual
	}
	return n
}

// A process dies at a moment that nobody has chosen, while agents write through it
// and take back what they wrote: each key has had one effect, with one entry.
// WHENCE_CRASHES says how often.
func TestRandomCrashes(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	second := s.process(t)
	task := s.agent(t, second, nil)
	const at = 4 // keys at once
	crashes := often(t, "WHENCE_CRASHES", 25)
	for round := range crashes {
		first := s.process(t)
		var group errgroup.Group
		for i := range at {
			id := 1000 + round*at + i
			group.Go(func() error {
				key := fmt.Sprint("k", id)
				args := map[string]any{"id": id, "balance": 1}
				x, _ := first.execute(task.Token, key, "open", args)
				if x.ID != (gateway.Execution{}).ID && i%2 == 0 {
					_, _ = first.undo(task.Token, x.ID)
				}
				err := until(func() (err error) { x, err = second.execute(task.Token, key, "open", args); return err })
				if err != nil {
					return fmt.Errorf("key %s: %w", key, err)
				}
				if i%2 == 1 {
					return nil
				}
				return until(func() error { _, err := second.undo(task.Token, x.ID); return err })
			})
		}
		time.Sleep(time.Duration(rand.IntN(40)) * time.Millisecond)
		first.kill()
		if err := group.Wait(); err != nil {
			t.Fatal(err)
		}
	}
	var rows int
	if err := s.source.Pool.QueryRow(t.Context(), "select count(*) from accounts where id >= 1000").Scan(&rows); err != nil || rows != crashes*at/2 {
		t.Errorf("%d rows of %d: %v", rows, crashes*at/2, err)
	}
	const effects = `
select count(*) from whence.executions x where (
    select count(*) from whence.entries e where e.call like '%/Execute' and e.decision = 'ALLOWED'
        and e.detail ->> 'execution' = x.id::text and not coalesce((e.detail ->> 'replayed')::boolean, false)) <> 1`
	if n := s.number(t, effects); n != 0 {
		t.Errorf("%d executions have not one entry", n)
	}
	if n := s.number(t, "select count(*) from whence.executions where state not in ('SUCCEEDED', 'UNDONE')"); n != 0 {
		t.Errorf("%d executions stand halfway", n)
	}
}
