package cdc

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"golang.org/x/sync/errgroup"
)

// Run follows the source until ctx ends, and connects again by itself. It
// returns ctx's error, or a *BrokenError that an operator must mend. When it
// returns, every goroutine and connection of it is gone. It may run only once.
func (c *Capture) Run(ctx context.Context) error {
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return c.stream(gctx) })
	g.Go(func() error { return c.tend(gctx) })
	err := g.Wait()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// errAgain ends a session that is to be opened again at once.
var errAgain = errors.New("the stream starts over")

// stream opens sessions until one fails for good.
func (c *Capture) stream(ctx context.Context) error {
	const shortest = 100 * time.Millisecond
	pause := shortest
	var inUse time.Time // since when another connection reads the slot; zero: none does
	for {
		began := c.cfg.Now()
		err := c.follow(ctx)
		var broken *BrokenError
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.As(err, &broken):
			return err
		case errors.Is(err, errAgain):
			continue
		case c.cfg.Now().Sub(began) > c.cfg.MaximumBackoff:
			pause = shortest
		}
		c.unpublished = c.unpublished || isCode(err, codeUndefinedObject)
		if !isCode(err, codeInUse) {
			inUse = time.Time{}
		} else {
			pause = shortest
			if inUse.IsZero() {
				inUse = began
			}
			if c.cfg.Now().Sub(inUse) >= c.cfg.Predecessor {
				c.endReader(ctx)
			}
		}
		c.cfg.Status(err)
		jitter := rand.N(pause) //nolint:gosec // only spreads attempts
		if err := sleep(ctx, pause/2+jitter); err != nil {
			return err
		}
		pause = min(2*pause, c.cfg.MaximumBackoff)
	}
}

// endReader ends the connection that reads the slot: a predecessor that is dead,
// which usually goes away within moments, or has lost the source to us.
func (c *Capture) endReader(ctx context.Context) {
	conn, err := c.connect(ctx)
	if err != nil {
		return // whatever it is, the next attempt meets it too
	}
	defer closeConn(ctx, conn.PgConn())
	if _, err := conn.Exec(ctx, endReaderSQL, pgx.NamedArgs{"slot": c.cfg.Slot}); err != nil {
		c.log.WarnContext(ctx, "cannot end the connection that still reads the replication slot", "error", err)
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// Codes of Postgres's that decide what is done next.
const (
	codeInUse           = "55006" // object_in_use: another connection reads the slot
	codeUndefinedColumn = "42703"
	codeUndefinedTable  = "42P01"
	codeUndefinedObject = "42704"
	codeDuplicateObject = "42710"
	codeDenied          = "42501"
	codeLimit           = "54000" // program_limit_exceeded
	codeInternal        = "XX000"
	classData           = "22" // a value that has no text in UTF8, say
)

func isCode(err error, code string) bool {
	var pe *pgconn.PgError
	return errors.As(err, &pe) && pe.Code == code
}

// permanent tells a refusal that trying again will not change from trouble
// with the connection, the load or another session.
func permanent(err error) (*pgconn.PgError, bool) {
	var pe *pgconn.PgError
	if !errors.As(err, &pe) || len(pe.Code) != 5 {
		return nil, false
	}
	switch pe.Code[:2] {
	case "0A", "22", "23", "42", "3F":
		return pe, true
	}
	return pe, pe.Code == "55000" || tooLarge(pe)
}

// tooLarge tells that a row's text would be larger than Postgres can make it, 1 GB.
func tooLarge(pe *pgconn.PgError) bool {
	return pe.Code == codeLimit || pe.Code == codeInternal && strings.HasPrefix(pe.Message, "invalid memory alloc request size")
}

// unsendable makes an error within the stream that comes again for as long as
// the log is read one that says how to go on.
func (c *Capture) unsendable(pe *pgconn.PgError) error {
	var mend string
	switch {
	case tooLarge(pe):
		mend = "make it smaller, or have an owner publish its table with a list of columns that leaves it out"
	case strings.HasPrefix(pe.Code, classData):
		mend = "correct it"
	default:
		return pe
	}
	at := ""
	if _, lsn, ok := strings.Cut(pe.Where, "associated LSN "); ok {
		at = " at " + strings.TrimRight(lsn, " .\n")
	}
	return &BrokenError{Message: fmt.Sprintf("the source cannot send a value of a change%s (%s): %s; then run "+
		"SELECT pg_drop_replication_slot('%s') in the source and resume the source: its tables are then compared with what is stored, "+
		"and one that still holds such a value in a registered column fails alone", at, pe.Message, mend, c.cfg.Slot)}
}
