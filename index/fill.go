package index

import (
	"context"
	"errors"
	"log/slog"
	"slices"
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
	Index  *Index
	Models []Model // the first makes the first space; spaces of other models are left alone
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
	Follow  time.Duration // between looks for spaces that were made or deleted; default 1 s
	Log     *slog.Logger  // default: discards
	// Meter begins to measure what calls of the model with the returned context
	// cost, and returns what then tells the tokens of each text; default: nothing.
	Meter func(context.Context) (context.Context, func(texts []string) []int64)
	// Called is told of each call of the model: its texts, how many of them got no
	// vector, and how long it took; may be nil. It returns at once.
	Called func(texts, failed int, took time.Duration)
}

// Filler gives every chunk's text a vector in each space that it has the model of.
// Any number of fillers, in any number of processes, may run on one index.
type Filler struct {
	FillerConfig
	fillings []*filling
}

// NewFiller checks the configuration.
func NewFiller(c FillerConfig) (*Filler, error) {
	if c.Index == nil || len(c.Models) == 0 || slices.Contains(c.Models, nil) {
		return nil, errors.New("filler: an index and a model are needed")
	}
	if min(c.Lease, c.Poll, c.Heal, c.Probe, c.Segment, c.Follow) < 0 || min(c.Workers, c.Batch) < 0 {
		return nil, errors.New("filler: no setting may be negative")
	}
	def(&c.Workers, 2)
	def(&c.Batch, 256)
	def(&c.Lease, 2*time.Minute)
	def(&c.Poll, 250*time.Millisecond)
	def(&c.Heal, time.Minute)
	def(&c.Probe, time.Second)
	def(&c.Segment, 5*time.Second)
	def(&c.Follow, time.Second)
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
	f := &Filler{FillerConfig: c}
	for _, m := range c.Models {
		f.fillings = append(f.fillings, &filling{FillerConfig: &f.FillerConfig, model: m,
			wake: make(chan struct{}, 1), heal: make(chan struct{}, 1), gate: gate{max: c.Batch, limit: c.Batch, probe: c.Probe}})
	}
	return f, nil
}

func def[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

// Wake tells the filler that there may be work, so that it need not wait for its
// next look. It never blocks.
func (f *Filler) Wake() {
	for _, one := range f.fillings {
		signal(one.wake)
	}
}

// Embedded counts the vectors that this filler has stored.
func (f *Filler) Embedded() (n int64) {
	for _, one := range f.fillings {
		n += one.done.Load()
	}
	return n
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Run fills until ctx ends, and then gives back what it has claimed. It fails at
// once when the current space is of none of its models (MODEL_MISMATCH).
func (f *Filler) Run(ctx context.Context) error {
	if _, err := f.Index.EnsureSpace(ctx, f.Models...); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	for _, one := range f.fillings {
		g.Go(func() error { return one.follow(ctx) })
	}
	g.Go(func() error { return f.sweeping(ctx) })
	return g.Wait()
}

// sweeping deletes what is left of spaces that were taken out of use.
func (f *Filler) sweeping(ctx context.Context) error {
	for ctx.Err() == nil {
		if err := f.Index.sweepSpaces(ctx); err != nil && ctx.Err() == nil {
			f.Log.WarnContext(ctx, "cannot delete the vectors of a deleted space; trying again", "error", err)
		}
		pause(ctx, f.Segment, nil)
	}
	return ctx.Err()
}

// pause waits for d, ctx or wake, and tells whether it was wake.
func pause(ctx context.Context, d time.Duration, wake <-chan struct{}) bool {
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

// outlive returns a context that lasts two seconds longer than ctx: at the end what
// a model has been paid for is stored, and what was claimed is given back.
func outlive(ctx context.Context) (context.Context, context.CancelFunc) {
	longer, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(2*time.Second, cancel) })
	return longer, func() { stop(); cancel() }
}
