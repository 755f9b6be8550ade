package cdc

import (
	"context"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
)

// Where an owner of the tables made the publication, SELECT and REPLICATION are
// enough; what else the owner publishes stays the owner's business.
func TestOwnersPublication(t *testing.T) {
	notes := table(1, "notes", "id")
	s := newSource(t, notesDDL+`; insert into notes values (1, 'one'); create table other (id int primary key)`, notes)
	s.least(`create publication whence_pub for table notes (id, body), other with (publish_via_partition_root = true)`, "notes")
	s.start()
	s.settle()
	s.exec(`insert into notes values (2, 'two'); update notes set body = 'first' where id = 1; insert into other values (1)`)
	s.settle()
	s.compare(notes)
	var n int
	if err := s.db.Pool.QueryRow(t.Context(), `select count(*) from pg_publication_tables where pubname = 'whence_pub'`).Scan(&n); err != nil || n != 2 {
		t.Errorf("%d tables are published, want the owner's two: %v", n, err)
	}
	// The claim of decision 8: with a list of columns, the owner's own statements fail.
	for statement, says := range map[string]string{
		`alter table notes drop column body`:                                              "depend on it",
		`alter table notes alter body type varchar`:                                       "publication",
		`alter table notes replica identity full; update notes set body = 'x' where id=1`: "cannot update table",
	} {
		if _, err := s.db.Pool.Exec(t.Context(), statement); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v; want a refusal that says %q", statement, err, says)
		}
	}
}

// An owner's publication that leaves something out is said to, with the statement
// that mends it, which an owner then runs.
func TestOwnersPublicationInPart(t *testing.T) {
	for _, tt := range []struct{ name, member, identity, says string }{
		{"rows", `notes where (n < 100)`, "", `the row filter (n < 100)`},
		{"columns", `notes (id, n)`, "", `the column list (id, n)`},
		{"both", `notes (id, n) where (id > 0)`, "", `the row filter (id > 0) and the column list (id, n)`},
		{"columns beside the whole row as identity", `notes (id, body)`, `alter table notes replica identity full`, `the column list (id, body)`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			notes := table(1, "notes", "id")
			s := newSource(t, notesDDL+`; insert into notes values (1, 'one')`, notes)
			s.least(`create publication whence_pub for table `+tt.member+` with (publish_via_partition_root = true)`, "notes")
			s.exec(tt.identity)
			c, _ := s.start()
			s.eventually("the table fails", func() bool { state, _ := s.sink.state(1); return state == whence.TableBroken })
			_, message := s.sink.state(1)
			if !strings.Contains(message, tt.says) {
				t.Errorf("it says %q, want %q", message, tt.says)
			}
			_, statements, ok := strings.Cut(message, "have an owner of both run ")
			statements, _, then := strings.Cut(statements, "; then")
			if !ok || !then {
				t.Fatalf("it says %q, want a statement", message)
			}
			s.exec(statements)
			notes.Definition = 2
			s.sink.register(notes)
			c.Poke()
			s.settle()
			s.exec(`insert into notes values (200, 'two', 200); update notes set body = 'first' where id = 1`)
			s.settle()
			s.compare(notes)
		})
	}
}

// least has capture connect as a role that may read the tables and replicate, and
// no more, with a publication that is not its own.
func (s *source) least(publication string, tables ...string) {
	s.t.Helper()
	role := "least_" + s.cfg.Slot[:min(40, len(s.cfg.Slot))]
	s.exec(`create role ` + role + ` login replication password 'sekret-word'`)
	s.t.Cleanup(func() {
		if _, err := s.db.Pool.Exec(context.Background(), `drop owned by `+role+`; drop role `+role); err != nil {
			s.t.Error(err)
		}
	})
	s.exec(`grant select on ` + strings.Join(tables, ", ") + ` to ` + role)
	s.exec(publication)
	cfg, err := pgx.ParseConfig(s.db.DSN)
	if err != nil {
		s.t.Fatal(err)
	}
	s.cfg.ConnString = strings.Replace(s.cfg.ConnString, cfg.User, role, 1)
	if cfg.Password != "" {
		s.cfg.ConnString = strings.Replace(s.cfg.ConnString, cfg.Password, "sekret-word", 1)
	}
}
