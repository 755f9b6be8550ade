package main

import (
	"io"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestParse(t *testing.T) {
	t.Parallel()
	c, err := parse([]string{"-only", "query, capture"}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"query", "drain", "backfill", "huge", "steady"}; !slices.Equal(c.parts, want) {
		t.Errorf("parts %v, want %v", c.parts, want)
	}
	if !c.runs(partSteady, "none") || c.runs("none") {
		t.Error("runs does not look at the parts")
	}
	if c, err = parse([]string{"-short", "-huge", "77"}, io.Discard); err != nil || c.huge != 77 || !c.hugeGiven || c.rows != 2000 || c.steady != 3*time.Second {
		t.Errorf("-short must leave what is given alone and shorten the rest: %+v, %v", c, err)
	}
	for args, want := range map[string]string{
		"-only drains":                      `no part "drains"`,
		"-clients 0":                        "want numbers from 1 to 90",
		"-changes 100 -applied 200":         "no more applied than there are",
		"-rate 10 -transaction 20":          "at least one transaction a second",
		"-rate 90000 -transaction 20000":    "of 1 to 10000 changes",
		"-steady 0":                         "-steady 0",
		"-rows 1":                           "at least 100",
		"-huge 0":                           "at least 1",
		"-only query,,drain":                `no part ""`,
		"-seconds -1 -changes 1 -applied 1": "-seconds -1",
	} {
		if _, err := parse(strings.Fields(args), io.Discard); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", args, err, want)
		}
	}
}

// Transactions are applied in order, but vectors may come in any.
func TestLookerNotesEachOnce(t *testing.T) {
	t.Parallel()
	start := time.Now()
	l := looker{open: []mark{{seq: 1, committed: start}, {seq: 2, committed: start}, {seq: 3, committed: start}}}
	l.saw(map[int]bool{1: false, 2: true}, start.Add(time.Second))
	l.saw(map[int]bool{1: true, 3: false}, start.Add(2*time.Second))
	if want := []time.Duration{time.Second, time.Second, 2 * time.Second}; !slices.Equal(l.applied, want) {
		t.Errorf("applied after %v, want %v", l.applied, want)
	}
	if want := []time.Duration{time.Second, 2 * time.Second}; !slices.Equal(l.embedded, want) {
		t.Errorf("embedded after %v, want %v", l.embedded, want)
	}
	if len(l.open) != 1 || l.open[0].seq != 3 || l.unapplied() != 0 {
		t.Errorf("left: %+v", l.open)
	}
}
