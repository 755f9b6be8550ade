package gateway

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/whence-db/whence"
)

const (
	maxBatch     = 256
	maxWaiting   = 4 * maxBatch
	flushTimeout = 10 * time.Second
)

// batcher lets concurrent callers share one transaction: whatever waits while
// the last batch is being flushed makes up the next. There is no timer, so a
// caller alone waits for nobody.
type batcher[T any] struct {
	flush func(context.Context, []*T) error // all of a batch or, with an error, none of it
	queue chan *member[T]
}

type member[T any] struct {
	value *T
	state atomic.Int32  // waiting, then taken or withdrawn, whoever is first
	done  chan struct{} // closed when err and value are settled
	err   error
}

const (
	waiting int32 = iota
	taken
	withdrawn
)

func newBatcher[T any](flush func(context.Context, []*T) error) *batcher[T] {
	return &batcher[T]{flush: flush, queue: make(chan *member[T], maxWaiting)}
}

// do has v flushed and returns how that went. When ctx ends first, v is withdrawn
// if its batch has not begun; a batch that has begun is waited for, so that the
// caller always knows.
func (b *batcher[T]) do(ctx context.Context, v *T) error {
	m := &member[T]{value: v, done: make(chan struct{})}
	select {
	case b.queue <- m:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case <-m.done:
	case <-ctx.Done():
		if m.state.CompareAndSwap(waiting, withdrawn) {
			return ctx.Err()
		}
		<-m.done
	}
	return m.err
}

// close lets run return once the queue is empty. Nobody may call do any more.
func (b *batcher[T]) close() { close(b.queue) }

// run flushes batches until close; ctx carries values only.
func (b *batcher[T]) run(ctx context.Context) {
	for first := range b.queue {
		batch := b.gather(first)
		if len(batch) == 0 {
			continue
		}
		b.settle(ctx, batch)
		for _, m := range batch {
			close(m.done)
		}
	}
}

// gather takes the first and what waits behind it.
func (b *batcher[T]) gather(first *member[T]) (batch []*member[T]) {
	for m := first; ; {
		if m.state.CompareAndSwap(waiting, taken) {
			batch = append(batch, m)
		}
		if len(batch) == maxBatch {
			return batch
		}
		var ok bool
		select {
		case m, ok = <-b.queue:
			if !ok {
				return batch
			}
		default:
			return batch
		}
	}
}

// settle flushes a batch. One bad member must not fail the others, so a batch
// that fails is tried again member by member, unless it is the database that
// does not answer.
func (b *batcher[T]) settle(ctx context.Context, batch []*member[T]) {
	err := b.flushSome(ctx, batch)
	single := err != nil && len(batch) > 1 &&
		!errors.Is(err, whence.ErrUnavailable) && !errors.Is(err, context.DeadlineExceeded)
	for i, m := range batch {
		if single {
			err = b.flushSome(ctx, batch[i:i+1])
		}
		m.err = err
	}
}

func (b *batcher[T]) flushSome(ctx context.Context, batch []*member[T]) error {
	ctx, cancel := context.WithTimeout(ctx, flushTimeout)
	defer cancel()
	values := make([]*T, len(batch))
	for i, m := range batch {
		values[i] = m.value
	}
	return b.flush(ctx, values)
}
