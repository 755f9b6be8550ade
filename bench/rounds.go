package main

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"
)

// drainBudget is how long rounds of a part may begin.
const drainBudget = 75 * time.Second

// measureDrain writes the log in two stretches, the first of which is also
// applied, and drains them in turns.
func measureDrain(ctx context.Context, w *world, c config, say func(string, ...any)) (r drainResult, err error) {
	say("writing %d changes to the source", c.changes)
	first, err := w.write(ctx, stretch{}, c.applied)
	if err != nil {
		return r, err
	}
	r.Applied, r.Changes = c.applied, c.changes
	if err := r.apply(ctx, w, first, c, say); err != nil {
		return r, err
	}
	all := first
	if c.changes > c.applied {
		if all, err = w.write(ctx, first, c.changes); err != nil {
			return r, err
		}
		all.bytes, all.took = all.bytes+first.bytes, all.took+first.took
	}
	r.LogBytes, r.WriteRate = all.bytes, float64(c.changes)/all.took.Seconds()
	say("reading %d changes, up to %d rounds", c.changes, c.drains)
	return r, r.read(ctx, w, all, c)
}

// read compares the ways that only read.
func (r *drainResult) read(ctx context.Context, w *world, s stretch, c config) error {
	var theirs, ours []turn
	begun := time.Now()
	for round := range c.drains {
		if round > 0 && time.Since(begun) > drainBudget {
			break
		}
		for i := range 2 {
			if (round+i)%2 == 0 {
				t, err := w.recvlogical(ctx, s)
				if err != nil {
					return err
				}
				theirs = append(theirs, t)
				continue
			}
			t, _, err := w.decode(ctx, s, false, c.profileOf("decode"))
			if err != nil {
				return err
			}
			ours = append(ours, t)
		}
	}
	r.Rounds = len(ours)
	r.Recvlogical, r.Decode = rate(s.changes, secondsOf(theirs)), rate(s.changes, secondsOf(ours))
	r.DecodeRatio = pairwise(secondsOf(theirs), secondsOf(ours)) // of rates, so the other way round
	r.RecvlogicalCPU, r.DecodeCPU = cpuOf(theirs, s.changes), cpuOf(ours, s.changes)
	r.DecodeAllocations = each(ours, func(t turn) float64 { return float64(t.use.mallocs) / float64(s.changes) })
	r.DecodePeak = each(ours, func(t turn) float64 { return t.peak })
	r.Before = each(ours, func(t turn) float64 { return t.before })
	return nil
}

// apply compares the ways that write what they read.
func (r *drainResult) apply(ctx context.Context, w *world, s stretch, c config, say func(string, ...any)) error {
	_, changes, err := w.decode(ctx, s, true, "")
	if err != nil {
		return fmt.Errorf("read the changes for the floor: %w", err)
	}
	f, err := planFloor(w.table, changes)
	if err != nil {
		return err
	}
	say("applying %d changes, up to %d rounds", s.changes, c.drains)
	var native, ours, floors []turn
	begun := time.Now()
	for round := range c.drains {
		if round > 0 && time.Since(begun) > drainBudget {
			break
		}
		for i := range 3 {
			var t turn
			switch (round + i) % 3 {
			case 0:
				t, err = w.writeFloor(ctx, f, "floor")
				floors = append(floors, t)
			case 1:
				t, err = w.capture(ctx, s, "captured", c.profileOf("capture"))
				ours = append(ours, t)
			case 2:
				t, err = w.subscription(ctx, s)
				native = append(native, t)
			}
			if err != nil {
				return err
			}
			say("  %-12s %7.0f changes/s", []string{"floor", "capture", "subscription"}[(round+i)%3], float64(s.changes)/t.seconds)
		}
		if err := w.compare(ctx, "floor", "captured"); err != nil {
			return err
		}
	}
	r.ApplyRounds = len(ours)
	last := ours[len(ours)-1].left
	r.Retained, r.Unconfirmed = last.kept, last.unconfirmed
	r.Subscription, r.Capture, r.Floor = rate(s.changes, secondsOf(native)), rate(s.changes, secondsOf(ours)), rate(s.changes, secondsOf(floors))
	r.CaptureRatio, r.NativeRatio = pairwise(secondsOf(floors), secondsOf(ours)), pairwise(secondsOf(native), secondsOf(ours))
	r.CaptureCPU = cpuOf(ours, s.changes)
	r.CaptureAllocations = each(ours, func(t turn) float64 { return float64(t.use.mallocs) / float64(s.changes) })
	r.CapturePeak = each(ours, func(t turn) float64 { return t.peak })
	return nil
}

// compare fails unless two memory databases hold the same.
func (w *world) compare(ctx context.Context, one, other string) error {
	var sums [2]string
	var g errgroup.Group
	for i, name := range []string{one, other} {
		g.Go(func() error {
			conn, err := pgx.Connect(ctx, w.memory.DSN(name))
			if err != nil {
				return err
			}
			defer closeConn(ctx, conn)
			return conn.QueryRow(ctx, equalSQL).Scan(&sums[i])
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if sums[0] != sums[1] {
		return fmt.Errorf("the databases %s and %s differ:\n%s\n%s", one, other, sums[0], sums[1])
	}
	return nil
}

func each(turns []turn, of func(turn) float64) figure {
	values := make([]float64, len(turns))
	for i, t := range turns {
		values[i] = of(t)
	}
	return figureOf(values)
}

func secondsOf(turns []turn) []float64 {
	out := make([]float64, len(turns))
	for i, t := range turns {
		out[i] = t.seconds
	}
	return out
}

func cpuOf(turns []turn, changes int) figure {
	return each(turns, func(t turn) float64 { return float64(t.use.cpu.Microseconds()) / float64(changes) })
}
