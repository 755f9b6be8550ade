package remote_test

import (
	"context"
	"errors"
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

func TestOutageAndReturn(t *testing.T) {
	t.Parallel()
	s := serve(t, embeddertest.Config{})
	m, w := connect(t, s, nil)
	s.SwitchOff()
	_, err := m.Embed(t.Context(), texts(5))
	e, ok := errors.AsType[*embedder.Error](err)
	if !ok || e.Reason != embedder.Unavailable || !e.Temporary {
		t.Fatalf("got %v", err)
	}
	if !strings.Contains(err.Error(), "refused") {
		t.Errorf("%q does not say why", err)
	}
	if want := []time.Duration{50 * time.Millisecond, 100 * time.Millisecond}; !slices.Equal(w.list, want) {
		t.Errorf("waited %v, want %v", w.list, want)
	}
	if err := s.SwitchOn(); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Embed(t.Context(), texts(5)); err != nil {
		t.Fatal(err)
	}
}

func TestCallersContext(t *testing.T) {
	t.Parallel()
	s := serve(t, embeddertest.Config{})
	m, _ := connect(t, s, func(c *remote.Config) { c.Concurrency = 1 })
	s.SetFault(embeddertest.Fault{Kind: embeddertest.Stall})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	var calls sync.WaitGroup
	for range 3 { // one in flight, two waiting for their turn
		calls.Go(func() {
			if v, err := m.Embed(ctx, texts(3)); !errors.Is(err, context.DeadlineExceeded) || v != nil {
				t.Errorf("got %v, %v", v, err)
			}
			if _, err := m.EmbedQuery(ctx, "question"); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("got %v", err)
			}
		})
	}
	calls.Wait()
}

func TestQueriesDoNotWaitBehindDocuments(t *testing.T) {
	t.Parallel()
	s := serve(t, embeddertest.Config{})
	m, _ := connect(t, s, func(c *remote.Config) { c.Concurrency, c.Timeout = 1, time.Hour })
	s.SetFault(embeddertest.Fault{Kind: embeddertest.Stall, Match: "text number"})
	ctx, cancel := context.WithCancel(t.Context())
	var documents sync.WaitGroup
	documents.Go(func() { _, _ = m.Embed(ctx, texts(3)) })
	defer documents.Wait()
	defer cancel()
	for s.Requests() == 0 {
		time.Sleep(time.Millisecond)
	}
	// The documents never end, so a query that waited for them would not either.
	limited, stop := context.WithTimeout(t.Context(), 10*time.Second)
	defer stop()
	if _, err := m.EmbedQuery(limited, "question"); err != nil {
		t.Fatal(err)
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
