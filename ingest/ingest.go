// Package ingest brings the rows of captured sources into the index. It keeps
// the registry of sources and tables, renders rows to text and cuts that into
// chunks, and is the sink of every source's stream.
//
// The governing idea: one transaction of the memory database holds both what
// some source transactions changed and the checkpoint behind them, so whatever
// crashes, the index is always the source as it was at the checkpoint. A row
// may come by the stream and by the copy of its table; each record carries the
// position that it was true at, and the newer one stands.
package ingest

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"sync"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/index"
	"github.com/whence-db/whence/internal/seal"
)

// Registry knows the sources and their registered tables. It is safe for
// concurrent use, and by several processes on one memory database.
type Registry struct {
	pool   *pgxpool.Pool
	index  *index.Index
	seal   seal.Key
	getenv func(string) string
	log    *slog.Logger
	shown  Answers
	ran    Executions

	mu      sync.Mutex // guards readers and writers
	readers map[int32]*reader
	writers map[int32]*sourceWriter
	closing sync.WaitGroup // readers and writers that were replaced
}

// Answers hold the words of rows that they showed. A purge takes them out in the
// transaction that purges the row.
type Answers interface {
	Erase(ctx context.Context, tx pgx.Tx, gone []whence.Gone) error
	// Shown lists records of a table whose words some answer holds: the first limit
	// with greater ids than after, in order.
	Shown(ctx context.Context, tx pgx.Tx, table whence.TableName, after int64, limit int) ([]int64, error)
}

// Executions hold the words of rows that actions changed. A purge takes them out too.
type Executions interface {
	Erase(ctx context.Context, tx pgx.Tx, gone []whence.Gone) error
	// EraseTable does so for all rows of a table.
	EraseTable(ctx context.Context, tx pgx.Tx, table whence.TableName) error
}

// Config says what the registry works on.
type Config struct {
	Pool       *pgxpool.Pool // of the memory database
	Index      *index.Index
	Answers    Answers             // nil: nothing is shown to anybody
	Executions Executions          // nil: nothing is executed
	Seal       seal.Key            // what connection strings are sealed with
	Getenv     func(string) string // reads a source's dsnEnv; default os.Getenv
	Log        *slog.Logger        // default: discards
}

// NewRegistry checks the configuration.
func NewRegistry(c Config) (*Registry, error) {
	if c.Pool == nil || c.Index == nil {
		return nil, errors.New("registry: a pool and an index are needed")
	}
	if c.Seal == (seal.Key{}) {
		return nil, errors.New("registry: a key to seal connection strings with is needed")
	}
	if c.Getenv == nil {
		c.Getenv = os.Getenv
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &Registry{pool: c.Pool, index: c.Index, seal: c.Seal, getenv: c.Getenv, log: c.Log, shown: c.Answers, ran: c.Executions, readers: map[int32]*reader{},
		writers: map[int32]*sourceWriter{}}, nil
}

// channel is what a change of the registry is announced on.
const channel = "whence_registry"

const announce = `select pg_notify('` + channel + `', '')`

// querier is a pool, a connection or a transaction.
type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

func refuse(kind error, reason, message string) *whence.Error {
	return &whence.Error{Kind: kind, Reason: reason, Message: message}
}
