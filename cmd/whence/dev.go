package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/internal/pgcluster"
	"github.com/whence-db/whence/internal/seal"
	"github.com/whence-db/whence/migrations"
)

// devTokenLifetime is the longest that a development credential is good for.
const devTokenLifetime = 24 * time.Hour

type devCmd struct {
	Data       string        `help:"Folder for the private Postgres cluster and dev.env." default:".whence" type:"path"`
	Listen     string        `env:"WHENCE_LISTEN" default:"127.0.0.1:7171" help:"Address to listen on; port 0 takes a free one."`
	Roles      []string      `env:"WHENCE_ROLES" enum:"api,capture,embed" default:"api,capture,embed" help:"What this process does."`
	Grace      time.Duration `env:"WHENCE_GRACE" default:"10s" help:"How long calls may go on after the signal to stop."`
	Verbose    bool          `env:"WHENCE_VERBOSE" short:"v" help:"Log more."`
	modelFlags `embed:""`

	client string // that people sign in with at the development issuer; empty: there is none
}

// Run starts the cluster, prepares both databases, serves, and stops everything
// again, the database last.
func (c *devCmd) Run(ctx context.Context, a *app) (err error) {
	log := newLog(a.err, c.Verbose)
	if err := os.MkdirAll(c.Data, 0o711); err != nil { //nolint:gosec // the database's user must pass through
		return err
	}
	postgresLog, err := os.OpenFile(filepath.Join(c.Data, "postgres.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = postgresLog.Close() }()
	log.InfoContext(ctx, "starting Postgres", "data", c.Data, "log", postgresLog.Name())
	cluster, err := pgcluster.Start(ctx, pgcluster.Config{Dir: c.Data, Durable: true, Log: postgresLog})
	if err != nil {
		return err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
		defer cancel()
		err = errors.Join(err, cluster.Stop(ctx))
	}()
	return c.serve(ctx, a, cluster)
}

func (c *devCmd) serve(ctx context.Context, a *app, cluster *pgcluster.Cluster) error {
	for _, name := range []string{"whence", "app"} {
		if err := createDatabase(ctx, cluster.DSN("postgres"), name); err != nil {
			return err
		}
	}
	if err := migrations.Up(ctx, cluster.DSN("whence")); err != nil {
		return err
	}
	secret, err := devSecret(c.Data)
	if err != nil {
		return err
	}
	s, err := newServer(ctx, serveFlags{DatabaseURL: cluster.DSN("whence"), SecretKey: secret, Listen: c.Listen,
		Roles: c.Roles, Connections: 40, Grace: c.Grace, modelFlags: c.modelFlags}, c.getenv(cluster), newLog(a.err, c.Verbose))
	if err != nil {
		return err
	}
	defer s.close()
	if err := c.mountIssuer(ctx, s); err != nil {
		return err
	}
	s.extra = func(ctx context.Context) error { // the server cannot do without its database
		select {
		case <-cluster.Done():
			return errors.New("the Postgres server ended; postgres.log in the data folder says why")
		case <-ctx.Done():
			return nil
		}
	}
	return s.run(ctx, func() error {
		if err := c.prepare(ctx, s, cluster, secret); err != nil {
			return err
		}
		a.printf("ready %s\n", s.url)
		return nil
	})
}

// sourceVariable holds the connection string of the source app.
const sourceVariable = "WHENCE_SOURCE_URL"

// getenv is the environment with what dev.env adds to it.
func (c *devCmd) getenv(cluster *pgcluster.Cluster) func(string) string {
	return func(name string) string {
		if name == sourceVariable {
			return cluster.DSN("app")
		}
		return os.Getenv(name)
	}
}

// prepare makes the source to play with and writes dev.env.
func (c *devCmd) prepare(ctx context.Context, s *process, cluster *pgcluster.Cluster, secret string) error {
	// Named by its variable, for the port may be another one next time.
	_, err := s.registry.CreateSource(ctx, "app", "", sourceVariable)
	if err != nil && !errors.Is(err, whence.ErrExists) {
		return err
	}
	operator, _, err := s.issuer.IssueOperator("dev-operator", authz.RoleAdmin, devTokenLifetime)
	if err != nil {
		return err
	}
	agent, err := s.gateway.StartOwn(ctx, "dev", authz.TaskRequest{Agent: "dev-agent", Purpose: "development",
		Scope: authz.ScopeSpec{Type: authz.DetailType, AllTables: true, AllSubjects: true,
			Actions: authz.Actions(), Tier: authz.TierIrreversible},
		Calls: 1_000_000, Lifetime: devTokenLifetime})
	if err != nil {
		return err
	}
	if err := c.trustIssuer(ctx, s); err != nil {
		return err
	}
	vars := [][2]string{
		{"WHENCE_URL", s.url},
		{"WHENCE_DATABASE_URL", cluster.DSN("whence")},
		{sourceVariable, cluster.DSN("app")},
		{"WHENCE_OPERATOR_TOKEN", operator},
		{"WHENCE_AGENT_TOKEN", agent.Token},
		{"WHENCE_SECRET_KEY", secret},
		{"WHENCE_ISSUER", s.issuer.Name()},
	}
	if c.client != "" {
		vars = append(vars, [2]string{"WHENCE_LOGIN_ISSUER", s.url + devIssuerPath}, [2]string{"WHENCE_LOGIN_CLIENT", c.client})
	}
	return writeEnv(filepath.Join(c.Data, "dev.env"), vars)
}

func createDatabase(ctx context.Context, dsn, name string) error {
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	var there bool
	if err := conn.QueryRow(ctx, "select exists (select from pg_database where datname = $1)", name).Scan(&there); err != nil || there {
		return err
	}
	_, err = conn.Exec(ctx, "create database "+pgx.Identifier{name}.Sanitize())
	return err
}

// devSecret keeps the secret key beside the cluster that it seals secrets in.
func devSecret(dir string) (string, error) {
	path := filepath.Join(dir, "secret.key")
	b, err := os.ReadFile(path)
	if err == nil {
		return strings.TrimSpace(string(b)), nil
	}
	if !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	key := seal.NewKey()
	return key, writeFile(path, func(w io.Writer) { fmt.Fprintln(w, key) })
}

// writeEnv writes lines that a shell can source; no value needs quoting.
func writeEnv(path string, vars [][2]string) error {
	return writeFile(path, func(w io.Writer) {
		for _, v := range vars {
			fmt.Fprintf(w, "%s=%s\n", v[0], v[1])
		}
	})
}

// writeFile replaces a file whole, readable by its owner only.
func writeFile(path string, write func(io.Writer)) error {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(f.Name()) }()
	write(f)
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
