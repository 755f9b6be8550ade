package action

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/whence-db/whence"
)

// translate says what the source's refusal means for the caller. What Postgres adds
// in words may hold values of rows that the caller is not to see, so it stays in the log.
func (s *session) translate(ctx context.Context, err error) error {
	var known *whence.Error
	if errors.As(err, &known) {
		return err
	}
	var pe *pgconn.PgError
	if !errors.As(err, &pe) {
		if ctx.Err() != nil {
			return fmt.Errorf("run an action: %w", err)
		}
		return s.w.Translate(ctx, err)
	}
	table := string(s.t.Name())
	switch class := pe.Code[:2]; {
	case class == "23":
		return s.violated(pe)
	case class == "22":
		return &whence.Error{Kind: whence.ErrInvalid, Reason: "ARGUMENTS_INVALID", Field: "arguments", Err: err,
			Message: "a value does not fit its column in " + table + ": give one of the column's type"}
	case pe.Code == "55P03", pe.Code == "57014":
		return &whence.Error{Kind: whence.ErrAborted, Reason: "ROW_LOCKED", RetryAfter: time.Second, Err: err, Metadata: map[string]string{"table": table},
			Message: "somebody else holds a row that the action needs, or the source is too slow, so nothing was done: try again"}
	case class == "40":
		return &whence.Error{Kind: whence.ErrAborted, Reason: "WRITE_CONFLICT", RetryAfter: 100 * time.Millisecond, Err: err, Metadata: map[string]string{"table": table},
			Message: "somebody else wrote to the same rows at the same time, so nothing was done: try again"}
	case class == "P0":
		return &whence.Error{Kind: whence.ErrPrecondition, Reason: "TRIGGER_REFUSED", Err: err, Metadata: map[string]string{"table": table},
			Message: "a trigger of " + table + " refuses this, so nothing was done; do not try the same again. The server's log has its words"}
	case pe.Code == "42501", pe.Code == "25006", pe.Code == "55000", class == "57", class == "08", pe.Code == "25P03":
		return s.w.Translate(ctx, err)
	case class == "42":
		return &whence.Error{Kind: whence.ErrPrecondition, Reason: "ACTION_INVALID", Field: "row", Err: err, Metadata: map[string]string{"table": table},
			Message: fmt.Sprintf("the action %q does not fit the table %s (any more): an operator is to register it anew. The source says: %s", s.d.Name, table, pe.Message)}
	}
	return fmt.Errorf("run an action on %s: %w", table, err)
}

func (s *session) violated(pe *pgconn.PgError) *whence.Error {
	kinds := map[string]string{"23502": "needs a value", "23503": "refers to a row, or is referred to by one", "23505": "must be unlike those of every other row", "23514": "must meet a condition", "23P01": "must not overlap another row"}
	meta := map[string]string{"table": string(s.t.Name())}
	for k, v := range map[string]string{"constraint": pe.ConstraintName, "column": pe.ColumnName, "relation": pe.TableName} {
		if v != "" {
			meta[k] = v
		}
	}
	what, ok := kinds[pe.Code]
	if !ok {
		what = "must keep to a constraint"
	}
	name := pe.ConstraintName
	if name == "" {
		name = pe.ColumnName
	}
	return &whence.Error{Kind: whence.ErrPrecondition, Reason: "CONSTRAINT_VIOLATED", Metadata: meta, Err: pe,
		Message: fmt.Sprintf("a row of %s %s (%s), so nothing was done: give other values", s.t.Name(), what, name)}
}

// blame finds the value that a statement failed for; Postgres does not tell. It ends
// the transaction.
func (s *session) blame(ctx context.Context, q Request, where, set whence.Values, failed error) error {
	var known *whence.Error
	if !errors.As(failed, &known) || known.Reason != "ARGUMENTS_INVALID" || s.tx.Rollback(ctx) != nil {
		return failed
	}
	for field, values := range map[string]whence.Values{"row.where": where, "row.set": set} {
		for _, name := range slices.Sorted(maps.Keys(values)) {
			c, ok := s.c.column(name)
			if v := values[name]; v == nil || !ok || s.takes(ctx, c, *v) {
				continue
			}
			operand := q.Action.Row.Where[name]
			if field == "row.set" {
				operand = q.Action.Row.Set[name]
			}
			known.Metadata = map[string]string{"column": name, "type": c.Type}
			if operand.Parameter == "" {
				known.Kind, known.Reason, known.Field = whence.ErrPrecondition, "ACTION_INVALID", field+"."+name
				known.Message = fmt.Sprintf("the action %q has a value for the column %q that does not fit its type %s: an operator is to register it anew", q.Action.Name, name, c.Type)
				return known
			}
			known.Field = "arguments." + operand.Parameter
			known.Message = fmt.Sprintf("arguments.%s does not fit the column %q, which is of type %s", operand.Parameter, name, c.Type)
			return known
		}
	}
	return failed
}

// takes tells whether a value fits a column.
func (s *session) takes(ctx context.Context, c liveColumn, v string) bool {
	if c.Length > 0 && utf8.RuneCountInString(strings.TrimRight(v, " ")) > c.Length {
		return false
	}
	r := s.conn.Conn.Conn().PgConn().ExecParams(ctx, "select $1::"+c.Type, [][]byte{[]byte(v)}, nil, nil, nil).Read()
	return r.Err == nil
}
