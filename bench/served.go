package main

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/whence-db/whence/embedder/lexical"
	"github.com/whence-db/whence/index"
	"github.com/whence-db/whence/ingest"
	"github.com/whence-db/whence/internal/pg"
	"github.com/whence-db/whence/internal/seal"
	"github.com/whence-db/whence/migrations"
)

// served is `whence serve` without the embedder's role on a memory database of
// its own. This process only registers; capturing is the other's alone.
type served struct {
	*program
	world    *world
	pool     *pgxpool.Pool
	registry *ingest.Registry
}

const servedName = "served"

// serve starts it. What the drains have left of the log nobody needs any more.
func (w *world) serve(ctx context.Context) (s *served, err error) {
	for _, slot := range []string{w.slot, originSlot} {
		if err := w.dropSlot(ctx, slot); err != nil {
			return nil, err
		}
	}
	if err := w.copyDatabase(ctx, "template0", servedName); err != nil {
		return nil, err
	}
	dsn := w.memory.DSN(servedName)
	if err := migrations.Up(ctx, dsn); err != nil {
		return nil, err
	}
	p, err := startProgram(ctx, func(string) []string {
		return []string{"serve", "--listen", "127.0.0.1:0", "--roles", "api,capture"}
	}, "WHENCE_DATABASE_URL="+dsn, "WHENCE_SECRET_KEY="+w.key)
	if err != nil {
		return nil, err
	}
	s = &served{program: p, world: w}
	if err := s.open(ctx, dsn); err != nil {
		return nil, errors.Join(err, s.stop())
	}
	return s, nil
}

func (s *served) open(ctx context.Context, dsn string) (err error) {
	if s.pool, s.registry, err = openMemory(ctx, dsn, s.world.key); err != nil {
		return err
	}
	_, err = s.registry.CreateSource(ctx, "app", s.world.source.DSN("app"), "")
	return err
}

func (s *served) stop() error {
	if s.pool != nil {
		s.pool.Close()
	}
	return s.program.stop()
}

func (s *served) site() site {
	return site{source: s.world.source.DSN("app"), memory: s.world.memory.DSN(servedName),
		register: func(ctx context.Context, round int) error {
			_, err := s.registry.RegisterTable(ctx, ingest.TableSpec{Source: "app", Table: "public." + tableName(round),
				TextColumns: []string{"title", "body"}, SubjectColumn: "author", TimeColumn: "published_at", AttributeColumns: []string{"section"}})
			return err
		},
		unregister: func(ctx context.Context, round int) error {
			return s.registry.UnregisterTable(ctx, registeredName(round))
		}}
}

// openMemory opens a memory database with a space for the built-in model's vectors.
func openMemory(ctx context.Context, dsn, secret string) (_ *pgxpool.Pool, _ *ingest.Registry, err error) {
	key, err := seal.ParseKey(secret)
	if err != nil {
		return nil, nil, err
	}
	pool, err := pg.NewPool(ctx, dsn, 20)
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			pool.Close()
		}
	}()
	x, err := index.New(index.Config{Pool: pool})
	if err != nil {
		return nil, nil, err
	}
	model := lexical.Default()
	if _, err := x.EnsureSpace(ctx, model); err != nil {
		return nil, nil, err
	}
	registry, err := ingest.NewRegistry(ingest.Config{Pool: pool, Index: x, Seal: key})
	return pool, registry, err
}
