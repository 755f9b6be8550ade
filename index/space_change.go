package index

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/internal/pg"
)

const createSpaceSQL = `
insert into whence.spaces (model, dimensions, current) select @model, @dimensions, not exists (select from whence.spaces)
where not exists (select from whence.spaces where model = @model and dimensions = @dimensions)
returning id, model, dimensions`

// CreateSpace makes a space for a model, which fillers that have the model keep
// full from then on. Questions are asked in it once it is switched to.
func (x *Index) CreateSpace(ctx context.Context, m Model) (Space, error) {
	s, err := readSpace(x.pool.QueryRow(ctx, createSpaceSQL, pgx.NamedArgs{"model": m.Name(), "dimensions": m.Dimensions()}))
	var known *pgconn.PgError
	if err == nil && s.ID == 0 || errors.As(err, &known) && known.Code == "23505" {
		return Space{}, &whence.Error{Kind: whence.ErrExists, Reason: "SPACE_EXISTS",
			Message: fmt.Sprintf("there is a space of %q with %d dimensions, or one that is still being deleted; whence space list shows it", m.Name(), m.Dimensions())}
	}
	return s, err
}

const (
	// switchLock, with a space's ID, is shared by whoever gives texts their first
	// vectors in that space: see SwitchSpace.
	switchLock = 0x7768656e
	// switchWithin texts are waited for, while they become fewer within switchStall
	// and as long as switchWait.
	switchWithin = 1000
	switchStall  = 2 * time.Second
	switchWait   = 15 * time.Second
	switchPoll   = 50 * time.Millisecond

	selectSpace = `select id, model, dimensions, current, retired_at is not null from whence.spaces where id = @id`
	// What can be found by its vector now, and could not be after the switch.
	selectLacking = `
select count(*) from whence.vectors o
where o.space_id = @old and o.embedding is not null
  and not exists (select from whence.vectors n where n.space_id = @new and n.digest = o.digest and n.embedding is not null)
  and exists (select from whence.chunks c where c.digest = o.digest)`
	leaveSpace = `update whence.spaces set current = false where id = @old and current`
	enterSpace = `update whence.spaces set current = true where id = @new and retired_at is null`
)

// SwitchSpace makes a space the current one: every question from then on is asked
// in it. A text that has its vector in the old space and none in the new could no
// longer be found by its vector, so such a switch is refused as SPACE_INCOMPLETE,
// unless it is forced.
//
// Between the last look and the switch no text may get a vector in the old space
// alone. Its fillers are held up meanwhile; writers and questions are not. What
// has a vector in the old space then has one in the new, so it does not matter by
// which of the two a writer judges that a superseded chunk is needed no more.
func (x *Index) SwitchSpace(ctx context.Context, id int16, force bool) error {
	err := pg.InTx(ctx, x.pool, func(tx pgx.Tx) error {
		old, err := x.CurrentSpace(ctx, tx)
		if err != nil {
			return err
		}
		next, current, err := findSpace(ctx, tx, id)
		if err != nil || current {
			return err
		}
		args := pgx.NamedArgs{"class": switchLock, "old": old.ID, "new": next.ID}
		if !force {
			if err := overtake(ctx, tx, next, args); err != nil {
				return err
			}
		}
		for _, step := range []string{leaveSpace, enterSpace} {
			tag, err := tx.Exec(ctx, step, args)
			if err != nil {
				return err
			}
			if tag.RowsAffected() == 0 {
				return &whence.Error{Kind: whence.ErrAborted, Reason: "SPACES_CHANGED", RetryAfter: time.Second,
					Message: "another switch or deletion came in between; look at whence space list and try again"}
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("switch space: %w", err)
	}
	return nil
}

// overtake holds the old space's fillers up until the new space has all that the
// old one has; they go on when the transaction ends.
func overtake(ctx context.Context, tx pgx.Tx, next Space, args pgx.NamedArgs) error {
	lacking := func() (n int64, err error) {
		err = tx.QueryRow(ctx, selectLacking, planned, args).Scan(&n)
		return n, err
	}
	n, err := lacking()
	if err != nil {
		return err
	}
	if n > switchWithin {
		return incomplete(next, n)
	}
	if _, err := tx.Exec(ctx, `select pg_advisory_xact_lock(@class::int, @old::int)`, args); err != nil {
		return err
	}
	began := time.Now()
	for fewest, since := n, began; ; {
		if n, err = lacking(); err != nil || n == 0 {
			return err
		}
		if n < fewest {
			fewest, since = n, time.Now()
		}
		if time.Since(since) > switchStall || time.Since(began) > switchWait {
			return incomplete(next, n)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(switchPoll):
		}
	}
}

func incomplete(s Space, n int64) error {
	return &whence.Error{Kind: whence.ErrPrecondition, Reason: "SPACE_INCOMPLETE",
		Message: fmt.Sprintf("%d texts that can be found by their vectors have none yet in space %d (%s): wait until it is full, "+
			"see whence space list for why it may not be, or force the switch", n, s.ID, s.Model),
		Metadata: map[string]string{"lacking": strconv.FormatInt(n, 10)}}
}

// findSpace reads a space that is not being deleted, and whether it is current.
func findSpace(ctx context.Context, tx pgx.Tx, id int16) (s Space, current bool, err error) {
	var retired bool
	err = tx.QueryRow(ctx, selectSpace, pgx.NamedArgs{"id": id}).Scan(&s.ID, &s.Model, &s.Dimensions, &current, &retired)
	if errors.Is(err, pgx.ErrNoRows) || err == nil && retired {
		err = NoSpace(id)
	}
	return s, current, err
}

// NoSpace is the error about a space that is not there.
func NoSpace(id int16) error {
	return &whence.Error{Kind: whence.ErrNotFound, Reason: "SPACE_NOT_FOUND", Field: "id",
		Message: fmt.Sprintf("there is no space %d, or it is being deleted; whence space list shows those there are", id)}
}

const (
	retireSpace    = `update whence.spaces set retired_at = now() where id = @id and not current`
	retireSegments = `delete from whence.segments where space_id = @id`
	selectRetired  = `select id from whence.spaces where retired_at is not null`
	deleteSome     = `
delete from whence.vectors where ctid = any(array(select ctid from whence.vectors where space_id = @id limit 10000))`
	// Whoever asked for vectors in it while it lived has ended once this is had.
	lockRetired = `select from whence.spaces where id = @id and retired_at is not null for update`
	deleteSpace = `delete from whence.spaces where id = @id`
)

// DeleteSpace takes a space out of use for good. Fillers delete its vectors.
func (x *Index) DeleteSpace(ctx context.Context, id int16) error {
	err := pg.InTx(ctx, x.pool, func(tx pgx.Tx) error {
		s, _, err := findSpace(ctx, tx, id)
		if err != nil {
			return err
		}
		args := pgx.NamedArgs{"id": id}
		tag, err := tx.Exec(ctx, retireSpace, args)
		if err != nil {
			return err
		}
		if tag.RowsAffected() == 0 {
			return &whence.Error{Kind: whence.ErrPrecondition, Reason: "SPACE_CURRENT",
				Message: fmt.Sprintf("questions are asked in space %d (%s): switch to another before deleting it", id, s.Model)}
		}
		_, err = tx.Exec(ctx, retireSegments, args)
		return err
	})
	if err != nil {
		return fmt.Errorf("delete space: %w", err)
	}
	return nil
}

// sweepSpaces deletes what is left of retired spaces, in steps that a crash may
// come between.
func (x *Index) sweepSpaces(ctx context.Context) error {
	rows, err := x.pool.Query(ctx, selectRetired)
	if err != nil {
		return err
	}
	retired, err := pgx.CollectRows(rows, pgx.RowTo[int16])
	if err != nil {
		return err
	}
	for _, id := range retired {
		args := pgx.NamedArgs{"id": id}
		for more := true; more; {
			tag, err := x.pool.Exec(ctx, deleteSome, args)
			if err != nil {
				return err
			}
			more = tag.RowsAffected() > 0
		}
		err := pg.InTx(ctx, x.pool, func(tx pgx.Tx) error {
			for _, step := range []string{lockRetired, `delete from whence.vectors where space_id = @id`, deleteSpace} {
				if _, err := tx.Exec(ctx, step, args); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}
