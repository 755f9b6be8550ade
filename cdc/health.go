package cdc

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
)

const healthSQL = `
select pg_current_wal_lsn(), coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), s.restart_lsn), 0)::bigint,
       coalesce(s.safe_wal_size, -1), coalesce(s.wal_status, ''), s.slot_name is null,
       array(select distinct b.pid
               from pg_stat_activity a, unnest(pg_blocking_pids(a.pid)) b(pid)
              where a.datname = current_database() and a.usename = current_user
                and a.application_name like 'whence%' and a.wait_event_type = 'Lock'
              order by b.pid)
  from (select) one
  left join pg_replication_slots s on s.slot_name = @slot`

// muchWAL is kept for a slot without bound before that is worth a word.
const muchWAL = 4 << 30

// rower is a connection or a pool.
type rower interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

func readHealth(ctx context.Context, q rower, slot string) (h Health, err error) {
	var end whence.LSN
	err = q.QueryRow(ctx, healthSQL, pgx.NamedArgs{"slot": slot}).Scan(&end, &h.RetainedWAL, &h.SafeWAL, &h.WALStatus, &h.Gone, &h.Awaits)
	if err != nil {
		return Health{}, fmt.Errorf("look after the replication slot: %w", err)
	}
	if h.Gone || h.WALStatus == "lost" {
		h.SafeWAL = 0
	}
	if !h.Gone { // where there is no slot the log may be another's
		h.End = end
	}
	h.Warning = h.warning(slot)
	return h, nil
}

// Health asks how a slot is, also while nobody follows it.
func (r *Reader) Health(ctx context.Context, slot string) (Health, error) {
	return readHealth(ctx, r.pool, slot)
}

// health asks how the slot is, and tells.
func (t *tender) health(ctx context.Context) error {
	h, err := readHealth(ctx, t.conn, t.cfg.Slot)
	if err != nil {
		return err
	}
	if h.Gone {
		return nil // the stream finds out
	}
	if (h.Warning == "") != (t.warned == "") {
		if h.Warning != "" {
			t.log.WarnContext(ctx, "the source may lose the slot", "warning", h.Warning)
		}
		t.warned = h.Warning
	}
	t.cfg.Health(h)
	return nil
}

// warning comes when half of what the source may keep is used: early enough to
// let capture catch up, or to raise the bound.
func (h Health) warning(slot string) string {
	const advice = "let capture catch up, or raise max_slot_wal_keep_size on the source"
	const compared = "every table is compared with the source's once capture goes on"
	switch {
	case h.Gone:
		return fmt.Sprintf("the replication slot %s is not there any more: %s", slot, compared)
	case h.WALStatus == "lost":
		return fmt.Sprintf("the source has removed log that the replication slot %s still needed: %s", slot, compared)
	case h.WALStatus == "unreserved":
		return fmt.Sprintf("the source is about to remove log that the replication slot %s still needs: %s", slot, advice)
	case h.SafeWAL >= 0 && h.RetainedWAL > h.SafeWAL:
		return fmt.Sprintf("the source keeps %d MB of log for the replication slot %s and will give it up after %d MB more: %s",
			h.RetainedWAL>>20, slot, h.SafeWAL>>20, advice)
	case h.SafeWAL < 0 && h.RetainedWAL > muchWAL:
		return fmt.Sprintf("the source keeps %d MB of log for the replication slot %s, without bound: "+
			"let capture catch up before its disk is full, or set max_slot_wal_keep_size", h.RetainedWAL>>20, slot)
	}
	return ""
}
