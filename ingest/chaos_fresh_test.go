package ingest

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/authz/authztest"
	"github.com/whence-db/whence/query"
)

// watch reads rows as agents do while everything goes on, and finds those that
// are called FRESH although the source had a newer one too long before.
type watch struct {
	engine *query.Engine
	scope  authz.Scope
	dsn    string
	tables []*chaosTable
	random *rand.Rand

	seen  map[string]sighting
	fresh int // readings that were called FRESH
}

// sighting is the newest state of a row that was seen in the source.
type sighting struct {
	rev  int64
	gone bool      // after rev there was no row
	at   time.Time // it was so by then
}

func (s *chaos) watch(ctx context.Context, g *errgroup.Group) *watch {
	engine, err := query.New(query.Config{Index: s.r.index, Registry: s.r, Pool: s.r.pool})
	if err != nil {
		s.t.Fatal(err)
	}
	w := &watch{engine: engine, scope: authztest.Scope(s.t, authz.ScopeSpec{AllTables: true, AllSubjects: true}), dsn: s.sourceDSN, tables: s.tables,
		random: rand.New(rand.NewPCG(s.random.Uint64(), 1)), seen: map[string]sighting{}}
	g.Go(func() error {
		for ctx.Err() == nil {
			if conn, err := pgx.Connect(ctx, w.dsn); err == nil { // else it is down
				err = w.look(ctx, conn)
				closeConn(ctx, conn)
				if err != nil {
					return err
				}
			}
			_ = sleep(ctx, 20*time.Millisecond)
		}
		return nil
	})
	return w
}

// look watches a few rows of each table, so that each is read often.
func (w *watch) look(ctx context.Context, conn *pgx.Conn) error {
	for ctx.Err() == nil && !conn.IsClosed() {
		t := w.tables[w.random.IntN(len(w.tables))]
		key := t.key(w.random.IntN(6) * 7)
		if err := w.row(ctx, conn, t, key); err != nil {
			return err
		}
		_ = sleep(ctx, 15*time.Millisecond)
	}
	return nil
}

// row reads one row on both sides. Trouble with a server proves nothing.
func (w *watch) row(ctx context.Context, conn *pgx.Conn, t *chaosTable, key []any) error {
	values := whence.Values{}
	for i, k := range t.keys {
		v := fmt.Sprint(key[i])
		values[unquote(k)] = &v
	}
	name, err := json.Marshal(values)
	if err != nil {
		return err
	}
	id := t.name + string(name)
	before := w.seen[id]
	asked := time.Now()
	r, err := w.engine.GetRecord(ctx, w.scope, query.Ref{Table: tableName(t), Key: values})
	said := int64(0)
	if err == nil && r.Freshness.State == whence.Fresh && r.Columns["rev"] != nil {
		w.fresh++
		if said, err = strconv.ParseInt(*r.Columns["rev"], 10, 64); err != nil {
			return err
		}
	}
	var rev int64
	err = conn.QueryRow(ctx, `select coalesce((select rev::bigint from `+t.sql+` where `+t.at(1)+`), 0)`, key...).Scan(&rev)
	if err != nil {
		return nil //nolint:nilerr // it is away just now
	}
	// A row may also come back as it was, with the partition that holds it.
	const most = 2 * time.Second // of all targets that schedules set
	old := said > 0 && said != rev && (said < before.rev || said == before.rev && before.gone)
	if late := asked.Sub(before.at); old && late > most {
		return fmt.Errorf("%s was called FRESH with rev %d, behind %v, although the source had rev %d (gone: %v) %v earlier, and has %d",
			id, said, r.Freshness.Behind, before.rev, before.gone, late, rev)
	}
	switch {
	case rev > before.rev || rev == before.rev && before.gone:
		w.seen[id] = sighting{rev: rev, at: time.Now()}
	case rev == 0 && before.rev > 0 && !before.gone:
		w.seen[id] = sighting{rev: before.rev, gone: true, at: time.Now()}
	case rev > 0 && rev < before.rev:
		delete(w.seen, id) // a row that waited for another's end to come
	}
	return nil
}

func unquote(identifier string) string {
	if unquoted, err := strconv.Unquote(identifier); err == nil {
		return unquoted
	}
	return identifier
}
