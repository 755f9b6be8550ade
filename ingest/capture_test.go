package ingest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"

	"github.com/whence-db/whence"
)

const docs = whence.TableName("app.public.docs")

var docsSpec = TableSpec{Table: "public.docs", TextColumns: []string{"title", "body"}, SubjectColumn: "owner", TimeColumn: "at", AttributeColumns: []string{"lang"}}

const createDocs = `
create table docs (id int primary key, title text, body text, owner text, lang text, at timestamptz, ignored int default 0);
alter table docs alter column body set storage external`

func newDocs(t *testing.T) *world {
	t.Helper()
	w := newWorld(t)
	w.exec(w.source, createDocs)
	w.create()
	return w
}

func key(id int) whence.Key { return whence.Key(fmt.Sprintf(`{"id":"%d"}`, id)) }

func (w *world) want(what string, got []string, want ...string) {
	w.t.Helper()
	if d := cmp.Diff(append([]string{}, want...), append([]string{}, got...)); d != "" {
		w.t.Errorf("%s (-want +got):\n%s", what, d)
	}
}

func TestEveryKindOfChange(t *testing.T) {
	w := newDocs(t)
	w.exec(w.source, `insert into docs (id, title, owner, at) values (1, 'one', 'ann', '2020-01-02 03:04:05Z'), (2, 'two', null, 'infinity'), (3, null, 'ann', null)`)
	w.register(docsSpec)
	w.run()
	info := w.live(docs)
	if info.Status.RowsDone != 3 || info.Status.Records != 3 || info.Status.Chunks != 2 || info.Status.Pending != 2 {
		t.Errorf("after the backfill: %+v", info.Status)
	}
	w.exec(w.source, `insert into docs (id, title, body) values (4, 'four', 'body')`)
	w.exec(w.source, `update docs set title = 'uno' where id = 1`)
	w.exec(w.source, `update docs set ignored = 7`) // concerns nobody
	w.exec(w.source, `update docs set lang = 'en' where id = 2`)
	w.exec(w.source, `delete from docs where id = 3`)
	w.exec(w.source, `update docs set id = 5 where id = 4`)
	w.exec(w.source, `begin; insert into docs (id, title) values (6, 'a'); update docs set title = 'b' where id = 6; commit`)
	w.exec(w.source, `begin; insert into docs (id, title) values (7, 'a'); delete from docs where id = 7; commit`)
	w.exec(w.source, `begin; update docs set title = 'x' where id = 1; update docs set title = 'uno' where id = 1; commit`)
	w.exec(w.source, `insert into docs (id, title) values (3, 'back')`)
	w.exec(w.source, `insert into docs (id, title) values (8, 'quoted " \ <b> ✓')`)
	w.caughtUp()
	w.equal(info)
	w.want("of 1", w.versions(key(1)), "1 one", "2 uno")
	w.want("of 2: an attribute is part of what is known", w.versions(key(2)), "1 two", "2 two")
	w.want("of 3", w.versions(key(3)), "1 ", "2 deleted", "3 back")
	w.want("of 4", w.versions(key(4)), "1 four\n\nbody", "2 deleted")
	w.want("of 5", w.versions(key(5)), "1 four\n\nbody")
	w.want("of 6: a transaction leaves one state", w.versions(key(6)), "1 b")
	w.want("of 7: never seen from outside", w.versions(key(7)))
	w.want("event times", w.query(w.memory.Pool, `
select key || ' ' || case when event_time = '2020-01-02 03:04:05Z' then 'its own' when event_time = commit_time then 'commit' when event_time is null then 'unknown' end
from whence.records where key in ('{"id":"1"}', '{"id":"2"}', '{"id":"3"}') order by key`),
		`{"id":"1"} its own`, `{"id":"2"} commit`, `{"id":"3"} commit`)
	w.want("subjects and attributes", w.query(w.memory.Pool, `
select key || ' ' || coalesce(subject, '-') || ' ' || attributes from whence.records where key in ('{"id":"1"}', '{"id":"2"}') order by key`),
		`{"id":"1"} ann {"lang": null}`, `{"id":"2"} - {"lang": "en"}`)

	w.exec(w.source, `begin; insert into docs (id, title) values (9, 'gone'); truncate docs; insert into docs (id, title) values (1, 'anew'); commit`)
	w.caughtUp()
	w.equal(info)
	w.want("of 1", w.versions(key(1)), "1 one", "2 uno", "3 anew")

	if err := w.r.UnregisterTable(t.Context(), docs); err != nil {
		t.Fatal(err)
	}
	w.want("records", w.query(w.memory.Pool, `select key from whence.records`))
	w.want("vectors", w.query(w.memory.Pool, `select count(*)::text from whence.vectors`), "0")
	w.register(docsSpec)
	w.equal(w.live(docs))
}

func TestUnchangedLargeValues(t *testing.T) {
	w := newDocs(t)
	large := strings.Repeat("Large values are kept apart from their rows. ", 200)
	w.exec(w.source, `insert into docs (id, title, body) values (1, 'one', $1), (2, 'two', $1)`, large)
	w.register(docsSpec)
	w.run()
	info := w.live(docs)
	w.exec(w.source, `update docs set title = 'uno' where id = 1`)
	w.exec(w.source, `update docs set id = 3, title = 'dos' where id = 2`)
	w.caughtUp()
	w.equal(info)
	s, err := w.r.GetTable(t.Context(), docs)
	if err != nil {
		t.Fatal(err)
	}
	if s.Status.Saved == 0 {
		t.Error("an unchanged text was asked for again")
	}
}

func TestRegisteringAnewRendersAnew(t *testing.T) {
	w := newDocs(t)
	w.exec(w.source, `insert into docs (id, title, body, owner) select i, 'title ' || i, 'body ' || i, 'ann' from generate_series(1, 2500) i`)
	w.register(docsSpec)
	w.run()
	w.live(docs)
	if again := w.register(docsSpec); again.State != whence.TableLive || again.Definition != 1 {
		t.Errorf("the same definition made it %s, definition %d", again.State, again.Definition)
	}
	spec := docsSpec
	spec.FreshnessTarget = time.Minute
	if tuned := w.register(spec); tuned.State != whence.TableLive || tuned.FreshnessTarget != time.Minute {
		t.Errorf("a new target made it %s, target %v", tuned.State, tuned.FreshnessTarget)
	}
	// Writers go on while the definition changes back and forth.
	var g errgroup.Group
	ctx, stop := context.WithCancel(t.Context())
	for i := range 2 {
		g.Go(func() error { return scribble(ctx, w, uint64(i)) })
	}
	for i := range 4 {
		spec := docsSpec
		if i%2 == 0 {
			spec.TextColumns, spec.TextTemplate, spec.SubjectColumn = nil, "{{title}} - {{body}} ({{ignored}})", ""
		}
		w.register(spec)
		time.Sleep(150 * time.Millisecond)
	}
	info := w.live(docs)
	stop()
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	w.caughtUp()
	w.equal(info)
	stale := w.query(w.memory.Pool, `
select r.key from whence.records r join whence.versions v on v.record_id = r.id and v.version = r.version
join whence.tables t on t.id = r.table_id where not r.deleted and v.definition <> t.definition`)
	if len(stale) > 0 {
		t.Errorf("%d records are of an older definition: %v", len(stale), stale[:1])
	}
}

// scribble changes the table docs at random until ctx ends.
func scribble(ctx context.Context, w *world, seed uint64) error {
	rnd := rand.New(rand.NewPCG(seed, 1))
	large := strings.Repeat("Large values are kept apart from their rows. ", 60)
	for n := 0; ctx.Err() == nil; n++ {
		id := rnd.IntN(3000) + 1
		statements := []string{
			fmt.Sprintf(`insert into docs (id, title, body) values (%d, 'new %d', '%s %d') on conflict (id) do update set title = excluded.title`, id, n, large, n),
			fmt.Sprintf(`update docs set title = 'changed %d' where id = %d`, n, id),
			fmt.Sprintf(`update docs set body = '%s %d' where id = %d`, large, n, id),
			fmt.Sprintf(`update docs set ignored = ignored + 1 where id between %d and %d`, id, id+20),
			fmt.Sprintf(`delete from docs where id = %d`, id),
			fmt.Sprintf(`update docs set id = id + 100000 where id = %d`, id),
			fmt.Sprintf(`update docs set lang = 'l%d', at = now() - interval '%d days' where id between %d and %d`, n, n, id, id+3),
			fmt.Sprintf(`begin; update docs set title = 'a' where id = %d; delete from docs where id = %d; insert into docs (id, title) values (%d, 'b %d') on conflict do nothing; commit`, id, id, id, n),
		}
		time.Sleep(time.Duration(rnd.IntN(4)) * time.Millisecond)
		pick := rnd.IntN(len(statements))
		if rnd.IntN(400) == 0 && n > 50 {
			statements[pick] = `truncate docs`
		}
		// A deadlock, a taken key or a cut connection is part of life; the transaction is gone then.
		if _, err := w.source.Pool.Exec(context.Background(), statements[pick]); err != nil &&
			!strings.Contains(err.Error(), "40P01") && !strings.Contains(err.Error(), "23505") && !strings.Contains(err.Error(), "57P01") {
			return fmt.Errorf("%s: %w", statements[pick], err)
		}
	}
	return nil
}

func TestBackfillUnderChanges(t *testing.T) {
	w := newDocs(t)
	large := strings.Repeat("Large values are kept apart from their rows. ", 60)
	w.exec(w.source, `insert into docs (id, title, body) select i, 'title ' || i, $1 || i from generate_series(1, 3000) i`, large)
	w.run()
	var g errgroup.Group
	ctx, stop := context.WithCancel(t.Context())
	for i := range 3 {
		g.Go(func() error { return scribble(ctx, w, uint64(10+i)) })
	}
	time.Sleep(200 * time.Millisecond)
	w.register(docsSpec)
	info := w.live(docs)
	stop()
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	w.caughtUp()
	w.equal(info)
}

// Crashes at any moment: the runner is stopped and its connections on both
// sides are cut, again and again, under changes.
func TestRestarts(t *testing.T) {
	w := newDocs(t)
	w.exec(w.source, `insert into docs (id, title) select i, 'title ' || i from generate_series(1, 3000) i`)
	w.register(docsSpec)
	var g errgroup.Group
	ctx, stop := context.WithCancel(t.Context())
	for i := range 2 {
		g.Go(func() error { return scribble(ctx, w, uint64(20+i)) })
	}
	const (
		cutCapture = `select pg_terminate_backend(pid)::text from pg_stat_activity
where datname = $1 and application_name = 'whence capture'`
		cutWrites = `select pg_terminate_backend(pid)::text from pg_stat_activity
where datname = $1 and (state <> 'idle' or pid in (select pid from pg_locks where locktype = 'advisory'))`
	)
	rnd := rand.New(rand.NewPCG(5, 5))
	for i := range 8 {
		w.run()
		time.Sleep(time.Duration(100+rnd.IntN(400)) * time.Millisecond)
		switch i % 3 {
		case 0:
			w.query(w.source.Pool, cutCapture, w.source.Name)
			time.Sleep(100 * time.Millisecond)
		case 1:
			w.query(w.source.Pool, cutWrites, w.memory.Name)
			time.Sleep(100 * time.Millisecond)
		}
		w.kill()
	}
	w.run()
	info := w.live(docs)
	stop()
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	w.caughtUp()
	w.equal(info)
}

func TestTwoRunnersShareTheWork(t *testing.T) {
	w := newDocs(t)
	w.register(docsSpec)
	w.run()
	first := w.stop
	info := w.live(docs)
	w.run()
	second := w.stop
	w.stop = func() { second() }
	for i := range 50 {
		w.exec(w.source, `insert into docs (id, title) values ($1, 'x')`, i)
		if i == 25 {
			first() // the other takes over
		}
	}
	w.caughtUp()
	w.equal(info)
}

func TestOneTransactionInManySlices(t *testing.T) {
	w := newDocs(t)
	w.register(docsSpec)
	w.run()
	info := w.live(docs)
	w.exec(w.source, `begin;
insert into docs (id, title) select i, 'first ' || i from generate_series(1, 2500) i;
update docs set title = 'second ' || id;
delete from docs where id % 5 = 0;
commit`)
	w.caughtUp()
	w.equal(info)
	w.want("states in between were never committed", w.versions(key(7)), "1 second 7")
	w.want("nor those of deleted rows", w.query(w.memory.Pool, `select text from whence.versions where deleted and text <> ''`))
}
