package index

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/internal/pg"
)

// Evidence is a version of a record that a note was concluded from.
type Evidence struct {
	RecordID int64
	Version  int32
}

// Note is what one version of a note says of itself, and how its evidence stands.
type Note struct {
	Columns whence.Values
	Changed bool // some evidence, at any remove, is not as it was shown to the author
	Hidden  bool // some of it lies outside the scope, and so is not judged
}

const (
	// Whoever writes a key holds this until the transaction ends, so that two first
	// writers of one key follow each other.
	lockKey = `select pg_advisory_xact_lock(hashtextextended(@key, @table))`

	setExpiry = `
with r as (update whence.records set expires_at = @at where id = @id and expires_at is distinct from @at)
update whence.chunks set expires_at = @at where record_id = @id and expires_at is distinct from @at`

	insertEvidence = `
insert into whence.evidence (record_id, version, rests_on, rests_version)
select @id, @version, e.id, min(e.version) from unnest(@records::bigint[], @versions::int[]) e(id, version) where e.id <> @id group by e.id`
)

// LockKey keeps other writers of a key away until tx ends; Heads can do so only
// once there is a record.
func (x *Index) LockKey(ctx context.Context, tx pgx.Tx, table int32, key whence.Key) error {
	if _, err := tx.Exec(ctx, lockKey, pgx.NamedArgs{"key": string(key), "table": int64(table)}); err != nil {
		return fmt.Errorf("lock a key: %w", err)
	}
	return nil
}

const selectPut = `select id, version from whence.records where table_id = @table and key = @key`

// PutNote stores one version of a note, with its end (zero: none) and what it was
// concluded from. LockKey and Heads must have been called in tx.
func (x *Index) PutNote(ctx context.Context, tx pgx.Tx, m Mutation, expires time.Time, rests []Evidence) (Stored, error) {
	s, err := x.Put(ctx, tx, []Mutation{m})
	if err != nil {
		return s, err
	}
	var id int64
	var version int32
	if err := tx.QueryRow(ctx, selectPut, pgx.NamedArgs{"table": m.Table.ID, "key": m.Key}).Scan(&id, &version); err != nil {
		return s, fmt.Errorf("put a note: %w", err)
	}
	if _, err := tx.Exec(ctx, setExpiry, pgx.NamedArgs{"id": id, "at": timeOrNull(expires)}); err != nil {
		return s, fmt.Errorf("put a note: %w", err)
	}
	if len(rests) == 0 {
		return s, nil
	}
	var records []int64
	var versions []int32
	for _, e := range rests {
		records, versions = append(records, e.RecordID), append(versions, e.Version)
	}
	if _, err := tx.Exec(ctx, insertEvidence, pgx.NamedArgs{"id": id, "version": version, "records": records, "versions": versions}); err != nil {
		return s, fmt.Errorf("put a note: %w", err)
	}
	return s, nil
}

// A note may rest on notes, and these on others: all that lies beneath is judged.
// What lies outside the scope, or beneath that, is only said to be there. A record
// that has gone cannot be told from one outside, but for a scope without bounds.
const notesSQL = `
with recursive shown as (
    select r.id, n.version from unnest(@ids::bigint[], @versions::int[]) n(id, version) join whence.records r on r.id = n.id
    where r.table_id = @notes
), beneath(note, record_id, version) as (
    select n.id, e.rests_on, e.rests_version
    from shown n join whence.evidence e on e.record_id = n.id and e.version = n.version
  union
    select b.note, e.rests_on, e.rests_version
    from beneath b join whence.evidence e on e.record_id = b.record_id and e.version = b.version
    where exists (select from whence.records r where r.id = b.record_id and ` + evidenceInBounds + `)
), judged as (
    select b.note,
           bool_or(case when r.id is null then @unbounded::bool else ` + evidenceInBounds + ` and (r.deleted or r.version <> b.version) end) as changed,
           bool_or(case when r.id is null then not @unbounded::bool else not coalesce(` + evidenceInBounds + `, false) end) as hidden
    from beneath b left join whence.records r on r.id = b.record_id
    where b.record_id <> b.note -- a note that was written anew from what it said before
    group by b.note
)
select n.id, w.columns, coalesce(j.changed, false), coalesce(j.hidden, false)
from shown n
join whence.versions w on w.record_id = n.id and w.version = n.version
left join judged j on j.note = n.id`

// The scope's bounds on a record r, a deleted or ended one included.
const evidenceInBounds = `
    (r.table_id = any(@tables::int[])
    and (@subjects::text[] is null or r.subject = any(@subjects::text[]))
    and (@scopeFilter::jsonb is null or r.attributes @> @scopeFilter::jsonb))`

// Notes tells of those of the records that are notes, as they were at a version
// each; what they rest on is judged as it is now. tables are all that are
// registered; the scope narrows them.
func (x *Index) Notes(ctx context.Context, tx pgx.Tx, scope authz.Scope, tables []whence.Table, versions map[int64]int32) (map[int64]Note, error) {
	out := map[int64]Note{}
	b, ok := within(scope, tables, nil, nil)
	if !ok || len(versions) == 0 {
		return out, nil
	}
	var ids []int64
	var at []int32
	for id, version := range versions {
		ids, at = append(ids, id), append(at, version)
	}
	allTables, _, deniedTables := scope.Tables()
	unbounded := allTables && deniedTables == nil && b.subjects == nil && b.denied == nil && b.scopeFilter == nil
	rows, err := tx.Query(ctx, notesSQL, planned, b.args(pgx.NamedArgs{"ids": ids, "versions": at, "notes": whence.NotesID, "unbounded": unbounded}))
	if err != nil {
		return nil, fmt.Errorf("notes: %w", pg.Translate(err))
	}
	var id int64
	var columns []byte
	var n Note
	_, err = pgx.ForEachRow(rows, []any{&id, &columns, &n.Changed, &n.Hidden}, func() error {
		note := n
		if err := json.Unmarshal(columns, &note.Columns); err != nil {
			return err
		}
		out[id] = note
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("notes: %w", pg.Translate(err))
	}
	return out, nil
}

// Removed is what Remove took away.
type Removed struct {
	Gone             whence.Gone
	Versions, Chunks int64
}

const (
	selectRemovable = `select r.id from whence.records r where r.key = @key and ` + recordInBounds + ` for update`
	selectHeadsNow  = `select id, version from whence.records where id = any(@ids) and not deleted`

	removeRecord = `
with texts as (delete from whence.chunks where record_id = @id returning digest),
states as (delete from whence.versions where record_id = @id returning 1),
evidence as (delete from whence.evidence where record_id = @id),
gone as (delete from whence.records where id = @id)
select (select count(*) from states), (select count(*) from texts), coalesce((select array_agg(distinct digest) from texts), '{}')`
)

// Remove takes a record within the scope away with its history, its chunks and the
// vectors that nothing else needs; RECORD_NOT_FOUND when the scope has none.
func (x *Index) Remove(ctx context.Context, tx pgx.Tx, scope authz.Scope, table whence.Table, key whence.Key) (r Removed, err error) {
	b, ok := within(scope, []whence.Table{table}, nil, nil)
	if !ok {
		return r, noRecord(table, key)
	}
	rows, err := tx.Query(ctx, selectRemovable, planned, b.args(pgx.NamedArgs{"key": key}))
	if err != nil {
		return r, fmt.Errorf("remove a record: %w", err)
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		return r, fmt.Errorf("remove a record: %w", err)
	}
	if len(ids) == 0 {
		return r, noRecord(table, key)
	}
	return x.remove(ctx, tx, table, key, ids[0])
}

func (x *Index) remove(ctx context.Context, tx pgx.Tx, table whence.Table, key whence.Key, id int64) (Removed, error) {
	r := Removed{Gone: whence.Gone{Table: table.Name(), Key: key, RecordID: id, Below: math.MaxInt32}}
	var digests [][]byte
	if err := tx.QueryRow(ctx, removeRecord, pgx.NamedArgs{"id": id}).Scan(&r.Versions, &r.Chunks, &digests); err != nil {
		return r, fmt.Errorf("remove a record: %w", err)
	}
	return r, forget(ctx, tx, digests)
}

const selectExpired = `
select id, key from whence.records where expires_at <= now() and table_id = @notes order by id limit @limit for update skip locked`

const selectEnded = `
select id from whence.records where table_id = @notes and key = @key and expires_at <= now() for update`

// RemoveEnded takes the note with a key away if its end has passed, so that nothing
// of it comes back with a note that is written under the same key.
func (x *Index) RemoveEnded(ctx context.Context, tx pgx.Tx, key whence.Key) (gone []whence.Gone, err error) {
	rows, err := tx.Query(ctx, selectEnded, pgx.NamedArgs{"notes": whence.NotesID, "key": key})
	if err != nil {
		return nil, fmt.Errorf("look for what has expired: %w", err)
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		return nil, fmt.Errorf("look for what has expired: %w", err)
	}
	for _, id := range ids {
		r, err := x.remove(ctx, tx, whence.Notes(), key, id)
		if err != nil {
			return nil, err
		}
		gone = append(gone, r.Gone)
	}
	return gone, nil
}

// RemoveExpired takes at most limit notes away whose end has passed.
func (x *Index) RemoveExpired(ctx context.Context, tx pgx.Tx, limit int) (gone []whence.Gone, err error) {
	rows, err := tx.Query(ctx, selectExpired, pgx.NamedArgs{"limit": limit, "notes": whence.NotesID})
	if err != nil {
		return nil, fmt.Errorf("look for what has expired: %w", err)
	}
	var ids []int64
	var keys []whence.Key
	var id int64
	var key whence.Key
	if _, err := pgx.ForEachRow(rows, []any{&id, &key}, func() error { ids, keys = append(ids, id), append(keys, key); return nil }); err != nil {
		return nil, fmt.Errorf("look for what has expired: %w", err)
	}
	for i, id := range ids {
		r, err := x.remove(ctx, tx, whence.Notes(), keys[i], id)
		if err != nil {
			return nil, err
		}
		gone = append(gone, r.Gone)
	}
	return gone, nil
}

const selectPurged = `
select id, key, version from whence.records where id = any(@ids) and table_id = @table and deleted`

// Purged tells which records of a table that purges are deleted.
func (x *Index) Purged(ctx context.Context, tx pgx.Tx, table whence.Table, records []int64) (gone []whence.Gone, err error) {
	rows, err := tx.Query(ctx, selectPurged, pgx.NamedArgs{"ids": records, "table": table.ID})
	if err != nil {
		return nil, fmt.Errorf("look for deleted records: %w", err)
	}
	g := whence.Gone{Table: table.Name()}
	if _, err := pgx.ForEachRow(rows, []any{&g.RecordID, &g.Key, &g.Below}, func() error { gone = append(gone, g); return nil }); err != nil {
		return nil, fmt.Errorf("look for deleted records: %w", err)
	}
	return gone, nil
}

// HeadVersions returns the heads' versions of those records that are there now.
func (x *Index) HeadVersions(ctx context.Context, tx pgx.Tx, records []int64) (map[int64]int32, error) {
	rows, err := tx.Query(ctx, selectHeadsNow, pgx.NamedArgs{"ids": records})
	if err != nil {
		return nil, fmt.Errorf("read heads: %w", pg.Translate(err))
	}
	out := map[int64]int32{}
	var id int64
	var version int32
	if _, err := pgx.ForEachRow(rows, []any{&id, &version}, func() error { out[id] = version; return nil }); err != nil {
		return nil, fmt.Errorf("read heads: %w", pg.Translate(err))
	}
	return out, nil
}

const selectMoment = `select now(), pg_current_wal_insert_lsn(), pg_current_xact_id()::text::bigint`

// Moment tells where in its own history the memory database is: the time of tx, a
// position in its log that lies before tx's commit, and tx's number.
func (x *Index) Moment(ctx context.Context, tx pgx.Tx) (now time.Time, lsn whence.LSN, xid uint64, err error) {
	if err := tx.QueryRow(ctx, selectMoment).Scan(&now, &lsn, &xid); err != nil {
		return now, lsn, xid, fmt.Errorf("read the transaction's number: %w", err)
	}
	return now.UTC(), lsn, xid, nil
}
