package devissuer

import (
	"crypto/rand"
	"sync"
	"time"
)

const (
	codeLifetime = time.Minute
	// maxCodes bounds the codes that nobody has redeemed yet.
	maxCodes = 1000
)

// grant is what a code stands for.
type grant struct {
	user                               User
	client, redirect, nonce, challenge string
	expires                            time.Time
}

// codes are the authorization codes that may still be redeemed. In memory only: a
// code outlives no restart.
type codes struct {
	clock func() time.Time

	mu   sync.Mutex
	open map[string]grant // guarded by mu
}

func newCodes(clock func() time.Time) *codes {
	return &codes{clock: clock, open: map[string]grant{}}
}

// put returns a new code, or false while too many are open.
func (c *codes) put(g grant) (string, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.clock()
	if len(c.open) >= maxCodes {
		for code, g := range c.open {
			if !now.Before(g.expires) {
				delete(c.open, code)
			}
		}
		if len(c.open) >= maxCodes {
			return "", false
		}
	}
	code := rand.Text()
	g.expires = now.Add(codeLifetime)
	c.open[code] = g
	return code, true
}

// take uses a code up, whatever comes of it.
func (c *codes) take(code string) (grant, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	g, ok := c.open[code]
	delete(c.open, code)
	return g, ok && c.clock().Before(g.expires)
}
