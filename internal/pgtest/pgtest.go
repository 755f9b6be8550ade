// Package pgtest gives each test a real Postgres database of its own, so that
// tests run in parallel and none sees another's rows.
//
// One private server runs per test binary, started by the first test that asks
// for it. The schema is applied once, to a template; each test's database is a
// copy of that, which costs a fraction of a migration. A test binary that is
// killed takes its server along.
package pgtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.uber.org/goleak"

	"github.com/whence-db/whence/internal/pg"
	"github.com/whence-db/whence/internal/pgcluster"
	"github.com/whence-db/whence/migrations"
)

const (
	template  = "whence_template"
	poolSize  = 8
	stopLimit = 30 * time.Second
)

// DB is a database that belongs to one test. It is dropped, with its
// replication slots and whoever is still connected, when the test ends.
type DB struct {
	Pool *pgxpool.Pool // at most 8 connections
	DSN  string        // as superuser
	Name string
}

// New returns a database with the current schema of the memory database.
func New(t testing.TB) *DB {
	t.Helper()
	h := shared(t)
	h.template.Do(func() { h.templateErr = h.migrate() })
	if h.templateErr != nil {
		t.Fatalf("pgtest: %v", h.templateErr)
	}
	return h.create(t, template)
}

// Empty returns a database with nothing in it, not even an extension: what a
// source looks like before anybody prepared it.
func Empty(t testing.TB) *DB {
	t.Helper()
	return shared(t).create(t, "template0")
}

// Cluster returns the server that this test binary's databases live in. It is
// shared: tests that stop or break a server use OwnCluster.
func Cluster(t testing.TB) *pgcluster.Cluster {
	t.Helper()
	return shared(t).cluster
}

// OwnCluster starts a server for this test alone, with the given settings over
// the usual ones ("wal_level": "replica", "fsync": "on"), and stops it when the
// test ends. The test may kill and restart it; its data survives that.
func OwnCluster(t testing.TB, settings map[string]string) *pgcluster.Cluster {
	t.Helper()
	return ownCluster(t, pgcluster.Config{Settings: settings})
}

// Standby starts a standby of a server that OwnCluster started, as OwnCluster
// would. The test promotes it with pg_promote.
func Standby(t testing.TB, of *pgcluster.Cluster, settings map[string]string) *pgcluster.Cluster {
	t.Helper()
	return ownCluster(t, pgcluster.Config{StandbyOf: of, Settings: settings})
}

func ownCluster(t testing.TB, cfg pgcluster.Config) *pgcluster.Cluster {
	t.Helper()
	c, err := startCluster(cfg)
	if err != nil {
		t.Fatalf("pgtest: %v", err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), stopLimit)
		defer cancel()
		if err := c.Stop(ctx); err != nil {
			t.Errorf("pgtest: %v", err)
		}
	})
	return c
}

// Main runs a package's tests, stops their server and looks for goroutines that
// outlived them. It returns the exit code:
//
//	func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }
func Main(m *testing.M, options ...goleak.Option) int {
	ctx, stopWatch := context.WithCancel(context.Background())
	var watch sync.WaitGroup
	watch.Go(func() { exitWithParent(ctx) })
	code := m.Run()
	stopWatch()
	watch.Wait()
	if err := theHarness.stop(); err != nil {
		fmt.Fprintln(os.Stderr, "pgtest:", err)
		code = max(code, 1)
	}
	if code != 0 {
		return code
	}
	if err := goleak.Find(options...); err != nil {
		fmt.Fprintln(os.Stderr, "pgtest: after the tests:", err)
		return 1
	}
	return 0
}

// harness is the server of a test binary.
type harness struct {
	start    sync.Once // guards the writing of the three below
	cluster  *pgcluster.Cluster
	admin    *pgxpool.Pool // on the database postgres
	startErr error

	template    sync.Once
	templateErr error

	databases atomic.Int64 // how many were created
}

var theHarness harness

func shared(t testing.TB) *harness {
	t.Helper()
	h := &theHarness
	h.start.Do(func() { h.startErr = h.open() })
	if h.startErr != nil {
		t.Fatalf("pgtest: %v", h.startErr)
	}
	return h
}

func startCluster(cfg pgcluster.Config) (_ *pgcluster.Cluster, err error) {
	if cfg.Dir, err = pgcluster.TempDir("whence-test-"); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cfg.Ephemeral = true
	return pgcluster.Start(ctx, cfg)
}

func (h *harness) open() (err error) {
	if h.cluster, err = startCluster(pgcluster.Config{}); err != nil {
		return err
	}
	h.admin, err = pg.NewPool(context.Background(), h.cluster.DSN("postgres"), poolSize)
	return err
}

func (h *harness) migrate() error {
	ctx := context.Background()
	if _, err := h.admin.Exec(ctx, "create database "+template+" template template0"); err != nil {
		return err
	}
	if err := migrations.Up(ctx, h.cluster.DSN(template)); err != nil {
		return err
	}
	// A database that somebody is connected to cannot be copied.
	_, err := h.admin.Exec(ctx, "alter database "+template+" allow_connections false")
	return err
}

func (h *harness) stop() error {
	if h.admin != nil {
		h.admin.Close()
	}
	if h.cluster == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), stopLimit)
	defer cancel()
	return h.cluster.Stop(ctx)
}

func (h *harness) create(t testing.TB, from string) *DB {
	t.Helper()
	ctx := context.Background()
	name := databaseName(h.databases.Add(1), t.Name())
	if _, err := h.admin.Exec(ctx, "create database "+quote(name)+" template "+quote(from)); err != nil {
		t.Fatalf("pgtest: create a database: %v", err)
	}
	t.Cleanup(func() {
		if err := h.drop(ctx, name); err != nil {
			t.Errorf("pgtest: drop database %s: %v", name, err)
		}
	})
	dsn := h.cluster.DSN(name)
	pool, err := pg.NewPool(ctx, dsn, poolSize)
	if err != nil {
		t.Fatalf("pgtest: %v", err)
	}
	t.Cleanup(pool.Close) // runs before the drop
	return &DB{Pool: pool, DSN: dsn, Name: name}
}

const (
	endSlotUsersSQL = `
select pg_terminate_backend(active_pid)
from pg_replication_slots
where database = @name and active_pid is not null`

	dropSlotsSQL = `
select pg_drop_replication_slot(slot_name)
from pg_replication_slots
where database = @name and active_pid is null`

	slotsLeftSQL = `select count(*) from pg_replication_slots where database = @name`
)

// drop removes a database although capture may still be holding slots in it.
func (h *harness) drop(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, stopLimit)
	defer cancel()
	args := pgx.NamedArgs{"name": name}
	for {
		var left int
		_, ended := h.admin.Exec(ctx, endSlotUsersSQL, args)
		_, dropped := h.admin.Exec(ctx, dropSlotsSQL, args)
		counted := h.admin.QueryRow(ctx, slotsLeftSQL, args).Scan(&left)
		if counted == nil && left == 0 {
			break
		}
		// A slot is free only some time after its user was told to end.
		select {
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("%d replication slots left", left), ended, dropped, counted)
		case <-time.After(20 * time.Millisecond):
		}
	}
	_, err := h.admin.Exec(ctx, "drop database "+quote(name)+" with (force)")
	return err
}

func quote(identifier string) string { return pgx.Identifier{identifier}.Sanitize() }

// databaseName makes a name unique and tells whose it is, within Postgres's 63
// bytes.
func databaseName(n int64, test string) string {
	name := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9':
			return r
		case r >= 'A' && r <= 'Z':
			return r + 'a' - 'A'
		default:
			return '_'
		}
	}, test)
	name = fmt.Sprintf("t%d_%s", n, name)
	return name[:min(len(name), 63)]
}
