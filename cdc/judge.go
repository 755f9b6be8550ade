package cdc

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
)

// verdict is what a changed shape means for the rows that are stored.
type verdict struct {
	state whence.TableState // SCHEMA_CHANGED when an operator must decide
	again bool              // the rows are to be compared with the source's
	leaf  []string          // partitions that are new: nothing is to be done unless they hold rows
	why   string
}

// judge compares how a table looked when its rows were copied with how it looks
// now. The zero verdict means that the difference does not matter.
func judge(table whence.Table, before, now shape) verdict {
	name := sqlName(table.Schema, table.Relation)
	changed := func(format string, args ...any) verdict {
		return verdict{state: whence.TableSchemaChanged, why: fmt.Sprintf(format, args...)}
	}
	if before.Relation != now.Relation {
		return changed("another table bears the name %s now: register the table again", name)
	}
	for _, column := range slices.Sorted(maps.Keys(before.Columns)) {
		b := before.Columns[column]
		n, still := now.Columns[column]
		switch {
		case !still:
			return changed("the column %q of %s was dropped or renamed: bring it back or leave it out, and register the table again", column, name)
		case n.Number != b.Number:
			return changed("the column %q of %s is another one than before: register the table again", column, name)
		case n.Generated != b.Generated:
			return changed("the column %q of %s is generated now, and the source does not send generated values: leave it out, and register the table again", column, name)
		case n.Type != b.Type:
			return changed("the type of the column %q of %s was changed, so its rows may read otherwise now: register the table again", column, name)
		}
	}
	if why, fits := judgeKey(table, now); !fits {
		return changed("%s", why)
	}
	return judgeRows(name, before, now)
}

// judgeKey says why two rows of the source may be one here, and the other way round.
func judgeKey(table whence.Table, now shape) (why string, fits bool) {
	name := sqlName(table.Schema, table.Relation)
	switch {
	case slices.Equal(now.Key.Columns, table.KeyColumns):
		return "", true
	case len(now.Key.Columns) == 0:
		return keyless(name).Message + "; then register the table again", false
	case strings.Contains(now.Identity, "i"):
		return fmt.Sprintf("the rows of %s are identified by (%s) now, not by (%s): register the table again, for its primary key after ALTER TABLE %s REPLICA IDENTITY DEFAULT",
			name, columnList(now.Key.Columns), columnList(table.KeyColumns), name), false
	}
	return fmt.Sprintf("the rows of %s are identified by (%s) now, not by (%s): register the table again",
		name, columnList(now.Key.Columns), columnList(table.KeyColumns)), false
}

func columnList(columns []string) string {
	var list []string
	for _, c := range columns {
		list = append(list, pgx.Identifier{c}.Sanitize())
	}
	return strings.Join(list, ", ")
}

// judgeRows finds what makes stored rows doubtful although the definition fits.
func judgeRows(name string, before, now shape) verdict {
	again := func(format string, args ...any) verdict {
		return verdict{again: true, why: fmt.Sprintf(format, args...)}
	}
	if before.Named != now.Named {
		return again("changes of %s came under another name for a while: its own, its schema's, or that of a table that it is a partition of", name)
	}
	if before.Key.By != now.Key.By {
		return again("the key of %s was made anew, and rows may have shared one in between", name)
	}
	for column, b := range before.Columns {
		n := now.Columns[column]
		for oid, label := range b.Labels {
			if n.Labels[oid] != label {
				return again("a value of the enum type of %s.%q was renamed", name, column)
			}
		}
		if n.Changed != b.Changed { // by a rewrite of its values, or two renamings, as far as one can tell
			return again("the column %q of %s was altered, so its values may read otherwise now", column, name)
		}
		if string(b.Fields) != string(n.Fields) {
			return again("the composite type of %s.%q was changed", name, column)
		}
	}
	if string(before.Publication) != string(now.Publication) {
		return again("the publication of %s was altered, so changes may be missing", name)
	}
	for leaf, stored := range before.Leaves {
		after, still := now.Leaves[leaf]
		switch {
		case stored == passing:
			return again("rows of %s were written to a partition that it did not have before, or has no more", name)
		case !still:
			return again("a partition of %s was detached or dropped", name)
		case after != stored && leaf != strconv.FormatUint(uint64(now.Relation), 10):
			// The stream of the root does not tell that one partition was truncated,
			// or what was done to it while it was detached.
			return again("a partition of %s was truncated, rewritten, or detached and attached again", name)
		}
	}
	var v verdict
	for _, leaf := range slices.Sorted(maps.Keys(now.Leaves)) {
		if _, known := before.Leaves[leaf]; !known {
			v.leaf = append(v.leaf, leaf)
			v.why = fmt.Sprintf("a partition that holds rows was attached to %s", name)
		}
	}
	return v
}
