package gateway_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/google/uuid"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/authz/registry"
	"github.com/whence-db/whence/gateway"
)

func TestStartOwn(t *testing.T) {
	t.Parallel()
	w, g := open(t)
	r := request(7)
	r.Lifetime = time.Hour
	out, err := g.StartOwn(t.Context(), "olga", r)
	if err != nil {
		t.Fatal(err)
	}
	p, err := w.verifier.Verify(t.Context(), out.Token)
	if err != nil {
		t.Fatal(err)
	}
	id := out.Task.ID
	if p.Task != id || p.Root != id || p.User != "olga" || p.Agent != "worker" || !p.Expires.Equal(out.Expires) {
		t.Errorf("principal %+v", p)
	}
	if life := time.Until(out.Expires); life < 59*time.Minute || life > time.Hour {
		t.Errorf("the token is good for %s", life)
	}
	got, err := g.GetTask(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	want := gateway.Task{ID: id, Root: id, Tenant: authz.DefaultTenant, User: "olga", Agent: "worker", Actors: []string{"worker"}, Purpose: "a test",
		Scope: r.Scope, State: gateway.TaskActive, Created: got.Created, MaxDepth: registry.DefaultDepth,
		Budget: gateway.Budget{Limit: r.Amounts(), Remaining: r.Amounts(), Deadline: got.Created.Add(time.Hour)}}
	if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
		t.Error(diff)
	}
	if err := g.Do(t.Context(), read(out.Token), nothing); err != nil {
		t.Error(err)
	}
	if _, err := g.StartOwn(t.Context(), "olga", request(0)); reason(err) != "BUDGET_INVALID" {
		t.Errorf("without a budget: %v", err)
	}
	if n := len(w.entries(t, "server/StartTask")); n != 1 {
		t.Errorf("%d entries of its start", n)
	}
}

func TestDelegate(t *testing.T) {
	t.Parallel()
	w, g := open(t)
	narrow := authz.ScopeSpec{Type: authz.DetailType, Tables: []whence.TableName{"app.public.docs"}, AllSubjects: true,
		Actions: []authz.Action{authz.MemoryRead, authz.TaskDelegate}}
	rootToken, root := w.start(t, g, 20)

	r := below(request(10), 1)
	r.Agent, r.Scope = "helper", narrow
	child, err := delegate(t, g, rootToken, r)
	if err != nil {
		t.Fatal(err)
	}
	p, err := w.verifier.Verify(t.Context(), child.Token)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"helper", "worker"}, p.Actors); diff != "" || p.User != "olga" ||
		p.Root != root || p.Parent != root || p.Depth != 1 || p.Scope.AllowsTable("app.public.other") {
		t.Errorf("principal %+v %s", p, diff)
	}

	// What the child spends, its parent has spent too.
	for range 3 {
		if err := g.Do(t.Context(), read(child.Token), nothing); err != nil {
			t.Fatal(err)
		}
	}
	if used := w.used(t, root); used != 3 {
		t.Errorf("the parent's use is %d", used)
	}
	call := read(rootToken)
	call.Charge = 15
	if err := g.Do(t.Context(), call, nothing); err != nil {
		t.Fatal(err)
	}
	got, err := g.GetTask(t.Context(), child.Task.ID)
	if err != nil || got.Budget.Limit[0] != 10 || got.Budget.Used[0] != 3 || got.Budget.Remaining[0] != 2 {
		t.Errorf("the child may spend what its parent has left: %+v, %v", got.Budget, err)
	}
	call = read(child.Token)
	call.Charge = 3
	var e *whence.Error
	if err := g.Do(t.Context(), call, nothing); !errors.As(err, &e) || e.Metadata["task"] != root.String() {
		t.Errorf("the parent's exhaustion: %v", err)
	}

	all, err := delegate(t, g, child.Token, authz.TaskRequest{Agent: "helper", Purpose: "the rest", Scope: narrow})
	if err != nil || all.Task.Budget.Limit[0] != 2 || !all.Task.Budget.Deadline.Equal(got.Budget.Deadline) {
		t.Errorf("without budget and lifetime a task gets what is left: %+v, %v", all.Task.Budget, err)
	}

	wide := below(request(1), 2)
	wide.Scope.Tables, wide.Scope.AllTables = []whence.TableName{"app.public.other"}, false
	long := below(request(1), 0)
	long.Scope = narrow
	rich := below(request(3), 2)
	rich.Scope = narrow
	for name, c := range map[string]struct {
		r    authz.TaskRequest
		want string
	}{
		"a wider scope":     {wide, "SCOPE_WIDENED"},
		"a larger budget":   {rich, "BUDGET_EXHAUSTED"},
		"a later deadline":  {long, "LIFETIME_INVALID"},
		"no agent to do it": {authz.TaskRequest{}, "AGENT_INVALID"},
	} {
		if _, err := delegate(t, g, child.Token, c.r); reason(err) != c.want {
			t.Errorf("%s: %v, want %s", name, err, c.want)
		}
	}
}

func TestDepth(t *testing.T) {
	t.Parallel()
	w, g := open(t)
	token, _ := w.start(t, g, 20)
	for depth := 1; depth <= registry.DefaultDepth; depth++ {
		s, err := delegate(t, g, token, below(request(5), depth))
		if err != nil {
			t.Fatal(err)
		}
		token = s.Token
	}
	if err := g.Do(t.Context(), read(token), nothing); err != nil {
		t.Errorf("the deepest task: %v", err)
	}
	if _, err := delegate(t, g, token, below(request(1), 9)); reason(err) != "DEPTH_EXCEEDED" {
		t.Errorf("below the deepest: %v", err)
	}
}

func TestEndTaskEndsTheTree(t *testing.T) {
	t.Parallel()
	w, g := open(t)
	rootToken, root := w.start(t, g, 20)
	var ended [2]gateway.Started
	parent := rootToken
	for i := range ended {
		var err error
		if ended[i], err = delegate(t, g, parent, below(request(5), i+1)); err != nil {
			t.Fatal(err)
		}
		parent = ended[i].Token
	}
	sibling, err := delegate(t, g, rootToken, below(request(5), 1))
	if err != nil {
		t.Fatal(err)
	}
	end := gateway.Call{Name: "whence.v1.TaskService/EndTask", Presented: authz.Presented{Token: ended[0].Token}}
	err = g.Do(t.Context(), end, func(_ context.Context, s *gateway.Session) error {
		return g.EndTask(t.Context(), s, false, func(task gateway.Task, below int64, _ []uuid.UUID) {
			if task.ID != ended[0].Task.ID || task.State != gateway.TaskEnded || task.Ended.IsZero() || below != 1 {
				t.Errorf("ended: %+v and %d below", task, below)
			}
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	for id, want := range map[uuid.UUID]gateway.TaskState{
		root: gateway.TaskActive, sibling.Task.ID: gateway.TaskActive,
		ended[0].Task.ID: gateway.TaskEnded, ended[1].Task.ID: gateway.TaskEnded,
	} {
		if task, err := g.GetTask(t.Context(), id); err != nil || task.State != want {
			t.Errorf("depth %d is %s, want %s (%v)", task.Depth, task.State, want, err)
		}
	}
	for _, token := range []string{ended[0].Token, ended[1].Token} {
		if err := g.Do(t.Context(), read(token), nothing); reason(err) != "TASK_ENDED" {
			t.Errorf("a call in an ended tree: %v", err)
		}
	}
	for _, token := range []string{rootToken, sibling.Token} {
		if err := g.Do(t.Context(), read(token), nothing); err != nil {
			t.Errorf("a call outside the ended tree: %v", err)
		}
	}
}

func TestListTasks(t *testing.T) {
	t.Parallel()
	w, g := open(t)
	var want []uuid.UUID
	for range 7 {
		_, id := w.start(t, g, 5)
		want = append([]uuid.UUID{id}, want...)
	}
	var got []uuid.UUID
	page := ""
	for {
		tasks, next, err := g.ListTasks(t.Context(), gateway.TaskFilter{Tenant: authz.DefaultTenant, Agent: "worker", User: "olga"}, 3, page)
		if err != nil {
			t.Fatal(err)
		}
		for _, task := range tasks {
			got = append(got, task.ID)
		}
		if next == "" {
			break
		}
		page = next
		w.start(t, g, 5) // must not shift the pages
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}

	if _, err := w.pool.Exec(t.Context(), "update whence.tasks set state = 'ENDED' where id = $1", want[0]); err != nil {
		t.Fatal(err)
	}
	if _, err := w.pool.Exec(t.Context(), "update whence.tasks set deadline = now() where id = $1", want[1]); err != nil {
		t.Fatal(err)
	}
	for state, id := range map[gateway.TaskState]uuid.UUID{gateway.TaskEnded: want[0], gateway.TaskExpired: want[1]} {
		tasks, _, err := g.ListTasks(t.Context(), gateway.TaskFilter{State: state}, 0, "")
		if err != nil || len(tasks) != 1 || tasks[0].ID != id || tasks[0].State != state {
			t.Errorf("%s: %+v, %v", state, tasks, err)
		}
	}
	active, _, err := g.ListTasks(t.Context(), gateway.TaskFilter{State: gateway.TaskActive}, 0, "")
	if err != nil || len(active) != int(w.number(t, "select count(*) from whence.tasks"))-2 {
		t.Errorf("%d active tasks, %v", len(active), err)
	}
	if _, _, err := g.ListTasks(t.Context(), gateway.TaskFilter{}, 0, "nonsense"); reason(err) != "PAGE_TOKEN_INVALID" {
		t.Errorf("a made-up token: %v", err)
	}
	if _, err := g.GetTask(t.Context(), uuid.New()); !errors.Is(err, whence.ErrNotFound) {
		t.Errorf("an unknown task: %v", err)
	}
}

// TestDelegateOnce holds that one idempotency key starts one task, and that a replay
// gives another token of it, for as long as it may go on.
func TestDelegateOnce(t *testing.T) {
	t.Parallel()
	w, g := open(t)
	root, _ := w.start(t, g, 20)
	ask := func(key string, r authz.TaskRequest) (out gateway.Started, err error) {
		call := gateway.Call{Name: "whence.v1.TaskService/Delegate", Presented: authz.Presented{Token: root}, Action: authz.TaskDelegate, IdempotencyKey: key,
			Prepare: func() (d [32]byte, err error) { d[0] = byte(r.Calls); return d, nil }}
		err = g.Do(t.Context(), call, func(_ context.Context, s *gateway.Session) error {
			g.Delegate(s, r, func(s gateway.Started) { out = s })
			return nil
		})
		return out, err
	}
	r := below(request(5), 1)
	first, err := ask("a", r)
	if err != nil {
		t.Fatal(err)
	}
	again, err := ask("a", r)
	if err != nil || again.Task.ID != first.Task.ID || again.Token == first.Token {
		t.Errorf("a replay: %+v, %v", again.Task, err)
	}
	if err := g.Do(t.Context(), read(again.Token), nothing); err != nil {
		t.Errorf("with a replay's token: %v", err)
	}
	other, err := ask("b", r)
	if err != nil || other.Task.ID == first.Task.ID {
		t.Errorf("another key: %+v, %v", other.Task, err)
	}
	if _, err := ask("a", below(request(6), 1)); reason(err) != "IDEMPOTENCY_KEY_REUSED" {
		t.Errorf("another request: %v", err)
	}
	if _, err := revoke(t, g, w.operator(t, authz.RoleAdmin), authz.Revocation{Kind: authz.RevokedTask, Target: first.Task.ID.String()}); err != nil {
		t.Fatal(err)
	}
	if _, err := ask("a", r); reason(err) != "TASK_REVOKED" {
		t.Errorf("a replay after its end: %v", err)
	}
	if n := w.number(t, "select count(*) from whence.tasks"); n != 3 {
		t.Errorf("%d tasks", n)
	}
}

// TestNothingHappensUnrecorded holds that what a call changes is not changed when the
// call cannot be recorded.
func TestNothingHappensUnrecorded(t *testing.T) {
	t.Parallel()
	w, g := open(t)
	tr := w.grow(t, g)
	operator := w.operator(t, authz.RoleAdmin)
	if err := w.keys.Rotate(t.Context()); err != nil {
		t.Fatal(err)
	}
	keys, err := w.keys.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	state := func() string {
		t.Helper()
		var s string
		if err := w.pool.QueryRow(t.Context(), `select (select count(*) from whence.tasks where state = 'ACTIVE') || ' tasks, ' ||
			(select count(*) from whence.signing_keys where retired_at is null) || ' keys, ' || (select count(*) from whence.revocations) || ' revocations'`).Scan(&s); err != nil {
			t.Fatal(err)
		}
		return s
	}
	if err := g.Do(t.Context(), read(tr.worker.Token), nothing); err != nil {
		t.Fatal(err)
	}
	before := state()
	if _, err := w.pool.Exec(t.Context(), "alter table whence.entries rename to gone"); err != nil {
		t.Fatal(err)
	}
	_, delegated := delegate(t, g, tr.worker.Token, below(request(1), 1))
	_, key := revoke(t, g, operator, authz.Revocation{Kind: authz.RevokedKey, Target: keys[0].ID})
	_, agent := revoke(t, g, operator, authz.Revocation{Kind: authz.RevokedAgent, Tenant: authz.DefaultTenant, Target: "middle"})
	end := g.Do(t.Context(), gateway.Call{Name: "end", Presented: authz.Presented{Token: tr.worker.Token}}, func(_ context.Context, s *gateway.Session) error {
		return g.EndTask(t.Context(), s, false, func(gateway.Task, int64, []uuid.UUID) {})
	})
	for name, err := range map[string]error{"delegate": delegated, "revoke a key": key, "revoke an agent": agent, "end": end} {
		if reason(err) != "AUDIT_UNAVAILABLE" {
			t.Errorf("%s without a log: %v", name, err)
		}
	}
	if after := state(); after != before {
		t.Errorf("%s became %s", before, after)
	}
	if _, err := w.pool.Exec(t.Context(), "alter table whence.gone rename to entries"); err != nil {
		t.Fatal(err)
	}
	for name, token := range map[string]string{"middle": tr.middle.Token, "worker": tr.worker.Token} {
		if err := g.Do(t.Context(), read(token), nothing); err != nil {
			t.Errorf("%s goes on: %v", name, err)
		}
	}
}
