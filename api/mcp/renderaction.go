package mcp

import (
	"fmt"
	"strings"

	v1 "github.com/whence-db/whence/proto/gen/whence/v1"
)

func renderActions(r *v1.ListActionsResponse) string {
	p := &page{}
	if len(r.GetActions()) == 0 {
		p.line("There is no action that this task may use.")
	}
	for _, a := range r.GetActions() {
		p.line("%s (%s)%s%s", a.GetName(), plain(a.GetTier(), "TIER_"), approval(a.GetApprovalRequired()), cost(a.GetCostMicros()))
		p.quote(a.GetDescription())
		p.line("   Arguments: %s", values(a.GetInputSchema()))
		switch {
		case a.GetUndoWindow() != nil:
			p.line("   Can be undone for %s.", a.GetUndoWindow().AsDuration())
		case a.GetIrreversibleBecause() != "":
			p.line("   CANNOT be undone: %s", a.GetIrreversibleBecause())
		}
	}
	return p.end(r.GetBudget())
}

func approval(required bool) string {
	if required {
		return ", an operator must approve each execution"
	}
	return ""
}

func cost(micros int64) string {
	if micros == 0 {
		return ""
	}
	return fmt.Sprintf(", costs %g", float64(micros)/1e6)
}

func renderPreview(r *v1.PreviewResponse) string {
	p := &page{}
	p.line("Nothing has happened yet. Tier %s, %d rows%s%s.", plain(r.GetTier(), "TIER_"), r.GetRows(), approval(r.GetApprovalRequired()), cost(r.GetCostMicros()))
	p.effects(r.GetEffects())
	for _, q := range r.GetRequests() {
		p.line("It would send %s %s", q.GetMethod(), q.GetUrl())
		if q.GetBody() != "" {
			p.quote(q.GetBody())
		}
	}
	if r.GetResult() != nil {
		p.line("It would return:")
		p.quote(values(r.GetResult()))
	}
	if r.GetIdempotencyKeyRequired() {
		p.line("execute needs an idempotencyKey.")
	}
	p.line("To run exactly this, execute with digest %s.", r.GetDigest())
	return p.end(r.GetBudget())
}

// effects says what happens to rows.
func (p *page) effects(all []*v1.Effect) {
	for _, e := range all {
		p.line("%s %s.%s key %s", plain(e.GetKind(), "EFFECT_KIND_"), e.GetSource(), e.GetTable(), values(e.GetKey()))
		if e.GetBefore() != nil {
			p.quote("before: " + values(e.GetBefore()))
		}
		if e.GetAfter() != nil {
			p.quote("after: " + values(e.GetAfter()))
		}
	}
}

func renderExecute(r *v1.ExecuteResponse) string {
	p := &page{}
	p.execution(r.GetExecution())
	return p.end(r.GetBudget())
}

func renderUndo(r *v1.UndoResponse) string {
	p := &page{}
	p.execution(r.GetExecution())
	return p.end(r.GetBudget())
}

// meanings says what an execution's state means for whoever asked for it.
var meanings = map[v1.ExecutionState]string{
	v1.ExecutionState_EXECUTION_STATE_AWAITING_APPROVAL: "nothing has happened; an operator must approve it first, then execute again with the same idempotencyKey",
	v1.ExecutionState_EXECUTION_STATE_RUNNING:           "it is under way",
	v1.ExecutionState_EXECUTION_STATE_SUCCEEDED:         "it took effect",
	v1.ExecutionState_EXECUTION_STATE_FAILED:            "it took no effect",
	v1.ExecutionState_EXECUTION_STATE_UNCERTAIN:         "it may have taken effect: do not repeat it with another idempotencyKey",
	v1.ExecutionState_EXECUTION_STATE_DENIED:            "it did not run and will not",
	v1.ExecutionState_EXECUTION_STATE_UNDONE:            "it took effect and was undone",
	v1.ExecutionState_EXECUTION_STATE_UNDOING:           "it is being undone",
}

func (p *page) execution(e *v1.Execution) {
	p.line("%s: %s, %s. Execution %s.", e.GetAction(), plain(e.GetState(), "EXECUTION_STATE_"), meanings[e.GetState()], e.GetId())
	if e.GetReplayed() {
		p.line("This is what came of the first call with this idempotencyKey; it did not run again.")
	}
	if e.GetError() != "" {
		p.line("What went wrong:")
		p.quote(e.GetError())
	}
	if e.GetApprovalId() != "" {
		p.line("Approval: %s", e.GetApprovalId())
	}
	if e.GetResult() != nil {
		p.line("It returned:")
		p.quote(values(e.GetResult()))
	}
	p.effects(e.GetEffects())
	if e.GetUndoUntil() != nil && e.GetState() == v1.ExecutionState_EXECUTION_STATE_SUCCEEDED {
		p.line("Can be undone until %s.", moment(e.GetUndoUntil()))
	}
	if e.GetToken() != "" {
		p.line("To see what it wrote in a query, pass consistency.atLeast %q.", e.GetToken())
	}
}

func renderTask(r *v1.GetTaskResponse) string {
	t, p := r.GetTask(), &page{}
	p.line("Task %s is %s until %s, for %s, by agent %s.", t.GetId(), plain(t.GetState(), "TASK_STATE_"), moment(t.GetDeadline()), t.GetUser(), t.GetAgent())
	p.quote(t.GetPurpose())
	s := t.GetScope()
	p.line("Tables: %s. Subjects: %s. May: %s. Highest tier of actions: %s.", some(s.GetAllTables(), s.GetTables(), s.GetDenyTables()),
		some(s.GetAllSubjects(), s.GetSubjects(), s.GetDenySubjects()), some(false, s.GetActions(), nil), plain(s.GetTier(), "TIER_"))
	if len(s.GetFilter()) > 0 {
		p.line("Only records with %v.", s.GetFilter())
	}
	return p.end(t.GetBudget())
}

// fewest is how many names are told before the rest is counted.
const fewest = 20

// some lists what a scope holds.
func some(all bool, names, denied []string) string {
	var out string
	switch {
	case all:
		out = "all"
	case len(names) == 0:
		return "none"
	case len(names) > fewest:
		out = fmt.Sprintf("%s and %d more", strings.Join(names[:fewest], ", "), len(names)-fewest)
	default:
		out = strings.Join(names, ", ")
	}
	if len(denied) > 0 {
		out += " but " + some(false, denied, nil)
	}
	return out
}
