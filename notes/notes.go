// Package notes keeps what agents remember by themselves. A note is a record of
// the built-in table whence.notes: it has versions, chunks and vectors like a row,
// is found by the same questions, and says by its origin who wrote it, in which
// task, and for whom.
//
// The governing idea: a note is written inside the transaction that records the
// call, so there is no note without its audit entry, and a note is worth what it
// rests on, so it names the versions that its author was shown.
package notes

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/index"
	"github.com/whence-db/whence/internal/pg"
	"github.com/whence-db/whence/lineage"
)

// Config says what notes are kept in; all but Log and Every are required.
type Config struct {
	Pool    *pgxpool.Pool // of the memory database
	Index   *index.Index
	Lineage *lineage.Store
	// Executions hold the words of notes that actions wrote; nil: none does.
	Executions interface {
		Erase(ctx context.Context, tx pgx.Tx, gone []whence.Gone) error
	}
	Every time.Duration // between looks for notes that have ended; default 30 s
	Log   *slog.Logger  // default: discards
}

// Store writes and removes notes. It is safe for concurrent use.
type Store struct{ Config }

// New checks the configuration.
func New(c Config) (*Store, error) {
	if c.Pool == nil || c.Index == nil || c.Lineage == nil {
		return nil, errors.New("notes: a pool, an index and a lineage store are needed")
	}
	if c.Every <= 0 {
		c.Every = 30 * time.Second
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &Store{c}, nil
}

// Run removes notes whose end has passed, until ctx ends. They are not found from
// that moment on; this makes them leave nothing behind.
func (s *Store) Run(ctx context.Context) error {
	t := time.NewTicker(s.Every)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.C:
			if err := s.Sweep(ctx); err != nil && ctx.Err() == nil {
				s.Log.WarnContext(ctx, "cannot remove notes that have ended; trying again", "error", err)
			}
		}
	}
}

// erase takes the words of notes out of the answers that showed them, and of the
// executions that wrote them.
func (s *Store) erase(ctx context.Context, tx pgx.Tx, gone []whence.Gone) error {
	if err := s.Lineage.Erase(ctx, tx, gone); err != nil || s.Executions == nil {
		return err
	}
	return s.Executions.Erase(ctx, tx, gone)
}

// Sweep removes the notes whose end has passed.
func (s *Store) Sweep(ctx context.Context) error {
	const batch = 500
	for {
		n := 0
		err := pg.InTx(ctx, s.Pool, func(tx pgx.Tx) error {
			gone, err := s.Index.RemoveExpired(ctx, tx, batch)
			if err != nil {
				return err
			}
			n = len(gone)
			return s.erase(ctx, tx, gone)
		})
		if err != nil || n < batch {
			return err
		}
	}
}
