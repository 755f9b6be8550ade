package ingest

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"golang.org/x/sync/semaphore"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/cdc"
	"github.com/whence-db/whence/internal/pg"
)

// sink stores one source's stream. A unit has the turn for itself; the batches
// of backfills share it, for no two of them write the same record.
type sink struct {
	r      *Registry
	id     int32
	source string
	wake   func() // there may be texts to embed
	meter  Meter

	turn  *semaphore.Weighted
	known whence.LSN // the checkpoint as this process wrote or read it last; whoever has the whole turn owns it
}

var _ cdc.Sink = (*sink)(nil)

func newSink(r *Registry, s Source, wake func()) *sink {
	return &sink{r: r, id: s.ID, source: s.Name, wake: wake, meter: noMeter{}, turn: semaphore.NewWeighted(whole)}
}

// Weights of a turn.
const (
	part  = 1
	whole = 1 << 20
)

func (s *sink) take(ctx context.Context, weight int64) error { return s.turn.Acquire(ctx, weight) }

func (s *sink) give(weight int64) { s.turn.Release(weight) }

const (
	selectStart = `
select c.lsn, coalesce(s.system_id, ''), coalesce(s.timeline, 0)
from whence.sources s left join whence.checkpoints c on c.source_id = s.id
where s.id = @id and not s.deleting`
	attachSource     = `update whence.sources set system_id = @system, timeline = @timeline where id = @id and not deleting`
	insertCheckpoint = `insert into whence.checkpoints (source_id, lsn) values (@id, @lsn) on conflict do nothing`
	// What was copied while there was no slot lacks the changes up to where the
	// new one begins.
	copyFromHere = `
update whence.tables set snapshot_lsn = greatest(snapshot_lsn, @lsn::pg_lsn), state = 'PENDING',
    shape = case when state = 'PENDING' then shape end, rows_done = 0, rows_total = 0
where source_id = @id and state in ('PENDING', 'BACKFILLING', 'LIVE')`
)

// Start reads the checkpoint.
func (s *sink) Start(ctx context.Context) (lsn whence.LSN, of cdc.Cluster, err error) {
	if err := s.take(ctx, whole); err != nil {
		return 0, cdc.Cluster{}, err
	}
	defer s.give(whole)
	err = s.r.pool.QueryRow(ctx, selectStart, pgx.NamedArgs{"id": s.id}).Scan(&lsn, &of.System, &of.Timeline)
	if err != nil {
		return 0, cdc.Cluster{}, fmt.Errorf("read the checkpoint of %s: %w", s.source, pg.Translate(err))
	}
	s.known = lsn
	return lsn, of, nil
}

// Attach writes the first checkpoint, or only the cluster where there is one. A
// copy is good from the first checkpoint on.
func (s *sink) Attach(ctx context.Context, lsn whence.LSN, of cdc.Cluster) error {
	if err := s.take(ctx, whole); err != nil {
		return err
	}
	defer s.give(whole)
	err := pg.InTx(ctx, s.r.pool, func(tx pgx.Tx) error {
		args := pgx.NamedArgs{"id": s.id, "lsn": lsn, "system": of.System, "timeline": of.Timeline}
		tag, err := tx.Exec(ctx, attachSource, args)
		if err != nil {
			return err
		}
		if tag.RowsAffected() == 0 {
			return deletingError(s.source)
		}
		if tag, err = tx.Exec(ctx, insertCheckpoint, args); err != nil || tag.RowsAffected() == 0 {
			return err
		}
		_, err = tx.Exec(ctx, copyFromHere, args)
		return err
	})
	if err != nil {
		return fmt.Errorf("attach %s: %w", s.source, err)
	}
	s.known = lsn
	return nil
}

const (
	// Only the process that knows where the checkpoint is may take it away.
	deleteCheckpoint = `delete from whence.checkpoints where source_id = @id and lsn = @known::pg_lsn`
	recopyTables     = `
update whence.tables set state = 'PENDING', error = @reason, shape = null, rows_done = 0, rows_total = 0,
    snapshot_lsn = case when not @rewound then snapshot_lsn end, copy_lsn = case when not @rewound then copy_lsn end,
    truncated_lsn = case when not @rewound then truncated_lsn end
where source_id = @id and state in ('PENDING', 'BACKFILLING', 'LIVE')`
	// A failed table is copied when it is registered again; a snapshot of the
	// new history is then good whatever its position.
	rewindFailed = `
update whence.tables set snapshot_lsn = null, copy_lsn = null, truncated_lsn = null where source_id = @id and state in ('SCHEMA_CHANGED', 'BROKEN')`
	selectSourceTables = `select id from whence.tables where source_id = @id`
)

// Lost gives the checkpoint up and has every table copied again.
func (s *sink) Lost(ctx context.Context, rewound bool, reason string) error {
	if err := s.take(ctx, whole); err != nil {
		return err
	}
	defer s.give(whole)
	err := pg.InTx(ctx, s.r.pool, func(tx pgx.Tx) error {
		args := pgx.NamedArgs{"id": s.id, "known": s.known, "rewound": rewound, "reason": "its rows are compared anew: " + reason}
		tag, err := tx.Exec(ctx, deleteCheckpoint, args)
		if err != nil {
			return err
		}
		if err := expectOne(tag); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, recopyTables, args); err != nil || !rewound {
			return err
		}
		if _, err := tx.Exec(ctx, rewindFailed, args); err != nil {
			return err
		}
		rows, err := tx.Query(ctx, selectSourceTables, args)
		if err != nil {
			return err
		}
		tables, err := pgx.CollectRows(rows, pgx.RowTo[int32])
		if err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, rewindAside, pgx.NamedArgs{"tables": tables}); err != nil {
			return err
		}
		return s.r.index.Rewind(ctx, tx, tables)
	})
	if err != nil {
		return fmt.Errorf("give up the checkpoint of %s: %w", s.source, err)
	}
	s.known = 0
	s.meter.Compared(s.source, true)
	return nil
}

// Tables reads the registered tables; it does not wait for a turn.
func (s *sink) Tables(ctx context.Context) ([]whence.Table, error) {
	infos, err := readTables(ctx, s.r.pool, s.source)
	if err != nil {
		return nil, err
	}
	tables := make([]whence.Table, len(infos))
	for i, t := range infos {
		tables[i] = t.Table
	}
	return tables, nil
}

// The checkpoint moves only from where this process knows it to be: a process
// that lost the source to another one cannot write over what that one did.
//
// The moment that the source is caught up to is carried over to the database's
// clock by way of the transaction's beginning, which this process saw a moment
// later (began). So the way to the database and waiting there make it seem
// earlier than it was, never later.
const (
	moveCheckpoint = `
update whence.checkpoints
set lsn = @lsn, commit_time = coalesce(@commit::timestamptz, commit_time), lag_bytes = @lag_bytes, lag_at = clock_timestamp(), ` + countApplied + `,
    caught_up_at = greatest(caught_up_at, transaction_timestamp() + @since_began::interval)
where source_id = @id and lsn = @known::pg_lsn`

	// What Caught reports may be lost in a crash, so nobody waits for the disk.
	lazily = `select set_config('synchronous_commit', 'off', true)`
)

// checkpointArgs are moveCheckpoint's, in a transaction that had begun by began.
func (s *sink) checkpointArgs(p cdc.Progress, began time.Time) pgx.NamedArgs {
	args := pgx.NamedArgs{"id": s.id, "lsn": max(p.LSN, s.known), "known": s.known, "commit": nil, "lag_bytes": p.LagBytes, "since_began": nil, "changes": 0}
	if !p.CommitTime.IsZero() {
		args["commit"] = p.CommitTime
	}
	if !p.CaughtUpAt.IsZero() {
		args["since_began"] = p.CaughtUpAt.Sub(began)
	}
	return args
}

var errLost = &whence.Error{Kind: whence.ErrAborted, Reason: "CAPTURE_TAKEN_OVER", RetryAfter: time.Second,
	Message: "the checkpoint is not where this process left it: another one captures the source, or it was deleted; look at the source again"}

// Caught records progress without data.
func (s *sink) Caught(ctx context.Context, p cdc.Progress) error {
	if err := s.take(ctx, whole); err != nil {
		return err
	}
	defer s.give(whole)
	err := pg.InTx(ctx, s.r.pool, func(tx pgx.Tx) error {
		b := &pgx.Batch{}
		b.Queue(lazily)
		b.Queue(moveCheckpoint, s.checkpointArgs(p, time.Now())).Exec(expectOne)
		return tx.SendBatch(ctx, b).Close()
	})
	if err != nil {
		return fmt.Errorf("record progress of %s: %w", s.source, err)
	}
	s.known = max(s.known, p.LSN)
	return nil
}

const failTable = `
update whence.tables set state = @state, error = @error
where id = @id and source_id = @source and definition = @definition and state <> 'UNREGISTERING'
returning schema_name, relation`

// TableFailed sets a table's state.
func (s *sink) TableFailed(ctx context.Context, table, definition int32, state whence.TableState, message string) error {
	args := pgx.NamedArgs{"id": table, "source": s.id, "definition": definition, "state": string(state), "error": message}
	t := whence.Table{Source: s.source}
	err := s.r.pool.QueryRow(ctx, failTable, args).Scan(&t.Schema, &t.Relation)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil // it is another's by now, or gone
	}
	if err != nil {
		return fmt.Errorf("set the state of a table: %w", pg.Translate(err))
	}
	s.r.log.WarnContext(ctx, "a table cannot be captured", "table", t.Name(), "state", state, "reason", message)
	return nil
}

const (
	sawTable = `
update whence.tables set shape = @shape where id = @id and source_id = @source and definition = @definition and state <> 'UNREGISTERING'`
	copyAgain = `
update whence.tables set state = 'PENDING', error = @reason, shape = null, rows_done = 0, rows_total = 0,
    snapshot_lsn = greatest(snapshot_lsn, @at::pg_lsn)
where id = @id and source_id = @source and definition = @definition and state in ('BACKFILLING', 'LIVE')`
)

// Saw keeps how a table looks.
func (s *sink) Saw(ctx context.Context, table, definition int32, shape string) error {
	args := pgx.NamedArgs{"id": table, "source": s.id, "definition": definition, "shape": shape}
	if _, err := s.r.pool.Exec(ctx, sawTable, args); err != nil {
		return fmt.Errorf("keep how a table looks: %w", pg.Translate(err))
	}
	return nil
}

// CopyAgain has a table copied again. It waits for the unit that is open, which
// may have gone by the table's being LIVE.
func (s *sink) CopyAgain(ctx context.Context, table, definition int32, at whence.LSN, reason string) error {
	if err := s.take(ctx, whole); err != nil {
		return err
	}
	defer s.give(whole)
	args := pgx.NamedArgs{"id": table, "source": s.id, "definition": definition, "at": at, "reason": "its rows are compared anew: " + reason}
	tag, err := s.r.pool.Exec(ctx, copyAgain, args)
	if err != nil {
		return fmt.Errorf("have a table copied again: %w", pg.Translate(err))
	}
	if tag.RowsAffected() > 0 {
		s.meter.Compared(s.source, false)
	}
	return nil
}

func expectOne(tag pgconn.CommandTag) error {
	if tag.RowsAffected() != 1 {
		return errLost
	}
	return nil
}
