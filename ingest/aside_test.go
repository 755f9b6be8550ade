package ingest

import (
	"fmt"
	"strings"
	"testing"

	"github.com/whence-db/whence"
)

// aside wants exactly these rows of docs set aside, each given by how its key
// begins and, after a bar, a word of the reason.
func (w *world) aside(want ...string) {
	w.t.Helper()
	got := w.query(w.memory.Pool, `select key || '|' || reason from whence.set_aside order by key`)
	info, err := w.r.GetTable(w.t.Context(), docs)
	if err != nil {
		w.t.Fatal(err)
	}
	if n := info.Status.Aside.Rows; n != int64(len(want)) || info.SetAside != (n > 0) {
		w.t.Errorf("the status speaks of %d rows, want %d: %+v", n, len(want), info.Status.Aside)
	}
	if len(got) != len(want) {
		w.t.Fatalf("set aside are %q, want %q", got, want)
	}
	for i, s := range want {
		begins, word, _ := strings.Cut(s, "|")
		k, reason, _ := strings.Cut(got[i], "|")
		if !strings.HasPrefix(k, begins) || !strings.Contains(reason, word) {
			w.t.Errorf("set aside is %q because %q, want %q", k, reason, s)
		}
	}
}

// A row is set aside exactly while something of it is missing, whichever way it
// comes and goes.
func TestSetAsideFollowsTheRow(t *testing.T) {
	w := newDocs(t)
	w.exec(w.source, `insert into docs (id, title, owner) values (1, 'one', 'ann'), (2, 'two', repeat('b', 3000)), (4, 'four', repeat('d', 2001))`)
	w.exec(w.source, `insert into docs (id, body) values (3, repeat('long text ', 1700000))`)
	w.register(docsSpec)
	w.run()
	info := w.live(docs)
	w.aside(`{"id":"2"}|subject`, `{"id":"3"}|not searchable`, `{"id":"4"}|subject`)
	if all, err := w.r.ListAside(t.Context(), info.Table, 2); err != nil || len(all) != 2 || all[0].At.Before(all[1].At) || all[1].Key == "" || all[1].Reason == "" {
		t.Errorf("listed are %+v, %v", all, err)
	}
	w.want("subjects", w.query(w.memory.Pool, `select coalesce(subject, '-') from whence.records order by key`), "ann", "-", "-", "-")

	w.exec(w.source, `update docs set lang = 'en' where id = 2; update docs set owner = 'eve' where id = 4`)
	w.caughtUp()
	w.aside(`{"id":"2"}`, `{"id":"3"}`)

	// Compared anew and found the same, they stay; what has come right or gone
	// while nobody looked does not.
	w.kill()
	w.exec(w.source, `update docs set owner = 'bob' where id = 1`)
	s, err := w.r.GetSource(t.Context(), "app")
	if err != nil {
		t.Fatal(err)
	}
	sink := newSink(w.r, s, func() {})
	if err := sink.CopyAgain(t.Context(), info.ID, info.Definition, 0, "for a test"); err != nil {
		t.Fatal(err)
	}
	w.run()
	w.live(docs)
	w.aside(`{"id":"2"}`, `{"id":"3"}`)
	w.kill()
	if err := sink.CopyAgain(t.Context(), info.ID, info.Definition, 0, "for a test"); err != nil {
		t.Fatal(err)
	}
	w.exec(w.memory, `insert into whence.set_aside (table_id, key_digest, key, lsn, reason) values ($1, 'x', 'gone', '0/1', 'left behind')`, info.ID)
	w.run()
	w.live(docs)
	w.aside(`{"id":"2"}`, `{"id":"3"}`)

	w.exec(w.source, `begin; update docs set owner = repeat('x', 2500) where id = 1; update docs set owner = 'ann' where id = 1; commit`)
	w.exec(w.source, `delete from docs where id = 3`)
	w.caughtUp()
	w.aside(`{"id":"2"}`)
	w.exec(w.source, `update docs set id = 5 where id = 2`)
	w.caughtUp()
	w.aside(`{"id":"5"}|subject`)

	spec := docsSpec
	spec.SubjectColumn = ""
	w.register(spec)
	w.live(docs)
	w.aside()
	w.register(docsSpec)
	w.live(docs)
	w.aside(`{"id":"5"}|subject`)
	w.exec(w.source, `truncate docs`)
	w.caughtUp()
	w.aside()
}

// A value that the memory database cannot hold costs the row that value, and an
// update that does not repeat it does not pass for the whole row.
func TestValueTooLarge(t *testing.T) {
	w := newDocs(t)
	w.register(docsSpec)
	w.run()
	w.live(docs)
	w.exec(w.source, fmt.Sprintf(`insert into docs (id, title, lang) values (1, 'one', repeat('x', %d)), (2, 'two', 'en')`, maximumRow))
	w.caughtUp()
	w.aside(`{"id":"1"}|column "lang"`)
	w.want("texts", w.query(w.memory.Pool, `select text from whence.chunks order by id`), "one", "two")
	w.exec(w.source, `update docs set title = 'uno' where id = 1`)
	w.caughtUp()
	w.aside(`{"id":"1"}|left out earlier`)
	w.exec(w.source, `update docs set lang = 'en' where id = 1`)
	w.caughtUp()
	w.aside()
	w.equal(w.live(docs))
}

// Each chunk carries its row's attributes, so large ones beside a long text
// would be more than can be sent.
func TestAttributesTooLarge(t *testing.T) {
	w := newDocs(t)
	w.register(docsSpec)
	w.run()
	w.live(docs)
	w.exec(w.source, `insert into docs (id, title, lang) select 1, string_agg('Paragraph ' || i || repeat(' word', 80), E'\n\n'), repeat('x', 100000) from generate_series(1, 1000) i`)
	w.caughtUp()
	w.aside(`{"id":"1"}|attributes`)
	w.equal(w.live(docs))
	w.want("attributes", w.query(w.memory.Pool, `select distinct attributes::text from whence.chunks union select attributes::text from whence.records`), "{}")
	w.exec(w.source, `update docs set lang = 'en'`)
	w.caughtUp()
	w.aside()
}

// A large value that is not repeated by the stream is stored with each version
// all the same: together they may be more than can be sent.
func TestManyVersionsOfALargeRow(t *testing.T) {
	w := newDocs(t)
	w.exec(w.source, `insert into docs (id, title, lang) values (1, 'one', repeat('x', 1500000))`)
	w.register(docsSpec)
	w.run()
	info := w.live(docs)
	w.kill()
	w.exec(w.source, `do $$ begin for i in 1..100 loop update docs set title = 'one ' || i where id = 1; commit; end loop; end $$`)
	w.run()
	w.caughtUp()
	w.equal(info)
	w.want("versions", w.query(w.memory.Pool, `select count(*)::text from whence.versions`), "101")
	// Rows that one statement has inserted share xmin and cmin.
	w.want("statements that carry more than is allowed", w.query(w.memory.Pool, `
select sum(length(columns::text))::text from whence.versions group by xmin::text, cmin::text
having sum(length(columns::text)) > $1`, maximumWrite+(1<<20)))
}

func TestTimeThatCannotBeRead(t *testing.T) {
	t.Parallel()
	never := "the day before yesterday"
	r := newRow(capturing(whence.Table{TimeColumn: "at"}), whence.Values{"at": &never}, moment{})
	if !r.event.IsZero() || !strings.Contains(r.lacks.String(), "time") {
		t.Errorf("event time %v, lacking %q", r.event, r.lacks.String())
	}
	for _, typ := range []string{"date", "timestamp without time zone", "timestamp(3) with time zone"} {
		if !timeType.MatchString(typ) {
			t.Errorf("%s is refused", typ)
		}
	}
	for _, typ := range []string{"timestamp without time zone[]", "timestamp_text", "daterange", "text", "time without time zone"} {
		if timeType.MatchString(typ) {
			t.Errorf("%s is accepted", typ)
		}
	}
}
