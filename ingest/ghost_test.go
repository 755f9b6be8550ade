package ingest

import (
	"errors"
	"testing"
	"time"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/cdc"
)

// sinkOf is a sink as a process that captures the source has it.
func (w *world) sinkOf(s Source) *sink {
	w.t.Helper()
	k := newSink(w.r, s, func() {})
	if _, _, err := k.Start(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
	return k
}

// apply begins a unit with an insertion at a position.
func (w *world) apply(k *sink, table int32, id string, at whence.LSN) cdc.Unit {
	w.t.Helper()
	u, err := k.Begin(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = u.Rollback(w.t.Context()) })
	title := "ghost"
	row := whence.Values{"id": &id, "title": &title, "body": nil, "owner": nil, "lang": nil, "at": nil}
	if err := u.Apply(w.t.Context(), []cdc.Change{{Table: table, Op: cdc.Insert, Row: row, LSN: at, XID: 7, CommitTime: time.Now()}}); err != nil {
		w.t.Fatal(err)
	}
	return u
}

// What the stream brings from before a copy that has ended is past: the change
// that undid it may be of a time when the table was not published.
func TestOlderThanTheCopy(t *testing.T) {
	w, s, _ := losing(t)
	info := w.live(docs)
	if info.Snapshot == 0 || s.LSN <= info.Snapshot {
		t.Fatalf("copied at %v, applied up to %v", info.Snapshot, s.LSN)
	}
	u := w.apply(w.sinkOf(s), info.ID, "500", info.Snapshot-1)
	if err := u.Commit(t.Context(), cdc.Progress{LSN: s.LSN}); err != nil {
		t.Fatal(err)
	}
	w.equal(info)
}

// The same when a process that has lost the source ends the copy while another
// one's unit is open.
func TestCopyEndsBesideAnotherProcess(t *testing.T) {
	w, s, table := losing(t)
	loser, holder := w.sinkOf(s), w.sinkOf(s)
	if err := loser.CopyAgain(t.Context(), table.ID, table.Definition, s.LSN, "a test"); err != nil {
		t.Fatal(err)
	}
	snapshot := s.LSN + 100
	if _, err := loser.BackfillStart(t.Context(), table.ID, table.Definition, snapshot, 0); err != nil {
		t.Fatal(err)
	}
	u := w.apply(holder, table.ID, "500", snapshot-1)
	if done, err := loser.BackfillDone(t.Context(), table.ID, snapshot); err != nil || !done {
		t.Fatal(done, err)
	}
	err := u.Commit(t.Context(), cdc.Progress{LSN: s.LSN})
	if !errors.Is(err, whence.ErrAborted) {
		t.Errorf("the unit committed: %v", err)
	}
	w.want("the ghost", w.query(w.memory.Pool, `select version::text from whence.records where key = $1 and not deleted`, string(key(500))))
}

// What is copied while the slot is gone and the next is not made yet lacks what
// happens until then.
func TestCopyFromBeforeTheSlot(t *testing.T) {
	w, s, table := losing(t)
	k := w.sinkOf(s)
	if err := k.Lost(t.Context(), false, "a test"); err != nil {
		t.Fatal(err)
	}
	early := s.LSN + 10
	if _, err := k.BackfillStart(t.Context(), table.ID, table.Definition, early, 0); err != nil {
		t.Fatal(err)
	}
	if done, err := k.BackfillDone(t.Context(), table.ID, early); err != nil || !done {
		t.Fatal(done, err)
	}
	if err := k.Attach(t.Context(), early+10, cdc.Cluster{System: s.SystemID, Timeline: 1}); err != nil {
		t.Fatal(err)
	}
	if info, err := w.r.GetTable(t.Context(), docs); err != nil || info.State != whence.TablePending {
		t.Errorf("the table is %s, %v", info.State, err)
	}
	if _, err := k.BackfillStart(t.Context(), table.ID, table.Definition, early, 0); !errors.Is(err, whence.ErrAborted) {
		t.Errorf("a copy from before the slot begins: %v", err)
	}
	if _, err := k.BackfillStart(t.Context(), table.ID, table.Definition, early+20, 0); err != nil {
		t.Error(err)
	}
}
