package cdc

import (
	"fmt"

	"github.com/whence-db/whence"
)

// The index that identifies a row, of a relation c in the query around. Only one
// that is checked at once can do so in the stream.
const (
	identifyingSQL = `
       from pg_index i
       cross join unnest(i.indkey::smallint[]) with ordinality as k(attnum, ordinal)
       join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum
       left join pg_constraint o on o.conrelid = i.indrelid and o.conindid = i.indexrelid and o.contype in ('p', 'u')
      where i.indrelid = c.oid and k.ordinal <= i.indnkeyatts and i.indimmediate and i.indisvalid
        and case when c.relreplident = 'i' then i.indisreplident else i.indisprimary end
      group by i.indexrelid, o.oid`

	// muteSQL finds a table, or a partition of it, whose changed rows the stream
	// would not tell apart; a partition identifies its rows by itself, whatever its
	// root says. While such a table is published, its owner's updates fail.
	muteSQL = `case when c.relkind = 'p' then (` + muteAmongSQL + ` in (select p.relid from pg_partition_tree(c.oid) p) order by m.oid <> c.oid, m.oid limit 1)
         else (` + muteAmongSQL + ` = c.oid) end`
	muteAmongSQL = `
       select jsonb_build_object('schema', n.nspname, 'relation', m.relname, 'identity', m.relreplident, 'primary', exists (
                  select from pg_index i where i.indrelid = m.oid and i.indisprimary and i.indimmediate and i.indisvalid))
         from pg_class m join pg_namespace n on n.oid = m.relnamespace
        where m.relkind in ('r', 'p') and m.relreplident <> 'f'
          and not exists (
              select from pg_index i
               where i.indrelid = m.oid and i.indimmediate and i.indisvalid
                 and case m.relreplident when 'd' then i.indisprimary when 'i' then i.indisreplident end)
          and m.oid`
)

// Reasons of the refusals below.
const (
	reasonMute    = "REPLICA_IDENTITY_NOTHING"
	reasonKeyless = "NO_PRIMARY_KEY"
)

// key is what identifies a table's rows.
type key struct {
	By      uint32   `json:"by"` // oid of the constraint, or of an index without one, that sees to it; 0: nothing does
	Columns []string `json:"columns"`
}

// mute is a table or partition whose changed rows the stream would not tell apart.
type mute struct {
	Schema   string `json:"schema"`
	Relation string `json:"relation"`
	Identity string `json:"identity"` // pg_class.relreplident
	Primary  bool   `json:"primary"`  // it has a primary key that could
}

// refusal says what is wrong with the statement that mends it.
func (m mute) refusal() *whence.Error {
	name := sqlName(m.Schema, m.Relation)
	switch {
	case m.Identity == "n":
		return refuse(reasonMute, fmt.Sprintf("%s has REPLICA IDENTITY NOTHING, so the stream would not say which rows change, "+
			"and publishing it would make its updates fail: run ALTER TABLE %s REPLICA IDENTITY DEFAULT", name, name))
	case m.Identity == "i" && m.Primary:
		return refuse(reasonMute, fmt.Sprintf("the index that was the REPLICA IDENTITY of %s is gone, so the stream would not say which rows change, "+
			"and publishing it would make its updates fail: run ALTER TABLE %s REPLICA IDENTITY DEFAULT, which is its primary key", name, name))
	case m.Identity == "i":
		return refuse(reasonMute, fmt.Sprintf("the index that was the REPLICA IDENTITY of %s is gone, so the stream would not say which rows change, "+
			"and publishing it would make its updates fail: run ALTER TABLE %s REPLICA IDENTITY USING INDEX with a unique index over columns that are NOT NULL, "+
			"or ALTER TABLE %s ADD PRIMARY KEY (...), REPLICA IDENTITY DEFAULT", name, name, name))
	}
	return keyless(name)
}

func keyless(name string) *whence.Error {
	return refuse(reasonKeyless, fmt.Sprintf("%s has no primary key (that is not deferrable), so its rows cannot be told apart: "+
		"run ALTER TABLE %s ADD PRIMARY KEY (...), or ALTER TABLE %s REPLICA IDENTITY USING INDEX with a unique index over columns that are NOT NULL",
		name, name, name))
}
