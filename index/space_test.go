package index

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/embedder/lexical"
	"github.com/whence-db/whence/internal/pg"
)

// slow is a model that takes up to a time for a batch.
type slow struct {
	*lexical.Model
	most time.Duration
}

func newSlow(t *testing.T, dimensions int, most time.Duration) slow {
	t.Helper()
	m, err := lexical.New(lexical.Config{Dimensions: dimensions})
	if err != nil {
		t.Fatal(err)
	}
	return slow{m, most}
}

func (m slow) Embed(ctx context.Context, texts []string) ([][]float32, error) {
	time.Sleep(time.Duration(rand.Int64N(int64(m.most) + 1)))
	return m.Model.Embed(ctx, texts)
}

// filler runs a filler with the models until stop is called.
func (b *putBench) filler(models ...Model) (stop func()) {
	b.t.Helper()
	f, err := NewFiller(FillerConfig{Index: b.x, Models: models, Batch: 8, Poll: 5 * time.Millisecond, Probe: 10 * time.Millisecond,
		Heal: 50 * time.Millisecond, Segment: 20 * time.Millisecond, Follow: 20 * time.Millisecond})
	if err != nil {
		b.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(b.t.Context()))
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	return sync.OnceFunc(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			b.t.Errorf("the filler ended: %v", err)
		}
	})
}

func (b *putBench) count(sql string, args ...any) (n int) {
	b.t.Helper()
	if err := b.db.Pool.QueryRow(b.t.Context(), sql, args...).Scan(&n); err != nil {
		b.t.Fatal(err)
	}
	return n
}

// until waits for a statement to count zero.
func (b *putBench) until(sql string, args ...any) {
	b.t.Helper()
	for began := time.Now(); b.count(sql, args...) > 0; time.Sleep(5 * time.Millisecond) {
		if time.Since(began) > time.Minute {
			b.t.Fatalf("%s stays at %d", sql, b.count(sql, args...))
		}
	}
}

const (
	lackingIn = `select count(*) from whence.chunks c where not exists (
    select from whence.vectors v where v.space_id = $1 and v.digest = c.digest and v.embedding is not null)`
	// Records that no vector of the current space leads to.
	gaps = `select count(*) from whence.records r where not r.deleted and not exists (
    select from whence.chunks c join whence.vectors v on v.digest = c.digest and v.embedding is not null
    join whence.spaces s on s.current and s.id = v.space_id where c.record_id = r.id)`
	ofNoSpace = `select count(*) from whence.vectors where space_id not in (select id from whence.spaces)`
)

// Models are changed back and forth while rows change and fillers come and go. At
// every moment each row is found by a vector of the current space.
func TestNoRowIsOutOfReachWhileTheModelChanges(t *testing.T) {
	b := newPutBench(t, whence.OnDeleteTombstone)
	b.exec(`delete from whence.spaces`)
	models := []Model{newSlow(t, 32, 5*time.Millisecond), newSlow(t, 48, 15*time.Millisecond)}
	space, err := b.x.EnsureSpace(t.Context(), models...)
	if err != nil {
		t.Fatal(err)
	}
	const rows = 40
	for i := range rows {
		b.put(b.state(i, fmt.Sprint("first ", i), fmt.Sprint("second ", i)))
	}
	stop := b.filler(models...)
	b.until(lackingIn, space.ID)

	ctx, end := context.WithCancel(t.Context())
	defer end()
	var g errgroup.Group
	var states sync.Mutex // of b.state
	for w := range 2 {
		g.Go(func() error { // each writes its own rows
			for n := 0; ctx.Err() == nil; n++ {
				states.Lock()
				m := b.state(w+2*rand.IntN(rows/2), fmt.Sprint("first ", w, n%7), fmt.Sprint("text ", w, n))
				states.Unlock()
				if err := b.write(t.Context(), m); err != nil {
					return err
				}
			}
			return nil
		})
	}
	g.Go(func() error {
		for ctx.Err() == nil {
			var n int
			if err := b.db.Pool.QueryRow(t.Context(), gaps).Scan(&n); err != nil {
				return err
			}
			if n > 0 {
				return fmt.Errorf("no vector leads to %d rows", n)
			}
		}
		return nil
	})
	for round := range 6 {
		next := models[(round+1)%2]
		made, err := b.x.CreateSpace(t.Context(), next)
		if err != nil {
			t.Fatal(err)
		}
		stop() // as a process does that ends, and another begins
		stop = b.filler(models...)
		b.change(made.ID)
		if err := b.x.DeleteSpace(t.Context(), space.ID); err != nil {
			t.Fatal(err)
		}
		b.until(`select count(*) from whence.spaces where id = $1`, space.ID)
		space = made
	}
	end()
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	b.until(lackingIn, space.ID)
	stop()
	if n := b.count(ofNoSpace); n > 0 {
		t.Errorf("%d vectors of deleted spaces are left", n)
	}
	if n := b.count(`select count(*) from whence.spaces`); n != 1 {
		t.Errorf("%d spaces, want 1", n)
	}
}

// write puts one state and settles it, as capture does.
func (b *putBench) write(ctx context.Context, m Mutation) error {
	var stored Stored
	err := pg.InTxWith(ctx, b.db.Pool, Writing, func(tx pgx.Tx) error {
		heads, err := b.x.Heads(ctx, tx, b.table.ID, []whence.Key{m.Key})
		if err != nil {
			return err
		}
		m.Head = heads[m.Key]
		stored, err = b.x.Put(ctx, tx, []Mutation{m})
		return err
	})
	if err != nil {
		return err
	}
	return b.x.Settle(ctx, stored.Unsettled)
}

// change switches to a space as soon as it may be.
func (b *putBench) change(id int16) {
	b.t.Helper()
	for began := time.Now(); ; time.Sleep(5 * time.Millisecond) {
		err := b.x.SwitchSpace(b.t.Context(), id, false)
		var refused *whence.Error
		switch {
		case err == nil:
			return
		case !errors.As(err, &refused) || refused.Reason != "SPACE_INCOMPLETE" || time.Since(began) > time.Minute:
			b.t.Fatal(err)
		}
	}
}

func reason(err error) string {
	var refused *whence.Error
	if errors.As(err, &refused) {
		return refused.Reason
	}
	return fmt.Sprint(err)
}

func TestSpacesThatMayNotBeChangedAreRefused(t *testing.T) {
	b := newPutBench(t, whence.OnDeleteTombstone)
	b.put(b.state(1, "one"), b.state(2, "two", "one"))
	b.embed("one", "two")
	m := newSlow(t, 48, 0)
	if e, err := b.x.EstimateSpace(t.Context(), m); err != nil || e != (SpaceEstimate{Texts: 2, Tokens: 2, Bytes: 2 * 48 * 4}) {
		t.Errorf("estimate %+v, %v", e, err)
	}
	made, err := b.x.CreateSpace(t.Context(), m)
	if err != nil {
		t.Fatal(err)
	}
	var old int16
	for i, s := range b.spaces() {
		if i == 0 {
			old = s.ID
		}
	}
	_, again := b.x.CreateSpace(t.Context(), m)
	for what, got := range map[string][2]string{
		"a space that is there":    {reason(again), "SPACE_EXISTS"},
		"a switch to an empty one": {reason(b.x.SwitchSpace(t.Context(), made.ID, false)), "SPACE_INCOMPLETE"},
		"a switch to none":         {reason(b.x.SwitchSpace(t.Context(), 999, true)), "SPACE_NOT_FOUND"},
		"deleting the current one": {reason(b.x.DeleteSpace(t.Context(), old)), "SPACE_CURRENT"},
		"deleting none":            {reason(b.x.DeleteSpace(t.Context(), 999)), "SPACE_NOT_FOUND"},
		"to the current one":       {reason(b.x.SwitchSpace(t.Context(), old, false)), "<nil>"},
	} {
		if got[0] != got[1] {
			t.Errorf("%s: %s, want %s", what, got[0], got[1])
		}
	}
	if next, err := b.x.CreateSpace(t.Context(), newSlow(t, 16, 0)); err != nil || next.ID != made.ID+1 {
		t.Errorf("the space after a refused one: %+v, %v", next, err)
	} else if err := b.x.DeleteSpace(t.Context(), next.ID); err != nil {
		t.Fatal(err)
	}
	b.exec(`delete from whence.spaces where id = $1`, made.ID+1) // as fillers do in the end
	if err := b.x.SwitchSpace(t.Context(), made.ID, true); err != nil {
		t.Fatal(err)
	}
	if err := b.x.DeleteSpace(t.Context(), old); err != nil {
		t.Fatal(err)
	}
	if got := reason(b.x.SwitchSpace(t.Context(), old, true)); got != "SPACE_NOT_FOUND" {
		t.Errorf("to one that is being deleted: %s", got)
	}
	b.put(b.state(3, "three")) // is asked for in the living space alone
	got := b.spaces()
	if got[0].State != SpaceDeleting || got[1].State != SpaceCurrent || got[1].Texts != 3 || got[1].Embedded != 0 || got[0].Embedded != 2 {
		t.Errorf("spaces %+v", got)
	}
	if n := b.count(`select count(*) from whence.vectors where space_id = $1`, old); n != 2 {
		t.Errorf("%d vectors in the space that is being deleted", n)
	}
}

func (b *putBench) spaces() []SpaceStatus {
	b.t.Helper()
	all, err := b.x.Spaces(b.t.Context())
	if err != nil {
		b.t.Fatal(err)
	}
	return all
}
