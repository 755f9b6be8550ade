package remote

import (
	"context"
	"slices"
	"sync"
	"time"
)

// lane bounds how many requests of one sort are in flight. The bound adapts: a
// server that asks for fewer requests halves it, and every full round of
// requests that go well adds one, up to what is configured.
type lane struct {
	most    float64
	breaker breaker

	mu      sync.Mutex      // guards everything below
	limit   float64         // whole requests at a time, and part of one more
	busy    int             // requests in flight
	waiting []chan struct{} // in the order they came; closed to let one in
	cut     time.Time       // when limit was halved last
}

func newLane(c Config) *lane {
	most := float64(c.Concurrency)
	return &lane{most: most, limit: most, breaker: breaker{now: c.Now, jitter: c.Jitter}}
}

// enter waits for a place. Who got in must leave.
func (l *lane) enter(ctx context.Context) error {
	l.mu.Lock()
	if l.busy < int(l.limit) && len(l.waiting) == 0 {
		l.busy++
		l.mu.Unlock()
		return nil
	}
	place := make(chan struct{})
	l.waiting = append(l.waiting, place)
	l.mu.Unlock()
	select {
	case <-place:
		return nil
	case <-ctx.Done():
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if i := slices.Index(l.waiting, place); i >= 0 {
		l.waiting = slices.Delete(l.waiting, i, i+1)
	} else { // let in at the same moment
		l.busy--
		l.admit()
	}
	return ctx.Err()
}

func (l *lane) leave() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.busy--
	l.admit()
}

// admit must be called with mu held.
func (l *lane) admit() {
	for len(l.waiting) > 0 && l.busy < int(l.limit) {
		close(l.waiting[0])
		l.waiting = l.waiting[1:]
		l.busy++
	}
}

// widen is told of a request that went well.
func (l *lane) widen() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.limit = min(l.most, l.limit+1/l.limit)
	l.admit()
}

// narrow is told of a request that was one too many, and when it was made: those
// that were in flight together count as one.
func (l *lane) narrow(made, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if made.Before(l.cut) {
		return
	}
	l.limit, l.cut = max(1, float64(int(l.limit)/2)), now
}
