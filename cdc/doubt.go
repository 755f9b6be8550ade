package cdc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"github.com/whence-db/whence"
)

// strayed in place of shape.Named is like no table's, and passing in place of where
// a partition's rows are is like no partition's.
const (
	strayed = ""
	passing = ""
)

// stray spoils the shape of tables whose changes come under another name than they
// are registered by. A session goes on with the name that it was told first, so
// this one ends.
func (a *applier) stray(ctx context.Context, r *relation) error {
	at := a.begin.final
	// A snapshot that was taken since, or is yet to be, shows them. The comparing that
	// one change has led to shows the whole transaction.
	missed := slices.DeleteFunc(slices.Clone(r.strays), func(t whence.Table) bool {
		return at < t.Snapshot || at <= a.c.strays[failure{t.ID, t.Definition}]
	})
	if len(missed) == 0 {
		return nil
	}
	err := a.spoil(ctx, missed, func(looks *shape) { looks.Named = strayed })
	if errors.Is(err, errAgain) {
		for _, t := range missed {
			a.c.strays[failure{t.ID, t.Definition}] = at
		}
	}
	return err
}

// leaf spoils the shape of a table that the row was written to by way of a partition
// that its shape does not hold: it may have been detached since, and with it rows
// that the stream has told. The source describes a partition right after the table
// that its rows come under, and only then.
func (a *applier) leaf(ctx context.Context, r *relation, told uint32) error {
	if told == 0 || told == r.message.id || a.begin.final < r.table.Snapshot {
		return nil
	}
	known := r.set.leaves[r.table.ID]
	name := strconv.FormatUint(uint64(told), 10)
	if _, is := known[name]; is || known == nil {
		return nil
	}
	return a.spoil(ctx, []whence.Table{r.table}, func(looks *shape) { looks.Leaves[name] = passing })
}

// spoil makes shapes differ from every one that the catalogue may tell, durably
// before a checkpoint can pass what they missed. Until the catalogue has been asked
// what became of the tables, nothing is proven.
func (a *applier) spoil(ctx context.Context, tables []whence.Table, spoil func(*shape)) error {
	if _, err := a.giveUp(ctx); err != nil {
		return err
	}
	a.c.looks.Lock()
	defer a.c.looks.Unlock()
	for _, t := range tables {
		looks, err := parseShape(t.Shape)
		if err != nil {
			return err
		}
		spoil(&looks)
		text, err := json.Marshal(looks)
		if err != nil {
			return err
		}
		if err := a.c.sink.Saw(ctx, t.ID, t.Definition, string(text)); err != nil {
			return fmt.Errorf("record that the rows of %s are in doubt: %w", t.Name(), err)
		}
	}
	a.c.Poke()
	return errAgain
}
