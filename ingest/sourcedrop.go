package ingest

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/cdc"
	"github.com/whence-db/whence/internal/pg"
)

const (
	markDeleting = `update whence.sources set deleting = true, error = null, retrying = false where name = @name`
	noteError    = `
update whence.sources set error = nullif(@error, ''), retrying = @retrying, elsewhere = @elsewhere
where id = @id and (error is distinct from nullif(@error, '') or retrying <> @retrying or elsewhere <> @elsewhere)`
	markTables   = `update whence.tables set state = 'UNREGISTERING', error = null where source_id = @source returning id`
	deleteSource = `delete from whence.sources where id = @id`
)

// handover is how long the deletion of a source waits for the process that
// captures it to let go.
const handover = 15 * time.Second

// errCaptured means that some process captures the source just now.
var errCaptured = errors.New("the source is being captured")

// DeleteSource stops the capture of a source, drops its slot and publication
// there and everything that was captured from it here. When its slot cannot be
// dropped it stays marked for deletion, and the error holds the statements to run
// by hand; with force it goes all the same. left tells what stays in the source
// and how to remove it; of a publication that its owner made that is no failure.
func (r *Registry) DeleteSource(ctx context.Context, name string, force bool) (left string, err error) {
	s, err := r.GetSource(ctx, name)
	if err != nil {
		return "", err
	}
	err = pg.InTx(ctx, r.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, markDeleting, pgx.NamedArgs{"name": name}); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, announce)
		return err
	})
	if err != nil {
		return "", fmt.Errorf("delete source: %w", err)
	}
	for deadline := time.Now().Add(handover); ; {
		left, err := r.dropSource(ctx, s, force)
		if !errors.Is(err, errCaptured) {
			return left, err
		}
		if time.Now().After(deadline) {
			return "", deletingError(name)
		}
		if err := sleep(ctx, 50*time.Millisecond); err != nil {
			return "", err
		}
	}
}

// dropSource removes a source that is marked for deletion, once nobody captures it.
func (r *Registry) dropSource(ctx context.Context, s Source, force bool) (left string, err error) {
	lock, err := lockSource(ctx, r.pool, s.ID)
	if err != nil {
		return "", err
	}
	if lock == nil {
		return "", errCaptured
	}
	defer closeConn(ctx, lock)
	left, err = r.dropSlot(ctx, s)
	if err != nil && !force {
		_, _ = r.pool.Exec(ctx, noteError, pgx.NamedArgs{"id": s.ID, "error": err.Error(), "retrying": true, "elsewhere": false})
		return "", err
	}
	var tables []int32
	err = pg.InTx(ctx, r.pool, func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx, markTables, pgx.NamedArgs{"source": s.ID})
		if err != nil {
			return err
		}
		if tables, err = pgx.CollectRows(rows, pgx.RowTo[int32]); err != nil {
			return err
		}
		// A unit whose process has let go may still be committing.
		_, err = tx.Exec(ctx, lockCheckpoint, pgx.NamedArgs{"source": s.ID})
		return err
	})
	if err != nil {
		return "", fmt.Errorf("delete source: %w", err)
	}
	for _, t := range tables {
		if err := r.dropTable(ctx, t); err != nil {
			return "", err
		}
	}
	if _, err := r.pool.Exec(ctx, deleteSource, pgx.NamedArgs{"id": s.ID}); err != nil {
		return "", fmt.Errorf("delete source: %w", pg.Translate(err))
	}
	return left, nil
}

// dropSlot tells what it had to leave, also beside an error.
func (r *Registry) dropSlot(ctx context.Context, s Source) (string, error) {
	left, reason := cdc.Left{Slot: true, Publication: true}, "SOURCE_UNREACHABLE"
	dsn, err := r.dsn(s.Name, s.secrets)
	if err == nil {
		var conn *pgx.Conn
		if conn, err = connect(ctx, s.Name, dsn); err == nil {
			closeConn(ctx, conn)
			reason = "SLOT_NOT_DROPPED"
			ctx, cancel := context.WithTimeout(ctx, 3*connectTimeout)
			defer cancel()
			left, err = cdc.DropSlot(ctx, dsn, s.Slot, s.Publication)
		}
	}
	byHand := statements(s, left)
	if err == nil {
		return byHand, nil
	}
	return byHand, &whence.Error{Kind: whence.ErrUnavailable, Reason: reason, RetryAfter: 10 * time.Second,
		Metadata: map[string]string{"source": s.Name, "slot": s.Slot, "publication": s.Publication},
		Message: fmt.Sprintf("the source %q is marked for deletion, but what it has there could not be dropped (%v); it is tried again; %s; "+
			"or delete the source with force, which leaves what cannot be dropped", s.Name, err, byHand)}
}

// statements say how to remove by hand what is left; empty when nothing is.
func statements(s Source, left cdc.Left) string {
	publication := pgx.Identifier{s.Publication}.Sanitize()
	switch {
	case left.Owners:
		return fmt.Sprintf("the publication %s belongs to another role and stays; its owner can remove it: DROP PUBLICATION %s", s.Publication, publication)
	case left.Slot:
		return fmt.Sprintf("to remove it by hand, run in the source database: SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots "+
			"WHERE slot_name = '%s'; DROP PUBLICATION IF EXISTS %s", s.Slot, publication)
	case left.Publication:
		return fmt.Sprintf("to remove it by hand, run in the source database: DROP PUBLICATION IF EXISTS %s", publication)
	}
	return ""
}

const (
	tryLock = `select pg_try_advisory_lock(hashtext('whence capture'), @id)`

	// deadWithinSeconds has the memory database notice within three seconds that a
	// machine is gone and its connection will never be closed.
	deadWithinSeconds = `
select set_config('tcp_keepalives_idle', '1', false), set_config('tcp_keepalives_interval', '1', false),
    set_config('tcp_keepalives_count', '2', false), set_config('tcp_user_timeout', '2500', false)`
)

// lockSource takes the right to capture a source, which lasts as long as the
// connection that it returns; nil when another has it.
func lockSource(ctx context.Context, pool *pgxpool.Pool, id int32) (*pgx.Conn, error) {
	asking, err := pool.Acquire(ctx)
	if err != nil {
		return nil, fmt.Errorf("lock source: %w", pg.Translate(err))
	}
	var ours bool
	if err := asking.QueryRow(ctx, tryLock, pgx.NamedArgs{"id": id}).Scan(&ours); err != nil || !ours {
		asking.Release()
		if err != nil {
			return nil, fmt.Errorf("lock source: %w", pg.Translate(err))
		}
		return nil, nil //nolint:nilnil // documented
	}
	conn := asking.Hijack()
	if _, err := conn.Exec(ctx, deadWithinSeconds); err != nil {
		closeConn(ctx, conn)
		return nil, fmt.Errorf("lock source: %w", pg.Translate(err))
	}
	return conn, nil
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
