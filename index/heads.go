package index

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
)

// Head is a record's newest captured version.
type Head struct {
	RecordID   int64
	Version    int32
	LSN        whence.LSN // of the commit, or of the snapshot that last showed the row so
	XID        *uint32    // nil when the version came from a backfill
	CommitTime time.Time  // zero when the version came from a backfill
	Deleted    bool
	State      []byte   // as it was given with the mutation; nil: to be worked out from Contents
	Missing    []string // columns that a backfill still owes
}

// Key by key: for many keys at once, a planner without statistics, as within the
// transaction that fills the table, would rather read all the table's keys.
const selectHeads = `
select r.id, r.key, r.version, r.lsn, r.xid, r.commit_time, r.deleted, r.state, r.missing
from unnest(@keys::text[]) as k(key)
cross join lateral (
    select r.id, r.key, r.version, r.lsn, r.xid, r.commit_time, r.deleted, r.state, r.missing
    from whence.records r where r.table_id = @table and r.key = k.key for update
) r`

// Heads returns the heads of those keys that have a record, and locks them until
// tx ends, in the order given: callers sort the keys, so that no two of them wait
// for each other in a circle.
func (x *Index) Heads(ctx context.Context, tx pgx.Tx, table int32, keys []whence.Key) (map[whence.Key]*Head, error) {
	if len(keys) == 0 {
		return nil, nil
	}
	rows, err := tx.Query(ctx, selectHeads, pgx.NamedArgs{"table": table, "keys": keyStrings(keys)})
	if err != nil {
		return nil, fmt.Errorf("read heads: %w", err)
	}
	heads := map[whence.Key]*Head{}
	var (
		h      Head
		key    whence.Key
		xid    *int64
		commit *time.Time
	)
	_, err = pgx.ForEachRow(rows, []any{&h.RecordID, &key, &h.Version, &h.LSN, &xid, &commit, &h.Deleted, &h.State, &h.Missing}, func() error {
		found := h
		if xid != nil {
			u := uint32(*xid)
			found.XID = &u
		}
		if commit != nil {
			found.CommitTime = *commit
		}
		heads[key] = &found
		h.Missing = nil
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read heads: %w", err)
	}
	return heads, nil
}

// Contents are the values of a head, which most changes do not ask for.
type Contents struct {
	Columns    whence.Values // empty when deleted
	Definition int32         // of the table, when the version was rendered
}

const selectContents = `
select v.record_id, v.columns, v.definition
from whence.records r join whence.versions v on v.record_id = r.id and v.version = r.version
where r.id = any(@ids)`

// Contents returns the values of heads by the record's id.
func (x *Index) Contents(ctx context.Context, tx pgx.Tx, records []int64) (map[int64]Contents, error) {
	if len(records) == 0 {
		return nil, nil
	}
	rows, err := tx.Query(ctx, selectContents, pgx.NamedArgs{"ids": records})
	if err != nil {
		return nil, fmt.Errorf("read contents: %w", err)
	}
	out := make(map[int64]Contents, len(records))
	var id int64
	var columns []byte
	var definition int32
	_, err = pgx.ForEachRow(rows, []any{&id, &columns, &definition}, func() error {
		c := Contents{Definition: definition}
		if err := json.Unmarshal(columns, &c.Columns); err != nil {
			return fmt.Errorf("columns of record %d: %w", id, err)
		}
		out[id] = c
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read contents: %w", err)
	}
	return out, nil
}

const selectContentsSize = `
select coalesce(sum(octet_length(v.columns::text)), 0)::bigint
from whence.records r join whence.versions v on v.record_id = r.id and v.version = r.version
where r.id = any(@ids)`

// ContentsSize tells how many bytes Contents would read.
func (x *Index) ContentsSize(ctx context.Context, tx pgx.Tx, records []int64) (bytes int64, err error) {
	if err := tx.QueryRow(ctx, selectContentsSize, pgx.NamedArgs{"ids": records}).Scan(&bytes); err != nil {
		return 0, fmt.Errorf("read the size of contents: %w", err)
	}
	return bytes, nil
}

const touchHeads = `
update whence.records r set lsn = n.lsn::pg_lsn from unnest(@ids::bigint[], @lsns::text[]) as n(id, lsn) where r.id = n.id`

// Touch records that each record is known to be, at a newer position, what it was.
func (x *Index) Touch(ctx context.Context, tx pgx.Tx, records []int64, at []whence.LSN) error {
	if len(records) == 0 {
		return nil
	}
	if _, err := tx.Exec(ctx, touchHeads, pgx.NamedArgs{"ids": records, "lsns": lsnStrings(at)}); err != nil {
		return fmt.Errorf("touch heads: %w", err)
	}
	return nil
}

const rewindRecords = `update whence.records set lsn = '0/0' where table_id = any(@tables)`

// Rewind forgets how new each record's state is: the source goes on in a history
// whose positions compare with none before it.
func (x *Index) Rewind(ctx context.Context, tx pgx.Tx, tables []int32) error {
	if _, err := tx.Exec(ctx, rewindRecords, pgx.NamedArgs{"tables": tables}); err != nil {
		return fmt.Errorf("rewind records: %w", err)
	}
	return nil
}

const selectOwed = `
select key from whence.records where table_id = @table and missing is not null and not deleted limit @limit`

// Owed returns keys of records that still lack columns, at most limit.
func (x *Index) Owed(ctx context.Context, tx pgx.Tx, table int32, limit int) ([]whence.Key, error) {
	rows, err := tx.Query(ctx, selectOwed, pgx.NamedArgs{"table": table, "limit": limit})
	if err != nil {
		return nil, fmt.Errorf("look for records that lack columns: %w", err)
	}
	keys, err := pgx.CollectRows(rows, pgx.RowTo[whence.Key])
	if err != nil {
		return nil, fmt.Errorf("look for records that lack columns: %w", err)
	}
	return keys, nil
}

func keyStrings(keys []whence.Key) []string {
	out := make([]string, len(keys))
	for i, k := range keys {
		out[i] = string(k)
	}
	return out
}

func lsnStrings(at []whence.LSN) []string {
	out := make([]string, len(at))
	for i, l := range at {
		out[i] = l.String()
	}
	return out
}
