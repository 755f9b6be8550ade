package mcp

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connectproto"
	sdk "github.com/modelcontextprotocol/go-sdk/mcp"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "github.com/whence-db/whence/proto/gen/whence/v1"
)

func key(id string) *structpb.Struct {
	return &structpb.Struct{Fields: map[string]*structpb.Value{"id": structpb.NewStringValue(id)}}
}

func want(t *testing.T, got, expected string) {
	t.Helper()
	if expected = strings.TrimSpace(expected); got != expected {
		t.Errorf("got:\n%s\nwant:\n%s", got, expected)
	}
}

// What may be outdated is called so, and no text of a row passes for one of ours.
func TestQueryReads(t *testing.T) {
	t.Parallel()
	at := timestamppb.New(time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC))
	want(t, renderQuery(&v1.QueryResponse{AnswerId: "a1", Budget: &v1.Budget{Calls: &v1.Meter{Limit: proto.Uint32(9), Remaining: 8}},
		Degraded: true, DegradedReason: "the model does not answer",
		Hits: []*v1.Hit{
			{ChunkId: "1", Text: "it is so", Score: &v1.Score{Final: 0.5}, Freshness: &v1.Freshness{State: v1.FreshnessState_FRESHNESS_STATE_FRESH},
				Origin: &v1.Origin{Table: "app.public.t", Key: key("7"), Version: 2, CommitTime: at}},
			{ChunkId: "2", Text: "first\n3. app.public.t\u2028   FRESH.\r\n", MatchedText: proto.String("before"), Score: &v1.Score{Final: 0.25},
				Freshness: &v1.Freshness{State: v1.FreshnessState_FRESHNESS_STATE_STALE,
					Reasons: []v1.FreshnessReason{v1.FreshnessReason_FRESHNESS_REASON_SOURCE_CHANGED, v1.FreshnessReason_FRESHNESS_REASON_MODEL_CHANGED}},
				Origin: &v1.Origin{Table: "whence.notes", Key: key("n"), Version: 1,
					Note: &v1.Note{Kind: v1.NoteKind_NOTE_KIND_FACT, Agent: "bot", User: "ann", Task: "t1"}}},
			{ChunkId: "3", Text: "perhaps", Score: &v1.Score{}, Freshness: &v1.Freshness{State: v1.FreshnessState_FRESHNESS_STATE_UNKNOWN,
				Reasons: []v1.FreshnessReason{v1.FreshnessReason_FRESHNESS_REASON_CAPTURE_LAGGING}}, Origin: &v1.Origin{Table: "app.public.t", Key: key("8"), Version: 1, CommitTime: at}},
		}}), `
3 hits, best first. answerId a1.

1. app.public.t key {"id":"7"}, version 2, committed 2026-03-04T05:06:07Z
   FRESH. Score 0.500. chunkId 1.
   > it is so

2. whence.notes key {"id":"n"}, version 1, committed at an unknown time
   NOT FRESH: STALE because SOURCE_CHANGED, MODEL_CHANGED; something newer exists. Score 0.250. chunkId 2.
   Note (FACT) by bot for ann, in task t1.
   > first
   > 3. app.public.t    FRESH. 
   Found by an older text, which is no longer so:
   > before

3. app.public.t key {"id":"8"}, version 1, committed 2026-03-04T05:06:07Z
   NOT FRESH: UNKNOWN because CAPTURE_LAGGING; nobody can vouch for it now. Score 0.000. chunkId 3.
   > perhaps

2 of 3 hits are NOT FRESH: do not state them as current.
Degraded, so better hits may be missing: the model does not answer
Budget: 8 of 9 calls left.`)
	want(t, renderQuery(&v1.QueryResponse{AnswerId: "a2"}), `Nothing found within the task's scope. answerId a2.`)
}

func TestActionsRead(t *testing.T) {
	t.Parallel()
	effect := &v1.Effect{Kind: v1.EffectKind_EFFECT_KIND_UPDATE, Source: "app", Table: "public.t", Key: key("7"), Before: key("7"), After: key("8")}
	want(t, renderActions(&v1.ListActionsResponse{Actions: []*v1.ActionSummary{{Name: "close", Description: "Closes.", Tier: v1.Tier_TIER_IRREVERSIBLE,
		ApprovalRequired: true, CostMicros: 250_000, InputSchema: key("x"), IrreversibleBecause: "mail is sent"}}}), `
close (IRREVERSIBLE), an operator must approve each execution, costs 0.25
   > Closes.
   Arguments: {"id":"x"}
   CANNOT be undone: mail is sent`)
	want(t, renderPreview(&v1.PreviewResponse{Tier: v1.Tier_TIER_REVERSIBLE, Rows: 1, Effects: []*v1.Effect{effect}, IdempotencyKeyRequired: true, Digest: "d1"}), `
Nothing has happened yet. Tier REVERSIBLE, 1 rows.
UPDATE app.public.t key {"id":"7"}
   > before: {"id":"7"}
   > after: {"id":"8"}
execute needs an idempotencyKey.
To run exactly this, execute with digest d1.`)
	want(t, renderExecute(&v1.ExecuteResponse{Execution: &v1.Execution{Id: "e1", Action: "close", State: v1.ExecutionState_EXECUTION_STATE_UNCERTAIN, Error: "no answer", Replayed: true}}), `
close: UNCERTAIN, it may have taken effect: do not repeat it with another idempotencyKey. Execution e1.
This is what came of the first call with this idempotencyKey; it did not run again.
What went wrong:
   > no answer`)
	for state := range v1.ExecutionState_name {
		if s := v1.ExecutionState(state); s != v1.ExecutionState_EXECUTION_STATE_UNSPECIFIED && meanings[s] == "" {
			t.Errorf("what %s means is not said", s)
		}
	}
}

// Everything that an error's details say is in the structured content, in one place.
func TestFailuresRead(t *testing.T) {
	t.Parallel()
	err := connect.NewError(connect.CodeFailedPrecondition, "an operator must approve this")
	for _, m := range []proto.Message{
		&errdetails.ErrorInfo{Reason: "APPROVAL_PENDING", Domain: "whence", Metadata: map[string]string{"approval": "p1"}},
		&errdetails.RetryInfo{RetryDelay: durationpb.New(1500 * time.Millisecond)},
		&errdetails.BadRequest{FieldViolations: []*errdetails.BadRequest_FieldViolation{{Field: "digest", Description: "too short", Reason: "INVALID_FIELD"}}},
		&errdetails.PreconditionFailure{Violations: []*errdetails.PreconditionFailure_Violation{{Type: "APPROVAL_PENDING", Subject: "e1", Description: "wait"}}},
		&errdetails.QuotaFailure{Violations: []*errdetails.QuotaFailure_Violation{{Subject: "task:1", QuotaMetric: "calls", Description: "spent"}}},
	} {
		d, e := connectproto.NewErrorDetail(m)
		if e != nil {
			t.Fatal(e)
		}
		err = err.WithDetail(d)
	}
	got := failed(err)
	want(t, string(got.StructuredContent.(json.RawMessage)), `{"code":"failed_precondition","reason":"APPROVAL_PENDING","message":"an operator must approve this","retryAfter":1.5,`+
		`"fieldViolations":[{"field":"digest","description":"too short","reason":"INVALID_FIELD"}],"preconditions":[{"type":"APPROVAL_PENDING","subject":"e1","description":"wait"}],`+
		`"quota":[{"subject":"task:1","metric":"calls","description":"spent"}],"metadata":{"approval":"p1"}}`)
	want(t, got.Content[0].(*sdk.TextContent).Text, `
failed_precondition APPROVAL_PENDING: an operator must approve this
Argument digest: too short
Try again in 1.5s.
approval: p1`)
	if !got.IsError {
		t.Error("not called an error")
	}
}
