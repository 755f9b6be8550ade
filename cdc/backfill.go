package cdc

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/whence-db/whence"
)

// backfillBytes of values make a batch complete before its row count does.
const backfillBytes = 4 << 20

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
	conn, err := c.connectAttached(ctx)
	if err != nil {
		return err
	}
	defer closeConn(ctx, conn.PgConn())
	rows, err := estimate(ctx, conn, t)
	if err != nil {
		return fromSource(err, "count the rows")
	}
	snapshot, err := c.openSnapshot(ctx, conn)
	if err != nil {
		return err
	}
	in, err := InspectTable(ctx, conn, t.Schema, t.Relation)
	if err != nil {
		return fromSource(err, "inspect")
	}
	if err := c.sink.BackfillStart(ctx, t.ID, snapshot, rows); err != nil {
		return fmt.Errorf("start the backfill: %w", err)
	}
	close(started)
	if err := c.copyRows(ctx, conn.PgConn(), t, in.Kind, snapshot); err != nil {
		return err
	}
	if err := c.sink.BackfillDone(ctx, t.ID, snapshot); err != nil {
		return fmt.Errorf("end the backfill: %w", err)
	}
	return nil
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
	name, err := conn.PgConn().EscapeString(made.SnapshotName)
	if err != nil {
		return 0, fmt.Errorf("take a snapshot: %w", err)
	}
	if _, err := conn.Exec(ctx, `begin isolation level repeatable read read only`); err != nil {
		return 0, fmt.Errorf("open the snapshot: %w", err)
	}
	if _, err := conn.Exec(ctx, `set transaction snapshot '`+name+`'`); err != nil {
		return 0, fmt.Errorf("open the snapshot: %w", err)
	}
	return position, nil
}

func (c *Capture) temporarySlot() string {
	var b [4]byte
	_, _ = rand.Read(b[:]) // never fails
	return c.cfg.Slot[:min(len(c.cfg.Slot), 52)] + "_b" + hex.EncodeToString(b[:])
}

func copySQL(t whence.Table, kind Kind) string {
	var b strings.Builder
	b.WriteString("select ")
	for i, name := range t.Columns() {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(pgx.Identifier{name}.Sanitize())
	}
	return b.String() + fromTable(t, kind)
}

func fromTable(t whence.Table, kind Kind) string {
	if kind == KindTable { // tables that inherit from it have keys of their own
		return " from only " + sqlName(t.Schema, t.Relation)
	}
	return " from " + sqlName(t.Schema, t.Relation)
}

// copyRows streams the rows in text form: the server sends no faster than the
// sink takes them, and no more than a batch is held.
func (c *Capture) copyRows(ctx context.Context, conn *pgconn.PgConn, t whence.Table, kind Kind, snapshot whence.LSN) error {
	columns := t.Columns()
	r := relation{message: relationMessage{schema: t.Schema, name: t.Relation}, take: make([]bool, len(columns))}
	for i, name := range columns {
		r.message.columns = append(r.message.columns, relationColumn{name: name})
		r.take[i] = true
	}
	var (
		values = make(tuple, len(columns))
		batch  []whence.Values
		bytes  int
	)
	send := func() error {
		if len(batch) == 0 {
			return nil
		}
		if err := c.sink.BackfillRows(ctx, t.ID, snapshot, batch); err != nil {
			return fmt.Errorf("store rows of the backfill: %w", err)
		}
		batch, bytes = nil, 0
		return nil
	}
	result := conn.ExecParams(ctx, copySQL(t, kind), nil, nil, nil, nil)
	for result.NextRow() {
		for i, v := range result.Values() {
			values[i] = column{kind: 't', data: v}
			if v == nil {
				values[i].kind = 'n'
			}
		}
		row, size := r.values(values, r.take)
		batch, bytes = append(batch, row), bytes+size
		if len(batch) >= c.cfg.BackfillBatch || bytes >= backfillBytes {
			if err := send(); err != nil {
				return err // the connection is closed with the result unread
			}
		}
	}
	if _, err := result.Close(); err != nil {
		return fromSource(err, "copy rows")
	}
	return send()
}
