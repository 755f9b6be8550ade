package gateway_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/embedder"
	"github.com/whence-db/whence/gateway"
	"github.com/whence-db/whence/internal/pg"
	"github.com/whence-db/whence/internal/pgtest"
	"github.com/whence-db/whence/lineage"
)

func TestExactlyTheBudgetRuns(t *testing.T) {
	t.Parallel()
	const calls, budget = 200, 50
	w, g := open(t)
	token, task := w.start(t, g, budget)
	var ran, refused atomic.Int64
	var group errgroup.Group
	for range calls {
		group.Go(func() error {
			err := g.Do(t.Context(), read(token), func(_ context.Context, s *gateway.Session) error {
				ran.Add(1)
				s.SetAnswer(lineage.Answer{})
				return nil
			})
			var e *whence.Error
			switch {
			case err == nil:
				return nil
			case !errors.As(err, &e) || e.Reason != "BUDGET_EXHAUSTED" || !errors.Is(err, whence.ErrExhausted):
				return err
			case e.Metadata["task"] != task.String() || e.Metadata["limit"] != "50" || e.Metadata["used"] != "50":
				return fmt.Errorf("the refusal says %v", e.Metadata)
			}
			refused.Add(1)
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		t.Error(err)
	}
	if ran.Load() != budget || refused.Load() != calls-budget {
		t.Errorf("%d ran and %d were refused", ran.Load(), refused.Load())
	}
	counts := map[line]int{}
	for _, l := range w.entries(t, query) {
		counts[l]++
	}
	if counts[line{"ALLOWED", "", 1}] != budget || counts[line{"REFUSED", "BUDGET_EXHAUSTED", 0}] != calls-budget || len(counts) != 2 {
		t.Errorf("entries: %v", counts)
	}
	if used, answers := w.used(t, task), w.answers(t); used != budget || answers != budget {
		t.Errorf("used %d, answers %d", used, answers)
	}
}

// tally counts, in memory, the calls that a task tree has under way or has paid.
type tally struct {
	mu    sync.Mutex
	nodes map[uuid.UUID]*count
}

type count struct {
	path        []uuid.UUID // the task and those above it
	limit, used int64
}

func (c *tally) add(task uuid.UUID, n int64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, id := range c.nodes[task].path {
		node := c.nodes[id]
		if node.used += n; node.used > node.limit {
			return fmt.Errorf("task %s runs or has paid %d calls of %d", id, node.used, node.limit)
		}
	}
	return nil
}

// A tree of three levels, called from all sides through two gateways on one
// database, with calls that fail in every way: no node ever passes its limit, and
// at the end each holds exactly what the log says was paid below it.
func TestTreeNeverOvershoots(t *testing.T) {
	t.Parallel()
	w, one := open(t)
	two, _ := w.gateway(t, w.pool)
	doors := []*gateway.Gateway{one, two}

	c := tally{nodes: map[uuid.UUID]*count{}}
	tokens := map[string]uuid.UUID{}
	rootToken, root := w.start(t, one, 120)
	c.nodes[root] = &count{path: []uuid.UUID{root}, limit: 120}
	tokens[rootToken] = root
	level := map[string]uuid.UUID{rootToken: root}
	for depth, limit := range []int64{80, 45} {
		next := map[string]uuid.UUID{}
		for token, parent := range level {
			for range 2 { // two of them may spend more than the task above has
				s, err := delegate(t, one, token, below(request(limit), depth+1))
				if err != nil {
					t.Fatal(err)
				}
				id := s.Task.ID
				c.nodes[id] = &count{path: append([]uuid.UUID{id}, c.nodes[parent].path...), limit: limit}
				next[s.Token], tokens[s.Token] = id, id
			}
		}
		level = next
	}
	var bearers []string
	for token := range tokens {
		bearers = append(bearers, token)
	}

	outcomes := []struct {
		err  error
		paid bool
	}{
		{nil, true}, {nil, true},
		{errors.New("a defect"), false},
		{&whence.Error{Kind: whence.ErrUnavailable, Reason: "DOWN"}, false},
		{whence.Invalid("text", "BLANK", "blank"), false},
		{&whence.Error{Kind: whence.ErrNotFound, Reason: "NOT_FOUND"}, true},
		{context.Canceled, true},
	}
	const seed = 20260301
	var group errgroup.Group
	for worker := range 16 {
		group.Go(func() error {
			r := rand.New(rand.NewPCG(seed, uint64(worker)))
			for range 40 {
				token := bearers[r.IntN(len(bearers))]
				task, o := tokens[token], outcomes[r.IntN(len(outcomes))]
				err := doors[r.IntN(2)].Do(t.Context(), read(token), func(context.Context, *gateway.Session) error {
					if err := c.add(task, 1); err != nil {
						return errors.Join(errors.New("overshoot"), err)
					}
					if !o.paid { // given back only after this has returned
						return errors.Join(o.err, c.add(task, -1))
					}
					return o.err
				})
				if !errors.Is(err, o.err) && reason(err) != "BUDGET_EXHAUSTED" {
					return err
				}
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		t.Error(err)
	}
	if n := len(w.entries(t, query)); n != 16*40 {
		t.Errorf("%d calls left %d entries", 16*40, n)
	}
	const paidSQL = `
select coalesce(sum(e.calls_charged), 0)::bigint
from whence.entries e join whence.tasks t on t.id = e.task_id
where $1 = any(t.path)`
	for id, node := range c.nodes {
		if used, paid := w.used(t, id), w.number(t, paidSQL, id); used != node.used || paid != used || used > node.limit {
			t.Errorf("depth %d: used %d of %d, in the log %d, counted %d", len(node.path)-1, used, node.limit, paid, node.used)
		}
	}
	if c.nodes[root].used < 100 {
		t.Errorf("only %d calls were paid: the limits were not put to the test", c.nodes[root].used)
	}
}

// A process that dies between charging and recording leaves what it holds behind:
// others may run only what is left, until its lease is over.
func TestCrashOfAProcess(t *testing.T) {
	t.Parallel()
	const budget, lost = 50, 30
	db := pgtest.New(t)
	w := newWorld(t, db.Pool)
	pool, err := pg.NewPool(t.Context(), db.DSN, 4)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	living, _ := w.gateway(t, db.Pool)
	dying, _ := w.gateway(t, pool)
	token, task := w.start(t, living, budget)

	var inside sync.WaitGroup
	inside.Add(lost)
	crash := make(chan struct{})
	var group errgroup.Group
	for range lost {
		group.Go(func() error {
			err := dying.Do(t.Context(), read(token), func(_ context.Context, s *gateway.Session) error {
				s.SetAnswer(lineage.Answer{})
				inside.Done()
				<-crash
				return nil
			})
			if reason(err) != "AUDIT_UNAVAILABLE" {
				return fmt.Errorf("a call that cannot be recorded: %w", err)
			}
			return nil
		})
	}
	inside.Wait()
	pool.Close() // nothing of the dying process reaches the database any more
	close(crash)
	if err := group.Wait(); err != nil {
		t.Error(err)
	}

	var ran atomic.Int64
	for range 100 {
		group.Go(func() error {
			err := living.Do(t.Context(), read(token), func(context.Context, *gateway.Session) error {
				ran.Add(1)
				return nil
			})
			if err != nil && reason(err) != "BUDGET_BUSY" {
				return err
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		t.Error(err)
	}
	if used, answers := w.used(t, task), w.answers(t); ran.Load() > budget-lost || ran.Load() < budget-lost-3 || used != ran.Load() || answers != 0 {
		t.Errorf("%d ran, used %d, %d answers", ran.Load(), used, answers)
	}
	if _, err := w.pool.Exec(t.Context(), "update whence.holders set expires_at = now() - interval '1 s'"); err != nil { // the living one renews itself
		t.Fatal(err)
	}
	deadline := time.Now().Add(30 * time.Second)
	for w.number(t, "select reserved[1] from whence.tasks where id = $1", task) != 0 && time.Now().Before(deadline) {
		time.Sleep(50 * time.Millisecond)
	}
	for range budget - ran.Load() { // with what it had leased ahead
		if err := living.Do(t.Context(), read(token), nothing); err != nil {
			t.Fatalf("with %d of %d used: %v", w.used(t, task), budget, err)
		}
	}
	if err := living.Do(t.Context(), read(token), nothing); reason(err) != "BUDGET_EXHAUSTED" {
		t.Errorf("one more than there were: %v", err)
	}
}

// When the database crashes during a call, what was held for it may not have reached
// the disk. The call is charged as it is recorded, or does not succeed.
func TestCrashOfTheDatabaseDuringACall(t *testing.T) {
	t.Parallel()
	cluster := pgtest.OwnCluster(t, nil)
	pool := migrated(t, cluster)
	w := newWorld(t, pool)
	g, _ := w.gateway(t, pool)
	token, task := w.start(t, g, 10)
	if err := g.Do(t.Context(), read(token), nothing); err != nil {
		t.Fatal(err)
	}
	crash := func(ctx context.Context, s *gateway.Session) error {
		s.SetAnswer(lineage.Answer{})
		embedder.Record(ctx, embedder.Usage{Calls: 1, Tokens: 9})
		cluster.Kill()
		if err := cluster.Restart(ctx); err != nil {
			return err
		}
		pool.Reset()
		return pool.Ping(ctx)
	}
	if err := g.Do(t.Context(), read(token), crash); err != nil {
		t.Errorf("a call that the task can pay all the same: %v", err)
	}
	if used := w.used(t, task); used != 2 || w.answers(t) != 1 {
		t.Errorf("used %d, answers %d", used, w.answers(t))
	}
	// Somebody else gets all that is left while the database is gone.
	err := g.Do(t.Context(), read(token), func(ctx context.Context, s *gateway.Session) error {
		if err := crash(ctx, s); err != nil {
			return err
		}
		_, err := pool.Exec(ctx, "delete from whence.leases")
		if err == nil {
			_, err = pool.Exec(ctx, "update whence.tasks set settled[1] = 10, reserved[1] = 0 where id = $1", task)
		}
		return err
	})
	if reason(err) != "RESERVATION_LOST" {
		t.Errorf("a call that nothing is left for: %v", err)
	}
	lines := w.entries(t, query)
	if n := len(lines); n != 3 || lines[n-1] != (line{"FAILED", "RESERVATION_LOST", 0}) || w.answers(t) != 1 {
		t.Errorf("entries %v, answers %d", lines, w.answers(t))
	}
	// What the model was asked was asked all the same.
	if got, err := g.GetTask(t.Context(), task); err != nil || got.Usage != (gateway.Usage{EmbeddingCalls: 2, EmbeddingTokens: 18}) {
		t.Errorf("the task has used %+v: %v", got.Usage, err)
	}
	if err := g.Do(t.Context(), read(token), nothing); reason(err) != "BUDGET_EXHAUSTED" {
		t.Errorf("the next call: %v", err)
	}
}

func TestWhatACallCosts(t *testing.T) {
	t.Parallel()
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	for name, c := range map[string]struct {
		ctx     context.Context
		prepare error
		err     error
		panics  bool
		want    line
	}{
		"success":        {want: line{"ALLOWED", "", 1}},
		"bad request":    {prepare: whence.Invalid("text", "BLANK", "blank"), want: line{"REFUSED", "BLANK", 0}},
		"found bad":      {err: whence.Invalid("text", "BLANK", "blank"), want: line{"REFUSED", "BLANK", 0}},
		"defect":         {err: errors.New("a defect"), want: line{"FAILED", "INTERNAL", 0}},
		"panic":          {panics: true, want: line{"FAILED", "INTERNAL", 0}},
		"unavailable":    {err: &whence.Error{Kind: whence.ErrUnavailable, Reason: "DOWN"}, want: line{"FAILED", "DOWN", 0}},
		"out of scope":   {err: &whence.Error{Kind: whence.ErrDenied, Reason: "TABLE_OUT_OF_SCOPE"}, want: line{"REFUSED", "TABLE_OUT_OF_SCOPE", 1}},
		"given up":       {err: context.Canceled, want: line{"FAILED", "CANCELED", 1}},
		"too slow":       {err: context.DeadlineExceeded, want: line{"FAILED", "DEADLINE_EXCEEDED", 1}},
		"given up early": {ctx: cancelled, want: line{"FAILED", "CANCELED", 0}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w, g := open(t)
			token, task := w.start(t, g, 5)
			call := read(token)
			call.Prepare = func() (digest [32]byte, err error) { return whence.DigestOf("request"), c.prepare }
			ctx := c.ctx
			if ctx == nil {
				ctx = t.Context()
			}
			err := g.Do(ctx, call, func(_ context.Context, s *gateway.Session) error {
				s.SetAnswer(lineage.Answer{})
				if b := s.Budget(); b.Limit[0] != 5 || b.Used[0] != 1 || b.Remaining[0] != 4 || !b.Deadline.After(w.now()) {
					t.Errorf("budget %+v", b)
				}
				if c.panics {
					panic("a defect")
				}
				return c.err
			})
			if (err == nil) != (c.want.Decision == "ALLOWED") {
				t.Errorf("error %v", err)
			}
			if lines := w.entries(t, query); len(lines) != 1 || lines[0] != c.want {
				t.Errorf("entries %v, want %v", lines, c.want)
			}
			if used := w.used(t, task); used != c.want.Charged {
				t.Errorf("used %d, want %d", used, c.want.Charged)
			}
			if answers := w.answers(t); (answers == 1) != (err == nil) {
				t.Errorf("%d answers after %v", answers, err)
			}
		})
	}
}

func TestTasksThatMayNotCall(t *testing.T) {
	t.Parallel()
	end := func(g *gateway.Gateway, token string) error {
		return g.Do(context.Background(), gateway.Call{Name: "whence.v1.TaskService/EndTask", Presented: authz.Presented{Token: token}},
			func(_ context.Context, s *gateway.Session) error {
				return g.EndTask(t.Context(), s, false, func(gateway.Task, int64, []uuid.UUID) {})
			})
	}
	for name, c := range map[string]struct {
		prepare func(*world, *gateway.Gateway, string, uuid.UUID) error // of the root task
		want    string
	}{
		"ended": {func(_ *world, g *gateway.Gateway, token string, _ uuid.UUID) error { return end(g, token) }, "TASK_ENDED"},
		"expired": {func(w *world, _ *gateway.Gateway, _ string, id uuid.UUID) error {
			_, err := w.pool.Exec(context.Background(), "update whence.tasks set deadline = now() where id = $1", id)
			return err
		}, "TASK_EXPIRED"},
		"revoked": {func(w *world, _ *gateway.Gateway, _ string, id uuid.UUID) error {
			_, err := w.pool.Exec(context.Background(), "update whence.tasks set state = 'REVOKED' where id = $1", id)
			return err
		}, "TASK_REVOKED"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w, g := open(t)
			root, id := w.start(t, g, 10)
			// Their tokens outlive the tasks, which is what the tasks' rows are for.
			child, err := delegate(t, g, root, below(request(5), 1))
			if err != nil {
				t.Fatal(err)
			}
			if err := c.prepare(w, g, root, id); err != nil {
				t.Fatal(err)
			}
			for who, token := range map[string]string{"the task": root, "the task below": child.Token} {
				err := g.Do(t.Context(), read(token), func(context.Context, *gateway.Session) error {
					t.Errorf("%s still runs calls", who)
					return nil
				})
				if reason(err) != c.want {
					t.Errorf("%s: %v, want %s", who, err, c.want)
				}
			}
			if n := len(w.entries(t, query)); n != 2 {
				t.Errorf("two refusals left %d entries", n)
			}
			if used := w.used(t, id); used != 0 {
				t.Errorf("used %d", used)
			}
		})
	}
	t.Run("unknown", func(t *testing.T) {
		t.Parallel()
		w, g := open(t)
		id := uuid.New()
		token, _, err := w.issuer.IssueTask(authz.TaskClaims{User: "u", Agent: "a", Task: id, Root: id, Scope: everything, Lifetime: time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		if err := g.Do(t.Context(), read(token), nothing); reason(err) != "TASK_NOT_FOUND" {
			t.Error(err)
		}
	})
}
