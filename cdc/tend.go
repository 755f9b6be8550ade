package cdc

import (
	"context"
	"errors"
	"fmt"
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
	group errgroup.Group
	runs  map[int32]*run
	later map[int32]retry
}

// run is one backfill. started and err are written by its goroutine before it
// closes the channel beside them.
type run struct {
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

func (t *tender) look(ctx context.Context) error {
	// A backfill that ends after this is still counted as running below, so a
	// state read before its end does not start it again.
	started := t.collect(ctx)
	set, err := t.readTables(ctx)
	if err != nil {
		return err
	}
	t.stopOutdated(set, started)
	if t.conn != nil && t.conn.IsClosed() {
		t.conn = nil
	}
	if t.conn == nil {
		if t.conn, err = t.connect(ctx); err != nil {
			return err
		}
	}
	published, err := t.publish(ctx, set)
	for _, table := range set.list {
		if wantsBackfill(table) && published[relationName{table.Schema, table.Relation}] {
			t.launch(ctx, table)
		}
	}
	return err
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
			t.ended(ctx, id, r.err)
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

func (t *tender) ended(ctx context.Context, id int32, err error) {
	if err == nil || errors.Is(err, context.Canceled) {
		delete(t.later, id)
		return
	}
	l := t.later[id]
	l.pause = min(max(2*l.pause, t.cfg.Look), t.cfg.MaximumBackoff)
	l.at = t.cfg.Now().Add(l.pause)
	t.later[id] = l
	t.log.WarnContext(ctx, "a backfill failed and will start over", "table", id, "in", l.pause, "error", err)
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

// launch starts a table's backfill if none runs, it is due, and there is room.
func (t *tender) launch(ctx context.Context, table whence.Table) {
	if t.runs[table.ID] != nil || t.cfg.Now().Before(t.later[table.ID].at) {
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	r := &run{definition: table.Definition, cancel: cancel, started: make(chan struct{}), done: make(chan struct{})}
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

// goneMessage is for a table that had been published.
const goneMessage = "%s is not among the tables that the source publishes any more, so changes are missing " +
	"(it was dropped, renamed, or taken out of the publication %s, or that was altered): register the table again"

// A publication that leaves out kinds of changes, or rows of a table, publishes
// what cannot be relied on, which is as good as nothing.
const (
	membersSQL = `
select n.nspname::text, c.relname::text
  from pg_publication_rel r
  join pg_publication p on p.oid = r.prpubid
  join pg_class c on c.oid = r.prrelid
  join pg_namespace n on n.oid = c.relnamespace
 where p.pubname = @publication and r.prqual is null
   and p.pubviaroot and p.pubinsert and p.pubupdate and p.pubdelete and p.pubtruncate`

	// publishedSQL also sees what a publication for a schema or for all tables holds.
	publishedSQL = `
select t.schemaname::text, t.tablename::text
  from pg_publication_tables t
  join pg_publication p on p.pubname = t.pubname
 where t.pubname = @publication and t.rowfilter is null
   and p.pubviaroot and p.pubinsert and p.pubupdate and p.pubdelete and p.pubtruncate`
)

// publish makes the publication hold the registered tables, and returns those
// that it holds. A table that cannot be added fails alone.
func (t *tender) publish(ctx context.Context, set *tableSet) (map[relationName]bool, error) {
	members, err := t.relations(ctx, membersSQL)
	if err != nil {
		return nil, err
	}
	published, err := t.relations(ctx, publishedSQL)
	if err != nil {
		return nil, err
	}
	for name := range members {
		published[name] = true // a partitioned table without partitions is not among them
	}
	var trouble []error
	for _, table := range set.list {
		name := relationName{table.Schema, table.Relation}
		switch {
		case published[name] || failedState(table.State):
		case table.State == whence.TableLive:
			err := t.sink.TableFailed(ctx, table.ID, whence.TableBroken,
				fmt.Sprintf(goneMessage, sqlName(name.schema, name.name), t.cfg.Publication))
			trouble = append(trouble, err)
		default:
			added, err := t.add(ctx, table)
			trouble = append(trouble, err)
			published[name] = added
		}
	}
	for name := range members {
		if _, wanted := set.byName[name]; !wanted {
			trouble = append(trouble, t.drop(ctx, name))
		}
	}
	return published, errors.Join(trouble...)
}

func (t *tender) relations(ctx context.Context, query string) (map[relationName]bool, error) {
	rows, err := t.conn.Query(ctx, query, pgx.NamedArgs{"publication": t.cfg.Publication})
	if err != nil {
		return nil, fmt.Errorf("read the publication's tables: %w", err)
	}
	set := map[relationName]bool{}
	var name relationName
	_, err = pgx.ForEachRow(rows, []any{&name.schema, &name.name}, func() error { set[name] = true; return nil })
	if err != nil {
		return nil, fmt.Errorf("read the publication's tables: %w", err)
	}
	return set, nil
}

// add publishes a table; false without an error means that it failed and its
// state says why. It is inspected first: publishing a table whose rows cannot
// be identified would make its owner's updates fail.
func (t *tender) add(ctx context.Context, table whence.Table) (bool, error) {
	in, err := InspectTable(ctx, t.conn, table.Schema, table.Relation)
	var refusal *whence.Error
	if errors.As(err, &refusal) {
		return false, t.sink.TableFailed(ctx, table.ID, whence.TableBroken, refusal.Message+"; then register the table again")
	}
	if err != nil {
		return false, err
	}
	only := "only "
	if in.Kind == KindPartitioned {
		only = ""
	}
	statement := `alter publication ` + pgx.Identifier{t.cfg.Publication}.Sanitize() + ` add table ` + only + sqlName(table.Schema, table.Relation)
	if _, err = t.conn.Exec(ctx, statement); err == nil {
		return true, nil
	}
	if refused, ok := permanent(err); ok {
		message := fmt.Sprintf("the source refuses to publish %s (%s): ", sqlName(table.Schema, table.Relation), refused.Message)
		if refused.Code == codeDenied {
			message += fmt.Sprintf("make the role %s a member of the table's owner, or have the owner of both run %s; then register the table again", t.Capture.conn.User, statement)
		} else {
			message += "mend that, then register the table again"
		}
		return false, t.sink.TableFailed(ctx, table.ID, whence.TableBroken, message)
	}
	return false, fmt.Errorf("publish %s: %w", sqlName(table.Schema, table.Relation), err)
}

func (t *tender) drop(ctx context.Context, name relationName) error {
	statement := `alter publication ` + pgx.Identifier{t.cfg.Publication}.Sanitize() + ` drop table ` + sqlName(name.schema, name.name)
	if _, err := t.conn.Exec(ctx, statement); err != nil && !isCode(err, codeUndefinedTable) && !isCode(err, codeUndefinedObject) {
		return fmt.Errorf("take %s out of the publication: %w", sqlName(name.schema, name.name), err)
	}
	return nil
}
