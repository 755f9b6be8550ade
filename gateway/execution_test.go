package gateway_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
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
	"github.com/whence-db/whence/gateway"
	"github.com/whence-db/whence/gateway/action"
	"github.com/whence-db/whence/index"
	"github.com/whence-db/whence/ingest"
	"github.com/whence-db/whence/internal/pg"
	"github.com/whence-db/whence/internal/pgtest"
	"github.com/whence-db/whence/lineage"
	"github.com/whence-db/whence/notes"
)

// site is a memory database with a source, and processes that run actions on it.
type site struct {
	*world
	memory, source *pgtest.DB
	processes      atomic.Int64
	lease          time.Duration // of the processes; zero: as usual
}

func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{memory: pgtest.New(t), source: pgtest.Empty(t)}
	s.world = newWorld(t, s.memory.Pool)
	s.sql(t, `create table accounts (id int primary key, owner text, balance int not null check (balance >= 0), note text)`)
	s.sql(t, `insert into accounts select i, 'o' || i % 3, 100, null from generate_series(1, 20) i`)
	p := s.process(t)
	if _, err := p.registry.CreateSource(t.Context(), "app", "", "SOURCE"); err != nil {
		t.Fatal(err)
	}
	if _, err := p.registry.RegisterTable(t.Context(), ingest.TableSpec{Source: "app", Table: "public.accounts", TextColumns: []string{"owner"}, SubjectColumn: "owner"}); err != nil {
		t.Fatal(err)
	}
	id, amount := action.Operand{Parameter: "id"}, action.Operand{Parameter: "balance"}
	parameters := []action.Parameter{{Name: "id", Type: action.Integer, Required: true}, {Name: "balance", Type: action.Integer}}
	row := func(op action.Operation) *action.RowAction {
		r := &action.RowAction{Table: "app.public.accounts", Operation: op, Where: map[string]action.Operand{"id": id}, Columns: []string{"balance", "owner"}}
		if op == action.Update {
			r.Set = map[string]action.Operand{"balance": amount}
		}
		if op == action.Insert {
			r.Where, r.Set = nil, map[string]action.Operand{"id": id, "balance": amount, "owner": {Credential: "agent"}}
		}
		return r
	}
	s.action(t, action.Definition{Name: "set", Description: "x", Tier: authz.TierReversible, Parameters: parameters, Row: row(action.Update)})
	s.action(t, action.Definition{Name: "open", Description: "x", Tier: authz.TierReversible, Parameters: parameters, Row: row(action.Insert)})
	s.action(t, action.Definition{Name: "remove", Description: "x", Tier: authz.TierReversible, Parameters: parameters[:1], Row: row(action.Delete)})
	s.action(t, action.Definition{Name: "show", Description: "x", Tier: authz.TierRead, Parameters: parameters[:1], Row: row(action.Select)})
	s.action(t, action.Definition{Name: "close", Description: "x", Tier: authz.TierIrreversible, IrreversibleBecause: "x", Parameters: parameters[:1], Row: row(action.Delete)})
	s.action(t, action.Definition{Name: "wipe", Description: "x", Tier: authz.TierIrreversible, IrreversibleBecause: "x", Approvals: 2, Parameters: parameters[:1], Row: row(action.Delete)})
	s.action(t, action.Definition{Name: "found", Description: "x", Tier: authz.TierReversible, Approvals: 1, Parameters: parameters, Row: row(action.Insert)})
	text := action.Parameter{Name: "text", Type: action.Text, Required: true}
	s.action(t, action.Definition{Name: "note", Description: "x", Tier: authz.TierReversible, Parameters: []action.Parameter{text},
		Memory: &action.MemoryAction{Operation: action.Remember, Fields: map[string]action.Operand{"text": {Parameter: "text"}}}})
	return s
}

func (s *site) sql(t *testing.T, sql string, args ...any) {
	t.Helper()
	if _, err := s.source.Pool.Exec(context.Background(), sql, args...); err != nil {
		t.Fatal(err)
	}
}

func (s *site) action(t *testing.T, d action.Definition) {
	t.Helper()
	err := pg.InTx(t.Context(), s.pool, func(tx pgx.Tx) error {
		_, _, err := action.Store{}.Register(t.Context(), tx, authz.DefaultTenant, "olga", d)
		return err
	})
	if err != nil {
		t.Fatalf("%s: %v", d.Name, err)
	}
}

// rows is the whole table as text, byte for byte.
func (s *site) rows(t *testing.T) string {
	t.Helper()
	rows, err := s.source.Pool.Query(context.Background(), "select (a.*)::text from accounts a order by id")
	if err != nil {
		t.Fatal(err)
	}
	all, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(all, "\n")
}

// process is a server's process: a gateway with connections of its own.
type process struct {
	*gateway.Gateway
	registry *ingest.Registry
	kill     func() // wherever it is; from then on nothing that it does reaches a database
}

func (s *site) process(t *testing.T) *process {
	t.Helper()
	name := fmt.Sprint("process-", s.processes.Add(1))
	mine := "&application_name=" + name
	dead := make(chan struct{})
	config, err := pgxpool.ParseConfig(s.memory.DSN + mine)
	if err != nil {
		t.Fatal(err)
	}
	config.MaxConns = 8
	config.BeforeConnect = func(context.Context, *pgx.ConnConfig) error {
		select {
		case <-dead:
			return errors.New("this process is dead")
		default:
			return nil
		}
	}
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	x, err := index.New(index.Config{Pool: pool})
	if err != nil {
		t.Fatal(err)
	}
	p := &process{}
	getenv := func(string) string {
		select {
		case <-dead:
			return "postgres://nobody@127.0.0.1:1/none"
		default:
			return s.source.DSN + mine
		}
	}
	if p.registry, err = ingest.NewRegistry(ingest.Config{Pool: pool, Index: x, Seal: s.secret, Getenv: getenv}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.registry.Close)
	rows, err := action.NewRunner(action.Config{Registry: p.registry})
	if err != nil {
		t.Fatal(err)
	}
	log, err := audit.New(audit.Config{Pool: pool})
	if err != nil {
		t.Fatal(err)
	}
	answers, err := lineage.New(lineage.Config{Pool: pool})
	if err != nil {
		t.Fatal(err)
	}
	notebook, err := notes.New(notes.Config{Pool: pool, Index: x, Lineage: answers})
	if err != nil {
		t.Fatal(err)
	}
	p.Gateway, err = gateway.New(gateway.Config{Pool: pool, Audit: log, Lineage: answers, Verifier: s.verifier, Issuer: s.issuer,
		Identities: s.foreign, Registry: s.known, Revocations: s.stops, Keys: s.keys, Clock: s.now, Rows: rows, Lease: s.lease,
		Notes: notebook})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var group errgroup.Group
	group.Go(func() error { return p.Run(ctx) })
	t.Cleanup(func() { cancel(); _ = group.Wait() })
	var once sync.Once
	p.kill = func() {
		once.Do(func() {
			close(dead)
			// On the source all writers go, for they do not say whose they are.
			for db, names := range map[*pgtest.DB][]string{s.memory: {name}, s.source: {name, "whence action"}} {
				if _, err := db.Pool.Exec(context.Background(), "select pg_terminate_backend(pid, 5000) from pg_stat_activity where datname = $1 and application_name = any($2)", db.Name, names); err != nil {
					t.Error(err)
				}
			}
			// Its lease is over sooner than it would be.
			_, _ = s.memory.Pool.Exec(context.Background(), "update whence.holders set expires_at = now() - interval '1 s' where id = $1", p.Holder())
		})
	}
	return p
}

// agent starts a task that may execute.
func (s *site) agent(t *testing.T, p *process, limits authz.Limits) gateway.Started {
	t.Helper()
	r := request(100_000)
	r.Scope.Actions, r.Scope.Tier, r.Limits = authz.Actions(), authz.TierIrreversible, limits
	out, err := p.StartOwn(t.Context(), "ann", r)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func called(name, token, key string) gateway.Call {
	return gateway.Call{Name: "whence.v1.ActionService/" + name, Presented: authz.Presented{Token: token}, Action: authz.ActionExecute, Charge: 1, IdempotencyKey: key}
}

func (p *process) execute(token, key, name string, args map[string]any) (x gateway.Execution, err error) {
	call := called("Execute", token, key)
	call.Prepare = func() ([32]byte, error) { return whence.DigestOf(name + fmt.Sprint(args)), nil }
	err = p.Do(context.Background(), call, func(ctx context.Context, s *gateway.Session) error {
		return p.Execute(ctx, s, gateway.Asked{Action: name, Arguments: args}, func(got gateway.Execution) error { x = got; return nil })
	})
	return x, err
}

func (p *process) undo(token string, id uuid.UUID) (x gateway.Execution, err error) {
	err = p.Do(context.Background(), called("Undo", token, ""), func(ctx context.Context, s *gateway.Session) error {
		return p.Undo(ctx, s, id.String(), func(got gateway.Execution) error { x = got; return nil })
	})
	return x, err
}

func (p *process) decide(token string, id string, approve bool, digest string) (a gateway.Approval, err error) {
	call := gateway.Call{Name: "whence.v1.ApprovalService/Approve", Presented: authz.Presented{Token: token}, Role: authz.RoleApprover}
	err = p.Do(context.Background(), call, func(ctx context.Context, s *gateway.Session) error {
		return p.Decide(ctx, s, id, approve, digest, "", func(got gateway.Approval) { a = got })
	})
	return a, err
}

// until tries again as an agent does, by what the error says.
func until(call func() error) error {
	for begin := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		err := call()
		var e *whence.Error
		if err == nil || time.Since(begin) > 30*time.Second || !errors.As(err, &e) || e.RetryAfter == 0 {
			return err
		}
	}
}

func metadata(err error, name string) string {
	var e *whence.Error
	if errors.As(err, &e) {
		return e.Metadata[name]
	}
	return ""
}

// A process dies at each step of a write, and another one gets the same key: the
// write has happened exactly once, its entry and its charge are there, and what was
// held has come back.
func TestCrashAtEveryStep(t *testing.T) {
	t.Parallel()
	steps := []string{"claimed", "done on the source", "written down", "committed", "being recorded"}
	for _, name := range []string{"open", "set", "remove"} {
		for _, step := range steps {
			t.Run(name+" "+step, func(t *testing.T) {
				t.Parallel()
				s := newSite(t)
				first, second := s.process(t), s.process(t)
				task := s.agent(t, second, authz.Limits{authz.Writes: 5, authz.Rows: 5, authz.Spend: 0})
				args := map[string]any{"id": 7, "balance": 42}
				if name == "open" {
					args["id"] = 77
				}
				if name == "remove" {
					delete(args, "balance")
				}
				died := false
				first.Steps(func(at string) {
					if at == step {
						died = true
						first.kill()
					}
				})
				if x, err := first.execute(task.Token, "k", name, args); err == nil {
					t.Fatalf("a process that died says %+v", x)
				}
				if !died {
					t.Fatal("it did not die there")
				}
				var x gateway.Execution
				if err := until(func() (err error) { x, err = second.execute(task.Token, "k", name, args); return err }); err != nil {
					t.Fatal(err)
				}
				again, err := second.execute(task.Token, "k", name, args)
				if err != nil || again.ID != x.ID || !again.Replayed || string(again.Result) != string(x.Result) {
					t.Errorf("once more: %+v, %v", again, err)
				}
				want := map[string]int64{"open": 42, "set": 42, "remove": 0}[name]
				var have int64
				if err := s.source.Pool.QueryRow(t.Context(), "select coalesce(sum(balance), 0) from accounts where id = $1", args["id"]).Scan(&have); err != nil || have != want {
					t.Errorf("the balance is %d: %v", have, err)
				}
				if n := s.number(t, "select count(*) from whence.entries where call like '%Execute' and decision = 'ALLOWED' and not coalesce((detail ->> 'replayed')::boolean, false)"); n != 1 {
					t.Errorf("%d entries of one effect", n)
				}
				if n := s.number(t, "select settled[2] from whence.tasks where id = $1", task.Task.ID); n != 1 {
					t.Errorf("%d writes are charged", n)
				}
			})
		}
	}
}

func TestCrashAtEveryStepOfUndo(t *testing.T) {
	t.Parallel()
	for _, step := range []string{"done on the source", "written down", "committed", "being recorded"} {
		t.Run(step, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			first, second := s.process(t), s.process(t)
			task := s.agent(t, second, nil)
			before := s.rows(t)
			x, err := second.execute(task.Token, "k", "set", map[string]any{"id": 3, "balance": 1})
			if err != nil {
				t.Fatal(err)
			}
			first.Steps(func(at string) {
				if at == step {
					first.kill()
				}
			})
			if _, err := first.undo(task.Token, x.ID); err == nil {
				t.Fatal("a process that died says that it is undone")
			}
			if err := until(func() error {
				got, err := second.undo(task.Token, x.ID)
				if err == nil {
					x = got
				}
				return err
			}); err != nil || x.State != gateway.Undone {
				t.Fatalf("%+v: %v", x, err)
			}
			if after := s.rows(t); after != before {
				t.Errorf("before\n%s\nafter\n%s", before, after)
			}
			if x, err = second.undo(task.Token, x.ID); err != nil || !x.Replayed || s.rows(t) != before {
				t.Errorf("once more: %+v, %v", x, err)
			}
		})
	}
}

// A hundred calls with one key at once, through two processes: one effect.
func TestOneKeyOneEffect(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	doors := []*process{s.process(t), s.process(t)}
	task := s.agent(t, doors[0], nil)
	var mu sync.Mutex
	ids := map[uuid.UUID]bool{}
	var calls errgroup.Group
	for i := range 100 {
		calls.Go(func() error {
			return until(func() error {
				x, err := doors[i%2].execute(task.Token, "k", "open", map[string]any{"id": 500, "balance": 5})
				if err == nil {
					mu.Lock()
					ids[x.ID] = true
					mu.Unlock()
				}
				return err
			})
		})
	}
	if err := calls.Wait(); err != nil {
		t.Fatal(err)
	}
	if len(ids) != 1 {
		t.Errorf("%d executions", len(ids))
	}
	if n := s.number(t, "select settled[2] from whence.tasks where id = $1", task.Task.ID); n != 1 {
		t.Errorf("%d writes are charged", n)
	}
	if _, err := doors[0].execute(task.Token, "k", "open", map[string]any{"id": 501, "balance": 5}); reason(err) != "IDEMPOTENCY_KEY_REUSED" {
		t.Errorf("another request with the key: %v", err)
	}
	if _, err := doors[0].execute(task.Token, "", "open", map[string]any{"id": 502, "balance": 5}); reason(err) != "IDEMPOTENCY_KEY_REQUIRED" {
		t.Errorf("without a key: %v", err)
	}
	// A write that was rolled back stays retryable.
	if _, err := doors[0].execute(task.Token, "f", "open", map[string]any{"id": 500, "balance": 5}); reason(err) != "CONSTRAINT_VIOLATED" {
		t.Errorf("a key that is there: %v", err)
	}
	s.sql(t, "delete from accounts where id = 500")
	if x, err := doors[1].execute(task.Token, "f", "open", map[string]any{"id": 500, "balance": 5}); err != nil || x.State != gateway.Succeeded {
		t.Errorf("after it went: %+v, %v", x, err)
	}
}

// Random writes are undone with their task: the source is what it was, or what
// stands against it is named.
func TestEndTaskUndoes(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	p := s.process(t)
	for round := range 6 {
		before := s.rows(t)
		task := s.agent(t, p, nil)
		r := rand.New(rand.NewPCG(1, uint64(round)))
		for i := range 12 {
			id := 1 + r.IntN(25)
			args := map[string]any{"id": id}
			name := []string{"set", "open", "remove", "note"}[r.IntN(4)]
			if name == "set" || name == "open" {
				args["balance"] = r.IntN(200)
			}
			if name == "note" {
				args = map[string]any{"text": fmt.Sprint("note ", i)}
			}
			_, err := p.execute(task.Token, fmt.Sprint("k", i), name, args)
			if err != nil && reason(err) != "CONSTRAINT_VIOLATED" {
				t.Fatalf("%s %v: %v", name, args, err)
			}
		}
		disturbed := round%3 == 2
		if disturbed {
			s.sql(t, "update accounts set note = 'by hand' where id in (select id from accounts where balance <> 100 limit 1)")
		}
		var undone []uuid.UUID
		end := gateway.Call{Name: "whence.v1.TaskService/EndTask", Presented: authz.Presented{Token: task.Token}}
		err := p.Do(t.Context(), end, func(ctx context.Context, ses *gateway.Session) error {
			return p.EndTask(ctx, ses, true, func(_ gateway.Task, _ int64, ids []uuid.UUID) { undone = ids })
		})
		left := s.number(t, "select count(*) from whence.executions where task_id = $1 and state = 'SUCCEEDED'", task.Task.ID)
		switch {
		case err == nil && !disturbed:
			if after := s.rows(t); after != before || left != 0 || len(undone) == 0 {
				t.Errorf("round %d: %d undone, %d left, before\n%s\nafter\n%s", round, len(undone), left, before, after)
			}
			if !slices.IsSortedFunc(undone, func(a, b uuid.UUID) int { return strings.Compare(b.String(), a.String()) }) {
				t.Errorf("undone in the order %v", undone)
			}
		case reason(err) == "UNDO_CONFLICT" && disturbed:
			if metadata(err, "columns") != "note" || metadata(err, "key") == "" || left == 0 {
				t.Errorf("the conflict says %v, and %d are left", err, left)
			}
			s.sql(t, "truncate accounts")
			s.sql(t, `insert into accounts select i, 'o' || i % 3, 100, null from generate_series(1, 20) i`)
		case err == nil: // what was changed by hand had not been touched
		default:
			t.Fatalf("round %d: %v", round, err)
		}
	}
}
