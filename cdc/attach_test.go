package cdc

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/internal/pgtest"
)

// broken waits for Run to give up and wants its words.
func (s *source) broken(says string) {
	s.t.Helper()
	c, err := New(s.cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	err = c.Run(ctx)
	var b *BrokenError
	if !errors.As(err, &b) || !strings.Contains(b.Message, says) {
		s.t.Errorf("Run returned %v, want a BrokenError that says %q", err, says)
	}
}

// idle captures one row of notes and stops; the slot is free then.
func (s *source) idle() {
	s.t.Helper()
	_, stop := s.start()
	s.exec(`insert into notes values (1, 'one'), (2, 'two')`)
	s.settle()
	if err := stop(); !errors.Is(err, context.Canceled) {
		s.t.Fatal(err)
	}
	s.eventually("the slot is free", func() bool {
		var n int
		err := s.db.Pool.QueryRow(s.t.Context(), `select count(*) from pg_replication_slots where slot_name = $1 and active`, s.cfg.Slot).Scan(&n)
		return err == nil && n == 0
	})
}

// What only an operator can mend is said at once and changes nothing.
func TestBroken(t *testing.T) {
	for _, tt := range []struct {
		name   string
		damage func(s *source)
		says   string
	}{
		{"slot of another plugin", func(s *source) {
			s.exec(`select pg_drop_replication_slot($1)`, s.cfg.Slot)
			s.exec(`select pg_create_logical_replication_slot($1, 'test_decoding')`, s.cfg.Slot)
		}, "test_decoding"},
		{"physical slot", func(s *source) {
			s.exec(`select pg_drop_replication_slot($1)`, s.cfg.Slot)
			s.exec(`select pg_create_physical_replication_slot($1)`, s.cfg.Slot)
			s.t.Cleanup(func() {
				_, _ = s.db.Pool.Exec(context.Background(), `select pg_drop_replication_slot($1)`, s.cfg.Slot)
			})
		}, "physical"},
		{"another cluster", func(s *source) { s.sink.cluster.System = "7000000000000000000" }, "another cluster"},
		{"another database", func(s *source) { s.cfg.ConnString = pgtest.Empty(s.t).DSN }, "belongs to the database"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newSource(t, notesDDL, table(1, "notes", "id"))
			s.idle()
			tt.damage(s)
			before, _ := s.sink.now()
			s.broken(tt.says)
			if after, _ := s.sink.now(); after != before {
				t.Errorf("the checkpoint moved from %s to %s", before, after)
			}
		})
	}
}

const meanwhile = `delete from notes where id = 1; update notes set body = 'second' where id = 2; insert into notes values (3, 'three')`

// Where changes are missing for good, the sink is told, and everything is
// compared anew: rows deleted, changed and added meanwhile come out right.
func TestLost(t *testing.T) {
	for _, tt := range []struct {
		name    string
		damage  func(s *source)
		rewound bool
	}{
		{"slot gone", func(s *source) { s.exec(`select pg_drop_replication_slot($1)`, s.cfg.Slot); s.exec(meanwhile) }, false},
		{"slot recreated", func(s *source) {
			s.exec(`select pg_drop_replication_slot($1)`, s.cfg.Slot)
			s.exec(meanwhile)
			s.exec(`select pg_create_logical_replication_slot($1, 'pgoutput')`, s.cfg.Slot)
		}, false},
		{"slot read by another", func(s *source) {
			s.exec(meanwhile)
			s.exec(`select pg_replication_slot_advance($1, pg_current_wal_lsn())`, s.cfg.Slot)
		}, false},
		{"publication gone", func(s *source) { s.exec(`drop publication whence_pub`); s.exec(meanwhile) }, false},
		{"publication altered", func(s *source) { s.exec(`alter publication whence_pub set (publish = 'insert')`); s.exec(meanwhile) }, false},
		{"restored from a backup", func(s *source) { s.exec(meanwhile); s.sink.ahead(1 << 40) }, true},
		{"copied from what the source does not have", func(s *source) { s.exec(meanwhile); s.sink.copiedAhead(1 << 40) }, true},
		{"another cluster that an operator confirmed", func(s *source) {
			s.exec(meanwhile)
			s.sink.ahead(1 << 40)
			s.sink.cluster = Cluster{}
		}, true},
		{"another timeline", func(s *source) { s.exec(meanwhile); s.sink.ahead(1 << 40); s.sink.cluster.Timeline = 1 << 20 }, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			notes := table(1, "notes", "id")
			s := newSource(t, notesDDL, notes)
			s.idle()
			tt.damage(s)
			s.start()
			s.eventually("the loss is noticed", func() bool { s.sink.mu.Lock(); defer s.sink.mu.Unlock(); return s.sink.lost == 1 })
			s.settle()
			s.compare(notes)
			if s.sink.rewound != tt.rewound {
				t.Errorf("rewound: %t, want %t", s.sink.rewound, tt.rewound)
			}
			s.exec(`insert into notes values (4, 'after')`)
			s.settle()
			s.compare(notes)
		})
	}
}

// What happens to the publication as a whole is no table's fault: the stream makes
// it whole again, and everything is compared.
func TestPublicationAlteredWhileStreaming(t *testing.T) {
	for _, ddl := range []string{`alter publication whence_pub set (publish = 'insert')`,
		`alter publication whence_pub set (publish_via_partition_root = false)`, `drop publication whence_pub`} {
		t.Run(ddl, func(t *testing.T) {
			notes := table(1, "notes", "id")
			s := newSource(t, notesDDL, notes)
			s.start()
			s.settle()
			s.exec(ddl)
			s.exec(meanwhile)
			s.eventually("the loss is noticed", func() bool { s.sink.mu.Lock(); defer s.sink.mu.Unlock(); return s.sink.lost >= 1 })
			s.proven()
			s.settle()
			s.compare(notes)
			s.exec(`insert into notes values (4, 'after')`)
			s.settle()
			s.compare(notes)
		})
	}
}

// A process that dies while it begins anew leaves nothing behind that counts.
func TestLostAndInterrupted(t *testing.T) {
	for _, step := range []string{"lost", "lost-after", "attach", "attach-after"} {
		t.Run(step, func(t *testing.T) {
			notes := table(1, "notes", "id")
			s := newSource(t, notesDDL, notes)
			s.idle()
			s.exec(`select pg_drop_replication_slot($1)`, s.cfg.Slot)
			s.exec(`delete from notes where id = 1`)
			failures := 0
			s.sink.setFault(func(at string) error {
				if at == step && failures < 2 {
					failures++
					return errors.New("interrupted")
				}
				return nil
			})
			s.start()
			s.settle()
			s.compare(notes)
		})
	}
}

func TestParseTimelineHistory(t *testing.T) {
	t.Parallel()
	const file = "# as initdb wrote it\n1\t0/3000148\tno recovery target specified\n\n2\t1/A0\tbefore 2026-01-01\n"
	for timeline, want := range map[int32]whence.LSN{1: 0x3000148, 2: 1<<32 | 0xA0, 3: 0} {
		if got, err := parseTimelineHistory([]byte(file), timeline); err != nil || got != want {
			t.Errorf("timeline %d ended at %s, %v; want %s", timeline, got, err, want)
		}
	}
	if _, err := parseTimelineHistory([]byte("1\tnonsense\n"), 1); err == nil {
		t.Error("nonsense is a position")
	}
}

// An attempt that died between making the slot and recording it is taken up.
func TestSlotWithoutCheckpoint(t *testing.T) {
	notes := table(1, "notes", "id")
	s := newSource(t, notesDDL, notes)
	s.exec(`create publication whence_pub`)
	s.exec(`select pg_create_logical_replication_slot($1, 'pgoutput')`, s.cfg.Slot)
	s.start()
	s.exec(`insert into notes values (1, 'one')`)
	s.settle()
	s.compare(notes)
	var viaRoot bool
	if err := s.db.Pool.QueryRow(t.Context(), `select pubviaroot from pg_publication`).Scan(&viaRoot); err != nil || !viaRoot {
		t.Errorf("the publication that was found kept its options: %v", err)
	}
}

// Where the server can keep a slot in step on a standby, that is asked for. A slot
// from before the server could is taken as it is.
func TestFailoverSlot(t *testing.T) {
	notes := table(1, "notes", "id")
	s := newSource(t, notesDDL, notes)
	s.idle()
	failover := func() (value *bool) {
		err := s.db.Pool.QueryRow(t.Context(), `select (to_jsonb(s) ->> 'failover')::bool
			from pg_replication_slots s where slot_name = $1`, s.cfg.Slot).Scan(&value)
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
	var version int
	if err := s.db.Pool.QueryRow(t.Context(), versionSQL).Scan(&version); err != nil {
		t.Fatal(err)
	}
	if version < failoverVersion {
		if failover() != nil {
			t.Error("a server that is too old for it has failover slots")
		}
		return
	}
	if set := failover(); set == nil || !*set {
		t.Fatal("the slot is no failover slot")
	}
	repl, err := pgconn.Connect(t.Context(), s.cfg.ConnString+"&replication=database")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = repl.Close(context.Background()) }()
	if _, err := repl.Exec(t.Context(), `ALTER_REPLICATION_SLOT `+s.cfg.Slot+` (FAILOVER false)`).ReadAll(); err != nil {
		t.Fatal(err)
	}
	s.exec(`insert into notes values (3, 'three')`)
	s.start()
	s.settle()
	s.compare(notes)
	if *failover() || s.sink.lost != 0 {
		t.Errorf("failover is %t, and the stream was lost %d times", *failover(), s.sink.lost)
	}
}

// Another server than the stream's, which a connection string with several hosts
// can lead to, is not asked what became of the tables.
func TestOnCluster(t *testing.T) {
	t.Parallel()
	conn, err := pgx.Connect(t.Context(), pgtest.Cluster(t).DSN("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	var here Cluster
	if err := conn.QueryRow(t.Context(), `select system_identifier::text, timeline_id from pg_control_system(), pg_control_checkpoint()`).
		Scan(&here.System, &here.Timeline); err != nil {
		t.Fatal(err)
	}
	if err := onCluster(t.Context(), conn, here); err != nil {
		t.Errorf("the cluster is not itself: %v", err)
	}
	for _, other := range []Cluster{{here.System, here.Timeline + 1}, {"7000000000000000000", here.Timeline}} {
		if err := onCluster(t.Context(), conn, other); err == nil {
			t.Errorf("it was taken for %+v", other)
		}
	}
}

// A slot that somebody still reads is waited for, and then taken over.
func TestSlotInUse(t *testing.T) {
	notes := table(1, "notes", "id")
	s := newSource(t, notesDDL, notes)
	_, stop := s.start()
	s.settle()
	c, err := New(s.cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := c.Run(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a second capture of the slot returned %v, want it to have tried until the end", err)
	}
	_ = stop()
	// A predecessor that neither reads nor goes away.
	cfg, err := pgconn.ParseConfig(s.cfg.ConnString + "&replication=database")
	if err != nil {
		t.Fatal(err)
	}
	dead, err := pgconn.ConnectConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = dead.Close(context.Background()) }()
	s.eventually("the slot is free", func() bool {
		return pglogrepl.StartReplication(t.Context(), dead, s.cfg.Slot, 0, pglogrepl.StartReplicationOptions{Mode: pglogrepl.LogicalReplication,
			PluginArgs: []string{"proto_version '1'", "publication_names 'whence_pub'"}}) == nil
	})
	s.cfg.Predecessor = 300 * time.Millisecond
	s.start()
	s.exec(`insert into notes values (1, 'one')`)
	s.settle()
	s.compare(notes)
}

func TestServerSettings(t *testing.T) {
	t.Parallel()
	cluster := pgtest.OwnCluster(t, map[string]string{"wal_level": "replica"})
	s := &source{t: t, sink: newMemorySink(t), cfg: Config{ConnString: cluster.DSN("postgres"), Slot: "s", Publication: "p"}}
	s.cfg.Sink = s.sink
	s.broken("ALTER SYSTEM SET wal_level = logical")
	conn, err := pgx.Connect(t.Context(), s.cfg.ConnString)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	var refusal *whence.Error
	if err := CheckServer(t.Context(), conn); !errors.As(err, &refusal) || refusal.Reason != "WAL_LEVEL_NOT_LOGICAL" {
		t.Errorf("CheckServer returned %v", err)
	}
}

// A role with just what capture needs works; without it, the refusal says what to run.
func TestPrivileges(t *testing.T) {
	notes, other := table(1, "notes", "id"), table(2, "other", "id")
	s := newSource(t, notesDDL+`; insert into notes values (1, 'one'); create table other (id int primary key, body text)`, notes, other)
	role := "role_" + s.cfg.Slot[:min(40, len(s.cfg.Slot))]
	s.exec(`create role ` + role + ` login password 'sekret-word'`)
	t.Cleanup(func() {
		_, err := s.db.Pool.Exec(context.Background(), `reassign owned by `+role+` to current_user; drop owned by `+role+`; drop role `+role)
		if err != nil {
			t.Error(err)
		}
	})
	cfg, err := pgx.ParseConfig(s.db.DSN)
	if err != nil {
		t.Fatal(err)
	}
	admin := s.cfg.ConnString
	s.cfg.ConnString = strings.Replace(admin, cfg.User, role, 1)
	if cfg.Password != "" {
		s.cfg.ConnString = strings.Replace(s.cfg.ConnString, cfg.Password, "sekret-word", 1)
	}
	s.broken("ALTER ROLE")
	s.exec(`alter role ` + role + ` replication`)
	s.broken("CREATE on the database")
	s.exec(`grant create on database ` + pgx.Identifier{s.db.Name}.Sanitize() + ` to ` + role)
	c, _ := s.start()
	failed := func(id int32) func() bool {
		return func() bool { state, _ := s.sink.state(id); return state == whence.TableBroken }
	}
	s.eventually("both tables fail", func() bool { return failed(1)() && failed(2)() })
	if _, message := s.sink.state(1); !strings.Contains(message, "GRANT SELECT") {
		t.Errorf("unreadable: %s", message)
	}
	s.exec(`grant select on notes to ` + role)
	s.sink.register(notes)
	c.Poke()
	s.eventually("it cannot be published", failed(1))
	if _, message := s.sink.state(1); !strings.Contains(message, "ALTER PUBLICATION") && !strings.Contains(message, "alter publication") {
		t.Errorf("not owned: %s", message)
	}
	s.exec(`alter table notes owner to ` + role + `; alter table other owner to ` + role)
	s.sink.register(notes)
	s.sink.register(other)
	c.Poke()
	s.settle()
	s.exec(`insert into notes values (2, 'two'); alter table other enable row level security; alter table other force row level security`)
	s.settle()
	s.cfg.ConnString = admin
	s.compare(notes)
	s.sink.register(other)
	c.Poke()
	s.eventually("row security is not overlooked", failed(2))
	if _, message := s.sink.state(2); !strings.Contains(message, "BYPASSRLS") {
		t.Errorf("row security: %s", message)
	}
}

func TestPasswordStaysOut(t *testing.T) {
	t.Parallel()
	for _, dsn := range []string{
		"postgres://u:sekret-word@127.0.0.1:1/db?sslmode=nonsense", "postgres://u:sekret-word@127.0.0.1:notaport/db",
		"host=127.0.0.1 port=1 user=u password=sekret-word dbname=db", "user=u password='sekret-word",
	} {
		var said []string
		c, err := New(Config{ConnString: dsn, Slot: "s", Publication: "p", Sink: newMemorySink(t),
			Status: func(err error) { said = append(said, err.Error()) }})
		if err != nil {
			said = append(said, err.Error())
		} else {
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			_ = c.Run(ctx)
			cancel()
		}
		if _, err := DropSlot(t.Context(), dsn, "s", "p"); err != nil {
			said = append(said, err.Error())
		}
		if len(said) < 2 || strings.Contains(strings.Join(said, " "), "sekret") {
			t.Errorf("%s: %q", dsn, said)
		}
	}
}

func TestDropSlot(t *testing.T) {
	notes := table(1, "notes", "id")
	s := newSource(t, notesDDL, notes)
	_, stop := s.start()
	s.settle()
	if _, err := DropSlot(t.Context(), s.cfg.ConnString, s.cfg.Slot, s.cfg.Publication); err != nil {
		t.Errorf("while a stream is on: %v", err)
	}
	_ = stop()
	// The capture may have been about to make them again as it was stopped.
	if _, err := DropSlot(t.Context(), s.cfg.ConnString, s.cfg.Slot, s.cfg.Publication); err != nil {
		t.Errorf("what is absent: %v", err)
	}
	var n int
	err := s.db.Pool.QueryRow(t.Context(), `select (select count(*) from pg_replication_slots where slot_name = $1) + (select count(*) from pg_publication)`, s.cfg.Slot).Scan(&n)
	if err != nil || n != 0 {
		t.Errorf("%d are left: %v", n, err)
	}
}
