package cdc

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
)

const healthSQL = `
select coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), s.restart_lsn), 0)::bigint, coalesce(s.safe_wal_size, -1), coalesce(s.wal_status, '')
  from pg_replication_slots s
 where s.slot_name = @slot`

// muchWAL is kept for a slot without bound before that is worth a word.
const muchWAL = 4 << 30

// health asks how the slot is, and tells.
func (t *tender) health(ctx context.Context) error {
	var h Health
	err := t.conn.QueryRow(ctx, healthSQL, pgx.NamedArgs{"slot": t.cfg.Slot}).Scan(&h.RetainedWAL, &h.SafeWAL, &h.WALStatus)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil // the stream finds out
	}
	if err != nil {
		return fmt.Errorf("look after the replication slot: %w", err)
	}
	h.Warning = h.warning(t.cfg.Slot)
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
	switch {
	case h.WALStatus == "unreserved" || h.WALStatus == "lost":
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
