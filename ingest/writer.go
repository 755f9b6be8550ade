package ingest

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/cdc"
)

// Writer is the way to change rows of a source. It is safe for concurrent use; the
// registry owns its connections.
type Writer struct {
	source Source
	from   *cdc.Writer
	r      *Registry
}

// Write is a connection to a source that somebody may write on, and gives back by Release.
type Write struct {
	*pgxpool.Conn
	SystemID string // of the cluster that it leads to; empty: the source does not tell
	Timeline int32
}

// sourceWriter is made anew when the connection string is another.
type sourceWriter struct {
	dsn string
	*cdc.Writer
}

// Writer returns the way to change rows of a source; SOURCE_NOT_FOUND, SOURCE_DELETING.
func (r *Registry) Writer(ctx context.Context, source string) (*Writer, error) {
	s, err := r.GetSource(ctx, source)
	if err != nil {
		return nil, err
	}
	if s.deleting {
		return nil, deletingError(source)
	}
	dsn, err := r.dsn(s.Name, s.secrets)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	old := r.writers[s.ID]
	if old != nil && old.dsn == dsn {
		return &Writer{s, old.Writer, r}, nil
	}
	fresh, err := cdc.NewWriter(dsn)
	if err != nil {
		return nil, unwritable(source)
	}
	if old != nil {
		r.closing.Go(old.Close) // waits for those who still write
	}
	r.writers[s.ID] = &sourceWriter{dsn, fresh}
	return &Writer{s, fresh, r}, nil
}

// Acquire takes a connection to the primary that is captured; another cluster, or
// another branch of its history, is SOURCE_UNREACHABLE. Nothing that a connection
// string holds is in its errors.
func (w *Writer) Acquire(ctx context.Context) (*Write, error) {
	c, err := w.Look(ctx)
	if err != nil {
		return nil, err
	}
	s := w.source
	if known := s.SystemID != "" && c.SystemID != ""; known && (s.SystemID != c.SystemID || s.timeline != c.Timeline) {
		c.Release()
		return nil, w.Translate(ctx, fmt.Errorf("this server is of timeline %d of cluster %s, and capture of timeline %d of cluster %s",
			c.Timeline, c.SystemID, s.timeline, s.SystemID))
	}
	return c, nil
}

// Look takes a connection to whichever primary the connection string leads to now,
// to ask it what became of a transaction.
func (w *Writer) Look(ctx context.Context) (*Write, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	conn, at, err := w.from.Acquire(ctx)
	if err != nil {
		return nil, w.Translate(ctx, err)
	}
	return &Write{conn, at.System, at.Timeline}, nil
}

// Flush returns once the source's log is on disk up to a position.
func (w *Writer) Flush(ctx context.Context, upTo whence.LSN) error {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	if err := w.from.Flush(ctx, upTo); err != nil {
		return w.Translate(ctx, err)
	}
	return nil
}

// Translate says what lost contact with the source, or its refusal, means for a
// caller; the log has the rest.
func (w *Writer) Translate(ctx context.Context, err error) error {
	name := w.source.Name
	w.r.log.WarnContext(ctx, "cannot write to a source", "source", name, "error", err)
	e := unwritable(name)
	var pe *pgconn.PgError
	switch {
	case !errors.As(err, &pe):
	case pe.Code == "55000" || pe.Code == "25006": // it is in recovery, or was made read-only
		e.Kind, e.Reason, e.RetryAfter = whence.ErrPrecondition, "SOURCE_READ_ONLY", 0
		e.Message = fmt.Sprintf("the source %q takes no writes: its connection string must lead to the primary, as a role that may write", name)
	case refuses(pe.Code):
		e.Kind, e.Reason, e.RetryAfter = whence.ErrPrecondition, "SOURCE_REFUSED", 0
		e.Message = fmt.Sprintf("the source %q does not let the server in, or do what an action needs: the server's log says what an operator is to mend", name)
	}
	return e
}

func unwritable(source string) *whence.Error {
	return &whence.Error{Kind: whence.ErrUnavailable, Reason: "SOURCE_UNREACHABLE", RetryAfter: 5 * time.Second,
		Metadata: map[string]string{"source": source},
		Message:  fmt.Sprintf("the rows of the source %q cannot be written at the moment; try again", source)}
}

// Table returns a registered table without its status; ok is false when there is none.
func (r *Registry) Table(ctx context.Context, name whence.TableName) (t whence.Table, ok bool, err error) {
	source, _, _, named := name.Parts()
	if !named {
		return t, false, nil
	}
	tables, err := readTables(ctx, r.pool, source)
	for _, i := range tables {
		if i.Name() == name {
			return i.Table, true, nil
		}
	}
	return t, false, err
}
