package cdc

import (
	"strings"
	"testing"
)

// A published table that loses what identifies its rows cannot be updated by its
// owner until it is taken out of the publication, so it is, and says what mends it.
func TestKeyGone(t *testing.T) {
	for _, tt := range []struct{ name, ddl, says, mended string }{
		{"primary key", `alter table notes drop constraint notes_pkey`, `ALTER TABLE "public"."notes" ADD PRIMARY KEY`,
			`alter table notes add primary key (id)`},
		{"the index that identifies", `create unique index by_id on notes (id); alter table notes replica identity using index by_id; drop index by_id`,
			`ALTER TABLE "public"."notes" REPLICA IDENTITY DEFAULT`, `alter table notes replica identity default`},
		{"after the table failed", `alter table notes rename body to text; alter table notes drop constraint notes_pkey`, "",
			`alter table notes add primary key (id); alter table notes rename text to body`},
		{"of a partition", `alter table parted_1 replica identity nothing`, `ALTER TABLE "public"."parted_1" REPLICA IDENTITY DEFAULT`,
			`alter table parted_1 replica identity default`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			notes := table(1, "notes", "id")
			if strings.Contains(tt.ddl, "parted") {
				notes.Relation = "parted"
			}
			s := newSource(t, notesDDL+`; create table parted (id int primary key, body text, n int) partition by range (id);
				create table parted_1 partition of parted for values from (0) to (100);
				insert into notes select i, 'x', i from generate_series(1, 10) i; insert into parted select i, 'x', i from generate_series(1, 10) i`, notes)
			c, _ := s.start()
			s.settle()
			for statement := range strings.SplitSeq(tt.ddl, "; ") {
				s.exec(statement)
				if strings.Contains(statement, "rename") {
					s.eventually("the table fails", func() bool { state, _ := s.sink.state(1); return failedState(state) })
				}
			}
			s.eventually("its owner can update it, and it has failed", func() bool {
				_, err := s.db.Pool.Exec(t.Context(), `update `+notes.Relation+` set n = n + 1 where id = 1; delete from `+notes.Relation+` where id = 2`)
				state, _ := s.sink.state(1)
				return err == nil && failedState(state)
			})
			if _, message := s.sink.state(1); !strings.Contains(message, tt.says) {
				t.Errorf("it says %q, want %q", message, tt.says)
			}
			s.exec(tt.mended)
			notes.Definition = 2
			s.sink.register(notes)
			c.Poke()
			s.settle()
			s.exec(`update ` + notes.Relation + ` set body = 'changed' where id = 3`)
			s.settle()
			s.compare(notes)
		})
	}
}
