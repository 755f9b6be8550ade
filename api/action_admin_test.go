package api

import (
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/whence-db/whence/authz"
	v1 "github.com/whence-db/whence/proto/gen/whence/v1"
)

func remembering() *v1.Action {
	return &v1.Action{Name: "note.keep", Description: "keeps a note", Tier: v1.Tier_TIER_REVERSIBLE,
		Parameters: []*v1.Parameter{{Name: "text", Type: v1.ParameterType_PARAMETER_TYPE_TEXT, Required: true, MaxLength: 9, Description: "what"}},
		Run: &v1.Action_Memory{Memory: &v1.MemoryAction{Operation: v1.MemoryOperation_MEMORY_OPERATION_REMEMBER,
			Fields: map[string]*v1.Operand{"text": parameter("text"), "kind": constant("fact"), "subject": {From: &v1.Operand_Credential{Credential: "user"}}}}},
		UndoWindow: durationpb.New(90 * time.Minute), CostMicros: 12}
}

func parameter(name string) *v1.Operand {
	return &v1.Operand{From: &v1.Operand_Parameter{Parameter: name}}
}

func constant(v any) *v1.Operand {
	value, err := structpb.NewValue(v)
	if err != nil {
		panic(err)
	}
	return &v1.Operand{From: &v1.Operand_Constant{Constant: value}}
}

// sending has every kind of field that an HTTP action can have.
func sending() *v1.Action {
	pointer := "/id"
	least := 0.5
	return &v1.Action{Name: "mail.send", Description: "sends", Tier: v1.Tier_TIER_REVERSIBLE,
		Parameters: []*v1.Parameter{{Name: "box", Type: v1.ParameterType_PARAMETER_TYPE_UUID, Required: true},
			{Name: "weight", Type: v1.ParameterType_PARAMETER_TYPE_NUMBER, Minimum: &least}},
		Run: &v1.Action_Http{Http: &v1.HttpAction{Upstream: "mail", IdempotencyHeader: "Idempotency-Key",
			Request: &v1.HttpRequest{Method: "POST", Path: "/boxes/{box}/{who}", PathOperands: map[string]*v1.Operand{"who": {From: &v1.Operand_Credential{Credential: "user"}}},
				Query: map[string]*v1.Operand{"dry": constant(false)}, Body: map[string]*v1.Operand{"weight": parameter("weight"), "more": constant(map[string]any{"a": []any{1.5, nil}}), "none": constant(nil)}},
			Inverse: &v1.HttpRequest{Method: "DELETE", Path: "/mails/{id}", PathOperands: map[string]*v1.Operand{"id": {From: &v1.Operand_Result{Result: pointer}}}}}},
		Timeout: durationpb.New(500 * time.Millisecond), ApprovalWindow: durationpb.New(time.Minute), Approvals: 2}
}

func TestActionsAreRegisteredByVersions(t *testing.T) {
	t.Parallel()
	w := open(t)
	admin := w.operator(t, authz.RoleAdmin)
	forgetting := &v1.Action{Name: "note.drop", Description: "drops a note", Tier: v1.Tier_TIER_IRREVERSIBLE, IrreversibleBecause: "it is gone",
		Parameters: []*v1.Parameter{{Name: "id", Type: v1.ParameterType_PARAMETER_TYPE_UUID, Required: true}},
		Run: &v1.Action_Memory{Memory: &v1.MemoryAction{Operation: v1.MemoryOperation_MEMORY_OPERATION_FORGET,
			Fields: map[string]*v1.Operand{"id": parameter("id")}}}}
	saga := &v1.Action{Name: "both", Description: "both", Tier: v1.Tier_TIER_IRREVERSIBLE, IrreversibleBecause: "its last step is",
		Parameters: []*v1.Parameter{{Name: "id", Type: v1.ParameterType_PARAMETER_TYPE_UUID, Required: true}},
		Run: &v1.Action_Saga{Saga: &v1.SagaAction{Steps: []*v1.SagaStep{
			{Step: &v1.Step{Action: "note.keep", Arguments: map[string]*v1.Operand{"text": constant("x")}}},
			{Step: &v1.Step{Action: "note.drop", Arguments: map[string]*v1.Operand{"id": parameter("id")}},
				Compensation: &v1.Step{Action: "note.keep", Arguments: map[string]*v1.Operand{"text": constant("back")}}}}}}}
	admin.refused(t, "RegisterAction", &v1.RegisterActionRequest{Action: saga}, "ACTION_INVALID") // its steps are not there yet
	for _, a := range []*v1.Action{remembering(), sending(), forgetting, saga} {
		var made v1.RegisterActionResponse
		admin.must(t, "RegisterAction", &v1.RegisterActionRequest{Action: a}, &made)
		var got v1.GetRegisteredActionResponse
		admin.must(t, "GetRegisteredAction", &v1.GetRegisteredActionRequest{Name: a.GetName()}, &got)
		same(t, "an action as it was made and as it is read", made.GetAction(), got.GetAction())
		want := proto.Clone(a).(*v1.Action)
		want.Version, want.Digest, want.CreateTime = 1, got.GetAction().GetDigest(), got.GetAction().GetCreateTime()
		same(t, "an action as it was sent and as it is read", want, got.GetAction())
		if len(want.GetDigest()) != 64 || want.GetCreateTime() == nil {
			t.Errorf("%v", want)
		}
	}
	if detail := w.noted(t, "RegisterAction"); detail["action"] != "both" || detail["version"] != float64(1) || detail["changed"] != true {
		t.Errorf("the log says %v", detail)
	}
	var again, changed, back v1.RegisterActionResponse
	admin.must(t, "RegisterAction", &v1.RegisterActionRequest{Action: sending()}, &again)
	if again.GetAction().GetVersion() != 1 {
		t.Errorf("the same definition made version %d", again.GetAction().GetVersion())
	}
	other := sending()
	other.CostMicros = 1
	admin.must(t, "RegisterAction", &v1.RegisterActionRequest{Action: other}, &changed)
	admin.must(t, "RegisterAction", &v1.RegisterActionRequest{Action: sending()}, &back)
	if changed.GetAction().GetVersion() != 2 || back.GetAction().GetVersion() != 3 || back.GetAction().GetDigest() != again.GetAction().GetDigest() {
		t.Errorf("versions %d and %d", changed.GetAction().GetVersion(), back.GetAction().GetVersion())
	}

	// What others run stays, and fits them.
	admin.refused(t, "UnregisterAction", &v1.UnregisterActionRequest{Name: "note.keep"}, "ACTION_CONFLICT")
	needs := remembering()
	needs.Parameters = append(needs.Parameters, &v1.Parameter{Name: "more", Type: v1.ParameterType_PARAMETER_TYPE_TEXT, Required: true})
	admin.refused(t, "RegisterAction", &v1.RegisterActionRequest{Action: needs}, "ACTION_CONFLICT")

	var first, second v1.ListRegisteredActionsResponse
	admin.must(t, "ListRegisteredActions", &v1.ListRegisteredActionsRequest{PageSize: 3}, &first)
	admin.must(t, "ListRegisteredActions", &v1.ListRegisteredActionsRequest{PageSize: 3, PageToken: first.GetNextPageToken()}, &second)
	var names []string
	for _, a := range append(first.GetActions(), second.GetActions()...) {
		names = append(names, a.GetName())
	}
	if len(first.GetActions()) != 3 || len(names) != 4 || names[0] != "both" || names[3] != "note.keep" || second.GetNextPageToken() != "" {
		t.Errorf("listed %v", names)
	}
	admin.must(t, "UnregisterAction", &v1.UnregisterActionRequest{Name: "both"}, nil)
	admin.refused(t, "GetRegisteredAction", &v1.GetRegisteredActionRequest{Name: "both"}, "ACTION_NOT_FOUND")
	admin.refused(t, "UnregisterAction", &v1.UnregisterActionRequest{Name: "both"}, "ACTION_NOT_FOUND")
	admin.must(t, "UnregisterAction", &v1.UnregisterActionRequest{Name: "note.keep"}, nil)
	// A name that comes back goes on counting, for executions refer to versions.
	var anew v1.RegisterActionResponse
	admin.must(t, "RegisterAction", &v1.RegisterActionRequest{Action: remembering()}, &anew)
	if anew.GetAction().GetVersion() != 2 {
		t.Errorf("after unregistering, version %d", anew.GetAction().GetVersion())
	}
}

func TestActionsAreRefused(t *testing.T) {
	t.Parallel()
	w := open(t)
	admin := w.operator(t, authz.RoleAdmin)
	absent := remembering()
	absent.GetMemory().Fields["text"] = parameter("absent")
	if f := admin.refused(t, "RegisterAction", &v1.RegisterActionRequest{Action: absent}, "ACTION_INVALID"); f.field != "action.memory.fields.text" {
		t.Errorf("the field is %q", f.field)
	}
	w.operator(t, authz.RoleViewer).refused(t, "RegisterAction", &v1.RegisterActionRequest{Action: remembering()}, "ROLE_INSUFFICIENT")
	w.user(t, "default", "ann", reading).refused(t, "ListRegisteredActions", &v1.ListRegisteredActionsRequest{}, "ROLE_INSUFFICIENT")
	w.operator(t, authz.RoleViewer).must(t, "ListRegisteredActions", &v1.ListRegisteredActionsRequest{}, nil)
}
