package ingest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/cdc"
	"github.com/whence-db/whence/index"
	"github.com/whence-db/whence/internal/pg"
)

// capturedTable is a definition with what is derived from it.
type capturedTable struct {
	whence.Table
	name    whence.TableName
	columns []string
	text    []string // the columns that its text is rendered from
}

func capturing(t whence.Table) *capturedTable {
	return &capturedTable{Table: t, name: t.Name(), columns: t.Columns(), text: textColumns(t)}
}

// unit is one transaction with the turn. After release it is dead.
//
// What Apply is given is made ready by its caller's goroutine and stored by
// another, a slice at a time: while the database works on one slice, the next is
// received and rendered. The transaction, and all fields but tables and gone,
// belong to the storing goroutine while one runs.
type unit struct {
	*sink
	tx        pgx.Tx
	weight    int64                    // of its turn
	began     time.Time                // the transaction had begun by then
	tables    map[int32]*capturedTable // as read when the unit first needed them
	gone      map[int32]bool           // tables that are not registered any more
	touched   map[int32]bool           // tables that it has written to
	saved     map[int32]int64          // texts that needed no call, by table
	verdicts  map[asideKey]verdict     // not yet written
	changes   int64                    // that were applied
	commits   int64                    // of the source, that they were of
	last      whence.LSN               // the last of these
	unsettled []int64
	released  bool

	storing errgroup.Group // at most one goroutine
	failed  atomic.Pointer[error]
}

var _ cdc.Unit = (*unit)(nil)

// Begin opens a transaction.
func (s *sink) Begin(ctx context.Context) (cdc.Unit, error) {
	u, err := s.begin(ctx, whole)
	if err != nil {
		return nil, err // not u: a nil *unit is no nil Unit
	}
	return u, nil
}

func (s *sink) begin(ctx context.Context, weight int64) (*unit, error) {
	if err := s.take(ctx, weight); err != nil {
		return nil, err
	}
	tx, err := s.r.pool.BeginTx(ctx, index.Writing)
	if err != nil {
		s.give(weight)
		return nil, fmt.Errorf("begin: %w", pg.Translate(err))
	}
	u := &unit{sink: s, tx: tx, weight: weight, began: time.Now(), touched: map[int32]bool{}, gone: map[int32]bool{}, saved: map[int32]int64{}}
	u.storing.SetLimit(1)
	return u, nil
}

// table returns a definition; nil when the table is not registered any more.
func (u *unit) table(ctx context.Context, id int32) (*capturedTable, error) {
	if t := u.tables[id]; t != nil || u.gone[id] {
		return t, nil
	}
	if err := u.wait(); err != nil { // the transaction is needed
		return nil, err
	}
	infos, err := readTables(ctx, u.tx, u.source)
	if err != nil {
		return nil, err
	}
	if u.tables == nil {
		u.tables = map[int32]*capturedTable{}
	}
	for _, t := range infos {
		if u.tables[t.ID] == nil {
			u.tables[t.ID] = capturing(t.Table)
		}
	}
	u.gone[id] = u.tables[id] == nil
	return u.tables[id], nil
}

// Apply folds changes into versions, in order. It returns once they are ready;
// that they could not be stored is said by a later call.
func (u *unit) Apply(ctx context.Context, changes []cdc.Change) error {
	u.count(changes)
	for len(changes) > 0 {
		n := slices.IndexFunc(changes, func(c cdc.Change) bool { return c.Op == cdc.Truncate })
		if n == 0 {
			c, t := changes[0], (*capturedTable)(nil)
			t, err := u.table(ctx, c.Table)
			if err != nil {
				return err
			}
			if t != nil {
				if err := u.store(func() error { return u.truncate(ctx, t, c) }); err != nil {
					return err
				}
			}
			changes = changes[1:]
			continue
		}
		if n < 0 {
			n = len(changes)
		}
		steps, err := u.steps(ctx, changes[:n])
		if err != nil {
			return err
		}
		if err := u.store(func() error { return u.fold(ctx, steps) }); err != nil {
			return err
		}
		changes = changes[n:]
	}
	return nil
}

// store runs fn once what was stored before is done, without waiting for it.
func (u *unit) store(fn func() error) error {
	u.storing.Go(func() error {
		if u.failed.Load() != nil {
			return nil
		}
		if err := fn(); err != nil {
			u.failed.Store(&err)
		}
		return nil
	})
	return u.failure()
}

// wait returns when nothing is being stored, with what went wrong.
func (u *unit) wait() error {
	_ = u.storing.Wait() // failures are kept
	return u.failure()
}

func (u *unit) failure() error {
	if err := u.failed.Load(); err != nil {
		return *err
	}
	return nil
}

const noteTruncation = `update whence.tables set truncated_lsn = greatest(truncated_lsn, @lsn::pg_lsn) where id = @id`

func (u *unit) truncate(ctx context.Context, t *capturedTable, c cdc.Change) error {
	u.touched[t.ID] = true
	if _, err := u.tx.Exec(ctx, noteTruncation, pgx.NamedArgs{"id": t.ID, "lsn": c.LSN}); err != nil {
		return fmt.Errorf("note a truncation: %w", err)
	}
	if err := u.dropAside(ctx, t.ID, c.LSN+1); err != nil {
		return err
	}
	return u.deleteOlder(ctx, t.Table, c.LSN+1, index.Commit{LSN: c.LSN, XID: &c.XID, Time: c.CommitTime})
}

const selectDefinitions = `
select id, definition, state = 'LIVE', language from whence.tables where id = any(@ids) and state <> 'UNREGISTERING'`

// Commit moves the checkpoint and ends the transaction. With the checkpoint's
// lock held no definition can change and no copy can end, so the comparison holds
// until the commit.
func (u *unit) Commit(ctx context.Context, p cdc.Progress) error {
	if u.released {
		return errors.New("the unit has ended")
	}
	if err := u.wait(); err != nil {
		return err
	}
	if err := u.r.index.CountSaved(ctx, u.tx, u.saved); err != nil {
		return fmt.Errorf("count texts: %w", pg.Translate(err))
	}
	b := &pgx.Batch{}
	args := u.checkpointArgs(p, u.began)
	args["changes"] = u.changes
	b.Queue(moveCheckpoint, args).Exec(expectOne)
	type standing struct {
		definition int32
		live       bool
		language   string
	}
	now := map[int32]standing{}
	ids := make([]int32, 0, len(u.touched))
	for id := range u.touched {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	if len(ids) > 0 {
		b.Queue(selectDefinitions, pgx.NamedArgs{"ids": ids}).Query(func(rows pgx.Rows) error {
			var id int32
			var s standing
			_, err := pgx.ForEachRow(rows, []any{&id, &s.definition, &s.live, &s.language}, func() error { now[id] = s; return nil })
			return err
		})
	}
	if err := u.tx.SendBatch(ctx, b).Close(); err != nil {
		return fmt.Errorf("move the checkpoint: %w", pg.Translate(err))
	}
	for _, id := range ids {
		t := u.tables[id].Table
		// Another process, which has the source now or had it, may have ended a copy
		// or begun one: what is older than that is not to be stored any more. In another
		// language the chunks would not be found again by who changes that.
		if n := now[id]; n.definition != t.Definition || n.live != (t.State == whence.TableLive) || n.language != t.Language {
			return redefined(t)
		}
	}
	if err := u.tx.Commit(ctx); err != nil {
		return fmt.Errorf("commit: %w", pg.Translate(err))
	}
	u.known = max(u.known, p.LSN)
	if u.changes > 0 {
		u.meter.Applied(u.source, u.changes, u.commits, time.Since(u.began))
	}
	u.committed(ctx)
	return nil
}

// count counts what is applied.
func (u *unit) count(changes []cdc.Change) {
	u.changes += int64(len(changes))
	for i := range changes {
		if changes[i].LSN != u.last {
			u.commits++
		}
		u.last = changes[i].LSN
	}
}

// committed ends the turn and does what follows a commit; none of it may be
// needed for what was committed to be right.
func (u *unit) committed(ctx context.Context) {
	defer u.wake()
	defer u.release()
	if err := u.r.index.Settle(ctx, u.unsettled); err != nil {
		u.r.log.WarnContext(ctx, "superseded chunks stay until the next look for them", "source", u.source, "error", err)
	}
}

// Rollback gives the unit up.
func (u *unit) Rollback(ctx context.Context) error {
	if u.released {
		return nil
	}
	_ = u.wait() // what went wrong has been said, or does not matter any more
	defer u.release()
	if err := u.tx.Rollback(ctx); err != nil && !errors.Is(err, pgx.ErrTxClosed) {
		return fmt.Errorf("roll back: %w", err)
	}
	return nil
}

func (u *unit) release() {
	u.released = true
	u.give(u.weight)
}

// redefined is the error of work that began under another definition: the
// stream is to start over from the checkpoint.
func redefined(t whence.Table) *whence.Error {
	return &whence.Error{Kind: whence.ErrAborted, Reason: "TABLE_REDEFINED", RetryAfter: time.Millisecond,
		Message: fmt.Sprintf("%s was registered otherwise or unregistered meanwhile; its changes are read again", t.Name())}
}
