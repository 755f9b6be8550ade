// Package pg is the edge to the memory database: a pool, transactions that are
// tried again when Postgres asks for it, and the translation of driver errors
// to the sentinels of package whence.
package pg

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/whence-db/whence"
)

// NewPool opens a pool of at most size connections and checks that the server answers.
func NewPool(ctx context.Context, dsn string, size int32) (*pgxpool.Pool, error) {
	cfg, err := pgxpool.ParseConfig(dsn)
	if err != nil {
		return nil, fmt.Errorf("memory database: %w", err)
	}
	cfg.MaxConns = size
	cfg.ConnConfig.RuntimeParams["application_name"] = "whence"
	cfg.ConnConfig.RuntimeParams["timezone"] = "UTC"
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("memory database: %w", err)
	}
	if err := pool.Ping(ctx); err != nil {
		pool.Close()
		return nil, fmt.Errorf("memory database: %w", err)
	}
	return pool, nil
}

// Beginner is a pool or a connection.
type Beginner interface {
	BeginTx(ctx context.Context, o pgx.TxOptions) (pgx.Tx, error)
}

const attempts = 5

// InTx runs fn in a read-committed transaction. After a serialisation failure or
// a deadlock fn runs again, so it must not leave anything outside the transaction.
func InTx(ctx context.Context, db Beginner, fn func(pgx.Tx) error) error {
	return run(ctx, db, pgx.TxOptions{}, fn)
}

// InTxWith is InTx with options.
func InTxWith(ctx context.Context, db Beginner, o pgx.TxOptions, fn func(pgx.Tx) error) error {
	return run(ctx, db, o, fn)
}

// Snapshot runs fn in one read-only snapshot: all its statements see the same moment.
func Snapshot(ctx context.Context, db Beginner, fn func(pgx.Tx) error) error {
	return run(ctx, db, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, fn)
}

func run(ctx context.Context, db Beginner, o pgx.TxOptions, fn func(pgx.Tx) error) error {
	for try := 1; ; try++ {
		err := pgx.BeginTxFunc(ctx, db, o, fn)
		if err == nil || try == attempts || !retryable(err) {
			return Translate(err)
		}
		pause := time.Duration(rand.Int64N(int64(try) * int64(10*time.Millisecond))) //nolint:gosec // jitter is no secret
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}

func retryable(err error) bool {
	var pe *pgconn.PgError
	return errors.As(err, &pe) && (pe.Code == "40001" || pe.Code == "40P01")
}

// Translate turns what the driver says into the sentinels that callers know.
// Errors that are not the caller's business stay as they are.
func Translate(err error) error {
	if err == nil {
		return nil
	}
	var known *whence.Error
	if errors.As(err, &known) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	var pe *pgconn.PgError
	var ce *pgconn.ConnectError
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return &whence.Error{Kind: whence.ErrNotFound, Reason: "NOT_FOUND", Message: "not found", Err: err}
	case errors.As(err, &pe):
		switch {
		case pe.Code == "22021": // a NUL byte, which no text in Postgres can hold
			return &whence.Error{Kind: whence.ErrInvalid, Reason: "TEXT_INVALID", Message: "a text holds a NUL byte or is not UTF-8; leave it out", Err: err}
		case pe.Code == "23505":
			return &whence.Error{Kind: whence.ErrExists, Reason: "ALREADY_EXISTS", Message: "already exists", Err: err}
		case pe.Code[:2] == "08", pe.Code[:2] == "57", pe.Code[:2] == "53", retryable(err):
			return unavailable(err)
		}
	case errors.As(err, &ce), pgconn.SafeToRetry(err):
		return unavailable(err)
	}
	return err
}

func unavailable(err error) error {
	return &whence.Error{Kind: whence.ErrUnavailable, Reason: "MEMORY_DATABASE_UNAVAILABLE",
		Message: "the memory database does not answer; try again", RetryAfter: time.Second, Err: err}
}
