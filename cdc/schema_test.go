package cdc

import (
	"strings"
	"testing"

	"github.com/whence-db/whence"
)

// What happens to a table's definition fails that table with advice, and
// nothing else.
func TestTableFails(t *testing.T) {
	for _, tt := range []struct {
		name, ddl string
		state     whence.TableState
		says      string
	}{
		{"column dropped", `alter table notes drop column body; insert into notes (id) values (100)`, whence.TableSchemaChanged, `column "body"`},
		{"column renamed", `alter table notes rename body to text; update notes set text = 'x' where id = 1`, whence.TableSchemaChanged, `column "body"`},
		{"type changed", `alter table notes alter body type jsonb using to_jsonb(body); insert into notes values (100, '{}')`, whence.TableSchemaChanged, `type of the column "body"`},
		{"key column renamed", `alter table notes rename id to nid; delete from notes where nid = 2`, whence.TableSchemaChanged, `column "id"`},
		{"identity by another index", `create unique index by_n on notes (n); alter table notes replica identity using index by_n; insert into notes values (100, '', 100)`,
			whence.TableSchemaChanged, `REPLICA IDENTITY DEFAULT`},
		{"renamed", `alter table notes rename to papers; insert into papers values (100)`, whence.TableBroken, "renamed"},
		{"dropped", `drop table notes`, whence.TableBroken, "dropped"},
		{"unpublished", `alter publication whence_pub drop table notes`, whence.TableBroken, "whence_pub"},
		{"published in part", `alter publication whence_pub drop table notes; alter publication whence_pub add table notes where (id < 100)`, whence.TableBroken, "whence_pub"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			notes, other := table(1, "notes", "id"), table(2, "other", "id")
			s := newSource(t, notesDDL+`; create table other (id int primary key, body text);
				insert into notes select i, 'x', i from generate_series(1, 10) i`, notes, other)
			s.start()
			s.settle()
			s.exec(`insert into other values (1, 'before'); insert into notes values (11, 'in time', 11)`)
			s.settle()
			s.exec(`insert into other values (2, 'earlier'); ` + tt.ddl + `; insert into other values (3, 'later')`)
			goal := s.flushed()
			s.eventually("the table has failed and the stream went on", func() bool {
				state, _ := s.sink.state(1)
				_, p := s.sink.now()
				return failedState(state) && p.LSN >= goal
			})
			state, message := s.sink.state(1)
			if state != tt.state || !strings.Contains(message, tt.says) {
				t.Errorf("%s: %s; want %s and %q", state, message, tt.state, tt.says)
			}
			s.compare(other)
		})
	}
}

// A publication that goes, or leaves changes out, while capture runs costs a
// comparison and no operator, whether the stream meets a change then or not.
func TestPublicationDamagedMeanwhile(t *testing.T) {
	for name, damage := range map[string]string{
		"dropped": `drop publication whence_pub`, "without updates": `alter publication whence_pub set (publish = 'insert')`,
		"by partition": `alter publication whence_pub set (publish_via_partition_root = false)`,
	} {
		for _, change := range []string{"", `delete from notes where id = 1; update notes set body = 'y' where id = 2`} {
			t.Run(name+map[bool]string{true: ", a change", false: ""}[change != ""], func(t *testing.T) {
				notes := table(1, "notes", "id")
				s := newSource(t, notesDDL+`; insert into notes select i, 'x' from generate_series(1, 10) i`, notes)
				s.start()
				s.settle()
				s.exec(damage)
				s.exec(change)
				s.eventually("the loss is noticed", func() bool { s.sink.mu.Lock(); defer s.sink.mu.Unlock(); return s.sink.lost > 0 })
				s.proven()
				s.settle()
				s.exec(`insert into notes values (100, 'after')`)
				s.settle()
				s.compare(notes)
			})
		}
	}
}

// Registering a failed table again makes it whole, rows deleted meanwhile included.
func TestRegisteredAgain(t *testing.T) {
	notes := table(1, "notes", "id")
	s := newSource(t, notesDDL+`; insert into notes select i, 'x' from generate_series(1, 10) i`, notes)
	c, _ := s.start()
	s.settle()
	s.exec(`alter table notes rename body to text; update notes set text = 'y' where id < 4; delete from notes where id = 9`)
	s.eventually("the table has failed", func() bool { state, _ := s.sink.state(1); return failedState(state) })
	s.exec(`delete from notes where id = 10; insert into notes values (11, 'z')`)
	notes.TextColumns, notes.Definition = []string{"text"}, 2
	s.sink.register(notes)
	c.Poke()
	s.settle()
	s.compare(notes)
	s.exec(`insert into notes values (12, 'after')`)
	s.settle()
	s.compare(notes)
}

// So does registering one that is published in part.
func TestRegisteredAgainFromAFilter(t *testing.T) {
	notes := table(1, "notes", "id")
	s := newSource(t, notesDDL+`; insert into notes select i, 'x' from generate_series(1, 10) i`, notes)
	c, _ := s.start()
	s.settle()
	s.exec(`alter publication whence_pub drop table notes; alter publication whence_pub add table notes where (id < 5)`)
	s.eventually("the table has failed", func() bool { state, _ := s.sink.state(1); return failedState(state) })
	s.exec(`update notes set body = 'y'`)
	notes.Definition = 2
	s.sink.register(notes)
	c.Poke()
	s.settle()
	s.exec(`insert into notes values (12, 'after')`)
	s.settle()
	s.compare(notes)
}

// Another definition while a backfill runs starts that over.
func TestDefinitionChangesDuringBackfill(t *testing.T) {
	notes := table(1, "notes", "id")
	s := newSource(t, notesDDL+`; insert into notes select i, 'x' from generate_series(1, 100) i`, notes)
	s.cfg.BackfillBatch = 10
	again := notes
	again.TextColumns, again.Definition = []string{"body", "n"}, 2
	registered := make(chan struct{}, 1)
	registered <- struct{}{}
	s.sink.setFault(func(step string) error {
		if step == "backfill-rows" {
			select {
			case <-registered:
				s.sink.register(again)
			default:
			}
		}
		return nil
	})
	s.start()
	s.eventually("registered again", func() bool { return len(registered) == 0 })
	s.settle()
	s.compare(again)
}

func TestUnregistered(t *testing.T) {
	notes, other := table(1, "notes", "id"), table(2, "other", "id")
	s := newSource(t, notesDDL+`; create table other (id int primary key, body text)`, notes, other)
	c, _ := s.start()
	s.settle()
	s.sink.mu.Lock()
	delete(s.sink.tables, 2)
	s.sink.mu.Unlock()
	c.Poke()
	s.exec(`insert into other values (1, 'nobody asked'); insert into notes values (1, 'kept')`)
	s.eventually("the table is out of the publication", func() bool {
		var n int
		err := s.db.Pool.QueryRow(t.Context(), `select count(*) from pg_publication_tables where tablename = 'other'`).Scan(&n)
		return err == nil && n == 0
	})
	s.settle()
	s.compare(notes)
}

func TestPartitionedTable(t *testing.T) {
	notes := table(1, "notes", "id", "region")
	s := newSource(t, `create table notes (id int, region text, body text, primary key (id, region)) partition by list (region);
		create table notes_eu partition of notes for values in ('eu');
		create table notes_rest (body text, junk int, id int not null, region text not null);
		alter table notes_rest drop column junk;
		alter table notes attach partition notes_rest default;
		insert into notes values (1, 'eu', 'a'), (2, 'us', 'b')`, notes)
	s.start()
	s.settle()
	s.compare(notes)
	s.exec(`insert into notes values (3, 'eu', 'c'), (4, 'us', 'd')`)
	s.exec(`update notes set region = 'us' where id = 1`) // moves to the other partition
	s.exec(`update notes set body = 'e' where id = 2; delete from notes where id = 3`)
	s.settle()
	s.compare(notes)
	s.exec(`truncate notes; insert into notes values (5, 'eu', 'f')`)
	s.settle()
	s.compare(notes)
}

func TestInheritanceIsNotFollowed(t *testing.T) {
	notes := table(1, "notes", "id")
	s := newSource(t, notesDDL+`; create table child () inherits (notes); insert into child values (1, 'child'); insert into notes values (1, 'own')`, notes)
	s.start()
	s.settle()
	s.exec(`insert into child values (2, 'child'); insert into notes values (2, 'own')`)
	s.settle()
	if got := s.sink.rows(1); len(got) != 2 || !strings.Contains(got[`{"id":"1"}`], "own") || !strings.Contains(got[`{"id":"2"}`], "own") {
		t.Errorf("got %v, want the table's own two rows", got)
	}
}

// With the whole old row in the stream, nothing is unchanged and unknown, and
// an old key comes only when it differs.
func TestReplicaIdentities(t *testing.T) {
	for name, ddl := range map[string]string{
		"full":  `alter table notes replica identity full`,
		"index": `create unique index by_n on notes (n); alter table notes replica identity using index by_n`,
	} {
		t.Run(name, func(t *testing.T) {
			notes := table(1, "notes", "id")
			if name == "index" {
				notes = table(1, "notes", "n")
			}
			s := newSource(t, notesDDL+`; alter table notes alter body set storage external; `+ddl, notes)
			s.sink.keep = true
			s.start()
			s.settle()
			s.exec(`insert into notes select i, repeat('x' || i, 3000), i from generate_series(1, 3) i`)
			s.exec(`update notes set n = n + 100 where id = 1`)
			s.exec(`update notes set id = id + 100 where id = 2`)
			s.exec(`delete from notes where id = 3`)
			s.settle()
			s.compare(notes)
			for _, ch := range s.sink.applied {
				if name == "full" && len(ch.Unchanged) > 0 {
					t.Errorf("%v is unchanged and unknown although the old row was sent", ch.Unchanged)
				}
			}
		})
	}
}
