package pgtest_test

import (
	"context"
	"fmt"
	"os"
	"testing"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/whence-db/whence/internal/pg"
	"github.com/whence-db/whence/internal/pgtest"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

func count(t *testing.T, db *pgtest.DB, sql string) int {
	t.Helper()
	var n int
	if err := db.Pool.QueryRow(t.Context(), sql).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

const (
	extensionsSQL = `select count(*) from pg_extension where extname = 'vector'`
	schemasSQL    = `select count(*) from pg_namespace where nspname = 'whence'`
)

func TestNewIsMigratedAndPrivate(t *testing.T) {
	t.Parallel()
	for i := range 3 {
		t.Run(fmt.Sprintf("Copy %d", i), func(t *testing.T) {
			t.Parallel()
			db := pgtest.New(t)
			if n := count(t, db, extensionsSQL) + count(t, db, schemasSQL); n != 2 {
				t.Errorf("extension and schema: %d of 2", n)
			}
			if _, err := db.Pool.Exec(t.Context(), "create table whence.mine ()"); err != nil {
				t.Errorf("another test's table is here: %v", err)
			}
		})
	}
}

func TestEmptyIsEmpty(t *testing.T) {
	t.Parallel()
	db := pgtest.Empty(t)
	if n := count(t, db, extensionsSQL) + count(t, db, schemasSQL); n != 0 {
		t.Errorf("%d things are in an empty database", n)
	}
}

// A database goes away although somebody is connected and holds a slot in it.
func TestDropWithSlotsAndConnections(t *testing.T) {
	t.Parallel()
	test := t
	var name string
	t.Run("use", func(t *testing.T) {
		db := pgtest.Empty(t)
		name = db.Name
		if _, err := db.Pool.Exec(t.Context(),
			"select pg_create_logical_replication_slot('drop_idle', 'pgoutput')"); err != nil {
			t.Fatal(err)
		}
		conn, err := pgx.Connect(t.Context(), db.DSN)
		if err != nil {
			t.Fatal(err)
		}
		// Both outlive this test, as whoever forgets to close would.
		test.Cleanup(func() { _ = conn.Close(context.Background()) })
		stream(test, db.DSN)
	})
	admin, err := pg.NewPool(t.Context(), pgtest.Cluster(t).DSN("postgres"), 1)
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	var left int
	if err := admin.QueryRow(t.Context(), `
select (select count(*) from pg_database where datname = @name)
     + (select count(*) from pg_replication_slots where database = @name)`,
		pgx.NamedArgs{"name": name}).Scan(&left); err != nil {
		t.Fatal(err)
	}
	if left != 0 {
		t.Errorf("%d databases and slots left", left)
	}
}

func TestOwnClusterSettings(t *testing.T) {
	t.Parallel()
	c := pgtest.OwnCluster(t, map[string]string{"wal_level": "replica"})
	conn, err := pgx.Connect(t.Context(), c.DSN("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	var level string
	if err := conn.QueryRow(t.Context(), "show wal_level").Scan(&level); err != nil || level != "replica" {
		t.Errorf("wal_level = %q, %v", level, err)
	}
}

// stream leaves a connection that is using a slot.
func stream(t *testing.T, dsn string) {
	t.Helper()
	conn, err := pgconn.Connect(t.Context(), dsn+"&replication=database")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	if _, err := pglogrepl.CreateReplicationSlot(t.Context(), conn, "drop_active", "pgoutput",
		pglogrepl.CreateReplicationSlotOptions{Temporary: false}); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Exec(t.Context(), "create publication p").ReadAll(); err != nil {
		t.Fatal(err)
	}
	if err := pglogrepl.StartReplication(t.Context(), conn, "drop_active", 0,
		pglogrepl.StartReplicationOptions{PluginArgs: []string{"proto_version '1'", "publication_names 'p'"}}); err != nil {
		t.Fatal(err)
	}
}
