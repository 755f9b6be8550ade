package query

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
)

const waitStep = 40 * time.Millisecond

// waitError means that the snapshot is too old for the request and a later one may do.
type waitError struct{ err error }

func (e waitError) Error() string { return e.err.Error() }
func (e waitError) Unwrap() error { return e.err }

// when runs fn in a snapshot that is new enough for it: it takes new ones while
// fn says waitError, up to the wait limit.
func (e *Engine) when(ctx context.Context, fn func(pgx.Tx) error) error {
	limit := time.NewTimer(e.WaitLimit)
	defer limit.Stop()
	for {
		err := e.inSnapshot(ctx, fn)
		var wait waitError
		if !errors.As(err, &wait) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-limit.C:
			return wait.err
		case <-time.After(waitStep):
		}
	}
}

// current checks what a request demands against one snapshot's state.
func current(ctx context.Context, tx pgx.Tx, state whence.State, tables []whence.Table, c Consistency) error {
	want, err := atLeast(c.AtLeast, sources(tables))
	if err != nil {
		return err
	}
	if err := written(ctx, tx, want.notes); err != nil {
		return err
	}
	for source, lsn := range want.sources {
		s := state.Sources[source]
		if s.LSN >= lsn {
			continue
		}
		return hopeless(s, &whence.Error{Kind: whence.ErrUnavailable, Reason: "NOT_CAUGHT_UP", RetryAfter: time.Second,
			Message:  fmt.Sprintf("source %q is applied up to %s, not yet to %s; try again, or ask without consistency.atLeast", source, s.LSN, lsn),
			Metadata: map[string]string{"source": source, "applied": s.LSN.String(), "wanted": lsn.String()}})
	}
	if c.MaxStaleness == nil {
		return nil
	}
	for _, t := range tables {
		s, known := state.Sources[t.Source]
		if known && s.Lag >= 0 && s.Lag <= *c.MaxStaleness && t.State == whence.TableLive {
			continue
		}
		lag := "unknown"
		if known && s.Lag >= 0 {
			lag = s.Lag.String()
		}
		return hopeless(s, &whence.Error{Kind: whence.ErrPrecondition, Reason: "STALENESS_EXCEEDED", RetryAfter: time.Second,
			Message: fmt.Sprintf("table %q is %s and its capture lags by %s, but at most %s was asked for; try again, or allow more",
				t.Name(), t.State, lag, *c.MaxStaleness),
			Metadata: map[string]string{"table": string(t.Name()), "lag": lag, "state": string(t.State)}})
	}
	return nil
}

// hopeless keeps a request from waiting for a source that only an operator can
// set going again.
func hopeless(s whence.SourceState, err *whence.Error) error {
	if s.Paused || s.Error != "" && !s.Retrying {
		return err
	}
	return waitError{err}
}

// A number that lies far ahead was never given to a transaction; waiting for it
// ends by itself.
const selectUnseen = `
select count(*) from unnest(@xids::text[]) x(id) where not pg_visible_in_snapshot(x.id::xid8, pg_current_snapshot())`

// written checks that the snapshot sees what those transactions wrote.
func written(ctx context.Context, tx pgx.Tx, xids []uint64) error {
	if len(xids) == 0 {
		return nil
	}
	ids := make([]string, len(xids))
	for i, x := range xids {
		ids[i] = strconv.FormatUint(x, 10)
	}
	var unseen int
	if err := tx.QueryRow(ctx, selectUnseen, pgx.NamedArgs{"xids": ids}).Scan(&unseen); err != nil {
		return err
	}
	if unseen == 0 {
		return nil
	}
	return waitError{&whence.Error{Kind: whence.ErrUnavailable, Reason: "NOT_CAUGHT_UP", RetryAfter: time.Second,
		Message:  "the note that consistency.atLeast waits for cannot be seen yet; try again, or ask without consistency.atLeast",
		Metadata: map[string]string{"source": whence.NotesSource}}}
}
