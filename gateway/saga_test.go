package gateway_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/google/uuid"

	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/gateway"
	"github.com/whence-db/whence/gateway/action"
)

// transfer registers a saga that moves money, and books it.
func (s *site) transfer(t *testing.T) {
	t.Helper()
	integer := func(name string) action.Parameter {
		return action.Parameter{Name: name, Type: action.Integer, Required: true}
	}
	set := func(id, balance string) action.SagaStep {
		return action.SagaStep{Step: action.Step{Action: "set", Arguments: map[string]action.Operand{"id": {Parameter: id}, "balance": {Parameter: balance}}}}
	}
	s.action(t, action.Definition{Name: "transfer", Description: "x", Tier: authz.TierReversible,
		Parameters: []action.Parameter{integer("from"), integer("left"), integer("to"), integer("then")},
		Saga: &action.SagaAction{Steps: []action.SagaStep{set("from", "left"),
			{Step: action.Step{Action: "note", Arguments: map[string]action.Operand{"text": {Constant: []byte(`"moved money"`)}}}}, set("to", "then")}}})
	s.action(t, action.Definition{Name: "drop", Description: "x", Tier: authz.TierIrreversible, IrreversibleBecause: "x", Parameters: []action.Parameter{integer("id")},
		Row:          &action.RowAction{Table: "app.public.accounts", Operation: action.Delete, Where: map[string]action.Operand{"id": {Parameter: "id"}}, Columns: []string{"balance"}},
		Compensation: &action.Step{Action: "open", Arguments: map[string]action.Operand{"id": {Parameter: "id"}, "balance": {Constant: []byte("7")}}}})
}

func TestSaga(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.transfer(t)
	p := s.process(t)
	task := s.agent(t, p, nil)
	before := s.rows(t)
	args := map[string]any{"from": 1, "left": 60, "to": 2, "then": 140}
	x, err := p.execute(task.Token, "t", "transfer", args)
	if err != nil || x.State != gateway.Succeeded {
		t.Fatalf("%+v: %v", x, err)
	}
	after := s.rows(t)
	if after == before {
		t.Error("nothing was moved")
	}
	if again, err := p.execute(task.Token, "t", "transfer", args); err != nil || !again.Replayed || s.rows(t) != after {
		t.Errorf("once more: %+v, %v", again, err)
	}
	if x, err = p.undo(task.Token, x.ID); err != nil || x.State != gateway.Undone || s.rows(t) != before {
		t.Errorf("undone: %+v, %v\n%s", x, err, s.rows(t))
	}
	// The last step fails, and nothing is left of those before it.
	for range 2 {
		if _, err := p.execute(task.Token, "f", "transfer", map[string]any{"from": 1, "left": 60, "to": 2, "then": -1}); reason(err) != "CONSTRAINT_VIOLATED" && err != nil {
			t.Errorf("a step that fails: %v", err)
		}
		if s.rows(t) != before {
			t.Errorf("after a failed saga:\n%s", s.rows(t))
		}
	}
	if n := s.number(t, "select count(*) from whence.executions where call like 'part-of/%' and state not in ('UNDONE', 'FAILED')"); n != 0 {
		t.Errorf("%d steps stand", n)
	}
	// What has no inverse is made up for.
	d, err := p.execute(task.Token, "d", "drop", map[string]any{"id": 3})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if d, err = p.undo(task.Token, d.ID); err != nil || d.State != gateway.Undone {
			t.Errorf("made up for: %+v, %v", d, err)
		}
	}
	if n := s.balance(t, 3); n != 7 {
		t.Errorf("the balance is %d", n)
	}
	// A step that finds nothing to act on has failed.
	made := s.rows(t)
	if _, err := p.execute(task.Token, "n", "transfer", map[string]any{"from": 1, "left": 60, "to": 999, "then": 140}); reason(err) != "STEP_TOUCHED_NOTHING" || s.rows(t) != made {
		t.Errorf("to nobody: %v\n%s", err, s.rows(t))
	}
	// What made up for something stays when the task is ended with undo, and a part is
	// not undone by itself.
	var compensation uuid.UUID
	if err := s.pool.QueryRow(t.Context(), "select id from whence.executions where key = 'compensation'").Scan(&compensation); err != nil {
		t.Fatal(err)
	}
	if _, err := p.undo(task.Token, compensation); reason(err) != "PART_OF_EXECUTION" {
		t.Errorf("a part: %v", err)
	}
	end := gateway.Call{Name: "whence.v1.TaskService/EndTask", Presented: authz.Presented{Token: task.Token}}
	err = p.Do(t.Context(), end, func(ctx context.Context, ses *gateway.Session) error {
		return p.EndTask(ctx, ses, true, func(gateway.Task, int64, []uuid.UUID) {})
	})
	if err != nil || s.rows(t) != made {
		t.Errorf("after the end: %v\n%s", err, s.rows(t))
	}
}

func (s *site) balance(t *testing.T, id int) (n int64) {
	t.Helper()
	if err := s.source.Pool.QueryRow(t.Context(), "select coalesce(sum(balance), -1) from accounts where id = $1", id).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// A process dies anywhere in a saga, on its way on or back: another one brings it to
// its end, once.
func TestCrashInSaga(t *testing.T) {
	t.Parallel()
	for _, fails := range []bool{false, true} {
		for at := range 16 {
			t.Run(fmt.Sprint(fails, at), func(t *testing.T) {
				t.Parallel()
				s := newSite(t)
				s.transfer(t)
				first, second := s.process(t), s.process(t)
				task := s.agent(t, second, nil)
				before := s.rows(t)
				then := 140
				if fails {
					then = -1
				}
				args := map[string]any{"from": 1, "left": 60, "to": 2, "then": then}
				seen := 0
				first.Steps(func(string) {
					if seen++; seen == at+1 {
						first.kill()
					}
				})
				_, err := first.execute(task.Token, "t", "transfer", args)
				if seen <= at { // it has fewer steps
					return
				}
				if err == nil {
					t.Fatal("a process that died says that it is done")
				}
				var x gateway.Execution
				err = until(func() (err error) { x, err = second.execute(task.Token, "t", "transfer", args); return err })
				switch {
				case fails && s.rows(t) != before:
					t.Errorf("left is %v\n%s", err, s.rows(t))
				case fails && err == nil && x.State != gateway.Undone, fails && err != nil && reason(err) != "CONSTRAINT_VIOLATED":
					t.Errorf("%+v: %v", x, err)
				case !fails && (err != nil || s.balance(t, 1) != 60 || s.balance(t, 2) != 140):
					t.Errorf("%+v: %v\n%s", x, err, s.rows(t))
				}
				if n := s.number(t, "select count(*) from whence.executions where call like 'part-of/%' and state = 'SUCCEEDED'"); n != map[bool]int64{true: 0, false: 3}[fails] {
					t.Errorf("%d steps stand", n)
				}
			})
		}
	}
}
