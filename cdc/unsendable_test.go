package cdc

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/whence-db/whence/internal/pgtest"
)

// A value that the source can store and not send ends capture with what to do
// about it, and doing that is enough.
func TestUnsendableValue(t *testing.T) {
	for _, registered := range []bool{true, false} {
		t.Run(fmt.Sprintf("registered %t", registered), func(t *testing.T) {
			notes, other := table(1, "notes", "id"), table(2, "other", "id")
			s := newSource(t, ``, notes, other)
			s.win1252()
			s.exec(`create table notes (id int primary key, body text, ignored text); create table other (id int primary key, body text)`)
			s.exec(`insert into notes values (1, 'one')`)
			c, err := New(s.cfg)
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			ended := make(chan error, 1)
			go func() { ended <- c.Run(ctx) }()
			s.settle()
			column := map[bool]string{true: "body", false: "ignored"}[registered]
			s.exec(`update notes set ` + column + ` = convert_from('\x81'::bytea, 'WIN1252')`) // which is no character there
			s.exec(`insert into other values (1, 'later')`)
			var broken *BrokenError
			if err := <-ended; !errors.As(err, &broken) {
				t.Fatalf("capture ended with %v", err)
			}
			says := regexp.MustCompile(`a change at [0-9A-F]+/[0-9A-F]+ \(.*0x81.*\): correct it; then run (SELECT .*) in the source`)
			statement := says.FindStringSubmatch(broken.Message)
			if statement == nil {
				t.Fatalf("it says %q, want %s", broken.Message, says)
			}

			// As it says, but for the value.
			s.exec(statement[1])
			_, stop := s.start()
			s.eventually("only the table that shows the value fails, and what came later is there", func() bool {
				state, _ := s.sink.state(1)
				return failedState(state) == registered && len(s.sink.rows(2)) == 1
			})
			_ = stop()
			s.eventually("the slot is free", func() bool { _, err := s.db.Pool.Exec(t.Context(), statement[1]); return err == nil })

			// And as it says.
			s.exec(`update notes set ` + column + ` = 'correct'`)
			notes.Definition = 2
			s.sink.register(notes)
			s.start()
			s.settle()
			s.exec(`update notes set body = 'after all'; insert into other values (2, 'too')`)
			s.settle()
			s.compare(notes)
			s.compare(other)
		})
	}
}

// win1252 has the source be a database of that encoding, as text of one byte a
// character that does not define all of them.
func (s *source) win1252() {
	s.t.Helper()
	u, err := url.Parse(s.db.DSN)
	if err != nil {
		s.t.Fatal(err)
	}
	outer, name := s.db, s.db.Name+"_w"
	s.exec(fmt.Sprintf(`create database %q encoding 'WIN1252' lc_collate 'C' lc_ctype 'C' template template0`, name))
	u.Path = "/" + name
	pool, err := pgxpool.New(s.t.Context(), u.String())
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		pool.Close()
		// A slot would keep the database, and its process may take a moment to leave it.
		var err error
		for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
			_, err = outer.Pool.Exec(context.Background(), `select pg_drop_replication_slot(slot_name) from pg_replication_slots where database = $1 and not active`, name)
			if err == nil {
				_, err = outer.Pool.Exec(context.Background(), fmt.Sprintf(`drop database %q with (force)`, name))
			}
			if err == nil {
				return
			}
		}
		s.t.Error(err)
	})
	s.db, s.cfg.ConnString = &pgtest.DB{Pool: pool, DSN: u.String(), Name: name}, u.String()
}

func TestUnsendable(t *testing.T) {
	t.Parallel()
	c := &Capture{cfg: Config{Slot: "the_slot"}}
	for code, message := range map[string]string{"XX000": "invalid memory alloc request size 1080000054", "54000": "out of memory", "22P05": "no equivalent"} {
		var broken *BrokenError
		if err := c.unsendable(&pgconn.PgError{Code: code, Message: message}); !errors.As(err, &broken) {
			t.Errorf("%s %s: %v, want a BrokenError", code, message, err)
		}
	}
	for _, code := range []string{"XX000", "57P01", "53200", "58P01"} {
		var broken *BrokenError
		if err := c.unsendable(&pgconn.PgError{Code: code, Message: "something else"}); errors.As(err, &broken) {
			t.Errorf("%s: %v, want to try again", code, err)
		}
	}
}
