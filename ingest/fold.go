package ingest

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/cdc"
	"github.com/whence-db/whence/index"
)

// moment is where a state of a row comes from.
type moment struct {
	lsn    whence.LSN
	xid    *uint32   // nil: a backfill
	commit time.Time // zero: a backfill
}

func (m moment) same(o moment) bool {
	return m.lsn == o.lsn && m.xid != nil && o.xid != nil && *m.xid == *o.xid
}

// state is what is known of a row after some change.
type state struct {
	exists     bool // some state is known
	deleted    bool
	columns    whence.Values
	missing    []string // columns not known
	definition int32
}

func (s state) equal(o state) bool {
	if s.exists != o.exists || s.deleted != o.deleted || !slices.Equal(s.missing, o.missing) {
		return false
	}
	if s.deleted {
		return true
	}
	if s.definition != o.definition || len(s.columns) != len(o.columns) {
		return false
	}
	for name, v := range s.columns {
		w, ok := o.columns[name]
		if !ok || (v == nil) != (w == nil) || v != nil && *v != *w {
			return false
		}
	}
	return true
}

// pending is a state that is to become a version.
type pending struct {
	state
	moment
	previous state // what was before it
	replace  bool  // it takes the place of the head's version
}

// track follows one row through the changes of one call. Each transaction
// leaves at most one state, its last, and none when that changes nothing.
type track struct {
	key      whence.Key
	head     *index.Head
	complete bool // the table is LIVE: no backfill will bring rows
	now      state
	seen     whence.LSN // of the newest change, also if it changed nothing
	pending  []pending
}

func newTrack(table *capturedTable, key whence.Key, head *index.Head) *track {
	t := &track{key: key, head: head, complete: table.State == whence.TableLive}
	if head != nil {
		t.now = state{exists: true, deleted: head.Deleted, columns: head.Columns, missing: head.Missing, definition: head.Definition}
	}
	return t
}

// last returns where the newest state comes from.
func (t *track) last() (moment, bool) {
	switch n := len(t.pending); {
	case n > 0:
		return t.pending[n-1].moment, true
	case t.head != nil:
		return moment{t.head.LSN, t.head.XID, t.head.CommitTime}, true
	}
	return moment{}, false
}

func (t *track) push(at moment, s state) {
	t.seen = max(t.seen, at.lsn)
	p := pending{state: s, moment: at, previous: t.now}
	if last, ok := t.last(); ok && last.same(at) {
		if n := len(t.pending); n > 0 {
			p.previous, p.replace = t.pending[n-1].previous, t.pending[n-1].replace
			t.pending = t.pending[:n-1]
		} else {
			// An earlier slice of the same transaction wrote the head; what was
			// before it is not at hand, so the version stays even if it is equal.
			p.replace = true
		}
	}
	t.now = s
	switch {
	case !p.replace && s.deleted && !p.previous.exists && t.complete:
		t.now = p.previous // it came and went within one transaction
	case p.replace || !s.equal(p.previous):
		t.pending = append(t.pending, p)
	}
}

// Apply folds changes into versions, in order.
func (u *unit) Apply(ctx context.Context, changes []cdc.Change) error {
	u.count(changes)
	for len(changes) > 0 {
		n := slices.IndexFunc(changes, func(c cdc.Change) bool { return c.Op == cdc.Truncate })
		if n < 0 {
			n = len(changes)
		}
		if err := u.fold(ctx, changes[:n]); err != nil {
			return err
		}
		if n == len(changes) {
			return nil
		}
		if err := u.truncate(ctx, changes[n]); err != nil {
			return err
		}
		changes = changes[n+1:]
	}
	return nil
}

const noteTruncation = `update whence.tables set truncated_lsn = greatest(truncated_lsn, @lsn::pg_lsn) where id = @id`

func (u *unit) truncate(ctx context.Context, c cdc.Change) error {
	t, err := u.table(ctx, c.Table)
	if err != nil || t == nil {
		return err
	}
	u.touched[t.ID] = true
	if _, err := u.tx.Exec(ctx, noteTruncation, pgx.NamedArgs{"id": t.ID, "lsn": c.LSN}); err != nil {
		return fmt.Errorf("note a truncation: %w", err)
	}
	if err := u.dropAside(ctx, t.ID, c.LSN+1); err != nil {
		return err
	}
	return u.r.index.DeleteOlder(ctx, u.tx, t.Table, c.LSN+1, index.Commit{LSN: c.LSN, XID: &c.XID, Time: c.CommitTime})
}

// step is one change with its keys.
type step struct {
	table  *capturedTable
	change *cdc.Change
	key    whence.Key // of the row; of the old row for a delete
	oldKey whence.Key // where the row was before, when its key changed
	gone   bool       // there is no row under key any more
}

func (u *unit) fold(ctx context.Context, changes []cdc.Change) error {
	steps := make([]step, 0, len(changes))
	keys := map[int32][]whence.Key{}
	for i := range changes {
		c := &changes[i]
		t, err := u.table(ctx, c.Table)
		if err != nil {
			return err
		}
		if t == nil {
			continue // unregistered since it was sent
		}
		s := step{table: t, change: c}
		if c.OldKey != nil {
			clean(c.OldKey)
			if s.oldKey, err = whence.NewKey(t.KeyColumns, c.OldKey); err != nil {
				return fmt.Errorf("a change of %s: %w", t.Name(), err)
			}
		}
		if c.Op == cdc.Delete {
			s.key, s.oldKey = s.oldKey, ""
			s.gone = true
		} else {
			clean(c.Row)
			if s.key, err = whence.NewKey(t.KeyColumns, c.Row); err != nil {
				return fmt.Errorf("a change of %s: %w", t.Name(), err)
			}
		}
		if len(s.oldKey) > maximumKey {
			u.judged(t, s.oldKey, verdict{lsn: c.LSN})
			s.oldKey = "" // nothing is stored under it
		}
		if len(s.key) > maximumKey {
			v := verdict{lsn: c.LSN}
			if !s.gone {
				v.reason = keyTooLong(s.key)
			}
			u.judged(t, s.key, v)
			if s.key, s.oldKey, s.gone = s.oldKey, "", true; s.key == "" {
				continue
			}
		}
		keys[t.ID] = append(keys[t.ID], s.key)
		if s.oldKey != "" {
			keys[t.ID] = append(keys[t.ID], s.oldKey)
		}
		steps = append(steps, s)
	}
	tracks := map[int32]map[whence.Key]*track{}
	var order []*track
	for id, ks := range keys {
		u.touched[id] = true
		slices.Sort(ks)
		ks = slices.Compact(ks)
		heads, err := u.r.index.Heads(ctx, u.tx, id, ks)
		if err != nil {
			return err
		}
		tracks[id] = make(map[whence.Key]*track, len(ks))
		for _, k := range ks {
			var head *index.Head
			if h, ok := heads[k]; ok {
				head = &h
			}
			tracks[id][k] = newTrack(u.tables[id], k, head)
		}
	}
	tables := map[*track]*capturedTable{}
	touch := func(s step, key whence.Key) *track {
		t := tracks[s.table.ID][key]
		if tables[t] == nil {
			tables[t] = s.table
			order = append(order, t)
		}
		return t
	}
	for _, s := range steps {
		t := touch(s, s.key)
		if s.gone {
			t.remove(s.table, s.change)
			continue
		}
		from := t
		if s.oldKey != "" && s.oldKey != s.key {
			from = touch(s, s.oldKey)
		}
		if err := t.put(s.table, s.change, from); err != nil {
			return err
		}
		if from != t {
			from.remove(s.table, s.change)
		}
	}
	if len(changes) > 1 && weight(order) > maximumWrite {
		if err := u.fold(ctx, changes[:len(changes)/2]); err != nil {
			return err
		}
		return u.fold(ctx, changes[len(changes)/2:])
	}
	return u.write(ctx, order, tables)
}

// weight is how many bytes the states of some tracks hold. It may be far more
// than the stream brought: it does not repeat values that stay as they are.
func weight(order []*track) (bytes int) {
	for _, t := range order {
		for _, p := range t.pending {
			bytes += p.columns.Size()
		}
	}
	return bytes
}

// outdated tells whether a change is older than what is known: a backfill's
// snapshot has shown the row as it was afterwards.
func (t *track) outdated(c *cdc.Change) bool {
	last, ok := t.last()
	return ok && c.LSN < last.lsn
}

func (t *track) remove(table *capturedTable, c *cdc.Change) {
	if t.outdated(c) {
		return
	}
	// Of a row that is not known either nothing is kept, or, while a backfill may
	// still bring it as it was before, that it was deleted.
	xid := c.XID
	t.push(moment{c.LSN, &xid, c.CommitTime}, state{exists: true, deleted: true, definition: table.Definition})
}

// vouched tells whether what is stored of the row is what the source had before
// the change. Changes may be missing from what is older than the copying of the
// table; the copying then brings the values.
func (t *track) vouched(table *capturedTable) bool {
	last, ok := t.last()
	return t.complete || ok && table.State == whence.TableBackfilling && last.lsn >= table.Snapshot
}

// put takes over a new row; values that the stream did not repeat come from
// where the row was before.
func (t *track) put(table *capturedTable, c *cdc.Change, from *track) error {
	if t.outdated(c) {
		return nil
	}
	s := state{exists: true, columns: c.Row, definition: table.Definition}
	if len(c.Row) != len(table.columns) || len(c.Unchanged) > 0 {
		s.columns = make(whence.Values, len(table.columns))
		for _, name := range table.columns {
			v, ok := c.Row[name]
			if !ok && !slices.Contains(c.Unchanged, name) {
				return redefined(table.Table)
			}
			if !ok && from.vouched(table) {
				v, ok = from.now.columns[name]
			}
			if ok {
				s.columns[name] = v
			} else {
				s.missing = append(s.missing, name)
			}
		}
	} else {
		for _, name := range table.columns {
			if _, ok := c.Row[name]; !ok {
				return redefined(table.Table)
			}
		}
	}
	xid := c.XID
	t.push(moment{c.LSN, &xid, c.CommitTime}, s)
	return nil
}

// clean makes values storable: sources declare an encoding, but not all of them
// keep to it.
func clean(row whence.Values) {
	for name, v := range row {
		if v != nil && !utf8.ValidString(*v) {
			s := strings.ToValidUTF8(*v, string(utf8.RuneError))
			row[name] = &s
		}
	}
}
