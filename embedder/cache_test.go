package embedder_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/whence-db/whence/embedder"
	"github.com/whence-db/whence/embedder/embeddertest"
	"github.com/whence-db/whence/embedder/lexical"
	"github.com/whence-db/whence/embedder/openai"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// cached returns a server and a model of it that remembers size queries.
func cached(t *testing.T, size int) (*embeddertest.Server, embedder.Model) {
	t.Helper()
	s, err := embeddertest.Start(embeddertest.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	m, err := openai.New(openai.Config{BaseURL: s.URL(), Model: "stand-in", Dimensions: 64, Retries: -1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Close)
	return s, embedder.WithQueryCache(m, size)
}

func query(t *testing.T, m embedder.Model, text string) []float32 {
	t.Helper()
	v, err := m.EmbedQuery(t.Context(), text)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestQueryCacheKeepsTheMostRecent(t *testing.T) {
	t.Parallel()
	s, m := cached(t, 2)
	for _, text := range []string{"a", "b", "a", "c", "a", "b"} { // c pushes out b, not a
		query(t, m, text)
	}
	for text, want := range map[string]int{"a": 1, "b": 2, "c": 1} {
		if n := s.Embedded(text); n != want {
			t.Errorf("%q embedded %d times, want %d", text, n, want)
		}
	}
	if _, err := m.Embed(t.Context(), []string{"a"}); err != nil || s.Embedded("a") != 2 {
		t.Errorf("documents must not come from the cache of queries: %v", err)
	}
}

func TestQueryCacheHandsOutCopies(t *testing.T) {
	t.Parallel()
	_, m := cached(t, 2)
	first := query(t, m, "a")
	want := first[0]
	for range 2 {
		v := query(t, m, "a")
		if v[0] != want {
			t.Fatal("a caller's change shows in the cache")
		}
		v[0], first[0] = 9, 9
	}
}

func TestQueryCacheForgetsFailures(t *testing.T) {
	t.Parallel()
	s, m := cached(t, 2)
	s.SetFault(embeddertest.Fault{Kind: embeddertest.Status, Status: 503, Times: 1})
	if _, err := m.EmbedQuery(t.Context(), "a"); err == nil {
		t.Fatal("no failure")
	}
	query(t, m, "a")
}

func TestQueryCacheSharesCallsInFlight(t *testing.T) {
	t.Parallel()
	s, m := cached(t, 2)
	s.SetFault(embeddertest.Fault{Delay: 100 * time.Millisecond})
	var calls sync.WaitGroup
	for range 20 {
		calls.Go(func() {
			if _, err := m.EmbedQuery(t.Context(), "a"); err != nil {
				t.Error(err)
			}
		})
	}
	calls.Wait()
	if n := s.Requested("a"); n != 1 {
		t.Errorf("%d requests, want 1", n)
	}
}

// slow is the lexical model behind a wait, for tests in virtual time.
type slow struct {
	embedder.Model
	wait  time.Duration
	calls int // owned by whoever makes the one call at a time
}

func (s *slow) EmbedQuery(ctx context.Context, text string) ([]float32, error) {
	s.calls++
	select {
	case <-ctx.Done():
		return nil, fmt.Errorf("slow: %w", ctx.Err())
	case <-time.After(s.wait):
		return s.Model.EmbedQuery(ctx, text)
	}
}

// The caller that makes the shared call gives up first: whoever waits for it
// makes a call of its own, within its own time.
func TestQueryCacheOutlivesItsLeader(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		inner := &slow{Model: lexical.Default(), wait: 10 * time.Second}
		m := embedder.WithQueryCache(inner, 2)
		var calls sync.WaitGroup
		call := func(limit time.Duration, want error, took time.Duration) {
			calls.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), limit)
				defer cancel()
				start := time.Now()
				_, err := m.EmbedQuery(ctx, "a")
				if !errors.Is(err, want) || time.Since(start) != took {
					t.Errorf("limit %s: %v after %s, want %v after %s", limit, err, time.Since(start), want, took)
				}
			})
			synctest.Wait()
		}
		call(3*time.Second, context.DeadlineExceeded, 3*time.Second) // the leader
		call(time.Second, context.DeadlineExceeded, time.Second)
		call(time.Minute, nil, 13*time.Second)
		calls.Wait()
		if inner.calls != 2 {
			t.Errorf("%d calls, want 2", inner.calls)
		}
	})
}

func TestQueryCacheOfNothingIsTheModel(t *testing.T) {
	t.Parallel()
	m := embedder.Model(lexical.Default())
	if embedder.WithQueryCache(m, 0) != m {
		t.Error("size 0 wraps the model")
	}
}

func TestByText(t *testing.T) {
	t.Parallel()
	e := &embedder.Error{Reason: embedder.Rejected}
	if f := embedder.ByText(nil); f(0) != nil {
		t.Error("success has a failure")
	}
	if f := embedder.ByText(fmt.Errorf("wrapped: %w", &embedder.BatchError{Failed: map[int]*embedder.Error{2: e}, Total: 3})); f(2) != e || f(1) != nil {
		t.Error("a batch's failures are not its own")
	}
	if f := embedder.ByText(e); f(0) != e || f(7) != e {
		t.Error("a failure of the whole is not that of each text")
	}
	if f := embedder.ByText(context.Canceled)(0); f == nil || !f.Temporary || !errors.Is(f, context.Canceled) {
		t.Errorf("a cancelled call is %v", f)
	}
}

// What stands behind a model's name may change: its vectors are not kept for ever.
func TestQueryCacheForgetsWithTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		calls := 0
		m := embedder.WithQueryCache(counting{lexical.Default(), &calls}, 2)
		for _, step := range []struct {
			wait time.Duration
			want int
		}{{0, 1}, {9 * time.Minute, 1}, {time.Minute, 2}, {9 * time.Minute, 2}} {
			time.Sleep(step.wait)
			query(t, m, "a")
			if calls != step.want {
				t.Errorf("after %s more: %d calls, want %d", step.wait, calls, step.want)
			}
		}
	})
}

type counting struct {
	embedder.Model
	calls *int
}

func (c counting) EmbedQuery(ctx context.Context, text string) ([]float32, error) {
	*c.calls++
	return c.Model.EmbedQuery(ctx, text)
}
