package main

import (
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/structpb"

	v1 "github.com/whence-db/whence/proto/gen/whence/v1"
)

func idKey(id string) *structpb.Struct {
	return &structpb.Struct{Fields: map[string]*structpb.Value{"id": structpb.NewStringValue(id)}}
}

// testAnswersThenAndNow keeps an answer, changes one of its rows, deletes another,
// and looks at it again: what was shown stays, what is now stands beside it.
func (w *running) testAnswersThenAndNow(t *testing.T) {
	t.Parallel()
	w.exec(t, `create table public.tides (id int primary key, place text, what text)`)
	w.exec(t, `insert into public.tides values (1, 'harbour', 'samovar tide at the harbour'), (2, 'pier', 'samovar tide at the pier'),
		(3, 'bar', 'samovar tide at the bar')`)
	w.register(t, &v1.RegisterTableRequest{Table: "public.tides", TextColumns: []string{"what"}, AttributeColumns: []string{"place"}})
	agent, task := w.agent().delegate(t, &v1.DelegateRequest{Agent: "pilot", Purpose: "look up tides",
		Scope: &v1.Scope{Tables: []string{"app.public.tides"}, AllSubjects: true, Actions: []string{"memory:read"}}})
	ask := &v1.QueryRequest{Text: "samovar tide"}
	first := agent.query(t, ask)
	if len(first.GetHits()) != 3 {
		t.Fatalf("%d hits", len(first.GetHits()))
	}
	get := func() *v1.Answer {
		var res v1.GetAnswerResponse
		w.operator().must(t, "AuditService/GetAnswer", &v1.GetAnswerRequest{AnswerId: first.GetAnswerId()}, &res)
		return res.GetAnswer()
	}
	then := get()
	if then.GetTask() != task.GetId() || then.GetAgent() != "pilot" || then.GetUser() != "dev" || then.GetHitCount() != 3 ||
		!proto.Equal(then.GetQuery(), ask) {
		t.Errorf("the answer says of itself: %v", then)
	}
	if d := cmp.Diff(first.GetWatermark(), then.GetWatermark(), protocmp.Transform()); d != "" {
		t.Errorf("its watermark is another: %s", d)
	}
	for i, h := range then.GetHits() {
		if d := cmp.Diff(first.GetHits()[i], h.GetShown(), protocmp.Transform()); d != "" {
			t.Errorf("hit %d is not as it was shown: %s", i+1, d)
		}
		if h.GetChanged() || len(h.GetChanges()) > 0 || h.GetNow().GetState() != v1.RecordState_RECORD_STATE_LIVE {
			t.Errorf("hit %d changed although nothing did: %v", i+1, h)
		}
	}

	w.exec(t, `update public.tides set what = 'samovar tide, an hour late', place = null where id = 1`)
	w.exec(t, `delete from public.tides where id = 2`)
	eventually(t, showLimit, "the changes are captured", func() error {
		if hits := agent.query(t, ask).GetHits(); len(hits) != 2 {
			return fmt.Errorf("%d hits", len(hits))
		}
		return nil
	})
	now := get()
	for i, h := range now.GetHits() {
		if d := cmp.Diff(first.GetHits()[i], h.GetShown(), protocmp.Transform()); d != "" {
			t.Errorf("hit %d is not as it was shown: %s", i+1, d)
		}
		id := h.GetShown().GetOrigin().GetKey().GetFields()["id"].GetStringValue()
		switch id {
		case "1":
			want := []*v1.ColumnChange{
				{Column: "place", Was: proto.String("harbour")},
				{Column: "what", Was: proto.String("samovar tide at the harbour"), Now: proto.String("samovar tide, an hour late")},
			}
			if d := cmp.Diff(want, sorted(h.GetChanges()), protocmp.Transform()); d != "" {
				t.Errorf("row 1's changes: %s", d)
			}
			n := h.GetNow()
			if !h.GetChanged() || n.GetVersion() != 2 || n.GetText() != "samovar tide, an hour late" || n.GetState() != v1.RecordState_RECORD_STATE_LIVE ||
				n.GetFreshness().GetState() != v1.FreshnessState_FRESHNESS_STATE_STALE ||
				!slices.Contains(n.GetFreshness().GetReasons(), v1.FreshnessReason_FRESHNESS_REASON_SOURCE_CHANGED) {
				t.Errorf("row 1 now: %v", h)
			}
		case "2":
			n := h.GetNow()
			if !h.GetChanged() || n.GetState() != v1.RecordState_RECORD_STATE_DELETED ||
				!slices.Contains(n.GetFreshness().GetReasons(), v1.FreshnessReason_FRESHNESS_REASON_SOURCE_DELETED) {
				t.Errorf("row 2 now: %v", h)
			}
		default:
			if h.GetChanged() || len(h.GetChanges()) > 0 {
				t.Errorf("row 3 now: %v", h)
			}
		}
	}
	traced(t, w, first.GetAnswerId(), task.GetId())
}

func sorted(cs []*v1.ColumnChange) []*v1.ColumnChange {
	slices.SortFunc(cs, func(a, b *v1.ColumnChange) int { return cmpString(a.GetColumn(), b.GetColumn()) })
	return cs
}

func cmpString(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// traced follows the changed row to its versions and to the answers it fed.
func traced(t *testing.T, w *running, first, task string) {
	t.Helper()
	var trace v1.TraceRecordResponse
	w.operator().must(t, "AuditService/TraceRecord", &v1.TraceRecordRequest{Table: "app.public.tides", Key: idKey("1")}, &trace)
	if n := trace.GetCounts(); n.GetVersions() != 2 || n.GetChunks() == 0 || int(n.GetAnswers()) != len(trace.GetAnswers()) || len(trace.GetAnswers()) < 2 {
		t.Errorf("counts %v with %d answers listed", n, len(trace.GetAnswers()))
	}
	versions := trace.GetVersions()
	if len(versions) != 2 || versions[0].GetText() != "samovar tide, an hour late" || versions[1].GetText() != "samovar tide at the harbour" {
		t.Errorf("versions: %v", versions)
	}
	oldest, newest := trace.GetAnswers()[len(trace.GetAnswers())-1], trace.GetAnswers()[0]
	if oldest.GetAnswerId() != first || oldest.GetTask() != task || oldest.GetVersion() != 1 || !oldest.GetSuperseded() || oldest.GetText() != "samovar tide" {
		t.Errorf("the first answer is traced as %v", oldest)
	}
	if newest.GetVersion() != 2 || newest.GetSuperseded() {
		t.Errorf("the last answer is traced as %v", newest)
	}
	var page v1.TraceRecordResponse
	w.operator().must(t, "AuditService/TraceRecord", &v1.TraceRecordRequest{Table: "app.public.tides", Key: idKey("1"), PageSize: 1}, &page)
	if len(page.GetAnswers()) != 1 || page.GetNextPageToken() == "" || page.GetCounts().GetAnswers() != trace.GetCounts().GetAnswers() {
		t.Errorf("a page of one answer: %v", &page)
	}
	var list v1.ListVersionsResponse
	w.agent().must(t, "MemoryService/ListVersions", &v1.ListVersionsRequest{Table: "app.public.tides", Key: idKey("2")}, &list)
	if vs := list.GetVersions(); len(vs) != 2 || !vs[0].GetDeleted() || vs[1].GetDeleted() || vs[1].GetText() != "samovar tide at the pier" {
		t.Errorf("versions of the deleted row: %v", vs)
	}
	var rec v1.GetRecordResponse
	w.agent().must(t, "MemoryService/GetRecord", &v1.GetRecordRequest{Table: "app.public.tides", Key: idKey("1")}, &rec)
	r := rec.GetRecord()
	if r.GetVersion() != 2 || r.GetState() != v1.RecordState_RECORD_STATE_LIVE || r.GetText() != "samovar tide, an hour late" {
		t.Errorf("row 1 is %v", r)
	}
	if _, isNull := r.GetColumns().GetFields()["place"].GetKind().(*structpb.Value_NullValue); !isNull {
		t.Errorf("SQL null became %v", r.GetColumns().GetFields()["place"])
	}
}

// testSecondServer joins another server by dev.env's variables: it honours the
// same tokens and gives the same answers.
func (w *running) testSecondServer(t *testing.T) {
	t.Parallel()
	w.exec(t, `create table public.moths (id int primary key, what text)`)
	w.exec(t, `insert into public.moths select i, 'hawkmoth number ' || i from generate_series(1, 9) i`)
	w.register(t, &v1.RegisterTableRequest{Table: "public.moths", TextColumns: []string{"what"}})
	c := spawn(t, w.env, "serve", "--listen", "127.0.0.1:0")
	second := &running{url: c.ready(t), env: w.env, http: w.http}
	if second.url == w.url {
		t.Fatal("it is the same server")
	}
	ask := &v1.QueryRequest{Text: "hawkmoth number 4", Tables: []string{"app.public.moths"}}
	here, there := w.agent().query(t, ask), second.agent().query(t, ask)
	simple := cmp.Options{protocmp.Transform(), protocmp.IgnoreFields(&v1.Freshness{}, "behind"), protocmp.IgnoreFields(&v1.Score{}, "final", "recency")}
	if d := cmp.Diff(here.GetHits(), there.GetHits(), simple); d != "" || len(here.GetHits()) == 0 {
		t.Errorf("the second server answers otherwise: %s", d)
	}
	var res v1.GetAnswerResponse
	w.operator().must(t, "AuditService/GetAnswer", &v1.GetAnswerRequest{AnswerId: there.GetAnswerId()}, &res)
	second.operator().must(t, "SourceService/ListSources", &v1.ListSourcesRequest{}, &v1.ListSourcesResponse{})
	if here.GetBudget().GetCalls().GetUsed() >= there.GetBudget().GetCalls().GetUsed() {
		t.Errorf("they count calls apart: %v, %v", here.GetBudget(), there.GetBudget())
	}
}
