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
	Key        whence.Key
	Version    int32
	LSN        whence.LSN // of the commit, or of the snapshot that last showed the row so
	XID        *uint32    // nil when the version came from a backfill
	CommitTime time.Time  // zero when the version came from a backfill
	Deleted    bool
	Columns    whence.Values // empty when deleted
	Missing    []string      // columns that a backfill still owes
	Definition int32         // of the table, when the version was rendered
	TextDigest whence.Digest
}

const selectHeads = `
select r.id, r.key, r.version, r.lsn, v.xid, r.commit_time, r.deleted, v.columns, r.missing, v.definition, v.digest
from whence.records r
join whence.versions v on v.record_id = r.id and v.version = r.version
where r.table_id = @table and r.key = any(@keys)
order by r.key
for update of r`

// Heads returns the heads of those keys that have a record, and locks them until
// tx ends, in the order of their keys.
func (x *Index) Heads(ctx context.Context, tx pgx.Tx, table int32, keys []whence.Key) (map[whence.Key]Head, error) {
	heads := make(map[whence.Key]Head, len(keys))
	if len(keys) == 0 {
		return heads, nil
	}
	rows, err := tx.Query(ctx, selectHeads, pgx.NamedArgs{"table": table, "keys": keyStrings(keys)})
	if err != nil {
		return nil, fmt.Errorf("read heads: %w", err)
	}
	var (
		h       Head
		xid     *int64
		commit  *time.Time
		columns []byte
		digest  []byte
	)
	dest := []any{&h.RecordID, &h.Key, &h.Version, &h.LSN, &xid, &commit, &h.Deleted, &columns, &h.Missing, &h.Definition, &digest}
	_, err = pgx.ForEachRow(rows, dest, func() error {
		h.XID, h.CommitTime = nil, time.Time{}
		if xid != nil {
			u := uint32(*xid)
			h.XID = &u
		}
		if commit != nil {
			h.CommitTime = *commit
		}
		h.Columns = nil
		if err := json.Unmarshal(columns, &h.Columns); err != nil {
			return fmt.Errorf("columns of record %d: %w", h.RecordID, err)
		}
		copy(h.TextDigest[:], digest)
		heads[h.Key] = h
		h.Missing = nil
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read heads: %w", err)
	}
	return heads, nil
}

const touchHeads = `
update whence.records r set lsn = n.lsn::pg_lsn from unnest(@ids::bigint[], @lsns::text[]) as n(id, lsn) where r.id = n.id`

// Touch records that each record is known to be, at a newer position, what it was.
func (x *Index) Touch(ctx context.Context, tx pgx.Tx, records []int64, at []whence.LSN) error {
	if len(records) == 0 {
		return nil
	}
	lsns := make([]string, len(at))
	for i, l := range at {
		lsns[i] = l.String()
	}
	if _, err := tx.Exec(ctx, touchHeads, pgx.NamedArgs{"ids": records, "lsns": lsns}); err != nil {
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

const selectMissing = `
select exists (select from whence.records where table_id = @table and missing is not null and not deleted)`

// Owed tells whether some record of the table still lacks columns.
func (x *Index) Owed(ctx context.Context, tx pgx.Tx, table int32) (owed bool, err error) {
	if err := tx.QueryRow(ctx, selectMissing, pgx.NamedArgs{"table": table}).Scan(&owed); err != nil {
		return false, fmt.Errorf("look for records that lack columns: %w", err)
	}
	return owed, nil
}

func keyStrings(keys []whence.Key) []string {
	out := make([]string, len(keys))
	for i, k := range keys {
		out[i] = string(k)
	}
	return out
}
