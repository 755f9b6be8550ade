package ingest

import (
	"runtime"
	"testing"
	"time"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/cdc"
	"github.com/whence-db/whence/internal/pgtest"
)

// byHand is a source whose changes a test makes up, with the table LIVE.
type byHand struct {
	*world
	source Source
	table  TableInfo
}

func newByHand(t *testing.T) *byHand {
	t.Helper()
	w := newDocs(t)
	w.register(docsSpec)
	w.exec(w.memory, `insert into whence.checkpoints (source_id, lsn) select id, '0/100' from whence.sources`)
	w.exec(w.memory, `update whence.tables set state = 'LIVE', snapshot_lsn = null`)
	b := &byHand{world: w}
	var err error
	if b.source, err = w.r.GetSource(t.Context(), "app"); err != nil {
		t.Fatal(err)
	}
	if b.table, err = w.r.GetTable(t.Context(), docs); err != nil {
		t.Fatal(err)
	}
	return b
}

func (b *byHand) sink() *sink {
	b.t.Helper()
	k := newSink(b.r, b.source, func() {})
	if _, _, err := k.Start(b.t.Context()); err != nil {
		b.t.Fatal(err)
	}
	return k
}

func (b *byHand) values(title string) whence.Values {
	id := "1"
	return whence.Values{"id": &id, "title": &title, "body": nil, "owner": nil, "lang": nil, "at": nil}
}

// apply opens a unit that holds one change.
func (b *byHand) apply(k *sink, op cdc.Op, title string, at whence.LSN) cdc.Unit {
	b.t.Helper()
	u, err := k.Begin(b.t.Context())
	if err != nil {
		b.t.Fatal(err)
	}
	change := cdc.Change{Table: b.table.ID, Op: op, Row: b.values(title), LSN: at, XID: uint32(at), CommitTime: time.Now()}
	if err := u.Apply(b.t.Context(), []cdc.Change{change}); err != nil {
		b.t.Fatal(err)
	}
	return u
}

// A process that has let go of a source may still be committing when the source
// is deleted: nothing of that stays.
func TestDeletionWaitsForACommit(t *testing.T) {
	b := newByHand(t)
	ctx := t.Context()
	// A commit that takes its time, as on a slow disk.
	b.exec(b.memory, `
create function slow() returns trigger language plpgsql as $$ begin perform pg_advisory_xact_lock(4711); return null; end $$;
create constraint trigger slow after insert on whence.records deferrable initially deferred for each row execute function slow()`)
	hold, err := b.memory.Pool.Acquire(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer hold.Release()
	if _, err := hold.Exec(ctx, `select pg_advisory_lock(4711)`); err != nil {
		t.Fatal(err)
	}
	u := b.apply(b.sink(), cdc.Insert, "orphan", 0x150)
	committed, deleted := make(chan error, 1), make(chan error, 1)
	go func() { committed <- u.Commit(ctx, cdc.Progress{LSN: 0x200}) }()
	waiting := func(n string) func() (bool, string) {
		return func() (bool, string) {
			got := b.query(b.memory.Pool, `select count(*)::text from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'`)
			return got[0] == n, got[0]
		}
	}
	b.until("the commit waits", waiting("1"))
	go func() {
		_, err := b.r.DeleteSource(ctx, "app", true)
		deleted <- err
	}()
	b.until("the deletion waits for it", waiting("2"))
	if _, err := hold.Exec(ctx, `select pg_advisory_unlock(4711)`); err != nil {
		t.Fatal(err)
	}
	if err := <-deleted; err != nil {
		t.Errorf("deletion: %v", err)
	}
	t.Logf("commit: %v", <-committed)
	b.want("what is left", b.query(b.memory.Pool, `
select 'a source' from whence.sources union all select 'a table' from whence.tables
union all select 'a record ' || key from whence.records union all select 'a version ' || text from whence.versions
union all select 'a chunk ' || text from whence.chunks union all select 'a vector' from whence.vectors`))
}

// A unit that began while its table was LIVE does not note how new a state is: it
// must not commit once another process copies the table again.
func TestDeposedUnitBesideANewCopy(t *testing.T) {
	b := newByHand(t)
	ctx := t.Context()
	old, next := b.sink(), b.sink()
	if err := b.apply(old, cdc.Insert, "new", 0x110).Commit(ctx, cdc.Progress{LSN: 0x120}); err != nil {
		t.Fatal(err)
	}
	// While the table was not published the row became "old", unseen; then "new".
	u := b.apply(old, cdc.Update, "new", 0x250)
	if err := u.(*unit).wait(); err != nil {
		t.Fatal(err)
	}
	if _, _, err := next.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if err := next.CopyAgain(ctx, b.table.ID, b.table.Definition, 0x200, "test"); err != nil {
		t.Fatal(err)
	}
	if _, err := next.BackfillStart(ctx, b.table.ID, b.table.Definition, 0x200, 1); err != nil {
		t.Fatal(err)
	}
	if err := u.Commit(ctx, cdc.Progress{LSN: 0x300}); err == nil {
		t.Error("the deposed unit was committed over a copy that is older than what it holds")
	}
	if err := u.Rollback(ctx); err != nil {
		t.Fatal(err)
	}
	if lsn, _, err := next.Start(ctx); err != nil || lsn >= 0x250 {
		t.Errorf("the checkpoint is %s, so nothing brings the change again; %v", lsn, err)
	}
}

// Values that an update does not repeat are read from the index, as few at a time
// as memory bears, however well they are compressed there. Alone in the process,
// for it measures.
func TestLargeValuesThatAreNotRepeated(t *testing.T) { //nolint:paralleltest // measures the whole process
	w := newWorldWithoutSource(t)
	w.source = pgtest.Empty(t)
	const rows, size = 120, 1_000_000
	w.exec(w.source, createDocs)
	w.exec(w.source, `insert into docs (id, title, lang) select i, 'a title', repeat('x', $2) from generate_series(1, $1) i`, rows, size)
	w.create()
	w.register(docsSpec)
	w.run()
	info := w.live(docs)
	heap := func() int {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int(m.HeapAlloc >> 20)
	}
	runtime.GC()
	before, peak := heap(), 0
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for tick := time.NewTicker(5 * time.Millisecond); ; {
			select {
			case <-stop:
				tick.Stop()
				return
			case <-tick.C:
				peak = max(peak, heap())
			}
		}
	}()
	w.exec(w.source, `update docs set owner = 'somebody'`)
	w.caughtUp()
	close(stop)
	<-done
	if peak-before > rows*size>>21 {
		t.Errorf("the heap grew from %d to %d MB for %d MB of values that were not sent", before, peak, rows*size>>20)
	}
	t.Logf("heap %d MB before, %d MB at most", before, peak)
	w.want("rows", w.query(w.memory.Pool, `select count(*)::text from whence.records where table_id = $1 and subject = 'somebody'`, info.ID), "120")
}
