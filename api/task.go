package api

import (
	"context"
	"errors"
	"strings"

	"github.com/google/uuid"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/gateway"
	v1 "github.com/whence-db/whence/proto/gen/whence/v1"
)

type tasks struct{ gateway *gateway.Gateway }

// GetTask returns the caller's own task, or one below it.
func (t *tasks) GetTask(ctx context.Context, req *v1.GetTaskRequest) (*v1.GetTaskResponse, error) {
	own := session(ctx).Principal.Task
	id, err := optionalID("id", req.GetId())
	if err != nil {
		return nil, err
	}
	if id == uuid.Nil {
		id = own
	}
	task, err := t.gateway.GetTask(ctx, id)
	for above := task; err == nil && above.ID != own; { // at most registry.MaxDepth steps
		if above.Parent == uuid.Nil {
			return nil, notYours(req.GetId())
		}
		above, err = t.gateway.GetTask(ctx, above.Parent)
	}
	switch {
	case errors.Is(err, whence.ErrNotFound): // what is not there looks like what is not theirs
		return nil, notYours(req.GetId())
	case err != nil:
		return nil, err
	}
	return &v1.GetTaskResponse{Task: taskMessage(task)}, nil
}

// Delegate starts a narrower task for another agent.
func (t *tasks) Delegate(ctx context.Context, req *v1.DelegateRequest) (*v1.DelegateResponse, error) {
	s := session(ctx)
	if b := req.GetBudget(); b != nil && b.Calls != nil && b.GetCalls() == 0 {
		return nil, whence.Invalid("budget.calls", "BUDGET_INVALID", "a task needs a budget of at least one call; leave the budget out to hand on all that is left")
	}
	out := &v1.DelegateResponse{}
	calls, limits := bounds(req.GetBudget())
	t.gateway.Delegate(s, authz.TaskRequest{Agent: req.GetAgent(), Purpose: req.GetPurpose(),
		Scope: scopeSpec(req.GetScope()), Calls: calls, Limits: limits, Lifetime: req.GetLifetime().AsDuration()}, func(s gateway.Started) {
		out.Task, out.Token, out.TokenExpireTime = taskMessage(s.Task), s.Token, timestamp(s.Expires)
	})
	return out, nil
}

// EndTask ends the caller's own task and what was delegated from it.
func (t *tasks) EndTask(ctx context.Context, req *v1.EndTaskRequest) (*v1.EndTaskResponse, error) {
	s := session(ctx)
	if asked := req.GetId(); asked != "" && asked != s.Principal.Task.String() {
		return nil, notYours(asked)
	}
	out := &v1.EndTaskResponse{}
	err := t.gateway.EndTask(ctx, s, req.GetUndo(), func(task gateway.Task, below int64, undone []uuid.UUID) {
		out.Task, out.EndedBelow, out.Undone = taskMessage(task), count(below), nil
		for _, id := range undone {
			out.Undone = append(out.Undone, id.String())
		}
	})
	return out, err
}

func notYours(id string) error {
	return &whence.Error{Kind: whence.ErrDenied, Reason: "TASK_OUT_OF_SCOPE", Field: "id",
		Message: "a credential shows its own task and those below it, and ends its own; leave the id out for its own", Metadata: map[string]string{"task": id}}
}

func taskMessage(t gateway.Task) *v1.Task {
	out := &v1.Task{
		Id: t.ID.String(), RootId: t.Root.String(), Depth: uint32(t.Depth), Purpose: t.Purpose,
		User: t.User, Agent: t.Agent, Tenant: t.Tenant, Scope: scopeMessage(t.Scope), Budget: budget(t.Budget),
		State:    v1.TaskState(v1.TaskState_value["TASK_STATE_"+string(t.State)]),
		Deadline: timestamp(t.Budget.Deadline), CreateTime: timestamp(t.Created), EndTime: timestamp(t.Ended),
		Usage: &v1.Usage{EmbeddingCalls: t.Usage.EmbeddingCalls, EmbeddingTokens: t.Usage.EmbeddingTokens},
	}
	if t.Parent != uuid.Nil {
		out.ParentId = t.Parent.String()
	}
	return out
}

func scopeSpec(s *v1.Scope) authz.ScopeSpec {
	out := authz.ScopeSpec{Type: authz.DetailType, AllTables: s.GetAllTables(), AllSubjects: s.GetAllSubjects(),
		Subjects: s.GetSubjects(), DenySubjects: s.GetDenySubjects(), Filter: s.GetFilter(), TopK: int(s.GetTopK())}
	for _, t := range s.GetTables() {
		out.Tables = append(out.Tables, whence.TableName(t))
	}
	for _, t := range s.GetDenyTables() {
		out.DenyTables = append(out.DenyTables, whence.TableName(t))
	}
	if tier := s.GetTier(); tier != v1.Tier_TIER_UNSPECIFIED {
		out.Tier = authz.Tier(strings.TrimPrefix(tier.String(), "TIER_"))
	}
	for _, a := range s.GetActions() {
		out.Actions = append(out.Actions, authz.Action(a))
	}
	return out
}

func scopeMessage(s authz.ScopeSpec) *v1.Scope {
	out := &v1.Scope{AllTables: s.AllTables, AllSubjects: s.AllSubjects, Subjects: s.Subjects, DenySubjects: s.DenySubjects,
		Filter: s.Filter, Tier: v1.Tier(v1.Tier_value["TIER_"+string(s.Tier)]), TopK: uint32(s.TopK)}
	for _, t := range s.Tables {
		out.Tables = append(out.Tables, string(t))
	}
	for _, t := range s.DenyTables {
		out.DenyTables = append(out.DenyTables, string(t))
	}
	for _, a := range s.Actions {
		out.Actions = append(out.Actions, string(a))
	}
	return out
}

// pageSize is the contract's: 0 means 100.
func pageSize(n uint32) int {
	if n == 0 {
		return 100
	}
	return int(n)
}

func optionalID(field, s string) (uuid.UUID, error) {
	if s == "" {
		return uuid.Nil, nil
	}
	return requiredID(field, s)
}

func requiredID(field, s string) (uuid.UUID, error) {
	id, err := uuid.Parse(s)
	if err != nil || id == uuid.Nil {
		return uuid.Nil, whence.Invalid(field, "INVALID_ID", field+" is not an id: want 36 characters such as 01980000-0000-7000-8000-000000000000")
	}
	return id, nil
}
