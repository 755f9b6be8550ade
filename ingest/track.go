package ingest

import (
	"slices"
	"time"

	"github.com/whence-db/whence"
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
	exists  bool // some state is known
	deleted bool
	mark    mark
	values  whence.Values // nil when they were not asked for, or when deleted
	missing []string      // columns not known
	row     *row          // nil when deleted, or when it is what the index has
}

func (s state) equal(o state) bool {
	if s.exists != o.exists || s.deleted != o.deleted {
		return false
	}
	return s.deleted || s.mark == o.mark
}

// pending is a state that is to become a version.
type pending struct {
	state
	moment
	previous state // what was before it
	replace  bool  // it takes the place of the head's version
	purge    bool  // the row was deleted before, within the same transaction, and its table purges
}

// track follows one row through the changes of one call. Each transaction
// leaves at most one state, its last, and none when that changes nothing.
type track struct {
	table    *capturedTable
	key      whence.Key
	head     *index.Head
	complete bool // the table is LIVE: no backfill will bring rows
	touched  bool
	now      state
	seen     whence.LSN // of the newest change, also if it changed nothing
	pending  []pending
}

// newTrack begins with what the index has; contents are its values, nil when
// nothing asked for them.
func newTrack(table *capturedTable, key whence.Key, head *index.Head, contents *index.Contents) *track {
	t := &track{table: table, key: key, head: head, complete: table.State == whence.TableLive}
	if head == nil {
		return t
	}
	t.now = state{exists: true, deleted: head.Deleted, missing: head.Missing}
	copy(t.now.mark[:], head.State)
	if contents != nil && !head.Deleted {
		t.now.values = contents.Columns
		if head.State == nil && contents.Definition == table.Definition {
			t.now.mark = markOf(table, contents.Columns)
		}
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
			before := &t.pending[n-1]
			p.previous, p.replace = before.previous, before.replace
			p.purge = !s.deleted && t.table.OnDelete == whence.OnDeletePurge && (before.purge || before.deleted)
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
	case p.replace || p.purge || !s.equal(p.previous):
		t.pending = append(t.pending, p)
	}
}

// outdated tells whether a change is older than what is known: a backfill's
// snapshot has shown the row as it was afterwards, or that there was none. What
// undid an older change may be missing from the stream, if the table was not
// published for a while.
func (t *track) outdated(at moment) bool {
	if t.complete && at.lsn < t.table.Snapshot {
		return true
	}
	last, ok := t.last()
	return ok && at.lsn < last.lsn
}

func (t *track) remove(at moment) {
	if t.outdated(at) {
		return
	}
	// Of a row that is not known either nothing is kept, or, while a backfill may
	// still bring it as it was before, that it was deleted.
	t.push(at, state{exists: true, deleted: true})
}

// vouched tells whether what is stored of the row is what the source had before
// the change. Changes may be missing from what is older than the copying of the
// table; the copying then brings the values.
func (t *track) vouched() bool {
	last, ok := t.last()
	return t.complete || ok && t.table.State == whence.TableBackfilling && last.lsn >= t.table.Snapshot
}

// put takes over a new row; values that the stream did not repeat come from
// where the row was before. It returns how many bytes of them it gathered.
func (t *track) put(s *step, from *track) int {
	if t.outdated(s.at) {
		return 0
	}
	if len(s.unchanged) == 0 {
		t.push(s.at, state{exists: true, mark: s.row.mark, values: s.row.values, row: s.row})
		return 0
	}
	var missing []string
	for _, name := range s.unchanged {
		v, ok := from.now.values[name]
		if ok && from.vouched() {
			s.values[name] = v
		} else {
			missing = append(missing, name)
		}
	}
	slices.Sort(missing)
	r := newRow(t.table, s.values, s.at, missing...)
	r.lacks.missing(t.complete, missing)
	t.push(s.at, state{exists: true, mark: r.mark, values: r.values, missing: missing, row: r})
	return len(r.columns)
}

// copied takes over a row that a snapshot shows. What the stream changed since
// and could not bring whole is left to a newer snapshot: this one may show another
// row under the key.
func (t *track) copied(at moment, r *row) {
	if t.head == nil || t.head.LSN < at.lsn {
		t.push(at, state{exists: true, mark: r.mark, values: r.values, row: r})
	}
}
