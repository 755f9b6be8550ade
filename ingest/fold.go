package ingest

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/cdc"
	"github.com/whence-db/whence/index"
)

// step is one change, ready to be compared with what the index has.
type step struct {
	table     *capturedTable
	at        moment
	key       whence.Key            // of the row; of the old row for a delete
	oldKey    whence.Key            // where the row was before, when its key changed
	gone      bool                  // there is no row under key any more
	outsized  map[whence.Key]string // keys that cannot be stored, and why their rows are left out; key may be empty then
	values    whence.Values
	unchanged []string // columns that values lacks
	row       *row     // nil where gone, or while columns are lacking
}

// rowKey names a record among those of a slice.
type rowKey struct {
	table int32
	key   whence.Key
}

// steps does for a slice of changes all that needs nothing of the index. It runs
// while the slice before is still being stored.
func (u *unit) steps(ctx context.Context, changes []cdc.Change) ([]step, error) {
	steps := make([]step, 0, len(changes))
	last := make(map[rowKey]int, len(changes)) // the step that leaves a row as it will be
	for i := range changes {
		t, err := u.table(ctx, changes[i].Table)
		if err != nil {
			return nil, err
		}
		if t == nil {
			continue // unregistered since it was sent
		}
		s, ok, err := u.step(t, &changes[i])
		if err != nil {
			return nil, err
		}
		if ok {
			last[rowKey{t.ID, s.key}] = len(steps)
			steps = append(steps, s)
		}
	}
	for i := range steps {
		s := &steps[i]
		if s.row == nil || last[rowKey{s.table.ID, s.key}] != i {
			continue
		}
		if err := s.row.cut(s.table, s.key, s.at); err != nil {
			return nil, err
		}
	}
	return steps, nil
}

// step works out keys and row; ok is false where nothing is to be done.
func (u *unit) step(t *capturedTable, c *cdc.Change) (s step, ok bool, err error) {
	xid := c.XID
	s = step{table: t, at: moment{c.LSN, &xid, c.CommitTime}, gone: c.Op == cdc.Delete, values: c.Row, unchanged: c.Unchanged}
	if c.OldKey != nil {
		clean(c.OldKey)
		if s.oldKey, err = whence.NewKey(t.KeyColumns, c.OldKey); err != nil {
			return s, false, fmt.Errorf("a change of %s: %w", t.name, err)
		}
	}
	if s.gone {
		s.key, s.oldKey = s.oldKey, ""
	} else {
		clean(c.Row)
		if s.key, err = whence.NewKey(t.KeyColumns, c.Row); err != nil {
			return s, false, fmt.Errorf("a change of %s: %w", t.name, err)
		}
	}
	if s.oldKey == s.key {
		s.oldKey = ""
	}
	if len(s.oldKey) > maximumKey {
		s.outsized = map[whence.Key]string{s.oldKey: ""}
		s.oldKey = "" // nothing is stored under it
	}
	if len(s.key) > maximumKey {
		if s.outsized == nil {
			s.outsized = map[whence.Key]string{}
		}
		if s.outsized[s.key] = ""; !s.gone {
			s.outsized[s.key] = keyTooLong(s.key)
		}
		s.key, s.oldKey, s.gone = s.oldKey, "", true
		if s.key == "" {
			return s, true, nil
		}
	}
	if s.gone {
		s.values, s.unchanged = nil, nil
		return s, true, nil
	}
	if len(s.values)+len(s.unchanged) != len(t.columns) {
		return s, false, redefined(t.Table)
	}
	for _, name := range t.columns {
		if _, ok := s.values[name]; !ok && !slices.Contains(s.unchanged, name) {
			return s, false, redefined(t.Table)
		}
	}
	if len(s.unchanged) == 0 {
		s.row = newRow(t, s.values, s.at)
	}
	return s, true, nil
}

// fold compares a slice with what the index has and stores what differs, as much
// at a time as memory bears.
func (u *unit) fold(ctx context.Context, steps []step) error {
	for n := len(steps); len(steps) > 0; {
		n = min(n, len(steps))
		done, err := u.foldSome(ctx, steps[:n])
		if errors.Is(err, errHeavy) {
			n = max(1, n/4)
			continue
		}
		if err != nil {
			return err
		}
		clear(steps[:done]) // they hold by now what the stream did not bring
		steps = steps[done:]
	}
	return nil
}

// foldSome folds the first of the steps, and tells how many those were.
func (u *unit) foldSome(ctx context.Context, steps []step) (int, error) {
	f, err := u.open(ctx, steps)
	if err != nil {
		return 0, err
	}
	for i := range steps {
		s := &steps[i]
		for key, reason := range s.outsized {
			u.judged(s.table, key, verdict{lsn: s.at.lsn, reason: reason})
		}
		if s.key == "" {
			continue
		}
		t := f.touch(s.table, s.key)
		if s.gone {
			t.remove(s.at)
			continue
		}
		from := t
		if s.oldKey != "" {
			from = f.touch(s.table, s.oldKey)
		}
		f.weight += t.put(s, from)
		if from != t {
			from.remove(s.at)
		}
		if f.weight > maximumWrite {
			return i + 1, u.write(ctx, f.order)
		}
	}
	return len(steps), u.write(ctx, f.order)
}

// folding is the rows that a slice is about.
type folding struct {
	tracks map[int32]map[whence.Key]*track
	order  []*track // those that were touched, in that order
	weight int      // bytes gathered that the stream did not bring
}

func (f *folding) touch(table *capturedTable, key whence.Key) *track {
	t := f.tracks[table.ID][key]
	if !t.touched {
		t.touched = true
		f.order = append(f.order, t)
	}
	return t
}

// open begins a track for each row of the steps.
func (u *unit) open(ctx context.Context, steps []step) (*folding, error) {
	keys := map[*capturedTable][]whence.Key{}
	valued := map[rowKey]bool{} // rows that others take values from
	for i := range steps {
		s := &steps[i]
		if s.key != "" {
			keys[s.table] = append(keys[s.table], s.key)
		}
		from := s.key
		if s.oldKey != "" {
			keys[s.table] = append(keys[s.table], s.oldKey)
			from = s.oldKey
		}
		if len(s.unchanged) > 0 {
			valued[rowKey{s.table.ID, from}] = true
		}
	}
	f := &folding{tracks: map[int32]map[whence.Key]*track{}}
	for table, ks := range keys {
		slices.Sort(ks)
		tracks, err := u.openTable(ctx, table, slices.Compact(ks), valued, len(steps) > 1)
		if err != nil {
			return nil, err
		}
		f.tracks[table.ID] = tracks
	}
	return f, nil
}

// errHeavy asks for fewer rows at a time: the values that are to be read for them
// would take too much memory. The stream did not bring these, so its bounds do not
// hold them.
var errHeavy = errors.New("too much at a time")

// openTable begins a track for each key. The values of a head are read only
// where they are asked for, or where it has no mark; errHeavy, if they are too many
// and fewer keys are possible.
func (u *unit) openTable(ctx context.Context, table *capturedTable, keys []whence.Key, valued map[rowKey]bool, fewer bool) (map[whence.Key]*track, error) {
	u.touched[table.ID] = true
	heads, err := u.r.index.Heads(ctx, u.tx, table.ID, keys)
	if err != nil {
		return nil, err
	}
	var ask []int64
	for key, h := range heads {
		if !h.Deleted && (h.State == nil || valued[rowKey{table.ID, key}]) {
			ask = append(ask, h.RecordID)
		}
	}
	if fewer && len(ask) > 1 {
		size, err := u.r.index.ContentsSize(ctx, u.tx, ask)
		if err != nil {
			return nil, err
		}
		if size > maximumRead {
			return nil, errHeavy
		}
	}
	contents, err := u.r.index.Contents(ctx, u.tx, ask)
	if err != nil {
		return nil, err
	}
	tracks := make(map[whence.Key]*track, len(keys))
	for _, key := range keys {
		h := heads[key]
		var c *index.Contents
		if h != nil {
			if found, ok := contents[h.RecordID]; ok {
				c = &found
			}
		}
		tracks[key] = newTrack(table, key, h, c)
	}
	return tracks, nil
}
