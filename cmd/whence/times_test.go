package main

import (
	"testing"

	v1 "github.com/whence-db/whence/proto/gen/whence/v1"
)

// testTimesBeyondTheContract asks for rows whose times no Timestamp can say.
func (w *running) testTimesBeyondTheContract(t *testing.T) {
	t.Parallel()
	w.exec(t, `create table public.epochs (id int primary key, what text, at timestamp)`)
	w.exec(t, `insert into public.epochs values (1, 'the gnomon of the ides', '0044-03-15 BC'), (2, 'the gnomon of the far star', '20000-01-01'),
		(3, 'the gnomon of the yard', '1999-01-01'), (4, 'the gnomon of forever', 'infinity')`)
	w.register(t, &v1.RegisterTableRequest{Table: "public.epochs", TextColumns: []string{"what"}, TimeColumn: "at"})
	var res v1.QueryResponse
	w.agent().must(t, "MemoryService/Query", &v1.QueryRequest{Text: "gnomon", Tables: []string{"app.public.epochs"}}, &res)
	recency := map[string]float64{}
	for _, h := range res.GetHits() {
		id := h.GetOrigin().GetKey().GetFields()["id"].GetStringValue()
		recency[id] = h.GetScore().GetRecency()
		if said := h.GetOrigin().EventTime != nil; said != (id == "3") && id != "4" {
			t.Errorf("row %s has the event time %v", id, h.GetOrigin().GetEventTime())
		}
	}
	if len(recency) != 4 || recency["1"] > 1e-3 || recency["2"] != 1 || recency["3"] > 1e-3 {
		t.Errorf("the recencies are %v", recency)
	}
	for _, id := range []string{"1", "2", "3", "4"} {
		var got v1.GetRecordResponse
		w.agent().must(t, "MemoryService/GetRecord", &v1.GetRecordRequest{Table: "app.public.epochs", Key: keyStruct(map[string]string{"id": id})}, &got)
	}
	var shown v1.GetAnswerResponse
	w.operator().must(t, "AuditService/GetAnswer", &v1.GetAnswerRequest{AnswerId: res.GetAnswerId()}, &shown)
	if len(shown.GetAnswer().GetHits()) != 4 {
		t.Errorf("the answer is kept with %d hits", len(shown.GetAnswer().GetHits()))
	}
	w.cli(t, "query", "gnomon", "--table", "app.public.epochs").is(t, 0, "ides", "far star")
	w.cli(t, "table", "preview", "app", "public.epochs", "--text", "what", "--time", "at").is(t, 0, "ides")
}
