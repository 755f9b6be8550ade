package ingest

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/whence-db/whence"
)

// Versions go once they are kept no longer, heads and what a deletion left stay,
// and the table says from when on its past is whole.
func TestVersionsAreKeptForAsLongAsTheTableSays(t *testing.T) {
	w := newWorld(t)
	w.exec(w.source, `create table t (id int primary key, body text)`)
	w.exec(w.source, `insert into t values (1, 'one'), (2, 'two'), (3, 'three')`)
	w.create()
	spec := TableSpec{Table: "public.t", TextColumns: []string{"body"}}
	w.register(spec)
	w.run()
	info := w.live("app.public.t")
	if info.CoveredFrom.IsZero() || info.CoveredFrom.Before(info.CreateTime) || info.VersionRetention != 0 || !info.PrunedBefore.IsZero() {
		t.Errorf("after the first copy: %+v", info.Table)
	}
	for i := range 1200 { // more than one batch
		if i%100 == 0 {
			w.exec(w.source, `update t set body = $1 where id = 2`, strings.Repeat(fmt.Sprintf("Two, for the %dth time. ", i), i))
		}
		w.exec(w.source, `update t set body = $1 where id = 1`, fmt.Sprint("one, again ", i))
	}
	w.exec(w.source, `delete from t where id = 3`)
	w.caughtUp()
	w.equal(info)
	if n := len(w.versions(`{"id":"1"}`)); n != 1201 {
		t.Fatalf("%d versions", n)
	}
	spec.VersionRetention = time.Second
	if got := w.register(spec); got.VersionRetention != time.Second || got.State != whence.TableLive || got.Definition != info.Definition {
		t.Errorf("tuned: %+v", got.Table)
	}
	w.until("only heads are left", func() (bool, string) {
		left := w.query(w.memory.Pool, `select (r.key::jsonb ->> 'id') || ' v' || v.version || ' ' || v.deleted from whence.versions v join whence.records r on r.id = v.record_id order by 1`)
		return strings.Join(left, ", ") == "1 v1201 false, 2 v13 false, 3 v2 true", strings.Join(left[:min(len(left), 9)], ", ")
	})
	got := w.live("app.public.t")
	if got.PrunedBefore.IsZero() || !got.CoveredFrom.Equal(info.CoveredFrom) {
		t.Errorf("pruned: %+v", got.Table)
	}
	w.equal(got)

	w.exec(w.source, `update t set body = 'and on' where id = 1`)
	w.caughtUp()
	spec.VersionRetention = 0
	if got := w.register(spec); got.VersionRetention != 0 || got.PrunedBefore.IsZero() {
		t.Errorf("kept for ever again: %+v", got.Table)
	}
	for _, bad := range []time.Duration{-time.Hour, time.Millisecond, 200 * 365 * 24 * time.Hour} {
		spec.VersionRetention = bad
		if _, err := spec.table(); err == nil {
			t.Errorf("%v is taken", bad)
		}
	}
}

// What was purged while a table purged is not vouched for later.
func TestPurgedRowsAreRemembered(t *testing.T) {
	w := newWorld(t)
	w.exec(w.source, `create table t (id int primary key, body text)`)
	w.create()
	spec := TableSpec{Table: "public.t", TextColumns: []string{"body"}, OnDelete: whence.OnDeletePurge}
	if info := w.register(spec); !info.PurgedUntil.IsZero() {
		t.Errorf("%v", info.PurgedUntil)
	}
	spec.OnDelete = whence.OnDeleteTombstone
	info := w.register(spec)
	if info.PurgedUntil.Before(info.CreateTime) {
		t.Errorf("purged until %v", info.PurgedUntil)
	}
	if again := w.register(spec); !again.PurgedUntil.Equal(info.PurgedUntil) {
		t.Errorf("purged until %v, then until %v", info.PurgedUntil, again.PurgedUntil)
	}
}
