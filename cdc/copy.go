package cdc

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"golang.org/x/sync/errgroup"

	"github.com/whence-db/whence"
)

// backfillBytes of values make a batch complete before its row count does.
const backfillBytes = 4 << 20

// tablePart is a part with what it takes to read it.
type tablePart struct {
	Part
	from   string // a FROM clause
	blocks int64  // at least as many as hold rows that the snapshot shows
	whole  bool   // cannot be read in ranges
}

// A rewritten heap keeps what its rows say but not where they are, so the file
// is asked for by function, which tells the present one, under the lock. The
// catalogue's row is as the snapshot shows it.
const partsSQL = `
select c.oid::bigint, pg_relation_filenode(c.oid)::bigint, c.relfilenode::bigint, n.nspname::text, c.relname::text,
       pg_relation_size(c.oid) / current_setting('block_size')::int, has_table_privilege(c.oid, 'select')
  from pg_class c join pg_namespace n on n.oid = c.relnamespace
 where (c.oid = @root::text::regclass or c.oid in (select p.relid from pg_partition_tree(@root::text::regclass) p where p.isleaf))
   and c.relkind = 'r'
 order by c.oid`

// errRewritten asks for a newer snapshot: to an older one, the rows that ALTER TABLE
// has written anew seem not to be there.
var errRewritten = errors.New("the table was rewritten between the snapshot and the copying")

// readParts locks the table against being rewritten until the transaction ends,
// and tells where its rows are. A partition that the role may read only by way of
// its root makes the whole table one part.
func readParts(ctx context.Context, conn *pgx.Conn, t whence.Table, kind Kind) ([]tablePart, error) {
	name, only := sqlName(t.Schema, t.Relation), "only "
	if kind == KindPartitioned {
		only = ""
	}
	if _, err := conn.Exec(ctx, "lock table "+only+name+" in access share mode"); err != nil {
		return nil, err
	}
	rows, err := conn.Query(ctx, partsSQL, pgx.NamedArgs{"root": name})
	if err != nil {
		return nil, err
	}
	var parts []tablePart
	readable := true
	var oid, file, was int64
	var schema, relation string
	var p tablePart
	var may bool
	_, err = pgx.ForEachRow(rows, []any{&oid, &file, &was, &schema, &relation, &p.blocks, &may}, func() error {
		if file != was {
			return errRewritten
		}
		p.Part = Part{OID: uint32(oid), File: uint32(file)}
		p.from = " from only " + sqlName(schema, relation)
		parts = append(parts, p)
		readable = readable && may
		return nil
	})
	if err != nil {
		return nil, err
	}
	if !readable { // what was read is kept under the first one's name
		return []tablePart{{Part: Part{OID: parts[0].OID}, from: fromTable(t, kind), blocks: 1, whole: true}}, nil
	}
	return parts, nil
}

// span is a range that one worker reads.
type span struct {
	tablePart
	from, to int64
}

// left cuts what was not copied into ranges of at most size blocks.
func left(parts []tablePart, done []Blocks, size int64) (out []span) {
	for _, p := range parts {
		if p.whole {
			out = append(out, span{tablePart: p, to: p.blocks})
			continue
		}
		var had []Blocks
		for _, b := range done {
			if b.Part == p.Part {
				had = append(had, b)
			}
		}
		slices.SortFunc(had, func(a, b Blocks) int { return cmp.Compare(a.From, b.From) })
		at := int64(0)
		for _, b := range append(had, Blocks{From: p.blocks, To: p.blocks}) {
			for at < b.From {
				to := min(at+size, b.From, p.blocks)
				if to <= at {
					break
				}
				out = append(out, span{tablePart: p, from: at, to: to})
				at = to
			}
			at = max(at, b.To)
		}
	}
	return out
}

// copying is the copying of one table.
type copying struct {
	*Capture
	table    whence.Table
	columns  []string
	snapshot whence.LSN // that is read from
	rows     int64      // about as many it shows
}

// parts reads the ranges by several connections that see the same snapshot.
func (k *copying) parts(ctx context.Context, conn *pgx.Conn, spans []span) error {
	var next atomic.Int64
	work := func(ctx context.Context, conn *pgconn.PgConn) error {
		for {
			i := int(next.Add(1)) - 1
			if i >= len(spans) {
				return nil
			}
			if err := k.span(ctx, conn, spans[i]); err != nil {
				return err
			}
		}
	}
	g, gctx := errgroup.WithContext(ctx)
	if helpers := min(k.cfg.Workers, len(spans)) - 1; helpers > 0 {
		var name string
		if err := conn.QueryRow(ctx, "select pg_export_snapshot()").Scan(&name); err != nil {
			return fmt.Errorf("share the snapshot: %w", err)
		}
		for range helpers {
			g.Go(func() error {
				helper, err := k.connectAttached(gctx)
				if err != nil {
					return err
				}
				defer closeConn(gctx, helper.PgConn())
				if err := enterSnapshot(gctx, helper, name); err != nil {
					return err
				}
				return work(gctx, helper.PgConn())
			})
		}
	}
	g.Go(func() error { return work(gctx, conn.PgConn()) })
	return g.Wait()
}

// span streams a range's rows in text form: the server sends no faster than the
// sink takes them, and no more than a batch is held. What is read of a part comes
// in the order of its blocks.
func (k *copying) span(ctx context.Context, conn *pgconn.PgConn, s span) error {
	where, place := "", "null"
	if !s.whole {
		place = "ctid"
		where = fmt.Sprintf(" where ctid >= '(%d,0)' and ctid < '(%d,0)'", s.from, s.to)
	}
	b := batcher{copying: k, read: Blocks{Part: s.Part, From: s.from, To: s.from}}
	block := s.from
	err := k.query(ctx, conn, "select "+place+", "+k.list()+s.tablePart.from+where, nil, func(place []byte, row whence.Values, size int) error {
		if !s.whole {
			at, err := blockOf(place)
			if err != nil || at < block {
				return errors.Join(err, fmt.Errorf("block %d came after block %d", at, block))
			}
			block = at
		}
		return b.add(ctx, row, size, block)
	})
	if err != nil {
		return err
	}
	return b.send(ctx, s.to)
}

// blockOf reads the block of a ctid, "(block,item)".
func blockOf(ctid []byte) (int64, error) {
	text, _, ok := strings.Cut(strings.TrimPrefix(string(ctid), "("), ",")
	n, err := strconv.ParseInt(text, 10, 64)
	if !ok || err != nil {
		return 0, fmt.Errorf("%q is not the place of a row", ctid)
	}
	return n, nil
}

// batcher hands rows on, many at a time.
type batcher struct {
	*copying
	batch []whence.Values
	bytes int
	read  Blocks // of the batch, as far as they are complete
}

// add takes a row of a block; the blocks before that are complete.
func (b *batcher) add(ctx context.Context, row whence.Values, size int, block int64) error {
	if len(b.batch) >= b.cfg.BackfillBatch || b.bytes >= backfillBytes {
		if err := b.send(ctx, block); err != nil {
			return err
		}
	}
	b.batch, b.bytes = append(b.batch, row), b.bytes+size
	return nil
}

func (b *batcher) send(ctx context.Context, block int64) error {
	b.read.To = max(block, b.read.From)
	if len(b.batch) == 0 && b.read.From == b.read.To {
		return nil
	}
	if err := b.sink.BackfillRows(ctx, b.table.ID, b.snapshot, b.batch, b.read); err != nil {
		return fmt.Errorf("store rows of the backfill: %w", err)
	}
	b.batch, b.bytes, b.read.From = nil, 0, b.read.To
	return nil
}

// owed reads those rows by their keys, from a new snapshot, that the stream
// brought in part only.
func (k *copying) owed(ctx context.Context, keys []whence.Values) error {
	return k.from(ctx, func(conn *pgx.Conn, in Inspection) error {
		if _, err := k.start(ctx); err != nil {
			return err
		}
		query := k.byKey(in)
		b := batcher{copying: k}
		for _, key := range keys {
			var args [][]byte
			for _, name := range k.table.KeyColumns {
				if key[name] == nil {
					return fmt.Errorf("a record's key lacks the column %q", name)
				}
				args = append(args, []byte(*key[name]))
			}
			err := k.query(ctx, conn.PgConn(), query, args, func(_ []byte, row whence.Values, size int) error { return b.add(ctx, row, size, 0) })
			if err != nil {
				return err
			}
		}
		return b.send(ctx, 0)
	})
}

// byKey selects one row.
func (k *copying) byKey(in Inspection) string {
	types := map[string]string{}
	for _, c := range in.Columns {
		types[c.Name] = c.Type
	}
	var match []string
	for i, name := range k.table.KeyColumns {
		match = append(match, fmt.Sprintf("%s = $%d::text::%s", pgx.Identifier{name}.Sanitize(), i+1, types[name]))
	}
	return "select null, " + k.list() + fromTable(k.table, in.Kind) + " where " + strings.Join(match, " and ")
}

func (k *copying) list() string {
	names := make([]string, len(k.columns))
	for i, name := range k.columns {
		names[i] = pgx.Identifier{name}.Sanitize()
	}
	return strings.Join(names, ", ")
}

// query runs one whose first column tells the place of the row.
func (k *copying) query(ctx context.Context, conn *pgconn.PgConn, query string, args [][]byte, fn func(place []byte, row whence.Values, size int) error) error {
	r := relation{message: relationMessage{schema: k.table.Schema, name: k.table.Relation}, take: make([]bool, len(k.columns))}
	for i, name := range k.columns {
		r.message.columns = append(r.message.columns, relationColumn{name: name})
		r.take[i] = true
	}
	values := make(tuple, len(k.columns))
	result := conn.ExecParams(ctx, query, args, nil, nil, nil)
	for result.NextRow() {
		place := result.Values()[0]
		for i, v := range result.Values()[1:] {
			values[i] = column{kind: 't', data: v}
			if v == nil {
				values[i].kind = 'n'
			}
		}
		row, size := r.values(values, r.take)
		if err := fn(place, row, size); err != nil {
			return err // the connection is closed with the result unread
		}
	}
	_, err := result.Close()
	return fromSource(err, "copy rows")
}
