package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"

	"connectrpc.com/connect/v2"
	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"

	v1 "github.com/whence-db/whence/proto/gen/whence/v1"
	"github.com/whence-db/whence/proto/gen/whence/v1/whencev1connect"
)

type actionCmd struct {
	Register   actionRegister   `cmd:"" help:"Register the actions of a file, one after the other."`
	List       actionList       `cmd:"" default:"withargs" help:"List registered actions."`
	Show       actionShow       `cmd:"" help:"Show one action with its definition."`
	Unregister actionUnregister `cmd:"" help:"Take an action out of use."`
	Preview    actionPreview    `cmd:"" help:"As an agent: show what an action would do."`
	Run        actionRun        `cmd:"" help:"As an agent: run an action."`
	Status     actionStatus     `cmd:"" help:"As an agent: show an execution."`
	Undo       actionUndo       `cmd:"" help:"As an agent: take an execution back."`
}

type actionRegister struct {
	operatorFlags `embed:""`
	File          string `arg:"" help:"JSON or YAML: {\"version\": 1, \"actions\": [...]}; - for standard input."`
}

// registration is what became of one action of a file.
type registration struct {
	Name    string `json:"name"`
	Version uint32 `json:"version"`
	Change  string `json:"change"` // "new", "changed" or "unchanged"
}

func (c *actionRegister) Run(ctx context.Context, a *app) error {
	actions, err := readActions(c.File)
	if err != nil {
		return err
	}
	client, err := c.admin()
	if err != nil {
		return err
	}
	done := []registration{}
	for _, action := range actions {
		r, err := register(ctx, client, action)
		if err != nil {
			for _, r := range done { // what is registered stays so
				fmt.Fprintf(a.err, "%s: version %d, %s\n", r.Name, r.Version, r.Change)
			}
			fmt.Fprintf(a.err, "the action %q and those after it in the file are not registered:\n", action.GetName())
			return err
		}
		done = append(done, r)
	}
	if a.json {
		return showJSON(a.out, map[string]any{"actions": done})
	}
	for _, r := range done {
		a.printf("%s: version %d, %s\n", r.Name, r.Version, r.Change)
	}
	return nil
}

func register(ctx context.Context, client whencev1connect.AdminServiceClient, action *v1.Action) (r registration, err error) {
	before, err := client.GetRegisteredAction(ctx, &v1.GetRegisteredActionRequest{Name: action.GetName()})
	if err != nil && connect.CodeOf(err) != connect.CodeNotFound {
		if connect.CodeOf(err) != connect.CodeInvalidArgument { // registering it says more of what is wrong
			return r, err
		}
	}
	res, err := client.RegisterAction(ctx, &v1.RegisterActionRequest{Action: action})
	if err != nil {
		return r, err
	}
	r = registration{Name: res.GetAction().GetName(), Version: res.GetAction().GetVersion(), Change: "new"}
	switch was := before.GetAction(); {
	case was.GetVersion() == r.Version:
		r.Change = "unchanged"
	case was != nil:
		r.Change = "changed"
	}
	return r, nil
}

// actionFile is what a file of actions holds.
type actionFile struct {
	Version int               `json:"version"`
	Actions []json.RawMessage `json:"actions"`
}

const actionFileVersion = 1

func readActions(path string) ([]*v1.Action, error) {
	var b []byte
	var err error
	if path == "-" {
		path = "standard input"
		b, err = io.ReadAll(os.Stdin)
	} else {
		b, err = os.ReadFile(path)
	}
	if err != nil {
		return nil, fmt.Errorf("read actions: %w", err)
	}
	return parseActions(path, b)
}

// parseActions reads actions as the API's JSON has them, or the same in YAML. What
// it does not know is an error.
func parseActions(name string, b []byte) ([]*v1.Action, error) {
	if !json.Valid(b) {
		var err error
		if b, err = yamlToJSON(b); err != nil {
			return nil, fmt.Errorf("%s is neither JSON nor YAML: %w", name, err)
		}
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	var f actionFile
	if err := dec.Decode(&f); err != nil {
		return nil, fmt.Errorf(`%s does not hold actions: write {"version": %d, "actions": [...]}: %w`, name, actionFileVersion, err)
	}
	switch {
	case f.Version != actionFileVersion:
		return nil, fmt.Errorf("%s is of version %d of such files; this program reads version %d", name, f.Version, actionFileVersion)
	case len(f.Actions) == 0:
		return nil, fmt.Errorf("%s holds no actions", name)
	}
	var out []*v1.Action
	for i, raw := range f.Actions {
		action := &v1.Action{}
		if err := protojson.Unmarshal(raw, action); err != nil {
			return nil, fmt.Errorf("%s: action %d: %w", name, i+1, err)
		}
		out = append(out, action)
	}
	return out, nil
}

func yamlToJSON(b []byte) ([]byte, error) {
	dec := yaml.NewDecoder(bytes.NewReader(b))
	var v any
	if err := dec.Decode(&v); err != nil {
		return nil, err
	}
	if err := dec.Decode(new(any)); !errors.Is(err, io.EOF) {
		return nil, errors.New("it holds more than one document")
	}
	return json.Marshal(v)
}

type actionList struct {
	operatorFlags `embed:""`
	pageFlags     `embed:""`
}

func (c *actionList) Run(ctx context.Context, a *app) error {
	client, err := c.admin()
	if err != nil {
		return err
	}
	res, err := client.ListRegisteredActions(ctx, &v1.ListRegisteredActionsRequest{PageSize: c.Limit, PageToken: c.Page})
	if err != nil {
		return err
	}
	return show(a, res, func() { printActions(a, res.GetActions()...); a.more(res.GetNextPageToken()) })
}

type actionName struct {
	operatorFlags `embed:""`
	Name          string `arg:"" help:"The action's name."`
}

type actionShow struct {
	actionName `embed:""`
}

func (c *actionShow) Run(ctx context.Context, a *app) error {
	client, err := c.admin()
	if err != nil {
		return err
	}
	res, err := client.GetRegisteredAction(ctx, &v1.GetRegisteredActionRequest{Name: c.Name})
	if err != nil {
		return err
	}
	var failed error
	err = show(a, res, func() {
		printActions(a, res.GetAction())
		a.printf("digest: %s\n", res.GetAction().GetDigest())
		var b []byte
		if b, failed = (protojson.MarshalOptions{Multiline: true, Indent: "  "}).Marshal(res.GetAction()); failed == nil {
			a.printf("%s\n", b)
		}
	})
	return errors.Join(err, failed)
}

type actionUnregister struct {
	actionName `embed:""`
}

func (c *actionUnregister) Run(ctx context.Context, a *app) error {
	client, err := c.admin()
	if err != nil {
		return err
	}
	res, err := client.UnregisterAction(ctx, &v1.UnregisterActionRequest{Name: c.Name})
	if err != nil {
		return err
	}
	return show(a, res, func() { a.printf("action %s is out of use; its versions stay on record\n", c.Name) })
}

func printActions(a *app, actions ...*v1.Action) {
	columns(a, "ACTION\tVERSION\tTIER\tRUNS\tTAKES\tAPPROVALS", func(w *tabwriter.Writer) {
		for _, action := range actions {
			approvals := fmt.Sprint(action.GetApprovals())
			if action.GetApprovals() == 0 && action.GetTier() == v1.Tier_TIER_IRREVERSIBLE && action.GetCompensation() == nil {
				approvals = "1"
			}
			fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%s\t%s\n", action.GetName(), action.GetVersion(), strings.TrimPrefix(action.GetTier().String(), "TIER_"),
				runsText(action), takesText(action), approvals)
		}
	})
}

func runsText(action *v1.Action) string {
	switch run := action.GetRun().(type) {
	case *v1.Action_Row:
		return strings.ToLower(strings.TrimPrefix(run.Row.GetOperation().String(), "ROW_OPERATION_")) + " " + run.Row.GetTable()
	case *v1.Action_Http:
		return run.Http.GetRequest().GetMethod() + " " + run.Http.GetUpstream() + run.Http.GetRequest().GetPath()
	case *v1.Action_Memory:
		return strings.ToLower(strings.TrimPrefix(run.Memory.GetOperation().String(), "MEMORY_OPERATION_"))
	case *v1.Action_Saga:
		var names []string
		for _, s := range run.Saga.GetSteps() {
			names = append(names, s.GetStep().GetAction())
		}
		return strings.Join(names, ", then ")
	}
	return "nothing"
}

func takesText(action *v1.Action) string {
	var names []string
	for _, p := range action.GetParameters() {
		name := p.GetName()
		if !p.GetRequired() {
			name += "?"
		}
		names = append(names, name)
	}
	return cmp.Or(strings.Join(names, " "), "nothing")
}
