package action

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/authz"
)

// statement is SQL in the making: identifiers come from the catalogue and are quoted,
// values become parameters.
type statement struct {
	strings.Builder
	args [][]byte // nil: SQL null
}

func (s *statement) add(parts ...string) *statement {
	for _, p := range parts {
		s.WriteString(p)
	}
	return s
}

// put writes a parameter, whose type Postgres takes from where it stands.
func (s *statement) put(v *string) *statement {
	if v == nil {
		s.args = append(s.args, nil)
	} else {
		s.args = append(s.args, []byte(*v))
	}
	return s.add("$", strconv.Itoa(len(s.args)))
}

func (s *statement) text(v string) { s.put(&v).add("::text") }

func quoted(name string) string { return pgx.Identifier{name}.Sanitize() }

func of(name string) string { return "t." + quoted(name) }

// relation names the table, without the tables that inherit from it, whose rows have
// keys of their own.
func quotedRelation(schema, name string) string { return pgx.Identifier{schema, name}.Sanitize() }

func relation(t whence.Table, kind string) string {
	only := "only "
	if kind == "p" {
		only = ""
	}
	return only + pgx.Identifier{t.Schema, t.Relation}.Sanitize()
}

// within writes the condition that a row is within the scope; what it means is the
// same as in the index, whose subjects and attributes are the columns' text forms.
func (s *statement) within(scope authz.Scope, t whence.Table) *statement {
	if !scope.AllowsTable(t.Name()) {
		return s.add("false")
	}
	s.add("true")
	all, named, denied := scope.Subjects()
	switch {
	case t.SubjectColumn == "" && !all, !all && len(named) == 0:
		return s.add(" and false")
	case !all:
		s.add(" and ", output(t.SubjectColumn), " in (").list(named).add(")")
	case t.SubjectColumn != "" && len(denied) > 0:
		s.add(" and (", of(t.SubjectColumn), " is null or ", output(t.SubjectColumn), " not in (").list(denied).add("))")
	}
	filter := scope.Filter()
	for _, name := range slices.Sorted(maps.Keys(filter)) {
		if !slices.Contains(t.AttributeColumns, name) {
			return s.add(" and false")
		}
		s.add(" and ", of(name), " is not null and ", output(name), " = ").text(filter[name])
	}
	return s
}

func (s *statement) list(vs []string) *statement {
	for i, v := range vs {
		if i > 0 {
			s.add(", ")
		}
		s.text(v)
	}
	return s
}

// output is a column in the form that capture gets it in, which a cast to text is
// not for every type.
func output(name string) string { return "pg_catalog.format('%s', " + of(name) + ")" }

// equals writes a condition on each column.
func (s *statement) equals(values whence.Values) *statement {
	for i, name := range slices.Sorted(maps.Keys(values)) {
		if i > 0 {
			s.add(" and ")
		}
		if v := values[name]; v == nil {
			s.add(of(name), " is null")
		} else {
			s.add(of(name), " = ").put(v)
		}
	}
	return s
}

// shown writes the list of all columns, and whether the row is within the scope.
func (s *statement) shown(columns []string, scope authz.Scope, t whence.Table) *statement {
	for _, name := range columns {
		s.add(of(name), ", ")
	}
	return s.add("(").within(scope, t).add(")")
}

// selectRows reads rows within the scope; lock keeps them as they are.
func selectRows(c catalogue, t whence.Table, scope authz.Scope, where whence.Values, limit int, lock bool) *statement {
	s := &statement{}
	s.add("select ").shown(c.names(), scope, t).add(" from ", relation(t, c.Kind), " as t where ").equals(where).
		add(" and ").within(scope, t).add(" order by ")
	for i, k := range t.KeyColumns {
		if i > 0 {
			s.add(", ")
		}
		s.add(of(k))
	}
	s.add(fmt.Sprintf(" limit %d", limit))
	if lock {
		s.add(" for update of t")
	}
	return s
}

func insertRow(c catalogue, t whence.Table, scope authz.Scope, row whence.Values, override bool) *statement {
	s := &statement{}
	columns := slices.Sorted(maps.Keys(row))
	s.add("insert into ", pgx.Identifier{t.Schema, t.Relation}.Sanitize(), " as t ")
	if len(columns) == 0 {
		return s.add("default values returning ").shown(c.names(), scope, t)
	}
	s.add("(")
	for i, name := range columns {
		if i > 0 {
			s.add(", ")
		}
		s.add(quoted(name))
	}
	s.add(")")
	if override {
		s.add(" overriding system value")
	}
	s.add(" values (")
	for i, name := range columns {
		if i > 0 {
			s.add(", ")
		}
		s.put(row[name])
	}
	return s.add(") returning ").shown(c.names(), scope, t)
}

func updateRow(c catalogue, t whence.Table, scope authz.Scope, key, set whence.Values) *statement {
	s := &statement{}
	s.add("update ", relation(t, c.Kind), " as t set ")
	for i, name := range slices.Sorted(maps.Keys(set)) {
		if i > 0 {
			s.add(", ")
		}
		s.add(quoted(name), " = ").put(set[name])
	}
	return s.add(" where ").equals(key).add(" returning ").shown(c.names(), scope, t)
}

func deleteRow(c catalogue, t whence.Table, scope authz.Scope, key whence.Values) *statement {
	s := &statement{}
	return s.add("delete from ", relation(t, c.Kind), " as t where ").equals(key).add(" returning ").shown(c.names(), scope, t)
}

// readRow reads a row by its key, within the scope or not.
func readRow(c catalogue, t whence.Table, scope authz.Scope, key whence.Values) *statement {
	s := &statement{}
	return s.add("select ").shown(c.names(), scope, t).add(" from ", relation(t, c.Kind), " as t where ").equals(key)
}
