package ingest

import (
	"testing"
	"time"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/cdc"
)

// newSinkAt100 is a sink whose checkpoint is 0/100, and a table to be copied.
func newSinkAt100(t *testing.T) (*world, TableInfo, *sink) {
	t.Helper()
	w := newDocs(t)
	info := w.register(docsSpec)
	w.exec(w.memory, `insert into whence.checkpoints (source_id, lsn) select id, '0/100' from whence.sources`)
	w.exec(w.memory, `update whence.tables set snapshot_lsn = null`)
	src, err := w.r.GetSource(t.Context(), "app")
	if err != nil {
		t.Fatal(err)
	}
	k := newSink(w.r, src, func() {})
	if _, _, err := k.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	return w, info, k
}

// A value out of line that the stream did not repeat is not taken from another
// row that had the key before; a newer snapshot brings it.
func TestOwedValueOfAnotherKey(t *testing.T) {
	w, info, k := newSinkAt100(t)
	ctx := t.Context()
	row := func(id, body string) whence.Values {
		return whence.Values{"id": &id, "title": ptr("title"), "body": &body, "owner": nil, "lang": nil, "at": nil}
	}
	copying := func(snapshot whence.LSN, rows ...whence.Values) {
		t.Helper()
		if _, err := k.BackfillStart(ctx, info.ID, info.Definition, snapshot, 2); err != nil {
			t.Fatal(err)
		}
		if err := k.BackfillRows(ctx, info.ID, snapshot, rows, cdc.Blocks{}); err != nil {
			t.Fatal(err)
		}
	}
	copying(0x110)
	u, err := k.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	renamed := row("2", "")
	delete(renamed, "body")
	err = u.Apply(ctx, []cdc.Change{
		{Table: info.ID, Op: cdc.Delete, OldKey: whence.Values{"id": ptr("2")}, LSN: 0x150, XID: 7, CommitTime: time.Now()},
		{Table: info.ID, Op: cdc.Update, Row: renamed, Unchanged: []string{"body"}, OldKey: whence.Values{"id": ptr("1")}, LSN: 0x160, XID: 8, CommitTime: time.Now()},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := u.Commit(ctx, cdc.Progress{LSN: 0x200}); err != nil {
		t.Fatal(err)
	}
	if err := k.BackfillRows(ctx, info.ID, 0x110, []whence.Values{row("1", "one"), row("2", "two")}, cdc.Blocks{Part: cdc.Part{OID: 1, File: 1}, To: 1}); err != nil {
		t.Fatal(err)
	}
	if got, err := w.r.GetTable(ctx, docs); err != nil || got.Status.RowsDone != 2 || got.Status.RowRate <= 0 {
		t.Errorf("the copying tells %+v, %v", got.Status, err)
	}
	owed, err := k.BackfillOwed(ctx, info.ID)
	if err != nil || len(owed) != 1 || *owed[0]["id"] != "2" {
		t.Fatalf("owed are %v, %v", owed, err)
	}
	if done, err := k.BackfillDone(ctx, info.ID, 0x110); done || err != nil {
		t.Fatalf("done %v with a record that is owed a value, %v", done, err)
	}
	copying(0x210, row("2", "one"))
	if done, err := k.BackfillDone(ctx, info.ID, 0x210); done || err != nil {
		t.Fatalf("done %v before the stream is where the second snapshot was, %v", done, err)
	}
	if err := k.Caught(ctx, cdc.Progress{LSN: 0x210}); err != nil {
		t.Fatal(err)
	}
	if done, err := k.BackfillDone(ctx, info.ID, 0x210); !done || err != nil {
		t.Fatalf("done %v, %v", done, err)
	}
	w.want("the row", w.query(w.memory.Pool, `select v.columns ->> 'body' from whence.records r join whence.versions v on v.record_id = r.id and v.version = r.version
		where not r.deleted`), "one")
}

// A copied row does not take the place of what the stream brought since its
// snapshot, nor bring a deleted one back; of an older state it does.
func TestTheNewerPositionStands(t *testing.T) {
	w, info, k := newSinkAt100(t)
	ctx := t.Context()
	row := func(id, title string) whence.Values {
		return whence.Values{"id": &id, "title": &title, "body": nil, "owner": nil, "lang": nil, "at": nil}
	}
	apply := func(to whence.LSN, changes ...cdc.Change) {
		t.Helper()
		u, err := k.Begin(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for i := range changes {
			changes[i].Table, changes[i].XID, changes[i].CommitTime = info.ID, uint32(changes[i].LSN), time.Now()
		}
		if err := u.Apply(ctx, changes); err != nil {
			t.Fatal(err)
		}
		if err := u.Commit(ctx, cdc.Progress{LSN: to}); err != nil {
			t.Fatal(err)
		}
	}
	apply(0x109, cdc.Change{Op: cdc.Insert, Row: row("3", "before the snapshot"), LSN: 0x108})
	if _, err := k.BackfillStart(ctx, info.ID, info.Definition, 0x110, 3); err != nil {
		t.Fatal(err)
	}
	apply(0x200, cdc.Change{Op: cdc.Update, Row: row("1", "streamed"), LSN: 0x150},
		cdc.Change{Op: cdc.Delete, OldKey: whence.Values{"id": ptr("2")}, LSN: 0x160})
	copied := []whence.Values{row("1", "copied"), row("2", "copied"), row("3", "copied")}
	if err := k.BackfillRows(ctx, info.ID, 0x110, copied, cdc.Blocks{}); err != nil {
		t.Fatal(err)
	}
	w.want("rows", w.query(w.memory.Pool, `select r.key || ' ' || v.text || r.deleted from whence.records r
		join whence.versions v on v.record_id = r.id and v.version = r.version order by r.key`),
		string(key(1))+" streamedfalse", string(key(2))+" true", string(key(3))+" copiedfalse")
}
