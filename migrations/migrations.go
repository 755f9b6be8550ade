// Package migrations brings a memory database to the schema that this build
// expects. Files are embedded, numbered and forward-only; processes that start
// together take turns under an advisory lock.
package migrations

import (
	"context"
	"database/sql"
	"embed"
	"fmt"
	"io/fs"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib" // the database/sql driver that goose needs
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"
)

//go:embed *.sql
var files embed.FS

// Up applies every migration that the database lacks.
func Up(ctx context.Context, dsn string) error {
	return with(ctx, dsn, makeSchema, func(p *goose.Provider) error {
		if _, err := p.Up(ctx); err != nil {
			return fmt.Errorf("migrate: %w", err)
		}
		return nil
	})
}

// Pending tells whether the database lacks a migration. It changes nothing, so
// the role may be one that owns nothing.
func Pending(ctx context.Context, dsn string) (pending bool, err error) {
	started, err := started(ctx, dsn)
	if err != nil || !started {
		return true, err
	}
	err = with(ctx, dsn, "", func(p *goose.Provider) error {
		pending, err = p.HasPending(ctx)
		return err
	})
	return pending, err
}

// makeSchema comes before the first migration, whose bookkeeping it holds: were
// that found by the search path, a role named like the schema would lose it. The
// lock keeps two first starts apart.
const makeSchema = `
do $$ begin
    perform pg_advisory_xact_lock(7310402417);
    if to_regnamespace('whence') is null then
        create schema whence;
    end if;
end $$`

// started tells whether any migration was ever applied.
func started(ctx context.Context, dsn string) (yes bool, err error) {
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return false, fmt.Errorf("migrate: %w", err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	if err := conn.QueryRow(ctx, `select to_regclass('whence.migrations') is not null`).Scan(&yes); err != nil {
		return false, fmt.Errorf("migrate: %w", err)
	}
	return yes, nil
}

func with(ctx context.Context, dsn, first string, fn func(*goose.Provider) error) error {
	cfg, err := pgx.ParseConfig(dsn)
	if err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	db := stdlib.OpenDB(*cfg)
	defer func(db *sql.DB) { _ = db.Close() }(db)
	if _, err := db.ExecContext(ctx, first); err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	locker, err := lock.NewPostgresSessionLocker()
	if err != nil {
		return err
	}
	p, err := goose.NewProvider(goose.DialectPostgres, db, fs.FS(files),
		goose.WithSessionLocker(locker), goose.WithTableName("whence.migrations"))
	if err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	return fn(p)
}
