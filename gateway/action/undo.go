package action

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/authz"
)

// noScope denies everything: for statements that are only prepared.
var noScope authz.Scope

// Undo takes effects of a row action back, the last first, in one transaction: all
// of them or none. action is the version that ran. Each row must be exactly as the
// action left it and within the scope, before and after; what stands against that
// is UNDO_CONFLICT. prepare is as for Run. The result holds what undoing did.
func (r *Runner) Undo(ctx context.Context, action Definition, effects []Effect, scope authz.Scope, prepare func(context.Context, Outcome) error) (Result, error) {
	if action.Row == nil || action.Tier != authz.TierReversible || prepare == nil {
		return Result{}, fmt.Errorf("undo: %q is no reversible action on rows, or what is done would not be written down", action.Name)
	}
	s, err := r.open(ctx, action, scope)
	var stands *whence.Error
	if errors.As(err, &stands) && stands.Reason == "ACTION_INVALID" { // the table is another one by now
		return Result{}, undoConflict("", stands.Err.Error(), nil)
	}
	if err != nil {
		return Result{}, err
	}
	defer s.close(ctx)
	var out Outcome
	for _, e := range slices.Backward(effects) {
		done, err := s.revert(ctx, e)
		if err != nil {
			return Result{}, inTheWay(e, err)
		}
		out.Effects = append(out.Effects, done)
		s.r.step("reverted")
	}
	out.Rows = len(out.Effects)
	if err := s.settle(ctx, &out); err != nil {
		return Result{}, inTheWay(Effect{}, err)
	}
	for i, e := range slices.Backward(effects) {
		if err := s.restored(e, out.Effects[len(effects)-1-i]); err != nil {
			return Result{}, err
		}
	}
	return s.commit(ctx, out, prepare)
}

func undoConflict(key whence.Key, message string, meta map[string]string) error {
	m := maps.Clone(meta)
	if m == nil {
		m = map[string]string{}
	}
	if key != "" {
		m["key"] = string(key)
	}
	return &whence.Error{Kind: whence.ErrPrecondition, Reason: "UNDO_CONFLICT", Metadata: m, Message: "it cannot be undone, and nothing was: " + message}
}

// inTheWay makes of a violated constraint what it means here.
func inTheWay(e Effect, err error) error {
	var v *whence.Error
	if errors.As(err, &v) && v.Reason == "CONSTRAINT_VIOLATED" {
		return undoConflict(e.Key, fmt.Sprintf("the constraint %q stands against it", v.Metadata["constraint"]), v.Metadata)
	}
	return err
}

// revert takes one effect back and returns what that did.
func (s *session) revert(ctx context.Context, e Effect) (Effect, error) {
	if e.Table != whence.RelationName(s.t.Schema, s.t.Relation) || e.Source != s.t.Source {
		return e, fmt.Errorf("undo: an effect on %s of %s is not one of an action on %s", e.Table, e.Source, s.t.Name())
	}
	var q *statement
	done := Effect{Source: e.Source, Table: e.Table, Key: e.Key}
	if e.Kind == Delete {
		done.Kind = Insert
		row, err := s.writable(e)
		if err != nil {
			return e, err
		}
		q = insertRow(s.c, s.t, s.scope, row, true)
	} else {
		key, err := whence.NewKey(s.t.KeyColumns, e.After)
		if err != nil {
			return e, undoConflict(e.Key, "the table has another key by now", nil)
		}
		if err := s.unchanged(ctx, key, e); err != nil {
			return e, err
		}
		done.Key, done.Before = key, e.After
		if e.Kind == Insert {
			done.Kind = Delete
			if err := s.unreferenced(ctx, e); err != nil {
				return e, err
			}
			q = deleteRow(s.c, s.t, s.scope, key.Values())
		} else {
			done.Kind = Update
			set, err := s.former(e)
			if err != nil {
				return e, err
			}
			if len(set) == 0 { // it was written as it had been before
				done.After = e.After
				return done, nil
			}
			q = updateRow(s.c, s.t, s.scope, key.Values(), set)
		}
	}
	one := []Effect{done}
	err := s.write(ctx, []*statement{q}, one)
	return one[0], err
}

// unchanged locks a row that an action wrote and holds it against what that left.
func (s *session) unchanged(ctx context.Context, key whence.Key, e Effect) error {
	rows, err := s.query(ctx, selectRows(s.c, s.t, s.scope, key.Values(), 1, true))
	if err != nil {
		return err
	}
	if len(rows) == 0 { // gone, or outside the scope, which is not told apart
		return undoConflict(key, fmt.Sprintf("the row %s of %s is not there any more", key, s.t.Name()), map[string]string{"missing": "true"})
	}
	return s.compare(key, e.After, rows[0].values, "was changed since, in")
}

// compare names the columns that differ. Values are told of columns that the action
// shows; a digest of another one's would let small values be guessed.
func (s *session) compare(key whence.Key, want, have whence.Values, words string) error {
	columns := differing(want, have)
	if len(columns) == 0 {
		return nil
	}
	meta := map[string]string{"columns": strings.Join(columns, ",")}
	for _, c := range columns {
		if !slices.Contains(s.d.Row.Columns, c) && !slices.Contains(s.t.KeyColumns, c) {
			continue
		}
		for prefix, v := range map[string]*string{"expected.": want[c], "found.": have[c]} {
			if v != nil {
				meta[prefix+c] = *v
			}
		}
	}
	return undoConflict(key, fmt.Sprintf("the row %s of %s %s: %s", key, s.t.Name(), words, strings.Join(columns, ", ")), meta)
}

// writable is a row as it is inserted again: all but what the source works out.
func (s *session) writable(e Effect) (whence.Values, error) {
	row := maps.Clone(e.Before)
	for _, c := range s.c.Columns {
		if _, ok := row[c.Name]; !ok {
			return nil, undoConflict(e.Key, fmt.Sprintf("the table has a column %q by now that the row had not", c.Name), map[string]string{"columns": c.Name})
		}
		if c.Generated {
			delete(row, c.Name)
		}
	}
	for name := range row {
		if _, ok := s.c.column(name); !ok {
			return nil, undoConflict(e.Key, fmt.Sprintf("the table has no column %q any more", name), map[string]string{"columns": name})
		}
	}
	return row, nil
}

// former is what the columns that an update changed were before.
func (s *session) former(e Effect) (whence.Values, error) {
	set := whence.Values{}
	changed := differing(e.Before, e.After)
	for _, name := range changed {
		switch c, ok := s.c.column(name); {
		case !ok || c.Always:
			return nil, undoConflict(e.Key, fmt.Sprintf("the column %q cannot be written", name), map[string]string{"columns": name})
		case !c.Generated:
			set[name] = e.Before[name]
		}
	}
	for _, r := range s.c.References {
		if further(r.OnUpdate) && slices.ContainsFunc(r.Referenced, func(c string) bool { return slices.Contains(changed, c) }) {
			return nil, undoConflict(e.Key, fmt.Sprintf("by the constraint %q it would change rows of another table", r.Name), map[string]string{"constraint": r.Name})
		}
	}
	return set, nil
}

// unreferenced makes sure that no other row would go, or be changed, with one that
// goes. The row is locked, so no new one can come to refer to it.
func (s *session) unreferenced(ctx context.Context, e Effect) error {
	for _, r := range s.c.References {
		if !further(r.OnDelete) {
			continue
		}
		q := &statement{}
		q.add("select exists (select from ", quotedRelation(r.Schema, r.Relation), " as t where ")
		match := whence.Values{}
		null := false
		for i, name := range r.Referenced {
			match[r.Columns[i]] = e.After[name]
			null = null || e.After[name] == nil
		}
		if null { // nothing refers to it
			continue
		}
		q.equals(match).add(")")
		got := s.conn.Conn.Conn().PgConn().ExecParams(ctx, q.String(), q.args, nil, nil, nil).Read()
		if got.Err != nil {
			return s.translate(ctx, got.Err)
		}
		if string(got.Rows[0][0]) == "t" {
			return undoConflict(e.Key, fmt.Sprintf("by the constraint %q rows of another table would go or change with it", r.Name), map[string]string{"constraint": r.Name})
		}
	}
	return nil
}

// restored makes sure that a row is again what it was. Where triggers fire, which by
// the operator's word stay within the row, it is what they make of it.
func (s *session) restored(was, done Effect) error {
	if done.Kind == Delete || len(s.c.triggers(done.Kind)) > 0 {
		return nil
	}
	return s.compare(was.Key, was.Before, done.After, "would not be as before, in")
}
