// Package index keeps what Whence knows of every row: its records, their
// versions, the chunks of text cut from them, and the vectors of those chunks.
// It is the only package that knows how vectors are stored and searched, and
// the only one whose SQL touches these tables.
//
// The governing idea: nothing here says that something is stale. A chunk is
// superseded exactly when its version is older than its record's head, and it
// lacks a vector exactly when its digest has no embedding in the current space;
// both are read off the rows themselves, so neither can drift. Vectors are
// addressed by the text they were made from, so a text is embedded once however
// often it comes back.
package index

import (
	"errors"
	"log/slog"

	"github.com/jackc/pgx/v5/pgxpool"
)

// Index reads and writes the index in one memory database. It is safe for
// concurrent use.
type Index struct {
	pool *pgxpool.Pool
	log  *slog.Logger
	ids  idBlock
}

// Config says where the index lives.
type Config struct {
	Pool *pgxpool.Pool // of the memory database
	Log  *slog.Logger  // default: discards
}

// New checks the configuration.
func New(c Config) (*Index, error) {
	if c.Pool == nil {
		return nil, errors.New("index: a pool is needed")
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &Index{pool: c.Pool, log: c.Log}, nil
}
