package cdc

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
)

// shape is what the stored rows of a table depend on and the stream does not
// tell: which relation bears the name, which columns there are and how their
// values read, which partitions hold the rows, and how all that is published.
// It is read before a table's rows are copied, kept with the table, and compared
// ever after, also with what happened while nobody looked.
type shape struct {
	Relation    uint32                 `json:"relation"` // oid; 0: there is none
	Named       string                 `json:"named"`    // transaction that gave it its name or schema last; or its owner
	Identity    string                 `json:"identity"` // replica identities of it and its partitions, each once
	Key         key                    `json:"key"`
	Mute        *mute                  `json:"mute"`    // it or a partition of it; nil: none is
	Above       []ancestor             `json:"above"`   // of a partition: what it is one of, the topmost first
	Columns     map[string]columnShape `json:"columns"` // the registered ones, by name
	Leaves      map[string]string      `json:"leaves"`  // of the table or each partition, by oid: where rows are stored, what attached it
	Publication json.RawMessage        `json:"publication"`
}

// ancestor is a partitioned table above a partition. What happens in a partition
// comes under the name of the topmost that is published.
type ancestor struct {
	Relation  uint32 `json:"relation"`
	Name      string `json:"name"` // in SQL
	Published bool   `json:"published"`
}

// published returns the name that a partition's changes come under, if that is another.
func (s shape) published() (name string, is bool) {
	for _, a := range s.Above {
		if a.Published {
			return a.Name, true
		}
	}
	return "", false
}

type columnShape struct {
	Number    int               `json:"number"`
	Type      uint32            `json:"type"`
	Modifier  int               `json:"modifier"`
	Changed   string            `json:"changed"` // transaction that described it last
	Generated bool              `json:"generated"`
	Labels    map[string]string `json:"labels"` // of the enums in its type, by oid, each with the transaction that gave it
	Fields    json.RawMessage   `json:"fields"` // of the composite types in it
}

// One snapshot shows all of it, but for pg_partition_tree. A function such as
// pg_relation_filenode would look past that: a rewritten heap would show before
// the column that it was rewritten for.
//
// A table's name is in the row of its own type too, which hardly anything else
// changes. A type is described with all that it is made of: what domains, arrays and
// ranges are over, and the fields of composites. Postgres's own types are known.
const shapesSQL = `
with recursive wanted as (
    select w.id, w.columns, c.oid, c.reltype, c.relkind, c.relreplident, c.relispartition, c.relfilenode
      from unnest(@ids::int[], @schemas::text[], @relations::text[], @columns::text[]) as w(id, schema, relation, columns)
      left join pg_namespace n on n.nspname = w.schema
      left join pg_class c on c.relnamespace = n.oid and c.relname = w.relation and c.relkind in ('r', 'p')),
parts (whole, part) as (
    select a.atttypid, a.atttypid from wanted w join pg_attribute a on a.attrelid = w.oid and a.atttypid >= 16384
     where a.attname in (select jsonb_array_elements_text(w.columns::jsonb))
    union
    select p.whole, of.part
      from parts p join pg_type ty on ty.oid = p.part
      cross join lateral (
          select ty.typelem union all select ty.typbasetype
          union all select r.rngsubtype from pg_range r where ty.oid in (r.rngtypid, r.rngmultitypid)
          union all select f.atttypid from pg_attribute f where f.attrelid = ty.typrelid and f.attnum > 0 and not f.attisdropped) of (part)
     where of.part >= 16384),
types as materialized (
    select whole,
           (select jsonb_object_agg(e.oid::text, e.enumlabel::text || ' ' || e.xmin::text) from pg_enum e where e.enumtypid = any(array_agg(p.part))) as labels,
           (select jsonb_agg(jsonb_build_array(f.attname::text, f.atttypid::bigint, f.attisdropped) order by b.oid, f.attnum)
              from pg_type b join pg_attribute f on f.attrelid = b.typrelid and f.attnum > 0
             where b.typtype = 'c' and b.oid = any(array_agg(p.part))) as fields
      from parts p group by whole)
select c.id, jsonb_build_object(
    'relation', coalesce(c.oid::bigint, 0),
    'named', coalesce((select ty.xmin::text from pg_type ty where ty.oid = c.reltype), ''),
    'identity', coalesce(case when c.relkind = 'p' then (
        select string_agg(distinct i.relreplident::text, '') from pg_class i
         where i.oid in (select p.relid from pg_partition_tree(c.oid) p)) else c.relreplident::text end, ''),
    'key', coalesce((
        select jsonb_build_object('by', coalesce(o.oid, i.indexrelid)::bigint, 'columns', jsonb_agg(a.attname::text order by k.ordinal))` +
	identifyingSQL + `), '{"by": 0, "columns": []}'),
    'mute', ` + muteSQL + `,
    'above', coalesce((
        select jsonb_agg(jsonb_build_object(
            'relation', ac.oid::bigint,
            'name', format('"%s"."%s"', replace(an.nspname, '"', '""'), replace(ac.relname, '"', '""')),
            'published', exists (
                select from pg_publication p
                 where p.pubname = @publication and (p.puballtables
                    or exists (select from pg_publication_rel r where r.prpubid = p.oid and r.prrelid = ac.oid)
                    or exists (select from pg_publication_namespace s where s.pnpubid = p.oid and s.pnnspid = an.oid)))) order by a.n desc)
          from pg_partition_ancestors(c.oid) with ordinality a(oid, n)
          join pg_class ac on ac.oid = a.oid join pg_namespace an on an.oid = ac.relnamespace
         where c.relispartition and a.oid <> c.oid), '[]'),
    'columns', coalesce((
        select jsonb_object_agg(a.attname::text, jsonb_build_object(
            'number', a.attnum, 'type', a.atttypid::bigint, 'modifier', a.atttypmod, 'changed', a.xmin::text,
            'generated', a.attgenerated <> '', 'labels', ty.labels, 'fields', ty.fields))
          from pg_attribute a left join types ty on ty.whole = a.atttypid
         where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
           and a.attname in (select jsonb_array_elements_text(c.columns::jsonb))), '{}'),
    'leaves', coalesce(case when c.oid is null then null when c.relkind = 'p'
        then (select jsonb_object_agg(l.oid::text, l.relfilenode::text || ' ' || i.xmin::text)
                from pg_partition_tree(c.oid) p join pg_class l on l.oid = p.relid
                join pg_inherits i on i.inhrelid = l.oid)
        else jsonb_build_object(c.oid::text, c.relfilenode::text) end, '{}'),
    'publication', (
        select jsonb_build_array(p.oid::bigint, p.xmin::text, r.oid::bigint, r.prattrs::text, r.prqual is null)
          from pg_publication p left join pg_publication_rel r on r.prpubid = p.oid and r.prrelid = c.oid
         where p.pubname = @publication))::text
  from wanted c`

// shapes reads how tables look now, as text that is equal when they look equal.
func (c *Capture) shapes(ctx context.Context, conn *pgx.Conn, tables []whence.Table) (map[int32]string, error) {
	if len(tables) == 0 {
		return map[int32]string{}, nil
	}
	var ids []int32
	var schemas, relations, columns []string
	for _, t := range tables {
		names, err := json.Marshal(t.Columns())
		if err != nil {
			return nil, err
		}
		ids = append(ids, t.ID)
		schemas, relations, columns = append(schemas, t.Schema), append(relations, t.Relation), append(columns, string(names))
	}
	rows, err := conn.Query(ctx, shapesSQL, pgx.NamedArgs{"publication": c.cfg.Publication,
		"ids": ids, "schemas": schemas, "relations": relations, "columns": columns})
	if err != nil {
		return nil, fmt.Errorf("read the catalogue: %w", err)
	}
	out := make(map[int32]string, len(tables))
	var id int32
	var text string
	_, err = pgx.ForEachRow(rows, []any{&id, &text}, func() error { out[id] = text; return nil })
	if err != nil {
		return nil, fmt.Errorf("read the catalogue: %w", err)
	}
	return out, nil
}

func parseShape(text string) (s shape, err error) {
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		return s, fmt.Errorf("read how a table looks: %w", err)
	}
	return s, nil
}

// watched are the tables whose shape is compared: their rows are being copied,
// or were.
func watched(set *tableSet) []whence.Table {
	var out []whence.Table
	for _, t := range set.list {
		if t.Shape != "" && (t.State == whence.TableLive || t.State == whence.TableBackfilling) {
			out = append(out, t)
		}
	}
	return out
}

// unchanged tells whether every watched table looks as its rows were copied.
func (c *Capture) unchanged(ctx context.Context, conn *pgx.Conn) (bool, error) {
	tables := watched(c.tables.Load())
	now, err := c.shapes(ctx, conn, tables)
	if err != nil {
		return false, err
	}
	for _, t := range tables {
		if now[t.ID] != t.Shape {
			return false, nil
		}
	}
	return true, nil
}
