package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/whence-db/whence/proto/gen/whence/v1"
)

const actionsYAML = `
version: 1
actions:
  - name: loan.extend
    description: gives a loan more time
    tier: TIER_REVERSIBLE
    parameters:
      - {name: id, type: PARAMETER_TYPE_INTEGER, required: true}
      - {name: days, type: PARAMETER_TYPE_INTEGER, minimum: 1, maximum: 30}
    row:
      table: app.public.loans
      operation: ROW_OPERATION_UPDATE
      where: {id: {parameter: id}}
      set: {days: {parameter: days}, seen: {constant: null}}
      columns: [days]
  - name: loan.look
    description: reads a loan
    tier: TIER_READ
    parameters: [{name: id, type: PARAMETER_TYPE_INTEGER, required: true}]
    row: {table: app.public.loans, operation: ROW_OPERATION_SELECT, where: {id: {parameter: id}}}
`

// testActions registers actions from files as the documentation tells it.
func (w *running) testActions(t *testing.T) {
	t.Parallel()
	w.exec(t, `create table public.loans (id int primary key, what text, days int, seen date)`)
	w.register(t, &v1.RegisterTableRequest{Table: "public.loans", TextColumns: []string{"what"}})
	write := func(name, content string) string {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	file := write("actions.yaml", actionsYAML)
	w.cli(t, "action", "register", file).is(t, 0, "loan.extend: version 1, new", "loan.look: version 1, new")
	w.cli(t, "action", "register", file).is(t, 0, "loan.extend: version 1, unchanged", "loan.look: version 1, unchanged")
	longer := write("actions.yaml", strings.Replace(actionsYAML, "maximum: 30", "maximum: 60", 1))
	w.cli(t, "action", "register", longer, "--json").is(t, 0, `"name": "loan.extend"`, `"version": 2`, `"change": "changed"`, `"unchanged"`)
	w.cli(t, "action", "list").is(t, 0, "ACTION", "loan.extend", "update app.public.loans", "id days?", "REVERSIBLE")
	w.cli(t, "action").is(t, 0, "loan.look")
	w.cli(t, "action", "show", "loan.extend").is(t, 0, "digest: ", "60", `"constant"`)
	var shown v1.GetRegisteredActionResponse
	w.cli(t, "action", "show", "loan.extend", "--json").message(t, &shown)
	if a := shown.GetAction(); a.GetVersion() != 2 || a.GetRow().GetSet()["days"].GetParameter() != "days" {
		t.Errorf("shown as %v", a)
	}
	w.cli(t, "action", "unregister", "loan.extend").is(t, 0, "out of use")
	w.cli(t, "action", "show", "loan.extend").is(t, 1, "ACTION_NOT_FOUND")
	w.cli(t, "action", "register", file).is(t, 0, "loan.extend: version 3, new", "loan.look: version 1, unchanged")

	const look = `{"name": "look", "description": "x", "tier": "TIER_READ", "row": {"table": "app.public.loans", "operation": "ROW_OPERATION_SELECT", "where": {"id": {"constant": 1}}}}`
	for name, c := range map[string]struct{ content, says string }{
		"unknown at the top":    {`{"version": 1, "acts": [], "actions": [` + look + `]}`, "acts"},
		"unknown in an action":  {`{"version": 1, "actions": [{"name": "x", "colour": "red"}]}`, "colour"},
		"unknown in an operand": {"version: 1\nactions: [{name: x, row: {where: {id: {param: x}}}}]", "param"},
		"another version":       {`{"version": 2, "actions": [` + look + `]}`, "reads version 1"},
		"no actions":            {`{"version": 1}`, "holds no actions"},
		"neither":               {"version: [", "neither JSON nor YAML"},
		"two documents":         {"version: 1\n---\nversion: 1", "more than one document"},
	} {
		if out := w.cli(t, "action", "register", write("bad", c.content)); out.status != 1 || !strings.Contains(out.err, c.says) {
			t.Errorf("%s: %+v does not say %q", name, out, c.says)
		}
	}
	// What comes before a wrong one is registered, and said to be.
	half := write("half.json", `{"version": 1, "actions": [`+look+`, `+strings.Replace(strings.Replace(look, `"look"`, `"look.else"`, 1), `"id"`, `"absent"`, 1)+`]}`)
	w.cli(t, "action", "register", half).is(t, 1, "look: version 1, new", `"look.else"`, "ACTION_INVALID", "absent")
	w.cli(t, "action", "show", "look").is(t, 0)
	w.cli(t, "action", "show", "look.else").is(t, 1, "ACTION_NOT_FOUND")
}

// What the documentation shows is a file of actions.
func TestDocumentedActions(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile("../../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), "## Actions")
	_, rest, _ = strings.Cut(rest, "```yaml\n")
	example, _, found := strings.Cut(rest, "```")
	actions, err := parseActions("the documentation", []byte(example))
	if err != nil || !found || len(actions) != 1 || actions[0].GetRow().GetSet()["reason"].GetParameter() != "why" {
		t.Errorf("%v, %v", actions, err)
	}
}
