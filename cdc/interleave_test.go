package cdc

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/whence-db/whence"
)

// Tables are registered while transactions that write to them are open, at every
// moment of publishing, snapshot and copying: in the end each is whole. A failing
// seed is in the test's name; WHENCE_CHAOS_SEED tries it again. WHENCE_CHAOS sets
// how many times there are ten tables.
func TestRegistrationsBesideWriters(t *testing.T) {
	tables := 60
	if testing.Short() {
		tables = 10
	}
	if n, err := strconv.Atoi(os.Getenv("WHENCE_CHAOS")); err == nil {
		tables = 10 * n
	}
	seed := rand.Uint64()
	if n, err := strconv.ParseUint(os.Getenv("WHENCE_CHAOS_SEED"), 10, 64); err == nil {
		seed = n
	}
	t.Run(fmt.Sprint(seed), func(t *testing.T) { besideWriters(t, seed, tables) })
}

func besideWriters(t *testing.T, seed uint64, count int) {
	t.Helper()
	random := rand.New(rand.NewPCG(seed, 0))
	s := newSource(t, ``)
	tables := make([]whence.Table, count)
	for i := range tables {
		tables[i] = table(int32(i+1), fmt.Sprint("t", i), "id")
		s.exec(fmt.Sprintf(`create table t%d (id int primary key, body text, n int default 0); alter table t%d alter body set storage external;
			insert into t%d select i, repeat('copied ', 1 + i * %d) from generate_series(1, 4) i`, i, i, i, random.IntN(2)*1000))
	}
	s.cfg.BackfillBatch, s.cfg.Look = 2, 20*time.Millisecond
	var near atomic.Int64 // the table that is registered just now
	var most atomic.Int64
	s.sink.setFault(func(step string) error {
		if step != "backfill-rows" {
			return nil
		}
		s.sink.mu.Lock()
		defer s.sink.mu.Unlock()
		running := int64(0)
		for _, t := range s.sink.tables {
			if t.State == whence.TableBackfilling {
				running++
			}
		}
		most.Store(max(most.Load(), running)) // exact enough: whoever sees the most may only be a moment late
		return nil
	})
	ctx, finish := context.WithCancel(t.Context())
	var g errgroup.Group
	for i := range 4 {
		w := &interleaved{number: i, tables: count, random: rand.New(rand.NewPCG(seed, uint64(i+1))), s: s, near: &near}
		g.Go(func() error { return w.run(ctx) })
	}
	c, _ := s.start()
	began := time.Now()
	for i := range tables {
		near.Store(int64(i))
		s.sink.register(tables[i])
		c.Poke()
		time.Sleep(time.Duration(random.IntN(60)) * time.Millisecond)
	}
	for i, table := range tables {
		near.Store(int64(i))
		s.eventually(table.Relation+" is live", func() bool { state, _ := s.sink.state(table.ID); return state == whence.TableLive })
	}
	took := time.Since(began)
	finish()
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	s.settle()
	for _, table := range tables {
		s.compare(table)
	}
	t.Logf("%d tables in %v, at most %d copied at once", count, took, most.Load())
	if most.Load() > maxBackfills {
		t.Errorf("%d backfills ran at once", most.Load())
	}
}

// interleaved writes about the table that is registered, in transactions that it
// keeps open for a while. Each writer has rows of its own, so none waits for another.
type interleaved struct {
	number, tables int
	random         *rand.Rand
	s              *source
	near           *atomic.Int64
	next           int // row that nobody touches again: what is lost of it stays lost
}

func (w *interleaved) run(ctx context.Context) error {
	for ctx.Err() == nil {
		err := pgx.BeginFunc(context.Background(), w.s.db.Pool, func(tx pgx.Tx) error {
			for range 1 + w.random.IntN(6) {
				if err := w.change(tx); err != nil {
					return err
				}
				time.Sleep(time.Duration(w.random.IntN(20)) * time.Millisecond)
			}
			if w.random.IntN(8) == 0 {
				return errInjected
			}
			return nil
		})
		if err != nil && !errors.Is(err, errInjected) {
			return err
		}
	}
	return nil
}

func (w *interleaved) change(tx pgx.Tx) error {
	name := fmt.Sprint("t", min(max(int(w.near.Load())+w.random.IntN(5)-1, 0), w.tables-1))
	id := w.number + 1 + 4*w.random.IntN(3)
	other := w.number + 1 + 4*w.random.IntN(3)
	body := fmt.Sprintf(`repeat('%d ', %d)`, w.random.IntN(100), 1+w.random.IntN(2)*2000)
	if w.random.IntN(2) == 0 {
		w.next++
		_, err := tx.Exec(context.Background(), fmt.Sprintf(`insert into %s values (%d, %s)`, name, 100+w.number+4*w.next, body))
		return err
	}
	statements := []string{
		fmt.Sprintf(`insert into %s values (%d, %s) on conflict do nothing`, name, id, body),
		fmt.Sprintf(`insert into %s values (%d, %s) on conflict (id) do update set n = %s.n + 1`, name, id, body, name),
		fmt.Sprintf(`update %s set n = n + 1 where id = %d`, name, id),
		fmt.Sprintf(`update %s set body = %s where id = %d`, name, body, id),
		fmt.Sprintf(`update %s set id = %d where id = %d and not exists (select from %s where id = %d)`, name, other, id, name, other),
		fmt.Sprintf(`delete from %s where id = %d`, name, id),
		fmt.Sprintf(`savepoint a; delete from %s where id = %d; rollback to a`, name, id),
	}
	_, err := tx.Exec(context.Background(), statements[w.random.IntN(len(statements))])
	return err
}
