package ingest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/cdc"
	"github.com/whence-db/whence/index"
	"github.com/whence-db/whence/internal/pg"
)

const (
	// A snapshot from before the table was registered as it is now, or from before
	// another's, is refused: see register.
	startBackfill = `
update whence.tables set error = null, copy_lsn = @snapshot, copy_began = now(),
    snapshot_lsn = case when state = 'PENDING' then @snapshot::pg_lsn else snapshot_lsn end,
    rows_total = case when state = 'PENDING' then @total else greatest(rows_total, @total) end, state = 'BACKFILLING'
where id = @id and source_id = @source and definition = @definition and state in ('PENDING', 'BACKFILLING')
    and (snapshot_lsn is null or snapshot_lsn <= @snapshot::pg_lsn)`
	forgetBlocks = `
delete from whence.backfills b using whence.tables t
where t.id = @id and b.table_id = t.id and t.state = 'PENDING'`
	countBlocks = `
update whence.tables t set copy_rows = coalesce((select sum(b.rows) from whence.backfills b where b.table_id = t.id), 0) where t.id = @id`
	selectBlocks = `
select b.part::bigint, b.file::bigint, lower(r), upper(r)
from whence.backfills b, unnest(b.blocks) r where b.table_id = @id`

	// The lock keeps the definition as it is while a batch is written.
	continueBackfill = `
select definition, language, coalesce(truncated_lsn >= @snapshot::pg_lsn, false)
from whence.tables
where id = @id and source_id = @source and state = 'BACKFILLING' and copy_lsn = @snapshot::pg_lsn
for share`

	// Writers of one part wait here for each other, so it comes last.
	noteBlocks = `
insert into whence.backfills as b (table_id, part, file, blocks, rows)
values (@id, @part::bigint::oid, @file::bigint::oid, int8multirange(int8range(@from, @to)), @rows)
on conflict (table_id, part, file) do update set blocks = b.blocks + excluded.blocks, rows = b.rows + excluded.rows`

	// The rows of the last snapshot may have come before the changes up to there.
	selectEnd = `
select snapshot_lsn, snapshot_lsn = copy_lsn or @known::pg_lsn >= copy_lsn from whence.tables where id = @id`
	endBackfill = `
update whence.tables t set state = 'LIVE', rows_done = n.rows, rows_total = n.rows, covered_from = coalesce(covered_from, clock_timestamp())
from (select coalesce(sum(rows), 0) as rows from whence.backfills where table_id = @id) n
where id = @id`
	dropBlocks = `delete from whence.backfills where table_id = @id`
)

func (s *sink) backfillArgs(table int32, snapshot whence.LSN) pgx.NamedArgs {
	return pgx.NamedArgs{"id": table, "source": s.id, "snapshot": snapshot}
}

var errOtherBackfill = &whence.Error{Kind: whence.ErrAborted, Reason: "BACKFILL_OUTDATED", RetryAfter: time.Second,
	Message: "the table was registered otherwise, unregistered, or is being copied from a newer snapshot; look at the table again"}

// BackfillStart begins to copy a table from a snapshot, or goes on from it.
func (s *sink) BackfillStart(ctx context.Context, table, definition int32, snapshot whence.LSN, total int64) (copied []cdc.Blocks, err error) {
	if err := s.take(ctx, whole); err != nil {
		return nil, err
	}
	defer s.give(whole)
	args := s.backfillArgs(table, snapshot)
	args["definition"], args["total"] = definition, total
	err = pg.InTx(ctx, s.r.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, forgetBlocks, args); err != nil {
			return err
		}
		tag, err := tx.Exec(ctx, startBackfill, args)
		if err != nil {
			return err
		}
		if tag.RowsAffected() == 0 {
			return errOtherBackfill
		}
		if _, err := tx.Exec(ctx, countBlocks, args); err != nil {
			return err
		}
		copied, err = readBlocks(ctx, tx, args)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("start a backfill: %w", err)
	}
	return copied, nil
}

func readBlocks(ctx context.Context, tx pgx.Tx, args pgx.NamedArgs) (out []cdc.Blocks, err error) {
	rows, err := tx.Query(ctx, selectBlocks, args)
	if err != nil {
		return nil, err
	}
	var part, file int64
	var b cdc.Blocks
	_, err = pgx.ForEachRow(rows, []any{&part, &file, &b.From, &b.To}, func() error {
		b.Part = cdc.Part{OID: uint32(part), File: uint32(file)}
		out = append(out, b)
		return nil
	})
	return out, err
}

// owedAtOnce bounds how many keys are read again by one attempt.
const owedAtOnce = 10_000

// BackfillOwed returns the keys of records that lack columns.
func (s *sink) BackfillOwed(ctx context.Context, table int32) (out []whence.Values, err error) {
	err = pg.InTx(ctx, s.r.pool, func(tx pgx.Tx) error {
		keys, err := s.r.index.Owed(ctx, tx, table, owedAtOnce)
		out = nil
		for _, k := range keys {
			out = append(out, k.Values())
		}
		return err
	})
	return out, err
}

// BackfillRows stores rows as the snapshot shows them where nothing newer is known.
func (s *sink) BackfillRows(ctx context.Context, table int32, snapshot whence.LSN, values []whence.Values, read cdc.Blocks) error {
	t, err := s.definition(ctx, table)
	if err != nil {
		return err
	}
	at := moment{lsn: snapshot}
	rows, err := rowsOf(t, values, at)
	if err != nil {
		return err
	}
	return s.inTurn(ctx, part, func(u *unit) error {
		u.tables = map[int32]*capturedTable{table: t}
		truncated, err := u.copying(ctx, t, snapshot)
		if err != nil {
			return err
		}
		if !truncated { // else the snapshot's rows are gone
			if err := u.copyRows(ctx, t, at, rows); err != nil {
				return err
			}
		}
		if err := u.r.index.CountSaved(ctx, u.tx, u.saved); err != nil {
			return err
		}
		if read.Part == (cdc.Part{}) {
			return nil // single rows, read by their keys
		}
		args := pgx.NamedArgs{"id": table, "part": int64(read.OID), "file": int64(read.File), "from": read.From, "to": read.To, "rows": len(values)}
		_, err = u.tx.Exec(ctx, noteBlocks, args)
		return err
	})
}

// definition reads how a table is registered now; that it is so still is checked
// under its lock.
func (s *sink) definition(ctx context.Context, table int32) (*capturedTable, error) {
	infos, err := readTables(ctx, s.r.pool, s.source)
	if err != nil {
		return nil, err
	}
	for _, t := range infos {
		if t.ID == table {
			return capturing(t.Table), nil
		}
	}
	return nil, errOtherBackfill
}

// copiedRow is a row of a snapshot with its key.
type copiedRow struct {
	key whence.Key
	row *row
}

func rowsOf(t *capturedTable, values []whence.Values, at moment) ([]copiedRow, error) {
	rows := make([]copiedRow, 0, len(values))
	for _, v := range values {
		for _, name := range t.columns {
			if _, ok := v[name]; !ok || len(v) != len(t.columns) {
				return nil, redefined(t.Table)
			}
		}
		clean(v)
		key, err := whence.NewKey(t.KeyColumns, v)
		if err != nil {
			return nil, fmt.Errorf("a row of %s: %w", t.name, err)
		}
		r := copiedRow{key: key, row: newRow(t, v, at)}
		if len(key) <= maximumKey {
			if err := r.row.cut(t, key, at); err != nil {
				return nil, err
			}
		}
		rows = append(rows, r)
	}
	return rows, nil
}

// BackfillDone ends a copy. What the snapshots did not hold is deleted here: the
// stream may have missed it while the table was not captured.
func (s *sink) BackfillDone(ctx context.Context, table int32, snapshot whence.LSN) (done bool, err error) {
	t, err := s.definition(ctx, table)
	if err != nil {
		return false, err
	}
	err = s.inTurn(ctx, whole, func(u *unit) error {
		done, err = u.endBackfill(ctx, t, snapshot)
		return err
	})
	if err != nil || !done {
		return false, err
	}
	if err := s.r.index.Analyze(ctx); err != nil {
		s.r.log.WarnContext(ctx, "searches may be slow until autovacuum has seen the new rows", "source", s.source, "error", err)
	}
	return true, nil
}

func (u *unit) endBackfill(ctx context.Context, t *capturedTable, snapshot whence.LSN) (done bool, err error) {
	if _, err := u.copying(ctx, t, snapshot); err != nil {
		return false, err
	}
	args := u.backfillArgs(t.ID, snapshot)
	args["known"] = u.known
	var first whence.LSN
	if err := u.tx.QueryRow(ctx, selectEnd, args).Scan(&first, &done); err != nil || !done {
		return false, err
	}
	// A unit of another process, which holds the source by now or has lost it,
	// commits before this, or after it and then finds the table LIVE.
	if _, err := u.tx.Exec(ctx, lockCheckpoint, pgx.NamedArgs{"source": u.id}); err != nil {
		return false, err
	}
	// First, for a record may owe values of a row that is gone since.
	if err := u.deleteOlder(ctx, t.Table, first, index.Commit{LSN: first}); err != nil {
		return false, err
	}
	owed, err := u.r.index.Owed(ctx, u.tx, t.ID, 1)
	if err != nil || len(owed) > 0 {
		return false, err
	}
	if err := u.dropAside(ctx, t.ID, first); err != nil {
		return false, err
	}
	if _, err := u.tx.Exec(ctx, endBackfill, args); err != nil {
		return false, err
	}
	_, err = u.tx.Exec(ctx, dropBlocks, args)
	return true, err
}

// inTurn runs fn in a unit of its own that leaves the checkpoint where it is.
func (s *sink) inTurn(ctx context.Context, weight int64, fn func(*unit) error) error {
	u, err := s.begin(ctx, weight)
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

// copying checks that the backfill is still wanted, and locks its table, whose
// language it reads anew.
func (u *unit) copying(ctx context.Context, t *capturedTable, snapshot whence.LSN) (truncated bool, err error) {
	var definition int32
	err = u.tx.QueryRow(ctx, continueBackfill, u.backfillArgs(t.ID, snapshot)).Scan(&definition, &t.Language, &truncated)
	if errors.Is(err, pgx.ErrNoRows) || err == nil && definition != t.Definition {
		return false, errOtherBackfill
	}
	return truncated, err
}

func (u *unit) copyRows(ctx context.Context, t *capturedTable, at moment, rows []copiedRow) error {
	keys := make([]whence.Key, 0, len(rows))
	for _, r := range rows {
		if len(r.key) > maximumKey {
			u.judged(t, r.key, verdict{lsn: at.lsn, reason: keyTooLong(r.key)})
			continue
		}
		keys = append(keys, r.key)
	}
	slices.Sort(keys)
	tracks, err := u.openTable(ctx, t, slices.Compact(keys), nil, false)
	if err != nil {
		return err
	}
	order := make([]*track, 0, len(rows))
	for _, r := range rows {
		if tr := tracks[r.key]; tr != nil && !tr.touched {
			tr.touched = true
			tr.copied(at, r.row)
			order = append(order, tr)
		}
	}
	return u.write(ctx, order)
}
