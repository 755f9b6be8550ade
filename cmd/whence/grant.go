package main

import (
	"context"
	"fmt"
	"text/tabwriter"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "github.com/whence-db/whence/proto/gen/whence/v1"
)

type grantCmd struct {
	Create grantCreate `cmd:"" help:"Let an agent act for a user, or for the users of a group."`
	List   grantList   `cmd:"" default:"withargs" help:"List grants, newest first."`
	Get    grantGet    `cmd:"" help:"Show one grant."`
	Delete grantDelete `cmd:"" help:"Take a grant back, and end the tasks under it."`
}

type grantCreate struct {
	operatorFlags `embed:""`
	Agent         string  `arg:"" help:"The agent."`
	User          string  `help:"The user whom it may act for; a user's own token needs none." xor:"for"`
	Group         string  `help:"The group whose users it may act for." xor:"for"`
	Tenant        string  `help:"The tenant of agent and user; otherwise that of the token."`
	Calls         *uint32 `help:"Calls that each task under it may make; otherwise 1000." placeholder:"N"`
	budgetFlags   `embed:""`
	Lifetime      time.Duration `help:"How long each task under it may last; otherwise 1h."`
	MaxDepth      *uint32       `help:"How deep its tasks may delegate; otherwise 3." placeholder:"N"`
	Proof         bool          `help:"Bind its tokens to a key of the agent's (DPoP)."`
	Expires       time.Time     `help:"When it ends, as in 2006-01-02T15:04:05Z; otherwise never." placeholder:"TIME"`

	scopeFlags `embed:"" group:"What its tasks may touch (nothing, if none is given):"`
}

func (c *grantCreate) Run(ctx context.Context, a *app) error {
	client, err := c.admin()
	if err != nil {
		return err
	}
	req := &v1.CreateGrantRequest{Agent: c.Agent, User: c.User, Group: c.Group, Tenant: c.Tenant, Scope: c.scopeFlags.message(),
		MaxDepth: c.MaxDepth, ProofOfPossession: c.Proof}
	if req.Budget, err = c.budgetFlags.message(c.Calls); err != nil {
		return err
	}
	if c.Lifetime != 0 {
		req.TaskLifetime = durationpb.New(c.Lifetime)
	}
	if !c.Expires.IsZero() {
		req.ExpireTime = timestamppb.New(c.Expires)
	}
	res, err := client.CreateGrant(ctx, req)
	if err != nil {
		return err
	}
	return show(a, res, func() { printGrants(a, res.GetGrant()) })
}

type grantList struct {
	operatorFlags `embed:""`
	pageFlags     `embed:""`
	Agent         string `help:"Only to this agent."`
	User          string `help:"Only for this user."`
	Tenant        string `help:"Only of this tenant."`
}

func (c *grantList) Run(ctx context.Context, a *app) error {
	client, err := c.admin()
	if err != nil {
		return err
	}
	res, err := client.ListGrants(ctx, &v1.ListGrantsRequest{Agent: c.Agent, User: c.User, Tenant: c.Tenant, PageSize: c.Limit, PageToken: c.Page})
	if err != nil {
		return err
	}
	return show(a, res, func() { printGrants(a, res.GetGrants()...); a.more(res.GetNextPageToken()) })
}

type grantID struct {
	operatorFlags `embed:""`
	ID            string `arg:"" name:"id" help:"The grant's ID, from grant list."`
}

type grantGet struct {
	grantID `embed:""`
}

func (c *grantGet) Run(ctx context.Context, a *app) error {
	client, err := c.admin()
	if err != nil {
		return err
	}
	res, err := client.GetGrant(ctx, &v1.GetGrantRequest{Id: c.ID})
	if err != nil {
		return err
	}
	return show(a, res, func() { printGrants(a, res.GetGrant()) })
}

type grantDelete struct {
	grantID `embed:""`
}

func (c *grantDelete) Run(ctx context.Context, a *app) error {
	client, err := c.admin()
	if err != nil {
		return err
	}
	res, err := client.DeleteGrant(ctx, &v1.DeleteGrantRequest{Id: c.ID})
	if err != nil {
		return err
	}
	return show(a, res, func() { a.printf("grant %s is taken back, and its tasks are ended\n", c.ID) })
}

func printGrants(a *app, grants ...*v1.Grant) {
	columns(a, "GRANT\tAGENT\tFOR\tTENANT\tCALLS\tTASKS LAST\tDEPTH\tPROOF\tENDS\tMAY TOUCH", func(w *tabwriter.Writer) {
		for _, g := range grants {
			whom, ends, proof := "user "+g.GetUser(), "never", "none"
			if g.GetGroup() != "" {
				whom = "group " + g.GetGroup()
			}
			if g.GetProofOfPossession() {
				proof = "DPoP"
			}
			if g.ExpireTime != nil {
				ends = g.GetExpireTime().AsTime().Format(time.RFC3339)
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%s\t%d\t%s\t%s\t%s\n", g.GetId(), g.GetAgent(), whom, g.GetTenant(), g.GetBudget().GetCalls(),
				g.GetTaskLifetime().AsDuration(), g.GetMaxDepth(), proof, ends, scopeText(g.GetScope()))
		}
	})
}
