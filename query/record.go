package query

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/index"
)

// Record is a record's head and how far it can be relied on.
type Record struct {
	index.Record
	Freshness whence.Freshness
	Note      *Note // nil when it is a row
}

// Ref names a row.
type Ref struct {
	Table whence.TableName
	Key   whence.Values // every key column, in text form
}

// GetRecord returns the newest captured state of one row within the scope.
func (e *Engine) GetRecord(ctx context.Context, scope authz.Scope, ref Ref) (r Record, err error) {
	err = e.inSnapshot(ctx, func(tx pgx.Tx) (err error) {
		r, err = e.RecordIn(ctx, tx, scope, ref)
		return err
	})
	if err != nil {
		return Record{}, fmt.Errorf("get record: %w", err)
	}
	return r, nil
}

// RecordIn is GetRecord as a transaction sees it.
func (e *Engine) RecordIn(ctx context.Context, tx pgx.Tx, scope authz.Scope, ref Ref) (Record, error) {
	state, err := e.Registry.State(ctx, tx)
	if err != nil {
		return Record{}, err
	}
	return e.record(ctx, tx, state, scope, ref)
}

// GetRecords returns the newest captured states of several rows, all of one
// moment; nil for a row that the scope does not hold.
func (e *Engine) GetRecords(ctx context.Context, scope authz.Scope, refs []Ref) (out []*Record, err error) {
	err = e.inSnapshot(ctx, func(tx pgx.Tx) error {
		out = make([]*Record, len(refs))
		state, err := e.Registry.State(ctx, tx)
		if err != nil {
			return err
		}
		for i, ref := range refs {
			r, err := e.record(ctx, tx, state, scope, ref)
			switch {
			case err == nil:
				out[i] = &r
			case !errors.Is(err, whence.ErrNotFound):
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("get records: %w", err)
	}
	return out, nil
}

// ListVersions returns the captured versions of one row that the scope holds,
// newest first, at most size (1 to 1000), and the token of the next page.
func (e *Engine) ListVersions(ctx context.Context, scope authz.Scope, ref Ref, size int, token string) (out []index.Version, next string, err error) {
	err = e.inSnapshot(ctx, func(tx pgx.Tx) error {
		state, err := e.Registry.State(ctx, tx)
		if err != nil {
			return err
		}
		t, key, err := find(state, scope, ref)
		if err != nil {
			return err
		}
		out, next, err = e.Index.Versions(ctx, tx, scope, t, key, size, token)
		return err
	})
	if err != nil {
		return nil, "", fmt.Errorf("list versions: %w", err)
	}
	return out, next, nil
}

func (e *Engine) record(ctx context.Context, tx pgx.Tx, state whence.State, scope authz.Scope, ref Ref) (Record, error) {
	t, key, err := find(state, scope, ref)
	if err != nil {
		return Record{}, err
	}
	space, err := e.Index.CurrentSpace(ctx, tx)
	if err != nil {
		return Record{}, err
	}
	r, err := e.Index.Record(ctx, tx, scope, t, key, space)
	if err != nil {
		return Record{}, err
	}
	aside, err := e.Registry.SetAside(ctx, tx, t, []whence.Key{key})
	if err != nil {
		return Record{}, err
	}
	f := judgeRecord(r, t, state)
	if aside[key] {
		f = lacking(f)
	}
	out := Record{Record: r, Freshness: f}
	if t.ID != whence.NotesID {
		return out, nil
	}
	notes, err := e.Index.Notes(ctx, tx, scope, state.Tables, map[int64]int32{r.ID: r.Version})
	if n, ok := notes[r.ID]; ok {
		out.Note, out.Freshness = noteOf(n.Columns), rested(f, n)
	}
	return out, err
}

// find resolves a reference to a registered table and a well-formed key.
func find(state whence.State, scope authz.Scope, ref Ref) (whence.Table, whence.Key, error) {
	t, err := table(state, scope, ref.Table, "table")
	if err != nil {
		return t, "", err
	}
	for column, v := range ref.Key {
		if !slices.Contains(t.KeyColumns, column) || v == nil || !clean(*v) {
			return t, "", badKey(t)
		}
	}
	key, err := whence.NewKey(t.KeyColumns, ref.Key)
	if err != nil {
		return t, "", badKey(t)
	}
	return t, key, nil
}

func badKey(t whence.Table) error {
	return whence.Invalid("key", "KEY_INVALID", fmt.Sprintf("the key of %s has the columns %s: give each with its value as text",
		t.Name(), strings.Join(t.KeyColumns, ", ")))
}
