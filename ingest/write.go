package ingest

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/index"
)

const (
	// maximumText is the longest text that is indexed. A longer one would take
	// one statement of more than Postgres carries.
	maximumText = 64 << 20
	// maximumSubject is what fits an index entry with room to spare.
	maximumSubject = 2000
	maximumKey     = 2500 // the same
)

// write stores what the tracks gathered.
func (u *unit) write(ctx context.Context, order []*track, tables map[*track]*capturedTable) error {
	var ms []index.Mutation
	var same []int64 // records that are known to be at a newer position as they were before
	var at []whence.LSN
	for _, t := range order {
		// While rows are copied, a record must say how new its state is even if
		// that did not change it: an older copy may differ.
		if len(t.pending) == 0 && t.head != nil && t.seen > t.head.LSN && !t.complete {
			same, at = append(same, t.head.RecordID), append(at, t.seen)
		}
		for i, p := range t.pending {
			m, err := u.mutation(ctx, tables[t], t, p, i == len(t.pending)-1)
			if err != nil {
				return err
			}
			ms = append(ms, m)
		}
	}
	if err := u.r.index.Touch(ctx, u.tx, same, at); err != nil {
		return err
	}
	left, err := u.r.index.Put(ctx, u.tx, ms)
	u.unsettled = append(u.unsettled, left...)
	return err
}

// mutation renders a state. Only the last state of a row is cut into chunks:
// nobody can have seen the others.
func (u *unit) mutation(ctx context.Context, t *capturedTable, tr *track, p pending, last bool) (index.Mutation, error) {
	m := index.Mutation{Table: t.Table, Key: tr.key, Deleted: p.deleted, Missing: p.missing, LSN: p.lsn, XID: p.xid,
		CommitTime: p.commit, Head: tr.head, Replace: p.replace}
	row := p.columns
	if p.deleted {
		if t.OnDelete == whence.OnDeletePurge {
			return m, nil
		}
		row = p.previous.columns // whom it was about still decides who may know of it
	} else {
		m.Columns = p.columns
	}
	if err := u.describe(ctx, &m, t, row); err != nil {
		return m, err
	}
	if p.deleted || len(p.missing) > 0 {
		return m, nil
	}
	m.Text = render(t.Table, row)
	if len(m.Text) > maximumText {
		m.Text = ""
		return m, u.setAside(ctx, t, tr.key, fmt.Sprintf("its text has more than %d bytes and is not searchable", maximumText))
	}
	if !last {
		return m, nil
	}
	origin := whence.Origin{Source: t.Source, Table: t.Name(), Key: tr.key, LSN: p.lsn, CommitTime: p.commit, Columns: t.text}
	if m.EventTime != nil {
		origin.EventTime = *m.EventTime
	}
	for _, s := range Split(m.Text) {
		c, err := whence.NewChunk(origin, m.Text, s.Start, s.End)
		if err != nil {
			return m, err
		}
		m.Chunks = append(m.Chunks, c)
	}
	return m, nil
}

// describe sets what a row is filtered and ranked by. The event time is the
// commit time where the time column is null or infinite; it stays unknown when
// the row was copied by a backfill, which cannot tell when it was committed.
func (u *unit) describe(ctx context.Context, m *index.Mutation, t *capturedTable, row whence.Values) error {
	if t.SubjectColumn != "" {
		if v := row[t.SubjectColumn]; v != nil {
			m.Subject = v
			if len(*v) > maximumSubject {
				m.Subject = nil // then only who may see every subject sees it
				if err := u.setAside(ctx, t, m.Key, fmt.Sprintf("its subject has more than %d bytes and is ignored", maximumSubject)); err != nil {
					return err
				}
			}
		}
	}
	if len(t.AttributeColumns) > 0 {
		m.Attributes = make(whence.Values, len(t.AttributeColumns))
		for _, name := range t.AttributeColumns {
			if v, ok := row[name]; ok {
				m.Attributes[name] = v
			}
		}
	}
	if !m.CommitTime.IsZero() {
		m.EventTime = &m.CommitTime
	}
	if v := row[t.TimeColumn]; t.TimeColumn != "" && v != nil {
		at, finite, err := parseTime(*v)
		if err != nil {
			return fmt.Errorf("the time of %s %s: %w", t.Name(), m.Key, err)
		}
		if finite {
			m.EventTime = storable(at)
		}
	}
	return nil
}

// storable keeps a time within what a timestamptz holds: a date may lie far beyond.
func storable(t time.Time) *time.Time {
	first := time.Date(-4713, 12, 1, 0, 0, 0, 0, time.UTC)
	last := time.Date(294276, 12, 31, 0, 0, 0, 0, time.UTC)
	if t.Before(first) {
		t = first
	}
	if t.After(last) {
		t = last
	}
	return &t
}

const noteAside = `update whence.tables set error = @error where id = @id and state in ('PENDING', 'BACKFILLING', 'LIVE')`

// setAside makes visible that a row could not be taken over whole.
func (u *unit) setAside(ctx context.Context, t *capturedTable, key whence.Key, why string) error {
	return u.note(ctx, t, fmt.Sprintf("the row %s was kept, but %s: shorten it, or register the table without that column", key, why))
}

// skip leaves a row out that cannot be stored, and says so in the table's status.
func (u *unit) skip(ctx context.Context, t *capturedTable, key whence.Key) error {
	const shown = 200
	return u.note(ctx, t, fmt.Sprintf("a row was left out, because its key has %d bytes, of which %d can be stored: shorten it, or give the table "+
		"another replica identity; it begins with %s", len(key), maximumKey, strings.ToValidUTF8(string(key[:shown]), "")))
}

func (u *unit) note(ctx context.Context, t *capturedTable, message string) error {
	if _, err := u.tx.Exec(ctx, noteAside, pgx.NamedArgs{"id": t.ID, "error": message}); err != nil {
		return fmt.Errorf("note a row that was set aside: %w", err)
	}
	u.r.log.WarnContext(ctx, "a row was not taken over whole", "table", t.Name(), "why", message)
	return nil
}
