package ingest

import (
	"bytes"
	"errors"
	"testing"

	"github.com/whence-db/whence"
)

// What Live says of a row equals what was captured of it exactly when the row
// has not changed, whatever its types and names.
func TestLiveRows(t *testing.T) {
	w := newWorld(t)
	w.exec(w.source, `
create type mood as enum ('calm', 'odd''"one');
create domain positive as int check (value > 0);
create table "Odd ""names"" 'here'" ("the key" numeric, region varchar(10), "Body" text, n positive, at timestamptz, m mood, tags text[], j jsonb, f float8, b bytea,
    primary key (region, "the key"));
insert into "Odd ""names"" 'here'" values
    (1, 'north', 'one', 1, '2026-01-01 10:00+02', 'calm', '{a,"b c"}', '{"x": 1}', 'NaN', '\x00ff'),
    (1.50, 'south', null, null, 'infinity', 'odd''"one', '{}', 'null', 1e300, ''),
    (2, 'sou''th"', 'two', 3, '0044-03-15 00:00 BC', null, null, null, '-0', null),
    (4, 'gone', 'four', 1, now(), null, null, null, 1, null);
create table parts (id int primary key, body text) partition by range (id);
create table parts_low partition of parts for values from (0) to (100);
create table parts_high partition of parts for values from (100) to (200);
insert into parts values (1, 'low'), (150, 'high');
create table parent (id int primary key, body text);
create table child () inherits (parent);
insert into parent values (1, 'of the parent');
insert into child values (1, 'of the child')`)
	w.create()
	odd := w.register(TableSpec{Table: `public.Odd "names" 'here'`, TextColumns: []string{"Body"}, SubjectColumn: "region",
		TimeColumn: "at", AttributeColumns: []string{"n", "m", "tags", "j", "f", "b"}})
	parts := w.register(TableSpec{Table: "public.parts", TextColumns: []string{"body"}})
	parent := w.register(TableSpec{Table: "public.parent", TextColumns: []string{"body"}})
	w.run()
	for _, info := range []TableInfo{odd, parts, parent} {
		w.live(info.Name())
	}
	w.kill()

	states := func(table int32) (keys []whence.Key, states map[whence.Key][]byte) {
		states = map[whence.Key][]byte{}
		rows, err := w.memory.Pool.Query(t.Context(), `select key, state from whence.records where table_id = $1 order by key`, table)
		if err != nil {
			t.Fatal(err)
		}
		defer rows.Close()
		for rows.Next() {
			var key whence.Key
			var state []byte
			if err := rows.Scan(&key, &state); err != nil {
				t.Fatal(err)
			}
			keys, states[key] = append(keys, key), state
		}
		return keys, states
	}
	oddKeys, oddStates := states(odd.ID)
	partKeys, partStates := states(parts.ID)
	parentKeys, parentStates := states(parent.ID)
	read := func() [][]*whence.LiveRow {
		t.Helper()
		out, err := w.r.Live(t.Context(), "app", []whence.RowsOf{{Table: odd.Table, Keys: oddKeys},
			{Table: parts.Table, Keys: partKeys}, {Table: parent.Table, Keys: parentKeys}})
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	same := func(got []*whence.LiveRow, keys []whence.Key, want map[whence.Key][]byte) (n int) {
		for i, l := range got {
			if l != nil && bytes.Equal(l.State, want[keys[i]]) {
				n++
			}
		}
		return n
	}
	live := read()
	if n := same(live[0], oddKeys, oddStates); n != 4 || same(live[1], partKeys, partStates) != 2 || same(live[2], parentKeys, parentStates) != 1 {
		t.Fatalf("%d of 4 rows read as they were captured; %+v", n, live)
	}

	w.exec(w.source, `
update "Odd ""names"" 'here'" set f = 0 where region = 'north';
update "Odd ""names"" 'here'" set region = 'west', "Body" = 'moved' where region = 'south';
delete from "Odd ""names"" 'here'" where region = 'gone';
update parts set id = 160 where id = 1;
update only parent set body = 'changed'`)
	live = read()
	if n := same(live[0], oddKeys, oddStates); n != 1 {
		t.Errorf("%d rows read as before, want one", n)
	}
	gone := 0
	for _, l := range append(live[0], live[1]...) {
		if l == nil {
			gone++
		}
	}
	if gone != 3 || live[2][0].Text != "changed" {
		t.Errorf("%d rows are gone, want 3; the parent's reads %q", gone, live[2][0].Text)
	}

	w.exec(w.source, `drop table parent cascade`)
	_, err := w.r.Live(t.Context(), "app", []whence.RowsOf{{Table: parent.Table, Keys: parentKeys}})
	var refused *whence.Error
	if !errors.As(err, &refused) || refused.Reason != "SOURCE_UNREACHABLE" {
		t.Errorf("a table that is gone: %v", err)
	}
	if live = mustLive(t, w, whence.RowsOf{Table: odd.Table, Keys: oddKeys}); same(live[0], oddKeys, oddStates) != 1 {
		t.Error("the reader is of no use after a failure")
	}
	w.exec(w.memory, `update whence.sources set timeline = timeline + 1`)
	if _, err := w.r.Live(t.Context(), "app", []whence.RowsOf{{Table: odd.Table, Keys: oddKeys}}); !errors.As(err, &refused) || refused.Reason != "SOURCE_UNREACHABLE" {
		t.Errorf("another history than the one that is captured: %v", err)
	}
}

func mustLive(t *testing.T, w *world, rows whence.RowsOf) [][]*whence.LiveRow {
	t.Helper()
	out, err := w.r.Live(t.Context(), "app", []whence.RowsOf{rows})
	if err != nil {
		t.Fatal(err)
	}
	return out
}
