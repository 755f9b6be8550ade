package ingest

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/whence-db/whence"
)

// losing is a source with a hundred rows, captured and stopped.
func losing(t *testing.T) (*world, Source, whence.Table) {
	t.Helper()
	w := newDocs(t)
	w.exec(w.source, `insert into docs (id, title) select i, 'title ' || i from generate_series(1, 100) i`)
	w.register(docsSpec)
	w.run()
	info := w.live(docs)
	w.caughtUp()
	w.kill()
	s, err := w.r.GetSource(t.Context(), "app")
	if err != nil {
		t.Fatal(err)
	}
	w.until("nobody reads the slot", func() (bool, string) {
		n := w.query(w.source.Pool, `select slot_name::text from pg_replication_slots where slot_name = $1 and active`, s.Slot)
		return len(n) == 0, fmt.Sprint(n)
	})
	return w, s, info.Table
}

// recovered wants the index equal to the source, and nothing stored or asked for
// but what changed: one row deleted, one changed, one added.
func (w *world) recovered() {
	w.t.Helper()
	w.until("the rows have been compared", func() (bool, string) {
		got := w.query(w.memory.Pool, `select v.version || ' ' || v.deleted || ' ' || v.text from whence.versions v
			join whence.records r on r.id = v.record_id where r.key in ('{"id":"1"}', '{"id":"2"}', '{"id":"101"}') order by r.key, v.version`)
		return len(got) == 5, strings.Join(got, "; ")
	})
	w.equal(w.live(docs))
	w.want("versions", w.query(w.memory.Pool, `select count(*)::text from whence.versions`), "103")
	w.want("texts asked for", w.query(w.memory.Pool, `select count(*)::text from whence.vectors`), "102")
	w.exec(w.source, `insert into docs (id, title) values (200, 'after all')`)
	w.caughtUp()
	w.equal(w.live(docs))
}

const whileAway = `delete from docs where id = 1; update docs set title = 'second' where id = 2; insert into docs (id, title) values (101, 'new')`

// A row that came by the stream without its large values, before the copy that was
// to bring them was given up, and that is gone since, must not hold the next copy up.
func TestGoneRowOwesNothing(t *testing.T) {
	w, s, _ := losing(t)
	w.exec(w.memory, `update whence.records set missing = '{body}' where key = '{"id":"1"}'`)
	w.exec(w.source, `select pg_drop_replication_slot($1)`, s.Slot)
	w.exec(w.source, whileAway)
	w.run()
	w.recovered()
}

// A slot that is gone costs a comparison with the source, and no text that did
// not change is embedded again. Until then nothing is vouched for.
func TestLostSlotIsReconciled(t *testing.T) {
	w, s, table := losing(t)
	w.exec(w.source, `select pg_drop_replication_slot($1)`, s.Slot)
	w.exec(w.source, whileAway)

	lock, err := w.source.Pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lock.Exec(t.Context(), `lock docs in access exclusive mode`); err != nil {
		t.Fatal(err)
	}
	w.run()
	w.until("nothing is vouched for", func() (bool, string) {
		st := w.state()
		now, _ := st.Table(table.Name())
		return now.State != whence.TableLive && st.Sources["app"].Lag < 0, fmt.Sprintf("%s %v", now.State, st.Sources["app"].Lag)
	})
	if err := lock.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.recovered()
}

// Positions of another history compare with none of the one before: an older
// position than the stored ones still wins.
func TestAnotherHistoryIsReconciled(t *testing.T) {
	w, s, _ := losing(t)
	w.exec(w.memory, `update whence.records set lsn = lsn + 1000000000000`)
	w.exec(w.memory, `update whence.versions set lsn = lsn + 1000000000000`)
	w.exec(w.memory, `update whence.tables set snapshot_lsn = snapshot_lsn + 1000000000000, truncated_lsn = '0/1'::pg_lsn + 1000000000000`)
	w.exec(w.memory, `update whence.checkpoints set lsn = lsn + 1000000000000`)
	w.exec(w.memory, `update whence.sources set system_id = '7000000000000000000'`)
	w.exec(w.source, whileAway)
	w.run()
	w.until("an operator is asked", func() (bool, string) {
		s, err := w.r.GetSource(t.Context(), "app")
		if err != nil {
			t.Fatal(err)
		}
		return s.State == SourceBroken && strings.Contains(s.Error, "resume the source"), s.Error
	})
	if _, err := w.r.ResumeSource(t.Context(), s.Name); err != nil {
		t.Fatal(err)
	}
	w.until("the rows have been compared", func() (bool, string) {
		got := w.query(w.memory.Pool, `select r.key from whence.records r where r.key = '{"id":"101"}'`)
		return len(got) == 1, fmt.Sprint(got)
	})
	info := w.live(docs)
	w.exec(w.source, `insert into docs (id, title) values (200, 'after all')`)
	w.caughtUp()
	for _, key := range []string{`{"id":"1"}`, `{"id":"2"}`} {
		if got := w.versions(whence.Key(key)); len(got) != 2 {
			t.Errorf("%s has the versions %q, want two", key, got)
		}
	}
	w.want("versions", w.query(w.memory.Pool, `select count(*)::text from whence.versions`), "104")
	w.want("texts asked for", w.query(w.memory.Pool, `select count(*)::text from whence.vectors`), "103")
	w.want("heads", w.query(w.memory.Pool, `select count(*)::text from whence.records where not deleted and table_id = $1`, info.ID), "101")
}

// The same where only a copy was ahead of the stream, in a table of any state.
func TestCopyOfAnotherHistoryIsReconciled(t *testing.T) {
	for _, state := range []whence.TableState{whence.TableLive, whence.TableBackfilling, whence.TablePending, whence.TableBroken} {
		t.Run(string(state), func(t *testing.T) {
			w, _, info := losing(t)
			w.exec(w.memory, `update whence.records set lsn = lsn + 1000000000000`)
			w.exec(w.memory, `update whence.versions set lsn = lsn + 1000000000000`)
			w.exec(w.memory, `update whence.tables set copy_lsn = copy_lsn + 1000000000000, state = $1`, string(state))
			w.exec(w.source, whileAway)
			w.run()
			if state == whence.TableBroken {
				w.until("the stream has begun anew", func() (bool, string) {
					got := w.query(w.memory.Pool, `select copy_lsn::text from whence.tables where copy_lsn is not null`)
					return len(got) == 0, fmt.Sprint(got)
				})
				spec := docsSpec
				spec.HalfLife = info.HalfLife + time.Hour
				w.register(spec)
			}
			w.until("the rows have been compared", func() (bool, string) {
				got := w.query(w.memory.Pool, `select r.key from whence.records r where r.key = '{"id":"101"}'`)
				return len(got) == 1, fmt.Sprint(got)
			})
			w.live(docs)
			w.exec(w.source, `insert into docs (id, title) values (200, 'after all')`)
			w.caughtUp()
			w.want("heads", w.query(w.memory.Pool, `select r.key || ' ' || v.text from whence.records r
				join whence.versions v on v.record_id = r.id and v.version = r.version
				where not r.deleted and r.key in ('{"id":"1"}', '{"id":"2"}', '{"id":"101"}', '{"id":"200"}') order by r.key`),
				`{"id":"101"} new`, `{"id":"2"} second`, `{"id":"200"} after all`)
		})
	}
}

// A row whose key cannot be stored is left out and said so; the rest goes on,
// and a row that gets or loses such a key comes and goes.
func TestKeyTooLong(t *testing.T) {
	w := newWorld(t)
	w.exec(w.source, `create table docs (id text primary key, title text)`)
	// A key that compresses fits the source's index and not what is made of it here.
	w.exec(w.source, `insert into docs values ('a', 'one'), (repeat('x', 100000), 'too long'), ('c', 'three')`)
	w.create()
	spec := docsSpec
	spec.TextColumns, spec.AttributeColumns, spec.SubjectColumn, spec.TimeColumn = []string{"title"}, nil, "", ""
	w.register(spec)
	w.run()
	info := w.live(docs)
	if a := info.Status.Aside; a.Rows != 1 || !strings.Contains(a.Newest.Reason, "left out") || !strings.HasPrefix(a.Newest.Key, `{"id":"xxx`) {
		t.Errorf("the status says %+v", a)
	}
	w.exec(w.source, `update docs set title = 'still too long' where length(id) > 10; update docs set id = repeat('y', 90000) where id = 'a';
		insert into docs values ('d', 'four'); update docs set id = 'e' where id = repeat('x', 100000); delete from docs where id = repeat('y', 90000)`)
	w.caughtUp()
	w.equal(w.live(docs))
	w.aside()
	w.exec(w.source, `insert into docs values (repeat('z', 80000), 'too long'), (repeat('y', 80000), 'too long'); delete from docs where id = repeat('y', 80000)`)
	w.caughtUp()
	w.aside(`{"id":"zzz`)
	w.exec(w.source, `truncate docs`)
	w.caughtUp()
	w.aside()
}

// What was written while the table had another name, or columns each other's, is
// found by comparing, and costs what changed.
func TestNamesChangedAndBackWhileAway(t *testing.T) {
	for name, sql := range map[string]string{
		"the table's": `alter table docs rename to away; delete from away where id = 1; update away set title = 'second' where id = 2;
			insert into away (id, title) values (101, 'new'); alter table away rename to docs`,
		"its schema": `create schema away; alter table docs set schema away; delete from away.docs where id = 1; update away.docs set title = 'second' where id = 2;
			insert into away.docs (id, title) values (101, 'new'); alter table away.docs set schema public`,
		"two columns'": `alter table docs rename title to t; alter table docs rename body to title; alter table docs rename t to body;
			delete from docs where id = 1; update docs set body = 'second' where id = 2; insert into docs (id, body) values (101, 'new');
			alter table docs rename title to t; alter table docs rename body to title; alter table docs rename t to body`,
	} {
		t.Run(name, func(t *testing.T) {
			w, _, _ := losing(t)
			for statement := range strings.SplitSeq(sql, ";") {
				w.exec(w.source, statement)
			}
			w.run()
			w.until("the rows have been compared", func() (bool, string) {
				got := w.query(w.memory.Pool, `select v.columns ->> 'title' from whence.records r
					join whence.versions v on v.record_id = r.id and v.version = r.version where r.key = $1 and v.columns ->> 'title' = 'new'`, string(key(101)))
				return len(got) == 1, fmt.Sprint(got)
			})
			w.equal(w.live(docs))
			w.exec(w.source, `insert into docs (id, title) values (200, 'after all')`)
			w.caughtUp()
			w.equal(w.live(docs))
		})
	}
}

// A table whose key was widened says so, and has both rows once it is registered again.
func TestKeyWidened(t *testing.T) {
	w, _, _ := losing(t)
	w.exec(w.source, `update docs set lang = 'en'; alter table docs drop constraint docs_pkey, add primary key (id, lang);
		insert into docs (id, title, lang) values (1, 'eins', 'de')`)
	w.run()
	w.until("the table says what its key is", func() (bool, string) {
		info, err := w.r.GetTable(t.Context(), docs)
		return err == nil && info.State == whence.TableSchemaChanged && strings.Contains(info.Error, `by ("id", "lang") now, not by ("id")`), info.Error
	})
	w.register(docsSpec)
	w.equal(w.live(docs))
	w.exec(w.source, `delete from docs where id = 1 and lang = 'en'; update docs set title = 'uno' where id = 1`)
	w.caughtUp()
	w.equal(w.live(docs))
	w.want("records", w.query(w.memory.Pool, `select count(*)::text from whence.records where not deleted`), "100")
}

// The stream may still be before the new key when the table is registered with it:
// what it brings from there has been copied, and does not fail the new definition.
func TestKeyWidenedBeforeTheStreamIsThere(t *testing.T) {
	w, _, _ := losing(t)
	w.exec(w.source, `update docs set lang = 'en'; delete from docs where id = 2; alter table docs drop constraint docs_pkey, add primary key (id, lang);
		insert into docs (id, title, lang) values (1, 'eins', 'de')`)
	lock, err := w.memory.Pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lock.Exec(t.Context(), `lock whence.records in exclusive mode`); err != nil {
		t.Fatal(err)
	}
	w.run()
	w.until("the stream waits", func() (bool, string) {
		n := w.query(w.memory.Pool, `select a.query from pg_stat_activity a, unnest(pg_blocking_pids(a.pid)) b(pid) where b.pid = $1`, lock.Conn().PgConn().PID())
		return len(n) > 0, fmt.Sprint(n)
	})
	w.until("the table says what its key is", func() (bool, string) {
		info, err := w.r.GetTable(t.Context(), docs)
		return err == nil && info.State == whence.TableSchemaChanged, info.Error
	})
	w.register(docsSpec)
	if err := lock.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.equal(w.live(docs))
	w.exec(w.source, `delete from docs where id = 1 and lang = 'en'; update docs set title = 'uno' where id = 1`)
	w.caughtUp()
	w.equal(w.live(docs))
	w.want("records", w.query(w.memory.Pool, `select count(*)::text from whence.records where not deleted`), "99")
}

// A table cannot be captured beside one that it is a partition of, whichever was
// registered first, and can again when the other is not registered any more.
func TestPartitionBesideItsRoot(t *testing.T) {
	w := newWorld(t)
	w.exec(w.source, `create table roots (id int primary key, title text) partition by range (id);
		create table docs partition of roots for values from (0) to (1000); insert into docs select i, 'title ' || i from generate_series(1, 5) i`)
	w.create()
	w.run()
	w.register(TableSpec{Table: "public.docs", TextColumns: []string{"title"}})
	w.live(docs)
	w.register(TableSpec{Table: "public.roots", TextColumns: []string{"title"}})
	w.live("app.public.roots")
	w.until("the partition is broken", func() (bool, string) {
		info, err := w.r.GetTable(t.Context(), docs)
		return err == nil && info.State == whence.TableBroken && strings.Contains(info.Error, `is a partition of "public"."roots"`), info.Error
	})
	w.exec(w.source, `update docs set title = 'changed' where id = 1; delete from docs where id = 2`)
	w.caughtUp()
	w.equal(w.live("app.public.roots"))
	if err := w.r.UnregisterTable(t.Context(), "app.public.roots"); err != nil {
		t.Fatal(err)
	}
	w.register(TableSpec{Table: "public.docs", TextColumns: []string{"title"}})
	w.equal(w.live(docs))
	w.exec(w.source, `update roots set title = 'changed again' where id = 3; insert into roots values (7, 'seven')`)
	w.caughtUp()
	w.equal(w.live(docs))
}
