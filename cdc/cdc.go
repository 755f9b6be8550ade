// Package cdc follows one Postgres database by logical replication and hands
// every committed change of the registered tables to a [Sink], in commit order.
//
// The governing idea: nothing is confirmed to the source before the sink has
// made it durable, and the sink's checkpoint commits together with the data it
// covers. A crash anywhere therefore only means that some transactions are
// sent, and applied, again. Rows that were there before a table was registered
// are copied from an exported snapshot beside the stream; which of the two is
// newer is decided per row by comparing positions, so neither waits for the other.
package cdc

import (
	"context"
	"fmt"
	"log/slog"
	"regexp"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
)

// Op is what happened to a row.
type Op string

const (
	// Insert is a new row.
	Insert Op = "INSERT"
	// Update is a changed row; its key may have changed too.
	Update Op = "UPDATE"
	// Delete is a removed row.
	Delete Op = "DELETE"
	// Truncate removed every row of the table.
	Truncate Op = "TRUNCATE"
)

// Change is one row's change in a committed transaction.
type Change struct {
	Table int32         // whence.Table.ID
	Op    Op            //
	Row   whence.Values // the new row, only Table.Columns(); nil for Delete and Truncate
	// Unchanged are columns whose out-of-line value the stream did not repeat;
	// they are absent from Row. Their value is that of the record before, under
	// OldKey when the key changed; when that record was not copied yet, the record
	// is owed it: see Sink.BackfillOwed.
	Unchanged  []string
	OldKey     whence.Values // Delete: the key columns. Update: the old ones when the key changed, else nil
	LSN        whence.LSN    // of its transaction's commit record
	XID        uint32
	CommitTime time.Time // the source's clock
}

// Progress is how far a source has been applied.
type Progress struct {
	LSN        whence.LSN // everything committed before this is applied
	CommitTime time.Time  // of the last transaction applied; zero: none since capture started
	// CaughtUpAt is the moment up to which everything committed is known to be
	// applied, with a monotonic reading; zero: not known. A commit counts from the
	// moment its record is flushed, which with synchronous_commit = off is a moment
	// after its caller was told.
	CaughtUpAt time.Time
	LagBytes   int64 // log that the source had flushed, when last asked, beyond LSN
}

// Sink is where changes go: a durable store that holds the checkpoint beside the
// data. Its methods are called by several goroutines at once; it lets units and
// backfill writes take turns itself. The goroutine that holds a unit calls
// nothing else until the unit has ended. After an error of a unit's, capture
// starts again from the sink's checkpoint; after one of a backfill's, that
// backfill starts over.
type Sink interface {
	// Start returns where the sink stands: zero LSN when it has nothing of this
	// source yet, or after Lost; then the cluster means nothing.
	Start(ctx context.Context) (checkpoint whence.LSN, of Cluster, err error)
	// Attach records the cluster, and the slot's consistent point as the first
	// checkpoint where there is none, durably.
	Attach(ctx context.Context, checkpoint whence.LSN, of Cluster) error
	// Lost says that changes beyond the checkpoint are missing for good, or that
	// what was applied before it did not all happen (rewound: the source's log is
	// another one now, and positions recorded from the old one compare with
	// nothing). Durably and at once there is no checkpoint, and every table that
	// has not failed is PENDING; what is stored of them stays, to be compared
	// with the source's rows when they are copied again.
	Lost(ctx context.Context, rewound bool, reason string) error
	// Tables returns the registered tables in any state, as of now.
	Tables(ctx context.Context) ([]whence.Table, error)
	// Begin opens one durable unit; never while another is open.
	Begin(ctx context.Context) (Unit, error)
	// Caught reports progress without data. Nothing is confirmed to the source
	// on its account, so it may be lost in a crash.
	Caught(ctx context.Context, p Progress) error
	// BackfillStart puts the table's state to BACKFILLING. A table that is PENDING
	// begins anew; a snapshot from before Table.Snapshot is refused, for what the stream
	// brought from before that may have been left out. One that is BACKFILLING goes on,
	// from a newer snapshot; then the blocks are returned whose rows were stored before.
	BackfillStart(ctx context.Context, table, definition int32, snapshot whence.LSN, rowsTotal int64) (copied []Blocks, err error)
	// BackfillOwed returns keys of records that the stream changed without repeating
	// a large value that was not there; at most some thousands at a time. Rows of a
	// snapshot from then on bring them.
	BackfillOwed(ctx context.Context, table int32) ([]whence.Values, error)
	// BackfillRows stores rows as they were at snapshot, and that with them the
	// blocks were read whole, in one step; durable when it returns. A row applies
	// only where the record is absent or its change's LSN is less than snapshot.
	// Calls with rows of different blocks may run at once.
	BackfillRows(ctx context.Context, table int32, snapshot whence.LSN, rows []whence.Values, read Blocks) error
	// BackfillDone puts the table's state to LIVE, unless it was registered anew
	// since BackfillStart. It is false while records are owed, or while the stream has
	// not come to the snapshot, as it must where blocks were read from an earlier one:
	// a row may have moved from one block to another in between. Every row that the
	// source held has been delivered or is in the stream, so a record that is older
	// than the first snapshot does not exist any more.
	BackfillDone(ctx context.Context, table int32, snapshot whence.LSN) (bool, error)
	// Saw keeps with a table's definition how its relation looks in the source, as
	// Tables returns it in Shape; nothing happens when the definition is another.
	Saw(ctx context.Context, table, definition int32, shape string) error
	// CopyAgain puts the state of a table that is BACKFILLING or LIVE under the
	// definition to PENDING; only a snapshot from at on is good for it. What is
	// stored of the table stays, to be compared with the source's rows.
	CopyAgain(ctx context.Context, table, definition int32, at whence.LSN, reason string) error
	// TableFailed sets the table's state (SCHEMA_CHANGED or BROKEN) with a
	// message that says what to do, unless its definition is another by now; the
	// other tables go on.
	TableFailed(ctx context.Context, table, definition int32, state whence.TableState, message string) error
}

// Blocks is a range of a part of a table, in blocks of 8 kB: To is beyond it.
type Blocks struct {
	Part
	From, To int64
}

// Part is a relation that holds rows: a table, or one of its partitions. A new
// file means that its rows have other places now.
type Part struct{ OID, File uint32 }

// Cluster says which history of which Postgres cluster a position belongs to.
type Cluster struct {
	System   string // its system identifier
	Timeline int32  // grows when a standby is promoted and when a backup is recovered
}

// Health is what the source says of the slot.
type Health struct {
	RetainedWAL int64      // bytes of log that the slot keeps on the source
	SafeWAL     int64      // bytes that may yet be written before it is lost; negative: without bound
	WALStatus   string     // pg_replication_slots.wal_status: reserved, extended, unreserved or lost
	Gone        bool       // there is no such slot; never told to Config.Health
	Awaits      []int32    // backends that a connection of capture's waits for; 0 is a prepared transaction
	End         whence.LSN // the source's position; zero when the slot is gone
	Warning     string     // what to do before the slot is lost, or that it is; empty while there is no danger
}

// Unit is one transaction of the sink's store.
type Unit interface {
	// Apply takes changes in commit order; one call may hold several source
	// transactions, and one source transaction may span several calls. The
	// slice is reused after the call; what it holds is not. It may return before
	// the changes are stored: a later call then tells that they could not be.
	Apply(ctx context.Context, changes []Change) error
	// Commit makes the changes durable, and p.LSN the checkpoint, in one step.
	Commit(ctx context.Context, p Progress) error
	// Rollback ends the unit without a trace; also after a failed Commit.
	Rollback(ctx context.Context) error
}

// Config says what to follow and where to put it.
type Config struct {
	ConnString  string // of the source database; its role needs REPLICATION
	Slot        string // lower-case letters, digits and _, at most 63 bytes
	Publication string // the same
	Sink        Sink
	Log         *slog.Logger     // default: slog.Default
	Status      func(err error)  // told of each failed attempt, and nil once the stream runs; may be nil
	Health      func(Health)     // told at every look how the slot is; may be nil
	Now         func() time.Time // with a monotonic reading; default: time.Now

	BackfillBatch  int           // rows a BackfillRows; default 1000
	Workers        int           // that copy one table at once; default 2
	RangeBlocks    int64         // that a worker takes at a time; default 512
	Look           time.Duration // how often the registered tables are read; default 1 s
	Probe          time.Duration // how often the source's position is asked; default 250 ms
	IdleCheckpoint time.Duration // how often progress without data is made durable; default 10 s
	MaximumBackoff time.Duration // between attempts; default 10 s
	Predecessor    time.Duration // another connection may still read the slot; then it is ended; default 1 s
	DeadAfter      time.Duration // a silent connection is given up; default 60 s
	QueueBytes     int64         // received and not yet applied; default 8 MiB
}

// BrokenError is a failure that only an operator can mend: trying again would
// fail again, or would lose changes without a trace.
type BrokenError struct {
	Message string // what is wrong and what to do
	Foreign bool   // the connection string leads to another cluster than before
	Err     error  // the cause, if there is one
}

// Error returns the message with its cause.
func (e *BrokenError) Error() string {
	if e.Err != nil {
		return e.Message + ": " + e.Err.Error()
	}
	return e.Message
}

// Unwrap returns the cause.
func (e *BrokenError) Unwrap() error { return e.Err }

// Capture follows one source.
type Capture struct {
	cfg    Config
	conn   *pgx.ConnConfig
	sink   Sink
	log    *slog.Logger
	poke   chan struct{}
	attach chan struct{} // closed once slot, publication and sink agree
	once   sync.Once

	// cluster is what the stream was attached to last; nil before attach is closed.
	cluster atomic.Pointer[Cluster]

	tables  atomic.Pointer[tableSet]
	refresh sync.Mutex // orders reads of Sink.Tables with their storing

	// unpublished: decoding came to a change of a time without the publication.
	// Only the goroutine of stream uses it.
	unpublished bool

	// failed remembers which definitions were reported, across reconnections;
	// only the applier uses it.
	failed map[failure]bool

	// strays are up to where a table's changes under another name have led to its
	// comparing; only the goroutine of stream, and its applier, use it.
	strays map[failure]whence.LSN
	looks  sync.Mutex // held while a shape that is kept is replaced on its own account
}

var slotName = regexp.MustCompile(`^[a-z0-9_]{1,63}$`)

// New checks the configuration; it does not connect.
func New(cfg Config) (*Capture, error) {
	conn, err := pgx.ParseConfig(cfg.ConnString)
	if err != nil {
		// The cause is left out: it repeats the string, password included.
		return nil, whence.Invalid("dsn", "DSN_INVALID",
			"the connection string cannot be read: write it as postgres://user:password@host:port/database")
	}
	switch {
	case cfg.Sink == nil:
		return nil, fmt.Errorf("cdc: a sink is required")
	case !slotName.MatchString(cfg.Slot):
		return nil, fmt.Errorf("cdc: %q is not a slot name: want 1 to 63 lower-case letters, digits or _", cfg.Slot)
	case !slotName.MatchString(cfg.Publication):
		return nil, fmt.Errorf("cdc: %q is not a publication name: want 1 to 63 lower-case letters, digits or _", cfg.Publication)
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if cfg.Status == nil {
		cfg.Status = func(error) {}
	}
	if cfg.Health == nil {
		cfg.Health = func(Health) {}
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	defaultTo(&cfg.BackfillBatch, 1000)
	defaultTo(&cfg.Workers, 2)
	defaultTo(&cfg.RangeBlocks, 512)
	defaultTo(&cfg.Look, time.Second)
	defaultTo(&cfg.Probe, 250*time.Millisecond)
	defaultTo(&cfg.IdleCheckpoint, 10*time.Second)
	defaultTo(&cfg.MaximumBackoff, 10*time.Second)
	defaultTo(&cfg.Predecessor, time.Second)
	defaultTo(&cfg.DeadAfter, time.Minute)
	defaultTo(&cfg.QueueBytes, 8<<20)
	return &Capture{
		cfg: cfg, conn: conn, sink: cfg.Sink, log: cfg.Log.With("slot", cfg.Slot),
		poke: make(chan struct{}, 1), attach: make(chan struct{}), failed: map[failure]bool{}, strays: map[failure]whence.LSN{},
	}, nil
}

func defaultTo[T int | int64 | time.Duration](v *T, to T) {
	if *v <= 0 {
		*v = to
	}
}

// Poke says that the registered tables changed: look now, not at the next tick.
func (c *Capture) Poke() {
	select {
	case c.poke <- struct{}{}:
	default:
	}
}
