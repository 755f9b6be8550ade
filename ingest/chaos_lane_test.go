package ingest

import (
	"context"
	"fmt"
	"net/url"
	"strconv"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence/internal/pgcluster"
	"github.com/whence-db/whence/internal/pgtest"
	"github.com/whence-db/whence/migrations"
)

// lane is two servers that schedules use one after the other, each with
// databases of its own, and the networks in front of them.
type lane struct {
	source, memory     *pgcluster.Cluster
	toSource, toMemory *proxy
	schedules          int
}

const laneTemplate = "chaos_template"

func newLane(t *testing.T) *lane {
	t.Helper()
	l := &lane{
		source: pgtest.OwnCluster(t, map[string]string{"max_prepared_transactions": "20", "wal_sender_timeout": "5s"}),
		memory: pgtest.OwnCluster(t, nil),
	}
	l.toSource = newProxy(t, "127.0.0.1:"+strconv.Itoa(l.source.Port()))
	l.toMemory = newProxy(t, "127.0.0.1:"+strconv.Itoa(l.memory.Port()))
	on(t, l.memory.DSN("postgres"), `create database `+laneTemplate+` template template0`)
	if err := migrations.Up(t.Context(), l.memory.DSN(laneTemplate)); err != nil {
		t.Fatal(err)
	}
	return l
}

// databases makes the next schedule's databases and returns their name, which is
// the same on both sides. They are dropped when the schedule ends.
func (l *lane) databases(t *testing.T) string {
	t.Helper()
	l.schedules++
	name := "schedule" + strconv.Itoa(l.schedules)
	on(t, l.memory.DSN("postgres"), `create database `+name+` template `+laneTemplate)
	on(t, l.source.DSN("postgres"), `create database `+name+` template template0`)
	t.Cleanup(func() {
		l.dropSlots(t, name)
		on(t, l.source.DSN("postgres"), `drop database `+name+` with (force)`)
		on(t, l.memory.DSN("postgres"), `drop database `+name+` with (force)`)
	})
	return name
}

// dropSlots waits until a database has no slot, which is some time after its
// readers were ended.
func (l *lane) dropSlots(t *testing.T, name string) {
	t.Helper()
	const (
		end  = `select pg_terminate_backend(active_pid) from pg_replication_slots where database = $1 and active_pid is not null`
		drop = `select pg_drop_replication_slot(slot_name) from pg_replication_slots where database = $1 and active_pid is null`
	)
	conn := connectTo(t, l.source.DSN("postgres"))
	for deadline := time.Now().Add(waitLimit); ; time.Sleep(20 * time.Millisecond) {
		var left int
		_, err := conn.Exec(context.Background(), end, name)
		if err == nil {
			_, err = conn.Exec(context.Background(), drop, name)
		}
		if err == nil {
			err = conn.QueryRow(context.Background(), `select count(*) from pg_replication_slots where database = $1`, name).Scan(&left)
		}
		if err == nil && left == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d replication slots of %s are left: %v", left, name, err)
		}
	}
}

// restarted starts a server that was killed.
func restarted(ctx context.Context, c *pgcluster.Cluster) error {
	if err := c.Restart(ctx); err != nil {
		return fmt.Errorf("restart a server: %w", err)
	}
	return nil
}

// through is a connection string that leads through a proxy.
func through(p *proxy, dsn string) string {
	u, err := url.Parse(dsn)
	if err != nil {
		panic(err) // ours
	}
	u.Host = "127.0.0.1:" + strconv.Itoa(p.port())
	return u.String()
}

func connectTo(t *testing.T, dsn string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(context.Background(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

// on runs one statement on a connection of its own.
func on(t *testing.T, dsn, sql string) {
	t.Helper()
	conn, err := pgx.Connect(context.Background(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	if _, err := conn.Exec(context.Background(), sql); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}
