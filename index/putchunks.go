package index

import (
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
)

const (
	insertVersions = `
insert into whence.versions (record_id, version, lsn, xid, commit_time, deleted, definition, columns, text, digest)
select record_id, version, lsn::pg_lsn, xid, commit_time, deleted, definition, columns::jsonb, text, digest
from unnest(@records::bigint[], @versions::int[], @lsns::text[], @xids::bigint[], @commits::timestamptz[],
    @deleted::bool[], @definitions::int[], @columns::text[], @texts::text[], @digests::bytea[])
    as n(record_id, version, lsn, xid, commit_time, deleted, definition, columns, text, digest)`

	purgeVersions = `
delete from whence.versions v using unnest(@ids::bigint[], @versions::int[]) as n(id, version)
where v.record_id = n.id and v.version < n.version`
)

// queueVersions stores every state, but those that a later purge took with it.
func (p *plan) queueVersions(b *pgx.Batch) error {
	var (
		records, purgedIDs        []int64
		versions, defs, purgedVer []int32
		lsns, columns, texts      []string
		xids                      []*int64
		commits                   []*time.Time
		deleted                   []bool
		digests                   [][]byte
	)
	for i := range p.ms {
		m := &p.ms[i]
		if p.versions[i] == 0 {
			continue
		}
		c, err := object(m.Columns)
		if err != nil {
			return err
		}
		var xid *int64
		if m.XID != nil {
			n := int64(*m.XID)
			xid = &n
		}
		d := whence.DigestOf(m.Text)
		records = append(records, p.of[rowKey{m.Table.ID, m.Key}].id)
		versions = append(versions, p.versions[i])
		lsns = append(lsns, m.LSN.String())
		xids = append(xids, xid)
		commits = append(commits, timeOrNull(m.CommitTime))
		deleted = append(deleted, m.Deleted)
		defs = append(defs, m.Table.Definition)
		columns = append(columns, c)
		texts = append(texts, m.Text)
		digests = append(digests, d[:])
	}
	for _, e := range p.entries {
		if e.purged > 0 && e.known {
			purgedIDs = append(purgedIDs, e.id)
			purgedVer = append(purgedVer, e.purged)
		}
	}
	if len(purgedIDs) > 0 {
		b.Queue(purgeVersions, pgx.NamedArgs{"ids": purgedIDs, "versions": purgedVer})
	}
	b.Queue(insertVersions, pgx.NamedArgs{"records": records, "versions": versions, "lsns": lsns, "xids": xids,
		"commits": commits, "deleted": deleted, "definitions": defs, "columns": columns, "texts": texts, "digests": digests})
	return nil
}

const (
	insertChunks = `
insert into whence.chunks
    (record_id, table_id, version, ordinal, span_start, span_end, text, digest, subject, event_time, attributes, tsv)
select record_id, table_id, version, ordinal, span_start, span_end, text, digest, subject, event_time,
    attributes::jsonb, to_tsvector('english', text)
from unnest(@records::bigint[], @tables::int[], @versions::int[], @ordinals::int[], @starts::int[], @ends::int[],
    @texts::text[], @digests::bytea[], @subjects::text[], @events::timestamptz[], @attributes::text[])
    as n(record_id, table_id, version, ordinal, span_start, span_end, text, digest, subject, event_time, attributes)`

	keepChunks = `
update whence.chunks c
set version = n.version, ordinal = n.ordinal, span_start = n.span_start, span_end = n.span_end,
    subject = n.subject, event_time = n.event_time, attributes = n.attributes::jsonb
from unnest(@ids::bigint[], @versions::int[], @ordinals::int[], @starts::int[], @ends::int[],
    @subjects::text[], @events::timestamptz[], @attributes::text[])
    as n(id, version, ordinal, span_start, span_end, subject, event_time, attributes)
where c.id = n.id`

	// A text without a row is asked for; one that has a row, with its vector or
	// on the way to it, is a call saved. Ordered, so that two sources that ask
	// for the same texts at once cannot wait for each other in a circle.
	askVectors = `
with wanted as (
    select digest, min(table_id) as table_id
    from unnest(@digests::bytea[], @tables::int[]) as n(digest, table_id) group by digest
), asked as (
    insert into whence.vectors (space_id, digest, table_id)
    select s.id, w.digest, w.table_id from wanted w cross join whence.spaces s where s.current order by w.digest
    on conflict do nothing
    returning digest
), saved as (
    select n.table_id, count(*) - count(distinct a.digest) as texts
    from unnest(@digests::bytea[], @tables::int[]) as n(digest, table_id) left join asked a on a.digest = n.digest
    where exists (select from whence.spaces where current)
    group by n.table_id
)
insert into whence.embedding_calls as e (table_id, saved)
select table_id, texts from saved where texts > 0
on conflict (table_id) do update set saved = e.saved + excluded.saved`
)

type chunkArgs struct {
	ids, records                             []int64
	tables, versions, ordinals, starts, ends []int32
	texts, attributes                        []string
	digests                                  [][]byte
	subjects                                 []*string
	events                                   []*time.Time
}

// queueChunks writes the heads' chunks: those that the record holds keep their
// rows, the others are new.
func (p *plan) queueChunks(b *pgx.Batch) {
	var fresh, kept chunkArgs
	var askedDigests [][]byte
	var askedTables []int32
	for _, e := range p.entries {
		m := e.last
		if m.Deleted || len(m.Chunks) == 0 {
			continue
		}
		attributes, _ := object(m.Attributes) // writeRecords has rendered it before
		held := p.held[e.id]
		for i, c := range m.Chunks {
			o := c.Origin()
			d := o.Digest
			a := &fresh
			if ids := held[d]; len(ids) > 0 {
				a = &kept
				a.ids = append(a.ids, ids[0])
				held[d] = ids[1:]
			}
			a.records = append(a.records, e.id)
			a.tables = append(a.tables, m.Table.ID)
			a.versions = append(a.versions, e.version)
			a.ordinals = append(a.ordinals, int32(i))
			a.starts = append(a.starts, int32(o.Start))
			a.ends = append(a.ends, int32(o.End))
			a.texts = append(a.texts, c.Text())
			a.digests = append(a.digests, d[:])
			a.subjects = append(a.subjects, m.Subject)
			a.events = append(a.events, m.EventTime)
			a.attributes = append(a.attributes, attributes)
			askedDigests = append(askedDigests, d[:])
			askedTables = append(askedTables, m.Table.ID)
		}
	}
	if len(fresh.records) > 0 {
		b.Queue(insertChunks, fresh.named())
	}
	if len(kept.records) > 0 {
		b.Queue(keepChunks, kept.named())
	}
	if len(askedDigests) > 0 {
		b.Queue(askVectors, pgx.NamedArgs{"digests": askedDigests, "tables": askedTables})
	}
}

func (a *chunkArgs) named() pgx.NamedArgs {
	return pgx.NamedArgs{"ids": a.ids, "records": a.records, "tables": a.tables, "versions": a.versions,
		"ordinals": a.ordinals, "starts": a.starts, "ends": a.ends, "texts": a.texts, "digests": a.digests,
		"subjects": a.subjects, "events": a.events, "attributes": a.attributes}
}
