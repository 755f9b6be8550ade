package index

import (
	"sync"
	"time"
)

// gate holds the filler back while its model is out of reach. Open, it lets
// every worker through with a full batch. After a failed call it shuts; then one
// worker at a time may try a single text, and success opens it again and lets
// the batches grow back, so that one text on which the model chokes is soon
// alone in its batch.
type gate struct {
	max   int
	probe time.Duration

	mu       sync.Mutex // guards everything below
	limit    int        // texts that the next batch may hold
	failures int        // failed calls since the last good one
	until    time.Time  // shut until then
	probing  bool       // a worker is trying
}

// enter returns how many texts the caller may claim. A caller that was let in
// must call leave, failed or succeeded.
func (g *gate) enter(now time.Time) (int, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.failures == 0 {
		return g.limit, true
	}
	if g.probing || now.Before(g.until) {
		return 0, false
	}
	g.probing = true
	return g.limit, true
}

// leave ends a visit that told nothing about the model.
func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.probing = false
}

// failed shuts the gate for the probe interval, or as long as the model asked
// for, up to 30 s. It returns how many calls in a row have failed.
func (g *gate) failed(now time.Time, retryAfter time.Duration) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.probing = false
	g.failures++
	g.limit = 1
	g.until = now.Add(max(g.probe, min(retryAfter, 30*time.Second)))
	return g.failures
}

// succeeded opens the gate. It returns how many calls in a row had failed.
func (g *gate) succeeded() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	was := g.failures
	g.probing, g.failures = false, 0
	g.limit = min(g.max, g.limit*4)
	return was
}
