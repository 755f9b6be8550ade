package ingest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/internal/pg"
)

// verdict is what the newest change of a row says about whether it is set aside.
type verdict struct {
	lsn    whence.LSN
	reason string // what is missing of it and what to do; empty: nothing, or the row is gone
	same   bool   // nothing has changed since it was judged before
}

type asideKey struct {
	table int32
	key   whence.Key
}

// judged keeps the newest verdict on a row until the unit's next keepAside.
func (u *unit) judged(t *capturedTable, key whence.Key, v verdict) {
	if v.reason != "" {
		t.SetAside = true
	}
	if !lookAside(t) {
		return
	}
	if u.verdicts == nil {
		u.verdicts = map[asideKey]verdict{}
	}
	u.verdicts[asideKey{t.ID, key}] = v
}

// lookAside tells whether something of the table may be set aside. While its rows
// are copied, other transactions may set some aside that this one does not see yet.
func lookAside(t *capturedTable) bool {
	return t.SetAside || t.State != whence.TableLive
}

// judgeTracks takes what the newest state of each row lacks.
func (u *unit) judgeTracks(tracks []*track) {
	for _, t := range tracks {
		v := verdict{lsn: t.seen}
		if n := len(t.pending); n > 0 {
			v.lsn = t.pending[n-1].lsn
			if r := t.pending[n-1].row; r != nil {
				v.reason = r.lacks.String()
			}
		} else if t.seen == 0 {
			continue // its changes are older than what is known
		} else {
			v.same = t.head != nil && !t.head.Deleted
		}
		u.judged(t.table, t.key, v)
	}
}

// A row may come by the stream and by a copy of its table, in any order; the
// newer verdict stands.
const (
	upsertAside = `
insert into whence.set_aside as a (table_id, key_digest, key, lsn, reason)
select table_id, digest, key, lsn::pg_lsn, reason
from unnest(@tables::int[], @digests::bytea[], @keys::text[], @lsns::text[], @reasons::text[]) as n(table_id, digest, key, lsn, reason)
order by table_id, digest
on conflict (table_id, key_digest) do update
set lsn = excluded.lsn, reason = excluded.reason, at = case when a.reason = excluded.reason then a.at else excluded.at end
where a.lsn <= excluded.lsn`
	deleteAside = `
delete from whence.set_aside a using unnest(@tables::int[], @digests::bytea[], @lsns::text[]) as n(table_id, digest, lsn)
where a.table_id = n.table_id and a.key_digest = n.digest and a.lsn <= n.lsn::pg_lsn`
	touchAside = `
update whence.set_aside a set lsn = greatest(a.lsn, n.lsn::pg_lsn)
from unnest(@tables::int[], @digests::bytea[], @lsns::text[]) as n(table_id, digest, lsn)
where a.table_id = n.table_id and a.key_digest = n.digest`
	deleteAsideBefore = `delete from whence.set_aside where table_id = @table and lsn < @before::pg_lsn`
	rewindAside       = `update whence.set_aside set lsn = '0/0' where table_id = any(@tables)`
)

// dropAside forgets rows that were set aside before a position: a truncation took
// them, or a copy of the table that shows a later state did not find them so.
func (u *unit) dropAside(ctx context.Context, table int32, before whence.LSN) error {
	if _, err := u.tx.Exec(ctx, deleteAsideBefore, pgx.NamedArgs{"table": table, "before": before}); err != nil {
		return fmt.Errorf("forget rows that were set aside: %w", pg.Translate(err))
	}
	return nil
}

type asideArgs struct {
	tables        []int32
	digests       [][]byte
	keys          []string
	lsns, reasons []string
}

func (a *asideArgs) named() pgx.NamedArgs {
	return pgx.NamedArgs{"tables": a.tables, "digests": a.digests, "keys": a.keys, "lsns": a.lsns, "reasons": a.reasons}
}

// The rows' records are locked by now, so whoever set one of them aside before has
// committed.
const selectAnyAside = `select exists (select from whence.set_aside where table_id = any(@tables))`

// anyAside tells whether the verdicts may have something to write: while a table
// is copied there is one on each row, and nearly always nothing is set aside.
func (u *unit) anyAside(ctx context.Context) (yes bool, err error) {
	var tables []int32
	for k := range u.verdicts {
		if slices.Contains(tables, k.table) {
			continue
		}
		if u.tables[k.table].SetAside {
			return true, nil
		}
		tables = append(tables, k.table)
	}
	if err := u.tx.QueryRow(ctx, selectAnyAside, pgx.NamedArgs{"tables": tables}).Scan(&yes); err != nil {
		return false, fmt.Errorf("look for rows that were set aside: %w", pg.Translate(err))
	}
	return yes, nil
}

// keepAside writes the verdicts. It costs nothing while there are none, which is
// so as long as every row of a live table is taken over whole.
func (u *unit) keepAside(ctx context.Context) error {
	if len(u.verdicts) == 0 {
		return nil
	}
	if some, err := u.anyAside(ctx); err != nil || !some {
		clear(u.verdicts)
		return err
	}
	var set, gone, same asideArgs
	example := map[int32]string{}
	for k, v := range u.verdicts {
		a := &gone
		switch {
		case v.same:
			a = &same
		case v.reason != "":
			a = &set
			example[k.table] = v.reason
		}
		digest := whence.DigestOf(string(k.key))
		a.tables = append(a.tables, k.table)
		a.digests = append(a.digests, digest[:])
		a.keys = append(a.keys, shown(k.key))
		a.lsns = append(a.lsns, v.lsn.String())
		a.reasons = append(a.reasons, v.reason)
	}
	clear(u.verdicts)
	b := &pgx.Batch{}
	for sql, a := range map[string]*asideArgs{upsertAside: &set, deleteAside: &gone, touchAside: &same} {
		if len(a.tables) > 0 {
			b.Queue(sql, a.named())
		}
	}
	if err := u.tx.SendBatch(ctx, b).Close(); err != nil {
		return fmt.Errorf("set rows aside: %w", pg.Translate(err))
	}
	for table, reason := range example {
		u.r.log.WarnContext(ctx, "some rows are not taken over whole", "table", u.tables[table].Name(), "why", reason)
	}
	return nil
}

// shown is a key as far as a person needs it.
func shown(key whence.Key) string {
	const enough = 500
	if len(key) <= enough {
		return string(key)
	}
	return strings.ToValidUTF8(string(key[:enough]), "") + "…"
}

// keyTooLong is why a row is left out.
func keyTooLong(key whence.Key) string {
	return fmt.Sprintf("the row is left out, because its key has %d bytes, of which %d can be stored: shorten it, or give the table another replica identity",
		len(key), maximumKey)
}

// AsideStatus is about the rows of a table that are not taken over whole.
type AsideStatus struct {
	Rows   int64
	Newest Aside // the zero value when there is none
}

// Aside is one row that is not taken over whole.
type Aside struct {
	Key    string // of a long one the beginning
	Reason string // what is missing and what to do
	At     time.Time
}

const selectAside = `
select count(*) over (), key, reason, at from whence.set_aside where table_id = @table order by at desc, key limit 1`

func (r *Registry) asideStatus(ctx context.Context, t whence.Table) (s AsideStatus, err error) {
	if !t.SetAside {
		return s, nil
	}
	n := &s.Newest
	err = r.pool.QueryRow(ctx, selectAside, pgx.NamedArgs{"table": t.ID}).Scan(&s.Rows, &n.Key, &n.Reason, &n.At)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return s, fmt.Errorf("read what is set aside: %w", pg.Translate(err))
	}
	return s, nil
}

const listAside = `select key, reason, at from whence.set_aside where table_id = @table order by at desc, key limit @limit`

// ListAside returns the rows of a table that are not taken over whole, newest
// first, limit at most.
func (r *Registry) ListAside(ctx context.Context, t whence.Table, limit int) ([]Aside, error) {
	rows, err := r.pool.Query(ctx, listAside, pgx.NamedArgs{"table": t.ID, "limit": limit})
	if err != nil {
		return nil, fmt.Errorf("list what is set aside: %w", pg.Translate(err))
	}
	out, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Aside])
	if err != nil {
		return nil, fmt.Errorf("list what is set aside: %w", pg.Translate(err))
	}
	return out, nil
}

const selectAsideKeys = `
select key_digest from whence.set_aside where table_id = @table and key_digest = any(@digests)`

// SetAside tells which of a table's rows are not taken over whole, as tx sees them.
func (r *Registry) SetAside(ctx context.Context, tx pgx.Tx, t whence.Table, keys []whence.Key) (map[whence.Key]bool, error) {
	if !t.SetAside || len(keys) == 0 {
		return nil, nil
	}
	of, digests := map[whence.Digest]whence.Key{}, [][]byte{}
	for _, k := range keys {
		d := whence.DigestOf(string(k))
		of[d] = k
		digests = append(digests, d[:])
	}
	rows, err := tx.Query(ctx, selectAsideKeys, pgx.NamedArgs{"table": t.ID, "digests": digests})
	if err != nil {
		return nil, fmt.Errorf("read what is set aside: %w", pg.Translate(err))
	}
	out := map[whence.Key]bool{}
	var digest []byte
	if _, err := pgx.ForEachRow(rows, []any{&digest}, func() error { out[of[whence.Digest(digest)]] = true; return nil }); err != nil {
		return nil, fmt.Errorf("read what is set aside: %w", pg.Translate(err))
	}
	return out, nil
}
