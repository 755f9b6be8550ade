package embedder

import (
	"container/list"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

// WithQueryCache returns m with the vectors of its most recently used size
// queries remembered. Concurrent calls for the same text share one call of m,
// yet each waits no longer than its own context allows. Failures are not
// remembered, vectors not for longer than ten minutes: what stands behind a model's
// name may change. Memory is bounded by size · (Dimensions · 4 + ~200) bytes however
// long the queries are. A size below 1 returns m itself.
func WithQueryCache(m Model, size int) Model {
	if size < 1 {
		return m
	}
	return &queryCache{Model: m, size: size, byKey: make(map[queryKey]*list.Element), flights: make(map[queryKey]*flight)}
}

const queryAge = 10 * time.Minute

type queryKey [sha256.Size]byte

type cachedQuery struct {
	key    queryKey
	vector []float32
	made   time.Time
}

// flight is one call of the model in progress. Its vector and err are written
// before done is closed and only read after.
type flight struct {
	done   chan struct{}
	vector []float32
	err    error
}

type queryCache struct {
	Model
	size int

	mu      sync.Mutex // guards everything below
	recent  list.List  // of cachedQuery, the most recently used in front
	byKey   map[queryKey]*list.Element
	flights map[queryKey]*flight
}

func (c *queryCache) EmbedQuery(ctx context.Context, text string) ([]float32, error) {
	key := queryKey(sha256.Sum256([]byte(text)))
	for {
		vector, f, lead := c.join(key)
		if vector != nil {
			return vector, nil
		}
		if lead {
			return c.fly(ctx, key, f, text)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("embed query: %w", ctx.Err())
		case <-f.done:
		}
		if f.err == nil {
			return slices.Clone(f.vector), nil
		}
		// The leader's context ended, which says nothing about the model: try
		// again under this caller's own.
		if errors.Is(f.err, errAbandoned) && ctx.Err() == nil {
			continue
		}
		return nil, f.err
	}
}

var errAbandoned = errors.New("query embedding abandoned")

// join returns a remembered vector, or the flight for key and whether the
// caller has to make the call.
func (c *queryCache) join(key queryKey) (vector []float32, f *flight, lead bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e, ok := c.byKey[key]; ok {
		q := e.Value.(cachedQuery)
		if time.Since(q.made) < queryAge {
			c.recent.MoveToFront(e)
			return slices.Clone(q.vector), nil, false
		}
		c.recent.Remove(e)
		delete(c.byKey, key)
	}
	if f, ok := c.flights[key]; ok {
		return nil, f, false
	}
	f = &flight{done: make(chan struct{}), err: errAbandoned}
	c.flights[key] = f
	return nil, f, true
}

// fly makes the call on behalf of everyone who waits for f. Deferring the
// landing releases them even when the model panics.
func (c *queryCache) fly(ctx context.Context, key queryKey, f *flight, text string) ([]float32, error) {
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.flights, key)
		if f.err == nil {
			c.remember(key, f.vector)
		}
		close(f.done)
	}()
	vector, err := c.Model.EmbedQuery(ctx, text)
	switch {
	case err == nil:
		f.vector, f.err = slices.Clone(vector), nil
	case ctx.Err() == nil:
		f.err = err
	}
	return vector, err
}

// remember must be called with mu held.
func (c *queryCache) remember(key queryKey, vector []float32) {
	c.byKey[key] = c.recent.PushFront(cachedQuery{key: key, vector: vector, made: time.Now()})
	for len(c.byKey) > c.size {
		oldest := c.recent.Back()
		delete(c.byKey, oldest.Value.(cachedQuery).key)
		c.recent.Remove(oldest)
	}
}
