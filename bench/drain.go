package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/pprof"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/cdc"
)

// drainResult compares the ways to read one log to its end.
type drainResult struct {
	Changes     int     `json:"changes"` // that are only read
	Applied     int     `json:"applied"` // that are applied too; the first of them
	LogBytes    int64   `json:"log_bytes"`
	WriteRate   float64 `json:"written_per_second"` // by the source, without a reader
	Rounds      int     `json:"rounds"`
	ApplyRounds int     `json:"apply_rounds"`

	// Changes a second.
	Recvlogical  figure `json:"pg_recvlogical"`
	Decode       figure `json:"decode"`
	Subscription figure `json:"subscription"`
	Capture      figure `json:"capture"`
	Floor        figure `json:"floor"`

	DecodeRatio  figure `json:"decode_to_pg_recvlogical"`
	CaptureRatio figure `json:"capture_to_floor"`
	NativeRatio  figure `json:"capture_to_subscription"`

	// The client's processor time, in microseconds a change.
	RecvlogicalCPU figure `json:"pg_recvlogical_cpu_us"`
	DecodeCPU      figure `json:"decode_cpu_us"`
	CaptureCPU     figure `json:"capture_cpu_us"`

	DecodeAllocations  figure `json:"decode_allocations"` // a change
	CaptureAllocations figure `json:"capture_allocations"`
	DecodePeak         figure `json:"decode_peak_mb"` // resident, of this whole process
	CapturePeak        figure `json:"capture_peak_mb"`
	Before             figure `json:"before_mb"` // resident before each turn

	// Of capture's slot when everything was applied and nothing was embedded.
	Retained    int64 `json:"retained_wal_bytes"`
	Unconfirmed int64 `json:"unconfirmed_wal_bytes"`
}

// turn is one way's part of a round.
type turn struct {
	seconds      float64
	use          usage
	before, peak float64  // MB
	left         retained // capture's alone
}

const drainLimit = 10 * time.Minute // of one turn

var errNotADrain = errors.New("a drain of a LIVE table came to something that cannot happen in one")

// decode drains n changes through capture into a sink that counts.
func (w *world) decode(ctx context.Context, s stretch, keep bool, profile string) (turn, []cdc.Change, error) {
	const slot = "bench_decode"
	if err := w.copySlot(ctx, originSlot, slot); err != nil {
		return turn{}, nil, err
	}
	sink := &countingSink{table: w.table, wanted: s.changes, keep: keep, done: make(chan struct{})}
	err := w.app.QueryRow(ctx, `
select s.confirmed_flush_lsn, c.system_identifier::text, k.timeline_id
from pg_replication_slots s, pg_control_system() c, pg_control_checkpoint() k where s.slot_name = $1`, slot).
		Scan(&sink.checkpoint, &sink.cluster.System, &sink.cluster.Timeline)
	if err != nil {
		return turn{}, nil, err
	}
	capture, err := cdc.New(cdc.Config{ConnString: w.source.DSN("app"), Slot: slot, Publication: w.publication, Sink: sink,
		Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return turn{}, nil, err
	}
	t, err := measured(profile, func(reached func()) error {
		return beside(ctx, capture.Run, func(ctx context.Context) error {
			select {
			case <-sink.done:
				reached()
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	})
	if err == nil && sink.count != s.changes {
		err = fmt.Errorf("capture handed over %d changes and not %d", sink.count, s.changes)
	}
	return t, sink.kept, errors.Join(err, w.dropSlot(ctx, slot))
}

// capture drains the changes into a memory database, without an embedder.
func (w *world) capture(ctx context.Context, s stretch, name, profile string) (t turn, err error) {
	if err := w.dropSlot(ctx, w.slot); err != nil {
		return t, err
	}
	if err := w.copySlot(ctx, originSlot, w.slot); err != nil {
		return t, err
	}
	if err := w.copyDatabase(ctx, memoryName, name); err != nil {
		return t, err
	}
	err = w.with(ctx, name, func(m *memoryDatabase) error {
		var left retained
		t, err = measured(profile, func(reached func()) error {
			return m.capture(ctx, func(ctx context.Context) (err error) {
				if err := m.applied(ctx, w.table, s.last); err != nil {
					return err
				}
				reached()
				left, err = w.retained(ctx, s)
				return err
			})
		})
		t.left = left
		return err
	})
	return t, err
}

// retained is what capture's slot keeps of the source's log.
type retained struct{ kept, unconfirmed int64 }

const retainedSQL = `
select (pg_current_wal_lsn() - restart_lsn)::bigint, (pg_current_wal_lsn() - confirmed_flush_lsn)::bigint, confirmed_flush_lsn
from pg_replication_slots where slot_name = @slot`

// retained waits a moment for capture to confirm what it has applied.
func (w *world) retained(ctx context.Context, s stretch) (r retained, err error) {
	for range 50 {
		var confirmed whence.LSN
		err := w.app.QueryRow(ctx, retainedSQL, pgx.NamedArgs{"slot": w.slot}).Scan(&r.kept, &r.unconfirmed, &confirmed)
		if err != nil || confirmed >= s.end {
			return r, err
		}
		if err := pause(ctx, 100*time.Millisecond); err != nil {
			return r, err
		}
	}
	return r, nil
}

const appliedSQL = `select exists (select from whence.records where table_id = @table and key = @key and not deleted)`

// applied waits until a row has a record.
func (m *memoryDatabase) applied(ctx context.Context, t whence.Table, id int64) error {
	text := fmt.Sprint(id)
	key, err := whence.NewKey(t.KeyColumns, whence.Values{"id": &text})
	if err != nil {
		return err
	}
	return poll(ctx, m.pool, appliedSQL, pgx.NamedArgs{"table": t.ID, "key": string(key)})
}

type querier interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// poll asks until the answer is true, and the longer it has taken the more
// seldom: the asking must cost next to nothing, and a two-hundredth does not show.
func poll(ctx context.Context, db querier, sql string, args pgx.NamedArgs) error {
	for begun := time.Now(); ; {
		var yes bool
		if err := db.QueryRow(ctx, sql, args).Scan(&yes); err != nil || yes {
			return err
		}
		if err := pause(ctx, max(5*time.Millisecond, time.Since(begun)/200)); err != nil {
			return err
		}
	}
}

// writeFloor writes the floor into a memory database of its own.
func (w *world) writeFloor(ctx context.Context, f *floor, name string) (t turn, err error) {
	if err := w.copyDatabase(ctx, memoryName, name); err != nil {
		return t, err
	}
	conn, err := pgx.Connect(ctx, w.memory.DSN(name))
	if err != nil {
		return t, err
	}
	defer closeConn(ctx, conn)
	return measured("", func(func()) error { return f.write(ctx, conn) })
}

// measured runs one turn in this process. It ends when do has reached what it
// was to do, and at the latest when it returns.
func measured(profile string, do func(reached func()) error) (t turn, err error) {
	resetPeak()
	t.before = residentMB(os.Getpid(), "VmRSS")
	if profile != "" {
		f, err := os.Create(profile) //nolint:gosec // whoever runs the benchmark names it
		if err != nil {
			return t, err
		}
		defer func() { err = errors.Join(err, f.Close()) }()
		if err := pprof.StartCPUProfile(f); err != nil {
			return t, err
		}
		defer pprof.StopCPUProfile()
	}
	before, err := ownUsage()
	if err != nil {
		return t, err
	}
	begun := time.Now()
	reached := func() {
		if t.seconds == 0 {
			t.seconds = time.Since(begun).Seconds()
			t.peak = residentMB(os.Getpid(), "VmHWM")
			after, _ := ownUsage() // it worked before
			t.use = after.since(before)
		}
	}
	err = do(reached)
	reached()
	return t, err
}

// recvlogical drains the changes by Postgres's own program, which throws them away.
func (w *world) recvlogical(ctx context.Context, s stretch) (turn, error) {
	const slot = "bench_recvlogical"
	if err := w.copySlot(ctx, originSlot, slot); err != nil {
		return turn{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, drainLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(w.bin, "pg_recvlogical"), "--dbname", w.source.DSN("app"), "--slot", slot, "--start",
		"--no-loop", "--endpos", s.end.String(), "--file", "/dev/null",
		"--option", "proto_version=1", "--option", "publication_names="+w.publication)
	var said strings.Builder
	cmd.Stderr = &said
	begun := time.Now()
	if err := cmd.Run(); err != nil {
		return turn{}, fmt.Errorf("pg_recvlogical: %w: %s", err, said.String())
	}
	t := turn{seconds: time.Since(begun).Seconds()}
	t.use.cpu = cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	return t, w.dropSlot(ctx, slot)
}

// subscription drains the changes by Postgres's own replication into a copy of
// the empty tables.
func (w *world) subscription(ctx context.Context, s stretch) (t turn, err error) {
	const slot, database = "bench_subscription", "subscriber"
	if err := w.copySlot(ctx, originSlot, slot); err != nil {
		return t, err
	}
	if err := w.copyDatabase(ctx, emptyName, database); err != nil {
		return t, err
	}
	conn, err := pgx.Connect(ctx, w.memory.DSN(database))
	if err != nil {
		return t, err
	}
	defer closeConn(ctx, conn)
	// Identifiers and literals of the benchmark's own; nothing to quote.
	create := fmt.Sprintf("create subscription bench connection '%s' publication %s with (create_slot = false, copy_data = false, slot_name = '%s')",
		w.source.DSN("app"), w.publication, slot)
	begun := time.Now()
	if _, err := conn.Exec(ctx, create); err != nil {
		return t, err
	}
	err = poll(ctx, conn, "select exists (select from items where id = @id)", pgx.NamedArgs{"id": s.last})
	t.seconds = time.Since(begun).Seconds()
	for _, sql := range []string{"alter subscription bench disable", "alter subscription bench set (slot_name = none)", "drop subscription bench"} {
		if err == nil {
			_, err = conn.Exec(ctx, sql)
		}
	}
	return t, errors.Join(err, w.dropSlot(ctx, slot))
}
