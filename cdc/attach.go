package cdc

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

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
	invalidation     *string     // why it can not be read any more; from PostgreSQL 16 on
	conflicting      *bool       // the same, in 16
}

func (s *slotState) lost() bool {
	return s.walStatus != nil && *s.walStatus == "lost" || s.invalidation != nil || s.conflicting != nil && *s.conflicting
}

func (s *slotState) reason() string {
	if s.invalidation != nil {
		return *s.invalidation
	}
	return "the log that it needed was removed, see max_slot_wal_keep_size"
}

const (
	slotSQL = `
select s.plugin::text, s.database::text, s.confirmed_flush_lsn::text, s.wal_status,
       to_jsonb(s) ->> 'invalidation_reason', (to_jsonb(s) ->> 'conflicting')::bool
  from pg_catalog.pg_replication_slots s
 where s.slot_name = @slot`

	flushSQL = `select pg_catalog.pg_current_wal_flush_lsn()::text, current_database()::text`

	publicationSQL = `
select p.pubviaroot and p.pubinsert and p.pubupdate and p.pubdelete and p.pubtruncate, p.oid || ' ' || p.xmin
  from pg_catalog.pg_publication p
 where p.pubname = @publication`
)

// reconcile makes publication, slot and sink agree and returns the position to
// stream from. Where changes are missing for good, the sink is told so at once,
// and everything is copied anew beside a new slot; rows that come out as they
// are stored cost nothing more.
//
// The slot is read before the sink's checkpoint: it is confirmed only up to
// durable checkpoints, so it can never rightly be ahead.
func (c *Capture) reconcile(ctx context.Context, conn *pgx.Conn, repl *pgconn.PgConn) (whence.LSN, error) {
	if _, _, err := checkServer(ctx, conn); err != nil {
		var known *whence.Error
		// A standby may be promoted at any moment, and is then what it was asked for.
		if errors.As(err, &known) && known.Reason != reasonStandby {
			return 0, &BrokenError{Message: known.Message}
		}
		return 0, err
	}
	system, err := pglogrepl.IdentifySystem(ctx, repl)
	if err != nil {
		return 0, fmt.Errorf("identify the source: %w", err)
	}
	now := Cluster{System: system.SystemID, Timeline: system.Timeline}
	if err := onCluster(ctx, conn, now); err != nil {
		return 0, err
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
	if err := c.usable(slot, database); err != nil {
		return 0, err
	}
	published, err := c.publication(ctx, conn)
	if err != nil {
		return 0, err
	}
	if checkpoint != 0 {
		was := history{at: checkpoint, of: known}
		if was.seen, err = c.newestSnapshot(ctx, checkpoint); err != nil {
			return 0, err
		}
		if was.end, err = endOfTimeline(ctx, repl, known, now); err != nil {
			return 0, err
		}
		gap, err := c.compare(slot, was, now, flushed, published)
		if err != nil {
			return 0, err
		}
		if gap == nil {
			return checkpoint, c.moved(ctx, checkpoint, known, now)
		}
		c.log.WarnContext(ctx, "changes are missing: every table of the source is compared anew", "reason", gap.reason, "checkpoint", checkpoint)
		if err := c.sink.Lost(ctx, gap.rewound, gap.reason); err != nil {
			return 0, fmt.Errorf("record that changes are missing: %w", err)
		}
		c.unpublished = false
		clear(c.strays) // their positions may mean nothing any more
	}
	if err := c.ensurePublication(ctx, conn, published); err != nil {
		return 0, err
	}
	return c.attachAnew(ctx, conn, repl, slot, now)
}

// attachAnew makes a new slot in place of the one that is there: an attempt that
// died in between has left it, or changes are missing from it.
func (c *Capture) attachAnew(ctx context.Context, conn *pgx.Conn, repl *pgconn.PgConn, slot *slotState, now Cluster) (whence.LSN, error) {
	if slot != nil {
		_, err := conn.Exec(ctx, dropSlotSQL, pgx.NamedArgs{"slot": c.cfg.Slot})
		if err != nil && !isCode(err, codeUndefinedObject) {
			return 0, fmt.Errorf("drop the replication slot that changes are missing from: %w", err)
		}
	}
	from, err := c.createSlot(ctx, conn, repl)
	if err != nil {
		return 0, err
	}
	if err := c.sink.Attach(ctx, from, now); err != nil {
		return 0, fmt.Errorf("record the first checkpoint: %w", err)
	}
	c.cluster.Store(&now)
	return from, nil
}

// moved records a timeline that goes on from where the checkpoint is.
func (c *Capture) moved(ctx context.Context, checkpoint whence.LSN, known, now Cluster) error {
	if known == now {
		c.cluster.Store(&now)
		return nil
	}
	c.log.InfoContext(ctx, "the source has a new timeline, which contains all that was applied", "timeline", now.Timeline)
	if err := c.sink.Attach(ctx, checkpoint, now); err != nil {
		return fmt.Errorf("record the timeline: %w", err)
	}
	c.cluster.Store(&now)
	return nil
}

// usable refuses a slot that is not ours.
func (c *Capture) usable(slot *slotState, database string) error {
	switch {
	case slot == nil:
	case slot.plugin != "pgoutput":
		return &BrokenError{Message: fmt.Sprintf("the replication slot %s belongs to the plugin %s: drop it, then resume the source", c.cfg.Slot, slot.plugin)}
	case slot.database != database:
		return &BrokenError{Message: fmt.Sprintf("the replication slot %s belongs to the database %s, not to %s: correct the connection string",
			c.cfg.Slot, slot.database, database)}
	}
	return nil
}

// history is a position with what it is a position of.
type history struct {
	at   whence.LSN
	seen whence.LSN // what is stored is from up to there: a snapshot may be ahead of the stream
	of   Cluster
	end  whence.LSN // where that timeline ended, if a later one is the source's now
}

// gap is why the stream cannot go on from the checkpoint.
type gap struct {
	reason  string
	rewound bool // as in Sink.Lost
}

// compare finds whether changes since the checkpoint are missing, or what was
// applied before it did not all happen.
func (c *Capture) compare(slot *slotState, was history, now Cluster, flushed whence.LSN, published *publicationState) (*gap, error) {
	missing := func(format string, args ...any) (*gap, error) { return &gap{reason: fmt.Sprintf(format, args...)}, nil }
	rewound := func(format string, args ...any) (*gap, error) {
		return &gap{reason: fmt.Sprintf(format, args...), rewound: true}, nil
	}
	switch {
	case was.of.System == "": // an operator said that another cluster is right
		return rewound("another cluster holds the source now")
	case was.of.System != now.System:
		return nil, &BrokenError{Foreign: true, Message: fmt.Sprintf("this is another cluster than the one that was captured (system identifier %s, not %s): "+
			"correct the connection string; or if the database was moved, upgraded or restored there, resume the source: "+
			"its tables are then compared with what is stored", now.System, was.of.System)}
	case was.of.Timeline != now.Timeline && was.seen > was.end:
		return rewound("the source went on from %s in timeline %d, and what was applied up to %s is not part of that: "+
			"a standby was promoted or a backup recovered", was.end, now.Timeline, was.seen)
	case was.seen > flushed:
		return rewound("the source's log ends at %s, before %s, which was applied: it was restored from a backup or lost its last transactions",
			flushed, was.seen)
	case slot == nil:
		return missing("the replication slot %s is gone, and with it the changes since %s", c.cfg.Slot, was.at)
	case slot.lost():
		return missing("the source has invalidated the replication slot %s (%s), and with it the changes since %s", c.cfg.Slot, slot.reason(), was.at)
	case slot.confirmed == nil:
		return nil, errSlotUnfinished
	case *slot.confirmed > was.at:
		return missing("the replication slot %s was read by someone else, or made anew, up to %s, and changes since %s are missing",
			c.cfg.Slot, *slot.confirmed, was.at)
	case published == nil:
		return missing("the publication %s was dropped, and changes since then are missing", c.cfg.Publication)
	case c.unpublished:
		return missing("the publication %s was dropped for a while, and changes of that time are missing", c.cfg.Publication)
	case !published.complete:
		return missing("the publication %s was altered so that it leaves changes out", c.cfg.Publication)
	}
	return nil, nil
}

var errSlotUnfinished = errors.New("the replication slot is still being created by an earlier attempt")

// newestSnapshot returns the newest position that rows were copied at, if it is
// beyond the checkpoint. The server can hold the stream back until a standby has
// what is sent (synchronized_standby_slots), but not what a snapshot shows.
func (c *Capture) newestSnapshot(ctx context.Context, checkpoint whence.LSN) (whence.LSN, error) {
	tables, err := c.sink.Tables(ctx)
	if err != nil {
		return 0, fmt.Errorf("read the registered tables: %w", err)
	}
	newest := checkpoint
	for _, t := range tables {
		newest = max(newest, t.Copied)
	}
	return newest, nil
}

// endOfTimeline returns where the known timeline ended before the present one;
// zero when it is no part of the present one's past.
func endOfTimeline(ctx context.Context, repl *pgconn.PgConn, known, now Cluster) (whence.LSN, error) {
	if known.System != now.System || known.Timeline >= now.Timeline {
		return 0, nil
	}
	file, err := pglogrepl.TimelineHistory(ctx, repl, now.Timeline)
	if err != nil {
		return 0, fmt.Errorf("read the history of timeline %d: %w", now.Timeline, err)
	}
	return parseTimelineHistory(file.Content, known.Timeline)
}

// parseTimelineHistory reads a history file: a line for each past timeline with
// its number, where it ended, and why.
func parseTimelineHistory(content []byte, timeline int32) (whence.LSN, error) {
	for line := range strings.Lines(string(content)) {
		fields := strings.Fields(line)
		if len(fields) < 2 || strings.HasPrefix(fields[0], "#") {
			continue
		}
		if fields[0] == strconv.FormatInt(int64(timeline), 10) {
			return whence.ParseLSN(fields[1])
		}
	}
	return 0, nil
}

func (c *Capture) readSlot(ctx context.Context, conn *pgx.Conn) (*slotState, error) {
	var (
		s         slotState
		plugin    *string
		database  *string
		confirmed *string
	)
	err := conn.QueryRow(ctx, slotSQL, pgx.NamedArgs{"slot": c.cfg.Slot}).Scan(&plugin, &database, &confirmed, &s.walStatus, &s.invalidation, &s.conflicting)
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

// publicationState is the publication as the server has it.
type publicationState struct {
	complete bool   // it publishes every kind of change, through the partitions' root
	version  string // another one when it was made anew or its options were altered
}

// publication reads the publication; nil when there is none.
func (c *Capture) publication(ctx context.Context, conn *pgx.Conn) (*publicationState, error) {
	var p publicationState
	err := conn.QueryRow(ctx, publicationSQL, pgx.NamedArgs{"publication": c.cfg.Publication}).Scan(&p.complete, &p.version)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the publication: %w", err)
	}
	return &p, nil
}

// publishing tells whether the publication is there and leaves no kind of change out.
func (c *Capture) publishing(ctx context.Context, conn *pgx.Conn) (bool, error) {
	p, err := c.publication(ctx, conn)
	return p != nil && p.complete, err
}

// ensurePublication creates the publication, without tables, before the slot:
// decoding looks it up as it was at each change's moment.
func (c *Capture) ensurePublication(ctx context.Context, conn *pgx.Conn, found *publicationState) error {
	name := pgx.Identifier{c.cfg.Publication}.Sanitize()
	const options = `(publish = 'insert, update, delete, truncate', publish_via_partition_root = true)`
	statement := `create publication ` + name + ` with ` + options
	if found != nil {
		if found.complete {
			return nil
		}
		statement = `alter publication ` + name + ` set ` + options
	}
	if _, err := conn.Exec(ctx, statement); err != nil {
		if isCode(err, codeDenied) {
			return &BrokenError{Message: fmt.Sprintf("the role %s may not make the publication: "+
				"grant it CREATE on the database, or have an owner of the tables run: %s; then resume the source", c.conn.User, statement), Err: err}
		}
		return fmt.Errorf("make the publication: %w", err)
	}
	return nil
}

// failoverVersion is the first whose slots can be kept in step on a standby.
const failoverVersion = 170000

const versionSQL = `select current_setting('server_version_num')::int`

// createSlot waits for the transactions that are running now.
func (c *Capture) createSlot(ctx context.Context, conn *pgx.Conn, repl *pgconn.PgConn) (whence.LSN, error) {
	var version int
	if err := conn.QueryRow(ctx, versionSQL).Scan(&version); err != nil {
		return 0, fmt.Errorf("read the source's version: %w", err)
	}
	options := `(SNAPSHOT 'nothing')`
	if version >= failoverVersion {
		options = `(SNAPSHOT 'nothing', FAILOVER true)`
	}
	// The slot's name holds no character that needs quoting: see New.
	made, err := pglogrepl.ParseCreateReplicationSlot(repl.Exec(ctx, `CREATE_REPLICATION_SLOT `+c.cfg.Slot+` LOGICAL pgoutput `+options))
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
