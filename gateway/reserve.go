package gateway

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/internal/pg"
)

// reservation is one call's request to be charged, and what came of it.
type reservation struct {
	task  uuid.UUID
	calls int64
	now   time.Time

	refused error // why the task may not go on; nil: charged
	path    []uuid.UUID
	budget  Budget
	epoch   time.Time
}

// Budget is what a task may still spend.
type Budget struct {
	Limit     int64 // calls, of the task itself
	Used      int64 // charged to it, calls under way included
	Remaining int64 // what it can spend: the least that is left to it or to any task above it
	Deadline  time.Time
}

const (
	// Without waiting for the disk: the record of the call, which is waited for,
	// comes later in the write-ahead log, so if it is durable, so is this. What is
	// left is a crash between the two that this process survives; epochSQL finds out.
	asyncSQL = `set local synchronous_commit = off`

	// Postgres begins its statistics anew in crash recovery, and only then (or at an
	// administrator's word): the same epoch means that nothing committed was lost.
	epochSQL = `select coalesce(stats_reset, 'epoch') from pg_stat_wal`

	// In the order of ids, so that no two transactions wait for each other.
	lockPathsSQL = `
select id, path, state, deadline, calls_limit, calls_settled, coalesce(grant_id, @none), max_depth
from whence.tasks
where id in (select unnest(path) from whence.tasks where id = any(@tasks))
order by id
for no key update`

	chargeSQL = `
update whence.tasks t set calls_settled = c.used
from unnest(@ids::uuid[], @used::bigint[]) as c(id, used)
where t.id = c.id`
)

// reserve charges a batch of calls to their tasks and to every task above them.
// The rows are locked, the calls decided one after the other in memory, and the
// sums written back: whatever comes at once, from however many processes, no sum
// passes its limit.
func (g *Gateway) reserve(ctx context.Context, batch []*reservation) error {
	tasks := make([]uuid.UUID, len(batch))
	for i, r := range batch {
		tasks[i] = r.task
	}
	return pg.InTx(ctx, g.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, asyncSQL); err != nil {
			return err
		}
		all, err := lockPaths(ctx, tx, tasks)
		if err != nil {
			return err
		}
		var epoch time.Time
		if err := tx.QueryRow(ctx, epochSQL).Scan(&epoch); err != nil {
			return err
		}
		for _, r := range batch {
			r.epoch = epoch
			r.refused = all.charge(r)
		}
		return all.save(ctx, tx)
	})
}

// node is a locked row of whence.tasks.
type node struct {
	id          uuid.UUID
	path        []uuid.UUID
	state       TaskState
	deadline    time.Time
	limit, used int64
	grant       uuid.UUID
	maxDepth    int
	changed     bool
}

// nodes are tasks with every task above them, by id.
type nodes map[uuid.UUID]*node

func lockPaths(ctx context.Context, tx pgx.Tx, tasks []uuid.UUID) (nodes, error) {
	rows, err := tx.Query(ctx, lockPathsSQL, pgx.NamedArgs{"tasks": tasks, "none": uuid.Nil})
	if err != nil {
		return nil, err
	}
	all := nodes{}
	var n node
	_, err = pgx.ForEachRow(rows, []any{&n.id, &n.path, &n.state, &n.deadline, &n.limit, &n.used, &n.grant, &n.maxDepth}, func() error {
		c := n
		all[c.id] = &c
		n.path = nil
		return nil
	})
	return all, err
}

// path returns a task that may go on: itself first, then those above it, all alive.
func (all nodes) path(task uuid.UUID, now time.Time) ([]*node, error) {
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
		if err := n.alive(now); err != nil {
			return nil, err
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
func (n *node) exhausted(wanted int64) error {
	return &whence.Error{Kind: whence.ErrExhausted, Reason: "BUDGET_EXHAUSTED",
		Message: fmt.Sprintf("task %[4]s has %[2]d of its %[3]d calls left, and this needs %[1]d; end the task, or start one with a larger budget",
			wanted, n.limit-n.used, n.limit, n.id),
		Metadata: map[string]string{"task": n.id.String(),
			"limit": strconv.FormatInt(n.limit, 10), "used": strconv.FormatInt(n.used, 10)}}
}

// charge decides one call; an error says why it may not run.
func (all nodes) charge(r *reservation) error {
	up, err := all.path(r.task, r.now)
	if err != nil {
		return err
	}
	for _, n := range up {
		if r.calls > n.limit-n.used {
			return n.exhausted(r.calls)
		}
	}
	r.path = up[0].path
	for _, n := range up {
		n.used += r.calls
		n.changed = n.changed || r.calls != 0
	}
	r.budget = Budget{Limit: up[0].limit, Used: up[0].used, Remaining: left(up), Deadline: up[0].deadline}
	return nil
}

// left is what a task can spend: the least that it or any task above it has left.
func left(up []*node) int64 {
	least := up[0].limit - up[0].used
	for _, n := range up {
		least = min(least, n.limit-n.used)
	}
	return least
}

func (all nodes) save(ctx context.Context, tx pgx.Tx) error {
	var ids []uuid.UUID
	var used []int64
	for _, n := range all {
		if n.changed {
			ids, used = append(ids, n.id), append(used, n.used)
		}
	}
	if len(ids) == 0 {
		return nil
	}
	_, err := tx.Exec(ctx, chargeSQL, pgx.NamedArgs{"ids": ids, "used": used})
	return err
}
