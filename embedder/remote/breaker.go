package remote

import (
	"fmt"
	"sync"
	"time"

	"github.com/whence-db/whence/embedder"
)

const (
	breakAfter   = 5 // failures in a row
	firstBreak   = time.Second
	longestBreak = 10 * time.Second
)

// breaker spares a server that only fails, and whoever waits for it. After some
// failures in a row it is open: nothing is sent for a while. Then it is half
// open: one request goes out, and decides whether it closes or opens for twice
// as long.
type breaker struct {
	now    func() time.Time
	jitter func() float64

	mu       sync.Mutex      // guards everything below
	failures int             // in a row
	pause    time.Duration   // how long it was opened for last
	until    time.Time       // open until then
	trying   bool            // half open, and the one request is out
	last     *embedder.Error // why it opened
}

// pass lets a request out, or says why not. For one that was let out failed,
// succeeded or forget must be called.
func (b *breaker) pass() *embedder.Error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.failures < breakAfter {
		return nil
	}
	wait := b.until.Sub(b.now())
	if wait <= 0 && !b.trying {
		b.trying = true
		return nil
	}
	e := *b.last
	e.Message = "not asked, since it keeps failing: " + b.reason()
	e.Status, e.Err = 0, nil
	e.RetryAfter = max(wait, firstBreak/10)
	return &e
}

// reason must be called with mu held.
func (b *breaker) reason() string {
	switch {
	case b.last.Message != "":
		return b.last.Message
	case b.last.Err != nil:
		return b.last.Err.Error()
	default:
		return fmt.Sprintf("HTTP status %d", b.last.Status)
	}
}

func (b *breaker) failed(why *embedder.Error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.failures++
	if b.failures < breakAfter || b.failures > breakAfter && !b.trying {
		return // those in flight when it opened say nothing new
	}
	b.last, b.trying = why, false
	b.pause = min(max(2*b.pause, firstBreak), longestBreak)
	b.until = b.now().Add(time.Duration(float64(b.pause) * (1 - b.jitter()/2)))
}

func (b *breaker) succeeded() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.failures, b.pause, b.trying, b.last = 0, 0, false, nil
}

// forget is for a request that told nothing about the server.
func (b *breaker) forget() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.trying = false
}
