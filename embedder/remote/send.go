package remote

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/whence-db/whence/embedder"
)

const firstBackoff = 100 * time.Millisecond

// errand is what is to be embedded in one request, and how hard to try.
type errand struct {
	inputs   []string
	query    bool // to search with
	urgent   bool // may use what documents leave of a rate limit
	harmless bool // no text of it can be to blame
	retries  int
	wait     time.Duration // the longest to wait for a rate limit
}

// failure is an Error with what this package itself makes of it.
type failure struct {
	*embedder.Error
	again     bool // trying again at once may help
	divisible bool // may be the fault of one text of the batch
	unsent    bool // the server was not asked
}

// accuseNobody turns the rejection of a harmless text into what it means: the
// request as configured is wrong.
func (f *failure) accuseNobody() *failure {
	if f.Reason != embedder.Rejected {
		return f
	}
	e := *f.Error
	e.Reason, e.Temporary = embedder.Misconfigured, true
	return &failure{Error: &e}
}

// send makes one request with its retries, in the lane l. vectors[i] is nil
// exactly when bad[i] is set.
func (m *Model) send(ctx context.Context, l *lane, e errand) (vectors [][]float32, bad map[int]*embedder.Error, fail *failure) {
	if err := l.enter(ctx); err != nil {
		return nil, nil, m.unsent(m.transport(ctx, err))
	}
	defer l.leave()
	for attempt := 0; ; attempt++ {
		before := fail
		vectors, bad, fail = m.attempt(ctx, l, e)
		if fail != nil && fail.unsent && before != nil {
			fail = before // what the server itself said, says more
		}
		if fail == nil || fail.unsent || !fail.again || attempt >= e.retries || ctx.Err() != nil {
			return vectors, bad, fail
		}
		wait := fail.RetryAfter
		if wait > 0 {
			wait += time.Duration(float64(wait) * m.jitter() / 10)
		} else {
			wait = time.Duration(float64(firstBackoff<<min(attempt, 10)) * (0.5 + 0.5*m.jitter()))
		}
		if wait > m.maxWait || m.rest(ctx, wait) != nil {
			return nil, nil, fail
		}
	}
}

// attempt makes one request when the server, as far as it is known, can take it.
func (m *Model) attempt(ctx context.Context, l *lane, e errand) ([][]float32, map[int]*embedder.Error, *failure) {
	if fail := m.waitForPause(ctx); fail != nil {
		return nil, nil, fail
	}
	if open := l.breaker.pass(); open != nil {
		return nil, nil, &failure{Error: open, unsent: true}
	}
	t, fail := m.waitForQuota(ctx, e)
	if fail != nil {
		l.breaker.forget()
		return nil, nil, fail
	}
	made := m.now()
	r := m.exchange(ctx, e)
	m.pace.settle(t, m.now(), r.quotas)
	if u := m.usage(e.inputs, r); u.Calls > 0 {
		embedder.Record(ctx, u)
	}
	l.judge(ctx, e, r.fail, made)
	return r.vectors, r.bad, r.fail
}

// judge tells the lane how a request went that was made then.
func (l *lane) judge(ctx context.Context, e errand, fail *failure, made time.Time) {
	now := l.breaker.now()
	switch {
	case fail == nil:
		l.breaker.succeeded()
		l.widen()
	case fail.Reason == embedder.RateLimited:
		l.breaker.forget() // a server that counts requests is alive
		l.narrow(made, now)
	case fail.Reason == embedder.Rejected && !e.harmless, fail.divisible && !e.harmless && !e.query:
		l.breaker.forget() // one of the texts may be to blame
	case errors.Is(ctx.Err(), context.Canceled), ctx.Err() != nil && now.Sub(made) < leastPatience:
		l.breaker.forget() // the caller did not wait
	default:
		l.breaker.failed(fail.Error)
	}
}

// leastPatience is how long a request must have been under way for its caller's
// deadline to say something about the server.
const leastPatience = 250 * time.Millisecond

// waitForPause respects what the server told any earlier request.
func (m *Model) waitForPause(ctx context.Context) *failure {
	wait := m.pace.held(m.now())
	if wait <= 0 || wait <= m.maxWait && m.rest(ctx, wait) == nil {
		return nil
	}
	return m.limited(wait, "the server asked to wait")
}

// waitForQuota waits until the request is within the server's limits, as far as
// they are known.
func (m *Model) waitForQuota(ctx context.Context, e errand) (ticket, *failure) {
	for waited := time.Duration(0); ; {
		t, wait := m.pace.take(m.now(), tokensOf(e.inputs...), !e.urgent)
		if wait == 0 {
			return t, nil
		}
		waited += wait
		if waited > e.wait || m.rest(ctx, wait) != nil {
			return ticket{}, m.limited(wait, "the server's rate limit is used up")
		}
	}
}

func (m *Model) limited(wait time.Duration, message string) *failure {
	return &failure{unsent: true, Error: &embedder.Error{
		Model: m.name, Reason: embedder.RateLimited, Temporary: true, RetryAfter: wait, Message: message}}
}

// rest sleeps, unless ctx ends before: then there is nothing to wait for.
func (m *Model) rest(ctx context.Context, d time.Duration) error {
	if end, ok := ctx.Deadline(); ok && time.Until(end) < d {
		return fmt.Errorf("no time to wait for %s", d)
	}
	return m.sleep(ctx, d)
}

func (m *Model) unsent(f *failure) *failure {
	f.unsent = true
	return f
}

// mostTokens is what texts can have at most: one a byte, and some around them.
func mostTokens(inputs []string) (n int64) {
	for _, input := range inputs {
		n += int64(len(input)) + 64
	}
	return n
}

// usage is what a request cost. A server that reports nothing, or what cannot
// be, is reckoned after; so is one that got the request and gave no answer. What
// it refuses or fails at costs no tokens.
func (m *Model) usage(inputs []string, r result) embedder.Usage {
	switch tokens := int64(tokensOf(inputs...)); {
	case !r.sent:
		return embedder.Usage{}
	case r.status != 0 && r.status != 200:
		return embedder.Usage{Calls: 1}
	case r.tokens > 0 && r.tokens <= mostTokens(inputs):
		return embedder.Usage{Calls: 1, Tokens: r.tokens}
	default:
		return embedder.Usage{Calls: 1, Tokens: tokens, Estimated: tokens}
	}
}
