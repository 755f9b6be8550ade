package remote

import (
	"math"
	"sync"
	"time"
)

// pace keeps requests within the limits that the server tells in its headers,
// so that it need not refuse any. What it reckons with is never more than what
// the server has said: requests in flight, and those that ended while another
// was, are taken to be missing from that one's answer.
type pace struct {
	mu       sync.Mutex // guards everything below
	pause    time.Time  // the server wants no request before
	requests bucket
	tokens   bucket
}

// bucket is what is left of one limit.
type bucket struct {
	known       bool
	limit, left float64
	rate        float64   // a second; 0: it refills all at once
	at          time.Time // when left was right
	full        time.Time // when it is full again
	flying      float64   // of requests in flight
	done        float64   // of requests that have ended
}

// ticket is one request's part of both limits.
type ticket struct {
	tokens                 float64
	requestDone, tokenDone float64 // when the request was made
}

// take returns how long to wait, or, when that is nothing, takes its part.
// Documents leave a tenth for questions.
func (p *pace) take(now time.Time, tokens int, documents bool) (ticket, time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	spare := 0.0
	if documents {
		spare = 0.1
	}
	n := float64(tokens)
	if wait := max(p.requests.lack(now, 1, spare), p.tokens.lack(now, n, spare)); wait > 0 {
		return ticket{}, wait
	}
	t := ticket{tokens: n, requestDone: p.requests.done, tokenDone: p.tokens.done}
	p.requests.spend(now, 1)
	p.tokens.spend(now, n)
	return t, 0
}

// settle ends a request that took t; told is what its headers said, if it has any.
func (p *pace) settle(t ticket, now time.Time, told []Quota) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.requests.end(1)
	p.tokens.end(t.tokens)
	for _, q := range told {
		if q.Tokens {
			p.tokens.learn(now, q, p.tokens.done-t.tokenDone-t.tokens)
		} else {
			p.requests.learn(now, q, p.requests.done-t.requestDone-1)
		}
	}
}

// hold makes every request wait for d from now.
func (p *pace) hold(now time.Time, d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if until := now.Add(d); until.After(p.pause) {
		p.pause = until
	}
}

// held is how long every request has to wait.
func (p *pace) held(now time.Time) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.pause.Sub(now)
}

// share is how many tokens one request should have at most: a quarter of the
// limit, since a request beyond the limit is refused for ever. 0: not known.
func (p *pace) share() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return int(min(p.tokens.limit/4, math.MaxInt32))
}

// available is what is left now; ok is false when nobody knows.
func (b *bucket) available(now time.Time) (left float64, ok bool) {
	switch {
	case !b.known:
		return 0, false
	case !now.Before(b.full):
		return b.limit - b.flying, b.limit > 0
	case b.rate > 0 && b.limit > 0:
		return min(b.limit, b.left+b.rate*now.Sub(b.at).Seconds()), true
	default:
		return b.left, true
	}
}

// lack is how long it takes until n is there, beside the spare part of the
// limit. More than the limit is never there: then it need only be full.
func (b *bucket) lack(now time.Time, n, spare float64) time.Duration {
	left, ok := b.available(now)
	if !ok {
		return 0
	}
	need := n + b.limit*spare
	if b.limit > 0 {
		need = min(need, b.limit)
	}
	switch short := need - left; {
	case short <= 0, !now.Before(b.full):
		return 0
	case b.rate > 0:
		return min(scaled(short/b.rate, time.Second)+time.Millisecond, b.full.Sub(now))
	default:
		return b.full.Sub(now)
	}
}

func (b *bucket) spend(now time.Time, n float64) {
	b.flying += n
	left, ok := b.available(now)
	if !ok {
		b.known = false
		return
	}
	if !now.Before(b.full) { // full, but for what is in flight, n included
		b.left, b.at = left, now
		b.full = now.Add(time.Minute) // until the server says
		return
	}
	b.left, b.at = left-n, now
}

func (b *bucket) end(n float64) { b.flying, b.done = b.flying-n, b.done+n }

// learn takes the server's word. others is what ended while this request was in
// flight, so that its answer may not know of it.
func (b *bucket) learn(now time.Time, q Quota, others float64) {
	atLeast := q.Remaining - b.flying - others
	if left, ok := b.available(now); ok {
		atLeast = max(atLeast, left)
	}
	b.known, b.limit, b.at = true, q.Limit, now
	b.left = min(q.Remaining, atLeast)
	b.full, b.rate = now.Add(q.Reset), 0
	if q.Steady && q.Reset > 0 && q.Limit > q.Remaining {
		b.rate = (q.Limit - q.Remaining) / q.Reset.Seconds()
	}
}
