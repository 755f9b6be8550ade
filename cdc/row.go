package cdc

import (
	"fmt"
	"strings"

	"github.com/whence-db/whence"
)

// fill sets the change's row, unchanged columns and old key from the tuples,
// and returns the bytes of values that it copied.
func (r *relation) fill(ch *Change, oldKind byte, old, new tuple) (int, error) {
	n := len(r.message.columns)
	if (new != nil && len(new) != n) || (old != nil && len(old) != n) {
		return 0, fmt.Errorf("a row of %s has %d and %d columns where %d were described", r.sqlName(), len(old), len(new), n)
	}
	size := 0
	if ch.Op == Insert || ch.Op == Update {
		for i, take := range r.take {
			if take && new[i].kind == 'u' && old != nil && old[i].kind != 'u' && (oldKind == 'O' || r.key[i]) {
				new[i] = old[i] // unchanged, and the old row tells what it is
			}
		}
		ch.Row, size = r.values(new, r.take)
		for i, take := range r.take {
			if take && new[i].kind == 'u' {
				if r.key[i] {
					return 0, fmt.Errorf("an updated row of %s came without its key column %q", r.sqlName(), r.message.columns[i].name)
				}
				ch.Unchanged = append(ch.Unchanged, r.message.columns[i].name)
			}
		}
	}
	if ch.Op == Delete || old != nil && r.rekeyed(old, new) {
		var keyBytes int
		ch.OldKey, keyBytes = r.values(old, r.key)
		size += keyBytes
	}
	return size, nil
}

func (r *relation) rekeyed(old, new tuple) bool {
	for i, key := range r.key {
		if key && (old[i].kind != new[i].kind || string(old[i].data) != string(new[i].data)) {
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
