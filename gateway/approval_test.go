package gateway_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/gateway"
	"github.com/whence-db/whence/gateway/action"
)

func (s *site) approver(t *testing.T, name string) string {
	t.Helper()
	token, _, err := s.issuer.IssueOperator(name, authz.RoleApprover, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// asked asks for an execution that needs an approval, and returns that.
func (s *site) asked(t *testing.T, p *process, token, key, name string, args map[string]any) gateway.Approval {
	t.Helper()
	_, err := p.execute(token, key, name, args)
	if reason(err) != "APPROVAL_PENDING" || metadata(err, "approval") == "" {
		t.Fatalf("%s: %v", name, err)
	}
	a, err := p.GetApproval(t.Context(), &authz.Principal{Tenant: authz.DefaultTenant}, metadata(err, "approval"))
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestApproval(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	p, other := s.process(t), s.process(t)
	task := s.agent(t, p, authz.Limits{authz.Writes: 3})
	olga, ben := s.approver(t, "olga"), s.approver(t, "ben")
	five := map[string]any{"id": 5}

	a := s.asked(t, p, task.Token, "k", "close", five)
	if len(a.Shown) != 1 || *a.Shown[0].Before["balance"] != "100" || a.Needed != 1 || a.Purpose != "a test" || a.Execution.User != "ann" {
		t.Errorf("the approval says %+v", a)
	}
	if strings.Count(s.rows(t), "\n") != 19 {
		t.Error("asking has done something")
	}
	// Waiting costs nothing, however often it is looked at.
	used := s.used(t, task.Task.ID)
	for range 3 {
		if _, err := other.execute(task.Token, "k", "close", five); reason(err) != "APPROVAL_PENDING" {
			t.Error(err)
		}
	}
	if now := s.used(t, task.Task.ID); now != used {
		t.Errorf("waiting has cost %d calls", now-used)
	}
	for name, c := range map[string]struct{ token, digest, want string }{
		"the user":           {s.approver(t, "ann"), a.Digest.String(), "SELF_APPROVAL"},
		"the agent":          {s.approver(t, "worker"), a.Digest.String(), "SELF_APPROVAL"},
		"of something else":  {olga, strings.Repeat("0", 64), "APPROVAL_DIGEST_MISMATCH"},
		"by the task itself": {task.Token, a.Digest.String(), "WRONG_CREDENTIAL_KIND"},
	} {
		if _, err := p.decide(c.token, a.ID.String(), true, c.digest); reason(err) != c.want {
			t.Errorf("approved by %s: %v, want %s", name, err, c.want)
		}
	}
	if got, err := p.decide(olga, a.ID.String(), true, a.Digest.String()); err != nil || got.State != gateway.Approved {
		t.Fatalf("%+v: %v", got, err)
	}
	if _, err := p.decide(ben, a.ID.String(), false, ""); reason(err) != "APPROVAL_DECIDED" {
		t.Errorf("denied afterwards: %v", err)
	}
	// A hundred at once use it once.
	var group errgroup.Group
	for i := range 60 {
		group.Go(func() error {
			return until(func() error {
				_, err := []*process{p, other}[i%2].execute(task.Token, "k", "close", five)
				return err
			})
		})
	}
	if err := group.Wait(); err != nil {
		t.Error(err)
	}
	if strings.Count(s.rows(t), "\n") != 18 {
		t.Errorf("not one row is gone:\n%s", s.rows(t))
	}
	// It is for that execution, and for no other.
	if _, err := p.execute(task.Token, "k", "close", map[string]any{"id": 6}); reason(err) != "IDEMPOTENCY_KEY_REUSED" {
		t.Errorf("another request: %v", err)
	}
	if b := s.asked(t, p, task.Token, "k2", "close", map[string]any{"id": 6}); b.ID == a.ID || b.State != gateway.ApprovalPending {
		t.Errorf("the second asks by %+v", b)
	}
}

func TestDeniedAndExpired(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	p := s.process(t)
	task := s.agent(t, p, nil)
	olga := s.approver(t, "olga")
	a := s.asked(t, p, task.Token, "d", "close", map[string]any{"id": 1})
	if _, err := p.decide(olga, a.ID.String(), false, ""); err != nil {
		t.Fatal(err)
	}
	if _, err := p.execute(task.Token, "d", "close", map[string]any{"id": 1}); reason(err) != "APPROVAL_DENIED" {
		t.Error(err)
	}
	// What could not even be asked for is asked for once it can be.
	taken := map[string]any{"id": 6, "balance": 1}
	if _, err := p.execute(task.Token, "i", "found", taken); reason(err) != "CONSTRAINT_VIOLATED" {
		t.Error(err)
	}
	s.sql(t, "delete from accounts where id = 6")
	i := s.asked(t, p, task.Token, "i", "found", taken)
	if _, err := p.decide(olga, i.ID.String(), true, i.Digest.String()); err != nil {
		t.Error(err)
	}
	if _, err := p.execute(task.Token, "i", "found", taken); err != nil {
		t.Error(err)
	}
	// Two people, and not one twice.
	w := s.asked(t, p, task.Token, "w", "wipe", map[string]any{"id": 2})
	if got, err := p.decide(olga, w.ID.String(), true, w.Digest.String()); err != nil || got.State != gateway.ApprovalPending {
		t.Errorf("%+v: %v", got, err)
	}
	if _, err := p.decide(olga, w.ID.String(), true, w.Digest.String()); reason(err) != "APPROVAL_SECOND_PERSON" {
		t.Error(err)
	}
	if _, err := p.execute(task.Token, "w", "wipe", map[string]any{"id": 2}); reason(err) != "APPROVAL_PENDING" {
		t.Errorf("with one of two: %v", err)
	}
	if got, err := p.decide(s.approver(t, "ben"), w.ID.String(), true, w.Digest.String()); err != nil || got.State != gateway.Approved {
		t.Errorf("%+v: %v", got, err)
	}
	if _, err := p.execute(task.Token, "w", "wipe", map[string]any{"id": 2}); err != nil {
		t.Error(err)
	}
	// What nobody decides is denied in the end, and what was approved is not good for ever.
	late, unused := s.asked(t, p, task.Token, "l", "close", map[string]any{"id": 3}), s.asked(t, p, task.Token, "u", "close", map[string]any{"id": 4})
	if _, err := p.decide(olga, unused.ID.String(), true, unused.Digest.String()); err != nil {
		t.Fatal(err)
	}
	if _, err := s.pool.Exec(t.Context(), "update whence.approvals set expires_at = now() where id in ($1, $2)", late.ID, unused.ID); err != nil {
		t.Fatal(err)
	}
	for key, id := range map[string]int{"l": 3, "u": 4} {
		for range 2 {
			if _, err := p.execute(task.Token, key, "close", map[string]any{"id": id}); reason(err) != "APPROVAL_EXPIRED" {
				t.Errorf("%s: %v", key, err)
			}
		}
	}
	if _, err := p.decide(olga, late.ID.String(), true, late.Digest.String()); reason(err) != "APPROVAL_DECIDED" {
		t.Errorf("approved too late: %v", err)
	}
	if n := strings.Count(s.rows(t), "\n") + 1; n != 19 {
		t.Errorf("%d rows are left of 19", n)
	}
}

// What is not as it was approved does not run.
func TestChangedAfterApproval(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(*testing.T, *site, *process, gateway.Started) error
		want   string
	}{
		"the row": {func(t *testing.T, s *site, _ *process, _ gateway.Started) error {
			t.Helper()
			s.sql(t, "update accounts set note = 'x' where id = 9")
			return nil
		}, "APPROVAL_STALE"},
		"the row is gone": {func(t *testing.T, s *site, _ *process, _ gateway.Started) error {
			t.Helper()
			s.sql(t, "delete from accounts where id = 9")
			return nil
		}, "APPROVAL_STALE"},
		"the action": {func(t *testing.T, s *site, _ *process, _ gateway.Started) error {
			t.Helper()
			s.action(t, action.Definition{Name: "close", Description: "another", Tier: authz.TierIrreversible, IrreversibleBecause: "y",
				Parameters: []action.Parameter{{Name: "id", Type: action.Integer, Required: true}},
				Row:        &action.RowAction{Table: "app.public.accounts", Operation: action.Delete, Where: map[string]action.Operand{"id": {Parameter: "id"}}, MaxRows: 5}})
			return nil
		}, "APPROVAL_STALE"},
		"what the task may do": {func(t *testing.T, s *site, _ *process, task gateway.Started) error {
			t.Helper()
			_, err := s.pool.Exec(t.Context(), "update whence.tasks set scope = jsonb_set(scope, '{topK}', '3') where id = $1", task.Task.ID)
			return err
		}, "APPROVAL_STALE"},
		"the agent's ceiling": {func(t *testing.T, s *site, _ *process, _ gateway.Started) error {
			t.Helper()
			_, err := s.pool.Exec(t.Context(), `insert into whence.agents (tenant, name, description, ceiling) values ('default', 'worker', '', '{"allTables": true}')`)
			return err
		}, "APPROVAL_STALE"},
		"the task": {func(t *testing.T, s *site, p *process, task gateway.Started) error {
			t.Helper()
			return p.Do(t.Context(), gateway.Call{Name: "whence.v1.TaskService/EndTask", Presented: authz.Presented{Token: task.Token}},
				func(ctx context.Context, ses *gateway.Session) error {
					return p.EndTask(ctx, ses, false, func(gateway.Task, int64, []uuid.UUID) {})
				})
		}, "TASK_ENDED"},
		"the token": {func(t *testing.T, s *site, p *process, task gateway.Started) error {
			t.Helper()
			principal, err := s.verifier.Verify(t.Context(), task.Token)
			if err != nil {
				return err
			}
			revoke := gateway.Call{Name: "whence.v1.AdminService/Revoke", Presented: authz.Presented{Token: s.operator(t, authz.RoleAdmin)}, Role: authz.RoleAdmin}
			return p.Do(t.Context(), revoke, func(ctx context.Context, ses *gateway.Session) error {
				return p.Revoke(ctx, ses, authz.Revocation{Kind: authz.RevokedToken, Target: principal.TokenID, Reason: "x"}, func(gateway.Revoked) {})
			})
		}, "TOKEN_REVOKED"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			p := s.process(t)
			task := s.agent(t, p, nil)
			nine := map[string]any{"id": 9}
			a := s.asked(t, p, task.Token, "k", "close", nine)
			if _, err := p.decide(s.approver(t, "olga"), a.ID.String(), true, a.Digest.String()); err != nil {
				t.Fatal(err)
			}
			if err := c.change(t, s, p, task); err != nil {
				t.Fatal(err)
			}
			before := s.rows(t)
			for range 2 {
				if _, err := p.execute(task.Token, "k", "close", nine); reason(err) != c.want {
					t.Errorf("%v, want %s", err, c.want)
				}
			}
			if after := s.rows(t); after != before {
				t.Errorf("it ran:\n%s", after)
			}
			if n := s.number(t, "select count(*) from whence.entries where call like '%Execute' and decision = 'ALLOWED'"); n != 0 {
				t.Errorf("%d entries say that it ran", n)
			}
			if n := s.number(t, "select count(*) from whence.entries where call like '%Execute' and reason = '"+c.want+"'"); n == 0 {
				t.Error("no entry says that it was refused")
			}
		})
	}
}

// A preview can be demanded: anything else does not run.
func TestPreviewStale(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	p := s.process(t)
	task := s.agent(t, p, nil)
	var digest string
	err := p.Do(t.Context(), called("Preview", task.Token, ""), func(ctx context.Context, ses *gateway.Session) error {
		got, err := p.Preview(ctx, ses, gateway.Asked{Action: "set", Arguments: map[string]any{"id": 4, "balance": 7}})
		digest = got.Digest.String()
		if err == nil && (len(got.Shown) != 1 || *got.Shown[0].After["balance"] != "7" || !got.NeedsKey || got.NeedsApproval) {
			err = fmt.Errorf("the preview says %+v", got)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	before := s.rows(t)
	run := func(key string, balance int) error {
		call := called("Execute", task.Token, key)
		call.Prepare = func() (d [32]byte, err error) { d[0] = byte(balance); return d, nil }
		return p.Do(t.Context(), call, func(ctx context.Context, ses *gateway.Session) error {
			return p.Execute(ctx, ses, gateway.Asked{Action: "set", Arguments: map[string]any{"id": 4, "balance": balance}, Preview: digest},
				func(gateway.Execution) error { return nil })
		})
	}
	if err := run("other", 8); reason(err) != "PREVIEW_STALE" {
		t.Errorf("other arguments: %v", err)
	}
	s.sql(t, "update accounts set note = 'x' where id = 4")
	changed := s.rows(t)
	if err := run("k", 7); reason(err) != "PREVIEW_STALE" || s.rows(t) != changed || before == changed {
		t.Errorf("a changed row: %v", err)
	}
	s.sql(t, "update accounts set note = null where id = 4")
	if err := run("k", 7); err != nil || s.rows(t) == before {
		t.Errorf("as it was previewed: %v", err)
	}
}

// A process dies at each step of what was approved: another one brings it to its end,
// once, by the same approval.
func TestCrashOfWhatWasApproved(t *testing.T) {
	t.Parallel()
	for _, step := range []string{"done on the source", "written down", "committed", "being recorded"} {
		t.Run(step, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			first, second := s.process(t), s.process(t)
			task := s.agent(t, second, nil)
			args := map[string]any{"id": 8}
			a := s.asked(t, second, task.Token, "k", "close", args)
			if _, err := second.decide(s.approver(t, "olga"), a.ID.String(), true, a.Digest.String()); err != nil {
				t.Fatal(err)
			}
			first.Steps(func(at string) {
				if at == step {
					first.kill()
				}
			})
			if _, err := first.execute(task.Token, "k", "close", args); err == nil {
				t.Fatal("a process that died says that it is done")
			}
			var x gateway.Execution
			if err := until(func() (err error) { x, err = second.execute(task.Token, "k", "close", args); return err }); err != nil || x.State != gateway.Succeeded {
				t.Fatalf("%+v: %v", x, err)
			}
			if n := s.balance(t, 8); n != -1 {
				t.Errorf("the row is still there: %d", n)
			}
			if n := s.number(t, "select settled[2] from whence.tasks where id = $1", task.Task.ID); n != 1 {
				t.Errorf("%d writes are charged", n)
			}
		})
	}
}

// What waits for an approval is its task's: another one of the tree neither runs nor spoils it.
func TestAnApprovalIsOneTasks(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	p := s.process(t)
	root := s.agent(t, p, nil)
	sibling := func(agent string) string {
		r := below(request(100), 1)
		r.Agent, r.Scope.Actions, r.Scope.Tier = agent, []authz.Action{authz.ActionExecute}, authz.TierIrreversible
		out, err := delegate(t, p.Gateway, root.Token, r)
		if err != nil {
			t.Fatal(err)
		}
		return out.Token
	}
	owner, same, other := sibling("worker"), sibling("worker"), sibling("helper")
	args := map[string]any{"id": 2}
	a := s.asked(t, p, owner, "k", "close", args)
	if _, err := p.decide(s.approver(t, "olga"), a.ID.String(), true, a.Digest.String()); err != nil {
		t.Fatal(err)
	}
	for name, token := range map[string]string{"the same agent": same, "another agent": other} {
		if _, err := p.execute(token, "k", "close", args); reason(err) != "IDEMPOTENCY_KEY_REUSED" {
			t.Errorf("%s: %v", name, err)
		}
	}
	if x, err := p.execute(owner, "k", "close", args); err != nil || x.State != gateway.Succeeded {
		t.Errorf("whose it is: %+v, %v", x, err)
	}
}
