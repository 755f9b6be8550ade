package cdc

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
)

// backfill copies a table as a snapshot shows it. The table was added to the
// publication, and that committed, before the snapshot's slot was begun.
// Creating a slot waits for every transaction that was running, so one that
// wrote before the table was published has ended: its rows, which the stream
// does not bring, are in the snapshot. One that writes afterwards is in the
// stream, and in the snapshot only if it committed before the snapshot's
// position. Thus every row comes by at least one way, and positions decide
// which is newer.
//
// What the source refuses for good becomes the table's state; any other
// failure is returned, and the backfill is to start over.
func (c *Capture) backfill(ctx context.Context, t whence.Table, started chan<- struct{}) error {
	err := c.copyTable(ctx, t, started)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	var refusal *whence.Error
	var source *sourceError
	switch {
	case errors.As(err, &refusal) && errors.As(err, &source):
		return c.sink.TableFailed(ctx, t.ID, t.Definition, whence.TableBroken, refusal.Message+"; then register the table again")
	case errors.As(err, &source):
		refused, ok := permanent(source.err)
		if !ok {
			return err
		}
		state, advice := whence.TableBroken, "mend that, then register the table again"
		switch refused.Code {
		case codeUndefinedColumn:
			state = whence.TableSchemaChanged
		case codeDenied:
			advice = fmt.Sprintf("run GRANT SELECT ON %s TO %s (with row security also ALTER ROLE %s BYPASSRLS), then register the table again",
				sqlName(t.Schema, t.Relation), pgx.Identifier{c.conn.User}.Sanitize(), pgx.Identifier{c.conn.User}.Sanitize())
		}
		return c.sink.TableFailed(ctx, t.ID, t.Definition, state,
			fmt.Sprintf("the source refuses to copy %s (%s): %s", sqlName(t.Schema, t.Relation), refused.Message, advice))
	}
	return err
}

// sourceError tells the source's refusals from the sink's.
type sourceError struct{ err error }

func (e *sourceError) Error() string { return e.err.Error() }
func (e *sourceError) Unwrap() error { return e.err }

func fromSource(err error, what string) error {
	if err == nil {
		return nil
	}
	return &sourceError{fmt.Errorf("%s: %w", what, err)}
}

func (c *Capture) copyTable(ctx context.Context, t whence.Table, started chan<- struct{}) error {
	k := &copying{Capture: c, table: t, columns: t.Columns()}
	err := k.from(ctx, func(conn *pgx.Conn, in Inspection) error {
		done, err := k.start(ctx)
		if err != nil {
			return err
		}
		close(started)
		parts, err := readParts(ctx, conn, t, in.Kind)
		if err != nil {
			return fromSource(err, "lock")
		}
		return k.parts(ctx, conn, left(parts, done, c.cfg.RangeBlocks))
	})
	for pause := 50 * time.Millisecond; err == nil; pause = min(2*pause, time.Second) {
		keys, err := c.sink.BackfillOwed(ctx, t.ID)
		if err != nil {
			return fmt.Errorf("read what a backfill owes: %w", err)
		}
		if len(keys) > 0 {
			if err := k.owed(ctx, keys); err != nil {
				return err
			}
		}
		done, err := c.sink.BackfillDone(ctx, t.ID, k.snapshot)
		if err != nil {
			return fmt.Errorf("end the backfill: %w", err)
		}
		if done {
			return nil
		}
		if err := sleep(ctx, pause); err != nil {
			return err
		}
	}
	return err
}

// from reads from a snapshot of this moment.
func (k *copying) from(ctx context.Context, read func(*pgx.Conn, Inspection) error) error {
	conn, err := k.connectAttached(ctx)
	if err != nil {
		return err
	}
	defer closeConn(ctx, conn.PgConn())
	if k.rows, err = estimate(ctx, conn, k.table); err != nil {
		return fromSource(err, "count the rows")
	}
	if k.snapshot, err = k.openSnapshot(ctx, conn); err != nil {
		return err
	}
	in, err := InspectTable(ctx, conn, k.table.Schema, k.table.Relation)
	if err != nil {
		return fromSource(err, "inspect")
	}
	return read(conn, in)
}

func (k *copying) start(ctx context.Context) ([]Blocks, error) {
	done, err := k.sink.BackfillStart(ctx, k.table.ID, k.table.Definition, k.snapshot, k.rows)
	if err != nil {
		return nil, fmt.Errorf("start the backfill: %w", err)
	}
	return done, nil
}

// estimate tells about how many rows there are to copy. A table that was never
// analysed is counted, which is little beside the copying; not in the copying's
// own transaction, which is to lock the table no earlier than it reads it.
func estimate(ctx context.Context, conn *pgx.Conn, t whence.Table) (rows int64, err error) {
	in, err := InspectTable(ctx, conn, t.Schema, t.Relation)
	if err != nil || in.EstimatedRows > 0 {
		return in.EstimatedRows, err
	}
	err = conn.QueryRow(ctx, "select count(*)"+fromTable(t, in.Kind)).Scan(&rows)
	return rows, err
}

// openSnapshot begins a transaction on conn that sees the source as it was at
// the position returned. The slot that gave the snapshot is gone on return, so
// that it holds no log back.
func (c *Capture) openSnapshot(ctx context.Context, conn *pgx.Conn) (whence.LSN, error) {
	repl, err := c.connectReplication(ctx)
	if err != nil {
		return 0, err
	}
	defer closeConn(ctx, repl)
	made, err := pglogrepl.CreateReplicationSlot(ctx, repl, c.temporarySlot(), "pgoutput", pglogrepl.CreateReplicationSlotOptions{
		Temporary: true, Mode: pglogrepl.LogicalReplication, SnapshotAction: "EXPORT_SNAPSHOT",
	})
	if err != nil {
		return 0, fmt.Errorf("take a snapshot: %w", err)
	}
	position, err := whence.ParseLSN(made.ConsistentPoint)
	if err != nil {
		return 0, fmt.Errorf("take a snapshot: %w", err)
	}
	return position, enterSnapshot(ctx, conn, made.SnapshotName)
}

// inOrder has ranges of blocks read as such, and from their first block on.
const inOrder = `set local enable_seqscan = off; set local synchronize_seqscans = off; set local max_parallel_workers_per_gather = 0`

// enterSnapshot begins a transaction on conn that sees what another one exported.
func enterSnapshot(ctx context.Context, conn *pgx.Conn, exported string) error {
	name, err := conn.PgConn().EscapeString(exported)
	if err != nil {
		return fmt.Errorf("open the snapshot: %w", err)
	}
	if _, err := conn.Exec(ctx, `begin isolation level repeatable read read only`); err != nil {
		return fmt.Errorf("open the snapshot: %w", err)
	}
	if _, err := conn.Exec(ctx, `set transaction snapshot '`+name+`'`); err != nil {
		return fmt.Errorf("open the snapshot: %w", err)
	}
	if _, err := conn.Exec(ctx, inOrder); err != nil {
		return fmt.Errorf("open the snapshot: %w", err)
	}
	return nil
}

func (c *Capture) temporarySlot() string {
	var b [4]byte
	_, _ = rand.Read(b[:]) // never fails
	return c.cfg.Slot[:min(len(c.cfg.Slot), 52)] + "_b" + hex.EncodeToString(b[:])
}

func fromTable(t whence.Table, kind Kind) string {
	if kind == KindTable { // tables that inherit from it have keys of their own
		return " from only " + sqlName(t.Schema, t.Relation)
	}
	return " from " + sqlName(t.Schema, t.Relation)
}
