package action

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/ingest"
)

const shelf = `
create table shelf (a int, b text, n numeric, j jsonb, made text generated always as (coalesce(b, '') || '!') stored, serial int generated always as identity,
    u int unique, primary key (a, b))`

// done is an action that ran, to be taken back.
type done struct {
	d       Definition
	effects []Effect
}

// Any reversible actions, undone newest first, leave the table as it was, byte for
// byte; where somebody else wrote between, the conflict names the row or the
// constraint, and leaves everything as it is.
func TestUndoTakesAnythingBack(t *testing.T) {
	w := open(t, shelf)
	w.register(ingest.TableSpec{Table: "public.shelf", TextColumns: []string{"b"}})
	all := everything(t)
	const table = whence.TableName("app.public.shelf")
	definitions := map[string]Definition{
		"insert":    onRows(Insert, table, nil, []string{"a", "b", "n", "j", "u"}),
		"update":    onRows(Update, table, []string{"a"}, []string{"n", "j", "u"}),
		"rename":    onRows(Update, table, []string{"a", "b"}, []string{"b"}),
		"delete":    onRows(Delete, table, []string{"a"}, nil),
		"delete by": onRows(Delete, table, []string{"b"}, nil),
	}
	names := []string{"insert", "update", "rename", "delete", "delete by"}
	ran, conflicts := 0, 0
	rapid.Check(t, func(rt *rapid.T) {
		w.exec(`truncate shelf`)
		for i := range rapid.IntRange(0, 4).Draw(rt, "rows") {
			w.exec(`insert into shelf (a, b, n, j, u) values ($1, $2, 'NaN', '{"z":1,"a":[1.0]}', $3)`, i%3, fmt.Sprint("b", i%2, i/3), i)
		}
		states := [][]string{w.rows("shelf")}
		var history []done
		for range rapid.IntRange(1, 6).Draw(rt, "actions") {
			name := rapid.SampledFrom(names).Draw(rt, "action")
			d := definitions[name]
			row := *d.Row
			row.MaxRows = map[bool]int{true: 1, false: rapid.IntRange(1, 3).Draw(rt, "limit")}[name == "insert"]
			d.Row = &row
			draw := func(operands map[string]Operand, must bool) map[string]string {
				out := map[string]string{}
				for _, c := range slices.Sorted(maps.Keys(operands)) {
					if !must && c != "a" && c != "b" && rapid.Bool().Draw(rt, "leave "+c) {
						continue
					}
					out[c] = rapid.SampledFrom(map[string][]string{"a": {"0", "1", "2"}, "b": {"b00", "b10", "", "é\"'"}, "n": {"1.10", "Infinity", "-0.0"},
						"j": {`{"b": 1, "aa": null}`, `null`}, "u": {"0", "1", "2", "7", "8"}}[c]).Draw(rt, c)
				}
				return out
			}
			args, err := Arguments(d, d.arguments(draw(d.Row.Where, true), draw(d.Row.Set, false)))
			if err != nil {
				rt.Fatal(err)
			}
			var k kept
			_, err = w.runner.Run(t.Context(), Request{Action: d, Args: args, Scope: all}, k.prepare)
			switch refusal(err) {
			case "":
				ran++
				history, states = append(history, done{d, k.out.Effects}), append(states, w.rows("shelf"))
			case "CONSTRAINT_VIOLATED", "ROWS_LIMIT", "ARGUMENTS_INVALID":
				if diff := cmp.Diff(states[len(states)-1], w.rows("shelf")); diff != "" {
					rt.Fatalf("%s was refused and had an effect: %s", name, diff)
				}
			default:
				rt.Fatalf("%s: %v", name, err)
			}
		}
		if len(history) > 0 && rapid.Bool().Draw(rt, "somebody writes") {
			w.interfere(rt, history[len(history)-1], all)
			conflicts++
			return
		}
		for i, h := range slices.Backward(history) {
			var k kept
			if _, err := w.runner.Undo(t.Context(), h.d, h.effects, all, k.prepare); err != nil {
				rt.Fatalf("undo of %s: %v", h.d.Name, err)
			}
			if diff := cmp.Diff(states[i], w.rows("shelf")); diff != "" {
				rt.Fatalf("after undoing %s: %s", h.d.Name, diff)
			}
		}
	})
	if ran == 0 || conflicts == 0 {
		t.Errorf("%d actions ran, %d times somebody wrote between: the property was not put to the test", ran, conflicts)
	}
}

// interfere has somebody else write to, or take the place of, a row that an action
// touched, and expects undo to say so.
func (w *world) interfere(rt *rapid.T, h done, all authz.Scope) {
	if len(h.effects) == 0 {
		return
	}
	e := rapid.SampledFrom(h.effects).Draw(rt, "row")
	var want map[string]string
	if e.Kind == Delete {
		w.exec(`insert into shelf (a, b) values ($1::text::int, $2)`, *e.Before["a"], *e.Before["b"])
		want = map[string]string{"constraint": "shelf_pkey"}
	} else {
		key := []any{*e.After["a"], *e.After["b"]}
		if rapid.Bool().Draw(rt, "removes") {
			w.exec(`delete from shelf where a = $1::text::int and b = $2`, key...)
			want = map[string]string{"missing": "true"}
		} else {
			w.exec(`update shelf set n = coalesce(n, 0) + 17.5, j = '[]' where a = $1::text::int and b = $2`, key...)
			want = map[string]string{"columns": "j,n"}
			if v := e.After["n"]; v != nil && (*v == "NaN" || *v == "Infinity") {
				want["columns"] = "j"
			}
		}
	}
	before := w.rows("shelf")
	var k kept
	_, err := w.runner.Undo(w.t.Context(), h.d, h.effects, all, k.prepare)
	var conflict *whence.Error
	if !errors.As(err, &conflict) || conflict.Reason != "UNDO_CONFLICT" {
		rt.Fatalf("undo of %s over another's write: %v", h.d.Name, err)
	}
	for name, v := range want {
		if conflict.Metadata[name] != v {
			rt.Fatalf("%s is %q, not %q: %v", name, conflict.Metadata[name], v, err)
		}
	}
	if diff := cmp.Diff(before, w.rows("shelf")); diff != "" {
		rt.Fatalf("an undo that was refused had an effect: %s", diff)
	}
}
