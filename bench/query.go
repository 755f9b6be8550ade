package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/internal/pg"
	whencev1 "github.com/whence-db/whence/proto/gen/whence/v1"
)

// queryResult compares, at one number of clients, a query through the API with
// the SQL that it runs and one durable insert. Ratios are of rounds side by side.
type queryResult struct {
	Clients int        `json:"clients"`
	API     loadResult `json:"api"`
	SQL     loadResult `json:"sql"`
	Ratio   loadResult `json:"ratio"` // API ÷ SQL
}

// loadResult sums up the rounds of one side: latencies in milliseconds, and calls
// a second; or their ratios.
type loadResult struct {
	P50        figure `json:"p50"`
	P99        figure `json:"p99"`
	Throughput figure `json:"throughput"`
}

// call asks the i-th question, or whichever that is when there are fewer.
type call func(ctx context.Context, i int) error

// sides are the two ways to ask, and the pool of the second.
type sides struct {
	api, sql call
	pool     *pgxpool.Pool
	shares   []share // of the SQL, without the insert
}

const (
	scratchSQL = `
create schema if not exists bench;
create table if not exists bench.asked (id bigint generated always as identity primary key, at timestamptz not null default now(), question text not null)`

	insertSQL = `insert into bench.asked (question) values (@question)`
)

// newSides prepares both, and asks each question once each way, so that caches
// are warm and a wrong answer fails the run.
func newSides(ctx context.Context, s *server, table whence.TableName, asked []string, clients int) (*sides, error) {
	said, err := record(ctx, s, table, asked)
	if err != nil {
		return nil, fmt.Errorf("record the SQL: %w", err)
	}
	pool, err := pg.NewPool(ctx, s.env["WHENCE_DATABASE_URL"], int32(max(clients, 2)))
	if err != nil {
		return nil, err
	}
	out := &sides{pool: pool}
	out.api = func(ctx context.Context, i int) error {
		r, err := s.memory.Query(ctx, &whencev1.QueryRequest{Text: asked[i%len(asked)], Tables: []string{string(table)}})
		if err == nil && (r.GetDegraded() || len(r.GetHits()) == 0) {
			err = fmt.Errorf("an answer with %d hits, degraded: %q", len(r.GetHits()), r.GetDegradedReason())
		}
		return err
	}
	out.sql = func(ctx context.Context, i int) error {
		if err := replay(ctx, pool, said[i%len(asked)], nil); err != nil {
			return err
		}
		return insert(ctx, pool, asked[i%len(asked)])
	}
	_, err = pool.Exec(ctx, scratchSQL)
	for i := range asked {
		if err == nil {
			err = errors.Join(out.api(ctx, i), out.sql(ctx, i))
		}
	}
	if err == nil {
		out.shares, err = shares(ctx, pool, said)
	}
	if err != nil {
		pool.Close()
		return nil, err
	}
	return out, nil
}

func insert(ctx context.Context, pool *pgxpool.Pool, question string) error {
	_, err := pool.Exec(ctx, insertSQL, pgx.NamedArgs{"question": question})
	return err
}

// measureQueries runs rounds of both sides in turns, each first every other time.
func measureQueries(ctx context.Context, s *sides, clients, rounds int, length time.Duration) (queryResult, error) {
	var api, sql []sample
	for round := range rounds {
		for turn := range 2 {
			var err error
			var got sample
			if (round+turn)%2 == 0 {
				got, err = load(ctx, clients, length, s.api)
				api = append(api, got)
			} else {
				got, err = load(ctx, clients, length, s.sql)
				sql = append(sql, got)
			}
			if err != nil {
				return queryResult{}, err
			}
		}
	}
	ours, theirs := take(api), take(sql)
	return queryResult{Clients: clients,
		API: loadResult{figureOf(ours.p50), figureOf(ours.p99), figureOf(ours.rate)},
		SQL: loadResult{figureOf(theirs.p50), figureOf(theirs.p99), figureOf(theirs.rate)},
		Ratio: loadResult{pairwise(ours.p50, theirs.p50), pairwise(ours.p99, theirs.p99),
			pairwise(ours.rate, theirs.rate)}}, nil
}

// sample is what one round saw.
type sample struct {
	latencies []time.Duration // sorted
	elapsed   time.Duration
}

// load lets clients ask one question after the other for about the given time. A
// call under way at the end is waited for and counts. Any failure ends the round.
func load(ctx context.Context, clients int, length time.Duration, ask call) (sample, error) {
	var next atomic.Int64
	each := make([][]time.Duration, clients)
	g, ctx := errgroup.WithContext(ctx)
	start := time.Now()
	for c := range clients {
		g.Go(func() error {
			for time.Since(start) < length {
				begin := time.Now()
				if err := ask(ctx, int(next.Add(1))); err != nil {
					return err
				}
				each[c] = append(each[c], time.Since(begin))
			}
			return nil
		})
	}
	err := g.Wait()
	s := sample{slices.Concat(each...), time.Since(start)}
	slices.Sort(s.latencies)
	return s, err
}

// taken holds one number of each kind for each round.
type taken struct{ p50, p99, rate []float64 }

func take(rounds []sample) (t taken) {
	for _, s := range rounds {
		t.p50 = append(t.p50, milliseconds(percentile(s.latencies, 0.5)))
		t.p99 = append(t.p99, milliseconds(percentile(s.latencies, 0.99)))
		t.rate = append(t.rate, float64(len(s.latencies))/s.elapsed.Seconds())
	}
	return t
}

// part is how long a part of the rival's work takes one client, in milliseconds.
func part(ctx context.Context, n int, do call) (float64, error) {
	var took []time.Duration
	for i := range n {
		begin := time.Now()
		if err := do(ctx, i); err != nil {
			return 0, err
		}
		took = append(took, time.Since(begin))
	}
	slices.Sort(took)
	return milliseconds(percentile(took, 0.5)), nil
}
