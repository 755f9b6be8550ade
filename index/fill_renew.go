package index

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/internal/pg"
)

const reembedSQL = `
insert into whence.reembeds as e (space_id, table_id, made_before)
select id, @table, clock_timestamp() from whence.spaces where retired_at is null
on conflict (space_id, table_id) do update
set made_before = excluded.made_before, last_chunk = 0, skipped = false, attempts = 0, not_before = now(), lease = null`

// Reembed has every vector of a table's texts made anew, in every space. The old
// ones serve until then; those of texts that it held in the past go at once, for a
// row may take such a text on again.
func (x *Index) Reembed(ctx context.Context, table int32) error {
	err := pg.InTx(ctx, x.pool, func(tx pgx.Tx) error {
		args := pgx.NamedArgs{"table": table}
		if _, err := tx.Exec(ctx, dropVectors, args); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, reembedSQL, args)
		return err
	})
	if err != nil {
		return fmt.Errorf("reembed table: %w", err)
	}
	return nil
}

// renewal is a run of a table's texts whose vectors are to be made anew.
type renewal struct {
	claim
	table       int32
	before      time.Time // vectors made earlier are replaced
	first, last int64     // chunks after first up to last
	attempts    int       // failed since, one less for each that did not
}

const (
	claimRenewalSQL = `
update whence.reembeds r set lease = @lease, not_before = now() + make_interval(secs => @seconds)
from (
    select space_id, table_id from whence.reembeds where space_id = @space and not_before <= now()
    order by not_before limit 1 for update skip locked
) due
where r.space_id = due.space_id and r.table_id = due.table_id
returning r.table_id, r.made_before, r.last_chunk, r.attempts, clock_timestamp()`
	selectRenewals = `
select c.id, c.digest, c.text
from whence.chunks c
where c.table_id = @table and c.id > @last and exists (
    select from whence.vectors v
    where v.space_id = @space and v.digest = c.digest and v.embedding is not null and v.embedded_at < @before)
order by c.id limit @n`
	endRenewal   = `delete from whence.reembeds where space_id = @space and table_id = @table and lease = @lease and not skipped`
	againRenewal = `
update whence.reembeds set last_chunk = 0, skipped = false, lease = null, not_before = now() + make_interval(secs => @wait)
where space_id = @space and table_id = @table and lease = @lease`
	advanceRenewal = `
update whence.reembeds set last_chunk = @last, skipped = skipped or @skipped, attempts = @attempts, lease = null, not_before = now() + make_interval(secs => @wait)
where space_id = @space and table_id = @table and lease = @lease`
	renewSQL = `
update whence.vectors v
set embedding = (@flat::real[])[(d.n - 1) * @dimensions::int + 1 : d.n * @dimensions::int]::halfvec,
    seq = nextval('whence.vectors_seq'), embedded_at = @at
from unnest(@digests::bytea[]) with ordinality d(digest, n)
where v.space_id = @space and v.digest = d.digest and v.embedding is not null and v.embedded_at < @before`
)

// claimRenewal takes the next run, at most n chunks long and shorter after failures,
// so that a text on which the model chokes is soon alone. A table with nothing left
// to renew is done; one of which texts were skipped is gone through again. It tells
// whether there was a table.
func (x *Index) claimRenewal(ctx context.Context, space Space, n int, lease time.Duration) (r renewal, ok bool, err error) {
	r.claim = claim{space: space, lease: uuid.New()}
	args := pgx.NamedArgs{"space": space.ID, "lease": r.lease, "seconds": lease.Seconds(), "n": n}
	err = x.inTx(ctx, lookUps, func(tx pgx.Tx) error {
		err := tx.QueryRow(ctx, claimRenewalSQL, args).Scan(&r.table, &r.before, &r.first, &r.attempts, &r.at)
		if errors.Is(err, pgx.ErrNoRows) {
			return nil
		}
		if err != nil {
			return err
		}
		ok = true
		args["table"], args["last"], args["before"] = r.table, r.first, r.before
		args["n"] = max(1, n>>min(2*r.attempts, 30))
		if err := r.collect(ctx, tx, args); err != nil || r.total > 0 {
			return err
		}
		tag, err := tx.Exec(ctx, endRenewal, args)
		if err != nil || tag.RowsAffected() > 0 {
			return err
		}
		args["wait"] = backoff(r.attempts, &Failure{}, 0).Seconds()
		_, err = tx.Exec(ctx, againRenewal, args)
		return err
	})
	if err != nil {
		return r, false, fmt.Errorf("claim texts to embed anew: %w", err)
	}
	return r, ok, nil
}

func (r *renewal) collect(ctx context.Context, tx pgx.Tx, args pgx.NamedArgs) error {
	r.items, r.total = nil, 0
	rows, err := tx.Query(ctx, selectRenewals, args)
	if err != nil {
		return err
	}
	seen := map[whence.Digest]bool{}
	var digest []byte
	var text string
	_, err = pgx.ForEachRow(rows, []any{&r.last, &digest, &text}, func() error {
		r.total++
		d := whence.DigestOf(text)
		if string(d[:]) == string(digest) && !seen[d] {
			r.items = append(r.items, claimed{digest: d[:], table: r.table, text: text})
		}
		seen[d] = true
		return nil
	})
	return err
}

// renew stores what became of a run. One that something temporary has cut short is
// claimed again after a while, but for what was made, and shorter; one chunk alone is
// skipped for now. A text that the model refuses for good keeps the vector that it has.
func (x *Index) renew(ctx context.Context, r renewal, out outcome) error {
	digests, flat := make([][]byte, 0, len(out.embedded)), make([]float32, 0, len(out.embedded)*r.space.Dimensions)
	for n, i := range out.embedded {
		digests, flat = append(digests, r.items[i].digest), append(flat, out.vectors[n]...)
	}
	last, skipped, attempts, wait := r.last, false, max(0, r.attempts-1), 0.0
	for _, why := range out.failed {
		if why.Permanent {
			continue
		}
		if skipped = r.total == 1; !skipped {
			last = r.first
		}
		attempts = r.attempts + 1
		wait = max(wait, backoff(r.attempts, why, rand.Float64()).Seconds()) //nolint:gosec // jitter
	}
	args := pgx.NamedArgs{"space": r.space.ID, "table": r.table, "lease": r.lease, "before": r.before, "at": r.at,
		"digests": digests, "flat": flat, "dimensions": r.space.Dimensions, "last": last, "skipped": skipped, "attempts": attempts, "wait": wait}
	err := x.inTx(ctx, lookUps, func(tx pgx.Tx) error {
		if len(digests) > 0 {
			if _, err := tx.Exec(ctx, renewSQL, args); err != nil {
				return err
			}
		}
		if err := countMade(ctx, tx, r.claim, out); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, advanceRenewal, args)
		return err
	})
	if err != nil {
		return fmt.Errorf("store vectors made anew: %w", err)
	}
	return nil
}

// renewing makes vectors anew beside the filling, for each table one run at a time
// over all processes.
func (f *filling) renewing(ctx context.Context, space Space) error {
	for ctx.Err() == nil {
		worked, err := f.renewSome(ctx, space)
		if err != nil && ctx.Err() == nil {
			f.Log.WarnContext(ctx, "cannot make vectors anew; trying again", "error", err)
		}
		if err != nil || !worked {
			pause(ctx, f.Follow, nil)
		}
	}
	return ctx.Err()
}

func (f *filling) renewSome(ctx context.Context, space Space) (worked bool, err error) {
	storing, cancel := outlive(ctx)
	defer cancel()
	r, ok, err := f.Index.claimRenewal(storing, space, f.Batch, f.Lease)
	if err != nil || !ok {
		return false, err
	}
	if r.total == 0 {
		return true, nil
	}
	out := outcome{}
	if len(r.items) > 0 {
		var ended bool
		if out, ended = f.embed(ctx, r.claim); ended {
			r.last = r.first // give it back
		}
	}
	for i, why := range out.failed {
		if why.Permanent {
			f.Log.WarnContext(ctx, "the model refuses a text; it keeps the vector that it has", "table", r.table,
				"digest", fmt.Sprintf("%x", r.items[i].digest), "error", why.Message)
		}
	}
	if r.attempts == 0 && out.whole != nil {
		f.Log.WarnContext(ctx, "cannot make vectors anew for now; trying again", "table", r.table, "error", out.whole.Message)
	}
	return true, f.Index.renew(storing, r, out)
}
