package cdc

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"

	"github.com/whence-db/whence"
)

// memorySink holds what a durable sink would, by the rules that [Sink] states,
// and complains when capture breaks its side of them.
type memorySink struct {
	t    *testing.T
	turn chan struct{} // held by a unit, or by a backfill's write

	mu         sync.Mutex // guards the rest
	checkpoint whence.LSN
	cluster    Cluster
	tables     map[int32]*memoryTable
	progress   Progress
	units      int
	applied    []Change                // kept when keep is set
	keep       bool                    //
	attached   int                     //
	again      int                     // tables that were copied again
	lost       int                     //
	rewound    bool                    // as the last Lost said
	reason     string                  // likewise
	fault      func(step string) error // may fail any call; nil: none does
}

type memoryTable struct {
	whence.Table
	snapshot  whence.LSN
	truncated whence.LSN
	rowsDone  int
	records   map[whence.Key]record
	copying   whence.LSN // the snapshot that is read from
	blocks    []Blocks
}

type record struct {
	row     whence.Values // nil: deleted
	lsn     whence.LSN
	missing map[string]bool // columns that a newer snapshot owes
}

func newMemorySink(t *testing.T, tables ...whence.Table) *memorySink {
	t.Helper()
	s := &memorySink{t: t, turn: make(chan struct{}, 1), tables: map[int32]*memoryTable{}}
	for _, table := range tables {
		s.register(table)
	}
	return s
}

func (s *memorySink) register(t whence.Table) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t.State = whence.TablePending
	old := s.tables[t.ID]
	s.tables[t.ID] = &memoryTable{Table: t, snapshot: t.Snapshot, records: map[whence.Key]record{}}
	if old != nil {
		s.tables[t.ID].records, s.tables[t.ID].truncated = old.records, old.truncated
	}
}

func (s *memorySink) check(step string) error {
	s.mu.Lock()
	f := s.fault
	s.mu.Unlock()
	if f == nil {
		return nil
	}
	return f(step)
}

func (s *memorySink) setFault(f func(string) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault = f
}

func (s *memorySink) state(id int32) (whence.TableState, string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tables[id].State, s.tables[id].Error
}

func (s *memorySink) now() (whence.LSN, Progress) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.checkpoint, s.progress
}

// rows returns the table's live rows as key to printed row.
func (s *memorySink) rows(id int32) map[whence.Key]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[whence.Key]string{}
	for k, r := range s.tables[id].records {
		if r.row != nil {
			out[k] = printRow(r.row)
			if len(r.missing) > 0 {
				out[k] += fmt.Sprint(" missing ", r.missing)
			}
		}
	}
	return out
}

func printRow(row whence.Values) string {
	out := ""
	for _, name := range slices.Sorted(maps.Keys(row)) {
		if row[name] == nil {
			out += name + "=null "
		} else {
			out += fmt.Sprintf("%s=%q ", name, *row[name])
		}
	}
	return out
}

func (s *memorySink) Start(context.Context) (whence.LSN, Cluster, error) {
	if err := s.check("start"); err != nil {
		return 0, Cluster{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.checkpoint, s.cluster, nil
}

func (s *memorySink) Lost(_ context.Context, rewound bool, reason string) error {
	if err := s.check("lost"); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.checkpoint, s.lost, s.rewound, s.reason = 0, s.lost+1, rewound, reason
	for _, t := range s.tables {
		if !failedState(t.State) {
			t.State = whence.TablePending
		}
		if !rewound {
			continue
		}
		t.snapshot, t.truncated, t.copying = 0, 0, 0
		for k, r := range t.records {
			r.lsn = 0
			t.records[k] = r
		}
	}
	return s.checkLocked("lost-after")
}

// ahead has the sink hold what a source with a longer log had.
func (s *memorySink) ahead(by whence.LSN) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.checkpoint += by
	for _, t := range s.tables {
		for k, r := range t.records {
			r.lsn += by
			t.records[k] = r
		}
	}
}

// copiedAhead has the sink hold what a longer log had, from a backfill only.
func (s *memorySink) copiedAhead(by whence.LSN) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range s.tables {
		t.copying += by
		for k, r := range t.records {
			r.lsn += by
			t.records[k] = r
		}
	}
}

func (s *memorySink) Attach(_ context.Context, at whence.LSN, of Cluster) error {
	if err := s.check("attach"); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.checkpoint != 0 && s.checkpoint != at {
		s.t.Errorf("attached at %s over the checkpoint %s", at, s.checkpoint)
	}
	s.checkpoint, s.cluster, s.attached = at, of, s.attached+1
	return s.checkLocked("attach-after")
}

func (s *memorySink) checkLocked(step string) error {
	if s.fault == nil {
		return nil
	}
	return s.fault(step)
}

func (s *memorySink) Tables(context.Context) ([]whence.Table, error) {
	if err := s.check("tables"); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []whence.Table
	for _, id := range slices.Sorted(maps.Keys(s.tables)) {
		t := s.tables[id].Table
		if t.Snapshot = 0; !failedState(t.State) {
			t.Snapshot = s.tables[id].snapshot
		}
		t.Copied = s.tables[id].copying
		list = append(list, t)
	}
	return list, nil
}

func (s *memorySink) Caught(_ context.Context, p Progress) error {
	if err := s.check("caught"); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.progress = p
	return nil
}

func (s *memorySink) take(ctx context.Context) error {
	select {
	case s.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

type memoryUnit struct {
	s       *memorySink
	changes []Change
	ended   bool
}

func (s *memorySink) Begin(ctx context.Context) (Unit, error) {
	if err := s.check("begin"); err != nil {
		return nil, err
	}
	if err := s.take(ctx); err != nil {
		return nil, err
	}
	return &memoryUnit{s: s}, nil
}

func (u *memoryUnit) Apply(_ context.Context, changes []Change) error {
	if err := u.s.check("apply"); err != nil {
		return err
	}
	u.changes = append(u.changes, changes...)
	return nil
}

var errAlreadyEnded = errors.New("the unit has ended")

func (u *memoryUnit) Rollback(context.Context) error {
	if u.ended {
		return nil // after a Commit whose outcome was lost
	}
	u.ended = true
	<-u.s.turn
	return nil
}

func (u *memoryUnit) Commit(_ context.Context, p Progress) error {
	if u.ended {
		return errAlreadyEnded
	}
	if err := u.s.check("commit"); err != nil {
		return err
	}
	s := u.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if p.LSN < s.checkpoint {
		s.t.Errorf("checkpoint %s after %s", p.LSN, s.checkpoint)
	}
	last := s.checkpoint
	for _, ch := range u.changes {
		if ch.LSN < last || ch.LSN >= p.LSN {
			s.t.Errorf("change at %s between checkpoints %s and %s, after one at %s", ch.LSN, s.checkpoint, p.LSN, last)
		}
		last = ch.LSN
		if t := s.tables[ch.Table]; t != nil {
			s.apply(t, ch)
		}
	}
	if s.keep {
		s.applied = append(s.applied, u.changes...)
	}
	s.checkpoint, s.progress, s.units = p.LSN, p, s.units+1
	u.ended = true
	<-s.turn
	return s.checkLocked("commit-after")
}

func (s *memorySink) apply(t *memoryTable, ch Change) {
	switch ch.Op {
	case Truncate:
		t.truncated = max(t.truncated, ch.LSN)
		for k := range t.records {
			t.put(k, record{lsn: ch.LSN})
		}
		return
	case Delete:
		t.put(s.key(t, ch.OldKey), record{lsn: ch.LSN})
		return
	}
	key := s.key(t, ch.Row)
	from := key
	if ch.OldKey != nil {
		from = s.key(t, ch.OldKey)
		if from == key {
			s.t.Errorf("an old key without a change of it: %s", key)
		}
	}
	before := t.records[from]
	after := record{row: maps.Clone(ch.Row), lsn: ch.LSN, missing: map[string]bool{}}
	for _, name := range ch.Unchanged {
		if _, sent := ch.Row[name]; sent {
			s.t.Errorf("column %s is both sent and unchanged", name)
		}
		// Changes may be missing from what is older than the copying.
		vouched := t.State == whence.TableLive || t.State == whence.TableBackfilling && before.lsn >= t.snapshot
		if v, known := before.row[name]; known && vouched {
			after.row[name] = v
		} else {
			after.missing[name] = true
		}
	}
	if from != key {
		t.put(from, record{lsn: ch.LSN})
	}
	t.put(key, after)
}

// put takes over what a change made of a row, unless a snapshot has shown it as
// it was later.
func (t *memoryTable) put(key whence.Key, r record) {
	if r.lsn >= t.records[key].lsn && (t.State != whence.TableLive || r.lsn >= t.snapshot) {
		t.records[key] = r
	}
}

func (s *memorySink) key(t *memoryTable, v whence.Values) whence.Key {
	k, err := whence.NewKey(t.KeyColumns, v)
	if err != nil {
		s.t.Errorf("%s: %v", t.Name(), err)
	}
	return k
}

func (s *memorySink) BackfillStart(ctx context.Context, id, definition int32, snapshot whence.LSN, _ int64) (copied []Blocks, err error) {
	err = s.backfill(ctx, "backfill-start", id, func(t *memoryTable) {
		if snapshot < t.snapshot || snapshot < t.copying {
			s.t.Errorf("snapshot %s after %s and %s", snapshot, t.snapshot, t.copying)
		}
		if t.Definition != definition {
			return
		}
		if t.State == whence.TablePending {
			t.snapshot, t.blocks, t.rowsDone = snapshot, nil, 0
		}
		t.State, t.copying, copied = whence.TableBackfilling, snapshot, slices.Clone(t.blocks)
	})
	return copied, err
}

func (s *memorySink) BackfillOwed(ctx context.Context, id int32) (keys []whence.Values, err error) {
	err = s.backfill(ctx, "backfill-owed", id, func(t *memoryTable) {
		keys = nil
		for k, r := range t.records {
			if r.row != nil && len(r.missing) > 0 {
				keys = append(keys, k.Values())
			}
		}
	})
	return keys, err
}

func (s *memorySink) BackfillRows(ctx context.Context, id int32, snapshot whence.LSN, rows []whence.Values, read Blocks) error {
	return s.backfill(ctx, "backfill-rows", id, func(t *memoryTable) {
		if t.copying != snapshot || t.State != whence.TableBackfilling {
			return
		}
		t.rowsDone += len(rows)
		t.blocks = append(t.blocks, read)
		for _, row := range rows {
			key := s.key(t, row)
			if r, there := t.records[key]; (!there || r.lsn < snapshot) && t.truncated < snapshot {
				t.records[key] = record{row: row, lsn: snapshot}
			}
		}
	})
}

func (s *memorySink) BackfillDone(ctx context.Context, id int32, snapshot whence.LSN) (done bool, err error) {
	err = s.backfill(ctx, "backfill-done", id, func(t *memoryTable) {
		if t.copying != snapshot || t.State != whence.TableBackfilling {
			done = true
			return
		}
		if t.snapshot != t.copying && s.checkpoint < t.copying {
			return
		}
		for k, r := range t.records { // first: one of them may owe values of a row that is gone
			if r.lsn < t.snapshot {
				delete(t.records, k)
			}
		}
		for _, r := range t.records {
			if r.row != nil && len(r.missing) > 0 {
				return
			}
		}
		done, t.State = true, whence.TableLive
	})
	return done, err
}

func (s *memorySink) backfill(ctx context.Context, step string, id int32, do func(*memoryTable)) error {
	if err := s.check(step); err != nil {
		return err
	}
	if err := s.take(ctx); err != nil {
		return err
	}
	defer func() { <-s.turn }()
	s.mu.Lock()
	defer s.mu.Unlock()
	if t := s.tables[id]; t != nil {
		do(t)
	}
	return s.checkLocked(step + "-after")
}

func (s *memorySink) Saw(_ context.Context, id, definition int32, shape string) error {
	if err := s.check("saw"); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if t := s.tables[id]; t != nil && t.Definition == definition {
		t.Shape = shape
	}
	return nil
}

func (s *memorySink) CopyAgain(_ context.Context, id, definition int32, at whence.LSN, reason string) error {
	if err := s.check("copy-again"); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if t := s.tables[id]; t != nil && t.Definition == definition && !failedState(t.State) {
		t.State, t.Error, t.Shape, t.snapshot = whence.TablePending, reason, "", max(t.snapshot, at)
		s.again++
	}
	return nil
}

func (s *memorySink) TableFailed(_ context.Context, id, definition int32, state whence.TableState, message string) error {
	if err := s.check("table-failed"); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if t := s.tables[id]; t != nil && t.Definition == definition {
		t.State, t.Error = state, message
	}
	return nil
}
