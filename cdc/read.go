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

// Rows reads all rows asked for in one round trip, once the server has said that it
// is the primary of the cluster that is captured: another's rows say nothing of
// these. What is not there is nil.
func (r *Reader) Rows(ctx context.Context, of Cluster, asked []Asked) (out [][]whence.Values, err error) {
	err = r.pool.AcquireFunc(ctx, func(conn *pgxpool.Conn) error {
		if err := onCluster(ctx, conn.Conn(), of); err != nil {
			return err
		}
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
	out := make([]whence.Values, len(a.Keys))
	for i := range a.Keys {
		rows, err := scanRows(results, a.Table)
		if err != nil {
			return nil, err
		}
		if len(rows) > 0 {
			out[i] = rows[0]
		}
	}
	return out, nil
}

// scanRows reads the next result, whose columns are the table's.
func scanRows(results *pgconn.MultiResultReader, t whence.Table) (out []whence.Values, err error) {
	columns := t.Columns()
	r := relation{take: make([]bool, len(columns))}
	for i, name := range columns {
		r.message.columns = append(r.message.columns, relationColumn{name: name})
		r.take[i] = true
	}
	if !results.NextResult() {
		return nil, errors.Join(results.Close(), errors.New("the source did not answer each question"))
	}
	reader := results.ResultReader()
	values := make(tuple, len(columns))
	for reader.NextRow() {
		for i, v := range reader.Values() {
			values[i] = column{kind: 't', data: v}
			if v == nil {
				values[i].kind = 'n'
			}
		}
		row, _ := r.values(values, r.take)
		out = append(out, row)
	}
	_, err = reader.Close()
	return out, err
}

// Sample reads about most rows from all over a table: of a large one, those of
// blocks drawn by chance; all tells that there are no others. in is how the table
// was inspected.
func (r *Reader) Sample(ctx context.Context, t whence.Table, in Inspection, most int) (out []whence.Values, all bool, err error) {
	var list []string
	for _, name := range t.Columns() {
		list = append(list, pgx.Identifier{name}.Sanitize())
	}
	query := "select " + strings.Join(list, ", ") + fromTable(t, in.Kind)
	drawn := in.EstimatedRows > int64(2*most)
	if drawn {
		query += fmt.Sprintf(" tablesample system (%g)", max(100*float64(most)/float64(in.EstimatedRows), 1e-4))
	}
	query += fmt.Sprintf(" limit %d", 2*most)
	err = r.pool.AcquireFunc(ctx, func(conn *pgxpool.Conn) error {
		b := &pgconn.Batch{}
		b.ExecParams(query, nil, nil, nil, nil)
		results := conn.Conn().PgConn().ExecBatch(ctx, b)
		out, err = scanRows(results, t)
		return errors.Join(err, results.Close())
	})
	if err != nil {
		return nil, false, fmt.Errorf("read a sample of %s: %w", t.Name(), err)
	}
	return out, !drawn && len(out) < 2*most, nil
}
