package cdc

import (
	"context"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
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
