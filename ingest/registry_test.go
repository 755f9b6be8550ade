package ingest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/cdc"
	"github.com/whence-db/whence/internal/pg"
	"github.com/whence-db/whence/internal/pgtest"
)

func reason(err error) string {
	var e *whence.Error
	if errors.As(err, &e) {
		return e.Reason
	}
	return fmt.Sprint(err)
}

func TestCreateSourceRefusals(t *testing.T) {
	w := newWorld(t)
	w.create()
	const unreachable = "postgres://someone:hunter2@127.0.0.1:1/nowhere"
	w.r.getenv = func(name string) string { return map[string]string{"GOOD_DSN": w.source.DSN}[name] }
	for _, c := range []struct{ name, dsn, env, want string }{
		{"App", w.source.DSN, "", "NAME_INVALID"},
		{"", w.source.DSN, "", "NAME_INVALID"},
		{strings.Repeat("a", 64), w.source.DSN, "", "NAME_INVALID"},
		{"whence", w.source.DSN, "", "NAME_RESERVED"},
		{"other", "", "", "DSN_REQUIRED"},
		{"other", w.source.DSN, "GOOD_DSN", "DSN_REQUIRED"},
		{"other", "", "NO_SUCH", "DSN_ENV_NOT_SET"},
		{"other", "postgres://someone:hunter2@host:port/x", "", "DSN_INVALID"},
		{"other", unreachable, "", "SOURCE_UNREACHABLE"},
		{"other", strings.Replace(w.source.DSN, w.source.Name, "no_such_database", 1), "", "SOURCE_REFUSED"},
		{"app", w.source.DSN, "", "SOURCE_EXISTS"},
	} {
		_, err := w.r.CreateSource(t.Context(), c.name, c.dsn, c.env)
		if got := reason(err); got != c.want {
			t.Errorf("%q: %s, want %s", c.name, got, c.want)
		}
		if err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("the error tells the password: %v", err)
		}
	}
	s, err := w.r.CreateSource(t.Context(), "by-env", "", "GOOD_DSN")
	if err != nil || s.State != SourceConnecting || s.Lag >= 0 {
		t.Errorf("%+v, %v", s, err)
	}
	if n := w.query(w.memory.Pool, `select count(*)::text from whence.sources where position($1::bytea in dsn_sealed) > 0`, []byte(w.source.Name)); n[0] != "0" {
		t.Error("the connection string is stored in clear")
	}
	for name, call := range map[string]func() error{
		"get":    func() error { _, err := w.r.GetSource(t.Context(), "none"); return err },
		"pause":  func() error { _, err := w.r.PauseSource(t.Context(), "none"); return err },
		"resume": func() error { _, err := w.r.ResumeSource(t.Context(), "none"); return err },
		"delete": func() error { _, err := w.r.DeleteSource(t.Context(), "none", false); return err },
		"tables": func() error { _, err := w.r.ListTables(t.Context(), "none"); return err },
		"table": func() error {
			_, err := w.r.RegisterTable(t.Context(), TableSpec{Source: "none", Table: "a.b", TextColumns: []string{"c"}})
			return err
		},
	} {
		err := call()
		if reason(err) != "SOURCE_NOT_FOUND" || !errors.Is(err, whence.ErrNotFound) || !strings.Contains(err.Error(), `"none"`) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestRegisterTableRefusals(t *testing.T) {
	w := newWorld(t)
	w.exec(w.source, `
create table docs (id int primary key, title text, made text generated always as (upper(title)) stored, at timestamptz, n int);
create table keyless (title text);
create table mute (id int primary key, title text); alter table mute replica identity nothing;
create view seen as select id, title from docs`)
	w.create()
	good := TableSpec{Source: "app", Table: "public.docs", TextColumns: []string{"title"}}
	for name, c := range map[string]struct {
		want   string
		change func(*TableSpec)
	}{
		"no schema":        {"TABLE_NAME_INVALID", func(s *TableSpec) { s.Table = "docs" }},
		"no table":         {"TABLE_NOT_FOUND", func(s *TableSpec) { s.Table = "public.none" }},
		"a view":           {"NOT_A_TABLE", func(s *TableSpec) { s.Table = "public.seen" }},
		"no key":           {"NO_PRIMARY_KEY", func(s *TableSpec) { s.Table = "public.keyless" }},
		"no identity":      {"REPLICA_IDENTITY_NOTHING", func(s *TableSpec) { s.Table = "public.mute" }},
		"no text":          {"TEXT_REQUIRED", func(s *TableSpec) { s.TextColumns = nil }},
		"two texts":        {"TEXT_AMBIGUOUS", func(s *TableSpec) { s.TextTemplate = "{{title}}" }},
		"bad template":     {"TEMPLATE_INVALID", func(s *TableSpec) { s.TextColumns, s.TextTemplate = nil, "{{title" }},
		"unknown text":     {"COLUMN_NOT_FOUND", func(s *TableSpec) { s.TextColumns = []string{"body"} }},
		"unknown template": {"COLUMN_NOT_FOUND", func(s *TableSpec) { s.TextColumns, s.TextTemplate = nil, "{{body}}" }},
		"unknown subject":  {"COLUMN_NOT_FOUND", func(s *TableSpec) { s.SubjectColumn = "Title" }},
		"unknown time":     {"COLUMN_NOT_FOUND", func(s *TableSpec) { s.TimeColumn = "when" }},
		"unknown other":    {"COLUMN_NOT_FOUND", func(s *TableSpec) { s.AttributeColumns = []string{"x"} }},
		"generated":        {"COLUMN_GENERATED", func(s *TableSpec) { s.TextColumns = []string{"made"} }},
		"time of a number": {"TIME_COLUMN_TYPE", func(s *TableSpec) { s.TimeColumn = "n" }},
		"twice":            {"COLUMN_REPEATED", func(s *TableSpec) { s.TextColumns = []string{"title", "title"} }},
		"half-life":        {"HALF_LIFE_OUT_OF_RANGE", func(s *TableSpec) { s.HalfLife = -time.Hour }},
		"target":           {"FRESHNESS_TARGET_OUT_OF_RANGE", func(s *TableSpec) { s.FreshnessTarget = time.Millisecond }},
		"on delete":        {"ON_DELETE_INVALID", func(s *TableSpec) { s.OnDelete = "KEEP" }},
	} {
		spec := good
		c.change(&spec)
		if _, err := w.r.RegisterTable(t.Context(), spec); reason(err) != c.want {
			t.Errorf("%s: %s, want %s", name, reason(err), c.want)
		}
	}
	spec := good
	spec.TextColumns = []string{"body"}
	if _, err := w.r.RegisterTable(t.Context(), spec); err == nil || !strings.Contains(err.Error(), "id, title, at, n") {
		t.Errorf("the refusal does not list the columns: %v", err)
	}
	info, err := w.r.RegisterTable(t.Context(), good)
	if err != nil || info.State != whence.TablePending || info.HalfLife != 720*time.Hour || info.FreshnessTarget != 10*time.Second ||
		info.OnDelete != whence.OnDeleteTombstone || info.KeyColumns[0] != "id" || info.Name() != "app.public.docs" {
		t.Errorf("%+v, %v", info, err)
	}
	for _, err := range []error{
		func() error { _, err := w.r.GetTable(t.Context(), "app.public.none"); return err }(),
		w.r.UnregisterTable(t.Context(), "app.public.none"),
	} {
		if reason(err) != "TABLE_NOT_REGISTERED" || !strings.Contains(err.Error(), "app.public.none") || !strings.Contains(err.Error(), "app.public.docs") {
			t.Error(err)
		}
	}
}

func (w *world) state() whence.State {
	w.t.Helper()
	var s whence.State
	err := pg.Snapshot(w.t.Context(), w.memory.Pool, func(tx pgx.Tx) (err error) {
		s, err = w.r.State(w.t.Context(), tx)
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
	s.Tables = slices.DeleteFunc(s.Tables, func(t whence.Table) bool { return t.ID == whence.NotesID })
	return s
}

func TestStatePauseAndResume(t *testing.T) {
	w := newDocs(t)
	w.register(docsSpec)
	if s := w.state(); s.Sources["app"].Lag >= 0 || len(s.Tables) != 1 || s.Tables[0].State != whence.TablePending {
		t.Errorf("before capture: %+v", s)
	}
	w.run()
	info := w.live(docs)
	w.until("the source is caught up", func() (bool, string) {
		s := w.state().Sources["app"]
		return s.Lag >= 0 && s.Lag < 5*time.Second, s.Lag.String()
	})
	if _, err := w.r.PauseSource(t.Context(), "app"); err != nil {
		t.Fatal(err)
	}
	if s := w.state().Sources["app"]; !s.Paused {
		t.Errorf("%+v", s)
	}
	w.until("nobody reads the slot", func() (bool, string) {
		n := w.query(w.source.Pool, `select count(*)::text from pg_replication_slots where active and database = current_database()`)[0]
		return n == "0", n
	})
	before := w.state().Sources["app"]
	w.exec(w.source, `insert into docs (id, title) values (1, 'while paused')`)
	time.Sleep(50 * time.Millisecond)
	if after := w.state().Sources["app"]; after.Lag <= before.Lag || !after.CaughtUpAt.Equal(before.CaughtUpAt) {
		t.Errorf("the lag of a paused source does not grow: %v, then %v", before.Lag, after.Lag)
	}
	w.want("records", w.query(w.memory.Pool, `select key from whence.records`))
	if s, err := w.r.ResumeSource(t.Context(), "app"); err != nil || s.State != SourceStreaming {
		t.Errorf("%+v, %v", s, err)
	}
	w.caughtUp()
	w.equal(info)
}

func TestBrokenSourceWaitsForItsOperator(t *testing.T) {
	w := newDocs(t)
	w.register(docsSpec)
	w.run()
	w.live(docs)
	w.kill()
	s, err := w.r.GetSource(t.Context(), "app")
	if err != nil {
		t.Fatal(err)
	}
	w.until("the slot is another plugin's", func() (bool, string) { // its last reader may take a moment to go
		_, err := w.source.Pool.Exec(t.Context(), `select pg_drop_replication_slot($1)`, s.Slot)
		return err == nil, fmt.Sprint(err)
	})
	w.exec(w.source, `select pg_create_logical_replication_slot($1, 'test_decoding')`, s.Slot)
	w.run()
	broken := func() (bool, string) {
		s, err := w.r.GetSource(t.Context(), "app")
		if err != nil {
			t.Fatal(err)
		}
		return s.State == SourceBroken && s.Error != "", fmt.Sprintf("%s %s", s.State, s.Error)
	}
	w.until("capture is broken", broken)
	if st := w.state().Sources["app"]; st.Error == "" || st.Retrying {
		t.Errorf("%+v", st)
	}
	if s, err = w.r.ResumeSource(t.Context(), "app"); err != nil || s.State == SourceBroken {
		t.Errorf("%+v, %v", s, err)
	}
	w.until("capture is broken again", broken)
	if _, err := w.r.DeleteSource(t.Context(), "app", false); err != nil {
		t.Fatal(err)
	}
	w.want("what is left in memory", w.query(w.memory.Pool, `
select 'a source' from whence.sources union all select 'a table' from whence.tables union all select 'a checkpoint' from whence.checkpoints`))
	w.want("what is left in the source", w.query(w.source.Pool, `select pubname::text from pg_publication`))
	w.create()
	w.register(docsSpec)
	w.equal(w.live(docs))
}

func TestDeleteSource(t *testing.T) {
	w := newDocs(t)
	w.exec(w.source, `insert into docs (id, title) select i, 'title ' || i from generate_series(1, 100) i`)
	w.register(docsSpec)
	w.run()
	w.live(docs)
	if left, err := w.r.DeleteSource(t.Context(), "app", false); err != nil || left != "" {
		t.Fatal(left, err)
	}
	w.want("in memory", w.query(w.memory.Pool, `
select 'a record' from whence.records union all select 'a chunk' from whence.chunks union all select 'a vector' from whence.vectors
union all select 'a source' from whence.sources`))
	w.want("in the source", w.query(w.source.Pool, `
select 'a publication' from pg_publication union all select 'a slot' from pg_replication_slots where database = current_database() and not temporary`))
}

// A deletion whose caller is gone, by a crash say, is finished by the runner.
func TestAnAbandonedDeletionIsFinished(t *testing.T) {
	w := newDocs(t)
	w.exec(w.source, `insert into docs (id, title) select i, 'title ' || i from generate_series(1, 100) i`)
	w.register(docsSpec)
	w.run()
	w.live(docs)
	w.exec(w.memory, `update whence.sources set deleting = true`)
	w.until("the source is gone", func() (bool, string) {
		left := w.query(w.memory.Pool, `select name from whence.sources union all select key from whence.records`)
		return len(left) == 0, fmt.Sprint(left)
	})
}

func TestDeleteSourceThatIsGone(t *testing.T) {
	w := newWorld(t)
	w.create()
	s, err := w.r.GetSource(t.Context(), "app")
	if err != nil {
		t.Fatal(err)
	}
	w.exec(w.memory, `update whence.sources set dsn_sealed = $1`, w.r.seal.Seal(sealPurpose+" app", []byte("postgres://a:hunter2@127.0.0.1:1/x")))
	_, err = w.r.DeleteSource(t.Context(), "app", false)
	if reason(err) != "SOURCE_UNREACHABLE" || !strings.Contains(err.Error(), s.Slot) || strings.Contains(err.Error(), "hunter2") {
		t.Error(err)
	}
	if s, err = w.r.GetSource(t.Context(), "app"); err != nil || s.State != SourceDeleting || s.Error == "" {
		t.Errorf("%+v, %v", s, err)
	}
	if _, err := w.r.PauseSource(t.Context(), "app"); reason(err) != "SOURCE_DELETING" {
		t.Error(err)
	}
	if left, err := w.r.DeleteSource(t.Context(), "app", true); err != nil || !strings.Contains(left, s.Slot) {
		t.Error(left, err)
	}
	if _, err := w.r.GetSource(t.Context(), "app"); reason(err) != "SOURCE_NOT_FOUND" {
		t.Error(err)
	}
}

// A publication that its owner made is the owner's: the deletion leaves it and says so.
func TestDeleteSourceOfLeastPrivilege(t *testing.T) {
	w := newWorld(t)
	w.exec(w.source, createDocs)
	role := "least_" + w.source.Name[max(0, len(w.source.Name)-40):]
	w.exec(w.source, fmt.Sprintf(`create role %q login replication; grant select on docs to %[1]q`, role))
	t.Cleanup(func() {
		w.exec(w.source, fmt.Sprintf(`select pg_terminate_backend(pid) from pg_stat_activity where usename = '%s'; drop owned by %[1]q; drop role %[1]q`, role))
	})
	cfg, err := pgx.ParseConfig(w.source.DSN)
	if err != nil {
		t.Fatal(err)
	}
	dsn := fmt.Sprintf("host=%s port=%d user=%s dbname=%s sslmode=disable", cfg.Host, cfg.Port, role, w.source.Name)
	s, err := w.r.CreateSource(t.Context(), "app", dsn, "")
	if err != nil {
		t.Fatal(err)
	}
	w.exec(w.source, fmt.Sprintf(`create publication %q for table docs with (publish_via_partition_root = true)`, s.Publication))
	w.register(docsSpec)
	w.run()
	w.live(docs)
	left, err := w.r.DeleteSource(t.Context(), "app", false)
	if err != nil || !strings.Contains(left, "DROP PUBLICATION") || !strings.Contains(left, s.Publication) || strings.Contains(left, "slot") {
		t.Errorf("left %q, %v", left, err)
	}
	w.want("in memory", w.query(w.memory.Pool, `select name from whence.sources`))
	w.want("in the source", w.query(w.source.Pool, `
select pubname::text from pg_publication union all select slot_name from pg_replication_slots where database = current_database() and not temporary`), s.Publication)
}

// Calls that register a table at once are answered alike: it is there.
func TestRegisteredTwiceAtOnce(t *testing.T) {
	w := newDocs(t)
	lock, err := w.memory.Pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lock.Exec(t.Context(), `lock whence.tables in share mode`); err != nil { // reading goes on
		t.Fatal(err)
	}
	spec := docsSpec
	spec.Source = "app"
	infos := make([]TableInfo, 3)
	var g errgroup.Group
	for i := range infos {
		g.Go(func() (err error) {
			infos[i], err = w.r.RegisterTable(t.Context(), spec)
			return err
		})
	}
	w.until("all are about to write", func() (bool, string) {
		n := w.query(w.memory.Pool, `select a.query from pg_stat_activity a where $1 = any(pg_blocking_pids(a.pid))`, lock.Conn().PgConn().PID())
		return len(n) == len(infos), fmt.Sprint(n)
	})
	if err := lock.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	for _, info := range infos {
		if info.ID != infos[0].ID || info.Definition != 1 || info.State != whence.TablePending {
			t.Errorf("%d %d %s, beside %d", info.ID, info.Definition, info.State, infos[0].ID)
		}
	}
}

func TestPurge(t *testing.T) {
	w := newDocs(t)
	spec := docsSpec
	spec.OnDelete = whence.OnDeletePurge
	w.exec(w.source, `insert into docs (id, title, owner) values (1, 'a secret', 'ann'), (2, 'another secret', 'ann')`)
	w.register(spec)
	w.run()
	info := w.live(docs)
	w.exec(w.source, `update docs set title = 'a changed secret' where id = 1`)
	w.exec(w.source, `delete from docs where id = 1`)
	w.caughtUp()
	w.equal(info)
	w.exec(w.source, `truncate docs`)
	w.caughtUp()
	w.want("what still tells of the secrets", w.query(w.memory.Pool, `
select 'a version' from whence.versions where text <> '' or columns <> '{}'
union all select 'a subject' from whence.records where subject is not null or attributes <> '{}'
union all select 'a chunk' from whence.chunks union all select 'a vector' from whence.vectors`))
}

// Two sinks of one source: what the slower one had begun cannot follow what the
// other one committed.
func TestSecondWriterIsFenced(t *testing.T) {
	w := newDocs(t)
	w.register(docsSpec)
	w.exec(w.memory, `insert into whence.checkpoints (source_id, lsn) select id, '0/100' from whence.sources`)
	w.exec(w.memory, `update whence.tables set state = 'LIVE', snapshot_lsn = null`)
	s, err := w.r.GetSource(t.Context(), "app")
	if err != nil {
		t.Fatal(err)
	}
	info, err := w.r.GetTable(t.Context(), docs)
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	sinks := []*sink{newSink(w.r, s, func() {}), newSink(w.r, s, func() {})}
	units := make([]cdc.Unit, 2)
	for i, k := range sinks {
		if lsn, _, err := k.Start(ctx); err != nil || lsn != 0x100 {
			t.Fatal(lsn, err)
		}
		if units[i], err = k.Begin(ctx); err != nil {
			t.Fatal(err)
		}
	}
	apply := func(i int) error { // other texts, or the second would wait for the first to commit
		row := whence.Values{"id": ptr(fmt.Sprint(i)), "title": ptr("title " + fmt.Sprint(i)), "body": nil, "owner": nil, "lang": nil, "at": nil}
		return units[i].Apply(ctx, []cdc.Change{{Table: info.ID, Op: cdc.Insert, Row: row, LSN: 0x150, XID: 7, CommitTime: time.Now()}})
	}
	for i := range units {
		if err := apply(i); err != nil {
			t.Fatal(err)
		}
	}
	if err := units[0].Commit(ctx, cdc.Progress{LSN: 0x200}); err != nil {
		t.Fatal(err)
	}
	if err := units[1].Commit(ctx, cdc.Progress{LSN: 0x180}); reason(err) != "CAPTURE_TAKEN_OVER" {
		t.Errorf("the second commit: %v", err)
	}
	if err := units[1].Rollback(ctx); err != nil {
		t.Fatal(err)
	}
	if err := sinks[1].Caught(ctx, cdc.Progress{LSN: 0x300}); reason(err) != "CAPTURE_TAKEN_OVER" {
		t.Errorf("the second's progress: %v", err)
	}
	w.want("records", w.query(w.memory.Pool, `select key from whence.records`), string(key(0)))

	// A unit that began under an older definition does not commit either.
	if units[0], err = sinks[0].Begin(ctx); err != nil {
		t.Fatal(err)
	}
	if err := apply(0); err != nil {
		t.Fatal(err)
	}
	spec := docsSpec
	spec.TextColumns = []string{"title"}
	w.register(spec)
	if err := units[0].Commit(ctx, cdc.Progress{LSN: 0x400}); reason(err) != "TABLE_REDEFINED" {
		t.Errorf("after a new definition: %v", err)
	}
	if err := units[0].Rollback(ctx); err != nil {
		t.Fatal(err)
	}
	// Nor is a snapshot from before it taken.
	if _, err := sinks[0].BackfillStart(ctx, info.ID, info.Definition+1, 0x400, 0); reason(err) != "BACKFILL_OUTDATED" {
		t.Errorf("an old snapshot: %v", err)
	}
}

func ptr(s string) *string { return &s }

func TestSourceThatCannotBeCaptured(t *testing.T) {
	t.Parallel()
	c := pgtest.OwnCluster(t, map[string]string{"wal_level": "replica"})
	w := newWorldWithoutSource(t)
	_, err := w.r.CreateSource(context.Background(), "app", c.DSN("postgres"), "")
	if reason(err) != "WAL_LEVEL_NOT_LOGICAL" {
		t.Error(err)
	}
}
