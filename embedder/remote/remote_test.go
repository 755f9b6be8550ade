package remote_test

import (
	"context"
	"errors"
	"fmt"
	"math"
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
