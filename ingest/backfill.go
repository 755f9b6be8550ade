package ingest

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/index"
	"github.com/whence-db/whence/internal/pg"
)

const (
	// A snapshot from before the table was registered as it is now, or from
	// before another's, is refused: see register.
	startBackfill = `
update whence.tables set state = 'BACKFILLING', error = null, snapshot_lsn = @snapshot, rows_done = 0, rows_total = @total
where id = @id and source_id = @source and state in ('PENDING', 'BACKFILLING')
    and (snapshot_lsn is null or snapshot_lsn <= @snapshot::pg_lsn)`

	// These lock the row, so that the definition stays while a batch is written.
	continueBackfill = `
update whence.tables t set rows_done = t.rows_done + @rows from whence.sources s
where s.id = t.source_id and t.id = @id and t.source_id = @source and t.state = 'BACKFILLING' and t.snapshot_lsn = @snapshot::pg_lsn
returning ` + tableFields + `, coalesce(t.truncated_lsn >= @snapshot::pg_lsn, false)`

	endBackfill = `update whence.tables set state = 'LIVE', rows_total = rows_done where id = @id`
)

func (s *sink) backfillArgs(table int32, snapshot whence.LSN) pgx.NamedArgs {
	return pgx.NamedArgs{"id": table, "source": s.id, "snapshot": snapshot}
}

var errOtherBackfill = &whence.Error{Kind: whence.ErrAborted, Reason: "BACKFILL_OUTDATED",
	Message: "the table was registered otherwise, unregistered, or is being copied from a newer snapshot"}

// BackfillStart begins to copy a table from a snapshot.
func (s *sink) BackfillStart(ctx context.Context, table int32, snapshot whence.LSN, total int64) error {
	if err := s.take(ctx); err != nil {
		return err
	}
	defer s.give()
	args := s.backfillArgs(table, snapshot)
	args["total"] = total
	tag, err := s.r.pool.Exec(ctx, startBackfill, args)
	if err != nil {
		return fmt.Errorf("start a backfill: %w", pg.Translate(err))
	}
	if tag.RowsAffected() == 0 {
		return errOtherBackfill
	}
	return nil
}

// BackfillRows stores rows as the snapshot shows them where nothing newer is known.
func (s *sink) BackfillRows(ctx context.Context, table int32, snapshot whence.LSN, rows []whence.Values) error {
	return s.inTurn(ctx, func(u *unit) error {
		t, truncated, err := u.copying(ctx, table, snapshot, len(rows))
		if err != nil || truncated {
			return err // truncated: the snapshot's rows are gone
		}
		return u.copyRows(ctx, t, snapshot, rows)
	})
}

// BackfillDone ends a copy. What the snapshot did not hold is deleted here: the
// stream may have missed it while the table was not captured.
func (s *sink) BackfillDone(ctx context.Context, table int32, snapshot whence.LSN) error {
	err := s.inTurn(ctx, func(u *unit) error {
		t, _, err := u.copying(ctx, table, snapshot, 0)
		if err != nil {
			return err
		}
		// A row whose key changed during the copy may have come without its large
		// values, and the copy brought them under the old key: a newer snapshot will do.
		owed, err := s.r.index.Owed(ctx, u.tx, table)
		if err != nil {
			return err
		}
		if owed {
			return &whence.Error{Kind: whence.ErrAborted, Reason: "BACKFILL_INCOMPLETE",
				Message: "some rows changed their keys while they were copied; they are copied again"}
		}
		if err := s.r.index.DeleteOlder(ctx, u.tx, t.Table, snapshot, index.Commit{LSN: snapshot}); err != nil {
			return err
		}
		if err := u.dropAside(ctx, table, snapshot); err != nil {
			return err
		}
		_, err = u.tx.Exec(ctx, endBackfill, s.backfillArgs(table, snapshot))
		return err
	})
	if err != nil {
		return err
	}
	if err := s.r.index.Analyze(ctx); err != nil {
		s.r.log.WarnContext(ctx, "searches may be slow until autovacuum has seen the new rows", "source", s.source, "error", err)
	}
	return nil
}

// inTurn runs fn in a unit of its own that leaves the checkpoint where it is.
func (s *sink) inTurn(ctx context.Context, fn func(*unit) error) error {
	u, err := s.begin(ctx)
	if err != nil {
		return err
	}
	if err = fn(u); err == nil {
		err = u.tx.Commit(ctx)
	}
	if err != nil {
		return errors.Join(pg.Translate(err), u.Rollback(context.WithoutCancel(ctx)))
	}
	u.committed(ctx)
	return nil
}

// copying checks that the backfill is still wanted and locks its table.
func (u *unit) copying(ctx context.Context, table int32, snapshot whence.LSN, n int) (t *capturedTable, truncated bool, err error) {
	args := u.backfillArgs(table, snapshot)
	args["rows"] = n
	rows, err := u.tx.Query(ctx, continueBackfill, args)
	if err != nil {
		return nil, false, err
	}
	found, err := pgx.CollectExactlyOneRow(rows, func(row pgx.CollectableRow) (whence.Table, error) { return scanTable(row, &truncated) })
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, false, errOtherBackfill
	}
	t = capturing(found)
	u.tables = map[int32]*capturedTable{table: t}
	return t, truncated, err
}

func (u *unit) copyRows(ctx context.Context, t *capturedTable, snapshot whence.LSN, rows []whence.Values) error {
	var keys []whence.Key
	kept := rows[:0]
	for _, row := range rows {
		clean(row)
		for _, name := range t.columns {
			if _, ok := row[name]; !ok {
				return redefined(t.Table)
			}
		}
		key, err := whence.NewKey(t.KeyColumns, row)
		if err != nil {
			return fmt.Errorf("a row of %s: %w", t.Name(), err)
		}
		if len(key) > maximumKey {
			u.judged(t, key, verdict{lsn: snapshot, reason: keyTooLong(key)})
			continue
		}
		keys, kept = append(keys, key), append(kept, row)
	}
	rows = kept
	heads, err := u.r.index.Heads(ctx, u.tx, t.ID, keys)
	if err != nil {
		return err
	}
	var order []*track
	tables := map[*track]*capturedTable{}
	for i, row := range rows {
		var head *index.Head
		if h, ok := heads[keys[i]]; ok {
			head = &h
		}
		tr := newTrack(t, keys[i], head)
		tr.copied(t, snapshot, row)
		order = append(order, tr)
		tables[tr] = t
	}
	return u.write(ctx, order, tables)
}

// copied takes over a row that a snapshot shows.
func (t *track) copied(table *capturedTable, snapshot whence.LSN, row whence.Values) {
	s := state{exists: true, columns: only(table, row), definition: table.Definition}
	h := t.head
	switch {
	case h == nil || h.LSN < snapshot:
		t.push(moment{lsn: snapshot}, s)
	case !h.Deleted && len(h.Missing) > 0:
		// The row was changed after the snapshot, and the stream did not repeat
		// these values because the change left them as the snapshot has them.
		s.columns = make(whence.Values, len(table.columns))
		for _, name := range table.columns {
			if v, ok := h.Columns[name]; ok && !slices.Contains(h.Missing, name) {
				s.columns[name] = v
			} else {
				s.columns[name] = row[name]
			}
		}
		at, _ := t.last()
		t.pending = append(t.pending, pending{state: s, moment: at, previous: t.now, replace: true})
	}
}

func only(t *capturedTable, row whence.Values) whence.Values {
	if len(row) == len(t.columns) {
		return row
	}
	out := make(whence.Values, len(t.columns))
	for _, name := range t.columns {
		out[name] = row[name]
	}
	return out
}
