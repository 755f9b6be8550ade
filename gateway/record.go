package gateway

import (
	"context"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/audit"
	"github.com/whence-db/whence/internal/pg"
	"github.com/whence-db/whence/lineage"
)

// record is the outcome of one call, to be made durable before it returns.
type record struct {
	entry  audit.Entry
	answer *lineage.Answer // nil when the call gave none
	charge *reservation    // nil when nothing was charged
	refund bool            // give the charge back

	lost bool // the charge did not survive: the call may not succeed
}

// errLost answers a call whose charge was lost in a crash of the database.
func errLost() *whence.Error {
	return &whence.Error{Kind: whence.ErrUnavailable, Reason: "RESERVATION_LOST", RetryAfter: time.Second,
		Message: "the memory database restarted during the call, so its charge cannot be vouched for; try again"}
}

// write makes a batch of records durable in one transaction.
func (g *Gateway) write(ctx context.Context, batch []*record) error {
	return pg.InTx(ctx, g.pool, func(tx pgx.Tx) error { return g.put(ctx, tx, batch) })
}

func (g *Gateway) put(ctx context.Context, tx pgx.Tx, batch []*record) error {
	if err := findLost(ctx, tx, batch); err != nil {
		return err
	}
	if err := refund(ctx, tx, batch); err != nil {
		return err
	}
	entries := make([]audit.Entry, len(batch))
	var answers []lineage.Answer
	for i, r := range batch {
		entries[i] = r.entry
		switch {
		case r.lost:
			entries[i] = withoutCharge(r.entry)
		case r.answer != nil:
			answers = append(answers, *r.answer)
		}
	}
	if err := g.audit.Append(ctx, tx, entries); err != nil {
		return err
	}
	return g.lineage.Insert(ctx, tx, answers)
}

func withoutCharge(e audit.Entry) audit.Entry {
	e.CallsCharged = 0
	if e.Decision == audit.Allowed {
		e.Decision, e.Reason, e.Answer = audit.Failed, errLost().Reason, uuid.Nil
	}
	return e
}

// findLost marks the records whose charge was committed before the database's
// last crash, and so may be gone.
func findLost(ctx context.Context, tx pgx.Tx, batch []*record) error {
	if !slices.ContainsFunc(batch, func(r *record) bool { return r.charge != nil }) {
		return nil
	}
	var epoch time.Time
	if err := tx.QueryRow(ctx, epochSQL).Scan(&epoch); err != nil {
		return err
	}
	for _, r := range batch {
		r.lost = r.charge != nil && !r.charge.epoch.Equal(epoch)
	}
	return nil
}

const (
	lockSQL = `select from whence.tasks where id = any(@ids) order by id for no key update`

	refundSQL = `
update whence.tasks t set calls_settled = t.calls_settled - c.calls
from unnest(@ids::uuid[], @calls::bigint[]) as c(id, calls)
where t.id = c.id`
)

// refund takes back what failed calls were charged, on each task of their paths.
func refund(ctx context.Context, tx pgx.Tx, batch []*record) error {
	back := map[uuid.UUID]int64{}
	for _, r := range batch {
		if !r.refund || r.charge == nil || r.lost {
			continue
		}
		for _, id := range r.charge.path {
			back[id] += r.charge.calls
		}
	}
	if len(back) == 0 {
		return nil
	}
	var ids []uuid.UUID
	var calls []int64
	for id, n := range back {
		ids, calls = append(ids, id), append(calls, n)
	}
	if _, err := tx.Exec(ctx, lockSQL, pgx.NamedArgs{"ids": ids}); err != nil {
		return err
	}
	_, err := tx.Exec(ctx, refundSQL, pgx.NamedArgs{"ids": ids, "calls": calls})
	return err
}
