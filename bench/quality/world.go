package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/embedder"
	"github.com/whence-db/whence/index"
	"github.com/whence-db/whence/ingest"
	"github.com/whence-db/whence/internal/pg"
	"github.com/whence-db/whence/internal/pgcluster"
	"github.com/whence-db/whence/internal/seal"
	"github.com/whence-db/whence/migrations"
	"github.com/whence-db/whence/query"
)

// world is a private server with a source and a memory database. It ends, and its
// folder goes, with this process.
type world struct {
	cluster  *pgcluster.Cluster
	app      *pgx.Conn // of the source
	memory   *pgxpool.Pool
	index    *index.Index
	registry *ingest.Registry
	model    embedder.Model
	log      *slog.Logger

	documents int
	newest    time.Time // event time in the corpus; zero when it has none
}

const (
	documentsSQL = `create table documents (id text primary key, title text not null, body text not null, at timestamptz)`
	tableName    = "public.documents"
	connections  = 8
	look         = 20 * time.Millisecond
	stopLimit    = time.Minute
)

func newWorld(ctx context.Context, model embedder.Model, log *slog.Logger) (*world, error) {
	w := &world{model: model, log: log}
	if err := w.start(ctx); err != nil {
		return nil, errors.Join(err, w.stop(ctx))
	}
	return w, nil
}

func (w *world) start(ctx context.Context) error {
	dir, err := os.MkdirTemp("", "whence-quality-")
	if err != nil {
		return err
	}
	if w.cluster, err = pgcluster.Start(ctx, pgcluster.Config{Dir: dir, Ephemeral: true}); err != nil {
		return errors.Join(err, os.RemoveAll(dir))
	}
	admin, err := pgx.Connect(ctx, w.cluster.DSN("postgres"))
	if err != nil {
		return err
	}
	for _, name := range []string{"app", "memory"} {
		if _, err = admin.Exec(ctx, "create database "+name); err != nil {
			break
		}
	}
	if err = errors.Join(err, admin.Close(ctx)); err != nil {
		return err
	}
	if w.app, err = pgx.Connect(ctx, w.cluster.DSN("app")); err != nil {
		return err
	}
	return w.open(ctx)
}

// open makes the memory database and what works on it.
func (w *world) open(ctx context.Context) (err error) {
	dsn := w.cluster.DSN("memory")
	if err := migrations.Up(ctx, dsn); err != nil {
		return err
	}
	if w.memory, err = pg.NewPool(ctx, dsn, connections); err != nil {
		return err
	}
	if w.index, err = index.New(index.Config{Pool: w.memory, Log: w.log}); err != nil {
		return err
	}
	key, err := seal.ParseKey(seal.NewKey())
	if err != nil {
		return err
	}
	w.registry, err = ingest.NewRegistry(ingest.Config{Pool: w.memory, Index: w.index, Seal: key, Log: w.log})
	return err
}

func (w *world) stop(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopLimit)
	defer cancel()
	var errs []error
	if w.app != nil {
		errs = append(errs, w.app.Close(ctx))
	}
	if w.registry != nil {
		w.registry.Close()
	}
	if w.memory != nil {
		w.memory.Close()
	}
	if w.cluster != nil {
		errs = append(errs, w.cluster.Stop(ctx))
	}
	return errors.Join(errs...)
}

// fill copies the corpus into the source, line by line.
func (w *world) fill(ctx context.Context, dir string) error {
	l, err := openLines(filepath.Join(dir, "corpus.jsonl"))
	if err != nil {
		return err
	}
	defer l.close()
	if _, err := w.app.Exec(ctx, documentsSQL); err != nil {
		return err
	}
	rows := pgx.CopyFromFunc(func() ([]any, error) {
		v, err := l.next()
		if errors.Is(err, io.EOF) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		d := v.document()
		w.documents++
		if d.at != nil && d.at.After(w.newest) {
			w.newest = *d.at
		}
		return []any{d.id, d.title, d.text, d.at}, nil
	})
	if _, err := w.app.CopyFrom(ctx, pgx.Identifier{"documents"}, []string{"id", "title", "body", "at"}, rows); err != nil {
		return fmt.Errorf("copy the corpus into a table: %w", err)
	}
	_, err = w.app.Exec(ctx, "analyze documents")
	return err
}

// remember registers the table, and captures and embeds it whole.
func (w *world) remember(ctx context.Context, halfLife time.Duration, say func(string, ...any)) error {
	spec := ingest.TableSpec{Source: "app", Table: tableName, TextColumns: []string{"title", "body"}, HalfLife: halfLife}
	if !w.newest.IsZero() {
		spec.TimeColumn = "at"
	}
	filler, err := index.NewFiller(index.FillerConfig{Index: w.index, Models: []index.Model{w.model}, Explain: query.ExplainEmbedding,
		Segment: time.Second, Log: w.log})
	if err != nil {
		return err
	}
	runner, err := ingest.NewRunner(ingest.RunnerConfig{Registry: w.registry, Wake: filler.Wake, Log: w.log})
	if err != nil {
		return err
	}
	if _, err := w.registry.CreateSource(ctx, "app", w.cluster.DSN("app"), ""); err != nil {
		return err
	}
	t, err := w.registry.RegisterTable(ctx, spec)
	if err != nil {
		return err
	}
	g, services := errgroup.WithContext(ctx)
	services, stop := context.WithCancel(services)
	defer stop()
	g.Go(func() error { return runner.Run(services) })
	g.Go(func() error { return filler.Run(services) })
	ready := false
	g.Go(func() error {
		defer stop()
		err := w.await(services, t.Name(), say)
		ready = err == nil
		return err
	})
	if err := g.Wait(); !ready || !errors.Is(err, context.Canceled) && err != nil {
		return fmt.Errorf("capture and embed: %w", err)
	}
	_, err = w.memory.Exec(ctx, "vacuum analyze")
	return err
}

// await returns once every row has its record, every chunk its vector, and so many
// vectors an approximate index as ever will without more of them.
func (w *world) await(ctx context.Context, name whence.TableName, say func(string, ...any)) error {
	for next := time.Now().Add(progressEvery); ; {
		t, err := w.registry.GetTable(ctx, name)
		if err != nil {
			return err
		}
		switch t.State {
		case whence.TableBroken, whence.TableSchemaChanged:
			return fmt.Errorf("%s is %s: %s", name, t.State, t.Error)
		case whence.TableLive:
			if t.Status.Pending > 0 || t.Status.Records < int64(w.documents) {
				break
			}
			indexed, err := w.indexed(ctx)
			if err != nil || indexed {
				return err
			}
		default:
		}
		if time.Now().After(next) {
			say("%d of %d documents captured, %d chunks wait for a vector", t.Status.Records, w.documents, t.Status.Pending)
			next = time.Now().Add(progressEvery)
		}
		// Counting takes longer the more there is.
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(max(look, time.Duration(w.documents)*10*time.Microsecond)):
		}
	}
}

const progressEvery = 5 * time.Second

// indexed tells whether fewer vectors than a segment takes are without one. Vectors
// of more than 4000 dimensions never get one.
func (w *world) indexed(ctx context.Context) (ok bool, err error) {
	const sql = `
select w.dimensions > 4000 or coalesce((select max(v.seq) from whence.vectors v where v.space_id = w.id), 0)
    - coalesce((select max(s.high) from whence.segments s where s.space_id = w.id), 0) < 10000
from whence.spaces w where w.current`
	err = w.memory.QueryRow(ctx, sql).Scan(&ok)
	return ok, err
}
