package action

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/whence-db/whence"
)

// Fate is what became of a transaction on a source.
type Fate string

const (
	// Committed means that it took effect.
	Committed Fate = "COMMITTED"
	// Aborted means that it did not and never will.
	Aborted Fate = "ABORTED"
	// InProgress means that the source has yet to notice that its client is gone.
	InProgress Fate = "IN_PROGRESS"
	// Unknown means that the source cannot tell: it is another one by now, or has
	// forgotten.
	Unknown Fate = "UNKNOWN"
)

const fateSQL = `select coalesce(pg_xact_status($1::text::xid8), '')`

// Fate asks a source what became of a transaction, by what [Outcome] says of it.
func (r *Runner) Fate(ctx context.Context, source, xid, systemID string, timeline int32) (Fate, error) {
	if _, err := strconv.ParseUint(xid, 10, 64); err != nil {
		return Unknown, fmt.Errorf("ask for a transaction's fate: %q is not the id of one", xid)
	}
	w, err := r.registry.Writer(ctx, source)
	if err != nil {
		return Unknown, err
	}
	conn, err := w.Look(ctx)
	if err != nil {
		return Unknown, err
	}
	defer conn.Release()
	// A promoted standby may never have got the transaction, and have given its id to another.
	if systemID == "" || conn.SystemID != systemID || conn.Timeline != timeline {
		return Unknown, nil
	}
	var status string
	err = conn.QueryRow(ctx, fateSQL, xid).Scan(&status)
	var pe *pgconn.PgError
	switch {
	case errors.As(err, &pe) && pe.Code == "22023": // of the future
		return Unknown, nil
	case err != nil:
		return Unknown, w.Translate(ctx, err)
	}
	switch status {
	case "committed":
		return Committed, nil
	case "aborted":
		return Aborted, nil
	case "in progress":
		return InProgress, nil
	}
	return Unknown, nil
}

// Check holds a row action against the live table: what [Definition.Validate] cannot
// know. Other actions pass.
func (r *Runner) Check(ctx context.Context, d Definition) error {
	if d.Row == nil {
		return nil
	}
	s, err := r.begin(ctx, d, noScope)
	if err != nil {
		return err
	}
	defer s.close(ctx)
	if err := s.hold(ctx); err != nil {
		return err
	}
	if len(d.Row.Where) == 0 {
		return nil
	}
	// Whether the columns can be compared, only Postgres knows.
	where := whence.Values{}
	for name := range d.Row.Where {
		where[name] = new(string)
	}
	q := selectRows(s.c, s.t, noScope, where, 1, d.Row.Operation != Select)
	if _, err := s.conn.Conn.Conn().PgConn().Prepare(ctx, "", q.String(), nil); err != nil {
		var pe *pgconn.PgError
		if errors.As(err, &pe) && pe.Code[:2] == "42" {
			return invalid("row.where", "rows of %s cannot be chosen by these columns: %s", s.t.Name(), pe.Message)
		}
		return s.translate(ctx, err)
	}
	return nil
}
