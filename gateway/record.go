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
	used   Usage           // whatever became of the call
	path   []uuid.UUID     // the task's, from the root; nil for an operator

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
	if err := settle(ctx, tx, batch); err != nil {
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

	settleSQL = `
update whence.tasks t set calls_settled = t.calls_settled - c.calls,
    embedding_calls = t.embedding_calls + c.embedding_calls, embedding_tokens = t.embedding_tokens + c.embedding_tokens
from unnest(@ids::uuid[], @calls::bigint[], @embeddingCalls::bigint[], @embeddingTokens::bigint[])
    as c(id, calls, embedding_calls, embedding_tokens)
where t.id = c.id`
)

// settle takes back what failed calls were charged, and books what calls have
// used, on each task of their paths.
func settle(ctx context.Context, tx pgx.Tx, batch []*record) error {
	type change struct {
		back int64
		used Usage
	}
	changes := map[uuid.UUID]change{}
	for _, r := range batch {
		back := int64(0)
		if r.refund && r.charge != nil && !r.lost {
			back = r.charge.calls
		}
		if back == 0 && r.used == (Usage{}) {
			continue
		}
		for _, id := range r.path {
			c := changes[id]
			changes[id] = change{c.back + back, c.used.plus(r.used)}
		}
	}
	if len(changes) == 0 {
		return nil
	}
	var ids []uuid.UUID
	var calls, embeddingCalls, embeddingTokens []int64
	for id, c := range changes {
		ids, calls = append(ids, id), append(calls, c.back)
		embeddingCalls, embeddingTokens = append(embeddingCalls, c.used.EmbeddingCalls), append(embeddingTokens, c.used.EmbeddingTokens)
	}
	if _, err := tx.Exec(ctx, lockSQL, pgx.NamedArgs{"ids": ids}); err != nil {
		return err
	}
	_, err := tx.Exec(ctx, settleSQL, pgx.NamedArgs{"ids": ids, "calls": calls,
		"embeddingCalls": embeddingCalls, "embeddingTokens": embeddingTokens})
	return err
}
