package main

import (
	"context"
	"fmt"
	"slices"

	v1 "github.com/whence-db/whence/proto/gen/whence/v1"
)

// trace follows the first answer to its rows, and the changed row to its answers.
func (s *story) trace(ctx context.Context) error {
	if err := s.traceAnswer(ctx); err != nil {
		return err
	}
	return s.traceRow(ctx)
}

func (s *story) traceAnswer(ctx context.Context) error {
	res, err := s.op.audit.GetAnswer(ctx, &v1.GetAnswerRequest{AnswerId: s.first.GetAnswerId()})
	if err != nil {
		return err
	}
	a := res.GetAnswer()
	s.screen.line("\n   %s", s.screen.paint(bold, "Answer "+a.GetId()))
	s.screen.line("   %q, asked by %s for %s at %s", a.GetQuery().GetText(), a.GetAgent(), a.GetUser(), clock(a.GetTime()))
	if len(a.GetHits()) != len(s.first.GetHits()) {
		return fmt.Errorf("the stored answer has %d hits, and %d were shown", len(a.GetHits()), len(s.first.GetHits()))
	}
	for i, h := range a.GetHits() {
		o, now := h.GetShown().GetOrigin(), h.GetNow()
		name := nameOf(o.GetKey())
		became := "unchanged"
		switch {
		case now.GetState() == v1.RecordState_RECORD_STATE_DELETED:
			became = s.screen.state("DELETED") + " at " + now.GetLsn()
		case h.GetChanged():
			became = fmt.Sprintf("now version %d at %s", now.GetVersion(), now.GetLsn())
		}
		s.screen.line("   %d. %-24s shown %s, version %d at %s; %s", i+1, cut(name, 24), freshness(h.GetShown().GetFreshness()), o.GetVersion(), o.GetLsn(), became)
		for _, c := range h.GetChanges() {
			if c.Was != nil && c.Now != nil {
				s.screen.line("         %s", s.screen.paint(dim, cut(c.GetColumn()+" was "+c.GetWas(), width-9)))
				s.screen.line("         %s", s.screen.paint(dim, cut(c.GetColumn()+" now "+c.GetNow(), width-9)))
			}
		}
		if shown := s.first.GetHits()[i]; shown.GetText() != h.GetShown().GetText() || nameOf(shown.GetOrigin().GetKey()) != name {
			return fmt.Errorf("hit %d is not stored as it was shown", i+1)
		}
		if want := name == s.changed || name == s.gone; h.GetChanged() != want {
			return fmt.Errorf("%s: changed is %v, and should be %v", name, h.GetChanged(), want)
		}
	}
	return nil
}

func (s *story) traceRow(ctx context.Context) error {
	res, err := s.op.audit.TraceRecord(ctx, &v1.TraceRecordRequest{Table: table, Key: keyOf(s.changed)})
	if err != nil {
		return err
	}
	n := res.GetCounts()
	s.screen.line("\n   %s", s.screen.paint(bold, "Row "+table+" name="+s.changed))
	s.screen.line("   %d versions, %d chunks, %d answers", n.GetVersions(), n.GetChunks(), n.GetAnswers())
	for _, v := range res.GetVersions() {
		s.screen.line("   version %d at %-10s  %s", v.GetVersion(), v.GetLsn(), s.screen.paint(dim, cut(v.GetText(), width-29)))
	}
	for _, a := range res.GetAnswers() {
		since := "current"
		if a.GetSuperseded() {
			since = s.screen.paint(yellow, "superseded")
		}
		s.screen.line("   %s  %s  %s for %s  version %d  %s", clock(a.GetTime()), a.GetAnswerId(), a.GetAgent(), a.GetUser(), a.GetVersion(), since)
	}
	for _, want := range []struct {
		id         string
		version    uint32
		superseded bool
	}{{s.first.GetAnswerId(), 1, true}, {s.stale, 2, false}, {s.fresh, 2, false}} {
		i := slices.IndexFunc(res.GetAnswers(), func(a *v1.TracedAnswer) bool { return a.GetAnswerId() == want.id })
		if i < 0 {
			return fmt.Errorf("the trace lacks answer %s, which showed the row", want.id)
		}
		if a := res.GetAnswers()[i]; a.GetVersion() != want.version || a.GetSuperseded() != want.superseded {
			return fmt.Errorf("the trace says that answer %s showed version %d, superseded %v", want.id, a.GetVersion(), a.GetSuperseded())
		}
	}
	return nil
}
