package cdc

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
)

// Kind is what a relation is.
type Kind string

// The kinds that can be captured.
const (
	KindTable       Kind = "TABLE"
	KindPartitioned Kind = "PARTITIONED_TABLE"
)

// Column is one column of an inspected table.
type Column struct {
	Name      string
	Type      string // as format_type prints it
	NotNull   bool
	Generated bool // its values are not in the stream
}

// Inspection is what a table of the source looks like to capture.
type Inspection struct {
	Schema, Relation string
	Kind             Kind
	Columns          []Column // in table order
	KeyColumns       []string // in the order of the index that they come from
	ReplicaIdentity  string   // DEFAULT, FULL or INDEX
	EstimatedRows    int64    // as the planner's statistics have it; 0 when never analysed
	Owned            bool     // the role may add it to a publication
}

// sqlName is how a statement names a relation.
func sqlName(schema, relation string) string { return pgx.Identifier{schema, relation}.Sanitize() }

const (
	relationSQL = `
select c.oid::bigint, c.relkind::text, c.relpersistence::text, c.relreplident::text,
       has_table_privilege(c.oid, 'select'), pg_has_role(c.relowner, 'usage'),
       (select coalesce(sum(greatest(l.reltuples, 0)), 0)::bigint
          from pg_class l
         where l.oid = c.oid and c.relkind = 'r'
            or c.relkind = 'p' and l.relkind = 'r' and l.oid in (select relid from pg_partition_tree(c.oid)))
  from pg_class c join pg_namespace n on n.oid = c.relnamespace
 where n.nspname = @schema and c.relname = @relation`

	columnsSQL = `
select a.attname::text, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attgenerated <> ''
  from pg_attribute a
 where a.attrelid = @oid and a.attnum > 0 and not a.attisdropped
 order by a.attnum`

	// Only an index that is checked at once can identify a row in the stream.
	keySQL = `
select array_agg(a.attname::text order by k.ordinal)
  from pg_index i
  cross join unnest(i.indkey::smallint[]) with ordinality as k(attnum, ordinal)
  join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum
 where i.indrelid = @oid and k.ordinal <= i.indnkeyatts and i.indimmediate and i.indisvalid
   and case when @by_index then i.indisreplident else i.indisprimary end
 group by i.indexrelid`

	// A partition identifies its rows by itself, whatever its root says.
	mutePartitionSQL = `
select n.nspname::text, c.relname::text
  from pg_partition_tree(@oid::bigint::regclass) p
  join pg_class c on c.oid = p.relid
  join pg_namespace n on n.oid = c.relnamespace
 where p.isleaf and c.relreplident = 'n'
 limit 1`
)

// InspectTable reads a table of the source. An *whence.Error with the reason
// TABLE_NOT_FOUND, NOT_A_TABLE, TABLE_NOT_LOGGED, TABLE_NOT_READABLE,
// NO_PRIMARY_KEY or REPLICA_IDENTITY_NOTHING says why it cannot be captured,
// with the statement that mends it.
func InspectTable(ctx context.Context, conn *pgx.Conn, schema, relation string) (Inspection, error) {
	in := Inspection{Schema: schema, Relation: relation}
	name := sqlName(schema, relation)
	var (
		oid                         int64
		kind, persistence, identity string
		readable                    bool
	)
	err := conn.QueryRow(ctx, relationSQL, pgx.NamedArgs{"schema": schema, "relation": relation}).
		Scan(&oid, &kind, &persistence, &identity, &readable, &in.Owned, &in.EstimatedRows)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return in, &whence.Error{Kind: whence.ErrNotFound, Reason: "TABLE_NOT_FOUND",
			Message: fmt.Sprintf("the source has no table %s: check the schema and the spelling; names are case-sensitive", name)}
	case err != nil:
		return in, fmt.Errorf("inspect %s: %w", name, err)
	case schema == "pg_catalog" || schema == "information_schema":
		return in, refuse("NOT_A_TABLE", fmt.Sprintf("%s belongs to the system, whose changes are not in the stream", name))
	case kind != "r" && kind != "p":
		return in, refuse("NOT_A_TABLE", fmt.Sprintf("%s is %s, which has no changes of its own in the stream: register the tables under it",
			name, kindName(kind)))
	case persistence != "p":
		return in, refuse("TABLE_NOT_LOGGED", fmt.Sprintf("the changes of %s are not in the log: run ALTER TABLE %s SET LOGGED", name, name))
	case !readable:
		return in, refuse("TABLE_NOT_READABLE", fmt.Sprintf("the role %s may not read %s: run GRANT SELECT ON %s TO %s",
			conn.Config().User, name, name, pgx.Identifier{conn.Config().User}.Sanitize()))
	case identity == "n":
		return in, identityNothing(name)
	}
	in.Kind = KindTable
	if kind == "p" {
		in.Kind = KindPartitioned
		if err := checkPartitions(ctx, conn, oid); err != nil {
			return in, err
		}
	}
	in.ReplicaIdentity = map[string]string{"d": "DEFAULT", "f": "FULL", "i": "INDEX"}[identity]
	rows, err := conn.Query(ctx, columnsSQL, pgx.NamedArgs{"oid": oid})
	if err != nil {
		return in, fmt.Errorf("inspect the columns of %s: %w", name, err)
	}
	if in.Columns, err = pgx.CollectRows(rows, pgx.RowToStructByPos[Column]); err != nil {
		return in, fmt.Errorf("inspect the columns of %s: %w", name, err)
	}
	err = conn.QueryRow(ctx, keySQL, pgx.NamedArgs{"oid": oid, "by_index": identity == "i"}).Scan(&in.KeyColumns)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return in, refuse("NO_PRIMARY_KEY", fmt.Sprintf("%s has no primary key (that is not deferrable), so its rows cannot be told apart: "+
			"run ALTER TABLE %s ADD PRIMARY KEY (...), or ALTER TABLE %s REPLICA IDENTITY USING INDEX with a unique index over columns that are NOT NULL",
			name, name, name))
	case err != nil:
		return in, fmt.Errorf("inspect the key of %s: %w", name, err)
	}
	return in, nil
}

func checkPartitions(ctx context.Context, conn *pgx.Conn, oid int64) error {
	var schema, relation string
	err := conn.QueryRow(ctx, mutePartitionSQL, pgx.NamedArgs{"oid": oid}).Scan(&schema, &relation)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return nil
	case err != nil:
		return fmt.Errorf("inspect the partitions: %w", err)
	}
	return identityNothing(sqlName(schema, relation))
}

func identityNothing(name string) *whence.Error {
	return refuse("REPLICA_IDENTITY_NOTHING", fmt.Sprintf("%s has REPLICA IDENTITY NOTHING, so the stream would not say which rows change, "+
		"and publishing it would make its updates fail: run ALTER TABLE %s REPLICA IDENTITY DEFAULT", name, name))
}

func kindName(relkind string) string {
	switch relkind {
	case "v":
		return "a view"
	case "m":
		return "a materialized view"
	case "f":
		return "a foreign table"
	case "S":
		return "a sequence"
	case "i", "I":
		return "an index"
	case "c":
		return "a composite type"
	}
	return "not a table"
}
