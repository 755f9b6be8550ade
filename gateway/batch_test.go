package gateway

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/whence-db/whence"
)

// bench is a batcher whose flushes wait for the test's word.
type bench struct {
	*batcher[int]
	begun   chan []int // what a flush was given
	outcome chan error // how it is to end
}

func newBench() *bench {
	b := &bench{begun: make(chan []int), outcome: make(chan error)}
	b.batcher = newBatcher(func(_ context.Context, batch []*int) error {
		var values []int
		for _, v := range batch {
			values = append(values, *v)
		}
		b.begun <- values
		return <-b.outcome
	})
	return b
}

// submit queues v and returns where its outcome will be.
func (b *bench) submit(ctx context.Context, wg *sync.WaitGroup, v int) *error {
	err := new(error)
	wg.Go(func() { *err = b.do(ctx, &v) })
	synctest.Wait()
	return err
}

func TestBatcherSharesFlushes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBench()
		var callers, runner sync.WaitGroup
		runner.Go(func() { b.run(t.Context()) })
		b.submit(t.Context(), &callers, 0)
		if got := <-b.begun; len(got) != 1 {
			t.Errorf("the first flush has %v", got)
		}
		for v := 1; v <= maxBatch+10; v++ { // these wait while the first is flushed
			b.submit(t.Context(), &callers, v)
		}
		b.outcome <- nil
		for _, want := range []int{maxBatch, 10} {
			if got := <-b.begun; len(got) != want {
				t.Errorf("a flush of %d, want %d", len(got), want)
			}
			b.outcome <- nil
		}
		callers.Wait()
		b.close()
		runner.Wait()
	})
}

func TestBatcherTriesMembersSingly(t *testing.T) {
	t.Parallel()
	bad := errors.New("bad member")
	down := &whence.Error{Kind: whence.ErrUnavailable}
	for name, c := range map[string]struct {
		whole   error
		singles []error
		want    [3]error // of the members waiting together
	}{
		"one bad member":     {bad, []error{nil, bad, nil}, [3]error{nil, bad, nil}},
		"database not there": {down, nil, [3]error{down, down, down}},
		"database too slow":  {context.DeadlineExceeded, nil, [3]error{context.DeadlineExceeded, context.DeadlineExceeded, context.DeadlineExceeded}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := newBench()
				var callers, runner sync.WaitGroup
				var got [3]*error
				for i := range got {
					got[i] = b.submit(t.Context(), &callers, i)
				}
				runner.Go(func() { b.run(t.Context()) })
				<-b.begun
				b.outcome <- c.whole
				for i, err := range c.singles {
					if batch := <-b.begun; len(batch) != 1 || batch[0] != i {
						t.Errorf("flushed %v, want %d alone", batch, i)
					}
					b.outcome <- err
				}
				callers.Wait()
				for i := range got {
					if !errors.Is(*got[i], c.want[i]) {
						t.Errorf("member %d: %v, want %v", i, *got[i], c.want[i])
					}
				}
				b.close()
				runner.Wait()
			})
		})
	}
}

// A caller that goes away is withdrawn while it waits, and told the truth once
// its batch has begun.
func TestBatcherAndCancelledCallers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBench()
		var callers, runner sync.WaitGroup
		runner.Go(func() { b.run(t.Context()) })
		ctx, cancel := context.WithCancel(t.Context())
		begun := b.submit(ctx, &callers, 1)
		<-b.begun
		waiting := b.submit(ctx, &callers, 2)
		stays := b.submit(t.Context(), &callers, 3)
		cancel()
		synctest.Wait()
		if !errors.Is(*waiting, context.Canceled) {
			t.Errorf("the one that waited: %v", *waiting)
		}
		b.outcome <- nil
		if got := <-b.begun; len(got) != 1 || got[0] != 3 {
			t.Errorf("the next flush has %v, want 3 alone", got)
		}
		b.outcome <- nil
		callers.Wait()
		if *begun != nil || *stays != nil {
			t.Errorf("the one that was begun: %v; the one that stayed: %v", *begun, *stays)
		}
		b.close()
		runner.Wait()
	})
}

// What was accepted is finished before run returns.
func TestBatcherDrains(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBench()
		var callers, runner sync.WaitGroup
		var got [3]*error
		for i := range got {
			got[i] = b.submit(t.Context(), &callers, i)
		}
		b.close()
		runner.Go(func() { b.run(t.Context()) })
		if batch := <-b.begun; len(batch) != len(got) {
			t.Errorf("flushed %v", batch)
		}
		b.outcome <- nil
		runner.Wait()
		callers.Wait()
	})
}
