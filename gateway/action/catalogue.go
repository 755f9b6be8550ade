package action

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/authz"
)

// liveColumn is a column as the source has it now.
type liveColumn struct {
	Name      string `json:"name"`
	Type      string `json:"type"`
	Length    int    `json:"length"` // that a text is held to; 0: none
	Generated bool   `json:"generated"`
	Always    bool   `json:"always"` // an identity that only the source gives values to
}

type liveTrigger struct {
	Name   string `json:"name"`
	Events int    `json:"events"` // pg_trigger.tgtype
}

// liveReference is a foreign key of another table, or of this one, to this one.
type liveReference struct {
	Name       string   `json:"name"`
	Schema     string   `json:"schema"`
	Relation   string   `json:"relation"`
	Columns    []string `json:"columns"`    // of the other table
	Referenced []string `json:"referenced"` // of this one
	OnDelete   string   `json:"onDelete"`   // pg_constraint.confdeltype
	OnUpdate   string   `json:"onUpdate"`
}

// catalogue is what decides what an action may do to a table.
type catalogue struct {
	Kind       string          `json:"kind"` // pg_class.relkind
	Columns    []liveColumn    `json:"columns"`
	Keys       [][]string      `json:"keys"` // columns of unique indexes that tell every row apart
	Triggers   []liveTrigger   `json:"triggers"`
	References []liveReference `json:"references"`
	Rules      []string        `json:"rules"` // pg_rewrite.ev_type: "2" update, "3" insert, "4" delete
	Hidden     bool            `json:"hidden"`
	May        map[string]bool `json:"may"`
	Role       string          `json:"role"`
	ReadOnly   bool            `json:"readOnly"` // the transaction
}

// A table's triggers and the keys that refer to it may also be on its partitions.
const catalogueSQL = `
with tree as materialized (
    select c.oid, c.oid as relid from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where n.nspname = @schema and c.relname = @relation and c.relkind in ('r', 'p')
    union
    select c.oid, p.relid from pg_class c join pg_namespace n on n.oid = c.relnamespace cross join pg_partition_tree(c.oid) p
    where n.nspname = @schema and c.relname = @relation and c.relkind = 'p'
)
select jsonb_build_object(
    'kind', c.relkind::text,
    'role', current_user,
    'readOnly', current_setting('transaction_read_only') = 'on',
    'hidden', row_security_active(c.oid),
    'may', jsonb_build_object('select', has_table_privilege(c.oid, 'select'), 'insert', has_table_privilege(c.oid, 'insert'),
        'update', has_table_privilege(c.oid, 'update'), 'delete', has_table_privilege(c.oid, 'delete')),
    'columns', (select jsonb_agg(jsonb_build_object('name', a.attname, 'type', format_type(a.atttypid, a.atttypmod),
            'length', case when a.atttypid in ('varchar'::regtype, 'bpchar'::regtype) then greatest(a.atttypmod - 4, 0) else 0 end,
            'generated', a.attgenerated <> '', 'always', a.attidentity = 'a') order by a.attnum)
        from pg_attribute a where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped),
    'keys', (select jsonb_agg((select jsonb_agg(a.attname order by k.ordinal)
            from unnest(i.indkey::smallint[]) with ordinality k(attnum, ordinal) join pg_attribute a on a.attrelid = c.oid and a.attnum = k.attnum
            where k.ordinal <= i.indnkeyatts))
        from pg_index i where i.indrelid = c.oid and i.indisunique and i.indimmediate and i.indisvalid and i.indpred is null and i.indexprs is null
            and not exists (select from unnest(i.indkey::smallint[]) with ordinality k(attnum, ordinal) join pg_attribute a on a.attrelid = c.oid and a.attnum = k.attnum
                where k.ordinal <= i.indnkeyatts and not a.attnotnull)),
    'triggers', (select jsonb_agg(distinct jsonb_build_object('name', t.tgname, 'events', t.tgtype))
        from pg_trigger t where t.tgrelid in (select relid from tree) and not t.tgisinternal and t.tgenabled in ('O', 'A')),
    'rules', (select jsonb_agg(r.ev_type::text) from pg_rewrite r where r.ev_class in (select relid from tree) and r.ev_enabled in ('O', 'A')),
    'references', (select jsonb_agg(jsonb_build_object('name', o.conname, 'schema', n.nspname, 'relation', f.relname,
            'onDelete', o.confdeltype::text, 'onUpdate', o.confupdtype::text,
            'columns', (select jsonb_agg(a.attname order by k.ordinal) from unnest(o.conkey) with ordinality k(attnum, ordinal)
                join pg_attribute a on a.attrelid = o.conrelid and a.attnum = k.attnum),
            'referenced', (select jsonb_agg(a.attname order by k.ordinal) from unnest(o.confkey) with ordinality k(attnum, ordinal)
                join pg_attribute a on a.attrelid = o.confrelid and a.attnum = k.attnum)) order by o.oid)
        from pg_constraint o join pg_class f on f.oid = o.conrelid join pg_namespace n on n.oid = f.relnamespace
        where o.contype = 'f' and o.confrelid in (select relid from tree)))
from pg_class c where c.oid = (select oid from tree limit 1)`

type queryRower interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

func inspect(ctx context.Context, q queryRower, t whence.Table) (c catalogue, err error) {
	var b []byte
	err = q.QueryRow(ctx, catalogueSQL, pgx.NamedArgs{"schema": t.Schema, "relation": t.Relation}).Scan(&b)
	if err == pgx.ErrNoRows { //nolint:errorlint // pgx returns it bare
		return c, invalid("row.table", "the source has no table %s any more", whence.RelationName(t.Schema, t.Relation))
	}
	if err != nil {
		return c, fmt.Errorf("inspect %s: %w", t.Name(), err)
	}
	return c, json.Unmarshal(b, &c)
}

func (c catalogue) column(name string) (liveColumn, bool) {
	i := slices.IndexFunc(c.Columns, func(l liveColumn) bool { return l.Name == name })
	if i < 0 {
		return liveColumn{}, false
	}
	return c.Columns[i], true
}

func (c catalogue) names() []string {
	var names []string
	for _, l := range c.Columns {
		names = append(names, l.Name)
	}
	return names
}

// trigger events, as pg_trigger.tgtype has them
var events = map[Operation]int{Insert: 4, Delete: 8, Update: 16}

// rule events, as pg_rewrite.ev_type has them
var rules = map[Operation]string{Update: "2", Insert: "3", Delete: "4"}

var inverses = map[Operation]Operation{Insert: Delete, Update: Update, Delete: Insert}

// triggers lists the triggers that an operation fires.
func (c catalogue) triggers(op Operation) (names []string) {
	for _, t := range c.Triggers {
		if t.Events&events[op] != 0 {
			names = append(names, t.Name)
		}
	}
	return names
}

// further tells whether a foreign key's deed changes rows of another table.
func further(deed string) bool { return deed == "c" || deed == "n" || deed == "d" }

// operations are those that running and undoing the action makes.
func (d Definition) operations() []Operation {
	ops := []Operation{d.Row.Operation}
	if inverse := inverses[d.Row.Operation]; d.Tier == authz.TierReversible && inverse != d.Row.Operation {
		ops = append(ops, inverse)
	}
	return ops
}

// privileges of the role that an operation needs; rows are locked before they go,
// which takes the right to update.
var privileges = map[Operation][]string{Select: {"select"}, Insert: {"select", "insert"}, Update: {"select", "update"}, Delete: {"select", "update", "delete"}}

// check holds a row action against the live table.
func (c catalogue) check(d Definition, t whence.Table) error {
	name := whence.RelationName(t.Schema, t.Relation)
	if c.ReadOnly && d.Row.Operation != Select {
		return &whence.Error{Kind: whence.ErrPrecondition, Reason: "SOURCE_READ_ONLY", Metadata: map[string]string{"source": t.Source},
			Message: fmt.Sprintf("the role %q, that the server has at the source %q, or its database has default_transaction_read_only on: turn that off for it, or give the source a role that may write", c.Role, t.Source)}
	}
	for _, op := range d.operations() {
		for _, p := range privileges[op] {
			if !c.May[p] {
				return &whence.Error{Kind: whence.ErrPrecondition, Reason: "SOURCE_REFUSED", Metadata: map[string]string{"source": t.Source, "privilege": p},
					Message: fmt.Sprintf("the role that the server has at the source %q may not %s rows of %s: run GRANT %s ON %s TO %s", t.Source, p, name,
						strings.ToUpper(p), pgx.Identifier{t.Schema, t.Relation}.Sanitize(), pgx.Identifier{c.Role}.Sanitize())}
			}
		}
		if slices.Contains(c.Rules, rules[op]) {
			return invalid("row.table", "a rule of %s turns its %s into something else: no action can say what that does", name, op)
		}
	}
	if c.Hidden {
		return invalid("row.table", "row-level security of %s hides rows from the server's role: let it BYPASSRLS, for it keeps to each caller's scope by itself", name)
	}
	for field, list := range map[string][]string{"row.where": slices.Sorted(maps.Keys(d.Row.Where)), "row.set": slices.Sorted(maps.Keys(d.Row.Set)), "row.columns": d.Row.Columns} {
		for _, col := range list {
			live, ok := c.column(col)
			switch {
			case !ok:
				return invalid(field, "%s has no column %q; it has: %s", name, col, strings.Join(c.names(), ", "))
			case field == "row.set" && (live.Generated || live.Always):
				return invalid(field, "the values of the column %q of %s are the source's own to make", col, name)
			}
		}
	}
	for _, col := range t.KeyColumns {
		if _, ok := c.column(col); !ok {
			return invalid("row.table", "%s has no key column %q any more: register the table again", name, col)
		}
	}
	if d.Tier != authz.TierReversible {
		return nil
	}
	return c.reversible(d, t, name)
}

// reversible refuses what undo could not take back by the rows alone.
func (c catalogue) reversible(d Definition, t whence.Table, name string) error {
	if d.Row.Operation == Delete && t.OnDelete == whence.OnDeletePurge {
		return invalid("tier", "%s purges what is deleted, so undo could not bring it back: the action is IRREVERSIBLE", name)
	}
	want := slices.Sorted(slices.Values(t.KeyColumns))
	if !slices.ContainsFunc(c.Keys, func(k []string) bool { return slices.Equal(slices.Sorted(slices.Values(k)), want) }) {
		return invalid("tier", "%s has no unique index over its key %s that is checked at once, so undo could not tell its rows apart: the action is IRREVERSIBLE",
			name, strings.Join(t.KeyColumns, ", "))
	}
	for _, op := range d.operations() {
		if names := c.triggers(op); len(names) > 0 && !d.Row.TriggersStayWithinRow {
			return invalid("tier", "the trigger %q of %s fires on %s and may change more than the row, which undo could not take back: "+
				"set triggersStayWithinRow where it does not, or make the action IRREVERSIBLE", names[0], name, op)
		}
	}
	written := slices.Sorted(maps.Keys(d.Row.Set))
	for _, l := range c.Columns {
		if l.Generated { // from columns that may be among the written
			written = append(written, l.Name)
		}
	}
	for _, r := range c.References {
		var deed string
		switch {
		case d.Row.Operation == Delete && further(r.OnDelete):
			deed = "DELETE"
		case d.Row.Operation == Update && further(r.OnUpdate) && slices.ContainsFunc(r.Referenced, func(s string) bool { return slices.Contains(written, s) }):
			deed = "UPDATE"
		default:
			continue
		}
		return invalid("tier", "by the foreign key %q, ON %s, the action would change rows of %s, which undo could not take back: the action is IRREVERSIBLE",
			r.Name, deed, whence.RelationName(r.Schema, r.Relation))
	}
	return nil
}
