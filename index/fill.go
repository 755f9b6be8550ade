package index

import (
	"context"
	"errors"
	"log/slog"
	"math"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

// Model is what the filler needs of an embedding model. Embed returns one vector
// of Dimensions() finite components for each text, in order; on an error it may
// still return len(texts) entries, nil where a text has no vector.
type Model interface {
	Name() string
	Dimensions() int
	Embed(ctx context.Context, texts []string) ([][]float32, error)
}

// Failure is why one text of a batch has no vector.
type Failure struct {
	Permanent  bool          // the text will never be embedded as it is
	Whole      bool          // the call failed, and no text is to blame
	RetryAfter time.Duration // how long the model asked to wait; zero when it did not say
	Message    string
}

// FillerConfig says how the filler works.
type FillerConfig struct {
	Index *Index
	Model Model
	// Explain takes an error of Model.Embed apart: the failure of the text at an
	// index, or nil when that text has a vector. Default: the call failed as a whole.
	Explain func(error) func(i int) *Failure
	Workers int           // batches in flight; default 2
	Batch   int           // texts a batch; default 256
	Lease   time.Duration // a claim that is older may be claimed again; default 2 m
	Poll    time.Duration // between looks for work without a Wake; default 250 ms
	Heal    time.Duration // between derivations of the work from the chunks; default 1 m
	Probe   time.Duration // between trials while the model is out of reach; default 1 s
	Segment time.Duration // between looks for vectors without an approximate index; default 5 s
	Log     *slog.Logger  // default: discards
	// Meter begins to measure what calls of the model with the returned context
	// cost, and returns what then tells the tokens of each text; default: nothing.
	Meter func(context.Context) (context.Context, func(texts []string) []int64)
	// Called is told of each call of the model: its texts, how many of them got no
	// vector, and how long it took; may be nil. It returns at once.
	Called func(texts, failed int, took time.Duration)
}

// Filler gives every chunk's text a vector in the current space. Any number of
// fillers, in any number of processes, may run on one index.
//
// A text is claimed by a lease, embedded outside any transaction, and fulfilled
// only if the lease still holds and there is no vector yet. A model that cannot
// be reached pauses the whole filler, which then tries one text at a time: no
// text is punished with a long backoff for an outage, so all are embedded as
// soon as the model answers again.
type Filler struct {
	FillerConfig
	wake chan struct{} // buffered, one: work may be there
	heal chan struct{} // buffered, one: derive the work again soon
	gate gate
	done atomic.Int64
}

// NewFiller checks the configuration.
func NewFiller(c FillerConfig) (*Filler, error) {
	if c.Index == nil || c.Model == nil {
		return nil, errors.New("filler: an index and a model are needed")
	}
	if c.Workers < 0 || c.Batch < 0 || c.Lease < 0 || c.Poll < 0 || c.Heal < 0 || c.Probe < 0 || c.Segment < 0 {
		return nil, errors.New("filler: no setting may be negative")
	}
	def(&c.Workers, 2)
	def(&c.Batch, 256)
	def(&c.Lease, 2*time.Minute)
	def(&c.Poll, 250*time.Millisecond)
	def(&c.Heal, time.Minute)
	def(&c.Probe, time.Second)
	def(&c.Segment, 5*time.Second)
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Meter == nil {
		c.Meter = func(ctx context.Context) (context.Context, func([]string) []int64) {
			return ctx, func(texts []string) []int64 { return make([]int64, len(texts)) }
		}
	}
	if c.Called == nil {
		c.Called = func(int, int, time.Duration) {}
	}
	if c.Explain == nil {
		c.Explain = func(err error) func(int) *Failure {
			return func(int) *Failure { return &Failure{Whole: true, Message: err.Error()} }
		}
	}
	return &Filler{FillerConfig: c, wake: make(chan struct{}, 1), heal: make(chan struct{}, 1),
		gate: gate{max: c.Batch, limit: c.Batch, probe: c.Probe}}, nil
}

func def[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

// Wake tells the filler that there may be work, so that it need not wait for its
// next look. It never blocks.
func (f *Filler) Wake() { signal(f.wake) }

// Embedded counts the vectors that this filler has stored.
func (f *Filler) Embedded() int64 { return f.done.Load() }

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Run fills until ctx ends, and then gives back what it has claimed. It fails at
// once when the model is not the index's (MODEL_MISMATCH).
func (f *Filler) Run(ctx context.Context) error {
	space, err := f.Index.EnsureSpace(ctx, f.Model.Name(), f.Model.Dimensions())
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return f.healing(ctx, space) })
	g.Go(func() error { return f.segmenting(ctx, space) })
	for range f.Workers {
		g.Go(func() error { return f.work(ctx, space) })
	}
	return g.Wait()
}

// work takes batches until ctx ends. Trouble with the memory database is waited
// out here: the queue is in there, so nothing is lost meanwhile.
func (f *Filler) work(ctx context.Context, space Space) error {
	troubled := false
	for ctx.Err() == nil {
		n, open := f.gate.enter(time.Now())
		if !open {
			f.pause(ctx, min(f.Poll, f.Probe), nil)
			continue
		}
		claimed, err := f.batch(ctx, space, n)
		switch {
		case ctx.Err() != nil:
		case err != nil:
			if !troubled {
				f.Log.WarnContext(ctx, "cannot fill the index; trying again", "error", err)
			}
			troubled = true
			f.pause(ctx, f.Probe, nil)
		default:
			troubled = false
			if claimed == 0 {
				f.pause(ctx, f.Poll, f.wake)
			} else {
				f.Wake() // another worker may help
			}
		}
	}
	return ctx.Err()
}

// pause waits for d, ctx or wake, and tells whether it was wake.
func (f *Filler) pause(ctx context.Context, d time.Duration, wake <-chan struct{}) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	case <-wake:
		return true
	}
	return false
}

// batch claims up to n texts, embeds them and stores what came of it. It
// returns how many it claimed; trouble with the model is no error.
func (f *Filler) batch(ctx context.Context, space Space, n int) (int, error) {
	c, err := f.Index.claim(ctx, space, n, f.Lease)
	if c.orphans {
		signal(f.heal)
	}
	if err != nil || len(c.items) == 0 {
		f.gate.leave()
		return c.total, err
	}
	texts := make([]string, len(c.items))
	for i, it := range c.items {
		texts[i] = it.text
	}
	asked := time.Now()
	metered, spent := f.Meter(ctx)
	vectors, callErr := f.Model.Embed(metered, texts)
	took := time.Since(asked)
	if ctx.Err() != nil {
		f.gate.leave()
		return c.total, f.release(ctx, c)
	}
	out := f.outcome(c, vectors, callErr)
	out.tokens = spent(texts)
	f.Called(len(texts), len(out.failed), took)
	if out.whole != nil {
		outage := f.gate.failed(time.Now(), out.whole.RetryAfter)
		if outage == 1 {
			f.Log.WarnContext(ctx, "the embedding model does not answer; trying again", "model", space.Model, "error", out.whole.Message)
		}
	} else if outage := f.gate.succeeded(); outage > 0 {
		f.Log.InfoContext(ctx, "the embedding model answers again", "model", space.Model)
		if outage > 1 { // one failed call may well be the fault of one text
			if err := f.Index.unblock(ctx, space); err != nil {
				return c.total, err
			}
		}
	}
	stored, err := f.Index.fulfil(ctx, c, out)
	f.done.Add(int64(stored))
	return c.total, err
}

// release gives claims back at once; ctx has ended already.
func (f *Filler) release(ctx context.Context, c claim) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	return f.Index.release(ctx, c)
}

// outcome sorts the items of a claim by what became of them.
type outcome struct {
	embedded []int // indexes of items
	vectors  [][]float32
	failed   map[int]*Failure
	tokens   []int64  // of each item, also of those that failed
	whole    *Failure // the call failed as a whole
}

func (f *Filler) outcome(c claim, vectors [][]float32, err error) outcome {
	out := outcome{failed: map[int]*Failure{}}
	explain := func(int) *Failure { return nil }
	if err != nil {
		explain = f.Explain(err)
	}
	for i := range c.items {
		why := explain(i)
		if why == nil && (i >= len(vectors) || !valid(vectors[i], c.space.Dimensions)) {
			why = &Failure{Message: "the model returned no usable vector for this text"}
		}
		if why != nil {
			out.failed[i] = why
			continue
		}
		out.embedded = append(out.embedded, i)
		out.vectors = append(out.vectors, vectors[i])
	}
	if len(out.embedded) == 0 {
		for _, why := range out.failed {
			if why.Whole {
				out.whole = why
				break
			}
		}
	}
	return out
}

func valid(v []float32, dimensions int) bool {
	for _, f := range v {
		if math.IsNaN(float64(f)) || math.IsInf(float64(f), 0) {
			return false
		}
	}
	return len(v) == dimensions
}

// healing derives the work from the chunks themselves, at the start, now and
// then, and soon after a claim found a text that no chunk holds any more.
func (f *Filler) healing(ctx context.Context, space Space) error {
	for ctx.Err() == nil {
		added, err := f.Index.derive(ctx, space)
		switch {
		case ctx.Err() != nil:
		case err != nil:
			f.Log.WarnContext(ctx, "cannot look for chunks without vectors; trying again", "error", err)
		case added > 0:
			f.Wake()
		}
		if f.pause(ctx, f.Heal, f.heal) {
			f.pause(ctx, 2*time.Second, nil) // let transactions end that saw the row which is gone
		}
	}
	return ctx.Err()
}

// segmenting keeps approximate indexes over the vectors.
func (f *Filler) segmenting(ctx context.Context, space Space) error {
	g := &segmenter{Index: f.Index, space: space}
	for !f.pause(ctx, f.Segment, nil) && ctx.Err() == nil {
		began := time.Now()
		built, err := g.look(ctx)
		switch {
		case ctx.Err() != nil:
		case err != nil:
			f.Log.WarnContext(ctx, "cannot index the newest vectors; they are compared one by one", "error", err)
		case built:
			f.Log.InfoContext(ctx, "indexed the newest vectors", "took", time.Since(began))
		}
	}
	return ctx.Err()
}

// backoff is how long a text waits that fails alone: 1 s, doubled each time, up
// to 30 s. A text that the model refuses for good is tried again after a day,
// in case the model's limits have changed.
func backoff(attempts int, why *Failure, jitter float64) time.Duration {
	if why.Permanent {
		return 24 * time.Hour
	}
	d := time.Second << min(attempts, 5)
	d = max(min(d, 30*time.Second), min(why.RetryAfter, 30*time.Second))
	return d + time.Duration(jitter*float64(d)/4)
}
