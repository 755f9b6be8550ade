package main

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/cdc"
)

// The floor: the same rows in the same tables, by the fewest statements over the
// most rows, from a program that knows all beforehand: every id, which chunk a
// record has, and what changed. It reads nothing and decides nothing. This file
// follows the migrations; equalSQL tells when it does not.
const (
	floorSettings = `select set_config('plan_cache_mode', 'force_custom_plan', true)`

	floorInsertRecords = `
insert into whence.records (id, table_id, key, version, lsn, xid, commit_time, event_time, subject, attributes, deleted, state)
overriding system value
select id, @table, key, version, lsn::pg_lsn, xid, commit_time, event_time, subject, attributes, deleted, state
from unnest(@records::bigint[], @keys::text[], @versions::int[], @lsns::text[], @commits::timestamptz[], @events::timestamptz[],
    @subjects::text[], @attributes::jsonb[], @deleted::bool[], @xids::bigint[], @states::bytea[])
    as n(id, key, version, lsn, commit_time, event_time, subject, attributes, deleted, xid, state)`

	floorUpdateRecords = `
update whence.records r
set version = n.version, lsn = n.lsn::pg_lsn, commit_time = n.commit_time, event_time = n.event_time, subject = n.subject,
    attributes = n.attributes, deleted = n.deleted, xid = n.xid, state = n.state
from unnest(@records::bigint[], @keys::text[], @versions::int[], @lsns::text[], @commits::timestamptz[], @events::timestamptz[],
    @subjects::text[], @attributes::jsonb[], @deleted::bool[], @xids::bigint[], @states::bytea[])
    as n(id, key, version, lsn, commit_time, event_time, subject, attributes, deleted, xid, state)
where r.id = n.id`

	floorInsertVersions = `
insert into whence.versions (record_id, version, lsn, xid, commit_time, deleted, definition, columns, text, digest)
select record_id, version, lsn::pg_lsn, xid, commit_time, deleted, @definition, columns, text, digest
from unnest(@records::bigint[], @versions::int[], @lsns::text[], @xids::bigint[], @commits::timestamptz[], @deleted::bool[],
    @columns::jsonb[], @texts::text[], @digests::bytea[])
    as n(record_id, version, lsn, xid, commit_time, deleted, columns, text, digest)`

	floorDeleteChunks = `delete from whence.chunks where id = any(@ids)`

	floorUpdateChunks = `
update whence.chunks c set version = n.version, event_time = n.event_time, subject = n.subject, attributes = n.attributes
from unnest(@chunks::bigint[], @versions::int[], @events::timestamptz[], @subjects::text[], @attributes::jsonb[])
    as n(id, version, event_time, subject, attributes)
where c.id = n.id`

	floorInsertChunks = `
insert into whence.chunks
    (id, record_id, table_id, version, ordinal, span_start, span_end, text, digest, subject, event_time, attributes)
overriding system value
select id, record_id, @table, version, 0, 0, octet_length(text), text, digest, subject, event_time, attributes
from unnest(@chunks::bigint[], @records::bigint[], @versions::int[], @texts::text[], @digests::bytea[], @subjects::text[],
    @events::timestamptz[], @attributes::jsonb[])
    as n(id, record_id, version, text, digest, subject, event_time, attributes)`

	floorAskVectors = `
insert into whence.vectors (space_id, digest, table_id)
select s.id, n.digest, @table from unnest(@digests::bytea[]) as n(digest) cross join whence.spaces s where s.current
on conflict do nothing`
)

// equalSQL sums up what a memory database holds, but for ids and for the texts
// asked for that were replaced at once.
const equalSQL = `
select format('%s records %s, %s versions %s, %s chunks %s, %s chunks without a vector asked for',
    r.n, r.h, v.n, v.h, c.n, c.h, (select count(*) from whence.chunks c where not exists (select from whence.vectors v where v.digest = c.digest)))
from (select count(*) n, sum(hashtext(concat_ws(' ', key, version, lsn, xid, commit_time, event_time, subject, attributes, deleted)))::text h
      from whence.records) r,
     (select count(*) n, sum(hashtext(concat_ws(' ', r.key, v.version, v.lsn, v.xid, v.commit_time, v.deleted, v.definition, v.columns, v.text, v.digest)))::text h
      from whence.versions v join whence.records r on r.id = v.record_id) v,
     (select count(*) n, sum(hashtext(concat_ws(' ', r.key, c.version, c.table_id, c.ordinal, c.span_start, c.span_end, c.text, c.digest, c.subject,
          c.event_time, c.attributes, c.tsv)))::text h
      from whence.chunks c join whence.records r on r.id = c.record_id) c`

// floorRow is what the floor knows of a record.
type floorRow struct {
	id, chunk  int64 // chunk: 0 when there is none
	version    int32
	text       string
	event      time.Time
	subject    string
	attributes string
}

// floorBatch is the arguments of a batch of 1,000 changes.
type floorBatch struct {
	fresh, known      []*floorHead // records
	versions          versionColumns
	gone              []int64
	keptChunks, chunk []*floorHead
}

type floorHead struct {
	id, chunk              int64
	key                    whence.Key
	version                int32
	lsn                    string
	xid                    int64
	commit, event          time.Time
	subject, attributes    string
	deleted, isNew, retext bool
	text                   string
	digest                 []byte
	oldChunk               int64
}

type versionColumns struct {
	records        []int64
	versions       []int32
	lsns           []string
	xids           []int64
	commits        []time.Time
	deleted        []bool
	columns, texts []string
	digests        [][]byte
}

// floor is everything that is to be written, ready to be sent.
type floor struct {
	table   whence.Table
	batches []*floorBatch
	changes int
}

const (
	floorStatement   = 1000 // changes
	floorTransaction = 5    // statements' batches
)

// planFloor works out beforehand what the changes come to.
func planFloor(table whence.Table, changes []cdc.Change) (*floor, error) {
	f := &floor{table: table, changes: len(changes)}
	rows := map[whence.Key]*floorRow{}
	var nextRecord, nextChunk int64
	for start := 0; start < len(changes); start += floorStatement {
		heads := map[whence.Key]*floorHead{}
		var order []*floorHead
		var v versionColumns
		for _, c := range changes[start:min(start+floorStatement, len(changes))] {
			from := c.Row
			if c.Op == cdc.Delete {
				from = c.OldKey
			}
			key, err := whence.NewKey(table.KeyColumns, from)
			if err != nil {
				return nil, err
			}
			row := rows[key]
			if row == nil {
				nextRecord++
				row = &floorRow{id: nextRecord}
				rows[key] = row
			}
			h := heads[key]
			if h == nil {
				h = &floorHead{id: row.id, key: key, isNew: row.version == 0, oldChunk: row.chunk, chunk: row.chunk}
				heads[key] = h
				order = append(order, h)
			}
			if err := h.change(row, c, &v); err != nil {
				return nil, err
			}
		}
		b := &floorBatch{versions: v}
		for _, h := range order {
			row := rows[h.key]
			switch {
			case h.deleted:
				if h.oldChunk != 0 {
					b.gone = append(b.gone, h.oldChunk)
				}
				row.chunk = 0
			case h.retext || h.oldChunk == 0:
				if h.oldChunk != 0 {
					b.gone = append(b.gone, h.oldChunk)
				}
				nextChunk++
				h.chunk, row.chunk = nextChunk, nextChunk
				b.chunk = append(b.chunk, h)
			default:
				b.keptChunks = append(b.keptChunks, h)
			}
			if h.isNew {
				b.fresh = append(b.fresh, h)
			} else {
				b.known = append(b.known, h)
			}
		}
		f.batches = append(f.batches, b)
	}
	return f, nil
}

// change takes one change over into the head and the list of versions.
func (h *floorHead) change(row *floorRow, c cdc.Change, v *versionColumns) error {
	row.version++
	h.version, h.lsn, h.xid, h.commit, h.deleted = row.version, c.LSN.String(), int64(c.XID), c.CommitTime, c.Op == cdc.Delete
	columns, text := []byte("{}"), ""
	if !h.deleted {
		var err error
		if columns, err = json.Marshal(c.Row); err != nil {
			return err
		}
		text = *c.Row["title"] + "\n\n" + *c.Row["body"]
		attributes, err := json.Marshal(whence.Values{"section": c.Row["section"], "views": c.Row["views"]})
		if err != nil {
			return err
		}
		if row.event, err = time.Parse("2006-01-02 15:04:05-07", *c.Row["published_at"]); err != nil {
			return err
		}
		row.subject, row.attributes = *c.Row["author"], string(attributes)
		h.retext = h.retext || text != row.text
		row.text = text
	}
	d := whence.DigestOf(text)
	h.text, h.digest, h.subject, h.attributes, h.event = text, d[:], row.subject, row.attributes, row.event
	v.records = append(v.records, row.id)
	v.versions = append(v.versions, row.version)
	v.lsns = append(v.lsns, h.lsn)
	v.xids = append(v.xids, int64(c.XID))
	v.commits = append(v.commits, c.CommitTime)
	v.deleted = append(v.deleted, h.deleted)
	v.columns = append(v.columns, string(columns))
	v.texts = append(v.texts, text)
	v.digests = append(v.digests, d[:])
	return nil
}

func (b *floorBatch) queue(t whence.Table) *pgx.Batch {
	out := &pgx.Batch{}
	if len(b.fresh) > 0 {
		out.Queue(floorInsertRecords, headArgs(t, b.fresh))
	}
	if len(b.known) > 0 {
		args := headArgs(t, b.known)
		delete(args, "table")
		out.Queue(floorUpdateRecords, args)
	}
	v := b.versions
	out.Queue(floorInsertVersions, pgx.NamedArgs{"records": v.records, "versions": v.versions, "lsns": v.lsns, "xids": v.xids,
		"commits": v.commits, "deleted": v.deleted, "columns": v.columns, "texts": v.texts, "digests": v.digests, "definition": t.Definition})
	if len(b.gone) > 0 {
		out.Queue(floorDeleteChunks, pgx.NamedArgs{"ids": b.gone})
	}
	if len(b.keptChunks) > 0 {
		out.Queue(floorUpdateChunks, headArgs(t, b.keptChunks))
	}
	if len(b.chunk) > 0 {
		args := headArgs(t, b.chunk)
		out.Queue(floorInsertChunks, args)
		out.Queue(floorAskVectors, pgx.NamedArgs{"digests": args["digests"], "table": t.ID})
	}
	return out
}

// headArgs is the arguments of every statement about heads or their chunks;
// records and chunks have an id each.
func headArgs(t whence.Table, heads []*floorHead) pgx.NamedArgs {
	var (
		records, chunks      []int64
		xids                 []int64
		states               [][]byte // as long as capture's; it compares by them, the floor does not
		versions             []int32
		keys, lsns           []string
		subjects, attributes []string
		texts                []string
		digests              [][]byte
		commits, events      []time.Time
		deleted              []bool
	)
	for _, h := range heads {
		records, chunks = append(records, h.id), append(chunks, h.chunk)
		versions = append(versions, h.version)
		keys, lsns = append(keys, string(h.key)), append(lsns, h.lsn)
		subjects, attributes = append(subjects, h.subject), append(attributes, h.attributes)
		texts, digests = append(texts, h.text), append(digests, h.digest)
		commits, events = append(commits, h.commit), append(events, h.event)
		deleted, xids, states = append(deleted, h.deleted), append(xids, h.xid), append(states, h.digest[:16])
	}
	return pgx.NamedArgs{"table": t.ID, "records": records, "chunks": chunks, "versions": versions, "keys": keys, "lsns": lsns,
		"subjects": subjects, "attributes": attributes, "texts": texts, "digests": digests, "commits": commits, "events": events, "deleted": deleted, "xids": xids, "states": states}
}

// write sends everything over one connection.
func (f *floor) write(ctx context.Context, conn *pgx.Conn) error {
	for start := 0; start < len(f.batches); start += floorTransaction {
		tx, err := conn.Begin(ctx)
		if err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, floorSettings); err != nil {
			return err
		}
		for _, b := range f.batches[start:min(start+floorTransaction, len(f.batches))] {
			if err := tx.SendBatch(ctx, b.queue(f.table)).Close(); err != nil {
				return fmt.Errorf("write the floor: %w", err)
			}
		}
		if err := tx.Commit(ctx); err != nil {
			return err
		}
	}
	return nil
}
