package ingest

import (
	"context"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/index"
)

// write stores what the tracks gathered.
func (u *unit) write(ctx context.Context, tracks []*track) error {
	ms := make([]index.Mutation, 0, len(tracks))
	var same []int64 // records that are known to be at a newer position as they were before
	var at []whence.LSN
	for _, t := range tracks {
		// While rows are copied, a record must say how new its state is even if
		// that did not change it: an older copy may differ.
		if len(t.pending) == 0 && t.head != nil && t.seen > t.head.LSN && !t.complete {
			same, at = append(same, t.head.RecordID), append(at, t.seen)
		}
		for i := range t.pending {
			m, err := t.mutation(i)
			if err != nil {
				return err
			}
			ms = append(ms, m)
		}
	}
	if err := u.r.index.Touch(ctx, u.tx, same, at); err != nil {
		return err
	}
	stored, err := u.r.index.Put(ctx, u.tx, ms)
	if err != nil {
		return err
	}
	if len(u.unsettled) < maximumUnsettled {
		u.unsettled = append(u.unsettled, stored.Unsettled...)
	}
	for table, n := range stored.Saved {
		u.saved[table] += n
	}
	if err := u.erase(ctx, stored.Purged); err != nil {
		return err
	}
	u.judgeTracks(tracks)
	return u.keepAside(ctx)
}

// maximumUnsettled bounds what a unit remembers for afterwards; what is beyond
// waits for the filler's next look at superseded chunks.
const maximumUnsettled = 100_000

// mutation is a gathered state in the index's form. Only the last state of a row
// is cut into chunks: the others are found only by who asks for their moment.
func (t *track) mutation(i int) (index.Mutation, error) {
	p := &t.pending[i]
	m := index.Mutation{Table: &t.table.Table, Key: t.key, Deleted: p.deleted, Missing: p.missing, LSN: p.lsn, XID: p.xid,
		CommitTime: p.commit, Head: t.head, Replace: p.replace, Purge: p.purge}
	shown := p.row
	if p.deleted {
		if t.table.OnDelete == whence.OnDeletePurge {
			return m, nil
		}
		shown = p.previous.row
		m.Inherit = shown == nil
	}
	if shown != nil {
		m.Subject, m.EventTime, m.Attributes = shown.subject, shown.event, shown.attributes
	}
	if p.deleted {
		return m, nil
	}
	m.Columns, m.State, m.Text, m.Digest = p.row.columns, p.row.mark[:], p.row.text, p.row.digest
	if i == len(t.pending)-1 {
		if err := p.row.cut(t.table, t.key, p.moment); err != nil {
			return m, err
		}
		m.Chunks = p.row.chunks
	}
	if len(m.Chunks) == 0 {
		m.Spans = p.row.spans()
	}
	return m, nil
}

// erase takes the words of purged rows out of what holds them besides.
func (u *unit) erase(ctx context.Context, gone []whence.Gone) error {
	if u.r.shown != nil {
		if err := u.r.shown.Erase(ctx, u.tx, gone); err != nil {
			return err
		}
	}
	if u.r.ran != nil {
		return u.r.ran.Erase(ctx, u.tx, gone)
	}
	return nil
}

// deleteOlder marks a table's rows deleted that are older than before. There may be
// millions, so what a purge leaves in answers is found from there.
func (u *unit) deleteOlder(ctx context.Context, t whence.Table, before whence.LSN, at index.Commit) error {
	if err := u.r.index.DeleteOlder(ctx, u.tx, t, before, at); err != nil {
		return err
	}
	if t.OnDelete != whence.OnDeletePurge {
		return nil
	}
	if u.r.ran != nil {
		if err := u.r.ran.EraseTable(ctx, u.tx, t.Name()); err != nil {
			return err
		}
	}
	if u.r.shown == nil {
		return nil
	}
	const batch = 10_000
	for after := int64(0); ; {
		records, err := u.r.shown.Shown(ctx, u.tx, t.Name(), after, batch)
		if err != nil || len(records) == 0 {
			return err
		}
		gone, err := u.r.index.Purged(ctx, u.tx, t, records)
		if err != nil {
			return err
		}
		if err := u.r.shown.Erase(ctx, u.tx, gone); err != nil {
			return err
		}
		after = records[len(records)-1]
	}
}
