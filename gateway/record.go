package gateway

import (
	"context"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/audit"
	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/internal/pg"
	"github.com/whence-db/whence/lineage"
)

// record is the outcome of one call, to be made durable before it returns.
type record struct {
	entry   audit.Entry
	answer  *lineage.Answer // nil when the call gave none
	charge  *charge         // nil when nothing was charged
	task    uuid.UUID       // zero for an operator
	used    authz.Amounts   // within charge
	calls   int64           // of the embedding model
	started time.Time
	effect  bool // something was done: it is paid as far as there is anything to pay with, and never withheld

	void *whence.Error // why the call may not succeed, found as it was to be recorded
}

// errLost answers a call whose lease went to somebody else meanwhile, and whose task
// has nothing left to pay it with.
func errLost() *whence.Error {
	return &whence.Error{Kind: whence.ErrUnavailable, Reason: "RESERVATION_LOST", RetryAfter: time.Second,
		Message: "what this call was to cost could not be held until its end, so its result is withheld; try again"}
}

// write makes a batch of records durable in one transaction.
func (g *Gateway) write(ctx context.Context, batch []*record) error {
	var settled func()
	err := pg.InTx(ctx, g.pool, func(tx pgx.Tx) (err error) {
		settled, err = g.put(ctx, tx, batch)
		return err
	})
	if err == nil {
		settled()
	}
	return err
}

// put books, logs and stores a batch; settled is to be called once that is committed.
func (g *Gateway) put(ctx context.Context, tx pgx.Tx, batch []*record) (settled func(), err error) {
	if settled, err = g.settle(ctx, tx, batch); err != nil {
		return nil, err
	}
	entries := make([]audit.Entry, len(batch))
	var answers []lineage.Answer
	for i, r := range batch {
		entries[i] = r.entry
		switch {
		case r.void != nil:
			entries[i] = r.voided()
		case r.answer != nil:
			answers = append(answers, *r.answer)
		}
	}
	if err := g.audit.Append(ctx, tx, entries); err != nil {
		return nil, err
	}
	return settled, g.lineage.Insert(ctx, tx, answers)
}

func (r *record) voided() audit.Entry {
	e := r.entry
	e.CallsCharged = 0
	if e.Decision == audit.Allowed {
		e.Decision, e.Reason = judge(r.void)
		e.Answer = uuid.Nil
	}
	return e
}

// settle moves what calls have used from what is reserved to what is spent, on each
// task of their paths, and finds those that may not succeed.
func (g *Gateway) settle(ctx context.Context, tx pgx.Tx, batch []*record) (settled func(), err error) {
	var tasks []uuid.UUID
	for _, r := range batch {
		if r.task != uuid.Nil && (r.charge != nil || r.calls != 0) {
			tasks = append(tasks, r.task)
		}
	}
	if len(tasks) == 0 {
		return func() {}, nil
	}
	all, l, err := g.lock(ctx, tx, tasks)
	if err != nil {
		return nil, err
	}
	kept := map[uuid.UUID]authz.Amounts{}
	for _, r := range batch {
		if r.task == uuid.Nil || (r.charge == nil && r.calls == 0) {
			continue
		}
		up, err := all.above(r.task)
		if err != nil {
			return nil, err
		}
		for _, n := range up {
			n.embedded += r.calls
			n.changed = n.changed || r.calls != 0
		}
		if r.charge != nil {
			kept[r.task] = kept[r.task].Plus(all.spend(l, up, r))
		}
	}
	return func() { g.blocks.settled(all, kept) }, g.save(ctx, tx, all, l)
}

// spend settles one call. It returns what stays leased for the next ones.
func (all nodes) spend(l leases, up []*node, r *record) (kept authz.Amounts) {
	r.void = nil
	for _, n := range up {
		if r.effect {
			break
		}
		if n.state == TaskRevoked || (n.state != TaskActive && n.ended.Before(r.started)) {
			r.void = n.alive(r.started).(*whence.Error) //nolint:errorlint // alive makes no other
		}
	}
	room, lease, used := left(up), l[up[0].id], r.used
	for _, m := range authz.Meters() {
		if beyond := used[m] - lease[m]; room[m] != authz.Unlimited && beyond > room[m] {
			if r.effect {
				used[m] = lease[m] + room[m]
			} else {
				r.void = errLost()
			}
		}
	}
	if r.void != nil { // nobody learns what it found; what the model took is booked as far as it goes
		used = authz.Amounts{}
		used[authz.EmbeddingTokens] = min(r.used[authz.EmbeddingTokens], max(room[authz.EmbeddingTokens], lease[authz.EmbeddingTokens]))
	}
	for _, m := range authz.Meters() {
		bounded := room[m] != authz.Unlimited
		leased := int64(0)
		if bounded {
			leased = min(lease[m], max(0, used[m])) // a stream gives back what it was charged too much
			if kept[m] = max(0, r.charge.held[m]-used[m]); m == authz.Concurrency {
				leased, kept[m] = min(lease[m], r.charge.held[m]), 0
			}
		}
		if leased == 0 && used[m] == 0 {
			continue
		}
		lease[m] -= leased
		for _, n := range up {
			n.reserved[m] -= leased
			n.settled[m] += used[m]
			n.changed = true
		}
	}
	if _, ok := l[up[0].id]; ok || lease != (authz.Amounts{}) {
		l[up[0].id] = lease
	}
	return kept.Min(lease)
}
