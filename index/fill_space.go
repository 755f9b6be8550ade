package index

import (
	"context"
	"math"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

// filling keeps the space of one model full, whenever there is one.
//
// A text is claimed by a lease, embedded outside any transaction, and fulfilled
// only if the lease still holds and there is no vector yet. A model that cannot
// be reached pauses the whole filling, which then tries one text at a time: no
// text is punished with a long backoff for an outage, so all are embedded as
// soon as the model answers again.
type filling struct {
	*FillerConfig
	model Model
	wake  chan struct{} // buffered, one: work may be there
	heal  chan struct{} // buffered, one: derive the work again soon
	gate  gate
	done  atomic.Int64
}

// follow fills while there is a space, and waits for one while there is none.
func (f *filling) follow(ctx context.Context) error {
	for ctx.Err() == nil {
		space, err := f.Index.liveSpace(ctx, f.model)
		switch {
		case ctx.Err() != nil:
		case err != nil:
			f.Log.WarnContext(ctx, "cannot look for the model's space; trying again", "model", f.model.Name(), "error", err)
		case space.ID != 0:
			f.fill(ctx, space)
		}
		pause(ctx, f.Follow, nil)
	}
	return ctx.Err()
}

// fill fills a space until it is taken out of use or ctx ends.
func (f *filling) fill(ctx context.Context, space Space) {
	var g errgroup.Group
	ctx, stop := context.WithCancel(ctx)
	g.Go(func() error { defer stop(); return f.watch(ctx, space) })
	g.Go(func() error { return f.healing(ctx, space) })
	g.Go(func() error { return f.segmenting(ctx, space) })
	g.Go(func() error { return f.renewing(ctx, space) })
	for range f.Workers {
		g.Go(func() error { return f.work(ctx, space) })
	}
	_ = g.Wait() // each ends because ctx has
}

// watch returns when the space is out of use or ctx has ended.
func (f *filling) watch(ctx context.Context, space Space) error {
	for !pause(ctx, f.Follow, nil) && ctx.Err() == nil {
		if live, err := f.Index.liveSpace(ctx, f.model); err == nil && live.ID != space.ID {
			f.Log.InfoContext(ctx, "the space is no longer filled", "space", space.ID, "model", space.Model)
			return nil
		}
	}
	return ctx.Err()
}

// work takes batches until ctx ends. Trouble with the memory database is waited
// out here: the queue is in there, so nothing is lost meanwhile.
func (f *filling) work(ctx context.Context, space Space) error {
	troubled := false
	for ctx.Err() == nil {
		n, open := f.gate.enter(time.Now())
		if !open {
			pause(ctx, min(f.Poll, f.Probe), nil)
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
			pause(ctx, f.Probe, nil)
		default:
			troubled = false
			if claimed == 0 {
				pause(ctx, f.Poll, f.wake)
			} else {
				signal(f.wake) // another worker may help
			}
		}
	}
	return ctx.Err()
}

// batch claims up to n texts, embeds them and stores what came of it. It
// returns how many it claimed; trouble with the model is no error.
func (f *filling) batch(ctx context.Context, space Space, n int) (int, error) {
	storing, cancel := outlive(ctx)
	defer cancel()
	c, err := f.Index.claim(storing, space, n, f.Lease)
	if c.orphans {
		signal(f.heal)
	}
	if err != nil || len(c.items) == 0 {
		f.gate.leave()
		return c.total, err
	}
	out, ended := f.embed(ctx, c)
	if ended {
		f.gate.leave()
		return c.total, f.Index.release(storing, c)
	}
	if out.whole != nil {
		outage := f.gate.failed(time.Now(), out.whole.RetryAfter)
		if outage == 1 {
			f.Log.WarnContext(ctx, "the embedding model does not answer; trying again", "model", space.Model, "error", out.whole.Message)
		}
	} else if outage := f.gate.succeeded(); outage > 0 {
		f.Log.InfoContext(ctx, "the embedding model answers again", "model", space.Model)
		if outage > 1 { // one failed call may well be the fault of one text
			if err := f.Index.unblock(storing, space); err != nil {
				return c.total, err
			}
		}
	}
	stored, err := f.Index.fulfil(storing, c, out)
	f.done.Add(int64(stored))
	return c.total, err
}

// embed asks the model for the vectors of what was claimed, unless ctx ends.
func (f *filling) embed(ctx context.Context, c claim) (out outcome, ended bool) {
	texts := make([]string, len(c.items))
	for i, it := range c.items {
		texts[i] = it.text
	}
	asked := time.Now()
	metered, spent := f.Meter(ctx)
	vectors, err := f.model.Embed(metered, texts)
	took := time.Since(asked)
	if ctx.Err() != nil {
		return out, true
	}
	out = f.outcome(c, vectors, err)
	out.tokens = spent(texts)
	f.Called(len(texts), len(out.failed), took)
	return out, false
}

// outcome sorts the items of a claim by what became of them.
type outcome struct {
	embedded []int // indexes of items
	vectors  [][]float32
	failed   map[int]*Failure
	tokens   []int64  // of each item, also of those that failed
	whole    *Failure // the call failed as a whole
}

func (f *filling) outcome(c claim, vectors [][]float32, err error) outcome {
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
func (f *filling) healing(ctx context.Context, space Space) error {
	for ctx.Err() == nil {
		added, err := f.Index.derive(ctx, space)
		switch {
		case ctx.Err() != nil:
		case err != nil:
			f.Log.WarnContext(ctx, "cannot look for chunks without vectors; trying again", "error", err)
		case added > 0:
			signal(f.wake)
		}
		if pause(ctx, f.Heal, f.heal) {
			pause(ctx, 2*time.Second, nil) // let transactions end that saw the row which is gone
		}
	}
	return ctx.Err()
}

// segmenting keeps approximate indexes over the vectors.
func (f *filling) segmenting(ctx context.Context, space Space) error {
	g := &segmenter{Index: f.Index, space: space}
	for !pause(ctx, f.Segment, nil) && ctx.Err() == nil {
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
