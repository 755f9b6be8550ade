package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	sdk "github.com/modelcontextprotocol/go-sdk/mcp"
	"google.golang.org/protobuf/testing/protocmp"

	v1 "github.com/whence-db/whence/proto/gen/whence/v1"
)

// TestMCP speaks to a server that listens with the protocol's own client, and with
// bodies that such a client would not send.
func TestMCP(t *testing.T) {
	t.Parallel()
	w := startDev(t)
	w.exec(t, `create table public.barges (id int primary key, what text)`)
	w.exec(t, `insert into public.barges values (7, 'the barge Perpetua carries gravel upstream')`)
	w.register(t, &v1.RegisterTableRequest{Table: "public.barges", TextColumns: []string{"what"}})
	t.Run("Tools", w.testMCPTools)
	t.Run("Offer", w.testMCPOffer)
	t.Run("SameAsOverConnect", w.testMCPSameAsConnect)
	t.Run("SameJSON", w.testMCPSameJSON)
	t.Run("GivenUp", w.testMCPGivenUp)
	t.Run("Budget", w.testMCPBudget)
	t.Run("Credentials", w.testMCPCredentials)
	t.Run("Proofs", w.testMCPProofs)
	t.Run("NoSessions", w.testMCPNoSessions)
	t.Run("Hostile", w.testMCPHostile)
}

// testMCPTools takes each tool of memory along its main path.
func (w *running) testMCPTools(t *testing.T) {
	agent, task := w.errand(t, 50, "memory:read", "memory:write")
	s := agent.byMCP(t)
	before := w.lastEntry(t)

	var found v1.QueryResponse
	got := use(t, s, "query", map[string]any{"text": "what does Perpetua carry?", "tables": []string{"app.public.barges"}})
	got.into(t, &found)
	if len(found.GetHits()) != 1 || found.GetAnswerId() == "" || found.GetHits()[0].GetOrigin().GetKey().GetFields()["id"].GetStringValue() != "7" {
		t.Fatalf("%s", got.structured)
	}
	hit := found.GetHits()[0]
	got.says(t, "1 hit.", found.GetAnswerId(), "app.public.barges", `{"id":"7"}`, "version 1", "> the barge Perpetua carries gravel upstream",
		fmt.Sprintf("%.3f", hit.GetScore().GetFinal()), strings.TrimPrefix(hit.GetFreshness().GetState().String(), "FRESHNESS_STATE_"), "49 of 50 calls left")

	var looked v1.GetRecordResponse
	got = use(t, s, "record", map[string]any{"table": "app.public.barges", "key": map[string]any{"id": "7"}})
	got.into(t, &looked)
	got.says(t, "app.public.barges", "gravel upstream", `"what":"the barge`)
	if looked.GetRecord().GetVersion() != 1 {
		t.Errorf("%s", got.structured)
	}

	// The same key twice writes once.
	note := map[string]any{"text": "Perpetua is laid up over the winter", "kind": "NOTE_KIND_FACT", "derivedFrom": []string{found.GetAnswerId()}, "idempotencyKey": "winter-1"}
	var kept, again v1.RememberResponse
	got = use(t, s, "remember", note)
	got.into(t, &kept)
	got.says(t, "Kept as a note", "laid up over the winter", kept.GetToken())
	use(t, s, "remember", note).into(t, &again)
	if diff := cmp.Diff(kept.GetRecord().GetKey(), again.GetRecord().GetKey(), protocmp.Transform()); diff != "" {
		t.Errorf("a second note under the same idempotency key: %s", diff)
	}
	use(t, s, "query", map[string]any{"text": "Perpetua winter", "tables": []string{notesTable}, "consistency": map[string]any{"atLeast": kept.GetToken()}}).into(t, &found)
	if len(found.GetHits()) != 1 || found.GetHits()[0].GetOrigin().GetNote().GetTask() != task {
		t.Errorf("the note is not found: %v", found.GetHits())
	}

	var gone v1.ForgetResponse
	key := kept.GetRecord().GetKey().AsMap()
	got = use(t, s, "forget", map[string]any{"key": key, "reason": "the winter is over"})
	got.into(t, &gone)
	got.says(t, "Forgotten: 1 versions")
	f := use(t, s, "record", map[string]any{"table": notesTable, "key": key}).failure(t)
	if f.Code != "not_found" || f.Reason != "RECORD_NOT_FOUND" || f.Message == "" {
		t.Errorf("%+v", f)
	}

	var own v1.GetTaskResponse
	got = use(t, s, "task", nil)
	got.into(t, &own)
	got.says(t, task, "ACTIVE", "> run an errand", "memory:read, memory:write", "of 50 calls left")
	if own.GetTask().GetId() != task {
		t.Errorf("%s", got.structured)
	}

	var calls []string
	for _, e := range w.entriesAfter(t, before, task) {
		calls = append(calls, e.call)
	}
	const m = "whence.v1.MemoryService/"
	if want := []string{m + "Query", m + "GetRecord", m + "Remember", m + "Remember", m + "Query", m + "Forget", m + "GetRecord", "whence.v1.TaskService/GetTask"}; !slices.Equal(calls, want) {
		t.Errorf("entries of %v, want %v", calls, want)
	}
}

// testMCPOffer looks at what clients and models are told of the tools.
func (w *running) testMCPOffer(t *testing.T) {
	agent, task := w.errand(t, 5, "memory:read")
	before := w.lastEntry(t)
	s := agent.byMCP(t)
	if in := s.InitializeResult(); in == nil || in.ServerInfo.Name != "whence" || in.Instructions == "" {
		t.Errorf("%+v", in)
	}
	list, err := s.ListTools(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	type offer struct {
		readOnly, idempotent, destructive, open bool
		takesKey                                bool
	}
	got := map[string]offer{}
	for _, tool := range list.Tools {
		b, err := json.Marshal(tool.InputSchema)
		if err != nil {
			t.Fatal(err)
		}
		var schema struct {
			Type                 string
			AdditionalProperties *bool
			Properties           map[string]struct{ Description string }
		}
		if err := json.Unmarshal(b, &schema); err != nil || schema.Type != "object" || schema.AdditionalProperties == nil || *schema.AdditionalProperties {
			t.Errorf("%s: %v: %s", tool.Name, err, b)
		}
		for name, p := range schema.Properties {
			if p.Description == "" {
				t.Errorf("%s: %s is not described", tool.Name, name)
			}
		}
		_, key := schema.Properties["idempotencyKey"]
		h := tool.Annotations
		got[tool.Name] = offer{h.ReadOnlyHint, h.IdempotentHint, h.DestructiveHint == nil || *h.DestructiveHint, h.OpenWorldHint == nil || *h.OpenWorldHint, key}
		if tool.Description == "" || tool.Title == "" {
			t.Errorf("%s is not described", tool.Name)
		}
	}
	reads := offer{readOnly: true, destructive: true} // which has no meaning beside readOnly
	if diff := cmp.Diff(map[string]offer{
		"query": reads, "record": reads, "list_actions": reads, "preview": reads, "task": reads,
		"remember": {takesKey: true},
		"forget":   {idempotent: true, destructive: true, takesKey: true},
		"execute":  {idempotent: true, destructive: true, open: true, takesKey: true},
		"undo":     {idempotent: true, destructive: true, open: true, takesKey: true},
	}, got, cmp.AllowUnexported(offer{})); diff != "" {
		t.Error(diff)
	}
	if entries := w.entriesAfter(t, before, task); len(entries) != 0 {
		t.Errorf("looking at the tools is no call, but was recorded: %v", entries)
	}
}

// testMCPSameAsConnect makes the same calls over Connect and as tools, in tasks that
// are alike, and holds that both are answered, refused and recorded alike.
func (w *running) testMCPSameAsConnect(t *testing.T) {
	over, overTask := w.errand(t, 50, "memory:read")
	by, byTask := w.errand(t, 50, "memory:read")
	s := by.byMCP(t)
	before := w.lastEntry(t)
	for _, c := range []struct{ tool, call, args string }{
		{"query", "MemoryService/Query", `{"text":"gravel","tables":["app.public.barges"],"limit":3,"recency":{"halfLife":"86400s"}}`},
		{"query", "MemoryService/Query", `{"text":" "}`},
		{"query", "MemoryService/Query", `{"text":"gravel","limit":1000,"tables":[""]}`},
		{"query", "MemoryService/Query", `{"text":"gravel","filter":{"colour":"blue"},"tables":["app.public.barges"]}`},
		{"query", "MemoryService/Query", `{"text":"gravel","tables":["app.public.nothing"]}`},
		{"query", "MemoryService/Query", `{"text":7}`},
		{"query", "MemoryService/Query", `{"text":"gravel","consistency":{"maxstaleness":"1s"}}`},
		{"record", "MemoryService/GetRecord", `{"table":"app.public.barges","key":{"id":"8"}}`},
		{"record", "MemoryService/GetRecord", `{"table":"app.public.barges","key":{"id":7}}`},
		{"remember", "MemoryService/Remember", `{"text":"a note"}`},
		{"forget", "MemoryService/Forget", `{"key":{"id":"1"}}`},
		{"list_actions", "ActionService/ListActions", `{}`},
		{"preview", "ActionService/Preview", `{"action":"paint"}`},
		{"execute", "ActionService/Execute", `{"action":"paint","arguments":{"colour":"blue"}}`},
		{"undo", "ActionService/Undo", `{"id":"1"}`},
		{"task", "TaskService/GetTask", `{"id":"no such task"}`},
	} {
		var args map[string]any
		if err := json.Unmarshal([]byte(c.args), &args); err != nil {
			t.Fatal(err)
		}
		got := use(t, s, c.tool, args)
		_, err := over.post(t.Context(), c.call, []byte(c.args))
		var r *refusal
		if !errors.As(err, &r) {
			if err != nil || got.failed {
				t.Errorf("%s %s: %v over Connect, %s", c.tool, c.args, err, got.text)
			}
			continue
		}
		f := got.failure(t)
		if f.Code != r.Code || f.Reason != r.reason() || f.Reason == "" || f.Message == "" {
			t.Errorf("%s %s: %+v, over Connect %v", c.tool, c.args, f, r)
		}
		if f.Reason != "MALFORMED_REQUEST" && f.Message != r.Message { // which has the position, too
			t.Errorf("%s %s: %q, over Connect %q", c.tool, c.args, f.Message, r.Message)
		}
		got.says(t, f.Code, f.Reason, f.Message)
		if f.Reason == "INVALID_FIELD" && (len(f.FieldViolations) != 1 || f.FieldViolations[0].Field == "" || len(f.Metadata) == 0) {
			t.Errorf("%s %s: what is wrong is not said: %+v", c.tool, c.args, f)
		}
	}
	want, got := w.entriesAfter(t, before, overTask), w.entriesAfter(t, before, byTask)
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(entry{})); diff != "" || len(got) != 16 {
		t.Errorf("entries over Connect (-) and of tools (+): %s", diff)
	}
}

// testMCPSameJSON holds structured content against the reply of plain HTTP, member by
// member.
func (w *running) testMCPSameJSON(t *testing.T) {
	agent, _ := w.errand(t, 5, "memory:read")
	const args = `{"table":"app.public.barges","key":{"id":"7"}}`
	b, err := agent.post(t.Context(), "MemoryService/GetRecord", []byte(args))
	if err != nil {
		t.Fatal(err)
	}
	read := func(b []byte) map[string]any {
		var m map[string]any
		if err := json.Unmarshal(b, &m); err != nil {
			t.Fatal(err)
		}
		delete(m, "budget")
		delete(m["record"].(map[string]any)["freshness"].(map[string]any), "behind")
		return m
	}
	got := w.mcp(t, "POST", toolCall("record", args), map[string][]string{"Authorization": {"Bearer " + agent.token}}).tool(t)
	if diff := cmp.Diff(read(b), read(got.structured)); diff != "" {
		t.Error(diff)
	}
}

// testMCPGivenUp holds that a call ends when its client goes, as over Connect.
func (w *running) testMCPGivenUp(t *testing.T) {
	agent, task := w.errand(t, 5, "memory:read")
	s := agent.byMCP(t)
	before := w.lastEntry(t)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err := s.CallTool(ctx, &sdk.CallToolParams{Name: "query", Arguments: map[string]any{
		"text": "gravel", "tables": []string{"app.public.barges"}, "consistency": map[string]any{"atLeast": "7FFFFFFF/0"}}})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("waiting for what never comes: %v", err)
	}
	eventually(t, 2*time.Second, "the call is recorded as given up", func() error {
		if got := w.entriesAfter(t, before, task); len(got) != 1 || got[0].decision != "FAILED" || got[0].reason != "CANCELED" {
			return fmt.Errorf("%v", got)
		}
		return nil
	})
}

func (w *running) testMCPBudget(t *testing.T) {
	agent, task := w.errand(t, 1, "memory:read")
	s := agent.byMCP(t)
	use(t, s, "query", map[string]any{"text": "gravel"}).says(t, "0 of 1 calls left")
	got := use(t, s, "query", map[string]any{"text": "gravel"})
	f := got.failure(t)
	if f.Code != "resource_exhausted" || f.Reason != "BUDGET_EXHAUSTED" || len(f.Quota) != 1 || f.Quota[0].Subject != "task:"+task || f.Metadata["task"] != task {
		t.Errorf("%+v", f)
	}
	got.says(t, "BUDGET_EXHAUSTED", task)
	use(t, s, "task", nil).says(t, "0 of 1 calls left") // which costs nothing
}

// testMCPNoSessions holds that nothing but the credential of a request decides whom it
// is answered for.
func (w *running) testMCPNoSessions(t *testing.T) {
	first, firstTask := w.errand(t, 5, "memory:read")
	second, secondTask := w.errand(t, 5, "memory:read")
	as := func(c caller, more map[string][]string) map[string][]string {
		h := map[string][]string{"Authorization": {"Bearer " + c.token}}
		for name, values := range more {
			h[name] = values
		}
		return h
	}
	const initialize = `{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-06-18","capabilities":{},"clientInfo":{"name":"test","version":"1"}}}`
	opened := w.mcp(t, "POST", initialize, as(first, nil))
	if opened.status != 200 || opened.header.Get("Mcp-Session-Id") != "" {
		t.Fatalf("%+v", opened)
	}
	if s := first.byMCP(t); s.ID() != "" {
		t.Errorf("a session %q", s.ID())
	}
	for _, c := range []struct {
		as   caller
		task string
	}{{first, firstTask}, {second, secondTask}, {first, firstTask}} {
		var own v1.GetTaskResponse
		w.mcp(t, "POST", toolCall("task", "{}"), as(c.as, map[string][]string{"Mcp-Session-Id": {"of-the-first"}})).tool(t).into(t, &own)
		if own.GetTask().GetId() != c.task {
			t.Errorf("answered for %s, want %s", own.GetTask().GetId(), c.task)
		}
	}
	if got := w.mcp(t, "DELETE", "", as(second, map[string][]string{"Mcp-Session-Id": {"of-the-first"}})); got.status != 405 {
		t.Errorf("%+v", got)
	}
}
