package ingest

import (
	"fmt"
	"strings"
	"testing"

	"github.com/whence-db/whence/internal/pgtest"
)

// aged makes what was told of the slot an hour old.
func (w *world) aged() {
	w.t.Helper()
	w.exec(w.memory, `update whence.checkpoints set lag_at = lag_at - interval '1 h', health_at = health_at - interval '1 h'`)
}

// sourceIs waits until the source is as wanted.
func (w *world) sourceIs(what string, ok func(Source) bool) Source {
	w.t.Helper()
	var s Source
	w.until(what, func() (bool, string) {
		var err error
		if s, err = w.r.GetSource(w.t.Context(), "app"); err != nil {
			w.t.Fatal(err)
		}
		return ok(s), fmt.Sprintf("%s %q, behind %d, kept %d, safe %d, %q", s.State, s.Error, s.LagBytes, s.RetainedWAL, s.SafeWAL, s.Warning)
	})
	return s
}

// While a source is paused its slot is watched: its figures grow, it is warned of
// before it is lost, and what nobody knows is not told.
func TestPausedSlotIsWatched(t *testing.T) {
	t.Parallel()
	cluster := pgtest.OwnCluster(t, map[string]string{"max_slot_wal_keep_size": "32MB", "min_wal_size": "32MB", "max_wal_size": "48MB"})
	w := newWorldWithoutSource(t)
	w.source = open(t, cluster)
	w.exec(w.source, createDocs)
	w.create()
	w.register(docsSpec)
	w.run()
	w.live(docs)
	w.sourceIs("the slot is healthy", func(s Source) bool { return s.SafeWAL > 16<<20 && s.RetainedWAL >= 0 && s.Warning == "" })
	if _, err := w.r.PauseSource(t.Context(), "app"); err != nil {
		t.Fatal(err)
	}
	before := w.sourceIs("the source is paused", func(s Source) bool { return s.State == SourcePaused && s.LagBytes >= 0 })
	w.exec(w.source, `create table filler (x text)`)
	fill := func() {
		w.exec(w.source, `insert into filler select repeat(md5(i::text), 100) from generate_series(1, 7000) i; select pg_switch_wal()`)
	}
	for range 2 {
		fill()
	}
	w.sourceIs("a warning comes", func(s Source) bool {
		return strings.Contains(s.Warning, "will give it up") && s.RetainedWAL > before.RetainedWAL+16<<20 && s.LagBytes > before.LagBytes+16<<20
	})
	w.sourceIs("the loss is told", func(s Source) bool {
		if s.SafeWAL > 0 {
			fill()
			w.exec(w.source, `checkpoint`)
		}
		return s.SafeWAL == 0 && s.State == SourcePaused && strings.Contains(s.Warning, "has removed log")
	})
	cluster.Kill()
	w.aged()
	s := w.sourceIs("nothing is known", func(s Source) bool { return s.RetainedWAL < 0 })
	if s.LagBytes >= 0 || s.SafeWAL >= 0 || !strings.Contains(s.Warning, "not been known since") || !strings.Contains(s.Warning, "has removed log") {
		t.Errorf("of a source that is away %+v is told", s)
	}
	if err := cluster.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.sourceIs("the loss is told again", func(s Source) bool {
		return s.RetainedWAL >= 0 && strings.HasPrefix(s.Warning, "the source has removed log")
	})
}

// A source that cannot be followed is watched too, and so is one whose slot is gone.
func TestUnreadableSlotIsWatched(t *testing.T) {
	w := newDocs(t)
	w.register(docsSpec)
	w.run()
	w.live(docs)
	s := w.sourceIs("the slot is told of", func(s Source) bool { return s.RetainedWAL >= 0 })
	w.kill()
	w.until("the slot is dropped", func() (bool, string) { // its last reader may take a moment to go
		_, err := w.source.Pool.Exec(t.Context(), `select pg_drop_replication_slot($1)`, s.Slot)
		return err == nil, fmt.Sprint(err)
	})
	w.exec(w.source, `select pg_create_logical_replication_slot($1, 'test_decoding')`, s.Slot)
	w.aged()
	w.run()
	w.sourceIs("it is broken, and told of", func(s Source) bool {
		return s.State == SourceBroken && s.RetainedWAL >= 0 && s.LagBytes >= 0 && s.Warning == ""
	})
	w.exec(w.source, `select pg_drop_replication_slot($1)`, s.Slot)
	w.sourceIs("its slot is missed", func(s Source) bool {
		return s.State == SourceBroken && strings.Contains(s.Warning, "is not there any more") && s.SafeWAL == 0
	})
}
