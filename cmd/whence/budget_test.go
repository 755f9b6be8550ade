package main

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"

	"golang.org/x/sync/errgroup"
	"google.golang.org/genproto/googleapis/rpc/errdetails"

	v1 "github.com/whence-db/whence/proto/gen/whence/v1"
)

// testBudget makes four times as many calls at once as the task may.
func (w *running) testBudget(t *testing.T) {
	t.Parallel()
	const limit, calls = 50, 200
	budget := uint32(limit)
	agent, task := w.agent().delegate(t, &v1.DelegateRequest{Agent: "spender", Purpose: "spend everything at once",
		Scope: &v1.Scope{AllTables: true, AllSubjects: true, Actions: []string{"memory:read"}}, Budget: &v1.BudgetLimits{Calls: &budget}})
	var answered, exhausted atomic.Int64
	g, ctx := errgroup.WithContext(t.Context())
	for i := range calls {
		g.Go(func() error {
			var res v1.QueryResponse
			err := agent.call(ctx, "MemoryService/Query", &v1.QueryRequest{Text: fmt.Sprintf("question %d", i)}, &res)
			if err == nil {
				answered.Add(1)
				return nil
			}
			exhausted.Add(1)
			return spent(err, task.GetId())
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	if answered.Load() != limit || exhausted.Load() != calls-limit {
		t.Errorf("%d answers and %d refusals, want %d and %d", answered.Load(), exhausted.Load(), limit, calls-limit)
	}
	entries := entriesOf(t, w, task.GetId())
	count := map[v1.Decision]int{}
	charged := 0
	for _, e := range entries {
		count[e.GetDecision()]++
		charged += int(e.GetCharge().GetCalls())
		if e.GetDecision() == v1.Decision_DECISION_ALLOWED && e.GetAnswerId() == "" {
			t.Errorf("entry %s of an answer does not name it", e.GetId())
		}
	}
	if len(entries) != calls || count[v1.Decision_DECISION_ALLOWED] != limit || count[v1.Decision_DECISION_REFUSED] != calls-limit || charged != limit {
		t.Errorf("%d entries, by decision %v, %d calls charged", len(entries), count, charged)
	}
	var own v1.GetTaskResponse
	agent.must(t, "TaskService/GetTask", &v1.GetTaskRequest{}, &own)
	if m := own.GetTask().GetBudget().GetCalls(); m.GetUsed() != limit || m.GetRemaining() != 0 {
		t.Errorf("the task's meter says %v", m)
	}
}

// spent checks that a refusal lets an agent see what is used up.
func spent(err error, task string) error {
	var r *refusal
	if !errors.As(err, &r) {
		return err
	}
	quota := detailOf[*errdetails.QuotaFailure](r)
	if r.Code != "resource_exhausted" || r.reason() != "BUDGET_EXHAUSTED" || len(quota.GetViolations()) != 1 ||
		quota.GetViolations()[0].GetSubject() != "task:"+task || quota.GetViolations()[0].GetDescription() == "" {
		return fmt.Errorf("refused with %w and quota %v", r, quota)
	}
	return nil
}

// entriesOf reads every page of a task's queries' entries.
func entriesOf(t *testing.T, w *running, task string) (all []*v1.Entry) {
	t.Helper()
	req := &v1.ListEntriesRequest{Task: task, Call: "whence.v1.MemoryService/Query", PageSize: 70}
	for {
		var res v1.ListEntriesResponse
		w.operator().must(t, "AuditService/ListEntries", req, &res)
		all = append(all, res.GetEntries()...)
		if req.PageToken = res.GetNextPageToken(); req.PageToken == "" {
			return all
		}
		if t.Context().Err() != nil {
			t.Fatal(context.Cause(t.Context()))
		}
	}
}
