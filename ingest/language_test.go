package ingest

import (
	"context"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/cdc"
)

// indexedIn tells how many chunks are indexed in each language.
func (w *world) indexedIn() string {
	w.t.Helper()
	return strings.Join(w.query(w.memory.Pool, `select language || ' ' || count(*) from whence.chunks group by language order by language`), ", ")
}

// changed waits until all of the table's chunks are in its language.
func (w *world) changed(name whence.TableName, want string) TableInfo {
	w.t.Helper()
	var info TableInfo
	w.until("the language is changed", func() (bool, string) {
		var err error
		if info, err = w.r.GetTable(context.Background(), name); err != nil {
			w.t.Fatal(err)
		}
		return len(info.FormerLanguages) == 0, strings.Join(info.FormerLanguages, ", ") + ": " + w.indexedIn()
	})
	if info.Language != want {
		w.t.Errorf("the language is %s, want %s", info.Language, want)
	}
	return info
}

func TestUnknownLanguage(t *testing.T) {
	w := newDocs(t)
	spec := docsSpec
	spec.Source = "app"
	for _, bad := range []string{"klingon", "German", "pg_catalog.german", "german "} {
		spec.Language = bad
		_, err := w.r.RegisterTable(t.Context(), spec)
		if reason(err) != "LANGUAGE_UNKNOWN" || !strings.Contains(err.Error(), "english, finnish, french, german, greek") {
			t.Errorf("%s: %v", bad, err)
		}
		if p, err := w.r.PreviewTable(t.Context(), spec, 1); err != nil || len(p.Problems) != 1 || !strings.Contains(p.Problems[0], bad) {
			t.Errorf("previewed as %s: %+v, %v", bad, p, err)
		}
	}
	if info := w.register(docsSpec); info.Language != "english" || len(info.FormerLanguages) != 0 {
		t.Errorf("by default: %+v", info.Table)
	}
	spec.Language = "simple"
	if p, err := w.r.PreviewTable(t.Context(), spec, 1); err != nil || p.Table.Language != "simple" {
		t.Errorf("previewed: %+v, %v", p, err)
	}
}

// A table in another language is indexed anew and neither copied nor embedded again.
// That goes on after a crash, and until it has ended the table tells of it.
func TestChangeOfLanguage(t *testing.T) {
	w := newDocs(t)
	w.exec(w.source, `insert into docs (id, title, body) select i, 'Titel ' || i, 'die Häuser am Hafen ' || i from generate_series(1, 700) i`)
	w.exec(w.source, `insert into docs (id, title) values (999, 'verschoben')`)
	spec := docsSpec
	spec.Language = "danish"
	w.register(spec)
	w.run()
	info := w.live(docs)
	if info.Language != "danish" || w.indexedIn() != "danish 701" {
		t.Errorf("registered: %s, %s", info.Language, w.indexedIn())
	}
	state := func() []string {
		return w.query(w.memory.Pool, `select (select count(*) from whence.versions) || ' versions, ' || (select count(*) from whence.vectors) || ' vectors, '
|| (select md5(string_agg(id || text || version, ' ' order by id)) from whence.chunks)`)
	}
	before := state()

	// A writer holds a row, so the change cannot end.
	held, err := w.memory.Pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = held.Rollback(context.Background()) }()
	if _, err := held.Exec(t.Context(), `select from whence.records where key = $1 for update`, key(300)); err != nil {
		t.Fatal(err)
	}
	spec.Language = "german"
	if got := w.register(spec); got.State != whence.TableLive || got.Definition != info.Definition || got.Language != "german" ||
		len(got.FormerLanguages) != 1 || got.FormerLanguages[0] != "danish" {
		t.Errorf("registered in German: %+v", got.Table)
	}
	w.until("all but the row that is held are in German", func() (bool, string) {
		return w.indexedIn() == "danish 1, german 700", w.indexedIn()
	})
	w.kill()
	if got, err := w.r.GetTable(t.Context(), docs); err != nil || len(got.FormerLanguages) != 1 {
		t.Errorf("while a row is held: %+v, %v", got.Table, err)
	}
	if err := held.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.run()
	w.changed(docs, "german")
	w.want("what is stored", state(), before...)
	if w.indexedIn() != "german 701" {
		t.Error(w.indexedIn())
	}
	w.want("terms", w.query(w.memory.Pool, `select id::text from whence.chunks where tsv @@ to_tsquery('german', 'Haus & Hafen & 300')`), w.query(w.memory.Pool,
		`select c.id::text from whence.chunks c join whence.records r on r.id = c.record_id where r.key = $1`, key(300))...)
	w.exec(w.source, `update docs set title = 'neu' where id = 1`)
	w.caughtUp()
	if got := w.indexedIn(); got != "german 702" && got != "german 701" { // with what it supersedes, until that is embedded
		t.Error(got)
	}
	w.equal(w.live(docs))
}

// A unit that began in another language does not commit, for its chunks would come
// after those had been changed.
func TestUnitOfAnotherLanguage(t *testing.T) {
	w, info, k := newSinkAt100(t)
	row := whence.Values{"id": ptr("1"), "title": ptr("Häuser"), "body": nil, "owner": nil, "lang": nil, "at": nil}
	insert := cdc.Change{Table: info.ID, Op: cdc.Insert, Row: row, LSN: 0x150, XID: 7, CommitTime: time.Now()}
	u, err := k.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := u.Apply(t.Context(), []cdc.Change{insert}); err != nil {
		t.Fatal(err)
	}
	spec := docsSpec
	spec.Language = "german"
	w.register(spec)
	if err := u.Commit(t.Context(), cdc.Progress{LSN: 0x200}); reason(err) != "TABLE_REDEFINED" {
		t.Errorf("after a change of language: %v", err)
	}
	if err := u.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	// The next is in the new one, and so is a copy that had begun before.
	if u, err = k.Begin(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := u.Apply(t.Context(), []cdc.Change{insert}); err != nil {
		t.Fatal(err)
	}
	if err := u.Commit(t.Context(), cdc.Progress{LSN: 0x200}); err != nil {
		t.Fatal(err)
	}
	if _, err := k.BackfillStart(t.Context(), info.ID, info.Definition, 0x210, 2); err != nil {
		t.Fatal(err)
	}
	spec.Language = "dutch"
	w.register(spec)
	copied := whence.Values{"id": ptr("2"), "title": ptr("huizen"), "body": nil, "owner": nil, "lang": nil, "at": nil}
	if err := k.BackfillRows(t.Context(), info.ID, 0x210, []whence.Values{copied}, cdc.Blocks{}); err != nil {
		t.Fatal(err)
	}
	if got := w.indexedIn(); got != "dutch 1, german 1" {
		t.Error(got)
	}
	// Back, before anything was changed: what is German needs nothing, what is Dutch does.
	spec.Language = "german"
	if got := w.register(spec); strings.Join(got.FormerLanguages, " ") != "dutch english" {
		t.Errorf("former languages: %q", got.FormerLanguages)
	}
}

// waiting runs fn, and returns once it is the nth that waits for a lock in the memory
// database; what it returns ends it.
func (w *world) waiting(n int, fn func() error) (end func()) {
	w.t.Helper()
	done := make(chan error, 1)
	go func() { done <- fn() }()
	w.until("it waits", func() (bool, string) {
		select {
		case err := <-done:
			w.t.Fatalf("it did not wait: %v", err)
		default:
		}
		return w.query(w.memory.Pool, `select (count(*) >= $1)::text from pg_stat_activity
where datname = current_database() and wait_event_type = 'Lock'`, n)[0] == "true", ""
	})
	return func() {
		w.t.Helper()
		if err := <-done; err != nil {
			w.t.Fatal(err)
		}
	}
}

// whileLocked runs fn, which has to wait for what a statement locks, and does some
// more once it waits.
func (w *world) whileLocked(lock string, fn func() error, more ...func()) {
	w.t.Helper()
	held, err := w.memory.Pool.Begin(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	defer func() { _ = held.Rollback(context.Background()) }()
	if _, err := held.Exec(w.t.Context(), lock); err != nil {
		w.t.Fatal(err)
	}
	end := w.waiting(1, fn)
	for _, fn := range more {
		fn()
	}
	if err := held.Rollback(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
	end()
}

// What decides which language chunks are in is decided under locks.
func TestLanguagesUnderLocks(t *testing.T) {
	w, info, k := newSinkAt100(t)
	spec := docsSpec
	spec.Source, spec.Language = "app", "german"
	// A unit that is about to commit holds the checkpoint, and has found the language
	// to be its own.
	w.whileLocked(`select from whence.checkpoints for update`, func() error {
		_, err := w.r.RegisterTable(t.Context(), spec)
		return err
	})
	// A copy that had read the definition stores its rows in the language of now.
	table, err := k.definition(t.Context(), info.ID)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k.BackfillStart(t.Context(), info.ID, info.Definition, 0x210, 2); err != nil {
		t.Fatal(err)
	}
	spec.Language = "dutch"
	w.register(spec)
	err = k.inTurn(t.Context(), part, func(u *unit) error {
		_, err := u.copying(t.Context(), table, 0x210)
		return err
	})
	if err != nil || table.Language != "dutch" {
		t.Errorf("the copy goes on in %s: %v", table.Language, err)
	}
	// The language changes again while chunks are looked for in others than the last:
	// what those are in now is another one.
	row := whence.Values{"id": ptr("1"), "title": ptr("huizen"), "body": nil, "owner": nil, "lang": nil, "at": nil}
	if err := k.BackfillRows(t.Context(), info.ID, 0x210, []whence.Values{row}, cdc.Blocks{}); err != nil {
		t.Fatal(err)
	}
	w.whileLocked(`lock table whence.chunks`, func() error { return w.r.endLanguages(t.Context(), info.ID) }, func() {
		w.exec(w.memory, `update whence.tables set language = 'german', former_languages = '{dutch}'`)
	})
	if got := w.query(w.memory.Pool, `select language || ' ' || former_languages::text from whence.tables`)[0]; got != "german {dutch}" {
		t.Errorf("%s, with a chunk in Dutch", got)
	}
	// It does not change while chunks are indexed in the last.
	runner, err := NewRunner(RunnerConfig{Registry: w.r})
	if err != nil {
		t.Fatal(err)
	}
	spec.Language = "english"
	var end func()
	w.whileLocked(`lock table whence.chunks in share mode`, func() error { return runner.changeLanguage(t.Context(), info.ID) }, func() {
		end = w.waiting(2, func() error { _, err := w.r.RegisterTable(t.Context(), spec); return err })
	})
	end()
	if got := w.query(w.memory.Pool, `select language from whence.chunks`)[0]; got != "german" {
		t.Errorf("the chunk is indexed in %s", got)
	}
}

// Languages change while rows do, while they are copied, and with the definition: in
// the end every chunk is in the table's, and the index is the source.
func TestLanguagesChangeBesideWriters(t *testing.T) {
	w := newDocs(t)
	w.exec(w.source, `insert into docs (id, title, body, owner) select i, 'Titel ' || i, 'die Häuser ' || i, 'ann' from generate_series(1, 2500) i`)
	w.register(docsSpec)
	w.run()
	var g errgroup.Group
	ctx, stop := context.WithCancel(t.Context())
	for i := range 2 {
		g.Go(func() error { return scribble(ctx, w, uint64(i)) })
	}
	spec := docsSpec
	for i, language := range []string{"german", "simple", "german", "english", "simple", "french", "german"} {
		spec.Language = language
		if i == 4 { // and the definition
			spec.TextColumns, spec.TextTemplate = nil, "{{title}} - {{body}}"
		}
		w.register(spec)
		time.Sleep(time.Duration(50+100*(i%3)) * time.Millisecond)
	}
	info := w.live(docs)
	stop()
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	w.caughtUp()
	w.equal(info)
	w.changed(docs, "german")
	if got := w.indexedIn(); strings.Contains(got, ",") || !strings.HasPrefix(got, "german ") {
		t.Error(got)
	}
}
