package index

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/internal/pg"
)

// claim is a set of texts that one worker has taken for the time of its lease.
type claim struct {
	space   Space
	lease   uuid.UUID
	items   []claimed
	at      time.Time // when it was taken, by the database's clock: no vector of it is newer
	total   int       // rows claimed, those without a text included
	orphans bool      // some row had no text left and is gone
}

type claimed struct {
	digest   []byte
	table    int32 // that asked for it, or another that holds the text
	attempts int
	text     string
}

const claimSQL = `
with due as (
    select digest from whence.vectors
    where space_id = @space and embedding is null and not_before <= now()
    order by not_before
    limit @n
    for update skip locked
), taken as (
    update whence.vectors v set lease = @lease, not_before = now() + make_interval(secs => @seconds)
    from due where v.space_id = @space and v.digest = due.digest
    returning v.digest, v.table_id, v.attempts
)
select taken.digest, c.table_id, taken.attempts, c.text, statement_timestamp()
from taken left join lateral (
    select c.table_id, c.text from whence.chunks c
    where c.digest = taken.digest
    order by (c.table_id = taken.table_id) desc limit 1
) c on true`

const deleteOrphansSQL = `
delete from whence.vectors v
where v.space_id = @space and v.digest = any(@digests) and v.lease = @lease and v.embedding is null
  and not exists (select from whence.chunks c where c.digest = v.digest)`

// lookUps sets a transaction up for statements that find rows by their keys. A
// table that has just been filled has no statistics, and without them the
// planner would read it whole for every batch; a claim that takes seconds also
// keeps locks on what others have claimed meanwhile.
const lookUps = planAnew + `,
    set_config('enable_seqscan', 'off', true), set_config('enable_hashjoin', 'off', true), set_config('enable_mergejoin', 'off', true)`

// A lease that is lost in a crash is no loss.
const lookUpsLazily = lookUps + `, set_config('synchronous_commit', 'off', true)`

// inTx runs fn in a transaction after one statement of settings.
func (x *Index) inTx(ctx context.Context, settings string, fn func(pgx.Tx) error) error {
	return pg.InTx(ctx, x.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, settings); err != nil {
			return err
		}
		return fn(tx)
	})
}

// claim takes up to n texts that have no vector in the space. A row whose text no
// chunk holds any more is deleted; a text that does not match its digest is left
// out, for its vector would answer for another text.
func (x *Index) claim(ctx context.Context, space Space, n int, lease time.Duration) (claim, error) {
	c := claim{space: space, lease: uuid.New()}
	args := pgx.NamedArgs{"space": space.ID, "n": n, "lease": c.lease, "seconds": lease.Seconds()}
	var orphans [][]byte
	err := x.inTx(ctx, lookUpsLazily, func(tx pgx.Tx) (err error) {
		orphans, err = c.take(ctx, tx, args, x.log)
		return err
	})
	if err != nil {
		return c, fmt.Errorf("claim texts: %w", err)
	}
	if len(orphans) > 0 {
		c.orphans = true
		args = pgx.NamedArgs{"space": space.ID, "lease": c.lease, "digests": orphans}
		if _, err := x.pool.Exec(ctx, deleteOrphansSQL, args); err != nil {
			return c, fmt.Errorf("delete vectors without a text: %w", pg.Translate(err))
		}
	}
	return c, nil
}

// take runs the claim and sorts what it got; orphans have no text left.
func (c *claim) take(ctx context.Context, tx pgx.Tx, args pgx.NamedArgs, log *slog.Logger) (orphans [][]byte, err error) {
	c.items, c.total = nil, 0
	rows, err := tx.Query(ctx, claimSQL, args)
	if err != nil {
		return nil, err
	}
	var it claimed
	var table *int32
	var text *string
	_, err = pgx.ForEachRow(rows, []any{&it.digest, &table, &it.attempts, &text, &c.at}, func() error {
		c.total++
		digest := slices.Clone(it.digest)
		if text == nil {
			orphans = append(orphans, digest)
			return nil
		}
		if got := whence.DigestOf(*text); string(got[:]) != string(digest) {
			log.ErrorContext(ctx, "a chunk's text does not match its digest; it is not embedded", "digest", fmt.Sprintf("%x", digest))
			return nil
		}
		c.items = append(c.items, claimed{digest: digest, table: *table, attempts: it.attempts, text: *text})
		return nil
	})
	return orphans, err
}

// The vectors come as one flat array: fixed-width elements make each slice cheap.
const storeSQL = `
update whence.vectors v
set embedding = (@flat::real[])[(d.n - 1) * @dimensions::int + 1 : d.n * @dimensions::int]::halfvec,
    seq = nextval('whence.vectors_seq'), embedded_at = @at, lease = null, error = null
from unnest(@digests::bytea[]) with ordinality d(digest, n)
where v.space_id = @space and v.digest = d.digest and v.lease = @lease and v.embedding is null`

const countMadeSQL = `
insert into whence.embedding_calls as e (table_id, made, tokens)
select n.table_id, n.made, n.tokens from unnest(@tables::int[], @counts::bigint[], @tokens::bigint[]) n(table_id, made, tokens) join whence.tables t on t.id = n.table_id order by 1
on conflict (table_id) do update set made = e.made + excluded.made, tokens = e.tokens + excluded.tokens`

const storeFailuresSQL = `
update whence.vectors v
set attempts = v.attempts + d.blamed, not_before = now() + make_interval(secs => d.wait), lease = null, error = d.message
from unnest(@digests::bytea[], @blamed::int[], @waits::float8[], @messages::text[]) d(digest, blamed, wait, message)
where v.space_id = @space and v.digest = d.digest and v.lease = @lease and v.embedding is null`

// fulfil stores what became of a claim and then removes the superseded chunks
// that are no longer needed. It returns how many vectors were stored: one whose
// lease has passed to another worker is discarded.
func (x *Index) fulfil(ctx context.Context, c claim, out outcome) (stored int, err error) {
	var digests [][]byte
	var flat []float32
	for n, i := range out.embedded {
		digests = append(digests, c.items[i].digest)
		flat = append(flat, out.vectors[n]...)
	}
	settings := lookUps + fmt.Sprintf(", pg_advisory_xact_lock_shared(%d, %d)", switchLock, c.space.ID)
	err = x.inTx(ctx, settings, func(tx pgx.Tx) error {
		if len(digests) > 0 {
			args := pgx.NamedArgs{"space": c.space.ID, "lease": c.lease, "digests": digests, "at": c.at,
				"flat": flat, "dimensions": c.space.Dimensions}
			tag, err := tx.Exec(ctx, storeSQL, args)
			if err != nil {
				return err
			}
			stored = int(tag.RowsAffected())
		}
		if err := countMade(ctx, tx, c, out); err != nil {
			return err
		}
		return x.storeFailures(ctx, tx, c, out)
	})
	if err != nil {
		return 0, fmt.Errorf("store vectors: %w", err)
	}
	if stored > 0 {
		err = x.reapBy(ctx, lookUps, supersededByDigestSQL, pgx.NamedArgs{"digests": digests})
	}
	return stored, err
}

// countMade books what a call of the model cost, by table.
func countMade(ctx context.Context, tx pgx.Tx, c claim, out outcome) error {
	made, spent := map[int32]int64{}, map[int32]int64{} // texts and tokens
	for i, n := range out.tokens {
		spent[c.items[i].table] += n // also of those that failed
	}
	for _, i := range out.embedded {
		made[c.items[i].table]++
	}
	tables := slices.Sorted(maps.Keys(spent))
	if len(tables) == 0 {
		return nil
	}
	counts, tokens := make([]int64, len(tables)), make([]int64, len(tables))
	for i, t := range tables {
		counts[i], tokens[i] = made[t], spent[t]
	}
	_, err := tx.Exec(ctx, countMadeSQL, pgx.NamedArgs{"tables": tables, "counts": counts, "tokens": tokens})
	return err
}

func (x *Index) storeFailures(ctx context.Context, tx pgx.Tx, c claim, out outcome) error {
	if len(out.failed) == 0 {
		return nil
	}
	var digests [][]byte
	var blamed []int
	var waits []float64
	var messages []string
	for i, why := range out.failed {
		it := c.items[i]
		blame, wait := 1, backoff(it.attempts, why, rand.Float64()) //nolint:gosec // jitter
		if out.whole != nil && len(c.items) > 1 {
			blame, wait = 0, 0
		}
		digests, blamed = append(digests, it.digest), append(blamed, blame)
		waits, messages = append(waits, wait.Seconds()), append(messages, why.Message)
	}
	_, err := tx.Exec(ctx, storeFailuresSQL, pgx.NamedArgs{"space": c.space.ID, "lease": c.lease,
		"digests": digests, "blamed": blamed, "waits": waits, "messages": messages})
	return err
}

const releaseSQL = `
update whence.vectors set lease = null, not_before = now()
where space_id = @space and digest = any(@digests) and lease = @lease and embedding is null`

// release gives a claim back without a verdict.
func (x *Index) release(ctx context.Context, c claim) error {
	digests := make([][]byte, len(c.items))
	for i, it := range c.items {
		digests[i] = it.digest
	}
	_, err := x.pool.Exec(ctx, releaseSQL, pgx.NamedArgs{"space": c.space.ID, "digests": digests, "lease": c.lease})
	return pg.Translate(err)
}

// A minute is above every backoff and far below the wait of a refused text.
const unblockSQL = `
update whence.vectors set not_before = now()
where space_id = @space and embedding is null and lease is null
  and not_before > now() and not_before < now() + interval '1 minute'`

// unblock makes every text due that is only waiting for the model to come back.
func (x *Index) unblock(ctx context.Context, space Space) error {
	_, err := x.pool.Exec(ctx, unblockSQL, pgx.NamedArgs{"space": space.ID})
	return pg.Translate(err)
}

const deriveSQL = `
insert into whence.vectors (space_id, digest, table_id)
select s.id, c.digest, c.table_id
from (select id from whence.spaces where id = @space and retired_at is null for key share) s
cross join (
    select c.digest, min(c.table_id) as table_id from whence.chunks c
    where not exists (select from whence.vectors v where v.space_id = @space and v.digest = c.digest)
    group by c.digest
) c
on conflict do nothing`

// Of tables that are gone or keep nothing of what is deleted, and of texts that no
// chunk holds: two deletions at once may each have seen the other's chunk.
const deleteUnownedSQL = `
delete from whence.vectors v
where v.space_id = @space and v.lease is null
  and not exists (select from whence.tables t where t.id = v.table_id and t.on_delete <> 'PURGE')
  and not exists (select from whence.chunks c where c.digest = v.digest)`

const supersededSQL = `
select distinct c.record_id from whence.chunks c join whence.records r on r.id = c.record_id
where c.version < r.version limit 10000`

const supersededByDigestSQL = `
select distinct c.record_id from whence.chunks c join whence.records r on r.id = c.record_id
where c.digest = any(@digests)
  and exists (select from whence.chunks o where o.record_id = r.id and o.version < r.version)`

// derive makes a claimable row for every chunk that has none in the space, and
// removes vectors that nobody may have any more and superseded chunks that a crash
// left behind. It returns the rows made.
func (x *Index) derive(ctx context.Context, space Space) (int64, error) {
	tag, err := x.pool.Exec(ctx, deriveSQL, pgx.NamedArgs{"space": space.ID})
	if err != nil {
		return 0, fmt.Errorf("derive missing vectors: %w", pg.Translate(err))
	}
	if _, err := x.pool.Exec(ctx, deleteUnownedSQL, pgx.NamedArgs{"space": space.ID}); err != nil {
		return 0, fmt.Errorf("delete vectors without an owner: %w", pg.Translate(err))
	}
	return tag.RowsAffected(), x.reapBy(ctx, planAnew, supersededSQL, pgx.NamedArgs{})
}

// reapBy reaps the records that a query names, in a transaction of its own: a
// crash before it leaves chunks that searches ignore and derive removes.
func (x *Index) reapBy(ctx context.Context, settings, query string, args pgx.NamedArgs) error {
	err := x.inTx(ctx, settings, func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx, query, args)
		if err != nil {
			return err
		}
		ids, err := pgx.CollectRows(rows, pgx.RowTo[int64])
		if err != nil || len(ids) == 0 {
			return err
		}
		return x.reap(ctx, tx, ids)
	})
	if err != nil {
		return fmt.Errorf("reap superseded chunks: %w", err)
	}
	return nil
}
