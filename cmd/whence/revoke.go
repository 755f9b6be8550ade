package main

import (
	"context"
	"fmt"
	"text/tabwriter"
	"time"

	v1 "github.com/whence-db/whence/proto/gen/whence/v1"
)

type revokeCmd struct {
	Task   revokeTask   `cmd:"" help:"Stop a task and everything delegated from it."`
	Agent  revokeAgent  `cmd:"" help:"Stop an agent with its tasks; it gets no new ones until it is reinstated."`
	User   revokeUser   `cmd:"" help:"Stop a user with the tasks that act for them."`
	Tenant revokeTenant `cmd:"" help:"Stop everyone of a tenant."`
	Token  revokeToken  `cmd:"" help:"Stop one token."`
	Key    revokeKey    `cmd:"" help:"Stop a signing key with every token that it signed."`
	List   revokeList   `cmd:"" help:"List revocations, newest first."`
}

// stop presses the button.
type stop struct {
	operatorFlags `embed:""`
	Reason        string `help:"Why; kept in the audit log and told to those who are stopped."`
}

func (c stop) press(ctx context.Context, a *app, req *v1.RevokeRequest) error {
	client, err := c.admin()
	if err != nil {
		return err
	}
	req.Reason = c.Reason
	res, err := client.Revoke(ctx, req)
	if err != nil {
		return err
	}
	return show(a, res, func() {
		a.printf("revoked at %s; active tasks that it ended: %d\n", res.GetRevokeTime().AsTime().Format(time.RFC3339), res.GetTasks())
	})
}

type revokeTask struct {
	stop   `embed:""`
	Target string `arg:"" help:"The task's ID, from task list."`
}

func (c *revokeTask) Run(ctx context.Context, a *app) error {
	return c.press(ctx, a, &v1.RevokeRequest{Target: &v1.RevokeRequest_Task{Task: c.Target}})
}

type revokeAgent struct {
	stop   `embed:""`
	Target string `arg:"" help:"The agent's name."`
	Tenant string `help:"Its tenant; otherwise the operator's."`
}

func (c *revokeAgent) Run(ctx context.Context, a *app) error {
	return c.press(ctx, a, &v1.RevokeRequest{Target: &v1.RevokeRequest_Agent{Agent: c.Target}, OfTenant: c.Tenant})
}

type revokeUser struct {
	stop   `embed:""`
	Target string `arg:"" help:"The user's name."`
	Tenant string `help:"Their tenant; otherwise the operator's."`
}

func (c *revokeUser) Run(ctx context.Context, a *app) error {
	return c.press(ctx, a, &v1.RevokeRequest{Target: &v1.RevokeRequest_User{User: c.Target}, OfTenant: c.Tenant})
}

type revokeTenant struct {
	stop   `embed:""`
	Target string `arg:"" help:"The tenant's name."`
}

func (c *revokeTenant) Run(ctx context.Context, a *app) error {
	return c.press(ctx, a, &v1.RevokeRequest{Target: &v1.RevokeRequest_Tenant{Tenant: c.Target}})
}

type revokeToken struct {
	stop   `embed:""`
	Target string `arg:"" help:"The token's ID (jti), from the audit log."`
}

func (c *revokeToken) Run(ctx context.Context, a *app) error {
	return c.press(ctx, a, &v1.RevokeRequest{Target: &v1.RevokeRequest_Token{Token: c.Target}})
}

type revokeKey struct {
	stop   `embed:""`
	Target string `arg:"" help:"The key's ID (kid), from key list; of one that begins with - put -- in front."`
}

func (c *revokeKey) Run(ctx context.Context, a *app) error {
	return c.press(ctx, a, &v1.RevokeRequest{Target: &v1.RevokeRequest_Key{Key: c.Target}})
}

type revokeList struct {
	operatorFlags `embed:""`
	pageFlags     `embed:""`
}

func (c *revokeList) Run(ctx context.Context, a *app) error {
	client, err := c.admin()
	if err != nil {
		return err
	}
	res, err := client.ListRevocations(ctx, &v1.ListRevocationsRequest{PageSize: c.Limit, PageToken: c.Page})
	if err != nil {
		return err
	}
	return show(a, res, func() {
		columns(a, "REVOKED\tKIND\tTENANT\tTARGET\tBY\tREINSTATED\tREASON", func(w *tabwriter.Writer) {
			for _, r := range res.GetRevocations() {
				back := "no"
				if r.ReinstateTime != nil {
					back = r.GetReinstateTime().AsTime().Format(time.RFC3339)
				}
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", r.GetRevokeTime().AsTime().Format(time.RFC3339), plain(r.GetKind()),
					r.GetTenant(), r.GetTarget(), r.GetRevokedBy(), back, line(r.GetReason(), 60))
			}
		})
		a.more(res.GetNextPageToken())
	})
}

type reinstateCmd struct {
	Agent  reinstateAgent  `cmd:"" help:"Let an agent in again."`
	User   reinstateUser   `cmd:"" help:"Let a user in again."`
	Tenant reinstateTenant `cmd:"" help:"Let a tenant in again."`
}

// reinstate is sent by each of them; tasks and tokens of before stay revoked.
func reinstate(ctx context.Context, a *app, f operatorFlags, req *v1.ReinstateRequest) error {
	client, err := f.admin()
	if err != nil {
		return err
	}
	res, err := client.Reinstate(ctx, req)
	if err != nil {
		return err
	}
	return show(a, res, func() {
		a.printf("let in again since %s; what was given before stays revoked\n", res.GetReinstateTime().AsTime().Format(time.RFC3339))
	})
}

type reinstateAgent struct {
	operatorFlags `embed:""`
	Target        string `arg:"" help:"The agent's name."`
	Tenant        string `help:"Its tenant; otherwise the operator's."`
}

func (c *reinstateAgent) Run(ctx context.Context, a *app) error {
	return reinstate(ctx, a, c.operatorFlags, &v1.ReinstateRequest{Target: &v1.ReinstateRequest_Agent{Agent: c.Target}, OfTenant: c.Tenant})
}

type reinstateUser struct {
	operatorFlags `embed:""`
	Target        string `arg:"" help:"The user's name."`
	Tenant        string `help:"Their tenant; otherwise the operator's."`
}

func (c *reinstateUser) Run(ctx context.Context, a *app) error {
	return reinstate(ctx, a, c.operatorFlags, &v1.ReinstateRequest{Target: &v1.ReinstateRequest_User{User: c.Target}, OfTenant: c.Tenant})
}

type reinstateTenant struct {
	operatorFlags `embed:""`
	Target        string `arg:"" help:"The tenant's name."`
}

func (c *reinstateTenant) Run(ctx context.Context, a *app) error {
	return reinstate(ctx, a, c.operatorFlags, &v1.ReinstateRequest{Target: &v1.ReinstateRequest_Tenant{Tenant: c.Target}})
}
