package ingest

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/internal/pgcluster"
	"github.com/whence-db/whence/internal/pgtest"
)

// failover is a world whose source has a standby. The connection string names
// both servers, as an operator would write it; source is the primary's pool.
type failover struct {
	*world
	primary, standby *pgcluster.Cluster
	replica          *pgtest.DB
	synced           bool // the standby keeps the slot, and capture waits for the standby
}

const failoverVersion = 170000 // the first whose standbys keep logical slots

func newFailover(t *testing.T, synced bool) *failover {
	t.Helper()
	t.Parallel()
	f := &failover{synced: synced}
	f.primary = pgtest.OwnCluster(t, nil)
	source := open(t, f.primary)
	source.DSN = "" // the world's names both servers
	if _, err := source.Pool.Exec(t.Context(), `select pg_create_physical_replication_slot('standby', true)`); err != nil {
		t.Fatal(err)
	}
	settings := map[string]string{"primary_slot_name": "standby", "hot_standby_feedback": "on"}
	if synced {
		settings["sync_replication_slots"] = "on"
	}
	f.standby = pgtest.Standby(t, f.primary, settings)
	f.replica = open(t, f.standby)
	source.DSN = fmt.Sprintf("host=127.0.0.1,127.0.0.1 port=%d,%d user=%s dbname=postgres sslmode=disable",
		f.primary.Port(), f.standby.Port(), pgcluster.Superuser)
	f.world = newWorldWithoutSource(t)
	f.source = source
	if synced {
		f.exec(source, `alter system set synchronized_standby_slots = 'standby'`)
		f.exec(source, `select pg_reload_conf()`)
	}
	f.exec(source, createDocs)
	f.exec(source, `insert into docs (id, title) select i, 'title ' || i from generate_series(1, 100) i`)
	f.create()
	return f
}

func open(t *testing.T, c *pgcluster.Cluster) *pgtest.DB {
	t.Helper()
	pool, err := pgxpool.New(t.Context(), c.DSN("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return &pgtest.DB{Pool: pool, DSN: c.DSN("postgres"), Name: "postgres"}
}

// followed waits until the standby has what the primary has, and the slot with
// it where it keeps that.
func (f *failover) followed() {
	f.t.Helper()
	at := f.query(f.source.Pool, `select pg_current_wal_flush_lsn()::text`)[0]
	f.until("the standby follows", func() (bool, string) {
		got := f.query(f.replica.Pool, `select pg_last_wal_replay_lsn()::text from (select) x where pg_last_wal_replay_lsn() >= $1::text::pg_lsn`, at)
		return len(got) == 1, at
	})
	if !f.synced {
		return
	}
	f.until("the standby keeps the slot", func() (bool, string) {
		// Only a slot that moves becomes one that can be kept.
		f.exec(f.source, `update docs set ignored = ignored + 1 where id = 1`)
		got := f.query(f.replica.Pool, `select slot_name::text from pg_replication_slots
			where slot_name like 'whence%' and to_jsonb(pg_replication_slots) @> '{"synced": true, "failover": true, "temporary": false}'`)
		return len(got) == 1, fmt.Sprint(f.query(f.replica.Pool, `select to_jsonb(s)::text from pg_replication_slots s`))
	})
}

// lose ends the primary and waits until capture, which meets the standby
// instead, waits for its promotion.
func (f *failover) lose() {
	f.t.Helper()
	f.source.Pool.Close()
	f.primary.Kill()
	f.until("capture waits for the promotion", func() (bool, string) {
		s, err := f.r.GetSource(f.t.Context(), "app")
		if err != nil {
			f.t.Fatal(err)
		}
		return s.State == SourceConnecting && strings.Contains(s.Error, "standby"), fmt.Sprintf("%s %s", s.State, s.Error)
	})
}

// promote makes the standby the source.
func (f *failover) promote() {
	f.t.Helper()
	f.exec(f.replica, `select pg_promote()`)
	f.source = f.replica
}

// hold keeps the rows of docs from being read, until the returned release.
func (f *failover) hold() (release func()) {
	f.t.Helper()
	tx, err := f.source.Pool.Begin(f.t.Context())
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { _ = tx.Rollback(context.Background()) })
	if _, err := tx.Exec(f.t.Context(), `lock docs in access exclusive mode`); err != nil {
		f.t.Fatal(err)
	}
	return func() {
		f.t.Helper()
		if err := tx.Rollback(f.t.Context()); err != nil {
			f.t.Fatal(err)
		}
	}
}

// compared wants nothing vouched for, for the reason given.
func (f *failover) compared(reason string) {
	f.t.Helper()
	f.until("nothing is vouched for", func() (bool, string) {
		st := f.state()
		now, _ := st.Table(docs)
		return now.State == whence.TablePending && strings.Contains(now.Error, reason) && st.Sources["app"].Lag < 0,
			fmt.Sprintf("%s %q %v", now.State, now.Error, st.Sources["app"].Lag)
	})
}

func (f *failover) timeline() string {
	return f.query(f.memory.Pool, `select timeline::text from whence.sources`)[0]
}

// needsSyncedSlots skips where standbys keep no slots.
func needsSyncedSlots(t *testing.T) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), pgtest.Cluster(t).DSN("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	var version int
	if err := conn.QueryRow(t.Context(), `select current_setting('server_version_num')::int`).Scan(&version); err != nil {
		t.Fatal(err)
	}
	if version < failoverVersion {
		t.Skip("standbys of this server keep no logical slots")
	}
}

// A promoted standby has no slot where it kept none: its rows are compared with
// what is stored, and vouched for again only then.
func TestPromotedStandbyWithoutSlot(t *testing.T) {
	f := newFailover(t, false)
	f.register(docsSpec)
	f.run()
	f.live(docs)
	f.caughtUp()
	f.followed()
	f.lose()
	f.promote()
	release := f.hold()
	f.compared("is gone")
	release()
	f.exec(f.source, whileAway)
	f.recovered()
	if got := f.timeline(); got != "2" {
		t.Errorf("the timeline is %s", got)
	}
}

// What a promoted standby never got did not happen, though it was captured.
func TestPromotedStandbyWithoutTheLast(t *testing.T) {
	f := newFailover(t, false)
	f.register(docsSpec)
	f.run()
	f.live(docs)
	f.caughtUp()
	f.followed()
	f.replica.Pool.Reset()
	f.standby.Kill()
	f.exec(f.source, `delete from docs where id = 3; update docs set title = 'never' where id = 4; insert into docs (id, title) values (300, 'never')`)
	f.caughtUp()
	f.equal(f.live(docs))
	f.source.Pool.Close()
	f.primary.Kill()
	if err := f.standby.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.promote()
	release := f.hold()
	f.compared("not part of that")
	f.rewound = true
	release()
	f.caughtUp()
	f.equal(f.live(docs))
	f.exec(f.source, whileAway)
	f.caughtUp()
	f.equal(f.live(docs))
}

// A standby that keeps the slot goes on where the primary ended: nothing is
// compared, nothing is missing.
func TestPromotedStandbyWithSlot(t *testing.T) {
	needsSyncedSlots(t)
	f := newFailover(t, true)
	f.register(docsSpec)
	f.run()
	info := f.live(docs)
	f.caughtUp()
	f.followed()
	f.exec(f.source, `insert into docs (id, title) values (301, 'the last of the primary')`)
	f.caughtUp() // the stream waits for the standby, so that one has it too
	f.lose()
	f.promote()
	f.exec(f.source, whileAway)
	f.caughtUp()
	after := f.live(docs)
	f.equal(after)
	if after.Snapshot != info.Snapshot {
		t.Errorf("the rows were copied again at %s", after.Snapshot)
	}
	if got := f.timeline(); got != "2" {
		t.Errorf("the timeline is %s", got)
	}
}

// The stream waits for the standby, but a snapshot is the primary's own: rows
// copied from beyond what the standby has did not happen either.
func TestPromotedStandbyBehindTheSnapshot(t *testing.T) {
	needsSyncedSlots(t)
	f := newFailover(t, true)
	f.run()
	f.until("the source is captured", func() (bool, string) {
		s, err := f.r.GetSource(t.Context(), "app")
		if err != nil {
			t.Fatal(err)
		}
		return s.State == SourceStreaming, s.Error
	})
	f.followed()
	f.replica.Pool.Reset()
	f.standby.Kill()
	f.exec(f.source, `delete from docs where id = 3; update docs set title = 'never' where id = 4; insert into docs (id, title) values (300, 'never')`)
	f.register(docsSpec)
	f.live(docs)
	f.source.Pool.Close()
	f.primary.Kill()
	if err := f.standby.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.promote()
	f.exec(f.source, whileAway)
	f.caughtUp()
	f.equal(f.live(docs))
}
