package embedder_test

import (
	"slices"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"github.com/whence-db/whence/embedder"
	"github.com/whence-db/whence/embedder/lexical"
)

func TestLexicalCostsNothing(t *testing.T) {
	t.Parallel()
	m := embedder.WithReport(lexical.Default(), func(u embedder.Usage) { t.Errorf("reported %+v", u) })
	ctx, meter := embedder.Measure(t.Context())
	if _, err := m.Embed(ctx, []string{"a", "b"}); err != nil {
		t.Fatal(err)
	}
	if _, err := m.EmbedQuery(ctx, "a"); err != nil {
		t.Fatal(err)
	}
	if u := meter.Usage(); u != (embedder.Usage{}) {
		t.Errorf("used %+v", u)
	}
}

// Of callers that share one call, one is charged; a remembered vector is free.
func TestSharedCallsAreChargedOnce(t *testing.T) {
	t.Parallel()
	s, m := cached(t, 2)
	var mu sync.Mutex
	var total embedder.Usage
	m = embedder.WithReport(m, func(u embedder.Usage) {
		mu.Lock()
		defer mu.Unlock()
		total = total.Add(u)
	})
	var calls sync.WaitGroup
	for range 20 {
		calls.Go(func() { query(t, m, "a question") })
	}
	calls.Wait()
	if total.Calls != 1 || total.Tokens != s.Tokens() || total.Tokens == 0 {
		t.Errorf("charged %+v; the server reported %d tokens", total, s.Tokens())
	}
}

func TestSplit(t *testing.T) {
	t.Parallel()
	u := embedder.Usage{Tokens: 10}
	if got := u.Split([]string{"aaaa", "", "b", "aaaaa"}); !slices.Equal(got, []int64{4, 0, 1, 5}) {
		t.Errorf("split %v", got)
	}
	if got := u.Split([]string{"", ""}); !slices.Equal(got, []int64{5, 5}) {
		t.Errorf("of empty texts %v", got)
	}
	rapid.Check(t, func(t *rapid.T) {
		u := embedder.Usage{Tokens: rapid.Int64Min(0).Draw(t, "tokens")}
		texts := rapid.SliceOfN(rapid.String(), 1, 20).Draw(t, "texts")
		var sum int64
		for i, share := range u.Split(texts) {
			if share < 0 {
				t.Fatalf("text %d has %d tokens", i, share)
			}
			sum += share
		}
		if sum != u.Tokens {
			t.Fatalf("the shares sum to %d of %d", sum, u.Tokens)
		}
	})
}
