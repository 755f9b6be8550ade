package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
	whencev1 "github.com/whence-db/whence/proto/gen/whence/v1"
)

// visibleResult is how long after its commit a change was in an answer, in
// milliseconds, the last query included.
type visibleResult struct {
	Updates int    `json:"updates"`
	Seen    delays `json:"seen_ms"`  // the new text was shown
	Fresh   delays `json:"fresh_ms"` // and was FRESH: its vector was there too
}

type delays struct {
	P50 float64 `json:"p50"`
	P90 float64 `json:"p90"`
	Max float64 `json:"max"`
}

func delaysOf(took []time.Duration) delays {
	slices.Sort(took)
	return delays{milliseconds(percentile(took, 0.5)), milliseconds(percentile(took, 0.9)), milliseconds(percentile(took, 1))}
}

const (
	visibleLimit  = 30 * time.Second // for one update
	visibleBudget = 30 * time.Second // none begins after it
)

// measureVisible changes one row at a time while nothing else goes on, and asks
// for the new word until it is shown.
func measureVisible(ctx context.Context, s *server, round, rows, updates int) (visibleResult, error) {
	source, err := pgx.Connect(ctx, s.env["WHENCE_SOURCE_URL"])
	if err != nil {
		return visibleResult{}, err
	}
	defer source.Close(ctx)
	update := "update " + pgx.Identifier{tableName(round)}.Sanitize() + " set body = body || ' ' || @word where id = @id"
	r := rand.New(rand.NewPCG(5, 5)) //nolint:gosec // repeatable on purpose
	var seen, fresh []time.Duration
	begun := time.Now()
	for i := range updates {
		if time.Since(begun) > visibleBudget {
			break
		}
		time.Sleep(time.Duration(50+r.IntN(150)) * time.Millisecond) // so as not to keep step with anything
		word := fmt.Sprintf("marker%dx", i)
		if _, err := source.Exec(ctx, update, pgx.NamedArgs{"word": word, "id": 1 + r.IntN(rows)}); err != nil {
			return visibleResult{}, err
		}
		a, b, err := await(ctx, s, registeredName(round), word, true)
		if err != nil {
			return visibleResult{}, err
		}
		seen, fresh = append(seen, a), append(fresh, b)
	}
	return visibleResult{Updates: len(seen), Seen: delaysOf(seen), Fresh: delaysOf(fresh)}, nil
}

// await asks for a word until a hit shows it, and, when wanted, until that hit is fresh.
func await(ctx context.Context, s *server, table whence.TableName, word string, untilFresh bool) (seen, fresh time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, visibleLimit)
	defer cancel()
	for start := time.Now(); seen == 0 || untilFresh && fresh == 0; {
		r, err := s.memory.Query(ctx, &whencev1.QueryRequest{Text: word, Tables: []string{string(table)}})
		if err != nil {
			return 0, 0, fmt.Errorf("wait for %q: %w", word, err)
		}
		now := time.Since(start)
		for _, h := range r.GetHits() {
			if !strings.Contains(h.GetText(), word) {
				continue
			}
			if seen == 0 {
				seen = now
			}
			if h.GetFreshness().GetState() == whencev1.FreshnessState_FRESHNESS_STATE_FRESH {
				fresh = now
			}
		}
	}
	return seen, fresh, nil
}
