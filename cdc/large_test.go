package cdc

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/internal/pgtest"
)

// newSourceIn is newSource in a server of the test's own.
func newSourceIn(t *testing.T, settings map[string]string, ddl string, tables ...whence.Table) *source {
	t.Helper()
	s := newSource(t, ``, tables...)
	s.cfg.ConnString = pgtest.OwnCluster(t, settings).DSN("postgres")
	pool, err := pgxpool.New(t.Context(), s.cfg.ConnString)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	s.db = &pgtest.DB{Pool: pool, DSN: s.cfg.ConnString, Name: "postgres"}
	s.exec(ddl)
	return s
}

// Transactions that the server must spill, run beside each other, with parts
// taken back: each comes whole, at its commit, or never.
func TestLargeTransactionsBesideEachOther(t *testing.T) {
	notes := table(1, "notes", "id")
	s := newSourceIn(t, map[string]string{"logical_decoding_work_mem": "64kB", "max_prepared_transactions": "5"}, notesDDL, notes)
	s.sink.keep = true
	_, stop := s.start()
	s.settle()
	const (
		committed, aborted, prepared, givenUp = 0, 1, 2, 3
		rows                                  = 1000
	)
	var txs [4]*pgx.Conn
	for i := range txs {
		conn, err := pgx.Connect(t.Context(), s.db.DSN)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close(context.Background()) })
		txs[i] = conn
	}
	in := func(i int, sql string, args ...any) {
		t.Helper()
		if _, err := txs[i].Exec(t.Context(), fmt.Sprintf(sql, args...)); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	for i := range txs {
		in(i, `begin`)
	}
	for round := range 3 {
		for i := range txs {
			from := i*100_000 + round*10_000
			in(i, `insert into notes select i, repeat('%d', 100) from generate_series(%d, %d) i`, i, from, from+rows-1)
			in(i, `savepoint a; insert into notes select i, 'taken back' from generate_series(%d, %d) i`, from+rows, from+2*rows)
			in(i, `savepoint b; update notes set body = 'taken back' where id >= %d and id < %d; savepoint c; delete from notes where id = %d`, from, from+rows, from)
			in(i, `release savepoint c; rollback to savepoint b; update notes set n = 7 where id = %d; rollback to savepoint a`, from)
			in(i, `savepoint d; update notes set n = %d where id >= %d and id < %d; savepoint e; insert into notes values (%d, 'kept'); release savepoint e; release savepoint d`,
				round, from, from+rows, from+rows)
		}
	}
	s.exec(`insert into notes values (-1, 'beside them')`)
	s.settle()
	s.compare(notes)
	in(committed, `commit`)
	in(aborted, `rollback`)
	in(prepared, `prepare transaction 'kept'`)
	in(givenUp, `prepare transaction 'given up'`)
	s.settle()
	s.compare(notes)
	_ = stop() // a prepared transaction outlives the stream that saw it written
	s.exec(`insert into notes values (-2, 'meanwhile')`)
	s.start()
	s.settle()
	s.compare(notes)
	s.exec(`rollback prepared 'given up'`)
	s.exec(`commit prepared 'kept'`)
	s.settle()
	s.compare(notes)
	if got, want := len(s.sink.rows(1)), 2*3*(rows+1)+2; got != want {
		t.Errorf("%d rows, want %d", got, want)
	}
	for _, ch := range s.sink.applied {
		if body := ch.Row["body"]; body != nil && *body == "taken back" {
			t.Fatalf("what was rolled back came in the stream: %s", printRow(ch.Row))
		}
	}
	s.eventually("the server says that it spilled", func() bool {
		var n int
		err := s.db.Pool.QueryRow(t.Context(), `select spill_txns from pg_stat_replication_slots where slot_name = $1`, s.cfg.Slot).Scan(&n)
		return err == nil && n > 0
	})
}

// A source where nothing happens, in a cluster where much does, holds no log back:
// both positions of its slot go on, and with them what the server may remove.
func TestIdleBesideABusyDatabase(t *testing.T) {
	notes := table(1, "notes", "id")
	s := newSourceIn(t, map[string]string{"min_wal_size": "32MB", "max_wal_size": "48MB"}, notesDDL, notes)
	s.cfg.IdleCheckpoint = 200 * time.Millisecond
	s.exec(`create database busy`)
	busy, err := pgx.Connect(t.Context(), strings.Replace(s.db.DSN, "/postgres?", "/busy?", 1))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = busy.Close(context.Background()) })
	if _, err := busy.Exec(t.Context(), `create table filler (x text)`); err != nil {
		t.Fatal(err)
	}
	s.start()
	s.settle()
	start := s.flushed()
	for range 6 {
		if _, err := busy.Exec(t.Context(), `insert into filler select repeat(md5(i::text), 50) from generate_series(1, 3000) i`); err != nil {
			t.Fatal(err)
		}
		if _, err := busy.Exec(t.Context(), `checkpoint`); err != nil {
			t.Fatal(err)
		}
	}
	goal := s.flushed()
	if goal < start+20<<20 {
		t.Fatalf("only %d bytes of log were written", goal-start)
	}
	s.eventually("the slot lets the log go", func() bool {
		var confirmed, restart bool
		err := s.db.Pool.QueryRow(t.Context(), `select confirmed_flush_lsn >= $1::text::pg_lsn, restart_lsn >= $2::text::pg_lsn
			from pg_replication_slots where slot_name = $3`, goal.String(), (goal-4<<20).String(), s.cfg.Slot).Scan(&confirmed, &restart)
		return err == nil && confirmed && restart
	})
	s.exec(`insert into notes values (1, 'still there')`)
	s.settle()
	s.compare(notes)
}
