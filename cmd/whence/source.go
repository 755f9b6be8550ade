package main

import (
	"context"
	"fmt"
	"text/tabwriter"
	"time"

	v1 "github.com/whence-db/whence/proto/gen/whence/v1"
)

type sourceCmd struct {
	Create sourceCreate `cmd:"" help:"Connect a database and start to capture it."`
	List   sourceList   `cmd:"" default:"withargs" help:"List sources."`
	Get    sourceGet    `cmd:"" help:"Show one source and how far its capture is."`
	Pause  sourcePause  `cmd:"" help:"Stop capture for a while."`
	Resume sourceResume `cmd:"" help:"Go on after a pause, or after mending what broke."`
	Delete sourceDelete `cmd:"" help:"Forget a source, and drop its slot and publication."`
}

type sourceCreate struct {
	operatorFlags `embed:""`
	Name          string `arg:"" help:"Name for the source."`
	DSN           string `name:"dsn" help:"Connection string; stored encrypted." xor:"dsn" required:""`
	DSNEnv        string `name:"dsn-env" help:"Environment variable of the server that holds the connection string." xor:"dsn" required:""`
}

func (c *sourceCreate) Run(ctx context.Context, a *app) error {
	client, err := c.sources()
	if err != nil {
		return err
	}
	res, err := client.CreateSource(ctx, &v1.CreateSourceRequest{Name: c.Name, Dsn: c.DSN, DsnEnv: c.DSNEnv})
	if err != nil {
		return err
	}
	return show(a, res, func() { printSources(a, res.GetSource()) })
}

type sourceList struct {
	operatorFlags `embed:""`
}

func (c *sourceList) Run(ctx context.Context, a *app) error {
	client, err := c.sources()
	if err != nil {
		return err
	}
	res, err := client.ListSources(ctx, &v1.ListSourcesRequest{})
	if err != nil {
		return err
	}
	return show(a, res, func() { printSources(a, res.GetSources()...) })
}

type sourceName struct {
	operatorFlags `embed:""`
	Name          string `arg:"" help:"The source's name."`
}

type sourceGet struct {
	sourceName `embed:""`
}

func (c *sourceGet) Run(ctx context.Context, a *app) error {
	client, err := c.sources()
	if err != nil {
		return err
	}
	res, err := client.GetSource(ctx, &v1.GetSourceRequest{Name: c.Name})
	if err != nil {
		return err
	}
	return show(a, res, func() { printSources(a, res.GetSource()) })
}

type sourcePause struct {
	sourceName `embed:""`
}

func (c *sourcePause) Run(ctx context.Context, a *app) error {
	client, err := c.sources()
	if err != nil {
		return err
	}
	res, err := client.PauseSource(ctx, &v1.PauseSourceRequest{Name: c.Name})
	if err != nil {
		return err
	}
	return show(a, res, func() { printSources(a, res.GetSource()) })
}

type sourceResume struct {
	sourceName `embed:""`
}

func (c *sourceResume) Run(ctx context.Context, a *app) error {
	client, err := c.sources()
	if err != nil {
		return err
	}
	res, err := client.ResumeSource(ctx, &v1.ResumeSourceRequest{Name: c.Name})
	if err != nil {
		return err
	}
	return show(a, res, func() { printSources(a, res.GetSource()) })
}

type sourceDelete struct {
	sourceName `embed:""`
	Force      bool `help:"Forget it even if its slot and publication cannot be dropped."`
}

func (c *sourceDelete) Run(ctx context.Context, a *app) error {
	client, err := c.sources()
	if err != nil {
		return err
	}
	res, err := client.DeleteSource(ctx, &v1.DeleteSourceRequest{Name: c.Name, Force: c.Force})
	if err != nil {
		return err
	}
	return show(a, res, func() {
		a.printf("source %s is deleted\n", c.Name)
		if res.GetLeft() != "" {
			a.printf("%s\n", res.GetLeft())
		}
	})
}

func printSources(a *app, sources ...*v1.Source) {
	w := tabwriter.NewWriter(a.out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "SOURCE\tSTATE\tLSN\tLAG\tBEHIND\tKEPT\tAPPLIED\tLAST COMMIT\tTABLES\tTROUBLE")
	for _, s := range sources {
		lag := "not known"
		if s.Lag != nil {
			lag = ago(s.GetLag().AsDuration())
		}
		trouble := s.GetError()
		if trouble == "" {
			trouble = s.GetWarning()
		}
		trouble = line(trouble, 1000) // in one line of the table
		rate := "not known"
		if s.ApplyRate != nil {
			rate = fmt.Sprintf("%.1f/s", s.GetApplyRate())
		}
		commit := "none"
		if s.CommitTime != nil {
			commit = s.GetCommitTime().AsTime().Local().Format(time.DateTime)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%d\t%s\n", s.GetName(), plain(s.GetState()), s.GetLsn(), lag,
			sizeIfKnown(s.LagBytes), sizeIfKnown(s.RetainedWalBytes), rate, commit, s.GetTables(), trouble)
	}
	_ = w.Flush()
}

func sizeIfKnown(n *int64) string {
	if n == nil {
		return "not known"
	}
	return size(*n)
}

// size prints a number of bytes for people.
func size(n int64) string {
	const units = "kMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	f, i := float64(n)/1024, 0
	for ; f >= 1024 && i < len(units)-1; i++ {
		f /= 1024
	}
	return fmt.Sprintf("%.1f %cB", f, units[i])
}
