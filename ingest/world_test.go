package ingest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/index"
	"github.com/whence-db/whence/internal/pgtest"
	"github.com/whence-db/whence/internal/seal"
)

// world is a source, a memory database and, while it runs, a runner between them.
type world struct {
	t      *testing.T
	source *pgtest.DB
	memory *pgtest.DB
	r      *Registry

	meter Meter // of the runners; may be nil

	rewound bool // the source's log became another one, so positions may go back once

	stop func() // ends the runner and waits; nil while none runs
}

const waitLimit = 60 * time.Second

func newWorld(t *testing.T) *world {
	t.Helper()
	t.Parallel()
	source := pgtest.Empty(t)
	w := newWorldWithoutSource(t)
	w.source = source
	return w
}

func newWorldWithoutSource(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, memory: pgtest.New(t)}
	w.exec(w.memory, `insert into whence.spaces (model, dimensions, current) values ('test', 2, true)`)
	x, err := index.New(index.Config{Pool: w.memory.Pool})
	if err != nil {
		t.Fatal(err)
	}
	key, err := seal.ParseKey(seal.NewKey())
	if err != nil {
		t.Fatal(err)
	}
	if w.r, err = NewRegistry(Config{Pool: w.memory.Pool, Index: x, Seal: key}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.kill)
	t.Cleanup(w.r.Close)
	return w
}

// run starts a runner in the background.
func (w *world) run() {
	w.t.Helper()
	runner, err := NewRunner(RunnerConfig{Registry: w.r, Meter: w.meter, Poll: 100 * time.Millisecond, Log: slog.New(slog.NewTextHandler(testWriter{w.t}, nil))})
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- runner.Run(ctx) }()
	w.stop = func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			w.t.Errorf("the runner ended with %v", err)
		}
	}
}

func (w *world) kill() {
	if w.stop != nil {
		w.stop()
		w.stop = nil
	}
}

// testWriter logs through the test, which shows it only when the test fails.
type testWriter struct{ t *testing.T }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

func (w *world) exec(db *pgtest.DB, sql string, args ...any) {
	w.t.Helper()
	if _, err := db.Pool.Exec(context.Background(), sql, args...); err != nil {
		w.t.Fatalf("%s: %v", sql, err)
	}
}

func (w *world) query(pool *pgxpool.Pool, sql string, args ...any) []string {
	w.t.Helper()
	rows, err := pool.Query(context.Background(), sql, args...)
	if err != nil {
		w.t.Fatal(err)
	}
	out, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		w.t.Fatal(err)
	}
	return out
}

func (w *world) create() {
	w.t.Helper()
	if _, err := w.r.CreateSource(w.t.Context(), "app", w.source.DSN, ""); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) register(spec TableSpec) TableInfo {
	w.t.Helper()
	spec.Source = "app"
	t, err := w.r.RegisterTable(w.t.Context(), spec)
	if err != nil {
		w.t.Fatal(err)
	}
	return t
}

// live waits until a table is LIVE.
func (w *world) live(name whence.TableName) TableInfo {
	w.t.Helper()
	var info TableInfo
	w.until("the table is LIVE", func() (bool, string) {
		var err error
		if info, err = w.r.GetTable(w.t.Context(), name); err != nil {
			w.t.Fatal(err)
		}
		return info.State == whence.TableLive, fmt.Sprintf("%s %s", info.State, info.Error)
	})
	return info
}

func (w *world) until(what string, done func() (bool, string)) {
	w.t.Helper()
	deadline := time.Now().Add(waitLimit)
	for {
		ok, seen := done()
		if ok {
			return
		}
		if time.Now().After(deadline) {
			w.t.Fatalf("%v long it was not so that %s: %s", waitLimit, what, seen)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// caughtUp waits until everything that the source has committed by now is applied.
func (w *world) caughtUp() {
	w.t.Helper()
	var target whence.LSN
	if err := w.source.Pool.QueryRow(context.Background(), `select pg_current_wal_insert_lsn()`).Scan(&target); err != nil {
		w.t.Fatal(err)
	}
	w.until("the checkpoint is at the source's position", func() (bool, string) {
		s, err := w.r.GetSource(context.Background(), "app")
		if err != nil {
			w.t.Fatal(err)
		}
		return s.LSN >= target, fmt.Sprintf("%v < %v: %s %s", s.LSN, target, s.State, s.Error)
	})
}

// equal compares the index with the source, row by row: columns, text as
// rendered, and that the chunks hold that text and nothing else is left.
func (w *world) equal(t TableInfo) {
	w.t.Helper()
	fields := make([]string, 0, len(t.Columns()))
	for _, c := range t.Columns() {
		fields = append(fields, fmt.Sprintf("'%s', %s::text", strings.ReplaceAll(c, "'", "''"), pgx.Identifier{c}.Sanitize()))
	}
	want := map[whence.Key]string{}
	for _, s := range w.query(w.source.Pool, fmt.Sprintf(`select jsonb_build_object(%s)::text from %s`,
		strings.Join(fields, ", "), pgx.Identifier{t.Schema, t.Relation}.Sanitize())) {
		var row whence.Values
		if err := json.Unmarshal([]byte(s), &row); err != nil {
			w.t.Fatal(err)
		}
		key, err := whence.NewKey(t.KeyColumns, row)
		if err != nil {
			w.t.Fatal(err)
		}
		want[key] = describeRow(row, render(t.Table, row))
	}
	got := map[whence.Key]string{}
	rows, err := w.memory.Pool.Query(context.Background(), `
select r.key, v.columns::text, v.text, coalesce((select array_agg(c.text order by c.ordinal) from whence.chunks c
    where c.record_id = r.id and c.version = r.version), '{}')
from whence.records r join whence.versions v on v.record_id = r.id and v.version = r.version
where r.table_id = $1 and not r.deleted and r.missing is null`, t.ID)
	if err != nil {
		w.t.Fatal(err)
	}
	var key whence.Key
	var columns, text string
	var chunks []string
	_, err = pgx.ForEachRow(rows, []any{&key, &columns, &text, &chunks}, func() error {
		var row whence.Values
		if err := json.Unmarshal([]byte(columns), &row); err != nil {
			return err
		}
		var cut []string
		for _, s := range Split(text) {
			cut = append(cut, text[s.Start:s.End])
		}
		if d := cmp.Diff(append([]string{}, cut...), append([]string{}, chunks...)); d != "" {
			return fmt.Errorf("the chunks of %s (-text +chunks):\n%s", key, d)
		}
		got[key] = describeRow(row, text)
		return nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		w.t.Fatalf("%s (-source +index):\n%s", t.Name(), d)
	}
	w.cutAlike(t)
	invariants := map[string]string{
		"records that owe columns":         `select count(*)::text from whence.records where missing is not null and not deleted`,
		"chunks of deleted records":        `select count(*)::text from whence.chunks c join whence.records r on r.id = c.record_id where r.deleted`,
		"chunks without a vector's row":    `select count(*)::text from whence.chunks c where not exists (select from whence.vectors v where v.digest = c.digest)`,
		"superseded chunks without vector": `select count(*)::text from whence.chunks c join whence.records r on r.id = c.record_id join whence.vectors v on v.digest = c.digest where c.version < r.version and v.embedding is null`,
		"records not as old as their heads": `select count(*)::text from whence.records r join whence.versions v on v.record_id = r.id and v.version = r.version
where r.since <> coalesce(v.commit_time, v.captured_at)`,
		"versions that go backwards": `select count(*)::text from (select lsn < lag(lsn) over (partition by record_id order by version) as back from whence.versions) x where back`,
	}
	if w.rewound {
		delete(invariants, "versions that go backwards")
	}
	for what, sql := range invariants {
		if n := w.query(w.memory.Pool, sql)[0]; n != "0" {
			w.t.Errorf("%s %s", n, what)
		}
	}
}

// cutAlike checks that every version, past ones too, says where its chunks were.
func (w *world) cutAlike(t TableInfo) {
	w.t.Helper()
	rows, err := w.memory.Pool.Query(context.Background(), `
select v.text, v.spans from whence.versions v join whence.records r on r.id = v.record_id where r.table_id = $1 and v.text <> ''`, t.ID)
	if err != nil {
		w.t.Fatal(err)
	}
	var text string
	var spans []int32
	_, err = pgx.ForEachRow(rows, []any{&text, &spans}, func() error {
		want := []Span{}
		want = append(want, Split(text)...)
		got := []Span{}
		if spans == nil {
			got = append(got, Span{0, len(text)})
		}
		for i := 0; i+1 < len(spans); i += 2 {
			got = append(got, Span{int(spans[i]), int(spans[i+1])})
		}
		if d := cmp.Diff(want, got); d != "" {
			return fmt.Errorf("the spans of %.80q (-split +kept):\n%s", text, d)
		}
		spans = nil
		return nil
	})
	if err != nil {
		w.t.Error(err)
	}
}

func describeRow(row whence.Values, text string) string {
	b, _ := json.Marshal(row)
	return string(b) + " " + text
}

// versions lists the states of one record.
func (w *world) versions(key whence.Key) []string {
	w.t.Helper()
	return w.query(w.memory.Pool, `
select v.version || ' ' || case when v.deleted then 'deleted' else v.text end
from whence.versions v join whence.records r on r.id = v.record_id where r.key = $1 order by v.version`, string(key))
}
