package ingest

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/whence-db/whence/cdc"
)

const (
	healthEvery = 5 * time.Second  // that capture writes how its slot is
	healthLate  = 8 * time.Second  // after which any process of the role looks itself
	healthLimit = 30 * time.Second // after which figures are old
)

// What capture tells of the lag counts as long as it does: between two readings
// of the source it knows better what is nothing but others' log. Without a slot
// the source's position may be of another history.
const noteHealth = `
update whence.checkpoints
set retained_wal = @retained, safe_wal = @safe, warning = nullif(@warning, ''), awaits = @awaits, health_at = clock_timestamp(),
    lag_bytes = case when told or @gone then lag_bytes else greatest(0, @end::pg_lsn - lsn)::bigint end,
    lag_at = case when told or @gone then lag_at else clock_timestamp() end
from (select coalesce(lag_at > clock_timestamp() - interval '15 s', false) as told from whence.checkpoints where source_id = @id) t
where source_id = @id`

func (r *Runner) noteHealth(ctx context.Context, s Source, h cdc.Health) {
	args := pgx.NamedArgs{"id": s.ID, "retained": h.RetainedWAL, "safe": h.SafeWAL, "warning": h.Warning, "gone": h.Gone, "end": h.End,
		"awaits": backends(h.Awaits)}
	if _, err := r.Registry.pool.Exec(ctx, noteHealth, args); err != nil && ctx.Err() == nil {
		r.Log.WarnContext(ctx, "cannot record how the slot is", "source", s.Name, "error", err)
	}
}

// backends names those that capture waits for.
func backends(pids []int32) string {
	var names []string
	for _, pid := range pids {
		name := "backend " + strconv.Itoa(int(pid))
		if pid == 0 {
			name = "a prepared transaction"
		}
		names = append(names, name)
	}
	return strings.Join(names, ", ")
}

// healthNoter writes how the slot is now and then, and at once when a warning or
// something to wait for comes or goes.
func (r *Runner) healthNoter(ctx context.Context, s Source) func(cdc.Health) {
	var next time.Time
	var last cdc.Health
	return func(h cdc.Health) {
		if time.Now().Before(next) && (h.Warning == "") == (last.Warning == "") && (len(h.Awaits) == 0) == (len(last.Awaits) == 0) {
			return
		}
		next, last = time.Now().Add(healthEvery), h
		r.noteHealth(ctx, s, h)
	}
}

// watchSlots looks at the slots of which no capture tells: of sources that are
// paused, broken or cannot be followed. Then above all they hold back log.
func (r *Runner) watchSlots(ctx context.Context) error {
	const pause = 2 * time.Second
	warned := map[int32]string{}
	for {
		sources, err := r.Registry.ListSources(ctx)
		if err != nil {
			sources = nil // supervise tells
		}
		seen := make([]*cdc.Health, len(sources))
		var g errgroup.Group
		for i, s := range sources {
			if s.LSN != 0 && !s.deleting && s.healthAge >= healthLate {
				g.Go(func() error { seen[i] = r.lookAtSlot(ctx, s); return nil })
			}
		}
		_ = g.Wait() // they have logged
		for i, h := range seen {
			if h == nil || ctx.Err() != nil {
				continue
			}
			s := sources[i]
			r.noteHealth(ctx, s, *h)
			if h.Warning != "" && warned[s.ID] == "" {
				r.Log.WarnContext(ctx, "the source may lose the slot", "source", s.Name, "warning", h.Warning)
			}
			warned[s.ID] = h.Warning
		}
		if err := sleep(ctx, pause); err != nil {
			return err
		}
	}
}

// lookAtSlot returns nil when the source does not say.
func (r *Runner) lookAtSlot(ctx context.Context, s Source) *cdc.Health {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	from, err := r.Registry.reader(s)
	var h cdc.Health
	if err == nil {
		h, err = from.Health(ctx, s.Slot)
	}
	if err != nil {
		r.Log.DebugContext(ctx, "cannot look at the slot", "source", s.Name, "error", err)
		return nil
	}
	return &h
}

// ageHealth takes figures away that are old: they would look as healthy as they
// were. A negative age is that of figures that nobody has told yet.
func (s *Source) ageHealth(lag, health float64, at *time.Time) {
	s.healthAge = healthLate
	if health >= 0 {
		s.healthAge = time.Duration(health * float64(time.Second))
	}
	if lag < 0 || lag > healthLimit.Seconds() {
		s.LagBytes = -1
	}
	if health >= 0 && s.healthAge <= healthLimit {
		return
	}
	s.RetainedWAL, s.SafeWAL, s.awaits = -1, -1, ""
	if at == nil || s.deleting {
		return
	}
	before := ""
	if s.Warning != "" {
		before = "; before that: " + s.Warning
	}
	s.Warning = fmt.Sprintf("how the replication slot %s is has not been known since %s: see that a process with the role capture runs "+
		"and can reach the source%s", s.Slot, at.UTC().Format(time.RFC3339), before)
}
