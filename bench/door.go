package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"text/tabwriter"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/whence-db/whence/audit"
	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/authz/federation"
	"github.com/whence-db/whence/authz/registry"
	"github.com/whence-db/whence/gateway"
	"github.com/whence-db/whence/internal/pg"
	"github.com/whence-db/whence/internal/seal"
	"github.com/whence-db/whence/lineage"
)

// doorResult is what it costs a call to come through the door: the same handler,
// which reads one row by its key, without one, behind the check of its credential
// alone, and behind the whole of it. All is measured within this process, without
// HTTP.
type doorResult struct {
	Rounds       int         `json:"rounds"`
	RoundSeconds float64     `json:"round_seconds"`
	Cached       float64     `json:"cached_check_us"` // of a token that this process has verified, revocations included
	Verified     float64     `json:"verification_us"` // of one that it has not
	Clients      []doorFound `json:"clients"`
}

type doorFound struct {
	Clients int        `json:"clients"`
	Sides   []doorSide `json:"sides"`
}

// doorSide is one way in: p50 of a call, and processor time of this process for one.
type doorSide struct {
	Name string `json:"name"`
	P50  figure `json:"p50_us"`
	CPU  figure `json:"cpu_us"`
}

const (
	doorIssuer = "http://bench.invalid"
	doorTokens = 2000 // each verified once, to tell what that takes
	doorChecks = 200_000
)

// doorWorld is a gateway of this process's own.
type doorWorld struct {
	pool     *pgxpool.Pool
	issuer   *authz.Issuer
	verifier *authz.Verifier
	gateway  *gateway.Gateway
	started  gateway.Started
}

func newDoorWorld(ctx context.Context, dsn, key string, clients int) (w *doorWorld, err error) {
	w = &doorWorld{}
	if w.pool, err = pg.NewPool(ctx, dsn, int32(clients+4)); err != nil {
		return nil, err
	}
	secret, err := seal.ParseKey(key)
	if err != nil {
		return nil, err
	}
	keys, err := authz.LoadKeys(ctx, authz.KeysConfig{Pool: w.pool, Seal: secret})
	if err != nil {
		return nil, err
	}
	stops, err := authz.NewRevocations(w.pool, nil)
	if err != nil {
		return nil, err
	}
	if w.issuer, err = authz.NewIssuer(authz.IssuerConfig{Name: doorIssuer, Keys: keys}); err != nil {
		return nil, err
	}
	if w.verifier, err = authz.NewVerifier(authz.VerifierConfig{Issuer: doorIssuer, Keys: keys, Revocations: stops}); err != nil {
		return nil, err
	}
	known, err := registry.New(w.pool)
	if err != nil {
		return nil, err
	}
	foreign, err := federation.New(federation.Config{Issuers: known.IssuerByURL, Client: http.DefaultClient})
	if err != nil {
		return nil, err
	}
	log, err := audit.New(audit.Config{Pool: w.pool})
	if err != nil {
		return nil, err
	}
	answers, err := lineage.New(lineage.Config{Pool: w.pool})
	if err != nil {
		return nil, err
	}
	if w.gateway, err = gateway.New(gateway.Config{Pool: w.pool, Audit: log, Lineage: answers, Verifier: w.verifier, Issuer: w.issuer,
		Identities: foreign, Registry: known, Revocations: stops, Keys: keys}); err != nil {
		return nil, err
	}
	w.started, err = w.gateway.StartOwn(ctx, "bench", authz.TaskRequest{Agent: "bench", Purpose: "measure the door", Calls: authz.MaxCalls, Lifetime: time.Hour,
		Scope: authz.ScopeSpec{AllTables: true, AllSubjects: true, Actions: []authz.Action{authz.MemoryRead}}})
	return w, err
}

// sides are the ways in, with the names that they are printed by.
func (w *doorWorld) sides() (names []string, calls []call) {
	handler := func(ctx context.Context) error {
		_, err := w.gateway.GetTask(ctx, w.started.Task.ID)
		return err
	}
	shown := authz.Presented{Token: w.started.Token}
	return []string{"no door", "credential checked", "whole door"}, []call{
		func(ctx context.Context, _ int) error { return handler(ctx) },
		func(ctx context.Context, _ int) error {
			if _, err := w.verifier.Authenticate(ctx, shown); err != nil {
				return err
			}
			return handler(ctx)
		},
		func(ctx context.Context, _ int) error {
			return w.gateway.Do(ctx, gateway.Call{Name: "bench", Presented: shown, Action: authz.MemoryRead, Charge: 1},
				func(ctx context.Context, _ *gateway.Session) error { return handler(ctx) })
		},
	}
}

// measureDoor lets the ways in take turns.
func measureDoor(ctx context.Context, dsn, key string, c config, say func(string, ...any)) (r *doorResult, err error) {
	w, err := newDoorWorld(ctx, dsn, key, c.most())
	if err != nil {
		return nil, err
	}
	defer w.pool.Close()
	r = &doorResult{Rounds: c.rounds, RoundSeconds: c.perSide.Seconds() / float64(c.rounds)}
	if err := w.checks(ctx, r); err != nil {
		return nil, err
	}
	running, stop := context.WithCancel(ctx)
	var group errgroup.Group
	group.Go(func() error { return w.gateway.Run(running) })
	defer func() {
		stop()
		if e := group.Wait(); err == nil {
			err = e
		}
	}()
	names, calls := w.sides()
	for _, clients := range c.clients {
		say("the door with %d clients", clients)
		found := doorFound{Clients: clients}
		p50, cpu := make([][]float64, len(calls)), make([][]float64, len(calls))
		for range c.rounds {
			for i, do := range calls {
				before, err := ownUsage()
				if err != nil {
					return nil, err
				}
				s, err := load(ctx, clients, c.perSide/time.Duration(c.rounds), do)
				if err != nil {
					return nil, fmt.Errorf("%s: %w", names[i], err)
				}
				after, err := ownUsage()
				if err != nil {
					return nil, err
				}
				p50[i] = append(p50[i], 1000*milliseconds(percentile(s.latencies, 0.5)))
				cpu[i] = append(cpu[i], 1000*milliseconds(after.since(before).cpu)/float64(len(s.latencies)))
			}
		}
		for i, name := range names {
			found.Sides = append(found.Sides, doorSide{name, figureOf(p50[i]), figureOf(cpu[i])})
		}
		r.Clients = append(r.Clients, found)
	}
	return r, nil
}

// checks tells what a credential costs that was verified before, and one that was not.
func (w *doorWorld) checks(ctx context.Context, r *doorResult) error {
	tokens := make([]string, doorTokens)
	for i := range tokens {
		var err error
		if tokens[i], _, err = w.issuer.IssueOperator("bench", authz.RoleViewer, time.Hour); err != nil {
			return err
		}
	}
	begin := time.Now()
	for _, t := range tokens {
		if _, err := w.verifier.Verify(ctx, t); err != nil {
			return err
		}
	}
	r.Verified = 1000 * milliseconds(time.Since(begin)) / doorTokens
	begin = time.Now()
	for range doorChecks {
		if _, err := w.verifier.Authenticate(ctx, authz.Presented{Token: w.started.Token}); err != nil {
			return err
		}
	}
	r.Cached = 1000 * milliseconds(time.Since(begin)) / doorChecks
	return nil
}

func (r *doorResult) print(w io.Writer) error {
	fmt.Fprintf(w, "\nThe door, within one process: a handler that reads one row by its key; %d rounds of %.1f s each way in turns\n", r.Rounds, r.RoundSeconds)
	fmt.Fprintf(w, "a credential that was verified before takes %.2f µs, revocations included; one that was not, %.0f µs\n\n", r.Cached, r.Verified)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "clients\t\tp50 µs\t\tCPU µs a call\t\t")
	for _, c := range r.Clients {
		for _, s := range c.Sides {
			fmt.Fprintf(t, "%d\t%s\t%.0f\t(%.0f to %.0f)\t%.0f\t(%.0f to %.0f)\t\n", c.Clients, s.Name,
				s.P50.Median, s.P50.Low, s.P50.High, s.CPU.Median, s.CPU.Low, s.CPU.High)
		}
	}
	return t.Flush()
}
