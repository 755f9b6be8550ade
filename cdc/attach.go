package cdc

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/whence-db/whence"
)

// slotState is the persistent slot as the server has it.
type slotState struct {
	plugin, database string
	confirmed        *whence.LSN // nil while it is being created
	walStatus        *string     // lost: the log that it needs is gone
}

const (
	slotSQL = `
select s.plugin::text, s.database::text, s.confirmed_flush_lsn::text, s.wal_status
  from pg_catalog.pg_replication_slots s
 where s.slot_name = @slot`

	flushSQL = `select pg_catalog.pg_current_wal_flush_lsn()::text, current_database()::text`

	publicationSQL = `
select p.pubviaroot and p.pubinsert and p.pubupdate and p.pubdelete and p.pubtruncate, p.puballtables
  from pg_catalog.pg_publication p
 where p.pubname = @publication`
)

// reconcile makes publication, slot and sink agree and returns the position to
// stream from. The slot is read before the sink's checkpoint: it is confirmed
// only up to durable checkpoints, so it can never rightly be ahead.
func (c *Capture) reconcile(ctx context.Context, conn *pgx.Conn, repl *pgconn.PgConn) (whence.LSN, error) {
	if _, _, err := checkServer(ctx, conn); err != nil {
		var known *whence.Error
		if errors.As(err, &known) {
			return 0, &BrokenError{Message: known.Message}
		}
		return 0, err
	}
	system, err := pglogrepl.IdentifySystem(ctx, repl)
	if err != nil {
		return 0, fmt.Errorf("identify the source: %w", err)
	}
	slot, err := c.readSlot(ctx, conn)
	if err != nil {
		return 0, err
	}
	checkpoint, known, err := c.sink.Start(ctx)
	if err != nil {
		return 0, fmt.Errorf("read the checkpoint: %w", err)
	}
	flushed, database, err := position(ctx, conn)
	if err != nil {
		return 0, err
	}
	if err := c.compare(slot, checkpoint, known, system.SystemID, flushed, database); err != nil {
		return 0, err
	}
	if err := c.ensurePublication(ctx, conn, checkpoint == 0); err != nil {
		return 0, err
	}
	if checkpoint != 0 {
		return checkpoint, nil
	}
	// A slot without a checkpoint is left from an attempt that died in between.
	// Nothing was read from it yet, so where it stands is as good a beginning.
	var from whence.LSN
	if slot != nil {
		from = *slot.confirmed
	} else if from, err = c.createSlot(ctx, repl); err != nil {
		return 0, err
	}
	if err := c.sink.Attach(ctx, from, system.SystemID); err != nil {
		return 0, fmt.Errorf("record the first checkpoint: %w", err)
	}
	return from, nil
}

var errSlotUnfinished = errors.New("the replication slot is still being created by an earlier attempt")

// compare finds what no retry can mend.
func (c *Capture) compare(slot *slotState, checkpoint whence.LSN, known, system string, flushed whence.LSN, database string) error {
	const again = "delete the source and create it again, so that its tables are copied anew"
	broken := func(format string, args ...any) error {
		return &BrokenError{Message: fmt.Sprintf(format, args...) + ": " + again}
	}
	if slot != nil {
		switch {
		case slot.plugin != "pgoutput":
			return &BrokenError{Message: fmt.Sprintf("the replication slot %s belongs to the plugin %s: drop it, or use another slot", c.cfg.Slot, slot.plugin)}
		case slot.database != database:
			return &BrokenError{Message: fmt.Sprintf("the replication slot %s belongs to the database %s, not to %s: correct the connection string", c.cfg.Slot, slot.database, database)}
		case slot.walStatus != nil && *slot.walStatus == "lost":
			return broken("the source has removed the log that the replication slot %s still needed (see max_slot_wal_keep_size), so changes are missing", c.cfg.Slot)
		case slot.confirmed == nil:
			return errSlotUnfinished
		}
	}
	if checkpoint == 0 {
		return nil
	}
	switch {
	case known != "" && known != system:
		return broken("this is another cluster than the one that was captured (system identifier %s, not %s); "+
			"correct the connection string, or", system, known)
	case slot == nil:
		return broken("the replication slot %s is gone, so changes since %s are missing", c.cfg.Slot, checkpoint)
	case *slot.confirmed > checkpoint:
		return broken("the replication slot %s was read by someone else up to %s, beyond the checkpoint %s, so changes are missing",
			c.cfg.Slot, *slot.confirmed, checkpoint)
	case checkpoint > flushed:
		return broken("the source's log ends at %s, before the checkpoint %s: it was restored from a backup or lost its last transactions",
			flushed, checkpoint)
	}
	return nil
}

func (c *Capture) readSlot(ctx context.Context, conn *pgx.Conn) (*slotState, error) {
	var (
		s         slotState
		plugin    *string
		database  *string
		confirmed *string
	)
	err := conn.QueryRow(ctx, slotSQL, pgx.NamedArgs{"slot": c.cfg.Slot}).Scan(&plugin, &database, &confirmed, &s.walStatus)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the replication slot: %w", err)
	}
	if plugin == nil || database == nil {
		return nil, &BrokenError{Message: fmt.Sprintf("%s is a physical replication slot: drop it, or use another slot", c.cfg.Slot)}
	}
	s.plugin, s.database = *plugin, *database
	if confirmed != nil {
		lsn, err := whence.ParseLSN(*confirmed)
		if err != nil {
			return nil, err
		}
		s.confirmed = &lsn
	}
	return &s, nil
}

func position(ctx context.Context, conn *pgx.Conn) (flushed whence.LSN, database string, err error) {
	var text string
	if err := conn.QueryRow(ctx, flushSQL).Scan(&text, &database); err != nil {
		return 0, "", fmt.Errorf("read the source's log position: %w", err)
	}
	flushed, err = whence.ParseLSN(text)
	return flushed, database, err
}

// ensurePublication creates the publication, without tables, before the slot:
// decoding looks it up as it was at each change's moment.
func (c *Capture) ensurePublication(ctx context.Context, conn *pgx.Conn, first bool) error {
	name := pgx.Identifier{c.cfg.Publication}.Sanitize()
	const options = `(publish = 'insert, update, delete, truncate', publish_via_partition_root = true)`
	var right, all bool
	err := conn.QueryRow(ctx, publicationSQL, pgx.NamedArgs{"publication": c.cfg.Publication}).Scan(&right, &all)
	var statement string
	switch {
	case errors.Is(err, pgx.ErrNoRows) && !first:
		return &BrokenError{Message: fmt.Sprintf("the publication %s was dropped, so changes are missing: "+
			"delete the source and create it again, so that its tables are copied anew", c.cfg.Publication)}
	case errors.Is(err, pgx.ErrNoRows):
		statement = `create publication ` + name + ` with ` + options
	case err != nil:
		return fmt.Errorf("read the publication: %w", err)
	case right:
		return nil
	default:
		statement = `alter publication ` + name + ` set ` + options
	}
	if _, err := conn.Exec(ctx, statement); err != nil {
		if isCode(err, codeDenied) {
			return &BrokenError{Message: fmt.Sprintf("the role %s may not make the publication: "+
				"grant it CREATE on the database, or have its owner run: %s", c.conn.User, statement), Err: err}
		}
		return fmt.Errorf("make the publication: %w", err)
	}
	return nil
}

// createSlot waits for the transactions that are running now.
func (c *Capture) createSlot(ctx context.Context, repl *pgconn.PgConn) (whence.LSN, error) {
	made, err := pglogrepl.CreateReplicationSlot(ctx, repl, c.cfg.Slot, "pgoutput", pglogrepl.CreateReplicationSlotOptions{
		Mode: pglogrepl.LogicalReplication, SnapshotAction: "NOEXPORT_SNAPSHOT",
	})
	if err != nil {
		return 0, fmt.Errorf("create the replication slot: %w", err)
	}
	return whence.ParseLSN(made.ConsistentPoint)
}

// startStream sends START_REPLICATION; afterwards the connection carries the stream only.
func (c *Capture) startStream(ctx context.Context, repl *pgconn.PgConn, from whence.LSN) error {
	err := pglogrepl.StartReplication(ctx, repl, c.cfg.Slot, pglogrepl.LSN(from), pglogrepl.StartReplicationOptions{
		Mode: pglogrepl.LogicalReplication,
		PluginArgs: []string{
			"proto_version " + quoteLiteral(strconv.Itoa(1)),
			"publication_names " + quoteLiteral(c.cfg.Publication), // New allows no character that needs more
		},
	})
	if err != nil {
		return fmt.Errorf("start the stream: %w", err)
	}
	return nil
}

func quoteLiteral(s string) string { return "'" + s + "'" }
