package ingest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// undone marks what is written only to be rolled back.
const undone = "UNDONE"

// chaosWriter commits, rolls back and prepares transactions of every kind of change.
type chaosWriter struct {
	name   string
	random *rand.Rand
	dsn    string
	tables []*chaosTable
	done   int // transactions that committed
	lost   int // that failed, by the changes of others
}

// run writes until ctx ends, over whatever connection it can get.
func (w *chaosWriter) run(ctx context.Context) error {
	for ctx.Err() == nil {
		conn, err := pgx.Connect(ctx, w.dsn)
		if err != nil {
			_ = sleep(ctx, 20*time.Millisecond)
			continue
		}
		err = w.write(ctx, conn)
		_ = conn.Close(context.WithoutCancel(ctx))
		if err != nil && ctx.Err() == nil && !theirFault(err) {
			return fmt.Errorf("writer %s: %w", w.name, err)
		}
	}
	return nil
}

func (w *chaosWriter) write(ctx context.Context, conn *pgx.Conn) error {
	for ctx.Err() == nil && !conn.IsClosed() {
		err := w.transaction(ctx, conn)
		switch {
		case err == nil:
			w.done++
		case theirFault(err):
			w.lost++
		default:
			return err
		}
		_ = sleep(ctx, time.Duration(w.random.IntN(10))*time.Millisecond)
	}
	return nil
}

// theirFault tells what the changes of others and dying servers explain from
// statements that are wrong.
func theirFault(err error) bool {
	var pe *pgconn.PgError
	if !errors.As(err, &pe) {
		return true // the connection
	}
	switch pe.Code {
	case "40P01", "40001", "55P03", "23505", // each other
		"42P01", "42703", "42846", "42704", "23514", "55000", "55006", "0A000", "42809", "22P02", // the owner's alterations
		"57P01", "57P02", "57P03", "57014", "25P02", "53300": // servers
		return true
	}
	return false
}

func (w *chaosWriter) transaction(ctx context.Context, conn *pgx.Conn) error {
	kind := w.random.IntN(40)
	if _, err := conn.Exec(ctx, `set lock_timeout = '2s'`); err != nil {
		return err
	}
	tx, err := conn.Begin(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	undo := kind < 4
	for range 1 + w.random.IntN(5) {
		if err := w.change(ctx, tx, undo); err != nil {
			return err
		}
		if w.random.IntN(8) == 0 {
			if err := w.savepoint(ctx, tx); err != nil {
				return err
			}
		}
	}
	switch {
	case undo:
		return nil
	case kind < 6: // it stays open while others go on
		_ = sleep(ctx, time.Duration(w.random.IntN(150))*time.Millisecond)
	case kind == 6:
		return w.prepare(ctx, conn, tx)
	}
	return tx.Commit(ctx)
}

// prepare leaves the transaction to a second phase; the connection may die between.
func (w *chaosWriter) prepare(ctx context.Context, conn *pgx.Conn, tx pgx.Tx) error {
	id := fmt.Sprintf("%s-%d", w.name, w.random.Uint32())
	if _, err := tx.Exec(ctx, `prepare transaction '`+id+`'`); err != nil {
		return err
	}
	_ = sleep(ctx, time.Duration(w.random.IntN(100))*time.Millisecond)
	end := `commit prepared '`
	if w.random.IntN(4) == 0 {
		end = `rollback prepared '`
	}
	_, err := conn.Exec(context.WithoutCancel(ctx), end+id+`'`)
	return err
}

func (w *chaosWriter) savepoint(ctx context.Context, tx pgx.Tx) error {
	sub, err := tx.Begin(ctx)
	if err != nil {
		return err
	}
	if err := w.change(ctx, sub, true); err != nil {
		return err
	}
	return sub.Rollback(ctx)
}

// change makes one change; many hit no row, which is a case too.
func (w *chaosWriter) change(ctx context.Context, tx pgx.Tx, undo bool) error {
	t := w.tables[w.random.IntN(len(w.tables))]
	n := w.random.IntN(80)
	key, title, body := t.key(n), text("number %d", w.random.IntN(1e6)), prose(w.random)
	if undo {
		title, body = text("%s %v", undone, title), undone+body
	}
	nk := len(t.keys)
	exec := func(sql string, args ...any) error {
		_, err := tx.Exec(ctx, sql, args...)
		return err
	}
	insert := func(conflict string) error {
		return exec(fmt.Sprintf(`insert into %s (%s) values (%s, $%d, $%d, nextval('revs')) on conflict (%s) do %s`, t.sql, t.columns(), places(1, nk), nk+1, nk+2,
			strings.Join(t.keys, ", "), conflict), append(append([]any{}, key...), title, body)...)
	}
	switch k := w.random.IntN(100); {
	case k < 18:
		return insert(`nothing`)
	case k < 30:
		return insert(`update set title = excluded.title, body = excluded.body, rev = nextval('revs')`)
	case k < 45: // a long body stays as it is, out of line
		return exec(`update `+t.sql+` set title = $1, rev = nextval('revs') where `+t.at(2), append([]any{title}, key...)...)
	case k < 53:
		return exec(`update `+t.sql+` set body = $1, rev = nextval('revs') where `+t.at(2), append([]any{body}, key...)...)
	case k < 56:
		return exec(`update `+t.sql+` set body = null, title = null, rev = nextval('revs') where `+t.at(1), key...)
	case k < 61: // concerns nobody
		return exec(`update ` + t.sql + ` set extra = extra + 1 where ctid in (select ctid from ` + t.sql + ` order by rev limit 15 offset ` + fmt.Sprint(n) + `)`)
	case k < 72:
		return exec(`delete from `+t.sql+` where `+t.at(1), key...)
	case k < 84: // a row moves to another key, also to another partition
		return w.move(ctx, tx, t, key, title)
	case k < 88:
		if err := exec(`delete from `+t.sql+` where `+t.at(1), key...); err != nil {
			return err
		}
		return insert(`nothing`)
	case k < 91:
		return exec(fmt.Sprintf(`delete from %s where rev %% 11 = $1`, t.sql), n%11)
	case k < 94:
		return w.bulk(ctx, tx, t, undo)
	case k < 95 && w.random.IntN(4) == 0:
		return exec(`truncate ` + t.sql)
	case k < 96 && t.sql == "moody":
		return exec(`update moody set mood = 'sad', at = case when id % 3 = 0 then 'infinity' when id % 3 = 1 then null else at - interval '1 day' end, rev = nextval('revs'),
			owner = case when owner is null then 'ann' end, amount = id * 1.50, ratio = id / 3.0, raw = decode(md5(id::text), 'hex'),
			tags = array['a b', null, '"' || id], place = row(id, 'p "' || id), fixed = 'f' || id, span = make_interval(mins => id) where id % 7 = $1`, n%7)
	}
	return exec(`update `+t.sql+` set title = title || '+', rev = nextval('revs') where `+t.at(1), key...)
}

func (w *chaosWriter) move(ctx context.Context, tx pgx.Tx, t *chaosTable, from []any, title any) error {
	to := t.key(w.random.IntN(80))
	set := make([]string, len(t.keys))
	for i, k := range t.keys {
		set[i] = fmt.Sprintf("%s = $%d", k, i+1)
	}
	nk := len(t.keys)
	args := append(append([]any{}, to...), from...)
	also := ""
	if w.random.IntN(2) == 0 {
		also = fmt.Sprintf(", title = $%d", 2*nk+1)
		args = append(args, title)
	}
	_, err := tx.Exec(ctx, fmt.Sprintf(`update %s set %s%s, rev = nextval('revs') where %s and not exists (select from %s where %s)`,
		t.sql, strings.Join(set, ", "), also, t.at(nk+1), t.sql, t.at(1)), args...)
	return err
}

// bulk writes many rows in one statement: tens as a rule, thousands now and then.
func (w *chaosWriter) bulk(ctx context.Context, tx pgx.Tx, t *chaosTable, undo bool) error {
	n := 20 + w.random.IntN(60)
	if w.random.IntN(50) == 0 {
		n = 1500 + w.random.IntN(1500)
	}
	first := 1000 + w.random.IntN(4)*20
	title := "one of many "
	if undo {
		title = undone
	}
	b := &pgx.Batch{}
	queueRows(b, t, first, n, title)
	switch w.random.IntN(3) {
	case 0:
		b.Queue(`update ` + t.sql + ` set title = title || '!', rev = nextval('revs') where title like 'one of many%'`)
	case 1:
		b.Queue(`delete from ` + t.sql + ` where title like 'one of many%7'`)
	}
	return tx.SendBatch(ctx, b).Close()
}

// queueRows inserts n rows that have the keys from first on.
func queueRows(b *pgx.Batch, t *chaosTable, first, n int, title string) {
	const per = 500
	nk := len(t.keys)
	rows := make([][]any, n)
	for i := range rows {
		rows[i] = append(t.key(first+i), title+fmt.Sprint(i))
	}
	for len(rows) > 0 {
		some := rows[:min(per, len(rows))]
		rows = rows[len(some):]
		var values []string
		var args []any
		for _, r := range some {
			values = append(values, fmt.Sprintf("(%s, nextval('revs'))", places(len(args)+1, nk+1)))
			args = append(args, r...)
		}
		b.Queue(fmt.Sprintf(`insert into %s (%s, title, rev) values %s on conflict do nothing`, t.sql, strings.Join(t.keys, ", "), strings.Join(values, ", ")), args...)
	}
}

func places(first, n int) string {
	p := make([]string, n)
	for i := range p {
		p[i] = fmt.Sprintf("$%d", first+i)
	}
	return strings.Join(p, ", ")
}
