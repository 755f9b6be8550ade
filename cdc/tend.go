package cdc

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/whence-db/whence"
)

// maxBackfills of one source run at once, so that a source with many new tables
// is not read by as many full scans.
const maxBackfills = 2

// tender keeps the publication's tables equal to the registered ones and gives
// every new table its backfill. One goroutine; the backfills are others.
type tender struct {
	*Capture
	conn  *pgx.Conn // nil while not connected
	of    Cluster   // that conn leads to
	group errgroup.Group
	runs  map[int32]*run
	later map[int32]retry

	warned  string // what health said last
	version string // of the publication, at the last look
}

// run is one backfill. started and err are written by its goroutine before it
// closes the channel beside them.
type run struct {
	table      whence.TableName
	definition int32
	cancel     context.CancelFunc
	started    chan struct{} // closed once the sink said BACKFILLING
	done       chan struct{}
	err        error
}

// retry is when a table's backfill may be tried again.
type retry struct {
	pause time.Duration
	at    time.Time
}

// tend looks at the tables at every tick and poke. Trouble on the way is logged
// and tried again: it must not stop the stream.
func (c *Capture) tend(ctx context.Context) error {
	select {
	case <-c.attach:
	case <-ctx.Done():
		return ctx.Err()
	}
	t := &tender{Capture: c, runs: map[int32]*run{}, later: map[int32]retry{}}
	t.group.SetLimit(maxBackfills)
	defer t.close(ctx)
	tick := time.NewTicker(c.cfg.Look)
	defer tick.Stop()
	quiet := "" // the trouble that was logged last
	for {
		err := t.look(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		switch {
		case err == nil:
			quiet = ""
		case err.Error() != quiet:
			quiet = err.Error()
			c.log.WarnContext(ctx, "cannot tend to the registered tables, trying again", "error", err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		case <-c.poke:
		}
	}
}

func (t *tender) close(ctx context.Context) {
	for _, r := range t.runs {
		r.cancel()
	}
	_ = t.group.Wait() // backfills report through their run
	if t.conn != nil {
		closeConn(ctx, t.conn.PgConn())
	}
}

// look takes no longer than a silent connection is borne with.
func (t *tender) look(run context.Context) error {
	ctx, cancel := context.WithTimeout(run, t.cfg.DeadAfter)
	defer cancel()
	// A backfill that ends after this is still counted as running below, so a
	// state read before its end does not start it again.
	started := t.collect(ctx)
	set, err := t.readTables(ctx)
	if err != nil {
		return err
	}
	t.stopOutdated(set, started)
	if t.conn != nil && t.of != *t.cluster.Load() {
		closeConn(ctx, t.conn.PgConn())
	}
	if t.conn == nil || t.conn.IsClosed() {
		t.of = *t.cluster.Load()
		if t.conn, err = t.connectAttached(ctx); err != nil {
			return err
		}
	}
	healthy := t.health(ctx)
	published, err := t.publish(ctx, set)
	for _, table := range set.list {
		if wantsBackfill(table) && published[relationName{table.Schema, table.Relation}] {
			t.launch(run, table)
		}
	}
	return errors.Join(err, healthy)
}

func wantsBackfill(t whence.Table) bool {
	return t.State == whence.TablePending || t.State == whence.TableBackfilling
}

// collect takes in what ended, and says which of the running ones have started.
func (t *tender) collect(ctx context.Context) (started map[int32]bool) {
	started = map[int32]bool{}
	for id, r := range t.runs {
		select {
		case <-r.done:
			delete(t.runs, id)
			r.cancel()
			t.ended(ctx, id, r)
			continue
		default:
		}
		select {
		case <-r.started:
			started[id] = true
		default:
		}
	}
	return started
}

func (t *tender) ended(ctx context.Context, id int32, r *run) {
	if r.err == nil || errors.Is(r.err, context.Canceled) {
		delete(t.later, id)
		return
	}
	l := t.later[id]
	l.pause = min(max(2*l.pause, t.cfg.Look), t.cfg.MaximumBackoff)
	l.at = t.cfg.Now().Add(l.pause)
	t.later[id] = l
	t.log.WarnContext(ctx, "a backfill failed and will go on", "table", r.table, "in", l.pause, "error", r.err)
}

// stopOutdated cancels backfills whose table is gone or was registered anew.
func (t *tender) stopOutdated(set *tableSet, started map[int32]bool) {
	current := map[int32]whence.Table{}
	for _, table := range set.list {
		current[table.ID] = table
	}
	for id, r := range t.runs {
		table, there := current[id]
		again := table.State == whence.TablePending && started[id]
		if !there || table.Definition != r.definition || failedState(table.State) || again {
			r.cancel()
		}
	}
}

// due tells whether a table's backfill, if it failed before, may be tried again.
func (t *tender) due(id int32) bool { return !t.cfg.Now().Before(t.later[id].at) }

// launch starts a table's backfill if none runs, it is due, and there is room.
func (t *tender) launch(ctx context.Context, table whence.Table) {
	if t.runs[table.ID] != nil || !t.due(table.ID) {
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	r := &run{table: table.Name(), definition: table.Definition, cancel: cancel, started: make(chan struct{}), done: make(chan struct{})}
	if !t.group.TryGo(func() error {
		defer t.Poke() // there is room for the next
		defer close(r.done)
		r.err = t.backfill(ctx, table, r.started)
		return nil
	}) {
		cancel()
		return
	}
	t.runs[table.ID] = r
}
