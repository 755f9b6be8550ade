package ingest

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence/index"
	"github.com/whence-db/whence/internal/pg"
)

const (
	// Said before anything goes: who sees a version missing sees this too.
	announcePruning = `
update whence.tables t set pruned_before = greatest(pruned_before, n.at - version_retention)
from (select clock_timestamp() as at offset 0) n
where id = @id and version_retention is not null and state <> 'UNREGISTERING'
returning n.at - version_retention`
	selectRetentions = `
select id, version_retention from whence.tables where version_retention is not null and state <> 'UNREGISTERING'`
	// One process at a time is enough.
	tryPruning = `select pg_try_advisory_xact_lock(hashtext('whence prune'), @id)`

	pruneBatch = 500
	pruneAll   = 24 * time.Hour
)

// pruning is what a process remembers of a table whose versions are kept for a time.
type pruning struct {
	next time.Time // that it is looked at
	full time.Time // that all its records are, not only those that changed lately
	done time.Time // what was followed before this is gone, of records that changed before it
}

// prune removes versions that their tables keep no longer, in small batches beside
// capture, whoever captures the table's source.
func (r *Runner) prune(ctx context.Context) error {
	tables := map[int32]*pruning{}
	var t trouble
	for {
		if err := r.Registry.pruneDue(ctx, tables); t.is(ctx, err) {
			r.Log.WarnContext(ctx, "cannot remove versions that are kept no longer, trying again", "error", err)
		}
		if err := sleep(ctx, 10*r.Poll); err != nil {
			return err
		}
	}
}

func (r *Registry) pruneDue(ctx context.Context, tables map[int32]*pruning) error {
	rows, err := r.pool.Query(ctx, selectRetentions)
	if err != nil {
		return fmt.Errorf("read how long versions are kept: %w", pg.Translate(err))
	}
	retention := map[int32]time.Duration{}
	var id int32
	var keep time.Duration
	if _, err := pgx.ForEachRow(rows, []any{&id, &keep}, func() error { retention[id] = keep; return nil }); err != nil {
		return fmt.Errorf("read how long versions are kept: %w", pg.Translate(err))
	}
	for id := range tables {
		if _, there := retention[id]; !there {
			delete(tables, id)
		}
	}
	for id, keep := range retention {
		p := tables[id]
		if p == nil {
			p = &pruning{}
			tables[id] = p
		}
		now := time.Now()
		if now.Before(p.next) {
			continue
		}
		if !now.Before(p.full) {
			p.done = time.Time{}
		}
		if err := r.pruneTable(ctx, id, p); err != nil {
			return err
		}
		if p.done.IsZero() {
			continue // another process is at it
		}
		p.next = now.Add(min(keep/10, time.Hour))
		if !now.Before(p.full) {
			p.full = now.Add(pruneAll)
		}
	}
	return nil
}

// pruneTable walks through the table's records once.
func (r *Registry) pruneTable(ctx context.Context, id int32, p *pruning) error {
	rows, err := r.pool.Query(ctx, announcePruning, pgx.NamedArgs{"id": id})
	if err != nil {
		return fmt.Errorf("announce that versions go: %w", pg.Translate(err))
	}
	found, err := pgx.CollectRows(rows, pgx.RowTo[time.Time])
	if err != nil || len(found) == 0 {
		return pg.Translate(err)
	}
	before := found[0]
	at := index.PrunedTo{Since: p.done}
	for done := false; !done; {
		mine := false
		err := pg.InTx(ctx, r.pool, func(tx pgx.Tx) (err error) {
			if err := tx.QueryRow(ctx, tryPruning, pgx.NamedArgs{"id": id}).Scan(&mine); err != nil || !mine {
				return err
			}
			at, _, done, err = r.index.Prune(ctx, tx, id, before, at, pruneBatch)
			return err
		})
		if err != nil {
			return fmt.Errorf("remove versions that are kept no longer: %w", err)
		}
		if !mine {
			return nil
		}
	}
	p.done = before
	return nil
}
