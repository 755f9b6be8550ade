package cdc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/internal/pgtest"
)

// Concurrent writers, while capture is stopped, cut off and made to fail, the slot
// dropped, the publication altered and the table rewritten at random: in the end
// the sink equals the source, and the slot was never confirmed beyond the
// checkpoint, nor backwards. A failing seed is in the test's name; WHENCE_CHAOS_SEED tries it
// again. WHENCE_CHAOS sets how many there are and chooses the long form.
func TestChaosRandomly(t *testing.T) {
	seeds := make([]uint64, 4)
	if testing.Short() {
		seeds = seeds[:1]
	}
	if n, err := strconv.Atoi(os.Getenv("WHENCE_CHAOS")); err == nil {
		seeds = make([]uint64, n)
	}
	for i := range seeds {
		seeds[i] = rand.Uint64()
	}
	if seed, err := strconv.ParseUint(os.Getenv("WHENCE_CHAOS_SEED"), 10, 64); err == nil {
		seeds = []uint64{seed}
	}
	for _, seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { randomly(t, seed) })
	}
}

func randomly(t *testing.T, seed uint64) {
	t.Helper()
	random := rand.New(rand.NewPCG(seed, 0))
	notes, other := table(1, "notes", "id"), table(2, "other", "id")
	s := newSource(t, `create table notes (id int primary key, body text, n int default 0);
		create table other (id int primary key, body text, n int default 0);
		alter table notes alter body set storage external; alter table other replica identity full;
		insert into notes select i, repeat('n' || i, i * 20) from generate_series(1, 300) i;
		insert into other select i, repeat('o' || i, i) from generate_series(1, 300) i`, notes, other)
	s.cfg.BackfillBatch, s.cfg.IdleCheckpoint = 20, 50*time.Millisecond
	misfortunes := 6
	if os.Getenv("WHENCE_CHAOS") != "" || os.Getenv("WHENCE_CHAOS_SEED") != "" {
		misfortunes = 9 // the long form has those that make everything be compared anew
	}
	faults := make(chan struct{}, 1000)
	s.sink.setFault(func(string) error {
		select {
		case <-faults:
			return errInjected
		default:
			return nil
		}
	})
	ctx, finish := context.WithCancel(t.Context())
	var g errgroup.Group
	for range 3 {
		w := writer{random: rand.New(rand.NewPCG(random.Uint64(), 1)), db: s.db}
		g.Go(func() error { return w.run(ctx) })
	}
	g.Go(func() error { return s.watchSlot(ctx) })
	c, stop := s.start()
	for range 25 {
		time.Sleep(time.Duration(random.IntN(150)) * time.Millisecond)
		switch random.IntN(misfortunes) {
		case 0, 5:
			if err := stop(); !errors.Is(err, context.Canceled) {
				t.Fatalf("Run returned %v", err)
			}
			c, stop = s.start()
		case 1:
			s.cut()
		case 2, 3:
			faults <- struct{}{}
		case 4:
			again := []whence.Table{notes, other}[random.IntN(2)]
			again.Definition = 2 + random.Int32N(1000)
			s.sink.register(again)
			c.Poke()
		case 6:
			if err := stop(); !errors.Is(err, context.Canceled) {
				t.Fatalf("Run returned %v", err)
			}
			s.may(`select pg_drop_replication_slot($1)`, s.cfg.Slot)
			c, stop = s.start()
		case 7:
			s.may(`alter publication whence_pub drop table notes; alter publication whence_pub add table only notes`)
		case 8:
			s.may(`alter table other alter body type text using reverse(body)`)
		}
	}
	finish()
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
	s.proven()
	s.settle()
	s.compare(notes)
	s.compare(other)
}

// may runs what other sessions, or what happened before, can make fail.
func (s *source) may(sql string, args ...any) {
	if _, err := s.db.Pool.Exec(s.t.Context(), sql, args...); err != nil {
		s.t.Logf("%s: %v", sql, err)
	}
}

// writer commits, and rolls back, transactions of random changes.
type writer struct {
	random *rand.Rand
	db     *pgtest.DB
}

func (w writer) run(ctx context.Context) error {
	for ctx.Err() == nil {
		err := pgx.BeginFunc(ctx, w.db.Pool, func(tx pgx.Tx) error {
			for range 1 + w.random.IntN(8) {
				if err := w.change(ctx, tx); err != nil {
					return err
				}
			}
			if w.random.IntN(10) == 0 {
				return errInjected
			}
			return nil
		})
		if err != nil && ctx.Err() == nil && !errors.Is(err, errInjected) && !isCode(err, "40P01") && !isCode(err, "23505") {
			return err
		}
	}
	return nil
}

func (w writer) change(ctx context.Context, tx pgx.Tx) error {
	name := []string{"notes", "other"}[w.random.IntN(2)]
	id, id2 := w.random.IntN(400), w.random.IntN(400)
	text := strings.Repeat(fmt.Sprint(w.random.IntN(1000)), 1+w.random.IntN(2000))
	var sql string
	var args []any
	switch w.random.IntN(20) {
	case 0, 1, 2, 3, 4, 5:
		sql, args = `insert into `+name+` values ($1, $2) on conflict do nothing`, []any{id, text}
	case 6, 7, 8, 9:
		sql, args = `update `+name+` set n = n + 1 where id between $1 and $1 + 5`, []any{id}
	case 10, 11, 12:
		sql, args = `update `+name+` set body = $2 where id = $1`, []any{id, text}
	case 13, 14:
		sql, args = `update `+name+` set id = $2 where id = $1 and not exists (select 1 from `+name+` where id = $2)`, []any{id, id2}
	case 15, 16, 17:
		sql, args = `delete from `+name+` where id between $1 and $1 + 3`, []any{id}
	case 18:
		sql = `savepoint a; insert into ` + name + ` values (1000); rollback to savepoint a`
	case 19:
		if w.random.IntN(10) > 0 {
			return nil
		}
		sql = `truncate ` + name
	}
	_, err := tx.Exec(ctx, sql, args...)
	return err
}

func (s *source) watchSlot(ctx context.Context) error {
	var last whence.LSN
	for sleep(ctx, 5*time.Millisecond) == nil {
		var text *string
		err := s.db.Pool.QueryRow(ctx, `select confirmed_flush_lsn::text from pg_replication_slots where slot_name = $1`, s.cfg.Slot).Scan(&text)
		if errors.Is(err, pgx.ErrNoRows) || ctx.Err() != nil || text == nil {
			continue
		}
		if err != nil {
			return err
		}
		confirmed, err := whence.ParseLSN(*text)
		if err != nil {
			return err
		}
		if checkpoint, _ := s.sink.now(); checkpoint != 0 && confirmed > checkpoint {
			return fmt.Errorf("the slot is confirmed to %s, the checkpoint is %s", confirmed, checkpoint)
		}
		if confirmed < last {
			return fmt.Errorf("the slot is confirmed to %s after %s", confirmed, last)
		}
		last = confirmed
	}
	return nil
}

// The source's server is killed while it is written to, and comes back.
func TestSourceCrashes(t *testing.T) {
	t.Parallel()
	cluster := pgtest.OwnCluster(t, map[string]string{"fsync": "on"})
	notes := table(1, "notes", "id")
	sink := newMemorySink(t, notes)
	pool := &pgtest.DB{DSN: cluster.DSN("postgres"), Name: "postgres"}
	s := &source{t: t, db: pool, sink: sink, cfg: Config{ConnString: pool.DSN, Slot: "whence_crash", Publication: "whence_pub", Sink: sink,
		Log:  slog.New(slog.DiscardHandler),
		Look: 50 * time.Millisecond, Probe: 50 * time.Millisecond, MaximumBackoff: 200 * time.Millisecond, IdleCheckpoint: 100 * time.Millisecond}}
	connect := func() *pgx.Conn {
		conn, err := pgx.Connect(t.Context(), pool.DSN)
		if err != nil {
			t.Fatal(err)
		}
		return conn
	}
	conn := connect()
	if _, err := conn.Exec(t.Context(), notesDDL); err != nil {
		t.Fatal(err)
	}
	_, stop := s.start()
	next := 0
	for range 3 {
		var g errgroup.Group
		g.Go(func() error { // until the server dies
			for {
				_, err := conn.Exec(context.Background(), `insert into notes values ($1, 'x')`, next)
				next++ // also when whether it committed is not known
				if err != nil {
					return err
				}
			}
		})
		time.Sleep(400 * time.Millisecond)
		cluster.Kill()
		if err := g.Wait(); err == nil {
			t.Fatal("the writer outlived the server")
		}
		if err := cluster.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
		s.cfg.ConnString = cluster.DSN("postgres")
		conn = connect()
	}
	goal := func() whence.LSN {
		flushed, _, err := position(t.Context(), conn)
		if err != nil {
			t.Fatal(err)
		}
		return flushed
	}()
	s.eventually("caught up", func() bool {
		state, _ := sink.state(1)
		_, p := sink.now()
		return state == whence.TableLive && p.LSN >= goal
	})
	s.compare(notes)
	if err := stop(); !errors.Is(err, context.Canceled) {
		t.Errorf("Run returned %v", err)
	}
	if err := conn.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if next < 10 {
		t.Errorf("only %d rows were written", next)
	}
}

// A server that shuts down waits until all that it sent is confirmed, or the
// stream's connection is gone: it must not wait for the next idle checkpoint.
func TestSourceShutsDown(t *testing.T) {
	t.Parallel()
	cluster := pgtest.OwnCluster(t, nil)
	sink := newMemorySink(t)
	var lost atomic.Bool
	c, err := New(Config{ConnString: cluster.DSN("postgres"), Slot: "whence_stop", Publication: "whence_pub", Sink: sink,
		Log: slog.New(slog.DiscardHandler), IdleCheckpoint: time.Hour, Status: func(err error) {
			if err != nil {
				lost.Store(true)
			}
		}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var g errgroup.Group
	g.Go(func() error { return c.Run(ctx) })
	s := &source{t: t, sink: sink}
	s.eventually("it streams", func() bool { _, p := sink.now(); return p.LSN > 0 && !p.CaughtUpAt.IsZero() })
	stopping, done := context.WithTimeout(t.Context(), 20*time.Second)
	defer done()
	if err := cluster.Stop(stopping); err != nil || stopping.Err() != nil {
		t.Errorf("the server would not stop: %v, %v", err, stopping.Err())
	}
	s.eventually("the loss is noticed", lost.Load)
	cancel()
	if err := g.Wait(); !errors.Is(err, context.Canceled) {
		t.Errorf("Run returned %v", err)
	}
}
