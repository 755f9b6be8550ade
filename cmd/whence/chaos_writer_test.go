package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// scribe changes the table docs in every way. Each text that it writes has a
// number of its own, so that a version applied twice shows.
type scribe struct {
	random *rand.Rand
	dsn    string
	n      int // the last number used
	done   int // transactions committed or rolled back
	lost   int // transactions whose connection ended
	undone map[int]bool
}

var errUndo = errors.New("undo")

// run writes until ctx ends, over whatever connection it can get.
func (s *scribe) run(ctx context.Context) error {
	for ctx.Err() == nil {
		if err := s.connected(ctx); err != nil && ctx.Err() == nil {
			s.lost++
			time.Sleep(50 * time.Millisecond)
		}
	}
	return nil
}

func (s *scribe) connected(ctx context.Context) error {
	conn, err := pgx.Connect(ctx, s.dsn)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	for ctx.Err() == nil {
		undo, first := s.random.IntN(10) == 0, s.n+1
		err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
			for range 1 + s.random.IntN(4) {
				if err := s.change(ctx, tx); err != nil {
					return err
				}
			}
			if undo {
				return errUndo
			}
			return nil
		})
		switch {
		case errors.Is(err, errUndo):
			for n := first; n <= s.n; n++ {
				s.undone[n] = true
			}
		case err != nil:
			return err
		}
		s.done++
		time.Sleep(time.Duration(s.random.IntN(12)) * time.Millisecond)
	}
	return nil
}

// change makes one change; many hit no row, which is a case too.
func (s *scribe) change(ctx context.Context, tx pgx.Tx) error {
	s.n++
	id, text := 1+s.random.IntN(60), fmt.Sprintf("number=%d;", s.n)
	var sql string
	var args []any
	switch k := s.random.IntN(100); {
	case k < 30:
		sql = `insert into docs values ($1, $2, $3, $4, null, 0)
			on conflict (id) do update set title = excluded.title, body = excluded.body, owner = excluded.owner, tag = 'again'`
		args = []any{id, text, s.prose(), s.owner()}
	case k < 50: // a long body stays as it is, out of line
		sql, args = `update docs set title = $2 where id = $1`, []any{id, text}
	case k < 60:
		sql, args = `update docs set title = $2, tag = case when tag is null then 'tagged' end, owner = null where id = $1`, []any{id, text}
	case k < 68:
		sql, args = `update docs set unseen = unseen + 1 where id between $1 and $1 + 20`, []any{id}
	case k < 80:
		sql, args = `delete from docs where id = $1`, []any{id}
	case k < 90:
		sql = `update docs set id = $2, title = $3 where id = $1 and not exists (select from docs where id = $2)`
		args = []any{id, 1 + s.random.IntN(60), text}
	case k < 94:
		sql, args = `update docs set id = id + 100000, title = $2 || id where id between $1 and $1 + 3 and not exists (select from docs where id > 100000)`, []any{id, text}
	case k < 98:
		sql, args = `delete from docs where id > 100000 or id between 100 + $1 and 110 + $1`, []any{id}
	case k < 99 && s.n > 200:
		sql = `truncate docs`
	default:
		sql, args = `insert into docs select 200 + i, $2 || i, 'one of many', 'owner1', 'bulk', 0 from generate_series($1::int, $1 + 50) i on conflict do nothing`, []any{id, text}
	}
	_, err := tx.Exec(ctx, sql, args...)
	return err
}

func (s *scribe) owner() string { return fmt.Sprintf("owner%d", s.random.IntN(7)) }

// prose is short, or long enough to be stored out of line and cut into chunks;
// it does not compress.
func (s *scribe) prose() string {
	words := 8
	if s.random.IntN(4) == 0 {
		words = 1500
	}
	var b strings.Builder
	for i := range words {
		fmt.Fprintf(&b, "%x ", s.random.Uint32())
		if i%40 == 39 {
			b.WriteString("\n\n")
		}
	}
	return b.String()
}
