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

	keySQL      = `select array_agg(a.attname::text order by k.ordinal)` + identifyingSQL
	keyOfSQL    = `select (` + keySQL + `) from pg_class c where c.oid = @oid`
	muteTreeSQL = `select ` + muteSQL + ` from pg_class c where c.oid = @oid`
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
	}
	var silent *mute
	if err := conn.QueryRow(ctx, muteTreeSQL, pgx.NamedArgs{"oid": oid}).Scan(&silent); err != nil {
		return in, fmt.Errorf("inspect how the rows of %s are identified: %w", name, err)
	}
	if silent != nil {
		return in, silent.refusal()
	}
	in.Kind = KindTable
	if kind == "p" {
		in.Kind = KindPartitioned
	}
	in.ReplicaIdentity = map[string]string{"d": "DEFAULT", "f": "FULL", "i": "INDEX"}[identity]
	rows, err := conn.Query(ctx, columnsSQL, pgx.NamedArgs{"oid": oid})
	if err != nil {
		return in, fmt.Errorf("inspect the columns of %s: %w", name, err)
	}
	if in.Columns, err = pgx.CollectRows(rows, pgx.RowToStructByPos[Column]); err != nil {
		return in, fmt.Errorf("inspect the columns of %s: %w", name, err)
	}
	switch err = conn.QueryRow(ctx, keyOfSQL, pgx.NamedArgs{"oid": oid}).Scan(&in.KeyColumns); {
	case err != nil:
		return in, fmt.Errorf("inspect the key of %s: %w", name, err)
	case len(in.KeyColumns) == 0:
		return in, keyless(name)
	}
	return in, nil
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
