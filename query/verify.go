package query

import (
	"bytes"
	"context"
	"slices"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/authz"
)

// verify compares hits, whose records' heads have those states, with their rows in
// the sources, each source in one round trip. What is the same is VERIFIED, however
// far behind capture is; what differs is STALE and shows how the row reads now, if
// the scope and the request would have that row still.
func (e *Engine) verify(ctx context.Context, scope authz.Scope, r Request, tables []whence.Table, hits []Hit, states map[int64][]byte) ([]Hit, error) {
	for _, source := range sources(tables) {
		var rows []whence.RowsOf
		for _, t := range tables {
			if keys := keysOf(hits, t.Name()); t.Source == source && len(keys) > 0 {
				rows = append(rows, whence.RowsOf{Table: t, Keys: keys})
			}
		}
		if len(rows) == 0 {
			continue
		}
		live, err := e.Registry.Live(ctx, source, rows)
		if err != nil {
			return nil, err
		}
		for i, of := range rows {
			for j, key := range of.Keys {
				for k := range hits {
					if h := &hits[k]; h.Origin.Table == of.Table.Name() && h.Origin.Key == key {
						h.compare(live[i][j], states[h.RecordID], func(l *whence.LiveRow) bool { return wanted(scope, r, l) })
					}
				}
			}
		}
	}
	if err := e.verifyNotes(ctx, hits); err != nil {
		return nil, err
	}
	if r.FreshOnly {
		hits = slices.DeleteFunc(hits, func(h Hit) bool { return h.Freshness.State != whence.Verified && h.Freshness.State != whence.Fresh })
	}
	return hits, nil
}

// keysOf lists the rows of a table that hits are of, each once.
func keysOf(hits []Hit, table whence.TableName) (keys []whence.Key) {
	for _, h := range hits {
		if h.Origin.Table == table && !slices.Contains(keys, h.Origin.Key) {
			keys = append(keys, h.Origin.Key)
		}
	}
	return keys
}

// compare judges a hit, whose record's head has a state, by the row that its source
// holds now; nil: none.
func (h *Hit) compare(live *whence.LiveRow, state []byte, show func(*whence.LiveRow) bool) {
	f := &h.Freshness
	switch {
	case live == nil:
		*f = outdated(*f, whence.SourceDeleted)
	case state == nil: // captured before states were kept
	case bytes.Equal(live.State, state):
		// A row that was not taken over whole is not shown whole either.
		if !slices.Contains(f.Reasons, whence.RowSetAside) {
			f.State, f.Reasons = whence.Verified, nil
		}
	default:
		// What was rendered by an earlier definition cannot be compared.
		if !slices.Contains(f.Reasons, whence.DefinitionChanged) {
			*f = outdated(*f, whence.SourceChanged)
		}
		if show(live) {
			h.LiveText = &live.Text
		}
	}
}

// wanted tells whether a row would be found by the request within the scope.
func wanted(scope authz.Scope, r Request, l *whence.LiveRow) bool {
	all, _, _ := scope.Subjects()
	switch {
	case l.Subject == nil && (!all || len(r.Subjects) > 0):
		return false
	case l.Subject != nil && (!scope.AllowsSubject(*l.Subject) || len(r.Subjects) > 0 && !slices.Contains(r.Subjects, *l.Subject)):
		return false
	}
	for _, filter := range []map[string]string{scope.Filter(), r.Filter} {
		for name, want := range filter {
			if v := l.Attributes[name]; v == nil || *v != want {
				return false
			}
		}
	}
	return true
}

// outdated adds a reason why something is STALE.
func outdated(f whence.Freshness, why whence.FreshnessReason) whence.Freshness {
	f.State = whence.Stale
	if !slices.Contains(f.Reasons, why) {
		f.Reasons = append([]whence.FreshnessReason{why}, f.Reasons...)
	}
	return f
}
