package cdc

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/whence-db/whence"
)

// Bounds of what is handed over, or committed, at a time.
const (
	sliceChanges = 1000
	sliceBytes   = 4 << 20
	unitChanges  = 5000 // a unit ends at the first transaction border beyond
	caughtEvery  = 250 * time.Millisecond
	// idleBytes of log without a change for us are confirmed before
	// Config.IdleCheckpoint has passed, so that the source can remove them.
	idleBytes    = 16 << 20
	rollbackTime = 5 * time.Second
)

// applier turns the stream's messages into the sink's units. One goroutine.
type applier struct {
	*session
	decoder   decoder
	relations map[uint32]*relation
	told      uint32 // the relation that was described since the last row; 0: none

	unit       Unit // open or nil
	inUnit     int  // changes applied to it
	changes    []Change
	bytes      int // of the values in changes
	inTx       bool
	begin      beginMessage
	position   whence.LSN // every whole transaction before it is in the sink, the unit or changes
	checkpoint whence.LSN // the sink's, as of this session's last unit
	committed  time.Time  // the source's time of the last transaction that had changes

	nextCaught, nextIdle time.Time
}

func newApplier(s *session, from whence.LSN) *applier {
	return &applier{session: s, relations: map[uint32]*relation{}, position: from, checkpoint: from,
		nextIdle: s.c.cfg.Now().Add(s.c.cfg.IdleCheckpoint)}
}

func (a *applier) run(ctx context.Context) (err error) {
	defer func() {
		if a.unit != nil {
			err = errors.Join(err, a.rollback(ctx))
		}
	}()
	for {
		var b batch
		select {
		case b = <-a.queue:
		default:
			// Nothing is at hand: what is whole becomes durable now.
			if err := a.settle(ctx); err != nil {
				return err
			}
			select {
			case b = <-a.queue:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		err := a.batch(ctx, b)
		a.room.Release(b.weight)
		if err != nil {
			return err
		}
	}
}

func (a *applier) batch(ctx context.Context, b batch) error {
	start := 0
	for _, end := range b.ends {
		if err := a.message(ctx, b.data[start:end]); err != nil {
			return err
		}
		start = end
		if !a.inTx && a.inUnit+len(a.changes) >= unitChanges {
			if err := a.settle(ctx); err != nil {
				return err
			}
		}
	}
	if a.unit == nil && len(a.changes) == 0 {
		return a.settle(ctx) // a busy stream of other tables also is progress
	}
	return nil
}

// message takes one message of the copy stream: 'w' is log data after a header
// of 24 bytes, 'k' a keepalive with the position that the server has sent.
func (a *applier) message(ctx context.Context, b []byte) error {
	switch {
	case len(b) == 18 && b[0] == 'k':
		if !a.inTx {
			a.position = max(a.position, whence.LSN(binary.BigEndian.Uint64(b[1:9])))
		}
		return nil
	case len(b) < 25 || b[0] != 'w':
		return fmt.Errorf("the stream holds a message of %d bytes that is neither log data nor a keepalive", len(b))
	}
	m, err := a.decoder.decode(b[25:])
	if err != nil {
		return err
	}
	switch m := m.(type) {
	case beginMessage:
		if a.inTx {
			return errors.New("a transaction begins within another")
		}
		a.inTx, a.begin = true, m
		return nil
	case relationMessage:
		a.relations[m.id] = resolve(m, a.begin.final, a.c.tables.Load(), a.relations[m.id])
		a.told = m.id
		return nil
	case otherMessage:
		return nil
	}
	if !a.inTx {
		return fmt.Errorf("message %q outside a transaction", m.kind())
	}
	switch m := m.(type) {
	case commitMessage:
		a.inTx = false
		a.position = max(a.position, m.end)
		return nil
	case insertMessage:
		return a.row(ctx, m.relation, Insert, 0, nil, m.new)
	case updateMessage:
		return a.row(ctx, m.relation, Update, m.oldKind, m.old, m.new)
	case deleteMessage:
		return a.row(ctx, m.relation, Delete, m.oldKind, m.old, nil)
	case truncateMessage:
		a.told = 0
		for _, id := range m.relations {
			if err := a.row(ctx, id, Truncate, 0, nil, nil); err != nil {
				return err
			}
		}
	}
	return nil
}

func (a *applier) row(ctx context.Context, id uint32, op Op, oldKind byte, oldRow, newRow tuple) error {
	told := a.told
	a.told = 0
	r, err := a.relation(id)
	if err != nil {
		return err
	}
	if !r.wanted {
		return a.stray(ctx, r)
	}
	if err := a.leaf(ctx, r, told); err != nil {
		return err
	}
	why := r.misfit(oldKind, oldRow, newRow)
	if err := a.judge(ctx, r, why); err != nil {
		return err
	}
	if why.message != "" && (op == Insert || op == Update || why.keyless) {
		return nil
	}
	ch := Change{Table: r.table.ID, Op: op, LSN: a.begin.final, XID: a.begin.xid, CommitTime: a.begin.commitTime}
	size, err := r.fill(&ch, oldKind, oldRow, newRow)
	if err != nil {
		return err
	}
	a.changes = append(a.changes, ch)
	a.bytes += size
	a.committed = a.begin.commitTime
	if len(a.changes) >= sliceChanges || a.bytes >= sliceBytes {
		return a.flush(ctx)
	}
	return nil
}

// relation finds how to read a relation's rows, by the newest definition.
func (a *applier) relation(id uint32) (*relation, error) {
	r := a.relations[id]
	if r == nil {
		return nil, fmt.Errorf("relation %d has changes but was not described", id)
	}
	if set := a.c.tables.Load(); r.set != set {
		r = resolve(r.message, r.at, set, r.before)
		a.relations[id] = r
	}
	r.at = a.begin.final
	return r, nil
}

// judge sees that a change may be left out for what does not fit. One from before
// the table's snapshot may: the copy shows what it did, whatever the table was like
// then. Any later one fails the table, if nothing has yet.
func (a *applier) judge(ctx context.Context, r *relation, why misfit) error {
	f := failure{r.table.ID, r.table.Definition}
	switch {
	case why.message == "":
		delete(a.c.failed, f)
	case a.begin.final < r.table.Snapshot:
	case !failedState(r.table.State) && !a.c.failed[f]:
		return a.fail(ctx, r, f, why)
	}
	return nil
}

// fail makes a table's failure durable before a checkpoint can pass the
// changes that are skipped for it. A unit that is open is given up, and the
// stream starts over from the checkpoint.
func (a *applier) fail(ctx context.Context, r *relation, f failure, why misfit) error {
	restart, err := a.giveUp(ctx)
	if err != nil {
		return err
	}
	if err := a.c.sink.TableFailed(ctx, r.table.ID, r.table.Definition, why.state, why.message); err != nil {
		return fmt.Errorf("record that %s cannot be captured: %w", r.table.Name(), err)
	}
	a.c.failed[f] = true
	r.before = nil
	if restart {
		return errAgain
	}
	return nil
}

// giveUp ends what has not been committed; if there was something, the stream is
// to start over.
func (a *applier) giveUp(ctx context.Context) (restart bool, err error) {
	restart = a.unit != nil || len(a.changes) > 0
	if a.unit != nil {
		err = a.rollback(ctx)
	}
	return restart, err
}

// flush applies what has been gathered to the open unit.
func (a *applier) flush(ctx context.Context) error {
	if len(a.changes) == 0 {
		return nil
	}
	if a.unit == nil {
		u, err := a.c.sink.Begin(ctx)
		if err != nil {
			return fmt.Errorf("begin a unit: %w", err)
		}
		a.unit = u
	}
	if err := a.unit.Apply(ctx, a.changes); err != nil {
		return fmt.Errorf("apply changes: %w", err)
	}
	a.inUnit += len(a.changes)
	clear(a.changes)
	a.changes, a.bytes = a.changes[:0], 0
	return nil
}

// settle makes whole transactions durable, or tells of progress when there are
// none. Within a transaction it does nothing.
func (a *applier) settle(ctx context.Context) error {
	if a.inTx {
		return nil
	}
	if err := a.flush(ctx); err != nil {
		return err
	}
	now := a.c.cfg.Now()
	idle := a.position - a.checkpoint
	if a.unit == nil && (idle >= idleBytes || idle > 0 && now.After(a.nextIdle)) {
		u, err := a.c.sink.Begin(ctx)
		if err != nil {
			return fmt.Errorf("begin a unit: %w", err)
		}
		a.unit = u
	}
	if a.unit != nil {
		return a.commit(ctx)
	}
	if now.Before(a.nextCaught) {
		return nil
	}
	a.nextCaught = now.Add(caughtEvery)
	if err := a.c.sink.Caught(ctx, a.progress()); err != nil {
		return fmt.Errorf("record progress: %w", err)
	}
	return nil
}

func (a *applier) commit(ctx context.Context) error {
	p := a.progress()
	if err := a.unit.Commit(ctx, p); err != nil {
		return fmt.Errorf("commit a unit: %w", err)
	}
	a.unit, a.inUnit = nil, 0
	a.checkpoint = p.LSN
	a.durable.Store(uint64(p.LSN))
	now := a.c.cfg.Now()
	a.nextCaught, a.nextIdle = now.Add(caughtEvery), now.Add(a.c.cfg.IdleCheckpoint)
	return nil
}

func (a *applier) progress() Progress {
	p := Progress{LSN: a.position, CommitTime: a.committed}
	p.CaughtUpAt, p.LagBytes = a.probes.progress(a.position)
	return p
}

// rollback gives up the open unit, also when ctx has ended.
func (a *applier) rollback(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), rollbackTime)
	defer cancel()
	u := a.unit
	a.unit, a.inUnit, a.changes = nil, 0, nil
	if err := u.Rollback(ctx); err != nil {
		return fmt.Errorf("roll back a unit: %w", err)
	}
	return nil
}
