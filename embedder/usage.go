package embedder

import (
	"context"
	"math/bits"
	"sync"
)

// Usage is what calls of a model cost. The zero value is what a model costs that
// asks nobody.
type Usage struct {
	Calls     int   // requests that reached the model's server, refused and repeated ones too
	Tokens    int64 // that they took
	Estimated int64 // of Tokens: not reported by the server but reckoned from the texts
}

// Add returns the sum of both.
func (u Usage) Add(v Usage) Usage {
	return Usage{Calls: u.Calls + v.Calls, Tokens: u.Tokens + v.Tokens, Estimated: u.Estimated + v.Estimated}
}

// Split divides the tokens among the texts of a call by their lengths. The
// shares sum to Tokens exactly; texts without a letter between them share alike.
func (u Usage) Split(texts []string) []int64 {
	shares := make([]int64, len(texts))
	var total uint64
	for _, text := range texts {
		total += uint64(len(text))
	}
	weight := func(text string) uint64 { return uint64(len(text)) }
	if total == 0 {
		total, weight = uint64(len(texts)), func(string) uint64 { return 1 }
	}
	var weighed uint64
	var given int64
	for i, text := range texts {
		weighed += weight(text)
		high, low := bits.Mul64(uint64(max(u.Tokens, 0)), weighed)
		upTo, _ := bits.Div64(high, low, total) // weighed ≤ total, so it fits
		shares[i] = int64(upTo) - given
		given = int64(upTo)
	}
	return shares
}

// Meter sums the usage of the calls that are made with its context. Its methods
// are safe for concurrent use.
type Meter struct {
	outer *Meter

	mu    sync.Mutex
	usage Usage // guarded by mu
}

type meterKey struct{}

// Measure returns a context and the meter of every call of a model made with it.
// A meter that ctx already had goes on counting too. Whoever shares the call of
// another, as questions do in the cache, is charged nothing.
//
//	ctx, meter := embedder.Measure(ctx)
//	vectors, err := model.Embed(ctx, texts)
//	book(meter.Usage()) // also on an error: what failed may have cost something
func Measure(ctx context.Context) (context.Context, *Meter) {
	m := &Meter{}
	m.outer, _ = ctx.Value(meterKey{}).(*Meter)
	return context.WithValue(ctx, meterKey{}, m), m
}

// Usage is what was recorded so far.
func (m *Meter) Usage() Usage {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.usage
}

// Record adds to every meter of ctx. It is for implementations of Model.
func Record(ctx context.Context, u Usage) {
	m, _ := ctx.Value(meterKey{}).(*Meter)
	for ; m != nil; m = m.outer {
		m.mu.Lock()
		m.usage = m.usage.Add(u)
		m.mu.Unlock()
	}
}

// WithReport returns m; report is told of the usage of each call that used
// anything, from the goroutine of the call.
func WithReport(m Model, report func(Usage)) Model { return &reporting{Model: m, report: report} }

type reporting struct {
	Model
	report func(Usage)
}

func (r *reporting) Embed(ctx context.Context, texts []string) ([][]float32, error) {
	ctx, meter := Measure(ctx)
	defer r.tell(meter)
	return r.Model.Embed(ctx, texts)
}

func (r *reporting) EmbedQuery(ctx context.Context, text string) ([]float32, error) {
	ctx, meter := Measure(ctx)
	defer r.tell(meter)
	return r.Model.EmbedQuery(ctx, text)
}

func (r *reporting) tell(m *Meter) {
	if u := m.Usage(); u != (Usage{}) {
		r.report(u)
	}
}
