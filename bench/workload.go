package main

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/ingest"
)

// itemsSpec is how the table of the changes is registered: with all its columns.
var itemsSpec = ingest.TableSpec{Source: "app", Table: "public.items", TextColumns: []string{"title", "body"},
	SubjectColumn: "author", TimeColumn: "published_at", AttributeColumns: []string{"section", "views"}}

const (
	itemsSQL = `
create table items (id bigint primary key, title text not null, body text not null, author text not null,
    section text not null, views int not null, published_at timestamptz not null)`

	besideSQL = `
create table beside (id bigint generated always as identity primary key, payload text not null);
create table texts (i int primary key, title text not null, body text not null)`

	// write_changes makes transactions of 1 to 1,000 changes, evenly over the
	// orders of magnitude; half of the changes are insertions, the others updates
	// with another text, updates of other columns, and deletions. Every fifth
	// transaction also writes to a table that is not registered. No transaction
	// changes a row twice. The last one is an insertion alone, whose id it returns.
	writeSQL = `
create procedure write_changes(total int, texts int, seed float8, inout last bigint)
language plpgsql as $$
declare
    done int := 0; tx int := 0; size int; i int; u int; v int; d int; at bigint;
    low bigint := coalesce((select min(id) from items), 1);
    next bigint := coalesce((select max(id) from items), 0) + 1;
begin
    perform setseed(seed);
    while done < total - 1 loop
        tx := tx + 1;
        size := least(floor(1000 ^ random()), total - 1 - done);
        d := floor(size * 0.1 + random());
        u := floor(size * 0.2 + random());
        v := floor(size * 0.2 + random());
        if next - low < 10 * size or d + u + v > size then d := 0; u := 0; v := 0; end if;
        i := size - d - u - v;
        if d > 0 then delete from items where id >= low and id < low + d; low := low + d; end if;
        at := low + floor(random() * (next - low - u - v));
        if u > 0 then
            update items set title = t.title || ' ' || items.id || 'v' || tx, body = t.body from texts t
            where items.id >= at and items.id < at + u and t.i = (items.id + tx) % texts;
        end if;
        if v > 0 then update items set views = views + 1 where id >= at + u and id < at + u + v; end if;
        if i > 0 then
            insert into items select g, t.title || ' ' || g, t.body, 'author-' || g % 400, (array['harbour', 'ledger', 'orchard', 'foundry'])[1 + g % 4],
                g % 1000, timestamptz '2026-01-01 00:00:00+00' + g * interval '1 second'
            from generate_series(next, next + i - 1) g join texts t on t.i = g % texts;
            next := next + i;
        end if;
        if tx % 5 = 0 then insert into beside (payload) select 'payload ' || g from generate_series(1, 1 + size / 2) g; end if;
        commit;
        done := done + size;
    end loop;
    insert into items values (next, 'the last one ' || next, 'of its kind', 'author-0', 'ledger', 0, '2026-01-01 00:00:00+00');
    last := next;
end $$`

	callWriteSQL = `call write_changes(@total, @texts, @seed, null)`
	textCount    = 10_000
)

// prepareSource makes the tables of the changes and what the changes are made with.
func prepareSource(ctx context.Context, app *pgx.Conn) error {
	for _, sql := range []string{itemsSQL, besideSQL, writeSQL} {
		if _, err := app.Exec(ctx, sql); err != nil {
			return err
		}
	}
	rows := writeArticlesOf(99, textCount, 20, 40)
	_, err := app.CopyFrom(ctx, pgx.Identifier{"texts"}, []string{"i", "title", "body"}, pgx.CopyFromSlice(len(rows), func(i int) ([]any, error) {
		return []any{i, rows[i].title, rows[i].body}, nil
	}))
	if err != nil {
		return err
	}
	_, err = app.Exec(ctx, "vacuum analyze texts")
	return err
}

// stretch is a part of the source's log.
type stretch struct {
	changes int   // of the registered table, from the log's beginning
	last    int64 // the id of the row that the last transaction inserted
	end     whence.LSN
	bytes   int64 // of log
	took    time.Duration
}

// write writes changes up to a number of them.
func (w *world) write(ctx context.Context, before stretch, total int) (stretch, error) {
	s := stretch{changes: total}
	begun := time.Now()
	var from whence.LSN
	if err := w.app.QueryRow(ctx, "select pg_current_wal_insert_lsn()").Scan(&from); err != nil {
		return s, err
	}
	args := pgx.NamedArgs{"total": total - before.changes, "texts": textCount, "seed": 0.5}
	// The simple protocol: a procedure that commits cannot be called within the
	// implicit transaction of a pipeline.
	if err := w.app.QueryRow(ctx, callWriteSQL, pgx.QueryExecModeSimpleProtocol, args).Scan(&s.last); err != nil {
		return s, fmt.Errorf("write changes: %w", err)
	}
	if err := w.app.QueryRow(ctx, "select pg_current_wal_insert_lsn()").Scan(&s.end); err != nil {
		return s, err
	}
	s.took, s.bytes = time.Since(begun), int64(s.end-from)
	// A checkpoint, so that nobody's turn pays for writing these pages, and so
	// that a slot that has read all of it may let go of it.
	_, err := w.app.Exec(ctx, "checkpoint")
	return s, err
}
