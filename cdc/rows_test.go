package cdc

import (
	"fmt"
	"strings"
	"testing"

	"github.com/whence-db/whence"
)

// Values kept out of line come along whatever identifies a row: several of them,
// compressed or not, within the key too, when they change and when they do not.
func TestLargeValues(t *testing.T) {
	const ddl = `create table notes (id int not null, name text not null, body text, more text, n int not null default 0, primary key (id, name));
		alter table notes alter name set storage external, alter body set storage external, alter more set storage extended`
	for name, identity := range map[string]string{
		"default": ``,
		"full":    `alter table notes replica identity full`,
		"index":   `create unique index notes_name on notes (name, id); alter table notes replica identity using index notes_name`,
	} {
		t.Run(name, func(t *testing.T) {
			notes := table(1, "notes", "id", "name")
			if name == "index" {
				notes.KeyColumns = []string{"name", "id"}
			}
			notes.TextColumns = []string{"body", "more"}
			s := newSource(t, ddl+`; `+identity, notes)
			fill := func(from int) {
				s.exec(`insert into notes select i, case when i % 2 = 0 then 'short' else repeat('k' || i, 600) end, repeat('b' || i, 5000),
					(select string_agg(md5(i || ':' || j), '') from generate_series(1, 400) j) from generate_series($1::int, $1 + 9) i`, from)
			}
			if name != "default" { // 2,400 bytes are near the most that an index takes; this row is larger than a page
				s.exec(`insert into notes values (1000, 'wide', repeat('x', 3000), repeat('y', 3000000))`)
			}
			fill(0)
			s.start()
			s.settle()
			fill(100)
			for _, statement := range []string{
				`update notes set n = n + 1`,                                  // nothing large changes
				`update notes set body = body || '.' where id % 10 = 1`,       // one of two
				`update notes set id = id + 1000 where id % 10 = 2`,           // a short part of a key
				`update notes set id = id + 1000 where id % 10 = 3`,           // a key with a large part that stays
				`update notes set name = name || '!' where id % 10 = 5`,       // the large part of a key
				`update notes set more = null, n = 7 where id % 10 = 7`,       //
				`update notes set body = '', more = body where id % 10 = 8`,   //
				`delete from notes where id % 10 = 9`,                         // with a large part in its key
				`update notes set name = repeat('z', 2000) where id % 10 = 4`, // short to large
				`begin; update notes set n = 1 where id % 10 = 6; update notes set id = id + 5000 where id % 10 = 6; update notes set n = 2 where id % 10 = 6; commit`,
			} {
				s.exec(statement)
			}
			s.settle()
			s.compare(notes)
		})
	}
}

// Keys have the order of the constraint, and move about within a transaction.
func TestKeysMove(t *testing.T) {
	notes := table(1, "notes", "b", "a")
	s := newSource(t, `create table notes (a int, body text, b int, primary key (b, a))`, notes)
	in, err := s.inspect("public", "notes")
	if err != nil || strings.Join(in.KeyColumns, ",") != "b,a" {
		t.Errorf("the key is %q, %v", in.KeyColumns, err)
	}
	s.exec(`insert into notes select i, 'row ' || i, 100 + i from generate_series(1, 30) i`)
	s.start()
	s.settle()
	for round := range 2 { // copied rows, then streamed ones
		s.exec(`begin; update notes set b = -1 where a = 1; update notes set b = 101, a = 1002 where a = 2 and b = 102;
			update notes set b = 102 where b = -1; update notes set a = 2 where a = 1002; commit`) // a swap
		s.exec(`begin; update notes set b = b + 1000 where a = 3; update notes set b = b + 1000 where a = 3; update notes set b = b + 1000 where a = 3; commit`)
		s.exec(`begin; update notes set b = 7777 where a = 4; update notes set b = 104 where a = 4; commit`) // there and back
		s.exec(`begin; delete from notes where a = 5; insert into notes values (5, 'anew', 105); commit`)    //
		s.exec(`begin; delete from notes where a = 6; update notes set a = 6, b = 106 where a = 7; commit`)  // into a freed key
		s.exec(`begin; update notes set b = 8888 where a = 8; insert into notes values (8, 'takes its place', 108); commit`)
		s.exec(`begin; insert into notes values (500, 'x', 1); update notes set a = 501; delete from notes where b = 1; rollback`)
		s.exec(`begin; insert into notes values (600, 'short-lived', 1); update notes set a = 601 where a = 600; delete from notes where a = 601; commit`)
		s.exec(`begin; update notes set b = b + 1 where a > 20; update notes set b = b - 1 where a > 20; update notes set body = 'chain' where a > 25; commit`)
		s.settle()
		s.compare(notes)
		s.exec(`delete from notes`)
		s.exec(`insert into notes select i, 'row ' || i || $1, 100 + i from generate_series(1, 30) i`, fmt.Sprint(round))
	}
}

// A truncation takes with it what refers to the table, and ends where the
// transaction goes on.
func TestTruncations(t *testing.T) {
	parent, child, apart := table(1, "parent", "id"), table(2, "child", "id"), table(3, "apart", "id")
	s := newSource(t, `create table parent (id serial primary key, body text);
		create table child (id serial primary key, body text, parent int references parent);
		create table unregistered (id serial primary key, parent int references parent);
		create table apart (id serial primary key, body text)`, parent, child, apart)
	fill := func() {
		s.exec(`insert into parent (body) select 'p' || i from generate_series(1, 20) i; insert into child (body, parent) select 'c' || id, id from parent;
			insert into apart (body) select 'a' from generate_series(1, 20)`)
	}
	fill()
	s.start()
	s.settle()
	for _, statement := range []string{
		`truncate parent cascade`,
		`truncate parent, apart restart identity cascade`,
		`begin; insert into parent (body) values ('before'); truncate parent restart identity cascade; insert into parent (body) values ('after');
			insert into child (body, parent) select 'after', max(id) from parent; update child set body = 'after that'; commit`,
		`begin; truncate parent cascade; insert into parent (body) values ('between'); truncate parent cascade; insert into apart (body) values ('z'); commit`,
		`begin; savepoint a; truncate parent, apart cascade; rollback to a; insert into parent (body) values ('kept'); commit`,
		`begin; truncate apart cascade; rollback`,
		`begin; delete from apart where id % 2 = 0; truncate child; delete from apart; commit`,
	} {
		s.exec(statement)
		s.settle()
		for _, table := range []whence.Table{parent, child, apart} {
			s.compare(table)
		}
		fill()
	}
}

// Partitions under partitions, of other column orders, whose rows move.
func TestPartitionsUnderPartitions(t *testing.T) {
	notes := table(1, "notes", "id", "region", "n")
	s := newSource(t, `create table notes (id int not null, region text not null, body text, n int not null, primary key (id, region, n)) partition by list (region);
		create table notes_eu (junk int, n int not null, body text, id int not null, gone text, region text not null) partition by range (n);
		alter table notes_eu drop column junk;
		create table notes_eu_1 (body text, region text not null, dropped int, n int not null, id int not null);
		alter table notes_eu_1 drop column dropped;
		alter table notes_eu drop column gone;
		alter table notes_eu attach partition notes_eu_1 for values from (0) to (100);
		create table notes_eu_2 partition of notes_eu default;
		alter table notes attach partition notes_eu for values in ('eu');
		create table notes_rest partition of notes default;
		alter table notes alter body set storage external; alter table notes_eu_1 alter body set storage external; alter table notes_rest alter body set storage external;
		insert into notes select i, case when i % 2 = 0 then 'eu' else 'us' end, repeat('b' || i, 2000), i * 20 from generate_series(1, 12) i`, notes)
	s.start()
	s.settle()
	s.compare(notes)
	for _, statement := range []string{
		`insert into notes select i, case when i % 2 = 0 then 'eu' else 'us' end, repeat('s' || i, 2000), i from generate_series(101, 120) i`,
		`insert into notes_eu_1 (id, region, body, n) values (200, 'eu', 'by the leaf', 5)`,
		`update notes set region = 'us' where id in (2, 102)`,
		`update notes set region = 'eu', n = 7 where id in (3, 103)`,
		`update notes set n = n + 90 where region = 'eu'`,
		`update notes_eu set body = body || '!' where id % 4 = 0`,
		`begin; update notes set region = 'eu' where id = 5; update notes set region = 'us' where id = 5; update notes set region = 'eu', n = 1 where id = 5; commit`,
		`delete from notes_eu where id % 3 = 0`,
		`create table notes_asia partition of notes for values in ('asia'); insert into notes values (300, 'asia', 'new', 1); update notes set region = 'asia' where id = 1`,
	} {
		s.exec(statement)
	}
	s.settle()
	s.compare(notes)
	for _, statement := range []string{
		`truncate notes_eu`, `alter table notes detach partition notes_asia`, `alter table notes attach partition notes_asia for values in ('asia')`,
		`drop table notes_eu_2`, `alter table notes detach partition notes_eu`, `truncate notes; insert into notes values (1, 'us', 'last', 1)`,
	} {
		s.exec(statement)
		s.proven()
		s.settle()
		s.compare(notes)
	}
}

// Generated columns are not in the stream; beside registered ones they disturb
// nothing, and one that becomes such fails its table with what to do.
func TestGeneratedColumns(t *testing.T) {
	notes := table(1, "notes", "id")
	s := newSource(t, `create table notes (id int generated always as identity primary key, twice text generated always as (body || body) stored, body text)`, notes)
	s.exec(`insert into notes (body) values ('one')`)
	c, _ := s.start()
	s.settle()
	s.exec(`insert into notes (body) values ('two'); update notes set body = 'uno' where id = 1`)
	s.settle()
	s.compare(notes)
	again := notes
	again.TextColumns, again.Definition = []string{"twice"}, 2
	s.sink.register(again)
	c.Poke()
	s.eventually("the table fails", func() bool { state, _ := s.sink.state(1); return failedState(state) })
	if _, message := s.sink.state(1); !strings.Contains(message, "generated") {
		t.Errorf("it says %q", message)
	}
}
