package gateway

import (
	"context"
	"sync"
	"time"

	"github.com/whence-db/whence"
)

// turns let a bounded number of agents' calls in at once. When there are more, the
// agents that wait take turns, and none of them holds more than three quarters: an
// agent whose calls are slow or many delays its own.
type turns struct {
	mu      sync.Mutex // guards all below
	free    int
	most    int            // of one agent
	holds   map[string]int // calls inside, by agent
	waiting map[string][]chan struct{}
	next    []string // agents that wait, in turn
}

// turnWait is how long a call waits for its turn before it is refused.
const turnWait = 2 * time.Second

func newTurns(n int) *turns {
	return &turns{free: n, most: max(1, n*3/4), holds: map[string]int{}, waiting: map[string][]chan struct{}{}}
}

// enter waits for the agent's turn; leave must follow.
func (t *turns) enter(ctx context.Context, agent string) (leave func(), err error) {
	leave = func() { t.leave(agent) }
	t.mu.Lock()
	if t.free > 0 && t.holds[agent] < t.most && len(t.waiting[agent]) == 0 {
		t.free--
		t.holds[agent]++
		t.mu.Unlock()
		return leave, nil
	}
	turn := make(chan struct{})
	if len(t.waiting[agent]) == 0 {
		t.next = append(t.next, agent)
	}
	t.waiting[agent] = append(t.waiting[agent], turn)
	t.mu.Unlock()
	timer := time.NewTimer(turnWait)
	defer timer.Stop()
	select {
	case <-turn:
		return leave, nil
	case <-ctx.Done():
		err = ctx.Err()
	case <-timer.C:
		err = &whence.Error{Kind: whence.ErrUnavailable, Reason: "OVERLOADED", RetryAfter: time.Second,
			Message: "this server has as many calls under way as it takes; try again"}
	}
	if !t.withdraw(agent, turn) { // it has come just now
		t.leave(agent)
	}
	return nil, err
}

// withdraw is false when the turn has come.
func (t *turns) withdraw(agent string, turn chan struct{}) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i, w := range t.waiting[agent] {
		if w == turn {
			t.waiting[agent] = append(t.waiting[agent][:i:i], t.waiting[agent][i+1:]...)
			if len(t.waiting[agent]) == 0 {
				t.forget(agent)
			}
			return true
		}
	}
	return false
}

// forget takes an agent out of the turns; the caller holds mu.
func (t *turns) forget(agent string) {
	delete(t.waiting, agent)
	for i, a := range t.next {
		if a == agent {
			t.next = append(t.next[:i:i], t.next[i+1:]...)
			return
		}
	}
}

func (t *turns) leave(agent string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.free++
	if t.holds[agent]--; t.holds[agent] == 0 {
		delete(t.holds, agent)
	}
	for i := 0; i < len(t.next) && t.free > 0; {
		a := t.next[i]
		if t.holds[a] >= t.most {
			i++
			continue
		}
		turn := t.waiting[a][0]
		t.free--
		t.holds[a]++
		close(turn)
		// Its next one waits behind the other agents.
		rest := t.waiting[a][1:]
		t.forget(a)
		if len(rest) > 0 {
			t.waiting[a], t.next = rest, append(t.next, a)
		}
	}
}
