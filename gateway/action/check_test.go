package action

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/ingest"
)

// What undo could not take back by the rows alone is refused, when the action is
// registered and again when it runs.
func TestWhatReachesFurtherIsNotReversible(t *testing.T) {
	for name, c := range map[string]struct {
		ddl    string
		op     Operation
		reason string // what the refusal names; empty: nothing is refused
	}{
		"nothing":                          {``, Update, ""},
		"trigger on the operation":         {`create trigger touch before update on tickets for each row execute function quiet()`, Update, "touch"},
		"trigger of a statement":           {`create trigger touch after delete on tickets for each statement execute function quiet()`, Delete, "touch"},
		"trigger on what undo does":        {`create trigger touch after insert on tickets for each row execute function quiet()`, Delete, "touch"},
		"trigger on another operation":     {`create trigger touch after delete on tickets for each row execute function quiet()`, Update, ""},
		"trigger that is off":              {`create trigger touch before update on tickets for each row execute function quiet(); alter table tickets disable trigger touch`, Update, ""},
		"cascade on delete":                {`create table parts (t bigint constraint by_t references tickets on delete cascade)`, Delete, "by_t"},
		"set null on delete":               {`create table parts (t bigint constraint by_t references tickets on delete set null)`, Delete, "by_t"},
		"set default on delete":            {`create table parts (t bigint default 1 constraint by_t references tickets on delete set default)`, Delete, "by_t"},
		"restrict on delete":               {`create table parts (t bigint constraint by_t references tickets on delete restrict)`, Delete, ""},
		"cascade on delete, an update":     {`create table parts (t bigint constraint by_t references tickets on delete cascade)`, Update, ""},
		"cascade on update of what is set": {`create table parts (t text constraint by_t references tickets (code) on update cascade)`, Update, "by_t"},
		"cascade on update of another":     {`create table parts (t bigint constraint by_t references tickets (id) on update cascade)`, Update, ""},
		"rule":                             {`create rule elsewhere as on update to tickets do instead nothing`, Update, "rule"},
	} {
		t.Run(name, func(t *testing.T) {
			w := open(t, tickets, `create function quiet() returns trigger language plpgsql as 'begin return coalesce(new, old); end'`)
			w.register(ticketSpec)
			d := onRows(c.op, ticketTable, []string{"id"}, nil)
			if c.op == Update {
				d = onRows(c.op, ticketTable, []string{"id"}, []string{"code"})
			}
			w.check(w.runner.Check(t.Context(), d))
			if c.ddl != "" {
				w.exec(c.ddl)
			}
			before := w.rows("tickets")
			err := w.runner.Check(t.Context(), d)
			args, _ := Arguments(d, d.arguments(map[string]string{"id": "1"}, map[string]string{}))
			if c.op == Update {
				args, _ = Arguments(d, d.arguments(map[string]string{"id": "1"}, map[string]string{"code": "X"}))
			}
			var k kept
			_, ran := w.runner.Run(t.Context(), Request{Action: d, Args: args, Scope: everything(t)}, k.prepare)
			if c.reason == "" {
				if err != nil || ran != nil {
					t.Errorf("refused: %v, %v", err, ran)
				}
				return
			}
			var told *whence.Error
			if errors.As(ran, &told); told == nil || !errors.Is(ran, whence.ErrPrecondition) || strings.Contains(told.Message, "touch") {
				t.Errorf("an agent is told: %v", told)
			}
			for _, err := range []error{err, ran} {
				if refusal(err) != "ACTION_INVALID" || !strings.Contains(err.Error(), c.reason) {
					t.Errorf("%v does not name %q", err, c.reason)
				}
			}
			if diff := cmp.Diff(before, w.rows("tickets")); diff != "" {
				t.Errorf("it had an effect: %s", diff)
			}
			if c.reason == "rule" {
				return
			}
			d.Tier, d.IrreversibleBecause = authz.TierIrreversible, "it reaches further"
			if err := w.runner.Check(t.Context(), d); err != nil {
				t.Errorf("as an irreversible action: %v", err)
			}
		})
	}
}

func TestTriggersThatStayWithinTheRow(t *testing.T) {
	w := open(t, tickets, `create function stamp() returns trigger language plpgsql as 'begin new.note := ''stamped '' || coalesce(new.title, ''''); return new; end';
create function louder() returns trigger language plpgsql as 'begin update tickets set priority = 8 where id = new.id and priority <> 8; return null; end';
create function keep() returns trigger language plpgsql as 'begin return null; end';
create trigger stamp before update on tickets for each row execute function stamp();
create trigger louder after update on tickets for each row when (pg_trigger_depth() = 0) execute function louder()`)
	w.register(ticketSpec)
	all := everything(t)
	d := onRows(Update, ticketTable, []string{"id"}, []string{"title"})
	d.Row.TriggersStayWithinRow = true
	out, err := w.run(d, d.arguments(map[string]string{"id": "1"}, map[string]string{"title": "new"}), all)
	w.check(err)
	// The image is the row as it ended up, whichever trigger wrote last.
	if e := out.Effects[0]; *e.After["note"] != "stamped new" || *e.After["priority"] != "8" {
		t.Errorf("the row ended up as %v", e.After)
	}
	w.check(w.undo(d, out.Effects, all))
	if got := w.rows("tickets")[0]; !strings.HasPrefix(got, "(1,ada,red,one,") {
		t.Errorf("undone: %s", got)
	}
	w.exec(`create trigger keep before delete on tickets for each row execute function keep()`)
	remove := onRows(Delete, ticketTable, []string{"id"}, nil)
	remove.Row.TriggersStayWithinRow = true
	if _, err := w.run(remove, remove.arguments(map[string]string{"id": "1"}, nil), all); refusal(err) != "TRIGGER_INTERFERED" {
		t.Errorf("a delete that a trigger swallows: %v", err)
	}
}

func TestLiveTableIsAsked(t *testing.T) {
	w := open(t, tickets)
	w.register(ticketSpec)
	for name, d := range map[string]Definition{
		"row.where": onRows(Update, ticketTable, []string{"absent"}, []string{"title"}),
		"row.set":   onRows(Update, ticketTable, []string{"id"}, []string{"absent"}),
		"row.columns": func() Definition {
			d := onRows(Delete, ticketTable, []string{"id"}, nil)
			d.Row.Columns = []string{"absent"}
			return d
		}(),
	} {
		if err := w.runner.Check(t.Context(), d); refusal(err) != "ACTION_INVALID" || field(err) != name {
			t.Errorf("%s: %v about %q", name, err, field(err))
		}
	}
	other := onRows(Delete, "app.public.others", []string{"id"}, nil)
	if err := w.runner.Check(t.Context(), other); refusal(err) != "TABLE_NOT_REGISTERED" {
		t.Errorf("a table that is not registered: %v", err)
	}
	w.exec(`alter table tickets drop constraint tickets_pkey`)
	if err := w.runner.Check(t.Context(), onRows(Delete, ticketTable, []string{"id"}, nil)); refusal(err) != "ACTION_INVALID" || field(err) != "tier" {
		t.Errorf("a table without a key: %v", err)
	}
}

// Rows of a partitioned table move between partitions; those of tables that inherit
// from one are not its own.
func TestPartitionsAndHeirs(t *testing.T) {
	w := open(t, `create table parted (id int, part int, label text, primary key (id, part)) partition by list (part);
create table p1 partition of parted for values in (1);
create table p2 partition of parted for values in (2);
insert into parted values (1, 1, 'a'), (2, 2, 'b');
create table parent (id int primary key, label text);
create table heir () inherits (parent);
insert into parent values (1, 'parent');
insert into heir values (1, 'heir'), (2, 'heir')`)
	w.register(ingest.TableSpec{Table: "public.parted", TextColumns: []string{"label"}})
	w.register(ingest.TableSpec{Table: "public.parent", TextColumns: []string{"label"}})
	all := everything(t)
	before := append(w.rows("parted"), w.rows("parent")...)
	move := onRows(Update, "app.public.parted", []string{"id"}, []string{"part"})
	moved, err := w.run(move, move.arguments(map[string]string{"id": "1"}, map[string]string{"part": "2"}), all)
	w.check(err)
	if got := w.rows("p2"); len(got) != 2 {
		t.Errorf("the row did not move: %v", got)
	}
	w.check(w.undo(move, moved.Effects, all))
	remove := onRows(Delete, "app.public.parent", []string{"id"}, nil)
	gone, err := w.run(remove, remove.arguments(map[string]string{"id": "1"}, nil), all)
	w.check(err)
	if gone.Rows != 1 || *gone.Effects[0].Before["label"] != "parent" || len(w.rows("heir")) != 2 {
		t.Errorf("removed %+v", gone.Effects)
	}
	if heirs, err := w.run(remove, remove.arguments(map[string]string{"id": "2"}, nil), all); err != nil || heirs.Rows != 0 {
		t.Errorf("an heir's row: %d, %v", heirs.Rows, err)
	}
	w.check(w.undo(remove, gone.Effects, all))
	if diff := cmp.Diff(before, append(w.rows("parted"), w.rows("parent")...)); diff != "" {
		t.Errorf("after undo: %s", diff)
	}
	w.exec(`create function quiet() returns trigger language plpgsql as 'begin return new; end'; create trigger hidden after update on p2 for each row execute function quiet()`)
	if err := w.runner.Check(t.Context(), move); refusal(err) != "ACTION_INVALID" {
		t.Errorf("a trigger on a partition: %v", err)
	}
}

// A table that leaves nothing of what is deleted has nothing to bring back.
func TestWhatIsPurgedIsNotReversible(t *testing.T) {
	w := open(t, tickets)
	spec := ticketSpec
	spec.OnDelete = whence.OnDeletePurge
	w.register(spec)
	remove := onRows(Delete, ticketTable, []string{"id"}, nil)
	if err := w.runner.Check(t.Context(), remove); refusal(err) != "ACTION_INVALID" || field(err) != "tier" || !strings.Contains(err.Error(), "purges") {
		t.Errorf("a reversible delete: %v", err)
	}
	remove.Tier, remove.IrreversibleBecause = authz.TierIrreversible, "it is purged"
	w.check(w.runner.Check(t.Context(), remove))
	w.check(w.runner.Check(t.Context(), onRows(Update, ticketTable, []string{"id"}, []string{"code"})))
}
