package gateway

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/internal/pg"
)

// Budget is what a task may still spend; unlimited where nothing bounds it.
type Budget struct {
	Limit     authz.Amounts // of the task itself
	Used      authz.Amounts // charged to it, calls under way included
	Remaining authz.Amounts // what it can spend: the least that is left to it or to any task above it
	Deadline  time.Time
}

// reservation asks for one call's worst case, and says what came of it.
type reservation struct {
	task, root uuid.UUID
	need       authz.Amounts // the worst that the call may cost
	now        time.Time
	give       bool // asks for nothing
	gather     bool // first gives back what this process holds idle for the tree

	refused error // why the task may not go on; nil: charged
	busy    bool  // refused only for what calls under way hold
	charge  charge
}

// charge is what a call holds of its task's budget until it is recorded.
type charge struct {
	held   authz.Amounts // the most that it may use
	budget Budget
}

const (
	// Without waiting for the disk. A crash of the database can lose a lease that is
	// being used, and then its calls are charged as they are recorded, or fail.
	asyncSQL = `set local synchronous_commit = off`

	pathsSQL = `
select id, path, state, deadline, limits, settled, reserved, coalesce(grant_id, @none), max_depth, coalesce(ended_at, deadline)
from whence.tasks
where id in (select unnest(path) from whence.tasks where id = any(@tasks))`

	// In the order of ids, so that no two transactions wait for each other.
	lockPathsSQL = pathsSQL + `
order by id
for no key update`

	saveNodesSQL = `
update whence.tasks t set settled = c.settled::bigint[], reserved = c.reserved::bigint[],
    embedding_calls = t.embedding_calls + c.embedded
from unnest(@ids::uuid[], @settled::text[], @reserved::text[], @embedded::bigint[]) as c(id, settled, reserved, embedded)
where t.id = c.id`

	lockLeasesSQL = `
select task_id, amounts from whence.leases where holder_id = @holder and task_id = any(@tasks) order by task_id for update`

	saveLeasesSQL = `
insert into whence.leases as l (holder_id, task_id, amounts)
select @holder, c.id, c.amounts::bigint[] from unnest(@ids::uuid[], @amounts::text[]) as c(id, amounts)
on conflict (holder_id, task_id) do update set amounts = excluded.amounts`
)

// reserve leases to this process what a batch of calls may cost at the worst, and
// somewhat more where there is plenty, from their tasks and every task above them.
// The rows are locked, the calls decided one after the other in memory, and the
// sums written back: whatever comes at once, from however many processes, no sum
// passes its limit.
func (g *Gateway) reserve(ctx context.Context, batch []*reservation) error {
	var tasks []uuid.UUID
	roots := map[uuid.UUID]bool{}
	for _, r := range batch {
		tasks = append(tasks, r.task)
		if r.gather {
			roots[r.root] = true
		}
	}
	idle := g.blocks.lend(roots)
	for id := range idle {
		tasks = append(tasks, id)
	}
	var extra map[uuid.UUID]authz.Amounts
	var all nodes
	err := pg.InTx(ctx, g.pool, func(tx pgx.Tx) (err error) {
		extra = map[uuid.UUID]authz.Amounts{}
		if _, err := tx.Exec(ctx, asyncSQL); err != nil {
			return err
		}
		var l leases
		if all, l, err = g.lock(ctx, tx, tasks); err != nil {
			return err
		}
		for id, stays := range idle {
			all.release(l, id, stays)
		}
		for _, r := range batch {
			if r.refused = nil; r.give {
				continue
			}
			var more authz.Amounts
			if more, err = all.grant(l, r); err != nil {
				r.refused = err
				continue
			}
			extra[r.task] = extra[r.task].Plus(more)
		}
		return g.save(ctx, tx, all, l)
	})
	if err != nil {
		return err
	}
	for id := range idle {
		extra[id] = extra[id].Plus(authz.Amounts{})
	}
	g.blocks.settled(all, extra)
	for _, r := range batch {
		if !r.give && r.refused == nil {
			r.charge.budget = g.blocks.granted(all, r.task, r.charge.held)
		}
	}
	return nil
}

// node is a locked row of whence.tasks.
type node struct {
	id                       uuid.UUID
	path                     []uuid.UUID
	state                    TaskState
	deadline, ended          time.Time
	limit, settled, reserved authz.Amounts
	grant                    uuid.UUID
	maxDepth                 int
	embedded                 int64 // calls of the embedding model to be added
	changed                  bool
}

// room is what can still be reserved.
func (n *node) room() authz.Amounts { return n.limit.Minus(n.settled).Minus(n.reserved) }

// unspent is what is not settled.
func (n *node) unspent() authz.Amounts { return n.limit.Minus(n.settled) }

// nodes are tasks with every task above them, by id.
type nodes map[uuid.UUID]*node

func lockPaths(ctx context.Context, tx pgx.Tx, tasks []uuid.UUID) (nodes, error) {
	rows, err := tx.Query(ctx, lockPathsSQL, pgx.NamedArgs{"tasks": tasks, "none": uuid.Nil})
	if err != nil {
		return nil, err
	}
	return collectNodes(rows)
}

func collectNodes(rows pgx.Rows) (nodes, error) {
	all := nodes{}
	var n node
	var limit, settled, reserved []int64
	_, err := pgx.ForEachRow(rows, []any{&n.id, &n.path, &n.state, &n.deadline, &limit, &settled, &reserved, &n.grant, &n.maxDepth, &n.ended}, func() error {
		c := n
		copy(c.limit[:], limit)
		copy(c.settled[:], settled)
		copy(c.reserved[:], reserved)
		all[c.id] = &c
		n.path, limit, settled, reserved = nil, nil, nil, nil
		return nil
	})
	return all, err
}

// path returns a task that may go on: itself first, then those above it, all alive.
func (all nodes) path(task uuid.UUID, now time.Time) ([]*node, error) {
	up, err := all.above(task)
	if err != nil {
		return nil, err
	}
	for _, n := range up {
		if err := n.alive(now); err != nil {
			return nil, err
		}
	}
	return up, nil
}

// above returns a task and those above it.
func (all nodes) above(task uuid.UUID) ([]*node, error) {
	self, ok := all[task]
	if !ok {
		return nil, taskError("TASK_NOT_FOUND", task, "the task of this credential does not exist; start a new task")
	}
	var up []*node
	for i := len(self.path) - 1; i >= 0; i-- {
		n, ok := all[self.path[i]]
		if !ok {
			return nil, fmt.Errorf("task %s: no row for the task %s above it", task, self.path[i])
		}
		up = append(up, n)
	}
	return up, nil
}

func (n *node) alive(now time.Time) error {
	switch {
	case n.state == TaskRevoked:
		return taskError("TASK_REVOKED", n.id, "the task was revoked; ask the operator before starting another")
	case n.state != TaskActive:
		return taskError("TASK_ENDED", n.id, "the task has ended; start a new task")
	case !now.Before(n.deadline):
		return taskError("TASK_EXPIRED", n.id, "the task's deadline has passed; start a new task")
	}
	return nil
}

func taskError(reason string, task uuid.UUID, message string) error {
	return &whence.Error{Kind: whence.ErrDenied, Reason: reason, Message: message,
		Metadata: map[string]string{"task": task.String()}}
}

// exhausted refuses what n cannot pay.
func (n *node) exhausted(m authz.Meter, wanted int64) *whence.Error {
	return &whence.Error{Kind: whence.ErrExhausted, Reason: "BUDGET_EXHAUSTED",
		Message: fmt.Sprintf("task %s has %d of its %d %s left, and this needs %d; ask for less, end the task, or start one with a larger budget",
			n.id, n.unspent()[m], n.limit[m], m, wanted),
		Metadata: n.quota(m, n.settled[m], wanted)}
}

func (n *node) quota(m authz.Meter, used, wanted int64) map[string]string {
	return map[string]string{"task": n.id.String(), "meter": m.String(), "limit": strconv.FormatInt(n.limit[m], 10),
		"used": strconv.FormatInt(used, 10), "needed": strconv.FormatInt(wanted, 10)}
}

// busyFor is how long a call waits for what others hold before it is refused, and
// when the refused may come again.
const busyFor = 2 * time.Second

// busy refuses what n could pay if calls under way did not hold it.
func (n *node) busy(m authz.Meter, wanted int64) *whence.Error {
	what := fmt.Sprintf("the %s that task %s has left are held by calls under way; try again when some have come back", m, n.id)
	if m == authz.Concurrency {
		what = fmt.Sprintf("task %s has %d calls under way, as many as it may; try again when one has come back", n.id, n.limit[m])
	}
	return &whence.Error{Kind: whence.ErrExhausted, Reason: "BUDGET_BUSY", Message: what, RetryAfter: busyFor / 4,
		Metadata: n.quota(m, n.settled[m]+n.reserved[m], wanted)}
}

// grant decides one call; an error says why it may not run. It returns what is
// leased beyond the call's need.
func (all nodes) grant(l leases, r *reservation) (extra authz.Amounts, err error) {
	up, err := all.path(r.task, r.now)
	if err != nil {
		return extra, err
	}
	r.busy = false
	room := left(up)
	need := r.need
	if b := room[authz.Bytes]; need[authz.Bytes] > b && b >= leastBytes { // it runs with what there is
		need[authz.Bytes] = b
	} else if need[authz.Bytes] > b { // or waits for what others hold
		need[authz.Bytes] = min(need[authz.Bytes], leastBytes)
	}
	for _, n := range up {
		room := n.room()
		for _, m := range authz.Meters() {
			switch {
			case n.limit[m] == authz.Unlimited || need[m] == 0 || need[m] <= room[m]:
			case need[m] <= n.unspent()[m]:
				r.busy, err = true, n.busy(m, need[m])
			default:
				r.busy = false
				return extra, n.exhausted(m, need[m])
			}
		}
	}
	if err != nil {
		return extra, err
	}
	r.charge = charge{held: need}
	for _, m := range authz.Meters() {
		if room[m] != authz.Unlimited && m != authz.Concurrency && need[m] > 0 {
			extra[m] = min(ahead*need[m], (room[m]-need[m])/16)
		}
	}
	all.reserve(l, up, need.Plus(extra))
	return extra, nil
}

const (
	ahead      = 63   // how many calls like this one are leased with it, where there is plenty
	leastBytes = 4096 // of a reply: with fewer left, a call waits or is refused
)

// reserve books amounts on a task and those above it, for what is bounded there.
func (all nodes) reserve(l leases, up []*node, amounts authz.Amounts) {
	lease, room := l[up[0].id], left(up)
	for _, m := range authz.Meters() {
		if amounts[m] == 0 || room[m] == authz.Unlimited {
			continue
		}
		for _, n := range up {
			n.reserved[m] += amounts[m]
			n.changed = true
		}
		lease[m] += amounts[m]
	}
	l[up[0].id] = lease
}

// release gives back what is leased to a task but for what stays.
func (all nodes) release(l leases, task uuid.UUID, stays authz.Amounts) {
	up, err := all.above(task)
	lease, ok := l[task]
	if err != nil || !ok {
		return // it was taken for dead, and nothing is held any more
	}
	back := lease.Minus(stays.Min(lease))
	for _, n := range up {
		n.reserved = n.reserved.Minus(back)
		n.changed = true
	}
	l[task] = lease.Minus(back)
}

// left is what a task can spend: the least that it or any task above it has left.
func left(up []*node) authz.Amounts {
	least := up[0].room()
	for _, n := range up[1:] {
		least = least.Min(n.room())
	}
	return least
}

func (all nodes) queue(b *pgx.Batch) {
	var ids []uuid.UUID
	var settled, reserved []string
	var embedded []int64
	for id, n := range all {
		if n.changed {
			ids, settled, reserved = append(ids, id), append(settled, n.settled.Literal()), append(reserved, n.reserved.Literal())
			embedded = append(embedded, n.embedded)
		}
	}
	if len(ids) > 0 {
		b.Queue(saveNodesSQL, pgx.NamedArgs{"ids": ids, "settled": settled, "reserved": reserved, "embedded": embedded})
	}
}
