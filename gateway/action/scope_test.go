package action

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strconv"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/authz/authztest"
	"github.com/whence-db/whence/ingest"
)

type scopeCases struct {
	Cases []struct {
		Scope   authz.ScopeSpec
		Sees    []int
		Refused string
	}
	Writes []struct {
		Scope   authz.ScopeSpec
		ID      int // 0: an insert
		Set     map[string]string
		Refused string
	}
}

func readScopes(t *testing.T) (c scopeCases) {
	t.Helper()
	b, err := os.ReadFile("testdata/scopes.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &c); err != nil {
		t.Fatal(err)
	}
	return c
}

// What a scope does not hold can be neither read nor changed nor removed, and looks
// like what is not there.
func TestScopeBoundsWhatIsTouched(t *testing.T) {
	w := open(t, tickets)
	w.register(ticketSpec)
	for i, c := range readScopes(t).Cases {
		scope := authztest.Scope(t, c.Scope)
		for _, op := range []Operation{Select, Update, Delete} {
			var set []string
			values := map[string]string{}
			if op == Update {
				set, values = []string{"note"}, map[string]string{"note": "seen"}
			}
			d := onRows(op, ticketTable, []string{"id"}, set)
			var touched []int
			for id := 1; id <= 5; id++ {
				out, err := w.run(d, d.arguments(map[string]string{"id": strconv.Itoa(id)}, values), scope)
				if refusal(err) != c.Refused {
					t.Errorf("case %d: %s of row %d: %v, not %q", i, op, id, err, c.Refused)
				}
				if out.Rows == 1 {
					touched = append(touched, id)
				}
				if op != Select {
					w.check(w.undo(d, out.Effects, everything(t)))
				}
			}
			if !slices.Equal(touched, c.Sees) {
				t.Errorf("case %d, %+v: %s touches %v, not %v", i, c.Scope, op, touched, c.Sees)
			}
		}
	}
}

func TestScopeBoundsWhatIsWritten(t *testing.T) {
	w := open(t, tickets)
	w.register(ticketSpec)
	for i, c := range readScopes(t).Writes {
		before := w.rows("tickets")
		var columns []string
		for name := range c.Set {
			columns = append(columns, name)
		}
		d, where := onRows(Insert, ticketTable, nil, columns), map[string]string(nil)
		if c.ID != 0 {
			d, where = onRows(Update, ticketTable, []string{"id"}, columns), map[string]string{"id": fmt.Sprint(c.ID)}
		}
		scope := authztest.Scope(t, c.Scope)
		out, err := w.run(d, d.arguments(where, c.Set), scope)
		if refusal(err) != c.Refused {
			t.Errorf("write %d: %v, not %q", i, err, c.Refused)
		}
		if err == nil {
			if out.Rows != 1 {
				t.Errorf("write %d touched %d rows", i, out.Rows)
			}
			w.check(w.undo(d, out.Effects, scope))
		}
		if diff := cmp.Diff(before, w.rows("tickets")); diff != "" {
			t.Errorf("write %d left something: %s", i, diff)
		}
	}
}

// A row that has left the scope meanwhile is not undone into, and is not told from
// one that is gone.
func TestUndoKeepsToTheScope(t *testing.T) {
	w := open(t, tickets)
	w.register(ticketSpec)
	d := onRows(Update, ticketTable, []string{"id"}, []string{"note"})
	out, err := w.run(d, d.arguments(map[string]string{"id": "1"}, map[string]string{"note": "x"}), everything(t))
	w.check(err)
	bob := authztest.Scope(t, authz.ScopeSpec{AllTables: true, Subjects: []string{"bob"}})
	if err := w.undo(d, out.Effects, bob); refusal(err) != "UNDO_CONFLICT" || meta(err, "missing") != "true" {
		t.Errorf("another's row: %v", err)
	}
	remove := onRows(Delete, ticketTable, []string{"id"}, nil)
	if out, err = w.run(remove, remove.arguments(map[string]string{"id": "1"}, nil), everything(t)); err != nil {
		t.Fatal(err)
	}
	if err := w.undo(remove, out.Effects, bob); refusal(err) != "ROW_OUT_OF_SCOPE" {
		t.Errorf("bringing another's row back: %v", err)
	}
}

// Subjects and attributes are what capture makes of them, whatever the column's type.
func TestScopeComparesOutputForms(t *testing.T) {
	w := open(t, `create table flags (id int primary key, open bool, at timestamptz, c char(4), label text);
insert into flags values (1, true, '2020-01-01 02:00+02', 'ab', 'x'), (2, false, null, null, 'y')`)
	w.register(ingest.TableSpec{Table: "public.flags", TextColumns: []string{"label"}, SubjectColumn: "open", AttributeColumns: []string{"at", "c"}})
	d := onRows(Select, "app.public.flags", []string{"id"}, nil)
	for _, c := range []struct {
		scope authz.ScopeSpec
		rows  int
	}{
		{authz.ScopeSpec{AllTables: true, Subjects: []string{"t"}}, 1},
		{authz.ScopeSpec{AllTables: true, Subjects: []string{"true"}}, 0},
		{authz.ScopeSpec{AllTables: true, AllSubjects: true, Filter: map[string]string{"at": "2020-01-01 00:00:00+00"}}, 1},
		{authz.ScopeSpec{AllTables: true, AllSubjects: true, Filter: map[string]string{"c": "ab  "}}, 1},
		{authz.ScopeSpec{AllTables: true, AllSubjects: true, Filter: map[string]string{"c": "ab"}}, 0},
	} {
		out, err := w.run(d, d.arguments(map[string]string{"id": "1"}, nil), authztest.Scope(t, c.scope))
		if err != nil || out.Rows != c.rows {
			t.Errorf("%+v: %d rows, %v", c.scope, out.Rows, err)
		}
	}
}
