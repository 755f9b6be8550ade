package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/lmittmann/tint"
	"golang.org/x/sync/errgroup"

	"github.com/whence-db/whence/api"
	"github.com/whence-db/whence/api/oauth"
	"github.com/whence-db/whence/audit"
	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/authz/federation"
	authority "github.com/whence-db/whence/authz/registry"
	"github.com/whence-db/whence/embedder"
	"github.com/whence-db/whence/gateway"
	"github.com/whence-db/whence/gateway/action"
	"github.com/whence-db/whence/gateway/upstream"
	"github.com/whence-db/whence/index"
	"github.com/whence-db/whence/ingest"
	"github.com/whence-db/whence/internal/pg"
	"github.com/whence-db/whence/internal/seal"
	"github.com/whence-db/whence/lineage"
	"github.com/whence-db/whence/metrics"
	"github.com/whence-db/whence/migrations"
	"github.com/whence-db/whence/notes"
	"github.com/whence-db/whence/query"
)

type serveCmd struct {
	serveFlags `embed:""`
	Migrate    bool `env:"WHENCE_MIGRATE" help:"Migrate the memory database first."`
}

func (c *serveCmd) Run(ctx context.Context, a *app) error {
	if c.Migrate {
		if err := migrations.Up(ctx, c.DatabaseURL); err != nil {
			return err
		}
	}
	s, err := newServer(ctx, c.serveFlags, os.Getenv, newLog(a.err, c.Verbose))
	if err != nil {
		return err
	}
	defer s.close()
	return s.run(ctx, func() error { a.printf("ready %s\n", s.url); return nil })
}

func newLog(w io.Writer, verbose bool) *slog.Logger {
	level := slog.LevelInfo
	if verbose {
		level = slog.LevelDebug
	}
	if interactive(w) {
		return slog.New(tint.NewTextHandler(w, &tint.Options{Level: level, TimeFormat: time.TimeOnly}))
	}
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: level}))
}

// process is one server process: what it is made of, in the order of the flow.
type process struct {
	flags     serveFlags
	getenv    func(string) string // where a source's dsnEnv is read
	log       *slog.Logger
	pool      *pgxpool.Pool
	models    []embedder.Model
	index     *index.Index
	filler    *index.Filler
	registry  *ingest.Registry
	runner    *ingest.Runner
	metrics   *metrics.Metrics
	gateway   *gateway.Gateway
	issuer    *authz.Issuer
	authority *authority.Registry
	handler   http.Handler // of the one listener; without the role api it only tells how the process is
	listener  net.Listener
	url       string
	lineage   *lineage.Store
	notes     *notes.Store
	extra     func(context.Context) error // runs beside the rest, if set
}

func newServer(ctx context.Context, f serveFlags, getenv func(string) string, log *slog.Logger) (_ *process, err error) {
	if err := f.validate(); err != nil {
		return nil, err
	}
	secret, err := seal.ParseKey(f.SecretKey)
	if err != nil {
		return nil, err
	}
	s := &process{flags: f, getenv: getenv, log: log, metrics: metrics.New()}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	// The address is taken first: with port 0 it decides the issuer's name.
	if s.listener, err = (&net.ListenConfig{}).Listen(ctx, "tcp", f.Listen); err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	s.url = "http://" + s.listener.Addr().String()
	if s.pool, err = pg.NewPool(ctx, f.DatabaseURL, f.Connections); err != nil {
		return nil, err
	}
	pending, err := migrations.Pending(ctx, f.DatabaseURL)
	switch {
	case err != nil:
		return nil, err
	case pending:
		return nil, errors.New("the memory database lacks migrations: run whence migrate, or start with --migrate")
	}
	if err := s.wireMemory(ctx, secret); err != nil {
		return nil, err
	}
	return s, s.wireDoor(ctx, secret)
}

// wireMemory connects capture, index and embedder.
func (s *process) wireMemory(ctx context.Context, secret seal.Key) (err error) {
	used := func(u embedder.Usage) { s.metrics.Used(u.Calls, u.Tokens, u.Estimated) }
	if s.models, err = s.flags.models(ctx, used); err != nil {
		return err
	}
	if s.index, err = index.New(index.Config{Pool: s.pool, Log: s.log}); err != nil {
		return err
	}
	if s.filler, err = index.NewFiller(index.FillerConfig{Index: s.index, Models: fillable(s.models), Explain: query.ExplainEmbedding,
		Called: s.metrics.Called, Meter: query.MeterEmbedding, Log: s.log}); err != nil {
		return err
	}
	if s.lineage, err = lineage.New(lineage.Config{Pool: s.pool, Log: s.log}); err != nil {
		return err
	}
	if s.notes, err = notes.New(notes.Config{Pool: s.pool, Index: s.index, Lineage: s.lineage, Executions: gateway.Executions{}, Log: s.log}); err != nil {
		return err
	}
	if s.registry, err = ingest.NewRegistry(ingest.Config{Pool: s.pool, Index: s.index, Answers: s.lineage, Executions: gateway.Executions{}, Seal: secret, Getenv: s.getenv, Log: s.log}); err != nil {
		return err
	}
	s.runner, err = ingest.NewRunner(ingest.RunnerConfig{Registry: s.registry, Wake: s.filler.Wake, Meter: s.metrics, Log: s.log})
	return err
}

// fillable are the models as the index knows them.
func fillable(models []embedder.Model) (out []index.Model) {
	for _, m := range models {
		out = append(out, m)
	}
	return out
}

// wireDoor connects what agents and operators come through.
func (s *process) wireDoor(ctx context.Context, secret seal.Key) error {
	name := s.flags.Issuer
	if name == "" {
		name = s.url
	}
	keys, err := s.flags.keys(ctx, s.pool, secret, false)
	if err != nil {
		return err
	}
	if s.issuer, err = authz.NewIssuer(authz.IssuerConfig{Name: name, Keys: keys}); err != nil {
		return err
	}
	stops, err := authz.NewRevocations(s.pool, nil)
	if err != nil {
		return err
	}
	verifier, err := authz.NewVerifier(authz.VerifierConfig{Issuer: name, Keys: keys, Revocations: stops})
	if err != nil {
		return err
	}
	if s.authority, err = authority.New(s.pool); err != nil {
		return err
	}
	identities, err := federation.New(federation.Config{Issuers: s.authority.IssuerByURL, Client: http.DefaultClient, Log: s.log})
	if err != nil {
		return err
	}
	log, err := audit.New(audit.Config{Pool: s.pool})
	if err != nil {
		return err
	}
	upstreams, err := upstream.NewStore(s.pool)
	if err != nil {
		return err
	}
	forwarder := upstream.NewForwarder(upstream.Config{Getenv: s.getenv})
	rows, err := action.NewRunner(action.Config{Registry: s.registry, Log: s.log})
	if err != nil {
		return err
	}
	if s.gateway, err = gateway.New(gateway.Config{Upstreams: upstreams, Forwarder: forwarder, Rows: rows, Notes: s.notes, Wrote: s.filler.Wake, Pool: s.pool, Audit: log, Lineage: s.lineage,
		Verifier: verifier, Issuer: s.issuer,
		Identities: identities, Registry: s.authority, Revocations: stops, Keys: keys, Log: s.log}); err != nil {
		return err
	}
	engine, err := query.New(query.Config{Index: s.index, Registry: s.registry, Models: s.models, Pool: s.pool})
	if err != nil {
		return err
	}
	tokens, err := oauth.New(oauth.Config{Issuer: name, Keys: keys, Door: s.gateway, Log: s.log})
	if err != nil {
		return err
	}
	measured, err := s.metrics.Handler(s.registry, s.log)
	if err != nil {
		return err
	}
	handler := api.NewHandler
	if !s.flags.role("api") {
		handler = api.NewStatusHandler
	}
	s.handler = handler(api.Config{Pool: s.pool, Actions: rows,
		Gateway: s.gateway, Query: engine, Registry: s.registry,
		Audit: log, Lineage: s.lineage, Notes: s.notes, Index: s.index, Models: fillable(s.models), Wrote: s.filler.Wake, Issuer: name, OAuth: tokens,
		Authority: s.authority, Revocations: stops, Keys: keys, Upstreams: upstreams, Ready: s.pool.Ping,
		Metrics: measured, MetricsToken: s.flags.MetricsToken, Log: s.log})
	return nil
}

// run serves until ctx ends, then stops in order: no new calls, the calls that
// run, the door's last commits; capture and embedding end beside them.
func (s *process) run(ctx context.Context, ready func() error) error {
	g, ctx := errgroup.WithContext(ctx)
	if s.flags.role("capture") {
		g.Go(func() error { return s.runner.Run(ctx) })
	}
	if s.flags.role("embed") {
		g.Go(func() error { return s.filler.Run(ctx) })
	}
	if s.extra != nil {
		g.Go(func() error { return s.extra(ctx) })
	}
	if s.flags.role("api") {
		g.Go(func() error { return s.notes.Run(ctx) })
		g.Go(func() error { return s.lineage.Run(ctx) })
	}
	doorCtx, closeDoor := context.WithCancel(context.WithoutCancel(ctx))
	g.Go(func() error { return s.gateway.Run(doorCtx) })
	g.Go(func() error {
		defer closeDoor()
		return s.serveHTTP(ctx)
	})
	g.Go(ready)
	err := g.Wait()
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

func (s *process) serveHTTP(ctx context.Context) error {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	callCtx, hardStop := context.WithCancel(context.WithoutCancel(ctx))
	defer hardStop()
	srv := &http.Server{Handler: s.handler, Protocols: protocols,
		ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10,
		BaseContext: func(net.Listener) context.Context { return callCtx },
		ErrorLog:    slog.NewLogLogger(s.log.Handler(), slog.LevelDebug)}
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		if err := srv.Serve(s.listener); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve: %w", err)
		}
		return nil
	})
	g.Go(func() error {
		<-gctx.Done()
		soft, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.flags.Grace)
		defer cancel()
		if srv.Shutdown(soft) == nil {
			return nil
		}
		hardStop()
		return srv.Close()
	})
	return g.Wait()
}

func (s *process) close() {
	if s.listener != nil {
		_ = s.listener.Close()
	}
	if s.pool != nil {
		if s.registry != nil {
			s.registry.Close()
		}
		s.pool.Close()
	}
}
