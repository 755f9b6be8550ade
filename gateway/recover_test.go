package gateway_test

import (
	"context"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/gateway"
)

// A process dies at each step, and nobody comes with the key again: the others bring
// what it began to its end, with an entry and a charge where it took effect.
func TestNobodyComesAgain(t *testing.T) {
	t.Parallel()
	for step, want := range map[string]gateway.ExecutionState{
		"claimed": gateway.Failed, "done on the source": gateway.Failed, "committed": gateway.Succeeded, "being recorded": gateway.Succeeded,
	} {
		t.Run(step, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			s.lease = 900 * time.Millisecond
			first, second := s.process(t), s.process(t)
			task := s.agent(t, second, authz.Limits{authz.Writes: 5})
			first.Steps(func(at string) {
				if at == step {
					first.kill()
				}
			})
			if _, err := first.execute(task.Token, "k", "set", map[string]any{"id": 7, "balance": 42}); err == nil {
				t.Fatal("a process that died says that it is done")
			}
			var state string
			for begin := time.Now(); ; time.Sleep(50 * time.Millisecond) {
				if err := s.pool.QueryRow(t.Context(), "select state from whence.executions").Scan(&state); err != nil {
					t.Fatal(err)
				}
				if state != string(gateway.Running) || time.Since(begin) > 20*time.Second {
					break
				}
			}
			if state != string(want) {
				t.Fatalf("it ended as %s, want %s", state, want)
			}
			effects := int64(0)
			if want == gateway.Succeeded {
				effects = 1
			}
			if n := s.number(t, "select count(*) from whence.entries where call like '%Execute' and decision = 'ALLOWED'"); n != effects {
				t.Errorf("%d entries of %d effects", n, effects)
			}
			if n := s.number(t, "select settled[2] from whence.tasks where id = $1", task.Task.ID); n != effects {
				t.Errorf("%d writes are charged of %d", n, effects)
			}
			// Its key goes on from there.
			if _, err := second.execute(task.Token, "k", "set", map[string]any{"id": 7, "balance": 42}); err != nil || s.balance(t, 7) != 42 {
				t.Errorf("with the key: %v, the balance is %d", err, s.balance(t, 7))
			}
		})
	}
}

// What a process died at does not stand in the way of ending the task with undo.
func TestEndTaskAfterACrash(t *testing.T) {
	t.Parallel()
	for _, step := range []string{"claimed", "done on the source", "written down", "committed", "being recorded"} {
		for _, name := range []string{"set", "transfer"} {
			t.Run(name+" "+step, func(t *testing.T) {
				t.Parallel()
				s := newSite(t)
				s.transfer(t)
				first, second := s.process(t), s.process(t)
				task := s.agent(t, second, nil)
				before := s.rows(t)
				first.Steps(func(at string) {
					if at == step {
						first.kill()
					}
				})
				args := map[string]any{"id": 1, "balance": 60}
				if name == "transfer" {
					args = map[string]any{"from": 1, "left": 60, "to": 2, "then": 140}
				}
				if _, err := first.execute(task.Token, "k", name, args); err == nil {
					t.Fatal("a process that died says that it is done")
				}
				end := gateway.Call{Name: "whence.v1.TaskService/EndTask", Presented: authz.Presented{Token: task.Token}}
				err := until(func() error {
					return second.Do(t.Context(), end, func(ctx context.Context, ses *gateway.Session) error {
						return second.EndTask(ctx, ses, true, func(gateway.Task, int64, []uuid.UUID) {})
					})
				})
				if err != nil || s.rows(t) != before {
					t.Errorf("%v\n%s", err, s.rows(t))
				}
				if n := s.number(t, "select count(*) from whence.executions where state not in ('FAILED', 'UNDONE')"); n != 0 {
					t.Errorf("%d executions stand", n)
				}
			})
		}
	}
}
