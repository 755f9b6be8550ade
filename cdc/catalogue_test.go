package cdc

import (
	"strings"
	"testing"
	"time"

	"github.com/whence-db/whence"
)

const partedDDL = `
create table notes (id int not null, body text, n int, primary key (id, n)) partition by list (n);
create table notes_1 partition of notes for values in (1);
create table notes_2 partition of notes for values in (2);
insert into notes select i, 'x', 1 + i % 2 from generate_series(1, 20) i;
create table loose (id int not null, body text, n int not null, primary key (id, n));
insert into loose values (100, 'attached', 3), (101, 'attached too', 3);
create table empty_one (id int not null, body text, n int not null, primary key (id, n))`

// What the stream does not tell is noticed in the catalogue, while capture runs
// and while it does not, and leads to the right rows or to a table that says why not.
func TestCatalogue(t *testing.T) {
	const plain = `create type mood as enum ('glad', 'sad');
		create type shade as enum ('dark', 'light'); create type shaded as (of shade[], t text); create domain shades as shaded[];
		create type shadow as range (subtype = shade);
		create table notes (id int primary key, body text, n int not null default 0, other text, m mood, s shades, r shadow);
		insert into notes select i, 'x', i from generate_series(1, 20) i;
		update notes set m = 'sad', s = array[row(array['light'::shade], 'x')::shaded], r = '[dark,light]' where id < 5`
	for _, tt := range []struct {
		name, ddl string
		parted    bool
		again     bool   // the rows are copied again
		once      bool   // in one transaction: what is seen halfway is another matter
		says      string // the table fails with this
	}{
		{name: "type changed", ddl: `alter table notes alter body type varchar using upper(body)`, says: `type of the column "body"`},
		{name: "values rewritten under the same type", ddl: `alter table notes alter body type text using upper(body)`, again: true},
		{name: "column dropped and made anew", ddl: `alter table notes drop body; alter table notes add body text default 'fresh'`, says: `"body"`},
		{name: "columns that swapped their names", ddl: `alter table notes rename body to b; alter table notes rename other to body; alter table notes rename b to other`, says: `"body"`},
		{name: "table swapped", once: true, ddl: `create table later (like notes including all); insert into later (id, body) values (1, 'other');
			alter table notes rename to gone; alter table later rename to notes; alter publication whence_pub add table notes`, says: "another table"},
		{name: "taken out of the publication and put back", once: true, ddl: `alter publication whence_pub drop table notes; delete from notes where id = 3;
			alter publication whence_pub add table only notes`, again: true},
		{name: "publication made anew", once: true, ddl: `drop publication whence_pub; delete from notes where id = 3; create publication whence_pub
			for table only notes with (publish_via_partition_root = true)`, again: true},
		{name: "table renamed and renamed back", once: true, ddl: `alter table notes rename to away; update away set body = 'unseen' where id = 1;
			delete from away where id = 2; insert into away (id) values (100); alter table away rename to notes`, again: true},
		{name: "table moved and moved back", once: true, ddl: `create schema elsewhere; alter table notes set schema elsewhere;
			update elsewhere.notes set body = 'unseen' where id = 1; alter table elsewhere.notes set schema public`, again: true},
		{name: "table renamed", ddl: `alter table notes rename to papers`, says: `renamed to "public"."papers"`},
		{name: "column renamed and renamed back", once: true, ddl: `alter table notes rename body to b; alter table notes rename b to body`, again: true},
		{name: "columns that swapped their names for a while", once: true, ddl: `alter table notes rename body to b; alter table notes rename other to body;
			alter table notes rename b to other; update notes set n = n + 1, other = 'unseen' where id < 5;
			alter table notes rename other to b; alter table notes rename body to other; alter table notes rename b to body`, again: true},
		{name: "column's statistics and storage set", ddl: `alter table notes alter body set statistics 10, alter body set storage external`, again: true},
		{name: "column's default set", ddl: `alter table notes alter body set default ''`, again: true},
		{name: "column granted", ddl: `grant select (body) on notes to public`, again: true},
		{name: "column set not null", ddl: `alter table notes alter body set not null`, again: true},
		{name: "table given to another owner", ddl: `alter table notes owner to pg_monitor`, again: true},
		{name: "table granted", ddl: `grant select on notes to public; grant create on schema public to public`},
		{name: "analysed", ddl: `analyze notes`},
		{name: "key widened", once: true, ddl: `alter table notes drop constraint notes_pkey, add primary key (id, n); insert into notes values (1, 'twin', 100)`,
			says: `by ("id", "n") now, not by ("id")`},
		{name: "key replaced", ddl: `alter table notes drop constraint notes_pkey, add primary key (n)`, says: `by ("n") now, not by ("id")`},
		{name: "key dropped under identity full", once: true, ddl: `alter table notes replica identity full; alter table notes drop constraint notes_pkey;
			insert into notes values (1, 'twin')`, says: "ADD PRIMARY KEY"},
		{name: "key dropped and made anew", once: true, ddl: `alter table notes replica identity full; alter table notes drop constraint notes_pkey;
			insert into notes values (1, 'twin'); delete from notes where id = 1 and body = 'x'; alter table notes add primary key (id)`, again: true},
		{name: "key's index made anew", ddl: `reindex index concurrently notes_pkey`},
		{name: "key dropped", ddl: `alter table notes drop constraint notes_pkey`, says: "ADD PRIMARY KEY"},
		{name: "heap rewritten", ddl: `vacuum full notes`},
		{name: "another column dropped", ddl: `alter table notes drop other`},
		{name: "another column rewritten", ddl: `alter table notes alter other type bigint using 0`, again: true},
		{name: "column added", ddl: `alter table notes add further text default clock_timestamp()::text`},
		{name: "identity full", ddl: `alter table notes replica identity full; update notes set body = 'y' where id = 2`},
		{name: "enum value renamed", ddl: `alter type mood rename value 'sad' to 'blue'`, again: true},
		{name: "enum value renamed and renamed back", once: true, ddl: `alter type mood rename value 'sad' to 'blue';
			update notes set body = 'unseen' where id = 1; alter type mood rename value 'blue' to 'sad'`, again: true},
		{name: "enum value renamed deep within a type", ddl: `alter type shade rename value 'light' to 'bright'`, again: true},
		{name: "composite type changed", ddl: `alter type shaded add attribute more int`, again: true},
		{name: "enum value added", ddl: `alter type mood add value 'calm'`},
		{name: "identity nothing", ddl: `alter table notes replica identity nothing`, says: "REPLICA IDENTITY"},
		{name: "partition attached", parted: true, ddl: `alter table notes attach partition loose for values in (3)`, again: true},
		{name: "empty partition attached", parted: true, ddl: `alter table notes attach partition empty_one for values in (4)`},
		{name: "partition made", parted: true, ddl: `create table notes_5 partition of notes for values in (5)`},
		{name: "partition detached", parted: true, ddl: `alter table notes detach partition notes_2`, again: true},
		{name: "partition detached and attached again", parted: true, ddl: `alter table notes detach partition notes_2; delete from notes_2;
			alter table notes attach partition notes_2 for values in (2)`, again: true},
		{name: "partition attached, written and detached", parted: true, once: true, ddl: `alter table notes attach partition loose for values in (3);
			insert into notes values (102, 'passing', 3); delete from notes where id = 100; alter table notes detach partition loose`, again: true},
		{name: "partition made, written and dropped", parted: true, ddl: `create table notes_5 partition of notes for values in (5);
			insert into notes values (102, 'passing', 5); drop table notes_5`, again: true},
		{name: "partition that rows were moved to and detached with", parted: true, once: true, ddl: `alter table notes attach partition empty_one for values in (4);
			update notes set n = 4 where id < 5; alter table notes detach partition empty_one`, again: true},
		{name: "partition dropped", parted: true, ddl: `drop table notes_2`, again: true},
		{name: "partition truncated", parted: true, ddl: `truncate notes_2`, again: true},
	} {
		for _, running := range []bool{true, false} {
			t.Run(tt.name+map[bool]string{true: " meanwhile", false: " before"}[running], func(t *testing.T) {
				notes := table(1, "notes", "id")
				ddl := plain
				if tt.parted {
					notes.KeyColumns, ddl = []string{"id", "n"}, partedDDL
				} else {
					notes.AttributeColumns = []string{"m", "s", "r"}
				}
				s := newSource(t, ddl, notes)
				_, stop := s.start()
				s.settle()
				if !running {
					_ = stop()
				}
				if tt.once {
					s.exec(tt.ddl)
				} else {
					for statement := range strings.SplitSeq(tt.ddl, ";") {
						s.exec(statement)
					}
				}
				if !running {
					s.start()
				}
				if tt.says != "" {
					s.eventually("the table fails", func() bool { state, _ := s.sink.state(1); return failedState(state) })
					if _, message := s.sink.state(1); !strings.Contains(message, tt.says) {
						t.Errorf("it says %q, want %q", message, tt.says)
					}
					return
				}
				copied := func() int { s.sink.mu.Lock(); defer s.sink.mu.Unlock(); return s.sink.again + s.sink.lost }
				if tt.again {
					s.eventually("the rows are copied again", func() bool { return copied() > 0 })
				}
				s.proven()
				if state, message := s.sink.state(1); failedState(state) {
					t.Fatalf("the table is %s: %s", state, message)
				}
				s.settle()
				s.compare(notes)
				if got := copied() > 0; got != tt.again {
					t.Errorf("copied again: %t, want %t", got, tt.again)
				}
			})
		}
	}
}

// proven waits until everything up to now is known to be applied.
func (s *source) proven() {
	s.t.Helper()
	from := time.Now()
	s.eventually("the moment is proven", func() bool {
		s.sink.mu.Lock()
		defer s.sink.mu.Unlock()
		p := s.sink.progress
		return p.CaughtUpAt.After(from)
	})
}

// Nothing is called caught up on a catalogue that is not understood yet.
func TestUnprovenCatalogue(t *testing.T) {
	notes := table(1, "notes", "id")
	s := newSource(t, notesDDL+`; insert into notes values (1, 'one')`, notes)
	s.cfg.Look = time.Hour
	c, _ := s.start()
	s.eventually("the table is live", func() bool { c.Poke(); state, _ := s.sink.state(1); return state == whence.TableLive })
	s.proven()
	s.sink.setFault(func(step string) error {
		if step == "copy-again" {
			return errAlreadyEnded
		}
		return nil
	})
	s.exec(`alter table notes alter body type text using upper(body)`)
	time.Sleep(300 * time.Millisecond)
	_, before := s.sink.now()
	time.Sleep(500 * time.Millisecond)
	if _, after := s.sink.now(); after.CaughtUpAt.After(before.CaughtUpAt) {
		t.Errorf("the table cannot be marked, and yet capture claims to be caught up to %v after %v", after.CaughtUpAt, before.CaughtUpAt)
	}
}

// A schema's name is no part of the shape. What the stream tells under another one
// is known by the relation, and the table is not proven before it was compared.
func TestSchemaRenamedAndBack(t *testing.T) {
	notes, other, earlier := table(1, "notes", "id"), table(2, "other", "id"), table(3, "earlier", "id")
	s := newSource(t, notesDDL+`; create table other (id int primary key, body text); create table earlier (id int primary key, body text);
		insert into notes select i, 'x' from generate_series(1, 20) i`, notes, other, earlier)
	_, stop := s.start()
	s.settle()
	_ = stop()
	s.exec(`begin; insert into earlier values (1, 'in time'); alter schema public rename to elsewhere;
		update elsewhere.notes set body = 'unseen' where id = 1; insert into elsewhere.other values (2, 'unseen');
		alter schema elsewhere rename to public; insert into other values (3, 'later'); commit`)
	s.start()
	s.proven()
	s.settle()
	for _, table := range []whence.Table{notes, other, earlier} {
		s.compare(table)
	}
	if s.sink.mu.Lock(); s.sink.again < 2 {
		t.Errorf("%d tables were copied again, want at least two", s.sink.again)
	}
	s.sink.mu.Unlock()
	// The source goes on telling what follows by the name that it told first.
	s.exec(`insert into other values (4, 'later still'); update notes set body = 'later still' where id = 2`)
	s.proven()
	s.settle()
	for _, table := range []whence.Table{notes, other, earlier} {
		s.compare(table)
	}
}
