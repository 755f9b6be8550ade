package index

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/internal/pg"
)

// Record is a row's newest captured state.
type Record struct {
	ID         int64
	Table      whence.TableName
	Key        whence.Key
	Deleted    bool
	Version    int32
	LSN        whence.LSN
	CommitTime time.Time // zero when not known
	EventTime  time.Time // zero when neither it nor the commit time is known
	CapturedAt time.Time
	Subject    *string
	Text       string // rendered; empty once deleted
	Digest     whence.Digest
	Columns    whence.Values
	Attributes whence.Values
	Missing    []string // columns that a running backfill still owes
	Definition int32
	Chunks     int  // of the head
	Embedded   int  // of those, with a vector in the space that was asked about
	OtherSpace bool // a chunk without one has a vector in another space
}

// Version is one captured state of a record.
type Version struct {
	Version    int32
	LSN        whence.LSN
	XID        *int64    // nil when it came from a backfill
	CommitTime time.Time // zero when not known
	CapturedAt time.Time
	Deleted    bool
	Definition int32
	Columns    whence.Values
	Text       string
	Digest     whence.Digest
}

// A row may have tens of thousands of chunks, each looked up by itself: a table
// that has just been filled has no statistics to join by.
const recordSQL = `
select r.id, r.key, r.deleted, r.version, r.lsn, r.commit_time, coalesce(r.event_time, r.commit_time), w.captured_at,
       r.subject, w.text, w.digest, w.columns, r.attributes, coalesce(r.missing, '{}'), w.definition,
       h.chunks, h.embedded, h.other
from whence.records r
join whence.versions w on w.record_id = r.id and w.version = r.version
cross join lateral (
    select count(*) as chunks, count(v.digest) as embedded,
           coalesce(bool_or(v.digest is null and exists (
               select from whence.spaces s cross join lateral (
                   select from whence.vectors o
                   where o.space_id = s.id and o.digest = c.digest and o.embedding is not null offset 0
               ) o where s.id <> @space)), false) as other
    from whence.chunks c
    left join lateral (
        select v.digest from whence.vectors v
        where v.space_id = @space and v.digest = c.digest and v.embedding is not null offset 0
    ) v on true
    where c.record_id = r.id and c.version = r.version
) h
where r.key = @key and ` + recordInBounds

// Record returns the head of one row, deleted ones included; what the scope does
// not allow is RECORD_NOT_FOUND, exactly like what does not exist.
func (x *Index) Record(ctx context.Context, tx pgx.Tx, scope authz.Scope, table whence.Table, key whence.Key, space Space) (Record, error) {
	r := Record{Table: table.Name()}
	b, ok := within(scope, []whence.Table{table}, nil, nil)
	if !ok {
		return r, noRecord(table, key)
	}
	var commit, event *time.Time
	var digest, columns, attributes []byte
	err := tx.QueryRow(ctx, recordSQL, planned, b.args(pgx.NamedArgs{"key": key, "space": space.ID})).Scan(
		&r.ID, &r.Key, &r.Deleted, &r.Version, &r.LSN, &commit, &event, &r.CapturedAt,
		&r.Subject, &r.Text, &digest, &columns, &attributes, &r.Missing, &r.Definition,
		&r.Chunks, &r.Embedded, &r.OtherSpace)
	if errors.Is(err, pgx.ErrNoRows) {
		return r, noRecord(table, key)
	}
	if err == nil {
		err = errors.Join(json.Unmarshal(columns, &r.Columns), json.Unmarshal(attributes, &r.Attributes))
	}
	if err != nil {
		return r, fmt.Errorf("record: %w", pg.Translate(err))
	}
	copy(r.Digest[:], digest)
	r.CommitTime, r.EventTime = timeOf(commit), timeOf(event)
	return r, nil
}

func noRecord(table whence.Table, key whence.Key) error {
	return &whence.Error{Kind: whence.ErrNotFound, Reason: "RECORD_NOT_FOUND", Field: "key",
		Message: fmt.Sprintf("no row of %s with key %s is within your scope; the key is an object of all key columns, each value as text",
			table.Name(), key)}
}

// A version is judged by its own subject and attributes, for the row may have
// been another subject's then; the record by its head's. A deletion carries
// no values, so those that it deleted decide; after a purge there are none, and no
// bounds hold it.
const versionsSQL = `
select w.version, w.lsn, w.xid, w.commit_time, w.captured_at, w.deleted, w.definition, w.columns, w.text, w.digest
from whence.records r
join whence.versions w on w.record_id = r.id
left join lateral (
    select v.columns from whence.versions v
    where v.record_id = w.record_id and v.version <= w.version and not v.deleted
    order by v.version desc limit 1
) s on true
where r.key = @key and ` + recordInBounds + `
  and ((@subjects::text[] is null or s.columns ->> @subjectColumn = any(@subjects::text[]))
       and coalesce(s.columns ->> @subjectColumn <> all(@deniedSubjects::text[]), true)
       and (@scopeFilter::jsonb is null or s.columns @> @scopeFilter::jsonb))
  and w.version < @before
order by w.version desc
limit @limit`

const maxVersions = 1000

// Versions returns the versions of one row that the scope allows, newest first,
// at most size (1 to 1000) of them, and the token of the next page, empty at the end.
func (x *Index) Versions(ctx context.Context, tx pgx.Tx, scope authz.Scope, table whence.Table, key whence.Key, size int, token string) ([]Version, string, error) {
	before := int64(math.MaxInt32)
	if token != "" {
		n, err := strconv.ParseInt(token, 10, 32)
		if err != nil || n < 1 {
			return nil, "", whence.Invalid("page_token", "PAGE_TOKEN_INVALID", "this is not a page token of this list; begin without one")
		}
		before = n
	}
	size = max(1, min(size, maxVersions))
	b, ok := within(scope, []whence.Table{table}, nil, nil)
	if !ok {
		return nil, "", noRecord(table, key)
	}
	rows, err := tx.Query(ctx, versionsSQL, planned, b.args(pgx.NamedArgs{
		"key": key, "subjectColumn": table.SubjectColumn, "before": before, "limit": size + 1}))
	if err != nil {
		return nil, "", fmt.Errorf("versions: %w", pg.Translate(err))
	}
	out, err := pgx.CollectRows(rows, scanVersion)
	if err != nil {
		return nil, "", fmt.Errorf("versions: %w", pg.Translate(err))
	}
	if len(out) == 0 && token == "" {
		return nil, "", noRecord(table, key)
	}
	if len(out) <= size {
		return out, "", nil
	}
	return out[:size], strconv.FormatInt(int64(out[size-1].Version), 10), nil
}

func scanVersion(row pgx.CollectableRow) (Version, error) {
	var v Version
	var commit *time.Time
	var digest, columns []byte
	err := row.Scan(&v.Version, &v.LSN, &v.XID, &commit, &v.CapturedAt, &v.Deleted, &v.Definition, &columns, &v.Text, &digest)
	if err != nil {
		return v, err
	}
	copy(v.Digest[:], digest)
	v.CommitTime = timeOf(commit)
	return v, json.Unmarshal(columns, &v.Columns)
}
