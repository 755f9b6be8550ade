package cdc

import (
	"fmt"
	"strings"

	"github.com/whence-db/whence"
)

// fill sets the change's row, unchanged columns and old key from the tuples,
// and returns the bytes of values that it copied.
func (r *relation) fill(ch *Change, oldKind byte, oldRow, newRow tuple) (int, error) {
	n := len(r.message.columns)
	hasNew, hasOld := ch.Op == Insert || ch.Op == Update, oldKind != 0
	if hasNew && len(newRow) != n || hasOld && len(oldRow) != n {
		return 0, fmt.Errorf("a row of %s has %d and %d columns where %d were described", r.sqlName(), len(oldRow), len(newRow), n)
	}
	size := 0
	if hasNew {
		for i, take := range r.take {
			if take && newRow[i].kind == 'u' && hasOld && oldRow[i].kind != 'u' && (oldKind == 'O' || r.key[i]) {
				newRow[i] = oldRow[i] // unchanged, and the old row tells what it is
			}
		}
		ch.Row, size = r.values(newRow, r.take)
		for i, take := range r.take {
			if take && newRow[i].kind == 'u' {
				if r.key[i] {
					return 0, fmt.Errorf("an updated row of %s came without its key column %q", r.sqlName(), r.message.columns[i].name)
				}
				ch.Unchanged = append(ch.Unchanged, r.message.columns[i].name)
			}
		}
	}
	if ch.Op == Delete || hasOld && r.rekeyed(oldRow, newRow) {
		var keyBytes int
		ch.OldKey, keyBytes = r.values(oldRow, r.key)
		size += keyBytes
	}
	return size, nil
}

func (r *relation) rekeyed(oldRow, newRow tuple) bool {
	for i, key := range r.key {
		if key && (oldRow[i].kind != newRow[i].kind || string(oldRow[i].data) != string(newRow[i].data)) {
			return true
		}
	}
	return false
}

// values copies the picked columns out of the message, in one allocation for
// all their bytes; columns that were not sent are left out.
func (r *relation) values(t tuple, pick []bool) (whence.Values, int) {
	size, count := 0, 0
	for i, p := range pick {
		if p && t[i].kind != 'u' {
			size += len(t[i].data)
			count++
		}
	}
	var b strings.Builder
	b.Grow(size)
	for i, p := range pick {
		if p {
			b.Write(t[i].data)
		}
	}
	all, texts := b.String(), make([]string, 0, count)
	row := make(whence.Values, count)
	for i, p := range pick {
		switch {
		case !p || t[i].kind == 'u':
		case t[i].kind == 'n':
			row[r.message.columns[i].name] = nil
		default:
			texts = append(texts, all[:len(t[i].data)])
			all = all[len(t[i].data):]
			row[r.message.columns[i].name] = &texts[len(texts)-1]
		}
	}
	return row, size
}
