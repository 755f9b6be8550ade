package lineage

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/internal/pg"
)

const (
	noteErasures = `
insert into whence.erasures (record_id, table_name, key, below)
select record_id, table_name, key, below
from unnest(@records::bigint[], @tables::text[], @keys::text[], @below::int[]) as e(record_id, table_name, key, below)
on conflict do nothing`

	// What is left says that there was a hit, on which row and version, how it was
	// judged and scored, and the digest of its text.
	eraseSQL = `
update whence.answer_hits h
set subject = null, hit = jsonb_set(h.hit - 'text' - 'matchedText' - 'liveText' - 'attributes' #- '{origin,note}', '{erased}', 'true')
from whence.erasures e
where h.table_name = e.table_name and h.key = e.key and h.record_id = e.record_id and h.version < e.below and not h.hit ? 'erased'`

	eraseThese = eraseSQL + ` and e.record_id = any(@records)`

	dropErasures = `delete from whence.erasures where at < now() - make_interval(secs => @seconds)`

	selectShown = `
select distinct record_id from whence.answer_hits where table_name = @table and record_id > @after and not hit ? 'erased'
order by record_id limit @limit`
)

// sweepFor is longer than any call lasts.
const sweepFor = 15 * time.Minute

// Erase takes the words of versions out of every answer that showed them, and out
// of those that calls under way store in the next minutes, as long as Run runs.
func (s *Store) Erase(ctx context.Context, tx pgx.Tx, gone []whence.Gone) error {
	if len(gone) == 0 {
		return nil
	}
	var records []int64
	var below []int32
	var tables, keys []string
	for _, g := range gone {
		records, below = append(records, g.RecordID), append(below, g.Below)
		tables, keys = append(tables, string(g.Table)), append(keys, string(g.Key))
	}
	args := pgx.NamedArgs{"records": records, "below": below, "tables": tables, "keys": keys}
	if _, err := tx.Exec(ctx, noteErasures, args); err != nil {
		return fmt.Errorf("erase what was shown: %w", err)
	}
	if _, err := tx.Exec(ctx, eraseThese, args); err != nil {
		return fmt.Errorf("erase what was shown: %w", err)
	}
	return nil
}

// Shown lists records of a table whose words some answer holds: the first limit
// with greater ids than after, in order.
func (s *Store) Shown(ctx context.Context, tx pgx.Tx, table whence.TableName, after int64, limit int) ([]int64, error) {
	rows, err := tx.Query(ctx, selectShown, pgx.NamedArgs{"table": string(table), "after": after, "limit": limit})
	if err != nil {
		return nil, fmt.Errorf("list what was shown: %w", err)
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		return nil, fmt.Errorf("list what was shown: %w", err)
	}
	return ids, nil
}

// Sweep erases once more what Erase was called for lately.
func (s *Store) Sweep(ctx context.Context) error {
	err := pg.InTx(ctx, s.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, eraseSQL); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, dropErasures, pgx.NamedArgs{"seconds": sweepFor.Seconds()})
		return err
	})
	if err != nil {
		return fmt.Errorf("erase what was shown: %w", err)
	}
	return nil
}

// Run sweeps now and then until ctx ends.
func (s *Store) Run(ctx context.Context) error {
	t := time.NewTicker(20 * time.Second)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.C:
			if err := s.Sweep(ctx); err != nil && ctx.Err() == nil {
				s.log.WarnContext(ctx, "cannot sweep the answers; trying again", "error", err)
			}
		}
	}
}
