package cdc

import (
	"strings"
	"testing"

	"github.com/whence-db/whence"
)

const treeDDL = `
create table tree (id int primary key, body text) partition by range (id);
create table branch partition of tree for values from (0) to (1000) partition by range (id);
create table leaf partition of branch for values from (0) to (100);
create table loose (id int primary key, body text);
insert into leaf select i, 'x' from generate_series(1, 20) i;
insert into loose select i, 'x' from generate_series(101, 110) i`

// A partition's changes come under the name of the topmost table above it that is
// published. One that is registered itself would stay as it was, and says so instead.
func TestPartitionBelowAPublishedTable(t *testing.T) {
	tree, branch, leaf, loose := table(1, "tree", "id"), table(2, "branch", "id"), table(3, "leaf", "id"), table(4, "loose", "id")
	for _, tt := range []struct {
		name         string
		first, later []whence.Table
		ddl          string // between the two, or at last
		owners       string // the publication, made by an owner
		loses        whence.Table
		to           string
	}{
		{name: "the leaf, then the root", first: []whence.Table{leaf}, later: []whence.Table{tree}, loses: leaf, to: `"tree"`},
		{name: "the root, then the leaf", first: []whence.Table{tree}, later: []whence.Table{leaf}, loses: leaf, to: `"tree"`},
		{name: "the middle, then the leaf", first: []whence.Table{branch}, later: []whence.Table{leaf}, loses: leaf, to: `"branch"`},
		{name: "the leaf, then the middle", first: []whence.Table{leaf}, later: []whence.Table{branch}, loses: leaf, to: `"branch"`},
		{name: "the middle, then the root", first: []whence.Table{branch}, later: []whence.Table{tree}, loses: branch, to: `"tree"`},
		{name: "attached below a registered root", first: []whence.Table{tree, loose}, loses: loose, to: `"tree"`,
			ddl: `alter table branch attach partition loose for values from (100) to (200)`},
		{name: "attached, then the root", first: []whence.Table{loose}, later: []whence.Table{tree}, loses: loose, to: `"tree"`,
			ddl: `alter table branch attach partition loose for values from (100) to (200)`},
		{name: "an owner's publication of both", first: []whence.Table{leaf}, loses: leaf, to: `"tree"`,
			owners: `create publication whence_pub for table tree, leaf with (publish_via_partition_root = true)`},
		{name: "an owner's publication of all", first: []whence.Table{leaf}, loses: leaf, to: `"tree"`,
			owners: `create publication whence_pub for all tables with (publish_via_partition_root = true)`},
		{name: "an owner's publication of the schema", first: []whence.Table{leaf}, loses: leaf, to: `"tree"`,
			owners: `create publication whence_pub for tables in schema public with (publish_via_partition_root = true)`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newSource(t, treeDDL, tt.first...)
			fails := func() {
				t.Helper()
				s.eventually("the partition fails", func() bool { state, _ := s.sink.state(tt.loses.ID); return state == whence.TableBroken })
				if _, message := s.sink.state(tt.loses.ID); !strings.Contains(message, `is a partition of "public".`+tt.to) {
					t.Errorf("it says %q, want %s", message, tt.to)
				}
			}
			if tt.owners != "" {
				// As one that Whence may not change: see TestOwnersPublication.
				s.least(tt.owners, "leaf")
				s.start()
				fails()
				return
			}
			c, _ := s.start()
			s.settle()
			if tt.ddl != "" {
				s.exec(tt.ddl)
			}
			for _, later := range tt.later {
				s.sink.register(later)
			}
			c.Poke()
			fails()
			s.exec(`update tree set body = 'changed' where id in (1, 101); delete from tree where id in (2, 102)`)

			// Without the table above it, it is compared anew.
			s.sink.mu.Lock()
			for id := range s.sink.tables {
				if id != tt.loses.ID {
					delete(s.sink.tables, id)
				}
			}
			s.sink.mu.Unlock()
			again := tt.loses
			again.Definition = 2
			s.sink.register(again)
			c.Poke()
			s.settle()
			s.compare(again)
			s.exec(`update tree set body = 'changed again' where id in (3, 103)`)
			s.settle()
			s.compare(again)
		})
	}
}

// A table above it that was published for a while, unseen, told a partition's changes.
func TestPartitionBelowATableOncePublished(t *testing.T) {
	leaf := table(3, "leaf", "id")
	for _, running := range []bool{true, false} {
		t.Run(map[bool]string{true: "meanwhile", false: "before"}[running], func(t *testing.T) {
			s := newSource(t, treeDDL, leaf)
			_, stop := s.start()
			s.settle()
			if !running {
				_ = stop()
			}
			s.exec(`alter publication whence_pub add table tree; update leaf set body = 'unseen' where id = 1; delete from leaf where id = 2;
				alter publication whence_pub drop table tree`)
			if !running {
				s.start()
			}
			s.proven()
			s.settle()
			s.compare(leaf)
		})
	}
}
