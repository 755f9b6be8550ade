package cdc

import (
	"context"
	"fmt"
	"slices"

	"github.com/whence-db/whence"
)

// relationName is how the source calls a table.
type relationName struct{ schema, name string }

// tableSet is one reading of the registered tables; it never changes.
type tableSet struct {
	list   []whence.Table
	byName map[relationName]whence.Table
	// byRelation are those whose rows are stored or being copied, by the relation
	// that they are from, and by each above it.
	byRelation map[uint32][]whence.Table
	leaves     map[int32]map[string]string // of the same, by table: shape.Leaves
}

// readTables asks the sink for the tables and makes them what the applier goes
// by. A backfill takes its snapshot only after that, so every change beyond the
// snapshot is applied by the definition that the backfill uses.
func (c *Capture) readTables(ctx context.Context) (*tableSet, error) {
	c.refresh.Lock()
	defer c.refresh.Unlock()
	list, err := c.sink.Tables(ctx)
	if err != nil {
		return nil, fmt.Errorf("read the registered tables: %w", err)
	}
	set := &tableSet{list: list, byName: make(map[relationName]whence.Table, len(list)), byRelation: map[uint32][]whence.Table{}, leaves: map[int32]map[string]string{}}
	for _, t := range list {
		set.byName[relationName{t.Schema, t.Relation}] = t
	}
	for _, t := range list {
		if t.Shape == "" || failedState(t.State) {
			continue
		}
		looks, err := parseShape(t.Shape)
		if err != nil {
			return nil, err
		}
		if looks.Named == strayed {
			continue
		}
		set.leaves[t.ID] = looks.Leaves
		set.byRelation[looks.Relation] = append(set.byRelation[looks.Relation], t)
		for _, a := range looks.Above {
			set.byRelation[a.Relation] = append(set.byRelation[a.Relation], t)
		}
	}
	c.tables.Store(set)
	return set, nil
}

// has tells whether a relation is registered and not failed, by its name in SQL.
func (s *tableSet) has(name string) bool {
	return slices.ContainsFunc(s.list, func(t whence.Table) bool { return sqlName(t.Schema, t.Relation) == name && !failedState(t.State) })
}

func failedState(s whence.TableState) bool {
	return s == whence.TableSchemaChanged || s == whence.TableBroken
}

// failure is one definition that the stream cannot serve.
type failure struct {
	table      int32
	definition int32
}

// relation maps the columns that the stream sends to those that are wanted.
type relation struct {
	message relationMessage
	at      whence.LSN // the last transaction that it was so in
	set     *tableSet  // that table was taken from
	table   whence.Table
	wanted  bool
	strays  []whence.Table // whose rows these may be, under another name than they are registered by
	take    []bool         // by position: wanted
	key     []bool         // by position: a key column
	before  *relation      // what it was until its last description; nil once a fault found by comparing is reported
	fault   misfit         // of every row
}

// misfit is why a row cannot be taken over; with an empty message it can. Deletes
// are still applied unless keyless.
type misfit struct {
	message string
	state   whence.TableState // what that makes the table
	keyless bool
}

// resolve maps a relation, as it is in the transaction at, by column name. before
// is what it was until now; it may be nil.
func resolve(m relationMessage, at whence.LSN, set *tableSet, before *relation) *relation {
	r := &relation{message: m, at: at, set: set, before: before}
	if before != nil {
		before.before = nil // else each would keep all that were
	}
	r.table, r.wanted = set.byName[relationName{m.schema, m.name}]
	if !r.wanted {
		r.strays = set.byRelation[m.id]
		return r
	}
	r.take, r.key = make([]bool, len(m.columns)), make([]bool, len(m.columns))
	wanted := r.table.Columns()
	found := 0
	for i, col := range m.columns {
		r.take[i] = slices.Contains(wanted, col.name)
		r.key[i] = slices.Contains(r.table.KeyColumns, col.name)
		if r.take[i] {
			found++
		}
	}
	if found < len(wanted) {
		r.missing(wanted)
	}
	for i, col := range m.columns {
		if r.key[i] && !col.key {
			r.fault.keyless = true
			r.fail(whence.TableSchemaChanged, fmt.Sprintf("the source no longer sends the key column %q with deleted rows: "+
				"run ALTER TABLE %s REPLICA IDENTITY DEFAULT (with a primary key) or FULL, then register the table again", col.name, r.sqlName()))
		}
	}
	// What it was before the snapshot says nothing of the rows that are stored.
	if before != nil && before.wanted && before.table.ID == r.table.ID && before.table.Definition == r.table.Definition && before.at >= r.table.Snapshot {
		r.retyped(before)
	}
	return r
}

func (r *relation) sqlName() string { return sqlName(r.message.schema, r.message.name) }

func (r *relation) fail(state whence.TableState, message string) {
	if r.fault.message == "" {
		r.fault.state, r.fault.message = state, message
	}
}

// misfit says why this row cannot be taken over. A key may be null once something
// else identifies the rows.
func (r *relation) misfit(oldKind byte, oldRow, newRow tuple) misfit {
	if r.fault.message != "" {
		return r.fault
	}
	for i, key := range r.key {
		if key && (i < len(newRow) && newRow[i].kind == 'n' || oldKind != 0 && i < len(oldRow) && oldRow[i].kind == 'n') {
			return misfit{state: whence.TableSchemaChanged, keyless: true, message: fmt.Sprintf("a row of %s has no value in the key column %q: "+
				"see that the table has a primary key (ALTER TABLE %s ADD PRIMARY KEY), then register it again", r.sqlName(), r.message.columns[i].name, r.sqlName())}
		}
	}
	return misfit{}
}

func (r *relation) missing(wanted []string) {
	for _, name := range wanted {
		if slices.ContainsFunc(r.message.columns, func(c relationColumn) bool { return c.name == name }) {
			continue
		}
		if slices.Contains(r.table.KeyColumns, name) {
			r.fault.keyless = true
		}
		r.fail(whence.TableSchemaChanged, fmt.Sprintf("the column %q of %s was dropped or renamed: "+
			"bring it back or leave it out, and register the table again", name, r.sqlName()))
	}
}

// retyped notices a rewrite, which the stream does not repeat row by row.
func (r *relation) retyped(before *relation) {
	for i, col := range r.message.columns {
		if !r.take[i] {
			continue
		}
		for _, old := range before.message.columns {
			if old.name == col.name && old.typeOID != col.typeOID {
				r.fail(whence.TableSchemaChanged, fmt.Sprintf("the type of the column %q of %s was changed, "+
					"so its rows may read otherwise now: register the table again", col.name, r.sqlName()))
			}
		}
	}
}
