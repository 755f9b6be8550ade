package ingest

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/embedder/lexical"
	"github.com/whence-db/whence/internal/pg"
)

var lexicalName, lexicalDimensions = lexical.Default().Name(), lexical.Default().Dimensions()

// settleLimit is how long capture may take once nothing disturbs it any more.
const settleLimit = 5 * time.Minute

// finish ends the disturbances and holds the index against the source.
func (s *chaos) finish() {
	s.lane.toSource.resume()
	s.lane.toMemory.resume()
	s.r.pool.Reset() // what was cut is not to fail below
	s.finishPrepared()
	for _, t := range s.tables {
		s.mend(t)
	}
	switch c := s.one(); {
	case c != nil && s.random.IntN(3) == 0: // whoever lived through it goes on
	default:
		for _, c := range s.children {
			c.signal(syscall.SIGKILL)
			<-c.ended
		}
		s.children = nil
		s.spawn()
	}
	s.note("all is quiet")
	s.settle()
	s.compare()
	if s.random.IntN(4) == 0 && !s.t.Failed() { // and goes on following
		w := &chaosWriter{random: s.random, dsn: s.sourceDSN, tables: s.tables}
		conn := connectTo(s.t, s.sourceDSN)
		for range 10 {
			if err := w.transaction(s.t.Context(), conn); err != nil {
				s.t.Fatal(err)
			}
		}
		s.settle()
		s.compare()
	}
}

// settle waits until Whence says that it has applied everything up to now.
func (s *chaos) settle() {
	s.t.Helper()
	ctx := s.t.Context()
	var now time.Time
	if err := s.r.pool.QueryRow(ctx, `select clock_timestamp()`).Scan(&now); err != nil {
		s.t.Fatal(err)
	}
	var target whence.LSN
	if err := connectTo(s.t, s.sourceDSN).QueryRow(ctx, `select pg_current_wal_insert_lsn()`).Scan(&target); err != nil {
		s.t.Fatal(err)
	}
	deadline := time.Now().Add(settleLimit)
	for {
		seen := s.settled(ctx, now, target)
		if seen == "" {
			s.note("settled")
			return
		}
		if s.t.Failed() {
			s.t.FailNow()
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("%v after the last disturbance: %s", settleLimit, seen)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// settled says what there is to wait for; nothing when Whence vouches for every
// table up to a moment. Tables that failed as they should are registered again.
func (s *chaos) settled(ctx context.Context, moment time.Time, target whence.LSN) string {
	var state whence.State
	if err := pg.Snapshot(ctx, s.r.pool, func(tx pgx.Tx) (err error) { state, err = s.r.State(ctx, tx); return err }); err != nil {
		return err.Error()
	}
	state.Tables = slices.DeleteFunc(state.Tables, func(t whence.Table) bool { return t.ID == whence.NotesID })
	source := state.Sources["app"]
	if source.Error != "" && !source.Retrying {
		s.t.Errorf("the source is broken: %s", source.Error)
		return "broken"
	}
	var waiting []string
	for _, t := range state.Tables {
		ours := s.table(t)
		switch t.State {
		case whence.TableLive:
			continue
		case whence.TableSchemaChanged, whence.TableBroken:
			if !s.mayFail[ours] {
				s.t.Errorf("%s failed without a reason: %s %s", t.Name(), t.State, t.Error)
			}
			s.note("%s is %s: %s", t.Name(), t.State, t.Error)
			s.register(ours, true)
		case whence.TablePending, whence.TableBackfilling:
		}
		waiting = append(waiting, fmt.Sprintf("%s is %s %s", t.Name(), t.State, t.Error))
	}
	if len(state.Tables) != len(s.registered) {
		s.t.Errorf("%d tables are registered, want %d", len(state.Tables), len(s.registered))
	}
	if source.LSN < target || !source.CaughtUpAt.After(moment) {
		waiting = append(waiting, fmt.Sprintf("at %v of %v, caught up at %v of %v: %s", source.LSN, target, source.CaughtUpAt, moment, source.Error))
	}
	return strings.Join(waiting, "; ")
}

func (s *chaos) table(t whence.Table) *chaosTable {
	for _, ours := range s.tables {
		if tableName(ours) == t.Name() {
			return ours
		}
	}
	s.t.Fatalf("%s is registered", t.Name())
	return nil
}

// compare finds every difference there is.
func (s *chaos) compare() {
	s.t.Helper()
	ctx := s.t.Context()
	err := pg.Snapshot(ctx, s.r.pool, func(tx pgx.Tx) error {
		tables, err := readTables(ctx, tx, "app")
		if err != nil {
			return err
		}
		for _, t := range tables {
			rows, err := sourceRows(ctx, s.sourceDSN, t.Table)
			if err != nil {
				return err
			}
			records, err := indexRows(ctx, tx, t.Table)
			if err != nil {
				s.t.Errorf("%s: %v", t.Name(), err)
				continue
			}
			if err := compareTable(t.Table, rows, records); err != nil {
				s.t.Error(err)
			}
		}
		for what, sql := range invariants {
			var n int
			if err := tx.QueryRow(ctx, sql).Scan(&n); err != nil {
				return fmt.Errorf("%s: %w", what, err)
			}
			if n > 0 {
				s.t.Errorf("%d %s", n, what)
			}
		}
		return nil
	})
	if err != nil {
		s.t.Fatal(err)
	}
	if !s.cfg.Embed || s.t.Failed() {
		return
	}
	deadline := time.Now().Add(settleLimit)
	for what, sql := range soon {
		for {
			var n int
			if err := s.r.pool.QueryRow(ctx, sql).Scan(&n); err != nil {
				s.t.Fatal(err)
			}
			if n == 0 {
				break
			}
			if time.Now().After(deadline) {
				s.t.Errorf("%d %s, %v later", n, what, settleLimit)
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	s.note("compared")
}
