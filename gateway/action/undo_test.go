package action

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/ingest"
)

// Every type comes back from undo as it was, to the byte.
const odd = `
create type mood as enum ('sad', 'ok', 'happy');
create domain positive as numeric check (value > 0 or value = 'NaN');
create type pair as (a int, b text);
create schema "Odd ""One""";
create table "Odd ""One"""."Table; drop" (
    "Key a" int, "key.b" text collate "C", n numeric, f8 float8, f4 float4, b bytea, at timestamptz, ts timestamp, d date, tm timetz, iv interval,
    arr text[], nested int[][], j json, jb jsonb, dom positive, e mood, r tstzrange, mr int4multirange, p pair, bits bit varying(9), c char(5), "C" varchar,
    u uuid, i inet, xm xml, pt point, mny money, ts2 tsvector, lsn pg_lsn, bo bool, empty text, rc regclass,
    always int generated always as identity, made text generated always as ('<' || coalesce("C", '') || '>') stored,
    primary key ("Key a", "key.b"))`

var oddRows = []string{
	`(1, 'x', 'NaN', 'NaN', '-Infinity', '\x00ff10', 'infinity', '-infinity', 'infinity', '23:59:59.999999+14', '1 year -2 mons 3 days -04:05:06.789',
    '{"a,b",NULL,"NULL","quo\"te",""}', '{{1,2},{3,4}}', '{"b":1,  "a":1, "a":2}', '{"bb":1.10,"a":[null,"é"]}', '0.10000000000000000000000001', 'happy',
    '["2020-01-01 00:00:00+00",)', '{[1,3),[5,7)}', '(1,"x y")', '1010', 'ab', '', '00000000-0000-0000-0000-000000000001', '10.0.0.0/8', '<a>&lt;</a>', '(0.1,1e-300)',
    '$1,234.56', '''it'':1A ''was'':2', '16/B374D848', true, '', 'pg_class'::regclass)`,
	`(2, 'Y', 'Infinity', 0.1::float8 + 0.2, 1.1, '', '4713-01-01 00:00:00+00 BC', '294276-12-31 23:59:59.999999', '0044-03-15 BC', '00:00:00-15:59:59', '-178000000 years',
    '[0:1]={p,q}', '{}', 'null', 'null', 'NaN', 'sad', 'empty', '{}', '(,)', '', '     ', E'line\nbreak\ttab', null, '::1', null, null,
    null, '', null, false, null, null)`,
	`(3, '', null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null,
    null, null, null, null, null, null, null, null, null, null)`,
}

func TestUndoRestoresEveryType(t *testing.T) {
	w := open(t, odd)
	for _, r := range oddRows {
		w.exec(`insert into "Odd ""One"""."Table; drop" values ` + r)
	}
	name := whence.NewTableName("app", `Odd "One"`, "Table; drop")
	w.register(ingest.TableSpec{Table: whence.RelationName(`Odd "One"`, "Table; drop"), TextColumns: []string{"C"}})
	all := everything(t)
	before := w.rows(`"Odd ""One"""."Table; drop"`)
	remove := onRows(Delete, name, []string{"Key a"}, nil)
	for i := range oddRows {
		out, err := w.run(remove, remove.arguments(map[string]string{"Key a": fmt.Sprint(i + 1)}, nil), all)
		w.check(err)
		if out.Rows != 1 {
			t.Fatalf("%d rows went", out.Rows)
		}
		w.check(w.undo(remove, out.Effects, all))
	}
	if diff := cmp.Diff(before, w.rows(`"Odd ""One"""."Table; drop"`)); diff != "" {
		t.Errorf("rows that went and came back: %s", diff)
	}
	// Each column alone is overwritten and restored.
	for c, v := range map[string]string{"n": "1", "f8": "2", "f4": "2", "b": `\x01`, "at": "2020-01-01", "iv": "1 day", "arr": "{z}", "j": "1", "jb": "1", "dom": "5", "e": "ok",
		"r": "[2021-01-01,2022-01-01)", "mr": "{}", "p": "(9,)", "bits": "1", "c": "z", "C": "other", "xm": "<b/>", "pt": "(1,1)", "mny": "1", "ts2": "a", "lsn": "0/1", "bo": "true", "rc": "pg_type", "empty": "x", "key.b": "moved"} {
		update := onRows(Update, name, []string{"Key a"}, []string{c})
		for i := range oddRows {
			out, err := w.run(update, update.arguments(map[string]string{"Key a": fmt.Sprint(i + 1)}, map[string]string{c: v}), all)
			if err != nil || out.Rows != 1 {
				t.Errorf("%s of row %d: %d rows, %v", c, i+1, out.Rows, err)
				continue
			}
			if err := w.undo(update, out.Effects, all); err != nil {
				t.Errorf("%s of row %d: %v", c, i+1, err)
			}
		}
	}
	if diff := cmp.Diff(before, w.rows(`"Odd ""One"""."Table; drop"`)); diff != "" {
		t.Errorf("columns that were overwritten and restored: %s", diff)
	}
	for _, c := range []string{"always", "made"} {
		update := onRows(Update, name, []string{"Key a"}, []string{c})
		if err := w.runner.Check(t.Context(), update); refusal(err) != "ACTION_INVALID" || field(err) != "row.set" {
			t.Errorf("writing %s: %v", c, err)
		}
	}
	compared := onRows(Update, name, []string{"pt"}, []string{"n"})
	if err := w.runner.Check(t.Context(), compared); refusal(err) != "ACTION_INVALID" || field(err) != "row.where" {
		t.Errorf("choosing by a type without equality: %v", err)
	}
}

func TestUndoConflicts(t *testing.T) {
	w := open(t, tickets, `create table parts (id int primary key, ticket bigint references tickets, label text);
create table votes (id int primary key, ticket bigint references tickets on delete cascade);
create table readings (ticket bigint references tickets on update cascade)`)
	w.register(ticketSpec)
	all := everything(t)
	update := onRows(Update, ticketTable, []string{"id"}, []string{"title", "note"})
	update.Row.Columns = []string{"title"}
	insert := onRows(Insert, ticketTable, nil, []string{"id", "title", "code"})

	for name, c := range map[string]struct {
		d          Definition
		where, set map[string]string
		meanwhile  string
		meta       map[string]string
	}{
		"a column that is shown": {update, map[string]string{"id": "1"}, map[string]string{"title": "new"}, `update tickets set title = 'newer' where id = 1`,
			map[string]string{"columns": "title", "expected.title": "new", "found.title": "newer", "key": `{"id":"1"}`}},
		"a column that is not": {update, map[string]string{"id": "2"}, map[string]string{"title": "new"}, `update tickets set priority = 0 where id = 2`,
			map[string]string{"columns": "priority", "expected.priority": "", "found.priority": ""}},
		"null is not empty": {update, map[string]string{"id": "3"}, map[string]string{"title": "new"}, `update tickets set note = '' where id = 3`,
			map[string]string{"columns": "note"}},
		"the row is gone": {update, map[string]string{"id": "4"}, map[string]string{"title": "new"}, `delete from tickets where id = 4`,
			map[string]string{"missing": "true", "key": `{"id":"4"}`}},
		"a key refers to it": {insert, nil, map[string]string{"id": "50", "title": "new"}, `insert into parts values (1, 50)`,
			map[string]string{"constraint": "parts_ticket_fkey"}},
		"others would go with it": {insert, nil, map[string]string{"id": "51", "title": "new"}, `insert into votes values (1, 51)`,
			map[string]string{"constraint": "votes_ticket_fkey"}},
	} {
		out, err := w.run(c.d, c.d.arguments(c.where, c.set), all)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		w.exec(c.meanwhile)
		before := append(w.rows("tickets"), w.rows("votes")...)
		err = w.undo(c.d, out.Effects, all)
		if refusal(err) != "UNDO_CONFLICT" {
			t.Errorf("%s: %v", name, err)
		}
		for k, v := range c.meta {
			if got := meta(err, k); got != v {
				t.Errorf("%s: %s is %q, not %q", name, k, got, v)
			}
		}
		if diff := cmp.Diff(before, append(w.rows("tickets"), w.rows("votes")...)); diff != "" {
			t.Errorf("%s: an undo that was refused had an effect: %s", name, diff)
		}
	}
}

func TestUndoOfADeleteWhoseKeyIsTaken(t *testing.T) {
	w := open(t, tickets)
	w.register(ticketSpec)
	all := everything(t)
	remove := onRows(Delete, ticketTable, []string{"team"}, nil)
	remove.Row.MaxRows = 5
	out, err := w.run(remove, remove.arguments(map[string]string{"team": "red"}, nil), all)
	w.check(err)
	w.exec(`insert into tickets (id, title, code) values (1, 'other', 'Q')`)
	before := w.rows("tickets")
	if err := w.undo(remove, out.Effects, all); refusal(err) != "UNDO_CONFLICT" || meta(err, "constraint") != "tickets_pkey" {
		t.Errorf("the key is taken: %v", err)
	}
	w.exec(`update tickets set id = 60, code = 'B' where id = 1`)
	if err := w.undo(remove, out.Effects, all); refusal(err) != "UNDO_CONFLICT" || meta(err, "constraint") != "tickets_code_key" {
		t.Errorf("a unique value is taken: %v", err)
	}
	w.exec(`alter table tickets add extra int`)
	w.exec(`delete from tickets where id = 60`)
	if err := w.undo(remove, out.Effects, all); refusal(err) != "UNDO_CONFLICT" || meta(err, "columns") != "extra" {
		t.Errorf("the table has another shape: %v", err)
	}
	w.exec(`alter table tickets drop extra; create table late (t bigint constraint late_t references tickets on delete cascade)`)
	if err := w.undo(remove, out.Effects, all); refusal(err) != "UNDO_CONFLICT" || !strings.Contains(err.Error(), "late_t") {
		t.Errorf("a foreign key that came later: %v", err)
	}
	w.exec(`drop table late`)
	w.check(w.undo(remove, out.Effects, all))
	if len(w.rows("tickets")) != len(before)-1+2 {
		t.Errorf("after all: %v", w.rows("tickets"))
	}
}
