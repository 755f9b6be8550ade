package remote_test

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/whence-db/whence/embedder"
	"github.com/whence-db/whence/embedder/embeddertest"
	"github.com/whence-db/whence/embedder/remote"
)

// really lets a model sleep, and wait as long as a real one would.
func really(c *remote.Config) { c.Sleep, c.Jitter = nil, nil }

// A server that tells its limits never has to refuse a request: by requests, by
// tokens, and with other requests in flight.
func TestToldLimitsAreKept(t *testing.T) {
	t.Parallel()
	for name, limit := range map[string]embeddertest.Limit{
		"requests": {Requests: 20, Tokens: 1e6, Window: time.Second},
		"tokens":   {Requests: 1e6, Tokens: 2000, Window: time.Second},
	} {
		for _, p := range providers {
			if p.name == "cohere" {
				continue // tells calls a minute, which is no test of seconds
			}
			t.Run(p.name+" "+name, func(t *testing.T) {
				t.Parallel()
				s := serve(t, embeddertest.Config{})
				s.SetLimit(limit)
				m, _ := p.connect(t, s, func(c *remote.Config) {
					really(c)
					c.MaxBatch, c.Concurrency, c.Retries = 1, 4, -1
				})
				batch := texts(50)
				for i := range batch {
					batch[i] += strings.Repeat("x", 200) // some 60 tokens each
				}
				began := time.Now()
				vectors, err := m.Embed(t.Context(), batch)
				if err != nil {
					t.Fatal(err)
				}
				for i, text := range batch {
					checkVector(t, s, text, vectors[i])
				}
				if n := s.Refused(); n > 0 {
					t.Errorf("%d requests were one too many", n)
				}
				if took := time.Since(began); took < 500*time.Millisecond {
					t.Errorf("after %v: the limit cannot have been felt", took)
				}
			})
		}
	}
}

// A batch larger than the limit would never go through: it is cut to what does.
func TestBatchesFitTheLimit(t *testing.T) {
	t.Parallel()
	for _, p := range providers {
		if p.name == "cohere" {
			continue // limits no tokens
		}
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			s := serve(t, embeddertest.Config{})
			s.SetLimit(embeddertest.Limit{Requests: 1e6, Tokens: 1000, Window: time.Second})
			m, _ := p.connect(t, s, really)
			if err := m.Probe(t.Context()); err != nil {
				t.Fatal(err)
			}
			batch := texts(30)
			for i := range batch {
				batch[i] += strings.Repeat("x", 200) // 1,800 tokens together
			}
			if _, err := m.Embed(t.Context(), batch); err != nil || s.Refused() > 0 {
				t.Errorf("%v, and %d requests refused", err, s.Refused())
			}
		})
	}
}

// A server that tells nothing refuses some; everything is embedded all the same.
func TestSilentLimitsAreFound(t *testing.T) {
	t.Parallel()
	for _, p := range providers {
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			s := serve(t, embeddertest.Config{})
			s.SetLimit(embeddertest.Limit{Requests: 20, Tokens: 1e6, Window: time.Second, Silent: true})
			m, _ := p.connect(t, s, func(c *remote.Config) {
				really(c)
				c.MaxBatch, c.Concurrency, c.Retries = 1, 8, 20
			})
			if _, err := m.Embed(t.Context(), texts(40)); err != nil {
				t.Fatal(err)
			}
			if s.Refused() == 0 {
				t.Error("no request was refused: nothing was tried")
			}
		})
	}
}

// One refusal halves how many requests are made at a time.
func TestRefusalHalvesConcurrency(t *testing.T) {
	t.Parallel()
	s := serve(t, embeddertest.Config{})
	m, _ := connect(t, s, func(c *remote.Config) { c.MaxBatch, c.Concurrency, c.Timeout = 1, 8, time.Hour })
	inFlight := func() int {
		s.SetFault(embeddertest.Fault{Kind: embeddertest.Stall})
		s.Forget()
		ctx, cancel := context.WithCancel(t.Context())
		var call sync.WaitGroup
		call.Go(func() { _, _ = m.Embed(ctx, texts(16)) })
		for most := 0; ; time.Sleep(100 * time.Millisecond) {
			if n := s.Requests(); n > 0 && n == most { // no more have come
				cancel()
				call.Wait()
				return n
			}
			most = s.Requests()
		}
	}
	if n := inFlight(); n != 8 {
		t.Fatalf("%d at a time at first, want 8", n)
	}
	s.SetFault(embeddertest.Fault{Kind: embeddertest.Status, Status: 429, Times: 1})
	if _, err := m.Embed(t.Context(), texts(1)); err != nil {
		t.Fatal(err)
	}
	if n := inFlight(); n != 4 {
		t.Errorf("%d at a time after a refusal, want 4", n)
	}
}

// Documents leave a part of the limit to questions, which need not wait for the
// rest; a limit that is used up makes them fail at once.
func TestQuestionsGetTheRestOfALimit(t *testing.T) {
	t.Parallel()
	s := serve(t, embeddertest.Config{})
	m, w := connect(t, s, func(c *remote.Config) { c.MaxPace = time.Minute })
	tell := func(remaining string) {
		s.SetHeaders(http.Header{"X-Ratelimit-Limit-Requests": {"100"}, "X-Ratelimit-Remaining-Requests": {remaining},
			"X-Ratelimit-Reset-Requests": {"2m0s"}})
		if err := m.Probe(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	tell("5")
	before := s.Requests()
	_, err := m.Embed(t.Context(), texts(1))
	if e, ok := errors.AsType[*embedder.Error](err); !ok || e.Reason != embedder.RateLimited || !e.Temporary || e.RetryAfter <= 0 || s.Requests() != before {
		t.Errorf("documents with a twentieth left: %v after %d requests", err, s.Requests()-before)
	}
	if len(w.list) == 0 {
		t.Error("they did not wait first")
	}
	if _, err := m.EmbedQuery(t.Context(), "a question"); err != nil {
		t.Errorf("a question with a twentieth left: %v", err)
	}
	tell("0")
	before = s.Requests()
	_, err = m.EmbedQuery(t.Context(), "another")
	if e, ok := errors.AsType[*embedder.Error](err); !ok || e.Reason != embedder.RateLimited || s.Requests() != before {
		t.Errorf("a question with nothing left: %v after %d requests", err, s.Requests()-before)
	}
}

// Cohere's trial keys tell the calls that are left of the minute.
func TestTrialKey(t *testing.T) {
	t.Parallel()
	s := serve(t, embeddertest.Config{})
	var clock atomic.Int64
	m, _ := providers[1].connect(t, s, func(c *remote.Config) {
		c.Now = func() time.Time { return time.Unix(clock.Load(), 0) }
	})
	s.SetLimit(embeddertest.Limit{Requests: 10, Tokens: 1e6, Window: time.Hour})
	for range 9 {
		if _, err := m.Embed(t.Context(), texts(3)); err != nil {
			t.Fatal(err)
		}
	}
	_, err := m.Embed(t.Context(), texts(3)) // the last call is for a question
	if e, ok := errors.AsType[*embedder.Error](err); !ok || e.Reason != embedder.RateLimited || e.RetryAfter != time.Minute {
		t.Fatalf("got %v", err)
	}
	if s.Requests() != 9 || s.Refused() != 0 {
		t.Errorf("%d requests, %d refused", s.Requests(), s.Refused())
	}
	clock.Add(60)
	s.SetLimit(embeddertest.Limit{})
	if _, err := m.Embed(t.Context(), texts(3)); err != nil {
		t.Errorf("a minute later: %v", err)
	}
}

func TestRetryAfterDate(t *testing.T) {
	t.Parallel()
	s := serve(t, embeddertest.Config{})
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	m, _ := connect(t, s, func(c *remote.Config) { c.Now = func() time.Time { return now } })
	s.SetHeaders(http.Header{"Retry-After": {now.Add(9 * time.Second).Format(http.TimeFormat)}})
	s.SetFault(embeddertest.Fault{Kind: embeddertest.Status, Status: 503})
	_, err := m.Embed(t.Context(), texts(1))
	if e, ok := errors.AsType[*embedder.Error](err); !ok || e.RetryAfter != 9*time.Second {
		t.Fatalf("got %v", err)
	}
}

func TestRetryAfter(t *testing.T) {
	t.Parallel()
	s := serve(t, embeddertest.Config{})
	now := time.Now()
	m, w := connect(t, s, func(c *remote.Config) { c.Now = func() time.Time { return now } })

	s.SetFault(embeddertest.Fault{Kind: embeddertest.Status, Status: 429, RetryAfter: time.Second, Times: 1})
	if _, err := m.Embed(t.Context(), []string{"short wait"}); err != nil {
		t.Fatal(err)
	}
	if len(w.list) == 0 || w.list[0] != time.Second {
		t.Errorf("waited %v, want a second first", w.list)
	}

	now = now.Add(time.Minute)
	s.SetFault(embeddertest.Fault{Kind: embeddertest.Status, Status: 429, RetryAfter: 30 * time.Second, Times: 1})
	before := s.Requests()
	for range 3 { // only the first of these may reach the server
		_, err := m.Embed(t.Context(), []string{"long wait"})
		e, ok := errors.AsType[*embedder.Error](err)
		if !ok || e.Reason != embedder.RateLimited || e.RetryAfter != 30*time.Second || !e.Temporary {
			t.Fatalf("got %v", err)
		}
	}
	if n := s.Requests() - before; n != 1 {
		t.Errorf("%d requests, want 1", n)
	}
	now = now.Add(31 * time.Second)
	if _, err := m.Embed(t.Context(), []string{"long wait"}); err != nil {
		t.Fatal(err)
	}
}
