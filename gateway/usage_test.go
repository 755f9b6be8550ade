package gateway_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/embedder"
	"github.com/whence-db/whence/gateway"
)

// Whatever calls use of the embedding model is booked to their task and to each
// above it, once, also of calls that fail, and what the log says adds up to that.
func TestUsageIsBookedUpTheTree(t *testing.T) {
	t.Parallel()
	w, g := open(t)
	token, root := w.start(t, g, 1000)
	child, err := delegate(t, g, token, below(request(500), 1))
	if err != nil {
		t.Fatal(err)
	}
	grandchild, err := delegate(t, g, child.Token, below(request(200), 2))
	if err != nil {
		t.Fatal(err)
	}
	bearers := []string{token, child.Token, grandchild.Token}
	tasks := []uuid.UUID{root, child.Task.ID, grandchild.Task.ID}

	var mu sync.Mutex
	want := map[uuid.UUID]gateway.Usage{}
	failures := []error{nil, nil, &whence.Error{Kind: whence.ErrUnavailable, Reason: "TRY_AGAIN"}, &whence.Error{Kind: whence.ErrDenied, Reason: "NO"}}
	var calls errgroup.Group
	calls.SetLimit(16)
	for range 120 {
		calls.Go(func() error {
			depth, n, tokens, failure := rand.IntN(3), rand.IntN(3), rand.Int64N(50), failures[rand.IntN(len(failures))]
			err := g.Do(t.Context(), read(bearers[depth]), func(ctx context.Context, _ *gateway.Session) error {
				for range n { // as a model's adapter does
					embedder.Record(ctx, embedder.Usage{Calls: 1, Tokens: tokens})
				}
				return failure
			})
			mu.Lock()
			defer mu.Unlock()
			for _, task := range tasks[:depth+1] {
				u := want[task]
				want[task] = gateway.Usage{EmbeddingCalls: u.EmbeddingCalls + int64(n), EmbeddingTokens: u.EmbeddingTokens + int64(n)*tokens}
			}
			if !errors.Is(err, failure) {
				return err
			}
			return nil
		})
	}
	if err := calls.Wait(); err != nil {
		t.Fatal(err)
	}
	operator := gateway.Call{Name: query, Presented: authz.Presented{Token: w.operator(t, authz.RoleAdmin)}, Role: authz.RoleViewer}
	err = g.Do(t.Context(), operator, func(ctx context.Context, _ *gateway.Session) error {
		embedder.Record(ctx, embedder.Usage{Calls: 1, Tokens: 7})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for i, id := range tasks {
		task, err := g.GetTask(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		if task.Usage != want[id] || task.Usage.EmbeddingTokens == 0 {
			t.Errorf("the task at depth %d has used %+v, want %+v", i, task.Usage, want[id])
		}
	}
	logged := w.number(t, `select sum((detail -> 'embedding' ->> 'tokens')::bigint) from whence.entries where task_id is not null`)
	if logged != want[root].EmbeddingTokens {
		t.Errorf("the log tells of %d tokens, the root of %d", logged, want[root].EmbeddingTokens)
	}
	if n := w.number(t, `select count(*) from whence.entries where detail ? 'embedding' and (detail -> 'embedding' ->> 'calls')::int = 0`); n != 0 {
		t.Errorf("%d entries tell of nothing", n)
	}
	paid := w.number(t, `select sum(calls_charged) from whence.entries where task_id is not null`)
	if used := w.used(t, root); used != paid {
		t.Errorf("the root paid for %d calls, the log tells of %d", used, paid)
	}
}
