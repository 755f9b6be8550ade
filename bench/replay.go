package main

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/bench/internal/scope"
	"github.com/whence-db/whence/embedder"
	"github.com/whence-db/whence/embedder/lexical"
	"github.com/whence-db/whence/index"
	"github.com/whence-db/whence/ingest"
	"github.com/whence-db/whence/internal/pg"
	"github.com/whence-db/whence/internal/seal"
	"github.com/whence-db/whence/query"
)

// statement is what was sent to the driver, with its arguments as they were given.
type statement struct {
	sql  string
	args []any
}

// recorder notes the statements of one connection at a time.
type recorder struct{ said []statement }

func (r *recorder) TraceQueryStart(ctx context.Context, _ *pgx.Conn, d pgx.TraceQueryStartData) context.Context {
	r.said = append(r.said, statement{d.SQL, slices.Clone(d.Args)})
	return ctx
}

func (r *recorder) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// record runs each question through the query engine once and returns what the
// engine sent to the database for it. This is what makes the rival's SQL the same
// as the server's, whatever that becomes.
func record(ctx context.Context, s *server, table whence.TableName, asked []string) ([][]statement, error) {
	cfg, err := pgxpool.ParseConfig(s.env["WHENCE_DATABASE_URL"])
	if err != nil {
		return nil, err
	}
	notes := &recorder{}
	cfg.MaxConns = 1
	cfg.ConnConfig.Tracer = notes
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		return nil, err
	}
	defer pool.Close()
	engine, err := newEngine(pool, s.env["WHENCE_SECRET_KEY"])
	if err != nil {
		return nil, err
	}
	everything, err := scope.Everything(ctx)
	if err != nil {
		return nil, err
	}
	out := make([][]statement, len(asked))
	for i, text := range asked {
		notes.said = nil
		if _, err := engine.Query(ctx, everything, query.Request{Text: text, Tables: []whence.TableName{table}}); err != nil {
			return nil, err
		}
		// Replaying opens and ends its own transaction of the same kind.
		out[i] = slices.DeleteFunc(notes.said, func(st statement) bool {
			return strings.HasPrefix(st.sql, "begin") || st.sql == "commit" || st.sql == "rollback"
		})
	}
	return out, nil
}

// newIndex opens what a server with that secret has in the database.
func newIndex(pool *pgxpool.Pool, secret string) (*index.Index, *ingest.Registry, error) {
	key, err := seal.ParseKey(secret)
	if err != nil {
		return nil, nil, err
	}
	x, err := index.New(index.Config{Pool: pool})
	if err != nil {
		return nil, nil, err
	}
	registry, err := ingest.NewRegistry(ingest.Config{Pool: pool, Index: x, Seal: key})
	return x, registry, err
}

func newEngine(pool *pgxpool.Pool, secret string) (*query.Engine, error) {
	x, registry, err := newIndex(pool, secret)
	if err != nil {
		return nil, err
	}
	return query.New(query.Config{Index: x, Registry: registry, Pool: pool, Models: []embedder.Model{lexical.Default()}})
}

// replay sends statements again in one read-only snapshot and reads every row,
// without decoding any. took, unless nil, is told how long each statement was.
func replay(ctx context.Context, pool *pgxpool.Pool, said []statement, took func(sql string, d time.Duration)) error {
	return pg.Snapshot(ctx, pool, func(tx pgx.Tx) error {
		for _, st := range said {
			begin := time.Now()
			rows, err := tx.Query(ctx, st.sql, st.args...)
			if err != nil {
				return err
			}
			for rows.Next() {
				rows.RawValues()
			}
			rows.Close()
			if err := rows.Err(); err != nil {
				return err
			}
			if took != nil {
				took(st.sql, time.Since(begin))
			}
		}
		return nil
	})
}

// share is how long one of the statements of a question takes.
type share struct {
	SQL string  `json:"sql"` // how it begins
	P50 float64 `json:"p50_ms"`
}

// shares replays each question once, alone, and returns the statements in the
// order of their time.
func shares(ctx context.Context, pool *pgxpool.Pool, said [][]statement) ([]share, error) {
	each := map[string][]time.Duration{}
	for _, q := range said {
		err := replay(ctx, pool, q, func(sql string, d time.Duration) { each[sql] = append(each[sql], d) })
		if err != nil {
			return nil, err
		}
	}
	var out []share
	for sql, took := range each {
		slices.Sort(took)
		out = append(out, share{strings.Join(strings.Fields(sql), " "), milliseconds(percentile(took, 0.5))})
	}
	slices.SortFunc(out, func(a, b share) int { return cmp.Compare(b.P50, a.P50) })
	for i := range out {
		out[i].SQL = out[i].SQL[:min(len(out[i].SQL), 64)]
	}
	return out, nil
}
