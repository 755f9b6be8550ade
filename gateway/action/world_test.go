package action

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/authz/authztest"
	"github.com/whence-db/whence/index"
	"github.com/whence-db/whence/ingest"
	"github.com/whence-db/whence/internal/pgtest"
	"github.com/whence-db/whence/internal/seal"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

// world is a source with registered tables, and a runner on it.
type world struct {
	t        *testing.T
	source   *pgtest.DB
	memory   *pgtest.DB
	registry *ingest.Registry
	runner   *Runner
}

func open(t *testing.T, ddl ...string) *world {
	t.Helper()
	t.Parallel()
	source := pgtest.Empty(t)
	return openAt(t, source, source.DSN, ddl...)
}

// openAt is open with a source that is reached by another way than the tests' own.
func openAt(t *testing.T, source *pgtest.DB, dsn string, ddl ...string) *world {
	t.Helper()
	w := &world{t: t, source: source, memory: pgtest.New(t)}
	for _, s := range ddl {
		w.exec(s)
	}
	x, err := index.New(index.Config{Pool: w.memory.Pool})
	w.check(err)
	key, err := seal.ParseKey(seal.NewKey())
	w.check(err)
	log := slog.New(slog.NewTextHandler(testWriter{t}, nil))
	w.registry, err = ingest.NewRegistry(ingest.Config{Pool: w.memory.Pool, Index: x, Seal: key, Log: log})
	w.check(err)
	t.Cleanup(w.registry.Close)
	_, err = w.registry.CreateSource(t.Context(), "app", dsn, "")
	w.check(err)
	w.runner, err = NewRunner(Config{Registry: w.registry, Log: log})
	w.check(err)
	return w
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

func (w *world) check(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) exec(sql string, args ...any) {
	w.t.Helper()
	if _, err := w.source.Pool.Exec(context.Background(), sql, args...); err != nil {
		w.t.Fatalf("%s: %v", sql, err)
	}
}

// rows is a whole table as text, byte for byte.
func (w *world) rows(table string) []string {
	w.t.Helper()
	rows, err := w.source.Pool.Query(context.Background(), "select (t.*)::text from "+table+" t order by 1")
	w.check(err)
	out, err := pgx.CollectRows(rows, pgx.RowTo[string])
	w.check(err)
	return out
}

func (w *world) register(spec ingest.TableSpec) {
	w.t.Helper()
	spec.Source = "app"
	_, err := w.registry.RegisterTable(w.t.Context(), spec)
	w.check(err)
}

// everything is a scope of all rows.
func everything(t *testing.T) authz.Scope {
	t.Helper()
	return authztest.Scope(t, authz.ScopeSpec{AllTables: true, AllSubjects: true, Actions: authz.Actions(), Tier: authz.TierIrreversible})
}

// kept is a prepare that writes down what it got.
type kept struct{ out Outcome }

func (k *kept) prepare(_ context.Context, out Outcome) error {
	b, err := json.Marshal(out) // as it would be stored
	if err != nil {
		return err
	}
	k.out = Outcome{}
	return json.Unmarshal(b, &k.out)
}

// run runs an action and returns what was written down of it.
func (w *world) run(d Definition, raw map[string]any, scope authz.Scope) (Outcome, error) {
	w.t.Helper()
	w.check(d.Validate())
	w.check(w.runner.Check(w.t.Context(), d))
	args, err := Arguments(d, raw)
	w.check(err)
	var k kept
	res, err := w.runner.Run(w.t.Context(), Request{Action: d, Args: args, Scope: scope}, k.prepare)
	if err == nil && res.Token == "" && d.Tier != authz.TierRead {
		w.t.Error("a write gave no token")
	}
	if err == nil && d.Tier != authz.TierRead {
		if diff := cmp.Diff(res.Effects, k.out.Effects); diff != "" {
			w.t.Errorf("what was written down is not what was returned: %s", diff)
		}
	}
	if d.Tier == authz.TierRead {
		return res.Outcome, err
	}
	return k.out, err
}

func (w *world) undo(d Definition, effects []Effect, scope authz.Scope) error {
	w.t.Helper()
	var k kept
	_, err := w.runner.Undo(w.t.Context(), d, effects, scope, k.prepare)
	return err
}

// refusal is the reason of an error; empty when there is none, or it is not a
// caller's.
func refusal(err error) string {
	var e *whence.Error
	if errors.As(err, &e) {
		return e.Reason
	}
	if err != nil {
		return "? " + err.Error()
	}
	return ""
}

func meta(err error, key string) string {
	var e *whence.Error
	errors.As(err, &e)
	if e == nil {
		return ""
	}
	return e.Metadata[key]
}

func field(err error) string {
	var e *whence.Error
	errors.As(err, &e)
	if e == nil {
		return ""
	}
	return e.Field
}

// onRows defines a reversible action whose parameters are its columns, of text type:
// Postgres makes of them what the columns are.
func onRows(op Operation, table whence.TableName, where, set []string) Definition {
	d := Definition{Name: "test." + strings.ToLower(string(op)), Description: "a test", Tier: authz.TierReversible,
		Row: &RowAction{Table: table, Operation: op, MaxRows: 1}}
	if op == Select {
		d.Tier = authz.TierRead
	}
	names := map[string]string{}
	parameter := func(prefix, column string, required bool) Operand {
		name := prefix + string(rune('a'+len(names)%26)) + string(rune('a'+len(names)/26))
		names[name] = column
		d.Parameters = append(d.Parameters, Parameter{Name: name, Type: Text, Required: required})
		return Operand{Parameter: name}
	}
	for i, c := range where {
		if i == 0 {
			d.Row.Where = map[string]Operand{}
		}
		d.Row.Where[c] = parameter("w", c, true)
	}
	for i, c := range set {
		if i == 0 {
			d.Row.Set = map[string]Operand{}
		}
		d.Row.Set[c] = parameter("s", c, false)
	}
	return d
}

// arguments gives columns to the parameters that they were made.
func (d Definition) arguments(where, set map[string]string) map[string]any {
	raw := map[string]any{}
	for _, m := range []struct {
		values   map[string]string
		operands map[string]Operand
	}{{where, d.Row.Where}, {set, d.Row.Set}} {
		for _, c := range slices.Sorted(maps.Keys(m.values)) {
			raw[m.operands[c].Parameter] = m.values[c]
		}
	}
	return raw
}

const tickets = `
create table tickets (id bigint generated by default as identity (start 100) primary key, subject text, team text, title text not null,
    note text, priority int check (priority between 0 and 9), code text unique);
insert into tickets (id, subject, team, title, priority, code) values
    (1, 'ada', 'red', 'one', 1, 'A'), (2, 'bob', 'red', 'two', 2, 'B'), (3, null, 'blue', 'three', 3, 'C'), (4, 'ada', 'blue', 'four', 4, 'D'),
    (5, '', null, 'five', 5, 'E')`

var ticketSpec = ingest.TableSpec{Table: "public.tickets", TextColumns: []string{"title"}, SubjectColumn: "subject", AttributeColumns: []string{"team"}}

const ticketTable = whence.TableName("app.public.tickets")
