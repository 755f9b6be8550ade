package index

import (
	"context"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/internal/pg"
)

// held is a chunk that a record has.
type held struct {
	id       int64
	table    int32
	digest   whence.Digest
	embedded bool // its text has a vector
}

// holding is what one record has: the chunks of its head, and superseded ones.
type holding struct {
	record     int64
	deleted    bool
	owed       bool            // the head lacks columns, so it replaces nothing yet
	head       []whence.Digest // of the head's chunks
	superseded []held
}

// spent returns the superseded chunks that serve nobody any more: all of a
// deleted record, those without a vector, and all once each chunk of the head
// has its vector. The records that keep some are returned too.
func spent(holdings []holding, embedded map[whence.Digest]bool) (gone []held, keeping []int64) {
	for _, h := range holdings {
		complete := !h.owed
		for _, d := range h.head {
			complete = complete && embedded[d]
		}
		kept := false
		for _, c := range h.superseded {
			if h.deleted || complete || !embedded[c.digest] {
				gone = append(gone, c)
			} else {
				kept = true
			}
		}
		if kept {
			keeping = append(keeping, h.record)
		}
	}
	return gone, keeping
}

const selectEmbedded = `
select digest from whence.vectors
where space_id = (select id from whence.spaces where current) and digest = any(@digests) and embedding is not null`

// digestsOf lists the texts whose vectors decide.
func digestsOf(holdings []holding) (digests [][]byte) {
	for _, h := range holdings {
		if h.deleted {
			continue
		}
		for _, d := range h.head {
			digests = append(digests, d[:])
		}
		for _, c := range h.superseded {
			digests = append(digests, c.digest[:])
		}
	}
	return digests
}

// scanEmbedded collects which texts have a vector.
func scanEmbedded(rows pgx.Rows, embedded map[whence.Digest]bool) error {
	var digest []byte
	_, err := pgx.ForEachRow(rows, []any{&digest}, func() error {
		embedded[whence.Digest(digest)] = true
		return nil
	})
	return err
}

const (
	selectHoldings = `
select r.id, r.deleted, r.missing is not null, c.id, c.table_id, c.digest, c.version < r.version
from whence.records r join whence.chunks c on c.record_id = r.id
where r.id = any(@ids)
order by r.id, c.id`
	// Whoever changes a record's chunks holds the record's lock.
	lockRecords = `select id from whence.records where id = any(@ids) order by id for no key update`
	// Statements that work on a batch are planned for that batch: a plan that was
	// kept from when the tables were empty would read them whole.
	planAnew = `
select set_config('plan_cache_mode', 'force_custom_plan', true), set_config('jit', 'off', true),
    set_config('max_parallel_workers_per_gather', '0', true)`
)

// Writing begins a transaction for statements over batches, such as Put's.
var Writing = pgx.TxOptions{BeginQuery: `begin; ` + planAnew}

// reap removes the superseded chunks of those records whose heads are fully
// embedded. It must begin after the embeddings have committed: so either it
// sees a head that was put meanwhile, or that head's Settle sees the
// embeddings. It never waits for a lock; what it skips, the holder settles.
func (x *Index) reap(ctx context.Context, tx pgx.Tx, records []int64) error {
	return x.settle(ctx, tx, lockRecords+` skip locked`, records)
}

// Settle removes what an embedding that was committed during the transaction of
// a Put made superfluous, and nobody else saw. Call it after that transaction,
// and before another one that may Heads the same records.
func (x *Index) Settle(ctx context.Context, records []int64) error {
	if len(records) == 0 {
		return nil
	}
	err := pg.InTx(ctx, x.pool, func(tx pgx.Tx) error { return x.settle(ctx, tx, lockRecords, records) })
	if err != nil {
		return fmt.Errorf("settle: %w", err)
	}
	return nil
}

func (x *Index) settle(ctx context.Context, tx pgx.Tx, locking string, records []int64) error {
	if _, err := tx.Exec(ctx, planAnew); err != nil {
		return fmt.Errorf("prepare: %w", err)
	}
	rows, err := tx.Query(ctx, locking, pgx.NamedArgs{"ids": records})
	if err != nil {
		return fmt.Errorf("lock records: %w", err)
	}
	if records, err = pgx.CollectRows(rows, pgx.RowTo[int64]); err != nil || len(records) == 0 {
		return err
	}
	holdings, err := readHoldings(ctx, tx, records)
	if err != nil {
		return err
	}
	embedded := map[whence.Digest]bool{}
	if digests := digestsOf(holdings); len(digests) > 0 {
		rows, err := tx.Query(ctx, selectEmbedded, pgx.NamedArgs{"digests": digests})
		if err != nil {
			return fmt.Errorf("read which texts have vectors: %w", err)
		}
		if err := scanEmbedded(rows, embedded); err != nil {
			return fmt.Errorf("read which texts have vectors: %w", err)
		}
	}
	gone, _ := spent(holdings, embedded)
	return drop(ctx, tx, gone)
}

func readHoldings(ctx context.Context, tx pgx.Tx, records []int64) (out []holding, err error) {
	rows, err := tx.Query(ctx, selectHoldings, pgx.NamedArgs{"ids": records})
	if err != nil {
		return nil, fmt.Errorf("read chunks: %w", err)
	}
	var (
		h          holding
		c          held
		digest     []byte
		superseded bool
	)
	_, err = pgx.ForEachRow(rows, []any{&h.record, &h.deleted, &h.owed, &c.id, &c.table, &digest, &superseded}, func() error {
		if n := len(out); n == 0 || out[n-1].record != h.record {
			out = append(out, h)
		}
		last := &out[len(out)-1]
		c.digest = whence.Digest(digest)
		if superseded || h.deleted {
			last.superseded = append(last.superseded, c)
		} else {
			last.head = append(last.head, c.digest)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read chunks: %w", err)
	}
	return out, nil
}

const (
	// A table that purges what is deleted, as that of notes does, keeps no vector of
	// a text that it no longer holds.
	deleteChunks = `
with gone as (delete from whence.chunks where id = any(@ids) returning table_id, digest)
select distinct g.digest from gone g left join whence.tables t on t.id = g.table_id
where g.table_id < 0 or t.on_delete = 'PURGE'`
	selectStill   = `select distinct digest from whence.chunks where digest = any(@digests)`
	deleteVectors = `
delete from whence.vectors where space_id in (select id from whence.spaces) and digest = any(@digests)`
)

// drop deletes chunks, and the vectors that nobody needs then.
func drop(ctx context.Context, tx pgx.Tx, gone []held) error {
	if len(gone) == 0 {
		return nil
	}
	ids := make([]int64, len(gone))
	for i, c := range gone {
		ids[i] = c.id
	}
	rows, err := tx.Query(ctx, deleteChunks, pgx.NamedArgs{"ids": ids})
	if err != nil {
		return fmt.Errorf("delete superseded chunks: %w", err)
	}
	digests, err := pgx.CollectRows(rows, pgx.RowTo[[]byte])
	if err != nil {
		return fmt.Errorf("delete superseded chunks: %w", err)
	}
	return forget(ctx, tx, digests)
}

// forget removes the vectors of texts that no chunk holds.
func forget(ctx context.Context, tx pgx.Tx, digests [][]byte) error {
	if len(digests) == 0 {
		return nil
	}
	rows, err := tx.Query(ctx, selectStill, pgx.NamedArgs{"digests": digests})
	if err != nil {
		return fmt.Errorf("forget vectors: %w", err)
	}
	still := map[whence.Digest]bool{}
	if err := scanEmbedded(rows, still); err != nil {
		return fmt.Errorf("forget vectors: %w", err)
	}
	digests = slices.DeleteFunc(slices.Clone(digests), func(d []byte) bool { return still[whence.Digest(d)] })
	if _, err := tx.Exec(ctx, deleteVectors, pgx.NamedArgs{"digests": digests}); err != nil {
		return fmt.Errorf("forget vectors: %w", err)
	}
	return nil
}
