package api

import (
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/gateway/action"
	v1 "github.com/whence-db/whence/proto/gen/whence/v1"
)

// actionDefinition reads an action as it is sent; whether it makes sense, the definition
// itself says.
func actionDefinition(a *v1.Action) (d action.Definition, err error) {
	d = action.Definition{Name: a.GetName(), Description: a.GetDescription(),
		Tier:                authz.Tier(strings.TrimPrefix(a.GetTier().String(), "TIER_")),
		IrreversibleBecause: a.GetIrreversibleBecause(), Approvals: int(a.GetApprovals()), CostMicros: a.GetCostMicros(),
		ApprovalWindow: fromDuration(a.GetApprovalWindow()), UndoWindow: fromDuration(a.GetUndoWindow()), Timeout: fromDuration(a.GetTimeout())}
	for _, p := range a.GetParameters() {
		d.Parameters = append(d.Parameters, action.Parameter{Name: p.GetName(), Description: p.GetDescription(), Required: p.GetRequired(),
			Type:      action.ParameterType(strings.TrimPrefix(p.GetType().String(), "PARAMETER_TYPE_")),
			MaxLength: int(p.GetMaxLength()), Values: p.GetValues(), Minimum: p.Minimum, Maximum: p.Maximum})
	}
	if d.Compensation, err = fromStep(a.GetCompensation()); err != nil {
		return d, err
	}
	switch run := a.GetRun().(type) {
	case *v1.Action_Row:
		d.Row, err = fromRow(run.Row)
	case *v1.Action_Http:
		d.HTTP, err = fromHTTP(run.Http)
	case *v1.Action_Memory:
		d.Memory = &action.MemoryAction{Operation: action.Operation(strings.TrimPrefix(run.Memory.GetOperation().String(), "MEMORY_OPERATION_"))}
		d.Memory.Fields, err = fromOperands(run.Memory.GetFields())
	case *v1.Action_Saga:
		d.Saga, err = fromSaga(run.Saga)
	}
	return d, err
}

func fromDuration(d *durationpb.Duration) action.Duration { return action.Duration(d.AsDuration()) }

func fromRow(r *v1.RowAction) (_ *action.RowAction, err error) {
	out := &action.RowAction{Table: whence.TableName(r.GetTable()), Operation: action.Operation(strings.TrimPrefix(r.GetOperation().String(), "ROW_OPERATION_")),
		Columns: r.GetColumns(), MaxRows: int(r.GetMaxRows()), TriggersStayWithinRow: r.GetTriggersStayWithinRow()}
	if out.Where, err = fromOperands(r.GetWhere()); err != nil {
		return nil, err
	}
	out.Set, err = fromOperands(r.GetSet())
	return out, err
}

func fromHTTP(h *v1.HttpAction) (_ *action.HTTPAction, err error) {
	out := &action.HTTPAction{Upstream: h.GetUpstream(), IdempotencyHeader: h.GetIdempotencyHeader()}
	if out.Request, err = fromRequest(h.GetRequest()); err != nil || h.GetInverse() == nil {
		return out, err
	}
	inverse, err := fromRequest(h.GetInverse())
	out.Inverse = &inverse
	return out, err
}

func fromRequest(r *v1.HttpRequest) (out action.HTTPRequest, err error) {
	out = action.HTTPRequest{Method: r.GetMethod(), Path: r.GetPath()}
	if out.PathOperands, err = fromOperands(r.GetPathOperands()); err != nil {
		return out, err
	}
	if out.Query, err = fromOperands(r.GetQuery()); err != nil {
		return out, err
	}
	out.Body, err = fromOperands(r.GetBody())
	return out, err
}

func fromSaga(s *v1.SagaAction) (*action.SagaAction, error) {
	out := &action.SagaAction{}
	for _, step := range s.GetSteps() {
		do, err := fromStep(step.GetStep())
		if err != nil {
			return nil, err
		}
		back, err := fromStep(step.GetCompensation())
		if err != nil {
			return nil, err
		}
		out.Steps = append(out.Steps, action.SagaStep{Step: *do, Compensation: back})
	}
	return out, nil
}

func fromStep(s *v1.Step) (*action.Step, error) {
	if s == nil {
		return nil, nil //nolint:nilnil // no step is no step
	}
	arguments, err := fromOperands(s.GetArguments())
	return &action.Step{Action: s.GetAction(), Arguments: arguments}, err
}

func fromOperands(of map[string]*v1.Operand) (map[string]action.Operand, error) {
	if len(of) == 0 {
		return nil, nil
	}
	out := map[string]action.Operand{}
	for name, o := range of {
		var to action.Operand
		switch from := o.GetFrom().(type) {
		case *v1.Operand_Parameter:
			to.Parameter = from.Parameter
		case *v1.Operand_Constant:
			b, err := protojson.Marshal(from.Constant)
			if err != nil {
				return nil, whence.Invalid("action", "ACTION_INVALID", fmt.Sprintf("the constant of %q is no JSON value", name))
			}
			to.Constant = b
		case *v1.Operand_Credential:
			to.Credential = from.Credential
		case *v1.Operand_Result:
			to.Result = &from.Result
		}
		out[name] = to
	}
	return out, nil
}

// actionMessage writes an action as it is registered.
func actionMessage(r action.Registered) (_ *v1.Action, err error) {
	d := r.Definition
	out := &v1.Action{Name: d.Name, Description: d.Description, Tier: v1.Tier(v1.Tier_value["TIER_"+string(d.Tier)]),
		IrreversibleBecause: d.IrreversibleBecause, Approvals: uint32(d.Approvals), CostMicros: d.CostMicros,
		ApprovalWindow: toDuration(d.ApprovalWindow), UndoWindow: toDuration(d.UndoWindow), Timeout: toDuration(d.Timeout),
		Version: uint32(r.Version), Digest: r.Digest.String(), CreateTime: timestamp(r.Created)}
	for _, p := range d.Parameters {
		out.Parameters = append(out.Parameters, &v1.Parameter{Name: p.Name, Type: v1.ParameterType(v1.ParameterType_value["PARAMETER_TYPE_"+string(p.Type)]),
			Description: p.Description, Required: p.Required, MaxLength: uint32(p.MaxLength), Values: p.Values, Minimum: p.Minimum, Maximum: p.Maximum})
	}
	if out.Compensation, err = toStep(d.Compensation); err != nil {
		return nil, err
	}
	switch {
	case d.Row != nil:
		row := &v1.RowAction{Table: string(d.Row.Table), Operation: v1.RowOperation(v1.RowOperation_value["ROW_OPERATION_"+string(d.Row.Operation)]),
			Columns: d.Row.Columns, MaxRows: uint32(d.Row.MaxRows), TriggersStayWithinRow: d.Row.TriggersStayWithinRow}
		out.Run = &v1.Action_Row{Row: row}
		if row.Where, err = toOperands(d.Row.Where); err != nil {
			return nil, err
		}
		row.Set, err = toOperands(d.Row.Set)
	case d.HTTP != nil:
		http := &v1.HttpAction{Upstream: d.HTTP.Upstream, IdempotencyHeader: d.HTTP.IdempotencyHeader}
		out.Run = &v1.Action_Http{Http: http}
		if http.Request, err = toRequest(&d.HTTP.Request); err != nil {
			return nil, err
		}
		http.Inverse, err = toRequest(d.HTTP.Inverse)
	case d.Memory != nil:
		memory := &v1.MemoryAction{Operation: v1.MemoryOperation(v1.MemoryOperation_value["MEMORY_OPERATION_"+string(d.Memory.Operation)])}
		out.Run = &v1.Action_Memory{Memory: memory}
		memory.Fields, err = toOperands(d.Memory.Fields)
	case d.Saga != nil:
		saga := &v1.SagaAction{}
		out.Run = &v1.Action_Saga{Saga: saga}
		for _, step := range d.Saga.Steps {
			m := &v1.SagaStep{}
			if m.Step, err = toStep(&step.Step); err != nil {
				return nil, err
			}
			if m.Compensation, err = toStep(step.Compensation); err != nil {
				return nil, err
			}
			saga.Steps = append(saga.Steps, m)
		}
	}
	return out, err
}

func toDuration(d action.Duration) *durationpb.Duration {
	if d == 0 {
		return nil
	}
	return durationpb.New(time.Duration(d))
}

func toRequest(r *action.HTTPRequest) (out *v1.HttpRequest, err error) {
	if r == nil {
		return nil, nil //nolint:nilnil // no request is no request
	}
	out = &v1.HttpRequest{Method: r.Method, Path: r.Path}
	if out.PathOperands, err = toOperands(r.PathOperands); err != nil {
		return nil, err
	}
	if out.Query, err = toOperands(r.Query); err != nil {
		return nil, err
	}
	out.Body, err = toOperands(r.Body)
	return out, err
}

func toStep(s *action.Step) (*v1.Step, error) {
	if s == nil {
		return nil, nil //nolint:nilnil // no step is no step
	}
	arguments, err := toOperands(s.Arguments)
	return &v1.Step{Action: s.Action, Arguments: arguments}, err
}

func toOperands(of map[string]action.Operand) (map[string]*v1.Operand, error) {
	if len(of) == 0 {
		return nil, nil
	}
	out := map[string]*v1.Operand{}
	for name, o := range of {
		to := &v1.Operand{}
		switch {
		case o.Parameter != "":
			to.From = &v1.Operand_Parameter{Parameter: o.Parameter}
		case o.Credential != "":
			to.From = &v1.Operand_Credential{Credential: o.Credential}
		case o.Result != nil:
			to.From = &v1.Operand_Result{Result: *o.Result}
		default:
			v := &structpb.Value{}
			if err := protojson.Unmarshal(o.Constant, v); err != nil {
				return nil, fmt.Errorf("read the constant of %q: %w", name, err)
			}
			to.From = &v1.Operand_Constant{Constant: v}
		}
		out[name] = to
	}
	return out, nil
}
