package remote_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"slices"
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

// After some failures in a row the server is left alone; then one request finds
// out whether it is well, and the others go on.
func TestCircuit(t *testing.T) {
	t.Parallel()
	for _, p := range providers {
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			s := serve(t, embeddertest.Config{})
			var clock atomic.Int64
			m, _ := p.connect(t, s, func(c *remote.Config) {
				c.Now = func() time.Time { return time.Unix(0, clock.Load()) }
				c.Retries = -1
			})
			s.SetFault(embeddertest.Fault{Kind: embeddertest.Status, Status: 503, Message: "no capacity"})
			for range 8 {
				if _, err := m.Embed(t.Context(), texts(2)); err == nil {
					t.Fatal("no failure")
				}
			}
			_, err := m.Embed(t.Context(), texts(2))
			e, ok := errors.AsType[*embedder.Error](err)
			if !ok || e.Reason != embedder.Unavailable || !e.Temporary || e.RetryAfter <= 0 || !strings.Contains(e.Message, "no capacity") {
				t.Fatalf("got %v", err)
			}
			if n := s.Requests(); n != 5 {
				t.Errorf("%d requests, want 5", n)
			}
			clock.Add(int64(e.RetryAfter))
			for range 3 { // half open: the first of these goes out
				if _, err := m.Embed(t.Context(), texts(2)); err == nil {
					t.Fatal("no failure")
				}
			}
			if n := s.Requests(); n != 6 {
				t.Errorf("%d requests, want 6", n)
			}
			s.SetFault(embeddertest.Fault{})
			if _, err := m.EmbedQuery(t.Context(), "a question"); err != nil {
				t.Errorf("questions share the circuit of documents: %v", err)
			}
			if _, err := m.Embed(t.Context(), texts(2)); err == nil {
				t.Error("it closed by itself")
			}
			clock.Add(int64(10 * time.Second))
			for range 3 {
				if _, err := m.Embed(t.Context(), texts(2)); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// Texts that a server chokes on, questions too long and callers that go away say
// nothing about the server.
func TestCircuitStaysClosed(t *testing.T) {
	t.Parallel()
	s := serve(t, embeddertest.Config{MaxTextBytes: 100})
	m, _ := connect(t, s, nil)
	long := strings.Repeat("long ", 30)
	s.SetFault(embeddertest.Fault{Kind: embeddertest.Status, Status: 500, Match: "poison"})
	for range 10 {
		_, err := m.Embed(t.Context(), append([]string{"poison"}, append(texts(62), long)...)) // fails nine times before anything goes well
		if b, ok := errors.AsType[*embedder.BatchError](err); !ok || !slices.Equal(b.Indexes(), []int{0, 63}) {
			t.Fatalf("got %v", err)
		}
		if e := embedder.ByText(second(m.EmbedQuery(t.Context(), long)))(0); e == nil || e.Reason != embedder.Rejected {
			t.Fatalf("a long question: %v", e)
		}
	}
	s.SetFault(embeddertest.Fault{Kind: embeddertest.Stall, Match: "gone"})
	for range 10 {
		ctx, cancel := context.WithCancel(t.Context())
		before := s.Requests()
		var call sync.WaitGroup
		call.Go(func() { _, _ = m.EmbedQuery(ctx, "gone") })
		for s.Requests() == before {
			time.Sleep(time.Millisecond)
		}
		cancel()
		call.Wait()
	}
	if _, err := m.Embed(t.Context(), texts(3)); err != nil {
		t.Error(err)
	}
	if _, err := m.EmbedQuery(t.Context(), "a question"); err != nil {
		t.Error(err)
	}
}

func second[T any](_ T, err error) error { return err }

// A question has a deadline of its own, shorter than a request's.
func TestQuestionsHaveADeadline(t *testing.T) {
	t.Parallel()
	for _, p := range providers {
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			s := serve(t, embeddertest.Config{})
			short := func(c *remote.Config) { c.Timeout, c.QueryTimeout = time.Hour, 300*time.Millisecond }
			m, _ := p.connect(t, s, short)
			unprobed, _ := p.connect(t, s, func(c *remote.Config) { short(c); c.Dimensions = 0 })
			s.SetFault(embeddertest.Fault{Kind: embeddertest.Stall})
			_, err := unprobed.EmbedQuery(t.Context(), "a question")
			if e, ok := errors.AsType[*embedder.Error](err); !ok || e.Reason != embedder.Timeout {
				t.Errorf("while the dimensions are unknown: %v", err)
			}
			for range 5 {
				_, err := m.EmbedQuery(t.Context(), "a question")
				if e, ok := errors.AsType[*embedder.Error](err); !ok || e.Reason != embedder.Timeout || !strings.Contains(err.Error(), "300ms") {
					t.Fatalf("got %v", err)
				}
			}
			before := s.Requests()
			if _, err := m.EmbedQuery(t.Context(), "a question"); err == nil || s.Requests() != before {
				t.Errorf("after five that stalled the sixth was asked too: %v", err)
			}
		})
	}
}

// The key goes to the configured address and nowhere else.
func TestKeyDoesNotFollowRedirects(t *testing.T) {
	t.Parallel()
	var led atomic.Int64
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { led.Add(1) }))
	t.Cleanup(elsewhere.Close)
	for _, p := range providers {
		for _, own := range []bool{true, false} {
			s := serve(t, embeddertest.Config{APIKey: "sk-secret"})
			m, _ := p.connect(t, s, func(c *remote.Config) {
				c.APIKey = "sk-secret"
				if !own { // a client that would follow
					c.HTTPClient = &http.Client{Transport: http.DefaultTransport.(*http.Transport).Clone()}
				}
			})
			for _, location := range []string{elsewhere.URL, strings.Replace(elsewhere.URL, "127.0.0.1", "localhost", 1)} {
				s.SetFault(embeddertest.Fault{Kind: embeddertest.RedirectAway, Location: location})
				if _, err := m.EmbedQuery(t.Context(), "a question"); err == nil {
					t.Errorf("%s: a redirect is no answer", p.name)
				}
			}
			if s.Requests() != 2 {
				t.Errorf("%d requests", s.Requests())
			}
		}
	}
	if n := led.Load(); n != 0 {
		t.Errorf("%d requests were led away", n)
	}
}

// A server that fails, stalls or drips for one model leaves another alone.
func TestModelsAreApart(t *testing.T) {
	t.Parallel()
	bad, good := serve(t, embeddertest.Config{}), serve(t, embeddertest.Config{})
	stalled, _ := connect(t, bad, func(c *remote.Config) { c.Timeout = time.Hour })
	well, _ := connect(t, good, nil)
	bad.SetFault(embeddertest.Fault{Kind: embeddertest.Stall})
	ctx, cancel := context.WithCancel(t.Context())
	var calls sync.WaitGroup
	for range 8 {
		calls.Go(func() { _, _ = stalled.Embed(ctx, texts(3)) })
	}
	for bad.Requests() == 0 {
		time.Sleep(time.Millisecond)
	}
	if _, err := well.Embed(t.Context(), texts(3)); err != nil {
		t.Error(err)
	}
	cancel()
	calls.Wait()
}
