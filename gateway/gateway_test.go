package gateway_test

import (
	"context"
	"errors"
	"net/http"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/audit"
	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/authz/authztest"
	"github.com/whence-db/whence/authz/federation"
	"github.com/whence-db/whence/authz/registry"
	"github.com/whence-db/whence/gateway"
	"github.com/whence-db/whence/internal/pg"
	"github.com/whence-db/whence/internal/pgcluster"
	"github.com/whence-db/whence/internal/pgtest"
	"github.com/whence-db/whence/internal/seal"
	"github.com/whence-db/whence/lineage"
	"github.com/whence-db/whence/migrations"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

const query = "whence.v1.MemoryService/Query"

// world is a memory database with what a gateway needs around it.
type world struct {
	pool     *pgxpool.Pool
	issuer   *authz.Issuer
	verifier *authz.Verifier
	secret   seal.Key
	keys     *authz.Keys
	stops    *authz.Revocations
	known    *registry.Registry
	foreign  *federation.Verifier
	ahead    atomic.Int64 // how far the clock is ahead, in nanoseconds
}

func newWorld(t *testing.T, pool *pgxpool.Pool) *world {
	t.Helper()
	secret, err := seal.ParseKey(seal.NewKey())
	if err != nil {
		t.Fatal(err)
	}
	return newProcess(t, pool, secret)
}

// another is what a second process has, beside the same database.
func (w *world) another(t *testing.T) *world {
	t.Helper()
	return newProcess(t, w.pool, w.secret)
}

func newProcess(t *testing.T, pool *pgxpool.Pool, secret seal.Key) *world {
	t.Helper()
	w := &world{pool: pool, secret: secret}
	var err error
	if w.keys, err = authz.LoadKeys(t.Context(), authz.KeysConfig{Pool: pool, Seal: secret, Clock: w.now}); err == nil {
		w.stops, err = authz.NewRevocations(pool, w.now)
	}
	if err == nil {
		w.issuer, err = authz.NewIssuer(authz.IssuerConfig{Name: authztest.IssuerName, Keys: w.keys, Clock: w.now})
	}
	if err == nil {
		w.verifier, err = authz.NewVerifier(authz.VerifierConfig{Issuer: authztest.IssuerName, Keys: w.keys, Revocations: w.stops, Clock: w.now})
	}
	if err == nil {
		w.known, err = registry.New(pool)
	}
	if err == nil {
		w.foreign, err = federation.New(federation.Config{Issuers: w.known.IssuerByURL, Client: http.DefaultClient, Clock: w.now})
	}
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *world) now() time.Time { return time.Now().Add(time.Duration(w.ahead.Load())) }

// gateway is one that runs until stop is called or the test ends.
func (w *world) gateway(t *testing.T, pool *pgxpool.Pool) (g *gateway.Gateway, stop func()) {
	t.Helper()
	log, err := audit.New(audit.Config{Pool: pool})
	if err != nil {
		t.Fatal(err)
	}
	answers, err := lineage.New(lineage.Config{Pool: pool})
	if err != nil {
		t.Fatal(err)
	}
	g, err = gateway.New(gateway.Config{Pool: pool, Audit: log, Lineage: answers,
		Verifier: w.verifier, Issuer: w.issuer,
		Identities: w.foreign, Registry: w.known, Revocations: w.stops, Keys: w.keys, Clock: w.now})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var group errgroup.Group
	group.Go(func() error { return g.Run(ctx) })
	stop = func() {
		cancel()
		if err := group.Wait(); err != nil {
			t.Errorf("run: %v", err)
		}
	}
	t.Cleanup(stop)
	return g, stop
}

// open is the usual case: one world, one gateway.
func open(t *testing.T) (*world, *gateway.Gateway) {
	t.Helper()
	w := newWorld(t, pgtest.New(t).Pool)
	g, _ := w.gateway(t, w.pool)
	return w, g
}

func (w *world) operator(t *testing.T, role authz.Role) string {
	t.Helper()
	token, _, err := w.issuer.IssueOperator("olga", role, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

var everything = authz.ScopeSpec{Type: authz.DetailType, AllTables: true, AllSubjects: true,
	Actions: []authz.Action{authz.MemoryRead, authz.TaskDelegate}}

func request(calls int64) authz.TaskRequest {
	return authz.TaskRequest{Agent: "worker", Purpose: "a test", Scope: everything, Calls: calls, Lifetime: 10 * time.Minute}
}

// below lets a request fit under the deadlines of tasks that are a little older.
func below(r authz.TaskRequest, depth int) authz.TaskRequest {
	r.Lifetime -= time.Duration(depth) * time.Minute
	return r
}

// start starts a root task; its entry is the first of the log.
func (w *world) start(t *testing.T, g *gateway.Gateway, calls int64) (token string, task uuid.UUID) {
	t.Helper()
	out, err := g.StartOwn(t.Context(), "olga", request(calls))
	if err != nil {
		t.Fatal(err)
	}
	return out.Token, out.Task.ID
}

// delegate starts a task below the bearer's.
func delegate(t *testing.T, g *gateway.Gateway, bearer string, r authz.TaskRequest) (out gateway.Started, err error) {
	t.Helper()
	call := gateway.Call{Name: "whence.v1.TaskService/Delegate", Presented: authz.Presented{Token: bearer}, Action: authz.TaskDelegate}
	err = g.Do(t.Context(), call, func(_ context.Context, s *gateway.Session) error {
		g.Delegate(s, r, func(s gateway.Started) { out = s })
		return nil
	})
	return out, err
}

func read(bearer string) gateway.Call {
	return gateway.Call{Name: query, Presented: authz.Presented{Token: bearer}, Action: authz.MemoryRead, Charge: 1}
}

func nothing(context.Context, *gateway.Session) error { return nil }

// number is the result of a query for one number.
func (w *world) number(t *testing.T, sql string, args ...any) (n int64) {
	t.Helper()
	if err := w.pool.QueryRow(t.Context(), sql, args...).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func (w *world) used(t *testing.T, task uuid.UUID) int64 {
	t.Helper()
	return w.number(t, "select settled[1] from whence.tasks where id = $1", task)
}

func (w *world) answers(t *testing.T) int64 {
	t.Helper()
	return w.number(t, "select count(*) from whence.answers")
}

// migrated is a memory database on a server of the test's own.
func migrated(t *testing.T, cluster *pgcluster.Cluster) *pgxpool.Pool {
	t.Helper()
	admin, err := pgx.Connect(t.Context(), cluster.DSN("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err = admin.Exec(t.Context(), "create database memory"); err == nil {
		err = errors.Join(admin.Close(t.Context()), migrations.Up(t.Context(), cluster.DSN("memory")))
	}
	if err != nil {
		t.Fatal(err)
	}
	pool, err := pg.NewPool(t.Context(), cluster.DSN("memory"), 8)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

type line struct {
	Decision, Reason string
	Charged          int64
}

// entries are the log's lines for a call, oldest first.
func (w *world) entries(t *testing.T, call string) []line {
	t.Helper()
	rows, err := w.pool.Query(t.Context(),
		"select decision, reason, calls_charged from whence.entries where call = $1 order by id", call)
	if err != nil {
		t.Fatal(err)
	}
	lines, err := pgx.CollectRows(rows, pgx.RowToStructByPos[line])
	if err != nil {
		t.Fatal(err)
	}
	return lines
}

// reason is the stable part of an error.
func reason(err error) string {
	var e *whence.Error
	switch {
	case err == nil:
		return ""
	case errors.As(err, &e):
		return e.Reason
	}
	return "not a whence.Error: " + err.Error()
}
