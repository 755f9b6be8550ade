package ingest

import (
	"context"
	"time"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/index"
)

// write stores what the tracks gathered.
func (u *unit) write(ctx context.Context, order []*track, tables map[*track]*capturedTable) error {
	var ms []index.Mutation
	var same []int64 // records that are known to be at a newer position as they were before
	var at []whence.LSN
	why := map[*track]string{} // the newest state is not taken over whole
	for _, t := range order {
		// While rows are copied, a record must say how new its state is even if
		// that did not change it: an older copy may differ.
		if len(t.pending) == 0 && t.head != nil && t.seen > t.head.LSN && !t.complete {
			same, at = append(same, t.head.RecordID), append(at, t.seen)
		}
		for i, p := range t.pending {
			m, lacks, err := mutation(tables[t], t, p, i == len(t.pending)-1)
			if err != nil {
				return err
			}
			ms = append(ms, m)
			if lacks == "" {
				delete(why, t)
			} else {
				why[t] = lacks
			}
		}
	}
	if err := u.r.index.Touch(ctx, u.tx, same, at); err != nil {
		return err
	}
	left, err := u.r.index.Put(ctx, u.tx, ms)
	u.unsettled = append(u.unsettled, left...)
	if err != nil {
		return err
	}
	u.judgeTracks(order, tables, why)
	return u.keepAside(ctx)
}

// mutation renders a state. Only the last state of a row is cut into chunks:
// nobody can have seen the others. What cannot be stored of it is left out, and
// lacks says so.
func mutation(t *capturedTable, tr *track, p pending, last bool) (m index.Mutation, lacks string, err error) {
	var l lacking
	m = index.Mutation{Table: t.Table, Key: tr.key, Deleted: p.deleted, Missing: p.missing, LSN: p.lsn, XID: p.xid,
		CommitTime: p.commit, Head: tr.head, Replace: p.replace}
	row := p.columns
	if p.deleted {
		if t.OnDelete == whence.OnDeletePurge {
			return m, "", nil
		}
		row = p.previous.columns // whom it was about still decides who may know of it
	} else {
		row = l.columns(row)
		m.Columns = row
	}
	describe(&m, t, row, &l)
	switch {
	case p.deleted:
		return m, "", nil
	case len(p.missing) > 0:
		l.missing(tr, p.missing)
		return m, l.String(), nil
	}
	m.Text = l.text(t, row)
	if !last {
		return m, l.String(), nil
	}
	origin := whence.Origin{Source: t.Source, Table: t.Name(), Key: tr.key, LSN: p.lsn, CommitTime: p.commit, Columns: t.text}
	if m.EventTime != nil {
		origin.EventTime = *m.EventTime
	}
	for _, s := range Split(m.Text) {
		c, err := whence.NewChunk(origin, m.Text, s.Start, s.End)
		if err != nil {
			return m, "", err
		}
		m.Chunks = append(m.Chunks, c)
	}
	l.attributes(&m)
	return m, l.String(), nil
}

// describe sets what a row is filtered and ranked by. The event time is the
// commit time where the time column is null or infinite; it stays unknown when
// the row was copied by a backfill, which cannot tell when it was committed.
func describe(m *index.Mutation, t *capturedTable, row whence.Values, l *lacking) {
	if t.SubjectColumn != "" {
		m.Subject = l.subject(row[t.SubjectColumn])
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
		if at, finite, err := parseTime(*v); err != nil {
			l.time()
		} else if finite {
			m.EventTime = storable(at)
		}
	}
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
