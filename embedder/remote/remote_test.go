package remote_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/whence-db/whence/embedder"
	"github.com/whence-db/whence/embedder/cohere"
	"github.com/whence-db/whence/embedder/embeddertest"
	"github.com/whence-db/whence/embedder/openai"
	"github.com/whence-db/whence/embedder/remote"
	"github.com/whence-db/whence/embedder/voyage"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var _ embedder.Model = (*remote.Model)(nil)

const dimensions = 64

// provider is a protocol, and where the stand-in speaks it.
type provider struct {
	name   string
	new    func(remote.Config) (*remote.Model, error)
	url    func(*embeddertest.Server) string
	marked bool // it tells documents from questions
}

var providers = []provider{
	{"openai", openai.New, (*embeddertest.Server).URL, false},
	{"cohere", cohere.New, (*embeddertest.Server).CohereURL, true},
	{"voyage", voyage.New, (*embeddertest.Server).VoyageURL, true},
}

// checkQuery is checkVector for the vector of a question.
func (p provider) checkQuery(t *testing.T, s *embeddertest.Server, text string, v []float32) {
	t.Helper()
	vector := s.Vector
	if p.marked {
		vector = s.QueryVector
	}
	want, err := vector(t.Context(), text)
	if err != nil {
		t.Fatal(err)
	}
	checkSame(t, text, v, want)
}

func serve(t testing.TB, c embeddertest.Config) *embeddertest.Server {
	t.Helper()
	s, err := embeddertest.Start(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// connect returns a model that does not sleep between attempts but records how
// long it would have.
func connect(t testing.TB, s *embeddertest.Server, change func(*remote.Config)) (*remote.Model, *waits) {
	t.Helper()
	return providers[0].connect(t, s, change)
}

func (p provider) connect(t testing.TB, s *embeddertest.Server, change func(*remote.Config)) (*remote.Model, *waits) {
	t.Helper()
	w := &waits{}
	c := remote.Config{BaseURL: p.url(s), Model: "stand-in", Dimensions: dimensions, Timeout: 10 * time.Second,
		Sleep: w.sleep, Jitter: func() float64 { return 0 }}
	if change != nil {
		change(&c)
	}
	m, err := p.new(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Close)
	return m, w
}

type waits struct {
	mu   sync.Mutex
	list []time.Duration
}

func (w *waits) sleep(ctx context.Context, d time.Duration) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.list = append(w.list, d)
	return ctx.Err()
}

func texts(n int) []string {
	list := make([]string, n)
	for i := range list {
		list[i] = fmt.Sprintf("text number %d about subject %d", i, i*i)
	}
	return list
}

// checkVector fails unless v is exactly the server's vector for text, up to
// rounding: that covers order, dimensions, finiteness and length.
func checkVector(t *testing.T, s *embeddertest.Server, text string, v []float32) {
	t.Helper()
	want, err := s.Vector(t.Context(), text)
	if err != nil {
		t.Fatal(err)
	}
	checkSame(t, text, v, want)
}

func checkSame(t *testing.T, text string, v, want []float32) {
	t.Helper()
	if len(v) != len(want) {
		t.Fatalf("%q: %d components, want %d", text, len(v), len(want))
	}
	for i := range v {
		if !(math.Abs(float64(v[i]-want[i])) < 1e-6) {
			t.Fatalf("%q: component %d is %v, want %v", text, i, v[i], want[i])
		}
	}
}

func TestEmbed(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*remote.Config){
		"float":          nil,
		"base64":         func(c *remote.Config) { c.Base64 = true },
		"small batches":  func(c *remote.Config) { c.MaxBatch = 3; c.Concurrency = 2 },
		"token limit":    func(c *remote.Config) { c.MaxBatchTokens = 25 },
		"learnt size":    func(c *remote.Config) { c.Dimensions = 0 },
		"asks for size":  func(c *remote.Config) { c.AskDimensions = true },
		"slash at end":   func(c *remote.Config) { c.BaseURL += "/" },
		"correct secret": func(c *remote.Config) { c.APIKey = "sk-correct" },
	} {
		for _, p := range providers {
			if name == "base64" && p.name == "cohere" {
				continue // has another form of it
			}
			t.Run(p.name+" "+name, func(t *testing.T) {
				t.Parallel()
				config := embeddertest.Config{Model: "stand-in"}
				if name == "correct secret" {
					config.APIKey = "sk-correct"
				}
				s := serve(t, config)
				m, _ := p.connect(t, s, change)
				batch := texts(50)
				vectors, err := m.Embed(t.Context(), batch)
				if err != nil {
					t.Fatal(err)
				}
				for i, text := range batch {
					checkVector(t, s, text, vectors[i])
					if n := s.Embedded(text); n != 1 {
						t.Errorf("%q embedded %d times", text, n)
					}
				}
				if m.Dimensions() != dimensions {
					t.Errorf("%d dimensions", m.Dimensions())
				}
				q, err := m.EmbedQuery(t.Context(), "a question")
				if err != nil {
					t.Fatal(err)
				}
				p.checkQuery(t, s, "a question", q)
			})
		}
	}
}

// A model that can shorten its vectors is asked to.
func TestShorterVectors(t *testing.T) {
	t.Parallel()
	for _, p := range providers {
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			s := serve(t, embeddertest.Config{})
			m, _ := p.connect(t, s, func(c *remote.Config) { c.Dimensions, c.AskDimensions = 16, true })
			vectors, err := m.Embed(t.Context(), []string{"a text"})
			if err != nil || len(vectors[0]) != 16 {
				t.Fatalf("%d components, %v", len(vectors[0]), err)
			}
		})
	}
}

// Vectors of the protocols that mark documents are those of other spaces.
func TestSpaceNames(t *testing.T) {
	t.Parallel()
	s := serve(t, embeddertest.Config{})
	for i, want := range []string{"stand-in", "cohere/stand-in", "voyage/stand-in"} {
		m, _ := providers[i].connect(t, s, nil)
		if m.Name() != want {
			t.Errorf("%s is called %q, want %q", providers[i].name, m.Name(), want)
		}
		m, _ = providers[i].connect(t, s, func(c *remote.Config) { c.Name = "ours" })
		if m.Name() != "ours" {
			t.Errorf("%s is called %q in spite of its name", providers[i].name, m.Name())
		}
	}
}

func TestEmbedNothing(t *testing.T) {
	t.Parallel()
	s := serve(t, embeddertest.Config{})
	m, _ := connect(t, s, nil)
	v, err := m.Embed(t.Context(), nil)
	if err != nil || v == nil || len(v) != 0 || s.Requests() != 0 {
		t.Fatalf("got %v, %v after %d requests", v, err, s.Requests())
	}
}

// Under every fault each text ends with its right vector or with an error, never
// with a wrong vector and never with neither; and afterwards the model works.
func TestNoFaultLetsACorruptVectorOut(t *testing.T) {
	t.Parallel()
	type expectation struct {
		reason embedder.Reason // of the failures; empty: no failure
		others bool            // texts without "poison" have vectors
	}
	all := map[embeddertest.Kind]expectation{
		embeddertest.Status:          {embedder.Unavailable, true},
		embeddertest.WrongDimensions: {embedder.BadResponse, false},
		embeddertest.OneWrong:        {embedder.BadResponse, false},
		embeddertest.NullComponent:   {embedder.BadResponse, true},
		embeddertest.NullVector:      {embedder.BadResponse, true},
		embeddertest.Overflow:        {embedder.BadResponse, true},
		embeddertest.ZeroVector:      {embedder.BadResponse, true},
		embeddertest.TooFew:          {embedder.BadResponse, true},
		embeddertest.TooMany:         {embedder.BadResponse, true},
		embeddertest.RepeatedIndex:   {embedder.BadResponse, true},
		embeddertest.Unordered:       {"", true},
		embeddertest.NoIndexes:       {"", true},
		embeddertest.LiteralNaN:      {embedder.BadResponse, true},
		embeddertest.Malformed:       {embedder.BadResponse, true},
		embeddertest.NotJSON:         {embedder.BadResponse, true},
		embeddertest.ErrorBody:       {embedder.BadResponse, true},
		embeddertest.Cut:             {embedder.Unavailable, false},
		embeddertest.HangUp:          {embedder.Unavailable, false},
		embeddertest.Endless:         {embedder.BadResponse, false},
		embeddertest.Drip:            {embedder.Timeout, false},
		embeddertest.Stall:           {embedder.Timeout, false},
		embeddertest.Redirect:        {embedder.Misconfigured, false},
		embeddertest.Unscaled:        {"", true},
		embeddertest.Infinite:        {embedder.BadResponse, true},
		embeddertest.WrongType:       {embedder.BadResponse, true},
		embeddertest.RedirectAway:    {embedder.Misconfigured, false},
		embeddertest.Bomb:            {embedder.BadResponse, false},
		embeddertest.NoUsage:         {"", true},
		embeddertest.AbsurdUsage:     {"", true},
	}
	elsewhere := serve(t, embeddertest.Config{})
	t.Cleanup(func() { // when all of the below have ended
		if n := elsewhere.Requests(); n > 0 {
			t.Errorf("%d requests went elsewhere", n)
		}
	})
	for _, kind := range embeddertest.Kinds() {
		want, ok := all[kind]
		if !ok {
			t.Errorf("no expectation for %q", kind)
		}
		for _, p := range providers {
			want := want
			if kind == embeddertest.RepeatedIndex && p.name == "cohere" {
				want = expectation{"", true} // it has no indexes
			}
			for _, whole := range []bool{true, false} {
				t.Run(fmt.Sprintf("%s %s whole=%t", p.name, kind, whole), func(t *testing.T) {
					t.Parallel()
					s := serve(t, embeddertest.Config{})
					m, _ := p.connect(t, s, func(c *remote.Config) {
						if want.reason == embedder.Timeout {
							c.Timeout = 300 * time.Millisecond
						}
					})
					batch := texts(20)
					batch[7] += " poison"
					batch[16] += " poison"
					f := embeddertest.Fault{Kind: kind, Delay: 5 * time.Millisecond, Location: p.url(elsewhere) + "/embeddings"}
					if !whole {
						f.Match = "poison"
					}
					s.SetFault(f)
					vectors, err := m.Embed(t.Context(), batch)
					fault := embedder.ByText(err)
					for i, text := range batch {
						e := fault(i)
						switch blamed := whole || !want.others || strings.Contains(text, "poison"); {
						case want.reason == "" || !blamed:
							if e != nil {
								t.Errorf("text %d failed: %v", i, e)
							}
						case e == nil:
							t.Errorf("text %d did not fail", i)
						case e.Reason != want.reason || !e.Temporary:
							t.Errorf("text %d: %#v, want temporary %s", i, e, want.reason)
						}
						if e == nil {
							checkVector(t, s, text, vectors[i])
						} else if vectors != nil && vectors[i] != nil {
							t.Errorf("text %d has both a vector and a failure", i)
						}
					}
					if whole {
						v, err := m.EmbedQuery(t.Context(), "a question")
						switch {
						case want.reason != "" && err == nil:
							t.Error("the query did not fail")
						case want.reason == "" && err != nil:
							t.Errorf("the query failed: %v", err)
						case err == nil:
							p.checkQuery(t, s, "a question", v)
						}
					}
					s.SetFault(embeddertest.Fault{})
					for range 3 { // a busy machine may be slower than the short timeout
						if vectors, err = m.Embed(t.Context(), batch); err == nil {
							break
						}
					}
					if err != nil {
						t.Fatalf("after the fault: %v", err)
					}
					for i, text := range batch {
						checkVector(t, s, text, vectors[i])
					}
				})
			}
		}
	}
}

func TestStatusIsSorted(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		status    int
		reason    embedder.Reason
		temporary bool
		requests  int // for one text; two retries where trying again may help
	}{
		{400, embedder.Rejected, false, 2}, // the text and then the harmless one
		{401, embedder.Misconfigured, true, 1},
		{402, embedder.Misconfigured, true, 1},
		{403, embedder.Misconfigured, true, 1},
		{404, embedder.Misconfigured, true, 1},
		{408, embedder.Timeout, true, 3},
		{413, embedder.Rejected, false, 2},
		{418, embedder.Misconfigured, true, 1},
		{422, embedder.Rejected, false, 2},
		{429, embedder.RateLimited, true, 3},
		{500, embedder.Unavailable, true, 4},
		{502, embedder.Unavailable, true, 3},
		{503, embedder.Unavailable, true, 3},
		{504, embedder.Unavailable, true, 3},
	} {
		for _, p := range providers {
			t.Run(fmt.Sprint(p.name, c.status), func(t *testing.T) {
				t.Parallel()
				s := serve(t, embeddertest.Config{})
				m, _ := p.connect(t, s, nil)
				s.SetFault(embeddertest.Fault{Kind: embeddertest.Status, Status: c.status, Match: "some", Message: "because"})
				_, err := m.Embed(t.Context(), []string{"some text"})
				e := embedder.ByText(err)(0)
				if e == nil || e.Reason != c.reason || e.Temporary != c.temporary || e.Status != c.status {
					t.Errorf("got %#v", e)
				}
				if e != nil && c.status != 401 && c.status != 403 && !strings.Contains(e.Message, "because") {
					t.Errorf("%q does not say why", e.Message)
				}
				if n := s.Requests(); n != c.requests {
					t.Errorf("%d requests, want %d", n, c.requests)
				}
			})
		}
	}
}

func TestOneTextNeverBlocksOthers(t *testing.T) {
	t.Parallel()
	for name, bad := range map[string][]int{"one": {13}, "ends": {0, 63}, "many": {3, 4, 5, 31, 32}, "first half": {0, 1, 2, 3, 4, 5, 6, 7}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := serve(t, embeddertest.Config{MaxTextBytes: 1000})
			m, _ := connect(t, s, nil)
			batch := texts(64)
			for _, i := range bad {
				batch[i] = strings.Repeat("long ", 300) + batch[i]
			}
			vectors, err := m.Embed(t.Context(), batch)
			failed, ok := errors.AsType[*embedder.BatchError](err)
			if !ok || !slices.Equal(failed.Indexes(), bad) {
				t.Fatalf("got %v, want failures at %v", err, bad)
			}
			for i, text := range batch {
				if e := failed.Failed[i]; e != nil {
					if e.Temporary || e.Reason != embedder.Rejected || vectors[i] != nil {
						t.Errorf("text %d: %v", i, e)
					}
					continue
				}
				checkVector(t, s, text, vectors[i])
				if n := s.Embedded(text); n != 1 {
					t.Errorf("text %d embedded %d times", i, n)
				}
			}
		})
	}
}

func TestServerTakesSmallerBatchesThanConfigured(t *testing.T) {
	t.Parallel()
	s := serve(t, embeddertest.Config{MaxBatch: 5})
	m, _ := connect(t, s, nil)
	if _, err := m.Embed(t.Context(), texts(64)); err != nil {
		t.Fatal(err)
	}
}

// A server that refuses everything with a client error is a wrong setting; no
// text may be condemned for it.
func TestWrongSettingCondemnsNoText(t *testing.T) {
	t.Parallel()
	s := serve(t, embeddertest.Config{})
	m, _ := connect(t, s, nil)
	s.SetFault(embeddertest.Fault{Kind: embeddertest.Status, Status: 400, Message: "unknown parameter"})
	_, err := m.Embed(t.Context(), texts(64))
	e, ok := errors.AsType[*embedder.Error](err)
	if !ok || e.Reason != embedder.Misconfigured || !e.Temporary || !strings.Contains(e.Message, "unknown parameter") {
		t.Fatalf("got %v", err)
	}
	if n := s.Requests(); n > 10 {
		t.Errorf("%d requests to find out", n)
	}
	if err := m.Probe(t.Context()); err == nil {
		t.Error("the probe succeeded")
	}
}

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

func TestEmptyTextsCostNothing(t *testing.T) {
	t.Parallel()
	s := serve(t, embeddertest.Config{})
	m, _ := connect(t, s, nil)
	batch := []string{"", "a text", " \n"}
	vectors, err := m.Embed(t.Context(), batch)
	failed, ok := errors.AsType[*embedder.BatchError](err)
	if !ok || !slices.Equal(failed.Indexes(), []int{0, 2}) || failed.Failed[0].Temporary {
		t.Fatalf("got %v", err)
	}
	checkVector(t, s, "a text", vectors[1])
	if s.Requests() != 1 {
		t.Errorf("%d requests", s.Requests())
	}
	if _, err := m.EmbedQuery(t.Context(), " "); err == nil {
		t.Error("blank query accepted")
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

func TestRequestsAreBounded(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change   func(*remote.Config)
		requests int
	}{
		"by default":         {nil, 1},
		"by texts":           {func(c *remote.Config) { c.MaxBatch = 4 }, 3},
		"by tokens":          {func(c *remote.Config) { c.MaxBatchTokens = 250 }, 5},
		"smaller than texts": {func(c *remote.Config) { c.MaxBatchTokens = 1 }, 10},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := serve(t, embeddertest.Config{})
			m, _ := connect(t, s, c.change)
			batch := texts(10)
			for i := range batch {
				batch[i] += strings.Repeat("x", 300-len(batch[i])) // about a hundred tokens each
			}
			if _, err := m.Embed(t.Context(), batch); err != nil {
				t.Fatal(err)
			}
			if n := s.Requests(); n != c.requests {
				t.Errorf("%d requests, want %d", n, c.requests)
			}
		})
	}
}

func TestKeyIsNeverShown(t *testing.T) {
	t.Parallel()
	const key = "sk-very-secret-0123456789"
	for _, p := range providers {
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			s := serve(t, embeddertest.Config{})
			c := remote.Config{BaseURL: p.url(s), Model: "stand-in", APIKey: key, Retries: -1}
			m, err := p.new(c)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(m.Close)
			var shown strings.Builder
			log := slog.New(slog.NewJSONHandler(&shown, nil))
			log.Info("config", "config", c, "key", c.APIKey)
			slog.New(slog.NewTextHandler(&shown, nil)).Info("config", "config", c, "key", c.APIKey)
			fmt.Fprintf(&shown, "%v %+v %#v %s %q %x %v %+v", c, c, c, c.APIKey, c.APIKey, c.APIKey, m, m)
			for _, status := range []int{200, 302, 400, 401, 403, 404, 422, 429, 500, 503, 503, 503, 503, 503, 503} { // the last meet an open circuit
				for _, padding := range []int{0, 190} { // the second one straddles the cut of long messages
					s.SetFault(embeddertest.Fault{Kind: embeddertest.Status, Status: status, Message: strings.Repeat("x", padding) + key + " is wrong"})
					_, err := m.Embed(t.Context(), []string{"a text", "b"})
					fmt.Fprintf(&shown, "%v %#v\n", err, embedder.ByText(err)(0))
					_, err = m.EmbedQuery(t.Context(), "a question")
					fmt.Fprintf(&shown, "%v %#v\n", err, embedder.ByText(err)(0))
				}
			}
			if !strings.Contains(shown.String(), "is wrong") || !strings.Contains(shown.String(), "keeps failing") {
				t.Error("nothing was shown of the server's words")
			}
			for _, part := range []string{key, "sk-very"} {
				if strings.Contains(shown.String(), part) {
					t.Errorf("%q shows in %s", part, shown.String())
				}
			}
		})
	}
}

func TestDocumentPrefixIsPartOfTheSpace(t *testing.T) {
	t.Parallel()
	s := serve(t, embeddertest.Config{})
	plain, _ := connect(t, s, nil)
	m, _ := connect(t, s, func(c *remote.Config) { c.DocumentPrefix, c.QueryPrefix = "passage: ", "query: " })
	if m.Name() == plain.Name() {
		t.Error("the prefix does not show in the name")
	}
	v, err := m.Embed(t.Context(), []string{"a text"})
	if err != nil {
		t.Fatal(err)
	}
	checkVector(t, s, "passage: a text", v[0])
	q, err := m.EmbedQuery(t.Context(), "a text")
	if err != nil {
		t.Fatal(err)
	}
	checkVector(t, s, "query: a text", q)
}

func TestProbeChecksDimensions(t *testing.T) {
	t.Parallel()
	s := serve(t, embeddertest.Config{Dimensions: 32})
	m, _ := connect(t, s, nil)
	err := m.Probe(t.Context())
	if err == nil || !strings.Contains(err.Error(), "32") || !strings.Contains(err.Error(), "64") {
		t.Fatalf("got %v, want both numbers", err)
	}
}

func TestConfigIsValidated(t *testing.T) {
	t.Parallel()
	good := remote.Config{BaseURL: "http://127.0.0.1:1/v1", Model: "m"}
	if _, err := openai.New(good); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*remote.Config){
		"no address":        func(c *remote.Config) { c.BaseURL = "" },
		"other scheme":      func(c *remote.Config) { c.BaseURL = "ftp://host/v1" },
		"no host":           func(c *remote.Config) { c.BaseURL = "http:///v1" },
		"password in URL":   func(c *remote.Config) { c.BaseURL = "http://user:pass@host/v1" },
		"query in URL":      func(c *remote.Config) { c.BaseURL = "http://host/v1?key=1" },
		"no model":          func(c *remote.Config) { c.Model = " " },
		"line break in key": func(c *remote.Config) { c.APIKey = "a\nb" },
		"dimensions":        func(c *remote.Config) { c.Dimensions = 16001 },
		"unknown shortened": func(c *remote.Config) { c.AskDimensions = true },
		"negative":          func(c *remote.Config) { c.MaxBatch = -1 },
	} {
		c := good
		change(&c)
		if _, err := openai.New(c); err == nil {
			t.Errorf("%s: accepted", name)
		} else if strings.Contains(err.Error(), "pass@") || strings.Contains(err.Error(), "a\nb") {
			t.Errorf("%s: %v repeats a secret", name, err)
		}
	}
}

func TestRedirectIsNotFollowed(t *testing.T) {
	t.Parallel()
	s := serve(t, embeddertest.Config{})
	m, _ := connect(t, s, func(c *remote.Config) {
		c.HTTPClient = &http.Client{Transport: http.DefaultTransport.(*http.Transport).Clone()}
	})
	s.SetFault(embeddertest.Fault{Kind: embeddertest.Redirect})
	_, err := m.Embed(t.Context(), []string{"a text"})
	if e, ok := errors.AsType[*embedder.Error](err); !ok || e.Reason != embedder.Misconfigured || s.Requests() != 1 {
		t.Fatalf("got %v after %d requests", err, s.Requests())
	}
}
