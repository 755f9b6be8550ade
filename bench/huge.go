package main

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence/ingest"
)

// hugeResult is one transaction of many rows, captured by a process of its own.
type hugeResult struct {
	Wanted int     `json:"wanted_rows"`
	Rows   int     `json:"rows"`
	Write  float64 `json:"write_seconds"`   // by the source, until committed
	Took   float64 `json:"capture_seconds"` // from the commit on, until applied
	Rate   float64 `json:"rows_per_second"`
	Before float64 `json:"before_mb"` // resident before it
	Peak   float64 `json:"peak_mb"`   // resident at most
	Log    int64   `json:"log_bytes"`
}

const (
	hugeSQL    = `create table huge (id bigint primary key, note text not null)`
	insertHuge = `insert into huge select g, 'note ' || g || ' of a large transaction' from generate_series(1, @rows::bigint) g`

	hugeBudget = 75 * time.Second // that the default may take
	hugeLeast  = 10_000
	hugeLimit  = time.Hour
)

// measureHuge inserts rows in one transaction and waits until the last of them
// has its record. By default there are only as many as a first, smaller
// transaction promises to get through in hugeBudget.
func measureHuge(ctx context.Context, s *served, c config, say func(string, ...any)) (r hugeResult, err error) {
	ctx, cancel := context.WithTimeout(ctx, hugeLimit)
	defer cancel()
	app := s.world.app
	if _, err := app.Exec(ctx, hugeSQL); err != nil {
		return r, err
	}
	t, err := s.registry.RegisterTable(ctx, ingest.TableSpec{Source: "app", Table: "public.huge", TextColumns: []string{"note"}})
	if err != nil {
		return r, err
	}
	m := &memoryDatabase{s.pool, s.registry}
	if err := m.live(ctx, t.Name()); err != nil {
		return r, err
	}
	pid, err := s.pid()
	if err != nil {
		return r, err
	}
	rows := c.huge
	one := func(rows int) error {
		resetPeakOf(pid)
		r = hugeResult{Wanted: c.huge, Rows: rows, Before: residentMB(pid, "VmRSS")}
		begun := time.Now()
		var from, to int64
		if err := app.QueryRow(ctx, positionSQL).Scan(&from); err != nil {
			return err
		}
		if _, err := app.Exec(ctx, insertHuge, pgx.NamedArgs{"rows": rows}); err != nil {
			return err
		}
		committed := time.Now()
		if err := app.QueryRow(ctx, positionSQL).Scan(&to); err != nil {
			return err
		}
		if err := m.applied(ctx, t.Table, int64(rows)); err != nil {
			return err
		}
		r.Write, r.Took, r.Log = committed.Sub(begun).Seconds(), time.Since(committed).Seconds(), to-from
		r.Rate, r.Peak = float64(rows)/r.Took, residentMB(pid, "VmHWM")
		return nil
	}
	if !c.hugeGiven && c.huge > hugeLeast {
		say("a transaction of %d rows, to see how many are possible", hugeLeast)
		if err := one(hugeLeast); err != nil {
			return r, err
		}
		rows = min(rows, max(hugeLeast, int(r.Rate*hugeBudget.Seconds())/10_000*10_000))
		if _, err := app.Exec(ctx, "truncate huge"); err != nil {
			return r, err
		}
	}
	say("a transaction of %d rows", rows)
	return r, one(rows)
}

const positionSQL = `select (pg_current_wal_insert_lsn() - '0/0')::bigint`
