package cdc

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/whence-db/whence"
)

// Reader reads single rows of a source as they are now, in the text forms that
// capture brings them in. It keeps a few connections while it is in use.
type Reader struct{ pool *pgxpool.Pool }

const (
	readerConns = 4
	readerIdle  = time.Minute
)

// NewReader connects to nothing yet. The error repeats nothing of the string.
func NewReader(connString string) (*Reader, error) {
	cfg, err := pgxpool.ParseConfig(connString)
	if err != nil {
		return nil, errors.New("the source's connection string cannot be read")
	}
	cfg.MaxConns, cfg.MinConns, cfg.MaxConnIdleTime = readerConns, 0, readerIdle
	defaultTo(&cfg.ConnConfig.ConnectTimeout, connectLimit)
	delete(cfg.ConnConfig.RuntimeParams, "replication")
	for k, v := range sessionParameters {
		cfg.ConnConfig.RuntimeParams[k] = v
	}
	cfg.ConnConfig.RuntimeParams["application_name"] = "whence verify"
	cfg.ConnConfig.RuntimeParams["default_transaction_read_only"] = "on"
	pool, err := pgxpool.NewWithConfig(context.Background(), cfg)
	if err != nil {
		return nil, errors.New("the source's connection string cannot be used")
	}
	return &Reader{pool}, nil
}

// Close ends the connections.
func (r *Reader) Close() { r.pool.Close() }

// Asked is the rows of one table to read.
type Asked struct {
	Table whence.Table
	Keys  []whence.Values
}

// Rows reads all rows asked for in one round trip; what is not there is nil.
func (r *Reader) Rows(ctx context.Context, asked []Asked) (out [][]whence.Values, err error) {
	err = r.pool.AcquireFunc(ctx, func(conn *pgxpool.Conn) error {
		b := &pgconn.Batch{}
		for _, a := range asked {
			query := liveRow(a.Table)
			for _, key := range a.Keys {
				args := make([][]byte, len(a.Table.KeyColumns))
				for i, name := range a.Table.KeyColumns {
					if key[name] == nil {
						return fmt.Errorf("a key of %s lacks the column %q", a.Table.Name(), name)
					}
					args[i] = []byte(*key[name])
				}
				b.ExecParams(query, args, nil, nil, nil)
			}
		}
		results := conn.Conn().PgConn().ExecBatch(ctx, b)
		out = nil
		for _, a := range asked {
			rows, err := liveRows(results, a)
			if err != nil {
				_ = results.Close() // what went wrong first counts
				return err
			}
			out = append(out, rows)
		}
		return results.Close()
	})
	if err != nil {
		return nil, fmt.Errorf("read rows of the source: %w", err)
	}
	return out, nil
}

// liveRow selects a row by its key. The kind of table is not known here, so one
// that others inherit from, whose rows have keys of their own, is told by tableoid.
func liveRow(t whence.Table) string {
	var list, match []string
	for _, name := range t.Columns() {
		list = append(list, pgx.Identifier{name}.Sanitize())
	}
	for i, name := range t.KeyColumns {
		match = append(match, fmt.Sprintf("%s = $%d", pgx.Identifier{name}.Sanitize(), i+1))
	}
	name := sqlName(t.Schema, t.Relation)
	return "select " + strings.Join(list, ", ") + " from " + name + " t where " + strings.Join(match, " and ") +
		" and (t.tableoid = " + literal(name) + "::regclass or exists (select from pg_partition_tree(" + literal(name) + "::regclass) p where p.relid = t.tableoid))"
}

func literal(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }

func liveRows(results *pgconn.MultiResultReader, a Asked) ([]whence.Values, error) {
	columns := a.Table.Columns()
	r := relation{message: relationMessage{schema: a.Table.Schema, name: a.Table.Relation}, take: make([]bool, len(columns))}
	for i, name := range columns {
		r.message.columns = append(r.message.columns, relationColumn{name: name})
		r.take[i] = true
	}
	out := make([]whence.Values, len(a.Keys))
	values := make(tuple, len(columns))
	for i := range a.Keys {
		if !results.NextResult() {
			return nil, errors.Join(results.Close(), fmt.Errorf("the source answered for %d of %d rows", i, len(a.Keys)))
		}
		reader := results.ResultReader()
		for reader.NextRow() {
			for j, v := range reader.Values() {
				values[j] = column{kind: 't', data: v}
				if v == nil {
					values[j].kind = 'n'
				}
			}
			out[i], _ = r.values(values, r.take)
		}
		if _, err := reader.Close(); err != nil {
			return nil, err
		}
	}
	return out, nil
}
