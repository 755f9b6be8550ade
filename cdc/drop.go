package cdc

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
)

const (
	endReaderSQL = `
select pg_terminate_backend(s.active_pid)
  from pg_replication_slots s
 where s.slot_name = @slot and s.active_pid is not null`

	dropSlotSQL = `
select pg_drop_replication_slot(s.slot_name)
  from pg_replication_slots s
 where s.slot_name = @slot`
)

// Left is what a source may still have of a slot and publication.
type Left struct {
	Slot, Publication bool
	Owners            bool // the publication is another role's, who alone may drop it
}

// DropSlot removes a source's slot and publication. A connection that still
// reads the slot is ended. What is absent already counts as removed; it returns
// when both are gone, or with ctx. A publication that belongs to another role is
// left, and is no error: whoever made it may publish more by it. Else left says
// how far it came.
func DropSlot(ctx context.Context, connString, slot, publication string) (left Left, err error) {
	left = Left{Slot: true, Publication: true}
	cfg, err := pgx.ParseConfig(connString)
	if err != nil {
		return left, whence.Invalid("dsn", "DSN_INVALID", "the connection string cannot be read")
	}
	conn, err := connect(ctx, cfg)
	if err != nil {
		return left, err
	}
	defer closeConn(ctx, conn.PgConn())
	for {
		_, err := conn.Exec(ctx, dropSlotSQL, pgx.NamedArgs{"slot": slot})
		if err == nil || isCode(err, codeUndefinedObject) {
			break
		}
		if !isCode(err, codeInUse) {
			return left, fmt.Errorf("drop the replication slot %s: %w", slot, err)
		}
		if _, err := conn.Exec(ctx, endReaderSQL, pgx.NamedArgs{"slot": slot}); err != nil {
			return left, fmt.Errorf("end the connection that reads the replication slot %s: %w", slot, err)
		}
		if sleep(ctx, 50*time.Millisecond) != nil {
			return left, errors.Join(ctx.Err(), err)
		}
	}
	left.Slot = false
	_, err = conn.Exec(ctx, `drop publication if exists `+pgx.Identifier{publication}.Sanitize())
	switch {
	case isCode(err, codeDenied):
		left.Owners = true
		return left, nil
	case err != nil:
		return left, fmt.Errorf("drop the publication %s: %w", publication, err)
	}
	return Left{}, nil
}
