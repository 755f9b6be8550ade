package gateway_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/gateway"
	"github.com/whence-db/whence/internal/pg"
	"github.com/whence-db/whence/internal/pgtest"
	"github.com/whence-db/whence/lineage"
)

// A thousand callers at once on a tree four deep, through processes that are killed
// and replaced all the while. At no moment does what is settled and held pass a
// limit, or differ from what processes hold; at the end all that is held has come
// back, and what is settled is what the log says.
func TestBudgetsUnderKills(t *testing.T) {
	t.Parallel()
	const callers, doors = 1000, 3
	each := often(t, "WHENCE_BUDGET_CALLS", 6)
	db := pgtest.New(t)
	w := newWorld(t, db.Pool)
	keeper, _ := w.gateway(t, db.Pool)

	limits := func(calls, rows int64) authz.TaskRequest {
		r := request(calls)
		r.Limits = authz.Limits{authz.Rows: rows, authz.Spend: 3 * calls}
		return r
	}
	root, err := keeper.StartOwn(t.Context(), "olga", limits(int64(each)*250, int64(each)*830))
	if err != nil {
		t.Fatal(err)
	}
	tokens, level := []string{root.Token}, []string{root.Token}
	for depth := 1; depth < 4; depth++ {
		var next []string
		for _, token := range level {
			for i := range 2 {
				r := below(limits(int64(each*(166>>depth)+i*37), int64(each*(660>>depth))), depth)
				s, err := delegate(t, keeper, token, r)
				if err != nil {
					t.Fatal(err)
				}
				next = append(next, s.Token)
			}
		}
		tokens, level = append(tokens, next...), next
	}

	var mu sync.Mutex
	open := make([]*gateway.Gateway, doors)
	kill := make([]func(), doors)
	var names atomic.Int64
	start := func(i int) error {
		name := fmt.Sprint("door-", names.Add(1))
		pool, err := pg.NewPool(t.Context(), db.DSN+"&application_name="+name, 6)
		if err != nil {
			return err
		}
		g, _ := w.gateway(t, pool)
		mu.Lock()
		defer mu.Unlock()
		open[i], kill[i] = g, func() { // wherever it is; from then on nothing that it does reaches the database
			_, err := db.Pool.Exec(context.Background(), "select pg_terminate_backend(pid) from pg_stat_activity where datname = $1 and application_name = $2", db.Name, name)
			if err != nil {
				t.Error(err)
			}
			pool.Close()
		}
		return nil
	}
	for i := range doors {
		if err := start(i); err != nil {
			t.Fatal(err)
		}
	}

	ctx, stop := context.WithCancel(t.Context())
	var others errgroup.Group
	var kills atomic.Int64
	others.Go(func() error {
		for ctx.Err() == nil {
			time.Sleep(400 * time.Millisecond)
			i := rand.IntN(doors)
			mu.Lock()
			shut := kill[i]
			mu.Unlock()
			shut()
			if err := start(i); err != nil && ctx.Err() == nil {
				return err
			}
			kills.Add(1)
			// A dead process's lease is over sooner than it would be.
			if _, err := db.Pool.Exec(t.Context(), "update whence.holders set expires_at = expires_at - interval '20 s'"); err != nil {
				return err
			}
		}
		return nil
	})
	// In one snapshot: no node passes a limit, and what is reserved is what is leased below.
	const wrongSQL = `
select count(*) from whence.tasks t, unnest(t.limits, t.settled, t.reserved) with ordinality as m(l, s, r, meter)
where (l <> 9223372036854775807 and s + r > l) or r <> (
    select coalesce(sum(x.amounts[meter]), 0) from whence.leases x join whence.tasks b on b.id = x.task_id where t.id = any(b.path))`
	others.Go(func() error {
		for ctx.Err() == nil {
			if n := w.number(t, wrongSQL); n != 0 {
				return fmt.Errorf("%d meters of tasks are past their limit, or not as leased", n)
			}
			time.Sleep(20 * time.Millisecond)
		}
		return nil
	})

	var ran, refused, died atomic.Int64
	var group errgroup.Group
	for range callers {
		group.Go(func() error {
			for range each {
				call := read(tokens[rand.IntN(len(tokens))])
				call.Worst = func() authz.Amounts { return authz.Amounts{authz.Rows: 5, authz.Spend: 4} }
				mu.Lock()
				g := open[rand.IntN(doors)]
				mu.Unlock()
				err := g.Do(t.Context(), call, func(_ context.Context, s *gateway.Session) error {
					s.Use(authz.Rows, rand.Int64N(6))
					s.Use(authz.Spend, rand.Int64N(5))
					s.SetAnswer(lineage.Answer{})
					time.Sleep(time.Duration(rand.IntN(3)) * time.Millisecond)
					return nil
				})
				switch reason(err) {
				case "":
					if err == nil {
						ran.Add(1)
					} else {
						died.Add(1)
					}
				case "BUDGET_EXHAUSTED", "BUDGET_BUSY":
					refused.Add(1)
				default:
					died.Add(1)
				}
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		t.Error(err)
	}
	stop()
	if err := others.Wait(); err != nil {
		t.Error(err)
	}
	t.Logf("%d ran, %d were refused, %d died with one of %d processes", ran.Load(), refused.Load(), died.Load(), kills.Load())
	if ran.Load() < 300 || refused.Load() == 0 || died.Load() == 0 {
		t.Error("that was no test")
	}
	for i := range doors {
		kill[i]()
	}
	if _, err := db.Pool.Exec(t.Context(), "update whence.holders set expires_at = now() - interval '1 s'"); err != nil {
		t.Fatal(err)
	}
	for begin := time.Now(); w.number(t, "select max(r) from whence.tasks, unnest(reserved) r") != 0; time.Sleep(50 * time.Millisecond) {
		if time.Since(begin) > 30*time.Second {
			t.Fatal("what dead processes held has not come back")
		}
	}
	const differSQL = `
select count(*) from whence.tasks t where t.settled[1] <> (
        select coalesce(sum(e.calls_charged), 0) from whence.entries e join whence.tasks b on b.id = e.task_id where t.id = any(b.path))
    or t.settled[3] <> (
        select coalesce(sum((e.detail -> 'charged' ->> 'rows')::bigint), 0) from whence.entries e join whence.tasks b on b.id = e.task_id where t.id = any(b.path))
    or t.settled[6] <> (
        select coalesce(sum((e.detail -> 'charged' ->> 'spendMicros')::bigint), 0) from whence.entries e join whence.tasks b on b.id = e.task_id where t.id = any(b.path))`
	if n := w.number(t, differSQL); n != 0 {
		t.Errorf("%d tasks have settled something else than the log says", n)
	}
	if n := w.answers(t); n < ran.Load() {
		t.Errorf("%d calls were told that they ran, and %d answers are stored", ran.Load(), n)
	}
}
