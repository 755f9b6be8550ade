package gateway

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/internal/pg"
)

// leases are what one process holds, by task, as a transaction has locked it.
type leases map[uuid.UUID]authz.Amounts

// lock locks tasks with every task above them, and what this process holds of them,
// in one round trip.
func (g *Gateway) lock(ctx context.Context, tx pgx.Tx, tasks []uuid.UUID) (all nodes, l leases, err error) {
	var b pgx.Batch
	b.Queue(lockPathsSQL, pgx.NamedArgs{"tasks": tasks, "none": uuid.Nil}).Query(func(rows pgx.Rows) (err error) {
		all, err = collectNodes(rows)
		return err
	})
	b.Queue(lockLeasesSQL, pgx.NamedArgs{"holder": g.holder, "tasks": tasks}).Query(func(rows pgx.Rows) (err error) {
		l, err = collectLeases(rows)
		return err
	})
	return all, l, tx.SendBatch(ctx, &b).Close()
}

// save writes back what has changed of both, in one round trip.
func (g *Gateway) save(ctx context.Context, tx pgx.Tx, all nodes, l leases) error {
	var b pgx.Batch
	g.queueLeases(&b, l)
	all.queue(&b)
	if b.Len() == 0 {
		return nil
	}
	return tx.SendBatch(ctx, &b).Close()
}

func collectLeases(rows pgx.Rows) (leases, error) {
	l := leases{}
	var id uuid.UUID
	var amounts []int64
	_, err := pgx.ForEachRow(rows, []any{&id, &amounts}, func() error {
		var a authz.Amounts
		copy(a[:], amounts)
		l[id], amounts = l[id].Plus(a), nil
		return nil
	})
	return l, err
}

func (g *Gateway) queueLeases(b *pgx.Batch, l leases) {
	var ids []uuid.UUID
	var amounts []string
	for id, a := range l {
		ids, amounts = append(ids, id), append(amounts, a.Literal())
	}
	if len(ids) > 0 {
		b.Queue(saveLeasesSQL, pgx.NamedArgs{"holder": g.holder, "ids": ids, "amounts": amounts})
	}
}

// blocks are what this process has leased and no call uses: the next calls take
// from them without asking the database.
type blocks struct {
	mu sync.Mutex // guards all below
	of map[uuid.UUID]*block
	// freed is closed, and made anew, when something comes back.
	freed chan struct{}
}

// block is what is leased for one task.
type block struct {
	path   []uuid.UUID
	spare  authz.Amounts // leased and not held by a call
	out    authz.Amounts // held by calls under way
	adrift bool          // more may be leased than spare and out say
	budget Budget        // as the database told last, spare counted as used
	end    time.Time     // the earliest deadline of the task and those above it
	seen   time.Time     // when it told
	used   time.Time     // when a call took from it last
}

func newBlocks() *blocks { return &blocks{of: map[uuid.UUID]*block{}, freed: make(chan struct{})} }

const (
	// blockAge is how long a block is drawn from without hearing of its task again.
	blockAge = time.Second
	// blockIdle is how long a block lies unused before it is given back.
	blockIdle = time.Second
)

// take charges a call to what is held here, if that is enough.
func (b *blocks) take(r *reservation) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	k := b.of[r.task]
	now := time.Now()
	if k == nil || now.Sub(k.seen) > blockAge || !r.now.Before(k.end) {
		return false
	}
	var held authz.Amounts
	for _, m := range authz.Meters() {
		switch {
		case r.need[m] == 0 || k.budget.Remaining[m] == authz.Unlimited:
			held[m] = r.need[m]
		case k.spare[m] >= r.need[m]:
			held[m] = r.need[m]
		default:
			return false
		}
	}
	for _, m := range authz.Meters() {
		if k.budget.Remaining[m] != authz.Unlimited {
			k.spare[m] -= held[m]
		}
	}
	k.used, k.out = now, k.out.Plus(held)
	r.charge = charge{held: held, budget: k.now()}
	return true
}

// idle tells whether something is leased that no call holds.
func (k *block) idle() bool { return k.adrift || k.spare != (authz.Amounts{}) }

// now is the budget with what lies spare counted as left.
func (k *block) now() Budget {
	out := k.budget
	out.Used, out.Remaining = out.Used.Minus(k.spare), out.Remaining.Plus(k.spare)
	return out
}

// lend takes out all that lies spare for the trees of roots, and says what is to stay
// leased: what calls under way hold.
func (b *blocks) lend(roots map[uuid.UUID]bool) map[uuid.UUID]authz.Amounts {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := map[uuid.UUID]authz.Amounts{}
	for id, k := range b.of {
		if roots[k.path[0]] && k.idle() {
			// A call that is just being counted out holds nothing any more: then too
			// much stays, and the rest goes back the next time.
			out[id], k.spare, k.adrift = k.out, authz.Amounts{}, k.out != (authz.Amounts{})
		}
	}
	return out
}

// see refreshes a task's block; nil where the task may not go on.
func (b *blocks) see(all nodes, id uuid.UUID) *block {
	up, err := all.above(id)
	if err != nil {
		return nil
	}
	k := b.of[id]
	if k == nil {
		k = &block{path: up[0].path, used: time.Now()}
		b.of[id] = k
	}
	k.seen, k.end = time.Now(), up[0].deadline
	for _, n := range up {
		if n.state != TaskActive {
			k.seen = time.Time{}
		}
		if n.deadline.Before(k.end) {
			k.end = n.deadline
		}
	}
	k.budget = Budget{Limit: up[0].limit, Used: up[0].settled.Plus(up[0].reserved), Remaining: left(up), Deadline: up[0].deadline}
	return k
}

// granted counts a call in, and tells its budget.
func (b *blocks) granted(all nodes, task uuid.UUID, held authz.Amounts) Budget {
	b.mu.Lock()
	defer b.mu.Unlock()
	k := b.see(all, task)
	if k == nil {
		return Budget{}
	}
	k.out = k.out.Plus(held)
	return k.now()
}

// returned counts a call out, after settled has been told of it if it was recorded.
func (b *blocks) returned(task uuid.UUID, held authz.Amounts, recorded bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if k := b.of[task]; k != nil {
		k.out = k.out.Minus(held)
		k.adrift = k.adrift || !recorded
	}
}

// settled keeps what is leased and not used, and what the database told.
func (b *blocks) settled(all nodes, kept map[uuid.UUID]authz.Amounts) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for id, more := range kept {
		if k := b.see(all, id); k != nil {
			k.spare = k.spare.Plus(more)
		}
	}
	b.wake()
}

// wake has those who wait look again; the caller holds mu.
func (b *blocks) wake() {
	close(b.freed)
	b.freed = make(chan struct{})
}

func (b *blocks) waiting() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.freed
}

// idle lists the roots of blocks that nobody has used for a while, and forgets those
// that hold nothing.
func (b *blocks) idle(than time.Duration) (roots []uuid.UUID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for id, k := range b.of {
		switch {
		case time.Since(k.used) < than:
		case k.idle():
			roots = append(roots, k.path[0])
		case k.out == (authz.Amounts{}):
			delete(b.of, id)
		}
	}
	return roots
}

// holds tells a task that something lies spare for, in the tree of root.
func (b *blocks) holds(root uuid.UUID) (task uuid.UUID, held bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for id, k := range b.of {
		if k.path[0] == root && k.idle() {
			return id, true
		}
	}
	return task, false
}

// spareBelow is what lies spare in the tree of root, for each task and those below it.
func (b *blocks) spareBelow(root uuid.UUID) map[uuid.UUID]authz.Amounts {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := map[uuid.UUID]authz.Amounts{}
	for _, k := range b.of {
		if k.path[0] != root {
			continue
		}
		for _, id := range k.path {
			out[id] = out[id].Plus(k.spare)
		}
	}
	return out
}

// charge holds the worst case of a call, waiting briefly for what others hold.
func (g *Gateway) charge(ctx context.Context, r *reservation) error {
	if r.need != (authz.Amounts{}) && g.blocks.take(r) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, busyFor)
	defer cancel()
	for wait := 5 * time.Millisecond; ; wait = min(2*wait, 200*time.Millisecond) {
		freed := g.blocks.waiting()
		r.refused = nil
		err := g.reservations.do(context.WithoutCancel(ctx), r)
		switch {
		case err != nil:
			return err
		case r.refused == nil || !r.busy:
			return r.refused
		case !r.gather:
			r.gather = true // at once: it may be this process that holds the rest
			continue
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return r.refused
		case <-freed:
			t.Stop()
		case <-t.C:
		}
	}
}

// holdMore holds more of the task's budget for a call that is under way.
func (g *Gateway) holdMore(ctx context.Context, s *Session, more authz.Amounts) error {
	if s.charged == nil {
		return nil
	}
	r := &reservation{task: s.Principal.Task, root: s.Principal.Root, need: more, now: g.now()}
	if err := g.charge(ctx, r); err != nil {
		return err
	}
	s.charged.held, s.charged.budget = s.charged.held.Plus(r.charge.held), r.charge.budget
	return nil
}

// giveBack returns what lies spare for the tree of root.
func (g *Gateway) giveBack(ctx context.Context, root uuid.UUID) error {
	task, held := g.blocks.holds(root)
	if !held {
		return nil
	}
	return g.reservations.do(ctx, &reservation{task: task, root: root, give: true, gather: true, now: g.now()})
}

const (
	renewSQL = `
insert into whence.holders (id, expires_at) values (@id, now() + @life)
on conflict (id) do update set expires_at = excluded.expires_at`

	deadSQL      = `select id from whence.holders where expires_at < now() for update skip locked`
	heldTasksSQL = `select task_id from whence.leases where holder_id = any(@holders)`
	takeBackSQL  = `delete from whence.leases where holder_id = any(@holders) returning task_id, amounts`
	buryDeadSQL  = `delete from whence.holders where id = any(@holders)`
)

// holding keeps this process's leases alive, gives back what lies idle, and takes
// back what dead processes hold, until ctx ends.
func (g *Gateway) holding(ctx context.Context) {
	beat, tidy := time.NewTicker(g.lease/6), time.NewTicker(blockIdle/2)
	defer beat.Stop()
	defer tidy.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-beat.C:
			if err := errors.Join(g.breathe(ctx), g.bury(ctx)); err != nil && ctx.Err() == nil {
				g.log.WarnContext(ctx, "cannot keep budgets up; trying again", "error", err)
			}
			if err := g.recoverAll(ctx); err != nil && ctx.Err() == nil {
				g.log.WarnContext(ctx, "cannot bring executions to their end; trying again", "error", err)
			}
		case <-tidy.C:
			for _, root := range g.blocks.idle(blockIdle) {
				if err := g.giveBack(ctx, root); err != nil && ctx.Err() == nil {
					g.log.WarnContext(ctx, "cannot give back what a task does not use; trying again", "error", err)
				}
			}
		}
	}
}

// breathe says that this process lives.
func (g *Gateway) breathe(ctx context.Context) error {
	_, err := g.pool.Exec(ctx, renewSQL, pgx.NamedArgs{"id": g.holder, "life": g.lease})
	return pg.Translate(err)
}

// bury takes back what processes hold that have not renewed themselves.
func (g *Gateway) bury(ctx context.Context) error {
	return pg.InTx(ctx, g.pool, func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx, deadSQL)
		if err != nil {
			return err
		}
		dead, err := pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
		if err != nil || len(dead) == 0 {
			return err
		}
		return g.returnLeases(ctx, tx, dead)
	})
}

// returnLeases ends holders: what they hold goes back to its tasks.
func (g *Gateway) returnLeases(ctx context.Context, tx pgx.Tx, holders []uuid.UUID) error {
	args := pgx.NamedArgs{"holders": holders}
	rows, err := tx.Query(ctx, heldTasksSQL, args)
	if err != nil {
		return err
	}
	tasks, err := pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
	if err != nil {
		return err
	}
	all, err := lockPaths(ctx, tx, tasks)
	if err != nil {
		return err
	}
	if rows, err = tx.Query(ctx, takeBackSQL, args); err != nil {
		return err
	}
	held, err := collectLeases(rows)
	if err != nil {
		return err
	}
	for id, amounts := range held {
		up, err := all.above(id)
		if err != nil {
			return fmt.Errorf("take back what a dead process held: %w", err)
		}
		for _, n := range up {
			n.reserved, n.changed = n.reserved.Minus(amounts), true
		}
	}
	if err := g.save(ctx, tx, all, nil); err != nil {
		return err
	}
	_, err = tx.Exec(ctx, buryDeadSQL, args)
	return err
}

// retire gives back all that this process holds, as it goes.
func (g *Gateway) retire(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, flushTimeout)
	defer cancel()
	err := pg.InTx(ctx, g.pool, func(tx pgx.Tx) error { return g.returnLeases(ctx, tx, []uuid.UUID{g.holder}) })
	var pe *pgconn.PgError
	if err != nil && !errors.As(err, &pe) {
		g.log.WarnContext(ctx, "cannot give back what tasks hold; it goes back when the lease is over", "error", err)
	}
}
