package main

import (
	"context"
	"fmt"
	"slices"
	"text/tabwriter"
	"time"

	v1 "github.com/whence-db/whence/proto/gen/whence/v1"
)

type spaceCmd struct {
	List   spaceList   `cmd:"" default:"withargs" help:"List embedding spaces, and how full they are."`
	Create spaceCreate `cmd:"" help:"Fill a space of the server's next embedding model beside the current one."`
	Switch spaceSwitch `cmd:"" help:"Ask questions in another space from now on."`
	Delete spaceDelete `cmd:"" help:"Delete a space that is not the current one, with its vectors."`
}

type spaceList struct {
	operatorFlags `embed:""`
}

func (c *spaceList) Run(ctx context.Context, a *app) error {
	client, err := c.admin()
	if err != nil {
		return err
	}
	res, err := client.ListSpaces(ctx, &v1.ListSpacesRequest{})
	if err != nil {
		return err
	}
	return show(a, res, func() { printSpaces(a, res.GetSpaces()...) })
}

type spaceCreate struct {
	operatorFlags `embed:""`
	Model         string `arg:"" optional:"" help:"The model, as space list names it; otherwise the server's --next-embedder."`
	DryRun        bool   `help:"Only say what it would cost."`
	Wait          bool   `help:"Show progress until every text has its vector." short:"w"`
}

func (c *spaceCreate) Run(ctx context.Context, a *app) error {
	client, err := c.admin()
	if err != nil {
		return err
	}
	res, err := client.CreateSpace(ctx, &v1.CreateSpaceRequest{Model: c.Model, DryRun: c.DryRun})
	if err != nil {
		return err
	}
	estimate := func() {
		e := res.GetEstimate()
		a.printf("%s: %d texts to embed with about %d tokens, about %s in the memory database\n",
			res.GetSpace().GetModel(), e.GetTexts(), e.GetTokens(), size(e.GetBytes()))
	}
	switch {
	case c.DryRun:
		return show(a, res, estimate)
	case !c.Wait:
		return show(a, res, func() { estimate(); printSpaces(a, res.GetSpace()) })
	}
	if !a.json {
		estimate()
	}
	return c.wait(ctx, a, res.GetSpace())
}

// wait tells how a space fills until each text in it has its vector or was tried
// in vain.
func (c *spaceCreate) wait(ctx context.Context, a *app, made *v1.Space) error {
	client, err := c.admin()
	if err != nil {
		return err
	}
	began, first, said := time.Now(), made.GetEmbedded(), int64(-1)
	for {
		all, err := client.ListSpaces(ctx, &v1.ListSpacesRequest{})
		if err != nil {
			return err
		}
		i := slices.IndexFunc(all.GetSpaces(), func(s *v1.Space) bool { return s.GetId() == made.GetId() })
		if i < 0 {
			return fmt.Errorf("space %d was deleted", made.GetId())
		}
		s := all.GetSpaces()[i]
		if n := s.GetEmbedded(); n != said && !a.json {
			said = n
			a.printf("embedded %d of %d%s\n", n, s.GetTexts(), pace(n-first, s.GetTexts()-n, time.Since(began)))
		}
		if s.GetEmbedded()+s.GetFailed() >= s.GetTexts() {
			return show(a, s, func() { printSpaces(a, s) })
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Second):
		}
	}
}

// pace says how fast something goes and how long the rest will take.
func pace(done, left int64, took time.Duration) string {
	if done <= 0 || took < time.Second {
		return ""
	}
	rate := float64(done) / took.Seconds()
	return fmt.Sprintf(", %.0f/s, %s left", rate, time.Duration(float64(left)/rate*float64(time.Second)).Round(time.Second))
}

type spaceSwitch struct {
	operatorFlags `embed:""`
	ID            uint32 `arg:"" name:"id" help:"The space's ID, from space list."`
	Force         bool   `help:"Also if texts that can be found by their vectors now could not be then."`
}

func (c *spaceSwitch) Run(ctx context.Context, a *app) error {
	client, err := c.admin()
	if err != nil {
		return err
	}
	res, err := client.SwitchSpace(ctx, &v1.SwitchSpaceRequest{Id: c.ID, Force: c.Force})
	if err != nil {
		return err
	}
	return show(a, res, func() { printSpaces(a, res.GetSpace()) })
}

type spaceDelete struct {
	operatorFlags `embed:""`
	ID            uint32 `arg:"" name:"id" help:"The space's ID, from space list."`
}

func (c *spaceDelete) Run(ctx context.Context, a *app) error {
	client, err := c.admin()
	if err != nil {
		return err
	}
	res, err := client.DeleteSpace(ctx, &v1.DeleteSpaceRequest{Id: c.ID})
	if err != nil {
		return err
	}
	return show(a, res, func() { printSpaces(a, res.GetSpace()) })
}

func printSpaces(a *app, spaces ...*v1.Space) {
	w := tabwriter.NewWriter(a.out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "ID\tMODEL\tDIMENSIONS\tSTATE\tEMBEDDED\tFAILED\tREMARK")
	for _, s := range spaces {
		remark := line(s.GetError(), 200)
		if !s.GetConfigured() && s.GetState() != v1.SpaceState_SPACE_STATE_DELETING {
			remark = "this server does not have the model; " + remark
		}
		fmt.Fprintf(w, "%d\t%s\t%d\t%s\t%d/%d\t%d\t%s\n", s.GetId(), s.GetModel(), s.GetDimensions(), plain(s.GetState()),
			s.GetEmbedded(), s.GetTexts(), s.GetFailed(), remark)
	}
	_ = w.Flush()
}
