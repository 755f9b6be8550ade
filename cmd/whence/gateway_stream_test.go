package main

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	v1 "github.com/whence-db/whence/proto/gen/whence/v1"
	"github.com/whence-db/whence/proto/gen/whence/v1/whencev1connect"
)

const watchedActions = `
version: 1
actions:
  - name: jar.drop
    description: x
    tier: TIER_IRREVERSIBLE
    irreversibleBecause: x
    parameters: [{name: id, type: PARAMETER_TYPE_INTEGER, required: true}]
    row: {table: app.public.jars, operation: ROW_OPERATION_DELETE, where: {id: {parameter: id}}, columns: [what]}
  - name: jar.fill
    description: x
    tier: TIER_REVERSIBLE
    parameters: [{name: id, type: PARAMETER_TYPE_INTEGER, required: true}, {name: what, type: PARAMETER_TYPE_TEXT, required: true}]
    row: {table: app.public.jars, operation: ROW_OPERATION_UPDATE, where: {id: {parameter: id}}, set: {what: {parameter: what}}, columns: [what]}
`

// Whoever watches approvals sees what waits, what comes and how it is decided, each once.
func (w *running) testWatchedApprovals(t *testing.T) {
	t.Parallel()
	w.exec(t, `create table public.jars (id int primary key, what text)`)
	w.exec(t, `insert into public.jars select i, 'a jar' from generate_series(1, 9) i`)
	w.register(t, &v1.RegisterTableRequest{Table: "public.jars", TextColumns: []string{"what"}})
	w.registerActions(t, watchedActions)
	agent, _ := w.spender(t, 0)
	ask := func(key, args string) {
		t.Helper()
		if _, err := agent.keyed(t.Context(), key, "ActionService/Execute", &v1.ExecuteRequest{Action: "jar.drop", Arguments: object(t, args)}, &v1.ExecuteResponse{}); reasonOf(err) != "APPROVAL_PENDING" {
			t.Fatal(err)
		}
	}
	ask("before", `{"id": 1}`)
	client, err := dial(w.url, w.env["WHENCE_OPERATOR_TOKEN"], "", "")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*showLimit)
	defer cancel()
	stream, err := whencev1connect.NewApprovalServiceClient(client).WatchApprovals(ctx, &v1.WatchApprovalsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	next := func(state v1.ApprovalState) *v1.Approval {
		t.Helper()
		for {
			got, err := stream.Receive()
			if err != nil {
				t.Fatal(err)
			}
			a := got.GetApproval()
			if a.GetAction() != "jar.drop" { // other tests have their own
				continue
			}
			if a.GetState() != state {
				t.Fatalf("got %v, want %v", a, state)
			}
			return a
		}
	}
	first := next(v1.ApprovalState_APPROVAL_STATE_PENDING)
	ask("during", `{"id": 2}`)
	second := next(v1.ApprovalState_APPROVAL_STATE_PENDING)
	if first.GetId() == second.GetId() || second.GetArguments().AsMap()["id"] != 2.0 {
		t.Errorf("first %v, then %v", first, second)
	}
	w.operator().must(t, "ApprovalService/Deny", &v1.DenyRequest{Id: first.GetId(), Comment: "no"}, &v1.DenyResponse{})
	if a := next(v1.ApprovalState_APPROVAL_STATE_DENIED); a.GetId() != first.GetId() || a.GetComment() != "no" {
		t.Errorf("denied %v", a)
	}
	w.operator().must(t, "ApprovalService/Approve", &v1.ApproveRequest{Id: second.GetId(), Digest: second.GetDigest()}, &v1.ApproveResponse{})
	if a := next(v1.ApprovalState_APPROVAL_STATE_APPROVED); a.GetId() != second.GetId() || a.GetDecidedBy() != "dev-operator" {
		t.Errorf("approved %v", a)
	}
	w.testLargeReplyOfAWrite(t)
}

// A reply that is larger than the budget of bytes does not undo what was done, nor
// hide it: the write is recorded, paid and undone as any other.
func (w *running) testLargeReplyOfAWrite(t *testing.T) {
	t.Helper()
	scope := &v1.Scope{AllTables: true, AllSubjects: true, Actions: []string{"action:execute"}, Tier: v1.Tier_TIER_REVERSIBLE}
	var res v1.DelegateResponse
	w.agent().must(t, "TaskService/Delegate", &v1.DelegateRequest{Agent: "filler", Purpose: "fill jars", Scope: scope,
		Budget: &v1.BudgetLimits{Calls: proto.Uint32(10), Bytes: proto.Int64(30_000), Writes: proto.Uint32(2)}}, &res)
	agent := caller{w.http, w.url, res.GetToken()}
	var done v1.ExecuteResponse
	_, err := agent.keyed(t.Context(), "large", "ActionService/Execute", &v1.ExecuteRequest{Action: "jar.fill",
		Arguments: object(t, `{"id": 3, "what": "`+strings.Repeat("honey ", 6000)+`"}`)}, &done)
	if err != nil || done.GetExecution().GetState() != v1.ExecutionState_EXECUTION_STATE_SUCCEEDED {
		t.Fatalf("%v, %v", err, done.GetExecution().GetState())
	}
	var task v1.GetTaskResponse
	agent.must(t, "TaskService/GetTask", &v1.GetTaskRequest{}, &task)
	if b := task.GetTask().GetBudget(); b.GetBytes().GetRemaining() != 0 || b.GetWrites().GetUsed() != 1 {
		t.Errorf("paid %v", b)
	}
}

// A stream through the proxy ends when its task does.
func (w *running) testRevokedThrough(t *testing.T) {
	t.Helper()
	agent, task := w.spender(t, 10_000_000)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, w.url+"/up/shop/endless", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+agent.token)
	res, err := w.http.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	if _, err := io.ReadFull(res.Body, make([]byte, 20)); err != nil {
		t.Fatal(err)
	}
	w.cli(t, "revoke", "task", task.GetId()).is(t, 0)
	revoked := time.Now()
	if _, err = io.Copy(io.Discard, res.Body); err == nil || errors.Is(err, context.Canceled) {
		t.Errorf("the stream ended as if it were whole: %v", err)
	}
	if took := time.Since(revoked); took > showLimit {
		t.Errorf("it ended %v after the revocation", took)
	}
}
