package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/google/uuid"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/audit"
	"github.com/whence-db/whence/authz"
	"github.com/whence-db/whence/lineage"
	v1 "github.com/whence-db/whence/proto/gen/whence/v1"
	"github.com/whence-db/whence/proto/gen/whence/v1/whencev1connect"
	"github.com/whence-db/whence/query"
)

type auditor struct {
	whencev1connect.UnimplementedAuditServiceHandler
	log     *audit.Log
	lineage *lineage.Store
	query   *query.Engine
}

// ListEntries lists the audit log, newest first.
func (a *auditor) ListEntries(ctx context.Context, req *v1.ListEntriesRequest) (*v1.ListEntriesResponse, error) {
	task, err := optionalID("task", req.GetTask())
	if err != nil {
		return nil, err
	}
	answer, err := optionalID("answerId", req.GetAnswerId())
	if err != nil {
		return nil, err
	}
	f := audit.Filter{Task: task, Answer: answer, Agent: req.GetAgent(), User: req.GetUser(), Call: req.GetCall(),
		Since: fromTimestamp(req.GetSince()), Until: fromTimestamp(req.GetUntil())}
	if d := req.GetDecision(); d != v1.Decision_DECISION_UNSPECIFIED {
		f.Decision = decisions[d]
	}
	entries, next, err := a.log.List(ctx, f, pageSize(req.GetPageSize()), req.GetPageToken())
	if err != nil {
		return nil, err
	}
	out := &v1.ListEntriesResponse{NextPageToken: next}
	for _, e := range entries {
		m, err := entryMessage(e)
		if err != nil {
			return nil, err
		}
		out.Entries = append(out.Entries, m)
	}
	return out, nil
}

var decisions = map[v1.Decision]audit.Decision{
	v1.Decision_DECISION_ALLOWED: audit.Allowed,
	v1.Decision_DECISION_REFUSED: audit.Refused,
	v1.Decision_DECISION_FAILED:  audit.Failed,
}

func entryMessage(e audit.Entry) (*v1.Entry, error) {
	detail, err := toStruct(e.Detail)
	if err != nil {
		return nil, fmt.Errorf("entry %d: %w", e.ID, err)
	}
	return &v1.Entry{
		Id: fmt.Sprint(e.ID), Time: timestamp(e.At), Tenant: e.Tenant, Agent: e.Agent, User: e.User,
		ActorChain: e.Actors, Task: idText(e.Task), RootTask: idText(e.RootTask), TokenId: e.TokenID, Call: e.Call,
		Decision: v1.Decision(v1.Decision_value["DECISION_"+string(e.Decision)]), Reason: e.Reason,
		RequestDigest: fmt.Sprintf("%x", e.RequestDigest), AnswerId: idText(e.Answer),
		Charge: &v1.Charge{Calls: count(e.CallsCharged)}, Latency: durationpb.New(e.Latency), Detail: detail,
	}, nil
}

func toStruct(v any) (*structpb.Struct, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	out := &structpb.Struct{}
	return out, protojson.Unmarshal(b, out)
}

func idText(id uuid.UUID) string {
	if id == uuid.Nil {
		return ""
	}
	return id.String()
}

// ListAnswers lists answers without their hits, newest first.
func (a *auditor) ListAnswers(ctx context.Context, req *v1.ListAnswersRequest) (*v1.ListAnswersResponse, error) {
	task, err := optionalID("task", req.GetTask())
	if err != nil {
		return nil, err
	}
	answers, next, err := a.lineage.List(ctx, session(ctx).Principal.Scope, lineage.Filter{Task: task, Agent: req.GetAgent(), User: req.GetUser(),
		Since: fromTimestamp(req.GetSince()), Until: fromTimestamp(req.GetUntil())},
		lineage.Page{Size: pageSize(req.GetPageSize()), Token: req.GetPageToken()})
	if err != nil {
		return nil, err
	}
	out := &v1.ListAnswersResponse{NextPageToken: next}
	for _, an := range answers {
		m, err := answerMessage(an)
		if err != nil {
			return nil, err
		}
		out.Answers = append(out.Answers, m)
	}
	return out, nil
}

// GetAnswer returns an answer, each hit as it was shown beside the record now.
func (a *auditor) GetAnswer(ctx context.Context, req *v1.GetAnswerRequest) (*v1.GetAnswerResponse, error) {
	id, err := requiredID("answerId", req.GetAnswerId())
	if err != nil {
		return nil, err
	}
	an, err := a.lineage.Get(ctx, session(ctx).Principal.Scope, id)
	if err != nil {
		return nil, err
	}
	out, err := answerMessage(an)
	if err != nil {
		return nil, err
	}
	scope := session(ctx).Principal.Scope
	refs := make([]query.Ref, len(an.Hits))
	for i, h := range an.Hits {
		refs[i] = query.Ref{Table: h.Table, Key: h.Key.Values()}
	}
	now, err := a.query.GetRecords(ctx, scope, refs)
	if err != nil {
		return nil, err
	}
	for i, h := range an.Hits {
		m, err := a.answerHit(ctx, scope, refs[i], h, now[i])
		if err != nil {
			return nil, err
		}
		out.Hits = append(out.Hits, m)
	}
	return &v1.GetAnswerResponse{Answer: out}, nil
}

// answerHit sets a hit as it was shown beside its record now; nil when that is
// gone, with its table or by a purge.
func (a *auditor) answerHit(ctx context.Context, scope authz.Scope, ref query.Ref, h lineage.Hit, now *query.Record) (*v1.AnswerHit, error) {
	out := &v1.AnswerHit{Shown: &v1.Hit{}}
	if err := unmarshaller.Unmarshal(h.Shown, out.Shown); err != nil {
		return nil, fmt.Errorf("stored hit: %w", err)
	}
	if now == nil {
		out.Changed, out.Now = true, &v1.RecordNow{}
		return out, nil
	}
	out.Now = &v1.RecordNow{State: recordState(now.Deleted), Version: uint32(now.Version), Lsn: now.LSN.String(),
		CommitTime: timestamp(now.CommitTime), Text: now.Text, Freshness: freshness(rejudged(now, h.Version))}
	out.Changed = now.Version != h.Version
	if !out.Changed {
		return out, nil
	}
	was, err := a.query.GetVersion(ctx, scope, ref, h.Version)
	if errors.Is(err, whence.ErrNotFound) { // purged
		return out, nil
	}
	if err != nil {
		return nil, err
	}
	out.Changes = differences(was.Columns, now.Columns)
	return out, nil
}

// rejudged is the freshness by now of what was shown of a version: the record's
// own, and stale when the record has a newer one.
func rejudged(now *query.Record, shown int32) whence.Freshness {
	f := now.Freshness
	if now.Version == shown || now.Deleted || slices.Contains(f.Reasons, whence.SourceChanged) {
		return f
	}
	f.State, f.Reasons = whence.Stale, append([]whence.FreshnessReason{whence.SourceChanged}, f.Reasons...)
	return f
}

// differences compares two versions column by column.
func differences(was, now whence.Values) []*v1.ColumnChange {
	names := maps.Clone(was)
	if names == nil {
		names = whence.Values{}
	}
	maps.Copy(names, now)
	var out []*v1.ColumnChange
	for _, name := range slices.Sorted(maps.Keys(names)) {
		a, b := was[name], now[name]
		if (a == nil) != (b == nil) || (a != nil && *a != *b) {
			out = append(out, &v1.ColumnChange{Column: name, Was: a, Now: b})
		}
	}
	return out
}

// TraceRecord returns a record's versions and the answers that showed it.
func (a *auditor) TraceRecord(ctx context.Context, req *v1.TraceRecordRequest) (*v1.TraceRecordResponse, error) {
	scope, row := session(ctx).Principal.Scope, ref(req.GetTable(), req.GetKey())
	key, err := canonical(row)
	if err != nil {
		return nil, err
	}
	counts, uses, next, err := a.lineage.Trace(ctx, scope, row.Table, key, lineage.Page{Size: pageSize(req.GetPageSize()), Token: req.GetPageToken()})
	if err != nil {
		return nil, err
	}
	out := &v1.TraceRecordResponse{NextPageToken: next, Counts: &v1.TraceCounts{Answers: count(counts.Answers)}}
	now, err := a.query.GetRecord(ctx, scope, row)
	gone := errors.Is(err, whence.ErrNotFound)
	switch {
	case gone && counts.Answers == 0:
		return nil, err
	case err != nil && !gone:
		return nil, err
	case !gone:
		out.Counts.Versions, out.Counts.Chunks = uint32(now.Version), count(int64(now.Chunks))
		versions, _, err := a.query.ListVersions(ctx, scope, row, 100, "")
		if err != nil {
			return nil, err
		}
		for _, v := range versions {
			out.Versions = append(out.Versions, versionMessage(v))
		}
	}
	for _, u := range uses {
		asked, err := question(u.Answer)
		if err != nil {
			return nil, err
		}
		out.Answers = append(out.Answers, &v1.TracedAnswer{
			AnswerId: u.Answer.ID.String(), Time: timestamp(u.Answer.At), Task: idText(u.Answer.Task),
			Agent: u.Answer.Agent, User: u.Answer.User, Text: asked.GetText(), Version: uint32(u.Version),
			Superseded: gone || now.Deleted || now.Version != u.Version,
		})
	}
	return out, nil
}

var (
	marshaller   = protojson.MarshalOptions{}
	unmarshaller = protojson.UnmarshalOptions{DiscardUnknown: true} // stored by an older or newer build
)

func question(a lineage.Answer) (*v1.QueryRequest, error) {
	out := &v1.QueryRequest{}
	if err := unmarshaller.Unmarshal(a.Request, out); err != nil {
		return nil, fmt.Errorf("stored query of answer %s: %w", a.ID, err)
	}
	return out, nil
}

func answerMessage(a lineage.Answer) (*v1.Answer, error) {
	asked, err := question(a)
	if err != nil {
		return nil, err
	}
	return &v1.Answer{
		Id: a.ID.String(), Time: timestamp(a.At), Tenant: a.Tenant, Task: idText(a.Task), Agent: a.Agent, User: a.User,
		Query: asked, Watermark: watermarks(a.Watermark), Degraded: a.Degraded != "", DegradedReason: a.Degraded,
		HitCount: count(a.HitCount),
	}, nil
}
