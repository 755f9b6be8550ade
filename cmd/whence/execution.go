package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "github.com/whence-db/whence/proto/gen/whence/v1"
	"github.com/whence-db/whence/proto/gen/whence/v1/whencev1connect"
)

func (f agentFlags) actions() (whencev1connect.ActionServiceClient, error) {
	c, err := f.client()
	return whencev1connect.NewActionServiceClient(c), err
}

// arguments are given as JSON, or one by one.
type argumentFlags struct {
	Action string            `arg:"" help:"The action's name."`
	Args   map[string]string `name:"arg" help:"Arguments; what is JSON is taken as that, all else as text." placeholder:"NAME=VALUE" mapsep:"none"`
	JSON   string            `name:"args" help:"All arguments as one JSON object." placeholder:"JSON"`
}

func (f argumentFlags) message() (*structpb.Struct, error) {
	out := &structpb.Struct{Fields: map[string]*structpb.Value{}}
	if f.JSON != "" {
		if err := protojson.Unmarshal([]byte(f.JSON), out); err != nil {
			return nil, fmt.Errorf("--args: %w", err)
		}
	}
	for name, text := range f.Args {
		v := &structpb.Value{}
		if err := protojson.Unmarshal([]byte(text), v); err != nil {
			v = structpb.NewStringValue(text)
		}
		out.Fields[name] = v
	}
	return out, nil
}

type actionPreview struct {
	agentFlags    `embed:""`
	argumentFlags `embed:""`
}

func (c *actionPreview) Run(ctx context.Context, a *app) error {
	client, err := c.actions()
	if err != nil {
		return err
	}
	args, err := c.message()
	if err != nil {
		return err
	}
	res, err := client.Preview(ctx, &v1.PreviewRequest{Action: c.Action, Arguments: args})
	if err != nil {
		return err
	}
	return show(a, res, func() {
		a.printf("%s, version %d: nothing has been done\n", short(res.GetTier(), "TIER_"), res.GetActionVersion())
		printEffects(a, res.GetEffects())
		for _, r := range res.GetRequests() {
			a.printf("%s %s %s\n", r.GetMethod(), r.GetUrl(), r.GetBody())
		}
		if res.GetResult() != nil {
			a.printf("%s\n", protojson.Format(res.GetResult()))
		}
		if res.GetApprovalRequired() {
			a.printf("an operator has to approve it\n")
		}
		a.printf("to run exactly this: --digest %s\n", res.GetDigest())
	})
}

type actionRun struct {
	agentFlags     `embed:""`
	argumentFlags  `embed:""`
	IdempotencyKey string `help:"The same key runs once, however often it is sent; needed by all that writes." placeholder:"KEY"`
	Digest         string `help:"What a preview gave: anything else is refused." placeholder:"HEX"`
}

func (c *actionRun) Run(ctx context.Context, a *app) error {
	client, err := c.actions()
	if err != nil {
		return err
	}
	args, err := c.message()
	if err != nil {
		return err
	}
	res, err := client.Execute(withKey(ctx, c.IdempotencyKey), &v1.ExecuteRequest{Action: c.Action, Arguments: args, Digest: c.Digest})
	if err != nil {
		return err
	}
	return show(a, res, func() { printExecution(a, res.GetExecution()) })
}

type actionStatus struct {
	agentFlags `embed:""`
	ID         string `arg:"" help:"The execution's id."`
}

func (c *actionStatus) Run(ctx context.Context, a *app) error {
	client, err := c.actions()
	if err != nil {
		return err
	}
	res, err := client.GetExecution(ctx, &v1.GetExecutionRequest{Id: c.ID})
	if err != nil {
		return err
	}
	return show(a, res, func() { printExecution(a, res.GetExecution()) })
}

type actionUndo struct {
	agentFlags `embed:""`
	ID         string `arg:"" help:"The execution's id."`
}

func (c *actionUndo) Run(ctx context.Context, a *app) error {
	client, err := c.actions()
	if err != nil {
		return err
	}
	res, err := client.Undo(ctx, &v1.UndoRequest{Id: c.ID})
	if err != nil {
		return err
	}
	return show(a, res, func() { printExecution(a, res.GetExecution()) })
}

func short(e fmt.Stringer, prefix string) string { return strings.TrimPrefix(e.String(), prefix) }

func printExecution(a *app, x *v1.Execution) {
	a.printf("%s %s: %s\n", x.GetAction(), x.GetId(), short(x.GetState(), "EXECUTION_STATE_"))
	if x.GetError() != "" {
		a.printf("%s\n", x.GetError())
	}
	printEffects(a, x.GetEffects())
	if x.GetResult() != nil {
		a.printf("%s\n", protojson.Format(x.GetResult()))
	}
	if x.GetUndoUntil() != nil && x.GetState() == v1.ExecutionState_EXECUTION_STATE_SUCCEEDED {
		a.printf("it can be undone until %s: whence action undo %s\n", instant(x.GetUndoUntil()), x.GetId())
	}
	if x.GetToken() != "" {
		a.printf("an answer that knows it: --at-least %s\n", x.GetToken())
	}
}

func printEffects(a *app, effects []*v1.Effect) {
	for _, e := range effects {
		a.printf("%s %s.%s %s\n", short(e.GetKind(), "EFFECT_KIND_"), e.GetSource(), e.GetTable(), keyText(e.GetKey()))
		if e.GetBefore() != nil {
			a.printf("  before %s\n", keyText(e.GetBefore()))
		}
		if e.GetAfter() != nil {
			a.printf("  after  %s\n", keyText(e.GetAfter()))
		}
	}
}

type approvalCmd struct {
	List    approvalList    `cmd:"" default:"withargs" help:"List approvals, newest first."`
	Show    approvalShow    `cmd:"" help:"Show one, with what it would do."`
	Approve approvalApprove `cmd:"" help:"Let exactly what is shown run, once."`
	Deny    approvalDeny    `cmd:"" help:"End it without effect."`
	Watch   approvalWatch   `cmd:"" help:"Show approvals as they are asked for and decided."`
}

func (f operatorFlags) approvals() (whencev1connect.ApprovalServiceClient, error) {
	c, err := f.client()
	return whencev1connect.NewApprovalServiceClient(c), err
}

type approvalList struct {
	operatorFlags `embed:""`
	Pending       bool `help:"Only those that nobody has decided."`
}

func (c *approvalList) Run(ctx context.Context, a *app) error {
	client, err := c.approvals()
	if err != nil {
		return err
	}
	req := &v1.ListApprovalsRequest{}
	if c.Pending {
		req.State = v1.ApprovalState_APPROVAL_STATE_PENDING
	}
	res, err := client.ListApprovals(ctx, req)
	if err != nil {
		return err
	}
	return show(a, res, func() {
		w := tabwriter.NewWriter(a.out, 0, 4, 2, ' ', 0)
		fmt.Fprintln(w, "APPROVAL\tSTATE\tACTION\tAGENT\tUSER\tPURPOSE\tEXPIRES")
		for _, one := range res.GetApprovals() {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", one.GetId(), short(one.GetState(), "APPROVAL_STATE_"), one.GetAction(), one.GetAgent(),
				one.GetUser(), one.GetPurpose(), instant(one.GetExpireTime()))
		}
		_ = w.Flush()
	})
}

type approvalShow struct {
	operatorFlags `embed:""`
	ID            string `arg:"" help:"The approval's id."`
}

func (c *approvalShow) Run(ctx context.Context, a *app) error {
	client, err := c.approvals()
	if err != nil {
		return err
	}
	res, err := client.GetApproval(ctx, &v1.GetApprovalRequest{Id: c.ID})
	if err != nil {
		return err
	}
	return show(a, res, func() { printApproval(a, res.GetApproval()) })
}

func printApproval(a *app, one *v1.Approval) {
	a.printf("%s %s: %s, %d of %d approved\n", one.GetAction(), one.GetId(), short(one.GetState(), "APPROVAL_STATE_"), len(one.GetApprovedBy()), one.GetNeeded())
	a.printf("asked for by %s for %s: %s\n", one.GetAgent(), one.GetUser(), one.GetPurpose())
	a.printf("with %s\n", protojson.Format(one.GetArguments()))
	printEffects(a, one.GetEffects())
	for _, r := range one.GetRequests() {
		a.printf("%s %s %s\n", r.GetMethod(), r.GetUrl(), r.GetBody())
	}
	if one.GetState() == v1.ApprovalState_APPROVAL_STATE_PENDING {
		a.printf("until %s: whence approval approve %s %s\n", instant(one.GetExpireTime()), one.GetId(), one.GetDigest())
	}
}

type approvalApprove struct {
	operatorFlags `embed:""`
	ID            string `arg:"" help:"The approval's id."`
	Digest        string `arg:"" help:"The digest of what was shown."`
	Comment       string `help:"Kept with the decision."`
}

func (c *approvalApprove) Run(ctx context.Context, a *app) error {
	client, err := c.approvals()
	if err != nil {
		return err
	}
	res, err := client.Approve(ctx, &v1.ApproveRequest{Id: c.ID, Digest: c.Digest, Comment: c.Comment})
	if err != nil {
		return err
	}
	return show(a, res, func() { printApproval(a, res.GetApproval()) })
}

type approvalDeny struct {
	operatorFlags `embed:""`
	ID            string `arg:"" help:"The approval's id."`
	Comment       string `help:"Why; the agent is told."`
}

func (c *approvalDeny) Run(ctx context.Context, a *app) error {
	client, err := c.approvals()
	if err != nil {
		return err
	}
	res, err := client.Deny(ctx, &v1.DenyRequest{Id: c.ID, Comment: c.Comment})
	if err != nil {
		return err
	}
	return show(a, res, func() { printApproval(a, res.GetApproval()) })
}

type approvalWatch struct {
	operatorFlags `embed:""`
}

func (c *approvalWatch) Run(ctx context.Context, a *app) error {
	client, err := c.approvals()
	if err != nil {
		return err
	}
	stream, err := client.WatchApprovals(ctx, &v1.WatchApprovalsRequest{})
	if err != nil {
		return err
	}
	defer func() { _ = stream.Close() }()
	for {
		res, err := stream.Receive()
		switch {
		case ctx.Err() != nil || errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
		if err := show(a, res, func() { printApproval(a, res.GetApproval()) }); err != nil {
			return err
		}
	}
}

func instant(t *timestamppb.Timestamp) string { return t.AsTime().Format(time.RFC3339) }
