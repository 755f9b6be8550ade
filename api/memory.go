package api

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"google.golang.org/protobuf/types/known/structpb"

	"github.com/google/uuid"

	"github.com/whence-db/whence"
	"github.com/whence-db/whence/index"
	"github.com/whence-db/whence/lineage"
	"github.com/whence-db/whence/notes"
	v1 "github.com/whence-db/whence/proto/gen/whence/v1"
	"github.com/whence-db/whence/proto/gen/whence/v1/whencev1connect"
	"github.com/whence-db/whence/query"
)

type memory struct {
	whencev1connect.UnimplementedMemoryServiceHandler
	query *query.Engine
	notes *notes.Store
	wrote func() // there may be texts to embed
}

// Query answers a question; the door stores the answer as it goes out.
func (m *memory) Query(ctx context.Context, req *v1.QueryRequest) (*v1.QueryResponse, error) {
	s := session(ctx)
	a, err := m.query.Query(ctx, s.Principal.Scope, queryRequest(req))
	if err != nil {
		return nil, err
	}
	out := &v1.QueryResponse{Watermark: watermarks(a.Watermark), Degraded: a.Degraded != "", DegradedReason: a.Degraded,
		Budget: budget(s.Budget())}
	for _, h := range a.Hits {
		out.Hits = append(out.Hits, hitMessage(h))
	}
	out.Explanation, out.Incomplete = explanation(a.Explained), incomplete(a.Incomplete)
	stored, err := answerOf(req, a, out.GetHits())
	if err != nil {
		return nil, err
	}
	out.AnswerId = s.SetAnswer(stored).String()
	return out, nil
}

func queryRequest(req *v1.QueryRequest) query.Request {
	r := query.Request{
		Text: req.GetText(), Subjects: req.GetSubjects(), Filter: req.GetFilter(), Limit: int(req.GetLimit()),
		Recency:   query.Recency{HalfLife: req.GetRecency().GetHalfLife().AsDuration()},
		FreshOnly: req.GetFreshOnly(), Explain: req.GetExplain(), AsOf: fromTimestamp(req.GetAsOf()),
		Consistency: query.Consistency{AtLeast: req.GetConsistency().GetAtLeast(), Verify: req.GetConsistency().GetVerify()},
	}
	if req.GetRecency() != nil {
		r.Recency.Weight = req.GetRecency().Weight
	}
	if d := req.GetConsistency().GetMaxStaleness(); d != nil {
		longest := d.AsDuration()
		r.Consistency.MaxStaleness = &longest
	}
	for _, t := range req.GetTables() {
		r.Tables = append(r.Tables, whence.TableName(t))
	}
	return r
}

func incomplete(all []query.Incomplete) (out []*v1.Incomplete) {
	for _, i := range all {
		out = append(out, &v1.Incomplete{Table: string(i.Table), Until: timestamp(i.Until),
			Reason: v1.IncompleteReason(v1.IncompleteReason_value["INCOMPLETE_REASON_"+string(i.Reason)])})
	}
	return out
}

func hitMessage(h query.Hit) *v1.Hit {
	out := &v1.Hit{
		ChunkId: fmt.Sprint(h.ChunkID), Text: h.Text, Origin: origin(h.Origin), Freshness: freshness(h.Freshness),
		Score: score(h.Score), Attributes: values(h.Attributes), LiveText: h.LiveText, Legs: legs(h.Legs),
	}
	out.Origin.Note = note(h.Note)
	if h.MatchedText != "" {
		out.MatchedText = &h.MatchedText
	}
	if h.Embedding != nil {
		out.Embedding = &v1.Embedding{Model: h.Embedding.Model, EmbeddedAt: timestamp(h.Embedding.EmbeddedAt)}
	}
	return out
}

func score(s query.Score) *v1.Score {
	return &v1.Score{Final: s.Final, Relevance: s.Relevance, Recency: s.Recency, Dense: s.Dense, Lexical: s.Lexical}
}

func legs(l index.Legs) (out []v1.Leg) {
	for i, leg := range []v1.Leg{v1.Leg_LEG_DENSE, v1.Leg_LEG_LEXICAL, v1.Leg_LEG_RECENT} {
		if l&(index.ByVector<<i) != 0 {
			out = append(out, leg)
		}
	}
	return out
}

func explanation(x *query.Explanation) *v1.Explanation {
	if x == nil {
		return nil
	}
	out := &v1.Explanation{DenseWeight: x.Dense, LexicalWeight: x.Lexical, DenseFloor: x.DenseFloor, RecencyWeight: x.RecencyWeight,
		DenseCandidates: count(int64(x.ByVector)), LexicalCandidates: count(int64(x.ByTerms)), RecentCandidates: count(int64(x.ByRecency))}
	for _, h := range x.LeftOut {
		reason := v1.LeftOutReason_LEFT_OUT_REASON_BELOW_LIMIT
		if h.Repeats {
			reason = v1.LeftOutReason_LEFT_OUT_REASON_REPEATS
		}
		out.LeftOut = append(out.LeftOut, &v1.LeftOut{ChunkId: fmt.Sprint(h.ChunkID), Table: string(h.Origin.Table),
			Key: values(h.Origin.Key.Values()), Score: score(h.Score), Legs: legs(h.Legs), Reason: reason})
	}
	return out
}

// answerOf is what lineage keeps: the question and every hit as it was shown.
func answerOf(req *v1.QueryRequest, a query.Answer, shown []*v1.Hit) (lineage.Answer, error) {
	asked, err := marshaller.Marshal(req)
	if err != nil {
		return lineage.Answer{}, err
	}
	out := lineage.Answer{ID: uuid.Must(uuid.NewV7()), Request: asked, Watermark: a.Watermark, Degraded: a.Degraded}
	for i, h := range a.Hits {
		b, err := marshaller.Marshal(shown[i])
		if err != nil {
			return lineage.Answer{}, err
		}
		out.Hits = append(out.Hits, lineage.Hit{RecordID: h.RecordID, Table: h.Origin.Table, Key: h.Origin.Key,
			Version: h.Origin.Version, Subject: h.Subject, Shown: json.RawMessage(b)})
	}
	return out, nil
}

// GetRecord returns one row's newest captured version.
func (m *memory) GetRecord(ctx context.Context, req *v1.GetRecordRequest) (*v1.GetRecordResponse, error) {
	s := session(ctx)
	r, err := m.query.GetRecord(ctx, s.Principal.Scope, ref(req.GetTable(), req.GetKey()))
	if err != nil {
		return nil, err
	}
	return &v1.GetRecordResponse{Budget: budget(s.Budget()), Record: recordMessage(r)}, nil
}

func recordMessage(r query.Record) *v1.Record {
	return &v1.Record{
		Table: string(r.Table), Key: values(r.Key.Values()), State: recordState(r.Deleted),
		Version: uint32(r.Version), Lsn: r.LSN.String(), CommitTime: timestamp(r.CommitTime), EventTime: timestamp(r.EventTime),
		Subject: r.Subject, Text: r.Text, Columns: values(r.Columns), Attributes: values(r.Attributes),
		Freshness: freshness(r.Freshness), Note: note(r.Note),
	}
}

// ListVersions lists one row's captured versions, newest first.
func (m *memory) ListVersions(ctx context.Context, req *v1.ListVersionsRequest) (*v1.ListVersionsResponse, error) {
	s := session(ctx)
	versions, next, err := m.query.ListVersions(ctx, s.Principal.Scope, ref(req.GetTable(), req.GetKey()),
		pageSize(req.GetPageSize()), req.GetPageToken())
	if err != nil {
		return nil, err
	}
	out := &v1.ListVersionsResponse{NextPageToken: next, Budget: budget(s.Budget())}
	for _, v := range versions {
		out.Versions = append(out.Versions, versionMessage(v))
	}
	return out, nil
}

func versionMessage(v index.Version) *v1.Version {
	out := &v1.Version{Version: uint32(v.Version), Lsn: v.LSN.String(), CommitTime: timestamp(v.CommitTime),
		CapturedAt: timestamp(v.CapturedAt), Deleted: v.Deleted, Columns: values(v.Columns), Text: v.Text, Digest: v.Digest.String()}
	if v.XID != nil {
		xid := count(*v.XID)
		out.Xid = &xid
	}
	return out
}

// ref takes a key as the contract holds it: an object of text values.
func ref(table string, key *structpb.Struct) query.Ref {
	out := query.Ref{Table: whence.TableName(table), Key: whence.Values{}}
	for column, v := range key.GetFields() {
		text := v.GetStringValue()
		out.Key[column] = &text
	}
	return out
}

func recordState(deleted bool) v1.RecordState {
	if deleted {
		return v1.RecordState_RECORD_STATE_DELETED
	}
	return v1.RecordState_RECORD_STATE_LIVE
}

// canonical is the key of a row whose table may not be registered any more.
func canonical(row query.Ref) (whence.Key, error) {
	key, err := whence.NewKey(slices.Collect(maps.Keys(row.Key)), row.Key)
	if err != nil {
		return "", whence.Invalid("key", "KEY_INVALID", err.Error())
	}
	return key, nil
}
