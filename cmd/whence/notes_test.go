package main

import (
	"bytes"
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "github.com/whence-db/whence/proto/gen/whence/v1"
)

const notesTable = "whence.notes"

// remember writes a note under an idempotency key; empty: under none.
func (c caller) remember(t *testing.T, idempotency string, req *v1.RememberRequest) (*v1.RememberResponse, []byte, error) {
	t.Helper()
	body, err := protojson.Marshal(req)
	if err != nil {
		t.Fatal(err)
	}
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, c.url+"/whence.v1.MemoryService/Remember", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	if idempotency != "" {
		r.Header.Set("Idempotency-Key", idempotency)
	}
	b, err := c.do(r)
	if err != nil {
		return nil, nil, err
	}
	var res v1.RememberResponse
	if err := protojson.Unmarshal(b, &res); err != nil {
		t.Fatal(err)
	}
	return &res, b, nil
}

func (c caller) note(t *testing.T, req *v1.RememberRequest) *v1.RememberResponse {
	t.Helper()
	res, _, err := c.remember(t, "", req)
	if err != nil {
		t.Fatal(err)
	}
	return res
}

// about asks within a subject until it is found as shows wants it.
func (c caller) about(t *testing.T, what string, req *v1.QueryRequest, shows func([]*v1.Hit) error) {
	t.Helper()
	eventually(t, showLimit, what, func() error { return shows(c.query(t, req).GetHits()) })
}

// testNotes follows notes from the first word to the last trace.
func (w *running) testNotes(t *testing.T) {
	t.Parallel()
	agent, _ := w.agent().delegate(t, &v1.DelegateRequest{Purpose: "notes", Agent: "helper", Budget: &v1.BudgetLimits{Calls: proto.Uint32(2000)},
		Scope: &v1.Scope{AllTables: true, Subjects: []string{"marta", "iwo"}, Actions: []string{"memory:read", "memory:write"}}})

	first := agent.note(t, &v1.RememberRequest{Text: "Marta takes the quince marmalade without sugar", Kind: v1.NoteKind_NOTE_KIND_PREFERENCE,
		Subject: "marta", Key: "marmalade", Attributes: &structpb.Struct{Fields: map[string]*structpb.Value{"meal": structpb.NewStringValue("breakfast")}}})
	r := first.GetRecord()
	if r.GetTable() != notesTable || r.GetVersion() != 1 || r.GetNote().GetKind() != v1.NoteKind_NOTE_KIND_PREFERENCE ||
		r.GetNote().GetAgent() == "" || r.GetNote().GetTask() == "" || r.GetNote().GetUser() == "" || first.GetToken() == "" {
		t.Fatalf("%v", first)
	}
	ask := &v1.QueryRequest{Text: "quince marmalade sugar", Subjects: []string{"marta"}, Consistency: &v1.Consistency{AtLeast: first.GetToken()}}
	hits := agent.query(t, ask).GetHits()
	if len(hits) != 1 || hits[0].GetOrigin().GetTable() != notesTable || hits[0].GetOrigin().GetSource() != "whence" ||
		hits[0].GetOrigin().GetNote().GetKey() != "marmalade" || hits[0].GetAttributes().GetFields()["meal"].GetStringValue() != "breakfast" {
		t.Fatalf("a note must be found as soon as it is written: %v", hits)
	}
	agent.about(t, "fresh once embedded", ask, func(hits []*v1.Hit) error {
		if len(hits) != 1 || hits[0].GetFreshness().GetState() != fresh || hits[0].GetEmbedding() == nil {
			return fmt.Errorf("%v", hits)
		}
		return nil
	})
	verified := agent.query(t, &v1.QueryRequest{Text: "quince marmalade", Subjects: []string{"marta"}, Consistency: &v1.Consistency{Verify: true}})
	if h := verified.GetHits(); len(h) != 1 || h[0].GetFreshness().GetState() != v1.FreshnessState_FRESHNESS_STATE_VERIFIED {
		t.Errorf("%v", h)
	}

	second := agent.note(t, &v1.RememberRequest{Text: "Marta takes the quince marmalade with honey now", Subject: "marta", Key: "marmalade"})
	if second.GetRecord().GetVersion() != 2 || !proto.Equal(second.GetRecord().GetKey(), r.GetKey()) {
		t.Errorf("the same key must supersede: %v", second.GetRecord())
	}
	if other := agent.note(t, &v1.RememberRequest{Text: "Iwo has no opinion of marmalade", Subject: "iwo", Key: "marmalade"}); other.GetRecord().GetVersion() != 1 {
		t.Errorf("a key is of one subject: %v", other.GetRecord())
	}
	var versions v1.ListVersionsResponse
	agent.must(t, "MemoryService/ListVersions", &v1.ListVersionsRequest{Table: notesTable, Key: r.GetKey()}, &versions)
	if len(versions.GetVersions()) != 2 || versions.GetVersions()[1].GetText() != r.GetText() {
		t.Errorf("%v", versions.GetVersions())
	}
	byKind := agent.query(t, &v1.QueryRequest{Text: "marmalade", Tables: []string{notesTable}, Filter: map[string]string{"kind": "PREFERENCE"}})
	if len(byKind.GetHits()) != 0 {
		t.Errorf("the newest version is free text, got %v", byKind.GetHits())
	}
	w.testForget(t, agent, second)
}

// testForget removes a note and looks for what is left of it.
func (w *running) testForget(t *testing.T, agent caller, note *v1.RememberResponse) {
	t.Helper()
	answer := agent.query(t, &v1.QueryRequest{Text: "quince marmalade honey", Subjects: []string{"marta"}})
	if len(answer.GetHits()) != 1 {
		t.Fatalf("%v", answer.GetHits())
	}
	var gone v1.ForgetResponse
	agent.must(t, "MemoryService/Forget", &v1.ForgetRequest{Key: note.GetRecord().GetKey(), Reason: "asked to"}, &gone)
	if gone.GetVersions() != 2 || gone.GetChunks() < 1 {
		t.Errorf("%v", &gone)
	}
	if hits := agent.query(t, &v1.QueryRequest{Text: "quince marmalade", Subjects: []string{"marta"}}).GetHits(); len(hits) != 0 {
		t.Errorf("forgotten, and found: %v", hits)
	}
	for _, call := range []string{"MemoryService/GetRecord", "MemoryService/Forget"} {
		req := proto.Message(&v1.GetRecordRequest{Table: notesTable, Key: note.GetRecord().GetKey()})
		if call == "MemoryService/Forget" {
			req = &v1.ForgetRequest{Key: note.GetRecord().GetKey()}
		}
		if got := agent.refused(t, call, req).reason(); got != "RECORD_NOT_FOUND" {
			t.Errorf("%s: %s", call, got)
		}
	}
	var kept v1.GetAnswerResponse
	w.operator().must(t, "AuditService/GetAnswer", &v1.GetAnswerRequest{AnswerId: answer.GetAnswerId()}, &kept)
	shown := kept.GetAnswer().GetHits()[0].GetShown()
	if !shown.GetErased() || shown.GetText() != "" || shown.GetOrigin().GetDigest() != answer.GetHits()[0].GetOrigin().GetDigest() || shown.GetOrigin().GetNote() != nil {
		t.Errorf("lineage keeps digests only: %v", shown)
	}
	again := agent.note(t, &v1.RememberRequest{Text: "Marta does not like marmalade", Subject: "marta", Key: "marmalade"})
	if again.GetRecord().GetVersion() != 1 {
		t.Errorf("nothing of the forgotten note may come back: %v", again.GetRecord())
	}
}

// testNotesOnce writes under idempotency keys, also at the same time.
func (w *running) testNotesOnce(t *testing.T) {
	t.Parallel()
	agent, _ := w.agent().delegate(t, &v1.DelegateRequest{Purpose: "once", Agent: "helper", Budget: &v1.BudgetLimits{Calls: proto.Uint32(100)},
		Scope: &v1.Scope{AllTables: true, Subjects: []string{"once"}, Actions: []string{"memory:read", "memory:write"}}})
	req := &v1.RememberRequest{Text: "the vermilion ledger was closed", Subject: "once"}
	var mu sync.Mutex
	var bodies []string
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			for {
				_, b, err := agent.remember(t, "ledger-1", req)
				if r, ok := err.(*refusal); ok && r.reason() == "IN_FLIGHT" { //nolint:errorlint // as the client made it
					time.Sleep(20 * time.Millisecond)
					continue
				}
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					t.Error(err)
				}
				bodies = append(bodies, string(b))
				return
			}
		})
	}
	group.Wait()
	for _, b := range bodies {
		if b != bodies[0] {
			t.Errorf("a replay differs:\n%s\n%s", b, bodies[0])
		}
	}
	var task v1.GetTaskResponse
	agent.must(t, "TaskService/GetTask", &v1.GetTaskRequest{}, &task)
	if used := 100 - task.GetTask().GetBudget().GetCalls().GetRemaining(); used != 1 {
		t.Errorf("replays are free, yet %d calls were charged", used)
	}
	if hits := agent.query(t, &v1.QueryRequest{Text: "vermilion ledger", Subjects: []string{"once"}}).GetHits(); len(hits) != 1 {
		t.Errorf("written more than once: %v", hits)
	}
	// A task beside it that may do less learns nothing from the key, which is the tree's.
	beside, _ := w.agent().delegate(t, &v1.DelegateRequest{Purpose: "beside", Agent: "helper", Budget: &v1.BudgetLimits{Calls: proto.Uint32(10)},
		Scope: &v1.Scope{AllTables: true, Subjects: []string{"beside"}, Actions: []string{"memory:read", "memory:write"}}})
	if _, _, err := beside.remember(t, "ledger-1", req); err == nil || err.(*refusal).reason() != "IDEMPOTENCY_KEY_REUSED" { //nolint:errorlint // as the client made it
		t.Errorf("another task's key: %v", err)
	}
	if got, _, err := beside.remember(t, "ledger-2", &v1.RememberRequest{Text: "its own", Subject: "beside"}); err != nil || got.GetRecord().GetText() != "its own" {
		t.Errorf("a key of its own: %v, %v", got, err)
	}
	// One that may do all that the other may gets what it got.
	if got, _, err := w.agent().remember(t, "ledger-1", req); err != nil || got.GetRecord().GetText() != req.GetText() {
		t.Errorf("the key, from above: %v, %v", got, err)
	}
	// First writers of one key follow each other.
	for i := range 8 {
		group.Go(func() {
			agent.note(t, &v1.RememberRequest{Text: fmt.Sprintf("edition %d of the ledger", i), Subject: "once", Key: "edition"})
		})
	}
	group.Wait()
	last := agent.note(t, &v1.RememberRequest{Text: "the last edition of the ledger", Subject: "once", Key: "edition"})
	if last.GetRecord().GetVersion() != 9 {
		t.Errorf("want the ninth version, got %v", last.GetRecord())
	}
	_, _, err := agent.remember(t, "ledger-1", &v1.RememberRequest{Text: "another text", Subject: "once"})
	if r, ok := err.(*refusal); !ok || r.reason() != "IDEMPOTENCY_KEY_REUSED" { //nolint:errorlint // as the client made it
		t.Errorf("%v", err)
	}
}

// testNotesRestOn writes notes upon rows and notes, and changes what they rest on.
func (w *running) testNotesRestOn(t *testing.T) {
	t.Parallel()
	w.exec(t, `create table public.tariff (id int primary key, what text not null, who text not null)`)
	w.exec(t, `insert into public.tariff values (1, 'the heliotrope tariff is nine crowns', 'rests'), (2, 'the mauve tariff is two crowns', 'rests')`)
	w.register(t, &v1.RegisterTableRequest{Table: "public.tariff", TextColumns: []string{"what"}, SubjectColumn: "who"})
	scope := func(tables ...string) *v1.Scope {
		return &v1.Scope{Tables: tables, Subjects: []string{"rests"}, Actions: []string{"memory:read", "memory:write"}}
	}
	agent, _ := w.agent().delegate(t, &v1.DelegateRequest{Purpose: "rest", Agent: "helper", Budget: &v1.BudgetLimits{Calls: proto.Uint32(2000)}, Scope: scope("app.public.tariff", notesTable)})
	blind, _ := w.agent().delegate(t, &v1.DelegateRequest{Purpose: "blind", Agent: "helper", Budget: &v1.BudgetLimits{Calls: proto.Uint32(2000)}, Scope: scope(notesTable)})

	seen := agent.query(t, &v1.QueryRequest{Text: "heliotrope tariff", Limit: proto.Uint32(1)})
	dear := agent.note(t, &v1.RememberRequest{Text: "heliotrope is dear, so I advise against it", Kind: v1.NoteKind_NOTE_KIND_FACT, Subject: "rests",
		DerivedFrom: []string{seen.GetHits()[0].GetChunkId()}})
	notes := &v1.QueryRequest{Text: "heliotrope advice", Tables: []string{notesTable}, Consistency: &v1.Consistency{AtLeast: dear.GetToken()}}
	answer := agent.query(t, notes)
	agent.note(t, &v1.RememberRequest{Text: "the advice upon heliotrope was passed on", Subject: "rests", DerivedFrom: []string{answer.GetAnswerId()}})

	states := func(want v1.FreshnessState, reason v1.FreshnessReason) func([]*v1.Hit) error {
		return func(hits []*v1.Hit) error {
			if len(hits) != 2 {
				return fmt.Errorf("want both notes, got %v", hits)
			}
			for _, h := range hits {
				f := h.GetFreshness()
				if f.GetState() != want || (reason == 0) != (len(f.GetReasons()) == 0) || reason != 0 && f.GetReasons()[0] != reason {
					return fmt.Errorf("%q is %v", h.GetText(), f)
				}
			}
			return nil
		}
	}
	agent.about(t, "notes are fresh", notes, states(fresh, 0))
	self := agent.note(t, &v1.RememberRequest{Text: "sepia is the colour of the year", Subject: "rests", Key: "self"})
	sepia := &v1.QueryRequest{Text: "sepia colour", Tables: []string{notesTable}, Limit: proto.Uint32(1), Consistency: &v1.Consistency{AtLeast: self.GetToken()}}
	agent.note(t, &v1.RememberRequest{Text: "sepia is the colour of last year", Subject: "rests", Key: "self", DerivedFrom: []string{agent.query(t, sepia).GetAnswerId()}})
	agent.about(t, "a note written anew from itself is fresh", sepia, func(hits []*v1.Hit) error {
		if len(hits) != 1 || hits[0].GetFreshness().GetState() != fresh {
			return fmt.Errorf("%v", hits)
		}
		return nil
	})
	hidden := states(v1.FreshnessState_FRESHNESS_STATE_UNKNOWN, v1.FreshnessReason_FRESHNESS_REASON_EVIDENCE_OUT_OF_SCOPE)
	blind.about(t, "who cannot see the evidence cannot rely on the notes", notes, hidden)
	w.exec(t, `update public.tariff set what = 'the mauve tariff is three crowns' where id = 2`)
	w.exec(t, `update public.tariff set what = 'the heliotrope tariff is one crown' where id = 1`)
	agent.about(t, "the evidence has changed", notes, states(v1.FreshnessState_FRESHNESS_STATE_STALE, v1.FreshnessReason_FRESHNESS_REASON_EVIDENCE_CHANGED))
	blind.about(t, "and nobody else learns of it", notes, hidden)
	only := proto.CloneOf(notes)
	only.FreshOnly = true
	if hits := agent.query(t, only).GetHits(); len(hits) != 0 {
		t.Errorf("freshOnly: %v", hits)
	}
	for _, id := range []string{"0193b1de-0000-7000-8000-000000000000", "999999999", "a row"} {
		if r := agent.refused(t, "MemoryService/Remember", &v1.RememberRequest{Text: "x", Subject: "rests", DerivedFrom: []string{id}}); r.reason() != "EVIDENCE_UNKNOWN" {
			t.Errorf("%s: %v", id, r)
		}
	}
	if r := blind.refused(t, "MemoryService/Remember", &v1.RememberRequest{Text: "x", Subject: "rests", DerivedFrom: []string{seen.GetHits()[0].GetChunkId()}}); r.reason() != "EVIDENCE_UNKNOWN" {
		t.Errorf("another task's chunk: %v", r)
	}
}

// testNotesOfThePast asks for notes as of a moment within a scope of attributes, and
// replays a call whose note has been forgotten.
func (w *running) testNotesOfThePast(t *testing.T) {
	t.Parallel()
	agent, _ := w.agent().delegate(t, &v1.DelegateRequest{Purpose: "past", Agent: "helper", Budget: &v1.BudgetLimits{Calls: proto.Uint32(2000)},
		Scope: &v1.Scope{AllTables: true, AllSubjects: true, Filter: map[string]string{"team": "puce"}, Actions: []string{"memory:read", "memory:write"}}})
	first := agent.note(t, &v1.RememberRequest{Text: "the puce walrus is asleep", Key: "walrus", Kind: v1.NoteKind_NOTE_KIND_EVENT})
	if team := first.GetRecord().GetAttributes().GetFields()["team"].GetStringValue(); team != "puce" {
		t.Errorf("the scope's attribute is filled in: %q", team)
	}
	then := first.GetRecord().GetCommitTime().AsTime().Add(time.Millisecond)
	time.Sleep(20 * time.Millisecond)
	agent.note(t, &v1.RememberRequest{Text: "the puce walrus is awake", Key: "walrus"})
	for _, filter := range []map[string]string{nil, {"team": "puce"}} {
		hits := agent.query(t, &v1.QueryRequest{Text: "puce walrus", Tables: []string{notesTable}, Filter: filter, AsOf: timestamppb.New(then)}).GetHits()
		if len(hits) != 1 || hits[0].GetText() != "the puce walrus is asleep" {
			t.Errorf("as of then, by %v: %v", filter, hits)
			continue
		}
		if h := hits[0]; h.GetOrigin().GetNote().GetKind() != v1.NoteKind_NOTE_KIND_EVENT || h.GetAttributes().GetFields()["team"].GetStringValue() != "puce" {
			t.Errorf("it is not told as it was noted then: %v", h)
		}
	}
	brief, _, err := agent.remember(t, "brief", &v1.RememberRequest{Text: "soon forgotten", Key: "brief"})
	if err != nil {
		t.Fatal(err)
	}
	agent.must(t, "MemoryService/Forget", &v1.ForgetRequest{Key: brief.GetRecord().GetKey()}, &v1.ForgetResponse{})
	agent.note(t, &v1.RememberRequest{Text: "written afterwards", Key: "brief"})
	replayed, _, err := agent.remember(t, "brief", &v1.RememberRequest{Text: "soon forgotten", Key: "brief"})
	if err != nil || replayed.GetRecord().GetText() != "" || replayed.GetRecord().GetState() != v1.RecordState_RECORD_STATE_DELETED {
		t.Errorf("a replay of what is forgotten: %v, %v", replayed, err)
	}
}

// testNotesEnd writes a note that ends.
func (w *running) testNotesEnd(t *testing.T) {
	t.Parallel()
	agent, _ := w.agent().delegate(t, &v1.DelegateRequest{Purpose: "end", Agent: "helper", Budget: &v1.BudgetLimits{Calls: proto.Uint32(2000)},
		Scope: &v1.Scope{AllTables: true, Subjects: []string{"end"}, Actions: []string{"memory:read", "memory:write"}}})
	ends := time.Now().Add(3 * time.Second)
	brief := agent.note(t, &v1.RememberRequest{Text: "the cerise awning is up until noon", Subject: "end", Key: "awning", ExpireTime: timestamppb.New(ends)})
	ask := &v1.QueryRequest{Text: "cerise awning", Consistency: &v1.Consistency{AtLeast: brief.GetToken()}}
	if hits := agent.query(t, ask).GetHits(); len(hits) != 1 && time.Now().Before(ends) {
		t.Errorf("%v", hits)
	}
	agent.about(t, "it ends", ask, func(hits []*v1.Hit) error {
		if len(hits) > 0 {
			return fmt.Errorf("%v", hits)
		}
		return nil
	})
	if time.Now().Before(ends) {
		t.Error("it was gone before its end")
	}
	if r := agent.refused(t, "MemoryService/GetRecord", &v1.GetRecordRequest{Table: notesTable, Key: brief.GetRecord().GetKey()}); r.reason() != "RECORD_NOT_FOUND" {
		t.Errorf("%v", r)
	}
	if r := agent.refused(t, "MemoryService/Remember", &v1.RememberRequest{Text: "x", Subject: "end", ExpireTime: timestamppb.New(ends)}); r.reason() != "EXPIRE_TIME_PAST" {
		t.Errorf("%v", r)
	}
	// The key of a note that has ended writes a note without end.
	again := agent.note(t, &v1.RememberRequest{Text: "the cerise awning stays up", Subject: "end", Key: "awning"})
	if again.GetRecord().GetVersion() != 1 {
		t.Errorf("what has ended came back: %v", again.GetRecord())
	}
	if hits := agent.query(t, &v1.QueryRequest{Text: "cerise awning"}).GetHits(); len(hits) != 1 {
		t.Errorf("%v", hits)
	}
	w.cli(t, "remember", "the cerise awning is down", "--subject", "cli", "--kind", "event").is(t, 0, "remembered as whence.notes")
}
