package action

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/whence-db/whence"
)

const valid = `{"name": "ticket.close", "description": "closes a ticket", "tier": "REVERSIBLE", "undoWindow": "5400s",
  "parameters": [{"name": "id", "type": "INTEGER", "required": true}, {"name": "why", "type": "TEXT", "maxLength": 5}, {"name": "n", "type": "NUMBER", "minimum": 0, "maximum": 1.5}],
  "row": {"table": "app.public.tickets", "operation": "UPDATE", "where": {"id": {"parameter": "id"}}, "set": {"state": {"constant": "closed"}, "why": {"parameter": "why"}, "by": {"credential": "user"}}, "columns": ["state"]}}`

const validHTTP = `{"name": "mail.send", "description": "sends", "tier": "REVERSIBLE", "parameters": [{"name": "to", "type": "TEXT", "required": true}],
  "http": {"upstream": "mail", "request": {"method": "POST", "path": "/boxes/{to}/mails", "body": {"a": {"constant": null}}},
    "inverse": {"method": "DELETE", "path": "/mails/{id}", "pathOperands": {"id": {"result": "/id"}}}}}`

const validMemory = `{"name": "keep", "description": "keeps", "tier": "REVERSIBLE", "parameters": [{"name": "text", "type": "TEXT", "required": true}],
  "memory": {"operation": "REMEMBER", "fields": {"text": {"parameter": "text"}}}}`

const validSaga = `{"name": "all", "description": "both", "tier": "REVERSIBLE", "saga": {"steps": [{"step": {"action": "keep", "arguments": {"text": {"constant": "x"}}}}]}}`

// with replaces a value within a JSON text by its path, as in "row.maxRows"; absent
// removes it.
func with(t *testing.T, text, path, value string) Definition {
	t.Helper()
	var doc map[string]any
	if err := json.Unmarshal([]byte(text), &doc); err != nil {
		t.Fatal(err)
	}
	at := doc
	parts := strings.Split(path, "/")
	for _, p := range parts[:len(parts)-1] {
		if at[p] == nil {
			at[p] = map[string]any{}
		}
		at = at[p].(map[string]any)
	}
	last := parts[len(parts)-1]
	if value == "absent" {
		delete(at, last)
	} else {
		at[last] = json.RawMessage(value)
	}
	b, err := json.Marshal(doc)
	if err != nil {
		t.Fatal(err)
	}
	var d Definition
	if err := json.Unmarshal(b, &d); err != nil {
		t.Fatal(err)
	}
	return d
}

func TestValidate(t *testing.T) {
	t.Parallel()
	for _, text := range []string{valid, validHTTP, validMemory, validSaga} {
		if err := with(t, text, "costMicros", "1").Validate(); err != nil {
			t.Errorf("a valid action: %v", err)
		}
	}
	for _, c := range []struct{ text, path, value, field string }{
		{valid, "name", `"Ticket"`, "name"},
		{valid, "name", `"whence.close"`, "name"},
		{valid, "description", `" "`, "description"},
		{valid, "tier", `"NONE"`, "tier"},
		{valid, "tier", `"READ"`, "tier"},
		{valid, "tier", `"IRREVERSIBLE"`, "irreversibleBecause"},
		{valid, "irreversibleBecause", `"because"`, "irreversibleBecause"},
		{valid, "compensation", `{"action": "x"}`, "compensation"},
		{valid, "row", "absent", "run"},
		{valid, "memory", `{"operation": "FORGET"}`, "run"},
		{valid, "parameters", `[{"name": "id", "type": "INTEGER"}]`, "row.where.id"},
		{valid, "parameters", `[{"name": "id", "type": "INTEGER", "required": true}]`, "row.set.why"},
		{valid, "parameters", `[{"name": "Id", "type": "INTEGER"}]`, "parameters[0].name"},
		{valid, "parameters", `[{"name": "id", "type": "WORD"}]`, "parameters[0].type"},
		{valid, "parameters", `[{"name": "id", "type": "TEXT"}, {"name": "id", "type": "TEXT"}]`, "parameters[1].name"},
		{valid, "parameters", `[{"name": "id", "type": "TEXT", "minimum": 1}]`, "parameters[0]"},
		{valid, "parameters", `[{"name": "id", "type": "INTEGER", "maxLength": 1}]`, "parameters[0]"},
		{valid, "parameters", `[{"name": "id", "type": "NUMBER", "minimum": 2, "maximum": 1}]`, "parameters[0]"},
		{valid, "parameters", `[{"name": "id", "type": "TEXT", "values": ["a", "a"]}]`, "parameters[0].values"},
		{valid, "row/table", `"tickets"`, "row.table"},
		{valid, "row/operation", `"TRUNCATE"`, "row.operation"},
		{valid, "row/operation", `"INSERT"`, "row.where"},
		{valid, "row/operation", `"DELETE"`, "row.set"},
		{valid, "row/where", "absent", "row.where"},
		{valid, "row/set", "absent", "row.set"},
		{valid, "row/maxRows", "1001", "row.maxRows"},
		{valid, "row/columns", `["state", "state"]`, "row.columns"},
		{valid, "row/set/state", `{}`, "row.set.state"},
		{valid, "row/set/state", `{"constant": 1, "parameter": "id"}`, "row.set.state"},
		{valid, "row/set/state", `{"credential": "password"}`, "row.set.state"},
		{valid, "row/set/state", `{"result": "/id"}`, "row.set.state"},
		{valid, "row/set/state", `{"constant": "a\u0000b"}`, "row.set.state"},
		{valid, "approvals", "3", "approvals"},
		{valid, "costMicros", "-1", "costMicros"},
		{valid, "timeout", `"301s"`, "timeout"},
		{valid, "undoWindow", `"40000000s"`, "undoWindow"},
		{valid, "approvalWindow", `"700000s"`, "approvalWindow"},
		{validHTTP, "tier", `"READ"`, "tier"},
		{validHTTP, "http/inverse", "absent", "http.inverse"},
		{validHTTP, "http/upstream", `"Mail"`, "http.upstream"},
		{validHTTP, "http/idempotencyHeader", `"a b"`, "http.idempotencyHeader"},
		{validHTTP, "http/request/method", `"HEAD"`, "http.request.method"},
		{validHTTP, "http/request/path", `"/a?b=c"`, "http.request.path"},
		{validHTTP, "http/request/path", `"/a/../b"`, "http.request.path"},
		{validHTTP, "http/request/path", `"/a/{to"`, "http.request.path"},
		{validHTTP, "http/request/path", `"/a/{from}"`, "http.request.path"},
		{validHTTP, "http/request/pathOperands", `{"x": {"constant": 1}}`, "http.request.pathOperands"},
		{validHTTP, "http/request/body", `{"a": {"result": "/id"}}`, "http.request.body.a"},
		{validHTTP, "http/inverse/method", `"GET"`, "http.inverse.method"},
		{validHTTP, "http/inverse/pathOperands", `{"id": {"result": "id"}}`, "http.inverse.pathOperands.id"},
		{validMemory, "memory/operation", `"FORGET"`, "memory.fields"},
		{validMemory, "memory/fields", `{"text": {"parameter": "text"}, "colour": {"constant": 1}}`, "memory.fields"},
		{validMemory, "tier", `"READ"`, "tier"},
		{validSaga, "saga/steps", `[]`, "saga.steps"},
		{validSaga, "saga/steps", `[{"step": {"action": "all"}}]`, "saga.steps[0].step.action"},
	} {
		err := with(t, c.text, c.path, c.value).Validate()
		if refusal(err) != "ACTION_INVALID" || field(err) != c.field {
			t.Errorf("%s = %s: %v about %q, not %q", c.path, c.value, err, field(err), c.field)
		}
	}
	forget := with(t, validMemory, "memory", `{"operation": "FORGET", "fields": {"id": {"parameter": "text"}}}`)
	if err := forget.Validate(); refusal(err) != "ACTION_INVALID" || field(err) != "tier" {
		t.Errorf("forgetting, reversibly: %v", err)
	}
}

// A definition is stored as JSON, and has the same digest when it is read back,
// whatever order it was written in.
func TestDefinitionSurvivesItsJSON(t *testing.T) {
	t.Parallel()
	for _, text := range []string{valid, validHTTP, validMemory, validSaga} {
		d := with(t, text, "timeout", `"0.5s"`)
		b, err := d.Canonical()
		if err != nil {
			t.Fatal(err)
		}
		var back Definition
		if err := json.Unmarshal(b, &back); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(d, back); diff != "" {
			t.Error(diff)
		}
		one, _ := d.Digest()
		two, _ := back.Digest()
		if one != two || one == (whence.Digest{}) {
			t.Errorf("digests %s and %s", one, two)
		}
		d.CostMicros++
		if three, _ := d.Digest(); three == one {
			t.Error("another definition has the same digest")
		}
	}
}

func TestDefaults(t *testing.T) {
	t.Parallel()
	d := with(t, valid, "undoWindow", "absent")
	if d.NeededApprovals() != 0 || d.UndoTime().Hours() != 24 || d.RunTime().Seconds() != 30 || d.ApprovalTime().Hours() != 1 || d.Row.Limit() != 1 {
		t.Errorf("of a reversible action: %d, %v, %v", d.NeededApprovals(), d.UndoTime(), d.RunTime())
	}
	d.Tier = "IRREVERSIBLE"
	if d.NeededApprovals() != 1 || d.UndoTime() != 0 {
		t.Errorf("of an irreversible one: %d, %v", d.NeededApprovals(), d.UndoTime())
	}
	d.Compensation = &Step{Action: "x"}
	if d.NeededApprovals() != 0 || d.UndoTime() == 0 {
		t.Errorf("of one with a compensation: %d, %v", d.NeededApprovals(), d.UndoTime())
	}
}
