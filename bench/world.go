package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/ingest"
	"github.com/whence-db/whence/internal/pgcluster"
	"github.com/whence-db/whence/internal/seal"
	"github.com/whence-db/whence/migrations"
)

// world is two durable servers, so that the log of the source holds nothing but
// the source's changes: one with the source, one with the memory databases and
// whatever else is written to. Both end, and their folders go, with this process.
type world struct {
	source, memory *pgcluster.Cluster
	bin            string // the folder of the server's programs
	app            *pgx.Conn
	admin          *pgx.Conn // of the memory server
	key            string    // what connection strings are sealed with
	table          whence.Table
	slot           string // of the source app
	publication    string
}

const (
	originSlot = "bench_origin" // every slot is a copy of it, and so reads the same log
	memoryName = "memory"       // the memory database that the others are copies of
	emptyName  = "empty"        // the source's tables without a row
)

// newWorld starts both; without durable nothing waits for the disk.
func newWorld(ctx context.Context, durable bool) (w *world, err error) {
	begun := &world{key: seal.NewKey()}
	w = begun
	defer func() {
		if err != nil {
			w, err = nil, errors.Join(err, begun.stop(ctx))
		}
	}()
	if w.bin, err = pgcluster.FindBin(); err != nil {
		return nil, err
	}
	for _, c := range []**pgcluster.Cluster{&w.source, &w.memory} {
		dir, err := os.MkdirTemp("", "whence-bench-")
		if err != nil {
			return nil, err
		}
		*c, err = pgcluster.Start(ctx, pgcluster.Config{Dir: dir, BinDir: w.bin, Ephemeral: true, Durable: durable})
		if err != nil {
			return nil, errors.Join(err, os.RemoveAll(dir))
		}
	}
	if w.admin, err = pgx.Connect(ctx, w.memory.DSN("postgres")); err != nil {
		return nil, err
	}
	return w, w.fill(ctx)
}

// fill makes the source's tables, registers one of them in a memory database,
// and keeps the slot as it was then.
func (w *world) fill(ctx context.Context) error {
	source, err := pgx.Connect(ctx, w.source.DSN("postgres"))
	if err != nil {
		return err
	}
	defer closeConn(ctx, source)
	if _, err := source.Exec(ctx, "create database app"); err != nil {
		return err
	}
	if w.app, err = pgx.Connect(ctx, w.source.DSN("app")); err != nil {
		return err
	}
	if err := prepareSource(ctx, w.app); err != nil {
		return fmt.Errorf("prepare the source: %w", err)
	}
	for _, name := range []string{memoryName, emptyName} {
		if _, err := w.admin.Exec(ctx, "create database "+name); err != nil {
			return err
		}
	}
	if err := w.fillEmpty(ctx); err != nil {
		return err
	}
	if err := migrations.Up(ctx, w.memory.DSN(memoryName)); err != nil {
		return err
	}
	return w.with(ctx, memoryName, func(m *memoryDatabase) error {
		if _, err := m.registry.CreateSource(ctx, "app", w.source.DSN("app"), ""); err != nil {
			return err
		}
		t, err := m.registry.RegisterTable(ctx, itemsSpec)
		if err != nil {
			return err
		}
		err = m.capture(ctx, func(ctx context.Context) error { return m.live(ctx, t.Name()) })
		if err != nil {
			return err
		}
		if t, err = m.registry.GetTable(ctx, t.Name()); err != nil {
			return err
		}
		s, err := m.registry.GetSource(ctx, "app")
		if err != nil {
			return err
		}
		w.table, w.slot, w.publication = t.Table, s.Slot, s.Publication
		return w.copySlot(ctx, w.slot, originSlot)
	})
}

func (w *world) fillEmpty(ctx context.Context) error {
	conn, err := pgx.Connect(ctx, w.memory.DSN(emptyName))
	if err != nil {
		return err
	}
	defer closeConn(ctx, conn)
	_, err = conn.Exec(ctx, itemsSQL)
	return err
}

const copySlotSQL = `select pg_copy_logical_replication_slot(@from::name, @to::name)`

func (w *world) copySlot(ctx context.Context, from, to string) error {
	// A reader that has just gone away holds its slot for a moment.
	var err error
	for range 100 {
		if _, err = w.app.Exec(ctx, copySlotSQL, pgx.NamedArgs{"from": from, "to": to}); err == nil {
			return nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	return fmt.Errorf("copy the slot %s: %w", from, err)
}

func (w *world) dropSlot(ctx context.Context, name string) error {
	var err error
	for range 100 {
		if _, err = w.app.Exec(ctx, "select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name = $1", name); err == nil {
			return nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	return fmt.Errorf("drop the slot %s: %w", name, err)
}

// copyDatabase makes a copy of a database that nobody is connected to.
func (w *world) copyDatabase(ctx context.Context, from, to string) error {
	if err := w.dropDatabase(ctx, to); err != nil {
		return err
	}
	_, err := w.admin.Exec(ctx, "create database "+to+" template "+from)
	return err
}

func (w *world) dropDatabase(ctx context.Context, name string) error {
	_, err := w.admin.Exec(ctx, "drop database if exists "+name+" with (force)")
	return err
}

// stop ends both servers, which removes all there is.
func (w *world) stop(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopLimit)
	defer cancel()
	var errs []error
	for _, c := range []*pgx.Conn{w.app, w.admin} {
		if c != nil {
			errs = append(errs, c.Close(ctx))
		}
	}
	for _, c := range []*pgcluster.Cluster{w.source, w.memory} {
		if c != nil {
			errs = append(errs, c.Stop(ctx))
		}
	}
	return errors.Join(errs...)
}

// memoryDatabase is a memory database with what works on it in this process.
type memoryDatabase struct {
	pool     *pgxpool.Pool
	registry *ingest.Registry
}

// with opens a memory database of the world's, and closes it after fn.
func (w *world) with(ctx context.Context, name string, fn func(*memoryDatabase) error) error {
	pool, registry, err := openMemory(ctx, w.memory.DSN(name), w.key)
	if err != nil {
		return err
	}
	defer pool.Close()
	return fn(&memoryDatabase{pool, registry})
}

// capture runs capture, without an embedder, as long as until takes.
func (m *memoryDatabase) capture(ctx context.Context, until func(context.Context) error) error {
	runner, err := ingest.NewRunner(ingest.RunnerConfig{Registry: m.registry})
	if err != nil {
		return err
	}
	return beside(ctx, runner.Run, until)
}

// live waits until a table is LIVE.
func (m *memoryDatabase) live(ctx context.Context, name whence.TableName) error {
	for {
		t, err := m.registry.GetTable(ctx, name)
		switch {
		case err != nil:
			return err
		case t.State == whence.TableLive:
			return nil
		case t.State == whence.TableBroken || t.State == whence.TableSchemaChanged:
			return fmt.Errorf("%s is %s: %s", name, t.State, t.Error)
		}
		if err := pause(ctx, look); err != nil {
			return err
		}
	}
}

// beside runs a service for as long as fn takes, and waits for both. The
// service's own end before that is an error.
func beside(ctx context.Context, service, fn func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		ended <- service(ctx)
		cancel()
	}()
	err := fn(ctx)
	early := ctx.Err() != nil
	cancel()
	if why := <-ended; early && !errors.Is(why, context.Canceled) {
		err = errors.Join(err, fmt.Errorf("it ended before its time: %w", why))
	}
	return err
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

func closeConn(ctx context.Context, c *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	_ = c.Close(ctx)
}
