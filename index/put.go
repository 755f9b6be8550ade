package index

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
)

// Mutation is one captured state of one row, ready to be stored.
type Mutation struct {
	Table      whence.Table
	Key        whence.Key
	Deleted    bool
	Columns    whence.Values // nil when deleted
	Missing    []string      // columns whose values are not known yet; then there are no chunks
	Text       string        // as rendered; empty when deleted or missing
	Chunks     []whence.Chunk
	Subject    *string
	EventTime  *time.Time
	Attributes whence.Values
	LSN        whence.LSN
	XID        *uint32   // nil for a backfilled row
	CommitTime time.Time // zero for a backfilled row
	Head       *Head     // as Heads returned it; nil when there is no record
	Replace    bool      // the state takes the place of Head's version instead of following it
}

// entry is what one Put does to one record.
type entry struct {
	last    *Mutation
	id      int64
	version int32
	purged  int32 // versions before this one go; zero: none
	known   bool  // the record was there before
}

type rowKey struct {
	table int32
	key   whence.Key
}

// Put stores mutations, about 1,000 a call, as few set-based statements. A key
// may occur several times, in the order of its states: each becomes a version
// and the last the head. Heads must have been read, and so locked, in tx.
//
// A chunk whose text the record held before keeps its row, and so its identity.
// Superseded chunks stay while the new head still lacks vectors, so that vector
// search never loses the record in between; those without a vector serve nobody
// and go at once. The records that keep some are returned: hand them to Settle
// after tx has committed.
func (x *Index) Put(ctx context.Context, tx pgx.Tx, ms []Mutation) (unsettled []int64, err error) {
	if len(ms) == 0 {
		return nil, nil
	}
	p := newPlan(ms)
	if err := p.writeRecords(ctx, tx); err != nil {
		return nil, fmt.Errorf("put: %w", err)
	}
	b := &pgx.Batch{}
	if err := p.queueVersions(b); err != nil {
		return nil, fmt.Errorf("put: %w", err)
	}
	p.queueChunks(b)
	holdings, embedded := p.holdings(), map[whence.Digest]bool{}
	if digests := digestsOf(holdings); len(digests) > 0 {
		b.Queue(selectEmbedded, pgx.NamedArgs{"digests": digests}).Query(func(rows pgx.Rows) error { return scanEmbedded(rows, embedded) })
	}
	if err := tx.SendBatch(ctx, b).Close(); err != nil {
		return nil, fmt.Errorf("put: %w", err)
	}
	gone, unsettled := spent(holdings, embedded)
	if err := drop(ctx, tx, gone); err != nil {
		return nil, fmt.Errorf("put: %w", err)
	}
	return unsettled, nil
}

// holdings returns what the records have once the kept chunks are taken out.
func (p *plan) holdings() (out []holding) {
	for _, e := range p.entries {
		if len(p.held[e.id]) == 0 {
			continue
		}
		h := holding{record: e.id, deleted: e.last.Deleted, owed: len(e.last.Missing) > 0}
		for _, c := range e.last.Chunks {
			h.head = append(h.head, c.Origin().Digest)
		}
		for d, ids := range p.held[e.id] {
			for _, id := range ids {
				h.superseded = append(h.superseded, held{id: id, table: e.last.Table.ID, digest: d})
			}
		}
		if len(h.superseded) > 0 {
			out = append(out, h)
		}
	}
	return out
}

type plan struct {
	ms       []Mutation
	entries  []*entry
	of       map[rowKey]*entry
	versions []int32 // of each mutation; 0: purged before it was stored
	known    []int64 // ids of the records that were there before
	held     map[int64]map[whence.Digest][]int64
}

func newPlan(ms []Mutation) *plan {
	p := &plan{ms: ms, of: make(map[rowKey]*entry, len(ms)), versions: make([]int32, len(ms))}
	mine := make(map[*entry][]int)
	for i := range ms {
		m := &ms[i]
		k := rowKey{m.Table.ID, m.Key}
		e := p.of[k]
		if e == nil {
			e = &entry{}
			if h := m.Head; h != nil {
				e.known, e.id, e.version = true, h.RecordID, h.Version
				if m.Replace {
					e.version--
				}
				p.known = append(p.known, h.RecordID)
			}
			p.of[k] = e
			p.entries = append(p.entries, e)
		}
		e.version++
		e.last = m
		p.versions[i] = e.version
		if m.Deleted && m.Table.OnDelete == whence.OnDeletePurge {
			e.purged = e.version
			for _, j := range mine[e] {
				p.versions[j] = 0
			}
		}
		if m.Table.OnDelete == whence.OnDeletePurge {
			mine[e] = append(mine[e], i)
		}
	}
	return p
}

const insertRecords = `
insert into whence.records
    (table_id, key, version, lsn, commit_time, event_time, subject, attributes, deleted, missing)
select table_id, key, version, lsn::pg_lsn, commit_time, event_time, subject, attributes::jsonb, deleted,
    case when missing is not null then array(select jsonb_array_elements_text(missing::jsonb)) end
from unnest(@tables::int[], @keys::text[], @versions::int[], @lsns::text[], @commits::timestamptz[],
    @events::timestamptz[], @subjects::text[], @attributes::text[], @deleted::bool[], @missing::text[])
    as n(table_id, key, version, lsn, commit_time, event_time, subject, attributes, deleted, missing)
returning id, table_id, key`

const updateRecords = `
update whence.records r
set version = n.version, lsn = n.lsn::pg_lsn, commit_time = n.commit_time, event_time = n.event_time,
    subject = n.subject, attributes = n.attributes::jsonb, deleted = n.deleted,
    missing = case when n.missing is not null then array(select jsonb_array_elements_text(n.missing::jsonb)) end
from unnest(@ids::bigint[], @versions::int[], @lsns::text[], @commits::timestamptz[],
    @events::timestamptz[], @subjects::text[], @attributes::text[], @deleted::bool[], @missing::text[])
    as n(id, version, lsn, commit_time, event_time, subject, attributes, deleted, missing)
where r.id = n.id`

// replaceVersions clears the place of a version that is about to be stored
// anew; what was cut from the old text counts as superseded from here on.
const (
	replaceVersions = `
delete from whence.versions v using unnest(@ids::bigint[], @versions::int[]) as n(id, version)
where v.record_id = n.id and v.version = n.version`
	replaceChunks = `
update whence.chunks c set version = c.version - 1 from unnest(@ids::bigint[], @versions::int[]) as n(id, version)
where c.record_id = n.id and c.version = n.version`
	selectHeld = `
select id, record_id, digest from whence.chunks where record_id = any(@ids)
order by record_id, version desc, ordinal`
)

// writeRecords stores the heads, learns the new records' ids and reads which
// chunks the known ones hold.
func (p *plan) writeRecords(ctx context.Context, tx pgx.Tx) error {
	fresh, known := &recordArgs{}, &recordArgs{}
	replaced := struct {
		ids      []int64
		versions []int32
	}{}
	for _, e := range p.entries {
		a := fresh
		if e.known {
			a = known
		}
		if err := a.add(e); err != nil {
			return err
		}
	}
	for i := range p.ms {
		if m := &p.ms[i]; m.Replace && m.Head != nil {
			replaced.ids = append(replaced.ids, m.Head.RecordID)
			replaced.versions = append(replaced.versions, m.Head.Version)
		}
	}
	b := &pgx.Batch{}
	if len(fresh.keys) > 0 {
		b.Queue(insertRecords, fresh.named()).Query(func(rows pgx.Rows) error {
			var id int64
			var k rowKey
			_, err := pgx.ForEachRow(rows, []any{&id, &k.table, &k.key}, func() error {
				p.of[k].id = id
				return nil
			})
			return err
		})
	}
	if len(known.keys) > 0 {
		b.Queue(updateRecords, known.named())
		if len(replaced.ids) > 0 {
			args := pgx.NamedArgs{"ids": replaced.ids, "versions": replaced.versions}
			b.Queue(replaceVersions, args)
			b.Queue(replaceChunks, args)
		}
		p.held = make(map[int64]map[whence.Digest][]int64)
		b.Queue(selectHeld, pgx.NamedArgs{"ids": p.known}).Query(func(rows pgx.Rows) error {
			var id, record int64
			var digest []byte
			_, err := pgx.ForEachRow(rows, []any{&id, &record, &digest}, func() error {
				if p.held[record] == nil {
					p.held[record] = make(map[whence.Digest][]int64)
				}
				d := whence.Digest(digest)
				p.held[record][d] = append(p.held[record][d], id)
				return nil
			})
			return err
		})
	}
	return tx.SendBatch(ctx, b).Close()
}

type recordArgs struct {
	ids                    []int64
	tables, versions       []int32
	keys, lsns, attributes []string
	subjects, missing      []*string
	commits, events        []*time.Time
	deleted                []bool
}

func (a *recordArgs) add(e *entry) error {
	m := e.last
	attributes, err := object(m.Attributes)
	if err != nil {
		return err
	}
	var missing *string
	if len(m.Missing) > 0 {
		b, err := json.Marshal(m.Missing)
		if err != nil {
			return err
		}
		s := string(b)
		missing = &s
	}
	a.ids = append(a.ids, e.id)
	a.tables = append(a.tables, m.Table.ID)
	a.versions = append(a.versions, e.version)
	a.keys = append(a.keys, string(m.Key))
	a.lsns = append(a.lsns, m.LSN.String())
	a.attributes = append(a.attributes, attributes)
	a.subjects = append(a.subjects, m.Subject)
	a.missing = append(a.missing, missing)
	a.commits = append(a.commits, timeOrNull(m.CommitTime))
	a.events = append(a.events, m.EventTime)
	a.deleted = append(a.deleted, m.Deleted)
	return nil
}

func (a *recordArgs) named() pgx.NamedArgs {
	return pgx.NamedArgs{"ids": a.ids, "tables": a.tables, "versions": a.versions, "keys": a.keys, "lsns": a.lsns,
		"attributes": a.attributes, "subjects": a.subjects, "missing": a.missing, "commits": a.commits,
		"events": a.events, "deleted": a.deleted}
}

// object renders values as a JSON object.
func object(v whence.Values) (string, error) {
	if len(v) == 0 {
		return "{}", nil
	}
	b, err := json.Marshal(v)
	return string(b), err
}

func timeOrNull(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}
