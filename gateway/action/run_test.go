package action

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/ingest"
)

func TestSelectInsertUpdateDelete(t *testing.T) {
	w := open(t, tickets)
	w.register(ticketSpec)
	all := everything(t)
	before := w.rows("tickets")

	read := onRows(Select, ticketTable, []string{"id"}, nil)
	read.Row.Columns = []string{"title"}
	out, err := w.run(read, read.arguments(map[string]string{"id": "2"}, nil), all)
	w.check(err)
	id, title := "2", "two"
	if diff := cmp.Diff([]whence.Values{{"id": &id, "title": &title}}, out.Shown); diff != "" || out.Rows != 1 || out.Effects != nil {
		t.Errorf("read %+v: %s", out, diff)
	}

	insert := onRows(Insert, ticketTable, nil, []string{"title", "subject", "priority"})
	insert.Row.Columns = []string{"title"}
	made, err := w.run(insert, insert.arguments(nil, map[string]string{"title": "new", "priority": "7"}), all)
	w.check(err)
	if len(made.Effects) != 1 || made.Effects[0].Before != nil || *made.Effects[0].After["title"] != "new" || made.Effects[0].After["subject"] != nil {
		t.Errorf("inserted %+v", made.Effects)
	}
	if len(made.Shown) != 1 || len(made.Shown[0]) != 2 { // key and title
		t.Errorf("the insert shows %v", made.Shown)
	}

	update := onRows(Update, ticketTable, []string{"team"}, []string{"priority", "note"})
	update.Row.MaxRows = 2
	changed, err := w.run(update, update.arguments(map[string]string{"team": "red"}, map[string]string{"priority": "9"}), all)
	w.check(err)
	if changed.Rows != 2 || *changed.Effects[1].Before["priority"] != "2" || *changed.Effects[1].After["priority"] != "9" || changed.Effects[1].After["note"] != nil {
		t.Errorf("updated %+v", changed.Effects)
	}

	remove := onRows(Delete, ticketTable, []string{"id"}, nil)
	gone, err := w.run(remove, remove.arguments(map[string]string{"id": "3"}, nil), all)
	w.check(err)
	if gone.Rows != 1 || gone.Effects[0].After != nil || *gone.Effects[0].Before["title"] != "three" {
		t.Errorf("deleted %+v", gone.Effects)
	}
	none, err := w.run(remove, remove.arguments(map[string]string{"id": "3"}, nil), all)
	if err != nil || none.Rows != 0 {
		t.Errorf("a row that is not there: %+v, %v", none, err)
	}

	w.check(w.undo(remove, gone.Effects, all))
	w.check(w.undo(update, changed.Effects, all))
	w.check(w.undo(insert, made.Effects, all))
	if diff := cmp.Diff(before, w.rows("tickets")); diff != "" {
		t.Errorf("after undoing all: %s", diff)
	}
}

func TestNothingBeyondTheLimit(t *testing.T) {
	w := open(t, tickets)
	w.register(ticketSpec)
	before := w.rows("tickets")
	update := onRows(Update, ticketTable, []string{"subject"}, []string{"priority"})
	_, err := w.run(update, update.arguments(map[string]string{"subject": "ada"}, map[string]string{"priority": "9"}), everything(t))
	if refusal(err) != "ROWS_LIMIT" || !errors.Is(err, whence.ErrPrecondition) || meta(err, "maxRows") != "1" {
		t.Errorf("two rows where one may be touched: %v", err)
	}
	if diff := cmp.Diff(before, w.rows("tickets")); diff != "" {
		t.Errorf("it had an effect: %s", diff)
	}
}

func TestDryRunLeavesNothing(t *testing.T) {
	w := open(t, tickets, `create table parts (id int primary key, ticket bigint references tickets deferrable initially deferred, label text);
insert into parts values (1, 1, 'x')`)
	w.register(ticketSpec)
	w.register(ingest.TableSpec{Table: "public.parts", TextColumns: []string{"label"}})
	before := w.rows("tickets")
	update := onRows(Update, ticketTable, []string{"id"}, []string{"title"})
	args, err := Arguments(update, update.arguments(map[string]string{"id": "1"}, map[string]string{"title": "changed"}))
	w.check(err)
	request := Request{Action: update, Args: args, Scope: everything(t)}
	preview, err := w.runner.DryRun(t.Context(), request)
	w.check(err)
	if preview.Rows != 1 || *preview.Effects[0].After["title"] != "changed" {
		t.Errorf("previewed %+v", preview)
	}
	if diff := cmp.Diff(before, w.rows("tickets")); diff != "" {
		t.Errorf("a dry run wrote: %s", diff)
	}
	// A constraint that is asked only at the end is asked in a dry run too.
	move := onRows(Update, "app.public.parts", []string{"id"}, []string{"ticket"})
	if args, err = Arguments(move, move.arguments(map[string]string{"id": "1"}, map[string]string{"ticket": "99"})); err != nil {
		t.Fatal(err)
	}
	_, err = w.runner.DryRun(t.Context(), Request{Action: move, Args: args, Scope: everything(t)})
	if refusal(err) != "CONSTRAINT_VIOLATED" || meta(err, "constraint") != "parts_ticket_fkey" {
		t.Errorf("a deferred constraint in a dry run: %v", err)
	}

	// What was previewed is what is run, or nothing is.
	request.Expect = preview.Effects
	w.exec(`update tickets set note = 'by hand' where id = 1`)
	var k kept
	if _, err := w.runner.Run(t.Context(), request, k.prepare); refusal(err) != "PREVIEW_STALE" {
		t.Errorf("a row that changed since its preview: %v", err)
	}
	w.exec(`update tickets set note = null where id = 1`)
	if _, err := w.runner.Run(t.Context(), request, k.prepare); err != nil {
		t.Errorf("a row that is as previewed: %v", err)
	}
	request.Expect = []Effect{}
	if _, err := w.runner.Run(t.Context(), request, k.prepare); refusal(err) != "PREVIEW_STALE" {
		t.Errorf("a row where none was previewed: %v", err)
	}
}

func TestPrepareThatFailsPreventsTheEffect(t *testing.T) {
	w := open(t, tickets)
	w.register(ticketSpec)
	before := w.rows("tickets")
	remove := onRows(Delete, ticketTable, []string{"id"}, nil)
	args, err := Arguments(remove, remove.arguments(map[string]string{"id": "1"}, nil))
	w.check(err)
	full := errors.New("full")
	var seen Outcome
	_, err = w.runner.Run(t.Context(), Request{Action: remove, Args: args, Scope: everything(t)}, func(_ context.Context, out Outcome) error {
		seen = out
		return full
	})
	if !errors.Is(err, full) {
		t.Errorf("a failed prepare: %v", err)
	}
	if diff := cmp.Diff(before, w.rows("tickets")); diff != "" {
		t.Errorf("it had an effect: %s", diff)
	}
	if fate, err := w.runner.Fate(t.Context(), "app", seen.XID, seen.SystemID, seen.Timeline); fate != Aborted || err != nil {
		t.Errorf("its fate is %s, %v", fate, err)
	}
	if _, err := w.runner.Run(t.Context(), Request{Action: remove, Args: args, Scope: everything(t)}, nil); err == nil {
		t.Error("a write that nobody writes down was run")
	}
}

func TestRefusalsOfTheSource(t *testing.T) {
	w := open(t, tickets, `create table limited (id int primary key, short varchar(3), n smallint, at timestamptz)`)
	w.register(ticketSpec)
	w.register(ingest.TableSpec{Table: "public.limited", TextColumns: []string{"short"}})
	all := everything(t)
	insert := onRows(Insert, ticketTable, nil, []string{"id", "title", "priority", "code"})
	for name, c := range map[string]struct {
		set            map[string]string
		constraint, of string
	}{
		"unique":   {map[string]string{"title": "x", "code": "A"}, "tickets_code_key", "CONSTRAINT_VIOLATED"},
		"key":      {map[string]string{"title": "x", "id": "1"}, "tickets_pkey", "CONSTRAINT_VIOLATED"},
		"check":    {map[string]string{"title": "x", "priority": "10"}, "tickets_priority_check", "CONSTRAINT_VIOLATED"},
		"not null": {map[string]string{"code": "Z"}, "", "CONSTRAINT_VIOLATED"},
	} {
		_, err := w.run(insert, insert.arguments(nil, c.set), all)
		if refusal(err) != c.of || !errors.Is(err, whence.ErrPrecondition) || meta(err, "constraint") != c.constraint || meta(err, "table") != string(ticketTable) {
			t.Errorf("%s: %v, constraint %q", name, err, meta(err, "constraint"))
		}
		if name == "not null" && meta(err, "column") != "title" {
			t.Errorf("the column without a value is %q", meta(err, "column"))
		}
	}
	limited := onRows(Insert, "app.public.limited", nil, []string{"id", "short", "n", "at"})
	for column, value := range map[string]string{"short": "long", "n": "70000", "at": "yesterday-ish"} {
		_, err := w.run(limited, limited.arguments(nil, map[string]string{"id": "1", column: value}), all)
		if want := "arguments." + limited.Row.Set[column].Parameter; refusal(err) != "ARGUMENTS_INVALID" || field(err) != want || meta(err, "column") != column {
			t.Errorf("%s = %q: %v about %q, not %q", column, value, err, field(err), want)
		}
	}
	if got := w.rows("limited"); len(got) != 0 {
		t.Errorf("a refused insert left %v", got)
	}
}

func TestLocksAreNotWaitedForLong(t *testing.T) {
	w := open(t, tickets)
	w.register(ticketSpec)
	w.runner.lockWait = 50 * time.Millisecond
	tx, err := w.source.Pool.Begin(t.Context())
	w.check(err)
	defer func() { _ = tx.Rollback(context.Background()) }()
	_, err = tx.Exec(t.Context(), `update tickets set note = 'mine' where id = 1`)
	w.check(err)
	update := onRows(Update, ticketTable, []string{"id"}, []string{"note"})
	_, err = w.run(update, update.arguments(map[string]string{"id": "1"}, map[string]string{"note": "x"}), everything(t))
	var e *whence.Error
	if !errors.As(err, &e) || e.Reason != "ROW_LOCKED" || !errors.Is(err, whence.ErrAborted) || e.RetryAfter == 0 {
		t.Errorf("a locked row: %v", err)
	}
}

func TestTheRoleMayNotWrite(t *testing.T) {
	w := open(t, tickets)
	w.register(ticketSpec)
	role := "reader_" + w.source.Name[:min(20, len(w.source.Name))]
	w.exec(`create role "` + role + `" login`)
	t.Cleanup(func() {
		w.exec(`drop owned by "` + role + `"`)
		w.exec(`drop role "` + role + `"`)
	})
	w.exec(`grant select, insert on tickets to "` + role + `"`)
	update := onRows(Update, ticketTable, []string{"id"}, []string{"note"})
	w.as(role, func() {
		if err := w.runner.Check(t.Context(), update); refusal(err) != "SOURCE_REFUSED" || meta(err, "privilege") != "update" {
			t.Errorf("a role that may only read: %v", err)
		}
	})
	w.exec(`grant update on tickets to "` + role + `"`)
	w.as(role, func() { w.check(w.runner.Check(t.Context(), update)) })
	w.exec(`alter database "` + w.source.Name + `" set default_transaction_read_only = on`)
	w.registry.Close()
	if err := w.runner.Check(t.Context(), update); refusal(err) != "SOURCE_READ_ONLY" {
		t.Errorf("a database that is read-only by default: %v", err)
	}
}

// as has new connections to the source take another role on, while fn runs.
func (w *world) as(role string, fn func()) {
	w.t.Helper()
	w.registry.Close()
	w.exec(`alter database "` + w.source.Name + `" set role = '` + role + `'`)
	defer func() {
		w.registry.Close()
		w.exec(`alter database "` + w.source.Name + `" reset role`)
	}()
	fn()
}
