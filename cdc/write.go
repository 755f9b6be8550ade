package cdc

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/whence-db/whence"
)

// Writer gives connections to a source for transactions that change rows, with values
// in the text forms that capture brings them in. It keeps a few while it is in use.
type Writer struct {
	pool *pgxpool.Pool
	// flush has connections of its own: a transaction that holds the last one of the
	// pool would wait for itself.
	flush *pgxpool.Pool
}

const (
	writerConns  = 4
	flusherConns = 2
)

// NewWriter connects to nothing yet. The error repeats nothing of the string.
func NewWriter(connString string) (*Writer, error) {
	cfg, err := pgxpool.ParseConfig(connString)
	if err != nil {
		return nil, errors.New("the source's connection string cannot be read")
	}
	cfg.MaxConns, cfg.MinConns, cfg.MaxConnIdleTime = writerConns, 0, readerIdle
	defaultTo(&cfg.ConnConfig.ConnectTimeout, connectLimit)
	delete(cfg.ConnConfig.RuntimeParams, "replication")
	parameters := maps.Clone(sessionParameters)
	// Triggers of the source's owner find what they name as for any other client, and
	// a role that is not to write is not made to.
	delete(parameters, "search_path")
	delete(parameters, "default_transaction_read_only")
	parameters["application_name"] = "whence action"
	maps.Copy(cfg.ConnConfig.RuntimeParams, parameters)
	cfg.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, unsetTimeout)
		return err
	}
	w := &Writer{}
	if w.pool, err = pgxpool.NewWithConfig(context.Background(), cfg); err != nil {
		return nil, errors.New("the source's connection string cannot be used")
	}
	few := cfg.Copy()
	few.MaxConns = flusherConns
	if w.flush, err = pgxpool.NewWithConfig(context.Background(), few); err != nil {
		w.pool.Close()
		return nil, errors.New("the source's connection string cannot be used")
	}
	return w, nil
}

// Close ends the connections, once they were given back.
func (w *Writer) Close() {
	w.pool.Close()
	w.flush.Close()
}

// Acquire takes a connection and says which cluster it leads to; that is zero when
// the source does not let the role ask. The caller gives it back by Release.
func (w *Writer) Acquire(ctx context.Context) (*pgxpool.Conn, Cluster, error) {
	var at Cluster
	conn, err := live(ctx, w.pool, func(conn *pgxpool.Conn) error {
		err := conn.QueryRow(ctx, clusterSQL).Scan(&at.System, &at.Timeline)
		if isCode(err, codeDenied) {
			return nil
		}
		return err
	})
	if err != nil {
		return nil, at, fmt.Errorf("connect to the source: %w", err)
	}
	return conn, at, nil
}

// live takes a connection out of a pool that answers a question. One that the source
// has ended, while it lay there, is thrown away for the next.
func live(ctx context.Context, pool *pgxpool.Pool, ask func(*pgxpool.Conn) error) (*pgxpool.Conn, error) {
	for tries := pool.Config().MaxConns; ; tries-- {
		conn, err := pool.Acquire(ctx)
		if err != nil {
			return nil, err
		}
		if err = ask(conn); err == nil {
			return conn, nil
		}
		gone := conn.Conn().IsClosed()
		conn.Release()
		if !gone || tries == 0 || ctx.Err() != nil {
			return nil, err
		}
	}
}

const (
	// The message makes the commit write to the log, and so wait until that is on disk.
	emitSQL    = `select pg_logical_emit_message(true, 'whence', '')`
	flushedSQL = `select pg_current_wal_flush_lsn() >= $1::pg_lsn`
)

// Flush returns once the source's log is on disk up to a position, whoever wrote it.
func (w *Writer) Flush(ctx context.Context, upTo whence.LSN) error {
	for wait := time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		var done bool
		conn, err := live(ctx, w.flush, func(conn *pgxpool.Conn) error {
			if _, err := conn.Exec(ctx, emitSQL); err != nil {
				return err
			}
			return conn.QueryRow(ctx, flushedSQL, upTo).Scan(&done)
		})
		if err != nil {
			return fmt.Errorf("flush the source's log: %w", err)
		}
		conn.Release()
		if done {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
	}
}
