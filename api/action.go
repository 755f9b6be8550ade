package api

import (
	"context"
	"encoding/json"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/google/uuid"

	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/gateway"
	"github.com/whence-db/whence/gateway/action"
	v1 "github.com/whence-db/whence/proto/gen/whence/v1"
)

type actions struct{ gateway *gateway.Gateway }

// ListActions lists what the task may execute.
func (a *actions) ListActions(ctx context.Context, _ *v1.ListActionsRequest) (*v1.ListActionsResponse, error) {
	s := session(ctx)
	all, err := a.gateway.ListActions(ctx, s.Principal)
	if err != nil {
		return nil, err
	}
	out := &v1.ListActionsResponse{Budget: budget(s.Budget())}
	for _, r := range all {
		schema, err := structpb.NewStruct(action.InputSchema(r.Definition))
		if err != nil {
			return nil, err
		}
		m := &v1.ActionSummary{Name: r.Name, Description: r.Description, Tier: tier(r.Tier), InputSchema: schema,
			ApprovalRequired: r.NeededApprovals() > 0, IrreversibleBecause: r.IrreversibleBecause, CostMicros: r.CostMicros, Version: uint32(r.Version)}
		if d := r.UndoTime(); d > 0 {
			m.UndoWindow = durationpb.New(d)
		}
		out.Actions = append(out.Actions, m)
	}
	return out, nil
}

// Preview tells what an execution would do.
func (a *actions) Preview(ctx context.Context, req *v1.PreviewRequest) (*v1.PreviewResponse, error) {
	s := session(ctx)
	p, err := a.gateway.Preview(ctx, s, gateway.Asked{Action: req.GetAction(), Arguments: req.GetArguments().AsMap()})
	if err != nil {
		return nil, err
	}
	out := &v1.PreviewResponse{Tier: tier(p.Action.Tier), Effects: effects(p.Shown), ApprovalRequired: p.NeedsApproval, Digest: p.Digest.String(),
		Budget: budget(s.Budget()), IdempotencyKeyRequired: p.NeedsKey, CostMicros: p.Action.CostMicros, Requests: requests(p.Requests),
		ActionVersion: uint32(p.Action.Version), Rows: count(int64(p.Rows))}
	out.Result, err = object(p.Result)
	return out, err
}

// Execute runs an action.
func (a *actions) Execute(ctx context.Context, req *v1.ExecuteRequest) (*v1.ExecuteResponse, error) {
	s := session(ctx)
	out := &v1.ExecuteResponse{}
	err := a.gateway.Execute(ctx, s, gateway.Asked{Action: req.GetAction(), Arguments: req.GetArguments().AsMap(), Preview: req.GetDigest()},
		tell(&out.Execution))
	out.Budget = budget(s.Budget())
	return out, err
}

// GetExecution returns an execution of the caller's task, or of one below it.
func (a *actions) GetExecution(ctx context.Context, req *v1.GetExecutionRequest) (*v1.GetExecutionResponse, error) {
	s := session(ctx)
	x, err := a.gateway.GetExecution(ctx, s.Principal, req.GetId())
	if err != nil {
		return nil, err
	}
	m, err := execution(x)
	return &v1.GetExecutionResponse{Execution: m, Budget: budget(s.Budget())}, err
}

// Undo takes an execution back.
func (a *actions) Undo(ctx context.Context, req *v1.UndoRequest) (*v1.UndoResponse, error) {
	s := session(ctx)
	out := &v1.UndoResponse{}
	err := a.gateway.Undo(ctx, s, req.GetId(), tell(&out.Execution))
	out.Budget = budget(s.Budget())
	return out, err
}

// tell puts an execution into a reply, as its call is recorded.
func tell(to **v1.Execution) func(gateway.Execution) error {
	return func(x gateway.Execution) (err error) {
		*to, err = execution(x)
		return err
	}
}

func execution(x gateway.Execution) (*v1.Execution, error) {
	out := &v1.Execution{Action: x.Action, Tier: tier(x.Tier), State: v1.ExecutionState(v1.ExecutionState_value["EXECUTION_STATE_"+string(x.State)]),
		Digest: x.Digest.String(), IdempotencyKey: x.Key, Effects: effects(x.Shown), UndoUntil: timestamp(x.UndoUntil), Task: x.Task.String(),
		CreateTime: timestamp(x.Created), EndTime: timestamp(x.Ended), ActionVersion: uint32(x.Version), Token: x.Token, Replayed: x.Replayed}
	if x.ID != uuid.Nil {
		out.Id = x.ID.String()
	}
	if x.Approval != uuid.Nil {
		out.ApprovalId = x.Approval.String()
	}
	if x.Failure != nil {
		out.Error = x.Failure.Reason + ": " + x.Failure.Message
	}
	var err error
	if out.Arguments, err = object(x.Arguments); err != nil {
		return nil, err
	}
	out.Result, err = object(x.Result)
	return out, err
}

// object reads a JSON object; nil stays nil.
func object(raw json.RawMessage) (*structpb.Struct, error) {
	if len(raw) == 0 {
		return nil, nil
	}
	out := &structpb.Struct{}
	if protojson.Unmarshal(raw, out) == nil {
		return out, nil
	}
	// What an upstream may say and the contract cannot: numbers beyond all bounds.
	return structpb.NewStruct(map[string]any{"text": strings.ToValidUTF8(string(raw), "\uFFFD")})
}

func effects(all []action.Effect) (out []*v1.Effect) {
	for _, e := range all {
		m := &v1.Effect{Kind: v1.EffectKind(v1.EffectKind_value["EFFECT_KIND_"+string(e.Kind)]), Source: e.Source, Table: e.Table, Key: values(e.Key.Values())}
		if e.Before != nil {
			m.Before = values(e.Before)
		}
		if e.After != nil {
			m.After = values(e.After)
		}
		out = append(out, m)
	}
	return out
}

func requests(all []gateway.Rendered) (out []*v1.RenderedRequest) {
	for _, r := range all {
		m := &v1.RenderedRequest{Method: r.Method, Url: r.URL, Body: r.Body, Headers: map[string]string{}}
		for name, values := range r.Header {
			m.Headers[name] = strings.Join(values, ", ")
		}
		out = append(out, m)
	}
	return out
}

func tier(t authz.Tier) v1.Tier { return v1.Tier(v1.Tier_value["TIER_"+string(t)]) }
