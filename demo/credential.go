package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/types/known/durationpb"

	v1 "github.com/whence-db/whence/proto/gen/whence/v1"
)

// calls is the narrow task's budget.
const calls = 3

// delegate hands out a narrow task, tries it inside and outside its scope, spends
// it, and shows what the audit log has of it.
func (s *story) delegate(ctx context.Context) error {
	subject := s.first.GetHits()[0].GetAttributes().GetFields()["section"].GetStringValue()
	budget := uint32(calls)
	res, err := s.agent.tasks.Delegate(ctx, &v1.DelegateRequest{
		Agent: "helper", Purpose: "answer questions about " + subject,
		Scope:    &v1.Scope{Tables: []string{table}, Subjects: []string{subject}, Actions: []string{"memory:read"}},
		Budget:   &v1.BudgetLimits{Calls: &budget},
		Lifetime: durationpb.New(5 * time.Minute)})
	if err != nil {
		return err
	}
	t := res.GetTask()
	s.screen.line("   task    %s  %q", t.GetId(), t.GetPurpose())
	s.screen.line("   below   %s  agent %s for user %s", t.GetParentId(), t.GetAgent(), t.GetUser())
	s.screen.line("   scope   tables %s; subjects %s; actions %s; %d calls", strings.Join(t.GetScope().GetTables(), ", "),
		strings.Join(t.GetScope().GetSubjects(), ", "), strings.Join(t.GetScope().GetActions(), ", "), t.GetBudget().GetCalls().GetLimit())
	helper := newAgent(s.http, s.env["WHENCE_URL"], res.GetToken())

	inside, err := s.query(ctx, helper, theQuestion(2))
	if err != nil {
		return err
	}
	for _, h := range inside.GetHits() {
		if got := h.GetAttributes().GetFields()["section"].GetStringValue(); got != subject {
			return fmt.Errorf("a credential for %s was shown %s", subject, got)
		}
	}
	other := "admin"
	if subject == other {
		other = "net"
	}
	for _, q := range []*v1.QueryRequest{
		{Text: question, Limit: limit(2), Subjects: []string{other}},
		{Text: question, Limit: limit(2), Tables: []string{"app.public.salaries"}},
	} {
		if err := s.denied(ctx, helper, q); err != nil {
			return err
		}
	}
	if err := s.spend(ctx, helper); err != nil {
		return err
	}
	return s.audited(ctx, t.GetId())
}

// denied asks for what is outside the scope.
func (s *story) denied(ctx context.Context, helper agent, q *v1.QueryRequest) error {
	what := "subject " + strings.Join(q.GetSubjects(), ", ")
	if len(q.GetTables()) > 0 {
		what = "table " + strings.Join(q.GetTables(), ", ")
	}
	s.screen.line("\n   %s%s", s.screen.paint(bold, "? "+q.GetText()), s.screen.paint(dim, "  "+what))
	_, err := helper.memory.Query(ctx, q)
	r, ok := refused(err)
	if !ok || r.code != connect.CodePermissionDenied {
		return fmt.Errorf("asked for the %s: want permission_denied, got %w", what, orNothing(err))
	}
	s.refusal(r)
	return nil
}

// spend asks until the budget is used up; a paid refusal counts as well as an answer.
func (s *story) spend(ctx context.Context, helper agent) error {
	for range calls + 1 {
		s.screen.line("\n   %s%s", s.screen.paint(bold, "? "+question), s.screen.paint(dim, "  once more"))
		res, err := helper.memory.Query(ctx, theQuestion(1))
		if err == nil {
			m := res.GetBudget().GetCalls()
			s.screen.line("   answer %s; %d of %d calls left", res.GetAnswerId(), m.GetRemaining(), m.GetLimit())
			continue
		}
		r, ok := refused(err)
		if !ok || r.code != connect.CodeResourceExhausted || r.quota == nil {
			return fmt.Errorf("want resource_exhausted with the quota that was hit, got %w", err)
		}
		s.refusal(r)
		task, err := helper.tasks.GetTask(ctx, &v1.GetTaskRequest{})
		if err != nil {
			return err
		}
		m := task.GetTask().GetBudget().GetCalls()
		s.screen.line("   GetTask (costs nothing): %d of %d calls used, %d left", m.GetUsed(), m.GetLimit(), m.GetRemaining())
		if m.GetUsed() != calls || m.GetLimit() != calls {
			return fmt.Errorf("the budget of %d calls stands at %d of %d", calls, m.GetUsed(), m.GetLimit())
		}
		return nil
	}
	return fmt.Errorf("a budget of %d calls let more than that through", calls)
}

func (s *story) refusal(r refusal) {
	s.screen.line("   %s %s", s.screen.paint(red, r.code.String()), r.reason)
	for _, l := range wrap(r.message, width-6) {
		s.screen.line("      %s", s.screen.paint(dim, l))
	}
	if r.quota != nil {
		s.screen.line("      %s", s.screen.paint(dim, cut("quota of "+r.quota.GetQuotaMetric()+" at "+r.quota.GetSubject(), width-6)))
	}
}

// audited shows the log's entries of a task, oldest first.
func (s *story) audited(ctx context.Context, task string) error {
	res, err := s.op.audit.ListEntries(ctx, &v1.ListEntriesRequest{Task: task})
	if err != nil {
		return err
	}
	entries := res.GetEntries()
	slices.Reverse(entries)
	s.screen.line("\n   %s", s.screen.paint(bold, "The audit log of that task"))
	var allowed, exhausted, denied int
	for _, e := range entries {
		s.screen.line("   %s  %-8s %s  %-20s charged %d  %s", clock(e.GetTime()), e.GetCall()[strings.LastIndexByte(e.GetCall(), '/')+1:],
			s.screen.state(fmt.Sprintf("%-7s", plain(e.GetDecision()))), e.GetReason(), e.GetCharge().GetCalls(),
			s.screen.paint(dim, strings.Join(e.GetActorChain(), " > ")))
		switch {
		case e.GetDecision() == v1.Decision_DECISION_ALLOWED:
			allowed++
		case e.GetReason() == "BUDGET_EXHAUSTED":
			exhausted++
		case e.GetReason() == "SUBJECT_OUT_OF_SCOPE", e.GetReason() == "TABLE_OUT_OF_SCOPE":
			denied++
		}
	}
	if allowed == 0 || denied != 2 || exhausted != 1 {
		return fmt.Errorf("the audit log has %d allowed, %d denied and %d exhausted calls; want some, 2 and 1", allowed, denied, exhausted)
	}
	return nil
}

func orNothing(err error) error {
	if err == nil {
		return fmt.Errorf("an answer")
	}
	return err
}
