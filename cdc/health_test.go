package cdc

import (
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/whence-db/whence/internal/pgtest"
)

func TestWarning(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		health Health
		says   string // "": nothing
	}{
		{Health{RetainedWAL: 100 << 20, SafeWAL: 900 << 20, WALStatus: "reserved"}, ""},
		{Health{RetainedWAL: 600 << 20, SafeWAL: 400 << 20, WALStatus: "extended"}, "after 400 MB more"},
		{Health{RetainedWAL: 1 << 20, SafeWAL: 0, WALStatus: "unreserved"}, "about to remove"},
		{Health{RetainedWAL: 1 << 30, SafeWAL: -1, WALStatus: "reserved"}, ""},
		{Health{RetainedWAL: 5 << 30, SafeWAL: -1, WALStatus: "extended"}, "without bound"},
	} {
		got := tt.health.warning("slot")
		if (got == "") != (tt.says == "") || !strings.Contains(got, tt.says) {
			t.Errorf("%+v: %q, want %q", tt.health, got, tt.says)
		}
	}
}

// A slot whose log the source is about to remove is warned of, and one that it
// has removed is found out and made good.
func TestInvalidatedSlot(t *testing.T) {
	notes := table(1, "notes", "id")
	s := newSource(t, notesDDL, notes)
	cluster := pgtest.OwnCluster(t, map[string]string{"max_slot_wal_keep_size": "32MB", "min_wal_size": "32MB", "max_wal_size": "48MB"})
	s.cfg.ConnString = cluster.DSN("postgres")
	pool, err := pgxpool.New(t.Context(), s.cfg.ConnString)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	s.db = &pgtest.DB{Pool: pool, DSN: s.cfg.ConnString}
	s.exec(notesDDL)
	var mu sync.Mutex
	var last Health
	looks, filled := 0, 0
	s.cfg.Health = func(h Health) { mu.Lock(); defer mu.Unlock(); last = h; looks++ }
	seen := func(f func(Health) bool) func() bool {
		return func() bool { mu.Lock(); defer mu.Unlock(); return f(last) }
	}
	// On a busy machine more could be written between two looks than lies between
	// the warning and the loss.
	lookedSince := func() bool {
		mu.Lock()
		defer mu.Unlock()
		if looks == filled {
			return false
		}
		filled = looks
		return true
	}
	s.idle()
	s.start()
	s.eventually("the slot is healthy", seen(func(h Health) bool { return h.WALStatus == "reserved" && h.SafeWAL > 0 && h.Warning == "" }))
	// A sink that does not get on keeps the slot where it is.
	release := make(chan struct{})
	s.sink.setFault(func(step string) error {
		if step == "commit" {
			<-release
		}
		return nil
	})
	defer close(release)
	s.exec(`insert into notes values (10, 'stuck')`)
	s.exec(`create table filler (x text)`)
	fill := func() {
		s.exec(`insert into filler select repeat(md5(i::text), 100) from generate_series(1, 1500) i; select pg_switch_wal()`)
	}
	s.eventually("a warning comes", func() bool {
		if lookedSince() {
			fill()
		}
		return seen(func(h Health) bool { return h.Warning != "" && h.WALStatus != "lost" })()
	})
	s.eventually("the slot is lost", func() bool {
		fill()
		s.exec(`checkpoint`)
		var status string
		err := s.db.Pool.QueryRow(t.Context(), `select wal_status from pg_replication_slots where slot_name = $1`, s.cfg.Slot).Scan(&status)
		return err == nil && status == "lost"
	})
	var why string
	err = s.db.Pool.QueryRow(t.Context(), `select coalesce(to_jsonb(s) ->> 'invalidation_reason', 'was removed')
		from pg_replication_slots s where slot_name = $1`, s.cfg.Slot).Scan(&why)
	if err != nil {
		t.Fatal(err)
	}
	s.exec(`delete from notes where id = 1; insert into notes values (11, 'while it was lost')`)
	s.sink.setFault(nil)
	release <- struct{}{}
	s.eventually("the loss is noticed", func() bool { s.sink.mu.Lock(); defer s.sink.mu.Unlock(); return s.sink.lost > 0 })
	s.settle()
	s.compare(notes)
	if !strings.Contains(s.sink.reason, why) {
		t.Errorf("the reason given is %q, the server's is %q", s.sink.reason, why)
	}
}

func TestLostSlot(t *testing.T) {
	t.Parallel()
	text := func(s string) *string { return &s }
	yes, no := true, false
	for _, tt := range []struct {
		name string
		slot slotState
		says string // "": it is not lost
	}{
		{"15, well", slotState{walStatus: text("reserved")}, ""},
		{"15, soon", slotState{walStatus: text("unreserved")}, ""},
		{"15, gone", slotState{walStatus: text("lost")}, "max_slot_wal_keep_size"},
		{"16, well", slotState{walStatus: text("extended"), conflicting: &no}, ""},
		{"16, gone", slotState{walStatus: text("reserved"), conflicting: &yes}, "removed"},
		{"17, wal_removed", slotState{walStatus: text("lost"), invalidation: text("wal_removed")}, "wal_removed"},
		{"17, rows_removed", slotState{walStatus: text("reserved"), conflicting: &yes, invalidation: text("rows_removed")}, "rows_removed"},
		{"17, wal_level", slotState{walStatus: text("reserved"), conflicting: &yes, invalidation: text("wal_level_insufficient")}, "wal_level"},
		{"18, idle", slotState{walStatus: text("lost"), invalidation: text("idle_timeout")}, "idle_timeout"},
	} {
		if got := tt.slot.lost(); got != (tt.says != "") || got && !strings.Contains(tt.slot.reason(), tt.says) {
			t.Errorf("%s: lost is %t, because %q", tt.name, got, tt.slot.reason())
		}
	}
}
