package main

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// The floor is only a floor as long as it writes what capture writes, and the
// comparison is only worth something as long as it sees a difference.
func TestEveryWayDrainsTheSameLog(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	w, err := newWorld(ctx, false)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := w.stop(ctx); err != nil {
			t.Error(err)
		}
	}()
	c := config{changes: 4500, applied: 3000, drains: 1}
	r, err := measureDrain(ctx, w, c, t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	for name, f := range map[string]figure{"pg_recvlogical": r.Recvlogical, "decode": r.Decode, "subscription": r.Subscription,
		"capture": r.Capture, "floor": r.Floor, "decode ÷ pg_recvlogical": r.DecodeRatio, "capture ÷ floor": r.CaptureRatio,
		"capture ÷ subscription": r.NativeRatio, "processor time": r.DecodeCPU, "allocations": r.DecodeAllocations} {
		if f.Low <= 0 {
			t.Errorf("%s: %+v", name, f)
		}
	}
	held := w.read(ctx, t, "captured", `
select count(*) || ' ' || sum(hashtext(v.text)) from whence.records r
join whence.versions v on v.record_id = r.id and v.version = r.version where not r.deleted`)
	if rows := w.read(ctx, t, "subscriber", `select count(*) || ' ' || sum(hashtext(title || E'\n\n' || body)) from items`); rows != held {
		t.Errorf("the subscriber holds %s, capture %s", rows, held)
	}
	for _, damage := range []string{
		"update whence.records set subject = 'x' where id = 2",
		"update whence.versions set text = text || ' ' where record_id = 2 and version = 1",
		"update whence.chunks set ordinal = 1 where id = (select min(id) from whence.chunks)",
		"delete from whence.vectors where digest = (select digest from whence.chunks limit 1)",
	} {
		if err := w.copyDatabase(ctx, "floor", "damaged"); err != nil {
			t.Fatal(err)
		}
		if n := w.read(ctx, t, "damaged", "with d as ("+damage+" returning 1) select count(*)::text from d"); n != "1" {
			t.Fatalf("%s: %s rows", damage, n)
		}
		if err := w.compare(ctx, "damaged", "captured"); err == nil || !strings.Contains(err.Error(), "differ") {
			t.Errorf("%s went unseen: %v", damage, err)
		}
	}
}

// read returns what one query of one value returns.
func (w *world) read(ctx context.Context, t *testing.T, database, sql string) (value string) {
	t.Helper()
	conn, err := pgx.Connect(ctx, w.memory.DSN(database))
	if err != nil {
		t.Fatal(err)
	}
	defer closeConn(ctx, conn)
	if err := conn.QueryRow(ctx, sql).Scan(&value); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return value
}
