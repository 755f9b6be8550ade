package cdc

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/internal/pgtest"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

// source is a database with a capture of it.
type source struct {
	t    *testing.T
	db   *pgtest.DB
	sink *memorySink
	cfg  Config
}

func newSource(t *testing.T, ddl string, tables ...whence.Table) *source {
	t.Helper()
	t.Parallel()
	db := pgtest.Empty(t)
	s := &source{t: t, db: db, sink: newMemorySink(t, tables...)}
	s.cfg = Config{ConnString: db.DSN, Slot: "whence_" + strings.ToLower(db.Name), Publication: "whence_pub", Sink: s.sink,
		Log: slog.New(slog.DiscardHandler), Look: 50 * time.Millisecond, Probe: 50 * time.Millisecond, MaximumBackoff: 200 * time.Millisecond}
	if testing.Verbose() {
		s.cfg.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
		s.cfg.Status = func(err error) { t.Log("status:", err) }
	}
	s.cfg.Slot = s.cfg.Slot[:min(63, len(s.cfg.Slot))]
	s.exec(ddl)
	return s
}

func table(id int32, name string, keys ...string) whence.Table {
	return whence.Table{ID: id, Source: "app", Schema: "public", Relation: name, KeyColumns: keys, TextColumns: []string{"body"}, Definition: 1}
}

func (s *source) exec(sql string, args ...any) {
	s.t.Helper()
	if _, err := s.db.Pool.Exec(s.t.Context(), sql, args...); err != nil {
		s.t.Fatalf("%s: %v", sql, err)
	}
}

// start runs a capture until the returned stop, which returns Run's error.
func (s *source) start() (*Capture, func() error) {
	s.t.Helper()
	c, err := New(s.cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var g errgroup.Group
	g.Go(func() error { return c.Run(ctx) })
	stop := func() error { cancel(); return g.Wait() }
	s.t.Cleanup(func() { _ = stop() })
	return c, stop
}

const patience = 60 * time.Second

func (s *source) eventually(what string, done func() bool) {
	s.t.Helper()
	for deadline := time.Now().Add(patience); !done(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			s.t.Fatalf("not within %v: %s", patience, what)
		}
	}
}

func (s *source) flushed() whence.LSN {
	s.t.Helper()
	var text string
	if err := s.db.Pool.QueryRow(s.t.Context(), `select pg_current_wal_flush_lsn()::text`).Scan(&text); err != nil {
		s.t.Fatal(err)
	}
	lsn, err := whence.ParseLSN(text)
	if err != nil {
		s.t.Fatal(err)
	}
	return lsn
}

// settle waits until everything committed so far is applied and every table is live.
func (s *source) settle() {
	s.t.Helper()
	goal := s.flushed()
	defer func() {
		if !s.t.Failed() {
			return
		}
		s.sink.mu.Lock()
		defer s.sink.mu.Unlock()
		for _, t := range s.sink.tables {
			s.t.Logf("%s is %v %s", t.Name(), t.State, t.Error)
		}
		s.t.Logf("captured to %s of %s", s.sink.progress.LSN, goal)
	}()
	s.eventually("caught up with every table live", func() bool {
		s.sink.mu.Lock()
		defer s.sink.mu.Unlock()
		for _, t := range s.sink.tables {
			if t.State != whence.TableLive {
				return false
			}
		}
		return s.sink.progress.LSN >= goal
	})
}

// compare reads a table from the source and wants the sink to hold just that.
func (s *source) compare(t whence.Table) {
	s.t.Helper()
	want, got := s.read(t), s.sink.rows(t.ID)
	if maps.Equal(want, got) {
		return
	}
	s.t.Logf("%d rows, want %d", len(got), len(want))
	for k := range want {
		if got[k] != want[k] {
			s.t.Errorf("%s %s:\n got %.300s\nwant %.300s", t.Name(), k, got[k], want[k])
		}
	}
	for k := range got {
		if _, ok := want[k]; !ok {
			s.t.Errorf("%s %s: not in the source", t.Name(), k)
		}
	}
}

func (s *source) read(t whence.Table) map[whence.Key]string {
	s.t.Helper()
	c, err := New(s.cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	conn, err := c.connect(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	defer closeConn(s.t.Context(), conn.PgConn())
	result := conn.PgConn().ExecParams(s.t.Context(), "select "+(&copying{columns: t.Columns()}).list()+fromTable(t, KindPartitioned), nil, nil, nil, nil).Read()
	if result.Err != nil {
		s.t.Fatal(result.Err)
	}
	out := map[whence.Key]string{}
	for _, raw := range result.Rows {
		row := whence.Values{}
		for i, name := range t.Columns() {
			row[name] = nil
			if raw[i] != nil {
				v := string(raw[i])
				row[name] = &v
			}
		}
		key, err := whence.NewKey(t.KeyColumns, row)
		if err != nil {
			s.t.Fatal(err)
		}
		out[key] = printRow(row)
	}
	return out
}

const notesDDL = `create table notes (id int primary key, body text, n int not null default 0)`

func TestFollowsEveryKindOfChange(t *testing.T) {
	notes := table(1, "notes", "id")
	s := newSource(t, notesDDL+`; insert into notes select i, 'before ' || i from generate_series(1, 2500) i`, notes)
	s.start()
	s.settle()
	s.compare(notes)

	s.exec(`insert into notes values (3000, 'new'), (3001, ''), (3002, null)`)
	s.exec(`update notes set body = 'changed' where id % 100 = 0`)
	s.exec(`update notes set id = id + 10000 where id between 5 and 9`)
	s.exec(`delete from notes where id between 20 and 30`)
	s.exec(`update notes set id = 20 where id = 21 or id = 3001`)
	s.settle()
	s.compare(notes)

	s.exec(`truncate notes`)
	s.exec(`insert into notes values (1, 'after the truncation')`)
	s.settle()
	s.compare(notes)
}

func TestRestartsFromTheCheckpoint(t *testing.T) {
	notes := table(1, "notes", "id")
	s := newSource(t, notesDDL, notes)
	_, stop := s.start()
	s.exec(`insert into notes values (1, 'one')`)
	s.settle()
	if err := stop(); !errors.Is(err, context.Canceled) {
		t.Fatalf("Run returned %v", err)
	}
	s.exec(`insert into notes values (2, 'two'); update notes set body = 'uno' where id = 1`)
	s.sink.keep = true
	s.start()
	s.settle()
	s.compare(notes)
	if n := len(s.sink.applied); n != 2 || s.sink.attached != 1 {
		t.Errorf("%d changes applied after the restart, want 2; attached %d times, want once", n, s.sink.attached)
	}
}

// A transaction that wrote before its table was published, and commits after,
// is not in the stream: the snapshot must wait for it.
func TestRowWrittenBeforePublishing(t *testing.T) {
	notes, other := table(1, "notes", "id"), table(2, "other", "id")
	s := newSource(t, notesDDL+`; create table other (id int primary key, body text)`, notes)
	s.start()
	s.settle()
	tx, err := s.db.Pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), `insert into other values (1, 'written early')`); err != nil {
		t.Fatal(err)
	}
	s.sink.register(other)
	s.eventually("the table is published", func() bool {
		var n int
		err := s.db.Pool.QueryRow(t.Context(), `select count(*) from pg_publication_tables where tablename = 'other'`).Scan(&n)
		return err == nil && n == 1
	})
	if _, err := tx.Exec(t.Context(), `insert into other values (2, 'same transaction, published by now')`); err != nil {
		t.Fatal(err)
	}
	s.exec(`insert into other values (3, 'another transaction')`)
	s.eventually("the snapshot waits", func() bool {
		var n int
		err := s.db.Pool.QueryRow(t.Context(), `select count(*) from pg_replication_slots where temporary and database = current_database()`).Scan(&n)
		return err == nil && n == 1
	})
	if state, _ := s.sink.state(2); state != whence.TablePending {
		t.Errorf("the table is %s while a transaction that wrote to it is open", state)
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.settle()
	s.compare(other)
}

func TestChangesDuringBackfill(t *testing.T) {
	notes := table(1, "notes", "id")
	s := newSource(t, notesDDL+`; alter table notes alter body set storage external;
		insert into notes select i, repeat(i || ' ', 1500) from generate_series(1, 400) i`, notes)
	s.cfg.BackfillBatch = 10
	var batches atomic.Int32
	s.sink.setFault(func(step string) error {
		if step != "backfill-rows" {
			return nil
		}
		switch batches.Add(1) { // nothing of the table beyond the first ten rows is there yet
		case 2:
			s.exec(`update notes set n = 1 where id in (5, 300)`)                      // unchanged body, known and not
			s.exec(`update notes set id = id + 1000 where id in (6, 301)`)             // the same with another key
			s.exec(`delete from notes where id in (7, 302)`)                           //
			s.exec(`delete from notes where id = 303`)                                 // comes back
			s.exec(`insert into notes values (303, 'again'), (2000, 'new meanwhile')`) //
			s.exec(`update notes set body = 'short now', n = 2 where id in (8, 304)`)  //
			s.exec(`update notes set id = 3000 where id = 1301; update notes set n = 3 where id = 3000`)
		case 3:
			goal := s.flushed()
			s.eventually("the stream overtakes the backfill", func() bool { at, _ := s.sink.now(); _, p := s.sink.now(); return max(at, p.LSN) >= goal })
		}
		return nil
	})
	s.start()
	s.settle()
	s.compare(notes)
	if batches.Load() < 40 {
		t.Errorf("%d batches, want one for every 10 of 400 rows", batches.Load())
	}
}

// Every row goes while the backfill still delivers what its snapshot shows.
// (Once it reads, its lock keeps TRUNCATE waiting; before, TRUNCATE is first.)
func TestEmptiedDuringBackfill(t *testing.T) {
	for step, sql := range map[string]string{
		"backfill-rows":  `delete from notes; insert into notes values (50, 'fifty')`,
		"backfill-start": `truncate notes; insert into notes values (50, 'fifty')`,
	} {
		t.Run(step, func(t *testing.T) {
			notes := table(1, "notes", "id")
			s := newSource(t, notesDDL+`; insert into notes select i, 'x' from generate_series(1, 100) i`, notes)
			s.cfg.BackfillBatch = 10
			var done atomic.Bool
			s.sink.setFault(func(at string) error {
				if at == step && done.CompareAndSwap(false, true) {
					s.exec(sql)
				}
				return nil
			})
			s.start()
			s.settle()
			s.settle() // the first may have begun before the rows went
			s.compare(notes)
		})
	}
}

// A table is rewritten when its snapshot has been taken and its lock has not: the
// snapshot does not show the rows that ALTER TABLE wrote anew.
func TestRewrittenBeforeItIsRead(t *testing.T) {
	for name, sql := range map[string]string{
		"altered": `alter table notes alter n type bigint`, "altered twice": `alter table notes alter n type bigint; alter table notes alter n type int`,
		"vacuumed": `vacuum full notes`, "emptied": `truncate notes`,
	} {
		t.Run(name, func(t *testing.T) {
			notes := table(1, "notes", "id")
			s := newSource(t, notesDDL+`; insert into notes select i, 'x' from generate_series(1, 100) i`, notes)
			var done atomic.Bool
			s.sink.setFault(func(at string) error {
				if at == "backfill-start" && done.CompareAndSwap(false, true) {
					s.exec(sql)
				}
				return nil
			})
			s.start()
			s.settle()
			s.proven()
			s.settle()
			s.compare(notes)
		})
	}
}

func TestLargeTransaction(t *testing.T) {
	notes := table(1, "notes", "id")
	s := newSource(t, notesDDL, notes)
	s.start()
	s.settle()
	var slices atomic.Int32
	s.sink.setFault(func(step string) error {
		if step == "apply" {
			slices.Add(1)
		}
		return nil
	})
	s.exec(`insert into notes select i, repeat('x', 100) from generate_series(1, 50000) i`)
	s.settle()
	if got := len(s.sink.rows(1)); got != 50000 {
		t.Errorf("%d rows, want 50000", got)
	}
	if slices.Load() < 50 {
		t.Errorf("50000 changes came in %d slices, want at least 50", slices.Load())
	}
}

// A sink that takes longer than the server's patience keeps the connection.
func TestSlowSinkKeepsTheConnection(t *testing.T) {
	notes := table(1, "notes", "id")
	s := newSource(t, notesDDL, notes)
	s.exec(`alter database ` + pgx.Identifier{s.db.Name}.Sanitize() + ` set wal_sender_timeout = '1s'`)
	s.cfg.QueueBytes = 64 << 10
	var connects atomic.Int32
	s.cfg.Status = func(err error) {
		if err != nil {
			t.Errorf("the stream ended: %v", err)
		}
		connects.Add(1)
	}
	s.start()
	s.settle()
	var slept atomic.Bool
	s.sink.setFault(func(step string) error {
		if step == "apply" && slept.CompareAndSwap(false, true) {
			time.Sleep(4 * time.Second)
		}
		return nil
	})
	s.exec(`insert into notes select i, repeat('x', 100) from generate_series(1, 30000) i`)
	s.settle()
	s.compare(notes)
	if connects.Load() != 1 {
		t.Errorf("%d connections, want 1", connects.Load())
	}
}

func TestIdleProgress(t *testing.T) {
	notes := table(1, "notes", "id")
	s := newSource(t, notesDDL+`; create table unrelated (id int)`, notes)
	s.cfg.IdleCheckpoint = 200 * time.Millisecond
	s.start()
	s.settle()
	_, before := s.sink.now()
	s.exec(`insert into unrelated select generate_series(1, 1000)`)
	goal := s.flushed()
	s.eventually("the slot is confirmed beyond what does not concern it", func() bool {
		var confirmed bool
		err := s.db.Pool.QueryRow(t.Context(), `select confirmed_flush_lsn >= $1::text::pg_lsn from pg_replication_slots where slot_name = $2`,
			goal.String(), s.cfg.Slot).Scan(&confirmed)
		return err == nil && confirmed
	})
	if at, p := s.sink.now(); at < goal || p.CaughtUpAt.IsZero() || p.LSN < before.LSN {
		t.Errorf("checkpoint %s, goal %s, progress %+v", at, goal, p)
	}
	s.eventually("caught up a moment ago", func() bool {
		_, p := s.sink.now()
		return time.Since(p.CaughtUpAt) < 2*time.Second
	})
}

// A transaction that wrote and pauses leaves the flushed log ending within a
// record; what is committed is known to be applied all the same.
func TestCaughtUpBesideAnOpenTransaction(t *testing.T) {
	notes := table(1, "notes", "id")
	s := newSource(t, notesDDL, notes)
	s.start()
	s.settle()
	tx, err := s.db.Pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.Background()) }()
	for i := range 3 {
		_, err := tx.Exec(t.Context(), `insert into notes select $1, (select string_agg(md5(random()::text), '') from generate_series(1, 3000 + $1 * 777))`, i)
		if err != nil {
			t.Fatal(err)
		}
		written := time.Now()
		// The server itself completes the record within 15 s.
		for deadline := written.Add(8 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			if _, p := s.sink.now(); p.CaughtUpAt.After(written.Add(time.Second)) {
				break
			}
			if time.Now().After(deadline) {
				_, p := s.sink.now()
				t.Fatalf("write %d: caught up to %v, %d bytes behind", i, p.CaughtUpAt, p.LagBytes)
			}
		}
	}
}

var errInjected = errors.New("injected")

// Whatever fails, and wherever, the sink ends up equal to the source.
func TestFaults(t *testing.T) {
	for _, step := range []string{"start", "attach", "attach-after", "tables", "begin", "apply", "commit", "commit-after", "caught",
		"backfill-start", "backfill-start-after", "backfill-rows", "backfill-rows-after", "backfill-done", "backfill-done-after"} {
		for _, how := range []string{"error", "cut", "stop"} {
			t.Run(step+"/"+how, func(t *testing.T) {
				notes := table(1, "notes", "id")
				s := newSource(t, notesDDL+`; insert into notes select i, 'before ' || i from generate_series(1, 50) i`, notes)
				s.cfg.BackfillBatch = 20
				s.cfg.IdleCheckpoint = 100 * time.Millisecond
				var hits atomic.Int32
				stopNow := make(chan struct{})
				s.sink.setFault(func(at string) error {
					if at != step {
						return nil
					}
					hit := hits.Add(1)
					if hit != 1 && hit != 3 {
						return nil
					}
					switch how {
					case "cut":
						s.cut()
						return nil
					case "stop":
						if hit == 1 {
							close(stopNow)
						}
					}
					return errInjected
				})
				_, stop := s.start()
				for i := range 20 {
					if i == 10 {
						s.settle()
					}
					s.exec(`insert into notes values ($1, 'streamed')`, 1000+i)
					s.exec(`update notes set body = body || '.' where id % 7 = $1 % 7`, i)
					s.exec(`delete from notes where id = $1`, i)
				}
				if how == "stop" {
					select {
					case <-stopNow:
					case <-time.After(patience):
						t.Fatal("the step was never reached")
					}
					if err := stop(); !errors.Is(err, context.Canceled) {
						t.Errorf("Run returned %v", err)
					}
					s.start()
				}
				s.settle()
				s.compare(notes)
				if hits.Load() == 0 {
					t.Errorf("the step was never reached")
				}
			})
		}
	}
}

// cut ends the source's replication connections of this database.
func (s *source) cut() {
	_, err := s.db.Pool.Exec(context.Background(), `select pg_terminate_backend(pid) from pg_stat_activity
		where datname = current_database() and application_name = 'whence capture'`)
	if err != nil {
		s.t.Errorf("cut: %v", err)
	}
}
